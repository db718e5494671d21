"""``inspect``: what is in a run folder."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import counted, emit, emit_json, number, paint, table
from tinygrad_rnn_cli.options import Command, common, given, spell

if TYPE_CHECKING:
    from tinygrad_rnn import Run


@click.command("inspect", cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@common("plugin")
def inspect_run(run: Path, as_json: bool) -> None:
    """What a RUN is made from: configuration, shapes, parameters, hashes, plugin identity, checkpoints."""
    facts = examine(run)
    if as_json:
        emit_json(facts)
    else:
        _print(facts)


def examine(path: Path) -> dict[str, Any]:
    """All that is known of the run, as JSON values. A cell that is missing or changed is a finding, not an error."""
    run = tr.open_run(path)
    described = tr.describe_run(run)
    config = tr.run_config(run)
    error, shapes, count = None, [], described.get("parameters")
    try:
        files = given().plugins or tuple(described.get("plugins", ()))
        entry = tr.find_cell(
            config.model.cell,
            described.get("cell"),
            plugins=files,
            third_party=given().third_party,
            allow_changed=False,
        )
        model = tr.build_model(config.model, _symbols(described), entry)
        shapes = [
            {
                "name": name,
                "shape": list(spec.shape),
                "role": spec.role,
                "init": spec.init_name,
                "count": math.prod(spec.shape),
            }
            for name, spec in model.params().items()
        ]
        count = model.count()
    except tr.TinygradRNNError as caught:
        error = str(caught)
    return {
        "run": str(path),
        "created": described.get("created"),
        "versions": described.get("versions"),
        "config": tr.config_as_dict(config),
        "cell": described.get("cell"),
        "cell_error": error,
        "optimizer": described.get("optimizer"),
        "plugins": described.get("plugins", []),
        "imported": described.get("imported"),
        "init_from": described.get("init_from"),
        "data": described.get("data"),
        "vocabulary": {"kind": described.get("vocabulary", {}).get("kind"), "size": _symbols(described)},
        "device": described.get("device"),
        "parameters": count,
        "changes": described.get("changes", []),
        "shapes": shapes,
        "progress": _progress(run, described),
        "checkpoints": _checkpoints(run),
    }


def _symbols(described: dict[str, Any]) -> int:
    return tr.Vocabulary.from_json(described["vocabulary"]).size if "vocabulary" in described else 0


def _progress(run: Run, described: Mapping[str, Any]) -> dict[str, Any]:
    records = tr.read_metrics(run)
    earlier = (described.get("data") or {}).get("earlier") or [{}]
    until = earlier[-1].get("until", -1)  # losses on another text are no losses on this one
    steps = [record for record in records if record.get("kind") == "step"]
    checks = [record for record in records if record.get("kind") == "val" and record.get("loss") is not None]
    checks = [record for record in checks if record["step"] > until]
    last = steps[-1] if steps else {}
    best = min(checks, key=lambda record: float(record["loss"]), default={})
    return {
        "steps": last.get("step", 0),
        "epoch": last.get("epoch", 0.0),
        "loss": last.get("loss"),
        "best_val_loss": best.get("loss"),
        "best_step": best.get("step"),
        "clipped_share": last.get("clipped_share"),
        "rollbacks": [record for record in records if record.get("kind") == "rollback"],
        "diverged": next((record for record in records[-1:] if record.get("kind") == "diverged"), None),
    }


def _checkpoints(run: Run) -> list[dict[str, Any]]:
    files = tr.checkpoints(run)
    best = tr.best_checkpoint(run) if files else None
    latest = tr.latest_checkpoint(run) if files else None
    return [
        {"file": file.name, "bytes": file.stat().st_size, "best": file == best, "latest": file == latest}
        for file in files
    ]


def _print(facts: dict[str, Any]) -> None:
    def heading(text: str) -> None:
        emit("\n" + paint(text, sys.stdout, bold=True))

    def line(name: str, value: Any) -> None:
        emit(f"  {name:<14} {value}")

    cell, data, progress = facts["cell"] or {}, facts["data"] or {}, facts["progress"]
    emit(paint(f"run {facts['run']}", sys.stdout, bold=True))
    line("created", facts["created"])
    line("made with", ", ".join(f"{name} {version}" for name, version in (facts["versions"] or {}).items()))
    line("device", facts["device"])
    line("cell", _code(cell))
    if facts["cell_error"]:
        line("", paint(facts["cell_error"], sys.stdout, fg="red"))
    optimizer = facts["optimizer"]
    if optimizer is not None and optimizer.get("distribution") != "tinygrad-rnn":
        line("optimiser", _code(optimizer))
    for plugin in facts["plugins"]:
        line("plugin", plugin)
    if facts["imported"]:
        line("imported from", f"{facts['imported'].get('file')}, sha256 {str(facts['imported'].get('sha256'))[:16]}")
    if facts["init_from"]:
        line("weights from", f"{facts['init_from']} (--init-from)")
    line(
        "text",
        "none"
        if data.get("sha256") is None
        else f"{data.get('source')}: {number(int(data.get('characters') or 0))} characters, sha256 "
        f"{str(data.get('sha256'))[:16]}",
    )
    line("vocabulary", f"{number(facts['vocabulary']['size'])} {facts['vocabulary']['kind']}")
    line("parameters", number(facts["parameters"]) if facts["parameters"] is not None else "unknown")
    line(
        "trained",
        f"{counted(progress['steps'], 'step')}, {progress['epoch']:.2f} epochs"
        + (f", last loss {progress['loss']:.4f}" if progress["loss"] is not None else ""),
    )
    if progress["clipped_share"]:
        line("", f"the gradient was clipped in {progress['clipped_share']:.0%} of the steps")
    for back in progress["rollbacks"]:
        line("", f"diverged at step {number(back['from'])}: back to step {number(back['step'])}, rate {back['lr']:g}")
    if progress["diverged"]:
        line("", f"diverged at step {number(progress['diverged']['step'])}: {progress['diverged']['why']}")
    if progress["best_val_loss"] is not None:
        line(
            "validation",
            f"best {progress['best_val_loss']:.4f} nats ({progress['best_val_loss'] / math.log(2):.4f} "
            f"bits) at step {number(progress['best_step'])}",
        )
    heading("Configuration (what is not the default)")
    default = tr.config_as_dict(tr.RunConfig())
    for section, fields in facts["config"].items():
        for name, value in fields.items():
            if value != default[section][name] and list(value if isinstance(value, list | tuple) else [0]) != []:
                line(f"{section}.{name}", _value(value))
    if facts["changes"]:
        heading("Changes by resume")
        table(
            ["from step", "setting", "before", "after"],
            [[number(row["step"]), row["setting"], _value(row["from"]), _value(row["to"])] for row in facts["changes"]],
            numbers=[0],
        )
    if facts["shapes"]:
        heading("Parameters")
        table(
            ["name", "shape", "role", "numbers"],
            [
                [entry["name"], " x ".join(map(str, entry["shape"])), entry["role"], number(entry["count"])]
                for entry in facts["shapes"]
            ],
            numbers=[3],
        )
    heading("Checkpoints")
    table(
        ["file", "size", ""],
        [
            [
                entry["file"],
                f"{entry['bytes'] / 1024:.0f} KiB",
                " ".join(word for word in ("best", "latest") if entry[word]),
            ]
            for entry in facts["checkpoints"]
        ],
        numbers=[1],
    )


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return spell(value)


def _code(plugin: Mapping[str, Any]) -> str:
    """The identity of a plugin as a run stores it."""
    owner = f"{plugin.get('distribution')} {plugin.get('version')}"
    return f"{plugin.get('name')} of {owner}, source sha256 {str(plugin.get('source_sha256'))[:16]}"
