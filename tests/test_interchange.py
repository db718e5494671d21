"""PyTorch's names and files: layout, biases, the way back, whose arrays are what, and what is refused.

PyTorch itself speaks in torch_parity/.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tinygrad_rnn import (
    DataError,
    FileError,
    InputError,
    ModelConfig,
    RunConfig,
    ShapeError,
    Tensor,
    Vocabulary,
    build_model,
    load_cell,
    load_run_model,
    resume_training,
)
from tinygrad_rnn.interchange import (
    Imported,
    _packed,
    from_torch,
    import_torch,
    read_state_dict,
    read_vocabulary,
    save_torch,
    to_torch,
    torch_code,
)
from tinygrad_rnn.model import Model
from tinygrad_rnn.recognise import recognise

Array = np.ndarray[Any, Any]
SYMBOLS = Vocabulary("chars", tuple("\nabcde"))
NO_TEXT: dict[str, Any] = {"sha256": None, "source": None, "characters": 0}

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


def test_a_wrapped_cell_is_refused() -> None:
    config = ModelConfig(cell="lstm", wrap=("residual",), hidden=4, layers=2, embed="3")
    model = build_model(config, 6, load_cell("lstm"))
    with pytest.raises(InputError, match=r"cell lstm\+residual has no module in torch\.nn; .*without wrappers"):
        to_torch(model, numbered(model))


# ----------------------------------------------------------------------------------------------- files


def drawn(model: Model, dtype: Any = np.float64) -> dict[str, Tensor]:
    """Parameters with no bias at zero, so that none can be left out."""
    rng = np.random.default_rng(7)
    return {name: Tensor(rng.normal(size=spec.shape).astype(dtype) * 0.5) for name, spec in model.params().items()}


def logits(model: Model, params: Any, x: Array) -> Array:
    return np.asarray(model.forward(params, x).logits.data)


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def formula(a: dict[str, Array], cell: str, activation: str, layers: int, x: Array) -> Array:
    """The logits (T, B, V) from arrays by PyTorch's names, by the equations of its manual; batch rows alone."""
    h_in = a["embed.weight"][x] if "embed.weight" in a else np.eye(len(a["readout.bias"]))[x]
    for k in range(layers):
        w, u, b, d = (a[f"rnn.{name}_l{k}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        h = c = np.zeros((x.shape[1], u.shape[1]))
        out = []
        for xt in h_in:
            left, right = xt @ w.T + b, h @ u.T + d
            if cell == "rnn":
                h = np.tanh(left + right) if activation == "tanh" else np.maximum(left + right, 0)
            elif cell == "lstm":
                i, f, g, o = np.split(left + right, 4, axis=1)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
            else:
                (lr, lz, ln), (rr, rz, rn) = np.split(left, 3, axis=1), np.split(right, 3, axis=1)
                z = sigmoid(lz + rz)
                h = (1 - z) * np.tanh(ln + sigmoid(lr + rr) * rn) + z * h
            out.append(h)
        h_in = np.stack(out)
    return h_in @ a["readout.weight"].T + a["readout.bias"]


@pytest.mark.parametrize(("cell", "options"), EXCHANGED)
@pytest.mark.parametrize("embed", ["onehot", "3"])
def test_a_file_holds_what_the_manual_of_torch_computes_with(
    cell: str, options: dict[str, Any], embed: str, tmp_path: Path
) -> None:
    model = make(cell, options, embed)
    params = drawn(model)
    save_torch(tmp_path / "m.safetensors", model, params, SYMBOLS)
    arrays = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    x = np.random.default_rng(1).integers(0, 6, (9, 3))
    expected = formula(arrays, cell, options.get("activation", "tanh"), 2, x)
    np.testing.assert_allclose(logits(model, params, x), expected, rtol=1e-12, atol=1e-13)


def bring(path: Path, out: Path, vocabulary: Vocabulary = SYMBOLS, **choice: Any) -> Imported:
    return import_torch(read_state_dict(path), out, vocabulary, RunConfig(), data=NO_TEXT, **choice)


@pytest.mark.parametrize(("cell", "options"), EXCHANGED)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_out_and_in_again_is_the_same_run(cell: str, options: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    model = make(cell, options)
    params = drawn(model, dtype)
    save_torch(tmp_path / "m.safetensors", model, params, SYMBOLS, seed=3, step=11)
    state = read_state_dict(tmp_path / "m.safetensors")
    facts = {name: state.metadata[name] for name in ("cell", "hidden", "layers", "embed", "V", "seed", "step")}
    assert facts == dict(cell=cell, hidden="4", layers="2", embed="3", V="6", seed="3", step="11")
    assert json.loads(state.metadata["cell_options"]) == options
    assert state.vocabulary() == SYMBOLS
    made = bring(tmp_path / "m.safetensors", tmp_path / "run")
    loaded = load_run_model(made.run.path)
    assert loaded.config.train.dtype == dtype
    assert loaded.vocabulary == SYMBOLS
    assert {name: value.data.dtype for name, value in loaded.params.items()} == dict.fromkeys(params, np.dtype(dtype))
    for name, value in params.items():
        assert loaded.params[name].data.tobytes() == value.data.tobytes(), name
    assert loaded.model.cells[0].options == model.cells[0].options
    with pytest.raises(InputError, match=r"was imported: .* train TEXT --init-from "):
        resume_training(made.run.path)


def test_arrays_that_are_not_contiguous(tmp_path: Path) -> None:
    """Regression: safetensors 0.8.0 writes the memory of W.T as if it were contiguous, without a word."""
    model = make("lstm", {}, embed="4")  # W_x* is square, so that a scrambled one has the right shape
    params = {
        name: Tensor(np.ascontiguousarray(value.data.T).T if i % 2 else np.repeat(value.data, 2, axis=-1)[..., ::2])
        for i, (name, value) in enumerate(drawn(model).items())
    }
    assert not any(value.data.flags.c_contiguous for value in params.values() if value.data.ndim == 2)
    save_torch(tmp_path / "m.safetensors", model, params, SYMBOLS)
    arrays = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(arrays["embed.weight"], params["embed.W"].data)
    np.testing.assert_array_equal(arrays["readout.weight"], params["readout.W"].data.T)
    np.testing.assert_array_equal(arrays["rnn.weight_ih_l0"][:4], params["layers.0.W_xi"].data.T)
    made = bring(tmp_path / "m.safetensors", tmp_path / "run")
    for name, value in load_run_model(made.run.path).params.items():
        np.testing.assert_array_equal(value.data, params[name].data)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8"])
def test_any_memory_is_written_as_it_reads(dtype: str) -> None:
    values = np.arange(12, dtype=dtype).reshape(3, 4)
    views = {"turned": values.T, "thinned": values[:, ::2], "back": values[::-1], "fortran": np.asfortranarray(values)}
    back = safetensors.numpy.load(_packed(views, {}))
    for name, view in views.items():
        np.testing.assert_array_equal(back[name], view)


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    model = make("rnn", {})
    path = tmp_path / "folder" / "m.safetensors"
    save_torch(path, model, drawn(model), SYMBOLS)
    before = path.read_bytes()
    with pytest.raises(FileError, match="is there already; replace it with --overwrite"):
        save_torch(path, model, numbered(model), SYMBOLS)
    assert path.read_bytes() == before
    with pytest.raises(FileError, match="is a folder"):
        save_torch(path.parent, model, drawn(model), SYMBOLS, overwrite=True)
    for name in ("run.json", "model.pt", "model"):
        with pytest.raises(FileError, match=r"expected a name that ends in \.safetensors, got "):
            save_torch(tmp_path / name, model, drawn(model), SYMBOLS, overwrite=True)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
        with pytest.raises(FileError, match="is no plain file; choose another name"):
            save_torch(tmp_path / "pipe.safetensors", model, drawn(model), SYMBOLS, overwrite=True)
    with pytest.raises(FileError, match="cannot make the folder"):
        save_torch(path / "below.safetensors", model, drawn(model), SYMBOLS)
    save_torch(path, model, numbered(model), SYMBOLS, overwrite=True)
    assert path.read_bytes() != before
    assert [entry.name for entry in path.parent.iterdir()] == ["m.safetensors"]


def file_of(path: Path, arrays: dict[str, tuple[str, tuple[int, ...], bytes]]) -> Path:
    """A safetensors file, written by hand from its specification: dtype, shape and bytes by name."""
    header: dict[str, Any] = {}
    data = b""
    for name, (kind, shape, raw) in arrays.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_narrow_floats_come_as_they_are(tmp_path: Path) -> None:
    values = np.array([[0.5, -3.0, 65504.0]], "<f2")
    bits = np.array([0x3F80, 0xC049, 0x0001], "<u2")  # bfloat16: 1, -3.140625 and the smallest of all
    path = file_of(tmp_path / "m", {"a": ("F16", (1, 3), values.tobytes()), "b": ("BF16", (3,), bits.tobytes())})
    found = read_state_dict(path).arrays
    np.testing.assert_array_equal(found["a"], values)
    np.testing.assert_array_equal(found["b"], np.array([1.0, -3.140625, 2.0**-133], np.float32))
    for kind, size in (("I64", 8), ("F8_E4M3", 1), ("BOOL", 1)):
        path = file_of(tmp_path / "m", {"steps": (kind, (1,), bytes(size))})
        with pytest.raises(FileError, match=rf"expected steps in 16, 32 or 64 bit floating point, got {kind}; "):
            read_state_dict(path)
    path = file_of(tmp_path / "m", {"\x1b[2J\nweight": ("F32", (1,), bytes(4))})
    with pytest.raises(FileError, match=r"expected names that can be printed, got '\\x1b\[2J\\nweight'$"):
        read_state_dict(path)


def test_files_that_are_no_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    for start in (b"PK\x03\x04" + bytes(40), b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(40)):
        path.write_bytes(start)
        with pytest.raises(FileError, match=r"torch\.save.*convert it: python -c '.*' \S*m\.pt \S*m\.safetensors$"):
            read_state_dict(path)
    for data in (b"", b"\x05", b"hello world, this is a text", (2**62).to_bytes(8, "little") + b"{}"):
        path.write_bytes(data)
        with pytest.raises(FileError, match="is no safetensors file, or is damaged"):
            read_state_dict(path)
    with pytest.raises(FileError, match=r"cannot read .*: No such file"):
        read_state_dict(tmp_path / "none")
    model = make("rnn", {})
    path = tmp_path / "m.safetensors"
    save_torch(path, model, drawn(model), SYMBOLS)
    whole = path.read_bytes()
    for end in (7, 60, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(FileError, match="is no safetensors file, or is damaged"):
            read_state_dict(path)
    made = bring(_write(path, whole), tmp_path / "run")
    with pytest.raises(FileError, match="is a checkpoint of a run and no state dict"):
        read_state_dict(made.run.path / "checkpoints" / "step-00000000.safetensors")


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("text", ["{", "[1]", '{"kind": "chars", "symbols": ["a", "a"], "unknown": null}'])
def test_a_broken_vocabulary_in_a_file(text: str, tmp_path: Path) -> None:
    model = make("rnn", {})
    arrays = to_torch(model, drawn(model), prefix="rnn.")
    safetensors.numpy.save_file(arrays, tmp_path / "m", {"vocabulary": text})
    with pytest.raises(FileError, match="its vocabulary is broken"):
        read_state_dict(tmp_path / "m").vocabulary()


# ------------------------------------------------------------------------------- what somebody's arrays are


def theirs(cell: str = "lstm", embed: str = "3", layers: int = 2, options: Any = None) -> dict[str, Array]:
    options = options or ({"form": "reset_after"} if cell == "gru" else {})
    model = make(cell, options, embed, layers=layers)
    return to_torch(model, drawn(model), prefix="rnn.")


def renamed(arrays: dict[str, Array], names: dict[str, str]) -> dict[str, Array]:
    """`arrays` with the beginnings of their names replaced."""
    return {
        next((new + name[len(old) :] for old, new in names.items() if name.startswith(old)), name): array
        for name, array in arrays.items()
    }


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"rnn.": ""},
        {"rnn.": "lstm."},
        {"embed.": "module.encoder.", "rnn.": "module.rnn.", "readout.": "module.decoder."},
        {"embed.": "_orig_mod.emb.", "rnn.": "_orig_mod.body.0.", "readout.": "_orig_mod.head.fc."},
        {"embed.weight": "table", "rnn.": "r_", "readout.": "out."},
    ],
)
@pytest.mark.parametrize("embed", ["onehot", "3", "hidden"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_names_do_not_matter(cell: str, embed: str, names: dict[str, str]) -> None:
    arrays = theirs(cell, embed)
    found = recognise(renamed(arrays, names), 6)
    assert (found.config.cell, found.config.layers, found.config.hidden) == (cell, 2, 4)
    assert found.config.embed == embed
    assert found.missing == found.zeros == ()
    assert found.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)


def test_what_a_module_was_made_without_is_zero() -> None:
    arrays = {name: array for name, array in theirs("gru").items() if "bias" not in name}
    found = recognise(arrays, 6)
    assert found.zeros == ("the biases of rnn", "the bias of readout")
    assert found.arrays["rnn.bias_hh_l1"].shape == (12,)
    assert not any(array.any() for name, array in found.arrays.items() if "bias" in name)


@pytest.mark.parametrize("form", ["both", "both, no bias", "embed alone", "readout alone", "save_model"])
def test_a_tied_module_in_every_form_that_it_is_saved_in(tmp_path: Path, form: str) -> None:
    arrays = {**theirs("lstm", "hidden")}
    arrays["embed.weight"] = arrays["readout.weight"].copy()
    bias = arrays["readout.bias"]
    lost = {"both, no bias": ["readout.bias"], "embed alone": ["readout.weight"], "readout alone": ["embed.weight"]}
    left = {name: array for name, array in arrays.items() if name not in lost.get(form, [])}
    header = {}
    if form == "save_model":  # which leaves one name of shared memory, the first by the alphabet, and says so
        del left["readout.weight"]
        header = {"readout.weight": "embed.weight"}
    safetensors.numpy.save_file(left, tmp_path / "m.safetensors", header)
    state = read_state_dict(tmp_path / "m.safetensors")
    if "alone" in form:
        with pytest.raises(InputError, match="--tie"):
            import_torch(state, tmp_path / "run", SYMBOLS, RunConfig(), data=NO_TEXT)
    found = recognise(state.arrays, 6, tie="alone" in form)
    assert found.config.tie and found.config.embed == "hidden" and not found.missing
    np.testing.assert_array_equal(found.arrays["embed.weight"], found.arrays["readout.weight"])
    np.testing.assert_array_equal(found.arrays["readout.bias"], 0 * bias if form == "both, no bias" else bias)
    model = build_model(found.config, 6, load_cell("lstm"))
    params = from_torch(model, found.arrays, prefix="rnn.")
    np.testing.assert_array_equal(params["readout.W"].data, found.arrays["readout.weight"].T)
    back = to_torch(model, params, prefix="rnn.")
    np.testing.assert_array_equal(back["embed.weight"], arrays["embed.weight"])
    assert "self.readout.weight = self.embed.weight" in torch_code(model, "m")


def test_what_is_not_tied() -> None:
    arrays = theirs("lstm", "hidden")
    assert not recognise(arrays, 6).config.tie
    with pytest.raises(InputError, match="--tie: expected one matrix of 4 columns, or two of the same numbers"):
        recognise(arrays, 6, tie=True)
    model = make("lstm", {}, "hidden", layers=2)
    tied = build_model(replace(model.config, tie=True), 6, load_cell("lstm"))
    with pytest.raises(InputError, match=r"from_torch: expected the same numbers in embed\.weight and readout\.weight"):
        from_torch(tied, arrays, prefix="rnn.")


def test_where_several_arrays_fit() -> None:
    arrays = theirs("lstm", "hidden")
    del arrays["readout.bias"]  # embedding and readout: both (V, H), none with a bias
    with pytest.raises(InputError, match=r"fits as embedding and as readout; say which is which with --embed-name"):
        recognise(arrays, 6)
    for choice in ({"embed": "embed"}, {"readout": "readout.weight"}, {"embed": "embed.weight", "readout": "readout"}):
        found = recognise(arrays, 6, **choice)
        np.testing.assert_array_equal(found.arrays["embed.weight"], arrays["embed.weight"])
        np.testing.assert_array_equal(found.arrays["readout.weight"], arrays["readout.weight"])
    both = recognise({name: array for name, array in arrays.items() if name != "embed.weight"}, 6,
                     embed="readout", readout="readout")  # fmt: skip
    np.testing.assert_array_equal(both.arrays["embed.weight"], both.arrays["readout.weight"])  # tied
    two = {**theirs("lstm"), "old.weight": np.ones((6, 4)), "old.bias": np.ones(6)}
    with pytest.raises(InputError, match=r"--readout-name: expected one matrix that fits, got readout.weight, old.w"):
        recognise(two, 6)
    with pytest.raises(InputError, match=r"an embedding and a readout alone, got also old\.bias, old\.weight; "):
        recognise(two, 6, readout="readout")
    with pytest.raises(InputError, match=r"--embed-name: expected one matrix that fits, got embed.weight, pos.weight"):
        recognise({**theirs("lstm"), "pos.weight": np.ones((6, 3))}, 6)
    with pytest.raises(InputError, match=r"--readout-name red: no such matrix .*; did you mean readout\?"):
        recognise(theirs(), 6, readout="red")


LSTM = theirs()


@pytest.mark.parametrize(
    ("arrays", "choice", "words"),
    [
        ({}, {}, "expected the arrays of a torch.nn.RNN, LSTM or GRU (weight_ih_l0, weight_hh_l0, ...), got nothing"),
        ({"weight_ih": LSTM["rnn.weight_ih_l0"]}, {}, "got weight_ih"),
        ({**LSTM, "rnn.weight_ih_l0_reverse": LSTM["rnn.weight_ih_l0"]}, {}, "got a bidirectional one"),
        ({**LSTM, "rnn.weight_hr_l0": np.ones((2, 4))}, {}, "got one with proj_size"),
        ({**LSTM, **renamed(LSTM, {"rnn.": "second."})}, {}, "expected one recurrent module, got 2: rnn., second.; "),
        ({**LSTM, "rnn.weight_hh_l0": np.ones((8, 4))}, {}, "rnn.weight_hh_l0 of shape (G H, H) with G = 1 (RNN), 3"),
        ({**LSTM, "rnn.weight_hh_l0": np.ones((0, 0))}, {}, "got (0, 0)"),
        ({**LSTM, "rnn.weight_ih_l0": np.ones((16, 0))}, {}, "got (16, 4) for I = 0"),
        ({**LSTM, "rnn.weight_hh_l0": np.ones(16)}, {}, "expected a matrix rnn.weight_hh_l0, got shape (16,)"),
        ({k: v for k, v in LSTM.items() if "ih_l0" not in k}, {}, "expected a matrix rnn.weight_ih_l0, got none"),
        ({**LSTM, "norm.weight": np.ones(4), "norm.bias": np.ones(4)}, {}, "got also norm.bias, norm.weight; a model"),
        ({**LSTM, "x.weight": np.ones((6, 3)), "x.bias": np.ones(6)}, {}, "got also x.bias, x.weight"),  # no embedding
        ({**LSTM, "h0": np.ones((2, 1, 4))}, {}, "got also h0"),
        (LSTM, {"nonlinearity": "relu"}, "--nonlinearity relu: expected a torch.nn.RNN, got a LSTM"),
        ({**LSTM, "readout.weight": np.ones((7, 4))}, {}, "readout.weight of shape (6, 4), a row for each of the 6"),
        (
            {**LSTM, "embed.weight": np.ones((5, 3))},
            {},
            "embed.weight of shape (6, 3), a row for each of the 6 symbols",
        ),
    ],
)
def test_what_is_no_such_module(arrays: dict[str, Array], choice: dict[str, str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        recognise(arrays, 6, **choice)
    assert words in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ runs


def test_nothing_is_left_behind_by_a_file_that_does_not_fit(tmp_path: Path) -> None:
    def refused(arrays: dict[str, Array], words: str, **choice: Any) -> None:
        safetensors.numpy.save_file(arrays, tmp_path / "m")
        with pytest.raises(InputError, match=words):
            bring(tmp_path / "m", tmp_path / "run", **choice)
        assert not (tmp_path / "run").exists()

    arrays = theirs()
    refused({**arrays, "rnn.bias_hh_l1": np.ones(15)}, r"m: from_torch: expected rnn\.bias_hh_l1 of shape \(16,\)")
    refused({k: v for k, v in arrays.items() if k != "rnn.bias_ih_l1"}, r"missing: rnn\.bias_ih_l1")
    refused({**arrays, "readout.bias": np.full(6, np.nan)}, "expected finite numbers of float64 in readout.bias")
    refused({**arrays, "readout.bias": np.full(6, 1e300)}, "expected finite numbers of float32", dtype="float32")
    recurrent = {name: array for name, array in arrays.items() if name.startswith("rnn.")}
    refused(
        recurrent, r"\(6, 3\), or one-hot input with I = V, and a readout \(V, H\) = \(6, 4\), got no embed and no read"
    )
    refused({**recurrent, "embed.weight": arrays["embed.weight"]}, r"got no readout; ")
    refused(arrays, "a row for each of the 2 symbols", vocabulary=Vocabulary("chars", ("a", "b")))


def test_missing_ends_are_drawn_on_request(tmp_path: Path) -> None:
    arrays = {name: array for name, array in theirs("gru").items() if name.startswith("rnn.")}
    safetensors.numpy.save_file(arrays, tmp_path / "m")
    made = bring(tmp_path / "m", tmp_path / "run", init_missing=True)
    assert made.drawn == ("embed.weight", "readout.weight", "readout.bias")
    loaded = load_run_model(made.run.path)
    fresh = loaded.model.init(np.random.default_rng([0, 0]), "float64")
    for name in ("embed.W", "readout.W", "readout.b"):
        np.testing.assert_array_equal(loaded.params[name].data, fresh[name].data)
    again = to_torch(loaded.model, loaded.params, prefix="rnn.")
    np.testing.assert_array_equal(again["rnn.weight_ih_l1"], arrays["rnn.weight_ih_l1"])


def test_the_dtype_of_a_run(tmp_path: Path) -> None:
    arrays = theirs()
    for kinds, asked, expected in [
        ((np.float16, np.float16), None, "float32"),
        ((np.float32, np.float16), None, "float32"),
        ((np.float32, np.float64), None, "float64"),
        ((np.float64, np.float64), "float32", "float32"),
        ((np.float16, np.float16), "float64", "float64"),
    ]:
        cast = {name: array.astype(kinds["bias" in name]) for name, array in arrays.items()}
        safetensors.numpy.save_file(cast, tmp_path / "m")
        made = bring(tmp_path / "m", tmp_path / "run", dtype=asked, overwrite=True)
        loaded = load_run_model(made.run.path)
        assert loaded.config.train.dtype == expected
        summed = cast["rnn.bias_ih_l0"].astype(expected) + cast["rnn.bias_hh_l0"].astype(expected)
        np.testing.assert_array_equal(loaded.params["layers.0.b_f"].data, summed[4:8])
        np.testing.assert_array_equal(loaded.params["embed.W"].data, cast["embed.weight"].astype(expected))


def test_the_nonlinearity_of_an_rnn(tmp_path: Path) -> None:
    arrays = theirs("rnn", options={"activation": "relu"})
    header = {"cell": "rnn", "cell_options": '{"activation": "relu"}'}
    for metadata, given, expected in [
        ({}, None, "tanh"),
        ({}, "relu", "relu"),
        (header, None, "relu"),
        (header, "tanh", "tanh"),
        ({**header, "cell_options": "{"}, None, "tanh"),
        ({**header, "cell_options": '{"activation": ["relu"]}'}, None, "tanh"),
    ]:
        safetensors.numpy.save_file(arrays, tmp_path / "m", metadata)
        made = bring(tmp_path / "m", tmp_path / "run", nonlinearity=given, overwrite=True)
        assert load_run_model(made.run.path).model.cells[1].options.activation == expected


def test_vocabularies_of_others(tmp_path: Path) -> None:
    def read(name: str, content: str, kind: str = "chars") -> Vocabulary:
        (tmp_path / name).write_bytes(content.encode())
        return read_vocabulary(tmp_path / name, kind)

    assert read("v.json", '["b", "\\n", "a"]').symbols == ("b", "\n", "a")
    assert read("v.json", '{"b": 1, "\\n": 0, "a": 2}').symbols == ("\n", "b", "a")
    assert read("v.txt", "ba\r\n é").symbols == ("b", "a", "\r", "\n", " ", "é")
    assert read("w.json", '["the", " ", "cat"]', "words").symbols == ("the", " ", "cat")
    assert read("v.json", json.dumps(Vocabulary("chars", ("?", "a"), 0).to_json())).unknown == 0
    for name, content, words in [
        ("v.txt", "abca", "a repeated or empty one"),
        ("v.json", '["a", "bc"]', "one character each"),
        ("v.json", '{"a": 0, "b": 2}', "a number from 0 to 1 for each symbol"),
        ("v.json", '{"a": 0, "b": true}', "a number from 0 to 1 for each symbol"),
        ("v.json", "[1, 2]", "not a list of texts"),
        ("v.json", '"abc"', "not a list of texts"),
        ("v.json", "[" * 100000, "expected a vocabulary"),
        ("v.json", "['a']", "expected a vocabulary"),
    ]:
        with pytest.raises(DataError, match=words) as caught:
            read(name, content)
        assert "\n" not in str(caught.value)
    (tmp_path / "v.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="expected a vocabulary"):
        read_vocabulary(tmp_path / "v.txt")
    with pytest.raises(FileError, match="cannot read"):
        read_vocabulary(tmp_path)


def test_the_lines_for_torch_are_python_and_name_the_sizes() -> None:
    code = torch_code(make("rnn", {"activation": "relu"}, "onehot"), "it's.safetensors", "float64")
    compile(code, "lines", "exec")
    for piece in ("torch.nn.RNN(6, 4, num_layers=2, nonlinearity='relu')", "one_hot(x, 6)", "Net().double()",
                  "torch.nn.Linear(4, 6)", 'load_file("it\'s.safetensors")'):  # fmt: skip
        assert piece in code
    assert "Embedding" not in code
    with pytest.raises(InputError, match="mut1"):
        torch_code(make("mut1", {}), "m")
