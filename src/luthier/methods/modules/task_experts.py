"""Task experts: what was trained apart, each on its own data, becomes the experts of one mixture.

Branch-Train-MiX, Sukhbaatar et al. 2024, arXiv:2403.07816. Each run starts from the same dense model; where only the
feed-forwards were trained (`method: {kind: layers, patterns: ["*.mlp.*"]}`), the experts share the rest exactly.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from luthier.core.component import component_class
from luthier.core.errors import ModelError, Problem
from luthier.methods.base import CARD, Method
from luthier.methods.modules.peft_files import CONFIG
from luthier.models.mixture import dense_shapes, join_into

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def join_runs(model: PreTrainedModel, runs: Sequence[str], top_k: int, seed: int = 0) -> None:
    """Make a dense model the mixture of others in place; see `join_into`.

    Args:
        runs: folders of models, or checkpoints of runs.

    Raises:
        ModelError: one cannot be opened or has other tensors; the architecture has no mixture.
    """
    shapes = dense_shapes(model)
    join_into(model, (dense_tensors(run, shapes) for run in runs), len(runs), top_k, seed)


def dense_tensors(run: str, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Return the float32 tensors of a model's folder or a checkpoint's, what was trained merged, on the host.

    Raises:
        ModelError: there is no such folder, or names and shapes are not `shapes`.
        RunError: the method cannot be merged.
    """
    path = Path(run)
    if not path.is_dir():
        remedy = "name the folder of a finished run, or of a model"
        raise ModelError(Problem(f"There is no run {run}.", where="method.join", remedy=remedy))
    tensors = {n: p.detach().float().cpu() for n, p in _merged(path).named_parameters()}
    other = sorted(n for n in shapes.keys() | tensors.keys() if n not in tensors or shapes.get(n) != tensors[n].shape)
    if other:
        what = f"{run} is no model of the base's sizes: {len(other)} tensors differ, such as {other[0]}."
        raise ModelError(Problem(what, where="method.join", remedy="join runs that were trained from the same base"))
    return tensors


def _merged(folder: Path) -> PreTrainedModel:
    """Return the plain model of a folder: a whole model, an adapter for PEFT, or a method's tensors on their base."""
    if (folder / CONFIG).is_file():
        return _merged_adapter(folder)
    if (folder / CARD).is_file():
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        values = cast("dict[str, object]", card["method"])
        method = component_class("method", str(values["kind"])).model_validate(values)
        model = plain_model(str(card["base_model"]))
        cast("Method", method).prepare(model)
        cast("Method", method).load(model, folder)
        return cast("Method", method).merge(model)
    return plain_model(str(folder))


def _merged_adapter(folder: Path) -> PreTrainedModel:
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning:
        what, remedy = "An adapter that adds prompts cannot become an expert.", "join runs of full, layers or lora"
        raise ModelError(Problem(what, where=str(folder), remedy=remedy))
    adapted = PeftModel.from_pretrained(plain_model(str(config.base_model_name_or_path)), str(folder))
    return cast("PreTrainedModel", adapted.merge_and_unload(safe_merge=True))  # type: ignore[operator]


def plain_model(folder: str) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    return cast("PreTrainedModel", AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
