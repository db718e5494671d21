"""Matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_rnn.engine import primitive
from tinygrad_rnn.errors import ShapeError
from tinygrad_rnn.ops.shape import expand_dims, reshape, squeeze, swapaxes


@primitive(broadcasts=True)
def _matmul(a: Any, b: Any) -> Any:
    return np.matmul(a, b)


_matmul.vjp(
    lambda g, _y, _a, b: _matmul(g, swapaxes(b, -1, -2)),
    lambda g, _y, a, _b: _matmul(swapaxes(a, -1, -2), g),
)


class Factor:
    """Final. A matrix that computes its products itself: ``a @ factor`` is ``product(a, matrix)``.

    A wrapper puts it in the place of a cell's matrix, and so changes what the cell's products are.
    """

    __slots__ = ("matrix", "product")
    __array_ufunc__ = None  # a NumPy array on the left leaves the product to us

    def __init__(self, matrix: Any, product: Callable[[Any, Any], Any]) -> None:
        self.matrix = matrix
        self.product = product

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.matrix.shape)

    def __rmatmul__(self, a: Any) -> Any:
        return self.product(a, self.matrix)


def matmul(a: Any, b: Any) -> Any:
    """The matrix product of a (..., n, k) and b (..., k, m), batched over the leading axes; vectors as in NumPy.

    Raises ShapeError when the inner sizes differ or one side is a scalar.
    """
    if type(b) is Factor:
        return b.product(a, b.matrix)
    rank_a, rank_b = len(a.shape), len(b.shape)
    if rank_a == 2 and rank_b == 2:
        return _matmul(a, b)
    if rank_a == 0 or rank_b == 0:
        raise ShapeError(
            f"matmul: expected vectors or matrices, got {tuple(a.shape)} and {tuple(b.shape)}; multiply a scalar with *"
        )
    if a.shape[-1] != b.shape[0 if rank_b == 1 else -2]:
        raise ShapeError(f"matmul: expected equal inner sizes, got {tuple(a.shape)} and {tuple(b.shape)}")
    if rank_b == 1:
        return squeeze(matmul(a, expand_dims(b, -1)), -1)
    if rank_a == 1:
        return squeeze(matmul(expand_dims(a, 0), b), -2)
    if rank_b == 2:
        # one flat product: with a batch of small ones, b's gradient would be a stack of matrices to sum up
        flat = _matmul(reshape(a, (math.prod(a.shape[:-1]), a.shape[-1])), b)
        return reshape(flat, (*a.shape[:-1], b.shape[-1]))
    return _matmul(a, b)


def outer(a: Any, b: Any) -> Any:
    """The matrix a_i b_j of two vectors."""
    if len(a.shape) != 1 or len(b.shape) != 1:
        raise ShapeError(f"outer: expected two vectors, got {tuple(a.shape)} and {tuple(b.shape)}")
    return expand_dims(a, 1) * expand_dims(b, 0)
