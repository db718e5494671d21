"""Arrays and where they live: the one file that names cupy.

Ops call NumPy's functions; an array that is not NumPy's (CuPy's, or a guard array)
takes the call over through ``__array_ufunc__`` and ``__array_function__``. So the owner of the data
decides, and only creation (`Device.xp`), copies between devices and scatter-add need this module.
"""

from __future__ import annotations

import contextvars
import importlib.util
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from tinygrad_rnn.errors import DeviceError, DtypeError

T = TypeVar("T")
Array = Any  # numpy.ndarray, cupy.ndarray, or a guard array


@dataclass(frozen=True)
class Device:
    """Where arrays are created: its name as the user writes it, and its array module."""

    name: str
    xp: types.ModuleType


_QUIET = contextvars.copy_context()
_QUIET.run(np.seterr, all="ignore")


def quietly(function: Callable[..., T], *args: Any, **options: Any) -> T:
    """``function(*args, **options)`` without NumPy's warnings about overflow, NaN and division by zero.

    As inside np.errstate, but what was before comes back whenever an exception arrives: Ctrl-C inside the Python code
    of errstate's own beginning or end leaves the warnings off.
    """
    return _QUIET.copy().run(function, *args, **options)


def select(name: str) -> Device:
    """The device that `name` (``auto``, ``cpu``, ``cuda`` or ``cuda:N``) means, checked to be there.

    Raises DeviceError for an unknown name, or for ``cuda`` without CuPy or without a GPU.
    """
    if name == "auto":
        return select("cuda") if _gpu_count() > 0 else select("cpu")
    if name == "cpu":
        return Device("cpu", np)
    kind, _, number = str(name).partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise DeviceError(f"device {name!r}: expected auto, cpu, cuda or cuda:N")
    if importlib.util.find_spec("cupy") is None:
        raise DeviceError(f"device {name!r}: CuPy is not installed; pip install 'tinygrad_rnn[cuda12]', or use cpu")
    count = _gpu_count()
    index = int(number or 0)
    if index >= count:
        raise DeviceError(f"device {name!r}: this machine shows {count} CUDA device(s); use cpu")
    import cupy

    cupy.cuda.Device(index).use()
    return Device(f"cuda:{index}", cupy)


def _gpu_count() -> int:
    if importlib.util.find_spec("cupy") is None:
        return 0
    try:
        import cupy

        return int(cupy.cuda.runtime.getDeviceCount())
    except Exception:  # a CuPy without a driver fails in many ways at import and at the first call; all mean "no GPU"
        return 0


def namespace(array: Array) -> Any:
    """The module that owns `array`: numpy, cupy, or what the array's ``__array_namespace__`` says."""
    if isinstance(array, np.ndarray | np.generic):
        return np
    if type(array).__module__.partition(".")[0] == "cupy":
        import cupy

        return cupy
    return array.__array_namespace__()


def is_array(value: object) -> bool:
    """Whether `value` is an array of some backend (not a Python or NumPy scalar, not a list)."""
    kind = type(value)  # what has strides lies in memory; a tensor has an array, and is none
    if isinstance(value, np.ndarray):
        return True
    return hasattr(kind, "__array_ufunc__") and hasattr(kind, "strides") and not isinstance(value, np.generic)


def plain(array: Array, name: str) -> Array:
    """`array` as one of numpy.ndarray itself in this machine's byte order: of a memmap or a matrix what is in it.

    Raises DtypeError, for the op or argument `name`, for a masked array: nothing here reads its mask.
    """
    if not isinstance(array, np.ndarray) or (type(array) is np.ndarray and array.dtype.isnative):
        return array
    if isinstance(array, np.ma.MaskedArray):
        raise DtypeError(
            f"{name}: expected an array without a mask, got a masked array; give array.filled(0.0), and array.mask "
            "where one is asked for, as in ops.where"
        )
    bare = np.asarray(array)
    return bare if bare.dtype.isnative else bare.astype(bare.dtype.newbyteorder("="))


def check_device(name: str, x: Any, index: Array) -> None:
    """Raise DeviceError unless `index` is where `x` is, if that is an array.

    CuPy would copy an index from the host without a word, once for every step of a sequence.
    """
    if is_array(x) and type(x) is not type(index) and namespace(x) is not namespace(index):
        raise DeviceError(
            f"{name}: expected indices on the device of the array, got {namespace(index).__name__} for "
            f"{namespace(x).__name__}; move them once, before the loop"
        )


def to_host(array: Array) -> np.ndarray[Any, Any]:
    """A NumPy array with the content of `array`; the copy between devices is explicit here and nowhere else."""
    if isinstance(array, np.ndarray):
        return array
    if isinstance(array, np.generic):
        return np.asarray(array)
    return np.asarray(array.get())


def from_host(array: np.ndarray[Any, Any], xp: Any) -> Array:
    """`array` on the device whose module is `xp`; no copy when that is NumPy."""
    return array if xp is np else xp.asarray(array)


def scatter_add(buffer: Array, index: Any, values: Array) -> None:
    """``buffer[index] += values`` in place; entries that `index` names several times add up."""
    if not _has_arrays(index) or getattr(getattr(index, "dtype", None), "kind", "") == "b":
        buffer[index] += values  # slices and one mask name every entry at most once
        return
    if isinstance(buffer, np.ndarray) and isinstance(index, np.ndarray) and buffer.ndim > 1:
        _add_rows(buffer, index.reshape(-1), values.reshape(-1, *buffer.shape[1:]))
        return
    np.add.at(buffer, index, values)


def _has_arrays(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, list) or getattr(part, "shape", ()) != () for part in parts)


def _add_rows(buffer: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> None:
    """Add ``values[k]`` to ``buffer[rows[k]]``: sorted runs are summed at once (np.add.at goes element by element)."""
    if rows.size == 0:
        return
    rows = rows.astype(np.intp, copy=False)  # len(buffer) may not fit a narrow type
    rows = np.where(rows < 0, rows + len(buffer), rows)
    order = np.argsort(rows, kind="stable")
    ranked = rows[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    buffer[ranked[starts]] += np.add.reduceat(values[order], starts, axis=0)
