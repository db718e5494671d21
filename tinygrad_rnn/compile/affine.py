"""x W + b by the products of the compiled cells, where machine code can be made: a model's readout.

NumPy's BLAS would do as well for the product alone, but its threads go on spinning for a while after it, on the cores
that the cells need next.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np

from tinygrad_rnn import engine, ops
from tinygrad_rnn.compile import machine
from tinygrad_rnn.compile.llvm_executor import POOL, WORK, address, awake, threads_used

SMALL = 1_000  # multiplications below which the call costs more than NumPy's


@engine.primitive(broadcasts=True)
def product(a: Any, b: Any) -> Any:
    """The product of two matrices (M, K) and (K, N)."""
    return multiply(a, b, None)


@engine.primitive(broadcasts=True)
def affine(x: Any, W: Any, b: Any) -> Any:
    """x W + b for rows x (M, K), a matrix W (K, N) and a vector b (N,)."""
    return multiply(x, W, b)


product.vjp(
    lambda g, _y, _a, b: product(g, ops.swapaxes(b, -1, -2)),
    lambda g, _y, a, _b: product(ops.swapaxes(a, -1, -2), g),
)
affine.vjp(
    lambda g, _y, _x, W, _b: product(g, ops.swapaxes(W, -1, -2)),
    lambda g, _y, x, _W, _b: product(ops.swapaxes(x, -1, -2), g),
    lambda g, _y, _x, _W, _b: g,
)


def multiply(a: Any, b: Any, bias: Any) -> Any:
    """a b, plus a bias for every row, as a new array; by NumPy where there is no machine code for it."""
    run = None
    if type(a) is type(b) is np.ndarray and a.dtype == b.dtype and a.size * b.shape[-1] > SMALL:
        run = _product(a.dtype)
    if run is None or a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or not b.shape[1]:
        return np.matmul(a, b) if bias is None else np.matmul(a, b) + bias
    (M, K), N, item = a.shape, b.shape[1], a.itemsize
    if not b.flags.c_contiguous:
        b = np.ascontiguousarray(b)
    out: Any = np.ndarray((M, N), a.dtype, POOL.lease(M * N * item))
    if bias is not None:
        out[...] = bias
    strides = (a.strides[0] // item, a.strides[1] // item)
    table = np.array(
        [address(a), *strides, address(b), N, address(out), N, N, K, bias is not None], np.int64
    )  # as kernels.PRODUCT names them
    parts = min(threads_used(), M) if M * N * K > WORK // 4 else 1
    ends = [M * k // parts for k in range(parts + 1)]
    awake().run(run, address(table), list(itertools.pairwise(ends)))
    return out


@functools.cache
def _product(dtype: Any) -> Any:
    """The product of machine code for a dtype; None where there is none."""
    if dtype not in (np.float32, np.float64):
        return None
    try:
        return machine.shared(dtype)["product"]
    except (machine.CompilerMissing, RuntimeError):
        return None
