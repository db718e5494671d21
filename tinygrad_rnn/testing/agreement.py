"""Checks that a cell gives the same numbers by another way: other rows, a reference, compiled code, masks, a file."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tinygrad_rnn import backend, checkpoint, engine, guard
from tinygrad_rnn.backend import Array
from tinygrad_rnn.cell import counted, noise_of, specification, timesteps
from tinygrad_rnn.compile.trace import same
from tinygrad_rnn.sequence import Unrolled, start_state
from tinygrad_rnn.tensor import Tensor
from tinygrad_rnn.testing.cases import CellCase, cell_values, run_case
from tinygrad_rnn.testing.trial import (
    CLOSE,
    EXACT,
    LARGE,
    ROUNDED,
    Failed,
    Noted,
    Skipped,
    Trial,
    compare,
    in_words,
    reason,
    reason_in_step,
    spelt,
)
from tinygrad_rnn.wrap import Wrapper

COMPILED = ("llvm", "numpy")  # executors, the fastest first


def rows(trial: Trial) -> str:
    """Row b depends on row b alone."""
    case = trial.case()
    names = [*case.state, "outputs"]
    expected = cell_values(case)
    others = [0, 2]
    shapes = specification(case.cell)[0]
    carried = [name for name in shapes if name not in timesteps(shapes)]
    for value in (10.0, -10.0, 0.0, 0.5):
        changed = trial.case()
        setting = [
            f"other.xs[:, {others}] = {value}",
            *(f"other.state[{n!r}][{others}] *= {value}" for n in carried),
        ]
        changed.xs[:, others] = value
        for name in carried:
            changed.state[name][others] *= value
        compare(
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
    compare(
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
    compare(
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
    begin = [f"case.state[{name!r}][1] = {float(spec.start)!r}" for name, spec in shapes.items()]
    fresh, alone = trial.case(), trial.case()
    for started in (fresh, alone):
        for name, array in start_state(case.cell, 3, case.xs).items():
            started.state[name][1] = array[1]
    expected = cell_values(fresh)
    compare(
        cell_values(_taken(alone, [1])),
        {name: expected[name][:, [1]] for name in names},
        EXACT,
        "row 1 from the start state, alone and beside rows that are further on",
        [
            *trial.lines("case", "other"),
            *begin,
            *_taking([1], case),
            "got = cell_values(other); expected = {k: v[:, [1]] for k, v in cell_values(case).items() if v.ndim}",
        ],
    )
    return "changed, reordered and alone: a row gives the same"


def _taken(case: CellCase, rows: Sequence[int]) -> CellCase:
    state = {name: array[rows] for name, array in case.state.items()}
    mask = None if case.mask is None else case.mask[:, rows]
    noise = {name: array[:, rows] for name, array in case.noise.items()}
    return dataclasses.replace(case, xs=case.xs[:, rows], state=state, mask=mask, noise=noise)


def _taking(rows: Sequence[int], case: CellCase) -> list[str]:
    return [
        "from dataclasses import replace",
        f"state = {{name: array[{list(rows)}] for name, array in case.state.items()}}",
        f"other = replace(other, xs=case.xs[:, {list(rows)}], state=state)",
    ]


def reference(trial: Trial) -> str:
    """The numbers are those of the same step in bare NumPy."""
    case = trial.case()
    cell: Any = case.cell
    shapes, _ = specification(cell)
    clocks = timesteps(shapes)
    own = [name for name in shapes if name not in clocks]
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
            raise Skipped(f"its reference cannot be wrapped ({reason(error)}); multiply by @ in it") from error
        if new is None and trial.reference is None:
            raise Skipped(
                "no reference: write reference(self, p, x, s), the same step in bare NumPy from the paper; it is the "
                "strongest check"
            )
        new = counted(cell, new, state, shapes)
        if not isinstance(new, Mapping) or set(new) != set(state):
            got = list(new) if isinstance(new, Mapping) else type(new).__name__
            raise Failed(f"reference: expected a dict with the states {own}, got {got}")
        for name, value in new.items():
            if not isinstance(value, np.ndarray) or value.shape != state[name].shape:
                got = f"{value.shape} array" if isinstance(value, np.ndarray) else type(value).__name__
                raise Failed(f"reference: expected a NumPy array {state[name].shape} for {name}, got {got}")
        state = dict(new)
        rows.append(state)
    expected = {name: np.stack([row[name] for row in rows]) for name in case.state}
    lines = [*trial.lines(), "got = cell_values(case)"]
    if trial.reference is None:
        lines += [
            "from types import SimpleNamespace as names",
            "state, rows = case.state, []",
            "for x in case.xs:",
            *(f"    {name} = state[{name!r}] + 1" for name in clocks),
            f"    state = case.cell.reference(names(**case.params, **{means!r}), x, names(**state))",
            *(f"    state[{name!r}] = {name}" for name in clocks),
            "    rows.append(state)",
            "expected = {name: np.stack([row[name] for row in rows]) for name in case.state}",
        ]
    else:
        lines += ["expected = ...  # by the reference that was given"]
    values = cell_values(trial.case())
    try:
        compare(values, expected, CLOSE, "against the reference", lines)
    except Failed as found:
        raise Failed(f"{found}{_agreeing(values, expected)}", found.lines) from None
    return f"bare NumPy agrees, {len(case.xs)} steps"


def _agreeing(got: Mapping[str, Array], expected: Mapping[str, Array]) -> str:
    """Which states still agree at the first timestep at which one differs: their lines are not to blame."""
    for t in range(len(next(iter(expected.values())))):
        right = [name for name in expected if np.allclose(got[name][t], expected[name][t], CLOSE, CLOSE)]
        if len(right) < len(expected):
            return f"; it begins at timestep {t}, and not in {', '.join(right)}" if right else ""
    return ""


def compiled(trial: Trial) -> str:
    """Compiled, the cell gives the numbers of unroll."""
    ran: dict[str, str] = {}
    for executor in COMPILED:
        for masked in (False, True):
            done = _same_by(trial, executor, masked=masked)
            ran.setdefault(done.executor, done.reason)
    # as in training: by the fastest, in float32
    default = _same_by(trial, None, 1, ROUNDED, dtype=np.float32 if trial.float32 else np.float64)
    if default.executor == "unroll":
        raise Noted(f"slow: every step runs on the tape, because {default.reason}; it gives what unroll gives")
    if default.executor != COMPILED[0]:
        raise Noted(f"by {default.executor}: {default.reason}; the numbers are those of unroll, to the second order")
    return f"{' and '.join(ran)} give the numbers of unroll, masked too, to the second order"


def _same_by(trial: Trial, executor: str | None, order: int = 2, bound: float = CLOSE, **facts: Any) -> Unrolled:
    """Compare `scan` by `executor` with `unroll`: values and derivatives; what `scan` said."""
    done, got = run_case(trial.case(**facts), executor, order, True, np.array)
    lines = [
        *trial.lines("case", "other", **facts),
        f"got, expected = cell_values(case, {executor!r}, {order}), cell_values(other, order={order})",
    ]
    told = "".join(f", {key}={spelt(value)}" for key, value in facts.items())
    compare(got, cell_values(trial.case(**facts), order=order), bound, f"scan by {done.executor}{told}", lines)
    return done


def masks(trial: Trial) -> str:
    """In a ragged batch the padding changes nothing."""
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
        compare(kept, {"kept": np.stack(last)}, 0.0, f"state {name} behind the last valid step", lines)
    for by in ("unroll", None):  # one step after another, and the fastest that can
        plain = cell_values(trial.case(masked=True), by, 1)
        for value in (0.0, LARGE, -LARGE):
            padded = trial.case(masked=True)
            padded.xs[~case.mask] = value
            lines = [*base, f"other.xs[~case.mask] = {value}"]
            lines += [f"got, expected = cell_values(other, {by!r}, 1), cell_values(case, {by!r}, 1)"]
            compare(cell_values(padded, by, 1), plain, EXACT, f"padding of {value}", lines)
    for b in range(B):
        n = int(lengths[b])
        if n:
            alone = _taken(trial.case(masked=True), [b])
            short = dataclasses.replace(alone, xs=alone.xs[:n], mask=None)
            lines = [*base, *_taking([b], case), f"other = replace(other, xs=other.xs[:{n}], mask=None)"]
            lines += [f"got = {{k: v[:{n}, [{b}]] for k, v in cell_values(case).items() if v.ndim}}"]
            lines += ["expected = cell_values(other)"]
            compare(
                {name: expected[name][:n, [b]] for name in case.state},
                {name: array for name, array in cell_values(short).items() if name in case.state},
                EXACT,
                f"a ragged row of {n} steps, and the same alone",
                lines,
            )
    return f"rows of {', '.join(map(str, lengths))} of {T} steps; padding of any size changes nothing"


def saved(trial: Trial) -> str:
    """Parameters come back from a file as they were."""
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
    compare(loaded, case.params, 0.0, "saved and loaded", [*lines, "got, expected = loaded, case.params"])
    expected = cell_values(case, order=1)
    for told, params, bound in (("loaded", loaded, 0.0), ("not contiguous", odd, EXACT)):
        end = [f"other.params.update({'loaded' if told == 'loaded' else 'odd'})"]
        end += ["got, expected = cell_values(other, order=1, put=lambda a: a), cell_values(case, order=1)"]
        again = dataclasses.replace(trial.case(), params=params)
        got = cell_values(again, order=1, put=lambda array: array)
        compare(got, expected, bound, f"with parameters that were {told}", [*lines, *end])
    return "saved and loaded: the same bits, the same outputs; also for arrays that are not contiguous"


def taps(trial: Trial) -> str:
    """Who listens to the taps changes nothing, and can tell them apart."""
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
    compare(got, expected, 0.0, "while somebody listens", lines)
    T = len(case.xs)
    names = [name for name, _ in heard]
    lines += [f"print([name for name, _ in heard][:{len(names) // T or 1}])"]
    for name, value in heard:
        if not isinstance(value, Tensor):
            raise Failed(f"tap {name!r}: expected a tensor, got {type(value).__name__}", lines)
    for name in dict.fromkeys(names):
        if names.count(name) > T:
            raise Failed(f"tap {name!r} is announced {names.count(name) // T} times in one step; rename one", lines)
        if names.count(name) < T:
            raise Failed(f"tap {name!r} is announced in {names.count(name)} of {T} steps; expected every step", lines)
    return f"{' '.join(dict.fromkeys(names))}: heard without changing a number" if names else "there are none"


def devices(trial: Trial) -> str:
    """The step runs on arrays that are not NumPy's, as on a GPU."""
    places: dict[str, tuple[Any, float]] = {"guard arrays": (guard.MODULE, EXACT)}
    if backend.select("auto").name != "cpu":
        places["CuPy"] = (backend.select("auto").xp, CLOSE)
    expected = cell_values(trial.case(), order=1)
    for name, (xp, bound) in places.items():
        put = "guard.asarray" if xp is guard.MODULE else "tr.select_device('auto').xp.asarray"
        lines = [*trial.lines(), "from tinygrad_rnn import guard"] if xp is guard.MODULE else trial.lines()
        case = trial.case()
        try:
            far = cell_values(case, order=1, put=xp.asarray)
        except Exception as error:
            text = f"on {name}, as on a GPU: {reason_in_step(error)}"
            raise Failed(text, [*lines, f"cell_values(case, order=1, put={put})"]) from error
        for key, value in far.items():
            if not isinstance(value, xp.ndarray):
                raise Failed(f"on {name}: {in_words(key)} came back as {type(value).__name__}", lines)
        lines += [
            f"far = cell_values(case, order=1, put={put})",
            "got, expected = {k: v.get() for k, v in far.items()}, cell_values(case, order=1)",
        ]
        compare({key: value.get() for key, value in far.items()}, expected, bound, f"on {name}", lines)
    return f"{' and '.join(places)} give the numbers of NumPy"


def noise(trial: Trial) -> str:
    """Training noise is the same compiled, and its mean otherwise."""
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
    compare(plain, cell_values(mean, order=1), EXACT, "outside training, against noise at its mean", lines)
    drawn, loud = cell_values(case, order=1), []
    compare(
        cell_values(_taken(trial.case(noisy=True), [1])),
        {name: drawn[name][:, [1]] for name in [*case.state, "outputs"]},
        EXACT,
        "in training, row 1 alone, and as one of three",
        [
            *trial.lines("case", "other", noisy=True),
            *_taking([1], case),
            "other = replace(other, noise={name: array[:, [1]] for name, array in case.noise.items()})",
            "got = cell_values(other); expected = {k: v[:, [1]] for k, v in cell_values(case).items() if v.ndim}",
        ],
    )
    for name in declared:
        other = trial.case(noisy=True)
        other.noise[name][...] = 0.0 if np.any(case.noise[name]) else declared[name].scale
        if any(not same(drawn[key], value) for key, value in cell_values(other).items()):
            loud.append(name)
    if unused := [name for name in declared if name not in loud]:
        raise Failed(f"noise {unused[0]} is never used: no number depends on it", [*trial.lines(noisy=True)])
    ran = [_same_by(trial, executor, noisy=True).executor for executor in COMPILED]
    return f"{' '.join(declared)}: {' and '.join(dict.fromkeys(ran))} give the numbers of unroll in training"
