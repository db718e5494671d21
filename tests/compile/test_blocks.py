"""Long sequences in blocks that the way back computes again: the same numbers, in less memory."""

from __future__ import annotations

import numpy as np
import pytest
from compare import LOSSES, compare, make_case

from tinygrad_rnn import InputError, Tensor, grad, init_cell, load_cell, ops, scan
from tinygrad_rnn.compile import blocks


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 3, 5, 7])
@pytest.mark.parametrize("name", ["lstm", "lru"])  # whose output map is behind the loop
def test_blocks_change_no_number(executor: str, name: str, length: int, masked: bool, loss: str) -> None:
    done = compare(
        executor, make_case(load_cell(name).cls(3, 4), T=7, masked=masked), loss, recompute=length, bound=1e-12
    )
    assert done.executor == executor
    assert ("in blocks of" in done.reason) == (length < 7)


def test_second_order_through_blocks(executor: str) -> None:
    case = make_case(load_cell("gru").cls(3, 4), T=6)
    compare(executor, case, "everything", second=True, recompute=2, bound=1e-10)


@pytest.mark.parametrize("T", [5, 200])
def test_memory_decides(executor: str, T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a timestep keeps is known: five gates' worth of H and, on the way back, four."""
    monkeypatch.setattr(blocks, "MEMORY", 100 * 9 * 4 * 2 * 8)
    monkeypatch.setattr(blocks, "BLOCK", 20 * 9 * 4 * 2 * 8)
    cell = load_cell("lstm").cls(4, 4)
    rng = np.random.default_rng(0)
    params = init_cell(cell, rng)
    xs = Tensor(rng.normal(size=(T, 2, 4)), requires_grad=True)
    done = scan(cell, params, xs, executor=executor)
    assert ("in blocks of" in done.reason) == (T > 100)
    whole = scan(cell, params, xs, executor=executor, recompute=0)
    assert "in blocks of" not in whole.reason
    for a, b in zip(*(grad(ops.sum(d.outputs), [xs, *params.values()]) for d in (done, whole)), strict=True):
        np.testing.assert_allclose(a.data, b.data, rtol=1e-10, atol=1e-13)


def test_a_negative_length_is_told() -> None:
    cell = load_cell("rnn").cls(2, 2)
    with pytest.raises(InputError, match="recompute: expected a number of timesteps of at least 0, got -1"):
        scan(cell, init_cell(cell, np.random.default_rng(0)), np.zeros((2, 1, 2)), recompute=-1)


@pytest.mark.parametrize("length", [None, 2])
def test_all_timesteps_of_a_state_in_one_tensor(executor: str, length: int | None) -> None:
    """Its gradient is that of every timestep, whatever is asked for beside it."""
    cell = load_cell("lstm").cls(3, 4)
    rng = np.random.default_rng(0)
    params = init_cell(cell, rng)
    done = scan(cell, params, rng.normal(size=(5, 2, 3)), executor=executor, recompute=length)
    loss = ops.sum(done.outputs * rng.normal(size=(5, 2, 4))) + ops.sum(done.state["c"] * 2.0)
    for name, values in done.states.items():
        whole = values.whole()  # type: ignore[attr-defined]
        np.testing.assert_array_equal(whole.data, np.stack([value.data for value in values]))
        together, *single = grad(loss, [whole, *values])
        np.testing.assert_array_equal(together.data, np.stack([g.data for g in single]), err_msg=name)
        assert together.data.any()
