"""The README, executed: every command of it, in order, in one folder, by real processes.

Blocks of ```console are run here; the two without a language, which install and need the network, are run by .ci/run.
"""

from __future__ import annotations

import os
import pydoc_data.topics
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import tinygrad_rnn as tr

README = Path(__file__).resolve().parent.parent / "README.md"
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(
    not README.is_file(), reason="needs the source tree: the README is no part of the wheel"
)


def blocks() -> list[tuple[str, str]]:
    """(what stands behind the fence, text) of every fenced block, in order."""
    return FENCE.findall(README.read_text("utf-8"))


def commands(body: str) -> list[str]:
    return [line.removeprefix("$ ") for line in body.splitlines()]


def shakespeare() -> str:
    """A small text with the symbols that the commands use; some 5 KB, so that an epoch is one or two steps."""
    topics = pydoc_data.topics.topics
    return "ROMEO: " + "\nROMEO: ".join(topics[name] for name in ("assert", "break", "class", "for"))[:5200]


def test_blocks_are_of_known_kinds_and_only_commands() -> None:
    kinds = [kind for kind, _ in blocks()]
    assert set(kinds) == {"", "console", "python file=cfn.py"} and kinds.count("") == 2
    for kind, body in blocks():
        if kind == "console":
            assert all(line.startswith("$ tinygrad-rnn ") for line in body.splitlines())


def test_cells_are_as_many_and_as_short_as_it_says() -> None:
    found = re.search(
        r"\(([^()]*), fourteen more and your own, in files of (\d+) to (\d+) lines\)", README.read_text("utf-8")
    )
    assert found is not None
    names, shortest, longest = found[1].replace("\n", " ").rpartition("(")[2].split(", "), int(found[2]), int(found[3])
    cells = [tr.find_cell(row.name).cls for row in tr.available_cells(third_party=False)]
    assert len(cells) == len(names) + 14
    files = {Path(sys.modules[cell.__module__].__file__ or "") for cell in cells}
    lengths = [len(file.read_text("utf-8").splitlines()) for file in files]
    assert (min(lengths), max(lengths)) == (shortest, longest)


@pytest.mark.slow
def test_every_command_does_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "shakespeare.txt").write_text(shakespeare(), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TINYGRAD_RNN_")}
    for kind, body in blocks():
        if kind.startswith("python file="):
            (tmp_path / kind.partition("=")[2]).write_text(body, encoding="utf-8")
        for command in commands(body) if kind == "console" else ():
            words = shlex.split(command, comments=True)
            assert words.pop(0) == "tinygrad-rnn"
            done = subprocess.run(
                [sys.executable, "-P", "-m", "tinygrad_rnn_cli", *words],
                cwd=tmp_path,
                env=environment | {"PYTHONIOENCODING": "utf-8", "TINYGRAD_RNN_DEVICE": "cpu"},
                capture_output=True,
                encoding="utf-8",
                stdin=subprocess.DEVNULL,
                timeout=300,
            )
            fine = (0, 3) if "--fail-on" in words else (0,)  # 3: the check failed, as the README says
            assert done.returncode in fine, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            assert done.stdout.strip(), f"{command}: printed nothing"
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert {
        "loss.png",
        "norm.png",
        "compared.png",
        "gru.pdf",
        "runs/gru/torch.safetensors",
        "runs/gru/model.onnx",
    } <= made
