"""Several data sets: shares by the T5 rule, exact over every stretch, and the same after a resume."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.blend import Blend
from luthier.data.mixture import DataSet, Mix, names_of, rates
from luthier.data.stream import MixedStream, Stream
from luthier.data.views import Chain, Part

shares = st.lists(st.floats(0.001, 1), min_size=1, max_size=6).map(lambda raw: tuple(r / sum(raw) for r in raw))
mixed = st.builds(
    lambda sizes, raw, batch_size, seed: MixedStream(
        tuple(sizes), tuple(r / sum(raw[: len(sizes)]) for r in raw[: len(sizes)]), batch_size, seed
    ),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    raw=st.lists(st.floats(0.01, 1), min_size=5, max_size=5),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)

GLUE = {"cola": 8_551, "sst2": 67_349, "mrpc": 3_668, "qqp": 363_846, "mnli": 392_702, "rte": 2_490, "wnli": 635}


# ---------------------------------------------------------------------- the rule


def test_a_temperature_of_one_is_proportional_and_a_high_one_equal() -> None:
    sizes = list(GLUE.values())
    assert rates(sizes, [None] * 7, None) == pytest.approx([size / sum(sizes) for size in sizes], rel=1e-12)
    assert rates(sizes, [None] * 7, Mix(temperature=1e9)) == pytest.approx([1 / 7] * 7, rel=1e-6)
    assert rates([100, 400], [None, None], Mix(temperature=2)) == pytest.approx([1 / 3, 2 / 3])
    assert rates([100, 900], [None, None], Mix(temperature=2)) == pytest.approx([1 / 4, 3 / 4])
    assert rates([1, 16], [None, None], Mix(temperature=4)) == pytest.approx([1 / 3, 2 / 3])


def test_the_limit_holds_back_large_sets_as_in_t5() -> None:
    # K = 65,536 leaves three of GLUE's sets at the limit and the others at their sizes.
    capped = [min(size, 65_536) for size in GLUE.values()]
    assert sum(capped) == 211_952
    expected = [8_551, 65_536, 3_668, 65_536, 65_536, 2_490, 635]
    assert rates(list(GLUE.values()), [None] * 7, Mix(max_examples=65_536)) == pytest.approx(
        [size / 211_952 for size in expected], rel=1e-12
    )
    # T = 2 after the limit, by hand: square roots over their sum, 977.5.
    roots = [92.4716, 256.0, 60.5640, 256.0, 256.0, 49.8999, 25.1992]
    found = rates(list(GLUE.values()), [None] * 7, Mix(temperature=2, max_examples=65_536))
    assert found == pytest.approx([root / sum(roots) for root in roots], rel=1e-5)


def test_weights_alone_are_shares_and_beside_a_temperature_they_multiply() -> None:
    assert rates([10, 90_000], [3, 1], None) == pytest.approx([0.75, 0.25])
    assert rates([10, 90_000], [3, None], None) == pytest.approx([0.75, 0.25])
    assert rates([100, 400], [4, 1], Mix(temperature=2)) == pytest.approx([4 / 6, 2 / 6])
    assert rates([100, 400], [1, 1], Mix()) == pytest.approx([0.2, 0.8])


def test_a_very_low_temperature_takes_the_largest_set_and_does_not_overflow() -> None:
    assert rates([10, 1_000_000], [None, None], Mix(temperature=1e-3)) == pytest.approx([0, 1])


def test_sets_are_called_by_their_files_and_no_two_alike() -> None:
    paths = ["a/train.jsonl", "b/train.jsonl.gz", "starter:stories", "/data/中文 数据/", "x"]
    named = [*(DataSet(path=path) for path in paths), DataSet(path="y", name="mine")]
    assert names_of(named) == ["train", "train-2", "stories", "中文-数据", "x", "mine"]


# ---------------------------------------------------------------------- the draws


@given(shares, st.integers(0, 3000), st.integers(0, 200))
def test_draws_are_a_function_of_the_position(rates: tuple[float, ...], start: int, more: int) -> None:
    blend = Blend(rates)
    sets, numbers = blend.draws(0, start + more)
    assert np.bincount(sets, minlength=len(rates)).tolist() == blend.counts(start + more)
    later, counted = blend.draws(start, start + more)
    assert later.tolist() == sets[start:].tolist()
    assert counted.tolist() == numbers[start:].tolist()
    for which in range(len(rates)):
        assert numbers[sets == which].tolist() == list(range(int((sets == which).sum())))


@given(shares, st.integers(0, 10**9), st.integers(1, 2000))
def test_every_stretch_has_the_shares_but_for_a_few_draws(rates: tuple[float, ...], start: int, length: int) -> None:
    blend = Blend(rates)
    drawn = np.array(blend.counts(start + length)) - np.array(blend.counts(start))
    assert drawn.sum() == length
    bound = 1 + len(rates) * np.array(rates) + 1e-6
    assert (np.abs(drawn - length * np.array(rates)) <= bound).all()


def test_a_run_has_the_shares_of_t5_to_half_a_percent_before_and_after_a_resume() -> None:
    sizes = tuple(GLUE.values())
    wanted = rates(sizes, [None] * 7, Mix(temperature=3, max_examples=100_000))
    stream = MixedStream(sizes, wanted, batch_size=32, seed=5)
    ends = np.cumsum(sizes)

    def drawn(steps: range) -> np.ndarray:
        rows = np.concatenate([stream.rows(step) for step in steps])
        return np.bincount(np.searchsorted(ends, rows, side="right"), minlength=7) / len(rows)

    for steps in (range(0, 200), range(200, 400), range(50_000, 50_200)):
        assert np.abs(drawn(steps) - wanted).max() < 0.005
    assert np.abs(drawn(range(0, 400)) / wanted - 1).max() < 0.02  # of the rarest too, by its own measure


# ---------------------------------------------------------------------- the rows


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**31), st.integers(0, 20))
def test_a_mixture_of_one_set_is_its_stream(size: int, batch_size: int, seed: int, step: int) -> None:
    alone, one = Stream(size, batch_size, seed), MixedStream((size,), (1.0,), batch_size, seed)
    assert one.rows(step).tolist() == alone.rows(step).tolist()
    assert one.steps_per_epoch == alone.steps_per_epoch


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 40), st.integers(0, 9), st.integers(0, 3))
def test_in_proportion_every_row_comes_once_in_an_epoch(
    sizes: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    stream = MixedStream(tuple(sizes), rates(sizes, [None] * len(sizes), None), batch_size, seed)
    first = epoch * stream.steps_per_epoch
    rows = [int(r) for step in range(first, first + stream.steps_per_epoch) for r in stream.rows(step)]
    assert sorted(rows) == list(range(sum(sizes)))


@given(mixed, st.integers(0, 30), st.integers(1, 9))
def test_ranks_partition_every_step(stream: MixedStream, step: int, ranks: int) -> None:
    whole = stream.rows(step)
    assert 1 <= len(whole) <= stream.batch_size
    for rank in range(ranks):
        assert stream.rows(step, rank, ranks).tolist() == whole[rank::ranks].tolist()


@given(mixed, st.integers(1, 30))
def test_no_row_of_a_set_comes_again_before_all_others_have_come(stream: MixedStream, steps: int) -> None:
    rows = np.concatenate([stream.rows(step) for step in range(steps)])
    first = np.concatenate([[0], np.cumsum(stream.sizes)])
    for which, size in enumerate(stream.sizes):
        own = rows[(rows >= first[which]) & (rows < first[which + 1])]
        assert len(own) == stream.counts(steps)[which]
        times = np.bincount(own - first[which], minlength=size)
        assert times.max() - times.min() <= 1


@given(mixed, st.integers(0, 20), st.integers(0, 20))
def test_a_resumed_mixture_goes_on_where_it_stopped(stream: MixedStream, done: int, more: int) -> None:
    whole = [stream.rows(step).tolist() for step in range(done + more)]
    again = MixedStream(stream.sizes, stream.rates, stream.batch_size, stream.seed)
    assert [again.rows(step).tolist() for step in range(done, done + more)] == whole[done:]


def test_sets_of_one_size_are_shuffled_each_in_its_own_way() -> None:
    stream = MixedStream((50, 50), (0.5, 0.5), 100, 7)
    rows = stream.rows(0)
    assert rows[rows < 50].tolist() != (rows[rows >= 50] - 50).tolist()


# ---------------------------------------------------------------------- views


def test_views_are_read_as_lists_are() -> None:
    chain = Chain([[0, 1], [], [2], [3, 4, 5]])
    assert list(chain) == [chain[i] for i in range(6)] == [0, 1, 2, 3, 4, 5]
    assert (chain[-1], chain[1:4], len(chain), len(Chain([]))) == (5, [1, 2, 3], 6, 0)
    with pytest.raises(IndexError):
        chain[6]
    part = Part(chain, np.array([4, 0, 2]))
    assert (list(part), part[0], part[1:], len(part)) == ([4, 0, 2], 4, [0, 2], 3)
