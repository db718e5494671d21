"""Where a value comes from: flag > environment > --set > config file > recipe > run > default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tinygrad_rnn as tr


def shown(output: str) -> dict[str, tuple[str, str]]:
    """key -> (value as TOML, origin) of --show-config."""
    lines = [line.partition("  # ") for line in output.splitlines()]
    return {line.partition(" = ")[0]: (line.partition(" = ")[2].strip(), origin.strip()) for line, _, origin in lines}


def test_precedence_layer_by_layer(invoke: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[model]\nhidden = 11\n[optim]\nlr = 0.5\nclip_value = 2\nbeta1 = 0.5\n[train]\nseed = 5\n")
    args = ["train", "--show-config", "--recipe", "char-rnn", "--config", file, "--set", "optim.lr=0.25", "--set",
            "optim.beta1=0.6", "--lr", "0.125"]  # fmt: skip
    found = shown(invoke(args, TINYGRAD_RNN_SEED="9", TINYGRAD_RNN_LR="7").stdout)
    assert found["optim.lr"] == ("0.125", "flag --lr")
    assert found["train.seed"] == ("9", "environment TINYGRAD_RNN_SEED")
    assert found["optim.beta1"] == ("0.6", "--set")
    assert found["optim.clip_value"] == ("2.0", f"file {file}")
    assert found["model.hidden"] == ("11", f"file {file}")
    assert found["optim.optim"] == ('"rmsprop"', "recipe char-rnn")
    assert found["data.tokens"] == ('"chars"', "default")


def test_a_variable_that_is_nearly_a_setting_is_told(invoke: Any) -> None:
    done = invoke("train --show-config", TINYGRAD_RNN_HIDEN="3", TINYGRAD_RNN_CELLS="lstm", TINYGRAD_RNN_XYZZY="1")
    assert done.exit_code == 0
    assert done.stderr.startswith("warning: the environment's TINYGRAD_RNN_HIDEN sets nothing; did you mean _HIDDEN")
    assert done.stderr.count("\n") == 1


def test_a_run_stands_below_every_layer_and_above_the_default(invoke: Any, trained: Path) -> None:
    found = shown(invoke(["sample", trained, "--show-config", "--seed", "3"]).stdout)
    assert found["train.seed"] == ("3", "flag --seed")
    assert found["train.dtype"] == ('"float32"', f"run {trained}")
    assert found["sample.length"] == ("500", "default")
    assert "model.hidden" not in found  # the run has settled it


def test_show_config_is_a_config_file(invoke: Any, tmp_path: Path) -> None:
    args = ["train", "--cell", "rnn", "--cell-opt", "activation=relu", "--lr", "1e-5", "--anomaly", "--show-config"]
    first = invoke(args).stdout
    file = tmp_path / "again.toml"
    file.write_text(first, encoding="utf-8")
    second = invoke(["train", "--config", file, "--show-config"]).stdout
    values = {key: value for key, (value, _) in shown(first).items()}
    assert {key: value for key, (value, _) in shown(second).items()} == values
    assert values["model.cell_options.activation"] == '"relu"'
    assert values["train.anomaly"] == "true"


def test_show_config_writes_nothing(invoke: Any, tmp_path: Path) -> None:
    assert invoke("train --show-config").exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_options_of_a_cell_leave_with_it(invoke: Any, tmp_path: Path) -> None:
    file = tmp_path / "rnn.toml"
    file.write_text('[model]\ncell = "rnn"\ncell_options = {activation = "relu"}\n')
    same = shown(invoke(["train", "--config", file, "--cell", "rnn", "--show-config"]).stdout)
    other = shown(invoke(["train", "--config", file, "--cell", "gru", "--show-config"]).stdout)
    assert same["model.cell_options.activation"][0] == '"relu"'
    assert not [key for key in other if key.startswith("model.cell_options")]


def test_a_named_corpus_replaces_the_text_of_a_file(invoke: Any, tmp_path: Path) -> None:
    file = tmp_path / "text.toml"
    file.write_text('[data]\ntext = ["a.txt"]\n')
    assert shown(invoke(["train", "--config", file, "--show-config"]).stdout)["data.text"][0] == '["a.txt"]'
    found = shown(invoke(["train", "--config", file, "--corpus", "hello", "--show-config"]).stdout)
    assert found["data.text"][0] == "[]"
    assert shown(invoke(["train", "b.txt", "--show-config"]).stdout)["data.text"] == ('["b.txt"]', "argument TEXT")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[optim]\nlr = 'fast'\n", ["optim.lr", "a number", "fast"]),
        ("[optim]\nlrr = 1\n", ["optim.lrr", "optim.lr"]),
        ("[optm]\nlr = 1\n", ["'optm'", "optim"]),
        ("lr = 1\n", ["'lr'", "optim.lr"]),
        ("[optim\n", ["TOML"]),
    ],
)
def test_errors_in_a_config_file_name_the_file(invoke: Any, tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    done = invoke(["train", "--config", file])
    assert done.exit_code in (1, 2)
    for word in ["bad.toml", *words]:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("args", "env", "words"),
    [
        ("train --set lr=1", {}, ["--set", "'lr'", "optim.lr"]),
        ("train --set optim.lr", {}, ["--set", "SECTION.FIELD=VALUE"]),
        ("train --set optim.lr=x", {}, ["--set", "optim.lr", "a number"]),
        ("train", {"TINYGRAD_RNN_LR": "x"}, ["TINYGRAD_RNN_LR", "a number", "'x'"]),
        ("train --hidden 0", {}, ["--hidden", "at least 1", "0"]),
        ("train --dropout 1", {}, ["--dropout", "less than 1"]),
        ("train --cell-opt forget_bias", {}, ["--cell-opt", "KEY=VALUE"]),
        ("train a.txt --corpus hello", {}, ["TEXT", "--corpus"]),
        ("train --color purple", {}, ["--color", "purple"]),
    ],
)
def test_errors_name_the_place(invoke: Any, args: str, env: dict[str, str], words: list[str]) -> None:
    done = invoke(args, **env)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_json_of_show_config(invoke: Any) -> None:
    found = json.loads(invoke("data stats --tokens bytes --show-config --json").stdout)
    assert found["data.tokens"] == {"value": "bytes", "origin": "flag --tokens"}


def test_common_options_are_taken_everywhere(invoke: Any) -> None:
    words = "--seed 1 --device cpu --dtype float64 -q -v --color never --no-plugins --set optim.lr=1".split()
    assert invoke(["cells", "list", *words]).exit_code == 0
    assert invoke(["-q", "cells", "list"]).stderr == ""


def test_colour(invoke: Any) -> None:
    esc = "\x1b["
    assert esc not in invoke("cells list").output
    assert esc in invoke("--color always cells list").stdout
    assert esc in invoke("cells list", FORCE_COLOR="1").stdout
    assert esc not in invoke("cells list --color never", FORCE_COLOR="1").stdout
    assert esc not in invoke("cells list", FORCE_COLOR="1", NO_COLOR="1").stdout
    assert esc in invoke("cells list --color always", NO_COLOR="1").stdout


def test_recipes(invoke: Any) -> None:
    for name in tr.RECIPES:
        found = shown(invoke(["train", "--recipe", name, "--show-config"]).stdout)
        for key in tr.recipe(name):
            assert found[key][1] == f"recipe {name}"
    done = invoke("train --recipe charnn")
    assert done.exit_code == 2 and "char-rnn" in done.stderr
