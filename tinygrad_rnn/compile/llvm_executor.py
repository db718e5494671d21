"""Runs a plan as machine code: a call for each section, shared by threads, on memory that is used again."""

from __future__ import annotations

import functools
import math
import os
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinygrad_rnn.compile import machine
from tinygrad_rnn.compile.layout import Layout, make_layout, size
from tinygrad_rnn.compile.llvm_code import CHUNK, Code, generate
from tinygrad_rnn.compile.schedule import Plan
from tinygrad_rnn.compile.trace import Symbol, ancestors
from tinygrad_rnn.compile.workspace import Pool, carve

Array = np.ndarray[Any, Any]
SECTIONS = ("before", "loop", "back", "after", "sinks")
WORK = 400_000  # multiplications below which a second thread costs more than it saves
POOL = Pool()


@dataclass
class Record:
    """What a forward pass leaves for the backward one."""

    T: int
    B: int
    xs: Array
    weights: dict[Symbol, Array]
    mask: Array | None
    start: dict[str, Array]
    states: dict[str, Array]
    rows: dict[str, Array]


class LLVMProgram:
    """Final. The machine code of one cell, for one dtype, with or without a mask."""

    name = "llvm"

    def __init__(self, plan: Plan, dtype: Any) -> None:
        self.plan = plan
        self.dtype = np.dtype(dtype)
        self.layout: Layout = make_layout(plan)
        self.code: Code = generate(self.layout, machine.typed(self.dtype))
        self.functions = machine.compiled(self.code.text, self.dtype, SECTIONS)
        self.step_work = sum(math.prod(w.shape) for w in plan.weights if len(w.shape) == 2) + 32 * sum(
            size(s) for s in plan.loop
        )
        self.late = _needed_late(self.layout)
        forward = set(ancestors(plan.step.new.values()))
        self.once = [s for s in plan.once if s in forward]
        self.once_back = [s for s in plan.once if s not in forward]

    def forward(
        self, xs: Array, start: Mapping[str, Array], weights: Mapping[Symbol, Array], mask: Array | None
    ) -> Record:
        """Run xs (T, B, I) from `start`. Everything is C-contiguous and of the program's dtype; the mask too."""
        T, B, _ = xs.shape
        shapes = {f"rows {name}": (T * B, n) for name, n in self.layout.rows.items()}
        rows, _ = carve(POOL, shapes, self.dtype)
        states: dict[str, Array] = {}
        for name, s in self.plan.step.states.items():
            held, _ = carve(POOL, {name: (T + 1, *s.shape)}, self.dtype)
            states[name] = held[name]
            states[name][0] = start[name]
        record = Record(T, B, xs, _with(weights, self.once), mask, dict(start), states, rows)
        table = self.table(record)
        if self.layout.before.blocks:
            self.run("before", table, T * B, T * B * self.step_work)
        self.run("loop", table, B, T * B * self.step_work)
        return record

    def backward(
        self,
        record: Record,
        outside: Mapping[str, Array | None],
        last: Mapping[str, Array | None],
        wants_x: bool,
        wants: set[Symbol],
        grads: Mapping[Symbol, Array],
        again: bool,
    ) -> tuple[Array | None, dict[str, Array], dict[str, Array]]:
        """The gradients of x (T, B, I), of the start states, and of every state as it came out, (T, B, ...) by name.

        `outside` (T, B, ...) is the gradient that reached each state from outside, `last` (B, ...) what is added for the
        last one. Gradients of the weights in `wants` are written to `grads`, added to what is there with `again`.
        """
        T, B = record.T, record.B
        shapes: dict[str, tuple[int, ...]] = {
            f"rows {name}": (T * B, n) for name, n in self.layout.back_rows.items() if not name.startswith("d ") or
            name[2:] not in self.plan.seeds
        }
        rows, _ = carve(POOL, shapes, self.dtype)
        seeds, _ = carve(POOL, {f"rows d {n}": (T, *s.shape) for n, s in self.plan.step.states.items()}, self.dtype)
        rows.update(seeds)
        dx = None
        if self.plan.dx is not None and (wants_x or self.late):
            held, _ = carve(POOL, {"dx": (T, B, *self.plan.step.x.shape[1:])}, self.dtype)
            dx = rows["rows dx"] = held["dx"]
        carry = {f"carry {n}": np.zeros(s.shape, self.dtype) for n, s in self.plan.step.states.items()}
        for name, value in last.items():
            if value is not None:
                carry[f"carry {name}"][...] = value
        weights = {f"grad {w.name}": grads[w] for w in wants if w in self.plan.sinks}
        record.weights = _with(record.weights, self.once_back)
        table = self.table(record, {**rows, **carry, **weights})
        slots = self.code.slots
        for name, s in self.plan.step.states.items():
            g = outside.get(name)
            if g is None:
                g = np.zeros(size(s), self.dtype)
                self.hold(table, f"g {name}", g)
                continue
            self.hold(table, f"g {name}", g)
            for key, stride in ((f"g row {name}", size(s)), (f"g step {name}", B * size(s))):
                if key in slots:
                    table.numbers[slots[key]] = stride
        if "again" in slots:
            table.numbers[slots["again"]] = int(again)
        work = 2 * T * B * self.step_work
        self.run("back", table, B, work)
        if self.layout.after.blocks and (wants_x or self.late):
            self.run("after", table, T * B, work)
        if weights:
            threads = _threads() if work > WORK else 1
            self.share("sinks", table, [(k, threads) for k in range(threads)])
        totals = {name: seeds[f"rows d {name}"] for name in self.plan.step.states}
        return dx, {name: carry[f"carry {name}"] for name in self.plan.step.states}, totals

    # -------------------------------------------------------------------------------------------- table

    def table(self, record: Record, more: Mapping[str, Array] | None = None) -> _Table:
        """The addresses that the code reads, and the arrays that keep them valid."""
        table = _Table(np.zeros(max(len(self.code.slots), 1), np.int64))
        room = -(-max(record.B, CHUNK) // 1)
        scratch_size = max(self.code.scratch * room, 1) + 64
        threads = _threads()
        held, _ = carve(POOL, {"scratch": (threads * scratch_size,)}, self.dtype)
        named: dict[str, Array] = {**record.rows, **(more or {}), "scratch": held["scratch"], "x": record.xs}
        named.update({f"state {name}": array for name, array in record.states.items()})
        named.update({f"weight {w.name}": array for w, array in record.weights.items()})
        if record.mask is not None:
            named["mask"] = record.mask
        for name, array in named.items():
            self.hold(table, name, array)
        for name, number in (("T", record.T), ("B", record.B), ("scratch size", scratch_size)):
            if name in self.code.slots:
                table.numbers[self.code.slots[name]] = number
        return table

    def hold(self, table: _Table, name: str, array: Array) -> None:
        index = self.code.slots.get(name)
        if index is not None:
            table.numbers[index] = array.__array_interface__["data"][0]
            table.arrays.append(array)

    # -------------------------------------------------------------------------------------------- running

    def run(self, name: str, table: _Table, rows: int, work: int) -> None:
        """A section on all rows, cut into as many parts as there are threads when the work is worth it."""
        threads = min(_threads() if work > WORK else 1, rows)
        ends = [rows * k // threads for k in range(threads + 1)]
        self.share(name, table, [(ends[k], ends[k + 1]) for k in range(threads)])

    def share(self, name: str, table: _Table, parts: list[tuple[int, int]]) -> None:
        function = self.functions[name]
        address = table.numbers.__array_interface__["data"][0]
        if len(parts) == 1:
            function(address, *parts[0], 0)
            return
        waits = [
            _crew().start(functools.partial(function, address, low, high, k))
            for k, (low, high) in enumerate(parts[1:], 1)
        ]
        function(address, *parts[0], 0)
        for wait in waits:
            wait()


def _with(weights: Mapping[Symbol, Array], once: list[Symbol]) -> dict[Symbol, Array]:
    """`weights` and what is computed from them, in the order of `once`."""
    values: dict[Symbol, Any] = dict(weights)
    for s in once:
        if s not in values:
            assert s.op is not None
            args = [values[a] if isinstance(a, Symbol) else a for a in s.args]
            values[s] = np.ascontiguousarray(s.op.value(*args, **s.static))
    return values


@dataclass
class _Table:
    """The addresses that the code reads, and the arrays that have to live as long."""

    numbers: Array
    arrays: list[Array] = field(default_factory=list)


def _needed_late(layout: Layout) -> bool:
    """Whether a gradient of a weight reads what is computed after the loop."""
    after = {s for block in layout.after.blocks for s in block.nodes} | {
        s for s in layout.plan.after
    }
    operands = [s for sinks in layout.plan.sinks.values() for sink in sinks for s in (sink.g, sink.a) if s is not None]
    return any(s in after for s in ancestors(operands))


# ------------------------------------------------------------------------------------------------ threads


@functools.cache
def _threads() -> int:
    """How many threads share the work: as many as cores, or what the variables that BLAS obeys say."""
    for variable in ("TINYGRAD_RNN_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        text = os.environ.get(variable, "")
        if text.isdigit() and int(text) > 0:
            return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Crew:
    """Final. Threads that wait for work. Machine code runs without Python's lock, so they run side by side."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.jobs: queue.SimpleQueue[tuple[Callable[[], None], threading.Lock]] = queue.SimpleQueue()
        for _ in range(_threads() - 1):
            threading.Thread(target=self.work, daemon=True, name="tinygrad_rnn").start()

    def work(self) -> None:
        while True:
            job, done = self.jobs.get()
            job()
            done.release()

    def start(self, job: Callable[[], None]) -> Callable[[], bool]:
        done = threading.Lock()
        done.acquire()
        self.jobs.put((job, done))
        return done.acquire


_CREWS: list[_Crew] = []


def _crew() -> _Crew:
    """The threads of this process: after a fork the child has none of its parent's."""
    if not _CREWS or _CREWS[0].process != os.getpid():
        _CREWS[:] = [_Crew(os.getpid())]
    return _CREWS[0]
