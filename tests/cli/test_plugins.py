"""Plugins of every group from the shell, beside a fake installed distribution."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tinygrad_rnn import plugins

TINY = "--hidden 8 --layers 1 --batch 4 --seq-len 10 --corpus hello".split()

KIT = '''
from dataclasses import dataclass

import click
import numpy as np

import tinygrad_rnn as tr

print("the kit was imported")


class Plain(tr.Optimizer):
    name = "plain"
    summary = "a step against the gradient"
    citation = "A.-L. Cauchy, 1847"

    @dataclass(frozen=True)
    class Options:
        stretch: float = 1.0

    def slots(self):
        return ()

    def update(self, params, grads, slots, step, lr):
        for p, g in tr.gradient_pieces(params, grads):
            p -= lr * self.options.stretch * g


def until(argument):
    """Stop behind step ARGUMENT."""
    return lambda event, trainer: "so was asked" if trainer.progress.step >= int(argument) else None


def faulty(argument):
    """Fail."""
    return lambda event, trainer: [1 // (3 - trainer.progress.step), None][1]


def shares(loaded, symbols, rng, *, top: int = 2):
    """How often the first symbols occur."""
    counts = np.bincount(symbols, minlength=loaded.vocabulary.size)
    return {"symbols": len(symbols), "rows": [{"symbol": s, "share": counts[k] / len(symbols)}
            for k, s in enumerate(loaded.vocabulary.symbols[:top])], "curve": counts}


def rhymes():
    """Two names, many times."""
    return tr.CorpusText("jack and jill\\n" * 200, licence="CC0-1.0")


@click.command("greet")
@click.argument("name")
def greet(name):
    """Say hello."""
    click.echo(f"hello {name}")
    if name == "bug":
        [].pop()


@click.command("train")
def train():
    """Not the real one."""
'''
ENTRIES = {
    "optimizers": {"plain": "acme_kit:Plain", "gone": "acme_kit_gone:Gone"},
    "callbacks": {"until": "acme_kit:until", "faulty": "acme_kit:faulty"},
    "diagnostics": {"shares": "acme_kit:shares", "gradnorm": "acme_kit:shares"},
    "datasets": {"rhymes": "acme_kit:rhymes"},
    "commands": {"greet": "acme_kit:greet", "train": "acme_kit:train"},
}
CELL = """
import tinygrad_rnn as tr


@tr.register_cell
class Leaky(tr.Cell):
    name = "leaky_of_file"
    summary = "keeps a share of its state"
    citation = "nobody"
    equation = "h' = 0.5 h + x W"

    def state(self):
        return {"h": tr.State((self.H,))}

    def params(self):
        return {"W": tr.input_matrix(self.I, self.H)}

    def step(self, p, x, s):
        return {"h": 0.5 * s.h + x @ p.W}
"""


def line_of(words: str) -> int:
    return KIT[: KIT.index(words)].count("\n") + 1


@pytest.fixture
def anew(invoke: Any, own_registry: None) -> Any:
    """`invoke`, by words, as in a new process: no plugin is known yet."""

    def call(*words: object, **env: str) -> Any:
        plugins._registered.clear()
        sys.modules.pop("acme_kit", None)
        return invoke(words, **env)

    return call


@pytest.fixture
def kit(tmp_path: Path, anew: Any, distribution: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`anew`, where the distribution acme-kit 1.2 is installed."""
    distribution(tmp_path / "site", "acme-kit", {"acme_kit": KIT}, ENTRIES)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return anew


def test_plugins_list_shows_every_group_and_imports_nothing(kit: Any) -> None:
    done = kit("plugins", "list")
    assert done.exit_code == 0 and "the kit was imported" not in done.stdout + done.stderr
    for line in ("optimizers adam tinygrad-rnn", "datasets hello tinygrad-rnn", "diagnostics gradnorm tinygrad-rnn",
                 "commands train tinygrad-rnn", "optimizers plain acme-kit 1.2 acme_kit:Plain",
                 "commands greet acme-kit 1.2 acme_kit:greet"):  # fmt: skip
        assert any(" ".join(row.split()).startswith(line) for row in done.stdout.splitlines()), line
    found = json.loads(kit("plugins", "list", "--errors", "--json").stdout)
    assert list(found) == ["cells", "optimizers", "callbacks", "diagnostics", "datasets", "commands"]
    rows = [{**row, "group": group} for group, rows in found.items() for row in rows]
    errors = {(row["group"], row["name"], row["distribution"]): row["error"] for row in rows if row["error"]}
    wins = "what is built in has this name, and wins; acme-kit 1.2 has to rename its own"
    assert errors == {
        ("optimizers", "gone", "acme-kit"): "optimiser 'gone' of acme-kit 1.2 cannot be imported from acme_kit_gone:"
        "Gone: ModuleNotFoundError: No module named 'acme_kit_gone'",
        ("diagnostics", "gradnorm", "acme-kit"): wins,
        ("commands", "train", "acme-kit"): wins,
    }
    only = json.loads(kit("plugins", "list", "--json", "--no-plugins").stdout)
    assert {row["distribution"] for rows in only.values() for row in rows} == {"tinygrad-rnn"}


def test_a_command_of_a_plugin(kit: Any, one_line: Any) -> None:
    page = kit("--help").stdout
    own, _, foreign = page.partition("\nCommands of plugins:\n")
    assert foreign.split("\n")[0].split() == ["greet", "of", "acme-kit", "1.2"]
    assert "has this name, and wins" in foreign and "  train " in own
    assert "the kit was imported" not in page
    assert kit("--no-plugins", "--help").stdout == own.rstrip("\n") + "\n"
    assert kit("--help", TINYGRAD_RNN_NO_PLUGINS="1").stdout == own.rstrip("\n") + "\n"
    assert kit("greet", "you").stdout == "hello you\n"
    assert kit("greet", "--help").stdout.count("Say hello.") == 1
    assert one_line(kit("gret").stderr) == "no command 'gret'; did you mean greet?"
    assert one_line(kit("--no-plugins", "greet", "you").stderr).startswith("no command 'greet'; known: ")
    bug = kit("greet", "bug")
    assert bug.exit_code == 1
    assert one_line(bug.stderr) == f"command 'greet' (acme_kit.py:{line_of('[].pop')}): IndexError: pop from empty list"
    assert kit("train", "--help").stdout.startswith("Usage: tinygrad-rnn train [OPTIONS] [TEXT]")


def test_a_command_of_a_file(tmp_path: Path, program: Any, one_line: Any) -> None:
    (tmp_path / "extra.py").write_text(
        "import click\nimport tinygrad_rnn as tr\n\n\n@tr.register_command\n@click.command('twice')\n"
        "@click.argument('word')\ndef twice(word):\n    click.echo(word * 2)\n"
    )
    assert program("--plugin", "extra.py", "twice", "ab").stdout == "abab\n"
    assert program("twice", "ab", TINYGRAD_RNN_PLUGIN="extra.py").stdout == "abab\n"
    assert one_line(program("twice", "ab").stderr).startswith("no command 'twice'")


def test_train_with_everything_of_a_kit(kit: Any, tmp_path: Path, one_line: Any) -> None:
    words = [word for word in TINY if word not in ("--corpus", "hello")]
    made = kit("train", *words, "--corpus", "rhymes", "--optim", "plain", "--optim-opt", "stretch=2",
               "--callback", "until:4", "--steps", "9", "--out", "run")  # fmt: skip
    assert made.exit_code == 0, made.stderr
    assert made.stdout == "run\n" and "the kit was imported" in made.stderr  # what a plugin prints is no product
    assert "step 4: stopped by callback until: so was asked" in made.stderr
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["optimizer"]["distribution"] == "acme-kit"
    assert described["data"]["source"] == "corpus rhymes of acme-kit 1.2 (CC0-1.0)"
    assert described["config"]["optim"]["optim_options"] == {"stretch": "2"}
    assert "optimiser      plain of acme-kit 1.2, source sha256 " in kit("inspect", "run").stdout
    assert kit("resume", "run", "--callback", "none", "-q").exit_code == 0
    whole = kit("train", *words, "--corpus", "rhymes", "--optim", "plain", "--optim-opt", "stretch=2",
                "--steps", "9", "--out", "whole", "-q")  # fmt: skip
    assert whole.exit_code == 0
    sampled = [kit("sample", run, "-n", "30", "--which", "latest").stdout for run in ("run", "whole")]
    assert sampled[0] == sampled[1] and len(sampled[0]) == 30
    table = kit("diagnose", "shares", "run", "--opt", "top=1", "--text", "site/acme_kit.py")
    assert "expected one of the 10 symbols of the vocabulary, got the character 'f'" in table.stderr
    found = json.loads(kit("diagnose", "shares", "run", "--opt", "top=1", "--json").stdout)
    assert [row["symbol"] for row in found["rows"]] == ["\n"] and sum(found["curve"]) == found["symbols"]
    shown = kit("diagnose", "shares", "run").stdout.splitlines()
    assert shown[0].split() == ["symbols", str(found["symbols"])] and ["symbol", "share"] in [s.split() for s in shown]
    for command, line in [
        ("diagnose shares run --opt tpo=1", "diagnostic 'shares' has no option 'tpo'; did you mean top?"),
        ("diagnose share run", "no diagnostic 'share'; did you mean shares?"),
        ("diagnose shares", "missing RUN; name the folder that train made"),
        ("diagnose gradnrom", "no diagnostic 'gradnrom'; did you mean gradnorm?"),
        ("resume run --steps 12 --no-plugins", "no optimiser 'plain'; known: adagrad, adam, adamw, rmsprop, sgd"),
        ("cells graph my.py", "no cell 'my.py': expected a name, got a file; give --plugin my.py, and its name"),
        ("train --optim plan --steps 1", "no optimiser 'plan'; did you mean plain?"),
        ("train --callback untl:3", "no callback 'untl'; did you mean until?"),
        ("train --optim plain --optim-opt strech=1", "optimiser plain has no option 'strech'; did you mean stretch?"),
        ("train --corpus rhyme", "no corpus 'rhyme'; did you mean rhymes?"),
    ]:
        assert one_line(kit(*command.split()).stderr) == line
    broken = kit("train", *TINY, "--callback", "faulty", "--steps", "9", "--out", "broken")
    assert broken.exit_code == 1
    told = one_line(broken.stderr)
    assert told.startswith(f"callback 'faulty', StepDone (acme_kit.py:{line_of('[1 //')}): ZeroDivisionError: ")
    assert told.endswith("; step 3 is saved: correct it, and go on with resume broken, or without it: --callback none")
    assert kit("sample", "broken", "-n", "3").exit_code == 0


def test_corpora_of_plugins_are_listed_and_counted(kit: Any) -> None:
    rows = {row["name"]: row for row in json.loads(kit("data", "list", "--json").stdout)["corpora"]}
    assert rows["rhymes"]["characters"] is None and "acme-kit 1.2" in rows["rhymes"]["summary"]
    assert rows["hello"]["characters"] == 24_000
    stats = kit("data", "stats", "--corpus", "rhymes")
    assert stats.stdout.startswith("text             corpus rhymes of acme-kit 1.2 (CC0-1.0)\ncharacters       2 800\n")
    assert "rhymes" not in kit("data", "list", "--no-plugins").stdout


def test_the_environment_restricts_and_is_checked(anew: Any, one_line: Any) -> None:
    listed = json.loads(anew("cells", "list", "--json", TINYGRAD_RNN_CELLS="lstm,rnn").stdout)["cells"]
    assert [row["name"] for row in listed] == ["lstm", "rnn"]
    left = anew("train", "--cell", "gru", TINYGRAD_RNN_CELLS="lstm,rnn")
    assert left.exit_code == 2
    assert one_line(left.stderr) == "cell 'gru' is left out by TINYGRAD_RNN_CELLS=lstm,rnn; add it there"
    wrong = anew("cells", "list", TINYGRAD_RNN_CELLS="lstm,rnnn")
    assert one_line(wrong.stderr).startswith("TINYGRAD_RNN_CELLS=lstm,rnnn: no cell 'rnnn'; did you mean rnn")
    assert "TINYGRAD_RNN_CELLS" in anew("--help").stdout


def test_a_changed_plugin_file_is_a_warning_where_nothing_is_written(anew: Any, tmp_path: Path, one_line: Any) -> None:
    file = tmp_path / "leaky.py"
    file.write_text(CELL)
    made = anew("train", *TINY, "--plugin", "leaky.py", "--cell", "leaky_of_file", "--steps", "2", "--out", "run")
    assert made.exit_code == 0, made.stderr
    sample = ("sample", "run", "-n", "5")
    before = anew(*sample)
    assert before.stderr == ""
    file.write_text(CELL + "# another remark\n")
    for words in (sample, ("eval", "run"), ("diagnose", "gradnorm", "run", "--json")):
        done = anew(*words)
        assert done.exit_code == 0, done.stderr
        (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
        assert "the code of cell 'leaky_of_file' (file leaky.py) has changed" in warning
        assert "its parameters fit, so this goes on (--allow-changed-cell silences this)" in warning
        assert "warning" not in anew(*words, "--allow-changed-cell").stderr
    assert anew(*sample).stdout == before.stdout
    assert "take the old code" in one_line(anew("resume", "run", "--steps", "3").stderr)
    file.rename(tmp_path / "moved.py")
    gone = anew(*sample)
    assert gone.exit_code == 1
    assert one_line(gone.stderr) == (
        f"run run wants the plugin file {file}, which is not there (no cell 'leaky_of_file'; known: "
        + one_line(gone.stderr).partition("known: ")[2].partition(")")[0]
        + "); put it back, or say where it is now: --plugin FILE.py"
    )
    assert anew(*sample, "--plugin", "moved.py").stdout == before.stdout
