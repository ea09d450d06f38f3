"""Runs with soft prompts and prefixes from the user's side: the text to start from, room in the context, resuming."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from families import CONTEXT
from luthier.cli.main import main
from luthier.train.engine import Engine
from recipes import luthier, pairs, texts, write_recipe, write_rows

Capture = pytest.CaptureFixture[str]

METHODS = {
    "prompt": {"kind": "prompt", "tokens": 4, "init": "text", "init_text": "w9 w17 w25"},
    "p_tuning": {"kind": "p_tuning", "tokens": 4, "encoder_size": 8},
    "prefix": {"kind": "prefix", "tokens": 4, "projection": True},
    "p_tuning_v2": {"kind": "p_tuning_v2", "tokens": 4},
}


class Stopped(Exception):
    """Stands for whatever ends a program."""


@pytest.mark.parametrize("kind", METHODS)
def test_a_resumed_run_ends_with_the_tensors_of_an_uninterrupted_one(
    kind: str, family_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    recipe = write_recipe(tmp_path, family_folder("llama"), method=METHODS[kind], save_steps=1)
    assert luthier(capsys, "train", recipe, f"run={tmp_path / 'whole'}").code == 0
    step = Engine.train_step

    def stopping(self: Engine, rows: list) -> dict[str, float]:
        if self.step == 2:
            raise Stopped
        return step(self, rows)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "train_step", stopping)
        with pytest.raises(Stopped):
            main(["train", str(recipe)])
    assert luthier(capsys, "resume", tmp_path / "run").code == 0
    for name in ("adapter_model.safetensors", "trained.safetensors"):
        [whole, resumed] = [next((tmp_path / run).glob("*/checkpoints/step-000004")) / name for run in ("whole", "run")]
        assert whole.is_file() == resumed.is_file()
        if whole.is_file():
            expected, found = load_file(whole), load_file(resumed)
            assert expected.keys() == found.keys()
            assert all((expected[k] == found[k]).all() for k in expected)
    if kind == "prompt":
        [chosen] = (tmp_path / "run").glob("*/method.json")
        assert json.loads(chosen.read_text())["init_tokens"] == [9, 17, 25, 9]


@pytest.mark.parametrize("kind", METHODS)
def test_the_prompt_takes_its_places_from_the_context(
    kind: str, family_folder: Callable[[str], Path], tmp_path: Path, capsys: Capture
) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": " ".join(r["text"] for r in texts(20, seed=s))} for s in range(8)])
    model = family_folder("gpt2")  # learned places: one too many is an error, not only a poor answer
    recipe = write_recipe(tmp_path, model, method=METHODS[kind], objective="lm")
    said = luthier(capsys, "train", recipe, "--json")
    assert said.code == 0, said.err
    assert said.json["data"]["longest"] == CONTEXT - 4
    told = luthier(capsys, "check", recipe, f"max_length={CONTEXT}", "--json")
    assert told.code == 0
    assert told.json["derived"]["max_length"] == CONTEXT - 4
    assert f"sequences have at most {CONTEXT - 4}" in told.json["warnings"][0]["what"]
    refused = luthier(capsys, "check", recipe, f"max_length={CONTEXT + 1}")
    assert refused.code != 0
    [problem] = refused.problems
    assert "the method fills 4 of them itself" in problem
    assert f"set max_length to {CONTEXT - 4} or less" in problem
    assert luthier(capsys, "check", recipe, f"max_length={CONTEXT - 4}").code == 0


@pytest.mark.parametrize("kind", METHODS)
def test_a_classifier_is_trained_and_opened_again(
    kind: str, family_folder: Callable[[str], Path], tmp_path: Path, capsys: Capture
) -> None:
    rows = [{"text": row["prompt"] + "w5 w6", "label": ["yes", "no"][i % 2]} for i, row in enumerate(pairs(24))]
    write_rows(tmp_path / "rows.jsonl", rows)
    recipe = write_recipe(tmp_path, family_folder("llama"), method=METHODS[kind], objective="classify")
    said = luthier(capsys, "train", recipe, "--json")
    assert said.code == 0, said.err
    [folder] = (tmp_path / "run").glob("*/checkpoints/step-000004")
    assert any("score" in name for name in load_file(folder / "adapter_model.safetensors"))
    assert luthier(capsys, "eval", tmp_path / "run", "--data", tmp_path / "rows.jsonl", "--json").code == 0
