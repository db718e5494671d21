"""Training runs: that they learn, resume bit for bit, stop, diverge and recover as they say."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import plugins, train
from tinygrad_rnn.checkpoint import load, save
from tinygrad_rnn.compile.workspace import drop_waiting
from tinygrad_rnn.config import RunConfig, SampleConfig, recipe, replace
from tinygrad_rnn.data import Dataset, load_dataset
from tinygrad_rnn.errors import CheckpointError, DataError, FileError, InputError, PluginError
from tinygrad_rnn.optim import Optimizer, register_optimizer
from tinygrad_rnn.registry import load_cell
from tinygrad_rnn.restore import load_run_model
from tinygrad_rnn.run import Run, checkpoints, describe, open_run, read_metrics, run_config
from tinygrad_rnn.sample import generate
from tinygrad_rnn.tensor import grad
from tinygrad_rnn.train import (
    DivergedError,
    Event,
    Finished,
    RolledBack,
    Sampled,
    Saved,
    Started,
    StepDone,
    Trainer,
    Validated,
    Watched,
    plan,
    register_callback,
    resume_training,
    start_training,
)

SMALL: dict[str, Any] = {
    "model.hidden": 12, "model.layers": 2, "data.corpus": "hello", "data.seq_len": 10, "data.batch": 4,
    "train.dtype": "float64", "train.steps": 30, "train.eval_every": 10, "train.save_every": 10, "train.device": "cpu",
}  # fmt: skip


def configured(**changes: Any) -> RunConfig:
    return replace(RunConfig(), {**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}})


def dataset_of(config: RunConfig) -> Dataset:
    return load_dataset(config.data)


def begin(out: Path, **changes: Any) -> Trainer:
    config = configured(**changes)
    return start_training(config, dataset_of(config), out)


def of_kind(events: list[Event], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def last_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    return load(checkpoints(open_run(path))[-1])


def assert_same_checkpoint(a: Path, b: Path) -> None:
    arrays, meta = last_checkpoint(a)
    others, other = last_checkpoint(b)
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        assert array.dtype == others[name].dtype
        assert array.tobytes() == others[name].tobytes(), name
    for key in ("step", "epoch", "cursor", "rng", "optim_step", "first_loss"):
        assert meta[key] == other[key], key


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `SMALL`. Do not change it."""
    folder = tmp_path_factory.mktemp("trained") / "whole"
    list(begin(folder).events())
    return folder


# ---------------------------------------------------------------------------------------------- learn


def test_a_run_learns_and_tells_what_happens(tmp_path: Path) -> None:
    changes = {"train.steps": 60, "train.sample_every": 30, "train.watch": "grads:20", "optim.lr": 0.01}
    events = list(begin(tmp_path / "run", **{k.replace(".", "__"): v for k, v in changes.items()}).events())
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    steps = of_kind(events, StepDone)
    assert [event.step for event in steps] == list(range(1, 61))
    V = events[0].V
    assert steps[0].loss == pytest.approx(math.log(V), rel=0.15)  # an untrained model knows nothing
    assert steps[-1].loss < 0.7 * steps[0].loss
    assert all(event.clipped_norm <= min(event.grad_norm, 5.0) + 1e-12 for event in steps)
    assert [event.step for event in of_kind(events, Validated)] == [10, 20, 30, 40, 50, 60]
    assert [event.step for event in of_kind(events, Sampled)] == [30, 60]
    watched = of_kind(events, Watched)
    assert [event.step for event in watched] == [20, 40, 60]
    assert {series.state for series in watched[0].report.series} == {"h", "c"}
    assert all(len(series.norm) == 10 for series in watched[0].report.series)
    assert of_kind(events, Saved)[0].step == 0
    records = read_metrics(open_run(tmp_path / "run"))
    kinds = [record["kind"] for record in records]
    assert kinds[0] == "start" and records[0]["executor"] in ("llvm", "numpy", "unroll") and records[0]["reason"]
    assert kinds.count("step") == 60
    assert kinds.count("watch") == 3
    assert kinds.count("val") == 6


def test_the_best_checkpoint_is_the_one_with_the_lowest_validation_loss(tmp_path: Path) -> None:
    events = list(begin(tmp_path / "run", train__keep=1).events())
    losses = {event.step: event.loss for event in of_kind(events, Validated)}
    best = min(losses, key=losses.__getitem__)
    assert load_run_model(tmp_path / "run").step == best
    assert load_run_model(tmp_path / "run", which="latest").step == 30


def test_no_checkpoint_is_ahead_of_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill may lose the records that wait, and never one of a step that the run comes back to."""
    monkeypatch.setattr(train, "RECORD_SECONDS", math.inf)
    trainer = begin(tmp_path / "run")

    def recorded() -> list[int]:
        return [row["step"] for row in read_metrics(trainer.run) if row["kind"] == "step"]

    events = trainer.events()
    for event in events:
        if isinstance(event, StepDone) and event.step == 15:
            break
        if isinstance(event, Saved):
            assert recorded() == list(range(1, event.step + 1))
    assert recorded() == list(range(1, 11))
    events.close()  # what an exception does on its way up
    assert recorded() == list(range(1, 16))


def test_sampling_and_watching_change_no_number(tmp_path: Path) -> None:
    list(begin(tmp_path / "plain", model__dropout=0.3).events())
    list(begin(tmp_path / "busy", model__dropout=0.3, train__sample_every=3, train__watch="grads").events())
    assert_same_checkpoint(tmp_path / "plain", tmp_path / "busy")


def test_two_seeds_differ_and_one_repeats(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        list(begin(tmp_path / name, train__seed=seed, train__steps=5).events())
    assert_same_checkpoint(tmp_path / "a", tmp_path / "b")
    a, _ = last_checkpoint(tmp_path / "a")
    c, _ = last_checkpoint(tmp_path / "c")
    assert not np.array_equal(a["params/readout.W"], c["params/readout.W"])


# --------------------------------------------------------------------------------------------- resume

RESUMED: list[dict[str, Any]] = [
    {},
    {"model__cell": "gru", "optim__optim": "rmsprop", "model__dropout": 0.4},
    {"model__cell": "rnn", "optim__optim": "sgd", "optim__momentum": 0.9, "optim__lr": 0.05, "train__dtype": "float32"},
    {"model__cell": "mut1", "model__embed": "7", "model__cell_options": {"input_map": "fixed"}},
    {"model__cell": "mut2", "optim__optim": "adagrad", "train__loss": "sum", "optim__clip_value": 0.5},
    {"model__cell": "mut3", "optim__optim": "adamw", "train__bptt": 30, "optim__lr_decay": "exp:0.5@1"},
    {"model__cell": "clockwork", "train__bptt": 30, "train__dtype": "float32"},
    {"model__embed": "onehot", "data__tokens": "bytes", "data__batch": 40, "data__seq_len": 80},
    {"model__cell": "gru", "data__batch": 40, "data__seq_len": 50, "train__bptt": 100},  # a pass ends with 35 and 35
]


@pytest.mark.parametrize("changes", RESUMED)
def test_resume_is_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    list(begin(tmp_path / "whole", train__steps=40, **changes).events())
    list(begin(tmp_path / "parts", train__steps=17, **changes).events())
    resumed = list(resume_training(tmp_path / "parts", steps=40).events())
    assert resumed[0].from_step == 17
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "parts")
    losses = [
        [record["loss"] for record in read_metrics(open_run(tmp_path / name)) if record["kind"] == "step"]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"optim__warmup": 20, "optim__lr_decay": "cosine"},
        {"optim__warmup": 5, "optim__lr_decay": "plateau:0.5@2", "train__eval_every": 3},
    ],
)
def test_a_schedule_goes_on_bit_for_bit(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "mean_loss", lambda *_: 1.0)  # no validation is better than the first
    steps = of_kind(list(begin(tmp_path / "whole", **changes).events()), StepDone)
    trainer = begin(tmp_path / "parts", **changes)
    for event in trainer.events():
        if isinstance(event, StepDone) and event.step == 17:
            trainer.stop()
    list(resume_training(tmp_path / "parts").events())
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "parts")
    metas = [last_checkpoint(tmp_path / name)[1] for name in ("whole", "parts")]
    for field in dataclasses.fields(train.Progress):
        assert metas[0][field.name] == metas[1][field.name], field.name
    assert steps[0].lr == pytest.approx(2e-3 / changes["optim__warmup"])
    if changes["optim__lr_decay"].startswith("plateau"):
        # the first counts as better; two behind it, at steps 6 and 9, halve the rate of step 10
        assert [step.lr for step in steps[5:16]] == pytest.approx([2e-3] * 4 + [1e-3] * 6 + [5e-4])


def test_resume_with_other_settings_records_them(tmp_path: Path) -> None:
    list(begin(tmp_path / "run", train__steps=4, train__patience=9).events())
    changes = {"optim.lr": 0.5, "optim.clip_norm": 0.25, "train.on_divergence": "rollback", "train.patience": 0}
    trainer = resume_training(tmp_path / "run", steps=6, settings=changes)
    steps = of_kind(list(trainer.events()), StepDone)
    assert [step.lr for step in steps] == [0.5, 0.5]
    assert all(step.clipped_norm <= 0.25 for step in steps)
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["changes"] == [
        {"step": 4, "setting": "optim.lr", "from": 2e-3, "to": 0.5},
        {"step": 4, "setting": "optim.clip_norm", "from": 5.0, "to": 0.25},
        {"step": 4, "setting": "train.patience", "from": 9, "to": 0},
        {"step": 4, "setting": "train.on_divergence", "from": "abort", "to": "rollback"},
    ]
    assert run_config(open_run(tmp_path / "run")).optim.lr == 0.5
    list(resume_training(tmp_path / "run", steps=7, settings={"optim.lr": 0.25}).events())
    listed = json.loads((tmp_path / "run" / "run.json").read_text())["changes"]
    assert len(listed) == 5 and listed[-1] == {"step": 6, "setting": "optim.lr", "from": 0.5, "to": 0.25}
    with pytest.raises(InputError, match=r"the run has settled model\.hidden; what can change is optim\.lr, "):
        resume_training(tmp_path / "run", settings={"model.hidden": 3})


def test_a_new_rate_is_the_rate(tmp_path: Path) -> None:
    """Whatever rollbacks and plateaus have made of the old one."""
    list(begin(tmp_path / "run", train__steps=4, optim__lr_decay="plateau:0.5@1").events())
    trainer = resume_training(tmp_path / "run", steps=6)
    trainer.progress.lr_scale, trainer.progress.drops = 0.25, 3
    assert of_kind(list(trainer.events()), StepDone)[0].lr == pytest.approx(2e-3 / 32)
    assert not json.loads((tmp_path / "run" / "run.json").read_text()).get("changes")
    again = resume_training(tmp_path / "run", steps=8, settings={"optim.lr": 2e-3})
    assert again.changes == [{"step": 6, "setting": "optim.lr", "from": pytest.approx(2e-3 / 32), "to": 2e-3}]
    assert of_kind(list(again.events()), StepDone)[0].lr == 2e-3


def test_resume_after_a_kill_repeats_what_was_lost(tmp_path: Path, whole: Path) -> None:
    trainer = begin(tmp_path / "killed")
    for event in trainer.events():
        if isinstance(event, StepDone) and event.step == 16:
            break  # as a SIGKILL would: nothing is saved on the way out
    assert max(record["step"] for record in read_metrics(open_run(tmp_path / "killed"))) == 16
    resumed = list(resume_training(tmp_path / "killed").events())
    assert resumed[0].from_step == 10
    assert_same_checkpoint(whole, tmp_path / "killed")
    steps = [r["step"] for r in read_metrics(open_run(tmp_path / "killed")) if r["kind"] == "step"]
    assert steps == list(range(1, 31))


def test_resume_of_a_run_killed_before_its_first_checkpoint(tmp_path: Path, whole: Path) -> None:
    begin(tmp_path / "run")  # run.json is there, and nothing else
    list(resume_training(tmp_path / "run").events())
    assert_same_checkpoint(tmp_path / "run", whole)
    for file in checkpoints(open_run(tmp_path / "run")):
        file.unlink()
    with pytest.raises(FileError, match="no checkpoint"):  # one that did train is not begun anew without a word
        resume_training(tmp_path / "run")
    config = configured()
    start_training(config, dataset_of(config), tmp_path / "fed", init_from=whole)
    with pytest.raises(FileError, match="no checkpoint"):  # the seed does not know these weights
        resume_training(tmp_path / "fed")


def test_stop_saves_and_says_interrupted(tmp_path: Path) -> None:
    trainer = begin(tmp_path / "run")
    events = []
    for event in trainer.events():
        events.append(event)
        if isinstance(event, StepDone) and event.step == 7:
            trainer.stop()
    assert isinstance(events[-1], Finished)
    assert (events[-1].reason, events[-1].step) == ("interrupted", 7)
    assert events[-2] == Saved(7, checkpoints(open_run(tmp_path / "run"))[-1])


def test_resume_refuses_what_it_cannot_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 40)
    config = configured(data__text=(str(text),), train__steps=4)
    list(start_training(config, dataset_of(config), tmp_path / "run").events())
    with pytest.raises(InputError, match="at least 4 steps"):
        resume_training(tmp_path / "run", steps=3)
    with pytest.raises(FileError, match="no run"):
        resume_training(tmp_path / "elsewhere")
    text.write_text("to be or not to be, that is the answer, not. " * 40)
    with pytest.raises(DataError, match="expected the text it was trained on"):
        resume_training(tmp_path / "run", steps=8)
    with monkeypatch.context() as patch:
        patch.setattr("tinygrad_rnn.plugins.source_hash", lambda cls: "0" * 64)
        with pytest.raises(PluginError, match="has changed since this run was made"):
            load_run_model(tmp_path / "run")
        load_run_model(tmp_path / "run", allow_changed_cell=True)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    list(begin(tmp_path / "run", train__steps=2).events())
    list(begin(tmp_path / "other", train__steps=2, model__hidden=5).events())
    file, foreign = (checkpoints(open_run(tmp_path / name))[-1] for name in ("run", "other"))
    file.write_bytes(foreign.read_bytes())
    with pytest.raises(CheckpointError, match="it is of another model"):
        resume_training(tmp_path / "run", steps=4)


def test_patience_stops_early(tmp_path: Path) -> None:
    # with a rate of 0 no validation is better than the first
    events = list(begin(tmp_path / "run", optim__lr=0.0, train__patience=2, train__eval_every=3).events())
    assert (events[-1].reason, events[-1].step) == ("patience", 9)


def test_patience_starts_anew_on_resume(tmp_path: Path) -> None:
    changes = {"optim__lr": 0.0, "train__patience": 2, "train__eval_every": 3}
    list(begin(tmp_path / "run", **changes).events())
    ends = [list(resume_training(tmp_path / "run").events())[-1] for _ in range(3)]
    assert [(end.reason, end.step) for end in ends] == [("patience", 15), ("patience", 21), ("patience", 27)]
    trainer = begin(tmp_path / "parts", **changes)
    for event in trainer.events():
        if isinstance(event, StepDone) and event.step == 7:
            trainer.stop()
    end = list(resume_training(tmp_path / "parts").events())[-1]
    assert (end.reason, end.step) == ("patience", 9)  # what was interrupted goes on counting


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__patience": 3, "data__val_frac": 0.0}, r"--patience 3: expected validations .* no text held out"),
        ({"train__patience": 3, "train__eval_every": 0}, r"--patience 3: .* got --eval-every 0"),
        (
            {"optim__lr_decay": "plateau:0.5@1", "data__val_frac": 0.0},
            r"--lr-decay plateau:0\.5@1: expected validations",
        ),
        ({"optim__momentum": 0.9}, r"--momentum 0\.9 has no effect: adam does not read it, rmsprop and sgd do"),
        ({"optim__eps": 0.0}, r"--eps 0: expected at least 2\.2e-308"),
        ({"optim__lr_decay": "linear"}, r"learning-rate decay: expected none, cosine"),
    ],
)
def test_what_has_no_effect_is_refused_before_the_folder_is_made(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        begin(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim__lr_decay": "exp:0.5@9"}, "--lr-decay exp:0.5@9 has no effect: it begins after "),
        ({"optim__lr_decay": "step:0.5@9"}, "--lr-decay step:0.5@9 has no effect: it begins after "),
        ({"optim__lr_decay": "plateau:0.5@3"}, "gives it 3 validations to judge by"),
        ({"optim__warmup": 30}, "--warmup 30: the rate never reaches --lr"),
        ({"train__patience": 3}, "--patience 3 has no effect"),
    ],
)
def test_what_a_short_run_never_comes_to_is_said(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    (remark,) = next(begin(tmp_path / "run", **changes).events()).remarks
    assert words in remark and "\n" not in remark
    assert next(begin(tmp_path / "long", **changes, train__steps=10**4).events()).remarks == ()


def test_a_validation_loss_that_is_no_number_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([math.nan, 2.0, 1.0])
    monkeypatch.setattr(train, "mean_loss", lambda *_: next(losses))
    events = of_kind(list(begin(tmp_path / "run").events()), Validated)
    assert [event.best for event in events] == [False, True, True]


def test_overwriting_leaves_no_batch_of_the_run_before(tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        list(poisoned(begin(tmp_path / "run"), at=2).events())
    assert list((tmp_path / "run").glob("diverged-*"))
    config = configured(train__steps=1)
    list(start_training(config, dataset_of(config), tmp_path / "run", overwrite=True).events())
    assert not list((tmp_path / "run").glob("diverged-*"))


def test_init_from_takes_the_weights_and_nothing_else(tmp_path: Path) -> None:
    list(begin(tmp_path / "first", train__steps=20).events())
    config = configured(optim__lr=0.0, train__steps=1, train__seed=5)
    trainer = start_training(config, dataset_of(config), tmp_path / "second", init_from=tmp_path / "first")
    arrays = load_run_model(tmp_path / "first").params
    assert trainer.progress.step == 0
    for name, value in trainer.params.items():
        assert np.array_equal(value.data, arrays[name].data), name
    other = configured(data__corpus="python-docs")
    with pytest.raises(InputError, match="same symbols"):
        start_training(other, dataset_of(other), tmp_path / "third", init_from=tmp_path / "first")
    wrapped = configured(model__wrap=("layernorm",))
    with pytest.raises(InputError, match="its weights need no --wrap, got --wrap layernorm; leave"):
        start_training(wrapped, dataset_of(wrapped), tmp_path / "third", init_from=tmp_path / "first")
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("theirs", "ours", "needed"),
    [
        ({"cell_options": {"activation": "relu"}}, {}, "--cell-opt activation=relu, got --cell-opt activation=tanh"),
        ({"wrap": ("residual",)}, {}, "--wrap residual, got no --wrap"),
        ({"wrap": ("zoneout:0.1",)}, {"wrap": ("zoneout:0.2",)}, "--wrap zoneout:0.1, got --wrap zoneout:0.2"),
        ({"cell": "janet"}, {"cell": "mgu"}, "--cell janet, got --cell mgu"),
        ({"cell_options": {"activation": "tanh"}}, {}, None),  # the default, spelled out
        ({"embed": "6"}, {"embed": "hidden"}, None),
    ],
)
def test_weights_go_to_the_model_that_trained_them(
    tmp_path: Path, theirs: dict[str, Any], ours: dict[str, Any], needed: str | None
) -> None:
    """Each pair has parameters of the same names and shapes, so a checkpoint alone does not tell them apart."""
    sizes = {"data__seq_len": 4, "train__steps": 1, "model__cell": "rnn", "model__hidden": 6}
    one, other = ({**sizes, **{f"model__{key}": value for key, value in own.items()}} for own in (theirs, ours))
    list(begin(tmp_path / "first", **one).events())
    config = configured(**other)
    if needed is None:
        start_training(config, dataset_of(config), tmp_path / "second", init_from=tmp_path / "first")
        return
    with pytest.raises(InputError, match=re.escape(f"its weights need {needed}; leave these options out")):
        start_training(config, dataset_of(config), tmp_path / "second", init_from=tmp_path / "first")
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("embed", ["hidden", "tied", "onehot", "5"])
@pytest.mark.parametrize("cell", ["gru", "lru"])
def test_new_symbols_change_nothing_for_those_that_the_weights_know(tmp_path: Path, cell: str, embed: str) -> None:
    """Rows are added to what has an axis of symbols: for known inputs, the known logits stay what they were."""
    kind = {"model__tie": True} if embed == "tied" else {"model__embed": embed}
    sizes = {**kind, "model__cell": cell, "train__dtype": "float64", "train__steps": 3}
    list(begin(tmp_path / "first", **sizes).events())
    old = load_run_model(tmp_path / "first")
    (tmp_path / "text.txt").write_text("hello new world!\n" * 60)
    config = configured(**sizes, data__text=(str(tmp_path / "text.txt"),), train__seed=7)
    with pytest.raises(DataError, match="'n'"):
        load_dataset(config.data, old.vocabulary)
    dataset = load_dataset(config.data, old.vocabulary, extend=True)
    V = old.vocabulary.size
    assert dataset.vocabulary.symbols == (*old.vocabulary.symbols, "!", "n")
    trainer = start_training(config, dataset, tmp_path / "second", init_from=tmp_path / "first")
    x = np.arange(3 * V).reshape(-1, 3) % V
    before, after = old.model.forward(old.params, x).logits.data, trainer.model.forward(trainer.params, x).logits.data
    assert after.shape[-1] == V + 2
    np.testing.assert_allclose(after[..., :V], before, rtol=1e-12, atol=1e-14)
    fresh = trainer.model.init(np.random.default_rng([7, 0]), "float64")
    for name, axis in [("embed.W", 0), ("readout.W", 1), ("readout.b", 0)]:
        if name in fresh and fresh[name].shape[axis] == V + 2:
            rows = [np.moveaxis(params[name].data, axis, 0)[V:] for params in (trainer.params, fresh)]
            np.testing.assert_array_equal(*rows)
    assert describe(open_run(tmp_path / "second"))["added_symbols"] == ["!", "n"]
    assert list(trainer.events())[-1].step == 3


def test_the_symbols_of_the_run_that_gives_its_weights_say_what_a_symbol_is(tmp_path: Path) -> None:
    words = configured(data__tokens="words", data__seq_len=3, train__steps=1)
    list(start_training(words, dataset_of(words), tmp_path / "first").events())
    vocabulary = load_run_model(tmp_path / "first").vocabulary
    config = configured(data__seq_len=3, train__steps=1)
    assert config.data.tokens == "chars"
    given = load_dataset(config.data, vocabulary)
    trainer = start_training(config, given, tmp_path / "second", init_from=tmp_path / "first")
    assert trainer.config.data.tokens == "words"
    assert run_config(open_run(tmp_path / "second")).data.tokens == "words"


def test_a_run_in_the_way_is_not_touched(tmp_path: Path) -> None:
    list(begin(tmp_path / "run", train__steps=2).events())
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(FileError, match="--overwrite"):
        begin(tmp_path / "run")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_a_cell_that_cannot_run_leaves_no_folder(tmp_path: Path, own_registry: None) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text(
        "from tinygrad_rnn import Cell, State, register_cell\n"
        "@register_cell\n"
        "class Broken(Cell):\n"
        "    name = 'broken'; summary = 'none'; citation = 'none'; equation = 'none'\n"
        "    def state(self): return {'h': State((self.H,))}\n"
        "    def params(self): return {}\n"
        "    def step(self, p, x, s): return {'h': s.c}\n"
    )
    config = configured(model__cell="broken")
    with pytest.raises(PluginError, match=r"cell broken, step \(broken.py:7\): no 'c' was declared"):
        start_training(config, dataset_of(config), tmp_path / "run", plugins=[plugin])
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------- what is read, and from where


def test_an_epoch_reads_every_symbol_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"data__batch": 1, "data__seq_len": 1000, "train__steps": 0, "train__epochs": 1, "data__val_frac": 0.1}
    trainer = begin(tmp_path / "run", **changes)
    read = []
    original = trainer._gradients

    def gradients(x: Any, y: Any, start: Any) -> Any:
        read.append(y)
        return original(x, y, start)

    monkeypatch.setattr(trainer, "_gradients", gradients)
    steps = of_kind(list(trainer.events()), StepDone)
    assert np.array_equal(np.concatenate(read)[:, 0], trainer.dataset.train[1:])
    assert [len(y) for y in read] == [1000] * 21 + [599]
    assert len(steps) == 22 and steps[-1].epoch == 1
    assert steps[-1].loss == pytest.approx(steps[-2].loss, rel=0.3)  # a mean over its own steps


def test_the_loss_that_is_a_sum_counts_the_steps_of_its_window(tmp_path: Path) -> None:
    losses = []
    for kind in ("mean", "sum"):
        changes = {"data__batch": 40, "data__seq_len": 50, "train__steps": 13, "optim__lr": 0.0, "train__loss": kind}
        losses.append([e.loss for e in of_kind(list(begin(tmp_path / kind, **changes).events()), StepDone)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_the_state_at_the_end_of_a_pass_is_kept(tmp_path: Path) -> None:
    """It is what samples go on from; the next pass begins at the start state."""
    changes = {"data__batch": 40, "data__seq_len": 80, "train__steps": 8}
    trainer = begin(tmp_path / "run", **changes)
    list(trainer.events())
    assert (trainer.progress.epoch, trainer.progress.cursor) == (1, 0)
    carried, kept = trainer.carried(), load_run_model(tmp_path / "run", which="latest").carried
    assert kept is not None and kept.symbol == carried.symbol == trainer.dataset.train[570]
    for layer, other in zip(carried.state, kept.state, strict=True):
        for name, value in layer.items():
            assert value.shape == (1, 12) and np.abs(value).max() > 0
            assert np.array_equal(value, other[name])
    _, _, start = trainer._window()
    assert all(not value.any() for layer in start for value in layer.values())


def test_samples_in_training_go_on_from_the_carried_state(tmp_path: Path) -> None:
    trainer = begin(tmp_path / "run", train__sample_every=5, train__steps=5, train__sample_length=60, optim__lr=0.05)
    (sampled,) = of_kind(list(trainer.events()), Sampled)
    texts = []
    for carried in (trainer.carried(), None):
        rng = np.random.default_rng([0, 2, 5])
        options = SampleConfig(length=60)
        pieces = generate(trainer.model, trainer.params, trainer.dataset.vocabulary, options, rng, carried)
        texts.append("".join(piece for (piece,) in pieces))
    assert sampled.text == texts[0] != texts[1]
    assert trainer.carried().symbol == trainer.dataset.train[50]


# ------------------------------------------------------------------------------------ truncated BPTT


def test_bptt_over_two_batches_is_one_long_window(tmp_path: Path) -> None:
    """The gradient of the second update, by k2 = 2 k1, is that of one window of 2 k1 steps with the late loss only."""
    from tinygrad_rnn import ops
    from tinygrad_rnn.tensor import grad

    trainer = begin(tmp_path / "run", train__bptt=20, optim__lr=0.0)
    events = trainer.events()
    while not (isinstance(event := next(events), StepDone) and event.step == 1):
        pass
    x, y, start = trainer._window()
    assert (x.shape, y.shape) == ((20, 4), (10, 4))
    assert np.array_equal(x, np.concatenate([trainer.streams[0][0], trainer.streams[1][0]]))
    _, _, got = trainer._gradients(x, y, start)
    forward = trainer.model.forward(trainer.params, x)
    expected = grad(ops.cross_entropy(forward.logits[10:], y), list(trainer.trained.values()))
    for (name, array), value in zip(got.items(), expected, strict=True):
        assert np.allclose(array, value.data, rtol=1e-12, atol=1e-15), name
    short = grad(
        ops.cross_entropy(trainer.model.forward(trainer.params, trainer.streams[1][0], trainer.state).logits, y),
        list(trainer.trained.values()),
    )
    assert any(not np.allclose(a, b.data, rtol=1e-6) for a, b in zip(got.values(), short, strict=True))


def test_bptt_has_to_be_a_multiple_of_the_sequence_length(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="multiple of --seq-len 10"):
        begin(tmp_path / "run", train__bptt=25)
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------------- divergence


def poisoned(trainer: Trainer, at: int) -> Trainer:
    """Put an infinity into a weight of layer 1 when step `at` is done."""
    original = trainer._advance

    def advance(state: Any) -> None:
        original(state)
        if trainer.progress.step == at:
            trainer.params["layers.1.W_hf"].data[0, 0] = np.nan

    trainer._advance = advance  # type: ignore[method-assign]
    return trainer


def test_divergence_names_the_place_and_keeps_the_batch(tmp_path: Path) -> None:
    trainer = poisoned(begin(tmp_path / "run"), at=14)
    with pytest.raises(DivergedError) as caught:
        list(trainer.events())
    error = caught.value
    assert error.where["step"] == 15
    assert (error.where["layer"], error.where["timestep"]) == (1, 0)
    assert error.where["gate"] == "f"
    assert "step-00000010" in str(error)
    assert "\n" not in str(error)
    arrays, meta = load(tmp_path / "run" / "diverged-step-00000015.safetensors")
    assert arrays["batch/x"].shape == (10, 4)
    assert meta["step"] == 14
    assert load_run_model(tmp_path / "run", which="latest").step == 10


def scaled(trainer: Trainer, at: int, factor: float) -> Trainer:
    """Multiply the gradient of step `at` by `factor`."""
    original = trainer._gradients

    def gradients(*batch: Any) -> Any:
        forward, total, grads = original(*batch)
        if trainer.progress.step + 1 == at:
            with np.errstate(over="ignore"):
                grads.flat *= factor
        return forward, total, grads

    trainer._gradients = gradients  # type: ignore[method-assign]
    return trainer


def test_the_norm_is_that_before_any_clipping(tmp_path: Path) -> None:
    changes = {"optim__lr": 0.0, "optim__clip_norm": 0.0, "train__steps": 3}
    plain, clamped = (
        of_kind(list(scaled(begin(tmp_path / name, **changes, optim__clip_value=limit), 2, 1e30).events()), StepDone)
        for name, limit in (("plain", 0.0), ("clamped", 1.0))
    )
    assert [step.grad_norm for step in plain] == [step.grad_norm for step in clamped]
    assert clamped[1].grad_norm > 1e28 and 1 < clamped[1].clipped_norm < 100
    assert [step.clipped_share for step in clamped] == [0.0, 1 / 2, 1 / 3]
    assert [step.clipped_share for step in plain] == [0.0] * 3
    record = [record for record in read_metrics(open_run(tmp_path / "clamped")) if record["kind"] == "step"][1]
    assert (record["grad_norm"], record["clipped_share"]) == (clamped[1].grad_norm, 0.5)
    resumed = list(resume_training(tmp_path / "clamped", steps=4).events())
    assert of_kind(resumed, StepDone)[0].clipped_share == 1 / 4
    assert resumed[-1].clipped == 1


def test_an_infinite_gradient_is_not_clamped_away(tmp_path: Path) -> None:
    trainer = scaled(begin(tmp_path / "run", optim__clip_value=5.0), 3, math.inf)
    with np.errstate(invalid="ignore"), pytest.raises(DivergedError, match="step 3: the gradient norm is not finite"):
        list(trainer.events())


@pytest.mark.parametrize("optim", ["adam", "adamw", "rmsprop", "adagrad"])
def test_a_slot_that_overflows_is_divergence(tmp_path: Path, optim: str) -> None:
    """The square of 1e25 is beyond float32; the weights would never move again, and the loss would look sound."""
    changes = {"optim__optim": optim, "optim__clip_norm": 0.0, "train__dtype": "float32"}
    words = rf"step 4: slot v of {optim} for .*--clip-norm 1, --dtype float64"
    with pytest.raises(DivergedError, match=words) as caught:
        list(scaled(begin(tmp_path / "run", **changes), 4, 1e25).events())
    assert caught.value.where["slot"] == "v" and str(caught.value).count("--clip-norm") == 1
    list(scaled(begin(tmp_path / "wide", **{**changes, "train__dtype": "float64"}), 4, 1e25).events())
    list(scaled(begin(tmp_path / "clipped", **{**changes, "optim__clip_norm": 1.0}), 4, 1e25).events())


def test_no_checkpoint_holds_a_slot_that_overflowed(tmp_path: Path, plugged: None) -> None:
    """Without any hint in the gradient: a plugin's slot may grow by itself."""
    trainer = begin(tmp_path / "run", optim__optim="heavy_of_test", train__eval_every=0, train__save_every=5)
    for event in trainer.events():
        if isinstance(event, StepDone) and event.step == 7:
            trainer.optim_state["slots"]["mean"]["readout.b"][...] = np.inf
            break
    with pytest.raises(DivergedError, match=r"step 7: slot mean .*step-00000005"):
        trainer._save(None)  # as the next checkpoint would
    assert len(checkpoints(open_run(tmp_path / "run"))) == 2


def test_an_update_that_is_not_finite_is_found_at_once(tmp_path: Path) -> None:
    changes = {"optim__optim": "sgd", "optim__clip_norm": 0.0, "optim__lr": 1e200, "train__save_every": 1}
    with pytest.raises(DivergedError, match=r"step 1: the update left .* Last good checkpoint: .*step-00000000"):
        list(scaled(begin(tmp_path / "run", **changes), 1, 1e200).events())
    arrays, _ = last_checkpoint(tmp_path / "run")
    assert all(np.isfinite(array).all() for array in arrays.values())


def spoilt(trainer: Trainer, at: int, times: int) -> Trainer:
    """Multiply the readout by 1e6 when step `at` is done, the first `times` times."""
    original, left = trainer._advance, [times]

    def advance(state: Any) -> None:
        original(state)
        if trainer.progress.step == at and left[0]:
            left[0] -= 1
            trainer.params["readout.W"].data[...] *= 1e6

    trainer._advance = advance  # type: ignore[method-assign]
    return trainer


@pytest.mark.parametrize("keep", [1, 3])
def test_rollback_passes_over_the_checkpoint_that_holds_the_diverged_weights(tmp_path: Path, keep: int) -> None:
    changes = {"train__on_divergence": "rollback", "train__save_every": 1, "train__keep": keep, "data__val_frac": 0.0}
    events = list(spoilt(begin(tmp_path / "run", **changes), at=14, times=1).events())
    (back,) = of_kind(events, RolledBack)
    assert (back.step, back.to_step) == (15, 13)
    assert events[-1].step == 30
    assert len(checkpoints(open_run(tmp_path / "run"))) == max(keep, 2)


def test_a_second_failure_at_the_same_place_goes_one_further_back(tmp_path: Path) -> None:
    changes = {"train__on_divergence": "rollback", "train__save_every": 1, "data__val_frac": 0.0}
    events = list(spoilt(begin(tmp_path / "run", **changes), at=14, times=3).events())
    assert [back.to_step for back in of_kind(events, RolledBack)] == [13, 12, 12]
    steps = [record["step"] for record in read_metrics(open_run(tmp_path / "run")) if record["kind"] == "step"]
    assert steps == list(range(1, 31))


def test_the_last_good_checkpoint_is_good(tmp_path: Path) -> None:
    trainer = spoilt(begin(tmp_path / "run", train__save_every=1, data__val_frac=0.0), at=14, times=1)
    with pytest.raises(DivergedError, match=r"Last good checkpoint: .*step-00000013"):
        list(trainer.events())
    assert last_checkpoint(tmp_path / "run")[1]["step"] == 13  # where resume goes on from
    assert of_kind(list(resume_training(tmp_path / "run").events()), StepDone)[0].step == 14


def test_nothing_goes_back_where_nothing_is_good(tmp_path: Path) -> None:
    trainer = scaled(begin(tmp_path / "run", train__on_divergence="rollback"), 1, math.inf)
    with np.errstate(invalid="ignore"), pytest.raises(DivergedError, match="No checkpoint is good"):
        list(trainer.events())
    assert not [r for r in read_metrics(open_run(tmp_path / "run")) if r["kind"] == "rollback"]


@pytest.mark.parametrize("decay", ["none", "step:8@1", "exp:0.5@1"])
def test_rollback_announces_the_rate_that_is_used(tmp_path: Path, decay: str) -> None:
    changes = {"train__on_divergence": "rollback", "optim__lr_decay": decay, "data__batch": 64, "data__seq_len": 40}
    trainer = begin(tmp_path / "run", **changes)
    assert trainer.steps_per_epoch < 10
    events = list(spoilt(trainer, at=14, times=1).events())
    place = next(i for i, event in enumerate(events) if isinstance(event, RolledBack))
    assert events[place].lr == of_kind(events[place:], StepDone)[0].lr


def test_rollback_goes_on_from_the_last_checkpoint_with_half_the_rate(tmp_path: Path) -> None:
    trainer = poisoned(begin(tmp_path / "run", train__on_divergence="rollback"), at=14)
    events = []
    for event in trainer.events():
        events.append(event)
        if isinstance(event, RolledBack):
            del trainer._advance  # once is enough
    (back,) = of_kind(events, RolledBack)
    assert (back.step, back.to_step, back.lr) == (15, 10, 1e-3)
    assert isinstance(events[-1], Finished)
    assert events[-1].step == 30
    steps = [r for r in read_metrics(open_run(tmp_path / "run")) if r["kind"] == "step"]
    assert [r["step"] for r in steps] == list(range(1, 31))
    assert {r["lr"] for r in steps if r["step"] > 10} == {1e-3}


def test_rollback_gives_up_in_the_end(tmp_path: Path) -> None:
    """The rate is halved five times and is still far too high; the advice is another one then."""
    changes = {"optim__optim": "sgd", "optim__lr": 1e9, "optim__clip_norm": 0.0, "train__on_divergence": "rollback"}
    with pytest.raises(DivergedError, match="going back 5 times has not helped"):
        list(begin(tmp_path / "run", **changes).events())
    kinds = [record["kind"] for record in read_metrics(open_run(tmp_path / "run"))]
    assert kinds.count("rollback") == 5
    assert kinds[-1] == "diverged"


def test_a_loss_far_above_the_first_one_is_divergence(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"3 times the first one \([^)]*\)\. "):
        list(begin(tmp_path / "run", optim__optim="sgd", optim__lr=1e3, train__steps=200).events())


def test_a_cell_that_explodes_untrained_is_told_as_one(tmp_path: Path) -> None:
    for gain in ("2.5", "1e30"):  # a loss that is too large, and one that is no number
        options = {"activation": "identity", "recurrent_init": f"orthogonal:{gain}"}
        trainer = begin(tmp_path / gain, model__cell="rnn", model__cell_options=options)
        with (
            np.errstate(all="ignore"),
            pytest.raises(DivergedError, match=r"Try other options .* \(ln \d+ = 2\.\d+ is"),
        ):
            list(trainer.events())


# -------------------------------------------------------------------------------------------- recipes


def test_min_char_rnn_is_the_program_of_the_lecture(tmp_path: Path) -> None:
    """Twenty updates of the recipe against a bare NumPy loop with the same start, in float64."""
    config = replace(RunConfig(), {**recipe("min-char-rnn"), "data.corpus": "hello", "model.hidden": 9,
                                   "train.steps": 20, "train.dtype": "float64", "train.device": "cpu"})  # fmt: skip
    data = dataset_of(config)
    trainer = start_training(config, data, tmp_path / "run")
    p = {name: value.data.copy() for name, value in trainer.params.items()}
    Wxh, Whh, bh = p["layers.0.W_xh"].T, p["layers.0.W_hh"].T, p["layers.0.b_h"][:, None]
    Why, by = p["readout.W"].T, p["readout.b"][:, None]
    assert abs(Wxh.std() - 0.01) < 0.003
    assert not bh.any()
    memory = [np.zeros_like(w) for w in (Wxh, Whh, Why, bh, by)]
    h_prev = np.zeros((9, 1))
    expected = []
    for n in range(20):
        inputs = data.train[n * 25 : n * 25 + 25].astype(int)
        targets = data.train[n * 25 + 1 : n * 25 + 26].astype(int)
        hs, ps, loss = {-1: h_prev}, {}, 0.0
        for t in range(25):
            hs[t] = np.tanh(Wxh[:, [inputs[t]]] + Whh @ hs[t - 1] + bh)
            e = np.exp(Why @ hs[t] + by)
            ps[t] = e / e.sum()
            loss -= np.log(ps[t][targets[t], 0])
        grads = [np.zeros_like(w) for w in (Wxh, Whh, Why, bh, by)]
        dh_next = np.zeros((9, 1))
        for t in reversed(range(25)):
            dy = ps[t].copy()
            dy[targets[t]] -= 1
            grads[2] += dy @ hs[t].T
            grads[4] += dy
            draw = (1 - hs[t] ** 2) * (Why.T @ dy + dh_next)
            grads[3] += draw
            grads[0][:, inputs[t]] += draw[:, 0]
            grads[1] += draw @ hs[t - 1].T
            dh_next = Whh.T @ draw
        for w, g, m in zip((Wxh, Whh, Why, bh, by), grads, memory, strict=True):
            g = np.clip(g, -5, 5)
            m += g * g
            w -= 0.1 * g / np.sqrt(m + 1e-8)
        h_prev = hs[24]
        expected.append(loss / 25)
    got = [event.loss for event in of_kind(list(trainer.events()), StepDone)]
    assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["char-rnn", "torch-rnn"])
def test_the_other_recipes_run(tmp_path: Path, name: str) -> None:
    config = replace(RunConfig(), {**recipe(name), "data.corpus": "hello", "train.steps": 2, "model.hidden": 8})
    events = list(start_training(config, dataset_of(config), tmp_path / "run").events())
    assert events[-1].step == 2


# ----------------------------------------------------------------------------------------------- plan


def test_plan_measures_without_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = configured()
    data = dataset_of(config)
    small = plan(config, data)
    assert small.steps == 30
    assert small.seconds == pytest.approx(30 * small.seconds_per_step)
    longer = plan(dataclasses.replace(config, data=dataclasses.replace(config.data, seq_len=40)), data)
    assert 3 < longer.activation_bytes / small.activation_bytes < 5  # what is kept grows with T
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{}, {"model__cell": "gru", "model__dropout": 0.2}, {"train__bptt": 100}])
def test_plan_counts_what_a_forward_pass_keeps(changes: dict[str, Any]) -> None:
    """The compiled loops' records too: against what Python's allocator sees, with nothing taken from the pools."""
    config = configured(
        **{"model__cell": "lstm", "model__hidden": 32, "data__seq_len": 50, "data__batch": 16, **changes}
    )
    data = dataset_of(config)
    found = plan(config, data)
    parts = train._prepare(config, data.vocabulary.size, load_cell(config.model.cell), True)
    params = parts.model.init(np.random.default_rng(0), config.train.dtype)
    trainer = Trainer(Run(Path()), config, data, parts, params)
    for _ in range(2):  # the first compiles; the history of a longer window is there
        state = trainer._gradients(*trainer._window())[0].state
        trainer._advance(train.detach(state))
    x, y, start = trainer._window()
    drop_waiting()
    tracemalloc.start()
    try:
        forward = trainer.model.forward(params, x, start, rng=trainer.rng)
        loss = train.cross_entropy(forward.logits[len(x) - len(y) :], y)
        held = tracemalloc.get_traced_memory()[0]
        grad(loss, list(trainer.trained.values()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held > 500_000
    assert found.activation_bytes == pytest.approx(held, rel=0.05)
    assert found.step_bytes == pytest.approx(peak, rel=0.15) and found.step_bytes > 1.5 * found.activation_bytes


def test_plan_times_what_training_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of the training's cross-entropy, and the optimiser's update."""
    called: list[str] = []
    for where, name in ((train, "cross_entropy"), (train.optim, "update"), (train.optim, "clip")):
        real = getattr(where, name)
        monkeypatch.setattr(
            where, name, lambda *args, real=real, name=name, **more: called.append(name) or real(*args, **more)
        )
    config = configured()
    found = plan(config, dataset_of(config), probe=1)
    assert called == ["cross_entropy", "clip", "update"] * 3
    numbers = found.params * np.dtype(config.train.dtype).itemsize
    assert found.weight_bytes == 4 * numbers  # parameters, gradients, and adam's two moments


# -------------------------------------------------------------------------------- plugins in a training


class Heavy(Optimizer):
    """Two slots, and an own option, in plain NumPy."""

    name = "heavy_of_test"
    summary = "momentum, and a mean of the parameters"
    citation = "nobody"

    @dataclass(frozen=True)
    class Options:
        inertia: float = 0.9

    def slots(self) -> tuple[str, ...]:
        return "u", "mean"

    def update(self, params: Any, grads: Any, slots: Any, step: int, lr: float) -> None:
        for name, p in params.items():
            slots["u"][name][...] = self.options.inertia * slots["u"][name] + grads[name]
            p -= lr * slots["u"][name]
            slots["mean"][name][...] += (p - slots["mean"][name]) / step


@pytest.fixture
def plugged(own_registry: None) -> None:
    register_optimizer(Heavy)


def test_an_optimiser_of_a_plugin_resumes_bit_for_bit(tmp_path: Path, plugged: None) -> None:
    changes = {"optim__optim": "heavy_of_test", "optim__optim_options": {"inertia": 0.8}, "optim__lr": 0.05}
    list(begin(tmp_path / "whole", **changes).events())
    list(begin(tmp_path / "parts", **changes, train__steps=12).events())
    list(resume_training(tmp_path / "parts", steps=30).events())
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "parts")
    arrays, meta = last_checkpoint(tmp_path / "parts")
    assert {name.split("/")[1] for name in arrays if name.startswith("optim/")} == {"u", "mean"}
    described = json.loads((tmp_path / "parts" / "run.json").read_text())
    assert meta["optimizer"] == described["optimizer"]
    assert (meta["optimizer"]["name"], meta["cell"]["name"]) == ("heavy_of_test", "lstm")


def test_resume_refuses_another_optimiser_of_the_same_name(
    tmp_path: Path, plugged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(begin(tmp_path / "run", optim__optim="heavy_of_test", train__steps=2).events())
    before = (tmp_path / "run" / "run.json").read_bytes()
    plugins.forget(plugins.OPTIMIZERS, "heavy_of_test")
    with pytest.raises(InputError, match="no optimiser 'heavy_of_test'"):
        resume_training(tmp_path / "run", steps=4)
    monkeypatch.setattr("tinygrad_rnn.plugins.source_hash", lambda value: "1" * 64 if value is Heavy else CELL)
    CELL = last_checkpoint(tmp_path / "run")[1]["cell"]["source_sha256"]
    register_optimizer(Heavy)
    with pytest.raises(PluginError, match=r"the code of optimiser 'heavy_of_test' .* is now 111111111111; take"):
        resume_training(tmp_path / "run", steps=4)
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert load_run_model(tmp_path / "run").changed is None  # the optimiser does not matter to a sample
    list(resume_training(tmp_path / "run", steps=4, allow_changed_cell=True).events())
    assert last_checkpoint(tmp_path / "run")[1]["optimizer"]["source_sha256"] == "1" * 64


def test_a_checkpoint_from_before_optimisers_were_plugins_resumes(tmp_path: Path) -> None:
    list(begin(tmp_path / "run", train__steps=2).events())
    run = open_run(tmp_path / "run")
    file = checkpoints(run)[-1]
    arrays, meta = load(file)
    save(file, arrays, {key: value for key, value in meta.items() if key not in ("cell", "optimizer")})
    described = json.loads((run.path / "run.json").read_text())
    del described["optimizer"], described["config"]["optim"]["optim_options"], described["config"]["train"]["callbacks"]
    (run.path / "run.json").write_text(json.dumps(described))
    assert of_kind(list(resume_training(run.path, steps=3).events()), StepDone)[0].step == 3


def test_callbacks_hear_every_event_and_change_nothing(tmp_path: Path, plugged: None, whole: Path) -> None:
    heard: list[Any] = []

    @register_callback
    def ear_of_test(argument: str) -> Any:
        """Writes down what it hears."""
        return lambda event, trainer: heard.append((argument, event, trainer.progress.step))

    events = list(begin(tmp_path / "run", train__callbacks=("ear-of-test:a:b", "ear-of-test")).events())
    assert [entry[1] for entry in heard[::2]] == events == [entry[1] for entry in heard[1::2]]
    assert {entry[0] for entry in heard[::2]} == {"a:b"} and {entry[0] for entry in heard[1::2]} == {""}
    assert [step for _, event, step in heard[::2] if isinstance(event, StepDone)] == list(range(1, 31))
    assert_same_checkpoint(tmp_path / "run", whole)
    heard.clear()
    list(resume_training(tmp_path / "run", steps=31).events())  # the run remembers them
    assert len(heard) > 4
    heard.clear()
    list(resume_training(tmp_path / "run", steps=32, callbacks=["none"]).events())
    list(resume_training(tmp_path / "run", steps=33).events())
    assert heard == []


def test_a_callback_stops_the_training(tmp_path: Path, plugged: None, whole: Path) -> None:
    @register_callback
    def stop_of_test(argument: str) -> Any:
        """Stops behind step ARGUMENT."""
        return lambda event, trainer: "enough" if trainer.progress.step >= int(argument) else None

    events = list(begin(tmp_path / "run", train__callbacks=("stop-of-test:7",)).events())
    assert (events[-1].reason, events[-1].step) == ("callback stop-of-test: enough", 7)
    assert last_checkpoint(tmp_path / "run")[1]["step"] == 7
    list(resume_training(tmp_path / "run", callbacks=()).events())
    assert_same_checkpoint(tmp_path / "run", whole)


@pytest.mark.parametrize("at", [Started, StepDone, Validated, Saved, Finished])
def test_a_callback_that_fails_destroys_nothing(tmp_path: Path, plugged: None, at: type, whole: Path) -> None:
    @register_callback
    def faulty_of_test(argument: str) -> Any:
        """Fails."""

        def heard(event: Event, trainer: Trainer) -> None:
            if isinstance(event, at) and (trainer.progress.step >= 10 or at is Started):
                raise ValueError("first line\nsecond line")

        return heard

    events = []
    what = rf"^callback 'faulty-of-test', {at.__name__} \(test_train\.py:\d+\): ValueError: first line second line; "
    with pytest.raises(PluginError, match=what) as caught:
        for event in begin(tmp_path / "run", train__callbacks=("faulty-of-test",)).events():
            events.append(event)
    step = last_checkpoint(tmp_path / "run")[1]["step"]
    assert step == {Started: 0, Finished: 30}.get(at, 10)
    assert f"step {step} is saved" in str(caught.value) and "--callback none" in str(caught.value)
    assert not of_kind(events, Finished)
    list(resume_training(tmp_path / "run", callbacks=["none"]).events())
    assert_same_checkpoint(tmp_path / "run", whole)


def test_a_callback_that_breaks_its_contract(tmp_path: Path, plugged: None) -> None:
    @register_callback
    def odd_of_test(argument: str) -> Any:
        """Returns what ARGUMENT says."""
        if argument == "nothing":
            return None
        if argument == "user":
            raise InputError("callback odd-of-test: expected another argument")
        return lambda event, trainer: 3

    for argument, error, message in [
        ("nothing", PluginError, r"'odd-of-test': expected a function of \(event, trainer\) in return, got None"),
        ("user", InputError, r"^callback odd-of-test: expected another argument$"),
    ]:
        with pytest.raises(error, match=message):
            begin(tmp_path / "run", train__callbacks=(f"odd-of-test:{argument}",))
    with pytest.raises(InputError, match="no callback 'odd-of-tes'; did you mean odd-of-test"):
        begin(tmp_path / "run", train__callbacks=("odd-of-tes",))
    assert not (tmp_path / "run").exists()
    with pytest.raises(PluginError, match=r"Started: expected None, or a text that says why to stop, got 3; step 0"):
        list(begin(tmp_path / "run", train__callbacks=("odd-of-test",)).events())


def test_a_plugin_file_that_is_gone_is_asked_for(tmp_path: Path, plugged: None) -> None:
    file = tmp_path / "stranger.py"
    file.write_text(
        "import tinygrad_rnn as tr\n\n\n@tr.register_callback\ndef quiet_of_test(argument):\n"
        '    """Hears all, says nothing."""\n    return lambda event, trainer: None\n'
    )
    plugins.load_file(file)
    config = configured(train__callbacks=("quiet-of-test",), train__steps=2)
    list(start_training(config, dataset_of(config), tmp_path / "run", plugins=[file]).events())
    plugins.forget(plugins.CALLBACKS, "quiet-of-test")
    moved = file.rename(tmp_path / "moved.py")
    with pytest.raises(
        PluginError, match=r"run .*run wants the plugin file .*stranger\.py, which is not there"
    ) as caught:
        resume_training(tmp_path / "run", steps=3)
    assert "--plugin" in str(caught.value) and "\n" not in str(caught.value)
    load_run_model(tmp_path / "run")  # needs the cell alone
    list(resume_training(tmp_path / "run", steps=3, plugins=[moved]).events())
    list(resume_training(tmp_path / "run", steps=4, callbacks=["none"]).events())
