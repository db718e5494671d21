"""Every built-in cell against its bare formula: values, gradients, and what the contract promises."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import (
    Cell,
    InputError,
    Param,
    State,
    Tensor,
    bias,
    grad,
    gradcheck,
    init_cell,
    input_matrix,
    listen,
    load_cell,
    ops,
    output_of,
    recurrent_matrix,
    specification,
    unroll,
)
from tinygrad_rnn.testing.contract import documentation
from tinygrad_rnn.testing.equation import written_out
from tinygrad_rnn.testing.trial import Noted, Trial

Array = np.ndarray[Any, Any]
Make = Callable[..., Any]

SIZES = [(3, 2, 3, 3), (3, 2, 2, 4), (1, 2, 3, 2), (4, 1, 2, 3), (3, 2, 3, 1), (1, 1, 1, 1)]  # T, B, I, H


@pytest.mark.parametrize(("T", "B", "I", "H"), SIZES)
def test_unroll_equals_the_bare_formula(variant: str, T: int, B: int, I: int, H: int, make_case: Make) -> None:
    case = make_case(variant, T, B, I, H)
    done = unroll(case.cell, case.params, case.xs, case.state)
    states = case.reference()
    output = output_of(case.cell)
    np.testing.assert_allclose(done.outputs.data, np.stack([s[output] for s in states]), rtol=1e-13, atol=1e-15)
    for name in case.state:
        np.testing.assert_allclose(done.state[name].data, states[-1][name], rtol=1e-13, atol=1e-15)
        for got, expected in zip(done.states[name], states, strict=True):
            np.testing.assert_allclose(got.data, expected[name], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("I", "H"), [(2, 2), (2, 3), (3, 1)])
def test_gradients_of_first_and_second_order(variant: str, I: int, H: int, make_case: Make) -> None:
    """With respect to the inputs, every start state and every parameter at once; the seed keeps relu off its kink."""
    case = make_case(variant, T=3, B=2, I=I, H=H, seed=3)
    leaves = case.leaves()

    def f(*values: Tensor) -> tuple[Any, ...]:
        given = {"xs": case.xs, **case.state, **case.params, **dict(zip(leaves, values, strict=True))}
        own, start = ({name: given[name] for name in arrays} for arrays in (case.params, case.state))
        done = unroll(case.cell, own, given["xs"], start)
        return (done.outputs, *done.state.values())

    gradcheck(f, *leaves.values(), rng=np.random.default_rng(1), order=2)


def test_every_gradient_entry_by_differences(variant: str, make_case: Make) -> None:
    """Entry by entry, so that a gradient of a small parameter cannot hide behind a large one."""
    case = make_case(variant, T=3, B=2, I=2, H=3, seed=4)
    weights = np.random.default_rng(5).normal(size=(3, 2, 3))
    arrays = {"xs": case.xs, **case.state, **case.params}
    tensors: dict[str, Any] = {**arrays, **{n: Tensor(a, requires_grad=True) for n, a in case.leaves().items()}}

    def loss(values: dict[str, Any]) -> Any:
        done = unroll(case.cell, {k: values[k] for k in case.params}, values["xs"], {k: values[k] for k in case.state})
        return ops.sum(done.outputs * weights)

    found = grad(loss(tensors), [tensors[name] for name in case.leaves()], unused="zeros")  # lru never reads its y
    for (name, array), g in zip(case.leaves().items(), found, strict=True):
        expected = np.empty_like(array)
        for index in np.ndindex(array.shape):
            moved = []
            for side in (1e-6, -1e-6):
                changed = array.copy()
                changed[index] += side
                moved.append(float(loss({**arrays, name: changed}).data))
            expected[index] = (moved[0] - moved[1]) / 2e-6
        np.testing.assert_allclose(g.data, expected, rtol=1e-6, atol=1e-8, err_msg=name)


# The shape and role of what does not follow the rule W_x* (I, H), W_h* (H, H), b_* (H,); for I = 2, H = 3, slow = S.
UNUSUAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "mut1-fixed P": ((2, 3), "buffer"), "mut2-fixed P": ((2, 3), "buffer"), "P": ((2, 3), "input"),
    "minimalrnn W_zu": ((3, 3), "recurrent"), "scrn W_xs": ((2, "S"), "input"), "scrn W_sh": (("S", 3), "recurrent"),
    "fastgrnn W": ((2, 3), "input"), "fastgrnn U": ((3, 3), "recurrent"),
    "fastgrnn zeta": ((1,), "bias"), "fastgrnn nu": ((1,), "bias"),
    "clockwork period": ((3,), "buffer"), "clockwork W_h0": ((3, 1), "recurrent"),
    "clockwork W_h1": ((2, 1), "recurrent"), "clockwork W_h2": ((1, 1), "recurrent"),
    "clockwork-periods W_h0": ((3, 2), "recurrent"), "clockwork-periods W_h1": ((1, 1), "recurrent"),
    "lru nu_log": ((3,), "recurrent"), "lru theta_log": ((3,), "recurrent"), "lru gamma_log": ((3,), "input"),
    "lru B_re": ((2, 3), "input"), "lru B_im": ((2, 3), "input"), "lru C_re": ((3, 3), "input"),
    "lru C_im": ((3, 3), "input"), "lru D": ((2, 3), "input"),
    "esn W_in": ((2, 3), "buffer"), "esn W": ((3, 3), "buffer"), "esn b": ((3,), "buffer"),
}  # fmt: skip
USUAL = {
    "W_x": ((2, 3), "input"),
    "W_h": ((3, 3), "recurrent"),
    "R_": ((3, 3), "recurrent"),
    "p_": ((3,), "recurrent"),
    "b_": ((3,), "bias"),
}


def test_declared_states_and_parameters(variant: str, make_case: Make) -> None:
    case = make_case(variant, I=2, H=3)
    states, params = specification(case.cell)
    done = unroll(case.cell, case.params, case.xs)
    assert list(done.state) == list(states)
    slow = getattr(case.cell.options, "slow", 0)
    special = {("scrn", "s"): slow, ("clockwork", "t"): 1}
    assert {name: spec.shape for name, spec in states.items()} == {
        name: (special.get((case.cell.name, name), 3),) for name in states
    }
    for name, spec in params.items():
        keys = [f"{variant} {name}", f"{case.cell.name} {name}", name]
        found = [UNUSUAL[key] for key in keys if key in UNUSUAL]
        found += [expected for start, expected in USUAL.items() if name.startswith(start)]
        shape, role = found[0]
        assert (spec.shape, spec.role) == (tuple(slow if size == "S" else size for size in shape), role), name


def test_without_a_state_every_state_starts_at_zero(variant: str, make_case: Make) -> None:
    case = make_case(variant)
    given = unroll(case.cell, case.params, case.xs, {name: np.zeros_like(s) for name, s in case.state.items()})
    np.testing.assert_array_equal(unroll(case.cell, case.params, case.xs).outputs.data, given.outputs.data)


def test_a_row_depends_on_that_row_alone(variant: str, make_case: Make) -> None:
    case = make_case(variant, B=3)
    before = unroll(case.cell, case.params, case.xs, case.state).outputs.data
    xs, state = case.xs.copy(), {name: s.copy() for name, s in case.state.items()}
    xs[:, 1] += 1.0
    for s in state.values():
        s[1] -= 0.5
    after = unroll(case.cell, case.params, xs, state).outputs.data
    np.testing.assert_array_equal(after[:, [0, 2]], before[:, [0, 2]])
    assert np.all(np.any(after[:, 1] != before[:, 1], axis=-1))
    leaf = Tensor(case.xs, requires_grad=True)
    g = grad(ops.sum(unroll(case.cell, case.params, leaf, case.state).outputs[:, 1]), leaf).data
    assert not g[:, [0, 2]].any()
    assert g[:, 1].any()


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 2e-5), (np.float64, 1e-13)])
def test_dtype_is_kept(variant: str, dtype: Any, rtol: float, make_case: Make) -> None:
    case = make_case(variant, T=5, dtype=dtype)
    params = {name: Tensor(value, requires_grad=True) for name, value in case.params.items()}
    done = unroll(case.cell, params, case.xs)
    assert {value.dtype for value in (done.outputs, *done.state.values())} == {np.dtype(dtype)}
    found = grad(ops.sum(done.outputs), list(params.values()), unused="zeros")
    assert {g.dtype for g in found} == {np.dtype(dtype)}
    wide = {name: value.astype(np.float64) for name, value in case.params.items()}
    expected = unroll(case.cell, wide, case.xs.astype(np.float64))
    np.testing.assert_allclose(done.outputs.data, expected.outputs.data, rtol=rtol, atol=rtol)


def test_inputs_need_not_be_contiguous(variant: str, make_case: Make) -> None:
    case = make_case(variant)
    expected = unroll(case.cell, case.params, case.xs, case.state).outputs.data
    batch_major = np.ascontiguousarray(case.xs.swapaxes(0, 1)).swapaxes(0, 1)
    columns = {name: np.asfortranarray(value) for name, value in case.params.items()}
    every_other = {name: np.repeat(s, 2, axis=1)[:, ::2] for name, s in case.state.items()}
    assert not batch_major.flags.c_contiguous
    np.testing.assert_allclose(unroll(case.cell, columns, batch_major, every_other).outputs.data, expected, rtol=1e-14)


# Cells whose output may grow with the input, or with time.
UNBOUNDED = {
    "rnn-relu",
    "rnn-identity",
    "irnn",
    "lstm_peephole-NOAF",
    "forget_update",
    "mingru",
    "minlstm",
    "fastgrnn",
    "lru",
}


def test_extreme_inputs_stay_finite(variant: str, make_case: Make) -> None:
    case = make_case(variant, T=4)
    xs = Tensor(case.xs * 1e4, requires_grad=True)
    params = {name: Tensor(value, requires_grad=True) for name, value in case.params.items()}
    done = unroll(case.cell, params, xs, case.state)
    found = grad(ops.sum(done.outputs), [xs, *params.values()], unused="zeros")
    for value in (done.outputs, *done.state.values(), *found):
        assert np.isfinite(value.data).all()
    if variant not in UNBOUNDED:
        assert np.abs(done.outputs.data).max() <= 1.0


def test_the_printed_equation_is_what_the_step_does(variant: str, make_case: Make) -> None:
    """Its gates are announced by their names in its order, and its states come out."""
    case = make_case(variant)
    heard: list[tuple[str, Any]] = []
    with listen(lambda name, value: heard.append((name, value.data))):
        loud = unroll(case.cell, case.params, case.xs, case.state)
    quiet = unroll(case.cell, case.params, case.xs, case.state)
    np.testing.assert_array_equal(loud.outputs.data, quiet.outputs.data)
    steps = case.equation()
    gates = [(name, value) for step in steps for name, value in step.items() if not name.endswith("'")]
    assert [name for name, _ in heard] == [name for name, _ in gates]
    for (_, value), (_, expected) in zip(heard, gates, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-13, atol=1e-15)
    assert {name[:-1] for name in steps[0] if name.endswith("'")} == set(case.state)
    for name in case.state:
        for got, step in zip(quiet.states[name], steps, strict=True):
            np.testing.assert_allclose(got.data, step[f"{name}'"], rtol=1e-13, atol=1e-15)


def test_one_definition_runs_on_arrays_alone(variant: str, make_case: Make) -> None:
    """`step` with plain arrays gives plain arrays: nothing in a cell needs a tape."""
    case = make_case(variant)
    new = case.cell.step(SimpleNamespace(**case.params), case.xs[0], SimpleNamespace(**case.state))
    expected = case.reference()[0]
    for name, value in new.items():
        assert type(value) is np.ndarray
        np.testing.assert_allclose(value, expected[name], rtol=1e-13, atol=1e-15)


# ------------------------------------------------------------------------------------- the known traps


def gates_of(case: Any, state: dict[str, Array]) -> dict[str, Array]:
    """The gates of the last step, as the cell announces them."""
    heard: dict[str, Array] = {}
    with listen(lambda name, value: heard.update({name: value.data})):
        unroll(case.cell, case.params, case.xs, state)
    return heard


def test_gru_z_keeps_and_mut_z_overwrites(cell_name: str, make_case: Make) -> None:
    """reference/cells.md 1.3, 1.4: the same gate name, opposite meanings."""
    variants = {"gru": ["gru-before", "gru-after"], "mut1": ["mut1-auto"], "mut2": ["mut2-auto"], "mut3": ["mut3"]}
    for variant in variants.get(cell_name, []):
        case = make_case(variant, T=1)
        case.params["b_z"][:] = 50.0  # z = 1 to rounding
        new = unroll(case.cell, case.params, case.xs, case.state).outputs.data[0]
        (gates,) = case.equation()
        kept, other = (case.state["h"], gates["n"]) if cell_name == "gru" else (gates["n"], case.state["h"])
        np.testing.assert_allclose(new, kept, rtol=1e-12)
        assert np.abs(new - other).min() > 1e-3


def test_mut1_z_does_not_see_h_and_mut2_z_does(make_case: Make) -> None:
    for variant, sees in (("mut1-auto", False), ("mut2-auto", True), ("mut3", True)):
        case = make_case(variant, T=1)
        one, other = (gates_of(case, {"h": h})["z"] for h in (case.state["h"], case.state["h"] + 0.5))
        assert bool(np.any(one != other)) is sees
        assert ("W_hz" in case.params) is sees


def test_mut2_z_multiplies_h_by_w_hz(make_case: Make) -> None:
    """Some prints say W_hx; a matrix of that name must not exist, and W_hz must reach z."""
    case = make_case("mut2-auto", T=1)
    assert "W_hx" not in case.params
    h, W = case.state["h"], case.params["W_hz"]
    z = gates_of(case, case.state)["z"]
    a = case.xs[0] @ case.params["W_xz"] + h @ W + case.params["b_z"]
    np.testing.assert_allclose(np.log(z / (1 - z)), a, rtol=1e-9)


@pytest.mark.parametrize("cell_name", ["mut1", "mut2"])
def test_identity_map_explains_itself(cell_name: str) -> None:
    cls = load_cell(cell_name).cls
    with pytest.raises(InputError) as caught:
        cls(65, 128, {"input_map": "identity"})
    text = str(caught.value)
    assert "\n" not in text
    for part in (cell_name, "I=65", "H=128", "I = H", "learned", "fixed", "embedding of 128"):
        assert part in text


@pytest.mark.parametrize("cell_name", ["mut1", "mut2"])
def test_auto_map_is_exact_where_it_can_be(cell_name: str) -> None:
    cls = load_cell(cell_name).cls
    assert "P" not in specification(cls(4, 4))[1]
    assert specification(cls(3, 4))[1]["P"].role == "input"
    assert "P" not in specification(cls(4, 4, {"input_map": "identity"}))[1]
    assert specification(cls(4, 4, {"input_map": "fixed"}))[1]["P"].role == "buffer"


# ---------------------------------------------------------------------------------- options and sizes


@pytest.mark.parametrize(
    ("cell_name", "options", "parts"),
    [
        ("rnn", {"activation": "tahn"}, ["cell rnn", "'activation'", "tanh"]),
        ("rnn", {"activaton": "tanh"}, ["cell rnn", "'activaton'", "activation"]),
        ("lstm", {"forget_bias": "high"}, ["cell lstm", "'forget_bias'", "high"]),
        ("gru", {"form": "after"}, ["cell gru", "'form'", "reset_after"]),
        ("mut3", {"input_map": "learned"}, ["cell mut3", "'input_map'"]),
    ],
)
def test_wrong_options_name_cell_option_and_choices(cell_name: str, options: dict[str, str], parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_cell(cell_name).cls(2, 3, options)
    for part in parts:
        assert part in str(caught.value)


def test_wrong_initialiser_names_cell_and_parameter() -> None:
    with pytest.raises(InputError, match=r"cell lstm, parameter W_hi: no initialiser 'ortogonal'.*orthogonal"):
        specification(load_cell("lstm").cls(2, 3, {"recurrent_init": "ortogonal"}))


@pytest.mark.parametrize(("I", "H", "wrong"), [(0, 3, "I"), (2, -1, "H"), (2, 2.5, "H"), ("2", 3, "I")])
def test_wrong_sizes(cell_name: str, I: Any, H: Any, wrong: str) -> None:
    with pytest.raises(InputError, match=f"cell {cell_name}: expected {wrong} to be a whole number from 1, got"):
        load_cell(cell_name).cls(I, H)


def test_recurrent_init_reaches_every_recurrent_matrix_and_no_other(cell_name: str) -> None:
    cls = load_cell(cell_name).cls
    has = any(spec.role == "recurrent" and len(spec.shape) == 2 for spec in specification(cls(3, 4))[1].values())
    assert has is ("recurrent_init" in {option.name for option in dataclasses.fields(cls.Options)})
    cell = cls(3, 4, {"recurrent_init": "orthogonal:0.9"} if has else {})
    for name, spec in specification(cell)[1].items():
        matrix = spec.role == "recurrent" and len(spec.shape) == 2  # a peephole is a vector
        assert (spec.init == "orthogonal:0.9") is matrix, name


def test_forget_bias_is_the_start_value_of_b_f_alone() -> None:
    for value, text in ((1.0, "constant:1.0"), (2.5, "constant:2.5"), (0.0, "zeros"), (-1.0, "constant:-1.0")):
        params = specification(load_cell("lstm").cls(2, 3, {"forget_bias": value}))[1]
        assert {name: spec.init for name, spec in params.items() if spec.role == "bias"} == {
            "b_i": "zeros",
            "b_f": text,
            "b_o": "zeros",
            "b_g": "zeros",
        }


# -------------------------------------------------------------------------------------------- texts


def test_texts_are_there(cell_name: str) -> None:
    cls: type[Cell] = load_cell(cell_name).cls
    assert cls.name == cell_name
    for text in (cls.summary, cls.citation, cls.equation, cls.deviations, cls.__doc__ or ""):
        assert len(text.strip()) > 10
    assert "\n" not in cls.summary
    assert max(len(line) for text in (cls.equation, cls.deviations) for line in text.splitlines()) <= 130


def test_every_parameter_is_in_the_equation(cell_name: str) -> None:
    options = {"form": "reset_after"} if cell_name == "gru" else {}
    cell = load_cell(cell_name).cls(2, 3, options)
    for name in specification(cell)[1]:
        assert name in (written_out(cell) if name != "P" else cell.deviations), name


def test_every_option_has_help(cell_name: str) -> None:
    for option in dataclasses.fields(load_cell(cell_name).cls.Options):
        assert option.metadata["help"]


def test_cells_are_short(cell_name: str) -> None:
    """About 40 lines a cell: what grows beyond that belongs to the host."""
    source = inspect.getsource(load_cell(cell_name).cls)
    most = 60 if cell_name == "lstm_peephole" else 45  # nine cells in one
    assert sum(bool(line.strip()) for line in source.splitlines()) <= most


# ------------------------------------------------------------------------------- numbered parameters


class Numbered(Cell):
    """A weighted sum of powers of what comes in, one matrix each."""

    name = "numbered"
    summary = citation = "written for a test"
    equation = """\
u_{k} = tanh(x @ W_{k} + h @ (U_{k} + 1) * g_{k})      for every k
h' = sum(u_{k} * (u_{k}
  - h) for every k) + concat(h[:, :1] * g_{k} for every k)"""

    @dataclasses.dataclass(frozen=True)
    class Options:
        terms: int = dataclasses.field(default=3, metadata={"help": "number of matrices"})

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        specs = {}
        for k in range(self.options.terms):
            specs[f"W_{k}"] = input_matrix(self.I, self.H)
            specs[f"U_{k}"] = recurrent_matrix(self.H)
            specs[f"g_{k}"] = bias(1, 1.0)
        return specs

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        total, parts = 0.0, []
        for k in range(self.options.terms):
            u = ops.tanh(x @ getattr(p, f"W_{k}") + s.h @ (getattr(p, f"U_{k}") + 1.0) * getattr(p, f"g_{k}"))
            total = total + u * (u - s.h)
            parts.append(s.h[:, :1] * getattr(p, f"g_{k}"))
        return {"h": total + ops.concatenate(parts, axis=-1)}


def test_what_stands_for_every_number_is_written_out() -> None:
    assert written_out(Numbered(2, 2, {"terms": 2})).splitlines() == [
        "u_0 = tanh(x @ W_0 + h @ (U_0 + 1) * g_0)",
        "u_1 = tanh(x @ W_1 + h @ (U_1 + 1) * g_1)",
        "h' = sum([u_0 * (u_0 - h), u_1 * (u_1 - h)]) + concat([h[:, :1] * g_0, h[:, :1] * g_1])",
    ]
    many = written_out(Numbered(2, 12, {"terms": 12})).splitlines()
    assert [line.partition(" ")[0] for line in many] == [*(f"u_{k}" for k in range(12)), "h'"]
    lstm = load_cell("lstm").cls
    assert written_out(lstm(2, 3)) == lstm.equation


@pytest.mark.parametrize("terms", [1, 3])
def test_an_equation_with_numbers_is_what_the_step_does(terms: int, make_case: Make) -> None:
    cell = Numbered(2, terms, {"terms": terms})
    case = make_case("rnn", I=2, H=terms)
    params = {name: value.data + 0.1 for name, value in init_cell(cell, np.random.default_rng(0)).items()}
    found = type(case)(cell, params, case.state, case.xs).equation()
    done = unroll(cell, params, case.xs, case.state)
    np.testing.assert_allclose(done.outputs.data, np.stack([step["h'"] for step in found]), rtol=1e-12)


def test_check_finds_every_numbered_parameter_in_the_equation() -> None:
    options = {"terms": 4}
    assert documentation(Trial(Numbered, options, 3, 4, 0, None)).startswith("every state and parameter is in the")
    short = type("Short", (Numbered,), {"equation": "h' = x @ W_{i} for all i, U_{i}"})
    with pytest.raises(Noted, match="parameter W_0, U_0, g_0 and 9 more: named neither in the equation nor"):
        documentation(Trial(short, options, 3, 4, 0, None))
