"""The public surface in one breath: import, compute, differentiate, check. Run by the pre-commit hook."""

from __future__ import annotations

import numpy as np
import pytest

import tinygrad_rnn as tg


def test_a_gradient() -> None:
    w = tg.Tensor(np.array([[0.5, -1.0], [0.25, 2.0]]), requires_grad=True)
    h = tg.ops.tanh(np.ones((1, 2)) @ w)
    loss = (h * h).sum()
    to_w, to_h = tg.grad(loss, [w, h])
    np.testing.assert_allclose(to_h.data, 2 * h.data)
    np.testing.assert_allclose(to_w.data, np.ones((2, 1)) * (2 * h.data * (1 - h.data**2)))
    loss.backward()
    assert w.grad is not None
    np.testing.assert_array_equal(w.grad.data, to_w.data)


def test_the_checker(rng: np.random.Generator) -> None:
    tg.gradcheck(lambda x, w: tg.ops.log_softmax(x @ w), rng.normal(size=(2, 3)), rng.normal(size=(3, 4)), rng=rng)


def test_no_grad_and_errors() -> None:
    x = tg.Tensor(np.ones(2), requires_grad=True)
    with tg.no_grad():
        assert not (x * 2.0).requires_grad
    with pytest.raises(tg.ShapeError, match="add"):
        x + np.ones(3)
    assert issubclass(tg.ShapeError, tg.TinygradRNNError)
