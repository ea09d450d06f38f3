"""A quick look at rows that are already read, before every check and every run: what costs next to nothing.

Whether rows stand twice, or in the held-out data too, is seen of all of them by a hash of 64 bits; what a row says is
looked at in rows that are spread evenly over the data. `luthier doctor` looks at every row.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from luthier.data.records import Asked, Conversation, Labelled, Preference, PromptAnswer, Rated, Record, Text
from luthier.doctor.base import Check, Finding, place, seen
from luthier.doctor.checks.answers import Answers
from luthier.doctor.checks.boilerplate import Boilerplate
from luthier.doctor.checks.encoding import Encoding
from luthier.doctor.checks.languages import Languages
from luthier.doctor.checks.personal import Personal
from luthier.doctor.checks.roles import Roles
from luthier.doctor.checks.toxic import Toxic
from luthier.doctor.examine import Diagnosis

FEWEST, MOST = 200, 1000
SHARE = 0.002
NAMED = 20
"""Copies and leaks that are named with their places; more are counted."""


def quick_look(records: Sequence[Record], held: Sequence[Record] = ()) -> Diagnosis:
    """Look for copies among all rows and leaks into the held-out ones, and at a sample for everything else."""
    checks: list[Check] = [Answers(), Boilerplate(), Encoding(), Languages(), Personal(), Roles(), Toxic()]
    found = Diagnosis(rows=len(records))
    sample = spread(len(records), min(max(FEWEST, int(SHARE * len(records))), MOST))
    for number in sample:
        row = seen(number, records[number])
        for check in checks:
            for finding in check.look(row):
                found.add(finding)
    for check in checks:
        for finding in check.conclude():
            if finding.row >= 0 and finding.kind != "missing_end":  # of the whole, a sample does not speak
                found.add(finding)
    for finding in _copies(records, held):
        found.add(finding)
    if len(sample) < len(records):
        found.notes.append(f"copies and leaks were looked for in all rows, everything else in {len(sample):,} of them")
    found.gather()
    return found


def spread(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` places among `count`, evenly spread."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, wanted))}) if count else []


def summary(found: Diagnosis) -> str:
    """Return the line for the screen: what was found, how often, or that nothing was."""
    kinds = [f"{count:,} {kind.replace('_', ' ')}" for kind, count in found.counts.most_common()]
    looked = f" ({'; '.join(found.notes)})" if found.notes else ""
    if not kinds:
        return f"nothing was found{looked}"
    return f"{', '.join(kinds[:5])}{' …' if len(kinds) > 5 else ''}{looked}; luthier doctor looks at every row"


def _copies(records: Sequence[Record], held: Sequence[Record]) -> Iterator[Finding]:
    """Yield rows that stand twice, and held-out rows that are trained on; the first with their places."""
    keys = _keys(records)
    order = np.argsort(keys, kind="stable")
    again = order[1:][keys[order[1:]] == keys[order[:-1]]]
    first = order[np.searchsorted(keys[order], keys[again])]
    for here, there in sorted(zip(again.tolist(), first.tolist())):
        yield _found("duplicate", records[here].source, f"The row stands already at {records[there].source}.", here)
    if len(held):
        ours = _keys(held)
        at = np.minimum(np.searchsorted(keys[order], ours), len(keys) - 1)
        for index in np.flatnonzero(keys[order][at] == ours).tolist():
            there = records[int(order[at[index]])].source
            yield _found("leak", held[index].source, f"The held-out row is trained on too, at {there}.", -1)


def _found(kind: str, source: str, what: str, row: int) -> Finding:
    return Finding(kind, "warning", *place(source), what, "leave it out: luthier doctor DATA --fix OUT", row)


def _keys(records: Sequence[Record]) -> np.ndarray:
    """Return a hash of what each row says, (N,) int64."""
    keys = array("q", (hash(_said(record)) for record in records))
    return np.frombuffer(keys, dtype=np.int64) if len(keys) else np.zeros(0, np.int64)


def _said(record: Record) -> tuple[object, ...]:
    if isinstance(record, PromptAnswer):
        return (record.prompt, record.context, record.answer, record.system, record.history)
    if isinstance(record, Conversation):
        return tuple((m.role, m.content) for m in record.messages)
    if isinstance(record, Text):
        return (record.text,)
    if isinstance(record, Labelled):
        return (record.text, record.pair, record.label)
    if isinstance(record, Preference):
        return (*_said(record.chosen), *_said(record.rejected))
    if isinstance(record, Rated):
        return (*_said(record.answer), record.is_good)
    assert isinstance(record, Asked)
    return _said(record.prompt)
