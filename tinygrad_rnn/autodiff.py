"""Derivatives of functions: vjp, jvp, jacobian, hvp, recomputation instead of storage, and the gradient checker.

Everything here is made from `tinygrad_rnn.tensor.grad`; no derivative is written a second time.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinygrad_rnn import backend, engine, ops
from tinygrad_rnn.engine import primitive
from tinygrad_rnn.errors import GradientError, InputError, ShapeError
from tinygrad_rnn.ops.arguments import generator
from tinygrad_rnn.tensor import Tensor, grad

Function = Callable[..., Any]


def _fresh(x: Any) -> Tensor:
    """A tensor that stands for the argument `x` alone: gradients stop here, or pass on to x when it is on a tape."""
    if isinstance(x, Tensor) and x.node is not None:
        return ops.reshape(x, x.shape)  # type: ignore[no-any-return]
    return Tensor(x, requires_grad=True)


def vjp(f: Function, *xs: Any) -> tuple[Tensor, Callable[..., tuple[Tensor, ...]]]:
    """The value f(*xs), and the pullback that takes a gradient of its shape to the gradients of every x.

    ``pullback(g, create_graph=False)``.
    """
    with engine.recording():
        inputs = [_fresh(x) for x in xs]
        y = f(*inputs)

    def pullback(g: Any, *, create_graph: bool = False) -> tuple[Tensor, ...]:
        return tuple(grad(y, inputs, g, create_graph=create_graph, unused="zeros"))

    return y, pullback


def _directions(name: str, xs: Sequence[Any], vs: Sequence[Any]) -> list[Any]:
    """`vs` as arrays or tensors, one of the shape of each of `xs`."""
    if not isinstance(xs, list | tuple) or not isinstance(vs, list | tuple):
        raise InputError(f"{name}: expected a list of inputs and a list of directions, as in {name}(f, [x], [v])")
    if len(xs) != len(vs):
        raise InputError(f"{name}: expected one direction for each of {len(xs)} inputs, got {len(vs)}")
    vs = [v if hasattr(v, "shape") else Tensor(v) for v in vs]
    for x, v in zip(xs, vs, strict=True):
        shape = tuple(x.shape) if hasattr(x, "shape") else np.shape(x)
        if shape != tuple(v.shape):
            raise ShapeError(f"{name}: expected a direction of shape {shape}, got {tuple(v.shape)}")
    return vs


def _one_output(name: str, y: Any) -> None:
    if not isinstance(y, Tensor):
        raise InputError(f"{name}: expected a function that returns one tensor, got {type(y).__name__}")


def _inner(gs: Sequence[Tensor], vs: Sequence[Any]) -> Tensor | None:
    """The inner product of gradients and directions, recorded also inside no_grad(); None where all are constants."""
    with engine.recording():
        terms = [ops.sum(g * v) for g, v in zip(gs, vs, strict=True) if g.node is not None]
        return functools.reduce(operator.add, terms) if terms else None


def jvp(f: Function, xs: Sequence[Any], vs: Sequence[Any], *, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """The value f(*xs), and its directional derivative along `vs` (arrays of the shapes of `xs`).

    Forward mode from two reverse ones: the pullback is linear in its gradient, so its own transpose is the jvp.
    Raises InputError or ShapeError when `vs` are not like `xs`, or f returns no tensor.
    """
    vs = _directions("jvp", xs, vs)
    y, pullback = vjp(f, *xs)
    _one_output("jvp", y)
    u = Tensor(np.zeros_like(y.data), requires_grad=True)
    if y.node is None:
        return y, Tensor(np.zeros_like(y.data))
    pulled = pullback(u, create_graph=True)
    total = _inner(pulled, vs)
    if total is None:
        return y, Tensor(np.zeros_like(y.data))
    return y, grad(total, u, create_graph=create_graph, unused="zeros")


def jacobian(f: Function, x: Any, *, create_graph: bool = False) -> Tensor:
    """All first derivatives of f at x: shape (*y.shape, *x.shape); zeros where f(x) is a constant to the tape.

    So an f that differentiates itself does it with ``create_graph=True``. Raises InputError when f returns no tensor.
    """
    x = x if hasattr(x, "shape") else Tensor(x)
    y, pullback = vjp(f, x)
    _one_output("jacobian", y)
    if y.node is None:
        return Tensor(np.zeros_like(y.data, shape=(*y.shape, *x.shape)))
    rows = []
    for i in range(y.size):
        unit = np.zeros_like(y.data).reshape(-1)
        unit[i] = 1
        rows.append(pullback(unit.reshape(y.shape), create_graph=create_graph)[0])
    with engine.recording(create_graph):
        stacked = ops.stack(rows) if rows else Tensor(np.zeros_like(y.data, shape=(0, *x.shape)))
        return ops.reshape(stacked, (*y.shape, *x.shape))  # type: ignore[no-any-return]


def hvp(f: Function, xs: Sequence[Any], vs: Sequence[Any], *, create_graph: bool = False) -> tuple[Tensor, ...]:
    """The Hessian of the scalar f at `xs`, times `vs`: one tensor per x.

    Raises GradientError when f has more than one output, InputError or ShapeError when `vs` are not like `xs`.
    """
    vs = _directions("hvp", xs, vs)
    with engine.recording():
        inputs = [_fresh(x) for x in xs]
        first = grad(f(*inputs), inputs, create_graph=True, unused="zeros")
    total = _inner(first, vs)
    if total is None:
        return tuple(Tensor(np.zeros_like(x.data)) for x in inputs)
    return tuple(grad(total, inputs, create_graph=create_graph, unused="zeros"))


# ------------------------------------------------------------------------------------ recompute


@primitive
def _recompute(*xs: Any, function: Function) -> Any:
    with engine.no_grad():
        return function(*[Tensor(x) for x in xs]).data


def _recompute_back(g: Any, _y: Any, needed: Sequence[bool], *xs: Any, function: Function) -> list[Any]:
    higher = isinstance(g, Tensor)
    with engine.recording():
        inputs = [_fresh(x) if need else Tensor(x) for x, need in zip(xs, needed, strict=True)]
        y = function(*inputs)
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
    if y.node is None:
        return [np.zeros_like(x.data) if not higher else Tensor(np.zeros_like(x.data)) for x in inputs]
    if not higher:
        known = {x.node for x in wanted}
        for node in engine.below(y.node):
            if node.op is None and node not in known:
                raise GradientError(
                    f"recompute: expected a function of its arguments alone, got one that uses another "
                    f"tensor with requires_grad, of shape {node.shape}; pass it as an argument"
                )
    found = iter(grad(y, wanted, g, create_graph=higher, unused="zeros"))
    results = [next(found) if need else None for need in needed]
    return [None if r is None else r if higher else r.data for r in results]


_recompute.vjp_joint(_recompute_back)


def recompute(f: Function, *xs: Any) -> Any:
    """f(*xs), without keeping what f computes on the way: the backward pass runs f again (gradient checkpointing).

    f must be a pure function of its arguments, all of them tensors or arrays of one floating dtype, and returns a
    tensor or a tuple of tensors. Source: Chen et al. 2016, arXiv 1604.06174.
    Raises InputError without an argument or when f returns anything else, and GradientError in the backward pass when
    f uses a tensor with requires_grad that is not an argument.
    """
    if not xs:
        raise InputError("recompute: expected at least one argument, got none")
    shapes: list[tuple[int, ...]] = []
    single: list[bool] = []

    def packed(*inputs: Any) -> Any:
        out = f(*inputs)
        single[:] = [isinstance(out, Tensor)]
        parts = [out] if isinstance(out, Tensor) else out
        if not isinstance(parts, list | tuple) or not all(isinstance(part, Tensor) for part in parts):
            raise InputError(
                f"recompute: expected f to return a tensor or a tuple of tensors, got {type(out).__name__}"
            )
        shapes[:] = [tuple(part.shape) for part in parts]
        return ops.concatenate([ops.reshape(part, (-1,)) for part in parts])

    flat = _recompute(*[x if isinstance(x, Tensor) else Tensor(x) for x in xs], function=packed)
    parts = ops.split(flat, [math.prod(shape) for shape in shapes])
    outs = tuple(ops.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True))
    return outs[0] if single[0] else outs


# ------------------------------------------------------------------------------------ gradcheck


def gradcheck(
    f: Function,
    *xs: Any,
    rng: np.random.Generator,
    order: int = 2,
    rtol: float = 1e-6,
    atol: float = 1e-7,
    step: float = 1e-6,
) -> None:
    """Compare the derivatives of f at `xs` (float64 arrays) with central differences along one random direction.

    Reverse mode, forward mode, and with ``order=2`` the same for the gradient itself. f returns a tensor, or a tuple.
    Raises GradientError that names the level, both numbers and what they were computed from; DtypeError-like InputError
    when an input is not float64.
    """
    arrays = [np.array(backend.to_host(x.data if isinstance(x, Tensor) else x)) for x in xs]
    for i, array in enumerate(arrays):
        if array.dtype != np.float64:
            raise InputError(
                f"gradcheck: expected float64 inputs, got {array.dtype} at position {i}; differences in a "
                "shorter type prove nothing"
            )
    _check(f, arrays, generator(rng, "gradcheck"), order, rtol, atol, step, "f")


def _flat(f: Function, xs: Sequence[Any]) -> Tensor:
    out = f(*xs)
    parts = [out] if isinstance(out, Tensor) else list(out)
    return ops.concatenate([ops.reshape(part, (-1,)) for part in parts])  # type: ignore[no-any-return]


def _check(
    f: Function,
    xs: Sequence[Any],
    rng: np.random.Generator,
    order: int,
    rtol: float,
    atol: float,
    step: float,
    name: str,
) -> None:
    def flat(*inputs: Any) -> Tensor:
        return _flat(f, inputs)

    directions = [rng.normal(size=x.shape) for x in xs]
    with engine.no_grad():
        ahead = flat(*[Tensor(x + step * v) for x, v in zip(xs, directions, strict=True)]).data
        behind = flat(*[Tensor(x - step * v) for x, v in zip(xs, directions, strict=True)]).data
    slope = (ahead - behind) / (2 * step)
    u = rng.normal(size=slope.shape)
    y, pullback = vjp(flat, *xs)
    if y.node is None:
        pulled: tuple[Tensor, ...] = tuple(Tensor(np.zeros_like(x)) for x in xs)
    else:
        pulled = pullback(u)
    reverse = sum(float(np.sum(g.data * v)) for g, v in zip(pulled, directions, strict=True))
    _compare(reverse, float(np.sum(u * slope)), rtol, atol, float(np.sum(np.abs(u * slope))), f"vjp of {name}", xs)
    _, forward = jvp(flat, xs, directions)
    largest = float(np.max(np.abs(slope), initial=0.0))
    for got, expected in zip(forward.data, slope, strict=True):
        _compare(float(got), float(expected), rtol, atol, largest, f"jvp of {name}", xs)
    if order > 1:

        def first(*inputs: Any) -> tuple[Tensor, ...]:
            with engine.recording():
                fresh = [_fresh(x) for x in inputs]
                out = flat(*fresh)
            if out.node is None:
                return tuple(Tensor(np.zeros_like(x.data)) for x in fresh)
            return tuple(grad(out, fresh, u, create_graph=True, unused="zeros"))

        # differences of a computed gradient are noisier than those of f
        _check(first, xs, rng, order - 1, rtol * 10, atol * 10, step, f"the gradient of {name}")


def _compare(got: float, expected: float, rtol: float, atol: float, scale: float, what: str, xs: Sequence[Any]) -> None:
    if not abs(got - expected) <= atol + rtol * max(abs(expected), scale):  # so that a NaN is never right
        shapes = ", ".join(str(tuple(x.shape)) for x in xs)
        raise GradientError(
            f"{what}: expected {expected!r} by central differences, got {got!r} (inputs of shape {shapes})"
        )
