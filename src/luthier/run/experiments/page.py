"""The page of a comparison: one file that opens anywhere, without a network, made from the table alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from luthier import __version__
from luthier.core.rundir import write_atomic
from luthier.run.experiments.cell import Cell
from luthier.run.experiments.ranking import COSTS, front, mean_of
from luthier.run.experiments.scatter import Point, Scatter, scatter
from luthier.run.experiments.table import Table, change_text
from luthier.run.numbers import Text, byte_size, duration, percent

_TITLES: Mapping[str, tuple[str, Text]] = {
    "memory": ("peak memory", byte_size),
    "seconds": ("training time", duration),
    "share": ("trained share of the parameters", percent),
}


@dataclass(frozen=True)
class RowView:
    """What the page shows of one cell."""

    number: int
    cell: Cell
    quality: str
    retained: str
    costs: tuple[str, str, str]
    verdict: str
    kind: str
    fronts: str
    values: tuple[tuple[str, str], ...]


def write_page(table: Table, out: Path) -> Path:
    """Write comparison.html into a folder; writing it again gives the same bytes."""
    page = templates().get_template("comparison.html").render(
        title=table.plan.title,
        table=table,
        version=__version__,
        rows=[_row_view(table, row, number) for number, row in enumerate(table.rows, 1)],
        plots=[plot for plot in _plots(table) if plot],
        header=table.header(),
        cells=[table.cells(row) for row in table.rows],
        remarks=table.remarks(),
        budget=table.plan.budget.text if table.plan.budget else "",
        runs=sum(len(row.runs) for row in table.rows),
        wanted=sum(row.seeds for row in table.rows if not row.refused),
    )  # fmt: skip
    write_atomic(out / "comparison.html", page)
    return out / "comparison.html"


def templates() -> Environment:
    """Return the pages of this folder."""
    return Environment(
        loader=PackageLoader("luthier.run.experiments", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _row_view(table: Table, row: Cell, number: int) -> RowView:
    standing = table.standings.get(row.name)
    verdict = table.cells(row)[-1] if standing is not None else ""
    fronts = [cost for cost, names in table.fronts.items() if row.name in names]
    kind = {"best": "better", "worse": "worse"}.get(standing.verdict if standing else "", "")
    measured = row.measures
    seeds = []
    for run in row.runs:
        texts = [
            f"{name} {run.measures[name].text(run.measures[name].after)}"
            for name in table.measures
            if name in run.measures
        ]
        seeds.append((f"seed {run.seed}", ", ".join(texts)))
    return RowView(
        number,
        row,
        change_text(measured.get(table.quality)) if table.quality else "",
        change_text(measured.get(table.retained)) if table.retained else "",
        (
            percent(row.share) if row.share is not None else "",
            byte_size(row.peak_bytes) if row.peak_bytes else "",
            duration(row.seconds.mean) if row.seconds is not None else "",
        ),
        verdict,
        kind,
        ", ".join(fronts),
        tuple(seeds) if len(seeds) > 1 else (),
    )


def _plots(table: Table) -> list[Markup]:
    """Return quality against each cost, and against what was retained."""
    if not table.quality:
        return []
    plots = [_against_cost(table, cost) for cost in COSTS]
    if table.retained and table.retained != table.quality:
        plots.insert(0, _against_retained(table))
    return plots


def _against_cost(table: Table, cost: str) -> Markup:
    price = COSTS[cost]
    xs = {row.name: value for row in table.rows if row.runs and (value := price(row)) is not None}
    title, text = _TITLES[cost]
    unit = 1024.0 ** max(0, math.floor(math.log(max(xs.values(), default=1.0), 1024))) if cost == "memory" else 1.0
    return scatter(_scatter(table, f"{table.quality} against {title}", xs, text, table.fronts[cost], unit))


def _against_retained(table: Table) -> Markup:
    xs = {row.name: value for row in table.rows if (value := mean_of(row, table.retained)) is not None}
    like = next((row.measures[table.retained].like for row in table.rows if table.retained in row.measures), None)
    if like is None:
        return Markup("")
    sign = -1 if like.higher_is_better else 1
    kept = front(table.rows, table.quality, lambda cell: None if cell.name not in xs else sign * xs[cell.name])
    plot = _scatter(table, f"{table.quality} against {table.retained}", xs, like.text, kept)
    return scatter(replace(plot, more_is_better=like.higher_is_better, unit=f"across: {like.direction}"))


def _scatter(
    table: Table, title: str, xs: Mapping[str, float], text: Text, kept: list[str], tick_unit: float = 1.0
) -> Scatter:
    points = []
    like = next(row.measures[table.quality].like for row in table.rows if table.quality in row.measures)
    for number, row in enumerate(table.rows, 1):
        y = mean_of(row, table.quality)
        if y is None or row.name not in xs:
            continue
        after = row.measures[table.quality].after
        low, high = after.interval if after is not None and after.interval is not None else (y, y)
        points.append(Point(row.name, xs[row.name], y, low, high, row.name in kept, number))
    best = "up" if like.higher_is_better else "down"
    return Scatter(title, f"better is {best} and left", points, text, like.text, tick_unit=tick_unit)
