"""The configuration of a run: four dataclasses, the only place where a default is written.

This module imports neither NumPy nor a plugin: the command line reads its flags, help texts and
defaults from here before anything else is loaded.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tinygrad_rnn.errors import InputError, nearest
from tinygrad_rnn.options import check, check_limits, coerce, field_types

Scalar = str | int | float | bool


def setting(default: Any, help: str, **facts: Any) -> Any:
    """Declare one field: its default, its help text and facts for the command line.

    `facts` may hold ``flag`` (the name on the command line, where it differs from the field's),
    ``metavar``, ``minimum`` (inclusive), ``below`` (exclusive), ``needs``, a setting without which it does nothing, and
    ``escapes`` (the command line replaces a typed \\n and the like).
    """
    metadata = {"help": help, **facts}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained: embedding or one-hot, stacked cells, linear readout."""

    cell: str = setting("lstm", "the recurrent cell, by its registered name")
    cell_options: Mapping[str, Scalar] = setting({}, "options of the cell", flag="cell-opt", metavar="KEY=VALUE")
    wrap: tuple[str, ...] = setting(
        (), "put the cell into a wrapper: zoneout:RATE, recurrent_dropout:RATE, layernorm, residual, highway"
    )
    hidden: int = setting(128, "hidden units per layer (H)", minimum=1)
    layers: int = setting(2, "stacked layers", minimum=1)
    embed: str = setting(
        "hidden", "input: an embedding of N units, 'hidden' (as many as H) or 'onehot'", metavar="N|hidden|onehot"
    )
    tie: bool = setting(
        False, "tie the readout to the embedding: one matrix is both; needs an embedding of as many units as --hidden"
    )
    dropout: float = setting(0.0, "share of units dropped between layers and before the readout", minimum=0, below=1)
    init: str = setting("cell", "initialiser of every weight matrix: 'cell' (each cell's own) or name[:number,...]")
    init_bias: str = setting("cell", "initialiser of every bias that the cell starts at zero, likewise")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read and how it is cut into batches."""

    text: tuple[str, ...] = setting((), "files or folders; '-' is standard input")
    corpus: str = setting("python-docs", "the embedded corpus used when no text is named")
    between: str = setting(
        "\n", r"text put between two files; \n, \t, \\, \xHH and \uHHHH are understood", escapes=True
    )
    tokens: Literal["chars", "bytes", "words"] = setting("chars", "what one symbol is")
    min_count: int = setting(1, "rarer symbols become the unknown symbol", minimum=1)
    vocab_from: Literal["train", "text"] = setting(
        "train", "whose symbols the model knows: those of the training part, or of the whole text"
    )
    encoding: str = setting(
        "utf-8",
        "what the text is encoded in: utf-8, latin-1, cp1252, any that Python knows, or 'auto' for a guess",
        metavar="NAME",
    )
    errors: Literal["strict", "replace", "ignore"] = setting("strict", "what to do with bytes that are none of it")
    seq_len: int = setting(50, "time steps per batch and between two updates (k1)", minimum=1)
    batch: int = setting(50, "parallel streams of text (B)", minimum=1)
    drop_last: bool = setting(
        False, "leave out the end of the text that fills no window of all streams, as char-rnn and torch-rnn do"
    )
    val_frac: float = setting(0.05, "share of the text, at its end, held out for validation", minimum=0, below=1)
    test_frac: float = setting(
        0.0, "share of the text, behind the validation part, never looked at", minimum=0, below=1
    )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How parameters are updated."""

    optim: str = setting(
        "adam", "the optimiser: adam, adamw, rmsprop, adagrad, sgd, or one of a plugin", metavar="NAME"
    )
    optim_options: Mapping[str, Scalar] = setting(
        {}, "options of a plugin's optimiser", flag="optim-opt", metavar="KEY=VALUE"
    )
    lr: float = setting(2e-3, "learning rate", minimum=0)
    lr_decay: str = setting(
        "none",
        "none, exp:FACTOR@EPOCH (every epoch after it), step:FACTOR@EPOCHS (every so many), step:FACTOR@FIRST+EPOCHS, "
        "cosine (down to 0 over the run) or plateau:FACTOR@N (after N validations without a better one)",
    )
    warmup: int = setting(0, "updates in which the rate rises to --lr, in equal steps; 0: none", minimum=0)
    momentum: float = setting(0.0, "momentum of sgd and rmsprop", minimum=0, below=1)
    beta1: float = setting(0.9, "decay of the first moment in adam and adamw", minimum=0, below=1)
    beta2: float = setting(0.999, "decay of the second moment in adam and adamw", minimum=0, below=1)
    decay: float = setting(0.95, "decay of rmsprop's mean square", minimum=0, below=1)
    eps: float = setting(1e-8, "added to the denominator of every rule but sgd", minimum=0)
    weight_decay: float | None = setting(
        None,
        "weight decay: decoupled in adamw (none: 0.01), L2 in sgd, rmsprop and adagrad (none: 0); adam reads none",
        metavar="X",
        minimum=0,
    )
    clip_norm: float = setting(5.0, "largest global gradient norm; 0 turns it off", minimum=0)
    clip_value: float = setting(0.0, "largest gradient element, clamped before the norm; 0 turns it off", minimum=0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how exactly, how carefully."""

    epochs: int = setting(10, "passes over the training part", minimum=1)
    steps: int = setting(0, "updates in all; when above 0 it rules instead of epochs", minimum=0)
    bptt: int = setting(0, "steps that a gradient flows back (k2), a multiple of seq-len; 0: seq-len", minimum=0)
    loss: Literal["mean", "sum"] = setting("mean", "cross-entropy averaged over time steps, or summed over them")
    seed: int = setting(0, "seed of every random number", minimum=0)
    device: str = setting("auto", "auto, cpu or cuda[:N]", metavar="auto|cpu|cuda[:N]")
    dtype: Literal["float32", "float64"] = setting("float32", "floating type of parameters and states")
    eval_every: int = setting(200, "updates between two validations; 0: only at the end", minimum=0)
    save_every: int = setting(200, "updates between two checkpoints; 0: only at the end", minimum=0)
    keep: int = setting(
        3,
        "newest checkpoints to keep, beside the best; two at least, for the newest may hold diverged weights",
        minimum=1,
    )
    patience: int = setting(0, "stop after this many validations without a better one; 0: never", minimum=0)
    sample_every: int = setting(0, "updates between two printed samples; 0: none", minimum=0)
    sample_length: int = setting(200, "symbols of such a sample", minimum=1, needs="train.sample_every")
    watch: str = setting("", "write per-timestep gradient norms: grads or grads:EVERY", metavar="grads[:EVERY]")
    callbacks: tuple[str, ...] = setting(
        (), "call a plugin at every event of the training; 'none' calls none", flag="callback", metavar="NAME[:ARG]"
    )
    anomaly: bool = setting(False, "stop at the first NaN or infinity and name op, layer, timestep and gate (slow)")
    on_divergence: Literal["abort", "rollback"] = setting(
        "abort", "when training diverges: stop, or go back to the last good checkpoint with half the rate"
    )
    diverge_factor: float = setting(
        3.0, "a loss above this many times the first one counts as divergence; 0: never", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How text is drawn from a model. Not part of a run."""

    length: int = setting(500, "symbols to draw", minimum=1)
    prime: str = setting("", "text to start with, taken literally")
    temperature: float = setting(1.0, "divides the logits: below 1 safer, above 1 wilder, 0 like --greedy", minimum=0)
    greedy: bool = setting(False, "always take the most likely symbol")
    top_k: int = setting(0, "draw among the K most likely symbols only; 0: all", minimum=0)
    top_p: float = setting(1.0, "draw among the fewest symbols that have this share together; above 0, 1: all")
    stop: str = setting(
        "", r"stop after generating this text; \n, \t, \\, \xHH and \uHHHH are understood", escapes=True
    )
    num: int = setting(1, "samples side by side", minimum=1)
    unknown: Literal["error", "skip", "replace"] = setting("error", "unknown symbols of the priming text")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that a run is made from; `as_dict` and `from_dict` are its JSON form."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


SECTIONS: Mapping[str, type[Any]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
}

# What `resume` may change besides the length, the device and the callbacks of a run.
RESUMABLE = (
    "optim.lr",
    "optim.clip_norm",
    "optim.clip_value",
    "train.patience",
    "train.on_divergence",
    "train.diverge_factor",
)

# Published hyper-parameters (sources: docs/recipes in architecture.md). Keys are section.field.
RECIPES: Mapping[str, Mapping[str, Scalar]] = {
    # gist d4dee566867f8291f086: one tanh layer, batch 1, summed loss, Adagrad, element-wise clamp.
    "min-char-rnn": {
        "model.cell": "rnn",
        "model.hidden": 100,
        "model.layers": 1,
        "model.embed": "onehot",
        "model.init": "normal:0.01",
        "model.init_bias": "zeros",
        "data.seq_len": 25,
        "data.batch": 1,
        "data.drop_last": True,
        "data.vocab_from": "text",
        "data.val_frac": 0.0,
        "optim.optim": "adagrad",
        "optim.lr": 0.1,
        "optim.clip_norm": 0.0,
        "optim.clip_value": 5.0,
        "train.loss": "sum",
    },
    # char-rnn at 6f9487a6: its gradient is the sum over time (only the printed loss is divided).
    "char-rnn": {
        "model.cell": "lstm",
        "model.hidden": 128,
        "model.layers": 2,
        "model.embed": "onehot",
        "model.init": "uniform:0.08",
        "model.init_bias": "uniform:0.08",
        "data.seq_len": 50,
        "data.batch": 50,
        "data.drop_last": True,
        "data.vocab_from": "text",
        "data.val_frac": 0.05,
        "optim.optim": "rmsprop",
        "optim.lr": 2e-3,
        "optim.decay": 0.95,
        "optim.lr_decay": "exp:0.97@10",
        "optim.clip_norm": 0.0,
        "optim.clip_value": 5.0,
        "train.loss": "sum",
        "train.epochs": 50,
        "train.eval_every": 1000,
        "train.save_every": 1000,
    },
    # torch-rnn at 6e72b866: embedding of 64, Adam, rate halved after 4, 9, 14, ... passes.
    "torch-rnn": {
        "model.cell": "lstm",
        "model.hidden": 128,
        "model.layers": 2,
        "model.embed": "64",
        "data.seq_len": 50,
        "data.batch": 50,
        "data.drop_last": True,
        "data.vocab_from": "text",
        "data.val_frac": 0.1,
        "data.test_frac": 0.1,
        "optim.optim": "adam",
        "optim.lr": 2e-3,
        "optim.lr_decay": "step:0.5@4+5",
        "optim.clip_norm": 0.0,
        "optim.clip_value": 5.0,
        "train.epochs": 50,
        "train.eval_every": 1000,
        "train.save_every": 1000,
    },
}


def as_dict(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The configuration as plain JSON values, section by section."""
    return dataclasses.asdict(config)


def from_dict(mapping: Mapping[str, Any]) -> RunConfig:
    """The inverse of `as_dict`, from parsed JSON: exact types, text is not parsed.

    What is left out takes its default, so that a run of an older version still opens.
    Raises InputError for an unknown section or field (with the nearest name), a value of another type,
    one that is not among the choices, or one outside its limits.
    """
    sections: dict[str, Any] = {}
    for section, fields in mapping.items():
        if section not in SECTIONS:
            raise InputError(f"configuration: no section {section!r}{nearest(section, SECTIONS)}")
        if not isinstance(fields, Mapping):
            raise InputError(f"configuration: section {section!r} must be a table of fields, got {fields!r}")
        values: dict[str, Any] = {}
        for name, value in fields.items():
            key = f"{section}.{name}"
            annotation, declared = _declaration(key)
            values[name] = check(annotation, value, key)
            check_limits(declared, values[name], key)
        sections[section] = SECTIONS[section](**values)
    return RunConfig(**sections)


def replace(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """A new configuration with `changes`, whose keys are ``section.field``; text is coerced (`options.coerce`).

    ``model.cell_options.NAME`` sets one option of the cell beside the others. This is the one door for
    flags, environment variables, ``--set`` and TOML.
    Raises InputError for an unknown key (with the nearest) or a value that does not fit.
    """
    sections: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        section, _, rest = key.partition(".")
        name, _, entry = rest.partition(".")
        annotation, declared = _declaration(f"{section}.{name}" if rest else key)
        new = sections.setdefault(section, {})
        if entry:
            present = new.get(name, getattr(getattr(config, section), name))
            if not isinstance(present, Mapping):
                raise InputError(f"{key}: {section}.{name} is a single value, not a table; set {section}.{name} itself")
            value = {**present, entry: value}
        new[name] = coerce(annotation, value, key)
        check_limits(declared, new[name], key)
    made = {section: dataclasses.replace(getattr(config, section), **values) for section, values in sections.items()}
    return dataclasses.replace(config, **made)


def setting_of(config: RunConfig, key: str) -> Any:
    """The value of ``section.field``."""
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def setting_as_words(key: str, value: Any) -> str:
    """A value as one writes it on the command line: ``--wrap residual --wrap layernorm``; ``no --wrap`` for nothing."""
    _, declared = _declaration(key)
    flag = "--" + str(declared.metadata.get("flag", declared.name.replace("_", "-")))
    if isinstance(value, bool):
        return flag if value else flag.replace("--", "--no-", 1)
    items = [f"{name}={item}" for name, item in value.items()] if isinstance(value, Mapping) else value
    if isinstance(items, list | tuple):
        return " ".join(f"{flag} {item}" for item in items) or f"no {flag}"
    return f"{flag} {value}"


def recipe(name: str) -> dict[str, Scalar]:
    """The settings of a published recipe, ``section.field`` to value: ready for `replace`.

    Raises InputError for an unknown name, with the nearest.
    """
    if name not in RECIPES:
        raise InputError(f"no recipe {name!r}{nearest(name, RECIPES)}")
    return dict(RECIPES[name])


def check_memory(least: int, what: str, lower: str) -> None:
    """Refuse sizes that need at least `least` bytes on a machine with less: `what` is expected to fit, `lower` to go.

    An allocation of arrays would fail by itself, but one of many small objects drives the machine out of memory first.
    Raises InputError.
    """
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no such question on this system
        machine = 1 << 44
    if least > machine:
        raise InputError(
            f"{what} that fits into the {machine / 2**30:.3g} GiB of this machine, got one of at least "
            f"{least / 2**30:.3g} GiB; lower {lower}"
        )


def _declaration(key: str) -> tuple[Any, dataclasses.Field[Any]]:
    """The resolved annotation and the field behind ``section.field``."""
    section, _, name = key.partition(".")
    if section not in SECTIONS:
        if not name:  # 'lr' for 'optim.lr' is the likeliest slip
            homes = [f"{s}.{key}" for s, cls in SECTIONS.items() if any(f.name == key for f in dataclasses.fields(cls))]
            if homes:
                raise InputError(f"no setting {key!r}: expected section.field; did you mean {', '.join(homes)}?")
        raise InputError(f"no setting {key!r}: expected section.field; unknown section{nearest(section, SECTIONS)}")
    cls = SECTIONS[section]
    for declared in dataclasses.fields(cls):
        if declared.name == name:
            return field_types(cls)[name], declared
    names = [f"{section}.{f.name}" for f in dataclasses.fields(cls)]
    raise InputError(f"no setting {key!r}{nearest(key, names)}")
