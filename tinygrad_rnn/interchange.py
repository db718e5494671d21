"""Weights to and from PyTorch, by name: plain NumPy arrays on both sides, PyTorch itself is not imported.

The names are those of ``torch.nn.RNN``, ``LSTM`` and ``GRU`` (2.13), for all layers of one module:

    ours                                    theirs
    embed.W (V, I)                          embed.weight (V, I), a torch.nn.Embedding; no entry for one-hot input
    layers.K.W_x* (I, H), gates beside      weight_ih_lK (G H, I), gates below each other
    layers.K.W_h* (H, H)                    weight_hh_lK (G H, H)
    layers.K.b_* (H,)                       bias_ih_lK (G H,), with bias_hh_lK (G H,) zero
    readout.W (H, V), readout.b (V,)        readout.weight (V, H), readout.bias (V,), a torch.nn.Linear

Order of the gates: lstm i, f, g, o; gru r, z, n. PyTorch has two biases that only ever appear as a sum; it goes into
bias_ih, and the way back adds the two. The one exception is the n gate of a GRU, whose second bias is multiplied by r:
b_hn goes into bias_hh and comes back from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinygrad_rnn import backend
from tinygrad_rnn.cell import Cell
from tinygrad_rnn.errors import InputError, ShapeError
from tinygrad_rnn.model import Model, Params
from tinygrad_rnn.tensor import Tensor

HostArray = np.ndarray[Any, Any]

# cell -> the names of its gates in the order of PyTorch's blocks; an rnn has one block, called h
_GATES = {"rnn": "h", "lstm": "ifgo", "gru": "rzn"}
_EXPRESSIBLE = "rnn (activation=tanh or relu), lstm and gru (form=reset_after)"


def to_torch(model: Model, params: Mapping[str, Any], *, prefix: str = "") -> dict[str, HostArray]:
    """The parameters of `model` under PyTorch's names, as new arrays on the host in their own dtype.

    `params` are tensors or arrays by our names. `prefix` stands before the names of the recurrent module: with
    ``prefix="rnn."`` the result, converted by torch.from_numpy, is the state_dict of a module with the attributes
    embed, rnn and readout.
    Raises InputError for a cell or option that PyTorch has no module for, or a missing parameter; ShapeError for one
    of another size than the model's.
    """
    wanted = model.params()
    missing = sorted(wanted.keys() - params.keys())
    if missing:
        raise InputError(f"to_torch: expected every parameter of the model, got none for {', '.join(missing)}")
    ours = {name: backend.to_host(value.data if isinstance(value, Tensor) else value) for name, value in params.items()}
    for name, spec in wanted.items():
        if ours[name].shape != spec.shape:
            raise ShapeError(f"to_torch: expected {name} of shape {spec.shape}, got {ours[name].shape}")
    theirs: dict[str, HostArray] = {}
    if "embed.W" in wanted:
        theirs["embed.weight"] = ours["embed.W"].copy()
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
    ours: dict[str, HostArray] = {"readout.W": theirs["readout.weight"].T, "readout.b": theirs["readout.bias"]}
    if "embed.weight" in theirs:
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
    reason = ""
    if cell.name not in _GATES:
        reason = f"cell {cell.name} has no module in torch.nn"
    elif cell.name == "rnn" and cell.options.activation not in ("tanh", "relu"):
        reason = f"torch.nn.RNN has no activation={cell.options.activation}"
    elif cell.name == "gru" and cell.options.form != "reset_after":
        reason = f"torch.nn.GRU does not compute form={cell.options.form}"
    if reason:
        raise InputError(f"{reason}; what can be exchanged: {_EXPRESSIBLE}")
    return _GATES[cell.name]
