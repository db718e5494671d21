"""Values from text: flags, environment, TOML and ``key=value`` pairs, by the annotations of a dataclass.

Two readings of one annotation: `check` takes a value that has its type already (JSON), `coerce` takes
text as well. Both know float, int, bool, str, ``Literal[...]``, ``X | None``, ``tuple[X, ...]`` and
``Mapping[str, X]``. Like `config`, this module imports no NumPy.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from tinygrad_rnn.errors import InputError, PluginError, TinygradRNNError, nearest, one_line

Options = TypeVar("Options")

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


def coerce(annotation: Any, value: Any, what: str) -> Any:
    """`value` as the type that `annotation` names; text is parsed.

    Text means: ``1``/``true``/``yes``/``on`` and their opposites for bool; ``none`` or nothing for None;
    ``a=1,b=2`` for a mapping; ``a,b`` for a tuple, but one item for a tuple of str (a path may hold
    a comma). A number given for str becomes its text, because TOML writers leave the quotes away.
    `what` names the value in errors ("--lr", "option 'slope' of cell mut1").

    Raises InputError if the value does not fit, PluginError if the annotation is none of the known ones.
    """
    return _convert(annotation, value, what, text=True)


def check(annotation: Any, value: Any, what: str) -> Any:
    """`value` unchanged if it has the type that `annotation` names already, as JSON spells it.

    An int passes for float and a list for a tuple (both are converted); text passes for str alone.
    Raises InputError if the value does not fit, PluginError if the annotation is none of the known ones.
    """
    return _convert(annotation, value, what, text=False)


def check_limits(field: dataclasses.Field[Any], value: Any, what: str) -> None:
    """Raise InputError where `value` breaks the ``minimum`` (inclusive) or ``below`` (exclusive) of `field`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    minimum, below = field.metadata.get("minimum"), field.metadata.get("below")
    if minimum is not None and value < minimum:
        raise InputError(f"{what}: expected at least {minimum}, got {value}")
    if below is not None and value >= below:
        raise InputError(f"{what}: expected less than {below}, got {value}")


def parse_options(cls: type[Options], mapping: Mapping[str, Any], owner: str = "") -> Options:
    """An instance of the dataclass `cls` from names and values (text or typed), the rest by default.

    A hyphen in a name stands for an underscore. `owner` names the options in errors ("cell mut1").
    Field metadata ``minimum`` and ``below`` are checked.

    Raises InputError for an unknown name (with the nearest), a value that does not fit, a missing value
    without default, or a ValueError from ``__post_init__``; PluginError if `cls` is not a dataclass, or
    an annotation is unknown or cannot be resolved.
    """
    owner = owner or cls.__qualname__
    hints = field_types(cls, owner)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        name = key.replace("-", "_")
        if name not in fields:
            raise InputError(f"{owner} has no option {key!r}{nearest(name, fields)}")
        if name in values:
            raise InputError(f"{owner}: option {name!r} is given twice; give it once")
        what = f"{owner}, option {name!r}"
        values[name] = coerce(hints[name], value, what)
        check_limits(fields[name], values[name], what)
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise InputError(f"{owner} needs option {name!r} ({_spell(hints[name])}), which has no default; give it")
    try:
        return cls(**values)
    except TinygradRNNError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{owner}: {error}") from error
    except Exception as error:  # of a stranger's __post_init__
        raise PluginError(f"{owner}: {one_line(error)}") from error


def unescape(text: str, what: str) -> str:
    r"""`text` with its escapes replaced, as a shell's quotes leave them: \n, \t, \r, \\, \xHH and \uHHHH.

    \xHH is a byte of UTF-8; one that belongs to no character is spelled as `Vocabulary.decode` spells it.
    `what` names the text in the error. Raises InputError for any other backslash.
    """

    def replaced(match: re.Match[str]) -> str:
        escape = match[1]
        if escape in _ESCAPES:
            return _ESCAPES[escape]
        if len(escape) < 3:
            known = r"\n, \t, \r, \xHH or \uHHHH"
            raise InputError(rf"{what}: expected {known}, got a backslash and {escape!r}; write \\ for a backslash")
        number = int(escape[1:], 16)
        return chr(number) if escape[0] == "u" or number < 0x80 else chr(0xDC00 + number)

    found = re.sub(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.?)", replaced, text, flags=re.DOTALL)
    try:
        return found.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what}: expected a text, got the lone surrogate {found[error.start]!r}; remove it"
        ) from error


def field_types(cls: type[Any], owner: str = "") -> dict[str, Any]:
    """The annotation of every field of the dataclass `cls`, strings resolved.

    Raises PluginError if `cls` is not a dataclass or an annotation names something unknown.
    """
    owner = owner or cls.__qualname__
    if not dataclasses.is_dataclass(cls):
        raise PluginError(f"{owner}: expected options in a frozen dataclass, got {cls!r}; decorate it with @dataclass")
    try:
        return typing.get_type_hints(cls)
    except (NameError, AttributeError, TypeError) as error:
        raise PluginError(
            f"{owner}: an annotation of {cls.__qualname__} cannot be resolved ({error}); "
            "import its name at the top of the module"
        ) from error


def _convert(annotation: Any, value: Any, what: str, *, text: bool) -> Any:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if annotation is None or annotation is types.NoneType:
        if value is None or (text and isinstance(value, str) and value.strip().lower() in ("none", "")):
            return None
        raise _mismatch(annotation, value, what)
    if annotation is bool:
        return _boolean(value, what, text)
    if annotation is int or annotation is float:
        return _number(annotation, value, what, text)
    if annotation is str:
        if text and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str):
            return value
        raise _mismatch(annotation, value, what)
    if origin is Literal:
        return _choice(annotation, value, what, text)
    if origin in (Union, types.UnionType):
        return _member(args, annotation, value, what, text)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        if text and isinstance(value, str):
            value = [value] if args[0] is str else [part.strip() for part in value.split(",")]
            value = [part for part in value if part]
        if isinstance(value, list | tuple):
            return tuple(_convert(args[0], item, what, text=text) for item in value)
        raise _mismatch(annotation, value, what)
    if isinstance(origin, type) and issubclass(origin, Mapping) and args and args[0] is str:
        if text and isinstance(value, str):
            value = _pairs(value, what)
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: _convert(args[1], item, f"{what}, key {key!r}", text=text) for key, item in value.items()}
        raise _mismatch(annotation, value, what)
    raise PluginError(
        f"{what}: its annotation {_spell(annotation)} cannot be read from text; "
        "use float, int, bool, str, Literal, X | None, tuple[X, ...] or Mapping[str, X]"
    )


def _boolean(value: Any, what: str, text: bool) -> bool:
    if isinstance(value, bool):
        return value
    if text and isinstance(value, str):
        word = value.strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
    raise _mismatch(bool, value, what)


def _number(annotation: type[int] | type[float], value: Any, what: str, text: bool) -> int | float:
    parsed = value
    if text and isinstance(value, str):
        try:
            parsed = annotation(value)
        except ValueError:
            raise _mismatch(annotation, value, what) from None
    accepted = int if annotation is int else (int, float)
    if isinstance(parsed, bool) or not isinstance(parsed, accepted):
        raise _mismatch(annotation, value, what)
    if not math.isfinite(parsed):  # neither has a form in JSON, where every option ends
        raise InputError(f"{what}: expected a finite number, got {value!r}")
    return annotation(parsed)


def _choice(annotation: Any, value: Any, what: str, text: bool) -> Any:
    choices = typing.get_args(annotation)
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice
    if text and isinstance(value, str):
        for choice in choices:
            if str(choice).lower() == value.strip().lower():
                return choice
    raise InputError(f"{what}: {_show(value)} is not one of its choices{nearest(str(value), map(str, choices))}")


def _member(args: tuple[Any, ...], annotation: Any, value: Any, what: str, text: bool) -> Any:
    members = [arg for arg in args if arg is not types.NoneType]
    if len(members) < len(args):
        if value is None or (text and isinstance(value, str) and value.strip().lower() in ("none", "")):
            return None
        if len(members) == 1:
            return _convert(members[0], value, what, text=text)
    if type(value) in members:  # also keeps text as text where str is a member: "on" may be somebody's choice
        return _convert(type(value), value, what, text=False)
    for member in members:
        try:
            return _convert(member, value, what, text=text)
        except InputError:
            continue
    raise _mismatch(annotation, value, what)


def _pairs(value: str, what: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in value.split(","))):
        key, equals, item = part.partition("=")
        if not equals or not key.strip():
            raise InputError(f"{what}: expected KEY=VALUE[,KEY=VALUE...], got {value!r}")
        pairs[key.strip()] = item.strip()
    return pairs


def _mismatch(annotation: Any, value: Any, what: str) -> InputError:
    return InputError(f"{what}: expected {_spell(annotation)}, got {_show(value)}")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _spell(annotation: Any) -> str:
    """An annotation in words for an error message."""
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "none"}
    plain = types.NoneType if annotation is None else annotation
    if isinstance(plain, type) and plain in words:
        return words[plain]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(_spell(arg) for arg in args)
    if origin is tuple and args:
        return f"a list of {_spell(args[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a table of KEY=VALUE"
    return str(annotation)
