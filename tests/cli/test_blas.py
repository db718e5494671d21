"""What the program tells OpenBLAS before NumPy is imported, and the number of threads it measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn_cli import blas

FULL = "fpu sse2 avx avx2 fma avx512f avx512dq avx512ifma avx512cd avx512bw avx512vl avx512_bf16"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\n\nprocessor\t: 1\n"


def cpuinfo(vendor: str, family: int, flags: str = FULL, processors: int = 2) -> str:
    """The text of /proc/cpuinfo, as Linux writes it on x86-64."""
    return "".join(
        f"processor\t: {k}\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 17\nmodel name\t: a: b\n"
        f"fpu\t\t: yes\nflags\t\t: {flags}\nbugs\t\t: spectre_v1\npower management:\n\n"
        for k in range(processors)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (cpuinfo("AuthenticAMD", 26), "SkylakeX"),  # Zen 5: newer than the table of many an OpenBLAS
        (cpuinfo("AuthenticAMD", 23), "SkylakeX"),  # shown as Zen 2 by a hypervisor, with what Zen 2 never had
        (cpuinfo("HygonGenuine", 24), "SkylakeX"),  # OpenBLAS does not look at its flags
        (cpuinfo("AuthenticAMD", 25), None),  # Zen 4: OpenBLAS looks at its flags
        (cpuinfo("AuthenticAMD", 26, FULL.replace("avx512vl", "")), None),
        (cpuinfo("AuthenticAMD", 26, FULL.replace("avx512f", "avx512fp16")), None),  # whole names, not parts
        (cpuinfo("AuthenticAMD", 23, "fpu sse2 avx avx2"), None),
        (cpuinfo("GenuineIntel", 6), None),
        (cpuinfo("GenuineIntel", 19), None),
        (ARM, None),
        ("", None),
        ("vendor_id\t: AuthenticAMD", None),  # cut short
    ],
)
def test_the_kernels_follow_the_processor(text: str, expected: str | None) -> None:
    assert blas.coretype(text, {}) == expected


@pytest.mark.parametrize("theirs", ["Haswell", "SkylakeX", ""])
def test_the_users_kernels_stay(theirs: str) -> None:
    assert blas.coretype(cpuinfo("AuthenticAMD", 26), {"OPENBLAS_CORETYPE": theirs}) is None


def program(tmp_path: Path, text: str, **env: str) -> dict[str, Any]:
    """`doctor --json`, run as a program of its own on a machine with this /proc/cpuinfo; what it says about BLAS."""
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    code = f"""
import sys
from tinygrad_rnn_cli import blas, main
assert "numpy" not in sys.modules
blas.CPUINFO = {str(file)!r}
sys.argv = ["tinygrad-rnn", "doctor", "--json", "--no-plugins"]
main.main()
"""
    environ = {name: value for name, value in os.environ.items() if name != blas.CORETYPE}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environ | env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)["blas"]
    return facts


def openblas_has(kernel: str) -> bool:
    """Whether the OpenBLAS of this NumPy can be told to take these kernels here."""
    code = "from tinygrad_rnn_cli.blas import openblas; print(getattr(openblas(), 'kernel', ''))"
    environ = {**os.environ, "OPENBLAS_CORETYPE": kernel}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environ)
    return done.stdout.strip() == kernel


def test_a_processor_openblas_does_not_know_gets_the_wide_kernels(tmp_path: Path) -> None:
    if not (blas.has_avx512() and openblas_has("SkylakeX")):
        pytest.skip("needs a processor with AVX-512 and NumPy with OpenBLAS")
    found = program(tmp_path, cpuinfo("AuthenticAMD", 26))
    assert (found["coretype"], found["coretype_set_by"]) == ("SkylakeX", "program")
    assert found["kernel"] == "SkylakeX"  # which shows that it was set before NumPy loaded its OpenBLAS


def test_a_processor_openblas_knows_is_left_alone(tmp_path: Path) -> None:
    for text in (cpuinfo("AuthenticAMD", 25), ARM):
        found = program(tmp_path, text)
        assert (found["coretype"], found["coretype_set_by"]) == (None, None)


def test_the_users_setting_reaches_openblas(tmp_path: Path) -> None:
    found = program(tmp_path, cpuinfo("AuthenticAMD", 26), OPENBLAS_CORETYPE="Haswell")
    assert (found["coretype"], found["coretype_set_by"]) == ("Haswell", "user")
    if openblas_has("Haswell"):
        assert found["kernel"] == "Haswell"
        assert found["other"]["gflops"] > 0  # what OpenBLAS would have chosen, Haswell or not


def test_nothing_is_set_once_numpy_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    environ: dict[str, str] = {}
    monkeypatch.setattr(blas, "_cpuinfo", lambda: cpuinfo("AuthenticAMD", 26))
    assert "numpy" in sys.modules and blas.prepare(environ) is None and environ == {}


def test_help_reads_no_more_than_it_must(tmp_path: Path) -> None:
    code = """
import sys
from tinygrad_rnn_cli import main
sys.argv = ["tinygrad-rnn", "--help"]
try:
    main.main()
finally:
    print(sorted({"numpy", "ctypes"} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("Usage: ") and done.stderr.strip() == "[]"


# ------------------------------------------------------------------------------------------------- threads


class Clock:
    """An OpenBLAS and a clock that know how long each product takes with each number of threads."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, most: int, seconds: dict[tuple[int, int, int], dict[int, float]]
    ):
        self.now, self.threads, self.seconds = 0.0, most, seconds
        loaded = blas.OpenBLAS("Test", lambda: self.threads, self.set)
        monkeypatch.setattr(blas, "openblas", lambda: loaded)
        monkeypatch.setattr(blas.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(np, "matmul", self.multiply)

    def set(self, threads: int) -> None:
        self.threads = threads

    def multiply(self, a: Any, b: Any, out: Any) -> None:
        self.now += self.seconds[(*a.shape, b.shape[1])][self.threads]


SMALL, LARGE = (1, 128, 512), (32, 128, 512)


def test_threads_that_slow_a_small_product_down_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 4, {SMALL: {1: 12e-6, 2: 20e-6, 4: 31e-6}})
    choice = blas.choose_threads([SMALL], environ={})
    assert choice.threads == 1
    assert choice.reason == "BLAS: 1 thread: 12 µs against 31 µs with 4 for (1,128)x(128,512)"
    assert choice.measured[SMALL] == pytest.approx({1: 12e-6, 2: 20e-6, 4: 31e-6})
    assert clock.threads == 4  # as it was
    blas.set_threads(choice.threads)
    assert clock.threads == 1


def test_products_weigh_as_often_as_they_occur(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {SMALL: {1: 10e-6, 2: 20e-6}, LARGE: {1: 200e-6, 2: 100e-6}}
    Clock(monkeypatch, 2, times)
    assert blas.choose_threads([SMALL, LARGE], environ={}).threads == 2
    assert blas.choose_threads([SMALL] * 100 + [LARGE], environ={}).threads == 1


def test_fewer_threads_win_where_more_gain_little(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, 3, {LARGE: {1: 200e-6, 2: 104e-6, 3: 100e-6}})
    assert blas.choose_threads([LARGE], environ={}).threads == 2


def test_a_large_product_is_measured_on_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    product, part = (6400, 512, 2048), blas._part((6400, 512, 2048))[0]
    assert 2 * np.prod(part, dtype=float) <= blas.LARGEST and part[1:] == product[1:]
    clock = Clock(monkeypatch, 2, {part: {1: 2e-3, 2: 1e-3}})
    measured = blas.choose_threads([product], environ={}).measured[product]
    assert measured[2] == pytest.approx(1e-3 * 6400 / part[0])
    assert clock.now < 0.1


@pytest.mark.parametrize("name", ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "GOTO_NUM_THREADS"])
def test_the_users_number_of_threads_stays(name: str) -> None:
    choice = blas.choose_threads([SMALL], environ={name: "2"})
    assert choice.threads is None and choice.measured == {} and f"{name}=2" in choice.reason


def test_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, 1, {})
    assert blas.choose_threads([SMALL], environ={}).threads is None
    monkeypatch.setattr(blas, "openblas", lambda: None)
    choice = blas.choose_threads([SMALL], environ={})
    assert choice.threads is None and "left as they are" in choice.reason
    blas.set_threads(3)  # nothing happens


def test_the_library_that_numpy_has_loaded() -> None:
    """No number is measured here: the machines of the tests are shared."""
    loaded = blas.openblas()
    if loaded is None or loaded.threads() < 2:
        pytest.skip("needs NumPy with OpenBLAS, and two cores")
    before = loaded.threads()
    choice = blas.choose_threads([SMALL, (50, 128, 512)], environ={})
    assert loaded.threads() == before
    assert choice.threads is not None and set(choice.measured[SMALL]) >= {1, before}
    try:
        blas.set_threads(1)
        assert loaded.threads() == 1
        blas.set_threads(None)
        assert loaded.threads() == 1
    finally:
        blas.set_threads(before)
