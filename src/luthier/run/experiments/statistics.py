"""What a handful of seeds says: Student's intervals, paired differences, and Holm's correction for many of them.

Shape legend: N seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.05


@dataclass(frozen=True)
class Spread:
    """One number over seeds: its mean, each value, and the 95 % interval of the mean where there are two or more."""

    mean: float
    values: tuple[float, ...]
    interval: tuple[float, float] | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Return the spread of (N,) values; None of none."""
        if not values:
            return None
        mean = statistics.fmean(values)
        return cls(mean, tuple(values), _interval(values, mean))

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {"mean": self.mean, "interval": self.interval and list(self.interval), "values": list(self.values)}


@dataclass(frozen=True)
class Difference:
    """A mean difference with its 95 % interval, and the chance of one as large if there were none."""

    mean: float
    interval: tuple[float, float] | None
    p: float | None


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Return ours − theirs of (N,) values that belong together, by the paired t-test; of one seed the size alone."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return Difference(mean, None, None)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    if error == 0:
        return Difference(mean, (mean, mean), 1.0 if mean == 0 else 0.0)
    return Difference(mean, _interval(differences, mean), t_tail(abs(mean) / error, len(differences) - 1))


def holm(chances: Mapping[str, float]) -> set[str]:
    """Return the names whose difference is shown at the level, all comparisons considered (Holm 1979)."""
    shown: set[str] = set()
    ordered = sorted(chances, key=lambda name: chances[name])
    for rank, name in enumerate(ordered):
        if chances[name] > LEVEL / (len(ordered) - rank):
            break
        shown.add(name)
    return shown


def t_tail(t: float, degrees: int) -> float:
    """Return the chance of a |t| as large or larger, of Student's distribution with a whole number of degrees.

    By the finite sums of Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan2(t, math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    total, term = 0.0, 1.0
    if degrees % 2:
        for k in range(1, (degrees - 1) // 2 + 1):
            term = cosine if k == 1 else term * cosine**2 * (2 * k - 2) / (2 * k - 1)
            total += term
        return max(0.0, 1 - 2 / math.pi * (angle + sine * total))
    for k in range(degrees // 2):
        term = 1.0 if k == 0 else term * cosine**2 * (2 * k - 1) / (2 * k)
        total += term
    return max(0.0, 1 - sine * total)


def t_quantile(degrees: int) -> float:
    """Return the t that 95 % of Student's distribution lie within, found by halving."""
    low, high = 1.0, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, degrees) > LEVEL else (low, middle)
    return high


def _interval(values: Sequence[float], mean: float) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half
