"""Sampling, from models whose distribution is known: all weights zero, so that the logits are the readout's bias."""

from __future__ import annotations

import base64
import warnings

import numpy as np
import pytest

from tinygrad_rnn.config import ModelConfig, SampleConfig
from tinygrad_rnn.data import Vocabulary
from tinygrad_rnn.errors import DataError, InputError, NonFiniteError
from tinygrad_rnn.model import Model, Params, build_model
from tinygrad_rnn.registry import load_cell
from tinygrad_rnn.sample import _choose, base64_bytes, generate, readable
from tinygrad_rnn.tensor import Tensor

SHARES = np.array([0.5, 0.25, 0.125, 0.125])
LETTERS = Vocabulary("chars", ("a", "b", "c", "d"))


def known_model(shares: np.ndarray) -> tuple[Model, Params]:
    """A model that predicts `shares` whatever it has read."""
    model = build_model(ModelConfig(cell="rnn", hidden=3, layers=1), len(shares), load_cell("rnn"))
    params = {name: Tensor(np.zeros(spec.shape)) for name, spec in model.params().items()}
    params["readout.b"] = Tensor(np.log(shares))
    return model, params


def text(
    options: SampleConfig, vocabulary: Vocabulary = LETTERS, shares: np.ndarray = SHARES, seed: int = 0
) -> list[str]:
    model, params = known_model(shares)
    steps = list(generate(model, params, vocabulary, options, np.random.default_rng(seed)))
    return ["".join(step[b] for step in steps) for b in range(options.num)]


def shares_of(sample: str) -> np.ndarray:
    return np.array([sample.count(letter) / len(sample) for letter in LETTERS.symbols])


def test_frequencies_follow_the_model() -> None:
    (sample,) = text(SampleConfig(length=4000))
    assert len(sample) == 4000
    assert np.abs(shares_of(sample) - SHARES).max() < 0.03


def test_temperature_sharpens_as_a_power() -> None:
    (sample,) = text(SampleConfig(length=4000, temperature=0.5))
    expected = SHARES**2 / (SHARES**2).sum()
    assert np.abs(shares_of(sample) - expected).max() < 0.03


@pytest.mark.parametrize("options", [SampleConfig(length=50, greedy=True), SampleConfig(length=50, temperature=0.0)])
def test_greedy_takes_the_likeliest(options: SampleConfig) -> None:
    assert text(options) == ["a" * 50]


def test_top_k_and_top_p_keep_the_fewest_that_reach_it() -> None:
    assert set(text(SampleConfig(length=300, top_k=2))[0]) == {"a", "b"}
    assert set(text(SampleConfig(length=300, top_k=99))[0]) == {"a", "b", "c", "d"}
    assert set(text(SampleConfig(length=300, top_p=0.5))[0]) == {"a"}
    assert set(text(SampleConfig(length=300, top_p=0.51))[0]) == {"a", "b"}
    (sample,) = text(SampleConfig(length=4000, top_k=2))
    assert abs(sample.count("a") / 4000 - 2 / 3) < 0.03


def test_prime_comes_first_and_stop_ends_a_sample() -> None:
    (sample,) = text(SampleConfig(length=400, prime="dcd", stop="ba"))
    assert sample.startswith("dcd")
    assert sample.endswith("ba")
    assert sample.count("ba") == 1
    assert len(sample) < 403


def test_samples_stop_one_by_one() -> None:
    samples = text(SampleConfig(length=500, num=6, stop="dd"))
    assert len({len(sample) for sample in samples}) > 1
    assert all(sample.endswith("dd") and sample.count("dd") == 1 for sample in samples)


def test_a_seed_repeats_the_text_and_another_does_not() -> None:
    options = SampleConfig(length=100, num=2)
    assert text(options) == text(options)
    assert text(options) != text(options, seed=1)


@pytest.mark.parametrize(
    "options",
    [
        SampleConfig(),
        SampleConfig(temperature=0.3),
        SampleConfig(top_k=4),
        SampleConfig(top_p=0.6, temperature=2.0),
        SampleConfig(top_k=5, top_p=0.8),
        SampleConfig(greedy=True),
    ],
)
@pytest.mark.parametrize("unknown", [None, 0])
def test_rows_are_drawn_as_one_after_another(
    options: SampleConfig, unknown: int | None, rng: np.random.Generator
) -> None:
    logits = 2.0 * rng.standard_normal((40, 9))
    together = _choose(logits, unknown, options, np.random.default_rng(3))
    alone = np.random.default_rng(3)
    for row, chosen in zip(logits, together, strict=True):
        weights = np.exp(row / (options.temperature or 1.0))
        if unknown is not None:
            weights[unknown] = 0.0
        ranked = sorted(range(9), key=lambda i, w=weights: -w[i])  # type: ignore[misc]
        if options.greedy:
            assert chosen == ranked[0]
            continue
        shares = np.cumsum(weights[ranked]) / weights.sum()
        kept = ranked[: min(options.top_k or 9, 1 + int((shares < options.top_p).sum()))]
        weights[[i for i in range(9) if i not in kept]] = 0.0
        assert chosen == alone.choice(9, p=weights / weights.sum())


def test_a_draw_of_nearly_one_takes_the_last_symbol_that_has_a_share() -> None:
    class Highest(np.random.Generator):
        def random(self, size: tuple[int, ...]) -> np.ndarray:  # type: ignore[override]
            return np.full(size, np.nextafter(1.0, 0.0))

    logits = np.log(np.array([[0.3, 0.3, 0.4, 0.0], [0.0, 0.1, 0.7, 0.2]]) + 1e-300)
    logits[0, 3] = -np.inf
    assert _choose(logits, None, SampleConfig(), Highest(np.random.PCG64())).tolist() == [2, 3]
    assert _choose(logits, None, SampleConfig(top_k=1), Highest(np.random.PCG64())).tolist() == [2, 2]


def test_what_one_sample_does_changes_no_other() -> None:
    endless = text(SampleConfig(length=60, num=5))
    stopped = text(SampleConfig(length=60, num=5, stop="c"))
    assert stopped == [sample[: sample.index("c") + 1] if "c" in sample else sample for sample in endless]


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(number: float) -> None:
    with pytest.raises(NonFiniteError, match=r"expected finite logits, got (nan|inf)"):
        text(SampleConfig(length=5, num=3), shares=np.exp(np.array([0.0, number, 0.0, 0.0])))


def test_the_smallest_temperature_is_greedy_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert text(SampleConfig(length=20, temperature=5e-324)) == text(SampleConfig(length=20, greedy=True))


def test_more_samples_than_memory_are_refused() -> None:
    with pytest.raises(InputError, match="--num 1000000000000"):
        text(SampleConfig(length=1, num=10**12))


def test_unknown_symbols_of_the_priming_text() -> None:
    known = Vocabulary("chars", ("a", "b", "c", "�"), unknown=3)
    with pytest.raises(DataError, match="'x'"):
        text(SampleConfig(length=3, prime="axb"))
    assert text(SampleConfig(length=1, prime="axb", unknown="skip"))[0].startswith("ab")
    assert text(SampleConfig(length=1, prime="axb", unknown="replace"), known)[0].startswith("a�b")
    with pytest.raises(InputError, match="at least one symbol"):
        text(SampleConfig(length=3, prime="xyz", unknown="skip"))


def test_the_unknown_symbol_is_never_drawn() -> None:
    known = Vocabulary("chars", ("a", "b", "c", "�"), unknown=3)
    (sample,) = text(SampleConfig(length=500), known, np.array([0.05, 0.03, 0.02, 0.9]))
    assert "�" not in sample
    assert set(sample) == {"a", "b", "c"}


def test_bytes_become_text_when_a_character_is_complete() -> None:
    vocabulary = Vocabulary("bytes", tuple(map(chr, range(256))))
    shares = np.full(256, 1e-9)
    shares[list("é".encode())] = 0.5
    (sample,) = text(SampleConfig(length=40), vocabulary, shares / shares.sum())
    assert "é" in sample
    assert set(sample) <= set("é\udcc3\udca9")


BYTES = Vocabulary("bytes", tuple(map(chr, range(256))))


def only(*bytes_: int) -> np.ndarray:
    """The shares of a model that draws these bytes, all alike, and hardly ever another."""
    shares = np.full(256, 1e-12)
    shares[list(bytes_)] = 1.0
    return shares / shares.sum()


def test_a_byte_model_loses_no_byte() -> None:
    (sample,) = text(SampleConfig(length=400), BYTES, only(0xFF, 0xC3, 0xA9, 0x80))
    raw = sample.encode("utf-8", "surrogateescape")
    assert len(raw) == 400 and set(raw) == {0xFF, 0xC3, 0xA9, 0x80}
    assert "�" not in sample
    assert base64.b64decode(base64_bytes(sample)) == raw
    assert readable(sample) == raw.decode("utf-8", "replace")


def test_a_priming_text_may_end_in_the_middle_of_a_character() -> None:
    (sample,) = text(SampleConfig(length=1, prime="a\udce2\udc82"), BYTES, only(0xAC))
    assert sample == "a€"
    assert text(SampleConfig(length=1, prime="a\udce2"), BYTES, only(0x62)) == ["a\udce2b"]


@pytest.mark.parametrize("stop", ["\udca9", "\udcc3\udca9", "é"])
def test_stop_of_a_byte_model_is_looked_for_in_bytes(stop: str) -> None:
    wanted = stop.encode("utf-8", "surrogateescape")
    for sample in text(SampleConfig(length=400, num=5, stop=stop), BYTES, only(0xC3, 0xA9)):
        raw = sample.encode("utf-8", "surrogateescape")
        assert raw.endswith(wanted) and raw.count(wanted) == 1


@pytest.mark.parametrize("byte", [0xC3, 0xE2])
def test_stop_in_the_middle_of_a_character_gives_what_was_drawn(byte: int) -> None:
    stop = bytes((byte,)).decode("utf-8", "surrogateescape")
    samples = text(SampleConfig(length=50, num=3, stop=stop), BYTES, only(byte, 0x61))
    assert all(sample.endswith(stop) and sample.count(stop) == 1 for sample in samples)


@pytest.mark.parametrize(
    ("vocabulary", "stop", "named"),
    [
        (LETTERS, "a\n", r"'\\n' \(U\+000A\)"),
        (Vocabulary("chars", ("a", "b", "c", "�"), unknown=3), "�", "U\\+FFFD"),
        (Vocabulary("words", ("to", "be", " ", "<unk>"), unknown=3), "to <", "'<'"),
    ],
)
def test_a_stop_that_can_never_be_drawn_is_refused(vocabulary: Vocabulary, stop: str, named: str) -> None:
    with pytest.raises(InputError, match=f"--stop .*{named}"):
        text(SampleConfig(length=5, stop=stop), vocabulary)


def test_a_stop_may_span_words() -> None:
    words = Vocabulary("words", ("to", "be", " ", "."))
    (sample,) = text(SampleConfig(length=4000, stop="o b"), words)
    assert sample.endswith("to be") and sample.count("o b") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SampleConfig(temperature=-1.0), "--temperature"),
        (SampleConfig(temperature=float("nan")), "--temperature"),
        (SampleConfig(top_p=0.0), "--top-p"),
        (SampleConfig(top_p=1.5), "--top-p"),
    ],
)
def test_impossible_options(options: SampleConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        text(options)


def test_a_long_prime_equals_feeding_it_symbol_by_symbol(rng: np.random.Generator) -> None:
    model = build_model(ModelConfig(cell="lstm", hidden=5, layers=2), 4, load_cell("lstm"))
    params = model.init(rng, np.float64)
    whole = list(generate(model, params, LETTERS, SampleConfig(prime="abcd" * 5, length=20, greedy=True), rng))
    longer = "".join(step[0] for step in whole)
    again = list(generate(model, params, LETTERS, SampleConfig(prime=longer[:30], length=10, greedy=True), rng))
    assert "".join(step[0] for step in again) == longer


def test_the_vocabulary_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="expected the 4 symbols of the model, got 3"):
        text(SampleConfig(length=5), Vocabulary("chars", ("a", "b", "c")))
