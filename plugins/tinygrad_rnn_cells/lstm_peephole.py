"""Long short-term memory with peepholes, and the eight ways in which Greff et al. take it apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, recurrent_matrix, tap
from tinygrad_rnn_cells import references

EQUATION = """\
z = tanh(x W_xz + h W_hz + b_z)
z = x W_xz + h W_hz + b_z                               variant NIAF
i = sigmoid(x W_xi + h W_hi + p_i * c + b_i)
i = sigmoid(x W_xi + h W_hi + b_i)                      variant NP
i = 1                                                   variant NIG
i = sigmoid(x W_xi + h W_hi + p_i * c + b_i
            + i_old R_ii + f_old R_fi + o_old R_oi)     variant FGR
f = sigmoid(x W_xf + h W_hf + p_f * c + b_f)
f = sigmoid(x W_xf + h W_hf + b_f)                      variant NP
f = 1                                                   variant NFG
f = 1 - i                                               variant CIFG
f = sigmoid(x W_xf + h W_hf + p_f * c + b_f
            + i_old R_if + f_old R_ff + o_old R_of)     variant FGR
c' = f * c + i * z
o = sigmoid(x W_xo + h W_ho + p_o * c' + b_o)
o = sigmoid(x W_xo + h W_ho + b_o)                      variant NP
o = 1                                                   variant NOG
o = sigmoid(x W_xo + h W_ho + p_o * c' + b_o
            + i_old R_io + f_old R_fo + o_old R_oo)     variant FGR
h' = o * tanh(c')
h' = o * c'                                             variant NOAF
i_old' = i                                              variant FGR
f_old' = f                                              variant FGR
o_old' = o                                              variant FGR"""


class LSTMPeephole(Cell):
    """The gates look at the cell state: i and f at the old one, o at the new one.

    N.G has no such gate, NIAF and NOAF no tanh of the block's input or output, NP no peepholes; CIFG couples f to i;
    FGR feeds the last gates back to all gates.
    """

    name = "lstm_peephole"
    summary = "LSTM whose gates see the cell state, and the eight variants of Greff et al."
    citation = (
        "F. Gers, J. Schmidhuber, Recurrent nets that time and count, IJCNN 2000; K. Greff et al., LSTM: A search "
        "space odyssey, arXiv 1503.04069, 2015 (IEEE TNNLS 2017)"
    )
    deviations = """\
b_f starts at forget_bias (CIFG: b_i at -forget_bias, which is the same), other biases at 0; weights and peepholes are
uniform in +-1/sqrt(H), where the paper draws them from a normal distribution."""
    equation = EQUATION
    reference = references.lstm_peephole

    @dataclass(frozen=True)
    class Options:
        variant: Literal["vanilla", "NIG", "NFG", "NOG", "NIAF", "NOAF", "NP", "CIFG", "FGR"] = field(
            default="vanilla", metadata={"help": "what is taken away or added; vanilla: nothing"}
        )
        forget_bias: float = field(default=1.0, metadata={"help": "start value of b_f; above 0 means remember"})
        recurrent_init: str = field(default="uniform", metadata={"help": "initialiser of every W_h* and R_*"})

    def gates(self) -> str:
        """The gates that are computed from x and h."""
        return {"NIG": "fo", "NFG": "io", "NOG": "if", "CIFG": "io"}.get(self.options.variant, "ifo")

    def state(self) -> dict[str, State]:
        old = [f"{gate}_old" for gate in self.gates()] if self.options.variant == "FGR" else []
        return {name: State((self.H,)) for name in ["h", "c", *old]}

    def params(self) -> dict[str, Param]:
        variant, specs = self.options.variant, {}
        start = {"f": self.options.forget_bias, "i": -self.options.forget_bias if variant == "CIFG" else 0.0}
        for gate in "z" + self.gates():
            specs[f"W_x{gate}"] = input_matrix(self.I, self.H)
            specs[f"W_h{gate}"] = recurrent_matrix(self.H, self.options.recurrent_init)
            specs[f"b_{gate}"] = bias(self.H, start.get(gate, 0.0))
            if gate != "z" and variant != "NP":
                specs[f"p_{gate}"] = Param((self.H,), "uniform", "recurrent")
            for old in "ifo" if gate != "z" and variant == "FGR" else "":
                specs[f"R_{old}{gate}"] = recurrent_matrix(self.H, self.options.recurrent_init)
        return specs

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        variant, gates = self.options.variant, self.gates()

        def gate(name: str, c: Any) -> Any:
            if name not in gates:
                return 1.0
            a = x @ getattr(p, f"W_x{name}") + s.h @ getattr(p, f"W_h{name}") + getattr(p, f"b_{name}")
            if variant != "NP":
                a = a + getattr(p, f"p_{name}") * c
            if variant == "FGR":
                a = a + sum(getattr(s, f"{old}_old") @ getattr(p, f"R_{old}{name}") for old in gates)
            return tap(name, ops.sigmoid(a))

        a = x @ p.W_xz + s.h @ p.W_hz + p.b_z
        z = tap("z", a if variant == "NIAF" else ops.tanh(a))
        i = gate("i", s.c)
        f = tap("f", 1.0 - i) if variant == "CIFG" else gate("f", s.c)
        c = f * s.c + i * z
        o = gate("o", c)
        new = {"h": o * (c if variant == "NOAF" else ops.tanh(c)), "c": c}
        return new | ({"i_old": i, "f_old": f, "o_old": o} if variant == "FGR" else {})
