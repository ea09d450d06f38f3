"""Answers of a model to the prompts of a task, and the references they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from luthier.core.errors import DataError, Problem
from luthier.data.records import Asked, Conversation, PromptAnswer, Record, answer_of
from luthier.data.spec import DataSpec
from luthier.evaluate.cases import read_records, read_rows
from luthier.evaluate.tasks.base import Cases

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel

REFERENCES = "references"
"""The column for further right answers, a list of texts."""


@dataclass(frozen=True)
class Exercise:
    """A prompt, and the answers that would be right."""

    record: Record
    references: tuple[str, ...]


def read_exercises(spec: DataSpec) -> Cases:
    """Return rows of prompts and answers as exercises; a column `references` holds further right answers.

    Raises:
        DataError: rows cannot be read, or have no answer.
    """
    found = read_records(spec)
    items = [item for item in found.items if isinstance(item, Conversation | PromptAnswer)]
    more = _further(spec) if spec.format == "auto" else {}
    exercises, empty = [], []
    for record in items:
        references = (answer_of(record), *more.get(record.source, ()))
        if not any(text.strip() for text in references):
            empty.append(record.source)
        exercises.append(Exercise(record, tuple(text for text in references if text.strip())))
    if empty:
        what = f"{len(empty):,} rows have no answer to compare with."
        raise DataError(Problem(what, empty[0], "add one, or remove the rows"))
    return replace(found, items=tuple(exercises))


def _further(spec: DataSpec) -> dict[str, tuple[str, ...]]:
    rows, _, _ = read_rows(spec)
    lists = {row.source: row.value.get(REFERENCES) for row in rows}
    return {source: tuple(map(str, texts)) for source, texts in lists.items() if isinstance(texts, list)}


def answers_of(
    model: LoadedModel, exercises: Sequence[Exercise], max_new_tokens: int | None, stop: str | None
) -> list[str]:
    """Return the likeliest answer to each, asked as chat and training ask (`render_prompt`), cut at `stop`.

    Args:
        max_new_tokens: the longest answer; None goes by the longest reference.
    """
    from luthier.evaluate.measure import answer

    size = max_new_tokens or room_for(model, [text for e in exercises for text in e.references])
    found = answer(model, [exercise.record for exercise in exercises], size)
    return [text if stop is None else text.partition(stop)[0] for text in found]


def room_for(model: LoadedModel, texts: Sequence[str]) -> int:
    """Return the tokens within which a generated answer can still equal one of the texts.

    One that goes on beyond is another text. The factor leaves room for words that a model spells in smaller pieces.
    """
    ids = model.tokenizer([text or " " for text in texts], add_special_tokens=False)["input_ids"] if texts else [[]]
    return 2 * max(map(len, ids)) + 8


def as_prompt(text: str, source: str, row: dict[str, object] | None = None) -> Asked:
    """Return a text as a prompt that a model is asked through its chat template, where it has one."""
    return Asked(PromptAnswer(text, "", "", "", (), False, source), row or {}, source)
