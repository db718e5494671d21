"""``plugins``: what is plugged in, of every group."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import aside, emit_json, note, table
from tinygrad_rnn_cli.main import COMMANDS, Group, beside
from tinygrad_rnn_cli.options import Command, common, given, load_plugins

if TYPE_CHECKING:
    from tinygrad_rnn import PluginGroup, PluginRow


@click.group(cls=Group)
def plugins() -> None:
    """Cells, optimisers, callbacks, diagnostics, corpora and commands: built in, installed, given with --plugin."""


@plugins.command("list", cls=Command)
@click.option("--errors", is_flag=True, help="import every plugin, and say in red which of them cannot be used")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@common("plugin")
def list_plugins(errors: bool, as_json: bool) -> None:
    """List every plugin of every group, from metadata alone: nothing is imported unless --errors asks for it."""
    with aside():
        load_plugins()
        found = {group.name: listed(group, errors) for group in tr.PLUGIN_GROUPS}
    if as_json:
        emit_json({name: [dataclasses.asdict(row) for row in rows] for name, rows in found.items()})
        return
    print_plugins(["group", "name"], [([name, row.name], row) for name, rows in found.items() for row in rows])


def print_plugins(headers: Sequence[str], rows: Sequence[tuple[list[str], PluginRow]]) -> None:
    """A table of plugins, each with its cells under `headers`; the errors have a column where there are some."""
    broken = [i for i, (_, row) in enumerate(rows) if row.error]
    lines = [
        [*names, row.distribution, row.version, row.location] + ([row.error or ""] if broken else [])
        for names, row in rows
    ]
    table([*headers, "distribution", "version", "where"] + (["error"] if broken else []), lines, red=broken)
    if broken:
        note(f"{len(broken)} of {len(rows)} cannot be used; the others can")


def listed(group: PluginGroup, check: bool) -> list[PluginRow]:
    """The rows of a group. The built-in commands and diagnostics are the program's own, and keep their names."""
    rows = tr.available_plugins(group, third_party=given().third_party, check=check)
    if group == tr.COMMANDS:
        own = {name: f"tinygrad_rnn_cli.{place}" for name, (place, _) in COMMANDS.items()}
    elif group == tr.DIAGNOSTICS:
        from tinygrad_rnn_cli.diagnose import diagnose

        own = {name: f"{diagnose.callback.__module__}:{name}" for name in diagnose.commands}
    else:
        return rows
    built_in = [tr.PluginRow(name, "tinygrad-rnn", tr.__version__, place) for name, place in own.items()]
    return [*built_in, *beside(own, rows)]
