"""docs/cli.md, written from the help pages: ``python -m tinygrad_rnn_cli.reference > docs/cli.md``."""

from __future__ import annotations

from collections.abc import Iterator

import click

from tinygrad_rnn_cli import aliases
from tinygrad_rnn_cli.main import PROGRAM, cli
from tinygrad_rnn_cli.options import GIVEN, Given, option_names

WIDTH = 100
INTRODUCTION = """\
# Command line

<!-- Written by `python -m tinygrad_rnn_cli.reference > docs/cli.md`: change the help texts, not this file. -->

The program is `tinygrad-rnn`, also `python -m tinygrad_rnn_cli`.

* **stdout** carries the product: text, a table, one JSON object with `--json`, the run folder of `train`. Progress,
  advice and errors go to stderr. On a terminal there are colours and a live display; elsewhere plain lines.
* **A setting** is looked for in this order: flag, environment, `--set`, `--config`, `--recipe`, the run's checkpoint,
  default. `--show-config` prints each with its origin, as TOML that `--config` reads back. A setting stands in the
  environment under its name: `--seq-len` is `TINYGRAD_RNN_SEQ_LEN`.
* **Exit codes**: 0 fine; 1 an error (a file, a run, a plugin); 2 usage (a flag or a value that cannot be meant);
  3 a check failed (`--fail-on`, `doctor`); 4 training diverged; 130 and 143 interrupted by SIGINT and SIGTERM
  (a checkpoint is written first; a second signal stops at once); 141 the reader of the output has gone.
* **An option that does nothing** beside the others is a usage error; one that comes to nothing only because the run is
  short, or that a later one overrides, is a line on stderr.
* **An error** is one line. `-vv` adds the traceback; a bug always keeps its own.
"""


def pages(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """(the command with its path, its help page) of `command` and everything below it, in order."""
    context = click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    context.meta[GIVEN] = Given(third_party=False)  # the page is not of the machine that it is written on
    with context:
        yield context.command_path, command.get_help(context)
        if isinstance(command, click.Group):
            for word in command.list_commands(context):
                child = command.get_command(context, word)
                if child is not None and not child.hidden:
                    yield from pages(child, word, context)


def old_names() -> Iterator[str]:
    """Tables of the flags of char-rnn, torch-rnn and char-rnn-tensorflow."""
    yield "## Flags of char-rnn, torch-rnn and char-rnn-tensorflow\n"
    yield "They are understood beside ours, most with one dash or two; where one is ambiguous the program says what it"
    yield "took it for."
    ours = option_names()
    for command, names in aliases.NAMES.items():
        yield f"\n| `{PROGRAM} {command}` | here |\n|---|---|"
        for name in names:
            if name.startswith("--") and name[1:] in names and aliases.same(command, name, name[1:]):
                continue
            example, meaning = aliases.explain(command, name)
            yield f"| `{example}` | {f'`{ours[meaning]}`' if meaning in ours else meaning} |"


def reference() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for path, page in pages(cli, PROGRAM):
        parts.append(f"## {path}\n\n```text\n{page.rstrip()}\n```\n")
    parts.append("\n".join(old_names()) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(reference(), end="")
