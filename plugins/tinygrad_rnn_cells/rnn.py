"""The simple recurrent network of Elman."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, recurrent_matrix, tap
from tinygrad_rnn_cells import references


class RNN(Cell):
    """h = f(W_xh x + W_hh h + b_h). One bias, where PyTorch has two that add up."""

    name = "rnn"
    summary = "simple recurrent network: one squashed sum"
    citation = "J. L. Elman, Finding structure in time, Cognitive Science 14, 1990"
    deviations = "One bias, from 0 (PyTorch: two that add up); weights start uniform in +-1/sqrt(H), as in PyTorch."
    equation = """\
a = x W_xh + h W_hh + b_h
h' = f(a)"""
    reference = references.rnn

    @dataclass(frozen=True)
    class Options:
        activation: Literal["tanh", "relu", "sigmoid", "identity"] = field(
            default="tanh", metadata={"help": "f, the squashing function"}
        )
        recurrent_init: str = field(default="uniform", metadata={"help": "initialiser of W_hh, as in orthogonal:0.9"})

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {
            "W_xh": input_matrix(self.I, self.H),
            "W_hh": recurrent_matrix(self.H, self.options.recurrent_init),
            "b_h": bias(self.H),
        }

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        a = tap("a", x @ p.W_xh + s.h @ p.W_hh + p.b_h)
        activation = self.options.activation
        return {"h": a if activation == "identity" else getattr(ops, activation)(a)}
