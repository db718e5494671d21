"""Byte models at the command line: every byte that is drawn, primed with, or stopped at arrives as it is."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tinygrad_rnn_cli.main import cli

SMALL = "--hidden 8 --layers 1 --batch 4 --seq-len 10".split()
NOISE = bytes(range(256)) * 4  # hardly anything of it is UTF-8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "noise.bin").write_bytes(NOISE)
    words = ["train", str(folder / "noise.bin"), *SMALL, "--tokens", "bytes", "--steps", "2", "--sample-every", "2"]
    done = CliRunner().invoke(cli, [*words, "--out", str(folder / "run")])
    assert done.exit_code == 0, done.output
    assert "\ufffd" not in done.stderr and "\\x" in done.stderr  # --sample-every
    return folder / "run"


def test_samples_are_the_bytes_themselves(invoke: Any, run: Path) -> None:
    """The example of the issue: U+FFFD on stdout, in --json, with --stream and among several."""
    plain = invoke(["sample", run, "-n", "300"]).stdout_bytes
    assert len(plain) == 300 and max(plain) > 0x7F
    assert invoke(["sample", run, "-n", "300", "--stream"]).stdout_bytes == plain
    facts = json.loads(invoke(["sample", run, "-n", "300", "--json"]).stdout)
    assert base64.b64decode(facts["samples_base64"][0]) == plain
    assert facts["samples"] == [plain.decode("utf-8", "replace")]
    several = invoke(["sample", run, "-n", "40", "--num", "2"]).stdout_bytes
    both = json.loads(invoke(["sample", run, "-n", "40", "--num", "2", "--json"]).stdout)["samples_base64"]
    first, second = map(base64.b64decode, both)
    assert several == b"=== sample 1 of 2 ===\n" + first + b"\n=== sample 2 of 2 ===\n" + second + b"\n"


def test_samples_in_the_records_lose_no_byte(run: Path) -> None:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("ascii").splitlines()]
    (sample,) = [record for record in records if record["kind"] == "sample"]
    exact = base64.b64decode(sample["text_base64"])
    assert len(exact) == 200 and sample["text"] == exact.decode("utf-8", "replace")


def test_the_prime_is_echoed_as_it_is(invoke: Any, run: Path, tmp_path: Path) -> None:
    prime = bytes(range(255, -1, -1)) + b"\xe2\x82"
    (tmp_path / "prime.bin").write_bytes(prime)
    done = invoke(["sample", run, "-n", "5", "--prime-file", "prime.bin"])
    assert done.stdout_bytes[: len(prime)] == prime and len(done.stdout_bytes) == len(prime) + 5
    real = subprocess.run(
        [sys.executable, "-m", "tinygrad_rnn_cli", "sample", run, "-n", "5", "--prime", b"a\xff\xc3"],
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert real.stdout.startswith(b"a\xff\xc3") and len(real.stdout) == 8


@pytest.mark.parametrize(("stop", "byte"), [(r"\xff", 0xFF), ("\udcc3", 0xC3), (r"\n", 0x0A)])
def test_stop_is_in_bytes(invoke: Any, run: Path, stop: str, byte: int) -> None:
    sample = invoke(["sample", run, "-n", "5000", "--stop", stop]).stdout_bytes
    assert sample.index(byte) == len(sample) - 1 < 4999


def test_symbols_of_bytes_are_shown_as_bytes(invoke: Any, run: Path, tmp_path: Path) -> None:
    """Their names are Latin-1 characters: two of them are not the é whose bytes they are."""
    (tmp_path / "text.txt").write_text("é" * 30 + "a", encoding="utf-8")
    page = invoke("data stats text.txt --tokens bytes").stdout
    assert r"b'\xc3'" in page and r"b'a'" in page and "Ã" not in page
    page = invoke(["eval", run, "text.txt", "--by-char"]).stdout
    assert r"b'\xc3'" in page and "Ã" not in page


def test_json_is_json_on_an_ascii_stdout(program: Any, run: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("é€" * 30, encoding="utf-8")
    done = program("data", "stats", "text.txt", "--json", PYTHONIOENCODING="ascii")
    assert {symbol for symbol, _ in json.loads(done.stdout)["frequent"]} == {"é", "€"}


def test_json_names_a_byte_as_a_number(invoke: Any, tmp_path: Path) -> None:
    """The bytes of é, c3 and a9, would be two characters of Latin-1."""
    (tmp_path / "text").write_bytes("é".encode() * 300)
    counted = json.loads(invoke("data stats text --tokens bytes --json").stdout)
    assert counted["frequent"] == [["0xa9", 300], ["0xc3", 300]]
    words = "--tokens bytes --hidden 4 --layers 1 --batch 2 --seq-len 5 --steps 1 --out run".split()
    assert invoke(["train", "text", *words]).exit_code == 0
    scored = json.loads(invoke("eval run text --by-char --json").stdout)["by_char"]
    assert {row["symbol"] for row in scored} == {"0xa9", "0xc3"}
