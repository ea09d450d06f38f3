"""Rows that stand twice, to the letter or nearly, within the data and between training and evaluation."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator

import numpy as np

from luthier.data.store import SourceTable
from luthier.doctor.base import Finding, SeenRow, place, shorten
from luthier.doctor.minhash import SignatureTable, Signer

ALIKE = 0.8
LEAK_WORDS = 13
LEAK_SHARE = 0.5
"""A row of the evaluation leaks when half of its runs of thirteen words stand in the training data, as GPT-3 had it."""


class Duplicates:
    """Find exact duplicates by their hash and near ones by MinHash."""

    title = "duplicates"

    def __init__(self) -> None:
        self._signer = Signer()
        self._table = SignatureTable()
        self._exact: dict[bytes, int] = {}
        self._sources = SourceTable()
        self._is_copy: set[int] = set()
        self._numbers = array("q")

    def look(self, row: SeenRow) -> Iterator[Finding]:
        self._sources.add(row.source)
        self._numbers.append(row.number)
        here = len(self._numbers) - 1
        said = f"{' '.join(row.prompt.split())}\0{' '.join(row.answer.split())}\0{row.label}".lower()
        digest = hashlib.blake2b(said.encode(), digest_size=12).digest()
        earlier = self._exact.setdefault(digest, here)
        if earlier != here:
            self._is_copy.add(here)
            what = f"The row stands already at {self._sources[earlier]}: “{shorten(row.prompt or row.answer)}”."
            yield row.found("duplicate", what, "leave it out", removes=True)
            return
        signature = self._signer.sign(row.text)
        if signature is not None:
            self._table.add(here, signature)

    def conclude(self) -> Iterator[Finding]:
        for here, earlier, score in self._table.alike(ALIKE):
            file, line = place(self._sources[here])
            what = f"About {score:.0%} of the row stands also at {self._sources[earlier]}."
            remedy = "leave one of them out"
            yield Finding("near_duplicate", "warning", file, line, what, remedy, self._numbers[here], removes=True)


class Leaks:
    """Find rows of the evaluation that stand in the training data. Training rows first, then `compare`."""

    title = "leaks between training and evaluation"

    def __init__(self) -> None:
        self._signer = Signer()
        self._runs: list[np.ndarray] = []
        self._known: np.ndarray | None = None
        self._exact: dict[bytes, str] = {}

    def learn(self, row: SeenRow) -> None:
        """Remember a row that is trained on."""
        self._exact.setdefault(_digest(row), row.source)
        runs = self._signer.shingles(row.text, LEAK_WORDS)
        if runs is not None:
            self._runs.append(runs)

    def compare(self, row: SeenRow) -> Iterator[Finding]:
        """Yield whether a row of the evaluation is among them."""
        if self._known is None:
            self._known = np.unique(np.concatenate(self._runs)) if self._runs else np.zeros(0, np.uint64)
            self._runs.clear()
        source = self._exact.get(_digest(row))
        if source is not None:
            what = f"The row is trained on too, at {source}: “{shorten(row.prompt or row.answer)}”."
            yield row.found("leak", what, "leave it out of one of the two", "error")
            return
        runs = self._signer.shingles(row.text, LEAK_WORDS)
        if runs is None or not len(self._known):
            return
        places = np.minimum(np.searchsorted(self._known, runs), len(self._known) - 1)
        share = float((self._known[places] == runs).mean())
        if share >= LEAK_SHARE:
            what = f"{share:.0%} of the row's runs of {LEAK_WORDS} words stand in the training data."
            yield row.found("leak", what, "leave it out of one of the two")


def _digest(row: SeenRow) -> bytes:
    said = f"{' '.join(row.prompt.split())}\0{' '.join(row.answer.split())}".lower()
    return hashlib.blake2b(said.encode(), digest_size=12).digest()
