"""Wrappers: what papers add to any recurrent cell, as a cell made from a cell.

``wrap_cell(cls, ["layernorm", "zoneout:0.1"])`` is a class like any other: it is traced, compiled, checked, saved and
diagnosed as one. The first wrapper is the innermost.
"""

from __future__ import annotations

import copyreg
import dataclasses
import math
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from tinygrad_rnn import ops
from tinygrad_rnn.cell import (
    Cell,
    Noise,
    Param,
    State,
    Timestep,
    bias,
    input_matrix,
    noise_of,
    output_of,
    specification,
)
from tinygrad_rnn.errors import InputError, nearest
from tinygrad_rnn.ops.linear import Factor

EPS = 1e-5
PAST = "x itself where I = H"


class Wrapper(Cell):
    """Abstract: a cell that does its step with another one, of the class `of`; `numbers` came behind the colon."""

    of: ClassVar[type[Cell]]
    numbers: ClassVar[tuple[float, ...]]
    source: ClassVar[str]

    def check(self) -> None:
        self.inner = self.of(self.I, self.H, dataclasses.asdict(self.options))
        self.check_numbers()

    def check_numbers(self) -> None:
        """Raise InputError when the numbers do not go with the cell."""
        if self.numbers:
            raise InputError(f"--wrap {self.word}: expected no number, got {self._numbers()}; write {self.word}")

    @property
    def word(self) -> str:
        """The name of the wrapper on the command line."""
        return next(word for word, kind in WRAPPERS.items() if isinstance(self, kind))

    def _numbers(self) -> str:
        return ",".join(f"{number:g}" for number in self.numbers)

    def _rate(self) -> float:
        """The one number, a rate."""
        if len(self.numbers) != 1 or not 0.0 <= self.numbers[0] < 1.0:
            got = self._numbers() or "none"
            raise InputError(f"--wrap {self.word}: expected one rate in [0, 1), as in {self.word}:0.1, got {got}")
        return self.numbers[0]

    def state(self) -> dict[str, State]:
        return specification(self.inner)[0]

    def params(self) -> dict[str, Param]:
        return specification(self.inner)[1]

    def noise(self) -> dict[str, Noise]:
        return noise_of(self.inner)

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return self.around(self.inner.step, p, x, s, ops)

    def reference(self, p: Any, x: Any, s: Any) -> dict[str, Any] | None:
        innermost: Cell = self.inner
        while isinstance(innermost, Wrapper):
            innermost = innermost.inner
        if type(innermost).reference is Cell.reference:
            return None
        return self.around(self.inner.reference, p, x, s, np)

    @abstractmethod
    def rule(self) -> str:
        """What it does to the equation of the cell, in one line."""

    @abstractmethod
    def around(self, step: Callable[..., Any], p: Any, x: Any, s: Any, lib: Any) -> dict[str, Any]:
        """The wrapped step from the cell's own; `lib` has the functions: `ops`, or NumPy for the reference."""

    def own_states(self) -> dict[str, State]:
        """The states that the cell's step returns: not the timesteps, which the library counts."""
        states = specification(self.inner)[0]
        return {name: spec for name, spec in states.items() if not isinstance(spec, Timestep)}

    def matrices(self, *roles: str) -> dict[str, Param]:
        """The cell's matrices in these roles, by name."""
        params = specification(self.inner)[1]
        return {name: spec for name, spec in params.items() if spec.role in roles and len(spec.shape) == 2}


def _replaced(p: Any, values: Mapping[str, Any]) -> Any:
    """The parameters `p` with others in the place of some."""
    kind: Any = type(p)
    new = kind.__new__(kind)
    vars(new).update({**vars(p), **values})
    return new


class Zoneout(Wrapper):
    """Each unit of a state keeps its old value with some probability: ``zoneout:0.1``, or one rate per state."""

    source = "zoneout: D. Krueger et al., Zoneout: regularizing RNNs by randomly preserving hidden activations, 2016"

    def check_numbers(self) -> None:
        states = self.own_states()
        if len(self.numbers) not in (1, len(states)) or not all(0.0 <= rate < 1.0 for rate in self.numbers):
            wanted = "one rate in [0, 1), as in zoneout:0.1"
            wanted += f", or one for each of {', '.join(states)}" if len(states) > 1 else ""
            raise InputError(f"--wrap zoneout: expected {wanted}, got {self._numbers() or 'none'}")

    def rule(self) -> str:
        lines = (f"{name}' = k * {name}' + (1 - k) * {name}" for name in self.own_states())
        return f"{'; '.join(lines)}    k is 0 with probability {self._numbers()}, else 1; its mean outside training"

    def noise(self) -> dict[str, Noise]:
        states = self.own_states()
        rates = self.numbers * len(states) if len(self.numbers) == 1 else self.numbers
        own = {
            _free(f"k_{name}", self.inner): Noise(spec.shape, 1.0 - rate)
            for (name, spec), rate in zip(states.items(), rates, strict=True)
        }
        return {**noise_of(self.inner), **own}

    def around(self, step: Callable[..., Any], p: Any, x: Any, s: Any, lib: Any) -> dict[str, Any]:
        new = step(p, x, s)
        keep = {name: getattr(p, _free(f"k_{name}", self.inner)) for name in new}
        return {name: keep[name] * value + (1.0 - keep[name]) * getattr(s, name) for name, value in new.items()}


class RecurrentDropout(Wrapper):
    """Drops what goes into the recurrent matrices, with one mask per sequence: ``recurrent_dropout:0.2``."""

    source = (
        "recurrent_dropout: Y. Gal and Z. Ghahramani, A theoretically grounded application of dropout in recurrent "
        "neural networks, 2016"
    )

    def check_numbers(self) -> None:
        self._rate()

    def rule(self) -> str:
        times = f"0 with probability {self._numbers()}, else scaled up; 1 outside training"
        return f"h W_h becomes (h * m) W_h    one m per sequence: {times}"

    def _masks(self) -> dict[int, str]:
        """The mask for a left factor of so many columns."""
        sizes = {spec.shape[0] for spec in self.matrices("recurrent").values()}
        return {size: _free(f"m_{size}" if len(sizes) > 1 else "m", self.inner) for size in sorted(sizes)}

    def noise(self) -> dict[str, Noise]:
        keep = 1.0 - self._rate()
        own = {name: Noise((size,), keep, "sequence", 1.0 / keep) for size, name in self._masks().items()}
        return {**noise_of(self.inner), **own}

    def around(self, step: Callable[..., Any], p: Any, x: Any, s: Any, lib: Any) -> dict[str, Any]:
        masks = {size: getattr(p, name) for size, name in self._masks().items()}

        def dropped(a: Any, W: Any) -> Any:
            return (a * masks[W.shape[0]]) @ W

        new: dict[str, Any] = step(
            _replaced(p, {name: Factor(getattr(p, name), dropped) for name in self.matrices("recurrent")}), x, s
        )
        return new


class LayerNorm(Wrapper):
    """Layer normalisation of every product with a matrix, each with a gain of its own; biases are the cell's."""

    source = "layernorm: J. L. Ba, J. R. Kiros and G. E. Hinton, Layer normalization, arXiv 1607.06450, 2016"

    def _gains(self) -> dict[str, str]:
        """The name of the gain of each matrix."""
        return {name: _free(f"gain_{name}", self.inner) for name in self.matrices("input", "recurrent")}

    def rule(self) -> str:
        return f"x W becomes gain * (x W - mean) / sqrt(variance + 1e-5)    for {', '.join(self._gains().values())}"

    def params(self) -> dict[str, Param]:
        specs = specification(self.inner)[1]
        return {**specs, **{gain: bias(specs[name].shape[1], 1.0) for name, gain in self._gains().items()}}

    def around(self, step: Callable[..., Any], p: Any, x: Any, s: Any, lib: Any) -> dict[str, Any]:
        def normed(gain: Any) -> Callable[[Any, Any], Any]:
            def product(a: Any, W: Any) -> Any:
                y = a @ W
                apart = y - lib.mean(y, axis=-1, keepdims=True)
                return apart / lib.sqrt(lib.mean(apart * apart, axis=-1, keepdims=True) + EPS) * gain

            return product

        gains = {name: getattr(p, gain) for name, gain in self._gains().items()}
        new: dict[str, Any] = step(
            _replaced(p, {name: Factor(getattr(p, name), normed(gain)) for name, gain in gains.items()}), x, s
        )
        return new


class Connection(Wrapper):
    """Abstract: the cell's output joined with its input, in a state `out` of its own that the cell does not see."""

    def check(self) -> None:
        super().check()
        name = output_of(self.inner)
        shape = specification(self.inner)[0][name].shape
        if shape != (self.H,):
            raise InputError(
                f"--wrap {self.word}: expected a cell whose output has H={self.H} units, got {name} of shape {shape}"
            )

    @property
    def out(self) -> str:
        return _free("out", self.inner)

    @property
    def skip(self) -> str:
        return _free("W_skip", self.inner)

    def past(self) -> str:
        """How the equation calls what goes past the cell."""
        return "x" if self.I == self.H else f"x {self.skip}"

    def state(self) -> dict[str, State]:
        return {self.out: State((self.H,)), **specification(self.inner)[0]}

    def params(self) -> dict[str, Param]:
        skip = {self.skip: input_matrix(self.I, self.H)} if self.I != self.H else {}
        return {**specification(self.inner)[1], **skip}

    def around(self, step: Callable[..., Any], p: Any, x: Any, s: Any, lib: Any) -> dict[str, Any]:
        new = step(p, x, s)
        past = x if self.I == self.H else x @ getattr(p, self.skip)
        return {self.out: self.joined(p, x, past, new[output_of(self.inner)], lib), **new}

    @abstractmethod
    def joined(self, p: Any, x: Any, past: Any, h: Any, lib: Any) -> Any:
        """The output, from what goes past the cell and the cell's output `h`."""


class Residual(Connection):
    """The output is the cell's plus its input; a learned matrix carries the input where I is not H."""

    source = "residual: K. He et al., Deep residual learning for image recognition, arXiv 1512.03385, 2015"

    def rule(self) -> str:
        return f"{self.out}' = {output_of(self.inner)}' + {self.past()}    {PAST}"

    def joined(self, p: Any, x: Any, past: Any, h: Any, lib: Any) -> Any:
        return h + past


class Highway(Connection):
    """A gate mixes the cell's output with its input: ``highway``, or ``highway:-2`` for the start of its bias."""

    source = "highway: R. K. Srivastava, K. Greff and J. Schmidhuber, Highway networks, arXiv 1505.00387, 2015"

    def check_numbers(self) -> None:
        if len(self.numbers) > 1:
            raise InputError(f"--wrap highway: expected the start of the gate's bias alone, got {self._numbers()}")

    def rule(self) -> str:
        W, b = _free("W_t", self.inner), _free("b_t", self.inner)
        new = f"{self.out}' = t * {output_of(self.inner)}' + (1 - t) * ({self.past()})"
        return f"t = sigmoid(x {W} + {b}); {new}    {PAST}"

    def params(self) -> dict[str, Param]:
        own = {
            _free("W_t", self.inner): input_matrix(self.I, self.H),
            _free("b_t", self.inner): bias(self.H, *(self.numbers or (-1.0,))),
        }
        return {**super().params(), **own}

    def joined(self, p: Any, x: Any, past: Any, h: Any, lib: Any) -> Any:
        a = x @ getattr(p, _free("W_t", self.inner)) + getattr(p, _free("b_t", self.inner))
        t = ops.sigmoid(a) if lib is ops else 1.0 / (1.0 + np.exp(-a))
        return t * h + (1.0 - t) * past


WRAPPERS: Mapping[str, type[Wrapper]] = {
    "zoneout": Zoneout,
    "recurrent_dropout": RecurrentDropout,
    "layernorm": LayerNorm,
    "residual": Residual,
    "highway": Highway,
}


def _free(name: str, cell: Cell) -> str:
    """`name`, or with a number behind it where `cell` has that name already (the same wrapper twice)."""
    states, params = specification(cell)
    taken = {*states, *params, *noise_of(cell)}
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}{number}"
    return found


def parse_wrapper(text: str) -> tuple[type[Wrapper], tuple[float, ...]]:
    """``name[:number,...]`` as its class and numbers. Raises InputError for an unknown name or what is no number."""
    word, colon, rest = text.partition(":")
    word = word.strip().replace("-", "_")
    if word not in WRAPPERS:
        raise InputError(f"--wrap: no wrapper {word!r}{nearest(word, WRAPPERS)}")
    try:
        numbers = tuple(float(number) for number in rest.split(",")) if colon else ()
    except ValueError:
        numbers = (math.nan,)
    if not all(math.isfinite(number) for number in numbers):
        raise InputError(f"--wrap {text!r}: expected numbers after the colon, as in zoneout:0.1, got {rest!r}")
    return WRAPPERS[word], numbers


def wrap_cell(cls: type[Cell], wraps: Iterable[str]) -> type[Cell]:
    """The class `cls` inside the wrappers ``name[:number,...]``, the first one innermost; `cls` itself without any.

    It keeps the module of `cls`, so that errors name the author's lines. Raises InputError for a wrapper that does not
    exist; numbers that do not fit are told when a cell is made.
    """
    given: Any = cls
    if not isinstance(given, type) or not issubclass(given, Cell):
        raise InputError(f"wrap_cell: expected the class of a cell, as load_cell('lstm').cls, got {given!r}")
    if isinstance(wraps, str):
        raise InputError(f"wrap_cell: expected a list of wrappers, got {wraps!r}; write [{wraps!r}]")
    for text in wraps:
        kind, numbers = parse_wrapper(text)
        facts = {
            "__module__": cls.__module__,
            "__doc__": kind.__doc__,
            "of": cls,
            "numbers": numbers,
            "name": f"{cls.name}+{text}",
            "summary": f"{cls.summary}; {text}",
            "citation": f"{cls.citation}; {kind.source}",
            "deviations": cls.deviations,
            "equation": cls.equation,
            "output": "" if issubclass(kind, Connection) else cls.output,
            "Options": cls.Options,
        }
        wrapped: Any = _Made(cls.__name__, (kind,), facts)
        wrapped.equation = f"{cls.equation}\n{_rule(wrapped)}"
        cls = wrapped
    return cls


def unwrap_cell(cls: type[Cell]) -> tuple[type[Cell], list[str]]:
    """The class inside all wrappers, and what `wrap_cell` needs to make `cls` of it again."""
    wraps: list[str] = []
    while issubclass(cls, Wrapper):
        wraps.insert(0, cls.name.removeprefix(f"{cls.of.name}+"))
        cls = cls.of
    return cls, wraps


class _Made(ABCMeta):
    """Final. The kind of class that `wrap_cell` makes: nobody can import it, so pickle makes it again."""


def _how_made(cls: Any) -> Any:
    return wrap_cell, unwrap_cell(cls)


copyreg.pickle(_Made, _how_made)


def _rule(cls: Any) -> str:
    """The rule of a wrapper with the names that it has around its cell, which only a cell of some size knows."""
    for I, H in ((2, 3), (3, 3)):  # a cell may insist on I = H
        try:
            return str(cls(I, H).rule())
        except InputError:
            continue
    return f"inside {cls.name.rpartition('+')[2]}"
