"""``cells new``: what it writes works untouched, nothing is overwritten, and an error leaves nothing behind."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygrad_rnn as tr

STATES = ["h", "h,c", "y,m1,m2", "abcdefgh,abcdefg1,abcdefg2,abcdefg3", "y,z", "n,o1,g"]
GATES = {"y,z": "gno", "n,o1,g": "zfr"}  # where a state has the letter of a gate
LONG = "as_long_as_it_may0"  # 18 characters


pytestmark = pytest.mark.usefixtures("own_registry")


def files(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text("utf-8") for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("states", STATES)
def test_the_cell_computes_a_gated_update(invoke: Any, states: str) -> None:
    """Its equation in NumPy, written here: memories move towards n by z, and the output reads them through o."""
    assert invoke(["cells", "new", "fresh", "--file", "--states", states]).exit_code == 0
    (entry,) = tr.load_plugin_file("fresh.py")
    output, *memories = names = states.split(",")
    T, B, I, H = 3, 2, 3, 4
    cell = entry.cls(I, H)
    assert list(cell.state()) == names
    rng = np.random.default_rng(0)
    params = {name: value.data for name, value in tr.init_cell(cell, rng).items()}
    xs, state = rng.normal(size=(T, B, I)), {name: rng.normal(size=(B, H)) for name in names}
    got = tr.unroll(cell, params, xs, state).state

    def total(gate: str, x: Any) -> Any:
        recurrent = f"W_{output if len(output) == 1 else 'h'}{gate}"
        return x @ params[f"W_x{gate}"] + state[output] @ params[recurrent] + params[f"b_{gate}"]

    update, value, read = GATES.get(states, "zno")
    for x in xs:
        new = {}
        for i, name in enumerate(memories or [output], 1):
            number = i if len(memories) > 1 else ""
            z = 1.0 / (1.0 + np.exp(-total(f"{update}{number}", x)))
            new[name] = state[name] + z * (np.tanh(total(f"{value}{number}", x)) - state[name])
        if memories:
            o = 1.0 / (1.0 + np.exp(-total(read, x)))
            new[output] = o * np.tanh(sum(new[name] for name in memories))
        state = new
    for name in names:
        np.testing.assert_allclose(got[name].data, state[name], rtol=1e-12)


@pytest.mark.parametrize("states", ["h", "y,m1,m2"])
def test_a_file_passes_its_checks_and_trains_untouched(invoke: Any, states: str) -> None:
    done = invoke(["cells", "new", "fresh", "--file", "--states", states])
    assert done.exit_code == 0 and done.stdout == "fresh.py\n"
    assert "TODO" in done.stderr and "tinygrad-rnn cells check fresh.py\n" in done.stderr
    done = invoke("cells check fresh.py")
    assert done.exit_code == 0, done.output
    assert ": 17 passed, 1 noted\n" in done.stdout and "summary: still to be written" in done.stdout
    tiny = "--hidden 6 --layers 2 --batch 4 --seq-len 10 --steps 2 --corpus hello"
    assert invoke(f"train --plugin fresh.py --cell fresh {tiny} --out run -q").stdout == "run\n"
    assert invoke("sample run -n 5").exit_code == 0


@pytest.mark.parametrize("states", STATES)
def test_the_package_holds_the_same_cell(invoke: Any, states: str, tmp_path: Path) -> None:
    for words in ("--out pack", "--file"):
        assert invoke(f"cells new {LONG} --states {states} {words}").exit_code == 0
    written = files(tmp_path / "pack")
    module = f"tinygrad_rnn_{LONG}"
    own = ["__init__.py", f"{LONG}.py", "py.typed"]
    tests = f"tests/test_{LONG}.py"
    assert written.keys() == {"pyproject.toml", "README.md", *(f"{module}/{name}" for name in own), tests}
    alone = (tmp_path / f"{LONG}.py").read_text("utf-8")
    assert written[f"{module}/{LONG}.py"] == alone.replace("@register_cell\n", "").replace("    register_cell,\n", "")
    project = tomllib.loads(written["pyproject.toml"])["project"]
    assert project["name"] == f"tinygrad-rnn-{LONG.replace('_', '-')}"
    assert project["entry-points"] == {"tinygrad_rnn.cells": {LONG: f"{module}.{LONG}:AsLongAsItMay0Cell"}}
    (entry,) = tr.load_plugin_file(f"{LONG}.py")
    for line in entry.cls.equation.splitlines():
        assert f"    {line}\n" in written["README.md"]
    assert max(len(line) for path in (tests, f"{module}/{LONG}.py") for line in written[path].splitlines()) <= 88


def test_every_place_to_edit_is_marked(invoke: Any, tmp_path: Path) -> None:
    assert invoke("cells new fresh --out pack").exit_code == 0
    marked = {path for path, text in files(tmp_path / "pack").items() if "TODO" in text}
    assert marked == {"pyproject.toml", "README.md", "tinygrad_rnn_fresh/fresh.py", "tests/test_fresh.py"}
    readme = (tmp_path / "pack" / "README.md").read_text("utf-8")
    assert re.search(r"^TODO: its equation.*\n\n    z = sigmoid", readme, re.MULTILINE)  # the scaffold's must not stay
    invoke("cells new other --file")
    (entry,) = tr.load_plugin_file("other.py")
    assert entry.cls.citation.startswith("TODO") and entry.cls.summary.startswith("TODO")


@pytest.mark.parametrize("width", [88, 120])
@pytest.mark.parametrize("states", STATES)
def test_formatters_and_checkers_have_nothing_to_say(invoke: Any, states: str, width: int, tmp_path: Path) -> None:
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("needs ruff, of the extra lint")
    for words in ("--out pack", "--file"):
        assert invoke(f"cells new {LONG} --states {states} {words}").exit_code == 0
    for words in ("format --check", "check --extend-select I,B,UP,RUF"):
        command = [sys.executable, "-m", "ruff", *words.split(), "--no-cache", "--line-length", str(width), "."]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_folder_may_be_there_when_it_is_empty(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    done = invoke("cells new fresh --out pack")
    assert done.exit_code == 0 and "pip install -e './pack[test]'\n" in done.stderr
    assert len(files(tmp_path / "pack")) == 6
    assert (tmp_path / "pack" / "tests").stat().st_mode & 0o777 == (tmp_path / "pack").stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("lstm", "NAME: there is a cell 'lstm', of tinygrad-rnn "),
        ("IRNN", "small letters, digits and inner underscores, and no keyword, got 'IRNN'; did you mean irnn?"),
        ("my-cell", "did you mean my_cell?"),
        ("cell_", "did you mean cell?"),
        ("lambda", "got 'lambda'"),
        ("../x", "got '../x'; did you mean x?"),
        (LONG + "x", "expected at most 18 characters"),
        ("cells", "there is a module tinygrad_rnn_cells in this environment"),
        ("fresh --states h,h", "--states: expected at most 4 different names, got 'h,h'"),
        ("fresh --states h,a,b,c,d", "--states: expected at most 4 different names"),
        ("fresh --states h,", "--states: expected Python names of at most 8 letters"),
        ("fresh --states h,c-d", "got 'c-d'"),
        ("fresh --states in", "got 'in'"),
        ("fresh --states x,c", "neither x, outputs, loss or slope nor one of a parameter, as W_x or b_n, got 'x'"),
        ("fresh --states h,loss", "got 'loss'"),
        ("random --file", "random.py would hide Python's own module random; expected another name"),
        ("fresh --states W_xz", "got 'W_xz'"),
        ("taken", "tinygrad-rnn-taken exists already"),
        ("fresh --out tinygrad-rnn-taken/kept", "tinygrad-rnn-taken/kept exists already"),
        ("fresh --out tinygrad-rnn-taken/kept/in", "cannot write into tinygrad-rnn-taken/kept/in: "),
        ("taken --file --out tinygrad-rnn-taken", "tinygrad-rnn-taken/taken.py exists already"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(invoke: Any, tmp_path: Path, words: str, told: str) -> None:
    taken = tmp_path / "tinygrad-rnn-taken"
    taken.mkdir()
    (taken / "kept").write_text("kept")
    (taken / "taken.py").write_text("kept")
    done = invoke(f"cells new {words}")
    assert done.exit_code in (1, 2) and not done.stdout
    assert told in done.stderr and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert files(tmp_path) == {"tinygrad-rnn-taken/kept": "kept", "tinygrad-rnn-taken/taken.py": "kept"}


def test_a_name_of_a_plugin_file_is_taken_too(invoke: Any) -> None:
    assert invoke("cells new fresh --file").exit_code == 0
    done = invoke("cells new fresh --plugin fresh.py")
    assert done.exit_code == 2 and "there is a cell 'fresh', of file fresh.py; expected" in done.stderr


@pytest.mark.parametrize("words", ["", "--file", "--out empty"])
def test_a_full_disk_leaves_nothing(invoke: Any, tmp_path: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    original = Path.write_text

    def full(path: Path, text: str, **how: Any) -> int:
        if "step(self" in text:
            original(path, text[:20], **how)
            raise OSError(28, "No space left on device")
        return original(path, text, **how)

    monkeypatch.setattr(Path, "write_text", full)
    done = invoke(f"cells new fresh {words}")
    assert done.exit_code == 1 and "No space left on device; expected another --out" in done.stderr
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


@pytest.mark.slow
@pytest.mark.parametrize("states", ["h", "h,c"])
def test_the_package_passes_its_own_tests(invoke: Any, states: str, tmp_path: Path) -> None:
    """Built and installed as a user would, into a folder of its own, without the network."""
    assert invoke(f"cells new fresh --states {states}").exit_code == 0
    quiet = "--quiet --disable-pip-version-check --no-build-isolation --no-deps --target installed".split()
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300}
    install = [sys.executable, "-m", "pip", "install", *quiet, "./tinygrad-rnn-fresh"]
    done = subprocess.run(install, **run)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    for words in ("tinygrad_rnn_cli cells check fresh", "pytest -q -p no:cacheprovider tinygrad-rnn-fresh"):
        command = [sys.executable, "-P", "-m", *words.split()]
        done = subprocess.run(command, env=environment, **run)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stdout + done.stderr
