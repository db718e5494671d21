"""Every op against NumPy and against differences: one row per op, one test per property."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

from tinygrad_rnn import ops
from tinygrad_rnn.autodiff import gradcheck
from tinygrad_rnn.errors import DtypeError
from tinygrad_rnn.tensor import Tensor, grad

TOLERANCE = {"float32": {"rtol": 2e-5, "atol": 2e-6}, "float64": {"rtol": 1e-12, "atol": 1e-13}}

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Row:
    """An op: how it is called, what NumPy says, and inputs from inside its domain.

    `extra` are arrays without a gradient (ids, masks), brought to the backend like the inputs.
    """

    name: str
    call: Callable[..., Any]
    reference: Callable[..., Any]
    shapes: Shapes = ((3, 4),)
    lims: tuple[float, float] = (-2.0, 2.0)
    extra: tuple[Any, ...] = ()
    elementwise: bool = False
    gradient: bool = True
    mark: str = ""

    @property
    def label(self) -> str:
        return f"{self.name}-{self.mark}" if self.mark else self.name

    def inputs(
        self, rng: np.random.Generator, shapes: Shapes | None = None, dtype: str = "float64"
    ) -> list[np.ndarray]:
        shapes = self.shapes if shapes is None else shapes
        return [rng.uniform(*self.lims, size=shape).astype(dtype) for shape in shapes]


def _unary(name: str, reference: Callable[..., Any], *lims: float, gradient: bool = True) -> Row:
    return Row(name, getattr(ops, name), reference, lims=lims or (-2.0, 2.0), elementwise=True, gradient=gradient)


def _binary(name: str, reference: Callable[..., Any], *lims: float, gradient: bool = True) -> Row:
    return Row(
        name, getattr(ops, name), reference, ((3, 4), (4,)), lims or (-2.0, 2.0), elementwise=True, gradient=gradient
    )


def _reduced(name: str, axis: Any, shapes: Shapes = ((3, 4),), *, gradient: bool = True) -> Row:
    ours, theirs = getattr(ops, name), getattr(np, name)
    return Row(
        name,
        lambda x: ours(x, axis, keepdims=True),
        lambda x: theirs(x, axis=axis, keepdims=True),
        shapes,
        gradient=gradient,
        mark=f"axis {axis}",
    )


def _softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf, otypes="d")(x / math.sqrt(2)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _nll(x: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return -np.take_along_axis(np.log(_softmax(x)), targets[..., None], -1)[..., 0]


def _scattered(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    out = np.zeros((4, values.shape[-1]), values.dtype)
    for row, value in zip(index, values, strict=True):
        out[row] += value
    return out


MASK = np.array([[True, False, True, True], [False, False, True, False], [True, True, False, True]])
IDS = np.array([[1, 0, 1], [3, 3, 0]])
TARGETS = np.array([1, 0, 3])
KEPT = np.array([True, False, True])

ROWS = [
    _unary("neg", np.negative),
    _unary("exp", np.exp),
    _unary("log", np.log, 0.3, 3.0),
    _unary("log1p", np.log1p, -0.7, 3.0),
    _unary("sqrt", np.sqrt, 0.3, 3.0),
    _unary("abs", np.abs),
    _unary("sin", np.sin),
    _unary("cos", np.cos),
    _unary("tanh", np.tanh),
    _unary("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    _unary("relu", lambda x: x * (x > 0)),
    _unary("softplus", lambda x: np.log1p(np.exp(x))),
    _unary("gelu", _gelu),
    Row("gelu", lambda x: ops.gelu(x, approximate="tanh"), _gelu_tanh, mark="tanh"),
    *[
        _unary(name, getattr(np, name))
        for name in ("sign", "floor", "ceil", "trunc", "rint", "square", "exp2", "expm1")
    ],
    *[_unary(name, getattr(np, name), 0.3, 3.0) for name in ("log2", "log10")],
    *[_unary(name, getattr(np, name), -0.9, 0.9) for name in ("tan", "arcsin", "arccos", "arctanh")],
    *[_unary(name, getattr(np, name)) for name in ("sinh", "cosh", "arctan", "arcsinh")],
    _unary("arccosh", np.arccosh, 1.2, 3.0),
    _unary("erf", np.vectorize(math.erf, otypes="d")),
    _unary("erfc", np.vectorize(math.erfc, otypes="d")),
    Row("round", lambda x: ops.round(x, 1), lambda x: np.round(x, 1)),
    Row("round", lambda x: ops.round(x * 20, -1), lambda x: np.round(x * 20, -1), mark="tens"),
    *[_unary(name, getattr(np, name), gradient=False) for name in ("isnan", "isinf", "isfinite", "logical_not")],
    *[_binary(name, getattr(np, name), gradient=False) for name in ("logical_and", "logical_or", "logical_xor")],
    _binary("logaddexp", np.logaddexp),
    _binary("arctan2", np.arctan2, 0.3, 2.0),
    _binary("floor_divide", np.floor_divide, 0.3, 2.0),
    _binary("remainder", np.remainder, 0.3, 2.0),
    _binary("add", np.add),
    _binary("sub", np.subtract),
    _binary("mul", np.multiply),
    _binary("div", np.divide, 0.5, 2.0),
    _binary("pow", np.power, 0.5, 2.0),
    _binary("maximum", np.maximum),
    _binary("minimum", np.minimum),
    *[
        _binary(name, getattr(np, name), gradient=False)
        for name in ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal")
    ],
    Row("pow", lambda x: ops.pow(x, 3), lambda x: x**3, mark="whole"),
    Row("pow", lambda x: ops.pow(x, 2), lambda x: x**2, mark="square"),
    Row("pow", lambda x: ops.pow(x, -1.5), lambda x: x**-1.5, lims=(0.5, 2.0), mark="negative"),
    Row("pow", lambda x: ops.pow(2, x), lambda x: 2**x, mark="base"),
    Row("clip", lambda x: ops.clip(x, low=-1.0, high=1.0), lambda x: np.clip(x, -1, 1), elementwise=True),
    Row("clip", ops.clip, np.clip, ((3, 4), (4,), (3, 1)), mark="arrays"),
    Row("clip", lambda x, low: ops.clip(x, low, 1.0), lambda x, low: np.clip(x, low, 1), ((3, 4), (4,)), mark="array"),
    Row("where", lambda a, b, c: ops.where(c, a, b), lambda a, b, c: np.where(c, a, b), ((3, 4), (4,)), extra=(MASK,)),
    Row("astype", lambda x: ops.astype(x, x.dtype), lambda x: x, mark="same"),
    Row("matmul", ops.matmul, np.matmul, ((3, 4), (4, 2))),
    Row("matmul", ops.matmul, np.matmul, ((4,), (4,)), mark="vectors"),
    Row("matmul", ops.matmul, np.matmul, ((3, 4), (4,)), mark="matrix-vector"),
    Row("matmul", ops.matmul, np.matmul, ((4,), (4, 2)), mark="vector-matrix"),
    Row("matmul", ops.matmul, np.matmul, ((2, 3, 4), (4, 2)), mark="batch"),
    Row("matmul", ops.matmul, np.matmul, ((2, 1, 3, 4), (5, 4, 2)), mark="batches"),
    Row("matmul", ops.matmul, np.matmul, ((4,), (2, 4, 3)), mark="vector-batch"),
    Row("outer", ops.outer, np.outer, ((3,), (4,))),
    Row("outer", ops.outer, np.outer, ((2, 3), ()), mark="of anything"),
    Row("dot", ops.dot, np.dot, ((4,), (4,))),
    Row("dot", ops.dot, np.dot, ((2, 3), (4, 3, 2)), mark="matrices"),
    Row("dot", lambda x: ops.dot(ops.sum(x), x), lambda x: np.dot(x.sum(), x), mark="scalar"),
    Row("inner", ops.inner, np.inner, ((2, 3), (4, 3))),
    Row("vdot", ops.vdot, np.vdot, ((2, 3), (3, 2))),
    Row("kron", ops.kron, np.kron, ((2, 3), (2,))),
    Row("tensordot", ops.tensordot, np.tensordot, ((2, 3, 4), (3, 4, 2))),
    Row("tensordot", lambda a, b: ops.tensordot(a, b, 0), lambda a, b: np.tensordot(a, b, 0), ((2,), (3,)), mark="0"),
    Row(
        "tensordot",
        lambda a, b: ops.tensordot(a, b, ((0, -1), (1, 0))),
        lambda a, b: np.tensordot(a, b, ((0, -1), (1, 0))),
        ((2, 3, 4), (4, 2)),
        mark="pairs",
    ),
    Row(
        "einsum",
        lambda a, b: ops.einsum(a, [3, 1], b, [1, 0], [0, 3]),
        lambda a, b: np.einsum(a, [3, 1], b, [1, 0], [0, 3]),
        ((2, 3), (3, 4)),
        mark="lists",
    ),
    Row(
        "einsum",
        lambda a, b: ops.einsum(a, [..., 30, 2], b, (2, 4)),
        lambda a, b: np.einsum(a, [..., 30, 2], b, (2, 4)),
        ((2, 2, 3), (3, 4)),
        mark="lists without a result",
    ),
    *[
        Row(
            "einsum",
            lambda *xs, text=text: ops.einsum(text, *xs),
            lambda *xs, text=text: np.einsum(text, *xs),
            shapes,
            mark=text,
        )
        for text, shapes in {
            "ij,jk": ((2, 3), (3, 4)),
            "ii": ((3, 3),),
            "ii->i": ((3, 3),),
            "ijk->kj": ((2, 3, 4),),
            "ij->": ((2, 3),),
            "bij,bjk->ibk": ((2, 3, 4), (2, 4, 2)),
            "i,j,k->kij": ((2,), (3,), (2,)),
            "ij,j,i": ((2, 3), (3,), (2,)),
            "iij,j->i": ((3, 3, 2), (2,)),
            "...i,i...->...": ((2, 3), (3, 2)),
            "...ij,...jk->...ik": ((2, 2, 3), (1, 3, 2)),
            "ij,kl->il": ((2, 3), (2, 2)),
            "ij,ij->j": ((2, 3), (1, 3)),
        }.items()
    ],
    Row("sum", lambda x: ops.sum(x), np.sum),
    Row("sum", lambda x: ops.sum(x, -1), lambda x: x.sum(-1), mark="axis"),
    Row("sum", lambda x: ops.sum(x, (0, 2), True), lambda x: x.sum((0, 2), keepdims=True), ((2, 3, 4),), mark="axes"),
    Row("mean", lambda x: ops.mean(x, 0), lambda x: x.mean(0)),
    *[_reduced(name, (0, 2), ((2, 3, 4),)) for name in ("var", "std", "prod")],
    Row("var", lambda x: ops.var(x, 1, ddof=1), lambda x: np.var(x, 1, ddof=1), mark="unbiased"),
    Row("std", lambda x: ops.std(x, ddof=1), lambda x: np.std(x, ddof=1), mark="unbiased"),
    Row("prod", lambda x: ops.prod(x, 1), lambda x: np.prod(x, 1), ((2, 7),), mark="odd"),
    Row("cumprod", lambda x: ops.cumprod(x, 1), lambda x: np.cumprod(x, 1), ((2, 7),)),
    Row("cumprod", ops.cumprod, np.cumprod, ((2, 3),), mark="flat"),
    Row("trace", lambda x: ops.trace(x, 1, -1, 0), lambda x: np.trace(x, 1, -1, 0), ((3, 2, 4),)),
    *[_reduced(name, axis, gradient=False) for name in ("argmax", "argmin") for axis in (None, 1)],
    Row("max", lambda x: ops.max(x, 1), lambda x: x.max(1)),
    Row("max", lambda x: ops.max(x, (0, 2), True), lambda x: x.max((0, 2), keepdims=True), ((2, 3, 4),), mark="axes"),
    Row("min", lambda x: ops.min(x), np.min),
    Row("norm", lambda x: ops.norm(x, 1), lambda x: np.linalg.norm(x, axis=1)),
    Row("logsumexp", lambda x: ops.logsumexp(x, 1), lambda x: np.log(np.exp(x).sum(1))),
    Row("softmax", lambda x: ops.softmax(x, 0), lambda x: _softmax(x, 0)),
    Row("log_softmax", ops.log_softmax, lambda x: np.log(_softmax(x))),
    Row("cumsum", lambda x: ops.cumsum(x, 1), lambda x: np.cumsum(x, 1)),
    Row("cumsum", ops.cumsum, np.cumsum, mark="flat"),
    Row("sort", ops.sort, np.sort),
    Row("sort", lambda x: ops.sort(x, 0), lambda x: np.sort(x, 0), ((3, 2, 2),), mark="axis"),
    Row("sort", lambda x: ops.sort(x, None), lambda x: np.sort(x, None), mark="flat"),
    Row("argsort", lambda x: ops.argsort(x, 0), lambda x: np.argsort(x, 0), gradient=False),
    Row("argsort", lambda x: ops.argsort(x, None), lambda x: np.argsort(x, None), gradient=False, mark="flat"),
    Row("ravel", ops.ravel, np.ravel),
    Row("moveaxis", lambda x: ops.moveaxis(x, 0, -1), lambda x: np.moveaxis(x, 0, -1), ((2, 3, 4),)),
    Row(
        "moveaxis",
        lambda x: ops.moveaxis(x, (0, 1), (-1, 0)),
        lambda x: np.moveaxis(x, (0, 1), (-1, 0)),
        ((2, 3, 4),),
        mark="several",
    ),
    Row("roll", lambda x: ops.roll(x, 5), lambda x: np.roll(x, 5)),
    Row("roll", lambda x: ops.roll(x, -1, 1), lambda x: np.roll(x, -1, 1), mark="axis"),
    Row("roll", lambda x: ops.roll(x, (1, 2), (0, 1)), lambda x: np.roll(x, (1, 2), (0, 1)), mark="axes"),
    Row("repeat", lambda x: ops.repeat(x, 2), lambda x: np.repeat(x, 2)),
    Row("repeat", lambda x: ops.repeat(x, 3, 1), lambda x: np.repeat(x, 3, 1), mark="axis"),
    Row("repeat", lambda x: ops.repeat(x, (2, 0, 1), 0), lambda x: np.repeat(x, (2, 0, 1), 0), mark="counts"),
    Row("tile", lambda x: ops.tile(x, 2), lambda x: np.tile(x, 2)),
    Row("tile", lambda x: ops.tile(x, (2, 1, 3)), lambda x: np.tile(x, (2, 1, 3)), mark="more axes"),
    Row("diag", ops.diag, np.diag, ((3,),)),
    Row("diag", lambda x: ops.diag(x, -1), lambda x: np.diag(x, -1), mark="of a matrix"),
    Row("diagonal", lambda x: ops.diagonal(x, -1, 0, 2), lambda x: np.diagonal(x, -1, 0, 2), ((3, 2, 4),)),
    Row("tril", ops.tril, np.tril),
    Row("triu", lambda x: ops.triu(x, 1), lambda x: np.triu(x, 1), ((2, 3, 4),)),
    Row("reshape", lambda x: ops.reshape(x, (2, -1)), lambda x: x.reshape(2, 6)),
    Row("transpose", lambda x: ops.transpose(x, (2, 0, 1)), lambda x: x.transpose(2, 0, 1), ((2, 3, 4),)),
    Row("swapaxes", lambda x: ops.swapaxes(x, 0, -1), lambda x: x.swapaxes(0, -1), ((2, 3, 4),)),
    Row("broadcast_to", lambda x: ops.broadcast_to(x, (2, 3, 4)), lambda x: np.broadcast_to(x, (2, 3, 4)), ((3, 1),)),
    Row("expand_dims", lambda x: ops.expand_dims(x, -1), lambda x: x[..., None]),
    Row("squeeze", lambda x: ops.squeeze(x, 1), lambda x: x[:, 0], ((3, 1, 2),)),
    Row("squeeze", lambda x: ops.squeeze(x), np.squeeze, ((3, 1, 1),), mark="all"),
    Row("concatenate", lambda *x: ops.concatenate(x, 1), lambda *x: np.concatenate(x, 1), ((3, 4), (3, 1), (3, 2))),
    Row("stack", lambda *x: ops.stack(x, -1), lambda *x: np.stack(x, -1), ((3, 4), (3, 4))),
    Row("split", lambda x: ops.stack(ops.split(x, 2, 1)[::-1]), lambda x: np.stack(np.split(x, 2, 1)[::-1])),
    Row("split", lambda x: ops.split(x, (1, 3), 1)[1], lambda x: x[:, 1:], mark="sizes"),
    Row("flip", lambda x: ops.flip(x, 1), lambda x: x[:, ::-1]),
    Row("flip", ops.flip, np.flip, mark="all"),
    Row("expand_dims", lambda x: ops.expand_dims(x, (0, -1)), lambda x: np.expand_dims(x, (0, -1)), mark="several"),
    Row("squeeze", lambda x: ops.squeeze(x, (0, 2)), lambda x: np.squeeze(x, (0, 2)), ((1, 3, 1, 1),), mark="several"),
    Row(
        "concatenate",
        lambda a, b: ops.concatenate([a, b], None),
        lambda a, b: np.concatenate([a, b], None),
        ((2, 3), (4,)),
        mark="flat",
    ),
    Row("pad", lambda x: ops.pad(x, 1), lambda x: np.pad(x, 1), mark="number"),
    Row("pad", lambda x: ops.pad(x, (1, 2)), lambda x: np.pad(x, (1, 2)), mark="pair"),
    Row("pad", lambda x: ops.pad(x, ((1, 0), (0, 2))), lambda x: np.pad(x, ((1, 0), (0, 2)))),
    Row("getitem", lambda x: ops.getitem(x, (slice(None), slice(1, None, 2))), lambda x: x[:, 1::2]),
    Row("getitem", lambda x: ops.getitem(x, (1, None, ...)), lambda x: x[1, None, ...], mark="integer"),
    Row("getitem", lambda x: ops.getitem(x, ([0, 2, 0], [1, 1, 1])), lambda x: x[[0, 2, 0], [1, 1, 1]], mark="lists"),
    Row("getitem", lambda x: ops.getitem(x, ((0, 2, 0), 1)), lambda x: x[(0, 2, 0), 1], mark="tuple"),
    Row("getitem", ops.getitem, lambda x, i: x[i], extra=(np.array([2, 0, 2, -1]),), mark="array"),
    Row("getitem", ops.getitem, lambda x, i: x[i], extra=(MASK,), mark="mask"),
    Row("getitem", ops.getitem, lambda x, i: x[i], ((5,),), extra=(np.array([4, 4, 0]),), mark="vector"),
    Row("scatter", lambda v, i: ops.scatter(v, i, (4, 2)), _scattered, ((3, 2),), extra=(np.array([1, 3, 1]),)),
    Row("embedding", ops.embedding, lambda x, i: x[i], ((4, 2),), extra=(IDS,)),
    Row("cross_entropy", ops.cross_entropy, lambda x, t: _nll(x, t).mean(), extra=(TARGETS,)),
    Row("cross_entropy", lambda x, t: ops.cross_entropy(x, t, reduction="none"), _nll, extra=(TARGETS,), mark="none"),
    Row(
        "cross_entropy",
        lambda x, t: ops.cross_entropy(x, t, reduction="sum"),
        lambda x, t: _nll(x, t).sum(),
        ((2, 3, 4),),
        extra=(np.stack([TARGETS, TARGETS[::-1]]),),
        mark="sum",
    ),
    Row(
        "cross_entropy",
        lambda x, t, m: ops.cross_entropy(x, t, mask=m),
        lambda x, t, m: _nll(x, t)[m].mean(),
        extra=(TARGETS, KEPT),
        mark="mask",
    ),
]


def rows(wanted: Callable[[Row], bool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", [row for row in ROWS if wanted(row)], ids=lambda row: row.label)


each = rows(lambda row: True)
each_differentiable = rows(lambda row: row.gradient)


def test_every_public_op_has_a_row() -> None:
    public = {name for name in vars(ops) if not name.startswith("_") and callable(getattr(ops, name))}
    assert public == {row.name for row in ROWS}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each
def test_value_and_dtype(row: Row, dtype: str, place: Any, rng: np.random.Generator) -> None:
    inputs = row.inputs(rng, dtype=dtype)
    expected = row.reference(*inputs, *row.extra)
    extra = [place.put(array) for array in row.extra]
    got = row.call(*[Tensor(place.put(x), requires_grad=row.gradient) for x in inputs], *extra)
    assert isinstance(got, Tensor)
    assert type(got.data) is type(place.put(inputs[0]))
    assert got.shape == expected.shape
    assert got.dtype == (expected.dtype if expected.dtype.kind in "bi" else dtype)
    np.testing.assert_allclose(place.get(got.data), expected, **TOLERANCE[dtype])
    plain = row.call(*[place.put(x) for x in inputs], *extra)  # the same function on arrays
    assert type(place.get(plain)) is not Tensor
    np.testing.assert_array_equal(place.get(plain), place.get(got.data))


@each_differentiable
def test_gradient_twice(row: Row, rng: np.random.Generator) -> None:
    gradcheck(lambda *xs: row.call(*xs, *row.extra), *row.inputs(rng), rng=rng, order=2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_differentiable
def test_gradients_on_every_backend(row: Row, dtype: str, place: Any, rng: np.random.Generator) -> None:
    """First and second order run on the backend, keep the dtype, and equal NumPy's in float64."""
    inputs = row.inputs(rng, dtype=dtype)

    def twice(put: Callable[[Any], Any], cast: str) -> list[Tensor]:
        xs = [Tensor(put(x.astype(cast)), requires_grad=True) for x in inputs]
        y = row.call(*xs, *[put(array) for array in row.extra])
        first = grad(ops.sum(y * y), xs, create_graph=True)
        total = ops.sum(first[0] * first[0])
        for g in first[1:]:
            total = total + ops.sum(g * g)
        return [*first, *grad(total, xs)]

    for got, expected in zip(twice(place.put, dtype), twice(np.asarray, "float64"), strict=True):
        assert type(got.data) is type(place.put(inputs[0]))
        assert got.dtype == dtype
        scale = float(np.max(np.abs(expected.data), initial=1.0))
        np.testing.assert_allclose(place.get(got.data) / scale, expected.data / scale, **TOLERANCE[dtype])


@each_differentiable
def test_inputs_that_are_not_contiguous(row: Row, rng: np.random.Generator) -> None:
    inputs = row.inputs(rng)
    strided = [np.repeat(x, 2, axis=-1)[..., ::2].T.copy().T for x in inputs]

    def gradients(xs: list[np.ndarray]) -> list[np.ndarray]:
        leaves = [Tensor(x, requires_grad=True) for x in xs]
        y = row.call(*leaves, *row.extra)
        return [y.data, *(g.data for g in grad(ops.sum(y * y), leaves))]

    for got, expected in zip(gradients(strided), gradients(inputs), strict=True):
        np.testing.assert_allclose(got, expected, **TOLERANCE["float64"])


@each
def test_without_gradient_nothing_is_recorded(row: Row, rng: np.random.Generator) -> None:
    assert row.call(*[Tensor(x) for x in row.inputs(rng)], *row.extra).node is None


@rows(lambda row: row.elementwise and len(row.shapes) == 2)
@given(data=st.data())
def test_broadcasting(row: Row, data: st.DataObject) -> None:
    shapes = data.draw(mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3, min_side=0))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    inputs = row.inputs(rng, shapes.input_shapes)
    y = row.call(*[Tensor(x) for x in inputs])
    assert y.shape == shapes.result_shape
    np.testing.assert_allclose(y.data, row.reference(*inputs), **TOLERANCE["float64"])
    if row.gradient and 0 not in shapes.result_shape:
        gradcheck(row.call, *inputs, rng=rng, order=1, rtol=1e-5, atol=1e-6)


@rows(lambda row: row.elementwise and len(row.shapes) == 1)
@given(shape=st.lists(st.integers(0, 3), max_size=3).map(tuple), seed=st.integers(0, 99))
def test_any_shape(row: Row, shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    [x] = row.inputs(rng, (shape,))
    y = row.call(Tensor(x, requires_grad=True))
    assert y.shape == shape
    np.testing.assert_allclose(y.data, row.reference(x), **TOLERANCE["float64"])


# The primitive that meets the arrays of an op that is composed.
COMPOSED = dict.fromkeys(("dot", "inner", "vdot", "tensordot", "einsum"), "matmul")
COMPOSED |= {"outer": "mul", "kron": "mul", "clip": "where"}


@rows(lambda row: row.gradient and len(row.shapes) > 1)
def test_two_dtypes_are_an_error_that_names_the_op(row: Row, rng: np.random.Generator) -> None:
    first, *others = row.inputs(rng)
    name = COMPOSED.get(row.name, row.name)
    both = "(float32.*float64|float64.*float32)"
    with pytest.raises(DtypeError, match=rf"^{name}: expected one floating dtype, got .*{both}"):
        row.call(Tensor(first.astype("float32"), requires_grad=True), *[Tensor(x) for x in others], *row.extra)


@pytest.mark.parametrize("scalar", [2, 2.0, np.float64(2), np.float32(2), np.int64(2)], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scalars_are_weak(scalar: Any, dtype: str, place: Any) -> None:
    x = Tensor(place.put(np.ones((2, 3), dtype)), requires_grad=True)
    for y in (
        x + scalar,
        scalar - x,
        x * scalar,
        scalar / x,
        x**scalar,
        scalar**x,
        ops.maximum(x, scalar),
        ops.where(x > scalar, x, scalar),
    ):
        assert y.dtype == dtype
        assert grad(y.sum(), x).dtype == dtype
