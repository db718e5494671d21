"""What `step_graph` shows is what is computed: its lines are evaluated, and its claims compared with the plan."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tinygrad_rnn as tr
from tinygrad_rnn import Cell, Param, State, Tensor, bias, grad, input_matrix, ops, recurrent_matrix, step_graph
from tinygrad_rnn.cell import counted
from tinygrad_rnn.compile.schedule import make_plan
from tinygrad_rnn.compile.show import step_graph_dot, step_graph_text
from tinygrad_rnn.engine import sum_to

CELLS = tuple(row.name for row in tr.available_cells(third_party=False))


class Packed(Cell):
    """Final. Gates from one product, cut apart, behind a layer norm; a weight that is made of a parameter."""

    name = "packed"
    summary = citation = equation = "four gates at once"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,)), "c": State((self.H,))}

    def params(self) -> dict[str, Param]:
        H = self.H
        return {
            "W": Param((self.I, 4 * H), "uniform", "input"),
            "U": Param((H, 4 * H), "uniform", "recurrent"),
            "b": bias(4 * H),
            "s": bias(4 * H),
        }

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        a = x @ p.W + s.h @ p.U + p.b
        away = a - ops.mean(a, axis=1, keepdims=True)
        norm = away / ops.sqrt(ops.mean(away * away, axis=1, keepdims=True) + 1e-5) * ops.exp(p.s)
        i, f, o, g = ops.split(norm, 4, axis=1)
        c = ops.sigmoid(f) * s.c + ops.sigmoid(i) * ops.tanh(g)
        return {"h": ops.sigmoid(o) * ops.tanh(c), "c": c}


class Signs(Cell):
    """Final. Differences, quotients and powers inside each other: every pair of parentheses counts."""

    name = "signs"
    summary = citation = equation = "signs"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {"W": input_matrix(self.I, self.H), "U": recurrent_matrix(self.H), "b": bias(self.H)}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        a = x @ p.W - (p.b - s.h @ p.U)
        y = a - (s.h - (x @ p.W) * 0.5) / (2.0 - (a / (s.h * s.h + 1.5))) ** 2.0
        return {"h": ops.tanh(-(y - 1.0) * (y + 0.25) / (1.0 + ops.exp(-y)) - -s.h)}


class Looks(Cell):
    """Final. Looks at a value."""

    name = "looks"
    summary = citation = equation = "if"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {"W": input_matrix(self.I, self.H)}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        h = ops.tanh(x @ p.W + s.h)
        return {"h": h * 2.0 if h[0, 0] > 0 else h}


class Running(Cell):
    """Final. An op that machine code does not have."""

    name = "running"
    summary = citation = equation = "a running sum"

    def state(self) -> dict[str, State]:
        return {"h": State((self.H,))}

    def params(self) -> dict[str, Param]:
        return {"W": input_matrix(self.I, self.H)}

    def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
        return {"h": ops.cumsum(ops.tanh(x @ p.W) + s.h, axis=1) * 0.1}


def make(name: str, I: int = 3, H: int = 4, **options: str) -> Cell:
    own: dict[str, type[Cell]] = {"packed": Packed, "signs": Signs, "looks": Looks, "running": Running}
    return own[name](I, H) if name in own else tr.load_cell(name).cls(I, H, options)


# ------------------------------------------------------------------------------------------- evaluation


@dataclass
class Numbers:
    """Everything of one timestep: arrays by the name that a graph gives them."""

    known: dict[str, Any]
    gradients: dict[str, Any]
    new: dict[str, Any]
    params: dict[str, Any] = field(default_factory=dict)


def numbers(cell: Cell, B: int) -> Numbers:
    rng = np.random.default_rng(0)
    states, params = tr.specification(cell)
    given = {"x": rng.normal(size=(B, cell.I))} | {n: rng.normal(size=(B, *s.shape)) for n, s in states.items()}
    weights = {n: rng.normal(size=s.shape) * 0.5 for n, s in params.items()}
    seeds = {n: rng.normal(size=(B, *s.shape)) for n, s in states.items()}
    leaves = {n: Tensor(v, requires_grad=True) for n, v in {**given, **weights}.items()}
    new = cell.step(
        SimpleNamespace(**{n: leaves[n] for n in weights}),
        leaves["x"],
        SimpleNamespace(**{n: leaves[n] for n in states}),
    )
    new = counted(cell, new, leaves, states)
    loss = sum((ops.sum(new[n] * seeds[n]) for n in states), start=Tensor(0.0))
    found = grad(loss, list(leaves.values()), unused="zeros")
    gradients = {n: g.data for n, g in zip(leaves, found, strict=True)}
    return Numbers(
        {**given, **weights, **{f"seed {n}": g for n, g in seeds.items()}},
        gradients,
        {n: v.data for n, v in new.items()},
    )


def evaluated(values: Any, known: dict[str, Any]) -> None:
    """Compute every line, in order, into `known`."""
    functions = {n: getattr(ops, n) for n in "sigmoid tanh exp sqrt relu where softplus cos sin".split()}
    functions |= {"concatenate": lambda *parts, axis: np.concatenate(parts, axis=axis)}
    functions |= {"scatter": lambda g, at: np.pad(g, [(0, 0), (at, known["h"].shape[1] - at - g.shape[1])])}
    functions |= {"sum_to": sum_to, "sum": lambda x, axis, keepdims=False: np.sum(x, axis=axis, keepdims=keepdims)}
    for value in values:
        text = value.text
        if text.startswith("from the loss"):
            known[value.name] = known[f"seed {value.name[2:-1]}"]
            continue
        text = text.replace("^T", ".T").removeprefix("sum over t of ")  # there is one timestep
        text = re.sub(r"sum of (\w+|\((?:[^()]|\([^()]*\))*\))", r"sum(\1, axis=0)", text)
        text = re.sub(r"(scatter\(\w+), \[:, (\d+):\d*\]", r"\1, \2", text)
        text = re.sub(r"([\w]+)'", r"\1_after", text)
        scope = {name.replace("'", "_after"): array for name, array in known.items()}
        result = eval(text, {"__builtins__": {}}, {**functions, **scope})
        known[value.name] = np.asarray(getattr(result, "data", result))


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("stage", ["traced", "scheduled"])
@pytest.mark.parametrize("name", [*CELLS, "signs"])
def test_the_lines_compute_the_step_and_its_gradient(name: str, stage: Any, folded: bool) -> None:
    cell, B = make(name), 5
    told = numbers(cell, B)
    graph = step_graph(cell, B, dtype="float64", stage=stage, folded=folded)
    known = dict(told.known)
    for part in graph.parts:
        evaluated(part.values, known)
    for state, value in told.new.items():
        np.testing.assert_allclose(known[f"{state}'"], value, rtol=1e-12, atol=1e-12)
    for leaf, gradient in told.gradients.items():
        if leaf in ("zeta", "nu", "nu_log", "theta_log", "gamma_log") and stage == "scheduled":
            continue  # what is made of them alone became a weight, and the rest is left to the tape
        if f"d_{leaf}" not in known and not gradient.any():
            continue  # it was compared with something, and no gradient reaches it
        derived = [name for name in known if re.fullmatch(r"d_w\d+", name)]
        got = known[f"d_{leaf}"] if f"d_{leaf}" in known else -known[derived[0]]  # -b became a weight of its own
        if np.shape(got) != gradient.shape:  # one number for all units: what each of them asks for is told
            got = np.sum(got, axis=-1, keepdims=True)
        np.testing.assert_allclose(got, gradient, rtol=1e-11, atol=1e-12, err_msg=leaf)


@pytest.mark.parametrize("stage", ["traced", "scheduled"])
def test_slices_reductions_and_derived_weights_compute_the_step(stage: Any) -> None:
    cell, B = make("packed"), 5
    told = numbers(cell, B)
    known = dict(told.known)
    graph = step_graph(cell, B, dtype="float64", stage=stage, direction="forward")
    for part in graph.parts:
        evaluated(part.values, known)
    for state, value in told.new.items():
        np.testing.assert_allclose(known[f"{state}'"], value, rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------------------------- contents


def part(graph: Any, key: str) -> dict[str, Any]:
    (found,) = [p for p in graph.parts if p.key == key]
    return {value.name: value for value in found.values}


def test_an_lstm_reads_like_its_equations() -> None:
    graph = step_graph(make("lstm"), 2)
    assert {name: v.text for name, v in part(graph, "before").items()} == {
        f"x_{g}": f"x @ W_x{g} + b_{g}" for g in "ifog"
    }
    loop = part(graph, "loop")
    assert loop["a_i"].text == "x_i + h @ W_hi"
    assert (loop["i"].text, loop["i"].note, loop["i"].shape) == ("sigmoid(a_i)", "kept", ("B", 4))
    assert re.fullmatch(r"lstm\.py:\d+", loop["i"].where)
    assert loop["c'"].text == "f * c + i * g"
    back = part(graph, "back")
    assert back["d_a_i"].text == "d_i * (i * (1 - i))"
    assert back["d_i"].where == loop["i"].where
    sinks = part(graph, "sinks")
    assert sinks["d_W_hi"].text == "h^T @ d_a_i" and sinks["d_b_i"].text == "sum of d_a_i"
    assert part(graph, "after")["d_x"].shape == ("B", 3)
    assert part(graph, "step")["a_i"].text == "x @ W_xi + h @ W_hi + b_i"


def test_a_name_means_one_value_in_a_part_and_is_known_when_it_is_read() -> None:
    for name in (*CELLS, "packed", "signs"):
        for folded in (True, False):
            for masked in (True, False):
                graph = step_graph(make(name), 2, masked=masked, folded=folded)
                weights = set(tr.specification(make(name))[1])
                for stage in ("traced", "scheduled"):
                    known = {*graph.inputs, *weights}
                    for p in [p for p in graph.parts if p.stage == stage]:
                        assert len({v.name for v in p.values}) == len(p.values)
                        for value in p.values:
                            assert set(value.reads) <= known, (name, p.key, value)
                            known.add(value.name)


def test_variables_of_the_author_are_names_and_nothing_of_the_profile_stays() -> None:
    import sys

    before = sys.getprofile()
    graph = step_graph(make("packed"), 2)
    assert sys.getprofile() is before
    loop = part(graph, "loop")
    assert {"away", "norm", "a", "i"} <= loop.keys()
    assert part(graph, "once")["w3"].text == "exp(s)"
    assert "goes on to the parameters" in part(graph, "sinks")["d_w3"].note


def test_kept_is_what_the_plan_keeps() -> None:
    for name in CELLS:
        cell = make(name)
        plan = make_plan(cell, 2, np.float32, False)
        graph = step_graph(cell, 2, stage="scheduled", folded=False)
        shown = {v.symbol for p in graph.parts for v in p.values if v.note == "kept"}
        assert shown == {s.name for s in plan.kept | set(plan.step.new.values())}
        again = {v.symbol for p in graph.parts for v in p.values if v.note == "again"}
        forward = {*plan.before, *plan.loop}
        assert again == {s.name for s in {*plan.back, *plan.after} & forward}


def test_stage_and_direction_choose() -> None:
    cell = make("gru")
    for stage in ("traced", "scheduled"):
        for direction in ("forward", "backward"):
            parts = step_graph(cell, 2, stage=stage, direction=direction).parts  # type: ignore[arg-type]
            assert parts and {(p.stage, p.direction) for p in parts} == {(stage, direction)}


def test_a_gradient_that_is_no_sum_over_rows_is_added_up_in_the_loop() -> None:
    class Mixed(Signs):
        """Final. A sum over the batch mixes its rows, so the gradient of b is no sum over rows."""

        def step(self, p: Any, x: Any, s: Any) -> dict[str, Any]:
            return {"h": ops.tanh(x @ p.W + s.h @ p.U + ops.sum(x, axis=0) * p.b)}

    graph = step_graph(Mixed(3, 3), 2, stage="scheduled")
    assert part(graph, "stepwise")["d_b"].text == "sum over t of d_b_t"
    assert "d_b_t" in part(graph, "back") and "d_b" not in part(graph, "sinks")


def test_a_cell_that_is_refused_says_why() -> None:
    graph = step_graph(make("looks"), 2)
    assert graph.parts == () and "test_show.py:" in graph.refused
    assert f"not compiled: {graph.refused}" in step_graph_text(graph)
    with pytest.raises(tr.InputError, match=r"no machine code.*test_show\.py:"):
        if not llvm():
            pytest.skip("needs llvmlite, of the extra fast")
        tr.step_code(make("looks"), 2)
    graph = step_graph(make("running"), 2)
    assert not graph.refused and graph.no_machine_code.startswith("cumsum (test_show.py:")
    assert "no machine code: it has no cumsum" in step_graph_text(graph)


def llvm() -> bool:
    import importlib.util

    return importlib.util.find_spec("llvmlite") is not None


def test_the_code_has_the_lines_of_the_author() -> None:
    if not llvm():
        pytest.skip("needs llvmlite, of the extra fast")
    text = tr.step_code(make("lstm"), 2)
    for wanted in ("define void @loop", "define void @sinks", "= sigmoid(", "lstm.py:", "h @ W_hi"):
        assert wanted in text


def test_dot_has_a_box_for_every_value_and_an_arrow_for_every_reading() -> None:
    graph = step_graph(make("gru"), 2, stage="scheduled")
    text = step_graph_dot(graph)
    boxes = re.findall(r"^ +(scheduled\d+) \[label=", text, re.MULTILINE)
    assert len(boxes) == len(set(boxes)) == sum(len(p.values) for p in graph.parts)
    leaves = set(re.findall(r"^ +(\w+) \[shape=ellipse", text, re.MULTILINE))
    arrows = re.findall(r"^  (\w+) -> (\w+)( \[style=dashed.*)?", text, re.MULTILINE)
    assert {end for a, b, _ in arrows for end in (a, b)} <= {*boxes, *leaves}
    weights = set(tr.specification(make("gru"))[1])
    plain = sum(len([r for r in v.reads if r not in weights]) for p in graph.parts for v in p.values)
    assert len([a for a in arrows if not a[2]]) == plain
    assert len([a for a in arrows if a[2]]) == 2  # h to the next timestep, its gradient to the one before
    assert text.count("{") == text.count("}")


def test_long_sums_are_broken_between_summands() -> None:
    lines = step_graph_text(step_graph(make("lstm", 3, 4), 2, stage="scheduled", direction="backward")).splitlines()
    assert max(map(len, lines)) < 110
    at = next(i for i, line in enumerate(lines) if line.startswith("  d_h  "))
    assert lines[at + 1].strip().startswith("+ d_a_")
