"""Every cell once more: one step in bare NumPy, written from the papers' equations and not from the cells.

A function here is the `reference` of a cell: p and s hold arrays by name, x is (B, I), every state (B, H); float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


def sigmoid(a: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-a))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0.0),
    "sigmoid": sigmoid,
    "identity": lambda a: a,
}


def rnn(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """Elman 1990."""
    a = np.einsum("bi,ij->bj", x, p.W_xh) + np.einsum("bi,ij->bj", s.h, p.W_hh) + p.b_h
    return {"h": ACTIVATIONS[cell.options.activation](a)}


def lstm(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000."""
    i = sigmoid(x @ p.W_xi + s.h @ p.W_hi + p.b_i)
    f = sigmoid(x @ p.W_xf + s.h @ p.W_hf + p.b_f)
    o = sigmoid(x @ p.W_xo + s.h @ p.W_ho + p.b_o)
    g = np.tanh(x @ p.W_xg + s.h @ p.W_hg + p.b_g)
    c = s.c * f + g * i
    return {"h": np.tanh(c) * o, "c": c}


def gru(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """Cho et al. 2014: in v3 the reset state goes through the matrix; in v1 (cuDNN, PyTorch) the product is reset."""
    r = sigmoid(x @ p.W_xr + s.h @ p.W_hr + p.b_r)
    z = sigmoid(x @ p.W_xz + s.h @ p.W_hz + p.b_z)
    after = cell.options.form == "reset_after"
    recurrent = (s.h @ p.W_hn + p.b_hn) * r if after else (s.h * r) @ p.W_hn
    n = np.tanh(x @ p.W_xn + p.b_n + recurrent)
    return {"h": n + z * (s.h - n)}


def mut1(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """Jozefowicz et al. 2015; P is the input map, absent in the paper."""
    z = sigmoid(x @ p.W_xz + p.b_z)
    r = sigmoid(x @ p.W_xr + s.h @ p.W_hr + p.b_r)
    bare = x @ p.P if hasattr(p, "P") else x
    n = np.tanh((r * s.h) @ p.W_hh + np.tanh(bare) + p.b_h)
    return {"h": s.h + z * (n - s.h)}


def mut2(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """The same paper."""
    bare = x @ p.P if hasattr(p, "P") else x
    z = sigmoid(x @ p.W_xz + s.h @ p.W_hz + p.b_z)
    r = sigmoid(bare + s.h @ p.W_hr + p.b_r)
    n = np.tanh((r * s.h) @ p.W_hh + x @ p.W_xh + p.b_h)
    return {"h": s.h + z * (n - s.h)}


def mut3(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """The same paper."""
    z = sigmoid(x @ p.W_xz + np.tanh(s.h) @ p.W_hz + p.b_z)
    r = sigmoid(x @ p.W_xr + s.h @ p.W_hr + p.b_r)
    n = np.tanh((r * s.h) @ p.W_hh + x @ p.W_xh + p.b_h)
    return {"h": s.h + z * (n - s.h)}
