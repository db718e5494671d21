"""Long short-term memory with forget gate, without peepholes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, recurrent_matrix, tap
from tinygrad_rnn_cells import references
from tinygrad_rnn_cells.chrono import HELP, chrono


class LSTM(Cell):
    """c = f c + i g, h = o tanh(c); i, f, o are sigmoids and g a tanh of x and h.

    The forget bias starts at 1 on every layer (Jozefowicz et al. 2015); there is one bias per gate.
    """

    name = "lstm"
    summary = "long short-term memory: a cell state behind input, forget and output gates"
    citation = "S. Hochreiter, J. Schmidhuber, Long short-term memory, 1997; F. Gers et al., Learning to forget, 2000"
    deviations = """\
No peepholes. One bias per gate (PyTorch: two that add up).
b_f starts at forget_bias, the others at 0; weights uniform in +-1/sqrt(H), as in PyTorch."""
    equation = """\
i = sigmoid(x W_xi + h W_hi + b_i)
f = sigmoid(x W_xf + h W_hf + b_f)
o = sigmoid(x W_xo + h W_ho + b_o)
g = tanh(x W_xg + h W_hg + b_g)
c' = f * c + i * g
h' = o * tanh(c')"""
    reference = references.lstm

    @dataclass(frozen=True)
    class Options:
        forget_bias: float = field(default=1.0, metadata={"help": "start value of b_f; above 0 means remember"})
        chrono: float = field(default=0.0, metadata={"help": HELP.format(keeps="b_f", rest=", b_i at -b_f")})
        recurrent_init: str = field(default="uniform", metadata={"help": "initialiser of every W_h*"})

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,)), "c": State((self.H,))}

    def params(self) -> dict[str, Param]:
        specs = {}
        for gate in "ifog":
            specs[f"W_x{gate}"] = input_matrix(self.I, self.H)
            specs[f"W_h{gate}"] = recurrent_matrix(self.H, self.options.recurrent_init)
            specs[f"b_{gate}"] = bias(self.H, self.options.forget_bias if gate == "f" else 0.0)
        return specs | chrono(self.H, self.options.chrono, "b_f", "b_i")

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        i = tap("i", ops.sigmoid(x @ p.W_xi + s.h @ p.W_hi + p.b_i))
        f = tap("f", ops.sigmoid(x @ p.W_xf + s.h @ p.W_hf + p.b_f))
        o = tap("o", ops.sigmoid(x @ p.W_xo + s.h @ p.W_ho + p.b_o))
        g = tap("g", ops.tanh(x @ p.W_xg + s.h @ p.W_hg + p.b_g))
        c = f * s.c + i * g
        return {"h": o * ops.tanh(c), "c": c}
