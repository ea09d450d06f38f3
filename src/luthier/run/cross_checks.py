"""What no single key can tell: options without effect, and pairs of values that cannot both hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.errors import Problem, did_you_mean
from luthier.data.mixture import DataSet, names_of
from luthier.evaluate.tasks.base import Task
from luthier.run.limits import unmeasured

if TYPE_CHECKING:
    from luthier.run.config import Recipe


@dataclass(frozen=True)
class EffectRule:
    """When a key has an effect, and what to tell a user who gave it where it has none."""

    key: str
    needs: tuple[str, ...]
    has_effect: Callable[[Recipe], bool]
    why: str
    remedy: str


def _evaluates(recipe: Recipe) -> bool:
    return recipe.has_eval_data


def _measures(recipe: Recipe) -> bool:
    has_tasks = any(isinstance(task, Task) for task in recipe.evaluate)
    return recipe.has_eval_data or recipe.forgetting is not None or has_tasks


def _trains_replies(recipe: Recipe) -> bool:
    return recipe.objective.data_form == "conversation"


def _warms_up(recipe: Recipe) -> bool:
    return recipe.schedule.warms_up


_OWN_RISE = "the schedule has a rise of its own"
_NO_WARMUP = "remove {key}, or choose schedule: cosine"
_HELD_OUT = ("eval_data", "eval_fraction")
_NO_EVAL = "no rows are held out to measure on"
_ADD_EVAL = "add eval_data: FILE or eval_fraction: 0.1, or remove {key}"
_RULES = (
    EffectRule("eval_steps", (*_HELD_OUT, "forgetting", "evaluate"), _measures, _NO_EVAL, _ADD_EVAL),
    EffectRule("early_stopping", _HELD_OUT, _evaluates, _NO_EVAL, _ADD_EVAL),
    EffectRule(
        "final_checkpoint",
        _HELD_OUT,
        lambda r: r.has_eval_data or r.final_checkpoint == "last",
        _NO_EVAL + ", so none is known to be the best",
        _ADD_EVAL,
    ),
    EffectRule(
        "eval_fraction",
        ("eval_data",),
        lambda r: r.eval_data is None or r.eval_fraction == 0,
        "eval_data says which rows are held out",
        "keep one of eval_data and eval_fraction",
    ),
    EffectRule(
        "train_on",
        ("objective",),
        _trains_replies,
        "this objective has no answers to choose among",
        "remove it, or use objective: sft",
    ),
    EffectRule(
        "reasoning",
        ("objective",),
        _trains_replies,
        "this objective has no answers that are thought about",
        "remove it, or use objective: sft",
    ),
    EffectRule(
        "on_overlong",
        ("objective",),
        lambda r: r.objective.data_form != "text",
        "this objective cuts long texts into pieces of max_length, and loses nothing",
        "remove it, or use objective: sft",
    ),
    EffectRule(
        "epochs",
        ("max_steps",),
        lambda r: r.max_steps is None,
        "max_steps says how long to train",
        "keep one of epochs and max_steps",
    ),
    EffectRule(
        "mix",
        ("data",),
        lambda r: len(r.data_sets) > 1,
        "there is but one data set",
        "remove it, or write several: data: [a.jsonl, b.jsonl]",
    ),
    EffectRule("warmup_steps", ("schedule",), _warms_up, _OWN_RISE, _NO_WARMUP),
    EffectRule("warmup_ratio", ("schedule",), _warms_up, _OWN_RISE, _NO_WARMUP),
    EffectRule(
        "warmup_ratio",
        ("warmup_steps",),
        lambda r: r.warmup_steps is None,
        "warmup_steps says how long to warm up",
        "keep one of warmup_ratio and warmup_steps",
    ),
)


def idle_keys(recipe: Recipe) -> set[str]:
    """Return the keys that have no effect in this recipe, given or not."""
    return {rule.key for rule in _RULES if not rule.has_effect(recipe)}


def cross_problems(recipe: Recipe, broken: Set[str] = frozenset()) -> list[Problem]:
    """Return what is wrong between keys. A check that depends on a `broken` key is left out."""
    found = list(_without_effect(recipe, broken))
    found += [problem for keys, problem in _contradictions(recipe) if not broken & set(keys)]
    return found


def _without_effect(recipe: Recipe, broken: Set[str]) -> Iterator[Problem]:
    for rule in _RULES:
        # null is how a recipe says "not given"
        is_given = rule.key in recipe.model_fields_set and getattr(recipe, rule.key) is not None
        if is_given and not rule.has_effect(recipe) and not broken & {rule.key, *rule.needs}:
            yield Problem(
                f"{rule.key} has no effect: {rule.why}.", recipe.place(rule.key), rule.remedy.format(key=rule.key)
            )


def _contradictions(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], Problem]]:
    micro = recipe.micro_batch_size
    if isinstance(micro, int) and micro > recipe.batch_size:
        what = f"micro_batch_size is {micro}, more than the {recipe.batch_size} sequences of a whole step (batch_size)."
        remedy = f"set it to {recipe.batch_size} or less, or to auto"
        yield ("micro_batch_size", "batch_size"), Problem(what, recipe.place("micro_batch_size"), remedy)
    limit = recipe.step_limit
    if recipe.warmup_steps and limit and recipe.warmup_steps > limit:
        what = f"warmup_steps is {recipe.warmup_steps}, more than the {limit} steps of the run (max_steps)."
        remedy = f"set it to less than {limit}"
        yield ("warmup_steps", "max_steps"), Problem(what, recipe.place("warmup_steps"), remedy)
    allowed = recipe.allowance
    own_words = recipe.objective.data_form == "prompt" or recipe.objective.own_answers[0] > 0
    if allowed is not None and allowed.unit == "tokens" and own_words:
        what = "How many tokens a step has is not known beforehand: the model writes them itself."
        yield ("max_steps", "objective"), Problem(what, recipe.place("max_steps"), "count steps or seconds")
    if allowed is not None and allowed.unit == "seconds" and recipe.method.plans_steps:
        long = f"how many fit into {recipe.max_steps} is not known."
        what = f"{recipe.method.title} plans over all steps of a run, and {long}"
        yield ("max_steps", "method"), Problem(what, recipe.place("max_steps"), "count steps or tokens")
    for index, task in enumerate(recipe.evaluate):
        if isinstance(task, Task):
            continue  # says itself what it does not fit
        speaks = recipe.objective.head == "tokens"
        if task.metric != "loss" and (task.metric == "exact_match") != speaks:
            kind = recipe.objective.model_dump()["kind"]
            what = f"The metric {task.metric} cannot be measured on a model of the objective {kind}."
            remedy = f"use metric: {'exact_match' if speaks else 'accuracy'}, or loss"
            yield ("evaluate", "objective"), Problem(what, recipe.place(f"evaluate.{index}.metric"), remedy)
        if task.metric == "accuracy" and recipe.objective.head == "value" and recipe.objective.data_form == "labelled":
            what = "Numbers are not right or wrong, so there is no accuracy to be measured."
            remedy = "use metric: loss, which gives the mean squared error"
            yield ("evaluate", "objective"), Problem(what, recipe.place(f"evaluate.{index}.metric"), remedy)
    if recipe.reasoning == "hidden" and recipe.train_on == "all" and _trains_replies(recipe):
        what = "train_on: all learns every word, and reasoning: hidden leaves some out."
        yield ("train_on", "reasoning"), Problem(what, recipe.place("reasoning"), "use train_on: assistant")
    yield from _mixture(recipe)
    yield from _curriculum(recipe)
    held = [part.model_dump()["kind"] for part in recipe.regularizers]
    for index, kind in enumerate(held):
        if kind in held[:index] and kind != "replay":
            what = f"regularizers: {kind} stands there twice, so one value would hide the other."
            yield ("regularizers",), Problem(what, recipe.place(f"regularizers.{index}"), "keep one of them")
    replayed = sum(part.rows_per_step(recipe.batch_size) for part in recipe.regularizers)
    if recipe.batch_size > 1 and replayed >= recipe.batch_size:
        what = f"All {recipe.batch_size} sequences of a step would be replayed, and none of data would be left."
        yield ("regularizers", "batch_size"), Problem(what, recipe.place("regularizers"), "lower the shares")
    names = [task.label for task in recipe.evaluate]
    for index, name in enumerate(names):
        if name in names[:index]:
            what = f'evaluate: the name "{name}" is used twice, so one result would hide the other.'
            yield ("evaluate",), Problem(what, recipe.place(f"evaluate.{index}.name"), "give each task its own name")
    yield from _limits(recipe, names)
    if len(set(recipe.log_to)) < len(recipe.log_to):
        yield ("log_to",), Problem("log_to names a target twice.", recipe.place("log_to"), "name each once")


def _limits(recipe: Recipe, tasks: list[str]) -> Iterator[tuple[tuple[str, ...], Problem]]:
    """Yield what is wrong with the keys forgetting and gate."""
    watched = recipe.forgetting
    titles = [] if watched is None else [part.title for part in watched.data]
    if watched is not None and not (titles or watched.tasks):
        what = "forgetting names nothing to measure."
        yield ("forgetting",), Problem(what, recipe.place("forgetting"), "write forgetting: general.jsonl")
    for index, title in enumerate(titles):
        if title in titles[:index] or title in tasks:
            what = f'forgetting: the name "{title}" is used twice, so one result would hide the other.'
            place = recipe.place(f"forgetting.data.{index}")
            yield ("forgetting", "evaluate"), Problem(what, place, "give it a name of its own: {path: …, name: …}")
    kinds = [task.label for task in recipe.evaluate if isinstance(task, Task)]
    for index, name in enumerate(watched.tasks if watched is not None else ()):
        if name not in kinds:
            known = name in tasks  # a {name, data, metric}, which is measured before and after alone
            what = f'forgetting: the task "{name}" is {"not measured during training" if known else "not in evaluate"}.'
            remedy = "write it as {kind: …, data: …, name: …} in evaluate" if known else "name one of evaluate's tasks"
            place = recipe.place(f"forgetting.tasks.{index}")
            yield ("forgetting", "evaluate"), Problem(what + did_you_mean(name, kinds) * (not known), place, remedy)
    own = ["held-out"] if recipe.has_eval_data else []
    for index, gate in enumerate(recipe.gate):
        remedy = unmeasured(gate, [*tasks, *titles], own)
        if remedy:
            what = f'gate: "{gate.task}" is not measured in this run.'
            place = recipe.place(f"gate.{index}.task")
            yield ("gate", "forgetting", "evaluate", *_HELD_OUT), Problem(what, place, remedy)


def _curriculum(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], Problem]]:
    paced = recipe.curriculum
    if paced is None:
        return
    if recipe.allowance is not None:
        what = f"A curriculum grows over the steps of a run, and how many {recipe.max_steps} are is not known."
        yield ("curriculum", "max_steps"), Problem(what, recipe.place("curriculum"), "count epochs, or steps")
    if paced.by == "loss" and recipe.objective.data_form not in ("text", "conversation"):
        what = "curriculum by loss: the base model has no loss on rows of this kind."
        yield ("curriculum", "objective"), Problem(what, recipe.place("curriculum.by"), "use length, or difficulty")
    if paced.column != "difficulty" and paced.by != "difficulty":
        what = "curriculum.column has no effect: the rows are not sorted by a column."
        yield ("curriculum",), Problem(what, recipe.place("curriculum.column"), "remove it, or write by: difficulty")


def _mixture(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], Problem]]:
    sets = recipe.data_sets
    for index, name in enumerate(names_of(sets)):
        if name in names_of(sets)[:index]:
            what = f'data: the name "{name}" is used twice, so one set would hide the other.'
            yield ("data",), Problem(what, recipe.place(f"data.{index}.name"), "give each set its own name")
        if sets[index] in sets[:index]:
            what = f"data: {sets[index].path} stands there twice."
            remedy = "name it once, with a weight if it is to count more"
            yield ("data",), Problem(what, recipe.place(f"data.{index}"), remedy)
    for index, spec in enumerate(sets):
        if isinstance(spec, DataSet) and spec.weight is not None and len(sets) == 1:
            what = f"data.{index}.weight has no effect: there is but one data set."
            yield ("data",), Problem(what, recipe.place(f"data.{index}.weight"), "remove it, or add another set")
