"""``plot``: curves of a run after the fact."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import emit, note
from tinygrad_rnn_cli.drawing import draw_curves
from tinygrad_rnn_cli.gradnorm import draw, judged
from tinygrad_rnn_cli.options import Command, common

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tinygrad_rnn import GradNormReport

WHAT = ("loss", "grads")


@click.command("plot", cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--what",
    default="loss",
    show_default=True,
    metavar="loss,grads",
    help="loss: training and validation loss; grads: norms per timestep that train --watch grads wrote",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["term", "png", "svg", "pdf"]),
    default=None,
    help="term draws in the terminal  [default: that of --out, else term]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE|FOLDER",
    help="where to write pictures  [default: the run folder]",
)
@common()
def plot(run: Path, what: str, form: str | None, out: Path | None) -> None:
    """Draw the loss, or the gradient norms, of a RUN."""
    wanted = [word.strip() for word in what.split(",") if word.strip()]
    for word in wanted:
        if word not in WHAT:
            raise click.UsageError(f"--what: {word!r} is not one of its choices{tr.nearest(word, WHAT)}")
    if not wanted:
        raise click.UsageError("--what: expected loss, grads or both, got nothing")
    records = tr.read_metrics(tr.open_run(run))
    suffix = out.suffix[1:].lower() if out is not None and not out.is_dir() else ""
    if form == "term" and out is not None:
        raise click.UsageError(f"--out {out}: expected a --format to write (png, svg, pdf), got term")
    chosen = form or suffix or ("png" if out is not None else "term")
    if suffix and len(wanted) > 1:
        raise click.UsageError(
            f"--out {out}: expected a folder for {len(wanted)} pictures, got a file; give one --what"
        )
    if form not in (None, "term") and suffix and form != suffix:
        raise click.UsageError(f"--out {out}: expected a name that ends in .{form}, as --format says")
    for word in wanted:
        if chosen == "term":
            _in_terminal(word, records, run)
        else:
            folder = out if out is not None and not suffix else run
            path = out if out is not None and suffix else folder / f"{word}.{chosen}"
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
            tr.save_figure(_figure(word, records, run), path)
            emit(str(path))


def _figure(what: str, records: list[dict[str, Any]], run: Path) -> Figure:
    if what == "loss":
        return tr.loss_figure(records, title=str(run))
    report = _report(records, run)
    return tr.gradnorm_figure([report], judged(report), title=str(run))


def _in_terminal(what: str, records: list[dict[str, Any]], run: Path) -> None:
    if what == "grads":
        draw([_report(records, run)])
        return
    curves = loss_curves(records)
    if not curves:
        raise tr.InputError(f"run {run}: expected metrics with a loss, got none; train at least one step")
    last = max(int(record["step"]) for record in records if record.get("kind") in ("step", "val"))
    draw_curves(curves, log=False, ylabel="loss (nats per symbol)", xlabel="step", x=(1.0, float(max(last, 2))))


def loss_curves(records: list[dict[str, Any]]) -> list[tuple[str, list[float | None]]]:
    """Training and validation loss at every step from 1 to the last; None where a loss was not measured.

    Between two validations stands the straight line that a plot in a file draws, too.
    """
    train = {int(r["step"]): float(r["loss"]) for r in records if r.get("kind") == "step" and r.get("loss") is not None}
    val = {int(r["step"]): float(r["loss"]) for r in records if r.get("kind") == "val" and r.get("loss") is not None}
    last = max([*train, *val], default=0)
    curves: list[tuple[str, list[float | None]]] = []
    if train:
        curves.append(("training", [train.get(step) for step in range(1, last + 1)]))
    if val:
        held: list[float | None] = [val.get(step) for step in range(1, last + 1)]
        measured = sorted(val)
        for left, right in itertools.pairwise(measured):
            for step in range(left + 1, right):
                part = (step - left) / (right - left)
                held[step - 1] = (1 - part) * val[left] + part * val[right]
        curves.append(("validation", held))
    return curves


def _report(records: list[dict[str, Any]], run: Path) -> GradNormReport:
    watched = [record for record in records if record.get("kind") == "watch"]
    if not watched:
        raise tr.InputError(
            f"run {run}: no gradient norms were watched while it trained; train with --watch grads:100, or "
            f"measure now with: diagnose gradnorm {run}"
        )
    last = watched[-1]
    note(f"gradient norms of step {last['step']}, the last of {len(watched)} that were written")
    names = {"cell", "layers", "hidden", "steps", "series", "params"}
    report = tr.GradNormReport.from_json({key: value for key, value in last.items() if key in names})
    return dataclasses.replace(report, cell=report.cell or run.name)
