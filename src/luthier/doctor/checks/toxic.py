"""Insults and slurs in answers: lists of words that hardly ever belong there, English and Chinese, and the user's own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from luthier.core.errors import DataError, Problem
from luthier.doctor.base import Finding, RowCheck, SeenRow

LISTS = ("en", "zh")
_ABOUT = re.compile(
    r"toxic|hate speech|offensive|profan|slur|insult|swear|classif|censor|sentiment|脏话|侮辱|攻击性|骂人",
    re.IGNORECASE,
)
_WIDE = re.compile("[\u3040-\u9fff\uac00-\ud7af]")


class Toxic(RowCheck):
    """Look for abusive words in what the model is to say. `words`: a user's own beside those that ship."""

    title = "abusive words"

    def __init__(self, words: Sequence[str] = ()) -> None:
        self._pattern = _pattern((*shipped_words(), *words))

    def look(self, row: SeenRow) -> Iterator[Finding]:
        said = row.answer or (row.text if row.is_document else "")
        found = self._pattern.search(said.lower())
        if found and not _ABOUT.search(row.prompt if row.answer else ""):
            word = found.group()
            hidden = f"{word[0]}{'*' * (len(word) - 2)}{word[-1]}" if len(word) > 2 else f"{word[0]}*"
            what = f"The {'answer' if row.answer else 'text'} holds an abusive word: “{hidden}”."
            yield row.found("toxic", what, "rewrite the answer, or leave the row out")


@cache
def shipped_words() -> tuple[str, ...]:
    """Return the words that ship with Luthier."""
    folder = files("luthier.doctor") / "words"
    return tuple(
        word for name in LISTS for word in _lines((folder / f"{name}.txt").read_text(encoding="utf-8").splitlines())
    )


def read_words(path: Path) -> tuple[str, ...]:
    """Return a user's own words: one a line; `word*` is found with any ending, a line with # in front is left out.

    Raises:
        DataError: the file cannot be read, or holds no word.
    """
    try:
        words = _lines(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        remedy = "give a text file in UTF-8 with one word a line"
        raise DataError(Problem(f"The list of words cannot be read: {error}.", str(path), remedy)) from error
    if not words:
        raise DataError(Problem("The list of words is empty.", str(path), "write one word a line"))
    return words


def _lines(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for line in lines if (word := line.strip().lower()) and not word.startswith("#"))


@cache
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Return what finds the words: Chinese ones anywhere, others as whole words; an inner * is a hidden letter."""
    wide = [re.escape(word.rstrip("*")) for word in words if _WIDE.search(word)]
    narrow = []
    for word in words:
        if not _WIDE.search(word):
            ending = r"\w*" if word.endswith("*") else ""
            narrow.append(re.escape(word.rstrip("*")).replace(r"\*", r"[*@#$!]") + ending)
    return re.compile("|".join([rf"(?<!\w)(?:{'|'.join(narrow)})(?!\w)", *wide]))
