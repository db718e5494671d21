"""Optimisers against PyTorch and against bare formulas; clipping; the learning-rate schedule."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_rnn import guard
from tinygrad_rnn.config import RECIPES, OptimConfig
from tinygrad_rnn.errors import DtypeError, InputError, PluginError, ShapeError
from tinygrad_rnn.optim import (
    BLOCK,
    OPTIMIZERS,
    SHARED,
    Block,
    Optimizer,
    State,
    build_optimizer,
    check_optimizer,
    check_settings,
    clip,
    clip_norm,
    clip_value,
    global_norm,
    init_state,
    learning_rate,
    overflowing,
    pieces,
    register_optimizer,
    unread_settings,
    update,
)
from tinygrad_rnn.plugins import available, load

Arrays = dict[str, np.ndarray[Any, Any]]

# Every rule, and every setting that changes its equation.
CONFIGS = {
    "adam": OptimConfig(optim="adam"),
    "adam-eps": OptimConfig(optim="adam", beta1=0.8, beta2=0.9, eps=1e-2),
    "adam-zero-betas": OptimConfig(optim="adam", beta1=0.0, beta2=0.0, eps=1e-3),
    "adamw": OptimConfig(optim="adamw", weight_decay=0.1),
    "adamw-default": OptimConfig(optim="adamw"),
    "rmsprop": OptimConfig(optim="rmsprop"),
    "rmsprop-eps": OptimConfig(optim="rmsprop", decay=0.5, eps=1e-2),
    "rmsprop-momentum": OptimConfig(optim="rmsprop", momentum=0.9),
    "rmsprop-momentum-l2": OptimConfig(optim="rmsprop", momentum=0.5, weight_decay=0.1),
    "adagrad-l2": OptimConfig(optim="adagrad", eps=0.0, weight_decay=0.1),
    "adagrad": OptimConfig(optim="adagrad", eps=0.0),
    "sgd": OptimConfig(optim="sgd"),
    "sgd-momentum": OptimConfig(optim="sgd", momentum=0.9),
    "sgd-l2": OptimConfig(optim="sgd", weight_decay=0.1),
    "sgd-momentum-l2": OptimConfig(optim="sgd", momentum=0.9, weight_decay=0.1),
}


def rule(config: OptimConfig) -> Optimizer:
    return build_optimizer(config)[0]


def make_params(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "W": rng.normal(size=(7, 5)),
        "b": rng.normal(size=5),
        "scale": np.array(0.3),
        "large": rng.normal(size=(1, BLOCK + 3)),
        "empty": np.zeros((0, 4)),
    }


def gradients(params: Arrays, steps: int, seed: int = 1) -> Iterator[Arrays]:
    """Gradients of very different sizes, some exactly zero: where eps and bias correction matter."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        yield {
            k: np.asarray(rng.normal(size=p.shape) * 10.0 ** rng.integers(-6, 2, size=p.shape))
            for k, p in params.items()
        }


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.torch
def test_against_torch_over_fifty_steps(name: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the other opinion here; it is not installed")
    config = CONFIGS[name]
    ours = make_params()
    theirs = {k: torch.tensor(p.copy(), dtype=torch.float64, requires_grad=True) for k, p in ours.items()}
    values, lr = list(theirs.values()), 3e-2
    betas, l2 = (config.beta1, config.beta2), config.weight_decay or 0.0
    optimiser = {
        "adam": lambda: torch.optim.Adam(values, lr=lr, betas=betas, eps=config.eps),
        "adamw": lambda: torch.optim.AdamW(
            values, lr=lr, betas=betas, eps=config.eps, **({} if config.weight_decay is None else {"weight_decay": l2})
        ),
        "rmsprop": lambda: torch.optim.RMSprop(
            values, lr=lr, alpha=config.decay, eps=config.eps, momentum=config.momentum, weight_decay=l2
        ),
        "adagrad": lambda: torch.optim.Adagrad(values, lr=lr, eps=config.eps, weight_decay=l2),
        "sgd": lambda: torch.optim.SGD(values, lr=lr, momentum=config.momentum, weight_decay=l2),
    }[config.optim]()
    state = init_state(rule(config), ours)
    for step, grads in enumerate(gradients(ours, 50)):
        rate = lr * 0.97**step  # a schedule must reach both
        optimiser.param_groups[0]["lr"] = rate
        for k, tensor in theirs.items():
            tensor.grad = torch.tensor(grads[k])
        optimiser.step()
        update(rule(config), ours, grads, state, rate)
    for k, tensor in theirs.items():
        np.testing.assert_allclose(ours[k], tensor.detach().numpy(), rtol=1e-12, atol=1e-12)


def bare_update(config: OptimConfig, p: Any, g: Any, slots: dict[str, Any], t: int, lr: float) -> Any:
    """The equations once more, with plain NumPy expressions and no sharing."""
    if config.optim in ("rmsprop", "adagrad", "sgd"):
        g = g + (config.weight_decay or 0.0) * p
    if config.optim in ("adam", "adamw"):
        slots["m"] = config.beta1 * slots.get("m", 0) + (1 - config.beta1) * g
        slots["v"] = config.beta2 * slots.get("v", 0) + (1 - config.beta2) * g**2
        m_hat, v_hat = slots["m"] / (1 - config.beta1**t), slots["v"] / (1 - config.beta2**t)
        decoupled = 0.01 if config.weight_decay is None else config.weight_decay
        shrink = lr * decoupled if config.optim == "adamw" else 0
        return p - shrink * p - lr * m_hat / (np.sqrt(v_hat) + config.eps)
    if config.optim == "rmsprop":
        slots["v"] = config.decay * slots.get("v", 0) + (1 - config.decay) * g**2
        slots["u"] = config.momentum * slots.get("u", 0) + g / (np.sqrt(slots["v"]) + config.eps)
        return p - lr * slots["u"]
    if config.optim == "adagrad":
        slots["v"] = slots.get("v", 0) + g * g
        return p - lr * g / np.sqrt(slots["v"] + config.eps)
    slots["u"] = config.momentum * slots.get("u", 0) + g
    return p - lr * slots["u"]


@pytest.mark.parametrize("name", [*sorted(CONFIGS), "adagrad-eps"])
def test_against_bare_formulas(name: str) -> None:
    config = CONFIGS.get(name) or OptimConfig(optim="adagrad", eps=1e-2)  # torch puts this eps elsewhere
    params = make_params()
    expected: dict[str, Any] = {k: p.copy() for k, p in params.items()}
    slots: dict[str, dict[str, Any]] = {k: {} for k in params}
    state = init_state(rule(config), params)
    for t, grads in enumerate(gradients(params, 50), start=1):
        untouched = copy.deepcopy(grads)
        update(rule(config), params, grads, state, 1e-2)
        for k, g in grads.items():
            expected[k] = bare_update(config, expected[k], g, slots[k], t, 1e-2)
            np.testing.assert_array_equal(g, untouched[k])
    assert state["step"] == 50
    for k in params:
        np.testing.assert_allclose(params[k], expected[k], rtol=1e-11, atol=1e-12)
        for slot, arrays in state["slots"].items():
            np.testing.assert_allclose(arrays[k], slots[k][slot], rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_float32_stays_float32_and_in_place(name: str) -> None:
    config = CONFIGS[name]
    params = {k: p.astype(np.float32) for k, p in make_params().items()}
    objects = dict(params)
    state = init_state(rule(config), params)
    for grads in gradients(params, 3):
        update(rule(config), params, {k: g.astype(np.float32) for k, g in grads.items()}, state, np.float64(1e-3))
    for k, p in params.items():
        assert p is objects[k]
        assert p.dtype == np.float32
        assert all(arrays[k].dtype == np.float32 for arrays in state["slots"].values())


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_non_contiguous_parameters_are_updated_too(name: str) -> None:
    config = CONFIGS[name]
    base = np.random.default_rng(3).normal(size=(BLOCK, 6))
    plain, view = base.T.copy(), base.T
    grad = np.random.default_rng(4).normal(size=plain.shape)
    states = init_state(rule(config), {"W": plain}), init_state(rule(config), {"W": view})
    for _ in range(3):
        update(rule(config), {"W": plain}, {"W": grad}, states[0], 0.1)
        update(rule(config), {"W": view}, {"W": np.asfortranarray(grad)}, states[1], 0.1)
    np.testing.assert_array_equal(view, plain)
    np.testing.assert_array_equal(base.T, plain)


class Foreign:
    """An array of another owner, as CuPy's: NumPy's functions are answered, conversion to NumPy is refused."""

    def __init__(self, inner: np.ndarray[Any, Any]) -> None:
        self.inner = inner
        self.shape, self.dtype, self.size, self.flags = inner.shape, inner.dtype, inner.size, inner.flags

    def __array__(self, *_: object, **__: object) -> np.ndarray[Any, Any]:
        raise TypeError("implicit conversion to a NumPy array is not allowed")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (), **options: Any) -> Any:
        assert all(isinstance(i, Foreign | float | int) for i in (*inputs, *out)), "host and device mixed"
        plain = [i.inner if isinstance(i, Foreign) else i for i in inputs]
        if out:
            options["out"] = tuple(o.inner for o in out)
        result = getattr(ufunc, method)(*plain, **options)
        return out[0] if out else Foreign(np.asarray(result))

    def __array_function__(self, function: Any, _: Any, args: Any, options: Any) -> Any:
        assert function in (np.zeros_like, np.empty_like)
        return Foreign(function(args[0].inner, **options))

    def __add__(self, other: Foreign) -> Any:
        return np.add(self, other)

    def sum(self) -> Foreign:
        return Foreign(np.asarray(self.inner.sum()))

    def item(self) -> Any:
        return self.inner.item()


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_owner_of_the_arrays_decides(name: str) -> None:
    config, plain = CONFIGS[name], make_params()
    foreign = {k: Foreign(p.copy()) for k, p in plain.items()}
    states = init_state(rule(config), plain), init_state(rule(config), foreign)
    for grads in gradients(plain, 3):
        others = {k: Foreign(g.copy()) for k, g in grads.items()}
        clip_value(grads, 5.0)
        clip_value(others, 5.0)
        assert clip_norm(others, 1.0) == pytest.approx(clip_norm(grads, 1.0), rel=1e-14)
        update(rule(config), plain, grads, states[0], 1e-2)
        update(rule(config), foreign, others, states[1], 1e-2)
    for k, p in plain.items():
        np.testing.assert_allclose(foreign[k].inner, p, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_block_is_updated_as_its_arrays_are(name: str) -> None:
    optimizer = rule(CONFIGS[name])
    params = make_params()
    block, pulled = Block.copy_of(params), Block.zeros_like(params)
    states = init_state(optimizer, params), init_state(optimizer, block)
    for grads in gradients(params, 5):
        pulled.assign(grads)
        assert clip_norm(pulled, 3.0) == pytest.approx(clip_norm(grads, 3.0), rel=1e-14)
        pulled.assign(grads)  # two norms may differ in their last bit
        update(optimizer, params, grads, states[0], 1e-2)
        update(optimizer, block, pulled, states[1], 1e-2)
    for k, p in params.items():
        np.testing.assert_array_equal(block[k], p)
        for slot, arrays in states[0]["slots"].items():
            np.testing.assert_array_equal(states[1]["slots"][slot][k], arrays[k])


def test_the_arrays_of_a_block_are_views_of_its_vector() -> None:
    block = Block.copy_of({"W": np.arange(6.0).reshape(2, 3), "b": np.full(2, 7.0)})
    twins = [block, copy.deepcopy(block), pickle.loads(pickle.dumps(block))]
    np.testing.assert_array_equal(block.flat, [0, 1, 2, 3, 4, 5, 7, 7])
    for twin in twins:
        twin["W"][1, 2] = 8.0
        twin.flat[-1] = 9.0
        np.testing.assert_array_equal(twin.flat, [0, 1, 2, 3, 4, 8, 7, 9])
        assert twin["b"][1] == 9.0
    assert not any(np.shares_memory(block.flat, twin.flat) for twin in twins[1:])


def test_a_rule_that_is_not_elementwise_gets_every_array_by_name() -> None:
    seen: list[list[str]] = []

    class Whole(Optimizer):
        name, summary, citation = "whole", "s", "c"

        def slots(self) -> tuple[str, ...]:
            return ("m",)

        def update(self, params: Any, grads: Any, slots: Any, step: int, lr: float) -> None:
            seen.append([*params, *grads, *slots["m"]])

    class Single(Whole):
        elementwise = True

    block = Block.copy_of({"W": np.ones((2, 2)), "b": np.ones(2)})
    for kind in (Whole, Single):
        update(kind(OptimConfig()), block, block, init_state(kind(OptimConfig()), block), 0.1)
    assert seen == [["W", "b"] * 3, ["all"] * 3]


def test_slots_are_what_the_contract_says() -> None:
    params = {"b": np.ones(2)}
    slots = {name: sorted(init_state(rule(config), params)["slots"]) for name, config in CONFIGS.items()}
    assert slots["adam"] == slots["adamw"] == ["m", "v"]
    assert slots["rmsprop"] == slots["adagrad"] == ["v"]
    assert slots["rmsprop-momentum"] == ["u", "v"]
    assert (slots["sgd"], slots["sgd-momentum"]) == ([], ["u"])


def test_unknown_optimiser_names_the_nearest() -> None:
    with pytest.raises(InputError, match="no optimiser 'adan'; did you mean adam"):
        init_state(rule(OptimConfig(optim="adan")), {})


@pytest.mark.parametrize(
    ("grads", "error", "words"),
    [
        ({"W": np.zeros((2, 2))}, InputError, r"none for \['b'\]"),
        ({"W": np.zeros((2, 2)), "b": np.zeros(2), "c": np.zeros(1)}, InputError, r"more for \['c'\]"),
        ({"W": np.zeros((2, 2)), "b": np.zeros((1, 2))}, ShapeError, r"'b'.*\(2,\).*\(1, 2\)"),
        ({"W": np.zeros((2, 2)), "b": np.zeros(2, np.float32)}, DtypeError, "'b'.*float64.*float32"),
    ],
)
def test_mismatch_is_an_error_and_changes_nothing(grads: Arrays, error: type[Exception], words: str) -> None:
    params = {"W": np.ones((2, 2)), "b": np.ones(2)}
    state = init_state(rule(OptimConfig()), params)
    with pytest.raises(error, match=words):
        update(rule(OptimConfig()), params, grads, state, 0.1)
    assert state["step"] == 0
    assert all((p == 1).all() for p in params.values())


def test_state_of_another_optimiser_is_an_error() -> None:
    params = {"W": np.ones(2)}
    state: State = init_state(rule(OptimConfig(optim="sgd")), params)
    with pytest.raises(InputError, match="state of adam"):
        update(rule(OptimConfig()), params, params, state, 0.1)


def test_global_norm_takes_the_root() -> None:
    assert global_norm({"a": np.array([3.0]), "b": np.array([[4.0]])}) == 5.0
    assert global_norm({}) == 0.0
    assert global_norm({"e": np.zeros((0, 3))}) == 0.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (5,), (3, BLOCK), (BLOCK + 1,)])
def test_global_norm_against_fsum(shape: tuple[int, ...], dtype: type[np.floating[Any]]) -> None:
    g = np.asarray(np.random.default_rng(0).normal(size=shape), dtype=dtype)
    expected = math.sqrt(math.fsum(float(v) ** 2 for v in g.reshape(-1)))
    assert global_norm({"g": g}) == pytest.approx(expected, rel=1e-14)
    assert global_norm({"g": g.T}) == pytest.approx(expected, rel=1e-14)


def test_global_norm_accumulates_in_float64() -> None:
    # in float32 the sum of a million squares of 1e-4 stands still, and 1e30 squared overflows
    assert global_norm({"g": np.full(10**6, 1e-4, np.float32)}) == pytest.approx(0.1, rel=1e-6)
    assert global_norm({"g": np.array([1e30, 1e30], np.float32)}) == pytest.approx(math.sqrt(2) * 1e30, rel=1e-6)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_clip_norm_bounds_the_norm_and_keeps_the_direction(values: list[float], limit: float) -> None:
    before = np.array(values)
    grads = {"a": before[:1].copy(), "b": before[1:].copy()}
    norm = clip_norm(grads, limit)
    after = np.concatenate([grads["a"], grads["b"]])
    assert norm == pytest.approx(float(np.linalg.norm(before)), rel=1e-12, abs=1e-150)
    assert float(np.linalg.norm(after)) <= limit * (1 + 1e-12)
    np.testing.assert_allclose(after, before * min(1.0, limit / norm if norm else 1.0), rtol=1e-12)


@pytest.mark.torch
def test_clip_norm_against_torch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the other opinion here; it is not installed")
    grads = next(gradients(make_params(), 1))
    tensors = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads.values()]
    for tensor, g in zip(tensors, grads.values(), strict=True):
        tensor.grad = torch.tensor(g.copy())
    expected = float(torch.nn.utils.clip_grad_norm_(tensors, 5.0))
    assert clip_norm(grads, 5.0) == pytest.approx(expected, rel=1e-12)
    for tensor, g in zip(tensors, grads.values(), strict=True):  # torch adds 1e-6 to the denominator
        np.testing.assert_allclose(g, tensor.grad.numpy(), rtol=1e-6 / expected * 2)


def test_clip_norm_is_in_place_and_leaves_small_gradients() -> None:
    g = np.array([3.0, 4.0], np.float32)
    grads = {"g": g}
    assert clip_norm(grads, 5.0) == 5.0
    assert g.tolist() == [3.0, 4.0]
    assert clip_norm(grads, 2.5) == 5.0
    assert grads["g"] is g
    assert g.tolist() == [1.5, 2.0]
    assert g.dtype == np.float32
    assert clip_norm(grads, 0) == 2.5
    assert g.tolist() == [1.5, 2.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_clip_norm_returns_a_non_finite_norm_and_spreads_no_nan(bad: float) -> None:
    grads = {"a": np.array([1.0, bad]), "b": np.array([7.0])}
    norm = clip_norm(grads, 1.0)
    assert not math.isfinite(norm)
    assert math.isnan(norm) == math.isnan(bad)
    np.testing.assert_array_equal(grads["a"], [1.0, bad])
    assert grads["b"].tolist() == [7.0]


def test_clip_tells_the_norms_before_and_after_both_limits() -> None:
    grads = {"g": np.array([3e20, -4e20], np.float32)}
    norm, clipped = clip(grads, OptimConfig(clip_value=5.0, clip_norm=0.0))
    assert (norm, clipped) == (pytest.approx(5e20, rel=1e-6), pytest.approx(5 * math.sqrt(2)))
    np.testing.assert_array_equal(grads["g"], np.float32([5, -5]))
    assert clip(grads, OptimConfig(clip_value=4.0, clip_norm=1.0)) == (pytest.approx(50**0.5), 1.0)
    np.testing.assert_allclose(grads["g"], [0.5**0.5, -(0.5**0.5)], rtol=1e-6)
    before = grads["g"].copy()
    norm, clipped = clip(grads, OptimConfig(clip_value=1.0, clip_norm=2.0))
    assert norm == clipped == pytest.approx(1.0)
    np.testing.assert_array_equal(grads["g"], before)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_clip_leaves_what_is_not_finite_to_be_seen(bad: float) -> None:
    grads = {"a": np.array([1.0, bad])}
    norm, _ = clip(grads, OptimConfig(clip_value=5.0, clip_norm=5.0))
    assert not math.isfinite(norm) and math.isnan(norm) == math.isnan(bad)
    np.testing.assert_array_equal(grads["a"], [1.0, bad])


@pytest.mark.parametrize("asarray", [np.asarray, guard.asarray], ids=["numpy", "guard"])
def test_the_norm_is_finite_where_every_value_is(asarray: Any) -> None:
    def norm(*arrays: Any) -> float:
        return global_norm({str(i): asarray(np.array(array)) for i, array in enumerate(arrays)})

    assert norm([3e200, 4e200]) == pytest.approx(5e200, rel=1e-14)
    assert norm([3e-200], [[4e-200]]) == pytest.approx(5e-200, rel=1e-14)
    assert norm([0.0, 0.0]) == 0.0
    assert norm([1.0], [-math.inf]) == math.inf and math.isnan(norm([math.nan, math.inf]))
    assert norm(np.full(4, 1e308)) == math.inf  # the norm itself is beyond float64


@pytest.mark.parametrize("asarray", [np.asarray, guard.asarray], ids=["numpy", "guard"])
def test_a_slot_that_is_not_finite_is_found(asarray: Any) -> None:
    def slots(last: float) -> Any:
        v = {"W": asarray(np.full(3, 1e300)), "b": asarray(np.array([0.0, last]))}
        return {"m": {"W": asarray(np.ones(3)), "b": asarray(np.ones(2))}, "v": v}

    assert overflowing(slots(math.inf)) == overflowing(slots(math.nan)) == ("v", "b")
    assert overflowing(slots(0.0)) is None


def test_clip_value() -> None:
    g = np.array([[-9.0, 2.0], [5.0, 5.5]], np.float32)
    kept = g.T  # a view sees the change: it is made in place
    clip_value({"g": g}, 5.0)
    assert kept.tolist() == [[-5.0, 5.0], [2.0, 5.0]]
    clip_value({"g": g}, 0)
    assert kept.tolist() == [[-5.0, 5.0], [2.0, 5.0]]
    odd = np.array([np.nan, np.inf, -np.inf])
    clip_value({"g": odd}, 1.0)
    np.testing.assert_array_equal(odd, [np.nan, 1.0, -1.0])


@pytest.mark.parametrize("limit", [-1.0, math.nan])
def test_clipping_refuses_a_limit_that_is_none(limit: float) -> None:
    with pytest.raises(InputError, match="at least 0"):
        clip_value({}, limit)
    with pytest.raises(InputError, match="at least 0"):
        clip_norm({}, limit)


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("none", {0: 1, 0.5: 1, 100: 1}),
        # char-rnn, -learning_rate_decay 0.97 -learning_rate_decay_after 10: the tenth pass still has the full rate
        ("exp:0.97@10", {0: 1, 9: 1, 9.999: 1, 10: 0.97, 10.5: 0.97, 11: 0.97**2, 49: 0.97**40}),
        ("exp:.5@1", {0: 1, 0.99: 1, 1: 0.5, 2: 0.25}),
        ("step:0.5@5", {0: 1, 4.99: 1, 5: 0.5, 9.99: 0.5, 10: 0.25, 50: 0.5**10}),
        # torch-rnn, -lr_decay_every 5 -lr_decay_factor 0.5: train.lua decays where (passes done + 1) % 5 is 0
        (RECIPES["torch-rnn"]["optim.lr_decay"], {3.99: 1, 4: 0.5, 8.99: 0.5, 9: 0.25, 14: 0.125, 49.99: 0.5**10}),
        (" step:2@1 ", {0: 1, 1: 2, 3.5: 8}),
    ],
)
def test_learning_rate_table(text: str, table: dict[float, float]) -> None:
    config = OptimConfig(lr=2e-3, lr_decay=text)
    for epoch, factor in table.items():
        assert learning_rate(config, epoch) == pytest.approx(2e-3 * factor, rel=1e-14)


def test_learning_rate_follows_char_rnn_line_by_line() -> None:
    # train.lua of char-rnn: after update i, `if i % ntrain == 0 and epoch >= after then lr = lr * decay`
    ntrain, after, rate = 7, 3, 2e-3
    config = OptimConfig(lr=rate, lr_decay=f"exp:0.97@{after}")
    for i in range(1, 10 * ntrain + 1):
        assert learning_rate(config, (i - 1) / ntrain) == pytest.approx(rate, rel=1e-13)
        if i % ntrain == 0 and i / ntrain >= after:
            rate *= 0.97


def test_the_rate_of_a_warm_up_a_cosine_and_a_plateau() -> None:
    def rates(total: int = 12, drops: int = 0, **changes: Any) -> list[float]:
        config = OptimConfig(lr=8.0, **changes)
        return [learning_rate(config, 0.0, step=step, total=total, drops=drops) for step in range(total)]

    assert rates(warmup=4)[:6] == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]
    cosine = rates(lr_decay="cosine")
    assert cosine == pytest.approx([4 * (1 + math.cos(math.pi * step / 12)) for step in range(12)])
    assert (cosine[0], cosine[6]) == (8.0, pytest.approx(4.0))
    both = rates(lr_decay="cosine", warmup=4)
    assert both[:5] == [2.0, 4.0, 6.0, 8.0, 8.0]
    assert both[8] == pytest.approx(4.0) and both == sorted(both[:4]) + sorted(both[4:], reverse=True)
    assert rates(lr_decay="plateau:0.5@3", drops=2) == [2.0] * 12
    assert learning_rate(OptimConfig(lr=8.0, lr_decay="exp:0.5@1", warmup=4), 2.0, step=1) == 8.0 * 0.25 * 0.5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cosine:0.5",
        "plateau",
        "plateau:0.5",
        "plateau:0.5@0",
        "plateau:1@2",
        "plateau:2@2",
        "plateau:0@2",
        "exp",
        "exp:0.97",
        "exp:x@3",
        "exp:0.9@0",
        "exp:0.9@1.5",
        "step:-1@5",
        "step:0@5",
        "step:0.5@0+5",
        "step:0.5@4+",
        "exp:0.5@4+5",
        "linear:0.5@5",
        "exp:nan@3",
        "exp:inf@3",
        "step:0.5@-5",
        "exp:0.9@3@4",
    ],
)
def test_bad_schedule_is_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        learning_rate(OptimConfig(lr_decay=text), 0)
    assert repr(text) in str(caught.value)
    assert "exp:FACTOR@EPOCH" in str(caught.value)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------- optimisers of strangers


class Lion(Optimizer):
    """X. Chen et al., Symbolic discovery of optimization algorithms, 2023, algorithm 2."""

    name = "lion_of_test"
    summary = "the sign of a moving average"
    citation = "X. Chen et al., 2023, arXiv 2302.06675"

    @dataclass(frozen=True)
    class Options:
        weight_decay: float  # --weight-decay: a setting that optimisers share
        inner: float = field(default=0.9, metadata={"help": "share of the average in the direction"})
        outer: float = 0.99

    def slots(self) -> tuple[str, ...]:
        return ("m",)

    def update(self, params: Any, grads: Any, slots: Any, step: int, lr: float) -> None:
        o = self.options
        for p, g, m in pieces(params, grads, slots["m"]):
            p -= lr * (np.sign(o.inner * m + (1 - o.inner) * g) + o.weight_decay * p)
            m *= o.outer
            m += (1 - o.outer) * g


@pytest.fixture
def lion(own_registry: None) -> type[Lion]:
    return register_optimizer(Lion)


def test_an_optimiser_of_a_stranger_follows_its_formula(lion: type[Lion]) -> None:
    config = OptimConfig(optim="lion_of_test", optim_options={"inner": 0.8}, weight_decay=0.3)
    params = make_params()
    state = init_state(rule(config), params)
    expected, means = {k: p.copy() for k, p in params.items()}, {k: 0.0 * p for k, p in params.items()}
    for grads in gradients(params, 5):
        update(rule(config), params, grads, state, 0.1)
        for k, g in grads.items():
            sign = np.sign(0.8 * means[k] + 0.2 * g)
            expected[k] = expected[k] - 0.1 * (sign + 0.3 * expected[k])
            means[k] = 0.99 * means[k] + 0.01 * g
    for k, p in params.items():
        np.testing.assert_allclose(p, expected[k], rtol=1e-12)
    assert state["step"] == 5 and list(state["slots"]) == ["m"]


@pytest.mark.parametrize(
    ("optim", "setting", "value", "readers"),
    [
        ("adam", "momentum", 0.9, "rmsprop and sgd do"),
        ("adam", "weight_decay", 0.1, "adamw, rmsprop, adagrad and sgd do"),
        ("adam", "decay", 0.9, "rmsprop does"),
        ("adamw", "momentum", 0.9, "rmsprop and sgd do"),
        ("rmsprop", "beta2", 0.9, "adam and adamw do"),
        ("adagrad", "momentum", 0.9, "rmsprop and sgd do"),
        ("sgd", "beta1", 0.5, "adam and adamw do"),
        ("sgd", "eps", 1e-3, "adam, adamw, rmsprop and adagrad do"),
    ],
)
def test_a_setting_that_the_optimiser_does_not_read_is_refused(
    optim: str, setting: str, value: float, readers: str
) -> None:
    config = OptimConfig(optim=optim, **{setting: value})
    assert unread_settings(config) == {setting: f"{optim} does not read it, {readers}"}
    flag = setting.replace("_", "-")
    with pytest.raises(InputError, match=rf"^--{flag} {value:g} has no effect: {optim} does not read it"):
        check_settings(config, "float32")
    check_settings(OptimConfig(optim=optim), "float32")


def test_an_eps_that_is_nothing_is_refused() -> None:
    for eps, dtype in ((0.0, "float64"), (1e-50, "float32")):
        with pytest.raises(InputError, match=rf"--eps {eps:g}: expected at least .* of {dtype}: .* 0 / 0"):
            check_settings(OptimConfig(eps=eps), dtype)
    check_settings(OptimConfig(eps=1e-50), "float64")
    check_settings(OptimConfig(optim="sgd"), "float32")


def test_options_of_an_optimiser_are_its_own_and_shared_ones(lion: type[Lion]) -> None:
    found = rule(OptimConfig(optim="lion_of_test", weight_decay=0.5, optim_options={"outer": "0.5"}))
    assert (found.options.weight_decay, found.options.inner, found.options.outer) == (0.5, 0.9, 0.5)
    for options, message in [
        ({"innner": 1}, r"optimiser lion_of_test has no option 'innner'; did you mean inner\?"),
        ({"inner": "much"}, r"optimiser lion_of_test, option 'inner': expected a number, got 'much'"),
        ({"weight-decay": 1}, r"'weight-decay': it is a setting of its own; use --weight-decay"),
    ]:
        with pytest.raises(InputError, match=message):
            rule(OptimConfig(optim="lion_of_test", optim_options=options))
    with pytest.raises(InputError, match=r"optimiser adam, option 'beta1': it is a setting of its own; use --beta1"):
        rule(OptimConfig(optim_options={"beta1": 0.5}))
    with pytest.raises(InputError, match=r"optimiser adam has no option 'amsgrad'"):
        rule(OptimConfig(optim_options={"amsgrad": True}))


def declared(**changes: Any) -> Any:
    parts: dict[str, Any] = {"__module__": __name__, "name": "mine_of_test", "summary": "s", "citation": "c"}
    parts |= {"slots": lambda self: (), "update": lambda self, params, grads, slots, step, lr: None, **changes}
    return type("Mine", (Optimizer,), {key: value for key, value in parts.items() if value is not None})


@dataclass(frozen=True)
class Misspelt:
    beta3: float


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"summary": ""}, r"optimiser 'mine_of_test': expected a text in the class attribute 'summary', got none"),
        ({"update": None}, r"expected the method update to be written, got none"),
        ({"Options": type("Options", (), {})}, r"expected Options to be under @dataclass"),
        ({"Options": Misspelt}, r"a default for the option 'beta3', or the name of a shared setting; did you mean"),
    ],
)
def test_an_incomplete_optimiser_says_what_is_missing(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        register_optimizer(declared(**changes))
    with pytest.raises(PluginError, match=r"expected a subclass of tinygrad_rnn\.Optimizer, got <function"):
        register_optimizer(rule)  # type: ignore[type-var]


def replaces(self: Any, params: Any, grads: Any, slots: Any, step: int, lr: float) -> None:
    params["W"] = params["W"] - lr * grads["W"]  # a new array, which nobody would look at


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"slots": lambda self: ["m"]},
            r"mine_of_test, slots: expected a tuple of Python names, got \['m'\]",
        ),
        ({"slots": lambda self: ("a/b",)}, r"expected a tuple of Python names"),
        (
            {"update": replaces},
            r"^optimiser mine_of_test, update \(test_optim\.py:\d+\): .*expected values written into the array W, got "
            r"another array in its place; write \['W'\]\[\.\.\.\] =$",
        ),
        ({"update": lambda self, *_: 1 // 0}, r"test_optim\.py:\d+\): ZeroDivisionError"),
    ],
)
def test_what_an_author_does_wrong_has_his_line(changes: dict[str, Any], message: str) -> None:
    mine = declared(**changes)(OptimConfig())
    params = {"W": np.ones(2)}
    with pytest.raises(PluginError, match=message) as caught:
        update(mine, params, {"W": np.ones(2)}, init_state(mine, params), 0.1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("elementwise", [False, True])
def test_a_rule_may_subtract_in_place(elementwise: bool) -> None:
    """``params[name] -= x``, which Python reads as a write into the array and an assignment of the same array."""

    def subtracts(self: Any, params: Any, grads: Any, slots: Any, step: int, lr: float) -> None:
        assert len(params) == len([*params]) == 1
        for name in params:
            params[name] -= lr * grads[name]

    mine = declared(update=subtracts, elementwise=elementwise)(OptimConfig())
    params = {"W": np.ones(2)}
    update(mine, params, {"W": np.ones(2)}, init_state(mine, params), 0.25)
    np.testing.assert_array_equal(params["W"], 0.75)


def test_every_built_in_optimiser_is_declared_as_a_strangers() -> None:
    for row in available(OPTIMIZERS, third_party=False, check=True):
        cls = load(OPTIMIZERS, row.name).value
        check_optimizer(cls)
        assert row.error is None and {f.name for f in fields(cls.Options)} <= set(SHARED)
