"""The exceptions of the library, one tree, grouped by who is at fault.

Every message is one line: what was expected, what was got, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TinygradRNNError(Exception):
    """Root of every exception that this library raises on purpose."""


class InputError(TinygradRNNError, ValueError):
    """The caller's values: a size, an option, a combination that cannot work."""


class ShapeError(InputError):
    """Arrays whose shapes do not fit the operation."""


class DtypeError(InputError, TypeError):
    """Arrays whose dtypes do not fit the operation; nothing is promoted silently."""


class DeviceError(InputError):
    """Arrays of two devices in one operation, or a device that is not there."""


class GradientError(TinygradRNNError, RuntimeError):
    """A gradient that cannot be computed: no graph, wrong root, a broken vjp."""


class InPlaceError(GradientError):
    """A value that the graph needs was changed in place."""


class NonFiniteError(TinygradRNNError, ArithmeticError):
    """A NaN or an infinity; `where` names the place (op, layer, timestep, gate) as far as known."""

    def __init__(self, message: str, where: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.where: dict[str, object] = where or {}


class PluginError(TinygradRNNError):
    """The author of a plugin is at fault: a contract broken, a module that does not import."""


class FileError(TinygradRNNError):
    """Something on disk: text that cannot be read, a run folder that is not one."""


class DataError(FileError):
    """A text or corpus that cannot be used: missing, empty, badly encoded, too short."""


class UnknownSymbolError(DataError):
    """A symbol that a vocabulary lacks; `what` is the message without its remedy, which may be a caller's option."""

    what: str = ""


class CheckpointError(FileError):
    """A checkpoint that is truncated, changed, foreign or does not fit."""


def one_line(error: BaseException) -> str:
    """The kind of `error` and its message, without line ends."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def nearest(name: str, known: Iterable[str], *, whole: bool = True) -> str:
    """Say which names are close to `name`: ``; did you mean mut1, mut2?`` or, where none is, the `whole` list.

    The text is meant to end an error message.
    """
    names = sorted(known)
    plain = {one.casefold(): one for one in names}  # LSTM means lstm
    close = [plain[one] for one in difflib.get_close_matches(name.casefold(), plain, n=3, cutoff=0.6)]
    if close:
        return "; did you mean " + ", ".join(close) + "?"
    if not whole:
        return ""
    return "; known: " + ", ".join(names) if names else "; none is known"
