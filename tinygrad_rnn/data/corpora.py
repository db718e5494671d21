"""Corpora, and data sets: a text, whichever it is, as one array of symbol numbers in three parts."""

from __future__ import annotations

import hashlib
import math
import os
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, final

import numpy as np

from tinygrad_rnn.config import DataConfig
from tinygrad_rnn.data.batches import check_sizes, too_short
from tinygrad_rnn.data.text import decoded_chunks, open_sources, raw_chunks
from tinygrad_rnn.data.tokens import (
    Ids,
    UnknownPolicy,
    Vocabulary,
    build_vocabulary,
    count_symbols,
    extend_vocabulary,
    word_chunks,
)
from tinygrad_rnn.errors import DataError, InputError, PluginError
from tinygrad_rnn.plugins import BUILT_IN, DATASETS, PluginEntry, available, by_author, check_function, load, register

CHUNK = 1 << 18  # symbols that are looked at together
SKIPPED_FOLDERS = frozenset({"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"})


@final
@dataclass(frozen=True)
class CorpusText:
    """What a corpus function returns: its text, in pieces where it is large, under which licence it is, its checksum.

    `sha256` is that of the text as UTF-8; where it is given, another text is an error.
    """

    text: str | Iterable[str]
    licence: str
    sha256: str | None = None


@final
@dataclass(frozen=True)
class Corpus:
    """One embedded corpus. Its text is read when `characters` or `sha256` is asked for, not before."""

    name: str
    summary: str

    @property
    def characters(self) -> int:
        """How many characters the text has."""
        return self._measured[0]

    @property
    def sha256(self) -> str:
        """The checksum of the text as UTF-8, the same as that of a data set made from it."""
        return self._measured[1]

    @cached_property
    def _measured(self) -> tuple[int, str]:
        digest = hashlib.sha256()
        characters = 0
        for chunk in corpus_chunks(self.name):
            characters += len(chunk)
            digest.update(chunk.encode())
        return characters, digest.hexdigest()


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """A text as symbol numbers: `train`, `val` and `test`, in this order, are read-only views of one array.

    Each has shape (N,) and the smallest unsigned integer type for the vocabulary. `sha256` is the checksum of the
    whole text (of its bytes for byte symbols, of its UTF-8 form otherwise); `source` says in words where it came from;
    `characters` counts Unicode characters, whatever a symbol is (for bytes: those that are no UTF-8 continuation).
    `files` are the sources in the order in which they were read, `encodings` what each was in (characters and words
    alone), `skipped` what the folders among them hold besides.
    """

    vocabulary: Vocabulary
    train: Ids
    val: Ids
    test: Ids
    sha256: str
    source: str
    characters: int
    left_out: tuple[int, int, int] = (0, 0, 0)
    """how many symbols of each part the vocabulary lacks and the part therefore skips"""
    files: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    encodings: tuple[str, ...] = ()
    undecoded: tuple[int, ...] = ()
    """how many bytes of each file are none of its encoding, and were replaced or ignored"""

    def facts(self) -> dict[str, Any]:
        """Which text this is, as run.json records it."""
        names = ("sha256", "source", "characters", "left_out", "files", "skipped", "encodings", "undecoded")
        return {name: getattr(self, name) for name in names}


@final
@dataclass(frozen=True)
class TextStatistics:
    """What there is to know of a data set before training on it."""

    source: str
    kind: str
    characters: int
    tokens: int
    """symbols in the text, all three parts together"""
    symbols: int
    """V, the size of the vocabulary"""
    distinct: int
    """how many of the V symbols occur"""
    frequent: tuple[tuple[str, int], ...]
    """the most frequent symbols and how often they occur, the most frequent first"""
    entropy: float
    """of the single symbols, in bits per symbol: the loss of a model that knows frequencies alone"""
    sha256: str
    files: tuple[str, ...]
    """what was read, in this order; none for a corpus"""
    skipped: tuple[str, ...]
    """what the folders hold besides"""
    undecoded: tuple[int, ...]
    """how many bytes of each file are none of its encoding, and were replaced or ignored"""


def corpora() -> list[Corpus]:
    """The embedded corpora, sorted by name."""
    names = [row.name for row in available(DATASETS, third_party=False)]
    return [Corpus(name, _summary(load(DATASETS, name, third_party=False))) for name in names]


def corpus_chunks(name: str, *, third_party: bool = True) -> Iterator[str]:
    """The text of a corpus, in chunks: an embedded one, or (with `third_party`) that of a plugin.

    ``python-docs`` is every topic of ``pydoc_data.topics``, sorted by name and joined by a line end.
    ``python-source`` is the standard library's .py files, sorted by path: modules and packages without test, tests,
    idlelib, lib2to3, site-packages and dist-packages, without the generated ``_sysconfigdata``, without files
    that cannot be decoded. ``hello`` is one line, repeated 2000 times. The first two depend on the Python that runs.
    Raises DataError for an unknown name and for a corpus that this Python does not have, PluginError where a plugin
    fails or its text has not the checksum that it names.
    """
    return _open_corpus(name, third_party)[1]()


def _open_corpus(name: str, third_party: bool) -> tuple[str, Callable[[], Iterator[str]]]:
    """Where the text comes from, in words, and what reads it."""
    try:
        entry = load(DATASETS, name, third_party=third_party)
    except InputError as error:
        raise DataError(str(error)) from error
    owner = entry.identity.owner
    what = f"corpus {name!r} of {owner}"
    first = [_call(entry, what)]

    def read() -> Iterator[str]:
        found = first.pop() if first else _call(entry, what)
        if isinstance(found.text, str):
            first.append(found)  # a function that fetches its text does so once
        return iter(found.text) if entry.identity.distribution == BUILT_IN else _checked_chunks(entry, found, what)

    if entry.identity.distribution == BUILT_IN:
        return f"corpus {name} of Python {sys.version_info.major}.{sys.version_info.minor}", read
    return f"corpus {name} of {owner} ({first[0].licence.strip()})", read


def _call(entry: PluginEntry, what: str) -> CorpusText:
    found: Any = by_author(what, entry.value)
    licence: Any = getattr(found, "licence", None)
    if not isinstance(found, CorpusText) or not isinstance(licence, str) or not licence.strip():
        raise PluginError(f"{what}: expected a tinygrad_rnn.CorpusText with a licence, got {found!r:.60}")
    return found


def _checked_chunks(entry: PluginEntry, found: CorpusText, what: str) -> Iterator[str]:
    """The chunks of a plugin's text, held against what it says of them; an error is the author's."""
    pieces = by_author(what, iter, [found.text] if isinstance(found.text, str | bytes) else found.text, of=entry.value)
    digest = hashlib.sha256()
    while True:
        piece: Any = by_author(what, next, pieces, None, of=entry.value)
        if piece is None:
            break
        if not isinstance(piece, str):
            raise PluginError(f"{what}: expected pieces of text, got {piece!r:.60}")
        try:
            digest.update(piece.encode())
        except UnicodeEncodeError as error:
            wrong = error.object[error.start]
            raise PluginError(f"{what}: expected text that UTF-8 can spell, got {wrong!r}") from error
        yield piece
    if found.sha256 is not None and digest.hexdigest() != found.sha256:
        got = digest.hexdigest()[:16]
        raise PluginError(
            f"{what}: expected a text with sha256 {found.sha256[:16]}, got {got}; the text is another one"
        )


def _summary(entry: PluginEntry) -> str:
    """The first line of the docstring, as a line of a table."""
    line: str = entry.value.__doc__.strip().splitlines()[0]
    return line[:1].lower() + line[1:].removesuffix(".")


def check_dataset(value: Any) -> None:
    """Raise PluginError when `value` is no function without arguments that says in its docstring what its text is."""
    check_function(value, "corpus", ())


def load_dataset(
    config: DataConfig,
    vocabulary: Vocabulary | None = None,
    stdin: IO[bytes] | None = None,
    *,
    unknown: UnknownPolicy | None = None,
    extend: bool = False,
    third_party: bool = True,
) -> Dataset:
    """Read the text that `config` names (its corpus if none) and cut it into train, validation and test part.

    The text is read twice, in chunks: once to count its symbols, once to number them; standard input is kept in
    a temporary file in between. The parts follow each other: the validation part is ``ceil(val_frac * N)`` of the
    N symbols, the test part likewise. To look at a text and not train on it, set ``batch=1, seq_len=1, val_frac=0``.

    The vocabulary comes from the training part (with ``vocab_from="text"`` from the whole text). A symbol that
    only a held-out part has becomes the unknown symbol where there is one; otherwise that part skips it, and
    `Dataset.left_out` counts it. A given `vocabulary` is used as it is, and then `config.tokens`, `min_count` and
    `vocab_from` are not looked at; what it lacks of the training part is treated as `unknown` says (by default it
    is replaced where there is an unknown symbol, and an error otherwise). With `extend`, what it lacks is first added
    behind its symbols, as far as `config.min_count` allows (`extend_vocabulary`).

    Without `third_party` only the embedded corpora are known.
    Raises DataError: missing, empty, binary or badly encoded text, an unknown corpus, a training part of one distinct
    symbol or shorter than one batch, a held-out part with fewer than 2 known symbols. Raises InputError: fractions
    or sizes that cannot work.
    """
    check_sizes(config.batch, config.seq_len)
    _check_fractions(config)
    kind = config.tokens if vocabulary is None else vocabulary.kind
    undecoded: dict[str, int] = {}
    with ExitStack() as stack:
        encoding = "utf-8" if kind == "bytes" else config.encoding  # nothing is decoded
        opened = stack.enter_context(open_sources(config.text, stdin, encoding))
        sources, between = opened.sources, _between_bytes(config.between, kind)
        if config.text:
            name = _source_name(config.text, len(sources))
            text: Callable[[], Iterator[str]] = partial(
                decoded_chunks, sources, config.errors, between=config.between, undecoded=undecoded
            )
            raw: Callable[[], Iterator[bytes]] = partial(raw_chunks, sources, between=between)
        else:
            name, text = _open_corpus(config.corpus, third_party)
            raw = partial(_as_bytes, text)
        loaded = _load_bytes(raw) if kind == "bytes" else _load_text(kind, text)
    total = loaded.ids.size
    if total < 2:
        raise DataError(f"expected at least 2 symbols in {name}, got {total}; give more text")
    train, val = _cuts(total, config)
    sizes = (train, val - train, total - val)
    _check_parts(config, name, *sizes)
    counts = loaded.counts(loaded.ids[:train] if config.vocab_from == "train" else loaded.ids)
    if vocabulary is not None:
        vocabulary = extend_vocabulary(vocabulary, counts, config.min_count) if extend else vocabulary
    else:
        vocabulary = build_vocabulary(kind, counts, config.min_count)
        if min(vocabulary.size, len(counts)) < 2:
            where = f"the training part of {name}" if val - train or total - val else name
            only = next(iter(counts)) if len(counts) == 1 else vocabulary.symbols[0]
            hint = " or lower --min-count" if config.min_count > 1 and kind != "bytes" else ""
            raise DataError(
                f"expected at least 2 distinct symbols in {where}, got only {only!r}; give another text{hint}"
            )
    parts = _renumbered(loaded, sizes, vocabulary, unknown)
    _check_known(config, name, sizes, [part.size for part in parts])
    train_left, val_left, test_left = (size - part.size for size, part in zip(sizes, parts, strict=True))
    left_out = (train_left, val_left, test_left)
    return Dataset(
        vocabulary=vocabulary,
        train=parts[0],
        val=parts[1],
        test=parts[2],
        sha256=loaded.sha256,
        source=name,
        characters=loaded.characters,
        left_out=left_out,
        files=tuple(source.name for source in sources),
        skipped=opened.skipped,
        encodings=() if kind == "bytes" else tuple(source.encoding for source in sources),
        undecoded=() if kind == "bytes" else tuple(undecoded.get(source.name, 0) for source in sources),
    )


def text_statistics(dataset: Dataset, top: int = 10) -> TextStatistics:
    """Count the symbols of all three parts of a data set; `top` is how many of the most frequent are named."""
    counts = np.zeros(dataset.vocabulary.size, np.int64)
    for part in (dataset.train, dataset.val, dataset.test):
        for start in range(0, part.size, CHUNK):  # bincount widens its input to 8 bytes a symbol
            counts += np.bincount(part[start : start + CHUNK], minlength=counts.size)
    total = int(counts.sum())
    shares = counts[counts > 0] / total
    order = np.argsort(-counts, kind="stable")[:top]
    return TextStatistics(
        source=dataset.source,
        kind=dataset.vocabulary.kind,
        characters=dataset.characters,
        tokens=total,
        symbols=dataset.vocabulary.size,
        distinct=int(shares.size),
        frequent=tuple((dataset.vocabulary.symbols[i], int(counts[i])) for i in order if counts[i]),
        entropy=abs(float(-(shares * np.log2(shares)).sum())),  # abs: no minus in front of zero
        sha256=dataset.sha256,
        files=dataset.files,
        skipped=dataset.skipped,
        undecoded=dataset.undecoded,
    )


@final
@dataclass(frozen=True, eq=False)
class _Loaded:
    """A whole text, numbered by the vocabulary of all its symbols."""

    vocabulary: Vocabulary
    ids: Ids
    characters: int
    sha256: str

    def counts(self, ids: Ids) -> dict[str, int]:
        """How often each symbol occurs among `ids`; those that do not are left out."""
        numbers = np.zeros(self.vocabulary.size, np.int64)
        for start in range(0, ids.size, CHUNK):  # bincount widens its input to 8 bytes a symbol
            numbers += np.bincount(ids[start : start + CHUNK], minlength=numbers.size)
        return {self.vocabulary.symbols[i]: int(numbers[i]) for i in np.flatnonzero(numbers)}


def _load_text(kind: Literal["chars", "words"], read: Callable[[], Iterator[str]]) -> _Loaded:
    counts = count_symbols(kind, read())
    vocabulary = build_vocabulary(kind, counts)
    ids = np.empty(sum(counts.values()), vocabulary.dtype)
    digest = hashlib.sha256()
    chunks = _passed_to(digest.update, read())
    filled = 0
    for symbols in chunks if kind == "chars" else word_chunks(chunks):
        filled = _fill(ids, filled, vocabulary.encode_symbols(symbols, "skip"))
    _check_filled(ids, filled)
    characters = sum(len(symbol) * count for symbol, count in counts.items())
    return _Loaded(vocabulary, ids, characters, digest.hexdigest())


def _load_bytes(read: Callable[[], Iterator[bytes]]) -> _Loaded:
    counts = np.zeros(256, np.int64)
    for raw in read():
        counts += np.bincount(np.frombuffer(raw, np.uint8), minlength=256)
    ids = np.empty(int(counts.sum()), np.uint8)
    digest = hashlib.sha256()
    filled = 0
    for raw in read():
        digest.update(raw)
        filled = _fill(ids, filled, np.frombuffer(raw, np.uint8))
    _check_filled(ids, filled)
    continuations = int(counts[0x80:0xC0].sum())
    return _Loaded(build_vocabulary("bytes", {}), ids, ids.size - continuations, digest.hexdigest())


def _renumbered(
    loaded: _Loaded, sizes: Sequence[int], vocabulary: Vocabulary, unknown: UnknownPolicy | None
) -> list[Ids]:
    """The parts of a text, of these sizes, by the numbers of `vocabulary`: read-only views of one array.

    What it lacks of the first part is treated as `unknown` says; the other parts never raise an error for it.
    """
    policy = unknown or ("error" if vocabulary.unknown is None else "replace")
    held_out: UnknownPolicy = "skip" if vocabulary.unknown is None else "replace"
    ids, cuts = loaded.ids, list(accumulate(sizes))
    if vocabulary.symbols != loaded.vocabulary.symbols:
        ids = np.empty(ids.size, vocabulary.dtype)
        translate = vocabulary.translator(loaded.vocabulary)
        start = filled = 0
        for i, way in enumerate((policy, held_out, held_out)):
            for begin in range(start, cuts[i], CHUNK):
                some = translate(loaded.ids[begin : min(begin + CHUNK, cuts[i])], way, begin)
                filled = _fill(ids, filled, some)
            start, cuts[i] = cuts[i], filled
    ids.flags.writeable = False
    return [ids[begin:end] for begin, end in zip([0, *cuts], cuts, strict=False)]


def _passed_to(update: Callable[[bytes], object], chunks: Iterator[str]) -> Iterator[str]:
    for chunk in chunks:
        try:
            update(chunk.encode())
        except UnicodeEncodeError as error:  # utf-7 and a few others can spell half a character
            wrong = chunk[error.start]
            raise DataError(
                f"expected characters, got the lone surrogate {wrong!r}; name another --encoding"
            ) from error
        yield chunk


def _fill(ids: Ids, filled: int, some: Ids) -> int:
    if filled + some.size > ids.size:
        raise _changed()
    ids[filled : filled + some.size] = some
    return filled + some.size


def _check_filled(ids: Ids, filled: int) -> None:
    if filled != ids.size:
        raise _changed()


def _changed() -> DataError:
    return DataError("expected the same text at both readings, got another length; wait until nobody writes to it")


def _between_bytes(between: str, kind: str) -> bytes:
    """The boundary as bytes; characters and words cannot be bytes that are not UTF-8, which surrogates stand for."""
    try:
        return between.encode("utf-8", "surrogateescape" if kind == "bytes" else "strict")
    except UnicodeEncodeError as error:
        raise InputError(
            f"--between {between!r}: expected characters, got {between[error.start]!r}, which is none; "
            "choose another text"
        ) from error


def _as_bytes(read: Callable[[], Iterator[str]]) -> Iterator[bytes]:
    return (chunk.encode() for chunk in read())


def _check_fractions(config: DataConfig) -> None:
    for flag, share in (("--val-frac", config.val_frac), ("--test-frac", config.test_frac)):
        if not 0 <= share < 1:
            raise InputError(f"expected {flag} from 0 to below 1, got {share}; give a share such as 0.05")
    if config.val_frac + config.test_frac >= 1:
        raise InputError(
            f"expected --val-frac and --test-frac to leave something to train on, got {config.val_frac} and "
            f"{config.test_frac}; lower one of them"
        )


def _cuts(total: int, config: DataConfig) -> tuple[int, int]:
    """Where the training part and the validation part end."""
    # Rounded first: 1000 * 0.07 is a hair above 70, and must not hold out 71.
    val, test = (math.ceil(round(total * share, 6)) for share in (config.val_frac, config.test_frac))
    return total - val - test, total - test


def _check_parts(config: DataConfig, name: str, train: int, val: int, test: int) -> None:
    if train < config.batch * config.seq_len + 1:
        held = f" (of {train + val + test}, {val + test} are held out)" if val + test else ""
        raise too_short(f"the training part of {name}{held}", max(train, 0), config.batch, config.seq_len)
    for flag, size in (("--val-frac", val), ("--test-frac", test)):
        if size == 1:
            raise DataError(f"expected at least 2 symbols held out of {name}, got 1; raise {flag}, or set it to 0")


def _check_known(config: DataConfig, name: str, sizes: Sequence[int], known: Sequence[int]) -> None:
    """Raise DataError where a part is too short once the symbols are left out that the vocabulary lacks."""
    if known[0] < config.batch * config.seq_len + 1:
        raise too_short(f"{name} that the model knows", known[0], config.batch, config.seq_len)
    for flag, size, left in zip(("--val-frac", "--test-frac"), sizes[1:], known[1:], strict=True):
        if size and left < 2:
            raise DataError(
                f"expected at least 2 symbols held out of {name} that the training part has too, got {left} of {size}; "
                f"raise {flag}, or set it to 0"
            )


def _source_name(names: Sequence[str], files: int) -> str:
    first = "standard input" if names[0] == "-" else names[0]
    if len(names) == 1:
        return first if files == 1 else f"{first} ({files} files)"
    return f"{first} and {len(names) - 1} more ({files} files)"


def hello() -> CorpusText:
    """One line, repeated 2000 times: what every model should learn."""
    return CorpusText(("hello world\n" * 100 for _ in range(20)), "public domain")


def python_docs() -> CorpusText:
    """The language reference topics of Python's own help()."""
    return CorpusText(_python_docs(), "PSF-2.0")


def python_source() -> CorpusText:
    """The source code of Python's standard library."""
    return CorpusText(_python_source(), "PSF-2.0")


F = TypeVar("F", bound=Callable[[], CorpusText])


def register_dataset(function: F) -> F:
    """Decorator: make a corpus known under the function's name (with hyphens), in this process.

    Raises PluginError when the function takes arguments or has no docstring, or the name belongs to another one.
    """
    return register(DATASETS, function)


def _python_docs() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics  # half a megabyte, which nobody else needs
    except ImportError as error:
        raise DataError("this Python comes without pydoc_data; use --corpus hello or name a text") from error
    for position, topic in enumerate(sorted(topics)):
        yield ("\n" if position else "") + topics[topic]


def _python_source() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    found = False
    for path in _stdlib_files(root):
        try:
            with tokenize.open(path) as file:  # reads the encoding from the file's own first lines
                text = file.read()
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue
        if text:
            found = True
            yield text
    if not found:
        raise DataError("this Python comes without the source of its library; use --corpus hello or name a text")


def _stdlib_files(root: Path) -> list[Path]:
    files: list[Path] = []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name.isidentifier() and name not in SKIPPED_FOLDERS]
        # _sysconfigdata is generated for one machine and full of its paths.
        modules = [name for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata")]
        files += [Path(parent, name) for name in modules]
    return sorted(files, key=lambda path: path.relative_to(root).parts)
