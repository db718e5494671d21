"""The threads that share the work of machine code, which runs without Python's lock.

A call is cut into parts; every thread takes the next part until none is left. An exception may reach the calling thread
between any two bytecodes (Ctrl-C raises KeyboardInterrupt there). Therefore

* a job owns the memory it works on: nothing that a part still uses is freed or leased again, whatever the caller does;
* no lock is written in Python: `deque` and `SimpleQueue` are atomic in C, but a Condition or a Semaphore, and with
  them `concurrent.futures`, stay locked for good when an exception comes at the wrong place;
* the caller runs every part that no thread has begun, and waits only for those that are running.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import functools
import itertools
import os
import time
from collections import deque
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from tinygrad_rnn.compile import machine

Array = np.ndarray[Any, Any]
ALONE = 5_000_000  # nanoseconds without the other threads, after a call for which they were late
WAKE = 50_000  # nanoseconds that a thread may take to wake up without being late
LOOKS = 10_000  # at a number in memory before a thread sleeps, some 0.3 ms
NAP = 5e-5  # seconds between looks after that
EXIT_SECONDS = 10.0  # how long the end of the process waits for parts that are running


@functools.cache
def threads_used() -> int:
    """How many threads share the work: as many as cores, or what the variables that BLAS obeys say."""
    for variable in ("TINYGRAD_RNN_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        text = os.environ.get(variable, "")
        if text.isdigit() and int(text) > 0:
            return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split(total: int, parts: int) -> list[tuple[int, int]]:
    """`range(total)` cut into at most `parts` ranges of nearly the same length, as (from, to)."""
    parts = max(min(parts, total), 1)
    return list(itertools.pairwise([total * k // parts for k in range(parts + 1)]))


def address(array: Array) -> int:
    """Where the memory of `array` begins."""
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def share(function: Any, table: Array, parts: Sequence[tuple[int, int]], memory: object) -> None:
    """``function(table, from, to, k)`` for every part, each by the thread that is free first; k numbers the threads.

    `memory` refers to every array whose address is in `table`: it lives until the last part ends, also when an
    exception ends this call before.
    """
    crew = _crew
    helpers = min(len(parts), threads_used()) - 1
    if not helpers or time.perf_counter_ns() < crew.alone_until:
        start = address(table)
        for low, high in parts:
            function(start, low, high, 0)
        return
    job = _Job(crew.posted, function, table, parts, memory)
    try:
        crew.post(job, helpers)
        began = time.perf_counter_ns()
        others = len(parts) - job.lead()
        ended = time.perf_counter_ns()
        job.wait(others)
        now = time.perf_counter_ns()
    finally:
        job.parts.clear()  # after an exception nobody wants what has not begun
    job.memory = None  # a thread may hold the job until it wakes up
    if now - ended > 2 * (ended - began) + WAKE:
        crew.alone_until = now + ALONE  # another process uses their cores


class _Job:
    """Final. A call that is cut into parts. `numbers` are what `machine.SHARING` says."""

    __slots__ = ("error", "function", "memory", "numbers", "parts", "table", "workers")

    def __init__(
        self, posted: Array, function: Any, table: Array, parts: Sequence[tuple[int, int]], memory: object
    ) -> None:
        self.function = function
        self.table = table
        self.memory = memory
        self.parts = deque(parts)
        self.workers = itertools.count()  # next() is one step for all threads
        self.numbers = np.array([address(posted), function.address, address(table), 0], np.int64)
        self.error: BaseException | None = None

    def lead(self) -> int:
        """Run parts in the calling thread until none is left; their number."""
        k, count = next(self.workers), 0
        function, start = _machine("lead"), address(self.numbers)
        while True:
            try:
                low, high = self.parts.popleft()
            except IndexError:
                return count
            function(start, low, high, k)
            count += 1
            function, start = self.function, address(self.table)

    def assist(self) -> None:
        """The same in another thread."""
        k, function, start = next(self.workers), _machine("assist"), address(self.numbers)
        try:
            while True:
                low, high = self.parts.popleft()
                function(start, low, high, k)
        except IndexError:
            return
        except BaseException as error:
            self.error = error

    def wait(self, others: int) -> None:
        """Until the other threads have done so many parts: awake for a moment, then in naps, which leave the core free
        for a thread that has lost its own."""
        seen = -1
        while (done := int(self.numbers[3])) < others:
            if self.error is not None:
                raise self.error
            if done != seen:
                _machine("watch")(address(self.numbers) + 24, done, LOOKS, 0)
                seen = done
            else:
                time.sleep(NAP)


def _machine(name: str) -> Any:
    return machine.sharing(LOOKS)[name]


class _Crew:
    """Final. The threads of this process. They sleep until a job comes, and hold none while they sleep."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.gone: SimpleQueue[None] = SimpleQueue()
        self.posted = np.zeros(1, np.int64)
        self.started: list[int] = []
        self.alone_until = 0

    def post(self, job: _Job, helpers: int) -> None:
        """Ask so many threads for help; start those that are missing."""
        with contextlib.suppress(RuntimeError):  # no more threads can be started: the caller does more itself
            while len(self.started) < helpers:
                self.started.append(_thread.start_new_thread(self.serve, ()))
        for _ in range(helpers):
            self.jobs.put(job)

    def serve(self) -> None:
        """What a thread does."""
        while (job := self.jobs.get()) is not None:
            job.assist()
            del job
        self.gone.put(None)

    def leave(self) -> None:
        """Let the threads end when they have done what they have begun: the code they run is about to be unloaded."""
        for _ in self.started:
            self.jobs.put(None)
        with contextlib.suppress(Empty):
            for _ in self.started:
                self.gone.get(timeout=EXIT_SECONDS)


_crew = _Crew()


def _forget() -> None:
    """A forked child has none of its parent's threads."""
    global _crew
    _crew = _Crew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
atexit.register(lambda: _crew.leave())
