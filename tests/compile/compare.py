"""One run of a cell over a sequence, everything that can be asked of it, and the comparison of two such runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from tinygrad_rnn import Cell, Tensor, Unrolled, draw_noise, grad, ops, scan, specification, unroll

Array = np.ndarray[Any, Any]
Run = Callable[..., Unrolled]


@dataclass(frozen=True)
class Case:
    """A cell with arrays (float64) to feed it; `state` None starts from the declared values."""

    cell: Cell
    params: Mapping[str, Array]
    xs: Array
    state: Mapping[str, Array] | None = None
    mask: Array | None = None
    xs_grad: bool = True
    noise: Mapping[str, Array] | None = None
    state_grad: bool = True  # whether the start state is given as tensors that require a gradient, or as arrays


def make_case(
    cell: Cell,
    T: int = 4,
    B: int = 3,
    *,
    seed: int = 0,
    carried: bool = True,
    masked: bool = False,
    noisy: bool = False,
    **facts: Any,
) -> Case:
    """Parameters around 0.5 in size, inputs of size 1; a mask that leaves out about every third step."""
    rng = np.random.default_rng(seed)
    states, params = specification(cell)
    return Case(
        cell,
        {name: rng.normal(size=spec.shape) * 0.5 for name, spec in params.items()},
        rng.normal(size=(T, B, cell.I)),
        {name: rng.uniform(-0.9, 0.9, (B, *spec.shape)) for name, spec in states.items()} if carried else None,
        rng.uniform(size=(T, B)) < 0.7 if masked else None,
        noise=draw_noise(cell, T, B, rng) if noisy else None,
        **facts,
    )


def cast(case: Case, dtype: Any) -> Case:
    """The same case with every array rounded to `dtype`."""
    return replace(
        case,
        params={name: value.astype(dtype) for name, value in case.params.items()},
        xs=case.xs.astype(dtype),
        state=None if case.state is None else {name: value.astype(dtype) for name, value in case.state.items()},
        noise=None if case.noise is None else {name: value.astype(dtype) for name, value in case.noise.items()},
    )


# -------------------------------------------------------------------------------------------- losses


def weighted(value: Any, rng: np.random.Generator) -> Any:
    """The sum of the elements, each times a random number."""
    return ops.sum(value * rng.normal(size=value.shape).astype(value.dtype))


def on_outputs(done: Unrolled, rng: np.random.Generator) -> Any:
    return weighted(done.outputs, rng)


def on_last_output(done: Unrolled, rng: np.random.Generator) -> Any:
    return weighted(done.outputs[-1], rng)


def on_last_states(done: Unrolled, rng: np.random.Generator) -> Any:
    """All final values but the output's, where there are others."""
    names = list(done.state)
    total = weighted(done.state[names[-1]], rng)
    for name in names[1:-1]:
        total = total + weighted(done.state[name], rng)
    return total


def on_some_steps(done: Unrolled, rng: np.random.Generator) -> Any:
    """States at two timesteps each, and not the outputs."""
    total: Any = 0.0
    for values in done.states.values():
        for t in {len(values) // 3, len(values) - 1}:
            total = weighted(values[t], rng) + total
    return total


def on_everything(done: Unrolled, rng: np.random.Generator) -> Any:
    """Not linear, so that the second derivative sees it."""
    total = weighted(done.outputs * done.outputs, rng)
    for value in done.state.values():
        total = total + weighted(ops.sin(value), rng)
    for values in done.states.values():
        total = total + weighted(ops.tanh(values[0]) * values[len(values) // 2], rng)
    return total


LOSSES: dict[str, Callable[[Unrolled, np.random.Generator], Any]] = {
    "outputs": on_outputs,
    "last output": on_last_output,
    "last states": on_last_states,
    "some steps": on_some_steps,
    "everything": on_everything,
}


# ---------------------------------------------------------------------------------------- comparison


@dataclass(frozen=True)
class Outcome:
    """What a run gave: arrays by name, and the result itself."""

    done: Unrolled
    values: dict[str, Array]
    first: dict[str, Array]
    second: dict[str, Array]


def outcome(
    run: Run, case: Case, loss: str = "outputs", *, seed: int = 1, second: bool = False, like: Outcome | None = None
) -> Outcome:
    """Values, and gradients with respect to inputs, start state, parameters and every state at every step.

    The second gradients are those of a random combination of the first, with respect to the leaves. Gradients are taken
    where `like` has them, or where there are any.
    """
    buffers = {name for name, spec in specification(case.cell)[1].items() if spec.role == "buffer"}
    params = {name: Tensor(value, requires_grad=name not in buffers) for name, value in case.params.items()}
    xs = Tensor(case.xs, requires_grad=case.xs_grad)
    state: Any = case.state
    if case.state is not None and case.state_grad:
        state = {name: Tensor(value, requires_grad=True) for name, value in case.state.items()}
    done = run(case.cell, params, xs, state, mask=case.mask, noise=case.noise)
    values = {"outputs": done.outputs.data}
    values |= {f"last {name}": value.data for name, value in done.state.items()}
    steps = {f"{name}[{t}]": value for name, row in done.states.items() for t, value in enumerate(row)}
    values |= {name: value.data for name, value in steps.items()}
    leaves = {name: value for name, value in params.items() if value.requires_grad}
    leaves |= {"xs": xs} if case.xs_grad else {}
    leaves |= {f"start {name}": value for name, value in (state or {}).items() if isinstance(value, Tensor)}
    targets = leaves | {
        name: value
        for name, value in steps.items()
        if (value.requires_grad if like is None else f"d {name}" in like.first)
    }
    rng = np.random.default_rng(seed)
    total = LOSSES[loss](done, rng)
    first: dict[str, Array] = {}
    twice: dict[str, Array] = {}
    # a loss that no leaf reaches has no gradient; the compiled run may not know that, and then gives zeros
    if targets and total.requires_grad:
        found = grad(total, list(targets.values()), create_graph=second, unused="zeros")
        first = {f"d {name}": value.data for name, value in zip(targets, found, strict=True)}
        if second:
            combined = sum((weighted(value, rng) for value in found), Tensor(np.zeros((), case.xs.dtype)))
            if combined.requires_grad:
                again = grad(combined, list(leaves.values()), unused="zeros")
                twice = {f"dd {name}": value.data for name, value in zip(leaves, again, strict=True)}
    return Outcome(done, values, first, twice)


def worst(values: Mapping[str, Array], expected: Mapping[str, Array], least: float = 1e-3) -> tuple[float, str]:
    """The largest error, as a share of the largest element of its array, and the name of that array.

    What is zero on paper and a few roundings in fact has no largest element worth the name: `least` times the largest
    of all arrays, or of 1, stands in its place.
    """
    largest = max((float(np.max(np.abs(value))) for value in expected.values()), default=0.0)
    found = (0.0, "")
    for name, value in expected.items():
        got = values[name] if name in values else np.zeros_like(value)
        assert got.shape == value.shape, f"{name}: expected {value.shape}, got {got.shape}"
        scale = max(float(np.max(np.abs(value))), least * max(largest, 1.0))
        error = float(np.max(np.abs(got.astype(np.float64) - value)))
        assert np.isfinite(error), f"{name}: got {got}"
        found = max(found, (error / scale, name))
    return found


def compare(
    executor: str,
    case: Case,
    loss: str = "outputs",
    *,
    second: bool = False,
    seed: int = 1,
    bound: float = 1e-11,
    recompute: int | None = None,
) -> Unrolled:
    """Run `case` by `scan` and by `unroll` in float64 and hold them against each other; what `scan` returned."""
    slow = outcome(unroll, case, loss, second=second, seed=seed)
    run = partial(scan, executor=executor, recompute=recompute)
    fast = outcome(run, case, loss, second=second, seed=seed, like=slow)
    for part in ("values", "first", "second"):
        expected = getattr(slow, part)
        got = getattr(fast, part)
        for name, value in got.items():
            assert name in expected or not value.any(), f"{name}: expected zeros, got {value}"
            assert value.dtype == case.xs.dtype, f"{name}: got {value.dtype}"
        error, name = worst(got, expected)
        assert error <= bound, f"{name}: {error:.1e} off\n{got.get(name)}\nexpected\n{expected[name]}"
    return fast.done


# Of float32: a run may be as far from the float64 result as this many times unroll in float32 is, plus this many
# roundings of the largest element. The order of the sums in a product differs, and tanh and exp may be a few ulp off.
TIMES = 4.0
ROUNDINGS = 16.0


def compare_float32(executor: str, case: Case, loss: str = "outputs", *, seed: int = 1) -> Unrolled:
    """Both runs in float32 against `unroll` in float64 on the same numbers: `scan` may not lose much more."""
    rounded = cast(case, np.float32)
    exact = outcome(unroll, cast(rounded, np.float64), loss, seed=seed)
    slow = outcome(unroll, rounded, loss, seed=seed, like=exact)
    fast = outcome(partial(scan, executor=executor), rounded, loss, seed=seed, like=exact)
    for part in ("values", "first"):
        for name, value in getattr(fast, part).items():
            assert value.dtype == np.float32, f"{name}: got {value.dtype}"
        error, name = worst(getattr(fast, part), getattr(exact, part), least=0.1)
        usual, _ = worst(getattr(slow, part), getattr(exact, part), least=0.1)
        bound = TIMES * usual + ROUNDINGS * float(np.finfo(np.float32).eps)
        assert error <= bound, f"{name}: {error:.1e} off in float32, where unroll is {usual:.1e} off"
    return fast.done


# ------------------------------------------------------------------------------------------- layouts


def fortran(array: Array) -> Array:
    return np.asfortranarray(array)


def strided(array: Array) -> Array:
    """Every second element of a larger array."""
    if not array.ndim:
        return array
    room = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    room[..., ::2] = array
    return room[..., ::2]


def backwards(array: Array) -> Array:
    """Negative strides along every axis."""
    turn = (slice(None, None, -1),) * array.ndim
    return np.ascontiguousarray(array[turn])[turn]


LAYOUTS: dict[str, Callable[[Array], Array]] = {"fortran": fortran, "strided": strided, "backwards": backwards}


def laid_out(case: Case, layout: str) -> Case:
    """The same numbers in memory that is not C-contiguous."""
    put = LAYOUTS[layout]
    return replace(
        case,
        params={name: put(value) for name, value in case.params.items()},
        xs=put(case.xs),
        state=None if case.state is None else {name: put(value) for name, value in case.state.items()},
        mask=None if case.mask is None else put(case.mask),
        noise=None if case.noise is None else {name: put(value) for name, value in case.noise.items()},
    )
