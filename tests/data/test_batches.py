"""Streams: every symbol where it belongs, y one ahead of x, batch k + 1 behind batch k."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tinygrad_rnn.data import Streams, fitted_streams
from tinygrad_rnn.errors import DataError, InputError


@given(st.integers(2, 200), st.integers(1, 9), st.integers(1, 9))
def test_streams_are_contiguous_and_targets_are_one_ahead(total: int, batch: int, seq_len: int) -> None:
    assume(total > batch * seq_len)
    ids = np.arange(total, dtype=np.uint8)  # a symbol is its own position
    for drop_last in (False, True):
        streams = Streams(ids, batch, seq_len, drop_last)
        windows = list(streams)
        assert len(windows) == len(streams) >= 1
        for k, (x, y) in enumerate(windows):
            assert x.shape == y.shape == (streams.steps(k), batch)
            assert x.dtype == y.dtype == np.intp
            assert x.flags.c_contiguous
            assert y.flags.c_contiguous
            np.testing.assert_array_equal(y, x + 1)
            np.testing.assert_array_equal(streams.next_symbols(k), x[0])
        np.testing.assert_array_equal(streams.next_symbols(len(streams)), windows[-1][1][-1])
        read = np.concatenate([x for x, _ in windows])  # (n, B)
        np.testing.assert_array_equal(read, np.arange(streams.stream_length)[:, None] + read[0])
        sizes = [len(x) for x, _ in windows]
        predicted, counts = np.unique(np.concatenate([y for _, y in windows]), return_counts=True)
        if drop_last:
            assert set(sizes) == {seq_len}
            assert len(predicted) == len(windows) * batch * seq_len == counts.sum()
            assert streams.left_out == total - 1 - len(predicted) < batch * seq_len
        else:
            assert predicted.tolist() == list(range(1, total))  # every symbol that has a predecessor
            assert counts.sum() - len(predicted) < batch and streams.left_out == 0
            assert max(sizes) <= seq_len <= 2 * min(sizes)
            assert set(sizes[:-2]) <= {seq_len}


def test_a_batch_by_hand() -> None:
    streams = Streams(np.frombuffer(b"abcdefghijk", np.uint8), 2, 2)  # n = 5: abcde, fghij
    x, y = streams[1]
    assert x.tolist() == [[ord("c"), ord("h")], [ord("d"), ord("i")]]
    assert y.tolist() == [[ord("d"), ord("i")], [ord("e"), ord("j")]]
    assert streams[2][1].tolist() == [[ord("f"), ord("k")]]
    assert len(streams) == 3
    for k in (-1, 3):
        with pytest.raises(IndexError, match="from 0 to 2"):
            streams[k]
    assert len(Streams(streams.ids, 2, 2, drop_last=True)) == 2


@pytest.mark.parametrize(
    ("size", "batch", "seq_len", "drop_last", "text"),
    [
        (100, 1, 50, False, "1 stream of 99 steps a pass, in 1 window of 50 steps and 1 of 49"),
        (100, 1, 50, True, "1 stream of 50 steps a pass, in 1 window of 50 steps; the last 49 symbols are left out"),
        (7, 5, 1, True, "5 streams of 1 step a pass, in 1 window of 1 step; the last symbol is left out"),
        (1201, 3, 100, False, "3 streams of 400 steps a pass, in 4 windows of 100 steps"),
        (1204, 3, 100, False, "3 streams of 401 steps a pass, in 3 windows of 100 steps, 1 of 51 and 1 of 50"),
    ],
)
def test_the_division_in_words(size: int, batch: int, seq_len: int, drop_last: bool, text: str) -> None:
    assert Streams(np.zeros(size, np.uint8), batch, seq_len, drop_last).describe().startswith(text)


def test_a_batch_copies_no_more_than_itself() -> None:
    ids = np.zeros(1_000_001, np.uint8)
    ids.flags.writeable = False
    x, _ = Streams(ids, 10, 5)[3]
    assert x.base is None
    x[0, 0] = 7  # a copy: the caller may write


def test_a_text_shorter_than_a_batch_says_what_to_lower() -> None:
    ids = np.zeros(500, np.uint8)
    with pytest.raises(DataError, match=r"at least 2501 .*--seq-len 50, \+ 1\), got 500; lower --batch to 9 "):
        Streams(ids, 50, 50)
    assert [len(x) for x, _ in Streams(ids, 9, 50)] == [28, 28]
    with pytest.raises(DataError, match="lower --seq-len to 29 and --batch to 1"):
        Streams(ids[:30], 50, 50)
    assert len(Streams(ids[:30], 1, 29)) == 1
    with pytest.raises(DataError, match="got 1; give more text"):
        Streams(ids[:1], 1, 1)
    assert len(Streams(ids[:2], 1, 1)) == 1


@given(st.integers(2, 100), st.integers(1, 12), st.integers(1, 12))
def test_a_short_held_out_part_gets_fewer_streams(total: int, batch: int, seq_len: int) -> None:
    streams = fitted_streams(np.zeros(total, np.uint8), batch, seq_len)
    assert len(streams) >= 1
    assert streams.batch <= batch
    assert streams.seq_len <= seq_len
    if total > seq_len:
        assert streams.seq_len == seq_len
    if total > batch * seq_len:
        assert streams.batch == batch
    else:  # one stream more would not fit
        assert (streams.batch + 1) * streams.seq_len > total - 1


@pytest.mark.parametrize("total", [0, 1])
def test_nothing_to_predict_is_refused(total: int) -> None:
    with pytest.raises(DataError, match="at least 2 symbols"):
        fitted_streams(np.zeros(total, np.uint8), 1, 1)


def test_misuse_is_an_input_error() -> None:
    ids = np.zeros(10, np.uint8)
    with pytest.raises(InputError, match="--batch of at least 1, got 0"):
        Streams(ids, 0, 1)
    with pytest.raises(InputError, match="--seq-len of at least 1, got 0"):
        fitted_streams(ids, 1, 0)
    with pytest.raises(InputError, match="integers of shape"):
        Streams(ids.reshape(2, 5), 1, 1)
    with pytest.raises(InputError, match="integers of shape"):
        Streams(ids.astype(np.float32), 1, 1)
