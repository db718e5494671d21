"""The run folder: what a training leaves on disk, and all that resume, sample and diagnose read.

    run.json            what the run is made from (`create_run`)
    metrics.jsonl       one JSON object per line, each with its ``step``
    checkpoints/        step-00000100-val-1.8432.safetensors (the validation loss in nats where known, a habit
                        of char-rnn), or step-00000100.safetensors; best.json names the best of them
    text.txt            the text, only where it came from standard input
    tensorboard/        what the callback of that name writes
    diverged-step-00000100.safetensors      what made the training diverge, for `replay`

One process writes to a run at a time; any number may read.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tinygrad_rnn.backend import Array
from tinygrad_rnn.checkpoint import is_temporary, load, save, to_json, write_bytes_atomic, write_json_atomic
from tinygrad_rnn.config import RunConfig, from_dict
from tinygrad_rnn.errors import CheckpointError, FileError, InputError

DESCRIPTION = "run.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
BEST = "best.json"
TEXT = "text.txt"
EVENTS = "tensorboard"
DIVERGED = "diverged-step-*.safetensors"
FORMAT = 1
ENCODER = json.JSONEncoder(allow_nan=False)

# What run.json holds by custom, see create_run.
_TABLES = ("cell", "optimizer", "data", "vocabulary", "versions", "imported")

_CHECKPOINT_NAME = re.compile(r"step-(\d{8,})(?:-val-(-?\d+\.\d{4}|nan|-?inf))?\.safetensors")


@dataclass(frozen=True)
class Run:
    """A handle on a run folder; every function of this module takes it. Nothing is kept in memory."""

    path: Path


def create_run(path: str | os.PathLike[str], description: Mapping[str, Any], overwrite: bool = False) -> Run:
    """Make a run folder and write its run.json: `description` beside ``format``, ``created`` and ``versions``.

    `description` holds JSON values. ``config`` (`config.as_dict`) is required; by custom also ``data`` (sha256,
    source, characters), ``vocabulary`` (JSON of the Vocabulary), ``seed``, ``device``, ``cell`` (the identity:
    name, distribution, version, source hash), ``optimizer`` likewise, and ``parameters`` (their number).
    `overwrite` replaces an existing run: what a run folder holds is removed, other files stay.

    Raises FileError if a run is there already and `overwrite` is off, if the folder is not empty and no run,
    or if the disk refuses; InputError if `description` is not JSON or its configuration is not one.
    """
    folder = Path(path)
    if "config" not in description:
        raise InputError("create_run: expected a description with 'config', got " + (", ".join(description) or "none"))
    from_dict(description["config"])
    text = to_json(
        {
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat("T", "seconds"),
            "versions": versions(),
            **description,
        },
        "create_run: description",
        indent=2,
    )  # before anything is removed
    try:
        there = [entry for entry in folder.iterdir() if not is_temporary(entry)] if folder.exists() else []
        if (folder / DESCRIPTION).is_file():
            if not overwrite:
                raise FileError(
                    f"{folder} holds a run already; continue it with 'resume {folder}', replace it with "
                    "--overwrite, or choose another folder"
                )
            _clear(folder)
        elif there:
            raise FileError(
                f"{folder} is neither empty nor a run folder (it holds {there[0].name!r}); choose another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(folder / DESCRIPTION, (text + "\n").encode("ascii"))
        (folder / CHECKPOINTS).mkdir(exist_ok=True)
    except OSError as error:
        raise FileError(
            f"cannot make the run folder {folder}: {error.strerror or error}; choose another folder"
        ) from error
    return Run(folder)


def open_run(path: str | os.PathLike[str]) -> Run:
    """The run at `path`, its run.json checked.

    Raises FileError if there is nothing, no run folder, or a run.json that is broken or of a newer format.
    """
    folder = Path(path)
    if not folder.exists():
        raise FileError(f"no run {folder}: the folder does not exist; check the path")
    if not (folder / DESCRIPTION).is_file():
        raise FileError(
            f"{folder} is not a run folder: it holds no {DESCRIPTION}; name the folder that train --out made"
        )
    run = Run(folder)
    run_config(run)
    return run


def describe(run: Run) -> dict[str, Any]:
    """The content of run.json. Raises FileError if it cannot be read, is no JSON object or of a newer format."""
    path = run.path / DESCRIPTION
    try:
        description = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is broken ({_one_line(error)}); restore it, or train the run again") from error
    if not isinstance(description, dict) or not isinstance(description.get("config"), dict):
        raise FileError(f"{path} is broken: expected an object with 'config'; restore it, or train the run again")
    if description.get("format") != FORMAT:
        raise FileError(
            f"{path}: expected format {FORMAT}, got {description.get('format')!r}; open it with the "
            "version of tinygrad_rnn that wrote it"
        )
    for key in _TABLES:
        if not isinstance(description.get(key, {}), dict):
            raise FileError(f"{path} is broken: expected an object for {key!r}; restore it, or train the run again")
    plugins = description.get("plugins", [])
    if not isinstance(plugins, list) or not all(isinstance(plugin, str) for plugin in plugins):
        raise FileError(f"{path} is broken: expected a list of paths for 'plugins'; restore it, or train the run again")
    return description


def described(run: Run, key: str) -> dict[str, Any]:
    """The table `key` of run.json. Raises FileError as `describe` does, and where it is not there."""
    description = describe(run)
    if key not in description:
        raise FileError(
            f"{run.path / DESCRIPTION} is broken: expected an object for {key!r}, got none; restore it, or train the "
            "run again"
        )
    table: dict[str, Any] = description[key]
    return table


def run_config(run: Run) -> RunConfig:
    """The configuration in run.json. Raises FileError if it is none."""
    try:
        return from_dict(describe(run)["config"])
    except InputError as error:
        raise FileError(f"{run.path / DESCRIPTION} is broken ({error}); correct it, or train the run again") from error


def update_description(run: Run, changes: Mapping[str, Any]) -> None:
    """Replace top-level entries of run.json, at once: what resume does when the run gets longer.

    Raises FileError if run.json cannot be read or written, InputError if `changes` is not JSON.
    """
    write_json_atomic(run.path / DESCRIPTION, {**describe(run), **changes})


def versions() -> dict[str, str]:
    """The versions of Python, NumPy and this library; 'unknown' where a distribution is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in ("numpy", "tinygrad_rnn")}}


def append_metrics(run: Run, *records: Mapping[str, Any]) -> None:
    """Append a line per record to metrics.jsonl. A record has an int ``step``; NumPy scalars become numbers.

    NaN and infinity are written as null: JSON has no numbers for them.
    Raises InputError if ``step`` is missing or a value is not JSON, FileError if the disk refuses.
    """
    lines = b"".join(_metric_line(record) for record in records)
    path = run.path / METRICS
    try:
        with path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size:  # a line torn by a kill would swallow this one
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(lines)
    except OSError as error:
        remedy = "check its permissions" if isinstance(error, PermissionError) else "make room"
        raise FileError(
            f"cannot write {path}: {error.strerror or error}; {remedy}, then go on: resume {run.path}"
        ) from error


def _metric_line(record: Mapping[str, Any]) -> bytes:
    if isinstance(record.get("step"), bool) or not isinstance(record.get("step"), int):
        raise InputError(f"metrics: expected a record with an int 'step', got step {record.get('step')!r}")
    try:
        try:
            text = ENCODER.encode(record)
        except (TypeError, ValueError):  # NaN, or a number of NumPy's
            text = ENCODER.encode(_plain(record))
        return text.encode("ascii") + b"\n"
    except (TypeError, ValueError) as error:
        raise InputError(f"metrics: expected JSON values ({error})") from error


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """Every record of metrics.jsonl, in order; a last line torn by a kill is left out.

    Raises FileError if the file cannot be read or another line is broken.
    """
    return [record for _, record in _metric_lines(run)]


def truncate_metrics(run: Run, step: int) -> None:
    """Drop the records behind `step`, and a torn last line, in one atomic rewrite.

    Resume after a kill repeats the steps behind the last checkpoint: without this they would stand twice.
    Raises FileError if the file cannot be read or written.
    """
    path = run.path / METRICS
    if path.exists():
        kept = [line + b"\n" for line, record in _metric_lines(run) if record["step"] <= step]
        write_bytes_atomic(path, b"".join(kept))


def save_run_checkpoint(
    run: Run, step: int, arrays: Mapping[str, Array], meta: Mapping[str, Any], val_loss: float | None = None
) -> Path:
    """Write a checkpoint after `step` updates and return its path; `checkpoint.save` says what may go in.

    `val_loss` (nats per symbol), where known, stands in the name, and best.json follows the lowest finite one.
    Another checkpoint of the same step is replaced.
    Raises CheckpointError if the disk refuses: the last good checkpoint stands and is named.
    """
    if step < 0:
        raise InputError(f"checkpoint: expected a step of at least 0, got {step}")
    path = run.path / CHECKPOINTS / _checkpoint_name(step, val_loss)
    present = checkpoints(run)
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}; restore the run folder") from error
    save(path, arrays, meta, last_good=present[-1] if present else None)
    for other in present:
        if checkpoint_step(other) == step and other != path:
            other.unlink(missing_ok=True)
    if val_loss is not None and math.isfinite(val_loss):
        best = _best(run)
        if best is None or not val_loss > best[1] or best[0] == path:
            write_json_atomic(path.parent / BEST, {"checkpoint": path.name, "step": step, "val_loss": float(val_loss)})
    return path


def forget_validations(run: Run) -> None:
    """Take the losses out of the names of all checkpoints, and the best of them with it: another text has other losses.

    Raises FileError if the disk refuses.
    """
    try:
        (run.path / CHECKPOINTS / BEST).unlink(missing_ok=True)
        for path in checkpoints(run):
            path.replace(path.with_name(_checkpoint_name(checkpoint_step(path), None)))
    except OSError as error:
        raise FileError(f"cannot rename the checkpoints of {run.path}: {error.strerror or error}") from error


def checkpoints(run: Run) -> list[Path]:
    """The checkpoints of a run, oldest step first; files named otherwise are left out. None is opened."""
    folder = run.path / CHECKPOINTS
    found = [entry for entry in folder.iterdir() if _CHECKPOINT_NAME.fullmatch(entry.name)] if folder.is_dir() else []
    return sorted(found, key=lambda entry: (checkpoint_step(entry), entry.name))


def latest_checkpoint(run: Run) -> Path:
    """The checkpoint of the highest step. Raises FileError if the run has none."""
    present = checkpoints(run)
    if not present:
        raise FileError(f"run {run.path} holds no checkpoint yet; train it longer, or with a lower --save-every")
    return present[-1]


def best_checkpoint(run: Run) -> Path:
    """The checkpoint with the lowest validation loss; the latest where no loss is known.

    Raises FileError if the run has no checkpoint.
    """
    latest = latest_checkpoint(run)
    best = _best(run)
    return latest if best is None else best[0]


def load_run_checkpoint(
    run: Run,
    path: str | os.PathLike[str] | None = None,
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """The arrays and meta of the checkpoint at `path`; without it, of the latest.

    Raises FileError if the run has no checkpoint, CheckpointError if the file is damaged: it names the newest
    older checkpoint that is sound, and what to do. Nothing older is taken silently.
    """
    chosen = latest_checkpoint(run) if path is None else Path(path)
    try:
        return load(chosen)
    except CheckpointError as error:
        if not chosen.is_file():
            raise
        older = [p for p in checkpoints(run) if checkpoint_step(p) < checkpoint_step(chosen)]
        for sound in reversed(older):
            try:
                load(sound)
            except CheckpointError:
                continue
            raise CheckpointError(
                f"{error}: the newest older one that is sound is {sound}; delete {chosen} to go on from there"
            ) from error
        raise CheckpointError(f"{error}: run {run.path} holds no older one that is sound; train it again") from error


def prune(run: Run, keep: int) -> list[Path]:
    """Remove all checkpoints but the newest `keep` and the best, and leftovers of killed writers.

    Returns the checkpoints removed. Raises InputError if `keep` is below 1, FileError if the disk refuses.
    """
    if keep < 1:
        raise InputError(f"prune: expected to keep at least 1 checkpoint, got {keep}")
    present = checkpoints(run)
    best = _best(run)
    removed = [p for p in present[:-keep] if best is None or p != best[0]]
    try:
        for path in removed:
            path.unlink(missing_ok=True)
        for folder in (run.path, run.path / CHECKPOINTS):
            for entry in folder.iterdir():
                if is_temporary(entry):
                    entry.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"cannot remove old checkpoints of {run.path}: {error.strerror or error}") from error
    return removed


def drop_checkpoints(run: Run, step: int, keep_best: bool = False) -> Path | None:
    """Remove the checkpoints of `step` and later ones, and return the newest that is left before it.

    Nothing is removed where there is none before; `keep_best` spares the best by validation loss.
    Raises FileError if the disk refuses.
    """
    present = checkpoints(run)
    before = [path for path in present if checkpoint_step(path) < step]
    if not before:
        return None
    best = _best(run) if keep_best else None
    try:
        for path in present[len(before) :]:
            if best is None or path != best[0]:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"cannot remove the checkpoints of {run.path}: {error.strerror or error}") from error
    return before[-1]


def _clear(folder: Path) -> None:
    """Remove what a run folder holds and nothing else; run.json goes last, so that it is a run until then."""
    if not (folder / CHECKPOINTS).is_symlink():  # a link may lead to somebody's shared folder
        for path in [*checkpoints(Run(folder)), folder / CHECKPOINTS / BEST]:
            path.unlink(missing_ok=True)
        for entry in (folder / CHECKPOINTS).iterdir() if (folder / CHECKPOINTS).is_dir() else ():
            if is_temporary(entry):
                entry.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody else's files may stand in it
            (folder / CHECKPOINTS).rmdir()
    else:
        (folder / CHECKPOINTS).unlink()
    for path in [
        *folder.glob(DIVERGED),
        *folder.glob(f"{EVENTS}/events.out.tfevents.*"),
        *filter(is_temporary, folder.iterdir()),
    ]:
        path.unlink(missing_ok=True)
    for name in (METRICS, TEXT, DESCRIPTION):
        (folder / name).unlink(missing_ok=True)


def _checkpoint_name(step: int, val_loss: float | None) -> str:
    return f"step-{step:08d}.safetensors" if val_loss is None else f"step-{step:08d}-val-{val_loss:.4f}.safetensors"


def checkpoint_step(path: Path) -> int:
    """The updates done before the checkpoint of this name was written; -1 for any other file."""
    match = _CHECKPOINT_NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _best(run: Run) -> tuple[Path, float] | None:
    """The best checkpoint and its loss: from best.json, or, where that is lost or stale, from the names."""
    folder = run.path / CHECKPOINTS
    best: tuple[Path, float] | None = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        named = json.loads((folder / BEST).read_text("utf-8"))
        path = folder / str(named["checkpoint"])
        if path in checkpoints(run):
            best = path, float(named["val_loss"])
    for path in reversed(checkpoints(run)):
        match = _CHECKPOINT_NAME.fullmatch(path.name)
        loss = float(match[2] or "nan") if match else math.nan
        # four digits: a lower one was saved by a process killed before it wrote best.json
        if math.isfinite(loss) and (best is None or loss < round(best[1], 4)):
            best = path, loss
    return best


def _metric_lines(run: Run) -> list[tuple[bytes, dict[str, Any]]]:
    path = run.path / METRICS
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    while lines and not lines[-1].strip(b"\0 \r"):  # a power cut can leave zeros behind the last line
        lines.pop()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            found.append((line, record))
        elif number < len(lines):
            raise FileError(f"{path}, line {number}: expected a JSON object with 'step'; correct or remove the line")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
