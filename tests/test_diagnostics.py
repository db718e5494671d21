"""Gradient norms per timestep against answers known without the engine: algebra, BPTT by hand, finite differences."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn import (
    InputError,
    ModelConfig,
    PluginError,
    ShapeError,
    Tensor,
    build_model,
    grad,
    load_cell,
    no_grad,
    ops,
)
from tinygrad_rnn.cell import output_of
from tinygrad_rnn.diagnostics import (
    GradNormReport,
    beside_rnn,
    describe,
    grade,
    gradnorm,
    gradnorm_over,
    loss_step,
    register_diagnostic,
    rnn_like,
    rnn_share_text,
    run_diagnostic,
    share_text,
    watch_gradients,
)

V = 7
KNOWN = [0.5, 0.9, 1.0, 1.1]


def model_and_data(
    cell: str,
    T: int,
    B: int = 3,
    *,
    hidden: int = 8,
    layers: int = 1,
    embed: str = "hidden",
    seed: int = 0,
    dtype: Any = np.float64,
    **options: Any,
) -> tuple[Any, Any, Any, Any]:
    config = ModelConfig(cell=cell, hidden=hidden, layers=layers, embed=embed, cell_options=options)
    model = build_model(config, V, load_cell(cell))
    rng = np.random.default_rng(seed)
    params = model.init(rng, dtype)
    return model, params, rng.integers(0, V, (T, B)), rng.integers(0, V, (T, B))


def only(report: GradNormReport, **which: Any) -> Any:
    (series,) = report.select(**which)
    return series


# ------------------------------------------------------------------------------------------ analytic truth


@pytest.mark.parametrize("B", [1, 4])
@pytest.mark.parametrize("T", [10, 50, 200])
@pytest.mark.parametrize("g", KNOWN)
def test_linear_rnn_has_slope_ln_g_and_share_g_to_the_lag(g: float, T: int, B: int) -> None:
    model, params, x, y = model_and_data("rnn", T, B, activation="identity", recurrent_init=f"orthogonal:{g}")
    series = only(gradnorm(model, params, x, y, losses=("last",)))
    norm = np.array(series.norm)
    lag = T - 1 - np.arange(T)
    np.testing.assert_allclose(norm, norm[-1] * g**lag, rtol=1e-9)
    assert series.slope == pytest.approx(math.log(g), abs=1e-9)
    assert (series.lag, series.share) == (T - 1, pytest.approx(g ** (T - 1), rel=1e-9))
    assert series.verdict == grade(g ** (T - 1))
    assert series.reason.startswith(f"{series.verdict}: ")
    expected = next((n - 1 for n in range(T) if g**n < 1e-3), None)
    assert series.horizon == expected


@pytest.mark.parametrize(
    ("share", "verdict"),
    [
        (0.0, "vanishing"),
        (0.99e-3, "vanishing"),
        (1e-3, "weak"),
        (0.099, "weak"),
        (0.1, "healthy"),
        (10.0, "healthy"),
        (10.1, "exploding"),
        (math.inf, "exploding"),
        (math.nan, "exploding"),
    ],
)
def test_a_grade_is_that_of_the_share(share: float, verdict: str) -> None:
    assert grade(share) == verdict
    if 0 < share < math.inf:
        assert describe([share, 7.0, 1.0])[4] == verdict  # whatever lies between


def test_grades_hold_for_long_sequences_and_powers_that_underflow() -> None:
    for g, verdict in zip(KNOWN, ("vanishing", "vanishing", "healthy", "exploding"), strict=True):
        found = describe([g ** (2999 - t) if g <= 1 else 1e-200 * g ** (2999 - t) for t in range(3000)])
        assert found.verdict == verdict
        assert found.slope == pytest.approx(math.log(g), abs=1e-9)


def test_the_lag_chooses_where_the_share_is_taken() -> None:
    norm = [0.5 ** (19 - t) for t in range(20)]
    for lag, verdict in ((1, "healthy"), (4, "weak"), (10, "vanishing")):
        found = describe(norm, lag=lag)
        assert (found.lag, found.share, found.verdict) == (lag, 0.5**lag, verdict)
    assert describe(norm, lag=50).lag == 19
    with pytest.raises(InputError, match="--lag -1"):
        describe(norm, lag=-1)


@pytest.mark.parametrize(("activation", "bound"), [("tanh", 1.0), ("sigmoid", 0.25)])
@given(scale=st.floats(0.05, 8.0), seed=st.integers(0, 10_000))
def test_norms_never_exceed_the_bound_of_pascanu(activation: str, bound: float, scale: float, seed: int) -> None:
    """Pascanu, Mikolov & Bengio 2013, equations 6 and 7: sup|f'| times the largest singular value, to the lag."""
    T = 12
    model, params, x, y = model_and_data(
        "rnn", T, 2, hidden=5, seed=seed, activation=activation, recurrent_init=f"normal:{scale / math.sqrt(5)}"
    )
    norm = np.array(only(gradnorm(model, params, x, y, losses=("last",))).norm)
    factor = bound * np.linalg.norm(params["layers.0.W_hh"].data, 2)
    assert (norm <= norm[-1] * factor ** (T - 1 - np.arange(T)) * (1 + 1e-9)).all()


def test_the_training_loss_hides_that_the_network_vanishes() -> None:
    """The trap: spectral radius 0.6, T = 50. One loss per step holds the curve up; the last-step gradient is gone."""
    model, params, x, y = model_and_data("rnn", 50, 16, hidden=64, recurrent_init="orthogonal:0.6")
    report = gradnorm(model, params, x, y)
    last, train = only(report, loss="last"), only(report, loss="train")
    assert last.norm[0] / last.norm[-1] < 1e-11
    assert 0.3 < train.norm[0] / train.norm[-1] < 3
    assert (last.verdict, train.verdict) == ("vanishing", "healthy")
    assert "judge by the loss at the last step" in train.reason


# ------------------------------------------------------------------------------ against other computations


def sigmoid(a: Any) -> Any:
    return 1 / (1 + np.exp(-a))


def test_lstm_norms_equal_backpropagation_by_hand() -> None:
    T, B, H = 9, 4, 6
    model, params, x, y = model_and_data("lstm", T, B, hidden=H)
    p = {name.removeprefix("layers.0."): value.data for name, value in params.items()}
    h, c = np.zeros((B, H)), np.zeros((B, H))
    kept = []
    for t in range(T):
        e = p["embed.W"][x[t]]
        gates = {k: e @ p[f"W_x{k}"] + h @ p[f"W_h{k}"] + p[f"b_{k}"] for k in "ifog"}
        gates = {k: np.tanh(a) if k == "g" else sigmoid(a) for k, a in gates.items()}
        before, c = c, gates["f"] * c + gates["i"] * gates["g"]
        h = gates["o"] * np.tanh(c)
        kept.append((gates, before, c, h))

    def by_hand(counts: Any) -> tuple[Any, Any]:
        dh, dc = np.zeros((B, H)), np.zeros((B, H))
        norms = []
        for t in reversed(range(T)):
            gates, before, c, h = kept[t]
            logits = h @ p["readout.W"] + p["readout.b"]
            share = np.exp(logits - logits.max(-1, keepdims=True))
            share /= share.sum(-1, keepdims=True)
            dh = dh + counts[t] * (share - np.eye(V)[y[t]]) @ p["readout.W"].T
            dc = dc + dh * gates["o"] * (1 - np.tanh(c) ** 2)
            norms.append((np.linalg.norm(dh), np.linalg.norm(dc)))
            i, f, o, g = (gates[k] for k in "ifog")
            da = {
                "i": dc * g * i * (1 - i),
                "f": dc * before * f * (1 - f),
                "o": dh * np.tanh(c) * o * (1 - o),
                "g": dc * i * (1 - g**2),
            }
            dh = sum(da[k] @ p[f"W_h{k}"].T for k in "ifog")
            dc = dc * f
        return tuple(np.array(norms[::-1]).T)  # type: ignore[return-value]

    report = gradnorm(model, params, x, y, losses=("last", "train", "step:4"))
    weights = {"last": np.eye(T)[-1] / B, "train": np.full(T, 1 / (T * B)), "step:4": np.eye(T)[4] / B}
    for loss, counts in weights.items():
        dh, dc = by_hand(counts)
        np.testing.assert_allclose(only(report, loss=loss, state="h").norm, dh, rtol=1e-9, atol=1e-300)
        np.testing.assert_allclose(only(report, loss=loss, state="c").norm, dc, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize(("cell", "t"), [("gru", 0), ("mut1", 3), ("lstm", 2), ("lstm", 5)])
def test_norms_equal_finite_differences_of_the_state(cell: str, t: int) -> None:
    """Perturb h_t by hand and run on from t: no tape."""
    T, B, H, eps = 6, 2, 4, 1e-5
    model, params, x, y = model_and_data(cell, T, B, hidden=H)
    forward = model.forward(params, x)
    at_t = {name: values[t].data for name, values in forward.layers[0].states.items()}

    def loss(name: str, delta: Any) -> float:
        state = {**at_t, name: at_t[name] + delta}
        if name == "c":  # h_t = o tanh(c_t) moves along
            state["h"] = at_t["h"] / np.tanh(at_t["c"]) * np.tanh(state["c"])
        h = state["h"]
        if t < T - 1:
            with no_grad():
                h = model.forward(params, x[t + 1 :], [state]).layers[0].states["h"][-1].data
        logits = Tensor(h @ params["readout.W"].data + params["readout.b"].data)
        return float(ops.cross_entropy(logits, y[-1]))

    report = gradnorm(model, params, x, y, losses=("last",))
    for name in at_t:
        slopes = []
        for index in np.ndindex(B, H):
            step = np.zeros((B, H))
            step[index] = eps
            slopes.append((loss(name, step) - loss(name, -step)) / (2 * eps))
        assert only(report, state=name).norm[t] == pytest.approx(np.linalg.norm(slopes), rel=1e-6)


def test_inputs_equal_the_embedding_gradient_and_one_hot_has_one_too() -> None:
    model, params, _, y = model_and_data("gru", 7, 1)
    x = np.arange(7)[:, None]  # every symbol once, so row k of the embedding's gradient is dL/dx at step k
    report = gradnorm(model, params, x, y, wrt=("inputs", "params"))
    table = _parameter_gradient(model, params, x, y, "embed.W")
    np.testing.assert_allclose(only(report, loss="train").norm, np.linalg.norm(table, axis=1), rtol=1e-12)
    assert report.params["embed.W"] == pytest.approx(np.linalg.norm(table), rel=1e-12)
    assert report.params.keys() == params.keys()
    onehot = gradnorm(*model_and_data("gru", 7, 1, embed="onehot"), wrt=("states", "inputs"), losses=("last",))
    assert [series.state for series in onehot.series] == ["h", "x"]
    assert min(only(onehot, state="x").norm) > 0


def _parameter_gradient(model: Any, params: Any, x: Any, y: Any, name: str) -> Any:
    loss = ops.cross_entropy(model.forward(params, x).logits, y)
    return grad(loss, params[name]).data


def test_parameters_are_those_of_the_training_loss_whatever_is_drawn() -> None:
    model, params, x, y = model_and_data("lstm", 5, layers=2)
    alone = gradnorm(model, params, x, y, losses=("last",), wrt=("params",))
    assert alone.series == ()
    assert alone.params == pytest.approx(gradnorm(model, params, x, y, wrt=("states", "params")).params, rel=1e-12)


# --------------------------------------------------------------------------------------------- the report


def test_report_has_every_layer_state_and_loss_and_survives_json() -> None:
    model, params, x, y = model_and_data("lstm", 6, layers=2, dtype=np.float32)
    report = gradnorm(model, params, x, y, losses=("last", "train", "step:2", "last"))
    assert [(s.loss, s.layer, s.state) for s in report.series] == [
        (loss, layer, state) for loss in ("last", "train", "step:2") for layer in (0, 1) for state in ("h", "c")
    ]
    text = json.dumps(report.to_json(), allow_nan=False)
    data = json.loads(text)
    assert (data["cell"], data["layers"], data["hidden"], data["steps"]) == ("lstm", 2, 8, 6)
    for series in data["series"]:
        assert len(series["norm"]) == 6
        assert {
            "loss",
            "layer",
            "state",
            "norm",
            "slope",
            "horizon",
            "share",
            "lag",
            "verdict",
            "reason",
            "at",
            "by",
        } <= (series.keys())
    assert GradNormReport.from_json(data) == report
    with pytest.raises(InputError, match="gradnorm --json"):
        GradNormReport.from_json({"cell": "lstm"})


def test_step_k_counts_from_step_k() -> None:
    model, params, x, y = model_and_data("rnn", 20, activation="identity", recurrent_init="orthogonal:0.5")
    report = gradnorm(model, params, x, y, losses=("step:12", "step:19", "last"))
    series = only(report, loss="step:12")
    assert series.at == 12
    assert all(norm == 0 for norm in series.norm[13:])
    assert series.slope == pytest.approx(math.log(0.5), abs=1e-9)
    assert series.horizon == 9
    assert only(report, loss="step:19").norm == only(report, loss="last").norm


def test_watching_a_training_step_equals_measuring_it() -> None:
    model, params, x, y = model_and_data("gru", 6, layers=2)
    forward = model.forward(params, x)
    watched = watch_gradients(model, forward, ops.cross_entropy(forward.logits, y), y)
    measured = gradnorm(model, params, x, y)
    assert (watched.cell, watched.layers, watched.hidden, watched.steps) == ("gru", 2, 8, 6)
    for one, other in zip(watched.series, measured.series, strict=True):
        assert (one.loss, one.layer, one.state, one.verdict) == (other.loss, other.layer, other.state, other.verdict)
        assert one.norm == pytest.approx(other.norm, rel=1e-12)


def test_several_batches_give_the_root_mean_square() -> None:
    model, params, x, y = model_and_data("lstm", 10, 2)
    halves = [(x[:5], y[:5]), (x[5:], y[5:])]
    both = only(gradnorm_over(model, params, halves, losses=("last",)), state="h").norm
    one, two = (only(gradnorm(model, params, *half, losses=("last",)), state="h").norm for half in halves)
    np.testing.assert_allclose(both, np.sqrt((np.square(one) + np.square(two)) / 2), rtol=1e-12)
    carried = only(gradnorm_over(model, params, halves, losses=("last",), carry=True), state="h").norm
    state = model.forward(params, x[:5]).state
    started = only(gradnorm(model, params, x[5:], y[5:], losses=("last",), state=state), state="h").norm
    np.testing.assert_allclose(carried, np.sqrt((np.square(one) + np.square(started)) / 2), rtol=1e-12)


def test_float32_norms_do_not_underflow_before_float32_does() -> None:
    """Elements of 1e-30 have squares that float32 calls 0."""
    linear = {"activation": "identity", "recurrent_init": "orthogonal:0.3"}
    model, params, x, y = model_and_data("rnn", 60, dtype=np.float32, **linear)
    series = only(gradnorm(model, params, x, y, losses=("last",)))
    assert 0 < series.norm[0] < 1e-29
    assert series.slope == pytest.approx(math.log(0.3), abs=1e-4)


# ------------------------------------------------------------------------------------------------ describe


def test_a_single_step_is_healthy() -> None:
    found = describe([0.3])
    assert (found.slope, found.horizon, found.share, found.verdict) == (0.0, None, 1.0, "healthy")
    assert "single step" in found.reason


def test_zeros_and_infinities_are_judged() -> None:
    cut = describe([0.0, 0.0, 0.0, 1.0, 1.0])
    assert (cut.slope, cut.horizon, cut.share, cut.verdict) == (0.0, 1, 0.0, "vanishing")
    assert "exactly nothing reaches the first 3 steps: the path is cut" in cut.reason
    assert describe([math.inf, 2.0, 1.0]).verdict == "exploding"
    assert describe([math.nan, 2.0, 1.0]).slope == pytest.approx(math.log(2))
    wild = describe([math.nan, math.nan])
    assert (wild.slope, wild.horizon, wild.share, wild.verdict) == (0.0, None, None, "exploding")
    # no path at the loss's own step: counted from the first step that has one
    found = describe([1e-9, 1e-3, 1.0, 0.0], 1e-2)
    assert (found.horizon, found.share) == (1, 1e-9)


def test_an_underflow_is_told_from_a_path_that_is_cut() -> None:
    """A linear rnn of g = 0.1: float32 has no number below 1e-45, so the first steps have a norm of exactly 0."""
    linear = {"activation": "identity", "recurrent_init": "orthogonal:0.1"}
    narrow, wide = (
        only(gradnorm(*model_and_data("rnn", 60, dtype=dtype, **linear), losses=("last",)))
        for dtype in (np.float32, np.float64)
    )
    assert narrow.norm[0] == 0 < wide.norm[0]
    tiny = float(np.finfo(np.float32).tiny)
    assert narrow.numbers["underflow_steps"] == sum(norm < tiny for norm in narrow.norm)
    assert re.match(r"vanishing: less than \de-3\d of the gradient", narrow.reason)
    assert "underflow): use --dtype float64" in narrow.reason and "nothing reaches" not in narrow.reason
    assert wide.numbers["underflow_steps"] == 0 and "underflow" not in wide.reason
    # a norm that float32 still has, with few digits or none: 0.4**99 is 4e-40
    linear["recurrent_init"] = "orthogonal:0.4"
    stuck = only(gradnorm(*model_and_data("rnn", 100, dtype=np.float32, **linear), losses=("last",)))
    assert 0 < stuck.norm[0] < tiny and stuck.numbers["share_below"] == pytest.approx(tiny / stuck.norm[-1])
    assert re.match(r"vanishing: less than \de-3\d of the gradient is left 99 steps back; it halves", stuck.reason)
    report = gradnorm(*model_and_data("rnn", 100, dtype=np.float32, **linear), losses=("last",))
    both = beside_rnn(report, report).series[0]
    assert both.rnn_share == 0.0 and rnn_share_text(both) == share_text(both) and share_text(both).startswith("<")
    near = describe(stuck.norm, lag=20, tiny=tiny)
    assert near.numbers["share_below"] is None and "underflow" in near.reason
    deep = describe([0.1 ** (499 - t) for t in range(500)])
    assert "float64" in deep.reason and "fewer --steps" in deep.reason


def test_a_state_that_no_step_reads_is_told_as_one() -> None:
    found = describe([0.0, 0.0, 0.0, 0.2])
    assert (found.horizon, found.verdict) == (0, "vanishing")
    assert (
        "no step reads this state, or only a weight of 0 does" in found.reason and "keeps its size" not in found.reason
    )
    assert "no gradient at all" in describe([0.0, 0.0]).reason


@pytest.mark.parametrize("cell", ["lstm", "lru"])
def test_an_output_beside_a_memory_is_judged_by_the_memory(cell: str) -> None:
    """The h of an LSTM loses most of its gradient at once, the y of an LRU all of it; c, re and im keep theirs."""
    model, params, x, y = model_and_data(cell, 30, **({"r_min": 0.9} if cell == "lru" else {}))
    if cell == "lstm":
        params["layers.0.b_f"] = Tensor(np.full(8, 5.0), requires_grad=True)
    report = gradnorm(model, params, x, y, losses=("last",))
    output = only(report, state=output_of(model.cells[0]))
    memory = report.judged("last")
    assert output not in memory and {s.by for s in memory} == {s.state for s in memory}
    best = max(memory, key=lambda s: s.share)
    assert (output.by, output.verdict) == (best.state, best.verdict) == (best.state, "healthy")
    assert output.share < best.share
    assert f"healthy, as is {best.state}: the output beside the memory" in output.reason


def test_the_output_of_a_wrapped_cell_is_one_too() -> None:
    """Under residual the h of an LSTM is beside its memory as ever, and the h of a GRU is the memory."""
    for cell, judged in (("lstm", {"out": "c", "h": "c", "c": "c"}), ("gru", {"out": "h", "h": "h"})):
        model = build_model(ModelConfig(cell=cell, hidden=8, layers=2, wrap=("residual",)), V, load_cell(cell))
        params = model.init(np.random.default_rng(0), np.float64)
        symbols = np.random.default_rng(1).integers(0, V, (31, 3))
        report = gradnorm(model, params, symbols[:-1], symbols[1:], losses=("last",))
        assert {series.state: series.by for series in report.select(layer=1)} == judged


def test_an_output_beside_a_memory_that_vanishes_vanishes_with_it() -> None:
    model, params, x, y = model_and_data("lstm", 60)
    params["layers.0.b_f"] = Tensor(np.full(8, -3.0), requires_grad=True)
    assert {s.verdict for s in gradnorm(model, params, x, y, losses=("last",)).series} == {"vanishing"}


def test_words_and_numbers_agree() -> None:
    """The horizon of the table is that of the words, and a line that misses the curve is not told as its pace."""
    found = describe([0.5 ** (49 - t) for t in range(50)])
    assert found.horizon == 9 and "is left for 9 steps" in found.reason and "halves every step" in found.reason
    drop = describe([0.055 * math.exp(-0.002 * (48 - t)) for t in range(49)] + [1.0])
    assert "% per step" not in drop.reason
    assert "no single rate describes the curve: 0.055 after 1 step" in drop.reason
    bent = describe([max(0.5 ** (49 - t), 1e-4) for t in range(50)])
    assert "no single rate" in bent.reason
    assert "it keeps its size going back" in describe([1.0] * 50).reason
    hill = describe([1.0, *[100.0] * 20, 1.0])
    assert hill.verdict == "healthy" and "on its way it grows to 100 times" in hill.reason


def test_several_batches_give_the_range_of_the_share() -> None:
    model, params, x, y = model_and_data("lstm", 20)
    rng = np.random.default_rng(1)
    pieces = [(rng.integers(0, V, (20, 3)), rng.integers(0, V, (20, 3))) for _ in range(12)]
    series = only(gradnorm_over(model, params, pieces, losses=("last",)), state="c")
    many = series.numbers
    assert many["share_low"] < series.share < many["share_high"]
    shares = [only(gradnorm(model, params, *piece, losses=("last",)), state="c").share for piece in pieces]
    spread = np.std(np.log(shares), ddof=1) / math.sqrt(12)  # of the mean of the logarithms: nearly the same
    assert math.log(many["share_high"] / many["share_low"]) / 4 == pytest.approx(spread, rel=0.5)
    assert "share_low" not in only(gradnorm(model, params, x, y, losses=("last",)), state="c").numbers
    told = describe([0.09, 1.0], band=(0.05, 0.2)).reason
    assert "(0.05 to 0.2, so it may be healthy: use more batches)" in told
    assert "(" not in describe([0.5, 1.0], band=(0.4999, 0.5001)).reason  # no range to speak of
    assert "all of the gradient is left" in describe([1.0, 1.0]).reason


def test_a_sum_over_routes_through_the_layers_above_is_no_explosion() -> None:
    """Each route keeps its gradient: the sum over one route a step grows like their number. What grows by itself does
    explode, and a range beyond 10 promises nothing else than the verdict."""
    for above, routes in ((0, 1), (1, 50), (2, 51 * 50 / 2)):
        norm = [routes if t == 0 else 1.0 for t in range(50)]
        assert describe(norm, above=above).verdict == "healthy"
        assert describe([10.1 * routes, *norm[1:]], above=above).verdict == "exploding"
    found = describe([20.0] * 49 + [1.0], above=1, band=(9.0, 40.0))
    assert "may be" not in found.reason and "on its way" not in found.reason
    assert "50 routes lead here through the layers above" in found.reason
    for g, verdict in ((1.0, "healthy"), (1.2, "exploding")):
        linear = {"activation": "identity", "recurrent_init": f"orthogonal:{g}"}
        model, params, x, y = model_and_data("rnn", 50, layers=3, **linear)
        report = gradnorm(model, params, x, y, losses=("last",))
        assert {series.verdict for series in report.series} == {verdict}
        assert ("exploding" in report.advice) == (verdict == "exploding")


def test_a_report_beside_a_plain_rnn() -> None:
    model, params, x, y = model_and_data("lstm", 20, layers=2)
    rnn = rnn_like(model)
    assert (rnn.config.cell, rnn.config.hidden, rnn.config.layers, rnn.V) == ("rnn", 8, 2, V)
    other = gradnorm(rnn, rnn.init(np.random.default_rng(0), np.float64), x, y, losses=("last", "train"))
    report = beside_rnn(gradnorm(model, params, x, y, losses=("last", "step:9"), lag=7), other)
    for series in report.select(loss="last"):
        h = only(other, loss="last", layer=series.layer).norm
        assert series.rnn_share == pytest.approx(h[12] / h[19], rel=1e-12)
    assert {series.rnn_share for series in report.select(loss="step:9")} == {None}
    assert GradNormReport.from_json(report.to_json()) == report


def test_advice_is_what_the_model_does_not_have_yet() -> None:
    def told(cell: str, T: int = 60, **options: Any) -> str:
        return gradnorm(*model_and_data(cell, T, **options), losses=("last",)).advice

    assert "an orthogonal recurrent matrix" in told("rnn")
    assert "orthogonal" not in told("rnn", recurrent_init="orthogonal:0.6")
    assert "a larger forget_bias" in told("lstm", forget_bias=0)
    for cell, way in (
        ("mgu", "a smaller gate_bias"),
        ("gru", "chrono=T for T steps"),
        ("esn", "a smaller leak, or a larger radius"),
    ):
        assert f"{way}" in told(cell) and "lstm" not in told(cell)
    assert "a larger r_min" in told("lru", T=200)
    assert told("rnn", activation="identity", recurrent_init="orthogonal") == ""
    assert "--clip-norm" in told("rnn", activation="identity", recurrent_init="orthogonal:1.5")


def test_horizon_is_how_many_steps_the_norm_stays_above() -> None:
    norm = [0.5 ** (19 - t) for t in range(20)]
    assert describe(norm, 0.1).horizon == 3  # 0.5**3 = 0.125 is above, 0.5**4 = 0.0625 below
    assert describe(norm, 0.125).horizon == 3  # exactly at the share is not below it
    assert describe([1.0] * 20).horizon is None


def test_one_loss_per_step_explodes_only_when_the_norm_outgrows_their_number() -> None:
    assert describe([float(50 - t) for t in range(50)], every_step=True).verdict == "healthy"
    assert describe([1.1 ** (50 - t) for t in range(50)], every_step=True).verdict == "exploding"
    assert describe([0.8 ** (50 - t) for t in range(50)], every_step=True).verdict == "vanishing"


@pytest.mark.parametrize(
    ("norm", "eps", "message"),
    [
        ([], 1e-3, "one number per timestep"),
        ([1.0, -1.0], 1e-3, "at least 0"),
        ([1.0], 0.0, "--horizon-eps"),
        ([1.0], 1.0, "--horizon-eps"),
    ],
)
def test_describe_refuses_what_is_no_curve(norm: list[float], eps: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        describe(norm, eps)


@pytest.mark.parametrize("loss", ["lasst", "step", "step:", "step:-1", "step:x", "step:6", "step:1.5", ""])
def test_unknown_losses_are_one_line(loss: str) -> None:
    with pytest.raises(InputError, match="--loss") as caught:
        loss_step(loss, 6)
    assert "\n" not in str(caught.value)


def test_wrong_batches_and_targets_are_named() -> None:
    model, params, x, y = model_and_data("rnn", 6)
    with pytest.raises(InputError, match="did you mean states"):
        gradnorm(model, params, x, y, wrt=("state",))
    with pytest.raises(ShapeError, match="one shape"):
        gradnorm(model, params, x, y[:-1])
    with pytest.raises(ShapeError, match="6 steps"):
        gradnorm_over(model, params, [(x, y), (x[:3], y[:3])])
    with pytest.raises(InputError, match="at least one batch"):
        gradnorm_over(model, params, [])


def test_what_float32_cannot_round_has_no_say_in_the_slope() -> None:
    """With a forget gate above 1/2 the least float32 number rounds to itself: the curve ends in a plateau."""
    slopes = {}
    for dtype in (np.float32, np.float64):
        series = only(gradnorm(*model_and_data("lstm", 1500, hidden=16, dtype=dtype), losses=("last",)), state="c")
        slopes[dtype] = series.slope
        if dtype is np.float32:
            norm = np.array(series.norm)
            assert series.numbers["fitted_steps"] == np.count_nonzero(norm >= np.finfo(dtype).tiny)
            assert np.count_nonzero((norm > 0) & (norm < 1e-43)) > 300  # the plateau is there
    assert slopes[np.float32] == pytest.approx(slopes[np.float64], rel=0.02)


# ------------------------------------------------------------------------------------- diagnostics of plugins


def test_a_diagnostic_of_a_plugin(own_registry: None) -> None:
    @register_diagnostic
    def counts_of_test(loaded: Any, symbols: Any, rng: Any, *, top: int = 2, share: bool = False) -> Any:
        """How often the symbols occur."""
        counts = np.bincount(symbols)
        return {
            "counts": counts[:top] / (len(symbols) if share else 1),
            "total": counts.sum(),
            "drawn": rng.random(),
            "rows": [{"symbol": k, "count": n} for k, n in enumerate(counts)],
            "loaded": loaded,
            "tensor": Tensor(np.ones((1, 2))),
            "none": None,
        }

    symbols = np.array([0, 2, 2, 1])
    rng = np.random.default_rng(3)
    found = run_diagnostic("counts-of-test", None, symbols, rng, {"top": "3", "share": "yes"})  # type: ignore[arg-type]
    assert found["drawn"] == np.random.default_rng(3).random()
    assert found["rows"] == [{"symbol": 0, "count": 1}, {"symbol": 1, "count": 1}, {"symbol": 2, "count": 2}]
    assert (found["counts"], found["total"], found["tensor"]) == ([0.25, 0.25, 0.5], 4, [[1.0, 1.0]])
    json.dumps(found, allow_nan=False)
    with pytest.raises(InputError, match=r"diagnostic 'counts-of-test' has no option 'tops'; did you mean top\?"):
        run_diagnostic("counts-of-test", None, symbols, rng, {"tops": "3"})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"diagnostic 'counts-of-test', option 'top': expected a whole number"):
        run_diagnostic("counts-of-test", None, symbols, rng, {"top": "x"})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no diagnostic 'count-of-test'; did you mean counts-of-test"):
        run_diagnostic("count-of-test", None, symbols, rng)  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=r"counts-of-test', loaded: expected a JSON value .*, got <object object"):
        run_diagnostic("counts-of-test", object(), symbols, rng)  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=r"'counts-of-test' \(test_diagnostics\.py:\d+\): ValueError"):
        run_diagnostic("counts-of-test", None, "text", rng)  # type: ignore[arg-type]


def no_options(loaded: Any, symbols: Any, rng: Any) -> Any:
    """Returns what it should not."""
    return [1]


def untyped(loaded: Any, symbols: Any, rng: Any, *, top=2) -> Any:  # type: ignore[no-untyped-def]
    """An option without a type."""


def required(loaded: Any, symbols: Any, rng: Any, *, top: int) -> Any:
    """An option without a default."""


def test_a_diagnostic_that_breaks_its_contract(own_registry: None) -> None:
    for function in (untyped, required):
        with pytest.raises(PluginError, match="expected a type and a default for the option 'top'"):
            register_diagnostic(function)
    register_diagnostic(no_options)
    with pytest.raises(PluginError, match=r"expected a mapping of names to JSON values, got \[1\]"):
        run_diagnostic("no-options", None, np.zeros(3), np.random.default_rng(0))  # type: ignore[arg-type]
