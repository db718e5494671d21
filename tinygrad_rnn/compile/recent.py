"""What was used last: a cache that lets go what was not used for longest."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
LOCK = threading.Lock()  # of all of them: a cell that keeps one can be copied


class Recent(Generic[K, V]):
    """Final. The `limit` values that were put last, by key. Safe to use from several threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        return self.held.get(key)

    def put(self, key: K, value: V) -> None:
        """Keep `value`, as what was used last, and let go what was not used for longest."""
        held = self.held
        if len(held) < self.limit // 2:  # far from full: the order does not matter yet, and a new key comes last
            held[key] = value
            return
        with LOCK:
            held.pop(key, None)
            held[key] = value
            while len(held) > self.limit:
                del held[next(iter(held))]
