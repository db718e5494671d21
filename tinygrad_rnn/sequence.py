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

from tinygrad_rnn import backend, engine, ops
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
from tinygrad_rnn.errors import DeviceError, DtypeError, InputError, NonFiniteError, ShapeError
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


@dataclass
class Given:
    """Final. What a sequence runs on: tensors and plain arrays of one floating dtype on one device, by name."""

    params: dict[str, Any]
    xs: Any
    state: dict[str, Any]
    mask: Any
    noise: dict[str, Any]

    def owned(self) -> Given:
        """The same with arrays that nobody else writes, where a gradient may be asked for later.

        A change of a tensor is noticed (see `engine.Version`); one of an array is not, so that it has to be copied.
        """
        if not engine.MODE.recording:
            return self
        values = (self.xs, *self.params.values(), *self.state.values())
        if not any(isinstance(v, Tensor) and v.node is not None for v in values):
            return self
        mask, state = self.mask, {name: _copied(value) for name, value in self.state.items()}
        params, noise = [
            group if all([isinstance(v, Tensor) for v in group.values()]) else {k: _copied(v) for k, v in group.items()}
            for group in (self.params, self.noise)
        ]
        return Given(params, _copied(self.xs), state, None if mask is None else _copied(mask), noise)


def _copied(value: Any) -> Any:
    return value if isinstance(value, Tensor) else value.copy()


def checked_inputs(
    caller: str,
    cell: Cell,
    params: Mapping[str, Any],
    xs: Any,
    state: LayerState | None,
    mask: Any,
    noise: Mapping[str, Any] | None,
) -> Given:
    """What was given to `caller` (scan or unroll, for the messages), checked.

    Raises InputError for what is no array, ShapeError where the sizes of anything do not fit, DtypeError where not all
    are of one floating dtype, and DeviceError where they are not on one device.
    """
    _, declared = specification(cell)
    who = f"{caller} of {cell.name}"
    named: Any
    for what, named in (("parameters", params), ("states", state), ("noise", noise)):
        if type(named) is not dict and not isinstance(named, Mapping) and (named is not None or what == "parameters"):
            use = "; init_cell(cell, rng) draws them" if what == "parameters" else ""
            raise InputError(f"{who}: expected the {what} by name, got {type(named).__name__}{use}")
    params = {name: params[name] for name in declared if name in params}
    begin, noise = dict(state or {}), dict(noise or {})
    if mask is not None or not _usual([xs, *params.values(), *begin.values(), *noise.values()]):
        params, xs, begin, mask, noise = _alike(who, params, xs, begin, mask, noise)
    current = checked_state(who, cell, params, xs, None if state is None else begin, mask)
    _check_noise(who, cell, xs, noise)
    return Given(params, xs, current, mask, noise)


def _usual(values: Sequence[Any]) -> bool:
    """Whether there is nothing to say of any of them: NumPy's own arrays, all float32 or all float64."""
    first = values[0]
    dtype = first.dtype if isinstance(first, Tensor) else getattr(first, "dtype", None)
    if dtype is not FLOAT32 and dtype is not FLOAT64:
        return False
    for value in values:
        data = value.data if isinstance(value, Tensor) else value
        if type(data) is not np.ndarray or data.dtype is not dtype:
            return False
    return True


FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def _alike(
    who: str, params: dict[str, Any], xs: Any, begin: dict[str, Any], mask: Any, noise: dict[str, Any]
) -> tuple[dict[str, Any], Any, dict[str, Any], Any, dict[str, Any]]:
    """The same as plain arrays and tensors, of one kind. Raises what `checked_inputs` raises for those that are not."""
    xs = checked_array(who, "xs", xs)
    params = {name: checked_array(who, f"parameter {name}", value) for name, value in params.items()}
    begin = {name: checked_array(who, f"state {name}", value) for name, value in begin.items()}
    noise = {name: checked_array(who, f"noise {name}", value) for name, value in noise.items()}
    if mask is not None:
        mask = checked_array(who, "mask", mask)
        mask = _booleans(who, mask)
    like = xs.data if isinstance(xs, Tensor) else xs
    kind, dtype = type(like), like.dtype
    if dtype.kind != "f":
        raise DtypeError(
            f"{who}: expected xs of a floating dtype, got {dtype}; convert it with .astype(...), or look symbols up in "
            "a table with ops.embedding"
        )
    groups = ("parameter ", params), ("state ", begin), ("noise ", noise), ("", {} if mask is None else {"mask": mask})
    for group, values in groups:
        for name, value in values.items():
            data = value.data if isinstance(value, Tensor) else value
            if type(data) is not kind and backend.namespace(data) is not backend.namespace(like):
                raise DeviceError(
                    f"{who}: expected arrays of one device, got xs of {backend.namespace(like).__name__} and "
                    f"{group}{name} of {backend.namespace(data).__name__}; move one with .to(...)"
                )
            if data.dtype != dtype and value is not mask:
                raise DtypeError(
                    f"{who}: expected arrays of one floating dtype, got xs of {dtype} and {group}{name} of "
                    f"{data.dtype}; convert one with .astype(...)"
                )
    return params, xs, begin, mask, noise


def _booleans(who: str, mask: Any) -> Any:
    """A mask of booleans, or of numbers that are 0 and 1, as booleans. Raises DtypeError or InputError for others."""
    if mask.dtype.kind == "b":
        return mask
    if mask.dtype.kind not in "iuf":
        raise DtypeError(f"{who}: expected a mask of booleans, got {mask.dtype}")
    data = mask.data if isinstance(mask, Tensor) else mask
    alive = np.equal(data, 1)
    if not np.all(np.logical_or(alive, np.equal(data, 0))):
        raise InputError(
            f"{who}: expected a mask of booleans, or of 0 and 1, got {mask.dtype} with other values; compare first, as "
            "in mask > 0.5"
        )
    return alive


def checked_array(who: str, what: str, value: Any) -> Any:
    """A tensor, or a plain array (see `backend.plain`). Raises InputError for anything else."""
    if isinstance(value, Tensor):
        return value
    if not backend.is_array(value):
        raise InputError(f"{who}: expected a tensor or an array as {what}, got {type(value).__name__}")
    return backend.plain(value, f"{who}: {what}")


def checked_state(
    who: str, cell: Cell, params: Mapping[str, Any], xs: Any, state: LayerState | None, mask: Any
) -> dict[str, Any]:
    """The state to start from. Raises ShapeError where the sizes of anything do not fit."""
    shapes, declared = specification(cell)
    if len(xs.shape) != 3 or xs.shape[2] != cell.I:
        raise ShapeError(f"{who}: expected a sequence (T, B, I={cell.I}), got {tuple(xs.shape)}")
    T, B, _ = xs.shape
    if T == 0 or B == 0:
        raise ShapeError(f"{who}: expected at least one step and one row, got {tuple(xs.shape)}")
    if mask is not None and tuple(mask.shape) != (T, B):
        raise ShapeError(f"{who}: expected a mask (T={T}, B={B}), got {tuple(mask.shape)}")
    for name, spec in declared.items():
        if name not in params or tuple(params[name].shape) != spec.shape:
            got = tuple(params[name].shape) if name in params else "none"
            raise ShapeError(f"{who}: expected parameter {name} of shape {spec.shape}, got {got}")
    current = dict(start_state(cell, B, xs) if state is None else state)
    if current.keys() != shapes.keys():
        raise ShapeError(f"{who}: expected the states {list(shapes)}, got {list(current)}")
    for name, state_spec in shapes.items():
        if tuple(current[name].shape) != (B, *state_spec.shape):
            raise ShapeError(
                f"{who}: expected state {name} of shape {(B, *state_spec.shape)}, got {tuple(current[name].shape)}"
            )
    for name in timesteps(shapes):
        data = current[name].data if isinstance(current[name], Tensor) else current[name]
        last = last_timestep(data.dtype)
        if not np.all(np.less_equal(data, last - T)):
            raise InputError(
                f"{who}: expected timesteps up to {last}, which is as far as {data.dtype} counts, got "
                f"more; start the states again, or use float64"
            )
    return current


def _check_noise(who: str, cell: Cell, xs: Any, noise: Mapping[str, Any]) -> None:
    """Raise ShapeError unless there is none, as outside training, or all that the cell asks for.

    And GradientError for noise whose gradient would be lost.
    """
    T, B, _ = xs.shape
    got = {name: tuple(value.shape) for name, value in noise.items()}
    if got and got != {name: (T, B, *kind.shape) for name, kind in noise_of(cell).items()}:
        expected = ", ".join(f"{name} {(T, B, *kind.shape)}" for name, kind in noise_of(cell).items())
        raise ShapeError(
            f"{who}: expected the noise {expected or 'none'}, got "
            f"{', '.join(f'{name} {shape}' for name, shape in got.items())}"
        )
    for name, value in noise.items():
        if isinstance(value, Tensor):
            value.no_loss(f"{who}, noise {name}", "take its .detach(), or declare a parameter")


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
    What is an array is copied where a gradient may be asked for, so that it may be changed afterwards. The step is
    computed for the padding too, and its gradient multiplied by 0: its derivative must be finite there as well.
    Raises what `checked_inputs` raises, PluginError when the step breaks its contract; inside `anomaly()`
    NonFiniteError with op, layer, timestep and gate.
    """
    return _unrolled(cell, checked_inputs("unroll", cell, params, xs, state, mask, noise).owned(), layer)


def _unrolled(cell: Cell, given: Given, layer: int) -> Unrolled:
    """`unroll` of what was checked."""
    shapes, _ = specification(cell)
    xs, mask = _tensor(given.xs), given.mask  # tensors all: a step may say x.tanh()
    T, B, _ = xs.shape
    current = {name: _tensor(value) for name, value in given.state.items()}
    drawn = {name: value.data if isinstance(value, Tensor) else value for name, value in given.noise.items()}
    p = SimpleNamespace(**{name: _tensor(value) for name, value in given.params.items()})
    vars(p).update({name: kind.mean for name, kind in noise_of(cell).items()})
    states: dict[str, list[Any]] = {name: [] for name in shapes}
    place = engine.MODE.anomaly
    try:
        for t in range(T):
            vars(p).update({name: _tensor(value[t]) for name, value in drawn.items()})
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


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else engine.wrap(Tensor, value)


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
    if recompute is not None:
        _check_whole("recompute", recompute)
    if recompute is not None and recompute < 0:
        raise InputError(f"recompute: expected a number of timesteps of at least 0, got {recompute}")
    if executor not in (None, *EXECUTORS):
        raise InputError(f"executor {executor!r}: expected one of {', '.join(EXECUTORS)}")
    given = checked_inputs("scan", cell, params, xs, state, mask, noise)
    made = None
    try:
        made = _program(cell, given, executor)
    except NotCompiled as error:
        reason = str(error)
    given = given.owned()
    if made is None:  # outside the `except`: an error of the step is no consequence of this one
        return dataclasses.replace(_unrolled(cell, given, layer), reason=reason)
    ordered = {name: given.state[name] for name in specification(cell)[0]}
    outputs, states, reason = run_program(
        made, output_of(cell), given.params, given.xs, ordered, given.mask, given.noise, recompute
    )
    return Unrolled(outputs, {name: sequence[-1] for name, sequence in states.items()}, states, made.name, reason)


EXECUTORS = ("llvm", "numpy", "unroll")


def _program(cell: Cell, given: Given, executor: str | None) -> Any:
    """The compiled cell. Raises NotCompiled where only `unroll` can do what is asked for."""
    if executor == "unroll":
        raise NotCompiled("asked for")
    if engine.MODE.anomaly is not None:
        raise NotCompiled("anomaly() looks at every value")
    if engine.MODE.listener is not None:
        raise NotCompiled("somebody listens to the taps of every step")
    xs = given.xs.data if isinstance(given.xs, Tensor) else given.xs
    if type(xs) is not np.ndarray:
        raise NotCompiled(
            f"compiled cells run on the CPU, and the arrays are those of {backend.namespace(xs).__name__}"
        )
    if xs.dtype not in (np.float32, np.float64):
        raise NotCompiled(f"compiled cells take float32 and float64, and the arrays are {xs.dtype}")
    return program(cell, xs.shape[1], xs.dtype, given.mask is not None, executor, bool(given.noise))


@dataclass(frozen=True)
class Window:
    """One update of truncated BPTT: run from `start`, count the loss in [loss_from, stop), go back to `start`."""

    start: int
    loss_from: int
    stop: int


def _check_whole(name: str, value: Any) -> None:
    """Raise InputError for what is no number of timesteps."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise InputError(f"{name}: expected a whole number of timesteps, got {value!r:.60}")


def truncated_windows(T: int, k1: int, k2: int) -> Iterator[Window]:
    """The windows of BPTT(k2; k1): an update every k1 steps, each through the last k2 of them.

    Steps behind the last multiple of k1 are left out, as an incomplete batch is.
    Source: Williams & Peng 1990 (their h = k2, h' = k1). Raises InputError unless 1 <= k1 <= k2.
    """
    for name, value in (("T", T), ("k1", k1), ("k2", k2)):
        _check_whole(f"truncated BPTT: {name}", value)
    if not 1 <= k1 <= k2:
        raise InputError(f"truncated BPTT: expected 1 <= k1 <= k2, got k1={k1}, k2={k2}")
    for stop in range(k1, T + 1, k1):
        yield Window(max(0, stop - k2), stop - k1, stop)
