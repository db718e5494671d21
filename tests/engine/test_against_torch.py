"""PyTorch's opinion on expressions made of many ops: values, gradients, second order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import ops
from tinygrad_rnn.tensor import Tensor, grad

pytestmark = pytest.mark.torch


def lstm_step(o: Any, x: Any, w: Any) -> Any:
    gates = x @ w
    i, f, c, g = (gates[:, k * 2 : (k + 1) * 2] for k in range(4))
    return o.sigmoid(g) * o.tanh(o.sigmoid(f) * x[:, :2] + o.sigmoid(i) * o.tanh(c))


def attention(o: Any, x: Any, w: Any) -> Any:
    q = x @ w
    return o.softmax(q @ o.swapaxes(q, 0, 1), -1) @ q


EXPRESSIONS = {
    "lstm": lstm_step,
    "attention": attention,
    "normalised": lambda o, x, w: o.log_softmax(x @ w, -1) - o.logsumexp(x, 1)[:, None],
    "powers": lambda o, x, w: o.sqrt(o.exp(x @ w) + 1.0) / ((x @ w) ** 2 + 0.5),
    "pieces": lambda o, x, w: o.concatenate([o.cumsum(x, 1) @ w, o.flip(o.softplus(x @ w), 0)], 0),
    "cuts": lambda o, x, w: o.where(x @ w > 0.1, o.relu(x @ w), o.minimum(x @ w, o.sin(x @ w))),
    "loss": lambda o, x, w: o.cross_entropy(x @ w, [1, 0, 5]),
    "gathered": lambda o, x, w: o.gelu(w[[0, 0, 2]]) * o.gelu(w[[1, 0, 2]]),
}


def in_torch(torch: Any) -> Any:
    """The few of our functions whose name or arguments differ in PyTorch."""
    functional = torch.nn.functional
    return type(
        "Torch",
        (),
        {
            **{
                name: staticmethod(getattr(torch, name))
                for name in (
                    "sigmoid",
                    "tanh",
                    "exp",
                    "sqrt",
                    "softmax",
                    "log_softmax",
                    "logsumexp",
                    "swapaxes",
                    "cumsum",
                    "where",
                    "relu",
                    "minimum",
                    "sin",
                    "concatenate",
                )
            },
            "softplus": staticmethod(functional.softplus),
            "flip": staticmethod(lambda x, axis: torch.flip(x, (axis,))),
            "gelu": staticmethod(functional.gelu),
            "cross_entropy": staticmethod(lambda x, t: functional.cross_entropy(x, torch.tensor(t))),
        },
    )


class Ours:
    def __getattr__(self, name: str) -> Any:
        if name == "cross_entropy":
            return lambda x, t: ops.cross_entropy(x, np.array(t))
        return getattr(ops, name)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_same_value_and_gradients(name: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the other opinion here; it is not installed")
    x, w = rng.normal(size=(3, 4)), rng.normal(size=(4, 8))

    ours = [Tensor(x, requires_grad=True), Tensor(w, requires_grad=True)]
    y = EXPRESSIONS[name](Ours(), *ours)
    first = grad((y * y).sum(), ours, create_graph=True, unused="zeros")
    second = grad((first[1] * first[1]).sum(), ours, unused="zeros")

    theirs = [torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)]
    z = EXPRESSIONS[name](in_torch(torch), *theirs)
    known = torch.autograd.grad((z * z).sum(), theirs, create_graph=True, allow_unused=True, materialize_grads=True)
    twice = torch.autograd.grad((known[1] * known[1]).sum(), theirs, allow_unused=True, materialize_grads=True)

    for got, expected in zip([y, *first, *second], [z, *known, *twice], strict=True):
        np.testing.assert_allclose(got.data, expected.detach().numpy(), rtol=1e-9, atol=1e-9)
