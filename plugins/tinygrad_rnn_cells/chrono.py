"""Gate biases for memories of up to T steps: one option, the same in every cell that has such gates."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from tinygrad_rnn import Param

HELP = "memories of up to this many steps: {keeps} starts at log U(1, T - 1){rest} (Tallec & Ollivier 2018); 0: off"
Array = np.ndarray[Any, Any]


def negative(rng: np.random.Generator, shape: tuple[int, ...], arrays: Mapping[str, Array], *, of: str) -> Array:
    """The negative of what was drawn for the parameter `of`."""
    return -arrays[of]


def chrono(H: int, T: float, keeps: str, writes: str | None = None) -> dict[str, Param]:
    """The bias `keeps` of a gate that keeps, and its exact negative for a gate that writes. Nothing for T = 0."""
    if not T:
        return {}
    specs = {keeps: Param((H,), f"chrono:{T!r}", "bias")}
    return specs | ({writes: Param((H,), functools.partial(negative, of=keeps), "bias")} if writes else {})
