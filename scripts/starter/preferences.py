"""Write the preferences that ship with the starter: of two answers of its own, the warmer one is the better one.

Prompts ask for little stories in English and Chinese. The starter answers each of them several times; two answers of
which one is clearly warmer (`examples/warmth.py`) and that are about as long make a pair. No prompt of the held-out
rows is among those of the training rows, which have up to four pairs to a prompt: a reward model that saw 133 pairs
told .81 to .84 of the held-out ones apart, because it had met few of the words that count. Five minutes on one core:

    python scripts/starter/preferences.py
"""

from __future__ import annotations

import json
import random
import runpy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import chinese
import english
from grammar import a

from luthier.data.records import PromptAnswer, prompt_of
from luthier.data.render import render_prompt
from luthier.models.load import load_model
from luthier.train.generate import Sampling, sample, stop_tokens

ROOT = Path(__file__).parents[2]
warmth = runpy.run_path(str(ROOT / "examples/warmth.py"))["warmth"]
DATA = ROOT / "src/luthier/starter/data"
ASKED, HELD_OUT_ASKED, PROMPTS = 900, 300, 300
"""Prompts; about a third of them has two answers that make a pair."""
EACH, HELD_OUT = 4, 100
"""Pairs of a training prompt at most, and held-out pairs, each of a prompt of its own, at most."""
ANSWERS = 24
LENGTHS = {"en": (40, 230), "zh": (12, 75)}
"""Characters of an answer; others are left out."""
ENDS = {"en": (".", "!", "?", '"'), "zh": ("。", "！", "？", "”")}
ROOM = 72
GAP = 2.0
"""How much warmer the better answer is at least."""
OPENINGS = """{who} woke up early. | {who} went to the park. | {who} found {thing}. | {who} had a new toy.
    | {who} was by the sea. | {who} wanted to play. | {who} saw a bird. | {who} met a dog. | {who} lost {thing}.
    | {who} was sad. | {who} was alone. | {who} was tired. | {who} had no friends. | {who} was hungry.
    | {who} made a cake. | It was time to go home, and {who} was happy. | {who} gave the ball back."""
OPENINGS_ZH = """{who}在草地上玩。 | {who}很早就起来了。 | {who}有一个{thing}。 | {who}找不到{thing}了。
    | {who}去公园玩。 | {who}有点儿难过。"""
GO_ON = ("Finish this story: ", "What happens next? ", "Go on: ", "Continue the story: ")
GO_ON_ZH = ("后来呢？", "接着写：", "继续：")


@dataclass(frozen=True)
class Judged:
    """An answer with its true score."""

    text: str
    warmth: float


def prompts(count: int, seed: int = 0) -> list[str]:
    """Return different requests for a story; four in five are English."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        found[_prompt_zh(draw) if len(found) % 5 == 4 else _prompt(draw)] = None
    return list(found)


def _prompt(draw: random.Random) -> str:
    who, thing = draw.choice(english.GIRLS + english.BOYS), a(draw.choice(english.TOYS))
    return draw.choice(GO_ON) + _one_of(OPENINGS, draw).format(who=who, thing=thing)


def _prompt_zh(draw: random.Random) -> str:
    who, thing = draw.choice(chinese.GIRLS + chinese.BOYS), draw.choice(chinese.TOYS)
    return draw.choice(GO_ON_ZH) + _one_of(OPENINGS_ZH, draw).format(who=who, thing=thing)


def _one_of(alternatives: str, draw: random.Random) -> str:
    return draw.choice([choice.strip() for choice in alternatives.split("|")])


def sampled(asked: Sequence[str], seed: int, count: int = ANSWERS) -> Iterator[tuple[str, list[Judged]]]:
    """Yield each prompt with the starter's own answers to it: whole ones that are short enough, each once."""
    model = load_model("starter")
    tokens = [render_prompt(model.tokenizer, prompt_of(PromptAnswer(p, "", "", "", (), False, ""))) for p in asked]
    drawn = sample(model, tokens, count, Sampling(ROOM, temperature=0.9, seed=seed), counts=False)
    stops = set(stop_tokens(model))
    for prompt, answers in zip(asked, drawn):
        kept = {}
        for answer in answers:
            new = answer.tokens.tolist()
            text = str(model.tokenizer.decode([t for t in new if t not in stops])).strip()
            if new[-1] in stops and _is_fit(text, "zh" if _is_chinese(prompt) else "en"):
                kept[text] = Judged(text, warmth(text))
        yield prompt, list(kept.values())


def _is_chinese(text: str) -> bool:
    return any(ord(c) > 0x2E7F for c in text)


def _is_fit(text: str, language: str) -> bool:
    """Say whether an answer is whole, of a length that ships, and in one language."""
    low, high = LENGTHS[language]
    is_mixed = _is_chinese(text) if language == "en" else any("a" <= c <= "z" for c in text.lower())
    return low <= len(text) <= high and text.endswith(ENDS[language]) and not is_mixed and "\ufffd" not in text


def pair(answers: Sequence[Judged], each: int, draw: random.Random) -> list[tuple[str, str]]:
    """Return up to `each` pairs of a warmer and a less warm answer of about the same length."""
    fitting = [
        (better.text, worse.text)
        for better in answers
        for worse in answers
        if better.warmth >= worse.warmth + GAP and 0.6 < len(better.text) / len(worse.text) < 1.6
    ]
    return draw.sample(fitting, min(each, len(fitting)))


def pairs(asked: Sequence[str], seed: int, each: int) -> list[dict[str, str]]:
    """Return rows with a prompt, a better and a worse answer."""
    draw, rows = random.Random(seed), []
    for prompt, answers in sampled(asked, seed):
        found = pair(answers, each, draw)
        rows += [{"prompt": prompt, "chosen": better, "rejected": worse} for better, worse in found]
    return rows


def write(name: str, rows: Sequence[dict[str, str]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (DATA / name).write_text(text, encoding="utf-8")
    print(f"{name}: {len(rows)} rows, {len(text.encode()):,} bytes")


def main() -> None:
    held_out = pairs(prompts(8 * HELD_OUT, seed=1)[:HELD_OUT_ASKED], seed=1, each=1)[:HELD_OUT]
    known = frozenset(row["prompt"] for row in held_out)
    write("preferences_eval.jsonl", held_out)
    asked = [prompt for prompt in prompts(ASKED + 600, seed=0) if prompt not in known][:ASKED]
    write("preferences.jsonl", pairs(asked, seed=0, each=EACH))
    write("story_prompts.jsonl", [{"prompt": p} for p in prompts(PROMPTS + 200, seed=2) if p not in known][:PROMPTS])


if __name__ == "__main__":
    main()
