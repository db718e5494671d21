"""``cells``: which recurrent cells there are, what each of them is, and how fast."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

import tinygrad_rnn as tr
from tinygrad_rnn_cli import peers
from tinygrad_rnn_cli.check import check
from tinygrad_rnn_cli.console import aside, detail, emit, emit_json, note, paint, table
from tinygrad_rnn_cli.main import USAGE, Group
from tinygrad_rnn_cli.new import new
from tinygrad_rnn_cli.options import Command, Flag, common, given, load_plugins, resolve, settings, spell
from tinygrad_rnn_cli.plugins import print_plugins

if TYPE_CHECKING:
    from tinygrad_rnn import Cell

# Stand-ins for I and H: primes that no cell has as a number of its own, so that a shape shows which letter it is.
_I, _H = 10007, 10009


@click.group(cls=Group)
def cells() -> None:
    """Recurrent cells: built-in ones, installed plugins, files given with --plugin."""


cells.add_command(new)
cells.add_command(check)


@cells.command("list", cls=Command)
@click.option("--errors", is_flag=True, help="import every cell, and say in red which of them cannot be used")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@common("plugin")
def list_cells(errors: bool, as_json: bool) -> None:
    """List every cell, from metadata alone: nothing is imported unless --errors asks for it."""
    with aside():
        load_plugins()
        rows = tr.available_cells(third_party=given().third_party, check=errors)
    if as_json:
        emit_json({"cells": [dataclasses.asdict(row) for row in rows]})
        return
    print_plugins(["cell"], [([row.name], row) for row in rows])
    note("more: tinygrad-rnn cells info NAME")


def complete_cell(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Cell names for the shell, from metadata."""
    return [CompletionItem(row.name) for row in tr.available_cells() if row.name.startswith(incomplete)]


@cells.command("info", cls=Command)
@click.argument("name", shell_complete=complete_cell)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@common("plugin")
def info(name: str, as_json: bool) -> None:
    """Everything about one cell: equation, citation, deviations, options, parameters and states with their shapes.

    x W means a row vector times a matrix; I is the size of the input, H the number of hidden units.
    """
    with aside():
        load_plugins()
        entry = tr.load_cell(name, third_party=given().third_party)
        facts = describe(entry)
    if as_json:
        emit_json(facts)
        return
    _print(facts)


def describe(entry: tr.CellEntry) -> dict[str, Any]:
    """What `cells info` prints, as JSON values."""
    cls = entry.cls
    hints = tr.field_types(cls.Options)
    cell = _instance(cls)
    states, params = tr.specification(cell)
    return {
        "name": cls.name,
        "summary": cls.summary,
        "equation": cls.equation.split("\n"),
        "citation": cls.citation,
        "deviations": cls.deviations,
        "identity": entry.identity.to_json(),
        "options": [
            {
                "name": option.name,
                "type": _type(hints[option.name]),
                "default": _default(option),
                "help": str(option.metadata.get("help", "")),
            }
            for option in dataclasses.fields(cls.Options)
        ],
        "params": [
            {"name": key, "shape": _letters(param.shape, cell), "init": param.init_name, "role": param.role}
            for key, param in params.items()
        ],
        "output": tr.output_of(cell),
        "states": [
            {
                "name": key,
                "shape": _letters(state.shape, cell),
                "start": state.start,
                "timestep": isinstance(state, tr.Timestep),
            }
            for key, state in states.items()
        ],
    }


def _instance(cls: type[Cell]) -> Cell:
    try:
        return cls(_I, _H)
    except tr.InputError:  # a cell may insist on I = H
        return cls(_H, _H)


def _letters(shape: tuple[int, ...], cell: Cell) -> list[str]:
    return [_letter(size, cell) for size in shape]


def _letter(size: int, cell: Cell) -> str:
    for letter, value in (("H", cell.H), ("I", cell.I)):
        if size and size % value == 0:
            return letter if size == value else f"{size // value}{letter}"
    for parts in range(2, 17):  # the units are shared out
        count = round(size * parts / cell.H)
        if count and abs(size - count * cell.H / parts) < 1:
            return f"{count if count > 1 else ''}H/{parts}"
    return str(size)


def _type(annotation: Any) -> str:
    import typing

    if typing.get_origin(annotation) is typing.Literal:
        return "|".join(map(str, typing.get_args(annotation)))
    return getattr(annotation, "__name__", str(annotation))


def _default(option: dataclasses.Field[Any]) -> Any:
    if option.default is not dataclasses.MISSING:
        return option.default
    return option.default_factory() if option.default_factory is not dataclasses.MISSING else None


def _print(facts: dict[str, Any]) -> None:
    def heading(text: str) -> None:
        emit("\n" + paint(text, sys.stdout, bold=True))

    emit(paint(facts["name"], sys.stdout, bold=True) + f": {facts['summary']}")
    heading("Equation")
    for line in facts["equation"]:
        emit(f"  {line}")
    heading("Source")
    emit(f"  {facts['citation']}")
    if facts["deviations"]:
        heading("Deviations")
        for line in facts["deviations"].strip().split("\n"):
            emit(f"  {line.strip()}")
    heading("Options (--cell-opt NAME=VALUE)")
    if facts["options"]:
        table(
            ["name", "values", "default", "meaning"],
            [[option["name"], option["type"], spell(option["default"]), option["help"]] for option in facts["options"]],
        )
    else:
        emit("  none")
    heading("Parameters (I inputs, H hidden units)")
    table(
        ["name", "shape", "role", "initialiser"],
        [[param["name"], _shape(param["shape"]), param["role"], param["init"]] for param in facts["params"]],
    )
    heading(f"States (the output is {facts['output']})")
    table(
        ["name", "shape", "start"],
        [
            [state["name"], _shape(state["shape"]), spell(state["start"]) + ", counts the steps" * state["timestep"]]
            for state in facts["states"]
        ],
    )
    identity = facts["identity"]
    emit(f"\n{identity['distribution']} {identity['version']}, source sha256 {identity['source_sha256'][:16]}")


def _shape(letters: list[str]) -> str:
    return "(" + ", ".join(letters) + (",)" if len(letters) == 1 else ")")


# ----------------------------------------------------------------------------------------------- graph


@cells.command("graph", cls=Command)
@click.argument("name", shell_complete=complete_cell)
@click.option(
    "--inputs",
    type=click.IntRange(1),
    metavar="I",
    cls=Flag,
    shown="as --hidden",
    help="size of the input of a timestep",
)
@click.option("--masked", is_flag=True, help="with a mask over timesteps, as for sequences of several lengths")
@click.option(
    "--stage",
    type=click.Choice(["traced", "scheduled", "all"]),
    default="all",
    show_default=True,
    help="before scheduling, after it, or both",
)
@click.option(
    "--direction",
    type=click.Choice(["forward", "backward", "both"]),
    default="both",
    show_default=True,
    help="the step, its gradient, or both",
)
@click.option(
    "--unfolded", is_flag=True, help="a line for every op, instead of folding what is read once into its reader"
)
@click.option("--dot", "as_dot", is_flag=True, help="print it in Graphviz' language: ... --dot | dot -Tsvg > lstm.svg")
@click.option(
    "--code", "as_code", is_flag=True, help="print the machine code as LLVM assembly, commented; needs llvmlite"
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@settings("model.hidden", "model.cell_options", "model.wrap", "data.batch")
@common("dtype", "plugin")
def graph(
    name: str,
    inputs: int | None,
    masked: bool,
    stage: Any,
    direction: Any,
    unfolded: bool,
    as_dot: bool,
    as_code: bool,
    as_json: bool,
) -> None:
    """What the compiler makes of one step of a cell: as it is written, and when each part of it is computed.

    Shown before and after scheduling, forward and backward. A line is a value: how it is computed, its shape (B rows),
    the line of the cell it comes from, and whether it is kept for all timesteps.
    """
    asked = [flag for flag, on in (("--dot", as_dot), ("--code", as_code), ("--json", as_json)) if on]
    if len(asked) > 1:
        raise click.UsageError(f"{' and '.join(asked)}: expected one of them")
    if as_code and (stage != "all" or direction != "both" or unfolded):
        raise click.UsageError("--code: the machine code is one piece; leave out --stage, --direction and --unfolded")
    with aside():
        load_plugins()
        entry = tr.load_cell(name, third_party=given().third_party)
        run = resolve().run
        size = run.model.hidden
        cell = tr.wrap_cell(entry.cls, run.model.wrap)(inputs or size, size, run.model.cell_options)
        how: dict[str, Any] = {"dtype": run.train.dtype, "masked": masked}
        if as_code:
            text = tr.step_code(cell, run.data.batch, **how)
        else:
            found = tr.step_graph(cell, run.data.batch, stage=stage, direction=direction, folded=not unfolded, **how)
    if as_code:
        emit(text)
    elif as_json:
        emit_json(dataclasses.asdict(found))
    elif as_dot:
        emit(tr.step_graph_dot(found).rstrip())
    else:
        for line in tr.step_graph_text(found).rstrip().split("\n"):
            emit(line)


# ----------------------------------------------------------------------------------------------- bench

ROUNDS = 3
BUSY = 0.25  # of a processor
WIDE = 0.15  # of the median: rounds of a quiet machine differ by a few percent
OURS = "ours"
KEYS = ("cell", "shape", "executor", "ms", "spread", "min_ms", "first_s", "error")  # of a printed row


def _shapes(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    try:
        return tuple(peers.parse_shape(text) for text in value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


@cells.command("bench", cls=Command)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_cell)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="V,H,L,B,T",
    callback=_shapes,
    help="symbols, hidden units, layers, streams, timesteps; repeatable  [default: three from small to large]",
)
@click.option(
    "--executor",
    type=click.Choice(["auto", "llvm", "numpy", "unroll"]),
    default="auto",
    show_default=True,
    help="what runs our side; auto is the fastest that can do it",
)
@click.option("--peers", "with_peers", is_flag=True, help="time PyTorch and JAX too, where they are installed")
@click.option("--compile", "compiled", is_flag=True, help="with --peers: torch.compile too, which takes minutes")
@click.option(
    "--runs", type=click.IntRange(min=1), metavar="N", default=5, show_default=True, help="timed steps of a process"
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    metavar="N",
    default=ROUNDS,
    show_default=True,
    help="processes per row, all rows and sides in turn",
)
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="threads of every side  [default: one per processor]"
)
@click.option("--here", is_flag=True, hidden=True, help="time our side in this process")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@settings("model.cell_options", "model.wrap")
@common("plugin")
def bench(
    names: tuple[str, ...],
    shapes: tuple[tuple[int, ...], ...],
    executor: str,
    with_peers: bool,
    compiled: bool,
    runs: int,
    rounds: int,
    threads: int | None,
    here: bool,
    as_json: bool,
) -> None:
    """Time one training step of a character model of each cell NAME: forward, loss, backward, in milliseconds.

    Embedding, L layers of the cell, linear readout, mean cross-entropy, float32, on the CPU; nobody updates the
    parameters. Every side runs in processes of its own, one after the other, and all of them once in every round. The
    time is the median of the rounds; "spread" says how far they lie apart, in percent of it. "first" is the first step
    in a new process, in seconds: what has to be compiled is compiled there. The ratio is the time of the best peer
    divided by ours: above 1 we are faster.
    """
    if compiled and not with_peers:
        raise click.UsageError("--compile: torch.compile is a peer; expected --peers beside it")
    with aside():
        load_plugins()
        entries = {name: tr.load_cell(name, third_party=given().third_party) for name in names}
        config = resolve().run.model
    wanted = [(name, shape) for name in entries for shape in dict.fromkeys(shapes or tr.BENCH_SHAPES)]
    if here:
        how: dict[str, Any] = {"executor": None if executor == "auto" else executor, "runs": runs}
        how |= {"options": config.cell_options, "wrap": config.wrap}
        try:
            emit_json({"rows": [tr.bench_cell(entries[n], s, **how) for n, s in wanted]})
        except MemoryError as error:
            raise click.ClickException(f"not enough memory ({error}); expected a smaller --shape") from error
        return
    rivals = [peer for peer in peers.PEERS if with_peers and (compiled or peer != "torch-compile")]
    busy = peers.busy_cores()
    if busy is not None and busy > BUSY:
        note(f"warning: others keep {busy:.1f} of {peers.cores()} processors busy; times are too long until they end")
    sides: dict[str, Callable[[], peers.Row]] = {}
    for name, shape in wanted:
        size = ",".join(map(str, shape))
        note(f"{name} {size} ...", dim=True)
        sides[f"{name} {size} {OURS}"] = _our_side(name, size, config, executor, runs, threads)
        sides |= {f"{name} {size} {peer}": _peer_side(peer, name, shape, runs, threads) for peer in rivals}
    rows = peers.alternate(sides, rounds, lambda text: detail(f"  {text}"))
    found = [
        {side: rows[f"{name} {','.join(map(str, shape))} {side}"] for side in (OURS, *rivals)} for name, shape in wanted
    ]
    wide = max((row.get("spread") or 0.0 for row in rows.values()), default=0.0)
    if wide > WIDE:
        note(
            f"warning: rounds of one row differ by up to {100 * wide:.0f} %, so the machine was busy in between; "
            f"take more --rounds than {rounds}, or try again when it is quiet"
        )
    if as_json:
        printed = [{key: row[key] for key in KEYS if key in row} for rows in found for row in rows.values()]
        emit_json({"rows": printed})
        return
    _print_times(found, rivals)


def _our_side(
    name: str, shape: str, config: tr.ModelConfig, executor: str, runs: int, threads: int | None
) -> Callable[[], peers.Row]:
    """Time our step by this very command in a process of its own, before whose NumPy the threads are set."""
    asked = given()
    words = ["--shape", shape, "--executor", executor, "--runs", str(runs), "--here", "--json"]
    for path in asked.plugins:
        words += ["--plugin", path]
    for key, value in config.cell_options.items():
        words += ["--cell-opt", f"{key}={value}"]
    for text in config.wrap:
        words += ["--wrap", text]
    if not asked.third_party:
        words += ["--no-plugins"]
    command = [sys.executable, "-P", "-m", "tinygrad_rnn_cli", "cells", "bench", name, *words]
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    environment = dict.fromkeys(names, str(threads)) if threads else {}

    def side() -> peers.Row:
        done = peers.measure(command, environment)
        row: peers.Row = done if "error" in done else done["rows"][0]
        _check_ours(row, name, shape)
        return row

    return side


def _peer_side(peer: str, name: str, shape: Sequence[int], runs: int, threads: int | None) -> Callable[[], peers.Row]:
    command = peers.peer_command(peer, name, shape, runs=runs, threads=threads or peers.cores())
    empty: peers.Row = {"cell": name, "shape": list(shape), "executor": peer, "ms": None, "min_ms": None}
    return lambda: {**empty, "first_s": None, **peers.measure(command)}


def _check_ours(row: peers.Row, name: str, shape: str) -> None:
    if "error" not in row:
        return
    if "Traceback" in row["stderr"]:
        click.echo(row["stderr"], err=True)
    error = f"{name} {shape}: {row['error']}"
    raise tr.InputError(error) if row["code"] == USAGE else click.ClickException(error)


def _print_times(found: Sequence[Mapping[str, peers.Row]], rivals: Sequence[str]) -> None:
    """A line per cell and shape; as narrow as it can be, for a terminal of 80 columns."""
    headers = ["cell", "V,H,L,B,T", "executor", "ms", "spread", "first, s", *(peers.TITLES[peer] for peer in rivals)]
    lines = []
    for rows in found:
        ours = rows[OURS]
        times = {peer: rows[peer]["ms"] for peer in rivals}
        known = [time for time in times.values() if time is not None]
        line = [ours["cell"], ",".join(map(str, ours["shape"])), ours["executor"], _ms(ours["ms"])]
        line += ["-" if ours["spread"] is None else f"{100 * ours['spread']:.0f} %"]
        line += [f"{ours['first_s']:.2f}", *map(_ms, times.values())]
        if rivals:
            line.append(f"{min(known) / ours['ms']:.2f}" if known else "-")
        lines.append(line)
    headers += ["ratio"] if rivals else []
    table(headers, lines, numbers=range(3, len(headers)))
    for text in dict.fromkeys(row["error"] for rows in found for row in rows.values() if "error" in row):
        note(text)


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"
