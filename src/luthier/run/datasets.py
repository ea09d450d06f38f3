"""A stage's data: what the recipe names, read and checked before the model, rendered once its tokenizer is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from luthier.core.batch import Example
from luthier.core.errors import DataError, Problem, RunError
from luthier.core.rundir import RunDir, write_atomic, write_json
from luthier.data.load import Records, fingerprint, load_records, split
from luthier.data.records import Record, Text, answer_of, conversation, prompt_of
from luthier.run.screen import Screen

if TYPE_CHECKING:
    from luthier.data.render import Rendered
    from luthier.models.causal import CausalModel
    from luthier.run.config import EvalTask, Recipe

DEFAULT_MAX_LENGTH = 2048


@dataclass(frozen=True)
class Sample:
    """A row whose answer is shown before and after."""

    record: Record
    prompt: str
    reference: str


@dataclass(frozen=True)
class Task:
    """A measurement: rendered examples for a loss, records for generated answers."""

    name: str
    metric: Literal["loss", "exact_match"]
    examples: Sequence[Example]
    records: Sequence[Record]
    max_new_tokens: int


@dataclass
class StageData:
    """Everything a stage trains and measures on."""

    records: Records
    train_records: Sequence[Record]
    held_records: Sequence[Record]
    task_records: list[tuple[EvalTask, Records]]
    train: Sequence[Example] = ()
    held_out: Sequence[Example] = ()
    tasks: list[Task] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    summary: dict[str, object] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def gather(recipe: Recipe, run: RunDir, screen: Screen) -> StageData:
    """Read and check all rows that the recipe names.

    Raises:
        DataError: with the problems of every file, not just the first.
        RunError: the data have changed since the run was started.
    """
    form = recipe.objective.data_form
    kind: Literal["sft", "lm"] = "lm" if form == "text" else "sft"
    problems: list[Problem] = []

    def read(spec, objective: Literal["sft", "lm"]) -> Records | None:
        try:
            return load_records(spec, recipe.base, objective)
        except DataError as error:
            problems.extend(error.problems)
            return None

    records = read(recipe.data, kind)
    held = read(recipe.eval_data, kind) if recipe.eval_data is not None else None
    # A task may measure plain text whatever the stage trains on, so nothing is refused for having no answer.
    tasks = [(task, read(task.data, "sft" if task.metric == "exact_match" else "lm")) for task in recipe.evaluate]
    if problems or records is None:
        raise DataError(*problems)
    train_records, held_records = split(records.records, recipe.eval_fraction, recipe.seed)
    if held is not None:
        train_records, held_records = list(records.records), list(held.records)
    _check_fingerprint(records, held, run)
    screen.fact("data", f"{len(records):,} rows of {recipe.data.path}, read as {records.format} ({records.why})")
    if held_records:
        source = recipe.eval_data.path if recipe.eval_data is not None else "set aside from them"
        screen.fact("held out", f"{len(held_records):,} rows, {source}")
    for line in _unused(records):
        screen.note(line)
    for problem in records.problems:
        screen.warn(problem)
    return StageData(records, train_records, held_records, [(t, r) for t, r in tasks if r is not None])


def render_stage(recipe: Recipe, model: CausalModel, data: StageData, run: RunDir, screen: Screen) -> StageData:
    """Turn records into examples with the model's template, count what was left out, and write the preview page."""
    from luthier.data.preview import preview_html

    rendered = render(recipe, model, data.train_records, recipe.objective.data_form)
    data.train = rendered.store
    if data.held_records:
        data.held_out = render(recipe, model, data.held_records, recipe.objective.data_form).store
    for task, records in data.task_records:
        chosen = list(records.records[: task.limit])
        form = "text" if any(isinstance(r, Text) for r in chosen) else "conversation"
        examples = render(recipe, model, chosen, form).store if task.metric == "loss" else ()
        data.tasks.append(Task(task.name, task.metric, examples, chosen, task.max_new_tokens))
    shown = (data.held_records or data.train_records)[: recipe.samples]
    data.samples = [Sample(r, prompt_text(r), answer_of(r) or _rest(r)) for r in shown]
    counts = rendered.counts
    data.summary = {
        "files": [str(f) for f in data.records.files],
        "format": data.records.format,
        "rows": len(data.records),
        "held_out_rows": len(data.held_records),
        **counts,
    }
    data.warnings = [str(p) for p in data.records.problems] + list(counts.get("notes", ()))
    _say_counts(counts, screen)
    page = preview_html(rendered.store, model.tokenizer, title=recipe.data.path, counts=counts)
    write_atomic(run.examples_page, page)
    screen.fact("preview", f"{run.examples_page} shows token by token what is trained on")
    return data


def render(
    recipe: Recipe, model: CausalModel, records: Sequence[Record], form: Literal["text", "conversation"]
) -> Rendered:
    """Render records as the recipe says; the one call that training and measuring share."""
    from luthier.data.render import Renderer

    context = model.context_length
    if recipe.max_length is not None and context is not None and recipe.max_length > context:
        raise DataError(
            Problem(
                f"max_length is {recipe.max_length}, but the model was built for {context} positions.",
                where=recipe.place("max_length"),
                remedy=f"set max_length to {context} or less",
            )
        )
    renderer = Renderer(
        model.tokenizer,
        objective_kind="lm" if form == "text" else "sft",
        train_on=recipe.train_on,
        max_length=recipe.max_length or min(context or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH),
        on_overlong=recipe.on_overlong,
        chat_template=recipe.model.chat_template,
    )
    return renderer.render_all(records)


def prompt_text(record: Record) -> str:
    """Return what a person reads as the prompt of a record."""
    from luthier.evaluate.measure import opening

    if isinstance(record, Text):
        return opening(record)
    asked = prompt_of(record)
    turns = conversation(asked).messages if not isinstance(asked, Text) else ()
    return "\n".join(m.content for m in turns if m.role != "assistant" and m.content)


def _rest(record: Record) -> str:
    return record.text[:300] if isinstance(record, Text) else ""


def _check_fingerprint(records: Records, held: Records | None, run: RunDir) -> None:
    now = {"data": fingerprint(records.files), "eval_data": fingerprint(held.files) if held is not None else None}
    if run.fingerprint.is_file():
        import json

        before = json.loads(run.fingerprint.read_text(encoding="utf-8"))
        if before != now:
            raise RunError(
                Problem(
                    "The data have changed since this run was started, so it cannot go on as if nothing had happened.",
                    where=", ".join(str(f) for f in records.files[:3]),
                    remedy="put the old data back, or start a new run",
                )
            )
    else:
        write_json(run.fingerprint, now)


def _unused(records: Records) -> list[str]:
    names = [*records.counts.get("unused_columns", []), *records.counts.get("unused_files", [])]
    notes = list(records.counts.get("notes", []))
    return [*notes, *([f"Not used: {', '.join(names)}"] if names else [])]


def _say_counts(counts: dict[str, object], screen: Screen) -> None:
    trained, tokens = int(counts["trained_tokens"]), int(counts["tokens"])
    text = f"{int(counts['examples']):,} sequences, {tokens:,} tokens, {trained:,} trained on ({trained / max(tokens, 1):.0%})"
    left_out = [f"{int(counts[k]):,} {k}" for k in ("dropped", "truncated", "windows") if counts.get(k)]
    screen.fact("sequences", text + (f"; {', '.join(left_out)}" if left_out else ""))
    for note in counts.get("notes", ()):
        screen.note(str(note))
