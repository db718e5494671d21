"""The loop of `train` in PyTorch: what train_command.py compares with. Imports the standard library and PyTorch alone.

    python tests/benchmarks/torch_loop.py lstm 128,2,50,50 TEXT OUT

Characters in B parallel streams, the state carried from window to window, Adam, the global norm clipped at 5, one
line in OUT/metrics.jsonl a step, a checkpoint every 200 steps; until SIGINT.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import torch
from minimal_rnn_peers import load_peers

EVERY = 200


def main() -> None:
    cell, sizes, text, folder = sys.argv[1:]
    H, L, B, T = map(int, sizes.split(","))
    content = Path(text).read_text(encoding="utf-8")
    symbols = sorted(set(content))
    number = {symbol: i for i, symbol in enumerate(symbols)}
    ids = torch.tensor([number[symbol] for symbol in content])
    length = (len(ids) - 1) // B
    xs, ys = (part[: B * length].view(B, length).t().contiguous() for part in (ids, ids[1:]))
    V = len(symbols)
    torch.manual_seed(0)
    peers = load_peers()
    native = peers.NATIVE.get(cell)
    embed, readout = torch.nn.Embedding(V, H), torch.nn.Linear(H, V)
    if native:
        body = getattr(torch.nn, native)(H, H, L)
    else:
        body = Loop(peers, cell, H, L)
    params = [*embed.parameters(), *body.parameters(), *readout.parameters()]
    optimizer = torch.optim.Adam(params, lr=2e-3)
    out = Path(folder)
    out.mkdir(parents=True)
    going = True

    def stop(*_: object) -> None:
        nonlocal going
        going = False

    signal.signal(signal.SIGINT, stop)
    began = time.perf_counter()
    step, cursor, state = 0, 0, None
    with (out / "metrics.jsonl").open("w") as metrics:
        while going:
            if cursor + T > length:
                cursor, state = 0, None
            x, y = xs[cursor : cursor + T], ys[cursor : cursor + T]
            cursor += T
            optimizer.zero_grad(set_to_none=True)
            hidden, state = body(embed(x), state)
            loss = torch.nn.functional.cross_entropy(readout(hidden).flatten(0, 1), y.flatten())
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(params, 5.0)
            optimizer.step()
            state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
            step += 1
            rate = step * B * T / (time.perf_counter() - began)
            record = {"step": step, "loss": loss.item(), "grad_norm": norm.item(), "symbols_per_s": rate}
            metrics.write(json.dumps(record) + "\n")
            metrics.flush()
            if step % EVERY == 0:
                torch.save({"params": params, "optimizer": optimizer.state_dict(), "step": step}, out / "last.pt")


class Loop(torch.nn.Module):
    """A cell that PyTorch lacks, as the eager loop of `peers.py`; its states start at zero in every window."""

    def __init__(self, peers, cell, H, L):  # type: ignore[no-untyped-def]
        super().__init__()
        self.own, bound = peers.TORCH[cell], H**-0.5
        self.layers = torch.nn.ModuleList(
            torch.nn.ParameterDict(
                {
                    name: torch.nn.Parameter(
                        torch.empty((n * H,) if name.startswith("b") else (H, n * H)).uniform_(-bound, bound)
                    )
                    for name, n in self.own.widths.items()
                }
            )
            for _ in range(L)
        )

    def forward(self, x, _state):  # type: ignore[no-untyped-def]
        for layer in self.layers:
            x = self.own.run(torch, layer, x)
        return x, x[-1]


if __name__ == "__main__":
    main()
