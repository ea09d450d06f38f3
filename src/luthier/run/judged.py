"""Measure a run or a model on judged answers, as its own training did: loss, accuracy, margin, calibration."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import DataError
from luthier.core.rundir import RunDir, StageDir, final_checkpoint
from luthier.data import sources
from luthier.data.load import LOOK_AHEAD
from luthier.data.preferences import recognise
from luthier.data.problems import ProblemLog
from luthier.data.records import Record
from luthier.data.spec import DataSpec, resolve_path
from luthier.models.files import inspect_model
from luthier.objectives.base import Objective
from luthier.objectives.reward import Reward
from luthier.run.begin import lay_under, read_beginning
from luthier.run.config import require_recipe
from luthier.run.examine import DEFAULT_MAX_LENGTH
from luthier.run.opened import is_run, kept_recipe, load_for, open_run, open_target

if TYPE_CHECKING:
    from luthier.data.render import Rendered
    from luthier.data.store import ExampleStore
    from luthier.evaluate.measure import Score
    from luthier.models.loaded import LoadedModel


@dataclass(frozen=True)
class Judged:
    """What was measured, and what became of the rows."""

    scores: dict[str, Score]
    rendered: Rendered


def judging_objective(target: str) -> Objective | None:
    """Return the objective by which a run or a model is measured on judged answers; None where there is none."""
    if is_run(target):
        objective = require_recipe(kept_recipe(RunDir.open(Path(target)))).objective
        return objective if objective.data_form in ("preference", "rated") else None
    return Reward() if inspect_model(target)[0].classes == ["reward"] else None


def fits(spec: DataSpec, objective: Objective) -> bool:
    """Say whether the columns of a file are those of judged answers as an objective wants them."""
    assert objective.data_form in ("preference", "rated")
    found = sources.find(resolve_path(spec.path))
    name, rows = next(iter(sources.read_source(found, ProblemLog(), sources.Notes(), sources.ReadOptions())), ("", ()))
    try:
        recognise(list(itertools.islice(rows, LOOK_AHEAD)), spec.columns, objective.data_form, name)
    except DataError:
        return False
    return True


def measure_judged(target: str, records: Sequence[Record], objective: Objective, max_length: int | None) -> Judged:
    """Render the rows as training does and return what the objective says of them."""
    from luthier.data.pairs import PairRenderer
    from luthier.data.render import Renderer
    from luthier.evaluate.preferences import judged_scores

    model, recipe = open_target(target)
    longest = min(model.context_length or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)
    limit = max_length or (recipe.max_length if recipe is not None else None) or longest
    drops = recipe is not None and recipe.on_overlong == "drop"
    how = "drop" if drops else "truncate"
    renderer = Renderer(model.tokenizer, objective_kind="sft", max_length=limit, on_overlong=how)
    rendered = PairRenderer(renderer).render_all(records)
    if objective.needs_reference:
        _refer(target, rendered.store)
    return Judged(judged_scores(model, objective, rendered.store), rendered)


def _refer(target: str, store: ExampleStore) -> None:
    """Let the model that the run started from say how likely the answers are."""
    from luthier.train.reference_logps import NAME, reference_logps

    store.extras[NAME] = reference_logps(_start(target), store)


def _start(target: str) -> LoadedModel:
    """Return the model that a run's last stage started from."""
    from luthier.models.load import load_tokenizer

    run = RunDir.open(Path(target))
    chosen = final_checkpoint(run)
    folder, recipe = StageDir(chosen.parents[1]), require_recipe(kept_recipe(run))
    before = read_beginning(folder).goes_on
    if before is not None:
        return open_run(run.path, before).model
    model = load_for(recipe, load_tokenizer(str(chosen)))
    lay_under(model, folder)
    return model
