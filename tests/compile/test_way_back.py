"""`scan` goes back only where a gradient comes: 0 times an infinite derivative is no part of a gradient."""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
from compare import LOSSES, make_case, outcome
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from random_cells import RandomCell, random_cells

from tinygrad_rnn import Cell, GradientError, Param, State, Tensor, Unrolled, grad, ops, scan, unroll

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
FEW = max(1, (settings.default.max_examples if settings.default is not None else 25) // 2)


class Unread(Cell):
    """Abstract. A state h, and beside it c with an infinite derivative at the values that it takes."""

    summary = citation = equation = "a state with an infinite derivative"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,)), "c": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {
            "W": Param((self.I, self.H), "normal:0.5", "input"),
            "U": Param((self.H, self.H), "normal:0.5", "recurrent"),
            "v": Param((self.H,), "normal:0.5", "bias"),
        }


class NobodyReads(Unread):
    """Final. c is the square root of zero, of all that there is."""

    name = "nobody-reads"

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = ops.tanh(x @ p.W + s.h @ p.U)
        return {"h": h, "c": ops.sqrt(0.0 * (s.c + h + p.v * s.h))}


class ReadInTheNextStep(Unread):
    """Final. The c of the last step is read by nobody, that of every other by h; it is bad in the last step alone."""

    name = "read-in-the-next-step"

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = ops.tanh(x @ p.W + s.h @ p.U + s.c)
        return {"h": h, "c": ops.sqrt(ops.relu(50.0 - x[:, :1]) * ((s.h * p.v) ** 2 + 0.1))}


class BadWeight(Unread):
    """Final. What c is made of is a parameter alone, at a point where its derivative is infinite."""

    name = "bad-weight"

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = ops.tanh(x @ p.W + s.h @ p.U)
        return {"h": h, "c": s.c + h * ops.sqrt(0.0 * p.v)}


class Overflowing(Unread):
    """Final. c goes to infinity, and meets a matrix."""

    name = "overflowing"

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = ops.tanh(x @ p.W + s.h @ p.U)
        return {"h": h, "c": (s.c * 1e200 + 1e200 + 0.0 * h) * (1.0 + p.v * p.v)}


KINDS = [NobodyReads, ReadInTheNextStep, BadWeight, Overflowing]


def held(executor: str, case: Any, loss: str, *, second: bool = False, recompute: int | None = None) -> Unrolled:
    """Wherever `unroll` gives a finite gradient, `scan` gives the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slow = outcome(unroll, case, loss, second=second)
        fast = outcome(partial(scan, executor=executor, recompute=recompute), case, loss, second=second, like=slow)
    for part in ("values", "first", "second"):
        got = getattr(fast, part)
        for name, expected in getattr(slow, part).items():
            finite = np.isfinite(expected)
            largest = float(np.max(np.abs(expected[finite]), initial=1.0))
            if largest < 1e100:
                g = got.get(name, np.zeros_like(expected))[finite]
                np.testing.assert_allclose(g, expected[finite], rtol=0, atol=1e-9 * largest, err_msg=name)
    return fast.done


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("recompute", [None, 2])
@pytest.mark.parametrize("cls", KINDS)
def test_what_nothing_reads_spoils_no_gradient(
    executor: str, cls: type[Cell], recompute: int | None, masked: bool
) -> None:
    case = make_case(cls(3, 4), T=5, B=2, carried=False, masked=masked)
    if cls is ReadInTheNextStep:
        case.xs[-1] = 100.0
    for second in (False, True):
        done = held(executor, case, "outputs", recompute=recompute, second=second)
        assert done.executor == executor, done.reason
    params = {name: Tensor(value, requires_grad=True) for name, value in case.params.items()}
    done = scan(case.cell, params, case.xs, mask=case.mask, executor=executor, recompute=recompute)
    for g in grad(ops.sum(done.outputs), [params["W"], params["U"], *done.states["h"]]):
        assert np.isfinite(g.data).all() and g.data.any()


def test_what_comes_after_the_last_gradient_spoils_none(executor: str) -> None:
    """The loss reads h and c of step 1; only later does the root have an infinite derivative."""

    class Late(Unread):
        name = "late"

        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            h = ops.tanh(x @ p.W + ops.sqrt(ops.abs(s.c)) @ p.U)
            return {"h": h, "c": s.c * x[:, :1] + 0.0 * p.v}

    case = make_case(Late(3, 4), T=4, B=2)
    case.xs[2:] = 0.0
    params = {name: Tensor(value, requires_grad=True) for name, value in case.params.items()}
    found = []
    with np.errstate(all="ignore"):
        for run in (unroll, partial(scan, executor=executor)):
            done = run(case.cell, params, case.xs, case.state)
            loss = ops.sum(done.outputs[1]) + ops.sum(done.states["c"][1] * done.outputs[0])
            found.append(grad(loss, [*params.values(), done.states["c"][0]]))
    for slow, fast in zip(*found, strict=True):
        assert np.isfinite(slow.data).all()
        np.testing.assert_allclose(fast.data, slow.data, rtol=1e-11, atol=1e-14)


SINGULAR = [
    "ops.sqrt(s.{c} * 0.0)",
    "ops.log(s.{c} * 0.0)",
    "(s.{c} * 0.0) ** 0.5",
    "1.0 / (s.{c} * 0.0)",
    "s.{c} * 1e200 * 1e200",
    "ops.sqrt(ops.relu(s.{c}))",
]


def with_a_singular_state(drawn: RandomCell, text: str, read: str) -> RandomCell:
    """The same cell with a state more, that nothing reads, that is fed by the first, or that the next step reads."""
    states, returned = dict(drawn.states), dict(drawn.returned)
    first = next(iter(states))
    states["bad"], returned["bad"] = states[first], text.format(c="bad")
    if read == "fed":
        returned["bad"] += f" + ({returned[first]})"
    if read == "next step":
        returned[first] = f"({returned[first]}) + 0.1 * s.bad"
    return dataclasses.replace(drawn, states=states, returned=returned, starts={**drawn.starts, "bad": 0.5})


def test_random_cells_with_a_singular_state(executor: str) -> None:
    @settings(max_examples=FEW, suppress_health_check=QUIET)
    @given(
        random_cells(8),
        st.sampled_from(SINGULAR),
        st.sampled_from(["unread", "fed", "next step"]),
        st.sampled_from(list(LOSSES)),
        st.fixed_dictionaries({"masked": st.booleans(), "carried": st.booleans(), "seed": st.integers(0, 3)}),
        st.booleans(),
    )
    def each(drawn: RandomCell, text: str, read: str, loss: str, facts: dict[str, Any], second: bool) -> None:
        cell = with_a_singular_state(drawn, text, read)
        note(cell.source)
        held(executor, make_case(cell.build(), T=3, B=2, **facts), loss, second=second)

    each()


def test_random_cells_have_the_same_unused_tensors(executor: str) -> None:
    """Leaves, and states at every step: unused where they are in `unroll`, whatever the loss reads."""

    def unused(run: Any, case: Any, loss: str) -> dict[str, bool]:
        leaves = {name: Tensor(value, requires_grad=True) for name, value in case.params.items()}
        leaves["xs"] = Tensor(case.xs, requires_grad=True)
        state = {name: Tensor(value, requires_grad=True) for name, value in case.state.items()}
        params = {name: leaves[name] for name in case.params}
        done = run(case.cell, params, leaves["xs"], state, mask=case.mask)
        total = LOSSES[loss](done, np.random.default_rng(0))
        targets = leaves | {f"start {name}": value for name, value in state.items()}
        targets |= {f"{name}[{t}]": value for name, row in done.states.items() for t, value in enumerate(row)}
        found = {}
        for name, value in targets.items():
            try:
                grad(total, value, unused="error")
                found[name] = False
            except GradientError:
                found[name] = True
        return found

    @settings(max_examples=FEW, suppress_health_check=QUIET)
    @given(random_cells(8), st.sampled_from(list(LOSSES)), st.booleans())
    def each(drawn: RandomCell, loss: str, masked: bool) -> None:
        note(drawn.source)
        case = make_case(drawn.build(), T=3, B=2, masked=masked)
        assert unused(partial(scan, executor=executor), case, loss) == unused(unroll, case, loss)

    each()
