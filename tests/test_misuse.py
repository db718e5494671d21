"""What goes wrong in files of strangers, beyond what test_registry.py and planted_faults.py have: one line each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import (
    CorpusText,
    InputError,
    Optimizer,
    PluginError,
    load_cell,
    load_plugin_file,
    register_dataset,
    register_diagnostic,
    register_optimizer,
    run_diagnostic,
)
from tinygrad_rnn.config import OptimConfig
from tinygrad_rnn.data.corpora import corpus_chunks
from tinygrad_rnn.optim import init_state

CELL = """
from tinygrad_rnn import Cell, State, ops, register_cell

@register_cell
class CLASS(Cell):
    name = NAME
    summary, citation, equation = "a sum", "nobody", "h' = h + sum of x"

    def state(self):
        return {"h": State((self.H,))}

    def params(self):
        return {}

    def step(self, p, x, s):
        return {"h": s.h + ops.sum(x, axis=1, keepdims=True)}
"""


def cell(name: str, cls: str = "Own") -> str:
    return CELL.replace("CLASS", cls).replace("NAME", repr(name))


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (cell("mine", "One") + cell("mine", "Other"), r"cell 'mine' is registered twice: by .*a\.py and by .*a\.py; "),
        (cell("../mine"), r"cell '\.\./mine': expected a name of letters and digits"),
        (cell("mi\nne"), r"cell 'mi\\nne': expected a name of letters"),
        (cell("lstm+zoneout:0.1"), r"cell 'lstm\+zoneout:0\.1': expected a name of letters"),
        (cell("--help"), r"cell '--help': expected a name of letters"),
    ],
)
def test_a_name_that_cannot_be(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(source)
    with pytest.raises(PluginError, match=message):
        load_plugin_file(tmp_path / "a.py")
    with pytest.raises(InputError, match="no cell 'mine'"):
        load_cell("mine")


def _late() -> Iterator[str]:
    yield "some text"
    raise SystemExit(0)


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CorpusText("hello " * 9, licence=None), "expected a tinygrad_rnn.CorpusText with a licence"),  # type: ignore[arg-type]
        (CorpusText(b"hello", licence="CC0"), "expected pieces of text, got b'hello'"),  # type: ignore[arg-type]
        (CorpusText(5, licence="CC0"), "TypeError: 'int' object is not iterable"),  # type: ignore[arg-type]
        (CorpusText(_late(), licence="CC0"), r"\(test_misuse\.py:\d+\): SystemExit: 0"),
        (
            CorpusText("hello", licence="CC0", sha256="00"),
            "expected a text with sha256 00, got .*; the text is another",
        ),
    ],
)
def test_a_corpus_that_is_none(text: CorpusText, message: str) -> None:
    @register_dataset
    def given() -> CorpusText:
        """A text of a stranger."""
        return text

    with pytest.raises(PluginError, match=f"corpus 'given' .*{message}"):
        list(corpus_chunks("given"))


@pytest.mark.usefixtures("own_registry")
def test_a_diagnostic_that_returns_what_contains_itself() -> None:
    @register_diagnostic
    def endless(loaded: Any, symbols: Any, rng: Any) -> Any:
        """What has no end."""
        found: dict[str, Any] = {}
        found["found"] = found
        return found

    with pytest.raises(PluginError, match="diagnostic 'endless': expected JSON values, got a value that contains"):
        run_diagnostic("endless", SimpleNamespace(), np.zeros(3, np.uint8), np.random.default_rng(0))  # type: ignore[arg-type]


@pytest.mark.usefixtures("own_registry")
def test_an_optimiser_with_two_slots_of_one_name() -> None:
    @register_optimizer
    class Twice(Optimizer):
        name, summary, citation = "twice", "m and m", "nobody"

        def slots(self) -> tuple[str, ...]:
            return ("m", "m")

        def update(self, params: Any, grads: Any, slots: Any, step: int, lr: float) -> None:
            raise AssertionError("never called")

    with pytest.raises(PluginError, match="optimiser twice, slots: expected different names, got"):
        init_state(Twice(OptimConfig()), {"W": np.zeros(2)})


def test_a_name_in_capitals_is_near() -> None:
    with pytest.raises(InputError, match="no cell 'LSTM'; did you mean lstm"):
        load_cell("LSTM")


@pytest.mark.parametrize("place", ["not a place!!", ""])
def test_an_entry_point_that_names_no_place(
    place: str, distribution: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, "half-written", {}, {"cells": {"mine": place}})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"cell 'mine' of half-written 1\.2: expected MODULE:NAME, got '"):
        load_cell("mine")
