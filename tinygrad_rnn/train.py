"""Training: a loop that yields events and prints nothing, and that `resume` continues bit for bit on a CPU."""

from __future__ import annotations

import dataclasses
import math
import time
import tracemalloc
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np

from tinygrad_rnn import backend, engine, optim, plugins
from tinygrad_rnn.backend import Array, Device
from tinygrad_rnn.checkpoint import save
from tinygrad_rnn.compile.ends import cross_entropy
from tinygrad_rnn.compile.workspace import drop_waiting
from tinygrad_rnn.config import RESUMABLE, RunConfig, SampleConfig, as_dict, check_memory, replace
from tinygrad_rnn.data import Dataset, Streams, Vocabulary, load_dataset
from tinygrad_rnn.diagnostics import GradNormReport, watch_gradients
from tinygrad_rnn.errors import CheckpointError, DataError, InputError, NonFiniteError, PluginError, TinygradRNNError
from tinygrad_rnn.evaluate import mean_loss, start_losses
from tinygrad_rnn.events import (
    Event,
    Finished,
    RolledBack,
    Sampled,
    Saved,
    Started,
    StepDone,
    Validated,
    Watched,
)
from tinygrad_rnn.model import Carried, Forward, Model, Params, State, build_model, detach
from tinygrad_rnn.optim import Optimizer, build_optimizer
from tinygrad_rnn.plugins import CALLBACKS, CELLS, DATASETS, OPTIMIZERS, PluginIdentity, by_author, check_function
from tinygrad_rnn.plugins import load as load_plugin
from tinygrad_rnn.registry import CellEntry
from tinygrad_rnn.restore import (
    CODE,
    IMPORTED,
    PARAMS,
    Wanted,
    added_symbols,
    changed_code,
    find_cell,
    grow_arrays,
    load_run_model,
    new_run,
    open_with_cell,
    place_params,
    refuse_changed,
    refuse_conflicts,
    weight_conflicts,
    weight_settings,
)
from tinygrad_rnn.run import (
    METRICS,
    TEXT,
    Run,
    append_metrics,
    checkpoint_step,
    checkpoints,
    describe,
    described,
    drop_checkpoints,
    forget_validations,
    latest_checkpoint,
    load_run_checkpoint,
    prune,
    save_run_checkpoint,
    truncate_metrics,
    update_description,
)
from tinygrad_rnn.sample import base64_bytes, generate, readable
from tinygrad_rnn.tensor import Tensor, grad

GRADIENTS = "gradients/"  # of the file that a step with a bad update leaves, beside its PARAMS
MAX_ROLLBACKS = 5
HOPELESS = 3.0  # a first loss above so many times that of a guess is the fault of no update
RECORD_SECONDS = 0.25  # how long the record of a step may wait to be written
SLOTS_EVERY = 100  # updates between two looks at every slot of the optimiser, beside those that something hints at
LAYER_BYTES = 4096  # what the objects of a layer take at least, whatever its size


@final
class DivergedError(NonFiniteError):
    """Training cannot go on: a loss, gradient, parameter or slot is not finite, or the loss is far above the first."""

    good: Path | None = None
    """the newest checkpoint from which training went on soundly"""


@dataclass
class Progress:
    """What changes while a run goes on, beside parameters and optimiser slots; all of it is in a checkpoint."""

    step: int = 0
    epoch: int = 0
    cursor: int = 0  # the next batch of this pass over the text
    clipped: int = 0  # updates whose gradient was clipped
    first_loss: float | None = None
    best_loss: float | None = None
    since_best: int = 0
    since_drop: int = 0  # validations since the rate fell to a plateau, or a better one came
    drops: int = 0  # plateaus so far
    lr_scale: float = 1.0
    rollbacks: int = 0


Batch = tuple[Array, Array, State, Any]  # x, y, the state before x, and where the random numbers stood
Callback = Callable[[Event, "Trainer"], str | None]


def check_callback(value: Any) -> None:
    """Raise PluginError when `value` is no documented function of one argument, the text behind ``NAME:``."""
    check_function(value, "callback", ("argument",))


F = TypeVar("F", bound=Callable[[str], Callback])


def register_callback(function: F) -> F:
    """Decorator: make a callback known under the function's name (with hyphens), in this process.

    The function takes the text behind ``NAME:`` ('' where there is none) and returns what is called at every event of
    one training: ``heard(event, trainer)``. It may read the trainer; where it returns a text, the training stops after
    the step, and the text says why. Raises PluginError when the function breaks this contract or the name belongs to
    another one.
    """
    return plugins.register(CALLBACKS, function)


@final
@dataclass(frozen=True)
class _Listener:
    """A callback of this run: its name, its author's function, and what that made."""

    name: str
    author: Callable[[str], Callback]
    heard: Callback


def _listeners(texts: Sequence[str], third_party: bool) -> tuple[_Listener, ...]:
    made = []
    for name, argument in _callback_names(texts):
        author = plugins.load(CALLBACKS, name, third_party=third_party).value
        heard = by_author(f"callback {name!r}", author, argument)
        if not callable(heard):
            raise PluginError(f"callback {name!r}: expected a function of (event, trainer) in return, got {heard!r}")
        made.append(_Listener(name, author, heard))
    return tuple(made)


def _callback_names(texts: Sequence[str]) -> list[tuple[str, str]]:
    """(name, argument) of each ``NAME[:ARG]``; 'none' alone is no callback."""
    if tuple(texts) == ("none",):
        return []
    return [(text.partition(":")[0], text.partition(":")[2]) for text in texts]


@final
@dataclass(frozen=True)
class Parts:
    """What a training is made of beside its data, and the identities of the code that decides its numbers."""

    model: Model
    device: Device
    optimizer: Optimizer
    listeners: tuple[_Listener, ...]
    cell_code: PluginIdentity
    optimizer_code: PluginIdentity


@final
class Trainer:
    """A run in progress. Made by `start_training` or `resume_training`; `events` does the work."""

    def __init__(self, run: Run, config: RunConfig, dataset: Dataset, parts: Parts, params: Params) -> None:
        model, device = parts.model, parts.device
        self.run = run
        self.config = config
        self.dataset = dataset
        self.model = model
        self.device = device
        self.optimizer = parts.optimizer
        self.params = params
        self.trained = {name: value for name, value in params.items() if value.requires_grad}
        self._values = optim.Block.copy_of({name: value.data for name, value in self.trained.items()})
        for name, value in self.trained.items():
            value.data = self._values[name]
        self._grads = optim.Block.zeros_like(self._values)
        self.optim_state = optim.init_state(parts.optimizer, self._values)
        self.streams = training_streams(config, dataset)
        self.rng = np.random.default_rng([config.train.seed, 1])
        self.progress = Progress()
        self.state: State = model.start(config.data.batch, params)
        self.history: list[State] = []  # the state before each earlier batch that a gradient still flows back to
        self.depth = _bptt_batches(config)
        self.watch_every = parse_watch(config.train.watch)
        self.steps_per_epoch = len(self.streams)
        self.total = _length(config, self.steps_per_epoch)
        self.stopped = ""
        self.changes: list[dict[str, Any]] = []  # of settings, by this resume
        self.rescheduled: tuple[float, float] | None = None  # the next rate before and after a new length changed it
        self.old_text_until = -1  # the last step on another text than this
        self._code = {CODE["cells"]: parts.cell_code, CODE["optimizers"]: parts.optimizer_code}
        self._listeners = parts.listeners
        # below it the square of no gradient can overflow, so that no slot has to be looked at
        self._harmless = 1e-3 * math.sqrt(float(np.finfo(config.train.dtype).max))
        self._saved_at = -1
        self._failed_at = self._returned_to = -1  # the steps from and to which the last rollback went
        self._failure: TinygradRNNError | None = None
        self._pending: list[Mapping[str, Any]] = []  # records that are not in metrics.jsonl yet
        self._written = 0.0
        self._symbols = 0  # read in this process

    def stop(self, reason: str = "interrupted") -> None:
        """Ask for a checkpoint and an end after the current step. Safe in a signal handler."""
        self.stopped = reason

    # ------------------------------------------------------------------------------------ events

    def events(self) -> Iterator[Event]:
        """Train until the end, yielding what happens, of which the callbacks hear first.

        Raises DivergedError when the loss is not finite (or too far above the first), after writing the batch that did
        it; CheckpointError when a checkpoint cannot be written; PluginError when a callback fails, after the step is
        finished and saved.
        """
        try:
            for event in self._events():
                self._tell(event)
                if self._failure is None or not isinstance(event, Finished):
                    yield event
        finally:
            self._write_records()
        if self._failure is not None:
            raise PluginError(
                f"{self._failure}; step {self.progress.step} is saved: correct it, and go on with resume "
                f"{self.run.path}, or without it: --callback none"
            ) from self._failure

    def _tell(self, event: Event) -> None:
        """Let every callback hear of an event. The first failure ends the training, but not in the middle of a step."""
        for listener in self._listeners:
            what = f"callback {listener.name!r}, {type(event).__name__}"
            try:
                wish: Any = by_author(what, listener.heard, event, self, of=listener.author)
                if wish is not None and not isinstance(wish, str):
                    raise PluginError(f"{what}: expected None, or a text that says why to stop, got {wish!r:.60}")
            except TinygradRNNError as error:
                self._failure, self._listeners = error, ()
                self.stop(f"callback {listener.name}: failed")
                return
            if wish:
                self.stop(f"callback {listener.name}: {wish}")

    def _events(self) -> Iterator[Event]:
        now = self.progress
        executor, reason = _first_step(self.model, self.params, self.device)
        self._record({"kind": "start", "step": now.step, "executor": executor, "reason": reason})
        yield Started(
            self.model.count(),
            self.dataset.characters,
            self.model.V,
            self.total,
            self.steps_per_epoch,
            self.device.name,
            executor,
            reason,
            now.step,
            tuple(_remarks(self.config, self.total, self.steps_per_epoch)),
        )
        if now.step == 0:
            yield self._save(None)  # so that there is always a sound checkpoint to go back to
        start = time.perf_counter()
        from_step = now.step
        self._symbols = 0
        reason = ""
        self._saved_at = now.step
        while not reason and self.progress.step < self.total:
            if self.stopped:
                reason = self.stopped
                break
            try:
                reason = yield from self._turn(start, from_step)
            except DivergedError as error:
                hopeless = error.good is None or self.progress.rollbacks >= MAX_ROLLBACKS
                if self.config.train.on_divergence == "abort" or hopeless:
                    raise
                yield self._roll_back(error)
                start, from_step = time.perf_counter(), self.progress.step
        now = self.progress
        if now.step != self._saved_at:
            yield self._save(None)
        reason = reason or "done"
        held_out = self.dataset.val if len(self.dataset.val) > 1 else self.dataset.train
        losses = start_losses(self.model, self.params, held_out, self.carried()) if reason != "interrupted" else None
        yield Finished(now.step, reason, now.best_loss, self.run.path, now.clipped, losses)

    def _turn(self, start: float, from_step: int) -> Generator[Event, None, str]:
        """One update and what follows it; returns why the training ends here, '' where it goes on."""
        window = self.progress.cursor
        done, report = self._step()
        now, config = self.progress, self.config.train
        elapsed = time.perf_counter() - start
        per_step = elapsed / (now.step - from_step) if now.step > from_step else elapsed
        self._symbols += self.config.data.batch * self.streams.steps(window)
        done = dataclasses.replace(
            done,
            symbols_per_s=self._symbols / elapsed if elapsed else 0.0,
            seconds_left=per_step * (self.total - now.step),
        )
        self._record({"kind": "step", **vars(done)})
        yield done
        if report is not None:
            self._record({"kind": "watch", "step": now.step, **report.to_json()})
            yield Watched(now.step, report)
        last, counts = now.step >= self.total, self._due(config.eval_every)
        validated = self._validate(counts) if counts or last else None
        if validated is not None:
            yield validated
        if self._due(config.sample_every):
            yield self._sample()
        # only a validation that counts decides: a resume past the end would otherwise stop after every step
        impatient = counts and 0 < config.patience <= now.since_best
        best = validated is not None and validated.best
        if self._due(config.save_every) or last or impatient or best:
            yield self._save(None if validated is None else validated.loss)
        return "patience" if impatient else ""

    def _record(self, record: Mapping[str, Any]) -> None:
        """Note a record for metrics.jsonl. Steps wait a moment, so that a short one does not open a file."""
        self._pending.append(record)
        if record["kind"] != "step" or time.monotonic() - self._written > RECORD_SECONDS:
            self._write_records()

    def _write_records(self) -> None:
        records, self._pending = self._pending, []
        self._written = time.monotonic()
        if records:
            append_metrics(self.run, *records)

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0

    # -------------------------------------------------------------------------------------- step

    def _step(self) -> tuple[StepDone, GradNormReport | None]:
        now, config = self.progress, self.config
        x, y, start = self._window()
        random = self.rng.bit_generator.state
        batch = (x, y, start, random)
        anomaly = config.train.anomaly
        T = len(y)
        try:
            with np.errstate(all="ignore"):
                if anomaly:
                    with engine.anomaly():
                        forward, total, grads = self._gradients(x, y, start)
                else:
                    forward, total, grads = self._gradients(x, y, start)
        except NonFiniteError as error:
            raise self._diverged(str(error), error.where, batch) from error
        loss = total.item() / (T if config.train.loss == "sum" else 1)
        report = None
        if self.watch_every and (now.step + 1) % self.watch_every == 0:
            report = watch_gradients(self.model, forward, total, self._on_device(y))
        norm, clipped = optim.clip(grads, config.optim)
        limit = config.train.diverge_factor
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._locate(batch, "loss" if not math.isfinite(loss) else "gradient norm")
        if now.first_loss is None:
            now.first_loss = loss
        if limit and loss > limit * max(now.first_loss, math.log(self.model.V)):
            why = f"loss {loss:.4g} is more than {limit:g} times the first one ({now.first_loss:.4g})"
            raise self._diverged(why, {}, batch)
        lr = self._rate()
        with np.errstate(all="ignore"):  # what overflows is found below
            optim.update(self.optimizer, self._values, grads, self.optim_state, lr)
        for value in self.trained.values():
            value.mark_changed()
        weights = optim.global_norm(self._values)
        if not math.isfinite(weights):
            name = optim.unsound(self._values)
            why = f"the update left numbers in {name} that are not finite; its gradient had the norm {norm:.4g}"
            raise self._diverged(why, {"parameter": name}, batch, updated=(loss, norm))
        if clipped > self._harmless or (now.step + 1) % SLOTS_EVERY == 0:
            self._check_slots(now.step + 1, batch, (loss, norm))
        self._advance(detach(forward.state))
        now.clipped += clipped < norm
        share = now.clipped / now.step
        epoch = now.step / self.steps_per_epoch
        return StepDone(now.step, epoch, loss, norm, clipped, share, weights, lr, 0.0, 0.0), report

    def _rate(self, total: int | None = None) -> float:
        """The learning rate of the next update, in a run of so many updates."""
        now, total = self.progress, self.total if total is None else total
        epoch = now.step / self.steps_per_epoch
        rate = optim.learning_rate(self.config.optim, epoch, step=now.step, total=total, drops=now.drops)
        return rate * now.lr_scale

    def _check_slots(
        self, step: int, batch: Batch | None = None, updated: tuple[float, float] = (math.nan, math.nan)
    ) -> None:
        """Raise DivergedError where a slot has overflowed: most rules would never move its parameter again."""
        found = optim.overflowing(self.optim_state["slots"])
        if found is not None:
            slot, name = found
            why = f"slot {slot} of {self.optimizer.name} for {name} is not finite, so that it would stand still"
            advice = ("--clip-norm 1", "--dtype float64")
            where = {"slot": slot, "parameter": name}
            raise self._diverged(why, where, batch, updated=updated, step=step, advice=advice)

    def _gradients(self, x: Array, y: Array, start: State) -> tuple[Forward, Tensor, optim.Block]:
        """One forward and backward pass: the pass itself, the training loss, and the gradient of every parameter.

        The next call overwrites the gradients.
        """
        x, y = self._on_device(x), self._on_device(y)
        forward, loss, found = gradients(self.model, self.params, self.config, x, y, start, self.rng)
        self._grads.assign(found)
        return forward, loss, self._grads

    def _window(self) -> tuple[Array, Array, State]:
        """The symbols x (k2, B) of this update, the targets y (k1, B) of its new steps, and the state before x."""
        now = self.progress
        if now.cursor == 0:  # not at the end of a pass: its last state is the one to save and to sample from
            self.begin_pass()
        x, y = self.streams[now.cursor]
        back = min(len(self.history), self.depth - 1)
        if not back:
            return x, y, self.state
        earlier = [self.streams[now.cursor - j][0] for j in range(back, 0, -1)]
        return np.concatenate([*earlier, x]), y, self.history[-back]

    def _advance(self, state: State) -> None:
        now = self.progress
        if self.depth > 1:
            self.history = [*self.history, self.state][-(self.depth - 1) :]
        self.state = state
        now.step += 1
        now.cursor += 1
        if now.cursor == self.steps_per_epoch:
            now.cursor, now.epoch = 0, now.epoch + 1

    def begin_pass(self) -> None:
        """Go to the start of the text, where no state is carried from."""
        self.progress.cursor = 0
        self.state, self.history = self.model.start(self.config.data.batch, self.params), []

    def _begin_text(self) -> None:
        """Begin another text, on which no loss of the old one is a loss to beat."""
        self.begin_pass()
        self.progress.best_loss, self.progress.since_best, self.progress.since_drop = None, 0, 0

    def carried(self) -> Carried:
        """The state of the first stream, and what it reads next."""
        now = self.progress
        windows = now.cursor or (len(self.streams) if now.step else 0)
        state = [{name: value[:1] for name, value in layer.items()} for layer in self.state]
        return Carried(state, int(self.streams.next_symbols(windows)[0]))

    def _on_device(self, array: Any) -> Array:
        return backend.from_host(array, self.device.xp)

    # -------------------------------------------------------------------------- evaluation, samples

    def _validate(self, counts: bool) -> Validated | None:
        if len(self.dataset.val) < 2:
            return None
        now = self.progress
        loss = mean_loss(self.model, self.params, self.dataset.val)
        best = math.isfinite(loss) and (now.best_loss is None or loss < now.best_loss)
        dropped = None
        if best:
            now.best_loss, now.since_best, now.since_drop = loss, 0, 0
        elif counts:
            now.since_best += 1
            now.since_drop += 1
            decay = optim.parse_decay(self.config.optim.lr_decay)
            if decay.kind == "plateau" and now.since_drop >= decay.every:
                now.drops, now.since_drop = now.drops + 1, 0
                dropped = self._rate()
        self._record({"kind": "val", "step": now.step, "loss": loss, "best": best, "lr": dropped})
        return Validated(now.step, loss, best, dropped)

    def _sample(self) -> Sampled:
        # a stream of random numbers of its own: a sample more or less changes no training run
        rng = np.random.default_rng([self.config.train.seed, 2, self.progress.step])
        options = SampleConfig(length=self.config.train.sample_length)
        pieces = generate(self.model, self.params, self.dataset.vocabulary, options, rng, self.carried())
        text = "".join(piece[0] for piece in pieces)
        exact = {"text_base64": base64_bytes(text)} if self.dataset.vocabulary.kind == "bytes" else {}
        self._record({"kind": "sample", "step": self.progress.step, "text": readable(text), **exact})
        return Sampled(self.progress.step, text)

    # ---------------------------------------------------------------------------------- checkpoints

    def _save(self, loss: float | None) -> Saved:
        self._check_slots(self.progress.step)
        self._write_records()  # a checkpoint never knows of a step that the records lack
        path = save_run_checkpoint(
            self.run, self.progress.step, self._checkpoint_arrays(), self._checkpoint_meta(), loss
        )
        # of the newest one nobody knows yet whether the loss of the next step is sound, so one more stays
        prune(self.run, max(self.config.train.keep, 2))
        self._saved_at = self.progress.step
        return Saved(self.progress.step, Path(path))

    def _checkpoint_arrays(self) -> dict[str, Array]:
        arrays = {PARAMS + name: value.data for name, value in self.params.items()}
        for slot, values in self.optim_state["slots"].items():
            arrays |= {f"optim/{slot}/{name}": value for name, value in values.items()}
        for age, state in enumerate([self.state, *reversed(self.history)]):
            arrays |= {
                f"state/{age}/{layer}/{name}": value
                for layer, values in enumerate(state)
                for name, value in values.items()
            }
        return {name: backend.to_host(value) for name, value in arrays.items()}

    def _checkpoint_meta(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self.progress),
            "next_symbol": self.carried().symbol,
            "optim_step": self.optim_state["step"],
            "rng": self.rng.bit_generator.state,
            "data_sha256": self.dataset.sha256,
            **{key: code.to_json() for key, code in self._code.items()},
        }

    def load(self, file: Path) -> None:
        """Take everything up from a checkpoint of this run. Raises CheckpointError when it does not fit."""
        self.take_up(*load_run_checkpoint(self.run, file), file)

    def take_up(self, arrays: Mapping[str, Array], meta: Mapping[str, Any], file: Path) -> None:
        """What `load` does, with the content of `file`."""
        groups: dict[str, dict[str, Any]] = {"params": {}, "optim": {}, "state": {}}
        for name, array in arrays.items():
            kind, _, rest = name.partition("/")
            groups.setdefault(kind, {})[rest] = array
        params = place_params(self.model, groups["params"], self.config.train.dtype, self.device, str(file))
        for name, value in self.params.items():
            value.data[...] = params[name].data
            value.mark_changed()
        try:
            for slot, values in self.optim_state["slots"].items():
                for name, value in values.items():
                    value[...] = self._on_device(groups["optim"][f"{slot}/{name}"])
            ages = 1 + max(int(name.partition("/")[0]) for name in groups["state"])
            states = [
                [
                    {name: self._on_device(groups["state"][f"{age}/{layer}/{name}"]) for name in values}
                    for layer, values in enumerate(self.state)
                ]
                for age in range(ages)
            ]
            self.state, self.history = states[0], list(reversed(states[1:]))
            self.progress = Progress(**{field.name: meta[field.name] for field in dataclasses.fields(Progress)})
            self.optim_state["step"] = int(meta["optim_step"])
            self.rng.bit_generator.state = meta["rng"]
            if self.progress.step <= self.old_text_until:
                self._begin_text()
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{file}: expected a checkpoint of this run, got one without {error}; it is of another "
                "version or another optimiser"
            ) from error

    # ----------------------------------------------------------------------------------- divergence

    def _locate(self, batch: Batch, what: str) -> DivergedError:
        """Run the batch once more and look at every value, to say where the first NaN or infinity is born."""
        x, y, start, random = batch
        after = self.rng.bit_generator.state
        self.rng.bit_generator.state = random
        try:
            with engine.anomaly(), np.errstate(all="ignore"):
                self._gradients(x, y, start)
        except NonFiniteError as error:
            return self._diverged(str(error), error.where, batch)
        finally:
            self.rng.bit_generator.state = after
        dtype = self.config.train.dtype
        return self._diverged(
            f"the {what} is not finite; op by op every value is, so it lies at the edge of {dtype}", {}, batch
        )

    def _diverged(
        self,
        why: str,
        where: Mapping[str, object],
        batch: Batch | None,
        *,
        updated: tuple[float, float] | None = None,
        step: int | None = None,
        advice: Sequence[str] = (),
    ) -> DivergedError:
        """The error that ends a training at `step`, the next one where none is said.

        `updated` is the loss and the gradient norm of a step whose update was to blame, behind which we are then. The
        batch is kept in a file, and a checkpoint of parameters whose loss turned out unsound is removed.
        """
        step = step or self.progress.step + 1
        arrays = self._checkpoint_arrays()
        meta = {**self._checkpoint_meta(), "why": why, "where": dict(where), "updated": updated is not None}
        if updated is not None:
            meta |= {name: value for name, value in zip(("loss", "grad_norm"), updated, strict=True) if value == value}
            arrays |= {GRADIENTS + name: backend.to_host(value) for name, value in self._grads.items()}
        if batch is not None:
            x, y, start, meta["rng"] = batch
            arrays |= {"batch/x": np.asarray(x), "batch/y": np.asarray(y)}
            for layer, values in enumerate(start):
                arrays |= {f"batch/state/{layer}/{name}": backend.to_host(value) for name, value in values.items()}
        file = self.run.path / f"diverged-step-{step:08d}.safetensors"
        what = "parameters are" if batch is None else "batch is"
        try:
            save(file, arrays, meta)
            kept = f" The {what} kept in {file}: diagnose replay {self.run.path} shows it."
        except CheckpointError:
            kept = f" The {what} not kept, for the disk refused."
        # a checkpoint is good once a step went on from it; the best one, whose validation was sound, stays for `sample`
        back = self.config.train.on_divergence == "rollback"
        good = drop_checkpoints(self.run, step - 1 if updated is None else step, keep_best=not back)
        self._record({"kind": "diverged", "step": step, "why": why, "where": dict(where)})
        told = "No checkpoint is good" if good is None else f"Last good checkpoint: {good}"
        error = DivergedError(
            f"diverged at step {step}: {why}.{kept} {told}. Try {self._advice(advice)}.", {"step": step, **where}
        )
        error.good = good
        return error

    def _advice(self, ways: Sequence[str]) -> str:
        """What may help against divergence; `ways` where the reason is known."""
        first, even, config = self.progress.first_loss, math.log(self.model.V), self.config
        if first is None or first > HOPELESS * even:  # no update is to blame
            return (
                f"other options of the cell: untrained, its loss or gradient is far too large (ln {self.model.V} = "
                f"{even:.3g} is the loss of a guess); cells check with the same --cell-opt may show why"
            )
        back, gentle = config.train.on_divergence == "rollback", 0 < config.optim.clip_norm <= 1
        left = [way for way in ways or ("a smaller --lr", "--clip-norm 1") if way != "--clip-norm 1" or not gentle]
        left += [] if back else ["--on-divergence rollback"]
        text = " or ".join(filter(None, (", ".join(left[:-1]), left[-1])))
        tried = back and self.progress.rollbacks >= MAX_ROLLBACKS
        return f"{text}: going back {MAX_ROLLBACKS} times has not helped" if tried else text

    def _roll_back(self, error: DivergedError) -> RolledBack:
        step, rollbacks, scale = int(str(error.where["step"])), self.progress.rollbacks, self.progress.lr_scale
        present = checkpoints(self.run)
        if step <= self._failed_at:  # half the rate did not lead past the same place
            older = [file for file in present if checkpoint_step(file) < self._returned_to] or present[:1]
            drop_checkpoints(self.run, checkpoint_step(older[-1]) + 1)
        self.load(latest_checkpoint(self.run))
        self._failed_at, self._returned_to = step, self.progress.step
        self._saved_at = self.progress.step
        self.progress.rollbacks = rollbacks + 1
        self.progress.lr_scale = scale / 2
        truncate_metrics(self.run, self.progress.step)
        lr = self._rate()
        self._record({"kind": "rollback", "step": self.progress.step, "from": step, "lr": lr})
        return RolledBack(step, self.progress.step, lr, str(error))


def gradients(
    model: Model, params: Params, config: RunConfig, x: Array, y: Array, start: State, rng: np.random.Generator
) -> tuple[Forward, Tensor, dict[str, Array]]:
    """One pass over x (k2, B) with the targets y (k1, B) of its last steps, all of them on the device of `params`.

    Returns the pass, its training loss, and the gradient of every parameter that is trained.
    """
    forward = model.forward(params, x, start, rng=rng)
    logits = forward.logits
    if len(x) > len(y):
        logits = logits[len(x) - len(y) :]  # the loss of the new steps only; their gradient flows further back
    loss = cross_entropy(logits, y)
    if config.train.loss == "sum":
        loss = loss * float(len(y))
    trained = {name: value for name, value in params.items() if value.requires_grad}
    found = grad(loss, list(trained.values()), unused="zeros")  # a slow clock may not fire in a window
    return forward, loss, {name: g.data for name, g in zip(trained, found, strict=True)}


def parse_watch(text: str) -> int:
    """``grads`` or ``grads:EVERY`` as a number of steps; '' is 0, never. Raises InputError."""
    if not text:
        return 0
    what, colon, every = text.partition(":")
    if what != "grads" or (colon and (not every.isdigit() or int(every) < 1)):
        raise InputError(f"--watch {text!r}: expected grads or grads:EVERY with EVERY of at least 1")
    return int(every) if colon else 1


def _bptt_batches(config: RunConfig) -> int:
    """How many batches a gradient flows back through, the newest included."""
    k1, k2 = config.data.seq_len, config.train.bptt
    if k2 == 0:
        return 1
    if k2 < k1 or k2 % k1:
        raise InputError(f"--bptt {k2}: expected a multiple of --seq-len {k1}")
    return k2 // k1


def training_streams(config: RunConfig, dataset: Dataset) -> Streams:
    """How `config` divides the training part. Raises DataError when it is shorter than one window of all streams."""
    return Streams(dataset.train, config.data.batch, config.data.seq_len, config.data.drop_last)


def describe_division(config: RunConfig, dataset: Dataset, number: Callable[[int], str] = str) -> str:
    """In words, how `config` divides the text into parts, and the training part into streams and windows.

    `number` spells the numbers. Raises DataError when the training part is too short.
    """
    streams = training_streams(config, dataset).describe(number)
    held_out = f"{number(len(dataset.val))} for validation, {number(len(dataset.test))} for a test"
    return f"{number(len(dataset.train))} symbols to train on: {streams}; {held_out}"


def _length(config: RunConfig, steps_per_epoch: int) -> int:
    """How many updates a run has in all."""
    return config.train.steps or config.train.epochs * steps_per_epoch


def _check_judge(config: RunConfig, dataset: Dataset) -> None:
    """Raise InputError where a setting waits for validations that there are none of."""
    plateau = optim.parse_decay(config.optim.lr_decay).kind == "plateau"
    for flag, active in (
        (f"--patience {config.train.patience}", config.train.patience),
        (f"--lr-decay {config.optim.lr_decay}", plateau),
    ):
        if active and config.train.eval_every == 0:
            raise InputError(f"{flag}: expected validations to judge by, got --eval-every 0; give --eval-every N")
        if active and len(dataset.val) < 2:
            raise InputError(
                f"{flag}: expected validations to judge by, got no text held out; give a --val-frac above "
                f"{config.data.val_frac:g}"
            )


def _remarks(config: RunConfig, total: int, steps_per_epoch: int) -> Iterator[str]:
    """Settings that come to nothing because the run is too short."""
    decay, warmup = optim.parse_decay(config.optim.lr_decay), config.optim.warmup
    ends = f"the run has {total} updates"
    if decay.kind in ("exp", "step") and decay.first * steps_per_epoch >= total:
        begins = f"it begins after {decay.first * steps_per_epoch}"
        yield f"--lr-decay {config.optim.lr_decay} has no effect: {begins}, and {ends}"
    if warmup >= total > 0:
        yield f"--warmup {warmup}: the rate never reaches --lr, for {ends}"
    if config.train.eval_every:
        validations = total // config.train.eval_every
        judges = f"{ends}, and --eval-every {config.train.eval_every} gives it {validations} validations to judge by"
        if decay.kind == "plateau" and validations <= decay.every:
            yield f"--lr-decay {config.optim.lr_decay} has no effect: {judges}"
        if config.train.patience and validations <= config.train.patience:
            yield f"--patience {config.train.patience} has no effect: {judges}"


# ------------------------------------------------------------------------------------ start and resume


def _prepare(config: RunConfig, V: int, entry: CellEntry, third_party: bool) -> Parts:
    parse_watch(config.train.watch)
    _bptt_batches(config)
    optim.parse_decay(config.optim.lr_decay)
    _check_size(config, V)
    optimizer, code = build_optimizer(config.optim, third_party=third_party)
    listeners = _listeners(config.train.callbacks, third_party)
    model = build_model(config.model, V, entry)
    return Parts(model, backend.select(config.train.device), optimizer, listeners, entry.identity, code)


def _check_size(config: RunConfig, V: int) -> None:
    """Refuse a model that cannot fit into memory before its layers are made one by one.

    The bound is a low one, true of every cell: NumPy's own refusal follows where this lets a model pass.
    Raises InputError.
    """
    model = config.model
    embed = int(model.embed) if model.embed.isdecimal() else 0
    numbers = model.hidden * (V + model.layers) + embed * V
    least = numbers * np.dtype(config.train.dtype).itemsize + model.layers * LAYER_BYTES
    check_memory(
        least,
        f"--hidden {model.hidden}, --layers {model.layers}, --embed {model.embed}: expected a model",
        "the largest",
    )


def _first_step(model: Model, params: Params, device: Device) -> tuple[str, str]:
    """Run one symbol through the model, so that a cell that cannot run fails early; which executor ran, and why."""
    with engine.no_grad(), np.errstate(all="ignore"):
        layer = model.forward(params, backend.from_host(np.zeros((1, 1), np.intp), device.xp)).layers[0]
    return layer.executor, layer.reason


def start_training(
    config: RunConfig,
    dataset: Dataset,
    out: str | Path,
    *,
    overwrite: bool = False,
    init_from: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
    third_party: bool = True,
    stdin_text: bytes | None = None,
) -> Trainer:
    """A new run in the folder `out`, which is made (or, with `overwrite`, made anew).

    `init_from` is a run whose weights are taken and nothing else, so that its cell may have other code; the settings
    that they are bound to must be those of that run (`weight_settings`), and symbols that the data set has behind
    those of that run get new rows. Everything that can be wrong with the configuration is found before the folder is
    touched. Raises InputError, DataError, DeviceError, PluginError, FileError.
    """
    entry = find_cell(config.model.cell, plugins=plugins, third_party=third_party)
    vocabulary = dataset.vocabulary
    # a vocabulary that was given, as that of `init_from`, says what a symbol is
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokens=vocabulary.kind))
    optim.check_settings(config.optim, config.train.dtype, third_party=third_party)
    _check_judge(config, dataset)
    if len(set(dataset.encodings)) == 1:  # what 'auto' found, so that resume need not guess again
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, encoding=dataset.encodings[0]))
    parts = _prepare(config, vocabulary.size, entry, third_party)
    model, device = parts.model, parts.device
    params = model.init(np.random.default_rng([config.train.seed, 0]), config.train.dtype, device.xp)
    origin: dict[str, Any] = {"init_from": None}
    if init_from is not None:
        other = load_run_model(
            init_from, device=device.name, allow_changed_cell=True, plugins=plugins, third_party=third_party
        )
        added = added_symbols(other.vocabulary, vocabulary)
        if added is None:
            raise InputError(
                f"--init-from {init_from}: expected the same symbols as in that run (V={other.vocabulary.size}), and "
                f"behind them new ones, got others (V={vocabulary.size}); read the text with its vocabulary"
            )
        bound = {key: value for key, value in weight_settings(init_from).items() if key.startswith("model.")}
        refuse_conflicts(init_from, weight_conflicts(config, bound, entry.cls.Options))
        arrays = {name: backend.to_host(value.data) for name, value in other.params.items()}
        arrays = grow_arrays(model, arrays, params, other.vocabulary.size)
        origin |= {"init_from": str(Path(init_from).absolute()), "added_symbols": list(added)}
        params = place_params(model, arrays, config.train.dtype, device, f"--init-from {init_from}")
    training_streams(config, dataset)
    _first_step(model, params, device)
    run = new_run(
        out,
        config,
        model,
        entry,
        vocabulary,
        data=dataset.facts(),
        device=device.name,
        plugins=plugins,
        optimizer=parts.optimizer_code,
        origin=origin,
        overwrite=overwrite,
    )
    if stdin_text is not None:
        (run.path / TEXT).write_bytes(stdin_text)
    return Trainer(run, config, dataset, parts, params)


def resume_training(
    path: str | Path,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    device: str | None = None,
    callbacks: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    text: Sequence[str] = (),
    allow_other_text: bool = False,
    allow_changed_cell: bool = False,
    plugins: Sequence[str | Path] = (),
    third_party: bool = True,
) -> Trainer:
    """The run at `path`, taken up where its newest checkpoint left it.

    `steps` or `epochs` are the new TOTAL length; `callbacks` take the place of the run's. `settings` are changes by
    ``section.field``, of `config.RESUMABLE`: they hold from here on, and run.json lists them under ``changes``. A new
    ``optim.lr`` is the rate from here on, so what rollbacks and plateaus have made of the old one is forgotten. `text`
    says where the text of the run is now. With `allow_other_text` that may be another text of the same symbols, of
    which a new pass begins; run.json keeps which it was before.

    Raises FileError, CheckpointError, PluginError when the code of the cell or optimiser has changed (unless
    `allow_changed_cell`), DataError when the text is not the one it was trained on, InputError when the run is longer
    already or a setting cannot be changed.
    """
    settings = dict(settings or {})
    for key in settings:
        if key not in RESUMABLE:
            raise InputError(f"resume: the run has settled {key}; what can change is {', '.join(RESUMABLE)}")

    def others(config: RunConfig) -> list[Wanted]:
        names = _callback_names(config.train.callbacks if callbacks is None else callbacks)
        corpus = [] if text or config.data.text else [(DATASETS, config.data.corpus)]
        return [(OPTIMIZERS, config.optim.optim), *((CALLBACKS, name) for name, _ in names), *corpus]

    opened = open_with_cell(path, plugins=plugins, third_party=third_party, others=others)
    run, config, vocabulary = opened.run, opened.config, opened.vocabulary
    if IMPORTED in describe(run):
        raise InputError(
            f"run {run.path} was imported: it holds weights, and no training to continue; train a new "
            f"run from them: train TEXT --init-from {run.path}"
        )
    changes: dict[str, Any] = {}
    if steps is not None or epochs is not None:
        changes = {"steps": steps or 0, "epochs": epochs or config.train.epochs}
    if device is not None:
        changes["device"] = device
    if callbacks is not None:
        changes["callbacks"] = () if tuple(callbacks) == ("none",) else tuple(callbacks)
    before = config
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))
    config = replace(config, settings)
    if text:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, text=tuple(text)))
    optimizer_code = load_plugin(OPTIMIZERS, config.optim.optim, third_party=third_party).identity
    file = None if _never_began(run) else latest_checkpoint(run)
    arrays, meta = ({}, {}) if file is None else load_run_checkpoint(run, file)
    if not allow_changed_cell:
        for group, code in ((CELLS, opened.entry.identity), (OPTIMIZERS, optimizer_code)):
            refuse_changed(changed_code(run, meta, group, code))
    stored = described(run, "data")
    dataset = _same_text(run, config, vocabulary, stored, third_party, allow_other_text)
    _check_judge(config, dataset)
    parts = _prepare(config, vocabulary.size, opened.entry, third_party)
    params = parts.model.init(np.random.default_rng([config.train.seed, 0]), config.train.dtype, parts.device.xp)
    trainer = Trainer(run, config, dataset, parts, params)
    data = dict(stored)
    other = dataset.sha256 != stored.get("sha256")
    if other:
        step = -1 if file is None else checkpoint_step(file)
        data = {**dataset.facts(), "earlier": [*data.pop("earlier", ()), {**data, "until": step}]}
    elif text:
        data |= dataset.facts()
    if data.get("earlier"):
        trainer.old_text_until = int(data["earlier"][-1].get("until", -1))
    if file is not None:
        trainer.take_up(arrays, meta, file)
        if 0 < config.train.patience <= trainer.progress.since_best:  # it was patience that stopped the run
            trainer.progress.since_best = 0
    if trainer.progress.step > trainer.total:
        raise InputError(
            f"run {run.path}: expected a total length of at least {trainer.progress.step} steps, which are done "
            f"already, got {trainer.total}; --steps and --epochs mean the whole run"
        )
    truncate_metrics(run, trainer.progress.step)
    if other:
        forget_validations(run)
    if "optim.lr" in settings:
        now = trainer.progress
        rate = before.optim.lr * now.lr_scale * optim.parse_decay(before.optim.lr_decay).factor ** now.drops
        before = dataclasses.replace(before, optim=dataclasses.replace(before.optim, lr=rate))
        now.lr_scale, now.drops = 1.0, 0
    trainer.changes = _changes(before, config, trainer.progress.step)
    rates = trainer._rate(_length(before, trainer.steps_per_epoch)), trainer._rate()
    trainer.rescheduled = rates if rates[0] != rates[1] else None
    listed = [*describe(run).get("changes", []), *trainer.changes]
    update_description(run, {"config": as_dict(config), "data": data, **({"changes": listed} if listed else {})})
    return trainer


def _changes(before: RunConfig, after: RunConfig, step: int) -> list[dict[str, Any]]:
    """What differs, as run.json lists it; length and device are no changes of what is computed."""
    old, new = as_dict(before), as_dict(after)
    return [
        {"step": step, "setting": f"{section}.{name}", "from": old[section][name], "to": value}
        for section, values in new.items()
        for name, value in values.items()
        if value != old[section][name] and name not in ("steps", "epochs", "device")
    ]


def _never_began(run: Run) -> bool:
    """Whether the run was stopped between its run.json and its first checkpoint.

    The seed then says all that the checkpoint would have, unless the weights came from another run.
    """
    return not (checkpoints(run) or (run.path / METRICS).exists() or describe(run).get("init_from"))


def _same_text(
    run: Run,
    config: RunConfig,
    vocabulary: Vocabulary,
    stored: Mapping[str, Any],
    third_party: bool,
    allow_other: bool,
) -> Dataset:
    """The text of the run, read again; standard input comes from the copy that the run kept."""
    data = config.data
    if data.text == ("-",):
        data = dataclasses.replace(data, text=(str(run.path / TEXT),))
    # a symbol that the run never saw is no error here: the checksum says it better
    unknown: Any = "skip" if vocabulary.unknown is None else "replace"
    try:
        dataset = load_dataset(data, vocabulary, unknown=unknown, third_party=third_party)
    except DataError as error:
        raise DataError(
            f"run {run.path}: its text cannot be read again ({error}); say where it is now: --text PATH"
        ) from error
    if dataset.sha256 == stored.get("sha256"):
        return dataset
    if not allow_other:
        raise DataError(
            f"run {run.path}: expected the text it was trained on ({stored.get('source')}, sha256 "
            f"{str(stored.get('sha256'))[:16]}), got another content ({dataset.source}, sha256 {dataset.sha256[:16]}); "
            "restore that text, say where it is now with --text PATH, or go on with this one: --allow-other-text"
        )
    try:
        return load_dataset(data, vocabulary, third_party=third_party)  # now a symbol that is not known is an error
    except DataError as error:
        what = str(error).partition(";")[0]
        raise DataError(f"{what}; train TEXT --init-from {run.path} adds rows for new symbols") from error


# ---------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Plan:
    """What a run would cost: numbers trained, bytes, and time by a probe of a few steps.

    `weight_bytes` are parameters, their gradients and what the optimiser keeps; `step_bytes` what one step takes beside
    them at its peak, and `activation_bytes` what of it the forward pass keeps for the backward pass, the records of
    compiled loops included. On a GPU, where nobody counts allocations, `step_bytes` is the same.
    """

    params: int
    characters: int
    steps: int
    steps_per_epoch: int
    weight_bytes: int
    activation_bytes: int
    step_bytes: int
    seconds_per_step: float
    remarks: tuple[str, ...] = ()
    """settings that have no effect in a run of this length, as `Started` has them"""

    @property
    def seconds(self) -> float:
        """The whole run, without validation."""
        return self.steps * self.seconds_per_step


def plan(
    config: RunConfig, dataset: Dataset, *, plugins: Sequence[str | Path] = (), third_party: bool = True, probe: int = 3
) -> Plan:
    """Measure `probe` steps of the run that `config` describes, without writing anything."""
    entry = find_cell(config.model.cell, plugins=plugins, third_party=third_party)
    optim.check_settings(config.optim, config.train.dtype, third_party=third_party)
    _check_judge(config, dataset)
    parts = _prepare(config, dataset.vocabulary.size, entry, third_party)
    params = parts.model.init(np.random.default_rng([config.train.seed, 0]), config.train.dtype, parts.device.xp)
    trainer = Trainer(Run(Path()), config, dataset, parts, params)

    def step() -> int:
        forward, loss, grads = trainer._gradients(*trainer._window())
        optim.clip(grads, config.optim)
        optim.update(trainer.optimizer, trainer._values, grads, trainer.optim_state, trainer._rate())
        trainer._advance(detach(forward.state))
        return _kept_bytes(loss, params)

    def timed() -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    with np.errstate(all="ignore"):
        step()  # compiles
        peak, kept = _traced_peak(step)
        seconds = float(np.median([timed() for _ in range(probe)]))
    weights = [trainer._values, trainer._grads, *trainer.optim_state["slots"].values()]
    held = sum(int(array.nbytes) for arrays in weights for array in arrays.values())
    return Plan(
        parts.model.count(),
        dataset.characters,
        trainer.total,
        trainer.steps_per_epoch,
        held,
        kept,
        max(peak, kept),
        seconds,
        tuple(_remarks(config, trainer.total, trainer.steps_per_epoch)),
    )


def _kept_bytes(loss: Tensor, params: Params) -> int:
    """The memory that the tape keeps alive, each piece counted once, without the parameters.

    A compiled loop keeps a record of its own, whose arrays lie in blocks that are leased as a whole.
    """
    found: dict[int, int] = {}
    stack: list[Any] = []
    for node in engine.below(loss.node) if loss.node is not None else ():
        stack += [*node.saved, *filter(backend.is_array, node.static.values())]
    while stack:
        value = stack.pop()
        if backend.is_array(value):
            memory = _memory(value)
            found[id(memory)] = int(memory.nbytes)
        elif isinstance(value, dict):
            stack += value.values()
        elif dataclasses.is_dataclass(value):
            stack += vars(value).values()
    for value in params.values():
        found.pop(id(_memory(value.data)), None)
    return sum(found.values())


def _traced_peak(step: Callable[[], int]) -> tuple[int, int]:
    """The bytes that `step` allocates at its peak, memory that waits to be used again included, and what it returns."""
    began = not tracemalloc.is_tracing()
    drop_waiting()
    if began:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = step()
        return tracemalloc.get_traced_memory()[1] - before, result
    finally:
        if began:
            tracemalloc.stop()


def _memory(array: Array) -> Array:
    """The array that owns the memory of a view."""
    while backend.is_array(getattr(array, "base", None)):
        array = array.base
    return array
