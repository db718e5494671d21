"""What ops ask of their arguments: arrays, axes and whole numbers, and the one line that says what was wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinygrad_rnn.errors import DtypeError, InputError, ShapeError

Axes = int | Sequence[int]


def shape_of(x: Any, name: str) -> tuple[int, ...]:
    """The shape of `x`. Raises DtypeError, for the op `name`, unless it is an array or a tensor."""
    shape = getattr(x, "shape", None)
    if not isinstance(shape, tuple):
        raise DtypeError(f"{name}: expected an array or a tensor, got {type(x).__name__}; make one with Tensor(...)")
    return shape


def told(value: Any) -> str:
    """`value` for a message: on one line, and not longer than that."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def generator(value: Any, name: str) -> np.random.Generator:
    """`value`. Raises InputError, for the function `name`, unless it is a generator of random numbers."""
    if isinstance(value, np.random.Generator):
        return value
    seed = value if isinstance(value, int) else 0
    raise InputError(
        f"{name}: expected a numpy.random.Generator, got {type(value).__name__}; give np.random.default_rng({seed})"
    )


def checked_dtype(dtype: Any, name: str) -> Any:
    """`dtype` as NumPy's. Raises DtypeError, for `name`, unless it is one of real numbers or booleans."""
    try:
        dtype = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise DtypeError(f"{name}: expected a dtype, as 'float32', got {told(dtype)}") from error
    if dtype.kind not in "fiub":
        raise DtypeError(f"{name}: expected a dtype of real numbers or booleans, got {dtype}")
    return dtype


def integer(value: Any, name: str, what: str) -> int:
    """`value` as a Python integer. Raises InputError, for `what` of the op `name`, unless it is a whole number."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputError(f"{name}: expected {what}, a whole number, got {told(value)}")
    return int(value)


def integers(values: Any, name: str, what: str) -> tuple[int, ...]:
    """`values`, one integer or a sequence of them, as a tuple. Raises InputError, for `what` of the op `name`."""
    values = values.tolist() if isinstance(values, np.ndarray) else values
    parts = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str | bytes) else (values,)
    if any(isinstance(n, bool) or not isinstance(n, int | np.integer) for n in parts):
        raise InputError(f"{name}: expected {what}, a whole number or a tuple of them, got {told(values)}")
    return tuple([int(n) for n in parts])


def checked_axis(x: Any, axis: Any, name: str) -> int:
    """`axis` counted from the front. Raises ShapeError, for the op `name`, unless it is one axis of `x`."""
    rank = len(shape_of(x, name))
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer) or not -rank <= axis < rank:
        raise ShapeError(f"{name}: expected an axis in [-{rank}, {rank}) for shape {tuple(x.shape)}, got {told(axis)}")
    return int(axis) % rank


def checked_axes(x: Any, axis: Any, name: str, rank: int | None = None) -> tuple[int, ...]:
    """One axis or several of `x` (of a result of `rank` axes), counted from the front, in the order given.

    Raises ShapeError, for the op `name`, unless each is there, once.
    """
    shape = shape_of(x, name)
    rank = len(shape) if rank is None else rank
    if type(axis) is int and -rank <= axis < rank:  # as in a step
        return (axis % rank,)
    try:
        axes = integers(axis, name, "an axis")
    except InputError:
        axes = (rank,)  # which is none
    if any(not -rank <= a < rank for a in axes):
        raise ShapeError(f"{name}: expected axes in [-{rank}, {rank}) for shape {tuple(shape)}, got {told(axis)}")
    found = tuple([a % rank for a in axes])
    if len(set(found)) < len(found):
        raise ShapeError(f"{name}: expected each axis once, got {told(axis)} for shape {tuple(shape)}")
    return found
