"""A large file must not need more than three times its size of memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = """
import sys
from tinygrad_rnn.config import DataConfig
from tinygrad_rnn.data import load_dataset

def peak():
    try:  # getrusage's figure survives exec, so that a child of a large process looks large from the start
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except OSError:
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

before = peak()
dataset = load_dataset(DataConfig(text=(sys.argv[1],), tokens=sys.argv[2]))
print(peak() - before, dataset.characters)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither /proc nor getrusage")
@pytest.mark.parametrize("kind", ["chars", "bytes", "words"])
def test_peak_memory_is_at_most_three_times_the_file(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    words = np.array(["".join(map(chr, rng.integers(97, 123, rng.integers(1, 9)))) + " " for _ in range(5000)])
    block = "".join(rng.choice(words, 100_000)).encode()
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        while file.tell() < 30_000_000:
            file.write(block)
    size = path.stat().st_size
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), kind], capture_output=True, text=True, check=True, cwd=root
    )
    needed, characters = map(int, run.stdout.split())
    assert characters == size
    assert size < needed * 3, "the measurement itself is in doubt: the array alone is a third of the file"
    assert needed <= 3 * size
