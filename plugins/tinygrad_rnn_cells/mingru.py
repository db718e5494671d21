"""The minGRU, whose gate does not see the state."""

from __future__ import annotations

from typing import Any

from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, tap
from tinygrad_rnn_cells import references


class MinGRU(Cell):
    """Gate and candidate come from x alone, so that h is a sum over the past with known weights: z = 1 overwrites."""

    name = "mingru"
    summary = "GRU without recurrent matrices: gate and candidate from the input alone"
    citation = (
        "L. Feng, F. Tung, M. O. Ahmed, Y. Bengio and H. Hajimirsadeghi, Were RNNs all we needed?, arXiv "
        "2410.01201, 2024"
    )
    deviations = """\
The plain form of the paper. Its log-space form passes n through g(a) = a + 0.5 for a >= 0, else sigmoid(a), to make it
positive for a parallel scan; a scan over time needs none. Weights start uniform in +-1/sqrt(H)."""
    equation = """\
z = sigmoid(x W_xz + b_z)
n = x W_xn + b_n
h' = (1 - z) * h + z * n"""
    reference = references.mingru

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {
            "W_xz": input_matrix(self.I, self.H), "b_z": bias(self.H),
            "W_xn": input_matrix(self.I, self.H), "b_n": bias(self.H),
        }  # fmt: skip

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        z = tap("z", ops.sigmoid(x @ p.W_xz + p.b_z))
        n = tap("n", x @ p.W_xn + p.b_n)
        return {"h": (1.0 - z) * s.h + z * n}
