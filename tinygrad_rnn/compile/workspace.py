"""Memory that is used again: large arrays come from blocks that return here when the last array in them is gone.

A fresh large array costs a page fault for every 4 KiB; a training step that reuses its memory has none.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import Any

import numpy as np

KEPT_BYTES = 1 << 29  # what waits to be used again at most, over all sizes
LINE = 64  # bytes of a cache line; every array begins at one


class _Block:
    """Final. Memory, and how NumPy is told of it."""

    __slots__ = ("__weakref__", "address", "bytes", "interface", "raw")

    def __init__(self, count: int) -> None:
        self.raw = np.empty(count + LINE, np.uint8)
        start = -self.raw.__array_interface__["data"][0] % LINE
        self.interface = dict(self.raw[start : start + count].__array_interface__)
        self.address: int = self.interface["data"][0]
        self.bytes = count


class Lease:
    """Final. The owner of a block that is in use: the block is free again when no array refers to it any more."""

    __slots__ = ("__array_interface__", "__weakref__", "address", "block", "ended")
    ended: _Ended

    def __init__(self, block: _Block) -> None:
        self.block = block
        self.address = block.address
        self.__array_interface__ = block.interface


class _Ended(weakref.ref[Lease]):
    """Final. Notices the end of a lease. The lease holds it, and it holds the block until it is leased again."""

    __slots__ = ("block",)
    block: _Block


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()


def drop_waiting() -> None:
    """Give the memory that waits to be used again back to the system, in every pool: for who measures it."""
    for pool in list(_POOLS):
        for waiting in pool.free.copy().values():
            waiting.clear()


class Pool:
    """Final. Blocks by size. Safe to use from several threads, and to interrupt.

    A lease ends in C alone, in `deque.append`: Python swallows an exception that is raised while an object dies, and
    Ctrl-C would go unheard. So what may wait is decided when a block is made: all such blocks together, in use or not,
    stay below `limit`.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit = limit
        self.free: dict[int, deque[_Ended]] = {}
        self.lock = threading.RLock()  # a signal handler may lease as well
        self.blocks: list[weakref.ref[_Block]] = []  # those that may wait, and some that are gone
        self.admitted = 0  # their bytes
        self.refused = 0  # blocks since they were last counted
        _POOLS.add(self)

    def lease(self, count: int) -> np.ndarray[Any, Any]:
        """`count` bytes, not initialised, from the start of a cache line: an array whose base is a `Lease`."""
        waiting = self.free.get(count)
        if waiting is None:
            waiting = self.free.setdefault(count, deque())
        try:
            block = waiting.pop().block
            kept = True
        except IndexError:
            block = _Block(count)
            kept = self.admit(block)
        lease = Lease(block)
        if kept:
            lease.ended = _Ended(lease, waiting.append)
            lease.ended.block = block
        return np.asarray(lease)

    def admit(self, block: _Block) -> bool:
        """Whether `block` may wait for its next lease when this one has ended."""
        if block.bytes > self.limit:
            return False
        with self.lock:
            if self.admitted + block.bytes > self.limit:
                self.make_room()
            if self.admitted + block.bytes > self.limit:
                return False
            self.admitted += block.bytes  # first: an exception behind it makes the count too large, until the next one
            self.blocks.append(weakref.ref(block))
            return True

    def make_room(self) -> None:
        """Let what waits go, and count what is left; once for as many blocks as there are to be counted."""
        self.refused += 1
        if self.refused > len(self.blocks):
            for waiting in self.free.copy().values():
                waiting.clear()
            alive = [(ref, block.bytes) for ref in self.blocks if (block := ref()) is not None]
            self.blocks = [ref for ref, _ in alive]
            self.admitted = sum(count for _, count in alive)
            self.refused = 0


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
