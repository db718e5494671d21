"""``doctor``: what this machine computes with, how fast, and what would make it faster."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import emit, emit_json, note, paint
from tinygrad_rnn_cli.main import CHECK_FAILED
from tinygrad_rnn_cli.options import Command, common, given, load_plugins

GRADCHECK_SECONDS = 2.0
SIZE = 1024
# Kernels of OpenBLAS that leave half of an AVX-512 machine idle; it takes them for processors it does not know.
NARROW_KERNELS = ("haswell", "zen", "sandybridge", "nehalem", "prescott", "core2", "generic")
WIDE_KERNEL = "SkylakeX"
# The same measurement in a process of its own, because OpenBLAS chooses its kernel when it is loaded.
MEASURE = """
import time
import numpy as np
a = np.ones(({size}, {size}), np.float32)
a @ a
best = 1e9
for _ in range(5):
    began = time.perf_counter()
    a @ a
    best = min(best, time.perf_counter() - began)
print(2 * {size} ** 3 / best / 1e9)
"""


@click.command("doctor", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@common("plugin")
def doctor(as_json: bool) -> None:
    """Check Python, NumPy and its BLAS, CuPy and CUDA, every plugin, and the gradients.

    Takes a few seconds. Says what to change, and what it would gain. Exit code 3 if a gradient is wrong or a built-in
    cell cannot be used.
    """
    with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints is no part of the product
        load_plugins()
        facts = examine(given().third_party)
    if as_json:
        emit_json(facts)
    else:
        _print(facts)
    if not facts["gradcheck"]["passed"] or any(
        cell["error"] and cell["distribution"] == "tinygrad-rnn" for cell in facts["cells"]
    ):
        click.get_current_context().exit(CHECK_FAILED)


def examine(third_party: bool = True) -> dict[str, Any]:
    """All findings, as JSON values."""
    blas = _blas()
    facts: dict[str, Any] = {
        "tinygrad_rnn": tr.__version__,
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "platform": platform.platform(),
        },
        "packages": {name: _version(name) for name in ("numpy", "click", "rich", "matplotlib", "safetensors")},
        "blas": blas,
        "gpu": _gpu(),
        "cells": [
            {"name": row.name, "distribution": row.distribution, "version": row.version, "error": row.error}
            for row in tr.available_cells(third_party=third_party, check=True)
        ],
        "gradcheck": _gradcheck(third_party),
    }
    facts["advice"] = _advice(facts)
    return facts


def _version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# ------------------------------------------------------------------------------------------------ BLAS


def _blas() -> dict[str, Any]:
    import numpy as np

    try:
        built: Any = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    except (KeyError, TypeError):
        built = {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    speed = _gflops()
    kernel, threads = _openblas()
    return {
        "name": built.get("name"),
        "version": built.get("version"),
        "kernel": kernel,
        "threads": threads,
        "cores": cores,
        "avx512": _has_avx512(),
        "gflops": speed,
        "gflops_wide": _gflops_elsewhere(kernel),
        "coretype": os.environ.get("OPENBLAS_CORETYPE"),
    }


def _gflops() -> float:
    """Best of five float32 products of 1024 x 1024 matrices, in GFLOP/s."""
    import numpy as np

    a = np.ones((SIZE, SIZE), np.float32)
    a @ a
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * SIZE**3 / best / 1e9


def _gflops_elsewhere(kernel: str | None) -> float | None:
    """The same with OpenBLAS's AVX-512 kernel, where it chose another one on a machine that has AVX-512."""
    if not (kernel and kernel.lower() in NARROW_KERNELS and _has_avx512()):
        return None
    try:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE.format(size=SIZE)],
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, "OPENBLAS_CORETYPE": WIDE_KERNEL},
            check=True,
        )
        return float(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _openblas() -> tuple[str | None, int | None]:
    """The kernel and the number of threads of the OpenBLAS that NumPy has loaded; None where it cannot be asked."""
    for path in _loaded_libraries("openblas"):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for prefix in ("scipy_", ""):
            for suffix in ("64_", "_64_", "64", ""):
                core = getattr(library, f"{prefix}openblas_get_corename{suffix}", None)
                threads = getattr(library, f"{prefix}openblas_get_num_threads{suffix}", None)
                if core is not None and threads is not None:
                    core.restype = ctypes.c_char_p
                    return core().decode("ascii", "replace"), int(threads())
    return None, None


def _loaded_libraries(word: str) -> list[str]:
    """Paths of libraries with `word` in their name: loaded ones on Linux, those beside NumPy elsewhere."""
    import numpy as np

    maps = Path("/proc/self/maps")
    if maps.exists():
        words = {line.split(maxsplit=5)[-1].strip() for line in maps.read_text(errors="replace").splitlines()}
        return sorted(path for path in words if path.startswith("/") and word in Path(path).name)
    root = Path(np.__file__).parent
    folders = [root.parent / "numpy.libs", root / ".dylibs"]
    return sorted(str(path) for folder in folders if folder.is_dir() for path in folder.glob(f"*{word}*"))


def _has_avx512() -> bool | None:
    info = Path("/proc/cpuinfo")
    return " avx512f" in info.read_text(errors="replace") if info.exists() else None


# ------------------------------------------------------------------------------------------------- GPU


def _gpu() -> dict[str, Any]:
    found: dict[str, Any] = {"cupy": None, "device": None, "error": None}
    for name in ("cupy-cuda12x", "cupy-cuda13x", "cupy"):
        found["cupy"] = found["cupy"] or (f"{name} {_version(name)}" if _version(name) else None)
    if importlib.util.find_spec("cupy") is None:
        found["error"] = "CuPy is not installed"
        return found
    try:
        device = tr.select_device("cuda")
        runtime = device.xp.cuda.runtime
        facts = runtime.getDeviceProperties(0)
        found["device"] = facts["name"].decode()
        found["cuda"] = int(runtime.runtimeGetVersion())
        found["memory"] = int(facts["totalGlobalMem"])
    except Exception as error:  # a broken driver fails in many ways, and every one is a finding
        found["error"] = " ".join(str(error).split())[:200]
    return found


# ------------------------------------------------------------------------------------------- gradients


def _gradcheck(third_party: bool) -> dict[str, Any]:
    """Every cell that can be used, forward and reverse, first and second order, for two seconds at most."""
    import numpy as np

    began = time.perf_counter()
    checked: list[str] = []
    for row in tr.available_cells(third_party=third_party):
        if row.error is not None or (checked and time.perf_counter() - began > GRADCHECK_SECONDS):
            continue
        try:
            entry = tr.load_cell(row.name, third_party=third_party)
        except tr.TinygradRNNError:
            continue  # told under the cells
        rng = np.random.default_rng(0)
        try:
            model = tr.build_model(tr.ModelConfig(cell=row.name, hidden=3, layers=1), 5, entry)
            params = model.init(rng, np.float64)
            x, y = rng.integers(0, 5, (3, 2)), rng.integers(0, 5, (3, 2))
            names = [name for name, value in params.items() if value.requires_grad]

            def loss(
                *values: Any, model: Any = model, params: Any = params, names: Any = names, x: Any = x, y: Any = y
            ) -> Any:
                own = {**params, **dict(zip(names, values, strict=True))}
                return tr.ops.cross_entropy(model.forward(own, x).logits, y)

            tr.gradcheck(loss, *(params[name].data for name in names), rng=rng)
        except tr.TinygradRNNError as error:
            return {
                "passed": False,
                "cells": checked,
                "error": f"{row.name}: {error}",
                "seconds": time.perf_counter() - began,
            }
        checked.append(row.name)
    return {"passed": True, "cells": checked, "error": None, "seconds": time.perf_counter() - began}


# ---------------------------------------------------------------------------------------------- advice


def _advice(facts: dict[str, Any]) -> list[str]:
    advice = []
    blas, gpu = facts["blas"], facts["gpu"]
    wide = blas["gflops_wide"]
    if wide is not None and wide > 1.15 * blas["gflops"]:
        advice.append(
            f"export OPENBLAS_CORETYPE={WIDE_KERNEL} (before Python starts): matrix products go from "
            f"{blas['gflops']:.0f} to {wide:.0f} GFLOP/s, {wide / blas['gflops']:.1f} times as fast; OpenBLAS "
            f"chose its {blas['kernel']} kernel although this processor has AVX-512"
        )
    threads = blas["threads"]
    if threads is not None and threads < blas["cores"] and (threads == 1 or threads * 2 <= blas["cores"]):
        advice.append(
            f"BLAS uses {threads} of {blas['cores']} cores: unset OPENBLAS_NUM_THREADS and OMP_NUM_THREADS, up "
            f"to {blas['cores'] / threads:.0f} times as fast for large models"
        )
    if threads is not None and threads > blas["cores"]:
        advice.append(
            f"BLAS uses {threads} threads on {blas['cores']} cores: export OPENBLAS_NUM_THREADS={blas['cores']}"
        )
    if facts["gpu"]["cupy"] and gpu["error"]:
        advice.append(f"CuPy is installed but no GPU can be used ({gpu['error']}): check the driver with nvidia-smi")
    elif gpu["error"] and Path("/dev/nvidia0").exists():
        advice.append(
            "this machine has an NVIDIA GPU and no CuPy: pip install 'tinygrad_rnn[cuda12]' (or cuda13), then "
            "--device cuda"
        )
    broken = list(dict.fromkeys(cell["name"] for cell in facts["cells"] if cell["error"]))
    if broken:
        advice.append(f"{', '.join(broken)} cannot be used: repair or uninstall the plugin (the others work)")
    return advice


def _print(facts: dict[str, Any]) -> None:
    def line(good: bool | None, name: str, text: str) -> None:
        mark = {True: paint("ok", sys.stdout, fg="green"), False: paint("!!", sys.stdout, fg="red"), None: "--"}[good]
        emit(f"{mark}  {name:<12} {text}")

    python, blas, gpu, check = facts["python"], facts["blas"], facts["gpu"], facts["gradcheck"]
    emit(f"tinygrad-rnn {facts['tinygrad_rnn']}")
    line(True, "Python", f"{python['version']} ({python['implementation']}) on {python['platform']}")
    there = [f"{name} {version}" for name, version in facts["packages"].items() if version]
    line(True, "packages", ", ".join(there))
    kernel = f", kernel {blas['kernel']}" if blas["kernel"] else ", kernel unknown"
    threads = f", {blas['threads']} threads on {blas['cores']} cores" if blas["threads"] else f", {blas['cores']} cores"
    line(True, "BLAS", f"{blas['name'] or 'unknown'} {blas['version'] or ''}{kernel}{threads}")
    wide = f"; {blas['gflops_wide']:.0f} with the {WIDE_KERNEL} kernel" if blas["gflops_wide"] else ""
    line(True, "speed", f"{blas['gflops']:.0f} GFLOP/s (float32 product of {SIZE} x {SIZE}){wide}")
    if gpu["device"]:
        line(True, "GPU", f"{gpu['device']}, {gpu['cupy']}, CUDA {gpu['cuda']}, {gpu['memory'] / 2**30:.0f} GiB")
    else:
        line(None, "GPU", f"none used: {gpu['error']}")
    for cell in facts["cells"]:
        if cell["error"]:
            line(False, "cell", paint(f"{cell['name']}: {cell['error']}", sys.stdout, fg="red"))
    good = [cell["name"] for cell in facts["cells"] if not cell["error"]]
    line(True, "cells", ", ".join(good))
    if check["passed"]:
        line(True, "gradients", f"right to second order: {', '.join(check['cells'])} ({check['seconds']:.1f} s)")
    else:
        line(False, "gradients", paint(str(check["error"]), sys.stdout, fg="red"))
    emit()
    for text in facts["advice"]:
        emit(f"{paint('->', sys.stdout, fg='yellow')} {text}")
    if not facts["advice"]:
        note("nothing to change")
