"""Machine code for a layout, as LLVM assembly: every instruction under a comment with the op and the author's line.

Each section is a function that runs it on some rows of the batch (or of all T * B rows); ``@sinks`` sums up the
gradients of the weights. All take a table of addresses, `args`, whose entries `Code.slots` names. Rows are independent,
so that threads share the work by rows and the result does not depend on how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tinygrad_rnn.compile.kernels import Typed
from tinygrad_rnn.compile.layout import (
    FORWARD,
    Block,
    Layout,
    Place,
    Product,
    Section,
    Unsupported,
    cut,
    is_reduction,
    joined,
    renamed,
    size,
)
from tinygrad_rnn.compile.trace import TRANSPOSE, Symbol

CHUNK = 96  # rows in work at once before and after the loop: what is computed for them stays in the cache
COMPARE = {
    "equal": "oeq", "not_equal": "une", "greater": "ogt", "greater_equal": "oge", "less": "olt", "less_equal": "ole"
}  # fmt: skip


@dataclass
class Code:
    """The assembly, and what the table of addresses has at each position."""

    text: str
    slots: dict[str, int]
    scratch: int  # numbers per row of a chunk or of the batch


def is_transposed(s: Symbol) -> bool:
    """Whether `s` is a matrix of weights, transposed."""
    return s.op is TRANSPOSE and len(s.shape) == 2 and s.args[0].op is None


def generate(layout: Layout, t: Typed) -> Code:
    """The code of one cell for one dtype and target."""
    return _Writer(layout, t).code()


@dataclass
class _Row:
    """What is known inside the loop over the rows of a block: registers by symbol, and where the row starts."""

    env: dict[Symbol, str] = field(default_factory=dict)
    pointers: dict[tuple[str, str, int, int], str] = field(default_factory=dict)


class _Writer:
    """Final. Writes the functions; names of registers are numbered through."""

    def __init__(self, layout: Layout, t: Typed) -> None:
        self.layout = layout
        self.plan = layout.plan
        self.t = t
        self.slots: dict[str, int] = {}
        self.lines: list[str] = []
        self.count = 0
        self.offsets: dict[str, int] = {}
        self.scratch = 0
        for name, width in layout.scratch.items():
            self.offsets[name] = self.scratch
            self.scratch += -(-width // t.lanes) * t.lanes
        self.entry: list[str] = []
        self.loaded: dict[str, str] = {}
        self.places = layout.places

    # ------------------------------------------------------------------------------------ small tools

    def name(self) -> str:
        self.count += 1
        return f"%v{self.count}"

    def do(self, text: str) -> str:
        name = self.name()
        self.lines.append(f"  {name} = {text}")
        return name

    def put(self, text: str) -> None:
        self.lines.append(text if text.endswith(":") or text.startswith(";") else f"  {text}")

    def slot(self, name: str) -> str:
        """The register that holds entry `name` of the table as a number, loaded where the function begins."""
        if name not in self.loaded:
            index = self.slots.setdefault(name, len(self.slots))
            register = f"%s{index}"
            self.entry.append(f"  %sa{index} = getelementptr i64, ptr %args, i64 {index}")
            self.entry.append(f"  {register} = load i64, ptr %sa{index}, align 8 ; {name}")
            self.entry.append(f"  %sp{index} = inttoptr i64 {register} to ptr")
            self.loaded[name] = register
        return self.loaded[name]

    def pointer(self, name: str) -> str:
        return self.slot(name).replace("%s", "%sp")

    def at(self, base: str, offset: str) -> str:
        return self.do(f"getelementptr {self.t.scalar}, ptr {base}, i64 {offset}")

    def mul(self, a: str, b: int | str) -> str:
        return a if b == 1 else self.do(f"mul i64 {a}, {b}")

    def label(self, word: str) -> str:
        self.count += 1
        return f"{word}{self.count}"

    # ---------------------------------------------------------------------------------------- addresses

    def start(self, place: Place, row: str) -> str:
        """A pointer to the place in local row `row` (0 for the first row in work)."""
        if place.kind == "scratch":
            first = self.do(f"mul i64 %room, {self.offsets[place.name]}")
            own = self.at("%scratch", first)
            return self.at(own, self.offset(row, place))
        if place.kind == "carry":
            own = self.do(f"add i64 %b0, {row}")
            return self.at(self.pointer(f"carry {place.name}"), self.offset(own, place))
        if place.kind == "next":
            own = self.do(f"add i64 %row0, {row}")
            own = self.do(f"add i64 {own}, {self.slot('B')}")
            return self.at(self.pointer(f"state {place.name}"), self.offset(own, place))
        kind = {"rows": "rows ", "state": "state ", "given": ""}[place.kind]
        own = self.do(f"add i64 %row0, {row}")
        return self.at(self.pointer(kind + place.name), self.offset(own, place))

    def offset(self, row: str, place: Place) -> str:
        result = self.mul(row, place.stride)
        return self.do(f"add i64 {result}, {place.offset}") if place.offset else result

    # ----------------------------------------------------------------------------------------- products

    def product(self, p: Product) -> None:
        rows, columns = p.b.shape
        self.put(f"; {p.a.name} @ {self.weight(p.b)} -> {p.c.name}" + (f"    ({p.where})" if p.where else ""))
        a, c = self.start(p.a, "0"), self.start(p.c, "0")
        b = self.pointer(f"weight {self.weight(p.b)}")
        self.put(
            f"call void @gemm(ptr {a}, i64 {p.a.stride}, i64 1, ptr {b}, i64 {columns}, ptr {c}, i64 {p.c.stride}, "
            f"i64 %rows, i64 {columns}, i64 {rows}, i1 {int(p.add)})"
        )

    def weight(self, s: Symbol) -> str:
        return s.name

    # ------------------------------------------------------------------------------------------- blocks

    def block(self, block: Block) -> None:
        if not block.nodes:
            return
        loop, done = self.label("rows"), self.label("rowsdone")
        before = self.label("before")
        self.put(f"br label %{before}")
        self.put(f"{before}:")
        self.put(f"br label %{loop}")
        self.put(f"{loop}:")
        after = self.label("rowsnext")
        r, r1 = self.name(), self.name()
        self.put(f"{r} = phi i64 [0, %{before}], [{r1}, %{after}]")
        row = _Row()
        for p in range(1 + max(block.passes.values())):
            nodes = [s for s in block.nodes if block.passes[s] == p]
            self.scalars([s for s in nodes if size(s) == 1 and not is_reduction(s)], row, r)
            widths = dict.fromkeys(
                [size(s.args[0]) if is_reduction(s) else size(s) for s in nodes if size(s) > 1 or is_reduction(s)]
            )
            for width in widths:
                own = [s for s in nodes if (size(s.args[0]) if is_reduction(s) else size(s)) == width]
                self.loop(own, width, row, r)
        self.put(f"br label %{after}")
        self.put(f"{after}:")
        self.put(f"{r1} = add i64 {r}, 1")
        more = self.do(f"icmp slt i64 {r1}, %rows")
        self.put(f"br i1 {more}, label %{loop}, label %{done}")
        self.put(f"{done}:")

    def row_pointer(self, place: Place, row: _Row, r: str) -> str:
        key = (place.kind, place.name, place.stride, place.offset)
        if key not in row.pointers:
            row.pointers[key] = self.start(place, r)
        return row.pointers[key]

    def scalars(self, nodes: list[Symbol], row: _Row, r: str) -> None:
        """Nodes of one number per row, as a vector of equal numbers."""
        for s in nodes:
            value = self.node(s, row, row.env, r, "0", None)
            if value is None:
                continue
            row.env[s] = value
            for place in self.places.get(s, []):
                first = self.do(f"extractelement {self.t.vector} {value}, i32 0")
                pointer = self.row_pointer(place, row, r)
                self.put(f"store {self.t.scalar} {first}, ptr {pointer}, align {self.t.dtype.itemsize}")

    def loop(self, nodes: list[Symbol], width: int, row: _Row, r: str) -> None:
        """All columns of a row: whole vectors, then the rest under a mask."""
        t = self.t
        whole, rest = divmod(width, t.lanes)
        # Pointers, and values of one number, are taken before the columns begin, where all of them can be used.
        for s in nodes:
            for place in [*self.places.get(s, []), *self.read_places(s)]:
                self.row_pointer(place, row, r)
            if s.op is None:
                self.seed_pointers(s, row, r)
            for a in s.args:
                if isinstance(a, Symbol) and self.base(a) not in row.env and self.numbers(a) == 1:
                    row.env[self.base(a)] = self.load_one(self.base(a), row, r)
        sums = [s for s in nodes if is_reduction(s)]
        least = {s: t.splat(-math.inf if s.op is not None and s.op.__name__ == "max" else 0.0) for s in sums}
        totals = dict(least)
        if whole:
            head, body, done = self.label("head"), self.label("columns"), self.label("columnsdone")
            self.put(f"br label %{head}")
            self.put(f"{head}:")
            self.put(f"br label %{body}")
            self.put(f"{body}:")
            j, j1 = self.name(), self.name()
            self.put(f"{j} = phi i64 [0, %{head}], [{j1}, %{body}]")
            new = {s: self.name() for s in sums}
            old = {}
            for s in sums:
                old[s] = self.do(f"phi {t.vector} [{totals[s]}, %{head}], [{new[s]}, %{body}]")
            self.columns(nodes, row, r, j, None, old, new, least)
            self.put(f"{j1} = add i64 {j}, {t.lanes}")
            more = self.do(f"icmp slt i64 {j1}, {whole * t.lanes}")
            self.put(f"br i1 {more}, label %{body}, label %{done}")
            self.put(f"{done}:")
            totals = dict(new)
        if rest:
            new = {s: self.name() for s in sums}
            self.columns(nodes, row, r, str(whole * t.lanes), t.tail(rest), totals, new, least)
            totals = new
        for s in sums:
            name = "fmax" if s.op is not None and s.op.__name__ == "max" else "fadd"
            start = "" if name == "fmax" else f"{t.scalar} {t.number(-0.0)}, "
            flag = "" if name == "fmax" else "reassoc "
            one = self.do(f"call {flag}{t.scalar} @llvm.vector.reduce.{name}.{t.suffix}({start}{t.vector} {totals[s]})")
            row.env[s] = self.splat(one)
            for place in self.places.get(s, []):
                self.put(f"store {t.scalar} {one}, ptr {self.row_pointer(place, row, r)}, align {t.dtype.itemsize}")

    def columns(
        self,
        nodes: list[Symbol],
        row: _Row,
        r: str,
        j: str,
        mask: str | None,
        old: dict[Symbol, str],
        new: dict[Symbol, str],
        least: dict[Symbol, str],
    ) -> None:
        """One vector of columns, from column `j`."""
        t = self.t
        env = dict(row.env)
        for s in nodes:
            if is_reduction(s):
                value = self.value(s.args[0], env, row, r, j, mask)
                if mask is not None:
                    value = self.do(f"select {t.mask} {mask}, {t.vector} {value}, {t.vector} {least[s]}")
                if s.op is not None and s.op.__name__ == "max":
                    bigger = self.do(f"fcmp ugt {t.vector} {value}, {old[s]}")
                    self.put(f"{new[s]} = select {t.mask} {bigger}, {t.vector} {value}, {t.vector} {old[s]}")
                else:
                    self.put(f"{new[s]} = fadd {t.vector} {old[s]}, {value}")
                continue
            parts = joined(s)
            if parts is not None:
                continue
            result = self.node(s, row, env, r, j, mask)
            if result is None:
                continue
            env[s] = result
            for place in self.places.get(s, []):
                self.store(result, self.at(self.row_pointer(place, row, r), j), mask)

    def store(self, value: str, pointer: str, mask: str | None) -> None:
        self.put(self.t.store(value, pointer, mask or ""))

    def load(self, pointer: str, mask: str | None) -> str:
        return self.do(self.t.load(pointer, mask or ""))

    def splat(self, one: str) -> str:
        t = self.t
        first = self.do(f"insertelement {t.vector} poison, {t.scalar} {one}, i32 0")
        return self.do(f"shufflevector {t.vector} {first}, {t.vector} poison, <{t.lanes} x i32> zeroinitializer")

    # ------------------------------------------------------------------------------------------- values

    def base(self, s: Symbol) -> Symbol:
        while (other := renamed(s)) is not None:
            s = other
        return s

    def fixed(self, s: Symbol) -> bool:
        """Whether `s` has no rows: a weight, or what is computed from weights."""
        return s in self.plan.weights or s in self.once

    @property
    def once(self) -> set[Symbol]:
        return set(self.plan.once)

    def numbers(self, a: Symbol) -> int:
        a = self.base(a)
        return math.prod(a.shape) if self.fixed(a) else size(a)

    def place(self, s: Symbol) -> Place:
        s = self.base(s)
        if s in self.places:
            return self.places[s][0]
        found = cut(s)
        if found is None:
            raise Unsupported(f"{s.op.__name__ if s.op else s.kind} is read where it is not stored ({s.where})")
        whole = self.place(found[0])
        return Place(whole.kind, whole.name, whole.stride, whole.offset + found[1])

    def read_places(self, s: Symbol) -> list[Place]:
        """Places of the arguments that are in memory and have rows."""
        found = []
        for a in s.args:
            if isinstance(a, Symbol) and not self.fixed(self.base(a)):
                b = self.base(a)
                if b in self.places or (b.op is not None and cut(b) is not None and b.op.__name__ == "getitem"):
                    found.append(self.place(b))
        return found

    def load_one(self, b: Symbol, row: _Row, r: str) -> str:
        """A value of one number per row, or a weight of one number, in every lane."""
        t = self.t
        pointer = self.pointer(f"weight {b.name}") if self.fixed(b) else self.row_pointer(self.place(b), row, r)
        return self.splat(self.do(f"load {t.scalar}, ptr {pointer}, align {t.dtype.itemsize}"))

    def value(self, a: Any, env: dict[Symbol, str], row: _Row, r: str, j: str, mask: str | None) -> str:
        """The register with columns j.. of an argument."""
        if not isinstance(a, Symbol):
            return self.t.splat(float(a))
        b = self.base(a)
        if b in env:
            return env[b]
        if self.numbers(b) == 1:
            found = self.load_one(b, row, r)
        elif self.fixed(b):
            found = self.load(self.at(self.pointer(f"weight {b.name}"), j), mask)
        else:
            found = self.load(self.at(self.row_pointer(self.place(b), row, r), j), mask)
        env[b] = found
        return found

    def seed_pointers(self, s: Symbol, row: _Row, r: str) -> list[str]:
        """Where the gradient of a new state comes from: from outside, and from the next timestep where it reads it."""
        key = ("seed", s.name, 0, 0)
        if key not in row.pointers:
            name = s.name[1:]
            own = self.do(f"add i64 %row0, {r}")
            own = self.do(f"mul i64 {own}, {self.slot(f'g row {name}')}")
            row.pointers[key] = self.at(self.pointer(f"g {name}"), own)
        if self.plan.carried[s.name[1:]] is None:
            return [row.pointers[key]]
        return [row.pointers[key], self.row_pointer(Place("carry", s.name[1:], size(s)), row, r)]

    def node(self, s: Symbol, row: _Row, env: dict[Symbol, str], r: str, j: str, mask: str | None) -> str | None:
        """Compute one vector of `s`; None for what is only another name."""
        t = self.t
        v = t.vector
        if s.op is None:
            self.put(f"; {s.name}: from outside, and carried")
            pointers = self.seed_pointers(s, row, r)
            if size(s) == 1:
                terms = [self.splat(self.do(f"load {t.scalar}, ptr {p}, align {t.dtype.itemsize}")) for p in pointers]
            else:
                terms = [self.load(self.at(p, j), mask) for p in pointers]
            return terms[0] if len(terms) == 1 else self.do(f"fadd contract {v} {terms[0]}, {terms[1]}")
        name = s.op.__name__
        args = self.layout_args(s)
        x = [self.value(a, env, row, r, j, mask) for a in args]
        tap = s.graph.taps.get(s.number)
        self.put(f"; {s.name} = {name}({', '.join(self.show(a) for a in args)})" + (f" = {tap}" if tap else "")
                 + (f"    ({s.where})" if s.where else ""))  # fmt: skip

        def binary(what: str, a: str, b: str) -> str:
            return self.do(f"{what} contract {v} {a}, {b}")

        def call(function: str, *values: str) -> str:
            return self.do(f"call {v} @{function}({', '.join(f'{v} {a}' for a in values)})")

        def intrinsic(function: str, *values: str) -> str:
            return call(f"llvm.{function}.{t.suffix}", *values)

        def choose(condition: str, a: str, b: str, yes: str, no: str) -> str:
            return self.do(f"select {t.mask} {self.do(f'fcmp {condition} {v} {a}, {b}')}, {v} {yes}, {v} {no}")

        one, zero = t.splat(1.0), t.splat(0.0)

        def log1p(a: str) -> str:
            u = self.do(f"fadd {v} {a}, {one}")
            d = self.do(f"fsub {v} {u}, {one}")
            quotient = self.do(f"fdiv {v} {a}, {d}")
            long = self.do(f"fmul {v} {intrinsic('log', u)}, {quotient}")
            long = choose("oeq", d, zero, a, long)
            return choose("oeq", u, t.splat(math.inf), u, long)

        if name in ("add", "sub", "mul", "div"):
            return binary({"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}[name], x[0], x[1])
        if name == "total":
            result = x[0]
            for term in x[1:]:
                result = binary("fadd", result, term)
            return result
        if name == "broadcast_to":
            return x[0]
        if name == "neg":
            return self.do(f"fneg {v} {x[0]}")
        if name in ("tanh", "sigmoid", "exp", "erf", "erfc"):
            return call(name, x[0])
        if name in ("log", "sqrt", "sin", "cos", "floor", "ceil", "trunc", "rint", "exp2", "log2", "log10"):
            return intrinsic(name, x[0])
        if name == "expm1":  # (u - 1) x / log(u) for u = exp(x) as it was rounded (Kahan)
            u = call("exp", x[0])
            d = self.do(f"fsub {v} {u}, {one}")
            long = self.do(f"fdiv {v} {self.do(f'fmul {v} {d}, {x[0]}')}, {intrinsic('log', u)}")
            long = choose("oeq", u, one, x[0], choose("oeq", u, zero, d, long))
            return choose("oeq", u, t.splat(math.inf), u, long)
        if name in ("remainder", "floor_divide"):
            return self.modulo(name, x[0], x[1], choose)
        if name == "logical_not":
            return choose("oeq", x[0], zero, one, zero)
        if name in ("logical_and", "logical_or", "logical_xor"):
            a, b = (choose("une", value, zero, one, zero) for value in x)
            if name == "logical_xor":
                return choose("une", a, b, one, zero)
            return choose("oeq", a, zero, zero, b) if name == "logical_and" else choose("oeq", a, zero, b, one)
        if name == "isnan":
            return choose("uno", x[0], x[0], one, zero)
        if name in ("isinf", "isfinite"):
            yes, no = (one, zero) if name == "isfinite" else (zero, one)
            finite = choose("olt", intrinsic("fabs", x[0]), t.splat(math.inf), yes, no)
            return choose("uno", x[0], x[0], zero, finite)
        if name == "abs":
            return intrinsic("fabs", x[0])
        if name == "log1p":
            return log1p(x[0])
        if name == "softplus":
            small = log1p(call("exp", self.do(f"fneg {v} {intrinsic('fabs', x[0])}")))
            return binary("fadd", choose("ole", x[0], zero, zero, x[0]), small)
        if name == "relu":
            return choose("ole", x[0], zero, zero, x[0])
        if name == "sign":
            return choose("ogt", x[0], zero, one, choose("olt", x[0], zero, t.splat(-1.0), x[0]))
        if name in ("maximum", "minimum"):
            return choose("ugt" if name == "maximum" else "ult", x[0], x[1], x[0], x[1])
        if name in COMPARE:
            return choose(COMPARE[name], x[0], x[1], one, zero)
        if name == "where":
            return choose("une", x[0], zero, x[1], x[2])
        if name == "clip":
            low, high = t.splat(s.static["low"]), t.splat(s.static["high"])
            return choose("ogt", x[0], high, high, choose("olt", x[0], low, low, x[0]))
        if name == "share":
            half = choose("oeq", x[0], x[1], t.splat(0.5), zero)
            return choose("ogt", x[0], x[1], one, half)
        if name == "pow":
            return self.power(x[0], float(args[1]), intrinsic, binary)
        raise Unsupported(f"{name} ({s.where})")

    def modulo(self, name: str, a: str, b: str, choose: Any) -> str:
        """a % b or a // b, as NumPy makes them from C's fmod."""
        t, v = self.t, self.t.vector
        zero = t.splat(0.0)
        rest = self.do(f"frem {v} {a}, {b}")
        whole = self.do(f"fdiv {v} {self.do(f'fsub {v} {a}, {rest}')}, {b}")
        across = choose("olt", self.do(f"fmul {v} {choose('olt', rest, zero, t.splat(-1.0), t.splat(1.0))}, {b}"), zero,
                        t.splat(1.0), zero)  # fmt: skip
        across = choose("oeq", rest, zero, zero, across)  # 1 where the rest has the other sign
        if name == "remainder":
            return str(choose("oeq", across, zero, rest, self.do(f"fadd {v} {rest}, {b}")))
        whole = self.do(f"call {v} @llvm.rint.{t.suffix}({v} {self.do(f'fsub {v} {whole}, {across}')})")
        return str(choose("oeq", b, zero, self.do(f"fdiv {v} {a}, {b}"), whole))

    def power(self, x: str, p: float, intrinsic: Any, binary: Any) -> str:
        t = self.t
        if p == 0.5:
            return str(intrinsic("sqrt", x))
        if p == int(p) and 0 < abs(p) <= 4:
            result = x
            for _ in range(int(abs(p)) - 1):
                result = binary("fmul", result, x)
            return result if p > 0 else str(binary("fdiv", t.splat(1.0), result))
        return str(intrinsic("pow", x, t.splat(p)))

    def layout_args(self, s: Symbol) -> list[Any]:
        """The arguments of a node as the layout has them: products that were added up in memory are one of them."""
        return self.layout.arguments.get(s, list(s.args))

    def show(self, a: Any) -> str:
        return (a.graph.taps.get(a.number) or a.name) if isinstance(a, Symbol) else repr(a)

    # --------------------------------------------------------------------------------------- functions

    def body(self, section: Section) -> None:
        for i, block in enumerate(section.blocks):
            for p in section.products[i]:
                self.product(p)
            self.joins(block)
            self.block(block)

    def joins(self, block: Block) -> None:
        """Parts of joined values that no node of this block computes are copied; what is left open is zero."""
        inside = set(block.nodes)
        for s in block.nodes:
            parts = joined(s)
            if parts is None:
                continue
            whole = self.places[s][0]
            end = 0
            for start, part in [*parts, (size(s), None)]:
                if start > end:
                    self.fill(Place(whole.kind, whole.name, whole.stride, whole.offset + end), start - end)
                if part is None:
                    break
                end = start + size(part)
                own = self.base(part)
                if own not in inside:
                    target = Place(whole.kind, whole.name, whole.stride, whole.offset + start)
                    self.copy(self.place(own), target, size(part))

    def fill(self, target: Place, width: int) -> None:
        self.put(f"; zeros -> {target.name}")
        self.each_row(lambda r: self.span(None, self.start(target, r), width))

    def copy(self, source: Place, target: Place, width: int) -> None:
        self.put(f"; {source.name} -> {target.name}")
        self.each_row(lambda r: self.span(self.start(source, r), self.start(target, r), width))

    def span(self, source: str | None, target: str, width: int) -> None:
        """`width` numbers of one row, copied or set to zero."""
        t = self.t
        whole, rest = divmod(width, t.lanes)
        for i in range(whole + (1 if rest else 0)):
            mask = t.tail(rest) if i == whole else None
            value = t.splat(0.0) if source is None else self.load(self.at(source, str(i * t.lanes)), mask)
            self.store(value, self.at(target, str(i * t.lanes)), mask)

    def each_row(self, work: Any) -> None:
        head, loop, done = self.label("head"), self.label("each"), self.label("eachdone")
        self.put(f"br label %{head}")
        self.put(f"{head}:")
        self.put(f"br label %{loop}")
        self.put(f"{loop}:")
        r, r1 = self.name(), self.name()
        self.put(f"{r} = phi i64 [0, %{head}], [{r1}, %{loop}]")
        work(r)
        self.put(f"{r1} = add i64 {r}, 1")
        more = self.do(f"icmp slt i64 {r1}, %rows")
        self.put(f"br i1 {more}, label %{loop}, label %{done}")
        self.put(f"{done}:")

    def function(self, name: str, section: Section, *, over_time: int) -> str:
        """`over_time`: 1 forward and -1 backward along the sequence, 0 for rows in chunks."""
        self.lines, self.entry, self.loaded = [], [], {}
        self.places = self.layout.places if name in FORWARD else self.layout.back_places
        self.slot("scratch")
        if over_time:
            self.put("%rows = sub i64 %b1, %b0")
            self.put("%room = add i64 %rows, 0")
        else:
            self.put(f"%room = add i64 0, {CHUNK}")
        self.put(f"%mine = mul i64 %thread, {self.slot('scratch size')}")
        self.put(f"%scratch = getelementptr {self.t.scalar}, ptr {self.pointer('scratch')}, i64 %mine")
        T, B = self.slot("T"), self.slot("B")
        self.put("br label %top")
        self.put("top:")
        self.put("br label %outer")
        self.put("outer:")
        if over_time:
            self.put("%i = phi i64 [0, %top], [%i1, %next]")
            if over_time > 0:
                self.put("%t = add i64 %i, 0")
            else:
                self.put(f"%last = sub i64 {T}, 1")
                self.put("%t = sub i64 %last, %i")
            self.put(f"%row = mul i64 %t, {B}")
            self.put("%row0 = add i64 %row, %b0")
        else:
            self.put("%row0 = phi i64 [%b0, %top], [%i1, %next]")
            self.put("%left = sub i64 %b1, %row0")
            self.put(f"%short = icmp slt i64 %left, {CHUNK}")
            self.put(f"%rows = select i1 %short, i64 %left, i64 {CHUNK}")
        self.body(section)
        self.put("br label %next")
        self.put("next:")
        if over_time:
            self.put("%i1 = add i64 %i, 1")
            self.put(f"%more = icmp slt i64 %i1, {T}")
        else:
            self.put("%i1 = add i64 %row0, %rows")
            self.put("%more = icmp slt i64 %i1, %b1")
        self.put("br i1 %more, label %outer, label %done")
        self.put("done:")
        self.put("ret void")
        head = f"define void @{name}(ptr %args, i64 %b0, i64 %b1, i64 %thread) {{\nentry:"
        return "\n".join([head, *self.entry, *self.lines, "}"])

    def sinks(self) -> str:
        """The gradients of the weights: part `b0` of `b1` of each, by rows of a product and by columns of a sum."""
        self.lines, self.entry, self.loaded = [], [], {}
        T, B = self.slot("T"), self.slot("B")
        self.put("%row0 = add i64 0, 0")
        self.put(f"%depth = mul i64 {T}, {B}")
        self.put(f"%again = trunc i64 {self.slot('again')} to i1")
        seen: set[Symbol] = set()
        for weight, a, g, width in self.layout.sinks:
            add = "1" if weight in seen else "%again"
            seen.add(weight)
            out = self.pointer(f"grad {weight.name}")
            total = weight.shape[0] if a is not None else width
            self.put(
                f"; gradient of {weight.name}: " + (f"{a.name}^T {g.name}" if a is not None else f"sum of {g.name}")
            )
            skip, work = self.label("skip"), self.label("work")
            wanted = self.do(f"icmp ne i64 {self.slot(f'grad {weight.name}')}, 0")
            self.put(f"br i1 {wanted}, label %{work}, label %{skip}")
            self.put(f"{work}:")
            low = self.do(f"mul i64 %b0, {total}")
            low = self.do(f"udiv i64 {low}, %b1")
            high = self.do("add i64 %b0, 1")
            high = self.do(f"mul i64 {high}, {total}")
            high = self.do(f"udiv i64 {high}, %b1")
            some = self.do(f"sub i64 {high}, {low}")
            gp = self.start(g, "0")
            if a is not None:
                ap = self.at(self.start(a, "0"), low)
                columns = weight.shape[1]
                cp = self.at(out, self.mul(low, columns))
                self.put(
                    f"call void @gemm(ptr {ap}, i64 1, i64 {a.stride}, ptr {gp}, i64 {g.stride}, ptr {cp}, "
                    f"i64 {columns}, i64 {some}, i64 {columns}, i64 %depth, i1 {add})"
                )
            elif math.prod(weight.shape) == 1 and width > 1:
                self.put(
                    f"call void @sum_all(ptr {gp}, i64 {g.stride}, i64 %depth, i64 {width}, ptr {out}, i64 %b0, "
                    f"i1 {add})"
                )
            else:
                self.put(
                    f"call void @sum_rows(ptr {self.at(gp, low)}, i64 {g.stride}, i64 %depth, i64 {some}, "
                    f"ptr {self.at(out, low)}, i1 {add})"
                )
            self.put(f"br label %{skip}")
            self.put(f"{skip}:")
        self.put("ret void")
        head = "define void @sinks(ptr %args, i64 %b0, i64 %b1, i64 %thread) {\nentry:"
        return "\n".join([head, *self.entry, *self.lines, "}"])

    def transposed(self) -> str:
        """Matrices of weights the other way round, for the products of the way back."""
        self.lines, self.entry, self.loaded = [], [], {}
        for s in self.plan.once:
            if is_transposed(s):
                rows, columns = s.args[0].shape
                source, target = self.pointer(f"weight {s.args[0].name}"), self.pointer(f"weight {s.name}")
                self.put(f"; {s.name} = {s.args[0].name}^T")
                self.put(
                    f"call void @transpose(ptr {source}, i64 {columns}, i64 {rows}, i64 {columns}, ptr {target}, "
                    f"i64 {rows})"
                )
        self.put("ret void")
        head = "define void @transposed(ptr %args, i64 %b0, i64 %b1, i64 %thread) {\nentry:"
        return "\n".join([head, *self.entry, *self.lines, "}"])

    def whole(self, name: str, calls: Sequence[tuple[str, str, str]]) -> str:
        """A function that runs several sections in this thread: one call from Python instead of many."""
        lines = [f"define void @{name}(ptr %args, i64 %rows, i64 %batch, i64 %which) {{"]
        for section, low, high in calls:
            if section == "after":  # left out where nobody wants the gradient of x
                lines += [
                    "  %skip = icmp eq i64 %which, 0",
                    "  br i1 %skip, label %on, label %late",
                    "late:",
                    f"  call void @{section}(ptr %args, i64 {low}, i64 {high}, i64 0)",
                    "  br label %on",
                    "on:",
                ]
            else:
                lines.append(f"  call void @{section}(ptr %args, i64 {low}, i64 {high}, i64 0)")
        return "\n".join([*lines, "  ret void", "}"])

    def code(self) -> Code:
        layout = self.layout
        text = "\n\n".join(
            [
                self.function("before", layout.before, over_time=0),
                self.function("loop", layout.loop, over_time=1),
                self.function("behind", layout.behind, over_time=0),
                self.function("ahead", layout.ahead, over_time=0),
                self.function("back", layout.back, over_time=-1),
                self.function("after", layout.after, over_time=0),
                self.sinks(),
                self.transposed(),
                self.whole("forward", [("before", "0", "%rows"), ("loop", "0", "%batch"), ("behind", "0", "%rows")]),
                self.whole(
                    "backward",
                    [
                        ("transposed", "0", "0"),
                        ("ahead", "0", "%rows"),
                        ("back", "0", "%batch"),
                        ("after", "0", "%rows"),
                        ("sinks", "0", "1"),
                    ],
                ),
            ]
        )
        return Code(text + "\n", self.slots, self.scratch)
