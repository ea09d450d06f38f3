"""Every exception that Luthier raises on purpose, and the one form in which users read what is wrong.

LuthierError              exit code 1
├── UserError             exit code 2: the user can mend it; carries every problem found, not just the first
│   ├── RecipeError       the recipe, an override, a combination that the mathematics forbids
│   ├── DataError         a data file or a row
│   ├── ModelError        a model folder, a tokenizer, weights that cannot be trained
│   ├── RunError          a run folder: in use, finished, torn; a disk that is full or read-only
│   └── MissingExtra      an optional library that is not installed
├── Failure               exit code 1: the run broke although the input was fine
│   ├── NonFiniteError    a loss or gradient is not a finite number; raised before the weights change
│   ├── FreezeError       a tensor declared frozen moved, or a declared one did not
│   ├── OutOfMemoryError  not even one sequence fits
│   └── GateFailure       training is finished, and a measurement is not what the recipe's gate asks for
└── Interrupted           exit code 130: Ctrl-C; the state is saved and the message says how to go on
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what happened (with the values), where, and how to mend it."""

    what: str
    where: str = ""
    remedy: str = ""
    severity: Literal["error", "warning", "note"] = "error"

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        remedy = f"\n    → {self.remedy}" if self.remedy else ""
        return f"{place}{self.what}{remedy}"

    def as_dict(self) -> dict[str, str]:
        """Return the four fields for `--json` output."""
        return {"severity": self.severity, "where": self.where, "what": self.what, "remedy": self.remedy}


class LuthierError(Exception):
    """Base of everything raised on purpose."""

    exit_code = 1


class UserError(LuthierError):
    """The user's mistake: shown as a list of problems, without a traceback, with exit code 2."""

    exit_code = 2

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = [p if isinstance(p, Problem) else Problem(p) for p in problems]
        super().__init__("\n".join(str(p) for p in self.problems))


class RecipeError(UserError):
    """The recipe cannot be run as written."""


class DataError(UserError):
    """A data file cannot be read, or rows in it cannot be used."""


class ModelError(UserError):
    """A model or tokenizer cannot be used."""


class RunError(UserError):
    """A run folder cannot be written, resumed or read."""


class MissingExtra(UserError):
    """An optional library is needed and not installed."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(
            Problem(
                f"{purpose} needs the library {library}, which is not installed.",
                remedy=f'pip install "luthier[{extra}]"',
            )
        )


class Failure(LuthierError):
    """The run broke although the input was fine."""


class NonFiniteError(Failure):
    """A loss or gradient is NaN or infinite."""


class FreezeError(Failure):
    """What was declared trainable is not what moved."""


class OutOfMemoryError(Failure):
    """Not even the smallest micro-batch fits in memory."""


class GateFailure(Failure):
    """A run is finished, and a measurement is not what its gate asks for."""


class Interrupted(LuthierError):
    """The user stopped the run; it can be resumed."""

    exit_code = 130


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ` Did you mean "x"?` for the nearest choice, or an empty string when nothing is near."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""


def visible(text: str) -> str:
    """Return text with control characters written out: what stands in a data file must not command the terminal."""
    return "".join(repr(c)[1:-1] if unicodedata.category(c) == "Cc" and c != "\n" else c for c in text)
