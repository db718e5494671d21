"""The backends that every engine test can run on. A test that takes `place` runs on each of them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def _load_guard() -> Any:
    """tests/guard.py, whatever started pytest: with --import-mode=importlib the folder is not on the path."""
    if "guard" not in sys.modules:
        spec = importlib.util.spec_from_file_location("guard", Path(__file__).parent.parent / "guard.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["guard"] = module
        spec.loader.exec_module(module)
    return sys.modules["guard"]


@dataclass(frozen=True)
class Place:
    """Where arrays are: `put` brings one there from NumPy, `get` back."""

    name: str
    put: Callable[[Any], Any]
    get: Callable[[Any], np.ndarray]


@pytest.fixture(scope="session")
def guard() -> Any:
    return _load_guard()


@pytest.fixture(scope="session", params=["numpy", "guard", pytest.param("cupy", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "numpy":
        return Place("numpy", np.asarray, np.asarray)
    if request.param == "guard":
        return Place("guard", _load_guard().asarray, lambda array: array.get())
    cupy = pytest.importorskip("cupy", reason="needs CuPy")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"needs a CUDA device: {error}")
    if count == 0:
        pytest.skip("needs a CUDA device")
    return Place("cupy", cupy.asarray, lambda array: array.get())
