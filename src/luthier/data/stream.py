"""The order of rows as a pure function of (seed, step): nothing to store, nothing to skip through on resume.

Each epoch is a permutation drawn from (seed, epoch), cut into steps of `batch_size` sequences; the last step of an
epoch takes what is left. Ranks take every n-th sequence of a step, so together they are exactly the step.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from luthier.data.blend import Blend


class Steps(Protocol):
    """What a training loop asks of the order of rows."""

    @property
    def steps_per_epoch(self) -> int: ...

    def total_steps(self, epochs: float, max_steps: int | None = None) -> int: ...

    def rows(self, step: int, rank: int = 0, ranks: int = 1) -> np.ndarray: ...


@dataclass(frozen=True)
class Stream:
    """Rows for each optimizer step.

    Attributes:
        size: number of examples.
        batch_size: sequences per optimizer step, over all ranks.
        seed: seed of the shuffle.
        shuffle: False keeps the order of the file in every epoch.
    """

    size: int
    batch_size: int
    seed: int
    shuffle: bool = True
    _kept: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.size / self.batch_size)

    def total_steps(self, epochs: float, max_steps: int | None = None) -> int:
        """Return the optimizer steps of a run; `max_steps` overrides `epochs` and may run through several epochs."""
        return max_steps if max_steps is not None else max(1, math.ceil(epochs * self.steps_per_epoch))

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Return the (size,) order of an epoch."""
        if not self.shuffle:
            return np.arange(self.size)
        if epoch not in self._kept:  # drawn anew at every step, a million rows would cost more than small models do
            self._kept.clear()
            self._kept[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.size)
        return self._kept[epoch]

    def at(self, position: int) -> int:
        """Return the row at a place of the endless sequence of epochs, whatever the steps."""
        epoch, within = divmod(position, self.size)
        return int(self.epoch_order(epoch)[within])

    def rows(self, step: int, rank: int = 0, ranks: int = 1) -> np.ndarray:
        """Return the rows of optimizer step `step` (from 0) that `rank` works on."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = self.epoch_order(epoch)
        return order[within * self.batch_size : (within + 1) * self.batch_size][rank::ranks]


@dataclass(frozen=True)
class MixedStream:
    """Rows of several sets for each optimizer step, in exact shares.

    An epoch has as many sequences as all sets together. Each set goes through epochs of its own, drawn as a Stream
    draws them, so that no row comes again before all others of its set have come. One set alone is its Stream.

    Attributes:
        sizes: examples of each set; rows are numbered through, the first set's first.
        rates: the share of each set, together 1.
    """

    sizes: tuple[int, ...]
    rates: tuple[float, ...]
    batch_size: int
    seed: int

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.size / self.batch_size)

    def total_steps(self, epochs: float, max_steps: int | None = None) -> int:
        """Return the optimizer steps of a run; `max_steps` overrides `epochs`."""
        return max_steps if max_steps is not None else max(1, math.ceil(epochs * self.steps_per_epoch))

    def rows(self, step: int, rank: int = 0, ranks: int = 1) -> np.ndarray:
        """Return the rows of optimizer step `step` (from 0) that `rank` works on."""
        start, stop = self.positions(step)
        return self.drawn(start, stop)[rank::ranks]

    def positions(self, step: int) -> tuple[int, int]:
        """Return [start, stop), the places of a step in the endless sequence of draws."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = epoch * self.size + within * self.batch_size
        return start, min(start + self.batch_size, (epoch + 1) * self.size)

    def drawn(self, start: int, stop: int) -> np.ndarray:
        """Return the rows at places [start, stop)."""
        sets, numbers = self._blend.draws(start, stop)
        found = [self._streams[which].at(int(number)) for which, number in zip(sets, numbers)]
        return np.array(found, dtype=np.int64) + self._first[sets]

    def counts(self, steps: int) -> list[int]:
        """Return how many sequences the first `steps` steps take from each set."""
        return self._blend.counts(self.positions(steps - 1)[1] if steps else 0)

    @cached_property
    def _blend(self) -> Blend:
        return Blend(self.rates)

    @cached_property
    def _first(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)

    @cached_property
    def _streams(self) -> list[Stream]:
        # The first set is shuffled as it would be alone; the others by numbers of their own.
        seeds = [self.seed, *(zlib.crc32(f"{self.seed}/set/{i}".encode()) for i in range(1, len(self.sizes)))]
        return [Stream(size, self.batch_size, seed) for size, seed in zip(self.sizes, seeds)]
