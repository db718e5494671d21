"""``doctor``: what this machine computes with, how fast, and what would make it faster."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli import blas
from tinygrad_rnn_cli.console import aside, emit, emit_json, note, paint
from tinygrad_rnn_cli.main import CHECK_FAILED
from tinygrad_rnn_cli.options import Command, common, given, load_plugins

GRADCHECK_SECONDS = 2.0
# Kernels of OpenBLAS that leave half of an AVX-512 machine idle; it takes them for processors it does not know.
NARROW_KERNELS = ("haswell", "zen", "sandybridge", "nehalem", "prescott", "core2", "generic")
NARROW_KERNEL = "Haswell"
FASTER = 1.15  # another kernel has to gain this much to be advised
BUSY = 0.5  # processes per core that make a measurement doubtful
FEWER = 1.5  # and another number of threads this much
# What a step of a small, a middle and a large model multiplies: (M, K) x (K, N).
PRODUCTS = ((1, 128, 512), (50, 128, 512), (64, 512, 2048))
# The speed in a process of its own, because OpenBLAS chooses its kernels when it is loaded.
MEASURE = """
from tinygrad_rnn_cli.blas import gflops, openblas
speed = gflops()
print(speed, getattr(openblas(), "kernel", ""))
"""


@click.command("doctor", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@common("plugin")
def doctor(as_json: bool) -> None:
    """Check Python, NumPy and its BLAS, CuPy and CUDA, every plugin, and the gradients.

    Takes a few seconds. Says what to change, and what it would gain. Exit code 3 if a gradient is wrong or a built-in
    cell cannot be used.
    """
    with aside():
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
    facts: dict[str, Any] = {
        "tinygrad_rnn": tr.__version__,
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "platform": platform.platform(),
        },
        "packages": {name: _version(name) for name in ("numpy", "click", "rich", "matplotlib", "safetensors")},
        "blas": _blas(),
        "executor": _executor(third_party),
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
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # before this program adds its own
    speed = blas.gflops()
    loaded = blas.openblas()
    kernel = loaded.kernel if loaded else None
    other = _other_kernel(kernel)
    if other:
        speed = max(speed, blas.gflops())  # what slowed this machine down for a moment must not decide
    return {
        "name": built.get("name"),
        "version": built.get("version"),
        "kernel": kernel,
        "threads": loaded.threads() if loaded else None,
        "cores": cores,
        "load": load,
        "avx512": blas.has_avx512(),
        "gflops": speed,
        "gflops_wide": other["gflops"] if other and _is_narrow(kernel) and not _is_narrow(other["kernel"]) else None,
        "coretype": os.environ.get(blas.CORETYPE),
        "coretype_set_by": blas.coretype_setter(),
        "other": other,
        "products": [_product_threads(product) for product in PRODUCTS],
    }


def _is_narrow(kernel: str | None) -> bool:
    return bool(kernel) and str(kernel).lower() in NARROW_KERNELS


def _other_kernel(kernel: str | None) -> dict[str, Any] | None:
    """Kernel and GFLOP/s of a process with other kernels: OpenBLAS's own choice where OPENBLAS_CORETYPE is set, the
    wide or the narrow ones of an AVX-512 machine elsewhere; None where there is nothing to compare with.
    """
    environ = {**os.environ}
    if environ.pop(blas.CORETYPE, None) is None:
        if not (kernel and blas.has_avx512()):
            return None
        environ[blas.CORETYPE] = blas.WIDE_KERNEL if _is_narrow(kernel) else NARROW_KERNEL
    try:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=30, env=environ, check=True
        )
        speed, _, other = done.stdout.strip().partition(" ")
        return {"kernel": other, "gflops": float(speed)} if kernel and other else None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _product_threads(product: tuple[int, int, int]) -> dict[str, Any]:
    choice = blas.choose_threads([product])
    times = {str(threads): 1e6 * seconds for threads, seconds in choice.measured.get(product, {}).items()}
    return {"product": list(product), "threads": choice.threads, "microseconds": times, "reason": choice.reason}


# -------------------------------------------------------------------------------------------- executor


def _executor(third_party: bool) -> dict[str, Any]:
    """Which executor runs a cell's steps here and why; the version of llvmlite, or why it cannot be used."""
    import numpy as np

    found: dict[str, Any] = {"name": None, "reason": None, "llvmlite": None, "error": None}
    try:
        importlib.import_module("llvmlite.binding")
        found["llvmlite"] = _version("llvmlite")
    except ModuleNotFoundError:
        found["error"] = "llvmlite is not installed"
    except Exception as error:  # a library of another machine or LLVM fails in many ways, and every one is a finding
        found["error"] = f"llvmlite cannot be loaded: {' '.join(str(error).split())[:200]}"
    try:
        entry = tr.load_cell("gru", third_party=third_party)
        model = tr.build_model(tr.ModelConfig(cell="gru", hidden=4, layers=1), 5, entry)
        params = model.init(np.random.default_rng(0), np.float32)
        layer = model.forward(params, np.zeros((2, 1), np.int64)).layers[0]
        found["name"], found["reason"] = layer.executor, layer.reason
    except tr.TinygradRNNError as error:
        found["reason"] = str(error)  # told under the cells
    return found


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
    found, gpu = facts["blas"], facts["gpu"]
    advice += _kernel_advice(found)
    threads = found["threads"]
    if threads is not None and threads < found["cores"] and (threads == 1 or threads * 2 <= found["cores"]):
        advice.append(
            f"BLAS uses {threads} of {found['cores']} cores: unset OPENBLAS_NUM_THREADS and OMP_NUM_THREADS, up "
            f"to {found['cores'] / threads:.0f} times as fast for large models"
        )
    if threads is not None and threads > found["cores"]:
        advice.append(
            f"BLAS uses {threads} threads on {found['cores']} cores: export OPENBLAS_NUM_THREADS={found['cores']}"
        )
    advice += _thread_advice(found, facts["executor"])
    error = facts["executor"]["error"]
    if error:
        advice.append(f"{error}: pip install 'tinygrad_rnn[fast]', and cells run as machine code")
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


def _gain(row: dict[str, Any], now: int | None, other: str = "") -> float:
    """How many times as fast the product is with `other` threads, or with its best number, as with `now`; 1.0 where
    that was not measured."""
    times = row["microseconds"]
    return float(times[str(now)] / times[other or str(row["threads"])]) if str(now) in times else 1.0


def _thread_advice(found: dict[str, Any], executor: dict[str, Any]) -> list[str]:
    """One line for the product that gains most by another number of threads than BLAS has."""
    now = found["threads"]
    row = max(found["products"], key=lambda row: _gain(row, now), default=None)
    if row is None or _gain(row, now) <= FEWER:
        return []
    times, best = row["microseconds"], str(row["threads"])
    worse = [
        f"{_product(other)} {1 / gain:.1f} times as long"
        for other in found["products"]
        if (gain := _gain(other, now, best)) < 1 / FEWER
    ]
    uses = "cells that are not compiled" if executor["name"] == "llvm" else "models of this size"
    busy = f" (measured at a load of {found['load'] or 0:.1f} on {found['cores']} cores: try again when it is idle)"
    return [
        f"export OPENBLAS_NUM_THREADS={best}: the product {_product(row)} takes {times[best]:.0f} µs instead of "
        f"{times[str(now)]:.0f} with {now} threads, {_gain(row, now):.1f} times as fast for {uses}"
        + (f"; but {', '.join(worse)}" if worse else "")
        + (busy if (found["load"] or 0) > BUSY * found["cores"] else "")
    ]


def _product(row: dict[str, Any]) -> str:
    m, k, n = row["product"]
    return blas.product_name((m, k, n))


def _kernel_advice(found: dict[str, Any]) -> list[str]:
    other = found["other"]
    if other is None or other["kernel"] == found["kernel"] or other["gflops"] <= FASTER * found["gflops"]:
        return []
    gain = (
        f"matrix products go from {found['gflops']:.0f} to {other['gflops']:.0f} GFLOP/s, "
        f"{other['gflops'] / found['gflops']:.1f} times as fast"
    )
    if found["coretype_set_by"] == "user":
        return [f"unset {blas.CORETYPE} (it is {found['coretype']}): {gain} with the {other['kernel']} kernel"]
    why = "; OpenBLAS chose its {kernel} kernel although this processor has AVX-512" if found["gflops_wide"] else ""
    return [f"export {blas.CORETYPE}={other['kernel']} (before Python starts): {gain}{why.format_map(found)}"]


def _print(facts: dict[str, Any]) -> None:
    def line(good: bool | None, name: str, text: str) -> None:
        mark = {True: paint("ok", sys.stdout, fg="green"), False: paint("!!", sys.stdout, fg="red"), None: "--"}[good]
        emit(f"{mark}  {name:<12} {text}")

    python, gpu, check = facts["python"], facts["gpu"], facts["gradcheck"]
    emit(f"tinygrad-rnn {facts['tinygrad_rnn']}")
    line(True, "Python", f"{python['version']} ({python['implementation']}) on {python['platform']}")
    there = [f"{name} {version}" for name, version in facts["packages"].items() if version]
    line(True, "packages", ", ".join(there))
    _print_blas(line, facts["blas"])
    executor = facts["executor"]
    if executor["error"]:
        line(None, "executor", f"{executor['name'] or 'none'}; llvm: {executor['error']}")
    else:
        why = f" ({executor['reason']})" if executor["reason"] else ""
        line(True, "executor", f"{executor['name'] or 'none'}{why}; llvmlite {executor['llvmlite']}")
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


def _print_blas(line: Callable[[bool | None, str, str], None], found: dict[str, Any]) -> None:
    kernel = f"kernel {found['kernel']}" if found["kernel"] else "kernel unknown"
    cores = f"{found['cores']} cores"
    threads = f"{found['threads']} thread{'s' * (found['threads'] > 1)} on {cores}" if found["threads"] else cores
    line(True, "BLAS", f"{found['name'] or 'unknown'} {found['version'] or ''}, {kernel}, {threads}")
    if found["coretype"] is not None:
        line(True, "", f"{blas.CORETYPE}={found['coretype']}, set by the {found['coretype_set_by']}")
    other = found["other"]
    own = ", OpenBLAS's own choice" if found["coretype"] is not None else ""
    compared = f"; {other['gflops']:.0f} with the {other['kernel']} kernel{own}" if other else ""
    size = blas.SPEED_SIZE
    line(True, "speed", f"{found['gflops']:.0f} GFLOP/s (float32 product of {size} x {size}){compared}")
    slow = {row["reason"] for row in found["products"] if _gain(row, found["threads"]) > FEWER}
    for reason in dict.fromkeys(row["reason"] for row in found["products"]):
        line(None if reason in slow else True, "threads", reason.removeprefix("BLAS: "))
