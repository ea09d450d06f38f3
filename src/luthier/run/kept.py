"""What the report page shows of forgetting and of gates: plots, what happened, what to try.

Two plots: how much better the target became and how much worse what is general, step by step; and the one against the
other, where a good run goes to the right and stays low.

Shape legend: N measurements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from markupsafe import Markup

from luthier.run.limits import HELD_OUT, drop_text, worse_by
from luthier.run.plots import Chart, Series, line_chart
from luthier.run.summary import Comparison, Curve, StageSummary, as_float, mapping

PREFIX = "general_"
"""What the names of general sets begin with in metrics.jsonl; those of tasks stand under their own column."""
TASK = "task_"

_TONES: tuple[Literal["second", "third"], ...] = ("second", "third")


@dataclass(frozen=True)
class Condition:
    """A gate's condition: what it asks, and what was not fulfilled."""

    task: str
    asks: str
    faults: list[str]
    warns: bool


@dataclass(frozen=True)
class KeptView:
    """What the page shows of one stage.

    Attributes:
        happened: in words, whether something was forgotten.
        is_good: nothing became worse than it was allowed to.
        result: which state the result is.
        lines: each set with what became of it.
    """

    happened: str
    is_good: bool
    result: str
    lines: list[str]
    advice: list[str]
    charts: list[Markup]
    conditions: list[Condition]


def kept_view(stage: StageSummary, report: Mapping[str, object]) -> KeptView | None:
    """Return what is shown of a stage; None where neither forgetting was watched nor a gate was set.

    Args:
        report: the stage's part of report.json; empty while it trains.
    """
    found = mapping(report.get("forgetting"))
    conditions = [_condition(mapping(c)) for c in _list(mapping(report.get("gate")).get("conditions"))]
    drops = _drops(stage, [str(mapping(part).get("name")) for part in _list(found.get("sets"))])
    if not (found or drops or conditions):
        return None
    rows = [_row(mapping(part)) for part in _list(found.get("sets"))]
    limit = as_float(found.get("max_drop"))
    is_good = not found.get("first_forgot") and all(mapping(p).get("within_max_drop") for p in _list(found.get("sets")))
    happened = str(found.get("what_happened") or "")
    if found and not happened:
        happened = (
            "Nothing became worse than max_drop allows." if is_good else "At the end something is worse than it may."
        )
    return KeptView(
        happened=happened[:1].upper() + happened[1:],
        is_good=is_good,
        result=_result(found),
        lines=[_line(row) for row in rows],
        advice=[str(said) for said in _list(found.get("advice"))],
        charts=[chart for chart in _charts(stage, drops, limit, found) if chart],
        conditions=conditions,
    )


def column_of(name: str, tasks: Sequence[str]) -> str:
    """Return the column of metrics.jsonl in which something watched stands."""
    return f"{TASK if name in tasks else PREFIX}{name}"


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _row(part: Mapping[str, object]) -> Comparison:
    before, after = as_float(part.get("before")), as_float(part.get("after"))
    higher = part.get("higher_is_better")
    known = higher if isinstance(higher, bool) else None
    return Comparison(str(part.get("name")), str(part.get("metric")), before, after, higher=known)


def _line(row: Comparison) -> str:
    drop = worse_by(row)
    became = "not measured" if drop is None else f"{'worse' if drop > 0 else 'better'} by {drop_text(row, abs(drop))}"
    return f"{row.label}: {row.text(row.before)} → {row.text(row.after)}, {became if drop != 0 else 'as it was'}"


def _result(found: Mapping[str, object]) -> str:
    best, place = found.get("best_within_max_drop"), found.get("checkpoint")
    if found.get("rolled_back"):
        return f"The run was taken back to the state of step {best}: {place}."
    return f"The best state that kept within max_drop was that of step {best}." if best is not None else ""


def _condition(said: Mapping[str, object]) -> Condition:
    keys = ("min", "max", "max_increase", "min_increase", "max_drop")
    asks = ", ".join(f"{key} {said[key]:g}" for key in keys if isinstance(said.get(key), int | float))
    faults = [str(fault) for fault in _list(said.get("faults"))]
    return Condition(str(said.get("task")), asks, faults, said.get("action") == "warn")


def _drops(stage: StageSummary, names: Sequence[str]) -> dict[str, Curve]:
    """Return by how many percent (of a share: points) each set was worse than at the start, with 0 at step 0."""
    start = {row.name: row for row in stage.comparisons}
    found = {}
    for key, curve in stage.curves.items():
        is_task = key.startswith(TASK) and key.removeprefix(TASK) in names
        row = start.get(key.removeprefix(TASK if is_task else PREFIX))
        if (is_task or key.startswith(PREFIX)) and row is not None and row.before is not None:
            found[row.name] = _from_zero(row, curve)
    return found


def _from_zero(row: Comparison, curve: Curve) -> Curve:
    drops = [worse_by(Comparison(row.name, row.metric, row.before, float(v), higher=row.higher)) for v in curve.values]
    values = np.array([0.0, *(np.nan if d is None else 100 * d for d in drops)])
    return Curve(np.concatenate([[0.0], curve.steps]), values)


def _gain(stage: StageSummary, worst: Curve) -> tuple[str, Curve] | None:
    """Return by how many percent the held-out loss was lower than at the start, with 0 at step 0, and its name.

    Where no rows are held out: the mean training loss before each measurement, against that of the first step.
    """
    held = next((row for row in stage.comparisons if row.name == HELD_OUT), None)
    if "eval_loss" in stage.curves and held is not None and held.before:
        curve = _from_zero(held, stage.curves["eval_loss"])
        return "held-out loss, lower by", Curve(curve.steps, -curve.values)
    loss = stage.curves.get("loss")
    if loss is None or not loss.values[0] or "reward" in stage.curves:  # a surrogate of rewards is no gain
        return None
    means = [
        loss.values[(loss.steps > low) & (loss.steps <= high)].mean() for low, high in pairwise(worst.steps.tolist())
    ]
    gains = 100 * (1 - np.array(means) / abs(loss.values[0]))
    return "training loss, lower by", Curve(worst.steps, np.concatenate([[0.0], gains]))


def _charts(
    stage: StageSummary, drops: Mapping[str, Curve], limit: float | None, found: Mapping[str, object]
) -> list[Markup]:
    if not drops:
        return []
    worst = _worst(drops)
    named = _gain(stage, worst)
    gain = None if named is None else named[1]
    lines = [] if named is None else [Series(named[0], named[1].steps, named[1].values)]
    for (name, curve), tone in zip(drops.items(), _TONES * len(drops)):
        lines.append(Series(f"{name}, worse by", curve.steps, curve.values, "line", tone))
    if limit is not None:
        ends = np.array([0.0, worst.steps[-1]])
        lines.append(Series("max_drop", ends, np.full(2, 100 * limit), "faint", "third"))
    kept = as_float(found.get("best_within_max_drop"))
    marks = () if kept is None else ((kept, f"best within max_drop: step {kept:g}"),)
    unit = "% of a loss, points of a share"
    by_step = Chart("Gain and forgetting", tuple(lines), unit=unit, scale="linear", marks=marks)
    return [line_chart(by_step), _trade_off(gain, worst, kept)]


def _worst(drops: Mapping[str, Curve]) -> Curve:
    """Return the largest drop of all sets at each measurement."""
    curves = list(drops.values())
    size = min(len(curve.values) for curve in curves)
    return Curve(curves[0].steps[:size], np.max([curve.values[:size] for curve in curves], axis=0))


def _trade_off(gain: Curve | None, worst: Curve, kept: float | None) -> Markup:
    """Return the plot of what was lost against what was gained; empty where nothing was gained that is measured."""
    if gain is None:
        return Markup("")
    both, at, other = np.intersect1d(gain.steps, worst.steps, return_indices=True)
    if len(both) < 3:
        return Markup("")
    x, y = gain.values[at], worst.values[other]
    order = np.argsort(x, kind="stable")
    series = [Series("each measurement", x[order], y[order], "dots")]
    chosen = np.flatnonzero(both == kept) if kept is not None else []
    if len(chosen):
        series.append(Series("best within max_drop", x[chosen], y[chosen], "dots", "second"))
    title = "Forgetting against gain"
    return line_chart(Chart(title, tuple(series), unit="% worse, by % gained", scale="linear", x_name="gained %"))
