"""``sample``: text from a trained model."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import aside, counted, detail, emit_json, is_terminal, note, number
from tinygrad_rnn_cli.options import (
    Command,
    Flag,
    Settings,
    common,
    load_run,
    old_names,
    refuse_idle,
    resolve_run,
    settings,
    which_checkpoint,
    written,
)
from tinygrad_rnn_cli.texts import as_the_run_reads, tell_undecoded

if TYPE_CHECKING:
    from tinygrad_rnn import LoadedModel, SampleConfig


@click.command("sample", cls=Command)
@click.argument("run", required=False, type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--prime-file", type=click.Path(path_type=Path), metavar="FILE", help="start with the text of this file, or of '-'"
)
@click.option(
    "--stream/--no-stream",
    default=None,
    cls=Flag,
    shown="stream on a terminal",
    help="print each symbol as it is drawn",
)
@click.option(
    "--state",
    type=click.Choice(["start", "carried"]),
    default="start",
    show_default=True,
    help="begin at the cell's start state, or go on from the state that training carried",
)
@which_checkpoint
@click.option("--json", "as_json", is_flag=True, help="print one JSON object, with the samples in a list")
@settings("sample.*", short={"sample.length": "-n", "sample.temperature": "-t"})
@old_names("sample")
@common("config", "seed", "device", "plugin")
def sample(
    run: Path | None,
    prime_file: Path | None,
    stream: bool | None,
    state: str,
    which: str,
    allow_changed_cell: bool,
    as_json: bool,
) -> None:
    """Let the model of RUN write. Prints the text and nothing else.

    The same --seed gives the same text; without one it is that of the run. Several samples (--num) are printed one
    after the other, each under a line "=== sample 1 of 3 ===", and those at several temperatures (-t 0.2 -t 1) under
    "=== temperature 0.2 ===" or "=== temperature 0.2, sample 1 of 3 ===". With --json, temperatures has an entry for
    each of samples, in their order. A byte model writes its bytes as they are; --json, which must be Unicode, has them
    in samples_base64, beside samples, where bytes that are not UTF-8 are U+FFFD.

    \b
    tinygrad-rnn sample runs/lstm-python-docs-1 -n 1000 -t 0.7 --prime "The "
    """
    import numpy as np

    if run is None:
        from tinygrad_rnn_cli.options import given

        old = dict(given().old_names)
        if "-checkpoint" not in old:
            raise click.UsageError("missing RUN; name the folder that train made, as in: tinygrad-rnn sample runs/NAME")
        run = Path(old["-checkpoint"])
    found = resolve_run(run)
    options = found.sample
    if prime_file is not None and options.prime:
        raise click.UsageError("--prime-file and --prime exclude each other; give one of them")
    _refuse_idle(found, prime_file is not None or bool(options.prime), as_json)
    with aside():
        loaded = load_run(run, which, allow_changed_cell, found)
    kind, seed = loaded.vocabulary.kind, found.run.train.seed
    if kind == "bytes":
        refuse_idle(found.written("sample.unknown"), "on a byte model, which knows every byte")
    if prime_file is not None:
        options = dataclasses.replace(options, prime=_read(prime_file, loaded))
    _tell_idle(found, options, loaded)
    detail(f"step {number(loaded.step)} of {run}, {counted(loaded.vocabulary.size, 'symbol')}, seed {seed}")

    carried = loaded.carried if state == "carried" else None
    if state == "carried" and carried is None:
        raise click.UsageError(f"--state carried: run {run} holds no state of a training; use --state start")

    def pieces(temperature: float) -> Iterator[list[str]]:
        """The samples at one temperature, with the random numbers that they would have without the others."""
        at = dataclasses.replace(options, temperature=temperature)
        rng = np.random.default_rng(seed)
        return _aside(tr.generate(loaded.model, loaded.params, loaded.vocabulary, at, rng, carried))

    if as_json:
        texts = [text for temperature in found.temperatures for text in _whole(pieces(temperature))]
        each = [temperature for temperature in found.temperatures for _ in range(options.num)]
        facts = {"run": str(run), "step": loaded.step, "seed": seed, "temperatures": each}
        emit_json({**facts, **_samples(texts, kind)})
        return
    write = _writer(kind)
    several = len(found.temperatures) > 1
    for temperature in found.temperatures:
        title = [f"temperature {temperature:g}"] * several
        if options.num > 1:
            for index, text in enumerate(_whole(pieces(temperature)), start=1):
                write(f"=== {', '.join([*title, f'sample {index} of {options.num}'])} ===\n{text}\n")
            continue
        if several:
            write(f"=== {title[0]} ===\n")
        last = "\n"
        for (piece,) in pieces(temperature):
            if piece:
                write(piece)
                last = piece
                if stream or (stream is None and is_terminal(sys.stdout)):
                    sys.stdout.flush()
        if several or (is_terminal(sys.stdout) and not last.endswith("\n")):
            write("\n")  # a prompt or a title behind the text would look like a part of it


def _refuse_idle(found: Settings, primed: bool, as_json: bool) -> None:
    """Refuse options of the command line that do nothing beside the others. Raises UsageError."""
    if found.sample.greedy:
        refuse_idle(found.written("sample.temperature"), "beside --greedy, which is temperature 0")
    if found.sample.greedy or not any(found.temperatures):
        for key in ("sample.top_k", "sample.top_p"):
            refuse_idle(found.written(key), "where the likeliest symbol is taken; leave out --greedy or -t 0")
    if not primed:
        refuse_idle(found.written("sample.unknown"), "without --prime or --prime-file")
    if as_json or found.sample.num > 1:
        refuse_idle(written("stream"), "beside --json" if as_json else "beside --num, which prints whole samples")


def _tell_idle(found: Settings, options: SampleConfig, loaded: LoadedModel) -> None:
    """Say what comes to nothing: a top-k of all symbols, and what greedy sampling ignores.

    A script may pass these to every call.
    """
    if not (options.greedy or not any(found.temperatures)):
        size = loaded.vocabulary.size
        if found.written("sample.top_k") and options.top_k >= size:
            note(f"note: --top-k {options.top_k} has no effect: the model knows {size} symbols")
        return
    if found.written("train.seed") and (options.prime or "\n" in loaded.vocabulary.symbols):
        note("note: --seed has no effect: the likeliest symbol is taken, whatever is drawn")
    if options.num > 1:
        note(f"note: --num {options.num}: the samples are the same, because the likeliest symbol is taken")


def _whole(pieces: Iterator[list[str]]) -> list[str]:
    """The samples that come piece by piece."""
    return ["".join(parts) for parts in zip(*pieces, strict=True)]


def _writer(kind: str) -> Callable[[str], object]:
    """What writes text to stdout: the bytes of a byte model as they are, other text in the encoding of stdout."""
    out = sys.stdout
    if kind != "bytes":
        return out.write
    return lambda text: out.buffer.write(text.encode("utf-8", "surrogateescape"))


def _samples(texts: Sequence[str], kind: str) -> dict[str, list[str]]:
    """Samples as JSON has them: the text, and of a byte model every byte too."""
    exact = {"samples_base64": [tr.base64_bytes(text) for text in texts]} if kind == "bytes" else {}
    return {"samples": [tr.readable(text) for text in texts], **exact}


def _aside(pieces: Iterator[list[str]]) -> Iterator[list[str]]:
    """The same pieces; what the cell prints on the way is none of them."""
    while True:
        with aside():
            found = next(pieces, None)
        if found is None:
            return
        yield found


def _read(path: Path, loaded: LoadedModel) -> str:
    """The text of `path` as the run read its own: its encoding, no byte order mark; any bytes for bytes."""
    data = loaded.config.data
    undecoded: dict[str, int] = {}
    try:
        text = tr.read_text(str(path), loaded.vocabulary.kind, data.encoding, data.errors, undecoded=undecoded)
    except tr.DataError as error:
        raise tr.DataError(f"--prime-file: {as_the_run_reads(error, loaded)}") from error
    tell_undecoded(undecoded, data)
    return text
