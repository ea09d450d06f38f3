"""Stages of one recipe: each starts from what an earlier one made, and a killed line goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier.core.rundir import StageDir
from luthier.run.opened import open_run
from recipes import luthier, pairs, texts, write_rows

Capture = pytest.CaptureFixture[str]
CONSTANT = {"schedule": "constant", "warmup_steps": 0}


@pytest.fixture
def model(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


def write_pipeline(folder: Path, model: Path, stages: list[dict[str, object]], **keys: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "rows.jsonl", pairs(20))
    write_rows(folder / "texts.jsonl", texts(12))
    judged = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "w3 w4 w5"} for r in pairs(16, seed=3)]
    write_rows(folder / "judged.jsonl", judged)
    common = {
        "model": str(model),
        "method": "lora",
        "max_steps": 4,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "samples": 1,
    }
    path = folder / "line.json"
    values = {**common, "run": str(folder / "run"), **keys, "stages": stages}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}, indent=1), encoding="utf-8")
    return path


REWARD = {"kind": "model", "path": "stage:reward"}
TAUGHT = {"kind": "distill", "teacher": "stage:reward"}
SCORED = {"kind": "grpo", "reward": {"kind": "sum", "parts": [{"kind": "model", "path": "stage:sft"}]}}
SFT = {"objective": "sft", "data": "rows.jsonl", "eval_fraction": 0.2}
DPO = {"objective": "dpo", "data": "judged.jsonl", "eval_fraction": 0.25}


def logits(run: Path) -> torch.Tensor:
    opened = open_run(run)
    tokens = torch.tensor([[5, 9, 14, 3, 22, 8]])
    with opened.model.evaluating():
        return opened.model.module(input_ids=tokens).logits


def test_three_stages_run_in_one_folder_with_one_report(model: Path, tmp_path: Path, capsys: Capture) -> None:
    lm = {"objective": "lm", "data": "texts.jsonl"}
    path = write_pipeline(tmp_path, model, [lm, SFT, DPO])
    said = luthier(capsys, "train", path, "--json")
    assert said.code == 0, said.err
    run = tmp_path / "run"
    assert [s["name"] for s in said.json["stages"]] == ["lm", "sft", "dpo"]
    assert {s["status"] for s in said.json["stages"]} == {"finished"}
    assert [p.name for p in sorted(run.glob("0*"))] == ["00-lm", "01-sft", "02-dpo"]
    rows = [json.loads(line) for line in (run / "02-dpo" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert {"accuracy", "margin"} <= rows[0].keys()
    page = (run / "report.html").read_text()
    assert all(name in page for name in ("00-lm", "01-sft", "02-dpo"))
    assert luthier(capsys, "eval", run, "--data", tmp_path / "rows.jsonl", "--json").code == 0
    assert luthier(capsys, "export", run, "--to", "hf", tmp_path / "out").code == 0
    assert luthier(capsys, "show", run).code == 0
    again = luthier(capsys, "resume", run)
    assert again.code == 2
    assert "finished" in again.err


def test_a_stage_starts_from_the_model_that_the_one_before_made(model: Path, tmp_path: Path, capsys: Capture) -> None:
    second = {**SFT, "name": "again", "max_steps": 1, "learning_rate": 1e-9}
    assert luthier(capsys, "train", write_pipeline(tmp_path, model, [SFT, second])).code == 0
    first, then = (logits(tmp_path / "run" / name) for name in ("00-sft", "01-again"))
    assert torch.allclose(first, then, atol=1e-5)


@pytest.mark.parametrize("adapter", ["stack", "continue"])
def test_an_adapter_that_is_handed_on_gives_the_same_model_at_the_start(
    adapter: str, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    second = {**SFT, "name": "next", "adapter": adapter, "max_steps": 1, "learning_rate": 1e-9}
    assert luthier(capsys, "train", write_pipeline(tmp_path, model, [SFT, second])).code == 0
    run = tmp_path / "run"
    assert not (run / "00-sft" / "model").exists()
    assert torch.allclose(logits(run / "00-sft"), logits(run / "01-next"), atol=1e-5)


def test_going_on_with_an_adapter_trains_on_from_where_it_stood(model: Path, tmp_path: Path, capsys: Capture) -> None:
    second = {**SFT, "name": "next", "adapter": "continue"}
    assert luthier(capsys, "train", write_pipeline(tmp_path, model, [SFT, second], **CONSTANT)).code == 0
    before, after = (json.loads((tmp_path / "run" / n / "eval.json").read_text()) for n in ("00-sft", "01-next"))
    assert after["before"]["held-out loss"]["value"] == pytest.approx(
        before["after"]["held-out loss"]["value"], abs=1e-5
    )
    assert after["after"]["held-out loss"]["value"] < after["before"]["held-out loss"]["value"]


def test_three_adapters_are_stacked(model: Path, tmp_path: Path, capsys: Capture) -> None:
    stages = [
        SFT,
        {**SFT, "name": "two", "adapter": "stack"},
        {**SFT, "name": "three", "adapter": "stack", "max_steps": 1},
    ]
    stages[2]["learning_rate"] = 1e-9
    assert luthier(capsys, "train", write_pipeline(tmp_path, model, stages)).code == 0
    assert torch.allclose(logits(tmp_path / "run/01-two"), logits(tmp_path / "run/02-three"), atol=1e-5)


def test_a_gate_stops_the_line_with_everything_saved(model: Path, tmp_path: Path, capsys: Capture) -> None:
    stages = [{**SFT, "gate": {"metric": "held-out loss", "max": 0.001}}, DPO]
    said = luthier(capsys, "train", write_pipeline(tmp_path, model, stages))
    assert said.code == 1
    assert "gate of stage sft was not passed" in said.err
    assert (tmp_path / "run/00-sft/report.json").is_file()
    assert not (tmp_path / "run/01-dpo").exists()
    stages[0]["gate"] = {"metric": "held-out loss", "max": 0.001, "action": "warn"}
    assert luthier(capsys, "train", write_pipeline(tmp_path / "b", model, stages)).code == 0


def test_a_reward_model_of_an_earlier_stage_is_named_by_its_stage(model: Path, tmp_path: Path, capsys: Capture) -> None:
    stages = [
        {**DPO, "objective": "reward"},
        {
            "objective": {"kind": "grpo", "num_generations": 2, "max_new_tokens": 4, "reward": REWARD},
            "data": "rows.jsonl",
            "start": "base",
            "max_steps": 2,
        },
    ]  # fmt: skip
    said = luthier(capsys, "train", write_pipeline(tmp_path, model, stages))
    assert said.code == 0, said.err
    rows = [json.loads(line) for line in (tmp_path / "run/01-grpo/metrics.jsonl").read_text().splitlines()]
    assert all("reward" in row for row in rows)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([SFT, {**DPO, "start": "stf"}], 'Did you mean "sft"?'),
        ([SFT, SFT], 'Two stages are called "sft"'),
        ([{**SFT, "adaptor": "merge"}], "adaptor"),
        ([{**SFT, "learning_rat": 1}], "learning_rate"),
        ([SFT, {**SFT, "name": "b", "adapter": "continue", "method": "full"}], "has another"),
        ([{**SFT, "method": "prompt"}, DPO], "cannot be folded"),
        ([{**DPO, "objective": "reward"}, SFT], "writes no text"),
        ([{**DPO, "objective": "reward"}, {**SFT, "start": "base", "objective": TAUGHT}], "makes a model that gives a"),
        ([SFT, {"data": "rows.jsonl", "objective": SCORED}], "one that gives a number is needed"),
        ([SFT, {**DPO, "data": "rows.jsonl"}], "[dpo]"),
        ([{**SFT, "gate": {"metric": "held-out loss"}}], "min or max"),
        ([SFT, {**DPO, "model": "stage:nobody"}], "names no earlier stage"),
        ([SFT, {**DPO, "model": "stage:sft"}], "write start: sft"),
        ([SFT, {**DPO, "model": "starter"}], "stages.1.model has no effect"),
        ([{**SFT, "gate": {"metric": "heldout loss", "max": 1}}], '"heldout loss" is not measured in this run'),
        ([{**SFT, "eval_fraction": 0, "gate": {"metric": "held-out loss", "max": 1}}], "add eval_fraction"),
        ([], "no list of mappings"),
        ([{**SFT, "run": "elsewhere"}], "at the top"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_stage_is_told_before_the_first_begins(
    stages: list[dict[str, object]], expected: str, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = write_pipeline(tmp_path, model, stages)
    for verb in ("check", "train"):
        said = luthier(capsys, verb, path)
        assert said.code == 2, said.err
        assert expected in said.err
        assert "Traceback" not in said.err
    assert not (tmp_path / "run").exists()


def test_check_shows_every_stage(model: Path, tmp_path: Path, capsys: Capture) -> None:
    said = luthier(capsys, "check", write_pipeline(tmp_path, model, [SFT, DPO]), "--json")
    assert [stage["name"] for stage in said.json["stages"]] == ["sft", "dpo"]
    shown = luthier(capsys, "check", tmp_path / "line.json")
    assert "starts from  sft (merge)" in shown.out


def test_overrides_reach_all_stages_or_one(model: Path, tmp_path: Path, capsys: Capture) -> None:
    path = write_pipeline(tmp_path, model, [SFT, {**DPO, "max_steps": 3}])
    said = luthier(capsys, "check", path, "batch_size=2", "stages.0.max_steps=1", "--json").json["stages"]
    assert [stage["recipe"]["batch_size"] for stage in said] == [2, 2]
    assert [stage["recipe"]["max_steps"] for stage in said] == [1, 3]
    said = luthier(capsys, "check", path, "max_steps=2", "--json").json["stages"]
    assert [stage["recipe"]["max_steps"] for stage in said] == [2, 2]


def test_a_line_that_is_killed_goes_on_in_the_right_stage_bit_for_bit(
    model: Path, tmp_path: Path, capsys: Capture
) -> None:
    stages = [{**SFT, "save_steps": 2}, {**DPO, "save_steps": 2, "adapter": "continue"}, {**SFT, "name": "last"}]
    assert luthier(capsys, "train", write_pipeline(tmp_path / "a", model, stages)).code == 0
    path = write_pipeline(tmp_path / "b", model, stages)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "luthier", "train", str(path)]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    second = tmp_path / "b/run/01-dpo/metrics.jsonl"
    until = time.monotonic() + 90
    while time.monotonic() < until and not (second.is_file() and second.read_text().count("\n") >= 2):
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    first_report = (tmp_path / "b/run/00-sft/report.json").read_bytes()
    if not (tmp_path / "b/run/report.json").read_text().count('"finished"') > 3:
        assert luthier(capsys, "resume", tmp_path / "b/run").code == 0
    assert (tmp_path / "b/run/00-sft/report.json").read_bytes() == first_report
    for name in ("00-sft", "01-dpo", "02-last"):
        ours, theirs = (tmp_path / side / "run" / name / "metrics.jsonl" for side in "ab")
        rows = [[json.loads(line) for line in p.read_text().splitlines()] for p in (ours, theirs)]
        for side in rows:
            for row in side:
                row.pop("step_seconds")
        assert rows[0] == rows[1], name
    assert torch.equal(logits(tmp_path / "a/run"), logits(tmp_path / "b/run"))


def test_a_begun_folder_is_gone_on_with_by_resume(model: Path, tmp_path: Path, capsys: Capture) -> None:
    path = write_pipeline(tmp_path, model, [{**SFT, "max_steps": 1}])
    assert luthier(capsys, "train", path).code == 0
    said = luthier(capsys, "train", path)
    assert said.code == 2
    assert f"luthier resume {tmp_path / 'run'}" in said.err


def test_a_teacher_may_be_an_earlier_stage(model: Path, tmp_path: Path, capsys: Capture) -> None:
    pupil = {**SFT, "objective": {"kind": "distill", "teacher": "stage:sft"}, "start": "base"}
    said = luthier(capsys, "train", write_pipeline(tmp_path, model, [SFT, pupil], max_steps=20))
    assert said.code == 0, said.err
    kept = json.loads((tmp_path / "run/01-distill/resolved.json").read_text())["recipe"]
    assert kept["objective"]["teacher"].endswith("00-sft")
    far = [json.loads(line)["divergence"] for line in (tmp_path / "run/01-distill/metrics.jsonl").open()]
    assert far[0] > 0.05, "what the pupil starts from is not its own teacher"
    assert far[-1] < 0.5 * far[0]


def test_files_beside_the_recipe_are_found_by_every_stage(
    model: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = {
        "kind": "grpo",
        "num_generations": 2,
        "max_new_tokens": 4,
        "reward": {"kind": "function", "path": "reward.py:score"},
    }
    stages = [{**SFT, "max_steps": 1}, {"objective": objective, "data": "rows.jsonl", "max_steps": 1}]
    path = write_pipeline(tmp_path / "home", model, stages)
    (path.parent / "reward.py").write_text("def score(prompts, answers, rows):\n    return [len(a) for a in answers]\n")
    monkeypatch.chdir(tmp_path)
    said = luthier(capsys, "train", path)
    assert said.code == 0, said.err


def test_a_line_killed_between_two_stages_begins_the_second_as_if_nothing_had_been(
    model: Path, tmp_path: Path, capsys: Capture
) -> None:
    stages = [{**SFT, "max_steps": 2}, {**SFT, "name": "next", "max_steps": 2}]
    assert luthier(capsys, "train", write_pipeline(tmp_path, model, stages)).code == 0
    run = tmp_path / "run"
    rows = [{k: v for k, v in row.items() if k != "step_seconds"} for row in StageDir(run / "01-next").read_metrics()]
    first = {p: p.read_bytes() for p in (run / "00-sft").glob("*.json*")}
    shutil.rmtree(run / "01-next")
    shutil.rmtree(run / "00-sft/model")
    (run / "00-sft/.model.tmp").mkdir()  # what was being written when the process died
    (run / "01-next").mkdir()
    (run / "report.json").unlink()
    assert luthier(capsys, "resume", run).code == 0
    again = [{k: v for k, v in row.items() if k != "step_seconds"} for row in StageDir(run / "01-next").read_metrics()]
    assert again == rows
    assert {p: p.read_bytes() for p in first} == first
