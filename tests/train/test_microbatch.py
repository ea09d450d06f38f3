"""Cutting a step, and telling lack of memory from other errors."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from families import examples
from luthier.train.microbatch import Cut, is_out_of_memory

cuts = st.builds(Cut, sequences=st.none() | st.integers(1, 5), tokens=st.none() | st.integers(1, 60))


@given(cuts, st.lists(st.integers(1, 40), min_size=1, max_size=12), st.booleans())
def test_groups_keep_order_lose_nothing_and_stay_within_the_limits(cut: Cut, lengths: list[int], padded: bool) -> None:
    rows = examples(lengths)
    groups = cut.apply(rows, padded=padded)
    assert [id(e) for g in groups for e in g] == [id(e) for e in rows]
    for group in groups:
        size = max(map(len, group)) * len(group) if padded else sum(map(len, group))
        assert cut.sequences is None or len(group) <= cut.sequences
        # A sequence longer than the limit stands alone.
        assert cut.tokens is None or size <= cut.tokens or len(group) == 1


@given(cuts, st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_no_group_could_have_taken_the_next_sequence(cut: Cut, lengths: list[int]) -> None:
    groups = cut.apply(examples(lengths))
    for group, following in itertools.pairwise(groups):
        full = cut.sequences is not None and len(group) == cut.sequences
        heavy = cut.tokens is not None and sum(map(len, group)) + len(following[0]) > cut.tokens
        assert full or heavy


def test_halving_ends_at_a_single_sequence_and_keeps_the_limit_of_tokens() -> None:
    cut, seen, largest = Cut(tokens=100), [], 13
    while (finer := cut.halved(largest)) is not None:
        cut, largest = finer, finer.sequences or 0
        seen.append((cut.sequences, cut.tokens))
    assert seen == [(6, 100), (3, 100), (1, 100)]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:122] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("not enough memory"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=str,
)
def test_lack_of_memory_is_told_from_other_errors(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_what_torch_really_raises_when_memory_ends_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
