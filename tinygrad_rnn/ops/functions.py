"""Functions beyond the everyday ones: logarithms, arcs, hyperbolic functions, the error function, GELU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinygrad_rnn.engine import primitive
from tinygrad_rnn.errors import InputError
from tinygrad_rnn.ops.arguments import shape_of, told
from tinygrad_rnn.ops.elementwise import (
    abs,
    clip,
    cos,
    equal,
    exp,
    isfinite,
    less,
    logical_and,
    logical_not,
    maximum,
    mul,
    relu,
    sigmoid,
    sqrt,
    tanh,
    where,
)


def square(x: Any) -> Any:
    """x * x."""
    return mul(x, x)


@primitive
def exp2(x: Any) -> Any:
    """2 ** x."""
    return np.exp2(x)


exp2.vjp(lambda g, y, _x: g * (y * math.log(2.0)))


@primitive
def expm1(x: Any) -> Any:
    """e ** x - 1, exact for small x."""
    return np.expm1(x)


expm1.vjp(lambda g, _y, x: g * exp(x))


@primitive
def log2(x: Any) -> Any:
    """Logarithm to the base 2."""
    return np.log2(x)


log2.vjp(lambda g, _y, x: g / x * (1.0 / math.log(2.0)))


@primitive
def log10(x: Any) -> Any:
    """Logarithm to the base 10."""
    return np.log10(x)


log10.vjp(lambda g, _y, x: g / x * (1.0 / math.log(10.0)))


@primitive(broadcasts=True)
def logaddexp(a: Any, b: Any) -> Any:
    """log(exp(a) + exp(b)), without overflow."""
    return np.logaddexp(a, b)


def _weight(a: Any, b: Any) -> Any:
    """The share of exp(a) in exp(a) + exp(b); a half where both are the same infinity."""
    alike = logical_and(equal(a, b), logical_not(isfinite(a)))
    return sigmoid(where(alike, 0.0, a) - where(alike, 0.0, b))


logaddexp.vjp(lambda g, _y, a, b: g * _weight(a, b), lambda g, _y, a, b: g * _weight(b, a))


# ------------------------------------------------------------------- circular and hyperbolic functions


@primitive
def tan(x: Any) -> Any:
    """Tangent of x in radians."""
    return np.tan(x)


@primitive
def sinh(x: Any) -> Any:
    """Hyperbolic sine."""
    return np.sinh(x)


@primitive
def cosh(x: Any) -> Any:
    """Hyperbolic cosine."""
    return np.cosh(x)


@primitive
def arcsin(x: Any) -> Any:
    """The angle in [-pi/2, pi/2] whose sine is x."""
    return np.arcsin(x)


@primitive
def arccos(x: Any) -> Any:
    """The angle in [0, pi] whose cosine is x."""
    return np.arccos(x)


@primitive
def arctan(x: Any) -> Any:
    """The angle in (-pi/2, pi/2) whose tangent is x."""
    return np.arctan(x)


@primitive
def arcsinh(x: Any) -> Any:
    """The number whose hyperbolic sine is x."""
    return np.arcsinh(x)


@primitive
def arccosh(x: Any) -> Any:
    """The number >= 0 whose hyperbolic cosine is x, for x >= 1."""
    return np.arccosh(x)


@primitive
def arctanh(x: Any) -> Any:
    """The number whose hyperbolic tangent is x, for x in (-1, 1)."""
    return np.arctanh(x)


@primitive(broadcasts=True)
def arctan2(y: Any, x: Any) -> Any:
    """The angle of the point (x, y), in [-pi, pi]; its gradient at (0, 0) is 0."""
    return np.arctan2(y, x)


def _over_square(a: Any, b: Any) -> Any:
    """a / (a^2 + b^2), 0 where both are 0: scaled, so that no square overflows."""
    scale = maximum(abs(a), abs(b))
    scale = where(equal(scale, 0), 1.0, scale)
    p, q = a / scale, b / scale
    total = p * p + q * q
    return p / where(equal(total, 0), 1.0, total) / scale


def _length(x: Any) -> Any:
    """sqrt(x^2 + 1): |x| where no 1 can be seen beside its square."""
    far = 2.0 / math.sqrt(np.finfo(x.dtype).eps)
    near = clip(x, -far, far)
    return where(less(abs(x), far), sqrt(near * near + 1.0), abs(x))


tan.vjp(lambda g, _y, x: g / square(cos(x)))
sinh.vjp(lambda g, _y, x: g * cosh(x))
cosh.vjp(lambda g, _y, x: g * sinh(x))
arcsin.vjp(lambda g, _y, x: g / sqrt((1.0 - x) * (1.0 + x)))
arccos.vjp(lambda g, _y, x: -g / sqrt((1.0 - x) * (1.0 + x)))
arctan.vjp(lambda g, _y, x: g / _length(x) / _length(x))
arcsinh.vjp(lambda g, _y, x: g / _length(x))
arccosh.vjp(lambda g, _y, x: g / (sqrt(x - 1.0) * sqrt(x + 1.0)))
arctanh.vjp(lambda g, _y, x: g / ((1.0 - x) * (1.0 + x)))
arctan2.vjp(lambda g, _y, y, x: g * _over_square(x, y), lambda g, _y, y, x: -g * _over_square(y, x))


# ---------------------------------------------------------------------------- the error function, GELU

# erf(x) / x as a polynomial in x^2, for x in [0, 1]: the lowest power first.
ERF_NEAR = (
    1.1283791670955126, -0.37612638903183543, 0.11283791670945006, -0.02686617064323777, 0.0052239776071164225,
    -0.0008548325975389692, 0.00012055294904839707, -1.492473690741966e-05, 1.6447424703317362e-06,
    -1.6208483801871705e-07, 1.3720064546777686e-08, -7.795898827002142e-10,
)  # fmt: skip
# erfc(x) exp(x^2) (1 + 2 x) as a polynomial in (x - 3.75) / (x + 3.75), for x >= 0: the lowest power first.
ERFC_TAIL = (
    1.2375126308378275, -0.14024059858554522, 0.0035854154854663067, 0.08227673848999159, -0.10880393014193915,
    0.09230432116435616, -0.058693398584491845, 0.028362277371370044, -0.00974657962081509, 0.0017556261692276722,
    0.00029371408777227685, -0.0002901553656394713, 5.164737123871838e-05, 2.238759272534769e-05,
    -1.143961526007595e-05, -9.79297529099823e-07, 1.7438577411359181e-06, -5.0816911811698186e-08,
    -2.4996538037405243e-07, 1.8778501156468795e-08, 3.256499083798513e-08, -1.952790162974837e-09,
    -2.7293941332533855e-09,
)  # fmt: skip
ERFC_ZERO = 40.0  # from where on erfc is 0, and 1 - tanh of GELU's polynomial too


def _polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    y = x * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        y = (y + c) * x
    return y + coefficients[0]


def _wide(x: Any) -> Any:
    """float16 as float32: eleven bits are too few for what happens inside."""
    return x.astype(np.float32) if x.dtype == np.float16 else x


def _tail(x: Any) -> Any:
    """erfc(x) for x in [0, ERFC_ZERO]. A rounded square costs digits of exp(-x^2): x is cut so that it is exact."""
    short = np.rint(x * 16.0) * 0.0625
    rational = _polynomial((x - 3.75) / (x + 3.75), ERFC_TAIL) / (x * 2.0 + 1.0)
    return np.exp(-short * short) * np.exp((short - x) * (short + x)) * rational


@primitive
def erf(x: Any) -> Any:
    """The error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x.

    Within 1e-15 of the exact value in float64, relatively. Source: polynomials at Chebyshev nodes; for the tail in the
    variable of Shepherd & Laframboise 1981, Chebyshev approximation of (1 + 2x) exp(x^2) erfc x, Math. Comp. 36.
    """
    a = np.minimum(np.abs(_wide(x)), ERFC_ZERO)
    near = np.minimum(a, 1.0)
    size = np.where(np.less(a, 1.0), near * _polynomial(near * near, ERF_NEAR), 1.0 - _tail(a))
    return np.sign(x) * size.astype(x.dtype)


@primitive
def erfc(x: Any) -> Any:
    """1 - erf(x), with all digits where that is small: within 2e-15 in float64, relatively, down to 1e-307."""
    tail = _tail(np.minimum(np.abs(_wide(x)), ERFC_ZERO))
    return np.where(np.less(x, 0.0), 2.0 - tail, tail).astype(x.dtype)


erf.vjp(lambda g, _y, x: g * (exp(-square(clip(x, -ERFC_ZERO, ERFC_ZERO))) * (2.0 / math.sqrt(math.pi))))
erfc.vjp(lambda g, _y, x: -g * (exp(-square(clip(x, -ERFC_ZERO, ERFC_ZERO))) * (2.0 / math.sqrt(math.pi))))


def gelu(x: Any, approximate: Any = "none") -> Any:
    """Gaussian error linear unit: x times the probability that a standard normal number is below x.

    ``approximate="tanh"``: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), within 5e-4 of it and cheaper. The names are
    PyTorch's. Source: Hendrycks & Gimpel 2016, arXiv 1606.08415. Raises InputError for another name.
    """
    shape_of(x, "gelu")
    if not isinstance(approximate, str) or approximate not in ("none", "tanh"):
        raise InputError(f"gelu: expected approximate 'none' (the exact form) or 'tanh', got {told(approximate)}")
    z = clip(x, -ERFC_ZERO, ERFC_ZERO)  # beyond which the unit is relu, and powers may overflow
    if approximate == "tanh":
        unit = z * 0.5 * (tanh((z + z * z * z * 0.044715) * math.sqrt(2.0 / math.pi)) + 1.0)
    else:
        unit = z * 0.5 * erfc(z * -math.sqrt(0.5))
    return where(less(abs(x), ERFC_ZERO), unit, relu(x))
