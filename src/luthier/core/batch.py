"""Example and Batch: tokens with per-token loss weights, packed without padding.

The next-token shift happens once, here. An example's `weights[i]` says how much predicting token i counts; in a batch
position t predicts token t+1, so a target's weight is the weight of the token predicted.

Shape legend: B rows, T positions, N = B·T, M supervised positions, S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Example:
    """One training sequence.

    Attributes:
        tokens: (L,) int32 token ids.
        weights: (L,) float32; the loss weight of predicting each token. The first is never used: nothing precedes it.
        source: where the row stands, as `file:line`, for messages.
        extras: numbers that belong to the whole sequence (reference log-probs, advantages, labels).
    """

    tokens: np.ndarray
    weights: np.ndarray
    source: str = ""
    extras: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def trained_tokens(self) -> int:
        """Number of targets with a non-zero weight."""
        return int(np.count_nonzero(self.weights[1:]))

    @property
    def count(self) -> float:
        """Sum of the targets' weights: this example's part of the step's divisor."""
        return float(self.weights[1:].sum(dtype=np.float64))


@dataclass(frozen=True)
class Batch:
    """What a model sees in one forward pass.

    Packed: B = 1, the S sequences stand end to end, `cumulative_S1` marks their borders, `attention_mask` is None.
    Padded: B = S, right-padded, `attention_mask` (B, T) is 1 at real tokens.

    Attributes:
        tokens: (B, T) int64.
        positions: (B, T) int64, restarting at 0 in each sequence.
        cumulative_S1: (S+1,) int32 borders of the sequences in the packed row.
        lengths: the S sequence lengths, on the host.
        attention_mask: (B, T) int64 or None.
        select_M: (M,) int64 positions (in the flattened B·T) that predict a supervised token.
        targets_M: (M,) int64 the tokens to predict there.
        weights_M: (M,) float32 their weights.
        sequence_M: (M,) int64 the sequence each belongs to.
        count: the sum of weights, on the host (no synchronisation needed).
        sources: where each of the S rows stands.
        extras: per-sequence tensors (S,).
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    cumulative_S1: torch.Tensor
    lengths: tuple[int, ...]
    attention_mask: torch.Tensor | None
    select_M: torch.Tensor
    targets_M: torch.Tensor
    weights_M: torch.Tensor
    sequence_M: torch.Tensor
    count: float
    sources: tuple[str, ...]
    extras: dict[str, torch.Tensor]

    @property
    def is_packed(self) -> bool:
        return self.attention_mask is None

    @property
    def real_tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(self.lengths)


def collate(
    examples: Sequence[Example], device: torch.device | str = "cpu", packed: bool = True, pad_id: int = 0
) -> Batch:
    """Make a batch of examples, shifting targets by one.

    Packed and padded batches give the same M targets in the same order, so every objective is blind to the difference.
    """
    import torch

    lengths = tuple(len(e) for e in examples)
    width = max(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = starts[:-1] if packed else np.arange(len(examples)) * width
    shape = (1, int(starts[-1])) if packed else (len(examples), width)

    tokens = np.full(shape, pad_id, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    select, targets, weights, sequence = [], [], [], []
    for index, (example, row) in enumerate(zip(examples, rows)):
        here = slice(int(row), int(row) + len(example))
        tokens.reshape(-1)[here] = example.tokens
        positions.reshape(-1)[here] = np.arange(len(example))
        mask.reshape(-1)[here] = 1
        supervised = np.flatnonzero(example.weights[1:])
        select.append(row + supervised)
        targets.append(example.tokens[1:][supervised].astype(np.int64))
        weights.append(example.weights[1:][supervised])
        sequence.append(np.full(len(supervised), index, dtype=np.int64))

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    names = sorted({name for e in examples for name in e.extras})
    return Batch(
        tokens=tensor(tokens),
        positions=tensor(positions),
        cumulative_S1=tensor(starts.astype(np.int32)),
        lengths=lengths,
        attention_mask=None if packed else tensor(mask),
        select_M=tensor(np.concatenate(select).astype(np.int64)),
        targets_M=tensor(np.concatenate(targets)),
        weights_M=tensor(np.concatenate(weights).astype(np.float32)),
        sequence_M=tensor(np.concatenate(sequence)),
        count=float(sum(e.count for e in examples)),
        sources=tuple(e.source for e in examples),
        extras={n: tensor(np.array([e.extras[n] for e in examples], dtype=np.float32)) for n in names},
    )
