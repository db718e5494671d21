"""Weights to and from PyTorch: plain NumPy arrays by PyTorch's names, their files, and runs made of them.

PyTorch itself is not imported. The names are those of ``torch.nn.RNN``, ``LSTM`` and ``GRU`` (2.13), for all layers of
one module:

    ours                                    theirs
    embed.W (V, I)                          embed.weight (V, I), a torch.nn.Embedding; no entry for one-hot input
    layers.K.W_x* (I, H), gates beside      weight_ih_lK (G H, I), gates below each other
    layers.K.W_h* (H, H)                    weight_hh_lK (G H, H)
    layers.K.b_* (H,)                       bias_ih_lK (G H,), with bias_hh_lK (G H,) zero
    readout.W (H, V), readout.b (V,)        readout.weight (V, H), readout.bias (V,), a torch.nn.Linear; tied, the
                                            same numbers as embed.weight

Order of the gates: lstm i, f, g, o; gru r, z, n. PyTorch has two biases that only ever appear as a sum; it goes into
bias_ih, and the way back adds the two. The one exception is the n gate of a GRU, whose second bias is multiplied by r:
b_hn goes into bias_hh and comes back from there.

A file is safetensors: arrays and text, nothing that could be executed. `save_torch` writes one, `read_state_dict` reads
anybody's, `import_torch` makes a run of one: `recognise` finds out what its arrays are.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from tinygrad_rnn import backend
from tinygrad_rnn.cell import Cell
from tinygrad_rnn.checkpoint import contiguous, to_json, write_new_file
from tinygrad_rnn.config import RunConfig
from tinygrad_rnn.data import Vocabulary
from tinygrad_rnn.errors import CheckpointError, DataError, FileError, InputError, ShapeError
from tinygrad_rnn.model import Model, Params, build_model, host_params
from tinygrad_rnn.recognise import GATES, MODULES, HostArray, recognise
from tinygrad_rnn.restore import IMPORTED, PARAMS, find_cell, new_run
from tinygrad_rnn.run import Run, save_run_checkpoint, versions
from tinygrad_rnn.tensor import Tensor

_EXPRESSIBLE = "rnn (activation=tanh or relu), lstm and gru (form=reset_after), without wrappers"
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_CONVERT = (
    "import sys, torch, safetensors.torch as s; s.save_file({k: v.clone().contiguous() for k, v in "
    'torch.load(sys.argv[1], "cpu", weights_only=True).items()}, sys.argv[2])'
)


# ---------------------------------------------------------------------------------------------- arrays


def to_torch(model: Model, params: Mapping[str, Any], *, prefix: str = "") -> dict[str, HostArray]:
    """The parameters of `model` under PyTorch's names, as new arrays on the host in their own dtype.

    `params` are tensors or arrays by our names. `prefix` stands before the names of the recurrent module: with
    ``prefix="rnn."`` the result, converted by torch.from_numpy, is the state_dict of a module with the attributes
    embed, rnn and readout.
    Raises InputError for a cell or option that PyTorch has no module for, or a missing parameter; ShapeError for one
    of another size than the model's.
    """
    ours = host_params(model, params, "to_torch")
    theirs: dict[str, HostArray] = {}
    if model.config.embed != "onehot":
        theirs["embed.weight"] = ours["embed.W"].copy() if model.has_table else ours["readout.W"].T.copy()
    for k, cell in enumerate(model.cells):
        gates = _gates(cell)
        own = f"layers.{k}."
        first = [ours[f"{own}b_{gate}"] for gate in gates]
        second = [
            ours[f"{own}b_hn"] if cell.name == "gru" and gate == "n" else np.zeros_like(b)
            for gate, b in zip(gates, first, strict=True)
        ]
        theirs[f"{prefix}weight_ih_l{k}"] = np.concatenate([ours[f"{own}W_x{gate}"].T for gate in gates])
        theirs[f"{prefix}weight_hh_l{k}"] = np.concatenate([ours[f"{own}W_h{gate}"].T for gate in gates])
        theirs[f"{prefix}bias_ih_l{k}"] = np.concatenate(first)
        theirs[f"{prefix}bias_hh_l{k}"] = np.concatenate(second)
    theirs["readout.weight"] = ours["readout.W"].T.copy()
    theirs["readout.bias"] = ours["readout.b"].copy()
    # in C order: transposed blocks come out of concatenate in Fortran's, which safetensors would write scrambled
    return {name: np.ascontiguousarray(array) for name, array in theirs.items()}


def from_torch(model: Model, arrays: Mapping[str, Any], *, prefix: str = "", xp: Any = np) -> Params:
    """New parameters for `model` from arrays under PyTorch's names, on the device whose module is `xp`.

    `arrays` may hold whatever np.asarray takes: NumPy arrays, or CPU tensors without gradient (a state_dict). Their
    dtype is kept. `prefix` as in `to_torch`. The two biases are added up, so that the way back to PyTorch gives another
    pair with the same sum.
    Raises InputError for a cell or option that PyTorch has no module for and for missing or unknown names, ShapeError
    for an array of another size than the model's.
    """
    H = model.config.hidden
    shapes: dict[str, tuple[int, ...]] = {"readout.weight": (model.V, H), "readout.bias": (model.V,)}
    if model.config.embed != "onehot":
        shapes["embed.weight"] = (model.V, model.cells[0].I)
    for k, cell in enumerate(model.cells):
        rows = len(_gates(cell)) * H
        shapes |= {
            f"{prefix}weight_ih_l{k}": (rows, cell.I),
            f"{prefix}weight_hh_l{k}": (rows, H),
            f"{prefix}bias_ih_l{k}": (rows,),
            f"{prefix}bias_hh_l{k}": (rows,),
        }
    missing, unknown = sorted(shapes.keys() - arrays.keys()), sorted(arrays.keys() - shapes.keys())
    if missing or unknown:
        raise InputError(
            f"from_torch: expected exactly the names of a module of {len(model.cells)} layer(s) with two "
            "biases, in one direction and without projection; missing: "
            f"{', '.join(missing) or 'none'}, unknown: {', '.join(unknown) or 'none'}"
        )
    theirs = {name: np.asarray(value) for name, value in arrays.items()}
    for name, shape in shapes.items():
        if theirs[name].shape != shape:
            raise ShapeError(
                f"from_torch: expected {name} of shape {shape}, got {theirs[name].shape}; build the model "
                "with the sizes of the module"
            )
    if model.config.tie and not np.array_equal(theirs["embed.weight"], theirs["readout.weight"]):
        raise InputError(
            "from_torch: expected the same numbers in embed.weight and readout.weight, because the model is tied, got "
            "others; build it with tie=False"
        )
    ours: dict[str, HostArray] = {"readout.W": theirs["readout.weight"].T, "readout.b": theirs["readout.bias"]}
    if model.has_table:
        ours["embed.W"] = theirs["embed.weight"]
    for k, cell in enumerate(model.cells):
        gates = _gates(cell)
        own = f"layers.{k}."
        weights, recurrent, first, second = (
            np.split(theirs[f"{prefix}{name}_l{k}"], len(gates))
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        for i, gate in enumerate(gates):
            ours[f"{own}W_x{gate}"] = weights[i].T
            ours[f"{own}W_h{gate}"] = recurrent[i].T
            if cell.name == "gru" and gate == "n":
                ours[f"{own}b_n"], ours[f"{own}b_hn"] = first[i], second[i]
            else:
                ours[f"{own}b_{gate}"] = first[i] + second[i]
    # in the model's order, as from `init`; a copy, so that nobody's memory is shared
    return {name: Tensor(backend.from_host(ours[name].copy("C"), xp), requires_grad=True) for name in model.params()}


def _gates(cell: Cell) -> str:
    """The gates of `cell` in PyTorch's order. Raises InputError where PyTorch has no such module."""
    reason = advice = ""
    if cell.name not in GATES:
        advice = "; export onnx writes any cell"
        reason = f"cell {cell.name} has no module in torch.nn"
    elif cell.name == "rnn" and cell.options.activation not in ("tanh", "relu"):
        reason = f"torch.nn.RNN has no activation={cell.options.activation}"
        advice = "; train with --cell-opt activation=tanh"
    elif cell.name == "gru" and cell.options.form != "reset_after":
        reason = f"torch.nn.GRU does not compute form={cell.options.form}"
        advice = "; train with --cell-opt form=reset_after"
    if reason:
        raise InputError(f"{reason}; what can be exchanged: {_EXPRESSIBLE}{advice}")
    return GATES[cell.name]


# ----------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class StateDict:
    """The arrays of a safetensors file by their names, and the text in its header."""

    path: Path
    arrays: dict[str, HostArray]
    metadata: dict[str, str]
    sha256: str

    def nonlinearity(self) -> str | None:
        """What the torch.nn.RNN that `save_torch` wrote squashes with; None where the file does not say."""
        try:
            options = json.loads(self.metadata.get("cell_options", "{}"))
        except (ValueError, RecursionError):
            return None
        found = options.get("activation") if isinstance(options, dict) else None
        return str(found) if self.metadata.get("cell") == "rnn" and found in ("tanh", "relu") else None

    def vocabulary(self) -> Vocabulary | None:
        """The symbols that `save_torch` left in the file; None where nobody did. Raises FileError if they are none."""
        if "vocabulary" not in self.metadata:
            return None
        try:
            return Vocabulary.from_json(json.loads(self.metadata["vocabulary"]))
        except (ValueError, RecursionError, DataError) as error:
            raise FileError(f"{self.path}: its vocabulary is broken ({error}); give another one") from error


def save_torch(
    path: str | Path,
    model: Model,
    params: Mapping[str, Any],
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    step: int = 0,
    overwrite: bool = False,
) -> None:
    """Write the parameters as a state_dict in one safetensors file, whole or not at all; `torch_code` loads it.

    Names as `to_torch` with the prefix ``rnn.``. The header holds text by name: cell, cell_options (JSON), hidden,
    layers, embed, tie, V, vocabulary (JSON), seed, step (of the training) and tinygrad_rnn (our version).
    Raises what `to_torch` raises; FileError where the disk refuses, or a file is there already and `overwrite` is off.
    """
    config = model.config
    metadata = {
        "format": "pt",
        "tinygrad_rnn": versions()["tinygrad_rnn"],
        "cell": config.cell,
        "cell_options": to_json(config.cell_options, "cell options", indent=None),
        "hidden": str(config.hidden),
        "layers": str(config.layers),
        "embed": config.embed,
        "tie": to_json(config.tie, "tie", indent=None),
        "V": str(model.V),
        "vocabulary": to_json(vocabulary.to_json(), "vocabulary", indent=None),
        "seed": str(seed),
        "step": str(step),
    }
    data = _packed(to_torch(model, params, prefix="rnn."), metadata)
    write_new_file(path, data, ".safetensors", overwrite=overwrite)


def _packed(arrays: Mapping[str, Any], metadata: dict[str, str]) -> bytes:
    """A safetensors file of `arrays`, read back and compared. Raises CheckpointError where safetensors changed them."""
    host = {name: contiguous(name, array) for name, array in arrays.items()}
    data = safetensors.numpy.save(host, metadata)
    back = {name: bytes(entry["data"]) for name, entry in _entries(data)}
    for name, array in host.items():
        if back.get(name) != array.tobytes():
            raise CheckpointError(
                f"safetensors {safetensors.__version__} changed {name}; install another version of it"
            )
    return data


def _entries(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Name, and dtype, shape and data, of every array of a safetensors file."""
    found: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    return found


def read_state_dict(path: str | Path) -> StateDict:
    """The arrays of a safetensors file, whoever wrote it. bfloat16, which NumPy has not, comes as float32: the same
    numbers. Nothing in the file is executed.

    Raises FileError for what is no such file; for one that torch.save wrote it says how to convert it.
    """
    source = Path(path)
    try:
        data = source.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {source}: {error.strerror or error}; expected a safetensors file") from error
    try:
        entries = _entries(data)
    except safetensors.SafetensorError as error:
        if data[:4] == b"PK\x03\x04" or data[:1] == b"\x80":
            line = shlex.join(["python", "-c", _CONVERT, str(source), str(source.with_suffix(".safetensors"))])
            raise FileError(
                f"{source} was written by torch.save, whose format (pickle) can run code and is not read here; where "
                f"PyTorch is, convert it: {line}"
            ) from error
        raise FileError(
            f"{source} is no safetensors file, or is damaged ({' '.join(str(error).split())[:120]}); write it with "
            "safetensors.torch.save_file(module.state_dict(), FILE)"
        ) from error
    arrays = {}
    for name, entry in entries:
        if not name.isprintable():  # it would stand in messages, on somebody's terminal
            raise FileError(f"{source}: expected names that can be printed, got {name!r}")
        kind = str(entry["dtype"])
        if kind not in _DTYPES:
            raise FileError(
                f"{source}: expected {name} in 16, 32 or 64 bit floating point, got {kind}; convert it in PyTorch with "
                ".float(), or leave it out"
            )
        array = np.frombuffer(entry["data"], _DTYPES[kind]).reshape(entry["shape"])
        # bfloat16 is the upper half of a float32
        arrays[name] = (array.astype("<u4") << np.uint32(16)).view("<f4") if kind == "BF16" else array
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__", {})
    # safetensors.torch.save_model writes arrays of the same memory once; its header says which it left out
    arrays.update({name: arrays[kept] for name, kept in metadata.items() if kept in arrays and name not in arrays})
    if metadata.get("format", "").startswith("tinygrad_rnn.checkpoint."):
        raise FileError(f"{source} is a checkpoint of a run and no state dict; export the run, or use it as it is")
    return StateDict(source, arrays, metadata, hashlib.sha256(data).hexdigest())


def read_vocabulary(path: str | Path, kind: str = "chars") -> Vocabulary:
    """The symbols of somebody else's model, in the order of their numbers; `kind` says what a symbol is.

    A file ``*.json`` holds a list of symbols, an object from symbols to numbers, or what `Vocabulary.to_json` gives,
    which has a kind of its own. Any other is a text of which every character is a symbol, a line end at the end too.
    Raises FileError for a file that cannot be read, DataError for one that holds something else.
    """
    source = Path(path)
    try:
        text = source.read_bytes().decode("utf-8")
        value: Any = json.loads(text) if source.suffix.lower() == ".json" else list(text)
    except OSError as error:
        raise FileError(f"cannot read {source}: {error.strerror or error}; expected a vocabulary") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{source}: expected a vocabulary, got something else ({' '.join(str(error).split())})"
        ) from error
    if isinstance(value, dict) and "symbols" not in value:
        numbers = list(value.values())
        if any(type(number) is not int for number in numbers) or sorted(numbers) != list(range(len(numbers))):
            raise DataError(f"{source}: expected a number from 0 to {len(numbers) - 1} for each symbol, got others")
        value = sorted(value, key=value.__getitem__)
    if not isinstance(value, dict):
        value = {"kind": kind, "symbols": value, "unknown": None}
    try:
        return Vocabulary.from_json(value)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


def torch_code(model: Model, path: str | Path, dtype: Any = np.float32) -> str:
    """Lines of Python that load what `save_torch` wrote to `path` into a new module of PyTorch: `net` and `symbols`.

    Called with symbols (T, B) and a state or None, `net` gives logits (T, B, V) and the state.
    Raises InputError for a cell that PyTorch has no module for.
    """
    config, first = model.config, model.cells[0]
    _gates(first)
    onehot = config.embed == "onehot"
    sizes = [f"{first.I}, {config.hidden}", *([f"num_layers={config.layers}"] if config.layers > 1 else [])]
    if first.name == "rnn" and first.options.activation != "tanh":
        sizes.append(f"nonlinearity={first.options.activation!r}")
    inputs = f"torch.nn.functional.one_hot(x, {model.V}).to(self.readout.weight.dtype)" if onehot else "self.embed(x)"
    lines = [
        "import json",
        "import torch",
        "from safetensors import safe_open",
        "from safetensors.torch import load_file",
        "",
        "class Net(torch.nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *([] if onehot else [f"        self.embed = torch.nn.Embedding({model.V}, {first.I})"]),
        f"        self.rnn = torch.nn.{MODULES[first.name]}({', '.join(sizes)})",
        f"        self.readout = torch.nn.Linear({config.hidden}, {model.V})",
        *(["        self.readout.weight = self.embed.weight"] if config.tie else []),
        "",
        "    def forward(self, x, state=None):  # x: numbers of symbols (T, B)",
        f"        y, state = self.rnn({inputs}, state)",
        "        return self.readout(y), state  # logits (T, B, V)",
        "",
        f"net = Net(){'.double()' if np.dtype(dtype) == np.float64 else ''}",
        f"net.load_state_dict(load_file({str(path)!r}))",
        f"with safe_open({str(path)!r}, 'pt') as file:",
        "    symbols = json.loads(file.metadata()['vocabulary'])['symbols']",
    ]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------ runs


@dataclass(frozen=True)
class Imported:
    """A run made by `import_torch`: its folder, its configuration, V, and what the file did not hold."""

    run: Run
    config: RunConfig
    V: int
    zeros: tuple[str, ...]
    drawn: tuple[str, ...]


def import_torch(
    state: StateDict,
    out: str | Path,
    vocabulary: Vocabulary,
    config: RunConfig,
    *,
    data: Mapping[str, Any],
    dtype: str | None = None,
    nonlinearity: str | None = None,
    embed: str | None = None,
    readout: str | None = None,
    tie: bool = False,
    init_missing: bool = False,
    overwrite: bool = False,
) -> Imported:
    """Make a run folder of somebody's weights: to sample, score, diagnose, export, or train from with ``--init-from``.

    Its model is that of the file (see `recognise`; `nonlinearity` may stand in its header), the rest of its
    configuration that of `config`; `data` says which text belongs to it (sha256, source, characters; a sha256 of None:
    none). `tie` says that one matrix of the file is both embedding and readout. `dtype` is float64 where an array of
    the file is, else float32, unless it is given. `init_missing` draws an embedding or a readout that the file has not,
    from the seed of `config`. Everything that can be wrong is found before the folder is touched.
    Raises InputError and ShapeError as `recognise`, and where something is missing or not finite; FileError.
    """
    V = vocabulary.size
    try:
        found = recognise(
            state.arrays, V, nonlinearity=nonlinearity or state.nonlinearity(), embed=embed, readout=readout, tie=tie
        )
        chosen: Any = dtype or ("float64" if any(a.dtype == np.float64 for a in found.arrays.values()) else "float32")
        entry = find_cell(found.config.cell)
        model = build_model(found.config, V, entry)
        config = replace(config, model=found.config, train=replace(config.train, dtype=chosen))
        first = model.init(np.random.default_rng([config.train.seed, 0]), chosen)
        if found.missing and not init_missing:
            ends = " and no ".join(dict.fromkeys(name.partition(".")[0] for name in found.missing))
            I, H = model.cells[0].I, found.config.hidden
            raise InputError(
                f"expected an embedding (V, I) = ({V}, {I}), or one-hot input with I = V, and a readout (V, H) = "
                f"({V}, {H}), got no {ends}; give the state_dict of the whole model, "
                + ("say --tie where one matrix is both, " if I == H and len(found.missing) < 3 else "")
                + "or draw what is missing with --init-missing"
            )
        fresh = to_torch(model, first, prefix="rnn.") if found.missing else {}
        drawn = {name: fresh[name] for name in found.missing}
        arrays = {name: _finite(name, array, chosen) for name, array in {**found.arrays, **drawn}.items()}
        params = from_torch(model, arrays, prefix="rnn.")
    except InputError as error:
        raise type(error)(f"{state.path}: {error}") from error
    run = new_run(
        out,
        config,
        model,
        entry,
        vocabulary,
        data=data,
        device="cpu",
        origin={IMPORTED: {"file": str(state.path.absolute()), "sha256": state.sha256}},
        overwrite=overwrite,
    )
    save_run_checkpoint(run, 0, {PARAMS + name: value.data for name, value in params.items()}, {"step": 0})
    return Imported(run, config, V, found.zeros, found.missing)


def _finite(name: str, array: HostArray, dtype: Any) -> HostArray:
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if not np.isfinite(cast).all():
        raise InputError(f"expected finite numbers of {dtype} in {name}, got a NaN or an infinity")
    return cast
