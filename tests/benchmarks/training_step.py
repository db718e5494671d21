"""One training step (forward, mean cross-entropy, backward) of a character model: ours, and PyTorch's own modules.

    python tests/benchmarks/training_step.py [--cell lstm ...] [--runs N]

Embedding (V, H), L recurrent layers of H units, linear (H, V), float32; nobody updates the parameters. Ours is the
eager `unroll`, one NumPy call per op. Each side runs in a process of its own, one right after the other; medians in
milliseconds, and the ratio PyTorch / ours: below 1 means that we are slower. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from tinygrad_rnn import ModelConfig, build_model, grad, load_cell, ops

SHAPES = ["65,100,1,1,25", "65,128,2,50,50", "65,512,1,64,100"]  # V, H, L, B, T


def ours(cell: str, V: int, H: int, L: int, B: int, T: int) -> Callable[[], object]:
    model = build_model(ModelConfig(cell=cell, hidden=H, layers=L), V, load_cell(cell))
    rng = np.random.default_rng(0)
    params = model.init(rng, np.float32)
    trained = list(params.values())
    x, y = rng.integers(0, V, (2, T, B))
    return lambda: grad(ops.cross_entropy(model.forward(params, x).logits, y), trained)


def torch_step(cell: str, V: int, H: int, L: int, B: int, T: int) -> Callable[[], object]:
    import torch

    torch.manual_seed(0)
    embed, readout = torch.nn.Embedding(V, H), torch.nn.Linear(H, V)
    body = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[cell](H, H, L)
    trained = [*embed.parameters(), *body.parameters(), *readout.parameters()]
    x, y = torch.randint(0, V, (2, T, B))

    def step() -> object:
        logits = readout(body(embed(x))[0])
        return torch.autograd.grad(torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()), trained)

    return step


def milliseconds(step: Callable[[], object], runs: int) -> float:
    """The median time of a step; the first one warms up."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:])


def side(make: str, cell: str, shape: str, runs: int) -> float:
    """The time of one side, in a process of its own: two thread pools in one process slow each other down."""
    command = [sys.executable, __file__, "--side", make, "--cell", cell, "--shape", shape, "--runs", str(runs)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", nargs="+", default=["rnn", "gru", "lstm"], choices=["rnn", "gru", "lstm"])
    parser.add_argument("--shape", nargs="+", default=SHAPES, help="V,H,L,B,T")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--side", choices=["ours", "torch"], help="time one side and print milliseconds")
    arguments = parser.parse_args()
    if arguments.side:
        make = {"ours": ours, "torch": torch_step}[arguments.side]
        step = make(arguments.cell[0], *map(int, arguments.shape[0].split(",")))
        sys.stdout.write(f"{milliseconds(step, arguments.runs)}\n")
        return
    write = sys.stdout.write
    write("| cell | V, H, L, B, T | ours, ms | PyTorch, ms | PyTorch / ours |\n|---|---|--:|--:|--:|\n")
    for cell in arguments.cell:
        for shape in arguments.shape:
            mine, theirs = (side(make, cell, shape, arguments.runs) for make in ("ours", "torch"))
            write(f"| {cell} | {shape} | {mine:.2f} | {theirs:.2f} | {theirs / mine:.2f} |\n")


if __name__ == "__main__":
    main()
