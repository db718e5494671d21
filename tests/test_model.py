"""The model: names, shapes and counts of parameters, initialisation, input variants, dropout, errors."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import (
    RECIPES,
    Cell,
    DtypeError,
    InputError,
    ModelConfig,
    NonFiniteError,
    RunConfig,
    ShapeError,
    State,
    Tensor,
    available_cells,
    build_model,
    grad,
    gradcheck,
    gradnorm,
    input_matrix,
    load_cell,
    ops,
    register_cell,
    unroll,
)
from tinygrad_rnn.config import replace
from tinygrad_rnn.engine import anomaly, listen
from tinygrad_rnn.model import Model, detach, layer_params


def make(V: int = 5, **settings: Any) -> Model:
    config = ModelConfig(**{"hidden": 4, "layers": 2, "embed": "3", **settings})
    return build_model(config, V, load_cell(config.cell))


def init(model: Model, seed: int = 0, dtype: Any = np.float64) -> dict[str, Tensor]:
    return model.init(np.random.default_rng(seed), dtype)


def symbols(T: int = 4, B: int = 2, V: int = 5, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, V, (T, B))


# -------------------------------------------------------------------------------------- parameters


def test_names_and_shapes() -> None:
    shapes = {name: spec.shape for name, spec in make(cell="gru").params().items()}
    gates = {
        f"layers.{k}.{name}": shape
        for k, size in ((0, 3), (1, 4))
        for gate in "rzn"
        for name, shape in ((f"W_x{gate}", (size, 4)), (f"W_h{gate}", (4, 4)), (f"b_{gate}", (4,)))
    }
    assert shapes == {"embed.W": (5, 3), **gates, "readout.W": (4, 5), "readout.b": (5,)}
    assert next(iter(shapes)) == "embed.W"
    assert {name: value.shape for name, value in init(make(cell="gru")).items()} == shapes


def test_count_of_the_char_rnn_default() -> None:
    """char-rnn's 240,321 parameters at 65 symbols (reference/tasks.md) count every bias of a gate twice.

    Its LSTM adds two bias vectors that are only ever used as a sum; ours has one: 4 gates * 128 units * 2 layers fewer.
    """
    config = replace(RunConfig(), RECIPES["char-rnn"]).model
    assert build_model(config, 65, load_cell("lstm")).count() == 240_321 - 4 * 128 * 2 == 239_297
    large = dataclasses.replace(config, hidden=512)
    assert build_model(large, 65, load_cell("lstm")).count() == 3_320_385 - 4 * 512 * 2


@pytest.mark.parametrize(
    ("cell", "options", "I", "expected"),
    [
        ("rnn", {}, 3, 3 * 4 + 4 * 4 + 4),
        ("lstm", {}, 3, 4 * (3 * 4 + 4 * 4 + 4)),
        ("gru", {}, 3, 3 * (3 * 4 + 4 * 4 + 4)),
        ("gru", {"form": "reset_after"}, 3, 3 * (3 * 4 + 4 * 4 + 4) + 4),
        ("mut1", {}, 4, 2 * 4 * 4 + 2 * 4 * 4 + 3 * 4),
        ("mut1", {}, 3, 2 * 3 * 4 + 2 * 4 * 4 + 3 * 4 + 3 * 4),  # and a learned P
        ("mut1", {"input_map": "fixed"}, 3, 2 * 3 * 4 + 2 * 4 * 4 + 3 * 4),  # a buffer is not counted
        ("mut2", {}, 4, 2 * 4 * 4 + 3 * 4 * 4 + 3 * 4),
        ("mut3", {}, 3, 3 * 3 * 4 + 3 * 4 * 4 + 3 * 4),
    ],
)
def test_count_of_every_cell(cell: str, options: dict[str, Any], I: int, expected: int) -> None:
    model = make(cell=cell, cell_options=options, layers=1, embed=str(I))
    assert model.count() == expected + 5 * I + 4 * 5 + 5
    params = init(model)
    assert sum(value.size for value in params.values() if value.requires_grad) == model.count()


@pytest.mark.parametrize("embed", ["onehot", "hidden", "7"])
def test_embed_variants(embed: str) -> None:
    model = make(embed=embed)
    I = {"onehot": 5, "hidden": 4, "7": 7}[embed]
    assert [cell.I for cell in model.cells] == [I, 4]
    params = init(model)
    assert ("embed.W" in params) is (embed != "onehot")
    x = symbols()
    done = model.forward(params, x)
    table = np.eye(5) if embed == "onehot" else params["embed.W"].data
    h: Any = table[x]
    for k, cell in enumerate(model.cells):
        h = unroll(cell, layer_params(params, k), h).outputs.data
    np.testing.assert_allclose(done.logits.data, h @ params["readout.W"].data + params["readout.b"].data, rtol=1e-12)
    np.testing.assert_array_equal(done.inputs.data, table[x])


def test_a_tied_model_is_one_whose_embedding_is_the_readout_transposed() -> None:
    """Values, and the gradient of the shared matrix: the sum of what embedding and readout get."""
    tied, free = make(embed="hidden", tie=True), make(embed="hidden")
    params = init(tied)
    assert "embed.W" not in params and tied.count() == free.count() - 5 * 4
    x, y = symbols(), symbols(seed=1)
    copied = {**params, "embed.W": Tensor(params["readout.W"].data.T.copy(), requires_grad=True)}
    done, other = tied.forward(params, x), free.forward(copied, x)
    np.testing.assert_allclose(done.logits.data, other.logits.data, rtol=1e-12)
    got = grad(ops.cross_entropy(done.logits, y), [params["readout.W"], params["layers.0.W_xi"]])
    want = grad(ops.cross_entropy(other.logits, y), [copied[n] for n in ("readout.W", "layers.0.W_xi", "embed.W")])
    np.testing.assert_allclose(got[0].data, want[0].data + want[2].data.T, rtol=1e-10)
    np.testing.assert_allclose(got[1].data, want[1].data, rtol=1e-10)
    step = tied.stepper(params, 2)
    for row, logits in zip(x, done.logits.data, strict=True):
        np.testing.assert_allclose(step(row[None]), logits, rtol=1e-10)


def test_the_gradient_of_a_tied_model() -> None:
    model = make(V=4, cell="gru", layers=1, hidden=3, embed="3", tie=True)
    params = init(model)
    x, y = symbols(3, 2, 4), symbols(3, 2, 4, seed=1)

    def loss(W: Any, b: Any) -> Any:
        return ops.cross_entropy(model.forward({**params, "readout.W": W, "readout.b": b}, x).logits, y)

    gradcheck(loss, params["readout.W"].data, params["readout.b"].data, rng=np.random.default_rng(0))


@pytest.mark.parametrize("embed", ["onehot", "3"])
def test_what_cannot_be_tied(embed: str) -> None:
    with pytest.raises(InputError, match=rf"--tie: expected an embedding of as many units as --hidden, 4, .* {embed}"):
        make(embed=embed, tie=True)


def test_onehot_equals_an_identity_embedding() -> None:
    one, other = make(embed="onehot"), make(embed="5")
    params = init(one)
    table = Tensor(np.eye(5), requires_grad=True)
    x = symbols()
    np.testing.assert_array_equal(
        one.forward(params, x).logits.data, other.forward({**params, "embed.W": table}, x).logits.data
    )


# -------------------------------------------------------------------------------- initialisation


def test_the_forget_bias_starts_at_one_on_every_layer() -> None:
    """The trap of reference/cells.md: not on the first layer alone, and kept under an override of the other biases."""
    for settings in ({}, {"init": "uniform:0.08", "init_bias": "uniform:0.08"}, {"init_bias": "zeros"}):
        params = init(make(cell="lstm", layers=3, **settings))
        for k in range(3):
            np.testing.assert_array_equal(params[f"layers.{k}.b_f"].data, np.ones(4))
            assert np.all(np.abs(params[f"layers.{k}.b_i"].data) <= 0.08)


def test_char_rnn_initialisation() -> None:
    config = replace(RunConfig(), RECIPES["char-rnn"]).model
    params = build_model(config, 65, load_cell("lstm")).init(np.random.default_rng(0), np.float64)
    for name, value in params.items():
        if name.endswith("b_f"):
            np.testing.assert_array_equal(value.data, 1.0)
        else:
            assert 0.08 * 0.9 < np.abs(value.data).max() <= 0.08, name


def test_overrides_reach_weights_and_biases_apart() -> None:
    cells = init(make(cell="gru"))
    weights = init(make(cell="gru", init="constant:0.5"))
    biases = init(make(cell="gru", init_bias="constant:0.25"))
    for name in cells:
        is_bias = name.rpartition(".")[2].startswith("b")
        np.testing.assert_array_equal(weights[name].data, 0.0 if is_bias else 0.5)
        if is_bias:
            np.testing.assert_array_equal(biases[name].data, 0.25)
        else:
            np.testing.assert_array_equal(biases[name].data, cells[name].data)


def test_an_override_leaves_a_buffer_alone() -> None:
    params = init(make(cell="mut1", cell_options={"input_map": "fixed"}, init="constant:9"))
    np.testing.assert_allclose(np.abs(params["layers.0.P"].data), 1 / math.sqrt(3))
    assert not params["layers.0.P"].requires_grad
    assert params["layers.0.W_xz"].requires_grad


def test_a_cell_option_names_the_recurrent_initialiser() -> None:
    params = init(make(cell="rnn", cell_options={"recurrent_init": "orthogonal:0.9"}))
    for k in range(2):
        W = params[f"layers.{k}.W_hh"].data
        np.testing.assert_allclose(W.T @ W, 0.81 * np.eye(4), atol=1e-13)


def test_a_seed_gives_the_same_parameters_in_both_dtypes() -> None:
    model = make()
    one, same, other, short = init(model), init(model), init(model, 1), init(model, dtype=np.float32)
    for name in one:
        np.testing.assert_array_equal(one[name].data, same[name].data)
        np.testing.assert_array_equal(short[name].data, one[name].data.astype(np.float32))
    assert np.any(one["readout.W"].data != other["readout.W"].data)
    assert {value.dtype for value in short.values()} == {np.dtype(np.float32)}


# ---------------------------------------------------------------------------------------- forward


def test_forward_carries_the_state() -> None:
    model = make(cell="lstm")
    params = init(model)
    x = symbols(6)
    whole = model.forward(params, x)
    first = model.forward(params, x[:2])
    second = model.forward(params, x[2:], detach(first.state))
    np.testing.assert_array_equal(np.concatenate([first.logits.data, second.logits.data]), whole.logits.data)
    assert [list(layer) for layer in whole.state] == [["h", "c"], ["h", "c"]]
    np.testing.assert_array_equal(whole.state[1]["h"].data, whole.layers[1].outputs.data[-1])
    start = model.start(2, params)
    np.testing.assert_array_equal(model.forward(params, x, start).logits.data, whole.logits.data)


def test_forward_passes_the_mask_to_every_layer() -> None:
    model = make(cell="gru")
    params = init(model)
    x = symbols(5, 3)
    mask = np.arange(5)[:, None] < np.array([5, 2, 3])
    done = model.forward(params, x, mask=mask)
    for b, length in enumerate([5, 2, 3]):
        alone = model.forward(params, x[:length, b : b + 1])
        np.testing.assert_allclose(done.logits.data[:length, b], alone.logits.data[:, 0], rtol=1e-12)
        for k in range(2):
            np.testing.assert_allclose(done.state[k]["h"].data[b], alone.state[k]["h"].data[0], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_forward_keeps_the_dtype(dtype: Any) -> None:
    for embed in ("onehot", "3"):
        model = make(embed=embed, dropout=0.5)
        params = init(model, dtype=dtype)
        done = model.forward(params, symbols(), rng=np.random.default_rng(0))
        assert {done.logits.dtype, *(v.dtype for layer in done.state for v in layer.values())} == {np.dtype(dtype)}
        assert {g.dtype for g in grad(ops.sum(done.logits), list(params.values()))} == {np.dtype(dtype)}


@pytest.mark.parametrize("cell", ["lstm", "mut2"])
def test_gradcheck_of_the_whole_model(cell: str) -> None:
    model = make(cell=cell, hidden=3)
    params = init(model)
    names = list(params)
    x, y = symbols(3), symbols(3, seed=1)

    def loss(*values: Tensor) -> Any:
        return ops.cross_entropy(model.forward(dict(zip(names, values, strict=True)), x).logits, y)

    gradcheck(loss, *[value.data for value in params.values()], rng=np.random.default_rng(0))


@pytest.mark.parametrize("embed", ["onehot", "3"])
def test_a_gradient_of_the_inputs_can_be_asked_for(embed: str) -> None:
    model = make(embed=embed)
    params = init(model)
    done = model.forward(params, symbols(), trace_inputs=True)
    g = grad(ops.sum(done.logits[-1]), done.inputs)
    assert g.shape == (4, 2, model.cells[0].I)
    assert np.all(g.data.any(axis=-1))


# ---------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("embed", ["hidden", "onehot"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_symbols_of_a_narrow_type_are_as_good_as_wide_ones(embed: str, dtype: str) -> None:
    model = make(256, embed=embed)
    params, wide = init(model), symbols(V=256)

    def gradients(x: Any) -> list[Tensor]:
        logits = model.forward(params, x, model.start(2, params)).logits
        return grad(ops.cross_entropy(logits, x), list(params.values()))

    for got, expected in zip(gradients(wide.astype(dtype)), gradients(wide), strict=True):
        np.testing.assert_array_equal(got.data, expected.data)


def test_dropout_is_off_without_a_generator() -> None:
    quiet, loud = make(), make(dropout=0.9)
    params = init(quiet)
    expected = quiet.forward(params, symbols()).logits.data
    np.testing.assert_array_equal(loud.forward(params, symbols()).logits.data, expected)
    at_rate_0 = quiet.forward(params, symbols(), rng=np.random.default_rng(0))
    np.testing.assert_array_equal(at_rate_0.logits.data, expected)


def test_dropout_is_seeded_scaled_and_between_layers_only() -> None:
    model = make(cell="rnn", dropout=0.5)
    params = init(model)
    x = symbols(6, 3)
    one, same, other = (model.forward(params, x, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.logits.data, same.logits.data)
    assert np.any(one.logits.data != other.logits.data)
    plain = model.forward(params, x)
    # what the first layer sees and how it recurs is untouched; the second sees zeros and doubled values
    np.testing.assert_array_equal(one.layers[0].outputs.data, plain.layers[0].outputs.data)
    assert np.any(one.layers[1].outputs.data != plain.layers[1].outputs.data)
    # and so does the readout: redo it with the masks that this seed draws
    rng = np.random.default_rng(1)
    h: Any = plain.layers[0].outputs.data * ((rng.random((6, 3, 4)) >= 0.5) / 0.5)
    h = unroll(model.cells[1], layer_params(params, 1), h).outputs.data * ((rng.random((6, 3, 4)) >= 0.5) / 0.5)
    np.testing.assert_allclose(one.logits.data, h @ params["readout.W"].data + params["readout.b"].data, rtol=1e-12)


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "V", "message"),
    [
        ({"embed": "wide"}, 5, r"--embed 'wide': expected 'hidden', 'onehot' or a whole number of at least 1"),
        ({"embed": "0"}, 5, r"--embed '0': expected"),
        ({"embed": "-3"}, 5, r"--embed '-3': expected"),
        ({}, 1, r"expected at least 2 different symbols, got 1"),
        ({"layers": 0}, 5, r"--layers: expected at least 1, got 0"),
        ({"dropout": 1.0}, 5, r"--dropout: expected a rate in \[0, 1\), got 1.0"),
        ({"init": "unifrom"}, 5, r"no initialiser 'unifrom'; did you mean uniform"),
        ({"init_bias": "constant"}, 5, r"initialiser constant: expected a number"),
        ({"cell": "lstm", "cell_options": {"forget": 1}}, 5, r"cell lstm has no option 'forget'; .*forget_bias"),
        ({"cell": "mut1", "cell_options": {"input_map": "identity"}}, 5, r"needs I = H"),
        ({"cell": "rnn", "cell_options": {"recurrent_init": "eye"}}, 5, r"parameter W_hh: no initialiser 'eye'"),
        ({"hidden": 0}, 5, r"cell lstm: expected H to be a whole number from 1, got 0"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], V: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make(V, **settings)
    assert "\n" not in str(caught.value)


@pytest.fixture
def narrow(own_registry: None) -> type[Cell]:
    """A cell whose first state is too narrow for the readout; its second is not."""

    class Narrow(Cell):
        name = "narrow"
        summary = citation = equation = "made by a test"

        def state(self) -> dict[str, State]:
            return {"n": State((1,)), "h": State((self.H,))}

        def params(self) -> dict[str, Any]:
            return {"W": input_matrix(self.I, self.H)}

        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            return {"n": s.n, "h": x @ p.W}

    return register_cell(Narrow)


def test_the_first_state_is_the_output_unless_another_is_named(
    narrow: type[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = r"cell narrow: expected its output, the state n, of shape \(4,\), got \(1,\)"
    with pytest.raises(InputError, match=message):
        make(cell="narrow")
    monkeypatch.setattr(narrow, "output", "h")
    model = make(cell="narrow")
    params = init(model)
    x = symbols(6, 3)
    whole = model.forward(params, x)
    h = whole.layers[1].states["h"][-1].data
    expected = h @ params["readout.W"].data + params["readout.b"].data
    np.testing.assert_array_equal(whole.layers[1].outputs.data[-1], h)
    np.testing.assert_allclose(whole.logits.data[-1], expected, rtol=1e-12)
    stepper = model.stepper(params, 3)  # as in sampling
    for row in x:
        logits = stepper(row[None])
    np.testing.assert_allclose(logits, expected, rtol=1e-12)


@pytest.mark.parametrize("embed", ["onehot", "3"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.zeros(4, int)}, ShapeError, r"model: expected symbols \(T, B\), got shape \(4,\)"),
        ({"x": np.zeros((4, 2))}, DtypeError, r"expected integer (symbols|ids), got float64"),
        ({"x": np.full((4, 2), 5)}, ShapeError, r"expected (symbols|ids) in \[0, 5\), got 5 to 5"),
        ({"x": np.full((4, 2), -1)}, ShapeError, r"expected (symbols|ids) in \[0, 5\), got -1 to -1"),
        ({"without": "readout.b"}, InputError, r"model: expected the parameter 'readout\.b', got only"),
        ({"without": "layers.1.W_xf"}, ShapeError, r"expected parameter W_xf of shape \(4, 4\), got none"),
        ({"layers": 1}, ShapeError, r"model: expected the state of 2 layers, got 1"),
        ({"mask": np.ones((2, 4), bool)}, ShapeError, r"expected a mask \(T=4, B=2\), got \(2, 4\)"),
    ],
)
def test_forward_says_what_does_not_fit(
    embed: str, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = make(embed=embed)
    params = init(model)
    params.pop(change.get("without", ""), None)
    state = model.start(2, init(model))[: change.get("layers", 2)]
    with pytest.raises(error, match=message) as caught:
        model.forward(params, change.get("x", symbols()), state, mask=change.get("mask"))
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------- one symbol at a time


@pytest.mark.parametrize("cell", [row.name for row in available_cells(third_party=False)])
@pytest.mark.parametrize(("embed", "B"), [("3", 1), ("onehot", 3)])
def test_a_stepper_gives_the_logits_of_forward(cell: str, embed: str, B: int) -> None:
    model = make(cell=cell, embed=embed)
    params = init(model)
    x = symbols(T=9, B=B)
    expected = model.forward(params, x, executor="unroll").logits.data
    step = model.stepper(params, B)
    cuts = [0, 3, 4, 5, 7, 8, 9]  # a piece of any length may come between two symbols
    for start, stop in itertools.pairwise(cuts):
        assert np.allclose(step(x[start:stop]), expected[stop - 1], rtol=1e-12, atol=1e-14)
    assert step.programs is not None


def test_a_stepper_is_seen_by_those_who_watch() -> None:
    model = make(cell="lstm")
    params = init(model)
    x = symbols(T=6)
    expected = model.forward(params, x).logits.data
    step = model.stepper(params, 2)
    step(x[:3])
    heard: list[str] = []
    with listen(lambda name, _: heard.append(name)):
        step(x[3:4])
    assert heard
    del heard[:]
    step(x[4:5])
    assert np.allclose(step(x[5:6]), expected[-1], rtol=1e-12, atol=1e-14)
    assert not heard
    params["layers.1.W_xf"].data[0, 0] = np.nan
    with anomaly(), pytest.raises(NonFiniteError, match="layer 1"):
        step(x[:1])


def test_a_stepper_refuses_what_forward_refuses() -> None:
    model = make()
    step = model.stepper(init(model), 2)
    for bad, error in (
        (symbols(T=1, B=3), ShapeError),
        (symbols(T=1) + 5, ShapeError),
        (symbols(T=1) * 1.0, DtypeError),
    ):
        for _ in range(2):
            with pytest.raises(error):
                step(bad)
        step(symbols(T=1))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
@pytest.mark.parametrize("wrap", [(), ("zoneout:0.1", "layernorm")], ids=str)
def test_a_model_and_its_parameters_copy_and_pickle(again: Any, wrap: tuple[str, ...]) -> None:
    model = make(cell="mut1", cell_options={"input_map": "fixed"}, wrap=wrap)
    params = model.init(np.random.default_rng(0))
    x = np.array([[0, 1], [1, 2], [3, 4]])

    def found(model: Model, params: Any) -> list[Any]:
        loss = ops.cross_entropy(model.forward(params, x).logits, x)
        wanted = [value for value in params.values() if value.requires_grad]
        return [value.data for value in (loss, *grad(loss, wanted))]

    expected = found(model, params)  # now the cells hold compiled programs as well
    got = found(*again((model, params)))
    assert len(got) == len(expected) > 5
    for one, two in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, two)
    report = gradnorm(model, params, x, x)
    assert again(report) == report
