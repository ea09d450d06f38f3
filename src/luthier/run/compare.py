"""Compare variants of one recipe: each an ordinary run in a process of its own, at the same data, order and budget.

    base: quickstart.yaml               # a recipe beside this file; or none, and everything under `recipe`
    recipe: {learning_rate: null}       # keys changed in the base for all
    models: [starter, my-model]         # optional: every variant on each of them
    variants:                           # a method's name, or the keys that differ
      lora: lora
      lora-64: {method: {kind: lora, rank: 64}, learning_rate: 1e-3}

A variant may change how is trained, not on what or how much, so that the rows of the table can be held against each
other; steps and tokens are compared afterwards as well. Finished runs are not repeated, interrupted ones go on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from luthier.core.errors import Interrupted, Problem, RecipeError, RunError, UserError, did_you_mean
from luthier.core.paths import locate
from luthier.core.rundir import RunDir, read_json, write_atomic, write_json
from luthier.run.config import Recipe, require_recipe
from luthier.run.draft import Draft
from luthier.run.examine import examine
from luthier.run.outcomes import Outcome, Table, outcome_of
from luthier.run.yaml_lines import Document, read_document, write_yaml

MAY_DIFFER = (
    "method",
    "learning_rate",
    "optimizer",
    "schedule",
    "warmup_ratio",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "dtype",
    "micro_batch_size",
    "packing",
    "gradient_checkpointing",
)
"""Keys that a variant may change. The others decide what is trained on, how much, and what is measured."""
_KEYS = ("base", "recipe", "models", "variants")


@dataclass(frozen=True)
class Variant:
    """One run to be made.

    Attributes:
        recipe: with absolute paths.
        refused: why the method cannot train this model; the run is left out and the table says so.
    """

    name: str
    recipe: Recipe
    refused: str = ""


@dataclass
class Contest:
    """A comparison as its file describes it."""

    path: Path
    variants: list[Variant] = field(default_factory=list)


def read_contest(path: Path, overrides: Sequence[str] = ()) -> Contest:
    """Return what a file compares; `overrides` change the recipe that all variants share.

    Raises:
        RecipeError: with everything that is wrong with the file or any of its variants.
    """
    document = read_document(path)
    problems = _wrong_keys(document, path)
    if problems:
        raise RecipeError(*problems)
    shared = _shared(document, path, overrides)
    contest = Contest(path)
    given = document.values["variants"]
    variants = given if isinstance(given, Mapping) else {str(name): name for name in given}  # type: ignore[union-attr]
    models = document.values.get("models")
    for model in models if isinstance(models, list) else [None]:
        for name, said in variants.items():
            keys = {"method": said} if isinstance(said, str) else dict(said)
            place = f"{path}: variants.{name}"
            wrong = [key for key in keys if str(key).partition(".")[0] not in MAY_DIFFER]
            if wrong:
                problems.append(_uneven(wrong[0], place))
                continue
            if model is not None:
                keys["model"] = model
            full_name = str(name) if model is None or len(models) == 1 else f"{_model_name(model)}--{name}"  # type: ignore[arg-type]
            try:
                contest.variants.append(_variant(full_name, shared, keys))
            except UserError as error:
                problems += [replace(p, where=f"{place}: {p.where}") for p in error.problems]
    if not problems and all(v.refused for v in contest.variants):
        problems += [Problem(v.refused, f"{path}: variants.{v.name}") for v in contest.variants]
    if problems:
        raise RecipeError(*problems)
    return contest


def carry_out(contest: Contest, out: Path, tell: Callable[[str], None]) -> Table:
    """Make the runs that are missing, one after the other, and return the table; it is written after every run.

    Args:
        out: the folder of the runs and of the table.
        tell: hears what is going on.

    Raises:
        RunError: the folder holds a run of another recipe.
        Interrupted: the user stopped it; called again it goes on.
    """
    waiting = [(v, RunDir(out / v.name)) for v in contest.variants]
    others = [run for variant, run in waiting if not variant.refused and _is_other(variant, run)]
    if others:
        remedy = "choose another folder with --out, or delete it"
        raise RunError(*(Problem("The folder holds a run of another recipe.", str(r.path), remedy) for r in others))
    rows: list[Outcome] = []
    for index, (variant, run) in enumerate(waiting):
        said = f"{index + 1}/{len(waiting)} {variant.name}"
        if variant.refused:
            tell(f"{said}: left out. {variant.refused}")
            rows.append(Outcome(variant.name, str(run.path), refused=variant.refused))
            continue
        failure = ""
        if _is_finished(run):
            tell(f"{said}: finished before")
        else:
            tell(f"{said}: {'goes on' if run.resolved.is_file() else 'starts'}")
            failure = _train(variant, run, out, contest.path)
        rows.append(Outcome(variant.name, str(run.path), failed=failure) if failure else outcome_of(run, variant.name))
        if failure:
            tell(f"{said}: failed. {failure}")
        write_table(Table(rows), out)
    return Table(rows)


def compare_runs(paths: Sequence[Path]) -> Table:
    """Return the table of runs that exist, from their reports.

    Raises:
        RunError: one of them is no run, or not finished.
    """
    rows, problems = [], []
    for path in paths:
        try:
            run = RunDir.open(path)
        except RunError as error:
            problems += error.problems
            continue
        if not _is_finished(run):
            remedy = f"go on with it: luthier resume {path}"
            problems.append(Problem("The run is not finished.", str(path), remedy))
            continue
        rows.append(outcome_of(run, path.resolve().name))
    if problems:
        raise RunError(*problems)
    return Table(rows)


def write_table(table: Table, out: Path) -> None:
    """Write comparison.md and comparison.json into a folder.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    write_atomic(out / "comparison.md", table.markdown())
    write_json(out / "comparison.json", table.as_dict())


# ---------------------------------------------------------------------- reading


def _wrong_keys(document: Document, path: Path) -> list[Problem]:
    values = document.values

    def place(key: str) -> str:
        return f"{path}:{document.lines.get((key,), 1)}"

    problems = [
        Problem(
            f'There is no key "{key}".{did_you_mean(str(key), _KEYS)}', place(key), f"choose from: {', '.join(_KEYS)}"
        )
        for key in values
        if key not in _KEYS
    ]
    if not values.get("base") and not values.get("recipe"):
        problems.append(Problem("There is no recipe to vary.", str(path), "name one: base: quickstart.yaml"))
    if values.get("base") is not None and not isinstance(values["base"], str):
        problems.append(Problem("base is the path of a recipe.", place("base"), "write base: quickstart.yaml"))
    if not isinstance(values.get("recipe") or {}, dict):
        problems.append(Problem("recipe holds keys of a recipe.", place("recipe"), "write recipe: {max_steps: 20}"))
    if not isinstance(values.get("models") or [], list):
        problems.append(Problem("models is a list.", place("models"), "write models: [starter, my-model]"))
    return problems + _wrong_variants(values.get("variants"), place("variants"))


def _wrong_variants(given: object, place: str) -> list[Problem]:
    example = "write variants: {lora: lora, wide: {method: {kind: lora, rank: 64}}}"
    if not isinstance(given, dict | list) or not given:
        return [Problem("There are no variants.", place, example)]
    if isinstance(given, list):
        bad = [item for item in given if not isinstance(item, str)]
        twice = {item for item in given if given.count(item) > 1} if not bad else set()
        if twice:
            return [Problem(f'The variant "{sorted(twice)[0]}" is there twice.', place, "name it once")]
    else:
        bad = [name for name, said in given.items() if not isinstance(said, str | dict)]
        odd = [name for name in given if PurePath(str(name)).name != str(name)]
        if odd:
            return [Problem(f'"{odd[0]}" cannot name a folder.', place, "leave out slashes")]
    return [Problem(f'The variant "{bad[0]}" is neither a method nor keys.', place, example)] if bad else []


def _shared(document: Document, path: Path, overrides: Sequence[str]) -> Draft:
    """Return the recipe that all variants start from."""
    folder = path.resolve().parent
    values: Mapping[str, object] = {}
    named = document.values.get("base")
    if isinstance(named, str):
        base = locate(named, (folder, Path.cwd()))
        values, folder = read_document(base).values, base.resolve().parent
    changes = document.values.get("recipe")
    draft = Draft.of_mapping(values, _as_overrides(changes if isinstance(changes, dict) else {}), folder)
    if draft.problems:
        raise RecipeError(*draft.problems)
    # Each step anew: a key typed on the command line wins over the file's, which is no contradiction.
    draft = Draft.of_mapping(draft.values, overrides, folder)
    if draft.problems:
        raise RecipeError(*draft.problems)
    return draft


def _variant(name: str, shared: Draft, keys: Mapping[str, object]) -> Variant:
    draft = Draft.of_mapping(shared.values, _as_overrides(keys), shared.base)
    recipe = require_recipe(draft).located()
    found = examine(draft)
    reasons = [p.what for p in found.recipe_problems if p.severity == "error"]
    if reasons and not [p for p in (*found.model_problems, *found.data_problems) if p.severity == "error"]:
        return Variant(name, recipe, refused=" ".join(reasons))
    found.require()
    return Variant(name, recipe)


def _as_overrides(keys: Mapping[str, object]) -> list[str]:
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()]


def _uneven(key: str, place: str) -> Problem:
    if key in Recipe.model_fields:
        what = f"{key} may not differ between variants: the rows of the table could not be held against each other."
        remedy = "use models for several models" if key == "model" else f"set {key} for all, under recipe"
        return Problem(what, place, remedy)
    return Problem(
        f'There is no key "{key}".{did_you_mean(key, MAY_DIFFER)}',
        place,
        f"variants may change: {', '.join(MAY_DIFFER)}",
    )


def _model_name(model: object) -> str:
    path = model.get("path") if isinstance(model, Mapping) else model
    return PurePath(str(path)).name


# ---------------------------------------------------------------------- running


def _keys(variant: Variant, run: RunDir) -> dict[str, object]:
    return {**variant.recipe.dump(), "run": str(run.path)}


def _is_other(variant: Variant, run: RunDir) -> bool:
    if not run.resolved.is_file():
        return run.path.is_dir() and any(run.path.iterdir())
    wanted = json.loads(json.dumps(_keys(variant, run)))
    return read_json(run.resolved).get("recipe") != wanted


def _is_finished(run: RunDir) -> bool:
    return run.report.is_file() and read_json(run.report).get("status") == "finished"


def _train(variant: Variant, run: RunDir, out: Path, contest: Path) -> str:
    """Train in a process of its own, so that its peak memory is its own; return why it failed, or nothing.

    Linux starts a child's peak at its parent's size, so this process must stay small: it never imports torch.
    """
    recipe = out / "recipes" / f"{variant.name}.yaml"
    write_atomic(recipe, write_yaml(_keys(variant, run)))
    words = ["resume", str(run.path)] if run.resolved.is_file() else ["train", str(recipe)]
    with (out / "recipes" / f"{variant.name}.log").open("a", encoding="utf-8") as log:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "luthier", *words, "--json"], stdout=subprocess.PIPE, stderr=log, text=True
            )
        except KeyboardInterrupt:  # the run, in the same terminal, has heard it too and saves itself
            raise Interrupted(f"Stopped at {variant.name}; go on with: luthier compare {contest}") from None
    if done.returncode == Interrupted.exit_code:
        raise Interrupted(f"Stopped at {variant.name}; go on with: luthier compare {contest}")
    return "" if done.returncode == 0 else _reason(done.stdout) or f"see {log.name}"


def _reason(printed: str) -> str:
    try:
        return " ".join(problem["what"] for problem in json.loads(printed)["error"]["problems"])
    except (ValueError, KeyError, TypeError):
        return ""
