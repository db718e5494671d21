"""Sums, extremes and the softmax family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinygrad_rnn.engine import broadcast_to, primitive
from tinygrad_rnn.errors import ShapeError
from tinygrad_rnn.ops.elementwise import astype, equal, exp, where
from tinygrad_rnn.ops.shape import checked_axis, flip, reshape

Axis = int | Sequence[int] | None


def _axes(x: Any, axis: Axis, name: str) -> tuple[int, ...]:
    rank = len(x.shape)
    axes = range(rank) if axis is None else (axis,) if isinstance(axis, int | np.integer) else axis
    if any(not -rank <= a < rank for a in axes):
        raise ShapeError(f"{name}: expected axes in [-{rank}, {rank}) for shape {tuple(x.shape)}, got {axis}")
    return tuple(sorted({a % rank for a in axes}))


def _kept(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` with size 1 at the reduced axes."""
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def _drop(y: Any, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
    return y if keepdims else reshape(y, tuple(n for i, n in enumerate(x.shape) if i not in axes))


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The sum over `axis` (all axes when None)."""
    axes = _axes(x, axis, "sum")
    return _sum(x, axes=axes, keepdims=keepdims, source=tuple(x.shape))


@primitive
def _sum(x: Any, *, axes: tuple[int, ...], keepdims: bool, source: tuple[int, ...]) -> Any:
    return np.sum(x, axis=axes, keepdims=keepdims)


_sum.vjp(lambda g, _y, _x, *, axes, keepdims, source: broadcast_to(reshape(g, _kept(source, axes)), source))


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The mean over `axis`. Raises ShapeError for an empty one."""
    count = math.prod(x.shape[a] for a in _axes(x, axis, "mean"))
    if count == 0:
        raise ShapeError(f"mean: expected at least one element along axis {axis}, got shape {tuple(x.shape)}")
    return sum(x, axis, keepdims) * (1.0 / count)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The largest element over `axis`; equal largest ones share the gradient evenly."""
    axes = _axes(x, axis, "max")
    return _drop(_max(x, axes=axes), x, axes, keepdims)


@primitive
def _max(x: Any, *, axes: tuple[int, ...]) -> Any:
    return np.max(x, axis=axes, keepdims=True)


def min(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The smallest element over `axis`; equal smallest ones share the gradient evenly."""
    axes = _axes(x, axis, "min")
    return _drop(_min(x, axes=axes), x, axes, keepdims)


@primitive
def _min(x: Any, *, axes: tuple[int, ...]) -> Any:
    return np.min(x, axis=axes, keepdims=True)


def _to_extremes(g: Any, y: Any, x: Any, *, axes: tuple[int, ...]) -> Any:
    hit = astype(equal(x, y), x.dtype)
    return g * (hit / sum(hit, axes, keepdims=True))


_max.vjp(_to_extremes)
_min.vjp(_to_extremes)


def norm(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The Euclidean norm over `axis`; its gradient at 0 is 0."""
    axes = _axes(x, axis, "norm")
    return _drop(_norm(x, axes=axes), x, axes, keepdims)


@primitive
def _norm(x: Any, *, axes: tuple[int, ...]) -> Any:
    return np.sqrt(np.sum(x * x, axis=axes, keepdims=True))


_norm.vjp(lambda g, y, x, *, axes: g * (x / where(equal(y, 0), 1.0, y)))


def logsumexp(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """log(sum(exp(x))) over `axis`, without overflow."""
    axes = _axes(x, axis, "logsumexp")
    return _drop(_logsumexp(x, axes=axes), x, axes, keepdims)


@primitive
def _logsumexp(x: Any, *, axes: tuple[int, ...]) -> Any:
    top = np.max(x, axis=axes, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)  # a row of -inf alone: its sum is 0, its logarithm -inf
    return np.log(np.sum(np.exp(x - top), axis=axes, keepdims=True)) + top


_logsumexp.vjp(lambda g, y, x, *, axes: g * exp(x - y))


@primitive
def _softmax(x: Any, *, axes: tuple[int, ...]) -> Any:
    weights = np.exp(x - np.max(x, axis=axes, keepdims=True))
    return weights / np.sum(weights, axis=axes, keepdims=True)


_softmax.vjp(lambda g, y, _x, *, axes: y * (g - sum(g * y, axes, keepdims=True)))


def softmax(x: Any, axis: int = -1) -> Any:
    """exp(x) / sum(exp(x)) along `axis`."""
    return _softmax(x, axes=_axes(x, axis, "softmax"))


@primitive
def _log_softmax(x: Any, *, axes: tuple[int, ...]) -> Any:
    shifted = x - np.max(x, axis=axes, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=axes, keepdims=True))


_log_softmax.vjp(lambda g, y, _x, *, axes: g - exp(y) * sum(g, axes, keepdims=True))


def log_softmax(x: Any, axis: int = -1) -> Any:
    """log(softmax(x)) along `axis`, without overflow."""
    return _log_softmax(x, axes=_axes(x, axis, "log_softmax"))


def cumsum(x: Any, axis: int = 0) -> Any:
    """The running sum along `axis`."""
    return _cumsum(x, axis=checked_axis(x, axis, "cumsum"))


@primitive
def _cumsum(x: Any, *, axis: int) -> Any:
    return np.cumsum(x, axis=axis)


_cumsum.vjp(lambda g, _y, _x, *, axis: flip(_cumsum(flip(g, axis), axis=axis), axis))
