"""``python -m tinygrad_rnn_cli``: the same program as ``tinygrad-rnn``."""

from __future__ import annotations

from tinygrad_rnn_cli.main import main

main()
