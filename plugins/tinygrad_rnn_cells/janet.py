"""JANET, the LSTM of which only the forget gate is left."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, recurrent_matrix, tap
from tinygrad_rnn_cells import references
from tinygrad_rnn_cells.chrono import HELP, chrono


class JANET(Cell):
    """What is forgotten makes room for the candidate, and beta lets a little more of it in."""

    name = "janet"
    summary = "LSTM reduced to its forget gate: the input gate is nearly 1 - f, there is no output gate"
    citation = (
        "J. van der Westhuizen and J. Lasenby, The unreasonable effectiveness of the forget gate, arXiv "
        "1804.04849, 2018"
    )
    deviations = """\
The paper writes h and c, which are equal. Its biases are chrono ones with T the length of the task: chrono=T. Without,
b_f starts at forget_bias. Weights start uniform in +-1/sqrt(H)."""
    equation = """\
f = sigmoid(x W_xf + h W_hf + b_f)
i = 1 - sigmoid(x W_xf + h W_hf + b_f - beta)
n = tanh(x W_xn + h W_hn + b_n)
h' = f * h + i * n"""
    reference = references.janet

    @dataclass(frozen=True)
    class Options:
        beta: float = field(default=1.0, metadata={"help": "how much earlier the input gate opens; 0: i = 1 - f"})
        forget_bias: float = field(default=1.0, metadata={"help": "start value of b_f; above 0 means remember"})
        chrono: float = field(default=0.0, metadata={"help": HELP.format(keeps="b_f", rest="")})
        recurrent_init: str = field(default="uniform", metadata={"help": "initialiser of W_hf and W_hn"})

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        hidden = recurrent_matrix(self.H, self.options.recurrent_init)
        return {
            "W_xf": input_matrix(self.I, self.H), "W_hf": hidden, "b_f": bias(self.H, self.options.forget_bias),
            "W_xn": input_matrix(self.I, self.H), "W_hn": hidden, "b_n": bias(self.H),
        } | chrono(self.H, self.options.chrono, "b_f")  # fmt: skip

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        a = x @ p.W_xf + s.h @ p.W_hf + p.b_f
        f = tap("f", ops.sigmoid(a))
        i = tap("i", 1.0 - ops.sigmoid(a - self.options.beta))
        n = tap("n", ops.tanh(x @ p.W_xn + s.h @ p.W_hn + p.b_n))
        return {"h": f * s.h + i * n}
