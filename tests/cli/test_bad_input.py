"""Bad input: one clear line, exit code 1 or 2 (4 for a diverged loss), no traceback, and nothing is destroyed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

TINY = "--hidden 8 --layers 1 --batch 4 --seq-len 10".split()
TEXT = "hello world, this is a text.\n" * 20


def refused(done: Result, code: int | tuple[int, ...], *words: str) -> str:
    """The one line of the error."""
    codes = (code,) if isinstance(code, int) else code
    assert done.exit_code in codes, done.output
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == errors[0]
    for word in words:
        assert word in errors[0]
    return errors[0]


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


# ---------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (None, 1, ["bad.txt", "does not exist"]),
        (b"", 1, ["bad.txt", "empty"]),
        (b"a", 1, ["2"]),
        (b"aaaaaaaaaaaaaaaaaaaaaaaaaa" * 50, 1, ["distinct"]),
        (b"\x00\x01\x02\x00" * 500, 1, ["bad.txt"]),
        (b"good text, then \xff\xfe" * 30, 1, ["bad.txt", "16", "--errors replace"]),
        (b"a short text", 1, ["--batch", "--seq-len"]),
    ],
)
def test_texts(invoke: Any, tmp_path: Path, data: bytes | None, code: int, words: list[str]) -> None:
    if data is not None:
        (tmp_path / "bad.txt").write_bytes(data)
    before = contents(tmp_path)
    refused(invoke(["train", "bad.txt", *TINY, "--steps", "1"]), code, *words)
    assert contents(tmp_path) == before  # no half-made run folder
    assert not (tmp_path / "runs").exists()


def test_bad_encoding_can_be_replaced(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"good text, then \xff\xfe" * 60)
    assert invoke(["train", "bad.txt", *TINY, "--steps", "1", "--errors", "replace"]).exit_code == 0
    assert invoke(["train", "bad.txt", *TINY, "--steps", "1", "--tokens", "bytes"]).exit_code == 0


def test_standard_input_that_is_empty(invoke: Any) -> None:
    refused(invoke(["train", "-", *TINY], input=b""), 1, "standard input")
    refused(invoke(["train", "-", "a.txt", *TINY], input=b"x"), 2, "alone")


# --------------------------------------------------------------------------------------------- names, sizes


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ("--cell mut4", 2, ["'mut4'", "mut1"]),
        ("--cell-opt forget_bais=2", 2, ["'forget_bais'", "did you mean forget_bias"]),
        ("--cell-opt forget_bias=big", 2, ["forget_bias", "a number", "'big'"]),
        ("--cell rnn --cell-opt activation=tan", 2, ["activation", "'tan'", "tanh"]),
        ("--optim adan", 2, ["no optimiser 'adan'", "did you mean adam"]),
        ("--tokens char", 2, ["--tokens", "did you mean chars"]),
        ("--corpus python-doc", (1, 2), ["'python-doc'", "python-docs"]),
        ("--hiden 3", 2, ["--hiden", "did you mean --hidden"]),
        ("--hidden 0", 2, ["--hidden", "at least 1"]),
        ("--hidden -3", 2, ["--hidden", "at least 1"]),
        ("--hidden 100000000000000000000000", 2, ["--hidden", "GiB"]),
        ("--layers 100000000000", 2, ["--layers", "GiB"]),
        ("--embed 99999999999999999999", 2, ["--embed", "GiB"]),
        ("--layers 1.5", 2, ["--layers", "whole number"]),
        ("--seq-len 0", 2, ["--seq-len", "at least 1"]),
        ("--batch 100000", (1, 2), ["--batch"]),
        ("--embed -4", 2, ["--embed"]),
        ("--dropout 1", 2, ["--dropout", "less than 1"]),
        ("--val-frac 0.6 --test-frac 0.5", 2, ["--val-frac", "--test-frac"]),
        ("--lr fast", 2, ["--lr", "a number", "'fast'"]),
        ("--lr nan", 2, ["--lr", "finite"]),
        ("--lr-decay foo", 2, ["'foo'", "exp:FACTOR@EPOCH"]),
        ("--init gaussian", 2, ["gaussian"]),
        ("--watch norms", 2, ["--watch", "grads"]),
        ("--bptt 25", 2, ["--bptt"]),
        ("--device gpu", 2, ["gpu", "cuda"]),
        ("--dtype float16", 2, ["--dtype", "float32"]),
        ("--recipe charnn", 2, ["charnn", "char-rnn"]),
        ("--init-from nowhere", 1, ["nowhere"]),
        ("--plugin nowhere.py", 1, ["nowhere.py"]),
        ("--config nowhere.toml", 1, ["nowhere.toml"]),
        ("--out text.txt", 1, ["text.txt"]),
    ],
)
def test_names_and_sizes(invoke: Any, tmp_path: Path, args: str, code: Any, words: list[str]) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    text = [] if "--corpus" in args else ["text.txt"]
    refused(invoke(["train", *text, *TINY, "--steps", "1", *args.split()]), code, *words)
    assert (tmp_path / "text.txt").read_text() == TEXT
    assert not (tmp_path / "runs").exists()


def test_a_model_larger_than_the_machine(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's own words, in one line; the allocation itself is not tried here, because it may succeed."""
    import tinygrad_rnn as tr

    def fail(*args: Any, **more: Any) -> None:
        raise MemoryError("Unable to allocate 76.7 GiB")

    monkeypatch.setattr(tr.Model, "init", fail)
    refused(invoke(["train", "--corpus", "hello", *TINY, "--steps", "1"]), 1, "76.7 GiB", "--hidden")


def test_cuda_without_a_gpu(invoke: Any) -> None:
    import tinygrad_rnn as tr

    try:
        tr.select_device("cuda")
    except tr.DeviceError:
        refused(invoke(["train", "--corpus", "hello", *TINY, "--device", "cuda"]), 2, "cuda", "cpu")
    else:
        pytest.skip("there is a GPU")


# ------------------------------------------------------------------------------------------------ run folders


def test_an_existing_run_is_kept(invoke: Any, run: Path) -> None:
    before = contents(run)
    refused(invoke(["train", "--corpus", "hello", *TINY, "--out", run]), 1, str(run), "--overwrite", "resume")
    assert contents(run) == before
    again = invoke(["train", "--corpus", "hello", *TINY, "--out", run, "--steps", "1", "--overwrite"])
    assert again.exit_code == 0, again.output
    assert contents(run) != before


def test_overwrite_with_a_mistake_destroys_nothing(invoke: Any, run: Path) -> None:
    before = contents(run)
    for mistake in (["--cell", "mut4"], ["--batch", "100000"], ["nowhere.txt"], ["--embed", "x"]):
        words = ["train", *mistake, *TINY[:4], "--overwrite", "--out", run, "--steps", "1"]
        assert invoke(words).exit_code in (1, 2)
        assert contents(run) == before


def test_a_folder_of_somebody_else_is_kept(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for words in ([], ["--overwrite"]):
        refused(invoke(["train", "--corpus", "hello", *TINY, "--out", "mine", "--steps", "1", *words]), 1, "mine")
    assert contents(tmp_path / "mine").keys() == {"thesis.txt"}


@pytest.mark.parametrize("command", ["sample", "eval", "resume", "inspect", "plot", "diagnose gradnorm"])
def test_what_is_no_run(invoke: Any, tmp_path: Path, command: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for path in ("nowhere", "folder", "file"):
        refused(invoke([*command.split(), path]), 1, path)


@pytest.mark.parametrize("command", ["sample", "eval", "resume", "inspect", "plot"])
def test_a_missing_argument(invoke: Any, command: str) -> None:
    refused(invoke(command), 2, "missing", "RUN")


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("*.safetensors"))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "empty"])
@pytest.mark.parametrize("command", ["sample", "eval", "resume", "diagnose gradnorm"])
def test_damaged_checkpoints(invoke: Any, run: Path, damage: str, command: str) -> None:
    for file in checkpoints(run):
        data = bytearray(file.read_bytes())
        if damage == "truncated":
            data = data[: len(data) // 2]
        elif damage == "flipped":
            data[-100] ^= 1
        elif damage == "foreign":
            data = bytearray(b"PK\x03\x04 not a checkpoint at all" * 20)
        else:
            data = bytearray()
        file.write_bytes(data)
    before = contents(run)
    more = ["--steps", "20"] if command == "resume" else []
    refused(invoke([*command.split(), run, *more]), 1, "checkpoint")
    assert contents(run) == before


def test_a_run_file_that_is_broken(invoke: Any, run: Path) -> None:
    (run / "run.json").write_text("{")
    for command in ("sample", "resume", "inspect"):
        refused(invoke([command, run]), 1, "run.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cell", None),
        ("cell", 7),
        ("vocabulary", None),
        ("vocabulary", {}),
        ("data", None),
        ("data", 7),
        ("plugins", 7),
        ("plugins", [7]),
    ],
)
def test_a_run_file_that_lacks_a_part(invoke: Any, run: Path, key: str, value: Any) -> None:
    described = json.loads((run / "run.json").read_text())
    del described[key]
    (run / "run.json").write_text(json.dumps(described if value is None else {**described, key: value}))
    before = contents(run)
    refused(invoke(["resume", run, "--steps", "14"]), 1, "run.json", key)
    if key != "data":
        refused(invoke(["sample", run]), 1, "run.json", key)
    if value == 7:
        refused(invoke(["inspect", run]), 1, "run.json", key)
    assert contents(run) == before


def test_a_run_file_that_may_not_be_read(invoke: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **more: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    line = refused(invoke(["sample", run]), 1, "run.json", "Permission denied", "check its permissions")
    assert "broken" not in line


def test_more_samples_than_the_machine_holds(invoke: Any, run: Path) -> None:
    refused(invoke(["sample", run, "-n", "1", "--num", "1000000000000"]), 2, "--num", "GiB")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_streams_that_the_shell_has_closed(tmp_path: Path, closed: str) -> None:
    words = [sys.executable, "-m", "tinygrad_rnn_cli", "train", "--corpus", "hello", *TINY, "--steps", "2"]
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *words, "--out", str(tmp_path / "run")]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert len(checkpoints(tmp_path / "run")) == 2


def test_a_closed_standard_input_is_an_empty_text(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tinygrad_rnn_cli", "train", "-", "--out", str(tmp_path / "run")]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "standard input" in done.stderr


def test_training_outlives_the_reader_of_its_log(tmp_path: Path) -> None:
    """As in `train 2>&1 >/dev/null | head -1`: hours of work do not end with a pager."""
    words = [sys.executable, "-m", "tinygrad_rnn_cli", "train", "--corpus", "hello", *TINY, "--steps", "20", "-v"]
    words += ["--out", str(tmp_path / "run")]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*words, "--out", str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=write, timeout=120
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stdout.decode().strip()) == (0, str(tmp_path / "run"))
    assert "step-00000020" in checkpoints(tmp_path / "run")[-1].name


def test_ctrl_c_during_the_imports_is_quiet() -> None:
    interrupt = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'click': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from tinygrad_rnn_cli.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", interrupt], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_reader_that_has_gone_ends_the_program_as_it_ends_other_tools(run: Path) -> None:
    """As in `sample RUN -n 100000 | head -c 30`."""
    read, write = os.pipe()
    os.close(read)
    try:
        words = [sys.executable, "-m", "tinygrad_rnn_cli", "sample", str(run), "-n", "20"]
        done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, timeout=120)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (128 + 13, b"")


def test_a_long_name_with_one_dash_is_named_whole(invoke: Any, run: Path) -> None:
    refused(invoke(["sample", run, "-verbos", "3"]), 2, "-verbos")


def test_without_plugins_the_file_of_a_run_is_not_executed(invoke: Any, run: Path, tmp_path: Path) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('executed')")
    described = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**described, "plugins": [str(tmp_path / "trap.py")]}))
    for command in ("sample", "resume", "inspect", "eval"):
        done = invoke([command, run, "--no-plugins"])
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("name", "value"),
    [("TINYGRAD_RNN_ANOMALY", "maybe"), ("TINYGRAD_RNN_COLOR", "red"), ("TINYGRAD_RNN_NO_PLUGINS", "perhaps")],
)
def test_a_wrong_word_in_the_environment_is_looked_for_there(invoke: Any, name: str, value: str) -> None:
    refused(invoke(["train", *TINY, "--corpus", "hello"], **{name: value}), 2, name, value)


def test_a_cell_that_is_gone(invoke: Any, run: Path) -> None:
    described = json.loads((run / "run.json").read_text())
    described["config"]["model"]["cell"] = described["cell"]["name"] = "gone_cell"
    (run / "run.json").write_text(json.dumps(described))
    for command in ("sample", "resume", "eval"):
        refused(invoke([command, run]), (1, 2), "gone_cell")
    facts = json.loads(invoke(["inspect", run, "--json"]).stdout)  # still shows what it knows
    assert "gone_cell" in facts["cell_error"]


def test_a_text_that_has_changed_or_gone(invoke: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    assert invoke(["train", "text.txt", *TINY, "--steps", "2", "--out", "run"]).exit_code == 0
    before = contents(tmp_path / "run")
    text.write_text(TEXT.replace("hello", "jello"))
    refused(invoke("resume run --steps 4"), 1)
    text.unlink()
    refused(invoke("resume run --steps 4"), 1, "text.txt")
    refused(invoke("eval run"), 1, "text.txt")
    refused(invoke("diagnose gradnorm run"), 1, "text.txt")
    assert contents(tmp_path / "run") == before
    assert invoke("sample run -n 5").exit_code == 0  # needs no text


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_folder_that_cannot_be_written(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(invoke(["train", "--corpus", "hello", *TINY, "--out", "locked/run", "--steps", "1"]), 1, "locked")


def test_a_disk_that_is_full(invoke: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    before = contents(run)

    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    line = refused(invoke(["resume", run, "--steps", "14"]), 1, "No space left")
    assert str(run) in line
    monkeypatch.undo()
    after = contents(run)
    kept = {name: digest for name, digest in before.items() if name.startswith("checkpoints")}
    assert {name: after[name] for name in kept} == kept  # the last good checkpoint survives
    assert not [name for name in after if name.endswith(".tmp")]


# ------------------------------------------------------------------------------------------------- divergence


def test_divergence_has_a_code_of_its_own(invoke: Any, tmp_path: Path) -> None:
    words = "--optim sgd --lr 1e30 --clip-norm 0 --steps 30 --out run --cell rnn --cell-opt activation=relu".split()
    done = invoke(["train", "--corpus", "hello", *TINY, *words])
    refused(done, 4, "step", "checkpoint", "Try")
    assert checkpoints(tmp_path / "run")
    assert invoke("sample run -n 5 --which latest").exit_code == 0


def test_rollback_says_where_it_goes(invoke: Any) -> None:
    words = "--optim sgd --lr 1e30 --clip-norm 0 --steps 9 --out run --cell rnn --cell-opt activation=relu".split()
    done = invoke(["train", "--corpus", "hello", *TINY, *words, "--on-divergence", "rollback"])
    assert done.exit_code == 4
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: diverged")]
    assert len(warnings) > 1 and all("back to step 0 at half the rate, " in line for line in warnings)


def test_traceback_on_demand_and_for_a_bug(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" in invoke("cells info mut4 -vv").stderr
    import tinygrad_rnn as tr

    def bug(*args: Any, **more: Any) -> None:
        raise KeyError("something of ours")

    monkeypatch.setitem(vars(tr), "load_cell", bug)
    done = invoke("cells info rnn")
    assert done.exit_code == 1
    assert "Traceback" in done.stderr and "this is a bug" in done.stderr
