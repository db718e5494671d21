"""``export onnx`` as a user types it: the file, what is said about it, and the text that onnxruntime writes with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the package onnx, of the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is the other opinion here; it is not installed")


def greedy(path: Path, prime: str, length: int) -> str:
    """The text that onnxruntime writes after `prime`, from the file alone."""
    proto = onnx.load(path)
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    symbols, start = json.loads(facts["vocabulary"])["symbols"], json.loads(facts["start"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    H = {entry.name: entry.shape[1] for entry in session.get_inputs() if entry.name != "symbols"}
    dtype = np.float64 if "double" in session.get_outputs()[0].type else np.float32
    state = {name: np.full((1, H[name]), number, dtype) for name, number in start.items()}
    text, x = prime, np.array([[symbols.index(symbol)] for symbol in prime])
    names = [entry.name for entry in session.get_outputs()]
    for _ in range(length):
        out = dict(zip(names, session.run(None, {"symbols": x, **state}), strict=True))
        state = {name: out[f"{name}.next"] for name in state}
        x = out["logits"][-1:].argmax(axis=2)
        text += symbols[x.item()]
    return text


@pytest.mark.parametrize("flags", [[], ["--scan"]])
def test_it_writes_what_sample_writes(invoke: Any, trained: Path, tmp_path: Path, flags: list[str]) -> None:
    done = invoke(["export", "onnx", str(trained), "-o", "deep/m.onnx", *flags])
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "deep/m.onnx\n"
    assert f"onnxruntime {onnxruntime.__version__} differs by" in done.stderr
    assert "symbols (T, B) int64" in done.stderr and "layers.0.c (B, 8) float32" in done.stderr
    kinds = {node.op_type for node in onnx.load(tmp_path / "deep" / "m.onnx").graph.node}
    assert ("Scan" in kinds, "LSTM" in kinds) == (bool(flags), not flags)
    sampled = invoke(["sample", str(trained), "--greedy", "-n", "60", "--prime", "hello "])
    assert greedy(tmp_path / "deep" / "m.onnx", "hello ", 60) == sampled.stdout


def test_a_wrapped_cell_in_float64(invoke: Any, tmp_path: Path) -> None:
    words = (
        "train --corpus hello --hidden 8 --layers 1 --batch 4 --seq-len 10 --steps 30 --embed onehot --dtype float64"
    )
    assert (
        invoke([*words.split(), *"--cell mut3 --wrap layernorm --wrap zoneout:0.1 --out run -q".split()]).exit_code == 0
    )
    done = invoke("export onnx run")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "run/model.onnx\n" and "(B, 8) float64" in done.stderr
    sampled = invoke("sample run --greedy -n 40 --prime h")
    assert greedy(tmp_path / "run" / "model.onnx", "h", 40) == sampled.stdout


def test_no_file_is_replaced_unasked(invoke: Any, trained: Path, tmp_path: Path, one_line: Any) -> None:
    (tmp_path / "m.onnx").write_text("mine")
    refused = invoke(["export", "onnx", str(trained), "-o", "m.onnx"])
    assert refused.exit_code == 1 and refused.stdout == ""
    assert one_line(refused.stderr).startswith("m.onnx is there already")
    assert (tmp_path / "m.onnx").read_text() == "mine"
    assert invoke(["export", "onnx", str(trained), "-o", "m.onnx", "--overwrite", "--no-check"]).exit_code == 0
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"), full_check=True)
    assert "is a folder" in one_line(invoke(["export", "onnx", str(trained), "-o", str(tmp_path)]).stderr)
    assert "m.onnx" in one_line(invoke(["export", "onnx", str(trained), "-o", "m.onnx/n.onnx"]).stderr)


def test_a_difference_is_exit_3_and_leaves_no_file(
    invoke: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: Any
) -> None:
    monkeypatch.setattr("tinygrad_rnn.onnx_export.onnx_difference", lambda *_: 2e-5)
    done = invoke(["export", "onnx", str(trained), "-o", "m.onnx"])
    assert done.exit_code == 3 and done.stdout == "" and not (tmp_path / "m.onnx").exists()
    assert "2.0e-05" in one_line(done.stderr)
    assert invoke(["export", "onnx", str(trained), "-o", "m.onnx", "--no-check"]).exit_code == 0


def test_without_the_packages(
    invoke: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: Any
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("tinygrad_rnn.onnx_export.onnxruntime_version", lambda: None)
    unchecked = invoke(["export", "onnx", str(trained), "-o", "m.onnx"])
    assert unchecked.exit_code == 0 and "onnxruntime" not in unchecked.stderr
    asked = invoke(["export", "onnx", str(trained), "-o", "n.onnx", "--check"])
    assert asked.exit_code == 2 and "pip install onnxruntime" in one_line(asked.stderr)
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused = invoke(["export", "onnx", str(trained), "-o", "n.onnx"])
    assert refused.exit_code == 2 and not (tmp_path / "n.onnx").exists()
    assert one_line(refused.stderr) == 'onnx is not installed; pip install "tinygrad_rnn[onnx]"'


def test_a_step_that_cannot_be_traced_names_its_line(invoke: Any, tmp_path: Path, one_line: Any) -> None:
    (tmp_path / "moody.py").write_text(
        "from tinygrad_rnn import Cell, State, ops, register_cell\n"
        "@register_cell\n"
        "class Moody(Cell):\n"
        "    name, summary, citation, equation = 'moody', 'looks at values', 'nobody', 'h = tanh(x + h)'\n"
        "    def state(self):\n"
        "        return {'h': State((self.H,))}\n"
        "    def params(self):\n"
        "        return {}\n"
        "    def step(self, p, x, s):\n"
        "        return {'h': ops.tanh(x + s.h) if x.sum() > -1e9 else s.h}\n"
    )
    words = "train --corpus hello --hidden 8 --layers 1 --batch 4 --seq-len 10 --steps 2 --cell moody --out run -q"
    assert invoke([*words.split(), "--plugin", "moody.py"]).exit_code == 0
    done = invoke("export onnx run --plugin moody.py")
    assert done.exit_code == 2
    assert "(moody.py:10)" in one_line(done.stderr) and "through `if`" in done.stderr
