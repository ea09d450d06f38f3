"""From the recipe's `data` to records: every row is read, recognised, checked and counted before a model is loaded."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from luthier.core.errors import DataError, Problem
from luthier.data import formats, preferences, sources
from luthier.data.convert import convert
from luthier.data.problems import ProblemLog
from luthier.data.readers import Row
from luthier.data.records import Record, Text
from luthier.data.spec import DataSpec, resolve_path
from luthier.data.spool import Spool, on_disk
from luthier.data.turns import shown
from luthier.data.views import Part, joined

Item = TypeVar("Item")
Objective = Literal["sft", "lm", "classify", "regress", "preference", "rated", "prompt"]
"""What the rows are for; the last three are judged answers, and prompts alone."""
LOOK_AHEAD = 100
_LABELLED: dict[str, Literal["classes", "numbers"]] = {"classify": "classes", "regress": "numbers"}
_JUDGED = ("auto", "preference", "rated", "prompt")


@dataclass(frozen=True)
class Records:
    """The rows of one `data`, ready to be rendered.

    Attributes:
        format: how the rows were recognised; several names when the files differ.
        why: one sentence for the screen that says by which columns.
        problems: warnings; errors are raised.
        files: what was read.
        counts: rows, and what was accepted or left unused.
        numbers: of each place in the files the number that was asked for.
    """

    records: Sequence[Record]
    format: str
    why: str
    problems: tuple[Problem, ...]
    files: tuple[Path, ...]
    counts: dict[str, int | list[str]]
    numbers: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)


@dataclass
class _Reading:
    """What is gathered while the files are read."""

    log: ProblemLog = field(default_factory=ProblemLog)
    notes: sources.Notes = field(default_factory=sources.Notes)
    records: Spool = field(default_factory=Spool)
    formats: dict[str, str] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)
    numbers: dict[str, float] = field(default_factory=dict)


def load_records(
    spec: DataSpec, base: Path | None = None, objective: Objective = "sft", number: str | None = None
) -> Records:
    """Read and check all rows.

    Args:
        number: a column that has to hold a number in every row, besides what the format asks for.

    Raises:
        DataError: with everything that is wrong (20 problems shown, all counted).
        MissingExtra: Parquet or a saved `datasets` folder without the library.
    """
    source = sources.find(resolve_path(spec.path, base))
    reading = _Reading()
    options = sources.ReadOptions(header=not any(isinstance(c, int) for c in spec.columns.values()), split=spec.split)
    for name, rows in sources.read_source(source, reading.log, reading.notes, options):
        if spec.limit is not None and len(reading.records) >= spec.limit:
            break
        _read_one(name, rows, spec, objective, reading, number)
    if not len(reading.records) and not reading.log.total:
        reading.log.add("no rows", "There are no rows.", spec.path, "give a file with at least one row")
    reading.log.raise_errors()
    return _records(reading, source, spec)


def _read_one(
    name: str, rows: Iterator[Row], spec: DataSpec, objective: Objective, reading: _Reading, number: str | None
) -> None:
    """Recognise one file by its first rows and convert all of them."""
    wanted = LOOK_AHEAD if spec.limit is None else min(LOOK_AHEAD, spec.limit - len(reading.records))
    head = list(itertools.islice(rows, wanted))
    if not head:
        return
    is_judged = objective in ("preference", "rated", "prompt")
    if (spec.format in ("preference", "rated", "prompt") and not is_judged) or (
        is_judged and spec.format not in _JUDGED
    ):
        what = f"Rows of the format {spec.format} are not what this objective reads."
        remedy = "leave format out, or use an objective for them: dpo, kto, reward, grpo …"
        reading.log.add("format", what, name, remedy)
        return
    try:
        if is_judged:
            form = preferences.recognise(head, spec.columns, objective, name)
        else:
            form = formats.recognise(head, spec.columns, spec.format, name, _LABELLED.get(objective))
    except DataError as error:
        for problem in error.problems:
            reading.log.add("format", problem.what, problem.where, problem.remedy)
        return
    if form.name == "text" and objective == "sft":
        what = "These rows are plain text: they have no answer to train on, which the objective sft needs."
        reading.log.add(
            "objective",
            what,
            name,
            "train on the whole text with objective=lm, or map two columns: columns: {prompt: …, answer: …}",
        )
        return
    if (form.name in ("labelled", "scored")) != (objective in _LABELLED):
        what = f"These rows are read as {form.name}, which the objective {objective} cannot use."
        reading.log.add("objective", what, name, "leave format out, or use objective: classify for labelled rows")
        return
    reading.formats.setdefault(form.name, form.why)
    used = {*form.columns.values(), *((number,) if number is not None else ())}
    for row in itertools.chain(head, rows):
        if objective != "prompt":  # a reward may read any column
            left = (column for column, value in row.value.items() if column not in used and value is not None)
            reading.unused.update(left)
        if number is not None:
            _note_number(row, number, reading)
        if is_judged:
            reading.records.extend(preferences.convert(row, form, objective, reading.log))
        else:
            record = convert(row, form, reading.log, needs_answer=objective == "sft")
            reading.records.extend(() if record is None else (record,))
        if spec.limit is not None and len(reading.records) >= spec.limit:
            return


def _note_number(row: Row, column: str, reading: _Reading) -> None:
    """Remember the number of a row, or log that there is none."""
    value = row.value.get(column)
    try:
        found = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]  # tables hold text
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        what = f'The curriculum goes by the column "{column}", which holds no number here: {shown(value)}.'
        reading.log.add("no number", what, row.source, "fill it in, or name another column: curriculum.column")
    reading.numbers[row.source] = found


def _records(reading: _Reading, source: sources.Source, spec: DataSpec) -> Records:
    counts: dict[str, int | list[str]] = {
        "rows": len(reading.records),
        "files": len(source.files) if source.dataset is None else 1,
        "unused_columns": [f"{column} ({n:,} rows)" for column, n in reading.unused.items()],
        "unused_files": list(source.unused),
        "notes": reading.notes.lines,
    }
    why = "; ".join(reading.formats.values())
    if spec.format != "auto":
        why += f" (format: {spec.format} was given)"
    return Records(
        reading.records.done(),
        ", ".join(reading.formats),
        why,
        tuple(reading.log.all_warnings()),
        source.files,
        counts,
        reading.numbers,
    )


def merged(parts: Sequence[Records]) -> Records:
    """Return several sets as one."""
    if len(parts) == 1:
        return parts[0]
    counts: dict[str, int | list[str]] = {}
    for key in dict.fromkeys(key for part in parts for key in part.counts):
        values = [part.counts[key] for part in parts if key in part.counts]
        numbers = [value for value in values if isinstance(value, int)]
        said = [line for value in values if isinstance(value, list) for line in value]
        counts[key] = sum(numbers) if numbers else said
    return Records(
        joined([part.records for part in parts]),
        ", ".join(dict.fromkeys(part.format for part in parts)),
        "; ".join(dict.fromkeys(part.why for part in parts)),
        tuple(problem for part in parts for problem in part.problems),
        tuple(file for part in parts for file in part.files),
        counts,
    )


def has_documents(records: Sequence[Record]) -> bool:
    """Say whether any record is plain text."""
    return any(isinstance(record, Text) for record in records)


def split(records: Sequence[Item], fraction: float, seed: int) -> tuple[Sequence[Item], Sequence[Item]]:
    """Return (train, held out): disjoint, together everything, in the original order.

    Held out are `round(fraction · n)` records, at least one when the fraction is above 0, and never all.

    Raises:
        DataError: there are too few records to split.
    """
    if fraction <= 0:
        return records, []
    if len(records) < 2:
        what = "A single row cannot be split into training and evaluation."
        remedy = (
            "give more rows or eval_data; in a .txt file, a line <|endoftext|> between documents makes rows of them"
        )
        raise DataError(Problem(what, "eval_fraction", remedy))
    count = min(max(1, round(fraction * len(records))), len(records) - 1)
    if not on_disk(records):
        held = set(random.Random(f"split {seed}").sample(range(len(records)), count))
        train = [record for i, record in enumerate(records) if i not in held]
        return train, [record for i, record in enumerate(records) if i in held]
    is_held = np.zeros(len(records), dtype=bool)
    is_held[random.Random(f"split {seed}").sample(range(len(records)), count)] = True
    return Part(records, np.flatnonzero(~is_held)), Part(records, np.flatnonzero(is_held))


def fingerprint(files: Sequence[Path]) -> dict[str, object]:
    """Return the sha256 of each file's content and one over all of them; names do not change it."""
    each, whole = [], hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(bytes.fromhex(digest))
        each.append({"name": path.name, "bytes": path.stat().st_size, "sha256": digest})
    return {"sha256": whole.hexdigest(), "files": each}
