"""The code that all compiled cells share: vector functions, products and sums, for vectors of every width."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn.compile import kernels, machine
from tinygrad_rnn.compile.kernels import Target, Typed

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llvmlite") is None, reason="needs llvmlite, of the extra fast"
)
Array = np.ndarray[Any, Any]
TARGETS = [Target(16, 16), Target(32, 16), Target(64, 32)]
BOTH = [np.float32, np.float64]
POINTER, INT, FLAG = ctypes.c_void_p, ctypes.c_int64, ctypes.c_bool
MAP = """
define void @map_{name}(ptr %p, ptr %q, i64 %n) {{
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%i1, %loop]
  %a = getelementptr {scalar}, ptr %p, i64 %i
  %x = load {vector}, ptr %a, align {size}
  %y = call {vector} @{name}({vector} %x)
  %b = getelementptr {scalar}, ptr %q, i64 %i
  store {vector} %y, ptr %b, align {size}
  %i1 = add i64 %i, {lanes}
  %m = icmp slt i64 %i1, %n
  br i1 %m, label %loop, label %done
done:
  ret void
}}
"""


@functools.cache
def compiled(dtype: Any, target: Target) -> Callable[[str], int]:
    """Addresses by name of everything in kernels, and of ``map_NAME`` that applies a vector function."""
    t = Typed(dtype, target)
    facts = {"scalar": t.scalar, "vector": t.vector, "size": t.dtype.itemsize, "lanes": t.lanes}
    maps = "".join(MAP.format(name=name, **facts) for name in LONG)
    address: Callable[[str], int] = machine.load(
        kernels.functions(t) + maps + kernels.products(t) + "\n" + kernels.sums(t)
    )
    return address


def function(dtype: Any, target: Target, name: str, *types: Any) -> Any:
    return ctypes.CFUNCTYPE(None, *types)(compiled(dtype, target)(name))


def at(array: Array, offset: int = 0) -> int:
    """The address of element `offset`."""
    start: int = array.__array_interface__["data"][0]
    return start + offset * array.itemsize


@pytest.fixture(
    params=[(d, t) for d in BOTH for t in TARGETS], ids=lambda p: f"{p[0].__name__}-{p[1].bytes}-{p[1].registers}"
)
def kind(request: pytest.FixtureRequest) -> tuple[Any, Target]:
    return request.param  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------- vector functions

LONG: dict[str, Callable[[Any], Any]] = {
    "exp": np.exp,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "erf": np.vectorize(lambda x: math.erf(x), otypes=["g"]),  # C's, in float64: half an ulp of that off
    "erfc": np.vectorize(lambda x: math.erfc(x), otypes=["g"]),
}


def stated(name: str, dtype: Any) -> int:
    """The error in units in the last place that the module's docstring promises."""
    text = " ".join((kernels.__doc__ or "").split())
    found = re.search(rf"{np.dtype(dtype).name}[^;.]*?\b{name} (\d+)", text)
    assert found is not None, "the error is not stated"
    return int(found[1])


def mapped(kind: tuple[Any, Target], name: str, x: Array) -> Array:
    """The vector function of every element."""
    dtype, target = kind
    lanes = target.bytes // np.dtype(dtype).itemsize
    padded = np.zeros(-(-len(x) // lanes) * lanes, dtype)
    padded[: len(x)] = x
    out = np.full_like(padded, np.nan)
    function(dtype, target, f"map_{name}", POINTER, POINTER, INT)(at(padded), at(out), len(padded))
    return out[: len(x)]


def arguments(dtype: Any, name: str, count: int) -> Array:
    """Numbers of every exponent, and many where the function is neither flat nor infinite; denormal ones too."""
    rng = np.random.default_rng(0)
    info = np.finfo(dtype)
    if dtype is np.float32:
        bits = np.arange(0, 1 << 32, (1 << 32) // count | 1, np.uint64).astype(np.uint32).view(np.float32)
    else:
        bits = rng.integers(0, 1 << 64, count, np.uint64, endpoint=False).view(np.float64)
    reach = float(np.log(info.max)) * 1.01
    spans = [rng.uniform(-r, r, count // 4) for r in (reach, 20.0, 1.0, 1e-3)]
    edges = np.concatenate([np.array([0.625, 0.5, np.log(info.max), np.log(info.tiny)]) * s for s in (1, -1)])
    close = (edges[:, None] * (1 + np.arange(-200, 201) * float(info.eps))).ravel()
    dense = np.linspace(-20, 20, count // 2)
    x = np.concatenate([bits[np.isfinite(bits)], *(s.astype(dtype) for s in (*spans, close, dense))])
    return np.concatenate([x, info.smallest_subnormal * np.arange(-9, 10).astype(dtype)]).astype(dtype)


@pytest.mark.parametrize("name", list(LONG))
def test_the_stated_error_holds(kind: tuple[Any, Target], name: str) -> None:
    dtype, target = kind
    if np.finfo(np.longdouble).nmant <= np.finfo(dtype).nmant:
        pytest.skip("needs a longer type to compare with")
    x = arguments(dtype, name, 200_000 if target.bytes == 64 else 20_000)
    y = mapped(kind, name, x)
    with np.errstate(over="ignore", under="ignore"):
        true = LONG[name](x.astype(np.longdouble))
        rounded = true.astype(dtype)
    assert not np.isnan(y).any()
    small = np.abs(true) < np.finfo(dtype).tiny
    infinite = np.isinf(rounded)
    np.testing.assert_array_equal(y[infinite], rounded[infinite])
    flushed = small & (y == 0)  # as the docstring says
    check = ~infinite & ~flushed
    with np.errstate(over="ignore"):
        ulps = np.abs(y[check] - true[check]) / np.spacing(np.abs(rounded[check]))
    worst = ulps.argmax()
    assert ulps[worst] <= stated(name, dtype), f"{name}({x[check][worst]!r}) is {float(ulps[worst])} ulp off"


@pytest.mark.parametrize(
    ("name", "at_infinity", "at_minus_infinity", "at_zero"),
    [
        ("exp", np.inf, 0.0, 1.0),
        ("sigmoid", 1.0, 0.0, 0.5),
        ("tanh", 1.0, -1.0, 0.0),
        ("erf", 1.0, -1.0, 0.0),
        ("erfc", 0.0, 2.0, 1.0),
    ],
)
def test_ends_zeros_and_nan(
    kind: tuple[Any, Target], name: str, at_infinity: float, at_minus_infinity: float, at_zero: float
) -> None:
    top = np.finfo(kind[0]).max
    x = np.array([np.inf, top, 1e4, -np.inf, -top, -1e4, 0.0, -0.0, np.nan, -np.nan], kind[0])
    y = mapped(kind, name, x)
    np.testing.assert_array_equal(y[:8], [at_infinity] * 3 + [at_minus_infinity] * 3 + [at_zero] * 2)
    assert np.isnan(y[8:]).all()
    assert not np.signbit(y[3:6]).any() or name in ("tanh", "erf")
    if name == "tanh":
        tiny = np.finfo(kind[0]).smallest_subnormal * np.array([1, -1, 77], kind[0])
        np.testing.assert_array_equal(mapped(kind, "tanh", tiny), tiny)


def test_functions_are_monotonous_where_it_shows() -> None:
    """Where the branches of tanh meet, and across the powers of two of exp."""
    kind = (np.float32, Target(64, 32))
    for low, high in ((0.62, 0.63), (-0.63, -0.62)):
        x = np.linspace(low, high, 20_000).astype(np.float32)
        assert (np.diff(mapped(kind, "tanh", x)) > -2 * np.spacing(np.float32(0.55))).all()


# ----------------------------------------------------------------------------------------- matrix products

GEMM = (POINTER, INT, INT, POINTER, INT, POINTER, INT, INT, INT, INT, FLAG)


class Product:
    """Final. C = A B or C += A B by the kernel, in memory with NaN around A and B and a mark around C."""

    def __init__(self, kind: tuple[Any, Target]) -> None:
        self.dtype, _ = kind
        self.gemm = function(*kind, "gemm", *GEMM)
        self.rng = np.random.default_rng(0)

    def framed(self, values: Array, extra: int, mark: float) -> Array:
        rows, columns = values.shape
        room = np.full((rows + 2, columns + extra), mark, self.dtype)
        room[1:-1, :columns] = values
        return room

    def check(self, M: int, N: int, K: int, *, extra: int = 0, transposed: bool = False, add: bool = False) -> None:
        """Whole numbers, so that every order of summation gives the same, and there is one right answer."""
        A, B, C = (self.rng.integers(-8, 9, shape).astype(self.dtype) for shape in ((M, K), (K, N), (M, N)))
        a = self.framed(A.T if transposed else A, extra, np.nan)
        b, c = self.framed(B, extra, np.nan), self.framed(C, extra, 77.0)
        stride = a.shape[1]
        sm, sk = (1, stride) if transposed else (stride, 1)
        self.gemm(at(a, stride), sm, sk, at(b, b.shape[1]), b.shape[1], at(c, c.shape[1]), c.shape[1], M, N, K, add)
        wanted = self.framed(A.astype(np.float64) @ B.astype(np.float64) + (C if add else 0.0), extra, 77.0)
        if not np.array_equal(c, wanted):
            raise AssertionError((M, N, K, extra, transposed, add))


def test_products_of_every_small_shape(kind: tuple[Any, Target]) -> None:
    product = Product(kind)
    widths = range(1, 71) if kind[1] == Target(64, 32) else [*range(1, 18), 23, 31, 32, 33, 48, 63, 64, 65, 70]
    for M in range(1, 14):
        for N in widths:
            product.check(
                M, N, 1 + 2 * ((M + N) % 4), extra=(M * N) % 3, transposed=N % 2 == 0, add=(M + N // 2) % 2 == 0
            )


def test_products_in_every_combination(kind: tuple[Any, Target]) -> None:
    product = Product(kind)
    for M, N, K in ((1, 1, 1), (2, 5, 7), (7, 16, 3), (6, 64, 5), (13, 67, 129), (25, 130, 33)):
        for extra in (0, 5):
            for transposed in (False, True):
                for add in (False, True):
                    product.check(M, N, K, extra=extra, transposed=transposed, add=add)


@pytest.mark.parametrize("add", [False, True])
def test_products_that_are_cut_into_pieces(kind: tuple[Any, Target], add: bool) -> None:
    product = Product(kind)
    depth, height = kernels.DEPTH, kernels.HEIGHT
    for M, N, K in ((3, 17, depth + 1), (2, 70, 2 * depth), (height + 1, 9, 5), (2 * height + 7, 33, depth - 1)):
        product.check(M, N, K, add=add, transposed=M > K)
    product.check(height + 13, 70, depth + 3, add=add, extra=1)


def test_an_empty_product_touches_nothing(kind: tuple[Any, Target]) -> None:
    Product(kind).check(0, 7, 3)


def test_products_are_as_exact_as_their_type(kind: tuple[Any, Target]) -> None:
    rng = np.random.default_rng(1)
    gemm = function(*kind, "gemm", *GEMM)
    M, N, K = 31, 45, 1200
    A, B = rng.normal(size=(M, K)).astype(kind[0]), rng.normal(size=(K, N)).astype(kind[0])
    C = np.empty((M, N), kind[0])
    gemm(at(A), K, 1, at(B), N, at(C), N, M, N, K, False)
    scale = np.abs(A).astype(np.float64) @ np.abs(B).astype(np.float64)
    bound = np.sqrt(K) * np.finfo(kind[0]).eps * scale
    assert (np.abs(C - A.astype(np.longdouble) @ B.astype(np.longdouble)) <= bound).all()


def test_an_element_does_not_depend_on_the_tiling(kind: tuple[Any, Target]) -> None:
    """Rows computed apart, as threads do, are the same to the last bit; so are columns."""
    rng = np.random.default_rng(2)
    gemm = function(*kind, "gemm", *GEMM)
    M, N, K = 29, 70, 700
    A, B = rng.normal(size=(M, K)).astype(kind[0]), rng.normal(size=(K, N)).astype(kind[0])
    whole, parts, columns = (np.empty((M, N), kind[0]) for _ in range(3))
    gemm(at(A), K, 1, at(B), N, at(whole), N, M, N, K, False)
    for low, high in ((0, 1), (1, 9), (9, 20), (20, 29)):
        gemm(at(A, low * K), K, 1, at(B), N, at(parts, low * N), N, high - low, N, K, False)
    for low, high in ((0, 3), (3, 40), (40, 70)):
        gemm(at(A), K, 1, at(B, low), N, at(columns, low), N, M, high - low, K, False)
    np.testing.assert_array_equal(parts, whole)
    np.testing.assert_array_equal(columns, whole)


# --------------------------------------------------------------------------------------------------- sums


def test_sums_of_rows(kind: tuple[Any, Target]) -> None:
    dtype = kind[0]
    sum_rows = function(*kind, "sum_rows", POINTER, INT, INT, INT, POINTER, FLAG)
    rng = np.random.default_rng(0)
    for M in (1, 2, 9, 130):
        for N in range(1, 71):
            extra, add = N % 3, (N + M) % 2 == 0
            G = np.full((M, N + extra), np.nan, dtype)
            G[:, :N] = rng.integers(-9, 10, (M, N))
            out = np.full(N + 1, 5.0, dtype)
            sum_rows(at(G), N + extra, M, N, at(out), add)
            np.testing.assert_array_equal(out[:N], G[:, :N].sum(axis=0) + (5.0 if add else 0.0))
            assert out[N] == 5.0


def test_sums_of_everything_are_made_by_one_thread(kind: tuple[Any, Target]) -> None:
    dtype = kind[0]
    sum_all = function(*kind, "sum_all", POINTER, INT, INT, INT, POINTER, INT, FLAG)
    G = np.full((7, 13), np.nan, dtype)
    G[:, :11] = np.random.default_rng(0).integers(-9, 10, (7, 11))
    out = np.array([5.0, 6.0], dtype)
    sum_all(at(G), 13, 7, 11, at(out), 1, False)
    assert out.tolist() == [5.0, 6.0]
    sum_all(at(G), 13, 7, 11, at(out), 0, True)
    assert out.tolist() == [5.0 + G[:, :11].sum(), 6.0]
    sum_all(at(G), 13, 7, 11, at(out), 0, False)
    assert out.tolist() == [G[:, :11].sum(), 6.0]


# -------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("target", TARGETS)
def test_typed_constants_are_the_rounded_number(dtype: Any, target: Target) -> None:
    t = Typed(dtype, target)
    assert t.lanes * t.dtype.itemsize == target.bytes
    assert t.splat(1.0).count(t.number(1.0)) == t.lanes
    assert int(t.number(0.1), 16) == np.array(dtype(0.1), np.float64).view(np.uint64)
    assert t.tail(1).count("i1 1") == 1 and t.tail(1).count("i1 0") == t.lanes - 1


def test_names_of_shared_functions_tell_dtype_and_width() -> None:
    names = {kernels.named(kernels.declarations(Typed(d, t)), Typed(d, t)) for d in BOTH for t in TARGETS}
    assert len(names) == len(BOTH) * len(TARGETS)
