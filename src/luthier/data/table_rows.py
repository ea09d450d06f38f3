"""Read CSV and TSV, with or without a header line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from luthier.data.problems import ProblemLog
from luthier.data.readers import MAX_LINE_BYTES, Row, whole_text


def read_table(path: Path, log: ProblemLog, header: bool, tabs: bool) -> Iterator[Row]:
    """Read CSV or TSV. Without a header line the columns are named "1", "2", …"""
    text = whole_text(path, log)
    if text is None:
        return
    records = _plain_tsv(text) if tabs else None
    lines = iter(records) if records is not None else _csv_records(text, "\t" if tabs else _delimiter(text))
    names: list[str] | None = None
    count = 0
    try:
        for line, cells in lines:
            if not any(cells):
                continue
            if names is None:
                names = _column_names(cells, path, log) if header else [str(i + 1) for i in range(len(cells))]
                if names is None:
                    return
                if header:
                    continue
            if len(cells) != len(names):
                what = f"The row has {len(cells)} cells, the {'header' if header else 'first row'} has {len(names)}."
                log.add(
                    "ragged row",
                    what,
                    f"{path}:{line}",
                    'put cells that contain the separator or a line break in "quotes"',
                )
                continue
            count += 1
            yield Row(dict(zip(names, cells)), f"{path}:{line}")
        if names is not None and header and not count and not log.total:
            what = f"The table has a header line and no rows: {_short_list(names)}."
            remedy = "add rows; if that line is data, give positions: columns: {prompt: 1, answer: 2}"
            log.add("no rows", what, f"{path}:1", remedy)
    except csv.Error as error:
        log.add("csv", f"Cannot read the table: {error}.", str(path), "save it as UTF-8 CSV with quoted cells")


def _column_names(cells: list[str], path: Path, log: ProblemLog) -> list[str] | None:
    names = [cell.strip() or f"column {i + 1}" for i, cell in enumerate(cells)]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        remedy = "name each column once; if there is no header line, give positions: columns: {prompt: 1, answer: 2}"
        log.add("header", f"The header names a column twice: {_short_list(twice)}.", f"{path}:1", remedy)
        return None
    return names


def _short_list(names: list[str]) -> str:
    return ", ".join(f'"{n[:40]}…"' if len(n) > 40 else f'"{n}"' for n in names)


def _delimiter(text: str) -> str:
    first = text.lstrip("\r\n").partition("\n")[0]
    return max((",", ";", "\t"), key=lambda d: (first.count(d), d == ","))


def _plain_tsv(text: str) -> list[tuple[int, list[str]]] | None:
    """Split at tabs when every line has the same number of them: quotation marks inside are then ordinary text."""
    lines = [(i + 1, line.rstrip("\r").split("\t")) for i, line in enumerate(text.split("\n")) if line.strip(" \r")]
    if len({len(cells) for _, cells in lines}) != 1:
        return None
    return [(i, [_unquote(c) for c in cells]) for i, cells in lines]


def _unquote(cell: str) -> str:
    if len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', ""):
        return cell[1:-1].replace('""', '"')
    return cell


def _csv_records(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        before = 0
        for cells in reader:
            yield before + 1, cells
            before = reader.line_num
    finally:
        csv.field_size_limit(limit)
