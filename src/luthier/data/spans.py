"""Find, in the text that a chat template writes, the spans that the assistant wrote.

The rule: what follows the generation prompt, up to and including the token that ends the turn, is what the model has to
produce when it is used; so that is what is trained. A template's own `{% generation %}` marks say it directly. Where a
template has none, the prompt of each answer is rendered as chat would send it, and a mark is planted at the end of each
answer; both are looked up in the text. Nothing is searched by content, so an answer that also occurs elsewhere, or a
template that trims, drops earlier thinking or adds a system prompt, cannot mislead it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError, Problem
from luthier.data.records import Conversation, PromptAnswer, conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK_CANDIDATES = ("\ue0f0", "\uf0e1", "\uf8d2", "\U000f0ace")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
Turn = dict[str, str]


class TemplateRefusal(Exception):
    """The template cannot write this conversation, or its answers cannot be found in what it wrote."""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) of the rendered text that count with `weight`. The end-of-turn token may follow `end`."""

    start: int
    end: int
    weight: float


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template, or another one in its place."""

    tokenizer: PreTrainedTokenizerBase
    template: str

    @property
    def is_marked(self) -> bool:
        """Say whether the template marks what the assistant writes."""
        return bool(_GENERATION.search(self.template))

    def turns(self, record: Conversation | PromptAnswer) -> list[Turn]:
        """Return the messages as templates want them. Only a template that asks for `input` gets it apart."""
        turns: list[Turn] = []
        for message in conversation(record).messages:
            turn = {"role": message.role, "content": message.content}
            if message.reasoning:
                turn["reasoning_content"] = message.reasoning
            turns.append(turn)
        if isinstance(record, PromptAnswer) and record.context and "message['input']" in self.template:
            turns[-2] |= {"content": record.prompt, "input": record.context}
        return turns

    def text(self, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        """Return what the template writes.

        Raises:
            TemplateRefusal: the template raised an error.
            ModelError: it cannot be read at all.
        """
        return self._render(turns, add_generation_prompt)[0]

    def marked_text(self, turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int]]]:
        """Return what the template writes and the characters it marks as the assistant's."""
        text, marks = self._render(turns, marks=True)
        return text, [(start, end) for start, end in marks if end > start]

    def _render(
        self, turns: Sequence[Turn], add_generation_prompt: bool = False, marks: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateError, TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        special: dict[str, Any] = self.tokenizer.special_tokens_map
        try:
            texts, found = render_jinja_template(
                conversations=[list(turns)],
                chat_template=self.template,
                add_generation_prompt=add_generation_prompt,
                return_assistant_tokens_mask=marks,
                **special,
            )
        except TemplateSyntaxError as error:
            what = f"The chat template is no valid Jinja: {error.message} (line {error.lineno})."
            remedy = "mend it, or choose another: model.chat_template: chatml"
            raise ModelError(Problem(what, self.tokenizer.name_or_path, remedy)) from error
        except (TemplateError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            # Templates are programs of others; whatever they raise is about this conversation.
            raise TemplateRefusal(f"the chat template refuses it: {error}") from error
        return str(texts[0]), [(int(start), int(end)) for start, end in found[0]] if marks else []


def answer_spans(chat: Chat, turns: Sequence[Turn], wanted: Mapping[int, float]) -> tuple[str, list[Span]]:
    """Return the rendered text and one span per wanted message (index → weight), in order.

    Raises:
        TemplateRefusal: the template refuses the conversation, or a wanted message is not in the text.
    """
    text, spans = _marked_spans(chat, turns, wanted) or _found_spans(chat, turns, wanted)
    for span, index in zip(spans, sorted(wanted)):
        answer = turns[index]["content"].rpartition("</think>")[2]
        if "".join(answer.split()) not in "".join(text[span.start : span.end].split()):
            raise TemplateRefusal(f"the chat template leaves out or rewrites message {index + 1}")
    return text, spans


def _marked_spans(chat: Chat, turns: Sequence[Turn], wanted: Mapping[int, float]) -> tuple[str, list[Span]] | None:
    """Return what the template's own marks say; None when there are none, or not one for each answer.

    Some marks begin inside the generation prompt, which chat sends and the model never writes: that part is taken off.
    """
    answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not chat.is_marked or not set(wanted) <= set(answers):
        return None
    text, marks = chat.marked_text(turns)
    if len(marks) != len(answers):
        return None
    spans = []
    for index in sorted(wanted):
        start, end = marks[answers.index(index)]
        prompt_end = _prompt_end(chat, turns, text, index)
        if prompt_end is not None and prompt_end < end:
            start = max(start, prompt_end)
        spans.append(Span(start, end, wanted[index]))
    return text, spans


def _found_spans(chat: Chat, turns: Sequence[Turn], wanted: Mapping[int, float]) -> tuple[str, list[Span]]:
    """Find each answer by its prompt and by planted marks."""
    text = chat.text(turns)
    order = sorted(wanted)
    ends = _planted(chat, turns, text, order, _content_end)
    starts: list[int] | None = None
    spans = []
    for place, index in enumerate(order):
        start = _prompt_end(chat, turns, text, index) if turns[index]["role"] == "assistant" else None
        end = ends[place] if ends is not None else _turn_end(chat, turns, text, index)
        if start is None or (end is not None and start > end):
            starts = starts or _planted(chat, turns, text, order, _content_start)
            starts = starts or _planted(chat, turns, text, order, _thought_end)
            start = starts[place] if starts is not None else None
        if start is None or end is None or start > end:
            raise TemplateRefusal(f"message {index + 1} cannot be found in what the chat template writes")
        spans.append(Span(start, end, wanted[index]))
    return text, spans


def _prompt_end(chat: Chat, turns: Sequence[Turn], text: str, index: int) -> int | None:
    """Return where the prompt of an answer ends, when the whole text begins with it."""
    if index == 0:
        return None
    try:
        prompt = chat.text(turns[:index], add_generation_prompt=True)
    except TemplateRefusal:
        return None
    return len(prompt) if text.startswith(prompt) else None


def _turn_end(chat: Chat, turns: Sequence[Turn], text: str, index: int) -> int | None:
    """Return where a turn ends when no mark could be planted: the length of the text up to it."""
    try:
        part = chat.text(turns[: index + 1])
    except TemplateRefusal:
        return None
    return len(part.rstrip()) if text.startswith(part.rstrip()) else None


def _content_start(content: str) -> int:
    return len(content) - len(content.lstrip())


def _content_end(content: str) -> int:
    return len(content.rstrip())


def _thought_end(content: str) -> int:
    """Return where the answer proper begins, for templates that drop the thinking before it."""
    head, close, tail = content.rpartition("</think>")
    return len(head) + len(close) + _content_start(tail)


def _planted(
    chat: Chat, turns: Sequence[Turn], text: str, order: Sequence[int], place: Callable[[str], int]
) -> list[int] | None:
    """Return where that place of each wanted content is in the text; None when the template reacts to the marks.

    The mark stands inside surrounding white space, so a template that trims does to the marked content what it does to
    the real one.
    """
    mark = next((m for m in MARK_CANDIDATES if m not in text), None)
    if mark is None:
        return None
    marked = [dict(turn) for turn in turns]
    for index in order:
        content = turns[index]["content"]
        at = place(content)
        marked[index]["content"] = content[:at] + mark + content[at:]
    try:
        pieces = chat.text(marked).split(mark)
    except TemplateRefusal:
        return None
    if len(pieces) != len(order) + 1 or "".join(pieces) != text:
        return None
    return list(itertools.accumulate(len(piece) for piece in pieces[:-1]))
