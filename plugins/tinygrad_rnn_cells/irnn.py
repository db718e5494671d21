"""The simple network that starts by keeping everything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, recurrent_matrix, tap
from tinygrad_rnn_cells import references


class IRNN(Cell):
    """A relu network whose recurrent matrix starts as the identity: with no input it keeps its state."""

    name = "irnn"
    summary = "simple network of relu units that starts with the identity as recurrent matrix"
    citation = (
        "Q. V. Le, N. Jaitly and G. E. Hinton, A simple way to initialize recurrent networks of rectified linear "
        "units, arXiv 1504.00941, 2015"
    )
    deviations = """\
None. It forgets nothing, so a state that is carried from window to window explodes at the usual rates: the paper starts
each sequence from 0. Use --optim sgd --lr 0.01 --clip-norm 1, or recurrent_init=identity:0.01, the paper's iRNN."""
    equation = """\
a = x W_xh + h W_hh + b_h
h' = relu(a)"""
    reference = references.irnn

    @dataclass(frozen=True)
    class Options:
        input_init: str = field(default="normal:0.001", metadata={"help": "initialiser of W_xh"})
        recurrent_init: str = field(default="identity", metadata={"help": "initialiser of W_hh, as in identity:0.01"})

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {
            "W_xh": input_matrix(self.I, self.H, self.options.input_init),
            "W_hh": recurrent_matrix(self.H, self.options.recurrent_init),
            "b_h": bias(self.H),
        }

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        a = tap("a", x @ p.W_xh + s.h @ p.W_hh + p.b_h)
        return {"h": ops.relu(a)}
