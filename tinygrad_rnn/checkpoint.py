"""Checkpoints: arrays and JSON in one safetensors file that is either whole or reported as damaged.

The file is an ordinary safetensors file. Its metadata holds ``format``, ``meta`` (JSON text) and ``sha256``
over the meta and every array's name, dtype, shape and bytes. Nothing in it is ever executed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from tinygrad_rnn.backend import Array, to_host
from tinygrad_rnn.errors import CheckpointError, FileError, InputError

FORMAT = "tinygrad_rnn.checkpoint.1"

_FAMILY = "tinygrad_rnn.checkpoint."
_DTYPES = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"}
)
# What a file system says that cannot sync a folder at all; the rename is then as durable as it gets there.
_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR})


def save(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Array],
    meta: Mapping[str, Any],
    *,
    last_good: str | os.PathLike[str] | None = None,
) -> None:
    """Write `arrays` (any shape, bool, integer or floating; any device) and `meta` (JSON values) to `path`.

    A reader sees the old file or the whole new one, whenever the process or the machine stops: written under
    a temporary name in the same folder, synced, read back, renamed. `last_good` is the checkpoint that the
    error names when nothing stands at `path` yet.

    Raises CheckpointError if the disk refuses (the old file stands, no temporary file is left), InputError
    for a dtype that safetensors cannot hold, or for a `meta` that is not strict JSON (NaN and infinity are
    not).
    """
    target = Path(path)
    text = to_json(meta, f"checkpoint {target}: meta", indent=None)
    host = {name: contiguous(name, array) for name, array in arrays.items()}
    digest = _digest(text, host)
    data = safetensors.numpy.save(host, {"format": FORMAT, "meta": text, "sha256": digest})
    good = target if target.is_file() else last_good
    state = f"the last good checkpoint is {good}" if good is not None else "there is no earlier checkpoint"
    try:
        _decode(data, "what came back")
    except CheckpointError as error:
        raise CheckpointError(
            f"cannot write {target}: safetensors {safetensors.__version__} changed the arrays "
            f"({error}); {state}; install another version of it"
        ) from error
    try:
        _write_atomic(target, data)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {_reason(error)}; {state}; {_remedy(error)}") from error


def load(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """Read what `save` wrote: NumPy arrays that own writable memory, by name, and the meta.

    Raises CheckpointError, in one line, if the file is missing, unreadable, not a checkpoint of this
    library, of a newer format, truncated or changed in any bit that matters.
    """
    source = Path(path)
    try:
        data = source.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint {source}: the file does not exist; check the path") from None
    except OSError as error:
        raise CheckpointError(
            f"cannot read checkpoint {source}: {_reason(error)}; expected a .safetensors file of a run"
        ) from error
    return _decode(data, f"checkpoint {source}")


def write_json_atomic(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented strict JSON, whole or not at all.

    Raises FileError if the disk refuses (the old file stands), InputError if `value` is not JSON.
    """
    write_bytes_atomic(path, (to_json(value, str(path), indent=2) + "\n").encode("ascii"))


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file at `path` by `data`, whole or not at all.

    Raises FileError if the disk refuses (the old file stands, no temporary file is left).
    """
    try:
        _write_atomic(Path(path), data)
    except OSError as error:
        raise FileError(f"cannot write {path}: {_reason(error)}; {_remedy(error)}") from error


def write_new_file(path: str | os.PathLike[str], data: bytes, ending: str, *, overwrite: bool) -> None:
    """`write_bytes_atomic` for a file that a user named: makes its folder, replaces a file with `overwrite` alone.

    Its name has to end in `ending`: with another one some other program would take it for what it is not, and a slip
    could replace the description of a run. Raises FileError.
    """
    target = Path(path)
    if target.is_dir():
        raise FileError(f"{target} is a folder; name a file in it")
    if os.path.lexists(target) and not overwrite:
        raise FileError(f"{target} is there already; replace it with --overwrite, or choose another name")
    if target.suffix.lower() != ending:
        raise FileError(f"{target}: expected a name that ends in {ending}, got {target.suffix or 'no ending'}")
    if target.exists() and not target.is_file():  # a device would be gone
        raise FileError(f"{target} is no plain file; choose another name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder {target.parent}: {error.strerror or error}; choose another") from error
    write_bytes_atomic(target, data)


def to_json(value: Any, what: str, indent: int | None) -> str:
    """`value` as strict ASCII JSON text; numbers come back exactly. `what` names it in the error.

    Raises InputError for what JSON cannot say: NaN, infinity, arrays, NumPy scalars, sets.
    """
    try:
        return json.dumps(dict(value) if isinstance(value, Mapping) else value, indent=indent, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{what}: expected JSON values (finite numbers, text, lists, tables), got something else ({error})"
        ) from error


def contiguous(name: str, array: Array) -> np.ndarray[Any, Any]:
    """`array` on the host, C-contiguous, little-endian, its shape unchanged: as safetensors can write it.

    safetensors 0.8.0 writes the memory of a ``.T`` view in the wrong order without a word.
    np.ascontiguousarray would turn 0-d into 1-d.
    Raises InputError, with the array's `name`, for a dtype that safetensors cannot hold.
    """
    host = np.asarray(to_host(array), order="C")
    if host.dtype.name not in _DTYPES:
        raise InputError(
            f"checkpoint: expected a bool, integer or floating array for {name!r}, got dtype "
            f"{host.dtype}; convert it first"
        )
    if name == "__metadata__":
        raise InputError("checkpoint: the array name '__metadata__' belongs to safetensors; rename it")
    return host.astype(host.dtype.newbyteorder("<"), order="C", copy=False)


def is_temporary(path: Path) -> bool:
    """Whether `path` is named like an unfinished file of this module, left by a process that was killed."""
    return re.fullmatch(r"\..+\.\d+\.[0-9a-f]{8}\.tmp", path.name) is not None


def _write_atomic(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            rest = memoryview(data)
            while rest:  # a nearly full disk takes a part and refuses the next
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if temporary.read_bytes() != data:
            raise OSError(errno.EIO, "the file reads back differently from what was written")
        os.replace(temporary, path)
    except BaseException:  # an interrupt, too, must leave nothing behind
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def _digest(meta: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """sha256 over the meta and every array in order of names; lengths come first, so that no two inputs agree."""
    sha = hashlib.sha256()
    encoded = meta.encode()
    sha.update(f"{FORMAT} {len(encoded)} ".encode() + encoded)
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(json.dumps([name, array.dtype.name, list(array.shape)]).encode())
        sha.update(array.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def _decode(data: bytes, what: str) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """The content of a file, all of it checked; CheckpointError whose message starts with `what`."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise CheckpointError(
            f"{what} is no safetensors file, or is truncated ({len(data)} bytes); use another checkpoint"
        )
    try:
        header = json.loads(data[8 : 8 + length])
        facts = header["__metadata__"] if isinstance(header, dict) and "__metadata__" in header else {}
        arrays = {name: array.copy() for name, array in safetensors.numpy.load(data).items()}
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{what} is damaged, or is no safetensors file ({reason}); use another checkpoint"
        ) from error
    form = facts.get("format", "")
    if not {"format", "meta", "sha256"} <= facts.keys() or not form.startswith(_FAMILY):
        raise CheckpointError(
            f"{what} is a safetensors file, but none that tinygrad_rnn wrote (its metadata is "
            "missing or changed); use a checkpoint of a run"
        )
    if form != FORMAT:
        raise CheckpointError(
            f"{what} has the format {form!r}, expected {FORMAT!r}; open it with the version of "
            "tinygrad_rnn that wrote it"
        )
    if _digest(facts["meta"], arrays) != facts["sha256"]:
        raise CheckpointError(f"{what} is damaged (its sha256 does not match its content); use another checkpoint")
    return arrays, json.loads(facts["meta"])


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _remedy(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "check the permissions of the folder, or write elsewhere"
    return "make room or write elsewhere"
