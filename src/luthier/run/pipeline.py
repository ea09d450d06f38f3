"""A recipe with `stages:`: several recipes in a row, each starting from what an earlier one made.

Keys at the top are common to all stages; a stage's own win. Each stage is read as an ordinary recipe, so that what is
wrong is told with the line where it stands, for all stages at once and before the first one begins.

    start    previous (the default), base, or the name of an earlier stage
    adapter  merge: what the earlier stage trained is folded into the model, and the folder is written out
             stack: the same, but in memory: only the new adapter is kept, and what lies under it is named
             continue: the same adapter goes on being trained
    gate     as in any recipe: what the stage's measurements have to come to for the next one to begin

`stage:NAME` stands for the result of an earlier stage wherever a path is expected (a reward model, a teacher).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luthier.core.errors import Problem, RecipeError, did_you_mean
from luthier.objectives.rollouts import Online
from luthier.run.config import Recipe, parse_draft
from luthier.run.draft import REFERENCE, Draft, override
from luthier.run.examine import Examined, examine
from luthier.run.explain import explain
from luthier.run.yaml_lines import Document, KeyPath, read_document

OWN_KEYS = ("name", "start", "adapter")
Adapter = Literal["merge", "stack", "continue"]


class StageKeys(BaseModel):
    """What a stage says beyond an ordinary recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(default="", pattern=r"^[\w-]*$")
    """What the stage is called; without it, its objective."""

    start: str = "previous"
    """Where it starts: previous, base, or the name of an earlier stage."""

    adapter: Adapter = "merge"
    """What becomes of what the earlier stage trained: merge, stack or continue."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage as it was read.

    Attributes:
        draft: its recipe; the model is still that of the pipeline.
        source: the index of the stage it starts from; None for the base.
    """

    index: int
    name: str
    keys: StageKeys
    draft: Draft
    source: int | None


@dataclass
class Pipeline:
    """The stages of a file, and all that is wrong with them."""

    path: Path
    stages: list[PlannedStage] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    run: str | None = None
    values: dict[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.stem


def has_stages(path: Path) -> bool:
    """Return whether a recipe file holds stages; a file that cannot be read is left to whoever reads it."""
    try:
        return "stages" in read_document(path).values
    except (RecipeError, OSError):
        return False


def read_pipeline(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Return the stages of a recipe file. Overrides are for all stages, or for one: `stages.0.max_steps=5`.

    Raises:
        RecipeError: the file cannot be read as a mapping.
    """
    document = read_document(path)
    of_one = [text for text in overrides if text.startswith("stages.")]
    of_all = [text for text in overrides if not text.startswith("stages.")]
    whole = override(document, of_one, path, path.resolve().parent)
    values = whole.values
    found = Pipeline(path, problems=list(whole.problems), values=copy.deepcopy(values))
    listed = values.pop("stages", None)
    common = {key: value for key, value in values.items() if key != "run"}
    run = next((text.partition("=")[2] for text in of_all if text.startswith("run=")), values.get("run"))
    found.run = str(run) if run else None
    of_all = [text for text in of_all if not text.startswith("run=")]
    if not isinstance(listed, list) or not listed or not all(isinstance(stage, Mapping) for stage in listed):
        what = "stages is no list of mappings."
        found.problems.append(Problem(what, whole.place(("stages",)), "write - {objective: sft, data: …} for each"))
        return found
    for index, own in enumerate(listed):
        _add_stage(found, index, dict(own), common, whole, of_all)
    _check_names(found, whole)
    return found


def _add_stage(
    found: Pipeline, index: int, own: dict[str, object], common: dict[str, object], whole: Draft, of_all: list[str]
) -> None:
    here = ("stages", index)
    lines = {key: line for key, line in whole.lines.items() if key[:1] != ("stages",) and key[0] not in own}
    lines |= {key[2:]: line for key, line in whole.lines.items() if key[:2] == here and len(key) > 2}
    written = {key[2:]: text for key, text in whole.overrides.items() if key[:2] == here and len(key) > 2}
    special = Draft({k: own.pop(k) for k in OWN_KEYS if k in own}, lines, written, whole.path, whole.base)
    try:
        keys = StageKeys.model_validate(special.values)
    except ValidationError as error:
        found.problems += explain(error, special, StageKeys)
        keys = StageKeys()
    if "run" in own:
        what = f"stages.{index}.run has no effect: all stages lie in one folder."
        found.problems.append(Problem(what, whole.place((*here, "run")), "write run at the top of the recipe"))
        own.pop("run")
    for one, other in (("epochs", "max_steps"), ("warmup_ratio", "warmup_steps"), ("eval_data", "eval_fraction")):
        for mine, theirs in ((one, other), (other, one)):  # a stage's own way of saying a thing puts the common one off
            if mine in own and theirs not in own:
                common = {key: value for key, value in common.items() if key != theirs}
    draft = override(Document(copy.deepcopy({**common, **own}), lines), of_all, whole.path, whole.base)
    draft = replace(draft, overrides={**written, **draft.overrides})
    objective = draft.values.get("objective", "sft")
    kind = objective.get("kind", "sft") if isinstance(objective, Mapping) else objective
    name = keys.name or str(kind)
    source = _source(found, index, keys, whole)
    found.problems += _own_model(index, own.get("model"), source, whole)
    found.stages.append(PlannedStage(index, name, keys, draft, source))


def _own_model(index: int, model: object, source: int | None, whole: Draft) -> list[Problem]:
    """Return what is wrong with a stage that names a model of its own: where it starts is said by `start` alone."""
    if model is None:
        return []
    place = whole.place(("stages", index, "model"))
    named = references(model)
    if named:
        what = f"stages.{index}.model: a stage starts from an earlier one by its key start."
        return [Problem(what, place, f"write start: {named[0]} in place of model")]
    if source is None:
        return []
    what = f"stages.{index}.model has no effect: the stage starts from what an earlier one made."
    return [Problem(what, place, "remove it, or add start: base")]


def _source(found: Pipeline, index: int, keys: StageKeys, whole: Draft) -> int | None:
    """Return the stage that a stage starts from, and note a name that there is not."""
    place = whole.place(("stages", index, "start"))
    names = [stage.name for stage in found.stages]
    if keys.start == "base" or (keys.start == "previous" and index == 0):
        return None
    if keys.start == "previous":
        return index - 1
    if keys.start in names:
        return names.index(keys.start)
    choices = ["previous", "base", *names]
    what = f'stages.{index}.start: no earlier stage is called "{keys.start}".{did_you_mean(keys.start, choices)}'
    found.problems.append(Problem(what, place, f"choose one of: {', '.join(choices)}"))
    return None


def _check_names(found: Pipeline, whole: Draft) -> None:
    names = [stage.name for stage in found.stages]
    for stage in found.stages:
        if stage.name in names[: stage.index]:
            what = f'Two stages are called "{stage.name}".'
            found.problems.append(Problem(what, whole.place(("stages", stage.index)), "give each a name of its own"))


@dataclass
class ExaminedPipeline:
    """Every stage with what was read of its data, before any has begun."""

    pipeline: Pipeline
    stages: list[Examined]

    @property
    def problems(self) -> list[Problem]:
        """All problems, each with the name of its stage."""
        told = list(self.pipeline.problems)
        for planned, found in zip(self.pipeline.stages, self.stages):
            for problem in found.problems:
                named = replace(problem, what=f"[{planned.name}] {problem.what}")
                told += [] if named in told else [named]
        return told

    def require(self, *more: Problem) -> Pipeline:
        """Return the pipeline if nothing stands against running it.

        Raises:
            RecipeError: with every problem of every stage.
        """
        told = [*more, *self.problems]
        if any(problem.severity == "error" for problem in told):
            raise RecipeError(*told)
        return self.pipeline


def examine_pipeline(pipeline: Pipeline) -> ExaminedPipeline:
    """Read every stage's recipe, model and rows. Later stages are examined with the model that the first one has."""
    found = []
    for stage in pipeline.stages:
        examined = examine(without_references(stage.draft))
        examined.recipe_problems += _handing_on(pipeline, stage, examined)
        found.append(examined)
    return ExaminedPipeline(pipeline, found)


def _handing_on(pipeline: Pipeline, stage: PlannedStage, examined: Examined) -> list[Problem]:
    """Return what forbids handing the earlier stage's result on as it is asked."""
    problems = []
    place = stage.draft.place(("adapter",))
    for named in references(stage.draft.values):
        if named not in [other.name for other in pipeline.stages[: stage.index]]:
            names = [other.name for other in pipeline.stages[: stage.index]]
            what = f'"{REFERENCE}{named}" names no earlier stage.{did_you_mean(named, names)}'
            problems.append(Problem(what, str(stage.draft.path), f"earlier stages: {', '.join(names) or 'none'}"))
    problems += _misnamed(pipeline, stage)
    if stage.source is None:
        if stage.keys.adapter != "merge":
            what = f"adapter: {stage.keys.adapter} has no effect: the stage starts from the base."
            problems.append(Problem(what, place, "remove it"))
        return problems
    earlier = pipeline.stages[stage.source]
    before, _ = parse_draft(without_references(earlier.draft))
    recipe = examined.recipe
    if before is None or recipe is None:
        return problems
    if before.objective.head != recipe.objective.head and recipe.objective.head == "tokens":
        what = f'The stage "{earlier.name}" makes a model that writes no text, so this one cannot start from it.'
        problems.append(Problem(what, stage.draft.place(("start",)), "set start: base, or the name of another stage"))
    if stage.keys.adapter == "continue" and before.method != recipe.method:
        what = f'adapter: continue goes on with the method of "{earlier.name}", and this stage has another.'
        problems.append(Problem(what, place, "use the same method with the same settings, or adapter: merge"))
    if stage.keys.adapter == "stack" and isinstance(recipe.objective, Online) and recipe.objective.vllm:
        what = "A vLLM server has the base alone, and adapter: stack leaves an adapter between it and the new one."
        remedy = "use adapter: merge, and serve the folder model/ of the stage before"
        problems.append(Problem(what, place, remedy))
    if stage.keys.adapter != "continue" and before.method.unmergeable:
        what = f"What {before.method.title} trains cannot be folded into the model."
        problems.append(Problem(what, place, "use adapter: continue with the same method, or start: base"))
    return problems


_MAKES = {"tokens": "writes text", "value": "gives a number", "classes": "tells classes apart"}
_WANTED = {"model": "value", "logprob": "tokens"}
"""What a reward that names a model wants it to make."""


def _misnamed(pipeline: Pipeline, stage: PlannedStage) -> list[Problem]:
    """Return the stages that are named where another kind of model is wanted: told now, not when it is their turn."""
    objective = stage.draft.values.get("objective")
    if not isinstance(objective, Mapping):
        return []
    reward = objective.get("reward")
    parts = reward.get("parts") if isinstance(reward, Mapping) else None
    uses = [("teacher", "tokens", objective.get("teacher"))]
    for part in parts if isinstance(parts, list) else [reward]:
        if isinstance(part, Mapping) and part.get("kind") in _WANTED:
            uses.append(("reward", _WANTED[str(part["kind"])], part.get("path")))
    found = []
    for key, wanted, value in uses:
        before = next((other for other in pipeline.stages[: stage.index] if value == REFERENCE + other.name), None)
        recipe = None if before is None else parse_draft(without_references(before.draft))[0]
        if before is not None and recipe is not None and recipe.objective.head != wanted:
            makes = f'the stage "{before.name}" makes a model that {_MAKES[recipe.objective.head]}'
            what = f"objective.{key}: {makes}, and one that {_MAKES[wanted]} is needed."
            found.append(
                Problem(what, stage.draft.place(("objective", key)), "name another stage, or a model's folder")
            )
    return found


def references(value: object) -> list[str]:
    """Return the names that `stage:NAME` stands for anywhere in a value."""
    if isinstance(value, Mapping):
        return [name for item in value.values() for name in references(item)]
    if isinstance(value, list | tuple):
        return [name for item in value for name in references(item)]
    return [value.removeprefix(REFERENCE)] if isinstance(value, str) and value.startswith(REFERENCE) else []


def with_references(value: object, places: Mapping[str, Path | str]) -> object:
    """Return a value with every `stage:NAME` replaced by its place; names without one stay."""
    if isinstance(value, Mapping):
        return {key: with_references(item, places) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_references(item, places) for item in value]
    if isinstance(value, str) and value.startswith(REFERENCE):
        place = places.get(value.removeprefix(REFERENCE))
        return value if place is None else str(place)
    return value


def without_references(draft: Draft) -> Draft:
    """Return a draft that can be examined before the stages it names have run."""
    stand_ins = dict.fromkeys(references(draft.values), "starter")
    values = with_references(draft.values, stand_ins)
    assert isinstance(values, dict)
    return replace(draft, values=values)


def stage_recipe(stage: PlannedStage, model: object, places: Mapping[str, Path]) -> Draft:
    """Return a stage's draft with the model that it starts from, and the places of the stages it names."""
    values = with_references(stage.draft.values, places)
    assert isinstance(values, dict)
    known: dict[KeyPath, int] = {key: line for key, line in stage.draft.lines.items() if key[0] != "model"}
    return replace(
        stage.draft, values={**values, "model": model}, lines=known if model != values["model"] else stage.draft.lines
    )


def base_model(recipe: Recipe) -> object:
    """Return the model of a recipe as a draft writes it, with absolute paths."""
    return recipe.located().model.model_dump(mode="json")
