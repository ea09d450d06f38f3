"""Which cell is best, which others cannot be told from it, and which are worth their cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.evaluate.tasks.base import paired as by_case
from luthier.run.experiments.cell import Cell
from luthier.run.experiments.outcome import cases_of
from luthier.run.experiments.statistics import Difference, holm, paired

Verdict = Literal["best", "no difference shown", "worse", "one seed", "not measured"]
COSTS: Mapping[str, Callable[[Cell], float | None]] = {
    "memory": lambda cell: cell.peak_bytes,
    "seconds": lambda cell: None if cell.seconds is None else cell.seconds.mean,
    "share": lambda cell: cell.share,
}
"""What quality is bought with; less is better."""
_RETAINED = ("general", "retained", "forgetting")


@dataclass(frozen=True)
class Standing:
    """How a cell stands against the best one of its model: the paired difference over their common seeds, or over the
    cases of the only one."""

    verdict: Verdict
    difference: Difference | None = None
    seeds: int = 0
    basis: Literal["seeds", "cases"] = "seeds"

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        found = self.difference
        return {
            "verdict": self.verdict,
            "difference": None if found is None else found.mean,
            "interval": None if found is None or found.interval is None else list(found.interval),
            "p": None if found is None else found.p,
            "seeds": self.seeds,
            "basis": self.basis,
        }


def quality_of(measures: Sequence[str], named: str, retained: str) -> str:
    """Return the measure that cells are ranked by: the one named, else the first that is not what was retained."""
    if named:
        return next((name for name in measures if name == named), "")
    return next((name for name in measures if name != retained), "")


def retained_of(measures: Sequence[str], named: str) -> str:
    """Return the measure of what the model could do before, by its name; empty where none is called so."""
    if named:
        return next((name for name in measures if name == named), "")
    return next((name for name in measures if any(word in name.lower() for word in _RETAINED)), "")


def standings(cells: Sequence[Cell], quality: str) -> dict[str, Standing]:
    """Return how each cell stands, by name; each model has its own best."""
    found: dict[str, Standing] = {}
    for model in dict.fromkeys(cell.model for cell in cells if cell.runs):
        found |= _of_one_model([cell for cell in cells if cell.runs and cell.model == model], quality)
    return found


def _of_one_model(cells: Sequence[Cell], quality: str) -> dict[str, Standing]:
    means = {cell.name: value for cell in cells if (value := mean_of(cell, quality)) is not None}
    if not means:
        return {}
    example = next(cell.measures[quality].like for cell in cells if quality in cell.measures)
    sign = 1 if example.higher_is_better else -1
    # A cell that lost a seed is not called the best of those that have all of them.
    most = max(len(cell.after(quality)) for cell in cells)
    whole = [cell for cell in cells if cell.name in means and len(cell.after(quality)) == most]
    best = max(whole, key=lambda cell: sign * means[cell.name])
    found: dict[str, Standing] = {}
    for cell in cells:
        if cell.name not in means:
            found[cell.name] = Standing("not measured")
            continue
        seeds = sorted(set(cell.after(quality)) & set(best.after(quality)))
        if cell is best or not seeds:
            found[cell.name] = Standing("best" if cell is best else "not measured", None, len(seeds))
            continue
        ours, theirs = ([c.after(quality)[seed] for seed in seeds] for c in (cell, best))
        found[cell.name] = Standing("one seed", paired(ours, theirs), len(seeds))
        if len(seeds) == 1:
            found[cell.name] = _by_cases(cell, best, seeds[0], quality) or found[cell.name]
    chances = {n: s.difference.p for n, s in found.items() if s.difference is not None and s.difference.p is not None}
    shown = holm(chances)
    for name in chances:
        standing = found[name]
        found[name] = Standing("worse" if name in shown else "no difference shown", standing.difference, standing.seeds)
    return found


def _by_cases(cell: Cell, best: Cell, seed: int, quality: str) -> Standing | None:
    """Return how two runs of one seed stand by the same cases, resampled together; None where these are not known."""
    ours, theirs = (
        next((cases_of(run.run, quality) for run in c.runs if run.seed in (seed, None)), None) for c in (cell, best)
    )
    if ours is None or theirs is None or ours.cases.shape != theirs.cases.shape:
        return None
    change = by_case(theirs, ours)
    low, high = change.interval
    verdict: Verdict = "no difference shown" if low <= 0 <= high else "worse"
    return Standing(verdict, Difference(change.change, (low, high), None), 1, "cases")


def mean_of(cell: Cell, name: str) -> float | None:
    """Return a measure's mean after training over the seeds where it is a finite number."""
    values = list(cell.after(name).values())
    return sum(values) / len(values) if values else None


def front(cells: Sequence[Cell], quality: str, cost: Callable[[Cell], float | None]) -> list[str]:
    """Return the cells that none beats in quality at the same cost or less (the Pareto front), cheapest first."""
    points = [
        (price, value, cell.name)
        for cell in cells
        if (price := cost(cell)) is not None and (value := mean_of(cell, quality)) is not None
    ]
    if not points:
        return []
    sign = next(1 if c.measures[quality].like.higher_is_better else -1 for c in cells if quality in c.measures)
    points = sorted((price, -sign * value, name) for price, value, name in points)
    kept: list[str] = []
    least = float("inf")
    for _, loss, name in points:
        if loss < least:
            least = loss
            kept.append(name)
    return kept
