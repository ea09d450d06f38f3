"""Rows far longer than the others or than a model takes."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

from luthier.data.scripts import estimate_tokens
from luthier.data.store import SourceTable
from luthier.doctor.base import Finding, SeenRow, place

DEFAULT_TOKENS = 4096
FAR = 5.0
NEVER_FAR = 1024


class Lengths:
    """Estimate tokens from characters; with a model they are counted (`with_model.py`)."""

    title = "lengths"

    def __init__(self, max_length: int | None = None) -> None:
        self.max_length = max_length
        self.tokens = array("i")
        self._sources = SourceTable()
        self._numbers = array("q")

    def look(self, row: SeenRow) -> Iterator[Finding]:
        self.tokens.append(estimate_tokens(row.text))
        self._sources.add(row.source)
        self._numbers.append(row.number)
        return iter(())

    def conclude(self) -> Iterator[Finding]:
        lengths = np.frombuffer(self.tokens, dtype=np.int32) if self.tokens else np.zeros(0, np.int32)
        if not len(lengths):
            return
        limit = self.max_length or DEFAULT_TOKENS
        middle, far = outlying(lengths)
        for index in np.flatnonzero((lengths > limit) | (lengths > far)):
            file, line = place(self._sources[int(index)])
            what = f"The row has about {lengths[index]:,} tokens; the median is {middle:,}."
            if lengths[index] > limit:
                known = "Most models are trained with" if self.max_length is None else "There is room for"
                what += f" {known} at most {limit:,}."
            yield Finding("overlong", "warning", file, line, what, "shorten or split it", self._numbers[int(index)])


def outlying(lengths: np.ndarray) -> tuple[int, float]:
    """Return the median length and the length from which on a row is far from the others (robust, in logarithms)."""
    logs = np.log(np.maximum(lengths, 1))
    middle = float(np.median(logs))
    spread = max(1.4826 * float(np.median(np.abs(logs - middle))), 0.25)
    return round(np.exp(middle)), max(float(np.exp(middle + FAR * spread)), NEVER_FAR) if len(lengths) >= 20 else np.inf
