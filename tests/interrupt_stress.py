"""Interrupt training steps at random moments, and compare the gradient after each with the one that is right.

Usage: TINYGRAD_RNN_THREADS=4 python tests/interrupt_stress.py ROUNDS [CELL]

Every interrupt is a KeyboardInterrupt from a signal, as Ctrl-C sends one. Exit status 1, with a line that says what was
wrong, where a gradient differs by a bit, an interrupt went unheard, a mode of the engine or of NumPy is not as it was,
or memory is missing from the pool.
"""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType
from typing import Any

import numpy as np

import tinygrad_rnn as tr
from tinygrad_rnn import engine
from tinygrad_rnn.compile.ends import cross_entropy
from tinygrad_rnn.compile.llvm_executor import POOL

V, H, B, T = 20, 128, 64, 60
LATE = 1.0  # seconds after which an interrupt has not been answered promptly


class Interrupt(KeyboardInterrupt):
    """One that no code knows by name."""


def main(rounds: int, cell: str = "lstm") -> str:
    """What was wrong; '' where nothing was."""
    model = tr.build_model(tr.ModelConfig(cell=cell, hidden=H, layers=1), V, tr.load_cell(cell))
    params = model.init(np.random.default_rng(0), np.float32)
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, V, (2, T, B))

    def gradient() -> tuple[float, list[Any]]:
        loss = cross_entropy(model.forward(params, x).logits, y)
        return loss.item(), [g.data for g in tr.grad(loss, list(params.values()))]

    raised: list[float] = []

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raised.append(time.perf_counter())
        raise Interrupt

    gradient()
    right = gradient()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        gradient()
        times.append(time.perf_counter() - began)
    step = sorted(times)[2]
    signal.signal(signal.SIGALRM, interrupt)
    modes = (engine.MODE.recording, engine.MODE.anomaly, engine.MODE.listener, np.geterr())
    random = np.random.default_rng()
    heard = 0
    while heard < rounds:
        del raised[:]
        try:
            signal.setitimer(signal.ITIMER_REAL, float(random.uniform(1e-5, step)))
            try:
                gradient()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupt:
            heard += 1
            if time.perf_counter() - raised[-1] > LATE:
                return f"interrupt {heard} took {time.perf_counter() - raised[-1]:.3f} s"
        else:
            if raised:
                return f"an interrupt went unheard after {heard}"
        if (engine.MODE.recording, engine.MODE.anomaly, engine.MODE.listener, np.geterr()) != modes:
            return f"after interrupt {heard}: recording {engine.MODE.recording}, errors {np.geterr()}"
        loss, found = gradient()
        if loss != right[0] or not all(np.array_equal(a, b) for a, b in zip(found, right[1], strict=True)):
            return f"after interrupt {heard}: loss {loss}, expected {right[0]}, or another gradient"
    alive = sum(block.bytes for ref in POOL.blocks if (block := ref()) is not None)
    if not alive <= POOL.admitted <= POOL.limit:
        return f"{alive} bytes in the pool, which counts {POOL.admitted} of at most {POOL.limit}"
    return ""


if __name__ == "__main__":
    wrong = main(int(sys.argv[1]), *sys.argv[2:])
    print(wrong or "right", file=sys.stderr if wrong else sys.stdout)
    sys.exit(bool(wrong))
