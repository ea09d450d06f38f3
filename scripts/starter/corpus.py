"""Build the starter's pretraining corpus: OUT/train.jsonl, OUT/heldout.jsonl and, part by part, OUT/parts/*.jsonl.

Rows are {"text": …} or {"messages": […]}; OUT/train/ holds the same rows as one file for each of the two shapes.
Run stories.py first (it samples the largest part), then this, then tokenizer.py.
"""

import argparse
import gzip
import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from chat import Library, conversation
from chinese import chinese_sentences, chinese_story
from english import english_story
from stories import N_HELDOUT, real_stories

Row = dict[str, object]

# One pass over train.jsonl is one pretraining run; the scarce parts are repeated in it.
REPEAT = {"real": 7, "sampled": 2, "english": 1, "chinese": 1, "poems": 1, "chat": 1}
N_ENGLISH, N_CHINESE, N_POEMS, N_CHAT, CHAT_CHINESE = 32_000, 18_000, 900, 8_000, 0.25
MAX_BYTES = 1500  # about 400 tokens; stories with rare words reach 500


def pieces(text: str) -> list[str]:
    """Cut a document of more than MAX_BYTES at ends of paragraphs; a longer paragraph is dropped."""
    cut = [""]
    for paragraph in text.split("\n"):
        if cut[-1] and len((cut[-1] + paragraph).encode()) > MAX_BYTES:
            cut.append("")
        cut[-1] += ("\n" if cut[-1] else "") + paragraph
    return [piece for piece in cut if len(piece.encode()) <= MAX_BYTES]


def distinct(count: int, stories: Iterable[str]) -> list[str]:
    """Take `count` different stories from an endless generator."""
    found: dict[str, None] = {}
    for story in stories:
        found[story] = None
        if len(found) == count:
            break
    return list(found)


def poems(folder: Path) -> list[str]:
    """Return the poems (title, author, lines) with the most usual characters; a rare one costs three tokens."""
    found = []
    for name in ("tang300.json", "songci300.json"):
        for poem in json.loads((folder / name).read_text(encoding="utf-8")):
            title = poem.get("title", poem.get("rhythmic"))
            found.append(f"{title}\n{poem['author']}\n" + "\n".join(poem["paragraphs"]))
    with gzip.open(folder / "tang_10000.jsonl.gz", "rt", encoding="utf-8") as file:
        for poem in map(json.loads, file):
            found.append(f"{poem['title']}\n{poem['author']}\n{poem['text'].replace('。', '。' + chr(10)).strip()}")
    usual = {character for character, _ in Counter("".join(found)).most_common(900)}
    short = [poem for poem in dict.fromkeys(found) if len(poem) < 150]
    return sorted(short, key=lambda poem: sum(character not in usual for character in poem) / len(poem))[:N_POEMS]


def as_rows(stories: list[str]) -> list[Row]:
    """Turn documents into rows, cutting the long ones."""
    return [{"text": piece} for story in stories for piece in pieces(story)]


def build_parts(
    tinystories: Path, sampled: Path, poetry: Path, rng: random.Random
) -> tuple[dict[str, list[Row]], list[str]]:
    """Return the rows of each part, and the held-out stories."""
    real, heldout = real_stories(tinystories, N_HELDOUT)
    sampled_texts = [json.loads(line)["text"] for line in sampled.open(encoding="utf-8")]
    english = distinct(N_ENGLISH, (english_story(rng) for _ in iter(int, 1)))
    chinese = distinct(
        N_CHINESE, (chinese_story(rng) if rng.random() < 0.8 else chinese_sentences(rng) for _ in iter(int, 1))
    )
    library = Library(
        english=real * 4 + sampled_texts[:2000] + english[:10_000],
        chinese=[story for story in chinese if len(story) > 60],
    )
    chat = [conversation(library, rng, rng.random() < CHAT_CHINESE) for _ in range(N_CHAT)]
    texts = {"real": real, "sampled": sampled_texts, "english": english, "chinese": chinese, "poems": poems(poetry)}
    parts = {name: as_rows(stories) for name, stories in texts.items()}
    return parts | {"chat": [{"messages": messages} for messages in chat]}, heldout


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> None:
    """Build everything from the paths given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tinystories", type=Path, required=True, help="folder with the two TinyStories files")
    parser.add_argument("--sampled", type=Path, required=True, help="JSONL written by stories.py")
    parser.add_argument(
        "--poetry", type=Path, required=True, help="folder with tang300.json, songci300.json, tang_10000.jsonl.gz"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    parts, heldout = build_parts(arguments.tinystories, arguments.sampled, arguments.poetry, rng)
    (arguments.out / "parts").mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        write_rows(arguments.out / "parts" / f"{name}.jsonl", rows)
        print(f"{name}: {len(rows)} rows x {REPEAT[name]}")
    train = [row for name, rows in parts.items() for row in rows * REPEAT[name]]
    rng.shuffle(train)
    write_rows(arguments.out / "train.jsonl", train)
    (arguments.out / "train").mkdir(exist_ok=True)
    write_rows(arguments.out / "train" / "text.jsonl", (row for row in train if "text" in row))
    write_rows(arguments.out / "train" / "chat.jsonl", (row for row in train if "messages" in row))
    write_rows(arguments.out / "heldout.jsonl", ({"text": story} for story in heldout))


if __name__ == "__main__":
    main()
