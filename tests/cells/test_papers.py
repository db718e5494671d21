"""What the papers say of their cells, on cases that can be worked out by hand."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import (
    InputError,
    ModelConfig,
    Tensor,
    build_model,
    check_cell,
    grad,
    init_cell,
    listen,
    load_cell,
    ops,
    scan,
    specification,
    unroll,
)

Array = np.ndarray[Any, Any]
Make = Callable[..., Any]
HIGH = 800.0  # a gate's bias at which its sigmoid is 1, and at -HIGH 0, exactly


def run(case: Any, state: dict[str, Array] | None = None) -> tuple[Array, dict[str, Array]]:
    """The outputs (T, B, H) and the last of every gate."""
    heard: dict[str, Array] = {}
    with listen(lambda name, value: heard.update({name: np.asarray(value.data)})):
        done = unroll(case.cell, case.params, case.xs, case.state if state is None else state)
    return done.outputs.data, heard


# ---------------------------------------------------------------------------------------- LSTM variants


def test_without_peepholes_it_is_the_lstm(make_case: Make) -> None:
    """NP against the cell `lstm`, whose block input is called g: equal weights, equal numbers."""
    case = make_case("lstm_peephole-NP", T=6)
    plain = make_case("lstm", T=6)
    plain.params = {name: case.params[name.replace("g", "z")] for name in plain.params}
    plain.state, plain.xs = case.state, case.xs
    np.testing.assert_allclose(run(case)[0], run(plain)[0], rtol=1e-14)


def test_a_vanilla_block_whose_peepholes_are_zero_is_np(make_case: Make) -> None:
    case, bare = make_case("lstm_peephole-vanilla", T=4), make_case("lstm_peephole-NP", T=4)
    for name in ("p_i", "p_f", "p_o"):
        case.params[name][:] = 0.0
    bare.params = {name: case.params[name] for name in bare.params}
    bare.state, bare.xs = case.state, case.xs
    np.testing.assert_allclose(run(case)[0], run(bare)[0], rtol=1e-14)


def test_i_and_f_peep_at_the_old_c_and_o_at_the_new_one(make_case: Make) -> None:
    """With every weight at zero but the peepholes, each gate is the sigmoid of p times the c that it sees."""
    case = make_case("lstm_peephole-vanilla", T=1, B=1, I=1, H=1)
    for value in case.params.values():
        value[:] = 0.0
    case.params["b_z"][:] = np.arctanh(0.5)  # the block input is 0.5
    for name, value in (("p_i", 2.0), ("p_f", 3.0), ("p_o", 5.0)):
        case.params[name][:] = value
    case.state["c"][:] = 0.7
    outputs, gates = run(case)

    def sigmoid(a: float) -> float:
        return float(1.0 / (1.0 + np.exp(-a)))

    i, f = sigmoid(1.4), sigmoid(2.1)
    c = f * 0.7 + i * 0.5
    o = sigmoid(5.0 * c)
    assert gates["i"].item() == pytest.approx(i, rel=1e-14)
    assert gates["f"].item() == pytest.approx(f, rel=1e-14)
    assert gates["o"].item() == pytest.approx(o, rel=1e-14)
    assert outputs.item() == pytest.approx(o * np.tanh(c), rel=1e-14)


@pytest.mark.parametrize(("variant", "gate"), [("NIG", "i"), ("NFG", "f"), ("NOG", "o")])
def test_a_missing_gate_is_one_that_stands_open(variant: str, gate: str, make_case: Make) -> None:
    """A vanilla block whose gate is forced to 1 gives the numbers of the variant, which has no such parameters."""
    case, vanilla = make_case(f"lstm_peephole-{variant}", T=4), make_case("lstm_peephole-vanilla", T=4)
    assert set(vanilla.params) - set(case.params) == {f"W_x{gate}", f"W_h{gate}", f"p_{gate}", f"b_{gate}"}
    vanilla.params |= case.params
    vanilla.params[f"b_{gate}"] = np.full(3, HIGH)
    vanilla.state, vanilla.xs = case.state, case.xs
    outputs, gates = run(case)
    assert gate not in gates
    np.testing.assert_allclose(outputs, run(vanilla)[0], rtol=1e-14)


def test_coupled_gates_add_up_to_one(make_case: Make) -> None:
    case = make_case("lstm_peephole-CIFG", T=3)
    _, gates = run(case)
    np.testing.assert_array_equal(gates["f"], 1.0 - gates["i"])
    assert not {"W_xf", "W_hf", "p_f", "b_f"} & set(case.params)


def test_niaf_and_noaf_take_the_tanh_from_the_block_and_not_from_a_gate(make_case: Make) -> None:
    """reference/cells.md 2: some implementations make the input or output GATE linear."""
    for variant in ("NIAF", "NOAF"):
        case = make_case(f"lstm_peephole-{variant}", T=5)
        case.params["b_z"][:] = 4.0
        case.params["W_xo"] *= 10.0
        outputs, gates = run(case)
        assert all(0.0 < gates[name].min() and gates[name].max() <= 1.0 for name in "ifo")
        assert bool(np.abs(gates["z"]).max() > 1.0) is (variant == "NIAF")
        assert bool(np.abs(outputs).max() > 1.0) is (variant == "NOAF")


def test_fgr_feeds_back_all_gates_through_nine_matrices(make_case: Make) -> None:
    case, vanilla = make_case("lstm_peephole-FGR", T=4), make_case("lstm_peephole-vanilla", T=4)
    more = {f"R_{old}{new}" for old in "ifo" for new in "ifo"}
    assert set(case.params) - set(vanilla.params) == more
    vanilla.params = {name: case.params[name] for name in vanilla.params}
    vanilla.state, vanilla.xs = {name: case.state[name] for name in "hc"}, case.xs
    plain = run(vanilla)[0]
    assert np.abs(run(case)[0] - plain).max() > 1e-2
    for name in more:
        case.params[name][:] = 0.0
    np.testing.assert_allclose(run(case)[0], plain, rtol=1e-14)
    # R_fo carries f of the last step to o, and nothing else
    case.params["R_fo"][:] = np.eye(3)
    one = SimpleNamespace(**(case.state | {"f_old": np.full((2, 3), 50.0), "i_old": np.zeros((2, 3))}))
    seen: dict[str, Array] = {}
    with listen(lambda name, value: seen.update({name: value.data})):
        case.cell.step(SimpleNamespace(**{k: Tensor(v) for k, v in case.params.items()}), Tensor(case.xs[0]), one)
    assert seen["o"].min() > 1.0 - 1e-12
    assert seen["i"].max() < 1.0 - 1e-6


# -------------------------------------------------------------------------------------- one gate and none


def test_irnn_starts_as_an_accumulator(make_case: Make) -> None:
    """Identity, zero bias, relu: a state that is not negative stays as it is, and its gradient too."""
    cell = load_cell("irnn").cls(3, 5)
    params = init_cell(cell, np.random.default_rng(0))
    start = np.abs(np.random.default_rng(1).normal(size=(2, 5)))
    h = Tensor(start, requires_grad=True)
    done = unroll(cell, params, np.zeros((50, 2, 3)), {"h": h})
    np.testing.assert_array_equal(done.outputs.data, np.broadcast_to(start, (50, 2, 5)))
    np.testing.assert_array_equal(grad(ops.sum(done.outputs[-1]), h).data, np.ones((2, 5)))
    assert 0.0 < np.abs(params["W_xh"].data).max() < 0.006  # N(0, 0.001)


def test_irnn_is_the_simple_network_of_relu_units(make_case: Make) -> None:
    """Which is held against PyTorch: the start values alone are IRNN's."""
    case, plain = make_case("irnn", T=5), make_case("rnn-relu", T=5)
    plain.params, plain.state, plain.xs = case.params, case.state, case.xs
    np.testing.assert_array_equal(run(case)[0], run(plain)[0])


@pytest.mark.parametrize(
    ("name", "bias", "keeps"),
    [("ugrnn", "b_g", 1), ("minimalrnn", "b_u", 1), ("mgu", "b_f", -1), ("mingru", "b_z", -1), ("janet", "b_f", 1)],
)
def test_a_saturated_gate_keeps_or_overwrites(name: str, bias: str, keeps: int, make_case: Make) -> None:
    """Which sign of which bias means remember: it is not the same in every cell."""
    case = make_case(name, T=20)
    case.params[bias][:] = keeps * HIGH
    np.testing.assert_array_equal(run(case)[0][-1], case.state["h"])
    case.params[bias][:] = -keeps * HIGH
    outputs, gates = run(case)
    np.testing.assert_allclose(outputs[-1], gates.get("n", gates.get("z")), rtol=1e-14)


def test_forget_update_keeps_and_adds(make_case: Make) -> None:
    case = make_case("forget_update", T=7)
    case.params["b_f"][:] = HIGH
    outputs, _ = run(case)
    _, gates = run(case)
    np.testing.assert_allclose(outputs[-1] - outputs[-2], gates["u"], rtol=1e-12)
    case.params["b_u"][:] = HIGH  # an update of 1 at every step, and nothing forgotten: a clock
    np.testing.assert_allclose(run(case)[0][-1], case.state["h"] + 7.0, rtol=1e-12)
    case.params["b_f"][:] = -HIGH
    np.testing.assert_array_equal(run(case)[0][-1], np.ones((2, 3)))


def test_janet_lets_more_in_than_it_lets_go(make_case: Make) -> None:
    """beta = 0 couples the gates; beta > 0 makes their sum larger than 1, at a = beta / 2 by tanh(beta / 4)."""
    case = make_case("janet", T=3)
    case.cell = load_cell("janet").cls(3, 3, {"beta": 0.0})
    _, gates = run(case)
    np.testing.assert_allclose(gates["f"] + gates["i"], 1.0, rtol=1e-14)
    case = make_case("janet", T=3)
    for name in ("W_xf", "W_hf"):
        case.params[name][:] = 0.0
    case.params["b_f"][:] = 0.5
    _, gates = run(case)
    np.testing.assert_allclose(gates["f"] + gates["i"], 1.0 + np.tanh(0.25), rtol=1e-14)


def test_mgu_is_a_gru_with_one_gate(make_case: Make) -> None:
    """Equal weights for r and z make a GRU an MGU with f for r and 1 - f for z, that is, with the signs of z turned."""
    case, gru = make_case("mgu", T=5), make_case("gru-before", T=5)
    p = case.params
    gru.params = {"W_xr": p["W_xf"], "W_hr": p["W_hf"], "b_r": p["b_f"], "W_xz": -p["W_xf"], "W_hz": -p["W_hf"]}
    gru.params |= {"b_z": -p["b_f"], "W_xn": p["W_xn"], "W_hn": p["W_hn"], "b_n": p["b_n"]}
    gru.state, gru.xs = case.state, case.xs
    np.testing.assert_allclose(run(case)[0], run(gru)[0], rtol=1e-13)


@pytest.mark.parametrize("name", ["mingru", "minlstm"])
def test_the_step_form_equals_the_parallel_one(name: str, make_case: Make) -> None:
    """h_t = (product of all f) h_0 + sum over s of (product of f after s) i_s n_s, by cumulative sums of logarithms."""
    case = make_case(name, T=12)
    p, xs = case.params, case.xs

    def sigmoid(a: Array) -> Array:
        return np.asarray(1.0 / (1.0 + np.exp(-a)))

    if name == "mingru":
        i = sigmoid(xs @ p["W_xz"] + p["b_z"])
        f = 1.0 - i
    else:
        one, two = sigmoid(xs @ p["W_xf"] + p["b_f"]), sigmoid(xs @ p["W_xi"] + p["b_i"])
        f, i = one / (one + two), two / (one + two)
    n = xs @ p["W_xn"] + p["b_n"]
    kept = np.exp(np.cumsum(np.log(f), axis=0))
    expected = kept * case.state["h"] + kept * np.cumsum(i * n / kept, axis=0)
    np.testing.assert_allclose(run(case)[0], expected, rtol=1e-11)


def test_minlstm_gates_add_up_to_one_and_never_divide_zero_by_zero(make_case: Make) -> None:
    case = make_case("minlstm", T=1)
    _, gates = run(case)
    np.testing.assert_allclose(gates["f"] + gates["i"], 1.0, rtol=1e-14)
    case.params["b_f"][:] = case.params["b_i"][:] = -2e4  # both sigmoids are 0: only their ratio is left
    for name in ("W_xf", "W_xi"):
        case.params[name][:] = 0.0
    np.testing.assert_allclose(run(case)[1]["f"], 0.5, rtol=1e-14)


def test_the_context_of_scrn_is_a_running_mean(make_case: Make) -> None:
    """A constant input: s comes to x W_xs like 1 - alpha^t."""
    case = make_case("scrn", T=30)
    case.xs[:] = case.xs[0]
    done = unroll(case.cell, case.params, case.xs, {**case.state, "s": np.zeros_like(case.state["s"])})
    target = case.xs[0] @ case.params["W_xs"]
    for t in (0, 9, 29):
        np.testing.assert_allclose(done.states["s"][t].data, target * (1.0 - 0.95 ** (t + 1)), rtol=1e-12)


@pytest.mark.parametrize(("I", "H"), [(3, 3), (2, 4)])
def test_the_response_of_an_lru_to_an_impulse_is_a_sum_of_powers(I: int, H: int, make_case: Make) -> None:
    """y_k = Re(sum over n of lambda_n^k gamma_n (x B)_n C_n), and D x at once; and nothing forgets faster or slower."""
    case = make_case("lru", T=40, I=I, H=H)
    p = case.params
    case.xs[1:] = 0.0
    done = scan(case.cell, p, case.xs)  # from zero
    eigenvalues = np.exp(-np.exp(p["nu_log"]) + 1j * np.exp(p["theta_log"]))
    assert np.all(np.abs(eigenvalues) < 1.0)
    start = case.xs[0] @ (p["B_re"] + 1j * p["B_im"]) * np.exp(p["gamma_log"])
    h = np.array([start * eigenvalues**k for k in range(40)])
    y = (h @ (p["C_re"] + 1j * p["C_im"])).real
    y[0] += case.xs[0] * p["D"] if I == H else case.xs[0] @ p["D"]
    for name, expected in (("re", h.real), ("im", h.imag), ("y", y)):
        np.testing.assert_allclose(np.stack([s.data for s in done.states[name]]), expected, rtol=1e-11, atol=1e-14)
    np.testing.assert_array_equal(done.outputs.data, np.stack([s.data for s in done.states["y"]]))


def test_the_eigenvalues_of_an_lru_start_on_the_ring() -> None:
    """|lambda|^2 and the phase are uniform; gamma gives every unit the power of a white input."""
    H = 4000
    for options in ({}, {"r_min": 0.9, "r_max": 0.99, "max_phase": 0.3}):
        cell = load_cell("lru").cls(3, H, options)
        r_min, r_max, phase = cell.options.r_min, cell.options.r_max, cell.options.max_phase
        p = {name: value.data for name, value in init_cell(cell, np.random.default_rng(0)).items()}
        size = np.exp(-np.exp(p["nu_log"]))
        for values, low, high in ((size**2, r_min**2, r_max**2), (np.exp(p["theta_log"]), 0.0, phase)):
            assert low <= values.min() and values.max() <= high
            spread = (high - low) / np.sqrt(12)
            assert abs(values.mean() - (low + high) / 2) < 4 * spread / np.sqrt(H)
            assert abs(values.std() / spread - 1) < 0.05
        # sum over k of |lambda|^2k, times gamma^2, is 1
        np.testing.assert_allclose(np.exp(2 * p["gamma_log"]) / (1 - size**2), 1.0, rtol=1e-9)
        for name, std in (("B_re", 6**-0.5), ("B_im", 6**-0.5), ("C_re", H**-0.5), ("C_im", H**-0.5)):
            assert p[name].std() == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r_min": 0.5, "r_max": 0.5}, "expected 0 <= r_min < r_max <= 1, got r_min=0.5, r_max=0.5"),
        ({"r_min": -0.1}, "got r_min=-0.1"),
        ({"r_max": 1.5}, "r_max=1.5"),
        ({"r_max": np.nan}, "r_max"),
        ({"max_phase": 0.0}, "max_phase"),
    ],
)
def test_a_ring_that_cannot_be(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_cell("lru").cls(3, 4, options)


def test_fastgrnn_shares_its_matrices(make_case: Make) -> None:
    """With equal biases z = sigmoid(a) and n = tanh(a) of one a; nu at -inf and zeta at inf make it a UGRNN."""
    case = make_case("fastgrnn", T=3)
    case.params["b_n"][:] = case.params["b_z"]
    _, gates = run(case)
    np.testing.assert_allclose(np.arctanh(gates["n"]), np.log(gates["z"] / (1.0 - gates["z"])), rtol=1e-9)
    case.params["zeta"][:], case.params["nu"][:] = HIGH, -HIGH
    other = make_case("ugrnn", T=3)
    p = case.params
    other.params = {"W_xn": p["W"], "W_xg": p["W"], "W_hn": p["U"], "W_hg": p["U"], "b_n": p["b_n"], "b_g": p["b_z"]}
    other.state, other.xs = case.state, case.xs
    np.testing.assert_allclose(run(case)[0], run(other)[0], rtol=1e-14)


# ------------------------------------------------------------------------------------------- clockwork


def clockwork(H: int, periods: str, seed: int = 0) -> tuple[Any, dict[str, Array], Array]:
    """A cell, parameters from -1 to 1, and inputs for 17 timesteps of 2 rows."""
    cell = load_cell("clockwork").cls(3, H, {"periods": periods})
    rng = np.random.default_rng(seed)
    params = {name: rng.uniform(-1.0, 1.0, value.shape) for name, value in init_cell(cell, rng).items()}
    params["period"] = init_cell(cell, rng)["period"].data
    return cell, params, rng.normal(size=(17, 2, 3))


@pytest.mark.parametrize("begin", [0, 5])
def test_a_module_moves_where_its_period_divides_t_and_keeps_its_state_elsewhere(begin: int) -> None:
    """With periods 1 and 2 module 2 stands still at odd t; of four doubling ones all move at 0, 8 and 16."""
    for periods in ("1,2", "1,2,4,8"):
        cell, params, xs = clockwork(8, periods)
        clocks = [int(text) for text in periods.split(",")]
        state = {"h": np.full((2, 8), 0.1), "t": np.full((2, 1), float(begin))}
        done = unroll(cell, params, xs, state)
        states = [state["h"], *(value.data for value in done.states["h"])]
        size = 8 // len(clocks)
        for k, (old, new) in enumerate(itertools.pairwise(states)):
            moved = [
                bool(np.all(new[:, i * size : (i + 1) * size] != old[:, i * size : (i + 1) * size]))
                for i in range(len(clocks))
            ]
            kept = [
                bool(np.all(new[:, i * size : (i + 1) * size] == old[:, i * size : (i + 1) * size]))
                for i in range(len(clocks))
            ]
            strikes = [(begin + k) % T == 0 for T in clocks]
            assert moved == strikes and kept == [not strike for strike in strikes], (periods, k)


def test_every_module_at_every_step_is_the_simple_network(make_case: Make) -> None:
    case, plain = make_case("clockwork", T=5), make_case("rnn", T=5)
    cell = load_cell("clockwork").cls(3, 3, {"periods": "1"})
    params = {
        "period": np.ones(3),
        "W_xh": plain.params["W_xh"],
        "W_h0": plain.params["W_hh"],
        "b_h": plain.params["b_h"],
    }
    done = unroll(cell, params, case.xs)
    np.testing.assert_allclose(done.outputs.data, unroll(plain.cell, plain.params, case.xs).outputs.data, rtol=1e-14)


def test_a_module_hears_itself_and_slower_ones_alone() -> None:
    """The Jacobian of one step where all move: block (i, j) is zero for a module j that is faster than i."""
    cell, params, xs = clockwork(8, "1,2,4,8")
    h = Tensor(np.random.default_rng(1).uniform(-0.9, 0.9, (2, 8)), requires_grad=True)
    new = unroll(cell, params, xs[:1], {"h": h, "t": np.zeros((2, 1))}).outputs[0]
    reached = np.array([grad(ops.sum(new[:, unit]), h).data[0] != 0 for unit in range(8)])
    module = np.arange(8) // 2
    np.testing.assert_array_equal(reached, module[None, :] >= module[:, None])


def test_it_has_the_papers_number_of_recurrent_weights() -> None:
    """H^2 (g + 1) / 2g for g modules of one size; and modules of sizes that differ by one where g does not divide H."""
    for H, periods in ((12, "1,2,4"), (8, "1,2,4,8"), (6, "3"), (128, "1,2,4,8,16,32,64,128")):
        g = periods.count(",") + 1
        specs = specification(load_cell("clockwork").cls(2, H, {"periods": periods}))[1]
        count = sum(np.prod(spec.shape) for spec in specs.values() if spec.role == "recurrent")
        assert count == H * H * (g + 1) // (2 * g)
    for H, sizes in ((10, [3, 3, 2, 2]), (5, [2, 1, 1, 1]), (2, [1, 1]), (1, [1])):
        cell = load_cell("clockwork").cls(2, H)
        specs = specification(cell)[1]
        assert [specs[f"W_h{i}"].shape for i in range(len(sizes))] == [
            (H - sum(sizes[:i]), size) for i, size in enumerate(sizes)
        ]
        assert f"W_h{len(sizes)}" not in specs
        expected = np.repeat([1.0, 2.0, 4.0, 8.0][: len(sizes)], sizes)
        np.testing.assert_array_equal(init_cell(cell, np.random.default_rng(0))["period"].data, expected)


@pytest.mark.parametrize("periods", ["", "0,1", "2,1", "1,1", "1,,2", "1.5", "one", "-1", "1;2"])
def test_periods_that_cannot_be(periods: str) -> None:
    with pytest.raises(
        InputError, match="cell clockwork: expected whole numbers from 1 that grow as periods, as in 1,2,4,8"
    ):
        load_cell("clockwork").cls(3, 4, {"periods": periods})


# ----------------------------------------------------------------------------------------- echo states


def reservoir(H: int = 60, **options: Any) -> tuple[Any, dict[str, Tensor]]:
    cell = load_cell("esn").cls(3, H, options)
    return cell, init_cell(cell, np.random.default_rng(2))


@pytest.mark.parametrize(("leak", "radius"), [(1.0, 0.9), (0.5, 0.9), (0.3, 0.6)])
def test_two_start_states_converge_at_the_rate_of_the_effective_radius(leak: float, radius: float) -> None:
    """Without input and bias the state is pulled to 0, in the end by leak W + (1 - leak) 1 at each step."""
    cell, params = reservoir(leak=leak, radius=radius)
    effective = np.abs(np.linalg.eigvals(leak * params["W"].data + (1.0 - leak) * np.eye(60))).max()
    assert effective < 1.0
    params["b"].data[:] = 0.0
    start = np.random.default_rng(3).normal(size=(2, 60))
    done = unroll(cell, params, np.zeros((400, 2, 3)), {"h": start})
    size = np.linalg.norm(done.outputs.data[:, 0], axis=-1)
    rate = (size[-1] / size[-201]) ** (1 / 200)
    assert rate == pytest.approx(effective, abs=0.01)
    # with an input, too: the states forget where they came from
    xs = np.repeat(np.random.default_rng(4).normal(size=(400, 1, 3)), 2, axis=1)
    outputs = unroll(cell, reservoir(leak=leak, radius=radius)[1], xs, {"h": start}).outputs.data
    gap = np.abs(outputs[:, 0] - outputs[:, 1]).max(axis=-1)
    assert gap[0] > 0.1
    assert gap[-1] < 1e-6 * gap[0]


def test_above_a_radius_of_one_the_echo_does_not_die() -> None:
    cell, params = reservoir(leak=1.0, radius=1.5)
    params["b"].data[:] = 0.0
    start = np.random.default_rng(3).normal(size=(1, 60)) * 1e-6
    assert np.abs(unroll(cell, params, np.zeros((400, 1, 3)), {"h": start}).outputs.data[-1]).max() > 0.1


def test_only_the_readout_of_an_esn_is_trained() -> None:
    config = ModelConfig(cell="esn", hidden=20, layers=2, embed="onehot")
    model = build_model(config, 5, load_cell("esn"))
    params = model.init(np.random.default_rng(0))
    assert [name for name, value in params.items() if value.requires_grad] == ["readout.W", "readout.b"]
    assert model.count() == 20 * 5 + 5
    done = model.forward(params, np.arange(12).reshape(6, 2) % 5)
    assert all(layer.executor != "unroll" for layer in done.layers)
    found = grad(ops.sum(done.logits * done.logits), [params["readout.W"], params["readout.b"]])
    assert all(np.any(g.data) for g in found)


def test_options_that_cannot_be() -> None:
    for name, options, message in (
        ("esn", {"leak": 0.0}, r"cell esn: expected a leak in \(0, 1\], got 0.0"),
        (
            "esn",
            {"radius": -1.0},
            r"cell esn, parameter W: initialiser 'reservoir:-1.0,0.1': expected a radius above 0",
        ),
        ("esn", {"density": 1.5}, r"cell esn, parameter W: .* expected a density in \(0, 1\], got 1.5"),
        ("scrn", {"alpha": 1.0}, "cell scrn: expected slow >= 1 and 0 < alpha < 1"),
        ("lstm", {"chrono": 2.0}, "cell lstm, parameter b_f: .* expected a number of steps above 2, got 2"),
        ("lstm_peephole", {"variant": "CIGF"}, "cell lstm_peephole.*'variant'.*CIFG"),
    ):
        with pytest.raises(InputError, match=message):
            specification(load_cell(name).cls(3, 4, options))


# ---------------------------------------------------------------------------------------- start values


FORGET = {
    "lstm": ("b_f", 1.0), "lstm_peephole": ("b_f", 1.0), "forget_update": ("b_f", 1.0), "ugrnn": ("b_g", 1.0),
    "minimalrnn": ("b_u", 0.0), "janet": ("b_f", 1.0), "minlstm": ("b_f", 0.0), "fastgrnn": ("b_z", 1.0),
}  # fmt: skip


def test_forget_bias_holds_on_every_layer(cell_name: str) -> None:
    """In a stack of three, by default and by option, with the start values of the rest asked for otherwise."""
    options = load_cell(cell_name).cls.Options.__dataclass_fields__
    assert ("forget_bias" in options) is (cell_name in FORGET)
    if cell_name not in FORGET:
        return
    bias, default = FORGET[cell_name]
    for given, value in (({}, default), ({"forget_bias": 2.5}, 2.5)):
        config = ModelConfig(
            cell=cell_name, cell_options=given, hidden=4, layers=3, init="uniform:0.08", init_bias="uniform:0.01"
        )
        params = build_model(config, 5, load_cell(cell_name)).init(np.random.default_rng(0))
        for layer in range(3):
            got = params[f"layers.{layer}.{bias}"].data
            if value:
                np.testing.assert_array_equal(got, value)
            else:
                assert 0.0 < np.abs(got).max() <= 0.01


def test_a_coupled_gate_starts_at_the_same_forget_bias() -> None:
    """CIFG has no b_f: f = 1 - sigmoid(b_i) is sigmoid(-b_i)."""
    cell = load_cell("lstm_peephole").cls(3, 4, {"variant": "CIFG", "forget_bias": 1.5})
    params = init_cell(cell, np.random.default_rng(0))
    np.testing.assert_array_equal(params["b_i"].data, -1.5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_chrono_of_an_lstm_is_mirrored_on_every_layer(dtype: Any, guard: Any) -> None:
    """Tallec & Ollivier 2018: b_f = log U(1, T - 1), b_i = -b_f, exactly; other biases 0; the same on every device."""
    config = ModelConfig(cell="lstm", cell_options={"chrono": 100.0}, hidden=200, layers=2)
    model = build_model(config, 5, load_cell("lstm"))
    params = model.init(np.random.default_rng(0), dtype)
    for layer in range(2):
        forget, write = params[f"layers.{layer}.b_f"].data, params[f"layers.{layer}.b_i"].data
        np.testing.assert_array_equal(write, -forget)
        assert 0.0 <= forget.min() and forget.max() <= np.log(99.0)
        assert abs(np.exp(forget).mean() - 50.0) < 4 * 98 / np.sqrt(12 * 200)  # exp of it is uniform in 1 .. 99
        assert not params[f"layers.{layer}.b_o"].data.any()
    assert np.any(params["layers.0.b_f"].data != params["layers.1.b_f"].data)
    there = model.init(np.random.default_rng(0), dtype, guard.MODULE)
    assert list(there) == list(params)
    for name, value in params.items():
        np.testing.assert_array_equal(there[name].data.get(), value.data)


def test_chrono_of_the_others_is_on_the_gate_that_keeps() -> None:
    for name, bias in (("gru", "b_z"), ("janet", "b_f")):
        cell = load_cell(name).cls(3, 50, {"chrono": 20.0})
        biases = {k: v.data for k, v in init_cell(cell, np.random.default_rng(0)).items() if k.startswith("b_")}
        kept = biases.pop(bias)
        assert 0.0 <= kept.min() and np.log(10.0) < kept.max() <= np.log(19.0)
        assert not any(value.any() for value in biases.values())


@pytest.mark.parametrize("init", ["orthogonal", "identity:0.5"])
def test_a_matrix_initialiser_leaves_vectors_alone(cell_name: str, init: str) -> None:
    """--init is for every weight; a peephole is a weight and no matrix."""
    model = build_model(ModelConfig(cell=cell_name, hidden=6, layers=2, init=init), 5, load_cell(cell_name))
    params = model.init(np.random.default_rng(0), np.float64)
    own = specification(model.cells[0])[1]
    for name, spec in model.params().items():
        if spec.role in ("input", "recurrent"):
            assert spec.init_name == (init if len(spec.shape) == 2 else own[name.split(".")[-1]].init_name), name
    if cell_name == "lstm_peephole":
        assert 0.0 < np.abs(params["layers.1.p_o"].data).max() <= 1 / np.sqrt(6)
        model = build_model(ModelConfig(cell=cell_name, hidden=6, init="uniform:0.01"), 5, load_cell(cell_name))
        assert 0.0 < np.abs(model.init(np.random.default_rng(0))["layers.1.p_o"].data).max() <= 0.01


@pytest.mark.slow  # one of each cell is in test_testing.py
def test_every_variant_passes_its_own_check(variant: str, make_case: Make) -> None:
    """What `cells check` says: both executors, devices, masks, second gradients and the rest, in one call."""
    case = make_case(variant)
    cell, options = case.cell, dataclasses.asdict(case.cell.options)
    report = check_cell(type(cell), options=options, reference=case.bare, raises=False)
    # without a forget gate there is nothing for its bias to do
    noted = [("gradients", "right, but option forget_bias changes nothing")] if variant == "lstm_peephole-NFG" else []
    assert [(row.name, row.detail) for row in report.checks if row.outcome != "passed"] == noted
    assert len(report.checks) >= 18


def test_every_cell_is_compiled(variant: str, make_case: Make) -> None:
    case = make_case(variant, T=5)
    params = {name: Tensor(value, requires_grad=True) for name, value in case.params.items()}
    done = scan(case.cell, params, case.xs, case.state)
    assert done.executor in ("llvm", "numpy"), done.reason
    expected = case.reference()
    for name, value in done.state.items():
        np.testing.assert_allclose(value.data, expected[-1][name], rtol=1e-11, atol=1e-13)
