"""The leaky echo state network: a fixed random reservoir, of which only the readout learns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinygrad_rnn import Cell, InputError, Param, State, buffer, ops, tap
from tinygrad_rnn_cells import references


class ESN(Cell):
    """Nothing here is trained. The echo state: whatever it started from, the input alone decides where it is."""

    name = "esn"
    summary = "leaky echo state network: a fixed random reservoir; only the readout is trained"
    citation = (
        'H. Jaeger, The "echo state" approach to analysing and training recurrent neural networks, GMD Report 148, '
        "2001; H. Jaeger et al., Optimization and applications of echo state networks with leaky-integrator "
        "neurons, 2007"
    )
    deviations = """\
The readout learns by gradient descent and not by regression. An embedding would learn too: --embed onehot for the
paper's network. leak is the one rate of the common form; 2007 has two. b is the weight of a constant input."""
    equation = """\
n = tanh(x W_in + h W + b)
h' = (1 - leak) * h + leak * n"""
    reference = references.esn

    @dataclass(frozen=True)
    class Options:
        leak: float = field(
            default=0.5,
            metadata={"help": "share of the state that is new at each step; 1: no leak", "keeps": "a smaller leak"},
        )
        radius: float = field(
            default=0.9, metadata={"help": "spectral radius of W; echoes die out below 1", "keeps": "a larger radius"}
        )
        density: float = field(default=0.1, metadata={"help": "share of the units that a unit hears"})
        input_scale: float = field(default=1.0, metadata={"help": "W_in and b are uniform in +- this"})

    def check(self) -> None:
        if not 0.0 < self.options.leak <= 1.0:
            raise InputError(f"cell esn: expected a leak in (0, 1], got {self.options.leak}")

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {
            "W_in": buffer((self.I, self.H), f"uniform:{self.options.input_scale!r}"),
            "W": buffer((self.H, self.H), f"reservoir:{self.options.radius!r},{self.options.density!r}"),
            "b": buffer((self.H,), f"uniform:{self.options.input_scale!r}"),
        }

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        n = tap("n", ops.tanh(x @ p.W_in + s.h @ p.W + p.b))
        return {"h": (1.0 - self.options.leak) * s.h + self.options.leak * n}
