"""Numbered parameters in the equation of a cell: what stands for every one of them, written out."""

from __future__ import annotations

import re

from tinygrad_rnn.cell import Cell, specification


def written_out(cell: Cell) -> str:
    """The equation of `cell`, one line for each left side, with every ``for every i`` written out.

    ``{i}`` stands for the numbers that the parameters have: for W_0 to W_2 in ``W_{i}``, 0 to 2. A line that ends in
    ``for every i``, two spaces before it, stands for one line a number; a part in brackets, as in
    ``concat(h @ W_{i} for every i)``, for the list of the terms. An indented line goes on with the one above.
    """
    equation = re.sub(r"\n +", " ", cell.equation)
    lines = []
    for line in equation.splitlines():
        while found := re.search(r" for every (\w)\)", line):
            start = _opening(line, found.end() - 1) + 1
            terms = _each(line[start : found.start()], found[1], cell, equation)
            line = f"{line[:start]}[{', '.join(terms)}]{line[found.end() - 1 :]}"
        whole = re.search(r" {2,}for every (\w)$", line)
        lines += _each(line[: whole.start()], whole[1], cell, equation) if whole else [line]
    return "\n".join(lines)


def _opening(line: str, closing: int) -> int:
    """Where the bracket opens that closes at `closing`; the start of the line where none does."""
    depth = 0
    for place in range(closing, -1, -1):
        depth += {")": 1, "(": -1}.get(line[place], 0)
        if depth == 0:
            return place
    return -1


def _each(text: str, letter: str, cell: Cell, equation: str) -> list[str]:
    """`text` with every number that a parameter has where the equation writes the `letter` in braces."""
    mark = f"{{{letter}}}"
    patterns = {
        re.escape(name).replace(re.escape(mark), r"(\d+)") for name in re.findall(rf"\w*{re.escape(mark)}\w*", equation)
    }
    found = {match[1] for name in specification(cell)[1] for p in patterns if (match := re.fullmatch(p, name))}
    return [text.replace(mark, number) for number in sorted(found, key=int)]
