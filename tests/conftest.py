"""What every test may use: hypothesis profiles, a seeded generator, the shared corpora."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from tinygrad_rnn import plugins

# HYPOTHESIS_PROFILE chooses; without it a machine that says CI=true gets "ci". No deadlines: the
# machines are shared, and a slow example is no wrong example.
settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("full", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that starts the same in every test."""
    return np.random.default_rng(0)


@pytest.fixture
def own_registry() -> Iterator[None]:
    """Plugins that a test registers are gone afterwards."""
    before = dict(plugins._registered)
    yield
    plugins._registered.clear()
    plugins._registered.update(before)


@pytest.fixture
def distribution() -> Callable[..., None]:
    """What pip leaves of an installed distribution, in a folder that has to be on sys.path: modules, and a .dist-info
    with entry points by group."""

    def install(
        folder: Path,
        name: str,
        modules: Mapping[str, str],
        entries: Mapping[str, Mapping[str, str]],
        version: str = "1.2",
    ) -> None:
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = []
        for group, places in entries.items():
            lines += [f"[tinygrad_rnn.{group}]", *(f"{key} = {place}" for key, place in places.items())]
        (info / "entry_points.txt").write_text("\n".join([*lines, ""]))
        for module, source in modules.items():
            (folder / f"{module}.py").write_text(source)

    return install


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of larger corpora beside the checkout; they are no part of the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the corpora of shared/data beside the checkout")
    return folder
