"""A stage's curriculum: how hard each row is, measured once, and the order that follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from luthier.data.curriculum import PacedStream
from luthier.data.stream import MixedStream, Steps
from luthier.run.general_rows import own_rows
from luthier.run.mixing import ExampleSet, shares_of

if TYPE_CHECKING:
    from luthier.core.rundir import StageDir
    from luthier.models.loaded import LoadedModel
    from luthier.run.config import Recipe
    from luthier.run.datasets import StageData
    from luthier.run.screen import Screen
    from luthier.train.microbatch import Cut

_UNITS = {"length": " tokens", "loss": " nats per token", "difficulty": ""}


def measured_rows(
    recipe: Recipe, folder: StageDir, sets: list[ExampleSet], model: LoadedModel, cut: Cut
) -> tuple[np.ndarray, ...]:
    """Return how hard the sequences of each set are, (N,) each; nothing without a curriculum.

    The base model's losses are measured once and kept in the stage's folder, so that a resumed run has the same order.
    """
    from luthier.train.reference_logps import NAME, keep_reference_logps

    if recipe.curriculum is None:
        return ()
    if recipe.curriculum.by == "length":
        return tuple(part.train.lengths for part in sets)
    if recipe.curriculum.by == "difficulty":
        return tuple(part.difficulty for part in sets)
    stores = [part.train for part in sets]
    keep_reference_logps(model, stores, folder.path / "curriculum.safetensors", model.fingerprint, cut)
    found = []
    for store in stores:
        counts = np.array([example.count for example in store])
        found.append(-store.extras.pop(NAME) / np.maximum(counts, 1e-9))
    return tuple(found)


def paced(recipe: Recipe, stream: Steps, data: StageData, total: int, screen: Screen) -> Steps:
    """Return the order of rows under the recipe's curriculum, and say what it does; without one the order as it is.

    Args:
        total: steps of the run, each with a batch of its own.
    """
    curriculum = recipe.curriculum
    if curriculum is None:
        return stream
    sizes = tuple(data.sizes)
    rates = stream.rates if isinstance(stream, MixedStream) else shares_of(recipe, sizes)
    own = own_rows(recipe)
    found = PacedStream(sizes, rates, own, recipe.seed, measures=data.hardness, total=total, curriculum=curriculum)
    whole = np.sort(np.concatenate(data.hardness))
    unit, first = _UNITS[curriculum.by], whole[max(0, round(curriculum.start * len(whole)) - 1)]
    begin = f"the first steps draw from {curriculum.start:.0%} of the rows (up to {first:.4g}{unit})"
    end = f"from step {found.growing:,} on from all (up to {whole[-1]:.4g})"
    screen.fact("curriculum", f"by {curriculum.by}, easy rows first: {begin}, {end}")
    data.summary["curriculum"] = {**curriculum.model_dump(), "growing_steps": found.growing}
    return found
