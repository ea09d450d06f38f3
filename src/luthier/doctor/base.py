"""What the checks of the doctor share: rows as they see them, and findings as people read them.

A check sees every row once, in order, and may say something when all have been seen. It keeps numbers, never texts, so
that a million rows fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from luthier.data.records import (
    Asked,
    Conversation,
    Labelled,
    Message,
    Preference,
    PromptAnswer,
    Rated,
    Record,
    Text,
    answer_of,
    conversation,
    turns_of,
)

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something found in the data.

    Attributes:
        kind: what it is, as a word: `near_duplicate`, `personal_data` …
        severity: error (the row cannot be trained on), warning (it should be looked at), note (of the whole).
        file, line: where; line 0 for a finding about the whole file or data set.
        message: what, with the values.
        remedy: how to mend it.
        row: number of the row from 0, or -1 for the whole.
        removes: `--fix` leaves the row out.
    """

    kind: str
    severity: Severity
    file: str
    line: int
    message: str
    remedy: str
    row: int = -1
    removes: bool = False

    def as_dict(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "severity": self.severity,
            "file": self.file,
            "line": self.line,
            "message": self.message,
            "remedy": self.remedy,
        }


@dataclass(frozen=True, slots=True)
class SeenRow:
    """A row as the checks see it.

    Attributes:
        number: from 0.
        source: `file:line`.
        turns: its messages; a document is one message of the user's.
        prompt: all that stands before the last answer.
        answer: the last answer; of two judged ones the better; empty for a document.
        label: of a labelled text, or how an answer was rated.
        other: the worse of two judged answers.
        text: everything that the row says, the worse answer included.
    """

    number: int
    source: str
    turns: tuple[Message, ...]
    prompt: str
    answer: str
    label: str = ""
    other: str = ""
    text: str = field(init=False)

    def __post_init__(self) -> None:
        # Asked for by every check: joined once.
        said = [m.content for m in self.turns]
        object.__setattr__(self, "text", "\n".join([*said, self.other] if self.other else said))

    @property
    def is_document(self) -> bool:
        return not self.answer and len(self.turns) == 1 and not self.label

    @property
    def has_answer(self) -> bool:
        """Whether the row ends with a turn of the assistant's, empty or not."""
        return bool(self.turns) and self.turns[-1].role == "assistant"

    def found(
        self, kind: str, message: str, remedy: str, severity: Severity = "warning", removes: bool = False
    ) -> Finding:
        """Return a finding at this row."""
        file, line = place(self.source)
        return Finding(kind, severity, file, line, message, remedy, self.number, removes)


class Check(Protocol):
    """One kind of look at the data. `title` says in a few words what is looked for."""

    title: str

    def look(self, row: SeenRow) -> Iterator[Finding]:
        """Yield what is wrong with a row by itself."""
        ...

    def conclude(self) -> Iterator[Finding]:
        """Yield what only the whole shows."""
        ...


class RowCheck:
    """A check that has nothing to say of the whole."""

    title = ""

    def conclude(self) -> Iterator[Finding]:
        return iter(())


def place(source: str) -> tuple[str, int]:
    """Return file and line of `file:line`."""
    file, _, line = source.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (source, 0)


def seen(number: int, record: Record) -> SeenRow:
    """Return a record as the checks see it."""
    label = other = ""
    is_asked = isinstance(record, Asked)
    if isinstance(record, Labelled):
        text = "\n".join(part for part in (record.text, record.pair) if part)
        label = ", ".join(record.every_label) or "none"
        # A number is no class: hardly two rows have the same.
        return SeenRow(number, record.source, (Message("user", text),), text, "", label if record.value is None else "")
    if isinstance(record, Text):
        return SeenRow(number, record.source, (Message("user", record.text),), record.text, "")
    if isinstance(record, Preference):
        other = answer_of(record.rejected)
    if isinstance(record, Rated):
        label = "good" if record.is_good else "bad"
    if isinstance(record, Preference | Rated | Asked):
        record = turns_of(record)
    assert isinstance(record, Conversation | PromptAnswer)
    turns = conversation(record).messages
    if isinstance(record, PromptAnswer) and not record.answer and turns[-1].role == "assistant" and is_asked:
        turns = turns[:-1]
    answer = turns[-1].content if turns and turns[-1].role == "assistant" else ""
    before = turns[:-1] if turns and turns[-1].role == "assistant" else turns
    return SeenRow(number, record.source, turns, "\n".join(m.content for m in before), answer, label, other)


def shorten(text: str, characters: int = 60) -> str:
    """Return the beginning of a text on one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= characters else flat[: characters - 1] + "…"
