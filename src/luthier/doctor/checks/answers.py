"""Answers that are not whole: empty, copied from the prompt, going round in circles."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator

from luthier.doctor.base import Finding, RowCheck, SeenRow, shorten

_COPY_ASKED = re.compile(
    r"repeat|copy|echo|verbatim|rewrite|edit|correct|proofread|paraphras|quote|extract|sort|reverse|translate|format|fix|"
    r"重复|复述|抄写|改写|纠正|翻译|修改|提取|排序|重写|找出|识别|选择|哪|分类|continue|grammar|tokeniz|arrange|convert|find|identify|"
    r"highlight|delete|remove|insert|replace|punctuat|capital|uppercase|lowercase|spell|classify|select|choose|option|which",
    re.IGNORECASE,
)
_UNSEEN = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad\u180e\ufe0f]|&nbsp;|<br ?/?>|</?p>")
_NOT_SAID = re.compile(r"[\W_]+")
_WIDE = re.compile("[\u4e00-\u9fff\u3040-\u30ff\uac00-\ud7af]")
_SENTENCES = re.compile(r"(?<=[.!?。！？\n])\s*")
_AGAIN_AT_END = re.compile(r"(.{2,60}?)\1{5,}\S{0,30}\s*$", re.DOTALL)
_AGAIN = re.compile(r"(.{2,60}?)\1{7,}", re.DOTALL)
_LETTER_AGAIN = re.compile(r"([^\W\d_])\1{24,}")
_REPEAT_ASKED = re.compile(r"repeat|times|lyrics|song|poem|pattern|chant|重复|遍|歌|诗", re.IGNORECASE)
_MEND = "write one, or leave the row out"
LONG_COPY = 80


class Answers(RowCheck):
    """Look at each answer by itself."""

    title = "whole answers"

    def look(self, row: SeenRow) -> Iterator[Finding]:
        if not row.has_answer:
            return
        answer = row.answer.strip()
        if not answer or (len(answer) < 200 and not _UNSEEN.sub("", answer).strip()):
            yield row.found("empty_answer", "The answer is empty.", _MEND, "error", True)
            return
        asked = row.prompt.strip()
        if not asked or (len(asked) < 200 and not _UNSEEN.sub("", asked).strip()):
            yield row.found("empty_prompt", "The prompt is empty.", _MEND, "error", removes=True)
        elif _is_copied(row, answer):
            what = f"The answer repeats the prompt: “{shorten(answer)}”."
            yield row.found("copied_answer", what, "write an answer, or leave the row out")
        circle = _circle(answer)
        if circle and not _REPEAT_ASKED.search(asked[-300:]):
            what = f"The answer goes round in circles: “{shorten(circle)}”."
            yield row.found("repetition", what, "cut it where it begins to repeat, or leave the row out")


def _is_copied(row: SeenRow, answer: str) -> bool:
    """Return whether an answer is the prompt again, or a long piece of it, without being asked for that.

    Capital letters, punctuation and white space do not matter.
    """
    asked = next((m.content for m in reversed(row.turns[:-1]) if m.role == "user"), row.prompt)
    flat_asked, flat = (_NOT_SAID.sub(" ", text.lower()).strip() for text in (asked, answer))
    weight = len(flat) + 2 * len(_WIDE.findall(flat[:40]))
    if weight < 20:
        return False
    if flat == flat_asked:
        return True
    is_piece = len(flat) >= LONG_COPY and len(flat) > 0.5 * len(flat_asked) and flat in flat_asked
    begins_so = len(flat_asked) >= LONG_COPY and flat.startswith(flat_asked)
    return (is_piece or begins_so) and not _COPY_ASKED.search(asked[:300])


def _circle(answer: str) -> str:
    """Return a sentence or phrase that an answer repeats over and over, or nothing."""
    if len(answer) < 16:
        return ""
    lines = [s.strip() for s in _SENTENCES.split(answer) if len(s) >= 15 or len(_WIDE.findall(s[:15])) >= 5]
    if len(lines) >= 4:
        line, count = Counter(lines).most_common(1)[0]
        if count >= 4 and count * len(line) > 0.3 * len(answer) and any(c.isalpha() for c in line):
            return line
    # The patterns below try every length at every place; what goes round in circles packs into next to nothing.
    end = answer[-600:]
    raw = end.encode("utf-8", "replace")
    if len(zlib.compress(raw, 1)) > 0.4 * len(raw) + 12:
        return ""
    again = _AGAIN_AT_END.search(end) or _AGAIN.search(end) or _LETTER_AGAIN.search(end)
    if again is None or not any(c.isalpha() for c in again[1]):
        return ""
    return again.group() if len(again.group()) >= 20 or len(_WIDE.findall(again.group())) >= 12 else ""
