"""Time: a cell's step applied along a sequence.

`unroll` is the reference: one step after another on the tape. `scan` gives the same numbers by compiled code, see
`tinygrad_rnn.compile`; what that cannot do it hands to `unroll`, and says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from tinygrad_rnn import engine, ops
from tinygrad_rnn.cell import (
    Cell,
    State,
    last_timestep,
    noise_of,
    output_of,
    specification,
    take_step,
    timesteps,
)
from tinygrad_rnn.compile.program import NotCompiled, program
from tinygrad_rnn.compile.program import run as run_program
from tinygrad_rnn.errors import InputError, NonFiniteError, ShapeError
from tinygrad_rnn.tensor import Tensor, made_of

LayerState = Mapping[str, Any]  # state name -> (B, H)


@dataclass(frozen=True)
class Unrolled:
    """What came out of a sequence of T steps.

    `outputs` (T, B, H) is the cell's output at every step, `state` the states after the last one, `states` every state
    at every step (T tensors (B, H) by name). These are the same tensors: ``outputs[t]`` is that state at step t, and
    ``state[name]`` is ``states[name][-1]``, so that a gradient asked for one is that of the other: dL/dh_t, through all
    later steps. The gradient of `outputs` as a whole is only what reaches L through that one tensor. `executor` names
    the path that ran and `reason` why.
    """

    outputs: Any
    state: dict[str, Any]
    states: Mapping[str, Sequence[Any]]
    executor: str = "unroll"
    reason: str = "asked for"


def start_state(cell: Cell, B: int, like: Any) -> dict[str, Any]:
    """The declared start values of every state, (B, *shape), in the dtype and on the device of the array `like`."""
    data = like.data if isinstance(like, Tensor) else like
    shapes, _ = specification(cell)
    return {name: np.full_like(data, spec.start, shape=(B, *spec.shape)) for name, spec in shapes.items()}


def detach_state(state: LayerState) -> dict[str, Any]:
    """The same states as plain arrays: what truncated BPTT carries from one window to the next."""
    return {name: value.data if isinstance(value, Tensor) else value for name, value in state.items()}


def checked_state(
    cell: Cell, params: Mapping[str, Any], xs: Any, state: LayerState | None, mask: Any
) -> dict[str, Any]:
    """The state to start from. Raises ShapeError where the sizes of anything do not fit."""
    shapes, declared = specification(cell)
    if len(xs.shape) != 3 or xs.shape[2] != cell.I:
        raise ShapeError(f"unroll of {cell.name}: expected a sequence (T, B, I={cell.I}), got {tuple(xs.shape)}")
    T, B, _ = xs.shape
    if T == 0 or B == 0:
        raise ShapeError(f"unroll of {cell.name}: expected at least one step and one row, got {tuple(xs.shape)}")
    if mask is not None and tuple(mask.shape) != (T, B):
        raise ShapeError(f"unroll of {cell.name}: expected a mask (T={T}, B={B}), got {tuple(mask.shape)}")
    for name, spec in declared.items():
        if name not in params or tuple(params[name].shape) != spec.shape:
            got = tuple(params[name].shape) if name in params else "none"
            raise ShapeError(f"unroll of {cell.name}: expected parameter {name} of shape {spec.shape}, got {got}")
    current = dict(start_state(cell, B, xs) if state is None else state)
    if current.keys() != shapes.keys():
        raise ShapeError(f"unroll of {cell.name}: expected the states {list(shapes)}, got {list(current)}")
    for name, state_spec in shapes.items():
        if tuple(current[name].shape) != (B, *state_spec.shape):
            raise ShapeError(
                f"unroll of {cell.name}: expected state {name} of shape {(B, *state_spec.shape)}, got "
                f"{tuple(current[name].shape)}"
            )
    for name in timesteps(shapes):
        data = current[name].data if isinstance(current[name], Tensor) else current[name]
        last = last_timestep(data.dtype)
        if not np.all(np.less_equal(data, last - T)):
            raise InputError(
                f"unroll of {cell.name}: expected timesteps up to {last}, which is as far as {data.dtype} counts, got "
                f"more; start the states again, or use float64"
            )
    return current


def checked_noise(cell: Cell, xs: Any, noise: Mapping[str, Any] | None) -> dict[str, Any]:
    """The noise for every step, {} outside training. Raises ShapeError where names or sizes do not fit."""
    declared = noise_of(cell)
    if not noise:
        return {}
    T, B, _ = xs.shape
    got = {name: tuple(value.shape) for name, value in noise.items()}
    if got != {name: (T, B, *kind.shape) for name, kind in declared.items()}:
        expected = ", ".join(f"{name} {(T, B, *kind.shape)}" for name, kind in declared.items())
        raise ShapeError(
            f"unroll of {cell.name}: expected the noise {expected or 'none'}, got "
            f"{', '.join(f'{name} {shape}' for name, shape in got.items())}"
        )
    return {name: value.data if isinstance(value, Tensor) else value for name, value in noise.items()}


def unroll(
    cell: Cell,
    params: Mapping[str, Any],
    xs: Any,
    state: LayerState | None = None,
    *,
    mask: Any = None,
    noise: Mapping[str, Any] | None = None,
    layer: int = 0,
) -> Unrolled:
    """Apply `cell` to the sequence `xs` (T, B, I), one step after another on the tape.

    `params` are the cell's arrays by name; `state` is where it starts (the declared start values when None). Where
    `mask` (T, B) is False a row keeps its states: ragged batches; the padding may be anything finite. `noise` is what
    `draw_noise` gave, in training; without it the step reads the means. `layer` is only told in errors.
    Raises ShapeError for sizes that do not fit, PluginError when the step breaks its contract; inside `anomaly()`
    NonFiniteError with op, layer, timestep and gate.
    """
    shapes, declared = specification(cell)
    current: dict[str, Any] = checked_state(cell, params, xs, state, mask)
    drawn = checked_noise(cell, xs, noise)
    T, B, _ = xs.shape
    current = {name: value if isinstance(value, Tensor) else Tensor(value) for name, value in current.items()}
    p = SimpleNamespace(**{name: params[name] for name in declared})
    vars(p).update({name: kind.mean for name, kind in noise_of(cell).items()})
    states: dict[str, list[Any]] = {name: [] for name in shapes}
    place = engine.MODE.anomaly
    try:
        for t in range(T):
            vars(p).update({name: Tensor(value[t]) for name, value in drawn.items()})
            if place is None:
                new = take_step(cell, p, xs[t], current, shapes)
            else:
                place.update(layer=layer, timestep=t)
                new = _watched_step(cell, p, xs[t], current, shapes)
            if mask is not None:
                alive = mask[t]
                new = {
                    name: ops.where(ops.reshape(alive, (B,) + (1,) * (value.ndim - 1)), value, current[name])
                    for name, value in new.items()
                }
            current = new
            for name, value in current.items():
                states[name].append(value)
    finally:
        if place is not None:  # also after an error: what comes next in this anomaly() is no part of the sequence
            place.pop("layer", None)
            place.pop("timestep", None)
    outputs = states[output_of(cell)]
    return Unrolled(made_of(ops.stack(outputs), outputs, range(T)), current, states)


def _watched_step(
    cell: Cell, p: SimpleNamespace, x: Any, state: LayerState, shapes: Mapping[str, State]
) -> dict[str, Any]:
    """`take_step` inside anomaly(): an error is told with the gate that was being computed.

    That is the gate announced next after the op that failed, so the step is run once more, unchecked, to hear it. The
    gate itself may be finite: sigmoid(inf) is 1.
    """
    heard: list[str] = []
    outer = engine.MODE.listener

    def listener(name: str, value: Any) -> None:
        heard.append(name)
        if outer is not None:
            outer(name, value)

    try:
        with engine.listen(listener):
            return take_step(cell, p, x, state, shapes)
    except NonFiniteError as error:
        names: list[str] = []
        place, engine.MODE.anomaly = engine.MODE.anomaly, None
        try:
            with engine.no_grad(), engine.listen(lambda name, _: names.append(name)), np.errstate(all="ignore"):
                cell.step(p, x, SimpleNamespace(**state))
        finally:
            engine.MODE.anomaly = place
        if len(heard) == len(names):
            raise  # behind the last gate
        gate = names[len(heard)]
        raise NonFiniteError(f"{error}, gate {gate}", {**error.where, "gate": gate}) from error


def scan(
    cell: Cell,
    params: Mapping[str, Any],
    xs: Any,
    state: LayerState | None = None,
    *,
    mask: Any = None,
    noise: Mapping[str, Any] | None = None,
    layer: int = 0,
    executor: str | None = None,
    recompute: int | None = None,
) -> Unrolled:
    """`unroll` by the fastest executor that can do it: same arguments, same numbers to rounding.

    The step is traced once and compiled; see docs/architecture.md. `executor` asks for one: "llvm" (machine code;
    needs llvmlite), "numpy" or "unroll". What cannot do it hands over to the next, and the result's `executor` and
    `reason` say what ran and why. `recompute` is the number of timesteps in a block that keeps nothing but its states
    and is computed again on the way back: 0 never, None where the sequence would need more than 512 MB.
    Raises what `unroll` raises, and InputError for an executor that does not exist.
    """
    if recompute is not None and recompute < 0:
        raise InputError(f"recompute: expected a number of timesteps of at least 0, got {recompute}")
    if executor not in (None, *EXECUTORS):
        raise InputError(f"executor {executor!r}: expected one of {', '.join(EXECUTORS)}")
    current = checked_state(cell, params, xs, state, mask)
    drawn = checked_noise(cell, xs, noise)
    made = None
    try:
        made = _program(cell, params, xs, current, mask, drawn, executor)
    except NotCompiled as error:
        reason = str(error)
    if made is None:  # outside the `except`: an error of the step is no consequence of this one
        done = unroll(cell, params, xs, state, mask=mask, noise=noise, layer=layer)
        return dataclasses.replace(done, reason=reason)
    shapes, _ = specification(cell)
    ordered = {name: current[name] for name in shapes}
    outputs, states, reason = run_program(made, output_of(cell), params, xs, ordered, mask, drawn, recompute)
    return Unrolled(outputs, {name: sequence[-1] for name, sequence in states.items()}, states, made.name, reason)


EXECUTORS = ("llvm", "numpy", "unroll")


def _program(
    cell: Cell,
    params: Mapping[str, Any],
    xs: Any,
    state: Mapping[str, Any],
    mask: Any,
    noise: Mapping[str, Any],
    executor: str | None,
) -> Any:
    """The compiled cell. Raises NotCompiled where only `unroll` can do what is asked for."""
    if executor == "unroll":
        raise NotCompiled("asked for")
    if engine.MODE.anomaly is not None:
        raise NotCompiled("anomaly() looks at every value")
    if engine.MODE.listener is not None:
        raise NotCompiled("somebody listens to the taps of every step")
    dtype = xs.dtype
    for value in (xs, *state.values(), *params.values(), *noise.values()):
        data = value.data if isinstance(value, Tensor) else value
        if type(data) is not np.ndarray:
            raise NotCompiled("compiled cells run on the CPU, and the arrays are elsewhere")
        if data.dtype != dtype or dtype not in (np.float32, np.float64):
            raise NotCompiled(f"expected arrays of one floating dtype, got {dtype} and {data.dtype}")
    if mask is not None and mask.dtype != bool:
        raise NotCompiled(f"expected a boolean mask, got {mask.dtype}")
    return program(cell, xs.shape[1], dtype, mask is not None, executor, bool(noise))


@dataclass(frozen=True)
class Window:
    """One update of truncated BPTT: run from `start`, count the loss in [loss_from, stop), go back to `start`."""

    start: int
    loss_from: int
    stop: int


def truncated_windows(T: int, k1: int, k2: int) -> Iterator[Window]:
    """The windows of BPTT(k2; k1): an update every k1 steps, each through the last k2 of them.

    Steps behind the last multiple of k1 are left out, as an incomplete batch is.
    Source: Williams & Peng 1990 (their h = k2, h' = k1). Raises InputError unless 1 <= k1 <= k2.
    """
    if not 1 <= k1 <= k2:
        raise InputError(f"truncated BPTT: expected 1 <= k1 <= k2, got k1={k1}, k2={k2}")
    for stop in range(k1, T + 1, k1):
        yield Window(max(0, stop - k2), stop - k1, stop)
