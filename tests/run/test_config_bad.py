"""Every mistake in a recipe is told with its line and with what to write instead."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from luthier.core.errors import RecipeError
from luthier.run.config import load_recipe

GOOD = "model: starter\nmethod: lora\ndata: starter:quickstart\n"


@dataclass(frozen=True)
class Bad:
    """A line put behind a good recipe (or overrides), where the problem is, what it says, and what helps."""

    line: str = ""
    remedy: str = ""
    what: str = ""
    where: str = "recipe.yaml:4"
    overrides: list[str] = field(default_factory=list)


CASES = [
    # unknown keys
    Bad("epoks: 3", "write epochs: 3", 'Did you mean "epochs"'),
    Bad("flux_capacitor: 3", "luthier new"),
    Bad("lora_r: 8", "method: {kind: lora, rank: 8}", "lora_r"),
    Bad("lora_alpha: 32", "method: {kind: lora, alpha: 32}"),
    Bad("lora_target_modules: [q_proj, v_proj]", "method: {kind: lora, targets: [q_proj, v_proj]}"),
    Bad("packed: true", "packing: true"),
    Bad("cutoff_len: 512", "max_length: 512"),
    Bad("sequence_len: 512", "max_length: 512"),
    Bad("num_train_epochs: 3", "epochs: 3"),
    Bad("per_device_train_batch_size: 2", "accumulation steps"),
    Bad("gradient_accumulation_steps: 4", "batch_size"),
    Bad("finetuning_type: lora", "method: lora"),
    Bad("stage: pt", "objective: lm"),
    Bad("val_set_size: 0.1", "eval_fraction: 0.1"),
    Bad("lr_scheduler_type: cosine", "schedule: cosine"),
    Bad("logging_steps: 10", "every step is logged"),
    Bad("bf16: true", "dtype: bfloat16"),
    Bad("template: qwen", "chat_template"),
    Bad("output_dir: out", "run: out"),
    Bad("load_in_4bit: true", "method: qlora"),
    Bad("deepspeed: ds.json", "one device"),
    Bad("train_on_inputs: false", "assistant trains on the answers"),
    Bad("save_total_limit: 3", "keep_checkpoints: 3"),
    Bad("rank: 8", "method: {kind: lora, rank: …}", "rank"),
    Bad("min_ratio: 0.1", "schedule: {kind: cosine, min_ratio: …}"),
    Bad("revision: main", "model: {path: …, revision: …}"),
    Bad("optimizer: {kind: adamw, betas: 3}", "beta1: 0.9, beta2: 0.999"),
    Bad("optimizer: {kind: adamw, lr: 3}", "learning_rate: 3"),
    Bad("schedule: {kind: cosine, batch_size: 3}", "stands at the top of a recipe"),
    Bad("eval_data: {path: a, collumns: {}}", "write columns"),
    # wrong types
    Bad("batch_size: eight", "batch_size: 8", '"eight"; it has to be a whole number'),
    Bad("batch_size: 8.5", "batch_size: 8", "whole number"),
    Bad("batch_size: true", "batch_size: 8", '"true"; it has to be a whole number'),
    Bad("batch_size: [8]", "batch_size: 8", "a list; it has to be a whole number"),
    Bad("batch_size:", "remove batch_size", "has no value"),
    Bad("micro_batch_size: most", "micro_batch_size: auto", 'a whole number or "auto"'),
    Bad("learning_rate: fast", "leave learning_rate out", "it has to be a number"),
    Bad("learning_rate: 0,001", "decimal point"),
    Bad("packing: perhaps", "packing: true", "true or false"),
    Bad("run: {a: 1}", "leave run out", "it has to be text"),
    Bad("log_to: wandbb", "log_to: wandb", 'Did you mean "wandb"'),
    Bad("log_to: [wandb, 3]", "tensorboard, wandb, mlflow"),
    Bad("evaluate: loss", "evaluate: ", "it has to be a list"),
    # numbers out of range
    Bad("epochs: 0", "epochs: 1", "more than 0"),
    Bad("epochs: -1", "epochs: 1", "more than 0"),
    Bad("learning_rate: -1e-4", "leave learning_rate out", "more than 0"),
    Bad("learning_rate: 0", "leave learning_rate out", "more than 0"),
    Bad("learning_rate: .nan", "leave learning_rate out", "finite"),
    Bad("learning_rate: nan", "leave learning_rate out", "finite"),
    Bad("weight_decay: .inf", "weight_decay: 0", "finite"),
    Bad("warmup_ratio: 1.5", "warmup_ratio: 0.03", "at most 1"),
    Bad("eval_fraction: 1", "eval_fraction: 0", "less than 1"),
    Bad("max_steps: -1", "leave max_steps out", "at least 1"),
    Bad("max_length: 1", "leave max_length out", "at least 2"),
    Bad("micro_batch_size: 0", "micro_batch_size: auto", "at least 1"),
    Bad("seed: -1", "seed: 0", "at least 0"),
    Bad("seed: 4294967296", "seed: 0", "at most"),
    Bad("schedule: {kind: cosine, min_ratio: 2}", "min_ratio: 0", "schedule.min_ratio is 2"),
    Bad("optimizer: {kind: adamw, eps: .inf}", "", "optimizer.eps is inf"),
    # words
    Bad("train_on: asistant", "train_on: assistant", "one of assistant, all, last"),
    Bad("dtype: bf16", "dtype: bfloat16"),
    Bad("dtype: fp16", "overflow"),
    Bad("on_overlong: explode", "error, drop, truncate"),
    Bad("objective: dop", "choose one of: classify, distill, dpo", 'no objective "dop"'),
    Bad("objective: pretrain", "objective: lm"),
    Bad("objective: {data: x}", "add kind: ", "does not say its kind"),
    Bad("objective: 3", "objective: sft", "one of classify, distill, dpo"),
    Bad("schedule: cosinus", "choose one of: constant, cosine, linear", 'Did you mean "cosine"'),
    Bad("schedule: constant_with_warmup", "schedule: constant"),
    Bad("optimizer: adamw_torch", "optimizer: adamw"),
    Bad("final_checkpoint: 7", "one of last, best"),
    # options without effect, pairs that contradict each other
    Bad("early_stopping: 3", "add eval_data", "no effect"),
    Bad("eval_steps: 10", "add eval_data", "no effect"),
    Bad("final_checkpoint: best", "add eval_data", "no effect"),
    Bad("micro_batch_size: 16", "set it to 8 or less", "more than the 8 sequences"),
    Bad("log_to: [wandb, wandb]", "name each once"),
    # overrides
    Bad(overrides=["method.rank=0"], where="method.rank=0", what="at least 1"),
    Bad(overrides=["method.rang=8"], where="method.rang=8", remedy="write rank: 8"),
    Bad(overrides=["method=larg"], where="method=larg", remedy="choose one of: adalora, adapter, bitfit, "),
    Bad(overrides=["--epochs=3"], where="--epochs=3", remedy="write epochs=3"),
    Bad(overrides=["--learning-rate"], where="--learning-rate", remedy="write learning_rate=VALUE"),
    Bad(overrides=["epochs"], where="epochs", remedy="write epochs=VALUE"),
    Bad(overrides=["other.yaml"], where="other.yaml", remedy="key=value", what="one recipe"),
    Bad(overrides=["evaluate.0.metric=loss"], where="evaluate.0.metric=loss", what="evaluate is a list of 0"),
    Bad(overrides=["seed.x=5"], where="seed.x=5", what="it has to be a whole number"),
    Bad(overrides=["seed=1", "seed=2"], where="seed=2", remedy="set it once"),
    Bad(overrides=["log_to=[wandb"], where="log_to=[wandb", remedy="brackets"),
    Bad(overrides=["epochs=2", "max_steps=3"], where="epochs=2", remedy="keep one of epochs and max_steps"),
    Bad(overrides=["=3"], where="=3", remedy="key=value"),
    Bad(overrides=["a..b=3"], where="a..b=3", remedy="key=value"),
    Bad(overrides=["data="], where="data=", remedy="data: my.jsonl", what='"data" is missing'),
]


def problems_of(path: Path, overrides: list[str] | None = None):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides or [])
    return caught.value.problems


def write(tmp_path: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line or " ".join(case.overrides))
def test_a_mistake_is_told_with_its_place_and_a_remedy(case: Bad, tmp_path: Path):
    path = write(tmp_path, f"{GOOD}{case.line}\n")
    [problem] = problems_of(path, case.overrides)
    assert problem.where.endswith(case.where)
    assert case.what in problem.what
    assert case.remedy in problem.remedy


WHOLE_FILES = [
    ("", "recipe.yaml", "luthier new"),
    ("# nothing\n", "recipe.yaml", "luthier new"),
    ("- model: starter\n", "recipe.yaml", "write lines like"),
    ("model: starter\n\tmethod: lora\n", "recipe.yaml:2", "use spaces"),
    ("model: starter\n  method: lora\n", "recipe.yaml:2", "align it"),
    ("model: {path: starter\nmethod: lora\n", "recipe.yaml:2", "close it"),
    ('model: "starter\nmethod: lora\n', "recipe.yaml", "close it"),
    ("model:starter\nmethod: lora\n", "recipe.yaml:1", "write `model: starter`"),
    ("model = starter\nmethod = lora\n", "recipe.yaml:1", "write `model: starter`"),
    ("model: starter\nmethod: lora\ndata: *.jsonl\n", "recipe.yaml:3", "quotes"),
    ("model: starter\nmethod: lora\ndata: @x\n", "recipe.yaml:3", "quotes"),
    (f"{GOOD}---\n{GOOD}", "recipe.yaml:4", "one recipe in one file"),
    (f"{GOOD}method: full\n", "recipe.yaml:4", "keep one"),
    (f"{GOOD}seed: !!python/name:os.system 1\n", "recipe.yaml:4", "plain value"),
    (f"{GOOD}? [a, b]\n: 3\n", "recipe.yaml:4", "quote it"),
    (f"{GOOD}evaluate: &a [*a]\n", "recipe.yaml:4", "write the value out"),
    ("[" * 20_000 + "]" * 20_000, "recipe.yaml", "three levels"),
]


@pytest.mark.parametrize(("text", "where", "remedy"), WHOLE_FILES)
def test_a_file_that_is_no_recipe_is_told_in_one_message(text: str, where: str, remedy: str, tmp_path: Path):
    [problem] = problems_of(write(tmp_path, text))
    assert where in problem.where
    assert remedy in problem.remedy


def test_an_alias_that_unfolds_into_billions_is_refused(tmp_path: Path):
    levels = [f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 10)}]" for i in range(1, 12)]
    [problem] = problems_of(write(tmp_path, "k0: &k0 [1, 1]\n" + "\n".join(levels)))
    assert "unfolds" in problem.what


BINARY = [
    (b"\x00\x01\x02\x03", "luthier new"),
    ("model: starter".encode("utf-16"), "UTF-8"),
    ("model: starter".encode("utf-16-le"), "UTF-8"),
    ("model: starter\nrun: größe".encode("latin-1"), "UTF-8"),
    (b"x" * (2 << 20), "luthier new"),
]


@pytest.mark.parametrize(("content", "remedy"), BINARY, ids=["binary", "utf-16", "utf-16-le", "latin-1", "large"])
def test_a_file_that_is_no_text_is_told_in_one_message(content: bytes, remedy: str, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    [problem] = problems_of(path)
    assert remedy in problem.remedy


def test_a_json_mistake_has_line_and_column(tmp_path: Path):
    [problem] = problems_of(write(tmp_path, '{"model": "starter",\n "method" "lora"}', "recipe.json"))
    assert problem.where.endswith("recipe.json:2")
    assert "column 11" in problem.what


def test_a_wrong_key_in_json_has_its_line(tmp_path: Path):
    text = '{\n\t"model": "starter",\n\t"method": "lora",\n\t"data": "x",\n\t"epoks": 3\n}'
    [problem] = problems_of(write(tmp_path, text, "recipe.json"))
    assert problem.where.endswith("recipe.json:5")


def test_a_missing_file_names_its_neighbours(tmp_path: Path):
    write(tmp_path, GOOD, "quickstart.yaml")
    [problem] = problems_of(tmp_path / "quickstar.yaml")
    assert 'Did you mean "quickstart.yaml"' in problem.what


def test_a_folder_in_place_of_a_recipe_names_the_recipe_inside(tmp_path: Path):
    write(tmp_path, GOOD)
    [problem] = problems_of(tmp_path)
    assert str(tmp_path / "recipe.yaml") in problem.remedy


def test_data_in_place_of_a_recipe_are_told_where_they_belong(tmp_path: Path):
    [problem] = problems_of(write(tmp_path, "{}", "rows.jsonl"))
    assert "data: rows.jsonl" in problem.remedy


def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path: Path):
    text = "method: larg\nepoks: 3\nseed: -1\nepochs: none\nearly_stopping: 2\nmicro_batch_size: 99\n"
    problems = problems_of(write(tmp_path, text), ["batch_size=x", "lr"])
    shown = "\n".join(str(p) for p in problems)
    for part in ('"model" is missing', '"data" is missing', "larg", "epoks", "seed is -1", "epochs is", "batch_size=x"):
        assert part in shown
    assert "early_stopping has no effect" in shown
    assert "no = in it" in shown
    assert "micro_batch_size" not in shown, "what depends on a broken key is not judged"
    lines = [int(p.where.rpartition(":")[2]) for p in problems if p.where[-1].isdigit()]
    assert lines[:4] == sorted(lines[:4])


def test_a_key_under_another_tools_name_is_not_also_missing(tmp_path: Path):
    text = "base_model: starter\nadapter: lora\ndatasets: [{path: x}]\n"
    problems = problems_of(write(tmp_path, text))
    assert len(problems) == 3
    assert not any("missing" in p.what for p in problems)


def test_a_component_says_what_forbids_it_with_its_line(tmp_path: Path):
    [problem] = problems_of(write(tmp_path, "model: starter\nmethod:\n  kind: layers\ndata: x\n"))
    assert problem.where.endswith("recipe.yaml:2")
    assert "last: 2" in problem.remedy


LM = "model: starter\nmethod: lora\ndata: x\nobjective: lm\n"


@pytest.mark.parametrize("line", ["train_on: assistant", "on_overlong: drop"])
def test_what_an_objective_never_asks_for_has_no_effect(line: str, tmp_path: Path):
    [problem] = problems_of(write(tmp_path, LM + line))
    assert problem.where.endswith(":5")
    assert "objective: sft" in problem.remedy


PAIRS = ["epochs: 2\nmax_steps: 3", "warmup_ratio: 0.1\nwarmup_steps: 3", "eval_fraction: 0.1\neval_data: x"]


@pytest.mark.parametrize("pair", PAIRS)
def test_two_ways_to_say_one_thing_are_not_both_taken(pair: str, tmp_path: Path):
    [problem] = problems_of(write(tmp_path, f"{GOOD}{pair}\n"))
    assert problem.where.endswith(":4")
    assert "keep one of" in problem.remedy


def test_tasks_need_names_of_their_own(tmp_path: Path):
    task = "  - {name: a, data: x, metric: loss}\n"
    [problem] = problems_of(write(tmp_path, f"{GOOD}evaluate:\n{task}{task}"))
    assert problem.where.endswith(":6")
