"""Memory that is used again: large arrays come from blocks that return here when the last array in them is gone.

A fresh large array costs a page fault for every 4 KiB; a training step that reuses its memory has none.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

KEPT_BYTES = 1 << 29  # what waits to be used again at most, over all sizes
LINE = 64  # bytes of a cache line; every array begins at one


class _Block:
    """Final. Memory, and how NumPy is told of it."""

    __slots__ = ("address", "bytes", "interface", "raw")

    def __init__(self, count: int) -> None:
        self.raw = np.empty(count + LINE, np.uint8)
        start = -self.raw.__array_interface__["data"][0] % LINE
        self.interface = dict(self.raw[start : start + count].__array_interface__)
        self.address: int = self.interface["data"][0]
        self.bytes = count


class Lease:
    """Final. The owner of a block that is in use: gives it back when no array refers to it any more."""

    __slots__ = ("__array_interface__", "address", "block", "pool")

    def __init__(self, pool: Pool, block: _Block) -> None:
        self.pool = pool
        self.block = block
        self.address = block.address
        self.__array_interface__ = block.interface

    def __del__(self) -> None:
        self.pool.give_back(self.block)


class Pool:
    """Final. Blocks by size. Safe to use from several threads."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit = limit
        self.free: dict[int, list[_Block]] = {}
        self.bytes = 0
        self.lock = threading.RLock()  # a lease may end inside it, when the collector runs

    def lease(self, count: int) -> np.ndarray[Any, Any]:
        """`count` bytes, not initialised, from the start of a cache line: an array whose base is a `Lease`."""
        block = None
        with self.lock:
            waiting = self.free.get(count)
            if waiting:
                block = waiting.pop()
                self.bytes -= count
        return np.asarray(Lease(self, block or _Block(count)))

    def give_back(self, block: _Block) -> None:
        """Keep `block` for the next lease of its size, or let it go where too much waits already."""
        with self.lock:
            if self.bytes + block.bytes <= self.limit:
                self.bytes += block.bytes
                self.free.setdefault(block.bytes, []).append(block)


def carve(
    pool: Pool, shapes: dict[str, tuple[int, ...]], dtype: Any
) -> tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Arrays of these shapes side by side in one block, and the block; each begins at a cache line."""
    item = np.dtype(dtype).itemsize
    starts: dict[str, int] = {}
    end = 0
    for name, shape in shapes.items():
        starts[name] = end
        count = item
        for n in shape:
            count *= n
        end += -(-count // LINE) * LINE
    block = pool.lease(rounded(max(end, LINE)))
    arrays = {name: np.ndarray(shape, dtype, block, starts[name]) for name, shape in shapes.items()}
    return arrays, block


def rounded(count: int) -> int:
    """`count` bytes or up to an eighth more: batches of many sizes use the same few blocks, one after the other."""
    step = max(LINE, 1 << max(0, count.bit_length() - 4))
    return -(-count // step) * step
