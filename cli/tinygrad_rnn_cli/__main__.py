"""The entry point of ``tinygrad-rnn`` and of ``python -m tinygrad_rnn_cli``: Ctrl-C ends even its imports quietly."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Import the program, and run it."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else the parent ignores it, as nohup does
    if ours:  # an exception could be raised in the middle of any import, and be printed or swallowed there
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    from tinygrad_rnn_cli.main import main as run

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
