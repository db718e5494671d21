"""The gated recurrent unit in its two forms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, recurrent_matrix, tap
from tinygrad_rnn_cells import references
from tinygrad_rnn_cells.chrono import HELP, chrono


class GRU(Cell):
    """z = 1 keeps the old state, as in Cho et al. and PyTorch; Chung et al. write it the other way round."""

    name = "gru"
    summary = "gated recurrent unit: reset and update gate, no separate cell state"
    citation = (
        "K. Cho et al., Learning phrase representations using RNN encoder-decoder, arXiv 1406.1078, v3 "
        "(reset_before) and v1 (reset_after)"
    )
    deviations = "The paper has no biases. Weights start uniform in +-1/sqrt(H), as in PyTorch, biases at 0."
    equation = """\
r = sigmoid(x W_xr + h W_hr + b_r)
z = sigmoid(x W_xz + h W_hz + b_z)
n = tanh(x W_xn + (r * h) W_hn + b_n)            form reset_before
n = tanh(x W_xn + b_n + r * (h W_hn + b_hn))     form reset_after
h' = z * h + (1 - z) * n"""
    reference = references.gru

    @dataclass(frozen=True)
    class Options:
        form: Literal["reset_before", "reset_after"] = field(
            default="reset_before", metadata={"help": "reset the state, or its product with W_hn (PyTorch)"}
        )
        chrono: float = field(
            default=0.0, metadata={"help": HELP.format(keeps="b_z", rest=""), "keeps": "chrono=T for T steps"}
        )
        recurrent_init: str = field(default="uniform", metadata={"help": "initialiser of every W_h*"})

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        specs = {}
        for gate in "rzn":
            specs[f"W_x{gate}"] = input_matrix(self.I, self.H)
            specs[f"W_h{gate}"] = recurrent_matrix(self.H, self.options.recurrent_init)
            specs[f"b_{gate}"] = bias(self.H)
        if self.options.form == "reset_after":
            specs["b_hn"] = bias(self.H)
        return specs | chrono(self.H, self.options.chrono, "b_z")

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        r = tap("r", ops.sigmoid(x @ p.W_xr + s.h @ p.W_hr + p.b_r))
        z = tap("z", ops.sigmoid(x @ p.W_xz + s.h @ p.W_hz + p.b_z))
        if self.options.form == "reset_before":
            n = tap("n", ops.tanh(x @ p.W_xn + (r * s.h) @ p.W_hn + p.b_n))
        else:
            n = tap("n", ops.tanh(x @ p.W_xn + p.b_n + r * (s.h @ p.W_hn + p.b_hn)))
        return {"h": z * s.h + (1.0 - z) * n}
