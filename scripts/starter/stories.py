"""English stories of the starter's corpus: real ones from TinyStories (Eldan & Li 2023, arXiv:2305.07759), and ones
sampled from a small model that was trained on TinyStories.

Everywhere in the corpus paragraphs are separated by ONE newline, as the sampling model writes them.
"""

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from sampling import SmallLlama, sample_batch
from tokenizers import Tokenizer

N_HELDOUT = 100
MAX_SAME_OPENING = 600
TRAIN_FILE, VALIDATION_FILE = "tinystories_train_head.txt", "tinystories_val_1000.txt"
# The files were once decoded with the wrong code page, and some bytes are lost, so this maps what is left of each sign.
MENDED = {
    "â€œ": '"',
    "â€™": "'",
    "â€˜": "'",
    "â€“": "-",
    "â€”": "-",
    "â€¦": "...",
    "â€": '"',
    "“": '"',
    "”": '"',
    "’": "'",
    "‘": "'",
}
MENDED |= {"–": "-", "—": "-", "…": "...", "\u00a0": " ", "é": "e"}

OPENING = re.compile(r"(Once upon|Once there|Once, |Once a |There once|There was once|Long ago|A long time ago)")
LATER_OPENING = re.compile(  # also found inside stories, so it counts only where a story may already have ended
    r"(One (sunny |hot |cold |rainy |nice )?(day|night|morning)[, ].{0,60}"
    r"\b(named|called|a (little |small |young )?(boy|girl|bird|dog|cat))\b"
    r"|[A-Z][a-z]+ and [A-Z][a-z]+ (were|are|like|liked|love|loved|wanted|want|play|went)\b"
    r"|There was (once )?a|[A-Z][a-z]+ (is|was) a (\w+ )?(boy|girl|dog|cat|bird|rabbit|bear))"
)
SENTENCE = re.compile(r'.+?[.!?]"?(?=\s|$)', re.DOTALL)
WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
ECHO = re.compile(  # "the cat and the cat", "Tim thanked Tim", "was was"
    r"\b(\w{3,})(?<!her|his) and (?:his |her |the |a )?\1\b"
    r"|\b([A-Z]\w+) (?:thanked|hugged|asked|told|helped) \2\b|\b(\w+) \3\b"
)


def mend(text: str) -> str:
    """Restore quotation marks and dashes that a wrong decoding broke, as plain ASCII."""
    for broken, sign in MENDED.items():
        text = text.replace(broken, sign)
    return "\n".join(line for line in (re.sub(r"[ \t]+", " ", line).strip() for line in text.split("\n")) if line)


def is_whole(story: str) -> bool:
    """Say whether a piece reads like a complete story: an opening capital, an end, 40 words or more, no stray bytes."""
    return (
        bool(re.match(r'["A-Z]', story))
        and bool(re.search(r'[.!?]"?$', story))
        and len(story.split()) >= 40
        and story.isascii()
        and story.count('"') % 2 == 0
    )


def split_train_file(text: str) -> list[str]:
    """Split the train file: stories are parted by one newline, paragraphs mostly by two."""
    stories: list[str] = []
    for piece in re.split(r"(?<=\S)[ \t]*\n(?=[ \t]*\S)", text):
        if stories and len(piece.split()) < 50 and not OPENING.match(piece):
            stories[-1] += "\n" + piece  # a dialogue line of the same story
        else:
            stories.append(piece)
    return stories


def split_validation_file(text: str) -> list[str]:
    """Split the validation file, where ends are not marked, at openings; the first piece is a fragment and goes."""
    stories: list[list[str]] = [[]]
    for paragraph in re.split(r"\n\s*\n", text):
        begins = OPENING.match(paragraph) or (len(stories[-1]) >= 3 and LATER_OPENING.match(paragraph))
        if begins:
            stories.append([])
        stories[-1].append(paragraph)
    return ["\n".join(story) for story in stories[1:]]


def real_stories(folder: Path, n_heldout: int) -> tuple[list[str], list[str]]:
    """Return (training stories, held-out stories); the held-out ones come from the validation file."""
    train = [mend(story) for story in split_train_file((folder / TRAIN_FILE).read_text(encoding="utf-8"))]
    validation = [
        mend(story) for story in split_validation_file((folder / VALIDATION_FILE).read_text(encoding="utf-8"))
    ]
    train, validation = ([story for story in part if is_whole(story)] for part in (train, validation))
    heldout = [story for story in validation if OPENING.match(story) and len(story) < 1600][::5][:n_heldout]
    taken = set(heldout)
    return [story for story in dict.fromkeys(train + validation) if story not in taken], heldout


def sentences(story: str) -> list[str]:
    """Split a story into sentences; a closing quotation mark stays with its sentence."""
    return [match.group().strip() for match in SENTENCE.finditer(story)]


def is_clean(story: str, vocabulary: set[str]) -> bool:
    """Say whether a sampled story is worth learning from: known words, no repeated sentence, no echo."""
    parts = sentences(story)
    return (
        is_whole(story)
        and len(set(parts)) == len(parts)
        and all(word.lower() in vocabulary for word in WORD.findall(story))
        and not ECHO.search(story)
        and max(Counter(word for word in WORD.findall(story) if len(word) > 3).values()) <= 16
    )


def prompts_from(stories: list[str], generator: torch.Generator) -> Iterator[str]:
    """Yield beginnings of stories for ever: first one or two sentences, in shuffled order."""
    while True:
        for index in torch.randperm(len(stories), generator=generator).tolist():
            n_sentences = 1 + int(torch.randint(2, (1,), generator=generator))
            yield " ".join(sentences(stories[index].split("\n")[0])[:n_sentences])


def sampled_stories(
    folder: Path, real: list[str], settings: tuple[float, float], rows: int, generator: torch.Generator
) -> Iterator[Iterable[str]]:
    """Yield batches of clean stories for ever: half of a batch begins freely, half as a real story begins.

    Free beginnings repeat ("there was a little girl named Lily"), so a first sentence is kept at most MAX_SAME_OPENING
    times.
    """
    model, tokenizer = SmallLlama.load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin = tokenizer.token_to_id("<s>")
    ends = {begin, tokenizer.token_to_id("</s>")}
    vocabulary = {word.lower() for story in real for word in WORD.findall(story)}
    beginnings, seen, openings = prompts_from(real, generator), set[str](), Counter[str]()
    while True:
        prompts = [[begin]] * (rows // 2)
        prompts += [
            [begin, *tokenizer.encode(next(beginnings), add_special_tokens=False).ids][:120]
            for _ in range(rows - rows // 2)
        ]
        batch = []
        for ids in sample_batch(model, prompts, ends, 448, settings, generator):
            story = mend(tokenizer.decode(ids))
            if story not in seen and is_clean(story, vocabulary) and openings[sentences(story)[0]] < MAX_SAME_OPENING:
                seen.add(story)
                openings[sentences(story)[0]] += 1
                batch.append(story)
        yield batch


def main() -> None:
    """Sample until `--megabytes` of clean stories are in `--out`, one JSON row a story."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tinystories", type=Path, required=True, help=f"folder with {TRAIN_FILE} and {VALIDATION_FILE}"
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of the stories260K model in transformers format"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    parser.add_argument("--megabytes", type=float, default=6.5)
    parser.add_argument("--temperature", type=float, default=0.72)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    real, _ = real_stories(arguments.tinystories, N_HELDOUT)
    generator = torch.Generator().manual_seed(arguments.seed)
    n_bytes, n_stories, begin = 0, 0, time.perf_counter()
    with arguments.out.open("w", encoding="utf-8") as file:
        for batch in sampled_stories(arguments.model, real, (arguments.temperature, arguments.top_p), 768, generator):
            for story in batch:
                file.write(json.dumps({"text": story}) + "\n")
                n_bytes, n_stories = n_bytes + len(story), n_stories + 1
            file.flush()
            print(f"{n_stories} stories, {n_bytes / 1e6:.2f} MB, {time.perf_counter() - begin:.0f} s", flush=True)
            if n_bytes >= arguments.megabytes * 1e6:
                return


if __name__ == "__main__":
    main()
