"""Optimisers, gradient clipping and the learning-rate schedule, as functions on dicts of arrays.

Every array may live on any device: only ufuncs with ``out=`` touch it, and its owner answers them.
Parameters and slots change in place; gradients only in `clip_value` and `clip_norm`. All rules are
element-wise, so one flat buffer under one name is updated as well as many arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TypedDict

import numpy as np

from tinygrad_rnn.backend import Array
from tinygrad_rnn.config import OptimConfig
from tinygrad_rnn.errors import DtypeError, InputError, ShapeError, nearest

# Elements per piece on the host: parameter, gradient, two slots and scratch stay in the second-level cache
# through the dozen passes that Adam makes.
BLOCK = 65536


class State(TypedDict):
    """What an optimiser carries: updates done so far, and per slot one array per parameter.

    Slots: adam and adamw ``m``, ``v``; rmsprop and adagrad ``v``; sgd ``u``, with momentum only.
    """

    step: int
    slots: dict[str, dict[str, Array]]


def init_state(config: OptimConfig, params: Mapping[str, Array]) -> State:
    """The state before the first update: step 0, every slot zero, with each parameter's shape, dtype and device.

    Raises InputError for an unknown optimiser.
    """
    return {
        "step": 0,
        "slots": {slot: {name: np.zeros_like(param) for name, param in params.items()} for slot in _slots(config)},
    }


def update(
    config: OptimConfig, params: Mapping[str, Array], grads: Mapping[str, Array], state: State, lr: float
) -> None:
    """One step of ``config.optim`` with the rate `lr`, in place in `params` and `state`.

    With t the number of the update, from 1, and g a gradient of its parameter's shape and dtype:

    * adam (Kingma & Ba 2015, arXiv:1412.6980v9, alg. 1, as torch.optim.Adam):
      m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
      p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
    * adamw (Loshchilov & Hutter 2019, arXiv:1711.05101v3, alg. 2): p *= 1 - lr weight_decay, then adam
    * rmsprop (Hinton's lecture 6e, as torch.optim.RMSprop and char-rnn):
      v = decay v + (1 - decay) g^2; p -= lr g / (sqrt(v) + eps)
    * adagrad (Duchi et al. 2011, with min-char-rnn's eps under the root): v += g^2; p -= lr g / sqrt(v + eps)
    * sgd: p -= lr g, or with momentum u = momentum u + g; p -= lr u (as torch.optim.SGD)

    Raises InputError if names differ between `params`, `grads` and `state`, ShapeError if shapes do, DtypeError if
    dtypes do.
    Nothing has changed when it raises.
    """
    slots = [state["slots"].get(slot, {}) for slot in _slots(config)]
    _check_match(params, grads, "gradients")
    for slot in slots:
        _check_match(params, slot, f"the state of {config.optim}")
    state["step"] += 1
    lr = float(lr)  # a NumPy scalar would promote float32 arrays to float64
    for name, param in params.items():
        for p, g, *s in _blocks(param, grads[name], *(slot[name] for slot in slots)):
            _apply(config, p, g, s, state["step"], lr)


def clip_value(grads: Mapping[str, Array], limit: float) -> None:
    """Clamp every gradient element to [-limit, limit], in place; `limit` 0 leaves all as it is. NaN stays NaN.

    Raises InputError for a negative or NaN limit.
    """
    if not _limit(limit):
        return
    for grad in grads.values():
        np.minimum(grad, limit, out=grad)
        np.maximum(grad, -limit, out=grad)


def global_norm(grads: Mapping[str, Array]) -> float:
    """The Euclidean norm of all gradients together, summed in float64 whatever their dtype.

    NaN or infinite if a gradient is; infinite, too, where the sum of squares leaves float64.
    """
    total = 0.0
    elsewhere: Array = None
    for grad in grads.values():
        if not isinstance(grad, np.ndarray):
            with np.errstate(over="ignore"):
                square = np.square(grad, dtype=np.float64).sum()
            elsewhere = square if elsewhere is None else elsewhere + square  # stays on the device: one wait at the end
            continue
        for (part,) in _blocks(grad):
            wide = part.astype(np.float64).reshape(-1)  # a block at most: no large temporary
            total += float(np.dot(wide, wide))
    if elsewhere is not None:
        total += float(elsewhere.item())
    return math.sqrt(total)


def clip_norm(grads: Mapping[str, Array], limit: float) -> float:
    """Scale all gradients by limit / norm, in place, if their global norm exceeds `limit`; 0 turns it off.

    Returns the norm before clipping (Pascanu et al. 2013, arXiv:1211.5063v2, alg. 1). Where it is not finite the
    gradients stay as they are: the caller sees the norm and decides, and no NaN spreads.
    Raises InputError for a negative or NaN limit.
    """
    active = _limit(limit)
    norm = global_norm(grads)
    if active and math.isfinite(norm) and norm > limit:
        scale = float(limit) / norm
        for grad in grads.values():
            np.multiply(grad, scale, out=grad)
    return norm


def learning_rate(config: OptimConfig, epoch: float) -> float:
    """The rate for an update made when `epoch` passes over the training part lie behind it.

    ``none``: lr. ``exp:F@E`` (char-rnn): multiplied by F at the end of pass E and of every later one,
    lr * F**max(0, floor(epoch) - E + 1) from floor(epoch) >= E on. ``step:F@E`` (torch-rnn): lr * F**floor(epoch / E).

    Raises InputError for any other text, a factor that is not above 0, or an E that is not a whole number from 1.
    """
    text = config.lr_decay.strip()
    if text == "none":
        return config.lr
    kind, _, rest = text.partition(":")
    factor_text, _, every_text = rest.partition("@")
    try:
        factor, every = float(factor_text), int(every_text)
    except ValueError:
        factor, every = math.nan, 0
    if kind not in ("exp", "step") or not (0 < factor < math.inf) or every < 1:
        raise InputError(
            f"learning-rate decay: expected none, exp:FACTOR@EPOCH or step:FACTOR@EPOCHS with FACTOR "
            f"above 0 and a whole EPOCH from 1, got {config.lr_decay!r}"
        )
    passes = max(0, math.floor(epoch))
    return config.lr * factor ** (max(0, passes - every + 1) if kind == "exp" else passes // every)


def _slots(config: OptimConfig) -> tuple[str, ...]:
    slots = {
        "adam": ("m", "v"),
        "adamw": ("m", "v"),
        "rmsprop": ("v",),
        "adagrad": ("v",),
        "sgd": ("u",) if config.momentum else (),
    }
    if config.optim not in slots:
        raise InputError(f"no optimiser {config.optim!r}{nearest(config.optim, slots)}")
    return slots[config.optim]


def _apply(config: OptimConfig, p: Array, g: Array, slots: list[Array], step: int, lr: float) -> None:
    """One rule on one piece; the equations stand at `update`."""
    scratch = np.empty_like(p)  # on the host a block at most: the allocator hands the same one out again
    if config.optim in ("adam", "adamw"):
        m, v = slots
        if config.optim == "adamw":
            np.multiply(p, 1.0 - lr * config.weight_decay, out=p)
        _average(m, g, config.beta1, scratch)
        _average_square(v, g, config.beta2, scratch)
        np.sqrt(v, out=scratch)
        np.multiply(scratch, 1.0 / math.sqrt(1.0 - config.beta2**step), out=scratch)
        np.add(scratch, config.eps, out=scratch)
        np.divide(m, scratch, out=scratch)
        np.multiply(scratch, lr / (1.0 - config.beta1**step), out=scratch)
    elif config.optim == "rmsprop":
        (v,) = slots
        _average_square(v, g, config.decay, scratch)
        np.sqrt(v, out=scratch)
        np.add(scratch, config.eps, out=scratch)
        np.divide(g, scratch, out=scratch)
        np.multiply(scratch, lr, out=scratch)
    elif config.optim == "adagrad":
        (v,) = slots
        np.multiply(g, g, out=scratch)
        np.add(v, scratch, out=v)
        np.add(v, config.eps, out=scratch)
        np.sqrt(scratch, out=scratch)
        np.divide(g, scratch, out=scratch)
        np.multiply(scratch, lr, out=scratch)
    elif slots:
        (u,) = slots
        np.multiply(u, config.momentum, out=u)
        np.add(u, g, out=u)
        np.multiply(u, lr, out=scratch)
    else:
        np.multiply(g, lr, out=scratch)
    np.subtract(p, scratch, out=p)


def _average(mean: Array, g: Array, decay: float, scratch: Array) -> None:
    """mean = decay mean + (1 - decay) g."""
    np.multiply(mean, decay, out=mean)
    np.multiply(g, 1.0 - decay, out=scratch)
    np.add(mean, scratch, out=mean)


def _average_square(mean: Array, g: Array, decay: float, scratch: Array) -> None:
    """mean = decay mean + (1 - decay) g^2."""
    np.multiply(mean, decay, out=mean)
    np.multiply(g, g, out=scratch)
    np.multiply(scratch, 1.0 - decay, out=scratch)
    np.add(mean, scratch, out=mean)


def _blocks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Pieces of arrays of one shape: cache-sized views on the host, the whole arrays elsewhere.

    On a GPU every piece would be one more kernel launch, so nothing is cut there.
    """
    size = arrays[0].size
    if size <= BLOCK or not all(isinstance(a, np.ndarray) and a.flags.c_contiguous for a in arrays):
        yield arrays
        return
    flat = [a.reshape(-1) for a in arrays]  # views, for they are contiguous
    for start in range(0, size, BLOCK):
        yield tuple(a[start : start + BLOCK] for a in flat)


def _check_match(params: Mapping[str, Array], others: Mapping[str, Array], what: str) -> None:
    if params.keys() != others.keys():
        missing, extra = sorted(params.keys() - others.keys()), sorted(others.keys() - params.keys())
        raise InputError(
            f"update: expected {what} for exactly the parameters, got none for {missing} and more for "
            f"{extra}; pass one array per parameter"
        )
    for name, param in params.items():
        other = others[name]
        if param.shape != other.shape:
            raise ShapeError(
                f"update: expected {what} of {name!r} with the parameter's shape {param.shape}, got "
                f"{other.shape}; pass one array per parameter"
            )
        if param.dtype != other.dtype:
            raise DtypeError(
                f"update: expected {what} of {name!r} in the parameter's dtype {param.dtype}, got "
                f"{other.dtype}; convert it first"
            )


def _limit(limit: float) -> bool:
    if not limit >= 0:
        raise InputError(f"clipping: expected a limit of at least 0 (0: off), got {limit}")
    return limit > 0
