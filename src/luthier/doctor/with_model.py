"""What only a model can tell of data: true lengths, how its template writes each row, and what it finds unlikely.

The rows are read once more and rendered as training would render them. For the last question the model itself runs, on
rows spread evenly over the data. How unlikely a row is, is its mean log-loss per token; it is compared with rows of
about its length, since short ones vary more, and by the median and its absolute deviation, which outliers do not move.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.batch import Example
from luthier.data.problems import ProblemLog
from luthier.data.records import Record
from luthier.data.render import Row
from luthier.data.spec import DataSpec
from luthier.data.store import SourceTable
from luthier.data.tally import Tally
from luthier.doctor.base import Finding, place
from luthier.doctor.checks.lengths import outlying
from luthier.doctor.examine import Diagnosis, Form, records_of
from luthier.doctor.quick import spread
from luthier.doctor.rendering import Rows, cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.models.loaded import LoadedModel

CHUNK = 1000
Z = 5.0
"""Robust standard deviations above the median from which a row is named."""
FEWEST = 30
"""Rows of like length that a median needs."""
_KINDS = {
    "template": "template",
    "special text": "template",
    "left out system": "template",
    "left out user": "template",
    "left out tool": "template",
    "left out thinking": "template",
}


@dataclass
class Reader:
    """A model as the doctor uses it.

    Attributes:
        name: as the user called it.
        tokenizer: its tokenizer; `chat_template` replaces its template.
        longest: tokens that a row may have.
        model: with its weights, to measure how unlikely rows are; None to leave that.
        measured: rows that it runs on at most.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    longest: int
    model: LoadedModel | None = None
    measured: int = 2000
    chat_template: str | None = None


@dataclass
class _Seen:
    """What is kept of each row that could be rendered."""

    tokens: array[int] = field(default_factory=lambda: array("i"))
    numbers: array[int] = field(default_factory=lambda: array("q"))
    sources: SourceTable = field(default_factory=SourceTable)
    without_end: list[int] = field(default_factory=list)


class _Log(ProblemLog):
    """Turns what the renderer says into findings."""

    def __init__(self, found: Diagnosis) -> None:
        super().__init__()
        self.found = found
        self.numbers: dict[str, int] = {}
        self._marked = {f.row for f in found.findings if f.kind == "template"}

    def add(self, kind: str, what: str, where: str, remedy: str) -> None:
        self.found.add(Finding("template", "error", *place(where), what, remedy, self.numbers.get(where, -1)))

    def warn(self, kind: str, what: str, where: str, remedy: str = "") -> None:
        number = self.numbers.get(where, -1)
        if kind in _KINDS and not (kind == "special text" and number in self._marked):
            remedy = remedy or "take it out, or choose another template: --chat-template"
            self.found.add(Finding(_KINDS[kind], "warning", *place(where), what, remedy, number))


def look_with_model(
    spec: DataSpec,
    reader: Reader,
    found: Diagnosis,
    form: Form | None = None,
    base: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> None:
    """Add to a diagnosis what the model tells of the rows.

    Raises:
        DataError: the model has no template for conversations.
    """
    log = _Log(found)
    rows = Rows(reader.tokenizer, Tally(log=log), reader.chat_template)
    wanted = set(spread(found.rows, reader.measured)) if reader.model is not None else set()
    seen, examples, places = _Seen(), [], []
    for chunk in _chunks(spec, form, base):
        log.numbers = {record.source: number for number, record in chunk}
        for (number, record), row in zip(chunk, rows.render([record for _, record in chunk])):
            if row is None:
                continue
            _keep(row, number, record, seen)
            example = cut(row, reader.longest) if number in wanted else None
            if example is not None:
                examples.append(example)
                places.append((number, record.source))
        progress(f"{len(seen.tokens):,} rows as tokens")
    _lengths(seen, reader, found)
    _ends(seen, found)
    found.tokens, found.counted_by = seen.tokens, reader.name
    found.looked_for += ["tokens", "the model's template", "end tokens"]
    if reader.model is not None:
        _unlikely(reader, examples, places, found, progress)
    found.gather()


def _chunks(spec: DataSpec, form: Form | None, base: Path | None) -> Iterator[list[tuple[int, Record]]]:
    records = ((number, record) for number, _, record in records_of(spec, form, base, Diagnosis()))
    return iter(lambda: list(itertools.islice(records, CHUNK)), [])


def _keep(row: Row, number: int, record: Record, seen: _Seen) -> None:
    seen.tokens.append(len(row.tokens))
    seen.numbers.append(number)
    seen.sources.add(record.source)
    if row.end is None or not row.weights[row.end]:
        seen.without_end.append(len(seen.tokens) - 1)


def _lengths(seen: _Seen, reader: Reader, found: Diagnosis) -> None:
    lengths = np.frombuffer(seen.tokens, dtype=np.int32) if seen.tokens else np.zeros(0, np.int32)
    if not len(lengths):
        return
    middle, far = outlying(lengths)
    for index in np.flatnonzero((lengths > reader.longest) | (lengths > far)):
        what = f"The row has {lengths[index]:,} tokens of {reader.name}; the median is {middle:,}."
        if lengths[index] > reader.longest:
            what += f" There is room for {reader.longest:,}."
        where = place(seen.sources[int(index)])
        found.add(Finding("overlong", "warning", *where, what, "shorten or split it", seen.numbers[int(index)]))


def _ends(seen: _Seen, found: Diagnosis) -> None:
    for index in seen.without_end:
        what = "The last answer has no trained token that ends it, so a model does not learn from it to stop."
        remedy = "see that the template ends turns, and that the last message has no weight of 0"
        where = place(seen.sources[index])
        found.add(Finding("missing_end", "warning", *where, what, remedy, seen.numbers[index]))


def _unlikely(
    reader: Reader,
    examples: list[Example],
    places: list[tuple[int, str]],
    found: Diagnosis,
    progress: Callable[[str], None],
) -> None:
    """Name the rows that the model finds far less likely, or far likelier, than others of their length."""
    from luthier.train.row_loss import row_losses

    assert reader.model is not None
    losses = np.zeros((len(examples), 2))
    for start in range(0, len(examples), 200):
        losses[start : start + 200] = row_losses(reader.model, examples[start : start + 200])
        progress(f"{min(start + 200, len(examples)):,} of {len(examples):,} rows through {reader.name}")
    found.looked_for.append("rows that the model finds unlikely")
    if len(examples) < found.rows:
        found.notes.append(f"{reader.name} read {len(examples):,} of {found.rows:,} rows, spread evenly (--perplexity)")
    means = losses[:, 0] / np.maximum(losses[:, 1], 1)
    scores, middles = robust_scores(means, losses[:, 1])
    for index in np.flatnonzero(scores > Z):
        number, source = places[index]
        what = (
            f"{reader.name} finds the row unlikely: {means[index]:.2f} nats a token over {int(losses[index, 1])}, "
            f"{scores[index]:.1f} robust deviations above rows of its length (median {middles[index]:.2f})."
        )
        remedy = "look at it: noise, another language, a broken encoding, or something rare worth keeping"
        found.add(Finding("perplexity", "warning", *place(source), what, remedy, number))


def robust_scores(means: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return of each row how many robust deviations it is above rows of its length, and their median; (N,) each.

    Args:
        means: (N,) mean log-loss per token.
        counts: (N,) tokens. Lengths are grouped by powers of two; a group of fewer than FEWEST joins the next.
    """
    scores, middles = np.zeros(len(means)), np.zeros(len(means))
    if len(means) < FEWEST:
        return scores, middles
    sizes = np.floor(np.log2(np.maximum(counts, 1))).astype(int)
    group: list[int] = []
    borders = sorted(set(sizes))
    for position, size in enumerate(borders):
        group += np.flatnonzero(sizes == size).tolist()
        left = int((sizes > size).sum())
        if (len(group) < FEWEST or 0 < left < FEWEST) and position + 1 < len(borders):
            continue
        here = np.array(group)
        middle = float(np.median(means[here]))
        spread_here = max(1.4826 * float(np.median(np.abs(means[here] - middle))), 0.05)
        scores[here], middles[here] = (means[here] - middle) / spread_here, middle
        group = []
    return scores, middles
