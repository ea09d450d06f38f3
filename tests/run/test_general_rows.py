"""Rows of other data in a run: replayed in every step, or looked at once; counted, shown, and the same on resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from families import write
from luthier.core.errors import RecipeError
from luthier.data.stream import Stream
from luthier.run.config import parse_recipe
from luthier.run.general_rows import GeneralRows, own_rows, replayed
from recipes import luthier, texts, write_recipe, write_rows

Capture = pytest.CaptureFixture[str]
BASE = {"model": "starter", "method": "lora", "data": "starter:quickstart"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama", tmp_path_factory.mktemp("model"))


def metrics_of(run: Path) -> list[dict]:
    [file] = run.glob("00-*/metrics.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_run_mixes_rows_in_and_says_how_many(model: Path, tmp_path: Path, capsys: Capture) -> None:
    home = tmp_path / "r"
    home.mkdir()
    write_rows(home / "general.jsonl", texts(7))
    parts = [
        {"kind": "replay", "data": "general.jsonl", "share": 0.25},
        {"kind": "ewc", "data": "general.jsonl", "rows": 3},
        {"kind": "kl", "weight": 0.5},
        "l2_sp",
        "neftune",
    ]
    keys = {"regularizers": parts, "batch_size": 8, "max_steps": 4, "save_steps": 2, "keep_checkpoints": 9}
    recipe = write_recipe(home, model, **keys)
    said = luthier(capsys, "train", recipe, "--json")
    assert said.code == 0, said.err
    assert "general.jsonl, 2 of 8 in every step" in said.err
    general = said.json["data"]["general"]
    assert [(g["kind"], g["sequences"], g["per_step"], g["replayed"]) for g in general] == [
        ("replay", 7, 2, 8),
        ("ewc", 3, 0, 0),
    ]
    rows = metrics_of(home / "run")
    assert all({"kl_to_base", "l2_sp", "ewc"} <= row.keys() for row in rows)
    assert rows[-1]["kl_to_base"] > 0
    # A run that stopped after two steps goes on as if it had not.
    stage = next((home / "run").glob("00-*"))
    assert len(list(stage.glob("checkpoints/*"))) == 2
    shutil.rmtree(max(stage.glob("checkpoints/*")))
    (home / "run" / "report.json").unlink(missing_ok=True)
    again = luthier(capsys, "resume", home / "run", "--json")
    assert again.code == 0, again.err
    timeless = [{k: v for k, v in row.items() if k != "step_seconds"} for row in rows]
    assert [{k: v for k, v in row.items() if k != "step_seconds"} for row in metrics_of(home / "run")] == timeless


def test_the_rows_of_a_step_are_a_function_of_seed_and_step_and_all_come_in_turn() -> None:
    part = {"kind": "replay", "data": "x.jsonl", "share": 0.4}
    recipe = parse_recipe({**BASE, "batch_size": 5, "regularizers": [part]})
    general = [GeneralRows(0, list(range(7)), 2, "x.jsonl")]  # type: ignore[arg-type]
    assert own_rows(recipe) == 3
    steps = [replayed(recipe, general, step) for step in range(7)]
    assert all(len(rows) == 2 for rows in steps)
    assert sorted(row for rows in steps for row in rows) == sorted([*range(7), *range(7)])
    assert replayed(recipe, general, 3) == steps[3]
    assert steps != [replayed(recipe.model_copy(update={"seed": 1}), general, step) for step in range(7)]


def test_a_place_in_the_endless_sequence_is_that_of_its_epoch() -> None:
    stream = Stream(5, 2, seed=3)
    assert [stream.at(i) for i in range(10)] == [int(i) for epoch in (0, 1) for i in stream.epoch_order(epoch)]


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"regularizers": ["kl", {"kind": "kl", "weight": 2}]}, "twice"),
        ({"regularizers": [{"kind": "replay", "data": "x", "share": 0.6}] * 2, "batch_size": 2}, "none of data"),
        ({"regularizers": [{"kind": "replay", "data": "x"}], "batch_size": 1}, "raise batch_size"),
        ({"regularizers": ["kl"], "objective": "classify"}, "predicts none"),
        ({"regularizers": [{"kind": "ewc", "data": "x"}], "objective": "classify"}, "predicts none"),
        ({"regularizers": ["neftune"], "objective": "classify", "method": "feature_extraction"}, "no effect"),
        ({"regularizers": ["neftune"], "objective": {"kind": "grpo", "reward": "exact_match"}}, "own change"),
        (
            {"regularizers": [{"kind": "replay", "data": "x"}], "objective": {"kind": "grpo", "reward": "exact_match"}},
            "own",
        ),
        ({"regularizers": ["dropout"]}, "There is no regularizer"),
        ({"regularizers": [{"kind": "kl", "weight": 0}]}, "more than 0"),
        ({"regularizers": ["ewc"]}, "data"),
        ({"reasoning": "secret"}, "stripped"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_its_reason(keys: dict[str, object], what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        parse_recipe({**BASE, **keys})


def test_a_recipe_with_regularizers_survives_its_dump() -> None:
    parts = ["l2_sp", {"kind": "replay", "data": {"path": "starter:stories", "limit": 5}, "share": 0.3}]
    recipe = parse_recipe({**BASE, "regularizers": parts})
    assert parse_recipe(json.loads(json.dumps(recipe.dump()))) == recipe
    assert parse_recipe({**BASE, "regularizers": "neftune"}).regularizers[0].model_dump()["alpha"] == 5.0
