"""Figures say what they show, in labels, units and legends; files are complete or absent; the same curves as text."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn import FileError, InputError
from tinygrad_rnn.diagnostics import GradNormReport, GradNormSeries, describe
from tinygrad_rnn.plots import COLOURS, gradnorm_figure, loss_figure, norm_figure, save_figure
from tinygrad_rnn.textplot import ASCII_GLYPHS, GLYPHS, sparkline, terminal_plot

T = 20


def report(
    cell: str, g: float, *, layers: int = 1, states: str = "h", loss: str = "last", at: int = T - 1
) -> GradNormReport:
    """A model whose norms fall like g, and whose training loss stays flat."""
    series = []
    for layer in range(layers):
        for state in states:
            norm = [0.1 * g ** (at - t) if t <= at else 0.0 for t in range(T)]
            series.append(GradNormSeries(loss, layer, state, tuple(norm), *describe(norm[: at + 1]), at=at, by=state))
            flat = (0.02,) * T
            series.append(
                GradNormSeries("train", layer, state, flat, *describe(flat, every_step=True), at=T - 1, by=state)
            )
    return GradNormReport(cell, layers, 8, T, tuple(series))


def labels(figure: Any) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_gradient_figure_names_axes_units_and_every_cell() -> None:
    figure = gradnorm_figure([report("rnn", 0.5), report("lstm", 0.9, states="hc")])
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "timestep t (symbols, earliest first)"
    assert "nats per unit of the state" in axes.get_ylabel()
    assert labels(figure) == [
        "lstm: h\nhealthy, 0.14 left 19 steps back",
        "lstm: c\nhealthy, 0.14 left 19 steps back",
        "rnn: h\nvanishing, 1.9e-06 left 19 steps back",
        "training loss, in the same colours",
    ]
    assert "judge by the thick curves" in figure.get_supxlabel()
    assert [text.get_text() for text in axes.texts] == ["loss at t = 19"]
    assert len({line.get_color() for line in axes.lines if line.get_label().startswith(("rnn", "lstm"))}) == 2


def test_one_report_shows_every_layer_several_show_the_top_one() -> None:
    both = labels(gradnorm_figure([report("gru", 0.9, layers=2)], training=False))
    assert [text.split("\n")[0] for text in both] == ["gru: layer 0, h", "gru: layer 1, h"]
    top = labels(gradnorm_figure([report("gru", 0.9, layers=2), report("rnn", 0.5)], training=False))
    assert [text.split("\n")[0] for text in top] == ["gru: h", "rnn: h"]
    assert not gradnorm_figure([report("gru", 0.9)], training=False).get_supxlabel()


def test_many_curves_stay_apart_and_their_legend_inside() -> None:
    figure = gradnorm_figure([report("lstm", 0.9, layers=8, states="hc")])
    thick = [line for line in figure.axes[0].lines if str(line.get_label()).startswith("lstm")]
    assert len({(line.get_color(), str(line.get_linestyle())) for line in thick}) == 16
    figure.canvas.draw()
    assert figure.legends[0].get_window_extent().y0 > figure.texts[-1].get_window_extent().y1  # above the trap


@pytest.mark.parametrize(
    ("low", "high", "labels"), [(0.2, 0.6, "0.2 0.3 0.4 0.5 0.6"), (0.2, 4.0, "0.2 0.5 1 2"), (1e-9, 1.0, "")]
)
def test_norms_are_labelled_as_people_write_them(low: float, high: float, labels: str) -> None:
    rows = [{"kind": "step", "step": k, "grad_norm": norm, "clipped_norm": norm} for k, norm in ((1, low), (2, high))]
    figure = norm_figure({"run": rows})
    figure.canvas.draw()
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels(which="both")]
    assert set(labels.split()) <= set(shown) and (not labels) == any("^" in text for text in shown)


def test_no_two_of_many_models_look_alike() -> None:
    """More models than colours, with states of four names, which make all line styles."""
    states = ("h", "c", "hc", "r", "s", "h", "h", "h", "s", "h")
    figure = gradnorm_figure([report(f"m{i}", 0.9, states=own) for i, own in enumerate(states)])
    thick = [line for line in figure.axes[0].lines if str(line.get_label()).startswith("m")]
    assert len({(line.get_color(), str(line.get_linestyle())) for line in thick}) == len(thick) == 11


def test_a_share_is_told_as_it_is_meant() -> None:
    """No exponent where none is needed, the memory that a verdict goes by, and an underflow as one."""
    (grown,) = labels(gradnorm_figure([report("rnn", 1.28)], training=False))
    assert grown == "rnn: h\nexploding, 109 times, 19 steps back"
    faint = tuple(0.1 * 1e-3 ** (T - 1 - t) if t > 4 else 0.0 for t in range(T))
    series = GradNormSeries("last", 0, "h", faint, *describe(faint, tiny=1.2e-38), at=T - 1, by="c")
    one = GradNormReport("lstm", 1, 8, T, (series,))
    assert labels(gradnorm_figure([one], training=False)) == [
        "lstm: h\nvanishing as c, <1e-37 left 19 steps back", "lstm: h, underflows to 0 at 5 of 20 steps"]  # fmt: skip


def test_a_long_title_is_whole_and_steps_are_whole_numbers() -> None:
    name = "a/very/long/path" * 8 + "/run"
    figure = gradnorm_figure([report("lstm", 0.9)], title=name)
    (axes,) = figure.axes
    figure.canvas.draw()
    title = axes.get_title(loc="left")
    assert title.replace("\n", "") == name and max(map(len, title.split("\n"))) <= 56
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    loss = loss_figure({"a": [{"kind": "step", "step": 1, "loss": 1.0}]}, title=name).axes[0].get_title(loc="left")
    assert loss.replace("\n", "") == name


def test_the_title_says_which_layer_is_drawn_and_stays_clear_of_the_legend() -> None:
    several = gradnorm_figure([report("gru", 0.9, layers=2), report("rnn", 0.5, layers=2)])
    title = several.axes[0].get_title(loc="left")
    assert title == "How much gradient reaches timestep t\n2 layers of 8 units; layer 1, the top one"
    several.canvas.draw()
    assert several.axes[0]._left_title.get_window_extent().x1 < several.legends[0].get_window_extent().x0
    one = gradnorm_figure([report("gru", 0.9, layers=2)]).axes[0].get_title(loc="left")
    assert one.endswith("\n2 layers of 8 units")
    assert gradnorm_figure([report("gru", 0.9, layers=2)], layer=0).axes[0].get_title(loc="left").endswith("; layer 0")


def test_the_legend_has_the_curves_from_the_top() -> None:
    figure = gradnorm_figure([report("rnn", 0.5), report("best", 1.0), report("gru", 0.9)], training=False)
    assert [text.split(":")[0] for text in labels(figure)] == ["best", "gru", "rnn"]


def test_an_output_beside_a_memory_is_not_drawn_among_several() -> None:
    lstm = report("lstm", 0.9, states="hc")
    beside = replace(lstm, series=tuple(replace(s, by="c") for s in lstm.series))
    assert len(labels(gradnorm_figure([beside], training=False))) == 2
    assert [text.split("\n")[0] for text in labels(gradnorm_figure([beside, report("rnn", 0.5)], training=False))] == [
        "lstm: c", "rnn: h"]  # fmt: skip
    assert len(labels(gradnorm_figure([beside, report("rnn", 0.5)], state="h", training=False))) == 2


def test_no_slope_is_told_where_there_is_none() -> None:
    norm = (math.nan,) * 5
    wild = GradNormReport("rnn", 1, 4, 5, (GradNormSeries("last", 0, "h", norm, *describe(norm), at=4, by="h"),))
    assert labels(gradnorm_figure([wild])) == ["rnn: h\nexploding", "rnn: h, not finite at 5 of 5 steps"]


def test_relative_axis_starts_from_one_at_the_loss() -> None:
    figure = gradnorm_figure([report("rnn", 0.5, loss="step:7", at=7)], "step:7", relative=True, training=False)
    (axes,) = figure.axes
    curve = axes.lines[0]
    assert "ratio" in axes.get_ylabel()
    assert list(curve.get_xdata()) == list(range(8))  # nothing is drawn behind the step of the loss
    assert curve.get_ydata()[-1] == 1.0
    assert curve.get_ydata()[0] == pytest.approx(0.5**7)


def test_zeros_and_infinities_are_marked_not_dropped(tmp_path: Path) -> None:
    norm = (0.0, 0.0, math.nan, 1e-3, 0.1)
    wild = GradNormReport("rnn", 1, 4, 5, (GradNormSeries("last", 0, "h", norm, *describe(norm), at=4, by="h"),))
    figure = gradnorm_figure([wild])
    assert labels(figure)[1:] == ["rnn: h, exactly 0 at 2 of 5 steps", "rnn: h, not finite at 1 of 5 steps"]
    nothing = (0.0,) * 5
    empty = GradNormReport("rnn", 1, 4, 5, (GradNormSeries("last", 0, "h", nothing, *describe(nothing), at=4, by="h"),))
    save_figure(gradnorm_figure([empty]), tmp_path / "empty.png")


def test_a_missing_series_is_named() -> None:
    with pytest.raises(InputError, match="the reports have: last, layer 0, state h"):
        gradnorm_figure([report("rnn", 0.5)], state="c")
    with pytest.raises(InputError, match="nothing"):
        gradnorm_figure([])


def test_loss_figure_shows_nats_and_bits() -> None:
    records = [
        {"kind": "step", "step": 1, "loss": 9.0},
        {"kind": "step", "step": 1, "loss": 4.0},
        {"kind": "step", "step": 2, "loss": 3.0},
        {"kind": "sample", "step": 2, "text": "a"},
        {"kind": "val", "step": 1, "loss": 3.9},
        {"kind": "val", "step": 2, "loss": 3.2},
    ]
    figure = loss_figure({"a": records})
    (axes,) = figure.axes
    (bits,) = axes.child_axes
    assert axes.get_xlabel() == "step (updates)"
    assert "nats per symbol" in axes.get_ylabel()
    assert bits.get_ylabel() == "bits per symbol"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "training",
        "validation (best 3.200 nats, step 2)",
    ]
    assert list(axes.lines[0].get_ydata()) == [4.0, 3.0]  # the later record of step 1 rules
    many = loss_figure({"a": [{"kind": "step", "step": i, "loss": 2.0} for i in range(300)]})
    assert [text.get_text() for text in many.axes[0].get_legend().get_texts()] == [
        "training, each batch",
        "training, running median",
    ]
    with pytest.raises(InputError, match="train at least one step"):
        loss_figure({"a": [{"kind": "sample", "step": 1, "text": ""}]})


def norms(pairs: list[tuple[float | None, float | None]]) -> list[dict[str, Any]]:
    return [{"kind": "step", "step": i + 1, "grad_norm": a, "clipped_norm": b} for i, (a, b) in enumerate(pairs)]


def test_the_norm_is_drawn_before_and_after_clipping() -> None:
    figure = norm_figure({"a": norms([(1.0, 1.0), (1e33, 5.0), (None, 5.0), (8.0, 5.0)])})
    (axes,) = figure.axes
    assert axes.get_yscale() == "log" and axes.get_xlabel() == "step (updates)"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "before clipping",
        "after, where clipped (75.0% of steps)",
        "not finite at 1 steps",
    ]
    assert list(axes.lines[0].get_ydata())[:2] == [1.0, 1e33] and list(axes.lines[1].get_ydata()) == [5.0, 5.0, 5.0]
    never = norm_figure({"a": norms([(1.0, 1.0), (2.0, 2.0)])}).axes[0]
    assert [text.get_text() for text in never.get_legend().get_texts()] == ["never clipped"]
    with pytest.raises(InputError, match="gradient norm, got none"):
        norm_figure({"a": [{"kind": "val", "step": 1, "loss": 1.0}]})


def test_several_runs_share_a_figure() -> None:
    one = [{"kind": kind, "step": step, "loss": 3.0} for kind in ("step", "val") for step in (1, 2)]
    (axes,) = loss_figure({"lstm": one, "gru": one[:2]}).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "lstm: training",
        "lstm: validation (best 3.000 nats, step 1)",
        "gru: training",
    ]
    assert [line.get_color() for line in axes.lines] == [COLOURS[0], COLOURS[0], COLOURS[1]]
    (axes,) = norm_figure({"lstm": norms([(9.0, 5.0)]), "gru": norms([(1.0, 1.0)])}).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["lstm: before clipping", "lstm: after, where clipped (100.0% of steps)", "gru: never clipped"]


# ----------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG\r\n\x1a\n"), ("svg", b"<?xml"), ("PDF", b"%PDF-")])
def test_files_have_the_format_of_their_name(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"norms.{suffix}"
    path.write_text("an old file")
    assert save_figure(gradnorm_figure([report("rnn", 0.5)]), path) == path
    assert path.read_bytes().startswith(magic)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("name", "message"), [("a.pgn", "did you mean png"), ("a.jpg", ".jpg"), ("a", "no ending")])
def test_other_formats_are_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        save_figure(gradnorm_figure([report("rnn", 0.5)]), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot write it: No such file or directory") as caught:
        save_figure(gradnorm_figure([report("rnn", 0.5)]), tmp_path / "nowhere" / "a.png")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write into a read-only folder")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FileError, match="Permission denied"):
        save_figure(gradnorm_figure([report("rnn", 0.5)]), tmp_path / "a.png")
    tmp_path.chmod(0o700)


def test_a_failure_while_drawing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "norms.png"
    path.write_text("old")
    figure = gradnorm_figure([report("rnn", 0.5)])

    def full(file: Any, **facts: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(FileError, match="No space left"):
        save_figure(figure, path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["norms.png"]


def test_no_global_figure_and_no_matplotlib_until_drawn() -> None:
    code = (
        "import sys, tinygrad_rnn.plots, tinygrad_rnn.textplot; assert 'matplotlib' not in sys.modules; "
        "tinygrad_rnn.plots.loss_figure({'a': [{'kind': 'step', 'step': 1, 'loss': 1.0}]}); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------ text


def test_terminal_plot_of_two_lines() -> None:
    values = [10.0 ** (n - 9) for n in range(10)]
    text = terminal_plot([("falls", values), ("flat", [1.0] * 10)], 36, 7, ylabel="norm", xlabel="timestep t")
    assert text.splitlines() == [
        "norm",
        " 10⁰ ┤▲▲▲▲▲▲▲▲▲▲▲▲▲▲▲▲▲▲▲▲▲▲▲▲▲▲▲●▲●",
        "     │                      ●●●●●",
        "10⁻³ ┤                 ●●●●●",
        "     │             ●●●●",
        "10⁻⁶ ┤        ●●●●●",
        "     │   ●●●●●",
        "10⁻⁹ ┤●●●",
        "     └┬───────────────┬────────────┬",
        "      0               5            9",
        "                timestep t",
        "      ● falls   ▲ flat",
    ]


def test_terminal_plot_in_ascii_marks_zero_and_infinity() -> None:
    text = terminal_plot([("norm", [0.0, 0.0, 1e-4, 1e-2, math.inf])], 30, 8, ascii=True)
    assert text.isascii()
    lines = text.splitlines()
    assert lines[0].startswith(" inf +") and lines[0].endswith("o")
    assert lines[7].startswith("   0 +ooo")
    assert "1e-2" in text and lines[-1].split() == ["o", "norm"]


def test_terminal_plot_with_a_linear_axis_and_paint() -> None:
    text = terminal_plot([("loss", [4.0, 3.0, 2.0])], 30, 7, log=False, x=(0, 200), paint=lambda i, g: f"<{i}{g}>")
    assert "<0●>" in text and " 200" in text and text.splitlines()[0].startswith("4 ┤<0●>")


@given(
    values=st.lists(st.floats(min_value=0), min_size=1, max_size=200),
    width=st.integers(24, 120),
    height=st.integers(4, 30),
    ascii=st.booleans(),
)
def test_terminal_plot_stays_in_its_box(values: list[float], width: int, height: int, ascii: bool) -> None:
    lines = terminal_plot([("one", values), ("two", values[::-1])], width, height, ascii=ascii).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) == height + 3
    glyphs = ASCII_GLYPHS if ascii else GLYPHS
    assert any(glyph in "".join(lines[:height]) for glyph in glyphs[:2])


@pytest.mark.parametrize("ascii", [False, True])
def test_long_words_stay_in_the_box_too(ascii: bool) -> None:
    words = "words that go on and on, much longer than the plot is wide"
    lines = terminal_plot([(words, [1.0, 2.0])], 30, 6, ylabel=words, xlabel=words, ascii=ascii).splitlines()
    assert max(map(len, lines)) <= 30
    assert words in " ".join(" ".join(lines).split())  # the x label is broken, not cut
    assert lines[0].endswith("..." if ascii else "\N{HORIZONTAL ELLIPSIS}")


@pytest.mark.parametrize(
    ("series", "width", "height", "message"),
    [
        ([], 72, 16, "at least one series"),
        ([("a", [])], 72, 16, "at least one value"),
        ([("a", [1.0])], 10, 16, "24 columns"),
        ([("a", [-1.0])], 72, 16, "log axis"),
    ],
)
def test_terminal_plot_refuses_what_it_cannot_draw(series: Any, width: int, height: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        terminal_plot(series, width, height)


def test_sparkline() -> None:
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1e-8, 1e-4, 1.0, 0.0, math.nan], log=True) == "▁▅█ !"
    assert sparkline([2.0, 2.0]) == "▅▅"
    assert sparkline([]) == ""
    assert len(sparkline(range(1000), 30)) == 30
    assert sparkline([1, 2, 3], ascii=True).isascii()


def test_none_leaves_a_gap_in_a_terminal_plot() -> None:
    values = [None, None, 1.0, None, 3.0]
    text = terminal_plot([("few", values), ("many", [None] * 100 + [2.0] * 100)], width=40, height=6, log=False)
    body = [line.split("┤" if "┤" in line else "│", 1)[1] for line in text.splitlines() if "┤" in line or "│" in line]
    drawn = ["".join(row[c] for row in body if c < len(row)).strip() for c in range(max(map(len, body)))]
    assert not any(drawn[: len(drawn) // 4])  # nothing is known there
    assert any("●" in column for column in drawn)
    assert all("▲" not in column for column in drawn[: len(drawn) // 2 - 1])
