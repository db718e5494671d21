"""``plot``: curves of runs after the fact."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
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

WHAT = ("loss", "norm", "grads")


@click.command("plot", cls=Command)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--what",
    default="loss",
    show_default=True,
    metavar="loss,norm,grads",
    help="loss: training and validation loss; norm: the norm of the whole gradient at every step, before and after "
    "clipping; grads: norms per timestep that train --watch grads wrote",
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
    help="where to write pictures  [default: the run folder; this folder for several RUNs]",
)
@common()
def plot(runs: tuple[Path, ...], what: str, form: str | None, out: Path | None) -> None:
    """Draw the loss, or the gradient norms, of a RUN, or of several in one picture.

    \b
    tinygrad-rnn plot runs/lstm runs/gru --out compared.png
    tinygrad-rnn plot runs/lstm --what norm
    """
    wanted = [word.strip() for word in what.split(",") if word.strip()]
    for word in wanted:
        if word not in WHAT:
            raise click.UsageError(f"--what: {word!r} is not one of its choices{tr.nearest(word, WHAT)}")
    if not wanted:
        raise click.UsageError(f"--what: expected {', '.join(WHAT)}, got nothing")
    runs = tuple(dict.fromkeys(runs))
    records = dict(zip(_labels(runs), [tr.read_metrics(tr.open_run(run)) for run in runs], strict=True))
    title = ", ".join(map(str, runs))
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
            _in_terminal(word, records, runs)
        else:
            folder = out if out is not None and not suffix else runs[0] if len(runs) == 1 else Path()
            path = out if out is not None and suffix else folder / f"{word}.{chosen}"
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
            tr.save_figure(_figure(word, records, runs, title), path)
            emit(str(path))


def _labels(runs: Sequence[Path]) -> list[str]:
    """A name for each run: that of its folder where these differ."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


Records = dict[str, list[dict[str, Any]]]


def _figure(what: str, records: Records, runs: Sequence[Path], title: str) -> Figure:
    if what == "loss":
        return tr.loss_figure(records, title=title)
    if what == "norm":
        return tr.norm_figure(records, title=title)
    reports = _reports(records, runs)
    return tr.gradnorm_figure(reports, judged(reports[0]), title=title)


def _in_terminal(what: str, records: Records, runs: Sequence[Path]) -> None:
    if what == "grads":
        draw(_reports(records, runs))
        return
    measured = loss_curves if what == "loss" else norm_curves
    curves = []
    for name, kept in records.items():
        curves += [(f"{name}, {label}" if len(runs) > 1 else label, values) for label, values in measured(kept)]
    if not curves:
        what = "loss" if what == "loss" else "gradient norm"
        told = ", ".join(map(str, runs))
        raise tr.InputError(f"run {told}: expected metrics with a {what}, got none; train at least one step")
    last = max(len(values) for _, values in curves)
    curves = [(label, [*values, *[None] * (last - len(values))]) for label, values in curves]
    ylabel = "loss (nats per symbol)" if what == "loss" else "norm of the gradient"
    draw_curves(curves, log=what != "loss", ylabel=ylabel, xlabel="step", x=(1.0, float(max(last, 2))))


Curves = list[tuple[str, list[float | None]]]


def _at_every_step(steps: Sequence[int], values: Sequence[float], last: int) -> list[float | None]:
    found: list[float | None] = [None] * last
    for step, value in zip(steps, values, strict=True):
        if math.isfinite(value):
            found[step - 1] = value
    return found


def loss_curves(records: list[dict[str, Any]]) -> Curves:
    """Training and validation loss at every step from 1 to the last; None where a loss was not measured.

    Between two validations stands the straight line that a plot in a file draws, too.
    """
    measured = {
        label: tr.recorded(records, kind, "loss") for label, kind in (("training", "step"), ("validation", "val"))
    }
    last = max([int(steps[-1]) for steps, _ in measured.values() if len(steps)], default=0)
    curves: Curves = []
    for label, (steps, values) in measured.items():
        if not len(steps):
            continue
        curve = _at_every_step(steps, values, last)
        if label == "validation":
            known = [step for step, value in enumerate(curve, start=1) if value is not None]
            for left, right in itertools.pairwise(known):
                a, b = curve[left - 1], curve[right - 1]
                assert a is not None and b is not None
                for step in range(left + 1, right):
                    part = (step - left) / (right - left)
                    curve[step - 1] = (1 - part) * a + part * b
        curves.append((label, curve))
    return curves


def norm_curves(records: list[dict[str, Any]]) -> Curves:
    """The gradient norm at every step, before and, where one was clipped, after clipping."""
    steps, before = tr.recorded(records, "step", "grad_norm")
    _, after = tr.recorded(records, "step", "clipped_norm")
    if not len(steps):
        return []
    curves: Curves = [("before clipping", _at_every_step(steps, before, int(steps[-1])))]
    if any(not a >= b for a, b in zip(after, before, strict=True)):
        curves.append(("after", _at_every_step(steps, after, int(steps[-1]))))
    return curves


def _reports(records: Records, runs: Sequence[Path]) -> list[GradNormReport]:
    """The last watched report of each run; of several each under its name."""
    reports = [_report(kept, run) for kept, run in zip(records.values(), runs, strict=True)]
    if len(runs) == 1:
        return reports
    return [dataclasses.replace(report, cell=name) for report, name in zip(reports, records, strict=True)]


def _report(records: list[dict[str, Any]], run: Path) -> GradNormReport:
    watched = [record for record in records if record.get("kind") == "watch"]
    if not watched:
        raise tr.InputError(
            f"run {run}: no gradient norms were watched while it trained; train with --watch grads:100, or "
            f"measure now with: diagnose gradnorm {run}"
        )
    last = watched[-1]
    note(f"run {run}: gradient norms of step {last['step']}, the last of {len(watched)} that were written")
    names = {"cell", "layers", "hidden", "steps", "series", "params"}
    report = tr.GradNormReport.from_json({key: value for key, value in last.items() if key in names})
    return dataclasses.replace(report, cell=report.cell or run.name)
