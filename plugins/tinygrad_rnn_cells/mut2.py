"""MUT2 of the same search."""

from __future__ import annotations

from typing import Any

from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, recurrent_matrix, tap
from tinygrad_rnn_cells import references
from tinygrad_rnn_cells.input_map import CITATION, DEVIATIONS, MUTOptions, check_map, map_params, mapped


class MUT2(Cell):
    """The reset gate sees x without a matrix; z = 1 overwrites the state."""

    name = "mut2"
    summary = "evolved cell: reset gate from a bare x"
    citation = CITATION
    deviations = f"{DEVIATIONS}\nz multiplies h by W_hz, as every implementation does; some prints say W_hx."
    equation = """\
z = sigmoid(x W_xz + h W_hz + b_z)
r = sigmoid(x + h W_hr + b_r)
n = tanh((r * h) W_hh + x W_xh + b_h)
h' = n * z + h * (1 - z)"""
    reference = references.mut2
    Options = MUTOptions

    def check(self) -> None:
        check_map(self)

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        hidden = recurrent_matrix(self.H, self.options.recurrent_init)
        return {
            "W_xz": input_matrix(self.I, self.H), "W_hz": hidden, "b_z": bias(self.H),
            "W_hr": hidden, "b_r": bias(self.H),
            "W_xh": input_matrix(self.I, self.H), "W_hh": hidden, "b_h": bias(self.H), **map_params(self),
        }  # fmt: skip

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        z = tap("z", ops.sigmoid(x @ p.W_xz + s.h @ p.W_hz + p.b_z))
        r = tap("r", ops.sigmoid(mapped(self, p, x) + s.h @ p.W_hr + p.b_r))
        n = tap("n", ops.tanh((r * s.h) @ p.W_hh + x @ p.W_xh + p.b_h))
        return {"h": n * z + s.h * (1.0 - z)}
