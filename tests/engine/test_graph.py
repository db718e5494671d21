"""Graph pictures: what is drawn, as text; Graphviz itself is not needed."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import Timestep, engine, ops
from tinygrad_rnn.errors import GradientError
from tinygrad_rnn.graph import cell_to_dot, to_dot
from tinygrad_rnn.tensor import Tensor


def edges(dot: str) -> set[tuple[str, str]]:
    """The arrows, with the first row of each label in place of the id."""
    labels = dict(re.findall(r'^  (\w+) \[.*label="((?:[^"\\]|\\[^n])*)', dot, re.M))
    return {(labels[a], labels[b]) for a, b in re.findall(r"^  (\w+) -> (\w+)", dot, re.M)}


def test_ops_are_boxes_and_arrows_follow_the_data() -> None:
    x, w = Tensor(np.ones((2, 3)), requires_grad=True), Tensor(np.ones((3, 4), "float64"), requires_grad=True)
    z = x @ w
    dot = to_dot(ops.tanh(z) * z, {"x": x, "W": w, "z": z})
    assert edges(dot) == {("x", "z = @"), ("W", "z = @"), ("z = @", "tanh"), ("z = @", "×"), ("tanh", "×")}
    assert 'n0 [shape=ellipse, label="' in dot
    assert r'label="tanh\n(2, 4) float64"' in dot


def test_a_leaf_without_a_name_and_a_tensor_used_twice() -> None:
    x = Tensor(np.ones(2, "float32"), requires_grad=True)
    dot = to_dot(x * x)
    assert dot.count("n0 -> n1;") == 2
    assert r'label="(2,) float32"' in dot


def test_names_are_quoted_and_the_text_is_the_same_every_time() -> None:
    x = Tensor(np.ones(2), requires_grad=True)
    y = ops.exp(x) + ops.sin(x)
    dot = to_dot(y, {'the "x"\\': x})
    assert r'label="the \"x\"\\\n(2,)' in dot
    assert dot == to_dot(y, {'the "x"\\': x})


def test_a_constant_has_no_picture() -> None:
    with pytest.raises(GradientError, match="to_dot: expected a tensor computed from"):
        to_dot(Tensor(1.0))


class Gated:
    """A cell of two states, one of which passes through."""

    name, I, H = "gated", 3, 2

    def state(self) -> dict[str, Any]:
        return {"h": SimpleNamespace(shape=(2,)), "c": SimpleNamespace(shape=(2,))}

    def params(self) -> dict[str, Any]:
        return {"W_xz": SimpleNamespace(shape=(3, 2))}

    def noise(self) -> dict[str, Any]:
        return {}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        z = engine.tap("z", ops.sigmoid(x @ p.W_xz))
        return {"h": s.h * z, "c": s.c}


class Counting(Gated):
    """One that asks for the timestep, which the library counts."""

    def state(self) -> dict[str, Any]:
        return {"h": SimpleNamespace(shape=(2,)), "t": Timestep()}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": s.h * ops.sigmoid(x @ p.W_xz) + s.t}


def test_a_timestep_goes_on_by_one() -> None:
    dot = cell_to_dot(Counting())
    assert {("t", "+"), ("+", "t (next)"), ("t (next)", "t")} <= edges(dot)
    assert dot.count("style=dashed") == 2


def test_a_step_is_folded() -> None:
    with engine.no_grad():
        dot = cell_to_dot(Gated())
    assert edges(dot) == {
        ("x", "@"),
        ("W_xz", "@"),
        ("@", "z = sigmoid"),
        ("z = sigmoid", "×"),
        ("h", "×"),
        ("×", "h (next)"),
        ("c", "c (next)"),
        ("h (next)", "h"),
        ("c (next)", "c"),
    }
    assert dot.count("style=dashed") == 2
    assert 'label="gated: one step"' in dot
