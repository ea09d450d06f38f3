"""Look at every row of a data set once, in bounded memory, with every check, and say what was found."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from luthier.core.errors import DataError, Problem
from luthier.data import formats, preferences, sources
from luthier.data.convert import convert
from luthier.data.problems import ProblemLog
from luthier.data.readers import Row
from luthier.data.records import Record
from luthier.data.spec import DataSpec, resolve_path
from luthier.doctor.base import Finding, SeenRow, place, seen
from luthier.doctor.checks import all_checks
from luthier.doctor.checks.duplicates import Leaks
from luthier.doctor.checks.languages import Languages
from luthier.doctor.checks.lengths import Lengths

Form = Literal["sft", "lm", "classify", "preference", "rated", "prompt"]
MOST_OF_A_KIND = 10_000
"""Findings of one kind that are kept with their places; more are counted."""
LOOK_AHEAD = 100
_KINDS = (
    ("empty", "empty_answer"),
    ("missing", "empty_answer"),
    ("role", "roles"),
    ("message", "roles"),
    ("conversation", "roles"),
    ("label", "label"),
)


@dataclass
class Diagnosis:
    """What the doctor found.

    Attributes:
        rows: how many were looked at, those that could not be read included.
        findings: in the order of the rows, those of the whole last.
        counts: how many of each kind, also those beyond what is kept.
        tokens: estimated tokens of each row.
        scripts: rows by script.
        looked_for: what the checks look for, in words.
    """

    rows: int = 0
    format: str = ""
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    tokens: Sequence[int] = ()
    scripts: Counter[str] = field(default_factory=Counter)
    looked_for: list[str] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        self.counts[finding.kind] += 1
        if self.counts[finding.kind] <= MOST_OF_A_KIND:
            self.findings.append(finding)

    def as_dict(self) -> dict[str, object]:
        return {
            "rows": self.rows,
            "format": self.format,
            "counts": dict(self.counts.most_common()),
            "findings": [finding.as_dict() for finding in self.findings],
        }


def examine(
    spec: DataSpec,
    evaluation: DataSpec | None = None,
    form: Form | None = None,
    max_length: int | None = None,
    base: Path | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Diagnosis:
    """Look at all rows of `spec`, and for leaks also at those of `evaluation`.

    Args:
        form: what the rows are for; without it, what their columns say.
        max_length: the longest row in tokens, where it is known.
        progress: told the number of rows every thousand.

    Raises:
        DataError: there is no such file.
    """
    checks = all_checks(max_length)
    leaks = Leaks() if evaluation is not None else None
    found = Diagnosis(looked_for=[check.title for check in checks])
    for row in _rows(spec, form, base, found):
        for check in checks:
            for finding in check.look(row):
                found.add(finding)
        if leaks is not None:
            leaks.learn(row)
        if row.number % 1000 == 0:
            progress(row.number)
    for check in checks:
        for finding in check.conclude():
            found.add(finding)
        if isinstance(check, Lengths):
            found.tokens = check.tokens
        if isinstance(check, Languages):
            found.scripts = check.counts
    if leaks is not None and evaluation is not None:
        aside = Diagnosis()
        for row in _rows(evaluation, form, base, aside):
            for finding in leaks.compare(row):
                found.add(finding)
        found.looked_for.append(leaks.title)
    found.findings.sort(key=lambda f: (f.line == 0, f.file, f.line))
    return found


def _rows(spec: DataSpec, form: Form | None, base: Path | None, found: Diagnosis) -> Iterator[SeenRow]:
    """Yield the rows that can be read, and note those that cannot."""
    source = sources.find(resolve_path(spec.path, base))
    log = _Log(found)
    options = sources.ReadOptions(header=not any(isinstance(c, int) for c in spec.columns.values()), split=spec.split)
    for name, rows in sources.read_source(source, log, sources.Notes(), options):
        head = list(itertools.islice(rows, LOOK_AHEAD))
        if not head:
            continue
        reader, found.format = _reader(head, spec, form, name)
        for row in itertools.chain(head, rows):
            if spec.limit is not None and found.rows >= spec.limit:
                return
            number = found.rows
            found.rows += 1
            log.number = number
            record = reader(row, log)
            if record is not None:
                yield seen(number, record)


class _Log(ProblemLog):
    """Turns what is wrong with reading a row into findings."""

    def __init__(self, found: Diagnosis) -> None:
        super().__init__()
        self.found = found
        self.number = -1

    def add(self, kind: str, what: str, where: str, remedy: str) -> None:
        file, line = place(where)
        word = next((name for sign, name in _KINDS if sign in kind), "unreadable")
        if re.search(r"assistant message without text|is empty", what):
            word = "empty_answer"
        self.found.add(Finding(word, "error", file, line, what, remedy, self.number, removes=True))

    def warn(self, kind: str, what: str, where: str, remedy: str = "") -> None:
        if kind in ("same answers", "empty answer", "empty text", "empty user message"):
            file, line = place(where)
            self.found.add(Finding(kind.replace(" ", "_"), "warning", file, line, what, remedy, self.number, True))


def _reader(
    head: Sequence[Row], spec: DataSpec, form: Form | None, name: str
) -> tuple[Callable[[Row, ProblemLog], Record | None], str]:
    """Return how to read rows like these: as the objective wants them, or as their columns say.

    Raises:
        DataError: they fit no known format.
    """
    errors: list[Problem] = []
    forms: tuple[Form, ...] = (form,) if form is not None else ("preference", "rated", "sft", "classify", "prompt")
    for wanted in forms:
        try:
            if wanted in ("preference", "rated", "prompt"):
                judged = preferences.recognise(head, spec.columns, wanted, name)
                return partial(_judged, judged, wanted), judged.name
            shape = formats.recognise(head, spec.columns, spec.format, name, labelled=wanted == "classify")
            return partial(_plain, shape), shape.name
        except DataError as error:
            errors += error.problems
    raise DataError(*(errors[2:3] or errors[:1]))


def _judged(shape: formats.Format, wanted: preferences.JudgedForm, row: Row, log: ProblemLog) -> Record | None:
    return next(iter(preferences.convert(row, shape, wanted, log)), None)


def _plain(shape: formats.Format, row: Row, log: ProblemLog) -> Record | None:
    return convert(row, shape, log, needs_answer=shape.name != "text")
