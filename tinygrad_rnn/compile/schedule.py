"""When each part of a traced step is computed: before, inside or behind the loop over time.

1. What needs parameters alone is left to the tape: it is computed once, and the loop sees it as a weight.
2. Sums are taken apart: what does not depend on the carried state is added up `before` the loop, for all timesteps at
   once, and the products with the state are added to it, in place, inside.
3. An output map, y = h @ C, that no later step reads, is computed `behind` the loop for all timesteps at once. Its
   pullback runs `ahead` of the backward loop, which then adds it to the gradient from outside.
4. The backward graph comes from the same vjp rules. Inside its loop stays what the carried gradient needs; the gradient
   of the input and everything else that has a row per timestep comes `after`, and the gradient of a weight is one
   product, or one sum, over all T * B rows.
5. A value of the forward graph that the backward one reads is kept for all timesteps, unless it is cheap to compute
   again from what is kept anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinygrad_rnn import ops
from tinygrad_rnn.cell import Cell
from tinygrad_rnn.compile.trace import (
    GETITEM,
    MATMUL,
    SUM_TO,
    TRANSPOSE,
    Graph,
    Step,
    Symbol,
    ancestors,
    depends,
    frozen,
    pullback,
    total,
    trace_step,
)
from tinygrad_rnn.engine import Op

CHEAP = frozenset(
    {
        ops.add, ops.sub, ops.mul, ops.neg, ops.abs, ops.sign, ops.relu, ops.maximum, ops.minimum, ops.where,
        ops.equal, ops.not_equal, ops.greater, ops.greater_equal, ops.less, ops.less_equal, ops.logical_and,
        ops.logical_or, ops.logical_xor, ops.logical_not, ops.isnan, ops.isinf, ops.isfinite, ops.floor, ops.ceil,
        ops.trunc, ops.rint, total,
    }
)  # fmt: skip
COSTLY = frozenset(
    {
        ops.div, ops.pow, ops.exp, ops.log, ops.log1p, ops.sqrt, ops.sin, ops.cos, ops.tanh, ops.sigmoid, ops.softplus,
        ops.exp2, ops.expm1, ops.log2, ops.log10, ops.erf, ops.erfc, ops.floor_divide, ops.remainder,
    }
)  # fmt: skip
# Elementwise too, but not in machine code.
OTHERS = frozenset(
    {
        ops.tan, ops.sinh, ops.cosh, ops.arcsin, ops.arccos, ops.arctan, ops.arcsinh, ops.arccosh, ops.arctanh,
        ops.arctan2, ops.logaddexp,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Sink:
    """A part of the gradient of a weight, summed up over all rows: a^T g, or the sum of g to the weight's shape."""

    g: Symbol
    a: Symbol | None = None


@dataclass
class Plan:
    """Everything that is computed for a cell, and when. Symbols are in the order in which they can be computed.

    `weights` maps a leaf of the loop to the symbol it stands for in the step as it was traced, whose value the tape
    computes from the parameters, by way of `derived`. `seeds` are the gradients that reach the new states from outside
    and from the next timestep, `totals` what that makes with the paths inside the step, `carried` what goes on to the
    step before. `rows` are the values with a row for every row of the batch, `reach` the leaves that a gradient of a
    state reaches, `origins` the values of which a new state is a copy, `flows` and `ways` what `program.flow` and
    `way_back` found. `stepwise` are gradients of weights that are no sink: they are added up in the loop.
    """

    step: Step
    traced: Step
    weights: dict[Symbol, Symbol]
    derived: list[Symbol] = field(default_factory=list)
    once: list[Symbol] = field(default_factory=list)
    before: list[Symbol] = field(default_factory=list)
    loop: list[Symbol] = field(default_factory=list)
    behind: list[Symbol] = field(default_factory=list)
    seeds: dict[str, Symbol] = field(default_factory=dict)
    totals: dict[str, Symbol] = field(default_factory=dict)
    kept: set[Symbol] = field(default_factory=set)
    ahead: list[Symbol] = field(default_factory=list)
    back: list[Symbol] = field(default_factory=list)
    after: list[Symbol] = field(default_factory=list)
    carried: dict[str, Symbol | None] = field(default_factory=dict)
    dx: Symbol | None = None
    sinks: dict[Symbol, list[Sink]] = field(default_factory=dict)
    stepwise: dict[Symbol, Symbol] = field(default_factory=dict)
    rows: set[Symbol] = field(default_factory=set)
    reach: dict[str, set[Symbol]] = field(default_factory=dict)
    origins: dict[str, Symbol] = field(default_factory=dict)
    flows: dict[frozenset[str], Any] = field(default_factory=dict)
    ways: dict[tuple[frozenset[str], int], Any] = field(default_factory=dict)

    @property
    def forward(self) -> list[Symbol]:
        """What the way forward computes."""
        return [*self.before, *self.loop, *self.behind]

    @property
    def backward(self) -> list[Symbol]:
        """What the way back computes, with the values of the way forward that it computes again."""
        return [*self.ahead, *self.back, *self.after]

    @property
    def early_seeds(self) -> list[Symbol]:
        """The gradients that reach states computed `behind` the loop: from outside alone, for all timesteps at once."""
        behind = set(self.behind)
        return [seed for name, seed in self.seeds.items() if self.step.new[name] in behind]

    @property
    def loop_seeds(self) -> list[Symbol]:
        """The gradients that reach the other new states: from outside, and from the next timestep."""
        early = set(self.early_seeds)
        return [seed for seed in self.seeds.values() if seed not in early]


def make_plan(cell: Cell, B: int, dtype: Any, masked: bool, noisy: bool = False) -> Plan:
    """The schedule of `cell` for B rows. Raises Untraceable when the step cannot be traced."""
    traced = trace_step(cell, B, dtype, masked, noisy)
    step, weights, origins = _regrouped(traced)
    plan = Plan(step, traced, weights, origins=origins)
    plan.derived = ancestors(source for source in weights.values() if source.kind != "param")
    leaves = step.leaves
    order = [s for s in ancestors(step.new.values()) if s.op is not None]
    plan.once = [s for s in order if _once(s, weights)]
    order = [s for s in order if s not in set(plan.once)]
    plan.rows = _rows(order, leaves)
    of_state = depends(order, set(step.states.values()))
    ready = {*leaves, *weights, *plan.once} - set(step.states.values())
    early: list[Symbol] = []
    for s in order:
        if s not in of_state and s in plan.rows and ready.issuperset(s.parents):
            early.append(s)
            ready.add(s)
    plan.before = _worth_hoisting(early)
    hoisted = set(plan.before)
    inside = [s for s in order if s not in hoisted]
    behind = _read_out(step, inside, plan.rows, {*leaves, *weights, *plan.once})
    plan.loop = [s for s in inside if s not in behind]
    plan.behind = [s for s in inside if s in behind]
    _derive(plan)
    return plan


# ------------------------------------------------------------------------------------- weights and sums


def _regrouped(traced: Step) -> tuple[Step, dict[Symbol, Symbol], dict[str, Symbol]]:
    """The same step in a graph of its own: parameter-only values as leaves, sums taken apart by when they are known."""
    order = ancestors(traced.new.values())
    varying = depends(order, set(traced.leaves))
    bare: set[Symbol] = set()  # new states made of parameters alone, and of no other new state
    for value in sorted(traced.new.values(), key=lambda value: value.number):
        if value not in varying:
            bare.add(value)
            varying = depends(order, varying | {value})
    of_state = depends(order, {*traced.states.values(), *bare})
    uses: dict[Symbol, int] = {}
    for s in [*[a for b in order for a in b.parents], *traced.new.values()]:
        uses[s] = uses.get(s, 0) + 1

    graph = Graph(None, traced.graph.B)
    made: dict[Symbol, Symbol] = {}
    weights: dict[Symbol, Symbol] = {}
    x = made[traced.x] = graph.leaf("x", "x", traced.x.shape, traced.x.dtype)
    states = {name: graph.leaf("state", name, s.shape, s.dtype) for name, s in traced.states.items()}
    made.update({traced.states[name]: s for name, s in states.items()})
    given = {key: graph.leaf(s.kind, s.name, s.shape, s.dtype) for key, s in traced.given.items()}
    made.update({traced.given[key]: s for key, s in given.items()})

    def known(arg: Any) -> Any:
        """The counterpart of an argument: a leaf of its own for what needs parameters alone."""
        if not isinstance(arg, Symbol) or arg in made:
            return made.get(arg, arg) if isinstance(arg, Symbol) else arg
        name = arg.name if arg.kind == "param" else f"w{len(weights)}"
        leaf = made[arg] = graph.leaf("weight", name, arg.shape, arg.dtype)
        weights[leaf] = arg
        return leaf

    def put(
        op: Op, args: Iterable[Any], like: Symbol, static: dict[str, Any] | None = None, whole: bool = True
    ) -> Symbol:
        new = graph.apply(op, tuple(args), static or {})
        new.where = new.where or like.where
        tap = traced.graph.taps.get(like.number)
        if tap and whole:  # a part of a sum is not what was tapped
            graph.taps.setdefault(new.number, tap)
        return new

    def terms(s: Symbol, sign: int) -> list[tuple[int, Any]]:
        """The summands of a sum: additions inside it that nobody else reads are part of it."""
        out: list[tuple[int, Any]] = []
        for k, arg in enumerate(s.args):
            own = -sign if k and s.op is ops.sub else sign
            if isinstance(arg, Symbol) and arg in inside:
                out += terms(arg, own)
            else:
                out.append((own, arg))
        return out

    for name, value in traced.new.items():
        if value in bare:  # chosen, whatever the state is, as a value of this timestep: who reads it reads the state
            leaf = known(value)
            sees = put(ops.greater_equal, (put(ops.abs, (states[name],), value), 0.0), value)
            made[value] = put(ops.where, (sees, leaf, leaf), value)

    sums = {s for s in order if s.op in (ops.add, ops.sub) and s in varying and s not in bare}
    inside = {
        a for s in sums for a in s.parents if a in sums and uses[a] == 1 and a.shape == s.shape and a.dtype == s.dtype
    }
    for s in reversed(order):  # a sum without a product stays as the author wrote it
        if s in sums and s not in inside and not any(isinstance(a, Symbol) and a.op is MATMUL for _, a in terms(s, 1)):
            inside -= set(s.parents)
    results = set(traced.new.values())
    slices: dict[Any, Symbol] = {}  # one that is cut out twice would be copied, kept and multiplied twice
    for s in order:
        if s.op is None or s not in varying or s in inside or s in bare:
            continue
        if s.op is GETITEM and s not in results and s.number not in traced.graph.taps:
            found = slices.setdefault((known(s.args[0]), frozen(s.static)), s)
            if found is not s:
                made[s] = made[found]
                continue
        if s in sums:
            parts = terms(s, 1)
            if any(isinstance(a, Symbol) and a.op is MATMUL for _, a in parts):
                early = [p for p in parts if isinstance(p[1], Symbol) and p[1] in varying and p[1] not in of_state]
                late = [p for p in parts if isinstance(p[1], Symbol) and p[1] in of_state]
                once = [p for p in parts if not (isinstance(p[1], Symbol) and p[1] in varying)]

                def term(p: tuple[int, Any], s: Symbol = s) -> Any:
                    sign, value = p
                    if sign > 0 or not isinstance(value, Symbol):
                        return known(value) if sign > 0 else -value
                    if value not in varying:  # -b is a weight too, and the tape knows its gradient
                        return known(traced.graph.apply(ops.neg, (value,), {}))
                    return put(ops.neg, (known(value),), s, whole=False)

                if not early:  # nothing to take out: as the author wrote it, to the last bit
                    made[s] = put(total, [term(p) for p in parts], s)
                    continue
                values = [term(p) for p in early + once]
                if (
                    late
                    and len(values) > 1
                    and np.broadcast_shapes(*[v.shape for v in values if isinstance(v, Symbol)]) == s.shape
                ):
                    values = [put(total, values, s, whole=False)]
                values += [term(p) for p in late]
                made[s] = put(total, values, s) if len(values) > 1 else values[0]
                continue
        made[s] = put(s.op, [known(a) for a in s.args], s, s.static)
    new: dict[str, Symbol] = {}
    origins: dict[str, Symbol] = {}
    for name, value in traced.new.items():
        result = known(value)
        if not _own(result):  # a copy, which can be written to the place of the state
            origins[name] = result
            result = put(ops.mul, (result, 1.0), value)
        new[name] = result
    return Step(graph, x, given, states, {}, new, traced.aliases), weights, origins


def _apart(s: Symbol, taken: set[Symbol]) -> Symbol:
    """`s`, or a copy of it where it cannot be written to a place of its own."""
    while s in taken or not (_own(s) or s.op in (MATMUL, total)):
        s = s.graph.apply(ops.mul, (s, 1.0), {})
    return s


def _own(s: Symbol) -> bool:
    """Whether `s` is computed elementwise, so that it can be written anywhere; a copy of anything else can."""
    return s.op in COSTLY or (s.op in CHEAP and s.op is not total)


# ------------------------------------------------------------------------------------------------- rows


def rowwise(s: Symbol, rows: set[Symbol]) -> bool:
    """Whether row b of `s` is a function of row b of those of its arguments that have rows (axis 0 is the batch)."""
    op, static, shape = s.op, s.static, s.shape
    of_rows = [a for a in s.parents if a in rows]
    if not of_rows or not shape or any(a.dtype.kind not in "fb" for a in s.parents):
        return False
    if op in CHEAP or op in COSTLY or op in OTHERS:
        return all(len(a.shape) == len(shape) for a in of_rows) and all(
            a in rows or len(a.shape) < len(shape) or a.shape[0] == 1 for a in s.parents
        )
    if op is MATMUL:
        a, b = s.args
        return a in rows and b not in rows and len(b.shape) == 2 and len(a.shape) == 2
    name = getattr(op, "__name__", "")
    B = s.graph.B
    if name in ("sum", "max", "min", "softmax", "log_softmax", "logsumexp", "norm", "scale"):
        return all(axis != 0 for axis in static["axes"])
    if name in ("cumsum", "flip", "concatenate", "stack", "sort"):
        return bool(static["axis"] != 0) and len(of_rows) == len(s.args)
    if name == "transpose":
        return bool(static["axes"][0] == 0)
    if name in ("getitem", "scatter"):
        index = static["index"]
        if not isinstance(index, tuple) or not isinstance(index[0], slice) or index[0] != slice(None):
            return False
        return all(isinstance(part, slice | int) for part in index[1:])
    if name == "pad":
        return bool(static["widths"][0] == (0, 0))
    if name == "reshape":
        return shape[0] == B and s.args[0].shape[0] == B
    if name == "broadcast_to":
        return len(s.args[0].shape) == len(shape)
    if name == "sum_to":  # for B = 1 the sum over all rows looks the same, and is
        return len(shape) == len(s.args[0].shape) and shape[0] == B
    return name in ("astype", "clip", "share")


def _rows(order: Iterable[Symbol], leaves: Iterable[Symbol]) -> set[Symbol]:
    rows = set(leaves)
    for s in order:
        if s.op is not None and rowwise(s, rows):
            rows.add(s)
    return rows


def _worth_hoisting(early: list[Symbol]) -> list[Symbol]:
    """Those that cost something, or that something costly is computed from; the rest is cheaper inside the loop."""
    worth: set[Symbol] = set()
    for s in reversed(early):
        heavy = s.op not in CHEAP or (s.op is total and any(a.op is MATMUL for a in s.parents))
        if heavy or s in worth:
            worth.add(s)
            worth.update(s.parents)
    return [s for s in early if s in worth]


def _read_out(step: Step, inside: list[Symbol], rows: set[Symbol], ready: set[Symbol]) -> set[Symbol]:
    """Those of `inside` that no later step reads, around a product: with what it alone reads, and what reads it.

    Elementwise work without a product stays: in the loop it costs no trip to memory.
    """
    users: dict[Symbol, list[Symbol]] = {}
    for s in inside:
        for a in s.parents:
            users.setdefault(a, []).append(s)
    carried = set(ancestors(value for name, value in step.new.items() if step.states[name] in users))
    free: set[Symbol] = set()  # what could be computed when the loop has ended
    for s in reversed(inside):
        if s not in carried and s in rows and all(a in rows or a in ready for a in s.parents):
            if free.issuperset(users.get(s, ())):
                free.add(s)
    found = depends(inside, {s for s in free if s.op is MATMUL})
    for s in reversed(inside):
        if s in free and s in users and found.issuperset(users[s]):
            found.add(s)
    return found


def _pulled_out(plan: Plan, looped: list[Symbol]) -> set[Symbol]:
    """Those of `looped` that depend on no gradient of the loop's, up to and from a product with an early seed."""
    in_loop = depends(looped, set(plan.loop_seeds))
    known = {*plan.step.leaves, *plan.weights, *plan.once, *plan.early_seeds, *plan.forward}
    free: list[Symbol] = []
    for s in looped:
        if s not in in_loop and s in plan.rows and known.issuperset(s.parents):
            free.append(s)
            known.add(s)
    of_seed = depends(free, set(plan.early_seeds))
    products = {s for s in free if s in of_seed and s.op is MATMUL}
    found = depends(free, products)
    wanted = set(ancestors(found))
    return {s for s in free if s in wanted}


# --------------------------------------------------------------------------------------------- backward


def _derive(plan: Plan) -> None:
    step = plan.step
    graph = step.graph
    graph.merging = True
    fresh = len(graph.symbols)
    plan.seeds = {name: graph.leaf("seed", f"d{name}", s.shape, s.dtype) for name, s in step.new.items()}
    outputs = {value: plan.seeds[name] for name, value in step.new.items()}  # new states are distinct values
    found = pullback(
        outputs, [step.x, *step.states.values(), *plan.weights, *step.new.values(), *plan.origins.values()]
    )
    plan.totals = {name: found[plan.origins.get(name, value)] for name, value in step.new.items()}
    # What anybody else reads has a place of its own; for B = 1 the gradient of a weight may be that of a state.
    taken = {*plan.totals.values(), *(a for s in graph.symbols[fresh:] for a in s.parents)}
    taken |= {found[weight] for weight in plan.weights if weight in found}
    plan.dx = found.get(step.x)
    if plan.dx is not None:  # first: what is carried is gone after its timestep, so that nobody can copy it then
        plan.dx = _apart(plan.dx, taken)
        taken.add(plan.dx)
    for name, state in step.states.items():
        gradient = found.get(state)
        if gradient is not None:
            gradient = _apart(gradient, taken)
            taken.add(gradient)
        plan.carried[name] = gradient
    new = [s for s in graph.symbols[fresh:] if s.op is not None]
    known = {*plan.rows, *step.leaves, *plan.seeds.values()}
    for s in new:
        if rowwise(s, known):
            known.add(s)
    plan.rows = known

    needed: list[Symbol] = []
    for weight in plan.weights:
        gradient = found.get(weight)
        if gradient is None:
            continue
        parts = gradient.args if gradient.op is total and gradient not in known else (gradient,)
        sinks = [_as_sink(part, known) for part in parts]
        if all(sink is not None for sink in sinks):
            plan.sinks[weight] = [sink for sink in sinks if sink is not None]
            needed += [s for sink in plan.sinks[weight] for s in (sink.g, sink.a) if s is not None]
        else:
            plan.stepwise[weight] = gradient
    plan.once += [s for s in new if _once(s, plan.weights)]
    is_new = set(new) - set(plan.once)
    inside = [s for s in [*plan.carried.values(), *plan.stepwise.values(), *plan.totals.values()] if s is not None]
    if plan.dx is not None:
        (needed if plan.dx in known else inside).append(plan.dx)
    looped = {s for s in ancestors(inside) if s in is_new}
    late = {s for s in ancestors(needed) if s in is_new}
    ahead = _pulled_out(plan, [s for s in new if s in looped])
    plan.ahead = [s for s in new if s in ahead]
    plan.back = [s for s in new if s in looped - ahead]
    for name, gradient in plan.carried.items():
        if gradient in ahead:  # known at every timestep, but the step before is to read it: a copy
            plan.carried[name] = copy = graph.apply(ops.mul, (gradient, 1.0), {})
            plan.back.append(copy)
            plan.rows.add(copy)
            is_new.add(copy)
    plan.after = [s for s in new if s in late - looped]
    _keep(plan, is_new, needed)


def _once(s: Symbol, weights: Mapping[Symbol, Symbol]) -> bool:
    """Whether `s` is computed from weights alone (a transposed matrix)."""
    return all(leaf in weights for leaf in ancestors([s]) if leaf.op is None)


def _as_sink(s: Symbol, rows: set[Symbol]) -> Sink | None:
    """The gradient of a weight as a sum over rows; None where it is something else."""
    if s.op is MATMUL:
        a, g = s.args
        if a.op is TRANSPOSE and a.static["axes"] == (1, 0) and a.args[0] in rows and g in rows:
            return Sink(g, a.args[0])
    if s.op is SUM_TO and s.args[0] in rows:
        return Sink(s.args[0])
    if s in rows and len(s.shape) >= 1 and s.shape[0] == 1 == s.graph.B:  # B = 1: nothing was left to sum
        return Sink(s)
    return None


def _keep(plan: Plan, is_new: set[Symbol], operands: Iterable[Symbol]) -> None:
    """Decide which forward values are kept for all timesteps; the cheap ones join the backward lists instead."""
    done = {*is_new, *plan.once, *plan.step.new.values()}  # a new state is kept anyway
    read = {a for s in plan.backward for a in s.parents if a not in done and a.op is not None}
    read |= {s for s in operands if s not in done and s.op is not None}
    in_memory = {a for s in plan.forward if s.op is MATMUL for a in s.args[:1] if a.op is not None}
    plan.kept = {s for s in read if s.op not in CHEAP or s in in_memory or s.op is total}

    def available(s: Any) -> bool:
        if not isinstance(s, Symbol) or s.op is None or s in plan.kept or s in done:
            return True
        return s.op in CHEAP and s.op is not total and all(available(a) for a in s.args)

    again: set[Symbol] = set()
    for s in sorted(read - plan.kept, key=lambda s: s.number):
        if s in plan.rows and available(s):
            again |= _recomputed(s, plan.kept | done)
        else:
            plan.kept.add(s)
    again -= plan.kept
    for section in (plan.ahead, plan.back):
        reads = again & set(ancestors(section))
        section[:] = sorted({*section, *reads}, key=lambda s: s.number)
        again -= reads
    plan.after = sorted({*plan.after, *again}, key=lambda s: s.number)


def _recomputed(s: Symbol, kept: set[Symbol]) -> set[Symbol]:
    """`s` and what has to be computed again for it: everything below that is not kept."""
    found = {s}
    stack = [s]
    while stack:
        for parent in stack.pop().parents:
            if parent not in kept and parent.op is not None and parent not in found:
                found.add(parent)
                stack.append(parent)
    return found
