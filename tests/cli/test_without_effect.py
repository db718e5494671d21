"""Options that could do nothing: each is an error of usage, or a line on stderr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import TINY

TRAIN = ["train", *TINY, "--steps", "3"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train --overwrite", "--overwrite has no effect without --out"),
        ("train --epochs 3 --steps 3", "--epochs has no effect beside --steps"),
        ("train --val-frac 0 --eval-every 3", "--eval-every has no effect with --val-frac 0"),
        ("train --recipe min-char-rnn --set train.eval_every=3", "--set train.eval_every has no effect with"),
        ("train --set train.sample_length=30", "--sample-length has no effect without --sample-every"),
        ("train --errors replace", "--errors has no effect on a corpus"),
        ("train TEXT --set data.corpus=hello", "--set data.corpus has no effect beside TEXT"),
        ("data stats TEXT --set data.corpus=hello", "--set data.corpus has no effect beside TEXT"),
        ("data stats --errors ignore", "--errors has no effect on a corpus"),
        ("resume RUN --steps 20 --epochs 2", "--epochs has no effect beside --steps"),
        ("eval RUN --top 3", "--top has no effect without --by-char"),
        ("eval RUN --unknown error", "--unknown has no effect without TEXT"),
        ("eval RUN TEXT --part val", "--part has no effect beside TEXT"),
        ("diagnose gradnorm --cell rnn --wrt params --csv x.csv", "--csv has no effect with --wrt params"),
        ("diagnose gradnorm --cell rnn --wrt params --loss last", "--loss has no effect with --wrt params"),
        ("diagnose gradnorm RUN --wrt params --plot x.png", "--plot has no effect with --wrt params"),
        ("diagnose gradnorm --cell rnn --cell rnn", "--cell rnn: expected other options than before"),
        ("diagnose gradnorm --cell rnn --cell-opt activation=relu --cell rnn --cell-opt rnn.activation=relu",
         "--cell rnn: expected other options than before"),
    ],
)  # fmt: skip
def test_an_option_that_does_nothing_is_refused(
    invoke: Any, one_line: Any, trained: Path, tmp_path: Path, words: str, told: str
) -> None:
    (tmp_path / "text.txt").write_text("hello world\n" * 100)
    places = {"RUN": str(trained), "TEXT": "text.txt"}
    done = invoke([places.get(word, word) for word in words.split()])
    assert done.exit_code == 2, done.output
    assert told in one_line(done.stderr)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--eval-every 10", "--eval-every 10 has no effect: the run of 3 steps validates at its end only"),
        ("--save-every 10", "--save-every 10 has no effect: the run of 3 steps saves at its start and end only"),
        ("--sample-every 10", "--sample-every 10 has no effect: the run of 3 steps prints no sample"),
        ("--watch grads:4", "--watch grads:4 has no effect: the run of 3 steps watches no step"),
        ("--keep 9", "--keep 9 has no effect: the run writes 2 checkpoints at most"),
        ("--seq-len 5", "--seq-len is given 2 times; the last one counts"),
        ("--cell-opt forget_bias=1 --cell-opt forget-bias=2", "--cell-opt forget_bias is given more than once"),
        ("-rnn_size 4", "-rnn_size gives way to --hidden"),
        ("--set model.cell_options.activation=relu --set model.cell=rnn --cell gru",
         "--cell-opt activation=relu (--set) gives way to --cell gru (flag --cell)"),
    ],
)  # fmt: skip
def test_an_option_that_comes_to_nothing_is_told(invoke: Any, words: str, told: str) -> None:
    done = invoke([*TRAIN, *words.split(), "--out", "run"])
    assert done.exit_code == 0, done.output
    assert f"note: {told}" in done.stderr


@pytest.mark.parametrize("words", ["--eval-every 1", "--save-every 3", "--keep 1", "--patience 2 --eval-every 1"])
def test_an_option_that_does_something_is_not(invoke: Any, words: str) -> None:
    done = invoke([*TRAIN, *words.split(), "--out", "run"])
    assert done.exit_code == 0 and "note:" not in done.stderr


def test_epochs_take_the_place_of_steps_below_them(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[train]\nsteps = 7\n")
    done = invoke(["train", "--config", "mine.toml", "--epochs", "3", "--show-config"])
    assert "train.steps = 0" in done.stdout and "train.epochs = 3" in done.stdout
    assert "note: --steps 7 (file mine.toml) gives way to --epochs 3 (flag --epochs)" in done.stderr


def test_settings_of_a_file_that_the_run_has_settled(invoke: Any, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[model]\nhidden = 9\nlayers = 1\n[train]\nsteps = 13\n")
    done = invoke(["resume", trained, "--config", "mine.toml", "--show-config"])
    assert f"note: mine.toml: model.hidden do nothing here; they are those of the run {trained}" in done.stderr
    (tmp_path / "same.toml").write_text(invoke(["train", "--init-from", trained, *TINY, "--show-config"]).stdout)
    again = invoke(["sample", trained, "--config", "same.toml", "-n", "3"])
    assert again.exit_code == 0 and "model." not in again.stderr


def test_one_cell_with_several_options(invoke: Any) -> None:
    words = "diagnose gradnorm --hidden 8 --layers 1 --batch 2 --steps 12 --json"
    each = "--cell rnn --cell-opt activation=identity --cell rnn --cell-opt activation=relu --cell gru"
    shared = "--cell-opt recurrent_init=orthogonal:1"
    both = json.loads(invoke(f"{words} {each}").stdout)["reports"]
    assert [report["cell"] for report in both] == ["rnn activation=identity", "rnn activation=relu", "gru"]
    alone = json.loads(invoke(f"{words} --cell rnn --cell-opt activation=relu").stdout)
    assert both[1]["series"] == alone["series"] != both[0]["series"]
    first = json.loads(invoke(f"{words} {shared} {each.removesuffix(' --cell gru')}").stdout)["reports"]
    assert first[0]["series"] != both[0]["series"]  # before the first cell, it belongs to every one


def test_the_rows_of_a_table_are_as_many_as_asked_for(invoke: Any, trained: Path) -> None:
    rows = [
        json.loads(invoke(["eval", trained, "--json", "--by-char", *more]).stdout)["by_char"]
        for more in ([], ["--top", "2"])
    ]
    assert len(rows[0]) > 2 and rows[1] == rows[0][:2]
