"""Runs whose length is said in tokens or seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.errors import RecipeError
from luthier.run.allowance import steps_for_tokens
from luthier.run.config import parse_recipe
from recipes import luthier, pairs, write_recipe, write_rows


def trained(run: Path) -> tuple[dict, list[dict]]:
    rows = [json.loads(line) for line in (next(run.glob("0*")) / "metrics.jsonl").open()]
    return json.loads((run / "report.json").read_text()), rows


@pytest.mark.parametrize("batch_size", [2, 5])
def test_a_run_stops_at_the_first_step_past_its_tokens(
    batch_size: int, family_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = family_folder("llama")
    recipe = write_recipe(tmp_path, model, max_steps="300 tokens", batch_size=batch_size, samples=0)
    assert luthier(capsys, "train", recipe).code == 0
    report, rows = trained(tmp_path / "run")
    assert report["tokens_total"] - rows[-1]["tokens"] < 300 <= report["tokens_total"]
    assert not report["stopped_early"]
    # The decay is planned over the true number of steps: the last rate is next to nothing.
    assert rows[-1]["learning_rate"] < 0.2 * max(row["learning_rate"] for row in rows)
    assert json.loads((tmp_path / "run" / "resolved.json").read_text())["recipe"]["max_steps"] == "300 tokens"


def test_replayed_rows_count_as_tokens_too(
    family_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_rows(tmp_path / "general.jsonl", pairs(9, seed=3))
    replay = [{"kind": "replay", "data": str(tmp_path / "general.jsonl"), "share": 0.5}]
    recipe = write_recipe(
        tmp_path, family_folder("llama"), max_steps="200 tokens", batch_size=4, samples=0, regularizers=replay
    )
    said = luthier(capsys, "train", recipe)
    assert said.code == 0, said.err
    report, rows = trained(tmp_path / "run")
    assert report["tokens_total"] - rows[-1]["tokens"] < 200 <= report["tokens_total"]


def test_a_run_stops_at_the_first_step_past_its_seconds_and_its_rate_has_fallen_by_then(
    family_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe = write_recipe(tmp_path, family_folder("llama"), max_steps="1.5 seconds", samples=0, eval_fraction=0.2)
    assert luthier(capsys, "train", recipe).code == 0
    report, rows = trained(tmp_path / "run")
    assert report["train_seconds"] - rows[-1]["step_seconds"] < 1.5 <= report["train_seconds"]
    assert report["steps"] == len(rows)
    assert rows[-1]["learning_rate"] < 0.1 * max(row["learning_rate"] for row in rows)
    assert "eval_loss" in rows[-1]
    assert luthier(capsys, "show", tmp_path / "run").code == 0


def test_the_steps_for_an_amount_of_tokens():
    assert steps_for_tokens(10, iter([4, 4, 4, 4])) == 3
    assert steps_for_tokens(8, iter([4, 4, 4, 4])) == 2
    assert steps_for_tokens(0.5, iter([4, 4])) == 1


WRONG = [
    ({"max_steps": "ten minutes"}, "such as 600 seconds"),
    ({"max_steps": "2.5"}, "such as 600 seconds"),
    ({"max_steps": "9 seconds", "method": "adalora"}, "plans over all steps"),
    ({"max_steps": "9 tokens", "epochs": 2}, "epochs has no effect"),
    ({"max_steps": "9 tokens", "objective": {"kind": "grpo", "reward": "exact_match"}}, "not known beforehand"),
]


@pytest.mark.parametrize(("keys", "told"), WRONG)
def test_an_amount_that_cannot_be_kept_to_is_told(keys: dict, told: str):
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"model": "starter", "method": "lora", "data": "starter:quickstart", **keys})
    assert told in str(caught.value)
