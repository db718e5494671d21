"""What MUT1 and MUT2 do with their bare x when it has not H numbers: three public conventions, one option."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tinygrad_rnn import Cell, InputError, Param, buffer, input_matrix

CITATION = (
    "R. Jozefowicz, W. Zaremba and I. Sutskever, An empirical exploration of recurrent network architectures, ICML 2015"
)
INITIAL = "Weights start uniform in +-1/sqrt(H), biases at 0: z = 1 overwrites, so no bias means remember."
DEVIATIONS = f"""\
The paper prints x without a matrix, which needs I = H. input_map says what stands in its place:
identity  x itself, paper-exact, only for I = H (the default there)
fixed     x P, P random signs / sqrt(I), saved and never trained (Keras 0.x)
learned   x P, P trained like any matrix (RecurrentLayers.jl, torchrecurrent; the default for I != H)
{INITIAL}"""


@dataclass(frozen=True)
class MUTOptions(Cell.Options):
    """Options of MUT1 and MUT2."""

    input_map: Literal["auto", "identity", "fixed", "learned"] = field(
        default="auto", metadata={"help": "what stands for the bare x: identity needs I = H; auto: identity if it can"}
    )
    recurrent_init: str = field(default="uniform", metadata={"help": "initialiser of every W_h*"})


def chosen_map(cell: Cell) -> str:
    """The input map of `cell`, with auto decided."""
    if cell.options.input_map != "auto":
        return str(cell.options.input_map)
    return "identity" if cell.I == cell.H else "learned"


def check_map(cell: Cell) -> None:
    """Raise InputError when the paper's bare x does not fit."""
    if chosen_map(cell) == "identity" and cell.I != cell.H:
        raise InputError(
            f"cell {cell.name}: input_map=identity adds x (I={cell.I} numbers) to H={cell.H} units, so it "
            f"needs I = H; use input_map=learned or fixed, or an embedding of {cell.H}"
        )


def map_params(cell: Cell) -> dict[str, Param]:
    """The matrix P, where the map has one."""
    kind = chosen_map(cell)
    if kind == "identity":
        return {}
    return {"P": input_matrix(cell.I, cell.H) if kind == "learned" else buffer((cell.I, cell.H), "signs")}


def mapped(cell: Cell, p: Any, x: Any) -> Any:
    """x, or x P."""
    return x if chosen_map(cell) == "identity" else x @ p.P
