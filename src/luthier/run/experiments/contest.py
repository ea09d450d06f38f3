"""What a file of experiments compares: variants or a grid of one recipe, over seeds, at an equal budget.

    base: quickstart.yaml               # a recipe beside this file; or none, and everything under `recipe`
    recipe: {learning_rate: null}       # keys changed in the base for all
    models: [starter, my-model]         # optional: everything on each of them
    variants:                           # a method's name, or the keys that differ
      lora: lora
      lora-64: {method: {kind: lora, rank: 64}, learning_rate: 1e-3}
    grid: {learning_rate: [1e-3, 3e-3], data.limit: [500, 2000]}    # every combination, of every variant
    seeds: 3                            # 0, 1, 2; or a list
    budget: {tokens: 200000}            # or steps, seconds, epochs: the same for all
    quality: task accuracy              # the measure by which cells are ranked
    retained: general ability           # the measure of what the model could do before

One combination is a cell; a cell on one seed is an ordinary run. Held-out rows are the same for all runs of a seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from luthier.core.component import component_class, kinds
from luthier.core.errors import Problem, RecipeError, UserError, did_you_mean
from luthier.core.paths import locate
from luthier.run.config import Recipe, require_recipe
from luthier.run.draft import Draft, override
from luthier.run.examine import examine
from luthier.run.experiments.file import KEYS, Budget, ContestFile, read_file
from luthier.run.experiments.keys import SHAPE, held_out_problems, key_problem
from luthier.run.experiments.naming import cell_name, model_name
from luthier.run.yaml_lines import Document, read_document

ANSWERS = "held-out answers"
"""The task that stands in for the held-out loss where what differs shapes the held-out rows."""
_FAMILIES = {"method": "full", "objective": "sft", "optimizer": "adamw", "schedule": "cosine"}
"""Keys that hold a component, with the kind that stands there by default."""


@dataclass(frozen=True)
class Variant:
    """One cell of an experiment.

    Attributes:
        recipe: with absolute paths.
        changes: the keys that make it differ, by dotted name.
        refused: why the recipe cannot be run; the cell is left out and the table says so.
    """

    name: str
    recipe: Recipe
    changes: Mapping[str, object] = field(default_factory=dict)
    refused: str = ""


@dataclass
class Contest:
    """An experiment as its file describes it.

    Attributes:
        seeds: empty where each variant is run once, on the recipe's own seed.
        left_out: measures that are not the same for all cells.
    """

    path: Path
    variants: list[Variant] = field(default_factory=list)
    seeds: tuple[int, ...] = ()
    budget: Budget | None = None
    quality: str = ""
    retained: str = ""
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Combination:
    """Keys of one cell before they are checked, and where they stand in the file."""

    variant: str
    own: Mapping[str, object]
    grid: Mapping[str, object]
    place: str
    model: object = None

    @property
    def keys(self) -> dict[str, object]:
        """The variant's own keys and those that the grid chose."""
        return {**self.own, **self.grid}


def read_contest(path: Path, overrides: Sequence[str] = ()) -> Contest:
    """Return what a file compares; `overrides` change the file's own keys, or the recipe that all cells share.

    Raises:
        RecipeError: with everything that is wrong with the file or any of its cells.
    """
    document = read_document(path)
    own = [text for text in overrides if text.partition("=")[0].partition(".")[0] in KEYS]
    changed = override(document, own, path, path.resolve().parent)
    if changed.problems:
        raise RecipeError(*changed.problems)
    document = Document(changed.values, changed.lines)
    file = read_file(document, path)
    shared = _shared(file, path, [text for text in overrides if text not in own])
    contest = Contest(path, [], file.seeds, _budget(file, shared), file.quality, file.retained)
    combinations = list(_combinations(file, path))
    varied = {key.partition(".")[0] for combination in combinations for key in combination.keys}
    problems: list[Problem] = []
    right: list[_Combination] = []
    for combination in combinations:
        asked = (key_problem(k, combination.place, file.budget is not None, varied) for k in combination.keys)
        wrong = [p for p in asked if p is not None]
        problems += [p for p in wrong if p not in problems]
        right += [] if wrong else [combination]
    shared = _same_cases(shared, contest, varied)
    problems += _add_variants(contest, shared, right, len(file.models) > 1)
    if not problems and all(v.refused for v in contest.variants):
        problems += [Problem(v.refused, f"{path}: variants.{v.name}") for v in contest.variants]
    problems += _wrong_measures(contest)
    watched = contest.variants[0].recipe.forgetting if contest.variants else None
    if watched is not None and watched.data and not contest.retained:
        contest.retained = watched.data[0].title
    if problems:
        raise RecipeError(*problems)
    return contest


def _combinations(file: ContestFile, path: Path) -> Iterator[_Combination]:
    """Yield models × variants × grid, the grid's last key fastest."""
    grids: list[dict[str, object]] = [{}]
    for key, values in file.grid.items():
        grids = [{**before, key: value} for before in grids for value in values]
    for model in file.models or (None,):
        for name, said in (file.variants or {"": {}}).items():
            own = {"method": said} if isinstance(said, str) else said
            place = f"{path}: variants.{name}" if name else f"{path}: grid"
            for keys in grids:
                yield _Combination(name, own, keys, place, model)


def _add_variants(
    contest: Contest, shared: Draft, combinations: Sequence[_Combination], several: bool
) -> list[Problem]:
    """Check every cell once and put it into the contest; return what is wrong."""
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    fields = {key for c in combinations for key in c.keys if "." in key and _applies(key, c.keys, shared)}
    for combination in combinations:
        # method.rank says nothing of a method without ranks, as long as another method of the grid has them.
        keys = {k: v for k, v in combination.keys.items() if k not in fields or _applies(k, combination.keys, shared)}
        name = cell_name(combination.variant, {k: v for k, v in keys.items() if k in combination.grid})
        if several:
            name = f"{model_name(combination.model)}--{name}"
        full = keys if combination.model is None else {**keys, "model": combination.model}
        try:
            variant = _variant(name, shared, full)
        except UserError as error:
            found = [replace(p, where=f"{combination.place}: {p.where}") for p in error.problems]
            problems += [p for p in found if p not in problems]
            continue
        what = json.dumps(variant.recipe.dump(), sort_keys=True)
        if what in seen:
            continue
        taken = [v.name for v in contest.variants]
        if variant.name in taken:
            variant = replace(variant, name=f"{variant.name}-{sum(n.startswith(variant.name) for n in taken) + 1}")
        seen[what] = variant.name
        contest.variants.append(replace(variant, changes=keys))
    return problems


def _applies(key: str, keys: Mapping[str, object], shared: Draft) -> bool:
    """Return whether a key such as method.rank is a field of the component that the other keys choose."""
    family, _, name = key.partition(".")
    if family not in _FAMILIES:
        return True
    said = keys.get(family, shared.values.get(family, _FAMILIES[family]))
    kind = said.get("kind") if isinstance(said, Mapping) else said
    if not isinstance(kind, str) or kind not in kinds(family):
        return True  # the recipe's own check says what is wrong
    return name.partition(".")[0] in component_class(family, kind).model_fields


def _budget(file: ContestFile, shared: Draft) -> Budget | None:
    """Return the file's budget, or what was typed in its place."""
    if file.budget is None or all(shared.values.get(k) == v for k, v in file.budget.keys.items()):
        return file.budget
    typed = shared.values.get("max_steps")
    if isinstance(typed, int):
        return Budget("steps", typed)
    if isinstance(typed, str):
        amount, _, unit = typed.partition(" ")
        return Budget("tokens" if unit == "tokens" else "seconds", float(amount)) if amount.isdigit() else None
    epochs = shared.values.get("epochs", 1)
    return Budget("epochs", epochs) if isinstance(epochs, int | float) else None


def _shared(file: ContestFile, path: Path, overrides: Sequence[str]) -> Draft:
    """Return the recipe that all cells start from."""
    folder = path.resolve().parent
    values: Mapping[str, object] = {}
    if file.base is not None:
        base = locate(file.base, (folder, Path.cwd()))
        values, folder = read_document(base).values, base.resolve().parent
    # Each step anew: a key typed on the command line wins over the file's, which is no contradiction.
    for step in (as_overrides(file.recipe), as_overrides(file.budget.keys) if file.budget else [], overrides):
        draft = Draft.of_mapping(values, step, folder)
        if draft.problems:
            raise RecipeError(*draft.problems)
        values = draft.values
    return draft


def _same_cases(shared: Draft, contest: Contest, varied: set[str]) -> Draft:
    """Return the shared recipe with what makes its measures the same for all cells.

    Raises:
        RecipeError: they would be measured on different rows.
    """
    try:
        recipe = require_recipe(shared)
    except RecipeError:
        return shared  # every cell says what is wrong, with its place
    problems = held_out_problems(recipe, varied, str(contest.path))
    if problems:
        raise RecipeError(*problems)
    if not varied & set(SHAPE):
        return shared
    contest.left_out = ("held-out loss",)
    speaks = recipe.objective.head == "tokens" and recipe.objective.data_form == "conversation"
    given = shared.values.get("evaluate") or []
    if not speaks or recipe.eval_data is None or not isinstance(given, list):
        return shared
    task = {"name": ANSWERS, "data": shared.values["eval_data"], "metric": "loss"}
    return Draft.of_mapping({**shared.values, "evaluate": [task, *given]}, (), shared.base)


def _variant(name: str, shared: Draft, keys: Mapping[str, object]) -> Variant:
    draft = Draft.of_mapping(shared.values, as_overrides(keys), shared.base)
    recipe = require_recipe(draft).located()
    found = examine(draft)
    reasons = [p.what for p in found.recipe_problems if p.severity == "error"]
    if reasons and not [p for p in (*found.model_problems, *found.data_problems) if p.severity == "error"]:
        return Variant(name, recipe, refused=" ".join(reasons))
    found.require()
    return Variant(name, recipe)


def _wrong_measures(contest: Contest) -> list[Problem]:
    """Return the measures that the file names and no cell takes, as far as the recipes tell."""
    if not contest.variants:
        return []
    tasks = measure_names(contest.variants[0].recipe)
    problems = []
    for key, name in (("quality", contest.quality), ("retained", contest.retained)):
        if not name or name in tasks or name.startswith(("held-out", "general")):
            continue
        what = f'{key}: nothing called "{name}" is measured.{did_you_mean(name, tasks)}'
        problems.append(Problem(what, str(contest.path), f"choose from: {', '.join([*tasks, 'held-out loss'])}"))
    return problems


def measure_names(recipe: Recipe) -> list[str]:
    """Return what the recipe's tasks, and the sets that are not to be forgotten, are called."""
    tasks = [task.label for task in recipe.evaluate]
    return tasks if recipe.forgetting is None else [*tasks, *(part.title for part in recipe.forgetting.data)]


def as_overrides(keys: Mapping[str, object]) -> list[str]:
    """Return keys as they would be typed."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()]
