"""Which set each sequence of a mixture comes from: exact shares, as a pure function of the position.

The j-th draw of a set with share r is due at (j + ½) / r, and draws are taken in the order in which they are due. After
n draws a set of k sets has n·r ± (½ + k·r/2) of them, whatever n is: shares hold over every stretch and not only in
expectation. The first n draws are found without going through them, so nothing is stored and nothing is skipped
through on resume.

Shape legend: K sets, N draws.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Blend:
    """An endless sequence of draws. `rates` are the shares, together 1; a set with 0 is never drawn from."""

    rates: tuple[float, ...]

    def counts(self, position: int) -> list[int]:
        """Return how many of the first `position` draws come from each set, (K,)."""
        counts = self._due(position - len(self.rates) / 2 - 1)
        draws = self._in_order(counts)
        for _ in range(position - sum(counts)):
            counts[next(draws)[0]] += 1
        return counts

    def draws(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (N,) sets and (N,) numbers of draws from that set before, for positions [start, stop)."""
        draws = self._in_order(self.counts(start))
        found = [next(draws) for _ in range(stop - start)]
        return np.array([which for which, _ in found], dtype=np.int64), np.array([n for _, n in found], dtype=np.int64)

    def _due(self, time: float) -> list[int]:
        """Return how many draws of each set are due until `time`, by the very numbers that order them."""
        return [self._due_of(rate, time) for rate in self.rates]

    def _due_of(self, rate: float, time: float) -> int:
        if rate <= 0 or time <= 0:
            return 0
        count = max(0, math.floor(time * rate + 0.5))
        while (count + 0.5) / rate <= time:
            count += 1
        while count and (count - 0.5) / rate > time:
            count -= 1
        return count

    def _in_order(self, counts: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield (set, number) of one draw after the other, from where `counts` have been drawn."""
        heap = [((n + 0.5) / rate, which, n) for which, (n, rate) in enumerate(zip(counts, self.rates)) if rate > 0]
        heapq.heapify(heap)
        while True:
            _, which, number = heap[0]
            yield which, number
            heapq.heapreplace(heap, ((number + 1.5) / self.rates[which], which, number + 1))
