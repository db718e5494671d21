"""Where each value of a plan lives, and in which order blocks and products alternate.

A `Section` is a part of a plan that runs on some rows: of all timesteps before and behind the loop, ahead of and after
the loop backward; of one timestep inside these. Its elementwise nodes form blocks; the products between two blocks read
what earlier blocks stored.
A value is stored where a product, another block or another section reads it; the rest lives in registers.

Per row a value is `size` numbers, one after the other. Places:
  rows     a buffer with a row for every timestep and every row of the batch (T * B rows)
  scratch  a buffer with a row for every row in work, used again at every timestep
  state    the states: T + 1 times B rows, of which a step reads row t and writes row t + 1
  given    x, the mask, noise, a weight, or what the executor computes from weights
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tinygrad_rnn.compile.schedule import CHEAP, COSTLY, Plan
from tinygrad_rnn.compile.trace import MATMUL, Symbol, total


class Unsupported(Exception):
    """What the compiled executor cannot do; the text names the op and the author's line."""


@dataclass(frozen=True)
class Place:
    """`size` numbers of every row, from `offset`, in the buffer `name` whose rows are `stride` long."""

    kind: str
    name: str
    stride: int
    offset: int = 0


@dataclass(frozen=True)
class Product:
    """c (rows, n) = a b, or c += a b."""

    a: Place
    b: Symbol
    c: Place
    add: bool
    where: str


@dataclass
class Block:
    """Elementwise work on one row at a time: `nodes` in order, each with the pass over the row in which it is done."""

    nodes: list[Symbol] = field(default_factory=list)
    passes: dict[Symbol, int] = field(default_factory=dict)


@dataclass
class Section:
    """What runs on some rows: the products of a stage, then the block of that stage, stage by stage."""

    name: str
    products: list[list[Product]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)


@dataclass
class Layout:
    """The sections of a plan, where each value is on both ways, and the buffers: name -> numbers per row."""

    plan: Plan
    before: Section
    loop: Section
    behind: Section
    ahead: Section
    back: Section
    after: Section
    places: dict[Symbol, list[Place]]
    back_places: dict[Symbol, list[Place]]
    rows: dict[str, int]
    back_rows: dict[str, int]
    scratch: dict[str, int]
    carry: dict[str, int]
    sinks: list[tuple[Symbol, Place | None, Place, int]]
    arguments: dict[Symbol, list[Any]]


def size(s: Symbol) -> int:
    """Numbers per row."""
    return math.prod(s.shape[1:])


def renamed(s: Symbol) -> Symbol | None:
    """The symbol that `s` is another shape of, row for row; None where it is a value of its own."""
    if s.op is None:
        return None
    name = s.op.__name__
    if name == "reshape" or (name in ("broadcast_to", "sum_to") and size(s.args[0]) == size(s)):
        return s.args[0]  # type: ignore[no-any-return]
    return None


def cut(s: Symbol) -> tuple[Symbol, int] | None:
    """What `s` is a slice of along the last axis, and from where; None where it is no such slice."""
    if s.op is None or s.op.__name__ not in ("getitem", "scatter"):
        return None
    whole = s.args[0] if s.op.__name__ == "getitem" else s
    part = s if s.op.__name__ == "getitem" else s.args[0]
    index = s.static["index"]
    if len(whole.shape) != 2 or len(part.shape) != 2 or len(index) != 2 or index[0] != slice(None):
        return None
    if not isinstance(index[1], slice) or index[1].step not in (None, 1):
        return None
    start = index[1].indices(whole.shape[1])[0]
    return (s.args[0], start)


def _is_slice(s: Symbol) -> bool:
    """Whether `s` is a part of the memory of another value."""
    return s.op is not None and s.op.__name__ == "getitem" and cut(s) is not None


def _parts(s: Symbol) -> list[tuple[int, Symbol]] | None:
    """What `joined` says, with parts that may be put together themselves."""
    if s.op is None:
        return None
    if s.op.__name__ == "concatenate" and s.static["axis"] == len(s.shape) - 1 and math.prod(s.shape[1:-1]) == 1:
        starts = [sum(s.static["sizes"][:i]) for i in range(len(s.args))]
        return list(zip(starts, s.args, strict=True))
    scattered = s.args if s.op is total else (s,)
    cuts = [
        cut(a) if isinstance(a, Symbol) and a.op is not None and a.op.__name__ == "scatter" else None for a in scattered
    ]
    if any(c is None for c in cuts):
        return None
    parts = sorted([(c[1], c[0]) for c in cuts if c is not None], key=lambda p: p[0])
    ends = [start + size(part) for start, part in parts]
    if any(end > start for end, (start, _) in zip(ends, parts[1:], strict=False)):
        return None
    return parts


def joined(s: Symbol) -> list[tuple[int, Symbol]] | None:
    """The parts (from, symbol) that `s` is put together from along the last axis; None where it is no such thing.

    A part that is put together itself is told by its own parts.
    """
    parts = _parts(s)
    if parts is None:
        return None
    found: list[tuple[int, Symbol]] = []
    for start, part in parts:
        whole = part
        while (other := renamed(whole)) is not None:
            whole = other
        inner = joined(whole)
        found += [(start, part)] if inner is None else [(start + at, piece) for at, piece in inner]
    return found


REDUCTIONS = ("sum", "max", "sum_to")
FORWARD = ("before", "loop", "behind")


def is_reduction(s: Symbol) -> bool:
    """Whether `s` is one number per row, from all numbers of a row."""
    return s.op is not None and s.op.__name__ in REDUCTIONS and size(s) == 1 and size(s.args[0]) > 1


def check(plan: Plan) -> None:
    """Raise Unsupported for what no compiled code exists for."""
    if plan.stepwise:
        weight = next(iter(plan.stepwise))
        raise Unsupported(f"the gradient of {weight.name} is no product and no sum over rows")
    if plan.dx is not None and plan.dx not in plan.rows:
        raise Unsupported("the rows of the batch are not independent")
    if any(value.op is None for value in plan.step.new.values()):
        raise Unsupported("a state is passed on as it is, or is the input")
    if any(not size(s) for s in plan.step.states.values()):
        raise Unsupported("an empty state")
    for s in [*plan.forward, *plan.backward]:
        name = s.op.__name__ if s.op is not None else ""
        where = f" ({s.where})" if s.where else ""
        if s not in plan.rows:
            raise Unsupported(f"{name} mixes the rows of the batch{where}")
        if s.op is MATMUL or renamed(s) is not None or is_reduction(s) or joined(s) is not None:
            continue
        if name == "getitem" and cut(s) is not None:
            continue
        if name == "scatter":
            raise Unsupported(f"{name}{where}")
        if name == "broadcast_to" and size(s.args[0]) == 1:
            continue
        if s.op in CHEAP or s.op in COSTLY or name in ("clip", "share"):
            if any(isinstance(a, Symbol) and (size_of(a, plan) not in (1, size(s))) for a in s.args):
                raise Unsupported(f"{name} with broadcasting inside a row{where}")
            if name == "pow" and not all(isinstance(a, int | float) for a in s.args[1:]):
                raise Unsupported(f"pow with a variable exponent{where}")
            continue
        raise Unsupported(f"{name}{where}")
    for sinks in plan.sinks.values():
        for sink in sinks:
            if sink.a is None:
                weight = next(w for w, held in plan.sinks.items() if held is sinks)
                if math.prod(weight.shape) not in (1, size(sink.g)):
                    raise Unsupported(f"the gradient of {weight.name}, a sum inside a row")


def size_of(a: Symbol, plan: Plan) -> int:
    """Numbers per row of an argument; of a weight, which has no rows, all its numbers."""
    return size(a) if a in plan.rows or a.kind in ("x", "state", "seed", "mask", "noise") else math.prod(a.shape)


# ---------------------------------------------------------------------------------------------- layout


def make_layout(plan: Plan) -> Layout:
    """Places and stages for everything in `plan`. Raises Unsupported."""
    check(plan)
    return _Builder(plan).layout()


class _Builder:
    """Final. Goes through the sections in order and gives every value that is stored its place."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.places: dict[Symbol, list[Place]] = {}
        self.rows: dict[str, int] = {}
        self.back_rows: dict[str, int] = {}
        self.scratch: dict[str, int] = {}
        self.arguments: dict[Symbol, list[Any]] = {}
        self.users: dict[Symbol, list[Symbol]] = {}
        self.once = set(plan.once)
        for s in [*plan.forward, *plan.backward]:
            for a in s.parents:
                self.users.setdefault(self.root(a), []).append(s)
        self.outputs: set[Symbol] = {*plan.step.new.values(), *(s for s in plan.carried.values() if s is not None)}
        if plan.dx is not None:
            self.outputs.add(plan.dx)
        self.operands = {
            self.root(s) for sinks in plan.sinks.values() for sink in sinks for s in (sink.g, sink.a) if s is not None
        }

    def base(self, s: Symbol) -> Symbol:
        """The value that `s` is, under whatever shape."""
        while (other := renamed(s)) is not None:
            s = other
        return s

    def root(self, s: Symbol) -> Symbol:
        """The value in whose memory `s` is: slices have none of their own."""
        s = self.base(s)
        while _is_slice(s):
            s = self.base(s.args[0])
        return s

    def place(self, s: Symbol) -> Place:
        """Where a stored value is. Slices are where the whole is."""
        s = self.base(s)
        if s in self.places:
            return self.places[s][0]
        found = cut(s)
        if found is None or s.op is None or s.op.__name__ == "scatter":
            raise Unsupported(f"{s.op.__name__ if s.op else s.kind} of a value that is not stored ({s.where})")
        whole = self.place(found[0])
        return Place(whole.kind, whole.name, whole.stride, whole.offset + found[1])

    def layout(self) -> Layout:
        plan, step = self.plan, self.plan.step
        self.places[step.x] = [Place("given", "x", size(step.x))]
        for key, given in step.given.items():
            self.places[given] = [Place("given", key, size(given))]
        for name, state in step.states.items():
            self.places[state] = [Place("state", name, size(state))]
            self.places[step.new[name]] = [Place("next", name, size(state))]
        carry: dict[str, int] = {}
        for name, seed in plan.seeds.items():
            self.places[plan.totals[name]] = [Place("rows", f"d {name}", size(seed))]
            self.back_rows[f"d {name}"] = size(seed)
            carry[name] = size(seed)
            value = plan.carried[name]
            if value is not None:
                self.places[value] = [Place("carry", name, size(seed))]
        if plan.dx is not None:
            self.places[plan.dx] = [Place("rows", "dx", size(plan.dx))]
        before = self.section("before", plan.before, self.rows)
        loop = self.section("loop", plan.loop, self.rows)
        behind = self.section("behind", plan.behind, self.rows)
        forward = dict(self.places)
        for s in {*plan.backward} & {*plan.forward}:
            self.places.pop(s, None)  # computed again, and kept elsewhere if at all
        ahead = self.section("ahead", [*plan.early_seeds, *plan.ahead], self.back_rows)
        back = self.section("back", [*plan.loop_seeds, *plan.back], self.back_rows)
        after = self.section("after", plan.after, self.back_rows)
        sinks = [
            (weight, None if sink.a is None else self.place(sink.a), self.place(sink.g), size(sink.g))
            for weight, parts in plan.sinks.items()
            for sink in parts
        ]
        return Layout(
            plan,
            before,
            loop,
            behind,
            ahead,
            back,
            after,
            forward,
            self.places,
            self.rows,
            self.back_rows,
            self.scratch,
            carry,
            sinks,
            self.arguments,
        )

    def label(self, s: Symbol, rows: dict[str, int]) -> str:
        tap = s.graph.taps.get(s.number)
        name = f"{tap} {s.name}" if tap else s.name
        return f"d {name}" if rows is self.back_rows else name

    def new_place(self, s: Symbol, lasting: bool, rows: dict[str, int]) -> Place:
        name = self.label(s, rows)
        (rows if lasting else self.scratch)[name] = size(s)
        return Place("rows" if lasting else "scratch", name, size(s))

    def section(self, name: str, nodes: list[Symbol], rows: dict[str, int]) -> Section:
        """Stages, blocks and places of `nodes`; `rows` is where buffers that outlive the section are noted."""
        inside = set(nodes)
        forward = {*self.plan.forward}
        again = {*self.plan.backward} & forward  # computed once more where it is read

        def read_elsewhere(s: Symbol) -> bool:
            others = [u for u in self.users.get(s, []) if u not in inside]
            return any(u in forward for u in others) if s in again and name in FORWARD else bool(others)

        lasting = {s for s in nodes if read_elsewhere(s) or s in self.plan.kept or s in self.operands}
        out = Section(name)
        ready: dict[Symbol, int] = {}  # the block from which on a value can be read
        block_of: dict[Symbol, int] = {}
        absorbed: dict[Symbol, Symbol] = {}  # a product -> the sum it is added to
        for s in nodes:
            if s.op is total and joined(s) is None:
                for a in s.args:
                    if isinstance(a, Symbol) and a.op is MATMUL and a in inside and a.shape == s.shape:
                        if len(self.users[a]) == 1 and a not in lasting and a not in self.outputs:
                            absorbed[a] = s
        stage_products: dict[int, list[Product]] = {}

        def when(a: Any) -> int:
            if not isinstance(a, Symbol):
                return 0
            a = self.base(a)
            if a not in inside:
                return 0
            if _is_slice(a):
                return when(a.args[0])
            return ready[a]

        def stage(a: Any) -> int:
            """The stage at which a product of `a` can run."""
            a = self.base(a)
            if _is_slice(a):
                return stage(a.args[0])
            return 0 if a not in inside else ready[a] + 1

        def multiply(p: Symbol, c: Place, add: bool, at: int) -> None:
            stage_products.setdefault(at, []).append(
                Product(self.operand(p.args[0], lasting, rows), p.args[1], c, add, p.where)
            )

        stored_init: dict[Symbol, list[Any]] = {}
        for s in nodes:
            if s.op is None:  # the gradient that reaches a new state: from outside, and carried
                block_of[s] = ready[s] = 0
                continue
            if renamed(s) is not None or s in absorbed:
                continue
            if _is_slice(s):
                continue
            if s.op is MATMUL:
                at = stage(s.args[0])
                place = self.places[s][0] if s in self.places else self.new_place(s, s in lasting, rows)
                self.places[s] = [place]
                multiply(s, place, False, at)
                ready[s] = at
                continue
            products = [a for a in s.parents if absorbed.get(a) is s] if s.op is total else []
            if products:
                rest = [a for a in s.args if not (isinstance(a, Symbol) and absorbed.get(a) is s)]
                ahead = self.base(rest[0]) if len(rest) == 1 and isinstance(rest[0], Symbol) else None
                exclusive = (
                    ahead is not None
                    and ahead not in inside
                    and ahead in self.places
                    and self.places[ahead][0].kind == "rows"
                    and name in ("loop", "behind")
                    and ahead not in self.plan.kept
                    and len(self.users[ahead]) == 1
                    and size(ahead) == size(s)
                )
                constant = all(not isinstance(a, Symbol) or a in self.plan.weights or a in self.once for a in rest)
                if exclusive and ahead is not None and s not in self.places:
                    place = self.places[ahead][0]
                    self.places[s] = [place]
                    ats = [stage(p.args[0]) for p in products]
                    for p, at in zip(products, ats, strict=True):
                        multiply(p, place, True, at)
                    ready[s] = max(ats)
                elif not rest or not (constant and s not in lasting and s not in self.places):
                    place = self.places[s][0] if s in self.places else self.new_place(s, s in lasting, rows)
                    self.places[s] = [place]
                    first = -1
                    if rest:
                        first = max(when(a) for a in rest)
                        block_of[s] = first
                        stored_init[s] = rest
                    ats = [max(stage(p.args[0]), first + 1) for p in products]
                    order = sorted(range(len(products)), key=ats.__getitem__)
                    for k in order:
                        multiply(products[k], place, bool(rest) or k != order[0], ats[k])
                    ready[s] = max(ats)
                else:
                    place = self.new_place(products[0], False, rows)
                    self.places[products[0]] = [place]
                    ats = [stage(p.args[0]) for p in products]
                    order = sorted(range(len(products)), key=ats.__getitem__)
                    for k in order:
                        multiply(products[k], place, k != order[0], ats[k])
                    stored_init[s] = [products[0], *rest]
                    block_of[s] = ready[s] = max(ats)
                continue
            first = max((when(a) for a in s.args), default=0)
            for _, part in joined(s) or []:  # parts that nobody stores here are copied, before the block
                if _is_slice(self.base(part)) and self.root(part) in block_of:
                    first = max(first, when(part) + 1)
            block_of[s] = ready[s] = first
        self.finish(out, nodes, block_of, stored_init, stage_products, lasting, rows)
        return out

    def operand(self, a: Symbol, lasting: set[Symbol], rows: dict[str, int]) -> Place:
        """Where the left side of a product is; a value that only lived in a register gets a place."""
        a = self.base(a)
        found = cut(a)
        if found is not None and a.op is not None and a.op.__name__ == "getitem":
            whole = self.operand(found[0], lasting, rows)
            return Place(whole.kind, whole.name, whole.stride, whole.offset + found[1])
        if a not in self.places:
            self.places[a] = [self.new_place(a, a in lasting, rows)]
        return self.places[a][0]

    def finish(
        self,
        out: Section,
        nodes: list[Symbol],
        block_of: dict[Symbol, int],
        init: dict[Symbol, list[Any]],
        products: dict[int, list[Product]],
        lasting: set[Symbol],
        rows: dict[str, int],
    ) -> None:
        """Passes within the blocks, and places for what has to be stored."""
        inside = set(nodes)
        count = 1 + max([*block_of.values(), *products], default=-1)
        out.blocks = [Block() for _ in range(count)]
        out.products = [products.get(i, []) for i in range(count)]
        args = {s: init.get(s, list(s.args)) for s in block_of}
        self.arguments.update(init)
        for s in nodes:
            if s not in block_of:
                continue
            block = out.blocks[block_of[s]]
            at = 0
            for a in args[s]:
                if not isinstance(a, Symbol):
                    continue
                b = self.base(a)
                sliced = cut(b) if b.op is not None and b.op.__name__ == "getitem" else None
                while sliced is not None:  # a slice is read from memory, one pass after the whole was written
                    b = self.base(sliced[0])
                    if b in block.passes:
                        at = max(at, block.passes[b] + 1)
                        if b not in self.places:
                            self.places[b] = [self.new_place(b, b in lasting, rows)]
                    sliced = cut(b) if b.op is not None and b.op.__name__ == "getitem" else None
                if b in block.passes:
                    later = is_reduction(b) or joined(b) is not None
                    at = max(at, block.passes[b] + (1 if later else 0))
            block.nodes.append(s)
            block.passes[s] = at
        # what is read across blocks, passes or sections is stored
        for s in nodes:
            if s not in block_of or s in self.places:
                continue
            home = out.blocks[block_of[s]]
            readers = [u for u in self.users.get(s, []) if u in inside]
            across = any(
                u in block_of and (block_of[u] != block_of[s] or (home.passes[u] != home.passes[s] and size(s) > 1))
                for u in readers
            )
            if s in lasting or across or joined(s) is not None:
                self.places[s] = [self.shared(s, out, block_of, inside) or self.new_place(s, s in lasting, rows)]
        for s in nodes:
            if s in block_of and joined(s) is not None:
                for start, part in joined(s) or []:
                    part = self.base(part)
                    if part in block_of and block_of[part] == block_of[s]:
                        whole = self.places[s][0]
                        self.places.setdefault(part, []).append(
                            Place(whole.kind, whole.name, whole.stride, whole.offset + start)
                        )

    def shared(self, s: Symbol, out: Section, block_of: dict[Symbol, int], inside: set[Symbol]) -> Place | None:
        """The place of an argument of `s` that nobody reads afterwards: a gate is written over its own sum."""
        if out.name != "loop":
            return None
        for a in s.parents:
            a = self.base(a)
            if a in inside and a not in block_of and a in self.places and size(a) == size(s) > 1:
                place = self.places[a][0]
                taken = any(
                    place in held for other, held in self.places.items() if other is not a and other in block_of
                )
                if place.kind != "rows" or a in self.plan.kept or a in self.operands or taken or place.offset:
                    continue
                home = out.blocks[block_of[s]]
                readers = self.users[a]
                if all(
                    u in block_of and block_of[u] == block_of[s] and home.passes.get(u) == home.passes[s]
                    for u in readers
                ):
                    return place
        return None
