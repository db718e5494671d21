"""Pictures from plain data: gradient norms per timestep, and what runs recorded step by step. Matplotlib, without its
global state.

Colours are those of Okabe & Ito 2008, which colour-blind people tell apart; states differ in line style too.
"""

from __future__ import annotations

import contextlib
import math
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygrad_rnn.diagnostics import GradNormReport, GradNormSeries, share_text
from tinygrad_rnn.errors import FileError, InputError, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)))
FORMATS = ("png", "svg", "pdf")

_THIN = "training loss, in the same colours"
_TRAP = (
    "Thin dashes: the training loss. It has a loss at every step, so it looks healthy even when the network "
    "vanishes: judge by the thick curves."
)


def gradnorm_figure(
    reports: Sequence[GradNormReport],
    loss: str = "last",
    *,
    layer: int | None = None,
    state: str | None = None,
    relative: bool = False,
    training: bool = True,
    title: str = "",
) -> Figure:
    """Gradient norms per timestep of one or several models, on a log axis.

    `loss` is the series to judge by ("last" or "step:K"), drawn thick; the training-loss series, where the reports have
    one, is thin and dashed, with a note on the trap (`training` False leaves it out). With one report every layer and
    state has a colour (beyond seven, another line style, too); with several each report has a colour and shows, of its
    top layer, the states that verdicts go by (c of an LSTM), each in a line style, unless `layer` or `state` chooses.
    The legend has the curves from the highest to the lowest at the earliest timestep. The axis is absolute, nats per
    unit of the state, or with `relative` a ratio to the norm at the step of the loss. A norm of 0 is a triangle at the
    lower edge, one not finite at the upper.

    Raises InputError when there is nothing to draw.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    chosen: list[tuple[int, GradNormReport, GradNormSeries]] = []
    for name in (loss, "train") if training and loss != "train" else (loss,):
        for i, report in enumerate(reports):
            found = report.select(loss=name, layer=layer, state=state)
            every = layer is not None or len(reports) == 1
            by = {(one.layer, one.by) for one in report.select(loss=loss)}
            chosen += [
                (i, report, series)
                for series in found
                if (every or report.topmost(series))
                and (len(reports) == 1 or state or (series.layer, series.state) in by)
            ]
    if not any(series.loss == loss for _, _, series in chosen):
        known = sorted({f"{s.loss}, layer {s.layer}, state {s.state}" for report in reports for s in report.series})
        raise InputError(
            f"plot: expected a series of loss {loss!r}, layer {'any' if layer is None else layer}, state "
            f"{state or 'any'}, got none; the reports have: {'; '.join(known) or 'nothing'}"
        )
    figure = Figure(figsize=(8.6, 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    single = len(reports) == 1
    states = list(dict.fromkeys(s.state for _, _, s in chosen))
    looks = _looks([(i, series.layer, series.state) for i, _, series in chosen], single)
    marked: set[int] = set()
    for i, report, series in chosen:
        colour, style = looks[i, series.layer, series.state]
        where = f"layer {series.layer}, " if (single and report.layers > 1) or layer is not None else ""
        name = f"{report.cell or 'model'}: {where}{series.state}"
        _curve(axes, series, relative, colour, style, name, thin=series.loss != loss)
        if series.loss == loss:
            marked.add(series.at)
    for at in sorted(marked):
        axes.axvline(at, color="0.55", linewidth=0.8, zorder=0)
        axes.annotate(
            f"loss at t = {at}",
            (at, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right" if at > 0 else "left",
            fontsize=8,
            color="0.35",
        )
    axes.set_yscale("log")
    if not any(0 < norm < math.inf for _, _, series in chosen for norm in series.norm):
        axes.set_ylim(1e-3, 1.0)  # matplotlib refuses a log axis without a single point
    axes.set_xlabel("timestep t (symbols, earliest first)")
    norm = rf"$\Vert\partial L\,/\,\partial {states[0] if len(states) == 1 and len(states[0]) == 1 else 's'}_t\Vert$"
    axes.set_ylabel(norm + (" over its value at the loss (ratio)" if relative else "  (nats per unit of the state)"))
    told = _whole(title, 56) or f"How much gradient reaches timestep t{_model(reports, layer)}"
    axes.set_title(told, loc="left", fontsize=11, pad=16)
    axes.grid(True, which="major", color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    handles = _from_the_top(axes.get_legend_handles_labels()[0])
    lines = sum(str(line.get_label()).count("\n") + 1 for line in handles)
    figure.set_figheight(max(4.8, 0.185 * lines + 0.6))  # the legend may have more lines than the plot is high
    figure.legend(handles=handles, loc="outside right upper", fontsize=8.5, frameon=False, handlelength=3.2)
    if any(series.loss != loss for _, _, series in chosen):
        figure.supxlabel(_TRAP, fontsize=8, color="0.3")
    return figure


def _looks(keys: Sequence[tuple[int, int, str]], single: bool) -> dict[tuple[int, int, str], tuple[str, Any]]:
    """Colour and line style of each curve (report, layer, state), no two alike while there are enough of them.

    A `single` report has a colour for each curve; of several each has one, and its states differ in style.
    """
    looks: dict[tuple[int, int, str], tuple[str, Any]] = {}
    states = list(dict.fromkeys(state for _, _, state in keys))
    for key in dict.fromkeys(keys):
        k = len(looks) if single else key[0]
        turn = (k // len(COLOURS) if single else states.index(key[2])) % len(STYLES)
        colour = COLOURS[k % len(COLOURS)]
        free = [style for style in STYLES[turn:] + STYLES[:turn] if (colour, style) not in looks.values()]
        looks[key] = (colour, free[0] if free else STYLES[turn])
    return looks


def _from_the_top(lines: Sequence[Any]) -> list[Any]:
    """The lines of a legend as the curves lie at the earliest timestep, each with its marks behind it."""
    heights: list[float] = []
    for line in lines:
        values = np.asarray(line.get_ydata(), dtype=np.float64)
        if line.get_linestyle() == "None":  # marks of the curve before
            heights.append(heights[-1])
        elif line.get_label() == _THIN:
            heights.append(-math.inf)
        else:
            alive = values[np.isfinite(values)]
            heights.append(values[0] if len(values) and np.isfinite(values[0]) else min(alive, default=0.0) / 2)
    return [lines[i] for i in sorted(range(len(lines)), key=lambda i: -heights[i])]


def _whole(text: str, width: int) -> str:
    """`text` on as many lines as it needs."""
    return "\n".join(textwrap.wrap(text, width))


def _model(reports: Sequence[GradNormReport], layer: int | None) -> str:
    """Whose curves these are: the sizes, and the layer where one of several is drawn."""
    sizes = {(report.layers, report.hidden) for report in reports}
    if len(sizes) != 1:
        return ""
    layers, hidden = sizes.pop()
    one = layer if layer is not None else layers - 1 if len(reports) > 1 else None
    shown = "" if one is None or layers == 1 else f"; layer {one}" + (", the top one" if one == layers - 1 else "")
    return f"\n{layers} {'layer' if layers == 1 else 'layers'} of {hidden} units{shown}"


def _curve(
    axes: Any, series: GradNormSeries, relative: bool, colour: str, style: Any, name: str, *, thin: bool
) -> None:
    norm = np.asarray(series.norm[: series.at + 1], dtype=np.float64)
    if relative:
        usable = norm[np.isfinite(norm) & (norm > 0)]
        norm = norm / (usable[-1] if usable.size else 1.0)
    t = np.arange(len(norm))
    line = np.where(np.isfinite(norm) & (norm > 0), norm, np.nan)  # a log axis has no place for the others
    look: dict[str, Any] = {
        "color": colour,
        "linestyle": (0, (3, 2)) if thin else style,
        "linewidth": 1.1 if thin else 2.0,
        "alpha": 0.75 if thin else 1.0,
    }
    drawn = int(np.count_nonzero(np.isfinite(line)))
    verdict = series.verdict + (f" as {series.by}" if series.by != series.state else "")
    left = ""
    if series.share is not None and len(norm) > 1:
        what = "times," if series.share > 1 else "left"
        left = f", {share_text(series)} {what} {series.lag} steps back"
    zero = "underflows to 0" if series.numbers.get("underflow_steps") else "exactly 0"
    # the thin curves have the colours of the thick ones, and one entry for all of them
    there = any(line.get_label() == _THIN for line in axes.get_lines())
    label = ("_" if there else _THIN) if thin else f"{name}\n{verdict}{left}"
    axes.plot(t, line, label=label, marker="o" if drawn == 1 else None, markersize=4, **look)
    for mark, what, at, edge in (("v", zero, norm == 0, 0.015), ("^", "not finite", ~np.isfinite(norm), 0.985)):
        if at.any():
            axes.plot(
                t[at],
                np.full(int(at.sum()), edge),
                mark,
                color=colour,
                markersize=4,
                clip_on=False,
                transform=axes.get_xaxis_transform(),
                label="_" if thin else f"{name}, {what} at {int(at.sum())} of {len(norm)} steps",
            )


Records = Iterable[Mapping[str, Any]]


def loss_figure(runs: Mapping[str, Records], title: str = "") -> Figure:
    """Training and validation loss against the step, of one or several runs: by name, the records of metrics.jsonl.

    Reads the records of kind "step" and "val" (``step``, ``loss``). Left axis nats per symbol, right axis bits. Many
    training losses are drawn faint, with their running median over 1 % of them on top. Each of several runs has a
    colour, and its validation loss dots.
    Raises InputError when there is no loss at all.
    """
    figure, axes = _by_step("cross-entropy (nats per symbol)", title or "Loss")
    for k, (name, records) in enumerate(runs.items()):
        kept = list(records)
        own = f"{name}: " if len(runs) > 1 else ""
        colours = (COLOURS[k % len(COLOURS)],) * 2 if own else COLOURS[:2]
        steps, losses = recorded(kept, "step", "loss")
        _many(axes, steps, losses, colours[0], f"{own}training", single=not own)
        steps, losses = recorded(kept, "val", "loss")
        if len(steps):
            told = ""
            if np.isfinite(losses).any():
                best = int(np.nanargmin(losses))
                told = f" (best {losses[best]:.3f} nats, step {steps[best]})"
            look: dict[str, Any] = {
                "linestyle": "--" if own else "-",
                "linewidth": 1.5,
                "marker": "o",
                "markersize": 3.5,
            }
            axes.plot(steps, losses, color=colours[1], label=f"{own}validation{told}", **look)
    if not axes.get_lines():
        raise InputError("plot: expected metrics with a loss, got none; train at least one step")
    bits = axes.secondary_yaxis("right", functions=(_bits, _nats))
    bits.set_ylabel("bits per symbol")
    axes.legend(loc="upper right", fontsize=8.5, frameon=False)
    return figure


def norm_figure(runs: Mapping[str, Records], title: str = "") -> Figure:
    """The norm of the gradient of all parameters against the step, before and after clipping, of one or several runs.

    Reads the records of kind "step" (``grad_norm`` before, ``clipped_norm`` after) as `loss_figure` does; the axis is
    logarithmic. Dots are norms after clipping, at the steps where it changed them. A norm that is not finite is a
    triangle at the upper edge.
    Raises InputError when there is no norm at all.
    """
    from matplotlib.ticker import FuncFormatter

    figure, axes = _by_step("norm of the gradient of all parameters", title or "Gradient norm")
    axes.set_yscale("log")
    for k, (name, records) in enumerate(runs.items()):
        kept = list(records)
        own = f"{name}: " if len(runs) > 1 else ""
        colours = (COLOURS[k % len(COLOURS)],) * 2 if own else COLOURS[:2]
        steps, before = recorded(kept, "step", "grad_norm")
        if not len(steps):
            continue
        _, after = recorded(kept, "step", "clipped_norm")
        with np.errstate(all="ignore"):
            clipped = ~(after >= before)
        share = float(np.mean(clipped))
        told = f"{own}before clipping" if share else f"{own}never clipped"
        _many(axes, steps, before, colours[0], told, single=not own)
        if share:
            told = f"{own}after, where clipped ({share:.1%} of steps)"
            axes.plot(steps[clipped], after[clipped], ".", color=colours[1], markersize=3.5, label=told)
        wild = ~np.isfinite(before)
        if wild.any():
            place = np.full(int(wild.sum()), 0.985)
            look = {"color": colours[0], "markersize": 4, "clip_on": False, "transform": axes.get_xaxis_transform()}
            axes.plot(steps[wild], place, "^", label=f"{own}not finite at {int(wild.sum())} steps", **look)
    if not axes.get_lines():
        raise InputError("plot: expected metrics with a gradient norm, got none; train at least one step")
    low, high = axes.get_ylim()
    if 1e-4 < low and high < 1e5:  # 0.6 instead of 6 x 10 to the power of -1
        shown = "123456789" if high < 10 * low else "25" if high < 1000 * low else ""  # leading digits between decades
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in shown else ""))
    axes.legend(loc="best", fontsize=8.5, frameon=False)
    return figure


def recorded(records: Records, kind: str, key: str) -> tuple[Any, Any]:
    """Steps (N,), ascending, and the values (N,) of `key` in the records of that kind; one that is no number is NaN.

    A later record of a step rules: the run was resumed or rolled back.
    """
    found: dict[int, float] = {}
    for record in records:
        if record.get("kind") == kind and key in record:
            value = record[key]
            found[int(record["step"])] = math.nan if value is None else float(value)
    steps = sorted(found)
    return np.array(steps, dtype=np.int64), np.array([found[step] for step in steps], dtype=np.float64)


def _by_step(ylabel: str, title: str) -> tuple[Figure, Any]:
    """An empty figure whose x axis is the step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("step (updates)")
    axes.set_ylabel(ylabel)
    axes.set_title(_whole(title, 80), loc="left", fontsize=11)
    axes.grid(True, color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _many(axes: Any, steps: Any, values: Any, colour: str, label: str, *, single: bool) -> None:
    """A curve; more than 200 points are faint, under their running median. The legend of a `single` one has both."""
    if not len(steps):
        return
    if len(steps) <= 200:
        axes.plot(steps, values, color=colour, linewidth=1.5, marker="o" if len(steps) == 1 else None, label=label)
        return
    each, middle = (f"{label}, each batch", f"{label}, running median") if single else ("_", label)
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3, label=each)
    axes.plot(steps, _median(values, max(3, len(values) // 100)), color=colour, linewidth=1.7, label=middle)


def _bits(nats: Any) -> Any:
    return nats / math.log(2)


def _nats(bits: Any) -> Any:
    return bits * math.log(2)


def _median(values: Any, window: int) -> Any:
    """The running median, centred; at the ends over what there is."""
    half = window // 2
    with np.errstate(all="ignore"):
        return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write `figure` to `path`, as PNG, SVG or PDF by its suffix. An old file is replaced only by a complete new one.

    Raises InputError for another suffix, FileError when the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix[1:].lower()
    if suffix not in FORMATS:
        raise InputError(
            f"plot {path}: expected a name that ends in .png, .svg or .pdf, got "
            f"{path.suffix or 'no ending'}{nearest(suffix, FORMATS) if suffix else ''}"
        )
    # without the date the same data give the same file
    facts: dict[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[suffix]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                figure.savefig(file, format=suffix, dpi=150, metadata=facts)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    except OSError as error:
        raise FileError(f"plot {path}: cannot write it: {error.strerror or error}; choose another place") from error
    return path
