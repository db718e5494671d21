"""The character model: embedding or one-hot, stacked cells with dropout between them, linear readout.

A `Model` is a description; parameters are a flat dict of tensors ("embed.W", "layers.0.W_xi", "readout.b") and the
carried state is a list of dicts, both passed in and out. A tied model has no "embed.W": its embedding is "readout.W",
transposed (Press and Wolf, Using the output embedding to improve language models, 2017).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_rnn import backend, engine, nn, ops
from tinygrad_rnn.cell import (
    Cell,
    Param,
    bias,
    draw_noise,
    init_params,
    last_timestep,
    output_of,
    specification,
    timesteps,
)
from tinygrad_rnn.compile import program as compiler
from tinygrad_rnn.compile.ends import affine, lookup
from tinygrad_rnn.config import ModelConfig
from tinygrad_rnn.errors import DtypeError, InputError, ShapeError
from tinygrad_rnn.ops.arguments import generator
from tinygrad_rnn.ops.index import checked_ids
from tinygrad_rnn.registry import CellEntry
from tinygrad_rnn.sequence import LayerState, Unrolled, checked_array, detach_state, scan, start_state
from tinygrad_rnn.tensor import Tensor
from tinygrad_rnn.wrap import wrap_cell

Params = dict[str, Tensor]
State = list[dict[str, Any]]  # one dict of states per layer
TABLE = 1024  # symbols up to which a stepper computes once for each what depends on it alone


@dataclass(frozen=True)
class Forward:
    """What a forward pass gives: logits (T, B, V), the state after the last step, every layer's sequence, and `inputs`
    (T, B, I), what the first layer saw.
    """

    logits: Any
    state: State
    layers: tuple[Unrolled, ...]
    inputs: Any


@dataclass(frozen=True)
class Model:
    """A model of V symbols: its configuration and one cell per layer. Build it with `build_model`."""

    config: ModelConfig
    V: int
    cells: tuple[Cell, ...]

    @property
    def has_table(self) -> bool:
        """Whether the embedding is a matrix of its own."""
        return self.config.embed != "onehot" and not self.config.tie

    def params(self) -> dict[str, Param]:
        """Every array of the model by its full name: shape, initialiser, role."""
        config = self.config
        specs: dict[str, Param] = {}
        if self.has_table:
            specs["embed.W"] = Param((self.V, self.cells[0].I), "normal:1", "input")
        for i, cell in enumerate(self.cells):
            for name, spec in specification(cell)[1].items():
                specs[f"layers.{i}.{name}"] = spec
        specs["readout.W"] = Param((config.hidden, self.V), f"uniform:{1 / math.sqrt(config.hidden)!r}", "input")
        specs["readout.b"] = bias(self.V)
        return {name: _override(spec, config) for name, spec in specs.items()}

    def count(self) -> int:
        """The number of trained numbers."""
        return sum(math.prod(spec.shape) for spec in self.params().values() if spec.role != "buffer")

    def init(self, rng: np.random.Generator, dtype: Any = np.float32, xp: Any = np) -> Params:
        """New parameters drawn from `rng`, on the device whose module is `xp`. Buffers do not require a gradient."""
        return init_params(self.params(), generator(rng, "Model.init"), dtype, xp, self.cells[0].name)

    def start(self, B: int, params: Mapping[str, Tensor]) -> State:
        """The state before the first symbol, for B streams, as arrays like the parameters."""
        return [start_state(cell, B, params["readout.W"]) for cell in self.cells]

    def forward(
        self,
        params: Mapping[str, Tensor],
        x: Any,
        state: Sequence[LayerState] | None = None,
        *,
        mask: Any = None,
        rng: np.random.Generator | None = None,
        trace_inputs: bool = False,
        executor: str | None = None,
    ) -> Forward:
        """Run symbols x (T, B), integers in [0, V), from `state`.

        `mask` (T, B): rows keep their state where it is False. `rng` turns dropout and the cells' noise on.
        `trace_inputs` puts `inputs` on the tape even when they are one-hot, so that a gradient can be asked for.
        `executor` is that of `scan`.
        Raises InputError for a missing parameter or what is no array, ShapeError for sizes or symbols that do not fit,
        DtypeError for symbols that are not integers.
        """
        rng = None if rng is None else generator(rng, "model")
        if not isinstance(params, Mapping):
            raise InputError(f"model: expected the parameters by name, as init(rng) gives, got {type(params).__name__}")
        x = checked_array("model", "symbols", x)
        if len(x.shape) != 2:
            raise ShapeError(f"model: expected symbols (T, B), got shape {tuple(x.shape)}")
        B = x.shape[1]
        for name in ("readout.W", "readout.b", *(("embed.W",) if self.has_table else ())):
            if name not in params:
                raise InputError(f"model: expected the parameter {name!r}, got only {', '.join(sorted(params))}")
        if state is None:
            state = self.start(B, params)
        if len(state) != len(self.cells):
            raise ShapeError(f"model: expected the state of {len(self.cells)} layers, got {len(state)}")
        h: Any = self._embed(params, x)
        if self.config.embed == "onehot":
            h = Tensor(h, requires_grad=trace_inputs)
        inputs = h
        namespace = backend.namespace(h.data)
        layers = []
        for i, (cell, start) in enumerate(zip(self.cells, state, strict=True)):
            if i and rng is not None:
                h = nn.dropout(h, self.config.dropout, rng)
            own = layer_params(params, i)
            noise: Any = None
            if rng is not None:  # as tensors, which nobody has to copy
                drawn = draw_noise(cell, len(x), B, rng, h.dtype, namespace)
                noise = {name: Tensor(value) for name, value in drawn.items()}
            layers.append(scan(cell, own, h, start, mask=mask, noise=noise, layer=i, executor=executor))
            h = layers[-1].outputs
        if rng is not None:
            h = nn.dropout(h, self.config.dropout, rng)
        return Forward(self._read_out(params, h), [dict(layer.state) for layer in layers], tuple(layers), inputs)

    def stepper(self, params: Mapping[str, Tensor], B: int) -> Stepper:
        """The model for B streams of symbols that arrive one after the other, as in sampling; see `Stepper`."""
        return Stepper(self, params, B)

    def _embed(self, params: Mapping[str, Any], x: Any) -> Any:
        """What the first layer sees (T, B, I)."""
        if self.config.embed == "onehot":
            return _one_hot(x, self.V, params["readout.W"])
        table = ops.swapaxes(params["readout.W"], 0, 1) if self.config.tie else params["embed.W"]
        ids = checked_ids(table, x)
        if ids is x and engine.MODE.recording and isinstance(table, Tensor) and table.node is not None:
            ids = x.copy()  # the gradient reads them: the caller may fill the array with the next batch before that
        return lookup(table, ids=ids, shape=tuple(table.shape))

    def _read_out(self, params: Mapping[str, Any], h: Any) -> Any:
        """The logits (T, B, V) of the last layer's outputs (T, B, H)."""
        T, B = h.shape[:2]
        flat = affine(ops.reshape(h, (T * B, self.config.hidden)), params["readout.W"], params["readout.b"])
        return ops.reshape(flat, (T, B, self.V))


class Stepper:
    """Final. `forward` without a gradient, from the start state, for B streams that arrive piece by piece.

    The first call runs `forward`, which checks everything and compiles the cells. A later one of one timestep repeats
    that with the same programs and arrays: `params` are to stay as they are. What cannot be compiled, and what
    `anomaly()` or a listener wants to see, goes through `forward` every time.
    """

    def __init__(self, model: Model, params: Mapping[str, Tensor], B: int) -> None:
        self.model = model
        self.params = params
        self.B = B
        self.state = model.start(B, params)
        self.arrays = {name: value.data for name, value in params.items()}
        self.programs: list[Any] | None = None  # of each layer
        clocks = any(timesteps(specification(cell)[0]) for cell in model.cells)
        self.left = (
            last_timestep(params["readout.W"].dtype) if clocks else math.inf
        )  # steps that `forward` need not see
        self._every: Any = None  # what the first layer may see, (V, 1, I)

    def __call__(self, x: Any) -> Any:
        """The logits (B, V) after the next symbols x (T, B), as a plain array where the parameters are.

        Raises what `Model.forward` raises.
        """
        watched = engine.MODE.anomaly is not None or engine.MODE.listener is not None
        self.left -= len(x)
        if self.programs is None or watched or self.left < 0 or tuple(x.shape) != (1, self.B):
            return self._forward(x)
        h = self.model._embed(self.arrays, x)
        for i, program in enumerate(self.programs):
            self.state[i] = states = program(h, self.state[i], None if i or self._every is None else x[0])
            h = states[output_of(self.model.cells[i])][None]
        return self.model._read_out(self.arrays, h)[-1]

    def _forward(self, x: Any) -> Any:
        with engine.no_grad():
            out = self.model.forward(self.params, x, self.state)
            self.state = detach(out.state)
            if all(layer.executor != "unroll" for layer in out.layers):
                dtype = out.logits.dtype
                V = self.model.V
                every = self._every = self.model._embed(self.arrays, np.arange(V)[:, None]) if V <= TABLE else None
                self.programs = [
                    _compiled(cell, layer_params(self.params, i), self.B, dtype, None if i else every)
                    for i, cell in enumerate(self.model.cells)
                ]
        return out.logits.data[-1]


def _compiled(cell: Cell, params: Mapping[str, Tensor], B: int, dtype: Any, inputs: Any) -> Any:
    """What steps `cell` for B rows; `inputs` (V, 1, I) are all that it may see, where they are known."""
    made = compiler.program(cell, B, dtype, False, None)
    weights = compiler._weights(made.plan, params)
    arrays = {leaf: value.data if isinstance(value, Tensor) else value for leaf, value in weights.items()}
    return made.stepper(B, {leaf: np.ascontiguousarray(array) for leaf, array in arrays.items()}, inputs)


def layer_params(params: Mapping[str, Tensor], layer: int) -> dict[str, Tensor]:
    """The arrays of one layer by the cell's own names."""
    prefix = f"layers.{layer}."
    return {name[len(prefix) :]: value for name, value in params.items() if name.startswith(prefix)}


def host_params(model: Model, params: Mapping[str, Any], what: str) -> dict[str, np.ndarray[Any, Any]]:
    """The parameters that `model` declares, tensors or arrays by name, as arrays on the host; `what` is in the errors.

    Raises InputError where one is missing, ShapeError where one has another size than the model's.
    """
    specs = model.params()
    if missing := sorted(specs.keys() - params.keys()):
        raise InputError(f"{what}: expected every parameter of the model, got none for {', '.join(missing)}")
    arrays = {}
    for name, spec in specs.items():
        value = params[name]
        array = arrays[name] = backend.to_host(value.data if isinstance(value, Tensor) else value)
        if array.shape != spec.shape:
            raise ShapeError(f"{what}: expected {name} of shape {spec.shape}, got {array.shape}")
    return arrays


def _override(spec: Param, config: ModelConfig) -> Param:
    """The initialiser that the configuration asks for.

    A bias that the cell does not start at zero keeps its own, and so do a vector that a matrix's cannot fill and what
    a function of the cell's draws: that is part of the cell.
    """
    if not isinstance(spec.init, str):
        return spec
    if spec.role in ("input", "recurrent") and config.init != "cell" and nn.fills(config.init, spec.shape):
        return Param(spec.shape, config.init, spec.role)
    if spec.role == "bias" and spec.init == "zeros" and config.init_bias != "cell":
        return Param(spec.shape, config.init_bias, spec.role)
    return spec


def _one_hot(x: Any, V: int, like: Any) -> Any:
    like = like.data if isinstance(like, Tensor) else like
    if x.dtype.kind not in "iu":
        raise DtypeError(f"model: expected integer symbols, got {x.dtype}")
    if x.size and isinstance(x, np.ndarray) and not 0 <= int(x.min()) <= int(x.max()) < V:
        raise ShapeError(f"model: expected symbols in [0, {V}), got {int(x.min())} to {int(x.max())}")
    return (x[..., None] == backend.namespace(like).arange(V)).astype(like.dtype)  # (T, B, V)


def detach(state: Sequence[LayerState]) -> State:
    """The state as plain arrays: what is carried to the next batch."""
    return [detach_state(layer) for layer in state]


def input_size(config: ModelConfig, V: int) -> int:
    """How many numbers the first layer sees per symbol. Raises InputError for an `embed` that means nothing."""
    if config.embed == "onehot":
        return V
    if config.embed == "hidden":
        return config.hidden
    if not config.embed.isdigit() or int(config.embed) < 1:
        raise InputError(f"--embed {config.embed!r}: expected 'hidden', 'onehot' or a whole number of at least 1")
    return int(config.embed)


def build_model(config: ModelConfig, V: int, entry: CellEntry) -> Model:
    """The model that `config` describes, for V symbols, of the cell `entry` (see `registry.load_cell`).

    Raises InputError for sizes or options that cannot work, PluginError when the cell breaks its contract.
    """
    if not isinstance(entry, CellEntry):
        raise InputError(f"model: expected what load_cell({config.cell!r}) returns, got {entry!r}")
    if entry.identity.name != config.cell:
        raise InputError(f"model: expected the cell {config.cell!r} of the configuration, got {entry.identity.name!r}")
    if V < 2:
        raise InputError(f"model: expected at least 2 different symbols, got {V}")
    if config.layers < 1:
        raise InputError(f"--layers: expected at least 1, got {config.layers}")
    if not 0.0 <= config.dropout < 1.0:
        raise InputError(f"--dropout: expected a rate in [0, 1), got {config.dropout}")
    for text in (config.init, config.init_bias):
        if text != "cell":
            nn.parse_initialiser(text)
    first = input_size(config, V)
    if config.tie and (config.embed == "onehot" or first != config.hidden):
        raise InputError(
            f"--tie: expected an embedding of as many units as --hidden, {config.hidden}, got --embed {config.embed}; "
            "give --embed hidden"
        )
    cls = wrap_cell(entry.cls, config.wrap)
    cells = tuple(
        cls(first if i == 0 else config.hidden, config.hidden, config.cell_options) for i in range(config.layers)
    )
    for cell in cells:
        output = output_of(cell)
        shape = specification(cell)[0][output].shape
        if shape != (config.hidden,):
            raise InputError(
                f"cell {cell.name}: expected its output, the state {output}, of shape ({config.hidden},), got {shape}"
            )
    return Model(config, V, cells)
