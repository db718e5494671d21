"""Ops in the step of a cell: the compiled loop beside `unroll`, and which of them become machine code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compare import compare, compare_float32, make_case

from tinygrad_rnn import Cell, Param, State, input_matrix, ops, scan, unroll

# of v (B, 4), the parameter matrix U and the old state h: what becomes machine code, and what NumPy runs
MACHINE = {
    "gelu": lambda v, U, h: ops.gelu(v),
    "gelu tanh": lambda v, U, h: ops.gelu(v, approximate="tanh"),
    "erf": lambda v, U, h: ops.erf(v) + 0.3 * ops.erfc(2.0 * v),
    "exponentials": lambda v, U, h: ops.expm1(0.3 * v) + ops.exp2(-v * v),
    "logarithms": lambda v, U, h: ops.log2(v * v + 0.5) - ops.log10(v * v + 0.7),
    "rounding": lambda v, U, h: v - 0.3 * (ops.floor(v) + ops.ceil(3 * v) + ops.trunc(4 * v) + ops.round(5 * v)),
    "remainder": lambda v, U, h: v % 0.731 + v % -0.31 + 1.7 % (v * v + 0.3) - v % (h + 2.0),
    "floor_divide": lambda v, U, h: v + 0.1 * (v // 0.731 + v // -0.3 + 1.7 // (v * v + 0.3)),
    "logic": lambda v, U, h: v * (~(v > 0.1) | (v > 0.3) & (h < 0.2) ^ ops.isnan(v)) + v * ops.isfinite(h),
    "isinf": lambda v, U, h: ops.where(ops.isinf(1.0 / ops.relu(v)), 0.3 * v, v * v),
    "clip to tensors": lambda v, U, h: ops.clip(v, -0.5, ops.exp(h)),
    "einsum": lambda v, U, h: ops.einsum("bh,hk->bk", ops.tanh(v), U),
    "triangle": lambda v, U, h: ops.tanh(v) @ ops.tril(U),
    "diagonals": lambda v, U, h: ops.tanh(v) @ ops.diag(ops.diag(U)) + ops.trace(U),
    "roll": lambda v, U, h: ops.roll(v, 1, -1),
}
BY_NUMPY = {
    "arcs": lambda v, U, h: ops.arctan(v) + ops.arcsinh(h) + ops.arctan2(v, h + 2.0),
    "hyperbolic": lambda v, U, h: 0.2 * ops.sinh(ops.tanh(v)) - ops.cosh(0.3 * ops.tanh(v)),
    "logaddexp": lambda v, U, h: ops.logaddexp(v, h),
    "std": lambda v, U, h: v / (ops.std(v, -1, True) + 0.3),
    "norm": lambda v, U, h: v / (ops.norm(v, -1, True) + 0.3),
    "prod": lambda v, U, h: v + ops.prod(ops.tanh(v), -1, True),
    "cumprod": lambda v, U, h: ops.cumprod(ops.tanh(v), -1),
    "sort": lambda v, U, h: ops.sort(v) - 0.5 * v,
    "argmax": lambda v, U, h: v + 0.1 * ops.astype(ops.argmax(v, -1, True), v.dtype),
    "fast weights": lambda v, U, h: ops.einsum("bi,bj,bj->bi", ops.tanh(v), h, ops.tanh(v)),
    "tiles": lambda v, U, h: ops.tile(v[:, :2], (1, 2)) + ops.repeat(v[:, 1:3], 2, -1),
    "axes": lambda v, U, h: ops.moveaxis(ops.moveaxis(v, 0, 1) * 2.0, 0, 1),
}


def cell_of(name: str) -> Cell:
    made = {**MACHINE, **BY_NUMPY}[name]

    class One(Cell):
        def state(self) -> dict[str, State]:
            return {"h": State((self.H,))}

        def params(self) -> dict[str, Param]:
            return {"W": input_matrix(self.I, self.H), "U": Param((self.H, self.H), "glorot", "recurrent")}

        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            return {"h": 0.5 * made(x @ p.W + s.h @ p.U + 0.137, p.U, s.h)}

    One.name = "one"
    return One(3, 4)


@pytest.mark.parametrize("name", [*MACHINE, *BY_NUMPY])
def test_an_op_in_a_step(executor: str, name: str) -> None:
    case = make_case(cell_of(name))
    with np.errstate(divide="ignore"):
        done = compare(executor, case, "everything", second=True)
        compare_float32(executor, case, "everything")
    if name in MACHINE:
        assert done.executor == executor, done.reason
    else:
        assert done.executor == "numpy"


def test_what_is_not_a_number_stays_so_in_machine_code(executor: str) -> None:
    """inf and NaN through rounding, remainder and logic, as NumPy has them."""
    for name in ("rounding", "remainder", "floor_divide", "logic", "erf", "exponentials"):
        cell = cell_of(name)
        params = {"W": np.eye(3, 4), "U": np.zeros((4, 4))}
        xs = np.array([[[np.inf, -np.inf, np.nan]], [[0.0, 1e300, -1e300]]])
        with np.errstate(all="ignore"):
            expected = unroll(cell, params, xs).outputs.data
        np.testing.assert_allclose(scan(cell, params, xs, executor=executor).outputs.data, expected, rtol=1e-12)
