"""The cell passes every check, does what it should, and goes by its name."""

import numpy as np
from tinygrad_rnn import init_cell, load_cell, unroll
from tinygrad_rnn.testing import check_cell

from tinygrad_rnn_ugrnn_example.ugrnn_example import UgrnnExampleCell


def test_it_passes_every_check() -> None:
    check_cell(UgrnnExampleCell)


def test_the_package_offers_it() -> None:
    assert load_cell("ugrnn_example").cls is UgrnnExampleCell


def test_a_gate_that_is_open_keeps_the_state() -> None:
    rng = np.random.default_rng(0)
    cell = UgrnnExampleCell(3, 4, {"gate_bias": 60.0})
    h = rng.normal(size=(2, 4))
    xs = rng.normal(size=(5, 2, 3))
    after = unroll(cell, init_cell(cell, rng), xs, {"h": h}).state
    np.testing.assert_allclose(after["h"].data, h, rtol=1e-12)


def test_a_gate_that_is_shut_leaves_a_simple_network() -> None:
    rng = np.random.default_rng(0)
    cell = UgrnnExampleCell(3, 4, {"gate_bias": -60.0})
    params = init_cell(cell, rng)
    W_x, W_h, b = (params[name].data for name in ("W_xc", "W_hc", "b_c"))
    xs = rng.normal(size=(5, 2, 3))
    h = np.zeros((2, 4))
    for x in xs:
        h = np.tanh(x @ W_x + h @ W_h + b)
    after = unroll(cell, params, xs).state
    np.testing.assert_allclose(after["h"].data, h, rtol=1e-12)
