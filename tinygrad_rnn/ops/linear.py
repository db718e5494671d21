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


_WRAPPED = "a wrapped matrix W: expected a @ W, or W.T and + - * / with numbers and arrays of its shape before that"


class Factor:
    """Final. A matrix that computes its products itself: ``a @ factor`` is ``product(a, matrix)``.

    A wrapper puts it in the place of a cell's matrix, and so changes what the cell's products are. What a cell makes of
    the matrix, as W - W.T, is one again, with the same product. Raises TypeError for any other use.
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

    def __getattr__(self, name: str) -> Any:
        raise TypeError(f"{_WRAPPED}, got its .{name}")

    @property
    def T(self) -> Factor:
        return Factor(self.matrix.T, self.product)

    def __neg__(self) -> Factor:
        return Factor(-self.matrix, self.product)

    def __add__(self, other: Any) -> Factor:
        return Factor(self.matrix + self._side(other), self.product)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Factor:
        return Factor(self.matrix - self._side(other), self.product)

    def __rsub__(self, other: Any) -> Factor:
        return Factor(self._side(other) - self.matrix, self.product)

    def __mul__(self, other: Any) -> Factor:
        return Factor(self.matrix * self._side(other), self.product)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Factor:
        return Factor(self.matrix / self._side(other), self.product)

    def __matmul__(self, other: Any) -> Any:
        raise TypeError(f"{_WRAPPED}, got it on the left of @")

    def __getitem__(self, index: Any) -> Any:
        raise TypeError(f"{_WRAPPED}, got a part of it")

    def _side(self, other: Any) -> Any:
        """The other side of an operator: a number, an array of this shape, or a factor with the same product."""
        matrix = other
        if isinstance(other, Factor):
            if other.product is not self.product:
                raise TypeError(f"{_WRAPPED}, got two of them with a product each")
            matrix = other.matrix
        shape = tuple(getattr(matrix, "shape", ()))
        if shape not in ((), self.shape):
            raise TypeError(f"{_WRAPPED}, got it of shape {self.shape} beside {shape}")
        return matrix


def matmul(a: Any, b: Any) -> Any:
    """The matrix product of a (..., n, k) and b (..., k, m), batched over the leading axes; vectors as in NumPy.

    Raises ShapeError when the inner sizes differ or one side is a scalar.
    """
    if type(b) is Factor:
        return b.product(a, b.matrix)
    rank_a, rank_b = len(a.shape), len(b.shape)
    if rank_a == 2 and rank_b == 2 and a.shape[1] == b.shape[0]:
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
