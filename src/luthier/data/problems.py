"""Collect what is wrong with the data: every problem is counted, the first ones are shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from luthier.core.errors import DataError, Problem

SHOWN = 20
SHOWN_OF_ONE_KIND = 5


@dataclass
class ProblemLog:
    """Errors and warnings in the order found. `kind` groups those of one cause, so that none floods the screen."""

    errors: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    warnings: list[Problem] = field(default_factory=list)
    warning_counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, what: str, where: str, remedy: str) -> None:
        """Count an error and keep it if it is among the first of its kind."""
        self.counts[kind] += 1
        if self.counts[kind] <= SHOWN_OF_ONE_KIND and len(self.errors) < SHOWN:
            self.errors.append(Problem(what, where, remedy))

    def warn(self, kind: str, what: str, where: str, remedy: str = "") -> None:
        """Count a warning and keep the first of its kind."""
        self.warning_counts[kind] += 1
        if self.warning_counts[kind] == 1:
            self.warnings.append(Problem(what, where, remedy, severity="warning"))

    @property
    def total(self) -> int:
        """How many errors were counted, shown or not."""
        return self.counts.total()

    def all_warnings(self) -> list[Problem]:
        """Return the warnings; one that came up often says how often."""
        return [
            Problem(f"{w.what} ({n:,} times; this is the first)", w.where, w.remedy, "warning") if n > 1 else w
            for w, n in zip(self.warnings, self.warning_counts.values())
        ]

    def all_errors(self) -> list[Problem]:
        """Return the errors to show, ending with a count when there were more."""
        hidden = self.total - len(self.errors)
        if not hidden:
            return list(self.errors)
        kinds = ", ".join(f"{kind} {n:,}" for kind, n in self.counts.most_common())
        rest = Problem(
            f"{self.total:,} problems in all, {len(self.errors)} shown ({kinds}).",
            remedy="mend the ones above; the others are of the same kinds",
        )
        return [*self.errors, rest]

    def raise_errors(self) -> None:
        """Raise everything found, if anything was.

        Raises:
            DataError: with the first errors and the count of all.
        """
        if self.total:
            raise DataError(*self.all_errors())
