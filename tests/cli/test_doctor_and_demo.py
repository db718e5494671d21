"""``doctor`` and ``demo``."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import tinygrad_rnn as tr
from tinygrad_rnn.diagnostics import describe
from tinygrad_rnn_cli import demo, doctor, progress


def test_doctor(invoke: Any) -> None:
    done = invoke("doctor --json --no-plugins")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["tinygrad_rnn"] == tr.__version__
    assert facts["blas"]["gflops"] > 0
    assert facts["gradcheck"]["passed"] and facts["gradcheck"]["cells"]
    assert facts["gradcheck"]["seconds"] < 10
    assert all(cell["error"] is None for cell in facts["cells"])
    assert facts["executor"]["name"] in ("llvm", "numpy", "unroll")
    assert (facts["executor"]["llvmlite"] is None) == bool(facts["executor"]["error"])
    assert [row["product"] for row in facts["blas"]["products"]] == [[1, 128, 512], [50, 128, 512], [64, 512, 2048]]
    assert all(row["reason"] for row in facts["blas"]["products"])


def test_doctor_for_people(invoke: Any) -> None:
    page = invoke("doctor").stdout
    for word in ("Python", "numpy", "BLAS", "GFLOP/s", "threads", "executor", "GPU", "cells", "gradients"):
        assert word in page


def test_advice_says_what_it_would_gain() -> None:
    advice = "\n".join(doctor._advice(findings()))
    assert "export OPENBLAS_CORETYPE=SkylakeX" in advice and "2.0 times" in advice and "Haswell" in advice
    assert "1 of 8 cores" in advice
    assert "tinygrad_rnn[fast]" not in advice


def test_advice_about_kernels_follows_who_set_them() -> None:
    other = {"kernel": "SkylakeX", "gflops": 400.0}
    theirs = findings(coretype="Haswell", coretype_set_by="user", gflops_wide=None, other=other)
    assert any(line.startswith("unset OPENBLAS_CORETYPE (it is Haswell)") for line in doctor._advice(theirs))
    ours = findings(
        kernel="SkylakeX",
        coretype="SkylakeX",
        coretype_set_by="program",
        gflops_wide=None,
        other={"kernel": "Haswell", "gflops": 300.0},
    )
    assert any(line.startswith("export OPENBLAS_CORETYPE=Haswell") for line in doctor._advice(ours))
    for close in ({"kernel": "Zen", "gflops": 210.0}, {"kernel": "Haswell", "gflops": 900.0}, None):
        assert not any("CORETYPE" in line for line in doctor._advice(findings(other=close, gflops_wide=None)))


def test_advice_names_the_extra_that_compiles() -> None:
    facts = findings() | {"executor": {"name": "numpy", "error": "llvmlite is not installed"}}
    assert any("pip install 'tinygrad_rnn[fast]'" in line for line in doctor._advice(facts))


def test_doctor_without_llvmlite(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)  # which makes the import fail
    done = invoke("doctor --json --no-plugins")
    facts = json.loads(done.stdout)
    assert facts["executor"]["llvmlite"] is None and "llvmlite" in facts["executor"]["error"]
    assert any("tinygrad_rnn[fast]" in line for line in facts["advice"])
    assert "llvm: llvmlite is not installed" in invoke("doctor").stdout


SLOW = {"product": [1, 128, 512], "threads": 1, "microseconds": {"1": 73.0, "2": 15000.0}, "reason": ""}
LARGE = {"product": [64, 512, 2048], "threads": 2, "microseconds": {"1": 3000.0, "2": 1600.0}, "reason": ""}


def test_threads_that_cost_more_than_they_gain_are_something_to_change() -> None:
    """What doctor saw and called nothing to change: 73 µs against 15 ms."""
    (advice,) = doctor._advice(findings(threads=2, cores=2, other=None, products=[LARGE, SLOW]))
    assert advice.startswith(
        "export OPENBLAS_NUM_THREADS=1: the product (1,128)x(128,512) takes 73 µs instead of 15000 with 2 threads, "
        "205.5 times as fast for cells that are not compiled; but (64,512)x(512,2048) 1.9 times as long"
    )
    assert "idle" not in advice
    (busy,) = doctor._advice(findings(threads=2, cores=2, other=None, products=[SLOW], load=3.0))
    assert busy.endswith("(measured at a load of 3.0 on 2 cores: try again when it is idle)")
    close = {**SLOW, "microseconds": {"1": 73.0, "2": 80.0}}
    assert doctor._advice(findings(threads=2, cores=2, other=None, products=[LARGE, close])) == []


@pytest.mark.slow
def test_the_models_of_the_demo_take_as_many_steps(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower probe decides, and where the first is cut short the second does no more."""
    monkeypatch.setattr(demo, "seconds_per_step", lambda config, dataset: 1.0 if config.model.cell == "rnn" else 0.025)
    real = progress.follow

    def hurried(trainer: Any, limit: float) -> Any:
        if limit < math.inf:
            trainer.total = 7  # as if the time were up
        return real(trainer, limit=limit)

    monkeypatch.setattr(progress, "follow", hurried)
    done = invoke("demo --seconds 1")
    assert done.exit_code == 0, done.output
    assert "Train an rnn: 20 steps" in done.stdout and "Train an lstm: 7 steps" in done.stdout
    assert [line.split(" ")[0] for line in done.stdout.splitlines() if "steps later" in line] == ["7", "7"]


def test_threads_that_cost_are_not_ok() -> None:
    marks: list[tuple[bool | None, str]] = []
    slow, large = {**SLOW, "reason": "slow"}, {**LARGE, "reason": "large"}
    found = findings(threads=2, cores=2, other=None, products=[slow, large], name="openblas", version="1")["blas"]
    doctor._print_blas(lambda good, name, text: marks.append((good, text)), found)
    assert marks[-2:] == [(None, "slow"), (True, "large")]


@pytest.mark.parametrize(("share", "words"), [(0.0064, "53 000 times"), (1.2e-7, "1 times"), (1.2e-8, "0.1 times")])
def test_the_demo_tells_how_many_times_the_lstm_keeps(share: float, words: str) -> None:
    def report(end: float) -> tr.GradNormReport:
        judgement = describe([end, 1.0])
        series = tr.GradNormSeries("last", 0, "h", (end, 1.0), *judgement, at=1, by="h")
        return tr.GradNormReport("rnn", 1, 8, 2, (series,))

    told = demo._comparison([report(1.0), report(1.2e-7), report(1.0), report(share)])
    assert " ".join(told.split()) == f"The trained lstm keeps {words} the share of the trained rnn."


def findings(**blas: Any) -> dict[str, Any]:
    """Facts of a machine of 8 cores whose OpenBLAS took the Haswell kernels, one thread, with `blas` changed."""
    plain = {
        "kernel": "Haswell",
        "threads": 1,
        "cores": 8,
        "gflops": 200.0,
        "gflops_wide": 400.0,
        "coretype": None,
        "coretype_set_by": None,
        "other": {"kernel": "SkylakeX", "gflops": 400.0},
        "load": 0.0,
        "products": [],
    }
    return {
        "blas": plain | blas,
        "executor": {"name": "llvm", "error": None},
        "gpu": {"cupy": None, "error": "CuPy is not installed"},
        "cells": [],
        "packages": {},
    }


def test_doctor_reports_a_wrong_gradient(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any, **more: Any) -> None:
        raise tr.GradientError("expected 1, got 2")

    monkeypatch.setitem(vars(tr), "gradcheck", wrong)
    done = invoke("doctor")
    assert done.exit_code == 3 and "expected 1, got 2" in done.stdout


@pytest.mark.slow
def test_demo(invoke: Any, tmp_path: Path) -> None:
    done = invoke("demo --seconds 1.5")
    assert done.exit_code == 0, done.output
    for word in ("1. A text", "Train an rnn", "Train an lstm", "it writes", "How far back", "vanishing", "Next"):
        assert word in done.stdout
    rnn, lstm = re.findall(r"Train an (?:rnn|lstm): (\d+) steps", done.stdout)
    assert rnn == lstm  # or they could not be compared
    table = done.stdout.partition("model  ")[2]
    assert [line.split()[2] for line in table.splitlines()[1:5]] == ["h", "h", "c", "c"]  # an lstm by its memory
    assert "The trained lstm keeps" in done.stdout or "keeps nothing of it" in done.stdout
    assert (tmp_path / "runs" / "demo" / "gradnorm.png").stat().st_size > 1000
    assert invoke("sample runs/demo/lstm -n 5").exit_code == 0
    assert invoke("demo --seconds 1 --out runs/demo").exit_code == 1  # named, so it is not replaced
    assert invoke("demo --seconds 1").exit_code == 0
