"""Ctrl-C at any moment: it is answered at once, and what is computed next is right to the last bit.

A notebook keeps the traceback of an interrupt, and with it every frame: the tests keep it too.
"""

from __future__ import annotations

import ctypes
import dis
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest

import tinygrad_rnn as tr
from tinygrad_rnn import engine
from tinygrad_rnn.compile import ends, llvm_executor, machine, threads
from tinygrad_rnn.compile.ends import cross_entropy

ROOT = Path(__file__).resolve().parent.parent.parent
ROUNDS = int(os.environ.get("INTERRUPTS", "60"))  # interrupts of the slow tests: INTERRUPTS=3000 is thorough
Modes = tuple[Any, ...]


class Interrupt(KeyboardInterrupt):
    """One that no code knows by name."""


def modes() -> Modes:
    return engine.MODE.recording, engine.MODE.anomaly, engine.MODE.listener, np.geterr()


@pytest.fixture
def threaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads share whatever can be shared, however small."""
    monkeypatch.setenv("TINYGRAD_RNN_THREADS", "2")
    threads.threads_used.cache_clear()
    for module, name in ((llvm_executor, "WORK"), (ends, "WORK"), (ends, "SPREAD"), (ends, "SMALL")):
        monkeypatch.setattr(module, name, 0)
    yield
    threads.threads_used.cache_clear()


def training_step(cell: str, executor: str) -> tuple[tr.Model, Callable[[], list[Any]]]:
    """A model, and a function that gives its loss and gradients."""
    model = tr.build_model(tr.ModelConfig(cell=cell, hidden=8, layers=1), 5, tr.load_cell(cell))
    params = model.init(np.random.default_rng(0), np.float32)
    x, y = np.random.default_rng(1).integers(0, 5, (2, 3, 4))

    def step() -> list[Any]:
        loss = cross_entropy(model.forward(params, x, executor=executor).logits, y)
        return [loss.data, *(g.data for g in tr.grad(loss, list(params.values())))]

    return model, step


# ------------------------------------------------------------------------------------------- at every place


CHECKED = {dis.opmap[name] for name in ("RESUME", "CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD") if name in dis.opmap}


class Places:
    """Counts the places where CPython handles signals (behind a call, at the start of a function, at the end of a
    round of a loop), and raises Interrupt at one of them."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0
        self.where = ""
        self.before: dict[FrameType, tuple[int, int]] = {}

    def __call__(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            code, offset = frame.f_code, frame.f_lasti
            before, last = self.before.get(frame, (-1, -1))
            # The exception is that of the call: where a `try` ends with it, it is raised a step too late here.
            if before in CHECKED and handler(code, last) == handler(code, offset):
                self.count += 1
                if self.count == self.at:
                    self.where = f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}"
                    sys.settrace(None)
                    raise Interrupt
            self.before[frame] = (code.co_code[offset], offset)
        return self


def handler(code: CodeType, offset: int) -> int:
    """Where an exception that is raised at `offset` is handled; -1 for nowhere in this function."""
    table = handlers.get(code)
    if table is None:
        entries = dis._parse_exception_table(code)  # type: ignore[attr-defined]
        table = handlers[code] = [(entry.start, entry.end, entry.target) for entry in entries]
    return next((target for start, end, target in table if start <= offset < end), -1)


handlers: dict[CodeType, list[tuple[int, int, int]]] = {}


def interrupted(step: Callable[[], Any], at: int) -> tuple[Places, BaseException | None]:
    """Run `step`, interrupted at place number `at`: what was counted, and the exception with its traceback."""
    places = Places(at)
    outer = sys.gettrace()
    sys.settrace(places)
    try:
        step()
    except Interrupt as error:
        return places, error
    finally:
        sys.settrace(outer)
        places.before.clear()
    return places, None


@pytest.mark.skipif(not hasattr(dis, "_parse_exception_table"), reason="needs CPython 3.11 or newer")
@pytest.mark.parametrize("executor", ["llvm", "numpy"])
@pytest.mark.parametrize(
    ("traced", "most"),
    [
        ("kept", 12),
        pytest.param("kept", 5 * ROUNDS, marks=pytest.mark.slow),
        pytest.param("anew", ROUNDS // 2, marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_at_any_place(executor: str, traced: str, most: int, threaded: None) -> None:
    """`traced` anew is the first step of a cell, in which it is compiled."""
    if executor == "llvm":
        pytest.importorskip("llvmlite")
    model, step = training_step("lstm", executor)

    def run() -> list[Any]:
        if traced == "anew":
            for cell in model.cells:
                cell.__dict__.pop("_programs", None)
        return step()

    right, before = run(), modes()
    total = interrupted(run, -1)[0].count
    wrong: Counter[str] = Counter()
    rng = np.random.default_rng()
    for at in range(1, total + 1) if total <= most else np.unique(rng.integers(1, total + 1, most)):
        places, error = interrupted(run, int(at))
        if error is None and places.where:
            wrong[f"{places.where}: unheard"] += 1
        if modes() != before:
            wrong[f"{places.where}: {modes()}"] += 1
            del error
            gc.collect()
        if not all(np.array_equal(a, b) for a, b in zip(run(), right, strict=True)):
            wrong[f"{places.where}: another gradient"] += 1
    assert not wrong


def test_modes_are_restored_by_a_setting_that_is_interrupted() -> None:
    before = modes()
    for setting in (engine.no_grad, engine.recording, engine.anomaly, lambda: engine.listen(print)):

        def use(setting: Any = setting) -> None:
            with setting():
                len("")

        total = interrupted(use, -1)[0].count
        for at in range(1, total + 1):
            kept = interrupted(use, at)
            assert kept[0].where.endswith("__exit__") or modes() == before, kept[0].where
            del kept
            engine.MODE.recording, engine.MODE.anomaly, engine.MODE.listener = before[:3]


# ------------------------------------------------------------------------------------------- the threads


def made(function: Callable[[int, int, int, int], None]) -> Any:
    """A Python function in the place of machine code."""
    step: Any = machine.STEP(function)
    step.address = ctypes.cast(step, ctypes.c_void_p).value
    return step


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_a_part_that_still_runs_keeps_its_memory(threaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llvmlite")
    monkeypatch.setattr(threads, "_crew", threads._Crew())
    main, begun, go = threading.get_ident(), threading.Event(), threading.Event()
    ran: list[int] = []

    def part(_table: int, low: int, _high: int, _k: int) -> None:
        if threading.get_ident() != main:
            begun.set()
            assert go.wait(30)
        else:
            begun.wait(30)
        ran.append(low)

    def raise_interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise Interrupt

    pool_block = llvm_executor.POOL.lease(12_345)
    alive = weakref.ref(pool_block.base)
    memory = [pool_block]
    del pool_block
    before = signal.signal(signal.SIGALRM, raise_interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        began = time.perf_counter()
        with pytest.raises(Interrupt):
            threads.share(made(part), np.zeros(1, np.int64), [(0, 1), (1, 2), (2, 3)], memory.pop())
        assert time.perf_counter() - began < 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    gc.collect()
    assert alive() is not None  # the other thread is not through
    count = len(ran)
    go.set()
    until = time.perf_counter() + 30
    while alive() is not None and time.perf_counter() < until:
        time.sleep(0.01)
    assert alive() is None and len(ran) == count + 1


def test_stepping_after_an_interrupt_takes_other_memory(threaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One timestep after another uses its memory again: not that in which a thread may still write."""
    pytest.importorskip("llvmlite")
    model, step = training_step("gru", "llvm")
    step()
    program = next(iter(model.cells[0].__dict__["_programs"].shared.held.values()))
    rng = np.random.default_rng(0)
    weights = {w: rng.normal(size=w.shape).astype(np.float32) for w in program.plan.weights}
    x = rng.normal(size=(1, 4, program.plan.step.x.shape[-1])).astype(np.float32)
    state = {"h": np.zeros((4, 8), np.float32)}
    stepping = program.stepper(4, weights)
    right = stepping(x, state)["h"].copy()
    block, after = stepping.block, stepping.after["h"]

    def interrupt(*_args: Any) -> None:
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(llvm_executor, "share", interrupt)
        with pytest.raises(Interrupt):
            stepping(x, state)
    assert np.array_equal(stepping(x, state)["h"], right)
    assert stepping.block is not block and stepping.after["h"] is not after
    block = stepping.block
    assert np.array_equal(stepping(x, state)["h"], right) and stepping.block is block


# ------------------------------------------------------------------------------------------- by real signals


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
@pytest.mark.parametrize("count", [1, 2, 4])
def test_interrupts_at_random_times(count: int) -> None:
    """A step of lstm with H = 128, B = 64, T = 60."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "interrupt_stress.py"), str(ROUNDS)],
        env={**os.environ, "TINYGRAD_RNN_THREADS": str(count)},
        capture_output=True,
        text=True,
        timeout=60 + 2 * ROUNDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no exception that was ignored
