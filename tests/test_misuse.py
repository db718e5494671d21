"""What goes wrong in files of strangers, beyond what test_registry.py and planted_faults.py have: one line each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinygrad_rnn import InputError, PluginError, load_cell, load_plugin_file

CELL = """
from tinygrad_rnn import Cell, State, ops, register_cell

@register_cell
class CLASS(Cell):
    name = NAME
    summary, citation, equation = "a sum", "nobody", "h' = h + sum of x"

    def state(self):
        return {"h": State((self.H,))}

    def params(self):
        return {}

    def step(self, p, x, s):
        return {"h": s.h + ops.sum(x, axis=1, keepdims=True)}
"""


def cell(name: str, cls: str = "Own") -> str:
    return CELL.replace("CLASS", cls).replace("NAME", repr(name))


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (cell("mine", "One") + cell("mine", "Other"), r"cell 'mine' is registered twice: by .*a\.py and by .*a\.py; "),
        (cell("../mine"), r"cell '\.\./mine': expected a name of letters and digits"),
        (cell("mi\nne"), r"cell 'mi\\nne': expected a name of letters"),
        (cell("lstm+zoneout:0.1"), r"cell 'lstm\+zoneout:0\.1': expected a name of letters"),
        (cell("--help"), r"cell '--help': expected a name of letters"),
    ],
)
def test_a_name_that_cannot_be(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(source)
    with pytest.raises(PluginError, match=message):
        load_plugin_file(tmp_path / "a.py")
    with pytest.raises(InputError, match="no cell 'mine'"):
        load_cell("mine")
