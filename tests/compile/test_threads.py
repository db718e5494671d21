"""The threads of the compiled executor: every part is run once, whoever is awake, asleep, late or busy; results do not
depend on how many there are, and no other thread computes beside them."""

from __future__ import annotations

import _thread
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tinygrad_rnn as tr
from tinygrad_rnn.compile import ends, llvm_executor, machine, threads
from tinygrad_rnn.compile.ends import cross_entropy

TABLE = np.zeros(1, np.int64)


@pytest.fixture
def use_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Call it with the number of threads."""
    pytest.importorskip("llvmlite")
    monkeypatch.setattr(threads, "_crew", threads._Crew())

    def use(count: int) -> None:
        monkeypatch.setenv("TINYGRAD_RNN_THREADS", str(count))
        threads.threads_used.cache_clear()

    yield use
    threads.threads_used.cache_clear()


def made(function: Callable[[int, int, int, int], None]) -> Any:
    """A Python function in the place of machine code."""
    step: Any = machine.STEP(function)
    step.address = ctypes.cast(step, ctypes.c_void_p).value
    return step


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_part_is_run_once(count: int, use_threads: Callable[[int], None], monkeypatch: Any) -> None:
    use_threads(count)
    monkeypatch.setattr(threads, "ALONE", 1_000_000)

    def work(name: int, runs: int, pause: float) -> None:
        done: list[tuple[int, int]] = []
        function = made(lambda _, low, high, k: done.append((low, high)) if k < count else None)
        for run in range(runs):
            parts = [(name + k, run) for k in range(3)]
            threads.share(function, TABLE, parts, None)
            if sorted(done) != parts:
                wrong.append((name, run, list(done)))
            del done[:]
            time.sleep(pause)

    wrong: list[object] = []
    work(0, 300, 0.0)  # the others are awake
    work(10, 30, 0.01)  # they sleep
    several = [threading.Thread(target=work, args=(100 * i, 100, 0.001 * i)) for i in range(3)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    assert not wrong


def test_a_part_may_share_work_itself(use_threads: Callable[[int], None]) -> None:
    use_threads(2)
    done: list[int] = []
    inner = made(lambda _, low, _high, _k: done.append(low))
    outer = made(lambda _, low, _high, _k: threads.share(inner, TABLE, [(10 * low + k, 0) for k in range(3)], None))
    for _ in range(20):
        threads.share(outer, TABLE, [(1, 0), (2, 0), (3, 0)], None)
        assert sorted(done) == [10, 11, 12, 20, 21, 22, 30, 31, 32]
        del done[:]


def test_without_another_thread_the_caller_does_it(
    use_threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_threads(4)

    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    done: list[int] = []
    threads.share(made(lambda _, low, _high, _k: done.append(low)), TABLE, [(k, 0) for k in range(4)], None)
    assert done == [0, 1, 2, 3]


def test_who_is_late_is_left_alone_for_a_while(use_threads: Callable[[int], None]) -> None:
    """And asked again after that."""
    use_threads(2)
    main = threading.get_ident()
    ran: list[bool] = []

    def part(_table: int, _low: int, _high: int, _k: int) -> None:
        ran.append(threading.get_ident() == main)
        time.sleep(0.002 if ran[-1] else 0.02)

    function = made(part)
    threads.share(function, TABLE, [(0, 1), (1, 2)], None)
    assert sorted(ran) == [False, True]
    assert time.perf_counter_ns() < threads._crew.alone_until
    del ran[:]
    threads.share(function, TABLE, [(0, 1), (1, 2)], None)
    assert ran == [True, True]
    time.sleep(threads.ALONE * 1e-9)
    del ran[:]
    threads.share(function, TABLE, [(0, 1), (1, 2)], None)
    assert sorted(ran) == [False, True]


def test_work_is_cut_into_ranges_that_meet() -> None:
    for total in (0, 1, 2, 7, 50):
        for parts in (1, 2, 3, 8):
            ranges = threads.split(total, parts)
            assert [k for low, high in ranges for k in range(low, high)] == list(range(total))
            assert len(ranges) == max(min(total, parts), 1)


@pytest.mark.parametrize(
    ("cell", "dtype"), [("lstm", np.float32), ("gru", np.float64), ("mut1", np.float32), ("scrn", np.float32)]
)
def test_results_do_not_depend_on_the_number_of_threads(
    cell: str, dtype: Any, use_threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by a bit, with tiles of any height: neither outputs nor gradients."""
    for module, name in ((llvm_executor, "WORK"), (ends, "WORK"), (ends, "SPREAD")):
        monkeypatch.setattr(module, name, 0)
    H, B, T, V = 37, 23, 5, 29
    x, y = np.random.default_rng(1).integers(0, V, (2, T, B))
    right: list[Any] = []
    for count in (1, 2, 3, 7):
        use_threads(count)
        model = tr.build_model(tr.ModelConfig(cell=cell, hidden=H, layers=2, embed="11"), V, tr.load_cell(cell))
        params = model.init(np.random.default_rng(0), dtype)
        forward = model.forward(params, x)
        assert forward.layers[0].executor == "llvm"
        loss = cross_entropy(forward.logits, y)
        found = [forward.logits.data, loss.data, *(g.data for g in tr.grad(loss, list(params.values())))]
        right = right or found
        for array, expected in zip(found, right, strict=True):
            assert array.tobytes() == expected.tobytes(), (count, array.shape)


# ------------------------------------------------------------------------------------------- in a process of its own


STEPS = """
import os, sys, threading, time
import numpy as np
import tinygrad_rnn as tr
from tinygrad_rnn import engine, optim
from tinygrad_rnn.compile.ends import cross_entropy
from tinygrad_rnn.diagnostics import watch_gradients

V, H, B, T = 65, 128, 50, 20
x, y = np.random.default_rng(1).integers(0, V, (2, T, B))

def build(cell):
    model = tr.build_model(tr.ModelConfig(cell=cell, hidden=H, layers=2), V, tr.load_cell(cell))
    return model, model.init(np.random.default_rng(0), np.float32)

def step(model, params):
    forward = model.forward(params, x)
    loss = cross_entropy(forward.logits, y)
    return forward, loss, tr.grad(loss, list(params.values()))
"""


def run(script: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", STEPS + script],
        env={**os.environ, "TINYGRAD_RNN_THREADS": "2", **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux's /proc")
def test_no_thread_of_blas_runs_beside_ours() -> None:
    """Threads that there are before the first step are the main one and those of BLAS: these do nothing."""
    pytest.importorskip("llvmlite")
    run(
        """
def spent():
    ticks = {}
    for task in os.listdir("/proc/self/task"):
        fields = open(f"/proc/self/task/{task}/stat").read().rpartition(")")[2].split()
        ticks[int(task)] = int(fields[11]) + int(fields[12])
    return ticks

models = [build(cell) for cell in ("lstm", "gru")]
time.sleep(0.2)  # what waits after the initialisers' products falls asleep
before = spent()
assert len(before) > 1 or os.cpu_count() == 1, "BLAS has no threads"
for model, params in models:
    rule, _ = optim.build_optimizer(tr.OptimConfig())
    values = optim.Block.copy_of({name: value.data for name, value in params.items()})
    state = optim.init_state(rule, values)
    for _ in range(20):
        forward, loss, found = step(model, params)
        grads = optim.Block.copy_of({name: g.data for name, g in zip(params, found)})
        optim.clip_norm(grads, 1.0)
        optim.update(rule, values, grads, state, 1e-3)
        optim.global_norm(values)
    watch_gradients(model, forward, loss, y)
    with engine.no_grad():
        model.forward(params, x)
now = spent()
assert now[threading.get_native_id()] - before[threading.get_native_id()] > 10
idle = [task for task in before if task != threading.get_native_id()]
assert sum(now[task] - before[task] for task in idle) <= 1, (before, now)
""",
        OPENBLAS_NUM_THREADS="4",
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_a_child_process_has_threads_of_its_own(way: str) -> None:
    pytest.importorskip("llvmlite")
    run(
        f"""
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

def child(queue):
    queue.put([g.data for g in step(*build("lstm"))[2]])

if __name__ == "__main__" and {way!r} == "fork":
    right = [g.data for g in step(*build("lstm"))[2]]
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    found = queue.get()
    process.join(60)
    assert process.exitcode == 0
    assert all(np.array_equal(a, b) for a, b in zip(found, right, strict=True))
    step(*build("lstm"))
elif {way!r} == "spawn":
    step(*build("lstm"))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
    step(*build("lstm"))
"""
    )


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_the_process_ends_while_a_part_runs() -> None:
    """Its code stays loaded until then, and nobody hangs."""
    pytest.importorskip("llvmlite")
    told = run(
        """
import ctypes, signal
from tinygrad_rnn.compile import machine, threads

def part(_table, low, _high, _k):
    if threading.get_ident() != main:
        begun.set()
        time.sleep(1)
        os.write(1, b"done")
    else:
        begun.wait()

main, begun = threading.get_ident(), threading.Event()
function = machine.STEP(part)
function.address = ctypes.cast(function, ctypes.c_void_p).value
began = time.perf_counter()
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    threads.share(function, np.zeros(1, np.int64), [(0, 1), (1, 2)], None)
except KeyboardInterrupt:
    assert time.perf_counter() - began < 0.9
else:
    raise AssertionError("not interrupted")
"""
    )
    assert told == "done"
