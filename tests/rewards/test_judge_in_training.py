"""An AI judge as a reward: when it fails in the middle of a run, the resumed run is the same and pays nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from judge_server import JudgeServer, Messages, answer_between, serving
from recipes import luthier, write_recipe, write_rows


def score_by_words(messages: Messages) -> str:
    words = answer_between(messages[0]["content"], "answer").split()
    return json.dumps({"score": 1 + sum(int(word[1:]) for word in words if word[1:].isdigit()) % 9})


def metrics(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "00-grpo" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "step_seconds"} for row in rows]


def test_a_run_whose_judge_fell_silent_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family_folder: Callable[[str], Path]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"w{i} w{i + 1} "} for i in range(5, 17)])
    with serving(JudgeServer(score_by_words)) as whole, serving(JudgeServer(score_by_words)) as torn:
        for name, server in (("whole", whole), ("torn", torn)):
            judge = {"kind": "judge", "endpoint": server.url, "model": "judge", "retries": 0, "concurrency": 2}
            objective = {"kind": "grpo", "reward": judge, "num_generations": 4, "max_new_tokens": 6}
            keys: dict[str, object] = {"data": str(data), "objective": objective, "max_steps": 3, "save_steps": 1}
            recipe = write_recipe(tmp_path / name, family_folder("llama"), **keys, samples=0)
            # With two asked at a time, the second batch of answers breaks off.
            server.break_after = None if name == "whole" else 22
            said = luthier(capsys, "train", recipe)
            assert said.code == (0 if name == "whole" else 1), said.err
        assert "did not answer" in said.err
        paid = sum(torn.paid.values())
        torn.break_after = None
        assert luthier(capsys, "resume", tmp_path / "torn" / "run").code == 0
    assert 16 < paid < sum(torn.paid.values())
    assert set(torn.paid.values()) == {1}
    assert torn.paid == whole.paid
    assert metrics(tmp_path / "torn" / "run") == metrics(tmp_path / "whole" / "run")
    assert len({row["reward"] for row in metrics(tmp_path / "whole" / "run")}) > 1


def test_a_run_of_a_reward_model_judges_rows_and_rewards_another_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family_folder: Callable[[str], Path]
) -> None:
    model = family_folder("llama")
    rows = [{"prompt": f"w{i} ", "chosen": "w40 w41 w42", "rejected": f"w{i + 20} w50"} for i in range(4, 28)]
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    recipe = write_recipe(tmp_path / "scored", model, data=str(pairs), objective="reward", samples=0, max_steps=12)
    assert luthier(capsys, "train", recipe).code == 0
    scored = tmp_path / "scored" / "run"
    said = luthier(capsys, "judge", pairs, "--judge", scored, "--out", tmp_path / "again.jsonl", "--json")
    assert said.code == 0, said.err
    judged = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert sum(row["chosen"] == "w40 w41 w42" for row in judged) >= 0.9 * len(rows)
    reward = {"kind": "sum", "parts": [{"kind": "model", "path": "scored/run"}, "exact_match"], "weights": [1.0, 0.0]}
    objective = {"kind": "grpo", "reward": reward, "num_generations": 4, "max_new_tokens": 4}
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"], "answer": "w40"} for row in rows])
    recipe = tmp_path / "grpo.json"
    values = {"model": str(model), "method": "lora", "objective": objective, "data": str(prompts), "max_steps": 2}
    recipe.write_text(json.dumps({**values, "batch_size": 4, "samples": 0, "run": str(tmp_path / "run")}))
    said = luthier(capsys, "train", recipe)
    assert said.code == 0, said.err
    assert len({row["reward"] for row in metrics(tmp_path / "run")}) == 2
