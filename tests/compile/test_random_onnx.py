"""Cells nobody wrote, exported to ONNX: onnxruntime computes what their step does, for any number of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from random_cells import RandomCell, random_cells

from tinygrad_rnn import InputError, Model, ModelConfig, onnx_difference, to_onnx

pytest.importorskip("onnx", reason="needs the package onnx, of the extra onnx")
pytest.importorskip("onnxruntime", reason="onnxruntime is the other opinion here; it is not installed")


def agree(drawn: RandomCell) -> None:
    cell = drawn.build()
    assume(drawn.states[drawn.output] == (drawn.H,))  # which a model reads
    model = Model(ModelConfig(cell="nobody", hidden=drawn.H, layers=1, embed=str(drawn.I)), 5, (cell,))
    params = {name: value.data for name, value in model.init(np.random.default_rng(0), np.float64).items()}
    try:
        proto = to_onnx(model, params)
    except InputError as error:  # such a cell is drawn now and then
        assert "depends on the number of rows" in str(error)
        return
    assert onnx_difference(proto, model, params, np.random.default_rng(1)) < 1e-6


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(random_cells())
def test_random_cells(drawn: RandomCell) -> None:
    agree(drawn)


@pytest.mark.slow
@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(random_cells())
def test_many_random_cells(drawn: RandomCell) -> None:
    agree(drawn)
