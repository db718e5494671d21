"""Every cell two more times: by its reference in bare NumPy, and by the equation that `cells info` prints."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import Cell, available_cells, init_cell, load_cell, specification
from tinygrad_rnn import guard as guard_arrays
from tinygrad_rnn.cell import counted, timesteps
from tinygrad_rnn.testing.equation import written_out

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]

FUNCTIONS: dict[str, Callable[..., Array]] = {
    **{name: getattr(np, name) for name in ("tanh", "exp", "cos", "sin")},
    "where": np.where,
    "concat": lambda parts: np.concatenate(parts, axis=-1),
    "sigmoid": lambda a: 1.0 / (1.0 + np.exp(-a)),
    "relu": lambda a: np.maximum(a, 0.0),
    "identity": lambda a: a,
}


def by_equation(cell: Cell, params: Mapping[str, Array], x: Array, state: Mapping[str, Array]) -> Arrays:
    """Every left side of the cell's printed equation, in its order: gates by name, new states with a prime.

    A thing before a matrix is multiplied by it; ``h'`` is the new state; a bare x is x P where there is a P. A line
    that ends in ``   option value...`` is for those values of the option alone; an option stands by its name. One that
    ends in ``   I = H`` or ``   I != H`` is for such sizes.
    """
    options = vars(cell.options)
    names = {**FUNCTIONS, **params, **options, **state, "x": x, "f": FUNCTIONS.get(options.get("activation", ""))}
    lines: dict[str, str] = {}
    for line in written_out(cell).splitlines():
        formula, _, condition = re.sub(r" {2,}", "\t", line.strip()).partition("\t")
        option, *values = condition.split() or [""]
        name, _, right = formula.partition(" = ")
        sizes = "I = H" if cell.I == cell.H else "I != H"
        if condition == sizes or option in ("", *(key for key, value in options.items() if str(value) in values)):
            lines[name] = right
    found: Arrays = {}
    for name, right in lines.items():
        if "P" in params:
            right = re.sub(r"\(x(?=\)| \+)", "(x P", right)
        code = re.sub(r"(?<=[\w)']) (?=[WU]\b|P\b|[WUR]_)", " @ ", right).replace("'", "_new")
        names[name.replace("'", "_new")] = value = eval(code, dict(names))
        if isinstance(value, np.ndarray):  # not a gate that is a plain 1
            found[name] = value
    return found


PEEPHOLE_VARIANTS = ["vanilla", "NIG", "NFG", "NOG", "NIAF", "NOAF", "NP", "CIFG", "FGR"]

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
    **{f"lstm_peephole-{variant}": ("lstm_peephole", {"variant": variant}) for variant in PEEPHOLE_VARIANTS},
    "forget_update": ("forget_update", {}),
    "irnn": ("irnn", {}),
    "ugrnn": ("ugrnn", {}),
    "mgu": ("mgu", {}),
    "minimalrnn": ("minimalrnn", {}),
    "janet": ("janet", {}),
    "janet-beta": ("janet", {"beta": 0.3}),
    "mingru": ("mingru", {}),
    "minlstm": ("minlstm", {}),
    "scrn": ("scrn", {"slow": 2}),
    "scrn-alpha": ("scrn", {"slow": 5, "alpha": 0.4}),
    "fastgrnn": ("fastgrnn", {}),
    "esn": ("esn", {}),
    "esn-leak": ("esn", {"leak": 1.0}),
    "clockwork": ("clockwork", {}),
    "clockwork-periods": ("clockwork", {"periods": "1,3"}),
    "lru": ("lru", {}),
}


def clockwork(cell: Cell, p: Arrays, x: Array, s: Arrays) -> Arrays:
    """Koutnik et al. 2014, equation 1, in columns as they print it: one matrix of blocks, zero below the diagonal.

    Its block row i, and what comes in for module i, counts where t mod T_i is 0; elsewhere y_i stays what it was.
    """
    periods = [int(text) for text in cell.options.periods.split(",")]
    modules = np.array_split(np.arange(cell.H), len(periods))
    W_H = np.zeros((cell.H, cell.H))
    for i, units in enumerate(modules):
        for later in modules[i:]:
            if len(units):
                W_H[np.ix_(units, later)] = p[f"W_h{i}"].T[:, later - units[0]]
    y = np.empty_like(s["h"])
    for row, old in enumerate(s["h"]):
        y[row] = old
        for units, T in zip(modules, periods, strict=True):
            if s["t"][row, 0] % T == 0:
                y[row, units] = np.tanh(W_H[units] @ old + p["W_xh"].T[units] @ x[row] + p["b_h"][units])
    return {"h": y}


def lru(cell: Cell, p: Arrays, x: Array, s: Arrays) -> Arrays:
    """Orvieto et al. 2023, appendix A: complex arrays, and columns, as they print it."""
    eigenvalues = np.exp(-np.exp(p["nu_log"]) + 1j * np.exp(p["theta_log"]))
    B, C = (p["B_re"] + 1j * p["B_im"]).T * np.exp(p["gamma_log"])[:, None], (p["C_re"] + 1j * p["C_im"]).T
    h = np.array([eigenvalues * (re + 1j * im) + B @ u for re, im, u in zip(s["re"], s["im"], x, strict=True)])
    past = p["D"] * x if p["D"].ndim == 1 else x @ p["D"]
    return {"re": h.real, "im": h.imag, "y": np.array([(C @ row).real for row in h]) + past}


STRUCTURE = ("period",)  # buffers that are not any numbers
# The bare formulas of cells that bring none of their own.
FORMULAS: dict[str, Callable[[Cell, Arrays, Array, Arrays], Arrays]] = {"clockwork": clockwork, "lru": lru}
BUILT_IN = [row.name for row in available_cells(third_party=False)]


@dataclass
class Case:
    """A cell, and arrays to feed it, its reference and its equation."""

    cell: Cell
    params: Arrays
    state: Arrays
    xs: Array

    def leaves(self) -> Arrays:
        """What has a gradient, by name: ``xs``, states and parameters, but nothing that a clock compares."""
        arrays = {"xs": self.xs, **self.state, **self.params}
        clocks = timesteps(specification(self.cell)[0])
        return {name: array for name, array in arrays.items() if name not in (*clocks, *STRUCTURE)}

    @staticmethod
    def bare(cell: Cell, p: Any, x: Array, s: Any) -> Arrays:
        """One step in bare NumPy."""
        new = FORMULAS[cell.name](cell, vars(p), x, vars(s)) if cell.name in FORMULAS else cell.reference(p, x, s)
        assert new is not None
        return new

    def reference(self) -> list[Arrays]:
        """The states after every step, by the cell's reference."""
        found: list[Arrays] = []
        for x in self.xs:
            state = found[-1] if found else self.state
            new = self.bare(self.cell, SimpleNamespace(**self.params), x, SimpleNamespace(**state))
            found.append(counted(self.cell, new, state, specification(self.cell)[0]))
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
        arrays = {key: rng.normal(size=spec.shape) * 0.7 for key, spec in params.items()}
        own = init_cell(cell, np.random.default_rng(0))
        arrays.update({key: own[key].data for key, spec in params.items() if key in STRUCTURE})
        start = {key: rng.uniform(-0.9, 0.9, (B, *spec.shape)) for key, spec in states.items()}
        xs = rng.normal(size=(T, B, I))
        start.update({key: rng.integers(0, 7, (B, 1)) for key in timesteps(states)})
        return Case(
            cell,
            {key: value.astype(dtype) for key, value in arrays.items()},
            {key: value.astype(dtype) for key, value in start.items()},
            xs.astype(dtype),
        )

    return make


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    """Every cell with every option that changes its equation."""
    return str(request.param)


@pytest.fixture(params=BUILT_IN)
def cell_name(request: pytest.FixtureRequest) -> str:
    """Every built-in cell."""
    return str(request.param)


@pytest.fixture(scope="session")
def guard() -> Any:
    """Arrays that behave as those of another device."""
    return guard_arrays
