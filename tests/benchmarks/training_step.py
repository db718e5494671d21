"""One training step and what belongs to it, ours beside PyTorch and JAX: the tables of docs/performance.md.

    python tests/benchmarks/training_step.py --torch-python PATH --jax-python PATH --results FILE.json --write

Every measurement runs in a new process; the sides take turns, so that a machine that is busy for a while slows all of
them alike; medians of the rounds' medians. Where products are small a peer runs with one thread, too, and its better
time counts. Let nothing else run: threads that wait for each other suffer most. Sections (``--only``):

    step      forward, loss, backward of a character model: ours, the peers, and its matrix products alone
    first     the first step of a process, with an empty cache of compiled code and with a filled one
    memory    most resident memory of five steps
    sampling  characters per second of an LSTM
    watching  what the gradients of every state at every timestep cost on top
    linear    time against the number of timesteps
    long      backpropagation through 100 000 timesteps

Prints Markdown, losses as plainly as wins. With ``--results`` a section is stored as soon as it is measured, and is not
measured again unless ``--only`` names it; then the rows of the cells and shapes asked for take the place of older ones.
minimalRNN stands for a user's own cell: the plugin file minimal_rnn.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import textwrap
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from minimal_rnn_peers import load_peers

peers: Any = load_peers()

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- training_step: begin -->", "<!-- training_step: end -->"
CELLS = ["rnn", "lstm", "gru", "mut1", "mut2", "mut3", "minimalrnn_file"]
SMALL, MIDDLE, LARGE = (65, 100, 1, 1, 25), (65, 128, 2, 50, 50), (65, 512, 1, 64, 100)
WIDTH = 148  # of prose on the page
TINY = (5, 8, 2, 3, 6)

# The goals: how many times faster than the best peer, at most how many times the products alone, and so on.
FASTER = {"lstm": 1.0}
FASTER_ELSE = 1.5
LIMIT = {MIDDLE: 1.5, LARGE: 1.25}
COLD_S, CACHED_S = 3.0, 0.3
SAMPLING = 2.0
WATCHING = 0.05
LINEAR = 0.1  # deviation of the time per timestep
LONG_BYTES = 1e9

Row = dict[str, Any]


class Bench:
    """What was asked for on the command line, and how to start each side."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.threads: int = options.threads or peers.cores()
        self.shapes: list[tuple[int, ...]] = options.shape or ([TINY] if options.tiny else [SMALL, MIDDLE, LARGE])
        self.middle = TINY if options.tiny else MIDDLE
        self.rounds: int = options.rounds
        asked = {"OPENBLAS_NUM_THREADS": str(options.threads)} if options.threads else {}
        # The command line may set what OpenBLAS reads; a probe, which is no command, gets the same.
        doctor = peers.measure([sys.executable, "-P", "-m", "tinygrad_rnn_cli", "doctor", "--json", "-q"], asked)
        if "error" in doctor:
            sys.exit(f"tinygrad-rnn doctor: {doctor['error']}")
        self.blas: Row = doctor["blas"]
        core = {"OPENBLAS_CORETYPE": self.blas["coretype"]} if self.blas["coretype"] else {}
        self.environment = {**asked, **core}
        self.versions: dict[str, str] = {}

    def ours(self, cell: str, shape: tuple[int, ...], runs: int, **environment: str) -> Row:
        words = ["cells", "bench", cell, "--shape", size(shape), "--runs", str(runs), "--here", "--json", "-q"]
        if cell == "minimalrnn_file":
            words += ["--plugin", str(HERE / "minimal_rnn.py")]
        done = peers.measure(
            [sys.executable, "-P", "-m", "tinygrad_rnn_cli", *words], {**self.environment, **environment}
        )
        return done if "error" in done else dict(done["rows"][0])

    def peer(self, peer: str, cell: str, shape: tuple[int, ...], runs: int, threads: int | None = None) -> Row:
        python = self.options.jax_python if peer == "jax" else self.options.torch_python
        script = HERE / "minimal_rnn_peers.py" if cell == "minimalrnn_file" else peers.__file__
        command = peers.peer_command(
            peer, cell, shape, runs=runs, threads=threads or self.threads, python=python, script=str(script)
        )
        row = dict(peers.measure(command))
        if "version" in row:
            self.versions[peers.TITLES["jax" if peer == "jax" else "torch"]] = row["version"]
        return row

    def probe(self, name: str, python: str = sys.executable, threads: int | None = None, **arguments: Any) -> Row:
        environment = {**self.environment, **({"OPENBLAS_NUM_THREADS": str(threads)} if threads else {})}
        command = [python, "-P", str(HERE / "probes.py"), name, json.dumps(arguments)]
        return dict(peers.measure(command, environment))

    def rivals(self) -> list[str]:
        return ["torch", *(["torch-compile"] if self.options.compile else []), "jax"]


def size(shape: Any) -> str:
    return ",".join(map(str, shape))


def tell(text: str) -> None:
    sys.stderr.write(f"{datetime.datetime.now():%H:%M:%S} {text}\n")


def in_turn(sides: dict[str, Callable[[], Row]], rounds: int) -> dict[str, list[Row]]:
    """Every side once, then every side again; the rows as they came. A side that fails is not tried again."""
    found: dict[str, list[Row]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            if not found[name] or "error" not in found[name][-1]:
                found[name].append(side())
    return found


def middle(rows: list[Row], key: str) -> float | None:
    """The median over the rounds; None for a side that failed or was left out."""
    return None if not rows or any(row.get(key) is None for row in rows) else statistics.median(r[key] for r in rows)


def failures(found: dict[str, list[Row]]) -> list[str]:
    return [f"{name}: {rows[-1]['error']}" for name, rows in found.items() if rows and "error" in rows[-1]]


# --------------------------------------------------------------------------------------------- measuring


def measure_step(bench: Bench) -> list[Row]:
    rows, runs = [], bench.options.runs
    for cell in bench.options.cell:
        for shape in bench.shapes:
            tell(f"step {cell} {size(shape)}")
            sides: dict[str, Callable[[], Row]] = {"ours": lambda c=cell, s=shape: bench.ours(c, s, runs)}  # type: ignore[misc]
            for peer in bench.rivals():
                for threads in thread_counts(bench, shape) if peer != "torch-compile" else ():
                    sides[f"{peer} {threads}"] = lambda p=peer, c=cell, s=shape, n=threads: bench.peer(  # type: ignore[misc]
                        p, c, s, runs, n
                    )
            for threads in sorted({1, bench.threads}):
                sides[f"products {threads}"] = lambda n=threads, c=cell, s=shape: bench.probe(  # type: ignore[misc]
                    "products", threads=n, cell=c, shape=s, runs=min(runs, 5)
                )
            found = in_turn(sides, bench.rounds)
            if bench.options.compile:  # once: it compiles for minutes
                tell(f"step {cell} {size(shape)}: torch.compile")
                found[f"torch-compile {bench.threads}"] = [bench.peer("torch-compile", cell, shape, runs)]
            row = {
                "cell": cell, "shape": shape, "executor": found["ours"][-1].get("executor"),
                "ms": {name: least_ms(found, name) for name in ["ours", *bench.rivals()]},
                "products": least_products([rows for name, rows in found.items() if name.startswith("products")]),
                "errors": failures(found),
            }  # fmt: skip
            rows.append(row)
    return rows


def thread_counts(bench: Bench, shape: tuple[int, ...]) -> list[int]:
    """How many threads a peer gets: all, and one as well where its products are small."""
    _, H, _, B, _ = shape
    return sorted({1, bench.threads}) if H * B < 20_000 else [bench.threads]


def least_ms(found: dict[str, list[Row]], side: str) -> float | None:
    """The milliseconds of a side with the number of threads that is best for it."""
    times = [middle(rows, "ms") for name, rows in found.items() if name.partition(" ")[0] == side]
    return min((time for time in times if time is not None), default=None)


def least_products(sides: list[list[Row]]) -> float | None:
    """Milliseconds of all products, each part with the number of threads that is best for it."""
    if any("parts" not in row for rows in sides for row in rows):
        return None
    parts = sides[0][0]["parts"]
    return sum(min(statistics.median(row["parts"][part] for row in rows) for rows in sides) for part in parts)


def measure_first(bench: Bench) -> list[Row]:
    rows = []
    for cell in bench.options.cell:
        for shape in bench.shapes:
            tell(f"first {cell} {size(shape)}")
            found: dict[str, list[Row]] = {"cold": [], "cached": []}
            for _ in range(bench.rounds):
                with tempfile.TemporaryDirectory() as folder:
                    for state in found:
                        found[state].append(bench.ours(cell, shape, 1, TINYGRAD_RNN_CACHE=folder))
            cold, cached = (middle(found[state], "first_s") for state in ("cold", "cached"))
            rows.append({"cell": cell, "shape": shape, "cold": cold, "cached": cached, "errors": failures(found)})
    return rows


def measure_memory(bench: Bench) -> list[Row]:
    rows = []
    for cell in bench.options.cell:
        tell(f"memory {cell}")
        found = in_turn(
            {
                "ours": lambda c=cell: bench.probe("memory", cell=c, shape=bench.middle),  # type: ignore[misc]
                "torch": lambda c=cell: bench.peer("torch", c, bench.middle, 3),  # type: ignore[misc]
            },
            1,
        )
        peak = {name: middle(side, "peak_bytes") for name, side in found.items()}
        rows.append({"cell": cell, "shape": bench.middle, "peak": peak, "errors": failures(found)})
    return rows


def measure_sampling(bench: Bench) -> list[Row]:
    rows = []
    _, H, L, _, _ = bench.middle
    for num, length in ((1, 2000), (64, 200)):
        tell(f"sampling {num}")
        same = {"num": num, "length": 10 if bench.options.tiny else length, "H": H, "L": L}
        found = in_turn(
            {
                "ours": lambda same=same: bench.probe("sample_ours", **same),  # type: ignore[misc]
                "torch": lambda same=same: peers.measure(  # type: ignore[misc]
                    [bench.options.torch_python, "-P", str(HERE / "probes.py"), "sample_torch",
                     json.dumps({**same, "threads": bench.threads})]
                ),
            },
            bench.rounds,
        )  # fmt: skip
        speed = {name: middle(side, "per_second") for name, side in found.items()}
        rows.append({"num": num, "H": H, "L": L, "per_second": speed, "errors": failures(found)})
    return rows


def measure_watching(bench: Bench) -> list[Row]:
    rows = []
    for cell in bench.options.cell:
        tell(f"watching {cell}")
        side = {"ours": lambda c=cell: bench.probe("watching", cell=c, shape=bench.middle, runs=bench.options.runs)}  # type: ignore[misc]
        found = in_turn(side, bench.rounds)  # type: ignore[arg-type]
        plain, watched = (middle(found["ours"], key) for key in ("ms", "watched_ms"))
        rows.append(
            {"cell": cell, "shape": bench.middle, "ms": plain, "watched_ms": watched, "errors": failures(found)}
        )
    return rows


def measure_linear(bench: Bench) -> list[Row]:
    rows = []
    V, H, L, B, T = bench.middle
    for cell in bench.options.cell:
        tell(f"linear {cell}")
        lengths = [T, 2 * T, 4 * T, 8 * T]
        found = in_turn(
            {
                str(steps): lambda c=cell, s=(V, H, L, B, steps): bench.ours(c, s, bench.options.runs)  # type: ignore[misc]
                for steps in lengths
            },
            bench.rounds,
        )
        times = [middle(found[str(steps)], "ms") for steps in lengths]
        rows.append({"cell": cell, "shape": [V, H, L, B], "steps": lengths, "ms": times, "errors": failures(found)})
    return rows


def measure_long(bench: Bench) -> list[Row]:
    T, H = (1000, 8) if bench.options.tiny else (100_000, 128)
    tell(f"long {T}")
    found = bench.probe("long", T=T, H=H)
    return [{"T": T, "H": H, **found, "errors": failures({"ours": [found]})}]


# ------------------------------------------------------------------------------------------------ tables


def markdown(headers: list[str], rows: list[list[str]], left: int) -> list[str]:
    """A table whose first `left` columns are text."""
    rule = ["---"] * left + ["--:"] * (len(headers) - left)
    return ["| " + " | ".join(line) + " |" for line in [headers, rule, *rows]]


def ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


class Goals:
    """Which goals were met; a number that misses its goal is printed bold."""

    def __init__(self) -> None:
        self.met = 0
        self.missed: list[str] = []
        self.open: list[str] = []

    def check(self, what: str, shown: str, value: float | None, bound: float, *, least: bool, goal: str) -> str:
        """`shown`, bold where `value` is not at least (or at most) `bound`."""
        if value is None:
            self.open.append(what)
            return "-"
        if value >= bound if least else value <= bound:
            self.met += 1
            return shown
        self.missed.append(f"{what}: {shown}, goal {goal}")
        return f"**{shown}**"


def show_step(rows: list[Row], goals: Goals) -> list[str]:
    rivals = [name for name in rows[0]["ms"] if name != "ours"]
    lines = []
    for row in rows:
        shape, times = tuple(row["shape"]), row["ms"]
        what = f"{row['cell']} {size(shape)}"
        known = {name: times[name] for name in rivals if times.get(name) is not None}
        best = min(known, key=lambda name: known[name]) if known else None
        ratio = known[best] / times["ours"] if best and times["ours"] else None
        bound = FASTER.get(row["cell"], FASTER_ELSE)
        faster = goals.check(
            f"{what}, best peer / ours", f"{ratio or 0:.2f}", ratio, bound, least=True, goal=f"at least {bound}"
        )
        away = times["ours"] / row["products"] if times["ours"] and row["products"] else None
        distance = "-" if away is None else f"{away:.2f}"
        if shape in LIMIT:
            distance = goals.check(
                f"{what}, ours / products", distance, away, LIMIT[shape], least=False, goal=f"at most {LIMIT[shape]}"
            )
        lines.append(
            [
                row["cell"],
                size(shape),
                row["executor"] or "-",
                ms(times["ours"]),
                *(ms(times.get(name)) for name in rivals),
                *([f"{peers.TITLES[best]} {faster}", f"{bound}"] if best else ["-", f"{bound}"]),
                ms(row["products"]),
                distance,
                str(LIMIT.get(shape, "-")),
            ]
        )
    headers = [
        "cell", "V,H,L,B,T", "executor", "ours, ms", *(peers.TITLES[name] for name in rivals), "best peer / ours",
        "goal ≥", "products alone", "ours / products", "goal ≤",
    ]  # fmt: skip
    slower = [
        f"{row['cell']} {size(row['shape'])}"
        for row in rows
        if row["ms"]["ours"] and any(row["ms"][name] and row["ms"][name] < row["ms"]["ours"] for name in rivals)
    ]
    return [
        "### A step, in milliseconds", "", *markdown(headers, lines, 3), "",
        f"Slower than the best peer at {len(slower)} of {len(rows)}" + (f": {'; '.join(slower)}." if slower else "."),
    ]  # fmt: skip


def show_first(rows: list[Row], goals: Goals) -> list[str]:
    lines = []
    for row in rows:
        what = f"{row['cell']} {size(row['shape'])}, first step"
        cold, cached = row["cold"], row["cached"]
        lines.append([
            row["cell"], size(row["shape"]),
            *(
                goals.check(f"{what} {how}, s", f"{s or 0:.2f}", s, bound, least=False, goal=f"at most {bound:g}")
                for how, s, bound in (("cold", cold, COLD_S), ("cached", cached, CACHED_S))
            ),
        ])  # fmt: skip
    headers = ["cell", "V,H,L,B,T", f"empty cache, s (goal ≤ {COLD_S:g})", f"from the cache, s (goal ≤ {CACHED_S:g})"]
    return ["### The first step of a process", "", *markdown(headers, lines, 2)]


def show_memory(rows: list[Row], goals: Goals) -> list[str]:
    lines = []
    for row in rows:
        ours, theirs = row["peak"]["ours"], row["peak"]["torch"]
        ratio = ours / theirs if ours and theirs else None
        shown = goals.check(
            f"{row['cell']} {size(row['shape'])}, memory ours / PyTorch",
            f"{ratio or 0:.2f}", ratio, 1.0, least=False, goal="at most 1",
        )  # fmt: skip
        lines.append([row["cell"], mebibytes(ours), mebibytes(theirs), shown])
    headers = ["cell", "ours, MiB", "PyTorch, MiB", "ours / PyTorch (goal ≤ 1)"]
    title = f"### Most resident memory, five steps at {size(rows[0]['shape'])}"
    return [title, "", *markdown(headers, lines, 1)]


def mebibytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 2**20:.0f}"


def show_sampling(rows: list[Row], goals: Goals) -> list[str]:
    lines = []
    for row in rows:
        ours, theirs = row["per_second"]["ours"], row["per_second"]["torch"]
        ratio = ours / theirs if ours and theirs else None
        shown = goals.check(
            f"sampling at batch {row['num']}, ours / PyTorch",
            f"{ratio or 0:.2f}", ratio, SAMPLING, least=True, goal=f"at least {SAMPLING:g}",
        )  # fmt: skip
        lines.append(
            [str(row["num"]), *("-" if v is None else f"{v:,.0f}".replace(",", " ") for v in (ours, theirs)), shown]
        )
    headers = ["batch", "ours, characters/s", "PyTorch, characters/s", f"ours / PyTorch (goal ≥ {SAMPLING:g})"]
    title = f"### Sampling, an LSTM of {rows[0]['L']} layers of {rows[0]['H']} units, against an eager loop"
    return [title, "", *markdown(headers, lines, 0)]


def show_watching(rows: list[Row], goals: Goals) -> list[str]:
    lines = []
    for row in rows:
        cost = row["watched_ms"] / row["ms"] - 1 if row["ms"] and row["watched_ms"] else None
        shown = goals.check(
            f"{row['cell']}, cost of watching", f"{(cost or 0) * 100:+.1f} %", cost, WATCHING, least=False,
            goal=f"at most {WATCHING:.0%}",
        )  # fmt: skip
        lines.append([row["cell"], ms(row["ms"]), ms(row["watched_ms"]), shown])
    headers = ["cell", "a step, ms", "with dL/dh of every timestep, ms", f"cost (goal ≤ {WATCHING * 100:g} %)"]
    return [f"### Watching gradients, at {size(rows[0]['shape'])}", "", *markdown(headers, lines, 1)]


def show_linear(rows: list[Row], goals: Goals) -> list[str]:
    lines = []
    for row in rows:
        times, steps = row["ms"], row["steps"]
        off = None
        if all(times):
            off = (times[-1] / steps[-1]) / (times[0] / steps[0]) - 1
        shown = goals.check(
            f"{row['cell']}, time per timestep at T = {steps[-1]} against {steps[0]}", f"{(off or 0) * 100:+.0f} %",
            off, LINEAR, least=False, goal=f"at most {LINEAR:+.0%}",
        )  # fmt: skip
        lines.append([row["cell"], *map(ms, times), shown])
    steps = rows[0]["steps"]
    headers = ["cell", *(f"T = {T}, ms" for T in steps), f"per timestep, last against first (goal ≤ {LINEAR:+.0%})"]
    return [f"### Time against T, V,H,L,B = {size(rows[0]['shape'])}", "", *markdown(headers, lines, 1)]


def show_long(rows: list[Row], goals: Goals) -> list[str]:
    (row,) = rows
    title = f"### Backpropagation through {row['T']} timesteps, lstm, H = {row['H']}, B = 1"
    if row["errors"]:
        goals.open.append("long backpropagation")
        return [title, "", f"Not measured: {row.get('left_out') or row['errors'][0]}."]
    shown = goals.check(
        f"T = {row['T']}, most resident memory", f"{row['peak_bytes'] / 1e6:.0f} MB", row["peak_bytes"], LONG_BYTES,
        least=False, goal=f"at most {LONG_BYTES / 1e6:.0f} MB",
    )  # fmt: skip
    return [
        title, "",
        f"{shown} at most (goal ≤ {LONG_BYTES / 1e6:.0f} MB), of which {row['before_bytes'] / 1e6:.0f} MB are there "
        f"before it starts; {row['seconds']:.1f} s.",
    ]  # fmt: skip


SECTIONS: dict[str, tuple[Callable[[Bench], list[Row]], Callable[[list[Row], Goals], list[str]]]] = {
    "step": (measure_step, show_step),
    "first": (measure_first, show_first),
    "memory": (measure_memory, show_memory),
    "sampling": (measure_sampling, show_sampling),
    "watching": (measure_watching, show_watching),
    "linear": (measure_linear, show_linear),
    "long": (measure_long, show_long),
}


def page(results: Row) -> str:
    """Everything between the markers."""
    goals, body = Goals(), []
    for name, (_, show) in SECTIONS.items():
        if name in results["sections"]:
            rows = results["sections"][name]
            body += ["", *show(rows, goals)]
            errors = dict.fromkeys(error for row in rows for error in row["errors"])
            body += ["", *(f"- not measured: {error}" for error in errors)] if errors else []
    days = " and ".join(sorted({row["date"] for rows in results["sections"].values() for row in rows}))
    machine = results["machine"]
    top = [
        f"{days}, {machine['cores']} cores of an {machine['processor']}; {', '.join(machine['versions'])}; "
        f""
        f"{machine['threads']} threads at most; medians of {machine['rounds']} rounds of {machine['runs']} steps.",
        "",
        f"Goals met: {goals.met}; missed (bold in the tables): {len(goals.missed)}"
        + (f"; not measured: {len(goals.open)}" if goals.open else "")
        + (":" if goals.missed else "."),
        "",
        *(f"- {line}" for line in goals.missed),
    ]
    return "\n".join(top).rstrip() + "\n" + "\n".join(body)


def merged(old: list[Row], new: list[Row]) -> list[Row]:
    """The rows of a section with new ones in place of old ones of the same cell and shape."""

    def key(row: Row) -> str:
        return json.dumps([row.get(name) for name in ("cell", "shape", "num")])

    rows = {key(row): row for row in [*old, *new]}
    return list(rows.values())


def describe(bench: Bench, before: Row) -> Row:
    """The machine and what runs on it."""

    def installed(name: str) -> str:
        try:
            return f" {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            return " not installed"

    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2] for line in (info.read_text() if info.exists() else "").splitlines()
             if line.startswith("model name")]  # fmt: skip
    blas = f"{bench.blas['name']} {bench.blas['version']} with {bench.blas['kernel']} kernels"
    ours = [f"Python {platform.python_version()}", f"NumPy{installed('numpy')} ({blas})"]
    ours += [f"llvmlite{installed('llvmlite')}"]
    seen = dict(text.rsplit(" ", 1) for text in before.get("versions", []) if text.startswith(("PyTorch", "JAX")))
    theirs = [f"{name} {version}" for name, version in {**seen, **bench.versions}.items()]
    return {
        "processor": names[0].strip() if names else platform.machine(), "cores": peers.cores(),
        "versions": [*ours, *theirs], "threads": bench.threads, "rounds": bench.rounds, "runs": bench.options.runs,
    }  # fmt: skip


def write(path: Path, text: str) -> None:
    """Put `text` between the markers of the page."""
    old = path.read_text(encoding="utf-8")
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        sys.exit(f"{path}: expected the lines {BEGIN} and {END}, once each")
    lines = [line if line.startswith("|") else textwrap.fill(line, WIDTH) for line in text.splitlines()]
    new = old[: old.index(BEGIN)] + "\n".join([BEGIN, *lines, ""]) + old[old.index(END) :]
    path.write_text(new, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", nargs="+", default=CELLS, choices=CELLS)
    parser.add_argument("--shape", nargs="+", type=peers.parse_shape, metavar="V,H,L,B,T")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="measure these sections")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every side (default 3)")
    parser.add_argument("--runs", type=int, default=10, help="timed steps of a turn (default 10)")
    parser.add_argument("--threads", type=int, help="threads of every side (default: one per processor)")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes minutes per row")
    parser.add_argument("--tiny", action="store_true", help="shapes that take no time, to try this script")
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter that has PyTorch")
    parser.add_argument("--jax-python", default=sys.executable, help="an interpreter that has JAX")
    parser.add_argument("--results", type=Path, metavar="FILE.json", help="store what is measured, and take up from it")
    parser.add_argument("--write", action="store_true", help="replace the text between the markers of the page")
    parser.add_argument("--page", type=Path, default=PAGE, help="docs/performance.md by default")
    options = parser.parse_args()
    if options.rounds < 1 or options.runs < 1 or (options.threads is not None and options.threads < 1):
        parser.error("--rounds, --runs and --threads: expected at least 1")
    busy = os.getloadavg()[0]
    if busy > 0.5:
        tell(f"warning: other programs are running (load {busy:.1f}); let them end first")
    bench = Bench(options)
    results: Row = {"sections": {}, "machine": {}}
    if options.results and options.results.exists():
        results = json.loads(options.results.read_text(encoding="utf-8"))
    for name in SECTIONS:
        if name not in options.only if options.only else name in results["sections"]:
            continue
        date = datetime.date.today().isoformat()
        new = [{**row, "date": date} for row in SECTIONS[name][0](bench)]
        results["sections"][name] = merged(results["sections"].get(name, []), new)
        results["machine"] = describe(bench, results["machine"])
        if options.results:
            scratch = options.results.with_suffix(".tmp")
            scratch.write_text(json.dumps(results, indent=1), encoding="utf-8")
            os.replace(scratch, options.results)
    text = page(json.loads(json.dumps(results)))
    sys.stdout.write(text + "\n")
    if options.write:
        write(options.page, text)


if __name__ == "__main__":
    main()
