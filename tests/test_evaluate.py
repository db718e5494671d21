"""Scores, against models whose cross-entropy is a formula, and intervals, against processes whose mean is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import evaluate
from tinygrad_rnn.config import ModelConfig
from tinygrad_rnn.errors import DataError
from tinygrad_rnn.evaluate import confidence_interval, is_cold, mean_loss, score, start_losses, symbol_losses
from tinygrad_rnn.model import Carried, Model, Params, build_model
from tinygrad_rnn.registry import load_cell
from tinygrad_rnn.tensor import Tensor

SHARES = np.array([0.5, 0.25, 0.125, 0.125])
Known = tuple[Model, Params]


@pytest.fixture
def known() -> Known:
    model = build_model(ModelConfig(cell="rnn", hidden=3, layers=1), 4, load_cell("rnn"))
    params = {name: Tensor(np.zeros(spec.shape)) for name, spec in model.params().items()}
    params["readout.b"] = Tensor(np.log(SHARES))
    return model, params


@pytest.fixture
def gru(rng: np.random.Generator) -> Known:
    model = build_model(ModelConfig(cell="gru", hidden=4, layers=2), 5, load_cell("gru"))
    return model, model.init(rng, np.float64)


def single_stream(model: Model, params: Params, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The loss of every symbol, by one forward pass over the whole text and the formula of the cross-entropy."""
    logits = model.forward(params, ids[:-1, None]).logits.data[:, 0]
    losses: np.ndarray[Any, Any] = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(ids) - 1), ids[1:]]
    return losses


def test_score_is_the_cross_entropy_of_the_formula(known: Known, rng: np.random.Generator) -> None:
    model, params = known
    ids = rng.choice(4, 4001, p=SHARES)
    result = score(model, params, ids)
    surprise = -np.log(SHARES)
    scored = ids[1:]
    assert result.symbols == 4000
    assert result.nats == pytest.approx(surprise[scored].mean(), rel=1e-12)
    assert result.bits == pytest.approx(result.nats / math.log(2))
    assert result.perplexity == pytest.approx(math.exp(result.nats))
    for symbol, mean, count in result.by_symbol:
        assert mean == pytest.approx(surprise[symbol], rel=1e-12)
        assert count == (scored == symbol).sum()
    costs = [mean * count for _, mean, count in result.by_symbol]
    assert costs == sorted(costs, reverse=True)


# ------------------------------------------------------------------------------------------- how a text is read


@pytest.mark.parametrize("size", [2, 257, 2000, 5003, 9000])
def test_every_symbol_counts_once_and_no_stream_is_cold(
    gru: Known, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Several streams, each warmed up, give what one stream gives, symbol by symbol."""
    monkeypatch.setattr(evaluate, "WORTH", 2)
    ids = rng.integers(0, 5, size)
    losses = symbol_losses(*gru, ids)
    np.testing.assert_allclose(losses, single_stream(*gru, ids), rtol=0, atol=1e-9)
    assert mean_loss(*gru, ids) == losses.mean() == score(*gru, ids).nats


def test_a_text_of_any_length_is_covered(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    """`read_losses` tells where each loss was read; the losses come back in the order of the text."""
    monkeypatch.setattr(evaluate, "WARM_UP", 5)
    monkeypatch.setattr(evaluate, "WORTH", 1)
    warmed = []

    def places(model: Any, params: Any, ids: Any, starts: Any, length: int) -> Any:
        assert starts[0] == 0 and starts[-1] + length == len(ids) - 1
        warmed.extend(starts[:-1] + length - starts[1:])
        return starts + np.arange(length)[:, None]

    monkeypatch.setattr(evaluate, "read_losses", places)
    for size in range(2, 400):
        assert symbol_losses(*known, np.zeros(size, np.uint8)).tolist() == list(range(size - 1))
    assert min(warmed) >= 5


def test_the_windows_change_no_loss(gru: Known, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = rng.integers(0, 5, 500)
    whole = symbol_losses(*gru, ids)
    monkeypatch.setattr(evaluate, "LOGITS", 5 * 7)
    np.testing.assert_allclose(symbol_losses(*gru, ids), whole, rtol=1e-12)


def test_too_short_a_text(known: Known) -> None:
    for size in (0, 1):
        with pytest.raises(DataError, match=f"at least 2 symbols to evaluate on, got {size}"):
            score(*known, np.ones(size, np.uint8))


def test_the_start_state_is_held_against_the_carried_one() -> None:
    """A unit that keeps its sign: h' = tanh(3 h), and the readout is right for the positive one."""
    model = build_model(ModelConfig(cell="rnn", hidden=1, layers=1, embed="1"), 2, load_cell("rnn"))
    params = {name: Tensor(np.zeros(spec.shape)) for name, spec in model.params().items()}
    (recurrent,) = (name for name, spec in model.params().items() if spec.role == "recurrent")
    params[recurrent] = Tensor(np.array([[3.0]]))
    params["readout.W"] = Tensor(np.array([[-4.0, 4.0]]))
    ids = np.ones(50, np.uint8)  # symbol 1 alone
    h = np.full((1, 1), 0.995)
    start, carried = start_losses(model, params, ids, Carried([{"h": h}], 1))
    assert start == pytest.approx(math.log(2))  # at zero, and it stays there
    assert carried == pytest.approx(math.log1p(math.exp(-8 * 0.995)), rel=0.02)
    assert is_cold((start, carried)) and not is_cold((carried + 0.4, carried))


# ------------------------------------------------------------------------------------------------------ intervals


def autoregressive(phi: float, skewed: bool) -> Callable[[np.random.Generator, int, int], tuple[Any, float]]:
    """Series (runs, n) of x_t = phi x_(t-1) + e_t, and their mean, 0."""

    def draw(rng: np.random.Generator, runs: int, n: int) -> tuple[Any, float]:
        noise = rng.exponential(size=(n + 50, runs)) - 1 if skewed else rng.standard_normal((n + 50, runs))
        x = np.empty_like(noise)
        last = np.zeros(runs)
        for t, e in enumerate(noise):
            x[t] = last = phi * last + e
        return x[50:].T, 0.0

    return draw


def markov(stay: float) -> Callable[[np.random.Generator, int, int], tuple[Any, float]]:
    """Losses of a model that knows the frequencies alone, at a chain of symbols that keeps its symbol with `stay`."""

    def draw(rng: np.random.Generator, runs: int, n: int) -> tuple[Any, float]:
        ids = rng.choice(4, (n, runs), p=SHARES)
        keep = rng.random((n, runs)) < stay
        for t in range(1, n):
            ids[t] = np.where(keep[t], ids[t - 1], ids[t])
        return -np.log(SHARES)[ids].T, float(-(SHARES * np.log(SHARES)).sum())

    return draw


PROCESSES = {
    "independent": autoregressive(0.0, skewed=False),
    "autoregressive, skewed": autoregressive(0.2, skewed=True),
    "autoregressive": autoregressive(0.5, skewed=False),
    "markov": markov(0.3),
}


def coverage(process: str, n: int, runs: int) -> float:
    """How often the interval holds the mean of the process."""
    series, mean = PROCESSES[process](np.random.default_rng(n), runs, n)
    intervals = [confidence_interval(row) for row in series]
    return float(np.mean([found is not None and found[0] <= mean <= found[1] for found in intervals]))


@pytest.mark.parametrize("process", PROCESSES)
def test_the_interval_covers(process: str) -> None:
    assert 0.90 <= coverage(process, 300, 400) <= 0.99  # 95 % +- 4.5 standard deviations of 400 draws


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("n", [150, 300, 1000, 5000])
def test_the_interval_covers_as_often_as_it_says(process: str, n: int) -> None:
    assert 0.93 <= coverage(process, n, 2000) <= 0.97


def test_the_interval_by_hand() -> None:
    """Of the first cosine alone, with amplitude a, the variance of the mean is a^2 / 16."""
    n = 1000
    a = 0.3
    losses = 2 + a * np.cos(math.pi / n * (np.arange(n) + 0.5))
    low, high = confidence_interval(losses) or (0.0, 0.0)
    assert low + high == pytest.approx(4)
    assert high - 2 == pytest.approx(2.306004 * a / 4, rel=1e-6)  # t with 8 degrees of freedom


@pytest.mark.slow
def test_the_interval_covers_what_is_correlated_over_hundreds_of_symbols() -> None:
    """Losses whose autocorrelation is 0.13 at lag 1 and still 0.04 at lag 10: more than prose gives."""
    rng = np.random.default_rng(0)
    parts = [(0.0, 0.85), (0.8, 0.10), (0.95, 0.05)]  # autoregressive processes and their share of the variance
    runs = 2000
    series = 0.0
    for phi, share in parts:
        series = series + math.sqrt(share * (1 - phi**2)) * autoregressive(phi, skewed=False)(rng, runs, 1000)[0]
    intervals = [confidence_interval(row) or (0.0, 0.0) for row in np.asarray(series)]
    assert 0.93 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.97


def test_too_few_losses_give_no_interval(known: Known, rng: np.random.Generator) -> None:
    result = score(*known, rng.choice(4, 100, p=SHARES))
    assert (result.symbols, result.low, result.high) == (99, None, None)
    result = score(*known, rng.choice(4, 101, p=SHARES))
    assert result.low is not None and result.high is not None
    assert result.low < result.nats < result.high
