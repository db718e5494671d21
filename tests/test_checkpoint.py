"""Checkpoints: what goes in comes out, every damage is seen, and no failure costs the old file."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn.checkpoint import is_temporary, load, save, write_bytes_atomic, write_json_atomic
from tinygrad_rnn.errors import CheckpointError, FileError, InputError

Arrays = dict[str, np.ndarray[Any, Any]]

META = {
    "step": 12,
    "lr": 0.1 + 0.2,
    "rng": {"state": 2**127 + 1, "has": False},
    "names": ["a", "ü", "\ud800"],
    "none": None,
}


def make_arrays() -> Arrays:
    rng = np.random.default_rng(0)
    square = rng.normal(size=(3, 4))
    return {
        "layers.0.W_xi": square,
        "transposed": square.T,
        "strided": square[:, ::2],
        "reversed": square[::-1],
        "fortran": np.asfortranarray(square),
        "broadcast": np.broadcast_to(np.arange(3.0), (2, 3)),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 4), np.float32),
        "float32": np.array([1e-45, -0.0, np.inf, np.nan], np.float32),
        "float16": np.array([1.5], np.float16),
        "big-endian": np.arange(3, dtype=">f8"),
        "bool": np.array([[True, False]]),
        **{f"int-{d}": np.arange(-2, 3).astype(d) for d in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")},
    }


def assert_same(got: Arrays, expected: Arrays) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype.newbyteorder("="), name
        assert got[name].shape == array.shape, name
        np.testing.assert_array_equal(got[name], array, err_msg=name)
        assert np.array_equal(np.signbit(got[name]), np.signbit(array)) if array.dtype.kind == "f" else True


def assert_one_line(error: pytest.ExceptionInfo[Exception], *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, make_arrays(), META)
    arrays, meta = load(path)
    assert_same(arrays, make_arrays())
    assert meta == META
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    for array in arrays.values():  # training continues in place
        assert array.flags.writeable
        assert array.flags.c_contiguous
        assert array.flags.owndata


def test_no_arrays_and_no_meta(tmp_path: Path) -> None:
    save(tmp_path / "a", {}, {})
    assert load(tmp_path / "a") == ({}, {})


def test_a_transposed_view_survives(tmp_path: Path) -> None:
    # Regression: safetensors 0.8.0 writes the memory of W.T as if it were contiguous, without a word.
    weight = np.arange(6.0).reshape(2, 3)
    save(tmp_path / "a", {"W": weight.T}, {})
    np.testing.assert_array_equal(load(tmp_path / "a")[0]["W"], weight.T)


def test_what_the_library_garbles_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    save(path, {"W": np.ones(3)}, {"step": 1})
    real = safetensors.numpy.save

    def garble(arrays: Arrays, metadata: dict[str, str]) -> bytes:
        return bytes(real({k: v + 1 for k, v in arrays.items()}, metadata))

    monkeypatch.setattr(safetensors.numpy, "save", garble)
    with pytest.raises(CheckpointError) as caught:
        save(path, {"W": np.ones(3)}, {"step": 2})
    assert_one_line(caught, "cannot write", str(path), "safetensors", f"the last good checkpoint is {path}")
    assert load(path)[1] == {"step": 1}


@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
    )
)
def test_any_json_is_returned_exactly(tmp_path_factory: pytest.TempPathFactory, meta: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("meta") / "a"
    save(path, {}, meta)
    assert load(path)[1] == meta


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a"]),
        np.array([object()]),
        np.zeros(2, np.complex128),
        np.zeros(2, "datetime64[s]"),
        np.zeros(2, [("a", "f4")]),
    ],
)
def test_refused_dtypes(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(InputError) as caught:
        save(tmp_path / "a", {"odd": array}, {})
    assert_one_line(caught, "'odd'", str(array.dtype))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "meta", [{"a": float("nan")}, {"a": float("inf")}, {"a": np.float32(1)}, {"a": {1, 2}}, {(1, 2): 3}]
)
def test_refused_meta(tmp_path: Path, meta: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        save(tmp_path / "a", {}, meta)
    assert_one_line(caught, "meta", "JSON")


def test_reserved_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="__metadata__"):
        save(tmp_path / "a", {"__metadata__": np.ones(1)}, {})


@pytest.fixture
def sample(tmp_path: Path) -> tuple[Path, bytes, Arrays]:
    arrays: Arrays = {
        "W": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32),
        "b": np.zeros(3),
        "step": np.array(7),
    }
    path = tmp_path / "whole.safetensors"
    save(path, arrays, META)
    return path, path.read_bytes(), arrays


def test_every_byte_flip_is_seen_or_harmless(sample: tuple[Path, bytes, Arrays], tmp_path: Path) -> None:
    _, data, arrays = sample
    choose = random.Random(0)
    victim, seen = tmp_path / "flipped.safetensors", 0
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= choose.choice([1, 2, 4, 8, 16, 32, 64, 128, 255])
        victim.write_bytes(broken)
        try:
            got, meta = load(victim)
        except CheckpointError as error:
            seen += 1
            assert str(victim) in str(error)
            assert "\n" not in str(error)
        else:  # padding, or a space in the header: the content is what counts
            assert_same(got, arrays)
            assert meta == META
    assert seen > 0.95 * len(data)


def test_every_truncation_is_seen(sample: tuple[Path, bytes, Arrays], tmp_path: Path) -> None:
    _, data, _ = sample
    victim = tmp_path / "short.safetensors"
    for length in range(len(data)):
        victim.write_bytes(data[:length])
        with pytest.raises(CheckpointError) as caught:
            load(victim)
        assert_one_line(caught, str(victim))
    victim.write_bytes(data + b"\0")
    with pytest.raises(CheckpointError):
        load(victim)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for metadata in (None, {"format": "pt"}):
        safetensors.numpy.save_file({"W": np.ones(2)}, path, metadata)
        with pytest.raises(CheckpointError) as caught:
            load(path)
        assert_one_line(caught, str(path), "none that tinygrad_rnn wrote")
    for content in (
        b"",
        b"hello",
        b"To be, or not to be, that is the question:\n" * 50,
        bytes(100),
        b"\x80\x04\x95" * 99,
        (2).to_bytes(8, "little") + b"[]",
        (7).to_bytes(8, "little") + b'{"a":1}',
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            load(path)
        assert_one_line(caught, str(path), "no")


def test_newer_format_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x"
    metadata = {"format": "tinygrad_rnn.checkpoint.9", "meta": "{}", "sha256": "0"}
    safetensors.numpy.save_file({"W": np.ones(2)}, path, metadata)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert_one_line(caught, "tinygrad_rnn.checkpoint.9", "version")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "none")
    assert_one_line(caught, "no checkpoint", "does not exist")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert_one_line(caught, "Is a directory")
    with pytest.raises(CheckpointError) as caught:
        save(tmp_path / "no" / "folder", {}, {})
    assert_one_line(caught, "No such file or directory", "no earlier checkpoint")


# open covers a read-only folder (tests may run as root, for whom no folder is), the others a full disk.
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_refusing_disk_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    path = tmp_path / "a.safetensors"
    save(path, {"W": np.ones(3)}, {"step": 1})

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(CheckpointError) as caught:
            save(path, {"W": np.zeros(3)}, {"step": 2})
        with pytest.raises(CheckpointError) as caught_other:
            save(tmp_path / "b", {}, {}, last_good=path)
        with pytest.raises(FileError):
            write_json_atomic(tmp_path / "c.json", {})
    for error in (caught, caught_other):
        assert_one_line(error, "cannot write", os.strerror(number), f"the last good checkpoint is {path}")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert load(path)[1] == {"step": 1}


def test_a_file_that_reads_back_differently_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save(path, {}, {"step": 1})
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: real(fd, bytes(len(data))))
        with pytest.raises(CheckpointError, match="reads back differently"):
            save(path, {}, {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert load(path)[1] == {"step": 1}


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:7])))
    save(tmp_path / "a", make_arrays(), META)
    assert_same(load(tmp_path / "a")[0], make_arrays())


def test_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "a", {}, {})
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_synced_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: real(fd) if os.path.isfile(f"/proc/self/fd/{fd}") else fail(fd))

    def fail(_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    save(tmp_path / "a", {}, {"step": 1})
    assert load(tmp_path / "a")[1] == {"step": 1}


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_really_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    code = f"""
import resource, numpy as np
from tinygrad_rnn.checkpoint import save
from tinygrad_rnn.errors import CheckpointError
save({str(path)!r}, {{"W": np.ones(100)}}, {{"step": 1}})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save({str(path)!r}, {{"W": np.ones(100000)}}, {{"step": 2}})
except CheckpointError as error:
    raise SystemExit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"cannot write {path}: File too large; the last good checkpoint is {path}; make room or write elsewhere"
    )
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert load(path)[1] == {"step": 1}


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_sigkill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    code = f"""
import numpy as np
from tinygrad_rnn.checkpoint import save
for step in range(10**9):
    save({str(path)!r}, {{"W": np.full(20000, float(step))}}, {{"step": step}})
"""
    choose = random.Random(0)
    for _ in range(6):
        path.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", code])
        try:
            limit = time.monotonic() + 60
            while not path.exists() and time.monotonic() < limit:
                time.sleep(0.005)
            time.sleep(choose.uniform(0, 0.06))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        arrays, meta = load(path)
        assert (arrays["W"] == meta["step"]).all()
        for other in tmp_path.iterdir():
            assert other == path or is_temporary(other)


def test_json_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json_atomic(path, {"a": [1, "ü\udcff"]})
    assert json.loads(path.read_text()) == {"a": [1, "ü\udcff"]}
    with pytest.raises(InputError):
        write_json_atomic(path, {"a": float("nan")})
    write_bytes_atomic(path, b"x")
    assert path.read_bytes() == b"x"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
