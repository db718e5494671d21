"""Cells with one fault each, and which check has to find it. `check_cell` is held against them in test_testing.py."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinygrad_rnn import (
    Cell,
    InputError,
    Noise,
    Param,
    State,
    Tensor,
    bias,
    buffer,
    engine,
    input_matrix,
    ops,
    primitive,
    recurrent_matrix,
    tap,
)


class Sound(Cell):
    """Nothing is wrong with it. The others are this one with another step, or another declaration."""

    name = "sound"
    summary = "a plain network beside a running mean of its output"
    citation = "written for a test"
    equation = """\
a  = x W + h U + b
h' = tanh(a)
m' = rate * m + (1 - rate) * h'"""

    @dataclass(frozen=True)
    class Options:
        rate: float = field(default=0.5, metadata={"help": "share of m that stays"})

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,)), "m": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {"W": input_matrix(self.I, self.H), "U": recurrent_matrix(self.H), "b": bias(self.H)}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return self.finish(s, ops.tanh(tap("a", self.summed(p, x, s))))

    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return x @ p.W + s.h @ p.U + p.b

    def finish(self, s: Any, h: Any) -> dict[str, Any]:
        rate = self.options.rate
        return {"h": h, "m": rate * s.m + (1.0 - rate) * h}


class WithReference(Sound):
    def reference(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = np.tanh(np.add(x @ p.W, s.h @ p.U) + p.b)
        return {"h": h, "m": s.m + (1.0 - self.options.rate) * (h - s.m)}


class WithEinsum(WithReference):
    """A reference that no wrapper can get into."""

    def reference(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = np.tanh(np.einsum("bi,ih->bh", x, p.W) + np.einsum("bi,ih->bh", s.h, p.U) + p.b)
        return {"h": h, "m": s.m + (1.0 - self.options.rate) * (h - s.m)}


# ------------------------------------------------------------------------------------------ declaration


class NoStep(Cell):
    name, summary, citation, equation = "no_step", "half a cell", "nobody", "h' = ?"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {}


class NameWithSpaces(Sound):
    name = "my cell"


class OutputIsNoH(Sound):
    def state(self) -> dict[str, State]:
        return {"m": State((2,)), "h": State((self.H,))}


class NoSuchInitialiser(Sound):
    def params(self) -> dict[str, Param]:
        return {**super().params(), "U": recurrent_matrix(self.H, "ortogonal")}


class NoHelp(Sound):
    @dataclass(frozen=True)
    class Options:
        rate: float = 0.5


class StateWithoutEquation(Sound):
    equation = "h' = tanh(x W + h U + b); m is the running mean of h, with rate"


class ParameterWithoutEquation(Sound):
    """No fault, but told."""

    equation = "h' = tanh(x W + h U); m' = rate m + (1 - rate) h'"


class HelpIsNoText(Sound):
    @dataclass(frozen=True)
    class Options:
        rate: float = field(default=0.5, metadata={"help": 5})


class DefaultOfAnotherType(Sound):
    @dataclass(frozen=True)
    class Options:
        rate: float = field(default=0.5, metadata={"help": "share of m that stays"})
        units: int = field(default="four", metadata={"help": "nothing"})  # type: ignore[assignment]


class OptionsThatRaise(Sound):
    @dataclass(frozen=True)
    class Options:
        rate: float = field(default=0.5, metadata={"help": "share of m that stays"})

        def __post_init__(self) -> None:
            raise RuntimeError("half\ndone")


class CheckThatRaises(Sound):
    def check(self) -> None:
        raise ZeroDivisionError("nothing to divide by")


class DeviationsAreNoText(Sound):
    deviations = 5  # type: ignore[assignment]


class NamedLikeWrapped(Sound):
    name = "sound+zoneout:0.1"


class StateIsCalledX(Sound):
    def state(self) -> dict[str, State]:
        return {"h": State((self.H,)), "x": State((self.H,))}


class RandomDeclaration(Sound):
    def params(self) -> dict[str, Param]:
        return {**super().params(), "b": bias(self.H, random.SystemRandom().uniform(0.5, 1.0))}


# ------------------------------------------------------------------------------------ shapes, sizes, dtypes


class TakesIForH(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return x + s.h @ p.U + p.b + 0.0 * ops.sum(p.W)


class NeedsSquare(Sound):
    """The same, said aloud: no fault."""

    def check(self) -> None:
        if self.I != self.H:
            raise InputError(f"cell sound: expected I = H, got I={self.I}, H={self.H}")

    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return x @ p.W + x + s.h @ p.U + p.b


class LosesAState(Sound):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(self.summed(p, x, s))}


class CallsNumPy(Sound):
    """By functions that there are ops for: no fault."""

    def summed(self, p: Any, x: Any, s: Any) -> Any:
        both = np.concatenate([x, np.clip(s.h, -1, 1)], -1)
        return np.add(np.dot(both, np.concatenate([p.W, p.U])), p.b)

    def finish(self, s: Any, h: Any) -> dict[str, Any]:
        return super().finish(s, np.float64(1.0) * np.where(h > 0.0, np.maximum(h, 0.0), h))


class CallsNumPyAlone(Sound):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return self.finish(s, np.tanh(np.unwrap(self.summed(p, x, s))))


class WritesIntoAnArray(Sound):
    def finish(self, s: Any, h: Any) -> dict[str, Any]:
        total = np.zeros(h.shape, h.dtype)
        total += h
        return super().finish(s, total)


class MakesATensor(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return x @ p.W + Tensor(s.h * 1.0) @ p.U + p.b


class Float32Constant(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return super().summed(p, x, s) * np.ones(self.H, np.float32)


class Float64Constant(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return super().summed(p, x, s) * np.ones(self.H)


class WidensTheState(Sound):
    def finish(self, s: Any, h: Any) -> dict[str, Any]:
        return super().finish(s, h.astype("float64"))


class LeavesTheProgram(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        raise SystemExit(0)


class ReturnsAnArray(Sound):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {**super().step(p, x, s), "h": np.tanh(x.data @ p.W.data)}


class SqueezesOneRow(Sound):
    def finish(self, s: Any, h: Any) -> dict[str, Any]:
        return super().finish(s, h if h.shape[0] > 1 else ops.reshape(h, h.shape[1:]))


# ------------------------------------------------------------------------------------------------- purity


class Counts(Sound):
    """What depends on time is kept in the cell."""

    def summed(self, p: Any, x: Any, s: Any) -> Any:
        self.count = getattr(self, "count", 0) + 1
        return super().summed(p, x, s) + 0.1 * self.count


class Remembers(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        before = getattr(self, "before", 0.0)
        self.before = super().summed(p, x, s)
        return self.before + 0.1 * before


class CountsOnTheClass(Sound):
    total = 0

    def summed(self, p: Any, x: Any, s: Any) -> Any:
        type(self).total += 1
        return super().summed(p, x, s) + 0.1 * self.total


class CountsInTheModule(Sound):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        COUNTS.append(1)
        return self.finish(s, ops.tanh(self.summed(p, x, s) + 0.1 * len(COUNTS)))


COUNTS: list[int] = []


class KeepsOnParameters(Sound):
    """p is one object for a whole sequence."""

    def summed(self, p: Any, x: Any, s: Any) -> Any:
        p.count = getattr(p, "count", 0) + 1
        return super().summed(p, x, s) + 0.1 * p.count


class DrawsGlobally(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return super().summed(p, x, s) * float(np.random.uniform(0.5, 1.0))  # noqa: NPY002


class DrawsAnew(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return super().summed(p, x, s) * float(np.random.default_rng().uniform(0.5, 1.0))


class DrawsFromItsOwn(Sound):
    def check(self) -> None:
        self.rng = np.random.default_rng(0)

    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return super().summed(p, x, s) * float(self.rng.uniform(0.5, 1.0))


class WritesItsInput(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        x.data[...] *= 0.5
        return super().summed(p, x, s)


class WritesItsState(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        s.h.data[...] *= 0.5
        return super().summed(p, x, s)


class WritesAParameter(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        p.b.data[0] = 0.25
        return super().summed(p, x, s)


# ---------------------------------------------------------------------------------------------------- rows


class NormalisesTheBatch(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        a = super().summed(p, x, s)
        return a - ops.mean(a, axis=0, keepdims=True)


class DecidesForTheBatch(Sound):
    """A Python `if` on values."""

    def finish(self, s: Any, h: Any) -> dict[str, Any]:
        return super().finish(s, h if float(ops.sum(h)) > 0.0 else 0.5 * h)


class TakesTheFirstRow(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return super().summed(p, x, s) + 0.1 * s.h[:1]


class KnowsTheFirstStep(Sound):
    """By a state of zeros, in all rows."""

    def finish(self, s: Any, h: Any) -> dict[str, Any]:
        return super().finish(s, h if np.any(s.m.data) else 2.0 * h)


class CountsTheRows(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return super().summed(p, x, s) / x.shape[0]


class MixesRowsInTraining(Sound):
    def noise(self) -> dict[str, Noise]:
        return {"k": Noise((self.H,), 0.5)}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        k = p.k if isinstance(p.k, float) else ops.mean(p.k, axis=0, keepdims=True)
        return self.finish(s, k * ops.tanh(self.summed(p, x, s)))


# ------------------------------------------------------------------------------------------------ gradients


@primitive
def doubled(x: Any) -> Any:
    return np.multiply(x, 2.0)


doubled.vjp(lambda g, _y, _x: g * 3.0)


@primitive
def _zero(x: Any, like: Any) -> Any:
    return np.multiply(x, 1.0)


_zero.vjp(lambda g, _y, _x, _like: g, lambda g, _y, _x, _like: g)  # of the second, nothing but zeros is right


@primitive
def squared(x: Any) -> Any:
    return np.multiply(x, x)


squared.vjp(lambda g, _y, x: _zero(2.0 * g * x, x))


class WrongGradient(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return doubled(x @ p.W) + s.h @ p.U + p.b


class WrongSecondGradient(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return squared(x @ p.W) + s.h @ p.U + p.b


class CutsTheState(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return x @ p.W + Tensor(s.h.data) @ p.U + p.b


class CutsByFloat(Sound):
    """As nothing in Python tells us of."""

    def params(self) -> dict[str, Param]:
        return {**super().params(), "b": Param((), "constant:0.5", "bias")}

    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return x @ p.W + s.h @ p.U + float(p.b)


class CutsABias(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return x @ p.W + s.h @ p.U + p.b.detach()


class CutsAScalar(Sound):
    """A parameter without axes."""

    def params(self) -> dict[str, Param]:
        return {**super().params(), "b": Param((), "constant:0.5", "bias")}

    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return x @ p.W + s.h @ p.U + p.b.detach()


class NeverUsesABias(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return x @ p.W + s.h @ p.U


class UsesHalfABias(Sound):
    """No fault, but told; and so the next three."""

    def params(self) -> dict[str, Param]:
        return {**super().params(), "b": bias(2 * self.H)}

    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return x @ p.W + s.h @ p.U + p.b[: self.H]


class NeverReadsItsMean(Sound):
    @dataclass(frozen=True)
    class Options:
        pass

    def finish(self, s: Any, h: Any) -> dict[str, Any]:
        return {"h": h, "m": 0.5 * h}


class Forgets(NeverReadsItsMean):
    """The product with the wrong vector."""

    def params(self) -> dict[str, Param]:
        return {**super().params(), "U": input_matrix(self.I, self.H)}

    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return x @ p.W + x @ p.U + p.b


class IgnoresAnOption(Sound):
    def finish(self, s: Any, h: Any) -> dict[str, Any]:
        return {"h": h, "m": 0.5 * s.m + 0.5 * h}


class NeverLooks(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return s.h @ p.U + p.b + 0.0 * ops.sum(x, axis=1, keepdims=True) + 0.0 * ops.sum(p.W)

    def params(self) -> dict[str, Param]:
        return {**super().params(), "W": buffer((self.I, self.H), "uniform")}


# ------------------------------------------------------------------------------- what else the numbers tell


class AnotherFormula(WithReference):
    """The reference is right; the step has a sign wrong."""

    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return x @ p.W - s.h @ p.U + p.b


class TransposedMatrix(WithReference):
    """What a cell with I = H would hide."""

    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return x @ p.W + s.h @ p.U.T + p.b


class TakesTheOldForTheNew(WithReference):
    """The running mean of the output before this step: only one of two states is wrong at first."""

    def finish(self, s: Any, h: Any) -> dict[str, Any]:
        return {**super().finish(s, s.h), "h": h}


class ReferenceOfTensors(Sound):
    def reference(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return self.step(p, Tensor(x), s)


class NormalisesTheInput(Sound):
    """Without a small number under the root: padding of zeros has no direction."""

    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return (x / ops.sqrt(ops.sum(x * x, axis=1, keepdims=True))) @ p.W + s.h @ p.U + p.b


class ExponentialWithoutGuard(Sound):
    def finish(self, s: Any, h: Any) -> dict[str, Any]:
        return super().finish(s, h)

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return self.finish(s, 1.0 / (1.0 + ops.exp(-self.summed(p, x, s))))


class BlowsUp(Sound):
    def finish(self, s: Any, h: Any) -> dict[str, Any]:
        return {"h": h, "m": 1.1 * s.m + h}


class RunsOut(Sound):
    """A count that ends: after 100 steps the root is of a number below zero."""

    def finish(self, s: Any, h: Any) -> dict[str, Any]:
        m = s.m + 0.01 + 0.0 * h
        return {"h": h * ops.sqrt(1.0 - m), "m": m}


class AddsUp(Sound):
    """Grows with time, and that is no fault."""

    equation = "h' = tanh(x W + h U + b); m' = m + 1 + rate h'"

    def finish(self, s: Any, h: Any) -> dict[str, Any]:
        return {"h": h, "m": s.m + 1.0 + self.options.rate * h}


class UnspeakableParameter(Sound):
    """safetensors keeps this name for itself."""

    def params(self) -> dict[str, Param]:
        specs = super().params()
        return {"__metadata__" if name == "b" else name: spec for name, spec in specs.items()}

    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return x @ p.W + s.h @ p.U + p.__metadata__


class TakesMemoryForNumbers(Sound):
    """Reads the parameter as it lies in memory."""

    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return x @ p.W + s.h @ (p.U + 0.1 * Tensor(p.U.data.ravel(order="K").reshape(p.U.shape)).detach()) + p.b


class TwoTapsOfOneName(Sound):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        a = tap("a", self.summed(p, x, s))
        return self.finish(s, tap("a", ops.tanh(a)))


class TapsNow(Sound):
    """Now and then."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        a = self.summed(p, x, s)
        return self.finish(s, ops.tanh(tap("a", a) if float(x.data[0, 0]) > 0.0 else a))


class TapsANumber(Sound):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        tap("rate", self.options.rate)
        return super().step(p, x, s)


class ListensToTheListener(Sound):
    def finish(self, s: Any, h: Any) -> dict[str, Any]:
        return super().finish(s, h if engine.MODE.listener is None else 0.9 * h)


class HostConstant(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return super().summed(p, x, s) * np.full(self.H, 0.5, x.dtype)


@primitive
def sorted_sum(x: Any) -> Any:
    return np.asarray(np.einsum("bh->b", x))[:, None]  # CuPy's arrays do not answer this call as guard arrays do


sorted_sum.vjp(lambda g, _y, x: g + 0.0 * x)


class FunctionOfTheHost(Sound):
    def summed(self, p: Any, x: Any, s: Any) -> Any:
        return super().summed(p, x, s) + 0.1 * sorted_sum(s.h)


class NeverUsesItsNoise(Sound):
    def noise(self) -> dict[str, Noise]:
        return {"k": Noise((self.H,), 0.5)}


class OtherMeanThanNoise(Sound):
    def noise(self) -> dict[str, Noise]:
        return {"k": Noise((self.H,), 0.5)}

    def finish(self, s: Any, h: Any) -> dict[str, Any]:
        return super().finish(s, h if isinstance(self.k, float) else h * self.k)

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = ops.tanh(self.summed(p, x, s))
        return super().finish(s, h if isinstance(p.k, float) else h * p.k)


class UsesItsNoise(Sound):
    """Zoneout, by hand: no fault."""

    def noise(self) -> dict[str, Noise]:
        return {"k": Noise((self.H,), 0.5)}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = ops.tanh(self.summed(p, x, s))
        return self.finish(s, p.k * h + (1.0 - p.k) * s.h)


# -------------------------------------------------------------------------------- strange, and nothing wrong


class FastWeights(Cell):
    """A matrix as state, an exponential gate with a stabiliser that starts far below, and a count."""

    name = "fast_weights"
    summary = "a matrix that is written to and read from"
    citation = "written for a test"
    equation = """\
i  = x w_i;  g = max(n, i)
h' = tanh(A' k(x)),  A'_t = exp(n - g) A + exp(i - g) v k^T
n' = g;  t' = t + 1"""
    deviations = "k = x W_k, v = x W_v, both relu"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,)), "A": State((self.H, 2)), "n": State((1,), -1.0), "t": State((1,))}

    def params(self) -> dict[str, Param]:
        return {"W_k": input_matrix(self.I, 2), "W_v": input_matrix(self.I, self.H), "w_i": input_matrix(self.I, 1)}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        i = x @ p.w_i
        g = ops.maximum(s.n, i)
        k, v = ops.relu(x @ p.W_k), ops.relu(x @ p.W_v)
        B = x.shape[0]
        outer = ops.reshape(v, (B, self.H, 1)) * ops.reshape(k, (B, 1, 2))
        old, new = (ops.reshape(tap(name, ops.exp(a - g)), (B, 1, 1)) for name, a in (("keep", s.n), ("write", i)))
        A = old * s.A + new * outer
        return {"h": ops.tanh(ops.sum(A * ops.reshape(k, (B, 1, 2)), axis=2)), "A": A, "n": g, "t": s.t + 1.0}


class Rectified(Sound):
    """Zeros everywhere, and kinks."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return self.finish(s, ops.relu(self.summed(p, x, s)))


class Scalar(Sound):
    """A parameter without axes."""

    def params(self) -> dict[str, Param]:
        return {**super().params(), "b": Param((), "constant:0.5", "bias")}


class NoParameters(Cell):
    name = "no_parameters"
    summary = "a leaky sum of the inputs"
    citation = "written for a test"
    equation = "h'_t = 0.9 h + sum of x\nh_t = h'"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,), 1.0)}

    def params(self) -> dict[str, Param]:
        return {}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": 0.9 * s.h + ops.sum(x, axis=1, keepdims=True)}


# Each with the checks that must fail, no other may, and words of the first message.
FAULTS: list[tuple[type[Cell], set[str], str]] = [
    (NoStep, {"declaration"}, "expected the method step"),
    (NameWithSpaces, {"declaration"}, "my cell"),
    (OutputIsNoH, {"declaration"}, "expected the output to have the shape (H,)"),
    (NoSuchInitialiser, {"declaration"}, "did you mean orthogonal"),
    (OptionsThatRaise, {"declaration"}, "cell sound: RuntimeError: half done"),
    (CheckThatRaises, {"declaration"}, "cell sound, check (planted_faults.py:"),
    (DeviationsAreNoText, {"declaration"}, "'deviations', got 5"),
    (NamedLikeWrapped, {"declaration"}, "name 'sound+zoneout:0.1': expected letters"),
    (StateIsCalledX, {"declaration"}, "name 'x': expected another one"),
    (NoHelp, {"documentation"}, "option rate: expected a help text"),
    (HelpIsNoText, {"documentation"}, "option rate: expected a text as help, got 5"),
    (DefaultOfAnotherType, {"documentation"}, "option units, its default: expected a whole number, got 'four'"),
    (StateWithoutEquation, {"documentation"}, "expected a line m' = "),
    (RandomDeclaration, {"seed"}, "initial parameters from the same seed: b["),
    (TakesIForH, {"shapes"}, "with I = H = 4 it runs"),
    (LosesAState, {"shapes"}, "['h', 'm'], got ['h']"),
    (LeavesTheProgram, {"shapes"}, "SystemExit: 0"),
    (ReturnsAnArray, {"shapes"}, "expected a value made by functions of tinygrad_rnn.ops"),
    (CallsNumPyAlone, {"shapes"}, "): np.unwrap: there is no op for it, and NumPy would lose the gradient"),
    (WritesIntoAnArray, {"shapes"}, "): np.add: out=, as in a += b, writes into an array"),
    (
        MakesATensor,
        {"shapes"},
        "): Tensor: expected a constant, since the gradient would be lost, got the output of mul",
    ),
    (Float32Constant, {"shapes"}, "step (planted_faults.py:"),
    (Float64Constant, {"dtype", "devices"}, "; an array of the cell's own is a buffer in params()"),
    (WidensTheState, {"dtype"}, "expected one floating dtype"),
    (SqueezesOneRow, {"sizes", "rows", "masks"}, "T=1 B=1"),
    (Counts, {"purity"}, "changes self.count"),
    (Remembers, {"purity"}, "changes self.before"),
    (CountsOnTheClass, {"purity"}, "CountsOnTheClass.total"),
    (CountsInTheModule, {"purity"}, "COUNTS"),
    (KeepsOnParameters, {"purity"}, "one step at a time"),
    (DrawsGlobally, {"purity"}, "global random numbers"),
    (DrawsAnew, {"purity"}, "the same numbers twice"),
    (DrawsFromItsOwn, {"purity"}, "changes self.rng"),
    (WritesItsInput, {"purity"}, "changes its x in place"),
    (WritesItsState, {"purity"}, "changes its state h in place"),
    (WritesAParameter, {"purity"}, "changes its parameter b in place"),
    (NormalisesTheBatch, {"rows", "masks"}, "row 1 of 3"),
    (DecidesForTheBatch, {"rows", "masks"}, "row 1 of 3"),
    (TakesTheFirstRow, {"rows", "masks"}, "row 1 of 3"),
    (KnowsTheFirstStep, {"rows"}, "row 1 from the start state"),
    (CountsTheRows, {"rows", "masks"}, "row 1 alone, and as one of three"),
    (WrongGradient, {"gradients"}, "the gradient for "),
    (WrongSecondGradient, {"gradients"}, "the second derivative for "),
    (
        CutsTheState,
        {"gradients"},
        ".detach() and no_grad() cut a gradient off: the step reads .data of a value (planted",
    ),
    (CutsByFloat, {"gradients"}, "cut a gradient off: the step reads a value with float() (planted_faults.py:"),
    (CutsABias, {"gradients"}, "the gradient for parameter b["),
    (CutsAScalar, {"gradients"}, "the gradient for parameter b[()]"),
    (NeverUsesABias, {"gradients"}, "parameter b is never used"),
    (NeverLooks, {"gradients"}, "the input x is never used"),
    (AnotherFormula, {"reference"}, "against the reference: h["),
    (TransposedMatrix, {"reference"}, "against the reference: h["),
    (TakesTheOldForTheNew, {"reference"}, "; it begins at timestep 0, and not in h"),
    (ReferenceOfTensors, {"reference"}, "expected a NumPy array (3, 4) for h, got Tensor"),
    (NormalisesTheInput, {"extremes", "masks"}, "zero inputs"),
    (ExponentialWithoutGuard, {"extremes", "masks"}, "inputs of 1e4: "),
    (BlowsUp, {"long"}, "state m grows exponentially"),
    (RunsOut, {"long", "extremes"}, "200 steps in float32, initial parameters: h[100, 0, 0] is nan"),
    (UnspeakableParameter, {"checkpoint"}, "__metadata__"),
    (TakesMemoryForNumbers, {"checkpoint", "devices", "gradients"}, "not contiguous"),
    (TwoTapsOfOneName, {"taps"}, "tap 'a' is announced 2 times in one step"),
    (TapsNow, {"taps"}, "expected every step"),
    (TapsANumber, {"taps"}, "tap 'rate': expected a tensor, got float"),
    (ListensToTheListener, {"taps", "scan"}, "while somebody listens"),
    (HostConstant, {"devices"}, "expected arrays of one device"),
    (FunctionOfTheHost, {"devices"}, "on guard arrays"),
    (MixesRowsInTraining, {"noise"}, "in training, row 1 alone"),
    (NeverUsesItsNoise, {"noise"}, "noise k is never used"),
    (OtherMeanThanNoise, {"noise"}, "against noise at its mean"),
]

# No faults, but each with a note of these words.
NOTED: list[tuple[type[Cell], str]] = [
    (ParameterWithoutEquation, "parameter b: named neither"),
    (UsesHalfABias, "b[4] is never used, one of 4 elements"),
    (NeverReadsItsMean, "state m is never read"),
    (Forgets, "no state is ever read"),
    (IgnoresAnOption, "option rate changes nothing"),
]

SOUND: list[type[Cell]] = [
    Sound, WithReference, NeedsSquare, AddsUp, UsesItsNoise, FastWeights, Rectified,
    Scalar, NoParameters, CallsNumPy,
]  # fmt: skip
