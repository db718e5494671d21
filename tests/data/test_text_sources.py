"""Reading text: chunk borders, encodings, folders, standard input, and what is said when it fails."""

from __future__ import annotations

import builtins
import bz2
import codecs
import gzip
import io
import lzma
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn.data import compressed, open_sources, read_byte_chunks, read_chunks, read_text
from tinygrad_rnn.data.compressed import looks_compressed
from tinygrad_rnn.data.encodings import MARKS
from tinygrad_rnn.data.text import decoded_chunks
from tinygrad_rnn.errors import DataError, InputError


def written(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


@given(
    st.binary(min_size=1, max_size=60).filter(lambda raw: 0 not in raw and not looks_compressed(raw)),
    st.integers(1, 9),
    st.sampled_from(["replace", "ignore"]),
)
def test_decoding_does_not_depend_on_where_chunks_end(raw: bytes, chunk_bytes: int, errors: str) -> None:
    expected = raw.decode("utf-8", errors).removeprefix("\ufeff")
    if not expected:
        with pytest.raises(DataError, match="not one character"):
            list(read_chunks(["-"], errors, io.BytesIO(raw), chunk_bytes=chunk_bytes))
        return
    assert "".join(read_chunks(["-"], errors, io.BytesIO(raw), chunk_bytes=chunk_bytes)) == expected


@given(st.text(min_size=1).filter(lambda text: "\0" not in text and text != "\ufeff"), st.integers(1, 5))
def test_characters_of_several_bytes_survive_chunk_borders(text: str, chunk_bytes: int) -> None:
    chunks = list(read_chunks(["-"], "strict", io.BytesIO(text.encode()), chunk_bytes=chunk_bytes))
    assert "".join(chunks) == text.removeprefix("\ufeff")
    assert all(0 < len(chunk) <= chunk_bytes for chunk in chunks)


@given(st.binary(max_size=20), st.integers(1, 9))
def test_the_offset_of_a_bad_byte_is_exact(tail: bytes, chunk_bytes: int) -> None:
    raw = "aé€😀".encode() + b"\xff" + tail.replace(b"\0", b" ")
    with pytest.raises(
        DataError, match=r"0xff at byte 10 of 'standard input'; pass --encoding .*--errors replace.*--tokens bytes"
    ):
        list(read_chunks(["-"], "strict", io.BytesIO(raw), chunk_bytes=chunk_bytes))


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 100])
def test_a_character_cut_off_by_the_end_is_reported_where_it_begins(chunk_bytes: int) -> None:
    raw = b"abc" + "€".encode()[:2]
    with pytest.raises(DataError, match="0xe2 at byte 3 "):
        list(read_chunks(["-"], "strict", io.BytesIO(raw), chunk_bytes=chunk_bytes))
    assert "".join(read_chunks(["-"], "replace", io.BytesIO(raw), chunk_bytes=chunk_bytes)) == "abc\ufffd"
    assert "".join(read_chunks(["-"], "ignore", io.BytesIO(raw), chunk_bytes=chunk_bytes)) == "abc"


def test_a_byte_order_mark_is_dropped_at_the_start_of_each_file_and_kept_in_bytes(tmp_path: Path) -> None:
    first = written(tmp_path, "a.txt", b"\xef\xbb\xbfone\xef\xbb\xbf")
    second = written(tmp_path, "b.txt", b"\xef\xbb\xbftwo")
    assert "".join(read_chunks([first, second], chunk_bytes=2)) == "one\ufefftwo"
    assert b"".join(read_byte_chunks([first])) == b"\xef\xbb\xbfone\xef\xbb\xbf"


def test_line_ends_are_kept(tmp_path: Path) -> None:
    assert "".join(read_chunks([written(tmp_path, "a.txt", b"a\r\nb\rc\n")])) == "a\r\nb\rc\n"


@pytest.mark.parametrize("chunk_bytes", [1, 4, 100])
@pytest.mark.parametrize("errors", ["strict", "replace", "ignore"])
def test_binary_data_is_refused_with_its_offset(errors: str, chunk_bytes: int) -> None:
    with pytest.raises(DataError, match="NUL byte at byte 5; pass --tokens bytes"):
        list(read_chunks(["-"], errors, io.BytesIO(b"text:\0more"), chunk_bytes=chunk_bytes))
    assert b"".join(read_byte_chunks(["-"], io.BytesIO(b"text:\0more"), chunk_bytes=3)) == b"text:\0more"


def test_numbers_in_names_sort_by_their_value(tmp_path: Path) -> None:
    names = [
        "10.txt",
        "2.txt",
        "part 1/b.txt",
        "part 12/a.txt",
        "part 2/a.txt",
        "2a.txt",
        "02.txt",
        "v1.10.txt",
        "v1.9.txt",
    ]
    for name in names:
        written(tmp_path, name, name.encode() + b"|")
    assert "".join(read_chunks([str(tmp_path)])).split("|")[:-1] == [
        "02.txt", "2.txt", "2a.txt", "10.txt", "part 1/b.txt", "part 2/a.txt", "part 12/a.txt", "v1.9.txt", "v1.10.txt",
    ]  # fmt: skip


def test_what_a_folder_holds_besides_is_named(tmp_path: Path) -> None:
    for name in ("b.txt", "notes.md", "a/10.csv", "a/9.csv", ".hidden.txt", ".git/d.txt", "a/.e/f"):
        written(tmp_path, name, b"x")
    with open_sources([str(tmp_path)]) as opened:
        assert [source.name for source in opened.sources] == [str(tmp_path / "b.txt")]
        skipped = [".git", ".hidden.txt", "a/9.csv", "a/10.csv", "a/.e", "notes.md"]
        assert opened.skipped == tuple(str(tmp_path / name) for name in skipped)
    with open_sources([str(tmp_path / "a" / "9.csv")]) as opened:
        assert opened.skipped == ()


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no links")
def test_links_that_are_not_followed_are_named(tmp_path: Path) -> None:
    written(tmp_path, "elsewhere/a.txt", b"x")
    written(tmp_path, "texts/b.txt", b"y")
    (tmp_path / "texts" / "c.txt").symlink_to(tmp_path / "elsewhere" / "a.txt")
    (tmp_path / "texts" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "texts" / "broken.txt").symlink_to(tmp_path / "nowhere")
    with open_sources([str(tmp_path / "texts")]) as opened:
        assert [Path(source.name).name for source in opened.sources] == ["b.txt", "c.txt"]
        assert [Path(name).name for name in opened.skipped] == ["broken.txt", "folder"]


def test_files_of_a_folder_come_sorted_by_path_text_files_only(tmp_path: Path) -> None:
    names = ["b.txt", "a/z.TXT", "a-b.txt", "a/b/c.txt", "notes.md", ".hidden.txt", ".git/d.txt"]
    for name in names:
        written(tmp_path, name, name.encode() + b"|")
    assert "".join(read_chunks([str(tmp_path)])) == "a/b/c.txt|a/z.TXT|a-b.txt|b.txt|"


def test_a_folder_without_text_files_stands_for_all_its_files(tmp_path: Path) -> None:
    written(tmp_path, "b.md", b"b")
    written(tmp_path, "a.py", b"a")
    assert "".join(read_chunks([str(tmp_path)])) == "ab"


@pytest.mark.parametrize("between", ["", "\n", "<é>"])
def test_sources_are_joined_in_the_order_given(tmp_path: Path, between: str) -> None:
    a, b, none = (written(tmp_path, name, text) for name, text in [("a", b"a"), ("b", b"bb"), ("c", b"")])
    mark = written(tmp_path, "mark", b"\xef\xbb\xbf")
    names, expected = [none, b, "-", none, a, mark, b, none], between.join(["bb", "-", "a", "bb"])
    for size in (1, 100):
        chunks = read_chunks(names, stdin=io.BytesIO(b"-"), between=between, chunk_bytes=size)
        assert "".join(chunks) == expected
    names.remove(mark)
    raw = read_byte_chunks(names, io.BytesIO(b"-"), between=between.encode())
    assert b"".join(raw) == expected.encode()


def test_standard_input_can_be_read_twice() -> None:
    with open_sources(["-"], io.BytesIO(b"once")) as opened:
        for _ in range(2):
            assert "".join(decoded_chunks(opened.sources)) == "once"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_copied_so_that_it_can_be_read_twice(tmp_path: Path) -> None:
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    writer = threading.Thread(target=Path(pipe).write_bytes, args=(b"piped",))
    writer.start()
    with open_sources([pipe]) as opened:
        writer.join()
        for _ in range(2):
            assert "".join(decoded_chunks(opened.sources)) == "piped"


@pytest.mark.parametrize("name", ["no-such-file.txt", ""])
def test_a_missing_file_is_named(name: str) -> None:
    with pytest.raises(DataError, match=f"got '{name}', which does not exist"):
        list(read_chunks([name]))


def test_empty_sources_are_refused(tmp_path: Path) -> None:
    empty, mark = written(tmp_path, "empty.txt", b""), written(tmp_path, "mark.txt", b"\xef\xbb\xbf")
    with pytest.raises(DataError, match=r"not one character from .*empty\.txt"):
        list(read_chunks([empty]))
    with pytest.raises(DataError, match="not one character"):
        list(read_chunks([mark]))
    with pytest.raises(DataError, match="not one byte"):
        list(read_byte_chunks([empty]))
    with pytest.raises(DataError, match="from no source"):
        list(read_chunks([]))
    assert "".join(read_chunks([empty, written(tmp_path, "a.txt", b"a")])) == "a"


def test_a_folder_without_files_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(DataError, match="no file in it"):
        list(read_chunks([folder]))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    name = written(tmp_path, "a.txt", b"a")
    Path(name).chmod(0)
    with pytest.raises(DataError, match=r"a\.txt.*check its path and permissions"):
        list(read_chunks([name]))


def test_what_the_system_says_becomes_one_line() -> None:
    with pytest.raises(DataError, match="name too long; check its path and permissions") as caught:
        list(read_chunks(["a" * 5000]))
    assert "\n" not in str(caught.value)


def test_misuse_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"'-' .* at most once"):
        list(read_chunks(["-", "-"], stdin=io.BytesIO(b"a")))
    with pytest.raises(InputError, match="did you mean replace"):
        list(read_chunks(["-"], "replaced", io.BytesIO(b"a")))


# ----------------------------------------------------------------------------------------------- encodings

ENCODINGS = [
    "latin-1",
    "cp1252",
    "ascii",
    "utf-8-sig",
    "utf-16",
    "utf-16-be",
    "utf-32",
    "shift_jis",
    "gb18030",
    "euc_jp",
]


@given(st.binary(min_size=1, max_size=40), st.integers(1, 9), st.sampled_from(ENCODINGS))
def test_any_encoding_is_decoded_whatever_the_chunks_and_its_first_bad_byte_named(
    raw: bytes, size: int, encoding: str
) -> None:
    """Both against Python's own codec on the whole text."""
    raw = raw.replace(b"\0", b" ") if encoding in ("latin-1", "cp1252", "ascii") else raw
    if looks_compressed(raw):
        return
    chunks = read_chunks(["-"], stdin=io.BytesIO(raw), encoding=encoding, chunk_bytes=size)
    if encoding in MARKS and not raw.startswith(MARKS[encoding]):
        with pytest.raises(DataError):
            list(chunks)
        return
    try:
        expected = raw.decode(encoding)
    except UnicodeDecodeError as error:
        text, where = raw[: error.start].decode(encoding, "ignore"), error.start
        if "\0" in text or 0 in raw[: where + size + 4]:
            return  # the NUL may be told of first
        where += 3 if encoding == "utf-8-sig" and raw.startswith(codecs.BOM_UTF8) else 0
        with pytest.raises(DataError, match=f"got byte 0x{raw[where]:02x} at byte {where} of 'standard input'"):
            list(chunks)
        return
    expected = expected.removeprefix("\ufeff")
    if "\0" in expected or not expected:
        with pytest.raises(DataError):
            list(chunks)
    else:
        assert "".join(chunks) == expected


def test_an_unknown_encoding_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"--encoding: no encoding 'cp1253x'; did you mean .*cp1253"):
        list(read_chunks(["-"], stdin=io.BytesIO(b"a"), encoding="cp1253x"))
    for name in ("rot13", "base64", "", "a b", "undefined"):
        with pytest.raises(InputError, match=r"no encoding .*; give one that Python knows, as utf-8, latin-1, .*auto"):
            list(read_chunks(["-"], stdin=io.BytesIO(b"a"), encoding=name))


def test_a_text_in_another_encoding_is_told_what_to_try() -> None:
    for raw, words in [
        ("né".encode("latin-1"), "0xe9 at byte 1 .*cp1252, latin-1"),
        ("né".encode("utf-16"), "(utf-16)"),
    ]:
        with pytest.raises(DataError, match=words):
            list(read_chunks(["-"], stdin=io.BytesIO(raw)))
    with pytest.raises(DataError, match=r"expected ASCII, got byte 0xc3 at byte 1 .*auto, utf-8"):
        list(read_chunks(["-"], stdin=io.BytesIO("né".encode()), encoding="ascii"))


FRENCH = "L'été dernier, nous avons déjeuné près de la forêt; le garçon était très âgé, où ça?\n" * 30


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8", "utf-8-sig"])
@pytest.mark.parametrize("lead", [0, 5000])
def test_auto_finds_the_encoding_wherever_the_first_bad_byte_is(encoding: str, lead: int) -> None:
    pytest.importorskip("charset_normalizer")
    text = "plain words of a text.\n" * lead + FRENCH
    chunks = read_chunks(["-"], stdin=io.BytesIO(text.encode(encoding)), encoding="auto")
    assert "".join(chunks) == text


def test_auto_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "charset_normalizer")
    assert read_text("-", "chars", "auto", stdin=io.BytesIO("é".encode())) == "é"  # no guess is needed
    with pytest.raises(DataError, match=r"--encoding auto: 'standard input' is not UTF-8.*tinygrad_rnn\[text\]"):
        read_text("-", "chars", "auto", stdin=io.BytesIO("é".encode("latin-1")))


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these packages were not installed."""
    imported = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name in names:
            raise ImportError(name)
        return imported(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)


# ---------------------------------------------------------------------------------------------- compression


def packed(ending: str, raw: bytes) -> bytes:
    if ending == ".zst":
        return bytes(pytest.importorskip("zstandard").ZstdCompressor().compress(raw))
    return {".gz": gzip, ".bz2": bz2, ".xz": lzma}[ending].compress(raw)  # type: ignore[attr-defined, no-any-return]


ENDINGS = [".gz", ".bz2", ".xz", ".zst"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_compressed_text_is_its_content(tmp_path: Path, ending: str) -> None:
    text = "".join(f"line {i} é€\n" for i in range(30_000))
    raw = text.encode()
    name = written(tmp_path, "a.txt" + ending.upper(), packed(ending, raw[:7]) + packed(ending, raw[7:]))
    chunks = list(read_chunks([name]))
    assert "".join(chunks) == text and len(chunks) > 1
    assert b"".join(read_byte_chunks([name], chunk_bytes=1000)) == raw
    assert (
        read_text(written(tmp_path, "b" + ending, packed(ending, "né".encode("latin-1"))), "chars", "latin-1") == "né"
    )
    written(tmp_path, "c.md", b"not read")
    assert "".join(read_chunks([str(tmp_path)])) == text  # b.gz is no .txt


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_data_are_told_in_one_line(tmp_path: Path, ending: str) -> None:
    whole = packed(ending, os.urandom(5000))
    for name, raw in [("cut", whole[:-20]), ("plain", b"a text"), ("more", whole + b"\xff more")]:
        path = written(tmp_path, name + ending, raw)
        with pytest.raises(DataError, match=f"{name}{ending}.*; get the file anew") as caught:
            list(read_byte_chunks([path]))
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="not one byte"):
        list(read_byte_chunks([written(tmp_path, "none" + ending, packed(ending, b""))]))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_bomb_is_stopped(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that becomes far more than any text does; what a text may reach is let through."""
    monkeypatch.setattr(compressed, "FLOOR", 1 << 16)
    small, large = packed(ending, b"a" * (1 << 16)), packed(ending, b"a" * 5_000_000)
    assert sum(map(len, read_byte_chunks([written(tmp_path, "small" + ending, small)]))) == 1 << 16
    read = 0
    with pytest.raises(DataError, match=f"at most 200 times the {len(large)} bytes of .*; decompress it yourself"):
        for chunk in read_byte_chunks([written(tmp_path, "large" + ending, large)]):
            read += len(chunk)
    assert read <= max(1 << 16, 200 * len(large))


@pytest.mark.parametrize("ending", ENDINGS)
def test_compressed_data_without_their_ending_are_named(tmp_path: Path, ending: str) -> None:
    raw = packed(ending, b"a text")
    for errors in ("strict", "replace"):
        with pytest.raises(DataError, match=f"got .* data from 'standard input'; decompress it.* ends in {ending}"):
            list(read_chunks(["-"], errors, io.BytesIO(raw)))
    assert b"".join(read_byte_chunks(["-"], io.BytesIO(raw))) == raw


def test_zstd_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zstandard")
    name = written(tmp_path, "a.zst", packed(".zst", b"a"))
    without(monkeypatch, "zstandard")
    if sys.version_info < (3, 14):
        with pytest.raises(DataError, match=r"a\.zst': before Python 3\.14 .*tinygrad_rnn\[text\]"):
            list(read_chunks([name]))


def test_an_xz_file_that_asks_for_much_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "XZ_MEMORY", 1 << 20)
    with pytest.raises(DataError, match=r"expected xz data in .*Memory usage limit"):
        list(read_chunks([written(tmp_path, "a.xz", lzma.compress(b"a text"))]))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "cp1252", "shift_jis", "gb18030", "utf-7"])
@pytest.mark.parametrize("errors", ["replace", "ignore"])
def test_bytes_of_no_character_are_treated_as_python_treats_them(tmp_path: Path, encoding: str, errors: Any) -> None:
    data = np.random.default_rng(0).integers(1, 256, 999, np.uint8).tobytes()
    (tmp_path / "a").write_bytes(data)
    chunks = read_chunks([str(tmp_path / "a")], errors, encoding=encoding, chunk_bytes=7)
    assert "".join(chunks) == data.decode(encoding, errors).removeprefix("\ufeff")
