"""Rows of other data that regularizers read: replayed in every step, or looked at once before training."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.batch import Example
from luthier.data.records import Text
from luthier.data.stream import Stream
from luthier.objectives.base import DataForm

if TYPE_CHECKING:
    from luthier.core.rundir import StageDir
    from luthier.data.load import Records
    from luthier.models.loaded import LoadedModel
    from luthier.run.config import Recipe
    from luthier.run.datasets import Rendering
    from luthier.run.screen import Screen
    from luthier.train.restraints import Restraint

_EITHER = ("text", "conversation")


@dataclass(frozen=True)
class GeneralRows:
    """One regularizer's rows as examples.

    Attributes:
        index: which of the recipe's regularizers reads them.
        per_step: how many of them are in each step.
        name: as the recipe names them.
    """

    index: int
    examples: Sequence[Example]
    per_step: int
    name: str


def takes_both(form: DataForm) -> bool:
    """Return whether an objective over rows of this form can train on conversations and on plain text alike."""
    return form in _EITHER


def own_rows(recipe: Recipe) -> int:
    """Return how many of a step's sequences come from the recipe's own data."""
    return recipe.batch_size - sum(part.rows_per_step(recipe.batch_size) for part in recipe.regularizers)


def render_general(rendering: Rendering, general: Sequence[tuple[int, Records]], screen: Screen) -> list[GeneralRows]:
    """Turn the rows that regularizers read into examples, and say how many there are."""
    recipe, found = rendering.recipe, []
    for index, records in general:
        part = recipe.regularizers[index]
        assert part.general_rows is not None
        rows = records.records[: part.measured_rows] if part.measured_rows else records.records
        form = recipe.objective.data_form
        if part.measured_rows or takes_both(form):
            form = "text" if any(isinstance(row, Text) for row in rows) else "conversation"
        examples = rendering.render(rows, form).store
        per_step = part.rows_per_step(recipe.batch_size)
        found.append(GeneralRows(index, examples, per_step, part.general_rows.path))
        kind = part.model_dump()["kind"]
        use = f"{per_step} of {recipe.batch_size} in every step" if per_step else "looked at once, before training"
        screen.fact(str(kind), f"{len(examples):,} sequences of {part.general_rows.path}, {use}")
    return found


def summary(recipe: Recipe, general: Sequence[GeneralRows], steps: int) -> list[dict[str, object]]:
    """Return what report.json says of the rows that regularizers read."""
    return [
        {
            "kind": recipe.regularizers[rows.index].model_dump()["kind"],
            "data": rows.name,
            "sequences": len(rows.examples),
            "per_step": rows.per_step,
            "replayed": rows.per_step * steps,
        }
        for rows in general
    ]


def replayed(recipe: Recipe, general: Sequence[GeneralRows], step: int) -> list[Example]:
    """Return the rows of other data that belong to a step (from 0): a function of (seed, step)."""
    found: list[Example] = []
    for rows in general:
        seed = zlib.crc32(f"{recipe.seed}/replay/{rows.index}".encode())
        stream = Stream(len(rows.examples), rows.per_step, seed)
        first = step * rows.per_step
        found += [rows.examples[stream.at(first + i)] for i in range(rows.per_step)]
    return found


def restraints_of(
    recipe: Recipe, folder: StageDir, model: LoadedModel, general: Sequence[GeneralRows]
) -> list[Restraint]:
    """Return the regularizers with what is measured for them before training; the method has been applied."""
    from luthier.methods.base import trainable
    from luthier.models.causal import CausalModel
    from luthier.train.fisher import kept_fisher
    from luthier.train.restraints import Restraint

    found = []
    for index, part in enumerate(recipe.regularizers):
        rows = next((g.examples for g in general if g.index == index), ())
        if not part.measured_rows:
            found.append(Restraint(part))
            continue
        assert isinstance(model, CausalModel), "only models that write text are measured"
        file = folder.path / f"importance-{index}.safetensors"
        found.append(Restraint(part, kept_fisher(model, trainable(model.module), rows, recipe.seed, file)))
    return found
