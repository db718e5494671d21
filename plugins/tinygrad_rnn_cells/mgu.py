"""The minimal gated unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, recurrent_matrix, tap
from tinygrad_rnn_cells import references


class MGU(Cell):
    """One gate resets and updates. f = 1 overwrites the state, so b_f above 0 means forget, as its name says."""

    name = "mgu"
    summary = "minimal gated unit: a GRU whose reset and update gate are one"
    citation = (
        "G.-B. Zhou, J. Wu, C.-L. Zhang and Z.-H. Zhou, Minimal gated unit for recurrent neural networks, "
        "arXiv 1603.09420, 2016"
    )
    deviations = "Weights start uniform in +-1/sqrt(H)."
    equation = """\
f = sigmoid(x W_xf + h W_hf + b_f)
n = tanh(x W_xn + (f * h) W_hn + b_n)
h' = (1 - f) * h + f * n"""
    reference = references.mgu

    @dataclass(frozen=True)
    class Options:
        gate_bias: float = field(
            default=0.0,
            metadata={"help": "start value of b_f; BELOW 0 means remember", "keeps": "a smaller gate_bias"},
        )
        recurrent_init: str = field(default="uniform", metadata={"help": "initialiser of W_hf and W_hn"})

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        hidden = recurrent_matrix(self.H, self.options.recurrent_init)
        return {
            "W_xf": input_matrix(self.I, self.H), "W_hf": hidden, "b_f": bias(self.H, self.options.gate_bias),
            "W_xn": input_matrix(self.I, self.H), "W_hn": hidden, "b_n": bias(self.H),
        }  # fmt: skip

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        f = tap("f", ops.sigmoid(x @ p.W_xf + s.h @ p.W_hf + p.b_f))
        n = tap("n", ops.tanh(x @ p.W_xn + (f * s.h) @ p.W_hn + p.b_n))
        return {"h": (1.0 - f) * s.h + f * n}
