"""The whole `train` command beside the same loop in PyTorch, on a quiet machine and beside busy processes.

    python tests/benchmarks/train_command.py TEXT --torch-python PATH --write

Ours is `tinygrad-rnn train`, with its records, progress, checkpoints and norms; the peer is `torch_loop.py`: the same
model, text, batches, Adam and clipping, a record a step, a checkpoint as often, and no norm of the parameters. Both
are stopped by SIGINT after ``--seconds``; a speed is that of the steps after the first second, by each side's own
records, so start-up counts on neither side. Sides take turns, each in a new process; medians of the rounds. A busy
process is a Python loop in a session of its own, as if started from another terminal. Let nothing else run.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- train_command: begin -->", "<!-- train_command: end -->"
SMALL, MIDDLE = (100, 1, 1, 25), (128, 2, 50, 50)  # H, L, B, T
CASES = [(cell, SMALL) for cell in ("rnn", "lstm", "gru")] + [(cell, MIDDLE) for cell in ("lstm", "gru", "mut1")]
GOALS = {("lstm", SMALL): 1.3, ("lstm", MIDDLE): 1.2}  # ours / PyTorch, quiet
GOAL_ELSE = 2.0
SHARE = {1: 0.45, 2: 0.3}  # of our quiet speed, beside so many busy processes
WARM_S = 1.0


def ours(cell: str, shape: tuple[int, ...], text: Path, out: Path) -> list[str]:
    H, L, B, T = shape
    sizes = ["--hidden", str(H), "--layers", str(L), "--batch", str(B), "--seq-len", str(T)]
    length = ["--steps", "1000000", "--eval-every", "0", "--save-every", "200"]
    command = [sys.executable, "-P", "-m", "tinygrad_rnn_cli", "train", str(text), "--cell", cell, "--out", str(out)]
    return [*command, *sizes, *length]


def torch(python: str, cell: str, shape: tuple[int, ...], text: Path, out: Path) -> list[str]:
    return [python, str(HERE / "torch_loop.py"), cell, ",".join(map(str, shape)), str(text), str(out)]


def speed(command: list[str], out: Path, seconds: float, symbols: int) -> float:
    """Symbols a second of a process that trains on so many a step, from the records it leaves in `out`."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        records = out / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while process.poll() is None and not (records.exists() and b'"loss"' in records.read_bytes()[:4096]):
            if time.monotonic() > deadline:
                process.kill()
            time.sleep(0.1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds + WARM_S)
        process.send_signal(signal.SIGINT)
        if process.wait(120) not in (0, 128 + signal.SIGINT):
            said.seek(0)
            sys.exit(f"{' '.join(command)}: {said.read().decode(errors='replace')}")
    steps = [row for row in map(json.loads, records.read_text().splitlines()) if "symbols_per_s" in row]
    elapsed = [row["step"] * symbols / row["symbols_per_s"] for row in steps]
    warm = next((i for i, value in enumerate(elapsed) if value >= WARM_S), 0)
    if warm >= len(steps) - 1:  # a side that does less than a step a second
        warm = 0
    return (steps[-1]["step"] - steps[warm]["step"]) * symbols / (elapsed[-1] - elapsed[warm])


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Inside, `count` processes keep a core busy each."""
    started = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) for _ in range(count)
    ]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for cell, shape in CASES:
        if options.cell and cell not in options.cell:
            continue
        row: dict[str, Any] = {"cell": cell, "shape": shape}
        for beside in options.busy:
            found: dict[str, list[float]] = {"ours": [], "torch": []}
            for _ in range(options.rounds):
                for side, speeds in found.items():
                    with tempfile.TemporaryDirectory() as folder, busy(beside):
                        out = Path(folder) / "run"
                        command = (
                            ours(cell, shape, options.text, out)
                            if side == "ours"
                            else torch(options.torch_python, cell, shape, options.text, out)
                        )
                        speeds.append(speed(command, out, options.seconds, shape[2] * shape[3]))
            row[str(beside)] = found
            sys.stderr.write(f"{datetime.datetime.now():%H:%M:%S} {cell} {shape} {beside} busy: {found}\n")
        rows.append(row)
    return rows


def spread(speeds: list[float]) -> str:
    low, middle, high = min(speeds), statistics.median(speeds), max(speeds)
    return f"{middle:,.0f} ({low:,.0f} to {high:,.0f})".replace(",", " ")


def table(options: argparse.Namespace, rows: list[dict[str, Any]]) -> str:
    versions = subprocess.run(
        [options.torch_python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True
    ).stdout.strip()
    lines = [
        f"{datetime.date.today()}, {len(os.sched_getaffinity(0))} cores of {options.machine}; Python "
        f"{platform.python_version()}, NumPy {metadata.version('numpy')}, llvmlite {metadata.version('llvmlite')}, "
        f"PyTorch {versions}; medians of {options.rounds} rounds of {options.seconds:g} s, least and most in brackets.",
        "",
        "| cell | H,L,B,T | busy processes | ours, characters/s | PyTorch, characters/s | ours / PyTorch | goal ≥ | "
        "share of our quiet speed | goal ≥ |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    missed = 0
    for row in rows:
        quiet = statistics.median(row["0"]["ours"]) if "0" in row else None
        for beside in options.busy:
            found = row[str(beside)]
            mine, theirs = (statistics.median(found[side]) for side in ("ours", "torch"))
            goal = GOALS.get((row["cell"], tuple(row["shape"])), GOAL_ELSE) if beside == 0 else None
            ratio, share = mine / theirs, None if quiet is None or beside == 0 else mine / quiet
            told = f"{ratio:.2f}"
            if goal is not None and ratio < goal:
                told, missed = f"**{told}**", missed + 1
            part = "" if share is None else f"{share:.2f}"
            if share is not None and share < SHARE.get(beside, 0):
                part, missed = f"**{part}**", missed + 1
            shape = ",".join(map(str, row["shape"]))
            lines.append(
                f"| {row['cell']} | {shape} | {beside} | {spread(found['ours'])} | {spread(found['torch'])} | {told} | "
                f"{'' if goal is None else goal} | {part} | {SHARE.get(beside, '')} |"
            )
    return "\n".join([*lines, "", f"Goals missed (bold): {missed}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter that has PyTorch")
    parser.add_argument("--cell", nargs="*")
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="its name, for the page")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    options = parser.parse_args()
    text = table(options, measure(options))
    sys.stdout.write(text + "\n")
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        head, _, rest = page.partition(BEGIN)
        _, _, tail = rest.partition(END)
        PAGE.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
