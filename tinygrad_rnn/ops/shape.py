"""Ops that move elements and change none of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinygrad_rnn import engine
from tinygrad_rnn.engine import primitive
from tinygrad_rnn.errors import InputError, ShapeError
from tinygrad_rnn.ops.arguments import Axes, checked_axes, checked_axis, integer, integers, shape_of, told
from tinygrad_rnn.ops.index import getitem, scatter


def reshape(x: Any, shape: int | Sequence[int]) -> Any:
    """`x` in another shape with as many elements; one size may be -1. A view where the memory allows it."""
    source = tuple(shape_of(x, "reshape"))
    if type(shape) is not tuple:
        shape = integers(shape, "reshape", "a shape")
    if -1 in shape:
        shape = integers(shape, "reshape", "a shape")
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
    rank = len(shape_of(x, "transpose"))
    order = checked_axes(x, range(rank)[::-1] if axes is None else axes, "transpose")
    if len(order) != rank:
        raise ShapeError(f"transpose: expected each of {rank} axes once, got {told(axes)}")
    return _transpose(x, axes=order)


@primitive(view=True)
def _transpose(x: Any, *, axes: tuple[int, ...]) -> Any:
    return x.transpose(axes)


_transpose.vjp(lambda g, _y, _x, *, axes: _transpose(g, axes=tuple(sorted(range(len(axes)), key=axes.__getitem__))))


def swapaxes(x: Any, a: int, b: int) -> Any:
    """`x` with two axes exchanged; a view."""
    a, b = checked_axis(x, a, "swapaxes"), checked_axis(x, b, "swapaxes")
    order = list(range(len(x.shape)))
    order[a], order[b] = order[b], order[a]
    return _transpose(x, axes=tuple(order))


def moveaxis(x: Any, source: Axes, destination: Axes) -> Any:
    """`x` with the axes `source` at the places `destination`, the others in their order; a view."""
    taken = checked_axes(x, source, "moveaxis")
    places = checked_axes(x, destination, "moveaxis")
    if len(taken) != len(places):
        raise ShapeError(f"moveaxis: expected as many places as axes, got {told(source)} and {told(destination)}")
    order = [axis for axis in range(len(x.shape)) if axis not in taken]
    for place, axis in sorted(zip(places, taken, strict=True)):
        order.insert(place, axis)
    return x if order == list(range(len(order))) else _transpose(x, axes=tuple(order))


def ravel(x: Any) -> Any:
    """All elements of `x` in a row, the last axis first."""
    return reshape(x, (-1,) if math.prod(shape_of(x, "ravel")) else (0,))


def expand_dims(x: Any, axis: Axes) -> Any:
    """`x` with new axes of size 1 at `axis`, one or several (as in NumPy, counted in the result)."""
    shape = shape_of(x, "expand_dims")
    rank = len(shape) + (len(axis) if isinstance(axis, Sequence) else 1)
    axes = checked_axes(x, axis, "expand_dims", rank)
    old = iter(shape)
    return reshape(x, tuple([1 if i in axes else next(old) for i in range(rank)]))


def squeeze(x: Any, axis: Axes | None = None) -> Any:
    """`x` without its axes of size 1, or without those named."""
    shape = shape_of(x, "squeeze")
    if axis is None:
        return reshape(x, tuple(n for n in shape if n != 1))
    axes = checked_axes(x, axis, "squeeze")
    if any(shape[a] != 1 for a in axes):
        raise ShapeError(f"squeeze: expected size 1 at axis {told(axis)}, got shape {tuple(shape)}")
    return reshape(x, tuple(n for i, n in enumerate(shape) if i not in axes))


def concatenate(xs: Sequence[Any], axis: int | None = 0) -> Any:
    """The arrays one after the other along `axis`; all of their elements in a row when None."""
    shapes = _some(xs, "concatenate")
    if axis is None:
        xs, axis = [ravel(x) for x in xs], 0
        shapes = [x.shape for x in xs]
    axis = checked_axis(xs[0], axis, "concatenate")
    if any(len(shape) != len(shapes[0]) for shape in shapes):
        raise ShapeError(f"concatenate: expected arrays of as many axes each, got shapes {_listed(shapes)}")
    return _concatenate(*xs, axis=axis, sizes=tuple(shape[axis] for shape in shapes))


@primitive
def _concatenate(*xs: Any, axis: int, sizes: tuple[int, ...]) -> Any:
    return np.concatenate(xs, axis=axis)


_concatenate.vjp_each(
    lambda i, g, *, axis, sizes: g[(slice(None),) * axis + (slice(sum(sizes[:i]), sum(sizes[: i + 1])),)]
)


def stack(xs: Sequence[Any], axis: int = 0) -> Any:
    """The arrays, all of one shape, along a new axis."""
    shapes = _some(xs, "stack")
    if any(shape != shapes[0] for shape in shapes):
        raise ShapeError(f"stack: expected arrays of one shape, got shapes {_listed(shapes)}")
    axes = checked_axes(xs[0], axis, "stack", len(shapes[0]) + 1)
    if len(axes) != 1:
        raise ShapeError(f"stack: expected one axis, got {told(axis)}")
    return _stack(*xs, axis=axes[0])


@primitive
def _stack(*xs: Any, axis: int) -> Any:
    return np.stack(xs, axis=axis)


_stack.vjp_each(lambda i, g, *, axis: g[(slice(None),) * axis + (i,)])


def split(x: Any, sizes: int | Sequence[int], axis: int = 0) -> list[Any]:
    """`x` cut along `axis`: into `sizes` equal parts, or into parts of the given sizes."""
    axis = checked_axis(x, axis, "split")
    total = x.shape[axis]
    counts = integers(sizes, "split", "sizes")
    if not isinstance(sizes, Sequence | np.ndarray):
        [sizes] = counts
        if sizes < 1 or total % sizes:
            raise ShapeError(f"split: expected a divisor of {total}, got {sizes} parts of shape {tuple(x.shape)}")
        counts = (total // sizes,) * sizes
    if sum(counts) != total or any(n < 0 for n in counts):
        raise ShapeError(f"split: expected sizes >= 0 that add up to {total}, got {counts}")
    ends = itertools.accumulate(counts, initial=0)
    return [x[(slice(None),) * axis + (slice(a, b),)] for a, b in itertools.pairwise(ends)]


def flip(x: Any, axis: Axes | None = None) -> Any:
    """`x` in reverse order along `axis`, one or several; along all when None."""
    for a in checked_axes(x, range(len(shape_of(x, "flip"))) if axis is None else axis, "flip"):
        x = _flip(x, axis=a)
    return x


@primitive(view=True)
def _flip(x: Any, *, axis: int) -> Any:
    return np.flip(x, axis=axis)


_flip.vjp(lambda g, _y, _x, *, axis: _flip(g, axis=axis))


def pad(x: Any, widths: Any) -> Any:
    """`x` with zeros around it: (before, after) for each axis, one such pair for all, or one number for all sides."""
    rank = len(shape_of(x, "pad"))
    widths = widths.tolist() if isinstance(widths, np.ndarray) else widths
    given = widths if isinstance(widths, Sequence) and not isinstance(widths, str) else (widths,)
    rows = [integers(part, "pad", "a size") for part in given]
    if rank == 1 and len(rows) == 2 and all(len(row) == 1 for row in rows):
        rows = [(*rows[0], *rows[1])]
    elif len(rows) == 2 and all(not isinstance(part, Sequence) for part in given):  # one pair for all axes
        rows = [(*rows[0], *rows[1])] * rank
    pairs = [row * 2 if len(row) == 1 else row for row in (rows * rank if len(rows) == 1 else rows)]
    if len(pairs) != rank or any(len(pair) != 2 or min(pair) < 0 for pair in pairs):
        raise ShapeError(f"pad: expected {rank} pairs of sizes >= 0, got {told(widths)}")
    return _pad(x, widths=tuple((a, b) for a, b in pairs), source=tuple(x.shape))


@primitive
def _pad(x: Any, *, widths: tuple[tuple[int, int], ...], source: tuple[int, ...]) -> Any:
    return np.pad(x, widths)


_pad.vjp(
    lambda g, _y, _x, *, widths, source: g[tuple(slice(a, a + n) for (a, _), n in zip(widths, source, strict=True))]
)


def roll(x: Any, shift: int | Sequence[int], axis: Axes | None = None) -> Any:
    """`x` moved by `shift` along `axis`, what falls out at one end entering at the other; flat when None."""
    shape = shape_of(x, "roll")
    shifts = integers(shift, "roll", "a shift")
    if axis is None:
        return reshape(roll(ravel(x), int(np.sum(shifts)), 0), shape)
    axes = integers(axis, "roll", "an axis")
    shifts = shifts * len(axes) if len(shifts) == 1 else shifts
    axes = axes * len(shifts) if len(axes) == 1 else axes
    if len(shifts) != len(axes):
        raise ShapeError(f"roll: expected as many shifts as axes, got {told(shift)} and {told(axis)}")
    for by, each in zip(shifts, axes, strict=True):
        a = checked_axis(x, each, "roll")
        if shape[a] and by % shape[a]:
            before = (slice(None),) * a
            cut = shape[a] - by % shape[a]
            x = concatenate([x[(*before, slice(cut, None))], x[(*before, slice(cut))]], a)
    return x


def broadcast_to(x: Any, shape: int | Sequence[int]) -> Any:
    """`x` repeated to `shape` by NumPy's broadcasting rules; a view."""
    shape_of(x, "broadcast_to")
    return engine.broadcast_to(x, integers(shape, "broadcast_to", "a shape"))


def repeat(x: Any, repeats: int | Sequence[int], axis: int | None = None) -> Any:
    """Each element `repeats` times (a number, or one for each element), along `axis`; in a row when None."""
    x, axis = (ravel(x), 0) if axis is None else (x, checked_axis(x, axis, "repeat"))
    counts, size = integers(repeats, "repeat", "repeats"), x.shape[axis]
    if any(n < 0 for n in counts) or len(counts) not in (1, size):
        raise ShapeError(f"repeat: expected one or {size} counts >= 0 for shape {tuple(x.shape)}, got {told(repeats)}")
    if len(counts) == 1:
        shape = (*x.shape[: axis + 1], counts[0], *x.shape[axis + 1 :])
        copies = broadcast_to(expand_dims(x, axis + 1), shape)
        return reshape(copies, (*x.shape[:axis], size * counts[0], *x.shape[axis + 1 :]))
    return getitem(x, (*(slice(None),) * axis, np.repeat(np.arange(size), counts).tolist()))


def tile(x: Any, reps: int | Sequence[int]) -> Any:
    """`x` laid side by side, `reps` times along each of the last axes, or along new ones in front."""
    counts = integers(reps, "tile", "counts")
    rank = max(len(shape_of(x, "tile")), len(counts))
    if any(n < 0 for n in counts):
        raise ShapeError(f"tile: expected counts >= 0, got {told(reps)}")
    shape = (1,) * (rank - len(x.shape)) + tuple(x.shape)
    counts = (1,) * (rank - len(counts)) + counts
    apart = reshape(x, tuple(itertools.chain.from_iterable((1, n) for n in shape)))
    copies = broadcast_to(apart, tuple(itertools.chain.from_iterable(zip(counts, shape, strict=True))))
    return reshape(copies, tuple(k * n for k, n in zip(counts, shape, strict=True)))


def diagonal(x: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    """The elements of `x` whose place along `axis2` is that along `axis1` plus `offset`, as the last axis."""
    a, b = checked_axes(x, (axis1, axis2), "diagonal")
    rows, columns = _diagonal(x.shape[a], x.shape[b], offset, "diagonal")
    return getitem(moveaxis(x, (a, b), (-2, -1)), (..., rows, columns))


def _diagonal(n: int, m: int, offset: int, name: str) -> tuple[list[int], list[int]]:
    offset = integer(offset, name, "an offset")
    rows = range(max(0, -offset), min(n, m - offset))
    return list(rows), [row + offset for row in rows]


def diag(x: Any, k: int = 0) -> Any:
    """The matrix with the vector `x` on its k-th diagonal, or that diagonal of a matrix."""
    shape = shape_of(x, "diag")
    if len(shape) == 2:
        return diagonal(x, k)
    if len(shape) != 1:
        raise ShapeError(f"diag: expected a vector or a matrix, got shape {tuple(shape)}")
    size = shape[0] + abs(integer(k, "diag", "a diagonal"))
    return scatter(x, _diagonal(size, size, k, "diag"), (size, size))


def tril(x: Any, k: int = 0) -> Any:
    """`x` with zeros above the k-th diagonal of its last two axes."""
    return _triangle(x, k=_checked_k(x, k, "tril"), lower=True)


def triu(x: Any, k: int = 0) -> Any:
    """`x` with zeros below the k-th diagonal of its last two axes."""
    return _triangle(x, k=_checked_k(x, k, "triu"), lower=False)


def _checked_k(x: Any, k: int, name: str) -> int:
    if len(shape_of(x, name)) < 2:
        raise ShapeError(f"{name}: expected a matrix, got shape {tuple(x.shape)}")
    return integer(k, name, "a diagonal")


@primitive
def _triangle(x: Any, *, k: int, lower: bool) -> Any:
    return np.tril(x, k) if lower else np.triu(x, k)


_triangle.vjp(lambda g, _y, _x, *, k, lower: _triangle(g, k=k, lower=lower))


def _some(xs: Any, name: str) -> list[tuple[int, ...]]:
    """The shapes of `xs`. Raises InputError unless it is a list or tuple of arrays, DtypeError for one that is none."""
    if not isinstance(xs, Sequence) or isinstance(xs, str) or not xs:
        got = "none" if isinstance(xs, Sequence) and not xs else type(xs).__name__
        raise InputError(f"{name}: expected a list or tuple of at least one array, got {got}")
    return [shape_of(x, name) for x in xs]


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)
