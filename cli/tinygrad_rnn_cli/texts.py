"""The text that a command looks at: all of one that is named, or a run's own."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import counted, note, screen, warn
from tinygrad_rnn_cli.options import given, refuse_idle

if TYPE_CHECKING:
    from tinygrad_rnn import DataConfig, Dataset, LoadedModel, Vocabulary
    from tinygrad_rnn_cli.options import Settings

MANY = 12  # files above which a list of them is shortened


def check_text_options(found: Settings) -> None:
    """Refuse options of the command line that the text leaves without effect. Raises UsageError."""
    if found.run.data.tokens == "bytes":
        for key in ("data.min_count", "data.vocab_from", "data.encoding", "data.errors"):
            refuse_idle(found.written(key), "with --tokens bytes, which takes every byte as it is")
    if not found.run.data.val_frac + found.run.data.test_frac:
        refuse_idle(found.written("data.vocab_from"), "where nothing is held out: the training part is the whole text")
    if found.run.data.text:
        refuse_idle(found.written("data.corpus"), "beside TEXT; give one of them")
    else:
        for key in ("data.between", "data.encoding", "data.errors"):
            refuse_idle(found.written(key), "on a corpus, which is text already; it is for TEXT")


def whole_text(
    config: DataConfig, text: Sequence[str] | None = None, vocabulary: Vocabulary | None = None, unknown: Any = None
) -> Dataset:
    """A text to look at and not to train on: all of it is the training part. Without `text` it is that of `config`."""
    config = dataclasses.replace(config, batch=1, seq_len=1, val_frac=0.0, test_frac=0.0)
    if text is not None:
        config = dataclasses.replace(config, text=tuple(text))
    stdin = io.BytesIO(sys.stdin.buffer.read()) if "-" in config.text else None
    dataset = tr.load_dataset(config, vocabulary, stdin, unknown=unknown, third_party=given().third_party)
    tell_files(dataset, config)
    return dataset


def tell_files(dataset: Dataset, config: DataConfig) -> None:
    """Say what was read where that is more than one file, and what was not."""
    if len(dataset.files) > 1:
        joined = f"joined by {config.between!r}" if config.between else "with nothing in between"
        note(f"read {len(dataset.files)} files, {joined}: {_names(dataset.files)}")
    elif "data.between" in given().flags:
        note("note: --between has no effect: the text is one file")
    if config.encoding == "auto":
        for encoding in sorted(set(dataset.encodings)):
            files = [name for name, found in zip(dataset.files, dataset.encodings, strict=True) if found == encoding]
            note(f"read as {encoding}: {_names(files)}; --encoding says otherwise where that is wrong")
    tell_undecoded(dict(zip(dataset.files, dataset.undecoded, strict=False)), config)
    if dataset.skipped:
        note(f"skipped in the folder: {_names(dataset.skipped)}; name a file itself to read it")


def text_size(dataset: Dataset) -> str:
    """How long a text is, in what its symbols are made of."""
    if dataset.vocabulary.kind == "bytes":
        return counted(len(dataset.train) + len(dataset.val) + len(dataset.test), "byte")
    return counted(dataset.characters, "character")


def tell_undecoded(files: Mapping[str, int], config: DataConfig) -> None:
    """Say how many bytes --errors has changed, and where; `files` gives their number by name."""
    changed = {name: count for name, count in files.items() if count}
    if changed:
        total = sum(changed.values())
        what = counted(total, "byte")
        done = "replaced by U+FFFD" if config.errors == "replace" else "left out"
        note(f"note: --errors {config.errors}: {what} that cannot be decoded {done}: {_names(list(changed))}")


def _names(files: Sequence[str]) -> str:
    """The names, of many only the first and the last unless -v asks for all."""
    if len(files) <= MANY or screen().verbose:
        return ", ".join(files)
    return f"{', '.join(files[: MANY - 2])}, ... ({len(files) - MANY + 1} more), {files[-1]}"


def own_text(loaded: LoadedModel, run: Path) -> Dataset:
    """The text that a run was trained on, cut as it was. Raises DataError that says what to do without it."""
    if tr.describe_run(tr.open_run(run)).get("data", {}).get("sha256") is None:
        raise tr.DataError(f"run {run} was imported without a text; name one, or import it again with --text")
    data = dataclasses.replace(loaded.config.data, batch=1, seq_len=1)  # a text to look at may be a short one
    if data.text == ("-",):  # the run keeps what came from standard input
        data = dataclasses.replace(data, text=(str(run / "text.txt"),))
    try:
        return tr.load_dataset(data, loaded.vocabulary, third_party=given().third_party)
    except tr.DataError as error:
        raise tr.DataError(f"the text of run {run} cannot be used ({error}); name another text") from error


def warn_of_start(losses: tuple[float, float] | None) -> None:
    """Say when samples and scores begin in a state from which the model is far worse than it was trained to be."""
    if losses is not None and tr.is_cold(losses):
        start, carried = losses
        warn(
            f"from its start state the model pays {start:.2f} nats per symbol, from the state that training carried "
            f"{carried:.2f}: scores and samples begin at the start state; try sample --state carried, or train with "
            "another --seed"
        )


def symbol_name(symbol: str, kind: str) -> str:
    """A symbol as a table shows it: a quoted text, or b'\\xHH' for a byte, which the vocabulary names in Latin-1."""
    return repr(symbol.encode("latin-1")) if kind == "bytes" else repr(symbol)


def json_name(symbol: str, kind: str) -> str:
    """A symbol as JSON has it: the text, or 0xHH for a byte, which would look like a character of Latin-1."""
    return f"0x{ord(symbol):02x}" if kind == "bytes" else symbol


def as_the_run_reads(error: tr.DataError, loaded: LoadedModel) -> str:
    """An error of a text, with the remedy of a command that has no options for it: the run says how to read."""
    if isinstance(error, tr.UnknownSymbolError):
        return f"{error.what}; take such symbols out of it"
    what, _, remedy = str(error).rpartition("; ")
    return f"{what}; {f'convert it to {loaded.config.data.encoding}' if remedy.startswith('pass ') else remedy}"


def symbols_to_look_at(loaded: LoadedModel, run: Path, text: str | None) -> Any:
    """The text to look at: --text, else the validation part of the run's own, else all of it."""
    if text is not None:
        try:
            return whole_text(loaded.config.data, [text], loaded.vocabulary).train
        except tr.DataError as error:
            raise tr.DataError(f"--text: {as_the_run_reads(error, loaded)}") from error
    dataset = own_text(loaded, run)
    if len(dataset.val) > 1:
        return dataset.val
    note("note: the run holds no validation part out, so this looks at its training text")
    return dataset.train
