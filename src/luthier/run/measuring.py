"""What a stage measures before and after training: losses, tasks, and answers to the same samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from luthier.core.batch import Example
from luthier.core.rundir import StageDir, write_atomic, write_json
from luthier.evaluate.classes import class_scores, predict_texts
from luthier.evaluate.measure import Score, answer, loss_sums, matches
from luthier.evaluate.numbers import number_scores, rate_texts
from luthier.evaluate.preferences import calibration_error, preference_scores, reward_differences, reward_texts
from luthier.evaluate.tasks.base import TaskResult, result_of
from luthier.run.forgetting import general_scores
from luthier.run.limits import HELD_OUT
from luthier.run.measured_tasks import as_row, differences, read_cases, task_results, write_cases
from luthier.run.stage_run import StageRun

Row = dict | TaskResult
"""A measure as eval.json has it, or with what each case gave."""


@dataclass
class Measured:
    """What was measured of a model at one time.

    Attributes:
        scores: every measure by name, as eval.json has it.
        answers: to the samples.
        results: those measures of which it is known what each case gave.
    """

    scores: dict[str, dict]
    answers: list[str]
    results: dict[str, TaskResult] = field(default_factory=dict)


def measured_before(stage: StageRun) -> tuple[dict[str, dict], list[dict[str, str]]]:
    """Return the measures and samples of the untrained model; a resumed run finds them on disk."""
    if stage.folder.eval.is_file() and stage.folder.samples.is_file():
        results = json.loads(stage.folder.eval.read_text(encoding="utf-8"))
        samples = [json.loads(line) for line in stage.folder.samples.read_text(encoding="utf-8").splitlines()]
        return {"before": results["before"]}, samples
    found = measure(stage)
    shown = zip(stage.data.samples, found.answers)
    samples = [{"prompt": s.prompt, "reference": s.reference, "before": text} for s, text in shown]
    write_cases(stage.folder, "before", found.results)
    write_samples(stage.folder, samples)
    write_json(stage.folder.eval, {"before": found.scores})
    return {"before": found.scores}, samples


def measured_after(stage: StageRun, before: dict[str, dict]) -> tuple[dict[str, dict], list[str]]:
    """Return the measures before and after, what changed on the same cases, and the sample answers; write them."""
    found = measure(stage)
    write_cases(stage.folder, "after", found.results)
    changed = differences(read_cases(stage.folder, "before"), found.results)
    results = {"before": before, "after": found.scores, **({"change": changed} if changed else {})}
    write_json(stage.folder.eval, results)
    return results, found.answers


def measure(stage: StageRun) -> Measured:
    """Return every measure by name, and the sample answers. Where several sets hold rows out, each has its own."""
    data, scores = stage.data, dict[str, Row]()
    if data.held_out:
        scores |= _held_out_scores(stage, data.held_out)
    for name, examples in data.held_sets.items():
        scores |= {f"{key} ({name})": score for key, score in _held_out_scores(stage, examples).items()}
    rest, answers = _rest(stage)
    scores |= {**rest, **task_results(stage)}
    rows = {name: as_row(score) if isinstance(score, TaskResult) else score for name, score in scores.items()}
    results = {name: score for name, score in scores.items() if isinstance(score, TaskResult)}
    return Measured({**rows, **general_scores(stage)}, answers, results)


def _held_out_scores(stage: StageRun, examples: Sequence[Example]) -> dict[str, Row]:
    """Return what is measured on held-out rows: the loss, and what the objective's kind of rows tells besides."""
    model, cut = stage.model, stage.engine.cut
    if stage.data.classes is not None:
        found = class_scores(model, examples, cut)
    elif stage.data.numbers is not None:
        found = number_scores(model, examples, cut)
    elif stage.recipe.objective.data_form in ("preference", "rated"):
        return _judged_scores(stage, "held-out", examples)
    elif stage.asking is not None:
        return dict(stage.asking.scores(stage.engine, examples))
    else:
        return {HELD_OUT: _loss(stage, HELD_OUT, examples)}
    return {f"held-out {name}": score.as_dict() for name, score in found.items()}


def _judged_scores(stage: StageRun, name: str, examples: Sequence[Example]) -> dict[str, Row]:
    """Return how often the better answer wins."""
    measured, _ = stage.engine.measure(examples)
    found = preference_scores(measured, len(examples))
    if stage.recipe.objective.head == "value":
        error = calibration_error(reward_differences(stage.model, examples, stage.engine.cut))
        found["calibration error"] = Score("calibration_error", error, len(examples))
    return {f"{name} {metric}": score.as_dict() for metric, score in found.items()}


def _rest(stage: StageRun) -> tuple[dict[str, Row], list[str]]:
    """Return the tasks' measures, and what the model says of the samples."""
    if stage.data.classes is not None:
        return _measure_classes(stage)
    if stage.data.numbers is not None:
        return _measure_numbers(stage)
    data, model = stage.data, stage.model
    if stage.recipe.objective.data_form in ("preference", "rated") and stage.recipe.objective.head == "value":
        scores: dict[str, Row] = {}
        for task in data.tasks:
            scores |= _judged_scores(stage, task.name, task.examples)
        return scores, reward_texts(model, (data.held_out or data.train)[: len(data.samples)])
    return _measure_language(stage)


def _measure_language(stage: StageRun) -> tuple[dict[str, Row], list[str]]:
    """Return the tasks, and answers to the samples."""
    scores: dict[str, Row] = {}
    for task in stage.data.tasks:
        if task.metric == "loss":
            scores[task.name] = _loss(stage, task.name, task.examples)
        else:
            scores[task.name] = result_of(task.name, "exact_match", matches(stage.model, task.records)[0])
    answers = answer(stage.model, [s.record for s in stage.data.samples], max_new_tokens=64)
    return scores, answers


def _loss(stage: StageRun, name: str, examples: Sequence[Example]) -> TaskResult:
    """Return the loss per supervised token, with what each example adds to it."""
    sums_N2 = loss_sums(stage.model, examples, stage.engine.cut)
    details = {"tokens": sum(example.trained_tokens for example in examples)}
    return result_of(name, "loss", sums_N2, higher_is_better=False, details=details)


def _measure_numbers(stage: StageRun) -> tuple[dict[str, Row], list[str]]:
    """Return the tasks' squared errors, and what samples are given."""
    model, data, cut = stage.model, stage.data, stage.engine.cut
    scores: dict[str, Row] = {}
    for task in data.tasks:
        scores[task.name] = number_scores(model, task.examples, cut)["MSE"].as_dict()
    shown = [sample.record for sample in data.samples]
    return scores, rate_texts(model, shown) if shown else []


def _measure_classes(stage: StageRun) -> tuple[dict[str, Row], list[str]]:
    """Return the tasks, and the classes of the samples."""
    scores: dict[str, Row] = {}
    model, data = stage.model, stage.data
    for task in data.tasks:
        scores[task.name] = class_scores(model, task.examples, stage.engine.cut)[task.metric].as_dict()
    names = data.classes.names if data.classes is not None else ()
    shown = [sample.record for sample in data.samples]
    return scores, predict_texts(model, shown).named(names) if shown else []


def write_samples(folder: StageDir, rows: Sequence[dict[str, str]]) -> None:
    write_atomic(folder.samples, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
