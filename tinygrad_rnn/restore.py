"""A model put into a run folder, and taken up again: checked against the code and the data it was made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tinygrad_rnn import backend
from tinygrad_rnn.backend import Device
from tinygrad_rnn.config import RunConfig, as_dict
from tinygrad_rnn.data import Vocabulary
from tinygrad_rnn.errors import CheckpointError, DataError, FileError, PluginError
from tinygrad_rnn.model import Model, Params, build_model
from tinygrad_rnn.registry import CellEntry, check_identity, load_cell, load_plugin_file
from tinygrad_rnn.run import (
    DESCRIPTION,
    Run,
    best_checkpoint,
    create_run,
    describe,
    described,
    latest_checkpoint,
    load_run_checkpoint,
    open_run,
    run_config,
)
from tinygrad_rnn.tensor import Tensor

PARAMS = "params/"
IMPORTED = "imported"  # the entry of run.json that says which file a run was imported from


@dataclass(frozen=True)
class LoadedModel:
    """A trained model, ready to sample from, to score a text or to look into."""

    model: Model
    params: Params
    vocabulary: Vocabulary
    config: RunConfig
    step: int
    path: Path


def find_cell(
    name: str,
    stored: Mapping[str, str] | None = None,
    *,
    plugins: Sequence[str | Path] = (),
    third_party: bool = True,
    allow_changed: bool = False,
) -> CellEntry:
    """The cell `name`, after running the plugin files; held against the identity that a run stored.

    Without `third_party` no plugin file is run. Raises PluginError when the code is not the one the run was made with
    (unless `allow_changed`), InputError for an unknown name.
    """
    for path in plugins if third_party else ():
        load_plugin_file(path)
    entry = load_cell(name, third_party=third_party)
    if stored is not None and not allow_changed:
        difference = check_identity(stored, entry)
        if difference is not None:
            raise PluginError(f"{difference}; take the old code, or say --allow-changed-cell to use the new one")
    return entry


def place_params(
    model: Model, arrays: Mapping[str, np.ndarray[Any, Any]], dtype: Any, device: Device, what: str
) -> Params:
    """Tensors on `device` from the arrays of a checkpoint, checked against what the model declares.

    Raises CheckpointError when a name, shape or dtype does not fit.
    """
    specs = model.params()
    if specs.keys() != arrays.keys():
        missing, extra = sorted(specs.keys() - arrays.keys()), sorted(arrays.keys() - specs.keys())
        raise CheckpointError(
            f"{what}: expected the parameters of {model.config.cell}, got none for {missing} and more "
            f"for {extra}; it is of another model"
        )
    params: Params = {}
    for name, spec in specs.items():
        array = arrays[name]
        if array.shape != spec.shape:
            raise CheckpointError(
                f"{what}: expected {name} of shape {spec.shape}, got {array.shape}; it is of another model"
            )
        params[name] = Tensor(
            backend.from_host(array.astype(dtype, copy=False), device.xp), requires_grad=spec.role != "buffer"
        )
    return params


def new_run(
    path: str | Path,
    config: RunConfig,
    model: Model,
    entry: CellEntry,
    vocabulary: Vocabulary,
    *,
    data: Mapping[str, Any],
    device: str,
    plugins: Sequence[str | Path] = (),
    origin: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Run:
    """A run folder whose run.json describes `model`; it holds no checkpoint yet.

    `data` says which text it is trained on (sha256, source, characters), `origin` where its weights come from.
    Raises FileError where a run stands already and `overwrite` is off, or where the folder cannot be made.
    """
    return create_run(
        path,
        {
            "config": as_dict(config),
            "cell": entry.identity.to_json(),
            "plugins": [str(Path(plugin).resolve()) for plugin in plugins],
            "data": dict(data),
            "vocabulary": vocabulary.to_json(),
            "device": device,
            "seed": config.train.seed,
            **(origin or {}),
            "parameters": model.count(),
        },
        overwrite=overwrite,
    )


@dataclass(frozen=True)
class OpenedRun:
    """A run folder with what its run.json means in this process."""

    run: Run
    config: RunConfig
    entry: CellEntry
    vocabulary: Vocabulary


def open_with_cell(
    path: str | Path, *, plugins: Sequence[str | Path], third_party: bool, allow_changed_cell: bool
) -> OpenedRun:
    """The run folder `path` and its cell. A run remembers its plugin files; `plugins` stand in for them."""
    run = open_run(path)
    config = run_config(run)
    entry = find_cell(
        config.model.cell,
        described(run, "cell"),
        plugins=tuple(plugins) or tuple(describe(run).get("plugins", ())),
        third_party=third_party,
        allow_changed=allow_changed_cell,
    )
    return OpenedRun(run, config, entry, run_vocabulary(run))


def run_vocabulary(run: Run) -> Vocabulary:
    """The symbols of a run. Raises FileError when run.json holds none."""
    try:
        return Vocabulary.from_json(described(run, "vocabulary"))
    except DataError as error:
        raise FileError(f"{run.path / DESCRIPTION} is broken ({error}); restore it, or train the run again") from error


def load_run_model(
    path: str | Path,
    *,
    which: Literal["best", "latest"] = "best",
    device: str = "auto",
    allow_changed_cell: bool = False,
    plugins: Sequence[str | Path] = (),
    third_party: bool = True,
) -> LoadedModel:
    """The model of the run folder `path`, from its best checkpoint (by validation loss) or its latest.

    Raises FileError for a folder that is no run, CheckpointError for a damaged checkpoint, PluginError for a cell that
    is missing or changed, DeviceError.
    """
    place = backend.select(device)
    opened = open_with_cell(path, plugins=plugins, third_party=third_party, allow_changed_cell=allow_changed_cell)
    run, config, vocabulary = opened.run, opened.config, opened.vocabulary
    model = build_model(config.model, vocabulary.size, opened.entry)
    file = best_checkpoint(run) if which == "best" else latest_checkpoint(run)
    arrays, meta = load_run_checkpoint(run, file)
    own = {name[len(PARAMS) :]: array for name, array in arrays.items() if name.startswith(PARAMS)}
    params = place_params(model, own, config.train.dtype, place, str(file))
    return LoadedModel(model, params, vocabulary, config, int(meta["step"]), Path(run.path))
