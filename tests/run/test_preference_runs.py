"""Runs towards preferences from the user's side: they learn, resume bit for bit, and leave what others open."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import families
from laws.test_methods import METHODS, method_for
from luthier.cli.main import main
from luthier.data.records import PromptAnswer, Rated
from luthier.evaluate.preferences import calibration_error, reward_differences
from luthier.models.load import load_model
from luthier.run.opened import open_run
from luthier.train import reference_logps
from luthier.train.engine import Engine
from luthier.train.reference_logps import keep_reference_logps
from recipes import Said, luthier, pairs, texts, words, write_recipe, write_rows

Capture = pytest.CaptureFixture[str]
OBJECTIVES: dict[str, object] = {
    "dpo": "dpo",
    "dpo-ipo": {"kind": "dpo", "loss": "ipo", "beta": 0.5},
    "dpo-hinge": {"kind": "dpo", "loss": "hinge", "sft_weight": 0.1},
    "simpo": "simpo",
    "orpo": "orpo",
    "kto": "kto",
    "reward": {"kind": "reward", "center_rewards_coefficient": 0.01},
}


def judged(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return pairs whose better answers have other words than the worse ones."""
    draw = random.Random(seed)

    def said(low: int, high: int) -> str:
        return " ".join(f"w{draw.randrange(low, high)}" for _ in range(draw.randint(2, 6)))

    return [
        {"prompt": words(draw, draw.randint(2, 6)) + " ", "chosen": said(10, 15), "rejected": said(40, 45)}
        for _ in range(count)
    ]


def recipe_for(folder: Path, model: Path, objective: object, **keys: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "rows.jsonl", judged(48))
    write_rows(folder / "held.jsonl", judged(16, seed=1))
    settings = {"eval_data": "held.jsonl", "learning_rate": 1e-2, "max_steps": 16, "batch_size": 8, **keys}
    return write_recipe(folder, model, objective=objective, **settings)


def metrics_of(run: Path) -> list[dict]:
    [file] = run.glob("*/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def samples_of(run: Path) -> list[dict]:
    [file] = run.glob("*/samples.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def trained(capsys: Capture, recipe: Path, *argv: object) -> dict:
    said = luthier(capsys, "train", recipe, "--json", *argv)
    assert said.code == 0, said.err
    return said.json


@pytest.fixture(scope="module")
def model(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


# ---------------------------------------------------------------------- learning


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_learns_which_answers_are_better_and_logs_how_well(
    name: str, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    report = trained(capsys, recipe_for(tmp_path, model, OBJECTIVES[name], samples=2))
    rows = metrics_of(tmp_path / "run")
    assert all(math.isfinite(row[key]) for row in rows for key in ("loss", "accuracy", "margin"))
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["margin"] > rows[0]["margin"]
    assert rows[-1]["eval_accuracy"] > 0.7
    before, after = report["eval"]["before"], report["eval"]["after"]
    for metric in ("loss", "accuracy", "margin"):
        assert before[f"held-out {metric}"]["metric"] == metric
    assert after["held-out accuracy"]["value"] > before["held-out accuracy"]["value"]
    assert after["held-out loss"]["value"] < before["held-out loss"]["value"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(f"<b>{title}</b>" in page for title in ("Loss", "Accuracy", "Margin"))
    assert all({"prompt", "reference", "before", "after"} <= set(sample) for sample in samples_of(tmp_path / "run"))


def test_objectives_that_compare_with_the_start_begin_at_its_values(
    model: Path, tmp_path: Path, capsys: Capture
) -> None:
    starts = {"dpo": math.log(2), "kto": 0.5, "dpo-hinge": None}
    for name, expected in starts.items():
        recipe = recipe_for(tmp_path / name, model, OBJECTIVES[name], max_steps=1)
        report = trained(capsys, recipe)
        scores = report["eval"]["before"]
        assert scores["held-out accuracy"]["value"] == 0.5
        if expected is not None:
            assert scores["held-out loss"]["value"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_neither_packing_nor_the_cut_of_a_step_changes_what_is_learnt(
    name: str, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    recipe = recipe_for(tmp_path, model, OBJECTIVES[name], max_steps=3)
    ways = {"plain": (), "padded": ("packing=false",), "one by one": ("micro_batch_size=1",)}
    rows = {}
    for way, argv in ways.items():
        trained(capsys, recipe, *argv, f"run={tmp_path / way}")
        rows[way] = metrics_of(tmp_path / way)
    for way in ("padded", "one by one"):
        for ours, theirs in zip(rows["plain"], rows[way]):
            for key in ("loss", "accuracy", "margin", "grad_norm", "eval_loss"):
                if key in ours:
                    assert ours[key] == pytest.approx(theirs[key], rel=2e-4, abs=1e-5), (way, key)


# ---------------------------------------------------------------------- resuming


class Stopped(Exception):
    """Stands for whatever ends a program."""


@pytest.mark.parametrize("name", ["dpo", "kto", "orpo", "reward"])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    recipe = recipe_for(tmp_path, model, OBJECTIVES[name], max_steps=4, save_steps=1, method="full")
    trained(capsys, recipe, f"run={tmp_path / 'whole'}")
    step = Engine.train_step

    def stopping(self: Engine, rows: Sequence) -> dict[str, float]:
        if self.step == 2:
            raise Stopped
        return step(self, rows)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "train_step", stopping)
        with pytest.raises(Stopped):
            main(["train", str(recipe)])
    with monkeypatch.context() as patched:  # what the start says of the answers is read back, not computed again
        patched.setattr(reference_logps, "reference_logps", lambda *_: pytest.fail("the reference was computed twice"))
        assert luthier(capsys, "resume", tmp_path / "run").code == 0
    whole, resumed = metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "run")
    for row in (*whole, *resumed):
        del row["step_seconds"]
    assert resumed == whole
    tensors = [
        load_file(next((tmp_path / run).glob("*/checkpoints/step-000004/*.safetensors"))) for run in ("whole", "run")
    ]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    assert samples_of(tmp_path / "run") == samples_of(tmp_path / "whole")


def test_the_reference_of_other_weights_or_rows_is_computed_anew(model: Path, tmp_path: Path) -> None:
    from luthier.data.pairs import PairRenderer
    from luthier.data.records import Preference
    from luthier.data.render import Renderer

    opened = load_model(str(model))

    def store(seed: int) -> object:
        records = [
            Preference(
                *(PromptAnswer(r["prompt"], r[k], "", "", (), False, "") for k in ("chosen", "rejected")), None, ""
            )
            for r in judged(4, seed)
        ]
        return PairRenderer(Renderer(opened.tokenizer, objective_kind="sft", max_length=64)).render_all(records).store

    file, rows = tmp_path / "reference.safetensors", store(0)
    assert keep_reference_logps(opened, [rows], file, opened.fingerprint) == 8
    first = rows.extras["reference"]
    kept = file.read_bytes()
    keep_reference_logps(opened, [rows], file, opened.fingerprint)
    assert file.read_bytes() == kept
    with torch.no_grad():
        next(iter(opened.module.parameters())).mul_(1.5)
    again = store(0)
    keep_reference_logps(opened, [again], file, "other weights")
    assert file.read_bytes() != kept
    assert not np.allclose(again.extras["reference"], first)
    other = store(1)
    keep_reference_logps(opened, [other], file, "other weights")
    assert not np.allclose(other.extras["reference"], again.extras["reference"])


# ---------------------------------------------------------------------- data that do not fit


def checked(capsys: Capture, tmp_path: Path, model: Path, objective: str, rows: Sequence[dict]) -> Said:
    write_rows(tmp_path / "rows.jsonl", rows)
    return luthier(capsys, "check", write_recipe(tmp_path, model, objective=objective))


WRONG = {
    "sft rows under dpo": ("dpo", pairs(3), "objective: sft"),
    "dpo rows under sft": ("sft", judged(3), "objective: dpo"),
    "sft rows under kto": ("kto", pairs(3), "columns: {label: COLUMN}"),
    "texts under reward": ("reward", texts(3), "objective: lm"),
    "ratings under dpo": ("dpo", [{"prompt": "w3 ", "completion": "w4", "label": True}], "objective: kto"),
    "no prompt": ("dpo", [{"chosen": "w3", "rejected": "w4"}], 'add a column "prompt"'),
    "an empty prompt": ("simpo", [{"prompt": "", "chosen": "w3", "rejected": "w4"}], "fill it in or remove the row"),
    "pairs and others mixed": ("orpo", [*judged(2), *pairs(2)], "give both answers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_rows_that_do_not_fit_are_refused_before_training_with_a_remedy(
    name: str, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    objective, rows, remedy = WRONG[name]
    said = checked(capsys, tmp_path, model, objective, rows)
    assert said.code != 0
    assert any(remedy in " ".join(problem.split()) for problem in said.problems), said.err
    assert "rows.jsonl" in said.err


def test_same_and_empty_answers_are_left_out_and_counted(model: Path, tmp_path: Path, capsys: Capture) -> None:
    same = {"prompt": "w3 ", "chosen": "w4", "rejected": "w4"}
    said = checked(capsys, tmp_path, model, "dpo", [*judged(3), same, same, {**same, "rejected": ""}])
    assert said.code == 0, said.err
    shown = " ".join((said.err + said.out).split())
    assert "Both answers are the same" in shown
    assert "One of the answers is empty" in shown
    assert "3 rows of rows.jsonl, read as preference" in shown
    told = luthier(capsys, "check", tmp_path / "recipe.json", "--json").json
    assert len(told["warnings"]) == 2


def test_the_samples_of_a_reward_run_belong_to_their_prompts_although_rows_were_left_out(
    model: Path, tmp_path: Path, capsys: Capture
) -> None:
    rows = judged(6)
    rows[0] = {**rows[0], "chosen": words(random.Random(0), 80)}  # longer than max_length
    recipe = recipe_for(tmp_path, model, "reward", eval_data=None, max_steps=1, samples=3, max_length=40)
    write_rows(tmp_path / "rows.jsonl", rows)
    trained(capsys, recipe, "on_overlong=drop")
    found = samples_of(tmp_path / "run")
    assert [sample["prompt"].strip() for sample in found] == [row["prompt"].strip() for row in rows[1:4]]
    opened = open_run(tmp_path / "run")
    assert opened.model.module.config.num_labels == 1
    for sample, row in zip(found, rows[1:4]):
        scores = [float(part.split()[0]) for part in sample["after"].split(",")]
        assert scores == pytest.approx([_score(opened.model, row, key) for key in ("chosen", "rejected")], abs=6e-3)


def test_the_sample_shown_of_rated_answers_is_a_good_one(model: Path, tmp_path: Path, capsys: Capture) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in judged(8)
        for side in ("rejected", "chosen")
    ]
    recipe = recipe_for(tmp_path, model, "kto", eval_data=None, max_steps=1, samples=2)
    write_rows(tmp_path / "rows.jsonl", rows)
    trained(capsys, recipe)
    assert [sample["reference"] for sample in samples_of(tmp_path / "run")] == [
        rows[1]["completion"],
        rows[3]["completion"],
    ]


# ---------------------------------------------------------------------- reward models


def _score(model: object, row: dict[str, str], side: str) -> float:
    from luthier.data.render import Renderer

    record = PromptAnswer(row["prompt"], row[side], "", "", (), False, "")
    [example] = Renderer(model.tokenizer, objective_kind="sft", max_length=64).render_all([record]).store
    with model.evaluating():
        return float(model.class_logits(model.collate([example]))[0, 0])


@pytest.fixture(scope="module")
def padding_ends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose padding is the token that ends a text, as many have it."""
    folder = families.write("llama", tmp_path_factory.mktemp("padding-ends"), pad_token_id=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    return folder


def test_an_exported_reward_model_scores_as_ours_does_although_texts_end_with_the_padding_token(
    padding_ends: Path, tmp_path: Path, capsys: Capture
) -> None:
    trained(capsys, recipe_for(tmp_path, padding_ends, "reward"))
    assert luthier(capsys, "export", tmp_path / "run", "--to", "hf", tmp_path / "out").code == 0
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = open_run(tmp_path / "run").model
    assert theirs.config.num_labels == 1
    from luthier.data.render import Renderer

    for row in judged(4, seed=2):
        record = PromptAnswer(row["prompt"], row["chosen"], "", "", (), False, "")
        [example] = Renderer(ours.tokenizer, objective_kind="sft", max_length=64).render_all([record]).store
        tokens = torch.tensor(example.tokens[None].astype(np.int64))
        assert tokens[0, -1] == tokenizer.eos_token_id
        with torch.no_grad():
            found = float(theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits)
        assert found == pytest.approx(_score(ours, row, "chosen"), abs=1e-5)


def test_what_can_be_done_with_a_reward_run_is_said_and_can_be_done(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    said = luthier(capsys, "train", recipe_for(tmp_path, model, "reward"))
    assert said.code == 0, said.err
    assert "talk to it" not in said.out
    assert "luthier chat" not in said.out
    run = tmp_path / "run"

    shown = luthier(capsys, "show", run)
    assert shown.code == 0
    assert "accuracy" in shown.out

    held = luthier(capsys, "eval", run, "--json")
    assert held.code == 0, held.err
    report = json.loads((run / "report.json").read_text())
    expected = {name.removeprefix("held-out "): score["value"] for name, score in report["eval"]["after"].items()}
    assert held.json["accuracy"] == pytest.approx(expected["accuracy"])
    assert held.json["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert held.json["calibration_error"] == pytest.approx(expected["calibration error"], abs=1e-5)
    given = luthier(capsys, "eval", run, "--data", tmp_path / "held.jsonl")
    assert given.code == 0, given.err
    assert "accuracy" in given.out
    other = luthier(capsys, "eval", run, "--data", write_rows(tmp_path / "other.jsonl", pairs(3)))
    assert other.code != 0
    assert '"chosen"' in other.err

    monkeypatch.setattr("sys.stdin", io.StringIO("w3 w4\n"))
    talked = luthier(capsys, "chat", run)
    assert talked.code != 0
    [problem] = talked.problems
    assert "reward model" in problem
    assert "luthier eval" in " ".join(problem.split())


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_policy_is_measured_on_judged_rows_and_talked_to(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    report = trained(capsys, recipe_for(tmp_path, model, OBJECTIVES[name]))
    run = tmp_path / "run"
    held = luthier(capsys, "eval", run, "--json")
    assert held.code == 0, held.err
    assert held.json["accuracy"] == pytest.approx(report["eval"]["after"]["held-out accuracy"]["value"])
    assert held.json["margin"] == pytest.approx(report["eval"]["after"]["held-out margin"]["value"], rel=1e-3)
    monkeypatch.setattr("sys.stdin", io.StringIO("w3 w4\n"))
    assert luthier(capsys, "chat", run).code == 0


def test_calibration_is_perfect_where_confidence_is_the_share_of_right_pairs() -> None:
    draw = np.random.default_rng(0)
    size = draw.uniform(0, 4, 20_000)
    is_right = draw.random(size.shape) < 1 / (1 + np.exp(-size))
    assert calibration_error(np.where(is_right, size, -size)) < 0.01
    assert calibration_error(np.where(is_right, 5 * size, -5 * size)) > 0.1
    assert calibration_error(np.zeros(3)) == 0.0


def test_differences_of_rewards_are_those_of_the_two_answers(model: Path, tmp_path: Path, capsys: Capture) -> None:
    trained(capsys, recipe_for(tmp_path, model, "reward", max_steps=2))
    from luthier.data.pairs import PairRenderer
    from luthier.data.records import Preference
    from luthier.data.render import Renderer

    ours, rows = open_run(tmp_path / "run").model, judged(3, seed=5)
    records = [
        Preference(*(PromptAnswer(r["prompt"], r[k], "", "", (), False, "") for k in ("chosen", "rejected")), None, "")
        for r in rows
    ]
    store = PairRenderer(Renderer(ours.tokenizer, objective_kind="sft", max_length=64)).render_all(records).store
    expected = [_score(ours, r, "chosen") - _score(ours, r, "rejected") for r in rows]
    assert reward_differences(ours, store) == pytest.approx(np.array(expected), abs=1e-5)


# ---------------------------------------------------------------------- every method


@pytest.mark.parametrize("objective", ["dpo", "reward"])
@pytest.mark.parametrize("kind", METHODS)
def test_every_method_learns_from_preferences_or_says_why_not(
    kind: str, objective: str, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    method = method_for(kind, "llama").model_dump(exclude_unset=True)
    steps = 20 if kind == "adalora" else 1  # its budget has a course of its own
    recipe = recipe_for(tmp_path, model, objective, method=method, max_steps=steps)
    said = luthier(capsys, "train", recipe)
    if said.code != 0:
        assert (kind, objective) in REFUSED, said.err
        assert all("→" in problem for problem in said.problems), said.err
        return
    assert (kind, objective) not in REFUSED
    assert json.loads((tmp_path / "run" / "report.json").read_text())["frozen_unchanged"]
    row = metrics_of(tmp_path / "run")[0]
    assert math.isfinite(row["loss"])
    assert row["grad_norm"] > 0
    assert {"accuracy", "margin"} <= set(row)
    opened = open_run(tmp_path / "run")
    assert opened.checkpoint.is_dir()


REFUSED = {("feature_extraction", "dpo"), ("dense_head", "dpo")}
"""Methods that train a new head alone have nothing to train on a language model."""


def test_what_is_shown_of_a_rated_record_is_its_answer() -> None:
    answer = PromptAnswer("w3", "w4", "", "", (), False, "r:1")
    from luthier.run.datasets import prompt_text

    assert prompt_text(Rated(answer, True, "r:1")) == "w3"
