"""Files of experiments: which runs they make, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from luthier.core.errors import RecipeError
from luthier.run.experiments.carry_out import _jobs
from luthier.run.experiments.contest import ANSWERS, Contest, read_contest
from recipes import pairs, write_recipe, write_rows

Folder = Callable[[str], Path]


def write(folder: Path, model: Path, recipe: dict | None = None, **keys: object) -> Path:
    """Write a recipe with held-out rows in a file of their own, and a file of experiments."""
    write_rows(folder / "rows.jsonl", pairs(24))
    write_rows(folder / "held.jsonl", pairs(6, seed=9))
    values = {"eval_data": "held.jsonl", "samples": 0, "run": None, "learning_rate": None, **(recipe or {})}
    write_recipe(folder, model, **values)
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({"base": "recipe.json", **keys}, sort_keys=False), encoding="utf-8")
    return path


def read(folder: Path, family_folder: Folder, recipe: dict | None = None, **keys: object) -> Contest:
    return read_contest(write(folder, family_folder("llama"), recipe, **keys))


def test_a_grid_is_every_combination_and_a_field_of_one_method_says_nothing_of_another(
    family_folder: Folder, tmp_path: Path
):
    grid = {"method": ["lora", "full"], "method.rank": [2, 4], "learning_rate": [0.001, 0.01]}
    contest = read(tmp_path, family_folder, grid=grid)
    assert [v.name for v in contest.variants] == [
        "lora-rank_2-lr_0.001",
        "lora-rank_2-lr_0.01",
        "lora-rank_4-lr_0.001",
        "lora-rank_4-lr_0.01",
        "full-lr_0.001",
        "full-lr_0.01",
    ]
    assert [v.recipe.method.model_dump().get("rank") for v in contest.variants] == [2, 2, 4, 4, None, None]
    assert contest.variants[4].changes == {"method": "full", "learning_rate": 0.001}


def test_variants_and_a_grid_are_multiplied(family_folder: Folder, tmp_path: Path):
    variants = {"wide": {"method": {"kind": "lora", "rank": 16}}, "all": "full"}
    contest = read(tmp_path, family_folder, variants=variants, grid={"data.limit": [8, 16]}, budget={"steps": 2})
    assert [v.name for v in contest.variants] == ["wide-rows_8", "wide-rows_16", "all-rows_8", "all-rows_16"]
    assert [v.recipe.data.limit for v in contest.variants] == [8, 16, 8, 16]
    assert all(v.recipe.max_steps == 2 for v in contest.variants)


@pytest.mark.parametrize(
    ("said", "seeds"), [(2, (0, 1)), ([5, 3], (5, 3)), (None, ())], ids=["how many", "which", "none"]
)
def test_each_cell_is_run_on_each_seed(said: object, seeds: tuple, family_folder: Folder, tmp_path: Path):
    keys = {} if said is None else {"seeds": said}
    contest = read(tmp_path, family_folder, variants=["lora", "full"], **keys)
    assert contest.seeds == seeds
    jobs = _jobs(contest.variants[0], contest.seeds, tmp_path / "out")
    assert [job.values["seed"] for job in jobs] == list(seeds or [0])
    assert len({job.run.path for job in jobs}) == len(jobs)


def test_a_grid_over_seed_means_seeds(family_folder: Folder, tmp_path: Path):
    contest = read(tmp_path, family_folder, grid={"method": ["lora"], "seed": [1, 2]})
    assert contest.seeds == (1, 2)
    assert len(contest.variants) == 1


@pytest.mark.parametrize(
    ("budget", "keys"),
    [
        ({"steps": 7}, {"max_steps": 7}),
        ({"tokens": 1e6}, {"max_steps": "1000000 tokens"}),
        ({"seconds": 2.5}, {"max_steps": "2.5 seconds"}),
        ({"epochs": 2}, {"epochs": 2.0, "max_steps": None}),
    ],
)
def test_a_budget_is_the_length_of_every_run(budget: dict, keys: dict, family_folder: Folder, tmp_path: Path):
    for variant in read(tmp_path, family_folder, grid={"batch_size": [2, 4]}, budget=budget).variants:
        assert {key: getattr(variant.recipe, key) for key in keys} == keys


def test_where_masks_or_lengths_differ_whole_answers_are_measured_on_the_held_out_rows(
    family_folder: Folder, tmp_path: Path
):
    contest = read(tmp_path, family_folder, grid={"train_on": ["assistant", "all"]}, budget={"tokens": 90})
    assert contest.left_out == ("held-out loss",)
    assert {v.recipe.evaluate[0].name for v in contest.variants} == {ANSWERS}
    assert {v.recipe.evaluate[0].data.path for v in contest.variants} == {str(tmp_path / "held.jsonl")}
    plain = read(tmp_path, family_folder, grid={"learning_rate": [0.1, 0.2]})
    assert not plain.left_out
    assert not plain.variants[0].recipe.evaluate


WRONG: list[tuple[dict, dict, str]] = [
    ({"eval_data": None, "eval_fraction": 0.2}, {"grid": {"data.limit": [8, 16]}, "budget": {"steps": 2}}, "eval_data"),
    ({}, {"grid": {"data.limit": [8, 16]}}, "add budget"),
    ({}, {"grid": {"batch_size": [2, 4]}}, "add budget"),
    ({"eval_data": None}, {"grid": {"train_on": ["all", "last"]}, "budget": {"steps": 2}}, "eval_data"),
    ({}, {"grid": {"epochs": [1, 2]}, "budget": {"steps": 2}}, "may not differ where a budget"),
    ({}, {"grid": {"eval_data": ["held.jsonl", "rows.jsonl"]}}, "must be the same"),
    ({}, {"grid": {"model": ["a", "b"]}}, "use models"),
    ({}, {"grid": {"save_steps": [1, 2]}}, "set save_steps for all"),
    ({}, {"grid": {"method.rnak": [1, 2]}}, 'Did you mean "rank"'),
    ({}, {"grid": {"lerning_rate": [1, 2]}}, 'Did you mean "learning_rate"'),
    ({}, {"grid": {"learning_rate": []}}, "has no values"),
    ({}, {"grid": {"learning_rate": [1e-3, 1e-3]}}, "has a value twice"),
    ({}, {"grid": ["learning_rate"]}, "each with its values"),
    ({}, {"grid": {"learning_rate": [1e-3]}, "seeds": 0}, "write seeds: 3"),
    ({}, {"grid": {"learning_rate": [1e-3]}, "seeds": [1, 1]}, "write seeds: 3"),
    ({}, {"grid": {"seed": [1]}, "seeds": [1]}, "keep seeds"),
    ({}, {"grid": {"learning_rate": [1e-3]}, "budget": {"step": 3}}, 'Did you mean "steps"'),
    ({}, {"grid": {"learning_rate": [1e-3]}, "budget": {"steps": 2.5}}, "a whole number of steps"),
    ({}, {"grid": {"learning_rate": [1e-3]}, "budget": {"steps": 2, "tokens": 3}}, "one amount"),
    ({}, {"grid": {"learning_rate": [1e-3]}, "quality": "acuracy"}, "nothing called"),
    ({}, {"grid": {"learning_rate": [1e-3]}, "qality": "x"}, 'Did you mean "quality"'),
]


@pytest.mark.parametrize(("recipe", "keys", "told"), WRONG, ids=[told for *_, told in WRONG])
def test_what_could_not_be_compared_is_refused_with_a_remedy(
    recipe: dict, keys: dict, told: str, family_folder: Folder, tmp_path: Path
):
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, family_folder, recipe, **keys)
    assert told in str(caught.value)


def test_a_cell_that_a_method_refuses_is_left_out_and_the_others_stay(family_folder: Folder, tmp_path: Path):
    grid = {"method": ["lora", "bitfit", "adalora"]}
    contest = read(tmp_path, family_folder, grid=grid, budget={"tokens": 90})
    assert [bool(v.refused) for v in contest.variants] == [False, True, False]


def test_names_of_cells_can_be_folders(family_folder: Folder, tmp_path: Path):
    grid = {
        "method": [{"kind": "lora", "targets": "attention"}, {"kind": "lora", "targets": ["mlp", "attention"]}],
        "schedule": ["cosine", {"kind": "linear", "min_ratio": 0.1}],
        "data": ["rows.jsonl", {"path": "rows.jsonl", "limit": 5}],
    }
    contest = read(tmp_path, family_folder, grid=grid, budget={"steps": 1})
    names = [v.name for v in contest.variants]
    assert names[0] == "lora-targets_attention-cosine-data_rows.jsonl"
    assert names[-1] == "lora-targets_mlp+attention-linear-min_ratio_0.1-rows.jsonl-limit_5"
    assert len(set(names)) == 8
    assert not [name for name in names if "/" in name or " " in name]
    assert json.dumps(contest.variants[0].changes)
