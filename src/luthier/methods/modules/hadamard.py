"""The Hadamard adapter: one factor and one summand for each number that attention writes.

Shape legend: B rows, T positions, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from luthier.methods.modules.bottleneck import adopt, first, with_first
from luthier.models.sublayers import Block

NAME = "hadamard"
"""Of the block's child."""


class Hadamard(nn.Module):
    """h ← w ⊙ h + b, float32; w starts at one and b at zero."""

    handle: RemovableHandle

    def __init__(self, hidden: int, has_shift: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(hidden))
        self.shift = nn.Parameter(torch.zeros(hidden)) if has_shift else None

    def forward(self, h_BTH: Tensor) -> Tensor:
        scaled = h_BTH * self.scale
        return (scaled if self.shift is None else scaled + self.shift).to(h_BTH.dtype)


def put_behind_attention(block: Block, update: Hadamard) -> list[str]:
    """Apply an update to what a block's attention writes and return its parameters' full names."""
    update.handle = block.attention.end.register_forward_hook(_Instead(update))
    return adopt(block, NAME, update)


def fold(block: Block, update: Hadamard, projection: nn.Module) -> None:
    """Fold the update into the matrix before it and take it out of the block.

    Args:
        projection: nn.Linear or GPT-2's transposed Conv1D.
    """
    from transformers.pytorch_utils import Conv1D

    weight, bias = projection.weight, projection.bias
    assert isinstance(weight, Tensor), "a linear module has a weight"
    with torch.no_grad():
        weight.mul_(update.scale if isinstance(projection, Conv1D) else update.scale[:, None])
        if isinstance(bias, Tensor):
            bias.mul_(update.scale)
            if update.shift is not None:
                bias.add_(update.shift)
    update.handle.remove()
    delattr(block.module, NAME)


class _Instead:
    """h ← update(h)."""

    def __init__(self, update: Hadamard) -> None:
        self.update = update

    def __call__(
        self, module: nn.Module, args: tuple[object, ...], output: Tensor | tuple[Tensor, ...]
    ) -> Tensor | tuple[Tensor, ...]:
        return with_first(output, self.update(first(output)))
