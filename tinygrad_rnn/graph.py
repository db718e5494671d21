"""Pictures of the tape, as Graphviz text: what a tensor was computed from, and one step of a cell, folded.

Draw one with ``dot -Tsvg``. Boxes are ops, ellipses are tensors that no op made, arrows follow the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from tinygrad_rnn import engine
from tinygrad_rnn.cell import counted
from tinygrad_rnn.engine import Node
from tinygrad_rnn.errors import GradientError, InputError
from tinygrad_rnn.tensor import Tensor

SYMBOLS = {"add": "+", "sub": "−", "mul": "×", "div": "÷", "matmul": "@", "neg": "−x", "pow": "^"}


def to_dot(y: Tensor, names: Mapping[str, Tensor] | None = None) -> str:
    """Graphviz text of everything on the tape that `y` was computed from.

    `names` gives tensors a label; a leaf without a name shows its shape alone.
    Raises GradientError when `y` is a constant.
    """
    if y.node is None:
        raise GradientError("to_dot: expected a tensor computed from tensors with requires_grad=True, got a constant")
    return _document(_Drawing([y.node], names or {}).lines())


def cell_to_dot(cell: Any, batch: int = 2) -> str:
    """Graphviz text of one step of `cell` (a `tinygrad_rnn.Cell`), folded: a dashed arrow leads to the next timestep.

    States are at the top as they come in and at the bottom as they go out; parameters are ellipses; a value that the
    cell announces by `tap` carries its name. Shapes are those of `batch` sequences.
    Raises InputError for what is not a cell.
    """

    def leaf(*shape: int) -> Tensor:
        return Tensor(np.full(shape, 0.5), requires_grad=True)

    if not isinstance(getattr(cell, "I", None), int):
        raise InputError(f"cell_to_dot: expected a cell with its sizes, as load_cell('lstm').cls(I, H), got {cell!r}")
    x = leaf(batch, cell.I)
    params = {name: leaf(*spec.shape) for name, spec in cell.params().items()}
    shapes = cell.state()
    old = {name: leaf(batch, *spec.shape) for name, spec in shapes.items()}
    means = {name: kind.mean for name, kind in cell.noise().items()}
    taps: dict[str, Tensor] = {}
    with engine.recording(), engine.listen(lambda name, value: taps.update({name: value})):
        new = cell.step(SimpleNamespace(**params, **means), x, SimpleNamespace(**old))
        new = counted(cell, new, old, shapes)  # t + 1 of a timestep, which the library adds
    drawing = _Drawing(
        [value.node for value in new.values() if value.node is not None], {**taps, "x": x, **params, **old}
    )
    lines = drawing.lines()
    entries = [x.node, *(value.node for value in old.values())]
    lines.append("{ rank=source; " + " ".join(f"{drawing.ids[n]};" for n in entries if n in drawing.ids) + " }")
    for k, (name, value) in enumerate(new.items()):
        lines.append(f"out{k} [shape=ellipse, style=bold, label={_quoted(f'{name} (next)', _facts(value))}];")
        if value.node is not None:
            lines.append(f"{drawing.ids[value.node]} -> out{k};")
        before: Any = old[name].node
        if before in drawing.ids:
            lines.append(f'out{k} -> {drawing.ids[before]} [style=dashed, constraint=false, label="next timestep"];')
    lines.append("{ rank=sink; " + " ".join(f"out{k};" for k in range(len(new))) + " }")
    return _document(lines, title=f"{cell.name}: one step")


class _Drawing:
    """The nodes below `roots`, each with an id; inputs before what is made of them, the same on every run."""

    def __init__(self, roots: Sequence[Node], names: Mapping[str, Tensor]) -> None:
        self.names = {tensor.node: name for name, tensor in names.items() if tensor.node is not None}
        seen = dict.fromkeys(roots)
        stack = list(roots)
        while stack:
            for parent in stack.pop().parents:
                if parent is not None and parent not in seen:
                    seen[parent] = None
                    stack.append(parent)
        self.ids = {node: f"n{k}" for k, node in enumerate(sorted(seen, key=lambda node: node.number))}

    def lines(self) -> list[str]:
        return [self._box(node) for node in self.ids] + [
            f"{self.ids[parent]} -> {self.ids[node]};"
            for node in self.ids
            for parent in node.parents
            if parent is not None
        ]

    def _box(self, node: Node) -> str:
        name = self.names.get(node)
        if node.op is None:
            return f"{self.ids[node]} [shape=ellipse, label={_quoted(*([name] if name else []), _facts(node))}];"
        op = SYMBOLS.get(node.op.__name__, node.op.__name__)
        return f"{self.ids[node]} [label={_quoted(f'{name} = {op}' if name else op, _facts(node))}];"


def _facts(thing: Any) -> str:
    return f"{tuple(thing.shape)} {thing.dtype}"


def _quoted(*rows: str) -> str:
    """A Graphviz string of these rows."""
    return '"' + "\\n".join(row.replace("\\", "\\\\").replace('"', '\\"') for row in rows) + '"'


def _document(lines: Sequence[str], title: str = "") -> str:
    head = [
        "rankdir=TB;",
        'node [shape=box, fontname="Helvetica", fontsize=11];',
        'edge [fontname="Helvetica", fontsize=10];',
    ]
    if title:
        head.append(f'label={_quoted(title)}; labelloc=t; fontname="Helvetica";')
    return "digraph {\n" + "".join(f"  {line}\n" for line in [*head, *lines]) + "}\n"
