"""Easy rows first: no step draws a row that is not allowed yet, every row comes, and the order is one of the seed's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.curriculum import Curriculum, PacedStream
from luthier.data.stream import MixedStream

PACES = ["linear", "root", "step"]
curricula = st.builds(
    lambda start, over, pace: Curriculum(start=start, over=over, pace=pace),
    st.floats(0.05, 1),
    st.floats(0.05, 1),
    st.sampled_from(PACES),
)


def streams(sizes: list[int], batch_size: int, seed: int, total: int, curriculum: Curriculum) -> PacedStream:
    draw = np.random.default_rng(seed)
    measures = tuple(draw.integers(0, 9, size).astype(float) for size in sizes)  # with ties
    rates = tuple(size / sum(sizes) for size in sizes)
    return PacedStream(tuple(sizes), rates, batch_size, seed, measures=measures, total=total, curriculum=curriculum)


paced = st.builds(
    streams,
    st.lists(st.integers(1, 25), min_size=1, max_size=3),
    st.integers(1, 12),
    st.integers(0, 99),
    st.integers(1, 40),
    curricula,
)


def test_the_share_grows_from_the_start_to_all_at_the_given_pace() -> None:
    linear, root, step = (Curriculum(start=0.2, pace=pace) for pace in PACES)  # type: ignore[arg-type]
    assert [linear.share(x) for x in (0, 0.5, 1)] == pytest.approx([0.2, 0.6, 1])
    assert [root.share(x) for x in (0, 0.5, 1)] == pytest.approx([0.2, 0.52**0.5, 1])  # √(0.04 + 0.96 / 2)
    assert [step.share(x) for x in (0, 0.24, 0.25, 0.5, 0.75, 1)] == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.8, 1])
    stream = streams([30], 5, 1, 10, Curriculum(start=0.2, over=0.5))
    assert [stream.share(step) for step in range(7)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])


@settings(deadline=None)
@given(paced)
def test_no_step_draws_a_row_that_is_not_allowed_yet(stream: PacedStream) -> None:
    first = np.concatenate([[0], np.cumsum(stream.sizes)])
    for step in range(stream.growing):
        rows = stream.rows(step)
        for which, size in enumerate(stream.sizes):
            own = rows[(rows >= first[which]) & (rows < first[which + 1])] - first[which]
            limit = stream.allowed(step, size)
            hardest = np.sort(stream.measures[which])[limit - 1]
            assert (stream.measures[which][own] <= hardest).all()
            assert limit <= stream.allowed(step + 1, size)


@settings(deadline=None)
@given(paced, st.integers(0, 30))
def test_no_allowed_row_is_left_behind(stream: PacedStream, more: int) -> None:
    """Rows that are allowed from the start come equally often."""
    steps = stream.growing + more
    drawn = np.concatenate([stream.rows(step) for step in range(steps)])
    assert len(drawn) == sum(len(MixedStream.rows(stream, step)) for step in range(steps))
    first = np.concatenate([[0], np.cumsum(stream.sizes)])
    for which, size in enumerate(stream.sizes):
        times = np.bincount(drawn[(drawn >= first[which]) & (drawn < first[which + 1])] - first[which], minlength=size)
        start = stream.allowed(0, size)
        sure = stream.measures[which] < np.sort(stream.measures[which])[start - 1]  # whatever the ties
        assert np.ptp(times[sure]) <= 1 if sure.any() else True
        assert times[sure].min(initial=99) >= times[~sure].max(initial=0) - 1


@settings(deadline=None)
@given(paced, st.integers(0, 30), st.integers(1, 5))
def test_the_order_is_a_function_of_seed_and_step_and_ranks_partition_it(
    stream: PacedStream, step: int, ranks: int
) -> None:
    again = PacedStream(
        stream.sizes,
        stream.rates,
        stream.batch_size,
        stream.seed,
        measures=stream.measures,
        total=stream.total,
        curriculum=stream.curriculum,
    )
    whole = stream.rows(step)
    assert again.rows(step).tolist() == whole.tolist()
    for rank in range(ranks):
        assert stream.rows(step, rank, ranks).tolist() == whole[rank::ranks].tolist()


@settings(deadline=None)
@given(paced)
def test_the_shares_of_the_sets_are_those_of_the_mixture(stream: PacedStream) -> None:
    plain = MixedStream(stream.sizes, stream.rates, stream.batch_size, stream.seed)
    ends = np.cumsum(stream.sizes)
    for step in range(stream.growing + 3):
        ours, theirs = (np.searchsorted(ends, s.rows(step), side="right") for s in (stream, plain))
        assert ours.tolist() == theirs.tolist()


def test_in_one_epoch_that_grows_to_its_end_every_row_comes_once_and_the_easy_ones_come_first() -> None:
    measure = np.random.default_rng(0).permutation(200).astype(float)
    curriculum = Curriculum(start=0.1, over=1.0)
    stream = PacedStream((200,), (1.0,), 10, 3, measures=(measure,), total=20, curriculum=curriculum)
    rows = np.concatenate([stream.rows(step) for step in range(20)])
    assert sorted(rows) == list(range(200))
    hard = measure[rows].reshape(20, 10).mean(1)
    assert np.corrcoef(np.arange(20), hard)[0, 1] > 0.9
    assert hard[:5].max() < hard[-5:].min()


def test_when_all_rows_are_allowed_the_ordinary_epochs_follow() -> None:
    stream = streams([30], 5, 1, 100, Curriculum(start=0.5, over=0.1))
    rows = np.concatenate([stream.rows(step) for step in range(90)])
    starts = range(len(stream._orders[0]), len(rows) - 30, 30)  # what the growth leaves is gone through first
    assert len(starts) > 10
    for start in starts:
        assert sorted(rows[start : start + 30]) == list(range(30))


def test_the_easiest_row_alone_is_drawn_where_nothing_else_is_allowed() -> None:
    stream = streams([30], 4, 1, 1000, Curriculum(start=0.01, over=1.0))
    [row] = set(stream.rows(0).tolist())
    assert stream.measures[0][row] == stream.measures[0].min()
