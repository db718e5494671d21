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
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from tinygrad_rnn import backend, plugins
from tinygrad_rnn.cell import Cell, output_of, specification
from tinygrad_rnn.compile.ends import cross_entropy
from tinygrad_rnn.compile.program import StateSequence
from tinygrad_rnn.engine import no_grad
from tinygrad_rnn.errors import InputError, PluginError, ShapeError, nearest
from tinygrad_rnn.model import Forward, Model, build_model, detach
from tinygrad_rnn.options import parse_options
from tinygrad_rnn.plugins import DIAGNOSTICS, by_author, check_function
from tinygrad_rnn.registry import load_cell
from tinygrad_rnn.restore import LoadedModel
from tinygrad_rnn.sequence import LayerState
from tinygrad_rnn.tensor import Tensor, grad
from tinygrad_rnn.wrap import Wrapper

Verdict = Literal["vanishing", "weak", "healthy", "exploding"]
Array = np.ndarray[Any, Any]

VANISHING, WEAK, EXPLODING = 1e-3, 0.1, 10.0
"""Shares of the gradient that separate the grades; see `grade`."""

HORIZON_EPS = 1e-3
"""The horizon of a curve is where it falls below this share of its value at the loss."""

TARGETS = ("states", "inputs", "params")

_EVERY_STEP = (
    "every step has a loss of its own, which holds this curve up even when the network vanishes: "
    "judge by the loss at the last step"
)


@dataclass(frozen=True)
class GradNormSeries:
    """||dL/ds_t|| of one state `state` ("h", "c", ...; "x" is the first layer's input) of one layer, for one loss.

    `norm` has T entries, earliest timestep first, in nats per unit of the state (Frobenius norm over batch and units).
    `slope`, `horizon`, `share`, `lag`, `verdict`, `reason` and `numbers` are those of `describe`, counted from timestep
    `at` (0-based): that of the loss, the last one for "last" and "train".
    `by` is the state whose curve the verdict goes by: the state itself, or the memory beside it where this is an output
    that the memory outlasts (c for the h of an LSTM). `rnn_share` is the share that a plain rnn of the same size keeps
    over the same lag, where it was measured, and `rnn_share_below` a bound on it where that is too small for its type
    (`rnn_share` is 0 then); see `beside_rnn`.
    """

    loss: str
    layer: int
    state: str
    norm: tuple[float, ...]
    slope: float
    horizon: int | None
    share: float | None
    lag: int
    verdict: Verdict
    reason: str
    numbers: Mapping[str, float | int | None]
    at: int
    by: str
    rnn_share: float | None = None
    rnn_share_below: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The series as JSON values. A norm that is NaN or infinite has no form in JSON and becomes None."""
        return {
            "loss": self.loss,
            "layer": self.layer,
            "state": self.state,
            "norm": [_json(n) for n in self.norm],
            "slope": self.slope,
            "horizon": self.horizon,
            "share": self.share,
            "lag": self.lag,
            "verdict": self.verdict,
            "reason": self.reason,
            "at": self.at,
            "by": self.by,
            "rnn_share": self.rnn_share,
            "rnn_share_below": self.rnn_share_below,
            "numbers": {name: _json(value) for name, value in self.numbers.items()},
        }


@dataclass(frozen=True)
class GradNormReport:
    """The gradient norms of one model over T = `steps` timesteps.

    `params` holds the norm of the gradient of the training loss per parameter, where it was asked for. `advice` says
    what may help this model where its gradient vanishes or explodes.
    """

    cell: str
    layers: int
    hidden: int
    steps: int
    series: tuple[GradNormSeries, ...]
    params: Mapping[str, float] = field(default_factory=dict)
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """The object that `diagnose gradnorm --json` prints."""
        return {
            "cell": self.cell,
            "layers": self.layers,
            "hidden": self.hidden,
            "steps": self.steps,
            "series": [series.to_json() for series in self.series],
            "params": {name: _json(norm) for name, norm in self.params.items()},
            "advice": self.advice,
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
            sizes = (value["cell"], value["layers"], value["hidden"], value["steps"])
            return cls(*sizes, series, params, value.get("advice", ""))
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

    def judged(self, loss: str) -> tuple[GradNormSeries, ...]:
        """The series of that loss that verdicts go by: the memory of a layer, not the output beside it."""
        return tuple(series for series in self.select(loss=loss) if series.by == series.state)

    def topmost(self, series: GradNormSeries) -> bool:
        """Whether no layer above has that state: the one to show beside other models. The inputs have layer 0 alone."""
        return all(other.layer <= series.layer for other in self.select(state=series.state))


def _json(number: float | int | None) -> float | int | None:
    return number if number is None or math.isfinite(number) else None


def _number_from_json(number: float | None) -> float:
    return math.nan if number is None else float(number)


# ------------------------------------------------------------------------------------------ judgement


class Judgement(NamedTuple):
    """What `describe` finds out about one curve."""

    slope: float
    horizon: int | None
    share: float | None
    lag: int
    verdict: Verdict
    reason: str
    numbers: Mapping[str, float | int | None]


def number_text(value: float) -> str:
    """A share or ratio in two digits, as in 0.0023, 3.2e-14, 6.7 or 107: no exponent between 1e-4 and 1e5."""
    return f"{value:.0f}" if 99.5 <= value < 1e5 else f"{value:.2g}"


def share_text(series: GradNormSeries) -> str:
    """The share of a series in two digits; "<1e-37" where the norm is too small for its type, "-" where it has none."""
    return _share_text(series.share, series.numbers.get("share_below"))


def rnn_share_text(series: GradNormSeries) -> str:
    """The share that a plain rnn keeps beside a series, as `share_text` spells that of the series."""
    return _share_text(series.rnn_share, series.rnn_share_below)


def _share_text(share: float | None, below: float | None) -> str:
    if share is None:
        return "-"
    return number_text(share) if below is None else f"<{below:.0e}"


def grade(share: float) -> Verdict:
    """The grade of the share of the gradient that is left: below 1e-3 vanishing, below 0.1 weak, above 10 exploding,
    otherwise healthy. NaN is exploding."""
    if share < VANISHING:
        return "vanishing"
    if share < WEAK:
        return "weak"
    return "healthy" if share <= EXPLODING else "exploding"


def _grade(share: float, routes: int) -> Verdict:
    """The grade of a share that may be a sum over so many `routes`: more than their number explodes."""
    return "healthy" if EXPLODING < share <= routes else grade(share)


def describe(
    norm: Sequence[float],
    horizon_eps: float = HORIZON_EPS,
    *,
    lag: int | None = None,
    every_step: bool = False,
    above: int = 0,
    tiny: float = float(np.finfo(np.float64).tiny),
    band: tuple[float, float] | None = None,
) -> Judgement:
    """The judgement of gradient norms, earliest timestep first, the loss at the last of them.

    share: the norm `lag` steps back (by default as far as there are steps, T-1; at most that) over the norm at the
    loss, or, where that is 0, over the one of the last step with a gradient. None where it is not a finite number.
    verdict: `grade` of the share; exploding where any norm is NaN or infinite.
    slope: nats per step back in time, least squares of log norm against the lag T-1-t over the steps whose norm is
    finite and at least `tiny`, the least number with all its digits; 0.0 with fewer than two of these. For a linear
    RNN whose recurrent matrix is g times orthogonal it is ln g exactly. The reason says so where the line does not fit:
    where it misses the curve, or the share, by more than a factor of 2 and by more than a fifth of its own fall.
    horizon: how many steps back the norm stays above `horizon_eps` times its value at the loss; None when it never
    falls below.

    With `every_step` (the training loss: one loss per step) a sum of T-t gradients reaches step t, so the norm may grow
    while each of them fades: only a share above their number is exploding, and "healthy" says little. Likewise with
    `above` layers between this one and the loss, each of which may be crossed at any step: binomial(lag + above, above)
    routes lead here.
    `band` is the range (low, high) within which the share lies, where it was measured over several batches.

    Raises InputError for no norm at all, a negative one, a negative `lag`, or a `horizon_eps` outside (0, 1).
    """
    back = _checked(norm, horizon_eps)[::-1]  # back[n] is the norm n steps back from the loss
    if lag is not None and lag < 0:
        raise InputError(f"--lag {lag}: expected a number of steps back, at least 0")
    T = len(back)
    lag = T - 1 if lag is None else min(lag, T - 1)
    usable = np.isfinite(back) & (back > 0) & (back >= tiny)
    slope, spread = _line(back, usable)
    start = int(np.argmax(back != 0))  # 0 unless the state has no path to the loss at its own step
    with np.errstate(all="ignore"):
        shares = back / back[start] if back[start] else np.zeros(T)
    below = np.flatnonzero(shares[start:] < horizon_eps)
    horizon = start + int(below[0]) - 1 if below.size else None
    if not back.any():
        horizon = 0
    share = float(shares[max(lag, start)]) if back.any() else 0.0
    wild = int(np.count_nonzero(~np.isfinite(back)))
    routes = math.comb(lag + above + every_step, above + every_step)
    verdict: Verdict = "exploding" if wild else _grade(share, routes)
    share_norm = float(back[max(lag, start)])
    faint = _faint(back, start, tiny)
    numbers: dict[str, float | int | None] = {
        "horizon_eps": horizon_eps,
        "first": float(back[-1]),
        "last": float(back[0]),
        "fitted_steps": int(np.count_nonzero(usable)),
        "fit_spread": spread,
        "zero_steps": int(np.count_nonzero(back == 0)),
        "underflow_steps": len(faint),
        "share_below": float(tiny / back[start]) if faint.size and share_norm < tiny else None,
        "nonfinite_steps": wild,
    }
    if band is not None:
        numbers |= {"share_low": band[0], "share_high": band[1]}
    reason = f"{verdict}: {_reason(back, shares, lag, slope, horizon, verdict, routes, numbers, tiny)}"
    if above and verdict == "healthy" and share > EXPLODING:
        reason += f"; no explosion, but a sum: {routes} routes lead here through the layers above"
    if every_step and verdict == "healthy":
        reason += f". But {_EVERY_STEP}"
    return Judgement(slope, horizon, share if math.isfinite(share) else None, lag, verdict, reason, numbers)


def _checked(norm: Sequence[float], horizon_eps: float) -> Array:
    if not 0.0 < horizon_eps < 1.0:
        raise InputError(f"--horizon-eps: expected a share between 0 and 1, got {horizon_eps}")
    values = np.asarray(norm, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise InputError(f"gradient norms: expected one number per timestep, got shape {values.shape}")
    if bool((values < 0).any()):
        raise InputError(f"gradient norms: expected numbers of at least 0, got {float(np.nanmin(values))}")
    return values


def _faint(back: Array, start: int, tiny: float) -> Array:
    """The steps from `start` on whose norm has faded below `tiny`: rounding decides about it, or it has become 0.

    None where all of them are exactly 0 without having faded before: then a path is cut.
    """
    low = start + np.flatnonzero(back[start:] < tiny)
    if not low.size or (back[low] > 0).any():
        return low
    alive = back[start : int(low[0])]
    if not alive.size or not np.isfinite(alive[-2:]).all():
        return low[:0]
    following = float(alive[-1]) * min(1.0, float(alive[-1] / alive[max(len(alive) - 2, 0)]))
    return low if following < tiny else low[:0]


def _unread(back: Array) -> bool:
    """Whether the gradient is at the state's own step alone, or nowhere: in general, that no step reads it."""
    return len(back) > 1 and not back[1:].any()


def _reason(
    back: Array,
    shares: Array,
    lag: int,
    slope: float,
    horizon: int | None,
    verdict: Verdict,
    routes: int,
    numbers: Mapping[str, float | int | None],
    tiny: float,
) -> str:
    """The verdict in plain words, without its name."""
    T = len(back)
    wild = np.flatnonzero(~np.isfinite(back))
    if wild.size:
        return (
            f"the gradient is not a finite number at {wild.size} of {_steps(T)}, the last of them timestep "
            f"{T - 1 - wild[0]}"
        )
    if not back.any():
        return "no gradient at all reaches this state from the loss"
    if T == 1:
        return "a single step, so there is no way back to judge; use more steps"
    if _unread(back):
        return "no step reads this state, or only a weight of 0 does: it has a gradient at its own step alone"
    start = int(np.argmax(back != 0))
    left = float(shares[max(lag, start)])
    much = f"{left:.3g} times the gradient arrives" if left > 1 else f"{left:.3g} of the gradient is left"
    if f"{left:.3g}" == "1":
        much = "all of the gradient is left"
    if numbers["share_below"] is not None:
        much = f"less than {numbers['share_below']:.0e} of the gradient is left"
    told = f"{much} {_steps(lag)} back"
    low, high = numbers.get("share_low"), numbers.get("share_high")
    if low is not None and high is not None and numbers["share_below"] is None and high > 1.005 * low:
        told += f" ({low:.3g} to {high:.3g}"
        beyond = next((_grade(end, routes) for end in (low, high) if _grade(end, routes) != verdict), None)
        told += f", so it may be {beyond}: use more batches)" if beyond else ")"
    if _fits(left, lag, slope, float(numbers["fit_spread"] or 0.0)):
        told += f"; {_pace(slope)}"
    else:
        middle = max(2, lag // 2)
        stops = [n for n in dict.fromkeys((1, middle)) if n < lag]
        told += "; no single rate describes the curve: " + ", ".join(
            f"{shares[n]:.3g} after {_steps(n)}" for n in stops
        )
    if horizon is not None:
        told += f"; more than {numbers['horizon_eps']:g} of it is left for {_steps(horizon)}"
    peak = int(np.argmax(shares))
    if shares[peak] > max(EXPLODING, 1.01 * left) and verdict != "exploding":
        told += f"; on its way it grows to {shares[peak]:.3g} times, {_steps(peak)} back"
    if numbers["underflow_steps"]:
        first = _steps(int(numbers["underflow_steps"] or 0))
        kind, way = ("float64", "take fewer --steps") if tiny < 1e-300 else ("float32", "use --dtype float64")
        told += f"; its norm is too small for {kind} at the first {first} (underflow): {way}"
    elif back[-1] == 0:
        told += f"; exactly nothing reaches the first {_steps(T - 1 - int(np.flatnonzero(back)[-1]))}: the path is cut"
    return told


def _fits(share: float, lag: int, slope: float, spread: float) -> bool:
    """Whether the fitted line tells the curve: its spread and the share at `lag`, in nats."""
    missed = abs(math.log(share) - slope * lag) if share > 0 else 0.0
    return max(missed, spread) <= max(math.log(2), 0.2 * abs(slope) * lag)


def _line(back: Array, usable: Array) -> tuple[float, float]:
    """Least squares of ln back[n] against n over the `usable` n: its slope, and the root mean square of what it misses,
    both in nats; 0.0 with fewer than two."""
    lag = np.flatnonzero(usable).astype(np.float64)
    if lag.size < 2:
        return 0.0, 0.0
    level = np.log(back[usable])
    lag -= lag.mean()
    level -= level.mean()
    slope = float(lag @ level / (lag @ lag))
    return slope, float(np.sqrt(np.mean((level - slope * lag) ** 2)))


def _pace(slope: float) -> str:
    """The slope in words."""
    if abs(slope) < 5e-4:
        return "it keeps its size going back"
    if abs(slope) <= 0.01:
        return f"it {'loses' if slope < 0 else 'gains'} {100 * abs(math.expm1(slope)):.1f} % per step"
    steps = math.log(2) / abs(slope)
    every = "every step" if f"{steps:.3g}" == "1" else f"every {steps:.3g} steps"
    return f"it {'halves' if slope < 0 else 'doubles'} {every}"


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
    lag: int | None = None,
    wrt: Sequence[str] = ("states",),
) -> GradNormReport:
    """Gradient norms per timestep over one batch: symbols x and targets y (T, B), integers in [0, V).

    `losses` are cross-entropies in nats per symbol: "last" (the last timestep, mean over the batch), "train" (mean over
    every timestep) and "step:K" (timestep K alone, 0 <= K < T; slope and horizon count back from K). `lag` is how many
    steps back the share is taken that the verdict goes by, at most those that there are (the default). `wrt` names what
    the gradient is taken with respect to: "states" (every state of every layer), "inputs" (the first layer's input, as
    a series of layer 0 with state "x"), "params" (the total gradient of the training loss per parameter).
    The model starts from `state` (its start values when None) and runs without dropout. One forward pass, and one
    backward pass per loss for all states at once.

    Raises InputError for an unknown loss or target, ShapeError for x and y that do not fit.
    """
    return gradnorm_over(model, params, [(x, y)], state=state, losses=losses, horizon_eps=horizon_eps, lag=lag, wrt=wrt)


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
    lag: int | None = None,
    wrt: Sequence[str] = ("states",),
) -> GradNormReport:
    """`gradnorm` over several batches (x, y) of one length T: every norm is the root mean square over the batches.

    From two batches on, `numbers` has the range of the share ("share_low", "share_high"): two standard errors either
    way in its logarithm, by leaving out one batch at a time.
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
    means = {name: float(_root_mean_square([total[name] for total in totals])) for name in totals[0]}
    tiny, top = _tiny(forward), len(model.cells) - 1
    series = [
        _series(key, [norms[key] for norms in measured], top, steps[key[0]], horizon_eps, tiny, lag)
        for key in measured[0]
    ]
    return _report(model, T, series, means)


def watch_gradients(
    model: Model, forward: Forward, loss: Any, y: Any, *, horizon_eps: float = HORIZON_EPS
) -> GradNormReport:
    """The report for one training step: "last" and "train", from its forward pass, its loss and its targets y (T, B).

    Costs two more backward passes that skip every parameter, so about two thirds of a step's backward each. The "train"
    series has the scale of `loss` as it is given (a loss summed over steps gives T times the norm of its mean). Call it
    before the parameters are updated in place: the tape reads them.
    """
    T = int(forward.logits.shape[0])
    norms: dict[_Key, Array] = {}
    for name, value in (("last", _loss(forward, y, "last", -1)), ("train", loss)):
        norms.update(_norms(forward, value, name, ("states",), {})[0])
    tiny, top = _tiny(forward), len(model.cells) - 1
    return _report(model, T, [_series(key, [norm], top, T - 1, horizon_eps, tiny) for key, norm in norms.items()])


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


def _series(
    key: _Key, norms: Sequence[Array], top: int, at: int, horizon_eps: float, tiny: float, lag: int | None = None
) -> GradNormSeries:
    """The series `key` of a model whose top layer is `top`, from its norms in each batch."""
    loss, layer, state = key
    norm = _root_mean_square(norms)
    # behind the step of the loss every gradient is exactly 0, and no part of the way back
    found = describe(
        norm[: at + 1],
        horizon_eps,
        lag=lag,
        every_step=loss == "train",
        above=top - layer,
        tiny=tiny,
        band=_band([one[: at + 1] for one in norms], lag),
    )
    return GradNormSeries(loss, layer, state, tuple(norm.tolist()), *found, at=at, by=state)


def _band(norms: Sequence[Array], lag: int | None) -> tuple[float, float] | None:
    """The share of the root mean square of `norms`, less and plus two standard errors in its logarithm, by the
    jackknife; None for a single one, or where a share has no logarithm."""
    n = len(norms)
    if n < 2:
        return None
    shares = []
    for k in range(-1, n):
        back = _root_mean_square([norm for i, norm in enumerate(norms) if i != k])[::-1]
        start = int(np.argmax(back != 0))
        shares.append(float(back[max(len(back) - 1 if lag is None else min(lag, len(back) - 1), start)] / back[start]))
    if not all(0.0 < share < math.inf for share in shares):
        return None
    logs = np.log(shares)
    error = math.sqrt((n - 1) / n * float(np.sum((logs[1:] - logs[1:].mean()) ** 2)))
    return shares[0] * math.exp(-2 * error), shares[0] * math.exp(2 * error)


def _report(
    model: Model, T: int, series: Sequence[GradNormSeries], params: Mapping[str, float] | None = None
) -> GradNormReport:
    """The report: outputs are judged by the memory beside them, and the model has its advice."""
    outputs = _outputs(model.cells[0])
    judged = tuple(_judged(one, series, outputs) for one in series)
    return GradNormReport(
        model.cells[0].name,
        len(model.cells),
        model.config.hidden,
        T,
        judged,
        params or {},
        _advice(model, {one.verdict for one in judged if one.loss != "train"}),
    )


def _outputs(cell: Cell) -> list[str]:
    """The output of the cell and, inwards, of every cell that it wraps: the out of residual, then the h of an LSTM."""
    outputs = [output_of(cell)]
    while isinstance(cell, Wrapper):
        cell = cell.inner
        outputs.append(output_of(cell))
    return list(dict.fromkeys(outputs))


def _judged(one: GradNormSeries, series: Sequence[GradNormSeries], outputs: Sequence[str]) -> GradNormSeries:
    """`one`, judged by the memory beside it where that keeps more: what an output loses is no loss to the layer.

    Likewise a state that no step reads, whatever it is for.
    """
    is_output = one.state in outputs
    outer = outputs[: outputs.index(one.state)] if is_output else ()
    beside = [
        other
        for other in series
        if (other.loss, other.layer) == (one.loss, one.layer) and other.state not in (one.state, "x", *outer)
    ]
    unread = _unread(np.asarray(one.norm[: one.at + 1])[::-1])
    if one.verdict == "exploding" or not beside or not (is_output or unread):
        return one
    best = max(beside, key=lambda other: -1.0 if other.share is None else other.share)
    if best.verdict == "exploding" or best.share is None or best.share <= (one.share or 0.0):
        return one
    own = "no step reads it" if unread else f"{one.share:.3g} of its gradient is left {_steps(one.lag)} back"
    what = "the output beside the memory" if is_output else "beside"
    return dataclasses.replace(
        one, verdict=best.verdict, by=best.state, reason=f"{best.verdict}, as is {best.state}: {what}; {own}"
    )


def _advice(model: Model, verdicts: set[Verdict]) -> str:
    """What may help `model`, in one line: only what it does not have yet. Empty where all is healthy."""
    told = []
    if verdicts & {"vanishing", "weak"}:
        cell = model.cells[0]
        recurrent = [
            spec for spec in specification(cell)[1].values() if spec.role == "recurrent" and len(set(spec.shape)) == 1
        ]
        ways = []
        if any(len(spec.shape) == 2 and not str(spec.init).startswith("orthogonal") for spec in recurrent):
            ways.append("an orthogonal recurrent matrix")
        own = [field.metadata["keeps"] for field in dataclasses.fields(cell.options) if "keeps" in field.metadata]
        if hasattr(cell.options, "forget_bias"):
            own.append("a larger forget_bias")
        ways += own or ["gates that start by keeping the state (as lstm with forget_bias=3)"]
        told.append(f"to keep more of the gradient: {', or '.join(ways)}")
    if "exploding" in verdicts:
        told.append("against exploding: --clip-norm, a smaller recurrent matrix, or a lower learning rate")
    return "; ".join(told)


def rnn_like(model: Model) -> Model:
    """A plain rnn of the sizes of `model`, to compare with: its cell's own options and initialisers, no wrappers."""
    config = dataclasses.replace(model.config, cell="rnn", cell_options={}, wrap=(), init="cell", init_bias="cell")
    return build_model(config, model.V, load_cell("rnn"))


def beside_rnn(report: GradNormReport, rnn: GradNormReport) -> GradNormReport:
    """`report` with the share that `rnn`, a report over the same steps, keeps in each layer over the same lag."""

    def kept(one: GradNormSeries) -> tuple[float | None, float | None]:
        found = rnn.select(loss=one.loss, layer=one.layer, state="x" if one.state == "x" else "h")
        if not found:
            return None, None
        if found[0].lag == one.lag and (below := found[0].numbers.get("share_below")) is not None:
            return 0.0, float(below)  # an underflow: its norm there is rounding
        return describe(found[0].norm[: found[0].at + 1], lag=one.lag).share, None

    def beside(one: GradNormSeries) -> GradNormSeries:
        share, below = kept(one)
        return dataclasses.replace(one, rnn_share=share, rnn_share_below=below)

    return dataclasses.replace(report, series=tuple(map(beside, report.series)))


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
