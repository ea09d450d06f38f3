"""Frozen matrices in 4 or 8 bits whose full form lives for one product only, forward and backward.

They are bitsandbytes' own layers, so that PEFT knows them, with another forward: bitsandbytes' repacks 4-bit weights in
place when it evaluates on some CPUs, and rounds the activations too when the weights have 8 bits.

Imported only when bitsandbytes is installed. Shape legend: N tokens, I inputs, O outputs.
"""
# bitsandbytes has no types.
# pyright: reportPrivateImportUsage=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import bitsandbytes as bnb
import torch
from bitsandbytes import functional as bits
from torch import Tensor, nn

from luthier.core.matmul import product


class _Forward(nn.Module):
    """What both widths share."""

    was_transposed: bool
    bias: nn.Parameter | None

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix (O, I) in full."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        y = _Product.apply(x.to(dtype), self)
        return y if self.bias is None else y + self.bias.to(dtype)


class _Product(torch.autograd.Function):
    """x·Wᵀ; W is made from its bits again for the gradient of x."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: _Forward) -> Tensor:  # type: ignore[override]
        ctx.layer = layer
        x_NI = x.reshape(-1, x.shape[-1])
        return product(x_NI, layer.dequantized(x.dtype)).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None]:  # type: ignore[override]
        if not ctx.needs_input_grad[0]:
            return None, None
        grad_NO = grad.reshape(-1, grad.shape[-1])
        grad_NI = product(grad_NO, ctx.layer.dequantized(grad.dtype).t())
        return grad_NI.view(*grad.shape[:-1], -1), None


class Linear4(_Forward, bnb.nn.Linear4bit):  # type: ignore[misc]
    """A matrix in blocks of 4-bit numbers."""

    def __init__(
        self, weight_OI: Tensor, bias: nn.Parameter | None, was_transposed: bool, quant_type: str, double: bool
    ) -> None:
        outputs, inputs = weight_OI.shape
        with torch.device("meta"):
            bnb.nn.Linear4bit.__init__(
                self, inputs, outputs, bias=False, compute_dtype=weight_OI.dtype, quant_type=quant_type
            )
        self.was_transposed, self.bias = was_transposed, bias
        weight = bnb.nn.Params4bit(
            weight_OI.contiguous(), requires_grad=False, compress_statistics=double, quant_type=quant_type, module=self
        )
        self.weight = weight.to(weight_OI.device)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return bits.dequantize_4bit(self.weight.data, self.weight.quant_state).to(dtype)


class Linear8(_Forward, bnb.nn.Linear8bitLt):  # type: ignore[misc]
    """A matrix in rows of 8-bit numbers."""

    def __init__(self, weight_OI: Tensor, bias: nn.Parameter | None, was_transposed: bool) -> None:
        outputs, inputs = weight_OI.shape
        with torch.device("meta"):
            bnb.nn.Linear8bitLt.__init__(self, inputs, outputs, bias=False, has_fp16_weights=False)
        self.was_transposed, self.bias = was_transposed, bias
        scale_O1 = weight_OI.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12)
        rounded_OI = (weight_OI.float() * (127 / scale_O1)).round_().to(torch.int8)
        self.weight = bnb.nn.Int8Params(rounded_OI, requires_grad=False, CB=rounded_OI, SCB=scale_O1[:, 0])

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return (self.weight.data * (self.weight.SCB / 127)[:, None]).to(dtype)
