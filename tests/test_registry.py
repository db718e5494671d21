"""The registry: three ways in, lazy listing, broken and duplicate plugins, identities. And the contract, enforced."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import (
    Cell,
    InputError,
    Param,
    PluginError,
    State,
    Tensor,
    available_cells,
    bias,
    buffer,
    init_cell,
    input_matrix,
    load_cell,
    load_plugin_file,
    ops,
    recurrent_matrix,
    register_cell,
    unroll,
)
from tinygrad_rnn.cell import noise_of
from tinygrad_rnn.plugins import (
    CALLBACKS,
    CELLS,
    OPTIMIZERS,
    available,
    check_identity,
    forget,
    load,
    register,
    register_command,
)
from tinygrad_rnn.registry import CellEntry

BUILT_IN = (
    "clockwork esn fastgrnn forget_update gru irnn janet lru lstm lstm_peephole mgu mingru minimalrnn minlstm mut1 "
    "mut2 mut3 rnn scrn ugrnn"
).split()

# A complete cell; NAME and VALUE are replaced.
PLUGIN = """
from tinygrad_rnn import Cell, Param, State, ops, register_cell

@register_cell
class Leaky(Cell):
    name = "NAME"
    summary = "keeps a share of its state"
    citation = "nobody"
    equation = "h' = VALUE h + x W"

    def state(self):
        return {"h": State((self.H,))}

    def params(self):
        return {"W": Param((self.I, self.H), "uniform", "input")}

    def step(self, p, x, s):
        return {"h": VALUE * s.h + x @ p.W}
"""


def plugin(name: str = "leaky", value: str = "0.5") -> str:
    return PLUGIN.replace("NAME", name).replace("VALUE", value)


@pytest.fixture(autouse=True)
def nothing_stays_registered(own_registry: None) -> None:
    """In any test of this file."""


def undecorated(name: str) -> str:
    return plugin(name).replace("@register_cell\n", "")


# ------------------------------------------------------------------------------------ entry points


def test_the_built_in_cells_come_by_entry_points() -> None:
    rows = [row for row in available_cells() if row.distribution == "tinygrad-rnn"]
    assert [row.name for row in rows] == BUILT_IN
    assert all(row.error is None and row.version and row.location.startswith("tinygrad_rnn_cells.") for row in rows)
    assert [row.error for row in available_cells(third_party=False, check=True)] == [None] * len(BUILT_IN)


def test_listing_imports_no_cell(tmp_path: Path) -> None:
    program = """
import json, sys
from tinygrad_rnn import available_cells, load_cell
names = [row.name for row in available_cells()]
listed = sorted(m for m in sys.modules if m.startswith("tinygrad_rnn_cells"))
load_cell("mut3")
loaded = sorted(m for m in sys.modules if m.startswith("tinygrad_rnn_cells"))
print(json.dumps([names, listed, loaded]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    names, listed, loaded = json.loads(done.stdout)
    assert set(BUILT_IN) <= set(names)
    assert listed == []
    assert loaded == [f"tinygrad_rnn_cells{module}" for module in ("", ".input_map", ".mut3", ".references")]


def test_an_installed_cell_is_found_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: Any
) -> None:
    distribution(tmp_path, "acme-cells", {"acme_leaky": undecorated("leaky")}, {"cells": {"leaky": "acme_leaky:Leaky"}})
    monkeypatch.syspath_prepend(tmp_path)
    (row,) = [row for row in available_cells() if row.name == "leaky"]
    assert (row.distribution, row.version, row.location, row.error) == ("acme-cells", "1.2", "acme_leaky:Leaky", None)
    assert [row.name for row in available_cells()][: len(BUILT_IN)] == BUILT_IN  # the built-in ones first
    entry = load_cell("leaky")
    assert entry.identity.distribution == "acme-cells"
    assert entry.identity.source_sha256 == hashlib.sha256((tmp_path / "acme_leaky.py").read_bytes()).hexdigest()
    out = unroll(entry.cls(2, 2), {"W": np.eye(2)}, np.ones((2, 1, 2))).outputs.data
    np.testing.assert_array_equal(out[:, 0], [[1, 1], [1.5, 1.5]])


def test_a_decorated_class_that_is_also_an_entry_point_is_one_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: Any
) -> None:
    distribution(tmp_path, "both-ways", {"both_leaky": plugin("leaky")}, {"cells": {"leaky": "both_leaky:Leaky"}})
    monkeypatch.syspath_prepend(tmp_path)
    assert load_cell("leaky").identity.distribution == "both-ways"
    assert [row.error for row in available_cells(check=True) if row.name == "leaky"] == [None]


@pytest.mark.parametrize(
    ("source", "target", "parts"),
    [
        ("import missing_module_of_acme", "acme_broken:Cell", ["ModuleNotFoundError", "missing_module_of_acme"]),
        ("x = (", "acme_broken:Cell", ["SyntaxError"]),
        ("raise SystemExit(3)", "acme_broken:Cell", ["SystemExit"]),
        ("raise ValueError('first line\\nsecond line')", "acme_broken:Cell", ["ValueError: first line second line"]),
        ("x = 1", "acme_broken:Nothing", ["AttributeError", "Nothing"]),
        ("x = 1", "acme_broken:x", ["expected a subclass of tinygrad_rnn.Cell", "got 1"]),
        (undecorated("other"), "acme_broken:Leaky", ["named like its entry point", "'other'"]),
    ],
)
def test_a_broken_plugin_is_a_row_and_not_a_crash(
    source: str, target: str, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: Any
) -> None:
    distribution(tmp_path, "acme-broken", {"acme_broken": source}, {"cells": {"broken": target}})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_broken", raising=False)
    (row,) = [row for row in available_cells() if row.name == "broken"]
    assert row.error is None  # listing does not look inside
    rows = {row.name: row.error for row in available_cells(check=True)}
    assert {rows[name] for name in BUILT_IN} == {None}
    with pytest.raises(PluginError) as caught:
        load_cell("broken")
    for text in (rows["broken"] or "", str(caught.value)):
        assert "\n" not in text
        for part in ["'broken' of acme-broken", *parts]:
            assert part in text
    monkeypatch.delitem(sys.modules, "acme_broken", raising=False)


def test_duplicate_names_are_an_error_that_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: Any
) -> None:
    for k, name in enumerate(("acme-one", "acme-two")):
        module = f"acme_twice{k}"
        distribution(
            tmp_path / name, name, {module: undecorated("leaky")}, {"cells": {"leaky": f"{module}:Leaky"}}, f"{k}.5"
        )
        monkeypatch.syspath_prepend(tmp_path / name)
    with pytest.raises(PluginError, match=r"'leaky' is offered by two distributions") as caught:
        load_cell("leaky")
    assert "acme-one 0.5" in str(caught.value)
    assert "acme-two 1.5" in str(caught.value)
    rows = [row for row in available_cells() if row.name == "leaky"]
    assert sorted(row.distribution for row in rows) == ["acme-one", "acme-two"]
    assert all("acme-one 0.5" in (row.error or "") and "acme-two 1.5" in (row.error or "") for row in rows)
    assert [row.error for row in available_cells(check=True) if row.name in BUILT_IN] == [None] * len(BUILT_IN)


def test_a_stranger_cannot_take_a_built_in_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: Any
) -> None:
    distribution(tmp_path, "acme-lstm", {"acme_lstm": undecorated("lstm")}, {"cells": {"lstm": "acme_lstm:Leaky"}})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"tinygrad-rnn .*and acme-lstm|acme-lstm .*and tinygrad-rnn"):
        load_cell("lstm")
    assert load_cell("lstm", third_party=False).identity.distribution == "tinygrad-rnn"


def test_a_half_removed_distribution_does_not_stop_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: Any
) -> None:
    distribution(tmp_path, "acme-gone", {"acme_gone": undecorated("leaky")}, {"cells": {"leaky": "acme_gone:Leaky"}})
    (tmp_path / "acme_gone-1.2.dist-info" / "METADATA").unlink()
    (tmp_path / "acme_gone.py").unlink()
    monkeypatch.syspath_prepend(tmp_path)
    rows = {row.name: row for row in available_cells(check=True)}
    assert set(BUILT_IN) < set(rows)
    assert "ModuleNotFoundError" in (rows["leaky"].error or "")


def test_the_same_distribution_seen_twice_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: Any
) -> None:
    for folder in ("a", "b"):  # as an editable install beside its metadata in the checkout
        distribution(
            tmp_path / folder, "acme_same", {"acme_same": undecorated("leaky")}, {"cells": {"leaky": "acme_same:Leaky"}}
        )
        monkeypatch.syspath_prepend(tmp_path / folder)
    assert load_cell("leaky").identity.distribution == "acme-same"


def test_without_third_party_only_the_built_in_cells_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: Any
) -> None:
    distribution(tmp_path, "acme-cells", {"acme_third": undecorated("leaky")}, {"cells": {"leaky": "acme_third:Leaky"}})
    monkeypatch.syspath_prepend(tmp_path)
    register_cell(complete("second"))
    assert [row.name for row in available_cells(third_party=False)] == BUILT_IN
    for name in ("leaky", "second"):
        with pytest.raises(InputError, match=f"no cell '{name}'"):
            load_cell(name, third_party=False)


def test_the_environment_restricts_the_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: Any
) -> None:
    distribution(tmp_path, "acme-cells", {"acme_left": undecorated("leaky")}, {"cells": {"leaky": "acme_left:Leaky"}})
    monkeypatch.syspath_prepend(tmp_path)
    register_cell(complete("mine"))
    monkeypatch.setenv("TINYGRAD_RNN_CELLS", "rnn, mine")
    assert [row.name for row in available_cells(check=True)] == ["rnn", "mine"]
    assert load_cell("mine").cls.name == "mine"
    for name in ("lstm", "leaky"):
        with pytest.raises(
            InputError, match=f"^cell '{name}' is left out by TINYGRAD_RNN_CELLS=rnn,mine; add it there$"
        ):
            load_cell(name)
    assert "acme_left" not in sys.modules
    assert [row.name for row in available_cells(third_party=False)] == ["rnn"]
    monkeypatch.setenv("TINYGRAD_RNN_CELLS", "rnn,leeky")
    for ask in (available_cells, lambda: load_cell("rnn")):
        with pytest.raises(InputError, match=r"^TINYGRAD_RNN_CELLS=rnn,leeky: no cell 'leeky'; did you mean leaky\?$"):
            ask()
    monkeypatch.setenv("TINYGRAD_RNN_CELLS", " , ")
    assert {"lstm", "leaky", "mine"} < {row.name for row in available_cells()}


def test_every_group_follows_the_same_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: Any) -> None:
    """A second group by the same code: entry point, duplicate, registration, restriction."""
    entries = {"optimizers": {"adam": "acme_opt:Adam", "lion": "acme_opt:Adam"}}
    distribution(tmp_path, "acme-opt", {}, entries, "2")
    monkeypatch.syspath_prepend(tmp_path)
    errors = {(row.name, row.distribution): row.error for row in available(OPTIMIZERS, check=True)}
    both = "two distributions offer it: tinygrad-rnn .* and acme-opt 2; uninstall one"
    for owner in ("tinygrad-rnn", "acme-opt"):
        assert re.fullmatch(both, errors["adam", owner] or "")
    assert "No module named 'acme_opt'" in (errors["lion", "acme-opt"] or "")
    with pytest.raises(PluginError, match="optimiser 'adam' is offered by two distributions"):
        load(OPTIMIZERS, "adam")
    assert load(OPTIMIZERS, "adam", third_party=False).identity.distribution == "tinygrad-rnn"
    monkeypatch.setenv("TINYGRAD_RNN_OPTIMIZERS", "sgd")
    assert [row.name for row in available(OPTIMIZERS)] == ["sgd"]


def test_the_identity_of_a_built_in_optimiser_is_its_file() -> None:
    """Not that of all modules it reaches: a change anywhere in the library would else make every run unresumable."""
    module = sys.modules["tinygrad_rnn.optim"]
    expected = hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()
    assert load(OPTIMIZERS, "adam").identity.source_sha256 == expected


def plain_function(one: int, two: int) -> None:
    """Has a text."""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"^callback: expected a function, got 3$"),
        (
            lambda argument: None,
            r"^callback '<lambda>': expected a docstring, whose first line says what it is, got none",
        ),
        (plain_function, r"^callback 'plain-function': expected a function of \(argument\), got plain_function\(one"),
    ],
)
def test_a_function_that_breaks_its_contract(value: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        register(CALLBACKS, value)
    with pytest.raises(PluginError, match=r"command: expected a command made by @click\.command, got <function plain"):
        register_command(plain_function)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("lsmt", "did you mean lstm"), ("mutt3", "did you mean mut3"), ("transformer", "known: clockwork, esn, .*gru, ")],
)
def test_an_unknown_name_suggests_the_nearest(name: str, suggestion: str) -> None:
    with pytest.raises(InputError, match=f"no cell '{name}'.*{suggestion}"):
        load_cell(name)


# -------------------------------------------------------------------------------------- decorator


def complete(cell_name: str, **changes: Any) -> Any:
    """A complete cell class, with some of its attributes replaced."""
    parts: dict[str, Any] = {
        "__module__": __name__,
        "name": cell_name,
        "summary": "a cell made by a test",
        "citation": "nobody",
        "equation": "h' = tanh(x W)",
        "state": lambda self: {"h": State((self.H,))},
        "params": lambda self: {"W": input_matrix(self.I, self.H)},
        "step": lambda self, p, x, s: {"h": ops.tanh(x @ p.W)},
        **changes,
    }
    return type(cell_name.title(), (Cell,), {key: value for key, value in parts.items() if value is not None})


def test_register_use_and_forget() -> None:
    cls = register_cell(complete("mine"))
    assert load_cell("mine").cls is cls
    assert [row.version for row in available_cells() if row.name == "mine"] == ["unversioned"]
    assert register_cell(cls) is cls  # a cell of a notebook, run again
    forget(CELLS, "mine")
    with pytest.raises(InputError, match="no cell 'mine'"):
        load_cell("mine")


def test_a_registered_name_cannot_be_taken_again(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"'gru' is registered twice: by tinygrad-rnn .* rename one"):
        register_cell(complete("gru"))
    register_cell(complete("mine"))
    (tmp_path / "other.py").write_text(plugin("mine"))
    with pytest.raises(PluginError, match=r"'mine' is .* twice: by .*test_registry\.py and by .*other\.py; rename"):
        load_plugin_file(tmp_path / "other.py")
    assert load_cell("mine").cls.summary == "a cell made by a test"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"summary": None}, r"cell 'mine': expected a text in the class attribute 'summary', got none"),
        ({"citation": "  "}, r"expected a text in the class attribute 'citation'"),
        ({"equation": 3}, r"expected a text in the class attribute 'equation'"),
        ({"step": None}, r"expected the method step to be written"),
        ({"step": None, "state": None, "params": None}, r"the methods params, state, step to be written"),
        ({"Options": type("Options", (), {})}, r"expected Options to be under @dataclass"),
        ({"Options": type("Options", (Cell.Options,), {"gain": 1.0})}, r"expected Options to be under @dataclass"),
    ],
)
def test_an_incomplete_declaration_says_what_is_missing(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        register_cell(complete("mine", **changes))


def test_a_class_that_is_no_cell() -> None:
    with pytest.raises(PluginError, match=r"expected a subclass of tinygrad_rnn\.Cell, got <class 'pathlib"):
        register_cell(Path)  # type: ignore[type-var]


def test_a_cell_without_a_file_has_an_identity(tmp_path: Path) -> None:
    """Typed into an interpreter, there is no source to hash."""
    program = plugin("typed") + "\nfrom tinygrad_rnn import load_cell\nprint(load_cell('typed').identity.source_sha256)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == hashlib.sha256(b"__main__.Leaky").hexdigest()


def test_a_cell_of_a_module_that_is_gone_has_an_identity() -> None:
    cls = complete("mine", __module__="module_that_is_nowhere")
    register_cell(cls)
    assert load_cell("mine").identity.source_sha256 == hashlib.sha256(b"module_that_is_nowhere.Mine").hexdigest()


# ------------------------------------------------------------------------------------- plugin files


def test_a_plugin_file(tmp_path: Path) -> None:
    path = tmp_path / "leaky.py"
    path.write_text(plugin())
    (entry,) = load_plugin_file(path)
    assert (entry.cls.name, entry.identity.distribution) == ("leaky", "file leaky.py")
    assert entry.identity.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_cell("leaky") == entry
    (again,) = load_plugin_file(str(path))
    assert again.cls is entry.cls  # unchanged: not run again
    assert list(tmp_path.iterdir()) == [path]  # and nothing written beside it
    forget(CELLS, "leaky")
    assert [entry.cls.name for entry in load_plugin_file(path)] == ["leaky"]


def test_a_changed_plugin_file_is_run_again(tmp_path: Path) -> None:
    """Same name, same size, same second: bytecode caches would take it for the old one."""
    path = tmp_path / "leaky.py"
    for value in ("0.5", "0.9"):
        path.write_text(plugin(value=value))
        (entry,) = load_plugin_file(path)
        assert entry.cls.equation == f"h' = {value} h + x W"
        out = unroll(entry.cls(1, 1), {"W": np.zeros((1, 1))}, np.ones((1, 1, 1)), {"h": np.ones((1, 1))}).outputs.data
        assert out.item() == float(value)
    assert load_cell("leaky") == entry
    path.write_text(plugin("renamed"))
    load_plugin_file(path)
    with pytest.raises(InputError, match="no cell 'leaky'"):
        load_cell("leaky")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, r"expected a Python file, got none there"),
        ("x = (", r"plugin bad\.py cannot be run: SyntaxError"),
        ("1 / 0", r"plugin bad\.py cannot be run: ZeroDivisionError: division by zero"),
        ("raise SystemExit", r"plugin bad\.py cannot be run: SystemExit"),
        (
            "x = 1",
            r"plugin bad\.py: expected at least one class under @register_cell \(or another .*\), got none",
        ),
        (plugin("good") + plugin("worse").replace("summary", "brief"), r"cell 'worse': .* 'summary'"),
        (plugin("good") + "1 / 0", r"ZeroDivisionError"),
    ],
)
def test_a_bad_plugin_file_is_one_line_and_leaves_nothing(source: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    if source is not None:
        path.write_text(source)
    before = set(sys.modules)
    with pytest.raises(PluginError, match=message) as caught:
        load_plugin_file(path)
    assert "\n" not in str(caught.value)
    assert [row.name for row in available_cells() if row.name in ("good", "worse")] == []
    assert not {name for name in set(sys.modules) - before if "plugin_bad" in name and source != "x = 1"}


# ---------------------------------------------------------------------------------------- identity


def test_identity_is_checked_by_source(tmp_path: Path) -> None:
    path = tmp_path / "leaky.py"
    path.write_text(plugin())
    (entry,) = load_plugin_file(path)
    stored = json.loads(json.dumps(entry.identity.to_json()))
    assert stored.keys() == {"name", "distribution", "version", "source_sha256"}
    assert check_identity(stored, entry.identity, "cell") is None
    assert (
        check_identity({**stored, "version": "0.1"}, entry.identity, "cell") is None
    )  # another version, the same code
    path.write_text(plugin(value="0.9"))
    (changed,) = load_plugin_file(path)
    told = check_identity(stored, changed.identity, "cell")
    assert told is not None
    assert "\n" not in told
    for part in ("leaky", "file leaky.py", stored["source_sha256"][:12], changed.identity.source_sha256[:12]):
        assert part in told


def test_a_changed_module_beside_the_cell_changes_its_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: Any
) -> None:
    """mut1's equation lies partly in input_map.py: a hash of mut1.py alone would not see a change there."""
    package = tmp_path / "acme_pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "share.py").write_text("def half(h):\n    return 0.5 * h\n")
    source = undecorated("leaky").replace("0.5 * s.h", "half(s.h)")
    (package / "leaky.py").write_text("from acme_pkg.share import half\n" + source)
    distribution(tmp_path, "acme-pkg", {}, {"cells": {"leaky": "acme_pkg.leaky:Leaky"}})
    monkeypatch.syspath_prepend(tmp_path)
    before = load_cell("leaky")
    assert check_identity(before.identity.to_json(), load_cell("leaky").identity, "cell") is None
    (package / "share.py").write_text("def half(h):\n    return 0.6 * h\n")
    assert check_identity(before.identity.to_json(), load_cell("leaky").identity, "cell") is not None
    assert len({load_cell(name).identity.source_sha256 for name in BUILT_IN}) == len(BUILT_IN)


# -------------------------------------------------------------------------- the contract, at run time


def entry_of(**changes: Any) -> CellEntry:
    return CellEntry(complete("mine", **changes), load_cell("rnn").identity)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": lambda self: {}}, r"cell mine: expected at least one state, got none"),
        ({"state": lambda self: {"h": (self.H,)}}, r"expected state\(\) to return a dict of tinygrad_rnn\.State"),
        ({"params": lambda self: [1]}, r"expected params\(\) to return a dict of tinygrad_rnn\.Param"),
        ({"params": lambda self: {"W-x": bias(self.H)}}, r"names that are Python names in params\(\), got 'W-x'"),
        ({"params": lambda self: {"h": bias(self.H)}}, r"different names for states and parameters, got \['h'\]"),
        ({"params": lambda self: {"W": Param((0, 2), "zeros", "bias")}}, r"cell mine, W: expected a shape .* \(0, 2\)"),
        ({"state": lambda self: {"h": State((2.5,))}}, r"cell mine, h: expected a shape"),
        ({"state": lambda self: {"h": State((self.H,), "zero")}}, r"state h: expected a number as start, got 'zero'"),
        (
            {"params": lambda self: {"W": Param((2,), None, "bias")}},
            r"W: expected the name of an initialiser or a function of .*, got None",
        ),
        ({"params": lambda self: {"W": Param((2,), "zeros", "biass")}}, r"W: no role 'biass'; did you mean bias"),
        ({"output": "H"}, r"cell mine, attribute output: no state 'H'; did you mean h\?$"),
        ({"output": 3}, r"cell mine, attribute output: no state 3; known: h$"),
        ({"state": lambda self: {"h": State}}, r"got the class State as 'h'; make one, State\(\(self\.H,\), \.\.\.\)$"),
        (
            {"noise": lambda self: {"k": 0.5}},
            r"expected noise\(\) to return a dict of tinygrad_rnn\.Noise by name, got 0\.5 as",
        ),
    ],
)
def test_a_declaration_that_makes_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        noise_of(entry_of(**changes).cls(2, 3))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda self, p, x, s: x @ p.W, r"expected step to return a dict with the states \['h'\], got Tensor"),
        (lambda self, p, x, s: {}, r"the states \['h'\], got \[\]"),
        (lambda self, p, x, s: {"h": x @ p.W, "c": x}, r"the states \['h'\], got \['h', 'c'\]"),
        (lambda self, p, x, s: {"h": 1.0}, r"cell mine, state h: expected \(4, 3\) float64 from step, got 1\.0"),
        (lambda self, p, x, s: {"h": x}, r"cell mine, state h: expected \(4, 3\) float64 .* got \(4, 2\) float64"),
        (lambda self, p, x, s: {"h": ops.sum(x @ p.W)}, r"state h: expected \(4, 3\) float64 .* got \(\)"),
        (lambda self, p, x, s: {"h": ops.astype(s.h, "float32")}, r"state h: expected .* got \(4, 3\) float32"),
    ],
)
def test_a_step_that_breaks_its_declaration(step: Any, message: str) -> None:
    cell = entry_of(step=step).cls(2, 3)
    with pytest.raises(PluginError, match=message) as caught:
        unroll(cell, {"W": Tensor(np.ones((2, 3)))}, np.ones((2, 4, 2)))
    assert "\n" not in str(caught.value)


def test_what_a_stranger_declares_with() -> None:
    assert recurrent_matrix(3) == Param((3, 3), "uniform", "recurrent")
    assert input_matrix(2, 3, "glorot") == Param((2, 3), "glorot", "input")
    assert (bias(3), bias(3, 0.1)) == (Param((3,), "zeros", "bias"), Param((3,), "constant:0.1", "bias"))
    assert bias(3, np.float64(0.1)) == bias(3, 0.1)
    assert buffer((2, 2), "signs") == Param((2, 2), "signs", "buffer")


def test_an_initialiser_that_cannot_fill_a_shape_names_the_parameter() -> None:
    cell = entry_of(params=lambda self: {"v": Param((3,), "orthogonal", "input")}).cls(2, 3)
    with pytest.raises(InputError, match=r"^parameter v: initialiser orthogonal: expected a matrix, got shape \(3,\)"):
        init_cell(cell, np.random.default_rng(0))


def test_sizes_may_be_numpys() -> None:
    cell = entry_of().cls(np.int64(2), np.int32(3))
    assert (cell.I, cell.H) == (2, 3) and type(cell.I) is type(cell.H) is int


def test_a_plugin_of_two_states_and_a_start_value() -> None:
    """A state need not be as wide as H, nor start at zero."""
    cell = entry_of(
        state=lambda self: {"h": State((self.H,)), "n": State((1,), start=2.0)},
        step=lambda self, p, x, s: {"h": x @ p.W, "n": s.n + 1.0},
    ).cls(2, 3)
    done = unroll(cell, {"W": np.ones((2, 3))}, np.ones((4, 5, 2)))
    np.testing.assert_array_equal(done.state["n"].data, np.full((5, 1), 6.0))
    assert done.outputs.shape == (4, 5, 3)
