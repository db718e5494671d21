"""``diagnose``: look inside a network, with what is built in and the diagnostics of plugins."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import aside, emit, emit_json, paint, table
from tinygrad_rnn_cli.gradnorm import gradnorm
from tinygrad_rnn_cli.main import Group, beside, write_plugins
from tinygrad_rnn_cli.options import (
    Command,
    common,
    given,
    key_values,
    load_plugins,
    load_run,
    resolve_run,
    settings,
    which_checkpoint,
)
from tinygrad_rnn_cli.replay import replay
from tinygrad_rnn_cli.texts import symbols_to_look_at

if TYPE_CHECKING:
    from tinygrad_rnn import PluginRow


class Diagnoses(Group):
    """The built-in diagnostics, and under every other name that of a plugin: a file of RUN may register it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, *(row.name for row in _plugged() if row.error is None)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = self.commands.get(cmd_name)
        return plugged if own is None and not cmd_name.startswith("-") and not ctx.resilient_parsing else own

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(80)) for name, command in self.commands.items()])
        write_plugins(formatter, _plugged())


def _plugged() -> list[PluginRow]:
    """The diagnostics of plugins, from metadata alone."""
    context = click.get_current_context(silent=True)
    third_party = context is None or given().third_party
    return beside(diagnose.commands, tr.available_plugins(tr.DIAGNOSTICS, third_party=third_party))


@click.group(cls=Diagnoses)
def diagnose() -> None:
    """Look inside: how far back in time do gradients reach?"""


diagnose.add_command(gradnorm)
diagnose.add_command(replay)


# ----------------------------------------------------------------------------------- diagnostics of plugins


@click.command(cls=Command)
@click.argument("run", required=False, type=click.Path(path_type=Path), metavar="RUN")
@click.option("--opt", "pairs", multiple=True, metavar="KEY=VALUE", help="an option of the diagnostic; repeatable")
@click.option("--text", type=click.Path(), metavar="FILE", help="another text than the RUN's own validation part")
@which_checkpoint
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@settings()
@common("seed", "device", "plugin")
def plugged(
    run: Path | None, pairs: tuple[str, ...], text: str | None, which: str, allow_changed_cell: bool, as_json: bool
) -> None:
    """What the diagnostic of a plugin finds out about a RUN."""
    name = click.get_current_context().info_name or ""
    with aside():
        if run is None:
            load_plugins()
            _check_plugged(name)
            raise click.UsageError("missing RUN; name the folder that train made")
        found = resolve_run(run)
        loaded = load_run(run, which, allow_changed_cell, found)
        _check_plugged(name)
        import numpy as np

        rng = np.random.default_rng(found.run.train.seed)
        symbols = symbols_to_look_at(loaded, run, text)
        facts = tr.run_diagnostic(name, loaded, symbols, rng, key_values(pairs, "--opt"), third_party=found.third_party)
    if as_json:
        emit_json(facts)
    else:
        show_facts(facts)


def _check_plugged(name: str) -> None:
    names = {*diagnose.commands, *(row.name for row in _plugged())}
    if name not in names:
        raise click.UsageError(f"no diagnostic {name!r}{tr.nearest(name, names)}")


def show_facts(facts: Mapping[str, Any]) -> None:
    """JSON values as people read them: a line for a value or a series, a table for a list of rows."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        rows = [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
        if rows and len(rows) == len(value) and all(row.keys() == rows[0].keys() for row in rows):
            numbers = [i for i, item in enumerate(rows[0].values()) if _is_number(item)]
            emit(f"\n{paint(name, sys.stdout, bold=True)}")
            table(
                [str(key) for key in rows[0]], [[_fact(item) for item in row.values()] for row in rows], numbers=numbers
            )
        elif isinstance(value, list) and len(value) > 1 and all(_is_number(item) for item in value):
            curve = tr.sparkline(value, 40, ascii=not (sys.stdout.encoding or "").lower().startswith("utf"))
            emit(f"{name:<{width}}  {curve}  {len(value)} values from {_fact(min(value))} to {_fact(max(value))}")
        else:
            emit(f"{name:<{width}}  {_fact(value)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fact(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_fact(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_fact, value))
    return "-" if value is None else str(value)
