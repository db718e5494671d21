"""vjp, jvp, jacobian, hvp and recompute against cases with a known answer."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import engine, ops
from tinygrad_rnn.autodiff import gradcheck, hvp, jacobian, jvp, recompute, vjp
from tinygrad_rnn.errors import GradientError, InputError, ShapeError
from tinygrad_rnn.tensor import Tensor, grad


def quadratic(a: np.ndarray) -> Any:
    return lambda x: ops.sum(x * (x @ a))


def test_quadratic_form(place: Any, rng: np.random.Generator) -> None:
    """f(x) = x A x: gradient (A + A') x, Hessian A + A'."""
    a, x, v = rng.normal(size=(3, 3)), rng.normal(size=3), rng.normal(size=3)
    f, point, direction = quadratic(place.put(a)), place.put(x), place.put(v)
    y, pullback = vjp(f, point)
    assert y.item() == pytest.approx(x @ a @ x)
    np.testing.assert_allclose(place.get(pullback(2.0)[0].data), 2 * (a + a.T) @ x)
    value, slope = jvp(f, [point], [direction])
    assert (value.item(), slope.item()) == (pytest.approx(x @ a @ x), pytest.approx(v @ (a + a.T) @ x))
    np.testing.assert_allclose(place.get(hvp(f, [point], [direction])[0].data), (a + a.T) @ v)
    np.testing.assert_allclose(place.get(jacobian(lambda z: grad(f(z), z, create_graph=True), point).data), a + a.T)


def test_jacobian_has_the_shapes_of_output_and_input(place: Any, rng: np.random.Generator) -> None:
    w, x = rng.normal(size=(3, 4)), rng.normal(size=(2, 3))
    got = jacobian(lambda z: z @ place.put(w), place.put(x))
    assert got.shape == (2, 4, 2, 3)
    np.testing.assert_allclose(place.get(got.data), np.einsum("ik,jl->ilkj", np.eye(2), w))


def test_two_inputs(rng: np.random.Generator) -> None:
    a, b, va, vb = (rng.normal(size=4) for _ in range(4))
    _, slope = jvp(lambda p, q: p * ops.exp(q), [a, b], [va, vb])
    np.testing.assert_allclose(slope.data, va * np.exp(b) + a * np.exp(b) * vb)
    first, second = hvp(lambda p, q: ops.sum(p * ops.exp(q)), [a, b], [va, vb])
    np.testing.assert_allclose(first.data, np.exp(b) * vb)
    np.testing.assert_allclose(second.data, np.exp(b) * va + a * np.exp(b) * vb)


def test_constant_and_linear_functions(rng: np.random.Generator) -> None:
    x = rng.normal(size=3)
    assert jvp(lambda z: Tensor(np.ones(2)), [x], [x])[1].data.tolist() == [0.0, 0.0]
    assert jacobian(lambda z: Tensor(np.ones(2)), x).shape == (2, 3)
    assert hvp(ops.sum, [x], [x])[0].data.tolist() == [0.0, 0.0, 0.0]


def test_they_nest_and_pass_on_to_the_tape_outside() -> None:
    x = Tensor(np.array([0.3, 0.7]), requires_grad=True)
    _, slope = jvp(ops.sin, [x], [np.ones(2)], create_graph=True)
    np.testing.assert_allclose(grad(slope.sum(), x).data, -np.sin(x.data))
    with engine.no_grad():
        np.testing.assert_allclose(hvp(lambda z: ops.sum(ops.sin(z)), [x], [np.ones(2)])[0].data, -np.sin(x.data))


def test_hvp_and_jacobian_can_be_differentiated_again() -> None:
    x = Tensor(np.array([0.3, 0.7]), requires_grad=True)
    (twice,) = hvp(lambda z: (z**3).sum(), [x], [np.ones(2)], create_graph=True)
    np.testing.assert_allclose(grad(twice.sum(), x).data, [6.0, 6.0])
    hessian = jacobian(lambda z: jacobian(lambda u: (u**3).sum(), z, create_graph=True), x)
    np.testing.assert_allclose(hessian.data, np.diag(6.0 * x.data))


def test_wrong_directions() -> None:
    with pytest.raises(InputError, match="one direction for each of 1 inputs, got 2"):
        jvp(ops.sin, [np.ones(2)], [np.ones(2), np.ones(2)])
    with pytest.raises(ShapeError, match=r"direction of shape \(2,\), got \(3,\)"):
        jvp(ops.sin, [np.ones(2)], [np.ones(3)])
    with pytest.raises(ShapeError, match=r"^hvp: expected a direction of shape \(2,\), got \(3, 2\)"):
        hvp(lambda x: (x**3).sum(), [np.ones(2)], [np.ones((3, 2))])
    with pytest.raises(InputError, match=r"^jvp: expected a list .* jvp\(f, \[x\], \[v\]\)"):
        jvp(ops.sin, np.ones(2), np.ones(2))
    with pytest.raises(GradientError, match="one element"):
        hvp(ops.sin, [np.ones(2)], [np.ones(2)])


def test_python_numbers_and_functions_of_several_outputs() -> None:
    value, slope = jvp(lambda x: x * x, [3.0], [1.0])
    assert (value.item(), slope.item()) == (9.0, 6.0)
    assert jacobian(lambda x: x * x, 3.0).item() == 6.0
    for call in (lambda f: jvp(f, [1.0], [1.0]), lambda f: jacobian(f, 1.0)):
        with pytest.raises(InputError, match="expected a function that returns one tensor, got tuple"):
            call(lambda x: (x, x))


def test_the_mixed_second_derivative_of_a_power_at_exponent_zero() -> None:
    x, p = (Tensor(value, requires_grad=True) for value in (2.0, 0.0))
    slope = grad(x**p, x, create_graph=True)
    assert (slope.item(), grad(slope, p).item()) == (0.0, 0.5)  # p x^(p - 1), and by p: x^-1


# ------------------------------------------------------------------------------------- recompute


def deep(x: Any, w: Any) -> Any:
    for _ in range(20):
        x = ops.tanh(x * w)
    return x


def test_recompute_changes_no_number(place: Any, rng: np.random.Generator) -> None:
    def results(f: Any) -> list[Any]:
        x, w = (Tensor(place.put(rng2.normal(size=(2, 3))), requires_grad=True) for _ in range(2))
        y = f(x, w)
        first = grad(ops.sum(y * y), [x, w], create_graph=True)
        return [y, *first, *grad(ops.sum(first[0] * first[1]), [x, w])]

    rng2 = np.random.default_rng(1)
    expected = results(deep)
    rng2 = np.random.default_rng(1)
    for got, plain in zip(results(lambda x, w: recompute(deep, x, w)), expected, strict=True):
        np.testing.assert_allclose(place.get(got.data), place.get(plain.data), rtol=1e-12, atol=1e-15)
    gradcheck(lambda x, w: recompute(deep, x, w), rng.normal(size=3), rng.normal(size=3), rng=rng, rtol=1e-5)


def test_recompute_of_several_outputs_and_of_constants(rng: np.random.Generator) -> None:
    x = Tensor(rng.normal(size=(2, 2)), requires_grad=True)
    a, b = recompute(lambda z, c: (z * c, ops.sum(z)), x, np.full((2, 2), 3.0))
    assert (a.shape, b.shape) == ((2, 2), ())
    np.testing.assert_array_equal(grad(a.sum() + b, x).data, np.full((2, 2), 4.0))
    assert not recompute(ops.sin, np.ones(2)).requires_grad


def test_recompute_runs_again_in_the_backward_pass_and_keeps_less() -> None:
    runs = 0

    def counted(x: Any) -> Any:
        nonlocal runs
        runs += 1
        return deep(x, 0.5)

    def peak(f: Any) -> int:
        x = Tensor(np.ones(20_000), requires_grad=True)
        tracemalloc.start()
        y = x
        for _ in range(10):
            y = f(y)
        grad(y.sum(), x)
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    plain = peak(counted)
    assert runs == 10
    assert peak(lambda x: recompute(counted, x)) < plain / 3
    assert runs == 30


def test_recompute_says_what_it_takes() -> None:
    with pytest.raises(InputError, match="at least one argument"):
        recompute(lambda: Tensor(1.0))
    for wrong in ({"a": 1}, np.ones(2), (1.0,)):
        with pytest.raises(InputError, match="expected f to return a tensor or a tuple of tensors"):
            recompute(lambda x, wrong=wrong: wrong, np.ones(2))


def test_recompute_refuses_what_it_cannot_see() -> None:
    w, x = Tensor(np.ones(2), requires_grad=True), Tensor(np.ones(2), requires_grad=True)
    with pytest.raises(GradientError, match=r"recompute: expected a function of its arguments alone.*\(2,\)"):
        grad(recompute(lambda z: z * w, x).sum(), x)


# ------------------------------------------------------------------------------------- the checker


def test_gradcheck_insists_on_float64(rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match="expected float64 inputs, got float32 at position 0"):
        gradcheck(ops.sin, np.ones(2, "float32"), rng=rng)


def test_gradcheck_takes_tuples_constants_and_tensors(rng: np.random.Generator) -> None:
    gradcheck(lambda x, y: (x * y, ops.sum(ops.exp(x))), rng.normal(size=3), rng.normal(size=3), rng=rng)
    gradcheck(lambda x: Tensor(np.ones(2)), rng.normal(size=3), rng=rng)
    gradcheck(ops.sin, Tensor(rng.normal(size=3), requires_grad=True), rng=rng)


def test_gradcheck_notices_nan(rng: np.random.Generator) -> None:
    with np.errstate(all="ignore"), pytest.raises(GradientError, match="nan"):
        gradcheck(ops.log, -np.ones(2), rng=rng)
