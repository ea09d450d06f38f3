"""Open what a run made: the base model with the trained tensors in place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import Problem, RunError
from luthier.core.rundir import RunDir
from luthier.run.config import Recipe, parse_recipe

if TYPE_CHECKING:
    from luthier.models.causal import CausalModel


@dataclass(frozen=True)
class OpenedRun:
    """A run whose model is in memory.

    Attributes:
        model: base model with the method applied and its tensors loaded.
        checkpoint: the folder they came from.
    """

    run: RunDir
    recipe: Recipe
    model: CausalModel
    checkpoint: Path


def run_recipe(run: RunDir) -> Recipe:
    """Return the recipe that a run was started with."""
    kept = json.loads(run.resolved.read_text(encoding="utf-8"))
    return parse_recipe(kept["recipe"], base=Path(kept["base"]) if kept.get("base") else None)


def final_checkpoint(run: RunDir) -> Path:
    """Return the checkpoint that is the run's result: the one the report names, else the newest complete one.

    Raises:
        RunError: there is no complete checkpoint yet.
    """
    if run.report.is_file():
        named = json.loads(run.report.read_text(encoding="utf-8")).get("final_checkpoint")
        if named and (run.path / named / "DONE").is_file():
            return run.path / named
    complete = [c for stage in run.stages() for c in stage.complete_checkpoints()]
    if not complete:
        remedy = f"let it train: luthier resume {run.path}"
        raise RunError(Problem("The run has no complete checkpoint yet.", str(run.path), remedy))
    return complete[-1]


def open_run(path: Path, checkpoint: Path | None = None) -> OpenedRun:
    """Load a run's model as training left it, tokenizer and template from the checkpoint.

    Raises:
        RunError: no run, no checkpoint, or the base model's weights are not the ones it was trained on.
    """
    import torch

    from luthier.models.load import load_model, load_tokenizer

    run = RunDir.open(path)
    recipe = run_recipe(run)
    chosen = checkpoint or final_checkpoint(run)
    model = load_model(
        recipe.model.path,
        base=recipe.base,
        revision=recipe.model.revision,
        dtype=recipe.dtype,
        trust_remote_code=recipe.model.trust_remote_code,
        from_scratch=recipe.model.from_scratch,
        seed=recipe.seed,
        frozen_in_16_bits=recipe.method.freezes_most,
    )
    state = json.loads((chosen / "trainer_state.json").read_text(encoding="utf-8"))
    if state["base_fingerprint"] != model.fingerprint:
        raise RunError(
            Problem(
                "The base model's weights are not those the run was trained on.",
                where=model.path,
                remedy="put the original model back",
            )
        )
    torch.manual_seed(recipe.seed)
    recipe.method.apply(model.module)
    recipe.method.load(model.module, chosen)
    model.tokenizer = load_tokenizer(str(chosen))
    model.name = str(path)
    return OpenedRun(run, recipe, model, chosen)
