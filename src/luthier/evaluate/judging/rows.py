"""Rows that are to be judged: a prompt with the answers that stand in its columns, however they are called."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.core.errors import DataError, Problem, did_you_mean
from luthier.data import preferences, sources
from luthier.data.formats import Format, columns_of
from luthier.data.problems import ProblemLog
from luthier.data.readers import Row
from luthier.data.records import Conversation, Message, Preference, PromptAnswer, conversation, prompt_of
from luthier.rewards.base import Turns, prompt_text

LOOK_AHEAD = 100
LISTS = ("answers", "responses", "completions", "candidates", "outputs", "generations")
PAIRS = (
    ("a", "b"),
    ("answer_a", "answer_b"),
    ("response_a", "response_b"),
    ("answer_1", "answer_2"),
    ("response_1", "response_2"),
    ("output_1", "output_2"),
    ("response_0", "response_1"),
    ("chosen", "rejected"),
    ("before", "after"),
)
SINGLES = ("answer", "completion", "response", "output", "solution", "after")


@dataclass(frozen=True)
class Task:
    """A prompt and its answers.

    Attributes:
        given: the columns of the prompt as the row has them; they go into what is written.
        prompt: the same as text, for judges.
        asked: the same as a record, for models.
        answers: the answers as text.
        written: the answers as the row has them: text, or lists of messages.
        row: the whole row.
        source: `file:line`.
    """

    given: Mapping[str, object]
    prompt: str
    asked: Turns
    answers: tuple[str, ...]
    written: tuple[object, ...]
    row: Mapping[str, object]
    source: str


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, where the user says so."""

    prompt: str | None = None
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tasks:
    """What a file holds, and how it was read.

    Attributes:
        alike: rows that were left out because their answers are all the same.
        why: one sentence for the screen.
        warnings: what was left out or assumed.
    """

    tasks: tuple[Task, ...]
    why: str
    alike: int
    warnings: tuple[Problem, ...]


def read_tasks(path: Path, columns: Columns | None = None, limit: int | None = None, answers: int = 1) -> Tasks:
    """Read the rows of a file, folder or pattern.

    Args:
        answers: how many answers a row has to have at least; 0 takes prompts alone.

    Raises:
        DataError: with everything that is wrong.
    """
    log, found, why = ProblemLog(), list[Task](), ""
    for name, rows in sources.read_source(sources.find(path), log, sources.Notes(), sources.ReadOptions()):
        made, said = _read_one(name, rows, columns or Columns(), answers, log, limit)
        found, why = found + made, why or said
        if limit is not None and len(found) >= limit:
            break
    if not found and not log.total and not log.warning_counts["same answers"]:
        log.add("no rows", "There are no rows.", str(path), "give a file with at least one row")
    log.raise_errors()
    return Tasks(tuple(found[:limit]), why, log.warning_counts["same answers"], tuple(log.all_warnings()))


def tasks_of(rows: Sequence[Mapping[str, object]], name: str, columns: Columns, answers: int = 1) -> Tasks:
    """Return tasks of rows that are in memory, which have at least so many answers.

    Raises:
        DataError: with everything that is wrong.
    """
    log = ProblemLog()
    numbered = (Row(dict(row), f"{name}:{i + 1}") for i, row in enumerate(rows))
    made, why = _read_one(name, numbered, columns, answers, log, None)
    log.raise_errors()
    return Tasks(tuple(made), why, log.warning_counts["same answers"], tuple(log.all_warnings()))


def _read_one(
    name: str, rows: Iterator[Row], columns: Columns, answers: int, log: ProblemLog, limit: int | None
) -> tuple[list[Task], str]:
    head = list(itertools.islice(rows, LOOK_AHEAD))
    if not head:
        return [], ""
    try:
        reader = _Reader(head, columns, answers, name)
    except DataError as error:
        for problem in error.problems:
            log.add("format", problem.what, problem.where, problem.remedy)
        return [], ""
    read = (task for row in itertools.chain(head, rows) if (task := reader.task(row, log)) is not None)
    return list(itertools.islice(read, limit)), reader.why


class _Reader:
    """Knows the columns of one file.

    Raises:
        DataError: the columns do not fit, or a column that was named is not there.
    """

    def __init__(self, head: Sequence[Row], columns: Columns, answers: int, name: str) -> None:
        present = columns_of(head)
        for column in (*columns.answers, *((columns.prompt,) if columns.prompt else ())):
            if column not in present:
                what = f'There is no column "{column}".{did_you_mean(column, present)}'
                raise DataError(Problem(what, name, f"columns found: {', '.join(present)}"))
        self.required = answers
        self.answers = columns.answers or _answer_columns(present)
        self.talks = not self.answers and _ends_with_answers(head, columns.prompt)
        if len(self.answers) < answers and not self.is_list(head) and not (self.talks and answers == 1):
            wanted = "two answers" if answers > 1 else "an answer"
            what = f"The rows have no columns that hold {wanted}. Columns found: {', '.join(present)}."
            raise DataError(Problem(what, name, "name them, such as --answers a,b"))
        mapping = {"prompt": columns.prompt} if columns.prompt else {}
        self.form: Format
        if len(self.answers) == 2:
            sides = {"chosen": self.answers[0], "rejected": self.answers[1]}
            self.form = preferences.recognise(head, {**mapping, **sides}, "preference", name)
        else:
            self.form = preferences.recognise(head, mapping, "prompt", name)
        self.asked = [c for field, c in self.form.columns.items() if field in ("prompt", "context", "system")]
        self.why = f"prompt from {', '.join(self.asked) or 'what both answers begin with'}"
        self.why += f"; answers from {', '.join(self.answers)}" if self.answers else ""

    def is_list(self, head: Sequence[Row]) -> bool:
        """Return whether the one column of answers holds lists of them."""
        return len(self.answers) == 1 and isinstance(head[0].value.get(self.answers[0]), list)

    def task(self, row: Row, log: ProblemLog) -> Task | None:
        """Return what is to be judged; None for a row that is left out or wrong, which is logged."""
        before = log.total
        values = [row.value.get(column) for column in self.answers]
        if len(values) == 2 and any(isinstance(v, str) and not v.strip() for v in values):
            log.warn("empty answer", "An answer is empty: the row is left out.", row.source)
            return None
        if len(self.answers) == 2:
            made = preferences.convert(row, self.form, "preference", log)
            return self._pair(row, made[0]) if made and isinstance(made[0], Preference) else None
        made = preferences.convert(row, self.form, "prompt", log)
        if not made or log.total > before:
            return None
        asked = made[0].prompt  # type: ignore[union-attr]
        answers = self._answers(row, log)
        if answers is None:
            return None
        if self.talks:
            return Task(*self._prompt(row, asked), (answers[0],), (answers[0],), row.value, row.source)
        different = tuple(dict.fromkeys(a for a in answers if a.strip()))
        if len(different) < min(len(answers), self.required):
            log.warn("empty answer", "An answer is empty: the row is left out.", row.source)
            return None
        if len(answers) > 1 and len(different) == 1:
            log.warn("same answers", "All answers are the same: the row is left out.", row.source)
            return None
        return Task(*self._prompt(row, asked), different, different, row.value, row.source)

    def _prompt(self, row: Row, asked: Turns) -> tuple[Mapping[str, object], str, Turns]:
        given = {c: row.value[c] for c in self.asked if row.value.get(c) is not None}
        if self.talks:
            column = self.form.columns["prompt"]
            given[column] = _without_answer(row.value[column])
        return given, prompt_text(asked), asked

    def _pair(self, row: Row, pair: Preference) -> Task:
        given = {c: row.value[c] for c in self.asked if row.value.get(c) is not None}
        written = tuple(row.value[column] for column in self.answers)
        asked, answers = _sides(pair)
        return Task(given, prompt_text(asked), asked, answers, written, row.value, row.source)

    def _answers(self, row: Row, log: ProblemLog) -> list[str] | None:
        """Return the row's answers, or None after logging."""
        if self.talks:
            return [_last_answer(row.value[self.form.columns["prompt"]])]
        values: list[object] = []
        for column in self.answers:
            value = row.value.get(column)
            values += value if isinstance(value, list) else [] if value is None and not self.required else [value]
        if all(isinstance(v, str) for v in values) and (values or not self.required):
            return [str(v) for v in values]
        what = f"The answers in {', '.join(self.answers)} should be texts."
        log.add("answer", what, row.source, "mend the row or remove it")
        return None


def _answer_columns(present: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that usually hold answers, of those that are there."""
    names = {name.lower(): name for name in present}
    for group in (*PAIRS, *((name,) for name in LISTS), *((name,) for name in SINGLES)):
        if all(name in names for name in group):
            return tuple(names[name] for name in group)
    return ()


def _ends_with_answers(head: Sequence[Row], column: str | None) -> bool:
    """Return whether rows are conversations whose last message is the answer."""
    columns = (column,) if column else ("messages", "conversations", "conversation", "prompt")
    talks = [v for row in head[:1] for c in columns if isinstance(v := row.value.get(c), list) and v]
    return bool(talks) and isinstance(talks[0][-1], dict) and _role(talks[0][-1]) in ("assistant", "gpt")


def _role(message: Mapping[str, object]) -> object:
    return message.get("role", message.get("from"))


def _without_answer(talk: object) -> object:
    is_answered = isinstance(talk, list) and talk and _role(talk[-1]) in ("assistant", "gpt")
    return talk[:-1] if isinstance(talk, list) and is_answered else talk


def _last_answer(talk: object) -> str:
    last = talk[-1] if isinstance(talk, list) and talk else {}
    return str(last.get("content", last.get("value", ""))) if isinstance(last, dict) else ""


def _sides(pair: Preference) -> tuple[Turns, tuple[str, str]]:
    """Return what both answers answer, and the two as text; several turns become a transcript."""
    first, second = pair.chosen, pair.rejected
    if isinstance(first, PromptAnswer) and isinstance(second, PromptAnswer):
        asked = prompt_of(first)
        assert isinstance(asked, PromptAnswer)
        return asked, (first.answer, second.answer)
    ours, theirs = conversation(first).messages, conversation(second).messages
    shared = 0
    while shared < min(len(ours), len(theirs)) - 1 and _same(ours[shared], theirs[shared]):
        shared += 1
    return Conversation(ours[:shared], pair.source), (_spoken(ours[shared:]), _spoken(theirs[shared:]))


def _same(first: Message, second: Message) -> bool:
    return (first.role, first.content) == (second.role, second.content)


def _spoken(turns: Sequence[Message]) -> str:
    return turns[0].content if len(turns) == 1 else "\n\n".join(f"{m.role}: {m.content}" for m in turns)
