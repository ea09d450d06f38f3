"""Runs over a model's own answers from the user's side: refused in time, resumed bit for bit, told in the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes import luthier, pairs, write_recipe, write_rows

Capture = pytest.CaptureFixture[str]
FUNCTION = """
def score(prompts, answers, rows):
    assert all("prompt" in row for row in rows)
    return [sum(int(w[1:]) % 2 == 0 for w in a.split() if w[1:].isdigit()) / 8 for a in answers]
"""
OBJECTIVES: dict[str, dict[str, object]] = {
    "grpo": {"num_generations": 4, "iterations": 2, "beta": 0.1},
    "rloo": {},
    "ppo": {"iterations": 2, "minibatches": 2, "target_kl": 0.1},
}


@pytest.fixture
def model(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


def _recipe(folder: Path, model: Path, kind: str, **keys: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "even.py").write_text(FUNCTION, encoding="utf-8")
    write_rows(folder / "held.jsonl", pairs(3, seed=1))
    objective = {"kind": kind, "reward": "even.py:score", "max_new_tokens": 8, **OBJECTIVES[kind]}
    settings = {"objective": objective, "eval_data": "held.jsonl", "max_steps": 8, "save_steps": 4, **keys}
    return write_recipe(folder, model, **settings)


def _rows(run: Path) -> list[dict[str, float]]:
    [file] = run.glob("*/metrics.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if k != "step_seconds"} for row in rows]


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    last = max(run.glob("*/checkpoints/step-*"))
    [file] = [f for f in last.glob("*.safetensors") if "adapter" in f.name or "trained" in f.name]
    return load_file(file)


@pytest.mark.parametrize("kind", list(OBJECTIVES))
def test_a_run_stopped_after_each_iteration_ends_where_a_whole_one_does(
    kind: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from luthier.run import training_loop

    whole = luthier(capsys, "train", _recipe(tmp_path / "whole", model, kind), "--json")
    assert whole.code == 0, whole.err
    recipe, run = _recipe(tmp_path / "parts", model, kind), tmp_path / "parts" / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training_loop._Stop, "requested", property(lambda self: True), raising=False)
        assert luthier(capsys, "train", recipe).code == 130  # every life is one iteration long
    assert luthier(capsys, "resume", run).code == 0
    assert _rows(run) == _rows(tmp_path / "whole" / "run")
    ours, theirs = _tensors(run), _tensors(tmp_path / "whole" / "run")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
    last = _rows(run)[-1]
    assert {"reward", "reward_std", "kl", "entropy", "response_length", "truncated", "eval_reward"} <= last.keys()
    assert last["step"] == 8
    scores = json.loads((run / "report.json").read_text(encoding="utf-8"))["eval"]
    assert scores["after"]["held-out reward"]["n"] == 3
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "nats per token" in page


def test_what_cannot_work_is_refused_before_a_model_is_loaded(model: Path, tmp_path: Path, capsys: Capture) -> None:
    recipe = _recipe(tmp_path, model, "grpo")
    for override, word in (
        ("objective.num_generations=1", "num_generations"),
        ("objective.reward=nothing", "reward"),
        ("objective.loss=sum", "loss"),
    ):
        said = luthier(capsys, "check", recipe, override)
        assert said.code != 0
        assert word in said.err
    said = luthier(capsys, "check", _recipe(tmp_path / "p", model, "ppo"), "objective.minibatches=5")
    assert said.code != 0
    assert "batch_size" in said.err


def test_a_run_that_runs_away_ends_with_what_to_do(model: Path, tmp_path: Path, capsys: Capture) -> None:
    said = luthier(capsys, "train", _recipe(tmp_path, model, "grpo"), "objective.max_kl=1e-9")
    assert said.code == 1
    assert "objective.max_kl" in said.err
    assert "Lower learning_rate" in said.err
    assert len(_rows(tmp_path / "run")) == 1
