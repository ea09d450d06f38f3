"""Sequences that hold nothing themselves: a part of another one, or several one after the other."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import Generic, TypeVar, overload

import numpy as np

Item = TypeVar("Item")


class Part(Sequence[Item], Generic[Item]):
    """Chosen items of a sequence. `chosen` (N,) are their places in it."""

    def __init__(self, whole: Sequence[Item], chosen: np.ndarray) -> None:
        self.whole = whole
        self.chosen = chosen

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self.whole[int(i)] for i in self.chosen[index]]
        return self.whole[int(self.chosen[index])]

    def __iter__(self) -> Iterator[Item]:
        return (self.whole[int(i)] for i in self.chosen)


class Chain(Sequence[Item], Generic[Item]):
    """Several sequences one after the other."""

    def __init__(self, parts: Sequence[Sequence[Item]]) -> None:
        self.parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]

    def __iter__(self) -> Iterator[Item]:
        return chain.from_iterable(self.parts)


def joined(parts: Sequence[Sequence[Item]]) -> Sequence[Item]:
    """Return several sequences as one; a single one stays what it is."""
    return parts[0] if len(parts) == 1 else Chain(parts)
