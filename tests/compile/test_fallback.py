"""Without llvmlite, or with one that does not work, the NumPy executor goes on; and says so once."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, sys, warnings
BREAK
import numpy as np
from tinygrad_rnn import Tensor, grad, load_cell, ops, scan, specification, unroll

cell = load_cell("lstm").cls(3, 4)
rng = np.random.default_rng(0)
params = {k: Tensor(rng.normal(size=v.shape), requires_grad=True) for k, v in specification(cell)[1].items()}
told = []
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    for T in (3, 5, 5):
        xs = rng.normal(size=(T, 2, 3))
        done, slow = scan(cell, params, xs), unroll(cell, params, xs)
        error = max(
            float(np.max(np.abs(a.data - b.data)))
            for a, b in zip(*(grad(ops.sum(d.outputs), list(params.values())) for d in (done, slow)))
        )
        told.append([done.executor, done.reason, error])
print(json.dumps([told, [str(w.message) for w in heard]]))
"""

BREAKS = {
    "missing": "sys.modules['llvmlite'] = sys.modules['llvmlite.binding'] = None",
    "too old": "import llvmlite; llvmlite.__version__ = '0.1.0'; llvmlite.version_info = (0, 1, 0)\n"
    "import llvmlite.binding as b; [delattr(b, name) for name in dir(b) if not name.startswith('_')]",
    "failing to compile": """
import llvmlite.binding as b
def broken(*args, **options):
    raise RuntimeError("LLVM ERROR: no such target")
for name in ("parse_assembly", "create_mcjit_compiler", "create_lljit_compiler"):
    if hasattr(b, name):
        setattr(b, name, broken)
""",
}


def run(text: str, cache: Path) -> tuple[list[Any], list[str]]:
    """What the program told, in a process of its own with an empty cache."""
    env = {**os.environ, "TINYGRAD_RNN_CACHE": str(cache)}
    program = PROGRAM.replace("BREAK", text)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    told, warned = json.loads(done.stdout)
    return told, warned


@pytest.mark.parametrize("how", list(BREAKS))
def test_numpy_goes_on(how: str, tmp_path: Path) -> None:
    if how != "missing" and importlib.util.find_spec("llvmlite") is None:
        pytest.skip("needs llvmlite, of the extra fast")
    told, warned = run(BREAKS[how], tmp_path)
    assert [executor for executor, _, _ in told] == ["numpy"] * 3, told
    assert all(error < 1e-12 for _, _, error in told)
    assert all(reason for _, reason, _ in told)
    assert len(warned) == 1, "it is worth a warning, and one is enough"
    assert "\n" not in warned[0]


def test_a_run_with_llvm_warns_of_nothing(tmp_path: Path) -> None:
    if importlib.util.find_spec("llvmlite") is None:
        pytest.skip("needs llvmlite, of the extra fast")
    for _ in range(2):  # once compiled, once from the cache
        told, warned = run("", tmp_path)
        assert [executor for executor, _, _ in told] == ["llvm"] * 3, told
        assert all(error < 1e-12 for _, _, error in told)
        assert not warned
