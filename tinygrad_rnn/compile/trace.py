"""The step of a cell as a graph: traced once with symbols in place of arrays, through the same ops.

A `Symbol` has a shape and a dtype and no values. Whatever a step does that a graph cannot hold (it looks at a value, it
depends on Python state, it uses an array of its own) raises `Untraceable`, with the author's file and line.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np

from tinygrad_rnn import backend, engine, ops
from tinygrad_rnn.cell import Cell, counted, noise_of, specification
from tinygrad_rnn.dispatch import NoOp, told
from tinygrad_rnn.engine import Op, Scatter, Variable, pull, sum_to
from tinygrad_rnn.tensor import Algebra


class Untraceable(Exception):
    """A step that no graph can stand for; the text says why and where."""


class Symbol(Algebra):
    """A value in a traced graph: an op applied to symbols and Python numbers, or a leaf with a name.

    `kind` of a leaf is "x", "mask", "noise", "state", "param", "weight" (what stands for a value of parameters alone)
    or "seed" (the gradient that reaches a new state); of anything else it is "op".
    """

    __slots__ = ("_shape", "args", "dtype", "graph", "kind", "name", "number", "op", "static", "where")

    def __init__(
        self,
        graph: Graph,
        kind: str,
        name: str,
        shape: tuple[int, ...],
        dtype: Any,
        op: Op | None = None,
        args: tuple[Any, ...] = (),
        static: dict[str, Any] | None = None,
        where: str = "",
    ) -> None:
        self.graph = graph
        self.kind = kind
        self.name = name
        self._shape = shape
        self.dtype = dtype
        self.op = op
        self.args = args
        self.static = static or {}
        self.where = where
        self.number = len(graph.symbols)
        graph.symbols.append(self)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def parents(self) -> tuple[Symbol, ...]:
        """The arguments that are symbols."""
        return tuple(arg for arg in self.args if isinstance(arg, Symbol))

    def apply(self, op: Op, args: tuple[Any, ...], static: dict[str, Any]) -> Any:
        return self.graph.apply(op, args, static)

    def __repr__(self) -> str:
        return f"{self.name} {self.shape}"

    def _refused(self, what: str) -> Untraceable:
        return self.graph.refuse(what)

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return np

    def __bool__(self) -> bool:
        raise self._refused("depends on a value, through `if`, `while`, `and` or `or`, where ops.where would do")

    def __float__(self) -> float:
        raise self._refused("reads a value with float()")

    def __int__(self) -> int:
        raise self._refused("reads a value with int()")

    def __index__(self) -> int:
        raise self._refused("uses a value as an index")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        raise self._refused("reads values with NumPy")

    def without_op(self, function: Any, args: tuple[Any, ...], options: dict[str, Any], missing: NoOp) -> Any:
        raise self._refused(f"calls {told(function)}: {missing.why}")

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __len__(self) -> int:
        return self._shape[0]

    def __setitem__(self, index: Any, value: Any) -> None:
        raise self._refused("changes an array in place")

    def __getattr__(self, name: str) -> Any:
        if name == "size":
            return int(np.prod(self._shape))
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._refused(f"reads .{name} of a value")


class Graph:
    """Symbols in the order they were made. While `merging`, the same op on the same arguments is one symbol.

    A step is traced without that: a value computed twice has two gradients, as on the tape.
    """

    def __init__(self, file: str | None, B: int) -> None:
        self.symbols: list[Symbol] = []
        self.file = file
        self.B = B
        self.known: dict[Any, Symbol] = {}
        self.merging = False
        self.refused = ""  # why, for the first thing: not the error, whose frames hold this graph
        self.taps: dict[int, str] = {}
        self.gradient_at: dict[int, Symbol] = {}  # number of a gradient -> the value it is the gradient at

    def refuse(self, what: str) -> Untraceable:
        """The error for a step that does `what`, kept in case the step catches it."""
        place = self.place()
        text = f"the step {what}" + (f" ({place})" if place else "")
        self.refused = self.refused or text
        return Untraceable(text)

    def leaf(self, kind: str, name: str, shape: tuple[int, ...], dtype: Any) -> Symbol:
        return Symbol(self, kind, name, shape, np.dtype(dtype))

    def apply(self, op: Op, args: tuple[Any, ...], static: dict[str, Any]) -> Symbol:
        args = tuple([arg.item() if isinstance(arg, np.generic) else arg for arg in args])
        for arg in args:
            if isinstance(arg, Variable) or backend.is_array(arg):
                raise self.refuse("uses an array that is neither its input, a state nor a parameter")
        if not engine.MODE.recording:
            raise self.refuse("turns recording off with no_grad()")
        _without_symbols(static, self)
        key = (op, tuple([id(a) if isinstance(a, Symbol) else (type(a), a) for a in args]), frozen(static))
        found = self.known.get(key) if self.merging else None
        if found is None:
            shape, dtype = _outcome(op, args, static)
            name = f"t{len(self.symbols)}"
            found = Symbol(self, "op", name, shape, dtype, op, args, static, self.place())
            self.known[key] = found
        return found

    def place(self) -> str:
        """``file.py:line`` of the author's code that is running, '' where there is none."""
        frame: Any = sys._getframe(1) if self.file else None
        while frame is not None:
            if frame.f_code.co_filename == self.file:
                return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            frame = frame.f_back
        return ""


def frozen(value: Any) -> Any:
    """A hashable stand-in for static configuration."""
    if isinstance(value, dict):
        return tuple([(key, frozen(part)) for key, part in sorted(value.items())])
    if isinstance(value, tuple | list):
        return tuple([frozen(part) for part in value])
    if isinstance(value, slice):
        return ("slice", value.start, value.stop, value.step)
    if isinstance(value, np.ndarray):
        return (value.shape, value.dtype.str, value.tobytes())
    return (type(value), value)


def _without_symbols(value: Any, graph: Graph) -> None:
    if isinstance(value, Symbol):
        raise graph.refuse("uses a value as an index")
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for part in value:
            _without_symbols(part, graph)


def _outcome(op: Op, args: Sequence[Any], static: dict[str, Any]) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of the result: what the op makes of ones."""
    if op is MATMUL and all(isinstance(a, Symbol) and len(a.shape) == 2 for a in args):
        a, b = args
        if a.shape[1] == b.shape[0] and a.dtype == b.dtype:
            return (a.shape[0], b.shape[1]), a.dtype
    ones = [np.ones(arg.shape, arg.dtype) if isinstance(arg, Symbol) else arg for arg in args]
    with engine.no_grad():
        y = backend.quietly(engine.record, op, (engine.wrap(_Probe, ones[0]), *ones[1:]), static).data
    return tuple(y.shape), y.dtype


class _Probe(Variable):
    """Final: carries the ones through the checks of `engine.record`."""

    __slots__ = ()


def _internal(make: Callable[[Any, Any], Any], *shapes: tuple[int, ...]) -> Op:
    """The primitive behind a public function of `ops`."""
    graph = Graph(None, 1)
    with engine.recording():  # this module may be loaded by the first call inside somebody's no_grad()
        op = make(*[graph.leaf("x", "", shape, np.float32) for shape in shapes]).op
    assert op is not None
    return op  # type: ignore[no-any-return]


@engine.primitive(broadcasts=True)
def total(*terms: Any) -> Any:
    """The sum of all terms."""
    out = terms[0]
    for term in terms[1:]:
        out = np.add(out, term)
    return out


total.vjp_each(lambda i, g: g)
MATMUL: Any = None
MATMUL = _internal(lambda a, b: ops.matmul(a, b), (1, 1), (1, 1))
TRANSPOSE = _internal(lambda a: ops.transpose(a), (1, 2))  # type: ignore[arg-type,misc]
GETITEM = _internal(lambda a: a[:, :1], (1, 2))  # type: ignore[arg-type,misc]
SUM_TO = _internal(lambda a: sum_to(a, (1, 1)), (1, 2))  # type: ignore[arg-type,misc]


# --------------------------------------------------------------------------------------------- the step


@dataclass(frozen=True)
class Step:
    """One timestep as a graph: leaves by name, and the symbol of every new state.

    `given` has what comes with every timestep beside x, and has no gradient: "mask", and "noise NAME".
    `aliases` has the states that are no value of their own: the state whose tensor they share, and how many timesteps
    before; "" is the input. Such a tensor has one gradient.
    """

    graph: Graph
    x: Symbol
    given: dict[str, Symbol]
    states: dict[str, Symbol]
    params: dict[str, Symbol]
    new: dict[str, Symbol]
    aliases: dict[str, tuple[str, int]]

    @property
    def mask(self) -> Symbol | None:
        return self.given.get("mask")

    @property
    def leaves(self) -> list[Symbol]:
        """What differs from timestep to timestep."""
        return [self.x, *self.given.values(), *self.states.values()]


def trace_step(cell: Cell, B: int, dtype: Any, masked: bool, noisy: bool = False) -> Step:
    """The step of `cell` for B rows; `noisy` as in training, with random numbers for those that the cell asks for.

    Raises Untraceable, also for a step that is not the same twice.
    """
    first, second = (_trace(cell, B, dtype, masked, noisy) for _ in range(2))
    one, two = (_signature(step) for step in (first, second))
    if one != two:
        where = next((a[-1] for a, b in zip(one, two, strict=False) if a != b and a[-1]), "")
        raise Untraceable(
            "the step is not the same twice: it depends on Python state or on chance" + (f" ({where})" if where else "")
        )
    return first


def _signature(step: Step) -> list[tuple[Any, ...]]:
    """What makes a graph this graph: one row a symbol, which ends with its place in the author's file."""
    rows: list[tuple[Any, ...]] = []
    for s in step.graph.symbols:
        rows.append((s.kind, s.op, tuple(_arguments(s)), frozen(s.static), s.where))
    rows.append((*(value.number for value in step.new.values()), ""))
    return rows


def fits(step: Step, cell: Cell, B: int, dtype: Any, masked: bool, noisy: bool) -> bool:
    """Whether the step of `cell` for B rows is `step` with B in the place of its own number of rows.

    Raises Untraceable where it cannot be traced for B rows.
    """
    other = _trace(cell, B, dtype, masked, noisy)
    own, ours, theirs = step.graph.B, step.graph.symbols, other.graph.symbols
    if len(ours) < len(theirs) or step.aliases != other.aliases:
        return False
    if [s.number for s in step.new.values()] != [s.number for s in other.new.values()]:
        return False
    return all(
        (a.kind, a.op, a.dtype, a.where) == (b.kind, b.op, b.dtype, b.where)
        and for_rows(a.shape, own, B) == b.shape
        and frozen(for_rows(a.static, own, B)) == frozen(b.static)
        and _arguments(a) == _arguments(b)
        for a, b in zip(ours, theirs, strict=False)
    )


def for_rows(value: Any, own: int, B: int) -> Any:
    """A shape, an index or other configuration with B for `own` rows, wherever a number is a multiple of `own`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value // own * B if value % own == 0 else value
    if isinstance(value, tuple | list):
        return type(value)([for_rows(part, own, B) for part in value])
    if isinstance(value, dict):
        return {key: for_rows(part, own, B) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(*[for_rows(part, own, B) for part in (value.start, value.stop, value.step)])
    return value


def rows_apart(cell: Cell) -> int:
    """A number of rows for which no other size of `cell` can be taken: a prime that divides none of them."""
    states, params = specification(cell)
    specs: list[Any] = [*states.values(), *params.values(), *noise_of(cell).values()]
    sizes = {cell.I, cell.H, *(size for spec in specs for size in spec.shape)}
    return next(
        n for n in itertools.count(7, 2) if all(n % k for k in range(3, n, 2)) and all(size % n for size in sizes)
    )


def _arguments(s: Symbol) -> list[Any]:
    return [a.number if isinstance(a, Symbol) else ("constant", a) for a in s.args]


def _trace(cell: Cell, B: int, dtype: Any, masked: bool, noisy: bool) -> Step:
    shapes, declared = specification(cell)
    graph = Graph(getattr(sys.modules.get(type(cell).__module__), "__file__", None), B)
    x = graph.leaf("x", "x", (B, cell.I), dtype)
    states = {name: graph.leaf("state", name, (B, *spec.shape), dtype) for name, spec in shapes.items()}
    params = {name: graph.leaf("param", name, spec.shape, dtype) for name, spec in declared.items()}
    given = {"mask": graph.leaf("mask", "mask", (B,), bool)} if masked else {}
    random_numbers: dict[str, Any] = {name: kind.mean for name, kind in noise_of(cell).items()}
    if noisy:
        for name, kind in noise_of(cell).items():
            random_numbers[name] = given[f"noise {name}"] = graph.leaf("noise", name, (B, *kind.shape), dtype)

    def heard(name: str, value: Any) -> None:
        if isinstance(value, Symbol) and value.kind == "op":
            graph.taps.setdefault(value.number, name)

    shadow = _shadow(cell, graph)
    p = _Given(graph, {**params, **random_numbers})
    chance = global_generators()
    around = copy.deepcopy(surroundings(cell))
    try:
        with engine.listen(heard), engine.recording():
            new = counted(cell, shadow.step(p, x, SimpleNamespace(**states)), states, shapes)
    except Untraceable:
        raise
    except Exception as error:  # an author's slip, or a way to read values that is not foreseen: unroll will tell
        if graph.refused:
            raise Untraceable(graph.refused) from error
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise Untraceable(f"the step could not be traced: {text}") from error
    finally:
        after = global_generators()
        random.setstate(chance[0])
        np.random.set_state(chance[1])  # noqa: NPY002
    if graph.refused:  # and caught by the step
        raise Untraceable(graph.refused)
    if not same(chance, after):
        raise Untraceable(f"the step draws random numbers ({_first_line(cell)})")
    for key, value in surroundings(cell).items():
        if not same(value, around.get(key, MISSING)):
            raise Untraceable(f"the step changes {key} ({_first_line(cell)})")
    if extra := [name for name in vars(type(shadow)) if not name.startswith("_")]:
        raise Untraceable(f"the step changes {type(cell).__name__}.{extra[0]} ({_first_line(cell)})")
    if changed := _changed(cell, shadow):
        raise Untraceable(f"the step changes the attribute {changed[0]} of the cell ({_first_line(cell)})")
    if not isinstance(new, dict) or new.keys() != shapes.keys() or not all(isinstance(v, Symbol) for v in new.values()):
        raise Untraceable("the step does not return a dict with its states")
    for name, value in new.items():
        if value.shape != states[name].shape or value.dtype != states[name].dtype:
            raise Untraceable(f"state {name} has another shape or dtype after the step")
    aliases = {} if masked else _copied(graph, x, states, new)
    if masked:
        for name, value in new.items():
            alive = ops.reshape(given["mask"], (B,) + (1,) * (len(value.shape) - 1))
            new[name] = ops.where(alive, value, states[name])
    return Step(graph, x, given, states, params, new, aliases)


def _copied(
    graph: Graph, x: Symbol, states: Mapping[str, Symbol], new: dict[str, Symbol]
) -> dict[str, tuple[str, int]]:
    """Give every new state that is another value a copy of its own in `new`; what each was, as in `Step.aliases`."""
    aliases: dict[str, tuple[str, int]] = {}
    seen: dict[Symbol, str] = {}
    for name, value in list(new.items()):
        if value is x:
            aliases[name] = ("", 0)
        elif value.kind == "state":
            aliases[name] = next((old, 1) for old, state in states.items() if state is value)
        elif value in seen:
            aliases[name] = (seen[value], 0)
        else:
            seen[value] = name
            if value.op is not None:
                continue
        new[name] = graph.apply(ops.mul, (value, 1.0), {})
    return aliases


MISSING = object()


def global_generators() -> tuple[Any, Any]:
    """Where the global generators are, which a step should not touch, and may."""
    return random.getstate(), np.random.get_state()  # noqa: NPY002


class _Given(SimpleNamespace):
    """Final. The parameters of a step that is traced: to be read."""

    def __init__(self, graph: Graph, params: Mapping[str, Any]) -> None:
        super().__init__(**params)
        object.__setattr__(self, "__graph", graph)

    def __setattr__(self, name: str, value: Any) -> None:
        raise vars(self)["__graph"].refuse(f"changes the parameter {name}")


def public(cell: Any) -> dict[str, Any]:
    """What a step may depend on beside its arguments: the attributes of the cell, without the library's own."""
    return {key: value for key, value in vars(cell).items() if not key.startswith("_")}


def _changed(cell: Any, shadow: Any) -> list[str]:
    """The attributes that differ in the copy of `cell` that did the step; those of a cell in it by their own name."""
    found = []
    for key, value in public(cell).items():
        now = shadow.__dict__.get(key, MISSING)
        if isinstance(value, Cell) and type(now) is type(value):
            found += _changed(value, now)
        elif not same(value, now):
            found.append(key)
    return found + [key for key in public(shadow) if key not in vars(cell)]


def _shadow(cell: Cell, graph: Graph) -> Any:
    """A copy of `cell` to run the step on: what it does to itself is seen, and undone."""

    def assigned(self: Any, name: str, value: Any) -> None:
        raise graph.refuse(f"changes the attribute {name} of the cell")

    kind = type(type(cell).__name__, (type(cell),), {"__setattr__": assigned, "__module__": type(cell).__module__})
    shadow: Any = object.__new__(kind)
    try:
        shadow.__dict__.update({key: copy.deepcopy(value) for key, value in vars(cell).items() if key != "_programs"})
    except Exception as error:
        raise Untraceable(f"the cell has an attribute that cannot be copied: {error}") from error
    return shadow


def same(a: Any, b: Any) -> bool:
    """Whether two Python values are equal, arrays element by element, containers and generators inside too."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
    if isinstance(a, Variable):
        return same(a.data, b.data)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.random.Generator):
        return same(a.bit_generator.state, b.bit_generator.state)
    if isinstance(a, random.Random):
        return bool(a.getstate() == b.getstate())
    if isinstance(a, Cell):
        return same(public(a), public(b))
    if getattr(type(a), "__eq__", None) is getattr(object, "__eq__", None) and hasattr(a, "__dict__"):
        return same(vars(a), vars(b))
    try:
        return bool(a == b)
    except Exception:
        return False


def _first_line(cell: Cell) -> str:
    """``file.py:line`` of the step; of that of the cell inside, where there is one."""
    for value in public(cell).values():
        if isinstance(value, Cell):
            return _first_line(value)
    code = getattr(inspect.unwrap(type(cell).step), "__code__", None)
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code is not None else "unknown place"


def surroundings(cell: Cell) -> dict[str, Any]:
    """The plain data that a step reads from its module: what a compiled step would go on using after it was changed.

    Numbers, texts and containers by name, also of functions of that module that the step calls, and of the class.
    """
    found: dict[str, Any] = {}
    for value in public(cell).values():
        if isinstance(value, Cell):  # which does the step, or a part of it
            found.update(surroundings(value))
    for kind in type(cell).__mro__[: type(cell).__mro__.index(Cell)]:
        for name, value in vars(kind).items():
            if isinstance(value, bool | int | float | list | dict | set | np.ndarray) and not name.startswith("_"):
                found[f"{kind.__name__}.{name}"] = value
    waiting = [inspect.unwrap(type(cell).step)]
    seen = set()
    while waiting:
        function = waiting.pop()
        code = getattr(function, "__code__", None)
        if code is None or code in seen:
            continue
        seen.add(code)
        variables = getattr(function, "__globals__", {})
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=False))
        named = {name: variables[name] for name in code.co_names if name in variables}
        named.update({name: held.cell_contents for name, held in cells.items() if name != "__class__"})
        for name, value in named.items():
            if isinstance(value, bool | int | float | str | list | tuple | dict | set | np.ndarray | np.generic):
                found[f"{getattr(function, '__module__', '')}.{name}"] = value
            elif isinstance(value, FunctionType) and value.__globals__ is variables:
                waiting.append(value)
    return found


# ------------------------------------------------------------------------------------- the backward graph


def depends(symbols: Iterable[Symbol], on: set[Symbol]) -> set[Symbol]:
    """Those of `symbols` (in order of creation) that depend on one of `on`, themselves included."""
    found = set(on)
    for symbol in symbols:
        if symbol not in found and not found.isdisjoint(symbol.parents):
            found.add(symbol)
    return found


def ancestors(outputs: Iterable[Symbol]) -> list[Symbol]:
    """`outputs` and all they are computed from, in order of creation."""
    seen = set(outputs)
    stack = list(seen)
    while stack:
        for parent in stack.pop().parents:
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return sorted(seen, key=lambda s: s.number)


def pullback(outputs: Mapping[Symbol, Symbol], targets: Sequence[Symbol]) -> dict[Symbol, Symbol]:
    """The gradient at every target that has one, by the vjp rules of the ops, for the gradients at the outputs.

    The keys of `outputs` are values, its values what flows into them; both are in one graph, and so is the result.
    """
    order = ancestors(outputs)
    goals = set(targets)
    useful = depends(order, goals)
    flowing: dict[Symbol, list[Symbol]] = {}
    for value, seed in outputs.items():
        flowing.setdefault(value, []).append(seed)
    found: dict[Symbol, Symbol] = {}
    for y in reversed(order):
        if y not in useful or y not in flowing:
            continue
        terms = flowing.pop(y)
        g = terms[0] if len(terms) == 1 else y.graph.apply(total, tuple(terms), {})
        y.graph.gradient_at.setdefault(g.number, y)
        if y in goals:
            found[y] = g
        if y.op is None or not y.op.differentiable:
            continue
        needed = [isinstance(a, Symbol) and a in useful and a.dtype.kind == "f" for a in y.args]
        for a, gx in zip(y.args, pull(y.op, g, y, y.args, needed, y.static), strict=True):
            if gx is None:
                continue
            if type(gx) is Scatter:
                gx = gx.dense()
            if y.op.broadcasts and gx.shape != a.shape:
                gx = sum_to(gx, a.shape)
            flowing.setdefault(a, []).append(gx)
    return found
