"""Answers that were cut off: in a sentence, in a word, in a block of code, in a list that was just begun.

Where the answers of a data set nearly all end with a sentence's end, one that does not stands out; where many do not,
it is their manner. A last word that nothing else in the data holds, and that a known word begins with, was cut.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator

from luthier.data.store import SourceTable
from luthier.doctor.base import Finding, SeenRow, place, shorten

_SENTENCE_END = re.compile(
    "(?:[.!?。！？…”\"’')\\]）】》」』:：;；|>*`~\\d$%=_\\-—+°♪{}#&^\u2122©®]|"
    "[\u2190-\u2bff\ufe0f\u200d\u3000-\u303f\U0001f000-\U0001faff])$"
)
_SENTENCES = re.compile(r"[.!?。！？](?=\s|$|[\u4e00-\u9fff“])")
_OPEN_END = re.compile(
    r"(?:,|，|、|\b(?:and|or|the|an|of|to|in|for|with|that|which|is|are|was|were|by|as|from|because|but|if|such as|their|"
    r"its|your|our|will|can|should|has|have|be|into|than|und|oder|der|die|das|mit|et|ou|les|des|du|y|los|las|del)|"
    r"(?<![目])的|和|与|或|是|在|因为|但是|以及|并且|而且|例如|包括|通过|对于|由于)$"
)
_HARD_OPEN_END = re.compile(r"(?:\b(?:and|or|the|such as|because|which)|以及|并且|而且|例如|包括|因为|但是|对于|由于)$")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+$|\S+@\S+$|\S*\w/\w\S*$|\.(?:com|org|net|html?|php|cn)/?\S*$")
_BARE_MARK = re.compile(r"\n\s*(?:\d{1,2}[.)、]|[-*•])\s*$")
_SAYS_SO = re.compile(
    r"(?:\[(?:truncated|cut off|continued|to be continued|\.\.\.|…)\]|\((?:truncated|continued)\)|to be continued\W{0,3}|"
    r"未完待续|<truncated>|（未完）|\[截断\])\W{0,3}$",
    re.IGNORECASE,
)
_LIST_LINE = re.compile(r"\s*(?:[-*•#|>]|\d+[.)、]|[a-zA-Z][.)])")
_CODE_LINE = re.compile(r"[{}<>=;\\]|\(\)|^\s{4}|\t")
_SIGNED = re.compile(r"[-—–~] ?[A-Z][\w. ]{2,40}$|\b(?:by|from) [A-Z][\w. ]{2,40}$")
_LAST_WORD = re.compile(r"[a-z]+$")
_WORDS = re.compile(r"[a-z]{3,}")
_PICTURES = re.compile("[█▓░╔║┌│╭_]")
LONG_ANSWER = 240
PROSE = 60
UNUSUAL = 0.02
MOST_WORDS = 300_000


class Truncated:
    """Look for answers without an end."""

    title = "answers that break off"

    def __init__(self) -> None:
        self._words: dict[str, int] = {}
        self._prose = 0
        self._sources = SourceTable()
        self._numbers = array("q")
        self._tails: list[str] = []
        self._cut_words: list[str] = []

    def look(self, row: SeenRow) -> Iterator[Finding]:
        if len(self._words) < MOST_WORDS:
            for word in set(_WORDS.findall(row.text[:4000].lower())):
                self._words[word] = self._words.get(word, 0) + 1
        answer = row.answer.strip()
        if not answer:
            return
        cut = _cut_off(answer)
        if cut:
            yield row.found("truncated_answer", cut, "write its end, or leave the row out")
            return
        if len(answer) >= (PROSE if answer.isascii() else PROSE // 2) and self._is_prose(answer):
            self._prose += 1
            if not (_SENTENCE_END.search(answer) or _SIGNED.search(answer[-60:]) or _ADDRESS.search(answer[-200:])):
                self._remember(row, answer)

    def _is_prose(self, answer: str) -> bool:
        """Return whether an answer is sentences that end with a sentence's end, but for the last perhaps."""
        last = answer.rsplit("\n", 1)[-1]
        if (
            _LIST_LINE.match(last)
            or _CODE_LINE.search(last)
            or "#" in last[-30:]
            or (len(last) < 60 and "\n" in answer)
        ):
            return False
        return bool(_SENTENCES.search(answer[:-1]))

    def _remember(self, row: SeenRow, answer: str) -> None:
        if len(self._tails) >= MOST_WORDS:
            return
        self._numbers.append(row.number)
        self._sources.add(row.source)
        self._tails.append(answer[-40:])
        word = _LAST_WORD.search(answer.lower())
        self._cut_words.append(word.group() if word else "")

    def conclude(self) -> Iterator[Finding]:
        known = sorted(self._words) if any(self._cut_words) else []
        is_unusual = self._prose >= 50 and len(self._tails) <= UNUSUAL * self._prose
        for index, tail in enumerate(self._tails):
            word = self._cut_words[index]
            whole = self._whole(word, known) if word else ""
            if whole:
                what = f"The answer ends in the middle of a word: “…{shorten(tail, 41)}” ({whole}?)."
            elif is_unusual:
                what = f"The answer ends without the end of a sentence: “…{shorten(tail, 41)}”."
            else:
                continue
            file, line = place(self._sources[index])
            remedy = "write its end, or leave the row out"
            yield Finding("truncated_answer", "warning", file, line, what, remedy, self._numbers[index])

    def _whole(self, word: str, known: list[str]) -> str:
        """Return the word that a last word is the beginning of, where nothing else in the data holds it alone."""
        if len(word) < 3 or self._words.get(word, 0) > 1 or len(self._words) >= MOST_WORDS:
            return ""
        at = bisect_right(known, word)
        longer = known[at : at + 20]
        fits = [w for w in longer if w.startswith(word) and len(w) >= len(word) + 2 and self._words[w] >= 2]
        return max(fits, key=lambda w: self._words[w], default="")


def _cut_off(answer: str) -> str:
    """Return why an answer by itself looks cut off, or nothing."""
    tail = f"“…{shorten(answer[-40:], 41)}”"
    if answer.count("```") % 2 and not _PICTURES.search(answer):
        return f"A block of code is opened and not closed; the answer ends with {tail}."
    if _SAYS_SO.search(answer[-40:]):
        return f"The answer says itself that it is cut: {tail}."
    if _BARE_MARK.search(answer[-40:]):
        return f"The answer ends with a new point of a list that says nothing: {tail}."
    if answer[0] in "{[" and len(answer) > 20 and _is_open_json(answer):
        return f"The answer is JSON without its end: {tail}."
    if _SENTENCE_END.search(answer) or _ADDRESS.search(answer[-200:]):
        return ""
    last_line = answer.rsplit("\n", 1)[-1]
    if last_line.count(" ") >= 4 or len(last_line) >= 12:
        pattern = _OPEN_END if _SENTENCES.search(answer) and len(answer) >= 40 else _HARD_OPEN_END
        if pattern.search(answer) and not (_LIST_LINE.match(last_line) or "___" in answer):
            return f"The answer ends in the middle of a sentence: {tail}."
    if len(answer) < LONG_ANSWER or len(_SENTENCES.findall(answer)) < 2:
        return ""
    if _LIST_LINE.match(last_line) or "#" in last_line[-30:] or len(last_line) <= 60 or _CODE_LINE.search(last_line):
        return ""
    return f"The answer ends in the middle of a sentence: {tail}."


def _is_open_json(answer: str) -> bool:
    """Return whether brackets that were opened are not closed, those in strings left out."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", answer)
    if '"' not in answer or bare.count('"') > 1:
        return False
    return bare.count("{") + bare.count("[") > bare.count("}") + bare.count("]")
