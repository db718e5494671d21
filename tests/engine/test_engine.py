"""The tape: gradients of anything, what is kept alive, what is refused, and how much work a walk is."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinygrad_rnn
from tinygrad_rnn import engine, ops
from tinygrad_rnn.autodiff import gradcheck, hvp, jacobian, jvp, vjp
from tinygrad_rnn.compile.ends import lookup
from tinygrad_rnn.engine import Node, primitive
from tinygrad_rnn.errors import (
    DeviceError,
    DtypeError,
    GradientError,
    InPlaceError,
    InputError,
    NonFiniteError,
    ShapeError,
    TinygradRNNError,
)
from tinygrad_rnn.tensor import Tensor, grad


def leaf(*values: Any, dtype: str = "float64") -> Tensor:
    return Tensor(np.array(values, dtype), requires_grad=True)


# ------------------------------------------------------------------------------------- gradients


def test_grad_of_leaves_and_of_values_on_the_way() -> None:
    x = leaf(1.0, 2.0)
    h = x * 3.0
    y = (h * h).sum()
    to_h, to_x = grad(y, [h, x])
    np.testing.assert_array_equal(to_h.data, [6.0, 12.0])
    np.testing.assert_array_equal(to_x.data, [18.0, 36.0])
    np.testing.assert_array_equal(grad(y, y).data, 1.0)


def test_a_node_above_another_target_still_passes_its_gradient_on() -> None:
    """dL/dh_t for every t is one call: the recurrence h = 2h gives powers of two."""
    states = [leaf(1.0)]
    for _ in range(5):
        states.append(states[-1] * 2.0)
    assert [g.item() for g in grad(states[-1], states)] == [32.0, 16.0, 8.0, 4.0, 2.0, 1.0]


def test_a_tensor_used_twice_in_one_op_and_in_many() -> None:
    x = leaf(3.0)
    assert grad(x * x, x).item() == 6.0
    assert grad(x + x + x * 2.0 + x, x).item() == 5.0


def test_unused_target() -> None:
    x, other = leaf(1.0, 2.0), leaf(5.0)
    y = x.sum()
    np.testing.assert_array_equal(grad(y, [other], unused="zeros")[0].data, [0.0])
    with pytest.raises(
        GradientError, match=r"position 1, shape \(1,\), appears not to have been used in the graph of y"
    ):
        grad(y, [x, other])
    part, same = x[0], x[0]
    assert grad(part * 2.0, part).item() == 2.0
    with pytest.raises(GradientError, match=r"a fresh slice is another tensor .* unused='zeros' gives zeros"):
        grad(part * 2.0, same)
    y.backward()
    assert other.grad is None


def test_seed() -> None:
    x = leaf(1.0, 2.0)
    np.testing.assert_array_equal(grad(x * 2.0, x, np.array([1.0, 10.0])).data, [2.0, 20.0])
    with pytest.raises(
        GradientError, match=r"one element, got shape \(2,\); sum it up, or give g=, the .* of shape \(2,\)"
    ):
        grad(x * 2.0, x)
    with pytest.raises(ShapeError, match=r"expected a gradient of shape \(2,\) float64, got \(3,\) float64"):
        grad(x * 2.0, x, np.ones(3))


def test_what_is_no_tensor_has_no_gradient() -> None:
    wrong: Any = 3.0
    with pytest.raises(GradientError, match="expected a tensor as output, got float"):
        grad(wrong, leaf(1.0))
    with pytest.raises(GradientError, match="expected tensors as targets, got float at position 1"):
        grad(leaf(1.0).sum(), [leaf(1.0), wrong])
    for targets, got in ((3, "int"), (None, "NoneType"), ({"W": leaf(1.0)}, r"dict; give list\(named\.values\(\)\)$")):
        given: Any = targets
        with pytest.raises(GradientError, match=f"^grad: expected a tensor or a list of tensors as targets, got {got}"):
            grad(leaf(1.0).sum(), given)
    for g in ("abc", object()):
        with pytest.raises(GradientError, match=r"^grad: expected a tensor, an array or a number as g=, got "):
            grad(leaf(1.0) * 1.0, leaf(1.0), g)
    with pytest.raises(GradientError, match="expected a tensor or None, got float"):
        leaf(1.0).grad = wrong


def test_constants_have_no_gradient() -> None:
    x = leaf(1.0)
    with pytest.raises(GradientError, match=r"got a constant; was it computed inside no_grad"):
        grad(Tensor([1.0]), x)
    with pytest.raises(GradientError, match="constant at position 0"):
        grad(x * 1.0, [Tensor([1.0])])
    with pytest.raises(GradientError, match="constant"):
        x.detach().backward()


def test_results_are_arrays_that_belong_to_the_caller() -> None:
    """A gradient that came through unchanged may be the seed, another target's, or a read-only broadcast view."""
    a, b, seed = leaf(1.0, 2.0), leaf(3.0, 4.0), np.ones(2)
    ga, gb = grad(a + b, [a, b], seed)
    assert not np.shares_memory(ga.data, gb.data)
    assert not np.shares_memory(ga.data, seed)
    total = grad(a.sum(), a).data
    assert total.flags.writeable and total.flags.owndata
    x = Tensor(2.0, requires_grad=True)
    assert type(grad(x * x + x, x).data) is np.ndarray


@pytest.mark.parametrize("create_graph", [False, True])
def test_no_two_gradients_share_memory(create_graph: bool) -> None:
    """Else what is clipped in place is clipped twice."""
    a, b, c, seed = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf([5.0], [6.0]), Tensor(np.ones(2))
    y = a + b + ops.reshape(c, (2,))
    total = ops.sum(y)
    found = [
        *grad(y, [a, a, b, c, y, y], seed, create_graph=create_graph),
        *grad(total, [a, c, total, a], create_graph=create_graph),
    ]
    for each in (a, b, c):
        each.grad = None
    y.retain_grad().backward(seed, create_graph=create_graph)
    found += [a.grad, b.grad, c.grad, y.grad]  # type: ignore[list-item]
    for k, g in enumerate(found):
        assert g.data.flags.writeable and not np.shares_memory(g.data, seed.data)
        assert not any(np.shares_memory(g.data, other.data) for other in found[:k])
    found[0].data *= 0.0
    np.testing.assert_array_equal(found[1].data, 1.0)


def test_derivatives_of_functions_share_no_memory() -> None:
    x, v, seed = np.ones(2), np.ones(2), np.ones(2)
    y, pullback = vjp(lambda p, q: p + q, x, x)
    results = [y, *pullback(seed), *pullback(seed, create_graph=True), *jvp(lambda p: p + 0.0, [x], [v])]
    results += [*hvp(lambda p, q: ops.sum(p * q), [x, x], [v, v]), jacobian(lambda p: p + 0.0, x)]
    arrays = [x, v, seed, *(result.data for result in results)]
    for k, array in enumerate(arrays):
        assert not any(np.shares_memory(array, other) for other in arrays[:k])


def test_backward_adds_up() -> None:
    x = leaf(1.0, 2.0)
    assert x.grad is None
    for expected in ([2.0, 4.0], [4.0, 8.0]):
        (x * x).sum().backward()
        assert x.grad is not None
        np.testing.assert_array_equal(x.grad.data, expected)
    x.grad = None
    (x * 3.0).backward(np.ones(2))
    np.testing.assert_array_equal(x.grad.data, [3.0, 3.0])  # type: ignore[attr-defined]
    with pytest.raises(ShapeError, match=r"grad: expected shape \(2,\)"):
        x.grad = Tensor(np.ones(3))


def test_retain_grad() -> None:
    x = leaf(1.0, 2.0)
    kept, other = (x * 2.0).retain_grad(), x * 3.0
    (kept * other).sum().backward()
    np.testing.assert_array_equal(kept.grad.data, [3.0, 6.0])  # type: ignore[union-attr]
    assert other.grad is None


def test_detach_shares_the_memory_and_stops_the_gradient() -> None:
    x = leaf(2.0)
    assert x.detach().data is x.data
    assert grad(x * x.detach(), x).item() == 2.0


def test_no_grad_records_nothing_in_this_thread_alone() -> None:
    x = leaf(2.0)
    inside, done, recorded = threading.Event(), threading.Event(), []

    def other() -> None:
        inside.wait(10)
        recorded.append((x * x).requires_grad)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with engine.no_grad():
        inside.set()
        assert done.wait(10)
        assert not (x * x).requires_grad and not ops.sum(x).requires_grad
    thread.join()
    assert recorded == [True]
    assert (x * x).requires_grad


def test_no_grad_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), engine.no_grad():
        raise KeyError
    assert (leaf(1.0) * 2.0).requires_grad


def test_create_graph_to_the_fourth_order() -> None:
    x = leaf(1.5)
    y = x**4
    for expected in (4 * 1.5**3, 12 * 1.5**2, 24 * 1.5, 24.0):
        y = grad(y, x, create_graph=True)
        assert y.item() == pytest.approx(expected, rel=1e-12)
    assert grad(y, x).item() == 0.0


def test_create_graph_is_a_wish_that_no_grad_does_not_overrule() -> None:
    x = leaf(3.0)
    y = x**3
    with engine.no_grad():
        first = grad(y, x, create_graph=True)
    assert grad(first, x).item() == 18.0


# ---------------------------------------------------------------------------------- in-place writes


def test_a_leaf_written_after_an_op_saved_it() -> None:
    w = leaf(1.0, 2.0)
    y = (w * w).sum()
    w.assign(np.zeros(2))
    with pytest.raises(InPlaceError, match=r"^mul: an input was changed in place 1 time"):
        grad(y, w)


def test_an_optimiser_that_writes_from_outside_says_so() -> None:
    w = leaf(1.0, 2.0)
    y = ops.exp(w * 2.0).sum() + (w * w).sum()
    w.data -= 0.1
    w.mark_changed()
    with pytest.raises(InPlaceError, match=r"^mul"):
        grad(y, w)


def test_writing_what_no_vjp_reads_is_allowed() -> None:
    w = leaf(1.0, 2.0)
    y = ops.tanh(w).sum()  # tanh keeps its output
    w.assign(np.zeros(2))
    np.testing.assert_allclose(grad(y, w).data, 1 - np.tanh([1.0, 2.0]) ** 2)


def test_constants_and_views_of_a_leaf_are_watched_too() -> None:
    w, c = leaf(1.0, 2.0), Tensor(np.ones(2))
    y = ops.reshape(w, (2, 1)) * ops.reshape(c, (2, 1))
    c[0] = 5.0
    with pytest.raises(InPlaceError):
        grad(y.sum(), w)
    z = ops.exp(w) * ops.transpose(ops.reshape(w, (1, 2)))
    w[1] = 0.0
    with pytest.raises(InPlaceError):
        grad(z.sum(), w)


@pytest.mark.parametrize("index", [0, slice(0, 2), (..., 0), None, np.int64(1)], ids=str)
def test_a_slice_is_a_view_of_its_leaf_and_watched(index: Any) -> None:
    w = leaf(1.0, 2.0, 3.0)
    part = w[index]
    assert np.shares_memory(part.data, w.data)
    y = (part * part).sum()
    w.assign(9.0)
    with pytest.raises(InPlaceError):
        grad(y, w)


@pytest.mark.parametrize("index", [[0], True, np.array([0]), np.array([True, False])], ids=str)
def test_what_an_array_indexes_is_a_copy_and_may_outlive_a_write(index: Any) -> None:
    w = leaf(1.0, 2.0)
    y = (w[index] * w[index]).sum()
    w.assign(9.0)
    assert grad(y, w).data[0] == 2.0


def test_tensors_of_one_memory_are_watched_together() -> None:
    outside = Tensor(np.ones(2))
    inside = Tensor(outside, requires_grad=True)
    y = (inside * inside).sum()
    outside.assign(9.0)
    with pytest.raises(InPlaceError):
        grad(y, inside)
    other = Tensor(outside, requires_grad=True, dtype="float32")
    z = (other * other).sum()
    outside.assign(1.0)
    np.testing.assert_array_equal(grad(z, other).data, [18.0, 18.0])


def test_ids_that_are_written_later_are_those_of_the_forward_pass() -> None:
    table, ids = leaf([1.0, 2.0], [3.0, 4.0]), Tensor(np.array([0, 0]))
    outputs = [table[ids], ops.embedding(table, ids), ops.cross_entropy(table, ids)]
    expected = [grad(y.sum(), table).data for y in outputs]
    ids.assign(1)
    for y, before in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(grad(y.sum(), table).data, before)


def _large() -> np.ndarray:
    return np.arange(60_000.0).reshape(200, 300) % 7.0 + 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda w, a: w * a,
        lambda w, a: w / a,
        lambda w, a: ops.maximum(w, a),
        lambda w, a: w @ a.T,
        lambda w, a: ops.where(a > 3.0, w, 0.0),
        lambda w, a: w**a,
    ],
)
def test_an_array_of_the_caller_that_is_written_later(call: Callable[[Any, Any], Any], place: Any) -> None:
    """A small one was copied; a large one is found to have changed."""
    for w, a in ((np.full((2, 3), 1.5), np.arange(1.0, 7.0).reshape(2, 3)), (np.full((200, 300), 1.5), _large())):
        x, given = Tensor(place.put(w), requires_grad=True), place.put(a)
        expected = grad(ops.sum(call(x, given)), x).data
        y = ops.sum(call(x, given))
        given[...] = given * 2.0 + 1.0
        if a.nbytes < engine.HELD or place.name != "numpy" or "where" in call.__code__.co_names:
            np.testing.assert_array_equal(place.get(grad(y, x).data), place.get(expected))
        else:
            with pytest.raises(InPlaceError, match="an input was changed in place after the op saved it"):
                grad(y, x)


@pytest.mark.parametrize(
    "change", [lambda a: a.fill(0.5), lambda a: np.random.default_rng(0).shuffle(a), lambda a: np.copyto(a, a[:, ::-1])]
)
@pytest.mark.parametrize("strided", [False, True])
def test_large_arrays_that_are_filled_or_shuffled(change: Callable[[Any], Any], strided: bool) -> None:
    a = np.asfortranarray(_large()) if strided else _large()
    w = Tensor(np.ones((200, 300)), requires_grad=True)
    y = (w * a).sum()
    np.testing.assert_array_equal(grad(y, w).data, a)
    change(a)
    with pytest.raises(InPlaceError):
        grad(y, w)


def test_indices_and_targets_of_the_caller_that_are_written_later() -> None:
    table, ids = leaf([1.0, 2.0], [3.0, 4.0]), np.array([0, 0])
    outputs = [
        table[ids],
        table[ids, :],
        table[ids == 0],
        ops.embedding(table, ids),
        ops.cross_entropy(table, ids),
        ops.scatter(table, ids, (3, 2)) * 2.0,
    ]
    expected = [grad(y.sum(), table).data for y in outputs]
    ids[...] = 1
    for y, before in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(grad(y.sum(), table).data, before)


def test_a_write_between_first_and_second_order() -> None:
    w = leaf(1.0, 2.0)
    first = grad((w**3).sum(), w, create_graph=True)
    w.assign(np.zeros(2))
    with pytest.raises(InPlaceError):
        grad(first.sum(), w)


def test_the_output_of_an_op_cannot_be_written() -> None:
    x = leaf(1.0, 2.0)
    with pytest.raises(InPlaceError, match=r"got the output of exp; use where"):
        ops.exp(x)[0] = 1.0
    with pytest.raises(InPlaceError):
        x.reshape(2, 1).assign(0.0)
    with pytest.raises(InPlaceError), engine.no_grad():
        ops.exp(x).assign(0.0)


# ----------------------------------------------------------------------------------------- anomaly


def test_anomaly_names_the_op_and_what_came_out(place: Any) -> None:
    x = Tensor(place.put(np.array([0.0, 1.0])), requires_grad=True)
    with engine.anomaly():
        with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match=r"^infinity in the value of op div") as got:
            1.0 / x
        assert got.value.where == {"op": "div"}
        with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match=r"^NaN in the value of op log"):
            ops.log(x - 2.0)
        y = ops.sqrt(x)
        text = r"^infinity in the gradient \(input 0\) of op sqrt"
        with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match=text):
            grad(y.sum(), x)
    with np.errstate(all="ignore"):
        assert not np.isfinite(place.get((1.0 / x).data)).all()  # off again


def test_anomaly_knows_the_place_where_the_op_ran() -> None:
    x = leaf(0.0)
    with engine.anomaly():
        engine.MODE.anomaly["timestep"] = 7  # type: ignore[index]  # as unroll does
        y = ops.sqrt(x)
        engine.MODE.anomaly["timestep"] = 8  # type: ignore[index]
        with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match="op sqrt, timestep 7"):
            grad(y, x)


def test_anomaly_sees_the_gradient_of_an_index() -> None:
    x = leaf(1.0, 2.0)
    with engine.anomaly(), pytest.raises(NonFiniteError, match="op getitem"):
        grad(x[0], x, np.array(np.nan))


# ------------------------------------------------------------------------- memory and life of the tape


@pytest.mark.parametrize(
    "call, keeps_input, keeps_output",
    [
        (lambda x: x + 1.0, False, False),
        (ops.neg, False, False),
        (ops.tanh, False, True),
        (ops.sigmoid, False, True),
        (ops.exp, False, True),
        (ops.log, True, False),
        (lambda x: x * 2.0, False, False),
        (lambda x: x.sum(), False, False),
        (lambda x: ops.softmax(x), False, True),
        (lambda x: ops.concatenate([x, x]), False, False),
        (lambda x: x[1:], False, False),
        (lambda x: x * x, True, False),
    ],
)
def test_what_no_vjp_reads_is_not_kept(call: Callable[[Tensor], Tensor], keeps_input: bool, keeps_output: bool) -> None:
    h = leaf(1.0, 2.0) * 1.0
    y = call(h)
    node, inside, outside = y.node, weakref.ref(h.data), weakref.ref(y.data)
    del h, y
    assert node is not None
    assert (inside() is not None, outside() is not None) == (keeps_input, keeps_output)


def _live_nodes() -> int:
    return sum(type(thing) is Node for thing in gc.get_objects())


def test_no_cycles_and_no_nodes_left() -> None:
    gc.collect()
    before = _live_nodes()
    gc.disable()
    try:
        x = leaf(1.0, 2.0)
        y = ops.softmax(ops.tanh(x * 2.0 + x[0])).sum() + ops.logsumexp(x)
        y.backward()
        first = grad(y, x, create_graph=True)
        grad(first.sum(), x)
        del x, y, first
        assert _live_nodes() == before
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("length", [5_000, 100_000])
def test_long_chains(length: int) -> None:
    """No recursion: not in the sort, not in the walk, not when the chain is freed."""
    x = leaf(1.0)
    y = x
    for _ in range(length):
        y = y + 1.0
    assert grad(y, x).item() == 1.0
    node = weakref.ref(y.data)
    del y
    assert node() is None


def test_backward_through_slices_is_linear_work() -> None:
    """Elements that the walk allocates, for T slices of one sequence: dense zeros per slice would be T squared."""

    def peak_and_writes(steps: int) -> int:
        x = Tensor(np.ones((steps, 8)), requires_grad=True)
        y = x[0]
        for t in range(1, steps):
            y = y + x[t]
        touched = 0
        plain = np.zeros_like

        def counting(*args: Any, **options: Any) -> Any:
            nonlocal touched
            out = plain(*args, **options)
            touched += out.size
            return out

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np, "zeros_like", counting)
            tracemalloc.start()
            g = grad(y.sum(), x)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        np.testing.assert_array_equal(g.data, 1.0)
        assert peak < 2_000 * steps
        return touched

    assert peak_and_writes(256) == 256 * 8
    assert peak_and_writes(1024) == 1024 * 8


# ------------------------------------------------------------------------- subclasses of NumPy's array


def test_a_masked_array_is_told_where_it_enters() -> None:
    masked, w = np.ma.masked_array(np.ones(2), [True, False]), leaf(1.0, 2.0)
    ids = np.ma.masked_array([0, 1], [True, False])
    for call in (
        lambda: Tensor(masked),
        lambda: w * masked,
        lambda: ops.where(masked > 0.0, w, 0.0),
        lambda: ops.concatenate([w, masked]),
        lambda: w[ids],
        lambda: ops.embedding(leaf([1.0], [2.0]), ids),
        lambda: ops.cross_entropy(leaf([1.0, 2.0], [3.0, 4.0]), ids),
        lambda: grad(w * 1.0, w, masked),
    ):
        with pytest.raises(
            DtypeError, match=r"^\w+: expected an array without a mask, got a masked array; give array\.fil"
        ):
            call()


@pytest.mark.parametrize("kind", ["memmap", "subclass"])
def test_other_arrays_of_numpy_are_seen_as_plain_ones(kind: str, tmp_path: Path) -> None:
    plain = np.arange(6.0).reshape(2, 3)
    if kind == "memmap":
        odd: Any = np.memmap(tmp_path / "x", np.float64, "w+", shape=(2, 3))
        odd[...] = plain
    else:
        odd = plain.view(type("Odd", (np.ndarray,), {}))
    w = Tensor(np.ones((2, 3)), requires_grad=True)
    assert type(Tensor(odd).data) is np.ndarray and np.shares_memory(Tensor(odd).data, odd)
    for call in (lambda a: w * a, lambda a: a * w, lambda a: a.T @ w, lambda a: ops.where(a > 2.0, w, a)):
        y, z = (call(array) for array in (odd, plain))
        g, h = (grad(out.sum(), w).data for out in (y, z))
        np.testing.assert_array_equal(y.data, z.data)
        np.testing.assert_array_equal(g, h)
        assert type(y.data) is type(g) is np.ndarray
    x = Tensor(odd, requires_grad=True)
    np.testing.assert_array_equal(grad((x * x).sum(), x).data, 2.0 * plain)


# ------------------------------------------------------------------------- copies, and other processes


def _through_pickle(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("again", [copy.deepcopy, _through_pickle])
def test_leaves_and_constants_copy_with_all_they_have(again: Callable[[Any], Any]) -> None:
    w, c = leaf(1.0, 2.0), Tensor([3.0])
    (w * w).sum().backward()
    v, d, tied = again((w, c, w))
    assert v is tied and v.requires_grad and v.is_leaf and not d.requires_grad
    np.testing.assert_array_equal(v.grad.data, [2.0, 4.0])
    assert not np.shares_memory(v.data, w.data)
    np.testing.assert_array_equal(grad((v * v * d).sum(), v).data, [6.0, 12.0])
    y = (v * v).sum()
    v.assign(0.0)
    with pytest.raises(InPlaceError):
        grad(y, v)


@pytest.mark.parametrize("again", [copy.deepcopy, _through_pickle])
@pytest.mark.parametrize("length", [1, 5_000])
def test_the_output_of_an_op_does_not_copy(again: Callable[[Any], Any], length: int) -> None:
    y = leaf(1.0)
    for _ in range(length):
        y = y * 1.0
    with pytest.raises(GradientError, match=r"^copy, pickle: expected a tensor that no op made, got the output of mul"):
        again({"y": [y]})
    assert again(y.detach()).data == y.data


def test_a_shallow_copy_is_the_same_value_on_the_tape() -> None:
    x = leaf(3.0)
    y = x * x
    assert grad(copy.copy(y) * 2.0, [x, y], unused="zeros")[0].item() == 12.0
    assert grad(copy.copy(x) * 2.0, x).item() == 2.0


def test_leaves_of_another_process_get_their_gradient(tmp_path: Path) -> None:
    """There the count of nodes was far ahead: a number that travelled would sort the leaf above what is made of it."""
    write = """
import pickle, sys
from tinygrad_rnn import Tensor
x = Tensor(1.0, requires_grad=True)
for _ in range(5000): y = x + 1.0
late = Tensor([1.0, 2.0], requires_grad=True)
pickle.dump((x, late), open(sys.argv[1], "wb"))
"""
    read = """
import copy, pickle, sys
from tinygrad_rnn import grad
leaves = pickle.load(open(sys.argv[1], "rb"))
for x, late in (leaves, copy.deepcopy(leaves)):
    y = (late * late * x).sum()
    print([g.data.tolist() for g in grad(y, [x, late])])
"""
    for program in (write, read):
        command = [sys.executable, "-c", program, str(tmp_path / "leaves")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[5.0, [2.0, 4.0]]"] * 2


# --------------------------------------------------------------------------- wrong rules, wrong calls


def _identity(name: str, rule: Callable[..., Any]) -> Any:
    def value(x: Any) -> Any:
        return x * 1.0

    value.__name__ = name
    op = primitive(value)
    op.vjp(rule)
    return op


def test_a_vjp_of_the_wrong_shape_dtype_or_kind() -> None:
    x = leaf(1.0, 2.0)
    for rule, got in (
        (lambda g, _y, _x: g[:1], r"\(1,\) float64"),
        (lambda g, _y, _x: g.astype("float32"), "float32"),
        (lambda g, _y, _x: 1.0, "1.0"),
    ):
        with pytest.raises(GradientError, match=rf"^vjp of broken, input 0: expected .*\(2,\) float64, got .*{got}"):
            grad(_identity("broken", rule)(x).sum(), x)


def test_a_vjp_on_the_wrong_device(guard: Any) -> None:
    x = Tensor(guard.asarray(np.ones(2)), requires_grad=True)
    with pytest.raises(GradientError, match=r"^vjp of broken"):
        grad(_identity("broken", lambda g, _y, _x: np.ones(2))(x).sum(), x)


def test_the_checker_finds_a_wrong_first_order(rng: np.random.Generator) -> None:
    with pytest.raises(GradientError, match=r"^vjp of f: expected .* by central differences, got"):
        gradcheck(_identity("off", lambda g, _y, _x: g * 1.001), rng.normal(size=3), rng=rng)


def test_the_checker_finds_a_wrong_second_order(rng: np.random.Generator) -> None:
    @primitive
    def square(x: Any) -> Any:
        return x * x

    # right on arrays; but the tape is cut, so that the second derivative is 0
    square.vjp(lambda g, _y, x: g * (x.detach() if isinstance(x, Tensor) else x) * 2.0)
    x = rng.normal(size=3)
    gradcheck(square, x, rng=rng, order=1)
    with pytest.raises(GradientError, match=r"^vjp of the gradient of f"):
        gradcheck(square, x, rng=rng, order=2)


def test_the_checker_finds_a_wrong_forward_mode(rng: np.random.Generator) -> None:
    """Forward mode differentiates the rule with respect to its gradient, so it sees what the rule does to tensors."""

    def rule(g: Any, _y: Any, _x: Any) -> Any:
        return g if isinstance(g, np.ndarray) else g * 2.0  # as arrays it is right

    with pytest.raises(GradientError, match=r"^jvp of f"):
        gradcheck(_identity("twofold", rule), rng.normal(size=3), rng=rng)


def test_shape_errors_name_op_and_shapes() -> None:
    x = leaf(1.0, 2.0)
    for call, text in (
        (lambda: x + np.ones(3), r"^add: got \(2,\) float64, \(3,\) float64"),
        (lambda: x @ Tensor(np.ones((3, 4))), r"^matmul: expected equal inner sizes, got \(2,\) and \(3, 4\)"),
        (lambda: Tensor(np.ones((2, 3))) @ Tensor(np.ones((2, 3))), r"^matmul: expected equal inner sizes, got \(2, 3"),
        (lambda: x.reshape(3), r"^reshape: got \(2,\)"),
        (lambda: x.reshape(3, -1), r"^reshape: expected .*2 elements"),
        (lambda: x.sum(1), r"^sum: expected axes in \[-1, 1\) for shape \(2,\), got 1"),
        (lambda: x[5], r"^getitem: got \(2,\)"),
        (lambda: ops.squeeze(x, 0), r"^squeeze: expected size 1 .*\(2,\)"),
        (lambda: ops.flip(x, 3), r"^flip: expected axes in \[-1, 1\)"),
        (lambda: ops.concatenate([x, leaf([1.0])]), "^concatenate"),
        (lambda: ops.max(Tensor(np.ones((0,)))), r"^max: got \(0,\) float64: .*zero-size"),
        (lambda: ops.split(x, 3), r"^split: expected a divisor of 2, got 3"),
        (lambda: ops.pad(x, ((1, 2), (0, 0))), r"^pad: expected 1 pairs"),
        (lambda: ops.transpose(x, (0, 0)), "^transpose"),
        (lambda: ops.expand_dims(x, 3), "^expand_dims"),
        (lambda: ops.cross_entropy(x, np.array([0, 1])), r"^cross_entropy: expected targets of shape \(\)"),
        (lambda: ops.cross_entropy(x, np.array(2)), r"^cross_entropy: expected targets in \[0, 2\), got 2 to 2"),
        (lambda: ops.embedding(x, np.array([0])), r"^embedding: expected a table \(V, H\)"),
        (lambda: ops.embedding(leaf([1.0]), np.array([1])), r"^embedding: expected ids in \[0, 1\), got 1 to 1"),
        (lambda: len(Tensor(1.0)), "^len"),
        (lambda: x.item(), "^item: expected one element"),
        (lambda: ops.cumsum(x, 1), "^cumsum: expected an axis"),
        (lambda: ops.split(x, (-1, 3)), "^split: expected sizes >= 0"),
        (
            lambda: Tensor([[1.0], [1.0, 2.0]]),
            r"^Tensor: expected lists of equal lengths, got \[\[1\.0\], \[1\.0, 2\.0\]\]; fill up the shorter ones",
        ),
        (lambda: bool(x[0] > x), r"^bool, as in `if`: .* got a tensor of shape \(2,\); choose .* with ops\.where"),
        (lambda: max(x, x * 2.0), r"^bool, as in `if`: .* ops\.maximum or ops\.minimum"),
        (lambda: math.tanh(x), "^float: expected one element, got .*; the functions of Python's math are those of"),
        (lambda: leaf(1.0, 2.0).assign(np.ones(3)), r"^assign: got a tensor of shape \(2,\)"),
        (lambda: grad(leaf([1.0], [2.0]) * 1.0, x, [1.0]), r"^grad: expected a gradient of shape \(2, 1\)"),
        (
            lambda: ops.cross_entropy(leaf([[1.0, 2.0]] * 2), np.zeros((1, 2), int), mask=np.ones((1, 1), bool)),
            r"^cross_entropy: expected a mask of the shape of the targets, \(1, 2\), got \(1, 1\)",
        ),
        (lambda: ops.cross_entropy(Tensor(1.0), np.array(0)), "^cross_entropy: expected logits"),
    ):
        with pytest.raises(ShapeError, match=text):
            call()


@pytest.mark.parametrize(
    ("place", "name", "message"),
    [
        (ops, "tanhh", "module 'tinygrad_rnn.ops' has no attribute 'tanhh'; did you mean tanh, tan"),
        (ops, "frobnicate", "module 'tinygrad_rnn.ops' has no attribute 'frobnicate'$"),
        (tinygrad_rnn, "unrol", "module 'tinygrad_rnn' has no attribute 'unrol'; did you mean unroll"),
        (leaf(1.0), "sinh", r"'Tensor' object has no attribute 'sinh'; write ops\.sinh\(x\)$"),
        (leaf(1.0), "resize", "'Tensor' object has no attribute 'resize'; did you mean .*reshape"),
        (leaf(1.0), "_frobnicate", "'Tensor' object has no attribute '_frobnicate'$"),
    ],
)
def test_a_name_that_is_not_there(place: Any, name: str, message: str) -> None:
    with pytest.raises(AttributeError, match=message):
        getattr(place, name)


def test_divmod_round_and_tolist() -> None:
    a, b = np.array([2.5, -1.75]), np.array([1.0, 0.5])
    x, y = Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)
    for got, expected in ((divmod(x, y), divmod(a, b)), (divmod(3.0, y), divmod(3.0, b)), (divmod(a, y), divmod(a, b))):
        for part, value in zip(got, expected, strict=True):
            np.testing.assert_array_equal(part.data, value)
    np.testing.assert_array_equal(grad(ops.sum(divmod(x, y)[1]), x).data, 1.0)
    np.testing.assert_array_equal(round(x).data, np.round(a))
    np.testing.assert_array_equal(round(x, 1).data, np.round(a, 1))
    assert (x.tolist(), Tensor([[1, 2]]).tolist(), x[0].tolist()) == ([2.5, -1.75], [[1, 2]], 2.5)


def test_arguments_that_mean_nothing_are_refused_in_one_line() -> None:
    x = leaf([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    w = leaf(1.0, 2.0)
    for call, text in (
        (lambda: ops.concatenate([w, [1.0]]), "^concatenate: expected an array or a tensor, got list; make one with"),
        (lambda: ops.stack([w, 1.0]), "^stack: expected an array or a tensor, got float"),
        (lambda: ops.stack([x, w]), r"^stack: expected arrays of one shape, got shapes \(2, 3\), \(2,\)"),
        (lambda: ops.sum(w, 0.5), r"^sum: expected axes in \[-1, 1\) for shape \(2,\), got 0.5"),
        (lambda: ops.sum(w, True), r"^sum: expected axes in \[-1, 1\) for shape \(2,\), got True"),
        (lambda: ops.sum(x, (0, 0)), r"^sum: expected each axis once, got \(0, 0\) for shape \(2, 3\)"),
        (lambda: ops.expand_dims(w, (0, 0)), r"^expand_dims: expected each axis once"),
        (lambda: ops.squeeze(x[None], (0, 1)), r"^squeeze: expected size 1 at axis \(0, 1\), got shape \(1, 2, 3\)"),
        (lambda: ops.pad(w, "1"), "^pad: expected a size, a whole number or a tuple of them, got '1'"),
        (lambda: ops.pad(w, -1), "^pad: expected 1 pairs of sizes >= 0, got -1"),
        (lambda: ops.pad(x, ((1, 2, 3), (0, 0))), "^pad: expected 2 pairs"),
        (lambda: ops.clip(w, "0"), "^clip: expected numbers or arrays as limits, got str"),
        (lambda: ops.einsum("ij,jk", x), "^einsum: expected 2 operands for 'ij,jk', got 1"),
        (lambda: ops.einsum("ij,jk", x, x), "^einsum: expected one size for 'j' in 'ij,jk', got 3 and 2"),
        (lambda: ops.einsum("i", x), r"^einsum: expected 'i' to name the axes of shape \(2, 3\)"),
        (lambda: ops.einsum("ij->k", x), "^einsum: expected each letter of the result once, and in an operand"),
        (lambda: ops.einsum(x), "^einsum: expected subscripts like 'ij,jk->ik', got Tensor"),
        (lambda: ops.einsum(x, [0, 52]), r"^einsum: expected lists of whole numbers below 52, .* got \[0, 52\]"),
        (lambda: ops.einsum(x, [0, 1], x), "^einsum: expected lists of whole numbers below 52, .* got Tensor"),
        (lambda: ops.tensordot(x, x, 1), r"^tensordot: expected equal sizes at the summed axes, got \(2, 3\) and"),
        (lambda: ops.roll(x, 0.5), "^roll: expected a shift, a whole number or a tuple of them, got 0.5"),
        (lambda: ops.repeat(x, (1, 2), 1), "^repeat: expected one or 3 counts >= 0"),
        (lambda: ops.moveaxis(x, 0, (0, 1)), "^moveaxis: expected as many places as axes, got 0 and"),
        (lambda: ops.diag(x[None]), "^diag: expected a vector or a matrix"),
        (lambda: ops.tril(w), "^tril: expected a matrix"),
        (lambda: ops.round(x, 0.5), "^round: expected decimals, a whole number, got 0.5"),
        (lambda: ops.gelu(x, "exact"), "^gelu: expected approximate 'none' .* or 'tanh', got 'exact'"),
        (lambda: ops.astype(x, "floating"), "^astype: expected a dtype, as 'float32', got 'floating'"),
        (lambda: ops.astype(x, "datetime64[s]"), "^astype: expected a dtype of real numbers"),
        (lambda: ops.exp(None), "^exp: got None"),
        (lambda: ops.add([1.0], None), r"^add: got \[1.0\], None"),
    ):
        with pytest.raises(InputError, match=text):
            call()


NONSENSE: list[Any] = [
    None, "q", 0.5, True, [0.5], ((0,),), -7, 9, (0, 0), (), {}, object(), math.nan, 1j, np.array(["s"]), [None],
    "ij,jk", slice(None), [[1, 2], [3]], 99, (1, 2, 3, 4, 5), np.ones((2, 3)),
]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in vars(ops) if callable(getattr(ops, name)) and name[0] != "_"])
def test_no_argument_gets_an_error_from_the_inside(name: str) -> None:
    """Whatever is passed: an answer, or one line of our own. (A missing argument is Python's to say.)"""
    x, v = leaf([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]), leaf(1.0, 2.0, 3.0)
    calls = [
        *[(bad,) for bad in NONSENSE],
        *[(good, bad) for good in (x, v, x.data) for bad in NONSENSE],
        *[(bad, good) for good in (x, 1) for bad in NONSENSE],
        *[(x, axis, bad) for axis in (0, None, v) for bad in NONSENSE[:-1]],  # no array for a yes or no
    ]
    for arguments in calls:
        with np.errstate(all="ignore"):
            try:
                getattr(ops, name)(*arguments)
            except TinygradRNNError as error:
                assert "\n" not in str(error)
            except TypeError as error:
                assert "argument" in str(error) and ("missing" in str(error) or "positional" in str(error)), arguments


def test_dtype_errors() -> None:
    for call, text in (
        (lambda: Tensor([1, 2], requires_grad=True), "^Tensor: expected a floating dtype for requires_grad, got int64"),
        (lambda: Tensor([1, 2]) * 0.5, "^mul: expected floating input"),
        (lambda: leaf(1.0) + np.ones(1, "float32"), r"^add: expected one floating dtype, got .* float64, .* float32"),
        (lambda: ops.embedding(leaf([1.0]), np.array([0.0])), "^embedding: expected integer ids, got float64"),
        (lambda: ops.cross_entropy(leaf(1.0), np.array(0.0)), "^cross_entropy: expected integer targets"),
        (lambda: ops.cross_entropy(leaf(1.0), 0), "^cross_entropy: expected an array of targets, got int"),
        (
            lambda: ops.cross_entropy(leaf([1.0]), np.array([0]), mask=np.array([0.5])),
            "^cross_entropy: expected a boolean mask, got float64",
        ),
        (lambda: ops.embedding(leaf([1.0]), 0), "^embedding: expected integer ids, got 0"),
        (lambda: leaf(1.0) * 1j, "^mul: expected floating input"),
        (lambda: Tensor(None), "^Tensor: expected real numbers or booleans, got object"),
    ):
        with pytest.raises(DtypeError, match=text):
            call()


def test_astype() -> None:
    x = leaf(1.5, -2.5, dtype="float32")
    y = x.astype("float64")
    assert y.dtype == "float64"
    assert grad((y * y).sum(), x).dtype == "float32"
    assert not x.astype("int64").requires_grad  # a whole number has no slope


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_ids_of_every_integer_type(dtype: str, place: Any, rng: np.random.Generator) -> None:
    """As many rows as a narrow type can number, or one less: their count does not fit it."""
    V = min(int(np.iinfo(dtype).max) + 1, 65_536)
    ids = np.array([[V - 1, 0], [V - 1, V // 2]], dtype)
    table = rng.normal(size=(V, 2))
    put, wide = place.put, ids.astype("int64")
    uses: list[Callable[[Any, Any], Any]] = [
        lambda w, i: w[i],
        lambda w, i: w[-i if dtype[0] == "i" else i, 1],
        lambda w, i: ops.swapaxes(w, 0, 1)[:, i],
        lambda w, i: ops.embedding(w, i),
        lambda w, i: lookup(w, ids=i, shape=w.shape),
        lambda w, i: ops.scatter(w[:2], i[0], (V, 2)),
        lambda w, i: ops.cross_entropy(ops.broadcast_to(w[:, 0], (2, 2, V)), i),
    ]
    for use in uses:

        def both(put: Callable[[Any], Any], ids: np.ndarray, use: Callable[[Any, Any], Any] = use) -> list[Tensor]:
            w = Tensor(put(table), requires_grad=True)
            y = use(w, put(ids))
            (first,) = grad(ops.sum(y * y * y), [w], create_graph=True)
            return [y, first, grad(ops.sum(first * first), w)]

        for got, expected in zip(both(put, ids), both(np.asarray, wide), strict=True):
            np.testing.assert_allclose(place.get(got.data), expected.data, rtol=1e-12, atol=1e-14)


def test_mixing_devices_names_both(guard: Any) -> None:
    x, ids = Tensor(guard.asarray(np.ones((2, 3))), requires_grad=True), np.array([0, 1])
    for call, name in (
        (lambda: x + np.ones(3), "add"),
        (lambda: x * Tensor(np.ones(3)), "mul"),
        (lambda: np.ones((4, 2)) @ x, "matmul"),
        (lambda: x[ids], "getitem"),
        (lambda: ops.embedding(x, ids), "embedding"),
        (lambda: ops.cross_entropy(x, ids), "cross_entropy"),
        (lambda: ops.concatenate([x, np.ones((1, 3))]), "concatenate"),
    ):
        with pytest.raises(DeviceError, match=rf"^{name}: expected .* of one device.*|^{name}: expected indices.*"):
            call()


def test_exchange_with_numpy_and_dlpack(guard: Any) -> None:
    x = leaf(1.0, 2.0)
    np.testing.assert_array_equal(np.asarray(x.detach()), [1.0, 2.0])
    assert np.shares_memory(np.from_dlpack(x.detach()), x.data)
    assert isinstance(np.ones(2) * x, Tensor)
    assert [row.item() for row in x] == [1.0, 2.0]
    far = Tensor(guard.asarray(np.ones(2)))
    with pytest.raises(DtypeError, match=r"copy it with \.numpy\(\)"):
        np.asarray(far)
    assert type(far.numpy()) is np.ndarray
    assert float(Tensor(2.5)) == 2.5 and int(Tensor(2)) == 2 and bool(Tensor([True]))


def test_axes_and_sizes_as_numpy_and_pytorch_write_them() -> None:
    x = Tensor(np.arange(6.0).reshape(2, 3))
    one = np.int64(1)
    np.testing.assert_array_equal(x.sum(one).data, [3.0, 12.0])
    assert x.reshape(one * 6).shape == ops.reshape(x, -1).shape == (6,)
    assert x.transpose(1, 0).shape == x.transpose((1, 0)).shape == x.transpose().shape == (3, 2)
    assert [part.shape for part in ops.split(x, one * 3, one)] == [(2, 1)] * 3
    np.testing.assert_array_equal(ops.clip(x, 1, 3).data, np.clip(x.data, 1, 3))
    np.testing.assert_array_equal(ops.clip(x, high=3.0).data, np.minimum(x.data, 3.0))
    assert (+x) is x
    for join in (ops.stack, ops.concatenate):
        with pytest.raises(InputError, match="expected a list or tuple of at least one array, got Tensor"):
            join(x)


def test_operators_and_methods_are_the_ops(place: Any) -> None:
    x = Tensor(place.put(np.array([[1.5, -2.5, 3.0]])), requires_grad=True)
    host = place.get(x.data)
    for ours, theirs in (
        (x % 2.0, host % 2.0), (7.0 % x, 7.0 % host), (x // 2.0, host // 2.0), (7.0 // x, 7.0 // host),
        ((x > 0) & (x < 2), (host > 0) & (host < 2)), ((x > 2) | (x < 0), (host > 2) | (host < 0)),
        (~(x > 0), ~(host > 0)), ((x > 0) ^ True, ~(host > 0)), (x.var(), host.var()), (x.std(1), host.std(1)),
        (x.prod(), host.prod()), (x.ravel(), host.ravel()), (x.flatten(), host.ravel()), (x.squeeze(), host[0]),
        (x.argmax(), host.argmax()), (x.argmin(1), host.argmin(1)), (x.cumsum(1), host.cumsum(1)),
        (x.clip(-1, 2), host.clip(-1, 2)), (x.var(1, ddof=1), host.var(1, ddof=1)),
    ):  # fmt: skip
        np.testing.assert_array_equal(place.get(ours.data), theirs)
    with pytest.raises(DtypeError, match=r"^logical_and: expected boolean masks around &, .*got float64; compare"):
        _ = x & (x > 0)
    with pytest.raises(DtypeError, match=r"^logical_not: expected boolean masks"):
        _ = ~x


def test_comparisons_are_boolean_constants() -> None:
    x = leaf(1.0, 2.0)
    for y, expected in (
        (x == 1.0, [1, 0]),
        (x != 1.0, [0, 1]),
        (x < 2.0, [1, 0]),
        (x <= 1.0, [1, 0]),
        (x > 1.0, [0, 1]),
        (x >= 2.0, [0, 1]),
    ):
        assert y.dtype == bool and not y.requires_grad
        np.testing.assert_array_equal(y.data, np.array(expected, bool))


def test_ties_and_kinks_have_a_fixed_choice() -> None:
    x, y = leaf(1.0, 0.0), leaf(1.0, 2.0)
    np.testing.assert_array_equal(grad(ops.maximum(x, y).sum(), x).data, [0.5, 0.0])
    np.testing.assert_array_equal(grad(leaf(0.0).relu().sum() + ops.relu(x).sum(), x).data, [1.0, 0.0])
    np.testing.assert_array_equal(grad(abs(x).sum(), x).data, [1.0, 0.0])
    np.testing.assert_array_equal(grad(ops.norm(x * 0.0), x).data, [0.0, 0.0])
    ties = leaf(3.0, 3.0, 1.0)
    np.testing.assert_array_equal(grad(ties.max(), ties).data, [0.5, 0.5, 0.0])
    zero = leaf(0.0)
    assert [grad(zero**p, zero).item() for p in (0, 1, 2)] == [0.0, 1.0, 0.0]
    assert grad(zero ** leaf(0.0), zero).item() == 0.0


KINKED: dict[str, Callable[[Any], Any]] = {
    "relu": ops.relu,
    "abs": ops.abs,
    "sign": ops.sign,
    "floor": ops.floor,
    "round": lambda x: ops.round(x, 1),
    "floor_divide": lambda x: ops.floor_divide(x, 0.7) + 2.0 // x,
    "maximum": lambda x: ops.maximum(x, 0.5),
    "minimum": lambda x: ops.minimum(0.5, x),
    "clip": lambda x: ops.clip(x, -1.0, 1.0),
    "max": lambda x: ops.max(x, 0),
    "min": lambda x: ops.min(x, 0),
    "norm of one": lambda x: ops.norm(x[:, None], 1),
    "pow 0": lambda x: x**0,
    "pow 1": lambda x: x**1,
    "remainder": lambda x: ops.remainder(2.0, x) + 0.0 * x * x,
}


@pytest.mark.parametrize("name", KINKED)
def test_derivatives_of_what_is_straight_between_kinks_are_zero(name: str, place: Any) -> None:
    """Of any order, at the kinks too, and no error about a tensor that was not used."""
    x = Tensor(place.put(np.array([-1.5, -0.0, 0.5, 3.0])), requires_grad=True)
    with np.errstate(all="ignore"):
        first = grad(ops.sum(KINKED[name](x)), x, create_graph=True)
        second = grad(ops.sum(first), x, create_graph=True, unused="error")
        third = grad(ops.sum(second), x, unused="error")
    for g in (second, third):
        np.testing.assert_array_equal(place.get(g.data), np.zeros(4))


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_smooth_function_of_a_norm_is_smooth_at_zero(axis: int | None, place: Any) -> None:
    x = Tensor(place.put(np.array([[0.0, 0.0], [0.0, 2.0]])), requires_grad=True)
    at = place.get(x.data)
    for square in (lambda y: y**2, lambda y: y * y, ops.square, lambda y: 2.0 * (ops.cosh(y) - 1.0)):
        first = grad(ops.sum(square(ops.norm(x, axis))), x, create_graph=True)
        second = place.get(grad(ops.sum(first), x).data)
        assert second[0, 0] == (2.0 if axis is not None or square(2.0) == 4.0 else second[0, 0])
        distance = grad(ops.sum(square(abs(x))), x, create_graph=True)
        assert (place.get(grad(ops.sum(distance), x).data)[at == 0] == 2.0).all()
    for kink in (lambda x: ops.norm(x, 1), abs):  # no derivative there: 0 by convention
        first = grad(ops.sum(kink(x)), x, create_graph=True)
        np.testing.assert_array_equal(place.get(grad(ops.sum(first), x).data)[0], [0.0, 0.0])


def test_gradcheck_at_the_origin_of_a_norm(rng: np.random.Generator) -> None:
    gradcheck(lambda x: ops.norm(x) ** 2, np.zeros(3), rng=rng)
    gradcheck(lambda x: ops.sum(abs(x) ** 2 + ops.norm(x, 1)[:, None] ** 2), np.zeros((2, 3)), rng=rng)


def test_products_beside_zeros(rng: np.random.Generator) -> None:
    for zeros in ([], [2], [1, 3]):
        x = rng.normal(size=5)
        x[zeros] = 0.0
        gradcheck(ops.prod, x, rng=rng)
        gradcheck(ops.cumprod, x, rng=rng)


def test_extremes_do_not_overflow() -> None:
    x = leaf(-1000.0, 0.0, 1000.0)
    np.testing.assert_array_equal(ops.sigmoid(x).data, [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(ops.softplus(x).data, [0.0, np.log(2.0), 1000.0])
    assert ops.logsumexp(x).item() == 1000.0
    assert np.isfinite(ops.log_softmax(x).data).all() and np.isfinite(grad(ops.logsumexp(x), x).data).all()
    assert ops.cross_entropy(x, np.array(0)).item() == 2000.0


def test_taps_are_heard_by_the_listener_alone() -> None:
    heard: list[str] = []
    x = leaf(1.0)
    assert engine.tap("z", x) is x
    with engine.listen(lambda name, value: heard.append(name)):
        engine.tap("r", x)
    assert heard == ["r"]


def test_a_tensor_of_one_element_formats_like_a_number() -> None:
    assert f"{Tensor(1.23456):.2f}" == "1.23"
    assert f"{Tensor([1.0])}" == repr(Tensor([1.0]))
    with pytest.raises(ShapeError, match="one element"):
        f"{Tensor([1.0, 2.0]):.2f}"


@pytest.mark.parametrize("unused", ["errors", None, True])
def test_unused_is_error_or_zeros(unused: Any) -> None:
    w, v = (Tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    with pytest.raises(InputError, match="expected unused='error' or 'zeros', got"):
        grad(ops.sum(w), v, unused=unused)
