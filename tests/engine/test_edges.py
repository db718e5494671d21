"""Every op at the edges of float16 and float32, in value and gradient, against the same in float64, rounded."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import ops
from tinygrad_rnn.compile.ends import cross_entropy
from tinygrad_rnn.tensor import Tensor, grad

Array = np.ndarray

ONE: dict[str, Callable[..., Any]] = {
    name: getattr(ops, name)
    for name in (
        "neg exp log log1p sqrt abs sin cos tan tanh sigmoid relu softplus gelu erf erfc sign floor ceil trunc rint "
        "round square exp2 expm1 log2 log10 arcsin arccos arctan arcsinh arccosh arctanh sinh cosh"
    ).split()
} | {
    "gelu tanh": lambda x: ops.gelu(x, approximate="tanh"),
    "clip": lambda x: ops.clip(x, -1.0, 1.0),
    **{f"pow {p}": lambda x, p=p: ops.pow(x, p) for p in (0, 0.5, 1, 2, 3, -1, -2.5)},
    **{f"{base} pow": lambda x, base=base: ops.pow(base, x) for base in (0.5, 3)},
}
TWO = (
    "add sub mul div pow maximum minimum logaddexp arctan2 floor_divide remainder equal not_equal greater "
    "greater_equal less less_equal logical_and logical_or"
).split()
OVER: dict[str, Callable[..., Any]] = {
    name: getattr(ops, name)
    for name in (
        "sum mean var std norm max min prod cumsum cumprod logsumexp softmax log_softmax sort argmax argmin"
    ).split()
} | {
    "cross_entropy": lambda x: ops.cross_entropy(x, np.array(0)),
    "compiled cross_entropy": lambda x: cross_entropy(x[None], np.array([1])),
}
ROUNDED = {"tanh", "sigmoid", "gelu tanh"}  # 1 - y is rounded as y is: a slope near 0 is right to an ulp of 1
# Beyond what float32 holds on the way, though not in the end, as in NumPy and PyTorch: a sum that overflows.
SUMS = {"mean", "var", "std"}


def numbers(dtype: str) -> Array:
    kind = np.finfo(dtype)
    sizes = [0.0, kind.smallest_subnormal, kind.tiny, kind.eps, 0.25, 1, 3, 30, 300, 1e4, kind.max / 4, kind.max]
    positive = np.array([*sizes, math.inf], dtype)
    return np.concatenate([-positive, positive, np.array([math.nan], dtype)])


def outcome(op: Callable[..., Any], inputs: list[Array], dtype: str) -> list[Array]:
    """The value, and the gradient of its sum with respect to each input."""
    xs = [Tensor(x.astype(dtype), requires_grad=True) for x in inputs]
    with np.errstate(all="ignore"):
        y = op(*xs)
        if y.dtype != dtype:
            return [y.data]
        return [y.data, *(g.data for g in grad(ops.sum(y), xs))]


def assert_rounded(op: Callable[..., Any], inputs: list[Array], dtype: str, *, slack: float = 0.0) -> None:
    """Equal to float64's to 8 ulp, and to `slack` ulp of 1. Where there is no value a gradient means nothing."""
    kind = np.finfo(dtype)
    got, expected = outcome(op, inputs, dtype), outcome(op, inputs, "float64")
    for i, (a, exact) in enumerate(zip(got, expected, strict=True)):
        with np.errstate(all="ignore"):
            b = exact.astype(a.dtype).astype("float64")
            near = np.abs(a - b) <= 8 * kind.eps * np.abs(b) + slack * kind.eps + 4 * kind.smallest_subnormal
            right = near | (a == b) | (np.isnan(a) & np.isnan(b))
        if i:
            right = right | np.isnan(expected[0] if a.shape == expected[0].shape else 0.0)
        if not right.all():
            at = tuple(np.argwhere(~right)[0])
            given = [float(x[at]) for x in inputs]
            pytest.fail(f"{'value' if not i else f'gradient {i}'} at {given}: expected {b[at]}, got {a[at]}")


each_dtype = pytest.mark.parametrize("dtype", ["float16", "float32"])


@each_dtype
@pytest.mark.parametrize("name", ONE)
def test_functions_of_one_number(name: str, dtype: str) -> None:
    assert_rounded(ONE[name], [numbers(dtype)], dtype, slack=4 if name in ROUNDED else 0)


@each_dtype
@pytest.mark.parametrize("name", TWO)
def test_functions_of_two_numbers(name: str, dtype: str) -> None:
    a, b = (grid.ravel() for grid in np.meshgrid(numbers(dtype), numbers(dtype)))
    if name == "pow":  # p - 1 is rounded to p, or x ** (p - 1) overflows before the product with p
        tame = (np.abs(b) < 1e3) & ((np.abs(b) >= 1) | (np.abs(a) > 0.1))
        a, b = a[tame], b[tame]
    assert_rounded(getattr(ops, name), [a, b], dtype)


@each_dtype
@pytest.mark.parametrize("name", OVER)
def test_functions_of_many_numbers(name: str, dtype: str) -> None:
    kind = np.finfo(dtype)
    top, least, none = float(kind.max), float(kind.smallest_subnormal), -math.inf
    for row in (
        [top, top], [top / 2, top / 4, 1.0], [top, -top], [-top] * 3, [float(kind.tiny)] * 2, [least] * 2, [0.0, 0.0],
        [1e4, 1e4, 1e4], [none, 1.0], [none, none], [300.0, 200.0, -5.0], [1.0] * 3000, [30.0] * 3000,
    ):  # fmt: skip
        if name in SUMS and dtype == "float32" and top in np.abs(row):
            continue
        if name == "compiled cross_entropy" and row == [top, -top]:
            continue  # the loss, from which the gradient is made, is twice the largest number
        x = np.array(row, dtype)
        assert_rounded(OVER[name], [x], dtype, slack=4.0)


def test_examples() -> None:
    many = Tensor(np.full(3000, 100.0, "float16"), requires_grad=True)
    assert ops.mean(many).item() == 100.0
    assert ops.cross_entropy(Tensor(np.full((100, 2), 6e4, "float16")), np.zeros(100, int)).item() < 0.7
    far = Tensor(np.array([1e4, -1e4], "float16"), requires_grad=True)
    for approximate in ("none", "tanh"):
        np.testing.assert_array_equal(grad(ops.sum(ops.gelu(far, approximate)), far).data, [1.0, 0.0])
    for dtype, size in (("float32", 1e-30), ("float32", 1e30), ("float16", 1e-6), ("float16", 1e4)):
        x = Tensor(np.array([3 * size, 4 * size], dtype), requires_grad=True)
        y = ops.norm(x)
        assert y.item() == pytest.approx(5 * size, rel=0.1 if size == 1e-6 else 1e-3)
        np.testing.assert_allclose(grad(y, x).data, [0.6, 0.8], rtol=0.05 if size == 1e-6 else 1e-3)
    x, p = Tensor(np.array([1e-310, 5e-324, 0.0]), requires_grad=True), np.zeros(3)
    np.testing.assert_array_equal(grad(ops.sum(x**p), x).data, 0.0)
    x = Tensor(np.array([1e8, 1e8], "float32"), requires_grad=True)
    np.testing.assert_allclose(grad(ops.logsumexp(x), x).data, 0.5)  # 1e8 + log(2) is 1e8
    np.testing.assert_allclose(grad(cross_entropy(x[None], np.array([0])), x).data, [-0.5, 0.5], rtol=1e-6)


def test_the_error_function_is_as_accurate_as_it_says() -> None:
    x = np.concatenate([np.linspace(-27, 27, 40_001), 10.0 ** np.linspace(-300, 0, 500)])
    for ours, exact, bound in ((ops.erf, math.erf, 1e-15), (ops.erfc, math.erfc, 2e-15)):
        expected = np.array([exact(value) for value in x])
        normal = np.abs(expected) > 1e-307
        np.testing.assert_allclose(np.asarray(ours(x))[normal], expected[normal], rtol=bound, atol=0)


def test_nothing_to_reduce() -> None:
    """NumPy's and PyTorch's answers, without a warning, and a gradient of the right shape."""
    x = Tensor(np.ones((2, 0)), requires_grad=True)
    for op, expected in (
        (ops.mean, math.nan), (ops.var, math.nan), (ops.std, math.nan), (ops.logsumexp, -math.inf), (ops.sum, 0.0),
        (ops.prod, 1.0), (ops.norm, 0.0),
    ):  # fmt: skip
        y = op(x, 1)
        np.testing.assert_array_equal(y.data, [expected] * 2)
        assert grad(ops.sum(y), x).shape == (2, 0)
    for op in (ops.softmax, ops.log_softmax, ops.cumsum, ops.cumprod, ops.sort):
        y = op(x, 1)
        assert y.shape == (2, 0) and grad(ops.sum(y), x).shape == (2, 0)


@pytest.mark.parametrize("ddof", [3, 4])
@pytest.mark.parametrize("op", ["var", "std"])
def test_fewer_numbers_than_degrees_of_freedom(op: str, ddof: int) -> None:
    """As NumPy: the sum of squares divided by 0, which is infinite, or NaN where all numbers are equal."""
    x = np.array([[0.5, 1.5, 2.5], [2.0, 2.0, 2.0]])
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dtype in ("float16", "float32", "float64"):
            expected = getattr(np, op)(x.astype(dtype), 1, ddof=ddof)
            np.testing.assert_array_equal(getattr(ops, op)(Tensor(x.astype(dtype)), 1, ddof=ddof).data, expected)
        assert np.isnan(getattr(ops, op)(Tensor(np.zeros((2, 0))), 1).data).all()
