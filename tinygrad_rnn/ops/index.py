"""Reading parts of an array, and the scatter that is its transpose."""

from __future__ import annotations

import math
from types import EllipsisType
from typing import Any

import numpy as np

from tinygrad_rnn import backend
from tinygrad_rnn.engine import Op, Scatter, Variable, primitive
from tinygrad_rnn.errors import DtypeError, ShapeError
from tinygrad_rnn.ops.arguments import checked_axis, integers, shape_of, told

BASIC = (int, slice, EllipsisType, np.integer)  # with None, what NumPy answers with a view; but True is a mask


def getitem(x: Any, index: Any) -> Any:
    """``x[index]``: integers, slices, None, Ellipsis, boolean masks and integer arrays, as in NumPy.

    Its gradient is a `Scatter`: added in place at `index`, so that T slices of a sequence cost T, not T squared.
    """
    if type(index) is int:  # a step of a sequence, by the shortest way
        return _view(x, index=index, shape=tuple(shape_of(x, "getitem")))
    shape_of(x, "getitem")
    index = _plain(index, x, "getitem")
    return (_view if _is_basic(index) else _getitem)(x, index=index, shape=tuple(x.shape))


def frozen(ids: Variable) -> Any:
    """The values of `ids` for the tape to keep: a copy where they can be written in place, which no guard would see."""
    return ids.data if ids.version is None else ids.data.copy()


def _is_basic(index: Any) -> bool:
    """Whether NumPy answers `index` with a view: integers, slices, None and Ellipsis alone."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or (isinstance(part, BASIC) and not isinstance(part, bool)) for part in parts)


def _plain(index: Any, x: Any, name: str) -> Any:
    """`index` without tensors and lists: arrays, all where `x` is. A tuple inside the tuple is as good as a list.

    Integers become the platform's index type here, once: in uint8, say, row -1 of 256 has no number.
    """
    if isinstance(index, tuple):
        return tuple([_plain(list(part) if isinstance(part, tuple) else part, x, name) for part in index])
    if isinstance(index, Variable):
        index = frozen(index)
    elif isinstance(index, list):
        try:
            array = np.asarray(index, dtype=None if index else np.intp)
        except (ValueError, TypeError) as error:
            raise ShapeError(f"{name}: expected lists of equal lengths as index, got {told(index)}") from error
        index = backend.from_host(array, backend.namespace(x.data if isinstance(x, Variable) else x))
    if backend.is_array(index):
        backend.check_device(name, x.data if isinstance(x, Variable) else x, index)
        if index.dtype.kind in "iu":
            index = index.astype(np.intp, copy=False)
    return index


@primitive
def _getitem(x: Any, *, index: Any, shape: tuple[int, ...]) -> Any:
    return x[index]


@primitive
def _scatter(values: Any, *, index: Any, shape: tuple[int, ...]) -> Any:
    out = np.zeros_like(values, shape=shape)
    backend.scatter_add(out, index, values)
    return out


def _part(x: Any, *, index: Any, shape: tuple[int, ...]) -> Any:
    y = x[index]
    if isinstance(y, np.generic):  # a scalar would be a copy; with an Ellipsis NumPy gives a view here too
        y = x[(*index, ...)] if isinstance(index, tuple) else x[index, ...]
    return y


_view = Op(_part, view=True)
_view.__name__ = "getitem"


def _scattered(g: Any, _y: Any, _x: Any, *, index: Any, shape: tuple[int, ...]) -> Scatter:
    return Scatter(g, index, lambda: _scatter(g, index=index, shape=shape))


_getitem.vjp(_scattered)
_view.vjp(_scattered)
_scatter.vjp(lambda g, _y, _values, *, index, shape: _getitem(g, index=index, shape=shape))


def scatter(values: Any, index: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of `shape` with `values` added at `index`; what `index` names several times adds up."""
    shape_of(values, "scatter")
    return _scatter(values, index=_plain(index, values, "scatter"), shape=integers(shape, "scatter", "a shape"))


def sort(x: Any, axis: int | None = -1) -> Any:
    """`x` in ascending order along `axis`, NaN last; flat when None. Each gradient goes where its element came from."""
    shape = shape_of(x, "sort")
    if axis is None:
        x, axis = x.reshape(math.prod(shape)), 0
    return _sort(x, axis=checked_axis(x, axis, "sort"))


def argsort(x: Any, axis: int | None = -1) -> Any:
    """The places of the elements of `x` in ascending order along `axis`, of equal ones as they come. No gradient."""
    shape = shape_of(x, "argsort")
    if axis is None:
        x, axis = x.reshape(math.prod(shape)), 0
    return _argsort(x, axis=checked_axis(x, axis, "argsort"))


@primitive
def _sort(x: Any, *, axis: int) -> Any:
    return np.sort(x, axis=axis)


@primitive(casts=True)
def _argsort(x: Any, *, axis: int) -> Any:
    return np.argsort(x, axis=axis, kind="stable")


@primitive
def _permuted(x: Any, order: Any, *, axis: int) -> Any:
    return np.take_along_axis(x, order, axis=axis)


_sort.vjp(lambda g, _y, x, *, axis: _permuted(g, _argsort(_argsort(x, axis=axis), axis=axis), axis=axis))
_permuted.vjp(lambda g, _y, _x, order, *, axis: _permuted(g, _argsort(order, axis=axis), axis=axis), None)


def embedding(table: Any, ids: Any) -> Any:
    """Rows of `table` (V, H) by integer `ids` of any shape: result (*ids.shape, H).

    Raises DtypeError for ids that are not integers, ShapeError for a table that is no matrix or an id outside it.
    """
    ids = checked_ids(table, ids)
    return _getitem(table, index=ids, shape=tuple(table.shape))


def checked_ids(table: Any, ids: Any) -> Any:
    """`ids` as an array of integers that name rows of `table`. Raises as `embedding` does."""
    if len(shape_of(table, "embedding")) != 2:
        raise ShapeError(f"embedding: expected a table (V, H), got shape {tuple(table.shape)}")
    ids = _plain(ids, table, "embedding")
    if not hasattr(ids, "dtype") or ids.dtype.kind not in "iu":
        raise DtypeError(f"embedding: expected integer ids, got {getattr(ids, 'dtype', told(ids))}")
    if ids.size and isinstance(ids, np.ndarray) and not (0 <= int(ids.min()) and int(ids.max()) < table.shape[0]):
        raise ShapeError(f"embedding: expected ids in [0, {table.shape[0]}), got {int(ids.min())} to {int(ids.max())}")
    return ids
