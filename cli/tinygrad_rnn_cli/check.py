"""``cells check``: a cell tried in every way in which the library will use it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import click
from click.shell_completion import CompletionItem

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import aside, emit, emit_json, note, paint, seconds, table
from tinygrad_rnn_cli.main import CHECK_FAILED
from tinygrad_rnn_cli.options import Command, common, given, load_plugins, resolve, settings


def complete_cell_or_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Cell names, and what the shell itself finds in the folder."""
    names = [CompletionItem(row.name) for row in tr.available_cells() if row.name.startswith(incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


@click.command("check", cls=Command)
@click.argument("names", nargs=-1, metavar="NAME|PATH.py...", shell_complete=complete_cell_or_file)
@click.option("--all", "every", is_flag=True, help="check every cell that `cells list` shows")
@click.option(
    "--inputs",
    type=click.IntRange(1),
    metavar="I",
    default=3,
    show_default=True,
    help="size of the input of a timestep",
)
@click.option("--units", type=click.IntRange(1), metavar="H", default=4, show_default=True, help="hidden units")
@click.option(
    "--steps",
    type=click.IntRange(4),
    metavar="T",
    default=200,
    show_default=True,
    help="timesteps of the longest trials: what acts more seldom counts as unused",
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@settings("model.cell_options", "model.wrap")
@common("seed", "plugin")
def check(names: tuple[str, ...], every: bool, inputs: int, units: int, steps: int, as_json: bool) -> None:
    """Try each cell NAME, or each cell that the file PATH.py registers, in every way in which the library will use it.

    Shapes, dtypes, purity, rows, gradients of first and second order, the reference in bare NumPy, compiled code,
    ragged batches, extreme numbers, long sequences, files, taps and other devices, with small sizes and numbers drawn
    from --seed. Of what fails you get the place, both numbers, and Python lines that show them once more.

    A row is passed, failed, noted (to know, and no fault) or skipped (with what to do about it). When one failed the
    exit code is 3.

    \b
    tinygrad-rnn cells check lstm --cell-opt forget_bias=0 --wrap zoneout:0.1
    tinygrad-rnn cells check my_cell.py
    """
    if every == bool(names):
        raise click.UsageError("expected NAME, PATH.py or --all, " + ("got both" if every else "got none of them"))
    with aside():
        load_plugins()
        run = resolve().run
        asked = {"options": run.model.cell_options, "I": inputs, "H": units, "seed": run.train.seed, "steps": steps}
        reported = partial(_report, run.model.wrap, asked, every)
        reports = [reported(name) for name in _wanted(names, every)]
    if as_json:
        emit_json({"ok": all(report.ok for report in reports), "cells": [_facts(report) for report in reports]})
    else:
        for before, report in zip([None, *reports], reports, strict=False):
            if before is not None and not (before.ok and report.ok):
                emit()
            _print(report, whole=len(reports) == 1)
    told = "1 cell" if len(reports) == 1 else f"{len(reports)} cells"
    note(f"{told} in {seconds(sum(report.seconds for report in reports))}", dim=True)
    if not all(report.ok for report in reports):
        click.get_current_context().exit(CHECK_FAILED)


def _wanted(names: Sequence[str], every: bool) -> list[str]:
    """Names of cells, each once; those of files are registered by it."""
    if every:
        return list(dict.fromkeys(row.name for row in tr.available_cells(third_party=given().third_party)))
    found: dict[str, None] = {}
    for name in names:
        if name.endswith(".py"):
            if not given().third_party:
                raise click.UsageError(f"{name} and --no-plugins exclude each other; give one of them")
            found.update(dict.fromkeys(entry.cls.name for entry in tr.load_plugin_file(name)))
        else:
            tr.load_cell(name, third_party=given().third_party)
            found[name] = None
    return list(found)


def _report(wraps: Sequence[str], asked: Mapping[str, Any], every: bool, name: str) -> tr.CellReport:
    try:
        cls = tr.load_cell(name, third_party=given().third_party).cls
        return tr.check_cell(tr.wrap_cell(cls, wraps), raises=False, **asked)
    except (tr.PluginError, tr.InputError) as error:
        if not every:
            raise
        # the others can be checked
        outcome: Any = "failed" if isinstance(error, tr.PluginError) else "skipped"
        row = tr.CellCheck("declaration", "the cell can be imported and made", outcome, str(error))
        return tr.CellReport(name, dict(asked["options"]), asked["I"], asked["H"], asked["seed"], (row,), 0.0)


def _facts(report: tr.CellReport) -> dict[str, Any]:
    return {"ok": report.ok, **dataclasses.asdict(report)}


def _print(report: tr.CellReport, whole: bool) -> None:
    """The summary, the table, and the reproductions; of a cell among many only what is not passed."""
    emit(paint(report.summary(), sys.stdout, bold=True, fg=None if report.ok else "red"))
    rows = [check for check in report.checks if whole or check.outcome == "failed"]
    if rows:
        red = [number for number, check in enumerate(rows) if check.outcome == "failed"]
        lines = [[check.name, _shown(check.outcome), check.detail] for check in rows]
        table(["check", "outcome", "detail"], lines, red=red)
    for check in report.failed:
        if check.reproduction:
            emit(f"\n# {check.name} ({check.meaning}), once more:")
            emit(check.reproduction)


def _shown(outcome: str) -> str:
    return outcome.upper() if outcome == "failed" else outcome
