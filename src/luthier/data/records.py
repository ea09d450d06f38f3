"""What a row of data becomes: a conversation, a prompt with its answer, plain text, or a text with its class.

A prompt→answer row keeps its parts: a model with a chat template sees them as a conversation, one without sees them
plainly. Both forms come from the same record, so nothing is decided before the model is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: who speaks.
        content: the text.
        weight: how much its tokens count in the loss, when the data say so (`train`, `weight`, `loss_weight`).
        reasoning: the thinking before the answer, for templates that have a place for it.
    """

    role: Role
    content: str
    weight: float | None = None
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order. `source` is `file:line`."""

    messages: tuple[Message, ...]
    source: str


@dataclass(frozen=True, slots=True)
class PromptAnswer:
    """One question and its answer, with what may stand around them.

    Attributes:
        prompt: the instruction, question or prompt.
        answer: what the model should write.
        context: a second part of the prompt (Alpaca's `input`, Dolly's `context`).
        system: the system prompt, when the row has one.
        history: earlier (prompt, answer) turns.
        is_instruction: Alpaca's and Dolly's rows, which have a well-known plain form; other rows are kept as they are.
        source: `file:line`.
        reasoning: the thinking that the answer begins with, white space behind it included.
    """

    prompt: str
    answer: str
    context: str
    system: str
    history: tuple[tuple[str, str], ...]
    is_instruction: bool
    source: str
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """One document. `source` is `file:line` of its first line."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, or a pair of texts, and the class it belongs to.

    Attributes:
        text: what is classified.
        pair: the second text of a pair (a hypothesis, another question); empty for a single text.
        label: the class as the data write it; several are joined by commas, a number is written out.
        source: `file:line`.
        labels: all classes that apply, of a row that may have several or none; None for a row with one.
        value: the number, of a row that is rated by one.
    """

    text: str
    pair: str
    label: str
    source: str
    labels: tuple[str, ...] | None = None
    value: float | None = None

    @property
    def every_label(self) -> tuple[str, ...]:
        """The classes that apply, however many."""
        return (self.label,) if self.labels is None else self.labels


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, of which the first is the better.

    Attributes:
        chosen, rejected: the prompt with each answer. Messages that both share have the weight 0.
        margin: by how much the first is better, where the data say so.
        source: `file:line`.
    """

    chosen: Conversation | PromptAnswer
    rejected: Conversation | PromptAnswer
    margin: float | None
    source: str


@dataclass(frozen=True, slots=True)
class Rated:
    """An answer that was found good or bad. `source` is `file:line`."""

    answer: Conversation | PromptAnswer
    is_good: bool
    source: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt that the model is to answer.

    Attributes:
        prompt: the turns so far, or a prompt with an empty answer.
        row: the row as the data have it, for functions that score answers.
        source: `file:line`.
    """

    prompt: Conversation | PromptAnswer
    row: Mapping[str, object]
    source: str


Record = Conversation | PromptAnswer | Text | Labelled | Preference | Rated | Asked


def conversation(record: Conversation | PromptAnswer) -> Conversation:
    """Return the record as turns. A context follows its instruction on a new line, as LLaMA-Factory joins them."""
    if isinstance(record, Conversation):
        return record
    turns = [Message("system", record.system)] if record.system else []
    for prompt, answer in record.history:
        turns += [Message("user", prompt), Message("assistant", answer)]
    prompt = "\n".join(part for part in (record.prompt, record.context) if part)
    turns += [Message("user", prompt), Message("assistant", record.answer)]
    return Conversation(tuple(turns), record.source)


def prompt_of(record: Record) -> Record:
    """Return the record without its last answer: what a model is asked. A document stays whole."""
    if isinstance(record, Preference | Rated | Asked):
        return prompt_of(turns_of(record))
    if isinstance(record, PromptAnswer):
        return PromptAnswer(
            record.prompt, "", record.context, record.system, record.history, record.is_instruction, record.source
        )
    if isinstance(record, Conversation) and record.messages and record.messages[-1].role == "assistant":
        return Conversation(record.messages[:-1], record.source)
    return record


def turns_of(record: Preference | Rated | Asked) -> Conversation | PromptAnswer:
    """Return the one conversation that stands for the record: of two answers the better."""
    if isinstance(record, Preference):
        return record.chosen
    return record.answer if isinstance(record, Rated) else record.prompt


def answer_of(record: Record) -> str:
    """Return the last answer: what the model should have said. Empty for a document; the class of a labelled text."""
    if isinstance(record, Preference | Rated):
        return answer_of(turns_of(record))
    if isinstance(record, PromptAnswer):
        return record.answer
    if isinstance(record, Labelled):
        return record.label
    if isinstance(record, Conversation) and record.messages and record.messages[-1].role == "assistant":
        return record.messages[-1].content
    return ""
