"""Checks with large numbers and with many steps: everything has to stay finite."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinygrad_rnn.cell import init_cell, specification, timesteps
from tinygrad_rnn.errors import InputError
from tinygrad_rnn.sequence import start_state
from tinygrad_rnn.testing.cases import CellCase, cell_values
from tinygrad_rnn.testing.trial import LARGE, Failed, Noted, Trial, check_finite

# Over the second half of a long run a state that is summed up grows to twice its size, a double sum to four times; the
# slowest exponential growth that is told is 3.5 percent a step. What is small after all is nobody's trouble.
GROWTH, SMALL = 32.0, 1e3

_EXTREMES: Mapping[str, tuple[float, float]] = {  # what x and the reached state are multiplied by; 0: the start state
    "inputs of 1e4": (LARGE, 1.0),
    "states of 1e4": (1.0, LARGE),
    "inputs and states of 1e4": (LARGE, LARGE),
    "zero inputs, from the start": (0.0, 0.0),
}


def extremes(trial: Trial) -> str:
    """Large and zero numbers give finite values and gradients."""
    dtypes = (np.float32, np.float64) if trial.float32 else (np.float64,)
    spared: tuple[str, ...] = ()
    for dtype in dtypes:
        for what, (x, s) in _EXTREMES.items():
            try:
                _extreme(trial, dtype, what, x, s, ())
            except Failed:
                spared = _bounded(trial) if s == LARGE else ()
                if not spared:
                    raise
                _extreme(trial, dtype, what, x, s, spared)  # what no run can reach is no fault
    told = f"values and gradients stay finite, in {_names(dtypes)}: {'; '.join(_EXTREMES)}"
    if spared:
        raise Noted(f"{told}; not for 1e4 in {', '.join(spared)}, which never leaves [-1, 1]")
    return told


def _extreme(trial: Trial, dtype: Any, what: str, x: float, s: float, spared: Sequence[str]) -> None:
    """Raise Failed where x times the input and s times every state but the `spared` gives what is not finite."""
    case = trial.case(dtype=dtype)
    lines = [*trial.lines(dtype=dtype), f"case.xs[...] *= {x}"]
    case.xs[...] *= x
    if s:
        clocks = timesteps(specification(case.cell)[0])
        for name in [name for name in case.state if name not in (*clocks, *spared)]:
            case.state[name] *= s
            lines += [f"case.state[{name!r}] *= {s}"]
    else:
        state = start_state(case.cell, 3, case.xs)
        case.state.update(state)
        lines += [f"case.state[{name!r}][...] = {float(array.flat[0])}" for name, array in state.items()]
    got = cell_values(case, order=1, curved=False)
    check_finite(got, f"{np.dtype(dtype).name}, {what}", [*lines, "got = cell_values(case, order=1, curved=False)"])


def _bounded(trial: Trial) -> tuple[str, ...]:
    """The states that stay in [-1, 1] from the start on, whatever the input."""
    largest: dict[str, float] = {}
    for scale in (1.0, 30.0, LARGE):
        case = trial.started(T=trial.steps)
        case.xs[...] *= scale
        got = cell_values(case)
        for name in case.state:
            found = float(np.max(np.abs(got[name])))
            largest[name] = max(largest.get(name, 0.0), found if np.isfinite(found) else np.inf)
    return tuple(name for name, value in largest.items() if value <= 1.0 + 1e-6)


def _names(dtypes: Sequence[Any]) -> str:
    return " and ".join(np.dtype(dtype).name for dtype in dtypes)


def long(trial: Trial) -> str:
    """Many steps from the initial parameters stay finite."""
    T, H, dtype = trial.steps, _wide(trial), np.float32 if trial.float32 else np.float64
    I = H if trial.I == trial.H else trial.I
    cell = trial.cell(I=I, H=H)
    rng = np.random.default_rng(trial.seed)
    params = {name: value.data for name, value in init_cell(cell, rng, dtype).items()}
    xs = rng.normal(size=(T, 2, I)).astype(dtype)
    case = CellCase(cell, params, xs, start_state(cell, 2, xs))
    got = cell_values(case, order=1, curved=False)
    lines = [
        *trial.lines(T=T, B=2, I=I, H=H, dtype=dtype),
        f"rng = np.random.default_rng({trial.seed})",
        f"new = tr.init_cell(case.cell, rng, np.{np.dtype(dtype).name})",
        "case.params.update({name: value.data for name, value in new.items()})",
        f"case.xs[...] = rng.normal(size=({T}, 2, {I}))",
        *(f"case.state[{n!r}][...] = {spec.start}" for n, spec in specification(cell)[0].items()),
        "got = cell_values(case, order=1, curved=False)",
    ]
    what = f"{T} steps in {np.dtype(dtype).name}, initial parameters"
    check_finite(got, what, lines)
    for name in case.state:
        half, end = (float(np.max(np.abs(got[name][max(0, t - 20) : t]))) for t in (T // 2, T))
        if end > SMALL and end > GROWTH * half:
            raise Failed(
                f"{what}: state {name} grows exponentially, from {half:.3g} at step {T // 2} to {end:.3g} at step {T}",
                [*lines, f"print(abs(got[{name!r}]).reshape({T}, -1).max(axis=1))"],
            )
    return f"{T} steps of {H} units stay finite in {np.dtype(dtype).name}, and do not explode"


def _wide(trial: Trial) -> int:
    """More units than for the other checks, where the cell can have them: with few, chance decides on the growth."""
    for H in (32, 8 * trial.H):
        with contextlib.suppress(InputError):
            specification(trial.cell(I=H if trial.I == trial.H else trial.I, H=H))
            return H
    return trial.H
