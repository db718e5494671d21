"""`check_cell`: every check in order, on one cell."""

from __future__ import annotations

import contextlib
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tinygrad_rnn import engine
from tinygrad_rnn.cell import Cell, check_declaration
from tinygrad_rnn.errors import PluginError
from tinygrad_rnn.registry import load_cell
from tinygrad_rnn.testing import agreement, contract, gradients, purity, stability
from tinygrad_rnn.testing.report import CellCheck, CellReport, Outcome
from tinygrad_rnn.testing.trial import Failed, Noted, Reference, Skipped, Trial, one_line

Check = Callable[[Trial], str]

CHECKS: Mapping[str, tuple[str, Check]] = {
    "declaration": (
        "name, texts, options, states and parameters are declared as the contract says",
        contract.declaration,
    ),
    "documentation": ("every state is in the equation, every option has a help text", contract.documentation),
    "seed": ("the same seed gives the same initial parameters", contract.seed),
    "shapes": ("a step gives the declared states, in float64", contract.shapes),
    "purity": ("a step depends on its arguments alone, and changes nothing", purity.purity),
    "dtype": ("float32 stays float32", contract.dtype),
    "sizes": ("one timestep, one row, I = H, I != H, and single units work", contract.sizes),
    "rows": ("row b depends on row b alone", agreement.rows),
    "gradients": ("first and second derivatives agree with differences, and everything is used", gradients.gradients),
    "reference": ("the numbers are those of the same step in bare NumPy", agreement.reference),
    "scan": ("compiled, the cell gives the numbers of unroll", agreement.compiled),
    "masks": ("in a ragged batch the padding changes nothing", agreement.masks),
    "extremes": ("large and zero numbers give finite values and gradients", stability.extremes),
    "long": ("many steps from the initial parameters stay finite", stability.long),
    "checkpoint": ("parameters come back from a file as they were", agreement.saved),
    "taps": ("who listens to the taps changes nothing, and can tell them apart", agreement.taps),
    "devices": ("the step runs on arrays that are not NumPy's, as on a GPU", agreement.devices),
    "noise": ("training noise is the same compiled, and its mean otherwise", agreement.noise),
}


def check_cell(
    cell: str | type[Cell],
    *,
    options: Mapping[str, Any] | None = None,
    I: int = 3,
    H: int = 4,
    seed: int = 0,
    reference: Reference | None = None,
    raises: bool = True,
) -> CellReport:
    """Run every check on `cell`, a class or the name of a registered one, at I inputs and H units with `options`.

    `reference(cell, p, x, s)` is the step once more in bare NumPy, for a cell that brings none of its own. A cell that
    needs I = H is checked with that. The global random state is as before afterwards.
    Raises AssertionError with the whole report when a check failed, unless ``raises=False``; InputError for a name that
    is not known, and for options or sizes that the cell refuses.
    """
    cls = load_cell(cell).cls if isinstance(cell, str) else cell
    trial = Trial(cls, dict(options or {}), I, H, seed, reference)
    started = time.perf_counter()
    rows: list[CellCheck] = []
    blocked = ""
    with _undisturbed():
        with contextlib.suppress(PluginError):  # told below
            check_declaration(cls)
            trial.fit()
        for name, (meaning, check) in CHECKS.items():
            if blocked:
                rows.append(CellCheck(name, meaning, "skipped", f"not run, since {blocked} failed"))
                continue
            outcome, detail, lines, fatal = _outcome(trial, check, name)
            blocked = name if fatal else ""
            rows.append(CellCheck(name, meaning, outcome, detail, "\n".join(lines)))
    seconds = time.perf_counter() - started
    label = getattr(cls, "name", None) or getattr(cls, "__name__", repr(cls))
    report = CellReport(str(label), trial.options, trial.I, trial.H, seed, tuple(rows), seconds)
    if raises and not report.ok:
        raise AssertionError(report.text())
    return report


def _outcome(trial: Trial, check: Check, name: str) -> tuple[Outcome, str, Sequence[str], bool]:
    """How `check` went: outcome, detail, the lines of a reproduction, and whether to go on makes no sense."""
    try:
        return "passed", check(trial), (), False
    except Noted as found:
        return "noted", str(found), (), False
    except Skipped as found:
        return "skipped", str(found), (), False
    except Failed as found:
        return "failed", str(found), found.lines or _whole(trial), found.fatal
    except Exception as error:  # a stranger's step may raise anything, anywhere
        return "failed", one_line(error), _whole(trial), name == "declaration"


def _whole(trial: Trial) -> list[str]:
    """A reproduction where no other was made: the whole check."""
    if not isinstance(getattr(trial.cls, "name", None), str):
        return []
    head, cell = trial.named
    return [*head, f"tr.check_cell({cell}, options={trial.options!r}, I={trial.I}, H={trial.H}, seed={trial.seed})"]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """No warnings of overflow on the way, nobody else listening, and the global generators as they were afterwards."""
    chance = purity.global_generators()
    place, engine.MODE.anomaly = engine.MODE.anomaly, None
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings(), engine.listen(None), engine.recording():
            warnings.simplefilter("ignore")
            yield
    finally:
        engine.MODE.anomaly = place
        random.setstate(chance[0])
        np.random.set_state(chance[1])  # noqa: NPY002
