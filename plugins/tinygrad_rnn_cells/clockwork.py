"""The clockwork network: modules of units, each with a clock of its own."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinygrad_rnn import Cell, InputError, Param, State, Timestep, bias, buffer, input_matrix, ops, tap

Array = np.ndarray[Any, Any]


def unit_periods(
    rng: np.random.Generator, shape: tuple[int, ...], arrays: Mapping[str, Array], *, of: tuple[int, ...]
) -> Array:
    """The period of every unit: modules beside each other, fast ones first, as equal in size as can be."""
    return np.concatenate([np.full(len(part), float(T)) for part, T in _modules(shape[0], of)])


def _periods(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) if part.strip().isdecimal() else 0 for part in text.split(","))
    if numbers[0] < 1 or any(a >= b for a, b in itertools.pairwise(numbers)):
        raise InputError(
            f"cell clockwork: expected whole numbers from 1 that grow as periods, as in 1,2,4,8, got {text!r}"
        )
    return numbers


def _modules(H: int, periods: tuple[int, ...]) -> list[tuple[range, int]]:
    """The units of every module, and its period. The first H mod g of g modules have one unit more than the others."""
    size, more = divmod(H, len(periods))
    ends = [(i + 1) * size + min(i + 1, more) for i in range(len(periods))]
    return [(range(a, b), T) for a, b, T in zip([0, *ends], ends, periods, strict=False) if a < b]


class Clockwork(Cell):
    """Module i moves at the timesteps that its period divides, and keeps its state at all others.

    It hears the input, itself and slower modules. A slow module changes seldom, so its past is few updates away.
    """

    name = "clockwork"
    summary = "simple network in modules, each with a period: it updates seldom, and hears itself and slower ones"
    citation = (
        "J. Koutnik, K. Greff, F. Gomez and J. Schmidhuber, A clockwork RNN, ICML 2014, arXiv 1402.3511 (equation 1)"
    )
    deviations = """\
W_h0, W_h1, ... are the block rows of the paper's upper triangular matrix, transposed, without their zeros. The paper
has no bias. t is 0 at the first timestep, where every module moves. Where g modules do not divide H, the first H mod g
have one unit more; with fewer units than modules the slowest have none. Weights start uniform in +-1/sqrt of their
number of columns, so that each module starts as a simple network of its size."""
    equation = """\
n = tanh(x @ W_xh + concat(h[:, -len(W_h{i}):] @ W_h{i} for every i) + b_h)
h' = where(t % period == 0, n, h)
t' = t + 1"""

    @dataclass(frozen=True)
    class Options:
        periods: str = field(
            default="1,2,4,8",
            metadata={"help": "period of each module, from fast to slow", "keeps": "longer periods"},
        )
        recurrent_init: str = field(default="uniform", metadata={"help": "initialiser of every W_h*"})

    def check(self) -> None:
        self.modules()

    def modules(self) -> list[tuple[range, int]]:
        """The units of every module, and its period."""
        return _modules(self.H, _periods(self.options.periods))

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,)), "t": Timestep()}

    def params(self) -> dict[str, Param]:
        periods = functools.partial(unit_periods, of=_periods(self.options.periods))
        specs = {"period": buffer((self.H,), periods), "W_xh": input_matrix(self.I, self.H), "b_h": bias(self.H)}
        for i, (units, _) in enumerate(self.modules()):
            shape = (self.H - units.start, len(units))
            specs[f"W_h{i}"] = Param(shape, self.options.recurrent_init, "recurrent")
        return specs

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        heard = [s.h[:, units.start :] if units.start else s.h for units, _ in self.modules()]
        recurrent = [h @ getattr(p, f"W_h{i}") for i, h in enumerate(heard)]
        n = tap("n", ops.tanh(x @ p.W_xh + ops.concatenate(recurrent, axis=-1) + p.b_h))
        return {"h": ops.where(ops.equal(ops.remainder(s.t, p.period), 0.0), n, s.h)}
