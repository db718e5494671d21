"""One cell on trial: its cases, the lines that make them once more, and how a check says what it found.

A check is a function of a `Trial`: it returns a few words on what it did, or raises Failed, Noted or Skipped.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_rnn.backend import Array
from tinygrad_rnn.cell import Cell
from tinygrad_rnn.errors import DeviceError, DtypeError, GradientError, InputError, PluginError, one_line
from tinygrad_rnn.registry import load_cell
from tinygrad_rnn.sequence import start_state
from tinygrad_rnn.testing.cases import CellCase, cell_case
from tinygrad_rnn.wrap import unwrap_cell

Reference = Callable[[Any, Any, Any, Any], Mapping[str, Any] | None]
EXACT = 1e-12  # of the largest element: the same operations on the same numbers, summed in another order
CLOSE = 1e-9  # the same formula in other operations, several steps of it
ROUNDED = 1e-3  # float32, several steps of it
LARGE = 1e4
LONG = 200  # timesteps, unless they are given


class Failed(Exception):
    """Final. A fault; `fatal` when nothing that follows could be judged."""

    def __init__(self, detail: str, lines: Sequence[str] = (), *, fatal: bool = False) -> None:
        super().__init__(detail)
        self.lines = tuple(lines)
        self.fatal = fatal


class Noted(Exception):
    """Final. Something to know that is no fault."""


class Skipped(Exception):
    """Final. Nothing to check, and what to do about it."""


@dataclass
class Trial:
    """Final. The cell that is checked, at sizes that it can have."""

    cls: type[Cell]
    options: dict[str, Any]
    I: int
    H: int
    seed: int
    reference: Reference | None
    steps: int = LONG  # timesteps of the longest cases
    float32: bool = True  # until it is found not to work
    pure: bool = False  # until it is found to be
    remark: str = ""  # on the sizes

    def fit(self) -> None:
        """Make I = H where the cell refuses another I. Raises its InputError where that does not help."""
        try:
            self.cell()
        except InputError as error:
            try:
                self.cell(I=self.H)
            except InputError:
                raise error from None
            self.I, self.remark = self.H, f"; with I = H: {error}"

    def cell(self, **sizes: int) -> Cell:
        return self.cls(sizes.get("I", self.I), sizes.get("H", self.H), self.options)

    def case(self, **facts: Any) -> CellCase:
        return cell_case(self.cls, self.options, **self._facts(facts))

    def started(self, **facts: Any) -> CellCase:
        """The case from the state that the cell declares, as a sequence begins: there its counters count from 0."""
        case = self.case(**facts)
        case.state.update(start_state(case.cell, case.xs.shape[1], case.xs))
        return case

    def _facts(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        return {"I": self.I, "H": self.H, "seed": self.seed, **facts}

    def lines(self, *names: str, **facts: Any) -> list[str]:
        """Python lines that make the same case, once for each of `names` (default: ``case``)."""
        head, cell = self.named
        told = {"T": 4, "B": 3, **self._facts(facts)}
        sizes = ", ".join(f"{key}={spelt(value)}" for key, value in told.items())
        made = f"cell_case({cell}, {self.options!r}, {sizes})" if self.options else f"cell_case({cell}, {sizes})"
        return [*head, *(f"{name} = {made}" for name in names or ("case",))]

    @functools.cached_property
    def named(self) -> tuple[list[str], str]:
        """The lines that import what a reproduction needs, and how it names the cell."""
        head = ["import numpy as np", "import tinygrad_rnn as tr"]
        head += ["from tinygrad_rnn.testing import cell_case, cell_values"]
        cls, wraps = unwrap_cell(self.cls)
        module = sys.modules.get(cls.__module__)
        cell = repr(cls.name)
        try:
            known = load_cell(cls.name).cls is cls
        except (InputError, PluginError):
            known = False
        if known and hasattr(module, "__digest__"):
            head += [f"tr.load_plugin_file({str(getattr(module, '__file__', ''))!r})"]
        elif not known:
            head += [f"from {cls.__module__} import {cls.__qualname__.partition('.')[0]}"]
            cell = cls.__qualname__
        if wraps:
            head += [f"cls = tr.wrap_cell({f'tr.load_cell({cell}).cls' if known else cell}, {wraps!r})"]
            cell = "cls"
        return head, cell


def spelt(value: Any) -> str:
    """A fact of a case as Python spells it; a class is a dtype of NumPy."""
    return f"np.{np.dtype(value).name}" if isinstance(value, type) else repr(value)


def compare(
    got: Mapping[str, Array],
    expected: Mapping[str, Array],
    bound: float,
    what: str,
    lines: Sequence[str],
    keep: Sequence[str] | None = None,
    fatal: bool = False,
) -> None:
    """Raise Failed for the first name whose values differ: both numbers, and where; `lines` end with ``got`` and
    ``expected`` made."""
    names = [name for name in (keep or expected) if name in expected and name not in ("loss", "slope")]
    largest = max((float(np.max(np.abs(expected[name]), initial=0.0)) for name in names), default=1.0)
    least = 1e-3 * largest if 0.0 < largest < np.inf else 1.0
    for name in names:
        value = expected[name]
        found = got[name] if name in got else np.zeros_like(value)
        error, place = worst(found, value, least)
        if not error <= bound:
            index = bracketed(place)
            a, b = float(found[place]), float(value[place])
            raise Failed(
                f"{what}: {in_words(name)}[{index}]: expected {b!r}, got {a!r}",
                [*lines, f"print(got[{name!r}][{index}], expected[{name!r}][{index}])  # {a!r} {b!r}"],
                fatal=fatal,
            )


def check_finite(values: Mapping[str, Array], what: str, lines: Sequence[str], *, fatal: bool = False) -> None:
    """Raise Failed for the first number that is not finite; `lines` end with ``got`` made."""
    for name, value in values.items():
        if name not in ("loss", "slope") and not np.all(np.isfinite(value)):
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
            index = bracketed(place)
            raise Failed(
                f"{what}: {in_words(name)}[{index}] is {float(value[place])!r}",
                [*lines, f"print(got[{name!r}][{index}])  # {float(value[place])!r}"],
                fatal=fatal,
            )


def worst(got: Array, expected: Array, least: float) -> tuple[float, tuple[int, ...]]:
    """The largest error as a share of the largest element or `least`, and where it is; NaN counts as infinite."""
    if got.shape != expected.shape:
        raise Failed(f"expected shape {expected.shape}, got {got.shape}")
    error = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    error = np.where(np.isnan(error), np.inf, error)
    if not error.size:
        return 0.0, ()
    place = tuple(int(i) for i in np.unravel_index(int(np.argmax(error)), error.shape))
    largest = float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected)))
    return float(error[place]) / max(largest, least), place


def bracketed(place: Sequence[int]) -> str:
    """As it stands between brackets."""
    return ", ".join(map(str, place)) or "()"


def in_words(name: str) -> str:
    """The name of a result in words."""
    if name.startswith("dd "):
        return f"the second derivative for {name[3:]}"
    return f"the gradient for {name[2:]}" if name.startswith("d ") else name


def reason(error: BaseException) -> str:
    """What an error says, in one line; one that this library did not make on purpose is named."""
    if isinstance(error, InputError | PluginError | GradientError):
        return " ".join(str(error).split())
    return one_line(error)


def reason_in_step(error: BaseException) -> str:
    """The same; where a step mixes dtypes or devices, with the usual cause."""
    if not isinstance(error, DtypeError | DeviceError):
        return reason(error)
    return f"{reason(error)}; an array of the cell's own is a buffer in params()"
