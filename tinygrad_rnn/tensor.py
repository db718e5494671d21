"""Tensor: an array with a place on the tape. Operators and methods are the functions of `tinygrad_rnn.ops`."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np

from tinygrad_rnn import backend, dispatch, engine, ops
from tinygrad_rnn.engine import Operand, Variable, record_two, wrap
from tinygrad_rnn.errors import DtypeError, GradientError, InPlaceError, InputError, ShapeError, nearest
from tinygrad_rnn.ops.arguments import checked_dtype, told
from tinygrad_rnn.ops.reduce import Axis


class Algebra(Operand):
    """Abstract: operators and methods, all of them functions of `tinygrad_rnn.ops`, for whatever intercepts ops."""

    __slots__ = ()

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """What NumPy asks for ``np.tanh(x)``, and NumPy and CuPy for ``array * x``."""
        return self._for_numpy(ufunc if method == "__call__" else getattr(ufunc, method), inputs, options)

    def __array_function__(self, function: Any, types: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """What NumPy asks for ``np.concatenate([x, h], -1)``."""
        return self._for_numpy(function, args, options)

    def _for_numpy(self, function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        try:
            return dispatch.answer(function, args, options)
        except dispatch.NoOp as missing:
            return self.without_op(function, args, options, missing)

    def without_op(self, function: Any, args: tuple[Any, ...], options: dict[str, Any], missing: dispatch.NoOp) -> Any:
        """The answer to one of NumPy's functions that no op stands for."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def T(self) -> Self:
        return ops.transpose(self)  # type: ignore[no-any-return]

    def __pos__(self) -> Self:
        return self

    __hash__ = object.__hash__

    # --------------------------------------------------------------------------------- operators

    def __add__(self, other: Any) -> Self:
        return record_two(ops.add, self, other)  # type: ignore[no-any-return]

    def __radd__(self, other: Any) -> Self:
        return record_two(ops.add, self, other)  # type: ignore[no-any-return]

    def __sub__(self, other: Any) -> Self:
        return record_two(ops.sub, self, other)  # type: ignore[no-any-return]

    def __rsub__(self, other: Any) -> Self:
        return record_two(ops.sub, other, self)  # type: ignore[no-any-return]

    def __mul__(self, other: Any) -> Self:
        return record_two(ops.mul, self, other)  # type: ignore[no-any-return]

    def __rmul__(self, other: Any) -> Self:
        return record_two(ops.mul, self, other)  # type: ignore[no-any-return]

    def __truediv__(self, other: Any) -> Self:
        return record_two(ops.div, self, other)  # type: ignore[no-any-return]

    def __rtruediv__(self, other: Any) -> Self:
        return record_two(ops.div, other, self)  # type: ignore[no-any-return]

    def __pow__(self, other: Any) -> Self:
        return record_two(ops.pow, self, other)  # type: ignore[no-any-return]

    def __rpow__(self, other: Any) -> Self:
        return record_two(ops.pow, other, self)  # type: ignore[no-any-return]

    def __mod__(self, other: Any) -> Self:
        return ops.remainder(self, other)  # type: ignore[no-any-return]

    def __rmod__(self, other: Any) -> Self:
        return ops.remainder(other, self)  # type: ignore[no-any-return]

    def __floordiv__(self, other: Any) -> Self:
        return ops.floor_divide(self, other)  # type: ignore[no-any-return]

    def __rfloordiv__(self, other: Any) -> Self:
        return ops.floor_divide(other, self)  # type: ignore[no-any-return]

    def __divmod__(self, other: Any) -> tuple[Self, Self]:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> tuple[Self, Self]:
        return other // self, other % self

    def __round__(self, decimals: int = 0) -> Self:
        return ops.round(self, decimals)  # type: ignore[no-any-return]

    def __and__(self, other: Any) -> Self:
        return _logical(ops.logical_and, self, other)  # type: ignore[no-any-return]

    __rand__ = __and__

    def __or__(self, other: Any) -> Self:
        return _logical(ops.logical_or, self, other)  # type: ignore[no-any-return]

    __ror__ = __or__

    def __xor__(self, other: Any) -> Self:
        return _logical(ops.logical_xor, self, other)  # type: ignore[no-any-return]

    __rxor__ = __xor__

    def __invert__(self) -> Self:
        return _logical(ops.logical_not, self)  # type: ignore[no-any-return]

    def __matmul__(self, other: Any) -> Self:
        return ops.matmul(self, other)  # type: ignore[no-any-return]

    def __rmatmul__(self, other: Any) -> Self:
        return ops.matmul(other, self)  # type: ignore[no-any-return]

    def __neg__(self) -> Self:
        return ops.neg(self)  # type: ignore[no-any-return]

    def __abs__(self) -> Self:
        return ops.abs(self)  # type: ignore[no-any-return]

    def __eq__(self, other: object) -> Any:
        return ops.equal(self, other)

    def __ne__(self, other: object) -> Any:
        return ops.not_equal(self, other)

    def __gt__(self, other: Any) -> Self:
        return ops.greater(self, other)  # type: ignore[no-any-return]

    def __ge__(self, other: Any) -> Self:
        return ops.greater_equal(self, other)  # type: ignore[no-any-return]

    def __lt__(self, other: Any) -> Self:
        return ops.less(self, other)  # type: ignore[no-any-return]

    def __le__(self, other: Any) -> Self:
        return ops.less_equal(self, other)  # type: ignore[no-any-return]

    def __getitem__(self, index: Any) -> Self:
        return ops.getitem(self, index)  # type: ignore[no-any-return]

    # ----------------------------------------------------------------------------------- methods

    def exp(self) -> Self:
        return ops.exp(self)  # type: ignore[no-any-return]

    def log(self) -> Self:
        return ops.log(self)  # type: ignore[no-any-return]

    def sqrt(self) -> Self:
        return ops.sqrt(self)  # type: ignore[no-any-return]

    def tanh(self) -> Self:
        return ops.tanh(self)  # type: ignore[no-any-return]

    def sigmoid(self) -> Self:
        return ops.sigmoid(self)  # type: ignore[no-any-return]

    def relu(self) -> Self:
        return ops.relu(self)  # type: ignore[no-any-return]

    def astype(self, dtype: Any) -> Self:
        return ops.astype(self, dtype)  # type: ignore[no-any-return]

    def sum(self, axis: Axis = None, keepdims: bool = False) -> Self:
        return ops.sum(self, axis, keepdims)  # type: ignore[no-any-return]

    def mean(self, axis: Axis = None, keepdims: bool = False) -> Self:
        return ops.mean(self, axis, keepdims)  # type: ignore[no-any-return]

    def max(self, axis: Axis = None, keepdims: bool = False) -> Self:
        return ops.max(self, axis, keepdims)  # type: ignore[no-any-return]

    def min(self, axis: Axis = None, keepdims: bool = False) -> Self:
        return ops.min(self, axis, keepdims)  # type: ignore[no-any-return]

    def norm(self, axis: Axis = None, keepdims: bool = False) -> Self:
        return ops.norm(self, axis, keepdims)  # type: ignore[no-any-return]

    def var(self, axis: Axis = None, keepdims: bool = False, *, ddof: float = 0) -> Self:
        return ops.var(self, axis, keepdims, ddof=ddof)  # type: ignore[no-any-return]

    def std(self, axis: Axis = None, keepdims: bool = False, *, ddof: float = 0) -> Self:
        return ops.std(self, axis, keepdims, ddof=ddof)  # type: ignore[no-any-return]

    def prod(self, axis: Axis = None, keepdims: bool = False) -> Self:
        return ops.prod(self, axis, keepdims)  # type: ignore[no-any-return]

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> Self:
        return ops.argmax(self, axis, keepdims)  # type: ignore[no-any-return]

    def argmin(self, axis: int | None = None, keepdims: bool = False) -> Self:
        return ops.argmin(self, axis, keepdims)  # type: ignore[no-any-return]

    def cumsum(self, axis: int | None = None) -> Self:
        return ops.cumsum(self, axis)  # type: ignore[no-any-return]

    def clip(self, low: Any = None, high: Any = None) -> Self:
        return ops.clip(self, low, high)  # type: ignore[no-any-return]

    def ravel(self) -> Self:
        return ops.ravel(self)  # type: ignore[no-any-return]

    def flatten(self) -> Self:
        return ops.ravel(self)  # type: ignore[no-any-return]

    def squeeze(self, axis: Axis = None) -> Self:
        return ops.squeeze(self, axis)  # type: ignore[no-any-return]

    def reshape(self, *shape: Any) -> Self:
        """The sizes given one by one or as a sequence."""
        return ops.reshape(self, shape[0] if len(shape) == 1 else shape)  # type: ignore[no-any-return]

    def transpose(self, *axes: Any) -> Self:
        """The axes in another order, given one by one or as a sequence; reversed when not given."""
        order = None if not axes else axes[0] if len(axes) == 1 else axes
        return ops.transpose(self, order)  # type: ignore[no-any-return]

    def swapaxes(self, a: int, b: int) -> Self:
        return ops.swapaxes(self, a, b)  # type: ignore[no-any-return]


def _logical(op: Any, *masks: Any) -> Any:
    """`op` of masks, for the operators that mean something else for numbers."""
    for mask in masks:
        kind = np.dtype(getattr(mask, "dtype", type(mask) if isinstance(mask, bool | int | float) else object))
        if kind.kind != "b":
            told = kind if kind.kind != "O" else type(mask).__name__
            raise DtypeError(f"{op.__name__}: expected boolean masks around &, |, ^ and ~, got {told}; compare first")
    return op(*masks)


class Tensor(Algebra, Variable):
    """An array (`data`, a plain numpy.ndarray or cupy.ndarray) that remembers how it was computed.

    ``Tensor(value, requires_grad=True)`` is a leaf: `grad` and `backward` find its gradient. `value` is not copied when
    it is an array or a tensor of the right dtype: a write into one is seen by both. The tape notices what is written
    through a tensor; after writing into the array between a forward pass and its gradient, call `mark_changed`. Python
    numbers and lists become what NumPy makes of them, float64 or int64, unless `dtype` is given.
    Raises DtypeError for what is not numeric, for a masked array and for a leaf that is not floating, ShapeError for a
    ragged list, GradientError for a tensor whose gradient would be lost.
    """

    __slots__ = ()

    def __init__(self, value: Any, requires_grad: bool = False, dtype: Any = None) -> None:
        version: engine.Version | None = None
        if isinstance(value, Tensor):
            value.no_loss("Tensor", "use it as it is, or take its .detach()")
            value, version = value.data, value.version
        data = backend.plain(value, "Tensor") if backend.is_array(value) else _from_python(value)
        if dtype is not None:
            data = data.astype(checked_dtype(dtype, "Tensor"), copy=False)
        if data.dtype.kind not in "fiub":
            raise DtypeError(f"Tensor: expected real numbers or booleans, got {data.dtype}")
        self.data = data
        self.node = None
        self.version = version if version is not None and data is value else [0]
        if requires_grad:
            if data.dtype.kind != "f":
                raise DtypeError(
                    f"Tensor: expected a floating dtype for requires_grad, got {data.dtype}; give dtype='float64'"
                )
            self.node = engine.leaf(data)

    # ------------------------------------------------------------------------------------ facts

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape  # type: ignore[no-any-return]

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    @property
    def size(self) -> int:
        return int(self.data.size)

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient can flow to this tensor."""
        return self.node is not None

    @property
    def is_leaf(self) -> bool:
        """Whether no op made this tensor."""
        return self.node is None or self.node.op is None

    @property
    def grad(self) -> Tensor | None:
        """The gradient that `backward` left here; None before."""
        if self.node is None or self.node.rare is None:
            return None
        return self.node.rare.get("grad")

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if self.node is None:
            raise GradientError("grad: expected a tensor that requires a gradient, got a constant")
        if value is not None and not isinstance(value, Tensor):
            raise GradientError(f"grad: expected a tensor or None, got {type(value).__name__}")
        if value is not None and (value.shape != self.shape or value.dtype != self.dtype):
            raise ShapeError(f"grad: expected shape {self.shape} {self.dtype}, got {value.shape} {value.dtype}")
        self.node.rare = {**(self.node.rare or {}), "grad": value}

    def __repr__(self) -> str:
        op = None if self.node is None else self.node.op
        made = f", by {op.__name__}" if op is not None else ", requires_grad" if self.requires_grad else ""
        text = np.array2string(backend.to_host(self.data), separator=", ", prefix="Tensor(")
        return f"Tensor({text}, {self.dtype}{made})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError("len: expected an array with an axis, got a scalar tensor")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        """The parts along the first axis."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Tensor:
        node = self.node
        if node is not None and node.rare is not None and "parts" in node.rare:
            return _of_parts(self, index)
        return ops.getitem(self, index)  # type: ignore[no-any-return]

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ShapeError(
                f"bool, as in `if`: expected one element to decide by, got a tensor of shape {self.shape}; choose "
                "element by element with ops.where, ops.maximum or ops.minimum, or join masks with & and | instead of "
                "`and` and `or`"
            )
        return bool(self.data)

    def __float__(self) -> float:
        return float(self._only("float", "; the functions of Python's math are those of tinygrad_rnn.ops"))

    def __int__(self) -> int:
        return int(self._only("int"))

    if not TYPE_CHECKING:  # a checker that saw it would take every misspelt name

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(f"'Tensor' object has no attribute {name!r}")
            if name in dispatch.PUBLIC:
                raise AttributeError(f"'Tensor' object has no attribute {name!r}; write ops.{name}(x)")
            known = {one for one in dir(type(self)) if not one.startswith("_")} | dispatch.PUBLIC
            raise AttributeError(f"'Tensor' object has no attribute {name!r}{nearest(name, known, whole=False)}")

    # --------------------------------------------------------------------------------- exchange

    def item(self) -> Any:
        """The only element as a Python number. Raises ShapeError when there are more."""
        return self._only("item")

    def _only(self, name: str, use: str = "") -> Any:
        if self.size != 1:
            raise ShapeError(f"{name}: expected one element, got shape {self.shape}{use}")
        return self.data.item()

    def tolist(self) -> Any:
        """The values as Python numbers in lists, as `item` gives one."""
        return backend.to_host(self.data).tolist()

    def no_loss(self, call: str, use: str) -> None:
        """Raise GradientError where `call` would cut this tensor off from the tape without a word; `use` says what to
        write instead."""
        if self.node is not None and engine.MODE.recording:
            got = f"the output of {self.node.op.__name__}" if self.node.op is not None else "a leaf with requires_grad"
            raise GradientError(f"{call}: expected a constant, since the gradient would be lost, got {got}; {use}")

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values as a NumPy array, copied from the device where needed.

        Raises GradientError for a tensor that requires a gradient, outside no_grad(): take .detach() first, or .data.
        """
        self.no_loss("numpy", "take .detach().numpy() to cut it off on purpose")
        return backend.to_host(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        self.no_loss(  # who asked NumPy does not say: np.array(x), array.dot(x), np.testing.assert_allclose(x, y)
            "conversion to a NumPy array",
            "use functions of tinygrad_rnn.ops (ops.stack for a list, a @ x for a.dot(x)), or take .detach() to cut it "
            "off on purpose",
        )
        if not isinstance(self.data, np.ndarray):
            raise DtypeError("conversion to a NumPy array: expected a tensor on the cpu; copy it with .numpy()")
        return np.array(self.data, dtype=dtype, copy=copy)

    def without_op(self, function: Any, args: tuple[Any, ...], options: dict[str, Any], missing: dispatch.NoOp) -> Any:
        """NumPy's own result for constants, and where there is no gradient to lose.

        Raises GradientError where there is one, InPlaceError where NumPy would write into a tensor.
        """
        name, called = function.__name__, dispatch.told(function)
        if name in dispatch.WRITERS and any(True for _ in _tensors(args[0])):
            raise InPlaceError(
                f"{called}: expected an array to write into, got a tensor; use {dispatch.ADVICE[name]}, or x[...] = of "
                "a tensor that no op made"
            )
        if any(True for _ in _tensors(options.get("out", ()))):
            raise InPlaceError(
                f"{called}: expected an array to write into as out=, got a tensor; write y = {called}(...)"
            )
        if name not in dispatch.NO_GRADIENT and engine.MODE.recording:
            if any(x.node is not None for x in _tensors([*args, *options.values()])):
                raise GradientError(
                    f"{called}: {missing.why}, and NumPy would lose the gradient; {missing.use}, or "
                    "take .detach() to cut it off on purpose"
                )
        return function(*_as_arrays(args), **_as_arrays(options))

    def __dlpack__(self, **options: Any) -> Any:
        self.no_loss("dlpack", "take its .detach()")
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.data.__dlpack_device__()

    def detach(self) -> Tensor:
        """The same values, cut off from the tape; the memory is shared."""
        return wrap(Tensor, self.data, None, self.version)

    def copy(self) -> Tensor:
        """A constant with memory of its own. Raises GradientError as `numpy` does."""
        self.no_loss("copy", "take .detach().copy(), which may be written")
        return Tensor(self.data.copy())

    def to(self, device: backend.Device | str) -> Tensor:
        """A constant or a leaf, again as such on `device`, which may be its name.

        Raises GradientError for the output of an op, DeviceError for a device that is not there.
        """
        if not self.is_leaf:
            self.no_loss("to", "take .detach().to(...), or move the leaves that it is computed from")
        where = device if isinstance(device, backend.Device) else backend.select(device)
        moved = backend.from_host(backend.to_host(self.data), where.xp)
        return Tensor(moved, requires_grad=self.requires_grad)

    # -------------------------------------------------------------------------------- gradients

    def backward(self, g: Any = None, *, create_graph: bool = False) -> None:
        """Add the gradient of this tensor to `.grad` of every leaf below it, and of every `retain_grad` tensor.

        `g` is the gradient of something else with respect to this tensor: needed unless this tensor has one element.
        With `create_graph` a leaf's gradient holds the graph that holds the leaf; `grad` makes no such cycle.
        Raises GradientError when there is nothing to differentiate.
        """
        root = _root(self)
        reached = engine.below(root)
        targets = {node for node in reached if node.op is None or (node.rare and node.rare.get("keep"))}
        for node in reached:  # an output of a node with several may be kept although nothing was computed from it
            if node.op is not None and node.op.many is not None and node.rare:
                targets.update(node.rare["kept parts"])
        seed = _seed(self, g, create_graph)
        found = engine.flow(root, seed, targets, Tensor, higher=create_graph)
        for node, value in zip(found, _own(list(found.values()), seed), strict=True):
            old = (node.rare or {}).get("grad")
            node.rare = {**(node.rare or {}), "grad": value if old is None else old + value}

    def retain_grad(self) -> Tensor:
        """Ask `backward` to leave this tensor's gradient in `.grad`, although an op made it.

        Raises GradientError for a constant, and for the outputs of a sequence as a whole, whose items are what a loss
        may be computed from.
        """
        node = _root(self, "retain_grad")
        if "parts" in (node.rare or {}):
            raise GradientError(
                "retain_grad: expected the output of one timestep, got those of a sequence as a whole; ask each of "
                "them, outputs[t].retain_grad()"
            )
        node.rare = {**(node.rare or {}), "keep": True}
        if node.op is not None and node.op.part:
            whole: Any = node.parents[0]
            if whole.rare is None:
                whole.rare = {"kept parts": weakref.WeakSet()}  # weak: they hold the whole, and a cycle would keep both
            whole.rare["kept parts"].add(node)
        return self

    # ----------------------------------------------------------------------------- in-place writes

    def assign(self, value: Any) -> Tensor:
        """Overwrite the values in place. Allowed for tensors that no op made; the graph notices.

        Raises InPlaceError for the output of an op: write to a copy.
        """
        self[...] = value
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        if self.version is None or not self.is_leaf:
            made = self.node.op.__name__ if self.node is not None and self.node.op is not None else "an op"
            raise InPlaceError(
                f"assign: expected a tensor that no op made, got the output of {made}; use where, "
                "concatenate or scatter, or change a .detach().copy()"
            )
        if isinstance(value, Tensor):
            value.no_loss("assign", "use ops.where, concatenate or scatter, or write its .detach()")
            value = value.data
        try:
            self.data[index] = value
        except (ValueError, IndexError) as error:
            shape = getattr(value, "shape", None)
            if shape is None or isinstance(error, IndexError):
                raise ShapeError(f"assign: got a tensor of shape {self.shape}: {error}") from error
            place = "it" if index is Ellipsis else f"its part of shape {self.data[index].shape}"
            raise ShapeError(
                f"assign: got a tensor of shape {self.shape} and values of shape {shape}, which do not broadcast to "
                f"{place}; reshape them"
            ) from error
        self.version[0] += 1

    def mark_changed(self) -> None:
        """Say that `data` was written in place from outside (an optimiser does), so that the graph notices."""
        if self.version is not None:
            self.version[0] += 1


def made_of(whole: Any, parts: Sequence[Tensor], steps: range) -> Any:
    """`whole`, whose items along the first axis are the tensors of `parts` at `steps`: ``whole[i]`` is that tensor.

    So a gradient can be asked for ``whole[i]``; of any other tensor that is a new one, from which nothing was computed.
    """
    if isinstance(whole, Tensor) and whole.node is not None:  # not so where parameters and inputs are plain arrays
        whole.node.rare = {**(whole.node.rare or {}), "parts": (parts, steps)}
    return whole


def _of_parts(whole: Tensor, index: Any) -> Tensor:
    """``whole[index]`` for what `made_of` returned, or a slice of it."""
    node: Any = whole.node
    parts, steps = node.rare["parts"]
    first, *rest = index if isinstance(index, tuple) and index else (index,)
    if isinstance(first, int | np.integer) and not isinstance(first, bool) and -len(steps) <= first < len(steps):
        found: Tensor = parts[steps[first]]
        return found[tuple(rest)] if rest else found
    made: Tensor = ops.getitem(whole, index)
    return made_of(made, parts, steps[first]) if isinstance(first, slice) and not rest else made


def _from_python(value: Any) -> np.ndarray[Any, Any]:
    """Numbers, or lists of them, as an array."""
    try:
        return np.asarray(value)
    except GradientError as error:
        raise GradientError(
            "Tensor: expected numbers, got tensors whose gradient would be lost; use ops.stack, or take their .detach()"
        ) from error
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise ShapeError(f"Tensor: expected numbers in lists, got {told(value)}: {error}") from error
        raise ShapeError(
            f"Tensor: expected lists of equal lengths, got {told(value)}; fill up the shorter ones, and say with mask= "
            "which elements count"
        ) from error


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in the arguments of a function."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _as_arrays(value: Any) -> Any:
    """The arguments of a function with arrays in the place of tensors."""
    if isinstance(value, Tensor):
        return value.data
    if isinstance(value, list | tuple):
        return type(value)([_as_arrays(part) for part in value])
    if isinstance(value, dict):
        return {key: _as_arrays(part) for key, part in value.items()}
    return value


def _root(y: Any, name: str = "grad") -> engine.Node:
    if not isinstance(y, Tensor):
        raise GradientError(f"{name}: expected a tensor as output, got {type(y).__name__}")
    if y.node is None:
        raise GradientError(
            f"{name}: expected an output computed from tensors with requires_grad=True, got a constant; "
            "was it computed inside no_grad() or after .detach()?"
        )
    return y.node


def _seed(y: Tensor, g: Any, create_graph: bool) -> Any:
    if g is None:
        if y.size != 1:
            raise GradientError(
                f"grad: expected an output with one element, got shape {y.shape}; sum it up, or give g=, the gradient "
                f"that flows into it, of shape {y.shape}"
            )
        g = np.ones_like(y.data)
    if isinstance(g, list | tuple):
        g = _from_python(g)
    elif backend.is_array(g):
        g = backend.plain(g, "grad")
    if not isinstance(g, Tensor | int | float | np.number) and not backend.is_array(g):
        raise GradientError(f"grad: expected a tensor, an array or a number as g=, got {type(g).__name__}")
    data = g.data if isinstance(g, Tensor) else g if backend.is_array(g) else np.full_like(y.data, g)
    if data.shape != y.shape or data.dtype != y.dtype:
        raise ShapeError(f"grad: expected a gradient of shape {y.shape} {y.dtype}, got {data.shape} {data.dtype}")
    if create_graph:
        return g if isinstance(g, Tensor) else wrap(Tensor, data)
    return data


def _own(gradients: list[Any], seed: Any) -> list[Any]:
    """`gradients` as tensors, each with memory of its own: what is clipped or written in place is no other's.

    Arrays come from the walk with memory of their own, and one of them twice where a target is there twice. Tensors of
    a graph share theirs where a rule passes a gradient on; their copies are recorded.
    """
    taken = {id(seed), id(seed.data) if isinstance(seed, Tensor) else 0}
    owned = []
    for value in gradients:
        if isinstance(value, Tensor):
            data = value.data
            if getattr(data, "base", None) is not None or {id(value), id(data)} & taken:
                with engine.recording():
                    value = value * 1.0
            taken |= {id(value), id(data)}
        elif value is not None:
            value = wrap(Tensor, value.copy() if id(value) in taken else value)
            taken.add(id(value.data))
        owned.append(value)
    return owned


@overload
def grad(
    y: Tensor, wrt: Tensor, g: Any = ..., *, create_graph: bool = ..., unused: Literal["zeros", "error"] = ...
) -> Tensor: ...
@overload
def grad(
    y: Tensor, wrt: Sequence[Tensor], g: Any = ..., *, create_graph: bool = ..., unused: Literal["zeros", "error"] = ...
) -> list[Tensor]: ...


def grad(
    y: Tensor,
    wrt: Tensor | Sequence[Tensor],
    g: Any = None,
    *,
    create_graph: bool = False,
    unused: Literal["zeros", "error"] = "error",
) -> Any:
    """The gradient of `y` with respect to any tensors below it: leaves, states, gates.

    `g` (shape of y) is what flows into `y`: needed unless y has one element. With `create_graph` the result is itself
    on the tape, so that it can be differentiated again; without it the result is a constant, whatever `g` is. Returns
    one tensor, or a list as long as `wrt`, each with memory of its own.
    Raises GradientError when y or a target has no place on the tape, and when y was not computed from a target, which
    gets zeros with ``unused="zeros"``. A fresh slice or a copy of what y was computed from is another tensor.
    """
    if unused not in ("zeros", "error"):
        raise InputError(f"grad: expected unused='error' or 'zeros', got {unused!r}")
    single = isinstance(wrt, Tensor)
    given: Any = wrt
    if not isinstance(given, Iterable) or isinstance(given, Mapping):
        use = "; give list(named.values())" if isinstance(given, Mapping) else ""
        raise GradientError(f"grad: expected a tensor or a list of tensors as targets, got {type(given).__name__}{use}")
    targets: list[Tensor] = [wrt] if isinstance(wrt, Tensor) else list(wrt)
    root = _root(y)
    for i, target in enumerate(targets):
        if not isinstance(target, Tensor):
            raise GradientError(f"grad: expected tensors as targets, got {type(target).__name__} at position {i}")
        if target.node is None:
            raise GradientError(
                f"grad: expected targets with requires_grad=True, got a constant at position {i} of "
                f"shape {target.shape}"
            )
    seed = _seed(y, g, create_graph)
    nodes = [target.node for target in targets if target.node is not None]
    found = engine.flow(root, seed, set(nodes), Tensor, higher=create_graph)
    for i, (target, node) in enumerate(zip(targets, nodes, strict=True)):
        if node not in found and unused == "error":
            why = (
                "; y may be computed from its items: give those, [outputs[t] for t in range(T)]"
                if "parts" in (node.rare or {})
                else " (a fresh slice is another tensor than the one used); unused='zeros' gives zeros"
            )
            raise GradientError(
                f"grad: the target at position {i}, shape {target.shape}, appears not to have been used in the graph "
                f"of y{why}"
            )
    results = _own([found.get(node) for node in nodes], seed)
    results = [
        wrap(Tensor, np.zeros_like(target.data)) if value is None else value
        for target, value in zip(targets, results, strict=True)
    ]
    return results[0] if single else results
