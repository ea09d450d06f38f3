"""Files that tell a judge by what to judge: rubrics, and constitutions of several principles."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from luthier.core.errors import DataError, Problem

_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)、])\s+")
MAX_CHARACTERS = 100_000


def read_rubric(path: Path) -> str:
    """Return the text of a rubric.

    Raises:
        DataError: there is no such file, it is no text, or it is empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        remedy = "write a text file that says what makes an answer good; examples/rubrics holds two"
        raise DataError(Problem(f"The rubric cannot be read: {why}.", str(path), remedy)) from error
    if not text:
        raise DataError(Problem("The rubric is empty.", str(path), "say what makes an answer good"))
    if len(text) > MAX_CHARACTERS:
        what = f"The rubric has {len(text):,} characters, and every question would carry them."
        raise DataError(Problem(what, str(path), "is it the right file? A page or two is usual"))
    return text


def rubric_problems(rubric: str | None, find: Callable[[str], Path]) -> list[Problem]:
    """Return why a rubric cannot be read, if one is named and it cannot."""
    try:
        if rubric is not None:
            read_rubric(find(rubric))
    except DataError as error:
        return error.problems
    return []


def read_principles(path: Path) -> list[str]:
    """Return the principles of a constitution: its list items, or else its paragraphs. Headings are left out.

    Raises:
        DataError: there is no such file, or no principle in it.
    """
    lines = [line for line in read_rubric(path).splitlines() if not line.lstrip().startswith("#")]
    items: list[str] = []
    if any(_BULLET.match(line) for line in lines):
        for line in lines:
            if _BULLET.match(line):
                items.append(_BULLET.sub("", line).strip())
            elif items and line.strip():
                items[-1] += " " + line.strip()
    else:
        items = [" ".join(part.split()) for part in re.split(r"\n\s*\n", "\n".join(lines))]
    items = [item for item in items if item]
    if not items:
        what = "The constitution has no principle."
        raise DataError(Problem(what, str(path), 'write one on each line, beginning with "- "'))
    return items
