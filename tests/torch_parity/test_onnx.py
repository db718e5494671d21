"""Exported RNN, LSTM and GRU in onnxruntime against torch.nn with the weights of `to_torch`: neither side is ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import ModelConfig, build_model, load_cell, onnx_session, to_onnx, to_torch

torch = pytest.importorskip("torch", reason="PyTorch is one opinion here; it is not installed")
pytest.importorskip("onnx", reason="needs the package onnx, of the extra onnx")
pytest.importorskip("onnxruntime", reason="onnxruntime is the other opinion here; it is not installed")
pytestmark = pytest.mark.torch

V, H, T, B = 7, 5, 9, 3


@pytest.mark.parametrize("scan", [False, True])
def test_onnxruntime_and_pytorch_agree(pair: Any, scan: bool) -> None:
    config = ModelConfig(cell=pair.cell, cell_options=pair.options, hidden=H, layers=2, embed="4")
    model = build_model(config, V, load_cell(pair.cell))
    module = getattr(torch.nn, pair.kind)(4, H, 2, **pair.settings)
    rng = np.random.default_rng(0)
    params = {name: rng.normal(0, 0.7, spec.shape).astype(np.float32) for name, spec in model.params().items()}
    theirs = {name: torch.from_numpy(array) for name, array in to_torch(model, params).items()}
    module.load_state_dict({name: theirs[name] for name in module.state_dict()})
    states = [name for name in ("h", "c") if name in model.cells[0].state()]
    start = {name: rng.normal(0, 0.7, (2, B, H)).astype(np.float32) for name in states}
    symbols = rng.integers(0, V, (T, B))
    with torch.no_grad():
        given = tuple(torch.from_numpy(start[name]) for name in states)
        y, end = module(theirs["embed.weight"][torch.from_numpy(symbols)], given if len(given) > 1 else given[0])
        logits = (y @ theirs["readout.weight"].T + theirs["readout.bias"]).numpy()
    session = onnx_session(to_onnx(model, params, scan=scan))
    fed = {f"layers.{k}.{name}": start[name][k] for k in range(2) for name in states}
    found = session.run(None, {"symbols": symbols, **fed})
    np.testing.assert_allclose(found[0], logits, rtol=1e-5, atol=1e-5)
    ends = dict(zip(states, end if len(states) > 1 else (end,), strict=True))
    expected = [ends[name][k].numpy() for k in range(2) for name in states]
    for ours, other in zip(found[1:], expected, strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-5)
