"""The facts of a recipe that known mistakes are recognised by (advise/myths.py), and where in the recipe they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from luthier.advise.machine import look
from luthier.advise.myths import RunFacts, known_mistakes
from luthier.core.errors import Problem
from luthier.core.language import Language, language_of
from luthier.run.config import Recipe
from luthier.run.examine import Examined
from luthier.run.opened import is_run
from luthier.run.pipeline import ExaminedPipeline


def mistakes(found: Examined, earlier: Sequence[str] = (), language: Language | None = None) -> list[Problem]:
    """Return notes on what the recipe runs into, each with its place.

    Args:
        earlier: objectives of the stages that this one starts from.
    """
    recipe = found.recipe
    if recipe is None:
        return []
    told = known_mistakes(facts_of(recipe, found, tuple(earlier)), language_of(language))
    return [replace(note, where=recipe.place(note.where)) for note in told]


def pipeline_mistakes(found: ExaminedPipeline, language: Language | None = None) -> list[Problem]:
    """Return the notes on every stage, each with the stage's name."""
    told = []
    stages = found.pipeline.stages
    for planned, examined in zip(stages, found.stages):
        earlier, source = [], planned.source
        while source is not None:
            before = found.stages[source].recipe
            earlier += [str(before.objective.model_dump()["kind"])] if before is not None else []
            source = stages[source].source
        told += [replace(note, what=f"[{planned.name}] {note.what}") for note in mistakes(examined, earlier, language)]
    return told


def facts_of(recipe: Recipe, found: Examined, earlier: tuple[str, ...] = ()) -> RunFacts:
    """Return what the records of known mistakes look at."""
    rate = recipe.resolved().learning_rate or recipe.method.default_learning_rate
    is_here = found.model.folder is not None
    kind = recipe.method.kind_name
    return RunFacts(
        method=kind,
        objective=str(recipe.objective.model_dump()["kind"]),
        fields=recipe.method.model_dump(),
        given=frozenset(recipe.method.model_fields_set),
        keys=frozenset(recipe.model_fields_set),
        learning_rate=rate / recipe.objective.learning_rate_factor,
        rows=len(found.train_records),
        epochs=recipe.epochs if recipe.max_steps is None else 1.0,
        batch_size=recipe.batch_size,
        parameters=found.model.parameters,
        from_scratch=recipe.model.from_scratch,
        has_template=(found.model.has_template or recipe.model.chat_template is not None) if is_here else None,
        is_run=is_run(recipe.model.path),
        earlier=earlier,
        has_eval=recipe.has_eval_data,
        stops_early=recipe.early_stopping is not None,
        packing=recipe.packing,
        has_room=_has_room(found.model.parameters) if kind == "qlora" else None,
        form=found.data.format if found.data is not None else "",
    )


def _has_room(parameters: int | None) -> bool | None:
    """Return whether the unquantised model, with as much again for training, fills less than half of the memory."""
    if parameters is None:
        return None
    machine = look()
    return parameters * (2 if machine.kind == "gpu" else 4) * 2 < machine.device_bytes / 2
