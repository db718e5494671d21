"""The run folder: creation, refusal, metrics after a kill, checkpoints and the best of them."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import run as run_module
from tinygrad_rnn.config import RunConfig, as_dict, replace
from tinygrad_rnn.errors import CheckpointError, FileError, InputError
from tinygrad_rnn.run import (
    Run,
    append_metrics,
    best_checkpoint,
    checkpoints,
    create_run,
    describe,
    latest_checkpoint,
    load_run_checkpoint,
    open_run,
    prune,
    read_metrics,
    run_config,
    save_run_checkpoint,
    truncate_metrics,
    update_description,
)

CONFIG = replace(RunConfig(), {"model.hidden": 7, "optim.lr": 0.1 + 0.2, "model.cell_options.slope": 2})
DESCRIPTION = {
    "config": as_dict(CONFIG),
    "data": {"sha256": "0" * 64},
    "seed": 3,
    "device": "cpu",
    "parameters": 12,
    "cell": {"name": "lstm"},
    "vocabulary": {"kind": "chars", "symbols": ["a", "\n", "ü"]},
}
ARRAYS = {"W": np.ones((2, 3))}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(tmp_path / "run", DESCRIPTION)


def one_line(error: pytest.ExceptionInfo[Exception], *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_create_and_open(tmp_path: Path) -> None:
    made = create_run(tmp_path / "deep" / "run", DESCRIPTION)
    opened = open_run(str(tmp_path / "deep" / "run"))
    assert made == opened == Run(tmp_path / "deep" / "run")
    assert run_config(opened) == CONFIG
    described = describe(opened)
    assert {key: described[key] for key in DESCRIPTION} == json.loads(json.dumps(DESCRIPTION))
    assert set(described["versions"]) == {"python", "numpy", "tinygrad_rnn"}
    assert described["versions"]["numpy"] == np.__version__
    assert described["created"].endswith("+00:00")
    assert tree(made.path) == ["checkpoints", "run.json"]


def test_version_of_what_is_not_installed_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert run_module.versions()["tinygrad_rnn"] == "unknown"


def test_an_existing_run_is_not_overwritten_by_accident(run: Run) -> None:
    before = (run.path / "run.json").read_bytes()
    with pytest.raises(FileError) as caught:
        create_run(run.path, DESCRIPTION)
    one_line(caught, str(run.path), "--overwrite", "resume")
    assert (run.path / "run.json").read_bytes() == before


def test_overwrite_removes_what_a_run_holds_and_nothing_else(run: Run) -> None:
    save_run_checkpoint(run, 10, ARRAYS, {}, 1.0)
    append_metrics(run, {"step": 1})
    (run.path / "text.txt").write_text("x")
    (run.path / "checkpoints" / ".step-1.safetensors.1.abababab.tmp").write_text("x")
    (run.path / "notes.md").write_text("mine")
    (run.path / "checkpoints" / "favourite.safetensors").write_text("mine")
    create_run(run.path, {**DESCRIPTION, "seed": 4}, overwrite=True)
    assert tree(run.path) == ["checkpoints", "checkpoints/favourite.safetensors", "notes.md", "run.json"]
    assert describe(run)["seed"] == 4
    assert read_metrics(run) == []


def test_overwrite_does_not_follow_a_link(run: Run, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (run.path / "checkpoints").rename(elsewhere)
    (run.path / "checkpoints").symlink_to(elsewhere)
    path = save_run_checkpoint(run, 1, ARRAYS, {})
    create_run(run.path, DESCRIPTION, overwrite=True)
    assert (elsewhere / path.name).is_file()
    assert checkpoints(run) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileError) as caught:
        create_run(tmp_path, DESCRIPTION, overwrite)
    one_line(caught, "neither empty nor a run", "thesis.tex")
    assert tree(tmp_path) == ["thesis.tex"]


def test_an_empty_folder_or_one_with_leftovers_of_a_killed_start_is_fine(tmp_path: Path) -> None:
    (tmp_path / ".run.json.17.0a0a0a0a.tmp").write_text("{")
    create_run(tmp_path, DESCRIPTION)
    assert run_config(open_run(tmp_path)) == CONFIG


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(FileError) as caught:
        create_run(tmp_path / "x", DESCRIPTION)
    one_line(caught, "cannot make the run folder", "Not a directory")
    with pytest.raises(FileError) as caught:
        open_run(tmp_path / "x")
    one_line(caught, "not a run folder")


@pytest.mark.parametrize("description", [{}, {"config": {"model": {"hidden": 0}}}, {"config": {}, "x": float("nan")}])
def test_a_description_that_is_none_leaves_no_run(tmp_path: Path, description: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        create_run(tmp_path / "run", description)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_refusing_disk_is_a_file_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(FileError, match="Read-only file system"):
        create_run(tmp_path / "run", DESCRIPTION)


def test_open_refuses_what_is_no_run(tmp_path: Path, run: Run) -> None:
    with pytest.raises(FileError) as caught:
        open_run(tmp_path / "none")
    one_line(caught, "does not exist")
    with pytest.raises(FileError) as caught:
        open_run(tmp_path)
    one_line(caught, "not a run folder", "run.json")
    good = (run.path / "run.json").read_text()
    for content in ("", good[:50], "[]", '{"format": 1}', "\ud800"):
        (run.path / "run.json").write_bytes(content.encode("utf-8", "surrogatepass"))
        with pytest.raises(FileError) as caught:
            open_run(run.path)
        one_line(caught, "run.json is broken")
    (run.path / "run.json").write_text(good.replace('"hidden"', '"hiden"'))
    with pytest.raises(FileError) as caught:
        open_run(run.path)
    one_line(caught, "model.hiden", "did you mean model.hidden")
    (run.path / "run.json").write_text(good.replace('"format": 1', '"format": 9'))
    with pytest.raises(FileError) as caught:
        open_run(run.path)
    one_line(caught, "expected format 1, got 9")


def test_update_description(run: Run) -> None:
    created = describe(run)["created"]
    longer = replace(CONFIG, {"train.steps": 200})
    update_description(run, {"config": as_dict(longer)})
    assert run_config(run) == longer
    assert describe(run)["created"] == created


def test_metrics_round_trip(run: Run) -> None:
    assert read_metrics(run) == []
    append_metrics(run, {"step": 1, "loss": 0.1 + 0.2, "lr": np.float32(0.5), "n": np.int64(3), "text": "ü\n"})
    append_metrics(run, {"step": 2, "loss": float("nan"), "norms": (1.0, float("inf")), "by": {"h": [-float("inf")]}})
    assert read_metrics(run) == [
        {"step": 1, "loss": 0.1 + 0.2, "lr": 0.5, "n": 3, "text": "ü\n"},
        {"step": 2, "loss": None, "norms": [1.0, None], "by": {"h": [None]}},
    ]
    assert len((run.path / "metrics.jsonl").read_bytes().splitlines()) == 2


@pytest.mark.parametrize(
    "record", [{}, {"step": 1.0}, {"step": True}, {"step": 1, "x": {1}}, {"step": 1, "x": np.ones(2)}]
)
def test_metrics_refuse(run: Run, record: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="metrics: expected"):
        append_metrics(run, record)
    assert read_metrics(run) == []


def test_metrics_torn_at_every_byte(run: Run) -> None:
    for step in (1, 2, 3):
        append_metrics(run, {"step": step, "loss": 1.5 * step})
    path = run.path / "metrics.jsonl"
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        complete = sum(end <= length + 1 for end in ends)  # a line that lacks its newline alone is whole
        assert [record["step"] for record in read_metrics(run)] == [1, 2, 3][:complete]
        append_metrics(run, {"step": 9})
        assert [record["step"] for record in read_metrics(run)] == [*[1, 2, 3][: sum(end <= length for end in ends)], 9]
    path.write_bytes(whole + bytes(50))  # a power cut after the file has grown
    assert [record["step"] for record in read_metrics(run)] == [1, 2, 3]


def test_a_broken_line_in_the_middle_is_named(run: Run) -> None:
    (run.path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(FileError) as caught:
        read_metrics(run)
    one_line(caught, "metrics.jsonl, line 2")


def test_truncate_metrics(run: Run) -> None:
    truncate_metrics(run, 5)
    assert not (run.path / "metrics.jsonl").exists()
    for step in (1, 2, 2, 3):
        append_metrics(run, {"step": step})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "lo')
    truncate_metrics(run, 2)
    assert (run.path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n{"step": 2}\n{"step": 2}\n'
    truncate_metrics(run, 0)
    assert read_metrics(run) == []


def test_metrics_on_a_full_disk(run: Run) -> None:
    (run.path / "metrics.jsonl").symlink_to("/dev/full") if Path("/dev/full").exists() else pytest.skip("no /dev/full")
    with pytest.raises(FileError, match="No space left on device"):
        append_metrics(run, {"step": 1})


def test_a_refusal_is_not_called_a_full_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    for act in (
        lambda: append_metrics(run, {"step": 1}),
        lambda: save_run_checkpoint(run, 1, {}, {}),
        lambda: update_description(run, {"seed": 1}),
    ):
        with pytest.raises((FileError, CheckpointError), match="permissions") as caught:
            act()
        assert "make room" not in str(caught.value)


def test_checkpoint_names_and_order(run: Run) -> None:
    assert checkpoints(run) == []
    for step, loss in [(200, 1.84321), (100, None), (300, float("nan")), (123456789, 0.5)]:
        save_run_checkpoint(run, step, ARRAYS, {"step": step}, loss)
    (run.path / "checkpoints" / "step-7.txt").write_text("")
    assert [p.name for p in checkpoints(run)] == [
        "step-00000100.safetensors",
        "step-00000200-val-1.8432.safetensors",
        "step-00000300-val-nan.safetensors",
        "step-123456789-val-0.5000.safetensors",
    ]
    assert latest_checkpoint(run).name == "step-123456789-val-0.5000.safetensors"
    arrays, meta = load_run_checkpoint(run)
    np.testing.assert_array_equal(arrays["W"], ARRAYS["W"])
    assert meta == {"step": 123456789}
    assert load_run_checkpoint(run, checkpoints(run)[0])[1] == {"step": 100}


def test_a_step_is_there_once(run: Run) -> None:
    save_run_checkpoint(run, 100, ARRAYS, {"a": 1})
    save_run_checkpoint(run, 100, ARRAYS, {"a": 2}, 1.5)
    assert [p.name for p in checkpoints(run)] == ["step-00000100-val-1.5000.safetensors"]
    save_run_checkpoint(run, 100, ARRAYS, {"a": 3}, 1.25)
    assert [p.name for p in checkpoints(run)] == ["step-00000100-val-1.2500.safetensors"]
    assert best_checkpoint(run) == latest_checkpoint(run)
    assert load_run_checkpoint(run)[1] == {"a": 3}


def test_the_best_is_remembered(run: Run) -> None:
    for step, loss in [(1, None), (2, 2.0), (3, 1.00004), (4, 1.00001), (5, 1.5), (6, float("nan"))]:
        save_run_checkpoint(run, step, ARRAYS, {}, loss)
    best = run.path / "checkpoints" / "best.json"
    assert best_checkpoint(run).name == "step-00000004-val-1.0000.safetensors"
    assert json.loads(best.read_text()) == {"checkpoint": best_checkpoint(run).name, "step": 4, "val_loss": 1.00001}
    for content in ("", "[]", '{"checkpoint": "../x", "val_loss": 0}', '{"checkpoint": "step-00000009.safetensors"}'):
        best.write_text(content)  # broken or stale: the names know it too
        assert best_checkpoint(run).name == "step-00000004-val-1.0000.safetensors"


def test_a_kill_before_best_json_does_not_lose_the_best(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save_run_checkpoint(run, 1, ARRAYS, {}, 2.0)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_json_atomic", lambda *_: None)
        path = save_run_checkpoint(run, 2, ARRAYS, {}, 1.0)
    assert best_checkpoint(run) == path
    save_run_checkpoint(run, 3, ARRAYS, {}, 1.5)
    assert best_checkpoint(run) == path


def test_a_checkpoint_that_is_not_there(run: Run) -> None:
    save_run_checkpoint(run, 1, ARRAYS, {})
    with pytest.raises(CheckpointError) as caught:
        load_run_checkpoint(run, run.path / "checkpoints" / "step-00000009.safetensors")
    one_line(caught, "does not exist")
    assert "delete" not in str(caught.value)


def test_an_unwritable_description_does_not_cost_the_old_run(run: Run) -> None:
    save_run_checkpoint(run, 1, ARRAYS, {})
    before = tree(run.path)
    with pytest.raises(InputError, match="description"):
        create_run(run.path, {**DESCRIPTION, "seed": float("nan")}, overwrite=True)
    assert tree(run.path) == before


def test_best_without_any_loss_is_the_latest(run: Run) -> None:
    save_run_checkpoint(run, 1, ARRAYS, {})
    save_run_checkpoint(run, 2, ARRAYS, {}, float("nan"))
    assert best_checkpoint(run) == latest_checkpoint(run)


def test_no_checkpoint_yet(run: Run) -> None:
    for ask in (latest_checkpoint, best_checkpoint, load_run_checkpoint):
        with pytest.raises(FileError) as caught:
            ask(run)
        one_line(caught, "no checkpoint yet", str(run.path))


def test_prune_keeps_the_newest_and_the_best(run: Run) -> None:
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, None)]:
        save_run_checkpoint(run, step, ARRAYS, {}, loss)
    (run.path / "checkpoints" / ".step-00000006.safetensors.1.abababab.tmp").write_text("half")
    assert [run_module.checkpoint_step(p) for p in prune(run, 2)] == [1, 3]
    assert [run_module.checkpoint_step(p) for p in checkpoints(run)] == [2, 4, 5]
    assert not list((run.path / "checkpoints").glob(".*"))
    assert prune(run, 9) == []
    assert [run_module.checkpoint_step(p) for p in prune(run, 1)] == [4]
    with pytest.raises(InputError, match="at least 1"):
        prune(run, 0)


def test_a_damaged_latest_names_the_newest_sound_one(run: Run) -> None:
    paths = [save_run_checkpoint(run, step, ARRAYS, {"step": step}) for step in (1, 2, 3)]
    for path in paths[1:]:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError) as caught:
        load_run_checkpoint(run)
    one_line(caught, str(paths[2]), f"newest older one that is sound is {paths[0]}", f"delete {paths[2]}")
    paths[2].unlink()
    paths[1].unlink()
    assert load_run_checkpoint(run)[1] == {"step": 1}
    paths[0].write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        load_run_checkpoint(run)
    one_line(caught, str(paths[0]), "no older one that is sound")


def test_a_full_disk_names_the_last_good_checkpoint(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    good = save_run_checkpoint(run, 1, ARRAYS, {}, 2.0)

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        with pytest.raises(CheckpointError) as caught:
            save_run_checkpoint(run, 2, ARRAYS, {}, 1.0)
    one_line(caught, "cannot write", "No space left on device", f"the last good checkpoint is {good}")
    assert checkpoints(run) == [good]
    assert best_checkpoint(run) == good
    assert tree(run.path) == ["checkpoints", "checkpoints/best.json", f"checkpoints/{good.name}", "run.json"]


def test_a_negative_step_is_refused(run: Run) -> None:
    with pytest.raises(InputError, match="at least 0"):
        save_run_checkpoint(run, -1, ARRAYS, {})
