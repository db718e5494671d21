"""A trained model as an ONNX graph: the standard recurrent operators where they fit, else a Scan of the cell's step.

The graph takes ``symbols`` (T, B) and every state by its name (``layers.0.h``), and gives ``logits`` (T, B, V) and
every state after the last timestep (``layers.0.h.next``); T and B are free. So one file scores a text and, given its
own states again, writes one. The body of a Scan is the traced step, each op of it by its rule in `RULES`.

A step is traced for a fixed number of rows, and a graph is for any. So it is traced for three numbers of rows: a size
that differs between them has to be so many times the rows plus a constant, see `Rows`.
"""

from __future__ import annotations

import copy
import importlib.metadata
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

import numpy as np

from tinygrad_rnn import backend, engine, ops
from tinygrad_rnn.cell import Cell, specification
from tinygrad_rnn.checkpoint import to_json, write_new_file
from tinygrad_rnn.compile.trace import Step, Symbol, Untraceable, ancestors, depends, same, trace_step
from tinygrad_rnn.data import Vocabulary
from tinygrad_rnn.engine import Op
from tinygrad_rnn.errors import DtypeError, InputError, ShapeError
from tinygrad_rnn.model import Model, detach
from tinygrad_rnn.ops import elementwise, index, linear, reduce, shape
from tinygrad_rnn.run import versions
from tinygrad_rnn.tensor import Tensor

Array = np.ndarray[Any, Any]

# 18 is the first opset in which every reduction takes its axes as an input. onnxruntime reads it, with IR version 8,
# since 2023 (tried: 1.15). Nothing newer is needed, and older readers refuse a file that claims more than it needs.
OPSET, IR_VERSION = 18, 8
BATCHES = (2, 3, 5)  # the numbers of rows a step is traced for; not 1, which broadcasts and can be squeezed away
FIRST, LAST = -(2**63), 2**63 - 1  # to a Slice: as far as the axis goes


def to_onnx(
    model: Model, params: Mapping[str, Any], *, vocabulary: Vocabulary | None = None, scan: bool = False
) -> Any:
    """`model` as it is in evaluation: an onnx.ModelProto that onnx.checker has accepted.

    `params` are tensors or arrays by our names. With `scan` every cell becomes a Scan, rnn, lstm and gru too; in
    float64 they do in any case, because onnxruntime has their operators for float32 alone. The metadata are texts by
    name: tinygrad_rnn (our version), cell, and in JSON cell_options, wrap, start (the number that each state starts
    from) and vocabulary, where one is given.
    Raises InputError without the package onnx, for a missing parameter, and for a step that no ONNX graph can stand
    for, with the author's file and line; ShapeError and DtypeError for parameters that are not the model's.
    """
    onnx = _onnx()
    main = _Writer(onnx, _checked(model, params))
    dtype = main.params["readout.W"].dtype
    inputs = [main.described("symbols", np.int64, ("T", "B"))]
    outputs = [main.described("logits", dtype, ("T", "B", model.V))]
    start: dict[str, float] = {}
    for k, cell in enumerate(model.cells):
        for name, spec in specification(cell)[0].items():
            start[f"layers.{k}.{name}"] = float(spec.start)
            inputs.append(main.described(f"layers.{k}.{name}", dtype, ("B", *spec.shape)))
            outputs.append(main.described(f"layers.{k}.{name}.next", dtype, ("B", *spec.shape)))
    h = _embedded(main, model, dtype)
    for k, cell in enumerate(model.cells):
        operator = None if scan or dtype != np.float32 else standard_operator(cell)
        h = _looped(main, cell, k, h, dtype) if operator is None else _standard(main, operator, cell, k, h)
    product = main.node("MatMul", h, main.parameter("readout.W"))
    main.append("Add", [product, main.parameter("readout.b")], ["logits"])
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in main.constants.items()]
    version = versions()["tinygrad_rnn"]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(main.nodes, model.config.cell, inputs, outputs, constants),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="tinygrad_rnn",
        producer_version=version,
    )
    facts = {"cell_options": model.config.cell_options, "wrap": model.config.wrap, "start": start}
    if vocabulary is not None:
        facts["vocabulary"] = vocabulary.to_json()
    texts = {name: to_json(value, name, indent=None) for name, value in facts.items()}
    onnx.helper.set_model_props(proto, {"tinygrad_rnn": version, "cell": model.config.cell, **texts})
    onnx.checker.check_model(proto, full_check=True)
    return proto


def save_onnx(path: str | os.PathLike[str], proto: Any, *, overwrite: bool = False) -> None:
    """Write what `to_onnx` made, whole or not at all.

    Raises FileError where the disk refuses, or a file is there already and `overwrite` is off.
    """
    write_new_file(path, proto.SerializeToString(), overwrite=overwrite)


def onnx_inputs(proto: Any) -> dict[str, str]:
    """Every input of what `to_onnx` made, by name: its shape and dtype, as in ``(T, B) int64``."""
    onnx = _onnx()
    found = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        sizes = ", ".join(axis.dim_param or str(axis.dim_value) for axis in kind.shape.dim)
        found[value.name] = f"({sizes}) {onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)}"
    return found


def onnxruntime_version() -> str | None:
    """The version of the package onnxruntime, None where it is not installed."""
    try:
        return importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:
        return None


def onnx_session(proto: Any) -> Any:
    """An onnxruntime.InferenceSession of what `to_onnx` made, on the CPU.

    Raises InputError without onnxruntime, or where it has not all of the graph's operators (old ones, in float64).
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("onnxruntime is not installed; pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings would go to the caller's stderr
    try:
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"onnxruntime {onnxruntime.__version__} does not take the graph ({text}); install a newer one"
        ) from error


def onnx_difference(proto: Any, model: Model, params: Mapping[str, Any], rng: np.random.Generator) -> float:
    """How far onnxruntime is from `model` at most, in logits and states; relative for numbers above 1.

    Both read random symbols: seven timesteps of three rows from the start, then one of the first two rows, which go on.
    Infinity where a number is not finite. Raises InputError without onnxruntime.
    """
    session = onnx_session(proto)
    names = [output.name for output in session.get_outputs()]
    tensors = {name: value if isinstance(value, Tensor) else Tensor(value) for name, value in params.items()}
    xp = backend.namespace(tensors["readout.W"].data)
    state: Any = model.start(3, tensors)
    worst = 0.0
    for T, B in ((7, 3), (1, 2)):
        symbols = rng.integers(0, model.V, (T, B))
        state = [{name: value[:B] for name, value in layer.items()} for layer in state]
        theirs = session.run(names, {"symbols": symbols, **_by_name(state)})
        with engine.no_grad():
            done = model.forward(tensors, backend.from_host(symbols, xp), state, executor="unroll")
        state = detach(done.state)
        ours = {"logits": backend.to_host(done.logits.data)}
        ours |= {f"{name}.next": value for name, value in _by_name(state).items()}
        for name, value in zip(names, theirs, strict=True):
            if not (np.isfinite(value).all() and np.isfinite(ours[name]).all()):
                return math.inf
            worst = max(worst, float(np.max(np.abs(value - ours[name]) / np.maximum(np.abs(ours[name]), 1.0))))
    return worst


def _by_name(state: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """The states of all layers as the graph names them, on the host."""
    return {
        f"layers.{k}.{name}": backend.to_host(value) for k, layer in enumerate(state) for name, value in layer.items()
    }


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise InputError('onnx is not installed; pip install "tinygrad_rnn[onnx]"') from error
    return onnx


def _checked(model: Model, params: Mapping[str, Any]) -> dict[str, Array]:
    """The parameters that the model declares, as arrays of one floating dtype on the host."""
    arrays: dict[str, Array] = {}
    for name, spec in model.params().items():
        if name not in params:
            raise InputError(f"to_onnx: expected every parameter of the model, got none for {name}")
        value = params[name]
        array = arrays[name] = backend.to_host(value.data if isinstance(value, Tensor) else value)
        if array.shape != spec.shape:
            raise ShapeError(f"to_onnx: expected {name} of shape {spec.shape}, got {array.shape}")
    dtypes = {array.dtype for array in arrays.values()}
    if len(dtypes) > 1 or not dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}:
        raise DtypeError(
            f"to_onnx: expected parameters in float32 or in float64, got {', '.join(sorted(map(str, dtypes)))}"
        )
    return arrays


# --------------------------------------------------------------------------------------------- the graph


class _Writer:
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

    def inside(self, prefix: str) -> _Writer:
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


def _embedded(main: _Writer, model: Model, dtype: Any) -> str:
    """What the first layer sees, (T, B, I)."""
    if model.config.embed != "onehot":
        return main.node("Gather", main.parameter("embed.W"), "symbols", axis=0)
    # in float32, because onnxruntime has no OneHot for float64
    off_on = main.constant([0.0, 1.0], np.float32)
    hot = main.node("OneHot", "symbols", main.constant(model.V, np.int64), off_on, axis=-1)
    return main.cast(hot, np.float32, dtype)


@dataclass(frozen=True)
class Operator:
    """A recurrent operator of ONNX: our gates in the order of its blocks, and which bias is its second one."""

    name: str
    gates: str
    attributes: dict[str, Any] = field(default_factory=dict)
    second_bias: dict[str, str] = field(default_factory=dict)


ACTIVATIONS: dict[str, dict[str, Any]] = {
    "tanh": {"activations": ["Tanh"]},
    "relu": {"activations": ["Relu"]},
    "sigmoid": {"activations": ["Sigmoid"]},
    "identity": {"activations": ["Affine"], "activation_alpha": [1.0], "activation_beta": [0.0]},
}


def standard_operator(cell: Cell) -> Operator | None:
    """The operator of ONNX that computes this cell, if there is one. Its z keeps the old state, as ours does."""
    if cell.name == "rnn":
        return Operator("RNN", "h", ACTIVATIONS[cell.options.activation])
    if cell.name == "lstm":
        return Operator("LSTM", "iofg")
    if cell.name == "gru" and cell.options.form == "reset_after":
        return Operator("GRU", "zrn", {"linear_before_reset": 1}, {"n": "b_hn"})
    if cell.name == "gru":
        return Operator("GRU", "zrn", {"linear_before_reset": 0})
    return None


def _standard(main: _Writer, operator: Operator, cell: Cell, k: int, xs: str) -> str:
    """The outputs (T, B, H) of a layer, by an operator of ONNX. That has one more axis, for its directions."""
    own = f"layers.{k}."
    p = {name: main.params[own + name] for name in specification(cell)[1]}
    biases = [p[f"b_{gate}"] for gate in operator.gates]
    dtype, zeros = biases[0].dtype, np.zeros_like(biases[0])
    biases += [p[operator.second_bias[gate]] if gate in operator.second_bias else zeros for gate in operator.gates]
    weights = [
        main.constant([np.concatenate([p[f"W_x{gate}"].T for gate in operator.gates])], dtype, f"{own}W"),
        main.constant([np.concatenate([p[f"W_h{gate}"].T for gate in operator.gates])], dtype, f"{own}R"),
        main.constant([np.concatenate(biases)], dtype, f"{own}B"),
    ]
    first, second = (main.constant([axis], np.int64) for axis in (0, 1))
    states = list(specification(cell)[0])
    start = [main.node("Unsqueeze", own + name, first) for name in states]
    outputs, *last = [main.name(f"{own}{name}") for name in ("y", *(f"{state}.last" for state in states))]
    inputs = [xs, *weights, "", *start]
    main.append(operator.name, inputs, [outputs, *last], hidden_size=cell.H, **operator.attributes)
    for name, value in zip(states, last, strict=True):
        main.append("Squeeze", [value, first], [f"{own}{name}.next"])
    return main.node("Squeeze", outputs, second)


# ---------------------------------------------------------------------------------------------- the step


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


class _Differs(Exception):
    """A value that is another one for another number of rows."""


def _looped(main: _Writer, cell: Cell, k: int, xs: str, dtype: Any) -> str:
    """The outputs (T, B, H) of a layer, by a Scan whose body is the traced step.

    What needs parameters alone is computed here, and is a constant of the file.
    """
    try:
        steps = [trace_step(cell, B, dtype, False) for B in BATCHES]
    except Untraceable as error:
        raise InputError(f"cell {cell.name}: {error}, and no ONNX graph can stand for that") from error
    values, step, own = _values(cell, steps), steps[0], f"layers.{k}."
    known = {s: main.params[own + name] for name, s in step.params.items()}
    order = [value.symbol for value in values]
    varying = depends(order, {step.x, *step.states.values()})
    with np.errstate(all="ignore"):
        for value in values:
            s = value.symbol
            if s.op is not None and s not in varying and value.fixed and known.keys() >= set(s.parents):
                args = [known[a] if isinstance(a, Symbol) else a for a in s.args]
                known[s] = np.asarray(s.op.value(*args, **s.static))
    body = main.inside(f"{own}step.")
    leaves = [*step.states.values(), step.x]
    body.values = {s: body.name(s.name) for s in leaves}
    body.x = body.values[step.x]
    inputs = [body.described(body.values[s], dtype, ("B", *s.shape[1:])) for s in leaves]
    new = {s: f"{name}.next" for name, s in step.new.items()}
    for value in values:
        s = value.symbol
        if s in known or s.op is None:
            continue
        for a in s.parents:
            if a not in body.values and a in known:
                name = own + _label(a)
                body.values[a] = body.constant(known[a], a.dtype, name if a.kind == "param" else main.name(name))
        body.where = s.where
        rule = RULES.get(s.op)
        if rule is None:
            raise InputError(
                f"cell {cell.name}: the op {_place(s)} has no counterpart in ONNX; write the step with "
                "functions of tinygrad_rnn.ops"
            )
        try:
            rule(body, value)
        except _Differs as error:
            raise _refused(cell, s) from error
        last = body.nodes[-1]
        body.values[s] = last.name = last.output[0] = body.name(new.get(s) or _label(s))
    body.where = ""
    ends = [body.values[s] for s in step.new.values()]
    ends.append(body.node("Identity", ends[0]))
    shapes = [s.shape for s in (*step.new.values(), next(iter(step.new.values())))]
    outputs = [body.described(name, dtype, ("B", *size[1:])) for name, size in zip(ends, shapes, strict=True)]
    graph = main.onnx.helper.make_graph(body.nodes, f"{own}step", inputs, outputs)
    found = main.name(f"{own}outputs")
    before, after = ([f"{own}{name}{end}" for name in step.states] for end in ("", ".next"))
    main.append("Scan", [*before, xs], [*after, found], body=graph, num_scan_inputs=1)
    return found


def _label(s: Symbol) -> str:
    """What a value is called in the file: the parameter's name, the author's tap, or a number."""
    return s.name if s.kind == "param" else s.graph.taps.get(s.number, s.name)


def _place(s: Symbol) -> str:
    """The op of `s` and the author's file and line."""
    return f"{s.op.__name__ if s.op is not None else s.name}{f' ({s.where})' if s.where else ''}"


def _refused(cell: Cell, s: Symbol) -> InputError:
    return InputError(
        f"cell {cell.name}: the op {_place(s)} depends on the number of rows, and an ONNX graph is for any; "
        "compute each row of the batch alone"
    )


def _values(cell: Cell, steps: Sequence[Step]) -> list[Value]:
    """What the new states are computed from, in order, for any number of rows."""
    columns = [ancestors(step.new.values()) for step in steps]
    places = {s: i for column in columns for i, s in enumerate(column)}
    found = []
    for row in zip(*columns, strict=False):
        s = row[0]
        args = [[("value", places[a]) if isinstance(a, Symbol) else a for a in t.args] for t in row]
        if any(t.op is not s.op or t.kind != s.kind for t in row) or not all(same(args[0], other) for other in args):
            raise _refused(cell, s)
        try:
            shape = _in_rows([t.shape for t in row])
            static = _in_rows([t.static for t in row])
        except _Differs as error:
            raise _refused(cell, s) from error
        fixed = all(same(s.shape, t.shape) and same(s.static, t.static) for t in row)
        found.append(Value(s, shape, static, fixed))
    if len({len(column) for column in columns}) > 1:
        raise _refused(cell, columns[0][-1])
    return found


def _in_rows(values: Sequence[Any]) -> Any:
    """One value in place of those for each number of rows of `BATCHES`. Raises _Differs where there is none."""
    first = values[0]
    if all(same(first, value) for value in values):
        return first
    if any(type(value) is not type(first) for value in values):
        raise _Differs
    if isinstance(first, int | np.integer) and not isinstance(first, bool):
        times, rest = divmod(int(values[1] - first), BATCHES[1] - BATCHES[0])
        plus = int(first) - times * BATCHES[0]
        if rest == 0 and all(value == times * B + plus for value, B in zip(values, BATCHES, strict=True)):
            return Rows(times, plus)
    elif isinstance(first, tuple | list) and len({len(value) for value in values}) == 1:
        return type(first)(_in_rows(parts) for parts in zip(*values, strict=True))
    elif isinstance(first, dict) and all(value.keys() == first.keys() for value in values):
        return {key: _in_rows([value[key] for value in values]) for key in first}
    elif isinstance(first, slice):
        return slice(*(_in_rows([getattr(value, end) for value in values]) for end in ("start", "stop", "step")))
    raise _Differs


# ----------------------------------------------------------------------------------------- op by op

Rule = Callable[[_Writer, Value], Any]


def _working(dtype: Any) -> Any:
    """The dtype to compute in: ONNX has no arithmetic for booleans, onnxruntime little for integers but int64."""
    return dtype if dtype.kind == "f" else np.dtype(np.int64)


def _of(operator: str, **attributes: Any) -> Rule:
    """The rule of an op that has its like in ONNX."""

    def rule(w: _Writer, v: Value) -> None:
        work = _working(v.symbol.dtype)
        done = w.node(operator, *[w.operand(a, work) for a in v.symbol.args], **attributes)
        w.cast(done, work, v.symbol.dtype)

    return rule


def _comparison(operator: str, negated: bool = False) -> Rule:
    def rule(w: _Writer, v: Value) -> None:
        kinds = [a.dtype if isinstance(a, Symbol) else a for a in v.symbol.args]
        work = _working(np.result_type(*kinds))
        done = w.node(operator, *[w.operand(a, work) for a in v.symbol.args])
        if negated:
            w.node("Not", done)

    return rule


def _reduction(operator: str) -> Rule:
    def rule(w: _Writer, v: Value) -> None:
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


def _log1p(w: _Writer, v: Value) -> None:
    """log(u) x / (u - 1) for u = 1 + x as it was rounded, x itself where that is 1: exact for small x (Kahan)."""
    dtype = v.symbol.dtype
    x, one = w.operand(v.symbol.args[0], dtype), w.operand(1.0, dtype)
    u = w.node("Add", x, one)
    exact = w.node("Div", w.node("Mul", w.node("Log", u), x), w.node("Sub", u, one))
    w.node("Where", w.node("Equal", u, one), x, exact)


def _cos(w: _Writer, v: Value) -> None:
    """In float64 the sine of x + pi/2: onnxruntime before 1.29 has no cosine there."""
    x, dtype = w.operand(v.symbol.args[0], v.symbol.dtype), v.symbol.dtype
    if dtype == np.float64:
        w.node("Sin", w.node("Add", x, w.operand(math.pi / 2, dtype)))
    else:
        w.node("Cos", x)


def _clip(w: _Writer, v: Value) -> None:
    work = v.symbol.dtype
    w.node("Clip", *[w.operand(a, work) for a in (*v.symbol.args, v.static["low"], v.static["high"])])


def _where(w: _Writer, v: Value) -> None:
    condition, *values = v.symbol.args
    work = _working(v.symbol.dtype)
    done = w.node("Where", w.operand(condition, np.dtype(bool)), *[w.operand(a, work) for a in values])
    w.cast(done, work, v.symbol.dtype)


def _astype(w: _Writer, v: Value) -> None:
    (x,) = v.symbol.args
    w.node("Cast", w.values[x], to=w.kind(v.static["dtype"]))


def _cumsum(w: _Writer, v: Value) -> None:
    work = _working(v.symbol.dtype)
    done = w.node("CumSum", w.operand(v.symbol.args[0], work), w.constant(v.static["axis"], np.int64))
    w.cast(done, work, v.symbol.dtype)


def _reshape(w: _Writer, v: Value) -> None:
    _reshaped(w, w.values[v.symbol.args[0]], v.static["shape"])


def _reshaped(w: _Writer, value: str, shape: tuple[Any, ...]) -> str:
    """`value` in another shape. One size that depends on the rows is -1: so the others are seen in the file."""
    free = [isinstance(size, Rows) for size in shape]
    if sum(free) == 1 and 0 not in shape:
        shape = tuple(-1 if open else size for open, size in zip(free, shape, strict=True))
    return w.node("Reshape", value, w.integers(shape), allowzero=int(0 in shape))


def _transpose(w: _Writer, v: Value) -> None:
    w.node("Transpose", w.values[v.symbol.args[0]], perm=v.static["axes"])


def _broadcast_to(w: _Writer, v: Value) -> None:
    w.node("Expand", w.values[v.symbol.args[0]], w.integers(v.static["shape"]))


def _concatenate(w: _Writer, v: Value) -> None:
    w.node("Concat", *[w.operand(a, v.symbol.dtype) for a in v.symbol.args], axis=v.static["axis"])


def _stack(w: _Writer, v: Value) -> None:
    axis = v.static["axis"]
    parts = [w.node("Unsqueeze", w.operand(a, v.symbol.dtype), w.integers([axis])) for a in v.symbol.args]
    w.node("Concat", *parts, axis=axis)


def _flip(w: _Writer, v: Value) -> None:
    _sliced(w, w.values[v.symbol.args[0]], {v.static["axis"]: (LAST, FIRST, -1)})


def _pad(w: _Writer, v: Value) -> None:
    before, after = zip(*v.static["widths"], strict=True)
    w.node("Pad", w.values[v.symbol.args[0]], w.integers([*before, *after]))


def _sliced(w: _Writer, value: str, parts: Mapping[int, tuple[Any, Any, int]]) -> str:
    """`value` from start to stop by steps, along each axis in `parts`."""
    starts, stops, steps = zip(*parts.values(), strict=True)
    return w.node("Slice", value, w.integers(starts), w.integers(stops), w.integers(list(parts)), w.integers(steps))


def _view(w: _Writer, v: Value) -> None:
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
    index leaves alone, and the places are those in every one. Raises _Differs for an index that mixes rows.
    """
    indices = v.symbol.static["index"]
    if not same(indices, v.static["index"]):
        raise _Differs
    if not any(isinstance(size, Rows) for size in outer):
        length = math.prod(outer)
        return np.arange(length).reshape(outer)[indices], length, False
    if outer[0] != Rows(1, 0) or any(isinstance(size, Rows) for size in outer[1:]):
        raise _Differs
    length = math.prod(outer[1:])
    for B in BATCHES:
        places = np.arange(B * length).reshape(B, *outer[1:])[indices]
        rows = np.arange(0, B * length, length).reshape(B, *(1,) * (places.ndim - 1))
        if places.shape[:1] != (B,) or not np.array_equal(places, places[:1] + rows):
            raise _Differs
    return places[0], length, True


def _getitem(w: _Writer, v: Value) -> None:
    parts = v.static["index"] if isinstance(v.static["index"], tuple) else (v.static["index"],)
    chosen = [axis for axis, part in enumerate(parts) if not same(part, slice(None))]
    if len(chosen) == 1 and getattr(parts[chosen[0]], "dtype", None) in (np.int64, np.int32):  # along one axis
        at = w.constant(parts[chosen[0]], np.int64)
        w.node("Gather", w.values[v.symbol.args[0]], at, axis=chosen[0])
        return
    places, length, each = _places(v, v.static["shape"])
    flat = w.node("Reshape", w.values[v.symbol.args[0]], w.integers([-1, length] if each else [-1]))
    w.node("Gather", flat, w.constant(places, np.int64), axis=int(each))


def _scatter(w: _Writer, v: Value) -> None:
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
