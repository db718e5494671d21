"""MUT3 of the same search; the one that needs no input map."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, recurrent_matrix, tap
from tinygrad_rnn_cells import references
from tinygrad_rnn_cells.input_map import CITATION, INITIAL


class MUT3(Cell):
    """The update gate sees tanh(h); z = 1 overwrites the state."""

    name = "mut3"
    summary = "evolved cell: update gate from tanh(h)"
    citation = CITATION
    deviations = INITIAL
    equation = """\
z = sigmoid(x W_xz + tanh(h) W_hz + b_z)
r = sigmoid(x W_xr + h W_hr + b_r)
n = tanh((r * h) W_hh + x W_xh + b_h)
h' = n * z + h * (1 - z)"""
    reference = references.mut3

    @dataclass(frozen=True)
    class Options:
        recurrent_init: str = field(default="uniform", metadata={"help": "initialiser of every W_h*"})

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        hidden = recurrent_matrix(self.H, self.options.recurrent_init)
        return {
            "W_xz": input_matrix(self.I, self.H), "W_hz": hidden, "b_z": bias(self.H),
            "W_xr": input_matrix(self.I, self.H), "W_hr": hidden, "b_r": bias(self.H),
            "W_xh": input_matrix(self.I, self.H), "W_hh": hidden, "b_h": bias(self.H),
        }  # fmt: skip

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        z = tap("z", ops.sigmoid(x @ p.W_xz + ops.tanh(s.h) @ p.W_hz + p.b_z))
        r = tap("r", ops.sigmoid(x @ p.W_xr + s.h @ p.W_hr + p.b_r))
        n = tap("n", ops.tanh((r * s.h) @ p.W_hh + x @ p.W_xh + p.b_h))
        return {"h": n * z + s.h * (1.0 - z)}
