"""Wrong roles: turns out of order, marks of another template, two speakers in one answer, ends that are missing.

A mark that most rows hold is the manner of the data set and is told once; what a single row holds is told of that row.
"""

from __future__ import annotations

import itertools
import re
from array import array
from collections import Counter
from collections.abc import Iterator

from luthier.data.store import SourceTable
from luthier.doctor.base import Finding, SeenRow, place, shorten

_MARKS = re.compile(
    r"<\|[a-zA-Z_\u2581/]{2,40}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<\uff5c[^>]{1,30}\uff5c>|</s>|<s>|<(?:bos|eos|pad)>"
    r"|^### ?(?:Instruction|Response|Input|Human|Assistant|User|System|指令|回答|问题) ?[:：]|\[gMASK\]|<reserved_\d+>"
    r"|^(?:USER|ASSISTANT|HUMAN|SYSTEM): |\A(?:Human|User|Assistant|AI|助手|用户) ?[:：]",
    re.MULTILINE,
)
_SPEAKERS = re.compile(
    r"(?:^|\n)\s*(?:### ?)?(?:Human|User|Assistant|Question|USER|ASSISTANT|Q|用户|助手|人类|问)\s*[:：]", re.IGNORECASE
)
_NEXT_TURN = re.compile(r"\n\s*(?:### ?)?(?:Human|User|USER|HUMAN|用户|人类)\s*[:：]")
_TALK = re.compile(
    r"dialog|conversation|script|transcript|chat|q&a|question|interview|faq|support|reply|对话|剧本|问答|采访|聊天|客服",
    re.I,
)
_END_MARK = re.compile(
    r"(?:<\|[a-zA-Z_\u2581]{2,40}\|>|</s>|<end_of_turn>|<eos>|<EOD>|<EOS>|\[EOS\]|\[/INST\]|###|\bEND)\s*$"
)
_OPEN_CLOSE = (
    ("<|im_start|>", "<|im_end|>"),
    ("[INST]", "[/INST]"),
    ("<<SYS>>", "<</SYS>>"),
    ("<start_of_turn>", "<end_of_turn>"),
    ("<|start_header_id|>", "<|eot_id|>"),
    ("<think>", "</think>"),
)
_SOUNDS_LIKE_A_MODEL = re.compile(
    r"\s*(?:as an ai\b|sure[,!] |certainly[,!]|of course[,!] (?:here|i)|i(?:'m| am) sorry, but|here (?:is|are) (?:a|an|the|some) |"
    r"当然[，！]|好的[，！]|以下是|作为一个?(?:人工智能|AI))",
    re.IGNORECASE,
)
_SOUNDS_LIKE_A_USER = re.compile(
    r"\s*(?:(?:please|can you|could you|write|give me|tell me|explain|how do|what (?:is|are)|请|帮我|给我|你能).{3,200}|.{5,150}[?？])\s*$",
    re.IGNORECASE | re.DOTALL,
)
MANNER = 0.5
"""A mark that more than this share of the rows holds is the manner of the data set."""
NEARLY_ALL = 0.9
TAKE_OUT = "take it out: the template of the model writes its own marks"


class Roles:
    """Look for turns that are not in order, and for marks that a template should have written."""

    title = "roles and template marks"

    def __init__(self) -> None:
        self._rows = 0
        self._answers = 0
        self._marks: Counter[str] = Counter()
        self._marked: list[tuple[int, tuple[str, ...]]] = []
        self._ends: Counter[str] = Counter()
        self._without_end = array("q")
        self._places: dict[int, str] = {}
        self._sources = SourceTable()

    def look(self, row: SeenRow) -> Iterator[Finding]:
        self._rows += 1
        yield from self._order(row)
        if "<" in row.text or "[" in row.text or ":" in row.text or "：" in row.text or "###" in row.text:
            yield from self._template(row)
        if row.answer or row.is_document:
            self._answers += 1
            end = _END_MARK.search((row.answer or row.text)[-40:])
            if end:
                self._ends[end.group().strip()] += 1
            elif len(self._without_end) < 10_000:
                self._without_end.append(row.number)
                self._sources.add(row.source)

    def _order(self, row: SeenRow) -> Iterator[Finding]:
        roles = [m.role for m in row.turns]
        spoken = [r for r in roles if r in ("user", "assistant")]
        if spoken and spoken[0] == "assistant" and row.answer and len(spoken) > 1:
            yield row.found("roles", "The conversation begins with the assistant.", "check which side is which")
        doubled = next((a for a, b in itertools.pairwise(spoken) if a == b), None)
        if doubled is not None:
            what = f"Two turns of the {doubled} follow each other."
            yield row.found("roles", what, "merge them, or look for a turn that is missing")
        if "system" in roles[1:]:
            yield row.found("roles", "A system message stands in the middle.", "move it to the beginning")
        if row.answer and "assistant" in roles and "user" in roles:
            asked = next(m.content for m in row.turns if m.role == "user")
            said = next(m.content for m in row.turns if m.role == "assistant")
            if _SOUNDS_LIKE_A_MODEL.match(asked) and len(said) < len(asked) and _SOUNDS_LIKE_A_USER.match(said):
                what = f"The user sounds like the assistant (“{shorten(asked, 40)}”), and the other way round."
                yield row.found("roles", what, "check which side is which")

    def _template(self, row: SeenRow) -> Iterator[Finding]:
        marks = {m.group().strip() for turn in (*row.turns, row.other) for m in _MARKS.finditer(_content(turn))}
        for opened, closed in _OPEN_CLOSE:
            if row.text.count(opened) > row.text.count(closed) and closed not in ("<|eot_id|>",):
                what = f"“{opened}” is opened {row.text.count(opened)} times and closed {row.text.count(closed)} times."
                yield row.found("missing_end", what, f"write the missing “{closed}”, or leave the row out")
                break
        if marks:
            self._marks.update(marks)
            if len(self._marked) < 10_000:
                self._marked.append((row.number, tuple(sorted(marks))))
                self._places[row.number] = row.source
        elif row.answer:
            speakers = _SPEAKERS.findall(row.answer)
            if (len(speakers) >= 2 or _NEXT_TURN.search(row.answer)) and not _TALK.search(row.prompt):
                at = _NEXT_TURN.search(row.answer) or _SPEAKERS.search(row.answer)
                assert at is not None
                what = f"The answer goes on as another speaker: “{shorten(row.answer[at.start() :])}”."
                yield row.found("template", what, "cut the answer there, or split the row into turns")

    def conclude(self) -> Iterator[Finding]:
        manner = {mark for mark, count in self._marks.items() if count > MANNER * self._rows and self._rows >= 20}
        for number, marks in self._marked:
            mark = next((m for m in marks if m not in manner), None)
            if mark is not None:
                file, line = place(self._places[number])
                what = f"The text holds a mark of a chat template: “{mark}”."
                yield Finding("template", "warning", file, line, what, TAKE_OUT, number)
        for mark in sorted(manner):
            what = f"{self._marks[mark]:,} of {self._rows:,} rows hold “{mark}”, a mark that templates write."
            yield Finding("template", "warning", "", 0, what, TAKE_OUT)
        end, count = self._ends.most_common(1)[0] if self._ends else ("", 0)
        if count >= NEARLY_ALL * self._answers and self._answers >= 20:
            for index, number in enumerate(self._without_end):
                file, line = place(self._sources[index])
                what = f"The row does not end with “{end}”, as {count:,} of {self._answers:,} rows do."
                remedy = "write it there too, or take it out everywhere: the model's template ends its turns itself"
                yield Finding("missing_end", "warning", file, line, what, remedy, number)


def _content(turn: object) -> str:
    return turn if isinstance(turn, str) else turn.content  # type: ignore[attr-defined]
