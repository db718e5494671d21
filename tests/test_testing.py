"""`check_cell` finds each planted fault and names it, and has nothing against what is sound."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import (
    Cell,
    CellReport,
    InputError,
    Param,
    State,
    TinygradRNNError,
    anomaly,
    available_cells,
    bias,
    check_cell,
    input_matrix,
    listen,
    load_cell,
    no_grad,
    ops,
    recurrent_matrix,
    scan,
    wrap_cell,
)
from tinygrad_rnn.testing import CHECKS, agreement, cases, cell_case, cell_values

# The reproductions import the cells by the name of their module.
_spec = importlib.util.spec_from_file_location("planted_faults", Path(__file__).with_name("planted_faults.py"))
assert _spec is not None and _spec.loader is not None
planted: Any = sys.modules.setdefault("planted_faults", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(planted)

BUILT_IN = [row.name for row in available_cells(third_party=False)]
VARIANTS = [
    ("rnn", {"activation": "relu"}),
    ("rnn", {"activation": "identity"}),
    ("gru", {"form": "reset_after"}),
    ("mut1", {"input_map": "identity"}),
    ("mut2", {"input_map": "fixed"}),
]


def run(lines: str) -> str:
    """What the lines of a reproduction print, in a namespace of their own."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), np.errstate(all="ignore"):
        exec(lines, {})
    return told.getvalue()


@pytest.fixture
def numpy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine code, which takes longer to make than all the rest: no fault here is one of it."""
    monkeypatch.setattr(agreement, "COMPILED", ("numpy",))
    monkeypatch.setattr(cases, "scan", lambda *a, executor=None, **more: scan(*a, executor=executor or "numpy", **more))


@pytest.mark.usefixtures("numpy_alone")
@pytest.mark.parametrize(("cls", "expected", "words"), planted.FAULTS, ids=[f[0].__name__ for f in planted.FAULTS])
def test_a_fault_is_found_and_named(
    cls: type[Cell], expected: set[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a reproduction may write a file
    planted.COUNTS.clear()
    report = check_cell(cls, raises=False)
    assert {check.name for check in report.failed} == expected, report.text()
    assert any(words in check.detail for check in report.failed), report.text()
    for check in report.failed:
        assert "\n" not in check.detail
        numbers = re.search(r"  # (\S+) (\S+)$", check.reproduction)
        try:
            told = run(check.reproduction).splitlines()
        except (AssertionError, TinygradRNNError):
            assert numbers is None, check
            continue
        if numbers is not None and check.name not in ("purity", "seed"):  # which find what is never the same
            np.testing.assert_allclose(np.array(told[-1].split(), float), np.array(numbers.groups(), float), rtol=1e-9)


@pytest.mark.usefixtures("numpy_alone")
@pytest.mark.parametrize("cls", planted.SOUND)
def test_nothing_is_found_in_a_sound_cell(cls: type[Cell]) -> None:
    report = check_cell(cls)
    assert report.ok and {check.outcome for check in report.checks} <= {"passed", "noted", "skipped"}
    rows = {check.name: check for check in report.checks}
    assert list(rows) == list(CHECKS)
    assert (rows["reference"].outcome == "passed") is (cls is planted.WithReference)


@pytest.mark.usefixtures("numpy_alone")
@pytest.mark.parametrize(("cls", "words"), planted.NOTED)
def test_what_is_no_fault_and_worth_knowing_is_noted(cls: type[Cell], words: str) -> None:
    (noted,) = [check.detail for check in check_cell(cls).checks if check.outcome == "noted"]
    assert words in noted


def not_passed(report: CellReport, name: str) -> list[str]:
    """The rows that found something; one without a reference is compared with the tests' formula, in tests/cells."""
    bare = load_cell(name).cls.reference is Cell.reference
    return [
        check.name for check in report.checks if check.outcome != "passed" and not (bare and check.name == "reference")
    ]


@pytest.mark.usefixtures("numpy_alone")
@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_cells(name: str) -> None:
    assert not_passed(check_cell(name), name) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in BUILT_IN), *VARIANTS])
def test_built_in_cells_and_variants_as_machine_code(name: str, options: dict[str, Any]) -> None:
    if importlib.util.find_spec("llvmlite") is None:
        pytest.skip("needs llvmlite, of the extra fast")
    report = check_cell(name, options=options)
    assert report.options == options and not_passed(report, name) == [], report.text()


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("wraps", [["layernorm", "zoneout:0.1"], ["recurrent_dropout:0.2", "highway"], ["residual"]])
def test_wrapped_cells(name: str, wraps: list[str]) -> None:
    assert check_cell(wrap_cell(load_cell(name).cls, wraps)).ok


@pytest.mark.usefixtures("numpy_alone")
def test_a_wrapped_cell_and_its_noise() -> None:
    report = check_cell(wrap_cell(load_cell("rnn").cls, ["zoneout:0.1"]))
    assert report.cell == "rnn+zoneout:0.1" and report.checks[-1].detail.startswith("k_h: ")
    broken = check_cell(wrap_cell(planted.TransposedMatrix, ["residual", "zoneout:0.5"]), raises=False)
    assert [check.name for check in broken.failed] == ["reference"]
    assert "wrap_cell(TransposedMatrix, ['residual', 'zoneout:0.5'])" in broken.failed[0].reproduction
    run(broken.failed[0].reproduction)


@pytest.mark.usefixtures("numpy_alone")
def test_a_reference_that_cannot_be_wrapped() -> None:
    report = check_cell(wrap_cell(planted.WithEinsum, ["layernorm"]))
    (check,) = [check for check in report.checks if check.outcome == "skipped"]
    assert check.name == "reference" and check.detail.endswith("multiply by @ in it")


# ------------------------------------------------------------------------------- what it says, and to whom


@pytest.mark.usefixtures("numpy_alone")
def test_the_numbers_are_those_of_the_fault() -> None:
    """The rule says 3 where 2 is right: every number through it is too large by half."""
    (check,) = check_cell(planted.WrongGradient, raises=False).failed
    expected, got = map(float, re.findall(r"expected (\S+) by differences, got (\S+)", check.detail)[0])
    assert got / expected > 1.2
    case = cell_case(planted.WrongGradient, T=1)
    values, right = cell_values(case, order=1), cell_values(cell_case(planted.Sound, T=1), order=1)
    assert not np.allclose(values["d x"], right["d x"])
    one = cell_values(case, order=1)["d b"]
    case.params["b"][:] += 1e-6
    ahead = cell_values(case)["loss"]
    case.params["b"][:] -= 2e-6
    assert float(ahead - cell_values(case)["loss"]) / 2e-6 == pytest.approx(float(one.sum()), rel=1e-6)


def test_the_first_row_that_fails_stops_what_cannot_be_judged() -> None:
    report = check_cell(planted.LosesAState, raises=False)
    after = [check for check in report.checks if check.name not in ("declaration", "documentation", "seed", "shapes")]
    assert {(check.outcome, check.detail) for check in after} == {("skipped", "not run, since shapes failed")}


@pytest.mark.usefixtures("numpy_alone")
def test_an_assertion_with_the_whole_report() -> None:
    with pytest.raises(AssertionError) as caught:
        check_cell(planted.TransposedMatrix)
    text = str(caught.value)
    assert text.startswith("cell sound (I=3, H=4, seed 0): 17 passed, 1 failed")
    assert "FAILED   reference" in text and "cell_case(TransposedMatrix, T=4, B=3, I=3, H=4, seed=0)" in text
    assert check_cell(planted.TransposedMatrix, I=4, raises=False).failed, "a transposed square matrix is wrong too"


@pytest.mark.usefixtures("numpy_alone")
def test_a_reference_from_outside() -> None:
    def right(cell: Any, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = np.tanh(x @ p.W + s.h @ p.U + p.b)
        return {"h": h, "m": cell.options.rate * s.m + (1 - cell.options.rate) * h}

    def wrong(cell: Any, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": np.tanh(x @ p.W + s.h @ p.U + p.b), "m": s.m}

    report = check_cell(planted.Sound, options={"rate": 0.25}, reference=right, seed=3)
    assert [check.outcome for check in report.checks if check.name == "reference"] == ["passed"]
    (check,) = check_cell(planted.Sound, reference=wrong, raises=False).failed
    assert check.name == "reference" and ": m[" in check.detail


@pytest.mark.usefixtures("numpy_alone")
def test_at_a_kink_a_second_point_decides() -> None:
    kink = float(cell_case(planted.Sound, T=3, B=2).xs[0, 0, 0])

    class Kinked(planted.Sound):  # type: ignore[misc, name-defined]
        def summed(self, p: Any, x: Any, s: Any) -> Any:
            return super().summed(p, ops.relu(x - kink), s)

    (check,) = [check for check in check_cell(Kinked).checks if check.name == "gradients"]
    assert check.detail == "6 of them, first and second order; only at a second point, since the first is at a kink: x"


def test_a_caller_s_slip_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no cell 'lstn'; did you mean lstm"):
        check_cell("lstn")
    with pytest.raises(InputError, match="cell lstm has no option 'forget'"):
        check_cell("lstm", options={"forget": 1})
    with pytest.raises(InputError, match="expected H to be a whole number from 1, got 0"):
        check_cell("lstm", H=0)
    assert "expected a subclass of tinygrad_rnn.Cell" in check_cell(int, raises=False).text()  # type: ignore[arg-type]


@pytest.mark.usefixtures("numpy_alone")
def test_what_rules_outside_changes_nothing_and_is_not_changed() -> None:
    """Recording off, anomaly detection, a listener, warnings as errors: none of them reaches a check."""
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    heard: list[str] = []
    with no_grad(), anomaly(), listen(lambda name, value: heard.append(name)):
        inside = check_cell(planted.DrawsGlobally, raises=False)
        sound: CellReport = check_cell(planted.ExponentialWithoutGuard, raises=False)
    assert [check.name for check in inside.failed] == ["purity"] and not heard
    assert sound.checks == check_cell(planted.ExponentialWithoutGuard, raises=False).checks
    after = random.getstate(), np.random.get_state()  # noqa: NPY002
    assert before[0] == after[0] and np.array_equal(before[1][1], after[1][1])


def test_it_needs_no_test_framework() -> None:
    program = (
        "import sys, tinygrad_rnn as tr; assert 'numpy' not in sys.modules; sys.modules['llvmlite'] = None;"
        "report = tr.check_cell('rnn');"
        "print(report.ok, [name for name in ('pytest', 'hypothesis', 'click', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "True []\n" and not done.stderr


@pytest.mark.parametrize("masked", [False, True])
def test_a_case_is_what_its_seed_says(masked: bool) -> None:
    one, two, other = (cell_case("lstm", T=5, B=3, masked=masked, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.xs, two.xs) and not np.array_equal(one.xs, other.xs)
    assert one.xs.shape == (5, 3, 3) and one.state["c"].shape == (3, 4)
    assert (one.mask is None) is not masked
    if one.mask is not None:
        assert one.mask.sum(axis=0).tolist() == [5, 2, 0]


class OwnClock(Cell):
    """Correct: it counts for itself, and moves its slow half at every eighth step."""

    name = "own_clock"
    summary = "a plain network beside a slow one"
    citation = "written for a test"
    equation = """\
h' = tanh(x W + h U + slow + b)
slow' = where(k % every == every - 1, tanh(slow W_3 + h'), slow)
k' = k + 1"""
    every = 8

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,)), "slow": State((self.H,)), "k": State((1,))}

    def params(self) -> dict[str, Param]:
        return {
            "W": input_matrix(self.I, self.H),
            "U": recurrent_matrix(self.H),
            "W_3": recurrent_matrix(self.H),
            "b": bias(self.H),
        }

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = ops.tanh(x @ p.W + s.h @ p.U + s.slow + p.b)
        fires = ops.equal(ops.remainder(s.k, float(self.every)), self.every - 1.0)
        return {"h": h, "slow": ops.where(fires, self.slow(p, s, h), s.slow), "k": s.k + 1.0}

    def slow(self, p: Any, s: Any, h: Any) -> Any:
        return ops.tanh(s.slow @ p.W_3 + h)


class OwnWrongClock(OwnClock):
    """The same with a gradient that is cut where the slow half moves."""

    name = "own_wrong_clock"

    def slow(self, p: Any, s: Any, h: Any) -> Any:
        return ops.tanh(s.slow @ p.W_3 + s.slow @ p.W_3.detach() + h)


class OwnSlowClock(OwnClock):
    name = "own_slow_clock"
    every = 60


def gradients_of(cls: type[Cell], **options: Any) -> Any:
    (row,) = [row for row in check_cell(cls, raises=False, **options).checks if row.name == "gradients"]
    return row


def test_what_acts_at_every_eighth_step_is_used() -> None:
    row = gradients_of(OwnClock)
    assert row.outcome == "passed" and row.detail.endswith("; W_3 within 16 timesteps")


def test_what_acts_seldom_is_checked_where_it_acts() -> None:
    row = gradients_of(OwnWrongClock)
    assert row.outcome == "failed" and row.detail.startswith("for W_3, within 16 timesteps")


def test_steps_are_those_of_the_longest_trials() -> None:
    assert gradients_of(OwnSlowClock, steps=130).outcome != "failed"
    row = gradients_of(OwnSlowClock, steps=50)
    assert row.outcome == "failed" and "W_3 is never used: no number depends on it within 50 timesteps" in row.detail
    assert "take more --steps" in row.detail
    (long,) = [row for row in check_cell("rnn", steps=50).checks if row.name == "long"]
    assert long.detail.startswith("50 steps")
    with pytest.raises(InputError, match="--steps 3: expected at least 4"):
        check_cell("rnn", steps=3)


class Arcsine(OwnClock):
    """Its state is a tanh, and it takes the inverse of it: infinite beyond 1, where no run comes."""

    name = "arcsine"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(x @ p.W + ops.sqrt(1.0 - 0.99 * s.h * s.h) @ p.U + 0.1 * s.h @ p.W_3 + p.b)}


class Unbounded(Arcsine):
    """The same with a state that leaves [-1, 1]."""

    name = "unbounded"

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": 20.0 * ops.tanh(x @ p.W + ops.sqrt(500.0 - s.h * s.h) @ p.U + 0.1 * s.h @ p.W_3 + p.b)}


def test_numbers_that_no_state_reaches_are_noted_and_no_fault() -> None:
    rows = {row.name: row for row in check_cell(Arcsine, raises=False).checks}
    assert rows["extremes"].outcome == "noted"
    assert "not for 1e4 in h, which never leaves [-1, 1]" in rows["extremes"].detail
    rows = {row.name: row for row in check_cell(Unbounded, raises=False).checks}
    assert rows["extremes"].outcome == "failed"
