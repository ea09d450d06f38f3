"""The page of a search: how it went, what decides, and which values go together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from luthier import __version__
from luthier.core.rundir import write_atomic
from luthier.run.experiments.page import templates
from luthier.run.experiments.scatter import Point, Scatter, scatter
from luthier.run.experiments.space import Dimension, Range
from luthier.run.numbers import duration, number, percent, setting
from luthier.run.plots import Chart, Series, line_chart

if TYPE_CHECKING:
    from luthier.run.experiments.search import Found, TrialRow

_WIDTH, _HEIGHT = 1000.0, 400.0
_BEST_SHARE = 0.2
"""The share of the trials that are drawn as the good ones."""


def write_page(found: Found) -> Path:
    """Write search.html into the folder of a search; writing it again gives the same bytes."""
    best = found.best
    page = templates().get_template("tuning.html").render(
        title=found.out.name,
        found=found,
        best=best,
        value=found.like.text(best.value) if best is not None else "",
        counts=[f"{count} {state}" for state, count in found.counts().items() if count],
        importance=[(key, percent(share), round(share * 100, 1)) for key, share in found.importance.items()],
        history=history(found),
        together=parallel(found),
        slices=[plot for key, part in found.tuning.space.items() if (plot := _slice(found, key, part))],
        rows=[_texts(found, row) for row in found.rows],
        keys=list(found.tuning.space),
        recipe=found.recipe_path.read_text(encoding="utf-8") if best is not None else "",
        version=__version__,
    )  # fmt: skip
    write_atomic(found.out / "search.html", page)
    return found.out / "search.html"


def history(found: Found) -> Markup:
    """Return the trials in their order, with the best so far as a line."""
    done = _done(found)
    if not done:
        return Markup("")
    x, y = np.array([float(row.number) for row in done]), np.array([row.value for row in done], dtype=float)
    best = np.maximum.accumulate(y) if found.like.higher_is_better else np.minimum.accumulate(y)
    series = (Series("best so far", x, best, "line"), Series("trials", x, y, "dots", "second"))
    chart = Chart("Trials in their order", series, unit=found.tuning.measure, text=found.like.text)
    return line_chart(chart)


def parallel(found: Found) -> Markup:
    """Return a line for each finished trial through the values it tried, the measure last; the good ones stand out."""
    done = _done(found)
    keys = list(found.tuning.space)
    if len(done) < 2 or not keys:
        return Markup("")
    values = np.array([row.value for row in done], dtype=float)
    sign = -1.0 if found.like.higher_is_better else 1.0
    order = np.argsort(-sign * values)  # the best are drawn last, over the others
    good = set(order[-max(1, round(_BEST_SHARE * len(done))) :].tolist())
    low, high = float(values.min()), float(values.max())
    lines, columns = [], [*keys, found.tuning.measure]
    for index in order.tolist():
        heights = [_height(found.tuning.space[key], done[index].chosen.get(key)) for key in keys]
        heights.append((float(values[index]) - low) / (high - low) if high > low else 0.5)
        places = [
            f"{across / (len(columns) - 1) * _WIDTH:.1f} {(1 - (0.04 + 0.92 * up)) * _HEIGHT:.1f}"
            for across, up in enumerate(heights)
        ]
        style = "line" if index in good else "faint"
        lines.append(Markup('<path class="{}" d="M{}"/>').format(style, "L".join(places)))
    axes = Markup("").join(
        Markup('<path class="grid" d="M{0:.1f} 0V{1:.0f}"/>').format(i / (len(columns) - 1) * _WIDTH, _HEIGHT)
        for i in range(len(columns))
    )
    labels = [_axis(i / (len(columns) - 1), key, *_ends(found.tuning.space[key])) for i, key in enumerate(keys)]
    labels.append(_axis(1.0, found.tuning.measure, found.like.text(low), found.like.text(high)))
    return Markup(
        '<figure class="chart whole"><figcaption><b>What goes together</b><span class="unit">a line for each trial, '
        'the best fifth in colour</span></figcaption><div class="plot axes" role="img" aria-label="All trials">'
        '<svg viewBox="0 0 {} {}" preserveAspectRatio="none" aria-hidden="true">{}{}</svg>{}</div></figure>'
    ).format(_WIDTH, _HEIGHT, axes, Markup("").join(lines), Markup("").join(labels))


def _axis(across: float, name: str, low: str, high: str) -> Markup:
    side = "first" if across == 0 else "last" if across == 1 else ""
    return Markup(
        '<span class="axis {0}" style="left:{1}%"><b>{2}</b></span>'
        '<span class="end top {0}" style="left:{1}%">{3}</span><span class="end low {0}" style="left:{1}%">{4}</span>'
    ).format(side, f"{across * 100:.1f}", name, high, low)


def _ends(dimension: Dimension) -> tuple[str, str]:
    if isinstance(dimension, Range):
        low, high = (setting(float(end)) for end in (dimension.low, dimension.high))
        return low, high
    return str(dimension.values[0]), str(dimension.values[-1])


def _height(dimension: Dimension, value: object) -> float:
    """Return how far up its axis a value stands, from 0 to 1."""
    if not isinstance(dimension, Range):
        words = [str(v) for v in dimension.values]
        return words.index(str(value)) / max(len(words) - 1, 1) if str(value) in words else 0.5
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.5
    if dimension.log:
        return math.log(value / dimension.low) / math.log(dimension.high / dimension.low)
    return (value - dimension.low) / (dimension.high - dimension.low)


def _slice(found: Found, key: str, dimension: Dimension) -> Markup:
    """Return the measure against the numbers that one key took."""
    done = [row for row in _done(found) if isinstance(row.chosen.get(key), int | float)]
    is_number = isinstance(dimension, Range) or all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in dimension.values
    )
    if not is_number or len({row.chosen[key] for row in done}) < 2:
        return Markup("")
    best = found.best
    points = []
    for row in done:
        x, y = row.chosen[key], row.value
        assert isinstance(x, int | float)
        assert y is not None
        points.append(
            Point(f"trial {row.number}", float(x), y, y, y, best is not None and row.number == best.number, row.number)
        )
    return scatter(Scatter(key, found.like.direction, points, setting, found.like.text))


def _done(found: Found) -> list[TrialRow]:
    return [row for row in found.rows if row.state == "complete" and row.value is not None]


def _texts(found: Found, row: TrialRow) -> Mapping[str, object]:
    looks: Sequence[float] = row.looks
    shown = [number(v, 3) if isinstance(v, float) else str(v) for v in (row.chosen.get(k) for k in found.tuning.space)]
    return {
        "number": row.number,
        "state": row.state,
        "value": found.like.text(row.value) if row.value is not None else "",
        "looks": f"last look {number(looks[-1])} (look {len(looks)})" if looks and row.state != "complete" else "",
        "chosen": shown,
        "seconds": duration(row.seconds) if row.seconds else "",
        "reason": row.reason,
    }
