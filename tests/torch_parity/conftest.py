"""What the comparisons with PyTorch share: our cells beside its modules, and a PyTorch that gives the same twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass(frozen=True)
class Pair:
    """Our cell with its options, and the name of PyTorch's module with its settings."""

    cell: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


PAIRS = {
    "rnn-tanh": Pair("rnn", "RNN"),
    "rnn-relu": Pair("rnn", "RNN", {"activation": "relu"}, {"nonlinearity": "relu"}),
    "lstm": Pair("lstm", "LSTM"),
    "gru": Pair("gru", "GRU", {"form": "reset_after"}),
}


@pytest.fixture(params=list(PAIRS))
def pair(request: pytest.FixtureRequest) -> Pair:
    """A cell that both sides have."""
    return PAIRS[request.param]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One thread adds up in one order."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
