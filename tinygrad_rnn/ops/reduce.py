"""Sums, products, extremes, moments and the softmax family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinygrad_rnn.engine import broadcast_to, primitive
from tinygrad_rnn.errors import InputError
from tinygrad_rnn.ops.arguments import checked_axes, checked_axis, shape_of
from tinygrad_rnn.ops.elementwise import astype, at_kink, equal, exp, tied, where
from tinygrad_rnn.ops.shape import concatenate, diagonal, flip, moveaxis, ravel, reshape

Axis = int | Sequence[int] | None


def _axes(x: Any, axis: Axis, name: str) -> tuple[int, ...]:
    return tuple(sorted(checked_axes(x, range(len(shape_of(x, name))) if axis is None else axis, name)))


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


def trace(x: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    """The sum along a diagonal, see `diagonal`."""
    return sum(diagonal(x, offset, axis1, axis2), -1)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The mean over `axis`; of nothing it is NaN. Of float16 the sum is made in float32."""
    return averaged(x, _count(x, _axes(x, axis, "mean")), axis, keepdims)


def averaged(x: Any, count: float, axis: Axis = None, keepdims: bool = False) -> Any:
    """The sum over `axis` divided by `count`, see `_share`; of float16 by way of float32."""
    share = _share(x, count)
    if x.dtype == np.float16:
        return astype(sum(astype(x, np.float32), axis, keepdims) * share, np.float16)
    return sum(x, axis, keepdims) * share


def _share(x: Any, count: float) -> float:
    """1 / count: infinite for a count of 0 or less, as in NumPy, but NaN of no elements."""
    return 1.0 / count if count > 0 else math.inf if x.size else math.nan


def _count(x: Any, axes: tuple[int, ...]) -> int:
    return math.prod(x.shape[a] for a in axes)


def _check_ddof(ddof: Any, what: str) -> None:
    if not isinstance(ddof, int | float | np.integer | np.floating):
        raise InputError(f"{what}: expected a number as ddof, got {ddof!r:.60}; give 0, or 1 for the unbiased estimate")


def var(x: Any, axis: Axis = None, keepdims: bool = False, *, ddof: float = 0) -> Any:
    """The variance over `axis`: the sum of squared distances from the mean divided by their number less `ddof`."""
    _check_ddof(ddof, "var")
    axes = _axes(x, axis, "var")
    if x.dtype == np.float16:
        return astype(var(astype(x, np.float32), axes, keepdims, ddof=ddof), np.float16)
    away = x - mean(x, axes, keepdims=True)
    return averaged(away * away, _count(x, axes) - ddof, axes, keepdims)


def std(x: Any, axis: Axis = None, keepdims: bool = False, *, ddof: float = 0) -> Any:
    """The standard deviation over `axis`, the root of `var`; its gradient where all elements are equal is 0."""
    _check_ddof(ddof, "std")
    axes = _axes(x, axis, "std")
    if x.dtype == np.float16:
        return astype(std(astype(x, np.float32), axes, keepdims, ddof=ddof), np.float16)
    away = x - mean(x, axes, keepdims=True)
    return norm(away, axes, keepdims) * _share(x, _count(x, axes) - ddof) ** 0.5


def prod(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The product over `axis`, 1 of nothing; its gradient is right beside zeros too.

    Composed: the halves are multiplied, until one element is left.
    """
    axes = _axes(x, axis, "prod")
    if x.dtype.kind in "iub":  # as wide as NumPy's
        x = astype(x, np.result_type(x.dtype, np.uint64 if x.dtype.kind == "u" else np.int64))
    count, kept = _count(x, axes), tuple(n for i, n in enumerate(x.shape) if i not in axes)
    if count == 0:
        return sum(x, axes, keepdims) + 1
    y = reshape(moveaxis(x, axes, range(len(axes))), (count, *kept))
    while len(y) > 1:
        half = len(y) // 2
        rest = [y[2 * half :]] if len(y) % 2 else []
        y = concatenate([y[:half] * y[half : 2 * half], *rest])
    return reshape(y, _kept(x.shape, axes) if keepdims else kept)


def cumprod(x: Any, axis: int | None = None) -> Any:
    """The running product along `axis`; of all elements in a row when None. Its gradient is right beside zeros too.

    Composed: doubling steps, in which each element is multiplied by the one 1, 2, 4, ... before it.
    """
    x, axis = (ravel(x), 0) if axis is None else (x, checked_axis(x, axis, "cumprod"))
    if x.dtype.kind in "iub":
        x = astype(x, np.result_type(x.dtype, np.uint64 if x.dtype.kind == "u" else np.int64))
    y = moveaxis(x, axis, 0)
    step = 1
    while step < len(y):
        y = concatenate([y[:step], y[step:] * y[:-step]])
        step *= 2
    return moveaxis(y, 0, axis)


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
    hit = astype(tied(equal(x, y), x), x.dtype)
    return g * (hit / sum(hit, axes, keepdims=True))


_max.vjp(_to_extremes)
_min.vjp(_to_extremes)


def argmax(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    """Where the first of the largest elements is along `axis`, in the flat array when None. It has no gradient."""
    return _place(_argmax, x, axis, keepdims, "argmax")


def argmin(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    """Where the first of the smallest elements is along `axis`, in the flat array when None. It has no gradient."""
    return _place(_argmin, x, axis, keepdims, "argmin")


def _place(op: Any, x: Any, axis: int | None, keepdims: bool, name: str) -> Any:
    shape = shape_of(x, name)
    if axis is None:
        return reshape(op(reshape(x, (1, math.prod(shape))), axis=1), (1,) * len(shape) if keepdims else ())
    axis = checked_axis(x, axis, name)
    found = op(x, axis=axis)
    return reshape(found, _kept(shape, (axis,))) if keepdims else found


@primitive(casts=True)
def _argmax(x: Any, *, axis: int) -> Any:
    return np.argmax(x, axis=axis)


@primitive(casts=True)
def _argmin(x: Any, *, axis: int) -> Any:
    return np.argmin(x, axis=axis)


def norm(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The Euclidean norm over `axis`, without overflow on the way; its gradient at 0 is 0.

    A smooth function of it has its second derivative there too: that of norm(x) ** 2 is 2.
    """
    axes = _axes(x, axis, "norm")
    return _drop(_norm(x, axes=axes), x, axes, keepdims)


@primitive
def _scale(x: Any, *, axes: tuple[int, ...]) -> Any:
    """The power of two that the largest |x| starts with: division by it rounds nothing."""
    if not x.size:
        return np.ones_like(x, shape=_kept(x.shape, axes))
    top = np.max(np.abs(x), axis=axes, keepdims=True)
    _, exponent = np.frexp(top)
    return np.ldexp(np.ones_like(top), exponent - 1)


@primitive
def _norm(x: Any, *, axes: tuple[int, ...]) -> Any:
    wide = x.astype(np.float32) if x.dtype == np.float16 else x
    scale = _scale.value(wide, axes=axes)
    short = wide / scale
    return (np.sqrt(np.sum(short * short, axis=axes, keepdims=True)) * scale).astype(x.dtype, copy=False)


def _unit(g: Any, y: Any, x: Any, *, axes: tuple[int, ...]) -> Any:
    """g times x / norm(x), of which both are scaled first: y itself may be too small or too large to divide by."""
    short = x / _scale(x, axes=axes)
    length = _norm(short, axes=axes)
    none = equal(length, 0)
    return at_kink(g * (where(none, 0.0, short) / where(none, 1.0, length)), g, y, x)


_norm.vjp(_unit)


def logsumexp(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """log(sum(exp(x))) over `axis`, without overflow."""
    axes = _axes(x, axis, "logsumexp")
    return _drop(_logsumexp(x, axes=axes), x, axes, keepdims)


@primitive
def _logsumexp(x: Any, *, axes: tuple[int, ...]) -> Any:
    if not x.size:
        return np.full_like(x, -math.inf, shape=_kept(x.shape, axes))
    top = np.max(x, axis=axes, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)  # a row of -inf alone: its sum is 0, its logarithm -inf
    with np.errstate(divide="ignore"):
        return np.log(np.sum(np.exp(x - top), axis=axes, keepdims=True)) + top


@primitive
def _softmax(x: Any, *, axes: tuple[int, ...]) -> Any:
    if not x.size:
        return x.copy()
    weights = np.exp(x - np.max(x, axis=axes, keepdims=True))
    return weights / np.sum(weights, axis=axes, keepdims=True)


_softmax.vjp(lambda g, y, _x, *, axes: y * (g - sum(g * y, axes, keepdims=True)))


# Not exp(x - y): of large x the last digits of y are lost. Equal infinities share the gradient evenly.
_logsumexp.vjp(lambda g, y, x, *, axes: g * _softmax(where(equal(y, -math.inf), 0.0, x), axes=axes))


def softmax(x: Any, axis: int = -1) -> Any:
    """exp(x) / sum(exp(x)) along `axis`."""
    return _softmax(x, axes=_axes(x, axis, "softmax"))


@primitive
def _log_softmax(x: Any, *, axes: tuple[int, ...]) -> Any:
    if not x.size:
        return x.copy()
    shifted = x - np.max(x, axis=axes, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=axes, keepdims=True))


_log_softmax.vjp(lambda g, y, _x, *, axes: g - exp(y) * sum(g, axes, keepdims=True))


def log_softmax(x: Any, axis: int = -1) -> Any:
    """log(softmax(x)) along `axis`, without overflow."""
    return _log_softmax(x, axes=_axes(x, axis, "log_softmax"))


def cumsum(x: Any, axis: int | None = None) -> Any:
    """The running sum along `axis`; of all elements in a row when None."""
    x, axis = (ravel(x), 0) if axis is None else (x, checked_axis(x, axis, "cumsum"))
    return _cumsum(x, axis=axis)


@primitive
def _cumsum(x: Any, *, axis: int) -> Any:
    if x.dtype == np.float16:  # whose sums would be rounded at every element
        return np.cumsum(x, axis=axis, dtype=np.float32).astype(x.dtype)
    return np.cumsum(x, axis=axis)


_cumsum.vjp(lambda g, _y, _x, *, axis: flip(_cumsum(flip(g, axis), axis=axis), axis))
