"""Wrong roles: turns out of order, marks of another template, two speakers in one answer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from luthier.doctor.base import Finding, RowCheck, SeenRow, shorten

_MARKS = re.compile(
    r"<\|(?:im_start|im_end|user|assistant|system|endoftext|eot_id|start_header_id|end_header_id|begin_of_text|end)\|>"
    r"|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<\uff5c[^>]{1,30}\uff5c>|</s>|<s>\s"
    r"|^### (?:Instruction|Response|Input|Human|Assistant):",
    re.MULTILINE,
)
_SPEAKERS = re.compile(r"(?:^|\n)\s*(?:Human|User|Assistant|Question|用户|助手|人类)\s*[:：]", re.IGNORECASE)
_TALK = re.compile(r"dialog|conversation|script|transcript|chat|对话|剧本|interview", re.IGNORECASE)


class Roles(RowCheck):
    """Look for turns that are not in order, and for marks that a template should have written."""

    title = "roles and template marks"

    def look(self, row: SeenRow) -> Iterator[Finding]:
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
        mark = _MARKS.search(row.text)
        if mark:
            what = f"The text holds a mark of a chat template: “{mark.group().strip()}”."
            yield row.found("template", what, "take it out: the template of the model writes its own marks")
        elif row.answer:
            speakers = _SPEAKERS.findall(row.answer)
            if len(speakers) >= 2 and not _TALK.search(row.prompt):
                at = _SPEAKERS.search(row.answer)
                assert at is not None
                what = f"The answer goes on as another speaker: “{shorten(row.answer[at.start() :])}”."
                yield row.found("template", what, "cut the answer there, or split the row into turns")
