"""A run from its first step to its last: train, sample, eval, inspect, plot, resume; signals, pipes and terminals."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

TINY = "--hidden 8 --layers 1 --batch 4 --seq-len 10 --corpus hello".split()


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_the_whole_way_through_real_processes(program: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 60, encoding="utf-8")
    made = program("train", "text.txt", "--hidden", 8, "--layers", 1, "--batch", 4, "--seq-len", 10, "--steps", 6)
    assert made.returncode == 0, made.stderr
    assert made.stdout == "runs/lstm-text-1\n"  # stdout: the run folder and nothing else
    for word in ("parameters", "step 6/6", "validation loss", "next:", "sample runs/lstm-text-1"):
        assert word in made.stderr
    again = program("train", "text.txt", *TINY[:-2], "--steps", 1, "-q")
    assert (again.stdout, again.stderr) == ("runs/lstm-text-2\n", "")
    sampled = program("sample", "runs/lstm-text-1", "-n", 40, "--prime", "the ")
    assert sampled.returncode == 0 and sampled.stderr == ""
    assert len(sampled.stdout) == 44 and sampled.stdout.startswith("the ")
    assert sampled.stdout == program("sample", "runs/lstm-text-1", "-n", 40, "--prime", "the ").stdout
    scored = program("eval", "runs/lstm-text-1", "text.txt", "--json")
    facts = json.loads(scored.stdout)
    assert facts["bits"] == pytest.approx(facts["nats"] / math.log(2))
    assert facts["low"] <= facts["nats"] <= facts["high"]
    longer = program("resume", "runs/lstm-text-1", "--steps", 9)
    assert longer.returncode == 0, longer.stderr
    assert "from step 6" in longer.stderr and "step 9/9" in longer.stderr


def test_resume_from_another_folder(invoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("hello world\n" * 50)
    sizes = "--hidden 8 --layers 1 --batch 4 --seq-len 10".split()
    assert invoke(["train", "text.txt", *sizes, "--steps", "2", "--out", "run"]).exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = invoke(["resume", "../run", "--steps", "4"])
    assert done.exit_code == 0, done.output


def test_the_files_of_a_folder(invoke: Any, tmp_path: Path) -> None:
    """Joined by --between, listed with what is skipped, and the same to train, resume and eval."""
    for name, text in [("2.txt", "two " * 60), ("10.txt", "ten " * 60), ("notes.md", "never read"), (".cache", "x")]:
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / name).write_text(text)
    made = invoke(["train", "texts", *TINY[:-2], "--between", r"<\n>", "--steps", "2", "--out", "run"])
    assert made.exit_code == 0, made.output
    assert r"read 2 files, joined by '<\n>': texts/2.txt, texts/10.txt" in made.stderr
    assert "skipped in the folder: texts/.cache, texts/notes.md; name a file itself" in made.stderr
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["config"]["data"]["between"] == "<\n>"
    assert facts["data"]["files"] == ["texts/2.txt", "texts/10.txt"]
    assert facts["data"]["skipped"] == ["texts/.cache", "texts/notes.md"]
    assert "3 files" not in made.stderr
    resumed = invoke("resume run --steps 3")
    assert resumed.exit_code == 0, resumed.output
    scored = json.loads(invoke("eval run texts --json").stdout)
    expected = len("two " * 60 + "<\n>" + "ten " * 60)
    assert 0 < expected - scored["symbols"] <= 20
    counted = json.loads(invoke(["data", "stats", "texts", "--between", "", "--json"]).stdout)
    assert counted["characters"] == 480 and counted["files"] == ["texts/2.txt", "texts/10.txt"]
    quiet = invoke(["data", "stats", "texts", "-q"])
    assert quiet.stderr == ""


def test_a_long_list_of_files_is_shortened(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(30):
        (tmp_path / "texts" / f"{number}.txt").write_text("ab")
    line = invoke("data stats texts").stderr
    assert "read 30 files" in line and "texts/9.txt, ... (19 more), texts/29.txt" in line and "texts/15.txt" not in line
    assert "texts/15.txt" in invoke("data stats texts -v").stderr


def test_resume_finds_a_text_that_has_moved(invoke: Any, tmp_path: Path) -> None:
    text = "one two three. " * 80
    for name in ("old.txt", "same.txt", "never.txt"):
        (tmp_path / name).write_text(text)
    for run, words in [("moved", ["--steps", "3"]), ("stayed", ["--steps", "6"])]:
        assert invoke(["train", "old.txt", *TINY[:-2], *words, "--out", run]).exit_code == 0
    (tmp_path / "old.txt").unlink()
    lost = invoke("resume moved --steps 6")
    assert lost.exit_code == 1 and "old.txt" in lost.stderr and "say where it is now: --text PATH" in lost.stderr
    found = invoke("resume moved --steps 6 --text same.txt")
    assert found.exit_code == 0, found.output
    facts = json.loads((tmp_path / "moved" / "run.json").read_text())
    assert facts["config"]["data"]["text"] == [str(tmp_path / "same.txt")]
    assert "earlier" not in facts["data"] and facts["data"]["files"] == [str(tmp_path / "same.txt")]
    assert invoke("eval moved").exit_code == 0
    losses = []
    for run in ("moved", "stayed"):
        records = map(json.loads, (tmp_path / run / "metrics.jsonl").read_text().splitlines())
        losses.append([record["loss"] for record in records if record["kind"] == "step"])
    assert losses[0] == losses[1] and len(losses[0]) == 6  # bit for bit, as if it had stayed


def test_resume_with_another_text_has_to_be_allowed(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("one two three. " * 80)
    (tmp_path / "other.txt").write_text("three two one. " * 40)
    (tmp_path / "more.txt").write_text("three two one! " * 80)
    assert invoke(["train", "old.txt", *TINY[:-2], "--steps", "25", "--out", "run"]).exit_code == 0
    before = (tmp_path / "run" / "run.json").read_text()
    refused = invoke("resume run --steps 40 --text other.txt")
    assert refused.exit_code == 1 and "--allow-other-text" in refused.stderr and refused.stderr.count("\n") == 1
    unknown = invoke("resume run --steps 40 --text more.txt --allow-other-text")
    assert unknown.exit_code == 1 and "'!' (U+0021)" in unknown.stderr and "--init-from run" in unknown.stderr
    assert invoke("resume run --text -").exit_code == 2
    assert (tmp_path / "run" / "run.json").read_text() == before
    # 25 steps into the old text there is nothing left of the other, which is half as long
    done = invoke("resume run --steps 40 --text other.txt --allow-other-text")
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    old = json.loads(before)["data"]
    assert re.search(r"^data\.text: /\S+ -> /\S+other\.txt, from step 25 on$", done.stderr, re.M), done.stderr
    assert facts["data"]["earlier"] == [{**old, "until": 25}] and facts["data"]["sha256"] != old["sha256"]
    assert invoke("resume run --steps 42").exit_code == 0
    assert invoke("eval run").exit_code == 0


def test_losses_on_another_text_are_none_to_beat(invoke: Any, tmp_path: Path) -> None:
    """An easy text first: its loss stayed the best for ever, its checkpoint was sampled, and patience ended the run."""
    (tmp_path / "easy.txt").write_text("abcdefgh" * 100)
    (tmp_path / "hard.txt").write_text("".join(chr(97 + 7 * n * n % 61 % 8) for n in range(1200)))
    sizes = "--hidden 8 --layers 1 --batch 4 --seq-len 10 --lr 0.05 --save-every 7".split()
    made = invoke(["train", "easy.txt", *sizes, *"--steps 40 --eval-every 10 --patience 2 --out run".split()])
    assert made.exit_code == 0, made.output
    easy = json.loads(invoke("inspect run --json").stdout)["progress"]["best_val_loss"]
    shutil.copytree("run", "killed")
    more = "--text hard.txt --allow-other-text --steps 90"
    assert invoke(f"resume run {more}").exit_code == 0
    facts = json.loads(invoke("inspect run --json").stdout)
    progress = facts["progress"]
    assert progress["best_val_loss"] > easy and progress["best_step"] > 40 and progress["steps"] > 60
    (best,) = [row["file"] for row in facts["checkpoints"] if row["best"]]
    assert best == f"step-{progress['best_step']:08}-val-{progress['best_val_loss']:.4f}.safetensors"
    assert json.loads(invoke("eval run --json").stdout)["nats"] == pytest.approx(progress["best_val_loss"], rel=1e-6)
    # a process killed before its first checkpoint on the new text begins that text again
    described = json.loads(Path("run/run.json").read_text())
    Path("killed/run.json").write_text(json.dumps(described))
    for path in Path("killed/checkpoints").iterdir():
        path.unlink() if path.name == "best.json" else path.rename(re.sub("-val-[0-9.]+(?=[.]s)", "", str(path)))
    assert invoke("resume killed").exit_code == 0
    assert json.loads(invoke("inspect killed --json").stdout)["progress"]["loss"] == progress["loss"]


def test_between_beside_one_file_is_said_to_do_nothing(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one two three. " * 40)
    assert "note: --between has no effect: the text is one file" in invoke("data stats one.txt --between x").stderr
    assert "--between" not in invoke("data stats one.txt one.txt --between x").stderr.replace("joined by", "")


def test_symbols_that_a_recipe_takes_from_held_out_text_are_counted(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "leak.txt").write_text("one two three. " * 100 + "XYZ")
    words = "train leak.txt --recipe char-rnn --batch 2 --seq-len 20 --plan".split()
    told = "note: 3 of the 12 symbols occur in the held-out parts alone"
    done = invoke(words)
    assert told in done.stderr and "--vocab-from text (recipe char-rnn)" in done.stderr, done.output
    assert told not in invoke([*words, "--vocab-from", "train"]).stderr


def test_text_from_standard_input_is_kept(program: Any) -> None:
    text = "one two three. " * 80
    made = program("train", "-", *TINY[:-2], "--steps", 3, "--out", "run", input=text)
    assert made.returncode == 0, made.stderr
    assert program("resume", "run", "--steps", 5).returncode == 0
    assert program("eval", "run").returncode == 0
    assert program("diagnose", "gradnorm", "run", "--json").returncode == 0


def test_plan_writes_nothing(invoke: Any, tmp_path: Path) -> None:
    done = invoke(["train", *TINY, "--plan"])
    assert done.exit_code == 0, done.output
    for word in ("parameters", "memory", "time", "steps"):
        assert word in done.stdout
    division = (
        "22 800 symbols to train on: 4 streams of 5 700 steps a pass, in 570 windows of 10 steps; 1 200 for "
        "validation, 0 for a test"
    )
    assert f"division     {division}\n" in done.stdout
    dropped = invoke(["train", *TINY, "--seq-len", "9", "--recipe", "min-char-rnn", "--plan"]).stdout
    assert "in 666 windows of 9 steps; the last 23 symbols are left out (--drop-last)" in dropped
    assert list(tmp_path.iterdir()) == []


def test_a_run_says_how_its_text_is_divided(invoke: Any) -> None:
    done = invoke(["train", *TINY, "--seq-len", "77", "--steps", "1"])
    division = "4 streams of 5 700 steps a pass, in 73 windows of 77 steps, 1 of 40 and 1 of 39; 1 200 for validation"
    assert f"text: 22 800 symbols to train on: {division}, 0 for a test\n" in done.stderr
    assert "(0.01333 epochs)" in done.stderr


def test_numbers_are_grouped_alike_and_a_byte_is_no_character(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("äöü ".encode() * 900)
    words = ["train", "text", *TINY[:-2], "--tokens", "bytes", "--seq-len", "1"]
    done = invoke([*words, "--steps", "1200", "--batch", "1", "--eval-every", "0"])
    assert ", 6 300 bytes, 256 symbols; 1 200 steps (" in done.stderr and "step 1 200/1 200 " in done.stderr
    assert "in 5 984 windows of 1 step; 315 for validation" in done.stderr
    assert "text         6 300 bytes\n" in invoke([*words, "--plan"]).stdout
    assert " symbols; 1 step (" in invoke([*words, "--steps", "1"]).stderr
    every = (done.stderr + done.stdout).replace("--steps 2400", "")  # a command to type
    assert not re.search(r"(?<![\d.e-])[1-9]\d{3,}", every), every


def test_advice_on_size(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("hello world\n" * 20)
    small = "--layers 1 --batch 1 --seq-len 10 --steps 1".split()
    big = invoke(["train", "short.txt", *small, "--hidden", "64"])
    assert "times as many parameters as characters" in big.stderr
    tiny = invoke(["train", "--corpus", "hello", *small, "--hidden", "4"])
    assert "times as many characters as parameters" in tiny.stderr


def test_samples(invoke: Any, trained: Path) -> None:
    several = invoke(["sample", trained, "-n", "10", "--num", "3"])
    assert several.stdout.count("=== sample ") == 3
    facts = json.loads(invoke(["sample", trained, "-n", "10", "--num", "3", "--json"]).stdout)
    assert [len(text) for text in facts["samples"]] == [10, 10, 10]
    assert (
        invoke(["sample", trained, "-n", "10", "--seed", "1"]).stdout
        != invoke(["sample", trained, "-n", "10", "--seed", "2"]).stdout
    )
    stopped = invoke(["sample", trained, "-n", "200", "--stop", "l"]).stdout
    assert stopped.endswith("l") and stopped.count("l") == 1
    greedy = invoke(["sample", trained, "-n", "10", "--greedy", "--seed", "5"]).stdout
    assert greedy == invoke(["sample", trained, "-n", "10", "-t", "0"]).stdout


def test_a_temperature_given_twice_is_refused(invoke: Any, trained: Path) -> None:
    done = invoke(["sample", trained, "-t", "0.5", "-t", "0.50"])
    assert done.exit_code == 2
    assert "--temperature: expected numbers that differ, got 0.5 more than once; see --num" in done.stderr


def test_symbols_that_the_model_does_not_know_name_the_option(invoke: Any, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("XYZQ" * 9)
    for words in (["sample", trained, "--prime", "XYZQ"], ["eval", trained, "other.txt"]):
        assert "skip such symbols with --unknown skip" in invoke(words).stderr


def test_several_temperatures_in_one_call(invoke: Any, trained: Path, tmp_path: Path) -> None:
    """Each under a title, and as it would be alone; in --json each beside its sample."""
    words = ["sample", trained, "-n", "12"]
    alone = [invoke([*words, "-t", t]).stdout for t in ("0.2", "0.5", "1")]
    together = invoke([*words, "-t", "0.2", "-t", "0.5", "-t", "1"])
    titles = [f"=== temperature {t} ===\n" for t in ("0.2", "0.5", "1")]
    assert together.stdout == "".join(f"{title}{text}\n" for title, text in zip(titles, alone, strict=True))
    assert together.stdout == invoke([*words, "--stream", "-t", "0.2", "-t", "0.5", "-t", "1"]).stdout
    facts = json.loads(invoke([*words, "-t", "0.2", "-t", "1", "--num", "2", "--json"]).stdout)
    assert facts["temperatures"] == [0.2, 0.2, 1.0, 1.0] and len(facts["samples"]) == 4
    both = invoke([*words, "-t", "0.2", "-t", "1", "--num", "2"]).stdout
    assert both == "".join(
        f"=== temperature {t:g}, sample {i} of 2 ===\n{text}\n"
        for t, i, text in zip(facts["temperatures"], (1, 2, 1, 2), facts["samples"], strict=True)
    )
    assert json.loads(invoke([*words, "--json"]).stdout)["temperatures"] == [1.0]
    assert together.stderr == ""
    shown = invoke([*words, "-t", "0.2", "-t", "1", "--show-config"]).stdout
    assert "sample.temperature = [0.2, 1.0]" in shown
    (tmp_path / "mine.toml").write_text(shown)
    again = invoke([*words, "--config", "mine.toml"]).stdout
    assert (
        again
        == invoke([*words, "--set", "sample.temperature=0.2,1"]).stdout
        == "".join(f"=== temperature {t} ===\n{text}\n" for t, text in [("0.2", alone[0]), ("1", alone[2])])
    )
    for bad in (["-t", "-1"], ["-t", "0.5", "-t", "hot"], ["--set", "sample.temperature="]):
        assert invoke([*words, *bad]).exit_code == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--greedy -t 0.5", "--temperature has no effect beside --greedy"),
        ("--greedy --top-k 3", "--top-k has no effect where the likeliest symbol is taken"),
        ("-t 0 --top-p 0.5", "--top-p has no effect where"),
        ("--unknown skip", "--unknown has no effect without --prime"),
        ("--json --stream", "--stream has no effect beside --json"),
        ("--num 2 --no-stream", "--stream has no effect beside --num"),
    ],
)
def test_options_of_sample_without_effect(invoke: Any, trained: Path, words: str, told: str) -> None:
    done = invoke(["sample", trained, "-n", "5", *words.split()])
    assert done.exit_code == 2 and done.stderr.startswith(f"error: {told}") and done.stderr.count("\n") == 1


def test_what_greedy_leaves_without_effect_is_told(invoke: Any, trained: Path) -> None:
    words = ["sample", trained, "-n", "5"]
    assert "--seed has no effect" in invoke([*words, "--greedy", "--seed", "5"]).stderr
    assert "the samples are the same" in invoke([*words, "-t", "0", "--num", "2"]).stderr
    assert "--top-k 9 has no effect: the model knows 9 symbols" in invoke([*words, "--top-k", "9"]).stderr
    for useful in (["-t", "0", "-t", "1", "--top-k", "3", "--seed", "5"], ["--seed", "5"], ["--top-k", "3"]):
        done = invoke([*words, *useful])
        assert done.exit_code == 0 and done.stderr == ""


def test_prime_file_and_unknown_symbols(invoke: Any, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "prime.txt").write_text("hello")
    assert invoke(["sample", trained, "-n", "5", "--prime-file", "prime.txt"]).stdout.startswith("hello")
    done = invoke(["sample", trained, "--prime", "hZllo"])
    assert done.exit_code == 1 and "'Z'" in done.stderr and done.stdout == ""
    assert invoke(["sample", trained, "-n", "5", "--prime", "hZllo", "--unknown", "skip"]).stdout.startswith("hllo")


def test_a_priming_file_is_read_as_train_reads_a_text(invoke: Any, trained: Path, tmp_path: Path) -> None:
    """A byte order mark is no symbol, and line ends stay what they are."""
    (tmp_path / "crlf.txt").write_bytes(b"one\r\ntwo\r\n" * 60)
    (tmp_path / "prime.txt").write_bytes(b"\xef\xbb\xbfone\r\n")
    small = "--hidden 8 --layers 1 --batch 4 --seq-len 10".split()
    for tokens in ("chars", "bytes"):
        made = invoke(["train", "crlf.txt", *small, "--tokens", tokens, "--steps", "1", "--out", tokens])
        assert made.exit_code == 0, made.output
    done = invoke("sample chars -n 1 --prime-file prime.txt")
    assert done.exit_code == 0, done.output
    assert done.stdout_bytes.startswith(b"one\r\n")
    (tmp_path / "prime.txt").write_bytes(b"\xef\xbb\xbfa\xff")
    assert "0xff at byte 4" in invoke("sample chars --prime-file prime.txt").stderr
    assert invoke("sample bytes -n 1 --prime-file prime.txt").exit_code == 0  # every byte is a symbol


def test_eval_parts_and_symbols(invoke: Any, trained: Path) -> None:
    facts = json.loads(invoke(["eval", trained, "--by-char", "--json"]).stdout)
    assert sum(row["count"] for row in facts["by_char"]) == facts["symbols"]
    assert facts["perplexity"] == pytest.approx(math.exp(facts["nats"]))
    page = invoke(["eval", trained, "--by-char", "--top", "2"]).stdout
    assert "perplexity" in page and "share of all surprise" in page
    assert invoke(["eval", trained, "--part", "test"]).exit_code == 1
    assert json.loads(invoke(["eval", trained, "-", "--json"], input="hello world\n" * 3).stdout)["symbols"] > 0


def test_inspect(invoke: Any, trained: Path) -> None:
    facts = json.loads(invoke(["inspect", trained, "--json"]).stdout)
    assert facts["config"]["model"]["hidden"] == 8
    assert facts["parameters"] == sum(entry["count"] for entry in facts["shapes"] if entry["role"] != "buffer")
    assert facts["cell"]["name"] == "lstm" and facts["cell_error"] is None
    assert facts["progress"]["steps"] == 12
    assert [entry["latest"] for entry in facts["checkpoints"]][-1]
    page = invoke(["inspect", trained]).stdout
    for word in ("model.hidden", "layers.0.W_hf", "sha256", "Checkpoints"):
        assert word in page


def test_inspect_names_the_run_that_weights_came_from_and_what_diverged(invoke: Any, trained: Path) -> None:
    assert invoke(["train", *TINY, "--steps", "1", "--init-from", trained, "--out", "next"]).exit_code == 0
    page = invoke("inspect next").stdout
    assert f"weights from   {trained} (--init-from)" in page and "trained        1 step, " in page
    assert json.loads(invoke("inspect next --json").stdout)["init_from"] == str(trained)

    words = "--steps 4 --lr 1e30 --out bad".split()
    assert invoke(["train", *TINY, *words, "--on-divergence", "rollback"]).exit_code == 4
    facts = json.loads(invoke("inspect bad --json").stdout)["progress"]
    assert facts["diverged"]["step"] == 2 and len(facts["rollbacks"]) == 5
    page = invoke("inspect bad").stdout
    assert "diverged at step 2: back to step 0, rate 5e+29" in page and "diverged at step 2: loss " in page


def test_plot(invoke: Any, run: Path) -> None:
    assert "training" in invoke(["plot", run]).stdout
    assert "timestep" in invoke(["plot", run, "--what", "grads"]).stdout
    made = invoke(["plot", run, "--what", "loss,grads", "--format", "svg"])
    assert made.exit_code == 0, made.output
    assert made.stdout.split() == [str(run / "loss.svg"), str(run / "grads.svg")]
    assert (run / "grads.svg").stat().st_size > 1000
    assert invoke(["plot", run, "--out", "x.png"]).stdout == "x.png\n"
    other = Path("elsewhere", run.name)  # runs of one name and one cell stay apart
    shutil.copytree(run, other)
    both = invoke(["plot", run, other, "--what", "grads"])
    assert f"{other} c" in both.stdout and f"{run} c" in both.stdout
    assert invoke(["plot", run, "--what", "los"]).exit_code == 2
    assert invoke(["plot", run, "--what", "loss,grads", "--out", "x.png"]).exit_code == 2


def test_plain_lines_and_watched_gradients(invoke: Any) -> None:
    done = invoke(["train", *TINY, "--steps", "4", "--watch", "grads:2", "--sample-every", "4", "-v"])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("step ") and "/4 " in line]
    assert len(lines) == 4
    for word in ("loss", "grad ", "->", "grad/param", "char/s", "left"):
        assert word in lines[0]
    assert "of the gradient" in done.stderr and ": sample" in done.stderr and "saved" in done.stderr


def test_resume_refuses_what_the_run_has_settled(invoke: Any, run: Path) -> None:
    for words in (["--optim", "sgd"], ["--seed", "4"], ["--set", "optim.beta1=0.5"], ["--hidden", "3"]):
        done = invoke(["resume", run, *words])
        assert done.exit_code == 2, done.output
    told = [invoke(["resume", run, "--set", f"{key}=4"]).stderr for key in ("model.hidden", "train.seed")]
    assert "--set model.hidden: the run has settled it" in told[0] and "optim.lr, " in told[0]
    assert "train.seed" not in told[0] and told[1].startswith("error: --set train.seed: the run has settled it")
    short = invoke(["resume", run, "--steps", "5"])
    assert short.exit_code == 2 and "done already" in short.stderr
    assert invoke(["resume", run, "--steps", "14"]).exit_code == 0


def test_a_plan_says_what_has_no_effect_as_the_run_does(invoke: Any) -> None:
    words = ["train", *TINY, *"--steps 6 --patience 3 --eval-every 3 --sample-every 9 --watch grads:7 --keep 9".split()]
    words += "--lr-decay exp:0.5@9 --warmup 6".split()
    told = [
        [line for line in invoke([*words, *more]).stderr.splitlines() if "effect" in line or "--warmup" in line]
        for more in ([], ["--plan"])
    ]
    assert len(told[0]) == 6 and sorted(told[0]) == sorted(told[1])


def test_init_from_says_that_it_rounds(invoke: Any) -> None:
    assert invoke(["train", *TINY, *"--steps 1 --dtype float64 --out wide".split()]).exit_code == 0
    rounded = invoke(["train", *TINY, *"--steps 1 --init-from wide --out narrow".split()])
    assert "--init-from wide: its weights are rounded to float32; --dtype float64 keeps them" in rounded.stderr
    for more in ("--init-from wide --dtype float64", "--init-from narrow", "--init-from narrow --dtype float64"):
        done = invoke(["train", *TINY, *f"--steps 1 {more}".split()])
        assert done.exit_code == 0 and "rounded" not in done.stderr


def test_resume_says_that_a_new_length_changes_the_schedule(invoke: Any) -> None:
    """At its end the rate of a cosine is 0; half way through it is lr / 2."""
    done = invoke(["train", *TINY, *"--lr 0.01 --lr-decay cosine --steps 4 --out run".split()])
    assert done.exit_code == 0, done.stderr
    told = invoke("resume run --steps 8").stderr
    assert "note: the new length changes --lr-decay cosine: the rate of the next step is 0.005 and not 0" in told
    assert "the new length" not in invoke("resume run --steps 8").stderr
    plain = ["train", *TINY, *"--steps 2 --out plain".split()]
    assert invoke(plain).exit_code == 0
    assert "the new length" not in invoke("resume plain --steps 4").stderr


def test_resume_with_other_settings_is_recorded_and_shown(invoke: Any, run: Path) -> None:
    words = "--steps 14 --lr 0.25 --clip-norm 0.125 --on-divergence rollback --patience 2 -v".split()
    done = invoke(["resume", run, *words])
    assert done.exit_code == 0, done.output
    assert "optim.lr: 0.002 -> 0.25, from step 12 on" in done.stderr
    assert "lr 0.25" in done.stderr and "->0.125 (" in done.stderr
    facts = json.loads(invoke(["inspect", run, "--json"]).stdout)
    assert [(row["step"], row["setting"], row["from"], row["to"]) for row in facts["changes"]] == [
        (12, "optim.lr", 0.002, 0.25),
        (12, "optim.clip_norm", 5.0, 0.125),
        (12, "train.patience", 0, 2),
        (12, "train.on_divergence", "abort", "rollback"),
    ]
    assert facts["config"]["optim"]["lr"] == 0.25
    page = invoke(["inspect", run]).stdout
    assert "Changes by resume" in page and "train.on_divergence" in page
    again = invoke(["resume", run, "--steps", "15", "-v"])
    assert "lr 0.25" in again.stderr and "optim.lr:" not in again.stderr
    assert "nothing is left to do: 15 steps are done" in invoke(["resume", run]).stderr
    both = invoke(["resume", run, "--steps", "16", "--epochs", "3"])
    assert both.exit_code == 2 and "--epochs has no effect beside --steps" in both.stderr


def test_a_clipped_gradient_is_told_step_by_step_and_at_the_end(invoke: Any) -> None:
    done = invoke(["train", *TINY, "--steps", "3", "--clip-value", "1e-4", "--clip-norm", "0", "-v", "--out", "run"])
    assert done.stderr.count("(100% clipped)") == 3
    assert "the gradient was clipped in 3 of 3 steps (100%)" in done.stderr
    before, after = done.stderr.partition("grad ")[2].split()[0].split("->")
    assert float(before) > 0.01 > float(after)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--optim adam --momentum 0.9", "--momentum 0.9 has no effect: adam does not read it, rmsprop and sgd do"),
        ("--optim sgd --beta1 0.5", "--beta1 0.5 has no effect: sgd does not read it"),
        ("--optim sgd --eps 1e-8", "--eps 1e-08 has no effect: sgd does not read it"),  # though it is the default
        ("--set optim.decay=0.5", "--decay 0.5 has no effect: adam does not read it, rmsprop does"),
        ("--eps 0", "--eps 0: expected at least 1.2e-38"),
        ("--sample-length 10", "--sample-length has no effect without --sample-every"),
        ("--steps 3 --epochs 2", "--epochs has no effect beside --steps"),
        ("--patience 3 --val-frac 0", "--patience 3: expected validations to judge by, got no text held out"),
        ("--lr-decay plateau:0.5@2 --eval-every 0", "--lr-decay plateau:0.5@2: expected validations"),
    ],
)
def test_a_flag_without_effect_is_an_error(invoke: Any, tmp_path: Path, words: str, told: str) -> None:
    done = invoke(["train", *TINY, *words.split(), "--out", "run"])
    assert done.exit_code in (1, 2) and told in done.stderr, done.output
    assert done.stderr.count("\n") == 1 or done.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_what_a_file_says_of_another_optimiser_is_left_out_aloud(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text('[optim]\noptim = "rmsprop"\ndecay = 0.5\nweight_decay = "none"\n')
    done = invoke(["train", *TINY, "--config", "my.toml", "--optim", "adam", "--steps", "1", "--out", "run"])
    assert done.exit_code == 0, done.output
    assert "my.toml: optim.decay = 0.5 is left out, for adam does not read it, rmsprop does" in done.stderr
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]["optim"]
    assert (config["decay"], config["weight_decay"]) == (0.95, None)  # what actually ran
    shown = invoke(["train", *TINY, "--config", "my.toml", "--show-config"]).stdout
    assert 'optim.weight_decay = "none"' in shown
    (tmp_path / "shown.toml").write_text(shown)
    assert invoke(["train", "--config", "shown.toml", "--steps", "1", "--out", "again"]).exit_code == 0


def test_a_run_too_short_for_its_schedule_is_warned_of(invoke: Any) -> None:
    done = invoke(["train", *TINY, "--steps", "2", "--lr-decay", "exp:0.5@9", "--warmup", "5", "--out", "run"])
    assert "--lr-decay exp:0.5@9 has no effect: it begins after " in done.stderr
    assert "--warmup 5: the rate never reaches --lr, for the run has 2 updates" in done.stderr


def test_a_diverged_step_is_replayed(invoke: Any, tmp_path: Path) -> None:
    words = "--optim sgd --lr 1e4 --clip-norm 0 --steps 50 --out run".split()
    done = invoke(["train", *TINY, *words])
    assert done.exit_code == 4 and "diagnose replay run shows it" in done.stderr, done.output
    page = invoke("diagnose replay run")
    assert page.exit_code == 0, page.output
    for word in ("step ", "diverged ", "loss ", "gradient ", "breaks ", "readout.W", "at timestep"):
        assert word in page.stdout
    facts = json.loads(invoke("diagnose replay run --json").stdout)
    assert facts["why"] in done.stderr and facts["step"] >= 2
    wrong = invoke("diagnose replay run --step 40")
    assert wrong.exit_code in (1, 2) and "--step 40: expected a step that diverged, one of" in wrong.stderr


# -------------------------------------------------------------------------------- signals, pipes, terminals


def started(folder: Path, *words: str, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tinygrad_rnn_cli", *words]
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def wait_for_steps(run: Path, process: subprocess.Popen[str], steps: int = 3) -> None:
    metrics = run / "metrics.jsonl"
    until = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= steps):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_stops(tmp_path: Path, program: Any, number: signal.Signals, code: int) -> None:
    process = started(tmp_path, "train", *TINY, "--steps", "1000000", "--save-every", "0", "--out", "run")
    wait_for_steps(tmp_path / "run", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors and "resume run" in errors
    facts = json.loads(program("inspect", "run", "--json").stdout)
    step = facts["progress"]["steps"]
    assert facts["checkpoints"][-1]["file"].startswith(f"step-{step:08d}")
    assert program("resume", "run", "--steps", step + 2).returncode == 0


def test_a_killed_run_goes_on(tmp_path: Path, program: Any) -> None:
    process = started(tmp_path, "train", *TINY, "--steps", "1000000", "--save-every", "5", "--out", "run")
    wait_for_steps(tmp_path / "run", process, 12)
    process.kill()
    process.communicate(timeout=60)
    facts = json.loads(program("inspect", "run", "--json").stdout)
    done = program("resume", "run", "--steps", facts["progress"]["steps"] + 20)
    assert done.returncode == 0, done.stderr


def test_a_closed_pipe_is_silent(tmp_path: Path, trained: Path) -> None:
    process = started(tmp_path, "sample", str(trained), "-n", "100000", "--stream")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=60) in (1, 141)
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_a_live_display_on_a_terminal(tmp_path: Path) -> None:
    import pty

    main, side = pty.openpty()
    words = ["train", *TINY, "--steps", "30", "--watch", "grads:10", "--out", "run"]
    command = [sys.executable, "-m", "tinygrad_rnn_cli", *words]
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", "LINES": "40", "COLUMNS": "100"}
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=side, env=environment)
    os.close(side)
    seen = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # Linux: the other side was closed
            break
        if not part:
            break
        seen += part
    os.close(main)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, seen.decode(errors="replace")
    text = seen.decode(errors="replace")
    assert out.decode().strip() == "run"
    for word in ("gradient norms", "step 30/30", "validation", "char/s", "\x1b["):
        assert word in text
    for markup in ("[bold]", "[cyan]", "[/]"):  # in a frame that is drawn with a line above it
        assert markup not in text


def test_weights_go_to_another_text_with_the_symbols_they_know(invoke: Any, tmp_path: Path) -> None:
    sizes = "--hidden 8 --layers 1 --batch 4 --seq-len 10 --steps 2".split()
    (tmp_path / "first.txt").write_text("the cat sat on the mat. " * 60)
    (tmp_path / "second.txt").write_text("a cat that sat on a hat. " * 60)  # fewer symbols, but known ones
    (tmp_path / "third.txt").write_text("a quick zebra. " * 60)
    assert invoke(["train", "first.txt", *sizes, "--out", "first"]).exit_code == 0
    done = invoke(["train", "second.txt", *sizes, "--out", "second", "--init-from", "first"])
    assert done.exit_code == 0, done.output
    symbols = [json.loads((tmp_path / name / "run.json").read_text())["vocabulary"] for name in ("first", "second")]
    assert symbols[0] == symbols[1]
    assert "new rows" not in done.stderr


def test_weights_go_to_a_text_with_new_symbols(invoke: Any, tmp_path: Path) -> None:
    """They get rows of their own behind the known ones, which is told and recorded."""
    sizes = "--hidden 8 --layers 1 --batch 4 --seq-len 10 --steps 2".split()
    (tmp_path / "first.txt").write_text("the cat sat on the mat. " * 60)
    (tmp_path / "third.txt").write_text("a quick zebra. " * 60)
    assert invoke(["train", "first.txt", *sizes, "--out", "first"]).exit_code == 0
    done = invoke(["train", "third.txt", *sizes, "--out", "third", "--init-from", "first"])
    assert done.exit_code == 0, done.output
    new = sorted(set("a quick zebra. ") - set("the cat sat on the mat. "))
    told = f"note: {len(new)} symbols of the text that first does not know ({', '.join(map(repr, new))}): new rows"
    assert told in done.stderr
    old, grown = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("first", "third"))
    assert grown["vocabulary"]["symbols"] == [*old["vocabulary"]["symbols"], *new]
    assert grown["added_symbols"] == new
    assert invoke("sample third -n 3 --prime zebra").exit_code == 0
    assert invoke("resume third --steps 3").exit_code == 0
    planned = invoke(["train", "third.txt", *sizes, "--init-from", "first", "--plan"])
    assert planned.exit_code == 0 and told in planned.stderr


def test_symbols_of_the_held_out_text_that_training_lacks_are_counted(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 60 + "ZEBRA " * 20)
    small = "--hidden 8 --layers 1 --batch 4 --seq-len 10 --steps 2 --val-frac 0.1 --test-frac 0.1 --out run".split()
    made = invoke(["train", "text.txt", *small])
    assert made.exit_code == 0, made.output
    assert "warning: 100 symbols of the test part occur nowhere in the training part: they are left out" in made.stderr
    assert "validation part occur" not in made.stderr
    scored = invoke("eval run --part test --json")
    facts = json.loads(scored.stdout)
    assert (facts["left_out"], facts["symbols"]) == (100, 55)
    assert "warning: 100 symbols of the test part of" in scored.stderr
    assert json.loads(invoke("eval run --json").stdout)["left_out"] == 0
    skipped = invoke("eval run - --unknown skip --json", input="the zebra sat\n")
    assert json.loads(skipped.stdout)["left_out"] == 4 and "warning: 4 symbols" in skipped.stderr
    assert invoke("resume run --steps 4").exit_code == 0


def test_eval_and_the_validation_of_train_say_the_same(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat, and the rat sat on the cat. " * 400)
    small = "--hidden 8 --layers 1 --batch 4 --seq-len 1000 --steps 2 --val-frac 0.2 --dtype float64 --out run".split()
    assert invoke(["train", "text.txt", *small]).exit_code == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (validated,) = (record["loss"] for record in records if record["kind"] == "val")
    facts = json.loads(invoke("eval run --json").stdout)
    assert facts["nats"] == validated
    assert (facts["symbols"], facts["streams"], facts["warm_up"]) == (4159, 4, 256)
    told = "4 159 symbols scored in 4 streams, each but the first behind 256 symbols of warm-up"
    assert told in invoke("eval run").stdout


def test_eval_of_a_short_text_gives_no_interval(invoke: Any, trained: Path) -> None:
    done = invoke(["eval", trained, "-"], input="hello world\n" * 8)
    assert "without an interval: it takes 100 symbols" in done.stdout
    facts = json.loads(invoke(["eval", trained, "-", "--json"], input="hello world\n" * 8).stdout)
    assert (facts["symbols"], facts["low"], facts["high"]) == (95, None, None)
    assert (facts["streams"], facts["warm_up"]) == (1, 0)


def test_sample_goes_on_from_the_state_that_training_carried(invoke: Any) -> None:
    made = invoke(["train", *TINY, "--cell", "rnn", "--steps", "100", "--lr", "0.02", "--out", "run"])
    assert made.exit_code == 0, made.output
    # training has read 1000 characters of lines of 12: "hell", and goes on with "o world"
    assert invoke("sample run -n 7 --greedy --state carried").stdout == " world\n"
    assert invoke("sample run -n 7 --greedy").stdout == invoke("sample run -n 7 --greedy --state start").stdout
    assert invoke("sample run -n 5 --state carried --prime hello --num 2").stdout.count("\nhello") == 2
    assert invoke("sample run --state none").exit_code == 2


def test_a_start_state_that_costs_too_much_is_reported(
    invoke: Any, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = invoke(["eval", trained, "--json"])
    assert "start state" not in quiet.stderr
    facts = json.loads(quiet.stdout)
    assert facts["start_nats"] == pytest.approx(facts["carried_nats"], abs=0.1)
    monkeypatch.setattr("tinygrad_rnn.evaluate.COLD", -1.0)
    assert "warning: from its start state the model pays" in invoke(["eval", trained]).stderr
    done = invoke(["train", *TINY, "--steps", "2", "--out", "cold"])
    assert "warning: from its start state the model pays" in done.stderr and "--state carried" in done.stderr


def test_weights_bring_the_settings_that_they_are_bound_to(invoke: Any, tmp_path: Path, one_line: Any) -> None:
    sizes = "--hidden 8 --layers 1 --batch 4 --seq-len 10 --steps 2".split()
    made = "--cell rnn --cell-opt activation=relu --wrap residual --tokens words --min-count 2".split()
    (tmp_path / "text.txt").write_text("the cat sat on the mat, the cat sat on the hat. a dog " * 60 + "once")
    assert invoke(["train", "text.txt", *sizes, *made, "--out", "first"]).exit_code == 0
    again = ["train", "text.txt", *"--batch 4 --seq-len 10 --steps 2 --init-from first".split()]
    done = invoke([*again, "--out", "second"])
    assert done.exit_code == 0, done.output
    assert f"note: --init-from first brings {' '.join(made[:6])} --hidden 8 --layers 1 --tokens words" in done.stderr
    configs = [json.loads((tmp_path / name / "run.json").read_text())["config"] for name in ("first", "second")]
    assert configs[0]["model"] == configs[1]["model"]
    assert [config["data"]["min_count"] for config in configs] == [2, 2]
    shown = {line.partition(" = ")[0]: line for line in invoke([*again, "--show-config"]).stdout.splitlines()}
    for key in ("model.wrap", "model.cell_options.activation", "data.tokens", "data.min_count"):
        assert shown[key].endswith("# run first"), shown[key]
    said = invoke([*again, "--cell", "rnn", "--cell-opt", "activation=relu", "--hidden", "8", "--out", "third"])
    assert said.exit_code == 0 and "brings --wrap residual --layers 1" in said.stderr


def test_weights_of_a_cell_whose_code_has_changed(invoke: Any, tmp_path: Path, trained: Path) -> None:
    again = ["train", *TINY, "--steps", "1", "--init-from"]
    assert "has changed" not in invoke([*again, trained, "--out", "one"]).stderr
    shutil.copytree(trained, tmp_path / "old")
    described = json.loads((tmp_path / "old" / "run.json").read_text())
    described["cell"]["source_sha256"] = "0" * 64
    (tmp_path / "old" / "run.json").write_text(json.dumps(described))
    done = invoke([*again, "old", "--out", "two"])
    assert done.exit_code == 0 and "warning: --init-from old: the code of cell lstm has changed" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--cell gru", "need --cell lstm, got --cell gru (flag --cell)"),
        ("--cell-opt forget_bias=3", "need --cell-opt forget_bias=1.0, got --cell-opt forget_bias=3.0 (flag"),
        ("--wrap residual", "need no --wrap, got --wrap residual (flag --wrap)"),
        ("--set model.hidden=9", "need --hidden 8, got --hidden 9 (--set)"),
        ("--tokens bytes", "need --tokens chars, got --tokens bytes (flag --tokens)"),
        ("--min-count 3", "need --min-count 1, got --min-count 3 (flag --min-count)"),
        ("--recipe min-char-rnn", "--embed hidden, got --cell rnn (recipe min-char-rnn), --hidden 100"),
        ("--init zeros", "--init has no effect beside --init-from"),
    ],
)
def test_a_setting_that_weights_cannot_be_put_to(
    invoke: Any, trained: Path, one_line: Any, words: str, told: str
) -> None:
    for more in ([], ["--plan"], ["--show-config"] * ("--init " not in words)):
        done = invoke(["train", "--corpus", "hello", "--init-from", trained, "--out", "new", *words.split(), *more])
        assert done.exit_code == 2
        assert told in one_line(done.stderr)
    assert not Path("new").exists()
