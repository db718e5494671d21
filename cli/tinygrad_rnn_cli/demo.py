"""``demo``: the whole story in some 15 seconds."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import emit, note, number, paint, seconds, table, wrapped
from tinygrad_rnn_cli.options import Command, Flag, common, resolve, settings

if TYPE_CHECKING:
    from tinygrad_rnn import Dataset, GradNormReport, GradNormSeries, Model, RunConfig, Trainer

CELLS = ("rnn", "lstm")
OUT = Path("runs/demo")
# Small enough for a minute on two cores, large enough to write words.
SETTINGS: dict[str, Any] = {
    "model.hidden": 100, "model.layers": 1, "data.seq_len": 50, "data.batch": 32, "data.val_frac": 0.02,
    "optim.lr": 6e-3, "train.eval_every": 0, "train.save_every": 0,
}  # fmt: skip
# As many as a slow machine can do in the time, and no more than shows the point: so that most machines tell one story.
FEWEST_STEPS, MOST_STEPS = 20, 500
PRIME, LENGTH, TEMPERATURE = "The ", 240, 0.6


@click.command("demo", cls=Command)
@click.option(
    "--out",
    cls=Flag,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    shown=str(OUT),
    help="where the two runs and the picture go",
)
@click.option(
    "--seconds",
    "budget",
    type=click.FloatRange(1),
    default=18,
    show_default=True,
    metavar="X",
    help="training time per model",
)
@click.option("--overwrite", is_flag=True, help="replace the runs of an earlier demo in --out")
@settings()
@common("seed", "device")
def demo(out: Path | None, budget: float, overwrite: bool) -> None:
    """Train a simple RNN and an LSTM for half a minute, let both write, and see how far back their gradients reach.

    Both do the same number of steps. Reads the text that every Python brings along (the topics of its help()), so it
    needs no file and no network.
    """
    found = resolve()
    folder = out or OUT
    overwrite |= out is None  # the default folder belongs to the demo
    base = tr.replace_config(found.run, SETTINGS)
    dataset = _text(base)
    _title("1. A text")
    emit(
        f"{dataset.source}: {number(dataset.characters)} characters, {number(dataset.vocabulary.size)} different ones. "
        f"A model that guesses blindly pays ln {dataset.vocabulary.size} = {math.log(dataset.vocabulary.size):.2f} "
        "nats per character."
    )
    emit(f"It begins: {_excerpt(dataset)}")
    reports: list[GradNormReport] = []
    rows = []
    configs = {cell: tr.replace_config(base, {"model.cell": cell}) for cell in CELLS}
    paces = {cell: seconds_per_step(config, dataset) for cell, config in configs.items()}
    steps = affordable_steps(max(paces.values()), budget)  # the same for both, or they could not be compared
    for index, (cell, config) in enumerate(configs.items(), start=2):
        duration = seconds(steps * paces[cell])
        _title(f"{index}. Train {_article(cell)} {cell}: {number(steps)} steps, about {duration}")
        trainer = tr.start_training(
            tr.replace_config(config, {"train.steps": steps}), dataset, folder / cell, overwrite=overwrite
        )
        before = measure(trainer.model, trainer, dataset, f"{cell}, new")
        from tinygrad_rnn_cli.progress import follow

        finished = follow(trainer, limit=4 * budget)
        if finished.step < steps:
            note(f"note: others use this machine; {finished.step} of {steps} steps were done in the time")
        steps = finished.step
        after = measure(trainer.model, trainer, dataset, f"{cell}, trained")
        reports += [before, after]
        loss = finished.best_loss
        held = f"validation loss {loss:.2f} nats per character; " if loss is not None else ""
        emit(f"{number(finished.step)} steps later: {held}it writes:")
        emit()
        for line in write(trainer, dataset).split("\n"):
            emit(f"    {line}")
        rows += [_row(before), _row(after)]
    _title(f"{len(CELLS) + 2}. How far back does the loss at the LAST character reach?")
    from tinygrad_rnn_cli.gradnorm import draw

    draw(reports, training=False)
    emit()
    table(["model", "state", "share", "horizon", "verdict"], rows, numbers=[2, 3])
    lag = base.data.seq_len - 1
    emit(
        wrapped(
            f"share: how much of the gradient is left {lag} characters back, at c for the lstm, which is its memory; "
            "horizon: for how many characters more than a thousandth is left, '-' if to the end. A gradient is weak "
            "below a share of 0.1, vanishing below 0.001. What it does not reach is not learnt."
        )
    )
    emit(_comparison(reports))
    picture = tr.save_figure(tr.gradnorm_figure(reports, training=False), folder / "gradnorm.png")
    emit(f"picture: {picture}")
    _title("Next")
    for command, why in [
        (f"sample {folder / 'lstm'} -n 1000 -t 0.8", "more text"),
        (f"resume {folder / 'lstm'} --steps 5000", "train on: it gets much better"),
        ("diagnose gradnorm --cell rnn --cell lstm --cell mut1 --steps 200", "compare cells before training"),
        ("train my.txt --cell gru", "your own text"),
        ("cells list", "what else there is"),
    ]:
        emit(f"  tinygrad-rnn {command}   # {why}")


def _title(text: str) -> None:
    emit("\n" + paint(text, sys.stdout, bold=True))


def _article(cell: str) -> str:
    return "an" if cell[0] in "aeflmnr" else "a"  # these are spelled letter by letter


def _text(config: RunConfig) -> Dataset:
    try:
        return tr.load_dataset(config.data)
    except tr.DataError as error:
        if config.data.corpus == "hello":
            raise
        note(f"note: {error}; the demo uses the corpus hello instead")
        return tr.load_dataset(dataclasses.replace(config.data, corpus="hello", text=()))


def _excerpt(dataset: Dataset) -> str:
    words = " ".join(dataset.vocabulary.decode(dataset.train[2000:2400]).split())
    return f'"... {words[:200]} ..."'


def seconds_per_step(config: RunConfig, dataset: Dataset) -> float:
    """How long an update takes on this machine, by a probe of ten."""
    return max(tr.plan(config, dataset, probe=10).seconds_per_step, 1e-6)


def affordable_steps(per_step: float, budget: float) -> int:
    """How many updates fit into `budget` seconds."""
    return max(FEWEST_STEPS, min(MOST_STEPS, int(budget / per_step)))


def measure(model: Model, trainer: Trainer, dataset: Dataset, name: str) -> GradNormReport:
    """The gradient norms of the loss at the last step, over four batches of the validation text."""
    streams = tr.fitted_streams(dataset.val, trainer.config.data.batch, trainer.config.data.seq_len)
    batches = [tuple(tr.from_host(part, trainer.device.xp) for part in streams[k]) for k in range(min(4, len(streams)))]
    report = tr.gradnorm_over(model, trainer.params, [(x, y) for x, y in batches], carry=True, losses=("last",))
    return dataclasses.replace(report, cell=name)


def _judged(report: GradNormReport) -> GradNormSeries:
    """The curve that the verdict goes by."""
    return report.judged("last")[-1]


def _row(report: GradNormReport) -> list[str]:
    series = _judged(report)
    horizon = "-" if series.horizon is None else str(series.horizon)
    return [report.cell, series.state, tr.share_text(series), horizon, series.verdict]


def _comparison(reports: Sequence[GradNormReport]) -> str:
    """The shares of the two trained models in words, as they were measured."""
    rnn, lstm = (_judged(report).share for report in reports[1::2])
    if not rnn or not lstm:
        return "The trained rnn keeps nothing of it that can be measured."
    ratio = float(f"{lstm / rnn:.2g}")
    times = number(int(ratio)) if 10 <= ratio < 1e9 else f"{ratio:g}"
    return f"The trained lstm keeps {times} times the share of the trained rnn."


def write(trainer: Trainer, dataset: Dataset) -> str:
    """A sample of the model as it stands."""
    import numpy as np

    known = PRIME if set(PRIME) <= set(dataset.vocabulary.symbols) else ""
    options = tr.SampleConfig(length=LENGTH, temperature=TEMPERATURE, prime=known)
    rng = np.random.default_rng(trainer.config.train.seed)
    pieces = tr.generate(trainer.model, trainer.params, dataset.vocabulary, options, rng)
    return "".join(piece for (piece,) in pieces)
