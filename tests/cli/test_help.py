"""Help pages: quick, complete, and the same as docs/cli.md."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import tinygrad_rnn as tr
from tinygrad_rnn_cli.main import COMMANDS, cli
from tinygrad_rnn_cli.options import Flag
from tinygrad_rnn_cli.reference import reference

ROOT = Path(__file__).resolve().parents[2]
NARROW = frozenset({"numpy", "rich", "matplotlib", "safetensors", "tinygrad_rnn_cells"})


def commands(
    command: click.Command = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, (*path, name))


EVERY = list(commands())


@pytest.mark.parametrize("path", [path for path, _ in EVERY], ids=" ".join)
def test_every_command_has_a_help_page(path: tuple[str, ...], invoke: Any) -> None:
    for flag in ("--help", "-h"):
        done = invoke([*path, flag])
        assert done.exit_code == 0
        assert done.stdout.startswith("Usage: ")
        assert done.stderr == ""


def test_every_option_says_what_it_does_and_settings_their_default() -> None:
    for path, command in EVERY:
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.help, f"{' '.join(path)} {option.opts}"
                if isinstance(option, Flag) and option.key and not option.multiple:
                    assert option.shown, f"{' '.join(path)} {option.opts} shows no default"


def test_train_offers_every_field_of_the_configuration() -> None:
    train = dict(EVERY)[("train",)]
    keys = {option.key for option in train.params if isinstance(option, Flag) and not option.hidden}
    fields = {f"{section}.{f.name}" for section, cls in tr.SECTIONS.items() for f in dataclasses.fields(cls)}
    assert fields - keys == {"data.text"}  # an argument


def test_defaults_on_the_page_are_those_of_the_library() -> None:
    options = {param.opts[0]: param for param in dict(EVERY)[("diagnose", "gradnorm")].params}
    defaults = inspect.signature(tr.gradnorm_over).parameters
    assert float(options["--horizon-eps"].shown) == tr.HORIZON_EPS == defaults["horizon_eps"].default
    assert tuple(options["--loss"].shown.split(",")) == defaults["losses"].default
    assert tuple(options["--wrt"].shown.split(",")) == defaults["wrt"].default
    assert str(tr.DataConfig().seq_len) in options["--steps"].shown


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["demo", "-h"], ["diagnose", "gradnorm", "-h"]])
def test_help_imports_neither_numpy_nor_rich_nor_a_plugin(words: list[str]) -> None:
    code = f"""
import json, sys
from tinygrad_rnn_cli.main import cli
try:
    cli.main({words!r})
except SystemExit as end:
    assert end.code == 0
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not NARROW & set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.slow
def test_help_takes_little_beside_click_itself() -> None:
    """CPU time, in turns, because machines are shared: on a quiet one 130 ms, of which click takes 50."""
    import resource

    def spent(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    times = [(spent("-c", "import click"), spent("-m", "tinygrad_rnn_cli", "--help")) for _ in range(7)]
    click, page = (min(each) for each in zip(*times, strict=True))
    assert page < 3.5 * click


def test_top_page_names_every_command(invoke: Any) -> None:
    page = invoke("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in page


def test_the_reference_page_is_up_to_date() -> None:
    page = ROOT / "docs" / "cli.md"
    if not page.parent.is_dir():
        pytest.skip("needs the source tree")
    assert page.read_text(encoding="utf-8") == reference(), "run: python -m tinygrad_rnn_cli.reference > docs/cli.md"


def test_a_group_alone_shows_its_page(invoke: Any) -> None:
    for words in ([], ["cells"], ["diagnose"]):
        done = invoke(words)
        assert done.exit_code == 2
        assert done.stderr.startswith("Usage: ") and done.stderr.count("\n") > 5


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("-v", "missing command; see tinygrad-rnn --help"),
        ("train --lr", "option '--lr' requires an argument"),
        ("sample a b", "got unexpected extra argument (b); see tinygrad-rnn sample --help"),
        ("foo", "no command 'foo'; known: cells, data"),
        ("trian", "no command 'trian'; did you mean train?"),
        ("cells info", "missing NAME; see tinygrad-rnn cells info --help"),
        ("train --no-anomali", "no option --no-anomali; did you mean --no-anomaly, --anomaly?"),
    ],
)
def test_words_that_do_not_parse(invoke: Any, args: str, line: str) -> None:
    done = invoke(args)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {line}") and done.stderr.count("\n") == 1


def test_version(invoke: Any) -> None:
    assert invoke("--version").stdout == f"tinygrad-rnn {tr.__version__}\n"


def test_completion_offers_cells_and_choices(program: Any) -> None:
    def offered(*words: str) -> str:
        return program(
            _TINYGRAD_RNN_CLI_COMPLETE="bash_complete",
            _TINYGRAD_RNN_COMPLETE="bash_complete",
            COMP_WORDS=" ".join(["tinygrad-rnn", *words]),
            COMP_CWORD=str(len(words)),
        ).stdout

    assert {f"plain,mut{k}" for k in (1, 2, 3)} <= set(offered("train", "--cell", "mut").split())
    assert "plain,adagrad" in offered("train", "--optim", "adag")
    assert "plain,gradnorm" in offered("diagnose", "gr")
