"""PEFT's files: adapter_config.json and adapter_model.safetensors, written and read for layers inside a plain model.

A method puts PEFT's layers into the model itself (`inject`), so that the model keeps its class and its names; PEFT's own
saving wants a PeftModel around it. What PEFT calls a tensor in its files is the parameter's name without the
adapter's (`lora_A.default.weight` → `lora_A.weight`), behind one prefix; the few exceptions are in `file_name`.
"""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from luthier.core.errors import ModelError, Problem
from luthier.methods.base import head_parameters, read_tensors, trainable
from luthier.models.quantized import has_quantized, is_quantized, make_dense

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peft import LoraConfig, PeftConfig
    from transformers import PreTrainedModel

ADAPTER = "default"
PREFIX = "base_model.model."
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def inject(model: PreTrainedModel, config: PeftConfig) -> None:
    """Put the layers of a PEFT config into the model; what trains in them becomes float32, all else is frozen."""
    from peft import inject_adapter_in_model

    with warnings.catch_warnings():
        # PEFT looks for patterns among modules alone, although it honours them for fused experts too.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    to_float32(model)


def task_type(model: nn.Module) -> str:
    """Return PEFT's word for what the model does."""
    return "SEQ_CLS" if head_parameters(model) else "CAUSAL_LM"


def train_modules(model: nn.Module, names: list[str]) -> None:
    """Train whole modules in place; in the files they stand as PEFT's `modules_to_save`."""
    for name in names:
        if any(is_quantized(module) for module in model.get_submodule(name).modules()):
            remedy = "name modules without large matrices (norms, lm_head), or adapt this one as a target"
            what = f"{name} is kept in {'4' if model.is_loaded_in_4bit else '8'} bits, so it cannot be trained in full."  # type: ignore[union-attr]
            raise ModelError(Problem(what, "method.modules_to_save", remedy))
        for parameter in model.get_submodule(name).parameters():
            parameter.requires_grad_(True)
    to_float32(model)


def trained_modules(model: nn.Module) -> list[str]:
    """Return the modules that are trained in place, a classifier's head among them, as `modules_to_save` names them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, BaseTunerLayer))
    plain = [n.rpartition(".")[0] for n in trainable(model) if not n.startswith(adapted)]
    heads = head_modules(model)
    return [*heads, *sorted({n for n in plain if n.partition(".")[0] not in heads})]


def embedding_rows(model: PreTrainedModel, tokens: Sequence[str | int]) -> dict[str, list[int]] | None:
    """Return PEFT's `trainable_token_indices` for some rows of the token embedding.

    Raises:
        ModelError: a token is still a text (`choose` looks it up), or there is no such row.
    """
    if not tokens:
        return None
    embedding = model.get_input_embeddings()
    rows = int(embedding.weight.shape[0])  # type: ignore[index]
    outside = [t for t in tokens if not isinstance(t, int) or not 0 <= t < rows]
    if outside:
        what = f"The embedding has rows 0 to {rows - 1}, none for {outside[0]!r}."
        raise ModelError(Problem(what, "method.new_tokens", "give ids of rows that exist"))
    name = next(n for n, m in model.named_modules() if m is embedding)
    return {name: sorted({t for t in tokens if isinstance(t, int)})}


def head_modules(model: nn.Module) -> list[str]:
    """Return the modules of a classifier's head (`score`), as PEFT's `modules_to_save` names them."""
    # A new pooler stands inside the backbone (`bert.pooler.dense`); all else is a child beside it.
    backbone = f"{model.base_model_prefix}."
    names = head_parameters(model)
    return sorted({n.rpartition(".")[0] if n.startswith(backbone) else n.partition(".")[0] for n in names})


def file_name(name: str) -> str:
    """Return the name that a trained parameter has in PEFT's file."""
    name = name.replace(f".modules_to_save.{ADAPTER}.", ".")
    name = name.replace(f".lora_magnitude_vector.{ADAPTER}.weight", ".lora_magnitude_vector")
    return PREFIX + re.sub(rf"\.{ADAPTER}(?=\.|$)", "", name)


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained tensors, a classifier's head included, under their names in PEFT's file."""
    return {file_name(n): p.detach() for n, p in trainable(model).items()}


def own_names(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors from PEFT's file under the model's own names, for `Method.load_state_dict`."""
    names = {file_name(n): n for n in trainable(model)}
    return {names.get(n, n): t for n, t in tensors.items()}


def write_adapter(
    folder: Path, config: PeftConfig, tensors: dict[str, Tensor], base: str, modules: Sequence[str] = ()
) -> None:
    """Write the two files of an adapter.

    Args:
        config: as it was injected; it is not changed.
        tensors: under the names of PEFT's file.
        base: what the adapter opens on.
        modules: what is trained in place (`trained_modules`), which PEFT then takes from the file.
    """
    from safetensors.torch import save_file

    written = copy.copy(config)
    written.base_model_name_or_path = base
    written.inference_mode = True
    if modules:
        written.modules_to_save = list(modules)  # type: ignore[attr-defined]
    written.save_pretrained(str(folder))
    contiguous = {n: t.detach().contiguous().cpu() for n, t in tensors.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})


def save_adapter(model: PreTrainedModel, folder: Path, base: str) -> None:
    """Write the model's injected adapter and its head as PEFT opens them."""
    write_adapter(folder, injected_config(model), adapter_tensors(model), base, trained_modules(model))


def injected_config(model: PreTrainedModel) -> LoraConfig:
    """Return the config whose layers stand in the model."""
    return cast("LoraConfig", model.peft_config[ADAPTER])


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of an adapter's folder.

    Raises:
        RunError: the file is missing or damaged.
    """
    return read_tensors(folder / WEIGHTS)


def fold_in(model: PreTrainedModel) -> PreTrainedModel:
    """Fold every adapter into the weights beside it and take PEFT's layers out again."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    found = (BaseTunerLayer, ModulesToSaveWrapper, TrainableTokensWrapper)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, found)}
    if has_quantized(model):  # the sum of a matrix in few bits and its update needs more bits
        from luthier.methods.modules.quantized_lora import make_dense as make_dense_below

        for module in layers.values():
            make_dense_below(module)
        make_dense(model)
    for module in layers.values():
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)  # type: ignore[operator]
    for name, module in layers.items():
        parent, _, last = name.rpartition(".")
        if any(name.startswith(f"{outer}.") for outer in layers):
            continue  # goes out with the layer around it
        if isinstance(module, ModulesToSaveWrapper):
            plain = module.modules_to_save[ADAPTER]
        elif isinstance(module, TrainableTokensWrapper):
            plain = module.token_adapter.get_base_layer()
        else:
            plain = module.get_base_layer()
        setattr(model.get_submodule(parent), last, plain)
    forget_peft(model)
    return model


def forget_peft(model: PreTrainedModel) -> None:
    """Take away the marks by which transformers takes a model for one with adapters."""
    if hasattr(model, "peft_config"):
        del model.peft_config
        model._hf_peft_config_loaded = False


def to_float32(model: nn.Module) -> None:
    """Make every trained tensor float32; PEFT creates them in the dtype of the weights beside them."""
    for parameter in trainable(model).values():
        if parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
