"""Rows that stand twice, to the letter or nearly, within the data and between training and evaluation.

MinHash names the rows that may be alike. They are read a second time and compared shingle by shingle, each weighed by
how few rows hold it: a long instruction that a hundred rows begin with makes no duplicates of them. Rows that differ in
most of their numbers are different questions.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterator

import numpy as np

from luthier.data.store import SourceTable
from luthier.doctor.base import Finding, SeenRow, place, shorten
from luthier.doctor.minhash import Commonness, SignatureTable, Signer, letter_shingles, word_shingles

MAY_BE_ALIKE = 0.5
ALIKE = 0.6
REMOVED = 0.85
"""From here on `--fix` leaves the later row out; less alike, it may be the same question on purpose asked anew."""
ALIKE_UNREAD = 0.85
"""What MinHash alone has to say of rows that are too many to be read again."""
SAME_BUT_NUMBERS = 0.97
MOST_READ_AGAIN = 100_000
LEAK_WORDS = 13
LEAK_SHARE = 0.5
"""A row of the evaluation leaks when half of its runs of thirteen words stand in the training data, as GPT-3 had it."""
_NUMBER = re.compile(r"\d+")


class Duplicates:
    """Find exact duplicates by their hash and near ones by MinHash."""

    title = "duplicates"

    def __init__(self) -> None:
        self._signer = Signer()
        self._table = SignatureTable()
        self._common = Commonness()
        self._exact: dict[bytes, int] = {}
        self._sources = SourceTable()
        self._numbers = array("q")
        self._index: dict[int, int] = {}
        self._pairs: list[tuple[int, int, float]] = []
        self._shingles: dict[int, np.ndarray] = {}
        self._figures: dict[int, frozenset[str]] = {}
        self.copies = array("i")
        """For each text that stands more than once to the letter: nothing but how often, for the plot."""
        self._times: dict[int, int] = {}
        self.near = array("f")
        """How alike each near duplicate is, for the plot."""

    def look(self, row: SeenRow) -> Iterator[Finding]:
        self._sources.add(row.source)
        self._numbers.append(row.number)
        here = len(self._numbers) - 1
        earlier = self._exact.setdefault(digest(row), here)
        if earlier != here:
            self._times[earlier] = self._times.get(earlier, 1) + 1
            what = f"The row stands already at {self._sources[earlier]}: “{shorten(row.prompt or row.answer)}”."
            yield row.found("duplicate", what, "leave it out", removes=True)
            return
        shingles = letter_shingles(_said(row))
        if shingles is not None:
            self._common.add(shingles)
            self._table.add(here, self._signer.sign(shingles))

    def suspects(self) -> set[int]:
        """Return the numbers of the rows that have to be read again, and be shown to `recall`."""
        self._exact.clear()
        self._pairs = list(self._table.alike(MAY_BE_ALIKE))
        self._table = SignatureTable()
        wanted: set[int] = set()
        for here, earlier, _ in self._pairs:
            if len(wanted) >= MOST_READ_AGAIN:
                break
            wanted |= {self._numbers[here], self._numbers[earlier]}
        return wanted

    def recall(self, row: SeenRow) -> None:
        """Remember what a suspect says."""
        said = _said(row)
        shingles = letter_shingles(said)
        if shingles is not None:
            self._shingles[row.number] = shingles
            self._figures[row.number] = frozenset(_NUMBER.findall(said))

    def conclude(self) -> Iterator[Finding]:
        for here, earlier, estimate in self._pairs:
            ours, theirs = self._numbers[here], self._numbers[earlier]
            alike = self._likeness(ours, theirs, estimate)
            if not alike:
                continue
            self.near.append(alike)
            file, line = place(self._sources[here])
            what = f"About {alike:.0%} of the row stands also at {self._sources[earlier]}."
            remedy = "leave one of them out"
            yield Finding("near_duplicate", "warning", file, line, what, remedy, ours, removes=alike >= REMOVED)
        self.copies.extend(self._times.values())

    def _likeness(self, ours: int, theirs: int, estimate: float) -> float:
        """Return how alike two rows are, or 0 where that is not enough."""
        a, b = self._shingles.get(ours), self._shingles.get(theirs)
        if a is None or b is None:
            return estimate if estimate >= ALIKE_UNREAD else 0.0
        alike = self._common.likeness(a, b)
        if alike < ALIKE:
            return 0.0
        figures = self._figures[ours], self._figures[theirs]
        shared, whole = len(figures[0] & figures[1]), len(figures[0] | figures[1])
        return 0.0 if whole and shared < 0.7 * whole and alike < SAME_BUT_NUMBERS else alike


class Leaks:
    """Find rows of the evaluation that stand in the training data. Training rows first, then `compare`."""

    title = "leaks between training and evaluation"

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []
        self._known: np.ndarray | None = None
        self._exact: dict[bytes, int] = {}
        self._asked: dict[bytes, int] = {}
        self._sources = SourceTable()
        self._count = 0

    def learn(self, row: SeenRow) -> None:
        """Remember a row that is trained on."""
        self._sources.add(row.source)
        self._exact.setdefault(digest(row), self._count)
        if row.answer and len(row.prompt) >= 20:
            self._asked.setdefault(_digest(row.prompt), self._count)
        self._count += 1
        runs = word_shingles(_said(row), LEAK_WORDS)
        if runs is not None:
            self._runs.append(runs)
        if len(self._runs) >= 50_000:
            self._runs = [np.unique(np.concatenate(self._runs))]

    def compare(self, row: SeenRow) -> Iterator[Finding]:
        """Yield whether a row of the evaluation is among them."""
        if self._known is None:
            self._known = np.unique(np.concatenate(self._runs)) if self._runs else np.zeros(0, np.uint64)
            self._runs.clear()
        remedy = "leave it out of one of the two"
        where = self._exact.get(digest(row))
        if where is not None:
            what = f"The row is trained on too, at {self._sources[where]}: “{shorten(row.prompt or row.answer)}”."
            yield row.found("leak", what, remedy, "error")
            return
        where = self._asked.get(_digest(row.prompt)) if row.answer and len(row.prompt) >= 20 else None
        if where is not None:
            what = f"The same question is trained on at {self._sources[where]}: “{shorten(row.prompt)}”."
            yield row.found("leak", what, remedy)
            return
        runs = word_shingles(_said(row), LEAK_WORDS)
        if runs is None or not len(self._known):
            return
        places = np.minimum(np.searchsorted(self._known, runs), len(self._known) - 1)
        share = float((self._known[places] == runs).mean())
        if share >= LEAK_SHARE:
            what = f"{share:.0%} of the row's runs of {LEAK_WORDS} words stand in the training data."
            yield row.found("leak", what, remedy)


def digest(row: SeenRow) -> bytes:
    """Return a hash of what a row says; capital letters and white space do not matter."""
    return _digest(row.prompt, row.answer, row.other, row.label)


def _digest(*texts: str) -> bytes:
    said = "\0".join(" ".join(text.split()) for text in texts).lower()
    return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _said(row: SeenRow) -> str:
    """Return what a row says besides its system message, which many rows share."""
    return "\n".join([*(m.content for m in row.turns if m.role != "system"), row.other])
