"""What the tape costs: microseconds per op, against PyTorch, autograd, MyGrad and NumPy by hand. A script, not a test.

    OPENBLAS_NUM_THREADS=1 python tests/benchmarks/engine_cost.py [--markdown] [--repeats N]

The chain is 200 ops on 4x4 float32: fifty times y * W, y + B, tanh(y), y * 0.9; then the gradients of y, W and B for a
seed of ones. W and B are used fifty times each, so that adding gradients up is part of the price. "By hand" is the same
chain and its gradient written out in NumPy: what no engine can go below without compiling. Then, for our engine alone,
backward through T slices of one sequence (linear when the ratio is about 4), and 5 000 unrolled steps of a tanh RNN.
Whatever is not installed is left out. All figures are medians of one run on one thread; rounds of the competitors
alternate, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_rnn import Tensor, grad, ops

OPS = 200
RNG = np.random.default_rng(0)
X, W, B = (RNG.normal(size=(4, 4)).astype("float32") * scale for scale in (1.0, 0.5, 1.0))
SEED = np.ones_like(X)

# A competitor: forward gives what backward needs; backward gives the gradients of X, W and B as NumPy arrays.
Competitor = tuple[Callable[[], Any], Callable[[Any], Any]]


def chain(y: Any, w: Any, b: Any, tanh: Callable[[Any], Any]) -> Any:
    for _ in range(OPS // 4):
        y = y * w
        y = y + b
        y = tanh(y)
        y = y * 0.9
    return y


def ours() -> Competitor:
    def forward() -> Any:
        leaves = [Tensor(a, requires_grad=True) for a in (X, W, B)]
        return chain(*leaves, ops.tanh), leaves

    return forward, lambda made: [g.data for g in grad(made[0], made[1], SEED)]


def by_hand() -> Competitor:
    def forward() -> Any:
        y, tape = X, []
        for _ in range(OPS // 4):
            before = y
            t = np.tanh(y * W + B)
            tape.append((before, t))
            y = t * 0.9
        return tape

    def backward(tape: Any) -> Any:
        g, to_w, to_b = SEED, np.zeros_like(W), np.zeros_like(B)
        for before, t in reversed(tape):
            g = g * 0.9
            g = g * (1.0 - t * t)
            to_b += g
            to_w += g * before
            g = g * W
        return g, to_w, to_b

    return forward, backward


def pytorch() -> Competitor:
    import torch

    torch.set_num_threads(1)
    seed = torch.tensor(SEED)

    def forward() -> Any:
        leaves = [torch.tensor(a, requires_grad=True) for a in (X, W, B)]
        return chain(*leaves, torch.tanh), leaves

    return forward, lambda made: [g.numpy() for g in torch.autograd.grad(made[0], made[1], seed)]


def hips_autograd() -> Competitor:
    import autograd.numpy as anp
    from autograd.builtins import tuple as boxed
    from autograd.core import make_vjp

    def forward() -> Any:
        return make_vjp(lambda leaves: chain(leaves[0], leaves[1], leaves[2], anp.tanh), boxed((X, W, B)))

    return forward, lambda made: made[0](SEED)


def my_grad() -> Competitor:
    import mygrad

    def forward() -> Any:
        leaves = [mygrad.tensor(a) for a in (X, W, B)]
        return chain(*leaves, mygrad.tanh), leaves

    def backward(made: Any) -> Any:
        made[0].backward(SEED)
        return [leaf.grad for leaf in made[1]]

    return forward, backward


COMPETITORS: dict[str, tuple[str, Callable[[], Competitor]]] = {
    "tinygrad_rnn": ("tinygrad_rnn", ours),
    "PyTorch": ("torch", pytorch),
    "autograd": ("autograd", hips_autograd),
    "MyGrad": ("mygrad", my_grad),
    "NumPy by hand": ("numpy", by_hand),
}


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def chain_costs(repeats: int) -> dict[str, tuple[float, float]]:
    """Microseconds per op, (forward, backward), by name."""
    here = {name: make() for name, (module, make) in COMPETITORS.items() if importlib.util.find_spec(module)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in here}
    reference = by_hand()
    expected = reference[1](reference[0]())
    for name, (forward, backward) in here.items():  # the same gradients, or the comparison is worth nothing
        for got, known in zip(backward(forward()), expected, strict=True):
            np.testing.assert_allclose(got, known, rtol=1e-3, atol=1e-5, err_msg=name)
    for _ in range(repeats):
        for name, (forward, backward) in here.items():
            there, made = seconds(forward)
            back, _ = seconds(lambda made=made, backward=backward: backward(made))  # type: ignore[misc]
            times[name].append((there, back))
    return {
        name: (statistics.median(t for t, _ in rows) * 1e6 / OPS, statistics.median(t for _, t in rows) * 1e6 / OPS)
        for name, rows in times.items()
    }


def slices_cost(steps: int) -> float:
    """Seconds backward through `steps` steps h = tanh(x[t] W + h U), x a leaf (T, 16, 32): each slice is used once."""
    rng = np.random.default_rng(0)
    x, w, u = (
        Tensor(rng.normal(size=shape).astype("float32") * 0.2, requires_grad=True)
        for shape in ((steps, 16, 32), (32, 32), (32, 32))
    )
    h = ops.tanh(x[0] @ w)
    for t in range(1, steps):
        h = ops.tanh(x[t] @ w + h @ u)
    loss = h.sum()
    return seconds(lambda: grad(loss, [x, w, u]))[0]


def rnn_cost(steps: int) -> tuple[float, float]:
    """Seconds (forward, backward) of `steps` unrolled steps h = tanh(x_t W + h U + b), B = 8, I = H = 16, float32."""
    rng = np.random.default_rng(0)
    x, h0 = rng.normal(size=(steps, 8, 16)).astype("float32"), np.zeros((8, 16), "float32")
    leaves = [
        Tensor(rng.normal(size=shape).astype("float32") * 0.1, requires_grad=True)
        for shape in ((16, 16), (16, 16), (16,))
    ]

    def forward() -> Any:
        h = Tensor(h0)
        for t in range(steps):
            h = ops.tanh(Tensor(x[t]) @ leaves[0] + h @ leaves[1] + leaves[2])
        return h.sum()

    there, loss = seconds(forward)
    return there, seconds(lambda: grad(loss, leaves))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--markdown", action="store_true", help="print a table for docs/performance.md")
    parser.add_argument("--repeats", type=int, default=200, help="rounds of the chain (default 200)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # a competitor's deprecations are not our figures
    rows = chain_costs(options.repeats)
    beat = sum(rows["PyTorch"]) if "PyTorch" in rows else None
    lines = []
    if options.markdown:
        lines += ["| engine | forward | backward | together, µs per op | against PyTorch |", "|---|--:|--:|--:|--:|"]
    for name, (there, back) in rows.items():
        ratio = f"{(there + back) / beat:.2f}" if beat else "-"
        cells = [name, f"{there:.2f}", f"{back:.2f}", f"{there + back:.2f}", ratio]
        lines.append(
            f"| {' | '.join(cells)} |"
            if options.markdown
            else "{:14} forward {:>5}  backward {:>5}  together {:>5} us per op, {} of PyTorch".format(*cells)
        )
    rounds = [(slices_cost(256), slices_cost(1024)) for _ in range(21)]
    short, long = (statistics.median(column) for column in zip(*rounds, strict=True))
    there, back = rnn_cost(5_000)
    lines += [
        "",
        f"backward through slices: T = 256 {short * 1e3:.2f} ms, T = 1024 {long * 1e3:.2f} ms, ratio "
        f"{long / short:.2f}",
        f"5000 unrolled tanh RNN steps: forward {there * 1e3:.0f} ms, backward {back * 1e3:.0f} ms",
        "",
    ]
    sys.stdout.write("\n".join(lines))


if __name__ == "__main__":
    main()
