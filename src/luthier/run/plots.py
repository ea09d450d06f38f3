"""Plots for pages that open without a network: inline SVG for the curves, HTML for every word.

A plot stretches to its column, so the SVG holds only shapes (drawn with non-scaling strokes) and the labels are HTML
placed by percentages: the text keeps its size on a phone. The points are thinned to 600 a curve, keeping the
least and the greatest of each stretch, so a million steps weigh as much as a thousand and no spike is lost.

Shape legend: N measured points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from luthier.run.numbers import Text, count, number

_WIDTH, _HEIGHT = 1000.0, 400.0
_STRETCHES = 300
_LOG_FROM_RATIO = 40.0

Scale = Literal["auto", "linear", "log"]


@dataclass(frozen=True)
class Series:
    """One curve: x ascending (N,), y (N,). `style` is how it is drawn, `tone` its colour on the page."""

    name: str
    x: np.ndarray
    y: np.ndarray
    style: Literal["line", "faint", "dots"] = "line"
    tone: Literal["main", "second", "third"] = "main"

    def finite(self) -> Series:
        """Return the series without the points that are not finite numbers."""
        keep = np.isfinite(self.x) & np.isfinite(self.y)
        return Series(self.name, self.x[keep], self.y[keep], self.style, self.tone)


@dataclass(frozen=True)
class Chart:
    """What a plot shows. `marks` are (x, label) of vertical lines; `text` writes a value of the y axis, whose
    ticks are round multiples of `tick_unit`; `x_name` stands before a value of the x axis."""

    title: str
    series: tuple[Series, ...]
    unit: str = ""
    text: Text = number
    scale: Scale = "auto"
    from_zero: bool = False
    tick_unit: float = 1.0
    marks: tuple[tuple[float, str], ...] = ()
    x_name: str = "step"


@dataclass(frozen=True)
class Frame:
    """The part of the plane a plot shows, and the places of its points in it as shares of 0..1."""

    x0: float
    x1: float
    y0: float
    y1: float
    is_log: bool

    def across(self, x: np.ndarray | float) -> np.ndarray:
        return (np.asarray(x, dtype=np.float64) - self.x0) / (self.x1 - self.x0)

    def up(self, y: np.ndarray | float) -> np.ndarray:
        values = np.asarray(y, dtype=np.float64)
        if self.is_log:
            return (np.log10(values) - math.log10(self.y0)) / (math.log10(self.y1) - math.log10(self.y0))
        return (values - self.y0) / (self.y1 - self.y0)


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers inside [low, high]: steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    # Rounded to the step's own precision: 3 * 0.1 must read 0.3.
    return [round(k * step, 3 - math.floor(math.log10(step))) for k in range(first, last + 1)]


def log_ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Return 1, 2, 5 times powers of ten inside [low, high], only the powers where those would be too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**p for p in powers for m in mantissas if low <= m * 10.0**p <= high]
        if len(ticks) <= about:
            break
    stride = math.ceil(len(ticks) / about)
    return ticks[::stride] if len(ticks) >= 2 else nice_ticks(low, high, 4)


def smooth(y: np.ndarray, window: int) -> np.ndarray:
    """Return the moving mean of the moving mean, each centred over `window` points; at the ends over those there are.

    Twice, because a single one turns a spike into a plateau with sharp edges.
    """
    return _moving_mean(_moving_mean(y, window), window) if window > 1 and len(y) else y


def _moving_mean(y: np.ndarray, window: int) -> np.ndarray:
    sums = np.concatenate([[0.0], np.cumsum(y, dtype=np.float64)])
    index = np.arange(len(y))
    low = np.maximum(0, index - window // 2)
    high = np.minimum(len(y), index + window // 2 + 1)
    return (sums[high] - sums[low]) / (high - low)


def downsample(x: np.ndarray, y: np.ndarray, stretches: int = _STRETCHES) -> tuple[np.ndarray, np.ndarray]:
    """Return at most two points for each stretch of x, its least and its greatest, in their order."""
    if len(x) <= 2 * stretches:
        return x, y
    keep = {0, len(x) - 1}
    borders = np.linspace(0, len(x), stretches).astype(np.int64)
    for low, high in pairwise(borders):
        keep.add(int(low + np.argmin(y[low:high])))
        keep.add(int(low + np.argmax(y[low:high])))
    chosen = np.array(sorted(keep))
    return x[chosen], y[chosen]


def line_chart(chart: Chart) -> Markup:
    """Return a `<figure>` with the curves, or an empty string when no point is a finite number."""
    series = [s for s in (s.finite() for s in chart.series) if len(s.x)]
    if not series:
        return Markup("")
    thin = [Series(s.name, *downsample(s.x, s.y), s.style, s.tone) for s in series]
    frame = _frame(thin, chart)
    shapes = [
        _grid(frame, chart.tick_unit),
        *(_mark(frame, x, label) for x, label in chart.marks),
        *(_shape(frame, s) for s in thin),
    ]
    return _figure(chart, frame, thin, Markup("").join(shapes))


def histogram(title: str, edges: Sequence[float], counts: Sequence[float], unit: str = "") -> Markup:
    """Return a `<figure>` of bars; `edges` has one entry more than `counts`."""
    if not len(counts) or max(counts) <= 0:
        return Markup("")
    frame = Frame(float(edges[0]), float(edges[-1]), 0.0, max(counts) * 1.05, False)
    bars = []
    for (low, high), height in zip(pairwise(edges), counts):
        left, right = (float(frame.across(v)) * _WIDTH for v in (low, high))
        top = (1 - float(frame.up(height))) * _HEIGHT
        label = f"{number(low)} to {number(high)}: {height:,.0f}"
        bars.append(
            Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                _short(left), _short(top), _short(max(right - left - 1.5, 1)), _short(_HEIGHT - top), label
            )
        )
    chart = Chart(title, (), unit=unit, text=count, from_zero=True)
    return _figure(chart, frame, [], _grid(frame) + Markup("").join(bars))


def _frame(series: list[Series], chart: Chart) -> Frame:
    """Choose what is shown. Lone spikes of a raw curve may leave the frame; smoothed curves and dots never do."""
    x0, x1 = _room(min(float(s.x[0]) for s in series), max(float(s.x[-1]) for s in series))
    lows, highs = [], []
    for s in series:
        is_cut = s.style == "faint" and len(s.y) >= 50
        low, high = np.quantile(s.y, [0.004, 0.996]) if is_cut else (s.y.min(), s.y.max())
        lows.append(float(low))
        highs.append(float(high))
    low, high = min(lows), max(highs)
    is_log = chart.scale == "log" or (chart.scale == "auto" and low > 0 and high / low > _LOG_FROM_RATIO)
    if is_log and low > 0:
        spread = (high / low) ** 0.04
        return Frame(x0, x1, low / spread, high * max(spread, 1.01), True)
    margin = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    floor = 0.0 if chart.from_zero and low >= 0 else low - margin
    return Frame(x0, x1, floor, high + margin, False)


def _room(x0: float, x1: float) -> tuple[float, float]:
    """Widen a range a little, so that a dot at its end is not cut in half."""
    margin = max(x1 - x0, 1.0) * 0.012
    return x0 - margin, x1 + margin


def _y_ticks(frame: Frame, unit: float = 1.0) -> list[float]:
    if frame.is_log:
        return log_ticks(frame.y0, frame.y1)
    return [t * unit for t in nice_ticks(frame.y0 / unit, frame.y1 / unit)]


def _x_ticks(frame: Frame) -> list[float]:
    """Return whole numbers only: there is no step 1.5."""
    ticks = nice_ticks(frame.x0, frame.x1, 6)
    return [t for t in ticks if t.is_integer()] or [round((frame.x0 + frame.x1) / 2)]


def _grid(frame: Frame, unit: float = 1.0) -> Markup:
    heights = (_short((1 - float(frame.up(t))) * _HEIGHT) for t in _y_ticks(frame, unit))
    return Markup('<path class="grid" d="{}"/>').format("".join(f"M0 {h}H{_short(_WIDTH)}" for h in heights))


def _mark(frame: Frame, x: float, label: str) -> Markup:
    place = _short(float(frame.across(x)) * _WIDTH)
    return Markup('<path class="mark" d="M{} 0V{}"><title>{}</title></path>').format(place, _short(_HEIGHT), label)


def _shape(frame: Frame, series: Series) -> Markup:
    across = frame.across(series.x) * _WIDTH
    low = frame.y0 if frame.is_log else -np.inf
    # A spike outside the frame is drawn to just beyond its border, where the page cuts it.
    down = np.clip((1 - frame.up(np.maximum(series.y, low))) * _HEIGHT, -_HEIGHT, 2 * _HEIGHT)
    places = [f"{_short(x)} {_short(y)}" for x, y in zip(across, down)]
    # A line of no length with round caps is a dot that stays round however the drawing is stretched.
    path = "".join(f"M{p}h0" for p in places) if series.style == "dots" or len(places) == 1 else "M" + "L".join(places)
    style = "dots" if len(places) == 1 else series.style
    return Markup('<path class="{} {}" d="{}"/>').format(style, series.tone, path)


def _figure(chart: Chart, frame: Frame, series: list[Series], shapes: Markup) -> Markup:
    unit = ", ".join(part for part in (chart.unit, "log scale" if frame.is_log else "") if part)
    legend = [Markup('<span class="key {} {}">{}</span>').format(s.style, s.tone, s.name) for s in series]
    y_labels = [
        Markup('<span style="bottom:{}%">{}</span>').format(
            _short(float(frame.up(t)) * 100), _tick_text(chart, frame, t)
        )
        for t in _y_ticks(frame, chart.tick_unit)
    ]
    x_labels = [
        Markup('<span class="{}" style="left:{}%">{}</span>').format(
            "" if i % 2 == 0 else "odd", _short(float(frame.across(t)) * 100), _x_text(t)
        )
        for i, t in enumerate(_x_ticks(frame))
    ]
    none = Markup("")
    return Markup(
        '<figure class="chart" data-x="{x_name}"><figcaption><b>{title}</b><span class="unit">{unit}</span>'
        '<span class="legend">{legend}</span></figcaption>'
        '<div class="plot" role="img" aria-label="{label}"><div class="y">{y}</div>'
        '<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">{shapes}</svg>'
        '<div class="x">{x}</div></div><script type="application/json">{data}</script></figure>'
    ).format(
        data=_data(chart, frame, series),
        title=chart.title,
        x_name=chart.x_name,
        unit=unit,
        legend=none.join(legend) if len(series) > 1 else none,
        label=_describe(chart, series),
        y=none.join(y_labels),
        width=_short(_WIDTH),
        height=_short(_HEIGHT),
        shapes=shapes,
        x=none.join(x_labels),
    )


def _data(chart: Chart, frame: Frame, series: list[Series]) -> Markup:
    """Return what the page's script needs for its read-out, as JSON: the values are already written as text."""
    curves = [
        {
            "name": s.name,
            "tone": s.tone,
            "at": [float(_short(float(v))) for v in frame.across(s.x) * 100],
            "up": [float(_short(float(v))) for v in np.clip(frame.up(np.maximum(s.y, frame.y0)), 0, 1) * 100],
            "x": [int(v) if float(v).is_integer() else float(v) for v in s.x],
            "text": [chart.text(float(v)) for v in s.y],
        }
        for s in series
    ]
    return htmlsafe_json_dumps(curves, separators=(",", ":"))


def _describe(chart: Chart, series: list[Series]) -> str:
    """Return the plot in words, for those who do not see it."""
    at, text = chart.x_name, chart.text
    said = [
        f"{s.name}: {text(float(s.y[0]))} at {at} {_x_text(s.x[0])}, {text(float(s.y[-1]))} at {at} "
        f"{_x_text(s.x[-1])}, lowest {text(float(s.y.min()))}, highest {text(float(s.y.max()))}"
        for s in series
        if s.style != "faint" or len(series) == 1
    ]
    return f"{chart.title}. {'; '.join(said)}" if said else chart.title


def _tick_text(chart: Chart, frame: Frame, tick: float) -> str:
    if tick == 0:
        return "0"
    if chart.text is not number:
        return _bare(chart.text(tick))
    if abs(tick) >= 1e4 or abs(tick) < 1e-3:
        return _bare(number(tick, 2))
    if frame.is_log:
        return f"{tick:g}"
    ticks = _y_ticks(frame)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    decimals = next((d for d in range(6) if math.isclose(step * 10**d, round(step * 10**d), abs_tol=1e-9)), 3)
    return f"{tick:.{decimals}f}".replace("-", "−")


def _x_text(x: float) -> str:
    return _bare(count(float(x))) if abs(x) >= 1e5 else f"{x:,.0f}" if float(x).is_integer() else number(float(x), 3)


def _bare(text: str) -> str:
    """Take the zeros off a round number with a unit: `1.00 M` is `1 M`."""
    head, space, unit = text.partition(" ")
    return f"{head.rstrip('0').rstrip('.') if '.' in head else head}{space}{unit}"


def _short(value: float) -> str:
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text
