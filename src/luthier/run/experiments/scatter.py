"""Scatter plots for pages that open without a network: a point for each cell, its interval, and the Pareto front.

As in `run.plots`, the SVG holds shapes alone and stretches to its column; every word is HTML beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from luthier.run.numbers import Text, number, setting
from luthier.run.plots import Frame, log_ticks, nice_ticks

_LOG_FROM_RATIO = 8.0
_WIDTH, _HEIGHT = 1000.0, 400.0


@dataclass(frozen=True)
class Point:
    """One cell.

    Attributes:
        low, high: the interval of y; equal to y where there is none.
        is_front: no other point is better in y at the same x or a better one.
    """

    name: str
    x: float
    y: float
    low: float
    high: float
    is_front: bool = False
    number: int = 0


@dataclass(frozen=True)
class Scatter:
    """What a plot shows; of x less is better, or more. `tick_unit` is what ticks across are round multiples of."""

    title: str
    unit: str
    points: Sequence[Point]
    x_text: Text = number
    y_text: Text = number
    more_is_better: bool = False
    tick_unit: float = 1.0


def scatter(plot: Scatter) -> Markup:
    """Return a `<figure>`; an empty string where there is no point."""
    if not plot.points:
        return Markup("")
    across, up = _x_frame(plot), _y_frame(plot)
    places = {p.name: (float(across.up(p.x)) * _WIDTH, p) for p in plot.points}
    shapes = [_grid(up), _front(plot, across, up)]
    for x, point in places.values():
        low, high = ((1 - float(up.up(value))) * _HEIGHT for value in (point.low, point.high))
        if point.low != point.high:
            shapes.append(Markup('<path class="whisker" d="M{} {}V{}"/>').format(_short(x), _short(low), _short(high)))
    for x, point in sorted(places.values(), key=lambda pair: pair[1].is_front):
        height = (1 - float(up.up(point.y))) * _HEIGHT
        kind = "dot front" if point.is_front else "dot"
        shapes.append(Markup('<path class="{}" d="M{} {}h0"/>').format(kind, _short(x), _short(height)))
    labels = [
        Markup('<span class="{}" style="left:{}%;bottom:{}%" title="{}">{}</span>').format(
            "tag front" if point.is_front else "tag",
            _short(x / _WIDTH * 100),
            _short(float(up.up(point.y)) * 100),
            f"{point.name}: {plot.y_text(point.y)}, {plot.x_text(point.x)}",
            point.number,
        )
        for x, point in places.values()
    ]
    return _figure(plot, across, up, Markup("").join(shapes), Markup("").join(labels))


def _x_frame(plot: Scatter) -> Frame:
    """Return the frame whose height is the plot's width: the frames of curves are linear across."""
    values = [point.x for point in plot.points]
    low, high = min(values), max(values)
    if low > 0 and high / low > _LOG_FROM_RATIO:
        spread = (high / low) ** 0.08
        return Frame(0, 1, low / spread, high * spread, True)
    margin = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
    return Frame(0, 1, low - margin, high + margin, False)


def _y_frame(plot: Scatter) -> Frame:
    low, high = min(p.low for p in plot.points), max(p.high for p in plot.points)
    margin = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
    return Frame(0, 1, low - margin, high + margin, False)


def _grid(up: Frame) -> Markup:
    heights = (_short((1 - float(up.up(t))) * _HEIGHT) for t in nice_ticks(up.y0, up.y1))
    return Markup('<path class="grid" d="{}"/>').format("".join(f"M0 {h}H{_short(_WIDTH)}" for h in heights))


def _front(plot: Scatter, across: Frame, up: Frame) -> Markup:
    """Return the front as steps: what the best quality is up to each cost."""
    kept = sorted((p for p in plot.points if p.is_front), key=lambda p: p.x, reverse=plot.more_is_better)
    if len(kept) < 2:
        return Markup("")
    corners = [(float(across.up(p.x)) * _WIDTH, (1 - float(up.up(p.y))) * _HEIGHT) for p in kept]
    path = f"M{_short(corners[0][0])} {_short(corners[0][1])}"
    path += "".join(f"H{_short(x)}V{_short(y)}" for x, y in corners[1:])
    return Markup('<path class="pareto" d="{}"/>').format(path)


def _figure(plot: Scatter, across: Frame, up: Frame, shapes: Markup, labels: Markup) -> Markup:
    x_ticks = log_ticks(across.y0, across.y1, 5) if across.is_log else _linear_ticks(across, plot.tick_unit)
    y = Markup("").join(
        Markup('<span style="bottom:{}%">{}</span>').format(_short(float(up.up(t)) * 100), _tick(plot.y_text(t)))
        for t in nice_ticks(up.y0, up.y1)
    )
    x = Markup("").join(
        Markup('<span style="left:{}%">{}</span>').format(_short(float(across.up(t)) * 100), _tick(plot.x_text(t)))
        for t in x_ticks
    )
    said = "; ".join(f"{p.name} {plot.y_text(p.y)} at {plot.x_text(p.x)}" for p in plot.points)
    unit = plot.unit + (", log scale" if across.is_log else "")
    return Markup(
        '<figure class="chart"><figcaption><b>{}</b><span class="unit">{}</span></figcaption>'
        '<div class="plot" role="img" aria-label="{}"><div class="y">{}</div>'
        '<svg viewBox="0 0 {} {}" preserveAspectRatio="none" aria-hidden="true">{}</svg>{}<div class="x">{}</div></div>'
        "</figure>"
    ).format(
        plot.title, unit, f"{plot.title}. {said}", y, _short(_WIDTH), _short(_HEIGHT), shapes, labels, x
    )  # fmt: skip


def _linear_ticks(frame: Frame, unit: float) -> list[float]:
    return [t * unit for t in nice_ticks(frame.y0 / unit, frame.y1 / unit, 4) if t >= 0]


def _tick(text: str) -> str:
    """Take the zeros off a round number: `0.7000` is `0.7`, `60.0%` is `60%`."""
    head, space, unit = text.partition(" ")
    share = "%" if head.endswith("%") else ""
    head = head.removesuffix("%")
    return f"{head.rstrip('0').rstrip('.') if '.' in head and 'e' not in head else head}{share}{space}{unit}"


def _short(value: float) -> str:
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


@dataclass(frozen=True)
class Curve:
    """A line over a logarithmic axis: x (N,) above 0, y (N,)."""

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str = "line"


def curves(title: str, unit: str, lines: Sequence[Curve], marks: Sequence[tuple[float, str]], top: float) -> Markup:
    """Return a `<figure>` of lines over a logarithmic axis, cut off above `top`; `marks` are (x, name) of uprights."""
    xs = np.concatenate([line.x for line in lines])
    least = min(float(line.y.min()) for line in lines)
    across = Frame(0, 1, float(xs.min()), float(xs.max()), True)
    up = Frame(0, 1, least - 0.05 * (top - least), top, False)
    shapes = [_grid(up)]
    for line in lines:
        heights = np.clip((1 - up.up(line.y)) * _HEIGHT, -_HEIGHT, 2 * _HEIGHT)
        path = "L".join(f"{_short(float(x))} {_short(float(y))}" for x, y in zip(across.up(line.x) * _WIDTH, heights))
        shapes.append(Markup('<path class="{}" d="M{}"/>').format(line.style, path))
    labels = []
    for index, (x, name) in enumerate(marks):
        place = float(across.up(x))
        shapes.append(Markup('<path class="mark" d="M{} 0V{}"/>').format(_short(place * _WIDTH), _short(_HEIGHT)))
        tag = Markup('<span class="tag front" style="left:{}%;bottom:{}%">{} {}</span>')
        labels.append(tag.format(_short(place * 100), 94 - 7 * index, name, setting(float(f"{x:.2g}"))))
    y = Markup("").join(
        Markup('<span style="bottom:{}%">{}</span>').format(_short(float(up.up(t)) * 100), _tick(number(t)))
        for t in nice_ticks(up.y0, up.y1)
    )
    x = Markup("").join(
        Markup('<span style="left:{}%">{}</span>').format(_short(float(across.up(t)) * 100), setting(t))
        for t in log_ticks(across.y0, across.y1)
    )
    said = "; ".join(f"{name} at {setting(at)}" for at, name in marks)
    return Markup(
        '<figure class="chart whole"><figcaption><b>{}</b><span class="unit">{}</span></figcaption>'
        '<div class="plot" style="--tall:22rem" role="img" aria-label="{}"><div class="y">{}</div>'
        '<svg viewBox="0 0 {} {}" preserveAspectRatio="none" aria-hidden="true">{}</svg>{}<div class="x">{}</div></div>'
        "</figure>"
    ).format(
        title, unit, f"{title}. {said}", y, _short(_WIDTH), _short(_HEIGHT), Markup("").join(shapes),
        Markup("").join(labels), x,
    )  # fmt: skip
