"""Files to and from PyTorch: the lines that `export torch` prints, and what `import torch` makes of real modules."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tinygrad_rnn import (
    FileError,
    InputError,
    LoadedModel,
    ModelConfig,
    RunConfig,
    SampleConfig,
    Tensor,
    Vocabulary,
    build_model,
    generate,
    import_torch,
    load_cell,
    load_run_model,
    read_state_dict,
    save_torch,
    torch_code,
)
from tinygrad_rnn_cli.main import cli

torch = pytest.importorskip("torch", reason="PyTorch is the other opinion here; it is not installed")
pytestmark = pytest.mark.torch

SYMBOLS = Vocabulary("chars", tuple("\n abcde"))
V, H, T, B = SYMBOLS.size, 6, 40, 3
CLOSE: dict[str, dict[str, float]] = {"float32": {"rtol": 1e-5, "atol": 1e-6}, "float64": {"rtol": 0, "atol": 1e-12}}
NO_TEXT: dict[str, Any] = {"sha256": None, "source": None, "characters": 0}


def symbols(seed: int = 2) -> Any:
    return np.random.default_rng(seed).integers(0, V, (T, B))


def their_logits(net: Any, x: Any) -> Any:
    with torch.no_grad():
        return net(torch.from_numpy(x))[0].numpy()


def our_greedy(model: Any, params: Any, prime: str, length: int) -> str:
    options = SampleConfig(prime=prime, length=length, greedy=True)
    return "".join(piece for (piece,) in generate(model, params, SYMBOLS, options, np.random.default_rng(0)))


def their_greedy(net: Any, names: list[str], prime: str, length: int) -> str:
    """Symbol by symbol, with the state that the module gives back."""
    text, x, state = prime, torch.tensor([[names.index(symbol)] for symbol in prime]), None
    with torch.no_grad():
        for _ in range(length):
            logits, state = net(x, state)
            x = logits[-1:].argmax(-1)
            text += names[int(x)]
    return text


def load_by(code: str) -> tuple[Any, list[str]]:
    """`net` and `symbols` of the printed lines, run as they are."""
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace["net"], namespace["symbols"]


# ------------------------------------------------------------------------------------------------ export


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("embed", ["onehot", "4", "hidden"])
def test_the_printed_lines_give_our_logits_and_our_text(
    pair: Any, embed: str, layers: int, dtype: str, tmp_path: Path
) -> None:
    cell, options = pair.cell, pair.options
    config = ModelConfig(cell=cell, cell_options=options, hidden=H, layers=layers, embed=embed)
    model = build_model(config, V, load_cell(cell))
    rng = np.random.default_rng(layers)
    params = {n: Tensor((rng.normal(size=s.shape) * 0.25).astype(dtype)) for n, s in model.params().items()}
    file = tmp_path / "model.safetensors"
    save_torch(file, model, params, SYMBOLS)
    net, names = load_by(torch_code(model, file, dtype))
    assert tuple(names) == SYMBOLS.symbols
    theirs = their_logits(net, symbols())
    assert theirs.dtype == dtype
    np.testing.assert_allclose(model.forward(params, symbols()).logits.data, theirs, **CLOSE[dtype])
    assert our_greedy(model, params, "bad ", 60) == their_greedy(net, names, "bad ", 60)

    # back again, by way of PyTorch, whose save_file knows nothing of our header
    from safetensors.torch import save_file

    again = tmp_path / "again.safetensors"
    save_file(net.state_dict(), again)
    choice = {"nonlinearity": options.get("activation", "tanh")} if cell == "rnn" else {}
    made = import_torch(read_state_dict(again), tmp_path / "run", SYMBOLS, RunConfig(), data=NO_TEXT, **choice)
    back = load_run_model(made.run.path)
    assert back.model.config == config
    for name, value in params.items():
        assert back.params[name].data.tobytes() == value.data.tobytes(), name


def test_from_the_command_line_and_back(pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cell, options = pair.cell, pair.options
    choice = [f"--cell-opt={name}={value}" for name, value in options.items()]
    sizes = "--hidden 16 --layers 2 --embed 5 --batch 4 --seq-len 20 --steps 40 --corpus hello --out run -q".split()
    run = CliRunner().invoke
    assert run(cli, ["train", "--cell", cell, *choice, *sizes]).exit_code == 0
    done = run(cli, "export torch run -o m.safetensors --which latest".split())
    assert done.exit_code == 0 and done.stdout == "m.safetensors\n"
    net, names = load_by(done.stderr)  # all of it, comments included
    sampled = run(cli, "sample run --greedy -n 40 --prime hel --which latest".split())
    assert sampled.stdout == their_greedy(net, names, "hel", 40)
    brought = run(cli, "import torch m.safetensors --out back".split())
    assert brought.exit_code == 0, brought.output
    ours, theirs = (run(cli, ["sample", folder, "-n", "40", "--which", "latest"]) for folder in ("run", "back"))
    assert ours.stdout == theirs.stdout and ours.exit_code == 0
    first, second = (load_run_model(tmp_path / folder, which="latest").params for folder in ("run", "back"))
    assert all(first[name].data.tobytes() == second[name].data.tobytes() for name in first)


# ------------------------------------------------------------------------------------------------ import


def module(
    pair: Any, embed: str, layers: int, *, names: tuple[str, str, str] = ("embed", "rnn", "readout"), **options: Any
) -> Any:
    """A new module with their own initialisation, whose biases are both away from zero."""
    readout_bias = options.get("bias", True)
    I = V if embed == "onehot" else H if embed == "hidden" else int(embed)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if embed != "onehot":
                setattr(self, names[0], torch.nn.Embedding(V, I))
            made = getattr(torch.nn, pair.kind)(I, H, num_layers=layers, **pair.settings, **options)
            setattr(self, names[1], made)
            setattr(self, names[2], torch.nn.Linear(H, V, bias=readout_bias))

        def forward(self, x: Any, state: Any = None) -> Any:
            like = getattr(self, names[2]).weight.dtype
            seen = getattr(self, names[0])(x) if embed != "onehot" else torch.nn.functional.one_hot(x, V).to(like)
            y, state = getattr(self, names[1])(seen, state)
            return getattr(self, names[2])(y), state

    return Net()


def bring(state_dict: dict[str, Any], folder: Path, **choice: Any) -> LoadedModel:
    from safetensors.torch import save_file

    save_file(state_dict, folder / "theirs.safetensors")
    state = read_state_dict(folder / "theirs.safetensors")
    made = import_torch(state, folder / "run", SYMBOLS, RunConfig(), data=NO_TEXT, overwrite=True, **choice)
    return load_run_model(made.run.path)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("embed", ["onehot", "4", "hidden"])
def test_a_module_of_theirs_becomes_the_same_model(
    pair: Any, embed: str, layers: int, dtype: str, tmp_path: Path
) -> None:
    net = module(pair, embed, layers, names=("encoder", "body", "fc")).to(getattr(torch, dtype))
    loaded = bring(net.state_dict(), tmp_path, **pair.settings)
    assert loaded.config.train.dtype == dtype
    ours = loaded.model.forward(loaded.params, symbols()).logits.data
    np.testing.assert_allclose(ours, their_logits(net, symbols()), **CLOSE[dtype])
    text = our_greedy(loaded.model, loaded.params, "ab", 60)
    assert text == their_greedy(net, list(SYMBOLS.symbols), "ab", 60)


def test_modules_of_many_kinds(pair: Any, tmp_path: Path) -> None:
    def same(net: Any, state_dict: dict[str, Any], **choice: Any) -> None:
        loaded = bring(state_dict, tmp_path, **pair.settings, **choice)
        ours = loaded.model.forward(loaded.params, symbols()).logits.data
        np.testing.assert_allclose(ours, their_logits(net, symbols()), **CLOSE["float32"])

    net = module(pair, "4", 2)
    same(net, torch.nn.DataParallel(net).state_dict())  # module.rnn.weight_ih_l0
    same(net, {f"_orig_mod.{name}": value for name, value in net.state_dict().items()})
    same(net, {name.removeprefix("rnn."): value for name, value in net.state_dict().items()})
    bare = module(pair, "4", 2, bias=False)  # of the recurrent module and of the readout
    same(bare, bare.state_dict())
    dropped = module(pair, "4", 2, dropout=0.3, batch_first=True)  # neither leaves a trace in the arrays
    state = dropped.state_dict()
    dropped.rnn.batch_first = False
    same(dropped.eval(), state)
    tied = module(pair, "hidden", 1)
    tied.readout.weight = tied.embed.weight
    same(tied, {name: value.clone() for name, value in tied.state_dict().items()})
    once = {name: value for name, value in tied.state_dict().items() if name != "readout.weight"}
    tied.readout.bias.data.zero_()
    del once["readout.bias"]  # what is shared may have been saved once
    same(tied, once, embed="embed", readout="embed")


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_narrow_floats_are_widened_exactly(pair: Any, kind: str, tmp_path: Path) -> None:
    net = module(pair, "4", 2).to(getattr(torch, kind))
    loaded = bring(net.state_dict(), tmp_path, **pair.settings)
    assert loaded.config.train.dtype == "float32"
    ours = loaded.model.forward(loaded.params, symbols()).logits.data
    np.testing.assert_allclose(ours, their_logits(net.float(), symbols()), **CLOSE["float32"])


def test_modules_that_cannot_be_ours(tmp_path: Path) -> None:
    for options, words in [({"bidirectional": True}, "bidirectional"), ({"proj_size": 2}, "proj_size")]:
        net = torch.nn.LSTM(V, H, num_layers=2, **options)
        with pytest.raises(InputError, match=words):
            bring(net.state_dict(), tmp_path)
    with pytest.raises(InputError, match=r"got no readout"):
        bring(torch.nn.LSTM(V, H).state_dict(), tmp_path)
    with pytest.raises(InputError, match=r"expected the arrays of a torch\.nn\.RNN"):
        bring(torch.nn.LSTMCell(V, H).state_dict(), tmp_path)
    chain = torch.nn.Sequential(torch.nn.LSTM(V, H), torch.nn.LSTM(H, H), torch.nn.Linear(H, V))
    with pytest.raises(InputError, match=r"expected one recurrent module, got 2: 0\., 1\."):
        bring(chain.state_dict(), tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("pair", ["lstm"], indirect=True)
def test_the_line_that_converts_a_pickle(pair: Any, zipped: bool, tmp_path: Path) -> None:
    net = module(pair, "hidden", 1)
    net.readout.weight = net.embed.weight  # save_file alone refuses shared memory
    path = tmp_path / "it's a model.pt"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(FileError, match=r"was written by torch\.save") as caught:
        read_state_dict(path)
    line = re.search(r"convert it: (python .*)$", str(caught.value))
    assert line is not None
    program, *words = shlex.split(line[1])
    assert program == "python"
    subprocess.run([sys.executable, *words], check=True, timeout=120)
    state = read_state_dict(tmp_path / "it's a model.safetensors")
    made = import_torch(state, tmp_path / "run", SYMBOLS, RunConfig(), data=NO_TEXT)
    loaded = load_run_model(made.run.path)
    ours = loaded.model.forward(loaded.params, symbols()).logits.data
    np.testing.assert_allclose(ours, their_logits(net, symbols()), **CLOSE["float32"])


@pytest.mark.parametrize("names", [("embed", "rnn", "readout"), ("encoder", "rnn", "decoder")])
@pytest.mark.parametrize("pair", ["lstm"], indirect=True)
def test_a_tied_module_as_save_model_writes_it(pair: Any, names: tuple[str, str, str], tmp_path: Path) -> None:
    """It keeps the first of the two names, whichever that is. Out again, the module is tied as it was."""
    from safetensors.torch import save_model

    net = module(pair, "hidden", 1, names=names)
    getattr(net, names[2]).weight = getattr(net, names[0]).weight
    save_model(net, str(tmp_path / "m.safetensors"))
    state = read_state_dict(tmp_path / "m.safetensors")
    loaded = load_run_model(import_torch(state, tmp_path / "run", SYMBOLS, RunConfig(), data=NO_TEXT).run.path)
    assert loaded.model.config.tie
    theirs = their_logits(net, symbols())
    np.testing.assert_allclose(loaded.model.forward(loaded.params, symbols()).logits.data, theirs, **CLOSE["float32"])
    save_torch(tmp_path / "again.safetensors", loaded.model, loaded.params, SYMBOLS)
    again, _ = load_by(torch_code(loaded.model, tmp_path / "again.safetensors"))
    assert again.readout.weight is again.embed.weight
    np.testing.assert_allclose(their_logits(again, symbols()), theirs, **CLOSE["float32"])
