"""Tasks that are named by a word: a YAML file of one's own, `KIND:FILE`, `lm_eval:NAME`, or a public file as it is.

name: rhymes                       # my-task.yaml
kind: multiple_choice
data: rhymes.jsonl                 # looked up beside the YAML file
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from luthier.core.component import component_class, kinds
from luthier.core.errors import DataError, Problem, RecipeError, UserError, did_you_mean
from luthier.core.paths import locate
from luthier.data.spec import DataSpec
from luthier.evaluate.tasks.base import Task
from luthier.run.draft import Draft, read_draft
from luthier.run.explain import explain
from luthier.run.fields import refuse_booleans

YAML = (".yaml", ".yml")
HARNESS = "lm_eval:"
_BY_COLUMNS = ("minimal_pairs", "code", "multiple_choice", "continuation")
"""Kinds that know public files by their columns, from the particular to the general."""


def named_task(word: str, find: Callable[[str], Path]) -> Task:
    """Return the task that a word names, with absolute paths.

    Args:
        find: where a relative path is looked up.

    Raises:
        UserError: it names none; with every problem of the file.
    """
    if word.startswith(HARNESS):
        return _made({"kind": "lm_eval", "task": word.removeprefix(HARNESS)}, word)
    kind, colon, path = word.partition(":")
    if colon and kind in kinds("task"):
        data = path if path.startswith("starter:") else str(find(path))
        return _made({"kind": kind, "data": data}, word)
    place = find(word)
    if place.suffix in YAML and place.is_file():
        return task_file(place)
    if place.exists() or word.startswith("starter:"):
        return _by_columns(word if word.startswith("starter:") else str(place), word)
    near = did_you_mean(kind, kinds("task")) if colon else ""
    what = f'"{word}" is no task: there is no such file.{near}'
    remedy = f"name a YAML file, a public data file, lm_eval:NAME, or KIND:FILE with one of: {', '.join(kinds('task'))}"
    raise RecipeError(Problem(what, str(place), remedy))


def task_file(path: Path) -> Task:
    """Return the task of a YAML file; its data are looked up beside it, then in the working directory.

    Raises:
        RecipeError: with every problem of the file.
    """
    draft = read_draft(path)
    kind = draft.values.get("kind")
    if not isinstance(kind, str):
        what, remedy = "The task does not say its kind.", f"add kind: with one of {', '.join(kinds('task'))}"
        raise RecipeError(Problem(what, str(path), remedy))
    try:
        cls = component_class("task", kind)
    except RecipeError as error:
        raise RecipeError(*(replace(p, where=draft.place(("kind",))) for p in error.problems)) from error
    try:
        task = cls.model_validate(refuse_booleans(cls, draft.values))
    except ValidationError as error:
        raise RecipeError(*explain(error, draft, cls)) from error
    assert isinstance(task, Task)
    named = task if task.name else task.model_copy(update={"name": path.stem})
    return named.located(lambda text: locate(text, (path.resolve().parent, Path.cwd())))


def _made(values: Mapping[str, object], word: str) -> Task:
    try:
        task = component_class("task", str(values["kind"])).model_validate(values)
    except ValidationError as error:
        missing = [".".join(map(str, detail["loc"])) for detail in error.errors()]
        what = f"A task of the kind {values['kind']} needs more than its file: {', '.join(missing)}."
        raise RecipeError(Problem(what, word, "write it as a YAML file or a mapping")) from error
    assert isinstance(task, Task)
    return task


def _by_columns(path: str, word: str) -> Task:
    """Return the task that a public file is known for, by its columns."""
    from luthier.evaluate.cases import read_rows

    rows, _, _ = read_rows(DataSpec(path=path, limit=1))
    for kind in _BY_COLUMNS:
        task = _made({"kind": kind, "data": path, **({"run_code": True} if kind == "code" else {})}, word)
        try:
            task.model_copy(update={"data": DataSpec(path=path, limit=1)}).read()
        except DataError:
            continue
        return _made({"kind": kind, "data": path}, word)
    what = f"It does not show in the columns ({', '.join(rows[0].value)}) what is to be measured."
    raise RecipeError(Problem(what, word, f"say it: KIND:{word} with one of {', '.join(kinds('task'))}"))


def with_named_tasks(draft: Draft) -> tuple[Draft, list[Problem]]:
    """Return the draft with the tasks that its `evaluate` names by a word, and what is wrong with them."""
    listed = draft.values.get("evaluate")
    if not isinstance(listed, list | tuple) or not any(isinstance(item, str) for item in listed):
        return draft, []
    problems: list[Problem] = []
    made: list[object] = []
    for index, item in enumerate(listed):
        if not isinstance(item, str):
            made.append(item)
            continue
        key = ("evaluate", index)
        try:
            made.append(named_task(item, lambda path, key=key: draft.locate(key, path)))
        except UserError as error:
            for problem in error.problems:
                inside = problem.where.partition(":")[0].endswith(YAML)
                problems.append(problem if inside else replace(problem, where=draft.place(key)))
    return replace(draft, values={**draft.values, "evaluate": made}), problems
