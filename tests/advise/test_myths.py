"""Known mistakes: each is named in its case and in no other, with number, source and place, once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from luthier.advise.myths import MYTHS, RunFacts, known_mistakes
from luthier.run.draft import read_draft
from luthier.run.examine import examine
from luthier.run.mistakes import mistakes, pipeline_mistakes
from luthier.run.pipeline import examine_pipeline, has_stages, read_pipeline
from recipes import luthier, pairs, write_recipe, write_rows

ROOT = Path(__file__).parents[2]
EXAMPLES = [
    p
    for p in sorted((ROOT / "examples").glob("**/*.yaml"))
    if p.name != "all-methods.yaml" and p.parent.name != "rlaif"
]
SOUND = RunFacts(
    "lora",
    "sft",
    {"rank": 8, "alpha": 16, "targets": "all-linear"},
    rows=5000,
    epochs=3,
    parameters=7_000_000_000,
    has_template=True,
    form="messages",
)
CASES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    # The mistake, and what is nearest to it and none.
    "full fine-tuning on few rows": ({"method": "full", "rows": 500}, {"method": "full", "rows": 5000}),
    "the rate of full fine-tuning for LoRA": (
        {"keys": frozenset({"learning_rate"}), "learning_rate": 2e-5},
        {"keys": frozenset({"learning_rate"}), "learning_rate": 1e-4},
    ),
    "the rate of LoRA for full fine-tuning": (
        {"method": "full", "keys": frozenset({"learning_rate"}), "learning_rate": 2e-4},
        {"method": "full", "keys": frozenset({"learning_rate"}), "learning_rate": 5e-4, "parameters": 3_000_000},
    ),
    "a base model without a chat template": ({"has_template": False}, {"has_template": None}),
    "preferences before instructions": (
        {"objective": "dpo", "has_template": False, "form": "preference"},
        {"objective": "dpo", "has_template": False, "form": "preference", "earlier": ("sft",)},
    ),
    "LoRA on attention alone": (
        {"fields": {"rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}},
        {"fields": {"rank": 8, "alpha": 16, "targets": ["attention", "mlp"]}},
    ),
    "no held-out rows": ({"has_eval": False}, {"has_eval": False, "objective": "grpo", "form": "prompt"}),
    "a high rank on few rows": (
        {"fields": {"rank": 64, "alpha": 16}, "rows": 300},
        {"fields": {"rank": 64, "alpha": 16}, "rows": 30_000},
    ),
    "many epochs on few rows": ({"epochs": 20, "rows": 400}, {"epochs": 20, "rows": 400, "stops_early": True}),
    "4 bits where memory is ample": ({"method": "qlora", "has_room": True}, {"method": "qlora", "has_room": False}),
    "packing is avoided": ({"packing": False, "keys": frozenset({"packing"})}, {"packing": False}),
    "alpha far from rank": (
        {"fields": {"rank": 4, "alpha": 128}, "given": frozenset({"alpha"})},
        {"fields": {"rank": 4, "alpha": 8}, "given": frozenset({"alpha"})},
    ),
    "the rate of sft for preferences": (
        {
            "method": "full",
            "objective": "dpo",
            "form": "preference",
            "keys": frozenset({"learning_rate"}),
            "learning_rate": 2e-4,
        },
        {
            "method": "full",
            "objective": "dpo",
            "form": "preference",
            "keys": frozenset({"learning_rate"}),
            "learning_rate": 1e-5,
        },
    ),
    "a soft prompt on a small model": (
        {"method": "prompt", "fields": {}, "parameters": 400_000_000},
        {"method": "prompt", "fields": {}, "parameters": 13_000_000_000},
    ),
    "large batches with LoRA": ({"batch_size": 512}, {"batch_size": 64}),
}


def _names(facts: RunFacts) -> list[str]:
    return [myth.name for myth in MYTHS if myth.applies(facts)]


def _with(changes: dict[str, object]) -> RunFacts:
    from dataclasses import replace

    return replace(SOUND, **changes)  # type: ignore[arg-type]


def test_every_known_mistake_has_a_case_here():
    assert set(CASES) == {myth.name for myth in MYTHS}
    assert len(MYTHS) >= 12


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_named_in_its_case(name: str):
    mistaken, near = CASES[name]
    assert name in _names(_with(mistaken))
    assert name not in _names(_with(near))


def test_a_sound_recipe_is_left_alone():
    assert _names(SOUND) == []


@pytest.mark.parametrize("name", CASES)
def test_what_is_said_has_a_number_a_source_and_a_remedy_in_both_languages(name: str):
    facts = _with(CASES[name][0])
    for language in ("en", "zh"):
        told = known_mistakes(facts, language)
        assert told
        for note in told:
            assert note.severity == "note"
            assert note.remedy
            assert "{" not in note.what
            said, _, source = note.what.rpartition("[")
            assert re.search(r"\d", said), note.what
            assert re.search(r"arXiv:\d{4}\.\d{5}|\.(com|ai|co)/|\.com", source), note.what
    assert any("\u4e00" <= c <= "\u9fff" for c in known_mistakes(facts, "zh")[0].what)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_the_examples_run_into_none(path: Path):
    if has_stages(path):
        assert pipeline_mistakes(examine_pipeline(read_pipeline(path))) == []
    else:
        assert mistakes(examine(read_draft(path))) == []


def test_check_and_train_say_it_once_and_resume_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = write_rows(tmp_path / "rows.jsonl", pairs(60))
    recipe = write_recipe(
        tmp_path, "starter", method="full", data=str(rows), max_steps=2, samples=0, learning_rate=None
    )
    said = luthier(capsys, "check", recipe)
    assert said.code == 0
    assert "note: " in said.err
    assert "Full fine-tuning on 60 rows" in said.err
    found = luthier(capsys, "check", recipe, "--json").json
    assert [note["severity"] for note in found["notes"]] == ["note", "note"]
    assert found["warnings"] == []
    trained = luthier(capsys, "train", recipe)
    assert trained.code == 0
    assert trained.err.count("Full fine-tuning on 60 rows") == 1
    log = next((tmp_path / "run").glob("*/log.txt")).read_text(encoding="utf-8")
    assert log.count("Full fine-tuning on 60 rows") == 1
    report = tmp_path / "run" / "report.json"
    report.write_text(json.dumps({**json.loads(report.read_text()), "status": "interrupted"}))
    again = luthier(capsys, "resume", tmp_path / "run")
    assert "Full fine-tuning on 60 rows" not in again.err


def test_a_stage_that_starts_from_sft_may_learn_preferences(tmp_path: Path, shared: Path):
    model = shared / "models" / "stories260K"
    alone = {
        "model": str(model),
        "method": "lora",
        "objective": "dpo",
        "data": "starter:preferences",
        "eval_fraction": 0.1,
    }
    (tmp_path / "alone.json").write_text(json.dumps(alone))
    told = mistakes(examine(read_draft(tmp_path / "alone.json")))
    assert ["never tuned on instructions" in note.what for note in told] == [True]
    columns = {"prompt": "prompt", "answer": "chosen"}
    first = {"objective": "sft", "data": {"path": "starter:preferences", "columns": columns}}
    staged = {"model": str(model), "method": "lora", "eval_fraction": 0.1}
    staged["stages"] = [first, {"objective": "dpo", "data": "starter:preferences"}]
    (tmp_path / "staged.json").write_text(json.dumps(staged))
    assert pipeline_mistakes(examine_pipeline(read_pipeline(tmp_path / "staged.json"))) == []
