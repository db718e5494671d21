"""``eval``: how well a trained model predicts a text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import aside, counted, emit, emit_json, number, table, warn
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
from tinygrad_rnn_cli.texts import json_name, own_text, symbol_name, warn_of_start, whole_text

if TYPE_CHECKING:
    from tinygrad_rnn import Score

PARTS = ("train", "val", "test")


@click.command("eval", cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("text", nargs=-1, metavar="[TEXT]...")
@click.option(
    "--part",
    type=click.Choice(PARTS),
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
    help="symbols of TEXT that the model does not know  [default: replace where it can, else error]",
)
@which_checkpoint
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@settings("data.between", "data.encoding", "data.errors")
@common("device", "plugin")
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

    The text is read from the start state. A long one is read in up to 64 streams at once; each but the first begins
    256 symbols early, unscored, so that none is cold. The validation of train does the same.

    The 95 % interval allows for the correlation of neighbouring symbols; a text of fewer than 100 symbols gets none.
    --by-char names a byte of a byte model b'\\xe9' in its table, and 0xe9 with --json.
    """
    found = resolve_run(run)
    if text:
        refuse_idle(written("part"), "beside TEXT: it names a part of the run's own text")
        if found.run.data.tokens == "bytes":
            for key in ("data.encoding", "data.errors"):
                refuse_idle(found.written(key), "on a byte model, which takes every byte as it is")
    else:
        for key in ("data.between", "data.encoding", "data.errors"):
            refuse_idle(found.written(key), "without TEXT: the run says how to read its own")
        refuse_idle(written("unknown"), "without TEXT: symbols of its own text are treated as train treats them")
    if not by_char:
        refuse_idle(written("top"), "without --by-char")
    with aside():
        loaded = load_run(run, which, allow_changed_cell, found)
        if text:
            try:
                dataset = whole_text(found.run.data, text, loaded.vocabulary, unknown)
            except tr.UnknownSymbolError as error:
                raise tr.DataError(f"{error.what}; skip such symbols with --unknown skip") from error
            source, ids, left_out = dataset.source, dataset.train, dataset.left_out[0]
        else:
            dataset = own_text(loaded, run)
            source, ids = f"the {part} part of {dataset.source}", getattr(dataset, part)
            left_out = dataset.left_out[PARTS.index(part)]
            if len(ids) < 2:
                raise tr.DataError(f"--part {part}: run {run} holds no such part out; name a TEXT, or another --part")
        score = tr.score(loaded.model, loaded.params, ids)
        states = None
        if loaded.carried is not None:
            states = tr.start_losses(loaded.model, loaded.params, ids, loaded.carried)
    if left_out:
        are, them = ("is", "it") if left_out == 1 else ("are", "them")
        warn(f"{counted(left_out, 'symbol')} of {source} {are} left out: the model does not know {them}")
    warn_of_start(states)
    symbols, kind = loaded.vocabulary.symbols, loaded.vocabulary.kind
    rows = [(symbols[index], mean, count) for index, mean, count in score.by_symbol]
    listed = rows if as_json and not written("top") else rows[:top]
    if as_json:
        facts: dict[str, Any] = {
            "run": str(run),
            "step": loaded.step,
            "text": source,
            "symbols": score.symbols,
            "left_out": left_out,
            "streams": score.streams,
            "warm_up": score.warm_up,
            "nats": score.nats,
            "bits": score.bits,
            "perplexity": score.perplexity,
            "low": score.low,
            "high": score.high,
            "start_nats": states and states[0],
            "carried_nats": states and states[1],
        }
        if by_char:
            facts["by_char"] = [
                {"symbol": json_name(symbol, kind), "nats": mean, "count": count} for symbol, mean, count in listed
            ]
        emit_json(facts)
        return
    streams = f" in {score.streams} streams, each but the first behind {score.warm_up} symbols of warm-up"
    for name, value in [
        ("text", f"{source}, {counted(score.symbols, 'symbol')} scored{streams * (score.streams > 1)}"),
        ("nats", f"{score.nats:.4f} per symbol, {_interval(score, 1.0)}"),
        ("bits", f"{score.bits:.4f} per symbol, {_interval(score, math.log(2))}"),
        ("perplexity", f"{score.perplexity:.4g} (of {counted(loaded.vocabulary.size, 'symbol')})"),
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


def _interval(score: Score, unit: float) -> str:
    """The 95 % interval in a unit of so many nats, in words."""
    if score.low is None or score.high is None:
        return "without an interval: it takes 100 symbols"
    return f"95 % between {score.low / unit:.4f} and {score.high / unit:.4f}"
