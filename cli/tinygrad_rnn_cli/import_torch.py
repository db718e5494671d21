"""``import``: a run made of weights that another program trained."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import emit, note
from tinygrad_rnn_cli.main import Group
from tinygrad_rnn_cli.options import (
    Command,
    Settings,
    common,
    free_folder,
    refuse_idle,
    resolve,
    run_folder,
    settings,
    written,
)
from tinygrad_rnn_cli.texts import whole_text
from tinygrad_rnn_cli.train import RUNS, kept_paths

if TYPE_CHECKING:
    from tinygrad_rnn import Imported, RunConfig, StateDict, Vocabulary

NO_TEXT: dict[str, Any] = {"sha256": None, "source": None, "characters": 0}


@click.group("import", cls=Group)
def imports() -> None:
    """Make a run of weights that another program trained."""


@imports.command("torch", cls=Command)
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@run_folder("runs/FILE-1, -2, ...")
@click.option(
    "--vocab",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="the symbols by their number: JSON (a list, or an object from symbols to numbers) if it ends in .json, else a "
    "text of which every character is a symbol",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    metavar="TEXT",
    help="the text of the model, for eval and diagnose; without another vocabulary its sorted symbols are it",
)
@click.option("--like", type=click.Path(path_type=Path), metavar="RUN", help="take vocabulary and text from this run")
@click.option(
    "--nonlinearity",
    type=click.Choice(["tanh", "relu"]),
    default=None,
    help="what a torch.nn.RNN squashes with: its weights do not tell  [default: what export torch wrote, else tanh]",
)
@click.option("--embed-name", metavar="NAME", help="the embedding, as in encoder.weight, where several arrays fit")
@click.option("--readout-name", metavar="NAME", help="the readout, as in fc.weight, where several arrays fit")
@click.option(
    "--tie", is_flag=True, help="the only matrix is both embedding and readout; two equal ones are tied anyway"
)
@click.option("--init-missing", is_flag=True, help="draw an embedding or readout that the file has not, to train it")
@settings(
    "data.between", "data.tokens", "data.min_count", "data.encoding", "data.errors", "data.val_frac", "data.test_frac"
)
@common("config", "seed", "dtype")
def torch(
    file: Path,
    out: Path | None,
    overwrite: bool,
    vocab: Path | None,
    text: Path | None,
    like: Path | None,
    nonlinearity: str | None,
    embed_name: str | None,
    readout_name: str | None,
    tie: bool,
    init_missing: bool,
) -> None:
    """Make a run of FILE: the state_dict of a torch.nn.RNN, LSTM or GRU with embedding and readout, as safetensors.

    In PyTorch: safetensors.torch.save_file(module.state_dict(), FILE), or save_model(module, FILE) where embedding and
    readout are tied. The names do not matter, the shapes tell cell
    and sizes. What `export torch` wrote brings its vocabulary along; any other file needs --vocab, --text or --like.
    Without --dtype the numbers stay what they are; those of 16 bits become float32, which changes none.

    \b
    tinygrad-rnn import torch model.safetensors --text my.txt
    """
    if like is not None and (vocab is not None or text is not None):
        raise click.UsageError("--like excludes --vocab and --text: it stands for both; leave it out, or them")
    if out is None:
        refuse_idle(written("overwrite"), "without --out: the default folder is a new one")
    state = tr.read_state_dict(file)
    found = _settings(like, text, state)
    if like is not None:
        for key in ("data.tokens", "data.min_count"):
            refuse_idle(found.written(key), "beside --like, whose vocabulary it is")
    elif text is None:
        for key in ("data.min_count", "data.errors", "data.val_frac", "data.test_frac"):
            refuse_idle(found.written(key), "without --text")
    asked = found.origins["train.dtype"] not in ("default", f"run {like}")
    vocabulary, config, data = _symbols(found, state, vocab, like)
    made = tr.import_torch(
        state,
        out or free_folder(RUNS, file.absolute().stem or "torch"),
        vocabulary,
        config,
        data=data,
        dtype=config.train.dtype if asked else None,
        nonlinearity=nonlinearity,
        embed=embed_name,
        readout=readout_name,
        tie=tie,
        init_missing=init_missing,
        overwrite=overwrite,
    )
    emit(str(made.run.path))
    if init_missing and not made.drawn:
        note("note: --init-missing has no effect: the file has both an embedding and a readout")
    _advise(made, vocabulary, data["sha256"] is not None)


def _settings(like: Path | None, text: Path | None, state: StateDict) -> Settings:
    """The settings of the run to make; where it is like another, those of that one."""
    if text is not None and str(text) == "-":
        raise click.UsageError("--text -: expected a file or folder, which the run can read again, got standard input")
    words = [] if text is None else [str(text)]
    if like is not None:
        return resolve(base=tr.run_config(tr.open_run(like)), origin=f"run {like}")
    found = resolve(text=words)
    seed = state.metadata.get("seed", "")
    if found.origins["train.seed"] != "default" or not (seed.isdecimal() and len(seed) < 20):
        return found
    train = dataclasses.replace(found.run.train, seed=int(seed))
    return dataclasses.replace(found, run=dataclasses.replace(found.run, train=train))


def _symbols(
    found: Settings, state: StateDict, vocab: Path | None, like: Path | None
) -> tuple[Vocabulary, RunConfig, dict[str, Any]]:
    """The vocabulary, the configuration with a text that can be found again, and which text that is."""
    config = kept_paths(found.run)
    if like is not None:
        run = tr.open_run(like)
        if config.data.text == ("-",):  # that run keeps it
            config = _with_data(config, text=(str((like / "text.txt").absolute()),))
        return tr.run_vocabulary(run), config, tr.describe_run(run).get("data", NO_TEXT)
    kind = config.data.tokens
    vocabulary = tr.read_vocabulary(vocab, kind) if vocab is not None else state.vocabulary()
    if vocabulary is not None:
        refuse_idle(found.written("data.min_count"), f"beside the vocabulary of {vocab or state.path}")
        if vocabulary.kind != kind:
            refuse_idle(
                found.written("data.tokens"), f"beside the vocabulary of {vocab or state.path}, of {vocabulary.kind}"
            )
    if vocabulary is None and kind == "bytes":
        vocabulary = tr.Vocabulary("bytes", tuple(map(chr, range(256))))
    data = NO_TEXT
    if config.data.text:
        dataset = whole_text(config.data, vocabulary=vocabulary)
        vocabulary = vocabulary or dataset.vocabulary
        data = dataset.facts()
    if vocabulary is None:
        raise click.UsageError(
            f"{state.path}: expected a vocabulary, which symbol each number stands for; give --vocab, --text or --like"
        )
    return vocabulary, _with_data(config, tokens=vocabulary.kind), data


def _with_data(config: RunConfig, **changes: Any) -> RunConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def _advise(made: Imported, vocabulary: Vocabulary, has_text: bool) -> None:
    """What was made of the file, what it did not hold, and what to type next."""
    model, run = made.config.model, str(made.run.path)
    options = [f"{name}={value}" for name, value in model.cell_options.items()]
    embed = "one-hot input" if model.embed == "onehot" else f"an embedding ({model.embed})" + ", tied" * model.tie
    note(
        f"{' '.join([model.cell, *options])}: {model.layers} x {model.hidden} units, {embed}, "
        f"{vocabulary.size} {vocabulary.kind}, {made.config.train.dtype}"
    )
    for what in made.zeros:
        note(f"note: the file does not hold {what}: they are 0 here")
    if made.drawn:
        note(f"note: drawn at random, because the file does not hold them: {', '.join(made.drawn)}; train them first")
    text = made.config.data.text or ("TEXT",)
    words = ["train", *text, "--init-from", run]
    if made.config.train.dtype != "float32":
        words += ["--dtype", made.config.train.dtype]
    note("next:")
    for command, why in [
        (["sample", run], "let it write"),
        (["eval", run, *([] if has_text else ["TEXT"])], "how well it predicts a text"),
        (["diagnose", "gradnorm", run, *([] if has_text else ["--text", "TEXT"])], "how far back its gradients reach"),
        (words, "train a new run from its weights"),
    ]:
        note(f"  tinygrad-rnn {shlex.join(command)}   # {why}")
