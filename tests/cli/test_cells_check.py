"""``cells check``: the table, the reproduction of what failed, JSON, and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tinygrad_rnn as tr

CELL = """
from tinygrad_rnn import Cell, InputError, State, bias, input_matrix, ops, recurrent_matrix, register_cell

print("a plugin that prints")


@register_cell
class One(Cell):
    name = "one_of_test"
    summary = "a plain network"
    citation = "written for a test"
    equation = "h' = tanh(x W + h U + b)"

    def state(self):
        return {"h": State((self.H,))}

    def params(self):
        return {"W": input_matrix(self.I, self.H), "U": recurrent_matrix(self.H), "b": bias(self.H)}

    def step(self, p, x, s):
        return {"h": ops.tanh(x @ p.W + s.h @ p.U + p.b)}


@register_cell
class Other(One):
    name = "other_of_test"

    def reference(self, p, x, s):
        import numpy as np
        return {"h": np.tanh(x @ p.W + s.h @ p.U.T + p.b)}
"""
NAMES = ["declaration", "documentation", "seed", "shapes", "purity", "dtype", "sizes", "rows", "gradients", "reference"]
NAMES += ["scan", "masks", "extremes", "long", "checkpoint", "taps", "devices", "noise"]


@pytest.fixture
def plugin(tmp_path: Path, own_registry: None) -> Path:
    """A file with a sound cell and one whose reference is another formula."""
    path = tmp_path / "two.py"
    path.write_text(CELL)
    return path


def test_a_built_in_cell(invoke: Any) -> None:
    done = invoke("cells check rnn")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "cell rnn (I=3, H=4, seed 0): 18 passed"
    assert [line.split()[:2] for line in lines[2:]] == [[name, "passed"] for name in NAMES]
    assert done.stderr.startswith("1 cell in ")


def test_options_wrappers_sizes_and_seed_reach_the_cell(invoke: Any) -> None:
    words = (
        "cells check rnn --cell-opt activation=relu --wrap zoneout:0.2 --inputs 2 --units 3 --seed 5 --steps 30 --json"
    )
    (facts,) = json.loads(invoke(words).stdout)["cells"]
    assert (facts["cell"], facts["I"], facts["H"], facts["seed"]) == ("rnn+zoneout:0.2", 2, 3, 5)
    assert facts["options"] == {"activation": "relu"} and facts["ok"]
    assert [row["name"] for row in facts["checks"]] == NAMES
    assert facts["checks"][NAMES.index("long")]["detail"].startswith("30 steps")
    assert set(facts["checks"][0]) == {"name", "meaning", "outcome", "detail", "reproduction"}


def test_a_file_with_two_cells(invoke: Any, plugin: Path) -> None:
    done = invoke(["cells", "check", plugin])
    assert done.exit_code == 3
    lines = done.stdout.splitlines()
    assert lines[0] == "cell one_of_test (I=3, H=4, seed 0): 17 passed, 1 skipped"
    assert lines[2] == "cell other_of_test (I=3, H=4, seed 0): 17 passed, 1 failed"
    assert lines[4].split()[:2] == ["reference", "FAILED"] and "expected " in lines[4] and "got " in lines[4]
    assert "a plugin that prints" in done.stderr and "a plugin that prints" not in done.stdout
    code = done.stdout[done.stdout.index("import numpy") :]
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    numbers = code.rstrip().rpartition("  # ")[2]
    assert again.stdout.splitlines()[-1] == numbers, "what was reported is what the lines print"


def test_one_failing_cell_is_shown_whole(invoke: Any, plugin: Path) -> None:
    done = invoke(["cells", "check", "other_of_test", "--plugin", plugin, "-q"])
    assert done.exit_code == 3
    rows = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[2:20]}
    assert list(rows) == NAMES and rows.pop("reference") == "FAILED" and set(rows.values()) == {"passed"}
    facts = json.loads(invoke(["cells", "check", "other_of_test", "--plugin", plugin, "--json"]).stdout)
    (row,) = [row for row in facts["cells"][0]["checks"] if row["outcome"] == "failed"]
    assert facts["ok"] is False and row["name"] == "reference" and str(plugin) in row["reproduction"]


def test_all_of_them(invoke: Any, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among them one that cannot be imported, one that refuses these sizes, and one that passes."""
    refuses = "\n    def check(self):\n        raise InputError('cell other_of_test: expected H = 7')\n"
    plugin.write_text(CELL + refuses)
    tr.load_plugin_file(plugin)
    rows = [SimpleNamespace(name=name) for name in ("one_of_test", "other_of_test", "broken_of_test")]
    load = tr.load_cell

    def loaded(name: str, **options: Any) -> tr.CellEntry:
        if name == "broken_of_test":
            raise tr.PluginError("cell 'broken_of_test' cannot be imported")
        return load(name, **options)

    monkeypatch.setattr(tr, "available_cells", lambda **_: rows)
    monkeypatch.setattr(tr, "load_cell", loaded)
    done = invoke("cells check --all")
    assert done.exit_code == 3, done.output
    assert "cell one_of_test (I=3, H=4, seed 0): 17 passed, 1 skipped" in done.stdout
    assert "cell other_of_test (I=3, H=4, seed 0): 1 skipped" in done.stdout
    assert "declaration  FAILED   cell 'broken_of_test' cannot be imported" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("", 2, "expected NAME, PATH.py or --all, got none of them"),
        ("rnn --all", 2, "expected NAME, PATH.py or --all, got both"),
        ("lstn", 2, "no cell 'lstn'; did you mean lstm"),
        ("none.py", 1, "none.py: expected a Python file, got none there"),
        ("rnn --cell-opt activaton=relu", 2, "cell rnn has no option 'activaton'; did you mean activation?"),
        ("rnn --wrap zoneout", 2, "--wrap zoneout: expected one rate"),
        ("rnn --steps 3", 2, "3 is not in the range x>=4"),
        ("rnn --units 0", 2, "0 is not in the range x>=1"),
        ("one.py --no-plugins", 2, "one.py and --no-plugins exclude each other"),
    ],
)
def test_bad_input_is_one_line(invoke: Any, words: str, code: int, told: str) -> None:
    done = invoke(f"cells check {words}")
    assert done.exit_code == code and told in done.stderr and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
