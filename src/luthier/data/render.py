"""Records to tokens and weights: the one place where training, evaluation, chat and serving get their tokens from.

Conversations go through the model's own chat template; which characters count is found in `spans`. A model without a
template takes prompt→answer rows plainly: Alpaca and Dolly rows with Alpaca's well-known prompt, other rows as BOS +
prompt + answer + EOS with nothing in between, because any separator would be an invention; a prompt that needs a blank
before the answer brings it along. Documents are BOS + text + EOS.

The end of a turn is found by its place, never by its id alone: pad = eos changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from luthier.core.errors import DataError
from luthier.data import templates
from luthier.data.encode import Tokens, encode_with_cuts, known_characters, lost_characters, require_offsets
from luthier.data.overlong import Fitted, fit
from luthier.data.prompts import (
    TrainOn,
    chat_for,
    plain_prompt,
    refusal_remedy,
    render_prompt,
    stop_token_ids,
    turn_ends,
    wanted_turns,
    with_prefix,
)
from luthier.data.reasoning import hidden_ranges
from luthier.data.records import Conversation, PromptAnswer, Record, Text
from luthier.data.spans import Chat, Span, TemplateRefusal, Turn, answer_spans
from luthier.data.store import ExampleStore, StoreBuilder
from luthier.data.tally import (
    Tally,
    double_bos,
    notes,
    nothing_left,
    text_under_sft,
    warn_of_another_prompt,
    warn_of_unused_weights,
)
from luthier.data.vocabulary import eos_id, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Rendered", "Renderer", "TrainOn", "render_prompt", "stop_token_ids"]

CHUNK = 1000
OnOverlong = Literal["error", "drop", "truncate"]
Counts = dict[str, int | float | list[str]]


@dataclass(frozen=True)
class Rendered:
    """The examples and what happened on the way to them.

    Attributes:
        store: the examples.
        counts: rows, examples, tokens, trained_tokens, dropped (too long or untrained), dropped_untrained, truncated,
            windows (examples that are pieces of long documents), end_tokens_trained (share of rows that end with a
            trained end token), longest, median_length, unknown_tokens, lost_characters, notes (sentences for the
            screen).
        origin: where the tokens were read from or are kept, in a few words; nothing for those that are just made.
    """

    store: ExampleStore
    counts: Counts
    origin: str = ""


@dataclass(frozen=True)
class _Written:
    """One row as text.

    Attributes:
        text: what is tokenised.
        spans: the characters that count, in order; None when all do.
        chat: the template that wrote it; without one the tokenizer's BOS goes in front and EOS behind.
        source: `file:line`.
        hidden: characters within the spans that are read and not learnt.
    """

    text: str
    spans: Sequence[Span] | None
    chat: Chat | None
    source: str
    hidden: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Row:
    """One row as tokens and weights. `end`: position of the token that ends the last trained turn, or None."""

    tokens: np.ndarray
    weights: np.ndarray
    end: int | None
    source: str


class Renderer:
    """Turn records into examples.

    Args:
        tokenizer: the model's; a given `chat_template` (a name or a .jinja file) is set on it.
        objective_kind: "sft" trains on answers, "lm" on everything.
        train_on: which answers: all of the assistant's, the last, or every token.
        max_length: the longest example in tokens; None for no limit.
        context: the longest sequence that the model can take, for the advice about longer rows.
        on_overlong: what to do with longer rows under sft. Under lm they are cut into consecutive windows.
        hides_reasoning: the thinking before an answer is not learnt; not with `train_on` "all".

    Raises:
        ModelError: no such template, or a tokenizer that cannot say which characters a token stands for.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        objective_kind: Literal["sft", "lm"] = "sft",
        train_on: TrainOn = "assistant",
        max_length: int | None = None,
        on_overlong: OnOverlong = "error",
        chat_template: str | None = None,
        context: int | None = None,
        hides_reasoning: bool = False,
    ) -> None:
        require_offsets(tokenizer)
        if chat_template is not None:
            templates.install(tokenizer, chat_template)
        self.tokenizer = tokenizer
        self.is_lm = objective_kind == "lm"
        self.train_on: TrainOn = "all" if self.is_lm else train_on
        self.max_length = max_length
        self.context = context
        self.on_overlong: OnOverlong = on_overlong
        self.hides_reasoning = hides_reasoning
        self._known = known_characters(tokenizer)
        self._ends: dict[str, frozenset[int]] = {}
        special = sorted(special_tokens(tokenizer).values(), key=len, reverse=True)
        self._special_text = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    @property
    def settings(self) -> dict[str, object]:
        """What the result depends on besides the records and the tokenizer."""
        return {
            "kind": "lm" if self.is_lm else "sft",
            "train_on": self.train_on,
            "max_length": self.max_length,
            "on_overlong": self.on_overlong,
            "hides_reasoning": self.hides_reasoning,
        }

    def render_all(self, records: Sequence[Record]) -> Rendered:
        """Render every record.

        Raises:
            DataError: rows are too long, cannot be written by the template, or hold nothing to train on.
        """
        tally, builder = Tally(), StoreBuilder()
        for row in self.rows(records, tally):
            if row is not None:
                self._keep(row, builder, tally)
        tally.log.raise_errors()
        tally.overlong.raise_if_any(self.max_length or 0, self.context)
        store = builder.build()
        if not len(store):
            raise DataError(nothing_left(records, tally, self.train_on))
        return Rendered(store, self._counts(records, store, tally))

    # ---- text -------------------------------------------------------------------------------------------------------

    def rows(self, records: Sequence[Record], tally: Tally) -> Iterator[Row | None]:
        """Yield the tokens and weights of each record; None for one that the template refuses, which is logged."""
        for start in range(0, len(records), CHUNK):
            written: list[_Written | None] = []
            for record in records[start : start + CHUNK]:
                try:
                    written.append(self._write(record, tally))
                except TemplateRefusal as refusal:
                    what = f"The row cannot be written: {refusal}."
                    tally.log.add("template", what, record.source, refusal_remedy(refusal))
                    written.append(None)
            good = [row for row in written if row is not None]
            bounds = [[(span.start, span.end) for span in row.spans or ()] for row in good]
            encoded = iter(encode_with_cuts(self.tokenizer, [row.text for row in good], bounds, self._known))
            for row in written:
                if row is None:
                    yield None
                    continue
                tally.lost += lost_characters(row.text, self._known)
                yield self._weigh(row, next(encoded), tally)

    def _write(self, record: Record, tally: Tally) -> _Written:
        if isinstance(record, Text):
            if not self.is_lm:
                raise DataError(text_under_sft(record))
            self._look_for_special(record.text, record.source, tally)
            return _Written(record.text, None, None, record.source)
        assert isinstance(record, Conversation | PromptAnswer), "classes and preferences have renderers of their own"
        chat = chat_for(self.tokenizer, record)
        if chat is None:
            assert isinstance(record, PromptAnswer), "a conversation without a template is refused"
            tally.plain += 1
            prompt = plain_prompt(record)
            text = prompt + record.answer
            self._look_for_special(text, record.source, tally)
            spans = None if self.train_on == "all" else (Span(len(prompt), len(text), 1.0),)
            return _Written(text, spans, None, record.source, self._hidden(record, text, spans, ()))
        tally.alpaca += not self.tokenizer.chat_template
        turns = chat.turns(record)
        hidden: Sequence[tuple[int, int]] = ()
        if self.train_on == "all":
            text, spans = chat.text(turns), None
            warn_of_unused_weights(record, tally)
        else:
            wanted = wanted_turns(record, self.train_on)
            text, spans = answer_spans(chat, turns, wanted)
            hidden = self._hidden(record, text, spans, sorted(wanted))
            warn_of_another_prompt(chat, turns, text, record.source, tally)
        self._check_turns(turns, text, record.source, tally)
        return _Written(text, spans, chat, record.source, hidden)

    def _hidden(
        self, record: Conversation | PromptAnswer, text: str, spans: Sequence[Span] | None, wanted: Sequence[int]
    ) -> Sequence[tuple[int, int]]:
        return tuple(hidden_ranges(record, text, spans, wanted)) if self.hides_reasoning and spans else ()

    def _check_turns(self, turns: Sequence[Turn], text: str, source: str, tally: Tally) -> None:
        """Warn of what the template left out and of text that is read as special tokens."""
        for index, turn in enumerate(turns):
            self._look_for_special(turn["content"], source, tally)
            left_out = turn["role"] != "assistant" and turn["content"].strip() not in text
            if left_out:
                what = f"The chat template leaves out the {turn['role']} message ({index + 1})."
                tally.log.warn(f"left out {turn['role']}", what, source)
            thought = turn.get("reasoning_content", "").strip()
            if thought and index == len(turns) - 1 and thought not in text:
                tally.log.warn("left out thinking", "The chat template leaves out the thinking of the answer.", source)

    def _look_for_special(self, text: str, source: str, tally: Tally) -> None:
        found = self._special_text.search(text)
        if found:
            what = f'The text contains "{found.group()}", which is read as that special token.'
            tally.log.warn("special text", what, source)

    # ---- tokens -----------------------------------------------------------------------------------------------------

    def _weigh(self, row: _Written, tokens: Tokens, tally: Tally) -> Row:
        weights = np.full(len(tokens), 1.0 if row.spans is None else 0.0, dtype=np.float32)
        ends = self._turn_ends(row.chat)
        end = self._last_end(tokens, ends) if row.spans is None else None
        for span in row.spans or ():
            first, stop = tokens.between(span.start, span.end)
            end = _closing(tokens, row.text, first, stop, ends)
            weights[first : stop if end is None else end + 1] = span.weight
        if row.hidden:
            before = np.count_nonzero(weights)
            for start, stop in row.hidden:  # a token that reaches over into the answer is the answer's
                weights[(tokens.starts >= start) & (tokens.ends <= stop)] = 0.0
            tally.hidden_rows += 1
            tally.hidden_tokens += int(before - np.count_nonzero(weights))
        ids = tokens.ids
        if row.chat is None:
            ids, weights, end = self._with_ends(ids, weights)
        weights[:1] = 0.0  # nothing precedes the first token, so it is never predicted
        bos = self.tokenizer.bos_token_id
        if bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
            raise DataError(double_bos(row.source, self.tokenizer))
        return Row(ids, weights, end, row.source)

    def _turn_ends(self, chat: Chat | None) -> frozenset[int]:
        key = chat.template if chat is not None else ""
        if key not in self._ends:
            self._ends[key] = turn_ends(self.tokenizer, chat)
        return self._ends[key]

    def _last_end(self, tokens: Tokens, ends: frozenset[int]) -> int | None:
        last_few = range(len(tokens) - 1, max(len(tokens) - 4, 0), -1)
        return next((i for i in last_few if int(tokens.ids[i]) in ends), None)

    def _with_ends(self, ids: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, int | None]:
        """Put BOS in front and EOS behind, each unless the text has it already, where the tokenizer knows them."""
        whole = with_prefix(self.tokenizer, ids)
        weights = np.concatenate([np.zeros(len(whole) - len(ids), np.float32), weights])
        eos = eos_id(self.tokenizer)
        if eos is None:
            return whole, weights, None
        if not len(whole) or int(whole[-1]) != eos:
            whole = np.append(whole, np.int32(eos))
            weights = np.append(weights, np.float32(1.0))
        return whole, weights, len(whole) - 1

    # ---- length -----------------------------------------------------------------------------------------------------

    def _keep(self, row: Row, builder: StoreBuilder, tally: Tally) -> None:
        """Add the row, or the pieces of it that fit."""
        if not row.weights.any():
            tally.untrained += 1
            what = "Nothing in the row is trained on, so it is left out."
            tally.log.warn("untrained", what, row.source, "see which messages have weight 0 or train: false")
            return
        pieces = self._pieces(row, tally)
        for piece in pieces:
            tokens, weights = row.tokens[piece.start : piece.end], row.weights[piece.start : piece.end].copy()
            weights[0] = 0.0
            tally.trained += int(np.count_nonzero(weights))
            builder.add(tokens, weights, row.source)
        if pieces:
            tally.kept += 1
            tally.with_end += row.end is not None and row.end < pieces[-1].end and bool(row.weights[row.end])
            unknown = self.tokenizer.unk_token_id
            tally.unknown += int((row.tokens == unknown).sum()) if unknown is not None else 0

    def _pieces(self, row: Row, tally: Tally) -> Sequence[Fitted]:
        length, limit = len(row.tokens), self.max_length
        if limit is None or length <= limit:
            return (Fitted(0, length),)
        if self.is_lm:
            pieces = fit(length, limit, "windows", loses_everything=False)
            tally.windows += len(pieces)
            return pieces
        loses_everything = not row.weights[:limit].any()
        pieces = fit(length, limit, self.on_overlong, loses_everything)
        if self.on_overlong == "error":
            tally.overlong.add(row.source, length, loses_everything)
        elif pieces:
            tally.truncated += 1
            tally.lost_end += row.end is not None and row.end >= limit
        else:
            tally.dropped += 1
        return pieces

    # ---- counts -----------------------------------------------------------------------------------------------------

    def _counts(self, records: Sequence[Record], store: ExampleStore, tally: Tally) -> Counts:
        lengths = store.lengths
        tokens = int(lengths.sum())
        return {
            "rows": len(records),
            "examples": len(store),
            "tokens": tokens,
            "trained_tokens": tally.trained,
            "dropped": tally.dropped + tally.untrained,
            "dropped_untrained": tally.untrained,
            "truncated": tally.truncated,
            "windows": tally.windows,
            "end_tokens_trained": tally.with_end / max(tally.kept, 1),
            "longest": int(lengths.max()),
            "median_length": float(np.median(lengths)),
            "unknown_tokens": tally.unknown,
            "lost_characters": tally.lost,
            "notes": notes(tally, tokens, self.max_length),
        }


def _closing(tokens: Tokens, text: str, first: int, stop: int, ends: frozenset[int]) -> int | None:
    """Return the position of the last token that ends the turn of tokens [first, stop).

    It stands at the end of the span (a template's own marks often include it, and a line break after it) or behind it;
    only white space may come between. Some templates close a turn with several tokens in a row.
    """
    found = None
    for position in range(stop - 1, first - 1, -1):
        if int(tokens.ids[position]) in ends:
            found = position
        if found is not None or tokens.text(text, position).strip():
            break
    if found is None:
        for position in range(stop, len(tokens)):
            if int(tokens.ids[position]) in ends:
                found = position
            if found is not None or tokens.text(text, position).strip():
                break
    while found is not None and found + 1 < len(tokens) and int(tokens.ids[found + 1]) in ends:
        found += 1
    return found
