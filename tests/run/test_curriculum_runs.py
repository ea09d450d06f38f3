"""Runs with easy rows first, from the user's side: by length, by a column, by the base model's loss; resumed alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from families import write
from luthier.core.errors import RecipeError
from luthier.run.config import parse_recipe
from recipes import luthier, pairs, write_recipe, write_rows

Capture = pytest.CaptureFixture[str]
BASE = {"model": "starter", "method": "lora", "data": "starter:quickstart"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama", tmp_path_factory.mktemp("model"))


def metrics_of(run: Path) -> list[dict]:
    [file] = run.glob("00-*/metrics.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "step_seconds"} for row in rows]


def rows(home: Path) -> None:
    """Write rows that are the harder the longer they are, in both files."""
    home.mkdir(parents=True, exist_ok=True)
    for name, seed in (("one", 0), ("two", 1)):
        made = [{**row, "grade": len(row["prompt"].split())} for row in pairs(20, seed)]
        write_rows(home / f"{name}.jsonl", made)


def test_a_run_by_length_begins_with_short_rows_and_says_so(model: Path, tmp_path: Path, capsys: Capture) -> None:
    home = tmp_path / "r"
    rows(home)
    recipe = write_recipe(home, model, data="one.jsonl", curriculum="length", max_steps=10)
    said = luthier(capsys, "train", recipe, "--json")
    assert said.code == 0, said.err
    assert "the first steps draw from 20% of the rows" in " ".join(said.err.split())
    made = metrics_of(home / "run")
    assert [row["allowed_share"] for row in made] == [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1]
    assert made[0]["tokens"] < min(row["tokens"] for row in made[4:])
    assert said.json["data"]["curriculum"]["growing_steps"] == 5


@pytest.mark.parametrize(
    "curriculum",
    [{"by": "loss", "pace": "root"}, {"by": "difficulty", "column": "grade", "start": 0.1, "over": 1, "pace": "step"}],
    ids=["loss", "difficulty"],
)
def test_a_curriculum_over_a_mixture_goes_on_bit_for_bit(
    curriculum: dict, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    home = tmp_path / "r"
    rows(home)
    keys = {"data": ["one.jsonl", "two.jsonl"], "curriculum": curriculum, "max_steps": 8, "save_steps": 3}
    recipe = write_recipe(home, model, keep_checkpoints=9, **keys)
    said = luthier(capsys, "train", recipe)
    assert said.code == 0, said.err
    assert ("Not used: grade" in said.err) == (curriculum["by"] == "loss")  # a column that plays a part is used
    made = metrics_of(home / "run")
    stage = home / "run" / "00-sft"
    assert (stage / "curriculum.safetensors").is_file() == (curriculum["by"] == "loss")
    for step in ("step-000003", "step-000006", "step-000008"):
        if step != "step-000003":
            shutil.rmtree(stage / "checkpoints" / step)
    (home / "run" / "report.json").unlink()
    assert luthier(capsys, "resume", home / "run").code == 0
    assert metrics_of(home / "run") == made


def test_a_row_without_its_number_is_told_with_file_and_line(model: Path, tmp_path: Path, capsys: Capture) -> None:
    home = tmp_path / "r"
    home.mkdir()
    made = [{**row, "difficulty": 1} for row in pairs(6)]
    made[3]["difficulty"] = "hard"  # type: ignore[assignment]
    del made[4]["difficulty"]
    write_rows(home / "rows.jsonl", made)
    said = luthier(capsys, "check", write_recipe(home, model, curriculum="difficulty"))
    assert said.code == 2
    assert "rows.jsonl:4" in said.err
    assert "rows.jsonl:5" in said.err


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"curriculum": "lenght"}, "curriculum"),
        ({"curriculum": {"by": "lenght"}}, 'Did you mean "length"?'),
        ({"curriculum": {"start": 0}}, "curriculum.start is 0; it has to be more than 0"),
        ({"curriculum": {"column": "x"}}, "curriculum.column has no effect"),
        ({"curriculum": "length", "max_steps": "5 seconds"}, "count epochs, or steps"),
        ({"curriculum": "loss", "objective": "dpo", "data": "x"}, "use length, or difficulty"),
    ],
)
def test_what_a_curriculum_cannot_be_is_refused_with_a_remedy(keys: dict, told: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe({**BASE, **keys})
    assert told in str(error.value)


def test_a_curriculum_survives_the_dump() -> None:
    recipe = parse_recipe({**BASE, "curriculum": "loss"})
    assert parse_recipe(recipe.dump()) == recipe
