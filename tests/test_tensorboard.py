"""The callback `tensorboard`: what TensorBoard reads is what happened."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import pytest

from tinygrad_rnn.config import RunConfig, replace
from tinygrad_rnn.data import load_dataset
from tinygrad_rnn.errors import InputError
from tinygrad_rnn.run import open_run, read_metrics
from tinygrad_rnn.train import StepDone, Trainer, resume_training, start_training

SMALL: dict[str, Any] = {
    "model.hidden": 6, "model.layers": 1, "data.corpus": "hello", "data.seq_len": 5, "data.batch": 3,
    "train.steps": 6, "train.eval_every": 3, "train.sample_every": 3, "train.watch": "grads:3", "train.device": "cpu",
}  # fmt: skip


def begin(out: Path, *callbacks: str, overwrite: bool = False, **changes: Any) -> Trainer:
    settings = {name.replace("__", "."): value for name, value in changes.items()}
    config = replace(RunConfig(), {**SMALL, "train.callbacks": callbacks, **settings})
    return start_training(config, load_dataset(config.data), out, overwrite=overwrite)


def written(folder: Path) -> list[Any]:
    """Every event of every file, oldest file first: records of a length, its checksum, the event, its checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="tensorboardX is not installed")
    events = []
    for file in sorted(folder.glob("events.out.tfevents.*"), key=lambda file: (file.stat().st_mtime_ns, file.name)):
        data, place = file.read_bytes(), 0
        while place < len(data):
            (size,) = struct.unpack_from("<Q", data, place)
            events.append(event_pb2.Event.FromString(data[place + 12 : place + 12 + size]))
            place += 12 + size + 4
    return events


def curves(events: list[Any]) -> dict[str, dict[int, float]]:
    """The curves by tag, as TensorBoard shows them: a start hides what an earlier file has from its step on."""
    found: dict[str, dict[int, float]] = {}
    for event in events:
        if event.HasField("session_log"):
            found = {tag: {step: y for step, y in rows.items() if step < event.step} for tag, rows in found.items()}
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_the_curves_are_those_of_the_records(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="it writes the files; it is not installed")
    run = tmp_path / "run"
    list(begin(run, "tensorboard").events())
    list(resume_training(run, steps=8).events())
    found = curves(written(run / "tensorboard"))
    records = {kind: [r for r in read_metrics(open_run(run)) if r["kind"] == kind] for kind in ("step", "val", "watch")}
    for tag, field in [
        ("loss/training", "loss"),
        ("gradient/norm", "grad_norm"),
        ("gradient/norm_clipped", "clipped_norm"),
        ("learning_rate", "lr"),
    ]:
        assert found[tag] == pytest.approx({r["step"]: r[field] for r in records["step"]}, rel=1e-6), tag
    assert found["loss/validation"] == pytest.approx({r["step"]: r["loss"] for r in records["val"]}, rel=1e-6)
    assert sorted(found["slope/last/layer_0/h"]) == [r["step"] for r in records["watch"]]
    assert any(tag.startswith("sample") for tag in found)


def test_a_rolled_back_training_hides_what_it_left_behind(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="it writes the files; it is not installed")
    folder = tmp_path / "curves"
    trainer = begin(
        tmp_path / "run", f"tensorboard:{folder}", train__on_divergence="rollback", train__save_every=2, train__steps=8
    )
    original = trainer._advance

    def advance(state: Any) -> None:
        original(state)
        if trainer.progress.step == 5 and trainer.progress.rollbacks == 0:
            trainer.params["readout.b"].data[...] = math.nan

    trainer._advance = advance  # type: ignore[method-assign]
    losses = {event.step: event.loss for event in trainer.events() if isinstance(event, StepDone)}
    events = written(folder)
    assert [event.step for event in events if event.HasField("session_log")] == [1, 5]
    assert curves(events)["loss/training"] == pytest.approx(losses, rel=1e-6)


def test_overwriting_leaves_no_curve_of_the_run_before(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="it writes the files; it is not installed")
    list(begin(tmp_path / "run", "tensorboard").events())
    list(begin(tmp_path / "run", overwrite=True).events())
    assert written(tmp_path / "run" / "tensorboard") == []


def test_a_sample_of_bytes_that_are_no_text_is_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="it writes the files; it is not installed")
    (tmp_path / "noise.bin").write_bytes(bytes(range(128, 256)) * 2)
    noise = {"data__text": (str(tmp_path / "noise.bin"),), "data__corpus": "", "data__tokens": "bytes"}
    list(begin(tmp_path / "run", "tensorboard", **noise).events())
    values = [value for event in written(tmp_path / "run" / "tensorboard") for value in event.summary.value]
    samples = [value.tensor.string_val[0] for value in values if value.tag.startswith("sample")]
    assert len(samples) == 2 and all(b"\\x" in sample for sample in samples)


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"expected the package tensorboardX, got none; install tinygrad_rnn\[tensorb"):
        begin(tmp_path / "run", "tensorboard")
    assert not (tmp_path / "run").exists()
