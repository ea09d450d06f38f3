"""Overfitting: the training loss goes on falling while the held-out loss rises, so the rows are learnt by heart.

The gap between the two stands in metrics.jsonl. Training loss is the mean of the steps since the last measurement: a
single step's is too noisy to compare with.
"""

from __future__ import annotations

from collections.abc import Mapping

from luthier.run.numbers import number
from luthier.run.stage_run import StageRun

GAP = "eval_gap"
"""Held-out loss less training loss, in metrics.jsonl."""
RISE = 0.02
"""By this share of its lowest value the held-out loss has to rise, at the second measurement in a row that is not the
lowest; less, or sooner, is the noise of a few hundred rows and of a rate that is still high."""


def note_gap(stage: StageRun, held_out: float) -> dict[str, float]:
    """Return the gap for the row of metrics, and say it when it opens; the measurement has not been noted yet."""
    progress, step = stage.progress, stage.engine.step
    if not progress.steps_since:
        return {}
    training = progress.losses_since / progress.steps_since
    progress.losses_since, progress.steps_since = 0.0, 0
    best, then = progress.best_loss, progress.best_train_loss
    rose = best is not None and held_out > best + RISE * abs(best) and progress.evaluations_without_gain > 0
    if best is None or held_out < best:
        progress.best_train_loss, progress.overfit = training, None  # what looked like it has passed
    elif rose and then is not None and training < then and progress.overfit is None:
        progress.overfit = {
            "step": step,
            "best_step": progress.best_step or 0,
            "best_eval_loss": best,
            "eval_loss": held_out,
            "best_train_loss": then,
            "train_loss": training,
        }
        stage.screen.note(overfitting_text(progress.overfit, stage.ends_with_best))
    return {GAP: held_out - training}


def overfitting_part(stage: StageRun) -> dict[str, object] | None:
    """Return what report.json says of overfitting; None where there was none."""
    found = stage.progress.overfit
    if found is None:
        return None
    return {**found, "what_happened": overfitting_text(found, stage.ends_with_best)}


def overfitting_text(found: Mapping[str, float], ends_with_best: bool) -> str:
    """Say in plain words what was seen, and what to do about it."""
    rose = f"from {number(found['best_eval_loss'])} at step {found['best_step']:,} to {number(found['eval_loss'])}"
    fell = f"from {number(found['best_train_loss'])} to {number(found['train_loss'])}"
    remedy = (
        "The result is the best state on held-out rows."
        if ends_with_best
        else "Ending with the best state needs early_stopping: 2, or final_checkpoint: best."
    )
    return (
        f"overfitting at step {found['step']:,}: the held-out loss rose {rose}, while the training loss fell {fell}. "
        f"The model begins to learn its rows by heart. {remedy} Fewer epochs, more rows or a lower rate prevent it"
    )


def warnings_of(*parts: Mapping[str, object] | None) -> list[str]:
    """Return what the parts of a report warn of."""
    return [str(part["what_happened"]) for part in parts if part is not None and "what_happened" in part]
