"""``resume``: continue a run exactly where its newest checkpoint left it."""

from __future__ import annotations

from pathlib import Path

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import aside, emit, note, number, warn
from tinygrad_rnn_cli.options import Command, common, option_names, refuse_idle, resolve, settings, spell


@click.command("resume", cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--allow-changed-cell", is_flag=True, help="accept that the code of its cell or optimiser has changed")
@click.option(
    "--text",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="where its text is now, a file or folder; repeat for several",
)
@click.option(
    "--allow-other-text",
    is_flag=True,
    help="go on with a text of another content, from the start of a pass over it; the best loss so far is forgotten",
)
@settings("train.steps", "train.epochs", *tr.RESUMABLE, "train.callbacks")
@common("config", "device", "plugin")
def resume(run: Path, allow_changed_cell: bool, text: tuple[Path, ...], allow_other_text: bool) -> None:
    """Continue RUN: bit for bit as if it had never stopped (on a CPU).

    --steps and --epochs are the TOTAL length of the run: with 100 steps done, --steps 200 does 100 more. Without
    them it goes on to the length it was meant to have. Its callbacks are called again; --callback names others. The
    text must be the one that it was trained on, wherever it is. Every other option changes the run from here on;
    inspect lists the changes.
    """
    if Path("-") in text:
        raise click.UsageError("--text -: expected a file or folder, which the run can read again, got standard input")
    origin = f"run {run}"
    base = tr.run_config(tr.open_run(run))
    found = resolve(base=base, origin=origin)
    for key in ("train.seed", "train.dtype"):
        if found.origins[key] != origin and not found.origins[key].startswith("environment"):
            raise click.UsageError(
                f"{found.written(key) or found.origins[key]}: the run has settled it; resume takes --steps, --epochs, "
                "--callback, --device, " + ", ".join(option_names()[key] for key in tr.RESUMABLE)
            )

    if found.written("train.steps"):
        refuse_idle(found.written("train.epochs"), "beside --steps; give one of them")

    def given(key: str) -> bool:
        return found.origins[key] != origin

    def said(key: str) -> bool:
        """Whether a setting is to change: a file or the environment that repeats it means nothing by it."""
        return bool(found.written(key)) or tr.setting_of(found.run, key) != tr.setting_of(base, key)

    if given("train.epochs") and not given("train.steps"):
        steps, epochs = None, found.run.train.epochs
    else:
        steps, epochs = (found.run.train.steps if given("train.steps") else None), None
    with aside():
        trainer = tr.resume_training(
            run,
            steps=steps,
            epochs=epochs,
            device=found.run.train.device if given("train.device") else None,
            callbacks=found.run.train.callbacks if given("train.callbacks") else None,
            settings={key: tr.setting_of(found.run, key) for key in tr.RESUMABLE if said(key)},
            text=[str(path.absolute()) for path in text],
            allow_other_text=allow_other_text,
            allow_changed_cell=allow_changed_cell,
            plugins=found.plugins,
            third_party=found.third_party,
        )
    from tinygrad_rnn_cli.progress import follow
    from tinygrad_rnn_cli.train import advise_next

    if trainer.progress.step >= trainer.total:
        warn(f"nothing is left to do: {number(trainer.total)} steps are done; --steps N makes N of them in all")
    for change in trainer.changes:
        note(
            f"{change['setting']}: {spell(change['from'])} -> {spell(change['to'])}, from step "
            f"{number(change['step'])} on"
        )
    if trainer.rescheduled is not None:
        old, new = trainer.rescheduled
        decay = trainer.config.optim.lr_decay
        what = f"note: the new length changes --lr-decay {decay}"
        note(f"{what}: the rate of the next step is {new:.4g} and not {old:.4g}")
    finished = follow(trainer)
    emit(str(finished.path))
    advise_next(finished)
