"""Tasks in a run: before, during and after on the same cases, and the same after a run was killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes import luthier, pairs, write_recipe, write_rows

Capture = pytest.CaptureFixture[str]


def recipe_of(folder: Path, model: Path, **keys: object) -> Path:
    folder.mkdir(parents=True)
    choices = [{"question": f"q{i}", "choices": ["a b", "c", "d e f"], "answer": i % 3} for i in range(12)]
    write_rows(folder / "choices.jsonl", choices)
    write_rows(folder / "answers.jsonl", pairs(6, seed=3))
    (folder / "own.yaml").write_text("kind: multiple_choice\ndata: choices.jsonl\n")
    tasks = ["own.yaml", {"kind": "loss", "name": "answers", "data": "answers.jsonl", "every": 2}]
    fixed = {"method": "full", "max_steps": 4, "eval_steps": 2, "save_steps": 2, "samples": 0, "learning_rate": 0.01}
    return write_recipe(folder, model, **{**fixed, "evaluate": tasks, **keys})


def test_tasks_are_measured_before_during_and_after_on_the_same_cases(
    family_folder: Callable[[str], Path], tmp_path: Path, capsys: Capture
):
    recipe = recipe_of(tmp_path / "r", family_folder("llama"))
    said = luthier(capsys, "train", recipe, "--json")
    assert said.code == 0, said.err
    run = tmp_path / "r" / "run"
    results = json.loads((run / "00-sft" / "eval.json").read_text())
    for when in ("before", "after"):
        assert results[when]["own"]["n"] == 12
        low, high = results[when]["answers"]["interval"]
        assert low < results[when]["answers"]["value"] < high
    change = results["change"]["answers"]
    assert change["change"] == pytest.approx(
        results["after"]["answers"]["value"] - results["before"]["answers"]["value"]
    )
    assert change["verdict"] == "better"
    rows = [json.loads(line) for line in (run / "00-sft" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "task_answers" in row] == [2]  # the last step is measured as "after"
    assert "task_own" in rows[1]
    page = (run / "report.html").read_text()
    assert "95%:" in page
    again = luthier(capsys, "eval", run, "--task", "own", "--json")
    assert again.json["tasks"]["own"]["score"] == results["after"]["own"]["value"]
    torn = tmp_path / "torn"
    shutil.copytree(run, torn)  # as if it was killed after its second step
    shutil.rmtree(torn / "00-sft" / "checkpoints" / "step-000004")
    for name in ("report.json", "report.html"):
        (torn / name).unlink()
    kept = {"before": results["before"]}
    (torn / "00-sft" / "eval.json").write_text(json.dumps(kept))
    assert luthier(capsys, "resume", torn, "--json").code == 0
    assert json.loads((torn / "00-sft" / "eval.json").read_text()) == results


def test_what_has_no_meaning_for_a_classifier_is_refused_with_everything_else(
    family_folder: Callable[[str], Path], tmp_path: Path, capsys: Capture
):
    recipe = recipe_of(tmp_path / "r", family_folder("llama"), objective="classify")
    said = luthier(capsys, "check", recipe, "--json")
    assert said.code == 2
    assert 'The task \\"own\\" needs a model that writes text' in said.out


def test_cases_are_checked_before_the_model_is_loaded(
    family_folder: Callable[[str], Path], tmp_path: Path, capsys: Capture
):
    recipe = recipe_of(tmp_path / "r", family_folder("llama"))
    rows = [{"question": "q", "choices": ["a", "b"], "answer": 9}, {"question": "q", "choices": ["a"], "answer": 0}]
    write_rows(tmp_path / "r" / "choices.jsonl", rows)
    said = luthier(capsys, "check", recipe)
    assert said.code == 2
    assert "choices.jsonl:1" in said.err
    assert "choices.jsonl:2" in said.err
