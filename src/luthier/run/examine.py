"""Everything that can be wrong before a model is loaded: the recipe, the model's folder and every row, in one pass.

`luthier check` ends here; `luthier train` and `resume` begin here, so that nothing is found later that could be found
at once. Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal, cast

from luthier.core.component import kinds
from luthier.core.errors import DataError, MissingExtra, ModelError, Problem, RecipeError, UserError, did_you_mean
from luthier.data.labelled import Classes, Numbers, find_classes, find_numbers, unknown_labels
from luthier.data.load import Records, load_records, merged, split
from luthier.data.mixture import names_of
from luthier.data.reasoning import has_reasoning, stripped
from luthier.data.records import Asked, Conversation, Preference, Rated, Record, turns_of
from luthier.data.spec import DataSpec
from luthier.data.spool import Spool
from luthier.data.templates import TEMPLATES
from luthier.data.views import joined
from luthier.evaluate.tasks.base import Cases, Task
from luthier.evaluate.tasks.exposure import Exposure
from luthier.models.files import ModelFacts, inspect_model
from luthier.objectives.base import Objective
from luthier.objectives.classify import Classify
from luthier.objectives.regress import Regress
from luthier.objectives.rollouts import Online
from luthier.run.config import (
    EvalTask,
    ModelSpec,
    Recipe,
    locate_part,
    located_task,
    parse_draft,
    parse_part,
    parse_sets,
)
from luthier.run.draft import Draft
from luthier.run.mixing import RecordSet
from luthier.run.yaml_lines import KeyPath
from luthier.train.hooks.trackers import require_trackers

DEFAULT_MAX_LENGTH = 2048

DataForm = Literal["sft", "lm", "classify", "regress", "preference", "rated", "prompt"]
_FORMS: dict[str, DataForm] = {"text": "lm", "conversation": "sft", "labelled": "classify"}


@dataclass
class Examined:
    """A recipe with what it names, and all that is wrong with it.

    Attributes:
        recipe: as it is written; None where it is broken.
        recipe_problems, model_problems, data_problems: by where they come from; warnings among them.
        model: what the model's folder says.
        data, eval_data: the rows that the recipe names.
        sets: the rows to train on by their sets, one or several; what follows is of all of them together.
        train_records, held_records: those trained on, and those set aside.
        tasks: the recipe's measurements by metric, with their rows.
        measures: those by kind, with their cases.
        canaries: rows that tasks have put among those that are trained on.
        general: rows of other data, with the place of the regularizer that reads them.
        watched: rows of what is not to be forgotten, by name.
        classes: of labelled rows, as the training rows have them.
        numbers: of rated rows, likewise.
    """

    recipe: Recipe | None
    recipe_problems: list[Problem]
    model_problems: list[Problem] = field(default_factory=list)
    data_problems: list[Problem] = field(default_factory=list)
    model: ModelFacts = field(default_factory=lambda: ModelFacts(None))
    data: Records | None = None
    eval_data: Records | None = None
    sets: list[RecordSet] = field(default_factory=list)
    train_records: Sequence[Record] = ()
    held_records: Sequence[Record] = ()
    tasks: list[tuple[EvalTask, Records]] = field(default_factory=list)
    measures: list[tuple[Task, Cases]] = field(default_factory=list)
    canaries: int = 0
    general: list[tuple[int, Records]] = field(default_factory=list)
    watched: list[tuple[str, Records]] = field(default_factory=list)
    classes: Classes | None = None
    numbers: Numbers | None = None

    @property
    def problems(self) -> list[Problem]:
        """All problems, those of the recipe first."""
        return [*self.recipe_problems, *self.model_problems, *self.data_problems]

    @property
    def warnings(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "warning"]

    def require(self, *more: Problem) -> Recipe:
        """Return the recipe if nothing stands against running it.

        Args:
            more: what else is wrong, to be told at the same time.

        Raises:
            RecipeError, ModelError, DataError: with every problem, warnings included.
        """
        kinds = {
            RecipeError: [*self.recipe_problems, *more],
            ModelError: self.model_problems,
            DataError: self.data_problems,
        }
        wrong = [kind for kind, problems in kinds.items() if any(p.severity == "error" for p in problems)]
        if wrong or self.recipe is None:
            # What is wrong in several places is the recipe's matter, which names them all.
            raise (wrong[0] if len(wrong) == 1 else RecipeError)(*more, *self.problems)
        return self.recipe

    def release_rows(self) -> None:
        """Forget the rows, which are as large as the data; only what counts them stays."""
        self.train_records = self.held_records = ()
        self.tasks, self.measures = [], []
        self.general, self.watched = [], []
        self.sets = []
        self.data = replace(self.data, records=()) if self.data is not None else None
        self.eval_data = replace(self.eval_data, records=()) if self.eval_data is not None else None


def examine(draft: Draft) -> Examined:
    """Read everything that a recipe names and collect what is wrong; a broken key does not hide what others name."""
    recipe, problems = parse_draft(draft)
    found = Examined(recipe, problems)
    model = parse_part(draft, "model")
    if isinstance(model, ModelSpec):
        named = locate_part(model, draft, ("model",))
        found.model, found.model_problems = inspect_model(
            named.path, draft.base, revision=named.revision, from_scratch=named.from_scratch
        )
        found.recipe_problems += _missing_template(named, draft)
    form = _data_form(draft, recipe)
    _read_sets(draft, form, found)
    found.eval_data = _read(parse_part(draft, "eval_data"), ("eval_data",), draft, form, found)
    if recipe is not None:
        for index, task in enumerate(recipe.evaluate):
            if isinstance(task, Task):
                _read_task(_as_trained(task, recipe), index, draft, found)
                continue
            # A task may measure plain text whatever is trained on, so nothing is refused for having no answer.
            is_language = recipe.objective.head == "tokens"
            task_form = form if not is_language else "sft" if task.metric == "exact_match" else "lm"
            rows = _read(task.data, ("evaluate", index, "data"), draft, task_form, found)
            if rows is not None:
                found.tasks.append((task, rows))
        for index, part in enumerate(recipe.regularizers):
            either = part.measured_rows > 0 or recipe.objective.data_form in ("text", "conversation")
            rows = _read(part.general_rows, ("regularizers", index, "data"), draft, "lm" if either else form, found)
            if rows is not None:
                found.general.append((index, rows))
        is_language = recipe.objective.head == "tokens"
        for index, part in enumerate(recipe.forgetting.data if recipe.forgetting is not None else ()):
            rows = _read(part, ("forgetting", "data", index), draft, "lm" if is_language else form, found)
            if rows is not None:
                found.watched.append((part.title, rows))
        _split(recipe, found)
        _find_classes(recipe, found)
        found.recipe_problems += _missing_trackers(recipe)
        found.recipe_problems += _missing_teacher(recipe, draft)
        found.recipe_problems += _unreasoned(recipe, found.data)
        found.recipe_problems += _lacking_reward(recipe, draft)
        found.recipe_problems += misfits(recipe, found.model, found.data)
    return found


def misfits(recipe: Recipe, model: ModelFacts, data: Records | None) -> list[Problem]:
    """Return what does not fit between a recipe, its model and its data, as far as the model's config is known."""
    if not model.config:
        return []
    known = set(recipe.component_problems())
    problems = [p for p in recipe.component_problems(model.config) if p not in known]
    context = model.context_length
    if recipe.max_length is not None and context is not None:
        problems += _beyond_context(recipe, recipe.max_length, context)
    is_without = not model.has_template and recipe.model.chat_template is None
    turns = (turns_of(r) if isinstance(r, Preference | Rated | Asked) else r for r in (data.records if data else ()))
    talk = next((r for r in turns if isinstance(r, Conversation)), None) if is_without else None
    if talk is not None and recipe.objective.data_form != "text":
        what = f"The model {recipe.model.path} has no chat template, so conversations cannot be written for it."
        remedy = "choose one: model.chat_template: chatml (or alpaca, plain, or a .jinja file)"
        problems.append(Problem(what, talk.source, remedy))
    return problems


def _beyond_context(recipe: Recipe, max_length: int, context: int) -> list[Problem]:
    """Return what is wrong with max_length; what a method fills by itself is taken off, and said."""
    virtual = recipe.method.reserved_positions
    room = context - virtual
    if max_length > context or room < 2:
        what = f"max_length is {max_length}, but the model was built for {context} positions."
        if virtual:
            what = what[:-1] + f", and the method fills {virtual} of them itself."
        remedy = f"set max_length to {room} or less" if room >= 2 else "set a smaller method.tokens"
        return [Problem(what, recipe.place("max_length"), remedy)]
    if max_length > room:
        what = f"The method fills {virtual} of the model's {context} positions, so sequences have at most {room}."
        return [Problem(what, recipe.place("max_length"), f"set max_length to {room}", severity="warning")]
    return []


def longest_sequence(recipe: Recipe, model: ModelFacts) -> int:
    """Return the longest sequence in tokens: as the recipe says, else what the model can take, within reason."""
    wanted = recipe.max_length or DEFAULT_MAX_LENGTH
    if model.context_length is None:
        return wanted
    return min(max(model.context_length - recipe.method.reserved_positions, 1), wanted)


def _data_form(draft: Draft, recipe: Recipe | None) -> DataForm:
    if recipe is not None:
        form: str = recipe.objective.data_form
        head: str = recipe.objective.head
    else:
        named = draft.values.get("objective")
        kind = named.get("kind") if isinstance(named, dict) else named
        known = kinds("objective").get(str(kind))
        form = known.data_form if known is not None and issubclass(known, Objective) else "conversation"
        head = known.head if known is not None and issubclass(known, Objective) else "tokens"
    if form == "labelled" and head == "value":
        return "regress"
    return _FORMS.get(form) or cast("DataForm", form)


def _read(
    spec: object, key: KeyPath, draft: Draft, form: DataForm, found: Examined, number: str | None = None
) -> Records | None:
    if not isinstance(spec, DataSpec):
        return None
    try:
        records = load_records(locate_part(spec, draft, key), objective=form, number=number)
    except UserError as error:  # DataError, or a library that is not installed
        found.data_problems += [_placed(p, key, draft) for p in error.problems]
        return None
    found.data_problems += records.problems
    return _without_reasoning(records) if draft.values.get("reasoning") == "stripped" else records


def _read_sets(draft: Draft, form: DataForm, found: Examined) -> None:
    """Read every set under `data`, so that what is wrong in any of them is told at once."""
    named = parse_sets(draft)
    paced = found.recipe.curriculum if found.recipe is not None else None
    number = paced.column if paced is not None and paced.by == "difficulty" else None
    parts = [_read(spec, key, draft, form, found, number) for key, spec in named]
    good = [part for part in parts if part is not None]
    if good and len(good) == len(parts):
        names = names_of([spec for _, spec in named if spec is not None])
        found.sets = [RecordSet(name, part) for name, part in zip(names, good)]
        found.data = merged(good)


def _without_reasoning(records: Records) -> Records:
    """Return the rows with their answers alone, and say in how many there was more."""
    count = sum(map(has_reasoning, records.records))
    if not count:
        return records
    said = records.counts["notes"]
    assert isinstance(said, list)
    note = f"the reasoning was taken out of {count:,} rows (reasoning: stripped)"
    kept = Spool()
    kept.extend(map(stripped, records.records))
    return replace(records, records=kept.done(), counts={**records.counts, "notes": [*said, note]})


def _unreasoned(recipe: Recipe, data: Records | None) -> list[Problem]:
    """Return the problem of a policy for reasoning where there is none."""
    if data is None or recipe.reasoning == "trained" or recipe.objective.data_form != "conversation":
        return []
    notes = data.counts["notes"]
    was_stripped = recipe.reasoning == "stripped" and isinstance(notes, list) and any("reasoning" in n for n in notes)
    if was_stripped or any(map(has_reasoning, data.records)):
        return []
    what = f"reasoning: {recipe.reasoning} has no effect: no row has any."
    remedy = "remove it; reasoning stands in a column rationale or reasoning, or in <think>…</think> in an answer"
    return [Problem(what, recipe.place("reasoning"), remedy)]


def _as_trained(task: Task, recipe: Recipe) -> Task:
    """Return a task that puts rows into the training data as it asks for them: in the form that the recipe trains."""
    if not isinstance(task, Exposure) or task.chat is not None:
        return task
    return task.model_copy(update={"chat": recipe.objective.data_form == "conversation"})


def _add_canaries(recipe: Recipe, found: Examined) -> None:
    """Put the rows that tasks ask for at the end of the first set that is trained on, and say how many there are."""
    rows = [
        row
        for task in recipe.evaluate
        if isinstance(task, Exposure)
        for row in task.training_rows(recipe.objective.data_form == "conversation")
    ]
    if rows and found.sets:
        found.sets[0].train = joined([found.sets[0].train, tuple(rows)])
        found.canaries = len(rows)


def _read_task(task: Task, index: int, draft: Draft, found: Examined) -> None:
    """Read the cases of a task and collect what is wrong with them."""
    located = located_task(task, draft, index)
    assert isinstance(located, Task)
    try:
        found.measures.append((located, located.read()))
    except UserError as error:
        for problem in error.problems:
            written = problem.where if "/" in problem.where else draft.place(("evaluate", index))
            found.data_problems.append(replace(problem, where=written))


def _placed(problem: Problem, key: KeyPath, draft: Draft) -> Problem:
    """Return a problem whose place is a key of the data's own, such as `data.split`, with that key's line."""
    first, *rest = problem.where.split(".")
    return (
        replace(problem, where=draft.place((*key, *rest))) if first == "data" and "/" not in problem.where else problem
    )


def _split(recipe: Recipe, found: Examined) -> None:
    if found.data is None:
        return
    for part in found.sets:
        try:
            part.train, part.held = split(part.records.records, recipe.eval_fraction, recipe.seed)
        except DataError as error:
            called = f"{part.name}: " if len(found.sets) > 1 else ""
            place = recipe.place("eval_fraction")
            found.data_problems += [replace(p, what=called + p.what, where=place) for p in error.problems]
    _add_canaries(recipe, found)
    found.train_records = joined([part.train for part in found.sets])
    found.held_records = joined([part.held for part in found.sets])
    if found.eval_data is not None:
        found.held_records = found.eval_data.records


def _find_classes(recipe: Recipe, found: Examined) -> None:
    """Find the classes of the training rows, and what is measured on that has others; of rated rows the numbers."""
    if isinstance(recipe.objective, Regress) and found.train_records:
        try:
            found.numbers = find_numbers(found.train_records, recipe.objective.scales)
        except DataError as error:
            found.data_problems += error.problems
        return
    if not isinstance(recipe.objective, Classify) or not found.train_records:
        return
    try:
        found.classes = find_classes(found.train_records, recipe.objective.names, found.model.config)
    except DataError as error:
        known = {"objective.names": recipe.place("objective.names")}
        found.data_problems += [replace(p, where=known.get(p.where, p.where)) for p in error.problems]
        return
    others = (*found.tasks, *found.general, *found.watched)
    measured = chain(found.held_records, (row for _, rows in others for row in rows.records))
    found.data_problems += unknown_labels(measured, found.classes)
    given = recipe.objective.weights_for(found.classes.balanced_weights())
    if given and len(given) != len(found.classes):
        what = f"class_weights has {len(given)} numbers for {len(found.classes)} classes ({found.classes.in_short})."
        remedy = "give one for each class, or balanced"
        found.recipe_problems.append(Problem(what, recipe.place("objective.class_weights"), remedy))


def _missing_template(model: ModelSpec, draft: Draft) -> list[Problem]:
    name = model.chat_template
    if name is None or name in TEMPLATES or draft.locate(("model", "chat_template"), name).is_file():
        return []
    what = f'There is no chat template "{name}".{did_you_mean(name, TEMPLATES)}'
    remedy = f"choose one of {', '.join(sorted(TEMPLATES))}, or a .jinja file"
    return [Problem(what, draft.place(("model", "chat_template")), remedy)]


def _lacking_reward(recipe: Recipe, draft: Draft) -> list[Problem]:
    """Return what the objective's reward needs and what is not there."""
    if not isinstance(recipe.objective, Online):
        return []
    key = "objective.reward"
    problems = recipe.objective.reward.lacking(lambda path: draft.locate(("objective",), path))
    return [replace(p, what=f"{p.where}: {p.what}" if p.where else p.what, where=recipe.place(key)) for p in problems]


def _missing_teacher(recipe: Recipe, draft: Draft) -> list[Problem]:
    """Return what is wrong with the model that the objective learns from, as far as its folder tells."""
    from luthier.run.opened import is_run

    name = recipe.objective.located(lambda path: draft.locate(("objective",), path)).learns_from
    if name is None or is_run(name):
        return []
    _, problems = inspect_model(name, draft.base)
    return [replace(p, what=f"The teacher {name}: {p.what}", where=recipe.place("objective.teacher")) for p in problems]


def _missing_trackers(recipe: Recipe) -> list[Problem]:
    problems = []
    for name in recipe.log_to:
        try:
            require_trackers([name])
        except MissingExtra as error:
            problems += [replace(p, where=recipe.place("log_to")) for p in error.problems]
    return problems
