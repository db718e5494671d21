"""``cells``: which recurrent cells there are, and what each of them is."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import emit, emit_json, note, paint, table
from tinygrad_rnn_cli.main import Group
from tinygrad_rnn_cli.options import Command, common, given, load_plugins, spell

if TYPE_CHECKING:
    from tinygrad_rnn import Cell

# Stand-ins for I and H: primes that no cell has as a number of its own, so that a shape shows which letter it is.
_I, _H = 10007, 10009


@click.group(cls=Group)
def cells() -> None:
    """Recurrent cells: built-in ones, installed plugins, files given with --plugin."""


@cells.command("list", cls=Command)
@click.option("--errors", is_flag=True, help="import every cell, and say in red which of them cannot be used")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@common("plugin")
def list_cells(errors: bool, as_json: bool) -> None:
    """List every cell, from metadata alone: nothing is imported unless --errors asks for it."""
    with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints is no part of the product
        load_plugins()
        rows = tr.available_cells(third_party=given().third_party, check=errors)
    if as_json:
        emit_json({"cells": [dataclasses.asdict(row) for row in rows]})
        return
    broken = [i for i, row in enumerate(rows) if row.error]
    headers = ["cell", "distribution", "version", "where"] + (["error"] if broken else [])
    lines = [
        [row.name, row.distribution, row.version, row.location] + ([row.error or ""] if broken else []) for row in rows
    ]
    table(headers, lines, red=broken)
    if broken:
        note(f"{len(broken)} of {len(rows)} cannot be used; the others can")
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
    with contextlib.redirect_stdout(sys.stderr):
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
            {"name": key, "shape": _letters(param.shape, cell), "init": param.init, "role": param.role}
            for key, param in params.items()
        ],
        "states": [
            {"name": key, "shape": _letters(state.shape, cell), "start": state.start} for key, state in states.items()
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
    heading("States (the first one is the output)")
    table(
        ["name", "shape", "start"],
        [[state["name"], _shape(state["shape"]), spell(state["start"])] for state in facts["states"]],
    )
    identity = facts["identity"]
    emit(f"\n{identity['distribution']} {identity['version']}, source sha256 {identity['source_sha256'][:16]}")


def _shape(letters: list[str]) -> str:
    return "(" + ", ".join(letters) + (",)" if len(letters) == 1 else ")")
