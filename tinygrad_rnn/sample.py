"""Text from a trained model, one symbol at a time."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tinygrad_rnn import backend
from tinygrad_rnn.config import SampleConfig, check_memory
from tinygrad_rnn.data import Vocabulary
from tinygrad_rnn.errors import DataError, InputError, NonFiniteError, UnknownSymbolError
from tinygrad_rnn.model import Carried, Model, Params

SAMPLE_BYTES = 100  # what the objects of one sample take at least


def generate(
    model: Model,
    params: Params,
    vocabulary: Vocabulary,
    options: SampleConfig,
    rng: np.random.Generator,
    carried: Carried | None = None,
) -> Iterator[list[str]]:
    """Sample ``options.num`` texts side by side; each step yields one new piece of text per sample.

    The first step yields the priming text. A sample that has reached ``options.stop`` yields '' from then on; the stop
    text itself is part of the sample, and what stands in the priming text does not count. Without a priming text the
    model starts after a line end where it knows one, else after a random symbol, which is not part of the text. With
    `carried` it goes on where its training stands: from that state, after the priming text or the symbol that training
    reads next. The unknown symbol is never drawn. Of a byte model, text and stop are bytes, spelled as
    `Vocabulary.decode` spells them.

    The same seed and options give the same texts on the same machine. Every step draws ``options.num`` numbers from
    `rng`, one per sample in their order, for those too that have stopped; none where the likeliest is taken.
    `params` must stay as they are until the last step.
    Raises InputError for options that cannot work, DataError for a priming text with unknown symbols under ``error``,
    NonFiniteError when the model's logits leave nothing to draw from.
    """
    _check(options)
    if vocabulary.size != model.V:
        raise InputError(
            f"sampling: expected the {model.V} symbols of the model, got {vocabulary.size}; use its vocabulary"
        )
    B = options.num
    number = params["readout.W"].data.itemsize
    least = B * (number * (model.config.hidden * model.config.layers + model.V) + SAMPLE_BYTES)
    check_memory(least, f"--num {B}: expected a number of samples", "it")
    stop = _stop_symbols(vocabulary, options.stop)
    first = np.array([carried.symbol]) if carried and not options.prime else _first_symbols(vocabulary, options, rng)
    # Only bytes can leave a character unfinished, be it that of the priming text.
    decoders = [vocabulary.decoder() for _ in range(B)] if vocabulary.kind == "bytes" else []
    if options.prime:
        yield ["".join(map(d.feed, first.tolist())) for d in decoders] or [vocabulary.decode(first)] * B
    written = [""] * B
    alive = [True] * B
    step = model.stepper(params, B, carried.state if carried else None)
    xp = backend.namespace(params["readout.W"].data)
    x = np.repeat(first.astype(np.intp)[:, None], B, axis=1)  # (T, B)
    for _ in range(options.length):
        logits = backend.to_host(step(backend.from_host(x, xp)))
        chosen = _choose(logits, vocabulary.unknown, options, rng)
        symbols = [vocabulary.symbols[i] if live else "" for i, live in zip(chosen.tolist(), alive, strict=True)]
        pieces = symbols
        if decoders:
            pieces = [d.feed(ord(symbol)) if symbol else "" for d, symbol in zip(decoders, symbols, strict=True)]
        if stop:
            for b, symbol in enumerate(symbols):
                if symbol:
                    written[b] = (written[b] + symbol)[-len(stop) - len(symbol) :]
                    alive[b] = stop not in written[b]
                    if decoders and not alive[b]:
                        pieces[b] += decoders[b].flush()
        yield pieces
        if not any(alive):
            return
        x = chosen[None, :]
    tail = [decoder.flush() if live else "" for decoder, live in zip(decoders, alive, strict=False)]
    if any(tail):
        yield tail


def _check(options: SampleConfig) -> None:
    if not (math.isfinite(options.temperature) and options.temperature >= 0):
        raise InputError(f"--temperature: expected a number of at least 0, got {options.temperature}")
    if not 0.0 < options.top_p <= 1.0:
        raise InputError(f"--top-p: expected a share in (0, 1], got {options.top_p}")


def _stop_symbols(vocabulary: Vocabulary, stop: str) -> str:
    """What the symbols of a sample are searched for: the text itself; of a byte model, the names of its bytes."""
    if vocabulary.kind == "bytes":
        return vocabulary.encode(stop).tobytes().decode("latin-1")
    drawn = set().union(*(vocabulary.symbols[i] for i in range(vocabulary.size) if stop and i != vocabulary.unknown))
    for character in stop:
        if character not in drawn:
            raise InputError(
                f"--stop {stop!r}: expected characters that the model can draw, got {character!r} "
                f"(U+{ord(character):04X}), so that it would never stop; choose another text"
            )
    return stop


def readable(text: str) -> str:
    """`text` for a reader who knows no surrogates, such as a JSON parser: bytes that are not UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def base64_bytes(text: str) -> str:
    """Every byte of a byte model's `text`, in Base64: what JSON can carry without a loss."""
    return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode("ascii")


def _first_symbols(vocabulary: Vocabulary, options: SampleConfig, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    if options.prime:
        try:
            first = vocabulary.encode(options.prime, options.unknown)
        except UnknownSymbolError as error:
            told = f"--prime with --unknown {options.unknown}: {error.what}"
            raise DataError(f"{told}; skip such symbols with --unknown skip") from error
        except InputError as error:
            raise InputError(f"--prime with --unknown {options.unknown}: {error}") from error
        if first.size:
            return first
        raise InputError(f"--prime {options.prime!r}: expected at least one symbol that the model knows, got none")
    if "\n" in vocabulary.symbols:
        return np.array([vocabulary.symbols.index("\n")])
    return rng.integers(0, vocabulary.size, 1)


def _choose(logits: np.ndarray[Any, Any], unknown: int | None, options: SampleConfig, rng: np.random.Generator) -> Any:
    """A symbol (B,) for each row of the logits (B, V): greedy, or by chance within what the options leave."""
    x = logits.astype(np.float64)
    if unknown is not None:
        x[:, unknown] = -np.inf
    top = x.max(axis=1, keepdims=True)
    if not np.isfinite(top).all():
        raise NonFiniteError(
            f"sampling: expected finite logits, got {top[~np.isfinite(top)][0]}; the parameters have diverged, "
            "take an earlier checkpoint"
        )
    if options.greedy or options.temperature == 0:
        return np.argmax(x, axis=1)
    x -= top
    if options.temperature != 1.0:
        with np.errstate(over="ignore"):  # a temperature of nearly 0: what is below the maximum gets no share
            x /= options.temperature
    p = np.exp(x, out=x)
    if options.top_k or options.top_p < 1.0:
        _keep_likeliest(p, options)
    shares = np.cumsum(p, axis=1)
    shares /= shares[
        :, -1:
    ]  # the last is exactly 1, above every draw; a symbol without a share is never the first above
    return np.argmax(shares > rng.random((len(p), 1)), axis=1)


def _keep_likeliest(p: np.ndarray[Any, Any], options: SampleConfig) -> None:
    """Set to 0 what top-k and top-p leave out of the weights p (B, V)."""
    order = np.argsort(-p, axis=1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=1)
    V = p.shape[1]
    keep = np.full((len(p), 1), min(options.top_k, V) if options.top_k else V)
    if options.top_p < 1.0:
        # the smallest set whose share reaches top_p: at least one symbol
        shares = np.cumsum(ranked / p.sum(axis=1, keepdims=True), axis=1)
        keep = np.minimum(keep, (shares < options.top_p).sum(axis=1, keepdims=True) + 1)
    np.put_along_axis(p, order, np.where(np.arange(V) < keep, ranked, 0.0), axis=1)
