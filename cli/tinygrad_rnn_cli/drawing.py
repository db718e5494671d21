"""Plots in the terminal: the library makes the lines, this chooses width, characters and colours."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import emit, is_terminal, paint

COLORS = ("cyan", "magenta", "yellow", "green", "blue", "red", "white", "bright_black")


def draw_curves(
    curves: Sequence[tuple[str, Sequence[float | None]]],
    *,
    log: bool,
    ylabel: str,
    xlabel: str,
    x: tuple[float, float],
    height: int = 16,
) -> None:
    """Print the curves, one glyph and colour each; ASCII where stdout cannot say more."""
    emit(plot_text(curves, log=log, ylabel=ylabel, xlabel=xlabel, x=x, height=height, width=plot_width()))


def plot_text(
    curves: Sequence[tuple[str, Sequence[float | None]]],
    *,
    log: bool,
    ylabel: str,
    xlabel: str,
    x: tuple[float, float],
    height: int,
    width: int,
    colored: bool = True,
) -> str:
    """The same as text."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    return tr.terminal_plot(
        curves,
        width,
        height,
        log=log,
        ascii=not unicode,
        ylabel=ylabel,
        xlabel=xlabel,
        x=x,
        paint=(lambda index, glyph: paint(glyph, sys.stdout, fg=COLORS[index % len(COLORS)])) if colored else None,
    )


def plot_width() -> int:
    """Columns for a plot: those of the terminal, at most 100; 80 elsewhere."""
    return max(24, min(100, shutil.get_terminal_size().columns - 1)) if is_terminal(sys.stdout) else 80
