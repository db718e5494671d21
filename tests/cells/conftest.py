"""Every cell two more times: by its reference in bare NumPy, and by the equation that `cells info` prints."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import Cell, load_cell, specification
from tinygrad_rnn import guard as guard_arrays

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]

FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "sigmoid": lambda a: 1.0 / (1.0 + np.exp(-a)),
    "relu": lambda a: np.maximum(a, 0.0),
    "identity": lambda a: a,
}


def by_equation(cell: Cell, params: Mapping[str, Array], x: Array, state: Mapping[str, Array]) -> Arrays:
    """Every left side of the cell's printed equation, in its order: gates by name, new states with a prime.

    A thing before a matrix is multiplied by it; ``h'`` is the new state; a bare x is x P where there is a P. A line
    that ends in ``   option value...`` is for those values of the option alone; an option stands by its name.
    """
    options = vars(cell.options)
    names = {**FUNCTIONS, **params, **options, **state, "x": x, "f": FUNCTIONS.get(options.get("activation", ""))}
    found: Arrays = {}
    for line in cell.equation.splitlines():
        formula, _, condition = re.sub(r" {2,}", "\t", line.strip()).partition("\t")
        option, *values = condition.split() or [""]
        if option and str(options[option]) not in values:
            continue
        name, _, right = formula.partition(" = ")
        if "P" in params:
            right = re.sub(r"\(x(?=\)| \+)", "(x P", right)
        code = re.sub(r"(?<=[\w)']) (?=[WPU]\b|[WU]_)", " @ ", right)
        found[name] = np.broadcast_to(eval(code.replace("'", "_new"), dict(names)), next(iter(state.values())).shape)
        names[name.replace("'", "_new")] = found[name]
    return found


# Every cell with every option that changes its equation: (cell, options).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn": ("rnn", {}),
    "rnn-relu": ("rnn", {"activation": "relu"}),
    "rnn-sigmoid": ("rnn", {"activation": "sigmoid"}),
    "rnn-identity": ("rnn", {"activation": "identity"}),
    "lstm": ("lstm", {}),
    "gru-before": ("gru", {}),
    "gru-after": ("gru", {"form": "reset_after"}),
    "mut1-auto": ("mut1", {}),
    "mut1-fixed": ("mut1", {"input_map": "fixed"}),
    "mut1-learned": ("mut1", {"input_map": "learned"}),
    "mut2-auto": ("mut2", {}),
    "mut2-fixed": ("mut2", {"input_map": "fixed"}),
    "mut2-learned": ("mut2", {"input_map": "learned"}),
    "mut3": ("mut3", {}),
}


@dataclass
class Case:
    """A cell, and arrays to feed it, its reference and its equation."""

    cell: Cell
    params: Arrays
    state: Arrays
    xs: Array

    def reference(self) -> list[Arrays]:
        """The states after every step, by the cell's reference."""
        found: list[Arrays] = []
        for x in self.xs:
            state = found[-1] if found else self.state
            new = self.cell.reference(SimpleNamespace(**self.params), x, SimpleNamespace(**state))
            assert new is not None
            found.append(new)
        return found

    def equation(self) -> list[Arrays]:
        """Gates and new states (with a prime) of every step, by the printed equation."""
        found: list[Arrays] = []
        state = self.state
        for x in self.xs:
            found.append(by_equation(self.cell, self.params, x, state))
            state = {name: found[-1][f"{name}'"] for name in state}
        return found


@pytest.fixture
def make_case() -> Callable[..., Case]:
    def make(
        variant: str, T: int = 3, B: int = 2, I: int = 3, H: int = 3, dtype: Any = np.float64, seed: int = 0
    ) -> Case:
        rng = np.random.default_rng(seed)
        name, options = VARIANTS[variant]
        cell = load_cell(name).cls(I, H, options)
        states, params = specification(cell)
        return Case(
            cell,
            {key: (rng.normal(size=spec.shape) * 0.7).astype(dtype) for key, spec in params.items()},
            {key: rng.uniform(-0.9, 0.9, (B, *spec.shape)).astype(dtype) for key, spec in states.items()},
            rng.normal(size=(T, B, I)).astype(dtype),
        )

    return make


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    """Every cell with every option that changes its equation."""
    return str(request.param)


@pytest.fixture(params=["rnn", "lstm", "gru", "mut1", "mut2", "mut3"])
def cell_name(request: pytest.FixtureRequest) -> str:
    """Every built-in cell."""
    return str(request.param)


@pytest.fixture(scope="session")
def guard() -> Any:
    """Arrays that behave as those of another device."""
    return guard_arrays
