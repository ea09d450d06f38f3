"""`luthier check RECIPE`: everything wrong with a recipe, its model and its data, found without torch and at once."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from luthier.cli.messages import print_json, show_problems, stdout
from luthier.core.errors import Problem, UserError
from luthier.doctor.quick import quick_look
from luthier.doctor.quick import summary as quick_summary
from luthier.run.config import Recipe
from luthier.run.draft import read_draft
from luthier.run.examine import Examined, examine, longest_sequence
from luthier.run.mistakes import mistakes, pipeline_mistakes
from luthier.run.mixing import shares_of, stream_of
from luthier.run.numbers import byte_size, count, setting
from luthier.run.pipeline import examine_pipeline, has_stages, read_pipeline


def run(recipe: Path | None, overrides: Sequence[str] = (), json: bool = False, json_schema: bool = False) -> None:
    """Check a recipe and print what would be trained, or print the schema of recipes.

    Raises:
        UserError: with every problem of the recipe, the model folder and the data.
    """
    if json_schema:
        from luthier.run.schema import recipe_schema

        print_json(recipe_schema())
        return
    if recipe is None:
        raise UserError(Problem("There is no recipe to check.", "luthier check", "write luthier check recipe.yaml"))
    if has_stages(recipe):
        _check_stages(recipe, overrides, json)
        return
    found = examine(read_draft(recipe, overrides))
    summary = summarize(found.require(), found)
    if json:
        told = {"warnings": _told(found.warnings), "notes": _told(mistakes(found, language="en"))}
        print_json({"ok": True, **summary, **told})
        return
    show_problems([*found.warnings, *mistakes(found)])
    console = stdout()
    for label, text in _lines(summary):
        console.print(f"{label:>14}  {text}", markup=False, highlight=False)
    again = shlex.join([str(recipe), *overrides])
    console.print(f"{'':>14}  All is well. Train it with: luthier train {again}", markup=False)


def _check_stages(recipe: Path, overrides: Sequence[str], json: bool) -> None:
    """Check every stage of a pipeline, and print each."""
    found = examine_pipeline(read_pipeline(recipe, overrides))
    pipeline = found.require()
    stages = []
    for planned, examined in zip(pipeline.stages, found.stages):
        assert examined.recipe is not None
        stages.append((planned, summarize(examined.recipe, examined)))
    if json:
        parts = [{"name": planned.name, **summary} for planned, summary in stages]
        notes = _told(pipeline_mistakes(found, "en"))
        print_json({"ok": True, "stages": parts, "warnings": _told(found.problems), "notes": notes})
        return
    show_problems([*found.problems, *pipeline_mistakes(found)])
    console = stdout()
    for planned, summary in stages:
        console.print(f"\n{planned.index + 1}. {planned.name}", style="bold")
        begins = (
            "the base" if planned.source is None else f"{pipeline.stages[planned.source].name} ({planned.keys.adapter})"
        )
        for label, text in [("starts from", begins), *_lines(summary)]:
            console.print(f"{label:>14}  {text}", markup=False, highlight=False)
    console.print(
        f"{'':>14}  All is well. Train it with: luthier train {shlex.join([str(recipe), *overrides])}", markup=False
    )


def _told(problems: Sequence[Problem]) -> list[dict[str, str]]:
    return [problem.as_dict() for problem in problems]


def summarize(recipe: Recipe, found: Examined) -> dict[str, object]:
    """Return what would be trained, and every value that the recipe leaves to Luthier."""
    assert found.data is not None
    settled = recipe.resolved()
    looked = quick_look(found.train_records, found.held_records)
    sizes = [len(part.train) for part in found.sets]
    stream = stream_of(recipe, sizes)
    # Long texts are cut into pieces, and how many is known only when they are tokens.
    counts_rows = recipe.objective.data_form != "text"
    steps = stream.total_steps(recipe.epochs, recipe.step_limit) if counts_rows or recipe.step_limit else None
    steps = steps if recipe.allowance is None else None
    return {
        "model": {
            "path": recipe.model.path,
            "folder": str(found.model.folder) if found.model.folder else None,
            "architecture": found.model.architecture if found.model.config else None,
            "parameters": found.model.parameters,
            "stored_bytes": found.model.stored_bytes,
            "stored_as": list(found.model.dtypes),
            "context_length": found.model.context_length,
        },
        "method": recipe.method.model_dump(mode="json"),
        "objective": recipe.objective.model_dump(mode="json"),
        "data": {
            "path": recipe.data_name,
            "format": found.data.format,
            "why": found.data.why,
            "rows": len(found.data),
            "held_out_rows": len(found.held_records),
            "files": [str(path) for path in found.data.files],
            "sets": [
                {
                    "name": part.name,
                    "path": spec.path,
                    "format": part.records.format,
                    "rows": len(part.records),
                    "held_out_rows": len(part.held),
                    # Of texts that are cut into pieces, the share is by pieces, and these are not known yet.
                    "share": share if counts_rows else None,
                }
                for part, spec, share in zip(found.sets, recipe.data_sets, shares_of(recipe, sizes))
            ],
        },
        "doctor": {"summary": quick_summary(looked), **looked.as_dict()},
        "derived": {
            "learning_rate": settled.learning_rate,
            "max_length": longest_sequence(recipe, found.model),
            "steps_at_most": steps,
            "final_checkpoint": settled.final_checkpoint,
        },
        "recipe": recipe.dump(),
    }


def _lines(summary: dict) -> list[tuple[str, str]]:
    model, data, derived = summary["model"], summary["data"], summary["derived"]
    size = f"{count(model['parameters'])} parameters" if model["parameters"] else "random weights"
    if model["architecture"] is None:
        about = f"{model['path']}: a hub model, to be downloaded"
    else:
        stored = (
            f", {byte_size(model['stored_bytes'])} as {'/'.join(model['stored_as'])}" if model["parameters"] else ""
        )
        about = f"{model['path']}: {model['architecture']}, {size}{stored}"
    held_out = f", {data['held_out_rows']:,} held out" if data["held_out_rows"] else ""
    steps = derived["steps_at_most"]
    sets = data["sets"] if len(data["sets"]) > 1 else []
    mixed = [("", f"{s['name']}: {s['rows']:,} rows{_share(s['share'])}, read as {s['format']}") for s in sets]
    return [
        ("model", about),
        ("method", _component(summary["method"])),
        ("objective", _component(summary["objective"])),
        ("data", f"{data['rows']:,} rows of {data['path']}{held_out}, read as {data['format']} ({data['why']})"),
        *mixed,
        ("doctor", summary["doctor"]["summary"]),
        ("steps", f"{steps:,}" if steps is not None else "as many as the texts have pieces of max_length"),
        ("learning rate", setting(derived["learning_rate"])),
        ("max length", f"{derived['max_length']:,} tokens"),
    ]


def _share(share: float | None) -> str:
    return f", {share:.1%} of every step" if share is not None else ""


def _component(fields: dict[str, object]) -> str:
    """Return the kind and the values that are set; what is off or empty is left out."""
    told = {n: v for n, v in fields.items() if n != "kind" and v not in (None, False, [], {}, "", "default")}
    rest = ", ".join(f"{name} {_value(value)}" for name, value in told.items())
    return f"{fields['kind']} ({rest})" if rest else str(fields["kind"])


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return setting(value) if isinstance(value, float) else str(value)
