"""What can be done with a run: measure it, export it, talk to it; by a run of every method."""

from __future__ import annotations

import io
import json
import math
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from recipes import luthier, pairs, texts, write_recipe, write_rows

METHODS: dict[str, object] = {
    "lora": {"kind": "lora", "rank": 4},
    "full": "full",
    "layers": {"kind": "layers", "last": 1, "norms": True},
    "bitfit": "bitfit",
}
Runs = dict[str, Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, family_folder: Callable[[str], Path]) -> Runs:
    """A finished run of every method, one from random weights, and one in bfloat16."""
    from luthier.run.draft import read_draft
    from luthier.run.examine import examine
    from luthier.run.launch import start
    from luthier.run.screen import Screen

    home = tmp_path_factory.mktemp("runs")
    write_rows(home / "rows.jsonl", pairs(24))
    model = family_folder("phi")
    scratch = {"path": str(model), "from_scratch": True}
    recipes: dict[str, dict[str, object]] = {name: {"method": method} for name, method in METHODS.items()}
    recipes["scratch"] = {"method": METHODS["lora"], "model": scratch}
    recipes["bf16"] = {"method": METHODS["lora"], "dtype": "bfloat16"}
    recipes["bf16-layers"] = {"method": METHODS["layers"], "dtype": "bfloat16"}
    recipes["bf16-full"] = {"method": "full", "dtype": "bfloat16", "learning_rate": 1e-3}
    made = {}
    for name, keys in recipes.items():
        held = {"eval_fraction": 0.25} if name != "bitfit" else {}
        recipe = write_recipe(home / name, **{"model": str(model), "data": str(home / "rows.jsonl"), **held, **keys})
        made[name] = start(examine(read_draft(recipe)), Screen(quiet=True)).path
    return made


def by_hand(
    model: PreTrainedModel, folder: Path | str, rows: Sequence[dict[str, str]], is_text: bool
) -> tuple[float, int]:
    """Return the mean loss of the answers and how many tokens they have, by transformers alone, row by row."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    total, count = 0.0, 0
    for row in rows:
        parts = ["", row["text"]] if is_text else [row["prompt"], row["completion"]]
        before, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (parts[0], "".join(parts)))
        ids = torch.tensor([[*whole, tokenizer.eos_token_id]])
        labels = ids.clone()
        labels[:, : len(before)] = -100
        supervised = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * supervised
        count += supervised
    return total / count, count


def plain_model(run: Path, base: Path, method: str) -> PreTrainedModel:
    """Open a run's last checkpoint with transformers, PEFT and safetensors alone."""
    from safetensors.torch import load_file

    checkpoint = run / json.loads((run / "report.json").read_text())["final_checkpoint"]
    if method == "full":
        return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if method == "lora":
        return PeftModel.from_pretrained(model, str(checkpoint)).eval()
    _, unexpected = model.load_state_dict(load_file(checkpoint / "trained.safetensors"), strict=False)
    assert not unexpected
    return model


@pytest.mark.parametrize("is_text", [False, True], ids=["answers", "text"])
@pytest.mark.parametrize("method", [*METHODS, "model"])
def test_a_measured_loss_is_the_one_computed_by_hand(
    method: str, is_text: bool, runs: Runs, family_folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base = family_folder("phi")
    rows = (texts if is_text else pairs)(7, seed=5)
    data = write_rows(tmp_path / "held.jsonl", rows)
    target = base if method == "model" else runs[method]
    said = luthier(capsys, "eval", target, "--data", data, "--json")
    assert said.code == 0, said.err
    model = (
        AutoModelForCausalLM.from_pretrained(base).eval() if method == "model" else plain_model(target, base, method)
    )
    loss, tokens = by_hand(model, base, rows, is_text)
    assert said.json["loss"] == pytest.approx(loss, abs=1e-5)
    assert said.json["tokens"] == tokens
    assert said.json["rows"] == 7


def test_without_data_a_run_is_measured_on_what_it_held_out(runs: Runs, capsys: pytest.CaptureFixture[str]):
    said = luthier(capsys, "eval", runs["lora"], "--json")
    after = json.loads((runs["lora"] / "report.json").read_text())["eval"]["after"]["held-out loss"]
    assert said.json["loss"] == pytest.approx(after["value"], abs=1e-6)
    assert said.json["tokens"] == after["tokens"]
    assert "loss" in luthier(capsys, "eval", runs["lora"], "--limit", 2).out


def test_a_checkpoint_holds_float32_and_may_be_read_by_others(runs: Runs):
    from safetensors.torch import load_file

    for name in ("lora", "bf16", "bf16-layers", "bf16-full"):
        report = json.loads((runs[name] / "report.json").read_text())
        files = list((runs[name] / report["final_checkpoint"]).glob("*.safetensors"))
        assert files
        for file in files:
            assert all(t.dtype == torch.float32 for t in load_file(file).values()), name
            assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE((file.parent / "DONE").stat().st_mode)


FORMATS = [(name, "float32") for name in ("lora", "full", "layers", "bitfit", "scratch", "bf16-full")]
FORMATS += [("bf16", "bfloat16"), ("bf16-layers", "bfloat16")]


@pytest.mark.parametrize(("name", "dtype"), FORMATS)
def test_an_exported_folder_computes_what_the_run_computes(
    name: str, dtype: str, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    said = luthier(capsys, "export", runs[name], out, "--to", "hf", "--json")
    assert said.code == 0, said.err
    assert said.json["dtype"] == dtype
    module = AutoModelForCausalLM.from_pretrained(out)
    assert {str(p.dtype) for p in module.parameters()} == {f"torch.{dtype}"}
    data = write_rows(tmp_path / "held.jsonl", pairs(7, seed=5))
    losses = [luthier(capsys, "eval", target, "--data", data, "--json").json["loss"] for target in (runs[name], out)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5 if "bf16" not in name else 0.05)
    assert stat.S_IMODE((out / "model.safetensors").stat().st_mode) == stat.S_IMODE(
        (out / "config.json").stat().st_mode
    )


def test_an_adapter_is_opened_by_peft(runs: Runs, family_folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    said = luthier(capsys, "export", runs["lora"], tmp_path / "adapter", "--to", "peft")
    assert said.code == 0, said.err
    assert "PeftModel.from_pretrained" in said.out
    base = AutoModelForCausalLM.from_pretrained(family_folder("phi"))
    model = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    rows = pairs(7, seed=5)
    data = write_rows(tmp_path / "held.jsonl", rows)
    loss, _ = by_hand(model, tmp_path / "adapter", rows, is_text=False)
    measured = luthier(capsys, "eval", runs["lora"], "--data", data, "--json").json["loss"]
    assert measured == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("name", ["full", "layers", "bitfit", "scratch"])
def test_what_has_no_adapter_form_is_told_the_other_one(
    name: str, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    said = luthier(capsys, "export", runs[name], tmp_path / "out", "--to", "peft")
    assert said.code == 2
    assert "--to hf" in said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*METHODS, "scratch", "bf16"])
def test_a_run_answers_the_lines_of_its_input(
    name: str, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.stdin", io.StringIO("w4 w5\n\n/reset\nw6 w7 w8\n/exit\nw9\n"))
    said = luthier(capsys, "chat", runs[name], "--max-new-tokens", 5, "--temperature", 0)
    assert said.code == 0, said.err
    assert len(said.out.splitlines()) == 2


def test_a_long_conversation_forgets_its_beginning_and_a_long_question_is_told(
    family_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    model = tmp_path / "model"
    shutil.copytree(family_folder("llama"), model)
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ ' ' + m['content'] }}{% endfor %}")
    monkeypatch.setattr("sys.stdin", io.StringIO("w4 w5 w6\n" * 20))
    said = luthier(capsys, "chat", model, "--max-new-tokens", 8, "--temperature", 0)
    assert said.code == 0, said.err
    monkeypatch.setattr("sys.stdin", io.StringIO("w4 " * 200))
    said = luthier(capsys, "chat", model, "--system", "w5")
    assert said.code == 2
    assert "built for 96" in said.err


def moved(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def other_weights(folder: Path) -> None:
    module = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        module.get_input_embeddings().weight.mul_(2)
    module.save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "told"), [(moved, "There is no such model folder"), (other_weights, "put the original model back")]
)
@pytest.mark.parametrize("verb", ["eval", "export", "chat"])
def test_a_base_model_that_is_no_longer_the_same_is_told(
    verb: str, change, told: str, family_folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = tmp_path / "model"
    shutil.copytree(family_folder("llama"), model)
    recipe = write_recipe(tmp_path / "r", model, max_steps=1)
    assert luthier(capsys, "train", recipe).code == 0
    change(model)
    data = ["--data", str(tmp_path / "r" / "rows.jsonl")] if verb == "eval" else []
    out = [str(tmp_path / "out")] if verb == "export" else []
    said = luthier(capsys, verb, tmp_path / "r" / "run", *out, *data)
    assert said.code == 2
    assert len(said.problems) == 1
    assert told in said.err
    assert not (tmp_path / "out").exists()


def no_checkpoint(run: Path) -> None:
    shutil.rmtree(next(run.glob("*-sft")) / "checkpoints")


def no_run(run: Path) -> None:
    shutil.rmtree(run)


def no_resolved(run: Path) -> None:
    (run / "resolved.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [(no_checkpoint, "luthier resume"), (no_run, "runs there: other"), (no_resolved, "cannot be read")],
)
@pytest.mark.parametrize("verb", ["eval", "export", "chat"])
def test_a_run_that_cannot_be_opened_is_told(
    verb: str, spoil, told: str, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("run", "other"):
        shutil.copytree(runs["full"], tmp_path / name)
    spoil(tmp_path / "run")
    data = ["--data", str(write_rows(tmp_path / "held.jsonl", pairs(3)))] if verb == "eval" else []
    said = luthier(capsys, verb, tmp_path / "run", *([str(tmp_path / "out")] if verb == "export" else []), *data)
    assert said.code == 2
    assert len(said.problems) == 1
    assert told in said.err


WRONG_MEASURES = [
    (["{model}"], "--data FILE"),
    (["{bitfit}"], "held no rows out"),
    (["{lora}", "--data", "none.jsonl"], "There is no such file"),
    (["./none", "--data", "none.jsonl"], "There is no such model folder"),
    (["{lora}", "--data", "{held}", "--chat-template", "none"], "There is no chat template"),
]


@pytest.mark.parametrize(("argv", "told"), WRONG_MEASURES)
def test_a_measure_without_what_it_needs_is_told(
    argv: list[str], told: str, runs: Runs, family_folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    places = {**runs, "model": family_folder("phi"), "held": write_rows(tmp_path / "held.jsonl", pairs(3))}
    said = luthier(capsys, "eval", *(word.format(**places) for word in argv))
    assert said.code == 2
    assert told in said.err
    assert said.out == ""


def test_faults_of_the_model_and_of_the_data_are_told_together(capsys: pytest.CaptureFixture[str]):
    said = luthier(capsys, "eval", "./none", "--data", "none.jsonl", "--json")
    assert said.code == 2
    assert len(said.json["error"]["problems"]) == 2


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_export_writes_over_nothing(kind: str, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    mine = out / "mine" if kind == "folder" else out
    mine.write_text("mine")
    said = luthier(capsys, "export", runs["full"], out)
    assert said.code == 2
    assert "choose another folder" in said.err
    assert mine.read_text() == "mine"


def test_a_tiny_loss_has_a_perplexity(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_rows(tmp_path / "held.jsonl", pairs(3))
    result = luthier(capsys, "eval", runs["full"], "--data", data, "--json").json
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
