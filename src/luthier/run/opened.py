"""Open what a run made: the base model with the trained tensors in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.rundir import PIPELINE, RESOLVED, STATE, RunDir, StageDir, final_checkpoint, last_stage, read_json
from luthier.models.files import inspect_model
from luthier.run.begin import lay_under
from luthier.run.config import Recipe, build_component, require_recipe
from luthier.run.draft import Draft

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.models.loaded import LoadedModel


@dataclass(frozen=True)
class OpenedRun:
    """A run whose model is in memory.

    Attributes:
        model: base model with the method applied and its tensors loaded.
        checkpoint: the folder they came from.
    """

    run: RunDir
    recipe: Recipe
    model: LoadedModel
    checkpoint: Path


def kept_recipe(run: RunDir) -> Draft:
    """Return the recipe that a run was started with, with absolute paths, not yet checked."""
    values = read_json(run.resolved).get("recipe")
    return Draft.of_mapping(values if isinstance(values, dict) else {})


def load_for(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase | None = None,
    classes: Sequence[str] | None = None,
    multi_label: bool | None = None,
) -> LoadedModel:
    """Load the model of a recipe as its method wants it, before the method is applied.

    `classes`: their names, for a classifier; `multi_label`: whether several may apply to a text.

    Raises:
        ModelError: anything about the folder or the weights that a user has to mend.
    """
    from luthier.core.threads import set_threads
    from luthier.models.load import load_model

    model = load_model(
        recipe.model.path,
        base=recipe.base,
        revision=recipe.model.revision,
        dtype=recipe.dtype,
        trust_remote_code=recipe.model.trust_remote_code,
        from_scratch=recipe.model.from_scratch,
        seed=recipe.seed,
        frozen_in_16_bits=recipe.method.freezes_most,
        base_bits=recipe.method.base_bits,
        base_quantization=recipe.method.base_quantization,
        tokenizer=tokenizer,
        classes=classes,
        multi_label=multi_label,
    )
    set_threads(model.module)
    return model


def run_labels(run: RunDir) -> dict[str, str] | None:
    """Return label → name of the classes that a run learns, in the order of its logits; None for a language model."""
    run = RunDir(last_stage(run.path))
    written = [stage.labels for stage in run.stages() if stage.labels.is_file()]
    if not written:
        return None
    kept = read_json(written[-1])
    labels, names = kept.get("labels"), kept.get("names")
    assert isinstance(labels, list) and isinstance(names, list)  # noqa: PT018
    return {str(label): str(name) for label, name in zip(labels, names)}


def is_multi_label(target: str) -> bool:
    """Return whether a run or a model's folder says of each class whether it applies."""
    if not is_run(target):
        return inspect_model(target)[0].config.get("problem_type") == "multi_label_classification"
    return run_is_multi_label(RunDir.open(Path(target)))


def run_is_multi_label(run: RunDir) -> bool:
    """Return whether a run learns of each class whether it applies."""
    run = RunDir(last_stage(run.path))
    written = [stage.labels for stage in run.stages() if stage.labels.is_file()]
    return bool(written) and read_json(written[-1]).get("multi_label") is True


def target_labels(target: str) -> dict[str, str] | None:
    """Return label → name of the classes that a run or a model's folder tells apart; None for a language model."""
    if is_run(target):
        return run_labels(RunDir.open(Path(target)))
    classes = inspect_model(target)[0].classes
    return None if classes is None else {name: name for name in classes}


def with_chosen_method(recipe: Recipe, file: Path) -> Recipe:
    """Return the recipe with the method that `file` holds; as it is where there is none (runs of older versions)."""
    if not file.is_file():
        return recipe
    return recipe.model_copy(update={"method": build_component("method", read_json(file))})


def open_run(path: Path, checkpoint: Path | None = None) -> OpenedRun:
    """Load a run's model as training left it, tokenizer and template from the checkpoint.

    Raises:
        RunError: no run, no checkpoint, or the base model's weights are not the ones it was trained on.
    """
    import torch

    from luthier.models.load import load_tokenizer
    from luthier.train.checkpoint import require_base

    run = RunDir.open(path)
    recipe = require_recipe(kept_recipe(run))
    chosen = checkpoint or final_checkpoint(run)
    labels = run_labels(run)
    names = None if labels is None else list(labels.values())
    model = load_for(recipe, load_tokenizer(str(chosen)), names, None if names is None else run_is_multi_label(run))
    require_base(str(read_json(chosen / STATE).get("base_fingerprint")), model)
    folder = StageDir(chosen.parents[1])
    lay_under(model, folder)
    recipe = with_chosen_method(recipe, folder.method)
    torch.manual_seed(recipe.seed)
    recipe.method.prepare(model.module)
    recipe.method.load(model.module, chosen)
    model.name = str(path)
    return OpenedRun(run, recipe, model, chosen)


def open_target(target: str) -> tuple[LoadedModel, Recipe | None]:
    """Return the model of a run folder with the run's recipe, or any model by folder, hub id or `starter`.

    Raises:
        UserError: neither is there, or it cannot be opened.
    """
    if is_run(target):
        opened = open_run(Path(target))
        return opened.model, opened.recipe
    from luthier.core.threads import set_threads
    from luthier.models.load import load_model

    labels = target_labels(target)
    model = load_model(target, classes=None if labels is None else list(labels.values()))
    set_threads(model.module)
    return model, None


def is_run(target: str) -> bool:
    """Return whether a name is meant as a run: there is one, or there is nothing by that name among other runs."""
    path = Path(target)
    if (path / PIPELINE).is_file():
        return True
    if (path / RESOLVED).is_file():
        return True
    return target != "starter" and not path.exists() and any(path.parent.glob(f"*/{RESOLVED}"))
