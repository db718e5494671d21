"""Elementwise ops with NumPy's broadcasting: arithmetic, powers, squashing functions, selection, comparison."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinygrad_rnn.engine import primitive

# Without a gradient, and read by the rules of others.


@primitive(casts=True)
def equal(a: Any, b: Any) -> Any:
    """a == b, boolean; like every comparison it has no gradient."""
    return np.equal(a, b)


@primitive(casts=True)
def not_equal(a: Any, b: Any) -> Any:
    """a != b, boolean."""
    return np.not_equal(a, b)


@primitive(casts=True)
def greater(a: Any, b: Any) -> Any:
    """a > b, boolean."""
    return np.greater(a, b)


@primitive(casts=True)
def greater_equal(a: Any, b: Any) -> Any:
    """a >= b, boolean."""
    return np.greater_equal(a, b)


@primitive(casts=True)
def less(a: Any, b: Any) -> Any:
    """a < b, boolean."""
    return np.less(a, b)


@primitive(casts=True)
def less_equal(a: Any, b: Any) -> Any:
    """a <= b, boolean."""
    return np.less_equal(a, b)


@primitive
def sign(x: Any) -> Any:
    """-1, 0 or 1; no gradient flows through it."""
    return np.sign(x)


@primitive(broadcasts=True)
def add(a: Any, b: Any) -> Any:
    """a + b."""
    return np.add(a, b)


add.vjp(lambda g, _y, _a, _b: g, lambda g, _y, _a, _b: g)


@primitive(broadcasts=True)
def sub(a: Any, b: Any) -> Any:
    """a - b."""
    return np.subtract(a, b)


sub.vjp(lambda g, _y, _a, _b: g, lambda g, _y, _a, _b: -g)


@primitive(broadcasts=True)
def mul(a: Any, b: Any) -> Any:
    """a * b."""
    return np.multiply(a, b)


mul.vjp(lambda g, _y, _a, b: g * b, lambda g, _y, a, _b: g * a)


@primitive(broadcasts=True)
def div(a: Any, b: Any) -> Any:
    """a / b."""
    return np.true_divide(a, b)


div.vjp(lambda g, _y, _a, b: g / b, lambda g, y, _a, b: -g * y / b)


@primitive
def neg(x: Any) -> Any:
    """-x."""
    return np.negative(x)


neg.vjp(lambda g, _y, _x: -g)


@primitive(broadcasts=True)
def pow(x: Any, p: Any) -> Any:
    """x ** p; the gradient with respect to p is 0 where x is not positive."""
    return x**p  # the operator, unlike np.power, knows short ways for 2, 0.5 and -1


def _lower(x: Any, p: Any) -> Any:
    """p - 1, the power in the slope p x ** (p - 1); 1 where both are 0: that slope is 0, and 0 ** -1 is no number."""
    if not hasattr(p, "shape"):
        return p - 1 if p else 1
    return where(equal(p, 0) * equal(x, 0), 1.0, p - 1)


def _log_base(x: Any) -> Any:
    """log(x), 0 where x is not positive; a Python number stays one, since an array of it would be float64."""
    return log(where(greater(x, 0), x, 1.0)) if hasattr(x, "shape") else math.log(x) if x > 0 else 0.0


pow.vjp(
    lambda g, _y, x, p: g * (p * pow(x, _lower(x, p))),
    lambda g, y, x, _p: g * (y * _log_base(x)),
)


@primitive
def exp(x: Any) -> Any:
    """e ** x."""
    return np.exp(x)


exp.vjp(lambda g, y, _x: g * y)


@primitive
def log(x: Any) -> Any:
    """Natural logarithm."""
    return np.log(x)


log.vjp(lambda g, _y, x: g / x)


@primitive
def log1p(x: Any) -> Any:
    """log(1 + x), exact for small x."""
    return np.log1p(x)


log1p.vjp(lambda g, _y, x: g / (x + 1.0))


@primitive
def sqrt(x: Any) -> Any:
    """Square root."""
    return np.sqrt(x)


sqrt.vjp(lambda g, y, _x: g / (y * 2.0))


@primitive
def abs(x: Any) -> Any:
    """Absolute value; its gradient at 0 is 0."""
    return np.abs(x)


abs.vjp(lambda g, _y, x: g * sign(x))


@primitive
def sin(x: Any) -> Any:
    """Sine of x in radians."""
    return np.sin(x)


@primitive
def cos(x: Any) -> Any:
    """Cosine of x in radians."""
    return np.cos(x)


sin.vjp(lambda g, _y, x: g * cos(x))
cos.vjp(lambda g, _y, x: -g * sin(x))


@primitive
def tanh(x: Any) -> Any:
    """Hyperbolic tangent."""
    return np.tanh(x)


tanh.vjp(lambda g, y, _x: g * (1.0 - y * y))


@primitive
def sigmoid(x: Any) -> Any:
    """Logistic function 1 / (1 + exp(-x)), accurate and without overflow on both sides."""
    small = np.exp(-np.abs(x))
    return np.where(np.greater_equal(x, 0), 1.0, small) / (small + 1.0)


sigmoid.vjp(lambda g, y, _x: g * (y * (1.0 - y)))


@primitive
def relu(x: Any) -> Any:
    """max(x, 0); its gradient at 0 is 0."""
    return np.maximum(x, 0)


relu.vjp(lambda g, y, _x: g * greater(y, 0))


@primitive
def softplus(x: Any) -> Any:
    """log(1 + exp(x)), without overflow."""
    return np.logaddexp(x, 0.0)


softplus.vjp(lambda g, _y, x: g * sigmoid(x))


def gelu(x: Any) -> Any:
    """Gaussian error linear unit in its tanh form: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    Source: Hendrycks & Gimpel 2016, arXiv 1606.08415.
    """
    return x * 0.5 * (tanh((x + x * x * x * 0.044715) * math.sqrt(2.0 / math.pi)) + 1.0)


@primitive
def _share(a: Any, b: Any) -> Any:
    """1 where a > b, 1/2 where a == b, else 0."""
    dtype = a.dtype if hasattr(a, "dtype") else b.dtype
    return (np.greater(a, b).astype(dtype) + np.greater_equal(a, b)) * 0.5


@primitive(broadcasts=True)
def maximum(a: Any, b: Any) -> Any:
    """The larger of a and b; where they are equal each gets half of the gradient."""
    return np.maximum(a, b)


maximum.vjp(lambda g, _y, a, b: g * _share(a, b), lambda g, _y, a, b: g * _share(b, a))


@primitive(broadcasts=True)
def minimum(a: Any, b: Any) -> Any:
    """The smaller of a and b; where they are equal each gets half of the gradient."""
    return np.minimum(a, b)


minimum.vjp(lambda g, _y, a, b: g * _share(b, a), lambda g, _y, a, b: g * _share(a, b))


def clip(x: Any, low: float = -math.inf, high: float = math.inf) -> Any:
    """x limited to [low, high], both numbers; no gradient where it was cut."""
    return _clip(x, low=low, high=high)


@primitive
def _clip(x: Any, *, low: float, high: float) -> Any:
    return np.clip(x, low, high)


_clip.vjp(lambda g, _y, x, *, low, high: g * (greater_equal(x, low) * less_equal(x, high)))


@primitive(broadcasts=True)
def where(condition: Any, a: Any, b: Any) -> Any:
    """a where `condition` holds, b elsewhere."""
    return np.where(condition, a, b)


where.vjp(
    None,
    lambda g, _y, condition, _a, _b: where(condition, g, 0.0),
    lambda g, _y, condition, _a, _b: where(condition, 0.0, g),
)


def astype(x: Any, dtype: Any) -> Any:
    """`x` in another dtype; the gradient comes back in the dtype of `x`, and none from a dtype that is not floating."""
    dtype = np.dtype(dtype)
    return (_astype if dtype.kind == "f" else _discrete)(x, dtype=dtype, source=x.dtype)


@primitive(casts=True)
def _astype(x: Any, *, dtype: Any, source: Any) -> Any:
    return x.astype(dtype)


@primitive(casts=True)
def _discrete(x: Any, *, dtype: Any, source: Any) -> Any:
    return x.astype(dtype)


_astype.vjp(lambda g, _y, _x, *, dtype, source: _astype(g, dtype=source, source=dtype))
