"""``diagnose replay``: a step that diverged, run once more to see where it breaks."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import aside, emit, emit_json, paint, table
from tinygrad_rnn_cli.options import Command, common, resolve_run, settings

if TYPE_CHECKING:
    from tinygrad_rnn import Replay

TOP = 8  # parameters shown


@click.command("replay", cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--step", type=click.IntRange(1), metavar="N", help="the step that diverged  [default: the latest one]")
@click.option("--allow-changed-cell", is_flag=True, help="accept that the code of the RUN's cell has changed")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@settings()
@common("device", "plugin")
def replay(run: Path, step: int | None, allow_changed_cell: bool, as_json: bool) -> None:
    """Run the step of RUN that diverged once more, look at every value, and say where it breaks.

    train keeps the batch, the state and the parameters of such a step in the run folder (diverged-step-N.safetensors).
    """
    found = resolve_run(run)
    with aside():
        seen = tr.replay_step(
            run,
            step=step,
            device=found.run.train.device,
            allow_changed_cell=allow_changed_cell,
            plugins=found.plugins,
            third_party=found.third_party,
        )
    if as_json:
        emit_json({**dataclasses.asdict(seen), "file": str(seen.file)})
    else:
        _show(seen)


def _show(seen: Replay) -> None:
    where = ", ".join(f"{name} {value}" for name, value in seen.where.items() if name != "step")
    for name, value in [
        ("step", seen.step),
        ("diverged", seen.why),
        ("loss", f"{seen.loss:.4g} nats per symbol"),
        ("gradient", f"norm {seen.grad_norm:.4g} before any clipping"),
        ("breaks", seen.broke),
        *([("where", where)] if where else []),
    ]:
        emit(f"{paint(f'{name:<9}', sys.stdout, bold=True)} {value}")
    emit("")
    if seen.states:
        table(
            ["layer", "state", "largest", "at timestep"],
            [[str(layer), name, f"{value:.4g}", str(at)] for layer, name, value, at in seen.states],
            numbers=[0, 2, 3],
        )
        emit("")
    table(
        ["parameter", "norm", "norm of its gradient"],
        [[name, f"{norm:.4g}", f"{pulled:.4g}"] for name, norm, pulled in seen.parameters[:TOP]],
        numbers=[1, 2],
    )
