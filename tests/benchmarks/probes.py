"""Single measurements for `training_step.py`, each in a process of its own: one JSON object on stdout.

    python tests/benchmarks/probes.py products '{"cell": "lstm", "shape": [65, 128, 2, 50, 50], "runs": 5}'

What a probe does not need is not imported: an interpreter that has only PyTorch can run `sample_torch`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MINIMAL = Path(__file__).with_name("minimal_rnn.py")
Result = dict[str, Any]

# Gates per product: of the operands that the whole sequence gives at once, and of those that a timestep gives.
GROUPS = {
    "rnn": ([1], [1]),
    "lstm": ([4], [4]),
    "gru": ([3], [2, 1]),  # h for r and z, r * h for n
    "mut1": ([2], [1, 1]),
    "mut2": ([2], [2, 1]),
    "mut3": ([3], [1, 1, 1]),
    "minimalrnn_file": ([1, 1], [1]),
}


def peak_bytes() -> int:
    """The most memory that this process has held resident."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def median_ms(call: Callable[[], Any], runs: int) -> float:
    call()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


# ------------------------------------------------------------------------------------------ the limit


def products(cell: str, shape: list[int], runs: int) -> Result:
    """Milliseconds of nothing but the matrix products of one training step, by part, with the threads of this process.

    Merged as well as they can be (all gates of one operand in one product, weight gradients over all timesteps at
    once), into arrays that are there already. Where a product can be had in two layouts, the faster one counts.
    """
    V, H, L, B, T = shape
    rng = np.random.default_rng(0)

    def array(*size: int) -> Any:
        return (rng.normal(size=size) * 0.1).astype("float32")

    def best(*calls: Callable[[], None]) -> float:
        return min(median_ms(call, runs) for call in calls)

    def weights(g: Any, out: Any) -> float:
        other = np.empty(out.shape[::-1], out.dtype)
        return best(lambda: np.matmul(x.T, g, out=out), lambda: np.matmul(g.T, x, out=other))

    at_once, by_step = GROUPS[cell]
    x, y = array(T * B, H), array(T * B, H)
    h, out = array(T, B, H), array(T, B, H)
    found: dict[str, float] = {"input": 0.0, "loop": 0.0, "loop back": 0.0, "input back": 0.0, "weights": 0.0}
    for gates in at_once:
        W, WT, to_W = array(H, gates * H), array(gates * H, H), array(H, gates * H)
        a, g = array(T * B, gates * H), array(T * B, gates * H)
        found["input"] += best(lambda a=a, W=W: np.matmul(x, W, out=a))  # type: ignore[misc]
        found["input back"] += best(
            lambda g=g, W=W: np.matmul(g, W.T, out=y),  # type: ignore[misc]
            lambda g=g, WT=WT: np.matmul(g, WT, out=y),  # type: ignore[misc]
        )
        found["weights"] += weights(g, to_W)
    for gates in by_step:
        U, UT, to_U = array(H, gates * H), array(gates * H, H), array(H, gates * H)
        b, gb = array(T, B, gates * H), array(T, B, gates * H)

        def there(b: Any = b, U: Any = U) -> None:
            for t in range(T):
                np.matmul(h[t], U, out=b[t])

        def back(gb: Any, UT: Any) -> None:
            for t in range(T):
                np.matmul(gb[t], UT, out=out[t])

        found["loop"] += best(there)
        found["loop back"] += best(lambda gb=gb, U=U: back(gb, U.T), lambda gb=gb, UT=UT: back(gb, UT))  # type: ignore[misc]
        found["weights"] += weights(gb.reshape(T * B, gates * H), to_U)
    R, to_R, logits = array(H, V), array(H, V), array(T * B, V)
    found = {part: ms * L for part, ms in found.items()}
    found["readout"] = (
        best(lambda: np.matmul(x, R, out=logits))
        + best(lambda: np.matmul(x.T, logits, out=to_R))
        + best(lambda: np.matmul(logits, R.T, out=y))
    )
    return {"parts": found}


# -------------------------------------------------------------------------------------------- our side


def _entry(cell: str) -> Any:
    import tinygrad_rnn as tr

    if cell == "minimalrnn_file":
        return tr.load_plugin_file(MINIMAL)[0]
    return tr.load_cell(cell)


def memory(cell: str, shape: list[int]) -> Result:
    """Most resident memory of a process that does five training steps."""
    import tinygrad_rnn as tr

    step = tr.training_step(_entry(cell), shape)
    for _ in range(5):
        step()
    return {"peak_bytes": peak_bytes()}


def watching(cell: str, shape: list[int], runs: int) -> Result:
    """Milliseconds of a training step without and with the gradient of every state at every timestep, in turn."""
    import tinygrad_rnn as tr

    V, H, L, B, T = shape
    model = tr.build_model(tr.ModelConfig(cell=cell, hidden=H, layers=L), V, _entry(cell))
    rng = np.random.default_rng(0)
    params = model.init(rng, np.float32)
    trained = [value for value in params.values() if value.requires_grad]
    x, y = rng.integers(0, V, (2, T, B))

    def step(watch: bool) -> float:
        began = time.perf_counter()
        forward = model.forward(params, x)
        loss = tr.ops.cross_entropy(forward.logits, y)
        states = [h for layer in forward.layers for steps in layer.states.values() for h in steps] if watch else []
        tr.grad(loss, [*trained, *states])
        return (time.perf_counter() - began) * 1e3

    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(runs + 1):
        for watch in times:
            ms = step(watch)
            if number:  # the first ones warm up
                times[watch].append(ms)
    return {"ms": statistics.median(times[False]), "watched_ms": statistics.median(times[True])}


def long(T: int, H: int) -> Result:
    """Memory and seconds of BPTT through T steps of one stream by recompute, which `scan` chooses by itself."""
    import tinygrad_rnn as tr

    cell = _entry("lstm").cls(H, H)
    rng = np.random.default_rng(0)
    params = tr.init_cell(cell, rng, np.float32)
    xs = rng.standard_normal((T, 1, H), np.float32)
    before = peak_bytes()
    began = time.perf_counter()
    done = tr.scan(cell, params, xs)
    tr.grad(tr.ops.mean(done.outputs * done.outputs), list(params.values()))
    return {"seconds": time.perf_counter() - began, "peak_bytes": peak_bytes(), "before_bytes": before}


# -------------------------------------------------------------------------------------------- sampling

WARM = 20
SYMBOLS = tuple(chr(ord("!") + i) for i in range(65))


def sample_ours(num: int, length: int, H: int, L: int) -> Result:
    """Characters per second of `generate`, from `num` streams side by side; a new LSTM of L layers of H units."""
    import tinygrad_rnn as tr

    model = tr.build_model(tr.ModelConfig(cell="lstm", hidden=H, layers=L), len(SYMBOLS), tr.load_cell("lstm"))
    params = model.init(np.random.default_rng(0), np.float32)
    vocabulary = tr.Vocabulary("chars", SYMBOLS)
    options = tr.SampleConfig(length=length + WARM, num=num)
    text = [""] * num
    began = 0.0
    for step, pieces in enumerate(tr.generate(model, params, vocabulary, options, np.random.default_rng(1))):
        if step == WARM:
            began = time.perf_counter()
            text = [""] * num
        text = [before + piece for before, piece in zip(text, pieces, strict=True)]
    return {"per_second": (sum(map(len, text)) - num) / (time.perf_counter() - began)}


def sample_torch(num: int, length: int, H: int, L: int, threads: int) -> Result:
    """The same in an eager loop of PyTorch: embedding, nn.LSTM, linear, softmax, multinomial, under no_grad."""
    try:
        import torch
    except ImportError:
        return {"error": f"PyTorch is not installed in the environment of {sys.executable}"}
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    V = len(SYMBOLS)
    embed, body, readout = torch.nn.Embedding(V, H), torch.nn.LSTM(H, H, L), torch.nn.Linear(H, V)
    symbols, state = torch.zeros((1, num), dtype=torch.long), None
    text = [""] * num
    began = 0.0
    with torch.no_grad():
        for step in range(length + WARM):
            out, state = body(embed(symbols), state)
            symbols = torch.multinomial(torch.softmax(readout(out[0]), -1), 1).view(1, num)
            text = [before + SYMBOLS[i] for before, i in zip(text, symbols[0].tolist(), strict=True)]
            if step == WARM:
                began = time.perf_counter()
                text = [""] * num
    return {"per_second": sum(map(len, text)) / (time.perf_counter() - began)}


PROBES: dict[str, Callable[..., Result]] = {
    probe.__name__: probe for probe in (products, memory, watching, long, sample_ours, sample_torch)
}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(PROBES[sys.argv[1]](**json.loads(sys.argv[2]))) + "\n")
