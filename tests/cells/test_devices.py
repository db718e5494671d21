"""Cells, unroll and the whole model on arrays that are not NumPy's: what CuPy would refuse, the guard refuses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import InputError, ModelConfig, Tensor, anomaly, build_model, grad, load_cell, ops, unroll
from tinygrad_rnn.model import detach

Make = Callable[..., Any]


def run(case: Any, put: Callable[[Any], Any], *, watched: bool) -> list[Any]:
    """Outputs, last states and every gradient of a masked run."""
    xs = Tensor(put(case.xs), requires_grad=True)
    params = {name: Tensor(put(value), requires_grad=True) for name, value in case.params.items()}
    state = {name: Tensor(put(value), requires_grad=True) for name, value in case.state.items()}
    mask = put(np.array([[True, True], [True, True], [True, False]]))
    with anomaly() if watched else contextlib.nullcontext():
        done = unroll(case.cell, params, xs, state, mask=mask)
        found = grad(ops.sum(done.outputs * done.outputs), [xs, *params.values(), *state.values()], unused="zeros")
    return [value.data for value in (done.outputs, *done.state.values(), *found)]


@pytest.mark.parametrize("watched", [False, True])
def test_a_cell_stays_on_its_device(variant: str, watched: bool, make_case: Make, guard: Any) -> None:
    case = make_case(variant, T=3, B=2, I=2, H=3)
    here = run(case, lambda array: array, watched=watched)
    there = run(case, guard.asarray, watched=watched)
    for expected, value in zip(here, there, strict=True):
        assert type(value) is guard.Array
        np.testing.assert_allclose(value.get(), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("embed", ["onehot", "3"])
def test_a_model_stays_on_its_device(cell_name: str, embed: str, dtype: Any, guard: Any) -> None:
    """Init, forward with dropout, loss and gradient, with the state carried: the same numbers from the same seeds."""
    config = ModelConfig(cell=cell_name, hidden=4, layers=2, embed=embed, dropout=0.3)
    model = build_model(config, 5, load_cell(cell_name))
    ids = np.random.default_rng(1).integers(0, 5, (7, 2))
    results = []
    for xp, put in ((np, lambda array: array), (guard.MODULE, guard.asarray)):
        params = model.init(np.random.default_rng(0), dtype, xp)
        first = model.forward(params, put(ids[:3]))
        done = model.forward(params, put(ids[3:6]), detach(first.state), rng=np.random.default_rng(2))
        loss = ops.cross_entropy(done.logits, put(ids[4:]))
        found = grad(loss, [value for value in params.values() if value.requires_grad])
        results.append([value.data for value in (loss, done.logits, *found)])
    for expected, value in zip(*results, strict=True):
        assert type(value) is guard.Array
        np.testing.assert_allclose(value.get(), expected, rtol=1e-5 if dtype == np.float32 else 1e-12, atol=1e-7)


def test_devices_are_not_mixed(make_case: Make, guard: Any) -> None:
    case = make_case("lstm")
    params = {name: Tensor(guard.asarray(value)) for name, value in case.params.items()}
    with pytest.raises(InputError, match=r"one device|guard"):
        unroll(case.cell, params, Tensor(case.xs))
