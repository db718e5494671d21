"""Cells nobody wrote: a hypothesis strategy for recurrent steps, random graphs over the ops.

An example is the source of a Cell, as an author would have written it, so that a failure prints a cell to run.

Sizes are chosen by the strategy; the batch size is not known to the cell and stands in shapes as the letter "B". Values
stay in moderate ranges: every value carries a bound, and one that has grown too large is squashed before it is used.
Comparisons and kinks get an odd offset, so that no branch is decided by the last bit of a number that is zero on paper.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tinygrad_rnn import Cell, Param, State, ops, tap, wrap_cell

Shape = tuple[Any, ...]  # of sizes, with "B" for the batch axis


@dataclass(frozen=True)
class RandomCell:
    """A declared cell: sizes, states by name, parameters as (shape, role), and the lines of its step."""

    I: int
    H: int
    states: dict[str, tuple[int, ...]]
    params: dict[str, tuple[tuple[int, ...], str]]
    lines: tuple[str, ...]
    returned: dict[str, str]
    starts: dict[str, float] = field(default_factory=dict)
    declared: str = ""

    @property
    def output(self) -> str:
        return self.declared or next(iter(self.states))

    @property
    def source(self) -> str:
        """The cell as a Python file, without its imports."""
        states = ", ".join(f"{k!r}: State({shape}, {self.starts.get(k, 0.0)})" for k, shape in self.states.items())
        params = ", ".join(f"{k!r}: Param({shape}, 'normal:0.5', {role!r})" for k, (shape, role) in self.params.items())
        return "\n".join(
            [
                "class Nobody(Cell):",
                "    name = 'nobody'",
                "    summary = citation = equation = 'drawn at random'",
                *([f"    output = {self.declared!r}"] if self.declared else []),
                "    def state(self):",
                f"        return {{{states}}}",
                "    def params(self):",
                f"        return {{{params}}}",
                "    def step(self, p, x, s):",
                *(f"        {line}" for line in self.lines),
                f"        return {{{', '.join(f'{name!r}: {value}' for name, value in self.returned.items())}}}",
            ]
        )

    def build(self, wraps: Sequence[str] = ()) -> Cell:
        names: dict[str, Any] = {
            "__name__": "nobody",
            "Cell": Cell,
            "Param": Param,
            "State": State,
            "ops": ops,
            "tap": tap,
        }
        exec(compile(self.source, "nobody.py", "exec"), names)
        made: Cell = wrap_cell(names["Nobody"], wraps)(self.I, self.H)
        return made

    def __repr__(self) -> str:
        return f"I={self.I}, H={self.H}\n{self.source}\n"


@dataclass(frozen=True)
class Value:
    """An expression of the step: its text, its shape, and what its magnitude will hardly exceed."""

    text: str
    shape: Shape
    bound: float


LIMIT = 12.0  # a value above is squashed before anything else is done with it

# name: (template, bound of the result from the bound of the operand); v is the operand
UNARY: dict[str, tuple[str, Callable[[float], float]]] = {
    "neg": ("-{v}", lambda m: m),
    "tanh": ("ops.tanh({v})", lambda _m: 1.0),
    "tanh method": ("{v}.tanh()", lambda _m: 1.0),
    "sigmoid": ("ops.sigmoid({v})", lambda _m: 1.0),
    "sigmoid method": ("{v}.sigmoid()", lambda _m: 1.0),
    "relu": ("ops.relu({v} + 0.137)", lambda m: m),
    "softplus": ("ops.softplus({v})", lambda m: m + 0.7),
    "abs": ("ops.abs({v} - 0.291)", lambda m: m + 0.3),
    "sin": ("ops.sin({v})", lambda _m: 1.0),
    "cos": ("ops.cos({v})", lambda _m: 1.0),
    "gelu": ("ops.gelu({v})", lambda m: m),
    "exp": ("ops.exp({v} * 0.1)", lambda m: math.exp(m * 0.1)),
    "exp of tanh": ("ops.exp(ops.tanh({v}))", lambda _m: 2.8),
    "log": ("ops.log({v} * {v} + 0.5)", lambda m: 0.7 + math.log1p(m * m)),
    "log1p": ("ops.log1p(ops.abs({v} + 0.137))", lambda m: math.log1p(m + 0.2)),
    "sqrt": ("ops.sqrt({v} * {v} + 0.3)", lambda m: m + 0.6),
    "square": ("{v} ** 2", lambda m: m * m),
    "cube": ("(0.3 * {v}) ** 3", lambda m: (0.3 * m) ** 3),
    "root": ("({v} * {v} + 0.4) ** 0.5", lambda m: m + 0.7),
    "inverse": ("({v} * {v} + 0.5) ** -1", lambda _m: 2.0),
    "power of a number": ("2.0 ** ops.tanh({v})", lambda _m: 2.0),
    "over": ("1.5 / ({v} * {v} + 1.0)", lambda _m: 1.5),
    "clip": ("ops.clip({v}, -0.713, 0.917)", lambda _m: 1.0),
    "clip above": ("ops.clip({v}, high=0.417)", lambda m: m),
    "sign": ("ops.sign({v} + 0.137)", lambda _m: 1.0),
    "scale": ("{v} * 0.7", lambda m: m * 0.7),
    "halve": ("{v} / 2", lambda m: m / 2),
    "shift": ("{v} + 1", lambda m: m + 1),
    "complement": ("1.0 - {v}", lambda m: m + 1),
    "twice": ("{v} + {v}", lambda m: 2 * m),
    "same": ("+{v}", lambda m: m),
    "to and fro": ("ops.astype(ops.astype({v}, 'float64'), {v}.dtype)", lambda m: m),
}

# l and r are the operands, broadcast against each other
BINARY: dict[str, tuple[str, Callable[[float, float], float]]] = {
    "add": ("{l} + {r}", lambda a, b: a + b),
    "sub": ("{l} - {r}", lambda a, b: a + b),
    "mul": ("{l} * {r}", lambda a, b: a * b),
    "div": ("{l} / ({r} * {r} + 0.5)", lambda a, _b: 2 * a),
    "div by softplus": ("{l} / (ops.softplus({r}) + 0.3)", lambda a, _b: 3.4 * a),
    "maximum": ("ops.maximum({l}, {r} + 0.137)", lambda a, b: max(a, b + 0.2)),
    "minimum": ("ops.minimum({l} - 0.291, {r})", lambda a, b: max(a + 0.3, b)),
    "where": ("ops.where(ops.greater({l}, {r} + 0.137), {l}, 0.5 * {r})", lambda a, b: max(a, b)),
    "where less": ("ops.where({l} < 0.137, {r}, -0.3)", lambda _a, b: max(b, 0.3)),
    "where equal": ("ops.where(ops.less_equal({l} + 0.291, {r}), 0.2, {l})", lambda a, _b: max(a, 0.2)),
    "condition as number": ("{l} * ops.greater_equal({r}, 0.137)", lambda a, _b: a),
    "power": ("({l} * {l} + 0.5) ** ops.tanh({r})", lambda a, _b: a * a + 2),
    "gate": ("ops.sigmoid({l}) * {r} + (1.0 - ops.sigmoid({l})) * ops.tanh({l})", lambda _a, b: max(b, 1.0)),
    "function": ("ops.mul({l}, ops.sub({r}, 0.3))", lambda a, b: a * (b + 0.3)),
}

# along the last axis; the result keeps the shape
ROWWISE: dict[str, tuple[str, Callable[[float], float]]] = {
    "softmax": ("ops.softmax({v})", lambda _m: 1.0),
    "log softmax": ("ops.log_softmax({v})", lambda m: 2 * m + 3),
    "cumsum": ("ops.cumsum({v}, -1)", lambda m: 3 * m),
    "flip": ("ops.flip({v}, -1)", lambda m: m),
    "reversed slice": ("{v}[..., ::-1]", lambda m: m),
    "layer norm": (
        "({v} - ops.mean({v}, -1, keepdims=True)) / "
        "ops.sqrt(ops.mean(({v} - ops.mean({v}, -1, keepdims=True)) ** 2, -1, keepdims=True) + 0.1)",
        lambda _m: 3.0,
    ),
    "unit length": ("{v} / (ops.sum({v} * {v}, -1, keepdims=True) + 0.2) ** 0.5", lambda _m: 1.0),
}

REDUCTIONS: dict[str, Callable[[float, float], float]] = {
    "sum": lambda m, k: m * math.sqrt(k) + m,
    "mean": lambda m, _k: m,
    "max": lambda m, _k: m,
    "min": lambda m, _k: m,
    "logsumexp": lambda m, k: m + math.log(k),
}


def broadcast(left: Shape, right: Shape) -> Shape | None:
    """The shape of two arrays broadcast against each other, None where they do not fit."""
    sizes = []
    for a, b in itertools.zip_longest(reversed(left), reversed(right), fillvalue=1):
        if a != b and 1 not in (a, b):
            return None
        sizes.append(b if a == 1 else a)
    return tuple(reversed(sizes))


class Author:
    """Writes the lines of one step, each from what `draw` chooses."""

    def __init__(self, draw: Callable[..., Any], I: int, H: int, states: dict[str, tuple[int, ...]]) -> None:
        self.draw = draw
        self.I, self.H = I, H
        self.states = states
        self.params: dict[str, tuple[tuple[int, ...], str]] = {}
        self.lines: list[str] = []
        self.x = Value("x", ("B", I), 3.0)
        self.values = [self.x, *(Value(f"s.{name}", ("B", *shape), 2.0) for name, shape in states.items())]
        self.used: set[str] = set()
        self.taps = 0

    def choose(self, options: Any) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def pick(self, fits: Callable[[Value], bool] = lambda _v: True) -> Value | None:
        """A value that fits: one that nothing has used yet, where there is one, in two of three cases."""
        options = [value for value in reversed(self.values) if fits(value)]
        fresh = [value for value in options if value.text not in self.used]
        if not options:
            return None
        value: Value = self.choose(fresh if fresh and self.draw(st.integers(0, 2)) else options)
        self.used.add(value.text)
        return value

    def param(self, shape: tuple[int, ...], role: str) -> Value:
        """A parameter of this shape: one that is there already, or a new one."""
        known = [name for name, (size, _) in self.params.items() if size == shape]
        name = self.choose([*known, "new"]) if known else "new"
        if name == "new":
            name = f"q{len(self.params)}"
            self.params[name] = (shape, self.choose([role, role, role, "buffer"]))
        return Value(f"p.{name}", shape, 1.0 if len(shape) != 1 else 1.5)

    def write(self, text: str, shape: Shape, bound: float) -> None:
        """A new line; sometimes with a tap, sometimes squashed. Not where rows would meet rows, or it is large."""
        if shape.count("B") > 1 or math.prod(n for n in shape if n != "B") > 60:
            return
        name = f"v{len(self.lines)}"
        if bound > LIMIT:
            text, bound = f"ops.tanh(({text}) * 0.2)", 1.0
        if self.draw(st.integers(0, 9)) == 7:
            text = f"tap('t{self.taps}', {text})"
            self.taps += 1
        self.lines.append(f"{name} = {text}")
        self.values.append(Value(name, shape, bound))

    # ------------------------------------------------------------------------------------ moves

    def unary(self) -> None:
        v = self.pick()
        assert v is not None
        template, bound = UNARY[self.choose(UNARY)]
        self.write(template.format(v=v.text), v.shape, bound(v.bound))

    def binary(self) -> None:
        left = self.pick()
        assert left is not None
        right = self.pick(lambda v: broadcast(left.shape, v.shape) is not None)
        assert right is not None
        if self.draw(st.booleans()):
            left, right = right, left
        template, bound = BINARY[self.choose(BINARY)]
        shape = broadcast(left.shape, right.shape)
        assert shape is not None
        self.write(template.format(l=left.text, r=right.text), shape, bound(left.bound, right.bound))

    def product(self) -> None:
        """A value times a matrix of its own, or one used before, or its transpose, or a vector."""
        v = self.pick(lambda v: len(v.shape) >= 2 and v.shape[-1] != "B")
        if v is None:
            return
        k = v.shape[-1]
        m = self.choose([self.H, self.H, k, self.I, 2 * self.H])
        kind = self.choose(["plain", "plain", "plain", "transposed", "vector", "function"])
        bound = min(v.bound, 4.0) * 0.5 * math.sqrt(k) + 0.5
        if kind == "vector":
            w = self.param((k,), "bias")
            self.write(f"{v.text} @ {w.text}", v.shape[:-1], bound)
        elif kind == "transposed":
            w = self.param((m, k), "recurrent")
            self.write(f"{v.text} @ {w.text}.T", (*v.shape[:-1], m), bound)
        else:
            w = self.param((k, m), "recurrent")
            text = f"{v.text} @ {w.text}" if kind == "plain" else f"ops.matmul({v.text}, {w.text})"
            self.write(text, (*v.shape[:-1], m), bound)

    def gated_product(self) -> None:
        """(r * h) @ W, tanh(h) @ W, x @ W + h @ U + b: what papers write."""
        a = self.pick(lambda v: len(v.shape) == 2 and v.shape[0] == "B")
        if a is None:
            return
        k, H = a.shape[1], self.H
        w = self.param((k, H), "recurrent")
        kind = self.choose(["tanh", "gate", "affine", "both"])
        if kind == "tanh":
            self.write(f"ops.tanh({a.text}) @ {w.text}", ("B", H), 0.5 * math.sqrt(k) + 0.5)
        elif kind == "gate":
            u = self.param((k, k), "recurrent")
            self.write(
                f"(ops.sigmoid({a.text} @ {u.text}) * {a.text}) @ {w.text}", ("B", H), 0.5 * a.bound * math.sqrt(k)
            )
        elif kind == "affine":
            b = self.param((H,), "bias")
            self.write(f"{a.text} @ {w.text} + {b.text}", ("B", H), 0.5 * a.bound * math.sqrt(k) + 1.5)
        else:
            c = self.pick(lambda v: len(v.shape) == 2 and v.shape[0] == "B")
            assert c is not None
            u, b = self.param((c.shape[1], H), "recurrent"), self.param((H,), "bias")
            self.write(
                f"ops.sigmoid({a.text} @ {w.text} + {c.text} @ {u.text} + {b.text})",
                ("B", H),
                1.0,
            )

    def batched_product(self) -> None:
        """Fast weights: a vector of each row times a matrix of the same row; or the outer product of two vectors."""
        S = self.pick(lambda v: len(v.shape) == 3 and v.shape[0] == "B")
        if S is not None and self.draw(st.booleans()):
            q = self.pick(lambda v: v.shape == ("B", S.shape[1]))
            if q is not None:
                text = f"ops.squeeze(ops.expand_dims({q.text}, 1) @ {S.text}, 1)"
                self.write(text, ("B", S.shape[2]), min(q.bound * S.bound, 6.0) * math.sqrt(S.shape[1]))
                return
        a, b = (self.pick(lambda v: len(v.shape) == 2 and v.shape[0] == "B") for _ in range(2))
        assert a is not None and b is not None
        text = self.choose([f"{a.text}[:, :, None] * {b.text}[:, None, :]"] * 2 + [
            f"ops.expand_dims({a.text}, 2) @ ops.expand_dims({b.text}, 1)"
        ])  # fmt: skip
        self.write(text, ("B", a.shape[1], b.shape[1]), a.bound * b.bound)

    def vector(self) -> None:
        """A bias, a scalar, or a peephole p * c."""
        v = self.pick(lambda v: "B" not in v.shape[1:])
        if v is None:
            return
        size = self.choose([v.shape[1:], v.shape[1:], (), (1,)])
        w = self.param(size, "bias")
        shape = broadcast(v.shape, size)
        if shape is None or len(shape) > 3:
            return
        text = self.choose([f"{v.text} + {w.text}", f"{w.text} * {v.text}", f"ops.exp({w.text}) * {v.text}"])
        self.write(text, shape, 3.0 * v.bound)

    def of_parameters(self) -> None:
        """What depends on parameters alone."""
        kind = self.choose(["exp", "product", "vector", "softmax"])
        if kind == "exp":
            w = self.param(self.choose([(self.H,), ()]), "bias")
            self.write(f"ops.exp({w.text})", w.shape, 3.0)
        elif kind == "vector":
            w = self.param((self.H,), "bias")
            self.write(f"+{w.text}", w.shape, 1.5)
        elif kind == "softmax":
            w = self.param((self.H,), "bias")
            self.write(f"ops.softmax({w.text} * 3.0)", w.shape, 1.0)
        else:
            a, b = self.param((self.H, self.H), "recurrent"), self.param((self.H, self.H), "recurrent")
            self.write(f"{a.text} @ {b.text}", (self.H, self.H), 2.0)

    def rowwise(self) -> None:
        v = self.pick(lambda v: len(v.shape) >= 1 and v.shape[-1] != "B")
        if v is None:
            return
        template, bound = ROWWISE[self.choose(ROWWISE)]
        self.write(template.format(v=v.text), v.shape, bound(v.bound))

    def reduction(self) -> None:
        name = self.choose(REDUCTIONS)
        extreme = name in ("max", "min")
        v = self.pick(lambda v: len(v.shape) == 2 and v.shape[1] != "B" if extreme else len(v.shape) >= 2)
        if v is None:
            return
        # extremes along a row only: rows may be equal, and which of them gets the gradient the last bit would say
        axis = self.choose([-1] if extreme else [-1, -1, 0, tuple(range(1, len(v.shape)))])
        keep = self.draw(st.booleans())
        axes = axis if isinstance(axis, tuple) else (axis % len(v.shape),)
        gone = [v.shape[i] for i in axes]
        sizes = [1 if i in axes else n for i, n in enumerate(v.shape) if keep or i not in axes]
        count = math.prod(5 if n == "B" else n for n in gone)
        self.write(
            f"ops.{name}({v.text}, {axis}, keepdims={keep})", tuple(sizes), REDUCTIONS[name](v.bound, float(count))
        )

    def pieces(self) -> None:
        """Slices, splits, picked and padded columns."""
        v = self.pick(lambda v: len(v.shape) >= 2 and v.shape[-1] != "B" and v.shape[-1] > 1)
        if v is None:
            return
        n = v.shape[-1]
        k = self.draw(st.integers(1, n - 1))
        kind = self.choose(["head", "tail", "column", "stride", "split", "picked", "pad", "minus"])
        body = v.shape[:-1]
        lead = ":, " * len(body)
        texts: dict[str, tuple[str, Shape]] = {
            "head": (f"{v.text}[{lead}:{k}]", (*body, k)),
            "tail": (f"{v.text}[..., {k}:]", (*body, n - k)),
            "column": (f"{v.text}[..., {k}]", body),
            "stride": (f"{v.text}[..., ::2]", (*body, (n + 1) // 2)),
            "split": (f"ops.split({v.text}, [{k}, {n - k}], axis=-1)[0]", (*body, k)),
            "picked": (f"{v.text}[{lead}[0, {k}, 0]]", (*body, 3)),
            "pad": (f"ops.pad({v.text}, [{'(0, 0), ' * len(body)}(1, 0)])", (*body, n + 1)),
            "minus": (f"{v.text}[..., -1:]", (*body, 1)),
        }
        text, shape = texts[kind]
        self.write(text, shape, v.bound)

    def joined(self) -> None:
        """concatenate and stack; and [x, h] @ W."""
        a = self.pick(lambda v: len(v.shape) == 2 and v.shape[0] == "B")
        b = self.pick(lambda v: len(v.shape) == 2 and v.shape[0] == "B")
        assert a is not None and b is not None
        bound = max(a.bound, b.bound)
        if a.shape == b.shape and self.draw(st.booleans()):
            axis, shape = self.choose([(1, ("B", 2, a.shape[1])), (-1, ("B", a.shape[1], 2))])
            self.write(f"ops.stack([{a.text}, {b.text}], axis={axis})", shape, bound)
            return
        size = a.shape[1] + b.shape[1]
        text = f"ops.concatenate([{a.text}, {b.text}], axis={self.choose([1, -1])})"
        if self.draw(st.booleans()):
            w = self.param((size, self.H), "recurrent")
            self.write(f"{text} @ {w.text}", ("B", self.H), 0.5 * min(bound, 4.0) * math.sqrt(size))
        elif size <= 4 * self.H + self.I:
            self.write(text, ("B", size), bound)

    def moved(self) -> None:
        """reshape, expand_dims, squeeze, transpose, swapaxes, broadcast_to."""
        v = self.pick(lambda v: 2 <= len(v.shape) <= 3)
        if v is None:
            return
        kind = self.choose(["expand", "flat", "swap", "transpose", "broadcast", "squeeze", "folded"])
        rank = len(v.shape)
        if kind == "expand" and rank == 2:
            axis = self.choose([1, 2, -1])
            sizes = list(v.shape)
            sizes.insert(axis % 3, 1)
            self.write(f"ops.expand_dims({v.text}, {axis})", tuple(sizes), v.bound)
        elif kind == "flat" and rank == 3 and v.shape[0] == "B":
            self.write(f"ops.reshape({v.text}, ({v.text}.shape[0], -1))", ("B", v.shape[1] * v.shape[2]), v.bound)
        elif kind == "folded" and rank == 2 and v.shape[0] == "B" and v.shape[1] % 2 == 0:
            self.write(f"{v.text}.reshape({v.text}.shape[0], 2, -1)", ("B", 2, v.shape[1] // 2), v.bound)
        elif kind == "swap":
            a, b = self.choose([(0, 1)] if rank == 2 else [(1, 2), (-1, -2), (0, 1)])
            sizes = list(v.shape)
            sizes[a], sizes[b] = sizes[b], sizes[a]
            self.write(f"ops.swapaxes({v.text}, {a}, {b})", tuple(sizes), v.bound)
        elif kind == "transpose" and rank == 3:
            order = self.choose([(0, 2, 1), (2, 1, 0), (1, 0, 2)])
            self.write(f"ops.transpose({v.text}, {order})", tuple(v.shape[i] for i in order), v.bound)
        elif kind == "broadcast" and v.shape[-1] == 1:
            self.write(
                f"ops.broadcast_to({v.text}, (*{v.text}.shape[:-1], {self.H}))", (*v.shape[:-1], self.H), v.bound
            )
        elif kind == "squeeze" and 1 in v.shape:
            axis = v.shape.index(1)
            self.write(f"ops.squeeze({v.text}, {axis})", v.shape[:axis] + v.shape[axis + 1 :], v.bound)

    # ---------------------------------------------------------------------------------- results

    def read_out(self, new: Sequence[Value]) -> str:
        """A state (B, H) that no step reads: a map of new states and of whatever else there is."""
        fits = [value for value in [*new, *self.values] if len(value.shape) == 2 and value.shape[0] == "B"]
        a, b = self.choose(fits[: 1 + len(new)]), self.choose(fits)
        w, u = (self.param((v.shape[1], self.H), "recurrent").text for v in (a, b))
        return str(
            self.choose(
                [
                    f"{a.text} @ {w}",
                    f"ops.tanh({a.text} @ {w} - {b.text} @ {u})",
                    f"ops.sigmoid(x @ {self.param((self.I, self.H), 'input').text}) * ({a.text} @ {w})",
                    f"ops.tanh({a.text}) @ {w} + ops.exp(-{b.text} * {b.text}) @ {u}",
                    f"ops.tanh({a.text}) * {self.param((), 'bias').text} @ {w}",
                    f"ops.sin({a.text} @ {w}) @ {self.param((self.H, self.H), 'recurrent').text}",
                ]
            )
        )

    def fitted(self, value: Value, shape: tuple[int, ...]) -> str:
        """`value` as a new state of this shape: as it is, through a matrix, or as a number added to every element."""
        target = ("B", *shape)
        text, bound = value.text, value.bound
        if value.shape != target:
            full = broadcast(value.shape, target)
            size = math.prod(shape)
            if full == target and self.draw(st.booleans()):
                text, bound = f"({text} + 0.3 * s.{self.same_shape(shape)})", bound + 0.6
            elif value.shape and value.shape[0] == "B" and "B" not in value.shape[1:]:
                flat = math.prod(value.shape[1:])
                w = self.param((flat, size), "recurrent")
                if len(value.shape) != 2:
                    text = f"ops.reshape({text}, (x.shape[0], {flat}))"
                text = f"{text} @ {w.text}"
                bound = min(bound, 4.0) * 0.5 * math.sqrt(flat) + 0.5
                if len(shape) != 1:
                    text = f"ops.reshape({text}, (x.shape[0], {', '.join(map(str, shape))}))" if shape else (
                        f"ops.reshape({text}, (-1,))"
                    )  # fmt: skip
            else:
                text, bound = f"(ops.mean({text}) + 0.5 * s.{self.same_shape(shape)})", bound + 1.0
        if bound <= 2.0 and self.draw(st.booleans()):
            return text
        old = f"s.{self.same_shape(shape)}"
        return str(
            self.choose(
                [
                    f"ops.tanh({text})",
                    f"ops.sigmoid({text})",
                    f"ops.clip({text}, -1.913, 1.713)",
                    f"ops.sin({text})",
                    f"0.8 * {old} + 0.2 * ops.tanh({text})",
                    f"ops.sigmoid({text}) * {old}",
                ]
            )
        )

    def same_shape(self, shape: tuple[int, ...]) -> str:
        return str(self.choose([name for name, size in self.states.items() if size == shape]))


MOVES = [
    "unary", "unary", "binary", "binary", "binary", "product", "product", "gated_product", "gated_product",
    "vector", "vector", "of_parameters", "rowwise", "reduction", "pieces", "joined", "moved", "batched_product",
]  # fmt: skip


@st.composite
def random_cells(draw: Callable[..., Any], longest: int = 12) -> RandomCell:
    """Cells with 1 to 3 states and up to `longest` lines."""
    H = draw(st.sampled_from([3, 1, 2, 4, 5]))
    I = draw(st.sampled_from([2, H, 1, 3]))
    shapes = st.sampled_from([(H,), (H,), (H,), (), (2, H), (H, H), (H + 1,)])
    first = draw(st.sampled_from([(H,), (H,), (H,), (H,), (2, H), ()]))
    states = {"h": first}
    for name in draw(st.sampled_from([[], ["c"], ["c", "m"]])):
        states[name] = draw(shapes)
    author = Author(draw, I, H, states)
    for _ in range(draw(st.integers(1, longest))):
        getattr(author, draw(st.sampled_from(MOVES)))()
    returned: dict[str, str] = {}
    for name, shape in states.items():
        others = [f"s.{other}" for other, size in states.items() if size == shape]
        kind = draw(st.sampled_from(["made"] * 15 + ["old", "counter", "x", "x", "x", "parameter", "again"]))
        if kind == "old":
            returned[name] = draw(st.sampled_from(others))
        elif kind == "counter":
            returned[name] = f"s.{name} + 1"
        elif kind == "x" and shape == (I,):
            returned[name] = "x"
        elif kind == "parameter" and shape:
            w = author.param(shape[-1:], "bias")
            returned[name] = f"ops.broadcast_to(ops.exp({w.text}), x.shape[:1] + {shape})"
        elif kind == "again" and any(states[other] == shape for other in returned):
            returned[name] = returned[next(other for other in returned if states[other] == shape)]
        else:
            value = author.values[-1] if not returned else author.pick()
            assert value is not None
            returned[name] = author.fitted(value, shape)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1]))):
        author.params[f"unused{len(author.params)}"] = (draw(st.sampled_from([(H,), (I, H), ()])), "bias")
    starts = {name: draw(st.sampled_from([0.0, 0.0, 0.5])) for name in states}
    # a line may name what it computes as one of the states, so that others of the step depend on the new state
    for name in list(returned):
        if draw(st.booleans()):
            author.lines.append(f"new_{name} = {returned[name]}")
            returned[name] = f"new_{name}"
    new = [Value(returned[name], ("B", *shape), 2.0) for name, shape in states.items() if returned[name][:4] == "new_"]
    for name in draw(st.sampled_from([[], [], ["y"], ["y", "z"]])):
        states[name], starts[name] = (H,), 0.0
        author.lines.append(f"{name} = {author.read_out(new)}")
        returned[name] = name
        new.append(Value(name, ("B", H), 2.0))
    declared = draw(st.sampled_from(["", *states]))
    return RandomCell(I, H, states, author.params, tuple(author.lines), returned, starts, declared)
