"""`luthier plan RECIPE|MODEL --params`: what would be trained, from the model's config alone."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.cli.layout import print_facts, print_table
from luthier.cli.messages import print_json, stdout
from luthier.core.errors import Problem, UserError
from luthier.run.config import require_recipe
from luthier.run.draft import read_draft
from luthier.run.numbers import percent

if TYPE_CHECKING:
    from luthier.run.parameters import Counted, MethodCounts

_RECIPE_ENDINGS = (".yaml", ".yml", ".json")


def run(target: str, overrides: Sequence[str] = (), params: bool = False, json: bool = False) -> None:
    """Print what a recipe would train, or what every method would train of a model.

    Raises:
        UserError: with everything wrong with the recipe, the config, or what the method is asked to train.
    """
    if not params:
        remedy = f"write luthier plan {target} --params for the parameters that would be trained"
        raise UserError(Problem("There is nothing to plan.", "luthier plan", remedy))
    is_recipe = Path(target).suffix in _RECIPE_ENDINGS or Path(target).is_file()
    if not is_recipe and overrides:
        remedy = "give a recipe, or leave them out to see every method with its default settings"
        raise UserError(Problem("A model has no keys to change.", str(overrides[0]), remedy))
    # Imports torch, which a recipe that is wrong must not wait for.
    if is_recipe:
        draft = read_draft(Path(target), overrides)
        require_recipe(draft)
        from luthier.run.parameters import count_recipe

        _show_recipe(count_recipe(draft), json)
        return
    from luthier.run.parameters import count_methods

    _show_methods(count_methods(target), json)


def _show_recipe(counted: Counted, as_json: bool) -> None:
    share = counted.trainable_parameters / counted.total_parameters
    if as_json:
        print_json({**asdict(counted), "trainable_share": share})
        return
    facts = [
        ("model", f"{counted.model}: {counted.architecture}"),
        ("method", counted.method),
        ("trained", f"{counted.trainable_parameters:,} parameters, {percent(share)}"),
        ("in all", f"{counted.total_parameters:,} parameters"),
    ]
    print_facts(stdout(), facts)


def _show_methods(counts: MethodCounts, as_json: bool) -> None:
    if as_json:
        rows = [{k: v for k, v in asdict(m).items() if v not in (None, "", {})} for m in counts.methods]
        print_json({**asdict(counts), "methods": rows})
        return
    console = stdout()
    console.print(f"{counts.model}: {counts.architecture}, {counts.total_parameters:,} parameters")
    console.print()
    rows = []
    for method in counts.methods:
        settings = ", ".join(f"{k}: {json_module.dumps(v)}" for k, v in method.settings.items())
        if method.trainable_parameters is None:
            rows.append(((method.kind, "bold cyan"), "–", "", (method.refused, "yellow")))
            continue
        share = percent(method.trainable_parameters / counts.total_parameters)
        rows.append(((method.kind, "bold cyan"), f"{method.trainable_parameters:,}", share, settings))
    print_table(console, ["method", "trained parameters", "of the base", ""], rows, right=(1, 2))
