"""`luthier plan --params`: what would be trained, from a folder that holds nothing but config.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertConfig

from families import config
from luthier.core.component import kinds
from recipes import luthier, write_recipe, write_rows

LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


@pytest.fixture
def seven_billion(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_2_7B))
    return folder


def recipe_for(folder: Path, method: object, **keys: object) -> Path:
    path = folder.parent / "recipe.json"
    path.write_text(json.dumps({"model": str(folder), "method": method, "data": "not-there-yet.jsonl", **keys}))
    return path


def test_a_recipe_is_counted_from_config_json_alone(seven_billion: Path, capsys: pytest.CaptureFixture[str]):
    recipe = recipe_for(seven_billion, {"kind": "lora", "rank": 8, "targets": ["q_proj", "v_proj"]})
    said = luthier(capsys, "plan", recipe, "--params", "--json")
    assert said.code == 0, said.err
    # The count that PEFT prints for rank 8 on q_proj and v_proj of Llama-2-7B.
    assert said.json["trainable_parameters"] == 4_194_304
    assert said.json["total_parameters"] == 6_738_415_616 + 4_194_304
    said = luthier(capsys, "plan", recipe, "method.rank=64", "method.targets=all-linear", "--params", "--json")
    assert said.json["trainable_parameters"] == 159_907_840
    said = luthier(capsys, "plan", recipe, "method=full", "--params")
    assert "6,738,415,616 parameters, 100%" in said.out


@pytest.mark.parametrize("method", ["full", "lora", {"kind": "layers", "last": 1}, {"kind": "bitfit", "norms": True}])
@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_the_counts_are_those_that_the_run_reports(
    method: object,
    family: str,
    family_folder: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    recipe = write_recipe(tmp_path, family_folder(family), method=method, max_steps=1, samples=0)
    planned = luthier(capsys, "plan", recipe, "--params", "--json").json
    trained = luthier(capsys, "train", recipe, "--json").json
    for key in ("trainable_parameters", "total_parameters"):
        assert planned[key] == trained[key]


def test_every_method_is_counted_for_a_model(seven_billion: Path, capsys: pytest.CaptureFixture[str]):
    said = luthier(capsys, "plan", seven_billion, "--params", "--json")
    assert said.code == 0, said.err
    assert said.json["total_parameters"] == 6_738_415_616
    rows = {row["kind"]: row for row in said.json["methods"]}
    assert list(rows) == list(kinds("method"))
    assert rows["full"]["trainable_parameters"] == 6_738_415_616
    assert rows["lora"]["trainable_parameters"] == 19_988_480
    assert rows["layers"]["settings"] == {"last": 2}  # without a choice it would train nothing
    for row in rows.values():
        assert (row.get("trainable_parameters", 0) > 0) != bool(row.get("refused"))
    shown = luthier(capsys, "plan", seven_billion, "--params").out
    assert "19,988,480" in shown
    assert all(kind in shown for kind in kinds("method"))


def test_an_encoder_is_counted_as_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    BertConfig().save_pretrained(tmp_path)
    said = luthier(capsys, "plan", tmp_path, "--params", "--json")
    assert said.code == 0, said.err
    assert said.json["architecture"] == "BertForSequenceClassification"
    rows = {row["kind"]: row.get("trainable_parameters") for row in said.json["methods"]}
    assert rows["full"] == said.json["total_parameters"] == 109_482_240 + 768 * 2 + 2


def test_a_classifier_s_head_has_a_row_for_each_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "bert"
    BertConfig().save_pretrained(folder)
    recipe = recipe_for(folder, {"kind": "bitfit"}, objective="classify")
    named = {"kind": "classify", "names": {"0": "bad", "1": "fair", "2": "good"}}
    counts = {}
    for objective in ("classify", named):
        recipe = recipe_for(folder, "bitfit", objective=objective)
        said = luthier(capsys, "plan", recipe, "--params", "--json")
        assert said.code == 0, said.err
        counts[len(counts) + 2] = said.json["trainable_parameters"]
    assert counts[3] - counts[2] == 768 + 1
    rows = [{"text": f"w{i}", "label": i % 5} for i in range(20)]
    write_rows(tmp_path / "not-there-yet.jsonl", rows)
    said = luthier(capsys, "plan", recipe_for(folder, "bitfit", objective="classify"), "--params", "--json")
    assert said.json["trainable_parameters"] == counts[2] + 3 * (768 + 1)


WRONG = [
    ({"kind": "lora", "targets": ["q", "nothing"]}, 'The target "nothing" matches no linear module', "q_proj"),
    ("bitfit", "have no biases", "norms: true"),
    ("layers", "nothing would be trained", "last: 2"),
    ({"kind": "layers", "last": 99}, "32 blocks", "1 to 32"),
    ({"kind": "layers", "patterns": ["*.nothing"]}, "matches no parameter", "parameters look like"),
    ("lorra", 'no method "lorra"', "lora"),
]


@pytest.mark.parametrize(("method", "what", "remedy"), WRONG)
def test_a_method_that_would_train_nothing_is_told_with_what_there_is(
    method: object, what: str, remedy: str, seven_billion: Path, capsys: pytest.CaptureFixture[str]
):
    said = luthier(capsys, "plan", recipe_for(seven_billion, method), "--params", "--json")
    assert said.code == 2
    [problem] = said.json["error"]["problems"]
    assert what in problem["what"]
    assert remedy in problem["what"] + problem["remedy"]
    assert "recipe.json" in problem["where"]


def test_a_folder_without_a_config_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    said = luthier(capsys, "plan", tmp_path, "--params")
    assert said.code == 2
    assert "no config.json" in said.err
    (tmp_path / "config.json").write_text("{")
    assert "cannot be read" in luthier(capsys, "plan", tmp_path, "--params").err
    said = luthier(capsys, "plan", recipe_for(tmp_path / "nowhere", "lora"), "--params")
    assert said.code == 2


def test_keys_are_changed_in_recipes_only_and_params_must_be_asked_for(
    seven_billion: Path, capsys: pytest.CaptureFixture[str]
):
    said = luthier(capsys, "plan", seven_billion, "method=full", "--params")
    assert said.code == 2
    assert "give a recipe" in said.err
    said = luthier(capsys, "plan", seven_billion)
    assert said.code == 2
    assert "--params" in said.err


def test_sizes_that_the_config_leaves_out_are_the_family_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config("qwen2").save_pretrained(tmp_path)
    said = luthier(capsys, "plan", tmp_path, "--params", "--json")
    assert said.code == 0, said.err
    assert said.json["architecture"] == "Qwen2ForCausalLM"
