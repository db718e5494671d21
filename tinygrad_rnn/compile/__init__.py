"""The compiler behind `scan`: the step of any cell, traced once and run as scheduled code.

`trace` makes a graph of the step, `schedule` decides when each part of it and of its gradient is computed, `layout`
where it is kept, and an executor runs that: `llvm_executor` as machine code, `numpy_executor` with NumPy alone.
"""
