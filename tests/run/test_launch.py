"""Starting and resuming: names, files, locks, and whatever a run folder may look like when it is taken up again."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luthier.core.rundir import RunDir
from luthier.run import stage as stage_module
from luthier.run import training_loop
from luthier.run.stage_run import StageRun
from recipes import Said, luthier, pairs, texts, write_recipe, write_rows

Capture = pytest.CaptureFixture[str]


class Killed(BaseException):
    """Ends a run at once, as `kill -9` would: nothing catches it."""


@contextmanager
def killed_in_step(step: int) -> Iterator[None]:
    """Let runs die before they take this step."""
    real = training_loop.one_step

    def dying(stage: StageRun) -> dict[str, float]:
        if stage.engine.step + 1 == step:
            raise Killed
        return real(stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_loop, "one_step", dying)
        yield


def killed_run(capsys: Capture, recipe: Path, step: int) -> Path:
    """Start a run that dies before a step, and return its folder."""
    with killed_in_step(step), pytest.raises(Killed):
        luthier(capsys, "train", recipe)
    return recipe.parent / "run"


def rows_of(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "00-sft" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "step_seconds"} for row in rows]


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    report = json.loads((run / "report.json").read_text())
    files = sorted((run / report["final_checkpoint"]).glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def equal_outcome(one: Path, other: Path) -> bool:
    mine, theirs = tensors_of(one), tensors_of(other)
    same = mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)
    return same and rows_of(one) == rows_of(other)


@pytest.fixture(scope="module")
def model(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


@pytest.fixture
def recipe(model: Path, tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "r", model, save_steps=2, max_steps=7)


# ---------------------------------------------------------------------- what a run leaves


def test_a_run_leaves_the_files_that_its_page_and_other_programs_read(recipe: Path, capsys: Capture):
    said = luthier(capsys, "train", recipe, "eval_fraction=0.2", "eval_steps=3", "--json")
    assert said.code == 0, said.err
    run = recipe.parent / "run"
    for name in ("recipe.yaml", "resolved.json", "environment.json", "report.html", "data/examples.html"):
        assert (run / name).stat().st_size, name
    rows = rows_of(run)
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert all(row.keys() >= {"step", "epoch", "loss", "grad_norm", "learning_rate", "tokens"} for row in rows)
    assert [row["step"] for row in rows if "eval_loss" in row] == [3, 6, 7]
    report = said.json
    assert report == json.loads((run / "report.json").read_text())
    assert report["status"] == "finished"
    assert (report["method"], report["objective"], report["steps"]) == ("lora", "sft", 7)
    assert 0 < report["trainable_parameters"] < report["total_parameters"]
    assert report["peak_bytes"] > report["total_parameters"]
    assert report["frozen_unchanged"] is True
    assert report["audit"]["passed"] is True
    assert report["tokens_total"] == sum(row["tokens"] for row in rows)
    assert (run / report["final_checkpoint"] / "DONE").is_file()
    assert set(report["eval"]["after"]) == {"held-out loss"}
    assert report["environment"]["threads"] == torch.get_num_threads()


def test_rows_read_trained_on_and_held_out_are_counted_apart(recipe: Path, capsys: Capture):
    data = luthier(capsys, "train", recipe, "eval_fraction=0.2", "max_steps=1", "--json").json["data"]
    assert (data["rows"], data["train_rows"], data["held_out_rows"], data["examples"]) == (20, 16, 4, 16)
    lengths = data["lengths"]
    assert sum(lengths["counts"]) == data["examples"]
    assert len(lengths["edges"]) == len(lengths["counts"]) + 1
    assert lengths["edges"][0] <= data["median_length"] <= data["longest"] < lengths["edges"][-1]


def test_the_log_holds_what_the_screen_showed_of_every_life(recipe: Path, capsys: Capture):
    override = json.loads(recipe.read_text()) | {"eval_fraction": 0.2, "eval_steps": 2}
    recipe.write_text(json.dumps(override))
    run = killed_run(capsys, recipe, 4)
    assert luthier(capsys, "resume", run).code == 0
    log = (run / "00-sft" / "log.txt").read_text()
    assert log.count(" data  ") == 2
    assert "no chat template" in log
    assert [f"step {n}/7" in log for n in (2, 4, 6, 7)] == [True] * 4
    assert "resuming  from step 2 of 7" in log
    assert "report" in log


def test_warnings_about_data_and_model_are_in_the_report(model: Path, tmp_path: Path, capsys: Capture):
    rows = write_rows(tmp_path / "rows.jsonl", [*pairs(8), {"prompt": "w4 <pad>", "completion": "w5"}])
    recipe = write_recipe(tmp_path / "r", model, data=str(rows), max_steps=1)
    warnings = luthier(capsys, "train", recipe, "--json").json["warnings"]
    assert any("special token" in warning and "rows.jsonl:9" in warning for warning in warnings)
    assert any("no chat template" in warning for warning in warnings)


def test_a_run_is_named_after_its_recipe_and_never_mixed_with_another(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
):
    recipe = write_recipe(tmp_path / "r", model, max_steps=1, run=None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("recipe", "recipe-2", "recipe-3"):
        said = luthier(capsys, "train", recipe, "--json")
        assert said.json["run"] == name
        assert (tmp_path / "here" / "runs" / name / "report.html").is_file()


def test_the_recipe_of_a_run_trains_the_same_again_from_anywhere(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
):
    assert luthier(capsys, "train", recipe).code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    kept = recipe.parent / "run" / "recipe.yaml"
    assert luthier(capsys, "train", kept, f"run={tmp_path / 'again'}").code == 0
    assert equal_outcome(recipe.parent / "run", tmp_path / "again")


def test_a_start_that_was_cut_off_leaves_its_name_free(recipe: Path, capsys: Capture):
    run = recipe.parent / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("model: starter\n")
    (run / ".resolved.json.tmp").write_text("{")
    assert luthier(capsys, "train", recipe, "max_steps=1").code == 0


def test_nothing_is_printed_on_standard_output_but_what_was_asked_for(recipe: Path, capsys: Capture):
    said = luthier(capsys, "train", recipe, "max_steps=1")
    run = recipe.parent / "run"
    assert said.out.strip().splitlines()[0] == str(run / "report.html")
    assert f"luthier export {run} --to hf OUT" in said.out
    assert "before" in said.err


# ---------------------------------------------------------------------- going on


def untouched(run: Path) -> None:
    pass


def torn_checkpoint(run: Path) -> None:
    (RunDir(run).stages()[0].complete_checkpoints()[-1] / "DONE").unlink()


def torn_metrics(run: Path) -> None:
    with (run / "00-sft" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 7, "lo')


def zeros_in_metrics(run: Path) -> None:
    with (run / "00-sft" / "metrics.jsonl").open("ab") as stream:
        stream.write(b"\0" * 64 + b"\xff\n")


def garbage_beside_checkpoints(run: Path) -> None:
    home = run / "00-sft" / "checkpoints"
    (home / "step-abc").mkdir()
    (home / "step-abc" / "DONE").touch()
    (home / "step-999999").write_text("a file")
    (home / ".step-000009.tmp").mkdir()
    (home / "notes.txt").write_text("mine")


def no_checkpoint(run: Path) -> None:
    shutil.rmtree(run / "00-sft" / "checkpoints")


def no_metrics(run: Path) -> None:
    shutil.rmtree(run / "00-sft" / "checkpoints")
    (run / "00-sft" / "metrics.jsonl").unlink()
    (run / "00-sft" / "eval.json").unlink()


SPOILT = [untouched, torn_checkpoint, torn_metrics, zeros_in_metrics, garbage_beside_checkpoints, no_checkpoint]


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outcome of the uninterrupted run."""
    from luthier.run.draft import read_draft
    from luthier.run.examine import examine
    from luthier.run.launch import start
    from luthier.run.screen import Screen

    recipe = write_recipe(tmp_path_factory.mktemp("whole"), model, save_steps=2, max_steps=7)
    return start(examine(read_draft(recipe)), Screen(quiet=True)).path


@pytest.mark.parametrize("spoil", [*SPOILT, no_metrics])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    spoil: Callable[[Path], None], recipe: Path, whole: Path, capsys: Capture
):
    run = killed_run(capsys, recipe, 6)
    spoil(run)
    said = luthier(capsys, "resume", run, "--json")
    assert said.code == 0, said.err
    assert said.json["status"] == "finished"
    assert equal_outcome(run, whole)


def test_a_run_killed_after_its_last_step_is_only_settled(recipe: Path, whole: Path, capsys: Capture):
    def dying(stage: StageRun) -> str:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_module, "settle", dying)
        with pytest.raises(Killed):
            luthier(capsys, "train", recipe)
    run = recipe.parent / "run"
    assert luthier(capsys, "resume", run).code == 0
    assert equal_outcome(run, whole)


# ---------------------------------------------------------------------- not going on


def gone(run: Path) -> None:
    shutil.rmtree(run)


def other_rows(run: Path) -> None:
    write_rows(run.parent / "rows.jsonl", pairs(20, seed=9))


def no_rows(run: Path) -> None:
    (run.parent / "rows.jsonl").unlink()


def no_recipe(run: Path) -> None:
    (run / "resolved.json").write_text('{"recipe": ')


def empty_recipe(run: Path) -> None:
    (run / "resolved.json").write_text('{"recipe": {}}')


def no_moments(run: Path) -> None:
    for file in run.glob("00-sft/checkpoints/*/optimizer.safetensors"):
        file.unlink()


def torn_state(run: Path) -> None:
    for file in run.glob("00-sft/checkpoints/*/trainer_state.json"):
        file.write_text("{")


def torn_adapter(run: Path) -> None:
    for file in run.glob("00-sft/checkpoints/*/adapter_model.safetensors"):
        file.write_bytes(file.read_bytes()[:100])


REFUSED = [
    (gone, "holds no run"),
    (other_rows, "The data have changed"),
    (no_rows, "There is no such file"),
    (no_recipe, "cannot be read"),
    (empty_recipe, 'The key "model" is missing'),
    (no_moments, "lacks optimizer.safetensors"),
    (torn_state, "cannot be read"),
    (torn_adapter, "adapter_model.safetensors"),
]


@pytest.mark.parametrize(("spoil", "told"), REFUSED)
def test_a_run_that_cannot_go_on_says_why(spoil: Callable[[Path], None], told: str, recipe: Path, capsys: Capture):
    run = killed_run(capsys, recipe, 6)
    spoil(run)
    refused(luthier(capsys, "resume", run), told)


def refused(said: Said, told: str) -> None:
    assert said.code == 2, said.err
    assert told in said.err
    assert "→" in said.err
    assert "Traceback" not in said.err


def test_a_finished_run_is_not_resumed(whole: Path, capsys: Capture):
    refused(luthier(capsys, "resume", whole), "luthier show")


def test_a_run_at_work_elsewhere_is_not_resumed(recipe: Path, capsys: Capture):
    run = killed_run(capsys, recipe, 6)
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(luthier(capsys, "resume", run), "Another process")


@pytest.mark.parametrize("step", [1, 6], ids=["before the first checkpoint", "after it"])
def test_a_run_whose_base_model_was_changed_is_not_resumed(step: int, model: Path, tmp_path: Path, capsys: Capture):
    shutil.copytree(model, tmp_path / "model")
    run = killed_run(capsys, write_recipe(tmp_path / "r", tmp_path / "model", save_steps=2, max_steps=7), step)
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        module.get_input_embeddings().weight.mul_(2)
    module.save_pretrained(tmp_path / "model")
    refused(luthier(capsys, "resume", run), "put the original model back")


def test_what_is_wrong_with_a_resumed_run_is_told_at_once(model: Path, tmp_path: Path, capsys: Capture):
    shutil.copytree(model, tmp_path / "model")
    run = killed_run(capsys, write_recipe(tmp_path / "r", tmp_path / "model"), 2)
    no_rows(run)
    shutil.rmtree(tmp_path / "model")
    said = luthier(capsys, "resume", run)
    assert said.code == 2
    assert len(said.problems) == 2


def test_text_is_trained_on_and_resumed_too(model: Path, tmp_path: Path, capsys: Capture):
    rows = write_rows(tmp_path / "texts.jsonl", texts(20))
    recipe = write_recipe(tmp_path / "r", model, data=str(rows), objective="lm", max_length=16, save_steps=2)
    run = killed_run(capsys, recipe, 4)
    said = luthier(capsys, "resume", run, "--json")
    assert said.json["objective"] == "lm"
    assert said.json["data"]["windows"] > 0
    assert (run / "00-lm").is_dir()
