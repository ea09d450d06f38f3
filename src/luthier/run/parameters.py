"""How many parameters a recipe, or each method there is, would train: from the model's config alone.

Trained parameters come from the method's closed form; the whole from the method applied to tensors without numbers, so
that it is what report.json says of the run: the base model's parameters, shared ones once, and whatever the method
adds beside them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pydantic import ValidationError

from luthier.core.component import StageFacts, component_class, kinds
from luthier.core.errors import ModelError, Problem, RecipeError, UserError
from luthier.methods.base import Method
from luthier.models.files import inspect_model, local_folder
from luthier.models.heads import head_parameters
from luthier.models.load import load_config
from luthier.models.shapes import count_parameters, is_encoder, meta_model
from luthier.objectives.base import Objective
from luthier.objectives.classify import Classify
from luthier.objectives.sft import Sft
from luthier.run.config import Recipe, require_recipe
from luthier.run.draft import Draft
from luthier.run.examine import examine

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Counted:
    """What would be trained of a model."""

    model: str
    architecture: str
    method: str
    trainable_parameters: int
    total_parameters: int


@dataclass(frozen=True)
class MethodCount:
    """What one method would train of a model, or why it does not.

    Attributes:
        settings: fields that differ from the defaults, for a method whose defaults mean nothing for this model.
        trainable_parameters: None where the method refuses the model.
        refused: the reason.
    """

    kind: str
    title: str
    settings: dict[str, object] = field(default_factory=dict)
    trainable_parameters: int | None = None
    refused: str = ""


@dataclass(frozen=True)
class MethodCounts:
    """Every method's count for one model."""

    model: str
    architecture: str
    total_parameters: int
    methods: list[MethodCount]


def count_recipe(draft: Draft) -> Counted:
    """Return what a recipe would train. Neither weights nor tokenizer are read, and data only for their classes.

    Raises:
        UserError: the config, or what the method finds wrong with the model.
    """
    import torch

    recipe = require_recipe(draft)
    spec = recipe.model
    config = _config(spec.path, recipe, spec.revision, spec.trust_remote_code)
    wrong = [p for p in recipe.component_problems(config.to_dict()) if p.severity == "error"]
    if wrong:
        raise RecipeError(*wrong)
    classes = _classes(recipe.objective, draft, config)
    model = meta_model(config, classes, spec.trust_remote_code)
    try:
        trained = count_trained(recipe.method, model)
        with torch.device("meta"):
            recipe.method.prepare(model)
    except UserError as error:
        error.problems = [_placed(problem, recipe) for problem in error.problems]
        raise
    return Counted(spec.path, type(model).__name__, _kind(recipe.method), trained, count_parameters(model))


def count_trained(method: Method, model: PreTrainedModel) -> int:
    """Return the parameters that a method trains of a plain model, the new head of a classifier included.

    Raises:
        ModelError: there would be none.
    """
    parameters = dict(model.named_parameters())
    trained = method.count(model) + sum(parameters[name].numel() for name in head_parameters(model))
    if not trained:
        raise ModelError(Problem("The method would train nothing.", "method", "choose at least one part of the model"))
    return trained


def count_methods(name: str) -> MethodCounts:
    """Return what every registered method would train of a model, with its default settings.

    Raises:
        ModelError: the config cannot be read, or no model can be built from it.
    """
    config = _config(name)
    classes = config.num_labels if is_encoder(config) else None
    model = meta_model(config, classes)
    goal = Sft() if classes is None else Classify()
    counts = [_count_method(kind, model, goal) for kind in kinds("method")]
    return MethodCounts(name, type(model).__name__, count_parameters(model), counts)


def _count_method(kind: str, model: PreTrainedModel, goal: Objective) -> MethodCount:
    import torch

    family = component_class("method", kind)
    assert issubclass(family, Method)
    reason = ""
    for settings in ({}, family.example) if family.example else ({},):
        try:
            method = family.model_validate({"kind": kind, **settings})
            facts = StageFacts(method=method, objective=goal, model_config=model.config.to_dict())
            wrong = [p for p in method.problems(facts) if p.severity == "error"]
            if wrong:
                raise RecipeError(*wrong)
            if settings:  # an example was written for some model: whether it fits this one shows when it is applied
                with torch.device("meta"):
                    method.prepare(copy.deepcopy(model))
            return MethodCount(kind, family.title, dict(settings), count_trained(method, model))
        except UserError as error:
            reason = reason or " ".join(p.what for p in error.problems)
        except ValidationError:
            reason = reason or "It has no default settings."
    return MethodCount(kind, family.title, refused=reason)


def _classes(objective: Objective, draft: Draft, config: PreTrainedConfig) -> int | None:
    """Return how many numbers the head gives: one, or one for each class of the data.

    Where there are no data yet there are as many classes as the recipe or the config name.
    """
    if objective.head == "value":
        return 1
    if not isinstance(objective, Classify):
        return None
    found = examine(draft).classes
    return len(found.names) if found is not None else len(objective.names) or config.num_labels


def _placed(problem: Problem, recipe: Recipe) -> Problem:
    """Return a problem whose place is a key, such as `method.targets`, with the line of that key."""
    known = problem.where.partition(".")[0] in type(recipe).model_fields
    return replace(problem, where=recipe.place(problem.where)) if known else problem


def _config(
    name: str, recipe: Recipe | None = None, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    base = recipe.base if recipe is not None else None
    facts, problems = inspect_model(name, base, revision=revision, from_scratch=True)
    if facts.folder is not None and not facts.config:
        raise ModelError(problems[0])  # those that follow are about the tokenizer, which is not needed here
    return load_config(str(local_folder(name, base) or name), revision, trust_remote_code)


def _kind(component: Method | Objective) -> str:
    return str(component.model_dump()["kind"])
