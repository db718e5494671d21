"""``doctor`` and ``demo``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tinygrad_rnn as tr
from tinygrad_rnn_cli import doctor


def test_doctor(invoke: Any) -> None:
    done = invoke("doctor --json --no-plugins")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["tinygrad_rnn"] == tr.__version__
    assert facts["blas"]["gflops"] > 0
    assert facts["gradcheck"]["passed"] and facts["gradcheck"]["cells"]
    assert facts["gradcheck"]["seconds"] < 10
    assert all(cell["error"] is None for cell in facts["cells"])


def test_doctor_for_people(invoke: Any) -> None:
    page = invoke("doctor").stdout
    for word in ("Python", "numpy", "BLAS", "GFLOP/s", "GPU", "cells", "gradients"):
        assert word in page


def test_advice_says_what_it_would_gain() -> None:
    blas = {"kernel": "Haswell", "threads": 1, "cores": 8, "gflops": 200.0, "gflops_wide": 400.0}
    facts = {"blas": blas, "gpu": {"cupy": None, "error": "CuPy is not installed"}, "cells": [], "packages": {}}
    advice = "\n".join(doctor._advice(facts))
    assert "OPENBLAS_CORETYPE=SkylakeX" in advice and "2.0 times" in advice
    assert "1 of 8 cores" in advice


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
    assert (tmp_path / "runs" / "demo" / "gradnorm.png").stat().st_size > 1000
    assert invoke("sample runs/demo/lstm -n 5").exit_code == 0
    assert invoke("demo --seconds 1 --out runs/demo").exit_code == 1  # named, so it is not replaced
    assert invoke("demo --seconds 1").exit_code == 0
