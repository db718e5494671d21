"""What is given to `unroll`, `scan` and a model: arrays of any kind, refused in one line or taken as they are meant."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import (
    DeviceError,
    DtypeError,
    InputError,
    ModelConfig,
    ShapeError,
    Tensor,
    bench_cell,
    build_model,
    cell_to_dot,
    check_cell,
    draw_noise,
    grad,
    gradcheck,
    init_cell,
    load_cell,
    ops,
    output_of,
    scan,
    select_device,
    step_graph,
    tap,
    truncated_windows,
    unroll,
    wrap_cell,
)
from tinygrad_rnn import guard as guard_arrays

EXECUTORS = ["unroll", "numpy", "llvm"]
CELL = load_cell("lstm").cls(3, 4)
XS = np.random.default_rng(1).normal(size=(4, 2, 3))
MASK = np.arange(4)[:, None] < np.array([4, 2])


def parameters() -> dict[str, Any]:
    return init_cell(CELL, np.random.default_rng(0), np.float64)


def zeros(dtype: Any = np.float64) -> dict[str, Any]:
    return {"h": np.zeros((2, 4), dtype), "c": np.zeros((2, 4))}


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "integers": ({"xs": XS.astype(int)}, DtypeError, "expected xs of a floating dtype, got int64; .*embedding"),
    "booleans": ({"xs": XS > 0}, DtypeError, "expected xs of a floating dtype, got bool"),
    "objects": ({"xs": XS.astype(object)}, DtypeError, "expected xs of a floating dtype, got object"),
    "float16": ({"xs": XS.astype(np.float16)}, DtypeError, "xs of float16 and parameter W_xi of float64"),
    "masked": (
        {"xs": np.ma.masked_array(XS, XS > 0)},
        InputError,
        "xs: expected an array without a mask, got a masked array",
    ),
    "list": ({"xs": XS.tolist()}, InputError, "expected a tensor or an array as xs, got list"),
    "another device": ({"xs": guard_arrays.asarray(XS)}, DeviceError, "xs of guard and parameter W_xi of numpy"),
    "mask elsewhere": ({"mask": guard_arrays.asarray(MASK)}, DeviceError, "xs of numpy and mask of guard"),
    "mask of texts": ({"mask": MASK.astype(str)}, DtypeError, "expected a mask of booleans, got <U5"),
    "mask as a list": ({"mask": MASK.tolist()}, InputError, "expected a tensor or an array as mask, got list"),
    "mask of shares": ({"mask": MASK * 0.5}, InputError, r"of 0 and 1, got float64 with other .* as in mask > 0\.5$"),
    "mask of counts": ({"mask": MASK * 2}, InputError, "expected a mask of booleans, or of 0 and 1, got int64"),
    "mask of NaN": ({"mask": np.where(MASK, 1.0, np.nan)}, InputError, "of 0 and 1, got float64 with other values"),
    "masked mask": ({"mask": np.ma.masked_array(MASK)}, InputError, "mask: expected an array without a mask"),
    "state of integers": ({"state": zeros(int)}, DtypeError, "xs of float64 and state h of int64"),
    "state as a number": ({"state": {**zeros(), "h": 0.0}}, InputError, "as state h, got float"),
    "state without names": ({"state": np.zeros((2, 4))}, InputError, "expected the states by name, got ndarray"),
    "parameter of integers": ({"W_xi": np.ones((3, 4), int)}, DtypeError, "parameter W_xi of int64"),
    "parameter elsewhere": ({"W_xi": guard_arrays.asarray(np.ones((3, 4)))}, DeviceError, "parameter W_xi of guard"),
}


def call(run: Any, change: dict[str, Any]) -> Any:
    params = parameters() | {name: value for name, value in change.items() if name == "W_xi"}
    return run(CELL, params, change.get("xs", XS), change.get("state"), mask=change.get("mask")), params


@pytest.mark.parametrize("what", list(REFUSED))
@pytest.mark.parametrize("run", [unroll, scan])
def test_what_does_not_fit_is_told_where_it_enters(run: Any, what: str) -> None:
    change, kind, message = REFUSED[what]
    with pytest.raises(kind, match=f"^{run.__name__} of lstm: .*{message}") as caught:
        call(run, change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("run", [unroll, scan])
def test_what_is_not_a_cell_or_its_parameters(run: Any) -> None:
    wrong: list[tuple[Any, str]] = [
        (
            "lstm",
            r"expected a cell with its sizes, got the name 'lstm'; make one with load_cell\('lstm'\)\.cls\(I, H\)$",
        ),
        (type(CELL), r"got the class LSTM; make one with LSTM\(I, H\)$"),
        (3, r"expected a cell with its sizes, got int; make one with load_cell"),
        (None, "expected a cell with its sizes, got NoneType"),
    ]
    for cell, message in wrong:
        for use in (
            lambda cell: run(cell, parameters(), XS),
            lambda cell: init_cell(cell, np.random.default_rng(0)),
            lambda cell: draw_noise(cell, 4, 2, np.random.default_rng(0)),
            output_of,
        ):
            with pytest.raises(InputError, match=message):
                use(cell)
    for params, got in ((None, "NoneType"), (list(parameters().values()), "list")):
        with pytest.raises(
            InputError,
            match=rf"^{run.__name__} of lstm: expected the parameters by name, got {got}; init_cell\(cell, rng\)",
        ):
            run(CELL, params, XS)


ENTRY = load_cell("lstm")
CONFIG = ModelConfig(cell="lstm", hidden=4)
WRONG: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "wrap a name": (
        lambda given: wrap_cell(given, ["residual"]),
        "lstm",
        "^wrap_cell: expected the class of a cell, as .*lstm",
    ),
    "wrap a cell": (
        lambda given: wrap_cell(given, ["residual"]),
        CELL,
        "^wrap_cell: expected the class of a cell, as .*LSTM",
    ),
    "wrap by a text": (lambda given: wrap_cell(ENTRY.cls, given), "residual", r"got 'residual'; write \['residual'\]$"),
    "check a cell": (check_cell, CELL, "^check_cell: expected the class of a cell or its name, got <.*LSTM"),
    "graph of a name": (step_graph, "lstm", "^expected a cell with its sizes, got the name 'lstm'"),
    "graph of a class": (step_graph, ENTRY.cls, "^expected a cell with its sizes, got the class LSTM"),
    "drawing of a class": (cell_to_dot, ENTRY.cls, "^cell_to_dot: expected a cell with its sizes, as .*LSTM"),
    "model of a name": (
        lambda given: build_model(CONFIG, 5, given),
        "lstm",
        r"^model: expected what load_cell\('lstm'\)",
    ),
    "name that is none": (load_cell, 3, "^cell: expected a name, got 3$"),
    "options in a list": (
        lambda given: ENTRY.cls(3, 4, given),
        ["a"],
        "^cell lstm: expected the options by name, got list",
    ),
    "model without parameters": (
        lambda given: build_model(CONFIG, 5, ENTRY).forward(given, np.zeros((2, 1), int)),
        None,
        r"^model: expected the parameters by name, as init\(rng\) gives, got NoneType",
    ),
    "dtype": (
        lambda given: Tensor([1.0], dtype=given),
        "float31",
        "^Tensor: expected a dtype, as 'float32', got 'float31'",
    ),
    "device": (lambda given: Tensor([1.0]).to(given), "tpu", "^device 'tpu': expected auto, cpu, cuda or cuda:N"),
    "number of a device": (select_device, 3, "^device 3: expected auto, cpu"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_what_cannot_work_is_refused_in_one_line(what: str) -> None:
    use, given, message = WRONG[what]
    with pytest.raises(InputError, match=message) as caught:
        use(given)
    assert "\n" not in str(caught.value)


def test_a_seed_is_not_a_generator() -> None:
    seed: Any = 3
    model = build_model(ModelConfig(cell="lstm", hidden=4), 5, load_cell("lstm"))
    uses: list[tuple[str, Callable[[], Any]]] = [
        ("init_cell", lambda: init_cell(CELL, seed)),
        ("draw_noise", lambda: draw_noise(CELL, 4, 2, seed)),
        ("gradcheck", lambda: gradcheck(ops.sin, np.ones(2), rng=seed)),
        ("Model.init", lambda: model.init(seed)),
        ("model", lambda: model.forward(model.init(np.random.default_rng(0)), np.zeros((2, 1), int), rng=seed)),
    ]
    for name, use in uses:
        message = rf"^{name}: expected a numpy\.random\.Generator, got int; give np\.random\.default_rng\(3\)$"
        with pytest.raises(InputError, match=message):
            use()


class Matrix(np.ndarray):
    """Final. An array whose * is another product, as that of np.matrix is."""

    def __mul__(self, other: Any) -> Any:
        return np.asarray(self) @ np.asarray(other)


def read_only() -> Any:
    fixed = XS.copy()
    fixed.flags.writeable = False
    return fixed


def mapped(folder: Path) -> Any:
    np.save(folder / "xs.npy", XS)
    return np.load(folder / "xs.npy", mmap_mode="r")


# The numbers of `XS` and `MASK` in other arrays, made in a folder.
KINDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "memory map": lambda folder: {"xs": mapped(folder)},
    "tensor of a memory map": lambda folder: {"xs": Tensor(mapped(folder))},
    "read-only": lambda _: {"xs": read_only()},
    "big-endian": lambda _: {"xs": XS.astype(">f8")},
    "tensor of a big-endian array": lambda _: {"xs": Tensor(XS.astype(">f8"))},
    "fortran": lambda _: {"xs": np.asfortranarray(XS)},
    "records": lambda _: {"xs": XS.view(np.recarray)},
    "matrix": lambda _: {"W_xi": parameters()["W_xi"].data.view(Matrix)},
    "mask of integers": lambda _: {"mask": MASK.astype(np.int8)},
    "mask of floats": lambda _: {"mask": MASK.astype(float)},
}


@pytest.mark.parametrize("what", list(KINDS))
@pytest.mark.parametrize("executor", EXECUTORS)
def test_arrays_of_any_kind_are_taken(executor: str, what: str, tmp_path: Path) -> None:
    change = KINDS[what](tmp_path)
    found = []
    for given in ({"mask": MASK} if "mask" in change else {}, change):
        done, params = call(partial(scan, executor=executor), given)
        assert done.executor == executor, done.reason
        leaves = [value for name, value in params.items() if name != "W_xi"]
        found.append([done.outputs, *grad(ops.sum(done.outputs), leaves)])
    for plain, other in zip(*found, strict=True):
        assert type(other.data) is np.ndarray
        np.testing.assert_array_equal(other.data, plain.data)


def test_float16_runs_and_says_why_it_is_not_compiled() -> None:
    params = {name: Tensor(value.data.astype(np.float16), requires_grad=True) for name, value in parameters().items()}
    done = scan(CELL, params, XS.astype(np.float16))
    assert done.executor == "unroll" and "float16" in done.reason


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_arrays_changed_before_the_gradient_change_nothing(executor: str, create_graph: bool) -> None:
    """The usual loop fills one array with the next batch."""
    leaf = parameters()["W_xi"]
    found = []
    for change in (False, True):
        rest = {name: value.data.copy() for name, value in parameters().items() if name != "W_xi"}
        xs, mask, state = XS.copy(), MASK.copy(), {name: value + 0.3 for name, value in zeros().items()}
        done = scan(CELL, {"W_xi": leaf, **rest}, xs, state, mask=mask, executor=executor)
        if change:
            for array in (xs, *state.values(), *rest.values()):
                array[...] = 7.0
            mask[...] = ~mask
        targets = [leaf, *done.outputs]
        found.append(grad(ops.sum(done.outputs * done.outputs), targets, create_graph=create_graph, unused="error"))
    for before, after in zip(*found, strict=True):
        np.testing.assert_array_equal(after.data, before.data)


@pytest.mark.parametrize("embed", ["3", "onehot"])
def test_symbols_changed_before_the_gradient_change_nothing(embed: str) -> None:
    model = build_model(ModelConfig(cell="gru", hidden=4, embed=embed), 5, load_cell("gru"))
    params = model.init(np.random.default_rng(0), np.float64)
    found = []
    for change in (False, True):
        x = np.arange(8).reshape(4, 2) % 5
        out = model.forward(params, x)
        if change:
            x[...] = 1
        found.append(grad(ops.sum(out.logits[-1]), list(params.values())))
    for before, after in zip(*found, strict=True):
        np.testing.assert_array_equal(after.data, before.data)


def test_symbols_that_are_no_array_are_told() -> None:
    model = build_model(ModelConfig(cell="gru", hidden=4), 5, load_cell("gru"))
    params = model.init(np.random.default_rng(0))
    with pytest.raises(InputError, match=r"^model: expected a tensor or an array as symbols, got list"):
        model.forward(params, [[1, 2]])
    with pytest.raises(InputError, match=r"^model: symbols: expected an array without a mask, got a masked array"):
        model.forward(params, np.ma.masked_array([[1, 2]]))


MISUSES: list[tuple[Callable[[], Any], str]] = [
    (lambda: load_cell("lstm")(3, 4), r"^expected a cell class to call, .*use load_cell\('lstm'\)\.cls"),
    (lambda: list(truncated_windows("a", 2, 3)), "^truncated BPTT: T: expected a whole number of timesteps, got 'a'"),  # type: ignore[arg-type]
    (lambda: list(truncated_windows(9, 2.5, 3)), "^truncated BPTT: k1: .* got 2.5"),  # type: ignore[arg-type]
    (lambda: scan(CELL, parameters(), XS, recompute="a"), "^recompute: expected a whole number of timesteps, got 'a'"),  # type: ignore[arg-type]
    (lambda: ops.var(XS, ddof="a"), "^var: expected a number as ddof, got 'a'"),  # type: ignore[arg-type]
    (lambda: ops.std(XS, ddof=None), "^std: expected a number as ddof, got None"),  # type: ignore[arg-type]
    (lambda: tap(Tensor(XS), "a"), r"^tap: expected \(name, value\)"),  # type: ignore[arg-type]
    (lambda: bench_cell("lstm", (5, 4, 1, 2, 3)), "^bench: expected the entry of a cell, .* got 'lstm'"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("misuse", "message"), MISUSES)
def test_a_wrong_argument_is_told_in_our_words(misuse: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        misuse()


@pytest.mark.parametrize(("index", "place"), [(..., "it"), (0, r"its part of shape \(2, 3\)")])
def test_values_of_another_shape_are_told_in_our_words(index: Any, place: str) -> None:
    whole = r"assign: got a tensor of shape \(4, 2, 3\) and values of shape \(7,\), which do not broadcast to"
    with pytest.raises(ShapeError, match=f"^{whole} {place}; reshape them$"):
        Tensor(XS.copy())[index] = np.ones(7)
