"""Exported models computed by onnxruntime: every cell, option and wrapper, and every op beside NumPy's formula."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest

from tinygrad_rnn import (
    Cell,
    DtypeError,
    FileError,
    InputError,
    Model,
    ModelConfig,
    Param,
    SampleConfig,
    ShapeError,
    State,
    Tensor,
    Vocabulary,
    available_cells,
    build_model,
    field_types,
    generate,
    load_cell,
    onnx_difference,
    onnx_inputs,
    onnx_session,
    ops,
    primitive,
    save_onnx,
    tap,
    to_onnx,
)
from tinygrad_rnn.compile.trace import ancestors, trace_step
from tinygrad_rnn.onnx_nodes import RULES

onnx = pytest.importorskip("onnx", reason="needs the package onnx, of the extra onnx")
pytest.importorskip("onnxruntime", reason="onnxruntime is the other opinion here; it is not installed")

Array = np.ndarray[Any, Any]
DTYPES = (np.float32, np.float64)
TOLERANCE = 1e-5
CELLS = sorted(row.name for row in available_cells())


def variants(cell: str) -> list[dict[str, Any]]:
    """The cell with its defaults, and with every other value of an option that is a choice."""
    found: list[dict[str, Any]] = [{}]
    for name, kind in field_types(load_cell(cell).cls.Options).items():
        values = get_args(kind) if get_origin(kind) is Literal else (True, False) if kind is bool else ()
        found += [{name: value} for value in values]
    return found


VARIANTS = [(cell, options) for cell in CELLS for options in variants(cell)]
STANDARD = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}


def make(cell: str, options: dict[str, Any] | None = None, embed: str = "3", wrap: tuple[str, ...] = ()) -> Model:
    config = ModelConfig(cell=cell, cell_options=options or {}, hidden=4, layers=2, embed=embed, wrap=wrap)
    return build_model(config, 6, load_cell(cell))


def drawn(model: Model, dtype: Any = np.float32, seed: int = 0) -> dict[str, Array]:
    """Parameters that are all different from 0 and 1, biases too."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.5, spec.shape).astype(dtype) for name, spec in model.params().items()}


def operators(proto: Any) -> list[str]:
    """The recurrent operators of the graph, a layer after the other."""
    return [node.op_type for node in proto.graph.node if node.op_type in ("Scan", *STANDARD.values())]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cell", "options"), VARIANTS)
def test_every_cell_is_computed_alike(cell: str, options: dict[str, Any], dtype: Any) -> None:
    model = make(cell, options, "4" if options.get("input_map") == "identity" else "3")
    params = drawn(model, dtype)
    proto = to_onnx(model, params)
    expected = STANDARD.get(cell, "Scan") if dtype == np.float32 else "Scan"
    assert operators(proto) == [expected] * 2
    assert onnx_difference(proto, model, params, np.random.default_rng(1)) < TOLERANCE
    if expected != "Scan":
        scanned = to_onnx(model, params, scan=True)
        assert operators(scanned) == ["Scan"] * 2
        assert onnx_difference(scanned, model, params, np.random.default_rng(1)) < TOLERANCE


@pytest.mark.parametrize("cell", ["lstm", "mgu"])
def test_a_tied_model(cell: str) -> None:
    model = build_model(ModelConfig(cell=cell, hidden=4, layers=2, embed="hidden", tie=True), 6, load_cell(cell))
    params = drawn(model)
    proto = to_onnx(model, params)
    assert [one.name for one in proto.graph.initializer if tuple(one.dims) in ((6, 4), (4, 6))] == ["readout.W"]
    assert onnx_difference(proto, model, params, np.random.default_rng(1)) < TOLERANCE


@pytest.mark.parametrize(
    "wrap", [("zoneout:0.3",), ("recurrent_dropout:0.2",), ("layernorm", "residual"), ("highway",)]
)
@pytest.mark.parametrize("cell", ["lstm", "gru", "mut1"])
def test_wrapped_cells_are_a_scan(cell: str, wrap: tuple[str, ...]) -> None:
    model = make(cell, wrap=wrap)
    params = drawn(model)
    proto = to_onnx(model, params)
    assert operators(proto) == ["Scan"] * 2
    assert onnx_difference(proto, model, params, np.random.default_rng(1)) < TOLERANCE


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_timestep_is_carried(dtype: Any) -> None:
    """Seven timesteps and, given the states again, one more: clocks of 1, 2, 4 and 8 strike in both as they should."""
    model = make("clockwork")
    params = {name: value.data for name, value in model.init(np.random.default_rng(0), dtype).items()}
    proto = to_onnx(model, params)
    assert onnx_inputs(proto)["layers.1.t"] == f"(B, 1) {np.dtype(dtype).name}"
    assert onnx_difference(proto, model, params, np.random.default_rng(1)) < TOLERANCE
    session = onnx_session(proto)
    start = {name: np.zeros((2, 1 if name.endswith(".t") else 4), dtype) for name in onnx_inputs(proto) if "." in name}
    ran = session.run(["layers.0.t.next", "layers.1.t.next"], {"symbols": np.zeros((11, 2), np.int64), **start})
    np.testing.assert_array_equal(ran, np.full((2, 2, 1), 11.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("embed", ["onehot", "hidden"])
def test_what_the_first_layer_sees(embed: str, dtype: Any) -> None:
    model = make("lstm", embed=embed)
    params = drawn(model, dtype)
    assert onnx_difference(to_onnx(model, params), model, params, np.random.default_rng(1)) < TOLERANCE


@pytest.mark.parametrize("name", ["layers.1.W_hg", "layers.0.b_f", "readout.b", "embed.W"])
@pytest.mark.parametrize("scan", [False, True])
def test_a_wrong_number_is_seen(name: str, scan: bool) -> None:
    model = make("lstm")
    params = drawn(model)
    proto = to_onnx(model, params, scan=scan)
    params[name] = params[name] + np.float32(1e-3)
    assert onnx_difference(proto, model, params, np.random.default_rng(1)) > TOLERANCE
    params[name] = params[name] * np.float32(np.nan)
    assert onnx_difference(proto, model, params, np.random.default_rng(1)) == np.inf


@pytest.mark.parametrize(("cell", "scan"), [("lstm", False), ("lstm", True), ("mut2", True)])
def test_names_versions_and_metadata(cell: str, scan: bool, tmp_path: Path) -> None:
    model = make(cell)
    params = drawn(model)
    vocabulary = Vocabulary("chars", tuple("abc\ne ü"[:6]), None)
    save_onnx(tmp_path / "new" / "m.onnx", to_onnx(model, params, vocabulary=vocabulary, scan=scan))
    proto = onnx.load(tmp_path / "new" / "m.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert proto.ir_version == 8 and [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)]
    states = [f"layers.{k}.{name}" for k in range(2) for name in model.cells[0].state()]
    assert onnx_inputs(proto) == {"symbols": "(T, B) int64", **dict.fromkeys(states, "(B, 4) float32")}
    assert [value.name for value in proto.graph.output] == ["logits", *(f"{name}.next" for name in states)]
    logits = proto.graph.output[0].type.tensor_type.shape
    assert [axis.dim_param or axis.dim_value for axis in logits.dim] == ["T", "B", 6]
    arrays = {entry.name: onnx.numpy_helper.to_array(entry) for entry in proto.graph.initializer}
    used = params if scan else {name: value for name, value in params.items() if not name.startswith("layers")}
    for name, value in used.items():
        np.testing.assert_array_equal(arrays[name], value)
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert facts["cell"] == cell and facts["tinygrad_rnn"] == proto.producer_version
    assert Vocabulary.from_json(json.loads(facts["vocabulary"])) == vocabulary
    assert json.loads(facts["start"]) == dict.fromkeys(states, 0.0)
    with pytest.raises(FileError, match="already"):
        save_onnx(tmp_path / "new" / "m.onnx", proto)


def test_greedy_text_is_the_same_symbol_by_symbol() -> None:
    model = make("gru")
    params = {name: value * 6 for name, value in drawn(model, seed=28).items()}
    vocabulary = Vocabulary("chars", tuple("abcdef"), None)
    options = SampleConfig(length=60, prime="fade", greedy=True)

    tensors = {name: Tensor(value) for name, value in params.items()}
    expected = "".join(text for (text,) in generate(model, tensors, vocabulary, options, np.random.default_rng(0)))
    assert len(set(expected[4:])) > 4  # it writes something
    session = onnx_session(to_onnx(model, params, vocabulary=vocabulary))
    states = {name: np.zeros((1, 4), np.float32) for name in ("layers.0.h", "layers.1.h")}
    symbols, text = np.array([[vocabulary.symbols.index(letter)] for letter in "fade"]), "fade"
    for _ in range(60):
        logits, *states_after = session.run(None, {"symbols": symbols, **states})
        states = dict(zip(states, states_after, strict=True))
        symbols = logits[-1:].argmax(axis=2)
        text += vocabulary.symbols[symbols.item()]
    assert text == expected


# --------------------------------------------------------------------------------------------- op by op

H = 4


def one_cell(step: Callable[..., Any], params: dict[str, tuple[int, ...]] | None = None) -> Model:
    """A model of one layer whose new state is ``step(p, x, h)`` of the input (B, 4) and the state (B, 4)."""

    class One(Cell):
        name = "one"
        summary = citation = equation = "made for one op"

        def state(self) -> dict[str, State]:
            return {"h": State((H,))}

        def params(self) -> dict[str, Param]:
            return {name: Param(shape, "normal:1", "recurrent") for name, shape in (params or {}).items()}

        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            return {"h": step(p, x, s.h)}

    return Model(ModelConfig(cell="one", hidden=H, layers=1, embed=str(H)), 5, (One(H, H),))


def sigmoid(a: Any) -> Any:
    return 1 / (1 + np.exp(-a))


def softmax(a: Any) -> Any:
    return np.exp(a) / np.exp(a).sum(axis=-1, keepdims=True)


def erf(a: Any) -> Any:
    return np.vectorize(math.erf, otypes=[a.dtype])(a)


def scattered(values: Array, places: list[int], size: int) -> Array:
    out = np.zeros((*values.shape[:-1], size), values.dtype)
    for k, place in enumerate(places):
        out[..., place] += values[..., k]
    return out


ORDER = np.array([2, 0, 3, 3])
MASK = np.array([True, False, True, False])
Case = tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]
# the op that is meant, and what else is special: our expression of x and h (B, 4), and NumPy's
CASES: dict[str, Case] = {
    "add": (lambda x, h: x + h + 1, lambda x, h: x + h + 1),
    "sub": (lambda x, h: 1.5 - (x - h), lambda x, h: 1.5 - x + h),
    "mul": (lambda x, h: x * h * 3, lambda x, h: 3 * x * h),
    "mul by a condition": (lambda x, h: h * (x > 0), lambda x, h: np.where(x > 0, h, 0)),
    "mul of conditions": (
        lambda x, h: ops.astype((x > 0) * (h < 0.3), h.dtype),
        lambda x, h: (x > 0) & (h < 0.3),
    ),
    "add of conditions": (
        lambda x, h: ops.astype((x > 0) + (h < 0.3), h.dtype),
        lambda x, h: (x > 0) | (h < 0.3),
    ),
    "div": (lambda x, h: 2 / (x / (h * h + 1) + 9), lambda x, h: 2 / (x / (h * h + 1) + 9)),
    "neg": (lambda x, h: -h, lambda x, h: -h),
    "pow": (lambda x, h: (x * x + 1) ** h + x**2 + 2.0**h, lambda x, h: (x * x + 1) ** h + x * x + 2**h),
    "exp": (lambda x, h: ops.exp(h), lambda x, h: np.exp(h)),
    "log": (lambda x, h: ops.log(h * h + 0.1), lambda x, h: np.log(h * h + 0.1)),
    "log1p": (lambda x, h: ops.log1p(h * h), lambda x, h: np.log1p(h * h)),
    "log1p of little": (lambda x, h: ops.log1p(h * 1e-9) * 1e9, lambda x, h: h),
    "sqrt": (lambda x, h: ops.sqrt(h * h + 0.1), lambda x, h: np.sqrt(h * h + 0.1)),
    "abs": (lambda x, h: abs(h), lambda x, h: np.abs(h)),
    "sin": (lambda x, h: ops.sin(3 * h), lambda x, h: np.sin(3 * h)),
    "cos": (lambda x, h: ops.cos(3 * h), lambda x, h: np.cos(3 * h)),
    "tanh": (lambda x, h: ops.tanh(h), lambda x, h: np.tanh(h)),
    "sigmoid": (lambda x, h: ops.sigmoid(h), lambda x, h: sigmoid(h)),
    "relu": (lambda x, h: ops.relu(h), lambda x, h: np.maximum(h, 0)),
    "softplus": (lambda x, h: ops.softplus(9 * h), lambda x, h: np.logaddexp(9 * h, 0)),
    "gelu": (lambda x, h: ops.gelu(h), lambda x, h: h / 2 * (1 + erf(h / np.sqrt(2)))),
    "gelu by tanh": (
        lambda x, h: ops.gelu(h, approximate="tanh"),
        lambda x, h: h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))),
    ),
    **{
        name: (lambda x, h, op=op: op(3 * h), lambda x, h, f=f: f(3 * h).astype(h.dtype))
        for name, (op, f) in {
            name: (getattr(ops, name), getattr(np, name))
            for name in (
                "floor",
                "ceil",
                "trunc",
                "rint",
                "round",
                "square",
                "exp2",
                "expm1",
                "sinh",
                "cosh",
                "arctan",
                "arcsinh",
            )
        }.items()
    },
    **{
        name: (lambda x, h, op=op: op(0.9 * ops.tanh(h)), lambda x, h, f=f: f(0.9 * np.tanh(h)))
        for name, (op, f) in {
            name: (getattr(ops, name), getattr(np, name)) for name in ("tan", "arcsin", "arccos", "arctanh")
        }.items()
    },
    **{
        name: (lambda x, h, op=op: op(h * h + 1.1), lambda x, h, f=f: f(h * h + 1.1))
        for name, (op, f) in {
            name: (getattr(ops, name), getattr(np, name)) for name in ("log2", "log10", "arccosh")
        }.items()
    },
    "erf": (lambda x, h: ops.erf(h), lambda x, h: erf(h)),
    "erfc": (lambda x, h: ops.erfc(h), lambda x, h: 1 - erf(h)),
    "logaddexp": (lambda x, h: ops.logaddexp(3 * x, h), lambda x, h: np.logaddexp(3 * x, h)),
    "arctan2": (lambda x, h: ops.arctan2(x, h), lambda x, h: np.arctan2(x, h)),
    "floor_divide": (lambda x, h: x // 0.3 + 0.7 // h, lambda x, h: x // 0.3 + 0.7 // h),
    "remainder": (lambda x, h: x % -0.3 + h % (x * x + 0.2), lambda x, h: x % -0.3 + h % (x * x + 0.2)),
    "remainder of whole numbers": (
        lambda x, h: ops.astype(ops.astype(9 * h, "int32") % 4 + ops.astype(9 * x, "int32") // 4, h.dtype),
        lambda x, h: np.trunc(9 * h) % 4 + np.trunc(9 * x) // 4,
    ),
    "logical_and": (lambda x, h: h * ((x > 0) & (h < 0.3)), lambda x, h: h * ((x > 0) & (h < 0.3))),
    "logical_or": (lambda x, h: h * ((x > 0) | (h < 0.3)), lambda x, h: h * ((x > 0) | (h < 0.3))),
    "logical_xor": (lambda x, h: h * ((x > 0) ^ (h < 0.3)), lambda x, h: h * ((x > 0) ^ (h < 0.3))),
    "logical_not": (lambda x, h: h * ~(x > 0), lambda x, h: h * ~(x > 0)),
    "isnan": (lambda x, h: h * ops.isnan(ops.sqrt(x)), lambda x, h: h * (x < 0)),
    "isinf": (lambda x, h: h * ops.isinf(1.0 / ops.relu(x)), lambda x, h: h * (x <= 0)),
    "isfinite": (lambda x, h: h * ops.isfinite(ops.log(ops.relu(x))), lambda x, h: h * (x > 0)),
    "argmax": (
        lambda x, h: h + ops.astype(ops.argmax(x, 1, keepdims=True), h.dtype),
        lambda x, h: h + x.argmax(1)[:, None],
    ),
    "argmin": (lambda x, h: h + ops.astype(ops.argmin(x, 1), h.dtype)[:, None], lambda x, h: h + x.argmin(1)[:, None]),
    "sort": (lambda x, h: ops.sort(h), lambda x, h: np.sort(h)),
    "argsort": (lambda x, h: h + ops.astype(ops.argsort(x), h.dtype), lambda x, h: h + np.argsort(x)),
    "var": (lambda x, h: h * ops.var(h, 1, True), lambda x, h: h * h.var(1, keepdims=True)),
    "std": (lambda x, h: h * ops.std(h, 1, True, ddof=1), lambda x, h: h * h.std(1, keepdims=True, ddof=1)),
    "prod": (lambda x, h: h + ops.prod(x, 1, True), lambda x, h: h + x.prod(1, keepdims=True)),
    "cumprod": (lambda x, h: ops.cumprod(h, 1), lambda x, h: np.cumprod(h, 1)),
    "trace": (
        lambda x, h: h + ops.trace(ops.outer(ops.exp(0 * h[0]), ops.exp(0 * h[0]))),
        lambda x, h: h + 4,
    ),
    "ravel": (lambda x, h: ops.reshape(ops.ravel(h) * 2, (-1, 4)), lambda x, h: 2 * h),
    "moveaxis": (lambda x, h: ops.moveaxis(ops.softmax(ops.moveaxis(h, 0, 1), 0), 0, 1), lambda x, h: softmax(h)),
    "roll": (lambda x, h: ops.roll(h, 1, 1), lambda x, h: np.roll(h, 1, 1)),
    "repeat": (lambda x, h: ops.repeat(h[:, :2], 2, 1), lambda x, h: np.repeat(h[:, :2], 2, 1)),
    "tile": (lambda x, h: ops.tile(h[:, :2], (1, 2)), lambda x, h: np.tile(h[:, :2], 2)),
    "diag": (lambda x, h: h @ ops.diag(ops.exp(0 * h[0])), lambda x, h: h),
    "diagonal": (
        lambda x, h: ops.diagonal(h[:, :, None] * x[:, None, :], 0, 1, 2),
        lambda x, h: h * x,
    ),
    "tril": (
        lambda x, h: h @ ops.tril(ops.outer(ops.exp(0 * h[0]), ops.exp(0 * h[0]))),
        lambda x, h: np.cumsum(h[:, ::-1], 1)[:, ::-1],
    ),
    "triu": (
        lambda x, h: h @ ops.triu(ops.outer(ops.exp(0 * h[0]), ops.exp(0 * h[0])), 1),
        lambda x, h: np.cumsum(h, 1) - h,
    ),
    "einsum": (
        lambda x, h: ops.einsum("bi,bj,bj->bi", h, x, h),
        lambda x, h: h * (h * x).sum(1, keepdims=True),
    ),
    "tensordot": (
        lambda x, h: ops.tensordot(h, ops.outer(ops.exp(0 * h[0]), ops.exp(0 * h[0])), 1),
        lambda x, h: h.sum(1, keepdims=True) + 0 * h,
    ),
    "dot": (lambda x, h: ops.dot(h, ops.exp(0 * h[0]))[:, None] + x, lambda x, h: h.sum(1, keepdims=True) + x),
    "inner": (lambda x, h: ops.inner(h, ops.exp(0 * h[0]))[:, None] + x, lambda x, h: h.sum(1, keepdims=True) + x),
    "vdot": (lambda x, h: h + ops.vdot(ops.exp(0 * h[0]), ops.exp(0 * x[0])), lambda x, h: h + 4),
    "kron": (lambda x, h: ops.kron(h[:, :2], ops.exp(0 * h[0, :2])), lambda x, h: np.repeat(h[:, :2], 2, 1)),
    "sign": (lambda x, h: ops.sign(h), lambda x, h: np.sign(h)),
    "maximum": (lambda x, h: ops.maximum(ops.maximum(x, h), 0.1), lambda x, h: np.maximum(np.maximum(x, h), 0.1)),
    "minimum": (lambda x, h: ops.minimum(x, h), lambda x, h: np.minimum(x, h)),
    "clip": (lambda x, h: ops.clip(h, -0.3, 0.4), lambda x, h: np.clip(h, -0.3, 0.4)),
    "clip above": (lambda x, h: ops.clip(h, high=0.4), lambda x, h: np.minimum(h, 0.4)),
    "equal": (lambda x, h: h * ops.equal(ops.sign(x), 1), lambda x, h: h * (x > 0)),
    "not_equal": (lambda x, h: h * (ops.sign(x) != ops.sign(h)), lambda x, h: h * (np.sign(x) != np.sign(h))),
    "greater": (lambda x, h: h * (x > h), lambda x, h: h * (x > h)),
    "greater_equal": (lambda x, h: h * (x >= 0.1), lambda x, h: h * (x >= 0.1)),
    "less": (lambda x, h: h * (x < h), lambda x, h: h * (x < h)),
    "less_equal": (lambda x, h: h * (x <= 0.1), lambda x, h: h * (x <= 0.1)),
    "equal conditions": (lambda x, h: h * ops.equal(x > 0, h > 0), lambda x, h: h * ((x > 0) == (h > 0))),
    "greater of conditions": (lambda x, h: h * ((x > 0) > (h > 0)), lambda x, h: h * ((x > 0) > (h > 0))),
    "where": (lambda x, h: ops.where(x > h, x, 0.5), lambda x, h: np.where(x > h, x, 0.5)),
    "where of numbers": (lambda x, h: ops.where(ops.relu(x), h, -h), lambda x, h: np.where(x > 0, h, -h)),
    "where of conditions": (
        lambda x, h: h * ops.where(x > 0, h > 0, h < 0.5),
        lambda x, h: h * np.where(x > 0, h > 0, h < 0.5),
    ),
    "astype": (
        lambda x, h: ops.astype(ops.astype(x, "float64") * 2.0, x.dtype) + h,
        lambda x, h: 2 * x + h,
    ),
    "astype of whole numbers": (
        lambda x, h: (
            ops.astype(ops.maximum(ops.astype(x * 4, "int8") * 3, -5) > 0.5, h.dtype)
            + ops.astype(ops.sum(ops.astype(h * 9, "int32"), 1, keepdims=True), h.dtype)
        ),
        lambda x, h: (np.trunc(x * 4) * 3 > 0.5) + np.trunc(h * 9).sum(axis=1, keepdims=True),
    ),
    "matmul": (lambda x, h: h @ x[0:1].T @ x[0:1] * 0 + h, lambda x, h: h),
    "matmul of vectors": (lambda x, h: (h @ ops.exp(x[0] * 0))[:, None] + x, lambda x, h: h.sum(1, keepdims=True) + x),
    "matmul row by row": (
        lambda x, h: ops.squeeze(h[:, None, :] @ ops.outer(ops.sign(h[0] * 0 + 1), ops.sign(h[0] * 0 + 1)), 1) + x,
        lambda x, h: h.sum(1, keepdims=True) + x,
    ),
    "matmul of fast weights": (
        lambda x, h: ops.squeeze(h[:, None, :] @ (x[:, :, None] * h[:, None, :]), 1),
        lambda x, h: (h * x).sum(1, keepdims=True) * h,
    ),
    "outer": (
        lambda x, h: h + ops.outer(ops.sum(h, 1), ops.exp(0 * h[0])),
        lambda x, h: h + h.sum(1, keepdims=True),
    ),
    "sum": (lambda x, h: h * ops.sum(h, 1, keepdims=True), lambda x, h: h * h.sum(1, keepdims=True)),
    "sum without the axis": (lambda x, h: x + ops.sum(h, 1)[:, None], lambda x, h: x + h.sum(1, keepdims=True)),
    "sum over no axis": (lambda x, h: ops.sum(h, ()), lambda x, h: h),
    "sum of conditions": (
        lambda x, h: h * ops.astype(ops.sum(x > 0, 1, keepdims=True), h.dtype),
        lambda x, h: h * (x > 0).sum(1, keepdims=True),
    ),
    "mean": (lambda x, h: h - ops.mean(h, -1, keepdims=True), lambda x, h: h - h.mean(1, keepdims=True)),
    "max": (lambda x, h: h - ops.max(h, 1)[:, None], lambda x, h: h - h.max(1, keepdims=True)),
    "min": (lambda x, h: h - ops.min(h, 1, keepdims=True), lambda x, h: h - h.min(1, keepdims=True)),
    "norm": (lambda x, h: h / ops.norm(h, 1, keepdims=True), lambda x, h: h / np.sqrt((h * h).sum(1, keepdims=True))),
    "logsumexp": (
        lambda x, h: h + ops.logsumexp(h + 90, 1, keepdims=True),
        lambda x, h: h + 90 + np.log(np.exp(h).sum(1, keepdims=True)),
    ),
    "softmax": (lambda x, h: ops.softmax(h + 90), lambda x, h: softmax(h)),
    "softmax along the first": (lambda x, h: ops.softmax(h.T, 0).T, lambda x, h: softmax(h)),
    "log_softmax": (lambda x, h: ops.log_softmax(h), lambda x, h: np.log(softmax(h))),
    "cumsum": (lambda x, h: ops.cumsum(h, 1), lambda x, h: np.cumsum(h, axis=1)),
    "cumsum of conditions": (
        lambda x, h: ops.astype(ops.cumsum(h > 0, 1), h.dtype),
        lambda x, h: np.cumsum(h > 0, axis=1),
    ),
    "reshape": (
        lambda x, h: ops.reshape(ops.softmax(ops.reshape(h, (h.shape[0] * 2, 2))), h.shape),
        lambda x, h: softmax(h.reshape(-1, 2)).reshape(h.shape),
    ),
    "reshape to one axis": (lambda x, h: ops.reshape(ops.reshape(h, -1) * 2, (-1, 4)), lambda x, h: 2 * h),
    "transpose": (lambda x, h: (h.T * 2).T, lambda x, h: 2 * h),
    "swapaxes": (
        lambda x, h: ops.reshape(ops.swapaxes(ops.reshape(h, (-1, 2, 2)), 1, 2), (-1, 4)),
        lambda x, h: h[:, [0, 2, 1, 3]],
    ),
    "expand_dims": (
        lambda x, h: ops.sum(ops.expand_dims(h, -1) * x[:, None, :], 2),
        lambda x, h: h * x.sum(1)[:, None],
    ),
    "squeeze": (
        lambda x, h: x + ops.squeeze(ops.sum(h, 1, keepdims=True), 1)[:, None],
        lambda x, h: x + h.sum(1)[:, None],
    ),
    "broadcast_to": (lambda x, h: ops.broadcast_to(h[:, :1], h.shape) + 0 * x, lambda x, h: np.repeat(h[:, :1], 4, 1)),
    "broadcast_to more rows": (
        lambda x, h: ops.sum(ops.broadcast_to(h, (3, h.shape[0], 4)), 0),
        lambda x, h: 3 * h,
    ),
    "concatenate": (
        lambda x, h: ops.concatenate([h[:, 2:], x[:, :2]], 1),
        lambda x, h: np.concatenate([h[:, 2:], x[:, :2]], 1),
    ),
    "concatenate rows": (lambda x, h: ops.concatenate([x, h])[h.shape[0] :], lambda x, h: h),
    "stack": (lambda x, h: ops.sum(ops.stack([x, h, h], -1), -1), lambda x, h: x + 2 * h),
    "split": (
        lambda x, h: ops.concatenate(ops.split(h, [1, 3], axis=1)[::-1], 1),
        lambda x, h: h[:, [1, 2, 3, 0]],
    ),
    "flip": (lambda x, h: ops.flip(h, 1), lambda x, h: h[:, ::-1]),
    "pad": (lambda x, h: ops.pad(h[:, 1:3], [(0, 0), (2, 0)]), lambda x, h: np.pad(h[:, 1:3], [(0, 0), (2, 0)])),
    "getitem": (lambda x, h: h[:, 1:2] + h[..., -1][:, None] + x, lambda x, h: h[:, 1:2] + h[:, 3:] + x),
    "getitem with steps": (
        lambda x, h: ops.concatenate([h[:, ::2], h[:, -1::-2]], 1),
        lambda x, h: h[:, [0, 2, 3, 1]],
    ),
    "getitem of everything": (lambda x, h: h[...] * 2, lambda x, h: h * 2),
    "getitem by a number of rows": (lambda x, h: h[h.shape[0] - 1] * 0 + h[: h.shape[0]], lambda x, h: h),
    "getitem with new axes": (lambda x, h: ops.sum(h[None, :, None, ..., None], (0, 2, 4)), lambda x, h: h),
    "getitem by a list": (lambda x, h: h[:, [2, 0, 3, 3]], lambda x, h: h[:, ORDER]),
    "getitem by an array": (lambda x, h: h.T[ORDER].T, lambda x, h: h[:, ORDER]),
    "getitem by a mask": (lambda x, h: ops.concatenate([h[:, MASK], h[:, MASK]], 1), lambda x, h: h[:, [0, 2, 0, 2]]),
    "getitem by two arrays": (
        lambda x, h: ops.reshape(h, (-1, 2, 2))[:, [0, 1, 1, 0], [1, 1, 0, 0]],
        lambda x, h: h[:, [1, 3, 2, 0]],
    ),
    "getitem of no rows": (
        lambda x, h: h + ops.outer(ops.exp(0 * h[0]), ops.exp(0 * h[0]))[[0, 1, 2, 3], [3, 2, 1, 0]],
        lambda x, h: h + 1,
    ),
    "embedding": (lambda x, h: ops.embedding(h.T, ORDER).T, lambda x, h: h[:, ORDER]),
    "scatter": (
        lambda x, h: ops.scatter(h, (slice(None), ORDER), h.shape),
        lambda x, h: scattered(h, [2, 0, 3, 3], 4),
    ),
    "scatter of no rows": (
        lambda x, h: h + ops.scatter(ops.exp(0 * h[0]), [0, 0, 3, 1], (4,)),
        lambda x, h: h + np.array([2, 1, 0, 1]),
    ),
}
# What a step cannot use for any number of rows: its targets are an array of the step's own, one for each row.
ELSEWHERE = {"cross_entropy"}


def test_every_op_has_a_case_and_every_rule_is_used() -> None:
    public = {name for name, value in vars(ops).items() if callable(value) and not name.startswith("_")}
    assert {case.split()[0] for case in CASES} == public - ELSEWHERE
    used = set()
    for ours, _ in CASES.values():
        step = trace_step(one_cell(lambda p, x, h, ours=ours: ours(x, h)).cells[0], 3, np.float32, False)
        used |= {s.op for s in ancestors(step.new.values())}
    assert used - {None} == set(RULES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", list(CASES))
def test_op_beside_numpy(case: str, dtype: Any) -> None:
    ours, theirs = CASES[case]
    model = one_cell(lambda p, x, h: ours(x, h))
    params = drawn(model, dtype)
    session = onnx_session(to_onnx(model, params))
    rng = np.random.default_rng(2)
    for B in (4, 1, 7):
        symbols, h = rng.integers(0, 5, (1, B)), rng.normal(0, 0.7, (B, H)).astype(dtype)
        (found,) = session.run(["layers.0.h.next"], {"symbols": symbols, "layers.0.h": h})
        expected = theirs(params["embed.W"][symbols[0]], h)
        assert found.dtype == dtype and found.shape == h.shape
        # In float64 too: onnxruntime keeps a constant factor of a product in float32.
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_parameters_in_every_role() -> None:
    def step(p: Any, x: Any, h: Any) -> Any:
        rows = ops.broadcast_to(ops.exp(p.b), (h.shape[0], H))  # of parameters alone, and yet of the rows
        return tap("mixed", x @ (p.W * 2)) + ops.concatenate([rows[:, :2], h[:, :2]], 1) * ops.softmax(p.b)

    model = one_cell(step, {"W": (H, H), "b": (H,)})
    params = drawn(model)
    proto = to_onnx(model, params)
    W, b = params["layers.0.W"], params["layers.0.b"]
    rng = np.random.default_rng(2)
    symbols, h = rng.integers(0, 5, (3, 2)), rng.normal(size=(2, H)).astype(np.float32)
    (found,) = onnx_session(proto).run(["layers.0.h.next"], {"symbols": symbols, "layers.0.h": h})
    for x in params["embed.W"][symbols]:
        h = x @ (W * 2) + np.concatenate([np.exp([b[:2], b[:2]]), h[:, :2]], 1) * softmax(b)
    np.testing.assert_allclose(found, h, rtol=1e-5)
    (loop,) = [node for node in proto.graph.node if node.op_type == "Scan"]
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    assert "layers.0.step.mixed" in {value for node in body.node for value in node.output}
    assert {node.op_type for node in body.node}.isdisjoint({"Exp", "Softmax"})  # computed once, when it was written
    assert {node.doc_string.split(":")[0] for node in body.node if node.op_type == "MatMul"} == {"test_onnx.py"}


def test_the_output_need_not_be_the_first_state() -> None:
    class Read(Cell):
        name = "read"
        summary = citation = equation = "h' = tanh(x + h); y' = 2 * h'"
        output = "y"

        def state(self) -> dict[str, State]:
            return {"h": State((H,)), "y": State((H,))}

        def params(self) -> dict[str, Param]:
            return {}

        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            h = ops.tanh(x + s.h)
            return {"h": h, "y": 2 * h}

    model = Model(ModelConfig(cell="read", hidden=H, layers=2, embed=str(H)), 5, (Read(H, H), Read(H, H)))
    params = drawn(model)
    assert onnx_difference(to_onnx(model, params), model, params, np.random.default_rng(1)) < TOLERANCE


def test_names_that_are_used_twice() -> None:
    class Twice(Cell):
        name = "twice"
        summary = citation = equation = "a state x, a parameter outputs, taps named like both"

        def state(self) -> dict[str, State]:
            return {"x": State((H,)), "logits": State((H,))}

        def params(self) -> dict[str, Param]:
            return {name: Param((H,), "normal:1", "bias") for name in ("b", "outputs", "step")}

        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            tap("b", x[: x.shape[0] - 1] * 0)  # and is used by nothing
            b = tap("outputs", tap("b", ops.exp(p.b)) * 2)
            h = tap("x", s.x * b + x) * p.b + p.outputs
            return {"x": ops.tanh(h * p.step), "logits": tap("x", ops.sin(h + s.logits))}

    model = Model(ModelConfig(cell="twice", hidden=H, layers=2, embed=str(H)), 5, (Twice(H, H), Twice(H, H)))
    params = drawn(model)
    assert onnx_difference(to_onnx(model, params), model, params, np.random.default_rng(1)) < TOLERANCE


def test_states_of_any_shape_and_start() -> None:
    class Fast(Cell):
        name = "fast"
        summary = citation = equation = "a matrix for each row"

        def state(self) -> dict[str, State]:
            return {"h": State((H,)), "A": State((H, H), 0.5), "n": State(())}

        def params(self) -> dict[str, Param]:
            return {}

        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            A = 0.9 * s.A + x[:, :, None] * s.h[:, None, :]
            h = ops.tanh(ops.squeeze(x[:, None, :] @ A, 1)) + ops.expand_dims(s.n, 1)
            return {"h": h, "A": A, "n": s.n + 0.25}

    model = Model(ModelConfig(cell="fast", hidden=H, layers=2, embed=str(H)), 5, (Fast(H, H), Fast(H, H)))
    params = drawn(model)
    proto = to_onnx(model, params)
    assert onnx_inputs(proto)["layers.1.A"] == "(B, 4, 4) float32" and onnx_inputs(proto)["layers.1.n"] == "(B) float32"
    assert json.loads(next(e.value for e in proto.metadata_props if e.key == "start"))["layers.0.A"] == 0.5
    assert onnx_difference(proto, model, params, np.random.default_rng(1)) < TOLERANCE


@pytest.mark.parametrize(
    "step",
    [
        lambda p, x, h: h,
        lambda p, x, h: x,
        lambda p, x, h: ops.broadcast_to(p.b, (x.shape[0], H)),
    ],
)
def test_new_states_that_are_no_value_of_their_own(step: Any) -> None:
    model = one_cell(step, {"b": (H,)})
    params = drawn(model)
    assert onnx_difference(to_onnx(model, params), model, params, np.random.default_rng(1)) < TOLERANCE


# ----------------------------------------------------------------------------------------------- refusals


@primitive
def twisted(x: Any) -> Any:
    return np.tanh(x) + x


def line(marker: str) -> str:
    """``test_onnx.py:N`` of the line with this comment."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return f"test_onnx.py:{next(i for i, text in enumerate(lines, 1) if text.endswith(f'# {marker}'))}"


def looks(p: Any, x: Any, h: Any) -> Any:
    return h if x.sum() > 0 else x  # looks


def of_its_own(p: Any, x: Any, h: Any) -> Any:
    return twisted(h)  # own op


def over_rows(p: Any, x: Any, h: Any) -> Any:
    return h - ops.mean(h, 0)  # over rows


def row_by_row(p: Any, x: Any, h: Any) -> Any:
    return ops.stack([row * 2 for row in h])  # row by row


def by_rows(p: Any, x: Any, h: Any) -> Any:
    return h[np.arange(h.shape[0])[::-1]]  # by rows


def squared(p: Any, x: Any, h: Any) -> Any:
    rows = h.shape[0] ** 2
    return h + ops.sum(ops.broadcast_to(h[:1], (rows, H)), 0) * 0  # squared


REFUSED: dict[str, tuple[Any, str]] = {
    "looks": (looks, "the step depends on a value"),
    "own op": (of_its_own, "the op twisted"),
    "over rows": (over_rows, "the op mul .* depends on the number of rows"),
    "row by row": (row_by_row, "depends on the number of rows"),
    "by rows": (by_rows, "the op getitem .* depends on the number of rows"),
    "squared": (squared, "the op broadcast_to .* depends on the number of rows"),
}


@pytest.mark.parametrize("marker", list(REFUSED))
def test_what_no_graph_can_say_names_the_line(marker: str) -> None:
    step, text = REFUSED[marker]
    model = one_cell(step)
    with pytest.raises(InputError, match=text) as caught:
        to_onnx(model, drawn(model))
    message = str(caught.value)
    assert message.startswith("cell one: ") and "\n" not in message and line(marker) in message


def test_an_op_of_ones_own_on_parameters_alone_is_no_trouble() -> None:
    model = one_cell(lambda p, x, h: h * twisted(p.b), {"b": (H,)})
    params = drawn(model)
    assert onnx_difference(to_onnx(model, params), model, params, np.random.default_rng(1)) < TOLERANCE


def test_parameters_of_another_model_are_named() -> None:
    model = make("lstm")
    params = drawn(model)
    with pytest.raises(InputError, match=r"^to_onnx: .* got none for layers\.1\.b_f$"):
        to_onnx(model, {name: value for name, value in params.items() if name != "layers.1.b_f"})
    with pytest.raises(ShapeError, match=r"^to_onnx: expected readout\.b of shape \(6,\), got \(2,\)$"):
        to_onnx(model, {**params, "readout.b": np.zeros(2, np.float32)})
    with pytest.raises(DtypeError, match="float32, float64"):
        to_onnx(model, {**params, "readout.b": np.zeros(6)})


def test_a_graph_that_onnxruntime_does_not_take_is_told() -> None:
    model = make("rnn")
    proto = to_onnx(model, drawn(model))
    proto.graph.node[0].op_type = "Gatherer"
    with pytest.raises(InputError, match=r"^onnxruntime \S+ does not take the graph \(.*Gatherer") as caught:
        onnx_session(proto)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_packages(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("rnn")
    params = drawn(model)
    proto = to_onnx(model, params)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"^{package} is not installed; pip install") as caught:
        to_onnx(model, params)
        onnx_session(proto)
    assert package == "onnxruntime" or '"tinygrad_rnn[onnx]"' in str(caught.value)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            "raise TypeError('Descriptors cannot be\\ncreated')",
            "cannot be imported (TypeError: Descriptors cannot be created)",
        ),
        ("import no_such_package", "is installed without no_such_package, which it needs"),
        ("raise ImportError('no symbol')", "cannot be imported (ImportError: no symbol)"),
    ],
)
def test_a_package_that_is_broken(source: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnx.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnx"]:
        monkeypatch.delitem(sys.modules, name)
    model = make("rnn")
    with pytest.raises(InputError) as caught:
        to_onnx(model, drawn(model))
    assert told in str(caught.value) and "\n" not in str(caught.value)
