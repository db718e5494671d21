"""The executors that every test of the compiler runs on, and the modules that its tests share."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tinygrad_rnn import guard as guard_arrays

EXECUTORS = ("numpy", "llvm")


def load(name: str) -> Any:
    """A module of this folder by its name: with --import-mode=importlib the folder is not on sys.path."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


for module in ("compare", "random_cells"):
    load(module)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Machine code is kept in a folder of this run: nothing is left behind, nothing of an earlier run is believed."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYGRAD_RNN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> str:
    """Each compiled executor in turn."""
    if request.param == "llvm" and importlib.util.find_spec("llvmlite") is None:
        pytest.skip("needs llvmlite, of the extra fast")
    return str(request.param)


@pytest.fixture(scope="session")
def guard() -> Any:
    """Arrays that behave as those of another device."""
    return guard_arrays
