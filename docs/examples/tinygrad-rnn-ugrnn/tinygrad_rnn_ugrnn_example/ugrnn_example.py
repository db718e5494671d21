"""The update gate recurrent network, UGRNN."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tinygrad_rnn import (
    Cell,
    Param,
    State,
    bias,
    input_matrix,
    ops,
    recurrent_matrix,
    tap,
)


class UgrnnExampleCell(Cell):
    """One gate: g = 1 keeps the state, g = 0 makes it a simple network."""

    name = "ugrnn_example"
    summary = "update gate network: one gate between the old state and a new one"
    citation = (
        "J. Collins, J. Sohl-Dickstein, D. Sussillo, Capacity and trainability in "
        "recurrent neural networks, ICLR 2017, arXiv 1611.09913"
    )
    deviations = "The nonlinearity s of the paper is tanh here."
    equation = """\
c = tanh(x W_xc + h W_hc + b_c)
g = sigmoid(x W_xg + h W_hg + b_g)
h' = g * h + (1 - g) * c"""

    @dataclass(frozen=True)
    class Options:
        gate_bias: float = field(
            default=1.0,
            metadata={"help": "start value of b_g; above 0 means remember"},
        )
        recurrent_init: str = field(
            default="uniform",
            metadata={"help": "initialiser of W_hc and W_hg"},
        )

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {
            "W_xc": input_matrix(self.I, self.H),
            "W_hc": recurrent_matrix(self.H, self.options.recurrent_init),
            "b_c": bias(self.H),
            "W_xg": input_matrix(self.I, self.H),
            "W_hg": recurrent_matrix(self.H, self.options.recurrent_init),
            "b_g": bias(self.H, self.options.gate_bias),
        }

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        c = tap("c", ops.tanh(x @ p.W_xc + s.h @ p.W_hc + p.b_c))
        g = tap("g", ops.sigmoid(x @ p.W_xg + s.h @ p.W_hg + p.b_g))
        return {"h": g * s.h + (1.0 - g) * c}

    def reference(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        c = np.tanh(x @ p.W_xc + s.h @ p.W_hc + p.b_c)
        g = 1 / (1 + np.exp(-(x @ p.W_xg + s.h @ p.W_hg + p.b_g)))
        return {"h": g * s.h + (1 - g) * c}
