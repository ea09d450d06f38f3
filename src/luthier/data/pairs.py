"""Judged answers as tokens: two endings behind the prompt that they share, so that it is computed once.

A pair's beginning is what its two sides have in common up to the first supervised token. For KTO the second ending is
the answer of another row, which stands there to measure how far the model has moved from its start in general.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.core.errors import DataError, Problem
from luthier.data.records import Conversation, Preference, PromptAnswer, Rated, Record
from luthier.data.render import CHUNK, Counts, Rendered, Renderer, Row
from luthier.data.store import ExampleStore, StoreBuilder
from luthier.data.tally import Tally, notes


@dataclass(frozen=True)
class _Sides:
    """Two sides of an example as rows, with what belongs to each."""

    rows: tuple[Row, Row]
    source: str
    extras: dict[str, tuple[float, float]]


class PairRenderer:
    """Turn preferences and rated answers into examples with two endings.

    Args:
        renderer: writes one side; its settings (length, template, what to do with long rows) are those of the pairs.
    """

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer

    @property
    def settings(self) -> dict[str, object]:
        """What the result depends on besides the records and the tokenizer."""
        return {**self.renderer.settings, "kind": "pairs"}

    def render_all(self, records: Sequence[Record]) -> Rendered:
        """Render every record.

        Raises:
            DataError: rows are too long, cannot be written by the template, or do not begin alike.
        """
        tally, builder = Tally(), StoreBuilder()
        are_pairs = bool(len(records)) and isinstance(records[0], Preference)
        for sides in self._pairs(records, tally) if are_pairs else self._rated(records, tally):
            self._keep(sides, builder, tally)
        tally.log.raise_errors()
        tally.overlong.raise_if_any(self.renderer.max_length or 0, self.renderer.context)
        store = builder.build()
        if not len(store):
            what = f"No row is left: all {len(records):,} are too long or teach nothing."
            raise DataError(
                Problem(what, records[0].source if records else "", "raise max_length, or shorten the rows")
            )
        return Rendered(store, self._counts(records, store, tally))

    def _pairs(self, records: Sequence[Record], tally: Tally) -> Iterator[_Sides]:
        has_margins = any(isinstance(record, Preference) and record.margin is not None for record in records)
        for start in range(0, len(records), CHUNK // 2):
            chunk = [record for record in records[start : start + CHUNK // 2] if isinstance(record, Preference)]
            flat: list[Conversation | PromptAnswer] = [side for r in chunk for side in (r.chosen, r.rejected)]
            rows = self.renderer.rows(flat, tally)
            for record in chunk:
                chosen, rejected = next(rows), next(rows)
                if chosen is not None and rejected is not None:
                    margin = record.margin or 0.0
                    extras = {"margin": (margin, margin)} if has_margins else {}
                    yield _Sides((chosen, rejected), record.source, extras)

    def _rated(self, several: Sequence[Record], tally: Tally) -> Iterator[_Sides]:
        """Put behind each prompt its answer and that of the next row with another prompt."""
        records = [record for record in several if isinstance(record, Rated)]
        rows = list(self.renderer.rows([record.answer for record in records], tally))
        good = [(record, row) for record, row in zip(records, rows) if row is not None and row.weights.any()]
        tally.untrained += sum(row is not None for row in rows) - len(good)
        starts = [_answer_start(row) for _, row in good]
        prompts = [row.tokens[:start].tobytes() for (_, row), start in zip(good, starts)]
        for index, (record, row) in enumerate(good):
            others = (j % len(good) for j in range(index + 1, index + len(good)))
            other = next((j for j in others if prompts[j] != prompts[index]), None)
            if other is None:
                what = "Every row has the same prompt, and KTO compares answers behind different ones."
                raise DataError(Problem(what, record.source, "add rows with other prompts"))
            stranger = _behind(row, starts[index], good[other][1], starts[other])
            yield _Sides((row, stranger), record.source, {"good": (float(record.is_good), float(record.is_good))})

    def _keep(self, sides: _Sides, builder: StoreBuilder, tally: Tally) -> None:
        """Add the pair, cut to the length that is allowed."""
        limit = self.renderer.max_length
        longest = max(len(row.tokens) for row in sides.rows)
        if any(not row.weights.any() for row in sides.rows):
            tally.untrained += 1
            tally.log.warn("untrained", "One of the answers is not trained on: the row is left out.", sides.source)
            return
        shared = _shared(*sides.rows)
        if not shared:
            what = "The two sides do not begin with a common token, so nothing predicts their first one."
            tally.log.add("no beginning", what, sides.source, "give the row a prompt")
            return
        rows = sides.rows
        if limit is not None and longest > limit:
            loses_everything = any(not row.weights[:limit].any() for row in rows) or shared >= limit
            if self.renderer.on_overlong == "error":
                tally.overlong.add(sides.source, longest, loses_everything)
                return
            if self.renderer.on_overlong == "drop" or loses_everything:
                tally.dropped += 1
                return
            tally.truncated += 1
            tally.lost_end += any(row.end is not None and row.end >= limit for row in rows)
            rows = tuple(Row(r.tokens[:limit], r.weights[:limit], r.end, r.source) for r in rows)  # type: ignore[assignment]
        endings = [row.tokens[shared:] for row in rows]
        weights = np.concatenate([np.zeros(shared, np.float32), *(row.weights[shared:] for row in rows)])
        tokens = np.concatenate([rows[0].tokens[:shared], *endings])
        tally.trained += int(np.count_nonzero(weights))
        tally.kept += 1
        tally.with_end += all(row.end is not None and row.end < len(row.tokens) for row in rows)
        unknown = self.renderer.tokenizer.unk_token_id
        tally.unknown += int((tokens == unknown).sum()) if unknown is not None else 0
        first, second = (len(ending) for ending in endings)
        builder.add(tokens, weights, sides.source, sides.extras, (first, second))

    def _counts(self, records: Sequence[Record], store: ExampleStore, tally: Tally) -> Counts:
        tokens = int(store.lengths.sum())
        return {
            "rows": len(records),
            "examples": len(store),
            "tokens": tokens,
            "trained_tokens": tally.trained,
            "dropped": tally.dropped + tally.untrained,
            "dropped_untrained": tally.untrained,
            "truncated": tally.truncated,
            "end_tokens_trained": tally.with_end / max(tally.kept, 1),
            "longest": int(store.lengths.max()),
            "median_length": float(np.median(store.lengths)),
            "unknown_tokens": tally.unknown,
            "lost_characters": tally.lost,
            "notes": notes(tally, tokens, self.renderer.max_length),
        }


def _answer_start(row: Row) -> int:
    """Return where the first supervised token stands."""
    return int(np.flatnonzero(row.weights)[0])


def _shared(first: Row, second: Row) -> int:
    """Return the length of the beginning that two rows share, which holds nothing supervised."""
    most = min(len(first.tokens), len(second.tokens), _answer_start(first), _answer_start(second))
    differs = np.flatnonzero(first.tokens[:most] != second.tokens[:most])
    return int(differs[0]) if len(differs) else most


def _behind(row: Row, start: int, other: Row, other_start: int) -> Row:
    """Return the prompt of one row with the answer of another."""
    answer = slice(other_start, None)
    tokens = np.concatenate([row.tokens[:start], other.tokens[answer]])
    weights = np.concatenate([row.weights[:start], other.weights[answer]])
    end = None if other.end is None else start + other.end - other_start
    return Row(tokens, weights, end, row.source)
