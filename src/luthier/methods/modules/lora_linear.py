"""The product y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ with W frozen, as one autograd function.

PEFT's layer does six thin products and three passes over output-sized tensors for each call; thin products run at a
third of a CPU's speed and passes at none of it. Here the update is folded into the weight first, W' = W + s·B·A (a
matter of out·in·r operations, nothing beside tokens·out·in), so that forward and the gradient of x cost one full
product each, and only the gradients of A and B are thin. W' lives for one product only and is made again backward.

Shape legend: N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import cast

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn

from luthier.core.matmul import product
from luthier.core.workspace import Workspace
from luthier.models.folding import Foldable


class FusedLoraLinear(PeftLinear, Foldable):
    """PEFT's LoRA layer with the fused product wherever that gives the same result; elsewhere PEFT's own forward.

    Attributes:
        workspace: where folded weights of all layers of a model take their form, one at a time.
    """

    workspace: Workspace | None = None

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        name = self._fusable_adapter(x, args, kwargs)
        if name is None:
            return super().forward(x, *args, **kwargs)
        base = cast("nn.Linear", self.get_base_layer())
        a, b = factors(self, name)
        return fused_lora(x, base.weight, base.bias, a.weight, b.weight, self.scaling[name], self.workspace)

    def folded(self) -> tuple[Tensor, Tensor | None] | None:
        """Return W + s·B·A and the bias, where the fused product is exact."""
        base = cast("nn.Linear", self.get_base_layer())
        name = self._fusable_adapter(base.weight, (), {})
        if name is None:
            return None
        a, b = factors(self, name)
        return torch.addmm(base.weight, b.weight, a.weight, alpha=self.scaling[name]), base.bias

    def _fusable_adapter(self, x: Tensor, args: tuple[object, ...], kwargs: dict[str, object]) -> str | None:
        """Return the one active adapter if fusing is exact: float32, no dropout, nothing merged, a frozen plain base."""
        if args or kwargs or self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias.get(name):
            return None
        base = self.get_base_layer()
        is_plain = type(base) is nn.Linear and not base.weight.requires_grad
        is_plain = is_plain and (base.bias is None or not base.bias.requires_grad)
        drops = self.training and not isinstance(self.lora_dropout[name], nn.Identity)
        # In 16 bits the folded weight would round the update away; autocast must see ordinary products.
        exact = x.dtype == base.weight.dtype == self.lora_A[name].weight.dtype == torch.float32
        if drops or not exact or not is_plain or torch.is_autocast_enabled(x.device.type):
            return None
        return name


def factors(layer: PeftLinear, name: str) -> tuple[nn.Linear, nn.Linear]:
    """Return A and B of one adapter of a layer."""
    return cast("nn.Linear", layer.lora_A[name]), cast("nn.Linear", layer.lora_B[name])


def fused_lora(
    x: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    a_RI: Tensor,
    b_OR: Tensor,
    scale: float,
    workspace: Workspace | None = None,
) -> Tensor:
    """Return x·(W + scale·B·A)ᵀ + bias for a frozen W; all float32."""
    return _FusedLora.apply(x, weight_OI, bias_O, a_RI, b_OR, scale, workspace)


def _fold(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float, workspace: Workspace | None) -> Tensor:
    """Return W + scale·B·A; on a CPU in the workspace, so that it tears no holes between what is kept."""
    if workspace is None or weight_OI.device.type != "cpu":
        return torch.addmm(weight_OI, b_OR, a_RI, alpha=scale)
    place = workspace.take(weight_OI.shape, weight_OI.dtype)
    return torch.addmm(weight_OI, b_OR, a_RI, alpha=scale, out=place)


class _FusedLora(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight_OI, bias_O, a_RI, b_OR, scale: float, workspace=None):  # type: ignore[override]
        ctx.save_for_backward(x, weight_OI, a_RI, b_OR)
        ctx.scale, ctx.workspace = scale, workspace
        x_NI = x.reshape(-1, x.shape[-1])
        if x_NI.shape[0] >= weight_OI.shape[0]:
            y_NO = product(x_NI, _fold(weight_OI, a_RI, b_OR, scale, workspace))
        else:  # fewer tokens than outputs: folding would cost more than the thin products
            y_NO = product(x_NI, weight_OI).addmm_(x_NI @ a_RI.t(), b_OR.t(), alpha=scale)
        if bias_O is not None:
            y_NO += bias_O
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, weight_OI, a_RI, b_OR = ctx.saved_tensors
        grad_NO = grad.reshape(-1, grad.shape[-1])
        x_NI = x.reshape(-1, x.shape[-1])
        through_NR = (grad_NO @ b_OR).mul_(ctx.scale)
        grad_a = through_NR.t() @ x_NI
        grad_b = grad_NO.t() @ (x_NI @ a_RI.t()).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            if x_NI.shape[0] >= weight_OI.shape[0]:
                grad_x = product(grad_NO, _fold(weight_OI, a_RI, b_OR, ctx.scale, ctx.workspace).t())
            else:
                grad_x = product(grad_NO, weight_OI.t()).addmm_(through_NR, a_RI)
            grad_x = grad_x.view_as(x)
        return grad_x, None, None, grad_a, grad_b, None, None
