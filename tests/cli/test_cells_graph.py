"""``cells graph``: text, Graphviz, JSON and machine code of a cell, and what it says to wrong words."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tinygrad_rnn as tr

LOOKS = """
from tinygrad_rnn import Cell, State, input_matrix, ops, register_cell

@register_cell
class Looks(Cell):
    name = "looks_of_test"
    summary = citation = equation = "looks at a value"

    def state(self):
        return {"h": State((self.H,))}

    def params(self):
        print("a plugin that prints")
        return {"W": input_matrix(self.I, self.H)}

    def step(self, p, x, s):
        h = ops.tanh(x @ p.W)
        if h[0, 0] > 0:
            h = h * 2.0
        return {"h": h}
"""


@pytest.fixture
def looks(tmp_path: Path, own_registry: None) -> Path:
    path = tmp_path / "looks.py"
    path.write_text(LOOKS)
    return path


def test_text(invoke: Any) -> None:
    done = invoke("cells graph lstm --inputs 3 --hidden 4 --batch 2")
    assert done.exit_code == 0 and not done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "lstm: I = 3, H = 4, B = 2, float32"
    for heading in (
        "before the loop, for all T at once",
        "inside the loop, at every timestep",
        "gradient, inside the loop backwards",
        "gradient, after the loop, for all T at once",
    ):
        assert heading in lines
    words = [line.split() for line in lines]
    at = next(line for line in words if line[:3] == ["i", "=", "sigmoid(a_i)"] and line[-1] == "kept")
    assert at[3:5] == ["(B,", "4)"] and at[5].startswith("lstm.py:")
    assert ["d_W_hi", "=", "h^T", "@", "d_a_i", "(4,", "4)"] in words


def test_stage_direction_options_mask_and_dtype(invoke: Any) -> None:
    page = invoke(
        "cells graph gru --hidden 4 --stage scheduled --direction forward --cell-opt form=reset_after --masked "
        "--dtype float64"
    ).stdout
    assert page.startswith("gru: I = 4, H = 4, B = 50, float64, with a mask\n")
    assert "traced" not in page and "gradient," not in page
    assert "h @ W_hn + b_hn" in page and "where(mask, " in page
    page = invoke("cells graph gru --hidden 4 --stage traced --direction backward").stdout
    assert "inside the loop" not in page and "d_W_hn" in page


def test_unfolded_has_a_line_for_every_op(invoke: Any) -> None:
    counts = [
        sum(len(part["values"]) for part in json.loads(invoke(f"cells graph mut3 --json {words}").stdout)["parts"])
        for words in ("", "--unfolded")
    ]
    assert counts[1] > 1.2 * counts[0]


def test_json_is_the_graph(invoke: Any) -> None:
    facts = json.loads(invoke("cells graph mut1 --hidden 4 --json").stdout)
    assert facts["cell"] == "mut1" and facts["refused"] == "" and facts["inputs"] == ["x", "h"]
    parts = {(part["stage"], part["key"]): part["values"] for part in facts["parts"]}
    assert parts.keys() >= {("traced", "step"), ("traced", "gradient"), ("scheduled", "loop"), ("scheduled", "sinks")}
    loop = {value["name"]: value for value in parts["scheduled", "loop"]}
    assert loop["r"]["note"] == "kept" and loop["r"]["shape"] == ["B", 4] and "a_r" in loop["r"]["reads"]


def test_dot_is_a_drawing(invoke: Any, tmp_path: Path) -> None:
    text = invoke("cells graph lstm --hidden 4 --masked --dot").stdout
    assert text.startswith("digraph {") and text.rstrip().endswith("}")
    assert 'label="lstm: I = 4, H = 4"' in text and "next timestep" in text
    if shutil.which("dot") is None:
        pytest.skip("the drawing itself needs Graphviz")
    done = subprocess.run(["dot", "-Tsvg"], input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and not done.stderr and "inside the loop, at every timestep" in done.stdout


def test_code(invoke: Any) -> None:
    if importlib.util.find_spec("llvmlite") is None:
        pytest.skip("needs llvmlite, of the extra fast")
    text = invoke("cells graph gru --hidden 4 --code").stdout
    assert "define void @loop(" in text and "= sigmoid(" in text and "gru.py:" in text


def test_code_without_llvmlite_says_what_to_install(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinygrad_rnn.compile import machine

    for cached in (machine.llvm, machine.machine, machine.typed):
        monkeypatch.setattr(machine, cached.__name__, cached.__wrapped__)
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    done = invoke("cells graph gru --hidden 4 --code")
    assert done.exit_code == 2 and not done.stdout
    assert done.stderr == "error: no machine code: llvmlite is not installed; pip install 'tinygrad_rnn[fast]'\n"
    assert invoke("cells graph gru --hidden 4").exit_code == 0


def test_a_cell_that_is_refused_is_explained(invoke: Any, looks: Path) -> None:
    done = invoke(["cells", "graph", "looks_of_test", "--plugin", looks])
    assert done.exit_code == 0
    assert "\nnot compiled: the step depends on a value" in done.stdout and "looks.py:" in done.stdout
    assert "a plugin that prints" not in done.stdout
    facts = json.loads(invoke(["cells", "graph", "looks_of_test", "--plugin", looks, "--json"]).stdout)
    assert "looks.py:" in facts["refused"] and facts["parts"] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("nosuch", "no cell 'nosuch'"),
        ("lstm --dot --json", "--dot and --json: expected one of them"),
        ("lstm --code --stage traced", "--code: the machine code is one piece"),
        ("lstm --cell-opt foo=1", "cell lstm has no option 'foo'"),
        ("lstm --hidden 0", "--hidden: expected at least 1, got 0"),
        ("lstm --stage before", "'before' is not one of 'traced', 'scheduled', 'all'"),
        ("mut1 --inputs 0", "0 is not in the range x>=1"),
    ],
)
def test_bad_input_is_one_line(invoke: Any, words: str, told: str) -> None:
    done = invoke(f"cells graph {words}")
    assert done.exit_code == 2 if words != "nosuch" else done.exit_code in (1, 2)
    assert told in done.stderr and "Traceback" not in done.stderr and not done.stdout
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_every_built_in_cell_is_shown(invoke: Any) -> None:
    for row in tr.available_cells(third_party=False):
        done = invoke(f"cells graph {row.name} --hidden 5")
        assert done.exit_code == 0 and "not compiled" not in done.stdout and "no machine code" not in done.stdout


@pytest.mark.parametrize("cell", ["clockwork", "lru", "lstm"])
def test_a_copy_is_no_product_with_one(invoke: Any, cell: str) -> None:
    done = invoke(f"cells graph {cell} --hidden 8")
    assert done.exit_code == 0 and not re.search(r"\* 1( |$)", done.stdout, re.MULTILINE)
