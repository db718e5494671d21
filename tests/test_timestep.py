"""The timestep: a state that the library counts, in every way in which a cell is run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import (
    Cell,
    InputError,
    ModelConfig,
    Param,
    PluginError,
    State,
    Tensor,
    Timestep,
    build_model,
    check_cell,
    grad,
    gradnorm,
    init_cell,
    load_cell,
    ops,
    scan,
    specification,
    unroll,
    wrap_cell,
)
from tinygrad_rnn.model import Model, detach
from tinygrad_rnn.testing.gradients import gradients
from tinygrad_rnn.testing.trial import Failed, Noted, Trial

Array = np.ndarray[Any, Any]
EXECUTORS = ("llvm", "numpy", "unroll")


class Counting(Cell):
    """h' says what t was, and adds x; w reaches h through a sine of t."""

    name = "counting"
    summary = "tells the timestep"
    citation = "written for a test"
    equation = "h' = t + x W + 0.5 * h * sin(w * t)"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,)), "t": Timestep()}

    def params(self) -> dict[str, Param]:
        return {"W": Param((self.I, self.H), "uniform", "input"), "w": Param((self.H,), "uniform", "recurrent")}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": s.t + x @ p.W + 0.5 * s.h * ops.sin(p.w * s.t)}


def formula(p: dict[str, Array], xs: Array, h: Array, t: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """Every h (T, B, H) and t (T, B, 1) after its step, in bare NumPy."""
    hs, ts = [], []
    for k, x in enumerate(xs):
        alive = np.ones((len(t), 1), bool) if mask is None else mask[k][:, None]
        h = np.where(alive, t + x @ p["W"] + 0.5 * h * np.sin(p["w"] * t), h)
        t = np.where(alive, t + 1, t)
        hs.append(h)
        ts.append(t)
    return np.stack(hs), np.stack(ts)


def numbers(T: int = 7, B: int = 3, seed: int = 0) -> tuple[Cell, dict[str, Array], Array]:
    rng = np.random.default_rng(seed)
    return Counting(2, 4), {"W": rng.normal(size=(2, 4)), "w": rng.normal(size=4)}, rng.normal(size=(T, B, 2))


def at(states: Any, name: str) -> Array:
    return np.stack([value.data for value in states[name]])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_it_counts_from_zero(executor: str) -> None:
    cell, p, xs = numbers()
    done = scan(cell, p, xs, executor=executor)
    assert done.executor == executor, done.reason
    hs, ts = formula(p, xs, np.zeros((3, 4)), np.zeros((3, 1)))
    np.testing.assert_allclose(done.outputs.data, hs, rtol=1e-12)
    np.testing.assert_array_equal(at(done.states, "t"), ts)
    np.testing.assert_array_equal(done.state["t"].data, np.full((3, 1), 7.0))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_next_window_counts_on(executor: str) -> None:
    """Truncation: three windows of any length are one sequence, and a window of other rows is theirs."""
    cell, p, xs = numbers(T=9)
    whole = unroll(cell, p, xs)
    state: Any = None
    pieces = []
    for part in (xs[:4], xs[4:5], xs[5:]):
        done = scan(cell, p, part, state, executor=executor)
        state = {name: value.data for name, value in done.state.items()}
        pieces.append(done.outputs.data)
    np.testing.assert_allclose(np.concatenate(pieces), whole.outputs.data, rtol=1e-12)
    fewer = scan(cell, p, xs[:2, :1], {name: value[2:] for name, value in state.items()}, executor=executor)
    np.testing.assert_array_equal(fewer.state["t"].data, [[11.0]])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_masked_row_does_not_advance(executor: str) -> None:
    cell, p, xs = numbers()
    mask = np.arange(7)[:, None] < np.array([7, 3, 0])
    mask[4, 0] = False  # a hole
    done = scan(cell, p, xs, mask=mask, executor=executor)
    hs, ts = formula(p, xs, np.zeros((3, 4)), np.zeros((3, 1)), mask)
    np.testing.assert_allclose(done.outputs.data, hs, rtol=1e-12)
    np.testing.assert_array_equal(at(done.states, "t"), ts)
    np.testing.assert_array_equal(done.state["t"].data.ravel(), [6, 3, 0])


@pytest.mark.parametrize("executor", ["llvm", "numpy"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_blocks_and_second_order(executor: str, masked: bool) -> None:
    cell, p, xs = numbers()
    mask = np.arange(7)[:, None] < np.array([7, 3, 0]) if masked else None
    found = []
    for run in ({"executor": "unroll"}, {"executor": executor, "recompute": 0}, {"executor": executor, "recompute": 3}):
        leaves = {name: Tensor(value, requires_grad=True) for name, value in {**p, "xs": xs}.items()}
        own = {name: leaves[name] for name in p}
        done = scan(cell, own, leaves["xs"], mask=mask, **run)  # type: ignore[arg-type]
        first = grad(ops.sum(done.outputs * done.outputs), list(leaves.values()), create_graph=True)
        second = grad(sum(ops.sum(g * g) for g in first), list(leaves.values()))
        found.append([value.data for value in (*first, *second)])
    for other in found[1:]:
        for got, expected in zip(other, found[0], strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_it_is_a_constant_on_the_tape_unless_somebody_asks() -> None:
    cell, p, xs = numbers()
    tensors = {name: Tensor(value, requires_grad=True) for name, value in p.items()}
    for executor in EXECUTORS:
        done = scan(cell, tensors, xs, executor=executor)
        assert not done.state["t"].requires_grad
        assert not any(value.requires_grad for value in done.states["t"])
        assert done.state["h"].requires_grad


# -------------------------------------------------------------------------------------------- the host


def model_of(*wraps: str, cell: str = "clockwork", hidden: int = 8, layers: int = 2) -> Model:
    return build_model(ModelConfig(cell=cell, hidden=hidden, layers=layers, wrap=wraps), 5, load_cell(cell))


@pytest.mark.parametrize("wraps", [(), ("layernorm", "residual", "zoneout:0.1", "recurrent_dropout:0.2")])
def test_every_layer_counts_inside_wrappers_too(wraps: tuple[str, ...]) -> None:
    model = model_of(*wraps)
    rng = np.random.default_rng(0)
    params = model.init(rng, np.float64)
    x = rng.integers(0, 5, (11, 3))
    out = model.forward(params, x, rng=np.random.default_rng(1))
    again = model.forward(params, x[:6], detach(out.state))
    for layer, later in zip(out.state, again.state, strict=True):
        np.testing.assert_array_equal(layer["t"].data, np.full((3, 1), 11.0))
        np.testing.assert_array_equal(later["t"].data, np.full((3, 1), 17.0))


def test_zoneout_takes_a_rate_for_each_state_but_the_timestep() -> None:
    cls = load_cell("clockwork").cls
    states = specification(wrap_cell(cls, ["zoneout:0.3"])(3, 4))[0]
    assert isinstance(states["t"], Timestep)
    assert set(wrap_cell(cls, ["zoneout:0.3"])(3, 4).noise()) == {"k_h"}
    with pytest.raises(InputError, match=r"expected one rate in \[0, 1\), as in zoneout:0.1, got 0.3,0.3"):
        wrap_cell(cls, ["zoneout:0.3,0.3"])(3, 4)
    assert "t' = k" not in wrap_cell(cls, ["zoneout:0.3"]).equation


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_stepper_counts_as_forward_does(dtype: Any) -> None:
    model = model_of()
    rng = np.random.default_rng(0)
    params = model.init(rng, dtype)
    x = rng.integers(0, 5, (20, 2))
    expected = model.forward(params, x)
    stepper = model.stepper(params, 2)
    for symbols, logits in zip(x, expected.logits.data, strict=True):
        np.testing.assert_allclose(stepper(symbols[None]), logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(stepper.state[1]["t"], np.full((2, 1), 20.0))


def test_gradnorm_does_not_list_it() -> None:
    model = model_of()
    rng = np.random.default_rng(0)
    params = model.init(rng, np.float64)
    x = rng.integers(0, 5, (16, 2))
    report = gradnorm(model, params, x, np.roll(x, -1, axis=0))
    assert {series.state for series in report.series} == {"h"}


# -------------------------------------------------------------------------------------------- its range


@pytest.mark.parametrize("executor", EXECUTORS)
def test_it_is_exact_up_to_the_end_of_its_dtype_and_stops_there(executor: str) -> None:
    """float32 has every whole number up to 2**24; the next would be the same once more, for ever."""
    cell, p, xs = numbers()
    narrow = {name: value.astype(np.float32) for name, value in p.items()}
    for last, given, inputs in ((2.0**24, narrow, xs.astype(np.float32)), (2.0**53, p, xs)):
        start = {"h": np.zeros((3, 4), inputs.dtype), "t": np.array([[last - 7], [0], [5]], inputs.dtype)}
        done = scan(cell, given, inputs, start, executor=executor)
        assert done.state["t"].data[0, 0] == last
        assert done.states["t"][5].data[0, 0] == last - 1
        start["t"] += 1
        with pytest.raises(InputError, match=rf"expected timesteps up to {int(last)}, which is as far as float\d\d"):
            scan(cell, given, inputs, start, executor=executor)


def test_a_stepper_stops_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    params = model.init(np.random.default_rng(0))
    stepper = model.stepper(params, 1)
    one = np.zeros((1, 1), np.int64)
    stepper(one)
    assert stepper.left == 2**24 - 1
    for layer in stepper.state:
        layer["t"] = np.full((1, 1), 2.0**24 - 1, np.float32)
    stepper.left = 1
    stepper(one)
    with pytest.raises(InputError, match="expected timesteps up to 16777216"):
        stepper(one)
    assert model_of(cell="lstm").stepper(model_of(cell="lstm").init(np.random.default_rng(0)), 1).left == math.inf


# -------------------------------------------------------------------------------------------- the contract


def test_a_cell_that_reads_it_passes_every_check() -> None:
    report = check_cell(Counting, raises=False)
    assert [(row.name, row.detail) for row in report.checks if row.outcome not in ("passed", "skipped")] == []


class Returning(Counting):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {**Counting.step(self, p, x, s), "t": s.t + 2.0}


class First(Counting):
    def state(self) -> dict[str, State]:
        return {"t": Timestep(), "h": State((self.H,))}


class Missing(Counting):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"H": s.t + x @ p.W + s.h * p.w}


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (Returning, "cell counting, state t: expected the library alone to count timesteps, got it from step"),
        (
            First,
            "the first state, which is the output: expected a state that step returns, got the timestep 't'; name one",
        ),
        (
            type("Named", (Counting,), {"output": "t"}),
            "counting, attribute output: expected a .* name one of h in the class",
        ),
        (type("Other", (Counting,), {"output": "z"}), "counting, attribute output: no state 'z'; known: h$"),
        (
            type("Alone", (Counting,), {"state": lambda self: {"t": Timestep()}}),
            "at least one state that step returns, got",
        ),
        (
            type("Unmade", (Counting,), {"state": lambda self: {"h": State((3,)), "t": Timestep}}),
            r"got the class Timestep as 't'; make one, Timestep\(\)$",
        ),
        (Missing, r"cell counting: expected step to return a dict with the states \['h'\], got \['H'\]"),
    ],
)
@pytest.mark.parametrize("run", [unroll, scan])
def test_slips(cls: type[Cell], text: str, run: Any) -> None:
    with pytest.raises(PluginError, match=text):
        cell = cls(2, 3)
        run(cell, init_cell(cell, np.random.default_rng(0)), np.zeros((2, 1, 2)))


class Slow(Counting):
    """u counts at every hundredth timestep, v at the 150th after 49, w never."""

    equation = "h' = tanh(x W + h * w) + where(t % 100 == 0, u, 0) + where((t + 101) % 150 == 0, v, 0)"
    never = False

    def params(self) -> dict[str, Param]:
        own = {name: Param((self.H,), "uniform", "recurrent") for name in ("u", "v", *(["z"] if self.never else []))}
        return {**Counting.params(self), **own}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = ops.tanh(x @ p.W + s.h * p.w)
        h = h + ops.where(ops.equal(ops.remainder(s.t, 100.0), 0.0), p.u, 0.0)
        return {"h": h + ops.where(ops.equal(ops.remainder(s.t + 101.0, 150.0), 0.0), p.v, 0.0)}


class Never(Slow):
    never = True
    deviations = "z is not read"


class Beyond(Slow):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = ops.tanh(x @ p.W + s.h * p.w) + ops.where(ops.equal(ops.remainder(s.t, 100.0), 0.0), p.u, 0.0)
        return {"h": h + ops.where(ops.equal(ops.remainder(s.t + 1.0, 1e4), 0.0), p.v, 0.0)}


def gradients_of(cls: type[Cell]) -> str:
    return gradients(Trial(cls, {}, 3, 4, 0, None))


def test_a_parameter_whose_clock_strikes_outside_the_window_is_no_fault() -> None:
    """In four timesteps v has no gradient; in two hundred it has."""
    assert gradients_of(Slow) == "6 of them, first and second order"
    with pytest.raises(
        Noted, match="parameter v is used at none of the timesteps that were tried: its gradient is zero"
    ):
        gradients_of(Beyond)


def test_a_parameter_that_no_timestep_reads_is_one() -> None:
    with pytest.raises(Failed, match=r"^parameter z is never used: no number depends on it, and its gradient is zero$"):
        gradients_of(Never)
