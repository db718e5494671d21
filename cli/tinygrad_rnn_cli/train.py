"""``train``: a model from text, into a run folder."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import aside, counted, detail, emit, memory, note, number, seconds, warn
from tinygrad_rnn_cli.options import (
    Command,
    Settings,
    check_effect,
    common,
    free_folder,
    old_names,
    refuse_idle,
    resolve,
    run_folder,
    settings,
    written,
)
from tinygrad_rnn_cli.texts import MANY, check_text_options, tell_files, text_size, warn_of_start

if TYPE_CHECKING:
    from tinygrad_rnn import Dataset, Finished, Plan

RUNS = Path("runs")


def _recipes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in tr.RECIPES if name.startswith(incomplete)]


@click.command("train", cls=Command)
@click.argument("text", nargs=-1, metavar="[TEXT]...")
@run_folder("runs/CELL-TEXT-1, -2, ...")
@click.option(
    "--recipe",
    metavar="|".join(tr.RECIPES),
    shell_complete=_recipes,
    help="published hyper-parameters, below the config file and above the defaults",
)
@click.option(
    "--init-from",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="take the weights of another run, with the model and tokens that they belong to (and nothing else; see "
    "resume); symbols that are new in the text get new rows",
)
@click.option("--plan", is_flag=True, help="print size, memory and time, measured over a few steps, and stop")
@settings("model.*", "data.*", "optim.*", "train.*")
@old_names("train")
@common("config", "seed", "device", "dtype", "plugin")
def train(
    text: tuple[str, ...], out: Path | None, overwrite: bool, recipe: str | None, init_from: Path | None, plan: bool
) -> None:
    """Train a model on TEXT: files, folders, or '-' for standard input; without TEXT, on the corpus --corpus.

    A folder stands for its .txt files at any depth, or for all its files where it has none. Files named .gz, .bz2, .xz
    or .zst are decompressed.

    Prints the run folder on stdout; progress goes to stderr. Ctrl-C saves a checkpoint and stops. The flags of char-rnn
    and torch-rnn (-rnn_size 128) are understood.

    \b
    tinygrad-rnn train my.txt --cell gru --hidden 256
    tinygrad-rnn train --recipe char-rnn my.txt
    """
    found = resolve(recipe=recipe, init_from=init_from, text=text)
    check_text_options(found)
    out = out or (Path(found.extras["out"]) if "out" in found.extras else None)
    init_from = init_from or (Path(found.extras["init_from"]) if "init_from" in found.extras else None)
    if out is None:
        refuse_idle(written("overwrite"), "without --out: the default folder is a new one")
    _refuse_idle(found)
    with aside():
        _check_plugins(found)
        found = check_effect(found)
        dataset, piped = load_text(found, init_from)
        warn_of_unknown(dataset)
        if init_from is None:  # else its vocabulary is that of the other run
            _tell_leak(dataset, found)
        if init_from is not None and dataset.vocabulary == tr.run_vocabulary(tr.open_run(init_from)):
            for key in ("model.init", "model.init_bias"):  # new symbols would have new rows
                refuse_idle(found.written(key), "beside --init-from, which sets every weight")
        planned = tr.plan(found.run, dataset, plugins=found.plugins, third_party=found.third_party) if plan else None
    if planned is not None:
        _tell_idle(found, dataset, planned.steps)
        for remark in planned.remarks:
            warn(remark)
        show_plan(planned, found, dataset)
        return
    folder = out or free_folder(RUNS, f"{found.run.model.cell}-{text_name(found)}")
    with aside():
        trainer = tr.start_training(
            kept_paths(found.run),
            dataset,
            folder,
            overwrite=overwrite,
            init_from=init_from,
            plugins=[Path(path) for path in found.plugins],
            third_party=found.third_party,
            stdin_text=piped,
        )
    from tinygrad_rnn_cli.progress import follow

    note(f"{dataset.source} -> {folder}")
    _tell_idle(found, trainer.dataset, trainer.total)
    advise_size(trainer.model.count(), dataset)
    finished = follow(trainer)
    emit(str(finished.path))
    advise_next(finished)


def _check_plugins(found: Settings) -> None:
    """Find a wrong name or option of the cell, optimiser or callbacks before a large text is read."""
    entry = tr.find_cell(found.run.model.cell, plugins=found.plugins, third_party=found.third_party)
    tr.parse_options(entry.cls.Options, found.run.model.cell_options, f"cell {found.run.model.cell}")
    tr.build_optimizer(found.run.optim, third_party=found.third_party)
    for text in found.run.train.callbacks if found.run.train.callbacks != ("none",) else ():
        tr.load_plugin(tr.CALLBACKS, text.partition(":")[0], third_party=found.third_party)


def warn_of_unknown(dataset: Dataset) -> None:
    """Say how many symbols of the held-out parts are not scored, because the training part has none like them."""
    for part, count in zip(("validation", "test"), dataset.left_out[1:], strict=True):
        if count:
            occur = "occurs" if count == 1 else "occur"
            where = f"of the {part} part {occur} nowhere in the training part"
            warn(f"{counted(count, 'symbol')} {where}: {'it is' if count == 1 else 'they are'} left out")


def _tell_leak(dataset: Dataset, found: Settings) -> None:
    """Say how many symbols a vocabulary of the whole text has from the held-out parts alone, as the recipes' have."""
    if found.run.data.vocab_from == "text" and dataset.vocabulary.kind != "bytes":
        held_out = {*dataset.val.tolist(), *dataset.test.tolist()}
        if alone := len(held_out - set(dataset.train.tolist())):
            note(
                f"note: {number(alone)} of the {number(dataset.vocabulary.size)} symbols occur in the held-out parts "
                f"alone, and the model knows them from there: --vocab-from text ({found.origins['data.vocab_from']})"
            )


def _refuse_idle(found: Settings) -> None:
    """Refuse options of the command line that do nothing beside the other settings."""
    train = found.run.train
    if found.written("train.steps") and train.steps:
        refuse_idle(found.written("train.epochs"), "beside --steps; give one of them")
    if train.eval_every and not found.run.data.val_frac:
        refuse_idle(found.written("train.eval_every"), "with --val-frac 0: no text is held out to validate on")


def _tell_idle(found: Settings, dataset: Dataset, total: int) -> None:
    """Say which options of the command line come to nothing because the run has so few steps in `total`."""
    train = found.run.train
    intervals = {
        "train.eval_every": (train.eval_every, "validates at its end only"),
        "train.save_every": (train.save_every, "saves at its start and end only"),
        "train.sample_every": (train.sample_every, "prints no sample"),
        "train.watch": (int(train.watch.partition(":")[2] or 1), "watches no step"),
    }
    for key, (every, what) in intervals.items():
        if every > total and found.written(key):
            value = tr.setting_as_words(key, tr.setting_of(found.run, key))
            note(f"note: {value} has no effect: the run of {counted(total, 'step')} {what}")
    intervals_saved = [every for every in (train.save_every, train.eval_every * (len(dataset.val) > 1)) if every]
    most = 2 + sum(total // every for every in intervals_saved)  # one before the first step, and the last
    if found.written("train.keep") and train.keep >= most:
        note(f"note: --keep {train.keep} has no effect: the run writes {number(most)} checkpoints at most")


def load_text(found: Settings, init_from: Path | None = None) -> tuple[Dataset, bytes | None]:
    """The data set, and what came from standard input, which the run keeps.

    Weights taken from a run know its symbols, so the text is read with its vocabulary, extended by what is new.
    """
    piped = None
    stdin: io.BytesIO | None = None
    if "-" in found.run.data.text:
        if len(found.run.data.text) > 1:
            raise click.UsageError(
                "TEXT: '-' must stand alone, because the run keeps what it reads; cat the files into it"
            )
        if sys.stdin.isatty():
            note("reading text from the terminal; end it with Ctrl-D")
        piped = sys.stdin.buffer.read()
        stdin = io.BytesIO(piped)
    vocabulary = tr.run_vocabulary(tr.open_run(init_from)) if init_from is not None else None
    dataset = tr.load_dataset(found.run.data, vocabulary, stdin, extend=True, third_party=found.third_party)
    if vocabulary is not None and (new := dataset.vocabulary.symbols[vocabulary.size :]):
        shown = ", ".join(map(repr, new[:MANY])) + (", ..." if len(new) > MANY else "")
        what = counted(len(new), "symbol")
        note(f"note: {what} of the text that {init_from} does not know ({shown}): new rows, drawn at random")
    detail(
        f"{dataset.source}: {text_size(dataset)}, {counted(dataset.vocabulary.size, 'symbol')}, sha256 "
        f"{dataset.sha256[:16]}"
    )
    tell_files(dataset, found.run.data)
    return dataset, piped


def kept_paths(config: tr.RunConfig) -> tr.RunConfig:
    """The configuration with absolute paths to the text, so that `resume` finds it from any folder."""
    paths = tuple(path if path == "-" else str(Path(path).absolute()) for path in config.data.text)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, text=paths))


def text_name(found: Settings) -> str:
    """A short name of the text for a folder: the corpus, the stem of the first file, or stdin."""
    if not found.run.data.text:
        return found.run.data.corpus
    first = found.run.data.text[0]
    if first == "-":
        return "stdin"
    path = Path(first).absolute()
    return (Path(path.stem).stem if path.suffix.lower() in tr.COMPRESSED else path.stem) or "text"


def show_plan(plan: Plan, found: Settings, dataset: Dataset) -> None:
    """What the run would cost, on stdout."""
    width = 8 if found.run.train.dtype == "float64" else 4
    for name, value in [
        ("parameters", f"{number(plan.params)} ({memory(plan.params * width)})"),
        ("text", text_size(dataset)),
        ("division", tr.describe_division(found.run, dataset, number)),
        ("steps", f"{number(plan.steps)} ({number(plan.steps_per_epoch)} per epoch)"),
        (
            "memory",
            f"{memory(plan.step_bytes)} for one step, {memory(plan.activation_bytes)} of them kept for its backward "
            f"pass; {memory(plan.weight_bytes)} for parameters, gradients and optimiser",
        ),
        (
            "speed",
            f"{plan.seconds_per_step * 1000:.1f} ms per step, "
            f"{number(round(found.run.data.batch * found.run.data.seq_len / plan.seconds_per_step))} char/s",
        ),
        ("time", f"about {seconds(plan.seconds)}, without validation"),
    ]:
        emit(f"{name:<12} {value}")


def advise_size(params: int, dataset: Dataset) -> None:
    """char-rnn's rule of thumb: parameters and characters should be of the same order of magnitude."""
    ratio = params / max(dataset.characters, 1)
    if ratio > 5:
        note(
            f"advice: {number(round(ratio))} times as many parameters as characters: the model can learn the text by "
            "heart; give more text, a smaller --hidden, or --dropout 0.5"
        )
    elif ratio < 0.1:
        note(
            f"advice: {number(round(1 / ratio))} times as many characters as parameters: a larger model (--hidden) can "
            "learn more, if you have the time"
        )


def advise_next(finished: Finished) -> None:
    """What to type next."""
    if finished.best_loss is None and finished.reason == "done":
        warn("nothing was held out, so there is no validation loss; see --val-frac")
    elif finished.best_loss is not None:
        note(f"best validation loss {finished.best_loss:.4f} nats per symbol")
    if finished.clipped:
        share = finished.clipped / finished.step
        note(
            f"the gradient was clipped in {number(finished.clipped)} of {counted(finished.step, 'step')} ({share:.0%})"
        )
    warn_of_start(finished.start_losses)
    note("next:")
    for command, why in [
        (f"sample {finished.path}", "let it write"),
        (f"diagnose gradnorm {finished.path}", "how far back its gradients reach"),
        (f"resume {finished.path} --steps {2 * finished.step}", "train as long again"),
    ]:
        note(f"  tinygrad-rnn {command}   # {why}")
