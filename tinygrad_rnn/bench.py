"""How long one training step takes: forward, loss, backward of a character model, in milliseconds.

Embedding (V, H), L recurrent layers of H units, linear readout (H, V), mean cross-entropy over T steps of B streams, in
float32 on the CPU. Nobody updates the parameters.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_rnn.compile.ends import cross_entropy
from tinygrad_rnn.config import ModelConfig
from tinygrad_rnn.errors import InputError
from tinygrad_rnn.model import Forward, build_model
from tinygrad_rnn.registry import CellEntry
from tinygrad_rnn.tensor import Tensor, grad

BENCH_SHAPES = ((65, 100, 1, 1, 25), (65, 128, 2, 50, 50), (65, 512, 1, 64, 100))
"""(V, H, L, B, T): one stream of a small model, char-rnn's default, and one where arithmetic rules."""


@dataclass(frozen=True)
class TrainedStep:
    """What one training step computed: the forward pass, the loss (a scalar), and its gradient per parameter."""

    forward: Forward
    loss: Tensor
    grads: dict[str, Tensor]


def training_step(
    entry: CellEntry,
    shape: Sequence[int],
    *,
    options: Mapping[str, Any] | None = None,
    wrap: Sequence[str] = (),
    executor: str | None = None,
    seed: int = 0,
) -> Callable[[], TrainedStep]:
    """A function that does one training step of a model of the cell `entry`, the same one at every call.

    `shape` is (V, H, L, B, T); `options` and `wrap` are those of the cell; `executor` as in `scan`, None for the
    fastest. Parameters, symbols and noise come from `seed`.
    Raises InputError for a shape, an option or an executor that cannot work.
    """
    if not isinstance(entry, CellEntry):
        raise InputError(f"bench: expected the entry of a cell, as load_cell('lstm') gives it, got {entry!r:.60}")
    V, H, L, B, T = _checked(shape)
    name = entry.identity.name
    config = ModelConfig(cell=name, cell_options=options or {}, wrap=tuple(wrap), hidden=H, layers=L)
    model = build_model(config, V, entry)
    rng = np.random.default_rng(seed)
    params = model.init(rng, np.float32)
    trained = [name for name, value in params.items() if value.requires_grad]
    x, y = rng.integers(0, V, (2, T, B))

    def step() -> TrainedStep:
        forward = model.forward(params, x, rng=np.random.default_rng(seed), executor=executor)
        loss = cross_entropy(forward.logits, y)
        found = grad(loss, [params[name] for name in trained], unused="zeros")
        return TrainedStep(forward, loss, dict(zip(trained, found, strict=True)))

    return step


def bench(
    entry: CellEntry,
    shape: Sequence[int],
    *,
    options: Mapping[str, Any] | None = None,
    wrap: Sequence[str] = (),
    executor: str | None = None,
    runs: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Time `training_step` in this process: one row, as JSON values.

    ``cell`` (with its wrappers), ``shape``, ``executor`` (the one that ran; several, joined by +, where layers
    differ), ``ms`` (median of `runs` calls) and ``min_ms``, both behind two calls that are not counted, and
    ``first_s``, seconds of the first call, in which whatever has to be compiled is compiled.
    Raises InputError as `training_step` does, and for fewer than one run.
    """
    if runs < 1:
        raise InputError(f"bench: expected at least 1 run, got {runs}")
    step = training_step(entry, shape, options=options, wrap=wrap, executor=executor, seed=seed)
    began = time.perf_counter()
    done = step()
    first = time.perf_counter() - began
    ran = "+".join(dict.fromkeys(layer.executor for layer in done.forward.layers))
    del done  # its arrays would otherwise live on beside those of the next step
    step()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        step()
        times.append((time.perf_counter() - began) * 1e3)
    return {
        "cell": "+".join([entry.identity.name, *wrap]),
        "shape": list(shape),
        "executor": ran,
        "ms": statistics.median(times),
        "min_ms": min(times),
        "first_s": first,
    }


def _checked(shape: Sequence[int]) -> tuple[int, int, int, int, int]:
    if len(shape) != 5 or any(int(size) != size or size < 1 for size in shape) or shape[0] < 2:
        got = ",".join(map(str, shape))
        raise InputError(f"shape {got}: expected V,H,L,B,T, five whole numbers of at least 1, V of at least 2")
    V, H, L, B, T = map(int, shape)
    return V, H, L, B, T
