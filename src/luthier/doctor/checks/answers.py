"""Answers that are not whole: empty, cut off, copied from the prompt, going round in circles."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator

from luthier.doctor.base import Finding, RowCheck, SeenRow, shorten

_SENTENCE_END = re.compile(r"[.!?。！？…”\"’')\]）】》:：;；|>*`~\d]$")
_SENTENCES = re.compile(r"[.!?。！？](?=\s|$|[\u4e00-\u9fff“])")
_OPEN_END = re.compile(
    r"(?:,|，|、|\b(?:and|or|the|a|an|of|to|in|for|with|that|which|is|are|was|by|as|from|because|but|if|such as)|"
    r"的|和|与|或|是|在|因为|但是)$",
    re.IGNORECASE,
)
_COPY_ASKED = re.compile(
    r"repeat|copy|echo|verbatim|rewrite|edit|correct|proofread|paraphras|quote|extract|sort|reverse|translate|format|fix|"
    r"重复|复述|抄写|改写|纠正|翻译|修改|提取|排序|continue|grammar|tokeniz|arrange|convert|find|identify|highlight|delete|"
    r"remove|insert|replace|punctuat|capital|uppercase|lowercase|spell|classify|select|choose|option|which",
    re.IGNORECASE,
)
_MEND = "write one, or leave the row out"
LONG_ANSWER = 240
LONG_COPY = 80


class Answers(RowCheck):
    """Look at each answer by itself."""

    title = "whole answers"

    def look(self, row: SeenRow) -> Iterator[Finding]:
        answer = row.answer.strip()
        has_answer = any(m.role == "assistant" for m in row.turns)
        if not answer:
            if has_answer:
                yield row.found(
                    "empty_answer", "The answer is empty.", "write one, or leave the row out", "error", True
                )
            return
        if not row.prompt.strip():
            yield row.found("empty_prompt", "The prompt is empty.", _MEND, "error", removes=True)
        cut = self._cut_off(answer)
        if cut:
            yield row.found("truncated_answer", cut, "write its end, or leave the row out")
        elif self._is_copied(row.prompt, answer):
            what = f"The answer repeats the prompt: “{shorten(answer)}”."
            yield row.found("copied_answer", what, "write an answer, or leave the row out")
        circle = self._circle(answer)
        if circle:
            what = f"The answer goes round in circles: “{shorten(circle)}”."
            yield row.found("repetition", what, "cut it where it begins to repeat, or leave the row out")

    def _cut_off(self, answer: str) -> str:
        """Return why an answer looks cut off, or nothing."""
        tail = f"“…{shorten(answer[-40:], 41)}”"
        if answer.count("```") % 2 and not re.search("[█▓░╔║]", answer):
            return f"A block of code is opened and not closed; the answer ends with {tail}."
        if len(answer) < LONG_ANSWER or _SENTENCE_END.search(answer):
            return ""
        ends = len(_SENTENCES.findall(answer))
        last_line = answer.rsplit("\n", 1)[-1]
        if (
            ends < 2
            or last_line.lstrip()[:1] in tuple("-*•#|")
            or "#" in last_line[-30:]
            or re.match(r"\s*\d+[.)]", last_line)
        ):
            return ""
        if _OPEN_END.search(answer) or len(last_line) > 60:
            return f"The answer ends in the middle of a sentence: {tail}."
        return ""

    def _is_copied(self, prompt: str, answer: str) -> bool:
        """Return whether an answer is the prompt again, or a long piece of it, without being asked for that."""
        flat_prompt, flat = " ".join(prompt.split()).lower(), " ".join(answer.split()).lower()
        if len(flat) < 20:
            return False
        if flat == flat_prompt:
            return True
        if _COPY_ASKED.search(prompt[:300]):
            return False
        return (len(flat) >= LONG_COPY and flat in flat_prompt) or (
            len(flat_prompt) >= LONG_COPY and flat.startswith(flat_prompt)
        )

    def _circle(self, answer: str) -> str:
        """Return a sentence or phrase that an answer repeats over and over, or nothing."""
        lines = [s.strip() for s in re.split(r"(?<=[.!?。！？\n])\s*", answer) if len(s.strip()) >= 15]
        if lines:
            line, count = Counter(lines).most_common(1)[0]
            if count >= 4 and count * len(line) > 0.3 * len(answer):
                return line
        end = answer[-600:]
        # The pattern below tries every length at every place; what goes round in circles packs into next to nothing.
        if len(end) < 16 or len(zlib.compress(end.encode(), 1)) > 0.35 * len(end.encode()):
            return ""
        again = re.search(r"(.{2,40}?)\1{7,}", end, re.DOTALL)
        return again.group() if again and any(c.isalpha() for c in again[1]) else ""
