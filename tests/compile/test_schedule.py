"""Facts about schedules that follow from the equations of a cell: what is where, what is kept, and how much."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import tinygrad_rnn as tr
from tinygrad_rnn import Cell, Param, State, bias, input_matrix, ops, recurrent_matrix, tap
from tinygrad_rnn.compile.layout import make_layout, size
from tinygrad_rnn.compile.schedule import Plan, make_plan
from tinygrad_rnn.compile.trace import MATMUL, TRANSPOSE, Symbol, ancestors, depends, total

I, H, B = 3, 4, 2
CELLS = tuple(row.name for row in tr.available_cells(third_party=False))


class Own(Cell):
    """Abstract: one state, and nothing to say about itself."""

    summary = citation = equation = "of a test"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}


class MinimalRNN(Own):
    """Final. Chen 2017; with the equations of the issue."""

    name = "minimal"

    def params(self) -> dict[str, Param]:
        H = self.H
        return {
            "W_z": input_matrix(self.I, H), "U_h": recurrent_matrix(H), "U_z": recurrent_matrix(H), "b": bias(H)
        }  # fmt: skip

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        z = ops.tanh(x @ p.W_z)
        u = ops.sigmoid(s.h @ p.U_h + z @ p.U_z + p.b)
        return {"h": u * s.h + (1.0 - u) * z}


class Packed(Own):
    """Final. An LSTM whose gates are one product, cut apart."""

    name = "packed"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,)), "c": State((self.H,))}

    def params(self) -> dict[str, Param]:
        H = self.H
        return {
            "W": Param((self.I, 4 * H), "uniform", "input"), "U": Param((H, 4 * H), "uniform", "recurrent"),
            "b": bias(4 * H),
        }  # fmt: skip

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        i, f, o, g = ops.split(x @ p.W + s.h @ p.U + p.b, 4, axis=1)
        c = ops.sigmoid(f) * s.c + ops.sigmoid(i) * ops.tanh(g)
        return {"h": ops.sigmoid(o) * ops.tanh(c), "c": c}


class LayerNorm(Own):
    """Final. A tanh cell behind a layer norm over its units."""

    name = "layer_norm"

    def params(self) -> dict[str, Param]:
        return {
            "W": input_matrix(self.I, self.H), "U": recurrent_matrix(self.H),
            "b": bias(self.H), "scale": bias(self.H, 1.0),
        }  # fmt: skip

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        a = x @ p.W + s.h @ p.U
        away = a - ops.mean(a, axis=1, keepdims=True)
        spread = ops.sqrt(ops.mean(away * away, axis=1, keepdims=True) + 1e-5)
        return {"h": ops.tanh(away / spread * p.scale + p.b)}


class Derived(Own):
    """Final. Its recurrent matrix is made of a parameter: the tape does that, once."""

    name = "derived"

    def params(self) -> dict[str, Param]:
        return {"W": input_matrix(self.I, self.H), "V": recurrent_matrix(self.H), "b": bias(self.H)}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        U = ops.tanh(p.V) - ops.transpose(p.V)
        return {"h": tap("out", ops.tanh(tap("sum", x @ p.W + p.b + s.h @ U)))}


class ReadOut(Own):
    """Final. Four states that no step reads: a map of h, one of that map, one of the old h, and h once more."""

    name = "read_out"
    output = "y"

    def state(self) -> dict[str, State]:
        return {name: State((self.H,)) for name in ("h", "y", "z", "old", "twice")}

    def params(self) -> dict[str, Param]:
        H = self.H
        return {"W": input_matrix(self.I, H), **{name: recurrent_matrix(H) for name in ("U", "C", "D", "E")}}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = tap("h'", ops.tanh(x @ p.W + s.h @ p.U))
        y = tap("y'", ops.sigmoid(h @ p.C))
        return {"h": h, "y": y, "z": tap("z'", (y * h) @ p.D), "old": ops.tanh(s.h @ p.E), "twice": 2.0 * h}


OWN: dict[str, type[Cell]] = {cls.name: cls for cls in (MinimalRNN, Packed, LayerNorm, Derived, ReadOut)}


def plan_of(name: str, *, masked: bool = False, rows: int = B, **options: str) -> Plan:
    cell = OWN[name](I, H) if name in OWN else tr.load_cell(name).cls(I, H, options)
    return make_plan(cell, rows, np.float32, masked)


def products(symbols: Iterable[Symbol]) -> list[str]:
    """ "h @ W_hi" for every product, sorted; an operand without a name is t, a transposed one gets ^T."""

    def name(s: Symbol) -> str:
        if s.op is TRANSPOSE:
            return f"{name(s.args[0])}^T"
        return s.graph.taps.get(s.number) or (s.name if s.op is None else "t")

    return sorted(f"{name(s.args[0])} @ {name(s.args[1])}" for s in symbols if s.op is MATMUL)


def kept(plan: Plan) -> list[str]:
    """Taps, or ops, of what is kept for all timesteps."""
    return sorted(s.graph.taps.get(s.number) or (s.op.__name__ if s.op else s.name) for s in plan.kept)


def sinks(plan: Plan) -> dict[str, list[tuple[str, ...]]]:
    """weight -> (left operand, "" for a bias) of each of its parts; values without a name by their op."""
    return {
        weight.name: [("" if s.a is None else s.a.name if s.a.op is None else s.a.op.__name__,) for s in parts]
        for weight, parts in plan.sinks.items()
    }


# ------------------------------------------------------------------------------------------------- forward


def test_lstm() -> None:
    plan = plan_of("lstm")
    assert products(plan.before) == sorted(f"x @ W_x{g}" for g in "ifog")
    assert products(plan.loop) == sorted(f"h @ W_h{g}" for g in "ifog")
    assert kept(plan) == ["f", "g", "i", "o", "tanh"]
    assert products(plan.back) == ["t @ W_hf^T", "t @ W_hg^T", "t @ W_hi^T", "t @ W_ho^T"]
    assert products(plan.after) == ["t @ W_xf^T", "t @ W_xg^T", "t @ W_xi^T", "t @ W_xo^T"]
    expected = {f"W_x{g}": [("x",)] for g in "ifog"} | {f"W_h{g}": [("h",)] for g in "ifog"}
    assert sinks(plan) == expected | {f"b_{g}": [("",)] for g in "ifog"}
    for gate in "ifog":  # one gradient serves the three weights of a gate
        used = {
            s.g for w, parts in plan.sinks.items() if w.name in (f"W_x{gate}", f"W_h{gate}", f"b_{gate}") for s in parts
        }
        assert len(used) == 1


def test_biases_are_added_before_the_loop_and_the_product_with_the_state_last() -> None:
    plan = plan_of("lstm")
    sums = [s for s in plan.loop if s.op is total]
    assert len(sums) == 4
    for s in sums:
        early, late = s.args
        assert (
            early in set(plan.before)
            and early.op is total
            and {a.name for a in early.args} & {f"b_{g}" for g in "ifog"}
        )
        assert late.op is MATMUL and late.args[0] is plan.step.states["h"]


def test_gru_resets_before_or_after_its_product() -> None:
    before = plan_of("gru")
    (n,) = [s for s in before.loop if s.op is MATMUL and s.args[1].name == "W_hn"]
    assert n.args[0].op is ops.mul and before.step.states["h"] in set(n.args[0].args)
    assert products(before.loop) == ["h @ W_hr", "h @ W_hz", "t @ W_hn"]
    assert sinks(before)["W_hn"] == [("mul",)]
    assert n.args[0] in before.kept  # it is in memory for the product, and is what the sink multiplies
    after = plan_of("gru", form="reset_after")
    assert products(after.loop) == ["h @ W_hn", "h @ W_hr", "h @ W_hz"]
    assert sinks(after)["W_hn"] == [("h",)] and sinks(after)["b_hn"] == [("",)]
    # the gradient of h W_hn + b_hn has been multiplied by r, that of x W_xn has not
    g = {w.name: parts[0].g for w, parts in after.sinks.items()}
    assert g["W_hn"] is g["b_hn"] and g["W_xn"] is g["b_n"] and g["W_hn"] is not g["W_xn"]


def test_minimal_rnn_needs_one_product_in_the_loop() -> None:
    plan = plan_of("minimal")
    assert products(plan.before) == ["t @ U_z", "x @ W_z"]
    assert products(plan.loop) == ["h @ U_h"]
    assert products(plan.back) == ["t @ U_h^T"]
    assert products(plan.after) == ["t @ U_z^T", "t @ W_z^T"]
    assert kept(plan) == ["sigmoid", "tanh"]
    assert sinks(plan) == {"W_z": [("x",)], "U_h": [("h",)], "U_z": [("tanh",)], "b": [("",)]}


def test_mut1_knows_its_update_gate_before_the_loop() -> None:
    plan = plan_of("mut1")
    taps = {s.graph.taps.get(s.number): part for part in (plan.before, plan.loop) for s in part}
    assert taps["z"] is plan.before and taps["r"] is plan.loop and taps["n"] is plan.loop
    assert len(products(plan.loop)) == len(products(plan.back)) == 2
    assert not any("@ W_xz" in text for text in products(plan.back))


def test_the_output_map_of_an_lru_leaves_no_product_in_the_loop() -> None:
    plan = plan_of("lru")
    assert products(plan.before) == ["x @ B_im", "x @ B_re", "x @ D"]
    assert products(plan.behind) == ["t @ C_im", "t @ C_re"] and not products(plan.loop)
    assert products(plan.ahead) == ["t @ C_im^T", "t @ C_re^T"] and not products(plan.back)
    assert [seed.name for seed in plan.early_seeds] == ["dy"] and plan.carried["y"] is None
    assert all(s.op in (ops.add, ops.sub, ops.mul) for s in plan.loop)
    assert sinks(plan)["C_re"] == [("add",)]  # over all rows at once, as for every weight


@pytest.mark.parametrize("rows", [1, 2])
def test_behind_the_loop_is_what_no_step_reads_around_a_product(rows: int) -> None:
    plan = plan_of("read_out", rows=rows)
    assert products(plan.loop) == ["h @ U"]
    assert products(plan.behind) == ["h @ E", "h' @ C", "t @ D"]
    assert {plan.step.new[name] for name in ("y", "old")} <= set(plan.behind)
    assert plan.step.new["twice"] in set(plan.loop)  # a product of numbers is cheaper there
    assert products(plan.back) == ["t @ U^T"]
    assert products(plan.ahead) == ["t @ C^T", "t @ D^T", "t @ E^T"]
    assert [seed.name for seed in plan.early_seeds] == ["dy", "dz", "dold"]
    assert plan.carried["h"] in set(plan.back)
    assert {a for s in plan.behind for a in s.parents}.isdisjoint(plan.seeds.values())
    assert set(plan.forward).isdisjoint(depends(plan.forward, {plan.step.states["y"]}))  # nobody reads it indeed


def test_a_masked_row_keeps_its_output_in_the_loop() -> None:
    plan = plan_of("lru", masked=True)
    assert not plan.behind and not plan.ahead
    assert products(plan.loop) == ["t @ C_im", "t @ C_re"]


def test_what_is_read_stays_in_the_loop() -> None:
    for name in CELLS:
        if name != "lru":
            plan = plan_of(name)
            assert not plan.behind and not plan.ahead and plan.loop_seeds == list(plan.seeds.values())


def test_packed_gates_are_one_product() -> None:
    plan = plan_of("packed")
    assert products(plan.before) == ["x @ W"] and products(plan.loop) == ["h @ U"]
    assert products(plan.back) == ["t @ U^T"] and products(plan.after) == ["t @ W^T"]
    assert sinks(plan) == {"W": [("x",)], "U": [("h",)], "b": [("",)]}
    assert {size(parts[0].g) for parts in plan.sinks.values()} == {4 * H}
    assert kept(plan) == ["sigmoid"] * 3 + ["tanh"] * 2


def test_a_layer_norm_stays_in_the_loop_and_its_weights_are_sinks() -> None:
    plan = plan_of("layer_norm")
    assert products(plan.loop) == ["h @ U"] and products(plan.before) == ["x @ W"]
    assert {w.name for w in plan.sinks} == {"W", "U", "b", "scale"} and not plan.stepwise
    assert all(s in plan.rows for s in plan.loop)
    narrow = [s for s in plan.kept if size(s) == 1]
    assert narrow and all(s.shape == (B, 1) for s in narrow)


def test_what_needs_parameters_alone_is_left_to_the_tape() -> None:
    plan = plan_of("derived")
    sources = {source.kind: source for source in plan.weights.values()}
    assert sources["op"].op is ops.sub and sources["op"].shape == (H, H)
    (leaf,) = [leaf for leaf, source in plan.weights.items() if source.kind == "op"]
    assert products(plan.loop) == [f"h @ {leaf.name}"]
    assert leaf in plan.sinks and {w.name for w in plan.sinks} == {"W", "b", leaf.name}
    assert not [s for s in [*plan.before, *plan.loop] if s.op in (ops.tanh, TRANSPOSE) and s.shape == (H, H)]


def test_taps_and_places_are_carried_over_and_parts_of_a_sum_have_none() -> None:
    plan = plan_of("derived")
    taps = plan.step.graph.taps
    named = [(taps[s.number], s) for s in [*plan.before, *plan.loop] if s.number in taps]
    assert sorted(name for name, _ in named) == ["out", "sum"]
    assert {name: s for name, s in named}["sum"] in set(plan.loop)
    assert all(s.where.startswith("test_schedule.py:") for s in [*plan.before, *plan.loop])


# ------------------------------------------------------------------------------------------- for every cell


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("name", [*CELLS, *OWN])
def test_every_schedule_is_in_order_and_whole(name: str, rows: int, masked: bool) -> None:
    plan = plan_of(name, masked=masked, rows=rows)
    states = set(plan.step.states.values())
    leaves = {plan.step.x, *states, *plan.weights, *plan.seeds.values()} | ({plan.step.mask} - {None})
    for lists in ((plan.before, plan.loop, plan.behind), (plan.ahead, plan.back, plan.after)):
        assert len(set().union(*lists)) == sum(len(part) for part in lists)
    assert states.isdisjoint(ancestors(plan.before)), "what is done before the loop knows no state"
    assert set(plan.loop).isdisjoint(depends(plan.forward, set(plan.behind))), "the loop knows nothing from behind it"
    assert set(plan.ahead).isdisjoint(depends(plan.backward, set(plan.loop_seeds))), "nor what is ahead, of the loop"

    def run(known: set[Any], symbols: Iterable[Symbol]) -> set[Any]:
        for s in symbols:
            assert set(s.parents) <= known, f"{s.name} = {s.op} of {s.parents} is not known yet"
            known = known | {s}
        return known

    once_forward = [s for s in plan.once if not set(ancestors([s])) & set(plan.seeds.values())]
    forward = run({*leaves, *once_forward} - set(plan.seeds.values()), plan.forward)
    assert set(plan.step.new.values()) <= forward
    held = {*leaves, *plan.once, *plan.kept, *plan.step.new.values()}
    backward = run(held, [*plan.ahead, *plan.back])
    wanted = {*plan.totals.values(), *plan.stepwise.values(), *(s for s in plan.carried.values() if s is not None)}
    assert wanted <= backward
    late = run(backward, plan.after)
    operands = {s for parts in plan.sinks.values() for sink in parts for s in (sink.g, sink.a) if s is not None}
    assert operands <= late and (plan.dx is None or plan.dx in late)


@pytest.mark.parametrize("name", [*CELLS, *OWN])
def test_every_weight_of_an_ordinary_cell_is_a_sink(name: str) -> None:
    for rows in (1, 2):
        plan = plan_of(name, rows=rows)
        compared = {weight for weight in plan.weights if weight.name == "period"}  # of a clock: no gradient reaches it
        assert not plan.stepwise and set(plan.sinks) == set(plan.weights) - compared
        for weight, parts in plan.sinks.items():
            assert all((part.a is not None) == (len(weight.shape) == 2) for part in parts)
            for part in parts:
                units = H if weight.shape == (1,) else weight.shape[-1]  # one number for all is added up by the tape
                assert size(part.g) == units and part.g in plan.rows


@pytest.mark.parametrize("name", [*CELLS, *OWN])
def test_no_product_with_a_weight_of_the_input_is_in_a_loop(name: str) -> None:
    plan = plan_of(name)
    of_input = {w for w in plan.weights if w.shape == (I, H) or w.shape == (I, 4 * H)}
    for s in [*plan.loop, *plan.back]:
        if s.op is MATMUL:
            assert of_input.isdisjoint(ancestors([s.args[1]]))


def test_kept_values_are_not_cheap_unless_they_are_operands() -> None:
    for name in CELLS:
        plan = plan_of(name)
        operands = {s.a for parts in plan.sinks.values() for s in parts}
        for s in plan.kept:
            costly = s.op in (ops.sigmoid, ops.tanh, ops.exp, MATMUL, total)
            costly = costly or any(a.op is ops.remainder for a in s.parents)  # 0 or 1, of a division
            assert costly or s in operands, f"{name} keeps {s.op}"


# -------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("name", "units"),
    [("rnn", 1), ("lstm", 5), ("gru", 4), ("mut1", 5), ("mut2", 4), ("mut3", 5), ("minimal", 2), ("derived", 1)],
)
def test_rows_of_buffers(name: str, units: int) -> None:
    """Numbers kept per timestep and row, in H, beside the states: a gate is written over its own sum.

    rnn: the sum alone, h being a state. lstm: the gates and tanh(c). gru, mut2: the gates and r * h. mut1, mut3:
    these and a tanh of the input or of h. minimal: z and u.
    """
    layout = make_layout(plan_of(name))
    assert sum(layout.rows.values()) == units * H, layout.rows
    assert layout.rows == make_layout(plan_of(name, rows=5)).rows


def test_gates_cut_from_one_sum_cost_that_sum_beside_them() -> None:
    layout = make_layout(plan_of("packed"))
    assert 5 * H <= sum(layout.rows.values()) <= 9 * H, layout.rows


def test_memory_of_an_lstm_is_four_gates_and_a_tanh() -> None:
    layout = make_layout(plan_of("lstm"))
    assert sorted(layout.rows.values()) == [H] * 5
    assert set(layout.carry) == {"h", "c"}
    assert sum(layout.back_rows.values()) <= (4 + 2) * H + I  # gradients of gates, totals of h and c, and dx


def test_a_state_that_knows_neither_input_nor_state_is_one_of_every_timestep() -> None:
    class Constant(Own):
        """Final. Its state is a parameter."""

        name = "constant"

        def params(self) -> dict[str, Param]:
            return {"b": bias(self.H)}

        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            return {"h": ops.broadcast_to(ops.reshape(p.b, (1, self.H)), (x.shape[0], self.H))}

    plan = make_plan(Constant(I, H), B, np.float32, False)
    assert plan.sinks or plan.stepwise
    assert len(plan.weights) == 1


class CutsOften(Own):
    """Cuts the same slice four times."""

    name = "cuts_often"

    def params(self) -> dict[str, Param]:
        return {f"U{k}": Param((self.H // 2, self.H), "uniform", "recurrent") for k in range(4)} | {
            "W": input_matrix(self.I, self.H)
        }

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        half = self.H // 2
        a, b, c = (ops.sigmoid(s.h[:, :half] @ getattr(p, f"U{k}")) for k in range(3))
        return {"h": a * s.h + b * c * ops.tanh(x @ p.W + s.h[:, :half] @ p.U3)}


def test_a_slice_that_is_cut_four_times_is_one() -> None:
    plan = make_plan(CutsOften(3, 6), 2, np.float64, False)
    assert [s.op.__name__ for s in plan.loop if s.op is not None].count("getitem") == 1
    assert [s.op.__name__ for s in plan.back if s.op is not None].count("scatter") == 1
    rows = {row.name: row.outcome for row in tr.check_cell(CutsOften, raises=False, H=6).checks}
    assert (rows["scan"], rows["gradients"], rows["masks"]) == ("passed", "passed", "passed")
