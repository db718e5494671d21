"""Long sequences in little memory: forward only the states are kept, backward every block is run again.

Source: T. Chen et al. 2016, arXiv 1604.06174; A. Gruslys et al. 2016, arXiv 1606.03401.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_rnn.compile.schedule import Plan
from tinygrad_rnn.compile.trace import Symbol

Array = np.ndarray[Any, Any]
MEMORY = 1 << 29  # bytes of kept values above which a sequence is cut into blocks
BLOCK = 1 << 24  # bytes of kept values of one block


def row_bytes(plan: Plan, dtype: Any) -> int:
    """What one row of one timestep keeps for the way back and adds there, in bytes."""
    kept = {*plan.kept, *plan.before, *plan.ahead, *(sink.g for sinks in plan.sinks.values() for sink in sinks)}
    return sum(math.prod(s.shape[1:]) for s in kept) * int(np.dtype(dtype).itemsize)


def block_length(plan: Plan, dtype: Any, T: int, B: int) -> int:
    """How many timesteps make a block; 0 where the whole sequence may be kept."""
    per_step = row_bytes(plan, dtype) * B
    if per_step * T <= MEMORY:
        return 0
    return max(1, BLOCK // max(per_step, 1))


@dataclass
class BlockedRecord:
    """What a forward pass in blocks leaves: its input, and the states (T + 1, B, ...)."""

    T: int
    B: int
    xs: Array
    weights: dict[Symbol, Array]
    given: Mapping[str, Array]
    states: dict[str, Array]


class BlockedProgram:
    """Final. Runs another program `made` in blocks of `length` timesteps."""

    def __init__(self, made: Any, length: int) -> None:
        self.made = made
        self.length = length
        self.name: str = made.name
        self.plan: Plan = made.plan
        self.dtype = made.dtype
        self.reason = f"{made.reason}; in blocks of {length} timesteps, which the way back computes again"

    def forward(
        self, xs: Array, start: Mapping[str, Array], weights: Mapping[Symbol, Array], given: Mapping[str, Array]
    ) -> BlockedRecord:
        """Like the program's own, without what it keeps."""
        T, B, _ = xs.shape
        states = {name: np.empty((T + 1, *value.shape), self.dtype) for name, value in start.items()}
        for name, value in start.items():
            states[name][0] = value
        record = BlockedRecord(T, B, xs, dict(weights), given, states)
        for t in range(0, T, self.length):
            done = self.block(record, t)
            for name, held in done.states.items():
                states[name][t + 1 : t + self.length + 1] = held[1:]
        return record

    def block(self, record: BlockedRecord, t: int) -> Any:
        """The program's own record of the block that begins at timestep t."""
        end = t + self.length
        start = {name: held[t] for name, held in record.states.items()}
        given = {key: array[t:end] for key, array in record.given.items()}
        return self.made.forward(record.xs[t:end], start, record.weights, given)

    def backward(
        self,
        record: BlockedRecord,
        outside: Mapping[str, Array | None],
        last: Mapping[str, Array | None],
        wants_x: bool,
        wants: set[Symbol],
        grads: Mapping[Symbol, Array],
        again: bool,
    ) -> tuple[Array | None, dict[str, Array], dict[str, Array]]:
        """Like the program's own, from the last block to the first."""
        T = record.T
        totals = {name: np.empty_like(held[1:]) for name, held in record.states.items()}
        dx = np.empty_like(record.xs) if wants_x and self.plan.dx is not None else None
        carried: dict[str, Any] = dict(last)
        for t in reversed(range(0, T, self.length)):
            own = {name: None if g is None else g[t : t + self.length] for name, g in outside.items()}
            block = self.block(record, t)
            part, begin, reached = self.made.backward(block, own, carried, wants_x, wants, grads, again)
            again = True
            carried = {name: begin[name] if self.plan.carried[name] is not None else None for name in begin}
            for name, total in totals.items():
                total[t : t + self.length] = reached[name]
            if dx is not None:
                dx[t : t + self.length] = part
        return (
            dx,
            {
                name: np.zeros_like(record.states[name][0]) if value is None else value
                for name, value in carried.items()
            },
            totals,
        )
