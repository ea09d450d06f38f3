"""Example and Batch: tokens with per-token loss weights, packed without padding.

The next-token shift happens once, here. An example's `weights[i]` says how much predicting token i counts; in a batch
position t predicts token t+1, so a target's weight is the weight of the token predicted.

An example may branch: several endings (a chosen and a rejected answer, a group of samples) stand behind one beginning.
Packed, the beginning is computed once and no ending sees another; padded, each ending is a row with the beginning
before it. Both give the same targets in the same order.

Shape legend: B rows, T positions, N = B·T, M supervised positions, S sequences (each ending is one), P packed pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Example:
    """One training sequence, or several that begin alike.

    Attributes:
        tokens: (L,) int32 token ids; of a branched example the beginning, and then its endings one after another.
        weights: (L,) float32; the loss weight of predicting each token. The first is never used: nothing precedes it.
            The beginning of a branched example has none.
        source: where the row stands, as `file:line`, for messages.
        extras: numbers that belong to a whole sequence (reference log-probs, labels); arrays hold one for each ending.
        branches: lengths of the endings, or nothing for a single sequence.
        token_extras: numbers that belong to supervised targets, in their order (old log-probs, advantages).
    """

    tokens: np.ndarray
    weights: np.ndarray
    source: str = ""
    extras: Mapping[str, float | np.ndarray] = field(default_factory=dict)
    branches: tuple[int, ...] = ()
    token_extras: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def sequences(self) -> int:
        """Sequences that the example holds."""
        return len(self.branches) or 1

    @property
    def prompt_length(self) -> int:
        """Tokens of the beginning that its endings share; 0 where nothing branches."""
        return len(self.tokens) - sum(self.branches) if self.branches else 0

    @property
    def longest(self) -> int:
        """Tokens of its longest sequence."""
        return self.prompt_length + max(self.branches) if self.branches else len(self.tokens)

    @property
    def trained_tokens(self) -> int:
        """Number of targets with a non-zero weight."""
        return int(np.count_nonzero(self.weights[1:]))

    @property
    def count(self) -> float:
        """Sum of the targets' weights: this example's part of the step's divisor."""
        return float(self.weights[1:].sum(dtype=np.float64))

    def paths(self) -> list[Example]:
        """Return its sequences as examples of their own, each with the whole beginning."""
        if not self.branches:
            return [self]
        found, start, target, prompt = [], self.prompt_length, 0, slice(0, self.prompt_length)
        for index, length in enumerate(self.branches):
            own = slice(start, start + length)
            trained = int(np.count_nonzero(self.weights[own]))
            found.append(
                Example(
                    np.concatenate([self.tokens[prompt], self.tokens[own]]),
                    np.concatenate([self.weights[prompt], self.weights[own]]),
                    self.source,
                    {name: float(np.broadcast_to(v, self.sequences)[index]) for name, v in self.extras.items()},
                    token_extras={n: v[target : target + trained] for n, v in self.token_extras.items()},
                )
            )
            start, target = start + length, target + trained
        return found


@dataclass(frozen=True)
class Batch:
    """What a model sees in one forward pass.

    Packed: B = 1, the P pieces stand end to end, `cumulative_P1` marks their borders, `attention_mask` is None. A piece
    is a sequence, or a beginning with its endings.
    Padded: B = S, right-padded, `attention_mask` (B, T) is 1 at real tokens.

    Attributes:
        tokens: (B, T) int64.
        positions: (B, T) int64, restarting at 0 in each sequence; an ending goes on where its beginning stops.
        cumulative_P1: (P+1,) int32 borders of the pieces in the packed row (of the sequences, if padded).
        pieces: the P lengths, on the host.
        lengths: the S sequence lengths, beginnings included, on the host.
        branches: of each piece its endings' lengths (empty for a sequence); nothing at all where none branches.
        attention_mask: (B, T) int64 or None.
        select_M: (M,) int64 positions (in the flattened B·T) that predict a supervised token.
        targets_M: (M,) int64 the tokens to predict there.
        weights_M: (M,) float32 their weights.
        sequence_M: (M,) int64 the sequence each belongs to.
        starts_S: (S,) int64 where each sequence begins in the flattened B·T.
        ends_S: (S,) int64 where its last token stands.
        count: the sum of weights, on the host (no synchronisation needed).
        sources: where each of the S sequences stands.
        extras: per-sequence tensors (S,).
        token_extras: per-target tensors (M,).
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    cumulative_P1: torch.Tensor
    pieces: tuple[int, ...]
    lengths: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    attention_mask: torch.Tensor | None
    select_M: torch.Tensor
    targets_M: torch.Tensor
    weights_M: torch.Tensor
    sequence_M: torch.Tensor
    starts_S: torch.Tensor
    ends_S: torch.Tensor
    count: float
    sources: tuple[str, ...]
    extras: dict[str, torch.Tensor]
    token_extras: dict[str, torch.Tensor]

    @property
    def is_packed(self) -> bool:
        return self.attention_mask is None

    @property
    def real_tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(self.pieces)


def collate(
    examples: Sequence[Example], device: torch.device | str = "cpu", packed: bool = True, pad_id: int = 0
) -> Batch:
    """Make a batch of examples, shifting targets by one.

    Packed and padded batches give the same M targets in the same order, so every objective is blind to the difference.
    """
    import torch

    if not packed:
        examples = [path for example in examples for path in example.paths()]
    sizes = tuple(len(e) for e in examples)
    width = max(sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    rows = starts[:-1] if packed else np.arange(len(examples)) * width
    shape = (1, int(starts[-1])) if packed else (len(examples), width)

    tokens = np.full(shape, pad_id, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    select, sequence, ends, lengths, first = [], [], [], [], []
    for example, row in zip(examples, rows):
        here = slice(int(row), int(row) + len(example))
        tokens.reshape(-1)[here] = example.tokens
        mask.reshape(-1)[here] = 1
        place, before, number, last = _layout(example)
        positions.reshape(-1)[here] = place
        supervised = 1 + np.flatnonzero(example.weights[1:])
        select.append(row + before[supervised])
        sequence.append(len(lengths) + number[supervised])
        ends.append(row + last)
        lengths += [int(place[end]) + 1 for end in last]
        first += [row] * len(last)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    def joined(arrays: list[np.ndarray], dtype: type) -> torch.Tensor:
        return tensor(np.concatenate(arrays).astype(dtype))

    kept = [1 + np.flatnonzero(e.weights[1:]) for e in examples]
    names = sorted({name for e in examples for name in e.extras})
    token_names = sorted({name for e in examples for name in e.token_extras})
    return Batch(
        tokens=tensor(tokens),
        positions=tensor(positions),
        cumulative_P1=tensor(starts.astype(np.int32)),
        pieces=sizes,
        lengths=tuple(lengths),
        branches=tuple(e.branches for e in examples) if any(e.branches for e in examples) else (),
        attention_mask=None if packed else tensor(mask),
        select_M=joined(select, np.int64),
        targets_M=joined([e.tokens[k] for e, k in zip(examples, kept)], np.int64),
        weights_M=joined([e.weights[k] for e, k in zip(examples, kept)], np.float32),
        sequence_M=joined(sequence, np.int64),
        starts_S=tensor(np.array(first, dtype=np.int64)),
        ends_S=joined(ends, np.int64),
        count=float(sum(e.count for e in examples)),
        sources=tuple(e.source for e in examples for _ in range(e.sequences)),
        extras={n: joined([np.broadcast_to(e.extras[n], e.sequences) for e in examples], np.float32) for n in names},
        token_extras={n: joined([e.token_extras[n] for e in examples], np.float32) for n in token_names},
    )


def _layout(example: Example) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return of each token its position, where it is predicted, its sequence, and (S,) where the sequences end."""
    length = len(example)
    here = np.arange(length)
    if not example.branches:
        return here, here - 1, np.zeros(length, dtype=np.int64), np.array([length - 1])
    prompt = example.prompt_length
    assert prompt > 0, "the first token of an ending is predicted by the beginning's last"
    assert not example.weights[1:prompt].any(), "a beginning that several endings share would be trained on repeatedly"
    endings = np.array(example.branches)
    begins = prompt + np.cumsum(endings) - endings
    number = np.concatenate([np.zeros(prompt, dtype=np.int64), np.repeat(np.arange(len(endings)), endings)])
    position = np.where(here < prompt, here, here - begins[number] + prompt)
    before = np.where(here == begins[number], prompt - 1, here - 1)
    return position, before, number, begins + endings - 1
