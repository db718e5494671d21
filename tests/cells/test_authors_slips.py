"""A slip of a cell's author is told as one: the cell, the method, the line, and what to write instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import (
    Cell,
    ModelConfig,
    Param,
    PluginError,
    State,
    build_model,
    init_cell,
    input_matrix,
    load_cell,
    ops,
)
from tinygrad_rnn.errors import InputError
from tinygrad_rnn.sequence import unroll


class Sound(Cell):
    """A cell whose step a test replaces by a wrong one."""

    name = "slip"
    summary = "one product"
    citation = "none"
    equation = "h' = x W_xh"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {"W_xh": input_matrix(self.I, self.H)}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": x @ p.W_xh}


class UnknownParameter(Sound):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": x @ p.W_hx}


class NumPyFunction(Sound):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": np.unwrap(x @ p.W_xh)}


class WrongShapes(Sound):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": p.W_xh @ x}


class UnknownOp(Sound):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tangent(x @ p.W_xh)}  # type: ignore[attr-defined]


class NumberAsShape(Sound):
    def state(self) -> dict[str, State]:
        return {"h": State(self.H)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (UnknownParameter, r"cell slip, step \(test_authors_slips.py:\d+\): no 'W_hx' was declared; did you mean W_xh"),
        (NumPyFunction, r"cell slip, step \(test_authors_slips.py:\d+\): np.unwrap: there is no op for it, and NumPy"),
        (WrongShapes, r"cell slip, step \(test_authors_slips.py:\d+\): matmul"),
        (UnknownOp, r"cell slip, step \(test_authors_slips.py:\d+\): AttributeError: .*tangent"),
        (NumberAsShape, r"cell slip, h: expected a tuple of sizes as shape, got 4"),
    ],
)
def test_a_slip_names_cell_and_line(cls: type[Cell], message: str, rng: np.random.Generator) -> None:
    with pytest.raises(PluginError, match=message) as caught:
        cell = cls(3, 4)
        unroll(cell, init_cell(cell, rng), rng.normal(size=(2, 5, 3)))
    assert "\n" not in str(caught.value)


def test_a_bare_cell_starts_like_the_cell_in_a_model() -> None:
    cell = load_cell("lstm").cls(5, 5)
    ours = init_cell(cell, np.random.default_rng(3))
    assert set(ours) == set(cell.params())
    assert all(value.requires_grad and value.dtype == np.float64 for value in ours.values())
    again = init_cell(cell, np.random.default_rng(3))
    assert all(np.array_equal(value.data, again[name].data) for name, value in ours.items())
    fixed = load_cell("mut1").cls(3, 4, {"input_map": "fixed"})
    assert not init_cell(fixed, np.random.default_rng(3))["P"].requires_grad


def test_configuration_and_cell_have_to_agree() -> None:
    with pytest.raises(InputError, match="expected the cell 'lstm' of the configuration, got 'gru'"):
        build_model(ModelConfig(cell="lstm"), 5, load_cell("gru"))
