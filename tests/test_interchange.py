"""The name maps to PyTorch: layout, biases, the way back, and what they refuse. The numbers are in torch_parity/."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import InputError, ModelConfig, ShapeError, Tensor, build_model, load_cell
from tinygrad_rnn.interchange import from_torch, to_torch
from tinygrad_rnn.model import Model

EXCHANGED: list[tuple[str, dict[str, Any]]] = [
    ("rnn", {}),
    ("rnn", {"activation": "relu"}),
    ("lstm", {}),
    ("gru", {"form": "reset_after"}),
]


def make(cell: str, options: dict[str, Any], embed: str = "3", hidden: int = 4, layers: int = 2) -> Model:
    config = ModelConfig(cell=cell, cell_options=options, hidden=hidden, layers=layers, embed=embed)
    return build_model(config, 6, load_cell(cell))


def numbered(model: Model) -> dict[str, Tensor]:
    """Every number of the model different, so that none can stand in the place of another."""
    total = 0
    params = {}
    for name, spec in model.params().items():
        size = int(np.prod(spec.shape))
        params[name] = Tensor(np.arange(total, total + size, dtype=np.float64).reshape(spec.shape) + 1)
        total += size
    return params


def test_the_names_are_those_of_torch() -> None:
    model = make("lstm", {})
    shapes = {name: value.shape for name, value in to_torch(model, numbered(model)).items()}
    assert shapes == {
        "embed.weight": (6, 3),
        "weight_ih_l0": (16, 3), "weight_hh_l0": (16, 4), "bias_ih_l0": (16,), "bias_hh_l0": (16,),
        "weight_ih_l1": (16, 4), "weight_hh_l1": (16, 4), "bias_ih_l1": (16,), "bias_hh_l1": (16,),
        "readout.weight": (6, 4), "readout.bias": (6,),
    }  # fmt: skip
    assert all(value.flags.c_contiguous for value in to_torch(model, numbered(model)).values())  # for safetensors
    assert "embed.weight" not in to_torch(make("lstm", {}, "onehot"), numbered(make("lstm", {}, "onehot")))
    assert "rnn.bias_hh_l1" in to_torch(model, numbered(model), prefix="rnn.")


@pytest.mark.parametrize(("cell", "options", "gates"), [("lstm", {}, "ifgo"), ("gru", {"form": "reset_after"}, "rzn")])
def test_gate_order_and_orientation(cell: str, options: dict[str, Any], gates: str) -> None:
    model = make(cell, options)
    params = numbered(model)
    theirs = to_torch(model, params)
    for k, gate in enumerate(gates):
        rows = slice(4 * k, 4 * k + 4)
        np.testing.assert_array_equal(theirs["weight_ih_l0"][rows].T, params[f"layers.0.W_x{gate}"].data)
        np.testing.assert_array_equal(theirs["weight_hh_l1"][rows].T, params[f"layers.1.W_h{gate}"].data)
        np.testing.assert_array_equal(theirs["bias_ih_l0"][rows], params[f"layers.0.b_{gate}"].data)
    second = theirs["bias_hh_l0"]
    if cell == "gru":  # the one second bias that is not added to the first: r multiplies it
        np.testing.assert_array_equal(second[8:], params["layers.0.b_hn"].data)
        second = second[:8]
    assert not second.any()


@pytest.mark.parametrize(("cell", "options"), EXCHANGED)
@pytest.mark.parametrize("embed", ["onehot", "3", "hidden"])
def test_round_trip_is_exact(cell: str, options: dict[str, Any], embed: str) -> None:
    model = make(cell, options, embed)
    params = numbered(model)
    back = from_torch(model, to_torch(model, params))
    assert list(back) == list(model.params())
    for name, value in params.items():
        np.testing.assert_array_equal(back[name].data, value.data)
        assert back[name].requires_grad
        assert back[name].data.flags.c_contiguous
    again = to_torch(model, back)
    for name, array in to_torch(model, params).items():
        np.testing.assert_array_equal(again[name], array)


def test_two_biases_are_added_but_not_those_of_the_n_gate() -> None:
    for cell, options in EXCHANGED:
        model = make(cell, options)
        theirs = to_torch(model, numbered(model))
        theirs["bias_hh_l1"] += 1000.0
        back = from_torch(model, theirs)
        for name, value in numbered(model).items():
            is_bias = name.startswith("layers.1.b_")
            moved = 1000.0 if is_bias and not (cell == "gru" and name == "layers.1.b_n") else 0.0
            np.testing.assert_array_equal(back[name].data, value.data + moved, err_msg=f"{cell} {name}")


def test_dtype_is_kept_and_no_memory_is_shared() -> None:
    model = make("lstm", {})
    params = model.init(np.random.default_rng(0), np.float32)
    theirs = to_torch(model, params)
    assert {value.dtype for value in theirs.values()} == {np.dtype(np.float32)}
    back = from_torch(model, theirs)
    for array in theirs.values():
        array[...] = 0.0
    assert params["embed.W"].data.any()
    assert all(value.data.any() for name, value in back.items() if "b" not in name)
    assert {value.dtype for value in back.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("cell", "options", "parts"),
    [
        ("rnn", {"activation": "sigmoid"}, ["activation=sigmoid", "tanh or relu"]),
        ("rnn", {"activation": "identity"}, ["activation=identity"]),
        ("gru", {}, ["form=reset_before", "gru (form=reset_after)"]),
        ("mut1", {}, ["mut1", "torch.nn", "rnn", "lstm", "gru"]),
        ("mut3", {}, ["mut3", "torch.nn"]),
    ],
)
def test_what_torch_has_not_is_refused_both_ways(cell: str, options: dict[str, Any], parts: list[str]) -> None:
    model = make(cell, options)
    for call in (lambda: to_torch(model, numbered(model)), lambda: from_torch(model, {})):
        with pytest.raises(InputError) as caught:
            call()
        for part in parts:
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_unknown_and_misshaped_arrays_are_named() -> None:
    model = make("lstm", {})
    theirs = to_torch(model, numbered(model))
    lacking = {name: value for name, value in theirs.items() if name != "bias_hh_l1"}
    with pytest.raises(InputError, match=r"from_torch: .* missing: bias_hh_l1, unknown: none"):
        from_torch(model, lacking)
    with pytest.raises(InputError, match=r"one direction .* missing: none, unknown: weight_ih_l0_reverse"):
        from_torch(model, {**theirs, "weight_ih_l0_reverse": theirs["weight_ih_l0"]})
    with pytest.raises(InputError, match=r"missing: rnn\.bias_hh_l0"):
        from_torch(model, theirs, prefix="rnn.")
    with pytest.raises(ShapeError, match=r"from_torch: expected weight_hh_l0 of shape \(16, 4\), got \(4, 16\)"):
        from_torch(model, {**theirs, "weight_hh_l0": theirs["weight_hh_l0"].T})
    params = numbered(model)
    del params["layers.1.W_hf"]
    with pytest.raises(InputError, match=r"to_torch: expected every parameter .*, got none for layers\.1\.W_hf"):
        to_torch(model, params)


def test_a_parameter_of_another_size_is_named() -> None:
    model = make("rnn", {})
    with pytest.raises(ShapeError, match=r"^to_torch: expected layers\.0\.W_xh of shape \(3, 4\), got \(2, 2\)"):
        to_torch(model, {**numbered(model), "layers.0.W_xh": np.ones((2, 2))})
