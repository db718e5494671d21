"""The registry of cells: three ways in (entry point, `register_cell`, a plugin file), one way out (`load_cell`).

Listing reads package metadata only; a module is imported when its cell is used. The library itself knows
no cell: the built-in ones come through the same entry points as everybody's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
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
    module = sys.modules.get(cls.__module__)
    where = getattr(module, "__file__", None) or cls.__module__
    entry = CellEntry(cls, CellIdentity(cls.name, f"file {Path(where).name}", "unversioned", source_hash(cls)))
    known = _registered.get(cls.name)
    if known is not None and known.identity != entry.identity:
        raise PluginError(f"cell {cls.name!r} is registered twice: by {known.cls.__module__} and by {cls.__module__}; "
                          "rename one")
    for row in _rows():
        if row.name == cls.name:
            raise PluginError(f"cell {cls.name!r} is registered twice: by {row.distribution} {row.version} and by {where}; "
                              "rename one")
    _registered[cls.name] = entry
    return cls


def forget_cell(name: str) -> None:
    """Undo `register_cell`: for tests and notebooks."""
    _registered.pop(name, None)


def source_hash(cls: type[Any]) -> str:
    """SHA-256 of the file in which `cls` is written; of its name where there is no file (an interactive session)."""
    try:
        path = inspect.getsourcefile(cls)
    except TypeError:
        path = None
    if path is not None and Path(path).is_file():
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return hashlib.sha256(f"{cls.__module__}.{cls.__qualname__}".encode()).hexdigest()


def _found() -> dict[str, list[metadata.EntryPoint]]:
    found: dict[str, dict[tuple[str, str], metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=ENTRY_POINTS):
        # an editable install can show the same distribution twice
        key = (_distribution(point)[0], point.value)
        found.setdefault(point.name, {}).setdefault(key, point)
    return {name: list(points.values()) for name, points in found.items()}


def _distribution(point: metadata.EntryPoint) -> tuple[str, str]:
    if point.dist is None:
        return "unknown distribution", "unknown"
    return point.dist.name.replace("_", "-").lower(), point.dist.version


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
    rows = _rows() + [CellRow(name, entry.identity.distribution, entry.identity.version, entry.cls.__module__)
                      for name, entry in _registered.items()]
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
    except Exception as error:  # whatever a stranger's module raises is that plugin's fault, and one line
        raise PluginError(f"cell {name!r} of {distribution} {version} cannot be imported from {point.value}: "
                          f"{type(error).__name__}: {error}") from error
    check_declaration(cls)
    if cls.name != name:
        raise PluginError(f"cell {name!r} of {distribution}: expected the class to be named like its entry point, got "
                          f"{cls.name!r}")
    return CellEntry(cls, CellIdentity(name, distribution, version, source_hash(cls)))


def load_plugin_file(path: str | Path) -> list[CellEntry]:
    """Run a Python file that registers cells with `register_cell`; the cells it registered.

    Raises PluginError when the file is missing, does not run, or registers nothing.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise PluginError(f"plugin {path}: expected a Python file, got none there")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    name = f"tinygrad_rnn_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules and getattr(sys.modules[name], "__digest__", None) == digest:
        return [entry for entry in _registered.values() if entry.cls.__module__ == name]
    for known in [key for key, entry in _registered.items() if entry.cls.__module__ == name]:
        del _registered[known]  # the file has changed since it was loaded
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin {path}: expected a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__digest__"] = digest
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except PluginError:
        del sys.modules[name]
        raise
    except Exception as error:  # a stranger's file: any failure is one line that names it
        del sys.modules[name]
        raise PluginError(f"plugin {path.name} cannot be run: {type(error).__name__}: {error}") from error
    entries = [entry for entry in _registered.values() if entry.cls.__module__ == name]
    if not entries:
        raise PluginError(f"plugin {path.name}: expected at least one class under @register_cell, got none")
    return entries


def check_identity(stored: Mapping[str, str], entry: CellEntry) -> str | None:
    """None when `entry` is the code that `stored` (from a checkpoint) names, else one line that says what differs."""
    now = entry.identity
    if stored.get("source_sha256") == now.source_sha256:
        return None
    was = f"{stored.get('distribution')} {stored.get('version')}"
    return (f"the code of cell {now.name!r} has changed since this run was made (then {was}, now {now.distribution} "
            f"{now.version}; source {str(stored.get('source_sha256'))[:12]} is now {now.source_sha256[:12]})")
