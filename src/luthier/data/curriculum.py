"""Easy rows first: the share of the rows that a step may draw from grows from a start to all of them.

Bengio et al. 2009, "Curriculum learning"; the paces are those of Platanios et al. 2019, arXiv:1903.09848, where the
share at progress x is a + (1 − a)·x (linear) or √(a² + (1 − a²)·x) (root). By length it is dynamic instruction length:
short and simple rows first.

Which row comes at which draw is a function of the seed, the measures and the length of the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from luthier.data.stream import MixedStream

JUMPS = 4
"""In how many jumps the pace `step` comes to the whole."""


class Curriculum(BaseModel):
    """In which order rows are learnt. The short form is what they are sorted by: `curriculum: length`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    by: Literal["length", "loss", "difficulty"] = "length"
    """What makes a row easy: few tokens; a low loss under the model that training starts from, measured once; or a low
    number in a column of the data."""

    column: str = Field(default="difficulty", min_length=1)
    """The column that holds the number, for difficulty."""

    start: float = Field(default=0.2, gt=0, le=1)
    """The share of the rows, easiest first, that the first steps draw from."""

    over: float = Field(default=0.5, gt=0, le=1)
    """The share of the run's steps over which it grows to all rows. From then on the order is random."""

    pace: Literal["linear", "root", "step"] = "linear"
    """How it grows: evenly, fast at first, or in four jumps."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"by": value} if isinstance(value, str) else value

    def share(self, x: float) -> float:
        """Return the share of the rows that may be drawn at a point of the growth, from 0 to 1."""
        start = self.start
        if self.pace == "root":
            return math.sqrt(start**2 + (1 - start**2) * x)
        return start + (1 - start) * (math.floor(JUMPS * x) / JUMPS if self.pace == "step" else x)


@dataclass(frozen=True)
class PacedStream(MixedStream):
    """The rows of one or several sets for each step, easy ones first within each set.

    A set is gone through in passes. A pass takes every row that is allowed once, in a random order; rows that become
    allowed join it. When all rows are allowed and the pass is over, the set's ordinary epochs begin. The shares of the
    sets are those of the mixture throughout.

    Attributes:
        measures: of each set (N,), how hard its rows are.
        total: steps of the whole run.
    """

    measures: tuple[np.ndarray, ...] = ()
    total: int = 1
    curriculum: Curriculum = field(default_factory=Curriculum)

    def drawn(self, start: int, stop: int) -> np.ndarray:
        """Return the rows at places [start, stop)."""
        sets, numbers = self._blend.draws(start, stop)
        found = [self._row(int(which), int(number)) for which, number in zip(sets, numbers)]
        return np.array(found, dtype=np.int64) + self._first[sets]

    @property
    def growing(self) -> int:
        """Steps of the growth; the last of them may draw from all rows."""
        return math.ceil(self.curriculum.over * self.total)

    def share(self, step: int) -> float:
        """Return the share of the rows that a step may draw from."""
        return self.curriculum.share(min(step / (self.growing - 1), 1.0) if self.growing > 1 else 1.0)

    def allowed(self, step: int, size: int) -> int:
        """Return how many of a set's rows, easiest first, a step may draw from."""
        return max(1, math.ceil(size * self.share(step) - 1e-9))

    def _row(self, which: int, number: int) -> int:
        order = self._orders[which]
        return int(order[number]) if number < len(order) else self._streams[which].at(number - len(order))

    @cached_property
    def _orders(self) -> list[np.ndarray]:
        """The rows of each set's first draws, until its ordinary epochs begin."""
        last = self.positions(self.growing - 1)[1]
        sets, _ = self._blend.draws(0, last)
        spans = [self.positions(step) for step in range(self.growing)]
        steps = np.repeat(np.arange(self.growing), [stop - start for start, stop in spans])
        found = []
        for which, (size, measure) in enumerate(zip(self.sizes, self.measures)):
            draw = np.random.default_rng((self.seed, 1 + which, 2))
            easy_first = np.lexsort((draw.permutation(size), measure))
            at_step = np.array([self.allowed(step, size) for step in range(self.growing)], dtype=np.int64)
            found.append(_passes(easy_first, at_step[steps[sets == which]], draw))
        return found


def _passes(easy_first: np.ndarray, allowed: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return the rows drawn one after the other.

    Args:
        easy_first: (N,) rows, the easiest first.
        allowed: how many of them the first, second, … draw may take from; it never falls. Afterwards all are.
    """
    size, added = len(easy_first), 0
    luck = draw.random(len(allowed) + size)
    pool: list[int] = []
    order: list[int] = []
    for turn in range(len(luck)):
        limit = int(allowed[turn]) if turn < len(allowed) else size
        if limit > added:
            pool += easy_first[added:limit].tolist()
            added = limit
        if not pool:
            if turn >= len(allowed):
                break
            pool = easy_first[:added].tolist()
        place = int(luck[turn] * len(pool))
        order.append(pool[place])
        pool[place] = pool[-1]
        pool.pop()
    return np.array(order, dtype=np.int64)
