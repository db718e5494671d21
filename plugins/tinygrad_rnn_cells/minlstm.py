"""The minLSTM, whose gates do not see the state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, tap
from tinygrad_rnn_cells import references


class MinLSTM(Cell):
    """Forget and input gate come from x alone and are divided by their sum, so that h stays of one size."""

    name = "minlstm"
    summary = "LSTM without recurrent matrices: forget and input gate from the input alone, adding up to 1"
    citation = (
        "L. Feng, F. Tung, M. O. Ahmed, Y. Bengio and H. Hajimirsadeghi, Were RNNs all we needed?, arXiv "
        "2410.01201, 2024"
    )
    deviations = """\
The plain form of the paper, n without the g of its log-space form. f and i are the paper's f' and i', from the
logarithms of its sigmoids: f = sigmoid(log f - log i) is the same number, and never 0 / 0. Weights start uniform in
+-1/sqrt(H)."""
    equation = """\
f = sigmoid(x W_xf + b_f) / (sigmoid(x W_xf + b_f) + sigmoid(x W_xi + b_i))
i = sigmoid(x W_xi + b_i) / (sigmoid(x W_xf + b_f) + sigmoid(x W_xi + b_i))
n = x W_xn + b_n
h' = f * h + i * n"""
    reference = references.minlstm

    @dataclass(frozen=True)
    class Options:
        forget_bias: float = field(default=0.0, metadata={"help": "start value of b_f; above 0 means remember"})

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {
            "W_xf": input_matrix(self.I, self.H), "b_f": bias(self.H, self.options.forget_bias),
            "W_xi": input_matrix(self.I, self.H), "b_i": bias(self.H),
            "W_xn": input_matrix(self.I, self.H), "b_n": bias(self.H),
        }  # fmt: skip

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        a_f, a_i = x @ p.W_xf + p.b_f, x @ p.W_xi + p.b_i
        f = tap("f", ops.sigmoid((a_f - ops.softplus(a_f)) - (a_i - ops.softplus(a_i))))
        i = tap("i", 1.0 - f)
        n = tap("n", x @ p.W_xn + p.b_n)
        return {"h": f * s.h + i * n}
