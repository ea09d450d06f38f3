"""Folders of trained mixtures: whole models that transformers opens, and adapters of experts that PEFT opens."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor

from luthier.methods.base import read_tensors
from luthier.methods.full import read_whole_model
from luthier.methods.modules import moe_experts
from luthier.methods.modules.moe_experts import UPDATE, LoraExperts, merged_weights, update_of
from luthier.methods.modules.peft_files import (
    ADAPTER,
    PREFIX,
    WEIGHTS,
    adapter_tensors,
    head_modules,
    own_names,
    task_type,
    write_adapter,
)
from luthier.models.mixture import Mixture, mixtures

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel


def save_whole(model: PreTrainedModel, folder: Path) -> None:
    """Write a complete folder; trained copies of experts stand where their slices are."""
    state = {n: t for n, t in model.state_dict().items() if f".experts.{UPDATE}." not in n}
    for layer in mixtures(model):
        state |= {f"{layer.name}.experts.{n}": t for n, t in merged_weights(layer.experts).items()}
    model.save_pretrained(folder, state_dict=state)


def read_whole(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """Return what `save_whole` wrote, and the slices that trained copies take under the copies' names.

    Raises:
        RunError: the file is missing or damaged.
    """
    tensors = read_whole_model(model, folder)
    for layer in mixtures(model):
        update = update_of(layer.experts)
        for part in ("gate_up_proj", "down_proj") if update is not None else ():
            fused = tensors.get(f"{layer.name}.experts.{part}")
            if fused is not None and update is not None:
                tensors[f"{layer.name}.experts.{UPDATE}.{part}"] = fused[list(update.chosen)]
    return tensors


def save_adapter(model: PreTrainedModel, folder: Path, base: str, rank: int, alpha: float, trains_router: bool) -> None:
    """Write low-rank updates of experts as PEFT's `target_parameters`, with what else is trained.

    Experts that are not trained are zero in PEFT's tensors, which hold all of a layer's.
    """
    layers = mixtures(model)
    tensors = {n: t for n, t in adapter_tensors(model).items() if f".experts.{UPDATE}." not in n}
    for layer in layers:
        laid_out = moe_experts.peft_tensors(cast("LoraExperts", update_of(layer.experts)), layer.count)
        tensors |= {_place(layer) + n: t for n, t in laid_out.items()}
    config = _peft_config(model, rank, alpha)
    block = layers[0].name.rpartition(".")[2]
    config.target_parameters = [f"{block}.experts.gate_up_proj", f"{block}.experts.down_proj"]
    config.modules_to_save = [f"{block}.gate"] if trains_router else None
    write_adapter(folder, config, tensors, base, head_modules(model))


def read_adapter(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """Return what `save_adapter` wrote under the model's own names.

    Raises:
        RunError: the file is missing or damaged.
    """
    tensors = read_tensors(folder / WEIGHTS)
    for layer in mixtures(model):
        place = _place(layer)
        laid_out = {n.removeprefix(place): tensors.pop(n) for n in list(tensors) if n.startswith(place)}
        if laid_out:
            own = moe_experts.own_tensors(cast("LoraExperts", update_of(layer.experts)), layer.count, laid_out)
            tensors |= {f"{layer.name}.experts.{UPDATE}.{n}": t for n, t in own.items()}
    return own_names(model, tensors)


def _place(layer: Mixture) -> str:
    return f"{PREFIX}{layer.name}.experts."


def _peft_config(model: PreTrainedModel, rank: int, alpha: float) -> LoraConfig:
    """Return the config of what PEFT has injected outside of the experts, or one that injects nothing there."""
    from peft import LoraConfig

    injected = getattr(model, "peft_config", None)
    if injected is not None:
        return cast("LoraConfig", copy.copy(injected[ADAPTER]))
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=[], task_type=task_type(model))  # type: ignore[arg-type]
