"""A stage's data: what was examined becomes examples as soon as there is a tokenizer, before the weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np

from luthier.core.batch import Example
from luthier.core.errors import Problem, RunError
from luthier.core.rundir import RunDir, write_atomic, write_json
from luthier.data.labelled import Classes, Numbers
from luthier.data.load import Records, fingerprint
from luthier.data.records import (
    Asked,
    Conversation,
    Labelled,
    Preference,
    PromptAnswer,
    Rated,
    Record,
    Text,
    answer_of,
    conversation,
    prompt_of,
)
from luthier.data.store import ExampleStore
from luthier.data.views import joined
from luthier.doctor.quick import quick_look, summary
from luthier.evaluate.tasks.base import Cases
from luthier.evaluate.tasks.base import Task as KindOfTask
from luthier.objectives.base import DataForm
from luthier.objectives.classify import Classify
from luthier.objectives.rollouts import Online
from luthier.run.examine import Examined
from luthier.run.general_rows import GeneralRows, render_general
from luthier.run.mixing import ExampleSet, merged_counts, render_sets, set_summaries
from luthier.run.screen import Screen

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.data.asked import PromptRenderer
    from luthier.data.labelled import LabelledRenderer
    from luthier.data.pairs import PairRenderer
    from luthier.data.render import Counts, Rendered, Renderer
    from luthier.run.config import Recipe

HISTOGRAM_BARS = 24
_ENDINGS = {"preference": ("chosen", "rejected"), "rated": ("the answer", "another row's answer, to measure with")}


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
    metric: Literal["loss", "exact_match", "accuracy"]
    examples: Sequence[Example]
    records: Sequence[Record]


@dataclass
class StageData:
    """Everything a stage trains and measures on.

    Attributes:
        train, held_out: of all sets together.
        sets: the sets that are trained on, one or several.
        hardness: of each set (N,), how hard its sequences are, where there is a curriculum.
        summary: what report.json says of the data.
        warnings: what the user was told about them.
        classes: what the rows are told apart by, for a classifier.
        numbers: what the rows are rated with, for regression.
        tasks: measurements by a metric, with their rows.
        measures: tasks by their kind, with their cases.
        asked: prompts that the model answers, by their sources.
        general: rows of other data that regularizers read.
        watched: what is not to be forgotten.
    """

    train: Sequence[Example]
    held_out: Sequence[Example] = ()
    tasks: list[Task] = field(default_factory=list)
    measures: list[tuple[KindOfTask, Cases]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    summary: dict[str, object] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    classes: Classes | None = None
    numbers: Numbers | None = None
    asked: dict[str, Asked] = field(default_factory=dict)
    general: list[GeneralRows] = field(default_factory=list)
    watched: list[Task] = field(default_factory=list)
    sets: list[ExampleSet] = field(default_factory=list)
    hardness: tuple[np.ndarray, ...] = ()

    @property
    def sizes(self) -> list[int]:
        """Sequences to train on, of each set."""
        return [len(part.train) for part in self.sets]

    @property
    def held_sets(self) -> dict[str, Sequence[Example]]:
        """What is held out of each set by its name, where several hold something out."""
        parts = {part.name: part.held for part in self.sets if len(part.held)}
        return parts if len(parts) > 1 else {}

    @property
    def stores(self) -> list[ExampleStore]:
        """All stores of `train` and `held_out`."""
        held = [self.held_out, *(part.held for part in self.sets)]
        kept = {id(part): part for part in held if isinstance(part, ExampleStore)}
        return [*(part.train for part in self.sets), *kept.values()]


@dataclass(frozen=True)
class Rendering:
    """How a stage's records become examples: the one way that training and measuring share.

    Attributes:
        max_length: the longest example in tokens.
        context: the longest sequence that the model can take.
        longest: the longest example where the recipe's own limit does not hold.
        classes: what labelled rows are told apart by.
        numbers: what texts are rated with.
        config: the model's config.json.
    """

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    context: int | None
    classes: Classes | None = None
    numbers: Numbers | None = None
    longest: int = 0
    config: Mapping[str, object] = field(default_factory=dict)

    @property
    def measuring(self) -> Rendering:
        """The rendering of tasks: whole answers, whatever is trained on, so that runs can be compared."""
        recipe = self.recipe.model_copy(update={"train_on": "assistant"})
        return replace(self, recipe=recipe, max_length=max(self.longest, self.max_length))

    def render(self, records: Sequence[Record], form: DataForm, trains: bool = False) -> Rendered:
        """Return the examples of records, as the recipe says; with the weights of classes if they are trained on."""
        from luthier.data.token_cache import rendered_once

        renderer = self._renderer(form, trains)
        return rendered_once(records, self.tokenizer, renderer.settings, lambda: renderer.render_all(records))

    def _renderer(self, form: DataForm, trains: bool) -> Renderer | PairRenderer | LabelledRenderer | PromptRenderer:
        from luthier.data.asked import PromptRenderer
        from luthier.data.labelled import LabelledRenderer
        from luthier.data.pairs import PairRenderer
        from luthier.data.render import Renderer

        objective, on_overlong = self.recipe.objective, self.recipe.on_overlong
        if self.numbers is not None:
            return LabelledRenderer(self.tokenizer, self.numbers, (), self.max_length, on_overlong, self.context)
        if isinstance(objective, Classify):
            assert self.classes is not None
            weights = objective.weights_for(self.classes.balanced_weights()) if trains else ()
            return LabelledRenderer(self.tokenizer, self.classes, weights, self.max_length, on_overlong, self.context)
        if isinstance(objective, Online) and form == "prompt":
            room = objective.drawing.max_new_tokens
            return PromptRenderer(self.tokenizer, self.max_length, room, on_overlong, self.context)
        is_judged = form in ("preference", "rated")
        renderer = Renderer(
            self.tokenizer,
            objective_kind="lm" if form == "text" else "sft",
            # Of judged answers only what was judged is compared.
            train_on="assistant" if is_judged else self.recipe.train_on,
            max_length=self.max_length,
            on_overlong=on_overlong,
            context=self.context,
            hides_reasoning=self.recipe.reasoning == "hidden" and form == "conversation",
        )
        return PairRenderer(renderer) if is_judged else renderer


def announce(recipe: Recipe, found: Examined, run: RunDir, screen: Screen) -> None:
    """Say what was read, and make sure that it is what the run was started with.

    Raises:
        RunError: the data have changed since then.
    """
    assert found.data is not None
    check_fingerprint(found, run)
    records = found.data
    for part, spec in zip(found.sets, recipe.data_sets):
        rows, called = part.records, f" ({part.name})" if len(found.sets) > 1 else ""
        screen.fact("data", f"{len(rows):,} rows of {spec.path}{called}, read as {rows.format} ({rows.why})")
    if found.canaries:
        screen.note(
            f"{found.canaries:,} rows with secrets are added to those trained on, because evaluate asks for them"
        )
    if found.held_records:
        source = recipe.eval_data.path if recipe.eval_data is not None else "set aside from them"
        screen.fact("held out", f"{len(found.held_records):,} rows, {source}")
    if found.classes is not None:
        several = ", of which a row may have several" if found.classes.is_multi else ""
        screen.fact("classes", f"{len(found.classes)}: {found.classes.in_short}{several}")
    if found.numbers is not None:
        screen.fact("numbers", found.numbers.in_short)
    looked = quick_look(found.train_records, found.held_records)
    write_json(run.doctor, looked.as_dict())
    screen.fact("doctor", summary(looked))
    for line in _unused(records):
        screen.note(line)
    for problem in found.warnings:
        screen.warn(problem)


def render_stage(rendering: Rendering, found: Examined, run: RunDir, screen: Screen) -> StageData:
    """Turn records into examples with the model's template, count what was left out, and write the preview page."""
    from luthier.data.preview import preview_html
    from luthier.data.templates import settle_template

    recipe, tokenizer = rendering.recipe, rendering.tokenizer
    form = recipe.objective.data_form
    labelled = form == "labelled"
    settled = "" if labelled else settle_template(tokenizer, found.train_records, recipe.model.chat_template)
    # Without a template the renderer says what it does instead, and on how many rows.
    chosen_template = [settled] if settled and tokenizer.chat_template else []
    for note in chosen_template:
        screen.note(note)
    sets, rendered = zip(*render_sets(rendering, found.sets))
    counts = merged_counts([part.name for part in sets], rendered)
    data = StageData(joined([part.train for part in sets]), classes=found.classes, numbers=found.numbers)
    data.sets = list(sets)
    if found.eval_data is not None:
        data.held_out = rendering.render(found.held_records, form).store
    elif found.held_records:
        data.held_out = joined([part.held for part in sets])
    if form == "prompt":
        asked = (r for r in (*found.train_records, *found.held_records) if isinstance(r, Asked))
        data.asked = {record.source: record for record in asked}
    data.general = render_general(rendering, found.general, screen)
    for task, records in found.tasks:
        chosen = records.records
        task_form = "text" if any(isinstance(r, Text) for r in chosen) else "conversation"
        task_form = form if recipe.objective.head != "tokens" else task_form
        examples = rendering.measuring.render(chosen, task_form).store if task.metric != "exact_match" else ()
        data.tasks.append(Task(task.name, task.metric, examples, chosen))
    data.measures = list(found.measures)
    for task, cases in data.measures:
        screen.fact("measuring", f"{task.label}: {task.title}, {len(cases):,} cases")
        for note in cases.notes:
            screen.note(f"{task.label}: {note}")
    for name, records in found.watched:
        chosen = records.records
        plain: DataForm = "text" if any(isinstance(r, Text) for r in chosen) else "conversation"
        examples = rendering.render(chosen, plain if recipe.objective.head == "tokens" else form).store
        data.watched.append(Task(name, "loss", examples, ()))
        screen.fact("not to forget", f"{name}: the loss on {len(examples):,} sequences")
    shown = _shown(found, data, recipe.samples)
    data.samples = [Sample(r, prompt_text(r), _class_name(r, found.classes) or answer_of(r) or _rest(r)) for r in shown]
    data.summary = _summary(found, counts, np.concatenate([part.train.lengths for part in sets]))
    for part, found_part in zip(sets, rendered):
        if found_part.origin:
            called = f"{part.name}: " if len(sets) > 1 else ""
            screen.fact("tokens", called + found_part.origin)
    if len(sets) > 1:
        data.summary["sets"] = set_summaries(found.sets, rendered)
    notes = _strings(counts["notes"])
    data.warnings = [*chosen_template, *(_one_line(problem) for problem in found.warnings), *notes]
    _say_counts(data.summary, notes, screen)
    names = found.classes.names if found.classes is not None else ()
    endings = _ENDINGS.get(form, ())
    page = preview_html(data.train, tokenizer, recipe.data_name, counts, classes=names, endings=endings)
    write_atomic(run.examples_page, page)
    screen.fact("preview", f"{run.examples_page} shows token by token what is trained on")
    return data


def _shown(found: Examined, data: StageData, count: int) -> Sequence[Record]:
    """Return the rows whose answers are shown: held-out ones where there are any, and of several sets some of each."""
    if found.eval_data is not None or len(found.sets) == 1:
        return _to_show(found.held_records or found.train_records, data.held_out or data.train, count)
    share, more = divmod(count, len(found.sets))
    return [
        record
        for index, (part, examples) in enumerate(zip(found.sets, data.sets))
        for record in _to_show(part.held or part.train, examples.held or examples.train, share + (index < more))
    ]


def _to_show(records: Sequence[Record], examples: Sequence[Example], count: int) -> Sequence[Record]:
    """Return the rows whose answers are shown: of pairs those of the first examples, of rated answers good ones."""
    if any(isinstance(record, Preference) for record in records[:1]):
        wanted = [examples[index].source for index in range(min(count, len(examples)))]
        by_source: dict[str, Record] = {}
        for record in records:
            if len(by_source) == len(wanted):
                break
            if record.source in wanted:
                by_source[record.source] = record
        return [by_source[source] for source in wanted]
    if any(isinstance(record, Rated) for record in records[:1]):
        good = list(islice((r for r in records if isinstance(r, Rated) and r.is_good), count))
        return good or records[:count]
    return records[:count]


def check_fingerprint(found: Examined, run: RunDir) -> None:
    """Remember what the data are, or compare them with what the run was started with.

    Raises:
        RunError: they differ.
    """
    assert found.data is not None
    held = found.eval_data
    now = {"data": fingerprint(found.data.files), "eval_data": fingerprint(held.files) if held is not None else None}
    if found.general:
        now["general"] = [fingerprint(records.files) for _, records in found.general]
    if found.measures:
        now["evaluate"] = [fingerprint(cases.files) for _, cases in found.measures]
    if found.watched:
        now["forgetting"] = [fingerprint(records.files) for _, records in found.watched]
    if not run.fingerprint.is_file():
        write_json(run.fingerprint, now)
    elif json.loads(run.fingerprint.read_text(encoding="utf-8")) != now:
        raise RunError(
            Problem(
                "The data have changed since this run was started, so it cannot go on as if nothing had happened.",
                where=", ".join(str(f) for f in found.data.files[:3]),
                remedy="put the old data back, or start a new run",
            )
        )


def histogram(lengths: np.ndarray) -> dict[str, list[float]]:
    """Return how many sequences have which length: bars between edges, in tokens."""
    low, high = int(lengths.min()), int(lengths.max()) + 1
    counts, edges = np.histogram(lengths, bins=min(HISTOGRAM_BARS, high - low), range=(low, high))
    return {"edges": [round(float(e), 2) for e in edges], "counts": [int(c) for c in counts]}


def prompt_text(record: Record) -> str:
    """Return what a person reads as the prompt of a record."""
    from luthier.evaluate.measure import opening

    if isinstance(record, Text):
        return opening(record)
    if isinstance(record, Labelled):
        return "\n".join(part for part in (record.text, record.pair) if part)
    asked = prompt_of(record)
    turns = conversation(asked).messages if isinstance(asked, Conversation | PromptAnswer) else ()
    return "\n".join(m.content for m in turns if m.role != "assistant" and m.content)


def _class_name(record: Record, classes: Classes | None) -> str:
    if classes is None or not isinstance(record, Labelled):
        return ""
    return ", ".join(classes.names[classes.labels.index(label)] for label in record.every_label) or "none"


def _rest(record: Record) -> str:
    return record.text[:300] if isinstance(record, Text) else ""


def _summary(found: Examined, said: Counts, lengths: np.ndarray) -> dict[str, object]:
    """Return what report.json says of the data: rows read = rows to train on + rows held out of them."""
    assert found.data is not None
    counts = {key: value for key, value in said.items() if key != "notes"}
    return {
        "files": [str(f) for f in found.data.files],
        "format": found.data.format,
        **counts,
        "rows": len(found.data),
        "train_rows": len(found.train_records),
        "held_out_rows": len(found.held_records),
        "lengths": histogram(lengths),
        **({"numbers": asdict(found.numbers)} if found.numbers is not None else {}),
        **({"classes": dict(zip(found.classes.names, found.classes.counts))} if found.classes is not None else {}),
    }


def _unused(records: Records) -> list[str]:
    names = [*_strings(records.counts["unused_columns"]), *_strings(records.counts["unused_files"])]
    return [*_strings(records.counts["notes"]), *([f"Not used: {', '.join(names)}"] if names else [])]


def _strings(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _one_line(problem: Problem) -> str:
    return " ".join(str(problem).split())


def _say_counts(summary: dict[str, object], notes: Sequence[str], screen: Screen) -> None:
    counts = {key: value for key, value in summary.items() if isinstance(value, int)}
    trained, tokens = counts["trained_tokens"], counts["tokens"]
    share = trained / max(tokens, 1)
    each = {"classes": "labelled", "numbers": "one number each"}
    labelled = next((said for key, said in each.items() if key in summary), "")
    learnt = labelled or (f"{trained:,} trained on ({share:.0%})" if trained else "to be answered")
    text = f"{counts['examples']:,} sequences, {tokens:,} tokens, {learnt}"
    left_out = [f"{counts[key]:,} {key}" for key in ("dropped", "truncated", "windows") if counts.get(key)]
    screen.fact("sequences", text + (f"; {', '.join(left_out)}" if left_out else ""))
    for note in notes:
        screen.note(note)
