"""The order of rows as a pure function of (seed, step): nothing to store, nothing to skip through on resume.

Each epoch is a permutation drawn from (seed, epoch), cut into steps of `batch_size` sequences; the last step of an
epoch takes what is left. Ranks take every n-th sequence of a step, so together they are exactly the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


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
        return np.random.default_rng((self.seed, epoch)).permutation(self.size)

    def at(self, position: int) -> int:
        """Return the row at a place of the endless sequence of epochs, whatever the steps."""
        epoch, within = divmod(position, self.size)
        return int(self.epoch_order(epoch)[within])

    def rows(self, step: int, rank: int = 0, ranks: int = 1) -> np.ndarray:
        """Return the rows of optimizer step `step` (from 0) that `rank` works on."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = self.epoch_order(epoch)
        return order[within * self.batch_size : (within + 1) * self.batch_size][rank::ranks]
