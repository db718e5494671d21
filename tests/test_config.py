"""The configuration: its JSON form, its checks, its recipes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from tinygrad_rnn.config import RECIPES, SECTIONS, ModelConfig, RunConfig, as_dict, from_dict, recipe, replace
from tinygrad_rnn.errors import InputError
from tinygrad_rnn.options import check, check_limits, field_types


def test_round_trip_through_json() -> None:
    config = replace(RunConfig(), {"optim.lr": 0.1 + 0.2, "data.text": ["a.txt", "b"], "model.cell_options.slope": 0.5})
    assert from_dict(json.loads(json.dumps(as_dict(config)))) == config
    assert from_dict(as_dict(RunConfig())) == RunConfig()


def test_every_default_passes_its_own_checks() -> None:
    for section, cls in SECTIONS.items():
        hints = field_types(cls)
        for declared in dataclasses.fields(cls):
            value = getattr(cls(), declared.name)
            assert check(hints[declared.name], value, declared.name) == value, section
            check_limits(declared, value, declared.name)
            assert declared.metadata["help"]


def test_missing_fields_take_defaults() -> None:
    assert from_dict({}) == RunConfig()
    assert from_dict({"model": {"hidden": 7}}) == RunConfig(model=ModelConfig(hidden=7))


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"modle": {}}, ["no section 'modle'", "did you mean model"]),
        ({"model": {"hiden": 3}}, ["model.hiden", "did you mean model.hidden"]),
        ({"model": {"hidden": "3"}}, ["model.hidden", "a whole number", "'3'"]),
        ({"model": {"hidden": 0}}, ["model.hidden", "at least 1", "0"]),
        ({"model": {"hidden": True}}, ["a whole number"]),
        ({"model": {"dropout": 1.0}}, ["model.dropout", "less than 1"]),
        ({"model": {"cell": 3}}, ["text"]),
        ({"model": {"cell_options": {"a": None}}}, ["key 'a'"]),
        ({"model": 3}, ["section 'model'", "3"]),
        ({"data": {"tokens": "char"}}, ["data.tokens", "'char'", "did you mean chars"]),
        ({"data": {"text": "a.txt"}}, ["a list of text"]),
        ({"optim": {"lr": float("nan")}}, ["finite"]),
    ],
)
def test_from_dict_errors(mapping: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        from_dict(mapping)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_replace_coerces_text_and_leaves_the_old_one() -> None:
    old = RunConfig()
    new = replace(
        old,
        {
            "model.hidden": "64",
            "optim.lr": "1e-2",
            "train.anomaly": "yes",
            "data.text": "a.txt",
            "model.embed": 64,
            "model.cell_options": "a=1",
            "data.val_frac": 0,
        },
    )
    assert (new.model.hidden, new.optim.lr, new.train.anomaly, new.data.text) == (64, 1e-2, True, ("a.txt",))
    assert (new.model.embed, new.model.cell_options, new.data.val_frac) == ("64", {"a": "1"}, 0.0)
    assert new.train.epochs == old.train.epochs
    assert old == RunConfig()


def test_replace_sets_one_cell_option_beside_the_others() -> None:
    config = replace(RunConfig(), {"model.cell_options": {"a": 1}, "model.cell_options.b": "2"})
    assert config.model.cell_options == {"a": 1, "b": "2"}
    config = replace(config, {"model.cell_options.a": True})
    assert config.model.cell_options == {"a": True, "b": "2"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 1}, ["'lr'", "did you mean optim.lr"]),
        ({"nothing": 1}, ["section.field"]),
        ({"optm.lr": 1}, ["did you mean optim"]),
        ({"optim.lrr": 1}, ["did you mean optim.lr"]),
        ({"optim.lr": "fast"}, ["optim.lr", "a number", "'fast'"]),
        ({"optim.lr": -1}, ["optim.lr", "at least 0"]),
        ({"optim.beta1": "1"}, ["less than 1"]),
        ({"data.tokens": "char"}, ["did you mean chars"]),
        ({"optim.lr.x": 1}, ["single value"]),
        ({"": 1}, ["section.field"]),
    ],
)
def test_replace_errors(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        replace(RunConfig(), changes)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_fit_the_configuration(name: str) -> None:
    config = replace(RunConfig(), recipe(name))
    for key, value in recipe(name).items():
        section, field = key.split(".")
        assert getattr(getattr(config, section), field) == value


def test_recipe_is_a_copy_and_unknown_names_get_the_nearest() -> None:
    recipe("char-rnn")["model.hidden"] = 1
    assert RECIPES["char-rnn"]["model.hidden"] == 128
    with pytest.raises(InputError, match=r"no recipe 'charnn'; did you mean .*char-rnn"):
        recipe("charnn")
