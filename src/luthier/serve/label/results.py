"""What all judgements come to: preferences by majority, and how far people agree.

Krippendorff's alpha (2004, Content Analysis, ch. 11) for nominal data: 1 − observed / expected disagreement, with any
number of people and pairs that not everybody judged. 1 is full agreement, 0 what chance would give.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.core.rundir import write_atomic
from luthier.serve.label.journal import Choice, Said
from luthier.serve.label.pairs import Pair


@dataclass(frozen=True)
class Tally:
    """The state of a labelling: pairs by what became of them, and agreement where several judged the same."""

    pairs: int
    judged: int
    written: int
    ties: int
    skipped: int
    shared: int
    agreement: float | None
    alpha: float | None
    people: dict[str, int]

    def as_dict(self) -> dict[str, object]:
        return dict(vars(self))


def votes(pairs: Sequence[Pair], people: Mapping[str, Said]) -> dict[str, list[Choice]]:
    """Return what was said of each pair, skips included."""
    found: dict[str, list[Choice]] = {pair.id: [] for pair in pairs}
    for person in people.values():
        for pair, choice in person.judged.items():
            if pair in found:
                found[pair].append(choice)
    return found


def write_results(path: Path, pairs: Sequence[Pair], people: Mapping[str, Said]) -> None:
    """Write the pairs that a majority decided as rows of preferences; ties and skips stay out, and are counted."""
    said = votes(pairs, people)
    lines = []
    for pair in pairs:
        counts = Counter(choice for choice in said[pair.id] if choice != "skip")
        if not _is_decided(counts):
            continue
        better, worse = (pair.a, pair.b) if counts["a"] > counts["b"] else (pair.b, pair.a)
        share = max(counts["a"], counts["b"]) / counts.total()
        row = {**pair.given, "chosen": better, "rejected": worse}
        lines.append(
            json.dumps({**row, "annotators": counts.total(), "agreement": round(share, 4)}, ensure_ascii=False)
        )
    write_atomic(path, "".join(line + "\n" for line in lines))


def _is_decided(counts: Counter[str]) -> bool:
    """Return whether more than half of those who judged found one and the same answer better."""
    return 2 * max(counts["a"], counts["b"]) > counts.total()


def tally(pairs: Sequence[Pair], people: Mapping[str, Said]) -> Tally:
    """Return where the labelling stands."""
    said = votes(pairs, people)
    judged = {pair: [c for c in choices if c != "skip"] for pair, choices in said.items()}
    decided = sum(_is_decided(Counter(choices)) for choices in judged.values())
    shared = [choices for choices in judged.values() if len(choices) > 1]
    agreeing = [a == b for choices in shared for a, b in itertools.combinations(choices, 2)]
    return Tally(
        pairs=len(pairs),
        judged=sum(bool(choices) for choices in judged.values()),
        written=decided,
        ties=sum(bool(choices) for choices in judged.values()) - decided,
        skipped=sum(choices.count("skip") for choices in said.values()),
        shared=len(shared),
        agreement=sum(agreeing) / len(agreeing) if agreeing else None,
        alpha=krippendorff_alpha(shared),
        people={name: len(person.judged) for name, person in people.items() if person.lines},
    )


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> float | None:
    """Return alpha over units that at least two people judged; None where nothing can be said."""
    pairable = [unit for unit in units if len(unit) > 1]
    values = Counter(value for unit in pairable for value in unit)
    total = values.total()
    if total < 2 or len(values) < 2:
        return None
    observed = 0.0
    for unit in pairable:
        counts = Counter(unit)
        differing = sum(counts[x] * counts[y] for x in counts for y in counts if x != y)
        observed += differing / (len(unit) - 1)
    expected = sum(values[x] * values[y] for x in values for y in values if x != y) / (total - 1)
    return 1.0 - observed / expected
