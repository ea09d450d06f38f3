"""One row of a comparison: the runs of a cell over its seeds, taken together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from luthier.run.experiments.outcome import Outcome
from luthier.run.experiments.statistics import Spread
from luthier.run.summary import Comparison


@dataclass(frozen=True)
class Measured:
    """A measure over seeds.

    Attributes:
        like: one run's measure: its metric, direction, and how its values are written.
    """

    like: Comparison
    before: Spread | None
    after: Spread | None

    @property
    def mean(self) -> Comparison:
        """The measure with its means before and after."""
        before, after = (None if part is None else part.mean for part in (self.before, self.after))
        return replace(self.like, before=before, after=after)

    def as_dict(self) -> dict[str, object]:
        """Return plain values: the means as `before` and `after`, and what the seeds say beside them."""
        mean = self.mean
        found = {"metric": mean.metric, "before": mean.before, "after": mean.after, "n": mean.n}
        if self.after is None:
            return {**found, "interval": None, "values": []}
        return {**found, "interval": self.after.interval, "values": list(self.after.values)}


@dataclass(frozen=True)
class Cell:
    """A row.

    Attributes:
        name: what it is called in the table.
        runs: those that are finished, in the order of the seeds.
        changes: the keys that make it differ.
        seeds: how many runs it is to have.
        refused: why there are none; failures: why some broke.
    """

    name: str
    runs: Sequence[Outcome] = ()
    changes: Mapping[str, object] = field(default_factory=dict)
    seeds: int = 1
    refused: str = ""
    failures: tuple[str, ...] = ()

    @property
    def first(self) -> Outcome | None:
        return self.runs[0] if self.runs else None

    @property
    def model(self) -> str:
        return self.runs[0].model if self.runs else ""

    @property
    def share(self) -> float | None:
        """The trained share of all parameters."""
        return self.runs[0].share if self.runs else None

    @property
    def peak_bytes(self) -> int | None:
        """The highest memory of any of its runs."""
        return max((run.peak_bytes for run in self.runs if run.peak_bytes), default=None)

    @property
    def seconds(self) -> Spread | None:
        return self.over(lambda run: run.train_seconds)

    @property
    def cpu_seconds(self) -> Spread | None:
        return self.over(lambda run: run.train_cpu_seconds)

    @property
    def steps(self) -> Spread | None:
        return self.over(lambda run: run.steps)

    @property
    def tokens(self) -> Spread | None:
        return self.over(lambda run: run.tokens)

    @property
    def why(self) -> str:
        """Why the row is not whole; empty where it is."""
        if self.refused:
            return f"left out: {self.refused}"
        if not self.failures:
            return ""
        reasons = " ".join(dict.fromkeys(self.failures))
        return f"failed: {reasons}" if self.seeds == 1 else f"{len(self.failures)} of {self.seeds} failed: {reasons}"

    @property
    def measures(self) -> dict[str, Measured]:
        """Each measure over the seeds, in the order in which they first come."""
        names = dict.fromkeys(name for run in self.runs for name in run.measures)
        return {name: self._measured(name) for name in names}

    def after(self, name: str) -> dict[int, float]:
        """Return a measure's values after training by seed; those that are not finite are left out."""
        found = {}
        for index, run in enumerate(self.runs):
            value = run.measures[name].after if name in run.measures else None
            if value is not None and math.isfinite(value):
                found[run.seed if run.seed is not None else index] = value
        return found

    def over(self, number: Callable[[Outcome], float | None]) -> Spread | None:
        """Return a number of each run, taken together."""
        values = [value for value in map(number, self.runs) if value is not None]
        return Spread.of(values)

    def _measured(self, name: str) -> Measured:
        rows = [run.measures[name] for run in self.runs if name in run.measures]
        before = Spread.of([row.before for row in rows if row.before is not None])
        after = Spread.of([row.after for row in rows if row.after is not None])
        return Measured(rows[0], before, after)
