"""Text from files, folders and standard input, read in chunks of bounded size.

Several sources are joined in the order given, by a text that the caller names; one without content adds nothing. Line
ends are kept as they are (CRLF stays CRLF). A byte order mark at the start of a file is no part of its text. A file
whose name says that it is compressed (``compressed.COMPRESSED``) is its content.
"""

from __future__ import annotations

import codecs
import dataclasses
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, AnyStr, Literal

from tinygrad_rnn.data.compressed import COMPRESSED, decompressed, ending_of, looks_compressed
from tinygrad_rnn.data.encodings import AUTO, check_encoding, guess_encoding, has_plain_nul
from tinygrad_rnn.errors import DataError, InputError, nearest

ErrorPolicy = Literal["strict", "replace", "ignore"]

TEXT_ENDINGS = (".txt", *(f".txt{ending}" for ending in COMPRESSED))
CHUNK_BYTES = 1 << 18  # small enough that a chunk and its code points stay in the cache


@dataclass(frozen=True)
class Source:
    """One input that can be read more than once; `name` is what messages call it.

    Exactly one of `path` and `spool` (a copy of a stream in a temporary file) is set. `compression` is the ending that
    says how the bytes are compressed, '' where they are not.
    """

    name: str
    path: Path | None = None
    spool: IO[bytes] | None = None
    encoding: str = "utf-8"
    compression: str = ""


@dataclass(frozen=True)
class Opened:
    """The sources to read, in order, and the files that their folders hold beside them."""

    sources: tuple[Source, ...]
    skipped: tuple[str, ...]


def read_chunks(
    sources: Sequence[str],
    errors: ErrorPolicy = "strict",
    stdin: IO[bytes] | None = None,
    *,
    encoding: str = "utf-8",
    between: str = "",
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[str]:
    """The text of `sources` (files, folders, ``-``), decoded, at most `chunk_bytes` characters at a time.

    `errors` says what happens to bytes that are none of the encoding; `stdin` stands in for the process's own.
    Raises DataError (missing, empty, binary or badly encoded text) and InputError (an unknown `errors`, `encoding`).
    """
    with open_sources(sources, stdin, encoding) as opened:
        yield from decoded_chunks(opened.sources, errors, between=between, chunk_bytes=chunk_bytes)


def read_text(
    source: str,
    kind: str,
    encoding: str = "utf-8",
    errors: ErrorPolicy = "strict",
    stdin: IO[bytes] | None = None,
    *,
    undecoded: MutableMapping[str, int] | None = None,
) -> str:
    """All of one source as `Vocabulary.encode` takes it: any bytes for a byte vocabulary, else decoded characters.

    `undecoded` receives what `decoded_chunks` puts there. Raises what `read_chunks` raises.
    """
    if kind == "bytes":
        return b"".join(read_byte_chunks([source], stdin)).decode("utf-8", "surrogateescape")
    with open_sources([source], stdin, encoding) as opened:
        return "".join(decoded_chunks(opened.sources, errors, undecoded=undecoded))


def read_byte_chunks(
    sources: Sequence[str], stdin: IO[bytes] | None = None, *, between: bytes = b"", chunk_bytes: int = CHUNK_BYTES
) -> Iterator[bytes]:
    """The bytes of `sources` just as they are, at most `chunk_bytes` at a time.

    Raises DataError for sources that are missing, unreadable or empty.
    """
    with open_sources(sources, stdin) as opened:
        yield from raw_chunks(opened.sources, between=between, chunk_bytes=chunk_bytes)


@contextmanager
def open_sources(sources: Sequence[str], stdin: IO[bytes] | None = None, encoding: str = "utf-8") -> Iterator[Opened]:
    """Turn names into sources that can be read twice, for as long as the context lasts.

    A folder stands for its ``.txt`` files, at any depth, sorted by path, numbers by their value (2.txt before 10.txt);
    for all its files where there are none. ``.txt.gz`` and the like are ``.txt`` files. Files and folders whose name
    starts with a dot are left out. ``-`` (standard input) and pipes are copied to a temporary file. Under the encoding
    ``auto`` that of each source is guessed. Raises DataError and InputError (``-`` named twice, an unknown encoding).
    """
    if list(sources).count("-") > 1:
        raise InputError("expected '-' (standard input) at most once, got it twice; name it once")
    codec = AUTO if encoding == AUTO else check_encoding(encoding)
    with ExitStack() as stack:
        opened: list[Source] = []
        skipped: list[str] = []
        for name in sources:
            if name == "-":
                opened.append(Source("standard input", spool=_spool(name, stdin or sys.stdin.buffer, stack)))
                continue
            path = Path(name)
            if not name or not _exists(path):
                raise DataError(f"expected a file, a folder or '-', got {name!r}, which does not exist; check the path")
            if path.is_dir():
                read, others = _folder_files(path)
                opened += [Source(str(found), path=found, compression=ending_of(found.name)) for found in read]
                skipped += map(str, others)
            elif path.is_file():
                opened.append(Source(name, path=path, compression=ending_of(name)))
            else:  # a pipe or a device gives its bytes once only
                with _reported(name), path.open("rb") as stream:
                    spool = _spool(name, stream, stack)
                opened.append(Source(name, spool=spool, compression=ending_of(name)))
        yield Opened(tuple(_with_encoding(source, codec) for source in opened), tuple(skipped))


def _with_encoding(source: Source, codec: str) -> Source:
    found = guess_encoding(_raw(source, CHUNK_BYTES), source.name) if codec == AUTO else codec
    return dataclasses.replace(source, encoding=found)


def decoded_chunks(
    sources: Sequence[Source],
    errors: ErrorPolicy = "strict",
    *,
    between: str = "",
    chunk_bytes: int = CHUNK_BYTES,
    undecoded: MutableMapping[str, int] | None = None,
) -> Iterator[str]:
    """The characters of opened sources; see `read_chunks`. The result does not depend on `chunk_bytes`.

    `undecoded` receives, by the name of each source with such bytes, how many are none of its encoding and were
    therefore replaced or ignored.
    """
    known = ("strict", "replace", "ignore")
    if errors not in known:
        raise InputError(f"no way {errors!r} to treat bytes that are not UTF-8{nearest(errors, known)}")
    empty = True
    for text in _joined((_decoded(source, errors, chunk_bytes, undecoded) for source in sources), between):
        empty = False
        yield text
    if empty:
        raise _nothing(sources, "character")


def raw_chunks(sources: Sequence[Source], *, between: bytes = b"", chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The bytes of opened sources; see `read_byte_chunks`."""
    empty = True
    for raw in _joined((_raw(source, chunk_bytes) for source in sources), between):
        empty = False
        yield raw
    if empty:
        raise _nothing(sources, "byte")


def _joined(texts: Iterable[Iterator[AnyStr]], between: AnyStr) -> Iterator[AnyStr]:
    """The chunks of one text after the other, and `between` in front of each but the first that has any."""
    begun = False
    for chunks in texts:
        first = next(chunks, None)
        if first is None:
            continue
        if begun and between:
            yield between
        begun = True
        yield first
        yield from chunks


class _Undecoded(threading.local):
    """The bytes that the handlers below have replaced or ignored in this thread. A codec knows a handler by its name
    alone, so none can be made for one source."""

    total = 0


_undecoded = _Undecoded()


def _counted(
    handle: Callable[[UnicodeError], tuple[str | bytes, int]],
) -> Callable[[UnicodeError], tuple[str | bytes, int]]:
    def count(error: UnicodeError) -> tuple[str | bytes, int]:
        if isinstance(error, UnicodeDecodeError):
            _undecoded.total += error.end - error.start
        return handle(error)

    return count


COUNTED = "tinygrad_rnn."  # in front of the names of handlers that count
codecs.register_error(f"{COUNTED}replace", _counted(codecs.replace_errors))
codecs.register_error(f"{COUNTED}ignore", _counted(codecs.ignore_errors))


def _decoded(
    source: Source, errors: ErrorPolicy, chunk_bytes: int, undecoded: MutableMapping[str, int] | None
) -> Iterator[str]:
    if not source.compression and (ending := looks_compressed(_start(source))):
        raise DataError(
            f"expected text, got {COMPRESSED[ending]} data from {source.name!r}; decompress it, or "
            f"give a file whose name ends in {ending}"
        )
    decoder = codecs.getincrementaldecoder(source.encoding)(errors if errors == "strict" else f"{COUNTED}{errors}")
    plain = has_plain_nul(source.encoding)
    offset = 0  # bytes given to the decoder so far
    lost = 0
    started = False
    for raw in _with_end(_raw(source, chunk_bytes)):
        nul = raw.find(0) if plain else -1
        if nul >= 0:
            raise DataError(
                f"expected text, got binary data: {source.name!r} has a NUL byte at byte {offset + nul}; "
                "pass --tokens bytes, or --encoding with the one that it is in, as utf-16"
            )
        pending = len(decoder.getstate()[0])  # the start of a character that the last chunk cut
        before = _undecoded.total
        try:
            text = decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            where = offset - pending + error.start
            raise DataError(
                f"expected {source.encoding.upper()}, got byte 0x{error.object[error.start]:02x} at byte {where} of "
                f"{source.name!r}; pass --encoding with another one ({_likelier(source)}), --errors replace, --errors "
                "ignore or --tokens bytes"
            ) from error
        except UnicodeError as error:  # that of a codec which asks for a byte order mark
            raise DataError(
                f"expected {source.encoding.upper()}, got other bytes from {source.name!r} ({error}); pass --encoding "
                "with its byte order, as utf-16-le"
            ) from error
        if not plain and "\0" in text:
            raise DataError(
                f"expected text in {source.encoding}, got a NUL character behind byte {offset} of {source.name!r}; "
                "pass --encoding with another one, or --tokens bytes"
            )
        lost += _undecoded.total - before
        offset += len(raw)
        if text and not started:
            started = True
            text = text.removeprefix("\ufeff")
        if text:
            yield text
    if lost and undecoded is not None:
        undecoded[source.name] = lost


def _likelier(source: Source) -> str:
    """What to try where the encoding of `source` is not the one that was named."""
    if _start(source).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "auto, cp1252, latin-1" if source.encoding == "utf-8" else "auto, utf-8"


def _start(source: Source) -> bytes:
    """The first bytes of `source`: enough to tell what it is."""
    return next(_raw(source, 16), b"")


def _with_end(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks, none of them empty, and an empty one that marks the end."""
    yield from chunks
    yield b""


def _raw(source: Source, chunk_bytes: int) -> Iterator[bytes]:
    with ExitStack() as stack:
        stack.enter_context(_reported(source.name))
        if source.spool is not None:
            stream = source.spool
            stream.seek(0)
        else:
            assert source.path is not None
            stream = stack.enter_context(source.path.open("rb"))
        if source.compression:
            yield from decompressed(stream, source.compression, source.name, chunk_bytes)
            return
        while raw := stream.read(chunk_bytes):
            yield raw


def _folder_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files that `folder` stands for, and what is left out of it: other files, links to folders, broken links and
    devices, and names that start with a dot.
    """
    found: list[Path] = []
    left: list[Path] = []
    with _reported(str(folder)):
        for parent, folders, files in os.walk(folder, onerror=_raise):
            for name in files:
                path = Path(parent, name)
                (left if name.startswith(".") or not path.is_file() else found).append(path)
            left += [Path(parent, name) for name in folders if name.startswith(".") or Path(parent, name).is_symlink()]
            folders[:] = [name for name in folders if not name.startswith(".")]  # links are not followed anyway
    if not found:
        raise DataError(f"expected a folder with text, got {str(folder)!r}, which has no file in it; name another")
    text = [path for path in found if path.name.lower().endswith(TEXT_ENDINGS)] or found
    others = set(found).difference(text).union(left)

    def order(path: Path) -> list[tuple[list[str | int], str]]:
        # By parts, not by the printed path: the order must be the same whatever the separator is.
        return [(_natural(part), part) for part in path.relative_to(folder).parts]

    return sorted(text, key=order), sorted(others, key=order)


def _natural(name: str) -> list[str | int]:
    """`name` as what sorts 2 before 10: text and numbers in turn, text first."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))]


def _spool(name: str, stream: IO[bytes], stack: ExitStack) -> IO[bytes]:
    with _reported(name):
        spool = stack.enter_context(tempfile.TemporaryFile())
        shutil.copyfileobj(stream, spool, CHUNK_BYTES)
    return spool


def _exists(path: Path) -> bool:
    with _reported(str(path)):
        return path.exists()


@contextmanager
def _reported(name: str) -> Iterator[None]:
    """Turn what the operating system says about `name` into a DataError of one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"expected readable text, got {name!r}: {reason}; check its path and permissions") from error


def _raise(error: OSError) -> None:
    raise error


def _nothing(sources: Sequence[Source], unit: str) -> DataError:
    names = ", ".join(repr(source.name) for source in sources[:3]) + (", ..." if len(sources) > 3 else "")
    return DataError(f"expected text, got not one {unit} from {names or 'no source'}; name a file that is not empty")
