"""Numbers to feed a cell (`cell_case`), and everything that a run of them gives (`cell_values`).

All numbers of the checks come from the first and all results from the second, so that a reproduction is a handful of
lines that anybody can run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinygrad_rnn import ops
from tinygrad_rnn.backend import Array
from tinygrad_rnn.cell import Cell, draw_noise, init_cell, specification, timesteps
from tinygrad_rnn.registry import load_cell
from tinygrad_rnn.sequence import Unrolled, scan, unroll
from tinygrad_rnn.tensor import Tensor, grad

RESULTS = ("x", "outputs", "loss", "slope")  # what `cell_values` names beside states and parameters


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
    The state is one that the cell reaches by itself, drawn in a little: states may have to be positive, say. A timestep
    is 0 in row 0, where every clock strikes, and any of 0 to 7 in the others. With `masked`, row 0 runs to the end, the
    last row not at all, rows between them for a part.
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
    # By a cell that is thrown away, on copies: what a step leaves behind or writes into is seen by nobody. On the tape:
    # there a step is told which function loses the gradient.
    reached = unroll(cls(I, H, options), tensors(params), Tensor(rng.normal(size=(3, B, I)), requires_grad=True)).state
    state = {name: 0.9 * value.data + rng.uniform(0.02, 0.05, value.data.shape) for name, value in reached.items()}
    for name in timesteps(specification(made)[0]):
        state[name] = np.minimum(np.arange(B)[:, None], 1.0) * rng.integers(0, 8, (B, 1))
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


def tensors(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """Constants with the numbers of `arrays`, in memory of their own."""
    return {name: Tensor(array.copy()) for name, array in arrays.items()}


def cell_values(
    case: CellCase, executor: str | None = "unroll", order: int = 0, *, curved: bool = True, put: Any = None
) -> dict[str, Array]:
    """What a run of `case` gives, by name; the arrays of `case` are copied first.

    A state's name: its value at every timestep, (T, B, *shape); ``outputs`` (T, B, H); ``loss``, a random function of
    them, of second degree or with ``curved=False`` of first; not of a timestep, which is a constant. With ``order=1``
    also ``d NAME``, the gradient of the loss for the input x, every start state and every parameter, and ``slope``, a
    random sum of these; with ``order=2`` ``dd NAME``, the gradient of the slope. `executor` is that of `scan`. `put`
    brings arrays elsewhere.
    """
    return run_case(case, executor, order, curved, put or np.array)[1]


def run_case(
    case: CellCase, executor: str | None, order: int, curved: bool, put: Any
) -> tuple[Unrolled, dict[str, Array]]:
    """What `scan` returned, and the values of `cell_values`."""
    trained = {name for name, spec in specification(case.cell)[1].items() if spec.role != "buffer"}
    params = {name: Tensor(put(array), requires_grad=name in trained) for name, array in case.params.items()}
    xs = Tensor(put(case.xs), requires_grad=True)
    clocks = timesteps(specification(case.cell)[0])
    state = {name: Tensor(put(array), requires_grad=name not in clocks) for name, array in case.state.items()}
    options: dict[str, Any] = {"mask": None if case.mask is None else put(case.mask)}
    if case.noise:
        options["noise"] = {name: put(array) for name, array in case.noise.items()}
    done = scan(case.cell, params, xs, state, executor=executor, **options)
    values = {name: ops.stack(list(row)).data for name, row in done.states.items()}
    values["outputs"] = done.outputs.data
    rng = np.random.default_rng(1)

    def weighted(value: Any) -> Any:
        return ops.sum(value * put(rng.normal(size=value.shape).astype(value.dtype)))

    carried = [name for name in state if name not in clocks]
    parts = [done.outputs, *(done.state[name] for name in carried)]
    parts += [done.states[name][len(xs) // 2] for name in carried]
    loss = sum((weighted(part * part if curved else part) for part in parts), start=0.0 * ops.sum(done.outputs))
    values["loss"] = loss.data
    leaves = {
        "x": xs,
        **{name: state[name] for name in carried},
        **{name: value for name, value in params.items() if name in trained},
    }
    if order and loss.requires_grad:
        first = dict(
            zip(leaves, grad(loss, list(leaves.values()), create_graph=order > 1, unused="zeros"), strict=True)
        )
        values.update({f"d {name}": value.data for name, value in first.items()})
        slope: Any = sum((weighted(value) for value in first.values()), start=0.0 * weighted(loss))
        values["slope"] = slope.data
        if order > 1 and slope.requires_grad:
            second = grad(slope, list(leaves.values()), unused="zeros")
            values.update({f"dd {name}": value.data for name, value in zip(leaves, second, strict=True)})
    return done, values
