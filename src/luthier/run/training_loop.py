"""The loop of a stage: one step after the other, measured, written down and saved when it is due.

Where answers are rewarded, one pass of the loop is a set of rollouts and several optimizer steps; steps are the
optimizer's all the same.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from luthier.core.batch import Example
from luthier.core.errors import Interrupted
from luthier.core.rundir import RunDir
from luthier.data.curriculum import PacedStream
from luthier.run.allowance import estimate_steps
from luthier.run.forgetting import can_roll_back, watch
from luthier.run.general_rows import replayed
from luthier.run.measured_tasks import due_tasks
from luthier.run.overfitting import note_gap
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
    _keep_the_start(stage)
    with (
        stage.folder.metrics.open("a", encoding="utf-8") as metrics,
        stage.screen.training(engine.settings.total_steps, engine.step) as bar,
        _interruptible() as stop,
    ):
        while engine.step < engine.settings.total_steps and not _stopped_early(stage):
            row = one_step(stage)
            estimate_steps(stage)
            total = bar.total = engine.settings.total_steps
            saved = False
            if _is_due(stage, recipe.eval_steps):
                row |= _measured_now(stage)
            row |= due_tasks(stage, total, row)
            metrics.write(json.dumps(row) + "\n")
            metrics.flush()
            for tracker in stage.trackers:
                tracker.log(engine.step, row)
            tell_faults(stage)
            bar.update(row)
            while engine.events:
                tell(stage, engine.events.pop(0))
            if engine.step < total and (_is_due(stage, recipe.save_steps) or _may_be_wanted(stage)):
                _save(stage)
                saved = True
            if stop.requested and engine.step < total:
                if not saved:
                    _save(stage)
                raise Interrupted(f"Stopped after step {engine.step} of {total}; everything is saved.")


def one_step(stage: StageRun) -> dict[str, float]:
    """Take one step of the loop, or one set of answers and its steps, and return its metrics."""
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
    progress.losses_since += result["loss"]
    progress.steps_since += 1
    if engine.step == stage.updates:
        progress.first_step_cpu_seconds = cpu_seconds
    epoch = engine.step / engine.settings.steps_per_epoch
    if isinstance(stage.stream, PacedStream):
        result["allowed_share"] = round(stage.stream.share((engine.step - 1) // stage.updates), 6)
    return {"step": result.pop("step"), "epoch": round(epoch, 6), **result, "step_seconds": round(seconds, 6)}


def _is_due(stage: StageRun, every: int | None) -> bool:
    """Return whether a save or an evaluation is due after this step: as asked, else each epoch, or 500 steps."""
    engine = stage.engine
    every = every or min(engine.settings.steps_per_epoch, MOST_STEPS_BETWEEN_SAVES)
    return engine.step % every < stage.updates or engine.step == engine.settings.total_steps


def _measured_now(stage: StageRun) -> dict[str, float]:
    """Return what is measured while training goes on: on held-out rows, and on what is not to be forgotten."""
    row: dict[str, float] = {}
    target: float | None = None
    if stage.data.held_out:
        measured = _measured_held_out(stage)
        row = {f"eval_{name}": value for name, value in measured.items()}
        if "loss" in measured:
            row |= note_gap(stage, measured["loss"])
        target = measured["loss"] if "loss" in measured else -measured["reward"]
        _note_evaluation(stage, target)
    return row | watch(stage, target)


def _measured_held_out(stage: StageRun) -> dict[str, float]:
    """Return the means over all held-out rows, and where several sets hold rows out those of each."""
    parts = {name: _measured(stage, examples) for name, examples in stage.data.held_sets.items()}
    if not parts:
        return _measured(stage, stage.data.held_out)[0]
    whole = sum(count for _, count in parts.values())
    keys = dict.fromkeys(key for found, _ in parts.values() for key in found)
    means = {key: sum(found.get(key, 0.0) * count for found, count in parts.values()) / whole for key in keys}
    return means | {f"{key}_{name}": value for name, (found, _) in parts.items() for key, value in found.items()}


def _measured(stage: StageRun, examples: Sequence[Example]) -> tuple[dict[str, float], float]:
    """Return the means over some held-out rows, and what they count."""
    if stage.asking is not None:
        return stage.asking.measure(stage.engine, examples), len(examples)
    return stage.engine.measure(examples)


def _note_evaluation(stage: StageRun, loss: float) -> None:
    progress = stage.progress
    if progress.best_loss is None or loss < progress.best_loss:
        progress.best_loss, progress.best_step = loss, stage.engine.step
        progress.evaluations_without_gain = 0
    else:
        progress.evaluations_without_gain += 1


def _may_be_wanted(stage: StageRun) -> bool:
    """Return whether this state is the best so far by a measure that the run may be taken back to."""
    progress, step = stage.progress, stage.engine.step
    is_best = stage.ends_with_best and progress.best_step == step
    return is_best or (can_roll_back(stage) and progress.kept_step == step)


def _keep_the_start(stage: StageRun) -> None:
    """Where training may be taken back, begin with a state that has forgotten nothing: the one before training."""
    if can_roll_back(stage) and stage.progress.kept_step is None and stage.progress.forgot is None:
        stage.progress.kept_step = stage.engine.step
        _save(stage)


def _stopped_early(stage: StageRun) -> bool:
    patience, progress = stage.recipe.early_stopping, stage.progress
    return progress.forgot_for_good or (patience is not None and progress.evaluations_without_gain >= patience)


def _save(stage: StageRun, resumable: bool = True) -> None:
    extra: dict[str, object] = {"progress": vars(stage.progress)}
    if stage.ends_with_best:
        extra["best_step"] = stage.progress.best_step
    if can_roll_back(stage):
        extra["kept_step"] = stage.progress.kept_step
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
    """Save the last state, put in place the one that was asked for, and return the final checkpoint's name."""
    engine, progress = stage.engine, stage.progress
    engine.optimizer.zero_grad(set_to_none=True)
    engine.optimizer.state.clear()  # a finished run needs no moments; this frees them before the last save
    if not (stage.folder.checkpoint(engine.step) / "DONE").is_file():
        _save(stage, resumable=False)
    wanted, why = engine.step, ""
    if can_roll_back(stage) and progress.forgot_for_good and progress.kept_step is not None:
        wanted, why = progress.kept_step, "the best that kept within max_drop"
    elif stage.ends_with_best and progress.best_step is not None:
        wanted, why = progress.best_step, f"held-out loss {progress.best_loss:.4f}"
    final = stage.folder.checkpoint(wanted)
    if wanted != engine.step:
        engine.method.load(stage.model.module, final)
        stage.screen.fact("best", f"step {wanted}, {why}: this is the result")
    run = stage.folder.path if RunDir(stage.folder.path).is_stage else stage.folder.path.parent
    return str(final.relative_to(run))
