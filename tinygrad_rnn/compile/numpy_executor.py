"""Runs a plan with NumPy alone."""


class NumPyProgram:
    name = "numpy"

    def __init__(self, plan, dtype):
        from tinygrad_rnn.compile.layout import Unsupported

        raise Unsupported("numpy executor not there yet")
