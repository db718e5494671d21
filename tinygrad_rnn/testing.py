"""Conformance: `check_cell` tries one cell in every way in which the library will use it, and says what fails.

A check is a function of a `_Trial`: it returns a few words on what it did, or raises what it found. All numbers come
from `cell_case` and all results from `cell_values`, so a reproduction is a handful of lines that anybody can run.
Nothing here needs pytest: it runs in the tests of a stranger's package and in the command line alike.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import random
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from tinygrad_rnn import backend, checkpoint, engine, guard, ops
from tinygrad_rnn.autodiff import gradcheck
from tinygrad_rnn.backend import Array
from tinygrad_rnn.cell import Cell, check_declaration, draw_noise, init_cell, noise_of, specification
from tinygrad_rnn.compile.trace import MISSING, public, same, surroundings
from tinygrad_rnn.errors import GradientError, InputError, PluginError
from tinygrad_rnn.registry import load_cell
from tinygrad_rnn.sequence import Unrolled, scan, start_state, unroll
from tinygrad_rnn.tensor import Tensor, grad
from tinygrad_rnn.wrap import Wrapper

Outcome = Literal["passed", "failed", "noted", "skipped"]
Reference = Callable[[Any, Any, Any, Any], Mapping[str, Any] | None]

EXECUTORS = ("llvm", "numpy")  # the compiled ones
BOTH: tuple[str | None, ...] = ("unroll", None)  # one step after another, and the fastest that can
EXACT = 1e-12  # of the largest element: the same operations on the same numbers, summed in another order
CLOSE = 1e-9  # the same formula in other operations, several steps of it
ROUNDED = 1e-3  # float32, several steps of it
LARGE = 1e4
LONG = 200  # timesteps
# Over the second half of a long run a state that is summed up grows to twice its size, a double sum to four times; the
# slowest exponential growth that is told is 3.5 percent a step. What is small after all is nobody's trouble.
GROWTH, SMALL = 32.0, 1e3


# ---------------------------------------------------------------------------------------------- the report


@dataclass(frozen=True)
class CellCheck:
    """One row of a report: what was looked at, how it went, and Python lines that show it once more.

    ``noted`` is no fault: something to know, as that the cell cannot be compiled. ``skipped`` says what to do about it.
    """

    name: str
    meaning: str
    outcome: Outcome
    detail: str
    reproduction: str = ""


@dataclass(frozen=True)
class CellReport:
    """What `check_cell` found on one cell."""

    cell: str
    options: dict[str, Any]
    I: int
    H: int
    seed: int
    checks: tuple[CellCheck, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[CellCheck, ...]:
        return tuple(check for check in self.checks if check.outcome == "failed")

    def summary(self) -> str:
        """One line: the cell, the sizes, and how many checks went how."""
        counts = {kind: sum(check.outcome == kind for check in self.checks) for kind in _WORDS}
        told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        given = "".join(f", {name}={value}" for name, value in self.options.items())
        return f"cell {self.cell} (I={self.I}, H={self.H}{given}, seed {self.seed}): {told}"

    def text(self) -> str:
        """The whole report as lines: a table, and under it the reproduction of what failed."""
        width = max(len(check.name) for check in self.checks)
        lines = [self.summary()]
        lines += [f"  {_WORDS[check.outcome]}  {check.name:{width}}  {check.detail}" for check in self.checks]
        for check in self.failed:
            lines += ["", f"{check.name} ({check.meaning}), once more:"]
            lines += [f"    {line}" for line in check.reproduction.splitlines()]
        return "\n".join(lines)


_WORDS: Mapping[Outcome, str] = {"passed": "passed ", "failed": "FAILED ", "noted": "noted  ", "skipped": "skipped"}


class _Failed(Exception):
    """Final. A fault; `fatal` when nothing that follows could be judged."""

    def __init__(self, detail: str, lines: Sequence[str] = (), *, fatal: bool = False) -> None:
        super().__init__(detail)
        self.lines = tuple(lines)
        self.fatal = fatal


class _Noted(Exception):
    """Final. Something to know that is no fault."""


class _Skipped(Exception):
    """Final. Nothing to check, and what to do about it."""


# ------------------------------------------------------------------------------------- numbers to feed a cell


@dataclass(frozen=True)
class CellCase:
    """A cell of its own with numbers to feed it, as NumPy arrays: what `unroll` takes.

    `xs` (T, B, I), states (B, *shape), `mask` (T, B) or None, noise (T, B, *shape) or none.
    """

    cell: Cell
    params: dict[str, Array]
    xs: Array
    state: dict[str, Array]
    mask: Array | None = None
    noise: dict[str, Array] = field(default_factory=dict)


def cell_case(
    cell: str | type[Cell],
    options: Mapping[str, Any] | None = None,
    *,
    T: int = 4,
    B: int = 3,
    I: int = 3,
    H: int = 4,
    seed: int = 0,
    dtype: Any = np.float64,
    masked: bool = False,
    noisy: bool = False,
) -> CellCase:
    """A new cell, named or given as a class, with numbers that a seed decides.

    Parameters are the initial ones with normal numbers (0.3) added, so that no bias is zero; buffers stay as they are.
    The state is one that the cell reaches by itself, drawn in a little: states may have to be positive, say. With
    `masked`, row 0 runs to the end, the last row not at all, rows between them for a part.
    Raises what the cell and `unroll` raise.
    """
    cls = load_cell(cell).cls if isinstance(cell, str) else cell
    rng = np.random.default_rng(seed)
    made = cls(I, H, options)
    specs = specification(made)[1]
    params = {name: value.data for name, value in init_cell(made, rng).items()}
    params.update(
        {
            name: np.asarray(array + 0.3 * rng.normal(size=array.shape))
            for name, array in params.items()
            if specs[name].role != "buffer"
        }
    )
    with engine.no_grad():
        # by a cell that is thrown away, on copies: what a step leaves behind or writes into is seen by nobody
        reached = unroll(cls(I, H, options), _tensors(params), Tensor(rng.normal(size=(3, B, I)))).state
    state = {name: 0.9 * value.data + rng.uniform(0.02, 0.05, value.data.shape) for name, value in reached.items()}
    xs = rng.normal(size=(T, B, I))
    lengths = np.linspace(T, 0, B).astype(int) if B > 1 else np.array([max(1, T // 2)])
    return CellCase(
        made,
        {name: array.astype(dtype) for name, array in params.items()},
        xs.astype(dtype),
        {name: array.astype(dtype) for name, array in state.items()},
        np.arange(T)[:, None] < lengths if masked else None,
        {name: array.copy() for name, array in draw_noise(made, T, B, rng, dtype).items()} if noisy else {},
    )


def _tensors(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """Constants with the numbers of `arrays`, in memory of their own."""
    return {name: Tensor(array.copy()) for name, array in arrays.items()}


def cell_values(
    case: CellCase, executor: str | None = "unroll", order: int = 0, *, curved: bool = True, put: Any = None
) -> dict[str, Array]:
    """What a run of `case` gives, by name; the arrays of `case` are copied first.

    A state's name: its value at every timestep, (T, B, *shape); ``outputs`` (T, B, H); ``loss``, a random function of
    them, of second degree or with ``curved=False`` of first. With ``order=1`` also ``d NAME``, the gradient of the loss
    for the input x, every start state and every parameter, and ``slope``, a random sum of these; with ``order=2``
    ``dd NAME``, the gradient of the slope. `executor` is that of `scan`, or "unroll". `put` brings arrays elsewhere.
    """
    return _values(case, _by(executor), order, curved, put or np.array)[1]


def _by(executor: str | None) -> Callable[..., Unrolled]:
    return unroll if executor == "unroll" else functools.partial(scan, executor=executor)


def _values(
    case: CellCase, run: Callable[..., Unrolled], order: int, curved: bool, put: Any
) -> tuple[Unrolled, dict[str, Array]]:
    trained = {name for name, spec in specification(case.cell)[1].items() if spec.role != "buffer"}
    params = {name: Tensor(put(array), requires_grad=name in trained) for name, array in case.params.items()}
    xs = Tensor(put(case.xs), requires_grad=True)
    state = {name: Tensor(put(array), requires_grad=True) for name, array in case.state.items()}
    options: dict[str, Any] = {"mask": None if case.mask is None else put(case.mask)}
    if case.noise:
        options["noise"] = {name: put(array) for name, array in case.noise.items()}
    done = run(case.cell, params, xs, state, **options)
    values = {name: ops.stack(list(row)).data for name, row in done.states.items()}
    values["outputs"] = done.outputs.data
    rng = np.random.default_rng(1)

    def weighted(value: Any) -> Any:
        return ops.sum(value * put(rng.normal(size=value.shape).astype(value.dtype)))

    parts = [done.outputs, *done.state.values(), *(row[len(row) // 2] for row in done.states.values())]
    loss = sum((weighted(part * part if curved else part) for part in parts), start=0.0 * ops.sum(done.outputs))
    values["loss"] = loss.data
    leaves = {"x": xs, **state, **{name: value for name, value in params.items() if name in trained}}
    if order and loss.requires_grad:
        first = dict(zip(leaves, grad(loss, list(leaves.values()), create_graph=order > 1), strict=True))
        values.update({f"d {name}": value.data for name, value in first.items()})
        slope: Any = sum((weighted(value) for value in first.values()), start=0.0 * weighted(loss))
        values["slope"] = slope.data
        if order > 1 and slope.requires_grad:
            second = grad(slope, list(leaves.values()))
            values.update({f"dd {name}": value.data for name, value in zip(leaves, second, strict=True)})
    return done, values


# ------------------------------------------------------------------------------------------------- one trial


@dataclass
class _Trial:
    """Final. The cell that is checked, at sizes that it can have."""

    cls: type[Cell]
    options: dict[str, Any]
    I: int
    H: int
    seed: int
    reference: Reference | None
    float32: bool = True  # until it is found not to work
    pure: bool = False  # until it is found to be
    remark: str = ""  # on the sizes

    def fit(self) -> None:
        """Make I = H where the cell refuses another I. Raises its InputError where that does not help."""
        try:
            self.cell()
        except InputError as error:
            try:
                self.cell(I=self.H)
            except InputError:
                raise error from None
            self.I, self.remark = self.H, f"; with I = H: {error}"

    def cell(self, **sizes: int) -> Cell:
        return self.cls(sizes.get("I", self.I), sizes.get("H", self.H), self.options)

    def case(self, **facts: Any) -> CellCase:
        return cell_case(self.cls, self.options, **self._facts(facts))

    def _facts(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        return {"I": self.I, "H": self.H, "seed": self.seed, **facts}

    def lines(self, *names: str, **facts: Any) -> list[str]:
        """Python lines that make the same case, once for each of `names` (default: ``case``)."""
        head, cell = self._named
        told = {"T": 4, "B": 3, **self._facts(facts)}
        sizes = ", ".join(f"{key}={_spelt(value)}" for key, value in told.items())
        made = f"cell_case({cell}, {self.options!r}, {sizes})" if self.options else f"cell_case({cell}, {sizes})"
        return [*head, *(f"{name} = {made}" for name in names or ("case",))]

    @functools.cached_property
    def _named(self) -> tuple[list[str], str]:
        """The lines that import what a reproduction needs, and how it names the cell."""
        head = ["import numpy as np", "import tinygrad_rnn as tr"]
        head += ["from tinygrad_rnn.testing import cell_case, cell_values"]
        wraps: list[str] = []
        cls: type[Cell] = self.cls
        while issubclass(cls, Wrapper):
            wraps.insert(0, cls.name.removeprefix(f"{cls.of.name}+"))
            cls = cls.of
        module = sys.modules.get(cls.__module__)
        cell = repr(cls.name)
        try:
            known = load_cell(cls.name).cls is cls
        except (InputError, PluginError):
            known = False
        if known and hasattr(module, "__digest__"):
            head += [f"tr.load_plugin_file({str(getattr(module, '__file__', ''))!r})"]
        elif not known:
            head += [f"from {cls.__module__} import {cls.__qualname__.partition('.')[0]}"]
            cell = cls.__qualname__
        if wraps:
            head += [f"cls = tr.wrap_cell({f'tr.load_cell({cell}).cls' if known else cell}, {wraps!r})"]
            cell = "cls"
        return head, cell


def _spelt(value: Any) -> str:
    return f"np.{np.dtype(value).name}" if isinstance(value, type) else repr(value)


def _worst(got: Array, expected: Array, least: float) -> tuple[float, tuple[int, ...]]:
    """The largest error as a share of the largest element or `least`, and where it is; NaN counts as infinite."""
    if got.shape != expected.shape:
        raise _Failed(f"expected shape {expected.shape}, got {got.shape}")
    error = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    error = np.where(np.isnan(error), np.inf, error)
    if not error.size:
        return 0.0, ()
    place = tuple(int(i) for i in np.unravel_index(int(np.argmax(error)), error.shape))
    largest = float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected)))
    return float(error[place]) / max(largest, least), place


def _index(place: Sequence[int]) -> str:
    """As it stands between brackets."""
    return ", ".join(map(str, place)) or "()"


def _compare(
    got: Mapping[str, Array],
    expected: Mapping[str, Array],
    bound: float,
    what: str,
    lines: Sequence[str],
    keep: Sequence[str] | None = None,
) -> None:
    """Raise _Failed for the first name whose values differ: both numbers, and where; `lines` end with ``got`` and
    ``expected`` made."""
    names = [name for name in (keep or expected) if name in expected and name not in ("loss", "slope")]
    largest = max((float(np.max(np.abs(expected[name]), initial=0.0)) for name in names), default=1.0)
    least = 1e-3 * largest if 0.0 < largest < np.inf else 1.0
    for name in names:
        value = expected[name]
        found = got[name] if name in got else np.zeros_like(value)
        error, place = _worst(found, value, least)
        if not error <= bound:
            index = _index(place)
            a, b = float(found[place]), float(value[place])
            raise _Failed(
                f"{what}: {_told(name)}[{index}]: expected {b!r}, got {a!r}",
                [*lines, f"print(got[{name!r}][{index}], expected[{name!r}][{index}])  # {a!r} {b!r}"],
            )


def _told(name: str) -> str:
    """The name of a result in words."""
    if name.startswith("dd "):
        return f"the second derivative for {name[3:]}"
    return f"the gradient for {name[2:]}" if name.startswith("d ") else name


def _finite(values: Mapping[str, Array], what: str, lines: Sequence[str]) -> None:
    for name, value in values.items():
        if name not in ("loss", "slope") and not np.all(np.isfinite(value)):
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
            index = _index(place)
            raise _Failed(
                f"{what}: {_told(name)}[{index}] is {float(value[place])!r}",
                [*lines, f"print(got[{name!r}][{index}])  # {float(value[place])!r}"],
            )


# ------------------------------------------------------------------------------------------------- the checks


def _declaration(trial: _Trial) -> str:
    check_declaration(trial.cls)
    if not re.fullmatch(r"[A-Za-z]\w*([.-]\w+)*", trial.cls.name.partition("+")[0]):  # behind it: wrappers
        raise _Failed(f"name {trial.cls.name!r}: expected letters and digits without spaces, as for a file", fatal=True)
    cell = trial.cell()
    states, params = specification(cell)
    noise = noise_of(cell)
    output, spec = next(iter(states.items()))
    if spec.shape != (cell.H,):
        raise _Failed(
            f"state {output}: expected the first state, which is the output, of shape (H,) = ({cell.H},), got "
            f"{spec.shape}; declare the output first",
            fatal=True,
        )
    told = f"states {' '.join(states)}; parameters {' '.join(params) or 'none'}"
    return told + (f"; noise {' '.join(noise)}" if noise else "") + trial.remark


def _documentation(trial: _Trial) -> str:
    cls, cell = trial.cls, trial.cell()
    states, params = specification(cell)
    if "\n" in cls.summary.strip():
        raise _Failed("summary: expected one line, got several; the rest belongs into the docstring")
    silent = [option.name for option in dataclasses.fields(cls.Options) if not option.metadata.get("help")]
    if silent:
        raise _Failed(
            f"option {silent[0]}: expected a help text, as in field(default=..., metadata={{'help': '...'}}), got none"
        )
    for name in states:
        # h' = ..., h_t = ..., h(t) = ..., also several on one line
        sign = r"(?:['′]|_\{?t\}?|\(t\)|\[t\]|_new)*"
        if not re.search(rf"(?<![\w]){re.escape(name)}{sign}\s*(?:,[^=\n]*)?=", cls.equation):
            raise _Failed(f"equation: expected a line {name}' = ..., since {name} is a state, got none")
    for field_name in ("summary", "citation"):
        if getattr(cls, field_name).startswith("TODO"):  # as `cells new` leaves them
            raise _Noted(f"{field_name}: still to be written, it begins with TODO")
    absent = [name for name in params if not _mentions(f"{cls.equation}\n{cls.deviations}", name)]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise _Noted(f"parameter {', '.join(absent[:3])}{more}: named neither in the equation nor in the deviations")
    return "every state and parameter is in the equation, every option has a help text"


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def _seed(trial: _Trial) -> str:
    def drawn(seed: int) -> dict[str, Array]:
        return {name: value.data for name, value in init_cell(trial.cell(), np.random.default_rng(seed)).items()}

    lines = [
        *trial.lines(),
        "kind, sizes = type(case.cell), (case.cell.I, case.cell.H, vars(case.cell.options))",
        "new = lambda seed: tr.init_cell(kind(*sizes), np.random.default_rng(seed))",
        "expected, got = ({k: v.data for k, v in new(0).items()} for _ in range(2))",
    ]
    one, two, other = drawn(0), drawn(0), drawn(1)
    if list(one) != list(two) or any(one[name].shape != two[name].shape for name in one):
        raise _Failed("params() is not the same twice", lines, fatal=True)
    try:
        _compare(two, one, 0.0, "initial parameters from the same seed", lines)
    except _Failed as error:
        raise _Failed(str(error), error.lines, fatal=True) from error
    _finite(one, "initial parameters", [*lines[:-1], "got = {k: v.data for k, v in new(0).items()}"])
    inits = {spec.init.partition(":")[0] for spec in specification(trial.cell())[1].values()}
    if all(same(one[name], other[name]) for name in one):
        if inits <= {"zeros", "constant", "identity"}:
            return "the same seed gives the same parameters; nothing in them is random"
        raise _Failed("initial parameters from two seeds are the same", [*lines, "print(new(0), new(1))"])
    return "the same seed gives the same parameters, another seed others"


def _shapes(trial: _Trial) -> str:
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
        raise _Failed(_one_line(error) + hint, [*trial.lines(), "cell_values(case, order=1)"], fatal=True) from error
    lines = [*trial.lines(), "got = cell_values(case, order=1)"]
    try:
        _finite(values, "ordinary numbers", lines)
    except _Failed as error:
        raise _Failed(str(error), error.lines, fatal=True) from error
    return f"I={trial.I}, H={trial.H}, float64"


def _dtype(trial: _Trial) -> str:
    trial.float32 = False
    narrow = trial.case(dtype=np.float32)
    lines = trial.lines(dtype=np.float32)
    try:
        got = cell_values(narrow, order=1)
    except Exception as error:
        raise _Failed(f"in float32: {_one_line(error)}", [*lines, "cell_values(case, order=1)"]) from error
    for name, value in got.items():
        if value.dtype != np.float32:
            raise _Failed(
                f"in float32: {_told(name)}: expected float32, got {value.dtype}",
                [*lines, f"print(cell_values(case, order=1)[{name!r}].dtype)  # {value.dtype}"],
            )
    wide = dataclasses.replace(_cast(narrow, np.float64), cell=trial.cell())
    lines += [*trial.lines("wide")[-1:], "got, expected = cell_values(case), cell_values(wide)"]
    _compare(got, cell_values(wide), ROUNDED, "float32 against float64", lines, [*narrow.state, "outputs"])
    trial.float32 = True
    return "float32 stays float32, and agrees with float64"


def _cast(case: CellCase, dtype: Any) -> CellCase:
    arrays: dict[str, Any] = {
        key: {name: array.astype(dtype) for name, array in getattr(case, key).items()} for key in ("params", "state")
    }
    return dataclasses.replace(case, xs=case.xs.astype(dtype), **arrays)


def _sizes(trial: _Trial) -> str:
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
            raise _Failed(
                f"{told}: {_one_line(error)}", [*trial.lines(**sizes), "cell_values(case, order=1)"]
            ) from error
        tried.append(told)
    told = f"{len(tried)} sizes, as one timestep, one row, I = H and single units"
    return told + (f"; refused by the cell: {'; '.join(refused)}" if refused else "")


def _purity(trial: _Trial) -> str:
    case, again = trial.case(), trial.case()
    kept, around, chance = _copied(public(case.cell)), _copied(surroundings(case.cell)), _chance()
    classes = _class_values(trial.cls)
    _written(trial, case)
    expected = cell_values(again, order=1)
    repeated = not all(same(value, expected[name]) for name, value in cell_values(trial.case(), order=1).items())
    lines = [*trial.lines("case", "again"), "got, expected = cell_values(case), cell_values(again)"]
    if not same(chance, _chance()):
        raise _Failed(
            "the step draws from the global random numbers (np.random, random); declare noise(), which the library "
            "draws in training",
            [*lines, "print(got['outputs'].sum(), expected['outputs'].sum())"],
            fatal=repeated,
        )
    once = [*trial.lines(), "cell_values(case)"]
    for key, value in public(case.cell).items():
        if kept is not None and not same(value, kept.get(key, MISSING)):
            raise _Failed(
                f"the step changes self.{key}; what is carried belongs into state()",
                [*once, f"print(case.cell.{key})"],
                fatal=repeated,
            )
    for key, value in {**_class_values(trial.cls), **surroundings(case.cell)}.items():
        was = {**classes, **(around or {})}.get(key, MISSING)
        if not same(value, was) and (around is not None or key in classes):
            raise _Failed(f"the step changes {key}; what is carried belongs into state()", once, fatal=repeated)
    if repeated:
        try:
            _compare(cell_values(trial.case(), order=1), expected, 0.0, "the same numbers twice", lines)
        except _Failed as error:
            raise _Failed(str(error), error.lines, fatal=True) from error
        raise _Failed("the same numbers twice: the results differ", lines, fatal=True)
    used = cell_values(again, order=1)
    _compare(used, expected, 0.0, "the same cell again on the same numbers", [
        *trial.lines(), "expected, got = cell_values(case, order=1), cell_values(case, order=1)"
    ])  # fmt: skip
    _compare(
        _interleaved(trial.case(), trial.case(seed=trial.seed + 1)),
        expected,
        EXACT,
        "one step at a time, beside a second cell of the class",
        [*trial.lines("case", "other"), "expected = cell_values(case)", *_INTERLEAVED],
        [*case.state],
    )
    trial.pure = True
    return "the same bits twice; nothing is changed, inside or outside"


_INTERLEAVED = (
    "cut = lambda c, state, t: tr.unroll(c.cell, c.params, c.xs[t : t + 1], state)",
    "state, rows = case.state, []",
    "for t in range(len(case.xs)):",
    "    tr.unroll(other.cell, other.params, other.xs, other.state)",
    "    state = cut(case, state, t).state",
    "    rows.append(state)",
    "got = {name: np.stack([row[name].data for row in rows]) for name in case.state}",
)


def _interleaved(case: CellCase, other: CellCase) -> dict[str, Array]:
    state: Any = case.state
    rows = []
    with engine.no_grad():
        for t in range(len(case.xs)):
            unroll(other.cell, _tensors(other.params), Tensor(other.xs.copy()), _tensors(other.state))
            state = unroll(case.cell, _tensors(case.params), Tensor(case.xs[t : t + 1]), state).state
            rows.append(state)
    return {name: np.stack([row[name].data for row in rows]) for name in case.state}


def _written(trial: _Trial, case: CellCase) -> None:
    """Run `case` once without copies: what is written into its arrays is seen."""
    before = copy.deepcopy((case.params, case.xs, case.state))
    for needed in (False, True):
        params = {name: Tensor(array, requires_grad=needed) for name, array in case.params.items()}
        state = {name: Tensor(array, requires_grad=needed) for name, array in case.state.items()}
        unroll(case.cell, params, Tensor(case.xs, requires_grad=needed), state)
    once = "tr.unroll(case.cell, {k: tr.Tensor(v) for k, v in case.params.items()}, tr.Tensor(case.xs), case.state)"
    found = {**{f"parameter {name}": array for name, array in case.params.items()}, "x": case.xs}
    found |= {f"state {name}": array for name, array in case.state.items()}
    was = [*before[0].values(), before[1], *before[2].values()]
    for (name, value), old in zip(found.items(), was, strict=True):
        if not same(value, old):
            _, place = _worst(value, old, 1e-300)
            raise _Failed(
                f"the step changes its {name} in place: at {list(place)} {float(old[place])!r} became "
                f"{float(value[place])!r}; compute a new value",
                [*trial.lines("before", "case"), once, "print(before, case)"],
                fatal=True,
            )


def _copied(value: Any) -> Any:
    """A deep copy, None where there can be none."""
    try:
        return copy.deepcopy(value)
    except Exception:  # an attribute may be anything
        return None


def _class_values(cls: type[Cell]) -> dict[str, Any]:
    """The plain values of the class and those above it: what a step could count with."""
    kinds = cls.__mro__[: cls.__mro__.index(Cell)]
    return {
        f"{kind.__name__}.{name}": _copied(value)
        for kind in kinds
        for name, value in vars(kind).items()
        if isinstance(value, bool | int | float | list | dict | set | np.ndarray) and not name.startswith("_")
    }


def _chance() -> tuple[Any, Any]:
    """Where the global generators are."""
    return random.getstate(), np.random.get_state()  # noqa: NPY002


def _rows(trial: _Trial) -> str:
    case = trial.case()
    names = [*case.state, "outputs"]
    expected = cell_values(case)
    others = [0, 2]
    for value in (10.0, -10.0, 0.0, 0.5):
        changed = trial.case()
        setting = [
            f"other.xs[:, {others}] = {value}",
            *(f"other.state[{n!r}][{others}] *= {value}" for n in case.state),
        ]
        changed.xs[:, others] = value
        for array in changed.state.values():
            array[others] *= value
        _compare(
            {name: array[:, 1] for name, array in cell_values(changed).items() if array.ndim},
            {name: expected[name][:, 1] for name in names},
            EXACT,
            f"row 1 of 3, when the numbers of rows 0 and 2 change (to {value})",
            [
                *trial.lines("case", "other"),
                *setting,
                "got, expected = ({k: v[:, 1] for k, v in cell_values(c).items() if v.ndim} for c in (other, case))",
            ],
        )
    order = [2, 0, 1]
    _compare(
        cell_values(_taken(trial.case(), order)),
        {name: expected[name][:, order] for name in names},
        EXACT,
        "rows in another order",
        [
            *trial.lines("case", "other"),
            *_taking(order, case),
            "got = cell_values(other)",
            f"expected = {{k: v[:, {order}] for k, v in cell_values(case).items() if v.ndim}}",
        ],
    )
    _compare(
        cell_values(_taken(trial.case(), [1])),
        {name: expected[name][:, [1]] for name in names},
        EXACT,
        "row 1 alone, and as one of three",
        [
            *trial.lines("case", "other"),
            *_taking([1], case),
            "got = cell_values(other); expected = {k: v[:, [1]] for k, v in cell_values(case).items() if v.ndim}",
        ],
    )
    return "changed, reordered and alone: a row gives the same"


def _taken(case: CellCase, rows: Sequence[int]) -> CellCase:
    state = {name: array[rows] for name, array in case.state.items()}
    mask = None if case.mask is None else case.mask[:, rows]
    return dataclasses.replace(case, xs=case.xs[:, rows], state=state, mask=mask)


def _taking(rows: Sequence[int], case: CellCase) -> list[str]:
    return [
        "from dataclasses import replace",
        f"state = {{name: array[{list(rows)}] for name, array in case.state.items()}}",
        f"other = replace(other, xs=case.xs[:, {list(rows)}], state=state)",
    ]


def _gradients(trial: _Trial) -> str:
    kinks: list[str] = []
    case = trial.case(T=3, B=2)
    leaves = ["x", *case.state, *_trained(case)]
    for name in leaves:
        if name not in case.state and _unused(trial, name):
            what = "the input x" if name == "x" else f"parameter {name}"
            lines = [*trial.lines(), f"print(cell_values(case, order=1)['d {name}'])  # zeros"]
            raise _Failed(f"{what} is never used: no number depends on it, and its gradient is zero", lines)
    wrong: dict[str | None, GradientError] = {}
    # The first order one by one, so that no small one hides behind the large; the second at once, mixed ones included.
    parts: list[tuple[str | None, int]] = [*((leaf, 1) for leaf in leaves), (None, 2)]
    for part, order in parts:
        error = _wrong(trial, part, trial.seed, order)
        # At a kink, as that of relu, a difference is no derivative: a second point decides.
        if error is not None and _wrong(trial, part, trial.seed + 1000, order) is None:
            kinks += [part or "all at once"] if part or not kinks else []
        elif error is not None:
            wrong[part] = error
    if wrong:
        first = cell_values(trial.case(T=3, B=2), order=1)
        which = next((key for key in wrong if key and not np.any(first.get(f"d {key}", 0.0))), next(iter(wrong)))
        raise _located(trial, which, wrong[which])
    count = f"{len(leaves)} of them, first and second order"
    return count + (f"; only at a second point, since the first is at a kink: {', '.join(kinks)}" if kinks else "")


def _trained(case: CellCase) -> list[str]:
    return [name for name, spec in specification(case.cell)[1].items() if spec.role != "buffer"]


def _leaf(case: CellCase, name: str) -> Array:
    return case.xs if name == "x" else case.state[name] if name in case.state else case.params[name]


def _unused(trial: _Trial, name: str) -> bool:
    """Whether neither the gradient for `name` nor any number shows that it exists, at two points."""
    for seed in (trial.seed, trial.seed + 1000):
        case, other = trial.case(seed=seed), trial.case(seed=seed)
        _leaf(other, name)[...] += np.random.default_rng(seed).normal(size=_leaf(other, name).shape)
        got, moved = cell_values(case, order=1), cell_values(other)
        if np.any(got.get(f"d {name}", 0.0)) or any(not same(got[key], value) for key, value in moved.items()):
            return False
    return True


def _wrong(trial: _Trial, name: str | None, seed: int, order: int) -> GradientError | None:
    """What gradcheck has to say on the gradient for `name`, or on all at once (None), which sees mixed derivatives."""
    case = trial.case(T=3, B=2, seed=seed)
    names = ["x", *case.state, *_trained(case)] if name is None else [name]

    def f(*values: Any) -> tuple[Any, ...]:
        given = dict(zip(names, values, strict=True))
        params = {**_tensors(case.params), **{key: given[key] for key in case.params if key in given}}
        state = {**_tensors(case.state), **{key: given[key] for key in case.state if key in given}}
        done = unroll(case.cell if trial.pure else trial.cell(), params, given.get("x", Tensor(case.xs)), state)
        return (done.outputs, *done.state.values())

    try:
        gradcheck(f, *[_leaf(case, key) for key in names], rng=np.random.default_rng(seed), order=order)
    except GradientError as error:
        return error
    return None


def _located(trial: _Trial, name: str | None, error: GradientError) -> _Failed:
    """The fault that gradcheck found, with the element where the gradient is most wrong, by differences."""
    facts = {"T": 3, "B": 2}
    step = 1e-6
    case = trial.case(**facts)
    names = [name] if name is not None else ["x", *case.state, *_trained(case)]
    for order, value, sign in ((1, "loss", "d"), (2, "slope", "dd")):
        try:
            values = cell_values(case, order=order)
        except Exception as broken:
            return _Failed(f"the derivative of order {order}: {_one_line(broken)}", [
                *trial.lines(**facts), f"cell_values(case, order={order})"
            ])  # fmt: skip
        scale = max((float(np.max(np.abs(values.get(f"{sign} {key}", 0.0)))) for key in names), default=0.0)
        worst: tuple[float, str, tuple[int, ...], float, float] = (0.0, "", (), 0.0, 0.0)
        for key in names:
            got = values.get(f"{sign} {key}", np.zeros_like(_leaf(case, key)))
            for place in np.ndindex(got.shape):
                sides = []
                for move in (step, -step):
                    moved = trial.case(**facts)
                    _leaf(moved, key)[place] += move
                    sides.append(float(cell_values(moved, order=order - 1).get(value, 0.0)))
                expected = (sides[0] - sides[1]) / (2 * step)
                wrong = abs(float(got[place]) - expected)
                if wrong > worst[0] or np.isnan(wrong):
                    worst = (wrong, key, place, float(got[place]), expected)
        wrong, key, place, number, expected = worst
        if wrong > 1e-5 * max(scale, abs(expected), 1e-3) or np.isnan(wrong):
            cut = number == 0.0 and order == 1
            index = _index(place)
            where = "xs" if key == "x" else f"state[{key!r}]" if key in case.state else f"params[{key!r}]"
            kind = "the gradient" if order == 1 else "the second derivative"
            owner = "" if key == "x" else "state " if key in case.state else "parameter "
            return _Failed(
                f"{kind} for {owner}{key}[{index}]: expected {expected!r} by differences, got {number!r}"
                + ("; .data, .detach() and no_grad() cut a gradient off" if cut else ""),
                [
                    *trial.lines("case", "ahead", "behind", **facts),
                    f"ahead.{where}[{index}] += {step}; behind.{where}[{index}] -= {step}",
                    f"a, b = (cell_values(c, order={order - 1})[{value!r}] for c in (ahead, behind))",
                    f"print(cell_values(case, order={order})['{sign} {key}'][{index}], (a - b) / {2 * step})"
                    f"  # {number!r} {expected!r}",
                ],
            )
    what = name or "all arguments at once"
    return _Failed(f"for {what}: {error}", [*trial.lines(**facts), f"# gradcheck: {error}"])


def _against_reference(trial: _Trial) -> str:
    case = trial.case()
    cell: Any = case.cell
    write = trial.reference or (lambda cell, p, x, s: cell.reference(p, x, s))
    means = {name: kind.mean for name, kind in noise_of(cell).items()}
    state: dict[str, Array] = case.state
    rows = []
    for x in case.xs:
        p = SimpleNamespace(**copy.deepcopy(case.params), **means)
        try:
            new = write(cell, p, x.copy(), SimpleNamespace(**copy.deepcopy(state)))
        except Exception as error:
            if not isinstance(cell, Wrapper):
                raise
            raise _Skipped(f"its reference cannot be wrapped ({_one_line(error)}); multiply by @ in it") from error
        if new is None and trial.reference is None:
            raise _Skipped(
                "no reference: write reference(self, p, x, s), the same step in bare NumPy from the paper; it is the "
                "strongest check"
            )
        if not isinstance(new, Mapping) or set(new) != set(state):
            got = list(new) if isinstance(new, Mapping) else type(new).__name__
            raise _Failed(f"reference: expected a dict with the states {list(state)}, got {got}")
        for name, value in new.items():
            if not isinstance(value, np.ndarray) or value.shape != state[name].shape:
                got = f"{value.shape} array" if isinstance(value, np.ndarray) else type(value).__name__
                raise _Failed(f"reference: expected a NumPy array {state[name].shape} for {name}, got {got}")
        state = dict(new)
        rows.append(state)
    expected = {name: np.stack([row[name] for row in rows]) for name in case.state}
    lines = [*trial.lines(), "got = cell_values(case)"]
    if trial.reference is None:
        lines += [
            "from types import SimpleNamespace as names",
            "state, rows = case.state, []",
            "for x in case.xs:",
            f"    state = case.cell.reference(names(**case.params, **{means!r}), x, names(**state))",
            "    rows.append(state)",
            "expected = {name: np.stack([row[name] for row in rows]) for name in case.state}",
        ]
    else:
        lines += ["expected = ...  # by the reference that was given"]
    _compare(cell_values(trial.case()), expected, CLOSE, "against the reference", lines)
    return f"bare NumPy agrees, {len(case.xs)} steps"


def _scan(trial: _Trial) -> str:
    ran: dict[str, str] = {}
    for executor in EXECUTORS:
        for masked in (False, True):
            done = _same_by(trial, executor, masked=masked)
            ran.setdefault(done.executor, done.reason)
    # as in training: by the fastest, in float32
    default = _same_by(trial, None, 1, ROUNDED, dtype=np.float32 if trial.float32 else np.float64)
    if default.executor == "unroll":
        raise _Noted(f"slow: every step runs on the tape, because {default.reason}; the numbers are right")
    if default.executor != EXECUTORS[0]:
        raise _Noted(f"by {default.executor}: {default.reason}; the numbers are those of unroll, to the second order")
    return f"{' and '.join(ran)} give the numbers of unroll, masked too, to the second order"


def _same_by(trial: _Trial, executor: str | None, order: int = 2, bound: float = CLOSE, **facts: Any) -> Unrolled:
    """Compare `scan` by `executor` with `unroll`: values and derivatives; what `scan` said."""
    done, got = _values(trial.case(**facts), _by(executor), order, True, np.array)
    lines = [
        *trial.lines("case", "other", **facts),
        f"got, expected = cell_values(case, {executor!r}, {order}), cell_values(other, order={order})",
    ]
    told = "".join(f", {key}={_spelt(value)}" for key, value in facts.items())
    _compare(got, cell_values(trial.case(**facts), order=order), bound, f"scan by {done.executor}{told}", lines)
    return done


def _masks(trial: _Trial) -> str:
    case = trial.case(masked=True)
    assert case.mask is not None
    T, B = case.mask.shape
    lengths = case.mask.sum(axis=0)
    expected = cell_values(case, order=1)
    base = trial.lines("case", "other", masked=True)
    for name in case.state:
        last = [expected[name][n - 1, b] if n else case.state[name][b] for b, n in enumerate(lengths)]
        lines = [*trial.lines(masked=True), f"values = cell_values(case)[{name!r}]", "got = {'kept': values[-1]}"]
        lines += [
            f"last = [values[n - 1, b] if n else case.state[{name!r}][b] for b, n in enumerate(case.mask.sum(axis=0))]",
            "expected = {'kept': np.stack(last)}",
        ]
        kept = {"kept": expected[name][-1]}
        _compare(kept, {"kept": np.stack(last)}, 0.0, f"state {name} behind the last valid step", lines)
    for value in (0.0, LARGE, -LARGE):
        for by in BOTH:
            padded = trial.case(masked=True)
            padded.xs[~case.mask] = value
            lines = [*base, f"other.xs[~case.mask] = {value}"]
            lines += [f"got, expected = cell_values(other, {by!r}, 1), cell_values(case, {by!r}, 1)"]
            plain = expected if by == "unroll" else cell_values(trial.case(masked=True), None, 1)
            _compare(cell_values(padded, by, 1), plain, EXACT, f"padding of {value}", lines)
    for b in range(B):
        n = int(lengths[b])
        if n:
            alone = _taken(trial.case(masked=True), [b])
            short = dataclasses.replace(alone, xs=alone.xs[:n], mask=None)
            lines = [*base, *_taking([b], case), f"other = replace(other, xs=other.xs[:{n}], mask=None)"]
            lines += [f"got = {{k: v[:{n}, [{b}]] for k, v in cell_values(case).items() if v.ndim}}"]
            lines += ["expected = cell_values(other)"]
            _compare(
                {name: expected[name][:n, [b]] for name in case.state},
                {name: array for name, array in cell_values(short).items() if name in case.state},
                EXACT,
                f"a ragged row of {n} steps, and the same alone",
                lines,
            )
    return f"rows of {', '.join(map(str, lengths))} of {T} steps; padding of any size changes nothing"


_EXTREMES: Mapping[str, tuple[float, float]] = {  # what x and the reached state are multiplied by; 0: the start state
    "inputs of 1e4": (LARGE, 1.0),
    "states of 1e4": (1.0, LARGE),
    "inputs and states of 1e4": (LARGE, LARGE),
    "zero inputs, from the start": (0.0, 0.0),
}


def _extremes(trial: _Trial) -> str:
    dtypes = (np.float32, np.float64) if trial.float32 else (np.float64,)
    for dtype in dtypes:
        for what, (x, s) in _EXTREMES.items():
            case = trial.case(dtype=dtype)
            lines = [*trial.lines(dtype=dtype), f"case.xs[...] *= {x}"]
            case.xs[...] *= x
            if s:
                for array in case.state.values():
                    array *= s
                lines += [f"case.state[{name!r}] *= {s}" for name in case.state]
            else:
                state = start_state(case.cell, 3, case.xs)
                case.state.update(state)
                lines += [f"case.state[{name!r}][...] = {float(array.flat[0])}" for name, array in state.items()]
            got = cell_values(case, order=1, curved=False)
            _finite(got, f"{np.dtype(dtype).name}, {what}", [*lines, "got = cell_values(case, order=1, curved=False)"])
    return f"values and gradients stay finite, in {_names(dtypes)}: {'; '.join(_EXTREMES)}"


def _names(dtypes: Sequence[Any]) -> str:
    return " and ".join(np.dtype(dtype).name for dtype in dtypes)


def _long(trial: _Trial) -> str:
    H, dtype = _wide(trial), np.float32 if trial.float32 else np.float64
    I = H if trial.I == trial.H else trial.I
    cell = trial.cell(I=I, H=H)
    rng = np.random.default_rng(trial.seed)
    params = {name: value.data for name, value in init_cell(cell, rng, dtype).items()}
    xs = rng.normal(size=(LONG, 2, I)).astype(dtype)
    case = CellCase(cell, params, xs, start_state(cell, 2, xs))
    got = cell_values(case, order=1, curved=False)
    lines = [
        *trial.lines(T=LONG, B=2, I=I, H=H, dtype=dtype),
        f"rng = np.random.default_rng({trial.seed})",
        f"new = tr.init_cell(case.cell, rng, np.{np.dtype(dtype).name})",
        "case.params.update({name: value.data for name, value in new.items()})",
        f"case.xs[...] = rng.normal(size=({LONG}, 2, {I}))",
        *(f"case.state[{n!r}][...] = {spec.start}" for n, spec in specification(cell)[0].items()),
        "got = cell_values(case, order=1, curved=False)",
    ]
    what = f"{LONG} steps in {np.dtype(dtype).name}, initial parameters"
    _finite(got, what, lines)
    for name in case.state:
        half, end = (float(np.max(np.abs(got[name][t - 20 : t]))) for t in (LONG // 2, LONG))
        if end > SMALL and end > GROWTH * half:
            raise _Failed(
                f"{what}: state {name} grows exponentially, from {half:.3g} at "
                f"step {LONG // 2} to {end:.3g} at step {LONG}",
                [*lines, f"print(abs(got[{name!r}]).reshape({LONG}, -1).max(axis=1))"],
            )
    return f"{LONG} steps of {H} units stay finite in {np.dtype(dtype).name}, and do not explode"


def _wide(trial: _Trial) -> int:
    """More units than for the other checks, where the cell can have them: with few, chance decides on the growth."""
    for H in (32, 8 * trial.H):
        with contextlib.suppress(InputError):
            specification(trial.cell(I=H if trial.I == trial.H else trial.I, H=H))
            return H
    return trial.H


def _saved(trial: _Trial) -> str:
    case = trial.case()
    odd = {name: array.T.copy().T for name, array in case.params.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cell.safetensors"
        checkpoint.save(path, odd, {})
        loaded, _ = checkpoint.load(path)
    lines = [
        *trial.lines("case", "other"),
        "odd = {name: array.T.copy().T for name, array in case.params.items()}",
        "tr.save_checkpoint('cell.safetensors', odd, {})",
        "loaded, _ = tr.load_checkpoint('cell.safetensors')",
    ]
    _compare(loaded, case.params, 0.0, "saved and loaded", [*lines, "got, expected = loaded, case.params"])
    expected = cell_values(case, order=1)
    for told, params, bound in (("loaded", loaded, 0.0), ("not contiguous", odd, EXACT)):
        end = [f"other.params.update({'loaded' if told == 'loaded' else 'odd'})"]
        end += ["got, expected = cell_values(other, order=1, put=lambda a: a), cell_values(case, order=1)"]
        again = dataclasses.replace(trial.case(), params=params)
        got = cell_values(again, order=1, put=lambda array: array)
        _compare(got, expected, bound, f"with parameters that were {told}", [*lines, *end])
    return "saved and loaded: the same bits, the same outputs; also for arrays that are not contiguous"


def _taps(trial: _Trial) -> str:
    heard: list[tuple[str, Any]] = []
    expected = cell_values(trial.case(), order=1)
    case = trial.case()
    with engine.listen(lambda name, value: heard.append((name, value))):
        got = cell_values(case, order=1)
    lines = [
        *trial.lines("case", "other"),
        "heard = []",
        "expected = cell_values(case, order=1)",
        "with tr.listen(lambda name, value: heard.append((name, value))):",
        "    got = cell_values(other, order=1)",
    ]
    _compare(got, expected, 0.0, "while somebody listens", lines)
    T = len(case.xs)
    names = [name for name, _ in heard]
    lines += [f"print([name for name, _ in heard][:{len(names) // T or 1}])"]
    for name, value in heard:
        if not isinstance(value, Tensor):
            raise _Failed(f"tap {name!r}: expected a tensor, got {type(value).__name__}", lines)
    for name in dict.fromkeys(names):
        if names.count(name) > T:
            raise _Failed(f"tap {name!r} is announced {names.count(name) // T} times in one step; rename one", lines)
        if names.count(name) < T:
            raise _Failed(f"tap {name!r} is announced in {names.count(name)} of {T} steps; expected every step", lines)
    return f"{' '.join(dict.fromkeys(names))}: heard without changing a number" if names else "there are none"


def _devices(trial: _Trial) -> str:
    places: dict[str, tuple[Any, float]] = {"guard arrays": (guard.MODULE, EXACT)}
    if backend.select("auto").name != "cpu":
        places["CuPy"] = (backend.select("auto").xp, CLOSE)
    expected = cell_values(trial.case(), order=1)
    for name, (xp, bound) in places.items():
        put = "guard.asarray" if xp is guard.MODULE else "tr.select_device('auto').xp.asarray"
        lines = [*trial.lines(), "from tinygrad_rnn import guard"] if xp is guard.MODULE else trial.lines()
        try:
            far = cell_values(trial.case(), order=1, put=xp.asarray)
        except Exception as error:
            raise _Failed(
                f"on {name}, as on a GPU: {_one_line(error)}", [*lines, f"cell_values(case, order=1, put={put})"]
            ) from error
        for key, value in far.items():
            if not isinstance(value, xp.ndarray):
                raise _Failed(f"on {name}: {_told(key)} came back as {type(value).__name__}", lines)
        lines += [
            f"far = cell_values(case, order=1, put={put})",
            "got, expected = {k: v.get() for k, v in far.items()}, cell_values(case, order=1)",
        ]
        _compare({key: value.get() for key, value in far.items()}, expected, bound, f"on {name}", lines)
    return f"{' and '.join(places)} give the numbers of NumPy"


def _noise(trial: _Trial) -> str:
    declared = noise_of(trial.cell())
    if not declared:
        return "the cell reads none"
    case = trial.case(noisy=True)
    mean = trial.case(noisy=True)
    for name, array in mean.noise.items():
        array[...] = declared[name].mean
    lines = [
        *trial.lines("case", "mean", noisy=True),
        *(f"mean.noise[{name!r}][...] = {kind.mean}" for name, kind in declared.items()),
        "case.noise.clear()",
        "got, expected = cell_values(case, order=1), cell_values(mean, order=1)",
    ]
    plain = cell_values(dataclasses.replace(case, noise={}), order=1)
    _compare(plain, cell_values(mean, order=1), EXACT, "outside training, against noise at its mean", lines)
    drawn, loud = cell_values(case, order=1), []
    for name in declared:
        other = trial.case(noisy=True)
        other.noise[name][...] = 0.0 if np.any(case.noise[name]) else declared[name].scale
        if any(not same(drawn[key], value) for key, value in cell_values(other).items()):
            loud.append(name)
    if unused := [name for name in declared if name not in loud]:
        raise _Failed(f"noise {unused[0]} is never used: no number depends on it", [*trial.lines(noisy=True)])
    ran = [_same_by(trial, executor, noisy=True).executor for executor in EXECUTORS]
    return f"{' '.join(declared)}: {' and '.join(dict.fromkeys(ran))} give the numbers of unroll in training"


Check = Callable[[_Trial], str]

CHECKS: Mapping[str, tuple[str, Check]] = {
    "declaration": ("name, texts, options, states and parameters are declared as the contract says", _declaration),
    "documentation": ("every state is in the equation, every option has a help text", _documentation),
    "seed": ("the same seed gives the same initial parameters", _seed),
    "shapes": ("a step gives the declared states, in float64", _shapes),
    "purity": ("a step depends on its arguments alone, and changes nothing", _purity),
    "dtype": ("float32 stays float32", _dtype),
    "sizes": ("one timestep, one row, I = H, I != H, and single units work", _sizes),
    "rows": ("row b depends on row b alone", _rows),
    "gradients": ("first and second derivatives agree with differences, and everything is used", _gradients),
    "reference": ("the numbers are those of the same step in bare NumPy", _against_reference),
    "scan": ("compiled, the cell gives the numbers of unroll", _scan),
    "masks": ("in a ragged batch the padding changes nothing", _masks),
    "extremes": ("large and zero numbers give finite values and gradients", _extremes),
    "long": ("many steps from the initial parameters stay finite", _long),
    "checkpoint": ("parameters come back from a file as they were", _saved),
    "taps": ("who listens to the taps changes nothing, and can tell them apart", _taps),
    "devices": ("the step runs on arrays that are not NumPy's, as on a GPU", _devices),
    "noise": ("training noise is the same compiled, and its mean otherwise", _noise),
}


def check_cell(
    cell: str | type[Cell],
    *,
    options: Mapping[str, Any] | None = None,
    I: int = 3,
    H: int = 4,
    seed: int = 0,
    reference: Reference | None = None,
    raises: bool = True,
) -> CellReport:
    """Run every check on `cell`, a class or the name of a registered one, at I inputs and H units with `options`.

    `reference(cell, p, x, s)` is the step once more in bare NumPy, for a cell that brings none of its own. A cell that
    needs I = H is checked with that. The global random state is as before afterwards.
    Raises AssertionError with the whole report when a check failed, unless ``raises=False``; InputError for a name that
    is not known, and for options or sizes that the cell refuses.
    """
    cls = load_cell(cell).cls if isinstance(cell, str) else cell
    trial = _Trial(cls, dict(options or {}), I, H, seed, reference)
    started = time.perf_counter()
    rows: list[CellCheck] = []
    blocked = ""
    with _undisturbed():
        with contextlib.suppress(PluginError):  # told below
            check_declaration(cls)
            trial.fit()
        for name, (meaning, check) in CHECKS.items():
            if blocked:
                rows.append(CellCheck(name, meaning, "skipped", f"not run, since {blocked} failed"))
                continue
            outcome, detail, lines, fatal = _outcome(trial, check, name)
            blocked = name if fatal else ""
            rows.append(CellCheck(name, meaning, outcome, detail, "\n".join(lines)))
    seconds = time.perf_counter() - started
    label = getattr(cls, "name", None) or getattr(cls, "__name__", repr(cls))
    report = CellReport(str(label), trial.options, trial.I, trial.H, seed, tuple(rows), seconds)
    if raises and not report.ok:
        raise AssertionError(report.text())
    return report


def _outcome(trial: _Trial, check: Check, name: str) -> tuple[Outcome, str, Sequence[str], bool]:
    """How `check` went: outcome, detail, the lines of a reproduction, and whether to go on makes no sense."""
    try:
        return "passed", check(trial), (), False
    except _Noted as found:
        return "noted", str(found), (), False
    except _Skipped as found:
        return "skipped", str(found), (), False
    except _Failed as found:
        return "failed", str(found), found.lines or _plain(trial), found.fatal
    except Exception as error:  # a stranger's step may raise anything, anywhere
        return "failed", _one_line(error), _plain(trial), name == "declaration"


def _plain(trial: _Trial) -> list[str]:
    """A reproduction where no other was made: the whole check."""
    if not isinstance(getattr(trial.cls, "name", None), str):
        return []
    head, cell = trial._named
    return [*head, f"tr.check_cell({cell}, options={trial.options!r}, I={trial.I}, H={trial.H}, seed={trial.seed})"]


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError | PluginError | GradientError) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """No warnings of overflow on the way, nobody else listening, and the global generators as they were afterwards."""
    chance = _chance()
    place, engine.MODE.anomaly = engine.MODE.anomaly, None
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings(), engine.listen(None), engine.recording():
            warnings.simplefilter("ignore")
            yield
    finally:
        engine.MODE.anomaly = place
        random.setstate(chance[0])
        np.random.set_state(chance[1])  # noqa: NPY002
