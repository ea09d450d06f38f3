"""Small recipes, data and the program itself, for tests that go the user's way."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from luthier.cli.main import main


@dataclass(frozen=True)
class Said:
    """What the program left: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)

    @property
    def problems(self) -> list[str]:
        """The errors shown, each with its remedy."""
        return [part for part in self.err.split("error: ")[1:] if part.strip()]


def luthier(capsys: pytest.CaptureFixture[str], *argv: object) -> Said:
    """Run the program in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in argv])
    shown = capsys.readouterr()
    return Said(left.value.code if isinstance(left.value.code, int) else 1, shown.out, shown.err)


def words(draw: random.Random, count: int) -> str:
    """Return words of the tiny models' vocabulary."""
    return " ".join(f"w{draw.randrange(3, 60)}" for _ in range(count))


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return rows of a prompt and its completion, which repeats the prompt's first words."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        prompt = words(draw, draw.randint(3, 9))
        rows.append({"prompt": prompt + " ", "completion": " ".join(prompt.split()[:2])})
    return rows


def texts(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return rows of plain text."""
    draw = random.Random(seed)
    return [{"text": words(draw, draw.randint(5, 30))} for _ in range(count)]


def write_rows(path: Path, rows: Sequence[dict]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_recipe(folder: Path, model: object, **keys: object) -> Path:
    """Write a recipe of a few steps, with data beside it unless `data` is given."""
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, object] = {
        "model": model if isinstance(model, dict) else str(model),
        "method": "lora",
        "data": "rows.jsonl",
        "max_steps": 4,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "samples": 1,
        "run": str(folder / "run"),
    }
    values = {key: value for key, value in {**values, **keys}.items() if value is not None}
    if values.get("data") == "rows.jsonl" and not (folder / "rows.jsonl").exists():
        write_rows(folder / "rows.jsonl", pairs(20))
    path = folder / "recipe.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path
