"""What a search is told: a recipe, and what its section `tune` says of it.

model: starter                      # a recipe as ever; or base: quickstart.yaml with recipe: {…} as in an experiment
tune:
  space: {learning_rate: 1e-4..1e-2, method.rank: [4, 8, 16]}    # without it: what is usual for the method
  trials: 20
  budget: {steps: 200}              # or tokens, seconds, epochs: of each trial; without it the recipe's own length
  measure: held-out loss            # what is to become better
  sampler: tpe                      # or random
  pruner: median                    # or hyperband, none: trials that lag behind are stopped early
  startup: 5                        # trials at random before the sampler and the pruner believe what they saw
  seed: 0
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

from luthier.core.errors import Problem, RecipeError, did_you_mean
from luthier.core.paths import locate
from luthier.run.config import Recipe, parse_draft, require_recipe
from luthier.run.draft import Draft, override
from luthier.run.examine import examine
from luthier.run.experiments.contest import as_overrides, measure_names
from luthier.run.experiments.file import Budget, read_budget
from luthier.run.experiments.keys import held_out_problems
from luthier.run.experiments.space import Space, read_space, usual_space
from luthier.run.yaml_lines import Document, read_document

Sampler = Literal["tpe", "random"]
Pruner = Literal["median", "hyperband", "none"]
SECTION = "tune"
LOOKS = 8
"""How often the held-out loss is measured in a trial, where the recipe does not say it."""
_WHOLE = {"trials": 20, "startup": 5, "seed": 0}
_WORDS: dict[str, tuple[str, ...]] = {"sampler": ("tpe", "random"), "pruner": ("median", "hyperband", "none")}
KEYS = ("space", "trials", "budget", "measure", "sampler", "pruner", "startup", "seed", "lr_range")
HELD_OUT = "held-out loss"


@dataclass(frozen=True)
class Tuning:
    """A search as its file describes it.

    Attributes:
        draft: the recipe that every trial starts from.
        recipe: the same, checked.
        rows: rows that it trains on.
        is_given: whether the file says what to choose from.
        lr_range: the ends and steps of a learning-rate range test, where they are said.
    """

    path: Path
    draft: Draft
    recipe: Recipe
    space: Space
    rows: int
    is_given: bool = False
    trials: int = 20
    startup: int = 5
    seed: int = 0
    measure: str = HELD_OUT
    sampler: Sampler = "tpe"
    pruner: Pruner = "median"
    lr_range: Mapping[str, float] = field(default_factory=dict)

    def values(self, chosen: Mapping[str, object], run: Path) -> dict[str, object]:
        """Return the recipe of a trial, as plain values.

        Raises:
            RecipeError: what was chosen does not go together.
        """
        draft = Draft.of_mapping(self.draft.values, as_overrides(chosen), self.draft.base)
        recipe = require_recipe(draft).located()
        if recipe.eval_steps is None and recipe.has_eval_data and self.pruner != "none":
            recipe = recipe.model_copy(update={"eval_steps": self._look_every(recipe)})
        return {**recipe.dump(), "run": str(run)}

    def _look_every(self, recipe: Recipe) -> int | None:
        """Return the steps between two looks at the held-out rows; None where the length is not known in steps."""
        if recipe.allowance is not None or recipe.objective.data_form == "text":
            return None
        total = recipe.step_limit or math.ceil(recipe.epochs * math.ceil(self.rows / recipe.batch_size))
        return max(1, total // LOOKS)

    @property
    def prunes(self) -> bool:
        """Whether trials that lag behind can be seen while they run."""
        if self.pruner == "none" or not self.recipe.has_eval_data:
            return False
        return self.recipe.eval_steps is not None or self._look_every(self.recipe) is not None

    def as_dict(self) -> dict[str, object]:
        """Return what makes this search the one it is: a folder with another one is refused."""
        recipe = self.recipe.located().dump()
        return {
            "recipe": {key: value for key, value in recipe.items() if key != "run"},
            "space": {key: dimension.as_dict() for key, dimension in self.space.items()},
            "measure": self.measure,
            "sampler": self.sampler,
            "pruner": self.pruner,
            "startup": self.startup,
            "seed": self.seed,
        }


def read_tuning(path: Path, overrides: Sequence[str] = ()) -> Tuning:
    """Return what a file searches; overrides change the recipe, or with `tune.` before them the search.

    Raises:
        RecipeError: with everything that is wrong.
    """
    document = read_document(path)
    own = [text for text in overrides if text.startswith(f"{SECTION}.")]
    changed = override(Document(document.values, document.lines), own, path, path.resolve().parent)
    problems = list(changed.problems)
    section = changed.values.pop(SECTION, None) or {}
    if not isinstance(section, dict):
        raise RecipeError(Problem("tune holds what a search is told.", changed.place((SECTION,)), f"keys: {KEYS}"))
    draft = _recipe_draft(changed, path)
    budget, wrong = read_budget(section.get("budget"), f"{path}: tune.budget")
    problems += wrong
    rest = [text for text in overrides if text not in own]
    for step in (as_overrides(budget.keys) if isinstance(budget, Budget) else [], rest):
        draft = override(Document(draft.values, draft.lines), step, draft.path, draft.base)
        problems += draft.problems
    problems += _wrong_section(section, str(path))
    if problems:
        raise RecipeError(*problems)
    found = examine(draft)
    recipe = found.require()
    space, wrong = (read_space(section["space"], f"{path}: tune.space")) if "space" in section else ({}, [])
    if wrong:
        raise RecipeError(*wrong)
    given = {key: section.get(key, default) for key, default in _WHOLE.items()}
    tuning = Tuning(path, draft, recipe, space or usual_space(recipe), len(found.train_records), "space" in section)
    tuning = replace(
        tuning,
        **given,
        measure=str(section.get("measure") or _usual_measure(recipe)),
        sampler=cast("Sampler", section.get("sampler", "tpe")),
        pruner=cast("Pruner", section.get("pruner", "median")),
        lr_range=cast("dict[str, float]", section.get("lr_range") or {}),
    )
    return tuning


def require_search(tuning: Tuning) -> None:
    """Make sure that every end of the space gives a recipe, and that something is measured.

    Raises:
        RecipeError: with everything that is wrong.
    """
    problems = []
    for key, dimension in tuning.space.items():
        for value in dimension.ends:
            draft = Draft.of_mapping(tuning.draft.values, as_overrides({key: value}), tuning.draft.base)
            _, wrong = parse_draft(draft)
            where = f"{tuning.path}: {SECTION}.space.{key}"
            told = [replace(p, where=where) for p in wrong if p.severity == "error"]
            problems += [p for p in told if p not in problems]
    varied = {key.partition(".")[0] for key in tuning.space}
    problems += held_out_problems(tuning.recipe, varied, f"{tuning.path}: {SECTION}.space")
    names = measure_names(tuning.recipe)
    if not tuning.recipe.has_eval_data and not names:
        remedy = "hold some rows out: eval_fraction: 0.1, or eval_data: FILE"
        problems.append(Problem("Nothing is measured that could become better.", str(tuning.path), remedy))
    elif not tuning.measure.startswith("held-out") and tuning.measure not in names:
        what = f'Nothing called "{tuning.measure}" is measured.{did_you_mean(tuning.measure, [*names, HELD_OUT])}'
        problems.append(Problem(what, f"{tuning.path}: tune.measure", f"choose from: {', '.join([*names, HELD_OUT])}"))
    if problems:
        raise RecipeError(*problems)


def _usual_measure(recipe: Recipe) -> str:
    return HELD_OUT if recipe.has_eval_data or not recipe.evaluate else measure_names(recipe)[0]


def _recipe_draft(changed: Draft, path: Path) -> Draft:
    """Return the recipe of a file: its own keys, or those of its base changed by what stands under recipe."""
    base = changed.values.get("base")
    if base is None:
        return changed
    wrong = [key for key in changed.values if key not in ("base", "recipe")]
    changes = changed.values.get("recipe") or {}
    if wrong or not isinstance(base, str) or not isinstance(changes, dict):
        remedy = "write base: quickstart.yaml, recipe: {keys that differ}, tune: {…}"
        what = f'Beside base, there is no key "{wrong[0]}".' if wrong else "base is a path, and recipe holds keys."
        raise RecipeError(Problem(what, str(path), remedy))
    file = locate(base, (path.resolve().parent, Path.cwd()))
    document = read_document(file)
    return override(document, as_overrides(changes), file, file.resolve().parent)


def _wrong_section(section: Mapping[str, object], path: str) -> list[Problem]:
    problems = []
    for key, value in section.items():
        where = f"{path}: {SECTION}.{key}"
        if key not in KEYS:
            what = f'There is no key "{SECTION}.{key}".{did_you_mean(str(key), KEYS)}'
            problems.append(Problem(what, where, f"choose from: {', '.join(KEYS)}"))
        elif key in _WHOLE:
            least = 0 if key == "seed" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                what = f"{key} is {json.dumps(value, default=str)}; it has to be a whole number, at least {least}."
                problems.append(Problem(what, where, f"write {key}: {_WHOLE[key]}"))
        elif key in _WORDS and value not in _WORDS[key]:
            what = f"{key} is {value!r}.{did_you_mean(str(value), _WORDS[key])}"
            problems.append(Problem(what, where, f"choose from: {', '.join(_WORDS[key])}"))
        elif key == "measure" and not isinstance(value, str):
            problems.append(Problem("measure names what is measured.", where, f"write measure: {HELD_OUT}"))
        elif key == "lr_range":
            problems += _wrong_range(value, where)
    return problems


def _wrong_range(value: object, where: str) -> list[Problem]:
    example = "write lr_range: {low: 1e-6, high: 1, steps: 100}"
    if not isinstance(value, Mapping) or set(value) - {"low", "high", "steps"}:
        return [Problem("lr_range has low, high and steps.", where, example)]
    bad = [k for k, v in value.items() if isinstance(v, bool) or not isinstance(v, int | float) or v <= 0]
    return [Problem(f"lr_range: {bad[0]} is above 0.", where, example)] if bad else []
