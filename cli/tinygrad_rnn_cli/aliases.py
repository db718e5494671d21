"""The flags of char-rnn, torch-rnn and char-rnn-tensorflow, in our words.

They are accepted beside our own, hidden from the help pages. Where theirs is ambiguous, or does more than
one thing, `translate` says what it was taken for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import tinygrad_rnn as tr

# Theirs to ours, the value unchanged. Each is accepted with one dash and with two.
_TRAIN = {
    "rnn_size": "model.hidden",
    "num_layers": "model.layers",
    "model": "model.cell",
    "model_type": "model.cell",
    "wordvec_size": "model.embed",
    "seq_length": "data.seq_len",
    "batch_size": "data.batch",
    "val_frac": "data.val_frac",
    "test_frac": "data.test_frac",
    "learning_rate": "optim.lr",
    "max_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "save_every": "train.save_every",
}
_SAMPLE = {
    "primetext": "sample.prime",
    "start_text": "sample.prime",
}
# Our own words with one dash only: with two they are our flags already.
_ONE_DASH = {
    "dropout": "model.dropout",
    "seed": "train.seed",
    "prime": "sample.prime",
    "length": "sample.length",
    "temperature": "sample.temperature",
}


@dataclass
class Translation:
    """What old names came to: settings, the flag each came from, what is no setting, and lines for the reader."""

    settings: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    extras: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def set(self, key: str, value: Any, source: str) -> None:
        """Take `value` for the setting `key`, checked later like every flag."""
        self.settings[key] = value
        self.sources[key] = source


Rule = Callable[[str, str, Translation, dict[str, str]], None]


def _number(flag: str, text: str) -> float:
    value: float = tr.coerce(float, text, flag)
    return value


def _clip_value(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
    to.set("optim.clip_value", text, flag)
    to.set("optim.clip_norm", 0.0, flag)
    to.notes.append(
        f"{flag} {text} clamps every element, as char-rnn and torch-rnn do (--clip-value {text} "
        "--clip-norm 0); --grad_clip or --clip-norm limits the global norm"
    )


def _clip_norm(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
    to.set("optim.clip_norm", text, flag)
    to.notes.append(
        f"{flag} {text} limits the global norm, as char-rnn-tensorflow does (--clip-norm {text}); "
        "-grad_clip or --clip-value clamps every element"
    )


def _mean_square(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
    to.set("optim.decay", text, flag)
    to.notes.append(
        f"{flag} {text} is the decay of rmsprop's mean square, as in char-rnn (--decay {text}, used with "
        "--optim rmsprop); char-rnn-tensorflow's --decay_rate is a learning-rate decay"
    )


def _rate_each_epoch(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
    factor = _number(flag, text)
    to.set("optim.lr_decay", f"exp:{factor:g}@1", flag)
    to.notes.append(
        f"{flag} {text} multiplies the learning rate at every epoch, as in char-rnn-tensorflow "
        f"(--lr-decay exp:{factor:g}@1); char-rnn's -decay_rate belongs to rmsprop"
    )


def _rate_after(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
    factor = _number(flag, others.get("-learning_rate_decay", "0.97"))
    after = tr.coerce(int, others.get("-learning_rate_decay_after", "10"), flag)
    to.set("optim.lr_decay", f"exp:{factor:g}@{after}", flag)
    to.notes.append(
        f"{flag}: the rate is multiplied by {factor:g} after every epoch from epoch {after} on "
        f"(--lr-decay exp:{factor:g}@{after})"
    )


def _rate_steps(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
    factor = _number(flag, others.get("-lr_decay_factor", "0.5"))
    every = tr.coerce(int, others.get("-lr_decay_every", "5"), flag)
    first = max(1, every - 1)  # torch-rnn counts the pass that begins, not those that are done
    decay = f"step:{factor:g}@{first}+{every}"
    to.set("optim.lr_decay", decay, flag)
    to.notes.append(
        f"{flag}: the rate is multiplied by {factor:g} after pass {first} and every {every} passes from there on "
        f"(--lr-decay {decay})"
    )


def _keep(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
    share = round(1.0 - _number(flag, text), 10)
    to.set("model.dropout", share, flag)
    to.notes.append(f"{flag} {text} is the share that stays: --dropout {share:g}")


def _train_share(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
    train, val = _number(flag, text), _number("-val_frac", others.get("-val_frac", "0.05"))
    test = round(1.0 - train - val, 10)
    if not 0 < train <= 1 or test < 0:
        raise tr.InputError(
            f"{flag}: expected the training and validation part to be at most the whole text, got "
            f"{train:g} and {val:g}; lower one of them"
        )
    to.set("data.val_frac", val, flag)
    to.set("data.test_frac", test, flag)
    to.notes.append(
        f"{flag} {text} is what the held-out parts leave: --val-frac {val:g} --test-frac {test:g}; ours are "
        "cut off the end of the text, char-rnn's off the end of each stream"
    )


def _check_and_save(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
    to.set("train.eval_every", text, flag)
    to.set("train.save_every", text, flag)
    to.notes.append(f"{flag} {text} validates and saves at the same steps: --eval-every {text} --save-every {text}")


def _gpu(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
    index = tr.coerce(int, text, flag)
    device = "cpu" if index < 0 else f"cuda:{index}"
    to.set("train.device", device, flag)
    to.notes.append(f"{flag} {text} is --device {device}")


def _text(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
    to.extras["text"] = text
    to.notes.append(f"{flag} {text}: the text is an argument here, a file or a folder: train {text}")


def _out(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
    to.extras["out"] = text
    to.notes.append(f"{flag} {text}: the run folder is {text} (--out {text})")


def _weights(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
    to.extras["init_from"] = text
    to.notes.append(
        f"{flag} {text} takes the weights of a run and begins anew (--init-from); `resume {text}` continues "
        "optimiser, step and random numbers too"
    )


def _run(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
    to.extras["run"] = text
    to.notes.append(f"{flag} {text}: the run folder is an argument here: sample {text}")


def _how_sampled(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
    if text not in ("0", "1"):
        raise tr.InputError(
            f"{flag} {text}: expected 0 (the likeliest symbol, --greedy) or 1 (by chance); sampling at "
            "spaces only is not there yet"
        )
    to.set("sample.greedy", text == "0", flag)
    to.notes.append(f"{flag} {text} is {'--greedy' if text == '0' else '--no-greedy'}")


def _preprocessed(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
    raise tr.InputError(
        f"{flag} {text}: torch-rnn's preprocessed files are not read, and not needed; name the text "
        "itself: train TEXT.txt"
    )


def _must_be(wanted: str, why: str) -> Rule:
    def rule(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
        if text != wanted:
            raise tr.InputError(f"{flag} {text}: {why}")
        to.notes.append(f"{flag} {text} is what happens anyway")

    return rule


def _ignored(why: str) -> Rule:
    def rule(flag: str, text: str, to: Translation, others: dict[str, str]) -> None:
        to.notes.append(f"{flag} {text} does nothing: {why}")

    return rule


_RULES: dict[str, dict[str, Rule]] = {
    "train": {
        "-grad_clip": _clip_value,
        "--grad_clip": _clip_norm,
        "-decay_rate": _mean_square,
        "--decay_rate": _rate_each_epoch,
        "-learning_rate_decay": _rate_after,
        "-learning_rate_decay_after": _rate_after,
        "-lr_decay_every": _rate_steps,
        "-lr_decay_factor": _rate_steps,
        "--output_keep_prob": _keep,
        "-train_frac": _train_share,
        "-eval_val_every": _check_and_save,
        "-checkpoint_every": _check_and_save,
        "-gpuid": _gpu,
        "-gpu": _gpu,
        "-data_dir": _text,
        "--data_dir": _text,
        "-checkpoint_dir": _out,
        "-checkpoint_name": _out,
        "--save_dir": _out,
        "-init_from": _weights,
        "--init_from": _weights,
        "-input_h5": _preprocessed,
        "-input_json": _preprocessed,
        "-reset_iterations": _must_be("1", "to continue the count of steps, use `resume RUN`"),
        "-batchnorm": _must_be("0", "there is no batch normalisation between layers"),
        "-opencl": _must_be("0", "there is no OpenCL; use --device cpu or cuda"),
        "-print_every": _ignored("metrics.jsonl has every step; -v prints every step"),
        "-savefile": _ignored("the run folder has the name; see --out"),
        "-accurate_gpu_timing": _ignored("times are measured as they are"),
        "-gpu_backend": _ignored("CUDA is the only one; see --device"),
        "-speed_benchmark": _ignored("see train --plan"),
        "-memory_benchmark": _ignored("see train --plan"),
    },
    "sample": {
        "-sample": _how_sampled,
        "--sample": _how_sampled,
        "-gpuid": _gpu,
        "-gpu": _gpu,
        "-checkpoint": _run,
        "-opencl": _must_be("0", "there is no OpenCL; use --device cpu or cuda"),
        "-gpu_backend": _ignored("CUDA is the only one; see --device"),
        "-verbose": _ignored("-v says more"),
    },
}
_DIRECT: dict[str, dict[str, str]] = {
    "train": {
        **{dash + name: key for name, key in _TRAIN.items() for dash in ("-", "--")},
        **{f"-{name}": _ONE_DASH[name] for name in ("dropout", "seed")},
    },
    "sample": {
        **{dash + name: key for name, key in _SAMPLE.items() for dash in ("-", "--")},
        **{f"-{name}": _ONE_DASH[name] for name in ("seed", "prime", "length", "temperature")},
    },
}
NAMES = {command: [*_DIRECT[command], *_RULES[command]] for command in _RULES}


def translate(given: Sequence[tuple[str, str]]) -> Translation:
    """Settings from old names and their values, in the order of the command line.

    Raises InputError for a value that cannot be meant.
    """
    to = Translation()
    direct = {**_DIRECT["train"], **_DIRECT["sample"]}
    rules = {**_RULES["train"], **_RULES["sample"]}
    others = dict(given)
    for flag, text in given:
        if flag in direct:
            to.set(direct[flag], text, flag)
    for flag, text in given:
        if flag in rules:
            rules[flag](flag, text, to, others)
    return to


# A value for each name, for the reference page and the tests.
EXAMPLES = {
    "rnn_size": "128", "num_layers": "2", "model": "gru", "model_type": "lstm", "wordvec_size": "64",
    "seq_length": "50", "batch_size": "50", "val_frac": "0.05", "test_frac": "0.1", "learning_rate": "2e-3",
    "max_epochs": "50", "num_epochs": "50", "save_every": "1000", "primetext": "The ", "start_text": "The ",
    "dropout": "0.5", "seed": "123", "prime": "The ", "length": "2000", "temperature": "0.7", "grad_clip": "5",
    "decay_rate": "0.97", "learning_rate_decay": "0.97", "learning_rate_decay_after": "10", "lr_decay_every": "5",
    "lr_decay_factor": "0.5", "output_keep_prob": "0.8", "train_frac": "0.95", "eval_val_every": "1000",
    "checkpoint_every": "1000", "gpuid": "-1", "gpu": "-1", "data_dir": "data/tinyshakespeare",
    "checkpoint_dir": "cv", "checkpoint_name": "cv/checkpoint", "save_dir": "save", "init_from": "runs/old",
    "reset_iterations": "1", "batchnorm": "0", "opencl": "0", "print_every": "1", "savefile": "lstm",
    "accurate_gpu_timing": "0", "gpu_backend": "cuda", "speed_benchmark": "0", "memory_benchmark": "0",
    "sample": "0", "checkpoint": "cv/checkpoint_4000.t7", "verbose": "0", "input_h5": "data.h5",
    "input_json": "data.json",
}  # fmt: skip


def same(command: str, one: str, other: str) -> bool:
    """Whether two old names mean the same."""
    direct, rules = _DIRECT[command], _RULES[command]
    return (direct.get(one), rules.get(one)) == (direct.get(other), rules.get(other))


def explain(command: str, name: str) -> tuple[str, str]:
    """(an example of the old name, what it means in our words), for the reference page."""
    value = EXAMPLES[name.lstrip("-")]
    written = f"{name} {value!r}" if " " in value else f"{name} {value}"
    if name in _DIRECT[command]:
        return written, _DIRECT[command][name]
    try:
        note = translate([(name, value)]).notes[0]
    except tr.InputError as error:
        return written, f"an error: {str(error).removeprefix(f'{name} {value}: ')}"
    return written, note.removeprefix(f"{name} {value} ").removeprefix(f"{name} {value}: ").removeprefix(f"{name}: ")
