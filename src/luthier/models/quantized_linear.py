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
from luthier.core.workspace import Workspace

PIECE = 1 << 18
"""Numbers that are quantised at a time on a CPU."""
PAIRS = 1 << 14
"""Bytes, each two numbers, that are dequantised at a time on a CPU; they stay in the processor's cache."""
BLOCK = 64
"""Numbers that share a scale in 4 bits."""


class _Forward(nn.Module):
    """What both widths share."""

    was_transposed: bool
    bias: nn.Parameter | None
    workspace: Workspace

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix (O, I) in full; on a CPU it is overwritten when another matrix is asked for."""
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
        self,
        weight_OI: Tensor,
        bias: nn.Parameter | None,
        was_transposed: bool,
        workspace: Workspace,
        quant_type: str,
        double: bool,
    ) -> None:
        outputs, inputs = weight_OI.shape
        with torch.device("meta"):
            bnb.nn.Linear4bit.__init__(
                self, inputs, outputs, bias=False, compute_dtype=weight_OI.dtype, quant_type=quant_type
            )
        self.was_transposed, self.bias, self.workspace = was_transposed, bias, workspace
        codes, state = _in_4_bits(weight_OI.contiguous(), quant_type, double)
        self.weight = bnb.nn.Params4bit(
            codes,
            requires_grad=False,
            quant_state=state,
            blocksize=state.blocksize,
            compress_statistics=double,
            quant_type=quant_type,
            module=self,
            bnb_quantized=True,
        )
        self.quant_state = state

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        state, codes = self.weight.quant_state, self.weight.data
        if codes.device.type != "cpu":
            return bits.dequantize_4bit(codes, state).to(dtype)
        scales = state.absmax
        if state.nested:
            scales = bits.dequantize_blockwise(scales, state.state2).float().add_(state.offset)
        whole = self.workspace.take(state.shape, state.dtype)
        _from_4_bits(codes.view(-1), scales, state.code, whole.view(-1))
        return whole.to(dtype)


def _from_4_bits(codes: Tensor, scales: Tensor, table: Tensor, out: Tensor) -> None:
    """Write the numbers that 4-bit codes stand for into `out`, the same that bitsandbytes makes.

    Its own function cannot write into given memory on a CPU. New memory for every piece leaves holes between the
    tensors that are kept for the backward pass, which the next piece does not fit into: 100 MiB of 100 M parameters.
    """
    bytes_ = torch.arange(256)
    # Two float32 numbers move as one of 64 bits.
    pairs = torch.stack((table[bytes_ >> 4], table[bytes_ & 15]), dim=1).float().view(torch.float64).view(-1)
    index, values = torch.empty(PAIRS, dtype=torch.int32), torch.empty(PAIRS, dtype=torch.float64)
    for start in range(0, len(codes), PAIRS):
        count = min(PAIRS, len(codes) - start)
        index[:count] = codes[start : start + count]
        torch.index_select(pairs, 0, index[:count], out=values[:count])
        piece = out[2 * start : 2 * (start + count)]
        numbers = values.view(torch.float32)[: len(piece)]
        some = scales[2 * start // BLOCK : -(-(2 * start + len(piece)) // BLOCK)]
        if len(piece) % BLOCK:
            torch.mul(numbers, some.repeat_interleave(BLOCK)[: len(piece)], out=piece)
        else:
            torch.mul(numbers.view(-1, BLOCK), some[:, None], out=piece.view(-1, BLOCK))


def _in_4_bits(weight_OI: Tensor, quant_type: str, double: bool) -> tuple[Tensor, bits.QuantState]:
    """Return codes and scales of a matrix, the same that bitsandbytes makes, but piece by piece.

    On a CPU its own function holds several copies of the whole matrix at a time.
    """
    flat, step = weight_OI.view(-1), PIECE - PIECE % BLOCK
    codes = flat.new_empty(((flat.numel() + 1) // 2, 1), dtype=torch.uint8)
    absmax = flat.new_empty(-(-flat.numel() // BLOCK), dtype=torch.float32)
    for start in range(0, flat.numel(), step):
        piece = flat[start : start + step]
        some, scales = torch.ops.bitsandbytes.quantize_4bit(piece, BLOCK, quant_type, torch.uint8)
        codes[start // 2 : start // 2 + len(some)] = some
        absmax[start // BLOCK : start // BLOCK + len(scales)] = scales
    offset, state2 = None, None
    if double:
        offset = absmax.mean()
        absmax, state2 = bits.quantize_blockwise(absmax - offset, blocksize=256)
    table = bits.get_4bit_type(quant_type, device=weight_OI.device)
    state = bits.QuantState(
        absmax=absmax,
        shape=weight_OI.shape,
        dtype=weight_OI.dtype,
        blocksize=BLOCK,
        code=table,
        quant_type=quant_type,
        offset=offset,
        state2=state2,
    )
    return codes, state


class Linear8(_Forward, bnb.nn.Linear8bitLt):  # type: ignore[misc]
    """A matrix in rows of 8-bit numbers."""

    def __init__(
        self, weight_OI: Tensor, bias: nn.Parameter | None, was_transposed: bool, workspace: Workspace
    ) -> None:
        outputs, inputs = weight_OI.shape
        with torch.device("meta"):
            bnb.nn.Linear8bitLt.__init__(self, inputs, outputs, bias=False, has_fp16_weights=False)
        self.was_transposed, self.bias, self.workspace = was_transposed, bias, workspace
        low_O1, high_O1 = torch.aminmax(weight_OI, dim=1, keepdim=True)
        scale_O1 = torch.maximum(-low_O1, high_O1).float().clamp(min=1e-12)
        rounded_OI = (weight_OI.float() * (127 / scale_O1)).round_().to(torch.int8)
        self.weight = bnb.nn.Int8Params(rounded_OI, requires_grad=False, CB=rounded_OI, SCB=scale_O1[:, 0])

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        codes, scale_O1 = self.weight.data, (self.weight.SCB / 127)[:, None]
        if codes.device.type != "cpu":
            return (codes * scale_O1).to(dtype)
        return torch.mul(codes, scale_O1, out=self.workspace.take(codes.shape, torch.float32)).to(dtype)
