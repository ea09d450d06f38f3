"""Write the labelled stories that ship with the starter for several labels at once (tags) and for numbers (moods).

The stories are those of `feelings.py`. Run it with:  python scripts/starter/labels.py
"""

from __future__ import annotations

import json
import random
import re

import chinese
import english
from feelings import DATA, FEELING, LABEL, labelled

THINGS = {
    "animal": (english.ANIMALS, chinese.ANIMALS),
    "toy": (english.TOYS, chinese.TOYS),
    "food": (english.FOODS, chinese.FOODS),
}
MOOD = {
    2.0: "excited",
    1.5: "happy, proud, 高兴, 开心",
    1.0: "brave",
    -0.5: "tired, sleepy, 累",
    -1.0: "hungry, cold, bored, 饿, 冷",
    -1.5: "worried, lonely, 着急, 孤单",
    -2.0: "sad, angry, scared, 难过, 生气, 害怕",
}
SCORE = {word: score for score, words in MOOD.items() for word in words.split(", ")}
TRAIN, HELD_OUT = 350, 120


def tags(text: str, feeling: str) -> list[str]:
    """Return the feeling of a story, and what occurs in it."""
    found = [feeling]
    for tag, (words, characters) in THINGS.items():
        pattern = "|".join(rf"\b{re.escape(str(word))}\b" for word in words)
        if re.search(pattern, text) or any(str(word) in text for word in characters):
            found.append(tag)
    return found


def mood(text: str) -> float:
    """Return how the story ends for whoever it is about, from -2 to 2."""
    felt = [SCORE[word] for pair in FEELING.findall(text) for word in pair if word in LABEL]
    return felt[-1]


def write(name: str, rows: list[dict[str, object]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (DATA / name).write_text("".join(lines), encoding="utf-8")


def main() -> None:
    rows = list(labelled("quickstart.jsonl").items())
    random.Random(1).shuffle(rows)
    kinds = {
        "tags": [{"text": text, "labels": tags(text, feeling)} for text, feeling in rows],
        "moods": [{"text": text, "score": mood(text)} for text, _ in rows],
    }
    for name, made in kinds.items():
        write(f"{name}.jsonl", made[:TRAIN])
        write(f"{name}_eval.jsonl", made[TRAIN : TRAIN + HELD_OUT])


if __name__ == "__main__":
    main()
