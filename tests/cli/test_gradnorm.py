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


@pytest.mark.parametrize(
    ("g", "verdict"), [(0.5, "vanishing"), (0.9, "vanishing"), (1.0, "healthy"), (1.1, "exploding")]
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
    failing = invoke(f"{LINEAR} --cell-opt recurrent_init=orthogonal:{g} --fail-on vanish,explode")
    assert failing.exit_code == (0 if verdict == "healthy" else 3)


def test_the_page_says_slope_verdict_and_trap(invoke: Any) -> None:
    page = invoke("diagnose gradnorm --cell rnn --hidden 8 --batch 2 --steps 12").stdout
    for word in ("slope", "horizon", "vanishing", "timestep t", "Mind the trap", "layer 1"):
        assert word in page
    assert (
        "Mind the trap" not in invoke("diagnose gradnorm --cell rnn --hidden 8 --batch 2 --steps 12 --loss last").stdout
    )


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
