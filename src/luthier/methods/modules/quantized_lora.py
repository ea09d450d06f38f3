"""LoRA beside matrices in 4 or 8 bits: the frozen weight and the update in one product, as for ordinary matrices.

W is made in full from its bits, the update is added to it in place, and the sum is let go after the product; backward makes it
again. Nothing of the weight's full size is kept between forward and backward.

Imported only when bitsandbytes is installed. Shape legend: N tokens, I inputs, O outputs, R rank.
"""
# bitsandbytes, and PEFT's layers on it, have no types.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.bnb import Linear4bit, Linear8bitLt
from torch import Tensor, nn

from luthier.core.matmul import product
from luthier.methods.modules.peft_files import ADAPTER
from luthier.models.quantized import is_quantized


class _Fused(nn.Module):
    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        base = self.get_base_layer()
        a, b = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        plain = not (args or kwargs or self.disable_adapters or self.merged or self.lora_variant)
        drops = self.training and not isinstance(self.lora_dropout[ADAPTER], nn.Identity)
        exact = x.dtype == a.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
        if not plain or drops or not exact or self.active_adapters != [ADAPTER]:
            return super().forward(x, *args, **kwargs)
        y = _FusedProduct.apply(x, base, a, b, self.scaling[ADAPTER])
        return y if base.bias is None else y + base.bias


class FusedLora4bit(_Fused, Linear4bit):  # type: ignore[misc]
    """PEFT's layer on a 4-bit matrix with the fused product."""


class FusedLora8bit(_Fused, Linear8bitLt):  # type: ignore[misc]
    """PEFT's layer on an 8-bit matrix with the fused product."""


def fuse(model: nn.Module) -> None:
    """Give PEFT's layers on quantised matrices the fused forward."""
    for module in model.modules():
        if type(module) is Linear4bit:
            module.__class__ = FusedLora4bit
        elif type(module) is Linear8bitLt:
            module.__class__ = FusedLora8bit


def make_dense(module: object) -> None:
    """Put an ordinary matrix under an adapter, and PEFT's layer for those in the adapter's place, so that it can be merged."""
    from peft.tuners.lora import Linear
    from transformers.pytorch_utils import Conv1D

    from luthier.models.quantized import dense

    if isinstance(module, LoraLayer) and is_quantized(module.get_base_layer()):
        module.base_layer = dense(module.get_base_layer())
        module.fan_in_fan_out = isinstance(module.base_layer, Conv1D)
        for magnitude in module.lora_magnitude_vector.values():
            magnitude.fan_in_fan_out = module.fan_in_fan_out
        module.__class__ = Linear


class _FusedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, base, a_RI, b_OR, scale: float):  # type: ignore[override]
        ctx.save_for_backward(x, a_RI, b_OR)
        ctx.base, ctx.scale = base, scale
        x_NI = x.reshape(-1, x.shape[-1])
        weight_OI = base.dequantized(x.dtype).addmm_(b_OR, a_RI, alpha=scale)
        return product(x_NI, weight_OI).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, a_RI, b_OR = ctx.saved_tensors
        grad_NO, x_NI = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_a = (grad_NO @ b_OR).mul_(ctx.scale).t() @ x_NI
        grad_b = grad_NO.t() @ (x_NI @ a_RI.t()).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            weight_OI = ctx.base.dequantized(grad.dtype).addmm_(b_OR, a_RI, alpha=ctx.scale)
            grad_x = product(grad_NO, weight_OI.t()).view_as(x)
        return grad_x, None, grad_a, grad_b, None
