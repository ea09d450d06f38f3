"""What is not to be forgotten is watched; a run is taken back to its best state, the same after a kill; gates hold."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from families import write
from luthier.core.errors import RecipeError
from luthier.core.rundir import RunDir, final_checkpoint
from luthier.run.config import parse_recipe
from luthier.run.limits import Gate, judge_gates, worse_by
from luthier.run.opened import open_run
from luthier.run.summary import Comparison
from recipes import Said, luthier, write_recipe, write_rows

Capture = pytest.CaptureFixture[str]
BASE = {"model": "starter", "method": "lora", "data": "starter:quickstart"}
RATES = {"method": "full", "schedule": "constant", "warmup_steps": 0, "learning_rate": 3e-3, "max_steps": 12}
WATCHED = {"data": "general.jsonl", "max_drop": 0.01, "action": "rollback"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama", tmp_path_factory.mktemp("model"))


def sentences(count: int, low: int, high: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows out of a part of the vocabulary: who learns the one part unlearns the other."""
    draw = random.Random(seed)
    return [{"text": " ".join(f"w{draw.randrange(low, high)}" for _ in range(12))} for _ in range(count)]


def narrow_recipe(home: Path, model: Path, **keys: object) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    write_rows(home / "narrow.jsonl", sentences(24, 3, 9))
    write_rows(home / "general.jsonl", sentences(6, 40, 60))
    usual = {**RATES, "objective": "lm", "data": "narrow.jsonl", "eval_steps": 2, "forgetting": WATCHED, "samples": 0}
    return write_recipe(home, model, **{**usual, **keys})


def trained(home: Path, model: Path, capsys: Capture, **keys: object) -> Said:
    said = luthier(capsys, "train", narrow_recipe(home, model, **keys), "--json")
    assert said.code == 0, said.err
    return said


def metrics_of(run: Path) -> list[dict]:
    [file] = run.glob("00-*/metrics.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "step_seconds"} for row in rows]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    [file] = checkpoint.glob("model*.safetensors")
    return load_file(file)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------------- forgetting


@pytest.fixture(scope="module")
def rolled_back(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that forgot, and was taken back."""
    home = tmp_path_factory.mktemp("rollback")
    from luthier.cli.main import main

    with pytest.raises(SystemExit) as left:
        main(["train", str(narrow_recipe(home, model, keep_checkpoints=1))])
    assert left.value.code in (0, None)
    return home / "run"


def test_a_run_that_forgets_goes_back_to_its_best_state(
    rolled_back: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    report = json.loads((rolled_back / "report.json").read_text())
    found, rows = report["forgetting"], metrics_of(rolled_back)
    kept, lost = found["best_within_max_drop"], found["first_forgot"]["step"]
    assert 0 < kept < lost < 12
    assert (found["rolled_back"], report["steps"], report["status"]) == (True, lost, "finished")
    assert found["checkpoint"] == report["final_checkpoint"] == f"00-lm/checkpoints/step-{kept:06d}"
    start = found["sets"][0]["before"]
    measured = {row["step"]: row["general_general"] for row in rows if "general_general" in row}
    assert list(measured) == list(range(2, lost + 1, 2))
    assert measured[kept] <= 1.01 * start < measured[lost]
    assert found["sets"][0]["after"] == pytest.approx(measured[kept], abs=1e-12)
    assert final_checkpoint(RunDir(rolled_back)).name == f"step-{kept:06d}"
    assert any("method: lora" in said for said in found["advice"])
    assert "forgetting at step" in " ".join(report["warnings"])
    page = (rolled_back / "report.html").read_text(encoding="utf-8")
    assert "Finished after" in page
    assert f"The run was taken back to the state of step {kept}" in page
    assert page.count("Gain and forgetting") >= 1
    assert "What to try" in page
    # A run that nothing takes back stood in the same state, bit for bit, after as many steps.
    other = trained(tmp_path / "b", model, capsys, forgetting=None, eval_steps=None, save_steps=2, keep_checkpoints=9)
    assert other.code == 0
    assert same(
        weights(rolled_back / found["checkpoint"]), weights(tmp_path / "b/run/00-lm/checkpoints" / f"step-{kept:06d}")
    )
    opened = open_run(rolled_back)
    kept_weights = weights(rolled_back / found["checkpoint"])
    now = dict(opened.model.module.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in kept_weights.items() if name in now)


@pytest.mark.parametrize("lost", ["the report", "the newest checkpoint", "every checkpoint"])
def test_a_run_killed_around_a_rollback_ends_as_the_uninterrupted_one(
    lost: str, rolled_back: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(rolled_back, run)
    before = json.loads((run / "report.json").read_text())
    (run / "report.json").unlink()
    places = sorted(run.glob("00-*/checkpoints/step-*"))
    assert len(places) == 2
    for place in {"the report": [], "the newest checkpoint": places[-1:], "every checkpoint": places}[lost]:
        shutil.rmtree(place)
    said = luthier(capsys, "resume", run, "--json")
    assert said.code == 0, said.err
    assert metrics_of(run) == metrics_of(rolled_back)
    assert said.json["forgetting"] == before["forgetting"]
    assert said.json["eval"] == before["eval"]
    assert [w for w in said.json["warnings"] if "forgetting" in w] == [
        w for w in before["warnings"] if "forgetting" in w
    ]
    assert same(weights(run / before["final_checkpoint"]), weights(rolled_back / before["final_checkpoint"]))


def test_a_run_that_forgets_at_once_ends_where_it_began(model: Path, tmp_path: Path, capsys: Capture) -> None:
    limits = {**WATCHED, "max_drop": 1e-6}
    said = trained(tmp_path, model, capsys, forgetting=limits, learning_rate=3e-2, eval_steps=4, keep_checkpoints=1)
    assert said.json["forgetting"]["best_within_max_drop"] == 0
    assert said.json["eval"]["after"] == said.json["eval"]["before"]
    base = load_file(model / "model.safetensors")
    final = weights(tmp_path / "run" / said.json["final_checkpoint"])
    assert all(torch.equal(final[name], value) for name, value in base.items() if name in final)


def test_stop_ends_where_it_forgot_and_warn_goes_on(model: Path, tmp_path: Path, capsys: Capture) -> None:
    stop = trained(tmp_path / "a", model, capsys, forgetting={**WATCHED, "action": "stop"}).json
    warn = trained(tmp_path / "b", model, capsys, forgetting={**WATCHED, "action": "warn"}).json
    step = stop["forgetting"]["first_forgot"]["step"]
    assert stop["steps"] == step < 12 == warn["steps"]
    assert stop["final_checkpoint"].endswith(f"step-{step:06d}")
    assert warn["forgetting"]["first_forgot"] == stop["forgetting"]["first_forgot"]
    assert any("action: rollback" in said for said in warn["forgetting"]["advice"])
    assert not stop["forgetting"]["rolled_back"]


def test_the_best_of_the_states_that_forgot_nothing_is_the_best_on_held_out_rows(
    model: Path, tmp_path: Path, capsys: Capture
) -> None:
    said = trained(tmp_path, model, capsys, eval_fraction=0.2, forgetting={**WATCHED, "max_drop": 9.0}, max_steps=8)
    rows = [row for row in metrics_of(tmp_path / "run") if "eval_loss" in row]
    best = min(rows, key=lambda row: row["eval_loss"])
    assert said.json["forgetting"]["best_within_max_drop"] == best["step"]
    assert not said.json["forgetting"]["rolled_back"]
    assert said.json["final_checkpoint"].endswith("step-000008")
    assert said.json["forgetting"]["advice"] == []


@pytest.mark.parametrize(
    ("metric", "before", "after", "drop"),
    [
        ("loss", 2.0, 2.1, 0.05),
        ("loss", 2.0, 1.9, -0.05),
        ("mse", 4.0, 5.0, 0.25),
        ("accuracy", 0.8, 0.75, 0.05),
        ("exact_match", 0.5, 0.6, -0.1),
        ("reward", 2.0, 1.0, 0.5),
        ("loss", 0.0, 0.1, float("inf")),
        ("loss", 0.0, 0.0, 0.0),
    ],
)
def test_a_drop_is_a_share_of_a_loss_and_points_of_a_share(
    metric: str, before: float, after: float, drop: float
) -> None:
    assert worse_by(Comparison("x", metric, before, after)) == pytest.approx(drop)


def test_a_real_model_forgets_stories_and_replay_lowers_the_drop(shared: Path, tmp_path: Path, capsys: Capture) -> None:
    """The small form of benchmarks/forgetting_cpu.py, with what is watched as a task beside it."""
    whole = (shared / "data/tinystories/tinystories_val_1000.txt").read_text(encoding="utf-8").split("\n\n")
    seen = (shared / "data/tinystories/tinystories_train_head.txt").read_text(encoding="utf-8").split("\n\n")
    write_rows(tmp_path / "stories.jsonl", [{"text": story} for story in whole[:12]])
    write_rows(tmp_path / "seen.jsonl", [{"text": story} for story in seen[:60]])
    verses = (shared / "data/zh_poetry/tang300.json").read_text(encoding="utf-8")
    write_rows(tmp_path / "poems.jsonl", [{"text": "".join(poem["paragraphs"])[:48]} for poem in json.loads(verses)])
    blimp = {
        "kind": "minimal_pairs",
        "name": "blimp",
        "data": str(shared / "data/blimp/blimp_67x200.jsonl.gz"),
        "limit": 67,
    }
    usual = {"objective": "lm", "data": "poems.jsonl", "max_length": 128, "batch_size": 8, "max_steps": 12}
    usual |= {"method": "full", "learning_rate": 2e-3, "eval_steps": 4, "samples": 0, "evaluate": [blimp]}
    usual["forgetting"] = {"data": "stories.jsonl", "tasks": ["blimp"], "max_drop": 0.05}
    drops = {}
    for name, parts in {"plain": [], "replay": [{"kind": "replay", "data": "seen.jsonl", "share": 0.4}]}.items():
        recipe = write_recipe(
            tmp_path, shared / "models/stories260K", **usual, regularizers=parts, run=str(tmp_path / name)
        )
        said = luthier(capsys, "train", recipe, "--json")
        assert said.code == 0, said.err
        sets = {part["name"]: part for part in said.json["forgetting"]["sets"]}
        drops[name] = sets["stories"]["worse_by"]
        assert sets["blimp"]["metric"] == "accuracy"
        rows = [row for row in metrics_of(tmp_path / name) if "task_blimp" in row]
        assert [row["step"] for row in rows] == [4, 8, 12]
        assert rows[-1]["task_blimp"] == sets["blimp"]["after"]
    assert drops["plain"] > 0.1
    assert drops["replay"] < 0.7 * drops["plain"]


# ---------------------------------------------------------------------- gates

MEASURED = {
    "before": {"held-out loss": {"metric": "loss", "value": 1.0, "n": 9}, "task": {"metric": "accuracy", "value": 0.5}},
    "after": {"held-out loss": {"metric": "loss", "value": 1.2, "n": 9}, "task": {"metric": "accuracy", "value": 0.4}},
}


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ({"task": "loss", "max": 1.2}, ""),
        ({"task": "loss", "max": 1.1}, "held-out loss is 1.200, more than 1.1 (max)"),
        ({"task": "held_out_loss", "min": 1.3}, "held-out loss is 1.200, less than 1.3 (min)"),
        ({"task": "loss", "max_increase": 0.3}, ""),
        ({"task": "loss", "max_increase": 0.1}, "which is 0.200 more; it may rise by 0.1 (max_increase)"),
        ({"task": "loss", "max_drop": 0.2}, ""),
        ({"task": "loss", "max_drop": 0.1}, "worse by 20 %, more than 10 % (max_drop)"),
        ({"task": "Task", "max_drop": 0.05}, "worse by 10 points, more than 5 points (max_drop)"),
        ({"task": "task", "max_drop": 0.11}, ""),
        ({"task": "task", "min_increase": 0.1}, "it has to rise by 0.1 (min_increase)"),
        ({"task": "task", "min": 0.45}, "task is 40.0%, less than 45% (min)"),
        ({"metric": "task", "min": 0.3, "max": 0.5}, ""),
        ({"task": "other", "min": 0.3}, '"other" was not measured'),
    ],
)
def test_a_gate_says_what_was_measured_and_what_was_asked_for(gate: dict, says: str) -> None:
    verdict = judge_gates([Gate.model_validate(gate)], MEASURED)
    assert verdict.passed == (not says)
    assert says in "".join(verdict.faults)


def test_a_gate_on_a_part_of_a_task_looks_at_that_part() -> None:
    results = {
        when: {"crows": {"metric": "accuracy", "value": 0.5, "groups": {"age": {"value": value, "n": 4}}}}
        for when, value in (("before", 0.5), ("after", 0.9))
    }
    verdict = judge_gates([Gate(task="crows/age", max=0.6), Gate(task="crows", max=0.6)], results)
    assert list(verdict.faults) == ["crows/age is 90.0%, more than 60% (max)"]


def test_a_run_that_does_not_pass_ends_with_one_and_is_not_exported(
    model: Path, tmp_path: Path, capsys: Capture
) -> None:
    gates = [{"task": "general", "max_drop": 5.0}, {"task": "loss", "max_increase": 9, "max": 0.01}]
    keys = {"gate": gates, "forgetting": "general.jsonl", "eval_fraction": 0.2, "max_steps": 2, "method": "lora"}
    said = luthier(capsys, "train", narrow_recipe(tmp_path, model, **keys), "--json")
    assert said.code == 1
    assert "held-out loss is" in str(said.json["error"])
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["status"] == "finished"
    assert [c["passed"] for c in report["gate"]["conditions"]] == [True, False]
    out = tmp_path / "out"
    refused = luthier(capsys, "export", tmp_path / "run", out)
    assert refused.code == 2
    assert "--ignore-gate" in refused.err
    assert not out.exists()
    merged = luthier(capsys, "merge", tmp_path / "run", tmp_path / "run", "--out", out)
    assert (merged.code, out.exists()) == (2, False)
    assert "did not pass its gate" in merged.err
    forced = luthier(capsys, "export", tmp_path / "run", out, "--ignore-gate", "--json")
    assert forced.code == 0, forced.err
    assert "held-out loss" in forced.json["gate_ignored"][0]
    assert (
        luthier(capsys, "merge", tmp_path / "run", tmp_path / "run", "--out", tmp_path / "m", "--ignore-gate").code == 0
    )


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"gate": {"task": "storys", "max": 1}, "forgetting": "starter:stories"}, 'Did you mean "stories"?'),
        ({"gate": {"task": "loss", "max": 1}}, "add eval_fraction: 0.1 or eval_data"),
        ({"gate": {"task": "loss"}, "eval_fraction": 0.1}, "a gate needs min or max"),
        ({"gate": {"task": "loss", "maximum": 1}, "eval_fraction": 0.1}, 'Did you mean "max"?'),
        ({"gate": [{"task": "loss", "max": 1, "actoin": "warn"}], "eval_fraction": 0.1}, 'Did you mean "action"?'),
        ({"gate": {"task": "loss", "min": 2, "max": 1}, "eval_fraction": 0.1}, "min is 2, more than max (1)"),
        ({"forgetting": {"data": "starter:stories", "max_dorp": 1}}, 'Did you mean "max_drop"?'),
        ({"forgetting": {"data": "starter:stories", "action": "roll_back"}}, 'Did you mean "rollback"?'),
        ({"forgetting": {"max_drop": 0.1}}, "forgetting names nothing to measure"),
        ({"forgetting": ["a.txt", "b/a.txt"]}, 'the name "a" is used twice'),
        ({"forgetting": {"tasks": "safty"}, "evaluate": [{"kind": "refusal", "name": "safety"}]}, 'mean "safety"?'),
        ({"gate": {"task": "safety/harmless refused", "max": 0.1}}, "is not measured in this run"),
        ({"forgetting": {"data": "starter:stories", "max_drop": -1}}, "at least 0"),
        ({"forgetting": {"data": "starter:stories", "max_drop": True}}, "a number"),
    ],
)
def test_what_is_wrong_with_limits_is_told_when_the_recipe_is_read(keys: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError) as told:
        parse_recipe({**BASE, **keys})
    assert says in str(told.value)


def test_a_recipe_with_limits_means_the_same_when_it_is_read_again() -> None:
    recipe = parse_recipe(
        {**BASE, "forgetting": "starter:stories", "gate": {"metric": "stories", "max_increase": 0.1}},
        ["forgetting.max_drop=0.2"],
    )
    assert recipe.forgetting is not None
    assert (recipe.forgetting.max_drop, recipe.forgetting.data[0].title) == (0.2, "stories")
    assert recipe.gate[0].task == "stories"
    assert parse_recipe(recipe.dump()) == recipe


# ---------------------------------------------------------------------- overfitting


def overfitting(home: Path, model: Path, **keys: object) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    write_rows(home / "few.jsonl", sentences(4, 3, 60))
    write_rows(home / "held.jsonl", sentences(6, 3, 60, seed=1))
    usual = {"objective": "lm", "data": "few.jsonl", "eval_data": "held.jsonl", "eval_steps": 2, "forgetting": None}
    return narrow_recipe(home, model, **{**usual, "learning_rate": 1e-2, "keep_checkpoints": 1, **keys})


def test_a_gap_between_training_and_held_out_loss_is_said_in_plain_words(
    model: Path, tmp_path: Path, capsys: Capture
) -> None:
    said = luthier(capsys, "train", overfitting(tmp_path, model, max_steps=16), "--json")
    assert said.code == 0, said.err
    rows = metrics_of(tmp_path / "run")
    measured = [row for row in rows if "eval_loss" in row]
    assert [row["step"] for row in measured] == list(range(2, 17, 2))
    for row in measured:
        mean = sum(r["loss"] for r in rows if row["step"] - 2 < r["step"] <= row["step"]) / 2
        assert row["eval_gap"] == pytest.approx(row["eval_loss"] - mean, abs=1e-9)
    found = said.json["overfitting"]
    assert found["eval_loss"] > 1.02 * found["best_eval_loss"]
    assert found["train_loss"] < found["best_train_loss"]
    assert "learn its rows by heart" in " ".join(said.json["warnings"])
    assert "early_stopping" in found["what_happened"]


def test_the_best_checkpoint_is_kept_and_named_whatever_else_is_deleted(
    model: Path, tmp_path: Path, capsys: Capture
) -> None:
    keys = {"max_steps": 40, "early_stopping": 3, "save_steps": 1}
    said = luthier(capsys, "train", overfitting(tmp_path / "a", model, **keys), "--json")
    assert said.code == 0, said.err
    run = tmp_path / "a" / "run"
    best, steps = said.json["best_step"], said.json["steps"]
    assert best < steps < 40
    assert said.json["final_checkpoint"].endswith(f"step-{best:06d}")
    assert [p.name for p in sorted(run.glob("00-lm/checkpoints/*"))] == [f"step-{best:06d}", f"step-{steps:06d}"]
    assert final_checkpoint(RunDir(run)).name == f"step-{best:06d}"
    # Killed after the best state and before the end: the best one is neither deleted nor forgotten.
    shutil.copytree(run, tmp_path / "b")
    (tmp_path / "b" / "report.json").unlink()
    shutil.rmtree(tmp_path / "b" / "00-lm" / "checkpoints" / f"step-{steps:06d}")
    again = luthier(capsys, "resume", tmp_path / "b", "--json")
    assert again.code == 0, again.err
    assert (again.json["best_step"], again.json["steps"]) == (best, steps)
    assert metrics_of(tmp_path / "b") == metrics_of(run)
    assert again.json.get("overfitting") == said.json.get("overfitting")
    assert same(weights(run / said.json["final_checkpoint"]), weights(tmp_path / "b" / again.json["final_checkpoint"]))
