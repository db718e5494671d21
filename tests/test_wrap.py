"""Wrappers against formulas written out by hand, alone and one in another; what they cannot do is told in one line."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import (
    Cell,
    InputError,
    ModelConfig,
    PluginError,
    State,
    Tensor,
    buffer,
    build_model,
    check_cell,
    draw_noise,
    grad,
    gradcheck,
    guard,
    init_cell,
    input_matrix,
    load_cell,
    ops,
    recurrent_matrix,
    scan,
    specification,
    unroll,
    wrap_cell,
)
from tinygrad_rnn.ops.linear import Factor
from tinygrad_rnn.wrap import WRAPPERS

Arrays = dict[str, np.ndarray[Any, Any]]
T, B, I, H = 5, 3, 3, 4


def make(cell: str, *wraps: str, I: int = I, H: int = H) -> Cell:
    return wrap_cell(load_cell(cell).cls, wraps)(I, H)


def arrays(cell: Cell, seed: int = 0) -> tuple[Arrays, Any, Arrays]:
    """Parameters, inputs (T, B, I) and a start state."""
    rng = np.random.default_rng(seed)
    states, params = specification(cell)
    return (
        {name: rng.normal(size=spec.shape) * 0.7 for name, spec in params.items()},
        rng.normal(size=(T, B, cell.I)),
        {name: rng.uniform(-0.9, 0.9, (B, *spec.shape)) for name, spec in states.items()},
    )


def sigmoid(a: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-a))


def lstm(p: Arrays, x: Any, h: Any, c: Any, product: Any = np.matmul, recurrent: Any = None) -> tuple[Any, Any]:
    """One step, with `product` for x W and `recurrent` for h W, which also get the matrix's name."""
    recurrent = recurrent or (lambda a, name: a @ p[name])
    gates = {
        g: (x @ p[f"W_x{g}"] if product is np.matmul else product(x, f"W_x{g}")) + recurrent(h, f"W_h{g}") + p[f"b_{g}"]
        for g in "ifog"
    }
    c = sigmoid(gates["f"]) * c + sigmoid(gates["i"]) * np.tanh(gates["g"])
    return sigmoid(gates["o"]) * np.tanh(c), c


def test_zoneout() -> None:
    """Krueger et al.: a unit that is zoned out keeps its value; outside training the expected mixture."""
    cell = make("lstm", "zoneout:0.3,0.6")
    p, xs, start = arrays(cell)
    noise = draw_noise(cell, T, B, np.random.default_rng(1))
    h, c = start["h"], start["c"]
    for t, x in enumerate(xs):
        new_h, new_c = lstm(p, x, h, c)
        h = np.where(noise["k_h"][t] == 0.0, h, new_h)
        c = np.where(noise["k_c"][t] == 0.0, c, new_c)
    done = unroll(cell, p, xs, start, noise=noise)
    np.testing.assert_allclose(done.state["h"].data, h, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(done.state["c"].data, c, rtol=1e-12, atol=1e-15)
    h, c = start["h"], start["c"]
    for x in xs:
        new_h, new_c = lstm(p, x, h, c)
        h, c = 0.3 * h + 0.7 * new_h, 0.6 * c + 0.4 * new_c
    np.testing.assert_allclose(unroll(cell, p, xs, start).state["h"].data, h, rtol=1e-12, atol=1e-15)


def test_recurrent_dropout_has_one_mask_for_the_sequence() -> None:
    """Gal & Ghahramani: the same units are dropped at every timestep, and only on their way into a matrix."""
    cell = make("lstm", "recurrent_dropout:0.4")
    p, xs, start = arrays(cell)
    noise = draw_noise(cell, T, B, np.random.default_rng(2))
    mask = noise["m"][0]
    assert set(np.unique(mask)) == {0.0, 1.0 / 0.6}
    h, c = start["h"], start["c"]
    for x in xs:
        h, c = lstm(p, x, h, c, recurrent=lambda a, name: (a * mask) @ p[name])
    np.testing.assert_allclose(unroll(cell, p, xs, start, noise=noise).state["c"].data, c, rtol=1e-12, atol=1e-15)
    plain = unroll(make("lstm"), p, xs, start)
    np.testing.assert_allclose(unroll(cell, p, xs, start).outputs.data, plain.outputs.data, rtol=1e-14)


def test_a_state_that_is_carried_on_directly_is_not_dropped() -> None:
    """A GRU that keeps its state keeps it under dropout too: the mask is on the products alone."""
    cell = make("gru", "recurrent_dropout:0.5")
    p, xs, start = arrays(cell)
    p["b_z"] = p["b_z"] + 100.0  # z = 1
    noise = draw_noise(cell, T, B, np.random.default_rng(0))
    np.testing.assert_allclose(unroll(cell, p, xs, start, noise=noise).state["h"].data, start["h"], rtol=1e-12)


def test_layernorm() -> None:
    """Ba et al.: mean 0 and variance 1 over the units of each product, times a gain."""
    cell = make("lstm", "layernorm")
    p, xs, start = arrays(cell)

    def normed(a: Any, name: str) -> Any:
        y = a @ p[name]
        return (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-5) * p[f"gain_{name}"]

    h, c = start["h"], start["c"]
    for x in xs:
        h, c = lstm(p, x, h, c, normed, normed)
    np.testing.assert_allclose(unroll(cell, p, xs, start).state["c"].data, c, rtol=1e-12)
    assert specification(cell)[1]["gain_W_hf"].init == "constant:1.0"


def test_layernorm_does_not_see_the_scale_of_a_matrix() -> None:
    cell = make("rnn", "layernorm")
    p, xs, start = arrays(cell)
    scaled = {**p, "W_hh": p["W_hh"] * 1000.0, "W_xh": p["W_xh"] * 1000.0}
    done = [unroll(cell, params, xs, start).outputs.data for params in (p, scaled)]
    np.testing.assert_allclose(done[0], done[1], atol=2e-4)


def test_residual_and_highway() -> None:
    for width in (H, I):
        p, xs, start = arrays(make("gru", "highway", I=width))
        inner = unroll(make("gru", I=width), p, xs, {"h": start["h"]}).outputs.data
        past = xs if width == H else xs @ p["W_skip"]
        residual = unroll(make("gru", "residual", I=width), p, xs, start)
        np.testing.assert_allclose(residual.outputs.data, inner + past, rtol=1e-12)
        np.testing.assert_allclose(residual.state["h"].data, inner[-1], rtol=1e-12)  # the cell does not see it
        t = sigmoid(xs @ p["W_t"] + p["b_t"])
        highway = unroll(make("gru", "highway", I=width), p, xs, start)
        np.testing.assert_allclose(highway.outputs.data, t * inner + (1 - t) * past, rtol=1e-12)


def test_the_first_wrapper_is_the_innermost() -> None:
    """Zoneout inside: the input passes by at full strength. Outside: it is zoned out as well."""
    inside, outside = make("rnn", "zoneout:0.5", "residual", I=H), make("rnn", "residual", "zoneout:0.5", I=H)
    p, xs, start = arrays(inside)
    a = np.tanh(xs[0] @ p["W_xh"] + start["h"] @ p["W_hh"] + p["b_h"])
    h = 0.5 * a + 0.5 * start["h"]
    np.testing.assert_allclose(unroll(inside, p, xs[:1], start).outputs.data[0], h + xs[0])
    np.testing.assert_allclose(
        unroll(outside, p, xs[:1], start).outputs.data[0], 0.5 * (a + xs[0]) + 0.5 * start["out"]
    )
    assert inside.name == "rnn+zoneout:0.5+residual"


@pytest.mark.parametrize(
    "wraps", [["zoneout:0.2"], ["recurrent_dropout:0.2"], ["layernorm"], ["residual"], ["highway"]]
)
def test_gradients(wraps: list[str]) -> None:
    cell = make("gru", *wraps)
    p, xs, start = arrays(cell)
    noise = draw_noise(cell, 2, B, np.random.default_rng(0))

    def run(xs: Any, *values: Any) -> Any:
        params = dict(zip(p, values, strict=False))
        return unroll(cell, params, xs, dict(zip(start, values[len(p) :], strict=True)), noise=noise).outputs

    gradcheck(run, xs[:2], *p.values(), *start.values(), rng=np.random.default_rng(3))


@pytest.mark.parametrize("wraps", [[], ["zoneout:0.2", "residual"], ["layernorm", "recurrent_dropout:0.3", "highway"]])
def test_the_reference_is_wrapped_too(wraps: list[str]) -> None:
    from types import SimpleNamespace

    cell = make("lstm", *wraps)
    p, xs, start = arrays(cell)
    means = {name: kind.mean for name, kind in cell.noise().items()}
    found = cell.reference(SimpleNamespace(**p, **means), xs[0], SimpleNamespace(**start))
    assert found is not None
    for name, value in unroll(cell, p, xs[:1], start).state.items():
        np.testing.assert_allclose(found[name], value.data, rtol=1e-12)


@pytest.mark.parametrize("wraps", [["residual"], ["layernorm", "residual"], ["residual", "zoneout:0.1", "layernorm"]])
def test_without_a_reference_there_is_none_to_wrap(wraps: list[str]) -> None:
    class Bare(Cell):
        name = "bare_of_test"
        summary = citation = "of a test"
        equation = "h' = x W"

        def state(self) -> dict[str, State]:
            return {"h": State((self.H,))}

        def params(self) -> dict[str, Any]:
            return {"W": input_matrix(self.I, self.H)}

        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            return {"h": x @ p.W}

    report = check_cell(wrap_cell(Bare, wraps))
    assert [check.outcome for check in report.checks if check.name == "reference"] == ["skipped"]


def test_the_same_wrapper_twice_has_names_of_its_own() -> None:
    cell = make("lstm", "zoneout:0.1", "zoneout:0.2", "layernorm", "layernorm", "highway", "highway")
    states, params = specification(cell)
    assert list(states) == ["out2", "out", "h", "c"]
    assert {"W_t", "W_t2", "gain_W_xi", "gain_W_xi2"} <= params.keys()
    assert set(cell.noise()) == {"k_h", "k_c", "k_h2", "k_c2"}
    init_cell(cell, np.random.default_rng(0))


# ------------------------------------------------------------------------------------------- in a model


def test_a_model_draws_noise_in_training_alone() -> None:
    config = ModelConfig(cell="lstm", wrap=("zoneout:0.3", "layernorm"), hidden=6, layers=2)
    model = build_model(config, 5, load_cell("lstm"))
    params = model.init(np.random.default_rng(0), np.float64)
    ids = np.random.default_rng(1).integers(0, 5, (7, 3))
    plain = [model.forward(params, ids).logits.data for _ in range(2)]
    drawn = [model.forward(params, ids, rng=np.random.default_rng(seed)).logits.data for seed in (1, 1, 2)]
    assert np.array_equal(*plain) and np.array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - plain[0]).max() > 1e-4 < np.abs(drawn[0] - drawn[2]).max()
    trained = model.forward(params, ids, rng=np.random.default_rng(0))
    assert {layer.executor for layer in trained.layers} != {"unroll"}
    found = grad(ops.cross_entropy(trained.logits, ids), [params["layers.1.gain_W_xi"], params["layers.0.W_hf"]])
    assert all(np.abs(value.data).max() > 0.0 for value in found)


def test_layers_after_the_first_need_no_matrix_to_pass_by() -> None:
    config = ModelConfig(cell="rnn", wrap=("residual",), hidden=6, layers=3, embed="4")
    names = build_model(config, 5, load_cell("rnn")).params()
    assert [name for name in names if name.endswith("W_skip")] == ["layers.0.W_skip"]


# --------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        ("zoneot:0.1", "--wrap: no wrapper 'zoneot'; did you mean zoneout?"),
        ("", "--wrap: no wrapper ''"),
        (
            "zoneout",
            "--wrap zoneout: expected one rate in [0, 1), as in zoneout:0.1, or one for each of h, c, got none",
        ),
        ("zoneout:0.1,0.2,0.3", "or one for each of h, c, got 0.1,0.2,0.3"),
        ("zoneout:1", "got 1"),
        ("zoneout:much", "--wrap 'zoneout:much': expected numbers after the colon, as in zoneout:0.1, got 'much'"),
        ("zoneout:nan", "expected numbers after the colon"),
        ("recurrent_dropout:1.5", "--wrap recurrent_dropout: expected one rate in [0, 1), as in recurrent_dropout:0.1"),
        ("recurrent-dropout", "got none"),
        ("layernorm:3", "--wrap layernorm: expected no number, got 3; write layernorm"),
        ("highway:1,2", "--wrap highway: expected the start of the gate's bias alone, got 1,2"),
    ],
)
def test_what_cannot_be_is_told(wrap: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        make("lstm", wrap)
    assert "\n" not in str(caught.value)


def test_an_output_of_another_shape_cannot_be_joined() -> None:
    class Wide(Slip):
        def state(self) -> dict[str, State]:
            return {"h": State((2, self.H))}

    with pytest.raises(
        InputError, match=r"--wrap residual: expected a cell whose output has H=4 units, got h of shape"
    ):
        wrap_cell(Wide, ["residual"])(I, H)
    wrap_cell(Wide, ["zoneout:0.1"])(I, H)


def test_a_declared_output_is_what_is_joined_and_read() -> None:
    class Read(Slip):
        output = "y"

        def state(self) -> dict[str, State]:
            return {"h": State((1,)), "y": State((self.H,))}

        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            y = x @ p.W
            return {"h": s.h + ops.sum(y, 1, keepdims=True), "y": y}

    xs = np.random.default_rng(0).normal(size=(3, 2, H))
    p = {"W": np.eye(H), "U": np.eye(H)}
    for wraps, expected in ((["zoneout:0"], xs), (["residual"], 2 * xs), (["residual", "zoneout:0"], 2 * xs)):
        cell = wrap_cell(Read, wraps)(H, H)
        for run in (unroll, scan):
            np.testing.assert_allclose(run(cell, p, xs).outputs.data, expected, rtol=1e-15)
    assert "out' = y' + x" in wrap_cell(Read, ["residual"]).equation


class Slip(Cell):
    """A cell whose author uses a matrix in another way than a product from the left."""

    name = "slip"
    summary = "a cell of a test"
    citation = "none"
    equation = "h' = tanh(x W + h * U)"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> Any:
        return {"W": input_matrix(self.I, self.H), "U": recurrent_matrix(self.H)}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(ops.matmul(x, p.W) + ops.sum(p.U * s.h[:, None, :], axis=-1))}


def test_a_matrix_that_is_used_otherwise_is_told_with_the_authors_line() -> None:
    cell = wrap_cell(Slip, ["layernorm"])(I, H)
    told = r"cell slip\+layernorm, step \(test_wrap.py:\d+\): .*expected a @ W.* got it of shape \(4, 4\) beside"
    with pytest.raises(PluginError, match=told):
        unroll(cell, init_cell(cell, np.random.default_rng(0)), np.ones((T, B, I)))
    fine = wrap_cell(Slip, ["zoneout:0.1"])(I, H)
    unroll(fine, init_cell(fine, np.random.default_rng(0)), np.ones((T, B, I)))


class Antisymmetric(Slip):
    """h (U - U.T - 0.1 I): the product is with what is computed from the matrix."""

    name = "antisymmetric_of_test"

    def params(self) -> Any:
        return {**super().params(), "eye": buffer((self.H, self.H), "identity")}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(x @ p.W + s.h @ (p.U - p.U.T - 0.1 * p.eye))}

    def reference(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": np.tanh(x @ p.W + s.h @ (p.U - p.U.T - 0.1 * p.eye))}


def test_what_is_computed_from_a_matrix_is_wrapped_like_the_matrix() -> None:
    cell = wrap_cell(Antisymmetric, ["layernorm"])(I, H)
    p, xs, start = arrays(cell)

    def normed(y: Any, gain: Any) -> Any:
        return (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-5) * gain

    A = p["U"] - p["U"].T - 0.1 * p["eye"]  # here random
    h = np.tanh(normed(xs[0] @ p["W"], p["gain_W"]) + normed(start["h"] @ A, p["gain_U"]))
    np.testing.assert_allclose(unroll(cell, p, xs[:1], start).outputs.data[0], h, rtol=1e-12)
    for wraps in (["layernorm"], ["recurrent_dropout:0.2"]):
        report = check_cell(wrap_cell(Antisymmetric, wraps))
        assert [check.outcome for check in report.checks if check.name in ("reference", "scan")] == ["passed"] * 2


def test_arithmetic_with_a_wrapped_matrix_is_that_with_the_matrix() -> None:
    rng = np.random.default_rng(0)
    a, U, V = rng.normal(size=(3, 2, 2))
    calls: list[Any] = []

    def product(a: Any, W: Any) -> Any:
        calls.append(W)
        return a @ W

    def other(a: Any, W: Any) -> Any:
        return a @ W

    W = Factor(U, product)
    for made, expected in [
        (W.T, U.T),
        (W + V, U + V),
        (V + W, V + U),
        (W - W.T, U - U.T),
        (V - W, V - U),
        (1.0 - W, 1.0 - U),
        (W * V, U * V),
        (2.0 * -W, -2.0 * U),
        (W / 4.0, U / 4.0),
    ]:
        np.testing.assert_allclose(a @ made, a @ expected, rtol=1e-12)
    assert len(calls) == 9
    for wrong in (lambda: W - Factor(V, other), lambda: W * V[:1], lambda: W @ V, lambda: W[0], lambda: W.sum()):
        with pytest.raises(TypeError, match="a wrapped matrix W: expected a @ W"):
            wrong()


SCALE = {"x": 1.0}


class Global(Slip):
    """Reads a dict of its module."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(x @ p.W * SCALE["x"] + s.h @ p.U)}


class Counting(Slip):
    """Keeps state in itself."""

    calls = 0.0

    def check(self) -> None:
        self.calls = 0.0

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        self.calls += 1.0
        return {"h": ops.tanh(x @ p.W * self.calls + s.h @ p.U)}


def test_the_compiler_looks_into_the_wrapped_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = wrap_cell(Global, ["zoneout:0.1", "residual"])(I, H)
    p, xs, start = arrays(cell)
    before = scan(cell, p, xs, start)
    assert before.executor != "unroll", before.reason
    monkeypatch.setitem(SCALE, "x", 2.0)
    after = scan(cell, p, xs, start).outputs.data
    np.testing.assert_allclose(after, unroll(cell, p, xs, start).outputs.data, rtol=1e-12)
    assert np.abs(after - before.outputs.data).max() > 1e-3
    counting = wrap_cell(Counting, ["residual"])(I, H)
    reason = scan(counting, p, xs, start).reason
    assert re.search(r"the step changes the attribute calls of the cell \(test_wrap.py:\d+\)", reason)


def test_every_wrapper_says_what_it_does_and_where_it_is_from() -> None:
    for word, kind in WRAPPERS.items():
        assert kind.source.startswith(f"{word}: ") and kind.__doc__
    cell = make("lstm", "zoneout:0.1", "layernorm")
    assert cell.equation.count("\n") == load_cell("lstm").cls.equation.count("\n") + 2
    assert "zoneout" in cell.citation and "layernorm" in cell.citation
    assert "probability 0.1" in cell.equation
    assert isinstance(Tensor(np.ones((2, 2))) @ np.ones((2, 2)), Tensor)


@pytest.mark.parametrize("wraps", [("layernorm", "zoneout:0.3"), ("recurrent_dropout:0.3", "residual", "highway")])
def test_a_wrapped_model_stays_on_its_device(wraps: tuple[str, ...]) -> None:
    """What CuPy would refuse, the guard arrays refuse; the same seed draws the same noise."""
    config = ModelConfig(cell="gru", wrap=wraps, hidden=4, layers=2, embed="3")
    model = build_model(config, 5, load_cell("gru"))
    ids = np.random.default_rng(1).integers(0, 5, (6, 2))
    results = []
    for xp, put in ((np, lambda array: array), (guard.MODULE, guard.asarray)):
        params = model.init(np.random.default_rng(0), np.float64, xp)
        done = model.forward(params, put(ids), rng=np.random.default_rng(2))
        found = grad(ops.cross_entropy(done.logits, put(ids)), list(params.values()))
        results.append([value.data for value in (done.logits, *found)])
    for expected, value in zip(*results, strict=True):
        assert type(value) is guard.Array
        np.testing.assert_allclose(value.get(), expected, rtol=1e-11, atol=1e-13)
