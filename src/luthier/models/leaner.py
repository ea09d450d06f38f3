"""The same computations with less kept for the backward pass: gated feed-forwards and token embeddings.

A gated feed-forward keeps four tensors of the intermediate size per token (gate, silu(gate), up, their product); two
are enough, the others are an elementwise product away. A dense embedding gradient is a matrix of vocabulary size that
exists only to be added to another; rows can be added where they belong. And what the last block makes of a token that
predicts nothing supervised is never read.

Changes are made to module instances, and only where the module is exactly of the known form; the loader's probe then
compares the model with itself as it was before.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import silu

from luthier.core.matmul import BLOCKS, LinearProduct, prefers_onednn, takes
from luthier.models.layers import block_modules
from luthier.models.lean_blocks import make_elementwise_leaner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SELECTED = "selected_positions"
"""The keyword by which a backbone's caller says at which of the N positions it will read the last hidden states."""
_TRIMMED = {
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
}
"""Blocks that are x + attention(norm(x)), then x + mlp(norm(x)), and hand every keyword on."""
_GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def make_leaner(model: nn.Module) -> None:
    """Give gated feed-forwards, norms, rotations, GELUs and token embeddings of a model their leaner forward."""
    for module in model.modules():
        if _is_gated_silu(module):
            module.forward = types.MethodType(_gated_forward, module)
        elif type(module) is nn.Linear and prefers_onednn():
            module.forward = types.MethodType(_linear_forward, module)
        elif make_elementwise_leaner(module):
            continue
        elif type(module) is nn.Embedding and module.max_norm is None and not module.sparse:
            module.forward = types.MethodType(_embedding_forward, module)


def trim_last_block(model: PreTrainedModel) -> bool:
    """Let the last block run its feed-forward only at the positions given as SELECTED; return whether it can.

    Nothing stands above the last block but the head, and the head reads supervised positions alone.
    """
    blocks = block_modules(model)
    last = blocks[-1] if blocks else None
    if last is None or type(last).__name__ not in _TRIMMED or "forward" in vars(last):
        return False
    last.forward = types.MethodType(_trimmed_forward, last)
    return True


def _trimmed_forward(
    self: _Block, hidden_states: Tensor, *args: object, selected_positions: Tensor | None = None, **kwargs: object
) -> Tensor:
    if selected_positions is None or (self.gradient_checkpointing and self.training):
        # Checkpointing is built into the class's own forward. The caller sees by the shape that nothing is left out.
        return type(self).forward(self, hidden_states, *args, **kwargs)  # type: ignore[attr-defined]
    assert not args, "transformers calls blocks with keywords"
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
    states = hidden_states + attended
    chosen_1MH = states.reshape(-1, states.shape[-1]).index_select(0, selected_positions)[None]
    return chosen_1MH + self.mlp(self.post_attention_layernorm(chosen_1MH))


def make_checkpointable(model: nn.Module) -> None:
    """Give gated feed-forwards their own forward back: the lean one holds on to what checkpointing lets go."""
    for module in model.modules():
        if _is_gated_silu(module) and "forward" in vars(module):
            del module.forward


def is_unwatched(weight: Tensor) -> bool:
    """Return whether a gradient may be added to `weight.grad` directly: a plain trained leaf without hooks.

    Sharding and data parallelism have to see gradients arrive through autograd.
    """
    is_watched = bool(weight._backward_hooks) or bool(getattr(weight, "_post_accumulate_grad_hooks", None))
    return type(weight) is nn.Parameter and weight.requires_grad and not is_watched


def _is_gated_silu(module: nn.Module) -> bool:
    """Return whether a module is down(silu(gate(x)) · up(x)), as Llama, Qwen and Mistral write it."""
    children = dict(module.named_children())
    if set(children) != _GATED or type(module).forward.__code__.co_argcount != 2:
        return False
    return "silu" in type(children["act_fn"]).__name__.lower()


class _Block(Protocol):
    training: bool
    gradient_checkpointing: bool
    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module


class _Gated(Protocol):
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module


def _gated_forward(self: _Gated, x: Tensor) -> Tensor:
    gate, up = self.gate_proj(x), self.up_proj(x)
    if not torch.is_grad_enabled():
        return self.down_proj(silu(gate).mul_(up))
    inner = _SiluProduct.apply(gate, up)
    place, gate, up = inner.data_ptr(), gate.detach(), up.detach()

    def pack(tensor: Tensor) -> Tensor | tuple[int, ...]:
        is_inner = tensor.data_ptr() == place and tensor.numel() == gate.numel() and tensor.dtype == gate.dtype
        return tuple(tensor.shape) if is_inner and tensor.is_contiguous() else tensor

    def unpack(kept: Tensor | tuple[int, ...]) -> Tensor:
        return kept if isinstance(kept, Tensor) else silu(gate).mul_(up).view(kept)

    with saved_tensors_hooks(pack, unpack):
        return self.down_proj(inner)


class _SiluProduct(torch.autograd.Function):
    """silu(gate)·up; backward from gate and up alone."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        grad_up = silu(gate).mul_(grad)
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, grad_up


def _linear_forward(self: nn.Linear, x: Tensor) -> Tensor:
    if not takes(x, self.weight.shape[0]) or self.weight.dtype != x.dtype or x.numel() < BLOCKS[-1] * x.shape[-1]:
        return nn.functional.linear(x, self.weight, self.bias)
    return LinearProduct.apply(x, self.weight, self.bias)


def _embedding_forward(self: nn.Embedding, tokens: Tensor) -> Tensor:
    weight = self.weight
    if not (torch.is_grad_enabled() and is_unwatched(weight)):
        return nn.functional.embedding(tokens, weight, self.padding_idx)
    return _RowsOf.apply(weight, tokens, self.padding_idx)


class _RowsOf(torch.autograd.Function):
    """Embedding look-up whose backward adds rows to `weight.grad` in place."""

    @staticmethod
    def forward(ctx, weight_VH: Tensor, tokens: Tensor, padding: int | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(tokens)
        ctx.leaf, ctx.padding = weight_VH, padding
        return nn.functional.embedding(tokens, weight_VH)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, None, None]:  # type: ignore[override]
        (tokens,) = ctx.saved_tensors
        rows, grad_NH = tokens.reshape(-1), grad.reshape(-1, grad.shape[-1])
        if ctx.padding is not None:  # nn.Embedding leaves the padding row without gradient
            grad_NH = grad_NH.masked_fill((rows == ctx.padding)[:, None], 0.0)
        if ctx.leaf.grad is None:
            ctx.leaf.grad = torch.zeros_like(ctx.leaf)
        ctx.leaf.grad.index_add_(0, rows, grad_NH.to(ctx.leaf.dtype))
        return None, None, None
