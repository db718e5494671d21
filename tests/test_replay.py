"""A diverged step run once more: it breaks where the training said, from the file alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tinygrad_rnn.config import RunConfig, replace
from tinygrad_rnn.data import load_dataset
from tinygrad_rnn.errors import FileError, InputError
from tinygrad_rnn.replay import diverged_steps, replay_step
from tinygrad_rnn.run import open_run
from tinygrad_rnn.train import DivergedError, Trainer, start_training

SMALL: dict[str, Any] = {
    "model.hidden": 8, "model.layers": 2, "data.corpus": "hello", "data.seq_len": 6, "data.batch": 3,
    "train.dtype": "float64", "train.steps": 12, "train.save_every": 4, "train.device": "cpu",
}  # fmt: skip


def begin(out: Path, **changes: Any) -> Trainer:
    config = replace(RunConfig(), {**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}})
    return start_training(config, load_dataset(config.data), out)


def diverged(trainer: Trainer, at: int, name: str, value: float) -> DivergedError:
    """Multiply a parameter by `value` when step `at` is done, and train until it diverges."""
    original = trainer._advance

    def advance(state: Any) -> None:
        original(state)
        if trainer.progress.step == at:
            trainer.params[name].data[...] *= value

    trainer._advance = advance  # type: ignore[method-assign]
    with pytest.raises(DivergedError) as caught:
        list(trainer.events())
    return caught.value


@pytest.mark.parametrize("changes", [{}, {"train__bptt": 12, "model__dropout": 0.5}, {"train__loss": "sum"}])
def test_a_replay_breaks_where_the_training_did(tmp_path: Path, changes: dict[str, Any]) -> None:
    error = diverged(begin(tmp_path / "run", **changes), 5, "layers.1.W_hf", math.nan)
    seen = replay_step(tmp_path / "run")
    assert seen.step == 6 and list(diverged_steps(open_run(tmp_path / "run"))) == [6]
    place = {name: value for name, value in error.where.items() if name != "step"}
    assert {name: seen.where[name] for name in place} == place
    assert (seen.where["layer"], seen.where["gate"]) == (1, "f")
    assert math.isnan(seen.loss) and seen.broke and str(seen.why) in str(error)
    assert {(layer, name): at for layer, name, value, at in seen.states if math.isnan(value)}[1, "h"] == 0


def test_a_replay_of_a_loss_that_was_too_high(tmp_path: Path) -> None:
    error = diverged(begin(tmp_path / "run"), 5, "readout.W", 1e4)
    seen = replay_step(tmp_path / "run", step=6)
    assert f"loss {seen.loss:.4g} is more than" in str(error)  # the same number again
    assert seen.broke.startswith("nothing") and math.isfinite(seen.grad_norm)
    gradients = [gradient for _, _, gradient in seen.parameters]
    assert gradients == sorted(gradients, reverse=True)
    assert math.sqrt(math.fsum(g * g for g in gradients)) == pytest.approx(seen.grad_norm)


def test_an_update_that_broke_is_told_with_its_gradient(tmp_path: Path) -> None:
    trainer = begin(tmp_path / "run", optim__optim="sgd", optim__lr=1e39, train__dtype="float32")
    with pytest.raises(DivergedError, match="the update left numbers in") as caught:
        list(trainer.events())
    seen = replay_step(tmp_path / "run")
    assert (seen.step, seen.broke, seen.states) == (1, "the update", ())
    assert seen.where["parameter"] == caught.value.where["parameter"]
    assert seen.loss == pytest.approx(math.log(trainer.model.V), rel=0.1)
    assert math.sqrt(math.fsum(g * g for _, _, g in seen.parameters)) == pytest.approx(seen.grad_norm)
    assert not all(math.isfinite(norm) for _, norm, _ in seen.parameters)


def test_what_cannot_be_replayed_says_so(tmp_path: Path) -> None:
    list(begin(tmp_path / "sound", train__steps=1).events())
    with pytest.raises(FileError, match="holds no diverged step"):
        replay_step(tmp_path / "sound")
    diverged(begin(tmp_path / "run"), 5, "readout.W", math.nan)
    with pytest.raises(InputError, match="--step 3: expected a step that diverged, one of 6"):
        replay_step(tmp_path / "run", step=3)
