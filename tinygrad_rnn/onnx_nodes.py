"""The nodes of an ONNX graph: what writes them, and a rule for each op of a traced step.

A step is traced for a fixed number of rows, and a graph is for any. So it is traced for the numbers in `BATCHES`: a
size that differs between them has to be so many times the rows plus a constant, see `Rows`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np

from tinygrad_rnn import engine, ops
from tinygrad_rnn.compile.trace import Graph, Symbol, ancestors, same
from tinygrad_rnn.engine import Op
from tinygrad_rnn.ops import elementwise, index, linear, reduce, shape

Array = np.ndarray[Any, Any]

BATCHES = (2, 3, 5)  # the numbers of rows a step is traced for; not 1, which broadcasts and can be squeezed away
FIRST, LAST = -(2**63), 2**63 - 1  # to a Slice: as far as the axis goes


@dataclass(frozen=True)
class Rows:
    """A size that depends on the number B of rows: times B + plus."""

    times: int
    plus: int


@dataclass(frozen=True)
class Value:
    """A symbol of a step for any number of rows: sizes in `shape` and `static` may be `Rows`; `fixed`: none is."""

    symbol: Symbol
    shape: tuple[Any, ...]
    static: dict[str, Any]
    fixed: bool


class Differs(Exception):
    """A value that is another one for another number of rows."""


class Writer:
    """Final. Writes the nodes of the model's graph, or of a loop's body (`inside`), which reads the model's by name.

    No name is there twice, in bodies neither; all constants are initialisers of the model's graph.
    """

    def __init__(self, onnx: Any, params: Mapping[str, Array]) -> None:
        self.onnx = onnx
        self.params = params
        self.constants: dict[str, Array] = {}
        self.known: dict[Any, str] = {}  # dtype, shape and bytes of a constant without a name of its own -> its name
        self.taken = set(params)  # whether the graph reads them or not: a tap may have the same name
        self.prefix = ""
        self.nodes: list[Any] = []
        self.where = ""  # the author's file and line of what is being written
        self.values: dict[Symbol, str] = {}
        self.x = ""  # an array of B rows
        self.rows = ""  # the vector (B)

    def inside(self, prefix: str) -> Writer:
        """A writer for the body of a loop."""
        body = copy.copy(self)
        body.prefix, body.nodes, body.values, body.rows = prefix, [], {}, ""
        return body

    def described(self, name: str, dtype: Any, shape: tuple[int | str, ...]) -> Any:
        """An input or output of a graph."""
        self.taken.add(name)
        return self.onnx.helper.make_tensor_value_info(name, self.kind(dtype), shape)

    def kind(self, dtype: Any) -> int:
        return int(self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def name(self, wish: str) -> str:
        """`wish` behind the prefix, with a number where that is taken."""
        found, count = self.prefix + wish, 1
        while found in self.taken:
            count += 1
            found = f"{self.prefix}{wish}.{count}"
        self.taken.add(found)
        return found

    def append(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        facts = {"name": outputs[0], "doc_string": self.where}
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, outputs, **facts, **attributes))

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; the name of that."""
        output = self.name(operator.lower())
        self.append(operator, inputs, [output], **attributes)
        return output

    def parameter(self, name: str) -> str:
        self.constants[name] = self.params[name]
        return name

    def constant(self, value: Any, dtype: Any, name: str = "") -> str:
        """The name of an array that is part of the file; `name` is its own, others share one for the same values."""
        array = np.array(value, dtype)
        if not name:
            key = (array.dtype, array.shape, array.tobytes())
            name = self.known.setdefault(key, f"constant.{len(self.known)}")
        self.constants[name] = array
        self.taken.add(name)
        return name

    def integers(self, sizes: Sequence[Any]) -> str:
        """A vector of whole numbers, some of which may depend on the number of rows."""
        if not any(isinstance(size, Rows) for size in sizes):
            return self.constant(sizes, np.int64)
        self.rows = self.rows or self.node("Shape", self.x, start=0, end=1)
        pairs = [size if isinstance(size, Rows) else Rows(0, size) for size in sizes]
        times = self.constant([pair.times for pair in pairs], np.int64)
        return self.node("Add", self.node("Mul", self.rows, times), self.constant([p.plus for p in pairs], np.int64))

    def cast(self, value: str, dtype: Any, to: Any) -> str:
        return value if dtype == to else self.node("Cast", value, to=self.kind(to))

    def operand(self, value: Any, dtype: Any) -> str:
        """The name of an argument of an op, a symbol or a number, in `dtype`."""
        if isinstance(value, Symbol):
            return self.cast(self.values[value], value.dtype, dtype)
        return self.constant(value, dtype)


# ----------------------------------------------------------------------------------------- op by op

Rule = Callable[[Writer, Value], Any]


def _working(dtype: Any) -> Any:
    """The dtype to compute in: ONNX has no arithmetic for booleans, onnxruntime little for integers but int64."""
    return dtype if dtype.kind == "f" else np.dtype(np.int64)


def _of(operator: str, **attributes: Any) -> Rule:
    """The rule of an op that has its like in ONNX."""

    def rule(w: Writer, v: Value) -> None:
        work = _working(v.symbol.dtype)
        done = w.node(operator, *[w.operand(a, work) for a in v.symbol.args], **attributes)
        w.cast(done, work, v.symbol.dtype)

    return rule


def _comparison(operator: str, negated: bool = False) -> Rule:
    def rule(w: Writer, v: Value) -> None:
        kinds = [a.dtype if isinstance(a, Symbol) else a for a in v.symbol.args]
        work = _working(np.result_type(*kinds))
        done = w.node(operator, *[w.operand(a, work) for a in v.symbol.args])
        if negated:
            w.node("Not", done)

    return rule


def _reduction(operator: str) -> Rule:
    def rule(w: Writer, v: Value) -> None:
        (x,), axes = v.symbol.args, v.static["axes"]
        work = _working(v.symbol.dtype)
        value = w.operand(x, work)
        if not axes:  # of a scalar
            value, axes = w.node("Unsqueeze", value, w.integers([0])), (0,)
        keep = v.static.get("keepdims", True) and bool(v.static["axes"])
        w.cast(w.node(operator, value, w.integers(axes), keepdims=int(keep)), work, v.symbol.dtype)

    return rule


def _along(operator: str) -> Rule:
    """Softmax and its logarithm, along one axis."""
    return lambda w, v: w.node(operator, w.operand(v.symbol.args[0], v.symbol.dtype), axis=v.static["axes"][0])


def _log1p(w: Writer, v: Value) -> None:
    """log(u) x / (u - 1) for u = 1 + x as it was rounded, x itself where that is 1: exact for small x (Kahan)."""
    dtype = v.symbol.dtype
    x, one = w.operand(v.symbol.args[0], dtype), w.operand(1.0, dtype)
    u = w.node("Add", x, one)
    exact = w.node("Div", w.node("Mul", w.node("Log", u), x), w.node("Sub", u, one))
    w.node("Where", w.node("Equal", u, one), x, exact)


def _composed(make: Callable[..., Any]) -> Rule:
    """The rule of an elementwise op that ONNX or onnxruntime lacks: by those of the ops that `make` composes it of."""

    def rule(w: Writer, v: Value) -> None:
        graph = Graph(None, 1)
        leaves = []
        for arg in v.symbol.args:
            if isinstance(arg, Symbol):
                leaf = graph.leaf("x", "x", arg.shape, arg.dtype)
                w.values[leaf] = w.values[arg]
                leaves.append(leaf)
            else:
                leaves.append(arg)
        with engine.recording():
            result = make(*leaves)
        for s in ancestors([result]):
            if s.op is not None:
                RULES[s.op](w, Value(s, s.shape, s.static, fixed=True))
                w.values[s] = w.nodes[-1].output[0]

    return rule


def _single(operator: str) -> Rule:
    """The rule of an op that has its like in ONNX, which onnxruntime computes in float32 alone."""

    def rule(w: Writer, v: Value) -> None:
        dtype = v.symbol.dtype
        done = w.node(operator, *[w.cast(w.operand(a, dtype), dtype, np.dtype("float32")) for a in v.symbol.args])
        w.cast(done, np.dtype("float32"), dtype)

    return rule


def _remainder(w: Writer, v: Value) -> None:
    work = _working(v.symbol.dtype)
    a, b = (w.operand(arg, work) for arg in v.symbol.args)
    w.cast(_rest(w, a, b, work), work, v.symbol.dtype)


def _floor_divide(w: Writer, v: Value) -> None:
    """The whole number that is next to (a - a % b) / b."""
    work = _working(v.symbol.dtype)
    a, b = (w.operand(arg, work) for arg in v.symbol.args)
    whole = w.node("Div", w.node("Sub", a, _rest(w, a, b, work)), b)
    w.cast(w.node("Round", whole) if work.kind == "f" else whole, work, v.symbol.dtype)


def _rest(w: Writer, a: str, b: str, work: Any) -> str:
    """a % b, from C's fmod: with the sign of b."""
    if work.kind != "f":
        return w.node("Mod", a, b)
    rest = w.node("Mod", a, b, fmod=1)
    across = w.node("Less", w.node("Mul", w.node("Sign", rest), w.node("Sign", b)), w.operand(0.0, work))
    return w.node("Where", across, w.node("Add", rest, b), rest)


def _logical(operator: str) -> Rule:
    return lambda w, v: w.node(operator, *[w.operand(a, np.dtype(bool)) for a in v.symbol.args])


def _arctan2(y: Any, x: Any) -> Any:
    steep = ops.equal(x, 0)
    angle = ops.arctan(y / ops.where(steep, 1.0, x))
    left = ops.where(ops.less(y, 0), angle - math.pi, angle + math.pi)
    return ops.where(steep, ops.sign(y) * (math.pi / 2), ops.where(ops.less(x, 0), left, angle))


def _place(operator: str) -> Rule:
    """argmax and argmin, along one axis."""

    def rule(w: Writer, v: Value) -> None:
        (x,) = v.symbol.args
        w.node(operator, w.operand(x, _working(x.dtype)), axis=v.static["axis"], keepdims=0)

    return rule


def _ordered(part: int) -> Rule:
    """The sorted numbers (part 0), or their places (part 1)."""

    def rule(w: Writer, v: Value) -> None:
        (x,), axis = v.symbol.args, v.static["axis"]
        work = _working(x.dtype)
        outputs = [w.name("sorted"), w.name("places")]
        w.append("TopK", [w.operand(x, work), w.integers([v.shape[axis]])], outputs, axis=axis, largest=0)
        w.node("Identity", outputs[1]) if part else w.node("Cast", outputs[0], to=w.kind(v.symbol.dtype))

    return rule


def _triangle(w: Writer, v: Value) -> None:
    k = w.constant(v.static["k"], np.int64)
    w.node("Trilu", w.values[v.symbol.args[0]], k, upper=int(not v.static["lower"]))


def _cos(w: Writer, v: Value) -> None:
    """In float64 the sine of x + pi/2: onnxruntime before 1.29 has no cosine there."""
    x, dtype = w.operand(v.symbol.args[0], v.symbol.dtype), v.symbol.dtype
    if dtype == np.float64:
        w.node("Sin", w.node("Add", x, w.operand(math.pi / 2, dtype)))
    else:
        w.node("Cos", x)


def _clip(w: Writer, v: Value) -> None:
    work = v.symbol.dtype
    w.node("Clip", *[w.operand(a, work) for a in (*v.symbol.args, v.static["low"], v.static["high"])])


def _where(w: Writer, v: Value) -> None:
    condition, *values = v.symbol.args
    work = _working(v.symbol.dtype)
    done = w.node("Where", w.operand(condition, np.dtype(bool)), *[w.operand(a, work) for a in values])
    w.cast(done, work, v.symbol.dtype)


def _astype(w: Writer, v: Value) -> None:
    (x,) = v.symbol.args
    w.node("Cast", w.values[x], to=w.kind(v.static["dtype"]))


def _cumsum(w: Writer, v: Value) -> None:
    work = _working(v.symbol.dtype)
    done = w.node("CumSum", w.operand(v.symbol.args[0], work), w.constant(v.static["axis"], np.int64))
    w.cast(done, work, v.symbol.dtype)


def _reshape(w: Writer, v: Value) -> None:
    _reshaped(w, w.values[v.symbol.args[0]], v.static["shape"])


def _reshaped(w: Writer, value: str, shape: tuple[Any, ...]) -> str:
    """`value` in another shape. One size that depends on the rows is -1: so the others are seen in the file."""
    free = [isinstance(size, Rows) for size in shape]
    if sum(free) == 1 and 0 not in shape:
        shape = tuple(-1 if open else size for open, size in zip(free, shape, strict=True))
    return w.node("Reshape", value, w.integers(shape), allowzero=int(0 in shape))


def _transpose(w: Writer, v: Value) -> None:
    w.node("Transpose", w.values[v.symbol.args[0]], perm=v.static["axes"])


def _broadcast_to(w: Writer, v: Value) -> None:
    w.node("Expand", w.values[v.symbol.args[0]], w.integers(v.static["shape"]))


def _concatenate(w: Writer, v: Value) -> None:
    w.node("Concat", *[w.operand(a, v.symbol.dtype) for a in v.symbol.args], axis=v.static["axis"])


def _stack(w: Writer, v: Value) -> None:
    axis = v.static["axis"]
    parts = [w.node("Unsqueeze", w.operand(a, v.symbol.dtype), w.integers([axis])) for a in v.symbol.args]
    w.node("Concat", *parts, axis=axis)


def _flip(w: Writer, v: Value) -> None:
    _sliced(w, w.values[v.symbol.args[0]], {v.static["axis"]: (LAST, FIRST, -1)})


def _pad(w: Writer, v: Value) -> None:
    before, after = zip(*v.static["widths"], strict=True)
    w.node("Pad", w.values[v.symbol.args[0]], w.integers([*before, *after]))


def _sliced(w: Writer, value: str, parts: Mapping[int, tuple[Any, Any, int]]) -> str:
    """`value` from start to stop by steps, along each axis in `parts`."""
    starts, stops, steps = zip(*parts.values(), strict=True)
    return w.node("Slice", value, w.integers(starts), w.integers(stops), w.integers(list(parts)), w.integers(steps))


def _view(w: Writer, v: Value) -> None:
    """What NumPy answers with a view: integers, slices, None and Ellipsis."""
    parts = v.static["index"] if isinstance(v.static["index"], tuple) else (v.static["index"],)
    named = sum(part is not None and part is not Ellipsis for part in parts)
    rest = (slice(None),) * (len(v.static["shape"]) - named)
    at = next((i for i, part in enumerate(parts) if isinstance(part, EllipsisType)), len(parts))
    cuts: dict[int, tuple[Any, Any, int]] = {}
    dropped, added = [], []
    axis = kept = 0
    for part in (*parts[:at], *rest, *parts[at + 1 :]):
        if part is None:
            added.append(kept)
            kept += 1
            continue
        if isinstance(part, slice):
            step = 1 if part.step is None else int(part.step)
            low, high = (0, LAST) if step > 0 else (LAST, FIRST)
            cut = (low if part.start is None else part.start, high if part.stop is None else part.stop, step)
            if cut != (0, LAST, 1):
                cuts[axis] = cut
            kept += 1
        else:
            behind = Rows(part.times, part.plus + 1) if isinstance(part, Rows) else LAST if part == -1 else part + 1
            cuts[axis] = (part, behind, 1)
            dropped.append(axis)
        axis += 1
    value = w.values[v.symbol.args[0]]
    if cuts:
        value = _sliced(w, value, cuts)
    if dropped:
        value = w.node("Squeeze", value, w.integers(dropped))
    if added:
        value = w.node("Unsqueeze", value, w.integers(added))
    if not (cuts or dropped or added):
        w.node("Identity", value)


def _places(v: Value, outer: tuple[Any, ...]) -> tuple[Array, int, bool]:
    """Where an index with arrays and masks finds its numbers in an array of shape `outer` laid out in a row.

    The places, the length of the row, and whether each row of the batch is one: it is then the first axis, which the
    index leaves alone, and the places are those in every one. Raises Differs for an index that mixes rows.
    """
    indices = v.symbol.static["index"]
    if not same(indices, v.static["index"]):
        raise Differs
    if not any(isinstance(size, Rows) for size in outer):
        length = math.prod(outer)
        return np.arange(length).reshape(outer)[indices], length, False
    if outer[0] != Rows(1, 0) or any(isinstance(size, Rows) for size in outer[1:]):
        raise Differs
    length = math.prod(outer[1:])
    for B in BATCHES:
        places = np.arange(B * length).reshape(B, *outer[1:])[indices]
        rows = np.arange(0, B * length, length).reshape(B, *(1,) * (places.ndim - 1))
        if places.shape[:1] != (B,) or not np.array_equal(places, places[:1] + rows):
            raise Differs
    return places[0], length, True


def _getitem(w: Writer, v: Value) -> None:
    parts = v.static["index"] if isinstance(v.static["index"], tuple) else (v.static["index"],)
    chosen = [axis for axis, part in enumerate(parts) if not same(part, slice(None))]
    if len(chosen) == 1 and getattr(parts[chosen[0]], "dtype", None) in (np.int64, np.int32):  # along one axis
        at = w.constant(parts[chosen[0]], np.int64)
        w.node("Gather", w.values[v.symbol.args[0]], at, axis=chosen[0])
        return
    places, length, each = _places(v, v.static["shape"])
    flat = w.node("Reshape", w.values[v.symbol.args[0]], w.integers([-1, length] if each else [-1]))
    w.node("Gather", flat, w.constant(places, np.int64), axis=int(each))


def _scatter(w: Writer, v: Value) -> None:
    places, length, each = _places(v, v.static["shape"])
    work = _working(v.symbol.dtype)
    rows = (Rows(1, 0),) if each else ()
    spread = w.node("Expand", w.operand(v.symbol.args[0], work), w.integers([*rows, *places.shape]))
    values = w.node("Reshape", spread, w.integers([-1, places.size] if each else [-1]))
    at = w.node("Expand", w.constant(places.ravel(), np.int64), w.integers([*rows, places.size]))
    zeros = w.node("Expand", w.constant(0, work), w.integers([*rows, length]))
    added = w.node("ScatterElements", zeros, at, values, axis=int(each), reduction="add")
    _reshaped(w, w.cast(added, work, v.symbol.dtype), v.static["shape"])


# op -> what writes its nodes, of which the last one gives the result
RULES: dict[Op, Rule] = {
    ops.add: _of("Add"),
    ops.sub: _of("Sub"),
    ops.mul: _of("Mul"),
    ops.div: _of("Div"),
    ops.neg: _of("Neg"),
    ops.pow: _of("Pow"),
    ops.exp: _of("Exp"),
    ops.log: _of("Log"),
    ops.log1p: _log1p,
    ops.sqrt: _of("Sqrt"),
    ops.abs: _of("Abs"),
    ops.sin: _of("Sin"),
    ops.cos: _cos,
    ops.tanh: _of("Tanh"),
    ops.sigmoid: _of("Sigmoid"),
    ops.relu: _of("Relu"),
    ops.softplus: _of("Softplus"),
    ops.sign: _of("Sign"),
    ops.maximum: _of("Max"),
    ops.minimum: _of("Min"),
    ops.equal: _comparison("Equal"),
    ops.not_equal: _comparison("Equal", negated=True),
    ops.greater: _comparison("Greater"),
    ops.greater_equal: _comparison("GreaterOrEqual"),
    ops.less: _comparison("Less"),
    ops.less_equal: _comparison("LessOrEqual"),
    ops.logical_and: _logical("And"),
    ops.logical_or: _logical("Or"),
    ops.logical_xor: _logical("Xor"),
    ops.logical_not: _logical("Not"),
    ops.isnan: _composed(lambda x: ops.not_equal(x, x)),
    ops.isinf: _composed(lambda x: ops.equal(ops.abs(x), math.inf)),
    ops.isfinite: _composed(lambda x: ops.less(ops.abs(x), math.inf)),
    ops.floor: _of("Floor"),
    ops.ceil: _of("Ceil"),
    ops.rint: _of("Round"),
    ops.trunc: _composed(lambda x: ops.sign(x) * ops.floor(ops.abs(x))),
    ops.floor_divide: _floor_divide,
    ops.remainder: _remainder,
    ops.exp2: _composed(lambda x: ops.exp(x * math.log(2))),
    ops.expm1: _composed(lambda x: ops.tanh(x * 0.5) * (ops.exp(x) + 1.0)),
    ops.log2: _composed(lambda x: ops.log(x) * (1 / math.log(2))),
    ops.log10: _composed(lambda x: ops.log(x) * (1 / math.log(10))),
    ops.logaddexp: _composed(lambda a, b: ops.maximum(a, b) + ops.log1p(ops.exp(-ops.abs(a - b)))),
    ops.tan: _composed(lambda x: ops.sin(x) / ops.cos(x)),
    ops.sinh: _composed(lambda x: (ops.expm1(x) - ops.expm1(-x)) * 0.5),
    ops.cosh: _composed(lambda x: (ops.exp(x) + ops.exp(-x)) * 0.5),
    ops.arcsin: _composed(lambda x: ops.arctan(x / ops.sqrt((1.0 - x) * (1.0 + x)))),
    ops.arccos: _composed(lambda x: math.pi / 2 - ops.arcsin(x)),
    ops.arctan: _single("Atan"),
    ops.arctan2: _composed(_arctan2),
    ops.arcsinh: _composed(
        lambda x: ops.sign(x) * ops.log1p(ops.abs(x) + x * x / (ops.sqrt(x * x + 1.0) + 1.0)),
    ),
    ops.arccosh: _composed(lambda x: ops.log(x + ops.sqrt(x - 1.0) * ops.sqrt(x + 1.0))),
    ops.arctanh: _composed(lambda x: (ops.log1p(x) - ops.log1p(-x)) * 0.5),
    ops.erf: _single("Erf"),
    ops.erfc: _composed(lambda x: 1.0 - ops.erf(x)),
    ops.where: _where,
    elementwise._clip: _clip,
    elementwise._astype: _astype,
    elementwise._discrete: _astype,
    linear._matmul: _of("MatMul"),
    reduce._sum: _reduction("ReduceSum"),
    reduce._max: _reduction("ReduceMax"),
    reduce._min: _reduction("ReduceMin"),
    reduce._norm: _reduction("ReduceL2"),
    reduce._logsumexp: _reduction("ReduceLogSumExp"),
    reduce._softmax: _along("Softmax"),
    reduce._log_softmax: _along("LogSoftmax"),
    reduce._cumsum: _cumsum,
    reduce._argmax: _place("ArgMax"),
    reduce._argmin: _place("ArgMin"),
    index._sort: _ordered(0),
    index._argsort: _ordered(1),
    shape._triangle: _triangle,
    shape._reshape: _reshape,
    shape._transpose: _transpose,
    shape._concatenate: _concatenate,
    shape._stack: _stack,
    shape._flip: _flip,
    shape._pad: _pad,
    engine._broadcast_to: _broadcast_to,
    index._view: _view,
    index._getitem: _getitem,
    index._scatter: _scatter,
}
