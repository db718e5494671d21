"""Vocabularies: text to symbol numbers and back, for characters, bytes and words."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any, Literal, final, get_args

import numpy as np
import numpy.typing as npt

from tinygrad_rnn.errors import DataError, InputError, UnknownSymbolError, nearest

Kind = Literal["chars", "bytes", "words"]
UnknownPolicy = Literal["error", "skip", "replace"]
Ids = npt.NDArray[np.unsignedinteger[Any]]

UNKNOWN_CHARACTER = "\ufffd"
UNKNOWN_WORD = "<unk>"  # `split_words` would give three tokens for it, so no text has it by accident
BYTE_NAMES = tuple(map(chr, range(256)))
MAX_WORD = 1000  # a longer run is cut, so that a text without a single space stays in bounded memory
WORDS = rf"\w{{1,{MAX_WORD}}}|[\r\n]{{1,{MAX_WORD}}}|[^\S\r\n]{{1,{MAX_WORD}}}|[^\w\s]"


@dataclass(frozen=True)
class Vocabulary:
    """The V symbols of a model: `symbols[i]` is what number i stands for.

    `kind` says what a symbol is: a character, a byte or a word. A byte vocabulary always has the 256 bytes,
    named by their Latin-1 characters. `unknown` is the number of the unknown symbol, None where there is none.
    Raises InputError for symbols that do not fit the kind.
    """

    kind: Kind
    symbols: tuple[str, ...]
    unknown: int | None = None

    def __post_init__(self) -> None:
        _check_kind(self.kind)
        if self.kind == "bytes" and (self.symbols != BYTE_NAMES or self.unknown is not None):
            raise InputError("expected the 256 bytes and no unknown symbol in a byte vocabulary; use BYTE_NAMES")
        if len(set(self.symbols)) != len(self.symbols) or not all(self.symbols):
            raise InputError("expected symbols that differ and are not empty, got a repeated or empty one; drop it")
        if self.kind == "chars" and any(len(symbol) != 1 for symbol in self.symbols):
            raise InputError("expected symbols of one character each, got a longer one; use the kind 'words'")
        if self.unknown is not None and not 0 <= self.unknown < self.size:
            raise InputError(f"expected an unknown symbol below V = {self.size}, got {self.unknown}; give its index")

    @property
    def size(self) -> int:
        """V, the number of symbols."""
        return len(self.symbols)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """The smallest unsigned integer type that can hold every number below V."""
        return np.dtype(np.min_scalar_type(max(self.size - 1, 0)))

    def encode(self, text: str, unknown: UnknownPolicy = "error") -> Ids:
        """The numbers of the symbols of `text`: shape (N,), the smallest unsigned integer type.

        What is not in the vocabulary is an error, left out (``skip``) or the unknown symbol (``replace``).
        Raises DataError for such a symbol, InputError for ``replace`` without an unknown symbol.
        """
        if self.kind == "bytes":
            try:  # an argument of the command line carries bytes that are not UTF-8 as lone surrogates
                raw = text.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError as error:
                raise DataError(f"expected text, got the lone surrogate {text[error.start]!r}; remove it") from error
            return np.frombuffer(raw, np.uint8).copy()
        return self.encode_symbols(text if self.kind == "chars" else split_words(text), unknown)

    def encode_symbols(self, symbols: Sequence[str], unknown: UnknownPolicy = "error", *, start: int = 0) -> Ids:
        """`encode` for text that is cut already: a str (its characters) or a list of words.

        `start` is how many symbols came before, for the position in an error message.
        """
        return self._settled(self._find(symbols), unknown, lambda where: symbols[where], start)

    def translator(self, other: Vocabulary) -> Callable[[Ids, UnknownPolicy, int], Ids]:
        """A function of (ids, unknown, start): `encode_symbols` for what `other` has numbered already."""
        table = self._find(other.symbols)

        def translate(ids: Ids, unknown: UnknownPolicy, start: int) -> Ids:
            return self._settled(table[ids], unknown, lambda where: other.symbols[ids[where]], start)

        return translate

    def _settled(
        self, numbers: npt.NDArray[np.int32], unknown: UnknownPolicy, symbol: Callable[[int], str], start: int
    ) -> Ids:
        """`numbers`, with what is not in the vocabulary (-1) treated as `unknown` says; `symbol` names it by place."""
        _check_policy(unknown)
        if unknown == "replace" and self.unknown is None:
            raise InputError(
                "expected a vocabulary with an unknown symbol to replace by, got one without; "
                "use skip or error, or train with --min-count 2 or more"
            )
        missing = numbers < 0
        if missing.any():
            if unknown == "error":
                where = int(np.argmax(missing))
                raise self._not_known(symbol(where), start + where)
            if unknown == "replace" and self.unknown is not None:
                numbers[missing] = self.unknown
            else:
                numbers = numbers[~missing]
        return numbers.astype(self.dtype)

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> str:
        """The text of the numbers `ids`, shape (N,): the inverse of `encode`.

        A byte that is not UTF-8 becomes the lone surrogate U+DC80 to U+DCFF that Python's ``surrogateescape`` puts in
        its place, so that ``text.encode("utf-8", "surrogateescape")`` gives every byte back.
        Raises InputError for numbers outside 0..V-1.
        """
        numbers = np.asarray(ids)
        if numbers.size == 0:
            return ""
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            got = f"{numbers.dtype} of shape {numbers.shape}"
            raise InputError(f"expected integers of shape (N,), got {got}; decode one stream at a time")
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= self.size:
            raise InputError(f"expected numbers from 0 to {self.size - 1}, got {low} to {high}; use their vocabulary")
        if self.kind == "bytes":
            return numbers.astype(np.uint8).tobytes().decode("utf-8", "surrogateescape")
        return "".join(map(self.symbols.__getitem__, numbers.tolist()))

    def decoder(self) -> Decoder:
        """A decoder for symbols that arrive one by one, as in sampling."""
        return Decoder(self)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: ``kind``, ``symbols``, ``unknown``."""
        return {"kind": self.kind, "symbols": list(self.symbols), "unknown": self.unknown}

    @staticmethod
    def from_json(value: Any) -> Vocabulary:
        """The vocabulary that `to_json` wrote. Raises DataError for anything else."""
        try:
            kind, symbols, unknown = value["kind"], value["symbols"], value["unknown"]
            if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
                raise InputError("symbols are not a list of texts")
            if unknown is not None and type(unknown) is not int:
                raise InputError(f"the unknown symbol is {unknown!r}")
            return Vocabulary(kind, tuple(symbols), unknown)
        except (KeyError, TypeError, InputError) as error:
            raise DataError(f"expected a vocabulary as JSON, got something else ({error}); write it anew") from error

    @cached_property
    def _table(self) -> npt.NDArray[np.int32]:
        """Number by code point, -1 for none; the last entry is -1 and catches all code points above."""
        points = [ord(symbol) for symbol in self.symbols]
        table = np.full(max(points, default=0) + 2, -1, np.int32)
        table[points] = np.arange(self.size, dtype=np.int32)
        return table

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {symbol: number for number, symbol in enumerate(self.symbols)}

    def _find(self, symbols: Sequence[str]) -> npt.NDArray[np.int32]:
        if self.kind != "words":
            text = symbols if isinstance(symbols, str) else "".join(symbols)
            return np.take(self._table, code_points(text), mode="clip")
        return np.fromiter(map(self._numbers.get, symbols, repeat(-1)), np.int32, len(symbols))

    def _not_known(self, symbol: str, position: int) -> UnknownSymbolError:
        code = f" (U+{ord(symbol):04X})" if len(symbol) == 1 else ""
        what = "character" if self.kind == "chars" else "word"
        remedy = (
            "skip such symbols, or train with --min-count 2 or more, which adds an unknown symbol"
            if self.unknown is None
            else "skip such symbols, or replace them by the unknown one"
        )
        told = (
            f"expected one of the {self.size} symbols of the vocabulary, got the {what} {symbol!r}{code} "
            f"at position {position}"
        )
        error = UnknownSymbolError(f"{told}; {remedy}")
        error.what = told
        return error


@final
class Decoder:
    """Text from symbol numbers that arrive one by one; a character is given out once all its bytes are there."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._symbols = vocabulary.symbols
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape") if vocabulary.kind == "bytes" else None

    def feed(self, number: int) -> str:
        """The text that is complete with symbol `number`, perhaps none.

        Raises InputError for a number outside 0..V-1.
        """
        if not 0 <= number < len(self._symbols):
            raise InputError(f"expected a number from 0 to {len(self._symbols) - 1}, got {number}; use its vocabulary")
        return self._symbols[number] if self._utf8 is None else self._utf8.decode(bytes((number,)))

    def flush(self) -> str:
        """What is left at the end: the bytes of a character that was never completed, as `decode` spells them."""
        if self._utf8 is None:
            return ""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def build_vocabulary(kind: Kind, counts: Mapping[str, int], min_count: int = 1) -> Vocabulary:
    """The vocabulary of a text whose symbols occur `counts` times, sorted by code point.

    Symbols that occur fewer than `min_count` times become the unknown symbol (U+FFFD, ``<unk>`` for words);
    where none is so rare, there is no unknown symbol. For bytes, `counts` and `min_count` are not looked at.
    Raises InputError for another kind and for `min_count` below 1.
    """
    _check_kind(kind)
    if min_count < 1:
        raise InputError(f"expected --min-count of at least 1, got {min_count}; use 1 to keep every symbol")
    if kind == "bytes":
        return Vocabulary("bytes", BYTE_NAMES)
    kept = {symbol for symbol, count in counts.items() if count >= min_count}
    if len(kept) == len(counts):
        return Vocabulary(kind, tuple(sorted(kept)))
    stand_in = UNKNOWN_CHARACTER if kind == "chars" else UNKNOWN_WORD
    symbols = tuple(sorted(kept | {stand_in}))
    return Vocabulary(kind, symbols, symbols.index(stand_in))


def extend_vocabulary(vocabulary: Vocabulary, counts: Mapping[str, int], min_count: int = 1) -> Vocabulary:
    """`vocabulary` and, behind its symbols, those of a text that it lacks and that occur at least `min_count` times.

    No symbol that it has changes its number. A byte vocabulary lacks none.
    """
    known = set(vocabulary.symbols)
    new = sorted(symbol for symbol, count in counts.items() if count >= min_count and symbol not in known)
    return Vocabulary(vocabulary.kind, (*vocabulary.symbols, *new), vocabulary.unknown)


def count_symbols(kind: Literal["chars", "words"], chunks: Iterable[str]) -> dict[str, int]:
    """How often each character or word occurs in a text that comes in chunks; where it is cut does not matter."""
    if kind == "words":
        words: Counter[str] = Counter()
        for some in word_chunks(chunks):
            words.update(some)
        return dict(words)
    counts = np.zeros(0x110000, np.int64)
    for chunk in chunks:
        some_counts = np.bincount(code_points(chunk))
        counts[: some_counts.size] += some_counts
    return {chr(point): int(counts[point]) for point in np.flatnonzero(counts)}


def split_words(text: str) -> list[str]:
    """Cut `text` into words, runs of line ends, runs of other white space and single other characters.

    Nothing is dropped: ``"".join(split_words(text)) == text``. Runs longer than 1000 characters are cut.
    """
    return re.findall(WORDS, text)


def word_chunks(chunks: Iterable[str]) -> Iterator[list[str]]:
    """`split_words` for a text that comes in chunks: the same words, wherever the text was cut."""
    rest = ""
    for chunk in chunks:
        words = split_words(rest + chunk)
        rest = words.pop() if words else ""  # the last word may go on in the next chunk
        if words:
            yield words
    if rest:
        yield [rest]


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """The Unicode code points of `text`, shape (N,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def _check_kind(kind: str) -> None:
    if kind not in get_args(Kind):
        raise InputError(f"no kind of tokens {kind!r}{nearest(str(kind), get_args(Kind))}")


def _check_policy(unknown: str) -> None:
    if unknown not in get_args(UnknownPolicy):
        raise InputError(f"no way {unknown!r} to treat unknown symbols{nearest(str(unknown), get_args(UnknownPolicy))}")
