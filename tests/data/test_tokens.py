"""Vocabularies: nothing is lost on the way to numbers and back, and the unknown is treated as asked."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn.data import Vocabulary, build_vocabulary, count_symbols, extend_vocabulary, split_words
from tinygrad_rnn.errors import DataError, InputError

TEXT = st.text(st.one_of(st.sampled_from("ab_ '\t\r\n.,é€😀\x1c\u2028"), st.characters(exclude_categories=["Cs"])))
PIECES = st.lists(TEXT, max_size=6)


@given(TEXT)
@pytest.mark.parametrize("kind", ["chars", "bytes", "words"])
def test_decode_undoes_encode(kind: str, text: str) -> None:
    vocabulary = build_vocabulary(kind, {} if kind == "bytes" else count_symbols(kind, [text]))
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert ids.dtype == vocabulary.dtype
    decoder = vocabulary.decoder()
    assert "".join([*map(decoder.feed, ids.tolist()), decoder.flush()]) == text


@given(TEXT)
@pytest.mark.parametrize("kind", ["chars", "bytes", "words"])
def test_json_keeps_a_vocabulary(kind: str, text: str) -> None:
    vocabulary = build_vocabulary(kind, {} if kind == "bytes" else count_symbols(kind, [text]), min_count=2)
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


@given(PIECES)
def test_counts_do_not_depend_on_where_the_text_is_cut(pieces: list[str]) -> None:
    whole = "".join(pieces)
    assert count_symbols("chars", pieces) == Counter(whole)
    assert count_symbols("words", pieces) == Counter(split_words(whole))


def test_long_runs_are_cut_at_the_same_places_however_they_arrive() -> None:
    pieces = ["a" * 700, "a" * 700 + " ", " " * 1999, "\n" * 2500]
    assert count_symbols("words", pieces) == Counter(split_words("".join(pieces)))
    assert count_symbols("words", pieces) == {"a" * 1000: 1, "a" * 400: 1, " " * 1000: 2, "\n" * 1000: 2, "\n" * 500: 1}


def test_words_are_words_runs_of_space_runs_of_line_ends_and_single_marks() -> None:
    assert split_words("Don't  stop...\r\n\r\nNow_1 é!\t\n") == [
        "Don", "'", "t", "  ", "stop", ".", ".", ".", "\r\n\r\n", "Now_1", " ", "é", "!", "\t", "\n",
    ]  # fmt: skip


def test_symbols_are_sorted_by_code_point() -> None:
    assert build_vocabulary("chars", Counter("baé€ba\n")).symbols == ("\n", "a", "b", "é", "€")
    np.testing.assert_array_equal(build_vocabulary("chars", Counter("abc")).encode("cab"), [2, 0, 1])


@pytest.mark.parametrize(("size", "dtype"), [(2, "u1"), (256, "u1"), (257, "u2"), (65536, "u2"), (65537, "u4")])
def test_numbers_have_the_smallest_type(size: int, dtype: str) -> None:
    points = [point for point in range(size + 2048) if not 0xD800 <= point < 0xE000][:size]
    vocabulary = Vocabulary("chars", tuple(map(chr, points)))
    ids = vocabulary.encode(vocabulary.symbols[-1] + vocabulary.symbols[0])
    assert ids.dtype == np.dtype(dtype)
    assert ids.tolist() == [size - 1, 0]


def test_a_vocabulary_is_extended_behind_its_symbols() -> None:
    old = Vocabulary("chars", ("b", "a"))
    assert extend_vocabulary(old, Counter("abdcc")) == Vocabulary("chars", ("b", "a", "c", "d"))
    assert extend_vocabulary(old, Counter("abdcc"), min_count=2) == Vocabulary("chars", ("b", "a", "c"))
    assert extend_vocabulary(old, Counter("ab")) == old
    rare = Vocabulary("words", ("<unk>", "to"), 0)
    assert extend_vocabulary(rare, Counter(["to", "be"])) == Vocabulary("words", ("<unk>", "to", "be"), 0)
    assert extend_vocabulary(build_vocabulary("bytes", {}), {}) == build_vocabulary("bytes", {})


def test_rare_symbols_become_the_unknown_one() -> None:
    vocabulary = build_vocabulary("chars", Counter("aabbc"), min_count=2)
    assert vocabulary == Vocabulary("chars", ("a", "b", "\ufffd"), 2)
    assert vocabulary.decode(vocabulary.encode("abxc", "replace")) == "ab\ufffd\ufffd"
    assert vocabulary.decode(vocabulary.encode("abxc", "skip")) == "ab"
    words = build_vocabulary("words", Counter(split_words("to be to do")), min_count=2)
    assert words.decode(words.encode("to see", "replace")) == "to <unk>"
    assert build_vocabulary("chars", Counter("aabb"), min_count=2).unknown is None


def test_a_replacement_character_of_the_text_itself_is_the_unknown_symbol() -> None:
    assert build_vocabulary("chars", Counter("aab\ufffd"), min_count=2) == Vocabulary("chars", ("a", "\ufffd"), 1)


@pytest.mark.parametrize("symbol", ["!", "é", "😀", "\U0010ffff", "\udce9"])
def test_an_unknown_character_is_named_with_its_position(symbol: str) -> None:
    vocabulary = Vocabulary("chars", ("a", "b"))
    with pytest.raises(DataError, match=rf"one of the 2 symbols .*\(U\+{ord(symbol):04X}\) at position 2; skip"):
        vocabulary.encode("ab" + symbol)
    assert vocabulary.decode(vocabulary.encode("a" + symbol + "b", "skip")) == "ab"


def test_an_unknown_word_is_named_with_its_position() -> None:
    with pytest.raises(DataError, match="the word 'see' at position 2"):
        Vocabulary("words", ("to", " ")).encode("to see")


def test_replacing_needs_an_unknown_symbol() -> None:
    with pytest.raises(InputError, match="--min-count 2 or more"):
        Vocabulary("chars", ("a",)).encode("a", "replace")
    with pytest.raises(InputError, match="did you mean replace"):
        Vocabulary("chars", ("a",)).encode("a", "replac")


@given(st.binary(), st.integers(0, 9))
def test_no_byte_is_lost_in_text(raw: bytes, cut: int) -> None:
    vocabulary = build_vocabulary("bytes", {})
    ids = np.frombuffer(raw, np.uint8)
    text = vocabulary.decode(ids)
    assert text == raw.decode("utf-8", "surrogateescape")
    assert vocabulary.encode(text).tobytes() == raw
    decoder = vocabulary.decoder()
    assert "".join([*map(decoder.feed, raw), decoder.flush()]) == text
    pieces = "".join([*map(decoder.feed, raw[:cut]), decoder.flush(), *map(decoder.feed, raw[cut:]), decoder.flush()])
    assert vocabulary.encode(pieces).tobytes() == raw  # wherever a text is cut


def test_bytes_that_are_not_utf_8_are_surrogates_in_text_and_in_arguments() -> None:
    vocabulary = build_vocabulary("bytes", {})
    assert vocabulary.size == 256
    assert vocabulary.unknown is None
    assert vocabulary.symbols[0] == "\0"
    assert vocabulary.symbols[0xE9] == "é"
    assert vocabulary.decode([0x61, 0xFF, 0xC3, 0xA9]) == "a\udcffé"
    assert vocabulary.encode("\udce9").tolist() == [0xE9]
    with pytest.raises(DataError, match="lone surrogate"):
        vocabulary.encode("\ud800")


def test_a_decoder_holds_a_character_back_until_it_is_whole() -> None:
    decoder = build_vocabulary("bytes", {}).decoder()
    assert [decoder.feed(byte) for byte in "a€".encode()] == ["a", "", "", "€"]
    assert decoder.feed(0xE2) == ""
    assert decoder.flush() == "\udce2"
    assert decoder.flush() == ""
    assert decoder.feed(0x62) == "b"


@pytest.mark.parametrize("ids", [[2], [-1], [0.5], [[0]], np.array([300], np.uint16)])
def test_numbers_that_are_none_of_the_vocabulary_are_refused(ids: object) -> None:
    vocabulary = Vocabulary("chars", ("a", "b"))
    with pytest.raises(InputError):
        vocabulary.decode(ids)
    assert vocabulary.decode([]) == ""


def test_a_decoder_refuses_numbers_outside() -> None:
    with pytest.raises(InputError, match="from 0 to 1, got -1"):
        Vocabulary("chars", ("a", "b")).decoder().feed(-1)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"kind": "chars", "symbols": "ab", "unknown": None},
        {"kind": "chars", "symbols": ["ab"], "unknown": None},
        {"kind": "chars", "symbols": ["a", "a"], "unknown": None},
        {"kind": "words", "symbols": [""], "unknown": None},
        {"kind": "chars", "symbols": ["a", 1], "unknown": None},
        {"kind": "chars", "symbols": ["a"], "unknown": 1},
        {"kind": "chars", "symbols": ["a"], "unknown": True},
        {"kind": "runes", "symbols": ["a"], "unknown": None},
        {"kind": 7, "symbols": ["a"], "unknown": None},
        {"kind": "bytes", "symbols": ["a"], "unknown": None},
    ],
)
def test_json_that_is_no_vocabulary_is_refused(value: object) -> None:
    with pytest.raises(DataError, match="expected a vocabulary") as caught:
        Vocabulary.from_json(value)
    assert "\n" not in str(caught.value)


def test_misuse_is_an_input_error() -> None:
    with pytest.raises(InputError, match="did you mean chars"):
        build_vocabulary("char", {})
    with pytest.raises(InputError, match="--min-count of at least 1, got 0"):
        build_vocabulary("chars", {"a": 1}, 0)
