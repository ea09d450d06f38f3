"""PiSSA: LoRA that starts from the principal singular vectors of the weight (Meng et al. 2024, arXiv:2404.02948).

The paper trains A and B beside the residual W − s·B₀A₀. Here W itself is never touched: a layer computes
(W + s·(BA − B₀A₀))·x with the start A₀, B₀ kept as constants. The result is the same, the frozen weights keep their bits, and
the file is an ordinary adapter of twice the rank, [A; A₀] and [B, −B₀], that opens on the original model (the form into
which PEFT converts a PiSSA adapter).

Shape legend: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from luthier.methods.modules.lora_linear import FusedLoraLinear, factors, fused_lora
from luthier.methods.modules.peft_files import ADAPTER, file_name

if TYPE_CHECKING:
    from peft import LoraConfig

LARGEST_EXACT = 1024
"""Above this many rows and columns the singular vectors come from a randomised decomposition: the exact one of a
4096 × 11008 matrix takes a minute on a CPU, and the paper finds no difference."""
POWER_ITERATIONS = 16
OVERSAMPLING = 8


class PissaLinear(FusedLoraLinear):
    """A LoRA layer whose update counts from its own start."""

    start_a: Tensor
    start_b: Tensor

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        name = self._fusable_adapter(x, args, kwargs)
        if name is None:
            result = super().forward(x, *args, **kwargs)
            if self.disable_adapters or self.merged:
                return result
            inputs = x.to(self.start_a.dtype)
            return result - (inputs @ self.start_a.t() @ self.start_b.t() * self.scaling[ADAPTER]).to(result.dtype)
        base = cast("nn.Linear", self.get_base_layer())
        a, b = factors(self, name)
        a_RI = torch.cat((a.weight, self.start_a))
        b_OR = torch.cat((b.weight, -self.start_b), dim=1)
        return fused_lora(x, base.weight, base.bias, a_RI, b_OR, self.scaling[name])

    def get_delta_weight(self, adapter: str) -> Tensor:
        delta = super().get_delta_weight(adapter)
        start = self.start_b @ self.start_a * self.scaling[adapter]
        return delta - (start.t() if self.fan_in_fan_out else start).to(delta.dtype)


@torch.no_grad()
def start_from_principal(model: nn.Module) -> None:
    """Give every LoRA layer of the model the principal part of its weight as its start."""
    for module in model.modules():
        if not isinstance(module, FusedLoraLinear):
            continue
        module.__class__ = PissaLinear
        weight = cast("nn.Linear", module.get_base_layer()).weight.detach().float()
        weight_OI = weight.t() if module.fan_in_fan_out else weight
        rank, scale = module.r[ADAPTER], module.scaling[ADAPTER]
        if max(weight_OI.shape) <= LARGEST_EXACT:
            u, s, vh = torch.linalg.svd(weight_OI, full_matrices=False)
        else:
            width = min(rank + OVERSAMPLING, *weight_OI.shape)
            u, s, v = torch.svd_lowrank(weight_OI, q=width, niter=POWER_ITERATIONS)
            vh = v.t()
        root_R = (s[:rank] / scale).sqrt()
        a_RI, b_OR = root_R[:, None] * vh[:rank], u[:, :rank] * root_R
        short = rank - len(root_R)  # a rank above that of the matrix: what is left over starts at zero
        a_RI = nn.functional.pad(a_RI, (0, 0, 0, short)).contiguous()
        b_OR = nn.functional.pad(b_OR, (0, short)).contiguous()
        a, b = factors(module, ADAPTER)
        a.weight.copy_(a_RI)
        b.weight.copy_(b_OR)
        module.register_buffer("start_a", a_RI)
        module.register_buffer("start_b", b_OR)


def with_start(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of PEFT's file with each start appended: [A; A₀] and [B, −B₀]."""
    joined = dict(tensors)
    for name, layer in _layers(model).items():
        a, b = file_name(f"{name}.lora_A.weight"), file_name(f"{name}.lora_B.weight")
        joined[a] = torch.cat((tensors[a], layer.start_a))
        joined[b] = torch.cat((tensors[b], -layer.start_b), dim=1)
    return joined


@torch.no_grad()
def take_start(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the starts that `with_start` appended into the model, and return the tensors without them."""
    left = dict(tensors)
    for name, layer in _layers(model).items():
        a, b = file_name(f"{name}.lora_A.weight"), file_name(f"{name}.lora_B.weight")
        rank = layer.r[ADAPTER]
        if a not in left or b not in left or left[a].shape[0] != 2 * rank or left[b].shape[1] != 2 * rank:
            continue  # not of this form: `load_state_dict` names what does not fit
        layer.start_a.copy_(left[a][rank:])
        layer.start_b.copy_(-left[b][:, rank:])
        left[a], left[b] = left[a][:rank], left[b][:, :rank]
    return left


def of_twice_the_rank(config: LoraConfig) -> LoraConfig:
    """Return the config of the joined file: ranks doubled, alphas so that the scale of the update stays."""
    written = copy.copy(config)
    factor = math.sqrt(2) if config.use_rslora else 2
    written.r = 2 * config.r
    written.lora_alpha = config.lora_alpha * factor  # type: ignore[assignment]  # PEFT computes with any number
    written.rank_pattern = {n: 2 * r for n, r in (config.rank_pattern or {}).items()}
    written.alpha_pattern = {n: a * factor for n, a in (config.alpha_pattern or {}).items()}
    return written


def _layers(model: nn.Module) -> dict[str, PissaLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, PissaLinear)}
