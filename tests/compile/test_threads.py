"""The threads of the compiled executor: every part is done once, whoever is awake, asleep, late or busy."""

from __future__ import annotations

import ctypes
import threading
import time

import pytest

from tinygrad_rnn.compile import llvm_executor, machine


def test_every_part_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llvmlite")
    monkeypatch.setattr(llvm_executor, "threads_used", lambda: 3)
    monkeypatch.setattr(llvm_executor, "ALONE", 1_000_000)
    crew = llvm_executor._Awake(0)

    def work(name: int, runs: int, pause: float) -> None:
        done: list[tuple[int, int, int]] = []
        function = machine.STEP(lambda _, low, high, k: done.append((low, high, k)))
        function.address = ctypes.cast(function, ctypes.c_void_p).value
        for run in range(runs):
            parts = [(name, run), (name + 1, run), (name + 2, run)]
            crew.run(function, 0, parts)
            if sorted(done) != [(low, high, k) for k, (low, high) in enumerate(parts)]:
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
