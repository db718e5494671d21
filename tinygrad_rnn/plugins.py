"""What all groups of plugins share: three ways in (entry point, `register`, a plugin file), one way out (`load`).

A group is data: its name, the word for it in messages, what is checked, and what the library itself offers. Listing
reads package metadata only; a module is imported when what it offers is used. This module imports no NumPy.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import re
import sys
import traceback
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, final

from tinygrad_rnn.errors import InputError, PluginError, TinygradRNNError, nearest, one_line

BUILT_IN = "tinygrad-rnn"
UNVERSIONED = "unversioned"  # a plugin of no distribution
PREFIX = "tinygrad_rnn"  # of entry point groups; in capitals, of environment variables

T = TypeVar("T")


@final
@dataclass(frozen=True)
class PluginGroup:
    """One kind of plugin.

    Its entry points stand under ``tinygrad_rnn.NAME``; ``TINYGRAD_RNN_NAME=a,b`` leaves only these two. `contract` is
    the place, written as that of an entry point, of a function that raises PluginError for an object of another kind.
    `built_in` maps the names of what the library offers itself to such places.
    """

    name: str
    word: str
    contract: str
    built_in: Mapping[str, str] = field(default_factory=dict)

    @property
    def variable(self) -> str:
        """The environment variable that restricts the group."""
        return f"{PREFIX}_{self.name}".upper()

    def check(self, value: Any) -> None:
        """Raise PluginError when `value` breaks the contract of the group."""
        metadata.EntryPoint(self.name, self.contract, PREFIX).load()(value)


CELLS = PluginGroup("cells", "cell", "tinygrad_rnn.cell:check_declaration")
OPTIMIZERS = PluginGroup(
    "optimizers",
    "optimiser",
    "tinygrad_rnn.optim:check_optimizer",
    {name.lower(): f"tinygrad_rnn.optim:{name}" for name in ("Adam", "AdamW", "RMSprop", "Adagrad", "SGD")},
)
CALLBACKS = PluginGroup(
    "callbacks",
    "callback",
    "tinygrad_rnn.train:check_callback",
    {"tensorboard": "tinygrad_rnn.tensorboard:tensorboard"},
)
DIAGNOSTICS = PluginGroup("diagnostics", "diagnostic", "tinygrad_rnn.diagnostics:check_diagnostic")
DATASETS = PluginGroup(
    "datasets",
    "corpus",
    "tinygrad_rnn.data.corpora:check_dataset",
    {name.replace("_", "-"): f"tinygrad_rnn.data.corpora:{name}" for name in ("hello", "python_docs", "python_source")},
)
COMMANDS = PluginGroup("commands", "command", "tinygrad_rnn.plugins:check_command")
GROUPS = (CELLS, OPTIMIZERS, CALLBACKS, DIAGNOSTICS, DATASETS, COMMANDS)


def _owner(distribution: str | None, version: str | None) -> str:
    return f"{distribution} {version}".removesuffix(f" {UNVERSIONED}")


@final
@dataclass(frozen=True)
class PluginIdentity:
    """Which code a plugin is: what a checkpoint stores and checks."""

    name: str
    distribution: str
    version: str
    source_sha256: str

    @property
    def owner(self) -> str:
        """The distribution, with its version where it has one."""
        return _owner(self.distribution, self.version)

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@final
@dataclass(frozen=True)
class PluginRow:
    """A plugin as the metadata describe it, without importing it; `error` says why it cannot be used."""

    name: str
    distribution: str
    version: str
    location: str
    error: str | None = None

    @property
    def owner(self) -> str:
        """The distribution, with its version where it has one."""
        return _owner(self.distribution, self.version)


@final
@dataclass(frozen=True)
class PluginEntry:
    """A plugin that was imported and checked."""

    value: Any
    identity: PluginIdentity


# Process-wide by nature: a decorator in one module has to be found from another. Keys are (group, name).
_registered: dict[tuple[str, str], PluginEntry] = {}


def name_of(value: Any) -> str:
    """The name of a plugin: its own, or that of a function, with hyphens."""
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else getattr(value, "__name__", "").replace("_", "-")


def register(group: PluginGroup, value: T) -> T:
    """Make a plugin known under its name, in this process.

    Raises PluginError when it breaks the contract of its group, or the name belongs to another one.
    """
    group.check(value)
    name, where = name_of(value), _where(value)
    _check_name(group, name)
    identity = PluginIdentity(name, f"file {Path(where).name}", UNVERSIONED, source_hash(value))
    known = _registered.get((group.name, name))
    if known is not None and (known.identity != identity or _written_as(known.value) != _written_as(value)):
        raise PluginError(
            f"{group.word} {name!r} is registered twice: by {_where(known.value)} and by {where}; rename one"
        )
    for row in _offers(group).get(name, ()):
        if row.location.partition(":")[0] == _module(value):
            return value  # a decorated object that its distribution names too: one plugin, known already
        raise PluginError(f"{group.word} {name!r} is registered twice: by {row.owner} and by {where}; rename one")
    _registered[group.name, name] = PluginEntry(value, identity)
    return value


def forget(group: PluginGroup, name: str) -> None:
    """Undo `register`: for tests."""
    _registered.pop((group.name, name), None)


def available(group: PluginGroup, *, third_party: bool = True, check: bool = False) -> list[PluginRow]:
    """Every known plugin of a group, the built-in ones first, from metadata alone.

    With `check` each is imported and its failure is its row's error; without `third_party` only the built-in
    ones are listed. Raises InputError when the environment variable of the group names one that does not exist.
    """
    rows = _rows(group)
    only = _only(group, rows)
    rows = [row for row in rows if (only is None or row.name in only) and (third_party or row.distribution == BUILT_IN)]
    if check:
        rows = [_checked(group, row) for row in rows]
    return sorted(rows, key=lambda row: (row.distribution != BUILT_IN, row.name))


def is_known(group: PluginGroup, name: str) -> bool:
    """Whether there is a plugin called `name`, be it left out by the environment."""
    return any(row.name == name for row in _rows(group))


def load(group: PluginGroup, name: str, *, third_party: bool = True) -> PluginEntry:
    """The plugin called `name`, imported and checked.

    Raises InputError for an unknown name (with the nearest) and one that the environment leaves out, PluginError when
    its module does not import, it breaks the contract of its group, or two distributions claim the name.
    """
    if not isinstance(name, str):
        raise InputError(f"{group.word}: expected a name, got {name!r}")
    everything = _rows(group)
    rows = [row for row in everything if third_party or row.distribution == BUILT_IN]
    only = _only(group, everything)
    if only is not None and name not in only and any(row.name == name for row in rows):
        raise InputError(f"{group.word} {name!r} is left out by {group.variable}={','.join(only)}; add it there")
    if (group.name, name) in _registered and third_party:
        return _registered[group.name, name]
    found = [row for row in rows if row.name == name]
    if not found:
        known = {row.name for row in rows if only is None or row.name in only}
        if name.endswith(".py"):
            raise InputError(
                f"no {group.word} {name!r}: expected a name, got a file; give --plugin {name}, and its name"
            )
        raise InputError(f"no {group.word} {name!r}{nearest(name, known)}")
    if len(found) > 1:
        owners = " and ".join(row.owner for row in found)
        raise PluginError(f"{group.word} {name!r} is offered by two distributions, {owners}; uninstall one")
    (row,) = found
    if metadata.EntryPoint.pattern.match(row.location) is None:
        raise PluginError(f"{group.word} {name!r} of {row.owner}: expected MODULE:NAME, got {row.location!r}")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a module prints when it is imported is nobody's product
            value = metadata.EntryPoint(name, row.location, f"{PREFIX}.{group.name}").load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises is that plugin's fault
        raise PluginError(
            f"{group.word} {name!r} of {row.owner} cannot be imported from {row.location}: {one_line(error)}"
        ) from error
    try:
        group.check(value)
    except PluginError as error:
        raise PluginError(f"{group.word} {name!r} of {row.owner}, {row.location}: {error}") from error
    if name_of(value) != name:
        what = "the class" if isinstance(value, type) else "it"
        raise PluginError(
            f"{group.word} {name!r} of {row.distribution}: expected {what} to be named like its entry point, got "
            f"{name_of(value)!r}"
        )
    _check_name(group, name)
    return PluginEntry(value, PluginIdentity(name, row.distribution, row.version, source_hash(value)))


def load_file(path: str | Path) -> list[PluginEntry]:
    """Run a Python file that registers plugins of any group; those that it registered.

    A file that is unchanged since it was loaded is not run again; a changed one replaces its plugins.
    Raises PluginError when the file is missing, does not run, or registers nothing.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise PluginError(f"plugin {path}: expected a Python file, got none there")
    source = path.read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    name = f"tinygrad_rnn_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    known = _of_module(name)
    if known and getattr(sys.modules.get(name), "__digest__", None) == digest:
        return known
    _forget_module(name)  # the file has changed since it was loaded
    module = types.ModuleType(name)
    module.__file__ = str(path)
    module.__dict__["__digest__"] = digest
    sys.modules[name] = module
    try:
        # Not by importlib: it may run cached bytecode of an older text, and would leave a __pycache__ beside the file.
        with contextlib.redirect_stdout(sys.stderr):
            exec(compile(source, str(path), "exec"), module.__dict__)
    except PluginError:
        _forget_module(name)
        raise
    except (Exception, SystemExit) as error:  # a stranger's file: any failure is one line that names it
        _forget_module(name)
        raise PluginError(f"plugin {path.name} cannot be run: {one_line(error)}") from error
    entries = _of_module(name)
    if not entries:
        raise PluginError(
            f"plugin {path.name}: expected at least one class under @register_cell (or another register_...), got none"
        )
    return entries


def is_name(text: str) -> bool:
    """Whether a plugin can be called `text`: on a command line, in the name of a folder, before a colon."""
    return re.fullmatch(r"[A-Za-z]\w*([.-]\w+)*", text) is not None


def source_hash(value: Any) -> str:
    """SHA-256 of the files in which a plugin is written: its own, and those of its package that it takes classes and
    functions from. Of its name where there is no file (an interactive session)."""
    paths = [path for module in _own_modules(_module(value)) if (path := _source_file(module)) is not None]
    if not paths:
        return hashlib.sha256(f"{_module(value)}.{getattr(value, '__qualname__', '')}".encode()).hexdigest()
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def check_identity(stored: Mapping[str, str], identity: PluginIdentity, word: str) -> str | None:
    """None when `identity` is the code that `stored` (from a checkpoint) names, else in words what differs."""
    if stored.get("source_sha256") == identity.source_sha256:
        return None
    was, is_now = _owner(stored.get("distribution"), stored.get("version")), identity.owner
    owner = is_now if was == is_now else f"then {was}, now {is_now}"
    return (
        f"the code of {word} {identity.name!r} ({owner}) has changed since this run was made; its source "
        f"{str(stored.get('source_sha256'))[:12]} is now {identity.source_sha256[:12]}"
    )


def check_class(cls: Any, base: type[Any], word: str, texts: tuple[str, ...]) -> None:
    """Raise PluginError when `cls` is no heir of `base`, or lacks one of the class attributes `texts`, a method or
    its own Options."""
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        raise PluginError(f"{word}: expected a subclass of tinygrad_rnn.{base.__name__}, got {cls!r}")
    where = f"{word} {getattr(cls, 'name', cls.__name__)!r}"
    for name in texts:
        if not isinstance(getattr(cls, name, None), str) or not getattr(cls, name).strip():
            raise PluginError(f"{where}: expected a text in the class attribute {name!r}, got none")
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        word = "method" if len(missing) == 1 else "methods"
        raise PluginError(f"{where}: expected the {word} {', '.join(missing)} to be written, got none")
    options: Any = getattr(cls, "Options", None)
    # Of its own: without the decorator an heir of Base.Options would have no fields, and not a word would be said.
    if "__dataclass_fields__" not in getattr(options, "__dict__", {}):
        raise PluginError(f"{where}: expected Options to be under @dataclass(frozen=True), got {options!r}")


def check_function(value: Any, word: str, arguments: tuple[str, ...]) -> None:
    """Raise PluginError when `value` is no documented function of these arguments; others need a default."""
    if not inspect.isfunction(value):
        raise PluginError(f"{word}: expected a function, got {value!r}")
    where = f"{word} {name_of(value)!r}"
    if not (value.__doc__ or "").strip():
        raise PluginError(f"{where}: expected a docstring, whose first line says what it is, got none")
    given = inspect.signature(value).parameters.values()
    by_place = tuple(p.name for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    if len(by_place) != len(arguments) or any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in given):
        raise PluginError(
            f"{where}: expected a function of ({', '.join(arguments)}), got {value.__name__}{inspect.signature(value)}"
        )


def by_author(what: str, value: Any, *args: Any, of: Any = None, **named: Any) -> Any:
    """Call `value`, which the author of a plugin wrote; `of` is the plugin, where that is another object.

    Whatever it raises becomes an `author_error`. An error of this library that the author's own line raises is meant
    for the user, and passes.
    """
    author = value if of is None else of
    try:
        return value(*args, **named)
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        if isinstance(error, TinygradRNNError) and last.filename == _file(author):
            raise
        raise author_error(what, author, error) from error


def author_error(what: str, author: Any, error: BaseException) -> PluginError:
    """`error` as that of the author of the plugin `author`: in one line, with the author's file and line."""
    return PluginError(f"{what}{author_line(author, error)}: {one_line(error)}")


def author_line(author: Any, error: BaseException) -> str:
    """`` (file:line)``, the last line of the plugin `author` that `error` passed; '' where there is no file."""
    file = _file(author)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(file).name}:{lines[-1]})" if file and lines else ""


# ------------------------------------------------------------------------------------------------- commands


def check_command(value: Any) -> None:
    """Raise PluginError when `value` is no command of click. It is not imported here: the library does without it."""
    if isinstance(value, type) or not all(hasattr(value, part) for part in ("main", "invoke", "params")):
        raise PluginError(f"command: expected a command made by @click.command, got {value!r}")
    if not isinstance(value.name, str):
        raise PluginError("command: expected a name, as in @click.command('NAME'), got none")


def register_command(command: T) -> T:
    """Decorator above @click.command: make it a command of the program, in this process.

    Raises PluginError when it is none, or the name belongs to another one.
    """
    return register(COMMANDS, command)


# ------------------------------------------------------------------------------------------------ internals


def _rows(group: PluginGroup) -> list[PluginRow]:
    rows = []
    for offers in _offers(group).values():
        owners = " and ".join(row.owner for row in offers)
        error = f"two distributions offer it: {owners}; uninstall one" if len(offers) > 1 else None
        rows += [replace(row, error=error) for row in offers]
    for (kind, name), entry in _registered.items():
        if kind == group.name:
            rows.append(PluginRow(name, entry.identity.distribution, entry.identity.version, _module(entry.value)))
    return rows


def _offers(group: PluginGroup) -> dict[str, list[PluginRow]]:
    """What the library and the installed distributions offer, by name."""
    found: dict[str, dict[tuple[str, str], PluginRow]] = {}
    if group.built_in:
        version = _library_version()
        for name, place in group.built_in.items():
            found[name] = {(BUILT_IN, place): PluginRow(name, BUILT_IN, version, place)}
    for point in metadata.entry_points(group=f"{PREFIX}.{group.name}"):
        row = PluginRow(point.name, *_distribution(point), point.value)
        # an editable install can show the same distribution twice
        found.setdefault(row.name, {}).setdefault((row.distribution, row.location), row)
    return {name: list(rows.values()) for name, rows in found.items()}


def _library_version() -> str:
    try:
        return metadata.version(BUILT_IN)
    except metadata.PackageNotFoundError:
        return "unknown"


def _distribution(point: metadata.EntryPoint) -> tuple[str, str]:
    # A half-removed distribution may have left its entry points without METADATA, or without a name in it.
    described = point.dist.metadata if point.dist is not None else None
    name, version = (
        described[key] if described is not None and key in described else None for key in ("Name", "Version")
    )
    return (name or "unknown distribution").replace("_", "-").lower(), version or "unknown"


def _only(group: PluginGroup, rows: list[PluginRow]) -> list[str] | None:
    """The names that the environment leaves of a group; None where it says nothing."""
    text = os.environ.get(group.variable, "")
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = {row.name for row in rows}
    for name in names:
        if name not in known:
            raise InputError(f"{group.variable}={text}: no {group.word} {name!r}{nearest(name, known)}")
    return names or None


def _checked(group: PluginGroup, row: PluginRow) -> PluginRow:
    if row.error is None:
        try:
            load(group, row.name)
        except (PluginError, InputError) as error:
            return replace(row, error=str(error))
    return row


def _check_name(group: PluginGroup, name: str) -> None:
    if not is_name(name):
        raise PluginError(
            f"{group.word} {name!r}: expected a name of letters and digits, with . _ - inside, as for a file"
        )


def _author(value: Any) -> Any:
    """What the author wrote: a command is an object of click's around a function."""
    return getattr(value, "callback", None) or value


def _written_as(value: Any) -> str | None:
    return getattr(_author(value), "__qualname__", None)


def _module(value: Any) -> str:
    """The module in which the author wrote a plugin."""
    author = _author(value)
    return getattr(author, "__module__", None) or type(author).__module__


def _file(value: Any) -> str | None:
    file: str | None = getattr(sys.modules.get(_module(value)), "__file__", None)
    return file


def _where(value: Any) -> str:
    return _file(value) or _module(value)


def _source_file(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if file is not None and Path(file).is_file() else None


def _own_modules(module: str) -> list[str]:
    """`module`, then, by name, the modules of the same package whose objects it reaches."""
    package = module.partition(".")[0]
    if package == PREFIX:
        return [module]  # it reaches nearly all of the library, of which a run stores the version
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        found.add(name)
        names = getattr(sys.modules.get(name), "__dict__", {})
        used = {getattr(value, "__module__", None) for value in list(names.values())}
        waiting += [
            other
            for other in used - found
            if isinstance(other, str) and other.partition(".")[0] == package and other in sys.modules
        ]
    return [module, *sorted(found - {module})]


def _of_module(module: str) -> list[PluginEntry]:
    return [entry for entry in _registered.values() if _module(entry.value) == module]


def _forget_module(module: str) -> None:
    sys.modules.pop(module, None)
    for key in [key for key, entry in _registered.items() if _module(entry.value) == module]:
        del _registered[key]
