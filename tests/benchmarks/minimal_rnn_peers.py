"""minimalRNN in PyTorch and JAX: `peers.py` of the command line with one more cell.

    python tests/benchmarks/minimal_rnn_peers.py --peer jax --cell minimalrnn_file --shape 65,128,2,50,50

Imports the standard library and the peer alone, as `peers.py` does.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PEERS = Path(__file__).resolve().parents[2] / "cli" / "tinygrad_rnn_cli" / "peers.py"
WIDTHS = {"w": 1, "b_z": 1, "u_h": 1, "u_z": 1, "b_h": 1}


def load_peers() -> ModuleType:
    """`peers.py` by its path: the interpreter may have none of our packages."""
    spec = importlib.util.spec_from_file_location("tinygrad_rnn_peers", PEERS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _inputs(lib: Any, p: Any, x: Any) -> tuple[Any, Any]:
    """z, and what the gate gets from it, for every timestep."""
    z = lib.tanh(x @ p["w"] + p["b_z"])
    return z, z @ p["u_z"] + p["b_h"]


def _step(sigmoid: Any, p: Any, z: Any, a: Any, h: Any) -> Any:
    u = sigmoid(h @ p["u_h"] + a)
    return u * h + (1 - u) * z


def _torch_run(torch: Any, p: Any, x: Any) -> Any:
    h, out = torch.zeros_like(x[0]), []
    for z, a in zip(*(part.unbind(0) for part in _inputs(torch, p, x)), strict=True):
        h = _step(torch.sigmoid, p, z, a, h)
        out.append(h)
    return torch.stack(out)


def add_to(peers: Any) -> None:
    """Make minimalRNN known to the module `peers`."""
    peers.TORCH["minimalrnn_file"] = peers.TorchCell(WIDTHS, _torch_run)
    peers.JAX["minimalrnn_file"] = peers.JaxCell(
        WIDTHS,
        lambda jax, p, x: _inputs(jax.numpy, p, x),
        lambda jax, p, now, s: (_step(jax.nn.sigmoid, p, *now, s[0]),),
    )


if __name__ == "__main__":
    loaded = load_peers()
    add_to(loaded)
    loaded.main()
