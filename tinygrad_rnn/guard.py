"""The guard array: NumPy inside, CuPy's manners outside, so that mistakes only a GPU would show fail on every machine.

For `testing` and our own tests. It does what CuPy 13.3 and 14 do, as their `ndarray.__array_ufunc__` and
`__array_function__` do it: no implicit way to the host, no mixing with numpy.ndarray, 0-d arrays where NumPy gives
scalars, and only the functions that CuPy has. Stricter than CuPy in one thing: an index on the host is refused, where
CuPy copies it at every use.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np

UFUNCS = frozenset(
    {
        "absolute",
        "add",
        "arccos",
        "arccosh",
        "arcsin",
        "arcsinh",
        "arctan",
        "arctan2",
        "arctanh",
        "ceil",
        "cos",
        "cosh",
        "divide",
        "equal",
        "exp",
        "exp2",
        "expm1",
        "floor",
        "floor_divide",
        "frexp",
        "greater",
        "greater_equal",
        "invert",
        "isfinite",
        "isinf",
        "isnan",
        "ldexp",
        "less",
        "less_equal",
        "log",
        "log10",
        "log1p",
        "log2",
        "logaddexp",
        "logical_and",
        "logical_not",
        "logical_or",
        "logical_xor",
        "matmul",
        "maximum",
        "minimum",
        "multiply",
        "negative",
        "not_equal",
        "power",
        "remainder",
        "rint",
        "sign",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "subtract",
        "tan",
        "tanh",
        "trunc",
    }
)
FUNCTIONS = frozenset(
    {
        "all",
        "any",
        "argmax",
        "argmin",
        "argsort",
        "broadcast_to",
        "clip",
        "concatenate",
        "cumsum",
        "flip",
        "full_like",
        "max",
        "mean",
        "min",
        "ones_like",
        "pad",
        "sort",
        "stack",
        "sum",
        "take_along_axis",
        "tril",
        "triu",
        "where",
        "zeros_like",
    }
)
METHODS = frozenset({"__call__", "at"})  # CuPy's ufuncs have `at` since 12
SCALARS = (bool, int, float, np.generic)


class Array:
    """An array "on the device"."""

    __slots__ = ("_on_device",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: np.ndarray) -> None:
        self._on_device = host

    # ---- what would leave the device

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_namespace__(self, **_: Any) -> Any:
        return MODULE

    def get(self) -> np.ndarray:
        return self._on_device.copy()

    def item(self) -> Any:
        return self._on_device.item()

    def __float__(self) -> float:
        return float(self._on_device.item())

    def __int__(self) -> int:
        return int(self._on_device.item())

    def __bool__(self) -> bool:
        return bool(self._on_device)

    def __iter__(self) -> Any:
        if not self.shape:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(self.shape[0]))

    def __len__(self) -> int:
        return len(self._on_device)

    def __repr__(self) -> str:
        return f"guard({self._on_device!r})"

    # ---- facts

    shape = property(lambda self: self._on_device.shape)
    dtype = property(lambda self: self._on_device.dtype)
    ndim = property(lambda self: self._on_device.ndim)
    size = property(lambda self: self._on_device.size)
    nbytes = property(lambda self: self._on_device.nbytes)
    strides = property(lambda self: self._on_device.strides)
    T = property(lambda self: Array(self._on_device.T))

    # ---- what NumPy hands over

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        if ufunc.__name__ not in UFUNCS or method not in METHODS:
            return NotImplemented
        if any(hasattr(x, "__array_ufunc__") and not isinstance(x, (Array, np.ndarray, np.generic)) for x in inputs):
            return NotImplemented  # the turn of another class
        if method == "at":
            target, index, *values = inputs
            ufunc.at(_inside(target), _index(index), *[_inside(value) for value in values], **options)
            return None
        if out is not None:
            options["out"] = tuple(_inside(x) for x in out)
            ufunc(*[_inside(x) for x in inputs], **options)
            return out[0]
        return _outside(ufunc(*[_inside(x) for x in inputs], **options))

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if function.__name__ not in FUNCTIONS or not all(issubclass(t, Array | np.ndarray) for t in types):
            return NotImplemented
        return _outside(function(*_deep(args), **{name: _deep(value) for name, value in options.items()}))

    # ---- methods that CuPy's arrays have too

    def astype(self, dtype: Any, copy: bool = True) -> Array:
        return Array(self._on_device.astype(dtype, copy=copy))

    def copy(self) -> Array:
        return Array(self._on_device.copy())

    def reshape(self, *shape: Any) -> Array:
        return Array(self._on_device.reshape(*shape))

    def transpose(self, *axes: Any) -> Array:
        return Array(self._on_device.transpose(*axes))

    def sum(self, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
        return _outside(self._on_device.sum(axis=axis, dtype=dtype, keepdims=keepdims))

    def min(self) -> Any:
        return _outside(self._on_device.min())

    def max(self) -> Any:
        return _outside(self._on_device.max())

    def all(self) -> Any:
        return _outside(self._on_device.all())

    def any(self) -> Any:
        return _outside(self._on_device.any())

    def fill(self, value: Any) -> None:
        self._on_device.fill(_inside(value))

    def __getitem__(self, index: Any) -> Array:
        return _outside(self._on_device[_index(index)])  # type: ignore[no-any-return]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._on_device[_index(index)] = _inside(value)


def _operator(name: str, ufunc: np.ufunc, *, reflected: bool) -> None:
    def forward(self: Array, other: Any) -> Any:
        return NotImplemented if getattr(other, "__array_ufunc__", other) is None else ufunc(self, other)

    def backward(self: Array, other: Any) -> Any:
        return NotImplemented if getattr(other, "__array_ufunc__", other) is None else ufunc(other, self)

    def in_place(self: Array, other: Any) -> Any:
        return ufunc(self, other, out=self)

    setattr(Array, f"__{name}__", forward)
    if reflected:
        setattr(Array, f"__r{name}__", backward)
        setattr(Array, f"__i{name}__", in_place)


_BINARY: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "truediv": np.true_divide,
    "pow": np.power,
    "mod": np.remainder,
    "floordiv": np.floor_divide,
}
_ONE_SIDED: dict[str, Any] = {
    "matmul": np.matmul,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNARY: dict[str, Any] = {"neg": np.negative, "abs": np.absolute, "invert": np.invert}
for _name, _ufunc in (_BINARY | _ONE_SIDED).items():
    _operator(_name, _ufunc, reflected=_name in _BINARY)
for _name, _ufunc in _UNARY.items():
    setattr(Array, f"__{_name}__", lambda self, _ufunc=_ufunc: _ufunc(self))


def _inside(value: Any) -> Any:
    if type(value) is Array:
        return value._on_device
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if not isinstance(value, SCALARS):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _outside(value: Any) -> Any:
    if isinstance(value, tuple):  # of a function with two results
        return tuple([_outside(part) for part in value])
    return Array(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def _index(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_index(part) for part in index)
    if isinstance(index, Array):
        return index._on_device
    if isinstance(index, list | np.ndarray):
        raise TypeError(f"an index on the host: {type(index)}")
    return index


def _deep(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_deep(part) for part in value)
    return _inside(value) if isinstance(value, Array | np.ndarray) else value


def asarray(host: Any, dtype: Any = None) -> Array:
    """A copy of `host` "on the device"."""
    return host if isinstance(host, Array) and dtype is None else Array(np.array(_host(host), dtype=dtype))


def _host(value: Any) -> Any:
    return value._on_device if isinstance(value, Array) else value


def _creation(name: str) -> Any:
    return lambda *args, **options: Array(getattr(np, name)(*args, **options))


# What `Device.xp` must offer, so that a whole model can be run on guard arrays.
MODULE = types.SimpleNamespace(__name__="guard", ndarray=Array, asarray=asarray, array=asarray, intp=np.intp)
for _name in ("arange", "empty", "eye", "full", "ones", "zeros"):
    setattr(MODULE, _name, _creation(_name))
