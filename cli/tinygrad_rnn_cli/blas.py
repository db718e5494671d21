"""NumPy's BLAS: which kernels OpenBLAS takes (decided before NumPy is imported), and how many threads (measured).

Importing this module imports neither NumPy nor ctypes: the entry point of the program calls `prepare` on every start.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ctypes

CORETYPE = "OPENBLAS_CORETYPE"
WIDE_KERNEL = "SkylakeX"  # OpenBLAS's kernels for AVX-512; a build without them ignores the name
AVX512 = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})  # what these kernels are compiled for
CPUINFO = "/proc/cpuinfo"

THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
WORTH = 1.1  # more threads have to be faster by this much: what they gain is noise otherwise, and they cost CPU time
LARGEST = 2e7  # a product of more floating-point operations is measured on a part of it, some 0.2 ms
ROUNDS = 5
ROUND_SECONDS = 3e-4
PATIENCE = 0.02  # seconds for one product; on a busy machine a product may wait for its threads for some of these
SPEED_SIZE = 1024

Product = tuple[int, int, int]

_prepared: str | None = None


# ------------------------------------------------------------------------------------ before NumPy is imported


def prepare(environ: MutableMapping[str, str] = os.environ) -> str | None:
    """Set OPENBLAS_CORETYPE where `coretype` says so, and return what it was set to.

    Does nothing once NumPy is there: OpenBLAS reads the variable when it is loaded.
    """
    global _prepared
    if "numpy" in sys.modules:
        return None
    chosen = coretype(_cpuinfo(), environ)
    if chosen is not None:
        environ[CORETYPE] = _prepared = chosen
    return chosen


def coretype(cpuinfo: str, environ: Mapping[str, str]) -> str | None:
    """The kernels to ask OpenBLAS for, given the text of /proc/cpuinfo; None to leave the choice to OpenBLAS.

    OpenBLAS goes by vendor and family. Its table looks at the flags of AMD's family 25 and of Intel's processors; every
    other family of AMD and Hygon, which includes newer ones and those that a hypervisor shows as older ones, either
    gets the kernels for AVX2 unseen or depends on how new OpenBLAS is.
    """
    if CORETYPE in environ:
        return None
    first = dict(_fields(cpuinfo.partition("\n\n")[0]))
    if first.get("vendor_id") not in ("AuthenticAMD", "HygonGenuine"):
        return None
    if first.get("vendor_id") == "AuthenticAMD" and first.get("cpu family") == "25":
        return None
    return WIDE_KERNEL if set(first.get("flags", "").split()) >= AVX512 else None


def _fields(block: str) -> list[tuple[str, str]]:
    pairs = (line.partition(":") for line in block.splitlines())
    return [(name.strip(), value.strip()) for name, _, value in pairs]


def _cpuinfo() -> str:
    """The first processor's part of /proc/cpuinfo ('' where there is none): all of it takes long on large machines."""
    try:
        with open(CPUINFO, "rb", buffering=0) as file:
            return file.read(8192).decode("ascii", "replace")
    except OSError:
        return ""


def has_avx512() -> bool | None:
    """Whether this processor has the AVX-512 instructions of OpenBLAS's widest kernels; None if it cannot be told."""
    fields = dict(_fields(_cpuinfo().partition("\n\n")[0]))
    return set(fields["flags"].split()) >= AVX512 if "flags" in fields else None


def coretype_setter() -> str | None:
    """Who set OPENBLAS_CORETYPE: "program" (`prepare`), "user", or None where it is not set."""
    if CORETYPE not in os.environ:
        return None
    return "program" if os.environ[CORETYPE] == _prepared else "user"


# --------------------------------------------------------------------------------------- the loaded library


class OpenBLAS(NamedTuple):
    """The OpenBLAS that NumPy has loaded: the name of its kernels, and its number of threads to read and to set."""

    kernel: str
    threads: Callable[[], int]
    set_threads: Callable[[int], None]


def openblas() -> OpenBLAS | None:
    """The OpenBLAS that NumPy has loaded; None where NumPy has another BLAS, or it cannot be asked."""
    import ctypes

    for path in _loaded_libraries("openblas"):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for prefix in ("scipy_", ""):  # NumPy's wheels rename the functions
            for suffix in ("64_", "_64_", "64", ""):
                found = _functions(library, f"{prefix}openblas_{{}}{suffix}")
                if found is not None:
                    return found
    return None


def _functions(library: ctypes.CDLL, pattern: str) -> OpenBLAS | None:
    import ctypes

    names = ("get_corename", "get_num_threads", "set_num_threads")
    core, threads, set_threads = (getattr(library, pattern.format(name), None) for name in names)
    if core is None or threads is None or set_threads is None:
        return None
    core.restype, threads.restype, set_threads.restype = ctypes.c_char_p, ctypes.c_int, None
    set_threads.argtypes = [ctypes.c_int]
    return OpenBLAS(core().decode("ascii", "replace"), threads, set_threads)


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


def gflops() -> float:
    """Best of ten float32 products of 1024 x 1024 matrices, in GFLOP/s."""
    import numpy as np

    a = np.ones((SPEED_SIZE, SPEED_SIZE), np.float32)
    a @ a
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * SPEED_SIZE**3 / best / 1e9


# ------------------------------------------------------------------------------------------- number of threads


@dataclass(frozen=True)
class Choice:
    """How many threads BLAS should use: `threads` (None: leave them as they are), and why, in one line.

    `measured` has the seconds of one product (M, K, N) by number of threads; it is empty where nothing was to choose.
    """

    threads: int | None
    reason: str
    measured: Mapping[Product, Mapping[int, float]] = field(default_factory=dict)


def choose_threads(
    products: Sequence[Product], dtype: str = "float32", environ: Mapping[str, str] = os.environ
) -> Choice:
    """Measure, for some milliseconds, with how many threads NumPy's OpenBLAS is fastest for `products`.

    `products` are sizes (M, K, N), all at least 1, of the products (M, K) x (K, N) of one training step; one that is
    given several times weighs as much more. Fewer threads win where more of them gain less than a tenth. Changes
    nothing: give the answer to `set_threads`. Where the user said how many (OPENBLAS_NUM_THREADS, OMP_NUM_THREADS),
    where there is one core, or another BLAS, nothing is measured and `threads` is None.
    """
    for name in THREAD_VARIABLES:
        if environ.get(name, "").strip():
            return Choice(None, f"BLAS: threads as {name}={environ[name]} says")
    blas = openblas()
    if blas is None:
        return Choice(None, "BLAS: threads left as they are (NumPy has no OpenBLAS that could be asked)")
    most = blas.threads()
    if most < 2 or not products:
        return Choice(None, f"BLAS: {_threads(most)}, all there are" if most < 2 else f"BLAS: {_threads(most)}")
    counts = Counter(products)
    candidates = _candidates(most)
    try:
        measured = {product: _measure(blas, product, candidates, dtype) for product in counts}
    finally:
        blas.set_threads(most)
    total = {n: sum(count * measured[product][n] for product, count in counts.items()) for n in candidates}
    chosen = next(n for n in candidates if total[n] <= WORTH * min(total.values()))
    return Choice(chosen, _why(chosen, most, counts, measured), measured)


def set_threads(threads: int | None) -> None:
    """Let NumPy's OpenBLAS use so many threads from now on; None, or another BLAS: nothing happens."""
    blas = openblas() if threads is not None else None
    if blas is not None and threads is not None:
        blas.set_threads(threads)


def _candidates(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    return sorted({most, *(1 << k for k in range(most.bit_length()))} - {0})


def _measure(blas: OpenBLAS, product: Product, candidates: Sequence[int], dtype: str) -> dict[int, float]:
    """Seconds of a product by number of threads: the best of some rounds, in turns, so that a passing load hits all."""
    import numpy as np

    (m, k, n), part = _part(product)
    a, b, out = np.ones((m, k), dtype), np.ones((k, n), dtype), np.empty((m, n), dtype)
    best = dict.fromkeys(candidates, float("inf"))
    deadline = time.perf_counter() + PATIENCE
    for turn in range(ROUNDS):
        if turn >= 2 and time.perf_counter() > deadline:
            break
        for threads in candidates:
            blas.set_threads(threads)
            np.matmul(a, b, out=out)  # wakes the threads
            until = time.perf_counter() + ROUND_SECONDS
            began = 0.0
            while began < until:
                began = time.perf_counter()
                np.matmul(a, b, out=out)
                best[threads] = min(best[threads], time.perf_counter() - began)
    return {threads: seconds * part for threads, seconds in best.items()}


def _part(product: Product) -> tuple[Product, float]:
    """A product small enough to measure, cut along its longest side, and how many times more work the whole one is."""
    work = 2.0 * product[0] * product[1] * product[2]
    if work <= LARGEST:
        return product, 1.0
    sides = list(product)
    longest = sides.index(max(sides))
    whole = sides[longest]
    sides[longest] = max(1, int(whole * LARGEST / work))
    return (sides[0], sides[1], sides[2]), whole / sides[longest]


def _why(chosen: int, most: int, counts: Counter[Product], measured: Mapping[Product, Mapping[int, float]]) -> str:
    """One line: the choice, and the product that had most to do with it."""
    other = most if chosen != most else 1

    def difference(product: Product) -> float:
        return counts[product] * abs(measured[product][other] - measured[product][chosen])

    product = max(counts, key=difference)
    times = measured[product]
    return (
        f"BLAS: {_threads(chosen)}: {_time(times[chosen])} against {_time(times[other])} with {other} "
        f"for {product_name(product)}"
    )


def product_name(product: Product) -> str:
    """(1,128)x(128,512)"""
    m, k, n = product
    return f"({m},{k})x({k},{n})"


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _time(seconds: float) -> str:
    micros = seconds * 1e6
    return f"{micros:.1f} µs" if micros < 10 else f"{micros:.0f} µs" if micros < 1e4 else f"{micros / 1e3:.0f} ms"


__all__ = [
    "CORETYPE",
    "SPEED_SIZE",
    "WIDE_KERNEL",
    "Choice",
    "OpenBLAS",
    "choose_threads",
    "coretype",
    "coretype_setter",
    "gflops",
    "has_avx512",
    "openblas",
    "prepare",
    "product_name",
    "set_threads",
]
