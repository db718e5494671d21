"""``diagnose gradnorm``: the analytic slope through the shell, plots, tables, verdicts as exit codes."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

LINEAR = (
    "diagnose gradnorm --cell rnn --layers 1 --hidden 12 --batch 3 --steps 20 --dtype float64 "
    "--cell-opt activation=identity"
)
TINY = "--hidden 8 --layers 1 --batch 4 --seq-len 10 --corpus hello"


@pytest.mark.parametrize(
    ("g", "verdict"), [(0.5, "vanishing"), (0.8, "weak"), (0.9, "healthy"), (1.0, "healthy"), (1.2, "exploding")]
)
def test_a_linear_network_has_slope_ln_g(invoke: Any, g: float, verdict: str) -> None:
    done = invoke(f"{LINEAR} --cell-opt recurrent_init=orthogonal:{g} --json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert {key: report[key] for key in ("cell", "layers", "hidden", "steps")} == {
        "cell": "rnn", "layers": 1, "hidden": 12, "steps": 20}  # fmt: skip
    last = next(series for series in report["series"] if series["loss"] == "last")
    assert len(last["norm"]) == 20
    assert last["slope"] == pytest.approx(math.log(g), abs=1e-9)
    assert last["verdict"] == verdict
    assert (last["lag"], last["share"]) == (19, pytest.approx(g**19))
    assert 0 < last["rnn_share"] < 1e-3  # of a plain one
    assert last["numbers"]["share_low"] <= last["share"] * (1 + 1e-9)
    failing = invoke(f"{LINEAR} --cell-opt recurrent_init=orthogonal:{g} --fail-on vanish,explode")
    assert failing.exit_code == (3 if verdict in ("vanishing", "exploding") else 0)


def test_the_lag_is_where_a_share_is_judged(invoke: Any) -> None:
    words = f"{LINEAR} --cell-opt recurrent_init=orthogonal:0.5 --loss last"
    shares = {lag: json.loads(invoke(f"{words} --lag {lag} --json").stdout)["series"][0] for lag in (3, 5, 19)}
    assert [s["verdict"] for s in shares.values()] == ["healthy", "weak", "vanishing"]
    assert shares[3]["share"] == pytest.approx(0.125) and shares[3]["lag"] == 3
    assert "is left 3 steps back" in invoke(f"{words} --lag 3").stdout
    two = invoke(f"{LINEAR} --loss last,step:5,train").stdout
    assert "share: what is left 19 steps back, 5 for step:5; of rnn" in two
    far = invoke(f"{words} --lag 20")
    assert far.exit_code == 2 and "--lag 20: expected at most 19 steps back" in far.stderr


def test_an_output_beside_a_memory_fails_no_check(invoke: Any) -> None:
    done = invoke(
        "diagnose gradnorm --cell lru --hidden 8 --layers 1 --batch 3 --steps 20 --loss last --fail-on vanish,explode"
    )
    assert done.exit_code == 0, done.output
    assert "healthy (as " in next(line for line in done.stdout.split("\n") if line.startswith("lru   last      0  y"))


def test_an_lstm_beside_others_is_drawn_by_its_memory(invoke: Any) -> None:
    page = invoke("diagnose gradnorm --cell rnn --cell lstm --hidden 8 --batch 2 --steps 12 --loss last").stdout
    legend = next(line for line in page.split("\n") if "● rnn h" in line)
    assert "lstm c" in legend and "lstm h" not in legend


def test_the_page_says_slope_verdict_and_trap(invoke: Any) -> None:
    page = invoke("diagnose gradnorm --cell rnn --hidden 8 --batch 2 --steps 30").stdout
    for word in ("slope", "horizon", "vanishing", "timestep t", "Mind the trap", "layer 1"):
        assert word in page
    assert (
        "Mind the trap" not in invoke("diagnose gradnorm --cell rnn --hidden 8 --batch 2 --steps 12 --loss last").stdout
    )


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ("--loss ,", "--loss"),
        ("--wrt ,", "--wrt"),
        ("--loss train --fail-on vanish", "--loss last"),
        ("--wrt params --fail-on vanish", "add states"),
    ],
)
def test_a_check_that_could_never_fail_is_refused(invoke: Any, args: str, word: str) -> None:
    done = invoke(f"diagnose gradnorm --cell rnn --hidden 4 --batch 2 --steps 5 {args}")
    assert done.exit_code == 2 and word in done.stderr


def test_a_check_looks_at_every_loss(invoke: Any) -> None:
    done = invoke(f"{LINEAR} --cell-opt recurrent_init=orthogonal:0.5 --loss step:0,last,train --fail-on vanish")
    assert done.exit_code == 3 and "--fail-on: rnn layer 0 h, loss last" in done.stderr
    assert "the curves are those of the loss last, not of step:0" in done.stderr


def test_a_curve_ends_where_its_loss_stands(invoke: Any) -> None:
    page = invoke(f"{LINEAR} --loss step:5,train").stdout
    plot = page[page.index("||dL/ds_t||") : page.index("timestep t")]
    assert "(the loss is at t = 5)" in page
    assert max(line.rfind("●") for line in plot.split("\n")) < 30  # a quarter of 80 columns and the margin


def test_inputs_of_several_cells_of_several_layers(invoke: Any, tmp_path: Path) -> None:
    done = invoke(
        "diagnose gradnorm --cell rnn --cell gru --layers 2 --hidden 4 --batch 2 --steps 5 --wrt inputs --plot x.svg"
    )
    assert done.exit_code == 0, done.output
    for word in ("rnn x", "gru x", "gru, layer 0, state x"):
        assert word in done.stdout
    assert (tmp_path / "x.svg").exists()


def test_no_slope_without_two_norms(invoke: Any) -> None:
    page = invoke("diagnose gradnorm --cell rnn --hidden 4 --layers 1 --batch 2 --steps 1 --loss last").stdout
    assert next(line for line in page.split("\n") if line.startswith("rnn ")).split()[4] == "-"
    assert "1 step\n" in page


def test_an_exploding_network_warns_of_nothing_else(program: Any) -> None:
    done = program(
        *"diagnose gradnorm --cell rnn --hidden 8 --batch 2 --steps 300 --json --cell-opt activation=identity".split(),
        *"--cell-opt recurrent_init=orthogonal:30".split(),
    )
    assert done.returncode == 0 and done.stderr == ""
    assert {series["verdict"] for series in json.loads(done.stdout)["series"]} == {"exploding"}


def test_what_a_plugin_prints_is_not_in_the_product(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "from tinygrad_rnn import Cell, State, input_matrix, ops, recurrent_matrix, register_cell\n"
        "print('imported')\n"
        "@register_cell\n"
        "class Loud(Cell):\n"
        "    name = 'loud'; summary = 's'; citation = 'c'; equation = 'e'\n"
        "    def state(self): return {'h': State((self.H,))}\n"
        "    def params(self): return {'W': input_matrix(self.I, self.H), 'U': recurrent_matrix(self.H)}\n"
        "    def step(self, p, x, s):\n"
        "        print('stepped')\n"
        "        return {'h': ops.tanh(x @ p.W + s.h @ p.U)}\n"
    )
    gradnorm = "diagnose gradnorm --cell loud --hidden 4 --batch 2 --steps 5"
    for args in (gradnorm, "cells list --errors", "cells info loud", "doctor"):
        done = invoke(f"{args} --plugin loud.py --json")
        assert done.exit_code == 0, done.output
        assert isinstance(json.loads(done.stdout), dict)


def test_a_narrow_terminal_gets_a_narrow_table(monkeypatch: pytest.MonkeyPatch, invoke: Any) -> None:
    monkeypatch.setattr("tinygrad_rnn_cli.gradnorm.is_terminal", lambda stream: True)
    page = invoke("diagnose gradnorm --cell rnn --hidden 4 --layers 1 --batch 2 --steps 9", COLUMNS="60").stdout
    line = next(line for line in page.split("\n") if "rnn last 0 h" in line)
    assert line.split()[-1] in ("vanishing", "weak") and "horizon" not in page[: page.index(line)]


def test_several_cells_and_their_own_options(invoke: Any) -> None:
    words = (
        "diagnose gradnorm --cell rnn --cell lstm --cell mut1 --hidden 8 --layers 1 --batch 2 --steps 12 --json "
        "--cell-opt rnn.activation=identity --cell-opt recurrent_init=orthogonal:1"
    )
    done = invoke(words)
    assert done.exit_code == 0, done.output
    reports = json.loads(done.stdout)["reports"]
    assert [report["cell"] for report in reports] == ["rnn", "lstm", "mut1"]
    assert {series["state"] for series in reports[1]["series"]} == {"h", "c"}
    wrong = invoke("diagnose gradnorm --cell rnn --cell lstm --cell-opt gru.form=reset_after")
    assert wrong.exit_code == 2 and "no --cell 'gru'" in wrong.stderr


def test_csv_and_pictures(invoke: Any, tmp_path: Path) -> None:
    base = "diagnose gradnorm --cell rnn --hidden 8 --layers 1 --batch 2 --steps 6"
    done = invoke(f"{base} --csv norms.csv --plot norms.svg --json")
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "norms.csv").read_text().splitlines()))
    series = json.loads(done.stdout)["series"]
    assert [float(row["norm"]) for row in rows] == [norm for s in series for norm in s["norm"]]
    assert (tmp_path / "norms.svg").read_text().lstrip().startswith("<?xml")
    wrong = invoke(f"{base} --plot norms.jpeg")
    assert wrong.exit_code == 2 and ".png, .svg or .pdf" in wrong.stderr
    nowhere = invoke(f"{base} --plot no/such/folder/x.png")
    assert nowhere.exit_code == 1 and "existing folder" in nowhere.stderr


def test_losses_and_targets(invoke: Any) -> None:
    base = "diagnose gradnorm --cell gru --hidden 6 --layers 1 --batch 2 --steps 8 --json"
    losses = json.loads(invoke(f"{base} --loss step:3,train").stdout)["series"]
    assert [series["loss"] for series in losses] == ["step:3", "train"]
    more = json.loads(invoke(f"{base} --wrt states,inputs,params").stdout)
    assert {series["state"] for series in more["series"]} == {"h", "x"}
    assert "readout.W" in more["params"]


def test_a_run_is_measured_on_its_own_text(invoke: Any, trained: Path) -> None:
    done = invoke(["diagnose", "gradnorm", trained, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["cell"], report["steps"], report["hidden"]) == ("lstm", 10, 8)
    assert {series["state"] for series in report["series"]} == {"h", "c"}
    longer = json.loads(invoke(["diagnose", "gradnorm", trained, "--steps", "30", "--batches", "2", "--json"]).stdout)
    assert longer["steps"] == 30


def test_a_run_on_another_text(invoke: Any, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("hello hello world\n" * 20)
    done = invoke(["diagnose", "gradnorm", trained, "--text", "other.txt", "--json"])
    assert done.exit_code == 0, done.output
    short = invoke(["diagnose", "gradnorm", trained, "--text", "other.txt", "--steps", "1000"])
    assert short.exit_code == 1 and "--steps 1000" in short.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("", ["RUN folder or --cell"]),
        ("--cell rnn --loss foo", ["--loss", "foo", "last, train or step:K"]),
        ("--cell rnn --loss step:50", ["step:50", "0 to 49"]),
        ("--cell rnn --wrt foo", ["--wrt", "foo"]),
        ("--cell rnn --fail-on sink", ["--fail-on", "sink", "vanish"]),
        ("--cell rnn --steps 0", ["--steps", "0"]),
        ("--cell rnm", ["'rnm'", "rnn"]),
        ("--cell rnn --cell-opt activation=tan", ["activation", "tan", "tanh"]),
        ("--cell rnn --cell-opt activatoin=tanh", ["activatoin", "activation"]),
        ("--cell rnn --horizon-eps 2", ["--horizon-eps", "2"]),
        ("--cell rnn --text a.txt", ["--text"]),
        ("--cell rnn --which best", ["--which", "RUN"]),
        ("--cell rnn --hidden 0", ["--hidden", "at least 1"]),
    ],
)
def test_what_cannot_be_meant(invoke: Any, args: str, words: list[str]) -> None:
    done = invoke(f"diagnose gradnorm {args}")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_a_run_has_settled_its_model(invoke: Any, trained: Path) -> None:
    for words in (["--hidden", "3"], ["--cell-opt", "a=1"], ["--cell", "rnn"], ["--set", "model.layers=3"]):
        done = invoke(["diagnose", "gradnorm", trained, *words])
        assert done.exit_code == 2, done.output


def test_plot_says_once_which_step_it_shows_and_where_it_writes(invoke: Any, tmp_path: Path) -> None:
    assert invoke([*"train --out g --steps 2 --watch grads:1 -q".split(), *TINY.split()]).exit_code == 0
    folder = tmp_path / "pictures-1.0"  # a dot in the name of a folder is no suffix
    folder.mkdir()
    done = invoke("plot g --what grads,loss --out pictures-1.0")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("gradient norms of step 2") == 1
    assert {path.name for path in folder.iterdir()} == {"grads.png", "loss.png"}
    both = invoke("plot g --format term --out a.png")
    assert both.exit_code == 2 and "--out" in both.stderr


def test_several_runs_in_one_picture(invoke: Any, tmp_path: Path) -> None:
    for name, clip in (("a", "0.01"), ("b", "100")):
        words = f"train --out {name} --steps 4 --watch grads:2 --clip-norm {clip} -q"
        assert invoke([*words.split(), *TINY.split()]).exit_code == 0
    done = invoke("plot a b --what loss,norm,grads --out .")
    assert done.exit_code == 0, done.output
    assert {"loss.png", "norm.png", "grads.png"} <= {path.name for path in tmp_path.iterdir()}
    page = invoke("plot a b --what norm").stdout
    assert (
        "a, before clipping" in page and "a, after" in page and "b, before clipping" in page and "b, after" not in page
    )
    assert "a, training" in invoke("plot a b").stdout and "\u25cf training" in invoke("plot a").stdout
    assert "a c" in invoke("plot a b --what grads").stdout
    again = invoke("plot a b --format png")
    assert again.stdout.split() == ["loss.png"]
    wrong = invoke("plot a --what norms")
    assert wrong.exit_code == 2 and "did you mean norm" in wrong.stderr
