"""Character encodings: their names, and the guess which one a file is in."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from encodings.aliases import aliases
from itertools import chain

from tinygrad_rnn.errors import DataError, InputError, nearest

AUTO = "auto"
COMMONEST = "cp1252"
SOME = "utf-8, latin-1, cp1252 or utf-16, or auto for a guess"
MARKS = {"utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)}


def check_encoding(name: str) -> str:
    """`name` as `codecs` finds it: any text encoding of Python. Raises InputError, with the nearest name."""
    found = _text_codec(name)
    if found is None:
        pairs = (pair for pair in aliases.items() if _text_codec(pair[1]) is not None)
        names = {name.replace("_", "-") for pair in pairs for name in pair}
        near = nearest(name, {AUTO, *names}, whole=False) or f"; give one that Python knows, as {SOME}"
        raise InputError(f"--encoding: no encoding {name!r}{near}")
    # the mark at the start is taken off whatever the encoding, and this codec's errors count from behind it
    return "utf-8" if found.name == "utf-8-sig" else name


def _text_codec(name: str) -> codecs.CodecInfo | None:
    """The codec of this name, or None where no text can be in it, as in 'rot13', 'idna' and 'undefined'."""
    try:
        found = codecs.lookup(name)
        if not getattr(found, "_is_text_encoding", True):
            return None
        "a".encode(name)
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError, UnicodeError):
        return None
    return found


def has_plain_nul(encoding: str) -> bool:
    """Whether a NUL byte can be nothing but a NUL character, which no text has."""
    return "\0".encode(encoding) == b"\0"


def guess_encoding(chunks: Iterator[bytes], name: str) -> str:
    """The encoding of a text whose bytes come in `chunks`, by charset-normalizer; `name` is what messages call it.

    A text that is UTF-8 as a whole, or begins with the byte order mark of another, needs no guess. Otherwise what
    stands around the first byte that is not UTF-8 decides, and between encodings that fit alike the commonest.
    Raises DataError where nothing fits, or the package is not installed.
    """
    start = next(chunks, b"")
    for encoding, marks in MARKS.items():
        if start.startswith(marks):
            return encoding
    sample = _beside_bad_byte(chain([start], chunks))
    if sample is None:
        return "utf-8"
    try:
        import charset_normalizer
    except ImportError as error:
        raise DataError(
            f"--encoding auto: {name!r} is not UTF-8, and to guess further needs a package; "
            "pip install 'tinygrad_rnn[text]', or name the encoding: --encoding latin-1"
        ) from error
    matches = list(charset_normalizer.from_bytes(sample))  # the best first
    if not matches:
        raise DataError(
            f"--encoding auto: expected {name!r} to be in some encoding, found none that fits; name it: --encoding "
            "latin-1, or take it as it is: --tokens bytes"
        )
    alike = {m.encoding for m in matches if (m.chaos, m.coherence) == (matches[0].chaos, matches[0].coherence)}
    return check_encoding(COMMONEST if COMMONEST in alike else matches[0].encoding)


def _beside_bad_byte(chunks: Iterator[bytes]) -> bytes | None:
    """The chunk with the first byte that is not UTF-8 (or is NUL), and its neighbours; None where there is none."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    before = b""
    for chunk in chunks:
        try:
            decoder.decode(chunk)
            good = b"\0" not in chunk
        except UnicodeDecodeError:
            good = False
        if not good:
            return _whole_lines(before, chunk, next(chunks, b""))
        before = chunk
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return before
    return None


def _whole_lines(before: bytes, chunk: bytes, after: bytes) -> bytes:
    """The three joined and cut at line ends where they may begin or end amid a character, which no guess survives."""
    sample = before[before.find(b"\n") + 1 :] + chunk + after
    end = sample.rfind(b"\n") + 1
    return sample[:end] if after and end else sample
