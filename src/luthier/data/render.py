"""Records to tokens and weights: the one place where training, evaluation, chat and serving get their tokens from.

Conversations go through the model's own chat template; which tokens count is found in `spans`. A model without a template
takes prompt→answer rows plainly: Alpaca and Dolly rows with Alpaca's well-known prompt, other rows as BOS + prompt +
answer + EOS with nothing in between, because any separator would be an invention; a prompt that needs a blank before the
answer brings it along. Documents are BOS + text + EOS.

The end of a turn is found by its place, never by its id: pad = eos changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from luthier.core.errors import DataError, Problem
from luthier.data import templates
from luthier.data.encode import Tokens, encode, encode_with_cuts, require_offsets
from luthier.data.overlong import Fitted, Overlong, fit
from luthier.data.problems import ProblemLog
from luthier.data.records import Conversation, PromptAnswer, Record, Text, conversation, prompt_of
from luthier.data.spans import Chat, Span, TemplateRefusal, answer_spans
from luthier.data.store import ExampleStore, StoreBuilder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["assistant", "last", "all"]
CHUNK = 1000


@dataclass(frozen=True)
class Rendered:
    """The examples and what happened on the way to them.

    Attributes:
        store: the examples.
        counts: rows, examples, tokens, trained_tokens, dropped (overlong or untrained), dropped_untrained, truncated,
            windows (examples that are pieces of long documents), end_tokens_trained (share of rows that end with a
            trained end token), longest, median_length, unknown_tokens, notes (sentences for the screen).
    """

    store: ExampleStore
    counts: dict[str, int | float | list[str]]


@dataclass
class _Written:
    """One row as text: what stands in it and which characters are trained.

    Attributes:
        text: what is tokenised.
        spans: what counts, in order.
        everything: every token counts, whatever the spans say.
        is_plain: the tokenizer's BOS goes in front and EOS behind, since no template wrote them.
    """

    text: str
    spans: Sequence[Span]
    everything: bool
    is_plain: bool
    source: str


@dataclass
class _Row:
    """One row as tokens and weights. `end`: position of the token that ends the last trained turn, or None."""

    tokens: np.ndarray
    weights: np.ndarray
    end: int | None
    source: str


@dataclass
class _Tally:
    """Numbers gathered over the rows."""

    log: ProblemLog = field(default_factory=ProblemLog)
    overlong: Overlong = field(default_factory=Overlong)
    untrained: int = 0
    with_end: int = 0
    rows_kept: int = 0
    truncated: int = 0
    dropped: int = 0
    windows: int = 0
    lost_end: int = 0
    unknown: int = 0
    trained: int = 0
    special_text: int = 0
    first_special: str = ""


class Renderer:
    """Turn records into examples.

    Args:
        tokenizer: the model's; a given `chat_template` (a name or a .jinja file) is set on it.
        objective_kind: "sft" trains on answers, "lm" on everything.
        train_on: which answers: all of the assistant's, the last, or every token.
        max_length: the longest example in tokens; None for no limit.
        on_overlong: what to do with longer rows under sft. Under lm they are cut into consecutive windows.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        objective_kind: Literal["sft", "lm"] = "sft",
        train_on: TrainOn = "assistant",
        max_length: int | None = None,
        on_overlong: Literal["error", "drop", "truncate"] = "error",
        chat_template: str | None = None,
    ) -> None:
        require_offsets(tokenizer)
        if chat_template is not None:
            templates.install(tokenizer, chat_template)
        self.tokenizer = tokenizer
        self.is_lm = objective_kind == "lm"
        self.train_on: TrainOn = "all" if self.is_lm else train_on
        self.max_length = max_length
        self.on_overlong = on_overlong
        self._prefix = templates.special_prefix(tokenizer)
        self._end_ids = frozenset({*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()})

    def render_all(self, records: Sequence[Record]) -> Rendered:
        """Render every record.

        Raises:
            DataError: rows are too long, cannot be written by the template, or hold nothing to train on.
        """
        tally, builder = _Tally(), StoreBuilder()
        for row in self._rows(records, tally):
            self._keep(row, builder, tally)
        tally.log.raise_errors()
        tally.overlong.raise_if_any(self.max_length or 0)
        store = builder.build()
        if not len(store):
            raise DataError(_nothing_left(records, tally, self.train_on))
        return Rendered(store, self._counts(records, store, tally))

    # ---- rows ---------------------------------------------------------------------------------------------------

    def _rows(self, records: Sequence[Record], tally: _Tally) -> Iterator[_Row]:
        for start in range(0, len(records), CHUNK):
            written = []
            for record in records[start : start + CHUNK]:
                try:
                    written.append(self._write(record))
                except TemplateRefusal as refusal:
                    tally.log.add(
                        "template",
                        f"The row cannot be written: {refusal}.",
                        record.source,
                        _refusal_remedy(str(refusal)),
                    )
            cuts = [sorted({s.start for s in w.spans if not w.everything}) for w in written]
            for row, tokens in zip(written, encode_with_cuts(self.tokenizer, [w.text for w in written], cuts)):
                yield self._weigh(row, tokens)

    def _write(self, record: Record) -> _Written:
        if isinstance(record, Text):
            if not self.is_lm:
                raise DataError(_text_under_sft(record))
            return _Written(record.text, (), everything=True, is_plain=True, source=record.source)
        chat = chat_for(self.tokenizer, record)
        if chat is None:
            assert isinstance(record, PromptAnswer)
            prompt = plain_prompt(record)
            text = prompt + record.answer
            spans = (Span(len(prompt), len(text), 1.0),)
            return _Written(text, spans, self.train_on == "all", is_plain=True, source=record.source)
        turns = chat.turns(record)
        if self.train_on == "all":
            return _Written(chat.text(turns), (), everything=True, is_plain=False, source=record.source)
        text, spans = answer_spans(chat, turns, wanted_turns(record, self.train_on))
        return _Written(text, spans, everything=False, is_plain=False, source=record.source)

    def _weigh(self, row: _Written, tokens: Tokens) -> _Row:
        weights = np.zeros(len(tokens), dtype=np.float32)
        if row.everything:
            weights[:] = 1.0
        end = None
        for span in row.spans:
            first = int(np.searchsorted(tokens.ends, span.start, side="right"))
            last = int(np.searchsorted(tokens.starts, span.end, side="left"))
            closing = self._turn_end(tokens, row.text, first, last)
            weights[first : last if closing is None else closing + 1] = span.weight
            end = closing if span.weight else end
        ids = tokens.ids
        if row.is_plain:
            ids, weights, end = self._with_ends(ids, weights)
        elif row.everything:
            end = self._last_special(ids)
        weights[:1] = 0.0  # nothing precedes the first token, so it is never predicted
        bos = self.tokenizer.bos_token_id
        if bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
            raise DataError(_double_bos(row.source, self.tokenizer))
        return _Row(ids, weights, end, row.source)

    def _turn_end(self, tokens: Tokens, text: str, first: int, last: int) -> int | None:
        """Return the position of the token that ends the turn: inside the span's tail, or behind it after white space."""
        if last > first and int(tokens.ids[last - 1]) in self._end_ids:
            return last - 1
        for position in range(last, len(tokens)):
            if int(tokens.ids[position]) in self._end_ids:
                return position
            if text[tokens.starts[position] : tokens.ends[position]].strip():
                return None
        return None

    def _last_special(self, ids: np.ndarray) -> int | None:
        tail = range(len(ids) - 1, max(len(ids) - 4, 0), -1)
        return next((i for i in tail if int(ids[i]) in self._end_ids), None)

    def _with_ends(self, ids: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, int | None]:
        """Put the tokenizer's BOS in front, unless the text begins with it, and EOS behind, unless it ends with it."""
        prefix = [] if len(ids) and self._prefix and int(ids[0]) == self._prefix[-1] else self._prefix
        eos = self.tokenizer.eos_token_id
        suffix = [] if eos is None or (len(ids) and int(ids[-1]) == eos) else [eos]
        ids = np.concatenate([np.array(prefix, np.int32), ids, np.array(suffix, np.int32)])
        ones = np.ones(len(suffix), np.float32)
        weights = np.concatenate([np.zeros(len(prefix), np.float32), weights, ones])
        return ids, weights, None if eos is None else len(ids) - 1

    # ---- length, counts -----------------------------------------------------------------------------------------

    def _keep(self, row: _Row, builder: StoreBuilder, tally: _Tally) -> None:
        if not row.weights.any():
            tally.untrained += 1
            what = "Nothing in the row is trained on, so it is left out."
            tally.log.warn("untrained", what, row.source, "see which messages have weight 0 or train: false")
            return
        length = len(row.tokens)
        limit = self.max_length
        pieces: Sequence[Fitted] = (Fitted(0, length),)
        if limit is not None and length > limit:
            lost_all = not row.weights[:limit].any()
            pieces = fit(length, limit, "windows" if self.is_lm else self.on_overlong, lost_all)
            if self.is_lm:
                tally.windows += len(pieces)
            elif self.on_overlong == "error":
                tally.overlong.add(row.source, length, lost_all)
            elif pieces:
                tally.truncated += 1
                tally.lost_end += row.end is not None and row.end >= limit
            else:
                tally.dropped += 1
        for piece in pieces:
            tokens, weights = row.tokens[piece.start : piece.end], row.weights[piece.start : piece.end].copy()
            weights[0] = 0.0
            tally.trained += int(np.count_nonzero(weights))
            builder.add(tokens, weights, row.source)
        if pieces:
            tally.rows_kept += 1
            tally.with_end += row.end is not None and row.end < pieces[-1].end and bool(row.weights[row.end])
            unknown = self.tokenizer.unk_token_id
            tally.unknown += int((row.tokens == unknown).sum()) if unknown is not None else 0

    def _counts(
        self, records: Sequence[Record], store: ExampleStore, tally: _Tally
    ) -> dict[str, int | float | list[str]]:
        lengths = store.lengths
        counts: dict[str, int | float | list[str]] = {
            "rows": len(records),
            "examples": len(store),
            "tokens": int(lengths.sum()),
            "trained_tokens": tally.trained,
            "dropped": tally.dropped + tally.untrained,
            "dropped_untrained": tally.untrained,
            "truncated": tally.truncated,
            "windows": tally.windows,
            "end_tokens_trained": tally.with_end / max(tally.rows_kept, 1),
            "longest": int(lengths.max()),
            "median_length": float(np.median(lengths)),
            "unknown_tokens": tally.unknown,
        }
        return counts | {"notes": self._notes(records, counts, tally)}

    def _notes(self, records: Sequence[Record], counts: Mapping[str, object], tally: _Tally) -> list[str]:
        notes = [str(warning) for warning in tally.log.all_warnings()]
        plain = [r for r in records[:CHUNK] if isinstance(r, PromptAnswer)] if not self.tokenizer.chat_template else []
        if any(r.is_instruction for r in plain):
            notes.append(
                "the model has no chat template: rows are written with Alpaca's prompt (### Instruction: … ### Response:)"
            )
        elif plain:
            notes.append(
                "the model has no chat template: a row is its prompt followed by its answer, with nothing between them"
            )
        if tally.windows:
            notes.append(
                f"long documents were cut into {tally.windows:,} windows of at most {self.max_length} tokens; nothing is lost"
            )
        if tally.dropped:
            notes.append(f"{tally.dropped:,} rows longer than {self.max_length} tokens were left out")
        if tally.truncated:
            notes.append(
                f"{tally.truncated:,} rows were cut to {self.max_length} tokens; {tally.lost_end:,} of them lost their end token"
            )
        if tally.with_end < tally.rows_kept:
            share = tally.with_end / max(tally.rows_kept, 1)
            notes.append(
                f"only {share:.0%} of the rows end with a trained end token; the model may not learn when to stop"
            )
        if tally.unknown:
            share = tally.unknown / max(int(str(counts["tokens"])), 1)
            notes.append(f"{tally.unknown:,} tokens ({share:.1%}) are unknown to the tokenizer")
        return notes


# ---- shared with chat, evaluation and serving ---------------------------------------------------------------------------


def chat_for(tokenizer: PreTrainedTokenizerBase, record: Conversation | PromptAnswer) -> Chat | None:
    """Return the template a record is written with; None for a plain prompt→answer row.

    Raises:
        DataError: a conversation, and the model has no template.
    """
    if tokenizer.chat_template:
        return Chat(tokenizer, tokenizer.get_chat_template())
    if isinstance(record, Conversation):
        raise templates.no_template(tokenizer, record)
    return Chat(tokenizer, templates.template_text(tokenizer, "alpaca")) if record.is_instruction else None


def plain_prompt(record: PromptAnswer) -> str:
    """Return what stands before the answer when there is no template."""
    return "\n".join(part for part in (record.system, record.prompt, record.context) if part)


def wanted_turns(record: Conversation | PromptAnswer, train_on: TrainOn) -> dict[int, float]:
    """Return the weight of each message that counts. What the data say about a message wins over its role."""
    messages = conversation(record).messages
    weights = {i: m.weight if m.weight is not None else float(m.role == "assistant") for i, m in enumerate(messages)}
    if train_on == "last":
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=None)
        weights = {} if last is None else {last: weights[last]}
    return {i: weight for i, weight in weights.items() if weight > 0}


def render_prompt(tokenizer: PreTrainedTokenizerBase, record: Record) -> list[int]:
    """Return the tokens a model is given to answer: the record without its last answer, and the generation prompt.

    A training row of the same record begins with exactly these tokens.

    Raises:
        DataError: the template cannot write the prompt, or there is none for a conversation.
    """
    if isinstance(record, Text):
        return [*templates.special_prefix(tokenizer), *encode(tokenizer, [record.text])[0].ids.tolist()]
    chat = chat_for(tokenizer, record)
    if chat is None:
        assert isinstance(record, PromptAnswer)
        return [*templates.special_prefix(tokenizer), *encode(tokenizer, [plain_prompt(record)])[0].ids.tolist()]
    turns = chat.turns(record)
    asked = turns[:-1] if isinstance(record, PromptAnswer) or prompt_of(record) is not record else turns
    try:
        text = chat.text(asked, add_generation_prompt=True)
    except TemplateRefusal as refusal:
        raise DataError(
            Problem(f"The prompt cannot be written: {refusal}.", record.source, _refusal_remedy(str(refusal)))
        ) from refusal
    return encode(tokenizer, [text])[0].ids.tolist()


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's EOS and the one its template puts after a turn."""
    found = {tokenizer.eos_token_id} - {None}
    if tokenizer.chat_template:
        chat = Chat(tokenizer, tokenizer.get_chat_template())
        try:
            text, spans = answer_spans(
                chat, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}], {1: 1.0}
            )
        except TemplateRefusal:
            return sorted(found)
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        after = [i for i in encode(tokenizer, [text[spans[0].start :]])[0].ids.tolist() if i in special]
        found |= set(after[:1])
    return sorted(found)


# ---- messages -------------------------------------------------------------------------------------------------------


def _refusal_remedy(refusal: str) -> str:
    if "system" in refusal.lower():
        return "this model's template takes no system message: move its text into the first user message"
    if "alternate" in refusal.lower():
        return "this model's template wants user and assistant in turn: merge neighbouring messages of one role"
    return "mend the row, or choose another template: model.chat_template: chatml"


def _text_under_sft(record: Text) -> Problem:
    return Problem(
        "The row is plain text: it has no answer to train on, which the objective sft needs.",
        record.source,
        "train on the whole text with objective=lm",
    )


def _double_bos(source: str, tokenizer: PreTrainedTokenizerBase) -> Problem:
    return Problem(
        f"The sequence begins with two {tokenizer.bos_token}: the template writes one and the text another.",
        source,
        f"remove {tokenizer.bos_token} from the data, or one of the two from the chat template",
    )


def _nothing_left(records: Sequence[Record], tally: _Tally, train_on: TrainOn) -> Problem:
    first = records[0].source if records else ""
    if tally.untrained:
        return Problem(
            f"Not one token is trained on in any of the {tally.untrained:,} rows (train_on: {train_on}).",
            first,
            "give assistant messages a weight above 0, or set train_on: all",
        )
    return Problem(
        f"No row is left: all {len(records):,} are too long.", first, "raise max_length, or shorten the rows"
    )
