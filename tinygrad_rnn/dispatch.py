"""NumPy's functions, called on a tensor or a symbol: the op that means the same answers.

An op under NumPy's own name is found by that name, and its arguments are matched with NumPy's by name; so a new op
needs no entry here. What NumPy calls or passes otherwise is a function of this module with NumPy's arguments.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tinygrad_rnn import ops

Call = Callable[[tuple[Any, ...], Mapping[str, Any]], Any]


class NoOp(Exception):
    """Final. No op does what was asked of NumPy: `why`, and what to `use`."""

    def __init__(self, why: str, use: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.use = use or "use functions of tinygrad_rnn.ops"


def answer(function: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """What the op that means `function` makes of these arguments. Raises NoOp where there is none."""
    return _call(function)(args, options)


def told(function: Any) -> str:
    """The name by which a user knows one of NumPy's functions: ``np.linalg.norm``, ``np.add.reduce``."""
    ufunc = getattr(function, "__self__", None)
    if isinstance(ufunc, np.ufunc):
        return f"{told(ufunc)}.{function.__name__}"
    module = getattr(function, "__module__", None)
    if module is None:  # a ufunc before NumPy 2.2 has none
        module = "numpy" if getattr(np, function.__name__, None) is function else ""
    root, _, rest = module.partition(".")
    return ".".join(filter(None, ["np" if root == "numpy" else root, rest, function.__name__]))


# Functions whose results are no real numbers, or do not depend on the values: there is no gradient to lose.
NO_GRADIENT = frozenset(
    """
    all allclose any argmax argmin argpartition argsort argwhere array2string array_equal array_equiv array_repr
    array_str bincount can_cast common_type count_nonzero digitize empty_like equal flatnonzero full_like greater
    greater_equal isclose iscomplex iscomplexobj isfinite isin isinf isnan isneginf isposinf isreal isrealobj less
    less_equal lexsort logical_and logical_not logical_or logical_xor may_share_memory min_scalar_type nanargmax
    nanargmin ndim nonzero not_equal ones_like result_type searchsorted shape shares_memory signbit size zeros_like
    """.split()
)

# Functions that write into their first argument.
WRITERS = frozenset({"at", "copyto", "fill_diagonal", "place", "put", "put_along_axis", "putmask"})

# NumPy's name where ours is another.
NAMES = {
    "absolute": "abs",
    "amax": "max",
    "amin": "min",
    "around": "round",
    "divide": "div",
    "multiply": "mul",
    "negative": "neg",
    "power": "pow",
    "subtract": "sub",
    "true_divide": "div",
}

# What to write instead, in the arguments of NumPy's function: x, or a and b.
RECIPES = {
    "cbrt": "ops.sign(x) * ops.abs(x) ** (1 / 3)",
    "copysign": "ops.abs(a) * ops.sign(b)",
    "cumulative_prod": "ops.cumprod(x, 0)",
    "cumulative_sum": "ops.cumsum(x, 0)",
    "deg2rad": "x * (math.pi / 180)",
    "degrees": "x * (180 / math.pi)",
    "diff": "x[..., 1:] - x[..., :-1]",
    "ediff1d": "x[1:] - x[:-1]",
    "fix": "ops.trunc(x)",
    "float_power": "a ** b",
    "fliplr": "ops.flip(x, 1)",
    "flipud": "ops.flip(x, 0)",
    "fmax": "ops.maximum(a, b)",
    "fmin": "ops.minimum(a, b)",
    "fmod": "a - b * ops.trunc(a / b)",
    "heaviside": "ops.where(a > 0, 1.0, ops.where(a < 0, 0.0, b))",
    "hypot": "ops.sqrt(a * a + b * b)",
    "logaddexp2": "ops.logaddexp(a * math.log(2), b * math.log(2)) / math.log(2)",
    "matrix_transpose": "x.swapaxes(-1, -2)",
    "nanmax": "ops.max(ops.where(ops.isnan(x), -math.inf, x))",
    "nanmean": "ops.sum(ops.where(ops.isnan(x), 0.0, x)) / ops.sum(ops.astype(~ops.isnan(x), x.dtype))",
    "nanmin": "ops.min(ops.where(ops.isnan(x), math.inf, x))",
    "nanprod": "ops.prod(ops.where(ops.isnan(x), 1.0, x))",
    "nansum": "ops.sum(ops.where(ops.isnan(x), 0.0, x))",
    "ptp": "ops.max(x) - ops.min(x)",
    "rad2deg": "x * (180 / math.pi)",
    "radians": "x * (math.pi / 180)",
    "reciprocal": "1.0 / x",
    "vecdot": "ops.sum(a * b, -1)",
    "vector_norm": "ops.norm(x)",
}

# What to use instead.
ADVICE = {
    **RECIPES,
    **dict.fromkeys(("append", "block", "column_stack", "dstack", "insert", "resize"), "ops.concatenate"),
    **dict.fromkeys(("atleast_1d", "atleast_2d", "atleast_3d"), "ops.expand_dims"),
    **dict.fromkeys(("choose", "nan_to_num", "select"), "ops.where"),
    **dict.fromkeys(("compress", "delete", "extract", "take_along_axis", "unstack"), "an index, x[...]"),
    **dict.fromkeys(("median", "nanmedian", "percentile", "quantile"), "ops.sort"),
    **dict.fromkeys(WRITERS, "ops.where or ops.scatter"),
    "array_split": "ops.split",
    "average": "ops.mean",
    "copy": "the tensor itself",
    "cross": "ops.stack of products",
    "ldexp": "x * 2.0 ** n",
    "meshgrid": "ops.broadcast_to",
    "modf": "ops.trunc",
    "multi_dot": "@",
    "rollaxis": "ops.moveaxis",
    "rot90": "ops.flip and ops.swapaxes",
    "trace": "ops.trace(x, 0, -2, -1)",
}
# By the method of a ufunc, and by an argument that no op has.
METHODS = {
    "add.accumulate": "ops.cumsum",
    "add.reduce": "ops.sum",
    "logaddexp.reduce": "ops.logsumexp",
    "maximum.reduce": "ops.max",
    "minimum.reduce": "ops.min",
    "multiply.accumulate": "ops.cumprod",
    "multiply.outer": "ops.outer",
    "multiply.reduce": "ops.prod",
}
OPTIONS = {
    "constant_values": "write ops.pad(x - c, widths) + c",
    "dtype": "convert with .astype(...)",
    "initial": "apply it to the result, as in np.sum(x) + c",
    "mode": "join slices of x with ops.concatenate",
    "order": "transpose with ops.transpose",
    "where": "choose with ops.where first",
}
OPERATORS = {
    "add": "+", "div": "/", "floor_divide": "//", "matmul": "@", "mul": "*", "pow": "**", "remainder": "%", "sub": "-",
}  # fmt: skip


# ------------------------------------------------------------------- what NumPy calls or passes otherwise


def _concatenate(arrays: Any, axis: int | None = 0) -> Any:
    return ops.concatenate(list(arrays), axis)


def _stack(arrays: Any, axis: int = 0) -> Any:
    return ops.stack(list(arrays), axis)


def _hstack(tup: Any) -> Any:
    parts = [ops.reshape(part, -1) if len(part.shape) == 0 else part for part in tup]
    return ops.concatenate(parts, 0 if len(parts[0].shape) == 1 else 1)


def _vstack(tup: Any) -> Any:
    return ops.concatenate([ops.reshape(part, (1, -1)) if len(part.shape) < 2 else part for part in tup])


def _where(condition: Any, x: Any, y: Any) -> Any:
    return ops.where(condition, x, y)


def _clip(a: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Any:
    bounds = {"low": a_min if min is None else min, "high": a_max if max is None else max}
    return ops.clip(a, **{name: bound for name, bound in bounds.items() if bound is not None})


def _dot(a: Any, b: Any) -> Any:
    return ops.dot(_array(a), _array(b))


def _inner(a: Any, b: Any) -> Any:
    return ops.inner(_array(a), _array(b))


def _array(x: Any) -> Any:
    """A number as NumPy's, which is as weak as a Python one and has a shape; a list as an array."""
    return x if hasattr(x, "shape") else np.asarray(x)[()]


def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    plain = len(x.shape) == 1 if axis is None else isinstance(axis, int)  # of vectors; otherwise of matrices
    if ord is None or (ord == 2 and plain) or (ord == "fro" and not plain):
        return ops.norm(x, axis, keepdims)
    if not plain:
        raise NoOp(
            f"ord={ord!r} with two axes is a norm of matrices, and ops.norm is the Euclidean one",
            "give one axis, as in axis=-1, for the norms of vectors, or leave ord= out",
        )
    if ord == 1:
        return ops.sum(ops.abs(x), axis, keepdims)
    if ord in (np.inf, -np.inf):
        return (ops.max if ord > 0 else ops.min)(ops.abs(x), axis, keepdims)
    raise NoOp(f"ops.norm is the Euclidean norm, not ord={ord!r}", "write ops.sum(ops.abs(x) ** p) ** (1 / p)")


def _divmod(x1: Any, x2: Any) -> Any:
    return ops.floor_divide(x1, x2), ops.remainder(x1, x2)


def _sort(a: Any, axis: int | None = -1, kind: Any = None, *, stable: Any = None) -> Any:
    return ops.sort(a, axis)  # by a stable algorithm, whatever is asked for


def _split(ary: Any, indices_or_sections: Any, axis: int = 0) -> Any:
    if isinstance(indices_or_sections, int | np.integer):
        return ops.split(ary, int(indices_or_sections), axis)
    ends = [0, *(int(end) for end in indices_or_sections), ary.shape[axis]]
    return ops.split(ary, [stop - start for start, stop in itertools.pairwise(ends)], axis)


def _take(a: Any, indices: Any, axis: int | None = None) -> Any:
    if axis is None:
        return ops.reshape(a, -1)[indices]
    return a[(slice(None),) * (axis % len(a.shape)) + (indices,)]


def _einsum(*operands: Any, optimize: Any = False) -> Any:
    return ops.einsum(*operands)


def _positive(x: Any) -> Any:
    return x


def _bitwise_and(x1: Any, x2: Any) -> Any:
    return _of_masks(ops.logical_and, x1, x2)


def _bitwise_or(x1: Any, x2: Any) -> Any:
    return _of_masks(ops.logical_or, x1, x2)


def _bitwise_xor(x1: Any, x2: Any) -> Any:
    return _of_masks(ops.logical_xor, x1, x2)


def _invert(x: Any) -> Any:
    return _of_masks(ops.logical_not, x)


def _of_masks(op: Any, *masks: Any) -> Any:
    """``array & x``, which for numbers is another function."""
    if any(np.result_type(getattr(mask, "dtype", mask)).kind != "b" for mask in masks):
        raise NoOp(f"ops.{op.__name__} is one of masks, not of numbers", "compare first")
    return op(*masks)


def _shape(a: Any) -> Any:
    return a.shape


def _ndim(a: Any) -> Any:
    return len(a.shape)


def _size(a: Any, axis: int | None = None) -> Any:
    return int(np.prod(a.shape)) if axis is None else a.shape[axis]


PUBLIC = frozenset(name for name in dir(ops) if callable(getattr(ops, name)) and not name.startswith("_"))
OWN: dict[str, Callable[..., Any]] = {
    "bitwise_and": _bitwise_and,
    "bitwise_or": _bitwise_or,
    "bitwise_xor": _bitwise_xor,
    "clip": _clip,
    "concatenate": _concatenate,
    "divmod": _divmod,
    "dot": _dot,
    "einsum": _einsum,
    "hstack": _hstack,
    "inner": _inner,
    "invert": _invert,
    "ndim": _ndim,
    "norm": _norm,
    "positive": _positive,
    "shape": _shape,
    "size": _size,
    "sort": _sort,
    "split": _split,
    "stack": _stack,
    "take": _take,
    "vstack": _vstack,
    "where": _where,
}
LINALG = frozenset({"matmul", "norm", "outer", "tensordot"})  # those that mean what ops of that name mean


@functools.cache
def _call(function: Any) -> Call:
    """How to answer `function`: from positional and named arguments to the result."""
    name, module = function.__name__, told(function).rpartition(".")[0]
    ours = NAMES.get(name, name)
    if module != "np" and not (module == "np.linalg" and name in LINALG):
        ours = ""
    if ours in OWN:
        return functools.partial(_bound, inspect.signature(OWN[ours]), OWN[ours], ours)
    if ours not in PUBLIC:
        return functools.partial(_refused, function)
    op = getattr(ops, ours)
    if isinstance(function, np.ufunc):
        return functools.partial(_elementwise, function.nin, op, ours)
    try:
        signature = inspect.signature(function)
    except ValueError:  # some of NumPy's own had none before 2.4
        return functools.partial(_bound, inspect.signature(op), op, ours)
    return functools.partial(_matched, signature, op, ours, _places(signature, op))


def _refused(function: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    name = told(function).removeprefix("np.")
    use = METHODS.get(name) or ADVICE.get(function.__name__, "")
    raise NoOp("there is no op for it", f"use {use}" if use else "")


def _without(option: str, name: str) -> NoOp:
    """The refusal of one argument that NumPy takes and the op `name` does not."""
    if option == "out":
        sign = OPERATORS.get(name)
        given, use = (f", as in a {sign}= b,", f"a = a {sign} b") if sign else ("", f"y = ops.{name}(...)")
        return NoOp(f"out={given} writes into an array, which has no gradient", f"write {use}")
    return NoOp(f"ops.{name} takes no {option}=", OPTIONS.get(option, "leave it out"))


def _elementwise(count: int, op: Any, name: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """`op` in the place of a ufunc; without detours, since every ``array * x`` comes by here."""
    if options or len(args) != count:
        raise _without(next(iter(options), "out"), name)
    return op(*args)


def _bound(signature: inspect.Signature, call: Any, name: str, args: tuple[Any, ...], options: Any) -> Any:
    """`call` with NumPy's arguments as they are."""
    for option in options:
        if option not in signature.parameters:
            raise _without(option, name)
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        raise NoOp(f"ops.{name} takes other arguments ({error})") from error
    return call(*args, **options)


def _places(theirs: inspect.Signature, op: Callable[..., Any]) -> dict[str, str]:
    """NumPy's parameters that the op has too, and as what: the first one, those of the same name, or by their place."""
    names, ours = list(theirs.parameters), list(inspect.signature(op).parameters)
    places = {names[0]: ours[0]}
    for k, name in enumerate(names[1:], 1):
        if name in ours[1:]:
            places[name] = name
        elif k < len(ours) and ours[k] not in names[1:]:
            places[name] = ours[k]
    return places


def _matched(
    signature: inspect.Signature,
    op: Callable[..., Any],
    name: str,
    places: Mapping[str, str],
    args: tuple[Any, ...],
    options: Mapping[str, Any],
) -> Any:
    """`op` with NumPy's arguments, defaults included, under its own names."""
    given = signature.bind(*args, **options).arguments
    passed = {}
    for key, parameter in signature.parameters.items():
        value = given.get(key, parameter.default)
        if key in places:
            if value is not parameter.empty and value is not np._NoValue:
                passed[places[key]] = value
        elif (
            key in given
            and value is not parameter.default
            and not (isinstance(value, str) and value == parameter.default)
        ):
            raise _without(next(iter(value)) if parameter.kind is parameter.VAR_KEYWORD else key, name)
    return op(passed.pop(next(iter(places.values()))), **passed)
