"""What `check_cell` returns: a row for each check, as data and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["passed", "failed", "noted", "skipped"]

_WORDS: Mapping[Outcome, str] = {"passed": "passed ", "failed": "FAILED ", "noted": "noted  ", "skipped": "skipped"}


@dataclass(frozen=True)
class CellCheck:
    """One row of a report: what was looked at, how it went, and Python lines that show it once more.

    ``noted`` is no fault: something to know, as that the cell cannot be compiled. ``skipped`` says what to do about it.
    """

    name: str
    meaning: str
    outcome: Outcome
    detail: str
    reproduction: str = ""


@dataclass(frozen=True)
class CellReport:
    """What `check_cell` found on one cell."""

    cell: str
    options: dict[str, Any]
    I: int
    H: int
    seed: int
    checks: tuple[CellCheck, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[CellCheck, ...]:
        return tuple(check for check in self.checks if check.outcome == "failed")

    def summary(self) -> str:
        """One line: the cell, the sizes, and how many checks went how."""
        counts = {kind: sum(check.outcome == kind for check in self.checks) for kind in _WORDS}
        told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        given = "".join(f", {name}={value}" for name, value in self.options.items())
        return f"cell {self.cell} (I={self.I}, H={self.H}{given}, seed {self.seed}): {told}"

    def text(self) -> str:
        """The whole report as lines: a table, and under it the reproduction of what failed."""
        width = max(len(check.name) for check in self.checks)
        lines = [self.summary()]
        lines += [f"  {_WORDS[check.outcome]}  {check.name:{width}}  {check.detail}" for check in self.checks]
        for check in self.failed:
            lines += ["", f"{check.name} ({check.meaning}), once more:"]
            lines += [f"    {line}" for line in check.reproduction.splitlines()]
        return "\n".join(lines)
