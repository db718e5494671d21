"""Contiguous streams of symbols: the order in which a model with a carried state reads a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import numpy.typing as npt

from tinygrad_rnn.errors import DataError, InputError


@final
@dataclass(frozen=True, eq=False)
class Streams:
    """`ids`, shape (N,), as B = `batch` parallel streams, cut into windows of at most T = `seq_len` steps.

    ``streams[k]`` is a pair (x, y) of int arrays of shape (T_k, B), y being x moved on by one symbol. Window k + 1
    starts where window k ended, so a carried state fits; after the last window the state no longer fits the first.

    One pass predicts each of the N - 1 symbols that have a predecessor. The streams are equally long: each of the
    n = ceil((N - 1) / B) steps, so up to B - 1 of them begin one symbol before the end of the one before and that
    symbol is predicted twice. Every window has T steps but the last one; where that would have fewer than T / 2,
    the last two are equally long, so that no update rests on a handful of symbols.

    With `drop_last` the division is that of char-rnn and torch-rnn: whole windows only, and what is left at the end
    of the text, fewer than B * T symbols, is not used.

    Raises InputError for sizes below 1, DataError for a text shorter than one window of all streams.
    """

    ids: npt.NDArray[np.integer[Any]]
    batch: int
    seq_len: int
    drop_last: bool = False

    def __post_init__(self) -> None:
        check_sizes(self.batch, self.seq_len)
        if self.ids.ndim != 1 or self.ids.dtype.kind not in "iu":
            got = f"{self.ids.dtype} of shape {self.ids.shape}"
            raise InputError(f"expected integers of shape (N,), got {got}; encode a text and flatten it")
        if self.ids.size <= self.batch * self.seq_len:
            raise too_short("the text", self.ids.size, self.batch, self.seq_len)

    def __len__(self) -> int:
        """How many windows one pass over the text has."""
        return self._division[0]

    @property
    def stream_length(self) -> int:
        """n, the steps of one stream in one pass."""
        return self._division[2]

    @property
    def left_out(self) -> int:
        """How many symbols at the end of the text no pass predicts: 0 without `drop_last`."""
        return max(0, self.ids.size - 1 - self.batch * self.stream_length)

    def steps(self, k: int) -> int:
        """T_k, the steps of window `k`. Raises IndexError outside 0..len-1."""
        if not 0 <= k < len(self):
            raise IndexError(f"expected a window from 0 to {len(self) - 1}, got {k}; begin the next pass with 0")
        return self._edge(k + 1) - self._edge(k)

    def __getitem__(self, k: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Window `k` as (x, y), each (T_k, B) and C-contiguous. Raises IndexError outside 0..len-1."""
        T, start = self.steps(k), self._edge(k)
        return self._read(start, T), self._read(start + 1, T)

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
        """One pass: every window in order."""
        return (self[k] for k in range(len(self)))

    def next_symbols(self, k: int) -> npt.NDArray[np.intp]:
        """What each stream reads after its first `k` windows, shape (B,): the symbol that follows a carried state."""
        first: npt.NDArray[np.intp] = self._read(self._edge(k), 1)[0]
        return first

    def describe(self, number: Callable[[int], str] = str) -> str:
        """In words, how a pass over the text is divided; `number` spells the numbers."""

        def counted(count: int, word: str) -> str:
            return f"{number(count)} {word}{'s' * (count != 1)}"

        tail = range(max(0, len(self) - 2), len(self))
        sizes = Counter({self.seq_len: tail.start}) + Counter(self.steps(k) for k in tail)
        longest, *shorter = sorted(sizes, reverse=True)
        windows = [f"{counted(sizes[longest], 'window')} of {counted(longest, 'step')}"]
        windows += [f"{number(sizes[size])} of {number(size)}" for size in shorter]
        listed = " and ".join([", ".join(windows[:-1]), windows[-1]] if shorter else windows)
        last = "the last symbol is" if self.left_out == 1 else f"the last {number(self.left_out)} symbols are"
        rest = f"; {last} left out (--drop-last)" if self.left_out else ""
        streams = f"{counted(self.batch, 'stream')} of {counted(self.stream_length, 'step')}"
        return f"{streams} a pass, in {listed}{rest}"

    @cached_property
    def _division(self) -> tuple[int, int, int]:
        """How many windows a stream has, where the last one begins, and where it ends."""
        B, T, predicted = self.batch, self.seq_len, self.ids.size - 1
        n = predicted // (B * T) * T if self.drop_last else -(-predicted // B)
        count = -(-n // T)
        last = (count - 1) * T
        if count > 1 and 2 * (n - last) < T:
            last = (last - T + n) // 2
        return count, last, n

    def _edge(self, k: int) -> int:
        """Where window `k` begins, or the last one ends."""
        count, last, n = self._division
        return n if k == count else last if k == count - 1 else k * self.seq_len

    @cached_property
    def _starts(self) -> npt.NDArray[np.intp]:
        """Where each stream begins in the text, (B,)."""
        total = self.batch * self.stream_length if self.drop_last else self.ids.size - 1
        return np.arange(self.batch) * total // self.batch

    def _read(self, start: int, steps: int) -> npt.NDArray[np.intp]:
        """Symbols `start` to `start + steps` of every stream, (steps, B)."""
        rows: npt.NDArray[np.intp] = np.arange(start, start + steps)[:, None]
        symbols: npt.NDArray[np.intp] = self.ids[rows + self._starts].astype(np.intp)
        return symbols


def fitted_streams(ids: npt.NDArray[np.integer[Any]], batch: int, seq_len: int) -> Streams:
    """Streams for a held-out part, which may be short: fewer streams, then shorter ones, so that one batch fits.

    B becomes the largest number up to `batch` that the N ids fill; where not even one stream of `seq_len` fits,
    B is 1 and T is N - 1. Every window has T steps (`drop_last`), so that their curves can be averaged.
    Raises DataError for fewer than 2 ids, InputError for sizes below 1.
    """
    check_sizes(batch, seq_len)
    if ids.size < 2:
        raise DataError(
            f"expected at least 2 symbols to evaluate on, got {ids.size}; raise --val-frac, or give more text"
        )
    steps = min(seq_len, ids.size - 1)
    return Streams(ids, min(batch, (ids.size - 1) // steps), steps, drop_last=True)


def check_sizes(batch: int, seq_len: int) -> None:
    """Raise InputError unless both sizes are at least 1."""
    for flag, size in (("--batch", batch), ("--seq-len", seq_len)):
        if size < 1:
            raise InputError(f"expected {flag} of at least 1, got {size}; raise it")


def too_short(what: str, available: int, batch: int, seq_len: int) -> DataError:
    """The error for `available` symbols where one batch needs ``batch * seq_len + 1``; it says what to lower."""
    remedy = "give more text"
    if available > seq_len:
        remedy = f"lower --batch to {(available - 1) // seq_len} or --seq-len, or {remedy}"
    elif available > 1:
        remedy = f"lower --seq-len to {available - 1} and --batch to 1, or {remedy}"
    return DataError(
        f"expected at least {batch * seq_len + 1} symbols in {what} for one batch "
        f"(--batch {batch} x --seq-len {seq_len}, + 1), got {available}; {remedy}"
    )
