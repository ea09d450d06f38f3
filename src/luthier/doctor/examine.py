"""Look at every row of a data set once, in bounded memory, with every check, and say what was found."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
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
from luthier.doctor.base import Check, Finding, SeenRow, place, seen
from luthier.doctor.checks import all_checks
from luthier.doctor.checks.duplicates import Duplicates, Leaks
from luthier.doctor.checks.languages import Languages
from luthier.doctor.checks.lengths import Lengths

Form = Literal["sft", "lm", "classify", "regress", "preference", "rated", "prompt"]
MOST_OF_A_KIND = 10_000
"""Findings of one kind that are kept with their places; more are counted."""
MANNER = 0.5
FEWEST_ROWS = 20
LOOK_AHEAD = 100
NO_ROW = -1
"""The number of what cannot be read as a row at all."""
_LABELLED: dict[str, Literal["classes", "numbers"]] = {"classify": "classes", "regress": "numbers"}
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
        scripts: rows by language, or by script where the language is not told.
        removals: number of each row that `--fix` leaves out, with the kind of finding; complete, unlike `findings`.
        copies: how often each text stands that stands more than once to the letter.
        near: how alike each near duplicate is to an earlier row.
        looked_for: what the checks look for, in words.
        notes: how the rows were looked at, where that has to be said.
        counted_by: the model whose tokenizer counted the tokens; empty for an estimate.
    """

    rows: int = 0
    format: str = ""
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    tokens: Sequence[int] = ()
    scripts: Counter[str] = field(default_factory=Counter)
    removals: dict[int, str] = field(default_factory=dict)
    copies: Sequence[int] = ()
    near: Sequence[float] = ()
    looked_for: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counted_by: str = ""

    _alike: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, finding: Finding) -> None:
        self.counts[finding.kind] += 1
        if finding.row >= 0 and not finding.removes:
            self._alike[finding.kind, finding.remedy] += 1
        if finding.removes and finding.row >= 0:
            self.removals.setdefault(finding.row, finding.kind)
        if self.counts[finding.kind] <= MOST_OF_A_KIND:
            self.findings.append(finding)

    def gather(self) -> None:
        """Put the findings in order, and make one of those that most rows have: they are the manner of the data."""
        for (kind, remedy), count in self._alike.items():
            if self.rows < FEWEST_ROWS or count <= MANNER * self.rows:
                continue
            first = next(f for f in self.findings if (f.kind, f.remedy) == (kind, remedy) and f.row >= 0)
            self.findings = [f for f in self.findings if (f.kind, f.remedy) != (kind, remedy) or f.row < 0]
            what = f"{count:,} of {self.rows:,} rows are like {first.file}:{first.line}: {first.message}"
            self.findings.append(Finding(kind, first.severity, first.file, 0, what, remedy))
            self.counts[kind] += 1 - count
        self.findings.sort(key=lambda f: (f.line == 0, f.file, f.line))

    def as_dict(self) -> dict[str, object]:
        return {
            "rows": self.rows,
            "format": self.format,
            "counts": dict(self.counts.most_common()),
            "notes": self.notes,
            "findings": [finding.as_dict() for finding in self.findings],
        }


def examine(
    spec: DataSpec,
    evaluation: DataSpec | None = None,
    form: Form | None = None,
    checks: Sequence[Check] | None = None,
    base: Path | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Diagnosis:
    """Look at all rows of `spec`, and for leaks also at those of `evaluation`.

    Args:
        form: what the rows are for; without it, what their columns say.
        checks: what to look for; without them, everything that needs no model.
        progress: told the number of rows every thousand.

    Raises:
        DataError: there is no such file.
    """
    checks = all_checks() if checks is None else checks
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
    _read_again(checks, spec, form, base)
    for check in checks:
        for finding in check.conclude():
            found.add(finding)
        if isinstance(check, Lengths):
            found.tokens = check.tokens
        if isinstance(check, Languages):
            found.scripts = check.counts
        if isinstance(check, Duplicates):
            found.copies, found.near = check.copies, check.near
    if leaks is not None and evaluation is not None:
        aside = Diagnosis()
        for row in _rows(evaluation, form, base, aside):
            for finding in leaks.compare(row):
                found.add(finding)
        found.looked_for.append(leaks.title)
    found.gather()
    return found


def _read_again(checks: Sequence[Check], spec: DataSpec, form: Form | None, base: Path | None) -> None:
    """Show the rows that may be duplicates once more."""
    for check in checks:
        if isinstance(check, Duplicates):
            suspects = check.suspects()
            for row in _rows(spec, form, base, Diagnosis(), suspects) if suspects else ():
                check.recall(row)


def _rows(
    spec: DataSpec, form: Form | None, base: Path | None, found: Diagnosis, wanted: Container[int] | None = None
) -> Iterator[SeenRow]:
    """Yield the rows that can be read, or those `wanted` of them by number, and note those that cannot."""
    yield from (seen(number, record) for number, _, record in records_of(spec, form, base, found, wanted))


def records_of(
    spec: DataSpec, form: Form | None, base: Path | None, found: Diagnosis, wanted: Container[int] | None = None
) -> Iterator[tuple[int, Row, Record]]:
    """Yield number, row as it stands, and record of the rows that can be read."""
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
            if wanted is not None and number not in wanted:
                continue
            log.number = number
            record = reader(row, log)
            log.number = NO_ROW
            if record is not None:
                yield number, row, record


class _Log(ProblemLog):
    """Turns what is wrong with reading a row into findings."""

    def __init__(self, found: Diagnosis) -> None:
        super().__init__()
        self.found = found
        self.number = NO_ROW

    def add(self, kind: str, what: str, where: str, remedy: str) -> None:
        file, line = place(where)
        word = next((name for sign, name in _KINDS if sign in kind), "unreadable")
        if word != "label" and re.search(r"assistant message without text|is empty", what):
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
            shape = formats.recognise(head, spec.columns, spec.format, name, _LABELLED.get(wanted))
            return partial(_plain, shape), shape.name
        except DataError as error:
            errors += error.problems
    raise DataError(*(errors[2:3] or errors[:1]))


def _judged(shape: formats.Format, wanted: preferences.JudgedForm, row: Row, log: ProblemLog) -> Record | None:
    return next(iter(preferences.convert(row, shape, wanted, log)), None)


def _plain(shape: formats.Format, row: Row, log: ProblemLog) -> Record | None:
    return convert(row, shape, log, needs_answer=shape.name != "text")
