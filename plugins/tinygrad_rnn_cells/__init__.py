"""The built-in cells, written as a stranger would write theirs: one file a cell, public names only."""
