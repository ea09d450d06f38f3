"""Rows far longer than the others or than a model takes, and answers of next to nothing among long ones."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

from luthier.data.scripts import estimate_tokens
from luthier.data.store import SourceTable
from luthier.doctor.base import Finding, SeenRow, place

DEFAULT_TOKENS = 4096
FAR = 8.0


class Lengths:
    """Estimate tokens from characters; exact numbers come with a model, from `luthier check`."""

    title = "lengths"

    def __init__(self, max_length: int | None = None) -> None:
        self.max_length = max_length
        self.tokens = array("i")
        self._sources = SourceTable()

    def look(self, row: SeenRow) -> Iterator[Finding]:
        self.tokens.append(estimate_tokens(row.text))
        self._sources.add(row.source)
        return iter(())

    def conclude(self) -> Iterator[Finding]:
        lengths = np.frombuffer(self.tokens, dtype=np.int32) if self.tokens else np.zeros(0, np.int32)
        if len(lengths) < 20:
            return
        limit = self.max_length or DEFAULT_TOKENS
        logs = np.log(np.maximum(lengths, 1))
        middle, spread = np.median(logs), max(1.4826 * float(np.median(np.abs(logs - np.median(logs)))), 0.25)
        far = np.exp(middle + FAR * spread)
        for index in np.flatnonzero((lengths > limit) | (lengths > max(far, 512))):
            file, line = place(self._sources[int(index)])
            what = f"The row has about {lengths[index]:,} tokens; the median is {int(np.exp(middle)):,}."
            if lengths[index] > limit:
                what += f" Most models are trained with at most {limit:,}." if self.max_length is None else ""
            yield Finding("overlong", "warning", file, line, what, "shorten or split it", int(index))
