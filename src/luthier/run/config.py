"""The recipe: everything a run is told, read from one YAML or JSON file and from `key=value` overrides.

    file ─ yaml_lines ─→ values + lines ─ overrides ─→ Draft ─ pydantic, cross-checks ─→ Recipe, or all problems at once

A recipe remembers where each of its keys stands (`Recipe.place`), so that whoever finds a problem later, a component or
the data, can still name the line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from luthier.core.component import Component, StageFacts, component_class, kinds
from luthier.core.errors import Problem, RecipeError
from luthier.core.rundir import RunDir, final_checkpoint, last_stage
from luthier.data.curriculum import Curriculum
from luthier.data.mixture import Data, DataSet, Mix
from luthier.data.spec import DataSpec
from luthier.data.templates import TEMPLATES
from luthier.evaluate.tasks.base import Task
from luthier.methods.base import Method
from luthier.objectives.base import Objective
from luthier.optim.base import Optimizer
from luthier.optim.schedules import Schedule
from luthier.regularizers.base import Regularizer
from luthier.run.allowance import PATTERN, Allowance
from luthier.run.cross_checks import cross_problems, idle_keys
from luthier.run.draft import Draft, read_draft
from luthier.run.explain import explain
from luthier.run.fields import refuse_booleans
from luthier.run.limits import Forgetting, Gate
from luthier.run.task_files import with_named_tasks
from luthier.run.yaml_lines import KeyPath

_CONFIG = ConfigDict(
    extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, coerce_numbers_to_str=True
)


def build_component(family: str, value: object) -> object:
    """Return the component that a recipe names: its kind alone, or a mapping with `kind` and its fields.

    Raises:
        PydanticCustomError, ValidationError: collected by pydantic with the other problems of the recipe.
    """
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping):
        return value
    kind = value.get("kind")
    if not isinstance(kind, str):
        raise PydanticCustomError("no_kind", "no kind", {"family": family})
    if kind not in kinds(family):
        raise PydanticCustomError("unknown_kind", "unknown kind", {"family": family, "kind": kind})
    component = component_class(family, kind).model_validate(refuse_booleans(component_class(family, kind), value))
    for name, number in component:
        if isinstance(number, float) and not math.isfinite(number):
            raise PydanticCustomError("component_not_finite", "not finite", {"field": name, "input": number})
    return component


def _of_family(family: str) -> BeforeValidator:
    return BeforeValidator(lambda value: build_component(family, value))


class ModelSpec(BaseModel):
    """Which model to start from. The short form is the path alone: `model: Qwen/Qwen3-0.6B`."""

    model_config = _CONFIG

    path: str = Field(min_length=1)
    """A folder in Hugging Face form, a hub id such as Qwen/Qwen3-0.6B, or "starter": the small model that comes with
    Luthier. A folder is looked up in the recipe's folder, then in the working directory; one typed on the command line
    the other way round."""

    revision: str | None = None
    """Branch, tag or commit of a hub model. Without it: the newest."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Read that code first: it can do anything you can."""

    chat_template: str | None = None
    """A .jinja file (looked up like the model's folder), or the name of a template that Luthier knows, in place of the
    model's own."""

    from_scratch: bool = False
    """Start from random weights in the shape of config.json instead of the trained ones."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value


Part = TypeVar("Part", bound=ModelSpec | DataSpec)


class EvalTask(BaseModel):
    """One measurement, taken before and after training on rows that are not trained on."""

    model_config = _CONFIG

    name: str = Field(min_length=1)
    """What the measurement is called in the report."""

    data: DataSpec
    """The rows to measure on, written as the recipe's own `data`."""

    metric: Literal["loss", "exact_match", "accuracy"]
    """loss: mean negative log-likelihood of the answers, lower is better. exact_match: the share of generated answers
    that equal the reference. accuracy: the share of rows whose class is right (objective classify)."""

    @property
    def label(self) -> str:
        """The task's name."""
        return self.name


def _build_measurement(value: object) -> object:
    """Return what an item of `evaluate` is: a task by its kind, or a {name, data, metric}."""
    if isinstance(value, Mapping) and "kind" in value:
        return build_component("task", value)
    return EvalTask.model_validate(refuse_booleans(EvalTask, value)) if isinstance(value, Mapping) else value


Measurement = Annotated[SerializeAsAny[EvalTask | Task], BeforeValidator(_build_measurement)]


class Recipe(BaseModel):
    """Everything a run is told."""

    model_config = _CONFIG

    model: ModelSpec
    """The model to start from: a folder, a hub id, or starter."""

    method: Annotated[SerializeAsAny[Method], _of_family("method")]
    """What is trained: one word, or the long form {kind: lora, rank: 16}. `luthier methods` lists them."""

    objective: Annotated[SerializeAsAny[Objective], _of_family("objective")] = Field(
        default="sft", validate_default=True
    )
    """Towards what: sft learns the answers of conversations, lm continues raw text, classify learns labels."""

    data: Data
    """The rows to train on: a file, a folder, or starter:NAME; or a list of these, [{path: a.jsonl, weight: 3}, …]."""

    mix: Mix | None = None
    """How several data sets are mixed: {temperature: 2, max_examples: 100000}. Without it, and without weights, each is
    drawn from in proportion to its size."""

    curriculum: Curriculum | None = None
    """Easy rows first: length, loss or difficulty; or in the long form {by: length, start: 0.2, over: 0.5, pace:
    linear}. Without it the order is random."""

    eval_data: DataSpec | None = None
    """Rows that are never trained on, to measure the loss during training."""

    eval_fraction: float = Field(default=0, ge=0, lt=1)
    """Set this share of the rows aside for measuring, of each set if there are several, if there is no eval_data. The
    seed decides which."""

    train_on: Literal["assistant", "all", "last"] = "assistant"
    """Which words of a conversation are learnt: every answer, everything, or the last answer only."""

    reasoning: Literal["trained", "hidden", "stripped"] = "trained"
    """What happens to the thinking before an answer (a column rationale or reasoning, or <think>…</think>): trained
    like the answer, hidden (there to be read, but not learnt), or stripped out of the rows. Counted and shown."""

    max_length: int | None = Field(default=None, ge=2)
    """The longest sequence in tokens. Without it: what the model can take, at most 2048."""

    on_overlong: Literal["error", "drop", "truncate"] = "error"
    """What happens to a row longer than max_length. Whatever is dropped or cut is counted and shown."""

    packing: bool = True
    """Lay sequences end to end instead of padding them. They never see each other; the result is the same, sooner."""

    run: str | None = Field(default=None, min_length=1)
    """The folder of the run, in the working directory. Without it: runs/ and the name of the recipe."""

    epochs: float = Field(default=1, gt=0)
    """How many times to go through the data; 0.5 is half of it."""

    max_steps: Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=PATTERN)] | None = Field(
        default=None, examples=["600 seconds"]
    )
    """Stop after this many optimizer steps, in place of epochs; or at the first step past an amount of training, such
    as 600 seconds or 100000 tokens."""

    batch_size: int = Field(default=8, ge=1)
    """Sequences per optimizer step, whatever fits into memory at once."""

    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Sequences in memory at once. It changes speed and memory, never the result; "auto" goes by
    the size of the activations."""

    learning_rate: float | None = Field(default=None, gt=0)
    """The peak learning rate. Without it: the method's own default."""

    weight_decay: float = Field(default=0, ge=0)
    """How strongly weight matrices are drawn towards zero."""

    optimizer: Annotated[SerializeAsAny[Optimizer], _of_family("optimizer")] = Field(
        default="adamw", validate_default=True
    )
    """How gradients become steps: adamw, or adamw_8bit where its moments are too large."""

    schedule: Annotated[SerializeAsAny[Schedule], _of_family("schedule")] = Field(
        default="cosine", validate_default=True
    )
    """How the learning rate rises and falls: cosine, linear, constant or slanted_triangular. Without it: the method's
    own, which is cosine for all but ulmfit."""

    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """The share of the steps over which the learning rate rises from zero."""

    warmup_steps: int | None = Field(default=None, ge=0)
    """Warm-up as a number of steps, in place of warmup_ratio."""

    regularizers: tuple[Annotated[SerializeAsAny[Regularizer], _of_family("regularizer")], ...] = ()
    """What keeps the model from forgetting or overfitting: a list such as [{kind: replay, data: general.jsonl}]. One of
    kl, l2_sp, ewc, replay, neftune; with any objective that they fit."""

    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Shorten gradients longer than this; null leaves them alone."""

    gradient_checkpointing: bool | Literal["auto"] = False
    """Recompute activations instead of keeping them: less memory, about a third more time, the same result. "auto" does
    so where the plan says that the run would not fit otherwise; decided once, and kept in plan.json."""

    cache_frozen: bool = True
    """With several epochs, run blocks that stand below everything trained once for each row, and keep what they give
    on disk until the run ends."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The number format of the computation. "auto" takes what the machine is fast at."""

    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Decides everything random: the order of rows, new weights, dropout, samples."""

    save_steps: int | None = Field(default=None, ge=1)
    """Write a checkpoint every so many steps. Without it: at the end of each epoch."""

    eval_steps: int | None = Field(default=None, ge=1)
    """Measure the held-out loss, and what is not to be forgotten, every so many steps. Without it: at the end of each
    epoch."""

    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the newest checkpoints stay on disk."""

    early_stopping: int | None = Field(default=None, ge=1)
    """Stop when the held-out loss has not improved for this many measurements."""

    final_checkpoint: Literal["last", "best"] | None = None
    """Which state the run ends with. Without it: best with early_stopping, else last."""

    evaluate: tuple[Measurement, ...] = ()
    """Tasks measured before training, during it (every eval_steps) and after it, on the same cases: a list of
    {kind, data}, of YAML files, of lm_eval:NAME, or of {name, data, metric}, which is measured before and after."""

    forgetting: Forgetting | None = None
    """What the model is not to forget: a file of such rows, or {data, max_drop, action: warn | stop | rollback}. It is
    measured at the start, every eval_steps and at the end."""

    gate: tuple[Gate, ...] = ()
    """What measurements have to come to: {task, min, max, max_increase, max_drop}, or a list of these. A run that does
    not pass ends with exit code 1, no later stage begins, and it is not exported."""

    samples: int = Field(default=4, ge=0)
    """How many answers are shown side by side, before and after."""

    log_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where metrics go besides the run folder."""

    _draft: Draft | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _no_booleans(cls, value: object) -> object:
        return refuse_booleans(cls, value) if isinstance(value, Mapping) else value

    @model_validator(mode="before")
    @classmethod
    def _schedule_of_the_method(cls, value: object) -> object:
        if not isinstance(value, Mapping) or value.get("schedule") is not None:
            return value
        method = value.get("method")
        kind = method.get("kind") if isinstance(method, Mapping) else method
        family = kinds("method").get(kind) if isinstance(kind, str) else None
        own = family.default_schedule if family is not None and issubclass(family, Method) else "cosine"
        return {**value, "schedule": own} if own != "cosine" else value

    @field_validator("gate", mode="before")
    @classmethod
    def _one_gate(cls, value: object) -> object:
        return () if value is None else (value,) if isinstance(value, Mapping) else value

    @field_validator("evaluate", "log_to", "regularizers", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object, info: ValidationInfo) -> object:
        return (value,) if isinstance(value, str) and info.field_name != "evaluate" else value

    @property
    def base(self) -> Path | None:
        """The folder of the recipe file: where relative paths are looked up first."""
        return self._draft.base if self._draft else None

    @property
    def name(self) -> str:
        """The recipe's name: its file's, without the ending."""
        return self._draft.path.stem if self._draft and self._draft.path else "recipe"

    @property
    def data_sets(self) -> tuple[DataSpec, ...]:
        """The sets of rows to train on, one or several."""
        return self.data if isinstance(self.data, tuple) else (self.data,)

    @property
    def data_name(self) -> str:
        """What stands under data, in short."""
        return ", ".join(spec.path for spec in self.data_sets)

    @property
    def has_eval_data(self) -> bool:
        """Whether some rows are held out to measure the loss on."""
        return self.eval_data is not None or self.eval_fraction > 0

    @property
    def step_limit(self) -> int | None:
        """The number of optimizer steps, where the recipe says one."""
        return self.max_steps if isinstance(self.max_steps, int) else None

    @property
    def allowance(self) -> Allowance | None:
        """The tokens or seconds of training, where the recipe says how many."""
        return Allowance.parse(self.max_steps) if isinstance(self.max_steps, str) else None

    def place(self, key: str) -> str:
        """Return where a key such as `method.rank` is written: `recipe.yaml:7`, an override, or the key itself."""
        return self._draft.place(tuple(key.split("."))) if self._draft else key

    def resolved(self) -> Self:
        """Return the recipe with everything decided that depends on nothing but itself."""
        usual = self.method.default_learning_rate * self.objective.learning_rate_factor
        rate = self.learning_rate if self.learning_rate is not None else usual
        final = self.final_checkpoint or ("best" if self.early_stopping else "last")
        return self.model_copy(update={"learning_rate": rate, "final_checkpoint": final})

    def located(self) -> Self:
        """Return the recipe with absolute paths, so that it means the same wherever it is read again."""
        draft = self._draft or Draft({})
        update: dict[str, object] = {
            "model": locate_part(self.model, draft, ("model",)),
            "data": tuple(locate_part(spec, draft, ("data", index)) for index, spec in enumerate(self.data))
            if isinstance(self.data, tuple)
            else locate_part(self.data, draft, ("data",)),
            "method": self.method.located(lambda path: _saved(draft.locate(("method",), path))),
            "objective": self.objective.located(lambda path: draft.locate(("objective",), path)),
            "evaluate": tuple(located_task(task, draft, index) for index, task in enumerate(self.evaluate)),
        }
        update["regularizers"] = tuple(
            part.located(lambda path, at=index: draft.locate(("regularizers", at, "data"), path))
            for index, part in enumerate(self.regularizers)
        )
        if self.forgetting is not None:
            sets = enumerate(self.forgetting.data)
            found = tuple(locate_part(part, draft, ("forgetting", "data", index)) for index, part in sets)
            update["forgetting"] = self.forgetting.model_copy(update={"data": found})
        if self.eval_data is not None:
            update["eval_data"] = locate_part(self.eval_data, draft, ("eval_data",))
        return self.model_copy(update=update)

    def dump(self) -> dict[str, object]:
        """Return all that has an effect, as plain values; `parse_recipe` makes an equal recipe of them."""
        values = self.model_dump(mode="json")
        for key in idle_keys(self):
            del values[key]
        return values

    def component_problems(self, model_config: Mapping[str, object] | None = None) -> list[Problem]:
        """Return what the components forbid in this combination, each with its place in the recipe.

        `model_config` is the model's config.json where it is known.
        """
        facts = StageFacts(
            method=self.method,
            objective=self.objective,
            model_config=model_config or {},
            packing=self.packing,
            batch_size=self.batch_size,
            head=self.objective.head,
            data_form=self.objective.data_form,
            keeps_features=self.method.keeps_features,
            gradient_checkpointing=self.gradient_checkpointing is True,
            unservable=self.method.unservable,
        )
        found = []
        components: list[tuple[str, Component]] = [
            (part.family, part) for part in (self.method, self.objective, self.optimizer, self.schedule)
        ]
        components += [(f"regularizers.{index}", part) for index, part in enumerate(self.regularizers)]
        components += [
            (f"evaluate.{index}", part) for index, part in enumerate(self.evaluate) if isinstance(part, Task)
        ]
        for place, component in components:
            for problem in component.problems(facts):
                key = problem.where or place
                what = problem.what if "." not in key else f"{key}: {problem.what}"
                found.append(Problem(what, self.place(key), problem.remedy, problem.severity))
        return found


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a file, changed by overrides such as `method.rank=8`.

    Raises:
        RecipeError: with every problem of the file and the overrides.
    """
    return require_recipe(read_draft(path, overrides))


def parse_recipe(values: Mapping[str, object], overrides: Sequence[str] = (), base: Path | None = None) -> Recipe:
    """Return the recipe that a mapping describes. `base` is where its relative paths are looked up.

    Raises:
        RecipeError: with every problem.
    """
    return require_recipe(Draft.of_mapping(values, overrides, base))


def require_recipe(draft: Draft) -> Recipe:
    """Return the recipe of a draft.

    Raises:
        RecipeError: with every problem.
    """
    recipe, problems = parse_draft(draft)
    if recipe is None:
        raise RecipeError(*problems)
    return recipe


def parse_draft(draft: Draft) -> tuple[Recipe | None, list[Problem]]:
    """Return the recipe, or None, with every problem found in it."""
    draft, task_problems = with_named_tasks(draft)
    problems = [*draft.problems, *task_problems]
    broken: set[str] = set()
    try:
        recipe = Recipe.model_validate(draft.values)
    except ValidationError as error:
        problems += explain(error, draft, Recipe)
        broken = {str(detail["loc"][0]) for detail in error.errors(include_url=False, include_context=False)}
        recipe = _without(broken, draft)
    recipe._draft = draft
    problems += cross_problems(recipe, broken)
    if not broken & {"method", "objective", "optimizer", "schedule", "regularizers", "evaluate"}:
        problems += recipe.component_problems()
    return (None if broken or any(p.severity == "error" for p in problems) else recipe), problems


def parse_part(draft: Draft, key: Literal["model", "eval_data"]) -> ModelSpec | DataSpec | None:
    """Return one part of a recipe if that part is right, though others may not be."""
    try:
        return (ModelSpec if key == "model" else DataSpec).model_validate(draft.values.get(key))
    except ValidationError:
        return None


def parse_sets(draft: Draft) -> list[tuple[KeyPath, DataSpec | None]]:
    """Return the sets under `data` with their keys; None for one that is wrong."""
    named = draft.values.get("data")
    found: list[tuple[KeyPath, DataSpec | None]] = []
    for index, value in enumerate(named if isinstance(named, list | tuple) else [named]):
        key: KeyPath = ("data", index) if isinstance(named, list | tuple) else ("data",)
        try:
            found.append((key, (DataSet if len(key) > 1 else DataSpec).model_validate(value)))
        except ValidationError:
            found.append((key, None))
    return found


def locate_part(part: Part, draft: Draft, key: KeyPath) -> Part:
    """Return a model or data spec with absolute paths. What is no path stays: starter, hub ids, names of templates."""
    update: dict[str, object] = {}
    if isinstance(part, DataSpec):
        if not part.path.startswith("starter:"):
            update["path"] = str(draft.locate((*key, "path"), part.path))
    else:
        folder, template = draft.locate((*key, "path"), part.path), part.chat_template
        if part.path != "starter" and folder.exists():
            update["path"] = str(folder)
        if template is not None and template not in TEMPLATES:
            file = draft.locate((*key, "chat_template"), template)
            update["chat_template"] = str(file) if file.is_file() else template
    return part.model_copy(update=update)


def located_task(task: EvalTask | Task, draft: Draft, index: int) -> EvalTask | Task:
    """Return the task at that place of `evaluate` with absolute paths."""
    if isinstance(task, Task):
        return task.located(lambda path: draft.locate(("evaluate", index), path))
    return task.model_copy(update={"data": locate_part(task.data, draft, ("evaluate", index, "data"))})


def _saved(place: Path) -> Path:
    """Return the folder in which something trained lies: of a run, its final checkpoint."""
    return final_checkpoint(RunDir(place)) if RunDir(last_stage(place)).resolved.is_file() else place


def _without(broken: Set[str], draft: Draft) -> Recipe:
    """Return the recipe without its broken keys, so that what is wrong between the others is found as well."""
    stand_ins = {"model": "starter", "method": "full", "data": "none"}
    given = {key: value for key, value in draft.values.items() if key not in broken}
    return Recipe.model_validate(stand_ins | given)
