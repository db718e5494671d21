"""What a training run says while it goes on: a live display on a terminal, plain lines elsewhere.

rich prints nothing while its output is redirected and then dumps the last frame, so a pipe or a log file gets
lines of our own, a few seconds apart.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import (
    aside,
    counted,
    detail,
    is_terminal,
    is_unicode,
    note,
    number,
    rich_console,
    screen,
    seconds,
    uses_color,
    warn,
)
from tinygrad_rnn_cli.drawing import plot_text
from tinygrad_rnn_cli.gradnorm import judged, plot_curves
from tinygrad_rnn_cli.texts import text_size

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from tinygrad_rnn import Event, Finished, GradNormReport, StepDone, Trainer

LINE_SECONDS = 5.0  # between two plain lines
STOPPING = "stopping after this step, with a checkpoint; once more stops at once"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class View:
    """What is shown of a run in progress."""

    text: str  # its length
    division: str
    total: int = 0
    from_step: int = 0
    done: StepDone | None = None
    val_loss: float | None = None
    best: float | None = None
    report: GradNormReport | None = None
    printed: float = -math.inf
    signal: int = 0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=200))


def follow(trainer: Trainer, limit: float = math.inf) -> Finished:
    """Run `trainer` to its end, or for `limit` seconds, and show what happens.

    The first SIGINT or SIGTERM lets it finish its step and save; the second ends the program at once. Exits with
    128 + the signal's number when it was interrupted.
    """
    division = tr.describe_division(trainer.config, trainer.dataset, number)
    view = View(text_size(trainer.dataset), division)
    live = is_terminal(sys.stderr) and not screen().quiet
    finished: Finished | None = None
    with aside(), _signals(trainer, view, live), _display(view) if live else nullcontext() as display:
        say: Callable[[str], None] = note
        if display is not None:
            say = partial(display.console.print, markup=False, emoji=False)
        began = time.monotonic()
        for event in trainer.events():
            if time.monotonic() - began > limit:
                trainer.stop()
            _take(event, view, say, live)
            if isinstance(event, tr.Finished):
                finished = event
            if display is not None:
                display.update(_Frame(view))
    assert finished is not None
    if view.signal and finished.reason == "interrupted":
        note(f"interrupted; saved after step {number(finished.step)}. Go on: tinygrad-rnn resume {finished.path}")
        click.get_current_context().exit(128 + view.signal)
    return finished


@contextmanager
def _signals(trainer: Trainer, view: View, live: bool) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        if view.signal:  # the second one: the user does not want to wait
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        view.signal = number
        trainer.stop()
        if not live and not screen().quiet:  # a handler may have interrupted a print, so it must not print itself
            with suppress(OSError):  # its reader may have gone
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, STOPPING.encode() + b"\n")

    before = {}
    for number_ in SIGNALS:
        try:
            before[number_] = signal.signal(number_, handle)
        except ValueError:  # not in the main thread, as in some tests: then the host handles signals
            break
    try:
        yield
    finally:
        for number_, handler in before.items():
            signal.signal(number_, handler)


def _take(event: Event, view: View, say: Callable[[str], None], live: bool) -> None:
    """Note an event in the view, and print what deserves a line."""
    match event:
        case tr.Started():
            view.total, view.from_step = event.steps, event.from_step
            begun = f", from step {number(event.from_step)}" if event.from_step else ""
            say(
                f"{counted(event.params, 'parameter')}, {view.text}, {counted(event.V, 'symbol')}; "
                f"{counted(event.steps, 'step')} ({event.steps / event.steps_per_epoch:.4g} epochs){begun} on "
                f"{event.device}"
            )
            say(f"text: {view.division}")
            tell = say if event.executor == "unroll" and event.device == "cpu" else detail
            tell(f"cells run by {event.executor}: {event.reason}")
            for remark in event.remarks:
                warn(remark)
        case tr.StepDone():
            view.done = event
            view.losses.append(event.loss)
            now = time.monotonic()
            last = event.step >= view.total
            if not live and (screen().verbose or last or now - view.printed >= LINE_SECONDS):
                view.printed = now
                say(step_line(event, view))
        case tr.Validated():
            view.val_loss = event.loss
            if event.best:
                view.best = event.loss
            say(
                f"step {number(event.step)}: validation loss {event.loss:.4f} ({event.loss / math.log(2):.4f} bits)"
                + (", the best so far" if event.best else "")
                + ("" if event.lr is None else f"; none is better, so the learning rate is now {event.lr:g}")
            )
        case tr.Sampled():
            say(f"step {number(event.step)}: sample")
            say(_plain(event.text))
        case tr.Watched():
            view.report = event.report
            if not live:
                for series in event.report.judged("last"):
                    say(
                        f"step {number(event.step)}: gradient norms, layer {series.layer}, state {series.state}: "
                        f"{series.reason}"
                    )
        case tr.Saved():
            detail(f"step {number(event.step)}: saved {event.path}")
        case tr.RolledBack():
            what = event.why.partition(". ")[0]  # the rest is what to try, and this run tries already
            warn(f"{what}; back to step {number(event.to_step)} at half the rate, {event.lr:g}")
        case tr.Finished():
            if event.reason == "patience":
                say(f"step {number(event.step)}: no better validation any more; stopped early")
            elif event.reason.startswith("callback "):
                say(f"step {number(event.step)}: stopped by {event.reason}")


def _plain(text: str) -> str:
    """A sample for the log, with bytes that are not UTF-8 as \\xHH."""
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return shown.rstrip("\n") + "\n"


def step_line(done: StepDone, view: View) -> str:
    """One line of a log, as char-rnn prints it and more."""
    return (
        f"step {number(done.step)}/{number(view.total)}  epoch {done.epoch:.2f}  loss {done.loss:.4f}  "
        f"grad {_norms(done)}  grad/param {_ratio(done):.2e}  lr {done.lr:.3g}  "
        f"{_rate(done.symbols_per_s)}  {seconds(done.seconds_left)} left"
    )


def _norms(done: StepDone) -> str:
    """The gradient norm before and after clipping, and how often it was clipped so far."""
    share = f" ({done.clipped_share:.0%} clipped)" if done.clipped_share else ""
    return f"{done.grad_norm:.3g}->{done.clipped_norm:.3g}{share}"


def _ratio(done: StepDone) -> float:
    return done.clipped_norm / done.param_norm if done.param_norm else 0.0


def _rate(per_second: float) -> str:
    return f"{number(round(per_second))} char/s"


# ----------------------------------------------------------------------------------------- live display


def _display(view: View) -> AbstractContextManager[Live]:
    from rich.live import Live

    return Live(_Frame(view), console=rich_console(sys.stderr), refresh_per_second=8, transient=False)


class _Frame:
    """What rich draws, made anew for every frame from the view."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        view, done = self.view, self.view.done
        step = done.step if done is not None else view.from_step
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column()
        bar.add_column(ratio=1)
        bar.add_column(justify="right")
        left = f"{seconds(done.seconds_left)} left" if done is not None else "starting"
        bar.add_row(
            Text(f"step {number(step)}/{number(view.total)}", style="bold"),
            ProgressBar(total=max(view.total, 1), completed=step),
            Text(left),
        )
        parts: list[Any] = [bar]
        if view.signal:
            parts.append(Text(STOPPING, style="yellow"))
        if done is not None:
            parts.append(_numbers(done, view))
        if view.report is not None:
            parts.append(_gradients(view.report))
        return Group(*parts)


def _numbers(done: StepDone, view: View) -> Any:
    from rich.table import Table
    from rich.text import Text

    def named(name: str, value: str) -> Text:  # no markup: a line printed above the display would turn it off
        return Text.assemble((name, "bold"), f" {value}")

    grid = Table.grid(padding=(0, 2))
    val = "-" if view.val_loss is None else f"{view.val_loss:.4f}"
    recent = list(view.losses)
    rows: list[tuple[Text | str, ...]] = [
        (
            named("loss", f"{done.loss:.4f}"),
            named("validation", val),
            named("epoch", f"{done.epoch:.2f}"),
            Text(tr.sparkline(recent, 30, ascii=not is_unicode(sys.stderr)), style="cyan"),
        ),
        (
            f"gradient {_norms(done)}",
            f"grad/param {_ratio(done):.1e}",
            f"lr {done.lr:.3g}",
            _rate(done.symbols_per_s),
        ),
    ]
    for row in rows:
        grid.add_row(*row)
    return grid


def _gradients(report: GradNormReport) -> Any:
    from rich.panel import Panel
    from rich.text import Text

    curves = plot_curves([report])
    width = min(90, max(40, rich_console(sys.stderr).width - 6))
    text = plot_text(
        curves,
        log=True,
        ylabel="||dL/ds_t||",
        xlabel="timestep t",
        x=(0.0, float(report.steps - 1)),
        height=9,
        width=width,
        colored=uses_color(sys.stderr),
    )
    words = "  ".join(
        f"{s.state}{s.layer}: {s.verdict}" + ("" if s.share is None else f" ({tr.share_text(s)})")
        for s in report.judged(judged(report))
    )
    return Panel(Text.from_ansi(text + "\n" + words), title="gradient norms", title_align="left", expand=False)
