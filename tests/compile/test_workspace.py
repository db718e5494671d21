"""Memory that is used again: nobody's memory is given to somebody else, and what is free comes back."""

from __future__ import annotations

import gc
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tinygrad_rnn import Tensor, grad, load_cell, ops, scan, specification
from tinygrad_rnn.compile import llvm_executor, numpy_executor
from tinygrad_rnn.compile import program as programs
from tinygrad_rnn.compile.llvm_executor import FRAMES
from tinygrad_rnn.compile.recent import Recent
from tinygrad_rnn.compile.workspace import LINE, Pool, carve, rounded

Array = np.ndarray[Any, Any]


def address(array: Array) -> int:
    start: int = array.__array_interface__["data"][0]
    return start


def waiting(pool: Pool) -> int:
    """Bytes of the free blocks."""
    return sum(ended.block.bytes for blocks in pool.free.values() for ended in blocks)


def admitted(pool: Pool) -> int:
    """Bytes of the blocks, in use or not, that wait here when their lease has ended; counted anew."""
    return sum(block.bytes for ref in pool.blocks if (block := ref()) is not None)


def test_a_block_is_used_again_when_the_last_array_in_it_is_gone() -> None:
    pool = Pool()
    first = pool.lease(1000)
    at = address(first)
    part = first[10:20].view(np.uint8).reshape(2, 5)
    del first
    gc.collect()
    other = pool.lease(1000)
    assert address(other) != at and waiting(pool) == 0  # a view of it is alive
    del part
    gc.collect()
    assert waiting(pool) == 1000 and pool.admitted == 2000
    assert address(pool.lease(1000)) == at


def test_only_a_block_of_the_same_size_is_used_again() -> None:
    pool = Pool()
    at = address(pool.lease(1000))
    assert pool.lease(999).size == 999 and pool.lease(1001).size == 1001
    assert address(pool.lease(1000)) == at


@pytest.mark.parametrize("count", [1, 63, 64, 65, 4096, 1_000_003])
def test_blocks_are_whole_aligned_and_writable(count: int) -> None:
    block = Pool().lease(count)
    assert block.dtype == np.uint8 and block.shape == (count,)
    assert address(block) % LINE == 0 and block.flags.writeable and block.flags.c_contiguous
    block[...] = 7
    assert block.sum(dtype=np.int64) == 7 * count


def test_no_more_than_the_limit_waits() -> None:
    pool = Pool(limit=1000)
    blocks = [pool.lease(400) for _ in range(4)]
    del blocks
    gc.collect()
    assert waiting(pool) == pool.admitted == 800
    big = pool.lease(5000)
    del big
    gc.collect()
    assert waiting(pool) == pool.admitted == 800


def test_a_size_that_nobody_leases_any_more_makes_room() -> None:
    pool = Pool(limit=1000)
    for size in (400, 500, 600, 700, 800):  # as for sequences of one length after another
        for _ in range(4):
            block = pool.lease(size)
            at = address(block)
            del block
        assert address(pool.lease(size)) == at
        assert waiting(pool) <= pool.limit


def test_more_leases_than_may_wait() -> None:
    """What does not fit is made anew each time, what does is used again, and counting it stays cheap."""
    pool = Pool(limit=64_000)
    first = [pool.lease(64) for _ in range(1000)]
    began = len(pool.blocks)
    more = [pool.lease(64) for _ in range(3000)]
    assert began == len(pool.blocks) == 1000
    del more
    assert waiting(pool) == 0
    del first
    assert waiting(pool) == pool.admitted == 64_000


def test_a_lease_ends_in_no_python_code() -> None:
    """An exception of a signal handler would be swallowed there."""
    pool = Pool()
    blocks = [pool.lease(64) for _ in range(10)]
    called: list[str] = []
    sys.setprofile(lambda _frame, event, _arg: called.append(event))
    try:
        del blocks
    finally:
        sys.setprofile(None)
    assert "call" not in called and waiting(pool) == 640


def test_carved_arrays_lie_side_by_side() -> None:
    pool = Pool()
    shapes = {"a": (3, 5), "scalar": (), "none": (0, 4), "b": (17,), "c": (2, 3, 4)}
    for dtype in (np.float32, np.float64):
        arrays, block = carve(pool, shapes, dtype)
        assert {name: array.shape for name, array in arrays.items()} == shapes
        for k, array in enumerate(arrays.values()):
            assert array.dtype == dtype and array.flags.c_contiguous and address(array) % LINE == 0
            array[...] = k
        for k, array in enumerate(arrays.values()):
            assert (array == k).all()
        inside = range(address(block), address(block) + block.size + 1)
        assert all(address(a) in inside and address(a) + a.nbytes in inside for a in arrays.values())


def test_one_carved_array_keeps_the_block() -> None:
    pool = Pool()
    arrays, block = carve(pool, {"a": (100,), "b": (100,)}, np.float64)
    kept = arrays["b"]
    kept[...] = 1.0
    del arrays, block
    gc.collect()
    others = [carve(pool, {"a": (100,), "b": (100,)}, np.float64)[0]["b"] for _ in range(3)]
    for other in others:
        other[...] = 2.0
    assert (kept == 1.0).all()


def test_threads_never_share_a_block() -> None:
    pool = Pool(limit=1 << 20)
    wrong: list[int] = []
    start = threading.Barrier(4)

    def work(mark: int) -> None:
        start.wait()
        held: list[Array] = []
        for k in range(3000):
            block = pool.lease(64 * (1 + k % 3))
            block[...] = mark
            held.append(block)
            if len(held) > 5:
                if not (held[0] == mark).all():
                    wrong.append(mark)
                held.pop(0)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    gc.collect()
    assert waiting(pool) == admitted(pool) <= pool.admitted <= pool.limit


def test_a_block_may_come_back_while_another_is_leased() -> None:
    """The collector may run inside the lock: a lease in a cycle ends in the middle of another one."""
    pool = Pool()
    done: list[bool] = []

    def work() -> None:
        old = gc.get_threshold()
        gc.set_threshold(1)
        try:
            for _ in range(500):
                cycle: list[Any] = [pool.lease(128)]
                cycle.append(cycle)
                del cycle
                pool.lease(256)
        finally:
            gc.set_threshold(*old)
        done.append(True)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(30)
    assert done, "a deadlock"


class Leases(RuleBasedStateMachine):
    """Any order of leases, views, and ends of both: what is alive overlaps nothing, and keeps what was written."""

    alive = Bundle("alive")

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(limit=2000)
        self.held: dict[int, tuple[Array, int]] = {}
        self.count = 0

    def hold(self, array: Array, mark: int) -> int:
        self.count += 1
        self.held[self.count] = (array, mark)
        return self.count

    @rule(target=alive, size=st.sampled_from([1, 64, 100, 640, 1500]))
    def lease(self, size: int) -> int:
        block = self.pool.lease(size)
        mark = (self.count + 1) % 251
        block[...] = mark
        return self.hold(block, mark)

    @rule(target=alive, key=alive)
    def view(self, key: int) -> int:
        array, mark = self.held[key]
        return self.hold(array[len(array) // 2 :], mark)

    @rule(key=consumes(alive))
    def end(self, key: int) -> None:
        del self.held[key]

    @invariant()
    def nothing_is_lost(self) -> None:
        for array, mark in self.held.values():
            assert (array == mark).all()
        free = {ended.block.address: ended.block.bytes for blocks in self.pool.free.values() for ended in blocks}
        assert len(free) == sum(map(len, self.pool.free.values())), "a block is free twice"
        assert waiting(self.pool) <= admitted(self.pool) <= self.pool.admitted <= self.pool.limit
        for array, _ in self.held.values():
            for at, size in free.items():
                assert address(array) + array.size <= at or at + size <= address(array) or not array.size


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


def test_what_was_not_used_for_longest_goes_first() -> None:
    recent: Recent[int, str] = Recent(4)
    for key in range(4):
        recent.put(key, str(key))
    recent.put(0, "0")  # used again
    recent.put(4, "4")
    assert recent.get(1) is None
    assert [recent.get(key) for key in (0, 2, 3, 4)] == ["0", "2", "3", "4"]


def test_many_sizes_leave_a_bounded_number_of_programs(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of machine code one program serves them all; the NumPy executor has one for each."""
    monkeypatch.setattr(programs, "PROGRAMS", 8)
    cell = load_cell("rnn").cls(2, 2)
    params = {name: np.ones(spec.shape) for name, spec in specification(cell)[1].items()}
    for B in range(2, 20):
        assert scan(cell, params, np.ones((2, B, 2)), executor=executor).executor == executor
    kept = cell.__dict__["_programs"]
    if executor == "numpy":
        assert len(kept.programs.held) == 8
        return
    assert not kept.programs.held and len(set(kept.shared.held.values())) == 1
    (program,) = set(kept.shared.held.values())
    for T in range(2, 2 * FRAMES):
        program.frame(T, 3)
    assert len(program.frames.held) == FRAMES


def test_sizes_are_rounded_up_by_an_eighth_at_most() -> None:
    sizes = [rounded(count) for count in range(1, 100_000)]
    assert all(count <= size <= max(LINE, count + max(LINE, count // 8)) for count, size in enumerate(sizes, 1))
    assert all(rounded(size) == size for size in sizes[::97])
    assert len(set(sizes)) < 100


def test_batches_of_many_sizes_wait_in_few_blocks(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = {"llvm": llvm_executor, "numpy": numpy_executor}[executor]
    monkeypatch.setattr(module, "POOL", Pool())
    cell = load_cell("rnn").cls(2, 2)
    params = {name: Tensor(np.ones(spec.shape), requires_grad=True) for name, spec in specification(cell)[1].items()}
    for B in range(20, 80):
        grad(ops.sum(scan(cell, params, np.ones((2, B, 2)), executor=executor).outputs), list(params.values()))
    assert len(module.POOL.free) < 60
