"""The preferences that ship: ordered by a score that can be checked, measured on prompts that were not trained on."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

from luthier.data.spec import resolve_path

WARMTH = runpy.run_path(str(Path(__file__).parents[2] / "examples/warmth.py"))["warmth"]
GAP = 2.0


def _rows(name: str) -> list[dict[str, str]]:
    text = resolve_path(f"starter:{name}").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_better_answer_is_the_clearly_warmer_one() -> None:
    for name in ("preferences", "preferences_eval"):
        assert all(WARMTH(row["chosen"]) >= WARMTH(row["rejected"]) + GAP for row in _rows(name)), name


def test_no_prompt_is_both_trained_on_and_measured() -> None:
    held_out = {row["prompt"] for row in _rows("preferences_eval")}
    assert not held_out & {row["prompt"] for row in _rows("preferences")}
    assert not held_out & {row["prompt"] for row in _rows("story_prompts")}


def test_length_gives_nothing_away() -> None:
    rows = _rows("preferences")
    longer = [len(row["chosen"]) > len(row["rejected"]) for row in rows]
    assert len(rows) > 500
    assert 0.4 < sum(longer) / len(longer) < 0.65, "a reward model that counts letters would be right too often"
