"""Reading text: chunk borders, encodings, folders, standard input, and what is said when it fails."""

from __future__ import annotations

import io
import os
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn.data import open_sources, read_byte_chunks, read_chunks
from tinygrad_rnn.data.text import decoded_chunks
from tinygrad_rnn.errors import DataError, InputError


def written(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


@given(
    st.binary(min_size=1, max_size=60).filter(lambda raw: 0 not in raw),
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
    with pytest.raises(DataError, match=r"0xff at byte 10 of 'standard input'; pass --errors replace.*--tokens bytes"):
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
