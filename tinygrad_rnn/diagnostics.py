"""Gradient norms per timestep: how much of the error at one step reaches the states before it.

Everything here returns plain data and prints nothing; `plots` and the command line draw.

The trap: with a loss at every step, as a character model has, every state gets a gradient from the loss right above
it, so the norms of the training loss look healthy even when nothing flows through time. Judge by the loss at the
LAST step, whose gradient has to travel; the training loss is the second, labelled series.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

from tinygrad_rnn import backend, plugins
from tinygrad_rnn.compile.ends import cross_entropy
from tinygrad_rnn.compile.program import StateSequence
from tinygrad_rnn.engine import no_grad
from tinygrad_rnn.errors import InputError, PluginError, ShapeError, nearest
from tinygrad_rnn.model import Forward, Model, detach
from tinygrad_rnn.options import parse_options
from tinygrad_rnn.plugins import DIAGNOSTICS, by_author, check_function
from tinygrad_rnn.restore import LoadedModel
from tinygrad_rnn.sequence import LayerState
from tinygrad_rnn.tensor import Tensor, grad

Verdict = Literal["vanishing", "exploding", "healthy"]
Array = np.ndarray[Any, Any]

SLOPE_TOLERANCE = 0.01
"""Nats per step: a gradient that changes by at most 1 % per step going back is healthy."""

HORIZON_EPS = 1e-3
"""A gradient below this share of its value at the loss is lost; one above the inverse of it has exploded."""

TARGETS = ("states", "inputs", "params")

_EVERY_STEP = (
    "every step has a loss of its own, which holds this curve up even when the network vanishes: "
    "judge by the loss at the last step"
)


@dataclass(frozen=True)
class GradNormSeries:
    """||dL/ds_t|| of one state `state` ("h", "c", ...; "x" is the first layer's input) of one layer, for one loss.

    `norm` has T entries, earliest timestep first, in nats per unit of the state (Frobenius norm over batch and units).
    `slope` is in nats per step BACK in time, `horizon` in steps back. `at` is the timestep (0-based) from which both
    are counted: that of the loss, the last one for "last" and "train". See `describe`.
    """

    loss: str
    layer: int
    state: str
    norm: tuple[float, ...]
    slope: float
    horizon: int | None
    verdict: Verdict
    reason: str
    at: int
    numbers: Mapping[str, float | int | None] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The series as JSON values. A norm that is NaN or infinite has no form in JSON and becomes None."""
        return {
            "loss": self.loss,
            "layer": self.layer,
            "state": self.state,
            "norm": [_json(n) for n in self.norm],
            "slope": self.slope,
            "horizon": self.horizon,
            "verdict": self.verdict,
            "reason": self.reason,
            "at": self.at,
            "numbers": {name: _json(value) for name, value in self.numbers.items()},
        }


@dataclass(frozen=True)
class GradNormReport:
    """The gradient norms of one model over T = `steps` timesteps.

    `params` holds the norm of the gradient of the training loss per parameter, where it was asked for.
    """

    cell: str
    layers: int
    hidden: int
    steps: int
    series: tuple[GradNormSeries, ...]
    params: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object that `diagnose gradnorm --json` prints."""
        return {
            "cell": self.cell,
            "layers": self.layers,
            "hidden": self.hidden,
            "steps": self.steps,
            "series": [series.to_json() for series in self.series],
            "params": {name: _json(norm) for name, norm in self.params.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GradNormReport:
        """The inverse of `to_json`, from parsed JSON; a norm of None is NaN. Raises InputError for anything else."""
        try:
            series = tuple(
                GradNormSeries(**{**entry, "norm": tuple(_number_from_json(n) for n in entry["norm"])})
                for entry in value["series"]
            )
            params = {name: _number_from_json(norm) for name, norm in value.get("params", {}).items()}
            return cls(value["cell"], value["layers"], value["hidden"], value["steps"], series, params)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                "gradient norms: expected the object that diagnose gradnorm --json prints, got something "
                f"else ({type(error).__name__}: {error})"
            ) from error

    def select(
        self, *, loss: str | None = None, layer: int | None = None, state: str | None = None
    ) -> tuple[GradNormSeries, ...]:
        """The series of that loss, layer and state; None means any."""
        return tuple(
            series
            for series in self.series
            if loss in (None, series.loss) and layer in (None, series.layer) and state in (None, series.state)
        )

    def topmost(self, series: GradNormSeries) -> bool:
        """Whether no layer above has that state: the one to show beside other models. The inputs have layer 0 alone."""
        return all(other.layer <= series.layer for other in self.select(state=series.state))


def _json(number: float | int | None) -> float | int | None:
    return number if number is None or math.isfinite(number) else None


def _number_from_json(number: float | None) -> float:
    return math.nan if number is None else float(number)


# ------------------------------------------------------------------------------------------ judgement


def describe(
    norm: Sequence[float], horizon_eps: float = HORIZON_EPS, *, every_step: bool = False
) -> tuple[float, int | None, Verdict, str]:
    """(slope, horizon, verdict, reason) of gradient norms, earliest timestep first, the loss at the last of them.

    slope: nats per step back in time, least squares of log norm against the lag T-1-t over the steps whose norm is
    finite and positive; 0.0 with fewer than two of these. For a linear RNN whose recurrent matrix is g times
    orthogonal it is ln g exactly.
    horizon: how many steps back the norm stays above `horizon_eps` times its value at the last step (or, where that is
    0, at the last step with a gradient); None when it never falls below.

    verdict, the first that holds:
    exploding  a norm is NaN or infinite
    vanishing  no gradient at all (exactly 0: underflow, or no path) at the first timestep
    vanishing  slope < -0.01 nats per step
    exploding  slope > 0.01, and the first norm above the last one
    vanishing  the horizon is reached: over a long way even a small slope loses everything
    exploding  the first norm is above 1/horizon_eps times the last one, likewise
    healthy    otherwise, and for a single step

    With `every_step` (the training loss: one loss per step) a sum of T-t gradients reaches step t, so the norm may grow
    while each of them fades. Then only a norm that grows faster than that number of them is exploding, and only a
    reached horizon vanishing: seldom, so "healthy" says little.

    Raises InputError for no norm at all, a negative one, or a `horizon_eps` outside (0, 1).
    """
    return _judge(_checked(norm, horizon_eps), horizon_eps, every_step)[:4]


def _checked(norm: Sequence[float], horizon_eps: float) -> Array:
    if not 0.0 < horizon_eps < 1.0:
        raise InputError(f"--horizon-eps: expected a share between 0 and 1, got {horizon_eps}")
    values = np.asarray(norm, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise InputError(f"gradient norms: expected one number per timestep, got shape {values.shape}")
    if bool((values < 0).any()):
        raise InputError(f"gradient norms: expected numbers of at least 0, got {float(np.nanmin(values))}")
    return values


def _judge(
    norm: Array, horizon_eps: float, every_step: bool, tiny: float = 0.0
) -> tuple[float, int | None, Verdict, str, dict[str, float | int | None]]:
    """What `describe` gives, and the numbers behind it by name; no slope is fitted to norms below `tiny`."""
    back = norm[::-1]  # back[n] is the norm n steps back from the loss
    usable = np.isfinite(back) & (back > 0) & (back >= tiny)
    slope = _slope(back, usable)
    start = int(np.argmax(back != 0))  # 0 unless the state has no path to the loss at its own step
    reference = float(back[start])
    horizon, ratio = None, None
    if reference == 0.0:
        horizon = 0
    elif math.isfinite(reference):
        with np.errstate(all="ignore"):
            below = np.flatnonzero(back[start:] / reference < horizon_eps)
            ratio = float(back[-1] / reference)
        horizon = start + int(below[0]) - 1 if below.size else None
    numbers: dict[str, float | int | None] = {
        "horizon_eps": horizon_eps,
        "slope_tolerance": SLOPE_TOLERANCE,
        "first": float(back[-1]),
        "last": float(back[0]),
        "first_over_last": ratio,
        "fitted_steps": int(np.count_nonzero(usable)),
        "zero_steps": int(np.count_nonzero(back == 0)),
        "nonfinite_steps": int(np.count_nonzero(~np.isfinite(back))),
    }
    grown = (ratio or 0.0) > 1.0 / horizon_eps
    verdict: Verdict = "healthy"
    if numbers["nonfinite_steps"]:
        verdict = "exploding"
    elif every_step:
        each = _slope(back / np.arange(1, len(back) + 1), usable)
        if horizon is not None:
            verdict = "vanishing"
        elif each > SLOPE_TOLERANCE or grown:
            verdict = "exploding"
    elif back[-1] == 0 or slope < -SLOPE_TOLERANCE:
        verdict = "vanishing"
    elif slope > SLOPE_TOLERANCE and (ratio or 0.0) > 1.0:  # a climb that ends below its start has exploded nowhere
        verdict = "exploding"
    elif horizon is not None:
        verdict = "vanishing"
    elif grown:
        verdict = "exploding"
    reason = f"{verdict}: {_reason(back, slope, horizon, ratio, verdict, horizon_eps)}"
    if every_step and verdict == "healthy":
        reason += f". But {_EVERY_STEP}"
    return slope, horizon, verdict, reason, numbers


def _reason(
    back: Array, slope: float, horizon: int | None, ratio: float | None, verdict: Verdict, horizon_eps: float
) -> str:
    """The verdict in plain words, without its name."""
    T = len(back)
    wild = np.flatnonzero(~np.isfinite(back))
    if wild.size:
        return (
            f"the gradient is not a finite number at {wild.size} of {_steps(T)}, the last of them timestep "
            f"{T - 1 - wild[0]}; {_AGAINST_EXPLODING}"
        )
    if not back.any():
        return "no gradient at all reaches this state from the loss"
    if T == 1:
        return "a single step, so there is no way back to judge; use more steps"
    if not back[1:].any():
        return (
            "nothing of the gradient reaches the step before; where no step reads this state, as with an output beside "
            "a memory, judge by the others"
        )
    told = _pace(slope)
    if verdict == "healthy":
        return f"{told}; after {_steps(T - 1)} it is {_number(ratio)} times its last value"
    if verdict == "exploding":
        return f"{told}; after {_steps(T - 1)} it is {_number(ratio)} times its last value; {_AGAINST_EXPLODING}"
    if horizon is not None:
        told += f"; less than {horizon_eps:g} of it is left after {horizon + 1} of {_steps(T - 1)}"
    else:
        told += f"; {_number(ratio)} of it is left after {_steps(T - 1)}"
    if back[-1] == 0:
        told += f", and nothing reaches the first {_steps(T - 1 - int(np.flatnonzero(back)[-1]))}"
    return f"{told}; {_AGAINST_VANISHING}"


_AGAINST_VANISHING = (
    "an orthogonal recurrent matrix, or gates that start by keeping the state (lstm: a larger forget bias), may help"
)
_AGAINST_EXPLODING = "clipping the gradient norm, a smaller recurrent matrix, or a lower learning rate may help"


def _slope(back: Array, usable: Array) -> float:
    """Least squares of ln back[n] against n over the `usable` n; 0.0 with fewer than two."""
    lag = np.flatnonzero(usable).astype(np.float64)
    if lag.size < 2:
        return 0.0
    level = np.log(back[usable])
    lag -= lag.mean()
    return float(lag @ (level - level.mean()) / (lag @ lag))


def _pace(slope: float) -> str:
    """The slope in words."""
    if abs(slope) < 5e-4:
        return "the gradient keeps its size going back"
    if abs(slope) <= SLOPE_TOLERANCE:
        return f"the gradient changes by {100 * abs(math.expm1(slope)):.1f} % per step going back"
    steps = math.log(2) / abs(slope)
    every = "every step" if f"{steps:.3g}" == "1" else f"every {steps:.3g} steps"
    return f"the gradient {'halves' if slope < 0 else 'doubles'} {every} going back"


def _number(value: float | None) -> str:
    return "an unknown share" if value is None else f"{value:.3g}"


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


# ---------------------------------------------------------------------------------------- measurement


def gradnorm(
    model: Model,
    params: Mapping[str, Tensor],
    x: Any,
    y: Any,
    *,
    state: Sequence[LayerState] | None = None,
    losses: Sequence[str] = ("last", "train"),
    horizon_eps: float = HORIZON_EPS,
    wrt: Sequence[str] = ("states",),
) -> GradNormReport:
    """Gradient norms per timestep over one batch: symbols x and targets y (T, B), integers in [0, V).

    `losses` are cross-entropies in nats per symbol: "last" (the last timestep, mean over the batch), "train" (mean over
    every timestep) and "step:K" (timestep K alone, 0 <= K < T; slope and horizon count back from K). `wrt` names what
    the gradient is taken with respect to: "states" (every state of every layer), "inputs" (the first layer's input, as
    a series of layer 0 with state "x"), "params" (the total gradient of the training loss per parameter).
    The model starts from `state` (its start values when None) and runs without dropout. One forward pass, and one
    backward pass per loss for all states at once.

    Raises InputError for an unknown loss or target, ShapeError for x and y that do not fit.
    """
    return gradnorm_over(model, params, [(x, y)], state=state, losses=losses, horizon_eps=horizon_eps, wrt=wrt)


@np.errstate(all="ignore")  # a network may well explode here: NaN and infinity are answers
def gradnorm_over(
    model: Model,
    params: Mapping[str, Tensor],
    batches: Iterable[tuple[Any, Any]],
    *,
    state: Sequence[LayerState] | None = None,
    carry: bool = False,
    losses: Sequence[str] = ("last", "train"),
    horizon_eps: float = HORIZON_EPS,
    wrt: Sequence[str] = ("states",),
) -> GradNormReport:
    """`gradnorm` over several batches (x, y) of one length T: every norm is the root mean square over the batches.

    Each batch starts from `state`, or with `carry` from where the one before ended, as in training.
    Raises InputError for no batch, and whatever `gradnorm` raises.
    """
    losses, wrt = _unique(losses), _unique(wrt)
    _check_wrt(wrt)
    _checked([1.0], horizon_eps)
    measured: list[dict[_Key, Array]] = []
    totals: list[dict[str, Array]] = []
    T = 0
    for x, y in batches:
        if len(x.shape) != 2 or tuple(x.shape) != tuple(y.shape):
            raise ShapeError(
                f"gradnorm: expected symbols and targets of one shape (T, B), got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        if measured and x.shape[0] != T:
            raise ShapeError(f"gradnorm: expected every batch to have {T} steps, got one of {x.shape[0]}")
        T = int(x.shape[0])
        steps = {loss: loss_step(loss, T) for loss in losses}
        forward = model.forward(params, x, state, trace_inputs="inputs" in wrt)
        norms: dict[_Key, Array] = {}
        total: dict[str, Array] = {}
        trained = {name: p for name, p in params.items() if p.requires_grad} if "params" in wrt else {}
        for loss in losses:
            own = trained if loss == "train" else {}
            found, more = _norms(forward, _loss(forward, y, loss, steps[loss]), loss, wrt, own)
            norms.update(found)
            total.update(more)
        if trained and "train" not in losses:
            total = _norms(forward, _loss(forward, y, "train", T - 1), "train", (), trained)[1]
        measured.append(norms)
        totals.append(total)
        if carry:
            state = detach(forward.state)
    if not measured:
        raise InputError("gradnorm: expected at least one batch, got none; the text is shorter than one batch")
    mean = {key: _root_mean_square([norms[key] for norms in measured]) for key in measured[0]}
    means = {name: float(_root_mean_square([total[name] for total in totals])) for name in totals[0]}
    tiny = _tiny(forward)
    series = tuple(_series(key, norm, steps[key[0]], horizon_eps, tiny) for key, norm in mean.items())
    return GradNormReport(model.cells[0].name, len(model.cells), model.config.hidden, T, series, means)


def watch_gradients(
    forward: Forward, loss: Any, y: Any, *, cell: str = "", horizon_eps: float = HORIZON_EPS
) -> GradNormReport:
    """The report for one training step: "last" and "train", from its forward pass, its loss and its targets y (T, B).

    Costs two more backward passes that skip every parameter, so about two thirds of a step's backward each. The "train"
    series has the scale of `loss` as it is given (a loss summed over steps gives T times the norm of its mean). Call it
    before the parameters are updated in place: the tape reads them. `cell` is the name to put into the report.
    """
    T = int(forward.logits.shape[0])
    norms: dict[_Key, Array] = {}
    for name, value in (("last", _loss(forward, y, "last", -1)), ("train", loss)):
        norms.update(_norms(forward, value, name, ("states",), {})[0])
    series = tuple(_series(key, norm, T - 1, horizon_eps, _tiny(forward)) for key, norm in norms.items())
    return GradNormReport(cell, len(forward.layers), int(forward.layers[0].outputs.shape[-1]), T, series)


def loss_step(loss: str, T: int) -> int:
    """The timestep (0-based) from which gradients of `loss` flow back: K of "step:K", T-1 of "last" and "train".

    Raises InputError for any other text, and for a K outside [0, T).
    """
    if loss in ("last", "train"):
        return T - 1
    kind, _, number = loss.partition(":")
    if kind != "step":
        raise InputError(f"--loss {loss!r}: expected last, train or step:K{nearest(loss, ('last', 'train', 'step:K'))}")
    if not (number.isascii() and number.isdigit()) or int(number) >= T:
        raise InputError(f"--loss {loss!r}: expected step:K with a whole K from 0 to {T - 1}, for {_steps(T)}")
    return int(number)


_Key = tuple[str, int, str]  # loss, layer, state


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _check_wrt(wrt: Sequence[str]) -> None:
    for name in wrt:
        if name not in TARGETS:
            raise InputError(f"--wrt {name!r}: expected states, inputs or params{nearest(name, TARGETS)}")


def _loss(forward: Forward, y: Any, loss: str, at: int) -> Any:
    if loss == "train":
        return cross_entropy(forward.logits, y)
    return cross_entropy(forward.logits[at], y[at])


def _norms(
    forward: Forward, loss: Any, name: str, wrt: Sequence[str], trained: Mapping[str, Tensor]
) -> tuple[dict[_Key, Array], dict[str, Array]]:
    """Norms (T,) of the gradient of `loss` by loss name, layer and state; and of the parameters in `trained`.

    One backward pass. A state that no parameter reaches (a step counter, say) has no gradient and no series.
    """
    targets: dict[_Key, list[Any]] = {}  # one tensor of all timesteps where a scan was compiled, else T of them
    joint = set()
    if "states" in wrt:
        for i, layer in enumerate(forward.layers):
            for state, values in layer.states.items():
                key = (name, i, state)
                tensors = [values.whole()] if isinstance(values, StateSequence) else list(values)
                if any(value.requires_grad for value in tensors):
                    targets[key] = tensors
                    if isinstance(values, StateSequence):
                        joint.add(key)
    flat = [value for values in targets.values() for value in values if value.requires_grad]
    inputs = [forward.inputs] if "inputs" in wrt else []
    found = grad(loss, [*flat, *inputs, *trained.values()], unused="zeros")
    with no_grad():
        gradients = iter(found[: len(flat)])
        norms = {}
        for key, values in targets.items():
            own = [next(gradients).data if value.requires_grad else np.zeros_like(value.data) for value in values]
            norms[key] = backend.to_host(_frobenius(own[0] if key in joint else np.stack(own)))
        if inputs:
            norms[name, 0, "x"] = backend.to_host(_frobenius(found[len(flat)].data))
        totals = {
            key: backend.to_host(_frobenius(g.data[None]))[0]
            for key, g in zip(trained, found[len(flat) + len(inputs) :], strict=True)
        }
    return norms, totals


def _frobenius(g: Any) -> Any:
    """The norm over all but the first axis of `g`, float64, on the device of `g`.

    Scaled by the largest element before squaring: gradients go down to 1e-300 here, and their squares would be 0.
    """
    wide = np.abs(g.reshape(g.shape[0], -1).astype(np.float64))
    with np.errstate(all="ignore"):  # NaN and infinity are answers here
        largest = np.max(wide, axis=1)
        scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
        return np.sqrt(np.sum((wide / scale[:, None]) ** 2, axis=1)) * scale


def _root_mean_square(values: Sequence[Array]) -> Any:
    """Over a list of arrays of one shape; hypot neither overflows nor underflows."""
    return np.hypot.reduce(np.stack([np.asarray(value) for value in values]), axis=0) / math.sqrt(len(values))


def _tiny(forward: Forward) -> float:
    """The smallest number of the gradients' type with all its digits.

    Below it rounding takes over: half of the least number rounds to itself, so that a fading float32 gradient may stay
    at 1e-45 for a thousand steps.
    """
    return float(np.finfo(forward.logits.dtype).tiny)


def _series(key: _Key, norm: Array, at: int, horizon_eps: float, tiny: float) -> GradNormSeries:
    loss, layer, state = key
    # behind the step of the loss every gradient is exactly 0, and no part of the way back
    slope, horizon, verdict, reason, numbers = _judge(norm[: at + 1], horizon_eps, loss == "train", tiny)
    return GradNormSeries(loss, layer, state, tuple(norm.tolist()), slope, horizon, verdict, reason, at, numbers)


# ------------------------------------------------------------------------------------- diagnostics of plugins


def check_diagnostic(value: Any) -> None:
    """Raise PluginError when `value` is no documented function (loaded, symbols, rng, *, option: type = default)."""
    check_function(value, "diagnostic", ("loaded", "symbols", "rng"))
    where = f"diagnostic {plugins.name_of(value)!r}"
    for parameter in _options(value):
        if parameter.annotation is parameter.empty or parameter.default is parameter.empty:
            raise PluginError(f"{where}: expected a type and a default for the option {parameter.name!r}")


F = TypeVar("F", bound=Callable[..., Any])


def register_diagnostic(function: F) -> F:
    """Decorator: make a diagnostic known under the function's name (with hyphens), in this process.

    Raises PluginError when it breaks the contract (see `run_diagnostic`) or the name belongs to another one.
    """
    return plugins.register(DIAGNOSTICS, function)


def run_diagnostic(
    name: str,
    loaded: LoadedModel,
    symbols: Array,
    rng: np.random.Generator,
    options: Mapping[str, Any] | None = None,
    *,
    third_party: bool = True,
) -> dict[str, Any]:
    """What the diagnostic `name` of a plugin finds out: JSON values by name.

    It is a function of the model, the numbers (N,) of the symbols of a text, and a source of random numbers; its
    options are keyword-only, with types and defaults. Arrays that it returns become lists.
    Raises InputError for an unknown name or option, PluginError, with the author's line, where it fails.
    """
    function = plugins.load(DIAGNOSTICS, name, third_party=third_party).value
    what = f"diagnostic {name!r}"
    hints = typing.get_type_hints(function)
    fields = [(one.name, hints[one.name], field(default=one.default)) for one in _options(function)]
    parsed: Any = parse_options(dataclasses.make_dataclass("Options", fields, frozen=True), dict(options or {}), what)
    found = by_author(what, function, loaded, symbols, rng, **vars(parsed))
    if not isinstance(found, Mapping):
        raise PluginError(f"{what}: expected a mapping of names to JSON values, got {found!r:.60}")
    try:
        plain: dict[str, Any] = _plain(found, what)
    except RecursionError as error:
        raise PluginError(f"{what}: expected JSON values, got a value that contains itself") from error
    return plain


def _options(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return [one for one in inspect.signature(function).parameters.values() if one.kind is one.KEYWORD_ONLY]


def _plain(value: Any, what: str) -> Any:
    """`value` as JSON knows it; arrays as lists."""
    if isinstance(value, Tensor):
        value = value.data
    if isinstance(value, np.generic) or backend.is_array(value):
        value = backend.to_host(value).tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{what}, {key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{what}, {i}") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise PluginError(f"{what}: expected a JSON value (numbers, text, lists, dicts) or an array, got {value!r:.60}")
