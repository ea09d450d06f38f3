"""Write the labelled stories that ship with the starter: how someone feels, in three classes.

The stories are those of the quickstart without their questions. Run it with:  python scripts/starter/feelings.py
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

DATA = Path(__file__).parents[2] / "src/luthier/starter/data"
CLASSES = {
    "glad": "happy, proud, excited, brave, 高兴, 开心",
    "upset": "sad, angry, scared, lonely, worried, bored, 难过, 生气, 害怕, 着急, 孤单",
    "in need": "hungry, cold, tired, sleepy, 饿, 冷, 累",
}
LABEL = {word: label for label, words in CLASSES.items() for word in words.split(", ")}
FEELING = re.compile(r"(?:was|felt) (\w+)\.|[他她它]很(\w+)。")
TRAIN, HELD_OUT = 600, 150


def labelled(file: str) -> dict[str, str]:
    """Return story → label for the stories of a quickstart file that name one feeling."""
    found = {}
    for line in (DATA / file).read_text(encoding="utf-8").splitlines():
        *story, _ = json.loads(line)["messages"][0]["content"].split("\n")
        text = "\n".join(story)
        labels = {LABEL[word] for pair in FEELING.findall(text) for word in pair if word in LABEL}
        if len(labels) == 1:
            found[text] = labels.pop()
    return found


def write(name: str, rows: list[tuple[str, str]]) -> None:
    lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in rows)
    (DATA / name).write_text("".join(lines), encoding="utf-8")


def main() -> None:
    rows = list(labelled("quickstart.jsonl").items())
    random.Random(0).shuffle(rows)
    write("feelings.jsonl", rows[:TRAIN])
    write("feelings_eval.jsonl", rows[TRAIN : TRAIN + HELD_OUT])


if __name__ == "__main__":
    main()
