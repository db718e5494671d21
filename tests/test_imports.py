"""Importing the library is cheap: the heavy and the optional packages load only when used."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from pathlib import Path

import pytest

import tinygrad_rnn

OPTIONAL = {"cupy", "llvmlite", "matplotlib", "click", "rich"}


def loaded_by(module: str, cwd: Path) -> set[str]:
    """Top-level names that a fresh interpreter has newly loaded after `import module`."""
    program = f"""
import json, sys
before = set(sys.modules)
import {module}
assert {module}.__file__, "a namespace package: __init__.py is missing"
print(json.dumps(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("tinygrad_rnn", OPTIONAL | {"numpy"}),
        ("tinygrad_rnn.config", OPTIONAL | {"numpy"}),
        ("tinygrad_rnn.engine", OPTIONAL),
    ],
)
def test_import_loads_nothing_heavy(module: str, unwanted: set[str], tmp_path: Path) -> None:
    loaded = loaded_by(module, tmp_path)
    assert "tinygrad_rnn" in loaded
    assert not loaded & unwanted


def test_the_probe_sees_what_an_import_loads(tmp_path: Path) -> None:
    assert "numpy" in loaded_by("safetensors.numpy", tmp_path)


def test_names_may_be_used_first_inside_no_grad(tmp_path: Path) -> None:
    """They are loaded when they are first used, and what a module makes of itself then must not depend on the place."""
    program = "import tinygrad_rnn as tr\nwith tr.no_grad():\n    for name in dir(tr): getattr(tr, name)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_star_brings_the_public_names_alone() -> None:
    names: dict[str, object] = {}
    exec("from tinygrad_rnn import *", names)
    names.pop("__builtins__")
    assert set(names) == set(tinygrad_rnn.__dir__()) - {"__version__"}
    assert names["Tensor"] is tinygrad_rnn.Tensor and names["ops"] is tinygrad_rnn.ops
    assert not set(names) & set(dir(builtins))
