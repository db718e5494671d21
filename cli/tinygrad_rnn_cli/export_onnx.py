"""``export onnx``: a trained model as a graph that any ONNX runtime computes."""

from __future__ import annotations

from pathlib import Path

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import aside, emit, fail, note
from tinygrad_rnn_cli.main import CHECK_FAILED
from tinygrad_rnn_cli.options import Command, Flag, common, load_run, new_file, resolve_run, settings, which_checkpoint

TOLERANCE = 1e-5


@click.command("onnx", cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@new_file("model.onnx")
@click.option("--scan", is_flag=True, help="a Scan of the step for rnn, lstm and gru too, as for every other cell")
@click.option(
    "--check/--no-check",
    default=None,
    cls=Flag,
    shown="check where onnxruntime is installed",
    help=f"before writing, compare onnxruntime with this program: to {TOLERANCE:g}",
)
@which_checkpoint
@settings()
@common("plugin")
def onnx(
    run: Path,
    out: Path | None,
    overwrite: bool,
    scan: bool,
    check: bool | None,
    which: str,
    allow_changed_cell: bool,
) -> None:
    """Write the model of RUN as an ONNX graph: numbers of symbols and a state in, logits and the next state out.

    Prints the file on stdout, and its inputs on stderr. The metadata of the file hold the vocabulary.

    \b
    tinygrad-rnn export onnx runs/lstm-python-docs-1 -o model.onnx
    """
    import numpy as np

    found = resolve_run(run)
    with aside():
        loaded = load_run(run, which, allow_changed_cell, found)
        proto = tr.to_onnx(loaded.model, loaded.params, vocabulary=loaded.vocabulary, scan=scan)
        version = tr.onnxruntime_version()
        told = ""
        if check or (check is None and version is not None):
            difference = tr.onnx_difference(proto, loaded.model, loaded.params, np.random.default_rng(0))
            if not difference <= TOLERANCE:
                fail(
                    f"--check: expected onnxruntime {version} to compute the same to {TOLERANCE:g}, got a difference "
                    f"of {difference:.1e}; nothing was written (--no-check writes it)"
                )
                click.get_current_context().exit(CHECK_FAILED)
            told = f"; onnxruntime {version} differs by {difference:.1e} at most"
    path = out or run / "model.onnx"
    tr.save_onnx(path, proto, overwrite=overwrite)
    emit(str(path))
    note(f"# step {loaded.step} of {run}{told}; inputs:")
    for name, kind in tr.onnx_inputs(proto).items():
        note(f"#   {name} {kind}")
