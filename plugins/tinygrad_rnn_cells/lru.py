"""The linear recurrent unit: complex eigenvalues, in real arithmetic."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinygrad_rnn import Cell, InputError, Param, State, input_matrix, ops

Array = np.ndarray[Any, Any]
DEVIATIONS = """\
The recurrent layer alone, which is linear. The paper's block puts a normalisation before it, a gated linear unit behind
it and a skip connection around both; without them a stack of these layers is linear up to the readout.
H complex units for H outputs. D is a vector where I = H, as in the paper, else a matrix."""
EQUATION = """\
re' = exp(-exp(nu_log)) * (cos(exp(theta_log)) * re - sin(exp(theta_log)) * im) + exp(gamma_log) * (x @ B_re)
im' = exp(-exp(nu_log)) * (sin(exp(theta_log)) * re + cos(exp(theta_log)) * im) + exp(gamma_log) * (x @ B_im)
y' = re' @ C_re - im' @ C_im + x * D    I = H
y' = re' @ C_re - im' @ C_im + x @ D    I != H"""


def ring(
    rng: np.random.Generator, shape: tuple[int, ...], arrays: Mapping[str, Array], *, r_min: float, r_max: float
) -> Array:
    """log nu for eigenvalues of size exp(-nu), uniform over the area between the circles `r_min` and `r_max`."""
    return np.log(-0.5 * np.log(rng.uniform(r_min**2, r_max**2, shape)))


def phases(rng: np.random.Generator, shape: tuple[int, ...], arrays: Mapping[str, Array], *, max_phase: float) -> Array:
    """log theta for phases theta uniform in (0, max_phase)."""
    return np.log(rng.uniform(0.0, max_phase, shape))


def unit_power(rng: np.random.Generator, shape: tuple[int, ...], arrays: Mapping[str, Array]) -> Array:
    """log sqrt(1 - |lambda|^2): under white noise every unit then has the power of what comes in."""
    return 0.5 * np.log(-np.expm1(-2.0 * np.exp(arrays["nu_log"])))


R_MIN = {"help": "smallest |lambda| at the start; long memories: 0.9", "keeps": "a larger r_min"}


class LRU(Cell):
    """h' = lambda h + gamma (x B), complex and elementwise, and y' = Re(h' C) + D x. The output is y.

    lambda = exp(-exp(nu_log) + i exp(theta_log)) stays inside the unit circle, whatever is learned. h is re + i im.
    """

    name = "lru"
    summary = "linear recurrence with complex eigenvalues inside the unit circle; its output is a linear map"
    citation = (
        "A. Orvieto, S. L. Smith, A. Gu, A. Fernando, C. Gulcehre, R. Pascanu and S. De, Resurrecting recurrent neural "
        "networks for long sequences, ICML 2023, arXiv 2303.06349 (appendix A)"
    )
    deviations = DEVIATIONS
    equation = EQUATION
    output = "y"

    @dataclass(frozen=True)
    class Options:
        r_min: float = field(default=0.0, metadata=R_MIN)
        r_max: float = field(default=1.0, metadata={"help": "largest |lambda| at the start; long memories: 0.999"})
        max_phase: float = field(default=6.28, metadata={"help": "largest phase of lambda at the start, in radians"})

    def check(self) -> None:
        r_min, r_max, max_phase = (getattr(self.options, name) for name in ("r_min", "r_max", "max_phase"))
        if not 0.0 <= r_min < r_max <= 1.0:
            raise InputError(f"cell lru: expected 0 <= r_min < r_max <= 1, got r_min={r_min:g}, r_max={r_max:g}")
        if not 0.0 < max_phase < math.inf:
            raise InputError(f"cell lru: expected max_phase above 0, got {max_phase:g}")

    def state(self) -> dict[str, State]:
        return {name: State((self.H,)) for name in ("re", "im", "y")}

    def params(self) -> dict[str, Param]:
        I, H, options = self.I, self.H, self.options
        B, C = f"lecun:{math.sqrt(0.5)}", "lecun"
        return {
            "nu_log": Param((H,), functools.partial(ring, r_min=options.r_min, r_max=options.r_max), "recurrent"),
            "theta_log": Param((H,), functools.partial(phases, max_phase=options.max_phase), "recurrent"),
            "gamma_log": Param((H,), unit_power, "input"),
            "B_re": input_matrix(I, H, B), "B_im": input_matrix(I, H, B),
            "C_re": Param((H, H), C, "input"), "C_im": Param((H, H), C, "input"),
            "D": Param((H,), "normal:1.0", "input") if I == H else input_matrix(I, H, "lecun"),
        }  # fmt: skip

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        size, phase, gamma = ops.exp(-ops.exp(p.nu_log)), ops.exp(p.theta_log), ops.exp(p.gamma_log)
        a, b = size * ops.cos(phase), size * ops.sin(phase)
        re = a * s.re - b * s.im + gamma * (x @ p.B_re)
        im = b * s.re + a * s.im + gamma * (x @ p.B_im)
        past = x * p.D if self.I == self.H else x @ p.D
        return {"re": re, "im": im, "y": re @ p.C_re - im @ p.C_im + past}
