"""`scan` against `unroll` for the registered cells: numbers, memory, threads, errors, and all that the tape can do."""

from __future__ import annotations

import dataclasses
import gc
import threading
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare import LAYOUTS, LOSSES, Case, compare, compare_float32, laid_out, make_case, outcome, worst

from tinygrad_rnn import (
    Cell,
    InPlaceError,
    InputError,
    ModelConfig,
    NonFiniteError,
    Param,
    State,
    Tensor,
    TinygradRNNError,
    Unrolled,
    anomaly,
    build_model,
    grad,
    gradcheck,
    hvp,
    jvp,
    listen,
    load_cell,
    no_grad,
    ops,
    recompute,
    scan,
    specification,
    truncated_windows,
    unroll,
)

Array = np.ndarray[Any, Any]

# Cells of every build: the first ones with every option, of the others those that differ in what the compiler sees
# (peepholes and fed-back gates, a gate made of another, a state of another size, one number for all units, no weight,
# an output that no step reads).
# `check_cell` compares all of them with `unroll`, too.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn": ("rnn", {}),
    "rnn-relu": ("rnn", {"activation": "relu"}),
    "rnn-sigmoid": ("rnn", {"activation": "sigmoid"}),
    "rnn-identity": ("rnn", {"activation": "identity"}),
    "lstm": ("lstm", {}),
    "gru-before": ("gru", {}),
    "gru-after": ("gru", {"form": "reset_after"}),
    "mut1": ("mut1", {}),
    "mut1-fixed": ("mut1", {"input_map": "fixed"}),
    "mut1-learned": ("mut1", {"input_map": "learned"}),
    "mut2": ("mut2", {}),
    "mut2-fixed": ("mut2", {"input_map": "fixed"}),
    "mut2-learned": ("mut2", {"input_map": "learned"}),
    "mut3": ("mut3", {}),
    "lstm_peephole": ("lstm_peephole", {}),
    "lstm_peephole-fgr": ("lstm_peephole", {"variant": "FGR"}),
    "lstm_peephole-cifg": ("lstm_peephole", {"variant": "CIFG"}),
    "minlstm": ("minlstm", {}),
    "scrn": ("scrn", {"slow": 5}),
    "fastgrnn": ("fastgrnn", {}),
    "esn": ("esn", {}),
    "lru": ("lru", {}),
}

# (T, B, I, H): ones everywhere, I != H, and sizes beside those that vector units like
SHAPES = [
    (1, 1, 1, 1), (3, 1, 2, 1), (1, 3, 4, 4), (3, 13, 7, 17), (2, 3, 5, 31), (3, 1, 4, 33), (4, 13, 33, 3),
    (2, 2, 1, 64),
]  # fmt: skip


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def cell_of(variant: str, I: int = 3, H: int = 4) -> Cell:
    name, options = VARIANTS[variant]
    return load_cell(name).cls(I, H, options)


def tensors(case: Case) -> dict[str, Tensor]:
    return {name: Tensor(value, requires_grad=True) for name, value in case.params.items()}


class Written(Cell):
    """A cell that a test writes: it overrides `step`, and the declarations where they differ."""

    name = "written"
    summary = citation = equation = "written for a test"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {"U": Param((self.H, self.H), "uniform", "recurrent")}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        raise NotImplementedError


# ------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("loss", list(LOSSES))
def test_registered_cells(executor: str, variant: str, loss: str) -> None:
    for masked, carried in ((False, True), (True, False)):
        done = compare(executor, make_case(cell_of(variant), masked=masked, carried=carried), loss)
        assert done.executor == executor, done.reason
        assert done.reason


def test_registered_cells_where_i_is_h(executor: str, variant: str) -> None:
    """MUT1 and MUT2 use x itself there."""
    done = compare(executor, make_case(cell_of(variant, 4, 4), state_grad=False), "everything")
    assert done.executor == executor, done.reason


@pytest.mark.parametrize("masked", [False, True])
def test_second_gradients(executor: str, variant: str, masked: bool) -> None:
    compare(executor, make_case(cell_of(variant), T=3, masked=masked), "everything", second=True, bound=1e-10)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["lstm", "mut2-fixed"])
def test_odd_shapes(executor: str, name: str, shape: tuple[int, int, int, int]) -> None:
    T, B, I, H = shape
    for masked in (False, True):
        done = compare(executor, make_case(cell_of(name, I, H), T, B, masked=masked), "everything")
        assert done.executor == executor, done.reason


@pytest.mark.parametrize("shape", [(45, 12, 5, 19), (2, 2, 3, 250), (2, 250, 3, 5), (2, 3, 600, 7)], ids=str)
def test_sizes_larger_than_a_block(executor: str, shape: tuple[int, int, int, int]) -> None:
    """One of T B, H, B and I is larger than what a product takes in one piece."""
    T, B, I, H = shape
    for name in ("lstm", "gru-before", "lru"):
        done = compare(executor, make_case(cell_of(name, I, H), T, B), "outputs")
        assert done.executor == executor, done.reason
    done = compare_float32(executor, make_case(cell_of("lstm", I, H), T, B), "outputs")
    assert done.executor == executor, done.reason


@pytest.mark.parametrize("shape", [(3, 2, 3, 4), (3, 13, 7, 17), (1, 1, 1, 1)], ids=str)
def test_float32(executor: str, variant: str, shape: tuple[int, int, int, int]) -> None:
    T, B, I, H = shape
    done = compare_float32(executor, make_case(cell_of(variant, I, H), T, B), "everything")
    assert done.executor == executor, done.reason


def test_float32_over_many_steps(executor: str) -> None:
    for name in ("lstm", "gru-before"):
        compare_float32(executor, make_case(cell_of(name, 8, 16), 200, 4), "outputs")


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("name", ["lstm", "mut1"])
def test_memory_that_is_not_contiguous(executor: str, name: str, layout: str) -> None:
    plain = make_case(cell_of(name, 5, 6), 3, 4, masked=True)
    done = compare(executor, laid_out(plain, layout), "everything")
    assert done.executor == executor, done.reason
    expected = scan(plain.cell, plain.params, plain.xs, plain.state, mask=plain.mask, executor=executor)
    np.testing.assert_allclose(done.outputs.data, expected.outputs.data, rtol=1e-12)


def test_a_view_of_the_batch_first_sequence(executor: str) -> None:
    """(B, T, I) seen as (T, B, I), as in the user's own array; the gradient has to find its way back."""
    case = make_case(cell_of("gru-before"), 5, 2)
    grads = []
    for run in (unroll, partial(scan, executor=executor)):
        leaf = Tensor(np.ascontiguousarray(case.xs.transpose(1, 0, 2)), requires_grad=True)
        done = run(case.cell, case.params, leaf.swapaxes(0, 1))
        grads.append(grad(ops.sum(done.outputs * done.outputs), leaf).data)
    np.testing.assert_allclose(grads[1], grads[0], rtol=1e-11, atol=1e-14)


def test_many_steps(executor: str) -> None:
    """Two thousand steps, with the gradient of every state; and the first inputs matter still."""
    cell = cell_of("gru-before", 2, 3)
    case = make_case(cell, 2000, 2)
    case = dataclasses.replace(case, params={**case.params, "b_z": np.full(3, 4.0)})  # z near 1 remembers
    done = compare(executor, case, "last output", bound=1e-10)
    assert done.executor == executor, done.reason


def test_every_gradient_with_a_gradient_given(executor: str) -> None:
    """grad(outputs, ..., g): no scalar loss; and the outputs themselves as a target."""
    case = make_case(cell_of("lstm"))
    pull = np.random.default_rng(5).normal(size=(4, 3, 4))
    found = []
    for run in (unroll, partial(scan, executor=executor)):
        params = tensors(case)
        done = run(case.cell, params, Tensor(case.xs), case.state)
        squares = done.outputs * done.outputs
        found.append(grad(squares, [done.outputs, done.state["c"], *params.values()], pull))
    for slow, fast in zip(*found, strict=True):
        np.testing.assert_allclose(fast.data, slow.data, rtol=1e-11, atol=1e-13)


def test_backward_and_retain_grad(executor: str) -> None:
    case = make_case(cell_of("lstm"))
    found = []
    for run in (unroll, partial(scan, executor=executor)):
        params = tensors(case)
        done = run(case.cell, params, Tensor(case.xs), case.state)
        kept = [done.states["h"][1].retain_grad(), done.states["c"][0].retain_grad(), done.state["c"].retain_grad()]
        (ops.sum(done.outputs * done.outputs) + ops.sum(done.state["c"])).backward()
        ops.sum(done.states["h"][2]).backward()  # adds to what is there
        found.append([value.grad for value in [*params.values(), *kept]])
    for slow, fast in zip(*found, strict=True):
        assert fast is not None
        np.testing.assert_allclose(fast.data, slow.data, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("wanted", ["W_xi", "W_ho", "b_f", "xs", "start"])
def test_one_target_alone(executor: str, wanted: str) -> None:
    """Only one thing requires a gradient: the others are constants, and the result is the same."""
    case = make_case(cell_of("lstm"))
    found = []
    for run in (unroll, partial(scan, executor=executor)):
        params = {name: Tensor(value, requires_grad=name == wanted) for name, value in case.params.items()}
        xs = Tensor(case.xs, requires_grad=wanted == "xs")
        assert case.state is not None
        state = {"h": Tensor(case.state["h"]), "c": Tensor(case.state["c"], requires_grad=wanted == "start")}
        done = run(case.cell, params, xs, state)
        target = {**params, "xs": xs, "start": state["c"]}[wanted]
        found.append(grad(ops.sum(done.outputs * done.outputs), [target, done.states["h"][1]]))
    for slow, fast in zip(*found, strict=True):
        np.testing.assert_allclose(fast.data, slow.data, rtol=1e-11, atol=1e-14)


def test_plain_arrays_need_no_tape(executor: str) -> None:
    case = make_case(cell_of("mut3"), masked=True)
    done = scan(case.cell, case.params, case.xs, case.state, mask=case.mask, executor=executor)
    expected = unroll(case.cell, case.params, case.xs, case.state, mask=case.mask)
    assert done.executor == executor, done.reason
    assert not done.outputs.requires_grad
    for row, wanted in zip(done.states["h"], expected.states["h"], strict=True):
        assert not row.requires_grad
        np.testing.assert_allclose(row.data, wanted.data, rtol=1e-12)


def test_no_grad(executor: str) -> None:
    case = make_case(cell_of("lstm"))
    with no_grad():
        done = scan(case.cell, tensors(case), Tensor(case.xs, requires_grad=True), executor=executor)
    assert done.executor == executor, done.reason
    values = [done.outputs, *done.state.values(), *done.states["h"], *done.states["c"]]
    assert not any(value.requires_grad for value in values)
    expected = unroll(case.cell, case.params, case.xs).outputs.data
    np.testing.assert_allclose(done.outputs.data, expected, rtol=1e-12)


def test_parameters_that_are_computed(executor: str) -> None:
    """Normalised, transposed, taken out of a larger tensor, given twice: the gradient reaches what they are made of."""
    case = make_case(cell_of("gru-before", 4, 4), 3, 2)
    rng = np.random.default_rng(6)
    arrays = {"block": rng.normal(size=(3, 4, 4)), "other": rng.normal(size=(4, 4)), "start": rng.normal(size=(2, 4))}
    found = []
    for run in (unroll, partial(scan, executor=executor)):
        leaves = {name: Tensor(value, requires_grad=True) for name, value in arrays.items()}
        block, other, start = leaves.values()
        params: dict[str, Any] = tensors(case)
        params |= {"W_xr": block[0], "W_xz": block[1] * 0.5, "W_xn": other.T, "W_hr": other, "W_hz": block[0]}
        params |= {"W_hn": block[2] / ops.norm(block[2], -1, keepdims=True), "b_r": other[1], "b_z": other[:, 2]}
        xs = Tensor(case.xs, requires_grad=True)
        done = run(case.cell, params, xs * 0.7, {"h": ops.tanh(start)})
        targets = [*leaves.values(), xs, params["b_n"], params["W_hn"], *done.states["h"]]
        first = grad(ops.sum(done.outputs**2), targets, create_graph=True)
        combined = sum((ops.sum(value * value) for value in first[:4]), Tensor(0.0))
        found.append([*first, *grad(combined, [*leaves.values(), xs])])
    for slow, fast in zip(*found, strict=True):
        np.testing.assert_allclose(fast.data, slow.data, rtol=1e-10, atol=1e-12)


def test_one_tensor_in_every_place(executor: str) -> None:
    """The input of every step, a matrix, and both states are one leaf."""
    cell = cell_of("lstm", 3, 3)
    names = list(specification(cell)[1])
    square = np.random.default_rng(3).normal(size=(3, 3)) * 0.5
    found = []
    for run in (unroll, partial(scan, executor=executor)):
        leaf = Tensor(square, requires_grad=True)
        params = {name: leaf if name.startswith("W") else leaf[0] for name in names}
        done = run(cell, params, ops.stack([leaf] * 4), {"h": leaf, "c": leaf})
        found.append(grad(ops.sum(done.outputs**2), [leaf, done.states["c"][1]]))
    for slow, fast in zip(*found, strict=True):
        np.testing.assert_allclose(fast.data, slow.data, rtol=1e-11, atol=1e-13)


def test_other_arrays_than_numpy_s(executor: str, guard: Any) -> None:
    """What lives on another device is not compiled, and stays there."""
    case = make_case(cell_of("lstm"))
    params = {name: Tensor(guard.asarray(value), requires_grad=True) for name, value in case.params.items()}
    done = scan(case.cell, params, Tensor(guard.asarray(case.xs)), executor=executor)
    assert done.executor == "unroll"
    assert done.reason
    assert type(done.outputs.data) is guard.Array
    expected = unroll(case.cell, case.params, case.xs).outputs.data
    np.testing.assert_allclose(done.outputs.data.get(), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["tensor", "numbers", "all", "none"])
def test_kinds_of_masks(executor: str, kind: str) -> None:
    case = make_case(cell_of("lstm"), masked=True)
    assert case.mask is not None
    mask: Any = {
        "tensor": Tensor(case.mask),
        "numbers": case.mask.astype(np.int64),
        "all": np.ones((4, 3), bool),
        "none": np.zeros((4, 3), bool),
    }[kind]
    found = []
    for run in (unroll, partial(scan, executor=executor)):
        params = tensors(case)
        done = run(case.cell, params, Tensor(case.xs), case.state, mask=mask)
        found.append([done.outputs, done.state["c"], *grad(ops.sum(done.outputs), list(params.values()))])
    for slow, fast in zip(*found, strict=True):
        np.testing.assert_allclose(fast.data, slow.data, rtol=1e-11, atol=1e-14)


def test_padding_may_be_anything_finite(executor: str) -> None:
    """1e30 where the mask is False reaches neither values nor gradients."""
    case = make_case(cell_of("gru-before"), masked=True)
    assert case.mask is not None
    spoilt = np.where(case.mask[..., None], case.xs, 1e30)
    found = []
    with np.errstate(all="ignore"):
        for xs in (case.xs, spoilt):
            params, leaf = tensors(case), Tensor(xs, requires_grad=True)
            done = scan(case.cell, params, leaf, mask=case.mask, executor=executor)
            found.append([done.outputs, *grad(ops.sum(done.outputs), [leaf, *params.values()])])
    for clean, dirty in zip(*found, strict=True):
        np.testing.assert_allclose(dirty.data, clean.data, rtol=1e-12, atol=1e-15)


# ------------------------------------------------------------------------- steps with a trap in them


class Ties(Written):
    """Every kink exactly at its corner, where h is 0: half of a gradient, or none."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        zero = s.h * 1.0
        a = ops.relu(zero) + ops.abs(zero) + ops.maximum(zero, 0.0 * s.h) + ops.minimum(zero, 2.0 * s.h)
        b = ops.clip(zero, 0.0, 1.0) + ops.sign(zero) + ops.where(zero > 0, zero, 3.0 * zero)
        c = ops.max(zero, -1, keepdims=True) + ops.min(zero, -1, keepdims=True) + ops.norm(zero, -1, keepdims=True)
        d = zero**2 + zero**1 + (s.h + 1.0) ** 0 + ops.greater_equal(zero, 0.0) * zero + ops.equal(zero, 0.0) * zero
        return {"h": (a + b + c + d - 1.0) @ p.U + 0.0 * x[:, :1]}


class OneNameTwice(Written):
    """Two states that are one tensor: what flows into either flows into both."""

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,)), "c": State((self.H,))}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        new = ops.tanh((s.h + 0.5 * s.c) @ p.U + x[:, :1])
        return {"h": new, "c": new}


class EqualButApart(OneNameTwice):
    """Two states that are equal, computed twice: what flows into one does not flow into the other."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = ops.tanh((s.h + 0.5 * s.c) @ p.U + x[:, :1])
        c = ops.tanh((s.h + 0.5 * s.c) @ p.U + x[:, :1])
        return {"h": h * c, "c": c}


class Swapped(OneNameTwice):
    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": s.c, "c": ops.tanh(s.h @ p.U + x[:, :1])}


class Chained(OneNameTwice):
    """h is computed from the new c: the gradient of c has to see that."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        c = ops.tanh(s.h @ p.U) + 0.5 * s.c + x[:, :1]
        return {"h": ops.sin(c) * s.h + c, "c": c}


class Clock(OneNameTwice):
    """A state that neither parameters nor inputs reach, in a cell whose output it moves."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(s.h @ p.U + ops.sin(s.c)), "c": s.c + 1.0}


class Constant(Written):
    """The new state sees parameters only."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.broadcast_to(ops.sum(ops.exp(p.U), 0), s.h.shape)}


class Forgetful(Written):
    """The new state sees the input only, by a product that all rows of a matrix share."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(ops.concatenate([x] * 4, axis=1)[:, : self.H] @ p.U @ p.U)}


class Longer(Written):
    """A Python loop in the step, and the transpose of the matrix it uses."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = s.h
        for k in range(3):
            h = ops.tanh(h @ p.U + x[:, :1] * k) + 0.1 * (h @ p.U.T)
        return {"h": h}


class NormalisedOverRows(Written):
    """The batch is mixed: no row can be computed alone."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        a = s.h @ p.U + x[:, :1]
        centred = a - ops.mean(a, 0, keepdims=True)
        return {"h": centred / ops.sqrt(ops.mean(centred**2, 0, keepdims=True) + 0.1)}


class SizesOfTheBatch(Written):
    """Reads sizes as Python numbers: pure, but another step for every batch size."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        B, H = s.h.shape
        ramp = np.linspace(0.0, 1.0, H).astype(x.dtype)
        return {"h": ops.tanh(s.h @ p.U * (1.0 / B) + ramp if B > 2 else s.h @ p.U + 2.0 * ramp)}


class FastWeights(Written):
    """A matrix as state, read by a product of its own for every row."""

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,), 0.1), "A": State((self.H, self.H))}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        A = 0.9 * s.A + 0.2 * (s.h[:, :, None] * s.h[:, None, :])
        return {"h": ops.tanh(s.h @ p.U + x[:, :1] + ops.squeeze(s.h[:, None, :] @ A, 1)), "A": A}


class ReadOut(Written):
    """Nothing reads y, z, old and twice: products of the new state, of each other, of the old state, and none."""

    output = "z"

    def state(self) -> dict[str, State]:
        return {name: State((self.H,), 0.1) for name in ("twice", "y", "h", "z", "old")}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        c = ops.sigmoid(s.h @ p.U + x[:, :1])
        h = c * s.h + (1.0 - c) * ops.sin(x[:, 1:2])
        y = ops.tanh((h * c) @ p.U + x[:, :1])
        return {"twice": 2.0 * h, "y": y, "h": h, "z": (y * h) @ p.U.T - c, "old": ops.exp(-(s.h @ p.U)) * 0.1}


class ReadOutOverRows(Written):
    """A map that no step reads, of what mixes the rows of the batch, and one that mixes them itself."""

    def state(self) -> dict[str, State]:
        return {name: State((self.H,)) for name in ("h", "y", "z")}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = ops.tanh(s.h * 0.5 + x[:, :1])
        y = h @ p.U
        return {"h": h, "y": ops.mean(h, 0, keepdims=True) * y, "z": (h - ops.mean(h, 0, keepdims=True)) @ p.U}


class CarriedByAnOutput(Written):
    """The gradient of h comes from outputs alone: y and z read the h before the step, and the new one does not."""

    def state(self) -> dict[str, State]:
        return {name: State((self.H,)) for name in ("h", "y", "z")}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.sin(x[:, :1] + 0.1 * p.U[0]), "y": s.h @ p.U, "z": ops.tanh(s.h @ p.U.T) @ p.U}


TRAPS: list[type[Cell]] = [
    Ties, OneNameTwice, EqualButApart, Swapped, Chained, Clock, Constant, Forgetful, Longer, NormalisedOverRows,
    SizesOfTheBatch, FastWeights, ReadOut, ReadOutOverRows, CarriedByAnOutput,
]  # fmt: skip


@pytest.mark.parametrize("cls", TRAPS)
@pytest.mark.parametrize("loss", ["last states", "everything", "some steps"])
def test_steps_with_a_trap(executor: str, cls: type[Cell], loss: str) -> None:
    for masked, carried in ((False, False), (True, True), (False, True)):
        case = make_case(cls(3, 4), masked=masked, carried=carried)
        done = compare(executor, case, loss)
        assert done.executor in (executor, "numpy", "unroll")
        assert done.reason
    compare(executor, make_case(cls(3, 4), T=2), loss, second=True, bound=1e-10)


@pytest.mark.parametrize("cls", [Chained, Forgetful, Longer, ReadOut, CarriedByAnOutput])
def test_these_are_compiled(executor: str, cls: type[Cell]) -> None:
    case = make_case(cls(3, 4))
    done = scan(case.cell, case.params, case.xs, executor=executor)
    assert done.executor == executor, done.reason


SQUASHERS = ["exp", "tanh", "sigmoid", "softplus", "relu", "abs", "sin", "cos", "gelu", "sqrt", "log", "log1p", "sign"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SQUASHERS)
def test_extreme_arguments(executor: str, name: str, dtype: Any) -> None:
    """Zero, the smallest and largest numbers, infinities and NaN: as in NumPy, also where values are vectorised."""
    info = np.finfo(dtype)
    large = 1e3 if name in ("sin", "cos") else float(np.log(info.max))
    some = np.array([0.0, info.smallest_subnormal, info.tiny, 1e-8, 1e-3, 0.3, 1.0, 5.0, 20.0, large - 1, large + 1])
    some = np.concatenate([some, -some, [np.inf, -np.inf, np.nan, -0.0]]).astype(dtype)

    class Squash(Written):
        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            return {"h": getattr(ops, name)(x + s.h)}

    cell = Squash(len(some), len(some))
    case = {"U": np.zeros((len(some), len(some)), dtype)}
    found = []
    with np.errstate(all="ignore"):
        for run in (unroll, partial(scan, executor=executor)):
            start = np.zeros((1, len(some)), dtype)
            xs = Tensor(some[None, None], requires_grad=True)
            done = run(cell, case, xs, {"h": start})
            total = ops.sum(done.outputs)
            back = grad(total, xs).data if name != "sign" else np.zeros(1)  # sign passes no gradient on
            found.append((done.outputs.data, back))
    (slow, slow_back), (fast, fast_back) = found
    np.testing.assert_array_equal(np.isnan(fast), np.isnan(slow))
    # below the smallest normal number zero will do; gelu is a difference for large negative numbers
    np.testing.assert_allclose(fast, slow, rtol=8 * info.eps, atol=8 * info.eps if name == "gelu" else 4 * info.tiny)
    np.testing.assert_array_equal(np.isnan(fast_back), np.isnan(slow_back))
    np.testing.assert_allclose(fast_back, slow_back, rtol=16 * info.eps, atol=16 * info.eps)  # 1 - y^2 is a difference


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["remainder", "floor_divide"])
def test_division_with_rest(executor: str, name: str, dtype: Any) -> None:
    """Every pair of signs, zeros, sizes and infinities: NumPy's numbers to the last bit, as a clock compares them."""
    some = [0.0, -0.0, 1.0, -1.0, 3.0, -7.0, 0.1, -0.3, 1e-3, 1e6, 16777215.0, -1e10, np.inf, -np.inf, np.nan]
    a, b = (grid.ravel().astype(dtype) for grid in np.meshgrid(some, some))
    whole = np.random.default_rng(0).integers(-(2**24), 2**24, (2, 500)).astype(dtype)
    a, b = np.concatenate([a, whole[0], whole[0]]), np.concatenate([b, whole[1], np.arange(1, 501, dtype=dtype)])

    class Divide(Written):
        def params(self) -> dict[str, Param]:
            return {"U": Param((self.H,), "uniform", "recurrent")}

        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            return {"h": getattr(ops, name)(x, p.U) + 0.0 * s.h}

    cell = Divide(len(a), len(a))
    with np.errstate(all="ignore"):
        done = scan(cell, {"U": b}, a[None, None], executor=executor)
        expected = getattr(np, name)(a, b)
    assert done.executor == executor, done.reason
    np.testing.assert_array_equal(done.outputs.data[0, 0], expected)


def test_nan_stays_in_its_row(executor: str) -> None:
    case = make_case(cell_of("lstm"), 4, 3)
    case.xs[1, 2, 0] = np.nan
    with np.errstate(all="ignore"):
        done = scan(case.cell, case.params, case.xs, executor=executor)
    bad = np.isnan(done.outputs.data).any(axis=-1)
    np.testing.assert_array_equal(bad, np.array([[0, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]], bool))


# --------------------------------------------------------------------------------- memory and lifetime


def again(executor: str, case: Case, times: int = 4) -> None:
    """The same cell, other numbers: whatever memory is reused is written now."""
    for k in range(times):
        other = make_case(case.cell, *case.xs.shape[:2], seed=50 + k)
        params, xs = tensors(other), Tensor(other.xs, requires_grad=True)
        done = scan(case.cell, params, xs, other.state, executor=executor)
        grad(ops.sum(done.outputs), [xs, *params.values(), *done.states[next(iter(done.states))]])
        with no_grad():
            scan(case.cell, params, xs, other.state, executor=executor)


KEPT: dict[str, Callable[[Unrolled, list[Tensor]], Any]] = {
    "the result": lambda done, found: done.outputs,
    "outputs.data": lambda done, found: done.outputs.data,
    "a slice": lambda done, found: done.outputs.data[1:3, 0],
    "one state": lambda done, found: done.states["h"][3].data,
    "one row of one state": lambda done, found: done.states["c"][2].data[1],
    "the last state": lambda done, found: done.state["c"],
    "a detached state": lambda done, found: done.states["c"][0].detach(),
    "a computed value": lambda done, found: done.outputs[2],
    "np.asarray": lambda done, found: np.asarray(done.states["h"][1].detach()),
    "a memoryview": lambda done, found: np.frombuffer(memoryview(done.states["h"][0].data)),
    "gradient of the inputs": lambda done, found: found[0],
    "gradient of a matrix": lambda done, found: found[1].data,
    "gradient of a state": lambda done, found: found[-2].data,
    "a slice of a gradient": lambda done, found: found[0].data[2, :1],
}


@pytest.mark.parametrize("what", list(KEPT))
@pytest.mark.parametrize("taped", [True, False])
def test_what_is_kept_is_never_written_again(executor: str, what: str, taped: bool) -> None:
    case = make_case(cell_of("lstm"))
    params, xs = tensors(case), Tensor(case.xs, requires_grad=True)
    done = scan(case.cell, params, xs, case.state, executor=executor)
    every = [value for row in done.states.values() for value in row]
    found = grad(ops.sum(done.outputs * done.outputs), [xs, *params.values(), *every])
    if not taped and "gradient" not in what:
        with no_grad():
            done = scan(case.cell, params, xs, case.state, executor=executor)
    kept = KEPT[what](done, found)
    before = np.array(kept.data if isinstance(kept, Tensor) else kept)
    del done, found, every
    again(executor, case)
    np.testing.assert_array_equal(kept.data if isinstance(kept, Tensor) else kept, before)


def test_gradients_of_states_and_inputs_share_no_memory(executor: str) -> None:
    """Also where a state is the input, or another state, or itself one step later."""

    class Aliases(type(cell_of("rnn"))):  # type: ignore[misc]
        name = "aliases"

        def state(self) -> dict[str, State]:
            return {"h": State((self.H,)), "x": State((self.I,)), "again": State((self.H,)), "old": State((self.H,))}

        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            h = super().step(p, x, s)["h"]
            return {"h": h, "x": x, "again": h, "old": s.h}

    case = make_case(Aliases(3, 4))
    params, xs = tensors(case), Tensor(case.xs, requires_grad=True)
    done = scan(case.cell, params, xs, case.state, executor=executor)
    rows = [value for name in done.states for value in done.states[name]]
    loss = sum((ops.sum(row * row) for row in rows), start=ops.sum(done.outputs))
    wholes = [values.whole() for values in done.states.values()]  # type: ignore[attr-defined]
    wanted = [xs, *params.values(), *rows, *rows[:2]]
    for found in (grad(loss, wanted), grad(loss, [*wanted, *wholes], unused="zeros")):
        for k, g in enumerate(found):
            assert not any(np.shares_memory(g.data, other.data) for other in found[:k])


def test_arrays_of_the_caller(executor: str, tmp_path: Path) -> None:
    """A memmap is as good as an array; an array that is written before the gradient is taken changes no gradient."""
    case = make_case(cell_of("lstm"))
    given = np.memmap(tmp_path / "xs", np.float64, "w+", shape=case.xs.shape)
    given[...] = case.xs
    params, state = tensors(case), {name: array.copy() for name, array in (case.state or {}).items()}
    done = scan(case.cell, params, given, state, executor=executor)
    assert done.executor == executor
    loss = ops.sum(done.outputs * done.outputs)
    expected = [g.data for g in grad(loss, list(params.values()))]
    for array in (given, *state.values()):
        array.fill(0.5)
    for got, before in zip(grad(loss, list(params.values())), expected, strict=True):
        np.testing.assert_array_equal(got.data, before)


def test_states_that_are_read_late(executor: str) -> None:
    """Nobody looked at a state before the memory could be used again; nor asked for a gradient."""
    case = make_case(cell_of("lstm"))
    expected = outcome(unroll, case, "some steps")
    params = tensors(case)
    rows = scan(case.cell, params, case.xs, case.state, executor=executor).states
    again(executor, case)
    for name, row in rows.items():
        for t in (3, 0, 2, 1):
            np.testing.assert_allclose(row[t].data, expected.values[f"{name}[{t}]"], rtol=1e-11)
    again(executor, case)
    found = grad(ops.sum(rows["c"][2] * rows["h"][1]), [params["W_hf"], rows["c"][0]])
    slow = tensors(case)
    old = unroll(case.cell, slow, case.xs, case.state).states
    wanted = grad(ops.sum(old["c"][2] * old["h"][1]), [slow["W_hf"], old["c"][0]])
    for one, two in zip(wanted, found, strict=True):
        np.testing.assert_allclose(two.data, one.data, rtol=1e-11, atol=1e-13)


def test_results_do_not_share_memory_that_a_user_writes(executor: str) -> None:
    """An optimiser scales gradients in place, a user edits what came out: nobody else sees it."""
    case = make_case(cell_of("lstm"))
    params, xs = tensors(case), Tensor(case.xs, requires_grad=True)
    first = scan(case.cell, params, xs, executor=executor)
    found = grad(ops.sum(first.outputs), [xs, *params.values()])
    expected = [value.data.copy() for value in found]
    for value in found:
        value.data *= np.nan
    repeated = grad(ops.sum(first.outputs), [xs, *params.values()])
    second = scan(case.cell, params, xs, executor=executor)
    newer = grad(ops.sum(second.outputs), [xs, *params.values()])
    for wanted, value, other in zip(expected, repeated, newer, strict=True):
        np.testing.assert_array_equal(value.data, wanted)
        np.testing.assert_array_equal(other.data, wanted)
    for k, one in enumerate(found):
        assert not any(np.shares_memory(one.data, other.data) for other in found[k + 1 :])
        assert not np.shares_memory(one.data, xs.data)


def test_results_taken_in_any_order(executor: str) -> None:
    """Forward a, forward b, backward b, backward a, forward c, backward a: every graph has its own numbers."""
    cases = [make_case(cell_of("gru-before"), seed=seed) for seed in range(3)]
    cases = [dataclasses.replace(case, cell=cases[0].cell) for case in cases]

    def forward(run: Any, k: int) -> tuple[Any, list[Tensor]]:
        params = tensors(cases[k])
        done = run(cases[k].cell, params, Tensor(cases[k].xs), cases[k].state)
        return done, [*params.values(), *done.states["h"]]

    run = partial(scan, executor=executor)
    expected = []
    for k in range(3):
        done, targets = forward(unroll, k)
        expected.append([value.data for value in grad(ops.sum(done.outputs**2), targets)])
    live = {k: forward(run, k) for k in (0, 1)}
    for k in (1, 0, 2, 0, 1, 2):
        if k not in live:
            live[k] = forward(run, k)
        done, targets = live[k]
        for value, wanted in zip(grad(ops.sum(done.outputs**2), targets), expected[k], strict=True):
            np.testing.assert_allclose(value.data, wanted, rtol=1e-11, atol=1e-13)


def test_several_losses_on_one_result(executor: str) -> None:
    case = make_case(cell_of("lstm"))
    results = {}
    for run in (unroll, partial(scan, executor=executor)):
        params = tensors(case)
        done = run(case.cell, params, Tensor(case.xs), case.state)
        rng = np.random.default_rng(2)
        losses = [loss(done, rng) for loss in LOSSES.values()]
        targets = [*params.values(), *done.states["c"]]
        results[run] = [grad(loss, targets) for loss in [*losses, *losses[::-1]]]
    for slow, fast in zip(*results.values(), strict=True):
        for one, two in zip(slow, fast, strict=True):
            np.testing.assert_allclose(two.data, one.data, rtol=1e-11, atol=1e-13)


def test_two_runs_are_equal_to_the_last_bit(executor: str) -> None:
    case = make_case(cell_of("lstm", 9, 17), 6, 5)
    one, two = (outcome(partial(scan, executor=executor), case, "everything") for _ in range(2))
    for name, value in {**one.values, **one.first}.items():
        np.testing.assert_array_equal({**two.values, **two.first}[name], value)


@pytest.mark.parametrize("told", [True, False])
def test_parameters_changed_in_place_are_read_again(executor: str, told: bool) -> None:
    """An optimiser writes into the arrays it was given: nothing that was packed before may be used after."""
    case = make_case(cell_of("lstm"))
    params = tensors(case)
    scan(case.cell, params, case.xs, executor=executor)
    for k in range(3):
        for value in params.values():
            value.data *= 0.9 - 0.1 * k
            if told:
                value.mark_changed()
        done = scan(case.cell, params, case.xs, executor=executor)
        expected = unroll(case.cell, params, case.xs)
        np.testing.assert_allclose(done.outputs.data, expected.outputs.data, rtol=1e-12)
        targets = list(params.values())
        wanted = grad(ops.sum(expected.outputs), targets)
        for value, slow in zip(grad(ops.sum(done.outputs), targets), wanted, strict=True):
            np.testing.assert_allclose(value.data, slow.data, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", ["W_hh", "W_xh", "xs", "h"])
def test_a_change_before_the_gradient_is_found(executor: str, name: str) -> None:
    case = make_case(cell_of("rnn"))
    assert case.state is not None
    for run in (unroll, partial(scan, executor=executor)):
        params, xs = tensors(case), Tensor(case.xs, requires_grad=True)
        state = {"h": Tensor(case.state["h"], requires_grad=True)}
        done = run(case.cell, params, xs, state)
        values = {**params, "xs": xs, **state}
        values[name].assign(values[name].data * 2.0)
        with pytest.raises(InPlaceError, match="changed in place"):
            grad(ops.sum(done.outputs * done.outputs), [xs, *params.values(), *state.values()])


def test_inputs_are_not_written(executor: str) -> None:
    case = make_case(cell_of("lstm"), masked=True)
    arrays = [case.xs, *case.params.values(), *(case.state or {}).values()]
    copies = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    outcome(partial(scan, executor=executor), case, "everything", second=True)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_a_dropped_result_is_freed_without_the_cycle_collector(executor: str) -> None:
    """Twenty results, one after the other, take the memory of few."""
    case = make_case(cell_of("lstm", 16, 32), 40, 8)

    def once() -> None:
        params = tensors(case)
        done = scan(case.cell, params, case.xs, executor=executor)
        grad(ops.sum(done.outputs), [*params.values(), *done.states["h"]])

    gc.collect()
    gc.disable()
    try:
        once()
        once()
        tracemalloc.start()
        once()
        base = tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            once()
        grown = tracemalloc.get_traced_memory()[0] - base
    finally:
        tracemalloc.stop()
        gc.enable()
    one = 40 * 8 * 32 * 8  # the bytes of one state over the sequence
    assert grown < 4 * one, f"20 dropped results left {grown} bytes, {grown / one:.1f} sequences of one state"


def leftovers(run: Any) -> set[str]:
    """The kinds of objects that only the cycle collector would free after `run`, twice called."""
    run()
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        run()
        gc.collect()
        return {type(found).__name__ for found in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


RUNS: dict[str, Any] = {
    "backward": lambda done, params: ops.sum(done.outputs).backward(),
    "retain_grad": lambda done, params: (
        [value.retain_grad() for value in (*done.outputs, done.state["c"])],
        ops.sum(done.outputs * done.outputs[1] + done.state["c"]).backward(),
    ),
    "grad": lambda done, params: grad(
        ops.sum(done.outputs[1:][0]), [*params.values(), *done.states["h"]], unused="zeros"
    ),
    "second order": lambda done, params: grad(
        ops.sum(grad(ops.sum(done.outputs**2), done.outputs[0], create_graph=True)), list(params.values())
    ),
    "anomaly": lambda done, params: anomalous(lambda: grad(ops.sum(ops.sqrt(done.outputs * 0.0)), params["W_xi"])),
}


def anomalous(run: Callable[[], Any]) -> None:
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError), anomaly():
        run()


@pytest.mark.parametrize("what", list(RUNS))
@pytest.mark.parametrize("how", ["plain", "masked", "blocks", "unroll"])
def test_no_run_leaves_a_cycle(executor: str, how: str, what: str) -> None:
    case = make_case(cell_of("lstm"), masked=how == "masked")
    way = {"blocks": {"recompute": 2}, "unroll": {"executor": "unroll"}}.get(how, {})

    def run() -> None:
        params = tensors(case)
        done = scan(case.cell, params, case.xs, mask=case.mask, **{"executor": executor, **way})
        RUNS[what](done, params)

    assert not leftovers(run)


def test_no_model_leaves_a_cycle() -> None:
    config = ModelConfig(cell="gru", hidden=4, layers=2, embed="3", dropout=0.1)
    model = build_model(config, 5, load_cell("gru"))

    def run() -> None:
        params = model.init(np.random.default_rng(0), np.float64)
        out = model.forward(params, np.zeros((4, 2), int), rng=np.random.default_rng(0))
        out.layers[0].outputs[1].retain_grad()
        loss = ops.sum(out.logits)
        grad(loss, list(params.values()), create_graph=True)
        loss.backward()

    assert not leftovers(run)


def test_a_step_that_is_refused_leaves_no_array_in_a_cycle() -> None:
    """The error knows the frames down to the one that has the arrays."""

    class Looks(Longer):
        name = "looks"

        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            return super().step(p, x, s) if float(ops.sum(x)) else {}

    def run() -> None:
        case = make_case(Looks(3, 4))
        assert "float()" in scan(case.cell, tensors(case), case.xs).reason

    assert not leftovers(run) & {"Tensor", "Node", "frame", "traceback"}


def test_threads(executor: str) -> None:
    """One cell, one shape, four threads with numbers of their own."""
    cell = cell_of("lstm", 6, 8)
    cases = [make_case(cell, 12, 4, seed=seed) for seed in range(4)]
    expected = [outcome(unroll, case, "everything") for case in cases]
    errors: list[str] = []
    together = threading.Barrier(len(cases))

    def work(k: int) -> None:
        try:
            together.wait(20)
            for _ in range(6):
                got = outcome(partial(scan, executor=executor), cases[k], "everything", like=expected[k])
                for part in ("values", "first"):
                    error, name = worst(getattr(got, part), getattr(expected[k], part))
                    if error > 1e-11:
                        errors.append(f"thread {k}, {name}: {error}")
        except Exception as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[:3]


def test_a_gradient_taken_in_another_thread(executor: str) -> None:
    case = make_case(cell_of("gru-after"))
    params = tensors(case)
    done = scan(case.cell, params, Tensor(case.xs), executor=executor)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(grad(ops.sum(done.outputs), list(params.values()))))
    thread.start()
    thread.join()
    for one, two in zip(found, grad(ops.sum(done.outputs), list(params.values())), strict=True):
        np.testing.assert_array_equal(one.data, two.data)


def test_one_cell_in_many_shapes_and_dtypes(executor: str) -> None:
    """To and fro between them: nothing that was compiled for one is used for another."""
    cell = cell_of("mut1", 3, 4)
    plans = [(4, 3, np.float64), (1, 3, np.float64), (4, 1, np.float32), (4, 3, np.float32), (9, 2, np.float64)]
    for T, B, dtype in plans * 2:
        case = make_case(cell, T, B, seed=T)
        (compare_float32 if dtype == np.float32 else compare)(executor, case, "everything")


class CountsRows(Longer):
    """Final. Another step for large batches, and one that divides by their size."""

    name = "counts-rows"

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        new = super().step(p, x, s)
        if x.shape[0] > 8:
            return {name: value * 0.5 for name, value in new.items()}
        first = next(iter(new))
        return {**new, first: new[first] + ops.mean(x) if x.shape[0] == 5 else new[first]}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cls", [None, Chained, CountsRows])
def test_one_cell_for_batches_of_many_sizes(executor: str, cls: Any, masked: bool) -> None:
    """7 is the size that the program for all of them was traced with, and 4 and 3 are sizes of the cell."""
    cell = cell_of("lstm") if cls is None else cls(3, 4)
    for B in (2, 7, 3, 4, 5, 9, 14, 1):
        case = make_case(cell, T=3, B=B, masked=masked)
        compare(executor, case, "everything", second=True, bound=1e-9)
        compare(executor, case, "last states", recompute=2)


def test_cells_of_one_class_with_other_options(executor: str) -> None:
    for _ in range(2):
        for name in ("rnn", "rnn-relu", "rnn-sigmoid", "rnn-identity", "gru-before", "gru-after"):
            compare(executor, make_case(cell_of(name)), "everything")


# ------------------------------------------------------------------------------- what the tape can do


def test_windows_with_the_state_carried(executor: str) -> None:
    """Truncated BPTT, on the tape and detached."""
    case = make_case(cell_of("lstm"), 12, 2)
    found: dict[Any, list[Array]] = {}
    for run in (unroll, partial(scan, executor=executor)):
        params = tensors(case)
        state: Any = case.state
        found[run] = []
        for w in truncated_windows(12, 4, 4):
            done = run(case.cell, params, Tensor(case.xs[w.start : w.stop]), state)
            found[run] += [value.data for value in grad(ops.sum(done.outputs**2), list(params.values()))]
            state = {name: value.data for name, value in done.state.items()}
        first = run(case.cell, params, Tensor(case.xs[:5]), case.state)
        second = run(case.cell, params, Tensor(case.xs[5:]), first.state)
        targets = [*params.values(), first.states["c"][1], first.state["h"]]
        found[run] += [value.data for value in grad(ops.sum(second.outputs**2), targets)]
    for slow, fast in zip(*found.values(), strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-10, atol=1e-13)


def test_listeners_hear_the_same(executor: str) -> None:
    """The same names in the same order with the same values; and a gradient flows to what was heard."""
    case = make_case(cell_of("gru-before"))
    heard: dict[Any, list[tuple[str, Any]]] = {}
    found: dict[Any, list[Tensor]] = {}
    for run in (unroll, partial(scan, executor=executor)):
        told: list[tuple[str, Any]] = []
        params = tensors(case)
        with listen(lambda name, value, told=told: told.append((name, value))):  # type: ignore[misc]
            done = run(case.cell, params, Tensor(case.xs), case.state)
        heard[run] = told
        found[run] = grad(ops.sum(done.outputs**2), [value for _, value in told])
        assert done.reason
    slow, fast = heard.values()
    assert [name for name, _ in fast] == [name for name, _ in slow] == ["r", "z", "n"] * 4
    for (_, one), (_, two) in zip(slow, fast, strict=True):
        np.testing.assert_allclose(two.data, one.data, rtol=1e-12)
    for one, two in zip(*found.values(), strict=True):
        np.testing.assert_allclose(two.data, one.data, rtol=1e-11, atol=1e-14)


def test_a_listener_hears_nothing_of_the_tracing(executor: str) -> None:
    """A new cell, never run before: nothing is announced but the steps themselves."""
    case = make_case(cell_of("lstm", 2, 3), T=2)
    told: list[Any] = []
    with listen(lambda name, value: told.append((name, value))):
        scan(case.cell, case.params, case.xs, executor=executor)
    assert [name for name, _ in told] == list("ifog") * 2
    assert all(isinstance(value, Tensor) for _, value in told)


def test_anomaly_names_op_layer_timestep_and_gate(executor: str) -> None:
    case = make_case(cell_of("gru-before"))
    case.params["W_xz"][1, 1] = np.inf
    messages = []
    for run in (unroll, partial(scan, executor=executor)):
        with anomaly(), np.errstate(all="ignore"), pytest.raises(NonFiniteError) as caught:
            run(case.cell, case.params, Tensor(case.xs), layer=3)
        assert caught.value.where == {"op": "matmul", "layer": 3, "timestep": 0, "gate": "z"}
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_anomaly_names_a_bad_gradient(executor: str) -> None:
    """Forward is finite; on the way back 1e100 is met four times."""
    cell = load_cell("rnn").cls(1, 1, {"activation": "relu"})
    where = []
    for run in (unroll, partial(scan, executor=executor)):
        params = {
            "W_xh": Tensor(np.zeros((1, 1))),
            "W_hh": Tensor(np.full((1, 1), 1e100), requires_grad=True),
            "b_h": Tensor(np.zeros(1)),
        }
        with anomaly(), np.errstate(all="ignore"):
            done = run(cell, params, np.ones((6, 1, 1)), {"h": Tensor(np.full((1, 1), 1e-320), requires_grad=True)})
            with pytest.raises(NonFiniteError) as caught:
                grad(ops.sum(done.outputs[-1]), params["W_hh"])
        where.append(caught.value.where)
    assert where[0] == where[1] == {"op": "matmul", "layer": 0, "timestep": 2, "gate": "a"}


def test_anomaly_begun_after_the_run(executor: str) -> None:
    """The run was compiled; the gradient is asked for inside anomaly(): a NaN is found all the same."""
    case = make_case(cell_of("lstm"))
    params = tensors(case)
    done = scan(case.cell, params, Tensor(case.xs), executor=executor)
    total = ops.sum(done.outputs)
    with anomaly():
        grad(total, list(params.values()))
        with np.errstate(all="ignore"), pytest.raises(NonFiniteError):
            grad(total, list(params.values()), np.array(np.inf))


def test_gradcheck(executor: str, rng: np.random.Generator) -> None:
    case = make_case(cell_of("mut2"), 2, 2)
    names = list(case.params)

    def f(xs: Any, *values: Any) -> tuple[Any, ...]:
        done = scan(case.cell, dict(zip(names, values, strict=True)), xs, executor=executor)
        return done.outputs, done.state["h"]

    gradcheck(f, case.xs, *case.params.values(), rng=rng)


def test_hvp_and_jvp(executor: str) -> None:
    case = make_case(cell_of("gru-after"), 3, 2)
    names = list(case.params)
    rng = np.random.default_rng(4)
    way = [rng.normal(size=value.shape) for value in case.params.values()]
    found = []
    for run in (unroll, partial(scan, executor=executor)):

        def outputs(*values: Any, run: Any = run) -> Any:
            return run(case.cell, dict(zip(names, values, strict=True)), Tensor(case.xs), case.state).outputs

        def loss(*values: Any, outputs: Any = outputs) -> Any:
            return ops.sum(outputs(*values) ** 2)

        arrays = list(case.params.values())
        found.append([*hvp(loss, arrays, way), *jvp(outputs, arrays, way)])
    for slow, fast in zip(*found, strict=True):
        np.testing.assert_allclose(fast.data, slow.data, rtol=1e-10, atol=1e-12)


def test_recompute(executor: str) -> None:
    """The sequence in two blocks, of which only the carried state is kept."""
    case = make_case(cell_of("lstm"), 6, 2)
    names = list(case.params)
    found = []
    for run in (unroll, partial(scan, executor=executor)):
        params, xs = tensors(case), Tensor(case.xs, requires_grad=True)

        def block(xs: Any, h: Any, c: Any, *values: Any, run: Any = run) -> tuple[Any, ...]:
            done = run(case.cell, dict(zip(names, values, strict=True)), xs, {"h": h, "c": c})
            return done.outputs, done.state["h"], done.state["c"]

        assert case.state is not None
        state: tuple[Any, ...] = (Tensor(case.state["h"]), Tensor(case.state["c"]))
        total: Any = 0.0
        for t in (0, 3):
            outputs, *state_list = recompute(block, xs[t : t + 3], *state, *params.values())
            state = tuple(state_list)
            total = ops.sum(outputs**2) + total
        found.append([total, *grad(total, [xs, *params.values()])])
    for slow, fast in zip(*found, strict=True):
        np.testing.assert_allclose(fast.data, slow.data, rtol=1e-11, atol=1e-13)


def test_a_layer_on_a_layer(executor: str) -> None:
    """The outputs of one scan go into the next; once with parameters of its own, once with the same ones."""
    lower, upper = make_case(cell_of("mut3", 4, 4)), make_case(cell_of("mut3", 4, 4), seed=9)
    for shared in (False, True):
        found = []
        for run in (unroll, partial(scan, executor=executor)):
            one = tensors(lower)
            two = one if shared else tensors(upper)
            xs = Tensor(lower.xs, requires_grad=True)
            first = run(lower.cell, one, xs, lower.state)
            second = run(lower.cell, two, first.outputs, upper.state, layer=1)
            total = ops.sum(second.outputs**2) + ops.sum(first.outputs[1])
            targets = [xs, *one.values(), *two.values(), *first.states["h"], *second.states["h"]]
            found.append(grad(total, targets))
            combined = sum((ops.sum(g) for g in grad(total, [xs, *one.values()], create_graph=True)), Tensor(0.0))
            found[-1] += grad(combined, [xs, *one.values(), *two.values()])
        for slow, fast in zip(*found, strict=True):
            np.testing.assert_allclose(fast.data, slow.data, rtol=1e-10, atol=1e-12)


def test_a_model_runs_by_the_executor_it_is_told(executor: str) -> None:
    model = build_model(ModelConfig(cell="lstm", hidden=6, layers=2, embed="4"), 7, load_cell("lstm"))
    params = model.init(np.random.default_rng(0), np.float64)
    ids = np.random.default_rng(1).integers(0, 7, (5, 3))
    found = []
    for name in ("unroll", executor):
        loss = ops.cross_entropy(model.forward(params, ids[:-1], executor=name).logits, ids[1:])
        found.append([loss, *grad(loss, list(params.values()))])
    for slow, fast in zip(*found, strict=True):
        np.testing.assert_allclose(fast.data, slow.data, rtol=1e-11, atol=1e-14)


# -------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "change",
    [
        {"xs": np.ones((4, 3))},
        {"xs": np.ones((4, 2, 5))},
        {"xs": np.ones((0, 2, 3))},
        {"xs": np.ones((4, 0, 3))},
        {"xs": np.ones((4, 2, 3), np.float32)},
        {"xs": np.ones((4, 2, 3), np.int64)},
        {"mask": np.ones((2, 4), bool)},
        {"state": {"h": np.ones((2, 4))}},
        {"state": {"h": np.ones((2, 4)), "c": np.ones((3, 4))}},
        {"state": {"h": np.ones((2, 4)), "c": np.ones((2, 4)), "d": np.ones((2, 4))}},
        {"state": {"h": np.ones((2, 4), np.float32), "c": np.ones((2, 4))}},
        {"W_hf": None},
        {"W_xi": np.ones((4, 3))},
        {"b_o": np.ones(4, np.float32)},
    ],
    ids=lambda change: "-".join(f"{key}" for key in change),
)
def test_errors_are_those_of_unroll(executor: str, change: dict[str, Any]) -> None:
    case = make_case(cell_of("lstm"), 4, 2)
    params: dict[str, Any] = dict(case.params)
    for name, value in change.items():
        if value is None:
            del params[name]
        elif name in params:
            params[name] = value
    messages = []
    for run in (unroll, partial(scan, executor=executor)):
        with pytest.raises(TinygradRNNError) as caught:
            run(case.cell, params, change.get("xs", case.xs), change.get("state"), mask=change.get("mask"))
        messages.append((type(caught.value), str(caught.value).removeprefix("scan").removeprefix("unroll")))
        assert "\n" not in str(caught.value)
    assert messages[0] == messages[1]


def test_an_executor_that_does_not_exist() -> None:
    case = make_case(cell_of("rnn"))
    with pytest.raises(InputError, match=r"'lvm'.*llvm") as caught:
        scan(case.cell, case.params, case.xs, executor="lvm")
    assert "\n" not in str(caught.value)


def test_the_executor_is_chosen_or_asked_for(executor: str) -> None:
    case = make_case(cell_of("gru-before"))
    asked = scan(case.cell, case.params, case.xs, executor="unroll")
    chosen = scan(case.cell, case.params, case.xs)
    assert asked.executor == "unroll"
    assert chosen.executor in ("numpy", "llvm"), chosen.reason
    assert chosen.reason
    np.testing.assert_allclose(chosen.outputs.data, asked.outputs.data, rtol=1e-12)


def test_the_states_are_all_there(executor: str) -> None:
    """As lists of T tensors (B, H), the last of which are the final state; and the outputs are the first state."""
    case = make_case(cell_of("lstm"), 5, 2)
    done = scan(case.cell, tensors(case), case.xs, executor=executor)
    assert list(done.states) == list(done.state) == list(specification(case.cell)[0])
    for name, row in done.states.items():
        assert len(row) == 5
        assert all(isinstance(value, Tensor) and value.shape == (2, 4) for value in row)
        assert [value.shape for value in row[1:3]] == [(2, 4)] * 2
        np.testing.assert_array_equal(row[-1].data, done.state[name].data)
    np.testing.assert_array_equal(np.stack([value.data for value in done.states["h"]]), done.outputs.data)


class OneForBoth(Cell):
    """Final. For one row the gradient of q is the gradient of the state c, and is read twice."""

    name = "one-for-both"
    summary = citation = equation = "one gradient for a state and a parameter"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,)), "c": State(())}

    def params(self) -> dict[str, Param]:
        return {"q": Param((1,), "normal:0.5", "bias"), "U": Param((1, self.H), "normal:0.5", "recurrent")}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        v = -(s.c + p.q)
        return {"h": ops.tanh(ops.reshape(v, (x.shape[0], 1)) @ p.U), "c": ops.tanh(v)}


@pytest.mark.parametrize("B", [1, 2])
def test_a_gradient_that_is_carried_and_summed_up(executor: str, B: int) -> None:
    done = compare(executor, make_case(OneForBoth(2, 3), T=5, B=B), "everything")
    assert done.executor == executor


class Joins(Cell):
    """Final. Parts that are joined, and joined again; slices of what the same step has computed."""

    name = "joins"
    summary = citation = equation = "concatenations inside each other"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {"U": Param((self.I * 2 + self.H + 2, self.H), "normal:0.5", "recurrent")}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        v = ops.tanh(s.h * 2.0)
        inner = ops.concatenate([v[:, 1:3], x], axis=1)
        return {"h": ops.tanh(ops.concatenate([inner, s.h, ops.sin(x)], axis=1) @ p.U)}


def test_joined_parts_of_joined_parts(executor: str) -> None:
    for B in (1, 3):
        done = compare(executor, make_case(Joins(3, 4), B=B), "everything")
        assert done.executor == executor


class AheadOfItsTime(Cell):
    """Final. A state h that reads no state, so that it is computed for all timesteps at once, and read again there."""

    name = "ahead"
    summary = citation = equation = "a state before the loop"

    def state(self) -> dict[str, State]:
        return {"o": State((self.H,)), "h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        specs = {name: Param((self.I, self.H), "normal:0.5", "input") for name in "WP"}
        return {**specs, "U": Param((self.H, self.H), "normal:0.5", "recurrent")}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        y = x @ p.W
        h = (y - ops.mean(y, axis=-1, keepdims=True)) * 2.0
        return {"o": self.out(h, h + x @ p.P, s.o @ p.U), "h": h}

    def out(self, h: Any, ahead: Any, carried: Any) -> Any:
        return ahead


class AheadAndReadInTheLoop(AheadOfItsTime):
    """Final. The loop reads h as well, and then keeps a value for the gradient."""

    def out(self, h: Any, ahead: Any, carried: Any) -> Any:
        g = ops.tanh(h + carried)
        return g * g + ops.tanh(ahead)


@pytest.mark.parametrize("kind", [AheadOfItsTime, AheadAndReadInTheLoop])
def test_nothing_is_written_over_a_state_that_is_computed_before_the_loop(executor: str, kind: type[Cell]) -> None:
    done = compare(executor, make_case(kind(2, 3)), "everything")
    assert done.executor == executor


class Given(Cell):
    """Final. A state made of parameters alone, which the output reads in the same timestep."""

    name = "given_alone"
    summary = citation = equation = "written for a test"

    def state(self) -> dict[str, State]:
        return {"out": State((self.H,)), "h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {"W": Param((self.I, self.H), "normal:0.5", "input"), "b": Param((self.H,), "normal:0.5", "bias")}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = ops.broadcast_to(ops.exp(p.b), (x.shape[0], self.H))
        return {"out": h + x @ p.W, "h": h}


class GivenTwice(Given):
    """The reader is made of parameters alone itself, and so is one that reads that."""

    def state(self) -> dict[str, State]:
        return {**Given.state(self), "last": State((self.H,))}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = ops.broadcast_to(ops.exp(p.b), (x.shape[0], self.H))
        out = ops.tanh(h * 0.7) + p.b
        return {"out": out, "h": h, "last": out @ p.W.T @ p.W}


class GivenAgain(Given):
    """The reader is the same value under another name, and a copy."""

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = ops.broadcast_to(ops.exp(p.b), (x.shape[0], self.H))
        return {"out": h * 1.0, "h": h}


@pytest.mark.parametrize("loss", ["outputs", "some steps", "everything"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", [Given, GivenTwice, GivenAgain])
def test_who_reads_a_new_state_made_of_parameters_reads_the_state(
    executor: str, kind: type[Cell], masked: bool, loss: str
) -> None:
    """The gradient at that state has the part that came through its reader."""
    done = compare(executor, make_case(kind(3, 4), masked=masked), loss, second=True, bound=1e-10)
    assert done.executor != "unroll", done.reason


class Beside(Cell):
    """Final. x and h are added, so that one value is the gradient of both."""

    name = "beside"
    summary = citation = equation = "written for a test"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {"b": Param((self.H,), "normal:0.5", "bias")}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.tanh(s.h + x + p.b)}


@pytest.mark.parametrize("loss", list(LOSSES))
def test_the_gradient_of_the_input_may_be_that_of_a_state(executor: str, loss: str) -> None:
    for B in (1, 3):
        done = compare(executor, make_case(Beside(4, 4), B=B), loss)
        assert done.executor == executor, done.reason
