"""One stage from the user's side: what is kept, when it stops, and in which numbers it computes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier.train.engine import Engine
from luthier.train.hooks import trackers
from recipes import luthier, pairs, write_recipe, write_rows

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "00-sft" / "metrics.jsonl").read_text().splitlines()]


def steps_on_disk(run: Path) -> list[int]:
    return sorted(int(done.parent.name.removeprefix("step-")) for done in run.glob("00-sft/checkpoints/*/DONE"))


# ---------------------------------------------------------------------- early stopping and the best state

LOSSES = [5.0, 3.0, 4.0, 4.5, 6.0, 7.0, 8.0]


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the evaluation after step n say the n-th of LOSSES."""
    monkeypatch.setattr(Engine, "measure", lambda self, examples: ({"loss": LOSSES[self.step - 1]}, 1.0))


STOPPING = {"eval_fraction": 0.2, "eval_steps": 1, "save_steps": 1, "keep_checkpoints": 1, "max_steps": 7}


@pytest.mark.usefixtures("losses")
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_best_state_is_kept_and_is_the_result(method: str, model: Path, tmp_path: Path, capsys: Capture):
    recipe = write_recipe(tmp_path / "r", model, method=method, early_stopping=3, **STOPPING)
    said = luthier(capsys, "train", recipe, "--json")
    assert said.code == 0, said.err
    report, run = said.json, tmp_path / "r" / "run"
    assert report["steps"] == 5  # three evaluations without gain after the second
    assert report["stopped_early"] is True
    assert report["best_step"] == 2
    assert report["final_checkpoint"].endswith("step-000002")
    assert steps_on_disk(run) == [2, 5]
    measured = luthier(capsys, "eval", run, "--json").json["loss"]
    assert measured == pytest.approx(report["eval"]["after"]["held-out loss"]["value"], abs=1e-6)
    assert luthier(capsys, "export", run, tmp_path / "out", "--json").json["checkpoint"].endswith("step-000002")
    assert luthier(capsys, "export", run, tmp_path / "out2").code == 0


@pytest.mark.usefixtures("losses")
def test_a_resumed_run_goes_on_counting_patience(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
):
    from luthier.run import training_loop

    recipe = write_recipe(tmp_path / "r", model, early_stopping=3, **STOPPING)
    run = tmp_path / "r" / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training_loop._Stop, "requested", property(lambda self: True), raising=False)
        assert luthier(capsys, "train", recipe).code == 130  # every life is one step long
        for _ in range(3):
            assert luthier(capsys, "resume", run).code == 130
        assert luthier(capsys, "eval", run, "--json").code == 0
    assert json.loads((run / "report.json").read_text())["status"] == "interrupted"
    assert steps_on_disk(run) == [2, 4]
    said = luthier(capsys, "resume", run, "--json")
    assert (said.json["steps"], said.json["best_step"], said.json["stopped_early"]) == (5, 2, True)


@pytest.mark.usefixtures("losses")
def test_an_unfinished_run_is_opened_at_its_best_state(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
):
    from luthier.run import training_loop

    recipe = write_recipe(tmp_path / "r", model, early_stopping=3, **STOPPING)
    run = tmp_path / "r" / "run"
    monkeypatch.setattr(training_loop._Stop, "requested", property(lambda self: True), raising=False)
    luthier(capsys, "train", recipe)
    for _ in range(2):
        luthier(capsys, "resume", run)
    assert steps_on_disk(run) == [2, 3]
    said = luthier(capsys, "export", run, tmp_path / "out", "--json")
    assert said.json["checkpoint"].endswith("step-000002")


@pytest.mark.usefixtures("losses")
def test_without_early_stopping_the_last_state_is_the_result(model: Path, tmp_path: Path, capsys: Capture):
    recipe = write_recipe(tmp_path / "r", model, **STOPPING)
    report = luthier(capsys, "train", recipe, "--json").json
    assert report["final_checkpoint"].endswith("step-000007")
    assert steps_on_disk(tmp_path / "r" / "run") == [7]


# ---------------------------------------------------------------------- numbers


def test_gradient_checkpointing_changes_no_loss(model: Path, tmp_path: Path, capsys: Capture):
    losses = []
    for name, value in (("with", True), ("without", False)):
        recipe = write_recipe(tmp_path / name, model, gradient_checkpointing=value)
        said = luthier(capsys, "train", recipe)
        assert said.code == 0, said.err
        losses.append([row["loss"] for row in metrics_of(tmp_path / name / "run")])
    # Without it the last feed-forward leaves out what predicts nothing, so that sums run in another order.
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_bfloat16_trains_float32_tensors_and_says_so(method: str, model: Path, tmp_path: Path, capsys: Capture):
    keys = {"method": method, "max_steps": 30, "learning_rate": 1e-2 if method == "lora" else 1e-3}
    recipe = write_recipe(tmp_path / "r", model, dtype="bfloat16", **keys)
    said = luthier(capsys, "train", recipe, "--json")
    assert said.code == 0, said.err
    assert "bfloat16 on cpu" in said.err
    assert said.json["frozen_unchanged"] is True
    assert said.json["loss_last"] < said.json["loss_first"]
    checkpoint = tmp_path / "r" / "run" / said.json["final_checkpoint"]
    for file in checkpoint.glob("*.safetensors"):
        assert {t.dtype for t in load_file(file).values()} == {torch.float32}


def test_a_micro_batch_changes_no_loss(model: Path, tmp_path: Path, capsys: Capture):
    losses = []
    for size in (1, 3, "auto"):
        recipe = write_recipe(tmp_path / str(size), model, micro_batch_size=size)
        assert luthier(capsys, "train", recipe).code == 0
        losses.append([row["loss"] for row in metrics_of(tmp_path / str(size) / "run")])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0] == pytest.approx(losses[2], abs=1e-4)


# ---------------------------------------------------------------------- the rest


def test_a_tracker_that_fails_is_said_once_where_the_user_looks(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
):
    def failing(stage_dir: object, config: object) -> trackers.Tracker:
        def write(step: int, values: object) -> None:
            raise ConnectionError("no route to host")

        return trackers.Tracker("tensorboard", write, lambda: None)

    monkeypatch.setattr(trackers, "_open_tensorboard", failing)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        said = luthier(capsys, "train", write_recipe(tmp_path / "r", model, log_to="tensorboard"), "--json")
    assert said.code == 0, said.err
    assert said.err.count("no route to host") == 1
    assert any("tensorboard" in warning for warning in said.json["warnings"])


def test_rows_that_cannot_be_trained_on_are_told_before_the_weights_are_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
):
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "w4 " * 200, "completion": "w5"}, *pairs(4)])
    monkeypatch.setattr("luthier.run.stage.load_for", lambda *_: pytest.fail("the weights were loaded"))
    said = luthier(capsys, "train", write_recipe(tmp_path / "r", model, data=str(rows)))
    assert said.code == 2
    assert "rows.jsonl:1" in said.err


def test_tasks_and_samples_are_measured_before_and_after(model: Path, tmp_path: Path, capsys: Capture):
    home = tmp_path / "r"
    home.mkdir()
    write_rows(home / "task.jsonl", pairs(6, seed=3))
    write_rows(home / "text.jsonl", [{"text": "w4 w5 w6 w7"}])
    tasks = [
        {"name": "repeat", "data": {"path": "task.jsonl", "limit": 4}, "metric": "exact_match"},
        {"name": "general", "data": "text.jsonl", "metric": "loss"},
    ]
    said = luthier(capsys, "train", write_recipe(home, model, evaluate=tasks, samples=2), "--json")
    assert said.code == 0, said.err
    for when in ("before", "after"):
        scores = said.json["eval"][when]
        assert (scores["repeat"]["metric"], scores["repeat"]["n"]) == ("exact_match", 4)
        assert (scores["general"]["metric"], scores["general"]["tokens"]) == ("loss", 4)
    samples = [json.loads(line) for line in (home / "run" / "00-sft" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2
    assert all(sample.keys() == {"prompt", "reference", "before", "after"} for sample in samples)


def test_a_run_of_no_samples_and_one_row_ends_well(model: Path, tmp_path: Path, capsys: Capture):
    rows = write_rows(tmp_path / "rows.jsonl", pairs(1))
    keys = {"data": str(rows), "samples": 0, "max_steps": None, "epochs": 0.1, "warmup_ratio": 1.0}
    said = luthier(capsys, "train", write_recipe(tmp_path / "r", model, **keys), "--json")
    assert said.code == 0, said.err
    assert said.json["steps"] == 1


def test_tasks_are_measured_in_full_on_the_answers_whatever_is_trained_on(model: Path, tmp_path: Path, capsys: Capture):
    write_rows(tmp_path / "long.jsonl", [{"prompt": "w3 w4 ", "completion": "w5 " * 40}, *pairs(4, seed=8)])
    task = {"name": "long", "data": str(tmp_path / "long.jsonl"), "metric": "loss"}
    changes = [{}, {"train_on": "all"}, {"max_length": 24, "on_overlong": "drop"}]
    measured = []
    for number, keys in enumerate(changes):
        recipe = write_recipe(tmp_path / str(number), model, evaluate=[task], samples=0, max_steps=1, **keys)
        said = luthier(capsys, "train", recipe)
        assert said.code == 0, said.err
        report = json.loads((tmp_path / str(number) / "run" / "report.json").read_text())
        measured.append(report["eval"]["before"]["long"])
    assert measured[1:] == measured[:1] * 2
    assert measured[0]["n"] == 5
