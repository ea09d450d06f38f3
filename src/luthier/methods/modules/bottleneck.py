"""Bottleneck adapters, and the hooks that put an update behind or beside a sublayer.

An adapter is a new child of its block, never of the sublayer, so that no tensor of the base changes its name and modules
that are recognised by their children stay what they are. Hooks are objects that hold the adapter, not closures, so that
a deep copy of the model has hooks on its own adapters.

Shape legend: B rows, T positions, H hidden size, R bottleneck.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from luthier.models.sublayers import Block

Place = Literal["attention", "feed_forward", "parallel"]
Activation = Literal["gelu", "relu", "silu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


class Bottleneck(nn.Module):
    """scale · (W_up f(W_down x + b_down) + b_up), float32; W_up and b_up start at zero, and so does the update.

    The papers draw both matrices near zero. With one of them exactly zero the other keeps an ordinary scale: the start is
    exactly the base model, and gradients are not the product of two small numbers.
    """

    def __init__(self, hidden: int, bottleneck: int, activation: str, dropout: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, bottleneck)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(bottleneck, hidden)
        self.scale = scale
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)

    def forward(self, x_BTH: Tensor) -> Tensor:
        inner_BTR = self.dropout(self.activation(self.down(x_BTH.to(self.down.weight.dtype))))
        return self.up(inner_BTR) * self.scale


def bottleneck_size(hidden: int, bottleneck: int) -> int:
    """Return the parameters of one adapter: 2dr + r + d."""
    return 2 * hidden * bottleneck + bottleneck + hidden


def put(block: Block, place: Place, update: nn.Module) -> list[str]:
    """Add an update to a block's residual stream and return its parameters' full names.

    "attention" and "feed_forward": computed from the sublayer's output; "parallel": from the feed-forward's input.
    """
    sublayer = block.attention if place == "attention" else block.feed_forward
    if place != "parallel":
        sublayer.end.register_forward_hook(_Behind(update))
    elif sublayer.adder is None:
        sublayer.end.register_forward_hook(_Beside(update), with_kwargs=True)
    else:
        sublayer.adder.register_forward_pre_hook(_IntoResidual(update, sublayer.adder_starts))
    return adopt(block, f"adapter_{place}", update)


def adopt(block: Block, name: str, update: nn.Module) -> list[str]:
    """Make a module the block's child, on its device, and return its parameters' full names."""
    update.to(next(block.module.parameters()).device)
    block.module.add_module(name, update)
    return [f"{block.name}.{name}.{n}" for n, _ in update.named_parameters()]


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the hidden states among what a sublayer returns."""
    return output if isinstance(output, Tensor) else output[0]


def with_first(output: Tensor | tuple[Tensor, ...], hidden: Tensor) -> Tensor | tuple[Tensor, ...]:
    """Return what a sublayer returned, with other hidden states."""
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])


class _Behind:
    """h ← h + update(h)."""

    def __init__(self, update: nn.Module) -> None:
        self.update = update

    def __call__(
        self, module: nn.Module, args: tuple[object, ...], output: Tensor | tuple[Tensor, ...]
    ) -> Tensor | tuple[Tensor, ...]:
        hidden = first(output)
        return with_first(output, _sum(hidden, self.update(hidden)))


class _Beside:
    """h ← h + update(x), x the sublayer's input."""

    def __init__(self, update: nn.Module) -> None:
        self.update = update

    def __call__(
        self,
        module: nn.Module,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Tensor],
        output: Tensor | tuple[Tensor, ...],
    ) -> Tensor | tuple[Tensor, ...]:
        x = args[0] if args else kwargs["hidden_states"]
        return with_first(output, _sum(first(output), self.update(x)))


class _IntoResidual:
    """residual ← residual + update(x), for modules that do the addition themselves."""

    def __init__(self, update: nn.Module, from_hidden: bool) -> None:
        self.update = update
        self.from_hidden = from_hidden

    def __call__(self, module: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, residual = args
        return hidden, _sum(residual, self.update(hidden if self.from_hidden else residual))


def _sum(hidden: Tensor, update: Tensor) -> Tensor:
    """Add in the wider dtype, return in the stream's own: a bfloat16 base stays bfloat16."""
    return torch.add(hidden, update).to(hidden.dtype)
