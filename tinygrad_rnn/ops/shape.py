"""Ops that move elements and change none of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinygrad_rnn.engine import broadcast_to as broadcast_to
from tinygrad_rnn.engine import primitive
from tinygrad_rnn.errors import InputError, ShapeError


def reshape(x: Any, shape: int | Sequence[int]) -> Any:
    """`x` in another shape with as many elements; one size may be -1. A view where the memory allows it."""
    shape = (int(shape),) if isinstance(shape, int | np.integer) else tuple(shape)
    source = tuple(x.shape)
    if -1 in shape:
        known = math.prod(n for n in shape if n != -1)
        if shape.count(-1) > 1 or known == 0 or math.prod(source) % known:
            raise ShapeError(f"reshape: expected a shape for {math.prod(source)} elements, got {shape} from {source}")
        shape = tuple(math.prod(source) // known if n == -1 else n for n in shape)
    return _reshape(x, shape=shape, source=source)


@primitive(view=True)
def _reshape(x: Any, *, shape: tuple[int, ...], source: tuple[int, ...]) -> Any:
    return x.reshape(shape)


_reshape.vjp(lambda g, _y, _x, *, shape, source: _reshape(g, shape=source, source=shape))


def transpose(x: Any, axes: Sequence[int] | None = None) -> Any:
    """`x` with its axes in the order `axes` (reversed when None); a view."""
    rank = len(x.shape)
    axes = range(rank)[::-1] if axes is None else axes
    order = tuple([checked_axis(x, axis, "transpose") for axis in axes])
    if sorted(order) != list(range(rank)):
        raise ShapeError(f"transpose: expected each of {rank} axes once, got {tuple(axes)}")
    return _transpose(x, axes=order)


@primitive(view=True)
def _transpose(x: Any, *, axes: tuple[int, ...]) -> Any:
    return x.transpose(axes)


_transpose.vjp(lambda g, _y, _x, *, axes: _transpose(g, axes=tuple(sorted(range(len(axes)), key=axes.__getitem__))))


def swapaxes(x: Any, a: int, b: int) -> Any:
    """`x` with two axes exchanged; a view."""
    order = list(range(len(x.shape)))
    a, b = checked_axis(x, a, "swapaxes"), checked_axis(x, b, "swapaxes")
    order[a], order[b] = order[b], order[a]
    return _transpose(x, axes=tuple(order))


def expand_dims(x: Any, axis: int) -> Any:
    """`x` with a new axis of size 1 at `axis` (as in NumPy, counted in the result)."""
    rank = len(x.shape) + 1
    if not -rank <= axis < rank:
        raise ShapeError(f"expand_dims: expected an axis in [-{rank}, {rank}), got {axis}")
    axis %= rank
    return reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))


def squeeze(x: Any, axis: int | None = None) -> Any:
    """`x` without its axes of size 1, or without the one named."""
    if axis is None:
        return reshape(x, tuple(n for n in x.shape if n != 1))
    axis = checked_axis(x, axis, "squeeze")
    if x.shape[axis] != 1:
        raise ShapeError(f"squeeze: expected size 1 at axis {axis}, got shape {tuple(x.shape)}")
    return reshape(x, (*x.shape[:axis], *x.shape[axis + 1 :]))


def concatenate(xs: Sequence[Any], axis: int = 0) -> Any:
    """The arrays one after the other along `axis`."""
    _some(xs, "concatenate")
    axis = checked_axis(xs[0], axis, "concatenate")
    return _concatenate(*xs, axis=axis, sizes=tuple(x.shape[axis] for x in xs))


@primitive
def _concatenate(*xs: Any, axis: int, sizes: tuple[int, ...]) -> Any:
    return np.concatenate(xs, axis=axis)


_concatenate.vjp_each(
    lambda i, g, *, axis, sizes: g[(slice(None),) * axis + (slice(sum(sizes[:i]), sum(sizes[: i + 1])),)]
)


def stack(xs: Sequence[Any], axis: int = 0) -> Any:
    """The arrays, all of one shape, along a new axis."""
    _some(xs, "stack")
    rank = len(xs[0].shape) + 1
    if not -rank <= axis < rank:
        raise ShapeError(f"stack: expected an axis in [-{rank}, {rank}), got {axis}")
    return _stack(*xs, axis=axis % rank)


@primitive
def _stack(*xs: Any, axis: int) -> Any:
    return np.stack(xs, axis=axis)


_stack.vjp_each(lambda i, g, *, axis: g[(slice(None),) * axis + (i,)])


def split(x: Any, sizes: int | Sequence[int], axis: int = 0) -> list[Any]:
    """`x` cut along `axis`: into `sizes` equal parts, or into parts of the given sizes."""
    axis = checked_axis(x, axis, "split")
    total = x.shape[axis]
    if isinstance(sizes, int | np.integer):
        sizes = int(sizes)
        if sizes < 1 or total % sizes:
            raise ShapeError(f"split: expected a divisor of {total}, got {sizes} parts of shape {tuple(x.shape)}")
        sizes = (total // sizes,) * sizes
    if sum(sizes) != total or any(n < 0 for n in sizes):
        raise ShapeError(f"split: expected sizes >= 0 that add up to {total}, got {tuple(sizes)}")
    ends = itertools.accumulate(sizes, initial=0)
    return [x[(slice(None),) * axis + (slice(a, b),)] for a, b in itertools.pairwise(ends)]


def flip(x: Any, axis: int) -> Any:
    """`x` in reverse order along `axis`."""
    return _flip(x, axis=checked_axis(x, axis, "flip"))


@primitive(view=True)
def _flip(x: Any, *, axis: int) -> Any:
    return np.flip(x, axis=axis)


_flip.vjp(lambda g, _y, _x, *, axis: _flip(g, axis=axis))


def pad(x: Any, widths: Sequence[tuple[int, int]]) -> Any:
    """`x` with zeros around it: (before, after) for each axis."""
    if len(widths) != len(x.shape) or any(n < 0 for pair in widths for n in pair):
        raise ShapeError(f"pad: expected {len(x.shape)} pairs of sizes >= 0, got {list(widths)}")
    return _pad(x, widths=tuple((int(a), int(b)) for a, b in widths), source=tuple(x.shape))


@primitive
def _pad(x: Any, *, widths: tuple[tuple[int, int], ...], source: tuple[int, ...]) -> Any:
    return np.pad(x, widths)


_pad.vjp(
    lambda g, _y, _x, *, widths, source: g[tuple(slice(a, a + n) for (a, _), n in zip(widths, source, strict=True))]
)


def checked_axis(x: Any, axis: Any, name: str) -> int:
    """`axis` counted from the front. Raises ShapeError, for the op `name`, unless it is one axis of `x`."""
    rank = len(x.shape)
    if not isinstance(axis, int | np.integer) or not -rank <= axis < rank:
        raise ShapeError(f"{name}: expected an axis in [-{rank}, {rank}) for shape {tuple(x.shape)}, got {axis}")
    return int(axis) % rank


def _some(xs: Any, name: str) -> None:
    if not isinstance(xs, Sequence) or not xs:
        got = "none" if isinstance(xs, Sequence) else type(xs).__name__
        raise InputError(f"{name}: expected a list or tuple of at least one array, got {got}")
