"""`luthier eval RUN_OR_MODEL --task TASK …`: tasks by name, each with its score, its interval and n."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.cli.messages import print_json, stdout
from luthier.core.errors import Problem, RecipeError, UserError
from luthier.core.paths import locate
from luthier.core.rundir import RunDir
from luthier.evaluate.tasks.base import Cases, Setting, Task, TaskResult
from luthier.models.files import inspect_model
from luthier.run.config import parse_draft
from luthier.run.opened import is_run, kept_recipe, open_target, target_labels
from luthier.run.task_files import named_task

if TYPE_CHECKING:
    from luthier.run.config import Recipe

_GROUPS_SHOWN = 12


@dataclass(frozen=True)
class Idle:
    """Options of the verb that have no effect on tasks."""

    data: Path | None
    max_length: int | None
    train_on: str | None
    chat_template: str | None

    def problems(self) -> list[Problem]:
        given = {
            "--data": self.data,
            "--max-length": self.max_length,
            "--train-on": self.train_on,
            "--chat-template": self.chat_template,
        }
        remedy = "leave it out; a task says itself what it is measured on"
        names = [name for name, value in given.items() if value is not None]
        return [Problem(f"{name} has no effect with --task.", "luthier eval", remedy) for name in names]


def run(target: str, words: Sequence[str], json: bool, limit: int | None, idle: Idle) -> None:
    """Measure a run or a model on tasks.

    Raises:
        UserError: with everything that is wrong, before the model is loaded.
    """
    tasks = _tasks(target, words, limit, idle)
    model, recipe = open_target(target)
    setting = _setting(target, recipe)
    results = [task.measure(model, cases, setting) for task, cases in tasks]
    if json:
        found = {result.name: {"kind": _kind(task), **result.as_dict()} for result, (task, _) in zip(results, tasks)}
        print_json({"model": target, "tasks": found})
        return
    _show(target, results, tasks)


def _tasks(target: str, words: Sequence[str], limit: int | None, idle: Idle) -> list[tuple[Task, Cases]]:
    problems = idle.problems()
    problems += [] if is_run(target) else [p for p in inspect_model(target)[1] if p.severity == "error"]
    head = "tokens"
    if not problems:
        labels = target_labels(target)
        head = "tokens" if labels is None else "value" if len(labels) == 1 else "classes"
    own = _own_tasks(target)
    found: list[tuple[Task, Cases]] = []
    for word in words:
        try:
            task = own[word] if word in own else named_task(word, lambda path: locate(path, (Path.cwd(),)))
            task = task if limit is None else task.model_copy(update={"limit": min(limit, task.limit or limit)})
            misfits = task.misfits(head)
            problems += misfits
            if not misfits:
                found.append((task, task.read()))
        except UserError as error:
            problems += error.problems
    names = [task.label for task, _ in found]
    twice = {name for name in names if names.count(name) > 1}
    problems += [
        Problem(f'Two tasks are called "{name}".', "--task", "give one a name: in a YAML file") for name in twice
    ]
    if problems:
        raise RecipeError(*problems)
    return found


def _own_tasks(target: str) -> dict[str, Task]:
    """Return the tasks of a run's recipe by their names."""
    if not is_run(target):
        return {}
    recipe, _ = parse_draft(kept_recipe(RunDir.open(Path(target))))
    return {} if recipe is None else {t.label: t for t in recipe.evaluate if isinstance(t, Task)}


def _setting(target: str, recipe: Recipe | None) -> Setting:
    return Setting(
        hides_reasoning=recipe is not None and recipe.reasoning == "hidden",
        labels=target_labels(target),
        open_model=lambda name: open_target(name)[0],
    )


def _kind(task: Task) -> str:
    return str(task.model_dump()["kind"])


def _show(target: str, results: Sequence[TaskResult], tasks: Sequence[tuple[Task, Cases]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = stdout()
    table = Table(title=f"{escape(target)}", title_justify="left", title_style="bold", box=None)
    for name in ("task", "score", "95 %", "n", ""):
        table.add_column(name, justify="left" if name in ("task", "") else "right", no_wrap=name != "task")
    for result in results:
        table.add_row(*map(escape, _cells(f"{result.name} ({result.metric.replace('_', ' ')})", result)))
        shown = sorted(result.groups.items(), key=lambda pair: -pair[1].n)[:_GROUPS_SHOWN]
        for name, part in shown:
            table.add_row(*map(escape, _cells(f"  {name}", part)), style="dim")
        if len(result.groups) > len(shown):
            table.add_row(f"  and {len(result.groups) - len(shown)} more groups: --json has all", style="dim")
    console.print(table)
    for task, cases in tasks:
        for note in cases.notes:
            console.print(f"{escape(task.label)}: {escape(note)}")


def _cells(name: str, result: TaskResult) -> tuple[str, ...]:
    def shown(value: float) -> str:
        return f"{value:.1%}" if result.is_share else f"{value:.4f}"

    low, high = result.interval
    chance = "near chance" if result.is_near_chance else ""
    return name, shown(result.score), f"{shown(low)} to {shown(high)}", f"{result.n:,}", chance
