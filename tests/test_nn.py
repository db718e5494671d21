"""Initialisers against what their names promise, and dropout."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tinygrad_rnn import InputError, Tensor, grad, ops
from tinygrad_rnn.nn import INITIALISERS, MATRICES, SQUARE, dropout, initialise, parse_initialiser

SEEDS = range(5)


def draw(text: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return initialise(text, shape, np.random.default_rng(seed))


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.1])
@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9), (1, 1)])
def test_orthogonal(shape: tuple[int, int], gain: float) -> None:
    """Rows or columns, whichever are fewer, are orthogonal and of length gain."""
    for seed in SEEDS:
        q = draw(f"orthogonal:{gain}", shape, seed)
        small = q.T @ q if shape[0] >= shape[1] else q @ q.T
        np.testing.assert_allclose(small, gain**2 * np.eye(min(shape)), atol=1e-13)
        np.testing.assert_allclose(np.linalg.svd(q, compute_uv=False), gain, rtol=1e-12)


def test_orthogonal_is_uniform_over_the_group() -> None:
    """For the Haar measure every entry has mean 0 and variance 1/n, and det is +1 and -1 equally often.

    QR alone, without the signs of r, has a diagonal whose mean is far from 0.
    """
    rng = np.random.default_rng(0)
    drawn = np.stack([initialise("orthogonal", (3, 3), rng) for _ in range(4000)])
    np.testing.assert_allclose(drawn.mean(axis=0), 0.0, atol=4 / math.sqrt(3 * 4000))
    np.testing.assert_allclose((drawn**2).mean(axis=0), 1 / 3, atol=0.025)
    assert abs(np.linalg.det(drawn).mean()) < 4 / math.sqrt(4000)


@pytest.mark.parametrize(
    ("text", "shape", "bound"),
    [
        ("uniform:0.08", (200, 300), 0.08),
        ("uniform", (300, 100), 1 / math.sqrt(100)),  # PyTorch's 1/sqrt(H): our columns are the hidden units
        ("uniform", (400,), 1 / math.sqrt(400)),
        ("glorot", (200, 100), math.sqrt(6 / 300)),
        ("glorot:2", (200, 100), 2 * math.sqrt(6 / 300)),
    ],
)
def test_uniform_fills_its_interval(text: str, shape: tuple[int, ...], bound: float) -> None:
    drawn = draw(text, shape)
    n = drawn.size
    assert np.abs(drawn).max() <= bound
    assert np.abs(drawn).max() > bound * (1 - 20 / n)
    assert abs(drawn.mean()) < 4 * bound / math.sqrt(3 * n)
    np.testing.assert_allclose(drawn.var(), bound**2 / 3, rtol=4 / math.sqrt(n))


@pytest.mark.parametrize(
    ("text", "shape", "std"),
    [
        ("normal:0.01", (300, 200), 0.01),
        ("normal", (300, 100), 1 / math.sqrt(400)),  # torch-rnn: N(0, 1/sqrt(D + H))
        ("lecun:2", (400, 100), 0.1),
    ],
)
def test_normal_has_its_moments(text: str, shape: tuple[int, ...], std: float) -> None:
    drawn = draw(text, shape) / std
    n = drawn.size
    assert abs(drawn.mean()) < 4 / math.sqrt(n)
    np.testing.assert_allclose(drawn.var(), 1.0, atol=6 / math.sqrt(n))
    np.testing.assert_allclose((drawn**4).mean(), 3.0, atol=40 / math.sqrt(n))  # normal, not merely of that width


def test_exact_ones() -> None:
    np.testing.assert_array_equal(draw("identity:0.5", (2, 3)), [[0.5, 0, 0], [0, 0.5, 0]])
    np.testing.assert_array_equal(draw("identity", (2, 2)), np.eye(2))
    np.testing.assert_array_equal(draw("zeros", (2,)), [0, 0])
    np.testing.assert_array_equal(draw("constant:-1.5", (2, 1)), [[-1.5], [-1.5]])


@pytest.mark.parametrize(
    ("text", "H", "inputs", "radius"),
    [
        ("sparse", 100, 15, 0.95),  # Pascanu et al.: smart_tanh
        ("sparse:4,1.2", 50, 4, 1.2),
        ("sparse:1", 40, 1, 0.95),
        ("sparse", 6, 6, 0.95),
        ("reservoir", 80, 8, 0.95),
        ("reservoir:1.25,0.5", 30, 15, 1.25),
        ("reservoir:0.7,1", 20, 20, 0.7),
        ("reservoir:0.9,0.01", 5, 1, 0.9),
        ("sparse", 1, 1, 0.95),
    ],
)
def test_sparse_matrices_have_their_radius(text: str, H: int, inputs: int, radius: float) -> None:
    for seed in SEEDS:
        drawn = draw(text, (H, H), seed)
        assert np.count_nonzero(drawn, axis=0).tolist() == [inputs] * H  # what each unit hears
        np.testing.assert_allclose(np.abs(np.linalg.eigvals(drawn)).max(), radius, rtol=1e-9)


def test_the_places_and_signs_in_a_sparse_matrix_are_random() -> None:
    drawn = draw("sparse:10", (200, 200))
    kept = drawn != 0
    assert abs((drawn[kept] > 0).mean() - 0.5) < 4 * 0.5 / math.sqrt(2000)
    assert np.abs(kept.sum(axis=1) - 10).max() < 5 * math.sqrt(10)  # rows: binomial around 10
    assert abs(np.diag(kept).mean() - 0.05) < 4 * math.sqrt(0.05 / 200)
    values = drawn[kept] / drawn[kept].std()
    np.testing.assert_allclose((values**4).mean(), 3.0, atol=40 / math.sqrt(2000))  # normal


def test_chrono_is_the_logarithm_of_a_uniform_number() -> None:
    drawn = np.exp(draw("chrono:400", (5000,)))
    assert 1.0 <= drawn.min() and drawn.max() <= 399.0
    assert abs(drawn.mean() - 200.0) < 4 * 398 / math.sqrt(12 * 5000)
    np.testing.assert_allclose(drawn.var(), 398**2 / 12, rtol=0.06)


def test_signs_are_fair_and_of_one_size() -> None:
    drawn = draw("signs", (64, 100))
    np.testing.assert_array_equal(np.unique(drawn), [-1 / 8, 1 / 8])  # 1/sqrt(I)
    assert abs(np.sign(drawn).mean()) < 4 / 80
    np.testing.assert_array_equal(np.unique(draw("signs:2", (4, 8))), [-2, 2])


@pytest.mark.parametrize("name", sorted(INITIALISERS))
def test_a_seed_gives_the_same_numbers_in_every_dtype(name: str) -> None:
    text = {"constant": "constant:0.1", "chrono": "chrono:50"}.get(name, name)
    square = name in SQUARE
    shape = (5, 5) if square else (5, 4)
    wide = initialise(text, shape, np.random.default_rng(3), np.float64)
    short = initialise(text, shape, np.random.default_rng(3), np.float32)
    np.testing.assert_array_equal(short, wide.astype(np.float32))
    assert (wide.dtype, short.dtype) == (np.float64, np.float32)
    assert wide.flags.c_contiguous  # also where the wide side was transposed
    assert initialise(text, (9, 9) if square else (4, 9), np.random.default_rng(3)).flags.c_contiguous


@pytest.mark.parametrize(
    "name", ["uniform", "normal", "glorot", "lecun", "orthogonal", "signs", "sparse", "reservoir", "chrono:9"]
)
def test_another_seed_gives_other_numbers(name: str) -> None:
    assert np.any(draw(name, (5, 5), 0) != draw(name, (5, 5), 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ortogonal", "no initialiser 'ortogonal'; did you mean orthogonal"),
        (
            "ortogonal",
            "known: chrono, constant, glorot, identity, lecun, normal, orthogonal, reservoir, signs, sparse, uniform",
        ),
        ("", "no initialiser ''; known: chrono, constant, glorot"),
        ("uniform:", "'uniform:': expected a number after the colon, got ''"),
        ("normal:wide", "expected a number after the colon, got 'wide'"),
        ("normal:nan", "expected a finite number, got nan"),
        ("uniform:inf", "expected a finite number, got inf"),
        ("normal:-1", "expected a width of at least 0, got -1"),
        ("uniform:-0.1", "expected a width of at least 0"),
        ("zeros:1", "expected no number, got 1; use constant:1"),
        ("constant", "expected a number, as in constant:1, got none"),
        ("constant:1,2", "'constant:1,2': expected at most 1 number, got 2"),
        ("orthogonal:1,", "'orthogonal:1,': expected a number after the colon, got ''"),
        ("sparse:15,0.9,1", "expected at most 2 numbers, got 3"),
        ("sparse:0", "'sparse:0': expected a whole number from 1, got 0"),
        ("sparse:2.5", "expected a whole number from 1, got 2.5"),
        ("sparse:15,0", "expected a radius above 0, got 0"),
        ("reservoir:-1", "expected a radius above 0, got -1"),
        ("reservoir:0.9,0", r"expected a density in \(0, 1\], got 0"),
        ("chrono", "expected a number, as in chrono:100, got none"),
        ("chrono:2", "'chrono:2': expected a number of steps above 2, got 2"),
        ("minus:b_f", "no initialiser 'minus'"),
    ],
)
def test_what_means_nothing_is_said_before_anything_is_drawn(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_initialiser(text)


@pytest.mark.parametrize("name", MATRICES)
def test_a_matrix_is_needed(name: str) -> None:
    with pytest.raises(InputError, match=rf"initialiser {name}: expected a matrix, got shape \(3,\)"):
        draw(name, (3,))


@pytest.mark.parametrize("name", SQUARE)
def test_a_radius_needs_a_square(name: str) -> None:
    with pytest.raises(InputError, match=rf"initialiser {name}: expected a square matrix, got shape \(3, 4\)"):
        draw(name, (3, 4))


# ---------------------------------------------------------------------------------------- dropout


def test_dropout_keeps_the_mean_and_scales_what_it_keeps() -> None:
    x = np.full((200, 300), 2.0)
    y = dropout(x, 0.25, np.random.default_rng(0))
    np.testing.assert_allclose(np.unique(y), [0.0, 2.0 / 0.75])
    share = (y == 0).mean()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / x.size)


def test_dropout_is_seeded_and_off_at_zero() -> None:
    x = np.arange(1.0, 13.0).reshape(3, 4)
    one, same, other = (dropout(x, 0.5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.any(one != other)
    assert dropout(x, 0.0, np.random.default_rng(0)) is x


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gradient_of_dropout_is_its_mask(dtype: type) -> None:
    x = Tensor(np.ones((4, 5), dtype), requires_grad=True)
    y = dropout(x, 0.5, np.random.default_rng(0))
    assert y.dtype == dtype
    g = grad(ops.sum(y), x)
    np.testing.assert_array_equal(g.data, y.data)
    assert {0.0, 2.0} == set(g.data.reshape(-1).tolist())


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, math.nan])
def test_a_rate_that_is_none(rate: float) -> None:
    with pytest.raises(InputError, match=r"dropout: expected a rate in \[0, 1\), got"):
        dropout(np.ones(3), rate, np.random.default_rng(0))


@pytest.mark.parametrize("text", ["uniform:1e308", "normal:1e308", "constant:1e39", "orthogonal:1e300"])
def test_an_initialiser_with_numbers_too_large(text: str) -> None:
    with pytest.raises(InputError, match=r"expected numbers that float32 can hold, got larger ones"):
        initialise(text, (3, 3), np.random.default_rng(0), np.float32)
