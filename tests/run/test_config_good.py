"""What a recipe may look like, and that it comes out as it was meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.component import kinds
from luthier.run.config import EvalTask, ModelSpec, Recipe, load_recipe, parse_recipe
from luthier.run.yaml_lines import write_yaml

GOOD = {"model": "starter", "method": "lora", "data": "rows.jsonl"}


def load(tmp_path: Path, text: str, *overrides: str, name: str = "recipe.yaml") -> Recipe:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def load_with(tmp_path: Path, line: str, *overrides: str) -> Recipe:
    return load(tmp_path, yaml.safe_dump(GOOD) + line, *overrides)


def test_the_short_and_the_long_form_are_one():
    long = {
        "model": {"path": "starter"},
        "method": {"kind": "lora"},
        "data": {"path": "rows.jsonl"},
        "objective": {"kind": "sft"},
        "optimizer": {"kind": "adamw"},
    }
    assert parse_recipe(GOOD) == parse_recipe(long)


SPELLINGS = [
    ("learning_rate: 1e-4", "learning_rate", 1e-4),
    ("learning_rate: 2E-5", "learning_rate", 2e-5),
    ("learning_rate: .001", "learning_rate", 1e-3),
    ('learning_rate: "1e-4"', "learning_rate", 1e-4),
    ("epochs: 3", "epochs", 3.0),
    ('batch_size: "16"', "batch_size", 16),
    ("batch_size: 16.0", "batch_size", 16),
    ("batch_size: 1e3", "batch_size", 1000),
    ("max_steps: 1_000", "max_steps", 1000),
    ("seed: 010", "seed", 10),
    ("packing: no", "packing", False),
    ("packing: off", "packing", False),
    ("packing: False", "packing", False),
    ("packing: yes", "packing", True),
    ("packing: 0", "packing", False),
    ("run: no", "run", "no"),
    ("run: 2026-11-22", "run", "2026-11-22"),
    ("run: 1:30", "run", "1:30"),
    ("run: 7", "run", "7"),
    ("max_grad_norm: null", "max_grad_norm", None),
    ("max_grad_norm: ~", "max_grad_norm", None),
    ("max_grad_norm:", "max_grad_norm", None),
    ("micro_batch_size: auto", "micro_batch_size", "auto"),
    ('micro_batch_size: "4"', "micro_batch_size", 4),
    ("log_to: wandb", "log_to", ("wandb",)),
    ("log_to: [wandb, mlflow]", "log_to", ("wandb", "mlflow")),
]


@pytest.mark.parametrize(("line", "key", "value"), SPELLINGS)
def test_a_value_means_what_a_person_means_by_it(line: str, key: str, value: object, tmp_path: Path):
    found = getattr(load_with(tmp_path, line), key)
    assert found == value
    assert type(found) is type(value)


def test_columns_may_be_called_on_and_no(tmp_path: Path):
    recipe = load(tmp_path, "model: starter\nmethod: lora\ndata: {path: x, columns: {prompt: on, answer: no}}")
    assert recipe.data.columns == {"prompt": "on", "answer": "no"}


def test_an_alias_stands_for_its_value(tmp_path: Path):
    recipe = load(tmp_path, "model: starter\nmethod: lora\ndata: &rows {path: x}\neval_data: *rows")
    assert recipe.eval_data == recipe.data


@pytest.mark.parametrize("content", ["\t", " ", "    "], ids=["tab", "space", "spaces"])
def test_json_is_read_with_any_indentation(content: str, tmp_path: Path):
    recipe = load(tmp_path, json.dumps(GOOD | {"run": "schön 😀"}, indent=content), name="recipe.json")
    assert recipe.run == "schön 😀"


def test_a_byte_order_mark_does_no_harm(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(GOOD).encode())
    assert load_recipe(path).model.path == "starter"


OVERRIDES = [
    (["method=full"], lambda r: r.method.kind, "full"),
    (["method.rank=4"], lambda r: r.method.rank, 4),
    (["method={kind: lora, rank: 2}"], lambda r: r.method.rank, 2),
    (["method=lora", "method.rank=4"], lambda r: r.method.rank, 4),
    (["optimizer.beta2=0.95"], lambda r: r.optimizer.beta2, 0.95),
    (["schedule.min_ratio=0.1"], lambda r: r.schedule.min_ratio, 0.1),
    (["schedule=linear"], lambda r: r.schedule.kind, "linear"),
    (["data.limit=5"], lambda r: (r.data.path, r.data.limit), ("rows.jsonl", 5)),
    (["data.columns.prompt=Frage"], lambda r: r.data.columns, {"prompt": "Frage"}),
    (["eval_data.path=x"], lambda r: r.eval_data.path, "x"),
    (["evaluate.0.data.limit=7"], lambda r: r.evaluate[0].data.limit, 7),
    (["evaluate=[]"], lambda r: r.evaluate, ()),
    (["run=*.x"], lambda r: r.run, "*.x"),
    (["run=no"], lambda r: r.run, "no"),
    (["model=a=b"], lambda r: r.model.path, "a=b"),
    (["learning_rate=1e-4"], lambda r: r.learning_rate, 1e-4),
    (["max_grad_norm=null"], lambda r: r.max_grad_norm, None),
    (["max_grad_norm="], lambda r: r.max_grad_norm, 1.0),
    (["max_steps=5"], lambda r: (r.max_steps, r.epochs), (5, 1)),
    (["warmup_steps=5"], lambda r: (r.warmup_steps, r.warmup_ratio), (5, 0.03)),
    (["epochs="], lambda r: r.epochs, 1),
]


@pytest.mark.parametrize(("overrides", "read", "value"), OVERRIDES, ids=lambda case: str(case)[:40])
def test_an_override_changes_the_file(overrides: list[str], read, value: object, tmp_path: Path):
    lines = "\nepochs: 3\nwarmup_ratio: 0.1\nmax_grad_norm: 0.5\nevaluate: [{name: a, data: x, metric: loss}]\n"
    assert read(load_with(tmp_path, lines, *overrides)) == value


def test_every_key_knows_its_line(tmp_path: Path):
    text = (
        "model: starter\nmethod:\n  kind: lora\n  rank: 4\ndata: x\nevaluate:\n- name: a\n  data: x\n  metric: loss\n"
    )
    recipe = load(tmp_path, text, "seed=3")
    places = {key: recipe.place(key) for key in ("model", "method.rank", "method.alpha", "evaluate.0.data", "seed")}
    at = str(tmp_path / "recipe.yaml")
    assert places == {
        "model": f"{at}:1",
        "method.rank": f"{at}:4",
        "method.alpha": f"{at}:2",
        "evaluate.0.data": f"{at}:8",
        "seed": "seed=3",
    }
    assert recipe.place("epochs") == at
    assert recipe.base == tmp_path
    assert recipe.name == "recipe"


LOOK_UPS = [
    ("data: {0}", [], "beside"),  # what the file names is looked up beside the file first
    ("data: starter:stories", ["data={0}"], "here"),  # what is typed, in the working directory
    ("data: {{path: {0}}}", ["data.limit=3"], "beside"),
    ("data: {{path: only-here.jsonl}}", [], "here"),
    ("data: x", ["data.path=only-beside.jsonl"], "beside"),
]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows*.jsonl"])
@pytest.mark.parametrize(("lines", "overrides", "where"), LOOK_UPS)
def test_a_path_is_looked_up_in_the_folder_of_the_recipe_or_where_one_is(
    lines: str, overrides: list[str], where: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for folder in ("here", "beside"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").touch()
        (tmp_path / folder / f"only-{folder}.jsonl").touch()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "beside" / "recipe.yaml").write_text(f"model: starter\nmethod: lora\n{lines.format(name)}\n")
    recipe = load_recipe(Path("../beside/recipe.yaml"), [o.format(name) for o in overrides])
    found = Path(recipe.located().data.path)
    assert found.is_absolute()
    assert found.parent == tmp_path / where


def test_models_templates_and_tasks_are_looked_up_as_data_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "home"
    (home / "model").mkdir(parents=True)
    (home / "t.jinja").touch()
    tasks = "evaluate: [{name: a, data: a.jsonl, metric: loss}]"
    lines = f"model: {{path: model, chat_template: t.jinja}}\nmethod: lora\ndata: {home}/x.jsonl\n{tasks}\n"
    (home / "recipe.yaml").write_text(lines)
    monkeypatch.chdir(tmp_path)
    located = load_recipe(Path("home/recipe.yaml")).located()
    assert located.model.path == str(home / "model")
    assert located.model.chat_template == str(home / "t.jinja")
    assert located.data.path == str(home / "x.jsonl")
    assert located.evaluate[0].data.path == str(home / "a.jsonl")
    kept = parse_recipe(located.dump())
    assert kept.located() == located
    for name in ("starter", "org/model"):
        assert parse_recipe(GOOD | {"model": name}).located().model.path == name


def test_a_recipe_without_a_file_names_its_keys():
    assert parse_recipe(GOOD).place("method.rank") == "method.rank"


def test_what_is_left_out_is_settled_by_the_recipe():
    settled = parse_recipe(GOOD).resolved()
    assert settled.learning_rate == settled.method.default_learning_rate
    assert settled.final_checkpoint == "last"
    stopping = parse_recipe(GOOD | {"eval_fraction": 0.1, "early_stopping": 2}).resolved()
    assert stopping.final_checkpoint == "best"


def test_a_recipe_does_not_change():
    recipe = parse_recipe(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        recipe.epochs = 3  # type: ignore[misc]
    values = {**GOOD, "method": {"kind": "lora"}}
    parse_recipe(values, ["method.rank=3"])
    assert values["method"] == {"kind": "lora"}, "overrides leave the caller's mapping alone"


METHODS = st.sampled_from(
    ["full", "lora", {"kind": "lora", "rank": 4, "targets": "all-linear"}, {"kind": "layers", "last": 1}]
)
COMMON = {
    "model": st.sampled_from(["starter", "org/name", {"path": "x", "revision": "main", "trust_remote_code": True}]),
    "method": METHODS,
    "data": st.sampled_from(["rows.jsonl", {"path": "a b.csv", "columns": {"prompt": "no", "answer": 2}, "limit": 3}]),
}
ANY = {
    "batch_size": st.integers(32, 512),
    "micro_batch_size": st.one_of(st.just("auto"), st.integers(1, 8)),
    "learning_rate": st.floats(1e-9, 1, allow_nan=False),
    "weight_decay": st.floats(0, 1),
    "warmup_ratio": st.floats(0, 1),
    "max_grad_norm": st.one_of(st.none(), st.floats(1e-3, 10)),
    "max_length": st.one_of(st.none(), st.integers(2, 10**6)),
    "packing": st.booleans(),
    "seed": st.integers(0, 2**32 - 1),
    "samples": st.integers(0, 9),
    "run": st.one_of(st.none(), st.text(st.characters(categories=["L", "N", "P", "Zs"]), min_size=1)),
    "dtype": st.sampled_from(["auto", "float32", "bfloat16"]),
    "log_to": st.lists(st.sampled_from(["tensorboard", "wandb", "mlflow"]), unique=True),
    "schedule": st.sampled_from(["linear", "constant", {"kind": "cosine", "min_ratio": 0.25}]),
    "optimizer": st.sampled_from(["adamw", {"kind": "adamw", "eps": 1e-6}]),
    "keep_checkpoints": st.integers(1, 5),
    "save_steps": st.one_of(st.none(), st.integers(1, 100)),
    "objective": st.sampled_from(["lm", "sft"]),
    "evaluate": st.sampled_from([[], [{"name": "no", "data": "x", "metric": "loss"}]]),
}
EXTENT = st.one_of(
    st.just({}), st.fixed_dictionaries({"epochs": st.floats(0.1, 9)}), st.fixed_dictionaries({"max_steps": st.just(9)})
)
HELD_OUT = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {"eval_fraction": st.floats(0.01, 0.9)},
        optional={"early_stopping": st.integers(1, 9), "final_checkpoint": st.sampled_from(["last", "best"])},
    ),
    st.fixed_dictionaries({"eval_data": st.just("held.jsonl")}, optional={"eval_steps": st.integers(1, 9)}),
)
RECIPES = st.builds(
    lambda *parts: {k: v for part in parts for k, v in part.items()},
    st.fixed_dictionaries(COMMON, optional=ANY),
    EXTENT,
    HELD_OUT,
)


@pytest.mark.parametrize(
    "word", ["1e5", "no", "y", "0o7", "1_0", "2026-11-22", "1:30", "null", ".5", "", "é: x", "0x1"]
)
def test_a_word_that_looks_like_something_else_stays_a_word(word: str, tmp_path: Path):
    assert yaml.safe_load(write_yaml({"run": word})) == {"run": word}
    if word:
        assert load(tmp_path, write_yaml(GOOD | {"run": word})).run == word


@settings(max_examples=60, deadline=None)
@given(values=RECIPES)
def test_a_dump_parses_to_an_equal_recipe(values: dict[str, object], tmp_path_factory: pytest.TempPathFactory):
    recipe = parse_recipe(values)
    for original in (recipe, recipe.resolved()):
        dumped = original.dump()
        assert parse_recipe(json.loads(json.dumps(dumped))) == original
        path = tmp_path_factory.mktemp("dump") / "recipe.yaml"
        path.write_text(write_yaml(dumped), encoding="utf-8")
        assert load_recipe(path) == original


NEEDED: dict[str, object] = {
    "teacher": "runs/big",
    "data": "general.jsonl",
    "reward": "exact_match",
    "judge": "exact_match",
    "task": "mine",
}
"""Fields without a default, of components that mean nothing without them."""


@pytest.mark.parametrize("family", ["method", "objective", "optimizer", "schedule", "regularizer", "task"])
def test_every_component_dumps_to_what_parses_to_it(family: str):
    for kind, cls in kinds(family).items():
        needed = {name for name, info in cls.model_fields.items() if info.is_required()}
        component = cls(kind=kind, **{name: NEEDED[name] for name in needed})
        assert cls.model_validate(component.model_dump(mode="json")) == component


def test_every_key_is_explained():
    families = ("method", "objective", "optimizer", "schedule", "regularizer", "task")
    classes = [Recipe, ModelSpec, EvalTask, *(c for family in families for c in kinds(family).values())]
    silent = [f"{c.__name__}.{n}" for c in classes for n, f in c.model_fields.items() if not f.description]
    assert [name for name in silent if not name.endswith(".kind")] == []
