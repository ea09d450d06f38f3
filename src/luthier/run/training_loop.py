"""The loop of a stage: one step after the other, measured, written down and saved when it is due.

Where answers are rewarded, one pass of the loop is a set of rollouts and several optimizer steps; steps are the
optimizer's all the same.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from luthier.core.errors import Interrupted
from luthier.core.rundir import RunDir
from luthier.run.allowance import estimate_steps
from luthier.run.general_rows import replayed
from luthier.run.stage_run import StageRun, tell, tell_faults
from luthier.train.checkpoint import save_checkpoint
from luthier.train.on_policy import with_own_answers

MOST_STEPS_BETWEEN_SAVES = 500


def train_loop(stage: StageRun) -> None:
    """Train until the last step, or until nothing gets better.

    Raises:
        Interrupted: the user asked to stop; everything is saved.
    """
    engine, recipe = stage.engine, stage.recipe
    estimate_steps(stage)
    stage.folder.path.mkdir(parents=True, exist_ok=True)
    with (
        stage.folder.metrics.open("a", encoding="utf-8") as metrics,
        stage.screen.training(engine.settings.total_steps, engine.step) as bar,
        _interruptible() as stop,
    ):
        while engine.step < engine.settings.total_steps and not _stopped_early(stage):
            row = _one_step(stage)
            estimate_steps(stage)
            total = bar.total = engine.settings.total_steps
            saved = False
            if _is_due(stage, recipe.eval_steps) and stage.data.held_out:
                measured = _measured_now(stage)
                row |= {f"eval_{name}": value for name, value in measured.items()}
                _note_evaluation(stage, measured["loss"] if "loss" in measured else -measured["reward"])
            metrics.write(json.dumps(row) + "\n")
            metrics.flush()
            for tracker in stage.trackers:
                tracker.log(engine.step, row)
            tell_faults(stage)
            bar.update(row)
            while engine.events:
                tell(stage, engine.events.pop(0))
            if engine.step < total and (_is_due(stage, recipe.save_steps) or _is_new_best(stage)):
                _save(stage)
                saved = True
            if stop.requested and engine.step < total:
                if not saved:
                    _save(stage)
                raise Interrupted(f"Stopped after step {engine.step} of {total}; everything is saved.")


def _one_step(stage: StageRun) -> dict[str, float]:
    engine, progress = stage.engine, stage.progress
    wall, cpu = time.monotonic(), time.process_time()
    rows = stage.stream.rows(engine.step // stage.updates)
    examples = [stage.data.train[int(i)] for i in rows]
    others = replayed(stage.recipe, stage.data.general, engine.step // stage.updates)
    examples = with_own_answers(engine, examples, others)
    result = engine.train_step(examples) if stage.asking is None else stage.asking.iterate(engine, examples)
    seconds, cpu_seconds = time.monotonic() - wall, time.process_time() - cpu
    progress.train_seconds += seconds
    progress.train_cpu_seconds += cpu_seconds
    progress.tokens_total += int(result["tokens"])
    if engine.step == stage.updates:
        progress.first_step_cpu_seconds = cpu_seconds
    epoch = engine.step / engine.settings.steps_per_epoch
    return {"step": result.pop("step"), "epoch": round(epoch, 6), **result, "step_seconds": round(seconds, 6)}


def _is_due(stage: StageRun, every: int | None) -> bool:
    """Return whether a save or an evaluation is due after this step: as asked, else each epoch, or 500 steps."""
    engine = stage.engine
    every = every or min(engine.settings.steps_per_epoch, MOST_STEPS_BETWEEN_SAVES)
    return engine.step % every < stage.updates or engine.step == engine.settings.total_steps


def _measured_now(stage: StageRun) -> dict[str, float]:
    """Return what is measured on held-out rows while training goes on."""
    if stage.asking is not None:
        return stage.asking.measure(stage.engine, stage.data.held_out)
    return stage.engine.measure(stage.data.held_out)[0]


def _note_evaluation(stage: StageRun, loss: float) -> None:
    progress = stage.progress
    if progress.best_loss is None or loss < progress.best_loss:
        progress.best_loss, progress.best_step = loss, stage.engine.step
        progress.evaluations_without_gain = 0
    else:
        progress.evaluations_without_gain += 1


def _is_new_best(stage: StageRun) -> bool:
    return stage.recipe.resolved().final_checkpoint == "best" and stage.progress.best_step == stage.engine.step


def _stopped_early(stage: StageRun) -> bool:
    patience = stage.recipe.early_stopping
    return patience is not None and stage.progress.evaluations_without_gain >= patience


def _save(stage: StageRun, resumable: bool = True) -> None:
    extra: dict[str, object] = {"progress": vars(stage.progress)}
    if stage.recipe.resolved().final_checkpoint == "best":
        extra["best_step"] = stage.progress.best_step
    save_checkpoint(stage.engine, stage.folder, extra, stage.recipe.keep_checkpoints, resumable)


class _Stop:
    requested = False


@contextmanager
def _interruptible() -> Iterator[_Stop]:
    """Turn the first Ctrl-C (or SIGTERM) into a wish that is granted after the step; the second one acts at once."""
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    before = {}
    for name in (signal.SIGINT, signal.SIGTERM):
        try:
            before[name] = signal.signal(name, ask)
        except ValueError:  # not in the main thread: a program that embeds the run handles its own signals
            break
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def settle(stage: StageRun) -> str:
    """Save the last state, put the best one in place if that was asked for, and return the final checkpoint's name."""
    engine, progress = stage.engine, stage.progress
    engine.optimizer.zero_grad(set_to_none=True)
    engine.optimizer.state.clear()  # a finished run needs no moments; this frees them before the last save
    if not (stage.folder.checkpoint(engine.step) / "DONE").is_file():
        _save(stage, resumable=False)
    wanted = engine.step
    if stage.recipe.resolved().final_checkpoint == "best" and progress.best_step is not None:
        wanted = progress.best_step
    final = stage.folder.checkpoint(wanted)
    if wanted != engine.step:
        engine.method.load(stage.model.module, final)
        stage.screen.fact("best", f"step {wanted}, held-out loss {progress.best_loss:.4f}: this is the result")
    run = stage.folder.path if RunDir(stage.folder.path).is_stage else stage.folder.path.parent
    return str(final.relative_to(run))
