"""`cells bench`: its rows, its messages, and that the peers compute the same model as we do."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygrad_rnn as tr
from tinygrad_rnn_cli import peers

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "tests" / "benchmarks"
TINY = (5, 4, 2, 3, 6)  # V, H, L, B, T
KEYS = ["cell", "shape", "executor", "ms", "min_ms", "first_s"]
PRINTED = ["cell", "shape", "executor", "ms", "spread", "min_ms", "first_s"]


# ---------------------------------------------------------------------------------------------- the library


def test_a_row_says_what_was_timed() -> None:
    row = tr.bench_cell(tr.load_cell("gru"), TINY, runs=3)
    assert list(row) == KEYS
    assert (row["cell"], row["shape"]) == ("gru", list(TINY))
    assert 0 < row["min_ms"] <= row["ms"] and row["first_s"] > 0
    assert json.loads(json.dumps(row)) == row
    forward = tr.training_step(tr.load_cell("gru"), TINY)().forward
    assert row["executor"] == forward.layers[0].executor


def test_a_step_is_the_gradient_of_the_mean_cross_entropy() -> None:
    step = tr.training_step(tr.load_cell("rnn"), TINY, executor="unroll", seed=4)
    done, again = step(), step()
    assert done.forward.logits.shape == (6, 3, 5) and done.loss.data.dtype == np.float32
    assert float(done.loss.data) == float(again.loss.data)
    model = tr.build_model(tr.ModelConfig(cell="rnn", hidden=4, layers=2), 5, tr.load_cell("rnn"))
    rng = np.random.default_rng(4)
    params = model.init(rng, np.float32)
    x, y = rng.integers(0, 5, (2, 6, 3))
    loss = tr.ops.cross_entropy(model.forward(params, x).logits, y)
    assert float(loss.data) == pytest.approx(float(done.loss.data), rel=1e-6)
    assert done.grads.keys() == params.keys()
    for (name, got), known in zip(done.grads.items(), tr.grad(loss, list(params.values())), strict=True):
        np.testing.assert_allclose(got.data, known.data, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("shape", [(5, 4, 1, 2), (1, 4, 1, 2, 3), (5, 0, 1, 2, 3), (5, 4, 1, 2, 2.5)])
def test_a_shape_that_cannot_be(shape: Any) -> None:
    with pytest.raises(tr.InputError, match="V,H,L,B,T"):
        tr.training_step(tr.load_cell("rnn"), shape)


def test_runs_and_executor_that_cannot_be() -> None:
    with pytest.raises(tr.InputError, match="at least 1 run, got 0"):
        tr.bench_cell(tr.load_cell("rnn"), TINY, runs=0)
    with pytest.raises(tr.InputError, match="nonsense"):
        tr.training_step(tr.load_cell("rnn"), TINY, executor="nonsense")()


# ----------------------------------------------------------------------------------------------- the command


def rows_of(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(text)["rows"]
    return found


def test_json_has_a_row_for_every_cell_and_shape(invoke: Any) -> None:
    done = invoke("cells bench rnn mut1 --shape 5,4,1,2,3 --shape 6,3,2,1,2 --runs 1 --rounds 2 --json")
    assert done.exit_code == 0, done.output
    rows = rows_of(done.stdout)
    assert [(row["cell"], row["shape"]) for row in rows] == [
        (cell, shape) for cell in ("rnn", "mut1") for shape in ([5, 4, 1, 2, 3], [6, 3, 2, 1, 2])
    ]
    assert all(list(row) == PRINTED and row["ms"] > 0 and row["spread"] >= 0 for row in rows)


def test_the_table(invoke: Any) -> None:
    done = invoke("cells bench rnn --shape 5,4,1,2,3 --runs 1 --rounds 1 --executor unroll --threads 1")
    header, line = done.stdout.splitlines()
    assert header.split() == ["cell", "V,H,L,B,T", "executor", "ms", "spread", "first,", "s"]
    assert line.split()[:3] == ["rnn", "5,4,1,2,3", "unroll"] and line.split()[4] == "-"
    assert "rnn 5,4,1,2,3" in done.stderr
    assert invoke("cells bench rnn --shape 5,4,1,2,3 --runs 1 --rounds 1 -q").stderr == ""


def test_a_plugin_is_timed_like_a_built_in_cell(invoke: Any, minimal: Any) -> None:
    plugin = BENCHMARKS / "minimal_rnn.py"
    done = invoke(
        ["cells", "bench", "minimalrnn_file", "--plugin", plugin, "--shape", "5,4,1,2,3", "--runs", 1, "--json"]
    )
    assert done.exit_code == 0, done.output
    assert rows_of(done.stdout)[0]["cell"] == "minimalrnn_file"


def test_an_absent_peer_is_a_row_that_says_so(invoke: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package in ("torch", "jax"):  # shadows the real one, where there is one
        (tmp_path / f"{package}.py").write_text("raise ModuleNotFoundError\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = "cells bench rnn --shape 5,4,1,2,3 --runs 1 --rounds 2 --peers"
    ours, *theirs = rows_of(invoke(f"{words} --json").stdout)
    assert ours["ms"] > 0 and [row["executor"] for row in theirs] == ["torch", "jax"]
    assert all(row["ms"] is None and "is not installed" in row["error"] for row in theirs)
    done = invoke(words)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].split()[-3:] == ["PyTorch", "JAX", "ratio"]
    assert done.stdout.splitlines()[1].split()[-3:] == ["-", "-", "-"]
    assert "PyTorch is not installed" in done.stderr and "JAX is not installed" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("rnnn", "no cell 'rnnn'; did you mean rnn"),
        ("rnn --shape 5,4,1,2", "--shape: expected V,H,L,B,T, five whole numbers, got '5,4,1,2'"),
        ("rnn --shape 1,4,1,2,3", "V of at least 2, got '1,4,1,2,3'"),
        ("rnn --shape 5,-4,1,2,3", "--shape: expected V,H,L,B,T"),
        ("rnn --compile", "--compile: torch.compile is a peer; expected --peers"),
        ("rnn --runs 0", "--runs"),
        ("rnn --executor fast", "--executor"),
        ("", "missing NAME"),
    ],
)
def test_bad_input_is_one_line(invoke: Any, words: str, told: str) -> None:
    done = invoke(f"cells bench {words}")
    assert done.exit_code == 2
    assert told in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""


def test_an_error_of_the_process_that_measures_is_one_line(invoke: Any, tmp_path: Path, own_registry: None) -> None:
    """A cell whose step breaks its contract fails when it runs, which is in the other process."""
    (tmp_path / "broken.py").write_text(
        "from tinygrad_rnn import Cell, State, register_cell\n"
        "@register_cell\n"
        "class Broken(Cell):\n"
        "    name = 'broken_of_bench'\n    summary = citation = equation = 'none'\n"
        "    def state(self):\n        return {'h': State((self.H,))}\n"
        "    def params(self):\n        return {}\n"
        "    def step(self, p, x, s):\n        return {'c': s.h}\n"
    )
    done = invoke("cells bench broken_of_bench --plugin broken.py --shape 5,4,1,2,3 --runs 1")
    assert done.exit_code == 1
    assert "error: broken_of_bench 5,4,1,2,3: " in done.stderr and "Traceback" not in done.stderr


def test_a_model_that_does_not_fit_is_one_line(invoke: Any) -> None:
    done = invoke("cells bench rnn --shape 5,4,1,99999,999999999 --runs 1 -q")
    assert done.exit_code == 1 and done.stderr.count("\n") == 1
    assert "error: rnn 5,4,1,99999,999999999: not enough memory" in done.stderr and "a smaller --shape" in done.stderr


def test_the_ratio_is_that_of_the_best_peer(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With known times on every side."""
    times = {"torch": 8.0, "torch-compile": None, "jax": 4.0}

    def measured(command: Any, environment: Any = None) -> dict[str, Any]:
        if "--peer" not in command:
            row = {"cell": "rnn", "shape": [5, 4, 1, 2, 3], "executor": "x", "ms": 2.0, "min_ms": 1.0, "first_s": 0.5}
            return {"rows": [row]}
        time = times[command[command.index("--peer") + 1]]
        return {"error": "no compiler"} if time is None else {"ms": time, "min_ms": time, "first_s": 1.0}

    monkeypatch.setattr(peers, "measure", measured)
    done = invoke("cells bench rnn --shape 5,4,1,2,3 --peers --compile")
    header, line = done.stdout.splitlines()
    assert header.split()[-4:] == ["PyTorch", "torch.compile", "JAX", "ratio"]
    assert line.split() == ["rnn", "5,4,1,2,3", "x", "2.00", "0", "%", "0.50", "8.00", "-", "4.00", "2.00"]
    assert done.stderr.splitlines()[-1] == "no compiler"
    rows = rows_of(invoke("cells bench rnn --shape 5,4,1,2,3 --peers --compile --json").stdout)
    assert [(row["executor"], row["ms"]) for row in rows] == [
        ("x", 2.0), ("torch", 8.0), ("torch-compile", None), ("jax", 4.0)
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------- the alternation


def test_sides_take_turns_and_rounds_are_put_together() -> None:
    order: list[str] = []

    def side(name: str, times: list[float]) -> Any:
        def measure() -> dict[str, Any]:
            order.append(name)
            now = times.pop(0)
            return {"executor": name, "ms": now, "min_ms": now - 1, "first_s": now / 10}

        return measure

    failing = {"executor": "none", "ms": None, "error": "is not there"}
    found = peers.alternate(
        {"a": side("a", [5.0, 9.0, 7.0]), "none": lambda: failing, "b": side("b", [2.0, 1.0, 3.0])}, 3
    )
    assert order == ["a", "b"] * 3
    spread = pytest.approx(4 / 7)
    assert found["a"] == {"executor": "a", "ms": 7.0, "spread": spread, "min_ms": 4.0, "first_s": pytest.approx(0.7)}
    assert found["b"]["ms"] == 2.0 and found["none"] == failing


def test_a_process_that_fails_gives_its_last_line() -> None:
    python = [sys.executable, "-c"]
    assert peers.measure([*python, "print('{}')"]) == {}
    failed = peers.measure([*python, "import sys; sys.exit('one\\nerror: two')"])
    assert (failed["error"], failed["code"]) == ("two", 1)
    killed = peers.measure([*python, "import os; os.kill(os.getpid(), 9)"])
    assert killed["error"] == "the process that measures was ended by signal 9"
    assert "No such file" in peers.measure(["/nowhere/python"])["error"]


# ---------------------------------------------------------------------------------- the peers' models are ours


def their_cells() -> None:
    """Make minimalRNN known to `peers`, as its script does."""
    spec = importlib.util.spec_from_file_location("minimal_rnn_peers", BENCHMARKS / "minimal_rnn_peers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.add_to(peers)


@pytest.fixture
def minimal(own_registry: None) -> Any:
    (entry,) = tr.load_plugin_file(BENCHMARKS / "minimal_rnn.py")
    return entry


CELLS = ["rnn", "lstm", "gru", "mut1", "mut2", "mut3", "minimalrnn_file"]

# a peer's array of one layer -> our arrays, side by side
PACKED = {
    "rnn": {"w": "W_xh", "b": "b_h", "u": "W_hh"},
    "lstm": {"w": "W_xi W_xf W_xo W_xg", "b": "b_i b_f b_o b_g", "u": "W_hi W_hf W_ho W_hg"},
    "gru": {"w": "W_xz W_xr W_xn", "b": "b_z b_r b_n", "u_zr": "W_hz W_hr", "u_h": "W_hn"},
    "mut1": {"w": "W_xz W_xr", "b": "b_z b_r b_h", "u_r": "W_hr", "u_h": "W_hh"},
    "mut2": {"w": "W_xz W_xh", "b": "b_z b_r b_h", "u_z": "W_hz", "u_r": "W_hr", "u_h": "W_hh"},
    "mut3": {"w": "W_xz W_xr W_xh", "b": "b_z b_r b_h", "u_z": "W_hz", "u_r": "W_hr", "u_h": "W_hh"},
    "minimalrnn_file": {"w": "W_xz", "b_z": "b_z", "u_h": "W_hh", "u_z": "W_zh", "b_h": "b_h"},
}


def our_side(cell: str, entry: Any) -> tuple[Any, dict[str, Any], Any, Any, float, dict[str, Any]]:
    """Model, random parameters, symbols, targets, loss and gradients, in float32."""
    V, H, L, B, T = TINY
    options = {"form": "reset_after"} if entry == "torch gru" else {}
    loaded = tr.load_cell(cell)
    model = tr.build_model(tr.ModelConfig(cell=cell, hidden=H, layers=L, cell_options=options), V, loaded)
    rng = np.random.default_rng(3)
    params = {
        name: tr.Tensor(rng.normal(size=spec.shape).astype("float32") * 0.5, requires_grad=True)
        for name, spec in model.params().items()
    }
    x, y = rng.integers(0, V, (2, T, B))
    loss = tr.ops.cross_entropy(model.forward(params, x).logits, y)
    grads = dict(zip(params, (g.data for g in tr.grad(loss, list(params.values()))), strict=True))
    arrays = {name: value.data for name, value in params.items()}
    return model, arrays, x, y, float(loss.data), grads


def packed(cell: str, arrays: dict[str, Any], layer: int) -> dict[str, Any]:
    return {
        theirs: np.concatenate([arrays[f"layers.{layer}.{name}"] for name in ours.split()], axis=-1)
        for theirs, ours in PACKED[cell].items()
    }


@pytest.mark.torch
@pytest.mark.parametrize("cell", CELLS)
def test_torch_computes_our_loss_and_gradients(cell: str, minimal: Any) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    their_cells()
    V, H, L, _, _ = TINY
    model, arrays, x, y, loss, grads = our_side(cell, f"torch {cell}")
    params, their_loss = peers.torch_model(cell, V, H, L)

    def named(values: dict[str, Any]) -> dict[str, Any]:
        if cell in peers.NATIVE:
            return tr.to_torch(model, values)
        return {
            "embed.weight": values["embed.W"],
            **{f"layers.{i}.{name}": value for i in range(L) for name, value in packed(cell, values, i).items()},
            "readout.weight": values["readout.W"].T,
            "readout.bias": values["readout.b"],
        }

    assert named(arrays).keys() == params.keys()
    with torch.no_grad():
        for name, value in named(arrays).items():
            params[name].copy_(torch.from_numpy(np.ascontiguousarray(value)))
    total = their_loss(torch.from_numpy(x), torch.from_numpy(y))
    total.backward()
    assert float(total.detach()) == pytest.approx(loss, rel=1e-5)
    for name, known in named(grads).items():
        if "bias_hh" not in name:  # PyTorch's second bias, which adds up with the first
            np.testing.assert_allclose(params[name].grad.numpy(), known, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("cell", CELLS)
def test_jax_computes_our_loss_and_gradients(cell: str, minimal: Any) -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    their_cells()
    V, H, L, _, _ = TINY
    _, arrays, x, y, loss, grads = our_side(cell, f"jax {cell}")
    params, their_loss = peers.jax_model(cell, V, H, L)

    def tree(values: dict[str, Any]) -> dict[str, Any]:
        return {
            "embed": values["embed.W"],
            "out": values["readout.W"],
            "bias": values["readout.b"],
            "layers": [packed(cell, values, i) for i in range(L)],
        }

    ours = tree(arrays)
    shapes = jax.tree_util.tree_map(np.shape, params)
    assert jax.tree_util.tree_map(np.shape, ours) == shapes
    total, found = jax.value_and_grad(their_loss)(jax.tree_util.tree_map(jax.numpy.asarray, ours), x, y)
    assert float(total) == pytest.approx(loss, rel=1e-5)
    jax.tree_util.tree_map(
        lambda got, known: np.testing.assert_allclose(got, known, rtol=1e-3, atol=1e-5), found, tree(grads)
    )


@pytest.mark.torch
def test_a_row_of_torch(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    row = peers.measure(peers.peer_command("torch", "mut2", TINY, runs=2, threads=1))
    assert row["executor"] == "torch" and 0 < row["min_ms"] <= row["ms"]
    unknown = peers.measure(peers.peer_command("torch", "sru", TINY, runs=2, threads=1))
    assert unknown["ms"] is None and "no sru for PyTorch; there are rnn, lstm" in unknown["error"]


# -------------------------------------------------------------------------------------------------- the script


def training_step_script(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "training_step.py"), *words],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="needs the source tree")
def test_the_script_writes_between_its_markers(tmp_path: Path) -> None:
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text("before\n<!-- training_step: begin -->\nfrom yesterday\n<!-- training_step: end -->\nbehind\n")
    tiny = "--tiny --only step first --cell rnn minimalrnn_file --rounds 1 --runs 1".split()
    done = training_step_script(*tiny, "--write", "--page", str(page), "--results", str(results))
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.startswith("before\n<!-- training_step: begin -->\n") and text.endswith("end -->\nbehind\n")
    assert "from yesterday" not in text and "| rnn | 5,8,2,3,6 |" in text and "| minimalrnn_file |" in text
    assert " ".join(done.stdout.split()) in " ".join(text.split())  # lines of prose are wrapped
    assert set(json.loads(results.read_text())["sections"]) == {"step", "first"}


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="needs the source tree")
def test_the_page_has_the_markers_of_the_script() -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    script = (BENCHMARKS / "training_step.py").read_text(encoding="utf-8")
    for marker in ("<!-- training_step: begin -->", "<!-- training_step: end -->"):
        assert text.count(marker) == 1 and marker in script


def test_rounds_go_through_all_rows_and_what_lies_apart_is_told(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """lstm took 374, 796 and 377 ms: the median is told, how far it is from sure, and that the machine was busy."""
    times = {"lstm": [374.0, 796.0, 377.0], "rnn": [10.0, 10.1, 10.2]}
    order: list[str] = []

    def measured(command: Any, environment: Any = None) -> dict[str, Any]:
        cell = command[command.index("bench") + 1]
        order.append(cell)
        ms = times[cell].pop(0)
        return {
            "rows": [{"cell": cell, "shape": [5, 4, 1, 2, 3], "executor": "x", "ms": ms, "min_ms": ms, "first_s": 1}]
        }

    monkeypatch.setattr(peers, "measure", measured)
    monkeypatch.setattr(peers, "busy_cores", lambda: 1.5)
    monkeypatch.setattr(peers, "cores", lambda: 2)
    done = invoke("cells bench lstm rnn --shape 5,4,1,2,3")
    assert order == ["lstm", "rnn"] * 3
    _, lstm, rnn = done.stdout.splitlines()
    assert lstm.split()[3:6] == ["377", "112", "%"] and rnn.split()[3:6] == ["10.10", "2", "%"]
    assert "warning: others keep 1.5 of 2 processors busy" in done.stderr
    assert "warning: rounds of one row differ by up to 112 %" in done.stderr and "more --rounds than 3" in done.stderr


def test_a_quiet_machine_is_not_warned_of(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"cell": "rnn", "shape": [5, 4, 1, 2, 3], "executor": "x", "ms": 2.0, "min_ms": 1.0, "first_s": 0.5}
    monkeypatch.setattr(peers, "measure", lambda command, environment=None: {"rows": [row]})
    monkeypatch.setattr(peers, "busy_cores", lambda: 0.1)
    assert "warning" not in invoke("cells bench rnn --shape 5,4,1,2,3").stderr


def test_busy_processors_are_counted() -> None:
    busy = peers.busy_cores(0.05)
    assert busy is None or -0.1 <= busy <= max(peers.cores(), 1000)
