"""Data sets: embedded corpora, splits, checksums, statistics, errors, and real text where it is at hand."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import io
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn.config import DataConfig
from tinygrad_rnn.data import (
    CorpusText,
    Dataset,
    Streams,
    Vocabulary,
    corpora,
    corpus_chunks,
    load_dataset,
    register_dataset,
    text_statistics,
)
from tinygrad_rnn.errors import DataError, InputError, PluginError

LOOK = DataConfig(text=("-",), batch=1, seq_len=1, val_frac=0.0)


def loaded(raw: bytes, vocabulary: Vocabulary | None = None, **changes: object) -> Dataset:
    return load_dataset(dataclasses.replace(LOOK, **changes), vocabulary, io.BytesIO(raw))


@pytest.fixture
def tinyshakespeare() -> str:
    root = Path(__file__).resolve().parents[2]
    path = root.parent / "shared" / "data" / "tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip("the text tinyshakespeare.txt is not beside the repository (../shared/data)")
    return str(path)


@pytest.mark.parametrize("kind", ["chars", "bytes", "words"])
def test_tinyshakespeare_is_what_it_is_known_to_be(tinyshakespeare: str, kind: str) -> None:
    dataset = load_dataset(DataConfig(text=(tinyshakespeare,), tokens=kind, vocab_from="text"))
    assert dataset.sha256 == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert dataset.characters == 1_115_394
    assert dataset.source == tinyshakespeare
    ids = np.concatenate([dataset.train, dataset.val, dataset.test])
    assert dataset.vocabulary.decode(ids).encode() == Path(tinyshakespeare).read_bytes()
    if kind == "chars":
        statistics = text_statistics(dataset)
        assert (statistics.symbols, statistics.distinct, statistics.tokens) == (65, 65, 1_115_394)
        assert statistics.frequent[0] == (" ", 169_892)
        assert dict(text_statistics(dataset, top=65).frequent)["\n"] == 40_000
        assert len(Streams(dataset.train, 50, 50, drop_last=True)) == 423  # as many as char-rnn has


def test_the_last_tenth_is_the_usual_validation_part(tinyshakespeare: str) -> None:
    dataset = load_dataset(DataConfig(text=(tinyshakespeare,), val_frac=0.1))
    assert (dataset.train.size, dataset.val.size) == (1_003_854, 111_540)


def test_tiny_statistics_by_hand() -> None:
    statistics = text_statistics(loaded("aabé".encode()), top=2)
    assert statistics.frequent == (("a", 2), ("b", 1))
    assert statistics.entropy == pytest.approx(1.5)
    assert statistics.sha256 == hashlib.sha256("aabé".encode()).hexdigest()
    assert (statistics.characters, statistics.tokens, statistics.symbols, statistics.distinct) == (4, 4, 3, 3)
    statistics = text_statistics(loaded("aabé".encode(), tokens="bytes"))
    assert (statistics.characters, statistics.tokens, statistics.symbols, statistics.distinct) == (4, 5, 256, 4)
    statistics = text_statistics(loaded(b"to be, to", tokens="words"))
    assert (statistics.characters, statistics.tokens, statistics.symbols) == (9, 6, 4)


@given(
    st.text("ab é\n.", min_size=2, max_size=60).filter(lambda text: len(set(text)) > 1),
    st.sampled_from(["chars", "bytes"]),
    st.floats(0, 0.4),
    st.floats(0, 0.4),
)
def test_the_parts_are_the_text_in_order(text: str, kind: str, val_frac: float, test_frac: float) -> None:
    total = len(text) if kind == "chars" else len(text.encode())
    sizes = [math.ceil(round(total * share, 6)) for share in (test_frac, val_frac)]
    if 1 in sizes or total - sum(sizes) < 2:
        with pytest.raises(DataError):
            loaded(text.encode(), tokens=kind, val_frac=val_frac, test_frac=test_frac, vocab_from="text")
        return
    dataset = loaded(text.encode(), tokens=kind, val_frac=val_frac, test_frac=test_frac, vocab_from="text")
    assert [dataset.test.size, dataset.val.size] == sizes
    parts = (dataset.train, dataset.val, dataset.test)
    assert dataset.vocabulary.decode(np.concatenate(parts)) == text
    assert all(part.base is parts[0].base and not part.flags.writeable for part in parts)


def test_shares_are_not_spoilt_by_rounding() -> None:
    dataset = loaded(b"ab" * 500, val_frac=0.07)
    assert dataset.val.size == 70


def test_several_chunks_and_files_give_one_text(tmp_path: Path) -> None:
    text = "".join(f"line {i} é€😀 and more words\r\n" for i in range(40_000))  # more than one chunk
    half = text.encode()[:300_001]
    rest = text.encode()[len(half) :]
    for kind in ("chars", "bytes", "words"):
        dataset = loaded(text.encode(), tokens=kind)
        assert dataset.vocabulary.decode(dataset.train) == text
        assert dataset.sha256 == hashlib.sha256(text.encode()).hexdigest()
        assert dataset.characters == len(text)
    (tmp_path / "1.txt").write_bytes(half)
    (tmp_path / "2.txt").write_bytes(rest)
    joined = load_dataset(dataclasses.replace(LOOK, text=(str(tmp_path),), tokens="bytes", between=""))
    assert joined.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert joined.source == f"{tmp_path} (2 files)"


def test_what_is_held_out_decides_nothing_about_the_symbols() -> None:
    """Ten characters of the test part change: the training and validation part stay as they were, to the number."""
    split = {"val_frac": 0.2, "test_frac": 0.2}
    text = "abcab cabca bcabc " * 20
    a = loaded(text.encode(), **split)
    b = loaded((text[:-10] + "0123456789").encode(), **split)
    assert a.vocabulary == b.vocabulary and a.vocabulary.symbols == (" ", "a", "b", "c")
    assert a.train.tolist() == b.train.tolist() and a.val.tolist() == b.val.tolist()
    assert (a.left_out, b.left_out) == ((0, 0, 0), (0, 0, 10))
    assert b.vocabulary.decode(b.test) == text[-72:-10]
    whole = loaded((text[:-10] + "0123456789").encode(), vocab_from="text", **split)
    assert whole.vocabulary.size == 14 and whole.left_out == (0, 0, 0)


def test_counts_come_from_the_training_part() -> None:
    """A word that is seen once in training is rare, however often the test part has it."""
    text = "to be or not to be or rare rare rare or new "
    split = {"tokens": "words", "min_count": 2, "test_frac": 0.33}
    dataset = loaded(text.encode(), **split)
    assert dataset.vocabulary.symbols == (" ", "<unk>", "be", "or", "to")
    assert dataset.vocabulary.decode(dataset.test).split(" ")[-3:] == ["or", "<unk>", ""]
    assert dataset.left_out == (0, 0, 0)
    assert "rare" in loaded(text.encode(), vocab_from="text", **split).vocabulary.symbols


def test_the_cut_is_where_it_was_when_a_run_reads_its_text_again() -> None:
    """With the vocabulary of the first reading, as `resume` and `eval` have it, though symbols are left out."""
    raw = b"abab" * 30 + b"aZbZZab" * 10
    first = loaded(raw, val_frac=0.3, test_frac=0.1)
    again = loaded(raw, first.vocabulary, val_frac=0.3, test_frac=0.1)
    assert first.left_out == again.left_out == (0, 22, 8)
    for part in ("train", "val", "test"):
        assert getattr(first, part).tolist() == getattr(again, part).tolist()
        assert not getattr(first, part).flags.writeable


def test_held_out_parts_of_unknown_symbols_are_refused() -> None:
    with pytest.raises(DataError, match=r"that the training part has too, got 1 of 10; raise --val-frac, or set it"):
        loaded(b"ab" * 45 + b"aZZZZZZZZZ", val_frac=0.1)
    with pytest.raises(DataError, match="2 distinct symbols in the training part of standard input, got only 'a'"):
        loaded(b"aaaa" * 9 + b"bbbb", val_frac=0.1)
    with pytest.raises(DataError, match=r"expected at least 2 symbols in standard input that the model knows .* got 1"):
        load_dataset(LOOK, Vocabulary("chars", ("a", "b")), io.BytesIO(b"aZZ"), unknown="skip")


@pytest.mark.parametrize("kind", ["chars", "bytes", "words"])
def test_files_are_joined_by_a_boundary(tmp_path: Path, kind: str) -> None:
    """The example of the issue: "two" and "three" were "twothree"."""
    for number, word in [(2, "two"), (3, "three"), (10, "ten")]:
        (tmp_path / f"{number}.txt").write_text(word)
    (tmp_path / "readme.md").write_text("not read")
    config = dataclasses.replace(LOOK, text=(str(tmp_path),), tokens=kind)
    dataset = load_dataset(config)
    assert dataset.vocabulary.decode(dataset.train) == "two\nthree\nten"
    assert dataset.sha256 == hashlib.sha256(b"two\nthree\nten").hexdigest()
    assert dataset.files == tuple(str(tmp_path / name) for name in ("2.txt", "3.txt", "10.txt"))
    assert dataset.skipped == (str(tmp_path / "readme.md"),)
    other = load_dataset(dataclasses.replace(config, between=" <é> "))
    assert other.vocabulary.decode(other.train) == "two <é> three <é> ten"


def test_a_boundary_may_be_bytes_for_a_byte_model_alone() -> None:
    hello = io.BytesIO(b"ab" * 5)
    config = dataclasses.replace(LOOK, between="\udcff")
    assert load_dataset(dataclasses.replace(config, tokens="bytes"), stdin=hello).train.size == 10
    with pytest.raises(InputError, match=r"--between .* expected characters"):
        load_dataset(config, stdin=hello)


def test_rare_symbols_are_replaced() -> None:
    dataset = loaded(b"aabbcd", min_count=2)
    assert dataset.vocabulary.decode(dataset.train) == "aabb\ufffd\ufffd"
    assert text_statistics(dataset).distinct == 3
    with pytest.raises(DataError, match="got only '\ufffd'; give another text or lower --min-count"):
        loaded(b"abcd", min_count=2)


def test_a_given_vocabulary_is_used_as_it_is() -> None:
    vocabulary = Vocabulary("chars", ("a", "b", "z"))
    dataset = loaded(b"abba", vocabulary, tokens="words")
    assert dataset.vocabulary is vocabulary
    assert dataset.train.tolist() == [0, 1, 1, 0]
    assert loaded(b"aaaa", vocabulary).train.tolist() == [0, 0, 0, 0]
    with pytest.raises(DataError, match=r"'!' \(U\+0021\) at position 3; skip such symbols"):
        loaded(b"aba!", vocabulary)
    skipped = load_dataset(LOOK, vocabulary, io.BytesIO(b"aba!"), unknown="skip")
    assert skipped.train.tolist() == [0, 1, 0]
    known = Vocabulary("chars", ("a", "b", "\ufffd"), 2)
    assert loaded(b"aba!", known).train.tolist() == [0, 1, 0, 2]


def test_the_position_of_an_unknown_symbol_counts_from_the_start_of_the_text() -> None:
    with pytest.raises(DataError, match="at position 600000;"):
        loaded(b"a" * 600_000 + b"!", Vocabulary("chars", ("a",)))


def test_texts_that_are_too_short_are_refused_with_both_numbers() -> None:
    config = DataConfig(text=("-",))
    with pytest.raises(DataError) as caught:
        load_dataset(config, stdin=io.BytesIO(b"ab" * 500))
    assert str(caught.value) == (
        "expected at least 2501 symbols in the training part of standard input (of 1000, 50 are held out) "
        "for one batch (--batch 50 x --seq-len 50, + 1), got 950; lower --batch to 18 or --seq-len, or give more text"
    )
    load_dataset(dataclasses.replace(config, batch=18), stdin=io.BytesIO(b"ab" * 500))
    with pytest.raises(DataError, match="held out of standard input, got 1; raise --val-frac, or set it to 0"):
        loaded(b"abcd", val_frac=0.1)
    with pytest.raises(DataError, match="at least 2 symbols"):
        loaded(b"a")
    with pytest.raises(DataError, match="2 distinct symbols in standard input, got only 'a'"):
        loaded(b"aaaa")
    with pytest.raises(DataError, match="2 distinct symbols"):
        loaded(b"aaaa", tokens="bytes")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_frac": -0.1}, "--val-frac from 0 to below 1, got -0.1"),
        ({"val_frac": float("nan")}, "--val-frac from 0 to below 1, got nan"),
        ({"test_frac": 1.0}, "--test-frac from 0 to below 1"),
        ({"val_frac": 0.5, "test_frac": 0.5}, "leave something to train on"),
        ({"batch": 0}, "--batch of at least 1, got 0"),
        ({"seq_len": 0}, "--seq-len of at least 1, got 0"),
        ({"tokens": "word"}, "did you mean words"),
    ],
)
def test_misuse_is_an_input_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        loaded(b"abcd", **changes)


def test_a_text_that_changes_between_the_readings_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter([["abc"], ["ab"], ["abc"], ["abca"]])
    # By import_module: in the package, the function `corpora` hides the module of that name.
    module = importlib.import_module("tinygrad_rnn.data.corpora")
    monkeypatch.setattr(module, "_open_corpus", lambda *_: ("a text", lambda: iter(next(texts))))
    for _ in range(2):
        with pytest.raises(DataError, match="same text at both readings"):
            load_dataset(dataclasses.replace(LOOK, text=()))


def test_corpora_are_listed_without_being_read() -> None:
    rows = corpora()
    assert [row.name for row in rows] == ["hello", "python-docs", "python-source"]
    assert all(row.summary and "\n" not in row.summary for row in rows)
    assert rows[0].characters == 24_000
    assert rows[0].sha256 == hashlib.sha256(b"hello world\n" * 2000).hexdigest()


def test_python_docs_are_the_topics_in_sorted_order() -> None:
    topics = pytest.importorskip("pydoc_data.topics").topics
    text = "".join(corpus_chunks("python-docs"))
    assert text == "\n".join(topics[name] for name in sorted(topics))
    dataset = load_dataset(DataConfig())
    assert dataset.characters == len(text)
    assert dataset.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert dataset.source == f"corpus python-docs of Python {sys.version_info.major}.{sys.version_info.minor}"


def test_python_source_is_the_library_and_nothing_else() -> None:
    text = "".join(corpus_chunks("python-source"))
    assert 1_000_000 < len(text) < 50_000_000
    assert "class OrderedDict(dict):" in text
    assert "def is_python_build(" in text
    assert "build_time_vars = {" not in text
    assert text == "".join(corpus_chunks("python-source"))


@pytest.mark.parametrize("kind", ["chars", "bytes", "words"])
def test_every_corpus_can_be_trained_on_with_the_defaults(kind: str) -> None:
    for name in ("hello", "python-docs"):
        dataset = load_dataset(DataConfig(corpus=name, tokens=kind, batch=10))
        assert dataset.val.size > 1


def test_an_unknown_corpus_gets_a_suggestion() -> None:
    with pytest.raises(DataError, match="no corpus 'python-doc'; did you mean python-docs"):
        load_dataset(DataConfig(corpus="python-doc"))


# ------------------------------------------------------------------------------------- corpora of plugins

RHYME = "jack and jill\n" * 50


def called(text: Any, **facts: Any) -> None:
    """Register a corpus of this text."""

    def rhymes_of_test() -> CorpusText:
        """Two names, many times."""
        if isinstance(text, Exception):
            raise text
        return CorpusText(text() if callable(text) else text, **{"licence": "CC0-1.0", **facts})

    register_dataset(rhymes_of_test)


def whole(**changes: Any) -> Dataset:
    return load_dataset(dataclasses.replace(LOOK, text=(), corpus="rhymes-of-test", **changes))


@pytest.mark.parametrize("kind", ["chars", "bytes", "words"])
@pytest.mark.parametrize("text", [RHYME, lambda: iter([RHYME[:7], RHYME[7:]])])
def test_the_corpus_of_a_plugin(own_registry: None, text: Any, kind: Any) -> None:
    sha256 = hashlib.sha256(RHYME.encode()).hexdigest()
    called(text, sha256=sha256)
    dataset = whole(tokens=kind)
    assert dataset.vocabulary.decode(dataset.train) == RHYME
    assert dataset.sha256 == sha256 and dataset.characters == len(RHYME)
    assert dataset.source == "corpus rhymes-of-test of file test_dataset.py (CC0-1.0)"
    assert [corpus.name for corpus in corpora()] == ["hello", "python-docs", "python-source"]
    with pytest.raises(DataError, match="no corpus 'rhymes-of-test'"):
        load_dataset(dataclasses.replace(LOOK, text=(), corpus="rhymes-of-test"), third_party=False)


def test_a_text_that_a_function_fetches_is_fetched_once(own_registry: None) -> None:
    count = []

    def fetch() -> str:
        count.append(1)
        return RHYME

    called(fetch)
    whole()
    assert len(count) == 1


@pytest.mark.parametrize(
    ("text", "facts", "message"),
    [
        (RHYME, {"licence": " "}, r"expected a tinygrad_rnn\.CorpusText with a licence, got CorpusText"),
        (RHYME, {"sha256": "0" * 64}, r"expected a text with sha256 0{16}, got [0-9a-f]{16}; the text is another one$"),
        (["a", 3], {}, r"expected pieces of text, got 3$"),
        ("a\udc80b" * 9, {}, r"expected text that UTF-8 can spell, got '\\udc80'"),
        (OSError("no network\nhere"), {}, r"\(test_dataset\.py:\d+\): OSError: no network here$"),
    ],
)
def test_a_corpus_that_breaks_its_contract(own_registry: None, text: Any, facts: Any, message: str) -> None:
    called(text, **facts)
    with pytest.raises(PluginError, match=r"^corpus 'rhymes-of-test' of file test_dataset\.py.*" + message):
        whole()
