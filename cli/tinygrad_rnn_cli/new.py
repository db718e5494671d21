"""``cells new``: a cell that works, in a package or a file of its own, to be turned into the one of the paper."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import emit, note
from tinygrad_rnn_cli.options import Command, common, load_plugins

WIDTH = 88  # of what is written: any formatter leaves it as it is, up to names of these lengths
LONGEST_NAME = 18
LONGEST_STATE = 8
MOST_STATES = 4


def _name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A name that may also stand in the names of a module, a distribution and a class."""
    if re.fullmatch(r"[a-z]([a-z0-9_]*[a-z0-9])?", value) and not keyword.iskeyword(value):
        if len(value) <= LONGEST_NAME:
            return value
        raise click.BadParameter(
            f"expected at most {LONGEST_NAME} characters, got {value!r} ({len(value)})", ctx, param
        )
    expected = "expected a Python name of small letters, digits and inner underscores, and no keyword"
    near = re.sub(r"[^a-z0-9]+", "_", value.lower()).strip("_0123456789")
    hint = f"; did you mean {near}?" if near and not keyword.iskeyword(near) else ""
    raise click.BadParameter(f"{expected}, got {value!r}{hint}", ctx, param)


def _states(ctx: click.Context, param: click.Parameter, value: str) -> list[str]:
    states = [text.strip() for text in value.split(",")]
    for state in states:
        if not (state.isascii() and state.isidentifier() and len(state) <= LONGEST_STATE) or keyword.iskeyword(state):
            expected = f"expected Python names of at most {LONGEST_STATE} letters with commas between, as in h,c"
            raise click.BadParameter(f"{expected}, got {state!r}", ctx, param)
    if len(states) > MOST_STATES or len(set(states)) < len(states):
        expected = f"expected at most {MOST_STATES} different names"
        raise click.BadParameter(f"{expected}, got {value!r}", ctx, param)
    for state in states:
        if state in ("x", "outputs", "loss", "slope") or state.startswith(("W_", "b_")):
            expected = "expected a name that is neither x, outputs, loss or slope nor one of a parameter, as W_x or b_n"
            raise click.BadParameter(f"{expected}, got {state!r}", ctx, param)
    return states


@click.command("new", cls=Command)
@click.argument("name", callback=_name)
@click.option(
    "--states",
    default="h",
    show_default=True,
    metavar="NAME,...",
    callback=_states,
    help="what the cell carries from step to step; the first one is its output",
)
@click.option(
    "--package/--file",
    "package",
    default=True,
    help="a package to install, with tests, or one file for --plugin  [default: package]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="folder that the files go into  [default: tinygrad-rnn-NAME; with --file the current one]",
)
@common("plugin")
def new(name: str, states: list[str], package: bool, out: Path | None) -> None:
    """Begin a cell: write a package, or one file, with a cell NAME that works, to be turned into one's own.

    It is a gated update, which passes `cells check` as it is. TODO marks every place to edit. A package has its
    pyproject.toml, README and tests as well. Nothing that exists is overwritten.
    """
    load_plugins()
    for row in tr.available_cells():
        if row.name == name:
            raise click.UsageError(f"NAME: there is a cell {name!r}, of {row.owner}; expected another name")
    if package:
        module = f"tinygrad_rnn_{name}"
        if importlib.util.find_spec(module) is not None:
            raise click.UsageError(f"NAME: there is a module {module} in this environment; expected another name")
        texts = _package(name, states)
        folder = out or Path(f"tinygrad-rnn-{name.replace('_', '-')}")
    else:
        if name in sys.stdlib_module_names:
            raise click.UsageError(f"NAME: {name}.py would hide Python's own module {name}; expected another name")
        texts = {f"{name}.py": _cell(name, states, decorated=True)}
        folder = out or Path()
    try:
        if package:
            _write_folder(folder, texts)
        else:
            _write_file(folder / f"{name}.py", texts[f"{name}.py"])
    except OSError as error:
        raise tr.FileError(f"cannot write into {folder}: {error.strerror or error}; expected another --out") from error
    for path in texts:
        emit(str(folder / path))
    note("edit what says TODO; next:")
    for line in _next_commands(name, folder, package):
        note(f"  {line}")


def _next_commands(name: str, folder: Path, package: bool) -> list[str]:
    if package:
        where = str(folder) if folder.is_absolute() or folder == Path() else f"./{folder}"
        install, plugin = [f"pip install -e {shlex.quote(f'{where}[test]')}"], ""
        check = f"tinygrad-rnn cells check {name}"
    else:
        path = shlex.quote(str(folder / f"{name}.py"))
        install, plugin = [], f" --plugin {path}"
        check = f"tinygrad-rnn cells check {path}"
    train = f"tinygrad-rnn train --corpus hello --cell {name}{plugin} --hidden 24 --layers 1 --steps 200"
    look = f"tinygrad-rnn diagnose gradnorm --cell {name} --cell lstm{plugin}"
    return [*install, check, train, look][:3]


# ------------------------------------------------------------------------------------------------ texts


def _package(name: str, states: Sequence[str]) -> dict[str, str]:
    """The files of the package, by their paths in it."""
    module = f"tinygrad_rnn_{name}"
    facts = {
        "name": name,
        "module": module,
        "distribution": module.replace("_", "-"),
        "cls": _class(name),
        "memories": repr(_memories(states)).replace("'", '"'),
        "indented": "\n".join(f"    {line}" for line in _equation(states)),
    }
    return {
        "pyproject.toml": _filled("pyproject", facts),
        "README.md": _filled("readme", facts),
        f"{module}/__init__.py": f'"""A cell of tinygrad_rnn, in {name}.py."""\n',
        f"{module}/{name}.py": _cell(name, states),
        f"{module}/py.typed": "",
        f"tests/test_{name}.py": _filled("test", facts),
    }


def _filled(template: str, facts: Mapping[str, str]) -> str:
    text = resources.files(__package__).joinpath("scaffold", f"{template}.txt").read_text("utf-8")
    return Template(text).substitute(facts)


def _class(name: str) -> str:
    """CamelCase with a last word that keeps it apart from what the module imports: State, Any."""
    return "".join(word.capitalize() for word in name.split("_")) + "Cell"


def _memories(states: Sequence[str]) -> list[str]:
    """The states that have a gate each; the output is read from them, where it is not the only state."""
    return list(states[1:] or states)


def _numbers(states: Sequence[str]) -> dict[str, str]:
    """What tells the gates of one memory from those of the next: nothing where there is one."""
    memories = _memories(states)
    return {memory: str(i) if len(memories) > 1 else "" for i, memory in enumerate(memories, 1)}


def _letters(states: Sequence[str]) -> dict[str, str]:
    """The letters of the update gate z, the new value n and the output gate o: others where a state has them."""
    taken = {state.rstrip("0123456789") for state in states}
    letters: dict[str, str] = {}
    for gate in "zno":
        letters[gate] = next(letter for letter in gate + "gfrqkai" if letter not in {*taken, *letters.values()})
    return letters


def _gates(states: Sequence[str]) -> dict[str, str]:
    """The z and n of every memory and the o of the output by their names, and which of the three each is."""
    letters, numbers = _letters(states), _numbers(states).values()
    gates = {f"{letters[gate]}{number}": gate for number in numbers for gate in "zn"}
    return gates | ({letters["o"]: "o"} if len(states) > 1 else {})


def _recurrent(states: Sequence[str], gate: str) -> str:
    """The matrix for the output, named after it as far as it has a letter's name."""
    return f"W_{states[0] if len(states[0]) == 1 else 'h'}{gate}"


def _equation(states: Sequence[str]) -> list[str]:
    h = states[0]
    z, n, o = _letters(states).values()
    lines = []
    for gate, kind in _gates(states).items():
        function = "tanh" if kind == "n" else "sigmoid"
        lines.append(f"{gate} = {function}(x W_x{gate} + {h} {_recurrent(states, gate)} + b_{gate})")
    lines += [f"{memory}' = (1 - {z}{i}) * {memory} + {z}{i} * {n}{i}" for memory, i in _numbers(states).items()]
    if len(states) > 1:
        lines.append(f"{h}' = {o} * tanh({' + '.join(memory + chr(39) for memory in states[1:])})")
    return lines


def _cell(name: str, states: Sequence[str], *, decorated: bool = False) -> str:
    """The module of the cell; `decorated` where no entry point names it."""
    imports = ["Cell", "Param", "State", "bias", "input_matrix", "ops", "recurrent_matrix", "tap"]
    facts = {
        "name": name,
        "cls": _class(name),
        "decorator": "@register_cell\n" if decorated else "",
        "update": _letters(states)["z"],
        "imports": ",\n    ".join(sorted([*imports, "register_cell"] if decorated else imports)),
        "equation": "\n".join(_equation(states)),
        "state": _dict({state: "State((self.H,))" for state in states}),
        "params": _dict(_params(states), exploded=True),
        "step": "\n        ".join(_gate_lines(states, 'tap("{0}", ops.{1}({2}))') + _new_lines(states, "1.0")),
        "new": _dict(_new_states(states, "ops.tanh", "1.0")),
        "formula": "\n        ".join(_gate_lines(states, "{1}({2})", tanh="np.tanh") + _new_lines(states, "1")),
        "result": _dict(_new_states(states, "np.tanh", "1")),
    }
    return _filled("cell", facts)


def _params(states: Sequence[str]) -> dict[str, str]:
    specs = {}
    for gate, kind in _gates(states).items():
        specs[f"W_x{gate}"] = "input_matrix(self.I, self.H)"
        specs[_recurrent(states, gate)] = "recurrent_matrix(self.H)"
        specs[f"b_{gate}"] = "bias(self.H, self.options.gate_bias)" if kind == "z" else "bias(self.H)"
    return specs


def _gate_lines(states: Sequence[str], form: str, tanh: str = "tanh") -> list[str]:
    """A line for every gate; `form` has places for its name, its function and the sum in it."""
    lines = []
    for gate, kind in _gates(states).items():
        total = f"x @ p.W_x{gate} + s.{states[0]} @ p.{_recurrent(states, gate)} + p.b_{gate}"
        lines.append(f"{gate} = " + form.format(gate, tanh if kind == "n" else "sigmoid", total))
    return lines


def _updates(states: Sequence[str], one: str) -> dict[str, str]:
    z, n, _ = _letters(states).values()
    return {name: f"({one} - {z}{i}) * s.{name} + {z}{i} * {n}{i}" for name, i in _numbers(states).items()}


def _new_lines(states: Sequence[str], one: str) -> list[str]:
    """The new memories, where the output is computed from them."""
    return [f"new_{name} = {value}" for name, value in _updates(states, one).items() if len(states) > 1]


def _new_states(states: Sequence[str], tanh: str, one: str) -> dict[str, str]:
    output, *memories = states
    if not memories:
        return _updates(states, one)
    total = " + ".join(f"new_{memory}" for memory in memories)
    return {output: f"{_letters(states)['o']} * {tanh}({total})", **{memory: f"new_{memory}" for memory in memories}}


def _dict(entries: Mapping[str, str], *, exploded: bool = False) -> str:
    """A dict in Python, behind ``return`` in a method, laid out as ruff does."""
    items = [f'"{key}": {value}' for key, value in entries.items()]
    line = "{" + ", ".join(items) + "}"
    if not exploded and len("        return ") + len(line) <= WIDTH:
        return line
    return "{\n" + "".join(f"            {item},\n" for item in items) + "        }"


# ---------------------------------------------------------------------------------------------- writing


def _write_folder(folder: Path, texts: Mapping[str, str]) -> None:
    """All files or none: they are written beside the folder, which then takes its name."""
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise click.UsageError(f"{folder} exists already; expected --out with a folder that is new or empty")
    parent = folder.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cells-new-", dir=parent) as scratch:
        made = Path(scratch, "made")  # not the scratch folder itself, which nobody else may read
        for path, text in texts.items():
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            (made / path).write_text(text, encoding="utf-8", newline="\n")
        if folder.is_dir():  # empty, and perhaps the one that the shell stands in
            for entry in list(made.iterdir()):
                entry.rename(folder / entry.name)
        else:
            made.rename(folder)


def _write_file(path: Path, text: str) -> None:
    if os.path.lexists(path):
        raise click.UsageError(f"{path} exists already; expected another NAME, or --out with another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cells-new-", dir=path.parent) as scratch:
        made = Path(scratch, path.name)
        made.write_text(text, encoding="utf-8", newline="\n")
        made.rename(path)
