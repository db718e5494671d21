"""A model put into a run folder, and taken up again: checked against the code and the data it was made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tinygrad_rnn import backend
from tinygrad_rnn.backend import Device
from tinygrad_rnn.config import RunConfig, as_dict, setting_as_words, setting_of
from tinygrad_rnn.data import Vocabulary
from tinygrad_rnn.errors import CheckpointError, DataError, FileError, InputError, PluginError
from tinygrad_rnn.model import Model, Params, build_model
from tinygrad_rnn.options import parse_options
from tinygrad_rnn.plugins import (
    CELLS,
    DATASETS,
    PluginGroup,
    PluginIdentity,
    check_identity,
    is_known,
    load,
    load_file,
)
from tinygrad_rnn.registry import CellEntry, load_cell
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
CODE = {"cells": "cell", "optimizers": "optimizer"}  # of these groups a run and its checkpoints store the identity
# What weights are bound to: under any other value they are of another size, or mean something else.
WEIGHT_SETTINGS = (
    "model.cell",
    "model.cell_options",
    "model.wrap",
    "model.hidden",
    "model.layers",
    "model.embed",
    "model.tie",
    "data.tokens",
    "data.min_count",
)
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
    changed: str | None = None
    """in words, how the code of the cell differs from that which the checkpoint was made with"""


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
        load_file(path)
    entry = load_cell(name, third_party=third_party)
    if stored is not None and not allow_changed:
        refuse_changed(check_identity(stored, entry.identity, CELLS.word))
    return entry


def refuse_changed(difference: str | None) -> None:
    """Raise PluginError that says what to do where the code of a cell or optimiser is another one."""
    if difference is not None:
        raise PluginError(f"{difference}; take the old code, or say --allow-changed-cell to use the new one")


def _few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def place_params(
    model: Model, arrays: Mapping[str, np.ndarray[Any, Any]], dtype: Any, device: Device, what: str
) -> Params:
    """Tensors on `device` from the arrays of a checkpoint, checked against what the model declares.

    Raises CheckpointError when a name, shape or dtype does not fit.
    """
    specs = model.params()
    if specs.keys() != arrays.keys():
        missing, extra = sorted(specs.keys() - arrays.keys()), sorted(arrays.keys() - specs.keys())
        cell = "+".join([model.config.cell, *model.config.wrap])
        found = " and ".join(f"{told} {_few(names)}" for told, names in (("no", missing), ("also", extra)) if names)
        raise CheckpointError(
            f"{what}: expected the parameters of {cell} in {model.config.layers} layers, got {found}; it is of another "
            "model"
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


def added_symbols(theirs: Vocabulary, ours: Vocabulary) -> tuple[str, ...] | None:
    """The symbols that `ours` has behind those of `theirs`; None where it is no such extension."""
    V = theirs.size
    same = (ours.kind, ours.symbols[:V], ours.unknown) == (theirs.kind, theirs.symbols, theirs.unknown)
    return ours.symbols[V:] if same else None


def grow_arrays(
    model: Model, arrays: Mapping[str, np.ndarray[Any, Any]], fresh: Params, V: int
) -> dict[str, np.ndarray[Any, Any]]:
    """The parameters `arrays` of a model of V symbols for `model`, which has more behind them.

    An array with an axis of symbols (embedding, readout, the input matrix of one-hot symbols) keeps its values, and
    what belongs to the new symbols comes from `fresh`. Whatever else differs is left for `place_params` to refuse.
    """
    grown = dict(arrays)
    for name, spec in model.params().items():
        old = arrays.get(name)
        if old is None or len(old.shape) != len(spec.shape) or old.shape == spec.shape:
            continue
        if all(a == b or (a, b) == (V, model.V) for a, b in zip(old.shape, spec.shape, strict=True)):
            grown[name] = np.array(backend.to_host(fresh[name].data))
            grown[name][tuple(slice(size) for size in old.shape)] = old
    return grown


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
    optimizer: PluginIdentity | None = None,
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
            **({} if optimizer is None else {"optimizer": optimizer.to_json()}),
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


Wanted = tuple[PluginGroup, str]  # a plugin by its group and name


def open_with_cell(
    path: str | Path,
    *,
    plugins: Sequence[str | Path],
    third_party: bool,
    others: Callable[[RunConfig], Sequence[Wanted]] = lambda config: (),
) -> OpenedRun:
    """The run folder `path` and its cell, whose identity the caller checks; `others` says what else has to be known.

    A run remembers its plugin files; `plugins` stand in for them, and the remembered ones are run where something is
    still unknown. Raises PluginError when one is wanted that is not there any more.
    """
    run = open_run(path)
    config = run_config(run)
    wanted = [(CELLS, config.model.cell), *others(config)]
    missing = _run_plugin_files(run, config, plugins, wanted) if third_party else []
    try:
        for group, name in wanted:
            load(group, name, third_party=third_party)
    except InputError as error:
        if missing and not is_known(group, name):
            raise PluginError(
                f"run {run.path} wants the plugin file {missing[0]}, which is not there ({error}); put it back, or say "
                "where it is now: --plugin FILE.py"
            ) from error
        raise
    entry = load_cell(config.model.cell, third_party=third_party)
    return OpenedRun(run, config, entry, run_vocabulary(run))


def _run_plugin_files(run: Run, config: RunConfig, given: Sequence[str | Path], wanted: Sequence[Wanted]) -> list[Path]:
    """Run the files `given`, and those that the run remembers where they are needed; the remembered ones not found."""
    for path in given:
        load_file(path)
    text = [] if config.data.text else [(DATASETS, config.data.corpus)]
    if given and all(is_known(*one) for one in [*wanted, *text]):
        return []
    missing = []
    for path in map(Path, describe(run).get("plugins", ())):
        if path.is_file():
            load_file(path)
        else:
            missing.append(path)
    return missing


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

    With `allow_changed_cell` the code of the cell may be another one, as long as the parameters fit; `changed` of the
    result says what differs. Raises FileError for a folder that is no run, CheckpointError for a damaged checkpoint,
    PluginError for a cell that is missing or changed, DeviceError.
    """
    place = backend.select(device)
    opened = open_with_cell(path, plugins=plugins, third_party=third_party)
    run, config, vocabulary = opened.run, opened.config, opened.vocabulary
    file = best_checkpoint(run) if which == "best" else latest_checkpoint(run)
    arrays, meta = load_run_checkpoint(run, file)
    changed = changed_code(run, meta, CELLS, opened.entry.identity)
    if not allow_changed_cell:
        refuse_changed(changed)
    own = {name[len(PARAMS) :]: array for name, array in arrays.items() if name.startswith(PARAMS)}
    try:
        model = build_model(config.model, vocabulary.size, opened.entry)
        params = place_params(model, own, config.train.dtype, place, str(file))
    except (CheckpointError, InputError) as error:
        if changed is None:
            raise
        raise CheckpointError(f"{changed}, and does not fit any more ({error}); take the old code") from error
    return LoadedModel(model, params, vocabulary, config, int(meta["step"]), Path(run.path), changed)


def changed_code(run: Run, meta: Mapping[str, Any], group: PluginGroup, identity: PluginIdentity) -> str | None:
    """In words, how the code of the cell or optimiser differs from that which made a checkpoint; None where it is that.

    A checkpoint's `meta` says so itself; older ones leave that to run.json, and those before it said so of optimisers
    match any. Raises FileError where run.json names no cell.
    """
    key = CODE[group.name]
    stored = described(run, key) if group is CELLS else describe(run).get(key, identity.to_json())
    return check_identity(meta.get(key, stored), identity, group.word)


# ------------------------------------------------------------------------------------------ --init-from


def weight_settings(path: str | Path) -> dict[str, Any]:
    """The settings that the weights of the run `path` are bound to, ``section.field`` to value: ready for `replace`.

    Raises FileError for a folder that is no run.
    """
    run = open_run(path)
    config = run_config(run)
    return {**{key: setting_of(config, key) for key in WEIGHT_SETTINGS}, "data.tokens": run_vocabulary(run).kind}


def weight_conflicts(config: RunConfig, bound: Mapping[str, Any], options: type[Any]) -> dict[str, tuple[str, str]]:
    """Where `config` differs from what weights are bound to: by setting, what they need and what they would get.

    Both are spelled as options of the command line. `options` is the cell's dataclass: an option that is spelled out
    and one that has the same value by default do not differ.
    """
    found = {}
    for key, theirs in bound.items():
        ours = setting_of(config, key)
        if key == "model.cell_options":
            if config.model.cell == bound["model.cell"]:
                found.update(_option_conflicts(ours, theirs, options, config.model.cell))
        elif ours != theirs and not (key == "model.embed" and {ours, theirs} == {"hidden", str(config.model.hidden)}):
            found[key] = (setting_as_words(key, theirs), setting_as_words(key, ours))
    return found


def _option_conflicts(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], options: type[Any], cell: str
) -> dict[str, tuple[str, str]]:
    mine, other = (parse_options(options, given, f"cell {cell}") for given in (ours, theirs))
    names = [option.name for option in fields(options)]
    values = {name: (getattr(other, name), getattr(mine, name)) for name in names}
    return {
        f"model.cell_options.{name}": (f"--cell-opt {name}={needed}", f"--cell-opt {name}={got}")
        for name, (needed, got) in values.items()
        if needed != got
    }


def refuse_conflicts(path: str | Path, conflicts: Mapping[str, tuple[str, str]]) -> None:
    """Raise InputError that says which settings the weights of the run `path` need."""
    if conflicts:
        needed, got = (", ".join(words) for words in zip(*conflicts.values(), strict=True))
        raise InputError(
            f"--init-from {path}: its weights need {needed}, got {got}; leave these options out, and they are those "
            "of that run"
        )
