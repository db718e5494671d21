"""Initialisers that a cell brings itself: functions of (rng, shape, the cell's other arrays)."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Mapping
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
    bias,
    buffer,
    build_model,
    check_cell,
    init_cell,
    ops,
    register_cell,
    scan,
    specification,
    wrap_cell,
)
from tinygrad_rnn.cell import init_params
from tinygrad_rnn.plugins import PluginIdentity
from tinygrad_rnn.registry import CellEntry
from tinygrad_rnn.testing.contract import seed
from tinygrad_rnn.testing.trial import Failed, Trial

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


def ring(rng: np.random.Generator, shape: tuple[int, ...], arrays: Arrays, *, inner: float, outer: float) -> Array:
    """nu for |lambda| = exp(-exp(nu)), uniform over the ring between two radii (Orvieto et al. 2023)."""
    squares = rng.uniform(inner**2, outer**2, shape)
    return np.log(-0.5 * np.log(squares))


def normaliser(rng: np.random.Generator, shape: tuple[int, ...], arrays: Arrays) -> Array:
    """gamma = sqrt(1 - |lambda|^2), of what was drawn for nu."""
    return np.sqrt(1.0 - np.exp(-2.0 * np.exp(arrays["nu"])))


def triangle(rng: np.random.Generator, shape: tuple[int, ...], arrays: Arrays) -> Array:
    """1 on and below the diagonal."""
    return np.tri(*shape)


class Ring(Cell):
    """A diagonal recurrence whose initialisers are functions; gamma is declared before the nu that it reads."""

    name = "ring"
    summary = "diagonal recurrence"
    citation = "written for a test"
    equation = "h' = exp(-exp(nu)) * h + gamma * (x W) + b + h M"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {
            "gamma": Param((self.H,), normaliser, "recurrent"),
            "W": Param((self.I, self.H), "uniform", "input"),
            "nu": Param((self.H,), functools.partial(ring, inner=0.4, outer=0.9), "recurrent"),
            "M": buffer((self.H, self.H), triangle),
            "b": bias(self.H),
        }

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.exp(-ops.exp(p.nu)) * s.h + p.gamma * (x @ p.W) + p.b + 0.01 * (s.h @ p.M)}


def entry(cls: type[Cell]) -> CellEntry:
    return CellEntry(cls, PluginIdentity(cls.name, "", "", ""))


def drawn(cls: type[Cell], chance: int = 0, **facts: Any) -> dict[str, Array]:
    return {name: value.data for name, value in init_cell(cls(3, 50), np.random.default_rng(chance), **facts).items()}


def with_init(init: Any, name: str = "nu") -> type[Cell]:
    """`Ring` with another initialiser for one of its arrays."""

    def params(self: Any) -> dict[str, Param]:
        specs = Ring.params(self)
        return {**specs, name: Param(specs[name].shape, init, specs[name].role)}

    return type("Other", (Ring,), {"params": params})


def test_values_order_and_dtype() -> None:
    """gamma is drawn after the nu that it reads, whatever stands first; all others in declared order."""
    got = drawn(Ring)
    assert list(got) == ["gamma", "W", "nu", "M", "b"]
    radius = np.exp(-np.exp(got["nu"]))
    assert 0.4 <= radius.min() < 0.55
    assert 0.8 < radius.max() <= 0.9
    np.testing.assert_array_equal(got["gamma"], np.sqrt(1.0 - np.exp(-2.0 * np.exp(got["nu"]))))
    np.testing.assert_array_equal(got["M"], np.tril(np.ones((50, 50))))
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(got["W"], rng.uniform(-(50**-0.5), 50**-0.5, (3, 50)))
    np.testing.assert_array_equal(got["nu"], ring(rng, (50,), {}, inner=0.4, outer=0.9))
    short = drawn(Ring, dtype=np.float32)
    for name, value in got.items():  # gamma from nu as it was drawn, before that was rounded
        assert short[name].dtype == np.float32
        np.testing.assert_array_equal(short[name], value.astype(np.float32))


def test_a_seed_decides_and_another_seed_gives_others(guard: Any) -> None:
    one, two, other = drawn(Ring), drawn(Ring), drawn(Ring, 1)
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name])
    assert np.any(one["nu"] != other["nu"]) and np.any(one["gamma"] != other["gamma"])
    there = init_cell(Ring(3, 50), np.random.default_rng(0), np.float64, guard.MODULE)
    for name, value in there.items():
        np.testing.assert_array_equal(value.data.get(), one[name])
        assert value.requires_grad is (name != "M")


def test_a_function_that_draws_before_it_waits_changes_nothing() -> None:
    """What it had drawn when it met an array that is not there yet is drawn again, from the same place."""

    def early(rng: np.random.Generator, shape: tuple[int, ...], arrays: Arrays) -> Array:
        return rng.normal(size=shape) + 0.0 * arrays["nu"]

    got = drawn(with_init(early, "gamma"))
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(got["W"], rng.uniform(-(50**-0.5), 50**-0.5, (3, 50)))
    np.testing.assert_array_equal(got["nu"], ring(rng, (50,), {}, inner=0.4, outer=0.9))
    np.testing.assert_array_equal(got["gamma"], rng.normal(size=50))


@pytest.mark.parametrize("wraps", [(), ("layernorm", "highway", "recurrent_dropout:0.2", "zoneout:0.1")])
def test_every_layer_reads_its_own_arrays_inside_wrappers_too(wraps: tuple[str, ...]) -> None:
    register_cell(Ring)
    config = ModelConfig(cell="ring", hidden=6, layers=3, embed="4", wrap=wraps)
    model = build_model(config, 5, entry(Ring))
    params = model.init(np.random.default_rng(3), np.float64)
    assert list(params) == list(model.params())
    for k in range(3):
        nu, gamma = params[f"layers.{k}.nu"].data, params[f"layers.{k}.gamma"].data
        np.testing.assert_array_equal(gamma, np.sqrt(1.0 - np.exp(-2.0 * np.exp(nu))))
    assert np.any(params["layers.1.nu"].data != params["layers.2.nu"].data)
    again = model.init(np.random.default_rng(3), np.float64)
    assert all(np.array_equal(params[name].data, again[name].data) for name in params)


def test_what_a_function_draws_is_the_cells_whatever_init_asks_for() -> None:
    config = ModelConfig(cell="ring", hidden=4, layers=1, init="normal:0.01", init_bias="constant:2")
    specs = build_model(config, 5, entry(Ring)).params()
    told = {name.removeprefix("layers.0."): spec.init_name for name, spec in specs.items()}
    assert told["nu"] == "ring(inner=0.4, outer=0.9)"
    assert told["gamma"] == "normaliser"
    assert told["M"] == "triangle"
    assert told["W"] == "normal:0.01"
    assert told["b"] == "constant:2"


def test_a_cell_with_functions_is_checked_copied_pickled_and_compiled() -> None:
    assert {row.outcome for row in check_cell(Ring).checks} == {"passed", "skipped"}
    for cell in (copy.deepcopy(Ring(2, 3)), pickle.loads(pickle.dumps(Ring(2, 3)))):
        done = scan(cell, init_cell(cell, np.random.default_rng(0)), np.ones((4, 2, 2)))
        assert done.executor != "unroll"
    specs = specification(Ring(2, 3))[1]
    for copied in (copy.deepcopy(specs), pickle.loads(pickle.dumps(specs))):
        ours, theirs = (init_params(s, np.random.default_rng(0)) for s in (specs, copied))
        assert all(np.array_equal(ours[name].data, theirs[name].data) for name in ours)
        assert {name: s.init_name for name, s in copied.items()} == {name: s.init_name for name, s in specs.items()}


# --------------------------------------------------------------------------------------------- faults


def unknown(rng: Any, shape: Any, arrays: Any) -> Any:
    return arrays["gama"]


def itself(rng: Any, shape: Any, arrays: Any) -> Any:
    return arrays["nu"]


def circular(rng: Any, shape: Any, arrays: Any) -> Any:
    return arrays["gamma"]


def wrong_shape(rng: Any, shape: Any, arrays: Any) -> Any:
    return np.zeros((2, *shape))


def wrong_dtype(rng: Any, shape: Any, arrays: Any) -> Any:
    return np.zeros(shape, np.float32)


def a_number(rng: Any, shape: Any, arrays: Any) -> Any:
    return 0.5


def infinite(rng: Any, shape: Any, arrays: Any) -> Any:
    return np.full(shape, np.inf)


def failing(rng: Any, shape: Any, arrays: Any) -> Any:
    return np.linalg.cholesky(-np.eye(3))


def without_arrays(rng: Any, shape: Any) -> Any:
    return np.zeros(shape)


def writing(rng: Any, shape: Any, arrays: Any) -> Any:
    W = arrays["W"]
    W += 1.0
    return np.zeros(shape)


HERE = r"cell ring, parameter nu, initialiser {} \(test_initialisers\.py:\d+\): {}"


@pytest.mark.parametrize(
    ("init", "text"),
    [
        (unknown, r"no array 'gama'; did you mean gamma\?"),
        (wrong_shape, r"expected an array of shape \(50,\) in float64, got \(2, 50\) float64"),
        (wrong_dtype, r"expected an array of shape \(50,\) in float64, got \(50,\) float32"),
        (a_number, r"expected an array of shape \(50,\) in float64, got 0\.5"),
        (infinite, r"expected finite numbers, got inf at \[0\]"),
        (failing, r"LinAlgError: Matrix is not positive definite"),
        (without_arrays, r"TypeError: without_arrays\(\) takes 2 positional arguments but 3 were given"),
        (writing, r"ValueError: output array is read-only"),
    ],
)
def test_a_fault_names_cell_parameter_file_and_line(init: Callable[..., Any], text: str) -> None:
    with pytest.raises(PluginError, match=HERE.format(init.__name__, text)) as caught:
        drawn(with_init(init))
    assert "\n" not in str(caught.value)
    register_cell(Ring)
    config = ModelConfig(cell="ring", hidden=50, layers=2, embed="3")
    with pytest.raises(PluginError, match=r"cell ring, parameter layers\.0\.nu, initialiser"):
        build_model(config, 5, entry(with_init(init))).init(np.random.default_rng(0))


def test_the_line_is_the_one_that_failed() -> None:
    with pytest.raises(PluginError) as caught:
        drawn(with_init(writing))
    line = writing.__code__.co_firstlineno + 2
    assert f"(test_initialisers.py:{line})" in str(caught.value)


def test_functions_that_wait_for_each_other_are_refused() -> None:
    with pytest.raises(PluginError, match="do not wait for each other, got: gamma reads nu; nu reads gamma"):
        drawn(with_init(circular))
    with pytest.raises(
        PluginError, match=HERE.format("itself", "expected another array of the cell, got 'nu', the one")
    ):
        drawn(with_init(itself))


class Callable_:
    def __call__(self, rng: Any, shape: Any, arrays: Any) -> Any:
        return np.zeros(shape)


def closure(value: float) -> Callable[..., Array]:
    def inner(rng: Any, shape: Any, arrays: Any) -> Array:
        return np.full(shape, value)

    return inner


@pytest.mark.parametrize(
    ("init", "text"),
    [
        (lambda rng, shape, arrays: np.zeros(shape), "a function with a name, and with its arguments as keywords"),
        (closure(2.0), "a function with a name, and with its arguments as keywords of functools.partial"),
        (functools.partial(ring, 0.3), "a function with a name, and with its arguments as keywords"),
        (functools.partial(ring, inner=np.zeros(2)), "numbers, text, or tuples of these as arguments"),
        (Callable_(), r"the name of an initialiser or a function of \(rng, shape, arrays\)"),
        (3.0, r"the name of an initialiser or a function of \(rng, shape, arrays\), got 3.0"),
        (np.zeros, r"the name of an initialiser or a function of \(rng, shape, arrays\)"),
    ],
)
def test_what_cannot_be_written_down_is_refused(init: Any, text: str) -> None:
    with pytest.raises(PluginError, match=f"cell ring, parameter nu: expected {text}"):
        specification(with_init(init)(3, 4))


def of_the_world(rng: Any, shape: Any, arrays: Any) -> Any:
    return np.random.normal(size=shape)  # noqa: NPY002


def of_its_own(rng: Any, shape: Any, arrays: Any) -> Any:
    return np.random.default_rng().normal(size=shape)


CALLS: list[float] = []


def remembering(rng: Any, shape: Any, arrays: Any) -> Any:
    CALLS.append(0.0)
    return np.full(shape, float(len(CALLS)))


@pytest.mark.parametrize(
    ("init", "text"),
    [
        (of_the_world, "an initialiser draws from the global random numbers"),
        (of_its_own, "initial parameters from the same seed"),
        (remembering, "initial parameters from the same seed"),
    ],
)
def test_check_finds_what_is_no_function_of_rng(init: Callable[..., Any], text: str) -> None:
    with pytest.raises(Failed, match=text):
        seed(Trial(with_init(init), {}, 3, 4, 0, None))


def test_nothing_random_is_no_fault() -> None:
    """A cell of masks alone has the same parameters from every seed."""

    class Masks(Ring):
        def params(self) -> dict[str, Param]:
            own = {name: spec for name, spec in Ring.params(self).items() if name in ("M", "b")}
            return {"W": Param((self.I, self.H), triangle, "input"), **own}

        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            return {"h": ops.tanh(x @ p.W + s.h @ p.M + p.b)}

    assert seed(Trial(Masks, {}, 3, 4, 0, None)) == "the same seed gives the same parameters; nothing in them is random"


def test_numbers_that_the_dtype_cannot_hold_are_an_error() -> None:
    def large(rng: Any, shape: Any, arrays: Any) -> Any:
        return np.full(shape, 1e300)

    assert drawn(with_init(large, "b"))["b"][0] == 1e300
    with pytest.raises(InputError, match="parameter b: initialiser 'large': expected numbers that float32 can hold"):
        drawn(with_init(large, "b"), dtype=np.float32)


def test_wrapped_cells_keep_the_functions() -> None:
    cell = wrap_cell(Ring, ["layernorm", "residual"])(3, 4)
    assert specification(cell)[1]["nu"].init_name == "ring(inner=0.4, outer=0.9)"
    params = init_cell(cell, np.random.default_rng(0))
    np.testing.assert_array_equal(params["gamma"].data, np.sqrt(1.0 - np.exp(-2.0 * np.exp(params["nu"].data))))
