"""What is shipped: the names in the wheel, its entry points, and that the sdist builds the same wheel."""

from __future__ import annotations

import configparser
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"tinygrad_rnn", "tinygrad_rnn_cells", "tinygrad_rnn_cli"}
REINSTALL = "editable installs freeze entry points: run pip install -e again (pip install -e '.[test]')"


@pytest.fixture(scope="session")
def project() -> dict[str, Any]:
    """The [project] table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def declared_entry_points(project: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {"console_scripts": project["scripts"], **project["entry-points"]}


def test_entry_points_are_installed(project: dict[str, Any]) -> None:
    try:
        points = metadata.distribution("tinygrad_rnn").entry_points
    except metadata.PackageNotFoundError:
        pytest.fail("tinygrad_rnn is not installed here: run pip install -e '.[test]'")
    installed = {group: {p.name: p.value for p in points.select(group=group)} for group in points.groups}
    assert installed == declared_entry_points(project), REINSTALL


def build(target: str, source: Path, out: Path) -> Path:
    """Build the sdist or the wheel of the tree at `source` into the new folder `out`, with the installed hatchling."""
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{target}", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.iterdir()
    return made


def wheel_files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / "tinygrad_rnn").is_dir():
        pytest.skip("needs the source tree: these tests run outside it, against an installed wheel")
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.mark.slow
def test_wheel_claims_three_names(wheel: Path) -> None:
    names = {name.partition("/")[0] for name in wheel_files(wheel)}
    assert {name for name in names if not name.endswith(".dist-info")} == PACKAGES
    assert len(names) == len(PACKAGES) + 1


@pytest.mark.slow
def test_wheel_holds_every_source_file(wheel: Path) -> None:
    parents = {"tinygrad_rnn": ROOT, "tinygrad_rnn_cells": ROOT / "plugins", "tinygrad_rnn_cli": ROOT / "cli"}
    sources = {
        path.relative_to(parent).as_posix()
        for name, parent in parents.items()
        for path in (parent / name).rglob("*.py")
    }
    sources |= {f"{name}/py.typed" for name in PACKAGES}
    sources |= {f"tinygrad_rnn_cli/scaffold/{name}.txt" for name in ("cell", "pyproject", "readme", "test")}
    assert sources <= wheel_files(wheel).keys()


@pytest.mark.slow
def test_wheel_metadata(wheel: Path, project: dict[str, Any]) -> None:
    files = wheel_files(wheel)
    (info,) = {name.partition("/")[0] for name in files if name.partition("/")[0].endswith(".dist-info")}
    parser = configparser.ConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names are case-sensitive
    parser.read_string(files[f"{info}/entry_points.txt"].decode())
    assert {group: dict(parser[group]) for group in parser.sections()} == declared_entry_points(project)
    assert files[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    lines = files[f"{info}/METADATA"].decode().splitlines()
    assert {"Name: tinygrad_rnn", "License-Expression: MIT", "Requires-Python: >=3.11"} <= set(lines)


@pytest.mark.slow
def test_sdist_holds_tests_and_docs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"tests/conftest.py", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"} <= names
    assert {"docs/write-a-cell.md", "docs/examples/tinygrad-rnn-ugrnn/pyproject.toml"} <= names


@pytest.mark.slow
def test_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        # Python 3.11 before 3.11.4 has no filters, 3.12 warns without one: this attribute suits both.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(tmp_path)
    (tree,) = tmp_path.iterdir()
    again = wheel_files(build("wheel", tree, tmp_path / "out"))
    first = wheel_files(wheel)
    assert again.keys() == first.keys()
    assert [name for name in first if first[name] != again[name]] == []
