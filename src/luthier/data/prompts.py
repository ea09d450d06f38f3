"""What training, evaluation, chat and serving share: which template writes a record, the prompt, what ends a turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from luthier.core.errors import DataError, Problem
from luthier.data.encode import encode
from luthier.data.records import (
    Asked,
    Conversation,
    Labelled,
    Preference,
    PromptAnswer,
    Rated,
    Record,
    Text,
    conversation,
    prompt_of,
    turns_of,
)
from luthier.data.spans import Chat, TemplateRefusal
from luthier.data.templates import no_template, template_text
from luthier.data.vocabulary import eos_id, special_prefix, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["assistant", "last", "all"]
_PROBE = ("user", "assistant", "user", "assistant")


def chat_for(tokenizer: PreTrainedTokenizerBase, record: Conversation | PromptAnswer) -> Chat | None:
    """Return the template a record is written with; None for a plain prompt→answer row.

    Raises:
        DataError: a conversation, and the model has no template.
    """
    if tokenizer.chat_template:
        return Chat(tokenizer, tokenizer.get_chat_template())
    if isinstance(record, Conversation):
        raise no_template(tokenizer, record)
    return Chat(tokenizer, template_text(tokenizer, "alpaca")) if record.is_instruction else None


def plain_prompt(record: PromptAnswer) -> str:
    """Return what stands before the answer when there is no template."""
    return "\n".join(part for part in (record.system, record.prompt, record.context) if part)


def with_prefix(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> np.ndarray:
    """Put the tokenizer's own BOS in front, unless the text begins with it already."""
    prefix = special_prefix(tokenizer)
    if not prefix or (len(ids) and int(ids[0]) == prefix[-1]):
        return ids
    return np.concatenate([np.array(prefix, np.int32), ids])


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
    assert not isinstance(record, Labelled), "a classifier is asked through data/labelled.py"
    if isinstance(record, Preference | Rated | Asked):
        return render_prompt(tokenizer, turns_of(record))
    chat = None if isinstance(record, Text) else chat_for(tokenizer, record)
    if chat is None or isinstance(record, Text):
        assert not isinstance(record, Conversation)
        text = record.text if isinstance(record, Text) else plain_prompt(record)
        return with_prefix(tokenizer, encode(tokenizer, [text])[0].ids).tolist()
    turns = chat.turns(record)
    asked = turns[:-1] if prompt_of(record) is not record else turns
    try:
        text = chat.text(asked, add_generation_prompt=True)
    except TemplateRefusal as refusal:
        what = f"The prompt cannot be written: {refusal}."
        raise DataError(Problem(what, record.source, refusal_remedy(refusal))) from refusal
    return encode(tokenizer, [text])[0].ids.tolist()


def refusal_remedy(refusal: TemplateRefusal) -> str:
    """Return what to do about a conversation that a template does not take."""
    reason = str(refusal).lower()
    if "system" in reason:
        return "this model's template takes no system message: move its text into the first user message"
    if "alternate" in reason:
        return "this model's template wants user and assistant in turn: merge neighbouring messages of one role"
    return "mend the row, or choose another template: model.chat_template: chatml"


def turn_ends(tokenizer: PreTrainedTokenizerBase, chat: Chat | None) -> frozenset[int]:
    """Return the tokens that may end an answer: EOS, and those that the template puts behind one.

    A short conversation is rendered and looked at. A template whose last answer has no token behind it ends nothing,
    even though the next turn's first token follows an earlier answer.
    """
    eos = eos_id(tokenizer)
    found = set() if eos is None else {eos}
    if chat is None:
        return frozenset(found)
    turns = [{"role": role, "content": f"{role} says {i}"} for i, role in enumerate(_PROBE)]
    try:
        text = chat.text(turns)
    except TemplateRefusal:
        return frozenset(found)
    special = special_tokens(tokenizer)
    first, last = (text.partition(turn["content"])[2] for turn in turns[1::2])
    at_end = set(encode(tokenizer, [last])[0].ids.tolist()) & special.keys()
    if not at_end:
        return frozenset(found)
    between = encode(tokenizer, [first.lstrip()])[0].ids.tolist()
    return frozenset(found | at_end | (set(between[:1]) & special.keys()))


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens at which generation should stop: EOS and what the tokenizer's template ends an answer with."""
    chat = Chat(tokenizer, tokenizer.get_chat_template()) if tokenizer.chat_template else None
    return sorted(turn_ends(tokenizer, chat))
