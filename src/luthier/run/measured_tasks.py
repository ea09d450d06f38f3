"""The tasks of a stage: measured before training, while it goes on and after it, on the same cases.

eval.json has what a reader wants; eval_cases.json beside it what each case gave, so that a run that was killed pairs
the same cases as the uninterrupted one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from luthier.core.rundir import StageDir, write_atomic
from luthier.evaluate.tasks.base import Setting, TaskResult, paired
from luthier.run.opened import open_target
from luthier.run.stage_run import StageRun

COLUMN = "task_"
"""Begins the columns of metrics.jsonl that hold tasks' scores."""
MOST_STEPS_BETWEEN = 500


def task_results(stage: StageRun, only: set[str] | None = None) -> dict[str, TaskResult]:
    """Return what the model as it is now scores on the tasks, or on those of the given names."""
    found: dict[str, TaskResult] = {}
    model = stage.model
    prefix, model.prefix = model.prefix, None  # states of tasks' texts are not worth their place on the disk
    try:
        for task, cases in stage.data.measures:
            if only is None or task.label in only:
                found[task.label] = task.measure(model, cases, _setting(stage))
    finally:
        model.prefix = prefix
    return found


def _setting(stage: StageRun) -> Setting:
    classes = stage.data.classes
    return Setting(
        cut=stage.engine.cut,
        hides_reasoning=stage.recipe.reasoning == "hidden",
        labels=None if classes is None else dict(zip(classes.labels, classes.names)),
        cache=stage.folder.path / "judging",
        open_model=lambda name: open_target(name)[0],
    )


def due_tasks(stage: StageRun, total: int, known: Collection[str] = ()) -> dict[str, float]:
    """Measure the tasks that are due after this step, and return what belongs into the row of metrics.

    What stands in the row already (`known`) is not measured again. The last step is left to the measurement after
    training, which measures the same state.
    """
    step = stage.engine.step
    if step >= total:
        return {}
    usual = stage.recipe.eval_steps or min(stage.engine.settings.steps_per_epoch, MOST_STEPS_BETWEEN)
    due = {task.label for task, _ in stage.data.measures if task.is_due(step, usual, stage.updates)}
    due -= {name.removeprefix(COLUMN) for name in known}
    return {f"{COLUMN}{name}": result.score for name, result in task_results(stage, due).items()} if due else {}


def as_row(result: TaskResult) -> dict[str, object]:
    """Return a result as eval.json has it: like every other measure, with its interval and its parts."""
    kept = result.as_dict()
    tokens = {"tokens": result.details["tokens"]} if "tokens" in result.details else {}
    groups = {name: {"value": part.score, **part.as_dict()} for name, part in result.groups.items()}
    first = {"metric": kept.pop("metric"), "value": kept.pop("score")}
    return {**first, **kept, **tokens, **({"groups": groups} if groups else {})}


def write_cases(folder: StageDir, when: str, results: Mapping[str, TaskResult]) -> None:
    """Keep what each case gave."""
    if not results:
        return
    path = cases_file(folder)
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept[when] = {name: result.as_dict(with_cases=True) for name, result in results.items()}
    write_atomic(path, json.dumps(kept, ensure_ascii=False))


def read_cases(folder: StageDir, when: str) -> dict[str, TaskResult]:
    """Return what was kept; nothing where there is no such file."""
    path = cases_file(folder)
    if not path.is_file():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8")).get(when, {})
    return {name: TaskResult.from_dict(name, values) for name, values in kept.items()}


def cases_file(folder: StageDir) -> Path:
    return folder.eval.with_name("eval_cases.json")


def differences(before: Mapping[str, TaskResult], after: Mapping[str, TaskResult]) -> dict[str, dict[str, object]]:
    """Return the paired difference of every measure, and of its parts."""
    found: dict[str, dict[str, object]] = {}
    for name, now in after.items():
        was = before.get(name)
        if was is None or was.cases.shape != now.cases.shape:
            continue
        parts = differences(was.groups, now.groups)
        found[name] = {**paired(was, now).as_dict(), **({"groups": parts} if parts else {})}
    return found
