"""The folder of compiled programs, and a llvmlite that is not there, too old, or fails."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygrad_rnn as tr
from tinygrad_rnn.compile import machine
from tinygrad_rnn.compile.program import _warn

needs_llvm = pytest.mark.skipif(
    importlib.util.find_spec("llvmlite") is None, reason="needs llvmlite, of the extra fast"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("TINYGRAD_RNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs that LLVM was given while the test ran."""
    binding = machine.llvm()
    seen: list[str] = []
    original: Callable[[str], Any] = binding.parse_assembly

    def parse(text: str) -> Any:
        if text:  # an empty one holds what is loaded
            seen.append(text)
        return original(text)

    monkeypatch.setattr(binding, "parse_assembly", parse)
    return seen


def program(number: int) -> str:
    return f"; made by lstm.py:48\ndefine i64 @answer() {{\n  ret i64 {number}\n}}\n"


def load(text: str) -> Callable[[str], int]:
    """As a new process would: what this one has loaded is forgotten."""
    found: Callable[[str], int] = getattr(machine.load, "__wrapped__", machine.load)(text)
    return found


def answer(text: str) -> int:
    """What the program returns when it is loaded and run."""
    result: int = ctypes.CFUNCTYPE(ctypes.c_int64)(load(text)("answer"))()
    return result


# ---------------------------------------------------------------------------------------------- the cache


@needs_llvm
def test_a_program_is_compiled_once_and_kept(folder: Path, compilations: list[str]) -> None:
    assert answer(program(42)) == 42
    assert answer(program(42)) == 42
    assert compilations == [program(42)]
    assert answer(program(43)) == 43
    assert len(compilations) == 2
    kept = sorted(folder.iterdir())
    assert sorted(path.suffix for path in kept) == [".ll", ".ll", ".o", ".o"]
    assert program(42) in {path.read_text() for path in kept if path.suffix == ".ll"}
    assert folder.stat().st_mode & 0o077 == 0


@needs_llvm
@pytest.mark.parametrize("damage", ["empty", "short", "cut", "flipped", "other code", "no object"])
def test_a_damaged_file_is_compiled_again_and_never_run(folder: Path, compilations: list[str], damage: str) -> None:
    answer(program(1))
    (one,) = folder.glob("*.o")
    answer(program(2))
    (two,) = set(folder.glob("*.o")) - {one}
    data = two.read_bytes()
    one_data = one.read_bytes()
    two.write_bytes(
        {
            "empty": b"",
            "short": data[:20],
            "cut": data[:-8],
            "flipped": data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
            "other code": data[:32] + one_data[32:],
            "no object": data[:32] + b"not an object file",
        }[damage]
    )
    compilations.clear()
    assert answer(program(2)) == 2
    assert compilations == [program(2)]
    assert two.read_bytes()[32:] == data[32:], "the file was not repaired"


@needs_llvm
def test_other_versions_or_another_processor_are_another_program(
    folder: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(program(5))
    made, target, told = machine.machine()
    monkeypatch.setattr(machine, "machine", lambda: (made, target, told + " another"))
    answer(program(5))
    assert len(compilations) == 2 and len(list(folder.glob("*.o"))) == 2
    import llvmlite

    for part in (llvmlite.__version__, made.triple, machine.llvm().get_host_cpu_name(), "avx" if "x86" in told else ""):
        assert part in told


@needs_llvm
def test_a_folder_that_cannot_be_written_costs_time_alone(
    tmp_path: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("TINYGRAD_RNN_CACHE", str(path))
        assert answer(program(6)) == 6
    assert len(compilations) == 2 and (tmp_path / "file").read_text() == "in the way"


@needs_llvm
def test_a_full_disk_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(a: Any, b: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert answer(program(8)) == 8
    assert list(folder.iterdir()) == []


@needs_llvm
def test_an_empty_variable_keeps_nothing(
    tmp_path: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYGRAD_RNN_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert answer(program(7)) == answer(program(7)) == 7
    assert len(compilations) == 2 and list(tmp_path.iterdir()) == []


def test_the_folder_is_that_of_the_user_where_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINYGRAD_RNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert machine.cache_folder() == tmp_path / "tinygrad_rnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert machine.cache_folder() == tmp_path / ".cache" / "tinygrad_rnn"


# ----------------------------------------------------------------------------------------- other processes

PROCESS = """
import json, sys
import llvmlite.binding as binding
count = 0
original = binding.parse_assembly
def parse(text):
    global count
    count += bool(text)
    return original(text)
binding.parse_assembly = parse
import numpy as np
from tinygrad_rnn import load_cell, scan, specification
cell = load_cell("rnn").cls(3, 4)
rng = np.random.default_rng(0)
params = {k: rng.normal(size=v.shape) for k, v in specification(cell)[1].items()}
done = scan(cell, params, rng.normal(size=(5, 2, 3)))
print(json.dumps([done.executor, count, done.outputs.data.tobytes().hex()]))
"""


def start(folder: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "TINYGRAD_RNN_CACHE": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )


def told(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and not err, err
    return json.loads(out)


@needs_llvm
def test_a_new_process_compiles_nothing_and_two_at_once_agree(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    both = [start(folder), start(folder)]
    first, second = (told(process) for process in both)
    assert first[0] == second[0] == "llvm" and first[2] == second[2]
    assert 2 in (first[1], second[1]), "somebody compiled: what all cells share, and the cell"
    assert {path.suffix for path in folder.iterdir()} == {".ll", ".o"}, "a temporary file is left"
    assert len(list(folder.glob("*.o"))) == 2
    assert told(start(folder)) == ["llvm", 0, first[2]]
    texts = [path.read_text() for path in folder.glob("*.ll")]
    (cell,) = [text for text in texts if "define void @loop" in text]
    assert "tanh(" in cell and "rnn.py:" in cell


# ------------------------------------------------------------------------------------- no llvmlite that works


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing of llvmlite is known: the functions that keep their result are asked anew."""
    for name in ("llvm", "machine", "typed", "shared", "load"):
        kept = getattr(machine, name)
        monkeypatch.setattr(machine, name, getattr(kept, "__wrapped__", kept))
    _warn.cache_clear()
    yield monkeypatch


def scanned() -> tuple[tr.Unrolled, list[warnings.WarningMessage]]:
    """One scan of a cell that nobody has compiled, held against unroll, and what was warned of."""
    cell = tr.load_cell("gru").cls(3, 4)
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=spec.shape) for name, spec in tr.specification(cell)[1].items()}
    xs = rng.normal(size=(4, 2, 3))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        done = tr.scan(cell, params, xs)
        tr.scan(cell, params, xs[:2])
    np.testing.assert_allclose(done.outputs.data, tr.unroll(cell, params, xs).outputs.data, rtol=1e-12, atol=1e-14)
    return done, heard


def test_without_llvmlite(fresh: pytest.MonkeyPatch) -> None:
    fresh.setitem(sys.modules, "llvmlite", None)
    done, heard = scanned()
    assert (done.executor, done.reason) == ("numpy", "llvmlite is not installed; pip install 'tinygrad_rnn[fast]'")
    assert [str(w.message) for w in heard] == [f"{done.reason}; cells run by NumPy, more slowly"]
    with pytest.raises(machine.CompilerMissing, match="not installed"):
        machine.machine()


@needs_llvm
def test_an_old_llvmlite_is_named_with_what_is_expected(fresh: pytest.MonkeyPatch) -> None:
    import llvmlite

    for version, usable in (("0.44.0", False), ("0.9.1", False), ("0.45.0", True), ("1.0.0", True)):
        fresh.setattr(llvmlite, "__version__", version)
        if usable:
            machine.llvm()
            continue
        with pytest.raises(machine.CompilerMissing, match=rf"llvmlite {version} is too old; expected 0\.45 or newer"):
            machine.llvm()
    fresh.setattr(llvmlite, "__version__", "0.44.0")
    done, _ = scanned()
    assert done.executor == "numpy" and "too old" in done.reason


@needs_llvm
def test_a_pre_release_of_llvmlite_has_a_version_too(fresh: pytest.MonkeyPatch) -> None:
    import llvmlite

    for version in ("0.46.0rc1", "0.47.0dev0+12.gabc", "1.0rc1"):
        fresh.setattr(llvmlite, "__version__", version)
        machine.llvm()


REFUSED = """
import gc, warnings
import numpy as np
import tinygrad_rnn as tr
from tinygrad_rnn.compile import machine

def run(name):
    cell = tr.load_cell(name).cls(3, 4)
    rng = np.random.default_rng(0)
    params = {k: rng.normal(size=v.shape) for k, v in tr.specification(cell)[1].items()}
    xs = rng.normal(size=(4, 2, 3))
    done = tr.scan(cell, params, xs)
    np.testing.assert_allclose(done.outputs.data, tr.unroll(cell, params, xs).outputs.data, rtol=1e-12, atol=1e-14)
    return done, tr.scan(cell, params, xs[:2])

binding = machine.llvm()
original = getattr(binding, WHERE)
def broken(*args, **facts):
    if WHERE != "parse_assembly" or args[0]:
        raise RuntimeError("LLVM ERROR: no such\\ntarget")
    return original(*args, **facts)
setattr(binding, WHERE, broken)
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    for done in run("gru"):
        assert (done.executor, done.reason) == ("numpy", "LLVM failed: LLVM ERROR: no such target"), done.reason
(warning,) = heard
assert warning.category is RuntimeWarning
assert str(warning.message) == f"{done.reason}; cells run by NumPy, more slowly"
setattr(binding, WHERE, original)
gc.collect()
assert [done.executor for done in run("rnn")] == ["llvm", "llvm"]
gc.collect()
print("fine")
"""


@needs_llvm
@pytest.mark.parametrize("where", ["parse_assembly", "create_mcjit_compiler"])
def test_a_failure_of_llvm_is_one_warning_and_spares_the_next_cell(tmp_path: Path, where: str) -> None:
    """In a process of its own: what LLVM holds must be whole after it has failed."""
    env = {**os.environ, "TINYGRAD_RNN_CACHE": str(tmp_path)}
    text = REFUSED.replace("WHERE", repr(where))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, env=env)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


BROKEN = """
import gc
from tinygrad_rnn.compile import machine
for text in ("define i64 @answer() {\\n  ret i32 0\\n}\\n", "no assembly at all"):
    try:
        machine.load(text)
    except RuntimeError:
        gc.collect()
    else:
        raise AssertionError("it was compiled")
machine.load("define i64 @answer() {\\n  ret i64 0\\n}\\n")("answer")
print("fine")
"""


@needs_llvm
def test_code_that_llvm_refuses_is_not_kept_and_harms_nobody(tmp_path: Path) -> None:
    env = {**os.environ, "TINYGRAD_RNN_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, timeout=120, env=env)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
    assert len(list((tmp_path / "cache").glob("*.o"))) == 1
