"""What plugins of strangers print, and what else they must not do to the output of a command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import TINY

# One of each that prints; the step is not traced, so that it is called in every command.
LOUD = """
import numpy as np
import tinygrad_rnn as tr
from tinygrad_rnn import ops

print("LOUD when it is loaded")

@tr.register_cell
class Talking(tr.Cell):
    name = "talking"
    summary, citation, equation = "a sum", "nobody", "h' = tanh(h + x W)"

    def state(self):
        return {"h": tr.State((self.H,))}

    def params(self):
        return {"W": tr.input_matrix(self.I, self.H)}

    def step(self, p, x, s):
        print("LOUD in a step", float(np.sum(getattr(x.data, "size", 0))))
        return {"h": ops.tanh(s.h + x @ p.W)}

@tr.register_callback
def talker(argument):
    \"\"\"Tells everything.\"\"\"
    return lambda event, trainer: print("LOUD in a callback")

@tr.register_dataset
def noise():
    \"\"\"A text.\"\"\"
    print("LOUD in a text")
    return tr.CorpusText("hello world " * 100, licence="CC0-1.0")
"""


@pytest.mark.usefixtures("own_registry")
def test_what_plugins_print_in_a_run_is_no_product(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    size = [word for word in TINY if word not in ("--corpus", "hello")]
    words = [
        *size,
        "--plugin",
        "loud.py",
        "--cell",
        "talking",
        "--callback",
        "talker",
        "--corpus",
        "noise",
        "--steps",
        "3",
    ]
    done = invoke(["train", *words, "--out", "run"])
    assert done.exit_code == 0, done.output
    assert done.stdout == "run\n" and "LOUD in a callback" in done.stderr and "LOUD in a text" in done.stderr
    assert invoke("resume run --steps 4").stdout == "run\n"
    assert "LOUD" not in invoke(["train", *words, "--plan"]).stdout
    for command in ("sample run -n 5", "eval run", "inspect run"):
        done = invoke(command)
        assert done.exit_code == 0 and done.stdout and "LOUD" not in done.stdout, command
    assert json.loads(invoke("sample run -n 5 --json").stdout)["run"] == "run"
