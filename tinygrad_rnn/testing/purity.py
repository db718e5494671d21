"""The check that a step depends on its arguments alone, and changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from tinygrad_rnn import engine
from tinygrad_rnn.backend import Array
from tinygrad_rnn.compile.trace import MISSING, global_generators, public, same, surroundings
from tinygrad_rnn.sequence import unroll
from tinygrad_rnn.tensor import Tensor
from tinygrad_rnn.testing.cases import CellCase, cell_values, tensors
from tinygrad_rnn.testing.trial import EXACT, Failed, Trial, compare, worst


def purity(trial: Trial) -> str:
    """A step depends on its arguments alone, and changes nothing."""
    case, again = trial.case(), trial.case()
    kept, chance = _copied(public(case.cell)), global_generators()
    around = {key: _copied(value) for key, value in surroundings(case.cell).items()}
    _written(trial, case)
    expected = cell_values(again, order=1)
    repeated = not all(same(value, expected[name]) for name, value in cell_values(trial.case(), order=1).items())
    lines = [*trial.lines("case", "again"), "got, expected = cell_values(case), cell_values(again)"]
    if not same(chance, global_generators()):
        raise Failed(
            "the step draws from the global random numbers (np.random, random); declare noise(), which the library "
            "draws in training",
            [*lines, "print(got['outputs'].sum(), expected['outputs'].sum())"],
            fatal=repeated,
        )
    once = [*trial.lines(), "cell_values(case)"]
    for key, value in public(case.cell).items():
        if kept is not None and not same(value, kept.get(key, MISSING)):
            raise Failed(
                f"the step changes self.{key}; what is carried belongs into state()",
                [*once, f"print(case.cell.{key})"],
                fatal=repeated,
            )
    for key, value in surroundings(case.cell).items():
        was = around.get(key, MISSING)
        if was is not None and not same(value, was):
            raise Failed(f"the step changes {key}; what is carried belongs into state()", once, fatal=repeated)
    if repeated:
        got = cell_values(trial.case(), order=1)
        compare(got, expected, 0.0, "the same numbers twice", lines, fatal=True)
        raise Failed("the same numbers twice: the results differ", lines, fatal=True)
    used = cell_values(again, order=1)
    twice = [*trial.lines(), "expected, got = cell_values(case, order=1), cell_values(case, order=1)"]
    compare(used, expected, 0.0, "the same cell again on the same numbers", twice)
    compare(
        _interleaved(trial.case(), trial.case(seed=trial.seed + 1)),
        expected,
        EXACT,
        "one step at a time, beside a second cell of the class",
        [*trial.lines("case", "other"), "expected = cell_values(case)", *_INTERLEAVED],
        [*case.state],
    )
    trial.pure = True
    return "the same bits twice; nothing is changed, inside or outside"


_INTERLEAVED = (
    "cut = lambda c, state, t: tr.unroll(c.cell, c.params, c.xs[t : t + 1], state)",
    "state, rows = case.state, []",
    "for t in range(len(case.xs)):",
    "    tr.unroll(other.cell, other.params, other.xs, other.state)",
    "    state = cut(case, state, t).state",
    "    rows.append(state)",
    "got = {name: np.stack([row[name].data for row in rows]) for name in case.state}",
)


def _interleaved(case: CellCase, other: CellCase) -> dict[str, Array]:
    state: Any = case.state
    rows = []
    with engine.no_grad():
        for t in range(len(case.xs)):
            unroll(other.cell, tensors(other.params), Tensor(other.xs.copy()), tensors(other.state))
            state = unroll(case.cell, tensors(case.params), Tensor(case.xs[t : t + 1]), state).state
            rows.append(state)
    return {name: np.stack([row[name].data for row in rows]) for name in case.state}


def _written(trial: Trial, case: CellCase) -> None:
    """Run `case` once without copies: what is written into its arrays is seen."""
    before = copy.deepcopy((case.params, case.xs, case.state))
    for needed in (False, True):
        params = {name: Tensor(array, requires_grad=needed) for name, array in case.params.items()}
        state = {name: Tensor(array, requires_grad=needed) for name, array in case.state.items()}
        unroll(case.cell, params, Tensor(case.xs, requires_grad=needed), state)
    once = "tr.unroll(case.cell, {k: tr.Tensor(v) for k, v in case.params.items()}, tr.Tensor(case.xs), case.state)"
    found = {**{f"parameter {name}": array for name, array in case.params.items()}, "x": case.xs}
    found |= {f"state {name}": array for name, array in case.state.items()}
    was = [*before[0].values(), before[1], *before[2].values()]
    for (name, value), old in zip(found.items(), was, strict=True):
        if not same(value, old):
            _, place = worst(value, old, 1e-300)
            raise Failed(
                f"the step changes its {name} in place: at {list(place)} {float(old[place])!r} became "
                f"{float(value[place])!r}; compute a new value",
                [*trial.lines("before", "case"), once, "print(before, case)"],
                fatal=True,
            )


def _copied(value: Any) -> Any:
    """A deep copy, None where there can be none."""
    try:
        return copy.deepcopy(value)
    except Exception:  # an attribute may be anything
        return None
