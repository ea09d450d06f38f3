"""Insults and slurs in answers: a short list of words that hardly ever belong there."""

from __future__ import annotations

import re
from collections.abc import Iterator

from luthier.doctor.base import Finding, RowCheck, SeenRow

_WORDS = re.compile(
    r"\b(?:fuck(?:ing|er|ed)?|motherfucker|shit(?:ty|head)?|bitch(?:es)?|asshole|cunt|nigg(?:er|a)s?|faggots?|retards?|whores?|sluts?|"
    r"kys|kill yourself)\b|傻逼|操你|他妈的|贱人|婊子|狗娘养|去死吧|脑残",
    re.IGNORECASE,
)
_ABOUT = re.compile(
    r"toxic|hate speech|offensive|profan|slur|insult|swear|classif|censor|脏话|侮辱|攻击性", re.IGNORECASE
)


class Toxic(RowCheck):
    """Look for abusive words in what the model is to say."""

    title = "abusive words"

    def look(self, row: SeenRow) -> Iterator[Finding]:
        said = row.answer or (row.text if row.is_document else "")
        found = _WORDS.search(said)
        if found and not _ABOUT.search(row.prompt if row.answer else ""):
            word = found.group()
            what = f"The answer holds an abusive word: “{word[0]}{'*' * (len(word) - 2)}{word[-1]}”."
            yield row.found("toxic", what, "rewrite the answer, or leave the row out")
