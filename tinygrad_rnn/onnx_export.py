"""A trained model as an ONNX graph: the standard recurrent operators where they fit, else a Scan of the cell's step.

The graph takes ``symbols`` (T, B) and every state by its name (``layers.0.h``), and gives ``logits`` (T, B, V) and
every state after the last timestep (``layers.0.h.next``); T and B are free. So one file scores a text and, given its
own states again, writes one. The body of a Scan is the traced step, each op of it by its rule in `onnx_nodes.RULES`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinygrad_rnn import backend, engine
from tinygrad_rnn.cell import Cell, output_of, specification
from tinygrad_rnn.checkpoint import to_json, write_new_file
from tinygrad_rnn.compile.trace import Step, Symbol, Untraceable, ancestors, depends, same, trace_step
from tinygrad_rnn.data import Vocabulary
from tinygrad_rnn.errors import DtypeError, InputError, one_line
from tinygrad_rnn.model import Model, detach, host_params
from tinygrad_rnn.onnx_nodes import BATCHES, RULES, Array, Differs, Rows, Value, Writer
from tinygrad_rnn.run import versions
from tinygrad_rnn.tensor import Tensor

# 18 is the first opset in which every reduction takes its axes as an input. onnxruntime reads it, with IR version 8,
# since 2023 (tried: 1.15). Nothing newer is needed, and older readers refuse a file that claims more than it needs.
OPSET, IR_VERSION = 18, 8


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
    main = Writer(onnx, _checked(model, params))
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
    write_new_file(path, proto.SerializeToString(), ".onnx", overwrite=overwrite)


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
    onnxruntime = _package("onnxruntime", "pip install onnxruntime")
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
    return _package("onnx", 'pip install "tinygrad_rnn[onnx]"')


def _package(name: str, remedy: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise InputError(f"{name} is installed without {error.name}, which it needs; {remedy}") from error
        raise InputError(f"{name} is not installed; {remedy}") from error
    except Exception as error:  # as where another package with it is too old or too new
        raise InputError(f"{name} is installed and cannot be imported ({one_line(error)}); {remedy}") from error


def _checked(model: Model, params: Mapping[str, Any]) -> dict[str, Array]:
    """The parameters that the model declares, as arrays of one floating dtype on the host."""
    arrays = host_params(model, params, "to_onnx")
    dtypes = {array.dtype for array in arrays.values()}
    if len(dtypes) > 1 or not dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}:
        raise DtypeError(
            f"to_onnx: expected parameters in float32 or in float64, got {', '.join(sorted(map(str, dtypes)))}"
        )
    return arrays


# --------------------------------------------------------------------------------------------- the graph


def _embedded(main: Writer, model: Model, dtype: Any) -> str:
    """What the first layer sees, (T, B, I)."""
    if model.config.tie:
        table = main.node("Transpose", main.parameter("readout.W"), perm=[1, 0])
        return main.node("Gather", table, "symbols", axis=0)
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


def _standard(main: Writer, operator: Operator, cell: Cell, k: int, xs: str) -> str:
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


def _looped(main: Writer, cell: Cell, k: int, xs: str, dtype: Any) -> str:
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
        except Differs as error:
            raise _refused(cell, s) from error
        last = body.nodes[-1]
        body.values[s] = last.name = last.output[0] = body.name(new.get(s) or _label(s))
    body.where = ""
    ends = [body.values[s] for s in step.new.values()]
    output = step.new[output_of(cell)]
    ends.append(body.node("Identity", body.values[output]))
    shapes = [s.shape for s in (*step.new.values(), output)]
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
        except Differs as error:
            raise _refused(cell, s) from error
        fixed = all(same(s.shape, t.shape) and same(s.static, t.static) for t in row)
        found.append(Value(s, shape, static, fixed))
    if len({len(column) for column in columns}) > 1:
        raise _refused(cell, columns[0][-1])
    return found


def _in_rows(values: Sequence[Any]) -> Any:
    """One value in place of those for each number of rows of `BATCHES`. Raises Differs where there is none."""
    first = values[0]
    if all(same(first, value) for value in values):
        return first
    if any(type(value) is not type(first) for value in values):
        raise Differs
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
    raise Differs
