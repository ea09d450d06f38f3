"""What happens to sequences longer than max_length: refused, left out, cut at the end, or cut into windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from luthier.core.errors import DataError, Problem

SHOWN = 5


@dataclass(frozen=True, slots=True)
class Fitted:
    """Tokens [start, end) of a row that become one example."""

    start: int
    end: int


def fit(
    length: int, limit: int, how: Literal["error", "drop", "truncate", "windows"], loses_everything: bool
) -> Sequence[Fitted]:
    """Return the pieces of a row of `length` > `limit` tokens that are kept.

    Windows overlap by one token, which is the context of the next and not its target: so each token of a document is
    predicted exactly once, and nothing is lost.
    """
    if how == "windows":
        step = max(limit - 1, 1)
        return [Fitted(start, min(start + limit, length)) for start in range(0, length - 1, step)]
    if how == "truncate" and not loses_everything:
        return [Fitted(0, limit)]
    return []


@dataclass
class Overlong:
    """Rows that are too long while `on_overlong` is error."""

    count: int = 0
    longest: int = 0
    lose_everything: int = 0
    first: list[tuple[str, int]] = field(default_factory=list)

    def add(self, source: str, length: int, loses_everything: bool) -> None:
        self.count += 1
        self.longest = max(self.longest, length)
        self.lose_everything += loses_everything
        if len(self.first) < SHOWN:
            self.first.append((source, length))

    def raise_if_any(self, limit: int, context: int | None = None) -> None:
        """Refuse the rows, saying what each way out would do. `context` is what the model can take at most.

        Raises:
            DataError: there are rows that are too long.
        """
        if not self.count:
            return
        rows = "row is" if self.count == 1 else "rows are"
        listed = ", ".join(f"{source} ({length:,})" for source, length in self.first)
        more = f" and {self.count - len(self.first):,} more" if self.count > len(self.first) else ""
        truncate = f"on_overlong=truncate cuts the end off {self.count - self.lose_everything:,}"
        if self.lose_everything:
            truncate += f" and leaves out {self.lose_everything:,} whose answer would be gone"
        fits = context is None or self.longest <= context
        longer = f"raise max_length to {self.longest}; or " if fits else ""
        raise DataError(
            Problem(
                f"{self.count:,} {rows} longer than max_length={limit} tokens"
                f" (the longest has {self.longest:,}): {listed}{more}.",
                "max_length",
                f"{longer}on_overlong=drop leaves out {self.count:,}; or {truncate}",
            )
        )
