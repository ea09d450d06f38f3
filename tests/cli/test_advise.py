"""`luthier advise`: what it says, what it writes, what it asks, and that what it writes can be trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig

from advised_models import CONFIGS
from luthier.advise.data_profile import profile_data
from luthier.advise.machine import parse_size
from luthier.advise.model_profile import profile_model
from luthier.cli import advise_questions
from luthier.core.errors import ModelError, UserError
from luthier.models.shapes import count_parameters, meta_model
from recipes import Said, luthier, write_rows

Capture = pytest.CaptureFixture[str]


def advised(capsys: Capture, *flags: object) -> dict:
    said = luthier(capsys, "advise", *flags, "--json")
    assert said.code == 0, said.out
    return said.json


def test_programs_get_the_ranking_with_reasons(capsys: Capture, tmp_path: Path):
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS["llama-2-7b"]))
    found = advised(
        capsys, "--model", folder, "--data", "starter:quickstart", "--gpu", "12GB", "--purpose", "style", "--private"
    )
    assert found["choice"]["method"] == "qlora"
    assert found["choice"]["where"] == "federated"
    assert [row["rank"] for row in found["methods"]] == list(range(1, len(found["methods"]) + 1))
    assert found["methods"][0]["method"] == "qlora"
    lora = next(row for row in found["methods"] if row["method"] == "lora")
    assert lora["verdict"] == "rejected"
    assert not lora["fits"]
    assert lora["peak_bytes"] == pytest.approx(sum(lora["memory"].values()))
    for row in found["methods"]:
        assert row["reasons"]
        assert all(reason["text"] and reason["source"] for reason in row["reasons"])
    assert found["situation"]["model"]["parameters"] == 6_738_415_616
    assert found["situation"]["data"][0]["rows"] == 3702
    assert set(found["situation"]["data"][0]["languages"]) >= {"Latin", "Chinese"}
    assert {"federated", "start small", "evaluate first"} <= {note["name"] for note in found["notes"]}
    assert found["recipes"][1]["values"]["method"] == {"kind": "qlora", "rank": 16, "alpha": 32}


def test_what_was_not_told_is_assumed_and_said(capsys: Capture):
    found = advised(capsys)
    said = " ".join(found["assumed"])
    for word in ("starter", "1,000 rows", "--purpose", "--private", "this machine"):
        assert word in said
    assert found["recipes"] == [] or found["recipes"][0]["path"] is None
    assert "1,000 行" in " ".join(advised(capsys, "--lang", "zh")["assumed"])


TRAINED = {
    "classes": ("--data", "starter:feelings"),
    "few classes": ("--data", "few.jsonl", "--purpose", "classification"),
    "answers, then pairs": ("--data", "starter:quickstart", "--data", "starter:preferences", "--purpose", "production"),
    "few answers": ("--data", "shots.jsonl", "--general", "starter:stories"),
    "two tasks": ("--data", "starter:quickstart", "--data", "shots.jsonl", "--purpose", "tasks"),
    "text and labels": ("--data", "starter:stories", "--data", "few.jsonl"),
    "numbers": ("--data", "starter:moods"),
    "an hour's deadline": ("--data", "starter:quickstart", "--deadline", "1min", "--cpu", "--memory", "2GB"),
}


@pytest.mark.parametrize("flags", TRAINED.values(), ids=TRAINED)
def test_what_is_advised_for_the_starter_passes_the_check_and_trains(
    flags: tuple[str, ...], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    labels = [{"text": f"The number {i} is here.", "label": ("even", "odd")[i % 2]} for i in range(40)]
    write_rows(tmp_path / "few.jsonl", labels)
    shots = [{"prompt": f"How many are {i} and one?", "completion": f"They are {i + 1}."} for i in range(40)]
    write_rows(tmp_path / "shots.jsonl", shots)
    found = advised(capsys, "--model", "starter", *flags, "--out", "advised")
    assert [Path(recipe["path"]).name for recipe in found["recipes"]] == ["pilot.yaml", "recipe.yaml"]
    for recipe in found["recipes"]:
        said = luthier(capsys, "check", recipe["path"], "--json")
        assert said.code == 0, said.out
        assert said.json["warnings"] == []
        assert said.json["notes"] == [], "advice runs into no known mistake"
    limits = ["max_steps=1", "samples=0", "run=run", "eval_fraction=0.01", "batch_size=2", "forgetting="]
    said = luthier(capsys, "train", "advised/pilot.yaml", *limits, "--json")
    assert said.code == 0, said.out


def test_the_recipe_says_why_and_is_not_written_over(capsys: Capture, tmp_path: Path):
    flags = ("advise", "--model", "starter", "--data", "starter:quickstart", "--purpose", "style", "--out", tmp_path)
    assert luthier(capsys, *flags).code == 0
    text = (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    assert "arXiv:" in text
    assert f"luthier train {tmp_path / 'recipe.yaml'}" in text
    values = yaml.safe_load(text)
    assert values["eval_fraction"] == 0.1
    assert values["forgetting"]["data"] == ["starter:stories"]
    said = luthier(capsys, *flags)
    assert said.code == 2
    assert "--force" in said.problems[0]
    assert luthier(capsys, *flags, "--force", "--lang", "zh").code == 0
    assert "正式训练" in (tmp_path / "recipe.yaml").read_text(encoding="utf-8")


def test_what_needs_several_devices_comes_with_what_runs_today(capsys: Capture, tmp_path: Path):
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS["llama-2-7b"]))
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}])
    found = advised(
        capsys, "--model", folder, "--data", data, "--rows", 200_000, "--gpus", "4x80GB", "--out", tmp_path / "out"
    )
    assert found["choice"]["method"] == "full"
    assert found["choice"]["runs_today"] is False
    assert [recipe["name"] for recipe in found["recipes"]] == ["pilot.yaml", "recipe.yaml", "today.yaml"]
    assert yaml.safe_load((tmp_path / "out" / "today.yaml").read_text())["method"]["kind"] == "lora"


def test_where_nothing_fits_it_says_what_would(capsys: Capture):
    found = advised(capsys, "--model", "some/llama-70b", "--data", "starter:quickstart", "--gpu", "24GB")
    assert found["choice"] is None
    note = next(note for note in found["notes"] if note["name"] == "nothing fits")
    assert "48 GB" in note["text"]
    assert "offloaded" in note["text"]
    assert "going by its name" in " ".join(found["assumed"])
    said = luthier(capsys, "advise", "--model", "some/llama-70b", "--data", "starter:quickstart", "--gpu", "24GB")
    assert "Nothing fits" in said.out


MISTAKES = {
    "a purpose that there is not": (("--purpose", "alignmnet"), 'Did you mean "alignment"?'),
    "two machines": (("--gpu", "24GB", "--cpu"), "give one of them"),
    "no memory": (("--gpu", "lots"), "24GB"),
    "no time": (("--deadline", "soon"), "90min"),
    "no file": (("--data", "nowhere.jsonl"), "There is no such file"),
    "no model": (("--model", "./nowhere"), "There is no such model folder"),
    "nothing to write a recipe for": (("--out", "out"), "add --data"),
}


@pytest.mark.parametrize(("flags", "remedy"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_on_the_command_line_is_told_with_its_remedy(
    flags: tuple[str, ...], remedy: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    said = luthier(capsys, "advise", *flags)
    assert said.code == 2
    assert remedy in said.err


def test_several_mistakes_are_told_at_once(capsys: Capture):
    said = luthier(capsys, "advise", "--gpu", "much", "--deadline", "soon")
    assert len(said.problems) == 2


def test_a_person_at_a_terminal_is_asked_for_what_is_missing(capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    answers = iter(["", "starter:quickstart", "quick", "1, alignment", "n"])
    asked: list[str] = []

    def answer(question: str, usual: str) -> str:
        asked.append(question)
        return next(answers) or usual

    monkeypatch.setattr(advise_questions, "_line", answer)
    monkeypatch.setattr("luthier.cli.advise.may_ask", lambda as_json: not as_json)
    said: Said = luthier(capsys, "advise", "--lang", "en")
    assert said.code == 0
    assert len(asked) == 5, "a word that names no purpose is asked for again"
    assert "First choice: lora (sft → dpo)" in said.out
    assert "assumed" in said.out  # the machine was looked at, not told
    asked.clear()
    assert luthier(capsys, "advise", "--json").code == 0
    assert asked == []


def test_advice_is_given_in_chinese(capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    said = luthier(capsys, "advise", "--data", "starter:quickstart", "--purpose", "style")
    assert "首选：lora" in said.out or "首选: lora" in said.out
    assert "其他方法" in said.out


FORMS = {
    "quickstart": ("conversation", "messages"),
    "feelings": ("labelled", "labelled"),
    "moods": ("scored", "scored"),
    "tags": ("labelled", "labelled"),
    "preferences": ("preference", "preference"),
    "story_prompts": ("prompt", "prompt"),
    "stories": ("text", "text"),
}


@pytest.mark.parametrize("name", FORMS)
def test_rows_are_seen_for_what_they_are(name: str):
    found = profile_data(f"starter:{name}")
    assert (found.form, found.format) == FORMS[name]
    assert found.rows == found.seen > 0
    assert 0 < found.median_tokens <= found.longest_tokens
    assert sum(found.languages.values()) == pytest.approx(1)


def test_repeated_and_unreadable_rows_are_counted(tmp_path: Path):
    rows = [{"prompt": f"say {i % 30}", "completion": "it"} for i in range(40)] + [{"prompt": "say", "completion": 3}]
    found = profile_data(str(write_rows(tmp_path / "rows.jsonl", rows)))
    assert found.duplicates == pytest.approx(10 / 40)
    assert found.unreadable == 1
    assert found.good_rows == 30


@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [
        ("meta-llama/Llama-2-7b-hf", 7, 7),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5, 0.5),
        ("mistralai/Mixtral-8x7B-v0.1", 46.7, 12.9),
        ("Qwen/Qwen3-30B-A3B", 30, 3),
        ("google-bert/bert-base-uncased", 0.11, 0.11),
        ("openai-community/gpt2-xl", 1.558, 1.558),
    ],
)
def test_a_model_that_is_not_here_is_known_by_its_name(name: str, billions: float, active: float):
    found = profile_model(name)
    assert found.known_by == "name"
    assert found.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert found.active / 1e9 == pytest.approx(active, rel=0.01)
    assert found.is_encoder == ("bert" in name)
    assert found.is_mixture == (active < billions)
    assert found.talks == name.endswith("Instruct")


@pytest.mark.parametrize(
    ("family", "is_encoder", "is_mixture"),
    [
        ("bloom", False, False),
        ("gptj", False, False),
        ("falcon", False, False),
        ("deberta-v2", True, False),
        ("gpt_oss", False, True),
    ],
)
def test_a_family_without_closed_forms_is_sized_like_a_known_one(
    family: str, is_encoder: bool, is_mixture: bool, tmp_path: Path
):
    config = AutoConfig.for_model(family)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    found = profile_model(str(tmp_path))
    assert (found.is_encoder, found.is_mixture) == (is_encoder, is_mixture)
    built = count_parameters(meta_model(config, 2 if is_encoder else None))
    assert found.parameters == pytest.approx(built, rel=0.35)


def test_a_name_without_a_size_is_refused():
    with pytest.raises(ModelError, match="says no size"):
        profile_model("someone/something")


@pytest.mark.parametrize(
    ("text", "found"), [("24GB", (1, 24)), ("2x24GB", (2, 24)), ("4 x 80", (4, 80)), ("0.5T", (1, 512))]
)
def test_an_amount_of_memory_is_read(text: str, found: tuple[int, int]):
    assert parse_size(text, "--gpu") == (found[0], found[1] * 2**30)


@pytest.mark.parametrize("text", ["", "big", "0GB", "0x24GB", "24 bananas"])
def test_what_is_no_amount_of_memory_is_refused(text: str):
    with pytest.raises(UserError):
        parse_size(text, "--gpu")
