"""minimalRNN as a user would write it: a plugin file, for `training_step.py` and `cells bench --plugin`."""

from __future__ import annotations

from typing import Any

from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, recurrent_matrix, register_cell


@register_cell
class MinimalRNN(Cell):
    """One gate between the old state and an encoding of the input."""

    name = "minimalrnn_file"
    summary = "minimal RNN: an update gate, and an input that is squashed once"
    citation = "M. Chen, MinimalRNN: toward more interpretable and trainable recurrent neural networks, 2017"
    equation = """\
z = tanh(x W_xz + b_z)
u = sigmoid(h W_hh + z W_zh + b_h)
h' = u * h + (1 - u) * z"""

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {
            "W_xz": input_matrix(self.I, self.H), "b_z": bias(self.H),
            "W_hh": recurrent_matrix(self.H), "W_zh": recurrent_matrix(self.H), "b_h": bias(self.H),
        }  # fmt: skip

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        z = ops.tanh(x @ p.W_xz + p.b_z)
        u = ops.sigmoid(s.h @ p.W_hh + z @ p.W_zh + p.b_h)
        return {"h": u * s.h + (1.0 - u) * z}
