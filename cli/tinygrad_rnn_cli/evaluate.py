"""``eval``: how well a trained model predicts a text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import aside, emit, emit_json, number, table
from tinygrad_rnn_cli.options import (
    Command,
    common,
    load_run,
    refuse_idle,
    resolve_run,
    settings,
    which_checkpoint,
    written,
)
from tinygrad_rnn_cli.texts import own_text, symbol_name, whole_text


@click.command("eval", cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("text", nargs=-1, metavar="[TEXT]...")
@click.option(
    "--part",
    type=click.Choice(["val", "test", "train"]),
    default="val",
    show_default=True,
    help="without TEXT: which part of the run's own text",
)
@click.option("--by-char", is_flag=True, help="which symbols surprise the model most, in sum")
@click.option(
    "--top", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="with --by-char: how many symbols"
)
@click.option(
    "--unknown",
    type=click.Choice(["error", "skip", "replace"]),
    default=None,
    help="symbols the model does not know  [default: replace where it can, else error]",
)
@which_checkpoint
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@settings("data.between", "data.encoding", "data.errors")
@common("seed", "device", "plugin")
def evaluate(
    run: Path,
    text: tuple[str, ...],
    part: str,
    by_char: bool,
    top: int,
    unknown: Any,
    which: str,
    allow_changed_cell: bool,
    as_json: bool,
) -> None:
    """Score RUN on TEXT (files, folders, '-'), or on its own held-out part: nats and bits per symbol, perplexity.

    The interval is a 95 % block bootstrap: neighbouring symbols are not independent.
    """
    import numpy as np

    found = resolve_run(run)
    if text:
        refuse_idle(written("part"), "beside TEXT: it names a part of the run's own text")
    else:
        for key in ("data.between", "data.encoding", "data.errors"):
            refuse_idle(found.written(key), "without TEXT: the run says how to read its own")
    if not by_char:
        refuse_idle(written("top"), "without --by-char")
    with aside():
        loaded = load_run(run, which, allow_changed_cell, found)
        if text:
            dataset = whole_text(found.run.data, text, loaded.vocabulary, unknown)
            source, ids = dataset.source, dataset.train
        else:
            dataset = own_text(loaded, run)
            source, ids = f"the {part} part of {dataset.source}", getattr(dataset, part)
            if len(ids) < 2:
                raise tr.DataError(f"--part {part}: run {run} holds no such part out; name a TEXT, or another --part")
        score = tr.score(loaded.model, loaded.params, ids, np.random.default_rng(found.run.train.seed))
    symbols, kind = loaded.vocabulary.symbols, loaded.vocabulary.kind
    rows = [(symbols[index], mean, count) for index, mean, count in score.by_symbol]
    listed = rows if as_json and not written("top") else rows[:top]
    if as_json:
        facts: dict[str, Any] = {
            "run": str(run),
            "step": loaded.step,
            "text": source,
            "symbols": score.symbols,
            "nats": score.nats,
            "bits": score.bits,
            "perplexity": score.perplexity,
            "low": score.low,
            "high": score.high,
        }
        if by_char:
            facts["by_char"] = [{"symbol": symbol, "nats": mean, "count": count} for symbol, mean, count in listed]
        emit_json(facts)
        return
    for name, value in [
        ("text", f"{source}, {number(score.symbols)} symbols scored"),
        ("nats", f"{score.nats:.4f} per symbol, 95 % between {score.low:.4f} and {score.high:.4f}"),
        (
            "bits",
            f"{score.bits:.4f} per symbol, 95 % between {score.low / math.log(2):.4f} and "
            f"{score.high / math.log(2):.4f}",
        ),
        ("perplexity", f"{score.perplexity:.4g} (of {loaded.vocabulary.size} symbols)"),
    ]:
        emit(f"{name:<12} {value}")
    if by_char:
        emit()
        total = sum(mean * count for _, mean, count in rows)
        table(
            ["symbol", "count", "nats", "share of all surprise"],
            [
                [
                    symbol_name(symbol, kind),
                    number(count),
                    f"{mean:.3f}",
                    f"{mean * count / total:.1%}" if total else "-",
                ]
                for symbol, mean, count in listed
            ],
            numbers=[1, 2, 3],
        )
