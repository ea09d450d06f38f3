"""Prompts as tokens, for objectives over a model's own answers. Nothing in them is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.errors import DataError, Problem
from luthier.data.prompts import render_prompt
from luthier.data.records import Record
from luthier.data.render import Counts, OnOverlong, Rendered
from luthier.data.store import ExampleStore, StoreBuilder
from luthier.data.tally import Tally, notes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptRenderer:
    """Turn prompts into examples without weights.

    Args:
        max_length: the longest prompt and answer together.
        room: tokens that an answer may take of it.
        on_overlong: what to do with prompts that leave less; "truncate" keeps their ends, where the question stands.
        context: the longest sequence that the model can take, for the advice about longer rows.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        room: int,
        on_overlong: OnOverlong = "error",
        context: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.room = room
        self.on_overlong: OnOverlong = on_overlong
        self.context = context

    @property
    def settings(self) -> dict[str, object]:
        """What the result depends on besides the records and the tokenizer."""
        limits = {"max_length": self.max_length, "room": self.room, "on_overlong": self.on_overlong}
        return {"kind": "prompts", **limits}

    def render_all(self, records: Sequence[Record]) -> Rendered:
        """Render every record.

        Raises:
            DataError: prompts are too long, cannot be written by the template, or leave no room for an answer.
        """
        limit = self.max_length - self.room
        if limit < 1:
            what = f"Answers of up to {self.room} tokens leave no room for a prompt in sequences of {self.max_length}."
            raise DataError(Problem(what, "objective.max_new_tokens", f"set it to less than {self.max_length}"))
        tally, builder = Tally(), StoreBuilder()
        for record in records:
            self._keep(np.asarray(render_prompt(self.tokenizer, record), dtype=np.int32), record, limit, builder, tally)
        tally.overlong.raise_if_any(self.max_length, self.context)
        store = builder.build()
        if not len(store):
            what = f"No prompt is left: all {len(records):,} are too long."
            raise DataError(Problem(what, records[0].source if records else "", "raise max_length"))
        return Rendered(store, self._counts(records, store, tally))

    def _keep(self, tokens: np.ndarray, record: Record, limit: int, builder: StoreBuilder, tally: Tally) -> None:
        if not len(tokens):  # a model can only go on from a token
            known = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
            tokens = np.array([t for t in known if isinstance(t, int)][:1], dtype=np.int32)
        if len(tokens) > limit:
            if self.on_overlong == "error":
                tally.overlong.add(record.source, len(tokens) + self.room, loses_everything=False)
                return
            if self.on_overlong == "drop":
                tally.dropped += 1
                return
            tally.truncated += 1
            tokens = tokens[-limit:]
        tally.kept += 1
        tally.with_end += 1
        unknown = self.tokenizer.unk_token_id
        tally.unknown += int((tokens == unknown).sum()) if unknown is not None else 0
        builder.add(tokens, np.zeros(len(tokens), dtype=np.float32), record.source)

    def _counts(self, records: Sequence[Record], store: ExampleStore, tally: Tally) -> Counts:
        tokens = int(store.lengths.sum())
        return {
            "rows": len(records),
            "examples": len(store),
            "tokens": tokens,
            "trained_tokens": 0,
            "dropped": tally.dropped,
            "dropped_untrained": 0,
            "truncated": tally.truncated,
            "end_tokens_trained": 0.0,
            "longest": int(store.lengths.max()),
            "median_length": float(np.median(store.lengths)),
            "unknown_tokens": tally.unknown,
            "lost_characters": 0,
            "notes": notes(tally, tokens, self.max_length),
        }
