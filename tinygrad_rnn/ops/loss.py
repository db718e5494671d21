"""Cross-entropy, fused: one pass over the logits forward, one backward."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from tinygrad_rnn import backend
from tinygrad_rnn.engine import Op, Variable, primitive
from tinygrad_rnn.errors import DtypeError, InputError, ShapeError
from tinygrad_rnn.ops.arguments import shape_of
from tinygrad_rnn.ops.elementwise import where
from tinygrad_rnn.ops.index import frozen
from tinygrad_rnn.ops.reduce import averaged, softmax, sum
from tinygrad_rnn.ops.shape import expand_dims


@primitive
def _minus_target(p: Any, *, targets: Any) -> Any:
    """p with 1 taken off at the target: the gradient of the cross-entropy with respect to the logits."""
    flat = p.reshape(-1).copy()  # put_along_axis came to CuPy with 14; one entry per row, so no index is there twice
    rows = backend.namespace(p).arange(targets.size, dtype=np.intp) * p.shape[-1]
    flat[rows + targets.reshape(-1)] -= 1.0
    return flat.reshape(p.shape)


_minus_target.vjp(lambda g, _y, _p, *, targets: g)


@primitive
def _cross_entropy(logits: Any, *, targets: Any) -> Any:
    short = logits - np.max(logits, axis=-1, keepdims=True)
    return np.log(np.sum(np.exp(short), axis=-1)) - np.take_along_axis(short, targets[..., None], axis=-1)[..., 0]


_cross_entropy.vjp(
    lambda g, _y, logits, *, targets: expand_dims(g, -1) * _minus_target(softmax(logits), targets=targets)
)


def cross_entropy(
    logits: Any,
    targets: Any,
    *,
    mask: Any = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    kernel: Op | None = None,
) -> Any:
    """-log softmax(logits)[target], in nats.

    logits (..., V) floating, targets (...) integers in [0, V), mask (...) boolean: False counts for nothing.
    ``mean`` divides by the number of targets that count. `kernel` is the op that computes the losses, None for NumPy's.
    Raises ShapeError, DtypeError, InputError.
    """
    shape_of(logits, "cross_entropy")
    if not isinstance(targets, Variable) and not backend.is_array(targets):
        raise DtypeError(f"cross_entropy: expected an array of targets, got {type(targets).__name__}")
    targets = frozen(backend.plain(targets, "cross_entropy"))
    backend.check_device("cross_entropy", logits.data if isinstance(logits, Variable) else logits, targets)
    if not logits.shape:
        raise ShapeError("cross_entropy: expected logits (..., V), got a scalar")
    if tuple(targets.shape) != tuple(logits.shape[:-1]):
        raise ShapeError(
            f"cross_entropy: expected targets of shape {tuple(logits.shape[:-1])} for logits "
            f"{tuple(logits.shape)}, got {tuple(targets.shape)}"
        )
    if targets.dtype.kind not in "iu":
        raise DtypeError(f"cross_entropy: expected integer targets, got {targets.dtype}")
    if targets.size and isinstance(targets, np.ndarray):  # on a device the look at the values would stop the pipeline
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= logits.shape[-1]:
            raise ShapeError(f"cross_entropy: expected targets in [0, {logits.shape[-1]}), got {low} to {high}")
    if mask is not None:
        if getattr(getattr(mask, "dtype", None), "kind", None) != "b":
            raise DtypeError(
                f"cross_entropy: expected a boolean mask, got {getattr(mask, 'dtype', type(mask).__name__)}; "
                "for weights multiply the losses of reduction='none'"
            )
        if tuple(mask.shape) != tuple(targets.shape):
            raise ShapeError(
                f"cross_entropy: expected a mask of the shape of the targets, {tuple(targets.shape)}, "
                f"got {tuple(mask.shape)}"
            )
    losses = (kernel or _cross_entropy)(logits, targets=targets.astype(np.intp, copy=False))
    if mask is not None:
        losses = where(mask, losses, 0.0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return sum(losses)
    if reduction != "mean":
        raise InputError(f"cross_entropy: expected reduction mean, sum or none, got {reduction!r}")
    count = targets.size if mask is None else int(mask.sum())
    if count == 0:
        raise ShapeError("cross_entropy: expected at least one target that counts, got none")
    return averaged(losses, count)
