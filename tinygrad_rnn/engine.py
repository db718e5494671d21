"""The tape: what an op is, how it is recorded, and how a gradient flows back.

An op is its value on plain arrays and, under it, one vjp (vector-Jacobian product) per input: a pure
function ``vjp(g, y, *inputs, **static)`` of the incoming gradient, the output and the inputs, written
in ops. Given plain arrays it computes, given tensors it records (higher orders), given another kind
of `Operand` it is traced. A parameter whose name starts with an underscore is one that the vjp does
not read; what no vjp reads is not kept alive.

The engine undoes broadcasting, adds gradients up, and asserts the shape and dtype of every gradient.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np

from tinygrad_rnn import backend
from tinygrad_rnn.backend import Array
from tinygrad_rnn.errors import (
    DeviceError,
    DtypeError,
    GradientError,
    InPlaceError,
    NonFiniteError,
    ShapeError,
    TinygradRNNError,
)

Version = list[int]  # one mutable count, shared by every tensor that shares the memory


class Mode(threading.local):
    """The only global state, one per thread: whether ops record, are checked for NaN, and who listens to taps."""

    recording: bool = True
    anomaly: dict[str, object] | None = None  # the place (layer, timestep, gate) while anomaly() is on
    listener: Callable[[str, Any], None] | None = None


MODE = Mode()


class Operand:
    """Abstract: a value that intercepts ops (a tensor that records, a symbol that is traced)."""

    __slots__ = ()

    def apply(self, op: Op, args: tuple[Any, ...], static: dict[str, Any]) -> Any:
        raise NotImplementedError


class Node:
    """One recorded value: the op that made it, from what, and what its vjps will read.

    `saved` is (output, *inputs) with None for whatever no vjp reads; `rare` holds what few nodes have: the
    gradient that `backward` left here (``grad``), or the place of an anomaly() (``place``).
    """

    __slots__ = ("depth", "dtype", "guards", "op", "parents", "rare", "saved", "shape", "static")

    def __init__(self, op: Op | None, parents: tuple[Node | None, ...], saved: tuple[Any, ...],
                 static: dict[str, Any], guards: tuple[tuple[Version, int], ...] | None, data: Array, depth: int) -> None:
        self.op = op
        self.parents = parents
        self.saved = saved
        self.static = static
        self.guards = guards
        self.shape: tuple[int, ...] = data.shape
        self.dtype: Any = data.dtype
        self.depth = depth
        self.rare: dict[str, Any] | None = None


class Variable(Operand):
    """Abstract: an array on the tape. `tinygrad_rnn.tensor.Tensor` is its only concrete class.

    `node` is None for a constant; `version` counts in-place writes and is None where none is possible.
    """

    __slots__ = ("data", "node", "version")

    data: Array
    node: Node | None
    version: Version | None

    def apply(self, op: Op, args: tuple[Any, ...], static: dict[str, Any]) -> Any:
        return record(op, args, static)


V = TypeVar("V", bound=Variable)


def wrap(cls: type[V], data: Array, node: Node | None = None, version: Version | None = None) -> V:
    """A tensor of class `cls` around `data`, without any check."""
    out = cls.__new__(cls)
    out.data = data
    out.node = node
    out.version = version
    return out


def leaf(data: Array) -> Node:
    """A node that no op made: a parameter or an input whose gradient is wanted."""
    return Node(None, (), (), {}, None, data, 0)


class Op:
    """A differentiable function of arrays: `value`, and under it, through `vjp`, its derivative.

    Array arguments are positional, static configuration is by keyword. `broadcasts` lets the engine sum
    a gradient down to the shape of its input; `view` says that the output shares the input's memory;
    `casts` that the output's dtype may differ from the inputs'.
    """

    def __init__(self, value: Callable[..., Any], *, broadcasts: bool = False, view: bool = False,
                 casts: bool = False) -> None:
        functools.update_wrapper(self, value)
        self.value = value
        self.__name__ = value.__name__.strip("_")  # private ops show the name of the public function
        self.broadcasts = broadcasts
        self.view = view
        self.casts = casts
        self._vjps: tuple[Callable[..., Any] | None, ...] = ()
        self._each: Callable[..., Any] | None = None
        self._joint: Callable[..., Any] | None = None
        # what the vjp of input i reads: (output, *inputs) as booleans; and the union for each set of inputs with a node
        self._reads: tuple[tuple[bool, ...], ...] = ()
        self._keep: dict[tuple[bool, ...], tuple[bool, ...]] = {}
        self.differentiable = False

    def __repr__(self) -> str:
        return f"<op {self.__name__}>"

    def vjp(self, *rules: Callable[..., Any] | None) -> None:
        """Declare one vjp per input: ``rule(g, y, *inputs, **static)``; None where there is no gradient."""
        self._vjps = rules
        self._reads = tuple(_reads(rule, 1 + len(rules)) for rule in rules)
        self.differentiable = any(rule is not None for rule in rules)

    def vjp_each(self, rule: Callable[..., Any]) -> None:
        """Declare the vjp of an op with any number of inputs: ``rule(i, g, **static)``, reading no array."""
        self._each = rule
        self.differentiable = True

    def vjp_joint(self, rule: Callable[..., Any]) -> None:
        """Declare a vjp that gives all gradients at once: ``rule(g, y, needed, *inputs, **static) -> tuple``."""
        self._joint = rule
        self.differentiable = True

    def keeps(self, wanted: tuple[bool, ...]) -> tuple[bool, ...]:
        """Which of (output, *inputs) must be kept when the inputs in `wanted` have a node."""
        kept = self._keep.get(wanted)
        if kept is None:
            if self._joint is not None:
                kept = (True,) * (1 + len(wanted))
            elif self._each is not None:
                kept = (False,) * (1 + len(wanted))
            else:
                chosen = [reads for reads, want in zip(self._reads, wanted, strict=True) if want]
                kept = tuple(any(column) for column in zip(*chosen, strict=True))
            self._keep[wanted] = kept
        return kept

    def __call__(self, *args: Any, **static: Any) -> Any:
        if not static and MODE.anomaly is None:
            if len(args) == 2:
                out = _record_two(self, *args)
            else:
                out = _record_one(self, args[0]) if len(args) == 1 else None
            if out is not None:
                return out
        for arg in args:
            if isinstance(arg, Operand):
                return arg.apply(self, args, static)
        return self.value(*args, **static)


def _reads(rule: Callable[..., Any] | None, count: int) -> tuple[bool, ...]:
    if rule is None:
        return (False,) * count
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in inspect.signature(rule).parameters.values() if p.kind in kinds]
    return tuple(not name.startswith("_") for name in names[1:])


def primitive(value: Callable[..., Any] | None = None, **facts: bool) -> Any:
    """Declare an op from its value on plain arrays; ``facts`` are those of `Op`. Use as a decorator."""
    if value is None:
        return lambda function: Op(function, **facts)
    return Op(value, **facts)


# ---------------------------------------------------------------------------------------------- record


def _record_one(op: Op, a: Any) -> Any:
    """`record` for one tensor and no configuration: the same result, half the time; None means "use record"."""
    if not isinstance(a, Variable):
        return None
    x, parent = a.data, a.node
    try:
        y = op.value(x)
    except (ValueError, TypeError):
        return None  # record runs it once more and explains
    if y.dtype is not x.dtype or type(y) is not type(x) or op.view:
        return None
    cls = type(a)
    out = cls.__new__(cls)
    out.data = y
    out.version = None
    if parent is None or not MODE.recording or not op.differentiable:
        out.node = None
        return out
    kept = op.keeps((True,))
    guards = _guards((a,), kept) if a.version is not None else None
    saved = (y if kept[0] else None, x if kept[1] else None)
    out.node = Node(op, (parent,), saved, {}, guards, y, parent.depth + 1)
    return out


def _record_two(op: Op, a: Any, b: Any) -> Any:
    """`record` for a tensor and a tensor or Python number, likewise; this path carries most of a recurrent step."""
    if not isinstance(a, Variable):
        return None
    x, p = a.data, a.node
    versioned = a.version is not None
    if isinstance(b, Variable):
        z, q = b.data, b.node
        versioned = versioned or b.version is not None
        if z.dtype is not x.dtype:
            return None
    elif type(b) is float or type(b) is int:
        z, q = b, None
    else:
        return None
    try:
        y = op.value(x, z)
    except (ValueError, TypeError):
        return None
    if y.dtype is not x.dtype or type(y) is not type(x) or op.view:
        return None
    cls = type(a)
    out = cls.__new__(cls)
    out.data = y
    out.version = None
    if (p is None and q is None) or not MODE.recording or not op.differentiable:
        out.node = None
        return out
    if p is None:
        kept, depth = op.keeps((False, True)), q.depth
    elif q is None:
        kept, depth = op.keeps((True, False)), p.depth
    else:
        kept, depth = op.keeps((True, True)), max(p.depth, q.depth)
    saved = (y if kept[0] else None, x if kept[1] else None, z if kept[2] else None)
    guards = _guards((a, b), kept) if versioned else None
    out.node = Node(op, (p, q), saved, {}, guards, y, depth + 1)
    return out


def record(op: Op, args: tuple[Any, ...], static: dict[str, Any]) -> Any:
    """Run `op` on tensors and arrays, and put it on the tape when a gradient may be asked for."""
    arrays = []
    parents: list[Node | None] = []
    depth = -1
    versioned = False
    for arg in args:
        if isinstance(arg, Variable):
            cls = type(arg)
            arrays.append(arg.data)
            node = arg.node
            parents.append(node)
            if node is not None and node.depth > depth:
                depth = node.depth
            if arg.version is not None:
                versioned = True
        else:
            # a NumPy scalar is as weak as a Python one: it never widens a tensor
            arrays.append(arg.item() if isinstance(arg, np.generic) else arg)
            parents.append(None)
    try:
        y = op.value(*arrays, **static)
    except TinygradRNNError:
        raise
    except (ValueError, TypeError, IndexError) as error:
        raise _explain(op, arrays, error) from error
    dtype = y.dtype
    for array in arrays:
        # NumPy's builtin dtypes are single objects, so the usual case costs one comparison
        if type(array) is not float and getattr(array, "dtype", None) is not dtype:
            _check_dtypes(op, arrays, dtype)
            break
    if isinstance(y, np.generic):
        y = np.asarray(y)
    out = cls.__new__(cls)
    out.data = y
    out.node = None
    out.version = args[0].version if op.view else None
    mode = MODE
    if mode.anomaly is not None:
        _check_finite(op, y, "value", mode.anomaly)
    if depth < 0 or not op.differentiable or not mode.recording:
        return out
    kept = op.keeps(tuple([node is not None for node in parents]))
    saved = tuple([array if keep else None for array, keep in zip([y, *arrays], kept, strict=True)])
    guards = _guards(args, kept) if versioned else None
    out.node = node = Node(op, tuple(parents), saved, static, guards, y, depth + 1)
    if mode.anomaly is not None:
        node.rare = {"place": dict(mode.anomaly)}
    return out


def _guards(args: tuple[Any, ...], kept: tuple[bool, ...]) -> tuple[tuple[Version, int], ...] | None:
    guards = [(arg.version, arg.version[0]) for arg, keep in zip(args, kept[1:], strict=True)
              if keep and isinstance(arg, Variable) and arg.version is not None]
    return tuple(guards) if guards else None


def _check_dtypes(op: Op, arrays: Sequence[Any], result: Any) -> None:
    if op.casts:
        return
    floats = {array.dtype for array in arrays if getattr(array, "dtype", result).kind == "f" and hasattr(array, "dtype")}
    if len(floats) > 1:
        raise DtypeError(f"{op.__name__}: expected one floating dtype, got {_signature(arrays)}; convert one side "
                         "with .astype(...)")
    if result.kind == "f" and result not in floats:
        raise DtypeError(f"{op.__name__}: expected floating input for a floating result, got {_signature(arrays)}; "
                         "convert it with .astype(...)")


def _signature(arrays: Sequence[Any]) -> str:
    return ", ".join(f"{tuple(a.shape)} {a.dtype}" if hasattr(a, "shape") else repr(a) for a in arrays)


def _explain(op: Op, arrays: Sequence[Any], error: Exception) -> TinygradRNNError:
    owners = {backend.namespace(a).__name__ for a in arrays if backend.is_array(a)}
    if len(owners) > 1:
        return DeviceError(f"{op.__name__}: expected arrays of one device, got {' and '.join(sorted(owners))}; "
                           "move one with .to(...)")
    text = str(error).replace("\n", " ").strip()
    return ShapeError(f"{op.__name__}: got {_signature(arrays)}: {text}")


def _check_finite(op: Op, array: Array, what: str, place: dict[str, object]) -> None:
    if array.dtype.kind != "f" or bool(np.isfinite(array).all()):
        return
    where: dict[str, object] = {"op": op.__name__, **place}
    told = ", ".join(f"{key} {value}" for key, value in where.items())
    kind = "NaN" if bool(np.isnan(array).any()) else "infinity"
    raise NonFiniteError(f"{kind} in the {what} of {told}", where)


# --------------------------------------------------------------- the engine's own two ops


@primitive(view=True)
def _broadcast_to(x: Any, *, shape: tuple[int, ...], source: tuple[int, ...]) -> Any:
    return np.broadcast_to(x, shape)


@primitive
def _sum_to(x: Any, *, shape: tuple[int, ...], source: tuple[int, ...]) -> Any:
    lead = len(source) - len(shape)
    axes = tuple(range(lead)) + tuple(lead + i for i, n in enumerate(shape) if n == 1 and source[lead + i] != 1)
    return np.sum(x, axis=axes, keepdims=True).reshape(shape)


_broadcast_to.vjp(lambda g, _y, _x, *, shape, source: _sum_to(g, shape=source, source=shape))
_sum_to.vjp(lambda g, _y, _x, *, shape, source: _broadcast_to(
    g.reshape((1,) * (len(source) - len(shape)) + shape), shape=source, source=(1,) * (len(source) - len(shape)) + shape))


def broadcast_to(x: Any, shape: tuple[int, ...]) -> Any:
    """`x` repeated to `shape` by NumPy's broadcasting rules; a view."""
    return _broadcast_to(x, shape=tuple(shape), source=tuple(x.shape))


def sum_to(x: Any, shape: tuple[int, ...]) -> Any:
    """`x` summed to `shape`: over the axes along which an array of `shape` would be repeated to x's shape."""
    return _sum_to(x, shape=tuple(shape), source=tuple(x.shape))


# ------------------------------------------------------------------------------------- gradient


class Scatter:
    """A gradient that is zero except at `index`: what a vjp of an indexing op returns.

    The engine adds it into a buffer in place, so that backward through T slices stays linear in T;
    when the gradient itself is recorded, `dense` makes it an ordinary op.
    """

    __slots__ = ("dense", "index", "values")

    def __init__(self, values: Any, index: Any, dense: Callable[[], Any]) -> None:
        self.values = values
        self.index = index
        self.dense = dense


def below(root: Node) -> set[Node]:
    """`root` and every node it was computed from. Iterative: a chain may be longer than Python's stack."""
    seen = {root}
    stack = [root]
    while stack:
        for parent in stack.pop().parents:
            if parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return seen


def _useful(root: Node, targets: set[Node]) -> list[Node]:
    """The nodes below `root` from which a target can be reached, deepest first."""
    useful: set[Node] = set()
    order = []
    for node in sorted(below(root), key=attrgetter("depth")):
        if node in targets or not useful.isdisjoint(node.parents):
            useful.add(node)
            order.append(node)
    order.reverse()
    return order


def flow(root: Node, seed: Any, targets: set[Node], cls: type[Variable], *, recording: bool) -> dict[Node, Any]:
    """The gradient at every node of `targets`, for the gradient `seed` at `root`.

    With `recording` the seed and the results are tensors of class `cls` and the walk itself is put on the tape;
    otherwise everything is arrays.

    The first gradient that reaches a node is kept as it came, since it may be shared; the second makes a buffer of
    our own (`owned`), into which later ones are added in place.
    """
    order = _useful(root, targets)
    grads: dict[Node, Any] = dict.fromkeys(order)
    owned: set[Node] = set()
    if root in grads:
        grads[root] = seed
    found: dict[Node, Any] = {}
    for node in order:
        g = grads.pop(node)
        if g is None:
            continue
        if node in targets:
            found[node] = g
        op = node.op
        if op is None:
            continue
        if node.guards is not None:
            _check_unchanged(op, node.guards)
        saved = node.saved
        if recording:
            owners = (node, *node.parents)
            saved = tuple([wrap(cls, x, owner) if owner is not None and x is not None else x
                           for x, owner in zip(saved, owners, strict=True)])
        joint = None
        if op._joint is not None:
            needed = [parent in grads for parent in node.parents]
            joint = op._joint(g, saved[0], needed, *saved[1:], **node.static)
        for i, parent in enumerate(node.parents):
            if parent is None or parent not in grads:
                continue
            if joint is not None:
                gx = joint[i]
            elif op._each is not None:
                gx = op._each(i, g, **node.static)
            else:
                rule = op._vjps[i]
                if rule is None:
                    continue
                gx = rule(g, *saved, **node.static)
            if type(gx) is Scatter:
                if not recording:
                    old = grads[parent]
                    if old is None:
                        old = np.zeros_like(gx.values, shape=parent.shape)
                    elif parent not in owned:
                        old = old.copy()
                    backend.scatter_add(old, gx.index, gx.values)
                    grads[parent] = old
                    owned.add(parent)
                    continue
                gx = gx.dense()
            if gx.shape != parent.shape or gx.dtype is not parent.dtype:
                gx = _fit(op, i, gx, parent)
            if MODE.anomaly is not None:
                _check_finite(op, gx.data if recording else gx, f"gradient (input {i})", (node.rare or {}).get("place", {}))
            old = grads[parent]
            if old is None:
                grads[parent] = gx
            elif parent in owned:
                np.add(old, gx, out=old)
            else:
                grads[parent] = old = old + gx
                if not recording and old.shape:
                    owned.add(parent)
    return found


def _fit(op: Op, i: int, g: Any, parent: Node) -> Any:
    """Undo broadcasting, then insist on shape and dtype."""
    if op.broadcasts and g.shape != parent.shape and len(g.shape) >= len(parent.shape):
        g = sum_to(g, parent.shape)
    if g.shape != parent.shape or g.dtype != parent.dtype:
        raise GradientError(f"vjp of {op.__name__}, input {i}: expected a gradient of shape {parent.shape} "
                            f"{parent.dtype}, got {tuple(g.shape)} {g.dtype}; the rule of this op is wrong")
    return g


def _check_unchanged(op: Op, guards: tuple[tuple[Version, int], ...]) -> None:
    for version, seen in guards:
        if version[0] != seen:
            raise InPlaceError(f"{op.__name__}: an input was changed in place {version[0] - seen} time(s) after the op "
                               "saved it for its gradient; change a copy, or take the gradient first")


# --------------------------------------------------------------------------------- global modes


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Inside, ops compute without being recorded."""
    before, MODE.recording = MODE.recording, False
    try:
        yield
    finally:
        MODE.recording = before


@contextlib.contextmanager
def recording(on: bool = True) -> Iterator[None]:
    """Inside, ops are recorded (or not), whatever was the rule outside."""
    before, MODE.recording = MODE.recording, on
    try:
        yield
    finally:
        MODE.recording = before


@contextlib.contextmanager
def anomaly() -> Iterator[None]:
    """Inside, every value and every gradient is checked: the first NaN or infinity raises NonFiniteError.

    The error names the op and, inside `unroll`, the layer, the timestep and the gate. Slow.
    """
    before, MODE.anomaly = MODE.anomaly, {}
    try:
        yield
    finally:
        MODE.anomaly = before


@contextlib.contextmanager
def listen(listener: Callable[[str, Any], None] | None) -> Iterator[None]:
    """Inside, `listener(name, value)` hears every `tap`."""
    before, MODE.listener = MODE.listener, listener
    try:
        yield
    finally:
        MODE.listener = before


def tap(name: str, value: Any) -> Any:
    """Announce the intermediate value `name` (a gate, a candidate) and return it unchanged; free when nobody listens."""
    if MODE.listener is not None:
        MODE.listener(name, value)
    return value
