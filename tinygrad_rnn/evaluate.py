"""How well a model predicts a text: nats and bits per symbol, perplexity, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_rnn import backend, engine
from tinygrad_rnn.compile.ends import cross_entropy
from tinygrad_rnn.data import Streams, fitted_streams
from tinygrad_rnn.model import Model, Params, State, detach

DRAWN_BLOCKS = 1 << 18  # how many numbers of blocks are drawn at a time


@dataclass(frozen=True)
class Score:
    """The mean surprise of a model at a text. `low` and `high` bound `nats` with 95 % (block bootstrap)."""

    nats: float
    low: float
    high: float
    symbols: int
    by_symbol: tuple[tuple[int, float, int], ...]
    """(symbol number, mean surprise in nats, how often it occurs), the costliest in sum first"""

    @property
    def bits(self) -> float:
        """nats / ln 2."""
        return self.nats / math.log(2)

    @property
    def perplexity(self) -> float:
        """e ** nats."""
        return math.exp(self.nats) if self.nats < 700 else math.inf


def mean_loss(model: Model, params: Params, streams: Streams) -> float:
    """The mean cross-entropy in nats per symbol over `streams`, from the start state, without dropout."""
    total = 0.0
    for losses in _batches(model, params, streams):
        total += float(losses.sum(dtype=np.float64))
    return total / (len(streams) * streams.batch * streams.seq_len)


def score(
    model: Model,
    params: Params,
    ids: np.ndarray[Any, Any],
    rng: np.random.Generator,
    *,
    batch: int = 20,
    seq_len: int = 100,
    block: int = 100,
) -> Score:
    """Score the text `ids` (N,), read as up to `batch` contiguous streams with a carried state.

    A short text makes fewer streams, of at least `seq_len` symbols where it has them. Of the N - 1 symbols that can be
    predicted, fewer than `batch` at the end are left out.

    The interval comes from resampling blocks of `block` neighbouring symbols, because neighbours are not independent
    (Kuensch 1989). Raises DataError for fewer than two symbols.
    """
    batches = _batches(model, params, _whole(ids, batch, seq_len))
    losses = np.concatenate(list(batches)).T.reshape(-1)  # stream after stream, which is the order of the text
    targets = ids[1 : 1 + losses.size]
    low, high = _interval(losses, block, rng)
    count = np.bincount(targets, minlength=model.V)
    total = np.bincount(targets, weights=losses, minlength=model.V)
    order: Sequence[int] = [int(i) for i in np.argsort(-total, kind="stable") if count[i]]
    by_symbol = tuple((i, float(total[i] / count[i]), int(count[i])) for i in order)
    return Score(float(losses.mean()), low, high, int(losses.size), by_symbol)


def _whole(ids: np.ndarray[Any, Any], batch: int, seq_len: int) -> Iterator[tuple[Any, Any]]:
    """Batches (x, y) of fitted streams, and a shorter last one with what whole batches leave of every stream."""
    streams = fitted_streams(ids, batch, seq_len)
    yield from streams
    B, n = streams.batch, streams.stream_length
    done = len(streams) * streams.seq_len
    if done < n:
        x, y = (ids[shift : shift + B * n].reshape(B, n)[:, done:].T.astype(np.intp, order="C") for shift in (0, 1))
        yield x, y


def _batches(model: Model, params: Params, batches: Iterable[tuple[Any, Any]]) -> Iterator[np.ndarray[Any, Any]]:
    """The losses (T, B) of each batch, float64 on the host."""
    xp = backend.namespace(params["readout.W"].data)
    state: State | None = None
    with engine.no_grad():
        for x, y in batches:
            if state is None:
                state = model.start(x.shape[1], params)
            out = model.forward(params, backend.from_host(x, xp), state)
            losses = cross_entropy(out.logits, backend.from_host(y, xp), reduction="none")
            state = detach(out.state)
            yield backend.to_host(losses.data).astype(np.float64)


def _interval(
    losses: np.ndarray[Any, Any], block: int, rng: np.random.Generator, draws: int = 1000
) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of the mean over resampled blocks."""
    count = max(1, len(losses) // block)
    means = np.array([part.mean() for part in np.array_split(losses, count)])
    some = max(1, DRAWN_BLOCKS // count)  # a long text has many blocks: not all draws at once
    resampled = np.concatenate(
        [means[rng.integers(0, count, (min(some, draws - k), count))].mean(axis=1) for k in range(0, draws, some)]
    )
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)
