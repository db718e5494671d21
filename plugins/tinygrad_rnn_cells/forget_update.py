"""A state that forgets and adds, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, recurrent_matrix, tap
from tinygrad_rnn_cells import references


class ForgetUpdate(Cell):
    """h = forget * h + update: the sum that lets a gradient pass, without the gates around it."""

    name = "forget_update"
    summary = "one forget gate and an update that is added: the step from a simple network to an LSTM"
    citation = (
        "A teaching cell of lectures on recurrent networks, h = forget * h + update; the forget gate is that of F. "
        "Gers, J. Schmidhuber and F. Cummins, Learning to forget, Neural Computation 12, 2000"
    )
    deviations = """\
The lecture leaves open what forget and update are. Here they see x and tanh(h), as the gates of an LSTM do: h
itself is not bounded, and gates that see it drive it further. b_f starts at forget_bias, b_u at 0; weights
uniform in +-1/sqrt(H)."""
    equation = """\
f = sigmoid(x W_xf + tanh(h) W_hf + b_f)
u = tanh(x W_xu + tanh(h) W_hu + b_u)
h' = f * h + u"""
    reference = references.forget_update

    @dataclass(frozen=True)
    class Options:
        forget_bias: float = field(default=1.0, metadata={"help": "start value of b_f; above 0 means remember"})
        recurrent_init: str = field(default="uniform", metadata={"help": "initialiser of W_hf and W_hu"})

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        hidden = recurrent_matrix(self.H, self.options.recurrent_init)
        return {
            "W_xf": input_matrix(self.I, self.H), "W_hf": hidden, "b_f": bias(self.H, self.options.forget_bias),
            "W_xu": input_matrix(self.I, self.H), "W_hu": hidden, "b_u": bias(self.H),
        }  # fmt: skip

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        seen = ops.tanh(s.h)
        f = tap("f", ops.sigmoid(x @ p.W_xf + seen @ p.W_hf + p.b_f))
        u = tap("u", ops.tanh(x @ p.W_xu + seen @ p.W_hu + p.b_u))
        return {"h": f * s.h + u}
