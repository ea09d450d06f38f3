"""Runs on several data sets from the user's side: counted, measured and checked by set, and the same after a kill."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from families import write
from luthier.core.errors import RecipeError
from luthier.run.config import parse_recipe
from recipes import luthier, pairs, texts, words, write_recipe, write_rows

Capture = pytest.CaptureFixture[str]
BASE = {"model": "starter", "method": "lora"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama", tmp_path_factory.mktemp("model"))


def metrics_of(run: Path) -> list[dict]:
    [file] = run.glob("00-*/metrics.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "step_seconds"} for row in rows]


def tensors_of(run: Path) -> dict:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    files = sorted((run / report["final_checkpoint"]).glob("*.safetensors"))
    return {name: tensor.tolist() for file in files for name, tensor in load_file(file).items()}


def two_sets(home: Path) -> list[object]:
    home.mkdir(parents=True, exist_ok=True)
    write_rows(home / "asked.jsonl", pairs(24))
    rows = [{"frage": row["prompt"], "antwort": row["completion"]} for row in pairs(8, seed=1)]
    write_rows(home / "other.jsonl", rows)
    columns = {"prompt": "frage", "answer": "antwort"}
    return ["asked.jsonl", {"path": "other.jsonl", "columns": columns, "name": "foreign", "weight": 1}]


def test_sets_of_other_columns_are_mixed_and_each_is_counted_and_measured(
    model: Path, tmp_path: Path, capsys: Capture
) -> None:
    home = tmp_path / "r"
    recipe = write_recipe(home, model, data=two_sets(home), eval_fraction=0.25, max_steps=6, eval_steps=3, samples=4)
    said = luthier(capsys, "train", recipe, "--json")
    assert said.code == 0, said.err
    assert "asked 50.0%" in said.err
    assert "foreign 50.0%" in said.err
    first, second = said.json["data"]["sets"]
    assert [first[key] for key in ("name", "rows", "train_rows", "held_out_rows")] == ["asked", 24, 18, 6]
    assert [second[key] for key in ("name", "rows", "train_rows", "held_out_rows")] == ["foreign", 8, 6, 2]
    assert (first["share"], first["drawn"], second["drawn"], second["passes"]) == (0.5, 12, 12, 2.0)
    assert said.json["data"]["tokens"] == first["tokens"] + second["tokens"]
    measured = [row for row in metrics_of(home / "run") if "eval_loss" in row]
    assert len(measured) == 2
    for row in measured:
        low, high = sorted([row["eval_loss_asked"], row["eval_loss_foreign"]])
        assert low <= row["eval_loss"] <= high
    after = said.json["eval"]["after"]
    assert after["held-out loss"]["value"] == pytest.approx(measured[-1]["eval_loss"], rel=1e-5)
    assert after["held-out loss (foreign)"]["value"] == pytest.approx(measured[-1]["eval_loss_foreign"], rel=1e-5)
    assert after["held-out loss (asked)"]["n"] == 6
    samples = (home / "run" / "00-sft" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(samples) == 4
    page = (home / "run" / "report.html").read_text(encoding="utf-8")
    assert "foreign" in page


def test_a_mixed_run_that_was_stopped_goes_on_bit_for_bit(model: Path, tmp_path: Path, capsys: Capture) -> None:
    home = tmp_path / "r"
    keys = {"data": two_sets(home), "mix": {"temperature": 3}, "eval_fraction": 0.25, "max_steps": 8, "save_steps": 3}
    recipe = write_recipe(home, model, keep_checkpoints=9, **keys)
    assert luthier(capsys, "train", recipe).code == 0
    rows, tensors = metrics_of(home / "run"), tensors_of(home / "run")
    stage = home / "run" / "00-sft"
    for step in ("step-000006", "step-000008"):
        shutil.rmtree(stage / "checkpoints" / step)
    (home / "run" / "report.json").unlink()
    assert luthier(capsys, "resume", home / "run").code == 0
    assert metrics_of(home / "run") == rows
    assert tensors_of(home / "run") == tensors


def test_a_list_of_one_set_is_the_plain_run_bit_for_bit(model: Path, tmp_path: Path, capsys: Capture) -> None:
    outcomes = []
    for name, data in (("plain", "rows.jsonl"), ("listed", ["rows.jsonl"])):
        home = tmp_path / name
        home.mkdir()
        write_rows(home / "rows.jsonl", pairs(20))
        recipe = write_recipe(home, model, data=data, eval_fraction=0.2, max_steps=7, eval_steps=2)
        assert luthier(capsys, "train", recipe).code == 0
        outcomes.append((metrics_of(home / "run"), tensors_of(home / "run")))
    assert outcomes[0] == outcomes[1]


def test_what_is_wrong_in_any_set_is_told_at_once_with_file_and_line(
    model: Path, tmp_path: Path, capsys: Capture
) -> None:
    home = tmp_path / "r"
    home.mkdir()
    (home / "a.jsonl").write_text('{"prompt": "w3", "completion": "w4"}\n{"prompt": "w3"\n', encoding="utf-8")
    (home / "b.jsonl").write_text('{"prompt": "w3", "completion": "w4"}\n{"prompt": 7}\n', encoding="utf-8")
    recipe = write_recipe(home, model, data=["a.jsonl", {"path": "b.jsonl", "weight": 2}, "c.jsonl"])
    said = luthier(capsys, "check", recipe)
    assert said.code == 2
    assert "a.jsonl:2" in said.err
    assert "b.jsonl:2" in said.err
    assert "c.jsonl" in said.err


def test_rows_that_are_too_long_are_told_for_every_set(model: Path, tmp_path: Path, capsys: Capture) -> None:
    home = tmp_path / "r"
    data = two_sets(home)
    said = luthier(capsys, "train", write_recipe(home, model, data=data, max_length=4))
    assert said.code == 2
    assert "asked.jsonl:" in said.err
    assert "other.jsonl:" in said.err


def test_text_and_conversations_are_mixed_under_lm_and_a_text_is_refused_under_sft(
    model: Path, tmp_path: Path, capsys: Capture
) -> None:
    home = tmp_path / "r"
    home.mkdir()
    write_rows(home / "texts.jsonl", texts(9))
    write_rows(home / "pairs.jsonl", pairs(9))
    data = ["texts.jsonl", "pairs.jsonl"]
    said = luthier(capsys, "train", write_recipe(home, model, data=data, objective="lm", max_length=16), "--json")
    assert said.code == 0, said.err
    assert said.json["data"]["format"] == "text, flan"
    refused = luthier(capsys, "check", write_recipe(home, model, data=data, objective="sft"))
    assert refused.code == 2
    assert "texts.jsonl" in refused.err
    assert "objective=lm" in refused.err


def test_classes_are_those_of_all_sets_together(model: Path, tmp_path: Path, capsys: Capture) -> None:
    home = tmp_path / "r"
    home.mkdir()
    draw = random.Random(0)
    for name, labels in (("one", ("good", "bad")), ("two", ("bad", "odd"))):
        rows = [{"text": words(draw, 4), "label": labels[i % 2]} for i in range(12)]
        write_rows(home / f"{name}.jsonl", rows)
    keys = {"objective": {"kind": "classify", "class_weights": "balanced"}, "eval_fraction": 0.25, "max_steps": 3}
    said = luthier(capsys, "train", write_recipe(home, model, data=["one.jsonl", "two.jsonl"], **keys), "--json")
    assert said.code == 0, said.err
    assert list(said.json["data"]["classes"]) == ["bad", "good", "odd"]
    assert {"held-out accuracy", "held-out accuracy (one)", "held-out accuracy (two)"} <= said.json["eval"][
        "after"
    ].keys()
    assert "eval_accuracy_two" in metrics_of(home / "run")[-1]


@pytest.mark.parametrize("objective", ["dpo", "kto", "reward"])
def test_pairs_with_and_without_margins_are_mixed(objective: str, model: Path, tmp_path: Path, capsys: Capture) -> None:
    home = tmp_path / "r"
    home.mkdir()
    draw = random.Random(0)
    for name, more in (("plain", {}), ("margins", {"margin": 1.5})):
        rows = [
            {"prompt": words(draw, 3) + " ", "chosen": words(draw, 2), "rejected": words(draw, 3), **more}
            for _ in range(8)
        ]
        write_rows(home / f"{name}.jsonl", rows)
    keys = {"objective": objective, "eval_fraction": 0.25, "max_steps": 3}
    said = luthier(capsys, "train", write_recipe(home, model, data=["plain.jsonl", "margins.jsonl"], **keys), "--json")
    assert said.code == 0, said.err
    assert {"held-out accuracy (plain)", "held-out accuracy (margins)"} <= said.json["eval"]["after"].keys()
    assert "eval_loss_margins" in metrics_of(home / "run")[-1]


def test_the_check_says_what_comes_from_each_set(model: Path, tmp_path: Path, capsys: Capture) -> None:
    home = tmp_path / "r"
    recipe = write_recipe(home, model, data=two_sets(home), mix={"temperature": 2})
    said = luthier(capsys, "check", recipe, "--json")
    assert said.code == 0, said.err
    shares = {part["name"]: part["share"] for part in said.json["data"]["sets"]}
    assert shares == pytest.approx({"asked": 24**0.5 / (24**0.5 + 8**0.5), "foreign": 8**0.5 / (24**0.5 + 8**0.5)})


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"data": []}, "data is empty"),
        ({"data": ["a", {"path": "b", "weigth": 2}]}, 'Did you mean "weight"?'),
        ({"data": ["a", {"path": "b", "weight": 0}]}, "data.1.weight is 0; it has to be more than 0"),
        ({"data": ["a", {"path": "b", "format": "alpacca"}]}, 'Did you mean "alpaca"?'),
        ({"data": ["a", "a"]}, "a stands there twice"),
        ({"data": [{"path": "a", "name": "x"}, {"path": "b", "name": "x"}]}, 'the name "x" is used twice'),
        ({"data": {"path": "a", "weight": 2}}, "data: [{path: …, weight: …}, …]"),
        ({"data": [{"path": "a", "weight": 2}]}, "there is but one data set"),
        ({"data": "a", "mix": {"temperature": 2}}, "mix has no effect: there is but one data set"),
        ({"data": ["a", "b"], "mix": {"temperature": 0}}, "mix.temperature is 0; it has to be more than 0"),
        ({"data": ["a", "b"], "mix": {"temprature": 2}}, 'Did you mean "temperature"?'),
        ({"data": ["a", "b"], "interleave_probs": "0.3,0.7"}, "weight"),
    ],
)
def test_what_cannot_be_mixed_is_refused_with_a_remedy(keys: dict, told: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe({**BASE, **keys})
    assert told in str(error.value)


def test_a_recipe_of_several_sets_survives_its_own_dump() -> None:
    recipe = parse_recipe({**BASE, "data": ["a", {"path": "b", "weight": 2, "limit": 3}], "mix": {"temperature": 2}})
    assert parse_recipe(recipe.dump()) == recipe
    assert [spec.path for spec in recipe.data_sets] == ["a", "b"]
