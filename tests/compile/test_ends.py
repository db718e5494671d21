"""Embedding, readout and cross-entropy in machine code: against the ops, against finite differences, and without it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import ShapeError, Tensor, grad, gradcheck, ops
from tinygrad_rnn.compile import ends
from tinygrad_rnn.compile.ends import affine, cross_entropy, lookup, product, square_sum, surprise


@pytest.fixture(params=["machine code", "numpy"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to compute; small arrays go through machine code too."""
    monkeypatch.setattr(ends, "SMALL", 0)
    if request.param == "numpy":
        monkeypatch.setattr(ends, "_kernel", lambda dtype, name: None)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("M, K, N", [(1, 1, 1), (3, 5, 2), (7, 16, 65), (40, 33, 17), (300, 70, 130)])
def test_affine_is_the_product_and_the_bias(kernels: None, M: int, K: int, N: int, dtype: Any) -> None:
    rng = np.random.default_rng(M)
    tensors = [Tensor(rng.normal(size=s).astype(dtype), requires_grad=True) for s in ((M, K), (K, N), (N,))]
    g = rng.normal(size=(M, N)).astype(dtype)
    ours, plain = affine(*tensors), tensors[0] @ tensors[1] + tensors[2]
    rough = {"rtol": 1e-4, "atol": 1e-4} if dtype == np.float32 else {"rtol": 1e-11, "atol": 1e-12}
    np.testing.assert_allclose(ours.data, plain.data, **rough)
    for a, b in zip(grad(ours, tensors, g), grad(plain, tensors, g), strict=True):
        np.testing.assert_allclose(a.data, b.data, **rough)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (31,), (64,), (5, 1003), (2, 3, 4)])
def test_square_sum_is_that_of_float64(kernels: None, shape: tuple[int, ...], dtype: Any) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    expected = math.fsum(float(value) ** 2 for value in x.reshape(-1))
    assert square_sum(x) == pytest.approx(expected, rel=1e-14)
    assert square_sum(x.T) == pytest.approx(expected, rel=1e-14)


def test_square_sum_of_what_no_float32_holds(kernels: None) -> None:
    assert square_sum(np.full(3, 1e30, np.float32)) == pytest.approx(3e60, rel=1e-6)
    assert square_sum(np.full(3, 1e-30, np.float32)) == pytest.approx(3e-60, rel=1e-6)
    assert square_sum(np.array([1.0, np.inf], np.float32)) == np.inf
    assert np.isnan(square_sum(np.array([1.0, np.nan], np.float32)))


def test_products_of_transposed_and_strided_matrices(kernels: None) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 20)), rng.normal(size=(30, 26))
    np.testing.assert_allclose(product(a.T, b), a.T @ b, rtol=1e-12)
    np.testing.assert_allclose(product(a[::3, ::-1], b[:20, ::2]), a[::3, ::-1] @ b[:20, ::2], rtol=1e-12)
    with pytest.raises(ShapeError, match="product"):
        product(Tensor(a), Tensor(b))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("N, V", [(1, 2), (3, 5), (7, 65), (40, 16), (300, 129)])
def test_cross_entropy_is_that_of_the_ops(kernels: None, N: int, V: int, dtype: Any) -> None:
    rng = np.random.default_rng(N)
    logits = Tensor((rng.normal(size=(N, V)) * 5).astype(dtype), requires_grad=True)
    y = rng.integers(0, V, N)
    ours, plain = cross_entropy(logits, y), ops.cross_entropy(logits, y)
    np.testing.assert_allclose(ours.data, plain.data, rtol=3e-6 if dtype == np.float32 else 1e-13)
    bound = 1e-6 if dtype == np.float32 else 1e-14
    np.testing.assert_allclose(grad(ours, logits).data, grad(plain, logits).data, rtol=0, atol=bound)


def test_huge_logits_are_no_trouble_and_bad_ones_stay_bad(kernels: None) -> None:
    y = np.array([0, 1])
    sure = cross_entropy(np.array([[1e5, 0.0], [-1e5, 1e5]]), y, reduction="none")
    np.testing.assert_array_equal(np.asarray(sure), [0.0, 0.0])
    with np.errstate(all="ignore"):
        bad = cross_entropy(np.array([[np.nan, 0.0], [np.inf, 1.0]]), y, reduction="none")
    assert np.isnan(np.asarray(bad)).all()


def test_lookup_adds_up_rows_named_twice(kernels: None) -> None:
    rng = np.random.default_rng(0)
    for V, H, count in ((3, 1, 1), (5, 17, 40), (65, 128, 300)):
        table = Tensor(rng.normal(size=(V, H)), requires_grad=True)
        ids = rng.integers(0, V, (count, 2))
        rows = lookup(table, ids=ids, shape=(V, H))
        np.testing.assert_array_equal(rows.data, table.data[ids])
        g = rng.normal(size=rows.shape)
        expected = np.zeros((V, H))
        np.add.at(expected, ids, g)
        np.testing.assert_allclose(grad(rows, table, g).data, expected, rtol=1e-12, atol=1e-13)


def test_gradients_of_both_orders(kernels: None) -> None:
    rng = np.random.default_rng(0)
    y, weights = np.array([0, 3, 1]), np.array([1.0, -2.0, 0.5])
    gradcheck(lambda v: cross_entropy(v, y), rng.normal(size=(3, 4)), rng=rng)
    gradcheck(lambda v: ops.sum(surprise(v, targets=y) * weights), rng.normal(size=(3, 4)), rng=rng)
    gradcheck(lambda v: ops.sum(ops.tanh(lookup(v, ids=y, shape=(4, 2)))), rng.normal(size=(4, 2)), rng=rng)
    gradcheck(
        lambda x, w, b: ops.sum(ops.tanh(affine(x, w, b))),
        rng.normal(size=(3, 4)), rng.normal(size=(4, 2)), rng.normal(size=2), rng=rng,
    )  # fmt: skip
