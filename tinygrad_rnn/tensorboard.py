"""The callback `tensorboard`: the curves and samples of a training as event files, which TensorBoard reads.

The one file that names tensorboardX. It is imported when a training begins that asks for the callback.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinygrad_rnn.errors import InputError
from tinygrad_rnn.events import Event, Finished, RolledBack, Sampled, Saved, Started, StepDone, Validated, Watched
from tinygrad_rnn.run import EVENTS


def tensorboard(argument: str) -> Callable[[Event, Any], None]:
    """Write curves and samples for TensorBoard, into the folder ARG or that of the run."""
    try:
        import tensorboardX
        from tensorboardX.proto.summary_pb2 import Summary
    except ImportError as error:
        raise InputError(
            "--callback tensorboard: expected the package tensorboardX, got none; install tinygrad_rnn[tensorboard]"
        ) from error
    writer: Any = None

    def begin(trainer: Any, step: int) -> None:
        # what an earlier attempt wrote behind `step` is hidden by the purge: a resumed run repeats it
        nonlocal writer
        if writer is not None:
            writer.close()
        folder = Path(argument) if argument else trainer.run.path / EVENTS
        writer = tensorboardX.SummaryWriter(str(folder), purge_step=step + 1, filename_suffix=f".{step}")

    def scalars(step: int, values: dict[str, float]) -> None:
        rows = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        writer.file_writer.add_summary(Summary(value=rows), step)  # one event: a tenth of the time of add_scalar

    def heard(event: Event, trainer: Any) -> None:
        match event:
            case Started():
                begin(trainer, event.from_step)
            case RolledBack():
                begin(trainer, event.to_step)
            case StepDone():
                scalars(
                    event.step,
                    {
                        "loss/training": event.loss,
                        "gradient/norm": event.grad_norm,
                        "gradient/norm_clipped": event.clipped_norm,
                        "gradient/clipped_share": event.clipped_share,
                        "parameters/norm": event.param_norm,
                        "learning_rate": event.lr,
                        "symbols_per_second": event.symbols_per_s,
                    },
                )
            case Validated():
                scalars(event.step, {"loss/validation": event.loss})
            case Watched():
                scalars(
                    event.step,
                    {f"slope/{s.loss}/layer_{s.layer}/{s.state}": s.slope for s in event.report.series},
                )
            case Sampled():
                # the protocol takes UTF-8 alone: any other byte as \xHH
                text = event.text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                writer.add_text("sample", f"```\n{text}\n```", event.step)
            case Saved():
                writer.flush()
            case Finished():
                writer.close()

    return heard
