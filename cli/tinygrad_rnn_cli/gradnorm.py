"""``diagnose gradnorm``: gradient norms per timestep, of a trained run or of new cells."""

from __future__ import annotations

import csv
import dataclasses
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

import tinygrad_rnn as tr
from tinygrad_rnn_cli.cells import complete_cell
from tinygrad_rnn_cli.console import (
    aside,
    counted,
    emit,
    emit_json,
    fail,
    is_terminal,
    note,
    number,
    paint,
    table,
    wrapped,
)
from tinygrad_rnn_cli.drawing import draw_curves
from tinygrad_rnn_cli.main import CHECK_FAILED
from tinygrad_rnn_cli.options import (
    Command,
    Flag,
    Settings,
    common,
    given,
    load_run,
    refuse_idle,
    resolve,
    settings,
    which_checkpoint,
    written,
)
from tinygrad_rnn_cli.texts import symbols_to_look_at

if TYPE_CHECKING:
    from tinygrad_rnn import GradNormReport, GradNormSeries, Model

BATCHES = 8  # so many that the range of the share of a new cell is narrow, in about a second
BATCHES_OF_RUN = 16  # a trained model keeps much more in some sequences than in most
V = 65  # symbols of a cell at initialisation, as many as tinyshakespeare has
VERDICTS = {"vanish": "vanishing", "explode": "exploding"}
TITLE = "Gradient norms per timestep"
TRAP = (
    "Mind the trap: the training loss has a term at every step, which feeds gradient into every state directly. Its\n"
    "curve looks healthy even where nothing flows back through time. Judge by the loss at the last step."
)


@click.command("gradnorm", cls=Command)
@click.argument("run", required=False, type=click.Path(path_type=Path), metavar="[RUN]")
@click.option(
    "--cell",
    "names",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_cell,
    help="a new cell at initialisation instead of a trained RUN; repeat it to compare several, or one with several "
    "--cell-opt",
)
@click.option(
    "--cell-opt",
    "pairs",
    multiple=True,
    metavar="[CELL.]KEY=VALUE",
    help="an option of the cell, as in activation=identity; of one among several: rnn.activation=identity; where one "
    "--cell stands more than once, of the one before it, and before the first --cell, of all",
)
@click.option(
    "--steps",
    cls=Flag,
    type=click.IntRange(1),
    metavar="T",
    shown="50, or the RUN's --seq-len",
    help="timesteps to unroll and to send the gradient back through",
)
@click.option(
    "--loss",
    "losses",
    cls=Flag,
    metavar="last,train,step:K",
    shown="last,train",
    help="whose gradient: of the loss at the last step, of the mean over all steps, of step K (from 0) alone",
)
@click.option(
    "--wrt",
    cls=Flag,
    metavar="states,inputs,params",
    shown="states",
    help="with respect to what: every state, the inputs, or (one number each) the parameters",
)
@click.option(
    "--batches",
    cls=Flag,
    type=click.IntRange(1),
    metavar="N",
    shown=f"{BATCHES}; of a RUN {BATCHES_OF_RUN}, or as many as its text has",
    help="batches to average over (root mean square)",
)
@click.option(
    "--lag",
    cls=Flag,
    type=click.IntRange(1),
    metavar="K",
    shown="T - 1",
    help="judge by the share of the gradient that is left K steps back from the loss",
)
@click.option(
    "--horizon-eps",
    cls=Flag,
    type=float,
    metavar="X",
    shown="0.001",
    help="the horizon is where the norm falls below this share of its value at the last step",
)
@click.option("--text", type=click.Path(), metavar="FILE", help="for a RUN: another text than its own validation part")
@which_checkpoint
@click.option(
    "--plot",
    "picture",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="draw into a .png, .svg or .pdf file",
)
@click.option(
    "--csv",
    "numbers",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="write every norm into a table",
)
@click.option("--json", "as_json", is_flag=True, help='print one JSON object, or {"reports": [...]} for several cells')
@click.option(
    "--fail-on",
    metavar="vanish,explode",
    default="",
    help="exit with code 3 if a series (of any loss but the training loss) is vanishing, or exploding",
)
@settings(
    "model.wrap",
    "model.hidden",
    "model.layers",
    "model.embed",
    "model.tie",
    "model.init",
    "model.init_bias",
    "data.batch",
)
@common("config", "seed", "device", "dtype", "plugin")
def gradnorm(
    run: Path | None,
    names: tuple[str, ...],
    pairs: tuple[str, ...],
    steps: int | None,
    losses: str | None,
    wrt: str | None,
    batches: int | None,
    lag: int | None,
    horizon_eps: float | None,
    text: str | None,
    which: str,
    allow_changed_cell: bool,
    picture: Path | None,
    numbers: Path | None,
    as_json: bool,
    fail_on: str,
) -> None:
    """Gradient norms per timestep, of a trained RUN or of new cells.

    For every layer and state: ||dL/ds_t|| at each timestep t, the share of it that is left --lag K steps back from the
    loss, beside that of a plain rnn of the same size, and a verdict by that share: below 0.001 vanishing, below 0.1
    weak, above 10 exploding, otherwise healthy. Also its slope (nats per step BACK in time) and its horizon (for how
    many steps back more than a thousandth is left).

    \b
    tinygrad-rnn diagnose gradnorm --cell rnn --cell lstm --cell mut1
    tinygrad-rnn diagnose gradnorm runs/lstm-python-docs-1 --steps 200 --plot grads.png
    """
    if (run is None) == (not names):
        raise click.UsageError(
            "expected a RUN folder or --cell NAME, "
            + ("got none of them" if run is None else "got both; give one of them")
        )
    if run is None:
        for name in ("which", "allow_changed_cell"):
            if click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(
                    f"--{name.replace('_', '-')}: a new cell has no checkpoint; name a RUN to choose one"
                )
    forbidden = _wanted_verdicts(fail_on)
    for flag, value in (("--loss", losses), ("--wrt", wrt)):
        if value is not None and not _words(value):
            raise click.UsageError(f"{flag}: expected at least one of its choices, got {value!r}")
    if forbidden and losses is not None and set(_words(losses)) == {"train"}:
        raise click.UsageError(
            "--fail-on: the training loss looks healthy even when a network vanishes; give --loss last, or last,train"
        )
    if wrt is not None and set(_words(wrt)) == {"params"}:
        if forbidden:
            raise click.UsageError("--fail-on: parameters have one norm each, and no verdict; add states to --wrt")
        curves = written("losses", "lag", "horizon_eps", "picture", "numbers")
        refuse_idle(curves, "with --wrt params: they have one norm each, of the training loss; add states to --wrt")
    for path in (picture, numbers):
        if path is not None and not path.absolute().parent.is_dir():
            raise tr.FileError(f"{path}: expected an existing folder, got {path.parent}; make it first")
    choice: dict[str, Any] = {}
    if losses is not None:
        choice["losses"] = _words(losses)
    if wrt is not None:
        choice["wrt"] = _words(wrt)
    if horizon_eps is not None:
        choice["horizon_eps"] = horizon_eps
    if lag is not None:
        choice["lag"] = lag
    with aside():
        if run is not None:
            if pairs:
                raise click.UsageError("--cell-opt: the RUN has settled it; use --cell NAME for a new cell")
            reports = [_of_run(run, steps, batches, text, which, allow_changed_cell, choice)]
        else:
            if text is not None:
                raise click.UsageError("--text: a new cell gets random symbols; name a RUN to use a text")
            reports = _of_cells(names, pairs, steps, batches, choice)
    if numbers is not None:
        write_csv(numbers, reports)
    if picture is not None:
        tr.save_figure(tr.gradnorm_figure(reports, judged(reports[0])), picture)
    if as_json:
        emit_json(reports[0].to_json() if len(reports) == 1 else {"reports": [report.to_json() for report in reports]})
    else:
        show(reports)
    others = dict.fromkeys(s.loss for s in reports[0].series if s.loss not in ("train", judged(reports[0])))
    if others and (picture is not None or not as_json):
        note(f"note: the curves are those of the loss {judged(reports[0])}, not of {', '.join(others)}")
    for path in (picture, numbers):
        if path is not None:
            note(f"wrote {path}")
    _check(reports, forbidden)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _wanted_verdicts(text: str) -> set[str]:
    for word in _words(text):
        if word not in VERDICTS:
            raise click.UsageError(f"--fail-on: {word!r} is not one of its choices{tr.nearest(word, VERDICTS)}")
    return {VERDICTS[word] for word in _words(text)}


def _check(reports: Sequence[GradNormReport], forbidden: set[str]) -> None:
    bad = [
        f"{report.cell} layer {s.layer} {s.state}, loss {s.loss}: {s.reason}"
        for report in reports
        for s in report.series
        if s.verdict in forbidden and s.loss != "train"
    ]
    if bad:
        fail(f"--fail-on: {bad[0]}" + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""))
        click.get_current_context().exit(CHECK_FAILED)


# ----------------------------------------------------------------------------------------- measurement


def _of_run(
    run: Path,
    steps: int | None,
    batches: int | None,
    text: str | None,
    which: str,
    allow_changed_cell: bool,
    choice: dict[str, Any],
) -> GradNormReport:
    base = tr.run_config(tr.open_run(run))
    found = resolve(base=base, origin=f"run {run}")
    changed = [key for key in found.origins if key.startswith("model.") and found.origins[key] != f"run {run}"]
    if changed:
        raise click.UsageError(f"{found.origins[changed[0]]}: the RUN has settled it; use --cell NAME for a new cell")
    loaded = load_run(run, which, allow_changed_cell, found)
    ids = symbols_to_look_at(loaded, run, text)
    streams = tr.fitted_streams(ids, found.run.data.batch, steps or base.data.seq_len)
    if steps and streams.seq_len < steps:
        raise tr.DataError(
            f"--steps {steps}: expected a text of more than {steps} symbols, got {len(ids)}; lower it, or "
            "give a longer --text"
        )
    _check_lag(choice, streams.seq_len)
    if batches is not None and batches > len(streams):
        raise tr.DataError(
            f"--batches {batches}: the text has {len(streams)} of {streams.batch} x {streams.seq_len} "
            "symbols; lower it, --batch or --steps"
        )
    device = tr.select_device(found.run.train.device)
    params = {
        name: tr.Tensor(value.data.astype(found.run.train.dtype, copy=False), requires_grad=value.requires_grad)
        for name, value in loaded.params.items()
    }
    pieces = _placed([streams[k] for k in range(batches or min(BATCHES_OF_RUN, len(streams)))], device)
    report = tr.gradnorm_over(loaded.model, params, pieces, carry=True, **choice)
    rnn = tr.gradnorm_over(*_new_rnn(loaded.model, found, device), pieces, carry=True, **choice)
    return tr.beside_rnn(report, rnn)


def _of_cells(
    names: Sequence[str], pairs: Sequence[str], steps: int | None, batches: int | None, choice: dict[str, Any]
) -> list[GradNormReport]:
    import numpy as np

    found = resolve()
    T, B = steps or found.run.data.seq_len, found.run.data.batch
    _check_lag(choice, T)
    settings = _cells_with_options(names, pairs)
    models = [_new_model(found, name, options) for name, options in settings]
    device = tr.select_device(found.run.train.device)
    rng = np.random.default_rng([found.run.train.seed, 1])
    drawn = [(rng.integers(0, V, (T, B)), rng.integers(0, V, (T, B))) for _ in range(batches or BATCHES)]
    pieces = _placed(drawn, device)
    rnn = tr.gradnorm_over(*_new_rnn(models[0], found, device), pieces, **choice)
    reports = []
    for model, (name, options) in zip(models, settings, strict=True):
        report = tr.beside_rnn(tr.gradnorm_over(model, _params(model, found, device), pieces, **choice), rnn)
        if names.count(name) > 1:
            words = [name, *(f"{key}={value}" for key, value in options.items())]
            report = dataclasses.replace(report, cell=" ".join(words))
        reports.append(report)
    return reports


def _check_lag(choice: dict[str, Any], T: int) -> None:
    if choice.get("lag", 0) >= T:
        raise click.UsageError(
            f"--lag {choice['lag']}: expected at most {T - 1} steps back, for {counted(T, 'step')}; "
            "lower it, or raise --steps"
        )


def _new_rnn(model: Model, found: Settings, device: tr.Device) -> tuple[Model, dict[str, tr.Tensor]]:
    rnn = tr.rnn_like(model)
    return rnn, _params(rnn, found, device)


def _params(model: Model, found: Settings, device: tr.Device) -> dict[str, tr.Tensor]:
    import numpy as np

    return model.init(np.random.default_rng([found.run.train.seed, 0]), found.run.train.dtype, device.xp)


def _placed(pieces: Sequence[tuple[Any, Any]], device: tr.Device) -> list[tuple[Any, Any]]:
    return [(tr.from_host(x, device.xp), tr.from_host(y, device.xp)) for x, y in pieces]


def _new_model(found: Settings, name: str, options: dict[str, str]) -> Model:
    entry = tr.find_cell(name, plugins=given().plugins, third_party=found.third_party)
    config = dataclasses.replace(found.run.model, cell=name, cell_options=options)
    return tr.build_model(config, V, entry)


def _cells_with_options(names: Sequence[str], pairs: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Every --cell with its options: those with its name, and those without any, which belong to all cells, or to the
    --cell before them where one is named more than once.
    """
    cells: list[tuple[str, dict[str, str]]] = [(name, {}) for name in names]
    places = _places() if len(set(names)) < len(names) else [None] * len(pairs)
    for pair, place in zip(pairs, places, strict=True):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise click.UsageError(f"--cell-opt: expected [CELL.]KEY=VALUE, got {pair!r}")
        owner, dot, rest = key.strip().rpartition(".")
        if dot and owner not in names:
            raise click.UsageError(f"--cell-opt {pair}: no --cell {owner!r} here{tr.nearest(owner, names)}")
        for index, (name, options) in enumerate(cells):
            if owner == name if dot else place in (None, index):
                options[rest.replace("-", "_")] = value.strip()
    for index, cell in enumerate(cells):
        if cell in cells[:index]:
            raise click.UsageError(f"--cell {cell[0]}: expected other options than before; give --cell-opt after each")
    return cells


def _places() -> list[int | None]:
    """For each --cell-opt the number of the --cell before it; None before the first one."""
    places: list[int | None] = []
    at = None
    for param in given().order:
        if param.name == "names":
            at = 0 if at is None else at + 1
        elif param.name == "pairs":
            places.append(at)
    return places


# ---------------------------------------------------------------------------------------------- output


def judged(report: GradNormReport) -> str:
    """The loss to judge by: that of the last step, else of the first step asked for, else the training loss."""
    losses = [series.loss for series in report.series]
    return min(losses, key=lambda loss: (loss != "last", loss == "train"), default="last")


def write_csv(path: Path, reports: Sequence[GradNormReport]) -> None:
    """One row per cell, loss, layer, state and timestep."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["cell", "loss", "layer", "state", "t", "norm"])
        for report in reports:
            for series in report.series:
                writer.writerows(
                    [report.cell, series.loss, series.layer, series.state, t, repr(norm)]
                    for t, norm in enumerate(series.norm)
                )


def show(reports: Sequence[GradNormReport]) -> None:
    """The plot, the table, the verdicts in words, and the trap."""
    first = reports[0]
    several = len(reports) > 1
    emit(
        wrapped(
            f"{TITLE}: {', '.join(report.cell for report in reports)}; {counted(first.layers, 'layer')} "
            f"of {number(first.hidden)} units, {counted(first.steps, 'step')}"
        ).replace(TITLE, paint(TITLE, sys.stdout, bold=True))
    )
    if any(report.series for report in reports):
        emit()
        draw(reports)
        emit()
        rows: list[list[str]] = []
        red: list[int] = []
        for report in reports:
            for s in report.series:
                if s.verdict in VERDICTS.values() and s.loss != "train":
                    red.append(len(rows))
                rows.append(
                    [
                        report.cell,
                        s.loss,
                        str(s.layer),
                        s.state,
                        f"{s.slope:+.4f}" if _fitted(s) else "-",
                        "-" if s.horizon is None else str(s.horizon),
                        tr.share_text(s),
                        tr.rnn_share_text(s),
                        s.verdict + (f" (as {s.by})" if s.by != s.state else ""),
                    ]
                )
        headers = ["cell", "loss", "layer", "state", "slope", "horizon", "share", "of rnn", "verdict"]
        if is_terminal(sys.stdout) and shutil.get_terminal_size().columns < 90:  # too narrow for all of them
            rows = [[" ".join(row[:4]), row[6], row[7], row[8]] for row in rows]
            table(["series", "share", "of rnn", "verdict"], rows, numbers=[1, 2], red=red)
            emit(wrapped("series: cell, loss, layer, state; slope and horizon: in a wider window"))
        else:
            table(headers, rows, numbers=[2, 4, 5, 6, 7], red=red)
        emit(
            wrapped(
                f"slope: nats per step back in time; horizon: for how many steps back more than "
                f"{_horizon_eps(reports):g} of the norm at the loss is left, '-' if to the end; share: what is left "
                f"{_lags(first)}; of rnn: what a plain new rnn of that size keeps"
            )
        )
        emit()
        for report in reports:
            for s in _worth_words(report, several):
                emit(wrapped(f"{report.cell}, layer {s.layer}, state {s.state}: {s.reason}"))
            if report.advice:
                emit(wrapped(f"{report.cell}: {report.advice}"))
    if any(s.loss == "train" for report in reports for s in report.series):
        emit()
        emit(wrapped(TRAP))
    for report in reports:
        if report.params:
            emit()
            table(
                [f"parameter of {report.cell}", "gradient norm of the training loss"],
                [[name, f"{norm:.4g}"] for name, norm in report.params.items()],
                numbers=[1],
            )


def _lags(report: GradNormReport) -> str:
    """How far back the shares are taken; a loss before the last step has fewer steps behind it."""
    lags = {s.loss: s.lag for s in report.series}
    usual = max(lags.values())
    others = "".join(f", {lag} for {loss}" for loss, lag in lags.items() if lag != usual)
    return f"{counted(usual, 'step')} back{others}"


def _horizon_eps(reports: Sequence[GradNormReport]) -> float:
    return next(float(s.numbers["horizon_eps"] or 0.0) for report in reports for s in report.series)


def _worth_words(report: GradNormReport, several: bool) -> list[GradNormSeries]:
    return [s for s in report.judged(judged(report)) if not several or report.topmost(s)]


def draw(reports: Sequence[GradNormReport], height: int = 16, training: bool = True) -> None:
    """The curves in the terminal: every layer and state of one model; of several, those of the top layer that the
    verdicts go by."""
    curves = plot_curves(reports, training)
    last = max(len(values) for _, values in curves) - 1
    loss = judged(reports[0])
    at = next(series.at for series in reports[0].select(loss=loss))
    draw_curves(
        curves,
        log=True,
        ylabel="||dL/ds_t||",
        xlabel=f"timestep t (the loss is at {'the right end' if at == last else f't = {at}'})",
        x=(0.0, float(last)),
        height=height,
    )


Curve = tuple[str, tuple[float | None, ...]]


def plot_curves(reports: Sequence[GradNormReport], training: bool = True) -> list[Curve]:
    """(label, norms) of the curves that are worth drawing together, all of one length: None behind their loss."""
    curves: list[Curve] = []
    for report in reports:
        loss = judged(report)
        for s in report.select(loss=loss) if len(reports) == 1 else report.judged(loss):
            if len(reports) > 1 and not report.topmost(s):
                continue
            name = f"{report.cell} {s.state}" + (f" layer {s.layer}" if report.layers > 1 and len(reports) == 1 else "")
            curves.append((name, s.norm[: s.at + 1]))
        by = {(s.layer, s.by) for s in report.select(loss=loss)}
        trained = [s for s in report.select(loss="train") if report.topmost(s) and (s.layer, s.state) in by]
        first = report is reports[0]  # one curve shows the trap; one for each of several cells would hide the others
        if training and first and loss != "train" and trained:
            curves.append((f"{report.cell} {trained[0].state}, training loss", trained[0].norm))
    longest = max((len(norm) for _, norm in curves), default=0)
    return [(name, norm + (None,) * (longest - len(norm))) for name, norm in curves]


def _fitted(series: GradNormSeries) -> bool:
    """Whether there was a slope to fit: a line needs two points."""
    return sum(0.0 < norm < math.inf for norm in series.norm[: series.at + 1]) > 1
