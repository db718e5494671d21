"""Elementwise ops with NumPy's broadcasting: arithmetic, powers, squashing functions, selection, comparison, logic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinygrad_rnn import engine
from tinygrad_rnn.engine import Operand, Variable, primitive
from tinygrad_rnn.errors import DtypeError, InputError
from tinygrad_rnn.ops.arguments import checked_dtype, integer, shape_of

# Comparisons and logic: boolean, without a gradient, and read by the rules of others.


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


@primitive(casts=True)
def logical_and(a: Any, b: Any) -> Any:
    """Whether a and b both hold, boolean; ``a & b`` for masks."""
    return np.logical_and(a, b)


@primitive(casts=True)
def logical_or(a: Any, b: Any) -> Any:
    """Whether a or b holds, boolean; ``a | b`` for masks."""
    return np.logical_or(a, b)


@primitive(casts=True)
def logical_xor(a: Any, b: Any) -> Any:
    """Whether just one of a and b holds, boolean; ``a ^ b`` for masks."""
    return np.logical_xor(a, b)


@primitive(casts=True)
def logical_not(x: Any) -> Any:
    """Whether x does not hold, boolean; ``~x`` for a mask."""
    return np.logical_not(x)


@primitive(casts=True)
def isnan(x: Any) -> Any:
    """Whether x is NaN, boolean."""
    return np.isnan(x)


@primitive(casts=True)
def isinf(x: Any) -> Any:
    """Whether x is an infinity, boolean."""
    return np.isinf(x)


@primitive(casts=True)
def isfinite(x: Any) -> Any:
    """Whether x is neither NaN nor an infinity, boolean."""
    return np.isfinite(x)


# Steps: functions that are constant wherever they have a derivative. Their gradient is 0, and stays on the tape: the
# second derivative of relu is 0, and no error about a tensor that was not used.


@primitive
def _zero(x: Any) -> Any:
    return np.zeros_like(x)


def nought(x: Any) -> Any:
    """The gradient of a step at `x`; None for what is traced, since compiled code has no second derivative to keep."""
    return None if isinstance(x, Operand) and not isinstance(x, Variable) else _zero(x)


_zero.vjp(lambda _g, _y, x: nought(x))


@primitive(broadcasts=True, casts=True)
def _tied(mask: Any, x: Any) -> Any:
    return mask.astype(x.dtype)


_tied.vjp(None, lambda _g, _y, _mask, x: nought(x))


def tied(mask: Any, x: Any) -> Any:
    """`mask`, computed from `x`, as a step of x where x is on the tape."""
    return _tied(mask, x) if isinstance(x, Variable) and x.node is not None else mask


@primitive
def sign(x: Any) -> Any:
    """-1, 0 or 1; its gradient is 0."""
    return np.sign(x)


@primitive
def floor(x: Any) -> Any:
    """The largest whole number that is not above x; its gradient is 0."""
    return np.floor(x)


@primitive
def ceil(x: Any) -> Any:
    """The smallest whole number that is not below x; its gradient is 0."""
    return np.ceil(x)


@primitive
def trunc(x: Any) -> Any:
    """x without what follows the point; its gradient is 0."""
    return np.trunc(x)


@primitive
def rint(x: Any) -> Any:
    """The nearest whole number, the even one of two; its gradient is 0."""
    return np.rint(x)


for _step in (sign, floor, ceil, trunc, rint):
    _step.vjp(lambda _g, _y, x: nought(x))


def round(x: Any, decimals: int = 0) -> Any:
    """x with `decimals` digits behind the point, as NumPy rounds; its gradient is 0."""
    decimals = integer(decimals, "round", "decimals")
    if not -300 <= decimals <= 300:
        raise InputError(f"round: expected decimals in [-300, 300], got {decimals}")
    if decimals == 0:
        return rint(x)
    scale = 10.0 ** (decimals if decimals > 0 else -decimals)
    return div(rint(mul(x, scale)), scale) if decimals > 0 else mul(rint(div(x, scale)), scale)


@primitive(broadcasts=True)
def floor_divide(a: Any, b: Any) -> Any:
    """a // b: the largest whole number that is not above a / b; its gradient is 0."""
    return np.floor_divide(a, b)


floor_divide.vjp(lambda _g, _y, a, _b: nought(a), lambda _g, _y, _a, b: nought(b))


@primitive(broadcasts=True)
def remainder(a: Any, b: Any) -> Any:
    """a % b: what is left of a after floor_divide(a, b) times b, with the sign of b."""
    return np.remainder(a, b)


remainder.vjp(lambda g, _y, _a, _b: g, lambda g, _y, a, b: -g * floor_divide(a, b))


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
    """p - 1, the power in the slope p x ** (p - 1); 0 for p = 0 where x ** -1 is infinite: that slope is 0."""
    if not hasattr(p, "shape"):
        return p - 1 if p else 0
    return where(equal(p, 0) * less(abs(x), 2.0 / float(np.finfo(x.dtype).max)), 0.0, p - 1)


def _slope_in_p(y: Any, x: Any) -> Any:
    """y log(x), 0 where x is not positive; a Python number stays one, since an array of it would be float64."""
    if not hasattr(x, "shape"):
        return y * math.log(x) if x > 0 else where(False, y, 0.0)
    positive = greater(x, 0)
    return where(positive, y, 0.0) * log(where(positive, x, 1.0))


pow.vjp(
    lambda g, _y, x, p: g * (p * pow(x, _lower(x, p))),
    lambda g, y, x, _p: g * _slope_in_p(y, x),
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


abs.vjp(lambda g, y, x: at_kink(g * sign(x), g, y, x))


def at_kink(found: Any, g: Any, y: Any, x: Any) -> Any:
    """`found`, the gradient g x / y of a distance y from 0; x times the limit of g / y where both are 0 on the tape.

    No value tells that limit, but the tape that made g does: it is dg/dy. With it abs(x) ** 2 and norm(x) ** 2 have the
    second derivative 2 at 0. Where only y is 0 there is a kink, and derivatives of all orders are 0 by convention.
    """
    if not isinstance(g, Variable) or not isinstance(y, Variable) or g.node is None or y.node is None:
        return found
    smooth = logical_and(equal(y, 0), equal(g, 0)).data
    if not smooth.any():
        return found
    limit = engine.flow(g.node, np.ones_like(g.data), {y.node}, type(g), higher=False).get(y.node)
    return found if limit is None else where(smooth, x * limit, found)


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


relu.vjp(lambda g, y, _x: g * tied(greater(y, 0), y))


@primitive
def softplus(x: Any) -> Any:
    """log(1 + exp(x)), without overflow."""
    return np.logaddexp(x, 0.0)


softplus.vjp(lambda g, _y, x: g * sigmoid(x))


@primitive(broadcasts=True)
def _share(a: Any, b: Any) -> Any:
    """1 where a > b, 1/2 where a == b, else 0."""
    dtype = a.dtype if hasattr(a, "dtype") else b.dtype
    return (np.greater(a, b).astype(dtype) + np.greater_equal(a, b)) * 0.5


_share.vjp(lambda _g, _y, a, _b: nought(a), lambda _g, _y, _a, b: nought(b))


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


def clip(x: Any, low: Any = None, high: Any = None) -> Any:
    """x limited to [low, high]; no gradient where it was cut. None is no limit.

    A limit that is an array or a tensor gets the gradient where it cuts; where x equals it, x has all of it.
    """
    low, high = (value.item() if isinstance(value, np.generic) else value for value in (low, high))
    for limit in (low, high):
        if limit is not None and not isinstance(limit, int | float) and not hasattr(limit, "shape"):
            raise DtypeError(f"clip: expected numbers or arrays as limits, got {type(limit).__name__}")
    if not hasattr(low, "shape") and not hasattr(high, "shape"):
        return _clip(x, low=-math.inf if low is None else low, high=math.inf if high is None else high)
    x = x if low is None else where(less(x, low), low, x)
    return x if high is None else where(greater(x, high), high, x)


@primitive
def _clip(x: Any, *, low: float, high: float) -> Any:
    return np.clip(x, low, high)


_clip.vjp(lambda g, _y, x, *, low, high: g * tied(greater_equal(x, low) * less_equal(x, high), x))


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
    shape_of(x, "astype")
    dtype = checked_dtype(dtype, "astype")
    return (_astype if dtype.kind == "f" else _discrete)(x, dtype=dtype, source=x.dtype)


@primitive(casts=True)
def _astype(x: Any, *, dtype: Any, source: Any) -> Any:
    return x.astype(dtype)


@primitive(casts=True)
def _discrete(x: Any, *, dtype: Any, source: Any) -> Any:
    return x.astype(dtype)


_astype.vjp(lambda g, _y, _x, *, dtype, source: _astype(g, dtype=source, source=dtype))
