"""The training step of `cells bench` in PyTorch and JAX, and the alternation of all sides.

Two things in one file. As a script (``python peers.py --peer torch --cell lstm --shape 65,128,2,50,50``) it times one
peer in its own process and prints one JSON object; for that it imports nothing but the standard library and the peer,
so that an interpreter that has only the peer can run it. As a module it starts such processes and puts their rows
together.

The model: embedding (V, H), L recurrent layers of H units, linear (H, V), mean cross-entropy, float32; only the
gradient is computed. In PyTorch rnn, lstm and gru are its own modules. Everything else is written as a careful user
would: input products for all timesteps at once, then a loop (PyTorch, eager) or ``lax.scan`` (JAX). The GRU of PyTorch
applies the reset gate behind the product, ours and JAX's before it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PEERS = ("torch", "torch-compile", "jax")
TITLES = {"torch": "PyTorch", "torch-compile": "torch.compile", "jax": "JAX"}
NATIVE = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}  # torch.nn's own modules

Row = dict[str, Any]
Layer = Mapping[str, Any]  # parameter name -> array of one layer


# ------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class TorchCell:
    """A cell as an eager loop: `widths` gives its parameters in multiples of H (matrices (H, nH); a name that begins
    with b is a bias (nH,)), `run(torch, p, x)` the states (T, B, H) of inputs x (T, B, H).
    """

    widths: Mapping[str, int]
    run: Callable[[Any, Layer, Any], Any]


@dataclass(frozen=True)
class JaxCell:
    """A cell for lax.scan: `widths` as in TorchCell, `before(jax, p, x)` a tuple of sequences that do not depend on
    the state, `step(jax, p, now, state)` the next state, a tuple of which the first is the output.
    """

    widths: Mapping[str, int]
    before: Callable[[Any, Layer, Any], tuple[Any, ...]]
    step: Callable[[Any, Layer, tuple[Any, ...], tuple[Any, ...]], tuple[Any, ...]]
    states: int = 1


MUTS: dict[str, dict[str, int]] = {
    "mut1": {"w": 2, "b": 3, "u_r": 1, "u_h": 1},  # w: z, r
    "mut2": {"w": 2, "b": 3, "u_z": 1, "u_r": 1, "u_h": 1},  # w: z, h
    "mut3": {"w": 3, "b": 3, "u_z": 1, "u_r": 1, "u_h": 1},  # w: z, r, h
}


def _mut_inputs(kind: str, lib: Any, p: Layer, x: Any) -> tuple[Any, Any, Any]:
    """What the gates z, r and the candidate get from x, biases included; `lib` has tanh."""
    n = x.shape[-1]
    a, b = x @ p["w"], p["b"]
    b_z, b_r, b_h = b[:n], b[n : 2 * n], b[2 * n :]
    if kind == "mut1":
        return a[..., :n] + b_z, a[..., n:] + b_r, lib.tanh(x) + b_h
    if kind == "mut2":
        return a[..., :n] + b_z, x + b_r, a[..., n:] + b_h
    a = a + b
    return a[..., :n], a[..., n : 2 * n], a[..., 2 * n :]


def _mut_step(kind: str, lib: Any, sigmoid: Any, p: Layer, now: Any, h: Any) -> Any:
    z, r, c = now
    if kind == "mut2":
        z = z + h @ p["u_z"]
    if kind == "mut3":
        z = z + lib.tanh(h) @ p["u_z"]
    z, r = sigmoid(z), sigmoid(r + h @ p["u_r"])
    return lib.tanh((r * h) @ p["u_h"] + c) * z + h * (1 - z)


def _torch_mut(kind: str) -> TorchCell:
    def run(torch: Any, p: Layer, x: Any) -> Any:
        h, out = torch.zeros_like(x[0]), []
        # unbind, because the gradient of z[t] for every t takes time quadratic in T
        for now in zip(*(part.unbind(0) for part in _mut_inputs(kind, torch, p, x)), strict=True):
            h = _mut_step(kind, torch, torch.sigmoid, p, now, h)
            out.append(h)
        return torch.stack(out)

    return TorchCell(MUTS[kind], run)


def _jax_mut(kind: str) -> JaxCell:
    return JaxCell(
        MUTS[kind],
        lambda jax, p, x: _mut_inputs(kind, jax.numpy, p, x),
        lambda jax, p, now, s: (_mut_step(kind, jax.numpy, jax.nn.sigmoid, p, now, s[0]),),
    )


def _affine(_jax: Any, p: Layer, x: Any) -> tuple[Any, ...]:
    return (x @ p["w"] + p["b"],)


def _jax_rnn(jax: Any, p: Layer, now: tuple[Any, ...], s: tuple[Any, ...]) -> tuple[Any, ...]:
    return (jax.numpy.tanh(now[0] + s[0] @ p["u"]),)


def _jax_lstm(jax: Any, p: Layer, now: tuple[Any, ...], s: tuple[Any, ...]) -> tuple[Any, ...]:
    sigmoid, tanh = jax.nn.sigmoid, jax.numpy.tanh
    i, f, o, g = jax.numpy.split(now[0] + s[0] @ p["u"], 4, -1)
    c = sigmoid(f) * s[1] + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def _jax_gru(jax: Any, p: Layer, now: tuple[Any, ...], s: tuple[Any, ...]) -> tuple[Any, ...]:
    (h,) = s
    n = h.shape[-1]
    gates = jax.nn.sigmoid(now[0][:, : 2 * n] + h @ p["u_zr"])
    z, r = gates[:, :n], gates[:, n:]
    return ((1 - z) * jax.numpy.tanh(now[0][:, 2 * n :] + (r * h) @ p["u_h"]) + z * h,)


TORCH: dict[str, TorchCell] = {kind: _torch_mut(kind) for kind in MUTS}
JAX: dict[str, JaxCell] = {
    "rnn": JaxCell({"w": 1, "b": 1, "u": 1}, _affine, _jax_rnn),
    "lstm": JaxCell({"w": 4, "b": 4, "u": 4}, _affine, _jax_lstm, states=2),  # i, f, o, g
    "gru": JaxCell({"w": 3, "b": 3, "u_zr": 2, "u_h": 1}, _affine, _jax_gru),  # z, r, h
    **{kind: _jax_mut(kind) for kind in MUTS},
}


def torch_model(cell: str, V: int, H: int, L: int) -> tuple[dict[str, Any], Callable[[Any, Any], Any]]:
    """Parameters by name, and the loss of symbols x and targets y (T, B) as a function of the two.

    The names are torch.nn's (weight_ih_l0, ...), or "layers.0.w" for a cell of our own; embed.weight (V, H),
    readout.weight (V, H), readout.bias (V,).
    """
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    embed, readout = torch.nn.Embedding(V, H), torch.nn.Linear(H, V)
    params = {f"embed.{name}": value for name, value in embed.named_parameters()}
    body: Callable[[Any], Any]
    if cell in NATIVE:
        module = getattr(torch.nn, NATIVE[cell])(H, H, L)
        params |= dict(module.named_parameters())

        def body(a: Any) -> Any:
            return module(a)[0]
    else:
        own, bound = TORCH[cell], H**-0.5
        layers = [
            {
                name: torch.nn.Parameter(
                    torch.empty((n * H,) if name.startswith("b") else (H, n * H)).uniform_(-bound, bound)
                )
                for name, n in own.widths.items()
            }
            for _ in range(L)
        ]
        params |= {f"layers.{i}.{name}": value for i, layer in enumerate(layers) for name, value in layer.items()}

        def body(a: Any) -> Any:
            for layer in layers:
                a = own.run(torch, layer, a)
            return a

    params |= {f"readout.{name}": value for name, value in readout.named_parameters()}

    def loss(x: Any, y: Any) -> Any:
        logits = readout(body(embed(x)))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    return params, loss


def jax_model(cell: str, V: int, H: int, L: int) -> tuple[dict[str, Any], Callable[[Any, Any, Any], Any]]:
    """Parameters {"embed" (V, H), "layers" (a list of dicts), "out" (H, V), "bias" (V,)}, and the loss of (parameters,
    symbols x, targets y), both (T, B).
    """
    jax, np = importlib.import_module("jax"), importlib.import_module("numpy")
    jnp = jax.numpy
    own, rng, bound = JAX[cell], np.random.default_rng(0), H**-0.5

    def uniform(*shape: int) -> Any:
        return jnp.asarray(rng.uniform(-bound, bound, shape).astype("float32"))

    params = {
        "embed": uniform(V, H),
        "out": uniform(H, V),
        "bias": uniform(V),
        "layers": [
            {name: uniform(n * H) if name.startswith("b") else uniform(H, n * H) for name, n in own.widths.items()}
            for _ in range(L)
        ],
    }

    def loss(params: Any, x: Any, y: Any) -> Any:
        a = params["embed"][x]
        for p in params["layers"]:

            def advance(state: Any, now: Any, p: Layer = p) -> tuple[Any, Any]:
                state = own.step(jax, p, now, state)
                return state, state[0]

            start = tuple(jnp.zeros_like(a[0]) for _ in range(own.states))
            _, a = jax.lax.scan(advance, start, own.before(jax, p, a))
        logits = jax.nn.log_softmax(a @ params["out"] + params["bias"])
        return -jnp.take_along_axis(logits, y[..., None], -1).mean()

    return params, loss


def torch_step(cell: str, shape: Sequence[int], compiled: bool = False) -> Callable[[], Any]:
    """One training step in PyTorch, the same one at every call."""
    torch = importlib.import_module("torch")
    V, H, L, B, T = shape
    params, loss = torch_model(cell, V, H, L)
    x, y = torch.randint(0, V, (2, T, B))
    call = torch.compile(loss) if compiled else loss

    def step() -> Any:
        for value in params.values():
            value.grad = None
        call(x, y).backward()

    return step


def jax_step(cell: str, shape: Sequence[int]) -> Callable[[], Any]:
    """One training step in JAX, compiled at the first call, the same one at every call."""
    jax, np = importlib.import_module("jax"), importlib.import_module("numpy")
    V, H, L, B, T = shape
    params, loss = jax_model(cell, V, H, L)
    x, y = (jax.numpy.asarray(symbols) for symbols in np.random.default_rng(0).integers(0, V, (2, T, B)))
    run = jax.jit(jax.value_and_grad(loss))
    return lambda: jax.block_until_ready(run(params, x, y))


# ----------------------------------------------------------------------------------------- one peer, as a script


def timed(step: Callable[[], Any], runs: int) -> Row:
    """``first_s`` of the first call; ``ms`` (median) and ``min_ms`` of `runs` calls, behind one more that warms up."""
    began = time.perf_counter()
    step()
    first = time.perf_counter() - began
    step()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        step()
        times.append((time.perf_counter() - began) * 1e3)
    return {"ms": statistics.median(times), "min_ms": min(times), "first_s": first}


def peak_bytes() -> int | None:
    """The most memory that this process has held resident so far; None where the system does not say."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None


def one_row(peer: str, cell: str, shape: Sequence[int], runs: int, threads: int) -> Row:
    """Time one peer in this process; a row with ``error`` where it is not installed or does not know the cell."""
    row: Row = {"cell": cell, "shape": list(shape), "executor": peer, "ms": None, "min_ms": None, "first_s": None}
    known = [*JAX] if peer == "jax" else [*NATIVE, *TORCH]
    if cell not in known:
        return {**row, "error": f"no {cell} for {TITLES[peer]}; there are {', '.join(known)}"}
    package = "jax" if peer == "jax" else "torch"
    if package == "jax" and threads < cores():  # XLA's pool has a thread per processor that the process may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    try:
        library = importlib.import_module(package)
    except ImportError as error:
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        return {**row, "error": f"{TITLES[peer]} {why} in the environment of {sys.executable}"}
    if package == "torch":
        library.set_num_threads(threads)
        step = torch_step(cell, shape, peer == "torch-compile")
    else:
        step = jax_step(cell, shape)
    return {**row, **timed(step, runs), "version": str(library.__version__), "peak_bytes": peak_bytes()}


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_cores(seconds: float = 0.2) -> float | None:
    """How many of the processors that this process may use others keep busy, watched for `seconds`; None where the
    system does not say."""

    def idle() -> tuple[float, float]:
        with open("/proc/stat", encoding="ascii") as file:
            rows = [line.split() for line in file if line.startswith("cpu") and line[3].isdigit()]
        mine = os.sched_getaffinity(0)
        ticks = [[float(n) for n in row[1:9]] for row in rows if int(row[0][3:]) in mine]
        return sum(row[3] + row[4] for row in ticks), sum(map(sum, ticks))

    try:
        before = idle()
        time.sleep(seconds)
        after = idle()
    except (OSError, AttributeError, ValueError, IndexError):
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    ticks = after[1] - before[1]
    return cores() * (1.0 - (after[0] - before[0]) / ticks) if ticks > 0 else None


def parse_shape(text: str) -> tuple[int, ...]:
    """V,H,L,B,T as five whole numbers. Raises ValueError for anything else."""
    parts = text.split(",")
    if len(parts) != 5 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise ValueError(f"expected V,H,L,B,T, five whole numbers, got {text!r}")
    sizes = tuple(int(part) for part in parts)
    if min(sizes) < 1 or sizes[0] < 2:
        raise ValueError(f"expected V,H,L,B,T of at least 1, and V of at least 2, got {text!r}")
    return sizes


def main() -> None:
    """Time one peer, one cell, one shape, and print a line of JSON."""
    parser = argparse.ArgumentParser(description="time one training step of a character model in PyTorch or JAX")
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--cell", required=True)
    parser.add_argument("--shape", type=parse_shape, required=True, metavar="V,H,L,B,T")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=cores())
    given = parser.parse_args()
    print(json.dumps(one_row(given.peer, given.cell, given.shape, given.runs, given.threads)))


# -------------------------------------------------------------------------------------- all sides, one after another


def peer_command(
    peer: str,
    cell: str,
    shape: Sequence[int],
    *,
    runs: int,
    threads: int,
    python: str = sys.executable,
    script: str = __file__,
) -> list[str]:
    """The command line that times one peer. -P keeps this folder's modules out of the peer's imports."""
    sizes = ",".join(map(str, shape))
    words = ["--peer", peer, "--cell", cell, "--shape", sizes, "--runs", str(runs), "--threads", str(threads)]
    return [python, "-P", script, *words]


def measure(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Row:
    """Run a command that prints one JSON object, and read it; {"error", "code", "stderr"} where it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **(environment or {})},
        )
    except OSError as error:
        return {"error": f"{command[0]}: {error.strerror or error}", "code": 1, "stderr": ""}
    if done.returncode != 0:
        end = f"was ended by signal {-done.returncode}" if done.returncode < 0 else f"ended with code {done.returncode}"
        lines = done.stderr.strip().splitlines() if done.returncode > 0 else []
        told = lines[-1].removeprefix("error: ") if lines else f"the process that measures {end}"
        return {"error": told, "code": done.returncode, "stderr": done.stderr}
    found: Row = json.loads(done.stdout)
    return found


def alternate(
    sides: Mapping[str, Callable[[], Row]], rounds: int, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Row]:
    """Measure every side once, then every side again, and so on; each row is put together of its rounds.

    So that a machine that is busy for a while slows all sides alike. A side that fails is not tried again.
    """
    found: dict[str, list[Row]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            if found[name] and "error" in found[name][-1]:
                continue
            tell(f"{name}, round {number + 1} of {rounds}")
            found[name].append(side())
    return {name: together(rows) for name, rows in found.items()}


def together(rows: Sequence[Row]) -> Row:
    """One row of several rounds: the median of the medians, the least of the least, the median first call; ``spread``
    says how far the medians lie apart, as a share of the median, None for a single one."""
    failed = [row for row in rows if "error" in row]
    if failed:
        return failed[0]
    times = [row["ms"] for row in rows]
    ms = statistics.median(times)
    return {
        **rows[0],
        "ms": ms,
        "spread": (max(times) - min(times)) / ms if len(times) > 1 else None,
        "min_ms": min(row["min_ms"] for row in rows),
        "first_s": statistics.median(row["first_s"] for row in rows),
    }


if __name__ == "__main__":
    main()
