"""MUT1, the best cell of a search over ten thousand."""

from __future__ import annotations

from typing import Any

from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, recurrent_matrix, tap
from tinygrad_rnn_cells import references
from tinygrad_rnn_cells.input_map import CITATION, DEVIATIONS, MUTOptions, check_map, map_params, mapped


class MUT1(Cell):
    """z does not see h, and z = 1 overwrites the state: a positive bias on z means forget."""

    name = "mut1"
    summary = "evolved cell: update gate from x alone, candidate with a bare tanh(x)"
    citation = CITATION
    deviations = DEVIATIONS
    equation = """\
z = sigmoid(x W_xz + b_z)
r = sigmoid(x W_xr + h W_hr + b_r)
n = tanh((r * h) W_hh + tanh(x) + b_h)
h' = n * z + h * (1 - z)"""
    reference = references.mut1
    Options = MUTOptions

    def check(self) -> None:
        check_map(self)

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        hidden = recurrent_matrix(self.H, self.options.recurrent_init)
        return {
            "W_xz": input_matrix(self.I, self.H), "b_z": bias(self.H),
            "W_xr": input_matrix(self.I, self.H), "W_hr": hidden, "b_r": bias(self.H),
            "W_hh": hidden, "b_h": bias(self.H), **map_params(self),
        }  # fmt: skip

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        z = tap("z", ops.sigmoid(x @ p.W_xz + p.b_z))
        r = tap("r", ops.sigmoid(x @ p.W_xr + s.h @ p.W_hr + p.b_r))
        n = tap("n", ops.tanh((r * s.h) @ p.W_hh + ops.tanh(mapped(self, p, x)) + p.b_h))
        return {"h": n * z + s.h * (1.0 - z)}
