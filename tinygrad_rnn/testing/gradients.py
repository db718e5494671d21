"""The check of first and second derivatives, by differences; a fault is led back to one element."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import numpy as np

from tinygrad_rnn.autodiff import gradcheck
from tinygrad_rnn.backend import Array
from tinygrad_rnn.cell import Cell, init_cell, noise_of, output_of, specification, timesteps
from tinygrad_rnn.compile.trace import Untraceable, ancestors, same, trace_step
from tinygrad_rnn.errors import GradientError, InputError
from tinygrad_rnn.options import field_types
from tinygrad_rnn.sequence import unroll
from tinygrad_rnn.tensor import Tensor
from tinygrad_rnn.testing.cases import CellCase, cell_values, tensors
from tinygrad_rnn.testing.trial import Failed, Noted, Trial, bracketed, reason
from tinygrad_rnn.wrap import Wrapper


def gradients(trial: Trial) -> str:
    """First and second derivatives agree with differences, and everything is used."""
    kinks: list[str] = []
    case = trial.case(T=3, B=2)
    leaves = ["x", *_carried(case), *_trained(case)]
    slopes = cell_values(trial.case(), order=1)
    silent = []
    late: dict[str, int] = {}  # what acts only after more timesteps, and how many it takes
    for name in leaves:
        if name not in case.state and not np.any(slopes.get(f"d {name}", 0.0)):
            if not _unused(trial, name):
                late |= _acting(trial, name)
                continue
            what = "the input x" if name == "x" else f"parameter {name}"
            if timesteps(specification(case.cell)[0]) and _reads(case.cell, name):
                silent.append(f"{what} is used at none of the timesteps that were tried: its gradient is zero")
                continue
            lines = [*trial.lines(T=trial.steps), f"print(cell_values(case, order=1)['d {name}'])  # zeros"]
            raise Failed(
                f"{what} is never used: no number depends on it within {trial.steps} timesteps, and its gradient "
                "is zero; if it acts more seldom take more --steps",
                lines,
            )
    wrong: dict[str | None, GradientError] = {}
    # The first order one by one, so that no small one hides behind the large; the second at once, mixed ones included.
    parts: list[tuple[str | None, int]] = [*((leaf, 1) for leaf in leaves), (None, 2)]
    for part, order in parts:
        T = late.get(part or "", 3)
        error = _wrong(trial, part, trial.seed, order, T)
        # At a kink, as that of relu, a difference is no derivative: a second point decides.
        if error is not None and _wrong(trial, part, trial.seed + 1000, order, T) is None:
            kinks += [part or "all at once"] if part or not kinks else []
        elif error is not None:
            wrong[part] = error
    if wrong:
        first = cell_values(trial.case(T=3, B=2), order=1)
        which = next((key for key in wrong if key and not np.any(first.get(f"d {key}", 0.0))), next(iter(wrong)))
        if which in late:
            raise Failed(f"for {which}, within {late[which]} timesteps: {wrong[which]}")
        raise _located(trial, which, wrong[which])
    idle = silent or _idle(trial, case)
    if idle:
        raise Noted(f"right, but {'; '.join(idle)}")
    count = f"{len(leaves)} of them, first and second order"
    count += "".join(f"; {name} within {T} timesteps" for name, T in late.items())
    return count + (f"; only at a second point, since the first is at a kink: {', '.join(kinks)}" if kinks else "")


def _carried(case: CellCase) -> list[str]:
    """The states that can have a gradient: timesteps are whole numbers."""
    clocks = timesteps(specification(case.cell)[0])
    return [name for name in case.state if name not in clocks]


def _reads(cell: Cell, name: str) -> bool:
    """Whether the step reads the input or parameter at all, if only at some timesteps."""
    try:
        step = trace_step(cell, 2, np.dtype(np.float64), False)
    except Untraceable:
        return True
    return (step.x if name == "x" else step.params[name]) in set(ancestors(step.new.values()))


def _trained(case: CellCase) -> list[str]:
    return [name for name, spec in specification(case.cell)[1].items() if spec.role != "buffer"]


def _leaf(case: CellCase, name: str) -> Array:
    return case.xs if name == "x" else case.state[name] if name in case.state else case.params[name]


def _unused(trial: Trial, name: str) -> bool:
    """Whether neither the gradient for `name` nor any number shows that it exists, at two points and in a long run: a
    step may act at every eighth timestep only, and count these itself.
    """
    clocks = timesteps(specification(trial.cell())[0])
    makers: list[Callable[[], CellCase]] = [
        lambda: trial.case(),
        lambda: trial.case(seed=trial.seed + 1000),
        lambda: trial.started(T=trial.steps),
    ]
    if clocks:
        makers.append(lambda: trial.case(T=trial.steps))
    for make in makers:
        case, other = make(), make()
        _leaf(other, name)[...] += np.random.default_rng(trial.seed).normal(size=_leaf(other, name).shape)
        got, moved = cell_values(case, order=1), cell_values(other)
        if np.any(got.get(f"d {name}", 0.0)):
            return False
        if any(not same(got[key], value) for key, value in moved.items() if key != name or name not in clocks):
            return False
    return True


def _acting(trial: Trial, name: str) -> dict[str, int]:
    """{name: T} for the number of timesteps from the start that a gradient for `name` takes; {} if it has none."""
    sizes = [T for T in (8, 16, 32, 64, 128) if T < trial.steps]
    for T in [*sizes, trial.steps]:
        if np.any(cell_values(trial.started(T=T, B=2), order=1).get(f"d {name}", 0.0)):
            return {name: T}
    return {}


def _idle(trial: Trial, case: CellCase) -> list[str]:
    """What a cell carries or offers and no number depends on, in words: no fault in itself, and often a slip."""
    found = []
    unread = [name for name in case.state if _unused(trial, name)]
    if len(unread) == len(case.state):
        found.append("no state is ever read: what was before is forgotten at every step")
    elif not isinstance(case.cell, Wrapper):  # whose `out` is made for the next layer
        output = output_of(case.cell)
        found += [f"state {name} is never read, by no step" for name in unread if name != output]
    points = [cell_values(trial.case(seed=trial.seed + 1000 * i), order=1) for i in range(4)]
    if any(np.any(_silent(points, name)) for name in _trained(case)):
        points.append(cell_values(trial.started(T=trial.steps), order=1))
        points += [cell_values(trial.case(T=trial.steps), order=1) for _ in timesteps(specification(case.cell)[0])]
    for name in _trained(case):
        zero = _silent(points, name)
        if np.any(zero):
            index = bracketed([int(i) for i in np.argwhere(zero)[0]])
            found.append(f"{name}[{index}] is never used, one of {np.count_nonzero(zero)} elements")
    return found + [f"option {name} changes nothing" for name in vars(case.cell.options) if _no_option(trial, name)]


def _silent(points: Sequence[Mapping[str, Array]], name: str) -> Any:
    """Where the gradient for the parameter `name` is zero at every point."""
    return np.all([point[f"d {name}"] == 0.0 for point in points], axis=0)


def _declared(cell: Cell) -> tuple[Any, ...]:
    states, params = specification(cell)
    return states, {name: (spec.shape, spec.init_name, spec.role) for name, spec in params.items()}, noise_of(cell)


def _no_option(trial: Trial, name: str) -> bool:
    """Whether another value of the option, of those that the cell takes, changes neither a declaration nor a number."""
    kind = field_types(trial.cls.Options)[name]
    value = getattr(trial.cell().options, name)
    others: list[Any] = [choice for choice in get_args(kind) if choice != value] if get_origin(kind) is Literal else []
    if isinstance(value, bool):
        others = [not value]
    elif isinstance(value, int | float):
        others = [value + 1, value - 0.5, 0.5 * value, 0.5] if kind is float else [value + 1, value - 1]
    tried = 0
    for other in others:
        changed = dataclasses.replace(trial, options={**trial.options, name: other})
        try:
            cells = (trial.cell(), changed.cell())
            one, two = (init_cell(cell, np.random.default_rng(0)) for cell in cells)
        except InputError:
            return False  # read it must have been
        if _declared(cells[0]) != _declared(cells[1]):
            return False
        if any(not same(one[key].data, two[key].data) for key in one):
            return False
        values = cell_values(changed.case())
        if any(not same(array, values[key]) for key, array in cell_values(trial.case()).items()):
            return False
        tried += 1
    return tried > 0


def _wrong(trial: Trial, name: str | None, seed: int, order: int, T: int = 3) -> GradientError | None:
    """What gradcheck has to say on the gradient for `name`, or on all at once (None), which sees mixed derivatives.

    Over more than 3 timesteps it starts from the declared state.
    """
    case = trial.case(T=T, B=2, seed=seed) if T == 3 else trial.started(T=T, B=2, seed=seed)
    names = ["x", *_carried(case), *_trained(case)] if name is None else [name]

    def f(*values: Any) -> tuple[Any, ...]:
        given = dict(zip(names, values, strict=True))
        params = {**tensors(case.params), **{key: given[key] for key in case.params if key in given}}
        state = {**tensors(case.state), **{key: given[key] for key in case.state if key in given}}
        done = unroll(case.cell if trial.pure else trial.cell(), params, given.get("x", Tensor(case.xs)), state)
        return (done.outputs, *done.state.values())

    try:
        gradcheck(f, *[_leaf(case, key) for key in names], rng=np.random.default_rng(seed), order=order)
    except GradientError as error:
        return error
    return None


def _cause(trial: Trial) -> str:
    """What the compiler found the step to do with values, which is where a gradient is usually lost; '' if nothing."""
    try:
        trace_step(trial.cell(), 2, np.float64, False)
    except Untraceable as found:
        return f": {found}"
    return ""


def _located(trial: Trial, name: str | None, error: GradientError) -> Failed:
    """The fault that gradcheck found, with the element where the gradient is most wrong, by differences."""
    facts = {"T": 3, "B": 2}
    step = 1e-6
    case = trial.case(**facts)
    names = [name] if name is not None else ["x", *_carried(case), *_trained(case)]
    for order, value, sign in ((1, "loss", "d"), (2, "slope", "dd")):
        try:
            values = cell_values(case, order=order)
        except Exception as broken:
            lines = [*trial.lines(**facts), f"cell_values(case, order={order})"]
            return Failed(f"the derivative of order {order}: {reason(broken)}", lines)
        scale = max((float(np.max(np.abs(values.get(f"{sign} {key}", 0.0)))) for key in names), default=0.0)
        worst: tuple[float, str, tuple[int, ...], float, float] = (0.0, "", (), 0.0, 0.0)
        for key in names:
            got = values.get(f"{sign} {key}", np.zeros_like(_leaf(case, key)))
            for place in np.ndindex(got.shape):
                sides = []
                for move in (step, -step):
                    moved = trial.case(**facts)
                    _leaf(moved, key)[place] += move
                    sides.append(float(cell_values(moved, order=order - 1).get(value, 0.0)))
                expected = (sides[0] - sides[1]) / (2 * step)
                wrong = abs(float(got[place]) - expected)
                if wrong > worst[0] or np.isnan(wrong):
                    worst = (wrong, key, place, float(got[place]), expected)
        wrong, key, place, number, expected = worst
        if wrong > 1e-5 * max(scale, abs(expected), 1e-3) or np.isnan(wrong):
            cut = number == 0.0 and order == 1
            index = bracketed(place)
            where = "xs" if key == "x" else f"state[{key!r}]" if key in case.state else f"params[{key!r}]"
            kind = "the gradient" if order == 1 else "the second derivative"
            owner = "" if key == "x" else "state " if key in case.state else "parameter "
            return Failed(
                f"{kind} for {owner}{key}[{index}]: expected {expected!r} by differences, got {number!r}"
                + (f"; .data, .detach() and no_grad() cut a gradient off{_cause(trial)}" if cut else ""),
                [
                    *trial.lines("case", "ahead", "behind", **facts),
                    f"ahead.{where}[{index}] += {step}; behind.{where}[{index}] -= {step}",
                    f"a, b = (cell_values(c, order={order - 1})[{value!r}] for c in (ahead, behind))",
                    f"print(cell_values(case, order={order})['{sign} {key}'][{index}], (a - b) / {2 * step})"
                    f"  # {number!r} {expected!r}",
                ],
            )
    what = name or "all arguments at once"
    return Failed(f"for {what}: {error}", [*trial.lines(**facts), f"# gradcheck: {error}"])
