"""Compressed text, read in chunks of bounded size: gzip, bzip2, xz and zstd, known by the ending of the name."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Any

from tinygrad_rnn.errors import DataError

COMPRESSED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
RATIO = 200  # how many times its compressed size a text may have; prose has 3 to 5 times, a log of one line 100
FLOOR = 1 << 26  # up to so many bytes no ratio is suspicious
ZSTD_INPUT = 256  # bytes of zstd at a time, because each may stand for 32 KiB and the package cannot bound its output
CUT = "the data end too early"

_MAGIC = {".gz": rb"\x1f\x8b", ".bz2": rb"BZh[1-9]1AY&SY", ".xz": rb"\xfd7zXZ\x00", ".zst": rb"\x28\xb5\x2f\xfd"}


def ending_of(name: str) -> str:
    """The ending of `name` that says how its file is compressed, '' where it is not."""
    ending = os.path.splitext(name)[1].lower()
    return ending if ending in COMPRESSED else ""


def looks_compressed(start: bytes) -> str:
    """The ending that fits the first bytes of a file, '' where they are not those of a compressed one."""
    return next((ending for ending, magic in _MAGIC.items() if re.match(magic, start)), "")


def decompressed(file: IO[bytes], ending: str, name: str, chunk_bytes: int) -> Iterator[bytes]:
    """What `file` holds, at most `chunk_bytes` at a time; `name` is what messages call it.

    Raises DataError for data that are damaged, end early or are compressed otherwise than `ending` says, and for more
    than `RATIO` times the size of the file (above `FLOOR` bytes): a file made to fill a memory looks like that.
    """
    kind = COMPRESSED[ending]
    size = os.fstat(file.fileno()).st_size
    total = 0
    chunks = _chunks(file, kind, name, chunk_bytes)
    while True:
        try:
            chunk = next(chunks, None)
        except DataError:
            raise
        except Exception as error:  # each package has exceptions of its own
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"expected {kind} data in {name!r}, as its ending says, got an error after {total} bytes of text: "
                f"{reason}; get the file anew, or rename it if it is not compressed"
            ) from error
        if chunk is None:
            return
        if not chunk:
            continue
        total += len(chunk)
        if total > max(FLOOR, RATIO * size):
            raise DataError(
                f"expected at most {RATIO} times the {size} bytes of {name!r} in its text, got more than {total}; "
                "decompress it yourself if that is right"
            )
        yield chunk


def _chunks(file: IO[bytes], kind: str, name: str, chunk_bytes: int) -> Iterator[bytes]:
    try:
        if kind == "gzip":
            stream = importlib.import_module("gzip").GzipFile(fileobj=file, mode="rb")
            return iter(partial(stream.read, chunk_bytes), b"")
        if kind == "bzip2":
            return _streams(file, importlib.import_module("bz2").BZ2Decompressor, chunk_bytes)
        if kind == "xz":
            return _streams(file, importlib.import_module("lzma").LZMADecompressor, chunk_bytes, padding=b"\0")
    except ImportError as error:
        raise DataError(
            f"{name!r}: this Python comes without {error.name}, which reads {kind}; decompress it"
        ) from error
    try:
        return _streams(file, importlib.import_module("compression.zstd").ZstdDecompressor, chunk_bytes)
    except ImportError:  # it is there since Python 3.14
        return _zstandard(file, name, chunk_bytes)


def _streams(file: IO[bytes], make: Callable[[], Any], chunk_bytes: int, padding: bytes = b"") -> Iterator[bytes]:
    """The content of the streams that follow each other in `file`, by the decompressors of the standard library.

    Their own file objects take what they cannot read behind the first stream for its end.
    """
    stream: Any = None
    while raw := file.read(chunk_bytes):
        while raw:
            if stream is None and not (raw := raw.lstrip(padding)):
                break
            stream = stream or make()
            yield stream.decompress(raw, chunk_bytes)
            while not (stream.eof or stream.needs_input):
                yield stream.decompress(b"", chunk_bytes)
            raw, stream = (stream.unused_data, None) if stream.eof else (b"", stream)
    if stream is not None:
        raise EOFError(CUT)


def _zstandard(file: IO[bytes], name: str, chunk_bytes: int) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise DataError(
            f"{name!r}: before Python 3.14 zstd needs a package; pip install 'tinygrad_rnn[text]', or decompress it"
        ) from error
    frame: Any = None
    while raw := file.read(ZSTD_INPUT):
        while raw:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            text = frame.decompress(raw)
            yield from (text[start : start + chunk_bytes] for start in range(0, len(text), chunk_bytes))
            raw, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError(CUT)
