"""`luthier check` finds what is wrong with recipe, model and data at once, and otherwise says what would be trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from luthier.cli.check import run
from luthier.core.component import kinds
from luthier.core.errors import RecipeError, UserError
from luthier.run.config import Recipe
from luthier.run.schema import recipe_schema

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
}
ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a model, without being one that could be loaded."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    save_file({"a": np.zeros((4, 8), np.float32), "b": np.zeros(8, np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def recipe(tmp_path: Path, model: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(ROW)}\n" * 10)
    path = tmp_path / "recipe.yaml"
    path.write_text("model: model\nmethod: lora\ndata: rows.jsonl\nbatch_size: 4\neval_fraction: 0.2\n")
    return path


def problems_of(recipe: Path, *overrides: str):
    with pytest.raises(UserError) as caught:
        run(recipe, overrides)
    return caught.value.problems


def test_a_good_recipe_is_summed_up(recipe: Path, capsys: pytest.CaptureFixture[str]):
    run(recipe, ["epochs=2"])
    shown = capsys.readouterr().out
    assert "LlamaForCausalLM, 40 parameters, 160 B as F32" in shown
    assert "lora (rank" in shown
    assert "10 rows of rows.jsonl, 2 held out, read as messages" in shown
    assert "64 tokens" in shown
    assert "steps  4\n" in shown
    assert "luthier train" in shown


def test_a_program_reads_the_same_as_json(recipe: Path, capsys: pytest.CaptureFixture[str]):
    run(recipe, ["max_steps=7"], json=True)
    summary = json.loads(capsys.readouterr().out)
    assert summary["ok"] is True
    assert summary["model"]["parameters"] == 40
    assert summary["data"]["rows"] == 10
    assert summary["derived"]["learning_rate"] == kinds("method")["lora"].default_learning_rate  # type: ignore[attr-defined]
    assert summary["derived"]["steps_at_most"] == 7
    assert summary["recipe"]["method"]["kind"] == "lora"


def test_a_recipe_is_checked_from_any_folder(recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run(Path("../recipe.yaml"))


def cut_off(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])


def pointer(name: str) -> Callable[[Path], None]:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
    return lambda folder: (folder / name).write_text(text) and None


def two_shards_of_three(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


BROKEN = [
    (shutil.rmtree, "There is no such model folder|not on this machine"),
    (adapter, "this is an adapter"),
    (write("config.json", b"{"), "config.json cannot be read"),
    (write("config.json", b"[]"), "model_type"),
    (write("config.json", b"{}"), "model_type"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
    (pointer("tokenizer.json"), "git lfs pull"),
    (pointer("model.safetensors"), "git lfs pull"),
    (cut_off, "cut off"),
    (write("model.safetensors", b""), "no complete safetensors"),
    (write("model.safetensors", b"\xff" * 99), "no complete safetensors"),
    (write("model.safetensors", b"\x02\0\0\0\0\0\0\0[]"), "header of the weights is broken"),
    (write("model.safetensors", b"\x02\0\0\0\0\0\0\0{}"), "download the model again"),
    (two_shards_of_three, "2 of 3 weight files are missing"),
    (only_a_pickle, "is a pickle"),
    (lambda folder: (folder / "model.safetensors").unlink(), "from_scratch=true"),
]


@pytest.mark.parametrize(("spoil", "message"), BROKEN)
def test_a_broken_model_folder_is_told(
    spoil: Callable[[Path], None], message: str, recipe: Path, model: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spoil(model)
    [problem] = problems_of(recipe)
    assert any(part in str(problem) for part in message.split("|"))
    assert problem.remedy


def test_several_faults_of_a_model_are_told_at_once(recipe: Path, model: Path):
    (model / "tokenizer.json").unlink()
    cut_off(model)
    assert len(problems_of(recipe)) == 2


def test_random_weights_need_no_file(recipe: Path, model: Path, capsys: pytest.CaptureFixture[str]):
    (model / "model.safetensors").unlink()
    run(recipe, ["model.from_scratch=true"])
    assert "random weights" in capsys.readouterr().out


MODELS = [
    ("./modle", "models there: model"),
    ("recipe.yaml", "give its folder"),
    ("org/never-downloaded", "HF_HUB_OFFLINE"),
]


@pytest.mark.parametrize(("name", "remedy"), MODELS)
def test_a_model_that_is_not_there_is_told(name: str, remedy: str, recipe: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(recipe.parent)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    [problem] = problems_of(recipe, f"model={name}")
    assert remedy in problem.remedy


def test_a_hub_model_is_looked_up_in_the_cache(
    recipe: Path, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cache = tmp_path / "cache" / "models--org--name"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    shutil.copytree(model, cache / "snapshots" / "abc")
    monkeypatch.setenv("HF_HUB_CACHE", str(cache.parent))
    run(recipe, ["model=org/name"])
    assert "40 parameters" in capsys.readouterr().out


def test_a_hub_model_that_has_to_be_downloaded_is_no_problem(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    run(recipe, ["model=org/name"])
    assert "to be downloaded" in capsys.readouterr().out


def test_a_broken_recipe_does_not_hide_what_is_wrong_with_model_and_data(recipe: Path, model: Path):
    (recipe.parent / "rows.jsonl").write_text('{"messages": 3}\n')
    cut_off(model)
    shown = "\n".join(str(p) for p in problems_of(recipe, "epochs=0", "evaluate=[{name: a}]"))
    assert "epochs=0" in shown
    assert "cut off" in shown
    assert "rows.jsonl" in shown


def test_the_method_is_asked_about_the_model(recipe: Path, model: Path):
    [problem] = problems_of(recipe, "method={kind: layers, last: 9}")
    assert "2 blocks" in problem.what
    assert problem.where == "method={kind: layers, last: 9}"


def test_a_longer_sequence_than_the_model_takes_is_told(recipe: Path):
    [problem] = problems_of(recipe, "max_length=65")
    assert problem.where == "max_length=65"
    assert "64 or less" in problem.remedy


def test_conversations_need_a_template(recipe: Path, model: Path):
    (model / "chat_template.jinja").unlink()
    [problem] = problems_of(recipe)
    assert "chatml" in problem.remedy
    run(recipe, ["model.chat_template=chatml"])


def test_an_unknown_template_is_told(recipe: Path):
    [problem] = problems_of(recipe, "model.chat_template=chatmal")
    assert 'Did you mean "chatml"' in problem.what


def test_a_tracker_that_is_not_installed_is_told_before_training(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("luthier.train.hooks.trackers.find_spec", lambda name: None)
    [problem] = problems_of(recipe, "log_to=wandb")
    assert problem.remedy == 'pip install "luthier[wandb]"'


def test_the_data_of_every_task_are_read(recipe: Path):
    shown = problems_of(recipe, "evaluate=[{name: a, data: nowhere.jsonl, metric: loss}]", "eval_data=missing.jsonl")
    assert {"nowhere.jsonl", "missing.jsonl"} <= {Path(p.where).name for p in shown}


def test_a_check_needs_a_recipe():
    with pytest.raises(UserError, match="luthier check"):
        run(None)


def test_what_is_no_recipe_is_told(tmp_path: Path):
    with pytest.raises(RecipeError, match="no such file"):
        run(tmp_path / "none.yaml")


def test_the_schema_offers_every_kind_as_a_word_and_as_a_mapping(capsys: pytest.CaptureFixture[str]):
    run(None, json_schema=True)
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["required"] == ["model", "method", "data"]
    assert schema["additionalProperties"] is False
    for family in ("method", "objective", "optimizer", "schedule"):
        words, *mappings = schema["$defs"][family]["oneOf"]
        assert words["enum"] == list(kinds(family))
        for kind, mapping in zip(kinds(family), mappings):
            definition = schema["$defs"][mapping["$ref"].removeprefix("#/$defs/")]
            assert definition["properties"]["kind"]["const"] == kind
            assert "kind" in definition["required"]
    assert schema["$defs"]["ModelSpec"]["anyOf"][0]["type"] == "string"


def test_every_reference_of_the_schema_leads_somewhere():
    schema = recipe_schema()
    text = json.dumps(schema)
    named = {part.partition('"')[0] for part in text.split("#/$defs/")[1:]}
    assert named == set(schema["$defs"])  # type: ignore[call-overload]
