"""``data``: the corpora, and what is in a text before one trains on it."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import aside, emit, emit_json, note, number, table
from tinygrad_rnn_cli.main import Group
from tinygrad_rnn_cli.options import Command, common, given, load_plugins, resolve, settings
from tinygrad_rnn_cli.texts import check_text_options, json_name, symbol_name, whole_text

if TYPE_CHECKING:
    from tinygrad_rnn import Corpus, PluginRow


@click.group(cls=Group)
def data() -> None:
    """Texts to train on: those that every Python brings along, and your own."""


@data.command("list", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@common("plugin")
def list_data(as_json: bool) -> None:
    """List the corpora: the embedded ones with their size and checksum, those of plugins without reading them."""
    with aside():
        load_plugins()
        embedded = {corpus.name: corpus for corpus in tr.corpora()}
        rows = [
            _foreign(row) if row.error or row.name not in embedded else _embedded(embedded[row.name])
            for row in tr.available_plugins(tr.DATASETS, third_party=given().third_party)
        ]
    if as_json:
        emit_json({"corpora": rows})
        return
    lines = [
        [
            str(row["name"]),
            number(row["characters"]) if isinstance(row["characters"], int) else "-",
            str(row["sha256"])[:16] if row["sha256"] else "-",
            str(row["error"] or row["summary"]),
        ]
        for row in rows
    ]
    table(
        ["corpus", "characters", "sha256", "what it is"],
        lines,
        numbers=[1],
        red=[i for i, row in enumerate(rows) if row["error"]],
    )
    note("use one: tinygrad-rnn train --corpus NAME")


def _embedded(corpus: Corpus) -> dict[str, Any]:
    facts = {"name": corpus.name, "summary": corpus.summary}
    try:
        return {**facts, "characters": corpus.characters, "sha256": corpus.sha256, "error": None}
    except tr.DataError as error:  # a Python without its own sources still has the other corpora
        return {**facts, "characters": None, "sha256": None, "error": str(error)}


def _foreign(row: PluginRow) -> dict[str, Any]:
    """The corpus of a plugin as its metadata say: to measure it would be to import and read it."""
    summary = f"of {row.owner}; data stats --corpus {row.name} reads it"
    return {"name": row.name, "summary": summary, "characters": None, "sha256": None, "error": row.error}


@data.command("stats", cls=Command)
@click.argument("text", nargs=-1, metavar="[TEXT]...")
@click.option(
    "--top",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    metavar="N",
    help="how many of the most frequent symbols to show",
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@settings("data.corpus", "data.between", "data.tokens", "data.min_count", "data.encoding", "data.errors")
@common("config", "plugin")
def stats(text: tuple[str, ...], top: int, as_json: bool) -> None:
    """Count characters and symbols of TEXT (files, folders, '-' for standard input), or of a corpus.

    A byte is b'\\xe9' in the table, and 0xe9 with --json.
    """
    settled = resolve(text=text)
    check_text_options(settled)
    config = settled.run.data
    with aside():
        load_plugins()
        dataset = whole_text(config)
    found = tr.text_statistics(dataset, top)
    if as_json:
        frequent = [[json_name(symbol, found.kind), count] for symbol, count in found.frequent]
        emit_json({**dataclasses.asdict(found), "frequent": frequent})
        return
    for name, value in [
        ("text", found.source),
        ("characters", number(found.characters)),
        (f"symbols ({found.kind})", number(found.tokens)),
        ("vocabulary", f"{number(found.symbols)}, of which {number(found.distinct)} occur"),
        (
            "entropy",
            f"{found.entropy:.4f} bits per symbol ({found.entropy * math.log(2):.4f} nats): the loss of a "
            "model that knows frequencies alone",
        ),
        ("sha256", found.sha256),
    ]:
        emit(f"{name:<16} {value}")
    if top:
        emit()
        table(
            ["symbol", "count", "share"],
            [
                [symbol_name(symbol, found.kind), number(count), f"{count / found.tokens:.2%}"]
                for symbol, count in found.frequent
            ],
            numbers=[1, 2],
        )
