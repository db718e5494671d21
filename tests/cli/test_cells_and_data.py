"""``cells`` and ``data``: what there is, with broken plugins as rows and not as crashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tinygrad_rnn as tr

BUILT_IN = {row.name for row in tr.available_cells(third_party=False)}

PLUGIN = """
from dataclasses import dataclass
from tinygrad_rnn import Cell, State, input_matrix, ops, register_cell

@register_cell
class Leaky(Cell):
    name = "leaky_of_test"
    summary = "a leaky sum"
    citation = "nobody"
    equation = "h' = h + tanh(x W)"

    def state(self):
        return {"h": State((self.H,))}

    def params(self):
        return {"W": input_matrix(self.I, self.H)}

    def step(self, p, x, s):
        return {"h": 0.5 * s.h + ops.tanh(x @ p.W)}
"""


@pytest.fixture
def plugin(tmp_path: Path, own_registry: None) -> Path:
    path = tmp_path / "leaky.py"
    path.write_text(PLUGIN)
    return path


def test_list(invoke: Any) -> None:
    lines = invoke("cells list").stdout.splitlines()
    assert lines[0].split() == ["cell", "distribution", "version", "where"]
    assert BUILT_IN <= {line.split()[0] for line in lines[1:]}
    rows = json.loads(invoke("cells list --json").stdout)["cells"]
    assert BUILT_IN <= {row["name"] for row in rows}
    checked = json.loads(invoke("cells list --errors --json").stdout)["cells"]
    assert all(row["error"] is None for row in checked if row["name"] in BUILT_IN)


def test_list_imports_no_cell(program: Any) -> None:
    done = program("cells", "list", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert "tinygrad_rnn_cells" not in done.stderr


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_info(invoke: Any, name: str) -> None:
    page = invoke(["cells", "info", name]).stdout
    for heading in ("Equation", "Source", "Options", "Parameters", "States"):
        assert f"\n{heading}" in page
    facts = json.loads(invoke(["cells", "info", name, "--json"]).stdout)
    cls = tr.load_cell(name).cls
    assert "\n".join(facts["equation"]) == cls.equation
    assert facts["citation"] == cls.citation
    shapes = {param["name"]: param["shape"] for param in facts["params"]}
    assert ["I", "H"] in shapes.values()
    assert (["H", "H"] in shapes.values()) is (name not in ("clockwork", "mingru", "minlstm"))
    assert facts["states"][0] == {
        "name": "re" if name == "lru" else "h",
        "shape": ["H"],
        "start": 0.0,
        "timestep": False,
    }
    assert [state["name"] for state in facts["states"] if state["timestep"]] == ["t"] * (name == "clockwork")
    assert all(option["help"] for option in facts["options"])


def test_a_plugin_file_is_listed_explained_and_trained(invoke: Any, plugin: Path, tmp_path: Path) -> None:
    assert "leaky_of_test" in invoke(["cells", "list", "--plugin", plugin]).stdout
    assert "a leaky sum" in invoke(["cells", "info", "leaky_of_test", "--plugin", plugin]).stdout
    words = "--hidden 8 --layers 1 --batch 4 --seq-len 10 --corpus hello --steps 2 --out leaky".split()
    done = invoke(["train", "--cell", "leaky_of_test", "--plugin", plugin, *words])
    assert done.exit_code == 0, done.output
    assert invoke("sample leaky -n 5").exit_code == 0  # the run knows its plugin
    plugin.write_text(PLUGIN.replace("0.5 *", "0.25 *"))
    for command in ("sample leaky -n 5", "eval leaky", "diagnose gradnorm leaky"):
        changed = invoke(command)
        assert changed.exit_code == 0 and changed.stderr.startswith("warning: the code of cell 'leaky_of_test' (file")
        assert changed.stderr.count("has changed") == 1 and "--allow-changed-cell" in changed.stderr
        allowed = invoke(f"{command} --allow-changed-cell")
        assert allowed.stdout == changed.stdout and "has changed" not in allowed.stderr
    refused = invoke("resume leaky --steps 4")
    assert refused.exit_code == 1 and "has changed" in refused.stderr and refused.stderr.count("\n") == 1
    assert invoke("resume leaky --steps 4 --allow-changed-cell").exit_code == 0
    assert invoke("sample leaky -n 5 --which latest").stderr == ""  # this checkpoint was made with the new code
    plugin.write_text(PLUGIN.replace('"W"', '"U"').replace("p.W", "p.U"))
    unfit = invoke("sample leaky -n 5")
    assert unfit.exit_code == 1 and "has changed" in unfit.stderr and "does not fit any more" in unfit.stderr
    facts = json.loads(invoke("inspect leaky --json").stdout)
    assert "has changed" in facts["cell_error"]


def test_a_broken_plugin_file(invoke: Any, tmp_path: Path) -> None:
    for text in ("import nothing_of_this_name\n", "x = 1\n", "def (\n"):
        (tmp_path / "broken.py").write_text(text)
        done = invoke("cells list --plugin broken.py")
        assert done.exit_code == 1
        assert "broken.py" in done.stderr and done.stderr.count("\n") == 1


def test_broken_cells_are_red_rows(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        tr.PluginRow("good", "mine", "1", "mine:Good"),
        tr.PluginRow("bad", "mine", "1", "mine:Bad", "no such module"),
    ]
    monkeypatch.setitem(vars(tr), "available_cells", lambda **_: rows)
    done = invoke("cells list --errors --color always", TERM="xterm")
    assert done.exit_code == 0
    (line,) = [line for line in done.stdout.splitlines() if "no such module" in line]
    assert "\x1b[31m" in line
    assert "1 of 2 cannot be used" in done.stderr
    assert "no such module" in invoke("cells list --errors").stdout


def test_unknown_names(invoke: Any) -> None:
    done = invoke("cells info mut4")
    assert done.exit_code == 2
    assert "no cell 'mut4'; did you mean" in done.stderr and "mut1" in done.stderr
    done = invoke("cells lst")
    assert done.exit_code == 2 and "did you mean list" in done.stderr


def test_data_list(invoke: Any) -> None:
    page = invoke("data list").stdout
    rows = {row["name"]: row for row in json.loads(invoke("data list --json").stdout)["corpora"]}
    assert set(rows) == {corpus.name for corpus in tr.corpora()}
    assert rows["hello"]["characters"] == 24000
    assert all(name in page for name in rows)


def test_data_stats(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abbccc\n", encoding="utf-8")
    facts = json.loads(invoke("data stats a.txt --json").stdout)
    assert (facts["characters"], facts["symbols"], facts["kind"]) == (7, 4, "chars")
    assert facts["frequent"][0] == ["c", 3]
    piped = json.loads(invoke("data stats - --json --tokens bytes", input=b"abbccc\n").stdout)
    assert (piped["characters"], piped["symbols"], piped["distinct"]) == (7, 256, 4)
    assert piped["sha256"] == facts["sha256"]
    page = invoke("data stats a.txt --top 1").stdout
    assert "'c'" in page and "'a'" not in page
