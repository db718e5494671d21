"""Scores, against models whose cross-entropy is a formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tinygrad_rnn import evaluate
from tinygrad_rnn.config import ModelConfig
from tinygrad_rnn.data import Streams
from tinygrad_rnn.errors import DataError
from tinygrad_rnn.evaluate import mean_loss, score
from tinygrad_rnn.model import build_model
from tinygrad_rnn.registry import load_cell
from tinygrad_rnn.tensor import Tensor

SHARES = np.array([0.5, 0.25, 0.125, 0.125])


@pytest.fixture
def known():  # type: ignore[no-untyped-def]
    model = build_model(ModelConfig(cell="rnn", hidden=3, layers=1), 4, load_cell("rnn"))
    params = {name: Tensor(np.zeros(spec.shape)) for name, spec in model.params().items()}
    params["readout.b"] = Tensor(np.log(SHARES))
    return model, params


def test_score_is_the_cross_entropy_of_the_formula(known, rng: np.random.Generator) -> None:  # type: ignore[no-untyped-def]
    model, params = known
    ids = rng.choice(4, 4001, p=SHARES)
    result = score(model, params, ids, rng)
    surprise = -np.log(SHARES)
    scored = ids[1 : 1 + 4000]  # 20 streams of 200, all of it
    assert result.symbols == 4000
    assert result.nats == pytest.approx(surprise[scored].mean(), rel=1e-12)
    assert result.bits == pytest.approx(result.nats / math.log(2))
    assert result.perplexity == pytest.approx(math.exp(result.nats))
    for symbol, mean, count in result.by_symbol:
        assert mean == pytest.approx(surprise[symbol], rel=1e-12)
        assert count == (scored == symbol).sum()
    costs = [mean * count for _, mean, count in result.by_symbol]
    assert costs == sorted(costs, reverse=True)


def test_the_interval_covers_the_true_entropy_about_as_often_as_it_says(known) -> None:  # type: ignore[no-untyped-def]
    model, params = known
    truth = float(-(SHARES * np.log(SHARES)).sum())
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        result = score(model, params, rng.choice(4, 2001, p=SHARES), rng, batch=4)
        assert result.low < result.nats < result.high
        covered += result.low <= truth <= result.high
    assert 85 <= covered <= 100  # 95 expected; a 4-sigma band of the binomial


def test_the_state_is_carried_from_batch_to_batch(rng: np.random.Generator) -> None:
    model = build_model(ModelConfig(cell="gru", hidden=4, layers=1), 5, load_cell("gru"))
    params = model.init(rng, np.float64)
    ids = rng.integers(0, 5, 121)
    one = mean_loss(model, params, Streams(ids, 2, 60))
    many = mean_loss(model, params, Streams(ids, 2, 10))
    assert many == pytest.approx(one, rel=1e-12)


@pytest.mark.parametrize(("size", "batch", "streams"), [(250, 1, 1), (499, 20, 4), (48, 20, 1)])
def test_the_rest_of_a_text_is_scored_too(rng: np.random.Generator, size: int, batch: int, streams: int) -> None:
    model = build_model(ModelConfig(cell="gru", hidden=4, layers=1), 5, load_cell("gru"))
    params = model.init(rng, np.float64)
    ids = rng.integers(0, 5, size)
    n = (size - 1) // streams
    x, y = (ids[i : i + streams * n].reshape(streams, n).T for i in (0, 1))
    logits = model.forward(params, x).logits.data
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = -np.log(np.take_along_axis(p, y[..., None], axis=-1)).mean()
    result = score(model, params, ids, rng, batch=batch)
    assert result.symbols == streams * n
    assert result.nats == pytest.approx(expected, rel=1e-12)


def test_too_short_a_text(known, rng: np.random.Generator) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match="at least 2"):
        score(*known, np.array([1]), rng)


def test_the_interval_does_not_depend_on_how_many_draws_are_made_at_once(
    known,  # type: ignore[no-untyped-def]
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = rng.choice(4, 2001, p=SHARES)
    intervals = []
    for blocks in (1, 137, 1 << 18):
        monkeypatch.setattr(evaluate, "DRAWN_BLOCKS", blocks)
        result = score(*known, ids, np.random.default_rng(5))
        intervals.append((result.low, result.high))
    assert intervals[0] == intervals[1] == intervals[2]
