"""What models are made of besides cells: initialisers by name, and dropout.

An initialiser is written ``name``, ``name:number`` or ``name:number,number``: ``glorot``, ``orthogonal:0.9``,
``sparse:15,0.95``. A cell may have one of its own, a function: see `cell.Param`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tinygrad_rnn import backend
from tinygrad_rnn.errors import InputError, nearest

Shape = tuple[int, ...]
Initialiser = Callable[..., np.ndarray[Any, Any]]  # of a shape, a generator, and its numbers


def _fans(shape: Shape) -> tuple[int, int]:
    return (shape[0], shape[-1]) if len(shape) > 1 else (shape[0], shape[0]) if shape else (1, 1)


def _uniform(shape: Shape, rng: np.random.Generator, bound: float | None = None) -> np.ndarray[Any, Any]:
    """Uniform in (-bound, bound); bound 1/sqrt(columns) when not given, PyTorch's choice for recurrent layers."""
    limit = 1.0 / math.sqrt(_fans(shape)[1]) if bound is None else bound
    return rng.uniform(-limit, limit, shape)


def _normal(shape: Shape, rng: np.random.Generator, std: float | None = None) -> np.ndarray[Any, Any]:
    """Normal with standard deviation `std`; 1/sqrt(rows + columns) when not given, torch-rnn's choice."""
    rows, columns = _fans(shape)
    return rng.normal(0.0, 1.0 / math.sqrt(rows + columns) if std is None else std, shape)


def _glorot(shape: Shape, rng: np.random.Generator, gain: float = 1.0) -> np.ndarray[Any, Any]:
    """Uniform in (-a, a), a = gain sqrt(6 / (rows + columns)). Source: Glorot & Bengio 2010, equation 16."""
    rows, columns = _fans(shape)
    limit = gain * math.sqrt(6.0 / (rows + columns))
    return rng.uniform(-limit, limit, shape)


def _orthogonal(shape: Shape, rng: np.random.Generator, gain: float = 1.0) -> np.ndarray[Any, Any]:
    """gain times a uniformly random orthogonal matrix (rows or columns, when not square).

    Source: Saxe, McClelland & Ganguli 2013, arXiv 1312.6120.
    """
    rows, columns = shape
    q, r = np.linalg.qr(rng.normal(size=(max(shape), min(shape))))
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)  # without the signs of r the distribution is not uniform
    return gain * (q if rows >= columns else q.T)


def _identity(shape: Shape, rng: np.random.Generator, gain: float = 1.0) -> np.ndarray[Any, Any]:
    """gain times the identity. Source: Le, Jaitly & Hinton 2015, arXiv 1504.00941 (IRNN)."""
    rows, columns = shape
    return gain * np.eye(rows, columns)


def _zeros(shape: Shape, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """All zero; takes no number."""
    return np.zeros(shape)


def _constant(shape: Shape, rng: np.random.Generator, value: float) -> np.ndarray[Any, Any]:
    """Every element `value`, which has to be given."""
    return np.full(shape, value)


def _signs(shape: Shape, rng: np.random.Generator, scale: float | None = None) -> np.ndarray[Any, Any]:
    """Random signs times `scale`, 1/sqrt(rows) when not given: the fixed input map of the Keras 0.x MUT cells."""
    size = 1.0 / math.sqrt(_fans(shape)[0]) if scale is None else scale
    return rng.choice([-size, size], shape)


def _with_radius(matrix: np.ndarray[Any, Any], radius: float) -> np.ndarray[Any, Any]:
    return matrix * (radius / float(np.abs(np.linalg.eigvals(matrix)).max()))


def _few_inputs(shape: Shape, rng: np.random.Generator, n: int) -> np.ndarray[Any, Any]:
    """A square matrix with n normal numbers in each column, the rest zero: each unit hears n units.

    With one or more of them the units form a cycle somewhere, so that the spectral radius is not 0.
    """
    H = shape[0]
    kept = np.argsort(rng.random(shape), axis=0) < n
    return np.where(kept, rng.normal(size=(H, H)), 0.0)


def _sparse(shape: Shape, rng: np.random.Generator, n: float = 15, radius: float = 0.95) -> np.ndarray[Any, Any]:
    """At most `n` inputs to a unit, scaled to the spectral radius `radius`.

    Source: the "smart tanh" of Pascanu, Mikolov & Bengio 2013, arXiv 1211.5063: 15 numbers per row of W, 0.95.
    """
    return _with_radius(_few_inputs(shape, rng, min(int(n), shape[0])), radius)


def _reservoir(
    shape: Shape, rng: np.random.Generator, radius: float = 0.95, density: float = 0.1
) -> np.ndarray[Any, Any]:
    """A share `density` of inputs to each unit (at least one), scaled to the spectral radius `radius`.

    Source: Jaeger 2001, The "echo state" approach to analysing and training recurrent neural networks.
    """
    return _with_radius(_few_inputs(shape, rng, max(1, round(density * shape[0]))), radius)


def _chrono(shape: Shape, rng: np.random.Generator, T: float) -> np.ndarray[Any, Any]:
    """log U(1, T - 1): the bias of a gate that keeps, for memories of up to T steps.

    Source: Tallec & Ollivier 2018, arXiv 1804.11188; b_i of an LSTM is then -b_f.
    """
    return np.log(rng.uniform(1.0, T - 1.0, shape))


INITIALISERS: Mapping[str, Initialiser] = {
    "uniform": _uniform,
    "normal": _normal,
    "glorot": _glorot,
    "orthogonal": _orthogonal,
    "identity": _identity,
    "sparse": _sparse,
    "reservoir": _reservoir,
    "zeros": _zeros,
    "constant": _constant,
    "signs": _signs,
    "chrono": _chrono,
}
MATRICES = ("orthogonal", "identity", "sparse", "reservoir")  # what fills no vector
SQUARE = ("sparse", "reservoir")
# name -> its numbers: what holds of each, in words and as a test
LIMITS: Mapping[str, tuple[tuple[str, Callable[[float], bool]], ...]] = {
    "uniform": (("a width of at least 0", lambda a: a >= 0),),
    "normal": (("a width of at least 0", lambda a: a >= 0),),
    "sparse": (("a whole number from 1", lambda a: a >= 1 and a == int(a)), ("a radius above 0", lambda a: a > 0)),
    "reservoir": (("a radius above 0", lambda a: a > 0), ("a density in (0, 1]", lambda a: 0 < a <= 1)),
    "chrono": (("a number of steps above 2", lambda a: a > 2),),
}


@functools.cache
def parse_initialiser(text: str) -> tuple[str, tuple[float, ...]]:
    """``name``, ``name:number`` or ``name:number,number`` as (name, numbers).

    Raises InputError for an unknown name (with all there are), a number that is none, is missing, or cannot be used.
    """
    name, colon, rest = text.partition(":")
    if name not in INITIALISERS:
        close = nearest(name, INITIALISERS)
        known = "" if "known:" in close else f" known: {', '.join(sorted(INITIALISERS))}"
        raise InputError(f"no initialiser {name!r}{close}{known}")
    takes = list(inspect.signature(INITIALISERS[name]).parameters.values())[2:]
    if not colon:
        if takes and takes[0].default is inspect.Parameter.empty:
            raise InputError(
                f"initialiser {name}: expected a number, as in {name}:{100 if name == 'chrono' else 1}, got none"
            )
        return name, ()
    numbers = []
    for number in rest.split(","):
        try:
            numbers.append(float(number))
        except ValueError:
            raise InputError(f"initialiser {text!r}: expected a number after the colon, got {number!r}") from None
        if not math.isfinite(numbers[-1]):
            raise InputError(f"initialiser {text!r}: expected a finite number, got {number}")
    if name == "zeros":
        raise InputError(f"initialiser {text!r}: expected no number, got {rest}; use constant:{rest}")
    if len(numbers) > len(takes):
        raise InputError(
            f"initialiser {text!r}: expected at most {len(takes)} number{'s' * (len(takes) > 1)}, got {len(numbers)}"
        )
    for value, (words, holds) in zip(numbers, LIMITS.get(name, ()), strict=False):
        if not holds(value):
            raise InputError(f"initialiser {text!r}: expected {words}, got {value:g}")
    return name, tuple(numbers)


def fills(text: str, shape: Shape) -> bool:
    """Whether the initialiser `text` can fill `shape` at all: ``orthogonal`` and the like need a matrix."""
    return len(shape) == 2 or parse_initialiser(text)[0] not in MATRICES


def initialise(text: str, shape: Shape, rng: np.random.Generator, dtype: Any = np.float64) -> np.ndarray[Any, Any]:
    """A new array of `shape` by the initialiser `text`, drawn in float64 on the host, then cast to `dtype`.

    So the same seed gives the same numbers on every device and in every dtype.
    Raises InputError for a text that means nothing, or a shape that the initialiser cannot fill.
    """
    name, numbers = parse_initialiser(text)
    if name in MATRICES and len(shape) != 2:
        raise InputError(f"initialiser {name}: expected a matrix, got shape {shape}")
    if name in SQUARE and shape[0] != shape[1]:
        raise InputError(f"initialiser {name}: expected a square matrix, got shape {shape}; use it as recurrent_init")
    with np.errstate(over="ignore"):
        try:
            values = INITIALISERS[name](shape, rng, *numbers)
        except OverflowError:  # of a range of random numbers
            values = np.full(shape, np.inf)
    return held(values, text, dtype)


def held(values: np.ndarray[Any, Any], init: str, dtype: Any) -> np.ndarray[Any, Any]:
    """A copy of `values` in `dtype`. Raises InputError, with the initialiser's name, where that cannot hold them."""
    with np.errstate(over="ignore"):
        values = np.array(values, dtype, order="C")
    if not np.all(np.isfinite(values)):
        raise InputError(
            f"initialiser {init!r}: expected numbers that {np.dtype(dtype).name} can hold, got larger ones"
        )
    return values


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
