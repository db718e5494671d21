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
    a = x @ p.W_xh + s.h @ p.W_hh + p.b_h
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


def lstm_peephole(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """Greff et al. 2015: the vanilla block with one change."""
    v = cell.options.variant
    one = np.ones_like(s.h)

    def a(gate: str, c: Array) -> Array:
        total = x @ getattr(p, "W_x" + gate) + s.h @ getattr(p, "W_h" + gate) + getattr(p, "b_" + gate)
        if v != "NP":
            total += c * getattr(p, "p_" + gate)
        if v == "FGR":
            R_i, R_f, R_o = (getattr(p, "R_" + old + gate) for old in "ifo")
            total += s.i_old @ R_i + s.f_old @ R_f + s.o_old @ R_o
        return np.asarray(total)

    z = x @ p.W_xz + s.h @ p.W_hz + p.b_z
    z = z if v == "NIAF" else np.tanh(z)
    i = one if v == "NIG" else sigmoid(a("i", s.c))
    f = one if v == "NFG" else one - i if v == "CIFG" else sigmoid(a("f", s.c))
    c = z * i + s.c * f
    o = one if v == "NOG" else sigmoid(a("o", c))
    y = (c if v == "NOAF" else np.tanh(c)) * o
    return {"h": y, "c": c} | ({"i_old": i, "f_old": f, "o_old": o} if v == "FGR" else {})


def forget_update(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """h = forget * h + update."""
    forget = sigmoid(x @ p.W_xf + np.tanh(s.h) @ p.W_hf + p.b_f)
    return {"h": np.tanh(x @ p.W_xu + np.tanh(s.h) @ p.W_hu + p.b_u) + s.h * forget}


def irnn(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """Le et al. 2015."""
    return {"h": np.maximum(s.h @ p.W_hh + x @ p.W_xh + p.b_h, 0.0)}


def ugrnn(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """Collins et al. 2016."""
    c = np.tanh(s.h @ p.W_hn + x @ p.W_xn + p.b_n)
    g = sigmoid(s.h @ p.W_hg + x @ p.W_xg + p.b_g)
    return {"h": c + g * (s.h - c)}


def mgu(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """Zhou et al. 2016."""
    f = sigmoid(s.h @ p.W_hf + x @ p.W_xf + p.b_f)
    n = np.tanh((s.h * f) @ p.W_hn + x @ p.W_xn + p.b_n)
    return {"h": s.h + f * (n - s.h)}


def minimalrnn(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """Chen 2017; Phi is one tanh layer."""
    z = np.tanh(x @ p.W_xz + p.b_z)
    u = sigmoid(z @ p.W_zu + s.h @ p.W_hu + p.b_u)
    return {"h": z + u * (s.h - z)}


def janet(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """van der Westhuizen & Lasenby 2018."""
    a = s.h @ p.W_hf + x @ p.W_xf + p.b_f
    candidate = np.tanh(s.h @ p.W_hn + x @ p.W_xn + p.b_n)
    return {"h": sigmoid(a) * s.h + (1.0 - sigmoid(a - cell.options.beta)) * candidate}


def mingru(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """Feng et al. 2024, the sequential mode."""
    z = sigmoid(x @ p.W_xz + p.b_z)
    return {"h": s.h + z * (x @ p.W_xn + p.b_n - s.h)}


def minlstm(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """Feng et al. 2024, the sequential mode; 1/f = 1 + i/f with i/f = (1 + e^-a_f) / (1 + e^-a_i)."""
    log_ratio = np.logaddexp(0.0, -(x @ p.W_xf + p.b_f)) - np.logaddexp(0.0, -(x @ p.W_xi + p.b_i))
    f = np.exp(-np.logaddexp(0.0, log_ratio))
    return {"h": f * s.h + (1.0 - f) * (x @ p.W_xn + p.b_n)}


def scrn(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """Mikolov et al. 2014."""
    slow = x @ p.W_xs + cell.options.alpha * (s.s - x @ p.W_xs)
    return {"h": sigmoid(slow @ p.W_sh + x @ p.W_xh + s.h @ p.W_hh + p.b_h), "s": slow}


def fastgrnn(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """Kusupati et al. 2018."""
    z = sigmoid(x @ p.W + s.h @ p.U + p.b_z)
    n = np.tanh(x @ p.W + s.h @ p.U + p.b_n)
    return {"h": z * s.h + n * (sigmoid(p.nu) + sigmoid(p.zeta) * (1.0 - z))}


def esn(cell: Any, p: Any, x: Array, s: Any) -> Arrays:
    """Jaeger 2001, with the leak of 2007."""
    return {"h": s.h + cell.options.leak * (np.tanh(x @ p.W_in + s.h @ p.W + p.b) - s.h)}
