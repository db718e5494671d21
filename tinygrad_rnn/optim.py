"""Optimisers, gradient clipping and the learning-rate schedule, on dicts of arrays.

Every array may live on any device: only ufuncs with ``out=`` touch it, and its owner answers them.
Parameters and slots change in place; gradients only in `clip_value` and `clip_norm`. In a `Block` they lie side by
side, so that norms, clipping and element-wise rules make one pass over one array.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, ItemsView, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypedDict, TypeVar, final

import numpy as np

from tinygrad_rnn import plugins
from tinygrad_rnn.backend import Array
from tinygrad_rnn.compile.ends import square_sum
from tinygrad_rnn.config import OptimConfig
from tinygrad_rnn.errors import DtypeError, InputError, PluginError, ShapeError, nearest
from tinygrad_rnn.options import field_types, parse_options
from tinygrad_rnn.plugins import OPTIMIZERS, PluginIdentity, by_author, check_class

# Elements per piece on the host: parameter, gradient, two slots and scratch stay in the second-level cache
# through the dozen passes that Adam makes.
BLOCK = 65536

SMALLEST_SQUARE = 1e-280  # below it a sum of squares has lost digits to underflow

# The settings that optimisers share, each with a flag of its own.
SHARED = ("momentum", "beta1", "beta2", "decay", "eps", "weight_decay")


@final
class Block(dict[str, Array]):
    """Arrays by name, all of them views of one contiguous vector, `flat`."""

    def __init__(self, flat: Array, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.flat = flat
        ends = itertools.accumulate((math.prod(shape) for shape in shapes.values()), initial=0)
        super().__init__(
            (name, flat[start:stop].reshape(shape))
            for (name, shape), (start, stop) in zip(shapes.items(), itertools.pairwise(ends), strict=True)
        )

    @classmethod
    def zeros_like(cls, arrays: Mapping[str, Array]) -> Block:
        """Zeros with the names, shapes, dtype and device of `arrays`, of which there is at least one."""
        count = sum(array.size for array in arrays.values())
        like = next(iter(arrays.values()))
        return cls(np.zeros_like(like, shape=(count,)), {name: array.shape for name, array in arrays.items()})

    @classmethod
    def copy_of(cls, arrays: Mapping[str, Array]) -> Block:
        """A copy of `arrays`, all of one dtype on one device."""
        block = cls.zeros_like(arrays)
        block.assign(arrays)
        return block

    def __reduce__(self) -> Any:
        """Copies and pickles: the vector and the shapes, so that the arrays are views of it again."""
        return Block, (self.flat, {name: array.shape for name, array in self.items()})

    def assign(self, arrays: Mapping[str, Array]) -> None:
        """Overwrite every array with the one of its name."""
        for name, own in self.items():
            own[...] = arrays[name]


class Optimizer(ABC):
    """Abstract: one rule by which gradients change parameters.

    It declares its name, summary and citation, its typed `Options`, the slots it carries, and writes `update`. It is a
    description: it holds no array. An option without a default is one of the settings that optimisers share (momentum,
    beta1, beta2, decay, eps, weight_decay) and takes its value from there; one with a default is the optimiser's own
    (``--optim-opt KEY=VALUE``).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    citation: ClassVar[str]
    elementwise: ClassVar[bool] = False  # no number depends on another: `update` may get all arrays as one vector
    defaults: ClassVar[Mapping[str, float]] = {}  # of shared settings that are left to the optimiser; 0 for others

    @dataclass(frozen=True)
    class Options:
        """Fields with or without a default, each with ``field(metadata={"help": ...})`` where it is its own."""

    @final
    def __init__(self, config: OptimConfig) -> None:
        """The optimiser with the options of `config`. Raises InputError for options that it does not have."""
        shared = {name: getattr(config, name) for name in _shared(type(self).Options)}
        shared |= {name: type(self).defaults.get(name, 0.0) for name, value in shared.items() if value is None}
        for name in config.optim_options:
            if name.replace("-", "_") in shared:
                flag = name.replace("_", "-")
                raise InputError(f"optimiser {self.name}, option {name!r}: it is a setting of its own; use --{flag}")
        self.options: Any = parse_options(
            type(self).Options, {**shared, **config.optim_options}, f"optimiser {self.name}"
        )

    @abstractmethod
    def slots(self) -> tuple[str, ...]:
        """The names of what is carried from update to update: one array per parameter each, zero at the start."""

    @abstractmethod
    def update(
        self,
        params: Mapping[str, Array],
        grads: Mapping[str, Array],
        slots: Mapping[str, Mapping[str, Array]],
        step: int,
        lr: float,
    ) -> None:
        """Change the arrays `params` and `slots` in place; `step` is the number of this update, from 1.

        Every array has the shape and dtype of its parameter. `grads` may be overwritten. An `elementwise` rule may
        get everything as one vector under one name.
        """


def check_optimizer(cls: Any) -> None:
    """Raise PluginError when `cls` is not a complete Optimizer: what is missing, and in which class."""
    check_class(cls, Optimizer, OPTIMIZERS.word, ("name", "summary", "citation"))
    where = f"{OPTIMIZERS.word} {cls.name!r}"
    field_types(cls.Options, where)
    for name in _shared(cls.Options):
        if name not in SHARED:
            raise PluginError(
                f"{where}: expected a default for the option {name!r}, or the name of a shared setting"
                f"{nearest(name, SHARED)}"
            )


def _shared(options: type[Any]) -> list[str]:
    """The fields without a default."""
    return [
        field.name
        for field in dataclasses.fields(options)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]


@final
class Adam(Optimizer):
    """m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2, without their bias towards 0."""

    name = "adam"
    summary = "moving averages of the gradient and of its square"
    citation = "D. P. Kingma, J. Ba, Adam: a method for stochastic optimization, 2015, arXiv 1412.6980v9, algorithm 1"
    elementwise = True

    @dataclass(frozen=True)
    class Options:
        """Shared settings alone."""

        beta1: float
        beta2: float
        eps: float

    def slots(self) -> tuple[str, ...]:
        """m, v."""
        return "m", "v"

    def update(self, params: Any, grads: Any, slots: Any, step: int, lr: float) -> None:
        """p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps), as torch.optim.Adam."""
        for p, g, m, v in pieces(params, grads, slots["m"], slots["v"]):
            _adam(self.options, p, g, m, v, step, lr)


@final
class AdamW(Optimizer):
    """Adam, with weights that shrink by themselves and not through the gradient."""

    name = "adamw"
    summary = "adam with decoupled weight decay"
    citation = "I. Loshchilov, F. Hutter, Decoupled weight decay regularization, 2019, arXiv 1711.05101v3, algorithm 2"
    elementwise = True
    defaults: ClassVar[Mapping[str, float]] = {"weight_decay": 0.01}

    @dataclass(frozen=True)
    class Options:
        """Shared settings alone."""

        beta1: float
        beta2: float
        eps: float
        weight_decay: float

    def slots(self) -> tuple[str, ...]:
        """m, v."""
        return "m", "v"

    def update(self, params: Any, grads: Any, slots: Any, step: int, lr: float) -> None:
        """p *= 1 - lr weight_decay, then as Adam."""
        for p, g, m, v in pieces(params, grads, slots["m"], slots["v"]):
            np.multiply(p, 1.0 - lr * self.options.weight_decay, out=p)
            _adam(self.options, p, g, m, v, step, lr)


@final
class RMSprop(Optimizer):
    """v = decay v + (1 - decay) g^2; p -= lr g / (sqrt(v) + eps).

    With momentum u = momentum u + g / (sqrt(v) + eps); p -= lr u. The weight decay is added to g, as L2.
    """

    name = "rmsprop"
    summary = "the gradient divided by a moving average of its size"
    citation = "G. Hinton, Neural networks for machine learning, lecture 6e, 2012; as torch.optim.RMSprop and char-rnn"
    elementwise = True

    @dataclass(frozen=True)
    class Options:
        """Shared settings alone."""

        decay: float
        eps: float
        momentum: float
        weight_decay: float

    def slots(self) -> tuple[str, ...]:
        """v, and u with momentum."""
        return ("v", "u") if self.options.momentum else ("v",)

    def update(self, params: Any, grads: Any, slots: Any, step: int, lr: float) -> None:
        """The equations of the class."""
        o = self.options
        for p, pulled, v, *us in pieces(params, grads, *slots.values()):
            g = _decayed(p, pulled, o.weight_decay)
            scratch = np.empty_like(p)
            _average_square(v, g, o.decay, scratch)
            np.sqrt(v, out=scratch)
            np.add(scratch, o.eps, out=scratch)
            if not us:
                _descend(p, g, scratch, lr)
            for u in us:
                np.divide(g, scratch, out=scratch)
                np.multiply(u, o.momentum, out=u)
                np.add(u, scratch, out=u)
                np.multiply(u, lr, out=scratch)
                np.subtract(p, scratch, out=p)


@final
class Adagrad(Optimizer):
    """v += g^2; p -= lr g / sqrt(v + eps). The weight decay is added to g, as L2."""

    name = "adagrad"
    summary = "the gradient divided by the root of all its squares so far"
    citation = "J. Duchi et al., Adaptive subgradient methods, 2011; with min-char-rnn's eps under the root"
    elementwise = True

    @dataclass(frozen=True)
    class Options:
        """Shared settings alone."""

        eps: float
        weight_decay: float

    def slots(self) -> tuple[str, ...]:
        """v."""
        return ("v",)

    def update(self, params: Any, grads: Any, slots: Any, step: int, lr: float) -> None:
        """The equations of the class."""
        for p, pulled, v in pieces(params, grads, slots["v"]):
            g = _decayed(p, pulled, self.options.weight_decay)
            scratch = np.empty_like(p)
            np.multiply(g, g, out=scratch)
            np.add(v, scratch, out=v)
            np.add(v, self.options.eps, out=scratch)
            np.sqrt(scratch, out=scratch)
            _descend(p, g, scratch, lr)


@final
class SGD(Optimizer):
    """p -= lr g; with momentum u = momentum u + g; p -= lr u. The weight decay is added to g, as L2."""

    name = "sgd"
    summary = "the gradient as it is, or with momentum"
    citation = "H. Robbins, S. Monro, A stochastic approximation method, 1951; momentum as torch.optim.SGD"
    elementwise = True

    @dataclass(frozen=True)
    class Options:
        """Shared settings alone."""

        momentum: float
        weight_decay: float

    def slots(self) -> tuple[str, ...]:
        """u, with momentum only."""
        return ("u",) if self.options.momentum else ()

    def update(self, params: Any, grads: Any, slots: Any, step: int, lr: float) -> None:
        """The equations of the class."""
        for p, pulled, *us in pieces(params, grads, *slots.values()):
            g = _decayed(p, pulled, self.options.weight_decay)
            scratch = np.empty_like(p)
            for u in us:
                np.multiply(u, self.options.momentum, out=u)
                np.add(u, g, out=u)
            np.multiply(us[0] if us else g, lr, out=scratch)
            np.subtract(p, scratch, out=p)


O = TypeVar("O", bound=type[Optimizer])


def register_optimizer(cls: O) -> O:
    """Class decorator: make an optimiser known under its name, in this process.

    Raises PluginError when the declaration is incomplete or the name belongs to another one.
    """
    return plugins.register(OPTIMIZERS, cls)


def build_optimizer(config: OptimConfig, *, third_party: bool = True) -> tuple[Optimizer, PluginIdentity]:
    """The optimiser that `config` names, with its options, and which code it is.

    Raises InputError for an unknown name or option, PluginError when it cannot be used.
    """
    entry = plugins.load(OPTIMIZERS, config.optim, third_party=third_party)
    return entry.value(config), entry.identity


def unread_settings(config: OptimConfig, given: Collection[str] = (), *, third_party: bool = True) -> dict[str, str]:
    """The shared settings that `config` changes and its optimiser does not read, each with what reads it, in words.

    Those in `given` were set on purpose: they count even where they have their default.

    Raises InputError for an unknown optimiser, PluginError when it cannot be used.
    """
    own = _shared(plugins.load(OPTIMIZERS, config.optim, third_party=third_party).value.Options)
    default = OptimConfig()
    found = {}
    for name in SHARED:
        if name not in own and (name in given or getattr(config, name) != getattr(default, name)):
            rules = {rule: plugins.load(OPTIMIZERS, rule, third_party=False).value for rule in OPTIMIZERS.built_in}
            readers = [rule for rule, cls in rules.items() if name in _shared(cls.Options)]
            others = " and ".join(filter(None, (", ".join(readers[:-1]), *readers[-1:])))
            found[name] = f"{config.optim} does not read it, {others} {'do' if readers[1:] else 'does'}"
    return found


def check_settings(config: OptimConfig, dtype: str, *, third_party: bool = True) -> None:
    """Refuse settings that the optimiser does not read, and an eps that is nothing in `dtype`.

    Raises InputError, and PluginError when the optimiser cannot be used.
    """
    for name, why in unread_settings(config, third_party=third_party).items():
        flag = name.replace("_", "-")
        raise InputError(f"--{flag} {getattr(config, name):g} has no effect: {why}; change --optim, or leave it out")
    smallest = float(np.finfo(dtype).tiny)
    reads = "eps" in _shared(plugins.load(OPTIMIZERS, config.optim, third_party=third_party).value.Options)
    if reads and config.eps < smallest:
        raise InputError(
            f"--eps {config.eps:g}: expected at least {smallest:.2g}, the smallest number of {dtype}: a weight whose "
            "gradient is 0, as that of a symbol that does not occur, would become 0 / 0"
        )


class State(TypedDict):
    """What an optimiser carries: updates done so far, and per slot one array per parameter."""

    step: int
    slots: dict[str, dict[str, Array]]


def init_state(optimizer: Optimizer, params: Mapping[str, Array]) -> State:
    """The state before the first update: step 0, every slot zero, with each parameter's shape, dtype and device.

    The slots of a `Block` are blocks.

    Raises PluginError when the slots that the optimiser names are no names.
    """
    what = f"optimiser {optimizer.name}, slots"
    names: Any = by_author(what, optimizer.slots, of=type(optimizer))
    if not isinstance(names, tuple) or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise PluginError(f"{what}: expected a tuple of Python names, got {names!r}")
    if len(set(names)) < len(names):
        raise PluginError(f"{what}: expected different names, got {names!r}")
    zeros = Block.zeros_like if isinstance(params, Block) else _zeros
    return {"step": 0, "slots": {slot: zeros(params) for slot in names}}


class _Written(Mapping[str, Array]):
    """Final. Arrays by name, for a rule to write into: ``arrays[name] -= x`` does.

    Another array in the place of one is refused: it would change nothing without a word.
    """

    __slots__ = ("_arrays",)

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def items(self) -> ItemsView[str, Array]:
        return self._arrays.items()

    def __setitem__(self, name: str, value: Array) -> None:
        if self._arrays.get(name) is not value:
            raise InputError(
                f"expected values written into the array {name}, got another array in its place; write "
                f"[{name!r}][...] ="
            )


def update(
    optimizer: Optimizer, params: Mapping[str, Array], grads: Mapping[str, Array], state: State, lr: float
) -> None:
    """One step of `optimizer` with the rate `lr`, in place in `params` and `state`.

    Raises InputError if names differ between `params`, `grads` and `state`, ShapeError if shapes do, DtypeError if
    dtypes do: nothing has changed then. Raises PluginError, with the author's line, where the optimiser fails.
    """
    _check_match(params, grads, "gradients")
    what = f"the state of {optimizer.name}"
    if tuple(state["slots"]) != optimizer.slots():
        raise InputError(f"update: expected {what} with the slots {optimizer.slots()}, got {tuple(state['slots'])}")
    for slot in state["slots"].values():
        _check_match(params, slot, what)
    state["step"] += 1
    slots = state["slots"]
    views: list[Mapping[str, Array]] = [params, grads, *slots.values()]
    if optimizer.elementwise and all(isinstance(arrays, Block) for arrays in views):
        views = [_as_one(arrays) for arrays in views]
    given, pulled, *carried = (_Written(arrays) for arrays in views)
    by_author(
        f"optimiser {optimizer.name}, update",
        optimizer.update,
        given,
        pulled,
        MappingProxyType(dict(zip(slots, carried, strict=True))),
        state["step"],
        float(lr),  # a NumPy scalar would promote float32 arrays to float64
        of=type(optimizer),
    )


def pieces(params: Mapping[str, Array], *others: Mapping[str, Array]) -> Iterator[tuple[Array, ...]]:
    """Of each parameter and of what belongs to it (gradient, slots): views of a size that a cache holds.

    For rules that are element-wise: a dozen passes over such a piece cost little more than one.
    """
    for name, param in params.items():
        yield from _blocks(param, *(arrays[name] for arrays in others))


def clip_value(grads: Mapping[str, Array], limit: float) -> None:
    """Clamp every gradient element to [-limit, limit], in place; `limit` 0 leaves all as it is. NaN stays NaN.

    Raises InputError for a negative or NaN limit.
    """
    if not _limit(limit):
        return
    for grad in _as_one(grads).values():
        if isinstance(grad, np.ndarray):
            np.clip(grad, -limit, limit, out=grad)  # one pass
        else:
            np.minimum(grad, limit, out=grad)
            np.maximum(grad, -limit, out=grad)


def global_norm(grads: Mapping[str, Array]) -> float:
    """The Euclidean norm of all gradients together, summed in float64 whatever their dtype.

    NaN where a gradient is NaN; infinite where one is, or where the norm itself leaves float64.
    """
    total = _square_sum(grads)
    if math.isnan(total) or SMALLEST_SQUARE < total < math.inf:
        return math.sqrt(total)
    # the squares leave float64 on one side or the other before the values do
    largest = max((float(np.max(np.abs(grad)).item()) for grad in _as_one(grads).values() if grad.size), default=0.0)
    if largest == 0.0 or math.isinf(largest):
        return largest
    with np.errstate(under="ignore"):
        return largest * math.sqrt(_square_sum({name: np.divide(g, largest) for name, g in _as_one(grads).items()}))


def _square_sum(grads: Mapping[str, Array]) -> float:
    total = 0.0
    elsewhere: Array = None
    for grad in _as_one(grads).values():
        if not isinstance(grad, np.ndarray):
            with np.errstate(over="ignore"):
                square = np.square(grad, dtype=np.float64).sum()
            elsewhere = square if elsewhere is None else elsewhere + square  # stays on the device: one wait at the end
            continue
        total += square_sum(grad)
    if elsewhere is not None:
        total += float(elsewhere.item())
    return total


def clip(grads: Mapping[str, Array], config: OptimConfig) -> tuple[float, float]:
    """Clamp the elements, then scale the norm, in place, as `config` says; the norms before and after both.

    Where the norm before is not finite the gradients stay as they are: a clamp would turn an infinity into a number,
    and nobody would see it any more.
    """
    norm = clipped = global_norm(grads)
    if not math.isfinite(norm):
        return norm, norm
    if 0 < config.clip_value < norm:  # no element is larger than the norm
        clip_value(grads, config.clip_value)
        clipped = global_norm(grads)
    if 0 < config.clip_norm < clipped:
        _scale(grads, config.clip_norm / clipped)
        clipped = config.clip_norm
    return norm, clipped


def clip_norm(grads: Mapping[str, Array], limit: float) -> float:
    """Scale all gradients by limit / norm, in place, if their global norm exceeds `limit`; 0 turns it off.

    Returns the norm before clipping (Pascanu et al. 2013, arXiv:1211.5063v2, alg. 1). Where it is not finite the
    gradients stay as they are: the caller sees the norm and decides, and no NaN spreads.
    Raises InputError for a negative or NaN limit.
    """
    active = _limit(limit)
    norm = global_norm(grads)
    if active and math.isfinite(norm) and norm > limit:
        _scale(grads, float(limit) / norm)
    return norm


def _scale(grads: Mapping[str, Array], factor: float) -> None:
    for grad in _as_one(grads).values():
        np.multiply(grad, factor, out=grad)


def overflowing(slots: Mapping[str, Mapping[str, Array]]) -> tuple[str, str] | None:
    """The first slot, and the parameter it belongs to, that holds a NaN or an infinity; None where all are finite.

    The rules that divide by a slot would never move that parameter again, and raise nothing.
    """
    for slot, arrays in slots.items():
        if not math.isfinite(global_norm(arrays)):
            return slot, unsound(arrays)
    return None


def unsound(arrays: Mapping[str, Array]) -> str:
    """The name of the first array that holds a NaN or an infinity; '' where each is finite."""
    return next((name for name, array in arrays.items() if not math.isfinite(global_norm({name: array}))), "")


@final
@dataclass(frozen=True)
class Decay:
    """What `parse_decay` reads; `every` counts epochs, or validations for plateau."""

    kind: Literal["none", "exp", "step", "cosine", "plateau"]
    factor: float = 1.0
    every: int = 0
    first: int = 0
    """after how many epochs step begins; `every`, where nothing else is said"""


def parse_decay(text: str) -> Decay:
    """The learning-rate decay ``none``, ``cosine``, ``exp:F@E``, ``step:F@E``, ``step:F@A+E`` or ``plateau:F@P``.

    See `learning_rate`. Raises InputError for any other text, a factor that is not above 0 (or for plateau not below
    1), or an A, E or P that is not a whole number from 1.
    """
    kind, _, rest = text.strip().partition(":")
    if text.strip() in ("none", "cosine"):
        return Decay("none" if kind == "none" else "cosine")
    factor_text, _, when = rest.partition("@")
    first_text, plus, every_text = when.partition("+")
    try:
        factor, first, every = float(factor_text), int(first_text), int(every_text if plus else first_text)
    except ValueError:
        factor, first, every = math.nan, 0, 0
    known = kind == "step" or (kind in ("exp", "plateau") and not plus)
    most = 1.0 if kind == "plateau" else math.inf  # a plateau is met with a lower rate
    if not known or not (0 < factor < most) or min(first, every) < 1:
        raise InputError(
            f"learning-rate decay: expected none, cosine, exp:FACTOR@EPOCH, step:FACTOR@EPOCHS, "
            f"step:FACTOR@FIRST+EPOCHS or plateau:FACTOR@VALIDATIONS with FACTOR above 0 (of plateau, below 1) and "
            f"a whole number from 1 behind @, got {text!r}"
        )
    return Decay("exp" if kind == "exp" else "step" if kind == "step" else "plateau", factor, every, first)


def learning_rate(config: OptimConfig, epoch: float, *, step: int = 0, total: int = 1, drops: int = 0) -> float:
    """The rate for an update made when `epoch` passes over the training part lie behind it: `step` of `total` updates.

    ``none``: lr. ``exp:F@E`` (char-rnn): multiplied by F at the end of pass E and of every later one,
    lr * F**max(0, floor(epoch) - E + 1) from floor(epoch) >= E on. ``step:F@E``: lr * F**floor(epoch / E);
    ``step:F@A+E`` (torch-rnn): by F after pass A, and after every E passes from there on.
    ``cosine``: lr (1 + cos(pi s)) / 2, where s is the share of the updates behind the warm-up that are done (Loshchilov
    and Hutter 2017, arXiv:1608.03983v5, eq. 5). ``plateau:F@P``: lr * F**drops, a drop after every P validations
    without a better one. A warm-up of N updates multiplies all of it by (step + 1) / N while that is below 1.

    Raises InputError where `parse_decay` does.
    """
    decay = parse_decay(config.lr_decay)
    rate, passes = config.lr, max(0, math.floor(epoch))
    match decay.kind:
        case "exp":
            rate *= decay.factor ** max(0, passes - decay.every + 1)
        case "step":
            rate *= decay.factor ** max(0, (passes - decay.first) // decay.every + 1)
        case "plateau":
            rate *= decay.factor**drops
        case "cosine":
            done = max(0, step - config.warmup) / max(1, total - config.warmup)
            rate *= 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return rate * min(1.0, (step + 1) / config.warmup) if config.warmup else rate


def _adam(o: Any, p: Array, g: Array, m: Array, v: Array, step: int, lr: float) -> None:
    """One piece of Adam and AdamW; the equations stand there, here divided by the root of v's correction."""
    scratch = np.empty_like(p)  # on the host a block at most: the allocator hands the same one out again
    _average(m, g, o.beta1, scratch)
    _average_square(v, g, o.beta2, scratch)
    root = math.sqrt(1.0 - o.beta2**step)
    np.sqrt(v, out=scratch)
    np.add(scratch, o.eps * root, out=scratch)
    _descend(p, m, scratch, lr * root / (1.0 - o.beta1**step))


def _decayed(p: Array, g: Array, weight_decay: float) -> Array:
    """g + weight_decay p, the gradient of the loss with weight_decay / 2 ||p||^2 added, as in torch.optim."""
    if not weight_decay:
        return g
    total = np.empty_like(p)
    np.multiply(p, weight_decay, out=total)
    np.add(total, g, out=total)
    return total


def _descend(p: Array, g: Array, divisor: Array, rate: float) -> None:
    """p -= rate g / divisor, computed in the memory of `divisor`."""
    np.divide(g, divisor, out=divisor)
    np.multiply(divisor, rate, out=divisor)
    np.subtract(p, divisor, out=p)


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


def _zeros(params: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.zeros_like(param) for name, param in params.items()}


def _as_one(arrays: Mapping[str, Array]) -> Mapping[str, Array]:
    """The arrays of a `Block` as one vector; any others as they are."""
    return {"all": arrays.flat} if isinstance(arrays, Block) else arrays


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
