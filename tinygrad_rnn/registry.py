"""The registry of cells: the group of plugins that the library cannot do without.

The library itself knows no cell: the built-in ones come through the same entry points as everybody's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tinygrad_rnn import plugins
from tinygrad_rnn.cell import Cell
from tinygrad_rnn.errors import InputError
from tinygrad_rnn.plugins import CELLS, PluginIdentity, PluginRow


@dataclass(frozen=True)
class CellEntry:
    """A cell that was imported and checked."""

    cls: type[Cell]
    identity: PluginIdentity

    def __call__(self, *args: Any, **options: Any) -> NoReturn:
        """Raise InputError: the class `cls` makes cells."""
        name = self.cls.name
        raise InputError(f"expected a cell class to call, got the entry of {name!r}; use load_cell({name!r}).cls(...)")


C = TypeVar("C", bound=type[Cell])


def register_cell(cls: C) -> C:
    """Class decorator: make a cell known under its name, in this process.

    Raises PluginError when the declaration is incomplete or the name belongs to another cell.
    """
    return plugins.register(CELLS, cls)


def available_cells(*, third_party: bool = True, check: bool = False) -> list[PluginRow]:
    """Every known cell, by name, from metadata alone; with `check` each is imported and its failure is its row's error.

    Without `third_party` only the built-in ones. Raises InputError when TINYGRAD_RNN_CELLS names a cell that does not
    exist.
    """
    return plugins.available(CELLS, third_party=third_party, check=check)


def load_cell(name: str, *, third_party: bool = True) -> CellEntry:
    """The cell called `name`, imported and checked.

    Raises InputError for an unknown name (with the nearest) and one that TINYGRAD_RNN_CELLS leaves out, PluginError
    when its module does not import, its declaration is incomplete, or two distributions claim the name.
    """
    entry = plugins.load(CELLS, name, third_party=third_party)
    return CellEntry(entry.value, entry.identity)


def load_plugin_file(path: str | Path) -> list[CellEntry]:
    """Run a Python file that registers cells, or plugins of another group; the cells among them.

    A file that is unchanged since it was loaded is not run again; a changed one replaces its plugins.
    Raises PluginError when the file is missing, does not run, or registers nothing.
    """
    entries = plugins.load_file(path)
    return [
        CellEntry(entry.value, entry.identity)
        for entry in entries
        if isinstance(entry.value, type) and issubclass(entry.value, Cell)
    ]
