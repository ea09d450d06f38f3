"""What a file of rows is good for: read with the readers of training, the first rows closely, all of them counted."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from luthier.advise.situation import DataProfile, Form
from luthier.core.errors import DataError, Problem
from luthier.data import formats, preferences, sources
from luthier.data.convert import convert
from luthier.data.problems import ProblemLog
from luthier.data.readers import Row
from luthier.data.records import Asked, Conversation, Labelled, Preference, Rated, Record, Text, answer_of, turns_of
from luthier.data.records import conversation as as_turns
from luthier.data.scripts import estimate_tokens, script_of
from luthier.data.spec import DataSpec, resolve_path

LOOK_AHEAD = 100
CLOSELY = 20_000
"""Rows that are read and compared with each other; those behind them are counted."""
MEASURED = 5_000
"""Rows whose tokens and scripts are looked at."""
MOST_CLASSES = 50
"""Numbers of more different values than this are measured, not classes."""
RIGHT_ANSWERS = ("answer", "completion", "response", "output", "solution", "target", "reference")
"""Columns that may hold an answer to compare with, in the order in which the reward exact_match looks for them."""
_FORMS: tuple[Form, ...] = ("preference", "rated", "conversation", "labelled", "prompt")


@dataclass
class _Seen:
    """What is gathered row by row."""

    form: Form = "conversation"
    format: str = ""
    rows: int = 0
    closely: int = 0
    repeated: int = 0
    hashes: set[int] = field(default_factory=set)
    tokens: list[int] = field(default_factory=list)
    scripts: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    answer_column: str | None = None
    prompt_column: str | None = None
    chosen_column: str | None = None
    is_chat: bool = False


def profile_data(path: str, classify: bool = False) -> DataProfile:
    """Return what a file, folder, pattern or starter:NAME holds.

    Args:
        classify: where rows can be read as labelled texts, read them so.

    Raises:
        DataError: there is no such file, or its rows fit no known format.
    """
    spec = DataSpec(path=path)
    source = sources.find(resolve_path(spec.path))
    log, seen = ProblemLog(), _Seen()
    for name, rows in sources.read_source(source, log, sources.Notes(), sources.ReadOptions()):
        head = list(itertools.islice(rows, LOOK_AHEAD))
        if not head:
            continue
        read, seen.form, shape = _reader(head, spec, classify, name)
        seen.format = shape.name
        seen.answer_column = next((c for c in RIGHT_ANSWERS if isinstance(head[0].value.get(c), str | int)), None)
        seen.prompt_column = shape.columns.get("prompt")
        seen.chosen_column = _plain_column(head, shape)
        _look(itertools.chain(head, rows), read, log, seen)
    if not seen.rows:
        raise DataError(*(log.all_errors() or [Problem("There are no rows.", path, "give a file with at least one")]))
    return _concluded(path, seen, log)


def _look(rows: Iterator[Row], read: Callable[[Row, ProblemLog], Record | None], log: ProblemLog, seen: _Seen) -> None:
    for row in rows:
        seen.rows += 1
        if seen.closely >= CLOSELY:
            continue
        record = read(row, log)
        if record is None:
            continue
        seen.closely += 1
        text = _text(record)
        key = hash((text, record.label if isinstance(record, Labelled) else answer_of(record)))
        seen.repeated += key in seen.hashes
        seen.hashes.add(key)
        if len(seen.tokens) < MEASURED:
            seen.tokens.append(estimate_tokens(text))
            seen.scripts[script_of(text) or "other"] += 1
        if isinstance(record, Labelled):
            seen.labels.update(record.every_label)
        turns = turns_of(record) if isinstance(record, Preference | Rated | Asked) else record
        seen.is_chat = seen.is_chat or isinstance(turns, Conversation)


def _concluded(path: str, seen: _Seen, log: ProblemLog) -> DataProfile:
    form, count = seen.form, max(seen.closely, 1)
    if form == "labelled" and _are_measured(seen.labels):
        form = "scored"
    shares = {name: n / max(len(seen.tokens), 1) for name, n in seen.scripts.most_common()}
    return DataProfile(
        path=path,
        form=form,
        format=seen.format,
        rows=max(seen.rows - log.total, seen.closely),
        seen=seen.closely,
        unreadable=log.total,
        median_tokens=int(statistics.median(seen.tokens)) if seen.tokens else 1,
        longest_tokens=max(seen.tokens, default=1),
        languages=shares,
        duplicates=seen.repeated / count,
        classes=len(seen.labels) if form == "labelled" else 0,
        answer_column=seen.answer_column if form in ("conversation", "prompt") else None,
        prompt_column=seen.prompt_column,
        chosen_column=seen.chosen_column,
        is_chat=seen.is_chat,
    )


def _reader(
    head: Sequence[Row], spec: DataSpec, classify: bool, name: str
) -> tuple[Callable[[Row, ProblemLog], Record | None], Form, formats.Format]:
    """Return how to read rows like these, and what they are good for: what their columns say.

    Raises:
        DataError: they fit no known format.
    """
    wanted: tuple[Form, ...] = ("labelled", *_FORMS) if classify else _FORMS
    errors: list[Problem] = []
    for form in wanted:
        try:
            if form in ("preference", "rated", "prompt"):
                judged = preferences.recognise(head, spec.columns, form, name)
                return partial(_judged, judged, form), form, judged
            labelled = "classes" if form == "labelled" else None
            shape = formats.recognise(head, spec.columns, spec.format, name, labelled)
        except DataError as error:
            errors += error.problems
            continue
        if form == "labelled" and classify and not _repeats(head, shape):
            continue
        if shape.name == "text":
            rated = _rated_by_numbers(head, spec, name)
            form, shape = ("scored", rated) if rated else ("text", shape)
        return partial(_plain, shape, form), form, shape
    raise DataError(*(errors[2:3] or errors[:1]))


def _judged(shape: formats.Format, wanted: preferences.JudgedForm, row: Row, log: ProblemLog) -> Record | None:
    return next(iter(preferences.convert(row, shape, wanted, log)), None)


def _plain(shape: formats.Format, form: Form, row: Row, log: ProblemLog) -> Record | None:
    return convert(row, shape, log, needs_answer=form == "conversation")


def _rated_by_numbers(head: Sequence[Row], spec: DataSpec, name: str) -> formats.Format | None:
    """Return how to read texts that have a number each; None where they have none."""
    try:
        shape = formats.recognise(head, spec.columns, spec.format, name, "numbers")
    except DataError:
        return None
    values = [row.value.get(shape.columns["score"]) for row in head]
    return shape if all(isinstance(value, int | float) for value in values) else None


def _plain_column(head: Sequence[Row], shape: formats.Format) -> str | None:
    """Return the column of the better answers where prompts and answers are plain text, so that sft can read them."""
    prompt, chosen = shape.columns.get("prompt"), shape.columns.get("chosen")
    if prompt is None or chosen is None:
        return None
    is_plain = all(isinstance(row.value.get(column), str) for row in head for column in (prompt, chosen))
    return chosen if is_plain else None


def _repeats(head: Sequence[Row], shape: formats.Format) -> bool:
    """Return whether what would be the labels come up more than once: answers in words do not."""
    column = shape.columns.get("label")
    if column is None:  # a column of 0 and 1 for each class
        return True
    values = [str(row.value.get(column)) for row in head]
    return len(set(values)) <= max(2, len(values) // 2) and statistics.median(map(len, values)) <= 40


def _are_measured(labels: Counter[str]) -> bool:
    """Return whether labels are numbers on a scale: not whole, or of too many values to be classes."""
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return False
    return any(not value.is_integer() for value in numbers) or len(numbers) > MOST_CLASSES


def _text(record: Record) -> str:
    if isinstance(record, Text):
        return record.text
    if isinstance(record, Labelled):
        return "\n".join(part for part in (record.text, record.pair) if part)
    if isinstance(record, Preference | Rated | Asked):
        record = turns_of(record)
    return "\n".join(message.content for message in as_turns(record).messages)
