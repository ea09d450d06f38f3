"""A tiny story grammar: a plot is plain text, alternatives are drawn, slots are filled.

In a plot every line is one sentence; ` | ` parts its alternatives, a leading `? ` makes it optional, an empty line
begins a paragraph. `{slot}` is filled from a mapping, and `{Slot}` is the same with a capital letter. Files of plots
hold one after another, each under a line `== name`.
"""

import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

Slots = Mapping[str, str]


class Capitals(dict[str, str]):
    """Slots that also answer to their capitalised names: `{He}` is `{he}` at the start of a sentence."""

    def __missing__(self, key: str) -> str:
        value = self[key[0].lower() + key[1:]] if key[0].isupper() else None
        if value is None:
            raise KeyError(key)
        return value[0].upper() + value[1:]


def tell(plot: str, slots: Slots, rng: random.Random, joint: str = " ") -> str:
    """Return one telling; sentences are joined by `joint` (nothing in Chinese), paragraphs by one newline."""
    paragraphs = []
    for paragraph in plot.strip().split("\n\n"):
        drawn = []
        for line in paragraph.splitlines():
            is_optional = line.startswith("? ")
            if not is_optional or rng.random() < 0.5:
                drawn.append(rng.choice(line.removeprefix("? ").split(" | ")).strip())
        if drawn:
            paragraphs.append(joint.join(drawn))
    return "\n".join(paragraphs).format_map(Capitals(slots))


@cache
def plots(language: Literal["english", "chinese"]) -> dict[str, str]:
    """Read the plots of a language, by name."""
    text = Path(__file__).with_name(f"plots_{language}.txt").read_text(encoding="utf-8")
    return dict(plot.split("\n", 1) for plot in text.removeprefix("== ").split("\n== "))


def words(text: str) -> list[str]:
    """Split a list written with commas, in either script."""
    return [" ".join(word.split()) for word in text.replace("，", ",").split(",") if word.strip()]


def a(noun: str) -> str:
    """Put the right indefinite article before an English noun phrase."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun
