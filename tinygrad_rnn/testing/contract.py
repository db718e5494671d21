"""Checks of what a cell declares, and that a step gives it: names, texts, shapes, dtypes, sizes."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from typing import Any

import numpy as np

from tinygrad_rnn import options
from tinygrad_rnn.backend import Array
from tinygrad_rnn.cell import Cell, check_declaration, init_cell, noise_of, output_of, specification, timesteps
from tinygrad_rnn.compile.trace import global_generators, same
from tinygrad_rnn.errors import InputError
from tinygrad_rnn.plugins import is_name
from tinygrad_rnn.testing.cases import RESULTS, CellCase, cell_values
from tinygrad_rnn.testing.equation import written_out
from tinygrad_rnn.testing.trial import (
    ROUNDED,
    Failed,
    Noted,
    Trial,
    check_finite,
    compare,
    in_words,
    reason,
    reason_in_step,
)
from tinygrad_rnn.wrap import Wrapper


def declaration(trial: Trial) -> str:
    """Name, texts, options, states and parameters are declared as the contract says."""
    check_declaration(trial.cls)
    innermost: type[Cell] = trial.cls
    while issubclass(innermost, Wrapper):
        innermost = innermost.of
    if not is_name(innermost.name):
        raise Failed(f"name {innermost.name!r}: expected letters and digits without spaces, as for a file", fatal=True)
    cell = trial.cell()
    states, params = specification(cell)
    for name in [*(name for name in states if name in RESULTS), *(name for name in params if name == "x")]:
        raise Failed(
            f"name {name!r}: expected another one than {', '.join(RESULTS)}, as inputs and results are called here",
            fatal=True,
        )
    noise = noise_of(cell)
    output = output_of(cell)
    if states[output].shape != (cell.H,):
        raise Failed(
            f"state {output}: expected the output to have the shape (H,) = ({cell.H},), got {states[output].shape}; "
            "declare the output first, or name it in the class attribute 'output'",
            fatal=True,
        )
    told = f"states {' '.join(states)}; parameters {' '.join(params) or 'none'}"
    return told + (f"; noise {' '.join(noise)}" if noise else "") + trial.remark


def documentation(trial: Trial) -> str:
    """Every state is in the equation, every option has a help text."""
    cls, cell = trial.cls, trial.cell()
    states, params = specification(cell)
    if "\n" in cls.summary.strip():
        raise Failed("summary: expected one line, got several; the rest belongs into the docstring")
    silent = [option.name for option in dataclasses.fields(cls.Options) if not option.metadata.get("help")]
    if silent:
        raise Failed(
            f"option {silent[0]}: expected a help text, as in field(default=..., metadata={{'help': '...'}}), got none"
        )
    types = options.field_types(cls.Options, f"cell {cls.name}")
    for option in dataclasses.fields(cls.Options):
        if not isinstance(option.metadata["help"], str):
            raise Failed(f"option {option.name}: expected a text as help, got {option.metadata['help']!r}")
        if option.name not in trial.options:
            options.check(types[option.name], getattr(cell.options, option.name), f"option {option.name}, its default")
    for name in [name for name in states if name not in timesteps(states)]:
        # h' = ..., h_t = ..., h(t) = ..., also several on one line
        sign = r"(?:['′]|_\{?t\}?|\(t\)|\[t\]|_new)*"
        if not re.search(rf"(?<![\w]){re.escape(name)}{sign}\s*(?:,[^=\n]*)?=", cls.equation):
            raise Failed(f"equation: expected a line {name}' = ..., since {name} is a state, got none")
    for field_name in ("summary", "citation", "equation", "deviations"):
        if getattr(cls, field_name).startswith("TODO"):  # as `cells new` leaves them
            raise Noted(f"{field_name}: still to be written, it begins with TODO")
    absent = [name for name in params if not _mentions(f"{written_out(cell)}\n{cls.deviations}", name)]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise Noted(f"parameter {', '.join(absent[:3])}{more}: named neither in the equation nor in the deviations")
    return "every state and parameter is in the equation, every option has a help text"


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def seed(trial: Trial) -> str:
    """The same seed gives the same initial parameters."""

    def drawn(seed: int) -> dict[str, Array]:
        return {name: value.data for name, value in init_cell(trial.cell(), np.random.default_rng(seed)).items()}

    lines = [
        *trial.lines(),
        "kind, sizes = type(case.cell), (case.cell.I, case.cell.H, vars(case.cell.options))",
        "new = lambda seed: tr.init_cell(kind(*sizes), np.random.default_rng(seed))",
        "expected, got = ({k: v.data for k, v in new(0).items()} for _ in range(2))",
    ]
    chance = global_generators()
    try:
        one, two, other = drawn(0), drawn(0), drawn(1)
    except Exception as error:
        raise Failed(reason(error), [*lines[:-1], "new(0)"], fatal=True) from error
    if not same(chance, global_generators()):
        raise Failed("an initialiser draws from the global random numbers (np.random, random); draw from rng", lines)
    if list(one) != list(two) or any(one[name].shape != two[name].shape for name in one):
        raise Failed("params() is not the same twice", lines, fatal=True)
    compare(two, one, 0.0, "initial parameters from the same seed", lines, fatal=True)
    check_finite(one, "initial parameters", [*lines[:-1], "got = {k: v.data for k, v in new(0).items()}"])
    texts = [spec.init for spec in specification(trial.cell())[1].values() if isinstance(spec.init, str)]
    if all(same(one[name], other[name]) for name in one):
        if {text.partition(":")[0] for text in texts} <= {"zeros", "constant", "identity"}:
            return "the same seed gives the same parameters; nothing in them is random"
        raise Failed("initial parameters from two seeds are the same", [*lines, "print(new(0), new(1))"])
    return "the same seed gives the same parameters, another seed others"


def shapes(trial: Trial) -> str:
    """A step gives the declared states, in float64."""
    try:
        values = cell_values(trial.case(), order=1)
    except Exception as error:
        hint = ""
        if trial.I != trial.H:
            with contextlib.suppress(Exception):
                cell_values(trial.case(I=trial.H))
                hint = (
                    f"; with I = H = {trial.H} it runs: the shapes of params() or the step take I for H; a cell that "
                    "needs I = H says so by raising InputError in check()"
                )
        text = reason_in_step(error) + hint
        raise Failed(text, [*trial.lines(), "cell_values(case, order=1)"], fatal=True) from error
    check_finite(values, "ordinary numbers", [*trial.lines(), "got = cell_values(case, order=1)"], fatal=True)
    return f"I={trial.I}, H={trial.H}, float64"


def dtype(trial: Trial) -> str:
    """float32 stays float32."""
    trial.float32 = False
    narrow = trial.case(dtype=np.float32)
    lines = trial.lines(dtype=np.float32)
    try:
        got = cell_values(narrow, order=1)
    except Exception as error:
        text = f"in float32: {reason_in_step(error)}"
        raise Failed(text, [*lines, "cell_values(case, order=1)"]) from error
    for name, value in got.items():
        if value.dtype != np.float32:
            raise Failed(
                f"in float32: {in_words(name)}: expected float32, got {value.dtype}",
                [*lines, f"print(cell_values(case, order=1)[{name!r}].dtype)  # {value.dtype}"],
            )
    wide = dataclasses.replace(_cast(narrow, np.float64), cell=trial.cell())
    lines += [*trial.lines("wide")[-1:], "got, expected = cell_values(case), cell_values(wide)"]
    compare(got, cell_values(wide), ROUNDED, "float32 against float64", lines, [*narrow.state, "outputs"])
    trial.float32 = True
    return "float32 stays float32, and agrees with float64"


def _cast(case: CellCase, dtype: Any) -> CellCase:
    arrays: dict[str, Any] = {
        key: {name: array.astype(dtype) for name, array in getattr(case, key).items()} for key in ("params", "state")
    }
    return dataclasses.replace(case, xs=case.xs.astype(dtype), **arrays)


def sizes(trial: Trial) -> str:
    """One timestep, one row, I = H, I != H, and single units work."""
    tried, refused = [], []
    for T, B, I, H in (
        (1, 1, trial.I, trial.H),
        (1, 3, trial.I, trial.H),
        (3, 1, trial.I, trial.H),
        (2, 2, trial.H, trial.H),
        (2, 2, trial.H + 3, trial.H),
        (2, 2, trial.I, trial.H + 3),
        (2, 2, 1, 1),
    ):
        told = f"T={T} B={B} I={I} H={H}"
        try:
            trial.cell(I=I, H=H)
        except InputError:
            refused.append(told)
            continue
        sizes = {"T": T, "B": B, "I": I, "H": H}
        try:
            cell_values(trial.case(**sizes), order=1)
        except Exception as error:
            raise Failed(f"{told}: {reason(error)}", [*trial.lines(**sizes), "cell_values(case, order=1)"]) from error
        tried.append(told)
    told = f"{len(tried)} sizes, as one timestep, one row, I = H and single units"
    return told + (f"; refused by the cell: {'; '.join(refused)}" if refused else "")
