"""What models are made of besides cells: initialisers by name, and dropout.

An initialiser is written ``name`` or ``name:number``: ``orthogonal:0.9``, ``uniform:0.08``, ``glorot``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tinygrad_rnn import backend
from tinygrad_rnn.errors import InputError, nearest

Shape = tuple[int, ...]
Initialiser = Callable[[Shape, float | None, np.random.Generator], np.ndarray[Any, Any]]


def _fans(shape: Shape) -> tuple[int, int]:
    return (shape[0], shape[-1]) if len(shape) > 1 else (shape[0], shape[0]) if shape else (1, 1)


def _uniform(shape: Shape, bound: float | None, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Uniform in (-bound, bound); bound 1/sqrt(columns) when not given, PyTorch's choice for recurrent layers."""
    limit = 1.0 / math.sqrt(_fans(shape)[1]) if bound is None else bound
    return rng.uniform(-limit, limit, shape)


def _normal(shape: Shape, std: float | None, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Normal with standard deviation `std`; 1/sqrt(rows + columns) when not given, torch-rnn's choice."""
    rows, columns = _fans(shape)
    return rng.normal(0.0, 1.0 / math.sqrt(rows + columns) if std is None else std, shape)


def _glorot(shape: Shape, gain: float | None, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Uniform in (-a, a), a = gain sqrt(6 / (rows + columns)). Source: Glorot & Bengio 2010, equation 16."""
    rows, columns = _fans(shape)
    limit = (1.0 if gain is None else gain) * math.sqrt(6.0 / (rows + columns))
    return rng.uniform(-limit, limit, shape)


def _orthogonal(shape: Shape, gain: float | None, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """gain times a uniformly random orthogonal matrix (rows or columns, when not square).

    Source: Saxe, McClelland & Ganguli 2013, arXiv 1312.6120.
    """
    if len(shape) != 2:
        raise InputError(f"initialiser orthogonal: expected a matrix, got shape {shape}")
    rows, columns = shape
    q, r = np.linalg.qr(rng.normal(size=(max(shape), min(shape))))
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)  # without the signs of r the distribution is not uniform
    return (1.0 if gain is None else gain) * (q if rows >= columns else q.T)


def _identity(shape: Shape, gain: float | None, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """gain times the identity. Source: Le, Jaitly & Hinton 2015, arXiv 1504.00941 (IRNN)."""
    if len(shape) != 2:
        raise InputError(f"initialiser identity: expected a matrix, got shape {shape}")
    return (1.0 if gain is None else gain) * np.eye(*shape)


def _zeros(shape: Shape, number: float | None, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """All zero; takes no number."""
    return np.zeros(shape)


def _constant(shape: Shape, value: float | None, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Every element `value`, which has to be given."""
    return np.full(shape, value)


def _signs(shape: Shape, scale: float | None, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Random signs times `scale`, 1/sqrt(rows) when not given: the fixed input map of the Keras 0.x MUT cells."""
    size = 1.0 / math.sqrt(_fans(shape)[0]) if scale is None else scale
    return rng.choice([-size, size], shape)


INITIALISERS: Mapping[str, Initialiser] = {
    "uniform": _uniform,
    "normal": _normal,
    "glorot": _glorot,
    "orthogonal": _orthogonal,
    "identity": _identity,
    "zeros": _zeros,
    "constant": _constant,
    "signs": _signs,
}


def parse_initialiser(text: str) -> tuple[str, float | None]:
    """``name`` or ``name:number`` as (name, number).

    Raises InputError for an unknown name (with the nearest), a number that is none, is missing, or cannot be used.
    """
    name, colon, number = text.partition(":")
    if name not in INITIALISERS:
        raise InputError(f"no initialiser {name!r}{nearest(name, INITIALISERS)}")
    if not colon:
        if name == "constant":
            raise InputError("initialiser constant: expected a number, as in constant:1, got none")
        return name, None
    try:
        value = float(number)
    except ValueError:
        raise InputError(f"initialiser {text!r}: expected a number after the colon, got {number!r}") from None
    if not math.isfinite(value):
        raise InputError(f"initialiser {text!r}: expected a finite number, got {number}")
    if name == "zeros":
        raise InputError(f"initialiser {text!r}: expected no number, got {number}; use constant:{number}")
    if name in ("uniform", "normal") and value < 0:
        raise InputError(f"initialiser {text!r}: expected a width of at least 0, got {number}")
    return name, value


def initialise(text: str, shape: Shape, rng: np.random.Generator, dtype: Any = np.float64) -> np.ndarray[Any, Any]:
    """A new array of `shape` by the initialiser `text`, drawn in float64 on the host, then cast to `dtype`.

    So the same seed gives the same numbers on every device and in every dtype.
    Raises InputError for a text that means nothing, or a shape that the initialiser cannot fill.
    """
    name, number = parse_initialiser(text)
    return np.asarray(INITIALISERS[name](shape, number, rng), dtype, order="C")


def dropout(x: Any, rate: float, rng: np.random.Generator) -> Any:
    """x with a share `rate` of its elements set to 0 and the rest divided by 1 - rate.

    The mask is drawn on the host, so that a seed means the same on every device. Source: Srivastava et al. 2014
    (inverted form). Raises InputError for a rate outside [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise InputError(f"dropout: expected a rate in [0, 1), got {rate}")
    if rate == 0.0:
        return x
    keep = (rng.random(x.shape) >= rate) / (1.0 - rate)
    data = x.data if hasattr(x, "node") else x
    return x * backend.from_host(keep.astype(x.dtype), backend.namespace(data))
