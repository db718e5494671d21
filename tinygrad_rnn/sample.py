"""Text from a trained model, one symbol at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tinygrad_rnn import backend, engine
from tinygrad_rnn.config import SampleConfig, check_memory
from tinygrad_rnn.data import Vocabulary
from tinygrad_rnn.errors import DataError, InputError
from tinygrad_rnn.model import Model, Params, State, detach

SAMPLE_BYTES = 100  # what the objects of one sample take at least


def generate(
    model: Model, params: Params, vocabulary: Vocabulary, options: SampleConfig, rng: np.random.Generator
) -> Iterator[list[str]]:
    """Sample ``options.num`` texts side by side; each step yields one new piece of text per sample.

    The first step yields the priming text. A sample that has reached ``options.stop`` yields '' from then on; the stop
    text itself is part of the sample. Without a priming text the model starts after a line end where it knows one,
    else after a random symbol, which is not part of the text. The unknown symbol is never drawn.
    Raises InputError for options that cannot work, DataError for a priming text with unknown symbols under ``error``.
    """
    _check(options)
    B = options.num
    number = params["readout.W"].data.itemsize
    least = B * (number * (model.config.hidden * model.config.layers + model.V) + SAMPLE_BYTES)
    check_memory(least, f"--num {B}: expected a number of samples", "it")
    first = _first_symbols(vocabulary, options, rng)
    decoders = [vocabulary.decoder() for _ in range(B)]
    if options.prime:
        yield [vocabulary.decode(first)] * B
    x = np.repeat(first.astype(np.intp)[:, None], B, axis=1)  # (T, B)
    state: State = model.start(B, params)
    written = [""] * B
    alive = [True] * B
    for _ in range(options.length):
        logits, state = _advance(model, params, x, state)
        chosen = np.array([_choose(row, vocabulary, options, rng) for row in logits], np.intp)
        pieces = []
        for b in range(B):
            piece = decoders[b].feed(int(chosen[b])) if alive[b] else ""
            if options.stop and alive[b]:
                written[b] = (written[b] + piece)[-len(options.stop) - len(piece) :]
                alive[b] = options.stop not in written[b]
            pieces.append(piece)
        yield pieces
        if not any(alive):
            return
        x = chosen[None, :]
    tail = [decoder.flush() if live else "" for decoder, live in zip(decoders, alive, strict=True)]
    if any(tail):
        yield tail


def _check(options: SampleConfig) -> None:
    if not (math.isfinite(options.temperature) and options.temperature >= 0):
        raise InputError(f"--temperature: expected a number of at least 0, got {options.temperature}")
    if not 0.0 < options.top_p <= 1.0:
        raise InputError(f"--top-p: expected a share in (0, 1], got {options.top_p}")


def _first_symbols(vocabulary: Vocabulary, options: SampleConfig, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    if options.prime:
        try:
            first = vocabulary.encode(options.prime, options.unknown)
        except (DataError, InputError) as error:
            raise type(error)(f"--prime with --unknown {options.unknown}: {error}") from error
        if first.size:
            return first
        raise InputError(f"--prime {options.prime!r}: expected at least one symbol that the model knows, got none")
    if "\n" in vocabulary.symbols:
        return np.array([vocabulary.symbols.index("\n")])
    return rng.integers(0, vocabulary.size, 1)


def _advance(model: Model, params: Params, x: np.ndarray[Any, Any], state: State) -> tuple[np.ndarray[Any, Any], State]:
    """The logits (B, V) after the symbols x (T, B), on the host in float64, and the state."""
    xp = backend.namespace(params["readout.W"].data)
    with engine.no_grad():
        out = model.forward(params, backend.from_host(x, xp), state)
    return backend.to_host(out.logits[-1].data).astype(np.float64), detach(out.state)


def _choose(
    logits: np.ndarray[Any, Any], vocabulary: Vocabulary, options: SampleConfig, rng: np.random.Generator
) -> int:
    """One symbol by its logits (V,): greedy, or by chance within what temperature, top-k and top-p leave."""
    if vocabulary.unknown is not None:
        logits = logits.copy()
        logits[vocabulary.unknown] = -np.inf
    if options.greedy or options.temperature == 0:
        return int(np.argmax(logits))
    with np.errstate(over="ignore"):  # a temperature of nearly 0: what is below the maximum gets no share
        p = np.exp((logits - logits.max()) / options.temperature)
    p /= p.sum()
    if options.top_k or options.top_p < 1.0:
        order = np.argsort(-p, kind="stable")
        keep = len(p) if not options.top_k else min(options.top_k, len(p))
        # the smallest set whose share reaches top_p: at least one symbol
        keep = min(keep, int(np.searchsorted(np.cumsum(p[order]), options.top_p, side="left")) + 1)
        p[order[keep:]] = 0.0
        p /= p.sum()
    return int(rng.choice(len(p), p=p))
