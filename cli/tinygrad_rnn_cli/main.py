"""The program: finds a command by name, runs it, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli import blas, console
from tinygrad_rnn_cli.options import COMMON, GIVEN, HELP, PREFIX, load_plugins, plugin_options, screen_options

if TYPE_CHECKING:
    from tinygrad_rnn import PluginRow

PROGRAM = "tinygrad-rnn"

# command -> where it is, and its line of --help. A module is imported when its command is used: none of them imports
# NumPy, rich or a plugin before it runs, but even a dozen small ones would make --help wait.
COMMANDS = {
    "demo": ("demo:demo", "the whole story in some 15 seconds: start here"),
    "train": ("train:train", "train a model on a text, into a run folder"),
    "resume": ("resume:resume", "continue a run exactly where it stopped"),
    "sample": ("sample:sample", "let a trained model write"),
    "eval": ("evaluate:evaluate", "how well a model predicts a text"),
    "diagnose": ("diagnose:diagnose", "look inside: how far back do gradients reach?"),
    "cells": ("cells:cells", "recurrent cells: list, explain, check, time and begin them"),
    "data": ("data:data", "texts to train on: list them, count one"),
    "plugins": ("plugins:plugins", "everything that can be plugged in: list it, find what is broken"),
    "inspect": ("inspect_run:inspect_run", "what a run is made from"),
    "plot": ("plot:plot", "curves of a run"),
    "export": ("export:export", "a trained model as a file for other programs"),
    "import": ("import_torch:imports", "a run made of weights that another program trained"),
    "doctor": ("doctor:doctor", "check this machine, and what would make it faster"),
}

OK, ERROR, USAGE, CHECK_FAILED, DIVERGED, INTERRUPTED = 0, 1, 2, 3, 4, 128 + signal.SIGINT
READER_GONE = 128 + 13  # SIGPIPE, which ends other tools at once; Windows has no name for it


class Group(click.Group):
    """A group that offers the nearest name for an unknown command."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = HELP
        return option

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        unknown = self.get_command(ctx, args[0]) is None and not args[0].startswith("-")
        if unknown and not ctx.resilient_parsing:  # which means that a shell asks for completions
            raise click.UsageError(f"no command {args[0]!r}{tr.nearest(args[0], self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)


class Program(Group):
    """The group of all commands, loaded by name, with our exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *(row.name for row in plugin_commands(ctx) if row.error is None)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return _plugin_command(ctx, cmd_name)
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"tinygrad_rnn_cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])
        write_plugins(formatter, plugin_commands(ctx))

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _quiet_without_reader():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _quiet_without_reader():
                return super().invoke(ctx)
        except Exception as error:
            name = ctx.invoked_subcommand
            if name is None or name in COMMANDS or isinstance(error, _CLICKS) or _expected(error, ()) is not None:
                raise
            command = tr.load_plugin(tr.COMMANDS, name).value  # the author's fault, and no bug of ours
            raise tr.author_error(f"command {name!r}", command, error) from error

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, *rest: Any, **extra: Any
    ) -> NoReturn:
        arguments = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        console.fresh_screen()
        try:
            code = super().main(arguments, PROGRAM, *rest, **extra)
            sys.stdout.flush()  # while a closed pipe can still be caught
        except Exception as error:
            code = report(error, arguments)
        except KeyboardInterrupt:
            code = report(click.Abort(), arguments)
        sys.exit(code if isinstance(code, int) else OK)


@contextlib.contextmanager
def _quiet_without_reader() -> Iterator[None]:
    """Exit with 141 when the reader of the output has gone; click would exit with 1."""
    try:
        yield
    except BrokenPipeError as error:
        console.forget(sys.stdout)  # the interpreter's last flush must not complain
        raise click.exceptions.Exit(READER_GONE) from error


_CLICKS = (click.exceptions.Exit, click.Abort)  # no errors, but how click ends a program


def plugin_commands(ctx: click.Context) -> list[PluginRow]:
    """The commands of plugins, from metadata alone. A built-in one keeps its name."""
    found = ctx.find_root().meta.get(GIVEN)
    off = os.environ.get(f"{PREFIX}NO_PLUGINS", "").lower() in ("1", "true", "yes", "on")  # --help may come first
    rows = tr.available_plugins(tr.COMMANDS, third_party=not off and (found is None or found.third_party))
    return beside(COMMANDS, rows)


def write_plugins(formatter: click.HelpFormatter, rows: Sequence[PluginRow]) -> None:
    """The section of a help page for commands that plugins bring."""
    if rows:
        with formatter.section("Commands of plugins"):
            formatter.write_dl([(row.name, row.error or f"of {row.owner}") for row in rows])


def beside(own: Collection[str], rows: Sequence[PluginRow]) -> list[PluginRow]:
    """The rows of plugins; where one has the name of a built-in, which wins, it says so."""
    taken = "what is built in has this name, and wins; {} has to rename its own"
    return [dataclasses.replace(row, error=taken.format(row.owner)) if row.name in own else row for row in rows]


def _plugin_command(ctx: click.Context, name: str) -> click.Command | None:
    """The command `name` of a plugin, imported; None where there is none, and while a shell completes words."""
    if ctx.resilient_parsing:
        return None
    load_plugins()
    if name not in {row.name for row in plugin_commands(ctx)}:
        return None
    command: click.Command = tr.load_plugin(tr.COMMANDS, name).value
    return command


def report(error: Exception, arguments: Sequence[str]) -> int:
    """Say what went wrong, in one line (with its traceback under -vv; a bug always has one), and the exit code."""
    if isinstance(error, BrokenPipeError):
        console.forget(sys.stdout)
        return READER_GONE
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.Abort):
        console.fail("interrupted")
        return int(INTERRUPTED)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return USAGE
    told = _expected(error, arguments)
    if told is None:
        traceback.print_exception(error)
        console.fail(f"this is a bug in {PROGRAM} {tr.__version__}: please report it with the lines above")
        return ERROR
    if _wants_traceback(arguments):
        traceback.print_exception(error)
    message, code = told
    console.fail(message)
    return code


def _expected(error: Exception, arguments: Sequence[str]) -> tuple[str, int] | None:
    """The line and the code of an error that is not ours; None for a bug."""
    if isinstance(error, click.ClickException):
        return _usage(error, arguments), error.exit_code
    if isinstance(error, tr.NonFiniteError):
        return str(error), DIVERGED
    if isinstance(error, tr.InputError):
        return str(error), USAGE
    if isinstance(error, tr.TinygradRNNError):
        return str(error), ERROR
    if isinstance(error, MemoryError):
        return f"not enough memory ({error or 'no size given'}); lower --hidden, --batch, --seq-len or --layers", ERROR
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", ERROR
    return None


def _usage(error: click.ClickException, arguments: Sequence[str]) -> str:
    """click's own errors in our style: the flag first, the nearest name, no usage block."""
    page = ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        page = f"; see {error.ctx.command_path} --help"
    if isinstance(error, click.NoSuchOption):
        written = _as_written(error.option_name, arguments)
        return f"no option {written}{_near_option(written, error.ctx) or page}"
    if isinstance(error, click.MissingParameter):
        what = error.param.make_metavar(error.ctx) if error.param is not None and error.ctx is not None else "argument"
        return f"missing {what}{page}"
    if isinstance(error, click.BadParameter) and error.param is not None:
        names = error.param.opts if isinstance(error.param, click.Option) else [error.param.human_readable_name]
        found = error.ctx.meta.get(GIVEN) if error.ctx is not None else None
        name = str(error.param.envvar) if found and error.param.name in found.from_environment else names[0]
        return f"{name}: {error.message}"
    text = error.format_message()
    if isinstance(error, click.BadOptionUsage) or text.startswith(("Missing ", "Got unexpected ")):  # click's own words
        return f"{text[:1].lower()}{text[1:]}".removesuffix(".") + page
    return text


def _as_written(name: str, arguments: Sequence[str]) -> str:
    """The option as the user typed it: for -rnn_siz click names only its first letter."""
    if name.startswith("--") or len(name) != 2:
        return name
    words = [arg for arg in arguments if arg.startswith("-") and not arg.startswith("--") and len(arg) > 2]
    longer = [arg for arg in words if arg.startswith(name)] or [arg for arg in words if name[1] in arg]  # as -verbos
    return longer[0].partition("=")[0] if longer else name


def _near_option(name: str, context: click.Context | None) -> str:
    """The nearest options, compared without their dashes, which all have in common; '' if none is near."""
    if context is None:
        return ""
    options = [param for param in context.command.get_params(context) if isinstance(param, click.Option)]
    known = {
        opt.lstrip("-"): opt
        for param in options
        for opt in (*param.opts, *param.secondary_opts)
        if not param.hidden or (not name.startswith("--") and not opt.startswith("--"))
    }
    close = difflib.get_close_matches(name.lstrip("-"), known, n=3, cutoff=0.6)
    return f"; did you mean {', '.join(known[word] for word in close)}?" if close else ""


def _wants_traceback(arguments: Sequence[str]) -> bool:
    return console.screen().verbose >= 2 or "-vv" in arguments or list(arguments).count("-v") >= 2


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(tr.__version__, "--version", message=f"{PROGRAM} %(version)s", help="print the version and stop")
def cli() -> None:
    """Train recurrent networks on text, sample from them, and see their gradients vanish.

    First: `tinygrad-rnn demo`. Then: `tinygrad-rnn train my.txt`, `sample`, `diagnose gradnorm`.

    Settings can also stand in the environment (--seq-len as TINYGRAD_RNN_SEQ_LEN) or in a file (--config).
    TINYGRAD_RNN_CELLS=lstm,mut1 leaves only these cells; so do _OPTIMIZERS, _CALLBACKS, _DIAGNOSTICS, _DATASETS and
    _COMMANDS for the other groups of plugins. Exit codes: 0 fine, 1 error, 2 usage, 3 a check failed, 4 diverged, 130
    interrupted, 141 the reader of the output is gone.
    """


cli.params += [*plugin_options(), *screen_options()]
for _option in cli.params:
    _option.__dict__.setdefault("section", COMMON)


def _standard_streams() -> None:
    """A shell may close them (`>&-`): read from and write into nothing then, rather than fail somewhere on the way.

    The first file opened would otherwise get their number, and with it whatever is printed by foreign code.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


def main() -> None:
    """The entry point of the program."""
    _standard_streams()
    blas.prepare()  # before a command imports NumPy
    if isinstance(sys.stdout, io.TextIOWrapper):  # a model may write what this terminal cannot
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_: console.warn(" ".join(str(message).split()))
    cli.main()


__all__ = ["COMMANDS", "Group", "cli", "main", "report"]
