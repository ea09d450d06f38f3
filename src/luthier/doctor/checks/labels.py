"""Labels: classes that are far apart in size, and one text with two labels or one question with two answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from luthier.doctor.base import Finding, SeenRow, shorten

IMBALANCE = 10
FEWEST = 5


class Labels:
    """Count the classes of labelled rows, and look for texts that contradict each other."""

    title = "labels"

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._known: dict[int, tuple[str, str]] = {}

    def look(self, row: SeenRow) -> Iterator[Finding]:
        if not row.label:
            return
        self.counts[row.label] += 1
        key = hash(" ".join(row.prompt.split()).lower())
        label, source = self._known.setdefault(key, (row.label, row.source))
        if label != row.label:
            what = f"The same text has the label “{row.label}” here and “{label}” at {source}: “{shorten(row.prompt)}”."
            yield row.found("label_conflict", what, "decide which is right, and leave the other out")

    def conclude(self) -> Iterator[Finding]:
        if len(self.counts) < 2:
            return
        (most, many), (least, few) = self.counts.most_common()[0], self.counts.most_common()[-1]
        if many >= IMBALANCE * few or few < FEWEST:
            what = f"The classes are far apart in size: {many:,} rows of “{most}”, {few:,} of “{least}”."
            remedy = "collect more of the rare one, or set objective.class_weights: balanced"
            yield Finding("label_imbalance", "warning", "", 0, what, remedy)
