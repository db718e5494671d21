"""A step that diverged, run once more from the file that the training left of it: where does it break?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinygrad_rnn import backend, engine, optim
from tinygrad_rnn.checkpoint import load
from tinygrad_rnn.errors import CheckpointError, FileError, InputError, NonFiniteError
from tinygrad_rnn.model import State, build_model
from tinygrad_rnn.plugins import CELLS
from tinygrad_rnn.restore import PARAMS, changed_code, open_with_cell, place_params, refuse_changed
from tinygrad_rnn.run import DIVERGED, Run
from tinygrad_rnn.train import GRADIENTS, gradients

BATCH = "batch/"


@dataclass(frozen=True)
class Replay:
    """What `replay_step` saw. `loss` is in nats per symbol; norms are Euclidean, before any clipping."""

    step: int
    file: Path
    why: str
    """what ended the training, in its own words"""
    loss: float
    grad_norm: float
    broke: str
    """the first value or gradient that is not finite, in words; where every one is finite, what else it was"""
    where: Mapping[str, object]
    """op, layer, timestep and gate of that place, as far as known"""
    parameters: Sequence[tuple[str, float, float]]
    """(name, norm, norm of its gradient) of every parameter that is trained, the largest gradient first"""
    states: Sequence[tuple[int, str, float, int]]
    """(layer, state, its largest absolute value, the timestep of that value)"""


def diverged_steps(run: Run) -> dict[int, Path]:
    """The files that divergences left in a run folder, by step, in order."""
    found = {int(path.stem.rpartition("-")[2]): path for path in run.path.glob(DIVERGED)}
    return dict(sorted(found.items()))


def replay_step(
    path: str | Path,
    *,
    step: int | None = None,
    device: str = "auto",
    allow_changed_cell: bool = False,
    plugins: Sequence[str | Path] = (),
    third_party: bool = True,
) -> Replay:
    """Run the step of a run folder that diverged once more, the newest or that of number `step`, and look everywhere.

    Where it was the update that did it, the file holds the parameters behind it, and the clipped gradient: nothing is
    run then, and `broke` says so.

    Raises FileError where the run has no such file, CheckpointError for a damaged one or one of another model,
    InputError for a step that did not diverge, PluginError for a cell that is missing or has changed.
    """
    place = backend.select(device)
    opened = open_with_cell(path, plugins=plugins, third_party=third_party)
    config = opened.config
    files = diverged_steps(opened.run)
    if not files:
        raise FileError(f"run {opened.run.path} holds no diverged step; it left none, or --overwrite removed it")
    if step is not None and step not in files:
        raise InputError(f"--step {step}: expected a step that diverged, one of {', '.join(map(str, files))}")
    number = step or max(files)
    file = files[number]
    arrays, meta = load(file)
    if not allow_changed_cell:
        refuse_changed(changed_code(opened.run, meta, CELLS, opened.entry.identity))
    model = build_model(config.model, opened.vocabulary.size, opened.entry)
    own = {name.removeprefix(PARAMS): array for name, array in arrays.items() if name.startswith(PARAMS)}
    params = place_params(model, own, config.train.dtype, place, str(file))
    why, where = str(meta.get("why", "")), dict(meta.get("where") or {})
    if meta.get("updated"):
        pulled = {name.removeprefix(GRADIENTS): array for name, array in arrays.items() if name.startswith(GRADIENTS)}
        norm, loss = (float(meta.get(name, math.nan)) for name in ("grad_norm", "loss"))
        return Replay(number, file, why, loss, norm, "the update", where, _norms(own, pulled), ())
    x, y = (backend.from_host(arrays[BATCH + name], place.xp) for name in "xy")
    start: State = [{} for _ in range(config.model.layers)]
    for name, array in arrays.items():
        if name.startswith(f"{BATCH}state/"):
            layer, _, state = name.removeprefix(f"{BATCH}state/").partition("/")
            start[int(layer)][state] = backend.from_host(array, place.xp)

    def once() -> tuple[Any, float, dict[str, Any]]:
        rng = np.random.default_rng()
        try:
            rng.bit_generator.state = meta["rng"]
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"{file}: expected the state of the random numbers, got none; train again") from error
        forward, loss, found = gradients(model, params, config, x, y, start, rng)
        return forward, loss.item() / (len(y) if config.train.loss == "sum" else 1), found

    with np.errstate(all="ignore"):
        forward, loss, found = once()
        broke = "nothing: every value and gradient is finite"
        try:
            with engine.anomaly():
                once()
        except NonFiniteError as error:
            broke, where = str(error), dict(error.where)
        states = [
            (layer, name, *_largest(values))
            for layer, unrolled in enumerate(forward.layers)
            for name, values in unrolled.states.items()
        ]
        norm = optim.global_norm(found)
        values = {name: value.data for name, value in params.items()}
        return Replay(number, file, why, loss, norm, broke, where, _norms(values, found), states)


def _norms(params: Mapping[str, Any], gradients: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """(name, norm, norm of its gradient) of what has a gradient; the largest gradient, NaN above all, first."""
    rows = [
        (name, optim.global_norm({name: params[name]}), optim.global_norm({name: gradient}))
        for name, gradient in gradients.items()
    ]
    return sorted(rows, key=lambda row: math.inf if math.isnan(row[2]) else row[2], reverse=True)


def _largest(values: Sequence[Any]) -> tuple[float, int]:
    """The largest absolute value of a state, where NaN is larger than any, and the first timestep that has it."""
    peaks = np.array([float(backend.to_host(np.abs(value.data)).max(initial=0.0)) for value in values])
    at = int(np.argmax(np.where(np.isnan(peaks), np.inf, peaks)))
    return float(peaks[at]), at
