"""Coercion of text by annotation, and options dataclasses of cells."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Optional, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn.errors import InputError, PluginError
from tinygrad_rnn.options import check, coerce, parse_options, unescape


@dataclass(frozen=True)
class CellOptions:
    slope: float = field(default=1.0, metadata={"help": "slope of the gate", "minimum": 0, "below": 10})
    blocks: int = field(default=1, metadata={"minimum": 1})
    bias: bool = True
    input_map: Literal["auto", "identity", "fixed", "learned"] = "auto"
    note: str = ""
    forget: Optional[float] = None  # noqa: UP045 - a plugin may spell it so


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (float, "2e-3", 2e-3),
        (float, "5", 5.0),
        (float, 5, 5.0),
        (float, 0.1, 0.1),
        (int, "-7", -7),
        (int, 12, 12),
        (int, " 12 ", 12),
        (bool, "true", True),
        (bool, "OFF", False),
        (bool, "1", True),
        (bool, "0", False),
        (bool, "no", False),
        (bool, False, False),
        (str, "x", "x"),
        (str, 64, "64"),
        (str, "", ""),
        (str, 0.5, "0.5"),
        (Literal["adam", "sgd"], "adam", "adam"),
        (Literal["adam", "sgd"], "SGD", "sgd"),
        (Literal[1, 2], "2", 2),
        (Literal[1, 2], 2, 2),
        (float | None, "none", None),
        (float | None, "0.5", 0.5),
        (float | None, None, None),
        (Optional[int], "3", 3),  # noqa: UP045
        (str | None, "none", None),
        (str | None, "a", "a"),
        (int | float, "3", 3),
        (int | float, "3.5", 3.5),
        (Union[int, str], "3", "3"),  # noqa: UP007
        (tuple[str, ...], "a,b.txt", ("a,b.txt",)),
        (tuple[str, ...], ["a", "b"], ("a", "b")),
        (tuple[str, ...], "", ()),
        (tuple[int, ...], "1, 2,3", (1, 2, 3)),
        (Mapping[str, str | int | float | bool], "a=1,b=on", {"a": "1", "b": "on"}),
        (Mapping[str, str | int | float | bool], {"a": 1, "b": True, "c": 0.5}, {"a": 1, "b": True, "c": 0.5}),
        (dict[str, float], "a=1", {"a": 1.0}),
        (Mapping[str, str], "", {}),
        (Any, object, object),
        (None, "none", None),
    ],
)
def test_coerce(annotation: Any, value: Any, expected: Any) -> None:
    got = coerce(annotation, value, "--x")
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        (float, "fast", ["a number", "'fast'"]),
        (float, "nan", ["finite"]),
        (float, "-inf", ["finite"]),
        (float, True, ["a number"]),
        (int, "1.5", ["a whole number", "'1.5'"]),
        (int, 2.0, ["a whole number"]),
        (int, True, ["a whole number"]),
        (int, None, ["a whole number"]),
        (bool, "maybe", ["true or false", "'maybe'"]),
        (bool, 1, ["true or false"]),
        (str, None, ["text"]),
        (str, True, ["text"]),
        (Literal["adam", "adagrad"], "adan", ["'adan'", "did you mean adam"]),
        (Literal["adam", "sgd"], "zzz", ["known: adam, sgd"]),
        (Literal[1, 2], True, ["known: 1, 2"]),
        (float | None, "x", ["a number", "'x'"]),
        (int | float, "x", ["a whole number or a number"]),
        (tuple[int, ...], "1,b", ["'b'"]),
        (tuple[int, ...], 3, ["a list of a whole number"]),
        (Mapping[str, str], "novalue", ["KEY=VALUE"]),
        (Mapping[str, str], 3, ["KEY=VALUE"]),
        (Mapping[str, int], {"a": "x"}, ["key 'a'"]),
        (None, "x", ["none"]),
        (str, ["x"] * 99, ["..."]),
    ],
)
def test_coerce_says_what_was_expected(annotation: Any, value: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        coerce(annotation, value, "--x")
    message = str(caught.value)
    assert message.startswith("--x")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("annotation", [list[int], complex, tuple[int, int], dict[int, int], bytes])
def test_unknown_annotation_is_the_authors_fault(annotation: Any) -> None:
    with pytest.raises(PluginError, match="cannot be read from text"):
        coerce(annotation, "1", "option 'x'")


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, "1"),
        (float, "1.0"),
        (bool, "true"),
        (str, 1),
        (tuple[str, ...], "a"),
        (Mapping[str, int], "a=1"),
        (Literal["a"], "A"),
        (float | None, "none"),
        (int, 1.0),
    ],
)
def test_check_parses_no_text(annotation: Any, value: Any) -> None:
    with pytest.raises(InputError, match="x: "):
        check(annotation, value, "x")


def test_check_accepts_json_forms() -> None:
    assert check(float, 1, "x") == 1.0
    assert type(check(float, 1, "x")) is float
    assert check(tuple[str, ...], ["a"], "x") == ("a",)
    assert check(float | None, None, "x") is None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_float_text_round_trip_is_exact(value: float) -> None:
    assert coerce(float, repr(value), "x") == value


@given(st.integers())
def test_int_text_round_trip(value: int) -> None:
    assert coerce(int, str(value), "x") == value


def test_parse_options() -> None:
    assert parse_options(CellOptions, {}) == CellOptions()
    got = parse_options(CellOptions, {"slope": "0.5", "input-map": "fixed", "bias": "off", "forget": 1, "note": "x"})
    assert got == CellOptions(slope=0.5, input_map="fixed", bias=False, forget=1.0, note="x")


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"inptmap": "fixed"}, ["cell mut1 has no option 'inptmap'", "did you mean input_map"]),
        ({"input_map": "learnt"}, ["option 'input_map'", "'learnt'", "did you mean learned"]),
        ({"slope": "steep"}, ["option 'slope'", "a number", "'steep'"]),
        ({"slope": "-1"}, ["at least 0", "-1"]),
        ({"slope": 10}, ["less than 10"]),
        ({"blocks": "0"}, ["at least 1"]),
        ({"input_map": "fixed", "input-map": "auto"}, ["twice"]),
    ],
)
def test_parse_options_errors(mapping: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_options(CellOptions, mapping, "cell mut1")
    message = str(caught.value)
    assert message.startswith("cell mut1")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_required_option_is_named() -> None:
    @dataclass(frozen=True)
    class Needs:
        size: int

    with pytest.raises(InputError, match=r"needs option 'size' \(a whole number\)"):
        parse_options(Needs, {}, "cell x")


def test_post_init_error_becomes_one_line() -> None:
    @dataclass(frozen=True)
    class Even:
        size: int = 2

        def __post_init__(self) -> None:
            if self.size % 2:
                raise ValueError(f"size must be even, got {self.size}")

    with pytest.raises(InputError, match="cell x: size must be even, got 3"):
        parse_options(Even, {"size": "3"}, "cell x")


def test_no_dataclass_is_the_authors_fault() -> None:
    with pytest.raises(PluginError, match="@dataclass"):
        parse_options(int, {}, "cell x")


def test_unresolvable_annotation_is_the_authors_fault() -> None:
    @dataclass(frozen=True)
    class Broken:
        size: Nowhere = 1  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(PluginError, match="cannot be resolved"):
        parse_options(Broken, {"size": "1"}, "cell x")


def test_no_numpy_behind_options_and_config() -> None:
    code = "import sys, tinygrad_rnn.config, tinygrad_rnn.options; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"\n", "\n"),
        (r"a\tb\r\n", "a\tb\r\n"),
        (r"\\n", r"\n"),
        (r"\x41", "A"),
        (r"\xc3\xa9", "é"),
        (r"\xff", "\udcff"),
        (r"\u00e9", "é"),
        ("\n", "\n"),
        ("\udcff", "\udcff"),
        ("plain é", "plain é"),
    ],
)
def test_escapes_of_a_shell(typed: str, meant: str) -> None:
    assert unescape(typed, "--stop") == meant


@pytest.mark.parametrize("typed", [r"\q", "\\", r"a\x4", r"\u12", "\\\n"])
def test_another_backslash_is_refused(typed: str) -> None:
    with pytest.raises(InputError, match=r"--stop: expected \\n, [^\n]* write \\\\ for a backslash"):
        unescape(typed, "--stop")


def test_an_escaped_surrogate_is_no_text() -> None:
    with pytest.raises(InputError, match="lone surrogate"):
        unescape(r"\ud800", "--stop")
