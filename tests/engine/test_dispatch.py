"""NumPy's functions on tensors: answered by an op, or refused in one line where a gradient would be lost."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import backend, dispatch, engine, ops
from tinygrad_rnn.autodiff import gradcheck
from tinygrad_rnn.errors import GradientError, InPlaceError
from tinygrad_rnn.tensor import Tensor, grad

A = np.array([[0.5, -1.5, 2.0], [1.0, 0.25, -0.75]])
V = np.array([0.5, -1.25, 2.0])

# By the op that answers: what NumPy gives for the same arguments is right.
CALLS: dict[str, list[Callable[[Any, Any], Any]]] = {
    "abs": [lambda a, v: np.abs(a), lambda a, v: np.absolute(a)],
    "add": [lambda a, v: np.add(a, v), lambda a, v: V + a],
    "argmax": [lambda a, v: np.argmax(a, axis=1)],
    "broadcast_to": [lambda a, v: np.broadcast_to(v, (2, 3))],
    "clip": [
        lambda a, v: np.clip(a, -1, 0.9),
        lambda a, v: np.clip(a, None, 0.9),
        lambda a, v: np.clip(a, a_min=-1.0, a_max=None),
    ],
    "concatenate": [
        lambda a, v: np.concatenate([a, a], -1),
        lambda a, v: np.concatenate((a, np.ones((1, 3)))),
        lambda a, v: np.concatenate([a, v], axis=None),
        lambda a, v: np.concatenate(a),
    ],
    "cumsum": [lambda a, v: np.cumsum(a, axis=1), lambda a, v: np.cumsum(v, 0), lambda a, v: np.cumsum(a)],
    "diag": [lambda a, v: np.diag(v), lambda a, v: np.diag(v, k=1)],
    "div": [lambda a, v: np.divide(a, v), lambda a, v: np.true_divide(1.0, v), lambda a, v: A / v],
    "dot": [
        lambda a, v: np.dot(a, v),
        lambda a, v: np.dot(v, v),
        lambda a, v: np.dot(a, 2.0),
        lambda a, v: np.dot(a, A.T),
        lambda a, v: np.dot(V, a.T),
    ],
    "einsum": [
        lambda a, v: np.einsum("ij,j->i", a, v),
        lambda a, v: np.einsum("ij,kj", a, A, optimize=True),
        lambda a, v: np.einsum(a, [0, 1], v, [1], [0]),
    ],
    "exp": [lambda a, v: np.exp(a)],
    "expand_dims": [lambda a, v: np.expand_dims(a, 1)],
    "flip": [lambda a, v: np.flip(a, 0), lambda a, v: np.flip(a, axis=1), lambda a, v: np.flip(a)],
    "floor_divide": [lambda a, v: np.floor_divide(a, 0.4), lambda a, v: np.divmod(a, 0.43)[0]],
    "inner": [lambda a, v: np.inner(a, v), lambda a, v: np.inner(a, A), lambda a, v: np.inner(v, 2.0)],
    "logical_and": [lambda a, v: (A > 0.0) & (a < 1.0), lambda a, v: np.bitwise_or(a > 0.0, a < -1.0)],
    "log1p": [lambda a, v: np.log1p(np.abs(a))],
    "matmul": [lambda a, v: np.matmul(a, v), lambda a, v: A.T @ a, lambda a, v: np.linalg.matmul(a, a.T)],
    "max": [lambda a, v: np.max(a, axis=1), lambda a, v: np.max(a), lambda a, v: np.amax(a, 0, keepdims=True)],
    "maximum": [lambda a, v: np.maximum(a, 0.1)],
    "mean": [lambda a, v: np.mean(a), lambda a, v: np.mean(a, axis=(0, 1)), lambda a, v: np.mean(a, 1, keepdims=True)],
    "min": [lambda a, v: np.min(a, axis=1), lambda a, v: np.amin(a)],
    "moveaxis": [lambda a, v: np.moveaxis(a, 0, 1)],
    "mul": [lambda a, v: np.multiply(a, v), lambda a, v: A * a, lambda a, v: np.float64(3.0) * a],
    "neg": [lambda a, v: np.negative(a)],
    "norm": [
        lambda a, v: np.linalg.norm(a),
        lambda a, v: np.linalg.norm(a, axis=1, keepdims=True),
        lambda a, v: np.linalg.norm(v, 2),
        lambda a, v: np.linalg.norm(a, "fro"),
        lambda a, v: np.linalg.norm(a, 1, axis=-1),
        lambda a, v: np.linalg.norm(v, np.inf),
        lambda a, v: np.linalg.norm(v, -np.inf, keepdims=True),
    ],
    "outer": [lambda a, v: np.outer(v, v)],
    "pad": [lambda a, v: np.pad(a, [(1, 0), (0, 2)])],
    "pow": [lambda a, v: np.power(a, 2), lambda a, v: 2.0**a],
    "prod": [lambda a, v: np.prod(a, axis=1)],
    "remainder": [lambda a, v: np.remainder(a, 0.43)],
    "repeat": [lambda a, v: np.repeat(a, 2, axis=1)],
    "reshape": [
        lambda a, v: np.reshape(a, (3, 2)),
        lambda a, v: np.ravel(a),
        lambda a, v: np.reshape(a, -1, order="C"),
    ],
    "round": [lambda a, v: np.round(a), lambda a, v: np.around(a * 1.23, decimals=1)],
    "roll": [lambda a, v: np.roll(a, 1, axis=1)],
    "sign": [lambda a, v: np.sign(a)],
    "sort": [lambda a, v: np.sort(a), lambda a, v: np.sort(a, axis=0), lambda a, v: np.sort(a, kind="stable")],
    "split": [
        lambda a, v: np.split(a, [1, 1], axis=1)[2],
        lambda a, v: np.split(a, 3, axis=1)[2],
        lambda a, v: np.split(v, np.array([1, 2]))[1],
    ],
    "sqrt": [lambda a, v: np.sqrt(np.square(a))],
    "squeeze": [lambda a, v: np.squeeze(a[:1]), lambda a, v: np.squeeze(a[:1], axis=0)],
    "stack": [lambda a, v: np.stack([v, v], axis=1), lambda a, v: np.vstack([a, v]), lambda a, v: np.hstack([v, v])],
    "std": [lambda a, v: np.std(a, axis=1)],
    "sub": [lambda a, v: np.subtract(a, v), lambda a, v: V - a],
    "sum": [lambda a, v: np.sum(a), lambda a, v: np.sum(a, 1), lambda a, v: np.sum(a, axis=0, keepdims=True)],
    "swapaxes": [lambda a, v: np.swapaxes(a, 0, 1)],
    "tanh": [lambda a, v: np.tanh(a)],
    "tensordot": [lambda a, v: np.tensordot(a, A, axes=([1], [1]))],
    "tile": [lambda a, v: np.tile(v, 2)],
    "trace": [lambda a, v: np.trace(a, offset=1)],
    "transpose": [lambda a, v: np.transpose(a), lambda a, v: np.transpose(a, (1, 0))],
    "tril": [lambda a, v: np.tril(a, -1)],
    "var": [lambda a, v: np.var(a, axis=1, ddof=1)],
    "vdot": [lambda a, v: np.vdot(a, a)],
    "where": [lambda a, v: np.where(a > 0.0, a, v), lambda a, v: np.where(A > 0.0, 1.0, a)],
}
EACH = [(name, call) for name, calls in CALLS.items() for call in calls]


@pytest.mark.parametrize(("name", "call"), EACH, ids=[name for name, _ in EACH])
def test_the_op_answers(name: str, call: Callable[[Any, Any], Any], rng: np.random.Generator) -> None:
    got = call(Tensor(A, requires_grad=True), Tensor(V, requires_grad=True))
    assert isinstance(got, Tensor)
    np.testing.assert_allclose(got.data, call(A, V), rtol=1e-14)
    if name not in ("argmax", "floor_divide", "logical_and", "round", "sign"):
        assert got.requires_grad
        gradcheck(call, A, V, rng=rng)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, h: np.tanh(np.concatenate([x, h], -1)),
        lambda x, h: np.clip(h, -1, 1) + np.stack([x, h]).sum(0),
        lambda x, h: np.where(h > 0.0, np.maximum(x, h), 0.5 * h),
        lambda x, h: np.float64(2.0) * h - x,
    ],
)
def test_the_owner_of_the_arrays_computes(place: Any, call: Callable[[Any, Any], Any]) -> None:
    x, h = (Tensor(place.put(array), requires_grad=True) for array in (A, 0.5 * A))
    y = call(x, h)
    np.testing.assert_allclose(place.get(y.data), call(A, 0.5 * A), rtol=1e-14)
    assert type(y.data) is type(x.data) and grad(y.sum(), x).shape == A.shape


def test_an_array_of_the_device_on_the_left(place: Any) -> None:
    left, x = place.put(A), Tensor(place.put(A), requires_grad=True)
    for got in (left * x, left + x, left - x, left / x, left @ x.T, left < x, left == x):
        assert isinstance(got, Tensor) and type(got.data) is type(left)
    np.testing.assert_array_equal(place.get(grad((left * x).sum(), x).data), A)


def test_every_op_under_numpys_name_is_found() -> None:
    elsewhere = {"astype"}  # whose result may have another dtype, and NumPy's has no rule for that
    for name in sorted(dispatch.PUBLIC - elsewhere):
        for function in (getattr(np, name, None), getattr(np.linalg, name, None) if name in dispatch.LINALG else None):
            if function is not None:
                assert dispatch._call(function).func is not dispatch._refused, name  # type: ignore[attr-defined]


REFUSED: list[tuple[Callable[[Tensor], Any], str]] = [
    (lambda w: np.unwrap(w), r"^np\.unwrap: there is no op for it, .*; use functions of tinygrad_rnn\.ops, or"),
    (lambda w: np.append(w, 1.0), r"^np\.append: .*; use ops\.concatenate, or"),
    (lambda w: np.hypot(w, w), r"^np\.hypot: .*; use ops\.sqrt\(a \* a \+ b \* b\)"),
    (lambda w: np.fft.fft(w), r"^np\.fft\.fft: "),
    (lambda w: np.linalg.inv(w), r"^np\.linalg\.inv: "),
    (lambda w: np.linalg.norm(w, 3), r"^np\.linalg\.norm: ops\.norm is the Euclidean norm, not ord=3.*; write"),
    (lambda w: np.linalg.norm(w * np.ones((2, 1)), 2), r"^np\.linalg\.norm: ord=2 with two axes .*; give one axis"),
    (lambda w: np.linalg.trace(w * np.ones((2, 1))), r"^np\.linalg\.trace: .*; use ops\.trace\(x, 0, -2, -1\), or"),
    (lambda w: np.add.reduce(w), r"^np\.add\.reduce: .*; use ops\.sum, or"),
    (lambda w: np.sum(w, dtype="float32"), r"^np\.sum: ops\.sum takes no dtype="),
    (lambda w: np.sum(w, initial=1.0), r"^np\.sum: ops\.sum takes no initial="),
    (lambda w: np.reshape(w, -1, order="F"), r"^np\.reshape: ops\.reshape takes no order="),
    (lambda w: np.pad(w, [(1, 1)], constant_values=2.0), r"^np\.pad: .* no constant_values=.*; write ops\.pad\(x - c"),
    (lambda w: np.pad(w, [(1, 1)], mode="edge"), r"^np\.pad: ops\.pad takes no mode="),
    (lambda w: np.exp(w, out=np.empty(2)), r"^np\.exp: out= writes .*; write y = ops\.exp\(\.\.\.\), or"),
    (lambda w: np.clip(w, -1.0, 1.0, out=np.empty(2)), r"^np\.clip: out= writes .*; write y = ops\.clip\(\.\.\.\), or"),
    (lambda w: np.ones(2).__iadd__(w), r"^np\.add: out=, as in a \+= b, .*; write a = a \+ b, or"),
    (lambda w: np.ones(2).__isub__(w), r"^np\.subtract: out=, as in a -= b, .*; write a = a - b, or"),
    (lambda w: np.where(w), r"^np\.where: ops\.where takes other arguments"),
    (lambda w: np.asarray(w), r"^conversion to a NumPy array: .* got a leaf with requires_grad; .*ops\.stack for"),
    (lambda w: np.array(w), r"^conversion to a NumPy array: expected a constant"),
    (lambda w: np.array([w[0], w[1]]), r"^conversion to a NumPy array: .* got the output of getitem"),
    (lambda w: np.ones(2).dot(w), r"^conversion to a NumPy array: "),
    (lambda w: np.sum([w[0], w[1]]), r"^conversion to a NumPy array: "),
    (lambda w: np.testing.assert_array_equal(w, w), r"^conversion to a NumPy array: "),
    (lambda w: np.ones(2).__setitem__(slice(None), w), r"^conversion to a NumPy array: "),
    (lambda w: np.random.default_rng(0).normal(w), r"^conversion to a NumPy array: "),
    (lambda w: np.ma.masked_array(V[:2], [True, False]) * w, r"^conversion to a NumPy array: "),
    (lambda w: np.from_dlpack(w), r"^dlpack: expected a constant.*take its \.detach\(\)"),
    (lambda w: w.numpy(), r"^numpy: expected a constant.*take \.detach\(\)\.numpy\(\)"),
    (lambda w: w.copy(), r"^copy: expected a constant.*\.detach\(\)\.copy\(\)"),
    (lambda w: np.copy(w), r"^np\.copy: "),
    (lambda w: Tensor(w), r"^Tensor: expected a constant.*got a leaf"),
    (lambda w: Tensor(w * 2.0), r"^Tensor: expected a constant.*got the output of mul; use it as it is"),
    (lambda w: Tensor(w * 2.0, requires_grad=True), r"^Tensor: expected a constant"),
    (lambda w: Tensor([w[0], [1.0]][:1]), r"^Tensor: expected numbers, got tensors .*use ops\.stack"),
    (lambda w: Tensor([1.0, 2.0]).assign(w * 2.0), r"^assign: expected a constant.*got the output of mul; use ops"),
    (lambda w: Tensor([1.0, 2.0]).__setitem__(0, w[0]), r"^assign: expected a constant"),
    (lambda w: Tensor([1.0, 2.0]).__setitem__(slice(None), [w[0], 1.0]), r"^conversion to a NumPy array: "),
    (lambda w: w.__setitem__(0, w[0] + 1.0), r"^assign: expected a constant.*got the output of add"),
    (lambda w: (w * 2.0).to(backend.select("cpu")), r"^to: expected a constant.*take \.detach\(\)\.to\(\.\.\.\)"),
    (lambda w: grad(w * 1.0, w, [w[0], w[1]]), r"^Tensor: expected numbers"),
    (lambda w: w[[w[0], w[1]]], r"^conversion to a NumPy array: "),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_would_lose_a_gradient_is_refused(call: Callable[[Tensor], Any], message: str) -> None:
    w = Tensor([0.5, 1.5], requires_grad=True)
    with pytest.raises(GradientError, match=message) as caught:
        call(w)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(w.data, [0.5, 1.5])
    # Nothing is lost where nothing was recorded; then NumPy answers, and may say of its own that it cannot.
    try:
        call(w.detach())
    except GradientError as error:
        assert "got a constant" in str(error)
    except (ValueError, TypeError):
        pass


@pytest.mark.parametrize("name", list(dispatch.RECIPES))
def test_what_a_refusal_says_to_write_means_the_same(name: str, rng: np.random.Generator) -> None:
    recipe = dispatch.RECIPES[name]
    function = getattr(np, name, None) or getattr(np.linalg, name, None)
    if function is None:
        pytest.skip(f"needs a NumPy that has {name}")

    def write(x: Any, b: Any = None) -> Any:
        return eval(recipe, {"ops": ops, "math": math, "a": x, "b": b, "x": x})

    matrix = name in ("fliplr", "flipud", "matrix_transpose")
    arrays = [A if matrix else np.abs(V) if name == "float_power" else V + 0.07]  # away from whole numbers
    arrays += [np.array([1.5, -0.75, 0.25])] if re.search(r"\bb\b", recipe) else []
    tensors = [Tensor(array, requires_grad=True) for array in arrays]
    got = write(*tensors)
    np.testing.assert_allclose(got.data, function(*arrays), rtol=1e-14, atol=1e-15)
    if got.requires_grad and name != "heaviside":
        gradcheck(write, *arrays, rng=rng)
    if name.startswith("nan"):
        gaps = np.array([0.5, math.nan, 2.0])
        np.testing.assert_array_equal(write(Tensor(gaps)).data, function(gaps))
    if not isinstance(function, np.ufunc) or function.nin == len(arrays):
        with pytest.raises(GradientError, match=f"; use {re.escape(recipe)}, or take"):
            function(*tensors)


def test_what_has_no_gradient_is_answered_on_the_tape_too() -> None:
    w = Tensor([0.5, 1.5], requires_grad=True)
    assert (np.shape(w), np.ndim(w), np.size(w), len(w)) == ((2,), 1, 2, 2)
    assert np.argmax(w) == 1 and np.all(np.isfinite(w)) and np.allclose(w, w) and np.count_nonzero(w) == 2
    assert np.zeros_like(w).shape == (2,) and np.result_type(w, np.float32) == np.float64
    assert (float(w[0]), w[0].item(), math.floor(w[1].item()), int(w[1])) == (0.5, 0.5, 1, 1)
    assert isinstance(w > 1.0, Tensor) and isinstance(np.greater(w, 1.0), Tensor)


def test_constants_and_no_grad_leave_numpy_to_itself() -> None:
    c, w = Tensor([3.0, 1.0]), Tensor([0.5, 1.5], requires_grad=True)
    for result in (np.asarray(c), c.numpy(), np.from_dlpack(c), np.median(c)):
        assert isinstance(result, np.ndarray | np.generic)
    total = np.zeros(2)
    total += c
    np.testing.assert_array_equal(total, [3.0, 1.0])
    with engine.no_grad():
        assert np.median(w) == 1.0 and w.numpy().tolist() == np.asarray(w).tolist() == [0.5, 1.5]
        c.assign(w * 2.0)
        assert c.numpy().tolist() == Tensor(w * 2.0).numpy().tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    "write",
    [
        lambda t: np.copyto(t, 1.0),
        lambda t: np.put(t, 0, 1.0),
        lambda t: np.add.at(t, 0, 1.0),
        lambda t: np.multiply(t, 2.0, out=t),
        lambda t: np.fill_diagonal(t, 0.0),
    ],
)
def test_numpy_does_not_write_into_a_tensor_behind_the_tape(write: Callable[[Tensor], Any]) -> None:
    for t in (Tensor(np.ones((2, 2))), Tensor(np.ones((2, 2)), requires_grad=True)):
        with pytest.raises(
            InPlaceError, match=r"^np\.\S+: expected an array to write into.*, got a tensor; (use ops|write y =)"
        ):
            write(t)
        np.testing.assert_array_equal(t.data, 1.0)


def test_the_issue() -> None:
    w = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    np.testing.assert_array_equal(grad(ops.sum(w) + np.dot(w, w), w).data, 1.0 + 2.0 * w.data)
