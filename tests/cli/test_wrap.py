"""``--wrap``: the same flag for training, resuming, sampling, looking at gradients, graphs and timing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tinygrad_rnn import checkpoints, load_checkpoint, open_run

TINY = "--hidden 8 --layers 2 --batch 4 --seq-len 10 --corpus hello".split()
WRAPS = ["--wrap", "layernorm", "--wrap", "zoneout:0.2", "--wrap", "residual"]


def test_a_wrapped_run_is_resumed_bit_for_bit(invoke: Any, tmp_path: Path) -> None:
    """Noise included: it comes from the run's own generator, which is in the checkpoint."""
    for name, steps in (("whole", 6), ("parts", 4)):
        done = invoke(["train", *TINY, *WRAPS, "--steps", steps, "--out", name])
        assert done.exit_code == 0, done.stderr
    assert invoke(["resume", "parts", "--steps", 6]).exit_code == 0
    whole, parts = (load_checkpoint(checkpoints(open_run(tmp_path / name))[-1])[0] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all((whole[name] == parts[name]).all() for name in whole)
    assert "params/layers.1.gain_W_hi" in whole
    first = invoke(["sample", "whole", "-n", 20])
    assert first.exit_code == 0 and first.stdout == invoke(["sample", "whole", "-n", 20]).stdout
    shown = json.loads(invoke(["inspect", "whole", "--json"]).stdout)
    assert shown["config"]["model"]["wrap"] == ["layernorm", "zoneout:0.2", "residual"]


def test_every_command_about_cells_takes_it(invoke: Any) -> None:
    report = invoke(["diagnose", "gradnorm", "--cell", "gru", *WRAPS, "--hidden", "6", "--steps", "8", "--json"])
    facts = json.loads(report.stdout)
    assert facts["cell"] == "gru+layernorm+zoneout:0.2+residual"
    assert {series["state"] for series in facts["series"]} == {"out", "h"}
    graph = json.loads(invoke(["cells", "graph", "gru", *WRAPS, "--json"]).stdout)
    assert graph["cell"] == "gru+layernorm+zoneout:0.2+residual" and graph["no_machine_code"] == ""
    words = ["--shape", "9,6,1,2,3", "--runs", "1", "--json", "--cell-opt", "form=reset_after"]
    (row,) = json.loads(invoke(["cells", "bench", "gru", *WRAPS, *words]).stdout)["rows"]
    assert row["cell"] == "gru+layernorm+zoneout:0.2+residual" and row["ms"] > 0.0


@pytest.mark.parametrize("command", ["train", "diagnose gradnorm --cell lstm", "cells graph lstm"])
def test_a_wrapper_that_does_not_exist_is_one_line(invoke: Any, tmp_path: Path, command: str) -> None:
    done = invoke([*command.split(), "--wrap", "zoneot:0.1"])
    assert done.exit_code != 0 and "no wrapper 'zoneot'; did you mean zoneout?" in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error")]) == 1
    assert not any(tmp_path.iterdir())  # nothing was begun


def test_where_it_was_written(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[model]\nwrap = ["residual"]\n')
    words = ["train", *TINY, "--config", "run.toml", "--show-config"]
    assert 'model.wrap = ["residual"]' in invoke(words).stdout
    (line,) = [line for line in invoke([*words, *WRAPS]).stdout.splitlines() if line.startswith("model.wrap")]
    assert line.split("  #") == ['model.wrap = ["layernorm", "zoneout:0.2", "residual"]', " flag --wrap"]
