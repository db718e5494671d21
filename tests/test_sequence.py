"""Time: carried states, masks, truncation, recorded states, anomalies, and the seam for a compiled scan."""

from __future__ import annotations

import gc
import inspect
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn import (
    Cell,
    GradientError,
    InputError,
    ModelConfig,
    NonFiniteError,
    Param,
    PluginError,
    ShapeError,
    State,
    Tensor,
    anomaly,
    available_cells,
    build_model,
    draw_noise,
    grad,
    init_cell,
    listen,
    load_cell,
    no_grad,
    ops,
    output_of,
    scan,
    specification,
    truncated_windows,
    unroll,
    wrap_cell,
)
from tinygrad_rnn.cell import timesteps
from tinygrad_rnn.sequence import detach_state, start_state

Array = np.ndarray[Any, Any]
CELLS = [row.name for row in available_cells(third_party=False)]
I, H = 3, 4


def make(name: str, seed: int = 0, **options: Any) -> tuple[Cell, dict[str, Tensor]]:
    """A cell and parameters that are all away from zero."""
    rng = np.random.default_rng(seed)
    cell = load_cell(name).cls(I, H, {**({"slow": H} if name == "scrn" else {}), **options})
    arrays = {key: rng.normal(size=spec.shape) * 0.6 for key, spec in specification(cell)[1].items()}
    if name == "clockwork":
        arrays["period"] = init_cell(cell, rng)["period"].data  # which are no numbers like others
    return cell, {key: Tensor(value, requires_grad=True) for key, value in arrays.items()}


def inputs(T: int, B: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=(T, B, I))


# ------------------------------------------------------------------------------------ carried state


@pytest.mark.parametrize("name", CELLS)
def test_one_run_equals_two_with_the_state_carried(name: str) -> None:
    """Values and gradients: the carried state is on the tape."""
    cell, params = make(name)
    xs = inputs(8, 2)
    pull = np.random.default_rng(2).normal(size=(8, 2, H))
    whole = unroll(cell, params, xs)
    first = unroll(cell, params, xs[:3])
    second = unroll(cell, params, xs[3:], first.state)
    np.testing.assert_array_equal(np.concatenate([first.outputs.data, second.outputs.data]), whole.outputs.data)
    targets = list(params.values())
    together = grad(ops.sum(whole.outputs * pull), targets, unused="zeros")
    apart = grad(ops.sum(first.outputs * pull[:3]) + ops.sum(second.outputs * pull[3:]), targets, unused="zeros")
    for one, two in zip(together, apart, strict=True):
        np.testing.assert_allclose(two.data, one.data, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", CELLS)
def test_a_detached_state_has_the_values_and_stops_the_gradient(name: str) -> None:
    cell, params = make(name)
    xs = Tensor(inputs(6, 2), requires_grad=True)
    first = unroll(cell, params, xs[:4])
    carried = detach_state(first.state)
    assert all(type(value) is np.ndarray for value in carried.values())
    cut = unroll(cell, params, xs[4:], carried)
    np.testing.assert_array_equal(cut.outputs.data, unroll(cell, params, xs[4:], first.state).outputs.data)
    g = grad(ops.sum(cut.outputs), xs).data
    assert not g[:4].any()
    assert np.all(g[4:].any(axis=-1))
    assert grad(ops.sum(unroll(cell, params, xs[4:], first.state).outputs), xs).data[:4].any()


@pytest.mark.parametrize("name", sorted({*CELLS} - {"lstm_peephole", "scrn"}))  # h reads another state of its step
def test_every_state_at_every_step_is_there_with_its_gradient(name: str) -> None:
    """dL/ds_t for all t in one call; by the chain rule the loss moves as they say."""
    cell, params = make(name)
    done = unroll(cell, params, inputs(5, 2))
    states, _ = specification(cell)
    assert {key: len(values) for key, values in done.states.items()} == dict.fromkeys(states, 5)
    output = output_of(cell)
    np.testing.assert_array_equal(np.stack([value.data for value in done.states[output]]), done.outputs.data)
    for key, value in done.state.items():
        assert value is done.states[key][-1]
    carried = {key: values for key, values in done.states.items() if key not in timesteps(states)}
    every = [value for values in carried.values() for value in values]
    found = iter(grad(ops.sum(done.outputs[-1]), every, unused="zeros"))  # no step reads the y of lru
    g = {key: [next(found).data for _ in values] for key, values in carried.items()}
    np.testing.assert_array_equal(g[output][-1], np.ones((2, H)))
    rng = np.random.default_rng(3)
    for t in range(4):
        middle = {key: values[t].data for key, values in done.states.items()}
        for key in carried:
            way = rng.normal(size=(2, H))
            ends = []
            for side in (1e-6, -1e-6):
                moved = {**middle, key: middle[key] + side * way}
                if key == "c":  # h = o tanh(c) of the same step moves along: the derivative is the total one
                    moved["h"] = middle["h"] / np.tanh(middle["c"]) * np.tanh(moved["c"])
                ends.append(unroll(cell, params, inputs(5, 2)[t + 1 :], moved).outputs.data[-1].sum())
            np.testing.assert_allclose(np.sum(g[key][t] * way), (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-9)


class Linear(Cell):
    """Final. h_t = x_t + h_{t-1} W, whose gradients are powers of W; and c, which sums h up and which nothing reads."""

    name = "linear"
    summary = citation = equation = "h = x + h W"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,)), "c": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {"W": Param((self.H, self.H), "normal:0.5", "recurrent"), "v": Param((self.H,), "normal:1", "bias")}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = x + s.h @ p.W
        return {"h": h, "c": s.c + p.v * h}


EXECUTORS = ["unroll", "numpy", "llvm"]


def linear(executor: str, T: int = 6, B: int = 2, *, mask: Any = None) -> tuple[Any, Tensor]:
    """What came out of a `Linear` run, and its W."""
    W = Tensor(np.random.default_rng(0).normal(size=(I, I)) * 0.7, requires_grad=True)
    v = Tensor(np.ones(I), requires_grad=True)
    return scan(Linear(I, I), {"W": W, "v": v}, inputs(T, B), mask=mask, executor=executor), W


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_output_at_a_step_is_the_state_at_that_step(executor: str) -> None:
    done, _ = linear(executor)
    h = done.states["h"]
    for t in (0, 3, -1, np.int8(2), np.int64(-6)):
        assert done.outputs[t] is done.outputs[t] is h[t]
    assert done.state["h"] is h[-1]
    assert [a is b for a, b in zip(done.outputs, h, strict=True)] == [True] * 6
    first, *_, last = done.outputs
    assert first is h[0] and last is done.state["h"]
    assert done.outputs[2:][1] is done.outputs[::-1][2] is done.outputs[1:4][:][-1] is h[3]
    np.testing.assert_array_equal(done.outputs[2, 1, ::2].data, h[2].data[1, ::2])
    np.testing.assert_array_equal(done.outputs[..., 1].data, done.outputs.data[..., 1])
    np.testing.assert_array_equal(done.outputs[[0, 2]].data, done.outputs.data[[0, 2]])
    assert done.outputs[True].shape == (1, 6, 2, I)
    with pytest.raises(ShapeError, match="out of bounds"):
        done.outputs[6]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_of_the_outputs_are_powers_of_the_recurrent_matrix(executor: str, create_graph: bool) -> None:
    """The question of a vanishing gradient, asked in every way that there is for it."""
    done, W = linear(executor)
    power = [np.ones((2, I)) @ np.linalg.matrix_power(W.data.T, 5 - t) for t in range(6)]
    for loss in (ops.sum(done.outputs[-1]), ops.sum(done.state["h"]), ops.sum(done.outputs[3:][2])):
        for targets in ([done.outputs[t] for t in range(6)], list(done.states["h"]), list(done.outputs)):
            found = grad(loss, targets, create_graph=create_graph, unused="error")
            for g, expected in zip(found, power, strict=True):
                np.testing.assert_allclose(g.data, expected, rtol=1e-12)
    if create_graph:  # d/dW of the sum of v (W^T)^2 is known
        first = grad(ops.sum(done.outputs[-1]), done.outputs[3], create_graph=True)
        again = grad(ops.sum(first), W, unused="error")
        u = np.ones(I)
        expected = 2 * (np.outer(u, W.data @ u) + np.outer(W.data.T @ u, u))  # of u W^T W^T u, for both rows
        np.testing.assert_allclose(again.data, expected, rtol=1e-12)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_retain_grad_on_an_output(executor: str) -> None:
    """Of any timestep, through all later ones; whatever the loss was computed from."""
    for read in (lambda d: ops.sum(d.outputs[-1]), lambda d: ops.sum(d.outputs * (np.arange(6) == 5)[:, None, None])):
        done, W = linear(executor)
        done.outputs[2].retain_grad()
        done.state["h"].retain_grad()
        read(done).backward()
        power = np.linalg.matrix_power(W.data.T, 3)
        np.testing.assert_allclose(done.states["h"][2].grad.data, np.ones((2, I)) @ power, rtol=1e-12)
        np.testing.assert_array_equal(done.outputs[-1].grad.data, np.ones((2, I)))
        assert done.outputs[1].grad is None


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_outputs_as_a_whole_are_not_what_a_loss_of_one_was_computed_from(executor: str) -> None:
    """No gradient of theirs could hold what flowed into their items; so it is refused, and the items are named."""
    done, _ = linear(executor)
    with pytest.raises(GradientError, match=r"^retain_grad: expected the output of one timestep.*outputs\[t\]\.retain"):
        done.outputs.retain_grad()
    with pytest.raises(
        GradientError, match=r"used in the graph of y; y may be .* items: give those, \[outputs\[t\] for t"
    ):
        grad(ops.sum(done.outputs[-1]), done.outputs)
    with pytest.raises(GradientError, match=r"^retain_grad: expected an output computed from tensors"):
        Tensor([1.0]).retain_grad()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_gradient_of_an_output_in_a_masked_row_passes_by(executor: str) -> None:
    """Row 1 stops after two steps: its later outputs are that state, and the gradient is that of it."""
    mask = np.arange(6)[:, None] < np.array([6, 2])
    done, W = linear(executor, mask=mask)
    found = grad(ops.sum(done.outputs[-1]), list(done.outputs), unused="error")
    for t, g in enumerate(found):
        for b, end in enumerate((5, 1)):
            expected = np.ones(I) @ np.linalg.matrix_power(W.data.T, max(0, end - t))
            np.testing.assert_allclose(g.data[b], expected, rtol=1e-12)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_is_unused_is_unused_in_every_executor(executor: str) -> None:
    """c is computed from h, and nothing reads it; after step 2 the loss reads nothing."""
    done, W = linear(executor)
    loss = ops.sum(done.outputs[2])
    unused = [done.state["c"], done.states["c"][1], done.outputs[3], done.outputs[1:4]]
    for create_graph in (False, True):
        for target in unused:
            with pytest.raises(GradientError, match="appears not to have been used"):
                grad(loss, target, unused="error", create_graph=create_graph)
            assert not grad(loss, target, unused="zeros", create_graph=create_graph).data.any()
        grad(loss, [W, done.outputs[2]], unused="error", create_graph=create_graph)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_parameter_that_only_an_unread_state_needs_is_unused(executor: str) -> None:
    params = {"W": Tensor(np.eye(I), requires_grad=True), "v": Tensor(np.ones(I), requires_grad=True)}
    done = scan(Linear(I, I), params, inputs(3, 2), executor=executor)
    with pytest.raises(GradientError, match="appears not to have been used"):
        grad(ops.sum(done.outputs), params["v"], unused="error")
    grad(ops.sum(done.states["c"][0]), params["v"], unused="error")


@pytest.mark.parametrize("executor", EXECUTORS)
def test_outputs_of_a_layer_inside_the_model(executor: str) -> None:
    config = ModelConfig(cell="lstm", hidden=H, layers=2, embed="3")
    model = build_model(config, 5, load_cell("lstm"))
    params = model.init(np.random.default_rng(0), np.float64)
    out = model.forward(params, np.arange(8).reshape(4, 2) % 5, executor=executor)
    loss = ops.sum(out.logits[-1])
    found = []
    for layer in out.layers:
        assert all(a is b for a, b in zip(layer.outputs, layer.states["h"], strict=True))
        found += grad(loss, [layer.outputs[t] for t in range(4)], unused="error")
    assert all(np.abs(g.data).max() > 1e-9 for g in found)
    kept = out.layers[0].outputs[1].retain_grad()
    loss.backward()
    np.testing.assert_array_equal(kept.grad.data, found[1].data)


def test_start_state_has_the_dtype_and_the_declared_value() -> None:
    cell, _ = make("lstm")
    for dtype in (np.float32, np.float64):
        start = start_state(cell, 3, np.zeros(1, dtype))
        assert list(start) == ["h", "c"]
        for value in start.values():
            np.testing.assert_array_equal(value, np.zeros((3, H), dtype), strict=True)


# ------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("name", CELLS)
def test_a_padded_batch_equals_separate_runs(name: str) -> None:
    """Lengths 5, 2, 1, 4: outputs, last states and every gradient; padding is garbage and gets a zero gradient."""
    cell, params = make(name)
    lengths = [5, 2, 1, 4]
    padded = inputs(5, 4)
    mask = np.arange(5)[:, None] < np.array(lengths)
    padded[~mask] = 1e3
    pull = np.random.default_rng(2).normal(size=(5, 4, H))
    last = np.random.default_rng(3).normal(size=(4, H))
    targets = list(params.values())

    xs = Tensor(padded, requires_grad=True)
    done = unroll(cell, params, xs, mask=mask)
    loss = ops.sum(done.outputs * (pull * mask[..., None]))
    for value in done.state.values():
        loss = loss + ops.sum(value * last)
    *together, g = grad(loss, [*targets, xs], unused="zeros")

    sums = [np.zeros(value.shape) for value in targets]
    for b, length in enumerate(lengths):
        row = Tensor(padded[:length, b : b + 1], requires_grad=True)
        alone = unroll(cell, params, row)
        np.testing.assert_allclose(done.outputs.data[:length, b], alone.outputs.data[:, 0], rtol=1e-12)
        for key, value in alone.state.items():
            np.testing.assert_allclose(done.state[key].data[b], value.data[0], rtol=1e-12)
        part = ops.sum(alone.outputs * pull[:length, b : b + 1])
        for value in alone.state.values():
            part = part + ops.sum(value * last[b : b + 1])
        *own, g_row = grad(part, [*targets, row], unused="zeros")
        np.testing.assert_allclose(g.data[:length, b], g_row.data[:, 0], rtol=1e-10, atol=1e-13)
        for total, value in zip(sums, own, strict=True):
            total += value.data
    assert not g.data[~mask].any()
    for value, total in zip(together, sums, strict=True):
        np.testing.assert_allclose(value.data, total, rtol=1e-10, atol=1e-12)


def test_a_masked_row_keeps_its_state_in_the_outputs_too() -> None:
    cell, params = make("lstm")
    mask = np.array([[True, True], [True, False], [False, True]])
    done = unroll(cell, params, inputs(3, 2), mask=mask)
    np.testing.assert_array_equal(done.outputs.data[2, 0], done.outputs.data[1, 0])
    np.testing.assert_array_equal(done.outputs.data[1, 1], done.outputs.data[0, 1])
    np.testing.assert_array_equal(done.states["c"][1].data[1], done.states["c"][0].data[1])
    full = unroll(cell, params, inputs(3, 2), mask=np.ones((3, 2), bool))
    np.testing.assert_array_equal(full.outputs.data, unroll(cell, params, inputs(3, 2)).outputs.data)


# -------------------------------------------------------------------------------------- truncation


@given(T=st.integers(0, 60), k1=st.integers(1, 12), more=st.integers(0, 20))
def test_windows_of_truncated_bptt(T: int, k1: int, more: int) -> None:
    """The losses tile the sequence without gap or overlap, and no window is longer than k2."""
    k2 = k1 + more
    windows = list(truncated_windows(T, k1, k2))
    assert len(windows) == T // k1
    assert [t for w in windows for t in range(w.loss_from, w.stop)] == list(range(T - T % k1))
    for w in windows:
        assert 0 <= w.start <= w.loss_from < w.stop <= T
        assert w.stop - w.loss_from == k1
        assert w.stop - w.start == min(k2, w.stop)


@pytest.mark.parametrize(("k1", "k2"), [(0, 3), (4, 3), (-1, 5)])
def test_windows_that_cannot_be(k1: int, k2: int) -> None:
    with pytest.raises(InputError, match=rf"expected 1 <= k1 <= k2, got k1={k1}, k2={k2}"):
        list(truncated_windows(10, k1, k2))


def test_truncated_gradient_is_that_of_the_window_alone() -> None:
    """BPTT(k2=4; k1=2): the loss of the last two steps flows back through four, and no further."""
    cell, params = make("gru")
    xs = Tensor(inputs(8, 2), requires_grad=True)
    whole = unroll(cell, params, xs)
    for w in truncated_windows(8, 2, 4):
        start = {key: values[w.start - 1].data for key, values in whole.states.items()} if w.start else None
        done = unroll(cell, params, xs[w.start : w.stop], start)
        np.testing.assert_array_equal(done.outputs.data, whole.outputs.data[w.start : w.stop])
        g = grad(ops.sum(done.outputs[w.loss_from - w.start :]), xs).data
        touched = np.flatnonzero(g.any(axis=(1, 2)))
        np.testing.assert_array_equal(touched, np.arange(w.start, w.stop))


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xs": np.ones((4, 3))}, r" of lstm: expected a sequence \(T, B, I=3\), got \(4, 3\)"),
        ({"xs": np.ones((4, 2, 5))}, r"expected a sequence \(T, B, I=3\), got \(4, 2, 5\)"),
        ({"xs": np.ones((0, 2, 3))}, r"expected at least one step and one row, got \(0, 2, 3\)"),
        ({"xs": np.ones((4, 0, 3))}, r"expected at least one step and one row, got \(4, 0, 3\)"),
        ({"mask": np.ones((2, 4), bool)}, r"expected a mask \(T=4, B=2\), got \(2, 4\)"),
        ({"state": {"h": np.ones((2, H))}}, r"expected the states \['h', 'c'\], got \['h'\]"),
        ({"state": {"h": np.ones((2, H)), "c": np.ones((3, H))}}, r"expected state c of shape \(2, 4\), got \(3, 4\)"),
        ({"without": "W_hf"}, r"expected parameter W_hf of shape \(4, 4\), got none"),
        ({"transposed": "W_xi"}, r"expected parameter W_xi of shape \(3, 4\), got \(4, 3\)"),
    ],
)
@pytest.mark.parametrize("run", [unroll, scan])
def test_sizes_that_do_not_fit(run: Any, change: dict[str, Any], message: str) -> None:
    cell, tensors = make("lstm")
    params: dict[str, Any] = dict(tensors)
    params.pop(change.get("without", ""), None)
    if "transposed" in change:
        params[change["transposed"]] = params[change["transposed"]].T
    with pytest.raises(ShapeError, match=message) as caught:
        run(cell, params, change.get("xs", inputs(4, 2)), change.get("state"), mask=change.get("mask"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("run", [unroll, scan])
@pytest.mark.parametrize("what", ["x", "s.h", "s.c"])
def test_a_step_that_decides_by_many_values_is_told_of_where(run: Any, what: str) -> None:
    """Whether the value was given as a tensor or as an array."""

    class Decides(Linear):
        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            return {"h": x, "c": s.c} if eval(what, {"x": x, "s": s}) > 2.0 else {"h": s.h, "c": s.c}

    cell = Decides(I, I)
    message = (
        r"step \(test_sequence\.py:\d+\): .*expected one element to decide by, got .*; choose .* with ops\.where, "
    )
    with pytest.raises(PluginError, match=message) as caught:
        run(cell, init_cell(cell, np.random.default_rng(0)), inputs(4, 2))
    assert "\n" not in str(caught.value) and "a.any()" not in str(caught.value)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_arrays_are_tensors_to_the_step(executor: str) -> None:
    """It may use their methods, whoever gave them and whatever runs it."""

    class Methods(Linear):
        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            return {"h": x.tanh() @ p.W.sigmoid() + s.h.relu(), "c": x.relu() * p.v.tanh()}

    cell = Methods(I, I)
    params = init_cell(cell, np.random.default_rng(0))
    arrays = {name: value.data for name, value in params.items()}
    xs, start = inputs(4, 2), {name: np.full((2, I), 0.5) for name in ("h", "c")}
    expected = unroll(cell, params, Tensor(xs), {name: Tensor(value) for name, value in start.items()})
    got = scan(cell, arrays, xs, start, executor=executor)
    assert got.executor == executor
    np.testing.assert_allclose(got.outputs.data, expected.outputs.data, rtol=1e-12)
    with anomaly():
        np.testing.assert_array_equal(scan(cell, arrays, xs, start).outputs.data, expected.outputs.data)


@pytest.mark.parametrize("run", [unroll, scan])
def test_noise_that_a_gradient_flows_to_is_refused(run: Any) -> None:
    cell = wrap_cell(load_cell("lstm").cls, ["zoneout:0.1"])(I, H)
    params = init_cell(cell, np.random.default_rng(0))
    noise = {name: Tensor(value) for name, value in draw_noise(cell, 4, 2, np.random.default_rng(0)).items()}
    assert run(cell, params, inputs(4, 2), noise=noise).outputs.shape == (4, 2, H)
    noise["k_h"] = Tensor(noise["k_h"].data, requires_grad=True) * 1.0
    with pytest.raises(GradientError, match=rf"^{run.__name__} of lstm\+zoneout:0\.1, noise k_h: expected a constant"):
        run(cell, params, inputs(4, 2), noise=noise)


@pytest.mark.parametrize("run", [unroll, scan])
def test_the_output_is_the_state_that_the_cell_names(run: Any) -> None:
    lstm = type(load_cell("lstm").cls.__name__, (load_cell("lstm").cls,), {"output": "c"})
    cell, (_, params) = lstm(I, H), make("lstm")
    done = run(cell, params, inputs(4, 2))
    np.testing.assert_array_equal(done.outputs.data, np.stack([c.data for c in done.states["c"]]))
    through_c, through_h = (
        grad(ops.sum(value * value), params["W_hf"]).data for value in (done.outputs, ops.stack(done.states["h"]))
    )
    by_hand = grad(ops.sum(ops.stack(done.states["c"]) ** 2), params["W_hf"]).data
    np.testing.assert_allclose(through_c, by_hand, rtol=1e-13)
    assert np.any(through_c != through_h)


def test_a_state_in_another_dtype_is_told() -> None:
    cell, params = make("rnn")
    with pytest.raises(InputError, match=r"float32.*float64|float64.*float32"):
        unroll(cell, params, inputs(2, 1), {"h": np.zeros((1, H), np.float32)})


# --------------------------------------------------------------------------------------- anomalies


def stacked(seed: int = 0) -> Any:
    """A model of two gru layers whose parameters the tests may spoil."""
    config = ModelConfig(cell="gru", hidden=H, layers=2, embed="3")
    model = build_model(config, 5, load_cell("gru"))
    return model, model.init(np.random.default_rng(seed), np.float64)


def test_an_infinite_weight_is_told_by_op_layer_timestep_and_gate() -> None:
    model, params = stacked()
    x = np.arange(8).reshape(4, 2) % 5
    assert np.isfinite(model.forward(params, x).logits.data).all()
    params["layers.1.W_xz"].data[1, 1] = np.inf  # sigmoid(inf) is finite: only the sum before it is not
    with anomaly(), np.errstate(all="ignore"), pytest.raises(NonFiniteError) as caught:
        model.forward(params, x)
    assert caught.value.where == {"op": "matmul", "layer": 1, "timestep": 0, "gate": "z"}
    for part in ("infinity", "matmul", "layer 1", "timestep 0", "gate z"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("weight", "gate"), [("W_xr", "r"), ("W_hr", "r"), ("b_z", "z"), ("W_hn", "n"), ("b_n", "n")])
def test_each_gate_is_told_by_its_own_name(weight: str, gate: str) -> None:
    model, params = stacked()
    params[f"layers.0.{weight}"].data.reshape(-1)[0] = np.nan
    with anomaly(), np.errstate(all="ignore"), pytest.raises(NonFiniteError) as caught:
        model.forward(params, np.arange(8).reshape(4, 2) % 5)
    assert {key: caught.value.where[key] for key in ("layer", "timestep", "gate")} == {
        "layer": 0,
        "timestep": 0,
        "gate": gate,
    }


def test_the_timestep_is_the_one_at_which_it_happens() -> None:
    """A symbol whose embedding is spoilt is met at step 2 alone."""
    model, params = stacked()
    params["embed.W"].data[4] = 1e200
    params["layers.0.W_xn"].data[...] = 1e200
    x = np.array([[0, 1], [2, 3], [1, 4], [0, 0]])
    params["embed.W"].data[:4] = 0.0
    with anomaly(), np.errstate(all="ignore"), pytest.raises(NonFiniteError) as caught:
        model.forward(params, x)
    assert caught.value.where == {"op": "matmul", "layer": 0, "timestep": 2, "gate": "n"}


def test_a_spoilt_input_is_told_at_its_own_timestep() -> None:
    cell, params = make("lstm")
    xs = inputs(4, 2)
    xs[3, 0, 0] = np.nan
    with anomaly(), pytest.raises(NonFiniteError, match="timestep 3"):
        unroll(cell, params, Tensor(xs, requires_grad=True), layer=7)


def test_after_a_caught_error_the_place_is_forgotten() -> None:
    cell, params = make("lstm")
    xs = inputs(4, 2)
    xs[3, 0, 0] = np.nan
    with anomaly():
        with pytest.raises(NonFiniteError, match="timestep 3"):
            unroll(cell, params, Tensor(xs, requires_grad=True))
        with pytest.raises(NonFiniteError) as caught:
            ops.log(Tensor([np.inf]))
    assert caught.value.where == {"op": "log"}


def test_behind_the_last_gate_no_gate_is_told() -> None:
    cell, params = make("lstm")
    state = {"h": np.zeros((1, H)), "c": np.full((1, H), np.inf)}
    with anomaly(), pytest.raises(NonFiniteError) as caught:
        unroll(cell, params, inputs(2, 1), state)
    assert caught.value.where == {"op": "mul", "layer": 0, "timestep": 0}


def test_a_bad_gradient_is_told_by_op_layer_timestep_and_gate() -> None:
    """The forward pass is finite; what comes back into the r gate of step 2 is not."""
    cell, own = make("gru")
    gates: list[Tensor] = []
    with anomaly(), np.errstate(all="ignore"):
        with listen(lambda name, value: gates.append(value) if name == "r" else None):
            unroll(cell, own, inputs(4, 2), layer=1)
        with pytest.raises(NonFiniteError) as caught:
            grad(gates[2], list(own.values()), np.full((2, H), np.inf))
    assert {key: caught.value.where[key] for key in ("layer", "timestep", "gate")} == {
        "layer": 1,
        "timestep": 2,
        "gate": "r",
    }
    assert "gradient" in str(caught.value)
    assert caught.value.where["op"] == "sigmoid"


def test_a_gradient_that_overflows_on_its_way_back_is_told() -> None:
    """relu with a large recurrent matrix: every value is finite, and so is the first gradient, not their product."""
    cell = load_cell("rnn").cls(1, 1, {"activation": "relu"})
    params = {
        "W_xh": Tensor(np.zeros((1, 1))),
        "W_hh": Tensor(np.full((1, 1), 1e100), requires_grad=True),
        "b_h": Tensor(np.zeros(1)),
    }
    with anomaly(), np.errstate(all="ignore"):
        done = unroll(cell, params, np.ones((6, 1, 1)), {"h": Tensor(np.full((1, 1), 1e-320), requires_grad=True)})
        with pytest.raises(NonFiniteError) as caught:
            grad(ops.sum(done.outputs[-1]), params["W_hh"])
    # dL/dh_5 = 1 and each step back multiplies by 1e100: dL/dh_2 = 1e300 still fits, and step 2 passes on 1e400
    assert caught.value.where == {"op": "matmul", "layer": 0, "timestep": 2, "gate": "a"}
    assert "gradient (input 0) of op matmul, layer 0, timestep 2, gate a" in str(caught.value)


def test_labels_of_gates_do_not_run_into_each_other() -> None:
    cell, params = make("gru")
    gates: dict[str, Tensor] = {}
    with anomaly(), listen(gates.__setitem__):
        done = unroll(cell, params, inputs(1, 2))
    for name in ("r", "z", "n"):
        node = gates[name].node
        assert node is not None and node.rare is not None
        assert node.rare["place"] == {"layer": 0, "timestep": 0, "gate": name}
    last = done.state["h"].node
    assert last.rare["place"] == {"layer": 0, "timestep": 0}  # z h + (1 - z) n is no gate


def test_listeners_hear_the_same_inside_anomaly() -> None:
    cell, params = make("lstm")
    heard: dict[bool, list[str]] = {True: [], False: []}
    with listen(lambda name, value: heard[False].append(name)):
        quiet = unroll(cell, params, inputs(2, 1)).outputs.data
    with anomaly(), listen(lambda name, value: heard[True].append(name)):
        np.testing.assert_array_equal(unroll(cell, params, inputs(2, 1)).outputs.data, quiet)
    assert heard[True] == heard[False] == list("ifog") * 2


def test_an_error_of_the_contract_passes_through_anomaly() -> None:
    class Wrong(load_cell("rnn").cls):  # type: ignore[misc]
        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            return {}

    _, params = make("rnn")
    with anomaly(), pytest.raises(PluginError, match="the states"):
        unroll(Wrong(I, H), params, inputs(2, 1))


# -------------------------------------------------------------------------------------------- scan


@pytest.mark.parametrize("name", CELLS)
def test_scan_gives_the_numbers_of_unroll_and_says_how(name: str) -> None:
    cell, params = make(name)
    mask = np.array([[True, True], [True, False], [True, False]])
    state = {key: np.full((2, *spec.shape), 0.3) for key, spec in specification(cell)[0].items()}
    slow, fast = (run(cell, params, inputs(3, 2), state, mask=mask, layer=1) for run in (unroll, scan))
    np.testing.assert_allclose(fast.outputs.data, slow.outputs.data, rtol=1e-12)
    assert (slow.executor, slow.reason) == ("unroll", "asked for")
    assert fast.reason and fast.reason != slow.reason
    targets = list(params.values())
    for one, two in zip(*(grad(ops.sum(done.outputs), targets, unused="zeros") for done in (slow, fast)), strict=True):
        np.testing.assert_allclose(two.data, one.data, rtol=1e-11, atol=1e-13)
    assert {key: len(values) for key, values in fast.states.items()} == {key: 3 for key in fast.state}


def test_scan_has_the_signature_of_unroll_and_two_more() -> None:
    *same, executor, recompute = inspect.signature(scan).parameters.values()
    assert same == list(inspect.signature(unroll).parameters.values())
    assert [(p.name, p.default) for p in (executor, recompute)] == [("executor", None), ("recompute", None)]


# ------------------------------------------------------------------------------- length and memory


def test_five_thousand_steps() -> None:
    """No recursion anywhere; and with g = 0.999 times orthogonal the norm of the gradient is g^(T-1-t)."""
    cell = load_cell("rnn").cls(2, 3, {"activation": "identity"})
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    params = {
        "W_xh": Tensor(np.zeros((2, 3)), requires_grad=True),
        "W_hh": Tensor(0.999 * q, requires_grad=True),
        "b_h": Tensor(np.zeros(3), requires_grad=True),
    }
    done = unroll(cell, params, np.ones((5000, 1, 2)))
    g = grad(ops.sum(done.outputs[-1]), [done.states["h"][t] for t in (0, 2500, 4999)])
    norms = [float(np.linalg.norm(value.data)) for value in g]
    np.testing.assert_allclose(np.array(norms) / norms[-1], [0.999**4999, 0.999**2499, 1.0], rtol=1e-9)


def test_without_a_tape_old_steps_are_let_go() -> None:
    """Under no_grad only the states asked for live on: no node, and no input slice, of any step."""
    cell, params = make("lstm")
    with no_grad():
        done = unroll(cell, params, inputs(50, 2))
    assert done.outputs.node is None
    assert all(value.node is None for values in done.states.values() for value in values)


def test_a_dropped_graph_is_freed_without_the_cycle_collector() -> None:
    cell, params = make("lstm")
    done = unroll(cell, params, inputs(20, 2))
    alive = weakref.ref(done.states["h"][3].data)
    gc.collect()
    gc.disable()
    grad(ops.sum(done.outputs), list(params.values()))
    del done
    gone = alive() is None
    gc.enable()
    assert gone
