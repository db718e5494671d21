"""The registry of cells: three ways in (entry point, `register_cell`, a plugin file), one way out (`load_cell`).

Listing reads package metadata only; a module is imported when its cell is used. The library itself knows
no cell: the built-in ones come through the same entry points as everybody's.
"""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from tinygrad_rnn.cell import Cell, check_declaration
from tinygrad_rnn.errors import InputError, PluginError, nearest

ENTRY_POINTS = "tinygrad_rnn.cells"
BUILT_IN = "tinygrad-rnn"


@dataclass(frozen=True)
class CellIdentity:
    """Which code a cell is: what a checkpoint stores and checks."""

    name: str
    distribution: str
    version: str
    source_sha256: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class CellRow:
    """A cell as the metadata describe it, without importing it; `error` says why it cannot be used."""

    name: str
    distribution: str
    version: str
    location: str
    error: str | None = None


@dataclass(frozen=True)
class CellEntry:
    """A cell that was imported and checked."""

    cls: type[Cell]
    identity: CellIdentity


# Process-wide by nature: a decorator in one module has to be found from another.
_registered: dict[str, CellEntry] = {}

C = TypeVar("C", bound=type[Cell])


def register_cell(cls: C) -> C:
    """Class decorator: make a cell known under its name, in this process.

    Raises PluginError when the declaration is incomplete or the name belongs to another cell.
    """
    check_declaration(cls)
    where = _where(cls)
    entry = CellEntry(cls, CellIdentity(cls.name, f"file {Path(where).name}", "unversioned", source_hash(cls)))
    known = _registered.get(cls.name)
    if known is not None and known.identity != entry.identity:
        raise PluginError(f"cell {cls.name!r} is registered twice: by {_where(known.cls)} and by {where}; rename one")
    for row in _rows():
        if row.name == cls.name:
            if row.location.partition(":")[0] == cls.__module__:
                return cls  # a decorated class that its distribution names too: one cell, known already
            raise PluginError(
                f"cell {cls.name!r} is registered twice: by {row.distribution} {row.version} and by {where}; rename one"
            )
    _registered[cls.name] = entry
    return cls


def forget_cell(name: str) -> None:
    """Undo `register_cell`: for tests and notebooks."""
    _registered.pop(name, None)


def _where(cls: type[Any]) -> str:
    return getattr(sys.modules.get(cls.__module__), "__file__", None) or cls.__module__


def source_hash(cls: type[Any]) -> str:
    """SHA-256 of the files in which `cls` is written: its own, and those of its package that it takes classes and
    functions from. Of its name where there is no file (an interactive session)."""
    paths = [path for module in _own_modules(cls) if (path := _source_file(module)) is not None]
    if not paths:
        return hashlib.sha256(f"{cls.__module__}.{cls.__qualname__}".encode()).hexdigest()
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def _source_file(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if file is not None and Path(file).is_file() else None


def _own_modules(cls: type[Any]) -> list[str]:
    """The module of `cls`, then, by name, the modules of the same package whose objects it reaches."""
    package = cls.__module__.partition(".")[0]
    found: set[str] = set()
    waiting = [cls.__module__]
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
    return [cls.__module__, *sorted(found - {cls.__module__})]


def _found() -> dict[str, list[metadata.EntryPoint]]:
    found: dict[str, dict[tuple[str, str], metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=ENTRY_POINTS):
        # an editable install can show the same distribution twice
        key = (_distribution(point)[0], point.value)
        found.setdefault(point.name, {}).setdefault(key, point)
    return {name: list(points.values()) for name, points in found.items()}


def _distribution(point: metadata.EntryPoint) -> tuple[str, str]:
    # A half-removed distribution may have left its entry points without METADATA, or without a name in it.
    described = point.dist.metadata if point.dist is not None else None
    name, version = (
        described[key] if described is not None and key in described else None for key in ("Name", "Version")
    )
    return (name or "unknown distribution").replace("_", "-").lower(), version or "unknown"


def _rows() -> list[CellRow]:
    rows = []
    for name, points in _found().items():
        owners = [" ".join(_distribution(point)) for point in points]
        error = f"two distributions offer it: {' and '.join(owners)}; uninstall one" if len(points) > 1 else None
        rows += [CellRow(name, *_distribution(point), point.value, error) for point in points]
    return rows


def available_cells(*, third_party: bool = True, check: bool = False) -> list[CellRow]:
    """Every known cell, by name, from metadata alone; with `check` each is imported and its failure is its row's error.

    Without `third_party` only the built-in ones.
    """
    rows = _rows() + [
        CellRow(name, entry.identity.distribution, entry.identity.version, entry.cls.__module__)
        for name, entry in _registered.items()
    ]
    if not third_party:
        rows = [row for row in rows if row.distribution == BUILT_IN]
    if check:
        rows = [_checked(row) for row in rows]
    return sorted(rows, key=lambda row: (row.distribution != BUILT_IN, row.name))


def _checked(row: CellRow) -> CellRow:
    if row.error is None:
        try:
            load_cell(row.name)
        except (PluginError, InputError) as error:
            return CellRow(row.name, row.distribution, row.version, row.location, str(error))
    return row


def load_cell(name: str, *, third_party: bool = True) -> CellEntry:
    """The cell called `name`, imported and checked.

    Raises InputError for an unknown name (with the nearest), PluginError when its module does not import, its
    declaration is incomplete, or two distributions claim the name.
    """
    if name in _registered and third_party:
        return _registered[name]
    points = _found().get(name, [])
    if not third_party:
        points = [point for point in points if _distribution(point)[0] == BUILT_IN]
    if not points:
        known = {row.name for row in available_cells(third_party=third_party)}
        raise InputError(f"no cell {name!r}{nearest(name, known)}")
    if len(points) > 1:
        owners = " and ".join(" ".join(_distribution(point)) for point in points)
        raise PluginError(f"cell {name!r} is offered by two distributions, {owners}; uninstall one")
    point = points[0]
    distribution, version = _distribution(point)
    try:
        cls = point.load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises is that plugin's fault
        raise PluginError(
            f"cell {name!r} of {distribution} {version} cannot be imported from {point.value}: {_one_line(error)}"
        ) from error
    try:
        check_declaration(cls)
    except PluginError as error:
        raise PluginError(f"cell {name!r} of {distribution} {version}, {point.value}: {error}") from error
    if cls.name != name:
        raise PluginError(
            f"cell {name!r} of {distribution}: expected the class to be named like its entry point, got {cls.name!r}"
        )
    return CellEntry(cls, CellIdentity(name, distribution, version, source_hash(cls)))


def load_plugin_file(path: str | Path) -> list[CellEntry]:
    """Run a Python file that registers cells with `register_cell`; the cells it registered.

    A file that is unchanged since it was loaded is not run again; a changed one replaces its cells.
    Raises PluginError when the file is missing, does not run, or registers nothing.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise PluginError(f"plugin {path}: expected a Python file, got none there")
    source = path.read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    name = f"tinygrad_rnn_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    known = [entry for entry in _registered.values() if entry.cls.__module__ == name]
    if known and getattr(sys.modules.get(name), "__digest__", None) == digest:
        return known
    _forget_module(name)  # the file has changed since it was loaded
    module = types.ModuleType(name)
    module.__file__ = str(path)
    module.__dict__["__digest__"] = digest
    sys.modules[name] = module
    try:
        # Not by importlib: it may run cached bytecode of an older text, and would leave a __pycache__ beside the file.
        exec(compile(source, str(path), "exec"), module.__dict__)
    except PluginError:
        _forget_module(name)
        raise
    except (Exception, SystemExit) as error:  # a stranger's file: any failure is one line that names it
        _forget_module(name)
        raise PluginError(f"plugin {path.name} cannot be run: {_one_line(error)}") from error
    entries = [entry for entry in _registered.values() if entry.cls.__module__ == name]
    if not entries:
        raise PluginError(f"plugin {path.name}: expected at least one class under @register_cell, got none")
    return entries


def _forget_module(name: str) -> None:
    sys.modules.pop(name, None)
    for known in [key for key, entry in _registered.items() if entry.cls.__module__ == name]:
        del _registered[known]


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def check_identity(stored: Mapping[str, str], entry: CellEntry) -> str | None:
    """None when `entry` is the code that `stored` (from a checkpoint) names, else one line that says what differs."""
    now = entry.identity
    if stored.get("source_sha256") == now.source_sha256:
        return None
    was, is_now = (
        f"{who.get('distribution')} {who.get('version')}".removesuffix(" unversioned")
        for who in (stored, now.to_json())
    )
    owner = is_now if was == is_now else f"then {was}, now {is_now}"
    return (
        f"the code of cell {now.name!r} ({owner}) has changed since this run was made; its source "
        f"{str(stored.get('source_sha256'))[:12]} is now {now.source_sha256[:12]}"
    )
