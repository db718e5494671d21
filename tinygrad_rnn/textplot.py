"""Curves as text: a plot with axes and a legend, and a sparkline. Pure functions from numbers to a string.

One glyph per series, so that the curves stay apart without colour. (plotext 6.1 was tried first: its log axis prints
1e-12 as 0.0000000000, its legend covers the curves, and its figure is one global object.)
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence

from tinygrad_rnn.errors import InputError

GLYPHS = ("●", "▲", "■", "◆", "○", "△", "□", "◇", "★", "☆", "▼", "▽")
ASCII_GLYPHS = ("o", "x", "+", "*", "#", "@", "%", "=", "$", "&", "?", "!")

Paint = Callable[[int, str], str]
"""Colours one glyph: (index of the series, glyph) to text; whoever draws decides about colours."""

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-~=+*#"


def terminal_plot(
    series: Sequence[tuple[str, Sequence[float | None]]],
    width: int = 72,
    height: int = 16,
    *,
    log: bool = True,
    ascii: bool = False,
    ylabel: str = "",
    xlabel: str = "",
    x: tuple[float, float] | None = None,
    paint: Paint | None = None,
) -> str:
    """The curves `series` (label, values) as lines of text, at most `width` columns wide, with `height` rows of plot.

    Values of a series are spread evenly over the x axis, which goes from x[0] to x[1] (0 to the longest series' last
    index when None). With `log` the y axis has powers of ten; zeros then stand in a row of their own, marked 0, below
    it. Infinite and NaN values stand in one marked inf above; None leaves a gap. `ascii` keeps to ASCII. No line ends
    with blanks.

    Raises InputError for no series, an empty or a negative one (with `log`), or a plot below 24 x 4.
    """
    glyphs = ASCII_GLYPHS if ascii else GLYPHS
    if not series or any(len(values) == 0 for _, values in series):
        raise InputError("plot: expected at least one series with at least one value, got none")
    if width < 24 or height < 4:
        raise InputError(f"plot: expected at least 24 columns and 4 rows, got {width} and {height}")
    present = [value for _, values in series for value in values if value is not None]
    if log and any(value < 0 for value in present):
        raise InputError("plot: expected values of at least 0 for a log axis, got a negative one")
    known = [value for value in present if _drawable(value, log)]
    has_zero = log and any(value == 0 for value in present)
    has_wild = any(not math.isfinite(value) for value in present)
    rows = height - has_zero - has_wild
    levels = [_level(value, log) for value in known]
    ticks = _decades(levels, rows, ascii) if log else _round_ticks(levels, rows)
    low, high = min(t for t, _ in ticks), max(t for t, _ in ticks)
    margin = max(len(text) for _, text in [*ticks, (0.0, "inf" if has_wild else "0")])
    columns = width - margin - 2
    canvas = [[-1] * columns for _ in range(height)]

    def row_at(level: float) -> int:
        return has_wild + round((1.0 - (level - low) / (high - low)) * (rows - 1))

    def row_of(value: float) -> int:
        if not math.isfinite(value):
            return 0
        if log and value == 0:
            return height - 1
        return row_at(_level(value, log))

    for index, (_, values) in enumerate(series):
        for column, drawn in enumerate(_columns(values, columns, log)):
            for row in _span([row_of(value) for value in drawn]):
                if canvas[row][column] < 0 or (column + index) % 2:  # where curves meet, both stay visible
                    canvas[row][column] = index

    labels = {row_at(level): text for level, text in ticks}
    if has_wild:
        labels[0] = "inf"
    if has_zero:
        labels[height - 1] = "0"
    wall, tick, corner, floor, down = "|++-+" if ascii else "│┤└─┬"
    shade = paint or (lambda index, glyph: glyph)
    lines = [_short(ylabel, width, ascii)] if ylabel else []
    for row, cells in enumerate(canvas):
        body = "".join(" " if cell < 0 else shade(cell, glyphs[cell % len(glyphs)]) for cell in cells)
        lines.append(f"{labels.get(row, ''):>{margin}} {tick if row in labels else wall}{body}".rstrip())
    first, last = x or (0.0, float(max(len(values) for _, values in series) - 1))
    marks = _x_ticks(first, last, columns)
    lines.append(" " * (margin + 1) + corner + "".join(down if c in marks else floor for c in range(columns)))
    lines.append((" " * (margin + 2) + _under(marks, columns)).rstrip())
    for line in textwrap.wrap(xlabel, columns):
        lines.append((" " * (margin + 2) + line.center(columns)).rstrip())
    told = [_short(label, columns - 2, ascii) for label, _ in series]
    entries = [(label, shade(i, glyphs[i % len(glyphs)]) + " " + label) for i, label in enumerate(told)]
    lines += _legend(entries, columns, " " * (margin + 2))
    return "\n".join(lines)


def sparkline(values: Sequence[float], width: int = 0, *, log: bool = False, ascii: bool = False) -> str:
    """`values` as one line of blocks, lowest to highest; at most `width` characters (0: one per value).

    Longer series are averaged (in the logarithm with `log`). A zero under `log` is a blank, a non-finite value a "!".
    """
    blocks = _ASCII_BLOCKS if ascii else _BLOCKS
    count = min(width, len(values)) if width > 0 else len(values)
    cells = []
    for i in range(count):
        part = values[i * len(values) // count : (i + 1) * len(values) // count]
        wild = [value for value in part if not math.isfinite(value)]
        usable = [_level(value, log) for value in part if _drawable(value, log)]
        cells.append(math.inf if wild else sum(usable) / len(usable) if usable else -math.inf)
    finite = [cell for cell in cells if math.isfinite(cell)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)

    def block(cell: float) -> str:
        if not math.isfinite(cell):
            return "!" if cell > 0 else " "
        share = (cell - low) / (high - low) if high > low else 0.5
        return blocks[min(int(share * len(blocks)), len(blocks) - 1)]

    return "".join(block(cell) for cell in cells)


def _drawable(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _level(value: float, log: bool) -> float:
    return math.log10(value) if log else float(value)


def _columns(values: Sequence[float | None], columns: int, log: bool) -> Iterable[list[float]]:
    """What stands in each column: all values that fall into it, or one between its neighbours when they are few."""
    n = len(values)
    if n >= columns:
        for c in range(columns):
            yield [value for value in values[c * n // columns : (c + 1) * n // columns] if value is not None]
        return
    for c in range(columns):
        at = c * (n - 1) / (columns - 1)
        left = min(int(at), max(n - 2, 0))
        a, b = values[left], values[min(left + 1, n - 1)]
        part = at - left
        if a is None or b is None:
            near = a if part < 0.5 else b
            yield [] if near is None else [near]
        elif _drawable(a, log) and _drawable(b, log):
            between = a ** (1 - part) * b**part if log else (1 - part) * a + part * b
            yield [min(max(between, min(a, b)), max(a, b))]  # rounding must not leave the canvas
        else:
            yield [a if part < 0.5 else b]


def _span(rows: Sequence[int]) -> Sequence[int]:
    return range(min(rows), max(rows) + 1) if rows else ()


def _decades(levels: Sequence[float], rows: int, ascii: bool) -> list[tuple[float, str]]:
    """Whole powers of ten around `levels`, as many as `rows` have room for."""
    low = math.floor(min(levels, default=0.0))
    high = math.ceil(max(levels, default=1.0))
    if low == high:
        high += 1
    step = -(-(high - low) // max(1, (rows - 1) // 2))
    low = high - step * -(-(high - low) // step)
    return [
        (float(power), f"1e{power}" if ascii else "10" + str(power).translate(_SUPERSCRIPT))
        for power in range(low, high + 1, step)
    ]


def _round_ticks(levels: Sequence[float], rows: int) -> list[tuple[float, str]]:
    """Multiples of 1, 2 or 5 times a power of ten around `levels`."""
    low, high = min(levels, default=0.0), max(levels, default=1.0)
    step = _round_step((high - low) or abs(high) or 1.0, max(1, (rows - 1) // 3))
    first, last = math.floor(low / step), math.ceil(high / step)
    if first == last:
        last += 1
    digits = max(0, -math.floor(math.log10(step)))
    return [
        (k * step, f"{k * step:.{digits}f}" if abs(k * step) < 1e6 else f"{k * step:.3g}")
        for k in range(first, last + 1)
    ]


def _round_step(span: float, parts: int) -> float:
    raw = span / parts
    unit = 10.0 ** math.floor(math.log10(raw))
    return next(factor * unit for factor in (1.0, 2.0, 5.0, 10.0) if factor * unit >= raw * (1 - 1e-9))


def _x_ticks(first: float, last: float, columns: int) -> dict[int, str]:
    """Column to label: round numbers, and the last one."""
    if last <= first:
        return {0: f"{first:g}"}
    step = _round_step(last - first, max(1, columns // 10))
    if float(first).is_integer() and float(last).is_integer():
        step = max(step, 1.0)
    marks = {}
    for k in range(math.ceil(first / step), math.floor(last / step) + 1):
        marks[round((k * step - first) / (last - first) * (columns - 1))] = f"{k * step:g}"
    end = f"{last:g}"
    marks = {c: text for c, text in marks.items() if c + len(text) < columns - len(end)}
    return {**marks, columns - 1: end}


def _under(marks: dict[int, str], columns: int) -> str:
    line = [" "] * columns
    for column, text in sorted(marks.items()):
        start = min(column, columns - len(text))
        line[start : start + len(text)] = text
    return "".join(line)


def _short(text: str, width: int, ascii: bool) -> str:
    if len(text) <= width:
        return text
    dots = "..." if ascii else "\N{HORIZONTAL ELLIPSIS}"
    return text[: width - len(dots)] + dots


def _legend(entries: Sequence[tuple[str, str]], columns: int, indent: str) -> list[str]:
    """Labels with their glyphs, as many to a line as fit (the glyph counts as one column, painted or not)."""
    lines: list[list[str]] = [[]]
    used = 0
    for label, text in entries:
        need = len(label) + 5
        if used and used + need > columns:
            lines.append([])
            used = 0
        lines[-1].append(text)
        used += need
    return [indent + "   ".join(line) for line in lines]
