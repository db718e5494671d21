"""The contract of a recurrent cell: ONE step, its state and its parameters. Everything else is the host's work.

Time, stacking, truncation, masks, dropout, recording, checkpoints, command-line options, documentation
and tests are done by the library for every cell alike, from what is declared here.
"""

from __future__ import annotations

import functools
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, ClassVar, Literal, final, get_args

import numpy as np

from tinygrad_rnn import backend
from tinygrad_rnn.errors import GradientError, InputError, NonFiniteError, PluginError, ShapeError, nearest, one_line
from tinygrad_rnn.nn import held, initialise, parse_initialiser
from tinygrad_rnn.ops.arguments import generator, told
from tinygrad_rnn.options import parse_options
from tinygrad_rnn.plugins import CELLS, author_line, check_class
from tinygrad_rnn.tensor import Tensor

Role = Literal["input", "recurrent", "bias", "buffer"]
Array = np.ndarray[Any, Any]
Init = str | Callable[..., Array]


@dataclass(frozen=True)
class Param:
    """One array of a cell: shape, initialiser and role. A buffer is saved but not trained.

    The initialiser is the name of one in nn.py, or a function of the cell's own: ``init(rng, shape, arrays)`` returns
    a float64 array of that shape, drawn from `rng` (a numpy.random.Generator) alone; ``arrays["nu"]`` is what was drawn
    for the parameter nu, to be read. Its arguments are keywords, in functools.partial.
    """

    shape: tuple[int, ...]
    init: Init
    role: Role

    @property
    def init_name(self) -> str:
        """The initialiser as text: ``orthogonal:0.9``; of a function its name and arguments, ``ring(radius=0.9)``."""
        if isinstance(self.init, str):
            return self.init
        function, arguments = _taken_apart(self.init)
        told = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        return f"{function.__name__}({told})" if told else str(function.__name__)


@dataclass(frozen=True)
class Noise:
    """Random numbers that the host draws for a cell while it trains: 1 with probability `keep`, else 0, in (B, *shape).

    `every` says how often: at each timestep, or once per sequence. `scale` multiplies them. A step reads them as
    ``p.NAME``; outside training that is their mean, a plain number.
    """

    shape: tuple[int, ...]
    keep: float
    every: Literal["step", "sequence"] = "step"
    scale: float = 1.0

    @property
    def mean(self) -> float:
        """What a step reads outside training."""
        return self.keep * self.scale


@dataclass(frozen=True)
class State:
    """One carried value of a cell: its shape without the batch axis, and the number it starts from."""

    shape: tuple[int, ...]
    start: float = 0.0


@dataclass(frozen=True)
class Timestep(State):
    """How many steps a row has made, (B, 1): 0 in its first one. A step reads it like a state and does not return it.

    The library counts: on from window to window, not where a mask is False, from 0 again where the states start again.
    Exact up to 2**24 in float32 and 2**53 in float64; beyond that `unroll` and `scan` raise InputError.
    """

    shape: tuple[int, ...] = field(default=(1,), init=False)
    start: float = field(default=0.0, init=False)


def input_matrix(I: int, H: int, init: Init = "uniform") -> Param:
    """A matrix (I, H) that multiplies the input from the right: x @ W."""
    return Param((I, H), init, "input")


def recurrent_matrix(H: int, init: Init = "uniform") -> Param:
    """A matrix (H, H) that multiplies a state from the right: h @ W."""
    return Param((H, H), init, "recurrent")


def bias(H: int, value: float = 0.0) -> Param:
    """A vector (H,) that starts at `value`."""
    return Param((H,), f"constant:{float(value)!r}" if value else "zeros", "bias")


def buffer(shape: tuple[int, ...], init: Init) -> Param:
    """An array that is fixed after initialisation: saved with the model, never trained."""
    return Param(shape, init, "buffer")


class Cell(ABC):
    """Abstract: one step of a recurrent network, from I inputs to H hidden units.

    A cell declares its name, summary, citation and equation, its typed `Options`, the state and the parameters, and
    writes `step` with the library's ops only. It is a description: it holds no array and no carried state.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    citation: ClassVar[str]
    equation: ClassVar[str]
    deviations: ClassVar[str] = ""
    output: ClassVar[str] = ""
    """The state that is the output, what the next layer reads; the first one where this is left empty."""

    @dataclass(frozen=True)
    class Options:
        """Fields with defaults and ``field(metadata={"help": ...})``: they become ``--cell-opt key=value``.

        With "keeps", as in "a larger alpha", the diagnosis advises so where the gradient vanishes.
        """

    @final
    def __init__(self, I: int, H: int, options: Mapping[str, Any] | None = None) -> None:
        """A cell for I inputs and H units. Raises InputError for sizes or options that cannot work."""
        sizes: dict[str, Any] = {"I": I, "H": H}
        for letter, size in sizes.items():
            if not isinstance(size, int | np.integer) or size < 1:
                raise InputError(f"cell {self.name}: expected {letter} to be a whole number from 1, got {size!r}")
        self.I = int(I)
        self.H = int(H)
        if options is not None and not isinstance(options, Mapping):
            raise InputError(f"cell {self.name}: expected the options by name, got {type(options).__name__}")
        self.options: Any = parse_options(type(self).Options, dict(options or {}), f"cell {self.name}")
        _by_author(self, "check", self.check)

    @final
    def __getstate__(self) -> dict[str, Any]:
        """What a copy gets: not what the library keeps with a cell (names that start with an underscore)."""
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def check(self) -> None:  # noqa: B027  (to be overridden by the few cells that need it)
        """Raise InputError when sizes and options do not go together; called once, at construction."""

    @abstractmethod
    def state(self) -> dict[str, State]:
        """The carried values in order. One of them is the output: the first, or the one that `output` names."""

    @abstractmethod
    def params(self) -> dict[str, Param]:
        """The arrays by their name in the paper."""

    @abstractmethod
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        """One timestep: parameters ``p.NAME``, input x (B, I), states ``s.NAME`` (B, H) to the new states by name."""

    def reference(self, p: Any, x: Any, s: Any) -> dict[str, Any] | None:
        """The same timestep in bare NumPy, from the paper and not from `step`: what `check_cell` compares with.

        Arrays in float64 in and out, named as in `step`. None where there is no reference.
        """
        return None

    def noise(self) -> dict[str, Noise]:
        """The random numbers that the step reads as ``p.NAME``; most cells have none."""
        return {}


def check_declaration(cls: Any) -> None:
    """Raise PluginError when `cls` is not a complete Cell: what is missing, and in which class."""
    check_class(cls, Cell, CELLS.word, ("name", "summary", "citation", "equation"))
    if not isinstance(cls.deviations, str):
        where = f"{CELLS.word} {cls.name!r}"
        raise PluginError(f"{where}: expected a text in the class attribute 'deviations', got {cls.deviations!r}")


def specification(cell: Cell) -> tuple[dict[str, State], dict[str, Param]]:
    """The declared state and parameters, checked once per cell.

    Raises PluginError when they make no sense, InputError when an initialiser that an option names does not exist, or
    when `cell` is not a cell.
    """
    known: tuple[dict[str, State], dict[str, Param]] | None = getattr(cell, "__dict__", {}).get("_specification")
    if known is None:
        if not isinstance(cell, Cell):
            raise _not_a_cell(cell)
        known = cell.__dict__["_specification"] = _checked_specification(cell)
    return known


def _not_a_cell(value: Any) -> InputError:
    if isinstance(value, str):
        got, use = f"the name {value!r}", f"load_cell({value!r}).cls(I, H)"
    elif isinstance(value, type):
        got, use = f"the class {value.__name__}", f"{value.__name__}(I, H)"
    else:
        got, use = type(value).__name__, "load_cell('lstm').cls(I, H)"
    return InputError(f"expected a cell with its sizes, got {got}; make one with {use}")


def _checked_specification(cell: Cell) -> tuple[dict[str, State], dict[str, Param]]:
    # Any: what a stranger wrote is not yet what the annotations promise
    states: Any = _by_author(cell, "state", cell.state)
    params: Any = _by_author(cell, "params", cell.params)
    for what, specs, kind in (("state", states, State), ("params", params, Param)):
        _check_group(cell, what, specs, kind)
        for name, spec in specs.items():
            if not isinstance(spec.shape, tuple):
                raise PluginError(f"cell {cell.name}, {name}: expected a tuple of sizes as shape, got {spec.shape!r}")
            if not str(name).isidentifier():
                raise PluginError(f"cell {cell.name}: expected names that are Python names in {what}(), got {name!r}")
            if not all(isinstance(size, int) and size >= 1 for size in spec.shape):
                raise PluginError(
                    f"cell {cell.name}, {name}: expected a shape of whole numbers from 1, got {spec.shape}"
                )
    if not states:
        raise PluginError(f"cell {cell.name}: expected at least one state, got none")
    computed = [name for name in states if name not in timesteps(states)]
    if not computed:
        raise PluginError(f"cell {cell.name}: expected at least one state that step returns, got a timestep alone")
    output = cell.output or next(iter(states))
    if output not in states:
        raise PluginError(f"cell {cell.name}, attribute output: no state {output!r}{nearest(str(output), computed)}")
    if output not in computed:
        where = "attribute output" if cell.output else "the first state, which is the output"
        raise PluginError(
            f"cell {cell.name}, {where}: expected a state that step returns, got the timestep {output!r}; name one of "
            f"{', '.join(computed)} in the class attribute 'output'"
        )
    for name, spec in states.items():
        if not isinstance(spec.start, int | float | np.number):
            raise PluginError(f"cell {cell.name}, state {name}: expected a number as start, got {spec.start!r}")
    for name, spec in params.items():
        if not isinstance(spec.init, str) and (wanted := _unrecordable(spec.init)):
            raise PluginError(f"cell {cell.name}, parameter {name}: expected {wanted}, got {spec.init!r}")
        if spec.role not in get_args(Role):
            raise PluginError(
                f"cell {cell.name}, parameter {name}: no role {spec.role!r}{nearest(str(spec.role), get_args(Role))}"
            )
        if not isinstance(spec.init, str):
            continue
        try:
            parse_initialiser(spec.init)
        except InputError as error:
            raise InputError(f"cell {cell.name}, parameter {name}: {error}") from error
    if set(states) & set(params):
        raise PluginError(
            f"cell {cell.name}: expected different names for states and parameters, got "
            f"{sorted(set(states) & set(params))} twice"
        )
    return states, params


def _check_group(cell: Cell, what: str, specs: Any, kind: type) -> None:
    """Raise PluginError unless `specs`, what the method `what` returned, are of one kind by name."""
    wanted = f"cell {cell.name}: expected {what}() to return a dict of tinygrad_rnn.{kind.__name__} by name"
    if not isinstance(specs, dict):
        raise PluginError(f"{wanted}, got {type(specs).__name__}")
    for name, spec in specs.items():
        if isinstance(spec, type) and issubclass(spec, kind):
            use = f"{spec.__name__}()" if issubclass(spec, Timestep) else f"{spec.__name__}((self.H,), ...)"
            raise PluginError(f"{wanted}, got the class {spec.__name__} as {name!r}; make one, {use}")
        if not isinstance(spec, kind):
            raise PluginError(f"{wanted}, got {told(spec)} as {name!r}")


def output_of(cell: Cell) -> str:
    """The name of the state that is the output. Raises what `specification` raises."""
    states, _ = specification(cell)
    return cell.output or next(iter(states))


def noise_of(cell: Cell) -> dict[str, Noise]:
    """The declared noise, checked once per cell. Raises PluginError when it makes no sense."""
    known: dict[str, Noise] | None = getattr(cell, "__dict__", {}).get("_noise")
    if known is None:
        specification(cell)
        known = cell.__dict__["_noise"] = _checked_noise(cell)
    return known


def _checked_noise(cell: Cell) -> dict[str, Noise]:
    noise: Any = _by_author(cell, "noise", cell.noise)
    _check_group(cell, "noise", noise, Noise)
    states, params = specification(cell)
    for name, kind in noise.items():
        if not str(name).isidentifier() or name in params or name in states:
            raise PluginError(
                f"cell {cell.name}: expected names in noise() that no parameter or state has, got {name!r}"
            )
        if not isinstance(kind.shape, tuple) or not all(isinstance(n, int) and n >= 1 for n in kind.shape):
            raise PluginError(f"cell {cell.name}, noise {name}: expected a tuple of sizes as shape, got {kind.shape!r}")
        if not 0.0 < kind.keep <= 1.0 or kind.every not in ("step", "sequence"):
            raise PluginError(
                f"cell {cell.name}, noise {name}: expected 0 < keep <= 1, every 'step' or 'sequence', got {kind}"
            )
    checked: dict[str, Noise] = noise
    return checked


def draw_noise(
    cell: Cell, T: int, B: int, rng: np.random.Generator, dtype: Any = np.float64, xp: Any = np
) -> dict[str, Any]:
    """New random numbers for T steps of B rows, (T, B, *shape) by name: what `unroll` and `scan` take in training.

    Drawn on the host, so that a seed means the same on every device. Empty for a cell without noise.
    """
    kinds, rng = noise_of(cell), generator(rng, "draw_noise")
    drawn: dict[str, Any] = {}
    for name, kind in kinds.items():
        times = T if kind.every == "step" else 1
        # float32 is fine enough to tell kept from dropped, and drawn in half the time
        kept = (rng.random((times, B, *kind.shape), np.float32) < kind.keep).astype(dtype)
        kept *= kind.scale
        whole = np.ascontiguousarray(np.broadcast_to(kept, (T, B, *kind.shape)))
        drawn[name] = backend.from_host(whole, xp)
    return drawn


def _by_author(cell: Cell, what: str, method: Callable[..., Any], *args: Any) -> Any:
    """What the author wrote, called: whatever it raises is the author's, with file and line.

    What the caller gave passes as it is: options, arrays of another dtype or device; and a NaN found by anomaly().
    """
    try:
        return method(*args)
    except (NonFiniteError, PluginError):
        raise
    except InputError as error:
        line = author_line(cell, error)
        if not isinstance(error, ShapeError):  # the shapes were checked before
            if what != "step" or not line:
                raise
            raise type(error)(f"cell {cell.name}, step{line}: {error}") from error
        raise PluginError(f"cell {cell.name}, {what}{author_line(cell, error)}: {error}") from error
    except AttributeError as error:
        hint = ""
        if isinstance(error.obj, SimpleNamespace) and error.name is not None:
            hint = f"; no {error.name!r} was declared{nearest(error.name, vars(error.obj))}"
        text = hint[2:] or one_line(error)
        raise PluginError(f"cell {cell.name}, {what}{author_line(cell, error)}: {text}") from error
    except (Exception, SystemExit) as error:  # sys.exit() in a step is no end of the program
        text = str(error) if isinstance(error, GradientError) else one_line(error)
        raise PluginError(f"cell {cell.name}, {what}{author_line(cell, error)}: {text}") from error


def init_cell(cell: Cell, rng: np.random.Generator, dtype: Any = np.float64, xp: Any = np) -> dict[str, Tensor]:
    """New parameters of one bare cell, by name, drawn from `rng`: what `unroll` takes. Buffers need no gradient."""
    params = specification(cell)[1]
    return init_params(params, generator(rng, "init_cell"), dtype, xp, cell.name)


def init_params(
    specs: Mapping[str, Param], rng: np.random.Generator, dtype: Any = np.float64, xp: Any = np, cell: str = ""
) -> dict[str, Tensor]:
    """Tensors for declared parameters on the device whose module is `xp`; `cell` is told in errors.

    They are drawn in the order of `specs`, but a function that reads another array after that one: at layers.1.b_i,
    ``arrays["b_f"]`` is layers.1.b_f. Raises InputError, with the parameter's name, where an initialiser cannot fill a
    shape; PluginError where a function does not keep to its contract (see `Param`), or two of them read each other.
    """
    read = any(not isinstance(spec.init, str) for spec in specs.values())
    wide: dict[str, Array] = {}  # in float64, what functions read
    tensors: dict[str, Tensor] = {}
    waiting = dict(specs)
    while waiting:
        before, needs = len(waiting), dict[str, str]()
        for name, spec in list(waiting.items()):
            chance = rng.bit_generator.state
            try:
                if isinstance(spec.init, str):
                    values = initialise(spec.init, spec.shape, rng)
                else:
                    values = _by_function(spec, rng, _Drawn(name, specs, wide), f"cell {cell}, parameter {name}")
                narrow = held(values, spec.init_name, dtype)
            except _NotYet as missing:
                rng.bit_generator.state = chance
                needs[name] = missing.args[0]
                continue
            except InputError as error:
                raise InputError(f"parameter {name}: {error}") from error
            if read:
                wide[name] = values
            tensors[name] = Tensor(backend.from_host(narrow, xp), requires_grad=spec.role != "buffer")
            del waiting[name]
        if len(needs) == before:
            circle = "; ".join(f"{name} reads {of}" for name, of in needs.items())
            raise PluginError(f"cell {cell}: expected initialisers that do not wait for each other, got: {circle}")
    return {name: tensors[name] for name in specs}


class _NotYet(Exception):
    """An initialiser reads an array, named here, that has not been drawn."""


class _Drawn(Mapping[str, Array]):
    """The arrays of the cell that `reader` belongs to, by their names there, as far as they have been drawn."""

    def __init__(self, reader: str, specs: Mapping[str, Param], wide: Mapping[str, Array]) -> None:
        self.reader = reader
        self.prefix = reader[: reader.rfind(".") + 1]
        self.names = [name[len(self.prefix) :] for name in specs if name.startswith(self.prefix)]
        self.wide = wide

    def __getitem__(self, name: str) -> Array:
        if name not in self.names:
            raise InputError(f"no array {name!r}{nearest(str(name), self.names)}")
        if self.prefix + name == self.reader:
            raise InputError(f"expected another array of the cell, got {name!r}, the one being drawn")
        if self.prefix + name not in self.wide:
            raise _NotYet(self.prefix + name)
        view = self.wide[self.prefix + name].view()
        view.flags.writeable = False
        return view

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _by_function(spec: Param, rng: np.random.Generator, arrays: Mapping[str, Array], what: str) -> Array:
    """What a cell's own initialiser draws. Raises PluginError, with `what` and its file and line, for anything else."""
    init: Any = spec.init
    code = _taken_apart(init)[0].__code__

    def fault(text: str, error: Exception | None = None) -> PluginError:
        passed = traceback.extract_tb(error.__traceback__ if error else None)
        lines = [frame.lineno for frame in passed if frame.filename == code.co_filename]
        place = f"{Path(code.co_filename).name}:{lines[-1] if lines else code.co_firstlineno}"
        return PluginError(f"{what}, initialiser {spec.init_name} ({place}): {text}")

    try:
        values: Any = init(rng, spec.shape, arrays)
    except _NotYet:
        raise
    except InputError as error:
        raise fault(str(error), error) from error
    except (Exception, SystemExit) as error:
        raise fault(one_line(error), error if isinstance(error, Exception) else None) from error
    if not isinstance(values, np.ndarray) or values.shape != spec.shape or values.dtype != np.float64:
        got = f"{values.shape} {values.dtype}" if isinstance(values, np.ndarray) else repr(values)
        raise fault(f"expected an array of shape {spec.shape} in float64, got {got}")
    if not np.all(np.isfinite(values)):
        index = ", ".join(str(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise fault(f"expected finite numbers, got {values[~np.isfinite(values)][0]} at [{index}]")
    return values.copy()


def _taken_apart(init: Any) -> tuple[Any, dict[str, Any]]:
    """The function behind an initialiser, and its arguments by name."""
    return (init.func, init.keywords) if isinstance(init, functools.partial) else (init, {})


def _unrecordable(init: Any) -> str:
    """What should stand there, where an initialiser cannot be written down as a name and arguments; else ''."""
    function, arguments = _taken_apart(init)
    if not isinstance(function, FunctionType):
        return "the name of an initialiser or a function of (rng, shape, arrays)"
    if function.__name__ == "<lambda>" or function.__closure__ or getattr(init, "args", ()):
        return (
            "a function with a name, and with its arguments as keywords of functools.partial, so that both are recorded"
        )
    plain = (bool, int, float, str, type(None))
    for value in arguments.values():
        if not all(isinstance(part, plain) for part in (value if isinstance(value, tuple) else (value,))):
            return "numbers, text, or tuples of these as arguments of an initialiser"
    return ""


def timesteps(states: Mapping[str, State]) -> list[str]:
    """Those of the declared `states` that the library counts."""
    return [name for name, spec in states.items() if isinstance(spec, Timestep)]


def last_timestep(dtype: Any) -> int:
    """The largest whole number up to which `dtype` counts without leaving one out."""
    return int(2 ** (np.finfo(dtype).nmant + 1))


def counted(cell: Cell, new: Any, state: Mapping[str, Any], shapes: Mapping[str, State]) -> Any:
    """What a step returned, and every timestep one further. Raises PluginError where the step returned one itself."""
    for name in timesteps(shapes) if isinstance(new, dict) else ():
        if name in new:
            raise PluginError(
                f"cell {cell.name}, state {name}: expected the library alone to count timesteps, got it from step"
            )
        new = {**new, name: state[name] + 1.0}
    return new


def take_step(
    cell: Cell, p: SimpleNamespace, x: Any, state: Mapping[str, Any], shapes: Mapping[str, State]
) -> dict[str, Any]:
    """`cell.step`, with what it returns held against what it declared. Raises PluginError, which names the cell."""
    new = counted(cell, _by_author(cell, "step", cell.step, p, x, SimpleNamespace(**state)), state, shapes)
    if not isinstance(new, dict) or new.keys() != shapes.keys():
        steps = timesteps(shapes)
        got = [name for name in new if name not in steps] if isinstance(new, dict) else type(new).__name__
        own = [name for name in shapes if name not in steps]
        raise PluginError(f"cell {cell.name}: expected step to return a dict with the states {own}, got {got}")
    for name, old in state.items():
        if isinstance(x, Tensor) and isinstance(new[name], np.ndarray) and new[name] is not old:
            raise PluginError(
                f"cell {cell.name}, state {name}: expected a value made by functions of tinygrad_rnn.ops, got a NumPy "
                "array; a gradient flows through ops alone"
            )
        if not hasattr(new[name], "shape") or not hasattr(new[name], "dtype"):
            raise PluginError(
                f"cell {cell.name}, state {name}: expected {tuple(old.shape)} {old.dtype} from step, got "
                f"{told(new[name])}"
            )
        if new[name].shape != old.shape or new[name].dtype != old.dtype:
            raise PluginError(
                f"cell {cell.name}, state {name}: expected {tuple(old.shape)} {old.dtype} from step, got "
                f"{tuple(new[name].shape)} {new[name].dtype}"
            )
    return new
