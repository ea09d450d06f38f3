"""Collation: the next-token shift, and packed and padded batches that say the same."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.batch import Batch, Example, collate


@st.composite
def example_lists(draw: st.DrawFn) -> list[Example]:
    made = []
    for index in range(draw(st.integers(1, 6))):
        length = draw(st.integers(1, 12))
        tokens = draw(st.lists(st.integers(0, 99), min_size=length, max_size=length))
        weights = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=length, max_size=length))
        made.append(Example(np.array(tokens, np.int32), np.array(weights, np.float32), source=f"f:{index + 1}"))
    return made


def _rows_of(batch: Batch) -> list[torch.Tensor]:
    """The flat positions of each sequence, by the borders (packed) or by the mask (padded)."""
    if batch.is_packed:
        borders = batch.cumulative_P1.tolist()
        return [torch.arange(a, b) for a, b in itertools.pairwise(borders)]
    assert batch.attention_mask is not None
    width = batch.tokens.shape[1]
    return [row * width + mask.nonzero().squeeze(1) for row, mask in enumerate(batch.attention_mask)]


@given(example_lists(), st.booleans())
def test_every_sequence_stands_whole_in_the_batch_with_positions_from_zero(
    examples: list[Example], packed: bool
) -> None:
    batch = collate(examples, packed=packed, pad_id=77)
    for example, rows in zip(examples, _rows_of(batch), strict=True):
        assert batch.tokens.reshape(-1)[rows].tolist() == example.tokens.tolist()
        assert batch.positions.reshape(-1)[rows].tolist() == list(range(len(example)))
    assert batch.real_tokens == sum(len(e) for e in examples)
    assert batch.tokens.numel() == (batch.real_tokens if packed else len(examples) * max(batch.lengths))


@given(example_lists(), st.booleans())
def test_each_target_is_the_token_after_its_position_in_the_same_sequence(
    examples: list[Example], packed: bool
) -> None:
    batch = collate(examples, packed=packed)
    rows = _rows_of(batch)
    flat = batch.tokens.reshape(-1)
    expected = []
    for index, example in enumerate(examples):
        for i in range(1, len(example)):
            if example.weights[i] != 0:
                expected.append((int(rows[index][i - 1]), int(example.tokens[i]), float(example.weights[i]), index))
    got = zip(*(t.tolist() for t in (batch.select_M, batch.targets_M, batch.weights_M, batch.sequence_M)))
    assert list(got) == expected
    assert torch.equal(flat[batch.select_M + 1], batch.targets_M)


@given(example_lists())
def test_packed_and_padded_batches_have_the_same_targets_in_the_same_order(examples: list[Example]) -> None:
    packed, padded = collate(examples, packed=True), collate(examples, packed=False)
    for name in ("targets_M", "weights_M", "sequence_M"):
        assert torch.equal(getattr(packed, name), getattr(padded, name))
    assert packed.count == padded.count == sum(e.count for e in examples)
    assert packed.sources == padded.sources == tuple(e.source for e in examples)


def test_the_weight_of_the_first_token_is_never_used() -> None:
    example = Example(np.array([5, 6, 7], np.int32), np.array([9.0, 1.0, 0.5], np.float32))
    assert example.count == 1.5
    assert example.trained_tokens == 2
    assert collate([example]).weights_M.tolist() == [1.0, 0.5]


def test_padding_is_marked_in_the_mask_and_filled_with_the_pad_token() -> None:
    examples = [
        Example(np.array([5, 6, 7], np.int32), np.ones(3, np.float32)),
        Example(np.array([8], np.int32), np.ones(1)),
    ]
    batch = collate(examples, packed=False, pad_id=3)
    assert batch.tokens.tolist() == [[5, 6, 7], [8, 3, 3]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_pad_token_inside_a_sequence_is_trained_like_any_other() -> None:
    # Where pad and end of turn are one token, masking by id would leave the end of turn unlearned.
    example = Example(np.array([5, 0, 0], np.int32), np.ones(3, np.float32))
    for packed in (True, False):
        batch = collate([example, example], packed=packed, pad_id=0)
        assert batch.targets_M.tolist() == [0, 0, 0, 0]


def test_extras_become_one_tensor_of_a_number_for_each_sequence() -> None:
    examples = [Example(np.array([1, 2], np.int32), np.ones(2), extras={"reward": r}) for r in (0.5, -1.0)]
    assert collate(examples).extras["reward"].tolist() == [0.5, -1.0]


def test_a_batch_without_any_supervised_token_is_empty_and_counts_zero() -> None:
    batch = collate([Example(np.array([1, 2], np.int32), np.zeros(2, np.float32))])
    assert batch.count == 0.0
    assert len(batch.select_M) == len(batch.targets_M) == len(batch.weights_M) == 0
