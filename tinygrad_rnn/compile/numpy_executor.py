"""Runs a plan with NumPy alone: Python source made for one cell, whose ops write into memory that is used again.

`NumPyProgram.source` is that source. `before` and `after` work on the rows of all timesteps at once (in pieces that fit
a cache), `loop` and `back` on one timestep after another. Products are not merged: side by side, matrices save a tenth
of the product for 50 rows of 128, nothing for 64 of 512, and the elementwise ops on their columns take twice as long.

sigmoid(x) is 1 / (1 + exp(-x)): a few ulp also where it is near zero, where 1/2 + tanh(x / 2) / 2 is not. NumPy's
warnings are off while a program runs: exp(-x) may overflow, to the right result. `anomaly()` finds what is not finite.
"""

from __future__ import annotations

import functools
import keyword
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinygrad_rnn import ops
from tinygrad_rnn.compile.schedule import CHEAP, Plan
from tinygrad_rnn.compile.trace import MATMUL, SUM_TO, TRANSPOSE, Symbol, ancestors, total
from tinygrad_rnn.compile.workspace import Pool, carve
from tinygrad_rnn.engine import Op

Array = np.ndarray[Any, Any]
Kind = tuple[tuple[int, ...], np.dtype[Any]]
POOL = Pool()
PIECE_BYTES = 1 << 21  # of the widest value: rows that `before` and `after` work on at a time

ONE: dict[Any, str] = {ops.neg: "negative", ops.abs: "absolute", ops.sign: "sign"} | {
    op: op.__name__
    for op in (
        ops.exp, ops.log, ops.log1p, ops.sqrt, ops.sin, ops.cos, ops.tanh, ops.exp2, ops.expm1, ops.log2, ops.log10,
        ops.floor, ops.ceil, ops.trunc, ops.rint,
    )
}  # fmt: skip
TWO: dict[Any, str] = {ops.add: "add", ops.sub: "subtract", ops.mul: "multiply", ops.div: "divide"} | {
    op: op.__name__ for op in (ops.maximum, ops.minimum, ops.floor_divide, ops.remainder)
}
TESTS: dict[Any, str] = {
    op: op.__name__
    for op in (ops.equal, ops.not_equal, ops.greater, ops.greater_equal, ops.less, ops.less_equal)
}  # fmt: skip
POWERS = {2.0: "square", 0.5: "sqrt", -1.0: "reciprocal", 1.0: "positive"}
REDUCED = {"sum": "add", "max": "maximum", "min": "minimum"}
CALLED = {
    name: getattr(np, name)
    for name in {
        *ONE.values(), *TWO.values(), *TESTS.values(), *POWERS.values(), "power", "logaddexp", "dot", "matmul", "copyto"
    }
}  # fmt: skip


@dataclass
class Record:
    """What a forward pass leaves for the backward one. `states` are (T + 1, B, ...): before, and after every step."""

    T: int
    B: int
    xs: Array
    weights: dict[Symbol, Array]
    given: Mapping[str, Array]
    states: dict[str, Array]
    rows: dict[str, Array]


@dataclass
class Section:
    """A generated function: its variables with a row per timestep, those without, and its scratch, by name -> kind."""

    name: str
    wide: bool
    lines: list[str] = field(default_factory=list)
    steps: dict[str, str] = field(default_factory=dict)
    fixed: dict[str, str] = field(default_factory=dict)
    scratch: dict[str, Kind] = field(default_factory=dict)
    run: Callable[..., None] | None = None


class NumPyProgram:
    """Final. The NumPy code of one cell, for one dtype, with or without a mask. It does whatever can be traced."""

    name = "numpy"

    def __init__(self, plan: Plan, dtype: Any) -> None:
        self.plan = plan
        self.dtype = np.dtype(dtype)
        self.reason = "asked for"
        self.rows: dict[str, Kind] = {}  # what lasts from the forward pass to the backward one, per timestep
        self.back_rows: dict[str, Kind] = {}
        self.places: dict[Symbol, str] = {}
        self.back_places: dict[Symbol, str] = {}
        self.names: dict[str, Any] = dict(CALLED)
        forward = set(ancestors(plan.step.new.values()))
        self.once = [s for s in plan.once if s in forward]
        self.once_back = [s for s in plan.once if s not in forward]
        self._write()

    # ------------------------------------------------------------------------------------------ running

    def forward(
        self, xs: Array, start: Mapping[str, Array], weights: Mapping[Symbol, Array], given: Mapping[str, Array]
    ) -> Record:
        """Run xs (T, B, I) from `start`, with mask and noise `given` (T, B, ...) by the keys of `Step.given`.

        Everything is C-contiguous and of the program's dtype; the mask too.
        """
        T, B, _ = xs.shape
        states: dict[str, Array] = {}
        for name, s in self.plan.step.states.items():
            held, _ = carve(POOL, {name: (T + 1, *s.shape)}, self.dtype)
            states[name] = held[name]
            states[name][0] = start[name]
        rows = _allocated(self.rows, T)
        record = Record(T, B, xs, _with(weights, self.once, self.copied), given, states, rows)
        arrays = self._given(record)
        with np.errstate(all="ignore"):
            self._run_wide(self.before, arrays, T * B)
            self._run_steps(self.loop, arrays, 1)
        return record

    def stepper(self, B: int, weights: Mapping[Symbol, Array], inputs: Array | None = None) -> Callable[..., Any]:
        """One timestep after another of B rows; `inputs` are not looked at."""

        def step(x: Array, state: Mapping[str, Array], chosen: Array | None = None) -> dict[str, Array]:
            return {name: held[-1] for name, held in self.forward(x, state, weights, {}).states.items()}

        return step

    def backward(
        self,
        record: Record,
        outside: Mapping[str, Array | None],
        last: Mapping[str, Array | None],
        wants_x: bool,
        wants: set[Symbol],
        grads: Mapping[Symbol, Array],
        again: bool,
    ) -> tuple[Array | None, dict[str, Array], dict[str, Array]]:
        """The gradients of x (T, B, I), of the start states, and of every state as it came out, (T, B, ...) by name.

        `outside` (T, B, ...) is the gradient that reached each state from outside, `last` (B, ...) what is added for
        the last one. Gradients of the weights in `wants` are written to `grads`, added to what is there with `again`.
        """
        plan, T, B = self.plan, record.T, record.B
        rows = _allocated({key: kind for key, kind in self.back_rows.items() if key != "dx"}, T)
        if "dx" in self.back_rows and (wants_x or not self.dx_late):
            rows.update(_allocated({"dx": self.back_rows["dx"]}, T))
        known = Record(
            T,
            B,
            record.xs,
            _with(record.weights, self.once_back, self.copied),
            record.given,
            record.states,
            record.rows,
        )
        arrays = {**self._given(known), **rows}
        carry: dict[str, Array] = {}
        for name, s in plan.step.states.items():
            end, g = last.get(name), outside.get(name)
            carry[name] = np.zeros(s.shape, self.dtype) if end is None else np.array(end, self.dtype)
            arrays[f"carry {name}"] = carry[name]
            arrays[f"outside {name}"] = np.broadcast_to(np.zeros((), self.dtype), (T, *s.shape)) if g is None else g
        for w in plan.stepwise:
            arrays[f"sum {w.name}"] = grads[w] if w in wants else np.empty(w.shape, self.dtype)
            if w not in wants or not again:
                arrays[f"sum {w.name}"][...] = 0.0
        with np.errstate(all="ignore"):
            self._run_steps(self.back, arrays, -1)
            self._run_wide(self.after if wants_x else self.after_weights, arrays, T * B)
            for w, sinks in plan.sinks.items():
                if w in wants:
                    for k, sink in enumerate(sinks):
                        a = None if sink.a is None else arrays[self._operand(sink.a)]
                        _sink(a, arrays[self._operand(sink.g)], grads[w], again or k > 0)
        for name, value in plan.carried.items():
            if value is None:
                carry[name][...] = 0.0
        totals = {name: arrays[self.back_places[value]] for name, value in plan.totals.items()}
        return arrays["dx"] if plan.dx is not None and wants_x else None, carry, totals

    def _given(self, record: Record) -> dict[str, Array]:
        """Arrays by key: with a row per timestep, or fixed."""
        arrays = {"x": record.xs, **record.rows}
        arrays.update(record.given)
        if "mask" in arrays:
            arrays["mask"] = arrays["mask"] != 0
        for name, held in record.states.items():
            arrays[f"state {name}"] = held[:-1]
            arrays[f"next {name}"] = held[1:]
        for s, array in record.weights.items():
            arrays[f"weight {s.name}"] = array
        return arrays

    def _run_steps(self, section: Section, arrays: Mapping[str, Array], order: int) -> None:
        if section.run is None:
            return
        views = [_views(arrays[key], order) for key in section.steps.values()]
        fixed = [arrays[key] for key in section.fixed.values()]
        scratch = _carved({name: (shape, dtype) for name, (shape, dtype) in section.scratch.items()})
        section.run(zip(*views, strict=True), *fixed, *[scratch[name] for name in section.scratch])

    def _run_wide(self, section: Section, arrays: Mapping[str, Array], rows: int) -> None:
        if section.run is None:
            return
        flat = [_flat(arrays[key], rows) for key in section.steps.values()]
        fixed = [arrays[key] for key in section.fixed.values()]
        widest = max((a[:1].nbytes for a in flat), default=1)
        piece = min(rows, max(64, PIECE_BYTES // max(widest, 1)))
        scratch = _carved({name: ((piece, *shape[1:]), dtype) for name, (shape, dtype) in section.scratch.items()})
        for low in range(0, rows, piece):
            n = min(piece, rows - low)
            section.run(n, *[a[low : low + n] for a in flat], *fixed, *[scratch[name][:n] for name in section.scratch])

    # ------------------------------------------------------------------------------------------ sections

    def _write(self) -> None:
        plan, step = self.plan, self.plan.step
        self.static = {*plan.weights, *plan.once}
        before, loop, back, after = self._sections()
        operands = {s for sinks in plan.sinks.values() for sink in sinks for s in (sink.g, sink.a) if s is not None}
        late = set(after)
        reads = {name: self._reads(nodes) for name, nodes in (("loop", loop), ("back", back), ("after", after))}
        # a value of the forward pass that is computed again is kept only for those that come before that
        behind = (reads["back"] | reads["after"] | operands) - set(back) - late

        self.places[step.x] = "x"
        self.places.update({s: key for key, s in step.given.items()})
        for name, s in step.states.items():
            self.places[s] = f"state {name}"
            self.places[step.new[name]] = f"next {name}"
        self.before = self._section("before", before, reads["loop"] | behind, self.places, self.rows, True)
        free = [s for s in before if s in self.places and s not in behind and s not in set(step.new.values())]
        self.loop = self._section("loop", loop, behind, self.places, self.rows, False, free)

        self.back_places.update({s: place for s, place in self.places.items() if s not in set(back) | late})
        if plan.dx is not None:
            self.back_places[plan.dx] = "dx"
            self.back_rows["dx"] = (plan.dx.shape, plan.dx.dtype)
        self.dx_late = plan.dx in late
        lasting = reads["after"] | operands | set(plan.totals.values())
        self.back = self._section("back", back, lasting, self.back_places, self.back_rows, False)
        outputs = operands | ({plan.dx} if plan.dx is not None else set())
        self.after = self._section("after", after, outputs, self.back_places, self.back_rows, True)
        needed = set(ancestors(operands))
        short = [s for s in after if s in needed]
        self.after_weights = self._section("after_weights", short, operands, self.back_places, self.back_rows, True)

        stepped = {*self.loop.fixed.values(), *self.back.fixed.values()}
        self.copied = {s for s in plan.once if f"weight {s.name}" in stepped}
        sections = (self.before, self.loop, self.back, self.after, self.after_weights)
        self.source = "\n\n".join([_function(section) for section in sections if section.lines])
        exec(compile(self.source, f"<numpy code of {id(self):x}>", "exec"), self.names)
        for section in sections:
            if section.lines:
                section.run = self.names[section.name]

    def _sections(self) -> tuple[list[Symbol], list[Symbol], list[Symbol], list[Symbol]]:
        """The lists of the plan, with what cannot be done for all rows at once moved into the loops."""
        plan = self.plan
        ready = {plan.step.x, *plan.step.given.values(), *self.static}
        before = []
        for s in plan.before:
            if s in plan.rows and ready.issuperset(s.parents):
                before.append(s)
                ready.add(s)
        ahead = set(before)
        loop = _ordered([*plan.loop, *(s for s in plan.before if s not in ahead)])

        forward = {*before, *loop}
        again = {s for s in plan.back if s in forward and s.op in CHEAP and s in plan.rows}
        after = set(plan.after)
        operands = {s for sinks in plan.sinks.values() for sink in sinks for s in (sink.g, sink.a) if s is not None}
        waiting = [*operands, *(a for s in after for a in s.parents)]
        while waiting:  # cheaper to compute again than to be stored by the loop
            s = waiting.pop()
            if s in again and s not in after:
                after.add(s)
                waiting.extend(s.parents)

        def wide(s: Symbol) -> bool:
            return s in plan.rows and all(a in plan.rows or a in self.static for a in s.parents)

        apart = {s for s in ancestors(s for s in after if not wide(s)) if s in after}
        return before, loop, _ordered([*plan.back, *apart]), _ordered(after - apart)

    def _reads(self, nodes: list[Symbol]) -> set[Symbol]:
        return {a for s in nodes for a in s.parents} - set(nodes) - self.static

    def _operand(self, s: Symbol) -> str:
        return self.back_places[s]

    def _section(
        self,
        name: str,
        nodes: list[Symbol],
        lasting: set[Symbol],
        places: dict[Symbol, str],
        rows: dict[str, Kind],
        wide: bool,
        free: Sequence[Symbol] = (),
    ) -> Section:
        writer = _Writer(self, Section(name, wide), nodes, lasting, places, rows, free)
        writer.write()
        return writer.section


# ------------------------------------------------------------------------------------------------- code


class _Writer:
    """Final. Writes the function of a section, op by op, and gives every value its memory.

    A value that is `lasting` goes to a buffer with a row per timestep, others to scratch, in place of an operand that
    nobody reads any more where the op allows it. `free` are values from before whose rows may be overwritten once read.
    """

    def __init__(
        self,
        program: NumPyProgram,
        section: Section,
        nodes: list[Symbol],
        lasting: set[Symbol],
        places: dict[Symbol, str],
        rows: dict[str, Kind],
        free: Sequence[Symbol],
    ) -> None:
        self.program = program
        self.plan = program.plan
        self.section = section
        self.nodes = nodes
        self.lasting = lasting
        self.places = places
        self.rows = rows
        self.free = set(free)
        self.inside = set(nodes)
        self.backward = section.name in ("back", "after", "after_weights")
        self.local: dict[Symbol, str] = {}  # value -> variable
        self.slot: dict[Symbol, str] = {}  # value -> variable of the memory that it owns, when that can be used again
        self.roots: dict[Symbol, set[Symbol]] = {}  # value -> those whose memory it may be a view of
        self.spare: dict[Kind, list[str]] = {}
        self.spare_rows: dict[Kind, list[str]] = {}
        self.last: dict[Symbol, int] = {}
        self.used = {*program.names, *keyword.kwlist, "steps", "rows", "add", "maximum", "minimum"}

    def write(self) -> None:
        self._lifetimes()
        chained = self._chained() if self.section.wide else {}
        if self.section.name == "back":
            self._seeds()
        for i, s in enumerate(self.nodes):
            self._node(i, s, chained)
            self._release(i, s)
        if self.section.name == "back":
            for w, g in self.plan.stepwise.items():
                acc = self._variable(f"sum {w.name}", f"d_{w.name}", self.section.fixed)
                self.section.lines.append(f"add({acc}, {self._value(g)}, {acc})  # gradient of {w.name}")

    # -------------------------------------------------------------------------------------- variables

    def _named(self, wish: str) -> str:
        base = re.sub(r"\W", "_", wish)
        if not base or base[0].isdigit():
            base = f"_{base}"
        name, k = base, 1
        while name in self.used:
            k += 1
            name = f"{base}_{k}"
        self.used.add(name)
        return name

    def _variable(self, key: str, wish: str, table: dict[str, str]) -> str:
        """The variable for the array of this key."""
        for name, held in table.items():
            if held == key:
                return name
        name = self._named(wish)
        table[name] = key
        return name

    def _label(self, s: Symbol) -> str:
        graph = s.graph
        at = graph.gradient_at.get(s.number)
        if at is not None:
            return f"d_{graph.taps.get(at.number, at.name)}"
        return graph.taps.get(s.number, s.name)

    def _value(self, a: Any) -> str:
        """The expression for an argument that is a symbol."""
        if a in self.local:
            return self.local[a]
        if a in self.program.static:
            return self._variable(f"weight {a.name}", a.name, self.section.fixed)
        key = self.places[a]
        wish = f"{key[5:]}_next" if key.startswith("next ") else self._label(a)
        return self._variable(key, wish, self.section.steps)

    def _constant(self, value: Any) -> str:
        """A number as an array of no dimensions: NumPy takes one faster than a Python number."""
        text = re.sub(r"\W", "_", repr(float(value)).replace("-", "m"))
        name = f"c{text}"
        self.program.names[name] = np.array(value, self.program.dtype)
        self.used.add(name)
        return name

    # ---------------------------------------------------------------------------------------- memory

    def _lifetimes(self) -> None:
        """For every value the last op that reads it, or a view of it."""
        for i, s in enumerate(self.nodes):
            roots = {s}
            if not self._direct(s):
                roots.update(*[self.roots.get(a, {a}) for a in s.parents])
            self.roots[s] = roots
            for root in {s}.union(*[self.roots.get(a, {a}) for a in s.parents]):
                self.last[root] = i
        ends = list(self.plan.stepwise.values()) if self.section.name == "back" else []
        for s in ends:
            for root in self.roots.get(s, {s}):
                self.last[root] = len(self.nodes)

    def _kind(self, s: Symbol) -> Kind:
        return s.shape, s.dtype

    def _release(self, i: int, s: Symbol) -> None:
        for a in {s}.union(*[self.roots.get(a, {a}) for a in s.parents]):
            if self.last.get(a) != i:
                continue
            if a in self.slot:
                self.spare.setdefault(self._kind(a), []).append(self.slot.pop(a))
            elif a in self.free:
                self.free.discard(a)
                self.spare_rows.setdefault(self._kind(a), []).append(self.places[a])

    def _scratch(self, kind: Kind) -> str:
        waiting = self.spare.get(kind)
        if waiting:
            return waiting.pop()
        name = self._named(f"s{len(self.section.scratch)}")
        self.section.scratch[name] = kind
        return name

    def _new_rows(self, s: Symbol) -> str:
        waiting = self.spare_rows.get(self._kind(s))
        if waiting:
            return waiting.pop()
        key = f"{'d ' if self.backward else ''}{s.name}"
        self.rows[key] = self._kind(s)
        return key

    def _chained(self) -> dict[Symbol, Symbol]:
        """Values computed straight where the lasting value will be that they are turned into in place."""
        users: dict[Symbol, int] = {}
        for s in self.nodes:
            for a in s.args:
                if isinstance(a, Symbol):
                    users[a] = users.get(a, 0) + 1
        target: dict[Symbol, Symbol] = {}
        for s in reversed(self.nodes):
            if s not in self.lasting and s not in target:
                continue
            for k, a in enumerate(s.args):
                if (
                    isinstance(a, Symbol)
                    and a in self.inside
                    and a not in self.lasting
                    and a not in self.places  # a new state has its own
                    and users[a] == 1
                    and self._direct(a)
                    and self._may_overwrite(s, k)
                ):
                    target[a] = target.get(s, s)
                    break
        return target

    # ------------------------------------------------------------------------------------------- ops

    def _direct(self, s: Symbol) -> bool:
        """Whether the op can write to given memory: its dtypes are the usual ones."""
        op, usual = s.op, self.program.dtype
        name = op.__name__ if op is not None else ""
        symbols = s.parents
        if op is MATMUL:
            return s.dtype == usual and all(a.dtype == usual and len(a.shape) >= 2 for a in s.args)
        if op in TESTS:
            return s.dtype == bool and all(a.dtype == usual for a in symbols)
        if op is ops.where:
            condition, *values = s.args
            return (
                isinstance(condition, Symbol)
                and condition.dtype == bool
                and s.dtype == usual
                and all(a.dtype == usual for a in values if isinstance(a, Symbol))
            )
        if op is ops.mul and s.dtype == usual and any(a.dtype == usual for a in symbols):
            return all(a.dtype in (usual, bool) for a in symbols)
        if s.dtype != usual or any(a.dtype != usual for a in symbols):
            return False
        if op is ops.pow:
            return isinstance(s.args[0], Symbol)
        return (
            op in ONE or op in TWO or op in (total, ops.relu, ops.sigmoid, ops.softplus) or name in (*REDUCED, "clip")
        )

    def _may_overwrite(self, s: Symbol, k: int) -> bool:
        """Whether the result of `s` may be written over its k-th argument."""
        a = s.args[k]
        if not self._direct(s) or self._kind(a) != self._kind(s):
            return False
        if s.op is total and sum(b is a for b in s.args) > 1:  # read again after the first addition
            return False
        if s.op is MATMUL or s.op in TESTS or (s.op is not None and s.op.__name__ in REDUCED):
            return False
        return s.op is not ops.where or (k == 2 and sum(b is a for b in s.args) == 1)

    def _seeds(self) -> None:
        """The gradient that reaches each new state: from outside, and what was carried back."""
        self.last.update({seed: self.last.get(seed, -1) for seed in self.plan.seeds.values()})
        for name, seed in self.plan.seeds.items():
            g = self._variable(f"outside {name}", f"g_{name}", self.section.steps)
            carry = self._variable(f"carry {name}", f"carry_{name}", self.section.fixed)
            if seed in self.lasting:
                self.places[seed] = self._new_rows(seed)
                out = self._variable(self.places[seed], seed.name, self.section.steps)
            else:
                out = self.slot[seed] = self._scratch(self._kind(seed))
            self.local[seed] = out
            self.section.lines.append(f"add({g}, {carry}, {out})  # the gradient that reaches {name}")

    def _node(self, i: int, s: Symbol, chained: Mapping[Symbol, Symbol]) -> None:
        assert s.op is not None
        note = f"  # {s.op.__name__}"
        at = s.graph.gradient_at.get(s.number)
        if at is not None:
            note += f": gradient at {s.graph.taps.get(at.number, at.name)}"
        elif s.number in s.graph.taps:
            note += f": {s.graph.taps[s.number]}"
        where = s.where or (at.where if at is not None else "")
        if where:
            note += f", {where}"
        carries = [name for name, value in self.plan.carried.items() if value is s] if self.backward else []
        extra: list[str] = []
        over: int | None = None
        out = ""
        if not self._direct(s):
            value = self._general(s)
            out = self._named(self._label(s))
            self.section.lines.append(f"{out} = {value}{note}")
            self.local[s] = out
            if s in self.lasting or s in self.places:
                self.places.setdefault(s, "")
                self.places[s] = self.places[s] or self._new_rows(s)
                extra.append(self._variable(self.places[s], self._label(s), self.section.steps))
            extra += [self._variable(f"carry {n}", f"carry_{n}", self.section.fixed) for n in carries]
            self.section.lines += [f"copyto({place}, {out})" for place in extra]
            return
        if s in chained:
            whole = chained[s]
            if whole not in self.places:
                self.places[whole] = self._new_rows(whole)
            out = self._variable(self.places[whole], self._label(whole), self.section.steps)
        elif s in self.places or s in self.lasting:
            if s not in self.places:
                for k, a in enumerate(s.args):  # rows that are read here for the last time can take the result
                    if not isinstance(a, Symbol) or a not in self.free or self.last[a] != i:
                        continue
                    if self._may_overwrite(s, k):
                        self.free.discard(a)
                        self.places[s] = self.places[a]
                        break
                else:
                    self.places[s] = self._new_rows(s)
            key = self.places[s]
            wish = f"{key[5:]}_next" if key.startswith("next ") else self._label(s)
            out = self._variable(key, wish, self.section.steps)
            extra = [self._variable(f"carry {n}", f"carry_{n}", self.section.fixed) for n in carries]
        elif carries:
            out, *extra = [self._variable(f"carry {n}", f"carry_{n}", self.section.fixed) for n in carries]
        else:
            for k, a in enumerate(s.args):
                if isinstance(a, Symbol) and a in self.slot and self.last[a] == i and self._may_overwrite(s, k):
                    out = self.slot[s] = self.slot.pop(a)
                    break
            else:
                out = self.slot[s] = self._scratch(self._kind(s))
        args = [self._value(a) if isinstance(a, Symbol) else self._constant(a) for a in s.args]
        over = args.index(out) if out in args else None
        lines = self._lines(s, args, out, over)
        lines[0] += note
        self.section.lines += [*lines, *(f"copyto({place}, {out})" for place in extra)]
        self.local[s] = out

    def _lines(self, s: Symbol, args: list[str], out: str, over: int | None) -> list[str]:
        """The statements that compute `s` into `out`, which is the argument number `over` or none of them."""
        op = s.op
        assert op is not None
        name = op.__name__
        if op is MATMUL:
            flat = all(len(a.shape) == 2 for a in s.args)
            return [f"{'dot' if flat else 'matmul'}({args[0]}, {args[1]}, {out})"]
        if op in ONE:
            return [f"{ONE[op]}({args[0]}, {out})"]
        if op is ops.maximum or op is ops.minimum:  # which take `out` by keyword only
            return [f"{TWO[op]}({args[0]}, {args[1]}, out={out})"]
        if op in TWO or op in TESTS:
            return [f"{TWO.get(op) or TESTS[op]}({args[0]}, {args[1]}, {out})"]
        if op is total:
            terms = list(args)
            if over is not None:
                terms.insert(0, terms.pop(over))
            if len(terms) == 1:
                return [f"copyto({out}, {terms[0]})"]
            return [f"add({terms[0]}, {terms[1]}, {out})", *(f"add({out}, {term}, {out})" for term in terms[2:])]
        if op is ops.relu:
            return [f"maximum({args[0]}, {self._constant(0.0)}, out={out})"]
        if op is ops.sigmoid:
            one = self._constant(1.0)
            return [
                f"negative({args[0]}, {out})",
                f"exp({out}, {out})",
                f"add({out}, {one}, {out})",
                f"divide({one}, {out}, {out})",
            ]
        if op is ops.softplus:
            return [f"logaddexp({args[0]}, {self._constant(0.0)}, {out})"]
        if op is ops.pow:
            short = POWERS.get(s.args[1]) if not isinstance(s.args[1], Symbol) else None
            return [f"{short}({args[0]}, {out})" if short else f"power({args[0]}, {args[1]}, {out})"]
        if op is ops.where:
            first = [] if over == 2 else [f"copyto({out}, {args[2]})"]
            return [*first, f"copyto({out}, {args[1]}, where={args[0]})"]
        if name == "clip":
            low, high = (self._constant(s.static[end]) for end in ("low", "high"))
            return [f"maximum({args[0]}, {low}, out={out})", f"minimum({out}, {high}, out={out})"]
        keep = s.static.get("keepdims", True)
        return [f"{REDUCED[name]}.reduce({args[0]}, {s.static['axes']}, None, {out}, {keep})"]

    def _general(self, s: Symbol) -> str:
        """A call of the op itself, which makes a new array or a view."""
        assert s.op is not None
        args = []
        for a in s.args:
            if isinstance(a, Symbol):
                args.append(self._value(a))
                continue
            name = self._named("k")
            self.program.names[name] = a
            args.append(name)
        call = self._named(s.op.__name__)
        if self.section.wide and "shape" in s.static:
            self.program.names[call] = functools.partial(_of_rows, s.op, s.static)
            args.insert(0, "rows")
        else:
            self.program.names[call] = functools.partial(s.op.value, **s.static)
        return f"{call}({', '.join(args)})"


def _of_rows(op: Op, static: Mapping[str, Any], rows: int, *args: Any) -> Any:
    """An op that makes something of a given shape, for another number of rows."""
    return op.value(*args, **{**static, "shape": (rows, *static["shape"][1:])})


def _function(section: Section) -> str:
    """The source of a section."""
    variables = ", ".join([*section.fixed, *section.scratch])
    if section.wide:
        head = f"def {section.name}(rows, {', '.join([*section.steps, *section.fixed, *section.scratch])}):"
        return "\n".join([head, *[f"    {line}" for line in section.lines]]) + "\n"
    head = f"def {section.name}(steps, {variables}):" if variables else f"def {section.name}(steps):"
    names = ", ".join(section.steps)
    return "\n".join([head, f"    for {names}, in steps:", *[f"        {line}" for line in section.lines]]) + "\n"


# ----------------------------------------------------------------------------------------------- arrays


def _ordered(symbols: Iterable[Symbol]) -> list[Symbol]:
    return sorted(set(symbols), key=lambda s: s.number)


def _views(array: Array, order: int) -> Any:
    """A view per timestep, forward or backward."""
    if array.ndim > 1:
        return array[::order]
    return [array[t, ...] for t in range(len(array))[::order]]


def _flat(array: Array, rows: int) -> Array:
    """(T, B, ...) as (T B, ...)."""
    return array.reshape(rows, *array.shape[2:])


def _carved(kinds: Mapping[str, Kind]) -> dict[str, Array]:
    """Arrays of these kinds, not initialised."""
    found: dict[str, Array] = {}
    for dtype in {dtype for _, dtype in kinds.values()}:
        arrays, _ = carve(POOL, {name: shape for name, (shape, held) in kinds.items() if held == dtype}, dtype)
        found.update(arrays)
    return found


def _allocated(kinds: Mapping[str, Kind], T: int) -> dict[str, Array]:
    """Arrays with a row of these kinds for every timestep."""
    return _carved({name: ((T, *shape), dtype) for name, (shape, dtype) in kinds.items()})


def _with(weights: Mapping[Symbol, Array], once: list[Symbol], copied: set[Symbol]) -> dict[Symbol, Array]:
    """`weights` and what is computed from them, in the order of `once`.

    A transposed matrix is copied where it is in `copied`: OpenBLAS multiplies a few rows by it up to a third faster.
    """
    values: dict[Symbol, Any] = dict(weights)
    with np.errstate(all="ignore"):
        for s in once:
            if s not in values:
                assert s.op is not None
                args = [values[a] if isinstance(a, Symbol) else a for a in s.args]
                value = np.asarray(s.op.value(*args, **s.static))
                values[s] = np.ascontiguousarray(value) if s in copied and s.op is TRANSPOSE else value
    return values


def _sink(a: Array | None, g: Array, out: Array, add: bool) -> None:
    """Write a^T g over all rows to `out`, or without `a` the sum of g (T, B, ...) to the shape of `out`; or add it."""
    rows = g.shape[0] * g.shape[1]
    if a is not None:
        left, right = _flat(a, rows).T, _flat(g, rows)
    elif g.ndim == 3 and out.ndim == 1 and out.shape[0] == g.shape[2]:
        left, right = np.ones(rows, g.dtype), _flat(g, rows)  # as a product: a third of the time of a sum
    else:
        value = SUM_TO.value(g, shape=out.shape, source=g.shape)
        np.copyto(out, value + out if add else value)
        return
    if add:
        out += np.dot(left, right)
    else:
        np.dot(left, right, out)
