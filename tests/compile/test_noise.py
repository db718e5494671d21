"""Random numbers that a step reads, and wrappers that ask for them: compiled code and `unroll` see the same ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compare import LAYOUTS, compare, compare_float32, laid_out, make_case

from tinygrad_rnn import (
    Cell,
    Noise,
    Param,
    PluginError,
    ShapeError,
    State,
    bias,
    draw_noise,
    input_matrix,
    load_cell,
    ops,
    recurrent_matrix,
    scan,
    unroll,
    wrap_cell,
)

WRAPS: dict[str, list[str]] = {
    "zoneout": ["zoneout:0.3"],
    "recurrent_dropout": ["recurrent_dropout:0.4"],
    "layernorm": ["layernorm"],
    "residual": ["residual"],
    "highway": ["highway"],
    "twice": ["zoneout:0.2", "residual", "residual", "zoneout:0.1"],
    "all": ["layernorm", "zoneout:0.2", "recurrent_dropout:0.1", "residual", "highway:-2"],
}


class Noisy(Cell):
    """Noise of each timestep in a product, and noise of the whole sequence in another and in a state."""

    name = "noisy"
    summary = "a cell of a test"
    citation = "none"
    equation = "h' = tanh(x W + (h * a) U + n m V + b); n' = m + n / 2"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,)), "n": State((2,))}

    def params(self) -> dict[str, Param]:
        return {
            "W": input_matrix(self.I, self.H),
            "U": recurrent_matrix(self.H),
            "V": Param((2, self.H), "uniform", "recurrent"),
            "b": bias(self.H),
        }

    def noise(self) -> dict[str, Noise]:
        return {"a": Noise((self.H,), 0.7), "m": Noise((2,), 0.5, "sequence", 3.0)}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(x @ p.W + (s.h * p.a) @ p.U + (s.n * p.m) @ p.V + p.b), "n": p.m + 0.5 * s.n}


class Bare(Noisy):
    """The new state is the noise itself."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {**super().step(p, x, s), "n": p.m}


class Taken(Noisy):
    """A name that a state has already."""

    def noise(self) -> dict[str, Noise]:
        return {"n": Noise((2,), 0.5)}


def wrapped(name: str, wraps: list[str], I: int = 3, H: int = 4) -> Cell:
    return wrap_cell(load_cell(name).cls, wraps)(I, H)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("wraps", list(WRAPS))
@pytest.mark.parametrize("name", ["lstm", "mut2"])
def test_wrapped_cells(executor: str, name: str, wraps: str, masked: bool) -> None:
    for I, noisy in ((3, True), (4, False)):
        done = compare(executor, make_case(wrapped(name, WRAPS[wraps], I), masked=masked, noisy=noisy), "everything")
        assert done.executor == executor, done.reason


@pytest.mark.parametrize("wraps", ["zoneout", "recurrent_dropout", "all"])
def test_second_gradients_see_the_noise(executor: str, wraps: str) -> None:
    case = make_case(wrapped("gru", WRAPS[wraps]), T=3, noisy=True, masked=True)
    compare(executor, case, "everything", second=True, bound=1e-10)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_blocks_take_their_part_of_the_noise(executor: str, length: int) -> None:
    done = compare(executor, make_case(wrapped("lstm", WRAPS["all"]), T=7, noisy=True), "everything", recompute=length)
    assert "blocks" in done.reason


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_noise_in_any_layout(executor: str, layout: str) -> None:
    compare(executor, laid_out(make_case(wrapped("lstm", WRAPS["all"]), noisy=True), layout), "everything")


def test_noise_in_float32(executor: str) -> None:
    compare_float32(executor, make_case(wrapped("lstm", WRAPS["all"]), noisy=True), "outputs")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cls", [Noisy, Bare])
def test_a_cell_with_noise_of_its_own(executor: str, cls: type[Cell], masked: bool) -> None:
    case = make_case(cls(3, 4), noisy=True, masked=masked)
    done = compare(executor, case, "everything", second=True, bound=1e-10)
    assert done.executor == executor, done.reason


def test_outside_training_a_step_reads_the_mean(executor: str) -> None:
    compare(executor, make_case(Noisy(3, 4)), "everything")
    with pytest.raises(PluginError, match="state n: expected"):  # a number is no state
        unroll(Bare(3, 4), make_case(Bare(3, 4)).params, np.ones((2, 3, 3)))


def test_training_and_evaluation_are_programs_of_their_own(executor: str) -> None:
    """The same cell object by turns: neither gets the other's code."""
    cell = wrapped("lstm", ["zoneout:0.5"])
    case = make_case(cell, noisy=True)
    by_turns = [scan(cell, case.params, case.xs, noise=noise, executor=executor) for noise in (None, case.noise) * 2]
    outputs = [done.outputs.data for done in by_turns]
    assert np.array_equal(outputs[0], outputs[2]) and np.array_equal(outputs[1], outputs[3])
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    means = {name: np.full_like(value, 0.5) for name, value in (case.noise or {}).items()}
    np.testing.assert_allclose(scan(cell, case.params, case.xs, noise=means).outputs.data, outputs[0], rtol=1e-12)


def test_noise_is_drawn_as_declared(rng: np.random.Generator) -> None:
    drawn = draw_noise(Noisy(3, 4), 200, 50, rng)
    assert {name: value.shape for name, value in drawn.items()} == {"a": (200, 50, 4), "m": (200, 50, 2)}
    assert set(np.unique(drawn["a"])) == {0.0, 1.0} and set(np.unique(drawn["m"])) == {0.0, 3.0}
    assert abs(drawn["a"].mean() - 0.7) < 5 * (0.7 * 0.3 / 40_000) ** 0.5  # five standard deviations
    assert np.array_equal(drawn["m"], np.broadcast_to(drawn["m"][:1], (200, 50, 2)))  # one for the sequence
    assert not np.array_equal(drawn["a"][0], drawn["a"][1])
    again = draw_noise(Noisy(3, 4), 200, 50, np.random.default_rng(3))
    assert np.array_equal(again["a"], draw_noise(Noisy(3, 4), 200, 50, np.random.default_rng(3))["a"])
    assert draw_noise(load_cell("lstm").cls(3, 4), 2, 2, rng) == {}


def test_what_does_not_fit_is_told() -> None:
    case = make_case(Noisy(3, 4), noisy=True)
    assert case.noise is not None
    plain = make_case(load_cell("rnn").cls(3, 4))
    short = {name: value[1:] for name, value in case.noise.items()}
    for run in (unroll, scan):
        with pytest.raises(ShapeError, match=r"expected the noise a \(4, 3, 4\), m \(4, 3, 2\), got a \(3, 3, 4\)"):
            run(case.cell, case.params, case.xs, noise=short)
        with pytest.raises(ShapeError, match="expected the noise none, got a"):
            run(plain.cell, plain.params, plain.xs, noise=case.noise)
    with pytest.raises(PluginError, match=r"names in noise\(\) that no parameter or state has, got 'n'"):
        draw_noise(Taken(3, 4), 2, 2, np.random.default_rng(0))
