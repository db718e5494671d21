"""What the arrays of somebody's safetensors file are: one RNN, LSTM or GRU of PyTorch, an embedding, a readout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_rnn.config import ModelConfig
from tinygrad_rnn.errors import InputError, ShapeError, nearest

HostArray = np.ndarray[Any, Any]

# cell -> the names of its gates in the order of PyTorch's blocks; an rnn has one block, called h
GATES = {"rnn": "h", "lstm": "ifgo", "gru": "rzn"}
MODULES = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}
_RECURRENT = re.compile(r"(.*?)(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)_l\d+(_reverse)?")


@dataclass(frozen=True)
class TorchModule:
    """What `recognise` found: the model, and its arrays as `from_torch` takes them with the prefix ``rnn.``.

    `missing` are arrays of the model's two ends that the file has not; `zeros` are biases that the module was made
    without, and that stand here as zeros.
    """

    config: ModelConfig
    arrays: dict[str, HostArray]
    missing: tuple[str, ...]
    zeros: tuple[str, ...]


def recognise(
    arrays: Mapping[str, HostArray],
    V: int,
    *,
    nonlinearity: str | None = None,
    embed: str | None = None,
    readout: str | None = None,
    tie: bool = False,
) -> TorchModule:
    """Find one RNN, LSTM or GRU, an embedding and a readout among `arrays`, under whatever names they have.

    The recurrent module is known by weight_ih_l0 and so on, behind any prefix; its cell and sizes follow from the
    shapes. What a torch.nn.RNN squashes with does not: `nonlinearity` is tanh or relu. The others are found by shape;
    `embed` and `readout` name them (``encoder`` or ``encoder.weight``) where several fit. Without an embedding the
    input is one-hot. Two matrices of the same numbers are tied; so is, where `tie` says so, the only one.
    Raises InputError for what this library has not (two directions, projections), for arrays that belong to none of the
    three and where several fit, ShapeError for sizes that do not go together or with the V symbols.
    """
    found = {name: match for name in arrays if (match := _RECURRENT.fullmatch(name)) is not None}
    prefixes = sorted({match[1] for match in found.values()})
    if not prefixes:
        raise InputError(
            f"expected the arrays of a torch.nn.RNN, LSTM or GRU (weight_ih_l0, weight_hh_l0, ...), got {_some(arrays)}"
        )
    if len(prefixes) > 1:
        raise InputError(
            f"expected one recurrent module, got {len(prefixes)}: {_some(prefixes)}; layers of one torch.nn module "
            "(num_layers) can be imported, a chain of modules cannot"
        )
    if any(match[3] for match in found.values()):
        raise InputError("expected a module in one direction, got a bidirectional one; it cannot write text forwards")
    if any(match[2] == "weight_hr" for match in found.values()):
        raise InputError("expected a module without projections, got one with proj_size; no cell here has them")
    prefix = prefixes[0]
    own = {name.removeprefix(prefix): arrays[name] for name in found}
    cell, I, H = _sizes(own, prefix)
    if nonlinearity is not None and cell != "rnn":
        raise InputError(f"--nonlinearity {nonlinearity}: expected a torch.nn.RNN, got a {MODULES[cell]}; leave it out")
    layers = sum(name.startswith("weight_ih") for name in own)
    zeros = []
    if not any(name.startswith("bias") for name in own):
        rows = len(GATES[cell]) * H
        own |= {f"bias_{side}_l{k}": np.zeros(rows, np.float32) for side in ("ih", "hh") for k in range(layers)}
        zeros.append(f"the biases of {prefix.rstrip('.') or 'the recurrent module'}")
    theirs = {f"rnn.{name}": array for name, array in own.items()}

    rest = {name: array for name, array in arrays.items() if name not in found}
    embed, readout = _ends(rest, I, H, embed, readout, tie)
    tied = embed is not None and readout is not None and np.array_equal(rest[embed], rest[readout])
    if tie and not tied:
        raise InputError(
            f"--tie: expected one matrix of {H} columns, or two of the same numbers, for embedding and readout, got "
            f"{_some([name for name in (embed, readout) if name] or ['none'])}; leave it out"
        )
    used = {name for name in (embed, readout) if name is not None}
    for ours, name, columns in (("embed.weight", embed, I), ("readout.weight", readout, H)):
        if name is not None:
            if rest[name].shape != (V, columns):
                raise ShapeError(
                    f"expected {name} of shape ({V}, {columns}), a row for each of the {V} symbols of the vocabulary, "
                    f"got {rest[name].shape}; give the vocabulary that the module was trained with"
                )
            theirs[ours] = rest[name]
    if readout is not None:
        name = _bias_of(readout)
        vectors = [other for other, array in rest.items() if array.shape == (V,)]
        if tied and name not in rest and len(vectors) == 1:
            name = vectors[0]  # of the readout, whose matrix goes by the name of the embedding
        if name in rest:
            theirs["readout.bias"] = rest[name]
            used.add(name)
        else:
            theirs["readout.bias"] = np.zeros(V, np.float32)
            zeros.append(f"the bias of {readout.removesuffix('.weight')}")
    others = sorted(rest.keys() - used)
    if others:
        raise InputError(
            f"expected a recurrent module, an embedding and a readout alone, got also {_some(others)}; "
            "a model with more parts cannot be imported; leave out what does not change its output"
        )
    onehot = embed is None and I == V
    missing = [] if embed is not None or onehot else ["embed.weight"]
    missing += [] if readout is not None else ["readout.weight", "readout.bias"]
    options = {"form": "reset_after"} if cell == "gru" else {"activation": "relu"} if nonlinearity == "relu" else {}
    config = ModelConfig(
        cell=cell,
        cell_options=options,
        hidden=H,
        layers=layers,
        embed="onehot" if onehot else "hidden" if I == H else str(I),
        tie=tied,
    )
    return TorchModule(config, theirs, tuple(missing), tuple(zeros))


def _sizes(own: Mapping[str, HostArray], prefix: str) -> tuple[str, int, int]:
    """The cell, I and H of a recurrent module, from the shapes of its first layer."""
    for name in ("weight_ih_l0", "weight_hh_l0"):
        if name not in own or own[name].ndim != 2:
            got = f"shape {own[name].shape}" if name in own else "none"
            raise ShapeError(f"expected a matrix {prefix}{name}, got {got}; take the whole state_dict of the module")
    (rows, H), I = own["weight_hh_l0"].shape, own["weight_ih_l0"].shape[1]
    for cell, gates in GATES.items():
        if I and H and rows == len(gates) * H:
            return cell, I, H
    raise ShapeError(
        f"expected {prefix}weight_hh_l0 of shape (G H, H) with G = 1 (RNN), 3 (GRU) or 4 (LSTM), got {(rows, H)} for "
        f"I = {I}"
    )


def _ends(
    rest: Mapping[str, HostArray], I: int, H: int, embed: str | None, readout: str | None, tie: bool
) -> tuple[str | None, str | None]:
    """The names of the embedding (V, I) and the readout (V, H) among what is not recurrent; None for what is not there.

    A matrix with a bias is no embedding; without one, a matrix of H = I columns can be either, and with `tie` is both.
    """
    matrices = [name for name, array in rest.items() if array.ndim == 2]
    embed = _named("--embed-name", embed, matrices)
    readout = _named("--readout-name", readout, matrices)
    if tie and I == H and embed is None and readout is None and len(matrices) == 1 and rest[matrices[0]].shape[1] == H:
        return matrices[0], matrices[0]
    free = [name for name in matrices if name not in (embed, readout)]
    if I == H and embed is None and readout is None and len(free) == 2 and np.array_equal(rest[free[0]], rest[free[1]]):
        first, second = sorted(free, key=lambda name: _bias_of(name) in rest)
        return first, second
    biased = [name for name in free if _bias_of(name) in rest]
    if readout is None:
        fits = [name for name in free if rest[name].shape[1] == H]
        fits = [name for name in fits if name in biased] or fits
        if fits and I == H and embed is None and fits[0] not in biased:
            raise InputError(
                f"{_some(fits)}: fits as embedding and as readout; say which is which with --embed-name, --readout-name"
                + (", or --tie if it is both" if len(fits) == 1 else "")
            )
        readout = _only("--readout-name", fits)
    if embed is None:
        embed = _only(
            "--embed-name",
            [name for name in free if name not in (readout, *biased) and rest[name].shape[1] == I],
        )
    return embed, readout


def _named(flag: str, wish: str | None, matrices: Sequence[str]) -> str | None:
    if wish is None:
        return None
    for name in (wish, f"{wish}.weight"):
        if name in matrices:
            return name
    known = [name.removesuffix(".weight") for name in matrices]
    raise InputError(f"{flag} {wish}: no such matrix outside the recurrent module{nearest(wish, known)}")


def _only(flag: str, fits: Sequence[str]) -> str | None:
    if len(fits) > 1:
        raise InputError(f"{flag}: expected one matrix that fits, got {_some(fits)}; name one")
    return fits[0] if fits else None


def _bias_of(weight: str) -> str:
    return weight.removesuffix("weight") + "bias" if weight.endswith("weight") else weight + ".bias"


def _some(names: Mapping[str, Any] | Sequence[str]) -> str:
    """The first few of `names`; a prefix that is empty stands as ''."""
    listed = [name or "''" for name in list(names)[:4]]
    return (", ".join(listed) or "nothing") + (f" and {len(names) - 4} more" if len(names) > 4 else "")
