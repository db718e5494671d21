"""The command line in two ways: in this process (quick), and as a program of its own (signals, exit codes, pipes)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tinygrad_rnn_cli.main import cli

# a model that trains in a blink
TINY = "--hidden 8 --layers 1 --batch 4 --seq-len 10 --corpus hello".split()

Invoke = Callable[..., Result]
Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the developer's own settings reaches a test."""
    for name in list(os.environ):
        if name.startswith("TINYGRAD_RNN_") or name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command in this process, in an empty folder: `invoke("cells list --json")` or a list of words."""
    monkeypatch.chdir(tmp_path)

    def call(args: str | Sequence[str], input: str | bytes | None = None, **env: str) -> Result:
        words = args.split() if isinstance(args, str) else [str(arg) for arg in args]
        return CliRunner().invoke(cli, words, input=input, env=env)

    return call


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Run a command as a program of its own, in an empty folder."""

    def call(*args: object, input: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tinygrad_rnn_cli", *map(str, args)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
            input=input if input is not None else "",
            env={**os.environ, "PYTHONIOENCODING": "utf-8", **env},
        )

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps on the corpus hello, with watched gradients. Do not change it: copy it first."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ["train", *TINY, "--steps", "12", "--eval-every", "6", "--watch", "grads:4", "--out", str(folder)]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def one_line() -> Callable[[str], str]:
    """The error on stderr, which is one line, and the last; fails where there are more, or a traceback."""

    def told(stderr: str) -> str:
        assert "Traceback" not in stderr
        *others, last = [line for line in stderr.splitlines() if line.strip()]
        assert last.startswith("error: ") and not any(line.startswith("error: ") for line in others), stderr
        return last.removeprefix("error: ")

    return told
