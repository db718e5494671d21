"""What a training tells: one event after the other, from Started to Finished."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tinygrad_rnn.diagnostics import GradNormReport


@dataclass(frozen=True)
class Started:
    """The first event: what is trained, on how much, for how long, and which executor runs the cells.

    `remarks` names settings that have no effect in a run of this length, a line each.
    """

    params: int
    characters: int
    V: int
    steps: int
    steps_per_epoch: int
    device: str
    executor: str
    reason: str
    from_step: int
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepDone:
    """One update. `loss` is in nats per symbol; `grad_norm` is before any clipping, `clipped_norm` after all of it.

    `clipped_share` is the share of the updates so far whose gradient was clipped.
    """

    step: int
    epoch: float
    loss: float
    grad_norm: float
    clipped_norm: float
    clipped_share: float
    param_norm: float
    lr: float
    symbols_per_s: float
    seconds_left: float


@dataclass(frozen=True)
class Validated:
    """A validation: nats per symbol on the held-out part, and whether it is the best so far.

    `lr` is the new learning rate where this validation lowered it (``plateau``).
    """

    step: int
    loss: float
    best: bool
    lr: float | None = None


@dataclass(frozen=True)
class Sampled:
    """A sample drawn during training; of a byte model, `text` is spelled as `Vocabulary.decode` spells it."""

    step: int
    text: str


@dataclass(frozen=True)
class Watched:
    """Per-timestep gradient norms of the batch of this step."""

    step: int
    report: GradNormReport


@dataclass(frozen=True)
class Saved:
    """A checkpoint was written."""

    step: int
    path: Path


@dataclass(frozen=True)
class RolledBack:
    """The training diverged: it went back to a checkpoint with half its rate; `lr` is that of the next update."""

    step: int
    to_step: int
    lr: float
    why: str


@dataclass(frozen=True)
class Finished:
    """The last event: ``done``, ``patience``, ``interrupted``, or ``callback NAME: WHY``.

    `clipped` counts the updates, of all `step`, whose gradient was clipped.
    """

    step: int
    reason: str
    best_loss: float | None
    path: Path
    clipped: int = 0
    start_losses: tuple[float, float] | None = None
    """nats per symbol on the held-out text from the start state, and from the carried one (see `start_losses`)"""


Event = Started | StepDone | Validated | Sampled | Watched | Saved | RolledBack | Finished
