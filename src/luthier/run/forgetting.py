"""What a model is not to forget: measured before training and during it, with what was asked for when it is lost.

Everything that is decided stands in the stage's Progress, so that a resumed run decides as the uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from luthier.evaluate.measure import Score, held_out_loss
from luthier.run.kept import column_of
from luthier.run.limits import Forgetting, drop_text, worse_by
from luthier.run.measured_tasks import as_row, task_results
from luthier.run.numbers import number, setting
from luthier.run.stage_run import StageRun
from luthier.run.summary import Comparison, as_float, compare, mapping

if TYPE_CHECKING:
    from luthier.run.config import Recipe


def general_scores(stage: StageRun) -> dict[str, dict]:
    """Return the loss on each set of what is not to be forgotten, as eval.json has it."""
    engine, scores = stage.engine, {}
    for part in stage.data.watched:
        if stage.recipe.objective.head == "tokens":
            score = held_out_loss(stage.model, part.examples, engine.cut)
        else:
            score = Score("loss", engine.measure(part.examples)[0]["loss"], len(part.examples))
        scores[part.name] = score.as_dict()
    return scores


def watched_names(stage: StageRun) -> list[str]:
    """Return what is watched, sets before tasks, as eval.json names it."""
    watched = stage.recipe.forgetting
    return [*(part.name for part in stage.data.watched), *(watched.tasks if watched is not None else ())]


def can_roll_back(stage: StageRun) -> bool:
    """Return whether the best state that forgot nothing is kept on disk."""
    watched = stage.recipe.forgetting
    return watched is not None and watched.action == "rollback"


def watch(stage: StageRun, target: float | None) -> dict[str, float]:
    """Measure what is not to be forgotten, decide what follows, and return what belongs into the row of metrics.

    Args:
        target: what the training is after, lower is better; None where no rows are held out.
    """
    watched = stage.recipe.forgetting
    if watched is None:
        return {}
    results = task_results(stage, set(watched.tasks)) if watched.tasks else {}
    scores = {**general_scores(stage), **{name: as_row(result) for name, result in results.items()}}
    progress = stage.progress
    rows = _against_start(stage, scores)
    lost = [row for row in rows if not watched.allows(row)]
    if not lost:
        if target is None or progress.kept_loss is None or target < progress.kept_loss:
            progress.kept_step, progress.kept_loss = stage.engine.step, target
    elif progress.forgot is None:
        worst = max(lost, key=lambda row: drop if (drop := worse_by(row)) is not None else math.inf)
        values = {"name": worst.name, "metric": worst.metric, "before": worst.before, "after": worst.after}
        values |= {"higher_is_better": worst.higher_is_better}
        progress.forgot = {"step": stage.engine.step, **values}
        progress.forgot_for_good = watched.action != "warn"
        stage.screen.note(_what_happened(watched, stage.engine.step, worst))
    return {column_of(name, watched.tasks): float(str(score["value"])) for name, score in scores.items()}


def _against_start(stage: StageRun, scores: Mapping[str, object]) -> list[Comparison]:
    names = watched_names(stage)
    return compare({"before": {name: stage.before.get(name) for name in names}, "after": scores})


def _what_happened(watched: Forgetting, step: int, worst: Comparison) -> str:
    then = {
        "warn": "training goes on",
        "stop": "training ends here",
        "rollback": "training ends here, and the best state before it is the result",
    }
    said = f"{worst.name} went from {worst.text(worst.before)} to {worst.text(worst.after)}"
    drop, limit = drop_text(worst, worse_by(worst)), drop_text(worst, watched.max_drop)
    return f"forgetting at step {step}: {said}, worse by {drop} (max_drop is {limit}); {then[watched.action]}"


def forgetting_part(stage: StageRun, results: Mapping[str, object], chosen: str) -> dict[str, object] | None:
    """Return what report.json says of forgetting; None where nothing was watched.

    Args:
        results: everything measured, before and after.
        chosen: the final checkpoint, as the report names it.
    """
    watched, progress = stage.recipe.forgetting, stage.progress
    if watched is None:
        return None
    names = watched_names(stage)
    both = {when: {name: mapping(results.get(when)).get(name) for name in names} for when in ("before", "after")}
    rows = compare(both)
    forgot = None if progress.forgot is None else _comparison(progress.forgot)
    step = None if progress.forgot is None else progress.forgot["step"]
    result: dict[str, object] = {
        "max_drop": watched.max_drop,
        "action": watched.action,
        "sets": [
            {
                "name": row.name,
                "metric": row.metric,
                "higher_is_better": row.higher_is_better,
                "before": row.before,
                "after": row.after,
                "worse_by": worse_by(row),
                "within_max_drop": watched.allows(row),
            }
            for row in rows
        ],
        "first_forgot": progress.forgot,
        "best_within_max_drop": progress.kept_step,
        "rolled_back": progress.forgot_for_good and watched.action == "rollback",
        "checkpoint": chosen,
        "advice": [],
    }
    if forgot is not None and isinstance(step, int):
        result["what_happened"] = _what_happened(watched, step, forgot)
    if forgot is not None or not all(watched.allows(row) for row in rows):
        result["advice"] = advice(stage.recipe, watched)
    return result


def _comparison(values: Mapping[str, object]) -> Comparison:
    before, after = as_float(values["before"]), as_float(values["after"])
    higher = values.get("higher_is_better")
    known = higher if isinstance(higher, bool) else None
    return Comparison(str(values["name"]), str(values["metric"]), before, after, higher=known)


def advice(recipe: Recipe, watched: Forgetting) -> list[str]:
    """Return what to try against forgetting, the cheapest first: only what the recipe does not do already."""
    held = {str(part.model_dump()["kind"]): part for part in recipe.regularizers}
    rate = recipe.resolved().learning_rate or 0.0
    said = [f"learning_rate: {number(rate / 3, 2)} (it is {setting(rate)}): smaller steps forget less"]
    if not recipe.method.freezes_most:
        said.insert(0, "method: lora, or {kind: layers, …}: what is frozen forgets nothing")
    if recipe.objective.data_form != "prompt":
        if "replay" not in held:
            said.append("regularizers: [{kind: replay, data: …}]: such rows in every step, not those that are measured")
        else:
            share = as_float(held["replay"].model_dump().get("share")) or 0.1
            said.append(f"more replay: share: {setting(min(0.9, 2 * share))} (it is {setting(share)})")
    fits = {"kl": recipe.objective.head == "tokens", "l2_sp": True, "ewc": recipe.objective.head == "tokens"}
    words = {
        "kl": "{kind: kl, weight: 0.1}]: what the model expects next stays near what it expected",
        "l2_sp": "{kind: l2_sp, weight: 0.01}]: the weights stay near their start",
        "ewc": "{kind: ewc, data: …}]: those weights that matter for such rows stay where they are",
    }
    said += [f"regularizers: [{words[kind]}" for kind in words if fits[kind] and kind not in held]
    if watched.action == "warn":
        said.append("forgetting: {action: rollback}: the best state that forgot less than max_drop is the result")
    return said
