"""The two ends of a model in machine code, where it can be made: rows of a table, x W + b, and the cross-entropy.

NumPy's BLAS would do as well for the product alone, but its threads go on spinning for a while after it, on the cores
that the cells need next.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tinygrad_rnn import backend, engine, ops
from tinygrad_rnn.compile import machine
from tinygrad_rnn.compile.llvm_executor import POOL, WORK
from tinygrad_rnn.compile.threads import address, share, split, threads_used
from tinygrad_rnn.compile.workspace import rounded
from tinygrad_rnn.ops.loss import _cross_entropy, _minus_target
from tinygrad_rnn.ops.reduce import _softmax

SPREAD = 200_000  # numbers to be added below which one thread does it
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
        run = _kernel(a.dtype, "product")
    if run is None or a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or not b.shape[1]:
        return np.matmul(a, b) if bias is None else np.matmul(a, b) + bias
    (M, K), N, item = a.shape, b.shape[1], a.itemsize
    if not b.flags.c_contiguous:
        b = np.ascontiguousarray(b)
    out: Any = np.ndarray((M, N), a.dtype, POOL.lease(rounded(M * N * item)))
    if bias is not None:
        out[...] = bias
    strides = (a.strides[0] // item, a.strides[1] // item)
    table = np.array(
        [address(a), *strides, address(b), N, address(out), N, N, K, bias is not None], np.int64
    )  # as kernels.PRODUCT names them
    share(run, table, split(M, threads_used() if M * N * K > WORK // 4 else 1), (a, b, out))
    return out


@engine.primitive
def lookup(table: Any, *, ids: Any, shape: tuple[int, ...]) -> Any:
    """The rows `ids` (...) of a table of `shape` (V, H): (..., H)."""
    return table[ids]


@engine.primitive
def spread(g: Any, *, ids: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of `shape` (V, H) with the rows of `g` (..., H) added at `ids`: the gradient of `lookup`."""
    out = np.zeros_like(g, shape=shape)
    add = _kernel(g.dtype, "add_rows") if type(g) is np.ndarray and g.size > SMALL else None
    if add is None or not g.size:
        backend.scatter_add(out, ids, g)
        return out
    rows = np.ascontiguousarray(ids, np.int64)
    values = np.ascontiguousarray(g)
    numbers = np.array([address(out), address(rows), address(values), rows.size, shape[1]], np.int64)
    # Threads share the columns, so that every sum is made in the order of the rows.
    parts = min(threads_used(), -(-shape[1] // 64)) if g.size > SPREAD else 1
    share(add, numbers, split(shape[1], parts), (out, rows, values))
    return out


lookup.vjp(lambda g, _y, _table, *, ids, shape: spread(g, ids=ids, shape=shape))
spread.vjp(lambda g, _y, _g, *, ids, shape: lookup(g, ids=ids, shape=shape))


def square_sum(x: Any) -> float:
    """The sum of the squares of an array on the host, in float64 whatever its dtype.

    Never np.dot: the threads of BLAS would spin on the cores that the cells need next.
    """
    kernel = _kernel(x.dtype, "square_sum") if x.size else None
    if kernel is None:
        wide = x.astype(np.float64, copy=False).reshape(-1)
        return float(np.einsum("i,i->", wide, wide))
    x, out = np.ascontiguousarray(x), np.empty(1)
    table = np.array([address(x), address(out)], np.int64)
    kernel(address(table), 0, x.size, 0)
    return float(out[0])


def cross_entropy(logits: Any, targets: Any, **options: Any) -> Any:
    """`ops.cross_entropy` with the same options, in machine code where it can be made."""
    return ops.cross_entropy(logits, targets, kernel=surprise, **options)


@engine.primitive
def surprise(logits: Any, *, targets: Any) -> Any:
    """-log softmax(logits)[target], in nats: logits (..., V), targets (...)."""
    kernel = _kernel(logits.dtype, "surprise") if type(logits) is np.ndarray and logits.size else None
    if kernel is None:
        return _cross_entropy.value(logits, targets=targets)
    out: Any = np.empty(targets.shape, logits.dtype)
    _over_rows(kernel, np.ascontiguousarray(logits), targets, out, out, out)
    return out


@engine.primitive
def slope(g: Any, losses: Any, logits: Any, *, targets: Any) -> Any:
    """The gradient of `surprise`: g (...) times softmax(logits) with 1 taken off at the target."""
    kernel = _kernel(logits.dtype, "slope") if type(logits) is np.ndarray and logits.size else None
    if kernel is None:
        return g[..., None] * _minus_target.value(_softmax.value(logits, axes=(logits.ndim - 1,)), targets=targets)
    out: Any = np.ndarray(logits.shape, logits.dtype, POOL.lease(rounded(logits.nbytes)))
    _over_rows(kernel, np.ascontiguousarray(logits), targets, losses, np.ascontiguousarray(g), out)
    return out


surprise.vjp(lambda g, y, logits, *, targets: slope(g, y, logits, targets=targets))
slope.vjp(
    lambda c, _y, _g, _losses, logits, *, targets: ops.sum(c * _minus_target(ops.softmax(logits), targets=targets), -1),
    None,  # the losses only save work: the gradient by the logits is complete without them
    lambda c, _y, g, _losses, logits, *, targets: _softmax_back(c * ops.expand_dims(g, -1), ops.softmax(logits)),
)


def _softmax_back(q: Any, p: Any) -> Any:
    return p * (q - ops.sum(q * p, -1, keepdims=True))


def _over_rows(kernel: Any, logits: Any, targets: Any, losses: Any, g: Any, out: Any) -> None:
    """A function of `kernels.losses` on all rows."""
    rows = np.ascontiguousarray(targets, np.int64)
    held = (logits, rows, np.ascontiguousarray(losses), g, out)
    table = np.array([*map(address, held), logits.shape[-1]], np.int64)
    share(kernel, table, split(targets.size, threads_used() if logits.size > SPREAD // 4 else 1), held)


@functools.cache
def _kernel(dtype: Any, name: str) -> Any:
    """A function of machine code for a dtype; None where there is none."""
    if dtype not in (np.float32, np.float64):
        return None
    try:
        return machine.shared(dtype)[name]
    except (machine.CompilerMissing, RuntimeError):
        return None
