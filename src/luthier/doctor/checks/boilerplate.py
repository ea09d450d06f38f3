"""Refusals and boilerplate: answers that say what a model is instead of answering."""

from __future__ import annotations

import re
from collections.abc import Iterator

from luthier.doctor.base import Finding, SeenRow, Severity, shorten

_REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence)(?: language)?(?: model| assistant)?\b|\bas a language model\b"
    r"|\bi(?:'|’)?m (?:just )?an ai\b(?! (?:artist|researcher|engineer))|\bi am an ai (?:language )?model\b"
    r"|\bi(?:'| a)?m (?:sorry|unable),? (?:but )?(?:i )?(?:can(?:no|')t|can not|am unable|to (?:assist|help))"
    r"|\bi (?:cannot|can't|can’t) (?:fulfill|assist with|comply|provide (?:that|this) information)"
    r"|\bmy knowledge cut-?off\b|\bopenai\b.{0,40}\b(?:trained|created|developed)\b"
    r"|作为一个?(?:人工智能|AI|语言模型|大型语言模型)|作为AI|我是一个(?:人工智能|AI|语言模型)|我无法(?:提供|满足|回答您|协助)|对不起，我(?:不能|无法)",
    re.IGNORECASE,
)
_ASKED = re.compile(r"\bare you\b|\bwho are you\b|\bai\b|language model|你是谁|人工智能", re.IGNORECASE)
_FILLER = re.compile(
    r"^(?:n/?a|null|nan|todo|tbd|fixme|test|xxx+|lorem ipsum.*"
    r"|<[a-z_ -]{1,20}>|\[(?:insert|your|answer|todo)[a-z_ -]{0,20}\]"
    r"|\.{3,6}|…+|-+|\?+|略|暂无|待补充)\.?$",
    re.IGNORECASE | re.DOTALL,
)
_NO_OUTPUT = re.compile(r"^<?no ?(?:out|in)put>?$|^noinput$", re.IGNORECASE)
SHARE_OF_ONE_ANSWER = 0.05
ROWS_FOR_A_SHARE = 200


class Boilerplate:
    """Look for refusals, placeholders, and one answer that is given again and again."""

    title = "refusals and boilerplate"

    def __init__(self) -> None:
        self._answers: dict[int, int] = {}
        self._first: dict[int, SeenRow] = {}
        self._rows = 0

    def look(self, row: SeenRow) -> Iterator[Finding]:
        answer = row.answer.strip()
        if not answer:
            return
        self._rows += 1
        refusal = _REFUSAL.search(answer[:400])
        if refusal and not _ASKED.search(row.prompt):
            what = f"The answer speaks as another model or refuses: “{shorten(answer)}”."
            yield row.found("refusal", what, "write a real answer, or leave the row out")
        if _FILLER.match(answer) or _NO_OUTPUT.match(answer):
            severity: Severity = "error"
            what = f"The answer is a placeholder: “{shorten(answer, 30)}”."
            yield row.found("placeholder", what, "write an answer, or leave the row out", severity, removes=True)
        if len(answer) > 40:
            key = hash(answer)
            self._answers[key] = self._answers.get(key, 0) + 1
            self._first.setdefault(key, row) if self._answers[key] == 1 and len(self._first) < 1000 else None

    def conclude(self) -> Iterator[Finding]:
        if self._rows < ROWS_FOR_A_SHARE:
            return
        for key, count in self._answers.items():
            if count >= SHARE_OF_ONE_ANSWER * self._rows and key in self._first:
                row = self._first[key]
                what = f"{count:,} of {self._rows:,} rows have one and the same answer: “{shorten(row.answer)}”."
                yield Finding("boilerplate", "warning", *_at(row), what, "keep a few of them")


def _at(row: SeenRow) -> tuple[str, int]:
    found = row.found("", "", "")
    return found.file, found.line
