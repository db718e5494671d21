"""The update gate recurrent network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, recurrent_matrix, tap
from tinygrad_rnn_cells import references


class UGRNN(Cell):
    """A simple network behind one gate: g = 1 keeps the old state, g = 0 computes a new one."""

    name = "ugrnn"
    summary = "simple network with one gate between the old state and the new one"
    citation = (
        "J. Collins, J. Sohl-Dickstein and D. Sussillo, Capacity and trainability in recurrent neural networks, "
        "arXiv 1611.09913, 2016 (ICLR 2017)"
    )
    deviations = "The candidate is a tanh (the paper tries relu too). Weights start uniform in +-1/sqrt(H)."
    equation = """\
n = tanh(x W_xn + h W_hn + b_n)
g = sigmoid(x W_xg + h W_hg + b_g)
h' = g * h + (1 - g) * n"""
    reference = references.ugrnn

    @dataclass(frozen=True)
    class Options:
        forget_bias: float = field(default=1.0, metadata={"help": "start value of b_g; above 0 means remember"})
        recurrent_init: str = field(default="uniform", metadata={"help": "initialiser of W_hn and W_hg"})

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        hidden = recurrent_matrix(self.H, self.options.recurrent_init)
        return {
            "W_xn": input_matrix(self.I, self.H), "W_hn": hidden, "b_n": bias(self.H),
            "W_xg": input_matrix(self.I, self.H), "W_hg": hidden, "b_g": bias(self.H, self.options.forget_bias),
        }  # fmt: skip

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        n = tap("n", ops.tanh(x @ p.W_xn + s.h @ p.W_hn + p.b_n))
        g = tap("g", ops.sigmoid(x @ p.W_xg + s.h @ p.W_hg + p.b_g))
        return {"h": g * s.h + (1.0 - g) * n}
