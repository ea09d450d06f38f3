"""One stage of a run, top to bottom: tokenizer → examples → model → method → engine → loop → what came of it.

Rows that cannot be trained on are told before the weights are loaded. Everything that a resumed run needs is on disk
from the start: metrics.jsonl is cut back to the last checkpoint, and goes on from there as if nothing had happened.
"""

from __future__ import annotations

import time
import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING

from luthier.core.rundir import RunDir, StageDir
from luthier.models.shapes import count_parameters
from luthier.run.assemble import (
    assemble,
    choose_method,
    drop_frozen,
    frozen_bits,
    go_back,
    keep_frozen,
    keep_reference,
    measure_rows,
    name_classes,
    open_tokenizer,
)
from luthier.run.begin import lay_under, read_beginning
from luthier.run.datasets import announce, render_stage
from luthier.run.examine import Examined
from luthier.run.forgetting import forgetting_part
from luthier.run.measuring import measured_after, measured_before, write_samples
from luthier.run.mixing import note_draws
from luthier.run.online import open_asking
from luthier.run.opened import load_for
from luthier.run.overfitting import overfitting_part, warnings_of
from luthier.run.plan_file import note_measured, plan_run
from luthier.run.screen import Screen
from luthier.run.stage_run import StageRun, tell_faults
from luthier.run.teacher import open_teacher
from luthier.run.training_loop import settle, train_loop
from luthier.train.audit import Audit, audit
from luthier.train.checkpoint import device_peak_bytes
from luthier.train.hooks.trackers import make_trackers

if TYPE_CHECKING:
    from luthier.run.config import Recipe


def run_stage(recipe: Recipe, found: Examined, run: RunDir, folder: StageDir, screen: Screen) -> dict[str, object]:
    """Train one stage, or go on with it, and return its part of the report.

    Args:
        recipe: with absolute paths.
        found: what was read of the recipe's model and data; its rows are given up when they are rendered.

    Raises:
        LuthierError: as each part says; the folder then holds everything up to the last checkpoint.
    """
    with ExitStack() as opened:
        return _run_stage(recipe, found, run, folder, screen, opened)


def _run_stage(
    recipe: Recipe, found: Examined, run: RunDir, folder: StageDir, screen: Screen, opened: ExitStack
) -> dict[str, object]:
    """Run the stage; what has to be closed however it ends is put into `opened`."""
    started, started_cpu = time.monotonic(), time.process_time()
    announce(recipe, found, run, screen)
    rendering = open_tokenizer(recipe, found)
    data = render_stage(rendering, found, run, screen)
    asking = open_asking(recipe, folder, data.asked)
    if asking is not None:
        opened.callback(asking.close)
        if asking.server is not None:
            screen.fact("answers", f"by the vLLM server at {asking.server.url}, which serves {asking.server.model}")
    found.release_rows()
    planned = plan_run(recipe, rendering.config, data, run, screen)
    recipe = planned.recipe
    several = data.classes is not None and data.classes.is_multi
    model = load_for(recipe, rendering.tokenizer, name_classes(recipe, folder, data), several)
    model.packs = model.packs and recipe.packing
    lay_under(model, folder)
    open_teacher(recipe, model, screen)
    goes_on = read_beginning(folder).goes_on is not None
    reference_cpu = 0.0
    if not goes_on:
        reference_cpu = keep_reference(recipe, folder, data, model, screen)
    measure_rows(recipe, folder, data, model)
    recipe = choose_method(recipe, folder, data, model)
    stage = assemble(recipe, folder, screen, data, model)
    if goes_on:  # the reference is the adapter as the earlier stage left it
        reference_cpu = keep_reference(recipe, folder, data, model, screen)
    stage.asking = asking
    before_bits = frozen_bits(stage)
    go_back(stage)
    keep_frozen(stage)
    setup = {"setup_seconds": time.monotonic() - started, "setup_cpu_seconds": time.process_time() - started_cpu}
    setup["reference_cpu_seconds"] = reference_cpu  # a part of the setup
    results, samples = measured_before(stage)
    stage.before = results["before"]
    with warnings.catch_warnings():
        # A tracker says by a warning that it is given up; here `tell_faults` says so where the user looks.
        warnings.filterwarnings("ignore", message=".* failed and is left out", category=RuntimeWarning)
        stage.trackers = make_trackers(recipe.log_to, folder, recipe.dump())
        try:
            train_loop(stage)
        finally:
            for tracker in stage.trackers:
                tracker.close()
            tell_faults(stage)
    chosen = settle(stage)
    results, after_answers = measured_after(stage, results["before"])
    drop_frozen(stage)
    samples = [{**row, "after": text} for row, text in zip(samples, after_answers)]
    write_samples(folder, samples)
    outcome = audit(model.module, before_bits)
    note_measured(planned, device_peak_bytes(), stage.progress, stage.engine.step, screen)
    screen.comparison(results["before"], results["after"], results.get("change", {}))
    screen.samples(samples)
    return {**setup, **_report(stage, outcome, results, chosen), "final_checkpoint": chosen}


def _report(stage: StageRun, outcome: Audit, results: dict[str, dict], chosen: str) -> dict[str, object]:
    module, progress, rows = stage.model.module, stage.progress, list(stage.folder.read_metrics())
    if outcome.frozen_changed:
        stage.screen.note(f"FREEZE AUDIT FAILED: {', '.join(outcome.frozen_changed[:5])} changed although frozen.")
    forgetting, overfitting = forgetting_part(stage, results, chosen), overfitting_part(stage)
    note_draws(stage.data.summary, stage.stream, stage.engine.step // stage.updates)
    return {
        "trainable_parameters": count_parameters(module, only_trained=True),
        "total_parameters": count_parameters(module),
        "peak_bytes": device_peak_bytes(),
        "frozen_unchanged": not outcome.frozen_changed,
        "audit": outcome.as_dict(),
        "unmergeable": stage.recipe.method.why_unmergeable(module),
        "method_report": stage.recipe.method.report(module, stage.engine.method_state),
        "steps": stage.engine.step,
        "stopped_early": stage.engine.step < stage.engine.settings.total_steps,
        "tokens_total": progress.tokens_total,
        "train_seconds": progress.train_seconds,
        "train_cpu_seconds": progress.train_cpu_seconds,
        "first_step_cpu_seconds": progress.first_step_cpu_seconds,
        "tokens_per_second": progress.tokens_total / max(progress.train_seconds, 1e-9),
        "loss_first": rows[0]["loss"] if rows else None,
        "loss_last": rows[-1]["loss"] if rows else None,
        "best_step": progress.best_step,
        "eval": results,
        **({"forgetting": forgetting} if forgetting is not None else {}),
        **({"overfitting": overfitting} if overfitting is not None else {}),
        "data": stage.data.summary,
        "warnings": [*stage.model.notes, *stage.data.warnings, *stage.events, *warnings_of(forgetting, overfitting)],
    }
