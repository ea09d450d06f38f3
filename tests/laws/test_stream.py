"""The laws of the stream: ranks partition a step, a resumed run sees the rest, an epoch sees each row once."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.stream import Stream

streams = st.builds(
    Stream,
    size=st.integers(1, 60),
    batch_size=st.integers(1, 70),  # larger than the data, too
    seed=st.integers(0, 2**31),
    shuffle=st.booleans(),
)


def _epoch(stream: Stream, epoch: int) -> list[int]:
    first = epoch * stream.steps_per_epoch
    return [int(r) for step in range(first, first + stream.steps_per_epoch) for r in stream.rows(step)]


@given(streams, st.integers(0, 5))
def test_each_row_comes_once_in_an_epoch(stream: Stream, epoch: int) -> None:
    assert sorted(_epoch(stream, epoch)) == list(range(stream.size))


@given(streams, st.integers(0, 40), st.integers(1, 9))
def test_ranks_partition_every_step_in_its_order(stream: Stream, step: int, ranks: int) -> None:
    whole = stream.rows(step)
    parts = [stream.rows(step, rank, ranks) for rank in range(ranks)]
    assert sorted(np.concatenate(parts)) == sorted(whole)
    for rank, part in enumerate(parts):
        assert part.tolist() == whole[rank::ranks].tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(streams, st.integers(0, 20), st.integers(0, 20))
def test_a_resumed_run_sees_what_the_uninterrupted_one_would_have_seen(stream: Stream, done: int, more: int) -> None:
    uninterrupted = [stream.rows(step).tolist() for step in range(done + more)]
    resumed = Stream(stream.size, stream.batch_size, stream.seed, stream.shuffle)
    assert [resumed.rows(step).tolist() for step in range(done, done + more)] == uninterrupted[done:]


@given(streams, st.integers(0, 40))
def test_every_step_is_full_but_the_last_of_an_epoch_and_none_is_empty(stream: Stream, step: int) -> None:
    last = (step + 1) % stream.steps_per_epoch == 0
    length = len(stream.rows(step))
    assert length == (stream.size - (stream.steps_per_epoch - 1) * stream.batch_size if last else stream.batch_size)
    assert 1 <= length <= stream.batch_size


@given(streams, st.floats(0.01, 7))
def test_epochs_are_rounded_up_to_whole_steps_and_max_steps_overrides_them(stream: Stream, epochs: float) -> None:
    assert stream.total_steps(epochs) == max(1, math.ceil(epochs * stream.steps_per_epoch))
    assert stream.total_steps(1.0) == stream.steps_per_epoch
    assert stream.total_steps(epochs, max_steps=123) == 123


def test_epochs_differ_in_order_seeds_differ_and_without_shuffling_the_files_order_stays() -> None:
    stream = Stream(100, 8, seed=1)
    assert _epoch(stream, 0) != _epoch(stream, 1)
    assert _epoch(stream, 0) != _epoch(Stream(100, 8, seed=2), 0)
    assert _epoch(Stream(100, 8, seed=1, shuffle=False), 3) == list(range(100))


def test_the_order_is_the_same_on_every_machine() -> None:
    # A resumed run may meet another numpy; were its shuffle another, rows would be seen twice.
    assert Stream(8, 3, seed=5).rows(0).tolist() == [1, 4, 2]
    assert Stream(8, 3, seed=5).rows(4).tolist() == [0, 7, 6]
