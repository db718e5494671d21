"""The backends that every engine test can run on. A test that takes `place` runs on each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import guard as guard_arrays


@dataclass(frozen=True)
class Place:
    """Where arrays are: `put` brings one there from NumPy, `get` back."""

    name: str
    put: Callable[[Any], Any]
    get: Callable[[Any], np.ndarray]


@pytest.fixture(scope="session")
def guard() -> Any:
    return guard_arrays


@pytest.fixture(scope="session", params=["numpy", "guard", pytest.param("cupy", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "numpy":
        return Place("numpy", np.asarray, np.asarray)
    if request.param == "guard":
        return Place("guard", guard_arrays.asarray, lambda array: array.get())
    cupy = pytest.importorskip("cupy", reason="needs CuPy")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"needs a CUDA device: {error}")
    if count == 0:
        pytest.skip("needs a CUDA device")
    return Place("cupy", cupy.asarray, lambda array: array.get())
