"""FastGRNN, whose gate and candidate share their matrices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, recurrent_matrix, tap
from tinygrad_rnn_cells import references


class FastGRNN(Cell):
    """One product with x and one with h serve gate and candidate; z = 1 keeps the old state."""

    name = "fastgrnn"
    summary = "gate and candidate from the same two products: a quarter of an LSTM's weights"
    citation = (
        "A. Kusupati et al., FastGRNN: a fast, accurate, stable and tiny kilobyte sized gated recurrent neural "
        "network, NeurIPS 2018, arXiv 1901.02358"
    )
    deviations = """\
W and U are full, without the paper's low rank, sparsity and quantisation. Both biases start at 1, zeta at 1 and
nu at -4, as in the authors' code; weights uniform in +-1/sqrt(H)."""
    equation = """\
z = sigmoid(x W + h U + b_z)
n = tanh(x W + h U + b_n)
h' = (sigmoid(zeta) * (1 - z) + sigmoid(nu)) * n + z * h"""
    reference = references.fastgrnn

    @dataclass(frozen=True)
    class Options:
        forget_bias: float = field(default=1.0, metadata={"help": "start value of b_z; above 0 means remember"})
        recurrent_init: str = field(default="uniform", metadata={"help": "initialiser of U"})

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {
            "W": input_matrix(self.I, self.H), "U": recurrent_matrix(self.H, self.options.recurrent_init),
            "b_z": bias(self.H, self.options.forget_bias), "b_n": bias(self.H, 1.0),
            "zeta": bias(1, 1.0), "nu": bias(1, -4.0),
        }  # fmt: skip

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        a = x @ p.W + s.h @ p.U
        z = tap("z", ops.sigmoid(a + p.b_z))
        n = tap("n", ops.tanh(a + p.b_n))
        return {"h": (ops.sigmoid(p.zeta) * (1.0 - z) + ops.sigmoid(p.nu)) * n + z * s.h}
