"""Code that every compiled cell uses, as LLVM assembly: vector functions, and matrix products.

A vector is one register of the machine: `lanes` numbers. What is written here is generated for a dtype and a `Target`;
`llvm_executor` compiles it together with the code of a cell.

Errors of the vector functions against float64 (measured in tests/compile/test_kernels.py, in units in the last place):
float32 exp 1, sigmoid 3, tanh 2, erf 3, erfc 6; float64 exp 2, sigmoid 3, tanh 2, erf 3, erfc 6.
Results below the smallest normal number are 0.
Source of the coefficients: S. Moshier, Cephes mathematical library (expf, exp, tanhf, tanh).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_rnn.ops.functions import ERF_NEAR, ERFC_TAIL, ERFC_ZERO

COLUMNS = 4  # vectors of a register tile
ROWS = 6  # rows of a register tile: 24 accumulators of the 32 registers of AVX-512 and NEON


@dataclass(frozen=True)
class Target:
    """What the machine code is made for: the bytes of a vector register, and how many there are."""

    bytes: int
    registers: int

    def columns(self) -> int:
        """Vectors of a register tile."""
        return COLUMNS if self.registers >= 32 else COLUMNS // 2


class Typed:
    """Final. The names that LLVM has for one dtype on one target."""

    def __init__(self, dtype: Any, target: Target) -> None:
        self.dtype = np.dtype(dtype)
        self.target = target
        self.lanes = target.bytes // self.dtype.itemsize
        self.scalar = "float" if self.dtype.itemsize == 4 else "double"
        self.suffix = f"v{self.lanes}f{8 * self.dtype.itemsize}"
        self.vector = f"<{self.lanes} x {self.scalar}>"
        self.integer = f"<{self.lanes} x i{8 * self.dtype.itemsize}>"
        self.mask = f"<{self.lanes} x i1>"

    def number(self, value: float) -> str:
        """A scalar constant. LLVM writes a float as the double of the same value."""
        rounded = float(self.dtype.type(value))
        return "0x" + struct.pack(">d", rounded).hex().upper()

    def splat(self, value: float) -> str:
        """A vector constant."""
        return f"<{', '.join([f'{self.scalar} {self.number(value)}'] * self.lanes)}>"

    def load(self, pointer: str, mask: str = "") -> str:
        """The instruction that reads a vector; lanes outside `mask` are 0 and not read."""
        size, v = self.dtype.itemsize, self.vector
        if not mask:
            return f"load {v}, ptr {pointer}, align {size}"
        name = f"@llvm.masked.load.{self.suffix}.p0"
        return f"call {v} {name}(ptr {pointer}, i32 {size}, {self.mask} {mask}, {v} zeroinitializer)"

    def store(self, value: str, pointer: str, mask: str = "") -> str:
        """The instruction that writes a vector; lanes outside `mask` are not written."""
        size, v = self.dtype.itemsize, self.vector
        if not mask:
            return f"store {v} {value}, ptr {pointer}, align {size}"
        name = f"@llvm.masked.store.{self.suffix}.p0"
        return f"call void {name}({v} {value}, ptr {pointer}, i32 {size}, {self.mask} {mask})"

    def spread(self, name: str, number: str) -> list[str]:
        """The instructions that make `name`, a vector of integers, of the one `number`."""
        v = f"<{self.lanes} x i64>"
        return [
            f"  {name}one = insertelement {v} poison, i64 {number}, i32 0",
            f"  {name} = shufflevector {v} {name}one, {v} poison, <{self.lanes} x i32> zeroinitializer",
        ]

    def tail(self, count: int) -> str:
        """The mask of the first `count` lanes."""
        return f"<{', '.join(f'i1 {int(i < count)}' for i in range(self.lanes))}>"


# ---------------------------------------------------------------------------------------- vector functions


def functions(t: Typed) -> str:
    """exp, sigmoid, tanh, erf and erfc of a vector, and the declarations of LLVM's own functions."""
    v, f = t.vector, t.suffix
    lines = [
        f"declare {v} @llvm.{name}.{f}({', '.join([v] * count)})"
        for name, count in (
            ("fmuladd", 3), ("rint", 1), ("fabs", 1), ("copysign", 2), ("sqrt", 1), ("log", 1), ("sin", 1), ("cos", 1),
            ("pow", 2), ("floor", 1), ("ceil", 1), ("trunc", 1), ("exp2", 1), ("log2", 1), ("log10", 1),
        )
    ]  # fmt: skip
    lines += [
        f"declare {v} @llvm.masked.load.{f}.p0(ptr, i32, {t.mask}, {v})",
        f"declare void @llvm.masked.store.{f}.p0({v}, ptr, i32, {t.mask})",
        f"declare {t.scalar} @llvm.vector.reduce.fadd.{f}({t.scalar}, {v})",
        f"declare {t.scalar} @llvm.vector.reduce.fmax.{f}({v})",
    ]
    return "\n".join([*lines, _exp(t), _sigmoid(t), _tanh(t), _erf(t), _erfc(t)]) + "\n"


class _Body:
    """Final. Instructions of one straight piece of code, with fresh names for results."""

    def __init__(self, t: Typed) -> None:
        self.t = t
        self.lines: list[str] = []

    def name(self) -> str:
        return f"%v{len(self.lines)}"

    def do(self, text: str) -> str:
        name = self.name()
        self.lines.append(f"  {name} = {text}")
        return name

    def op(self, what: str, a: str, b: str) -> str:
        return self.do(f"{what} {self.t.vector} {a}, {b}")

    def fma(self, a: str, b: str, c: str) -> str:
        v = self.t.vector
        return self.do(f"call {v} @llvm.fmuladd.{self.t.suffix}({v} {a}, {v} {b}, {v} {c})")

    def call(self, name: str, *args: str) -> str:
        v = self.t.vector
        return self.do(f"call {v} @llvm.{name}.{self.t.suffix}({', '.join(f'{v} {a}' for a in args)})")

    def select(self, condition: str, a: str, b: str) -> str:
        t = self.t
        return self.do(f"select {t.mask} {condition}, {t.vector} {a}, {t.vector} {b}")

    def polynomial(self, x: str, *coefficients: float) -> str:
        """Horner's rule, the highest power first."""
        y = self.t.splat(coefficients[0])
        for c in coefficients[1:]:
            y = self.fma(y, x, self.t.splat(c))
        return y


def _function(t: Typed, name: str, body: _Body, result: str) -> str:
    return (
        f"define internal {t.vector} @{name}({t.vector} %x) alwaysinline {{\n"
        + "\n".join(body.lines)
        + f"\n  ret {t.vector} {result}\n}}"
    )


def _power_of_two(b: _Body, n: str) -> str:
    """2 ** n for a vector of whole numbers, by writing the exponent."""
    t = b.t
    bias, shift, width = (127, 23, 32) if t.dtype.itemsize == 4 else (1023, 52, 64)
    i = b.do(f"fptosi {t.vector} {n} to {t.integer}")
    i = b.do(f"add {t.integer} {i}, splat (i{width} {bias})")
    i = b.do(f"shl {t.integer} {i}, splat (i{width} {shift})")
    return b.do(f"bitcast {t.integer} {i} to {t.vector}")


def _exp(t: Typed) -> str:
    """2^n e^r with |r| <= ln(2) / 2; in two factors 2^(n/2), so that neither overflows before the result does."""
    b = _Body(t)
    single = t.dtype.itemsize == 4
    low, high = (-87.33654, 88.72283) if single else (-708.39641853226408, 709.782712893384)
    below = b.do(f"fcmp olt {t.vector} %x, {t.splat(low)}")
    above = b.do(f"fcmp ogt {t.vector} %x, {t.splat(high)}")
    x = b.select(below, t.splat(low), "%x")
    x = b.select(above, t.splat(high), x)
    n = b.call("rint", b.op("fmul", x, t.splat(1.4426950408889634)))
    r = b.fma(n, t.splat(-0.693359375 if single else -6.93145751953125e-1), x)
    r = b.fma(n, t.splat(2.12194440e-4 if single else -1.42860682030941723212e-6), r)
    square = b.op("fmul", r, r)
    if single:
        p = b.polynomial(
            r, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1
        )
        y = b.op("fadd", b.fma(p, square, r), t.splat(1.0))
    else:
        p = b.polynomial(square, 1.26177193074810590878e-4, 3.02994407707441961300e-2, 9.99999999999999999910e-1)
        p = b.op("fmul", p, r)
        q = b.polynomial(square, 3.00198505138664455042e-6, 2.52448340349684104192e-3, 2.27265548208155028766e-1, 2.0)
        y = b.op("fdiv", p, b.op("fsub", q, p))
        y = b.fma(y, t.splat(2.0), t.splat(1.0))
    half = b.call("rint", b.op("fmul", n, t.splat(0.5)))
    y = b.op("fmul", y, _power_of_two(b, half))
    y = b.op("fmul", y, _power_of_two(b, b.op("fsub", n, half)))
    y = b.select(below, t.splat(0.0), y)
    return _function(t, "exp", b, b.select(above, t.splat(float("inf")), y))


def _sigmoid(t: Typed) -> str:
    b = _Body(t)
    e = b.do(f"call {t.vector} @exp({t.vector} {b.op('fsub', t.splat(-0.0), '%x')})")
    return _function(t, "sigmoid", b, b.op("fdiv", t.splat(1.0), b.op("fadd", e, t.splat(1.0))))


def _tanh(t: Typed) -> str:
    """x + x^3 P(x^2) below 0.625, where 1 - 2 / (e^2x + 1) would lose digits."""
    b = _Body(t)
    size = b.call("fabs", "%x")
    z = b.op("fmul", "%x", "%x")
    if t.dtype.itemsize == 4:
        p = b.polynomial(z, -5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
    else:
        p = b.polynomial(z, -9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3)
        q = b.polynomial(z, 1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3)
        p = b.op("fdiv", p, q)
    small = b.call("copysign", b.fma(b.op("fmul", p, z), "%x", "%x"), "%x")  # the sign of a zero too
    e = b.do(f"call {t.vector} @exp({t.vector} {b.op('fadd', size, size)})")
    large = b.op("fsub", t.splat(1.0), b.op("fdiv", t.splat(2.0), b.op("fadd", e, t.splat(1.0))))
    large = b.call("copysign", large, "%x")
    near = b.do(f"fcmp olt {t.vector} {size}, {t.splat(0.625)}")
    return _function(t, "tanh", b, b.select(near, small, large))


def _erf_tail(b: _Body, size: str) -> str:
    """erfc for numbers >= 0, as `ops.erfc` computes it."""
    t = b.t
    short = b.op("fmul", b.call("rint", b.op("fmul", size, t.splat(16.0))), t.splat(0.0625))
    e = b.do(f"call {t.vector} @exp({t.vector} {b.op('fmul', b.op('fsub', t.splat(-0.0), short), short)})")
    rest = b.op("fmul", b.op("fsub", short, size), b.op("fadd", short, size))
    e = b.op("fmul", e, b.do(f"call {t.vector} @exp({t.vector} {rest})"))
    place = b.op("fdiv", b.op("fsub", size, t.splat(3.75)), b.op("fadd", size, t.splat(3.75)))
    p = b.polynomial(place, *ERFC_TAIL[::-1])
    return b.op("fmul", e, b.op("fdiv", p, b.fma(size, t.splat(2.0), t.splat(1.0))))


def _size(b: _Body) -> str:
    """|x|, up to where erfc is 0."""
    t = b.t
    size = b.call("fabs", "%x")
    return b.select(b.do(f"fcmp ogt {t.vector} {size}, {t.splat(ERFC_ZERO)}"), t.splat(ERFC_ZERO), size)


def _erf_near(b: _Body, size: str) -> str:
    """erf for numbers in [0, 1]."""
    return b.op("fmul", size, b.polynomial(b.op("fmul", size, size), *ERF_NEAR[::-1]))


def _erf(t: Typed) -> str:
    b = _Body(t)
    size = _size(b)
    far = b.op("fsub", t.splat(1.0), _erf_tail(b, size))
    y = b.select(b.do(f"fcmp olt {t.vector} {size}, {t.splat(1.0)}"), _erf_near(b, size), far)
    return _function(t, "erf", b, b.call("copysign", y, "%x"))


def _erfc(t: Typed) -> str:
    b = _Body(t)
    size = _size(b)
    near = b.op("fsub", t.splat(1.0), _erf_near(b, size))
    y = b.select(b.do(f"fcmp olt {t.vector} {size}, {t.splat(0.5)}"), near, _erf_tail(b, size))
    negative = b.do(f"fcmp olt {t.vector} %x, {t.splat(0.0)}")
    return _function(t, "erfc", b, b.select(negative, b.op("fsub", t.splat(2.0), y), y))


# ----------------------------------------------------------------------------------------- matrix products


def products(t: Typed) -> str:
    """``@gemm(A, sm, sk, B, ldb, C, ldc, M, N, K, add)``: C (M, N) = A B, or C += A B where `add` is not 0.

    A (M, K) has any strides `sm`, `sk` (so that a transposed A costs nothing); rows of B (K, N) and of C are
    contiguous. Strides are in elements. A tile of the result is held in registers along the whole of K, cut into pieces
    that fit the cache; every element is summed up in the order of K, whatever M, N and the tiling are.
    """
    columns = t.target.columns()
    tiles = [_tile(t, rows, columns, False) for rows in range(1, ROWS + 1)]
    tiles += [_tile(t, rows, count, True) for count in range(1, columns + 1) for rows in range(1, ROWS + 1)]
    return "\n".join(
        [*tiles, _strip(t, columns, False), *[_strip(t, c, True) for c in range(1, columns + 1)], _gemm(t), _part(t)]
    )


TILE = "ptr noalias %A, i64 %sm, i64 %sk, ptr noalias %B, i64 %ldb, ptr noalias %C, i64 %ldc, i64 %K, i1 %add"


def _tile(t: Typed, rows: int, columns: int, masked: bool) -> str:
    """`rows` rows by `columns` vectors of C in registers; with `masked` the last vector is cut off by %mask."""
    v, lanes, size = t.vector, t.lanes, t.dtype.itemsize
    out: list[str] = []

    def load(pointer: str, last: bool) -> str:
        return t.load(pointer, "%mask" if last else "")

    mask = f", {t.mask} %mask" if masked else ""
    out.append(f"define internal void @tile{rows}x{columns}{'m' if masked else ''}({TILE}{mask}) {{")
    out.append("entry:")
    for m in range(rows):
        out.append(f"  %ao{m} = mul i64 %sm, {m}")
        out.append(f"  %a{m} = getelementptr {t.scalar}, ptr %A, i64 %ao{m}")
        out.append(f"  %co{m} = mul i64 %ldc, {m}")
        out.append(f"  %c{m} = getelementptr {t.scalar}, ptr %C, i64 %co{m}")
        for n in range(columns):
            out.append(f"  %cp{m}_{n} = getelementptr {t.scalar}, ptr %c{m}, i64 {n * lanes}")
    out.append("  br i1 %add, label %old, label %start")
    out.append("old:")
    tile = [(m, n) for m in range(rows) for n in range(columns)]
    for m, n in tile:
        out.append(f"  %old{m}_{n} = {load(f'%cp{m}_{n}', masked and n == columns - 1)}")
    out.append("  br label %start")
    out.append("start:")
    for m, n in tile:
        out.append(f"  %first{m}_{n} = phi {v} [zeroinitializer, %entry], [%old{m}_{n}, %old]")
    out.append("  br label %loop")
    out.append("loop:")
    out.append("  %k = phi i64 [0, %start], [%k1, %loop]")
    for m, n in tile:
        out.append(f"  %s{m}_{n} = phi {v} [%first{m}_{n}, %start], [%r{m}_{n}, %loop]")
    out.append("  %bo = mul i64 %k, %ldb")
    out.append(f"  %bk = getelementptr {t.scalar}, ptr %B, i64 %bo")
    for n in range(columns):
        out.append(f"  %bp{n} = getelementptr {t.scalar}, ptr %bk, i64 {n * lanes}")
        out.append(f"  %b{n} = {load(f'%bp{n}', masked and n == columns - 1)}")
    out.append("  %ko = mul i64 %k, %sk")
    for m in range(rows):
        out.append(f"  %ap{m} = getelementptr {t.scalar}, ptr %a{m}, i64 %ko")
        out.append(f"  %as{m} = load {t.scalar}, ptr %ap{m}, align {size}")
        out.append(f"  %ai{m} = insertelement {v} poison, {t.scalar} %as{m}, i32 0")
        out.append(f"  %av{m} = shufflevector {v} %ai{m}, {v} poison, <{lanes} x i32> zeroinitializer")
        for n in range(columns):
            out.append(f"  %r{m}_{n} = call {v} @llvm.fmuladd.{t.suffix}({v} %av{m}, {v} %b{n}, {v} %s{m}_{n})")
    out.append("  %k1 = add i64 %k, 1")
    out.append("  %more = icmp slt i64 %k1, %K")
    out.append("  br i1 %more, label %loop, label %done")
    out.append("done:")
    for m, n in tile:
        mask = "%mask" if masked and n == columns - 1 else ""
        out.append(f"  {t.store(f'%r{m}_{n}', f'%cp{m}_{n}', mask)}")
    out.append("  ret void\n}")
    return "\n".join(out)


def _strip(t: Typed, columns: int, masked: bool) -> str:
    """All M rows of a strip of `columns` vectors, in tiles of nearly equal height."""
    suffix = f"{columns}{'m' if masked else ''}"
    mask = f", {t.mask} %mask" if masked else ""
    cases = " ".join(f"i64 {rows}, label %rows{rows}" for rows in range(1, ROWS))
    lines = [
        f"define internal void @strip{suffix}({TILE}, i64 %M{mask}) {{",
        "entry:",
        f"  %up = add i64 %M, {ROWS - 1}",
        f"  %tiles = udiv i64 %up, {ROWS}",
        "  %low = udiv i64 %M, %tiles",  # so many rows in each tile, and one more in the first %extra
        "  %covered = mul i64 %low, %tiles",
        "  %extra = sub i64 %M, %covered",
        "  br label %next",
        "next:",
        "  %i = phi i64 [0, %entry], [%i1, %after]",
        "  %m = phi i64 [0, %entry], [%m1, %after]",
        "  %big = icmp slt i64 %i, %extra",
        "  %one = zext i1 %big to i64",
        "  %rows = add i64 %low, %one",
        "  %ao = mul i64 %m, %sm",
        f"  %a = getelementptr {t.scalar}, ptr %A, i64 %ao",
        "  %co = mul i64 %m, %ldc",
        f"  %c = getelementptr {t.scalar}, ptr %C, i64 %co",
        f"  switch i64 %rows, label %rows{ROWS} [ {cases} ]",
    ]
    for rows in range(1, ROWS + 1):
        lines += [
            f"rows{rows}:",
            f"  call void @tile{rows}x{suffix}(ptr %a, i64 %sm, i64 %sk, ptr %B, i64 %ldb, ptr %c, i64 %ldc, i64 %K, "
            f"i1 %add{mask})",
            "  br label %after",
        ]
    lines += [
        "after:",
        "  %m1 = add i64 %m, %rows",
        "  %i1 = add i64 %i, 1",
        "  %more = icmp slt i64 %i1, %tiles",
        "  br i1 %more, label %next, label %done",
        "done:",
        "  ret void",
        "}",
    ]
    return "\n".join(lines)


PRODUCT = ("A", "sm", "sk", "B", "ldb", "C", "ldc", "N", "K", "add")


def _part(t: Typed) -> str:
    """``@product(table, low, high, thread)``: rows low to high of a product, whose arguments are in a table."""
    lines = ["define void @product(ptr %table, i64 %low, i64 %high, i64 %thread) {"]
    for i, name in enumerate(PRODUCT):
        lines.append(f"  %{name}at = getelementptr i64, ptr %table, i64 {i}")
        lines.append(f"  %{name}n = load i64, ptr %{name}at, align 8")
    lines += [
        "  %A = inttoptr i64 %An to ptr",
        "  %B = inttoptr i64 %Bn to ptr",
        "  %C = inttoptr i64 %Cn to ptr",
        "  %ao = mul i64 %low, %smn",
        f"  %a = getelementptr {t.scalar}, ptr %A, i64 %ao",
        "  %co = mul i64 %low, %ldcn",
        f"  %c = getelementptr {t.scalar}, ptr %C, i64 %co",
        "  %M = sub i64 %high, %low",
        "  %more = trunc i64 %addn to i1",
        "  call void @gemm(ptr %a, i64 %smn, i64 %skn, ptr %B, i64 %ldbn, ptr %c, i64 %ldcn, i64 %M, i64 %Nn, i64 %Kn, "
        "i1 %more)",
        "  ret void",
        "}",
    ]
    return "\n".join(lines)


DEPTH = 512  # of K in one piece: a strip of B stays in the second cache
HEIGHT = 240  # rows of A in one piece


def _gemm(t: Typed) -> str:
    columns = t.target.columns()
    width = columns * t.lanes
    tails = " ".join(f"i64 {c}, label %tail{c}" for c in range(1, columns))
    call = "ptr %a, i64 %sm, i64 %sk, ptr %b, i64 %ldb, ptr %c, i64 %ldc, i64 %depth, i1 %adds, i64 %height"
    lines = [
        "define void @gemm(ptr %A, i64 %sm, i64 %sk, ptr %B, i64 %ldb, ptr %C, i64 %ldc, i64 %M, i64 %N, i64 %K, "
        "i1 %add) noinline {",
        "entry:",
        "  %some = icmp sgt i64 %M, 0",
        "  br i1 %some, label %deep, label %done",
        "deep:",
        "  %k = phi i64 [0, %entry], [%k1, %deeper]",
        "  %kleft = sub i64 %K, %k",
        f"  %kcut = icmp slt i64 %kleft, {DEPTH}",
        f"  %depth = select i1 %kcut, i64 %kleft, i64 {DEPTH}",
        "  %later = icmp sgt i64 %k, 0",
        "  %adds = or i1 %add, %later",
        "  br label %high",
        "high:",
        "  %m = phi i64 [0, %deep], [%m1, %higher]",
        "  %mleft = sub i64 %M, %m",
        f"  %mcut = icmp slt i64 %mleft, {HEIGHT}",
        f"  %height = select i1 %mcut, i64 %mleft, i64 {HEIGHT}",
        "  %am = mul i64 %m, %sm",
        "  %ak = mul i64 %k, %sk",
        "  %ao = add i64 %am, %ak",
        f"  %a = getelementptr {t.scalar}, ptr %A, i64 %ao",
        "  %bk = mul i64 %k, %ldb",
        "  %cm = mul i64 %m, %ldc",
        "  br label %wide",
        "wide:",
        "  %n = phi i64 [0, %high], [%n1, %wider]",
        "  %bo = add i64 %bk, %n",
        f"  %b = getelementptr {t.scalar}, ptr %B, i64 %bo",
        "  %co = add i64 %cm, %n",
        f"  %c = getelementptr {t.scalar}, ptr %C, i64 %co",
        "  %nleft = sub i64 %N, %n",
        f"  %whole = icmp sge i64 %nleft, {width}",
        "  br i1 %whole, label %full, label %part",
        "full:",
        f"  call void @strip{columns}({call})",
        "  br label %wider",
        "part:",
        f"  %nup = add i64 %nleft, {t.lanes - 1}",
        f"  %vectors = udiv i64 %nup, {t.lanes}",
        "  %before = sub i64 %vectors, 1",
        f"  %beforen = mul i64 %before, {t.lanes}",
        "  %rest = sub i64 %nleft, %beforen",
        *t.spread("%rests", "%rest"),
        f"  %mask = icmp slt <{t.lanes} x i64> <{', '.join(f'i64 {i}' for i in range(t.lanes))}>, %rests",
        f"  switch i64 %vectors, label %tail{columns} [ {tails} ]",
    ]
    for c in range(1, columns + 1):
        lines += [f"tail{c}:", f"  call void @strip{c}m({call}, {t.mask} %mask)", "  br label %wider"]
    lines += [
        "wider:",
        f"  %n1 = add i64 %n, {width}",
        "  %nmore = icmp slt i64 %n1, %N",
        "  br i1 %nmore, label %wide, label %higher",
        "higher:",
        f"  %m1 = add i64 %m, {HEIGHT}",
        "  %mmore = icmp slt i64 %m1, %M",
        "  br i1 %mmore, label %high, label %deeper",
        "deeper:",
        f"  %k1 = add i64 %k, {DEPTH}",
        "  %kmore = icmp slt i64 %k1, %K",
        "  br i1 %kmore, label %deep, label %done",
        "done:",
        "  ret void",
        "}",
    ]
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------- sums


def sums(t: Typed) -> str:
    """``@sum_rows(G, ldg, M, N, out, add)``: the sum of M rows of N numbers; ``@sum_all``: of all, in part 0."""
    v, size = t.vector, t.dtype.itemsize

    def column(name: str, masked: bool) -> list[str]:
        mask = "%mask" if masked else ""
        last = f", {t.mask} %mask" if masked else ""
        return [
            f"define internal void @{name}(ptr %G, i64 %ldg, i64 %M, ptr %o, i1 %add{last}) {{",
            "entry:",
            "  br i1 %add, label %more, label %start",
            "more:",
            f"  %had = {t.load('%o', mask)}",
            "  br label %start",
            "start:",
            f"  %first = phi {v} [zeroinitializer, %entry], [%had, %more]",
            "  br label %loop",
            "loop:",
            "  %m = phi i64 [0, %start], [%m1, %loop]",
            f"  %s = phi {v} [%first, %start], [%sum, %loop]",
            "  %mo = mul i64 %m, %ldg",
            f"  %p = getelementptr {t.scalar}, ptr %G, i64 %mo",
            f"  %g = {t.load('%p', mask)}",
            f"  %sum = fadd {v} %s, %g",
            "  %m1 = add i64 %m, 1",
            "  %left = icmp slt i64 %m1, %M",
            "  br i1 %left, label %loop, label %done",
            "done:",
            f"  {t.store('%sum', '%o', mask)}",
            "  ret void",
            "}",
        ]

    lanes = ", ".join(f"i64 {i}" for i in range(t.lanes))
    rows = [
        "define void @sum_rows(ptr %G, i64 %ldg, i64 %M, i64 %N, ptr %out, i1 %add) noinline {",
        "entry:",
        "  %some = icmp sgt i64 %N, 0",
        "  br i1 %some, label %next, label %done",
        "next:",
        "  %n = phi i64 [0, %entry], [%n1, %after]",
        f"  %g = getelementptr {t.scalar}, ptr %G, i64 %n",
        f"  %o = getelementptr {t.scalar}, ptr %out, i64 %n",
        "  %left = sub i64 %N, %n",
        f"  %whole = icmp sge i64 %left, {t.lanes}",
        "  br i1 %whole, label %full, label %part",
        "full:",
        "  call void @column(ptr %g, i64 %ldg, i64 %M, ptr %o, i1 %add)",
        "  br label %after",
        "part:",
        *t.spread("%lefts", "%left"),
        f"  %mask = icmp slt <{t.lanes} x i64> <{lanes}>, %lefts",
        f"  call void @columnm(ptr %g, i64 %ldg, i64 %M, ptr %o, i1 %add, {t.mask} %mask)",
        "  br label %after",
        "after:",
        f"  %n1 = add i64 %n, {t.lanes}",
        "  %more = icmp slt i64 %n1, %N",
        "  br i1 %more, label %next, label %done",
        "done:",
        "  ret void",
        "}",
    ]
    everything = [
        "define void @sum_all(ptr %G, i64 %ldg, i64 %M, i64 %N, ptr %out, i64 %part, i1 %add) noinline {",
        "entry:",
        "  %mine = icmp eq i64 %part, 0",
        "  br i1 %mine, label %begin, label %end",
        "begin:",
        f"  %had = load {t.scalar}, ptr %out, align {size}",
        f"  %first = select i1 %add, {t.scalar} %had, {t.scalar} 0.0",
        "  br label %row",
        "row:",
        "  %m = phi i64 [0, %begin], [%m1, %rowdone]",
        f"  %rs = phi {t.scalar} [%first, %begin], [%sum, %rowdone]",
        "  %mo = mul i64 %m, %ldg",
        "  br label %col",
        "col:",
        "  %n = phi i64 [0, %row], [%n1, %col]",
        f"  %s = phi {t.scalar} [%rs, %row], [%sum, %col]",
        "  %i = add i64 %mo, %n",
        f"  %p = getelementptr {t.scalar}, ptr %G, i64 %i",
        f"  %g = load {t.scalar}, ptr %p, align {size}",
        f"  %sum = fadd {t.scalar} %s, %g",
        "  %n1 = add i64 %n, 1",
        "  %nm = icmp slt i64 %n1, %N",
        "  br i1 %nm, label %col, label %rowdone",
        "rowdone:",
        "  %m1 = add i64 %m, 1",
        "  %mm = icmp slt i64 %m1, %M",
        "  br i1 %mm, label %row, label %done",
        "done:",
        f"  store {t.scalar} %sum, ptr %out, align {size}",
        "  br label %end",
        "end:",
        "  ret void",
        "}",
    ]
    return "\n".join([*column("column", False), *column("columnm", True), *rows, *everything]) + "\n"


def transposition(t: Typed) -> str:
    """``@transpose(A, lda, M, N, B, ldb)``: B (N, M) = A^T, by squares of one vector each way."""
    v, n = t.vector, t.lanes
    lanes = ", ".join(f"i64 {i}" for i in range(n))

    def fits(name: str, left: str) -> list[str]:
        """The mask of the lanes below `left`."""
        return [
            *t.spread(f"{name}s", left),
            f"  {name} = icmp slt <{n} x i64> <{lanes}>, {name}s",
        ]

    lines = [
        "define void @transpose(ptr %A, i64 %lda, i64 %M, i64 %N, ptr %B, i64 %ldb) noinline {",
        "entry:",
        "  br label %rows",
        "rows:",
        "  %m = phi i64 [0, %entry], [%m1, %rowsnext]",
        "  %mleft = sub i64 %M, %m",
        *fits("%mmask", "%mleft"),
        "  br label %columns",
        "columns:",
        "  %n = phi i64 [0, %rows], [%n1, %columns]",
        "  %nleft = sub i64 %N, %n",
        *fits("%nmask", "%nleft"),
    ]
    for k in range(n):
        lines += [
            f"  %in{k} = icmp slt i64 {k}, %mleft",
            f"  %li{k} = insertelement {t.mask} poison, i1 %in{k}, i32 0",
            f"  %ls{k} = shufflevector {t.mask} %li{k}, {t.mask} poison, <{n} x i32> zeroinitializer",
            f"  %lm{k} = and {t.mask} %ls{k}, %nmask",
            f"  %row{k} = add i64 %m, {k}",
            f"  %ro{k} = mul i64 %row{k}, %lda",
            f"  %rn{k} = add i64 %ro{k}, %n",
            f"  %rp{k} = getelementptr {t.scalar}, ptr %A, i64 %rn{k}",
            f"  %x0_{k} = {t.load(f'%rp{k}', f'%lm{k}')}",
        ]
    level, width = 0, n
    while width > 1:  # rows k and k + n/2 become rows 2k and 2k + 1, their numbers in turn
        low = ", ".join(f"i32 {i // 2 + (n if i % 2 else 0)}" for i in range(n))
        high = ", ".join(f"i32 {i // 2 + n // 2 + (n if i % 2 else 0)}" for i in range(n))
        for k in range(n // 2):
            pair = f"{v} %x{level}_{k}, {v} %x{level}_{k + n // 2}"
            lines.append(f"  %x{level + 1}_{2 * k} = shufflevector {pair}, <{n} x i32> <{low}>")
            lines.append(f"  %x{level + 1}_{2 * k + 1} = shufflevector {pair}, <{n} x i32> <{high}>")
        level, width = level + 1, width // 2
    for k in range(n):
        lines += [
            f"  %out{k} = icmp slt i64 {k}, %nleft",
            f"  %si{k} = insertelement {t.mask} poison, i1 %out{k}, i32 0",
            f"  %ss{k} = shufflevector {t.mask} %si{k}, {t.mask} poison, <{n} x i32> zeroinitializer",
            f"  %sm{k} = and {t.mask} %ss{k}, %mmask",
            f"  %col{k} = add i64 %n, {k}",
            f"  %cb{k} = mul i64 %col{k}, %ldb",
            f"  %cm{k} = add i64 %cb{k}, %m",
            f"  %cp{k} = getelementptr {t.scalar}, ptr %B, i64 %cm{k}",
            f"  {t.store(f'%x{level}_{k}', f'%cp{k}', f'%sm{k}')}",
        ]
    lines += [
        f"  %n1 = add i64 %n, {n}",
        "  %nmore = icmp slt i64 %n1, %N",
        "  br i1 %nmore, label %columns, label %rowsnext",
        "rowsnext:",
        f"  %m1 = add i64 %m, {n}",
        "  %mmore = icmp slt i64 %m1, %M",
        "  br i1 %mmore, label %rows, label %done",
        "done:",
        "  ret void",
        "}",
    ]
    return "\n".join(lines) + "\n"


def spreading(t: Typed) -> str:
    """``@add_rows(table, low, high, thread)``: columns low to high of the rows of values are added to rows of out.

    The table has the addresses of out, of the row numbers (64 bits) and of the values, their count, and the row length.
    """
    lanes = ", ".join(f"i64 {i}" for i in range(t.lanes))
    names = ("out", "ids", "values", "count", "width")
    lines = ["define void @add_rows(ptr %table, i64 %low, i64 %high, i64 %thread) {", "entry:"]
    for i, name in enumerate(names):
        lines.append(f"  %{name}at = getelementptr i64, ptr %table, i64 {i}")
        lines.append(f"  %{name}n = load i64, ptr %{name}at, align 8")
    lines += [f"  %{name} = inttoptr i64 %{name}n to ptr" for name in names[:3]]
    lines += [
        "  br label %row",
        "row:",
        "  %k = phi i64 [0, %entry], [%k1, %rowdone]",
        "  %idat = getelementptr i64, ptr %ids, i64 %k",
        "  %id = load i64, ptr %idat, align 8",
        "  %oo = mul i64 %id, %widthn",
        f"  %o = getelementptr {t.scalar}, ptr %out, i64 %oo",
        "  %vo = mul i64 %k, %widthn",
        f"  %v = getelementptr {t.scalar}, ptr %values, i64 %vo",
        "  br label %column",
        "column:",
        "  %j = phi i64 [%low, %row], [%j1, %column]",
        "  %left = sub i64 %high, %j",
        *t.spread("%lefts", "%left"),
        f"  %mask = icmp slt <{t.lanes} x i64> <{lanes}>, %lefts",
        f"  %oj = getelementptr {t.scalar}, ptr %o, i64 %j",
        f"  %vj = getelementptr {t.scalar}, ptr %v, i64 %j",
        f"  %a = {t.load('%oj', '%mask')}",
        f"  %b = {t.load('%vj', '%mask')}",
        f"  %s = fadd {t.vector} %a, %b",
        f"  {t.store('%s', '%oj', '%mask')}",
        f"  %j1 = add i64 %j, {t.lanes}",
        "  %more = icmp slt i64 %j1, %high",
        "  br i1 %more, label %column, label %rowdone",
        "rowdone:",
        "  %k1 = add i64 %k, 1",
        "  %rows = icmp slt i64 %k1, %countn",
        "  br i1 %rows, label %row, label %done",
        "done:",
        "  ret void",
        "}",
    ]
    return "\n".join(lines) + "\n"


def losses(t: Typed) -> str:
    """``@surprise`` and ``@slope`` ``(table, low, high, thread)``: the cross-entropy of rows, and its gradient.

    The table has the addresses of the logits (N, V), of the targets (64 bits), of the losses (N,), of their gradient
    (N,) and of the gradient of the logits, and V. The slope of a row is g (softmax - 1 at the target), and its softmax
    e^(x - x[target] - loss).
    """
    v, bits = t.vector, 8 * t.dtype.itemsize
    lanes = ", ".join(f"i64 {i}" for i in range(t.lanes))
    names = ("logits", "targets", "losses", "g", "out", "V")
    least, zero = t.splat(float("-inf")), f"{t.scalar} {t.number(-0.0)}"

    def head(name: str) -> list[str]:
        lines = [f"define void @{name}(ptr %table, i64 %low, i64 %high, i64 %thread) {{", "entry:"]
        for i, word in enumerate(names):
            lines.append(f"  %{word}at = getelementptr i64, ptr %table, i64 {i}")
            lines.append(f"  %{word}n = load i64, ptr %{word}at, align 8")
            lines.append(f"  %{word} = inttoptr i64 %{word}n to ptr")
        return [
            *lines,
            "  br label %row",
            "row:",
            "  %r = phi i64 [%low, %entry], [%r1, %rowdone]",
            "  %xo = mul i64 %r, %Vn",
            f"  %x = getelementptr {t.scalar}, ptr %logits, i64 %xo",
            "  %ta = getelementptr i64, ptr %targets, i64 %r",
            "  %target = load i64, ptr %ta, align 8",
            f"  %xta = getelementptr {t.scalar}, ptr %x, i64 %target",
            f"  %xt = load {t.scalar}, ptr %xta",
            f"  %la = getelementptr {t.scalar}, ptr %losses, i64 %r",
        ]

    def columns(label: str, before: str, work: list[str], after: str, sums: list[str]) -> list[str]:
        """A loop over the columns of a row, by vectors under a mask."""
        return [
            f"  br label %{label}",
            f"{label}:",
            f"  %{label}j = phi i64 [0, %{before}], [%{label}j1, %{label}]",
            *sums,
            f"  %{label}left = sub i64 %Vn, %{label}j",
            *t.spread(f"%{label}lefts", f"%{label}left"),
            f"  %{label}mask = icmp slt <{t.lanes} x i64> <{lanes}>, %{label}lefts",
            f"  %{label}xa = getelementptr {t.scalar}, ptr %x, i64 %{label}j",
            f"  %{label}x = {t.load(f'%{label}xa', f'%{label}mask')}",
            *work,
            f"  %{label}j1 = add i64 %{label}j, {t.lanes}",
            f"  %{label}more = icmp slt i64 %{label}j1, %Vn",
            f"  br i1 %{label}more, label %{label}, label %{after}",
            f"{after}:",
        ]

    def splat(name: str, number: str) -> list[str]:
        return [
            f"  {name}one = insertelement {v} poison, {t.scalar} {number}, i32 0",
            f"  {name} = shufflevector {v} {name}one, {v} poison, <{t.lanes} x i32> zeroinitializer",
        ]

    foot = [
        "  br label %rowdone",
        "rowdone:",
        "  %r1 = add i64 %r, 1",
        "  %rmore = icmp slt i64 %r1, %high",
        "  br i1 %rmore, label %row, label %end",
        "end:",
        "  ret void",
        "}",
    ]
    forward = [
        *head("surprise"),
        *columns(
            "a",
            "row",
            [
                f"  %am = select {t.mask} %amask, {v} %ax, {v} {least}",
                f"  %abig = fcmp ugt {v} %am, %amax",
                f"  %amax1 = select {t.mask} %abig, {v} %am, {v} %amax",
            ],
            "b0",
            [f"  %amax = phi {v} [{least}, %row], [%amax1, %a]"],
        ),
        f"  %top = call {t.scalar} @llvm.vector.reduce.fmax.{t.suffix}({v} %amax1)",
        *splat("%tops", "%top"),
        *columns(
            "b",
            "b0",
            [
                f"  %bd = fsub {v} %bx, %tops",
                f"  %be = call {v} @exp({v} %bd)",
                f"  %bk = select {t.mask} %bmask, {v} %be, {v} zeroinitializer",
                f"  %bsum1 = fadd {v} %bsum, %bk",
            ],
            "c0",
            [f"  %bsum = phi {v} [zeroinitializer, %b0], [%bsum1, %b]"],
        ),
        f"  %sum = call reassoc {t.scalar} @llvm.vector.reduce.fadd.{t.suffix}({zero}, {v} %bsum1)",
        f"  %log = call {t.scalar} @llvm.log.f{bits}({t.scalar} %sum)",
        f"  %over = fsub {t.scalar} %top, %xt",
        f"  %loss = fadd {t.scalar} %log, %over",
        f"  store {t.scalar} %loss, ptr %la",
        *foot,
    ]
    backward = [
        *head("slope"),
        f"  %loss = load {t.scalar}, ptr %la",
        *splat("%ls", "%loss"),
        *splat("%xts", "%xt"),
        f"  %ga = getelementptr {t.scalar}, ptr %g, i64 %r",
        f"  %gr = load {t.scalar}, ptr %ga",
        *splat("%gs", "%gr"),
        f"  %o = getelementptr {t.scalar}, ptr %out, i64 %xo",
        *columns(
            "a",
            "row",
            [
                f"  %ab = fsub {v} %ax, %xts",  # first: beside large logits their sum with the loss is rounded
                f"  %ad = fsub {v} %ab, %ls",
                f"  %ae = call {v} @exp({v} %ad)",
                f"  %ay = fmul {v} %ae, %gs",
                f"  %aoa = getelementptr {t.scalar}, ptr %o, i64 %aj",
                f"  {t.store('%ay', '%aoa', '%amask')}",
            ],
            "done",
            [],
        ),
        f"  %oa = getelementptr {t.scalar}, ptr %o, i64 %target",
        f"  %had = load {t.scalar}, ptr %oa",
        f"  %less = fsub {t.scalar} %had, %gr",
        f"  store {t.scalar} %less, ptr %oa",
        *foot,
    ]
    declare = f"declare {t.scalar} @llvm.log.f{bits}({t.scalar})"
    return "\n".join([declare, *forward, *backward]) + "\n"


SHARED = ("gemm", "product", "add_rows", "surprise", "slope", "sum_rows", "sum_all", "transpose")


def named(text: str, t: Typed) -> str:
    """`text` with the functions that all cells share under the names of their dtype and target."""
    for name in SHARED:
        text = text.replace(f"@{name}(", f"@tinygrad_{name}_{t.suffix}(")
    return text


def declarations(t: Typed) -> str:
    """What the code of a cell needs to call the shared functions."""
    return (
        "declare void @gemm(ptr, i64, i64, ptr, i64, ptr, i64, i64, i64, i64, i1)\n"
        "declare void @sum_rows(ptr, i64, i64, i64, ptr, i1)\n"
        "declare void @sum_all(ptr, i64, i64, i64, ptr, i64, i1)\n"
        "declare void @transpose(ptr, i64, i64, i64, ptr, i64)\n"
    )
