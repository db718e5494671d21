"""What the compiler makes of a cell, to be read: the step as it was traced, and as it is scheduled.

Names are the author's: taps, variables of `step`, states and parameters. A value ``a_i`` is what goes into the
nonlinearity of i, ``x_i`` its part that does not depend on the carried state, ``h'`` a state after the step, and
``d_i`` the gradient at i. What has no name and is read once is written into the line that reads it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from tinygrad_rnn.cell import Cell, specification
from tinygrad_rnn.compile import machine
from tinygrad_rnn.compile.kernels import Target, Typed
from tinygrad_rnn.compile.layout import Layout, Unsupported, make_layout, renamed, size
from tinygrad_rnn.compile.llvm_code import generate
from tinygrad_rnn.compile.schedule import Plan, make_plan, rowwise
from tinygrad_rnn.compile.trace import (
    TRANSPOSE,
    Step,
    Symbol,
    Untraceable,
    ancestors,
    pullback,
    total,
    trace_step,
)
from tinygrad_rnn.errors import InputError

Stage = Literal["traced", "scheduled", "all"]
Direction = Literal["forward", "backward", "both"]
FOLDED = 44  # characters of an expression that still fits into another one
WIDE = 64  # characters of an expression before it is broken into lines
INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**", "matmul": "@", "total": "+", "remainder": "%",
    "floor_divide": "//",
}  # fmt: skip
COMPARED = {
    "equal": "==", "not_equal": "!=", "greater": ">", "greater_equal": ">=", "less": "<", "less_equal": "<="
}  # fmt: skip
STRENGTH = {
    "==": 0,
    "!=": 0,
    ">": 0,
    ">=": 0,
    "<": 0,
    "<=": 0,
    "+": 1,
    "-": 1,
    "*": 2,
    "/": 2,
    "%": 2,
    "//": 2,
    "@": 3,
    "**": 5,
}
ATOM = 9
NONLINEAR = ("sigmoid", "tanh", "relu", "softplus", "exp", "sin", "cos", "softmax", "clip")


@dataclass(frozen=True)
class GraphValue:
    """A value of a step: ``name = text``. `shape` has the letter B for the rows of the batch, `where` is file:line.

    `symbol` is its name in the comments of the machine code, `reads` are the names in the text. `note` says what the
    schedule does with it: "kept" for all timesteps, "again" (computed once more on the way back), or nothing.
    """

    name: str
    symbol: str
    text: str
    op: str
    reads: tuple[str, ...]
    shape: tuple[int | str, ...]
    where: str
    note: str = ""


@dataclass(frozen=True)
class GraphPart:
    """Values that are computed together, under a `title`; `key` is its name in data, `stage` traced or scheduled."""

    stage: str
    direction: str
    key: str
    title: str
    values: tuple[GraphValue, ...]


@dataclass(frozen=True)
class StepGraph:
    """One step of a cell and its gradient. `refused` says why no compiled executor runs the cell ('' where one does).

    `no_machine_code` says what the machine code lacks ('' where it has everything). `memory` are numbers (not bytes)
    for every timestep and row of the batch: what is kept on the way forward, and what the way back needs. `inputs` are
    the names of what a step is given beside its weights.
    """

    cell: str
    I: int
    H: int
    B: int
    dtype: str
    masked: bool
    refused: str = ""
    no_machine_code: str = ""
    memory: Mapping[str, int] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    parts: tuple[GraphPart, ...] = ()


def step_graph(
    cell: Cell,
    B: int = 50,
    *,
    dtype: str = "float32",
    masked: bool = False,
    stage: Stage = "all",
    direction: Direction = "both",
    folded: bool = True,
) -> StepGraph:
    """The step of `cell` for B rows as the compiler has it, before and after scheduling, forward and backward.

    With `folded` False every op is a value of its own. Raises what the declaration of a cell raises, nothing else: a
    step that cannot be traced is `refused`.
    """
    specification(cell)
    facts: dict[str, Any] = {"cell": cell.name, "I": cell.I, "H": cell.H, "B": B, "dtype": dtype, "masked": masked}
    try:
        with _variables(cell):
            plan = make_plan(cell, B, dtype, masked)
            step = trace_step(cell, B, dtype, masked)
    except Untraceable as error:
        return StepGraph(**facts, refused=str(error))
    parts = [*_traced(step, folded), *_scheduled(plan, folded)]
    chosen = [
        part for part in parts if stage in ("all", part.stage) and direction in ("both", part.direction) and part.values
    ]
    missing, memory = "", dict[str, int]()
    try:
        layout = make_layout(plan)
        memory = _memory(layout)
        generate(layout, Typed(dtype, Target(32, 16)))
    except Unsupported as error:
        missing = str(error)
    inputs = ("x", *(["mask"] if masked else []), *step.states)
    return StepGraph(**facts, no_machine_code=missing, memory=memory, inputs=inputs, parts=tuple(chosen))


def step_code(cell: Cell, B: int = 50, *, dtype: str = "float32", masked: bool = False) -> str:
    """The machine code of `cell` as LLVM assembly for this processor, with the author's lines in its comments.

    Raises InputError where there is none: no llvmlite, or a cell that cannot be compiled.
    """
    try:
        return generate(make_layout(make_plan(cell, B, dtype, masked)), machine.typed(dtype)).text
    except machine.CompilerMissing as error:
        raise InputError(f"no machine code: {error}") from error
    except Untraceable as error:
        raise InputError(f"no machine code for cell {cell.name}: {error}") from error
    except Unsupported as error:
        raise InputError(f"no machine code for cell {cell.name}: it has no {error}") from error


def _memory(layout: Layout) -> dict[str, int]:
    states = sum(size(s) for s in layout.plan.step.states.values())
    return {"forward": sum(layout.rows.values()) + states, "backward": sum(layout.back_rows.values())}


@contextmanager
def _variables(cell: Cell) -> Iterator[None]:
    """While open, the variables of `cell.step` become names of the symbols they hold when it returns."""
    code = getattr(getattr(type(cell).step, "__wrapped__", type(cell).step), "__code__", None)
    before = sys.getprofile()

    def heard(frame: Any, event: str, arg: Any) -> None:
        if event == "return" and frame.f_code is code:
            for name, value in frame.f_locals.items():
                if isinstance(value, Symbol) and value.kind == "op":
                    value.graph.taps.setdefault(value.number, name)

    sys.setprofile(heard)
    try:
        yield
    finally:
        sys.setprofile(before)


# ------------------------------------------------------------------------------------------------- names


class _Names:
    """Final. A name for every symbol that has one; each name is given once."""

    def __init__(self) -> None:
        self.of: dict[Symbol, str] = {}
        self.used: set[str] = set()
        self.aliases: set[Symbol] = set()  # the mask in another shape has its name

    def give(self, s: Any, name: str) -> None:
        if isinstance(s, Symbol) and s not in self.of and name not in self.used:
            self.of[s] = name
            self.used.add(name)

    def __call__(self, s: Symbol) -> str:
        return self.of.get(s, s.name)


def _name_forward(names: _Names, step: Step, order: Sequence[Symbol], before: Iterable[Symbol] = ()) -> None:
    """States after the step, taps, what goes into a nonlinearity, and what is known of that before the loop."""
    for s in (*step.leaves, *step.params.values()):
        names.give(s, s.name)
    for name, value in step.new.items():
        names.give(value, f"{name}'")
    for s in order:
        if s.number in s.graph.taps:
            names.give(s, s.graph.taps[s.number])
    inside = set(order)
    for s in order:
        if s in names.of and s.op is not None and s.op.__name__ in NONLINEAR and len(s.parents) == 1:
            if s.parents[0].op is not None and s.parents[0] in inside:
                names.give(s.parents[0], f"a_{_plain(names(s))}")
    names.aliases = {s for s in order if step.mask is not None and renamed(s) is step.mask}
    early = set(before)
    for s in order:
        if s in names.of and s.op is total and s not in early:
            for a in s.parents:
                if a in early:
                    names.give(a, f"x_{_plain(names(s).removeprefix('a_'))}")


def _plain(name: str) -> str:
    return name.rstrip("'")


def _name_gradients(names: _Names, order: Iterable[Symbol], forward: Iterable[GraphValue]) -> None:
    """The gradient at a value with a name, or with a line of its own in `forward`, is called after it."""
    shown = {value.symbol for value in forward}
    for s in order:
        value = s.graph.gradient_at.get(s.number)
        if value is not None and (value in names.of or value.name in shown):
            names.give(s, f"d_{names(value)}")


# ------------------------------------------------------------------------------------------------- text


@dataclass
class _Writing:
    """Final. How the values of one part are written: names, and expressions that are folded into others."""

    names: _Names
    rows: set[Symbol]
    inline: dict[Symbol, tuple[str, int, tuple[str, ...]]] = field(default_factory=dict)

    def argument(self, a: Any) -> tuple[str, int, tuple[str, ...]]:
        """Text, strength of its outermost sign, and the names in it."""
        if not isinstance(a, Symbol):
            text = f"{a:g}" if isinstance(a, float) and float(f"{a:g}") == a else repr(a)
            return text, ATOM if not text.startswith("-") else STRENGTH["-"], ()
        if a in self.inline:
            return self.inline[a]
        if a in self.names.aliases:
            return self.argument(a.args[0])
        if a.op is TRANSPOSE and a not in self.names.of and len(a.shape) == 2:
            return self.expression(a)
        return self.names(a), ATOM, (self.names(a),)

    def expression(self, s: Symbol) -> tuple[str, int, tuple[str, ...]]:
        """The same for what `s` is computed by."""
        assert s.op is not None
        name = s.op.__name__
        if name == "mul" and isinstance(s.args[1], float) and s.args[1] == 1.0:  # a copy, in a place of its own
            return self.argument(s.args[0])
        args = [self.argument(a) for a in s.args]
        reads = tuple(dict.fromkeys([r for _, _, names in args for r in names]))
        sign = INFIX.get(name) or COMPARED.get(name)
        if sign is None and name == "neg":
            text, strength, _ = args[0]
            return f"-{text if strength >= STRENGTH['*'] else f'({text})'}", STRENGTH["-"], reads
        if s.op is TRANSPOSE and len(s.shape) == 2:
            text, strength, _ = args[0]
            return f"{text if strength == ATOM else f'({text})'}^T", ATOM, reads
        if sign is None:
            return self.call(s, name, [text for text, _, _ in args]), ATOM, reads
        own = STRENGTH[sign]
        out = ""
        for k, (text, strength, _) in enumerate(args):
            # as it is computed: from the left, and a product of matrices never among factors without parentheses
            lower = (
                strength < own
                or (k and strength == own)
                or (strength in (2, 3) and own in (2, 3, 5) and strength != own)
            )
            text = f"({text})" if lower else text
            if k and sign == "+" and text.startswith("-"):
                out += f" - {text[1:]}"
            else:
                out += f" {sign} {text}" if k else text
        return out, own, reads

    def call(self, s: Symbol, name: str, args: list[str]) -> str:
        static = s.static
        if name in ("getitem", "scatter"):
            index = static["index"] if isinstance(static["index"], tuple) else (static["index"],)
            inside = f"[{', '.join(_index(part) for part in index)}]"
            return (
                f"{args[0]}{inside}" if name == "getitem" and args[0].isidentifier() else f"{name}({args[0]}, {inside})"
            )
        if name == "sum_to" and s not in self.rows and s.shape == s.args[0].shape[1:]:
            return f"sum of {args[0]}" if args[0].isidentifier() else f"sum of ({args[0]})"
        shown = {k: v for k, v in static.items() if k not in ("source", "sizes", "shape") and v is not False}
        if name in ("reshape", "broadcast_to", "sum_to"):
            shown["shape"] = self.shape(s)
        if len(shown.get("axes", ())) == 1:
            shown["axis"] = shown.pop("axes")[0]
        return f"{name}({', '.join([*args, *(f'{k}={_static(v)}' for k, v in shown.items())])})"

    def shape(self, s: Symbol) -> tuple[int | str, ...]:
        return ("B", *s.shape[1:]) if s in self.rows and s.shape else s.shape

    def value(self, s: Symbol, note: str = "") -> GraphValue:
        assert s.op is not None
        text, _, reads = self.expression(s)
        like = s.graph.gradient_at.get(s.number)
        where = s.where or (like.where if like is not None else "")
        return GraphValue(self.names(s), s.name, text, s.op.__name__, reads, self.shape(s), where, note)


def _static(value: Any) -> str:
    if isinstance(value, tuple):
        return _shape(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _index(part: Any) -> str:
    if isinstance(part, slice):
        ends = ["" if end is None else str(end) for end in (part.start, part.stop)]
        return ":".join(ends) + (f":{part.step}" if part.step not in (None, 1) else "")
    return "..." if part is Ellipsis else str(part)


def _shape(shape: Sequence[Any]) -> str:
    return "(" + ", ".join(map(str, shape)) + (",)" if len(shape) == 1 else ")")


def _lines(
    names: _Names,
    rows: set[Symbol],
    part: Sequence[Symbol],
    outside: set[Symbol],
    folded: bool,
    notes: Mapping[Symbol, str],
) -> tuple[GraphValue, ...]:
    """The values of a part in order. `outside` is read elsewhere, so it has a line of its own."""
    uses: dict[Symbol, int] = {}
    for s in part:
        for a in s.parents:
            uses[a] = uses.get(a, 0) + 1
    writing = _Writing(names, rows)
    out = []
    for s in part:
        if s.op is None:
            continue
        if folded and s in names.aliases:
            continue
        if folded and s not in names.of and s not in outside and uses.get(s) == 1 and notes.get(s) != "kept":
            found = writing.expression(s)
            if len(found[0]) <= FOLDED:
                writing.inline[s] = found
                continue
        out.append(writing.value(s, notes.get(s, "")))
    return tuple(out)


# ------------------------------------------------------------------------------------------------ stages


def _traced(step: Step, folded: bool) -> list[GraphPart]:
    """The step as its author wrote it, and its gradient as the rules of the ops give it, for one timestep."""
    graph = step.graph
    order = [s for s in ancestors(step.new.values()) if s.op is not None]
    fresh = len(graph.symbols)
    seeds = {name: graph.leaf("seed", f"d{name}", s.shape, s.dtype) for name, s in step.new.items()}
    outputs: dict[Symbol, Symbol] = {}
    for name, value in step.new.items():
        outputs[value] = graph.apply(total, (outputs[value], seeds[name]), {}) if value in outputs else seeds[name]
    targets = [step.x, *step.states.values(), *step.params.values()]
    found = pullback(outputs, [*targets, *step.new.values()])
    wanted = [found[s] for s in targets if s in found]
    back = [s for s in ancestors(wanted) if s.op is not None and s.number >= fresh]
    rows = _rows([*step.leaves, *seeds.values()], graph.symbols)
    names = _Names()
    _name_forward(names, step, order)
    for name, value in step.new.items():
        if found.get(value) is not seeds[name]:
            names.give(seeds[name], f"g_{name}'")
    for target in [*step.new.values(), *targets]:
        names.give(found.get(target), f"d_{names(target)}")
    goals = {names(target): found[target] for target in targets if target in found}
    values = _lines(names, rows, order, {a for s in back for a in s.parents}, folded, {})
    _name_gradients(names, back, values)
    arriving = _arriving(names, rows, seeds, found, step)
    gradient = _lines(names, rows, back, set(goals.values()), folded, {})
    same = [  # what one op hands on unchanged to several values has one name, and a line for each other one
        GraphValue(f"d_{name}", g.name, names(g), "same", (names(g),), _Writing(names, rows).shape(g), "")
        for name, g in goals.items()
        if names(g) != f"d_{name}"
    ]
    title = "traced, forward: the step as it is written, for one timestep"
    behind = "traced, backward: the gradient by the rules of the ops, for one timestep"
    return [
        GraphPart("traced", "forward", "step", title, values),
        GraphPart("traced", "backward", "gradient", behind, (*arriving, *gradient, *same)),
    ]


def _rows(leaves: Iterable[Symbol | None], symbols: Iterable[Symbol]) -> set[Symbol]:
    rows = {s for s in leaves if s is not None}
    for s in symbols:
        if s.op is not None and rowwise(s, rows):
            rows.add(s)
    return rows


def _arriving(
    names: _Names, rows: set[Symbol], seeds: Mapping[str, Symbol], found: Mapping[Symbol, Any], step: Step
) -> tuple[GraphValue, ...]:
    """A line for every gradient that reaches a state after the step: from the loss, and from the timestep behind."""
    writing = _Writing(names, rows)
    out = []
    for name, seed in seeds.items():
        carried = found.get(step.states[name])
        text = "from the loss" + (f" + d_{name} of timestep t+1" if carried is not None else "")
        out.append(GraphValue(names(seed), seed.name, text, "seed", (), writing.shape(seed), ""))
    return tuple(out)


def _scheduled(plan: Plan, folded: bool) -> list[GraphPart]:
    step = plan.step
    rows = plan.rows
    names = _Names()
    for leaf, source in plan.weights.items():
        names.give(leaf, leaf.name if source.kind == "param" else source.graph.taps.get(source.number, leaf.name))
        names.give(leaf, leaf.name)
    _name_forward(names, step, plan.forward, plan.before)
    for s in plan.once:
        if s.number in s.graph.taps:
            names.give(s, s.graph.taps[s.number])
    for name, value in step.new.items():
        if plan.totals[name] is not plan.seeds[name]:
            names.give(plan.seeds[name], f"g_{name}'")
        names.give(plan.totals[name], f"d_{names(value)}")
    for name, gradient in plan.carried.items():
        names.give(gradient, f"d_{name}")
    names.give(plan.dx, "d_x")
    for weight, gradient in plan.stepwise.items():
        names.give(gradient, f"d_{names(weight)}_t")

    forward = {"before": plan.before, "loop": plan.loop, "behind": plan.behind}
    lists = {**forward, "ahead": plan.ahead, "back": plan.back, "after": plan.after}
    again = set(plan.backward) & set(plan.forward)
    ends = {*step.new.values(), *plan.totals.values(), *plan.stepwise.values()}
    ends |= {s for s in (*plan.carried.values(), plan.dx) if s is not None}
    ends |= {s for sinks in plan.sinks.values() for sink in sinks for s in (sink.g, sink.a) if s is not None}
    kept = plan.kept | set(step.new.values())

    def outside(key: str) -> set[Symbol]:
        """What another part reads of this one: what it does not compute again itself."""
        found = set(ends)
        for other, symbols in lists.items():
            if other != key:
                found |= {a for s in symbols for a in s.parents} - set(symbols)
        return found

    def lines(key: str) -> tuple[GraphValue, ...]:
        own = lists[key]
        if key in forward:
            notes = dict.fromkeys(kept, "kept")
        else:
            notes = dict.fromkeys(again, "again")
        return _lines(names, rows, own, outside(key), folded, notes)

    in_forward = set(ancestors(step.new.values()))
    once = [s for s in plan.once if s in in_forward]
    once_back = [s for s in plan.once if s not in in_forward and (s.op is not TRANSPOSE or len(s.shape) != 2)]
    derived = (*_derived(plan, names, folded), *_lines(names, rows, once, {*once}, folded, {}))
    before, loop, behind = (lines(key) for key in forward)
    _name_gradients(names, plan.backward, [*before, *loop, *behind])
    carried = {step.states[n]: s for n, s in plan.carried.items()}
    early, late = (
        _arriving(names, rows, {n: s for n, s in plan.seeds.items() if s in seeds}, carried, step)
        for seeds in (set(plan.early_seeds), set(plan.loop_seeds))
    )
    sunk, stepwise = _weight_gradients(plan, names)
    parts = [
        ("forward", "once", "from the parameters alone, once for all T", derived),
        ("forward", "before", "before the loop, for all T at once", before),
        ("forward", "loop", "inside the loop, at every timestep", loop),
        ("forward", "behind", "behind the loop, for all T at once", behind),
        ("backward", "once_back", "gradient, from the parameters alone, once for all T",
         _lines(names, rows, once_back, set(once_back), folded, {})),
        ("backward", "ahead", "gradient, ahead of the loop backwards, for all T at once", (*early, *lines("ahead"))),
        ("backward", "back", "gradient, inside the loop backwards", (*late, *lines("back"))),
        ("backward", "after", "gradient, after the loop, for all T at once", lines("after")),
        ("backward", "sinks", "gradients of the weights: one product, or one sum, over T*B rows each", sunk),
        ("backward", "stepwise", "gradients of the weights, added up at every timestep", stepwise),
    ]  # fmt: skip
    return [GraphPart("scheduled", direction, key, title, values) for direction, key, title, values in parts]


def _derived(plan: Plan, names: _Names, folded: bool) -> tuple[GraphValue, ...]:
    """What stands for a weight and is made of parameters by the tape."""
    sources = {source: leaf for leaf, source in plan.weights.items() if source.kind != "param"}
    own = _Names()
    for source, leaf in sources.items():
        own.give(source, names(leaf))
    order = [s for s in ancestors(sources) if s.op is not None]
    for s in order:
        if s.number in s.graph.taps:
            own.give(s, s.graph.taps[s.number])
    return _lines(own, set(), order, set(sources), folded, {})


def _weight_gradients(plan: Plan, names: _Names) -> tuple[tuple[GraphValue, ...], tuple[GraphValue, ...]]:
    sunk, stepwise = [], []
    for weight, source in plan.weights.items():
        name = f"d_{names(weight)}"
        where = "" if source.kind == "param" else "goes on to the parameters by the tape"
        if weight in plan.sinks:
            texts, reads = [], []
            for sink in plan.sinks[weight]:
                operands = [s for s in (sink.a, sink.g) if s is not None]
                texts.append(
                    f"{names(operands[0])}^T @ {names(sink.g)}" if sink.a is not None else f"sum of {names(sink.g)}"
                )
                reads += [names(s) for s in operands]
            op = "matmul" if plan.sinks[weight][0].a is not None else "sum"
            text = " + ".join(texts)
            sunk.append(GraphValue(name, weight.name, text, op, tuple(dict.fromkeys(reads)), weight.shape, "", where))
        elif weight in plan.stepwise:
            g = plan.stepwise[weight]
            label = names(g)
            text = f"sum over t of {label}"
            stepwise.append(GraphValue(name, weight.name, text, "sum", (label,), weight.shape, "", where))
    return tuple(sunk), tuple(stepwise)


# -------------------------------------------------------------------------------------------- text and dot


def step_graph_text(graph: StepGraph) -> str:
    """`graph` for a reader: a line for every value, under headings that say when it is computed."""
    lines = [
        f"{graph.cell}: I = {graph.I}, H = {graph.H}, B = {graph.B}, {graph.dtype}"
        + (", with a mask" if graph.masked else "")
    ]
    if graph.refused:
        return "\n".join([*lines, f"not compiled: {graph.refused}", "scan runs it through unroll"]) + "\n"
    if graph.no_machine_code:
        lines.append(f"no machine code: it has no {graph.no_machine_code}; the NumPy executor runs it")
    if any(part.stage == "scheduled" for part in graph.parts) and graph.memory:
        lines.append(
            f"memory for each of T * B rows: {graph.memory['forward']} numbers forward, "
            f"{graph.memory['backward']} more backward"
        )
    legend = _legend(graph)
    lines += [legend] if legend else []
    for part in graph.parts:
        lines += ["", part.title, *_table(part.values)]
    return "\n".join(lines) + "\n"


def _legend(graph: StepGraph) -> str:
    names = [value.name for part in graph.parts for value in part.values]
    facts = []
    if any(name.endswith("'") and not name.startswith(("d_", "g_")) for name in names):
        facts.append("h' a state after the step")
    if any(name.startswith("a_") for name in names):
        facts.append("a_i goes into the nonlinearity of i")
    if any(name.startswith("x_") for name in names):
        facts.append("x_i is its part without the state")
    if any(name.startswith("d_") for name in names):
        facts.append("d_i the gradient at i")
    return "; ".join(facts)


def _table(values: Sequence[GraphValue]) -> list[str]:
    left = max((len(value.name) for value in values), default=0)
    texts = [_broken(value.text) for value in values]
    middle = max((len(line) for lines in texts for line in lines), default=0)
    shapes = [_shape(value.shape) for value in values]
    right = max(map(len, shapes), default=0)
    places = max((len(value.where) for value in values), default=0)
    out = []
    for value, text, shape in zip(values, texts, shapes, strict=True):
        facts = f"  {shape.ljust(right)}  {value.where.ljust(places)}  {NOTES.get(value.note, value.note)}"
        out.append(f"  {value.name.ljust(left)} = {text[0].ljust(middle)}{facts}".rstrip())
        out += [f"  {'':{left}}   {line}" for line in text[1:]]
    return out


NOTES = {"again": "computed again"}


def _broken(text: str) -> list[str]:
    """A long sum in several lines, broken before a + outside all parentheses."""
    lines = [""]
    depth = 0
    words = text.split(" ")
    for word in words:
        if word in ("+", "-") and depth == 0 and len(lines[-1]) > WIDE - 24:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
        depth += word.count("(") + word.count("[") - word.count(")") - word.count("]")
    return lines


def step_graph_dot(graph: StepGraph) -> str:
    """`graph` as Graphviz text: a box for every value in a frame for every part, gray where it is kept.

    Gray arrows come from another part, dashed ones from another timestep. Draw it with ``dot -Tsvg``.
    """
    out = [
        "digraph {",
        "  rankdir=TB; ranksep=0.35; nodesep=0.25;",
        '  node [shape=box, fontname="Helvetica", fontsize=11, margin="0.1,0.05"];',
        '  edge [arrowsize=0.6, fontname="Helvetica", fontsize=9];',
        f'  label={_quoted([_title(graph)])}; labelloc=t; fontname="Helvetica";',
    ]
    for stage in dict.fromkeys(part.stage for part in graph.parts):
        out += _stage_dot(graph, stage)
    return "\n".join([*out, "}"]) + "\n"


def _title(graph: StepGraph) -> str:
    return f"{graph.cell}: " + (f"not compiled: {graph.refused}" if graph.refused else f"I = {graph.I}, H = {graph.H}")


def _stage_dot(graph: StepGraph, stage: str) -> list[str]:
    latest: dict[str, str] = {}  # name -> box, of all parts so far
    frames: list[str] = []
    edges: list[str] = []
    count = 0
    for part in graph.parts:
        if part.stage != stage:
            continue
        own: dict[str, str] = {}
        lines = [f"  subgraph cluster_{stage}_{part.key} {{"]
        lines.append(
            f'    label={_quoted([part.title])}; style=rounded; color=gray60; fontsize=12; fontname="Helvetica";'
        )
        for value in part.values:
            reads = [own.get(name) or latest.get(name) for name in value.reads]
            for name, source in zip(value.reads, reads, strict=True):
                if source is None and name in graph.inputs:
                    source = own[name] = f"{stage}_{part.key}_{graph.inputs.index(name)}"
                    lines.append(f"    {source} [shape=ellipse, label={_quoted([name])}];")
                if source is not None:
                    far = "" if source in own.values() else " [color=gray60]"
                    edges.append(f"  {source} -> {stage}{count}{far};")
            style = ", style=filled, fillcolor=gray90" if value.note == "kept" else ""
            lines.append(f"    {stage}{count} [label={_quoted(_box(value))}{style}];")
            own[value.name] = f"{stage}{count}"
            count += 1
        frames += [*lines, "  }"]
        edges += [
            f'  {a} -> {b} [style=dashed, constraint=false, label="{word}"];' for a, b, word in _turns(graph, own)
        ]
        latest.update({name: box for name, box in own.items() if name not in graph.inputs})
    return [*frames, *edges]


def _box(value: GraphValue) -> list[str]:
    first, *rest = _broken(value.text)
    facts = [_shape(value.shape), value.where, NOTES.get(value.note, value.note)]
    return [f"{value.name} = {first}", *[f"    {line}" for line in rest], "   ".join(fact for fact in facts if fact)]


def _turns(graph: StepGraph, boxes: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """What one timestep hands to another: (from, to, word)."""
    out = []
    for name in graph.inputs:
        if name in boxes and f"{name}'" in boxes:
            out.append((boxes[f"{name}'"], boxes[name], "next timestep"))
        arrives = boxes.get(f"g_{name}'") or boxes.get(f"d_{name}'")
        if f"d_{name}" in boxes and arrives:
            out.append((boxes[f"d_{name}"], arrives, "timestep before"))
    return out


def _quoted(rows: Sequence[str]) -> str:
    """A Graphviz string of these rows."""
    return '"' + "\\n".join(row.replace("\\", "\\\\").replace('"', '\\"') for row in rows) + '"'
