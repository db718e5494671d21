"""Every cell once more, as one step in bare NumPy, written from the papers' equations and not from the cells.

In a formula `p` is a dict of arrays, x (B, I), every state (B, H); it returns the new states, and the gates by name.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import Cell, load_cell, specification

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Formula = Callable[[Mapping[str, Array], Array, Mapping[str, Array]], tuple[Arrays, Arrays]]


def sigmoid(a: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-a))


def rnn(activation: Callable[[Array], Array]) -> Formula:
    def step(p: Mapping[str, Array], x: Array, s: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
        a = np.einsum("bi,ij->bj", x, p["W_xh"]) + np.einsum("bi,ij->bj", s["h"], p["W_hh"]) + p["b_h"]
        return {"h": activation(a)}, {"a": a}

    return step


def lstm(p: Mapping[str, Array], x: Array, s: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
    """Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000."""
    i = sigmoid(x @ p["W_xi"] + s["h"] @ p["W_hi"] + p["b_i"])
    f = sigmoid(x @ p["W_xf"] + s["h"] @ p["W_hf"] + p["b_f"])
    o = sigmoid(x @ p["W_xo"] + s["h"] @ p["W_ho"] + p["b_o"])
    g = np.tanh(x @ p["W_xg"] + s["h"] @ p["W_hg"] + p["b_g"])
    c = s["c"] * f + g * i
    return {"h": np.tanh(c) * o, "c": c}, {"i": i, "f": f, "o": o, "g": g}


def gru_before(p: Mapping[str, Array], x: Array, s: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
    """Cho et al. v3: the reset state goes through the matrix."""
    h = s["h"]
    r = sigmoid(x @ p["W_xr"] + h @ p["W_hr"] + p["b_r"])
    z = sigmoid(x @ p["W_xz"] + h @ p["W_hz"] + p["b_z"])
    n = np.tanh(x @ p["W_xn"] + (h * r) @ p["W_hn"] + p["b_n"])
    return {"h": n + z * (h - n)}, {"r": r, "z": z, "n": n}


def gru_after(p: Mapping[str, Array], x: Array, s: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
    """Cho et al. v1, cuDNN, PyTorch: the product is reset, its bias with it."""
    h = s["h"]
    r = sigmoid(x @ p["W_xr"] + h @ p["W_hr"] + p["b_r"])
    z = sigmoid(x @ p["W_xz"] + h @ p["W_hz"] + p["b_z"])
    n = np.tanh(x @ p["W_xn"] + p["b_n"] + (h @ p["W_hn"] + p["b_hn"]) * r)
    return {"h": n + z * (h - n)}, {"r": r, "z": z, "n": n}


def mut1(p: Mapping[str, Array], x: Array, s: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
    """Jozefowicz et al. 2015; P is the input map, absent in the paper."""
    h = s["h"]
    z = sigmoid(x @ p["W_xz"] + p["b_z"])
    r = sigmoid(x @ p["W_xr"] + h @ p["W_hr"] + p["b_r"])
    bare = x @ p["P"] if "P" in p else x
    n = np.tanh((r * h) @ p["W_hh"] + np.tanh(bare) + p["b_h"])
    return {"h": h + z * (n - h)}, {"z": z, "r": r, "n": n}


def mut2(p: Mapping[str, Array], x: Array, s: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
    h = s["h"]
    bare = x @ p["P"] if "P" in p else x
    z = sigmoid(x @ p["W_xz"] + h @ p["W_hz"] + p["b_z"])
    r = sigmoid(bare + h @ p["W_hr"] + p["b_r"])
    n = np.tanh((r * h) @ p["W_hh"] + x @ p["W_xh"] + p["b_h"])
    return {"h": h + z * (n - h)}, {"z": z, "r": r, "n": n}


def mut3(p: Mapping[str, Array], x: Array, s: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
    h = s["h"]
    z = sigmoid(x @ p["W_xz"] + np.tanh(h) @ p["W_hz"] + p["b_z"])
    r = sigmoid(x @ p["W_xr"] + h @ p["W_hr"] + p["b_r"])
    n = np.tanh((r * h) @ p["W_hh"] + x @ p["W_xh"] + p["b_h"])
    return {"h": h + z * (n - h)}, {"z": z, "r": r, "n": n}


# Every cell with every option that changes its equation: (cell, options, formula).
VARIANTS: dict[str, tuple[str, dict[str, Any], Formula]] = {
    "rnn": ("rnn", {}, rnn(np.tanh)),
    "rnn-relu": ("rnn", {"activation": "relu"}, rnn(lambda a: np.maximum(a, 0.0))),
    "rnn-sigmoid": ("rnn", {"activation": "sigmoid"}, rnn(sigmoid)),
    "rnn-identity": ("rnn", {"activation": "identity"}, rnn(lambda a: a)),
    "lstm": ("lstm", {}, lstm),
    "gru-before": ("gru", {}, gru_before),
    "gru-after": ("gru", {"form": "reset_after"}, gru_after),
    "mut1-auto": ("mut1", {}, mut1),
    "mut1-fixed": ("mut1", {"input_map": "fixed"}, mut1),
    "mut1-learned": ("mut1", {"input_map": "learned"}, mut1),
    "mut2-auto": ("mut2", {}, mut2),
    "mut2-fixed": ("mut2", {"input_map": "fixed"}, mut2),
    "mut2-learned": ("mut2", {"input_map": "learned"}, mut2),
    "mut3": ("mut3", {}, mut3),
}


@dataclass
class Case:
    """A cell, its formula, and arrays to feed both."""

    cell: Cell
    formula: Formula
    params: Arrays
    state: Arrays
    xs: Array

    def reference(self) -> tuple[list[Arrays], list[Arrays]]:
        """The states after, and the gates in, every step, by the bare formula."""
        states: list[Arrays] = []
        gates: list[Arrays] = []
        state = self.state
        for x in self.xs:
            state, gate = self.formula(self.params, x, state)
            states.append(state)
            gates.append(gate)
        return states, gates


@pytest.fixture
def make_case() -> Callable[..., Case]:
    def make(
        variant: str, T: int = 3, B: int = 2, I: int = 3, H: int = 3, dtype: Any = np.float64, seed: int = 0
    ) -> Case:
        rng = np.random.default_rng(seed)
        name, options, formula = VARIANTS[variant]
        cell = load_cell(name).cls(I, H, options)
        states, params = specification(cell)
        return Case(
            cell,
            formula,
            {key: (rng.normal(size=spec.shape) * 0.7).astype(dtype) for key, spec in params.items()},
            {key: rng.uniform(-0.9, 0.9, (B, *spec.shape)).astype(dtype) for key, spec in states.items()},
            rng.normal(size=(T, B, I)).astype(dtype),
        )

    return make


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    """Every cell with every option that changes its equation."""
    return str(request.param)


@pytest.fixture(params=["rnn", "lstm", "gru", "mut1", "mut2", "mut3"])
def cell_name(request: pytest.FixtureRequest) -> str:
    """Every built-in cell."""
    return str(request.param)


@pytest.fixture(scope="session")
def guard() -> Any:
    """tests/guard.py, loaded by its path: with --import-mode=importlib the folder is not on sys.path."""
    if "guard" not in sys.modules:
        spec = importlib.util.spec_from_file_location("guard", Path(__file__).parent.parent / "guard.py")
        assert spec is not None and spec.loader is not None
        sys.modules["guard"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["guard"])
    return sys.modules["guard"]
