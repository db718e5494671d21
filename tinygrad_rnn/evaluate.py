"""How well a model predicts a text: nats and bits per symbol, perplexity, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_rnn import backend, engine
from tinygrad_rnn.compile.ends import cross_entropy
from tinygrad_rnn.errors import DataError
from tinygrad_rnn.model import Carried, Model, Params, State, detach

STREAMS = 64  # a text is read in at most so many streams,
WARM_UP = 256  # each of which first reads this many symbols that the stream before it has scored,
WORTH = 4  # and is at least so many times as long
LOGITS = 1 << 21  # how many logits a window of all streams may have; but no window has more steps than
WINDOW = 128
FIRST = 1000  # symbols that are read from two states to compare them,
COLD = 0.5  # which are said to differ from so many nats per symbol on
FEWEST = 100  # losses for an interval
COSINES = 8  # that its variance rests on
STUDENT = 2.306004135  # the 97.5 % quantile of Student's t with as many degrees of freedom


@dataclass(frozen=True)
class Score:
    """The mean surprise of a model at a text.

    `low` and `high` are the 95 % confidence interval of `nats` (see `confidence_interval`), None for a text of fewer
    than 100 symbols.
    """

    nats: float
    low: float | None
    high: float | None
    symbols: int
    streams: int
    """into how many the text was cut; each but the first reads `warm_up` symbols before the first that it scores"""
    warm_up: int
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


def mean_loss(model: Model, params: Params, ids: np.ndarray[Any, Any]) -> float:
    """The mean cross-entropy of the text `ids`, (N,), in nats per symbol: `score` without the rest."""
    return float(symbol_losses(model, params, ids).mean())


def score(model: Model, params: Params, ids: np.ndarray[Any, Any]) -> Score:
    """Score the text `ids` (N,), whose N - 1 symbols behind the first are predicted.

    It is read as `symbol_losses` reads it. Raises DataError for fewer than two symbols.
    """
    losses = symbol_losses(model, params, ids)
    interval = confidence_interval(losses)
    low, high = interval or (None, None)
    targets = ids[1:]
    count = np.bincount(targets, minlength=model.V)
    total = np.bincount(targets, weights=losses, minlength=model.V)
    order: Sequence[int] = [int(i) for i in np.argsort(-total, kind="stable") if count[i]]
    by_symbol = tuple((i, float(total[i] / count[i]), int(count[i])) for i in order)
    B = _streams(losses.size)
    return Score(float(losses.mean()), low, high, int(losses.size), B, WARM_UP if B > 1 else 0, by_symbol)


def symbol_losses(model: Model, params: Params, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The loss of each of the N - 1 predicted symbols of the text `ids` (N,), in its order, float64, without dropout.

    The text begins at the start state. A long one is read in up to 64 streams side by side, none of them cold: each
    but the first begins at least 256 symbols early, in text that the stream before it scores, so that its state has
    forgotten where it began. The result is that of a single stream, as far as 256 symbols are enough for that.
    Raises DataError for fewer than two symbols.
    """
    _check_length(ids)
    predicted = len(ids) - 1
    B = _streams(predicted)
    length = predicted if B == 1 else WARM_UP + -(-(predicted - WARM_UP) // B)
    starts = np.arange(B) * (predicted - length) // max(B - 1, 1)
    losses = read_losses(model, params, ids, starts, length)
    warm = [0, *(starts[:-1] + length - starts[1:])]  # what the stream before has scored
    return np.concatenate([losses[skipped:, b] for b, skipped in enumerate(warm)])


def _streams(predicted: int) -> int:
    """In how many streams a text of so many predicted symbols is read."""
    return max(1, min(STREAMS, predicted // (WORTH * WARM_UP)))


def start_losses(model: Model, params: Params, ids: np.ndarray[Any, Any], carried: Carried) -> tuple[float, float]:
    """The mean loss of the first (at most 1000) symbols of a text from the start state, and from the carried one.

    They differ by little where a model forgets its state. A network with two attractors, as tanh's symmetry can make
    them, may be trained in one and be started in the other: `is_cold` says whether the difference is so large.
    Raises DataError for fewer than two symbols.
    """
    _check_length(ids)
    state = [
        {name: backend.namespace(value).concatenate([value, layer[name]]) for name, value in start.items()}
        for start, layer in zip(model.start(1, params), carried.state, strict=True)
    ]
    losses = read_losses(model, params, ids, np.zeros(2, np.intp), min(len(ids) - 1, FIRST), state).mean(axis=0)
    return float(losses[0]), float(losses[1])


def is_cold(losses: tuple[float, float]) -> bool:
    """Whether the start state costs so much more than the carried one that a short warm-up cannot be the reason."""
    return losses[0] > losses[1] + COLD


def read_losses(
    model: Model, params: Params, ids: np.ndarray[Any, Any], starts: Any, length: int, state: State | None = None
) -> np.ndarray[Any, Any]:
    """The losses (length, B), float64 on the host, of B streams that begin at the places `starts` (B,) of `ids`."""
    xp = backend.namespace(params["readout.W"].data)
    B = len(starts)
    T = max(1, min(WINDOW, LOGITS // (B * model.V)))
    losses = np.empty((length, B))
    if state is None:
        state = model.start(B, params)
    with engine.no_grad():
        for k in range(0, length, T):
            places = starts + np.arange(k, min(k + T, length))[:, None]
            x, y = (backend.from_host(ids[places + shift].astype(np.intp), xp) for shift in (0, 1))
            out = model.forward(params, x, state)
            state = detach(out.state)
            losses[k : k + T] = backend.to_host(cross_entropy(out.logits, y, reduction="none").data)
    return losses


def confidence_interval(losses: np.ndarray[Any, Any]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean of a series (n,) whose neighbours are not independent.

    The variance of the mean is the average of the squares of the series' first 8 cosine coefficients, which see
    variation over n / 4 losses and more, and the quantile is that of Student's t with 8 degrees of freedom (Mueller
    2004; Lazarus, Lewis, Stock and Watson 2018, "HAR Inference: Recommendations for Practice", J. Business & Economic
    Statistics 36(4)). They take more cosines for longer series; 8 make the interval a seventh wider at most, and hold
    where the losses of a text are correlated over hundreds of symbols.

    The interval is for the mean of the process that the series comes from, as far as that is stationary: it knows
    nothing of other chapters. None for fewer than 100 losses.
    """
    n = len(losses)
    if n < FEWEST:
        return None
    mean = float(losses.mean())
    deviations = losses - mean
    phases = (np.arange(n) + 0.5) * (math.pi / n)
    squares = [float(deviations @ np.cos(j * phases)) ** 2 for j in range(1, COSINES + 1)]
    half = STUDENT * math.sqrt(2 * sum(squares) / COSINES) / n
    return mean - half, mean + half


def _check_length(ids: np.ndarray[Any, Any]) -> None:
    if len(ids) < 2:
        raise DataError(
            f"expected at least 2 symbols to evaluate on, got {len(ids)}; raise --val-frac, or give more text"
        )
