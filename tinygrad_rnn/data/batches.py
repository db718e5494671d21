"""Contiguous streams of symbols: the order in which a model with a carried state reads a text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from tinygrad_rnn.errors import DataError, InputError


@final
@dataclass(frozen=True, eq=False)
class Streams:
    """`ids`, shape (N,), as B = `batch` streams of n = (N - 1) // B symbols, cut into steps of T = `seq_len`.

    Stream b covers ``ids[b*n:(b+1)*n]``. ``streams[k]`` is a pair (x, y) of int arrays of shape (T, B), y being
    x moved on by one symbol. Batch k + 1 starts where batch k ended, so a carried state fits; after the last batch
    the state no longer fits the first. At most T - 1 symbols at the end of every stream, and B at the end of
    the text, are not used. Raises InputError for sizes below 1, DataError for a text shorter than one batch.
    """

    ids: npt.NDArray[np.integer[Any]]
    batch: int
    seq_len: int

    def __post_init__(self) -> None:
        check_sizes(self.batch, self.seq_len)
        if self.ids.ndim != 1 or self.ids.dtype.kind not in "iu":
            got = f"{self.ids.dtype} of shape {self.ids.shape}"
            raise InputError(f"expected integers of shape (N,), got {got}; encode a text and flatten it")
        if len(self) == 0:
            raise too_short("the text", self.ids.size, self.batch, self.seq_len)

    def __len__(self) -> int:
        """How many whole batches one pass over the text gives."""
        return self.stream_length // self.seq_len

    @property
    def stream_length(self) -> int:
        """n, the number of symbols of one stream."""
        return (self.ids.size - 1) // self.batch

    def __getitem__(self, k: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Batch `k` as (x, y), each (T, B) and C-contiguous. Raises IndexError outside 0..len-1."""
        if not 0 <= k < len(self):
            raise IndexError(f"expected a batch from 0 to {len(self) - 1}, got {k}; begin the next pass with 0")
        return self._cut(k, 0), self._cut(k, 1)

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
        """One pass: every batch in order."""
        return (self[k] for k in range(len(self)))

    def _cut(self, k: int, shift: int) -> npt.NDArray[np.intp]:
        rows = self.ids[shift : shift + self.batch * self.stream_length].reshape(self.batch, self.stream_length)
        return rows[:, k * self.seq_len : (k + 1) * self.seq_len].T.astype(np.intp, order="C")  # (T, B)


def fitted_streams(ids: npt.NDArray[np.integer[Any]], batch: int, seq_len: int) -> Streams:
    """Streams for a held-out part, which may be short: fewer streams, then shorter ones, so that one batch fits.

    B becomes the largest number up to `batch` that the N ids fill; where not even one stream of `seq_len` fits,
    B is 1 and T is N - 1. Raises DataError for fewer than 2 ids, InputError for sizes below 1.
    """
    check_sizes(batch, seq_len)
    if ids.size < 2:
        raise DataError(
            f"expected at least 2 symbols to evaluate on, got {ids.size}; raise --val-frac, or give more text"
        )
    steps = min(seq_len, ids.size - 1)
    return Streams(ids, min(batch, (ids.size - 1) // steps), steps)


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
