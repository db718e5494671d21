"""RNN, LSTM and GRU against torch.nn: values, every gradient, 200 updates of training; and the name maps both ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import ModelConfig, OptimConfig, Tensor, build_model, grad, load_cell, ops
from tinygrad_rnn.interchange import from_torch, to_torch
from tinygrad_rnn.model import Model, detach
from tinygrad_rnn.optim import build_optimizer, clip_norm, init_state, update

torch = pytest.importorskip("torch", reason="PyTorch is the other opinion here; it is not installed")
pytestmark = pytest.mark.torch

Array = np.ndarray[Any, Any]

V, H = 7, 5


def make_model(pair: Any, embed: str, hidden: int = H, symbols: int = V) -> Model:
    tie = embed == "tied"
    embed = "hidden" if tie else embed
    config = ModelConfig(cell=pair.cell, cell_options=pair.options, hidden=hidden, layers=2, embed=embed, tie=tie)
    return build_model(config, symbols, load_cell(pair.cell))


def their_model(pair: Any, model: Model) -> Any:
    """A module with the attributes that `to_torch(prefix="rnn.")` names, in float64."""
    module = torch.nn.Module()
    if model.config.embed != "onehot":
        module.embed = torch.nn.Embedding(model.V, model.cells[0].I)
    module.rnn = getattr(torch.nn, pair.kind)(model.cells[0].I, model.config.hidden, num_layers=2, **pair.settings)
    module.readout = torch.nn.Linear(model.config.hidden, model.V)
    if model.config.tie:
        module.readout.weight = module.embed.weight
    return module.double()


def run_theirs(module: Any, V: int, x: Any, state: Any) -> tuple[Any, Any]:
    inputs = module.embed(x) if hasattr(module, "embed") else torch.nn.functional.one_hot(x, V).double()
    outputs, state = module.rnn(inputs, state)
    return module.readout(outputs), state


def random_params(model: Model, seed: int) -> dict[str, Tensor]:
    """Every bias away from zero, so that none can be left out."""
    rng = np.random.default_rng(seed)
    return {
        name: Tensor(rng.normal(size=spec.shape) * 0.5, requires_grad=True) for name, spec in model.params().items()
    }


def tensors(arrays: dict[str, Array]) -> dict[str, Any]:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


@pytest.mark.parametrize("embed", ["onehot", "3", "hidden", "tied"])
def test_values_and_every_gradient(pair: Any, embed: str) -> None:
    model = make_model(pair, embed)
    params = random_params(model, 1)
    module = their_model(pair, model)
    module.load_state_dict(tensors(to_torch(model, params, prefix="rnn.")))
    rng = np.random.default_rng(2)
    T, B = 9, 4
    x, y = rng.integers(0, V, (T, B)), rng.integers(0, V, (T, B))
    state = [
        {name: Tensor(rng.normal(size=(B, H)) * 0.5, requires_grad=True) for name in layer}
        for layer in model.start(B, params)
    ]
    pulls = [rng.normal(size=(B, H)) for layer in state for _ in layer]  # so that the last states are looked at, too

    done = model.forward(params, x, state, trace_inputs=True)
    last = [value for layer in done.state for value in layer.values()]
    loss = ops.cross_entropy(done.logits, y)
    for value, pull in zip(last, pulls, strict=True):
        loss = loss + ops.sum(value * pull)
    starts = [value for layer in state for value in layer.values()]
    names = list(params)
    found = grad(loss, [*params.values(), *starts, done.inputs], unused="error")

    theirs = [torch.from_numpy(np.stack([layer[name].data for layer in state])).requires_grad_() for name in state[0]]
    ids = torch.from_numpy(x)
    inputs = torch.nn.functional.one_hot(ids, V).double().requires_grad_() if embed == "onehot" else module.embed(ids)
    inputs.retain_grad()
    outputs, after = module.rnn(inputs, tuple(theirs) if len(theirs) > 1 else theirs[0])
    logits = module.readout(outputs)
    their_loss = torch.nn.functional.cross_entropy(logits.reshape(T * B, V), torch.from_numpy(y.reshape(-1)))
    after = after if isinstance(after, tuple) else (after,)
    flat_after = [after[k][layer] for layer in range(2) for k in range(len(after))]
    for value, pull in zip(flat_after, pulls, strict=True):
        their_loss = their_loss + (value * torch.from_numpy(pull)).sum()
    their_loss.backward()

    close = {"rtol": 1e-9, "atol": 1e-11}
    np.testing.assert_allclose(done.logits.data, logits.detach().numpy(), **close)
    np.testing.assert_allclose(float(loss.data), float(their_loss.detach()), **close)
    for value, expected in zip(last, flat_after, strict=True):
        np.testing.assert_allclose(value.data, expected.detach().numpy(), **close)
    # gradients have the parameters' layout, so they travel through the same map; both biases get the same gradient
    grads = {name: g for name, g in zip(names, found[: len(names)], strict=True)}
    as_theirs = to_torch(model, grads, prefix="rnn.")
    for name, parameter in module.named_parameters():
        if "bias_hh" not in name:
            np.testing.assert_allclose(as_theirs[name], parameter.grad.numpy(), err_msg=name, **close)
        elif pair.cell == "gru":
            np.testing.assert_allclose(as_theirs[name][2 * H :], parameter.grad.numpy()[2 * H :], err_msg=name, **close)
    expected_starts = [theirs[k].grad[layer].numpy() for layer in range(2) for k in range(len(theirs))]
    for g, expected in zip(found[len(names) : -1], expected_starts, strict=True):
        np.testing.assert_allclose(g.data, expected, **close)
    np.testing.assert_allclose(found[-1].data, inputs.grad.numpy(), **close)


@pytest.mark.parametrize("embed", ["onehot", "3"])
def test_from_torch_gives_the_same_model(pair: Any, embed: str) -> None:
    """Their own initialisation has both biases away from zero."""
    torch.manual_seed(0)
    model = make_model(pair, embed)
    module = their_model(pair, model)
    params = from_torch(model, module.state_dict(), prefix="rnn.")
    assert {name: value.shape for name, value in params.items()} == {n: s.shape for n, s in model.params().items()}
    assert list(params) == list(model.params())
    x = np.random.default_rng(3).integers(0, V, (6, 2))
    logits, _ = run_theirs(module, V, torch.from_numpy(x), None)
    np.testing.assert_allclose(model.forward(params, x).logits.data, logits.detach().numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("optim", ["adam", "sgd"])
def test_200_updates_follow_the_same_loss_curve(pair: Any, optim: str) -> None:
    """Same weights, same batches, carried state, clipping by norm: float64 curves agree to 1e-6."""
    model = make_model(pair, "onehot", hidden=16, symbols=11)
    params = model.init(np.random.default_rng(5), np.float64)
    module = their_model(pair, model)
    module.load_state_dict(tensors(to_torch(model, params, prefix="rnn.")))
    T, B = 12, 4
    ids = text_ids(200 * T + 1, B)

    # The loss is summed over time, as char-rnn does, for norms of a size at which clipping is used: PyTorch divides
    # by norm + 1e-6 where the paper divides by the norm, which is 1e-5 of an update that is clipped to 0.1.
    config = OptimConfig(optim=optim, lr=0.01 if optim == "adam" else 0.04, clip_norm=3.0)
    arrays = {name: value.data for name, value in params.items()}
    rule, _ = build_optimizer(config)
    slots = init_state(rule, arrays)
    kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    # PyTorch's second bias would be trained, too, and double the step of the sum: it stays fixed, but for the n gate's
    held = [parameter for name, parameter in module.named_parameters() if "bias_hh" in name]
    optimiser = kinds[optim](module.parameters(), lr=config.lr)
    state: Any = None
    their_state: Any = None
    ours, theirs, clipped = [], [], 0
    for k in range(200):
        x, y = ids[k * T : k * T + T], ids[k * T + 1 : k * T + T + 1]
        done = model.forward(params, x, state)
        loss = ops.cross_entropy(done.logits, y, reduction="sum") * (1.0 / B)
        grads = {name: g.data for name, g in zip(params, grad(loss, list(params.values())), strict=True)}
        clipped += clip_norm(grads, config.clip_norm) > config.clip_norm
        update(rule, arrays, grads, slots, config.lr)
        state = detach(done.state)
        ours.append(float(loss.data) / T)

        logits, their_state = run_theirs(module, 11, torch.from_numpy(x), their_state)
        their_loss = torch.nn.functional.cross_entropy(logits.reshape(T * B, 11), torch.from_numpy(y.reshape(-1))) * T
        optimiser.zero_grad()
        their_loss.backward()
        for parameter in held:
            parameter.grad[: 2 * 16 if pair.cell == "gru" else None] = 0.0
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.clip_norm)
        optimiser.step()
        their_state = tuple(s.detach() for s in their_state) if isinstance(their_state, tuple) else their_state.detach()
        theirs.append(float(their_loss.detach()) / T)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    assert 0 < clipped < 200  # both sides of the clipping were taken
    assert ours[-1] < 0.8 * ours[0]  # and something was learned


def text_ids(steps: int, B: int) -> Array:
    """Periodic symbols with noise: (steps, B) in [0, 11)."""
    rng = np.random.default_rng(6)
    ids = (np.arange(steps)[:, None] * 3 + np.arange(B)) % 11
    return np.where(rng.random(ids.shape) < 0.1, rng.integers(0, 11, ids.shape), ids)
