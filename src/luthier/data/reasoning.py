"""The thinking before an answer, wherever a row keeps it: trained like the answer, hidden from the loss, or taken out.

It stands in a column (rationale, reasoning), in a key of a message that some templates have a place for
(reasoning_content), or in `<think>…</think>` within an answer. Hidden thinking is there to be read: the answer is
learnt as what follows it. (Wei et al. 2022, arXiv:2201.11903, train and prompt with it; Hsieh et al. 2023, "Distilling
Step-by-Step", arXiv:2305.02301, weigh answer and rationale apart.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from luthier.data.records import Conversation, Message, PromptAnswer, Record
from luthier.data.spans import Span

Policy = Literal["trained", "hidden", "stripped"]
THINK = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
_CLOSE = "</think>"
_SPACE = re.compile(r"\s*")
LEAD, END = "The answer is ", "."
"""What stands around an answer that follows its rationale, as in FLAN."""


def with_rationale(rationale: str, answer: str) -> tuple[str, str]:
    """Return (reasoning, whole answer) of a row that keeps its rationale in a column."""
    if not rationale.strip():
        return "", answer
    return f"{rationale}\n", f"{rationale}\n{LEAD}{answer}{END}"


def has_reasoning(record: Record) -> bool:
    """Return whether an answer of the record is thought about."""
    if isinstance(record, PromptAnswer):
        return bool(record.reasoning) or THINK.search(record.answer) is not None
    if not isinstance(record, Conversation):
        return False
    return any(m.role == "assistant" and (m.reasoning or THINK.search(m.content)) for m in record.messages)


def stripped(record: Record) -> Record:
    """Return the record with its answers alone."""
    if isinstance(record, PromptAnswer):
        answer = record.answer
        if record.reasoning:
            answer = answer[len(record.reasoning) :].removeprefix(LEAD).removesuffix(END)
        history = tuple((asked, THINK.sub("", said)) for asked, said in record.history)
        return replace(record, answer=THINK.sub("", answer), reasoning="", history=history)
    if isinstance(record, Conversation):
        return replace(record, messages=tuple(map(_answer_alone, record.messages)))
    return record


def _answer_alone(message: Message) -> Message:
    if message.role != "assistant":
        return message
    return replace(message, content=THINK.sub("", message.content), reasoning="")


def hidden_ranges(
    record: Conversation | PromptAnswer, text: str, spans: Sequence[Span], wanted: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yield the characters [start, end) of a rendered row that are reasoning, within the spans of its answers.

    Args:
        wanted: which message each span belongs to; only conversations have several.
    """
    for place, span in enumerate(spans):
        inside = text[span.start : span.end]
        for found in THINK.finditer(inside):
            yield span.start + found.start(), span.start + found.end()
        close = inside.find(_CLOSE)
        if close >= 0 and "<think>" not in inside[:close]:  # the template opens it in the prompt
            yield span.start, _behind(text, span.start + close + len(_CLOSE), span.end)
        thought = _thought(record, wanted[place] if place < len(wanted) else None).strip()
        if thought:
            start = text.find(thought, span.start, span.end)  # it comes first in an answer
            if start >= 0:
                yield start, _behind(text, start + len(thought), span.end)


def _thought(record: Conversation | PromptAnswer, index: int | None) -> str:
    if isinstance(record, PromptAnswer):
        return record.reasoning
    return record.messages[index].reasoning if index is not None else ""


def _behind(text: str, position: int, end: int) -> int:
    """Return the place behind the white space that follows."""
    found = _SPACE.match(text, position, end)
    return found.end() if found is not None else position
