"""Rows as a model's own tokens, one by one, whatever is wrong with some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.batch import Example
from luthier.core.errors import DataError
from luthier.data.records import Asked, Labelled, Preference, Rated, Record, Text, turns_of
from luthier.data.render import Renderer, Row
from luthier.data.tally import Tally

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Rows:
    """Turn records into tokens and weights as training would.

    Args:
        tokenizer: the model's.
        tally: its log takes what the renderer says of a row (`add` what cannot be written, `warn` the rest).
        chat_template: in place of the model's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tally: Tally, chat_template: str | None = None) -> None:
        self.tally = tally
        self.answers = Renderer(tokenizer, chat_template=chat_template)
        self.texts = Renderer(tokenizer, objective_kind="lm")

    def render(self, records: Sequence[Record]) -> Iterator[Row | None]:
        """Yield tokens and weights of each record, None for one that cannot be written.

        Of judged answers the better one is taken; a document and a labelled text count whole.

        Raises:
            DataError: conversations, and the model has no template.
        """
        plain = [_plain(record) for record in records]
        for renderer, group in _runs(plain, self.texts, self.answers):
            try:
                yield from list(renderer.rows(group, self.tally))
            except DataError as error:
                if len(group) == 1:
                    self._refuse(error)
                    yield None
                    continue
                for record in group:
                    yield from self.render([record])

    def _refuse(self, error: DataError) -> None:
        for problem in error.problems:
            if "chat_template" in problem.remedy and "no chat template" in problem.what:
                raise DataError(replace(problem, remedy="name one: --chat-template chatml")) from error
            self.tally.log.add("row", problem.what, problem.where, problem.remedy)


def _plain(record: Record) -> Record:
    if isinstance(record, Preference | Rated | Asked):
        return turns_of(record)
    if isinstance(record, Labelled):
        return Text("\n".join(part for part in (record.text, record.pair) if part), record.source)
    return record


def _runs(records: Sequence[Record], texts: Renderer, answers: Renderer) -> Iterator[tuple[Renderer, list[Record]]]:
    """Yield neighbouring records that one renderer takes."""
    group: list[Record] = []
    for record in records:
        if group and isinstance(record, Text) != isinstance(group[0], Text):
            yield (texts if isinstance(group[0], Text) else answers), group
            group = []
        group.append(record)
    if group:
        yield (texts if isinstance(group[0], Text) else answers), group


def cut(row: Row, longest: int) -> Example | None:
    """Return a row of at most `longest` tokens; None where nothing that counts is left."""
    tokens, weights = row.tokens[:longest], (row.weights[:longest] > 0).astype(np.float32)
    if len(tokens) < 2 or not weights[1:].any():
        return None
    return Example(tokens, weights, row.source)
