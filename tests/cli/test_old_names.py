"""The flags of char-rnn, torch-rnn and char-rnn-tensorflow do what they did there; the ambiguous ones say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tinygrad_rnn_cli import aliases
from tinygrad_rnn_cli.options import option_names

NAMES = [(command, name) for command, names in aliases.NAMES.items() for name in names]


def settings(output: str) -> dict[str, str]:
    lines = [line.partition("  # ")[0].strip() for line in output.splitlines()]
    return {line.partition(" = ")[0]: line.partition(" = ")[2].strip('"') for line in lines}


def test_a_command_line_of_char_rnn(invoke: Any) -> None:
    done = invoke("train -rnn_size 128 -num_layers 3 -model gru -seq_length 25 -batch_size 20 -learning_rate 1e-3 "
                  "-learning_rate_decay 0.9 -learning_rate_decay_after 4 -decay_rate 0.8 -dropout 0.25 -grad_clip 5 "
                  "-max_epochs 7 -train_frac 0.9 -val_frac 0.06 -seed 123 -eval_val_every 77 -gpuid -1 -print_every 1 "
                  "--show-config")  # fmt: skip
    assert done.exit_code == 0, done.output
    found = settings(done.stdout)
    wanted = {
        "model.hidden": "128", "model.layers": "3", "model.cell": "gru", "data.seq_len": "25", "data.batch": "20",
        "optim.lr": "0.001", "optim.lr_decay": "exp:0.9@4", "optim.decay": "0.8", "model.dropout": "0.25",
        "optim.clip_value": "5.0", "optim.clip_norm": "0.0", "train.epochs": "7", "data.val_frac": "0.06",
        "data.test_frac": "0.04", "train.seed": "123", "train.eval_every": "77", "train.save_every": "77",
        "train.device": "cpu",
    }  # fmt: skip
    assert {key: found[key] for key in wanted} == wanted
    for word in (
        "-grad_clip 5 clamps every element",
        "-decay_rate 0.8 is the decay of rmsprop",
        "-gpuid -1 is --device cpu",
    ):
        assert word in done.stderr


def test_a_command_line_of_torch_rnn(invoke: Any) -> None:
    done = invoke("train -model_type rnn -wordvec_size 32 -lr_decay_every 3 -lr_decay_factor 0.7 -checkpoint_every 50 "
                  "-reset_iterations 1 -batchnorm 0 -gpu -1 --show-config")  # fmt: skip
    found = settings(done.stdout)
    assert (found["model.cell"], found["model.embed"], found["optim.lr_decay"]) == ("rnn", "32", "step:0.7@3")
    assert (found["train.eval_every"], found["train.save_every"]) == ("50", "50")


def test_a_command_line_of_char_rnn_tensorflow(invoke: Any) -> None:
    done = invoke("train --rnn_size 64 --num_epochs 9 --grad_clip 3 --decay_rate 0.97 --output_keep_prob 0.8 "
                  "--save_every 11 --show-config")  # fmt: skip
    found = settings(done.stdout)
    assert (found["model.hidden"], found["train.epochs"], found["train.save_every"]) == ("64", "9", "11")
    assert (found["optim.clip_norm"], found["optim.clip_value"]) == ("3.0", "0.0")
    assert (found["optim.lr_decay"], found["model.dropout"], found["optim.decay"]) == ("exp:0.97@1", "0.2", "0.95")
    assert "limits the global norm" in done.stderr and "multiplies the learning rate" in done.stderr


@pytest.mark.parametrize(("command", "name"), NAMES, ids=lambda value: value)
def test_each_is_understood(invoke: Any, trained: Path, command: str, name: str) -> None:
    """Each alone: accepted, or an error that says what to do instead; what is no plain rename says what it did."""
    value = aliases.EXAMPLES[name.lstrip("-")]
    if value == "runs/old":  # a run that is read
        value = str(trained)
    if command == "train":
        done = invoke(["train", name, value, "--show-config"])
        _, meaning = aliases.explain(command, name)
        if meaning.startswith("an error"):
            assert done.exit_code == 2
        elif meaning in option_names():
            assert done.exit_code == 0, done.output
            assert f"flag {name}" in done.stdout and done.stderr == ""
        else:
            assert done.exit_code == 0, done.output
            assert name in done.stderr


def test_sample(invoke: Any, trained: Path) -> None:
    ours = invoke(["sample", trained, "-n", "20", "--prime", "hello", "-t", "0.5", "--seed", "4"])
    theirs = invoke(["sample", trained, "-length", "20", "-primetext", "hello", "-temperature", "0.5", "-seed", "4"])
    assert ours.exit_code == theirs.exit_code == 0, theirs.output
    assert theirs.stdout == ours.stdout
    other = invoke(
        ["sample", trained, "-length", "20", "-start_text", "hello", "-sample", "0", "-gpuid", "-1", "-verbose", "0"]
    )
    greedy = invoke(["sample", trained, "-n", "20", "--prime", "hello", "--greedy"])
    assert other.stdout == greedy.stdout
    assert "-sample 0 is --greedy" in other.stderr
    assert invoke(["sample", "-checkpoint", trained, "-length", "5"]).exit_code == 0


def test_the_text_the_folder_and_the_weights(invoke: Any, tmp_path: Path, trained: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "input.txt").write_text("hello world\n" * 100)
    sizes = "-rnn_size 8 -num_layers 1 -batch_size 4 -seq_length 10 --steps 2".split()
    places = ["-data_dir", folder, "-checkpoint_dir", tmp_path / "cv", "-init_from", trained]
    done = invoke(["train", *places, *sizes])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "cv")
    for word in ("is an argument here", "the run folder is", "takes the weights"):
        assert word in done.stderr


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ("train -input_h5 x.h5", "not needed"),
        ("train -sample 0", "no option -sample"),
        ("train -gpuid x", "-gpuid: expected a whole number"),
        ("train -rnn_size x", "-rnn_size: expected a whole number"),
        ("train -train_frac 0.99 -val_frac 0.2", "at most the whole text"),
        ("train -batchnorm 1", "no batch normalisation"),
        ("train -rnn_siz 3", "did you mean -rnn_size"),
        ("sample x -sample 2", "not there yet"),
    ],
)
def test_what_cannot_be_meant(invoke: Any, trained: Path, args: str, word: str) -> None:
    done = invoke([str(trained) if arg == "x" and "sample" in args[:6] else arg for arg in args.split()])
    assert done.exit_code == 2
    assert word in done.stderr
