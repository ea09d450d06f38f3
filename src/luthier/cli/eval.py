"""`luthier eval RUN_OR_MODEL --data FILE`: the loss on any file; of classifiers and judged answers, accuracy too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from luthier.cli.messages import print_json, stdout
from luthier.core.errors import DataError, Problem, UserError
from luthier.core.rundir import RunDir
from luthier.data.labelled import LabelledRenderer, Numbers, fit_classes
from luthier.data.load import Objective as Purpose
from luthier.data.load import has_documents, load_records
from luthier.data.reasoning import stripped
from luthier.data.records import Preference, Rated, Record
from luthier.data.spec import DataSpec
from luthier.models.files import inspect_model
from luthier.run.datasets import check_fingerprint
from luthier.run.examine import DEFAULT_MAX_LENGTH, examine
from luthier.run.opened import is_multi_label, is_run, kept_recipe, open_target, target_labels


@dataclass(frozen=True)
class _Rows:
    """What is measured on: the records, and how they are named and were read."""

    records: Sequence[Record]
    name: str
    format: str


def run(
    target: str,
    data: Path | None = None,
    json: bool = False,
    limit: int | None = None,
    max_length: int | None = None,
    train_on: Literal["assistant", "all", "last"] | None = None,
    chat_template: str | None = None,
) -> None:
    """Measure a run or a model on `data`, or on what the run held out."""
    # As for training: the rows are checked before the model is loaded.
    rows = _held_out(target, limit) if data is None else _given(target, data, limit)
    if any(isinstance(record, Preference | Rated) for record in rows.records[:1]):
        _judged(target, rows, json, max_length)
        return
    if target_labels(target) is not None:
        _classified(target, rows, json, max_length)
        return
    model, recipe = open_target(target)

    from luthier.data.render import Renderer
    from luthier.evaluate.measure import held_out_loss

    is_text = has_documents(rows.records) or (recipe is not None and recipe.objective.data_form == "text")
    longest = min(model.context_length or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)
    renderer = Renderer(
        model.tokenizer,
        objective_kind="lm" if is_text else "sft",
        train_on=train_on or (recipe.train_on if recipe is not None else "assistant"),
        max_length=max_length or (recipe.max_length if recipe is not None else None) or longest,
        # A measurement goes on where training would stop and ask; what was cut or left out is counted below.
        on_overlong="drop" if recipe is not None and recipe.on_overlong == "drop" else "truncate",
        chat_template=chat_template,
        hides_reasoning=recipe is not None and recipe.reasoning == "hidden" and train_on != "all" and not is_text,
    )
    alone = recipe is not None and recipe.reasoning == "stripped"
    rendered = renderer.render_all([stripped(r) for r in rows.records] if alone else rows.records)
    score = held_out_loss(model, rendered.store)
    result = {
        "loss": score.value,
        "tokens": score.tokens,
        "perplexity": math.exp(min(score.value, 700)),
        "rows": len(rows.records),
        "sequences": score.n,
        "dropped": rendered.counts["dropped"],
        "truncated": rendered.counts["truncated"],
        "format": rows.format,
        "model": target,
        "data": rows.name,
    }
    if json:
        print_json(result)
        return
    console = stdout()
    console.print(f"{target} on {rows.name} ({rows.format}, {len(rows.records):,} rows)")
    measured = f"{score.value:.4f} nats per supervised token, perplexity {result['perplexity']:.2f}"
    console.print(f"  loss {measured}, {score.tokens:,} tokens")
    if result["dropped"] or result["truncated"]:
        console.print(f"  {result['dropped']} rows left out, {result['truncated']} cut at the maximum length")


def _classified(target: str, rows: _Rows, json: bool, max_length: int | None) -> None:
    """Measure a classifier: loss, accuracy and macro-F1."""
    labels = target_labels(target)
    assert labels is not None
    if len(labels) == 1:
        _rated(target, rows, json, max_length)
        return
    classes = fit_classes(labels, rows.records, is_multi_label(target))
    model, recipe = open_target(target)

    from luthier.evaluate.classes import class_scores

    longest = min(model.context_length or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)
    limit = max_length or (recipe.max_length if recipe is not None else None) or longest
    rendered = LabelledRenderer(model.tokenizer, classes, (), limit, "truncate").render_all(rows.records)
    scores = class_scores(model, rendered.store)
    loss, accuracy, f1 = (scores[name].value for name in ("loss", "accuracy", "macro-F1"))
    if json:
        result = {"loss": loss, "accuracy": accuracy, "macro_f1": f1, "rows": len(rows.records)}
        result |= {"micro_f1": scores["micro-F1"].value} if "micro-F1" in scores else {}
        more = {"truncated": rendered.counts["truncated"], "classes": list(classes.names)}
        print_json({**result, **more, "format": rows.format, "model": target, "data": rows.name})
        return
    console = stdout()
    console.print(f"{target} on {rows.name} ({rows.format}, {len(rows.records):,} rows)")
    console.print(f"  loss {loss:.4f} nats per row, accuracy {accuracy:.1%}, macro-F1 {f1:.1%}")
    if "micro-F1" in scores:
        console.print(f"  every class right in {accuracy:.1%} of the rows, micro-F1 {scores['micro-F1'].value:.1%}")
    if rendered.counts["truncated"]:
        console.print(f"  {rendered.counts['truncated']} cut at the maximum length")


def _rated(target: str, rows: _Rows, json: bool, max_length: int | None) -> None:
    """Measure a model that gives texts a number: its errors, and how well both sides agree."""
    model, recipe = open_target(target)

    from luthier.evaluate.numbers import number_scores

    longest = min(model.context_length or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)
    limit = max_length or (recipe.max_length if recipe is not None else None) or longest
    numbers = Numbers(1.0, 0.0, 0.0, 0.0)  # nothing is learnt, so nothing has to be scaled
    rendered = LabelledRenderer(model.tokenizer, numbers, (), limit, "truncate").render_all(rows.records)
    scores = {score.metric: score.value for score in number_scores(model, rendered.store).values()}
    if json:
        more = {"rows": len(rows.records), "truncated": rendered.counts["truncated"], "format": rows.format}
        print_json({**scores, **more, "model": target, "data": rows.name})
        return
    console = stdout()
    console.print(f"{target} on {rows.name} ({rows.format}, {len(rows.records):,} rows)")
    agree = f"R² {scores['r2']:.3f}, Pearson {scores['pearson']:.3f}, Spearman {scores['spearman']:.3f}"
    console.print(f"  mean squared error {scores['mse']:.4g}, mean absolute error {scores['mae']:.4g}, {agree}")
    if rendered.counts["truncated"]:
        console.print(f"  {rendered.counts['truncated']} cut at the maximum length")


def _judged(target: str, rows: _Rows, json: bool, max_length: int | None) -> None:
    """Measure a run on judged answers: how often the better one wins, and by how much."""
    from luthier.run.judged import judging_objective, measure_judged

    objective = judging_objective(target)
    assert objective is not None
    found = measure_judged(target, rows.records, objective, max_length)
    counts = found.rendered.counts
    if json:
        result = {name.replace(" ", "_"): score.value for name, score in found.scores.items()}
        more = {"rows": len(rows.records), "dropped": counts["dropped"], "truncated": counts["truncated"]}
        print_json({**result, **more, "format": rows.format, "model": target, "data": rows.name})
        return
    console = stdout()
    console.print(f"{target} on {rows.name} ({rows.format}, {len(rows.records):,} rows)")
    units = {"loss": ".4f", "margin": ".3f", "accuracy": ".1%", "calibration error": ".1%"}
    console.print("  " + ", ".join(f"{name} {score.value:{units[name]}}" for name, score in found.scores.items()))
    if counts["dropped"] or counts["truncated"]:
        console.print(f"  {counts['dropped']} rows left out, {counts['truncated']} cut at the maximum length")


def _spec(target: str, data: Path, limit: int | None) -> DataSpec:
    """Return how to read the file: the columns of a run's own data hold for files like them."""
    if not is_run(target):
        return DataSpec(path=str(data), limit=limit)
    kept = kept_recipe(RunDir.open(Path(target))).values.get("data")
    columns = kept.get("columns") if isinstance(kept, dict) else None
    if not columns or target_labels(target) is None:
        return DataSpec(path=str(data), limit=limit)
    return DataSpec(path=str(data), limit=limit, columns=columns)


def _given(target: str, data: Path, limit: int | None) -> _Rows:
    """Read the file that was named, and tell what is wrong with it and with the model's folder at once."""
    from luthier.run.judged import fits, judging_objective

    problems = [] if is_run(target) else inspect_model(target)[1]
    labels = None if problems else target_labels(target)
    objective = None if problems else judging_objective(target)
    form: Purpose = "lm" if labels is None else "regress" if len(labels) == 1 else "classify"
    try:
        spec = _spec(target, data, limit)
        # Of a policy the loss on plain answers can be measured too; a reward model has nothing to say of them.
        if objective is not None and (objective.head == "value" or fits(spec, objective)):
            form = cast("Purpose", objective.data_form)  # pairs or ratings, which are called the same there
        records = load_records(spec, objective=form)
    except UserError as error:
        raise (UserError if problems else type(error))(*problems, *error.problems) from error
    if problems:
        raise UserError(*problems)
    return _Rows(records.records, str(data), records.format)


def _held_out(target: str, limit: int | None) -> _Rows:
    """Return the rows that a run set aside; the same ones, so the data have to be what they were.

    Raises:
        UserError: the target is no run, or its recipe holds nothing out.
    """
    if not is_run(target):
        raise DataError(Problem("There is nothing to measure on.", target, "name the rows with --data FILE"))
    run = RunDir.open(Path(target))
    found = examine(kept_recipe(run))
    recipe = found.require()
    if not found.held_records or found.data is None:
        remedy = "name the rows with --data FILE"
        raise DataError(Problem("The run held no rows out to measure on.", str(run.path), remedy))
    check_fingerprint(found, run)
    source = found.eval_data or found.data
    name = recipe.eval_data.path if recipe.eval_data is not None else f"the rows held out of {recipe.data_name}"
    return _Rows(found.held_records[:limit], name, source.format)
