"""The structurally constrained recurrent network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinygrad_rnn import Cell, InputError, Param, State, bias, input_matrix, ops, recurrent_matrix, tap
from tinygrad_rnn_cells import references


class SCRN(Cell):
    """A simple network beside slow units: s is a running mean of the input, and its rate is fixed."""

    name = "scrn"
    summary = "simple network with slow context units of a fixed rate"
    citation = (
        "T. Mikolov, A. Joulin, S. Chopra, M. Mathieu and M. Ranzato, Learning longer memory in recurrent neural "
        "networks, arXiv 1412.7753, 2014"
    )
    deviations = """\
h alone is the output; the paper's readout sees s too. The paper has no bias. Its letters: W_xs is B, W_sh is P,
W_xh is A, W_hh is R. Weights start uniform in +-1/sqrt of their number of columns."""
    equation = """\
s' = (1 - alpha) * (x W_xs) + alpha * s
a = s' W_sh + x W_xh + h W_hh + b_h
h' = sigmoid(a)"""
    reference = references.scrn

    @dataclass(frozen=True)
    class Options:
        slow: int = field(default=40, metadata={"help": "number of slow units"})
        alpha: float = field(
            default=0.95,
            metadata={"help": "share of s that stays at each step, between 0 and 1", "keeps": "a larger alpha"},
        )
        recurrent_init: str = field(default="uniform", metadata={"help": "initialiser of W_hh and W_sh"})

    def check(self) -> None:
        if self.options.slow < 1 or not 0.0 < self.options.alpha < 1.0:
            raise InputError(f"cell scrn: expected slow >= 1 and 0 < alpha < 1, got {self.options}")

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,)), "s": State((self.options.slow,))}

    def params(self) -> dict[str, Param]:
        return {
            "W_xs": input_matrix(self.I, self.options.slow),
            "W_sh": Param((self.options.slow, self.H), self.options.recurrent_init, "recurrent"),
            "W_xh": input_matrix(self.I, self.H),
            "W_hh": recurrent_matrix(self.H, self.options.recurrent_init),
            "b_h": bias(self.H),
        }

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        slow = (1.0 - self.options.alpha) * (x @ p.W_xs) + self.options.alpha * s.s
        a = tap("a", slow @ p.W_sh + x @ p.W_xh + s.h @ p.W_hh + p.b_h)
        return {"h": ops.sigmoid(a), "s": slow}
