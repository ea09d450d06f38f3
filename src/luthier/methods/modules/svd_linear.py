"""AdaLoRA's layer and its budget: updates in the form of a singular value decomposition, pruned by importance.

Shape legend: I inputs, O outputs, R initial rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from peft.tuners.adalora import SVDLinear
from torch import Tensor, nn

from luthier.methods.base import trainable
from luthier.methods.modules.lora_linear import fused_lora
from luthier.methods.modules.peft_files import ADAPTER, PREFIX, injected_config

if TYPE_CHECKING:
    from peft import AdaLoraConfig
    from transformers import PreTrainedModel

REST = "adalora_pruned_rows.safetensors"
IMPORTANCE, UNCERTAINTY = "importance/", "uncertainty/"


class FusedSvdLinear(SVDLinear):
    """PEFT's layer with the product folded into the weight wherever that gives the same result."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        base = cast("nn.Linear", self.get_base_layer())
        plain = not (args or kwargs or self.disable_adapters or self.merged) and self.active_adapters == [ADAPTER]
        plain = plain and type(base) is nn.Linear and not base.weight.requires_grad
        drops = self.training and not isinstance(self.lora_dropout[ADAPTER], nn.Identity)
        a_RI, e_R1, b_OR = self.lora_A[ADAPTER], self.lora_E[ADAPTER], self.lora_B[ADAPTER]
        exact = x.dtype == base.weight.dtype == a_RI.dtype == torch.float32
        if not plain or drops or not exact or torch.is_autocast_enabled(x.device.type):
            return super().forward(x, *args, **kwargs)
        return fused_lora(x, base.weight, base.bias, a_RI * e_R1, b_OR, _scale(self))


def _scale(layer: SVDLinear) -> float:
    return layer.scaling[ADAPTER] / (layer.r[ADAPTER] + 1e-5)  # the same sum as in PEFT's forward


def fuse(model: nn.Module) -> None:
    """Give PEFT's layers in the model the fused forward."""
    for module in model.modules():
        if type(module) is SVDLinear:
            module.__class__ = FusedSvdLinear


def svd_layers(model: nn.Module) -> dict[str, SVDLinear]:
    """Return AdaLoRA's layers by full name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, SVDLinear)}


def orthogonality(model: nn.Module) -> Tensor:
    """Return the mean of ‖AAᵀ − I‖ and ‖BᵀB − I‖ over all layers (Frobenius norms): 0 for singular vectors."""
    parts = []
    for layer in svd_layers(model).values():
        a_RI, b_OR = layer.lora_A[ADAPTER].float(), layer.lora_B[ADAPTER].float()
        for gram_RR in (a_RI @ a_RI.t(), b_OR.t() @ b_OR):
            parts.append(torch.linalg.norm(gram_RR - torch.eye(len(gram_RR), device=gram_RR.device)))
    return torch.stack(parts).mean()


def importance_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the running averages of every trained number's importance, at zero."""
    names = {n: p for n, p in trainable(model).items() if ".lora_" in n}
    return {f"{kind}{n}": torch.zeros_like(p) for kind in (IMPORTANCE, UNCERTAINTY) for n, p in names.items()}


@torch.no_grad()
def note_importance(model: nn.Module, state: dict[str, Tensor], beta1: float, beta2: float) -> None:
    """Add the step's sensitivity |w · ∂L/∂w| to the running averages (equations 9 to 11 of the paper)."""
    for name, parameter in trainable(model).items():
        smooth, spread = state.get(IMPORTANCE + name), state.get(UNCERTAINTY + name)
        if smooth is None or spread is None or parameter.grad is None:
            continue
        now = (parameter * parameter.grad).abs()
        smooth.mul_(beta1).add_(now, alpha=1 - beta1)
        spread.mul_(beta2).add_((now - smooth).abs(), alpha=1 - beta2)


@torch.no_grad()
def prune(model: PreTrainedModel, state: dict[str, Tensor], budget: int) -> dict[str, Tensor]:
    """Set the least important singular values to zero until `budget` of them are left; return what is kept, (R,) bool."""

    def score(name: str) -> Tensor:
        return state[IMPORTANCE + name] * state[UNCERTAINTY + name]

    scores = {}
    for name in svd_layers(model):
        a, e, b = (score(f"{name}.lora_{part}.{ADAPTER}") for part in "AEB")
        scores[name] = e.view(-1) + (a.mean(dim=1) + b.mean(dim=0))
    every = torch.cat(list(scores.values()))
    if budget >= len(every):
        return {name: torch.ones_like(values, dtype=torch.bool) for name, values in scores.items()}
    threshold = torch.kthvalue(every, len(every) - budget)[0]
    kept = {name: values > threshold for name, values in scores.items()}
    keep(model, kept)
    return kept


@torch.no_grad()
def keep(model: PreTrainedModel, kept: dict[str, Tensor]) -> None:
    """Set every singular value that is not kept to zero."""
    for name, layer in svd_layers(model).items():
        layer.lora_E[ADAPTER].masked_fill_(~kept[name].view(-1, 1), 0.0)


def final_ranks(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """Return what is kept of each layer once the budget is final, else None."""
    pattern = cast("AdaLoraConfig", injected_config(model)).rank_pattern
    return {n.removesuffix(".lora_E"): torch.tensor(kept) for n, kept in pattern.items()} if pattern else None


def settle_ranks(model: PreTrainedModel, kept: dict[str, Tensor] | None) -> None:
    """Note the final ranks where PEFT looks for them; None while they still change."""
    pattern = {f"{n}.lora_E": mask.tolist() for n, mask in kept.items()} if kept is not None else None
    cast("AdaLoraConfig", injected_config(model)).rank_pattern = pattern


def split_pruned(tensors: dict[str, Tensor], kept: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Divide the tensors of a file into the rows that are kept (what PEFT opens) and the pruned ones.

    The pruned rows are without effect, but a resumed run needs them: they are still in the orthogonality term.
    """
    whole, rest = dict(tensors), {}
    for name, mask in kept.items():
        for part in "AEB":
            key = f"{PREFIX}{name}.lora_{part}"
            full = tensors[key]
            whole[key], rest[key] = (full[:, m] if part == "B" else full[m] for m in (mask, ~mask))
    return whole, rest


def join_pruned(tensors: dict[str, Tensor], rest: dict[str, Tensor], kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the full tensors; without `rest` the pruned rows are zero."""
    joined = dict(tensors)
    for name, mask in kept.items():
        for part in "AEB":
            key = f"{PREFIX}{name}.lora_{part}"
            some = tensors[key].t() if part == "B" else tensors[key]
            full = some.new_zeros(len(mask), some.shape[1])
            full[mask] = some
            if key in rest:
                full[~mask] = rest[key].t() if part == "B" else rest[key]
            joined[key] = (full.t() if part == "B" else full).contiguous()
    return joined


def read_rest(folder: Path) -> dict[str, Tensor]:
    """Return the pruned rows beside an adapter; empty where they were not kept."""
    from luthier.methods.base import read_tensors

    return read_tensors(folder / REST) if (folder / REST).is_file() else {}
