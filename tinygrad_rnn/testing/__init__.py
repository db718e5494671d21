"""The conformance kit: `check_cell` tries one cell in every way in which the library will use it, and says what fails.

Nothing in here needs pytest: it runs in the tests of a stranger's package and in the command line alike.
"""

from __future__ import annotations

from tinygrad_rnn.testing.cases import CellCase as CellCase
from tinygrad_rnn.testing.cases import cell_case as cell_case
from tinygrad_rnn.testing.cases import cell_values as cell_values
from tinygrad_rnn.testing.conformance import CHECKS as CHECKS
from tinygrad_rnn.testing.conformance import check_cell as check_cell
from tinygrad_rnn.testing.report import CellCheck as CellCheck
from tinygrad_rnn.testing.report import CellReport as CellReport
