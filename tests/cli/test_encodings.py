"""Texts in other encodings, and compressed ones, through train, resume, eval, sample and data stats."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

SMALL = "--hidden 8 --layers 1 --batch 4 --seq-len 10 --steps 2".split()
FRENCH = "L'été dernier, nous avons déjeuné près de la forêt; où ça?\r\n" * 20


def trained(invoke: Any, text: str, *words: str) -> Any:
    done = invoke(["train", text, *SMALL, *words, "--out", "run"])
    assert done.exit_code == 0, done.output
    return done


def data_of(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the settings of the text, which text it was) in run.json."""
    facts = json.loads((run / "run.json").read_text())
    return facts["config"]["data"], facts["data"]


def test_a_text_in_latin_1(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(FRENCH.encode("latin-1"))
    (tmp_path / "prime.txt").write_bytes("été\r\n".encode("latin-1"))
    (tmp_path / "utf8.txt").write_bytes(FRENCH.encode())
    refused = invoke(["train", "a.txt", *SMALL])
    assert refused.exit_code == 1 and "0xe9 at byte 2 of 'a.txt'; pass --encoding" in refused.stderr
    trained(invoke, "a.txt", "--encoding", "latin-1")
    assert data_of(tmp_path / "run")[0]["encoding"] == "latin-1"
    assert invoke("resume run --steps 3").exit_code == 0
    assert invoke("sample run -n 3 --prime-file prime.txt").stdout_bytes.startswith("été\r\n".encode())
    scored = json.loads(invoke("eval run a.txt --json").stdout)  # in the encoding of the run
    other = json.loads(invoke("eval run utf8.txt --encoding utf-8 --json").stdout)
    assert other["nats"] == scored["nats"]
    unlike = invoke("eval run utf8.txt --encoding ascii")
    assert unlike.exit_code == 1 and "expected ASCII, got byte 0xc3 at byte 2" in unlike.stderr
    counted = json.loads(invoke("data stats a.txt --encoding latin-1 --json").stdout)
    assert counted["sha256"] == data_of(tmp_path / "run")[1]["sha256"]
    assert counted["sha256"] == json.loads(invoke("data stats utf8.txt --json").stdout)["sha256"]


def test_bytes_that_are_changed_are_counted(invoke: Any, tmp_path: Path) -> None:
    """Of the first file 2 bytes a line are no UTF-8, and 3 at the end are a character cut short; of the second none."""
    (tmp_path / "a.txt").write_bytes(b"good text, then \xff\xfe\n" * 600 + b"\xf0\x9f\x98")
    (tmp_path / "b.txt").write_bytes(b"good text")
    for how, what in (("replace", "replaced by U+FFFD"), ("ignore", "left out")):
        done = trained(invoke, "a.txt", "b.txt", "--errors", how, "--overwrite")
        assert f"note: --errors {how}: 1 203 bytes that cannot be decoded {what}: a.txt" in done.stderr
        assert data_of(tmp_path / "run")[1]["undecoded"] == [1203, 0]
        assert json.loads(invoke(f"data stats a.txt --errors {how} --json").stdout)["undecoded"] == [1203]
    (tmp_path / "prime.txt").write_bytes(b"good \xff")
    assert (
        "1 byte that cannot be decoded left out: prime.txt" in invoke("sample run -n 3 --prime-file prime.txt").stderr
    )
    assert "decoded" not in invoke("data stats b.txt --errors replace").stderr


def test_a_guess_is_told_and_recorded(invoke: Any, tmp_path: Path) -> None:
    pytest.importorskip("charset_normalizer")
    (tmp_path / "a.txt").write_bytes(FRENCH.encode("cp1252"))
    done = trained(invoke, "a.txt", "--encoding", "auto")
    assert "read as cp1252: a.txt; --encoding says otherwise" in done.stderr
    settings, text = data_of(tmp_path / "run")
    assert settings["encoding"] == "cp1252" and text["encodings"] == ["cp1252"]
    assert invoke("resume run --steps 3").exit_code == 0


def test_the_priming_file_says_what_it_expected(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(FRENCH.encode())
    trained(invoke, "a.txt")
    (tmp_path / "bad").write_bytes(b"a\xff")
    (tmp_path / "none").write_bytes(b"")
    for name, words in [
        ("bad", "0xff at byte 1 of 'bad'; convert it to utf-8"),
        ("none", "not one character from 'none'"),
        ("nowhere", "'nowhere', which does not exist"),
    ]:
        done = invoke(["sample", "run", "--prime-file", name])
        assert done.exit_code == 1 and words in done.stderr and done.stderr.startswith("error: --prime-file: ")
        assert done.stderr.count("\n") == 1 and "--errors" not in done.stderr
    done = invoke("diagnose gradnorm run --text bad")
    assert done.exit_code == 1 and done.stderr.startswith("error: --text: expected UTF-8, got byte 0xff at byte 1 ")
    assert done.stderr.endswith("; convert it to utf-8\n")
    piped = invoke("sample run -n 1 --prime-file -", input="été".encode())
    assert piped.stdout.startswith("été")


def test_a_compressed_text(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(FRENCH.encode()))
    done = invoke(["train", "a.txt.gz", *SMALL])
    assert done.stdout == "runs/lstm-a-1\n", done.output
    assert invoke("resume runs/lstm-a-1 --steps 3").exit_code == 0
    assert invoke("eval runs/lstm-a-1 a.txt.gz").exit_code == 0
    (tmp_path / "cut.gz").write_bytes((tmp_path / "a.txt.gz").read_bytes()[:-9])
    cut = invoke("data stats cut.gz")
    assert cut.exit_code == 1 and "expected gzip data in 'cut.gz'" in cut.stderr and cut.stderr.count("\n") == 1
    piped = invoke("data stats -", input=(tmp_path / "a.txt.gz").read_bytes())
    assert piped.exit_code == 1 and "got gzip data from 'standard input'; decompress it" in piped.stderr


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("train a.txt --tokens bytes --min-count 2", "--min-count"),
        ("train a.txt --tokens bytes --errors replace", "--errors"),
        ("train a.txt --tokens bytes --set data.encoding=latin-1", "--set data.encoding"),
        ("data stats a.txt --tokens bytes --errors replace", "--errors"),
        ("train --corpus hello --errors replace", "--errors"),
        ("train --encoding latin-1", "--encoding"),
        ("data stats --between x", "--between"),
        ("eval run --encoding latin-1", "--encoding"),
        ("eval byte a.txt --errors replace", "--errors"),
    ],
)
def test_options_without_effect_are_refused(invoke: Any, tmp_path: Path, command: str, flag: str) -> None:
    (tmp_path / "a.txt").write_text("hello world\n" * 20)
    if command.startswith("eval byte"):
        assert invoke(["train", "a.txt", *SMALL, "--tokens", "bytes", "--out", "byte"]).exit_code == 0
    elif command.startswith("eval"):
        trained(invoke, "a.txt")
    done = invoke(command)
    assert done.exit_code == 2 and f"error: {flag} has no effect" in done.stderr
    assert done.stderr.count("\n") == 1
