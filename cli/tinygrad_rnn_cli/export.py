"""``export``: a trained model as a file for other programs."""

from __future__ import annotations

from pathlib import Path

import click

import tinygrad_rnn as tr
from tinygrad_rnn_cli.console import aside, emit, note
from tinygrad_rnn_cli.export_onnx import onnx
from tinygrad_rnn_cli.main import Group
from tinygrad_rnn_cli.options import Command, common, load_run, new_file, resolve_run, settings, which_checkpoint


@click.group(cls=Group)
def export() -> None:
    """Write a trained model as a file for other programs."""


export.add_command(onnx)


@export.command("torch", cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@new_file("torch.safetensors")
@which_checkpoint
@settings()
@common("plugin")
def torch(run: Path, out: Path | None, overwrite: bool, which: str, allow_changed_cell: bool) -> None:
    """Write the weights of RUN as a state_dict of PyTorch, in a safetensors file, for rnn, lstm and gru.

    Prints the file on stdout, and on stderr the lines of Python that load it. Its header holds the vocabulary, so that
    `import torch` can take it back as it is.

    \b
    tinygrad-rnn export torch runs/lstm-python-docs-1 -o model.safetensors
    """
    found = resolve_run(run)
    with aside():
        loaded = load_run(run, which, allow_changed_cell, found)
    path = out or run / "torch.safetensors"
    tr.save_torch(
        path,
        loaded.model,
        loaded.params,
        loaded.vocabulary,
        seed=loaded.config.train.seed,
        step=loaded.step,
        overwrite=overwrite,
    )
    emit(str(path))
    note(f"# step {loaded.step} of {run}; to load it in PyTorch:")
    note(tr.torch_code(loaded.model, path, loaded.config.train.dtype).rstrip())
