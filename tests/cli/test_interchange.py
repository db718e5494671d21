"""`export torch` and `import torch` as a user types them; the numbers are in test_interchange.py and torch_parity/."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import tinygrad_rnn as tr

from .conftest import TINY

V, I, H = 5, 3, 4


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def foreign(path: Path, layers: int = 1, scale: float = 0.3) -> dict[str, Any]:
    """A GRU of somebody else in a file without our header, with names of their own."""
    rng = np.random.default_rng(4)
    shapes: dict[str, tuple[int, ...]] = {"model.emb.weight": (V, I), "model.fc.weight": (V, H), "model.fc.bias": (V,)}
    for k in range(layers):
        shapes |= {f"model.gru.weight_ih_l{k}": (3 * H, H if k else I), f"model.gru.weight_hh_l{k}": (3 * H, H)}
        shapes |= {f"model.gru.bias_{side}_l{k}": (3 * H,) for side in ("ih", "hh")}
    arrays = {name: (rng.normal(size=shape) * scale).astype(np.float32) for name, shape in shapes.items()}
    safetensors.numpy.save_file(arrays, path)
    return arrays


def test_out_and_in_again(invoke: Any, run: Path, tmp_path: Path) -> None:
    done = invoke(["export", "torch", run, "-o", "out/m.safetensors"])
    assert done.exit_code == 0, done.output
    assert done.stdout == "out/m.safetensors\n"
    compile(done.stderr, "stderr", "exec")  # the lines can be piped into a file
    assert "torch.nn.LSTM(8, 8)" in done.stderr and "load_file('out/m.safetensors')" in done.stderr
    assert invoke(["export", "torch", run, "-q"]).stderr == ""
    first, second = (tr.read_state_dict(path) for path in (run / "torch.safetensors", "out/m.safetensors"))
    assert first.metadata == second.metadata and first.arrays.keys() == second.arrays.keys()
    assert all(np.array_equal(first.arrays[name], second.arrays[name]) for name in first.arrays)

    done = invoke("import torch out/m.safetensors")  # symbols and seed are in the file
    assert done.exit_code == 0, done.output
    assert done.stdout == "runs/m-1\n"
    assert "lstm: 1 x 8 units, an embedding (hidden), 9 chars, float32" in done.stderr
    for which in ("sample {} -n 30", "sample {} -n 30 --greedy --prime hel"):
        ours, theirs = (invoke(which.format(folder).split()) for folder in (run, "runs/m-1"))
        assert ours.exit_code == 0 and ours.stdout == theirs.stdout
    assert invoke("export torch runs/m-1 -q").exit_code == 0
    third = tr.read_state_dict("runs/m-1/torch.safetensors")
    assert all(np.array_equal(first.arrays[name], third.arrays[name]) for name in first.arrays)
    assert invoke("import torch out/m.safetensors -q").stdout == "runs/m-2\n"


def test_a_run_of_anybody_s_weights_is_a_run(invoke: Any, tmp_path: Path, one_line: Any) -> None:
    """sample, eval, diagnose, inspect, plot, export, train --init-from work on it; resume says what to do instead."""
    foreign(tmp_path / "their model.safetensors", layers=2)
    (tmp_path / "text.txt").write_text("abcd\n" * 30)
    done = invoke(["import", "torch", "their model.safetensors", "--text", "text.txt", "--out", "got"])
    assert done.exit_code == 0, done.output
    assert "gru form=reset_after: 2 x 4 units, an embedding (3), 5 chars, float32" in done.stderr
    assert len(invoke("sample got -n 20").stdout) == 20
    scored = json.loads(invoke("eval got --json --part train").stdout)
    assert scored["nats"] == pytest.approx(np.log(V), abs=0.5)  # weights as small as these know little
    assert invoke("eval got").exit_code == 0  # the validation part of its own text, too short to train on
    assert json.loads(invoke("diagnose gradnorm got --steps 5 --json").stdout)["cell"] == "gru"
    facts = json.loads(invoke("inspect got --json").stdout)
    assert facts["imported"]["file"] == str(tmp_path / "their model.safetensors")
    assert facts["data"]["source"] == str(tmp_path / "text.txt") and facts["progress"]["steps"] == 0
    page = invoke("inspect got").stdout
    assert "imported from" in page and "text.txt: 150 characters" in page
    assert "no training to continue" in one_line(invoke("resume got --steps 5").stderr)
    assert "expected metrics with a loss, got none" in one_line(invoke("plot got").stderr)
    assert invoke("export torch got -q").exit_code == 0
    (advice,) = [line for line in done.stderr.splitlines() if "--init-from" in line]
    words = shlex.split(advice.partition("#")[0])
    assert words[:2] == ["tinygrad-rnn", "train"]
    made = invoke([*words[1:], "--steps", "2", "--batch", "2", "--seq-len", "5", "--lr", "0", "--out", "longer"])
    assert made.exit_code == 0, made.output
    first, second = (tr.load_run_model(tmp_path / folder, which="latest").params for folder in ("got", "longer"))
    assert all(np.array_equal(first[name].data, second[name].data) for name in first)


def test_without_a_text(invoke: Any, tmp_path: Path, one_line: Any) -> None:
    foreign(tmp_path / "m.safetensors")
    (tmp_path / "v.json").write_text(json.dumps(list("abcd\n")))
    (tmp_path / "v.txt").write_text("abcd\n")
    (tmp_path / "text.txt").write_text("abcd\n" * 30)
    for vocab in ("v.json", "v.txt"):
        done = invoke(["import", "torch", "m.safetensors", "--vocab", vocab, "--out", "got", "--overwrite"])
        assert done.exit_code == 0, done.output
        assert tr.run_vocabulary(tr.open_run("got")).symbols == tuple("abcd\n")
    for command in ("eval got", "diagnose gradnorm got"):
        assert one_line(invoke(command).stderr) == (
            "run got was imported without a text; name one, or import it again with --text"
        )
    assert "\n  text           none\n" in invoke("inspect got").stdout
    assert invoke("eval got text.txt").exit_code == 0
    assert invoke("diagnose gradnorm got --text text.txt --steps 5 -q").exit_code == 0
    done = invoke("import torch m.safetensors --vocab v.txt --text text.txt --out both")
    assert done.exit_code == 0, done.output
    assert tr.run_vocabulary(tr.open_run("both")).symbols == tuple("abcd\n")  # not sorted: the vocabulary rules
    assert invoke("eval both").exit_code == 0


def test_like_another_run(invoke: Any, tmp_path: Path, one_line: Any) -> None:
    small = "--hidden 8 --layers 1 --batch 2 --seq-len 5 --steps 1 --seed 6".split()
    assert invoke(["train", "-", *small, "--out", "first"], input="abcd\n" * 30).exit_code == 0
    foreign(tmp_path / "m.safetensors")
    done = invoke("import torch m.safetensors --like first --out got")
    assert done.exit_code == 0, done.output
    assert invoke("eval got").exit_code == 0  # the text from standard input, which the first run keeps
    config = tr.run_config(tr.open_run("got"))
    assert (config.model.cell, config.data.seq_len, config.train.seed) == ("gru", 5, 6)
    assert "--like excludes" in one_line(invoke("import torch m.safetensors --like first --text x").stderr)
    assert "no run nowhere" in one_line(invoke("import torch m.safetensors --like nowhere").stderr)


def test_bytes_and_words(invoke: Any, tmp_path: Path) -> None:
    arrays = foreign(tmp_path / "m.safetensors")
    (tmp_path / "words.json").write_text(json.dumps(["the", " ", "cat", "sat", "."]))
    done = invoke("import torch m.safetensors --vocab words.json --tokens words --out words")
    assert done.exit_code == 0 and "5 words" in done.stderr
    wide = {n: np.resize(a, (256, *a.shape[1:])) if "emb" in n or "fc" in n else a for n, a in arrays.items()}
    safetensors.numpy.save_file(wide, tmp_path / "wide.safetensors")
    done = invoke("import torch wide.safetensors --tokens bytes --out bytes")
    assert done.exit_code == 0 and "256 bytes" in done.stderr


def test_what_the_file_does_not_hold_is_said(invoke: Any, tmp_path: Path, one_line: Any) -> None:
    arrays = foreign(tmp_path / "m.safetensors")
    (tmp_path / "v.txt").write_text("abcd\n")
    safetensors.numpy.save_file({n: a for n, a in arrays.items() if "bias" not in n}, tmp_path / "plain.safetensors")
    done = invoke("import torch plain.safetensors --vocab v.txt --out plain --dtype float64")
    assert "note: the file does not hold the biases of model.gru: they are 0 here" in done.stderr
    assert "--dtype float64" in done.stderr
    safetensors.numpy.save_file({n: a for n, a in arrays.items() if "gru" in n}, tmp_path / "bare.safetensors")
    done = invoke("import torch bare.safetensors --vocab v.txt --out bare")
    assert done.exit_code == 2 and "got no embed and no readout" in one_line(done.stderr)
    done = invoke("import torch bare.safetensors --vocab v.txt --out bare --init-missing --seed 3")
    assert done.exit_code == 0 and "note: drawn at random" in done.stderr
    assert invoke("sample bare -n 5").exit_code == 0
    done = invoke("import torch plain.safetensors --vocab v.txt --out whole --init-missing")
    assert "note: --init-missing has no effect" in done.stderr


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("import torch none.safetensors --vocab v.txt", 1, "cannot read none.safetensors: No such file or directory"),
        ("import torch v.txt --vocab v.txt", 1, "v.txt is no safetensors file, or is damaged"),
        (
            "import torch m.safetensors",
            2,
            "m.safetensors: expected a vocabulary, which symbol each number stands for; ",
        ),
        ("import torch m.safetensors --vocab none.txt", 1, "cannot read none.txt"),
        ("import torch m.safetensors --vocab six.txt", 2, "of shape (6, 3), a row for each of the 6 symbols"),
        ("import torch m.safetensors --text none.txt", 1, "none.txt"),
        ("import torch m.safetensors --text -", 2, "--text -: expected a file or folder"),
        ("import torch m.safetensors --vocab v.txt --nonlinearity relu", 2, "--nonlinearity relu: expected a torch.nn"),
        ("import torch m.safetensors --vocab v.txt --embed-name fd", 2, "--embed-name fd: no such matrix"),
        ("import torch m.safetensors --vocab v.txt --out v.txt", 1, "cannot make the run folder v.txt"),
        ("import torch m.safetensors --vocab v.txt --out .", 1, ". is neither empty nor a run folder"),
        ("import torch run/checkpoints/step-00000012.safetensors --vocab v.txt", 1, "cannot read"),
        ("import torch m.safetensors --vocab v.txt --overwrite", 2, "--overwrite has no effect without --out"),
        ("import torch m.safetensors --vocab v.txt --min-count 2", 2, "--min-count has no effect without --text"),
        ("import torch m.safetensors --vocab v.txt --val-frac 0.1", 2, "--val-frac has no effect without --text"),
        ("import torch m.safetensors --vocab v.txt --encoding cp1252", 2, "--encoding has no effect without --text"),
        ("import torch m.safetensors --like run --between x", 2, "--between has no effect beside --like"),
        (
            "import torch m.safetensors --text v.txt --tokens bytes --errors replace",
            2,
            "--errors has no effect with --tokens bytes",
        ),
        (
            "import torch m.safetensors --vocab v.txt --text v.txt --min-count 2",
            2,
            "--min-count has no effect beside the vocabulary of v.txt",
        ),
        ("import torch m.safetensors --like run --tokens bytes", 2, "--tokens has no effect beside --like"),
        ("import tarch m", 2, "no command 'tarch'; did you mean torch?"),
        ("export torch nowhere", 1, "no run nowhere"),
        ("export torch", 2, "missing RUN"),
        ("export torch run -o v.txt", 1, "v.txt is there already; replace it with --overwrite"),
        ("export torch run -o run", 1, "run is a folder; name a file in it"),
    ],
)
def test_what_cannot_be(
    command: str, code: int, words: str, invoke: Any, run: Path, tmp_path: Path, one_line: Any
) -> None:
    foreign(tmp_path / "m.safetensors")
    (tmp_path / "v.txt").write_text("abcd\n")
    (tmp_path / "six.txt").write_text("abcdef")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = invoke(command)
    assert (done.exit_code, done.stdout) == (code, "")
    assert words in one_line(done.stderr)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_run_that_is_there_stays(invoke: Any, run: Path, one_line: Any) -> None:
    invoke("export torch run -o m.safetensors -q")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "holds a run already" in one_line(invoke("import torch m.safetensors --out run").stderr)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert invoke("import torch m.safetensors --out run --overwrite").exit_code == 0
    assert [path.name for path in tr.checkpoints(tr.open_run("run"))] == ["step-00000000.safetensors"]


def test_a_cell_that_torch_has_not(invoke: Any, one_line: Any) -> None:
    assert (
        invoke("train --corpus hello --cell mut1 --hidden 8 --batch 4 --seq-len 10 --steps 1 --out mut").exit_code == 0
    )
    done = invoke("export torch mut")
    assert done.exit_code == 2
    assert "cell mut1 has no module in torch.nn; what can be exchanged: rnn (" in one_line(done.stderr)


def test_a_tied_model_goes_all_the_way(invoke: Any, one_line: Any, tmp_path: Path) -> None:
    made = ["train", *TINY, "--tie", "--steps", "4", "--out", "run"]
    assert invoke(made).exit_code == 0
    page = invoke("inspect run").stdout
    assert "readout.W" in page and "embed.W" not in page
    assert invoke("resume run --steps 6 -q").exit_code == 0
    text = invoke("sample run -n 20 --seed 3 --which latest").stdout
    done = invoke("export torch run -o m.safetensors --which latest")
    assert "self.readout.weight = self.embed.weight" in done.stderr
    back = invoke("import torch m.safetensors --out back")
    assert "an embedding (hidden), tied, 9 chars" in back.stderr
    assert invoke("sample back -n 20 --seed 3").stdout == text
    assert invoke("export onnx run -o m.onnx --no-check").exit_code == 0
    assert (
        "brings --hidden 8 --layers 1 --tie"
        in invoke([*made[:1], *TINY[4:], *"--steps 2 --init-from run".split()]).stderr
    )
    refused = invoke(["train", *TINY, "--no-tie", "--init-from", "run"])
    assert "its weights need --tie, got --no-tie" in one_line(refused.stderr)
    for embed in ("onehot", "5"):
        wrong = invoke(["train", *TINY, "--tie", "--embed", embed])
        assert wrong.exit_code == 2
        assert f"--tie: expected an embedding of as many units as --hidden, 8, got --embed {embed}" in one_line(
            wrong.stderr
        )


@pytest.mark.parametrize(
    ("left", "told"), [("encoder", "or --tie if it is both"), ("decoder", "say --tie where one matrix")]
)
def test_one_matrix_for_both_ends(invoke: Any, one_line: Any, tmp_path: Path, left: str, told: str) -> None:
    """A tied module of which a program kept one matrix: what the message says leads on."""
    rng = np.random.default_rng(4)
    shapes = {"rnn.weight_ih_l0": (H, H), "rnn.weight_hh_l0": (H, H), f"{left}.weight": (V, H), "decoder.bias": (V,)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    safetensors.numpy.save_file(arrays, tmp_path / "m.safetensors")
    (tmp_path / "v.txt").write_text("abcd\n")
    refused = invoke("import torch m.safetensors --vocab v.txt --out got")
    assert refused.exit_code == 2 and told in one_line(refused.stderr)
    assert invoke("import torch m.safetensors --vocab v.txt --out got --tie").exit_code == 0
    params = tr.load_run_model(tmp_path / "got").params
    np.testing.assert_array_equal(params["readout.W"].data, arrays[f"{left}.weight"].T)
    np.testing.assert_array_equal(params["readout.b"].data, arrays["decoder.bias"])
