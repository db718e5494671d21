"""Where text goes: the product to stdout, progress and logs to stderr; colour only where somebody sees it.

rich is imported inside the functions that draw with it, never for a plain line.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class Screen:
    """How much is said and in which colours."""

    verbose: int = 0
    quiet: bool = False
    color: str | None = None  # None: not asked for, so the environment decides


# One per process by nature, as stdout and stderr are; `fresh_screen` begins each invocation.
_screens = [Screen()]


def screen() -> Screen:
    """The screen of the running command; it outlives its context, because errors are told after it."""
    return _screens[-1]


def fresh_screen() -> None:
    """Forget what an earlier invocation in this process asked for."""
    _screens[:] = [Screen()]


def is_terminal(stream: IO[Any]) -> bool:
    """Whether somebody watches `stream` on a terminal that can move its cursor."""
    return bool(stream.isatty()) and os.environ.get("TERM", "") != "dumb"


def uses_color(stream: IO[Any]) -> bool:
    """--color decides, then NO_COLOR, then FORCE_COLOR, then whether `stream` is a terminal."""
    wish = screen().color
    if wish in ("always", "never"):
        return wish == "always"
    if wish is None:
        if os.environ.get("NO_COLOR"):
            return False
        if os.environ.get("FORCE_COLOR"):
            return True
    return is_terminal(stream)


def paint(text: str, stream: IO[Any], **style: Any) -> str:
    """`text` in the style of click.style, where `stream` shows colours."""
    return click.style(text, **style) if uses_color(stream) else text


def emit(text: str = "") -> None:
    """A line of the product."""
    click.echo(text, color=True)  # colour was decided when the text was painted


def emit_json(value: Any) -> None:
    """One JSON object; NaN and infinities, which JSON does not have, become null."""
    escaped = not is_unicode(sys.stdout)  # else the stream would put escapes of its own into the strings
    emit(json.dumps(_strict(value), indent=2, ensure_ascii=escaped))


def is_unicode(stream: IO[Any]) -> bool:
    """Whether `stream` can show every character."""
    return str(getattr(stream, "encoding", None)).lower().replace("-", "").startswith("utf")


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def note(text: str = "", **style: Any) -> None:
    """A line of progress or advice, on stderr; -q silences it."""
    if not screen().quiet:
        _tell(paint(text, sys.stderr, **style))


def detail(text: str) -> None:
    """A line that -v alone shows."""
    if screen().verbose:
        note(text, dim=True)


def warn(text: str) -> None:
    """A warning, on stderr even with -q."""
    _tell(paint("warning: ", sys.stderr, fg="yellow") + text)


def fail(text: str) -> None:
    """An error, on stderr, in one line."""
    line = " ".join(text.split("\n")).strip()
    _tell(paint("error: ", sys.stderr, fg="red", bold=True) + line)


def _tell(text: str) -> None:
    """A line on stderr. Where nobody reads it any more, or the log's disk is full, the work goes on without it."""
    try:
        click.echo(text, err=True, color=True)
    except OSError:
        forget(sys.stderr)


def forget(stream: IO[Any]) -> None:
    """Send what is written to `stream` from now on into nothing, what it still holds included."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        pass


def aside() -> contextlib.redirect_stdout[IO[str]]:
    """While it lasts, what is printed goes to stderr: what a plugin prints is no part of the product."""
    return contextlib.redirect_stdout(sys.stderr)


def rich_console(stream: IO[str]) -> Console:
    """A rich console on `stream` that agrees with `uses_color`."""
    from rich.console import Console

    colors = uses_color(stream)
    return Console(file=stream, force_terminal=True if colors else None, no_color=not colors, highlight=False)


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = (), red: Sequence[int] = ()
) -> None:
    """Print a table as product: rich on a terminal, aligned columns otherwise.

    `numbers` are the columns to align on the right, `red` the rows that report something broken.
    """
    if is_terminal(sys.stdout) or uses_color(sys.stdout):
        _rich_table(headers, rows, numbers, red)
        return
    widths = [max(len(line[i]) for line in [headers, *rows]) for i in range(len(headers))]
    for line in [headers, *rows]:
        cells = [
            text.rjust(width) if i in numbers else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        emit("  ".join(cells).rstrip())


def _rich_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int], red: Sequence[int]
) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for i, header in enumerate(headers):
        drawn.add_column(header, justify="right" if i in numbers else "left", overflow="fold")
    for number, row in enumerate(rows):
        drawn.add_row(*(Text(text) for text in row), style="red" if number in red else None)
    rich_console(sys.stdout).print(drawn)


def wrapped(text: str) -> str:
    """`text` broken between words on a terminal; in a file or a pipe it stays one line."""
    if not is_terminal(sys.stdout):
        return text
    import shutil
    import textwrap

    return textwrap.fill(text, max(20, shutil.get_terminal_size().columns - 1), subsequent_indent="  ")


def seconds(value: float) -> str:
    """A duration for people: 0.4 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def number(value: int) -> str:
    """A whole number with thousands apart."""
    return f"{value:,}".replace(",", " ")


def counted(value: int, word: str) -> str:
    """So many of something, in the singular where it is one: 1 step, 4 060 steps."""
    return f"{number(value)} {word}{'s' * (value != 1)}"


def memory(value: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
