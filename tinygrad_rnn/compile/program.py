"""From a cell to a program that runs it, and to a node on the tape that knows its gradient."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_rnn import engine, ops
from tinygrad_rnn.cell import Cell
from tinygrad_rnn.compile.blocks import BlockedProgram, block_length
from tinygrad_rnn.compile.layout import Unsupported
from tinygrad_rnn.compile.recent import Recent
from tinygrad_rnn.compile.schedule import Plan, make_plan
from tinygrad_rnn.compile.trace import (
    Symbol,
    Untraceable,
    ancestors,
    fits,
    for_rows,
    public,
    rows_apart,
    same,
    surroundings,
    total,
)
from tinygrad_rnn.engine import Node, Part
from tinygrad_rnn.tensor import Tensor, made_of

Key = tuple[str, Any]  # a state: at timestep t; OUTSIDE or EVERY for all of them in one tensor
OUTSIDE = None  # its gradient is what comes from outside, as for the outputs of `unroll`, which are stacked copies
EVERY = "every"  # its gradient is the total at every timestep


PROGRAMS = 128  # for one number of rows that a cell keeps; a quarter of a megabyte each
SIZES = 4096  # numbers of rows of which a cell remembers that they share a program


MACHINE_CODE = "machine code made from the traced step"


class NotCompiled(Exception):
    """No executor can run this; the text says why."""


def program(cell: Cell, B: int, dtype: Any, masked: bool, executor: str | None, noisy: bool = False) -> Any:
    """The program of `cell` for B rows by `executor` (None: the fastest), made once and kept with the cell.

    Machine code is the same for every B above 1, unless the step is not; the NumPy executor has a program for each.
    `noisy` is the step of training, where the cell draws noise. Raises NotCompiled with the reason.
    """
    kept: Any = cell.__dict__.get("_programs")
    if kept is None or not kept.holds(cell):
        kept = cell.__dict__["_programs"] = _Kept(cell)
    key = (B, dtype, masked, executor, noisy)
    found = kept.shared.get(key)
    if found is not None:
        return found
    found = kept.programs.get(key)
    if found is None:
        try:
            found = _for_any(kept, cell, dtype, masked, executor, noisy) if B > 1 else None
            if found is not None and fits(found.plan.traced, cell, B, dtype, masked, noisy):
                kept.shared.put(key, found)
                return found
            found = _make(cell, B, dtype, masked, executor, noisy)
        except (Untraceable, Unsupported) as error:
            found = NotCompiled(str(error))
    kept.programs.put(key, found)
    if isinstance(found, NotCompiled):
        raise NotCompiled(*found.args)
    return found


class _Kept:
    """Final. The programs of a cell, and what they were traced with: its attributes, and plain data of its module."""

    def __init__(self, cell: Cell) -> None:
        self.programs: Recent[Any, Any] = Recent(PROGRAMS)
        self.general: dict[Any, Any] = {}  # for any number of rows, or None where there is no such program
        self.shared: Recent[Any, Any] = Recent(SIZES)  # the same for those that it was found to fit
        self.copies = copy.deepcopy((public(cell), surroundings(cell)))
        # Numbers, texts and frozen options cannot change inside: where nothing else is there, identity will do.
        self.attributes = [(part, public(part)) for part in _with_inner(cell)]
        self.plain = not self.copies[1] and all(
            isinstance(value, int | float | str | bool | Cell | None) or value is part.options
            for part, attributes in self.attributes
            for value in attributes.values()
        )

    def holds(self, cell: Cell) -> bool:
        """Whether nothing changed that a step may depend on."""
        if not self.plain:
            return same(self.copies, (public(cell), surroundings(cell)))
        for part, attributes in self.attributes:
            count = 0
            for key, value in vars(part).items():
                if not key.startswith("_"):
                    count += 1
                    if attributes.get(key, self) is not value:
                        return False
            if count != len(attributes):
                return False
        return True


def _with_inner(cell: Cell) -> list[Cell]:
    """A cell, and those inside that do a part of its step."""
    inside = [value for value in public(cell).values() if isinstance(value, Cell)]
    return [cell, *(part for value in inside for part in _with_inner(value))]


def _for_any(kept: _Kept, cell: Cell, dtype: Any, masked: bool, executor: str | None, noisy: bool) -> Any:
    """The machine code of `cell` for any number of rows; None where there is none."""
    from tinygrad_rnn.compile import machine
    from tinygrad_rnn.compile.llvm_executor import LLVMProgram

    key = (dtype, masked, noisy)
    if executor not in (None, "llvm"):
        return None
    if key not in kept.general:
        made: Any = None
        with engine.recording(), contextlib.suppress(Untraceable, Unsupported, machine.CompilerMissing, RuntimeError):
            own = rows_apart(cell)
            plan = make_plan(cell, own, dtype, masked, noisy)
            if not any(
                _counts_rows(s, own) for s in (*plan.weights, *plan.weights.values(), *plan.derived, *plan.once)
            ):
                made = LLVMProgram(plan, dtype)
                made.reason = MACHINE_CODE
        kept.general[key] = made
    return kept.general[key]


def _counts_rows(s: Symbol, own: int) -> bool:
    """Whether what is made of parameters alone depends on the number of rows."""
    return (s.shape, s.static) != (for_rows(s.shape, own, 0), for_rows(s.static, own, 0))


def _make(cell: Cell, B: int, dtype: Any, masked: bool, executor: str | None, noisy: bool) -> Any:
    from tinygrad_rnn.compile import machine
    from tinygrad_rnn.compile.llvm_executor import LLVMProgram
    from tinygrad_rnn.compile.numpy_executor import NumPyProgram

    with engine.recording():  # whatever the rule is outside
        plan = make_plan(cell, B, dtype, masked, noisy)
    reason = "asked for"
    if executor in (None, "llvm"):
        try:
            made: Any = LLVMProgram(plan, dtype)
            made.reason = MACHINE_CODE
            return made
        except Unsupported as error:
            reason = f"no machine code: {error}"
        except machine.CompilerMissing as error:
            reason = str(error)
            _warn(reason)
        except RuntimeError as error:  # LLVM refuses the code, or cannot be used here
            reason = f"LLVM failed: {' '.join(str(error).split())[:200]}"
            _warn(reason)
    made = NumPyProgram(plan, dtype)
    made.reason = reason
    return made


@functools.cache
def _warn(reason: str) -> None:
    """Say it once."""
    warnings.warn(f"{reason}; cells run by NumPy, more slowly", RuntimeWarning, stacklevel=2)


# ----------------------------------------------------------------------------------------------- the node


@dataclass(frozen=True)
class Context:
    """What the gradient of a scan needs beside its arrays."""

    program: Any
    names: tuple[str, ...]
    leaves: tuple[Symbol, ...]


class StateSequence(Sequence[Any]):
    """Final. One state at every timestep: T tensors (B, ...), made when they are asked for."""

    def __init__(self, name: str, values: Any, node: Node | None) -> None:
        self.name = name
        self.values = values
        self.node = node
        self.made: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[t] for t in range(*index.indices(len(self)))]
        t = range(len(self))[index]
        found = self.made.get(t)
        if found is None:
            found = self.made[t] = part(self.node, (self.name, t), self.values[t])
        return found

    def __iter__(self) -> Iterator[Any]:
        return (self[t] for t in range(len(self)))

    def whole(self) -> Tensor:
        """All timesteps as one tensor (T, B, ...): what `grad` finds for it is the gradient at each of them."""
        return part(self.node, (self.name, EVERY), self.values)

    def __repr__(self) -> str:
        return f"<{len(self)} timesteps of state {self.name}>"


def part(node: Node | None, key: Key, values: Any) -> Tensor:
    """The tensor that is output `key` of a scan."""
    op = _whole if key[1] is OUTSIDE else _part
    made = None if node is None else Node(op, (node,), (None, None), {"key": key}, None, values)
    return engine.wrap(Tensor, values, made)


@engine.primitive
def _scan(*arrays: Any, context: Context) -> Any:
    raise NotImplementedError


@engine.primitive
def _part(x: Any, *, key: Key) -> Any:
    raise NotImplementedError


@engine.primitive
def _whole(x: Any, *, key: Key) -> Any:
    raise NotImplementedError


_part.__name__ = _whole.__name__ = "scan"  # what errors and drawings call them
_part.part = True
_part.vjp(lambda g, _y, _x, *, key: Part(key, g))
_whole.vjp(lambda g, _y, _x, *, key: Part(key, g))


def run(
    made: Any,
    output: str,
    params: Mapping[str, Any],
    xs: Any,
    state: Mapping[str, Any],
    mask: Any,
    noise: Mapping[str, Any] | None = None,
    recompute: int | None = None,
) -> tuple[Tensor, dict[str, StateSequence], str]:
    """The state `output` (T, B, H) and every state at every timestep, on the tape where a gradient may be asked for.

    Beside them the reason for this executor. `recompute` is the length of a block that the way back computes again: 0
    for none, None where memory asks for it.
    """
    plan: Plan = made.plan
    T, B, _ = xs.shape
    length = block_length(plan, made.dtype, T, B) if recompute is None else recompute
    if 0 < length < T:
        made = BlockedProgram(made, length)
    values = _weights(plan, params)
    leaves = tuple(plan.weights)
    inputs = [xs, *state.values(), *[values[leaf] for leaf in leaves]]
    arrays = [a.data if isinstance(a, Tensor) else a for a in inputs]
    names = tuple(state)
    dtype = made.dtype
    solid = [a if a.flags.c_contiguous else np.ascontiguousarray(a) for a in arrays]
    weights = dict(zip(leaves, solid[1 + len(names) :], strict=True))
    given: dict[str, Any] = {} if mask is None else {"mask": mask}
    given |= {f"noise {name}": value for name, value in (noise or {}).items()}
    for key, value in given.items():
        given[key] = np.ascontiguousarray(value.data if isinstance(value, Tensor) else value, dtype)
    record = made.forward(solid[0], dict(zip(names, solid[1:], strict=False)), weights, given)
    node = None
    order = (plan.step.x, *plan.step.states.values(), *leaves)
    nodes = tuple([a.node if isinstance(a, Tensor) else None for a in inputs])
    outputs = record.states[output][1:]
    if engine.MODE.recording and any(n is not None for n in nodes):
        guards = tuple(
            [
                (i, a.version, a.version[0])
                for i, a in enumerate(inputs, 1)
                if isinstance(a, Tensor) and a.version is not None
            ]
        )
        context = Context(made, names, leaves)
        node = Node(_scan, nodes, (record, *arrays), {"context": context}, guards or None, outputs)
    states = {}
    for name, reached_by in _reach(plan).items():
        live = node is not None and any(
            n is not None and leaf in reached_by for n, leaf in zip(nodes, order, strict=True)
        )
        states[name] = StateSequence(name, record.states[name][1:], node if live else None)
    whole = part(states[output].node, (output, OUTSIDE), outputs)
    return made_of(whole, states[output], range(T)), states, made.reason


def _reach(plan: Plan) -> dict[str, set[Symbol]]:
    """From which leaves a gradient can come to each state, through any number of timesteps: state -> leaves."""
    if not plan.reach:
        reach: dict[str, set[Symbol]] = {}
        for name, value in plan.step.new.items():
            found: set[Symbol] = set()
            stack = [value]
            while stack:
                s = stack.pop()
                if s not in found and s.dtype.kind == "f":
                    found.add(s)
                    stack += s.parents if s.op is None or s.op.differentiable else ()
            reach[name] = {s for s in found if s.op is None}
        for _ in reach:
            for leaves in reach.values():
                for other, state in plan.step.states.items():
                    if state in leaves:
                        leaves |= reach[other]
        plan.reach.update(reach)  # at once: an interrupt must not leave a part of it
    return plan.reach


@dataclass(frozen=True)
class Flow:
    """Where the gradients of some of the new states go in one timestep.

    They reach the new states `totals`, the states before it `carried`, and the `leaves`. A compiled program goes back
    from all new states, and multiplies zeros where this does not lead; `exact` is whether that can only give zeros.
    """

    totals: frozenset[str]
    carried: frozenset[str]
    leaves: frozenset[Symbol]
    exact: bool


def flow(plan: Plan, seeded: frozenset[str]) -> Flow:
    """What the gradients of the new states `seeded` reach."""
    found: Flow | None = plan.flows.get(seeded)
    if found is None:
        step = plan.step
        reached = _below([step.new[name] for name in seeded])
        found = plan.flows[seeded] = Flow(
            frozenset(name for name, value in step.new.items() if plan.origins.get(name, value) in reached),
            frozenset(name for name, state in step.states.items() if state in reached),
            frozenset(s for s in reached if s.op is None),
            all(_keeps_zero(s) for s in _below(step.new.values()) - reached),
        )
    return found


def _below(values: Iterable[Symbol]) -> set[Symbol]:
    """`values` and all that their gradients come to."""
    found: set[Symbol] = set()
    stack = list(values)
    while stack:
        s = stack.pop()
        if s not in found and s.dtype.kind == "f":
            found.add(s)
            if s.op is not None and s.op.differentiable:
                rules = s.op.differentiates(len(s.args))
                stack += [a for a, rule in zip(s.args, rules, strict=True) if rule and isinstance(a, Symbol)]
    return found


def _keeps_zero(s: Symbol) -> bool:
    """Whether a gradient of zero at `s` is zero at its arguments too, also where they are infinite."""
    if s.op is ops.mul:
        return not all(isinstance(a, Symbol) for a in s.args)
    return s.op is None or s.op in (ops.add, ops.sub, ops.neg, ops.where, total) or s.op.__name__ == "reshape"


@dataclass(frozen=True)
class WayBack:
    """What some gradients reach timestep by timestep, from the last; `steps` that are left out are like the last one.

    `leaves` are those of any timestep, and whether all is `exact`.
    """

    steps: tuple[Flow, ...]
    leaves: frozenset[Symbol]
    exact: bool

    def before(self, k: int) -> Flow:
        """k timesteps before the last."""
        return self.steps[min(k, len(self.steps) - 1)]

    def meets(self, plan: Plan, T: int, name: str, t: int) -> bool:
        """Whether it leads to what `_source` says: a state at timestep t of T, the input, or a state at the start."""
        if name == "":
            return plan.step.x in self.before(T - 1 - t).leaves
        return name in (self.before(T - 1).carried if t < 0 else self.before(T - 1 - t).totals)


def way_back(plan: Plan, keys: Iterable[Key], T: int) -> WayBack:
    """The way from the gradients at the outputs `keys` of a scan of T timesteps."""
    always = frozenset([name for name, t in keys if not isinstance(t, int)])
    single: dict[int, set[str]] = {}
    for name, t in keys:
        if isinstance(t, int):
            single.setdefault(t, set()).add(name)
    longest = len(plan.step.states) + 1  # each timestep adds a state to those that are reached, or nothing changes
    if not single and (always, min(T, longest)) in plan.ways:
        return plan.ways[always, min(T, longest)]  # type: ignore[no-any-return]
    lowest = min(single, default=T)
    steps: list[Flow] = []
    seeded = always | single.get(T - 1, frozenset())
    for t in reversed(range(T)):
        steps.append(flow(plan, seeded))
        following = always | steps[-1].carried | single.get(t - 1, frozenset())
        if following == seeded and t <= lowest:
            break
        seeded = following
    every = set(steps)
    made = WayBack(tuple(steps), frozenset().union(*[step.leaves for step in every]), all(step.exact for step in every))
    if not single:
        plan.ways[always, min(T, longest)] = made
    return made


def _weights(plan: Plan, params: Mapping[str, Any]) -> dict[Symbol, Any]:
    """What stands for each leaf: a parameter, or what the step makes of parameters alone, computed on the tape."""
    known: dict[Symbol, Any] = {}
    for s in plan.derived:
        known[s] = params[s.name] if s.op is None else _apply(s, known)
    return {
        leaf: params[source.name] if source.kind == "param" else known[source] for leaf, source in plan.weights.items()
    }


def _apply(s: Symbol, known: Mapping[Symbol, Any], own: int = 1, B: int = 1) -> Any:
    """The op of `s`, which was traced for `own` rows, on what is known, for B rows."""
    assert s.op is not None
    args = tuple([known[a] if isinstance(a, Symbol) else a for a in s.args])
    if not any(isinstance(a, Tensor) for a in args):
        args = tuple([Tensor(a) if isinstance(a, np.ndarray) else a for a in args])
    return s.op(*args, **(s.static if own == B else for_rows(s.static, own, B)))


def _scan_vjp(
    gs: Mapping[Key, Any], record: Any, needed: Sequence[bool], wanted: set[Key], *inputs: Any, context: Context
) -> tuple[list[Any], dict[Key, Any]]:
    if any(isinstance(g, Tensor) for g in gs.values()) or any(isinstance(a, Tensor) for a in inputs):
        return _recorded_vjp(gs, record, needed, wanted, inputs, context, True)
    names, leaves, made = context.names, context.leaves, context.program
    plan: Plan = made.plan
    T = record.T
    way = way_back(plan, gs, T)
    start = way.before(T - 1).carried
    reached = [plan.step.x in way.leaves, *[name in start for name in names], *[s in way.leaves for s in leaves]]
    needed = [need and there for need, there in zip(needed, reached, strict=True)]
    sources = {
        (name, t): _source(plan, (name, t))
        for name, at in wanted
        for t in ([at] if isinstance(at, int) else range(T) if name in plan.step.aliases else [])
    }
    sources = {key: source for key, source in sources.items() if way.meets(plan, T, *source)}
    outside: dict[str, Any] = {}
    last: dict[str, Any] = {}
    for name in names:
        whole = gs.get((name, OUTSIDE))
        if (name, EVERY) in gs:
            whole = gs[name, EVERY] if whole is None else whole + gs[name, EVERY]
        single = {t: g for (n, t), g in gs.items() if n == name and isinstance(t, int)}
        end = None
        if plan.carried[name] is not None:  # what is carried back begins with the gradient of the last step
            end = single.pop(T - 1, None)
        if single:
            whole = np.zeros_like(record.states[name][1:]) if whole is None else np.array(whole)
            for t, g in single.items():
                whole[t] += g
        outside[name] = None if whole is None else np.ascontiguousarray(whole)
        last[name] = end
    wants = {leaf for leaf, need in zip(leaves, needed[1 + len(names) :], strict=True) if need}
    grads = {leaf: np.empty(leaf.shape, made.dtype) for leaf in wants}
    wants_x = needed[0] or any(name == "" for name, _ in sources.values())
    dx, begin, totals = made.backward(record, outside, last, wants_x, wants, grads, False)
    for leaf in wants - plan.sinks.keys() - plan.stepwise.keys():
        grads[leaf][...] = 0.0
    if wants_x and dx is None:
        dx = np.zeros_like(record.xs)
    found = [
        dx if needed[0] else None,
        *[begin[name] if need else None for name, need in zip(names, needed[1:], strict=False)],
        *[grads.get(leaf) for leaf in leaves],
    ]
    met: dict[Key, Any] = {
        key: dx[t] if name == "" else begin[name] if t < 0 else totals[name][t] for key, (name, t) in sources.items()
    }
    for name in [name for name, at in wanted if at == EVERY]:
        if name not in plan.step.aliases:
            if any(name in step.totals for step in way.steps):
                met[name, EVERY] = totals[name]
        elif any((name, t) in met for t in range(T)):
            zeros = np.zeros_like(record.states[name][0])
            met[name, EVERY] = np.stack([met.get((name, t), zeros) for t in range(T)])
    if not way.exact and any(bool(np.isnan(a).any()) for a in (*found, *met.values()) if a is not None):
        # It may be 0 times an infinite derivative, where no gradient comes: done again without going there.
        return _recorded_vjp(gs, record, needed, wanted, inputs, context, False)
    return found, met


def _source(plan: Plan, key: Any) -> tuple[str, int]:
    """The state and timestep whose tensor output `key` is: its own, or that of an alias; -1 is where it started."""
    name, t = key
    while t >= 0 and name in plan.step.aliases:
        name, back = plan.step.aliases[name]
        t -= back
    return name, t


_scan.vjp_many(_scan_vjp)


def _recorded_vjp(
    gs: Mapping[Key, Any],
    record: Any,
    needed: Sequence[bool],
    wanted: set[Key],
    inputs: Sequence[Any],
    context: Context,
    higher: bool,
) -> tuple[list[Any], dict[Key, Any]]:
    """The same by the traced step once more, one timestep after another on the tape; itself on it if `higher`."""
    names, leaves = context.names, context.leaves
    plan: Plan = context.program.plan
    T = record.T
    with engine.recording(), _silent(not higher):
        tensors = [a if isinstance(a, Tensor) else Tensor(a) for a in inputs]
        own: list[Tensor] = [a * 1.0 if a.dtype.kind == "f" else a for a in tensors]
        own = [
            value if value.node is not None or not need else Tensor(value.data, requires_grad=True)
            for value, need in zip(own, needed, strict=True)
        ]
        current = dict(zip(names, own[1:], strict=False))
        known: dict[Symbol, Any] = dict(zip(leaves, own[1 + len(names) :], strict=True))
        order = [s for s in ancestors(plan.step.new.values()) if s.op is not None]
        steps: dict[str, list[Any]] = {name: [] for name in names}
        origins: dict[str, list[Any]] = {name: [] for name in names}  # what a total gradient is asked for
        inner_x = [own[0][t] for t in range(T)]
        first = dict(current)
        for t in range(T):
            values = dict(known)
            values[plan.step.x] = inner_x[t]
            for given, s in plan.step.given.items():
                array = record.given[given][t]
                values[s] = Tensor(array != 0 if given == "mask" else array)
            values.update({s: current[name] for name, s in plan.step.states.items()})
            for s in order:
                values[s] = _apply(s, values, plan.step.graph.B, record.B)
            current = {name: values[s] for name, s in plan.step.new.items()}
            for name in names:
                steps[name].append(current[name])
                origins[name].append(values[plan.origins.get(name, plan.step.new[name])])
        loss: Any = None
        for (name, at), g in gs.items():
            value = steps[name][at] if isinstance(at, int) else ops.stack(steps[name])
            term = ops.sum(value * g)
            loss = term if loss is None else loss + term
        states: dict[Key, Any] = {}
        for key in [(name, t) for name, at in wanted for t in (range(T) if at == EVERY else [at])]:
            name, t = _source(plan, key)
            states[key] = inner_x[t] if name == "" else first[name] if t < 0 else origins[name][t]
        chosen = [value.node if need else None for value, need in zip(own, needed, strict=True)]
        goals = {n for n in [*[value.node for value in states.values()], *chosen] if n is not None}
        found: dict[Node, Any] = {}
        if loss is not None and loss.node is not None:
            one = np.ones_like(loss.data)
            found = engine.flow(loss.node, Tensor(one) if higher else one, goals, Tensor, higher=higher)
        results = [None if n is None else found.get(n) for n in chosen]
        met: dict[Key, Any] = {key: found[value.node] for key, value in states.items() if value.node in found}
        for name, at in wanted:
            if at == EVERY and any((name, t) in met for t in range(T)):
                zeros = np.zeros_like(record.states[name][0])
                rows = [met.get((name, t), zeros) for t in range(T)]
                met[name, EVERY] = ops.stack(rows) if higher else np.stack(rows)
    return results, met


def _silent(on: bool) -> Any:
    """Without NumPy's warnings, as compiled code runs."""
    return np.errstate(all="ignore") if on else contextlib.nullcontext()
