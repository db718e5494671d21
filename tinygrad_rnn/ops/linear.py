"""Matrix products."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinygrad_rnn.engine import primitive
from tinygrad_rnn.errors import InputError, ShapeError
from tinygrad_rnn.ops.arguments import checked_axes, shape_of, told
from tinygrad_rnn.ops.elementwise import mul
from tinygrad_rnn.ops.reduce import sum
from tinygrad_rnn.ops.shape import diagonal, expand_dims, ravel, reshape, squeeze, swapaxes, transpose

LETTERS = string.ascii_uppercase + string.ascii_lowercase  # of the numbers in einsum's lists, in the order of sorted()


@primitive(broadcasts=True)
def _matmul(a: Any, b: Any) -> Any:
    return np.matmul(a, b)


_matmul.vjp(
    lambda g, _y, _a, b: _matmul(g, swapaxes(b, -1, -2)),
    lambda g, _y, a, _b: _matmul(swapaxes(a, -1, -2), g),
)


_WRAPPED = "a wrapped matrix W: expected a @ W, or W.T and + - * / with numbers and arrays of its shape before that"


class Factor:
    """Final. A matrix that computes its products itself: ``a @ factor`` is ``product(a, matrix)``.

    A wrapper puts it in the place of a cell's matrix, and so changes what the cell's products are. What a cell makes of
    the matrix, as W - W.T, is one again, with the same product. Raises TypeError for any other use.
    """

    __slots__ = ("matrix", "product")
    __array_ufunc__ = None  # a NumPy array on the left leaves the product to us

    def __init__(self, matrix: Any, product: Callable[[Any, Any], Any]) -> None:
        self.matrix = matrix
        self.product = product

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.matrix.shape)

    def __rmatmul__(self, a: Any) -> Any:
        return self.product(a, self.matrix)

    def __getattr__(self, name: str) -> Any:
        raise TypeError(f"{_WRAPPED}, got its .{name}")

    @property
    def T(self) -> Factor:
        return Factor(self.matrix.T, self.product)

    def __neg__(self) -> Factor:
        return Factor(-self.matrix, self.product)

    def __add__(self, other: Any) -> Factor:
        return Factor(self.matrix + self._side(other), self.product)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Factor:
        return Factor(self.matrix - self._side(other), self.product)

    def __rsub__(self, other: Any) -> Factor:
        return Factor(self._side(other) - self.matrix, self.product)

    def __mul__(self, other: Any) -> Factor:
        return Factor(self.matrix * self._side(other), self.product)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Factor:
        return Factor(self.matrix / self._side(other), self.product)

    def __matmul__(self, other: Any) -> Any:
        raise TypeError(f"{_WRAPPED}, got it on the left of @")

    def __getitem__(self, index: Any) -> Any:
        raise TypeError(f"{_WRAPPED}, got a part of it")

    def _side(self, other: Any) -> Any:
        """The other side of an operator: a number, an array of this shape, or a factor with the same product."""
        matrix = other
        if isinstance(other, Factor):
            if other.product is not self.product:
                raise TypeError(f"{_WRAPPED}, got two of them with a product each")
            matrix = other.matrix
        shape = tuple(getattr(matrix, "shape", ()))
        if shape not in ((), self.shape):
            raise TypeError(f"{_WRAPPED}, got it of shape {self.shape} beside {shape}")
        return matrix


def matmul(a: Any, b: Any) -> Any:
    """The matrix product of a (..., n, k) and b (..., k, m), batched over the leading axes; vectors as in NumPy.

    Raises ShapeError when the inner sizes differ or one side is a scalar.
    """
    if type(b) is Factor:
        return b.product(a, b.matrix)
    rank_a, rank_b = len(shape_of(a, "matmul")), len(shape_of(b, "matmul"))
    if rank_a == 2 and rank_b == 2 and a.shape[1] == b.shape[0]:
        return _matmul(a, b)
    if rank_a == 0 or rank_b == 0:
        raise ShapeError(
            f"matmul: expected vectors or matrices, got {tuple(a.shape)} and {tuple(b.shape)}; multiply a scalar with *"
        )
    if a.shape[-1] != b.shape[0 if rank_b == 1 else -2]:
        raise ShapeError(f"matmul: expected equal inner sizes, got {tuple(a.shape)} and {tuple(b.shape)}")
    if rank_b == 1:
        return squeeze(matmul(a, expand_dims(b, -1)), -1)
    if rank_a == 1:
        return squeeze(matmul(expand_dims(a, 0), b), -2)
    if rank_b == 2:
        # one flat product: with a batch of small ones, b's gradient would be a stack of matrices to sum up
        flat = _matmul(reshape(a, (math.prod(a.shape[:-1]), a.shape[-1])), b)
        return reshape(flat, (*a.shape[:-1], b.shape[-1]))
    return _matmul(a, b)


def outer(a: Any, b: Any) -> Any:
    """The matrix a_i b_j of the elements of a and b, each in a row."""
    return mul(expand_dims(ravel(a), 1), expand_dims(ravel(b), 0))


def dot(a: Any, b: Any) -> Any:
    """The sum of products over the last axis of a and the last but one of b (its only one, of a vector)."""
    if not shape_of(a, "dot") or not shape_of(b, "dot"):
        return mul(a, b)
    return _paired(a, b, (-1,), (-2 if len(b.shape) > 1 else -1,), "dot")


def inner(a: Any, b: Any) -> Any:
    """The sum of products over the last axes of a and b."""
    if not shape_of(a, "inner") or not shape_of(b, "inner"):
        return mul(a, b)
    return _paired(a, b, (-1,), (-1,), "inner")


def vdot(a: Any, b: Any) -> Any:
    """The sum of products of all elements of a and b, each in a row."""
    return dot(ravel(a), ravel(b))


def tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    """The sum of products over `axes`: the last so many of a and the first of b, or a pair (those of a, those of b)."""
    if isinstance(axes, int | np.integer) and not isinstance(axes, bool):
        rank = len(shape_of(a, "tensordot"))
        if not 0 <= axes <= min(rank, len(shape_of(b, "tensordot"))):
            raise ShapeError(f"tensordot: expected at most as many axes as a and b have, got {axes}")
        return _paired(a, b, range(rank - int(axes), rank), range(axes), "tensordot")
    if not isinstance(axes, Sequence) or isinstance(axes, str) or len(axes) != 2:
        raise InputError(f"tensordot: expected a number of axes or a pair (axes of a, axes of b), got {told(axes)}")
    return _paired(a, b, axes[0], axes[1], "tensordot")


def kron(a: Any, b: Any) -> Any:
    """The Kronecker product: each element of a replaced by its product with b."""
    rank = max(len(shape_of(a, "kron")), len(shape_of(b, "kron")))
    left, right = ((1,) * (rank - len(x.shape)) + tuple(x.shape) for x in (a, b))
    pairs = list(zip(left, right, strict=True))
    above = reshape(a, [n for size, _ in pairs for n in (size, 1)])
    apart = mul(above, reshape(b, [n for _, size in pairs for n in (1, size)]))
    return reshape(apart, [n * m for n, m in pairs])


def einsum(subscripts: Any, *operands: Any) -> Any:
    """Einstein's summation, as in ``einsum("tbh,hk->tbk", x, W)``: letters not behind the arrow are summed over.

    NumPy's other form, ``einsum(x, [0, 1, 2], W, [2, 3], [0, 1, 3])``, means the same. Written in matrix products, two
    operands at a time from the left, so that gradients of any order and compiled code follow.
    Raises InputError for subscripts that mean nothing, ShapeError for operands that do not fit them.
    """
    if operands and isinstance(operands[0], list | tuple):
        subscripts, operands = _lettered((subscripts, *operands))
    if not isinstance(subscripts, str):
        raise InputError(f"einsum: expected subscripts like 'ij,jk->ik', got {type(subscripts).__name__}")
    shapes = [shape_of(x, "einsum") for x in operands]
    names, result = _subscripts(subscripts, shapes)
    sizes: dict[str, int] = {}
    for letters, shape in zip(names, shapes, strict=True):
        for letter, size in zip(letters, shape, strict=True):
            if size != 1 and sizes.setdefault(letter, size) != size:
                raise ShapeError(
                    f"einsum: expected one size for {letter!r} in {subscripts!r}, got {sizes[letter]} and {size}"
                )
    terms = [_once_each(x, letters, sizes) for x, letters in zip(operands, names, strict=True)]
    y, held = terms[0]
    for i, (x, letters) in enumerate(terms[1:], 2):
        later = {*result, *(letter for _, others in terms[i:] for letter in others)}
        y, held = _multiplied(y, held, x, letters, later)
    y, held = _summed(y, held, {*result})
    return _in_order(y, held, result)


def _lettered(given: Sequence[Any]) -> tuple[str, tuple[Any, ...]]:
    """The subscripts and the operands of ``x, [0, 1], W, [1, 2], [0, 2]``; letters in the order of the numbers."""
    lists = [*given[1::2], *(given[-1:] if len(given) % 2 else [])]
    words = []
    for numbers in lists:
        if not isinstance(numbers, list | tuple) or not all(n is ... or n in range(len(LETTERS)) for n in numbers):
            raise InputError(
                f"einsum: expected lists of whole numbers below {len(LETTERS)}, one after each operand, got "
                f"{told(numbers)}"
            )
        words.append("".join("..." if n is ... else LETTERS[n] for n in numbers))
    result = f"->{words.pop()}" if len(given) % 2 else ""
    return ",".join(words) + result, tuple(given[: 2 * len(words) : 2])


def _subscripts(text: str, shapes: Sequence[tuple[int, ...]]) -> tuple[list[list[str]], list[str]]:
    """The letters of each operand and of the result; an ellipsis becomes letters of its own, "0", "1", ..."""
    left, arrow, right = text.replace(" ", "").replace("...", ".").partition("->")
    parts = left.split(",")
    if not shapes or len(parts) != len(shapes):
        raise InputError(f"einsum: expected {len(parts)} operands for {text!r}, got {len(shapes)}")
    if any(not (letter.isalpha() or letter == ".") for letter in left.replace(",", "") + right):
        raise InputError(f"einsum: expected letters, commas, '...' and '->', got {text!r}")
    names, most = [], 0
    for part, shape in zip(parts, shapes, strict=True):
        dots = len(shape) - len(part.replace(".", ""))
        if part.count(".") > 1 or dots < 0 or (dots and "." not in part):
            raise ShapeError(f"einsum: expected {part.replace('.', '...')!r} to name the axes of shape {tuple(shape)}")
        most = max(most, dots)
        names.append(_spelled(part, dots))
    letters = [letter for part in names for letter in part]
    if arrow:
        result = _spelled(right, most)
    else:
        free = sorted({letter for letter in letters if letter.isalpha() and letters.count(letter) == 1})
        result = [*_spelled("." if "." in left else "", most), *free]
    if len(set(result)) < len(result) or not set(result) <= {*letters, *_spelled(".", most)}:
        raise InputError(f"einsum: expected each letter of the result once, and in an operand, got {text!r}")
    return names, result


def _spelled(part: str, dots: int) -> list[str]:
    """The letters of `part`, with numbers counted from the last for the axes of its ellipsis."""
    return [name for letter in part for name in ([str(n) for n in range(dots)][::-1] if letter == "." else [letter])]


def _once_each(x: Any, letters: list[str], sizes: dict[str, int]) -> tuple[Any, list[str]]:
    """`x` with each letter once: of two equal ones the diagonal; a size of 1 beside a larger one is dropped."""
    kept = [not (n == 1 and sizes.get(letter, 1) != 1) for letter, n in zip(letters, x.shape, strict=True)]
    x = reshape(x, [n for n, keep in zip(x.shape, kept, strict=True) if keep])
    letters = [letter for letter, keep in zip(letters, kept, strict=True) if keep]
    while len(set(letters)) < len(letters):
        twice = next(letter for letter in letters if letters.count(letter) > 1)
        first = letters.index(twice)
        second = letters.index(twice, first + 1)
        x = diagonal(x, 0, first, second)
        letters = [letter for i, letter in enumerate(letters) if i not in (first, second)] + [twice]
    return x, letters


def _summed(x: Any, letters: list[str], kept: set[str]) -> tuple[Any, list[str]]:
    """`x` summed over the letters that are not kept."""
    axes = [i for i, letter in enumerate(letters) if letter not in kept]
    return (sum(x, axes) if axes else x), [letter for letter in letters if letter in kept]


def _in_order(x: Any, letters: list[str], wanted: list[str]) -> Any:
    return x if letters == wanted else transpose(x, [letters.index(letter) for letter in wanted])


def _multiplied(a: Any, p: list[str], b: Any, q: list[str], kept: set[str]) -> tuple[Any, list[str]]:
    """The product of `a` with letters `p` and `b` with letters `q`, summed over those in both that are not kept."""
    a, p = _summed(a, p, kept | {*q})
    b, q = _summed(b, q, kept | {*p})
    batch = [letter for letter in p if letter in q and letter in kept]
    summed = [letter for letter in p if letter in q and letter not in kept]
    rows = [letter for letter in p if letter not in q]
    columns = [letter for letter in q if letter not in p]
    a = _in_order(a, p, [*batch, *rows, *summed])
    b = _in_order(b, q, [*batch, *summed, *columns])
    n, m, k = len(batch), len(batch) + len(rows), len(batch) + len(summed)
    shape = (*a.shape[:m], *b.shape[k:])
    flat = [math.prod(sizes) for sizes in (a.shape[n:m], a.shape[m:], b.shape[k:])]
    left = reshape(a, (*a.shape[:n], flat[0], flat[1]))
    right = reshape(b, (*b.shape[:n], flat[1], flat[2]))
    return reshape(matmul(left, right), shape), [*batch, *rows, *columns]


def _paired(a: Any, b: Any, axes_a: Any, axes_b: Any, name: str) -> Any:
    """The sum of products over `axes_a` of a and `axes_b` of b, axis by axis."""
    left, right = checked_axes(a, axes_a, name), checked_axes(b, axes_b, name)
    if [a.shape[i] for i in left] != [b.shape[i] for i in right]:
        raise ShapeError(f"{name}: expected equal sizes at the summed axes, got {tuple(a.shape)} and {tuple(b.shape)}")
    p = [f"a{i}" for i in range(len(a.shape))]
    q = [p[left[right.index(i)]] if i in right else f"b{i}" for i in range(len(b.shape))]
    y, _ = _multiplied(a, p, b, q, {*p, *q} - {p[i] for i in left})
    return y
