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
from tinygrad_rnn.compile.trace import global_generators
from tinygrad_rnn.errors import InputError, PluginError
from tinygrad_rnn.registry import load_cell
from tinygrad_rnn.testing import agreement, contract, gradients, purity, stability
from tinygrad_rnn.testing.report import CellCheck, CellReport, Outcome
from tinygrad_rnn.testing.trial import LONG, Failed, Noted, Reference, Skipped, Trial, reason

Check = Callable[[Trial], str]  # its docstring says what must hold

CHECKS: Mapping[str, Check] = {
    "declaration": contract.declaration,
    "documentation": contract.documentation,
    "seed": contract.seed,
    "shapes": contract.shapes,
    "purity": purity.purity,
    "dtype": contract.dtype,
    "sizes": contract.sizes,
    "rows": agreement.rows,
    "gradients": gradients.gradients,
    "reference": agreement.reference,
    "scan": agreement.compiled,
    "masks": agreement.masks,
    "extremes": stability.extremes,
    "long": stability.long,
    "checkpoint": agreement.saved,
    "taps": agreement.taps,
    "devices": agreement.devices,
    "noise": agreement.noise,
}


def check_cell(
    cell: str | type[Cell],
    *,
    options: Mapping[str, Any] | None = None,
    I: int = 3,
    H: int = 4,
    seed: int = 0,
    steps: int = LONG,
    reference: Reference | None = None,
    raises: bool = True,
) -> CellReport:
    """Run every check on `cell`, a class or the name of a registered one, at I inputs and H units with `options`.

    The longest trials have `steps` timesteps: what acts more seldom counts as unused.
    `reference(cell, p, x, s)` is the step once more in bare NumPy, for a cell that brings none of its own. A cell that
    needs I = H is checked with that. The global random state is as before afterwards.
    Raises AssertionError with the whole report when a check failed, unless ``raises=False``; InputError for a name that
    is not known, and for options or sizes that the cell refuses.
    """
    cls = load_cell(cell).cls if isinstance(cell, str) else cell
    if not isinstance(cls, type):
        raise InputError(f"check_cell: expected the class of a cell or its name, got {cls!r}")
    if steps < 4:
        raise InputError(f"--steps {steps}: expected at least 4 timesteps for the longest trials")
    trial = Trial(cls, dict(options or {}), I, H, seed, reference, steps)
    started = time.perf_counter()
    rows: list[CellCheck] = []
    blocked = ""
    with _undisturbed():
        with contextlib.suppress(PluginError):  # told below
            check_declaration(cls)
            trial.fit()
        for name, check in CHECKS.items():
            meaning = _meaning(check)
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


def _meaning(check: Check) -> str:
    """What a check says of itself, as it stands inside a sentence."""
    text = (check.__doc__ or "").strip().rstrip(".")
    return text[:1].lower() + text[1:]


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
    except (Exception, SystemExit) as error:  # a stranger's step may raise anything, anywhere
        return "failed", reason(error), _whole(trial), name == "declaration"


def _whole(trial: Trial) -> list[str]:
    """A reproduction where no other was made: the whole check."""
    if not isinstance(getattr(trial.cls, "name", None), str):
        return []
    head, cell = trial.named
    steps = "" if trial.steps == LONG else f", steps={trial.steps}"
    return [
        *head,
        f"tr.check_cell({cell}, options={trial.options!r}, I={trial.I}, H={trial.H}, seed={trial.seed}{steps})",
    ]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """No warnings of overflow on the way, nobody else listening, and the global generators as they were afterwards."""
    chance = global_generators()
    place, engine.MODE.anomaly = engine.MODE.anomaly, None
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings(), engine.listen(None), engine.recording():
            warnings.simplefilter("ignore")
            yield
    finally:
        engine.MODE.anomaly = place
        random.setstate(chance[0])
        np.random.set_state(chance[1])  # noqa: NPY002
