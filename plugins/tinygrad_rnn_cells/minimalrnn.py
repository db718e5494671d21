"""The minimalRNN, whose state moves in the space of encoded inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, recurrent_matrix, tap
from tinygrad_rnn_cells import references


class MinimalRNN(Cell):
    """The input is encoded once, and one gate mixes it with the old state: u = 1 keeps the old one."""

    name = "minimalrnn"
    summary = "one gate between the old state and an encoding of the input"
    citation = (
        "M. Chen, MinimalRNN: toward more interpretable and trainable recurrent neural networks, arXiv 1711.06788, 2017"
    )
    deviations = (
        "The paper leaves the encoder open; ours is its example, one tanh layer. Weights uniform in +-1/sqrt(H)."
    )
    equation = """\
z = tanh(x W_xz + b_z)
u = sigmoid(h W_hu + z W_zu + b_u)
h' = u * h + (1 - u) * z"""
    reference = references.minimalrnn

    @dataclass(frozen=True)
    class Options:
        forget_bias: float = field(default=0.0, metadata={"help": "start value of b_u; above 0 means remember"})
        recurrent_init: str = field(default="uniform", metadata={"help": "initialiser of W_hu and W_zu"})

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        hidden = recurrent_matrix(self.H, self.options.recurrent_init)
        return {
            "W_xz": input_matrix(self.I, self.H), "b_z": bias(self.H),
            "W_hu": hidden, "W_zu": hidden, "b_u": bias(self.H, self.options.forget_bias),
        }  # fmt: skip

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        z = tap("z", ops.tanh(x @ p.W_xz + p.b_z))
        u = tap("u", ops.sigmoid(s.h @ p.W_hu + z @ p.W_zu + p.b_u))
        return {"h": u * s.h + (1.0 - u) * z}
