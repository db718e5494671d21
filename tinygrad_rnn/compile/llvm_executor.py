"""Runs a plan as machine code: a call for each section, shared by threads, on memory that is used again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_rnn.compile import machine
from tinygrad_rnn.compile.layout import Layout, make_layout, size
from tinygrad_rnn.compile.llvm_code import CHUNK, Code, generate, is_transposed
from tinygrad_rnn.compile.recent import Recent
from tinygrad_rnn.compile.schedule import Plan
from tinygrad_rnn.compile.threads import address, share, split, threads_used
from tinygrad_rnn.compile.trace import Symbol, ancestors
from tinygrad_rnn.compile.workspace import LINE, Pool, rounded

Array = np.ndarray[Any, Any]
SECTIONS = ("before", "loop", "behind", "ahead", "back", "after", "sinks", "transposed", "forward", "backward")
WORK = 8_000_000  # multiplications below which a second thread costs more than it saves
APART = 11 * LINE  # between arrays: what begins at the same place of a page gets in each other's way in the caches
POOL = Pool()
FRAMES = 64  # that a program keeps, one for each length and size of the batch


@dataclass
class Record:
    """What a forward pass leaves for the backward one. `states` are (T + 1, B, ...): before, and after every step."""

    T: int
    B: int
    xs: Array
    weights: Mapping[Symbol, Array]
    given: Mapping[str, Array]
    states: dict[str, Array]
    numbers: Array
    block: Array


class Frame:
    """Final. Where everything is for T timesteps of B rows: made once, and then only an address is added.

    `template` is the table of addresses with offsets in place of what lives in the block, and `inside` has 1 there.
    """

    def __init__(self, slots: Mapping[str, int], arrays: Mapping[str, tuple[int, ...]], dtype: Any) -> None:
        self.offsets: dict[str, int] = {}
        self.shapes = dict(arrays)
        end = 0
        for name, shape in arrays.items():
            self.offsets[name] = end
            end += -(-math.prod(shape) * np.dtype(dtype).itemsize // LINE) * LINE + APART
        self.end = end
        self.bytes = rounded(max(end, LINE))
        self.template = np.zeros(max(len(slots), 1), np.int64)
        self.inside = np.zeros(max(len(slots), 1), np.int64)
        for name, offset in self.offsets.items():
            if name in slots:
                self.template[slots[name]] = offset
                self.inside[slots[name]] = 1

    def lease(self) -> tuple[Array, Array]:
        """A block, and the table for it."""
        block: Any = POOL.lease(self.bytes)
        return block, self.template + self.inside * block.base.address

    def array(self, name: str, block: Array, dtype: Any) -> Array:
        return np.ndarray(self.shapes[name], dtype, block, self.offsets[name])


class _Frames:
    """Final. What the forward pass keeps for the backward one, the states, and what the backward pass uses.

    The states are apart, because they live on where nothing else is wanted. `ahead` marks what the backward pass finds
    where the forward one left it.
    """

    def __init__(self, rows: Frame, states: Frame, back: Frame) -> None:
        self.rows, self.states, self.back = rows, states, back
        self.ahead = 1 - back.inside  # the input and the weights too


class LLVMProgram:
    """Final. The machine code of one cell, for one dtype, with or without a mask."""

    name = "llvm"

    def __init__(self, plan: Plan, dtype: Any) -> None:
        self.plan = plan
        self.dtype = np.dtype(dtype)
        self.layout: Layout = make_layout(plan)
        self.code: Code = generate(self.layout, machine.typed(self.dtype))
        self.functions = machine.compiled(self.code.text, self.dtype, SECTIONS)
        self.code.text = ""  # half of what a program would keep
        self.step_work = sum(math.prod(w.shape) for w in plan.weights if len(w.shape) == 2) + 32 * sum(
            size(s) for s in [*plan.loop, *plan.behind]
        )
        self.empty = {name for name in ("before", "behind", "ahead", "after") if not getattr(self.layout, name).blocks}
        self.late = _needed_late(self.layout)
        forward = set(ancestors(plan.step.new.values()))
        self.once = [s for s in plan.once if s in forward]
        self.once_back = [s for s in plan.once if s not in forward and not is_transposed(s)]
        self.discrete = any(w.dtype != self.dtype for w in plan.weights)
        self.frames: Recent[tuple[int, int], _Frames] = Recent(FRAMES)
        slots = self.code.slots
        self.x_slot = slots.get("x")
        self.given_slots = {key: slots[key] for key in plan.step.given if key in slots}
        self.weight_slots = [(w, slots[f"weight {w.name}"]) for w in plan.weights if f"weight {w.name}" in slots]
        self.once_slots = [(s, slots[f"weight {s.name}"]) for s in plan.once if f"weight {s.name}" in slots]
        self.grad_slots = {w: slots[f"grad {w.name}"] for w in plan.weights if f"grad {w.name}" in slots}
        self.sizes = {name: size(s) for name, s in plan.step.states.items()}

    def frame(self, T: int, B: int) -> _Frames:
        """The memory of a forward and of a backward pass."""
        found = self.frames.get((T, B))
        if found is None:
            layout, slots = self.layout, self.code.slots
            room = max(B, CHUNK)
            scratch_size = self.code.scratch * room + LINE
            scratch = {"scratch": (threads_used() * scratch_size,)}
            states = {name: (B, *s.shape[1:]) for name, s in self.plan.step.states.items()}
            forward: dict[str, tuple[int, ...]] = {f"rows {name}": (T * B, n) for name, n in layout.rows.items()}
            backward: dict[str, tuple[int, ...]] = {f"rows {name}": (T * B, n) for name, n in layout.back_rows.items()}
            backward.update({f"rows d {name}": (T, *shape) for name, shape in states.items()})
            if self.plan.dx is not None:
                backward["rows dx"] = (T, B, *self.plan.step.x.shape[1:])
            carry = {f"carry {name}": shape for name, shape in states.items()}
            zeros = {"zeros": (max(self.sizes.values()),)}
            turned = {
                f"weight {s.name}": s.shape for s in self.plan.once if is_transposed(s) and f"weight {s.name}" in slots
            }
            found = _Frames(
                Frame(slots, {**forward, **scratch}, self.dtype),
                Frame(slots, {f"state {name}": (T + 1, *shape) for name, shape in states.items()}, self.dtype),
                Frame(slots, {**backward, **turned, **scratch, **carry, **zeros}, self.dtype),
            )
            for made in (found.rows, found.back):
                for name, number in (("T", T), ("B", B), ("scratch size", scratch_size)):
                    if name in slots:
                        made.template[slots[name]] = number
                        found.ahead[slots[name]] = 0
        self.frames.put((T, B), found)
        return found

    def forward(
        self, xs: Array, start: Mapping[str, Array], weights: Mapping[Symbol, Array], given: Mapping[str, Array]
    ) -> Record:
        """Run xs (T, B, I) from `start`, with mask and noise `given` (T, B, ...) by the keys of `Step.given`.

        Everything is C-contiguous and of the program's dtype; the mask too.
        """
        T, B, _ = xs.shape
        frames = self.frame(T, B)
        block, numbers = frames.rows.lease()
        held, more = frames.states.lease()
        numbers += more
        states = {name: frames.states.array(f"state {name}", held, self.dtype) for name in self.sizes}
        for name, array in states.items():
            array[0] = start[name]
        known = weights if not self.once and not self.discrete else self.known(weights)
        self.fill(numbers, xs, known, given)
        record = Record(T, B, xs, known, given, states, numbers, block)
        if not T * B * self.step_work > WORK:
            self.functions["forward"](address(numbers), T * B, B, 0)
        else:
            self.run("before", numbers, T * B, record)
            self.run("loop", numbers, B, record)
            self.run("behind", numbers, T * B, record)
        return record

    def known(self, weights: Mapping[Symbol, Array]) -> dict[Symbol, Array]:
        """The weights and what is computed from them; booleans are numbers in machine code."""
        return _with({w: a.astype(self.dtype, copy=False) for w, a in weights.items()}, self.once)

    def stepper(self, B: int, weights: Mapping[Symbol, Array], inputs: Array | None = None) -> Stepping:
        """The same for one timestep after another of B rows, on memory of its own.

        `inputs` (V, 1, I) are all that x will ever be: what depends on x alone is computed for them once.
        """
        return Stepping(self, B, _with(weights, self.once) if self.once else weights, inputs)

    def fill(self, numbers: Array, xs: Array, weights: Mapping[Symbol, Array], given: Mapping[str, Array]) -> None:
        """Write the addresses of what is given into the table."""
        if self.x_slot is not None:
            numbers[self.x_slot] = address(xs)
        for key, slot in self.given_slots.items():
            numbers[slot] = address(given[key])
        for w, slot in self.weight_slots:
            numbers[slot] = address(weights[w])
        for s, slot in self.once_slots:
            if s in weights:
                numbers[slot] = address(weights[s])

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

        `outside` (T, B, ...) is the gradient that reached each state from outside, `last` (B, ...) what is added for
        the last one. Gradients of the weights in `wants` are written to `grads`, added to what is there with `again`.
        """
        T, B = record.T, record.B
        frames = self.frame(T, B)
        frame = frames.back
        block, numbers = frame.lease()
        numbers += record.numbers * frames.ahead
        turned = _with(record.weights, self.once_back) if self.once_back else record.weights
        for s, slot in self.once_slots:
            if s in turned:
                numbers[slot] = address(turned[s])
        carry = {name: frame.array(f"carry {name}", block, self.dtype) for name in self.sizes}
        block[frame.offsets[f"carry {next(iter(carry))}"] : frame.end] = 0  # what is carried, and the zeros behind it
        slots = self.code.slots
        for name, held in carry.items():
            end = last.get(name)
            if end is not None:
                held[...] = end
            g = outside.get(name)
            if f"g {name}" not in slots:
                continue
            if g is None:
                g = frame.array("zeros", block, self.dtype)
            else:
                numbers[slots[f"g row {name}"]] = self.sizes[name]
            numbers[slots[f"g {name}"]] = address(g)
        for w in wants:
            if w in self.grad_slots:
                numbers[self.grad_slots[w]] = address(grads[w])
        if "again" in slots:
            numbers[slots["again"]] = int(again)
        late = (self.plan.dx is not None and wants_x) or self.late
        if not 2 * T * B * self.step_work > WORK:
            self.functions["backward"](address(numbers), T * B, B, int(late))
        else:
            memory = (record, block, turned, dict(outside), dict(grads))
            self.functions["transposed"](address(numbers), 0, 0, 0)
            self.run("ahead", numbers, T * B, memory)
            self.run("back", numbers, B, memory)
            if late:
                self.run("after", numbers, T * B, memory)
            if self.grad_slots:
                parts = [(k, threads_used()) for k in range(threads_used())]
                share(self.functions["sinks"], numbers, parts, memory)
        dx = frame.array("rows dx", block, self.dtype) if self.plan.dx is not None and wants_x else None
        return dx, carry, _Totals(frame, block, self.dtype)

    # -------------------------------------------------------------------------------------------- running

    def run(self, name: str, numbers: Array, rows: int, memory: object) -> None:
        """A section on all rows, which the threads share; nothing where it is empty."""
        if name not in self.empty:
            share(self.functions[name], numbers, split(rows, threads_used()), memory)


class Stepping:
    """Final. One timestep after another, forward: the addresses are written once, the states are carried in place."""

    def __init__(self, program: LLVMProgram, B: int, weights: Mapping[Symbol, Array], inputs: Array | None) -> None:
        self.program = program
        self.B = B
        self.weights = weights
        self.inputs = inputs
        self.shared = B * program.step_work > WORK
        self.lease()

    def lease(self) -> None:
        """Take memory, and compute what depends on the inputs alone."""
        program, weights, inputs = self.program, self.weights, self.inputs
        frames = program.frame(1, self.B)
        self.block, self.numbers = frames.rows.lease()
        states, more = frames.states.lease()
        self.numbers += more
        self.table = address(self.numbers)
        held = {name: frames.states.array(f"state {name}", states, program.dtype) for name in program.sizes}
        self.before = {name: both[0] for name, both in held.items()}
        self.after = {name: both[1] for name, both in held.items()}
        program.fill(self.numbers, next(iter(held.values())), weights, {})
        self.rows: list[tuple[Array, Array]] = []
        if inputs is not None:
            V = len(inputs)
            every = program.frame(V, 1)
            block, numbers = every.rows.lease()
            program.fill(numbers, inputs, weights, {})
            program.functions["before"](address(numbers), 0, V, 0)
            self.rows = [
                (
                    every.rows.array(f"rows {name}", block, program.dtype),
                    frames.rows.array(f"rows {name}", self.block, program.dtype),
                )
                for name in program.layout.rows
            ]
        self.interrupted = False

    def __call__(self, x: Array, state: Mapping[str, Array], chosen: Array | None = None) -> Mapping[str, Array]:
        """The states (B, ...) after x (1, B, I), from `state`. The next call overwrites them.

        `chosen` (B,) are the numbers of the rows of x in the `inputs` that were given.
        """
        program = self.program
        if self.interrupted:
            self.lease()  # another thread may still write to the memory of the last call
        for name, into in self.before.items():
            into[...] = state[name]
        if program.x_slot is not None:
            self.numbers[program.x_slot] = address(x)
        if chosen is not None:
            for every, own in self.rows:
                np.take(every, chosen, axis=0, out=own, mode="clip")
        if self.shared:
            self.interrupted = True
            memory = (self.block, self.before, self.after, self.weights, x)
            if chosen is None:
                program.run("before", self.numbers, self.B, memory)
            program.run("loop", self.numbers, self.B, memory)
            program.run("behind", self.numbers, self.B, memory)
            self.interrupted = False
        elif chosen is not None:
            program.functions["loop"](self.table, 0, self.B, 0)
            program.functions["behind"](self.table, 0, self.B, 0)
        else:
            program.functions["forward"](self.table, self.B, self.B, 0)
        return self.after


class _Totals(dict[str, Any]):
    """Final. The total gradient of every state at every timestep, (T, B, ...) by name, made when it is read."""

    def __init__(self, frame: Frame, block: Array, dtype: Any) -> None:
        super().__init__()
        self.frame, self.block, self.dtype = frame, block, dtype

    def __missing__(self, name: str) -> Array:
        made = self[name] = self.frame.array(f"rows d {name}", self.block, self.dtype)
        return made


def _with(weights: Mapping[Symbol, Array], once: list[Symbol]) -> dict[Symbol, Array]:
    """`weights` and what is computed from them, in the order of `once`; booleans are numbers in machine code."""
    values: dict[Symbol, Any] = dict(weights)
    dtype = next(iter(weights.values())).dtype
    for s in once:
        if s not in values:
            assert s.op is not None
            args = [values[a] if isinstance(a, Symbol) else a for a in s.args]
            values[s] = np.ascontiguousarray(s.op.value(*args, **s.static), dtype)
    return values


def _needed_late(layout: Layout) -> bool:
    """Whether a gradient of a weight reads what is computed after the loop."""
    after = {s for block in layout.after.blocks for s in block.nodes} | {s for s in layout.plan.after}
    operands = [s for sinks in layout.plan.sinks.values() for sink in sinks for s in (sink.g, sink.a) if s is not None]
    return any(s in after for s in ancestors(operands))
