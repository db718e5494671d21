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
import copy
import functools
import inspect
import itertools
import threading
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, TypeVar, overload

import numpy as np

from tinygrad_rnn import backend
from tinygrad_rnn.backend import Array
from tinygrad_rnn.errors import (
    DeviceError,
    DtypeError,
    GradientError,
    InPlaceError,
    InputError,
    NonFiniteError,
    ShapeError,
    TinygradRNNError,
)

Version = list[int]  # one mutable count, shared by every tensor that shares the memory
Guards = tuple[tuple[int, Any, Any], ...]  # see Node
HELD = 1 << 16  # bytes up to which an array that a gradient reads is copied
COUNTER = itertools.count()  # next() is one step for all threads
# By which NumPy and Python say that they cannot.
REFUSALS = (ValueError, TypeError, IndexError, AttributeError, OverflowError, ZeroDivisionError)
NO_STATIC: dict[str, Any] = {}  # shared by every node without configuration; never written


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

    `saved` is (output, *inputs) with None for whatever no vjp reads; `guards` are (position in saved, version, count
    when saved) of what can be written in place, and (position, array, sample when saved) of large arrays of the caller;
    `rare` holds what few nodes have: the gradient that `backward` left here (``grad``) and whether it was asked for
    (``keep``), the place of an anomaly() (``place``), the tensors that are its items (``parts``), or those of its
    outputs whose gradient was asked for (``kept parts``).

    `number` counts the nodes that ops make: a node's is above its parents', so that sorting by it is a topological
    sort, and the walk back meets what was computed last first, when its arrays are still in the cache. A leaf has no
    parents and number 0, in every process: it may come from another one, which counts for itself.
    """

    __slots__ = ("__weakref__", "dtype", "guards", "number", "op", "parents", "rare", "saved", "shape", "static")

    def __init__(
        self,
        op: Op | None,
        parents: tuple[Node | None, ...],
        saved: tuple[Any, ...],
        static: dict[str, Any],
        guards: Guards | None,
        data: Array,
    ) -> None:
        self.op = op
        self.parents = parents
        self.saved = saved
        self.static = static
        self.guards = guards
        self.shape: tuple[int, ...] = data.shape
        self.dtype: Any = data.dtype
        self.number = next(COUNTER)
        self.rare: dict[str, Any] | None = None

    def __reduce__(self) -> Any:
        """A leaf copies and pickles. The output of an op does not: its graph is made of one run's arrays."""
        if self.op is not None:
            raise GradientError(
                f"copy, pickle: expected a tensor that no op made, got the output of {self.op.__name__}, whose graph "
                "cannot be copied; take its .detach()"
            )
        return _leaf_again, (self.shape, self.dtype, (self.rare or {}).get("grad"))


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
    node = Node(None, (), (), NO_STATIC, None, data)
    node.number = 0
    return node


def _leaf_again(shape: tuple[int, ...], dtype: Any, grad: Any) -> Node:
    """A leaf's node as it was copied or pickled."""
    node = leaf(np.broadcast_to(np.empty((), dtype), shape))
    node.rare = None if grad is None else {"grad": grad}
    return node


class Op:
    """A differentiable function of arrays: `value`, and under it, through `vjp`, its derivative.

    Array arguments are positional, static configuration is by keyword. `broadcasts` lets the engine sum
    a gradient down to the shape of its input; `view` says that the output shares the input's memory;
    `casts` that the output's dtype may differ from the inputs'.
    """

    def __init__(
        self, value: Callable[..., Any], *, broadcasts: bool = False, view: bool = False, casts: bool = False
    ) -> None:
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
        # the union again, as attributes, for one or two inputs of which the first, the second or both have a node
        self.keep_first: tuple[bool, ...] = ()
        self.keep_second: tuple[bool, ...] = ()
        self.keep_both: tuple[bool, ...] = ()
        self.short: tuple[Callable[..., Any], ...] = ()  # the vjps, where there are one or two and all are there
        self.plain = not view  # whether `record_one` and `record_two` can do it
        self.many: Callable[..., Any] | None = None  # the vjp of an op with several outputs
        self.part = False  # whether it reads one of those outputs

    def __repr__(self) -> str:
        return f"<op {self.__name__}>"

    def vjp(self, *rules: Callable[..., Any] | None) -> None:
        """Declare one vjp per input: ``rule(g, y, *inputs, **static)``; None where there is no gradient."""
        self._vjps = rules
        self.short = tuple(rule for rule in rules if rule is not None) if len(rules) <= 2 and None not in rules else ()
        self._reads = tuple(_reads(rule, 1 + len(rules)) for rule in rules)
        self.differentiable = any(rule is not None for rule in rules)
        if len(rules) == 1:
            self.keep_first = self.keeps((True,))
        elif len(rules) == 2:
            self.keep_first, self.keep_second = self.keeps((True, False)), self.keeps((False, True))
            self.keep_both = self.keeps((True, True))

    def vjp_each(self, rule: Callable[..., Any]) -> None:
        """Declare the vjp of an op with any number of inputs: ``rule(i, g, **static)``, reading no array."""
        self._each = rule
        self.differentiable = True
        self.plain = False

    def vjp_joint(self, rule: Callable[..., Any]) -> None:
        """Declare a vjp that gives all gradients at once: ``rule(g, y, needed, *inputs, **static) -> tuple``."""
        self._joint = rule
        self.differentiable = True
        self.plain = False

    def vjp_many(self, rule: Callable[..., Any]) -> None:
        """Declare the vjp of an op with several outputs, each read through an op that is a `part`.

        ``rule(gs, record, needed, wanted, *inputs, **static) -> (gradients of the inputs, {key: total gradient})``:
        `gs` are the gradients that reached the outputs from outside, by key; the totals, of the keys in `wanted`, also
        count what reached an output inside the op, as a state does through the next timestep. What no gradient reaches
        is None among the former and not among the latter.
        """
        self.many = rule
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

    def differentiates(self, count: int) -> tuple[bool, ...]:
        """Which of `count` inputs have a gradient."""
        return tuple([rule is not None for rule in self._vjps]) or (self.differentiable,) * count

    def __call__(self, *args: Any, **static: Any) -> Any:
        if not static:
            if len(args) == 1:
                return record_one(self, args[0])
            if len(args) == 2:
                return record_two(self, args[0], args[1])
        return self.general(args, static)

    def general(self, args: tuple[Any, ...], static: dict[str, Any]) -> Any:
        """The call, by the way that suits every op and every operand: a symbol beside a tensor is what decides."""
        chosen: Operand | None = None
        for arg in args:
            if isinstance(arg, Operand):
                chosen = arg
                if not isinstance(arg, Variable):
                    break
        if chosen is not None:
            return chosen.apply(self, args, static)
        try:
            return self.value(*args, **static)
        except TinygradRNNError:
            raise
        except REFUSALS as error:
            raise _explain(self, args, error) from error


def _reads(rule: Callable[..., Any] | None, count: int) -> tuple[bool, ...]:
    if rule is None:
        return (False,) * count
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in inspect.signature(rule).parameters.values() if p.kind in kinds]
    return tuple(not name.startswith("_") for name in names[1:])


@overload
def primitive(value: Callable[..., Any]) -> Op: ...
@overload
def primitive(*, broadcasts: bool = False, view: bool = False, casts: bool = False) -> Callable[..., Op]: ...


def primitive(value: Callable[..., Any] | None = None, **facts: bool) -> Any:
    """Declare an op from its value on plain arrays; ``facts`` are those of `Op`. Use as a decorator."""
    if value is None:
        return lambda function: Op(function, **facts)
    return Op(value, **facts)


# ---------------------------------------------------------------------------------------------- record


def record_one(op: Op, a: Any) -> Any:
    """``op(a)``: what `record` does, in half the time for the usual case, one tensor in and one of its kind out."""
    if not isinstance(a, Variable) or not op.plain or MODE.anomaly is not None:
        return op.general((a,), NO_STATIC)
    x, parent = a.data, a.node
    try:
        y = op.value(x)
    except REFUSALS:
        return record(op, (a,), NO_STATIC)  # runs it once more and explains
    if y.dtype is not x.dtype or type(y) is not type(x):
        return record(op, (a,), NO_STATIC)
    cls = a.__class__
    out = cls.__new__(cls)
    out.data = y
    out.version = None
    if parent is None or not op.differentiable or not MODE.recording:
        out.node = None
        return out
    keep_y, keep_x = op.keep_first
    guards = None
    if keep_x and a.version is not None:
        guards = ((1, a.version, a.version[0]),)
    saved = (y if keep_y else None, x if keep_x else None)
    out.node = Node(op, (parent,), saved, NO_STATIC, guards, y)
    return out


def record_two(op: Op, a: Any, b: Any) -> Any:
    """``op(a, b)``, likewise, for tensors and Python numbers: this path carries most of a recurrent step."""
    if not op.plain or MODE.anomaly is not None:
        return op.general((a, b), NO_STATIC)
    if isinstance(a, Variable):
        cls = a.__class__
        x, p, va = a.data, a.node, a.version
        kind, dtype = type(x), x.dtype
        if isinstance(b, Variable):
            z, q, vb = b.data, b.node, b.version
            if z.dtype is not dtype:
                return op.general((a, b), NO_STATIC)
        elif type(b) is float or type(b) is int:
            z, q, vb = b, None, None
        else:
            return op.general((a, b), NO_STATIC)
    elif isinstance(b, Variable) and (type(a) is float or type(a) is int):
        cls = b.__class__
        x, p, va = a, None, None
        z, q, vb = b.data, b.node, b.version
        kind, dtype = type(z), z.dtype
    else:
        return op.general((a, b), NO_STATIC)
    try:
        y = op.value(x, z)
    except REFUSALS:
        return record(op, (a, b), NO_STATIC)
    if y.dtype is not dtype or type(y) is not kind:
        return record(op, (a, b), NO_STATIC)
    out = cls.__new__(cls)
    out.data = y
    out.version = None
    if (p is None and q is None) or not op.differentiable or not MODE.recording:
        out.node = None
        return out
    keep_y, keep_x, keep_z = op.keep_first if q is None else op.keep_second if p is None else op.keep_both
    guards: Guards | None = None
    if keep_x and va is not None:
        guards = ((1, va, va[0]),)
    if keep_z and vb is not None:
        guards = (*(guards or ()), (2, vb, vb[0]))
    saved = (y if keep_y else None, x if keep_x else None, z if keep_z else None)
    out.node = Node(op, (p, q), saved, NO_STATIC, guards, y)
    return out


def record(op: Op, args: tuple[Any, ...], static: dict[str, Any]) -> Any:
    """Run `op` on tensors and arrays, and put it on the tape when a gradient may be asked for."""
    arrays = []
    parents: list[Node | None] = []
    wanted = versioned = foreign = False
    for arg in args:
        if isinstance(arg, Variable):
            cls = type(arg)
            arrays.append(arg.data)
            parents.append(arg.node)
            if arg.node is not None:
                wanted = True
            if arg.version is not None:
                versioned = True
        else:
            kind = type(arg)
            if kind is np.ndarray:
                foreign = True
            elif kind is not float and kind is not int:
                if isinstance(arg, np.generic):
                    arg = arg.item()  # as weak as a Python number: it never widens a tensor
                else:
                    arg, foreign = backend.plain(arg, op.__name__), True
            arrays.append(arg)
            parents.append(None)
    try:
        y = op.value(*arrays, **static)
    except TinygradRNNError:
        raise
    except REFUSALS as error:
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
    if not wanted or not op.differentiable or not mode.recording:
        return out
    kept = op.keeps(tuple([node is not None for node in parents]))
    saved = tuple([array if keep else None for array, keep in zip([y, *arrays], kept, strict=True)])
    guards = _guards(args, kept) if versioned else None
    if foreign:
        saved, guards = _held(args, saved, guards)
    out.node = node = Node(op, tuple(parents), saved, static, guards, y)
    if mode.anomaly is not None:
        node.rare = {"place": dict(mode.anomaly)}
    return out


def _guards(args: tuple[Any, ...], kept: tuple[bool, ...]) -> Guards | None:
    guards = [
        (i, arg.version, arg.version[0])
        for i, (arg, keep) in enumerate(zip(args, kept[1:], strict=True), 1)
        if keep and isinstance(arg, Variable) and arg.version is not None
    ]
    return tuple(guards) or None


def _held(
    args: tuple[Any, ...], saved: tuple[Any, ...], guards: Guards | None
) -> tuple[tuple[Any, ...], Guards | None]:
    """`saved` and `guards` with the caller's own arrays in safety, see `hold`."""
    kept = list(saved)
    for i, arg in enumerate(args, 1):
        if kept[i] is None or isinstance(arg, Variable):
            continue
        if type(arg) is np.ndarray and arg.nbytes <= HELD:  # the usual case
            kept[i] = arg.copy()
        elif backend.is_array(kept[i]):
            kept[i], sample = hold(kept[i])
            if sample is not None:
                guards = (*(guards or ()), (i, kept[i], sample))
    return tuple(kept), guards


def hold(array: Array) -> tuple[Array, bytes | None]:
    """An array of the caller for a gradient to read later, when it may have been written: a copy, or a sample of it.

    A copy of a small array costs less than the op that reads it, and of any on a device. Of a large one a sample is
    compared before it is read: it notices what fills, scales or shuffles the array, and may miss a few elements.
    """
    if not isinstance(array, np.ndarray) or array.nbytes <= HELD:
        return array.copy(), None
    return array, _sample(array)


def _sample(array: np.ndarray[Any, Any]) -> bytes:
    """About 500 elements, spread over all axes."""
    count = int(512 ** (1 / array.ndim))
    return array[tuple([slice(None, None, max(1, n // count)) for n in array.shape])].tobytes()


def _check_dtypes(op: Op, arrays: Sequence[Any], result: Any) -> None:
    if op.casts:
        return
    floats = {array.dtype for array in arrays if hasattr(array, "dtype") and array.dtype.kind == "f"}
    if len(floats) > 1:
        raise DtypeError(
            f"{op.__name__}: expected one floating dtype, got {_signature(arrays)}; convert one side with .astype(...)"
        )
    if result.kind in "fc" and result not in floats:
        raise DtypeError(
            f"{op.__name__}: expected floating input for a floating result, got {_signature(arrays)}; "
            "convert it with .astype(...)"
        )


def _signature(arrays: Sequence[Any]) -> str:
    return ", ".join(f"{tuple(a.shape)} {a.dtype}" if hasattr(a, "shape") else repr(a) for a in arrays)


def _explain(op: Op, arrays: Sequence[Any], error: Exception) -> TinygradRNNError:
    owners = {backend.namespace(a).__name__ for a in arrays if backend.is_array(a)}
    if len(owners) > 1:
        return DeviceError(
            f"{op.__name__}: expected arrays of one device, got {' and '.join(sorted(owners))}; move one with .to(...)"
        )
    text = str(error).replace("\n", " ").strip()
    return ShapeError(f"{op.__name__}: got {_signature(arrays)}: {text}")


def _check_finite(op: Op, array: Array, what: str, place: dict[str, object]) -> None:
    if array.dtype.kind != "f" or bool(np.all(np.isfinite(array))):
        return
    where: dict[str, object] = {"op": op.__name__, **place}
    told = ", ".join(f"{key} {value}" for key, value in where.items())
    kind = "NaN" if bool(np.any(np.isnan(array))) else "infinity"
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
_sum_to.vjp(
    lambda g, _y, _x, *, shape, source: broadcast_to(g.reshape((1,) * (len(source) - len(shape)) + shape), source)
)


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


class Part:
    """The gradient of one output, `key`, of a node that has several: what the vjp of a `part` op returns."""

    __slots__ = ("key", "values")

    def __init__(self, key: Any, values: Any) -> None:
        self.key = key
        self.values = values


def below(root: Node) -> dict[Node, None]:
    """`root` and every node it was computed from. Iterative: a chain may be longer than Python's stack.

    The keys of a dict, which keeps the order in which they were found: gradients are added up in the same order in
    every run, and so to the same last bit. A set would follow memory addresses.
    """
    seen = {root: None}
    stack = [root]
    while stack:
        for parent in stack.pop().parents:
            if parent is not None and parent not in seen:
                seen[parent] = None
                stack.append(parent)
    return seen


def _useful(root: Node, targets: set[Node]) -> list[Node]:
    """The nodes below `root` from which a target can be reached, the last made first."""
    useful: set[Node] = set()
    order = []
    for node in sorted(below(root), key=attrgetter("number")):
        if node in targets or not useful.isdisjoint(node.parents):
            useful.add(node)
            order.append(node)
    order.reverse()
    return order


def flow(root: Node, seed: Any, targets: set[Node], cls: type[Variable], *, higher: bool) -> dict[Node, Any]:
    """The gradient at every node of `targets`, for the gradient `seed` at `root`.

    With `higher` the seed and the results are tensors of class `cls` and the walk itself is put on the tape, also
    inside no_grad(); otherwise everything is arrays.
    """
    before = MODE.recording
    try:  # and not `with recording`: an interrupt may come between any two calls
        MODE.recording = higher
        return _flow(root, seed, targets, cls, higher)
    finally:
        MODE.recording = before


def _flow(root: Node, seed: Any, targets: set[Node], cls: type[Variable], higher: bool) -> dict[Node, Any]:
    """`flow`, in three steps per node: take its gradient, ask its op for those of its parents, add them up.

    The first gradient that reaches a node is kept as it came, since it may be shared; the second makes a buffer of
    our own (`owned`), into which later ones are added in place.
    """
    # Outputs of a node with several: their total gradients are known to that node alone, see `Op.vjp_many`.
    inner: dict[Any, list[Node]] = {}
    for target in targets:
        if target.op is not None and target.op.part:
            inner.setdefault(target.parents[0], []).append(target)
    order = _useful(root, {*targets, *inner} if inner else targets)
    grads: dict[Node, Any] = dict.fromkeys(order)
    owned: set[Node] = set()
    if root in grads:
        grads[root] = seed
    found: dict[Node, Any] = {}
    kind = type(seed)
    checking = MODE.anomaly is not None
    for node in order:
        g = grads.pop(node)
        if g is None:
            continue
        # Memory of its own: what was kept as it came may be shared, or a broadcast view.
        if node in targets and (node.op is None or not node.op.part):
            found[node] = g if higher or node in owned else g.copy()
        op = node.op
        if op is None:
            continue
        if node.guards is not None:
            _check_unchanged(op, node.guards)
        parents = node.parents
        if op.many is not None:
            wanted = inner.get(node, ())
            needed = [parent is not None and parent in grads for parent in parents]
            saved = _as_tensors(node, cls) if higher else node.saved
            keys = {part.static["key"] for part in wanted}
            pulled, totals = op.many(g, saved[0], needed, keys, *saved[1:], **node.static)
            for part in wanted:  # several may share memory, also with the gradient of an input
                total = totals.get(part.static["key"])
                if total is not None:
                    found[part] = total if higher else total.copy()
            if not higher:  # memory that such an op makes is nobody else's
                for maker, gx in zip(parents, pulled, strict=True):
                    if maker is not None and gx is not None and grads.get(maker) is None:
                        owned.add(maker)
        elif higher or node.static or not op.short:
            pulled = _pull(node, g, grads, cls, higher)
        elif len(parents) == 2:  # the same as _pull, written out for what a recurrent step is made of
            (left, right), (y, a, b), (p, q) = op.short, node.saved, parents
            pulled = (left(g, y, a, b) if p in grads else None, right(g, y, a, b) if q in grads else None)
        else:
            pulled = (op.short[0](g, *node.saved) if parents[0] in grads else None,)
        for i, gx in enumerate(pulled):
            if gx is None:
                continue
            parent: Any = parents[i]
            if type(gx) is Scatter:
                if checking:
                    _check_gradient(node, i, gx.values)
                if not higher:
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
            elif type(gx) is Part:
                if grads[parent] is None:
                    grads[parent] = {}
                old = grads[parent].get(gx.key)
                grads[parent][gx.key] = gx.values if old is None else old + gx.values
                continue
            if type(gx) is not kind or gx.dtype is not parent.dtype or gx.shape != parent.shape:
                gx = _fit(op, i, gx, parent, kind)
            if checking:
                _check_gradient(node, i, gx)
            old = grads[parent]
            if old is None:
                grads[parent] = gx
            elif parent in owned:
                np.add(old, gx, out=old)
            else:
                total = old + gx
                if type(total) is not kind:  # NumPy turns the sum of two 0-d arrays into a scalar
                    total = np.asarray(total)
                grads[parent] = total
                if not higher:
                    owned.add(parent)
    return found


def _pull(node: Node, g: Any, useful: dict[Node, Any], cls: type[Variable], higher: bool) -> Sequence[Any]:
    """The gradients of the inputs of `node`, None where none is useful."""
    op: Any = node.op
    saved = _as_tensors(node, cls) if higher else node.saved
    needed = [parent is not None and parent in useful for parent in node.parents]
    return pull(op, g, saved[0], saved[1:], needed, node.static)  # type: ignore[no-any-return]


def _as_tensors(node: Node, cls: type[Variable]) -> tuple[Any, ...]:
    """What `node` saved, with its place on the tape."""
    versions = {i: version for i, version, _ in node.guards or () if type(version) is list}
    owners = (None if node.op is not None and node.op.many else node, *node.parents)
    return tuple(
        [
            wrap(cls, x, owners[i], versions.get(i))
            if x is not None and (owners[i] is not None or i in versions)
            else x
            for i, x in enumerate(node.saved)
        ]
    )


def pull(op: Any, g: Any, y: Any, inputs: Sequence[Any], needed: Sequence[bool], static: dict[str, Any]) -> Any:
    """The gradients of the inputs that are needed, None for the others, before broadcasting is undone."""
    if op._joint is not None:
        return op._joint(g, y, needed, *inputs, **static)
    if op._each is not None:
        return [op._each(i, g, **static) if need else None for i, need in enumerate(needed)]
    return [
        rule(g, y, *inputs, **static) if need and rule is not None else None
        for rule, need in zip(op._vjps, needed, strict=True)
    ]


def _fit(op: Op, i: int, g: Any, parent: Node, kind: Any) -> Any:
    """Undo broadcasting, then insist on kind, shape and dtype."""
    if isinstance(g, np.generic) and kind is np.ndarray:
        g = np.asarray(g)  # NumPy turns results without an axis into scalars
    if type(g) is kind:
        if op.broadcasts and g.shape != parent.shape and len(g.shape) >= len(parent.shape):
            g = sum_to(g, parent.shape)
        if g.shape == parent.shape and g.dtype == parent.dtype:
            return g
    raise GradientError(
        f"vjp of {op.__name__}, input {i}: expected a gradient of shape {parent.shape} {parent.dtype}, "
        f"got {_signature([g])}; the rule of this op is wrong"
    )


def _check_gradient(node: Node, i: int, g: Any) -> None:
    op: Any = node.op
    place = (node.rare or {}).get("place", {})
    _check_finite(op, g.data if isinstance(g, Variable) else g, f"gradient (input {i})", place)


def _check_unchanged(op: Op, guards: Guards) -> None:
    for _, watched, seen in guards:
        if type(watched) is not list:
            if _sample(watched) == seen:
                continue
            times = ""
        elif watched[0] == seen:
            continue
        else:
            times = f" {watched[0] - seen} time(s)"
        raise InPlaceError(
            f"{op.__name__}: an input was changed in place{times} after the op saved it for its gradient; change a "
            "copy, or take the gradient first"
        )


# --------------------------------------------------------------------------------- global modes


class _Setting(contextlib.ContextDecorator):
    """Final. Gives an attribute of MODE another value inside.

    Both methods end in an assignment and call nothing behind it: an exception of a signal handler (Ctrl-C) finds them
    either not begun or done. A generator's `finally` would wait until the traceback is gone, which a notebook keeps.
    """

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.value = value

    def _recreate_cm(self) -> _Setting:
        return _Setting(self.name, copy.copy(self.value))

    def __enter__(self) -> None:
        self.before = getattr(MODE, self.name)
        MODE.__dict__[self.name] = self.value

    def __exit__(self, *_error: object) -> None:
        MODE.__dict__[self.name] = self.before


def no_grad() -> _Setting:
    """Inside, ops compute without being recorded."""
    return _Setting("recording", False)


def recording(on: bool = True) -> _Setting:
    """Inside, ops are recorded (or not), whatever was the rule outside."""
    return _Setting("recording", on)


def anomaly() -> _Setting:
    """Inside, every value and every gradient is checked: the first NaN or infinity raises NonFiniteError.

    The error names the op and, inside `unroll`, the layer, the timestep and the gate. Slow.
    """
    return _Setting("anomaly", {})


def listen(listener: Callable[[str, Any], None] | None) -> _Setting:
    """Inside, `listener(name, value)` hears every `tap`."""
    return _Setting("listener", listener)


def tap(name: str, value: Any) -> Any:
    """Announce the intermediate value `name` (a gate, a candidate) and return it unchanged; free when nobody listens.

    Inside `anomaly` what was recorded for it is labelled, so that a bad gradient there can be told by its gate.
    """
    if not isinstance(name, str):
        raise InputError(f"tap: expected (name, value) with a text as name, got {type(name).__name__}; swap them")
    if MODE.anomaly is not None and isinstance(value, Variable) and value.node is not None:
        _label(value.node, name, MODE.anomaly)
    if MODE.listener is not None:
        MODE.listener(name, value)
    return value


def _label(node: Node, gate: str, place: dict[str, object]) -> None:
    """Write `gate` into the place of `node` and of everything below it that is of the same step and has no gate yet."""
    stack = [node]
    while stack:
        known = stack.pop()
        if known.rare is not None and known.rare.get("place") == place:
            known.rare["place"] = {**place, "gate": gate}
            stack += [parent for parent in known.parents if parent is not None]
