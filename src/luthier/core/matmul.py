"""Float32 matrix products on CPUs where the default library is slow.

PyTorch's default on x86 is MKL, which on processors of other makers than Intel runs at half of what they can do;
oneDNN, shipped with PyTorch as well, does not (AMD EPYC, one thread, 500×256·256×688: 92 GFLOP/s against 206). oneDNN
builds and keeps code for every new shape (0.4 ms and over 1 MB each), and packed batches differ in length all the time:
rows are therefore taken in blocks of one size, and what is left over goes to the default library.

Which library is used depends on the processor alone, so a resumed run computes the same bits.

Shape legend: N rows (tokens), I inputs, O outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

BLOCKS = (128,)
THINNEST = 32
"""Products with a thinner side gain nothing: they wait for memory, not for arithmetic."""


@functools.cache
def prefers_onednn() -> bool:
    """Return whether this machine's float32 products are faster in oneDNN than in the default library."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return False


def takes(x: Tensor, *sizes: int) -> bool:
    """Return whether a product of `x` with these other dimensions should go through `product`."""
    return (
        prefers_onednn()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and min(*sizes, x.shape[-1]) >= THINNEST
        and not torch.is_autocast_enabled("cpu")
    )


def product(x_NI: Tensor, weight_OI: Tensor, out: Tensor | None = None) -> Tensor:
    """Return x·Wᵀ, (N, O), with N cut into blocks. Strided operands (transposes) are taken as they are.

    `out`, (N, O), is where the result is written, if given.
    """
    if not takes(x_NI, weight_OI.shape[0]):
        return torch.mm(x_NI, weight_OI.t(), out=out) if out is not None else x_NI @ weight_OI.t()
    out_NO = x_NI.new_empty(x_NI.shape[0], weight_OI.shape[0]) if out is None else out
    for rows, whole in _cuts(x_NI.shape[0]):
        if whole:
            out_NO[rows] = _onednn(x_NI[rows], weight_OI)
        else:
            torch.mm(x_NI[rows], weight_OI.t(), out=out_NO[rows])
    return out_NO


def add_outer(into_OI: Tensor, grad_NO: Tensor, x_NI: Tensor) -> Tensor:
    """Return `into_OI` += gradᵀ·x, the gradient of a weight, with the summed dimension N cut into blocks."""
    if not takes(x_NI, grad_NO.shape[1]):
        return into_OI.addmm_(grad_NO.t(), x_NI)
    for rows, whole in _cuts(x_NI.shape[0]):
        if whole:
            into_OI += _onednn(grad_NO[rows].t(), x_NI[rows].t())
        else:
            into_OI.addmm_(grad_NO[rows].t(), x_NI[rows])
    return into_OI


def _onednn(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, None, "none", [], "")


def _cuts(rows: int) -> Iterator[tuple[slice, bool]]:
    """Yield blocks of the fixed sizes, then the remainder (False)."""
    start = 0
    for size in BLOCKS:
        while rows - start >= size:
            yield slice(start, start + size), True
            start += size
    if start < rows:
        yield slice(start, rows), False


class LinearProduct(torch.autograd.Function):
    """y = x·Wᵀ + b through `product`, for layers that the default library would compute."""

    @staticmethod
    def forward(ctx, x, weight_OI, bias_O):  # type: ignore[override]
        ctx.save_for_backward(x, weight_OI)
        y_NO = product(x.reshape(-1, x.shape[-1]), weight_OI)
        if bias_O is not None:
            y_NO += bias_O
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, weight_OI = ctx.saved_tensors
        grad_NO, x_NI = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        need_x, need_weight, need_bias = ctx.needs_input_grad
        grad_x = product(grad_NO, weight_OI.t()).view_as(x) if need_x else None
        grad_weight = add_outer(torch.zeros_like(weight_OI), grad_NO, x_NI) if need_weight else None
        return grad_x, grad_weight, grad_NO.sum(0) if need_bias else None
