"""`luthier check RECIPE`: everything wrong with a recipe, its model and its data, found without torch and at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from luthier.cli.messages import print_json, show_problems, stdout
from luthier.core.errors import Problem, RecipeError, UserError, did_you_mean
from luthier.data.load import Records, load_records, split
from luthier.data.records import Conversation
from luthier.data.spec import DataSpec
from luthier.data.stream import Stream
from luthier.data.templates import TEMPLATES
from luthier.models.files import ModelFacts, inspect_model
from luthier.run.config import ModelSpec, Recipe, parse_draft, parse_part
from luthier.run.draft import Draft, read_draft
from luthier.run.numbers import byte_size, count, number

DEFAULT_MAX_LENGTH = 2048
Objective = Literal["sft", "lm"]


@dataclass
class _Findings:
    """What was read on the way."""

    problems: list[Problem]
    model: ModelFacts | None = None
    data: Records | None = None
    held_out: Records | None = None


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
    parsed, found = examine(read_draft(recipe, overrides))
    if parsed is None or any(problem.severity == "error" for problem in found.problems):
        raise RecipeError(*found.problems)
    summary = summarize(parsed, found)
    if json:
        print_json({"ok": True, **summary, "warnings": [problem.as_dict() for problem in found.problems]})
        return
    show_problems(found.problems)
    console = stdout()
    for label, text in _lines(summary):
        console.print(f"{label:>14}  {text}")


def examine(draft: Draft) -> tuple[Recipe | None, _Findings]:
    """Read everything that a recipe names and collect what is wrong; a broken key does not hide what others name."""
    recipe, problems = parse_draft(draft)
    found = _Findings(list(problems))
    model = parse_part(draft, "model")
    if isinstance(model, ModelSpec):
        found.model, faults = inspect_model(
            model.path, draft.base, revision=model.revision, from_scratch=model.from_scratch
        )
        found.problems += faults
    objective = _objective(draft, recipe)
    data, held_out = parse_part(draft, "data"), parse_part(draft, "eval_data")
    if isinstance(data, DataSpec):
        found.data = _read(data, draft, objective, found)
    if isinstance(held_out, DataSpec):
        found.held_out = _read(held_out, draft, objective, found)
    for task in recipe.evaluate if recipe is not None else ():
        # A task may measure plain text whatever is trained on.
        _read(task.data, draft, "sft" if task.metric == "exact_match" else "lm", found)
    if recipe is not None and found.model is not None:
        known = set(found.problems)
        found.problems += [p for p in recipe.component_problems(found.model.config) if p not in known]
        found.problems += _mismatches(recipe, found)
    return recipe, found


def summarize(recipe: Recipe, found: _Findings) -> dict[str, object]:
    """Return what would be trained, and every value that the recipe leaves to Luthier."""
    assert found.model is not None
    assert found.data is not None
    settled = recipe.resolved()
    train = len(split(found.data.records, recipe.eval_fraction, recipe.seed)[0])
    stream = Stream(train, recipe.batch_size, recipe.seed)
    # Long texts are cut into pieces, and how many is known only when they are tokens.
    counts_rows = recipe.objective.data_form == "conversation"
    steps = stream.total_steps(recipe.epochs, recipe.max_steps) if counts_rows or recipe.max_steps else None
    held_out = len(found.held_out) if found.held_out is not None else len(found.data) - train
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
            "path": recipe.data.path,
            "format": found.data.format,
            "why": found.data.why,
            "rows": len(found.data),
            "held_out_rows": held_out,
            "files": [str(path) for path in found.data.files],
        },
        "derived": {
            "learning_rate": settled.learning_rate,
            "max_length": recipe.max_length
            or min(found.model.context_length or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH),
            "steps_at_most": steps,
            "final_checkpoint": settled.final_checkpoint,
        },
        "recipe": recipe.dump(),
    }


def _objective(draft: Draft, recipe: Recipe | None) -> Objective:
    if recipe is not None:
        return "lm" if recipe.objective.data_form == "text" else "sft"
    named = draft.values.get("objective")
    return "lm" if "lm" in (named, named.get("kind") if isinstance(named, dict) else None) else "sft"


def _read(spec: DataSpec, draft: Draft, objective: Objective, found: _Findings) -> Records | None:
    try:
        records = load_records(spec, draft.base, objective)
    except UserError as error:  # DataError, or a library that is not installed
        found.problems += error.problems
        return None
    found.problems += records.problems
    return records


def _mismatches(recipe: Recipe, found: _Findings) -> list[Problem]:
    """Return what does not fit between the recipe, the model and the data."""
    problems = []
    assert found.model is not None
    context = found.model.context_length
    if recipe.max_length is not None and context is not None and recipe.max_length > context:
        what = f"max_length is {recipe.max_length}, but the model was built for {context} positions."
        problems.append(Problem(what, recipe.place("max_length"), f"set max_length to {context} or less"))
    problems += _missing_template(recipe) + _missing_trackers(recipe)
    conversation = next((r for r in found.data.records if isinstance(r, Conversation)), None) if found.data else None
    is_without = bool(found.model.config) and not found.model.has_template and recipe.model.chat_template is None
    if conversation is not None and is_without and recipe.objective.data_form == "conversation":
        what = f"The model {recipe.model.path} has no chat template, so conversations cannot be written for it."
        remedy = "choose one: model.chat_template: chatml (or alpaca, plain, or a .jinja file)"
        problems.append(Problem(what, conversation.source, remedy))
    return problems


def _missing_template(recipe: Recipe) -> list[Problem]:
    name = recipe.model.chat_template
    if name is None or name in TEMPLATES or Path(name).expanduser().is_file():
        return []
    what = f'There is no chat template "{name}".{did_you_mean(name, TEMPLATES)}'
    remedy = f"choose one of {', '.join(sorted(TEMPLATES))}, or a .jinja file"
    return [Problem(what, recipe.place("model.chat_template"), remedy)]


def _missing_trackers(recipe: Recipe) -> list[Problem]:
    missing = [name for name in recipe.log_to if find_spec(name) is None]
    what = "log_to names {0}, which is not installed."
    return [Problem(what.format(n), recipe.place("log_to"), f'pip install "luthier[{n}]"') for n in missing]


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
    return [
        ("model", about),
        ("method", _component(summary["method"])),
        ("objective", _component(summary["objective"])),
        ("data", f"{data['rows']:,} rows of {data['path']}{held_out}, read as {data['format']} ({data['why']})"),
        ("steps", f"{steps:,}" if steps is not None else "as many as the texts have pieces of max_length"),
        ("learning rate", number(derived["learning_rate"])),
        ("max length", f"{derived['max_length']:,} tokens"),
        ("", "All is well. Train it with: luthier train"),
    ]


def _component(fields: dict[str, object]) -> str:
    rest = ", ".join(f"{name} {value}" for name, value in fields.items() if name != "kind" and value not in (None, []))
    return f"{fields['kind']} ({rest})" if rest else str(fields["kind"])
