"""A tiny story grammar: a plot is plain text, alternatives are drawn, slots are filled.

In a plot every line is one sentence; ` | ` parts its alternatives, a leading `? ` makes it optional, an empty line begins a
paragraph. `{slot}` is filled from a mapping, and `{Slot}` is the same with a capital letter.
"""

import random
from collections.abc import Mapping

Slots = Mapping[str, str]


class Capitals(dict[str, str]):
    """Slots that also answer to their capitalised names: `{He}` is `{he}` at the start of a sentence."""

    def __missing__(self, key: str) -> str:
        value = self[key[0].lower() + key[1:]] if key[0].isupper() else None
        if value is None:
            raise KeyError(key)
        return value[0].upper() + value[1:]


def tell(plot: str, slots: Slots, rng: random.Random, joint: str = " ") -> str:
    """Return one telling of the plot; sentences are joined by `joint` (nothing in Chinese), paragraphs by one newline."""
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


def words(text: str) -> list[str]:
    """Split a list written with commas, in either script."""
    return [" ".join(word.split()) for word in text.replace("，", ",").split(",") if word.strip()]


def a(noun: str) -> str:
    """Put the right indefinite article before an English noun phrase."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun
