"""Cells nobody wrote, run by `scan` and by `unroll`: the same values and gradients, and compiled, not handed back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from compare import LOSSES, compare, compare_float32, make_case
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from random_cells import RandomCell, random_cells

from tinygrad_rnn import Cell, Unrolled

# A random cell is compiled anew in every example, so the default run is short; the slow one is ten times as long.
SHORT = settings.default.max_examples if settings.default is not None else 25
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
# At least this share of random cells has to be compiled. The rest may say why not.
SHARE = 0.9
ASKED = 0.3  # and by the executor that was asked for: machine code has fewer ops
CHANCE = 1e-6  # how unlikely a share of so few cells must be before it counts against these

runs = st.fixed_dictionaries(
    {
        "T": st.sampled_from([4, 1, 2, 6]),
        "B": st.sampled_from([3, 1, 2]),
        "carried": st.booleans(),
        "masked": st.booleans(),
        "noisy": st.booleans(),
        "xs_grad": st.booleans(),
        "state_grad": st.booleans(),
        "seed": st.integers(0, 3),
    }
)
wrapped = st.lists(st.sampled_from(["zoneout:0.3", "residual", "highway"]), max_size=2)


def count(done: Unrolled, executor: str, counted: Counter[str]) -> None:
    """Whether it was compiled; where not, a reason must be there."""
    counted["all"] += 1
    if done.executor != "unroll":
        counted["compiled"] += 1
    if done.executor == executor:
        counted["as asked"] += 1
    else:
        assert done.executor in ("numpy", "unroll")  # what has no machine code, NumPy does
        assert done.reason.strip() and done.reason != "asked for"
        counted[done.reason] += 1


def compiled_share(counted: Counter[str]) -> None:
    for what, share in (("compiled", SHARE), ("as asked", ASKED)):
        assert chance_of_so_few(counted[what], counted["all"], share) > CHANCE, (
            f"{counted[what]} of {counted['all']} random cells were {what}, far below {share:.0%}: "
            f"{counted.most_common(9)}"
        )


def chance_of_so_few(hits: int, draws: int, share: float) -> float:
    """The probability of at most `hits` in so many draws that each hit with probability `share`."""
    return math.fsum(math.comb(draws, k) * share**k * (1 - share) ** (draws - k) for k in range(hits + 1))


def test_a_share_of_few_cells_does_not_count() -> None:
    assert chance_of_so_few(1, 2, 0.5) == 0.75
    compiled_share(Counter({"all": 25, "compiled": 21, "as asked": 5}))  # 84 %, as one run in ten has at 90 %
    for hits, draws in ((10, 25), (190, 250)):
        with pytest.raises(AssertionError, match="far below 90%"):
            compiled_share(Counter({"all": draws, "compiled": hits, "as asked": hits}))


def over_cells(examples: int, longest: int, check: Callable[..., None]) -> None:
    """`check(cell, facts, loss)` for so many random cells, every other one of them in wrappers."""

    @settings(max_examples=examples, suppress_health_check=QUIET)
    @given(random_cells(longest), wrapped, runs, st.sampled_from(list(LOSSES)))
    def each(drawn: RandomCell, wraps: list[str], facts: dict[str, Any], loss: str) -> None:
        note(f"{drawn.source}\n{wraps}")
        # the rows of a matrix that all start alike would leave it to the last bit which of them is the largest
        facts["carried"] |= any(len(shape) > 1 for shape in drawn.states.values())
        if drawn.states[drawn.output] != (drawn.H,):  # an output that cannot be joined with the input
            wraps = [text for text in wraps if text.startswith("zoneout")]
        check(drawn.build(wraps), facts, loss)

    with np.errstate(invalid="ignore"):  # a stray flag of one product, seen once; values are compared
        each()


def first_order(executor: str, examples: int, longest: int) -> None:
    counted: Counter[str] = Counter()

    def check(cell: Cell, facts: dict[str, Any], loss: str) -> None:
        done = compare(executor, make_case(cell, **facts), loss, seed=facts["seed"])
        count(done, executor, counted)

    over_cells(examples, longest, check)
    compiled_share(counted)


def second_order(executor: str, examples: int, longest: int) -> None:
    def check(cell: Cell, facts: dict[str, Any], loss: str) -> None:
        case = make_case(cell, **{**facts, "T": min(facts["T"], 3), "xs_grad": True})
        compare(executor, case, loss, second=True, bound=1e-9)

    over_cells(examples, longest, check)


def single_precision(executor: str, examples: int, longest: int) -> None:
    counted: Counter[str] = Counter()

    def check(cell: Cell, facts: dict[str, Any], loss: str) -> None:
        done = compare_float32(executor, make_case(cell, **facts), loss)
        count(done, executor, counted)

    over_cells(examples, longest, check)
    compiled_share(counted)


def test_values_and_gradients(executor: str) -> None:
    first_order(executor, SHORT, 12)


def test_second_gradients(executor: str) -> None:
    second_order(executor, SHORT // 2, 6)


def test_float32(executor: str) -> None:
    single_precision(executor, SHORT // 2, 8)


@pytest.mark.slow
@pytest.mark.parametrize("check", [first_order, second_order, single_precision])
def test_many_more(executor: str, check: Callable[[str, int, int], None]) -> None:
    check(executor, 10 * SHORT, 20)


@pytest.mark.slow
def test_the_strategy_reaches_what_it_promises() -> None:
    """Among some thousand cells each op, state shape and way to end is met: a strategy may go poor unseen."""
    seen: Counter[str] = Counter()

    @settings(max_examples=1500, database=None, derandomize=True, suppress_health_check=QUIET)
    @given(random_cells(14))
    def each(drawn: RandomCell) -> None:
        for word in (
            "tanh sigmoid relu softplus abs sin cos exp log sqrt maximum minimum clip where greater less_equal sum "
            "mean max softmax concatenate split reshape expand_dims stack transpose swapaxes broadcast_to matmul"
        ).split():
            seen[word] += f"ops.{word}(" in drawn.source
        for part in (
            "'buffer'",
            "tap(",
            ".T",
            "** 2",
            "[:, :1]",
            "unused",
            "'m': State",
            "State(()",
            "s.h + 1",
            ": x",
            "output = 'y'",
        ):
            seen[part] += part in drawn.source

    each()
    missing = [name for name, times in seen.items() if times < 3]
    assert not missing, f"hardly ever drawn: {missing}"
