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
    streams = Streams(ids, batch, seq_len)
    n = (total - 1) // batch
    assert len(streams) == n // seq_len
    batches = list(streams)
    assert len(batches) == len(streams) >= 1
    for x, y in batches:
        assert x.shape == y.shape == (seq_len, batch)
        assert x.dtype == y.dtype == np.intp
        assert x.flags.c_contiguous
        assert y.flags.c_contiguous
        np.testing.assert_array_equal(y, x + 1)
    read = np.concatenate([x for x, _ in batches])  # (len * T, B)
    np.testing.assert_array_equal(read, np.arange(b := len(read))[:, None] + n * np.arange(batch)[None, :])
    assert n - b < seq_len


def test_a_batch_by_hand() -> None:
    streams = Streams(np.frombuffer(b"abcdefghijk", np.uint8), 2, 2)  # n = 5: abcde, fghij
    x, y = streams[1]
    assert x.tolist() == [[ord("c"), ord("h")], [ord("d"), ord("i")]]
    assert y.tolist() == [[ord("d"), ord("i")], [ord("e"), ord("j")]]
    assert len(streams) == 2
    for k in (-1, 2):
        with pytest.raises(IndexError, match="from 0 to 1"):
            streams[k]


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
    assert len(Streams(ids, 9, 50)) == 1
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
