"""Steps that no trace can stand for: they run through `unroll`, with the right numbers, and the reason names the line.

A line marked with "# here" is the one that the reason has to name.
"""

from __future__ import annotations

import inspect
import itertools
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare import LOSSES, Case, compare, make_case, outcome, worst

from tinygrad_rnn import (
    Cell,
    InputError,
    Param,
    PluginError,
    State,
    Tensor,
    TinygradRNNError,
    grad,
    no_grad,
    ops,
    primitive,
    recompute,
    scan,
    unroll,
)

FILE = Path(__file__).name


class Bare(Cell):
    """A cell of one matrix, whose step a test replaces."""

    name = "bare"
    summary = citation = equation = "written for a test"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,), 0.1)}

    def params(self) -> dict[str, Param]:
        return {"U": Param((self.H, self.H), "uniform", "recurrent")}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(s.h @ p.U + x)}


# ------------------------------------------------------------------- a value is read as a Python number


class BranchesOnAFloat(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        a = s.h @ p.U + x
        if float(ops.sum(a)) > 0:  # here
            return {"h": ops.tanh(a)}
        return {"h": ops.sin(a)}


class BranchesOnAComparison(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        a = s.h @ p.U + x
        return {"h": ops.tanh(a) if ops.sum(a) > 0.0 else ops.sin(a)}  # here


class BranchesOnTheInput(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        if x[0, 0] > 0:  # here
            return {"h": ops.tanh(s.h @ p.U + x)}
        return {"h": s.h}


class ReadsAnItem(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        largest = ops.max(s.h).item()  # here
        return {"h": ops.tanh(s.h @ p.U + x) * (1.0 / (1.0 + abs(largest)))}


class ReadsAsArray(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        frozen = np.asarray(s.h.detach())  # here
        return {"h": ops.tanh(s.h @ p.U + x) * 0.5 + frozen * 0.1}


class ReadsData(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        frozen = np.clip(s.h.data, -0.1, 0.1)  # here
        return {"h": ops.tanh(s.h @ p.U + x) + frozen}


class ReadsNumPy(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        order = np.argsort(s.h.detach().numpy().sum(axis=0))  # here
        return {"h": ops.tanh(s.h[:, order] @ p.U + x)}


class LoopsByValue(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = ops.tanh(s.h @ p.U + x)
        while ops.max(ops.abs(h)) > 0.5:  # here
            h = 0.7 * h
        return {"h": h}


class CountsWithInt(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = s.h
        for _ in range(1 + int(ops.sum(ops.greater(x, 0.0)).item()) % 3):  # here
            h = ops.tanh(h @ p.U + x)
        return {"h": h}


class PicksByIndex(Bare):
    """Which rows of a table are read depends on values."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        ids = ops.astype(x[:, 0] > 0.0, "int64")
        return {"h": ops.tanh(s.h @ p.U + p.U[ids])}  # here


class SelectsByMask(Bare):
    """How many rows are read depends on values."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        a = s.h @ p.U + x
        some = a[a > 0.1]  # here
        return {"h": ops.tanh(a) * (0.1 + 1.0 / (1 + some.shape[0]))}


class TriesToRead(Bare):
    """A refusal that the step swallows is a refusal still."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        try:
            size = float(ops.max(ops.abs(s.h)))  # here
        except Exception:
            size = 0.0
        return {"h": ops.tanh(s.h @ p.U + x) * (1.0 / (1.0 + size))}


READING: list[type[Cell]] = [
    BranchesOnAFloat, BranchesOnAComparison, BranchesOnTheInput, ReadsAnItem, ReadsAsArray, ReadsData, ReadsNumPy,
    LoopsByValue, CountsWithInt, PicksByIndex, SelectsByMask, TriesToRead,
]  # fmt: skip


# --------------------------------------------------------------------------- Python state is in the way


class Counts(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        self.count = getattr(self, "count", 0) + 1  # here
        return {"h": ops.tanh(s.h @ p.U + x) + 0.1 * self.count}


class EveryOther(Bare):
    """Two kinds of steps in turn: a Python flag decides."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        self.odd = not getattr(self, "odd", False)  # here
        return {"h": ops.tanh(s.h @ p.U + x) if self.odd else s.h}


class Remembers(Bare):
    """The value of the step before is kept in the cell instead of in the state."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        before = getattr(self, "before", None)
        self.before = ops.tanh(s.h @ p.U + x)  # here
        return {"h": self.before if before is None else 0.5 * (self.before + before)}


class RemembersInAList(Bare):
    """The same by a list, which is not replaced but grows."""

    def check(self) -> None:
        self.seen: list[Any] = []

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        self.seen.append(len(self.seen))  # here
        return {"h": ops.tanh(s.h @ p.U + x) + 0.1 * len(self.seen)}


class ChangesParameters(Bare):
    """p is one object for the whole sequence: from step to step U gets smaller."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        p.U = 0.9 * p.U  # here
        return {"h": ops.tanh(s.h @ p.U + x)}


class CountsInADict(Bare):
    def check(self) -> None:
        self.table = {"count": 0}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        self.table["count"] += 1  # here
        return {"h": ops.tanh(s.h @ p.U + x) + 0.1 * self.table["count"]}


class CountsOnItsParameters(Bare):
    """p serves as the notebook of a step."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        p.count = getattr(p, "count", 0) + 1  # here
        return {"h": ops.tanh(s.h @ p.U + x) + 0.1 * p.count}


STATEFUL: list[type[Cell]] = [
    Counts, EveryOther, Remembers, RemembersInAList, CountsInADict, ChangesParameters, CountsOnItsParameters,
]  # fmt: skip


# ------------------------------------------------------------------------------------- from outside

CLOSED = Tensor(np.linspace(-0.5, 0.5, 3), requires_grad=True)


class ClosesOverATensor(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(s.h @ p.U + x + CLOSED)}  # here


class StopsTheGradient(Bare):
    """The state is read without its gradient."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(s.h.detach() @ p.U + x) + 0.5 * s.h}  # here


class ComputesOffTheTape(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        with no_grad():
            scale = ops.sigmoid(s.h @ p.U)  # here
        return {"h": ops.tanh(s.h @ p.U + x) * scale}


class Differentiates(Bare):
    """A step down the gradient of an energy, taken inside the step."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        energy = ops.sum(ops.softplus(s.h @ p.U + x))
        slope = grad(energy, s.h, create_graph=True) if s.h.requires_grad else 0.0 * s.h  # here
        return {"h": ops.tanh(s.h - 0.3 * slope + x)}


class Recomputes(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": recompute(lambda h, U: ops.tanh(h @ U), s.h, p.U) + x}  # here


OUTSIDE: list[type[Cell]] = [ClosesOverATensor, StopsTheGradient, ComputesOffTheTape, Differentiates, Recomputes]


def marked(cls: type[Cell]) -> int:
    """The line of the step that is marked."""
    lines, first = inspect.getsourcelines(cls.step)
    return next(first + k for k, line in enumerate(lines) if "# here" in line)


def named(reason: str) -> list[int]:
    """The lines of this file that a reason names."""
    return [int(line) for line in re.findall(rf"\b{re.escape(FILE)}:(\d+)\b", reason)]


def inside(cls: type[Cell], reason: str) -> bool:
    """Whether a line of the step is named: what depends on Python state shows in some line, not only the guilty one."""
    lines, first = inspect.getsourcelines(cls.step)
    return any(first <= line < first + len(lines) for line in named(reason))


def case_of(cls: type[Cell], T: int = 5, **facts: Any) -> Case:
    return make_case(cls(3, 3), T, 2, **facts)


@pytest.mark.parametrize("cls", [*READING, *STATEFUL, *OUTSIDE])
@pytest.mark.parametrize("loss", ["everything", "last output"])
def test_the_numbers_are_those_of_unroll(executor: str, cls: type[Cell], loss: str) -> None:
    """Every run gets a new cell: what a step leaves behind in it must come from its own T steps alone."""
    for facts in ({}, {"masked": True}, {"carried": False, "xs_grad": False}):
        slow = outcome(unroll, case_of(cls, **facts), loss)
        fast = outcome(partial(scan, executor=executor), case_of(cls, **facts), loss, like=slow)
        for part in ("values", "first"):
            error, name = worst(getattr(fast, part), getattr(slow, part))
            assert error < 1e-11, f"{name}: {error:.1e} off, by {fast.done.executor} ({fast.done.reason})"


@pytest.mark.parametrize("cls", [*READING, *STATEFUL])
def test_the_reason_names_the_line(executor: str, cls: type[Cell]) -> None:
    case = case_of(cls)
    done = scan(case.cell, case.params, Tensor(case.xs), case.state, executor=executor)
    assert done.executor == "unroll"
    assert "\n" not in done.reason
    assert len(done.reason) < 400
    if cls in READING:
        assert named(done.reason) == [marked(cls)], f"line {marked(cls)}: {done.reason}"
    else:
        assert inside(cls, done.reason), f"line {marked(cls)}: {done.reason}"


@pytest.mark.parametrize("cls", OUTSIDE)
def test_what_comes_from_outside_is_compiled_or_named(executor: str, cls: type[Cell]) -> None:
    case = case_of(cls)
    done = scan(case.cell, case.params, Tensor(case.xs), case.state, executor=executor)
    assert done.executor in (executor, "numpy", "unroll")
    if done.executor == "unroll":
        assert named(done.reason) == [marked(cls)], done.reason


@pytest.mark.parametrize("cls", READING + STATEFUL)
def test_a_default_run_falls_back_too(cls: type[Cell]) -> None:
    """Nobody asked for an executor: no error, no warning, and the reason is there."""
    case = case_of(cls)
    done = scan(case.cell, case.params, Tensor(case.xs))
    assert done.executor == "unroll"
    assert FILE in done.reason


@pytest.mark.parametrize("cls", STATEFUL)
def test_what_a_step_leaves_behind_is_that_of_its_steps(executor: str, cls: type[Cell]) -> None:
    """A trace runs the step too, and must not be seen in the cell afterwards."""
    cells = []
    for run in (unroll, partial(scan, executor=executor)):
        case = case_of(cls)
        run(case.cell, case.params, Tensor(case.xs))
        run(case.cell, case.params, Tensor(case.xs))
        cells.append(case.cell)
    slow, fast = ({k: v for k, v in vars(cell).items() if k in ("count", "odd", "seen")} for cell in cells)
    assert fast == slow


def test_a_gradient_reaches_a_tensor_from_outside(executor: str) -> None:
    found = []
    for run in (unroll, partial(scan, executor=executor)):
        case = case_of(ClosesOverATensor)
        done = run(case.cell, case.params, Tensor(case.xs))
        found.append(grad(ops.sum(done.outputs**2), CLOSED).data)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)


# ----------------------------------------------------------------------------------- random numbers


class DrawsFromItsGenerator(Bare):
    def check(self) -> None:
        self.rng = np.random.default_rng(0)

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        noise = self.rng.normal(size=s.h.shape)  # here
        return {"h": 0.0 * s.h + noise}


class DrawsGlobally(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": 0.0 * s.h + np.random.normal(size=s.h.shape)}  # noqa: NPY002  # here


class DrawsANumber(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": 0.0 * s.h + float(np.random.normal())}  # noqa: NPY002  # here


class DropsOut(Bare):
    """Which graph it is depends on a coin."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        if np.random.uniform() < 0.5:  # noqa: NPY002  # here
            return {"h": s.h + 1.0}
        return {"h": s.h - 1.0}


@pytest.mark.parametrize("cls", [DrawsFromItsGenerator, DrawsGlobally, DrawsANumber])
def test_random_numbers_are_drawn_anew_in_every_step(executor: str, cls: type[Cell]) -> None:
    case = case_of(cls, T=8)
    done = scan(case.cell, case.params, Tensor(case.xs), executor=executor)
    assert done.executor == "unroll"
    assert inside(cls, done.reason), done.reason
    first = done.outputs.data[:, 0, 0]
    assert len(set(first.tolist())) == 8
    later = scan(case.cell, case.params, Tensor(case.xs), executor=executor).outputs.data[:, 0, 0]
    assert not set(first.tolist()) & set(later.tolist())


def test_a_coin_is_tossed_in_every_step(executor: str) -> None:
    """Two traces may toss the same: over some runs all steps alike are not to be had by chance."""
    kinds = set()
    for _ in range(6):
        case = case_of(DropsOut, T=12)
        done = scan(case.cell, case.params, Tensor(case.xs), executor=executor)
        kinds.add(tuple(np.sign(np.diff(done.outputs.data[:, 0, 0], prepend=0.1)).tolist()))
        assert done.executor == "unroll", "a step with a coin was compiled"
    assert len(kinds) > 1
    assert any(len(set(kind)) == 2 for kind in kinds)


@pytest.mark.parametrize("cls", [DrawsFromItsGenerator, DrawsGlobally, DrawsANumber])
def test_numbers_of_a_seeded_generator_are_those_of_unroll(executor: str, cls: type[Cell]) -> None:
    """A trace draws as well; whoever seeds a generator gets the same run as by unroll."""
    found = []
    before = np.random.get_state()  # noqa: NPY002
    try:
        for run in (unroll, partial(scan, executor=executor)):
            np.random.seed(3)  # noqa: NPY002
            case = case_of(cls)
            found.append(run(case.cell, case.params, Tensor(case.xs)).outputs.data)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    np.testing.assert_array_equal(found[1], found[0])


# ------------------------------------------------------- state that nobody can put back: where it goes on


class CountsInTheModule(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        COUNTS.append(1)  # here
        return {"h": 0.0 * s.h + float(len(COUNTS))}


class CountsOnTheClass(Bare):
    total = 0

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        type(self).total += 1  # here
        return {"h": 0.0 * s.h + float(self.total)}


class TakesTheNext(Bare):
    """From an iterator that the cell closes over."""

    def check(self) -> None:
        numbers = itertools.count()
        self.next_number = lambda: next(numbers)

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": 0.0 * s.h + float(self.next_number())}  # here


COUNTS: list[int] = []


@pytest.mark.parametrize("cls", [CountsInTheModule, CountsOnTheClass, TakesTheNext])
def test_a_counter_out_of_reach_goes_on_in_every_step(executor: str, cls: type[Cell]) -> None:
    case = case_of(cls, T=6)
    for _ in range(2):
        done = scan(case.cell, case.params, Tensor(case.xs), executor=executor)
        assert done.executor == "unroll"
        assert inside(cls, done.reason), done.reason
        np.testing.assert_array_equal(np.diff(done.outputs.data, axis=0), 1.0)


# --------------------------------------------------------------------------- inputs changed in place


class WritesItsInput(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        x.data[...] *= 0.5  # here
        return {"h": ops.tanh(s.h @ p.U + x)}


class WritesItsState(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        s.h.data[:, 0] = 0.0  # here
        return {"h": ops.tanh(s.h @ p.U + x)}


class AssignsToItsParameter(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        p.U.assign(p.U.data * 0.5)  # here
        return {"h": ops.tanh(s.h @ p.U + x)}


class SetsAnItem(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        x[:, 0] = 0.25  # here
        return {"h": ops.tanh(s.h @ p.U + x)}


@pytest.mark.parametrize("cls", [WritesItsInput, WritesItsState, AssignsToItsParameter, SetsAnItem])
def test_a_step_that_writes_does_so_once_a_step(executor: str, cls: type[Cell]) -> None:
    """Values, and what is left of inputs and parameters, are those of unroll: no trace wrote into them first."""
    left = []
    for run in (unroll, partial(scan, executor=executor)):
        case = case_of(cls)
        xs, params = Tensor(case.xs.copy()), {"U": Tensor(case.params["U"].copy())}
        with no_grad():
            done = run(case.cell, params, xs, {"h": np.full((2, 3), 0.5)})
        left.append((done.outputs.data.copy(), xs.data, params["U"].data))
    for slow, fast in zip(*left, strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-12)
    assert done.executor == "unroll"
    assert named(done.reason) == [marked(cls)], done.reason


# ----------------------------------------------------------------------- constants that do not stay so


class Gained(Bare):
    """Reads a Python number of the cell: pure within a run, and another one after it was set."""

    def check(self) -> None:
        self.gain: Any = 0.5

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(s.h @ p.U + x) * self.gain}


GLOBAL = {"gain": 0.5}
TABLE = np.array([0.5, 0.25, -0.5])


class GainedGlobally(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(s.h @ p.U + x) * GLOBAL["gain"]}


class ReadsATable(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(s.h @ p.U + x) * TABLE}


class ReadsAHiddenTable(Bare):
    """An array behind a function: no look at the cell's own attributes finds it."""

    def check(self) -> None:
        hidden = np.array([0.5, 0.25, -0.5])
        self.scale = lambda value: value * hidden
        self.hidden = hidden

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": self.scale(ops.tanh(s.h @ p.U + x))}


def test_a_constant_of_the_cell_may_change_between_runs(executor: str) -> None:
    cells = [cls(3, 3) for cls in (Gained, GainedGlobally, ReadsATable, ReadsAHiddenTable)]
    try:
        for gain in (0.5, 0.25, 0.125, 0.5):
            cells[0].gain = GLOBAL["gain"] = gain  # type: ignore[attr-defined]
            TABLE[1] = cells[3].hidden[2] = gain  # type: ignore[attr-defined]
            for cell in cells:
                compare(executor, make_case(cell, 4, 2), "everything")
    finally:
        GLOBAL["gain"], TABLE[1] = 0.5, 0.25


def test_an_array_that_becomes_an_array_of_another_size(executor: str) -> None:
    cell: Any = Gained(3, 3)
    for gain in (
        0.5,
        np.array([0.5, 0.2, 0.1]),
        np.array([[0.5], [0.25]]),
        2,
        np.float64(0.3),
        Tensor([0.1, 0.2, 0.3]),
    ):
        cell.gain = gain
        compare(executor, make_case(cell, 4, 2), "everything")


def test_numpy_numbers_do_not_widen_float32(executor: str) -> None:
    """On the tape a NumPy scalar is as weak as a Python one."""
    cell: Any = Gained(3, 3)
    cell.gain = np.float64(0.3)
    case = make_case(cell, 4, 2)
    params = {"U": case.params["U"].astype(np.float32)}
    for run in (unroll, partial(scan, executor=executor)):
        done = run(cell, params, Tensor(case.xs.astype(np.float32)))
        assert done.outputs.dtype == np.float32


# ------------------------------------------------------------------------------ an author's own ops


@primitive
def cubed(x: Any) -> Any:
    """x ** 3."""
    return x * x * x


cubed.vjp(lambda g, _y, x: g * (3.0 * x * x))


@primitive(broadcasts=True)
def mixed(a: Any, b: Any, *, share: float) -> Any:
    """share a + (1 - share) b."""
    return share * a + (1.0 - share) * b


mixed.vjp(lambda g, _y, _a, _b, *, share: g * share, lambda g, _y, _a, _b, *, share: g * (1.0 - share))


@primitive
def by_rank(x: Any) -> Any:
    """The place of every element in its row, from 0 to 1: values decide, and no gradient flows."""
    return np.argsort(np.argsort(x, axis=-1), axis=-1).astype(x.dtype) / x.shape[-1]


class OwnOps(Bare):
    """Ops that the library has never seen."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        a = s.h @ p.U + x
        return {"h": ops.tanh(mixed(cubed(a), s.h, share=0.3) + by_rank(a))}


@pytest.mark.parametrize("loss", list(LOSSES))
def test_ops_of_the_author(executor: str, loss: str) -> None:
    done = compare(executor, case_of(OwnOps), loss)
    assert done.executor in (executor, "numpy", "unroll")
    compare(executor, case_of(OwnOps, T=2), loss, second=True, bound=1e-10)


# ------------------------------------------------------------------------------- NumPy's functions


class SpeaksNumPy(Bare):
    """For each of these there is an op."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        both = np.concatenate([x, np.clip(s.h, -0.8, 0.8)], axis=-1)
        a = np.dot(both, np.vstack([p.U, np.transpose(p.U)])) + np.mean(s.h, axis=1, keepdims=True)
        low, high = np.split(np.hstack([a, np.exp(-np.abs(a))]), 2, axis=-1)
        return {"h": np.tanh(np.where(low > 0.0, low, np.float64(0.5) * high) + np.linalg.norm(x) / np.size(x))}


@pytest.mark.parametrize("loss", list(LOSSES))
def test_a_step_that_calls_numpy_trains_through_time(executor: str, loss: str) -> None:
    assert compare(executor, case_of(SpeaksNumPy), loss).executor in (executor, "numpy")
    compare(executor, case_of(SpeaksNumPy, T=2), loss, second=True, bound=1e-10)


def test_the_reason_names_the_function_of_numpy(executor: str) -> None:
    case = case_of(CallsNumPy)
    with no_grad():
        done = scan(case.cell, case.params, Tensor(case.xs), executor=executor)
    assert re.search(r"the step calls np\.unwrap: there is no op for it \(test_impure\.py:\d+\)", done.reason)


# ------------------------------------------------------------------------------- an author's slips


class UnknownParameter(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(s.h @ p.Q + x)}


class UnknownState(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(s.hh @ p.U + x)}


class ForgetsAState(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {}


class NamesAnotherState(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"g": s.h}


class ReturnsNoDict(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return s.h  # type: ignore[no-any-return]


class ReturnsANumber(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": 0.0}


class ReturnsAnotherShape(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.sum(s.h, -1, keepdims=True)}


class ReturnsAnotherDtype(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.astype(s.h @ p.U, "float32")}


class GrowsItsState(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.concatenate([s.h, x[:, :1]], axis=1)}


class MultipliesWrongShapes(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": p.U @ s.h + x}


class CallsNumPy(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(np.unwrap(s.h @ p.U + x) * s.h)}


class CallsNoOp(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tangent(s.h)}  # type: ignore[attr-defined]


class CallsNoMethod(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": s.h.softplus()}


class MixesDtypes(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": s.h @ p.U + ops.astype(x, "float32")}


class Divides(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": s.h * (1 / 0)}


class WrongAxis(Bare):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.softmax(s.h, 2)}


SLIPS: list[type[Cell]] = [
    UnknownParameter, UnknownState, ForgetsAState, NamesAnotherState, ReturnsNoDict, ReturnsANumber,
    ReturnsAnotherShape, ReturnsAnotherDtype, GrowsItsState, MultipliesWrongShapes, CallsNumPy, CallsNoOp,
    CallsNoMethod, MixesDtypes, Divides, WrongAxis,
]  # fmt: skip


@pytest.mark.parametrize("cls", SLIPS)
def test_a_slip_is_told_as_unroll_tells_it(executor: str, cls: type[Cell]) -> None:
    case = case_of(cls)
    told = []
    for run in (unroll, partial(scan, executor=executor), scan):
        with pytest.raises((PluginError, InputError)) as caught:
            run(case.cell, case.params, Tensor(case.xs, requires_grad=True))
        told.append((type(caught.value), str(caught.value)))
    assert told[1] == told[0]
    assert told[2] == told[0]


class LaterSlip(Bare):
    """Fails in the third step only."""

    def check(self) -> None:
        self.steps = 0

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        self.steps += 1
        if self.steps == 3:
            raise RuntimeError("the third step")
        return {"h": ops.tanh(s.h @ p.U + x)}


def test_an_error_of_a_later_step(executor: str) -> None:
    for run in (unroll, partial(scan, executor=executor)):
        case = case_of(LaterSlip)
        with pytest.raises(TinygradRNNError, match=rf"{FILE}:\d+.*the third step") as caught:
            run(case.cell, case.params, Tensor(case.xs))
        assert isinstance(caught.value, PluginError)
        assert case.cell.steps == 3  # type: ignore[attr-defined]
