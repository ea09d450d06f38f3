"""Labels: classes that are far apart in size, misspelt ones, and one text that is judged in two ways."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterator

from luthier.doctor.base import Finding, SeenRow, place, shorten

IMBALANCE = 10
FEWEST = 5
STRAY = 0.005
MOST_CLASSES = 1000
"""More different labels than these are no classes."""


class Labels:
    """Count the classes of labelled rows, and look for rows that contradict each other."""

    title = "labels"

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._known: dict[bytes, tuple[int, str]] = {}
        self._first: dict[str, SeenRow] = {}
        self._names: dict[str, int] = {}

    def look(self, row: SeenRow) -> Iterator[Finding]:
        if row.other:
            yield from self._turned(row)
        if not row.label or len(self.counts) > MOST_CLASSES:
            return
        self.counts[row.label] += 1
        self._first.setdefault(row.label, row)
        name = self._names.setdefault(row.label, len(self._names))
        known, source = self._known.setdefault(_key(row.prompt, row.answer), (name, row.source))
        if known != name:
            before = next(label for label, number in self._names.items() if number == known)
            text = shorten(row.prompt or row.answer)
            what = f"The same text has the label “{row.label}” here and “{before}” at {source}: “{text}”."
            yield row.found("label_conflict", what, "decide which is right, and leave the other out")

    def _turned(self, row: SeenRow) -> Iterator[Finding]:
        """Yield a pair of answers that stands elsewhere the other way round."""
        self._known.setdefault(_key(row.prompt, row.answer, row.other), (0, row.source))
        turned = self._known.get(_key(row.prompt, row.other, row.answer))
        if turned is not None and row.answer != row.other:
            what = f"At {turned[1]} the same two answers are judged the other way round."
            yield row.found("label_conflict", what, "decide which is right, and leave the other out")

    def conclude(self) -> Iterator[Finding]:
        if len(self.counts) < 2 or len(self.counts) > MOST_CLASSES:
            return
        ranked, total = self.counts.most_common(), self.counts.total()
        stray = {label for label, count in ranked if count <= max(2, STRAY * total) and count < 0.1 * ranked[0][1]}
        usual = [label for label, _ in ranked if label not in stray]
        for label in sorted(stray):
            near = difflib.get_close_matches(label.strip().lower(), [u.lower() for u in usual], 1, 0.75)
            if near or (2 <= len(usual) <= 20 and self.counts[label] <= 2 and total >= 100):
                row = self._first[label]
                meant = next((u for u in usual if near and u.lower() == near[0]), "")
                times = "once" if self.counts[label] == 1 else f"{self.counts[label]:,} times"
                what = f"The label “{shorten(label, 30)}” comes {times} in {total:,} rows."
                what += f" Is “{meant}” meant?" if meant else ""
                yield row.found("label", what, "write the label as the others do, or leave the row out")
        if len(usual) > 1:
            ranked = [(label, count) for label, count in ranked if label not in stray]
        (most, many), (least, few) = ranked[0], ranked[-1]
        if many >= IMBALANCE * few or few < FEWEST:
            what = f"The classes are far apart in size: {many:,} rows of “{most}”, {few:,} of “{least}”."
            remedy = "collect more of the rare one, or set objective.class_weights: balanced"
            yield Finding("label_imbalance", "warning", *place(""), what, remedy)


def _key(*texts: str) -> bytes:
    said = "\0".join(" ".join(text.split()) for text in texts).lower()
    return hashlib.blake2b(said.encode("utf-8", "replace"), digest_size=10).digest()
