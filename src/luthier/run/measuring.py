"""What a stage measures before and after training: losses, tasks, and answers to the same samples."""

from __future__ import annotations

import json
from collections.abc import Sequence

from luthier.core.batch import Example
from luthier.core.rundir import StageDir, write_atomic, write_json
from luthier.evaluate.classes import class_scores, predict_texts
from luthier.evaluate.measure import Score, answer, exact_match, held_out_loss
from luthier.evaluate.numbers import number_scores, rate_texts
from luthier.evaluate.preferences import calibration_error, preference_scores, reward_differences, reward_texts
from luthier.run.forgetting import general_scores
from luthier.run.limits import HELD_OUT
from luthier.run.stage_run import StageRun


def measured_before(stage: StageRun) -> tuple[dict[str, dict], list[dict[str, str]]]:
    """Return the measures and samples of the untrained model; a resumed run finds them on disk."""
    if stage.folder.eval.is_file() and stage.folder.samples.is_file():
        results = json.loads(stage.folder.eval.read_text(encoding="utf-8"))
        samples = [json.loads(line) for line in stage.folder.samples.read_text(encoding="utf-8").splitlines()]
        return {"before": results["before"]}, samples
    scores, answers = measure(stage)
    samples = [
        {"prompt": s.prompt, "reference": s.reference, "before": text} for s, text in zip(stage.data.samples, answers)
    ]
    write_samples(stage.folder, samples)
    write_json(stage.folder.eval, {"before": scores})
    return {"before": scores}, samples


def measure(stage: StageRun) -> tuple[dict[str, dict], list[str]]:
    """Return every measure by name, and the sample answers. Where several sets hold rows out, each has its own."""
    data, scores = stage.data, {}
    if data.held_out:
        scores |= _held_out_scores(stage, data.held_out)
    for name, examples in data.held_sets.items():
        scores |= {f"{key} ({name})": score for key, score in _held_out_scores(stage, examples).items()}
    rest, answers = _rest(stage)
    return {**scores, **rest, **general_scores(stage)}, answers


def _held_out_scores(stage: StageRun, examples: Sequence[Example]) -> dict[str, dict]:
    """Return what is measured on held-out rows: the loss, and what the objective's kind of rows tells besides."""
    model, cut = stage.model, stage.engine.cut
    if stage.data.classes is not None:
        found = class_scores(model, examples, cut)
    elif stage.data.numbers is not None:
        found = number_scores(model, examples, cut)
    elif stage.recipe.objective.data_form in ("preference", "rated"):
        return _judged_scores(stage, "held-out", examples)
    elif stage.asking is not None:
        return stage.asking.scores(stage.engine, examples)
    else:
        return {HELD_OUT: held_out_loss(model, examples, cut).as_dict()}
    return {f"held-out {name}": score.as_dict() for name, score in found.items()}


def _judged_scores(stage: StageRun, name: str, examples: Sequence[Example]) -> dict[str, dict]:
    """Return how often the better answer wins."""
    measured, _ = stage.engine.measure(examples)
    found = preference_scores(measured, len(examples))
    if stage.recipe.objective.head == "value":
        error = calibration_error(reward_differences(stage.model, examples, stage.engine.cut))
        found["calibration error"] = Score("calibration_error", error, len(examples))
    return {f"{name} {metric}": score.as_dict() for metric, score in found.items()}


def _rest(stage: StageRun) -> tuple[dict[str, dict], list[str]]:
    """Return the tasks' measures, and what the model says of the samples."""
    if stage.data.classes is not None:
        return _measure_classes(stage)
    if stage.data.numbers is not None:
        return _measure_numbers(stage)
    data, model = stage.data, stage.model
    if stage.recipe.objective.data_form in ("preference", "rated") and stage.recipe.objective.head == "value":
        scores: dict[str, dict] = {}
        for task in data.tasks:
            scores |= _judged_scores(stage, task.name, task.examples)
        return scores, reward_texts(model, (data.held_out or data.train)[: len(data.samples)])
    return _measure_language(stage)


def _measure_language(stage: StageRun) -> tuple[dict[str, dict], list[str]]:
    """Return the tasks, and answers to the samples."""
    scores: dict[str, dict] = {}
    for task in stage.data.tasks:
        if task.metric == "loss":
            score = held_out_loss(stage.model, task.examples, stage.engine.cut)
        else:
            score, _ = exact_match(stage.model, task.records)
        scores[task.name] = score.as_dict()
    answers = answer(stage.model, [s.record for s in stage.data.samples], max_new_tokens=64)
    return scores, answers


def _measure_numbers(stage: StageRun) -> tuple[dict[str, dict], list[str]]:
    """Return the tasks' squared errors, and what samples are given."""
    model, data, cut = stage.model, stage.data, stage.engine.cut
    scores: dict[str, dict] = {}
    for task in data.tasks:
        scores[task.name] = number_scores(model, task.examples, cut)["MSE"].as_dict()
    shown = [sample.record for sample in data.samples]
    return scores, rate_texts(model, shown) if shown else []


def _measure_classes(stage: StageRun) -> tuple[dict[str, dict], list[str]]:
    """Return the tasks, and the classes of the samples."""
    scores: dict[str, dict] = {}
    model, data = stage.model, stage.data
    for task in data.tasks:
        scores[task.name] = class_scores(model, task.examples, stage.engine.cut)[task.metric].as_dict()
    names = data.classes.names if data.classes is not None else ()
    shown = [sample.record for sample in data.samples]
    return scores, predict_texts(model, shown).named(names) if shown else []


def write_samples(folder: StageDir, rows: Sequence[dict[str, str]]) -> None:
    write_atomic(folder.samples, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
