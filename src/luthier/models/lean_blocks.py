"""Root-mean-square norms, rotary places and GPT-2's GELU with one temporary tensor instead of five to ten.

As transformers writes them, each is a row of elementwise operations, and each of these fills fresh memory: half of all
bytes that a step asks for. Here norms and rotations do the same operations in the same order, so that results are the
same to the bit, but write them into one tensor; GELU is PyTorch's own, the same to rounding. The backward passes come
from what is kept anyway: a norm's input and its inverse root, the rotation's cosines and sines, the GELU's input alone.

Only where a module's code is to the instruction the code that this replaces, and in float32; elsewhere it stays.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

_ROTATE = "apply_rotary_pos_emb"


def make_elementwise_leaner(module: nn.Module) -> bool:
    """Give a norm, a GELU or an attention its leaner forward; return whether it is one that has one."""
    return make_norm_leaner(module) or make_gelu_leaner(module) or make_rotation_leaner(module)


def make_norm_leaner(module: nn.Module) -> bool:
    """Give a norm that is computed as Llama's its leaner forward; return whether it is one."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    if not _same(type(module).forward, LlamaRMSNorm.forward):
        return False
    module.forward = types.MethodType(_norm_forward, module)
    return True


def make_gelu_leaner(module: nn.Module) -> bool:
    """Give a GELU that is written out by its tanh PyTorch's own, which is one operation; return whether it is one."""
    from transformers.activations import NewGELUActivation

    if not _same(type(module).forward, NewGELUActivation.forward):
        return False
    module.forward = types.MethodType(_gelu_forward, module)
    return True


def make_rotation_leaner(module: nn.Module) -> bool:
    """Let an attention that rotates queries and keys as Llama does use the leaner rotation; return whether it does so.

    Its forward stays the class's own, with one name bound to another function.
    """
    from transformers.models.llama import modeling_llama as llama

    forward = type(module).forward
    names = getattr(forward, "__globals__", {})
    rotate = names.get(_ROTATE)
    if _ROTATE not in getattr(getattr(forward, "__code__", None), "co_names", ()) or forward.__closure__:
        return False
    half = getattr(rotate, "__globals__", {}).get("rotate_half")
    if not (_same(rotate, llama.apply_rotary_pos_emb) and _same(half, llama.rotate_half)):
        return False
    ours = types.FunctionType(
        forward.__code__, {**names, _ROTATE: rotated}, forward.__name__, forward.__defaults__, forward.__closure__
    )
    ours.__kwdefaults__ = forward.__kwdefaults__
    module.forward = types.MethodType(ours, module)
    return True


def _same(one: object, other: object) -> bool:
    """Return whether two functions are the same instructions on the same names and constants."""
    codes = [getattr(f, "__code__", None) for f in (one, other)]
    if not all(isinstance(code, types.CodeType) for code in codes):
        return False
    parts = [
        (c.co_code, c.co_names, c.co_varnames, [k for k in c.co_consts if not isinstance(k, str)])
        for c in cast("list[types.CodeType]", codes)
    ]
    return parts[0] == parts[1]


class _RMSNorm(nn.Module):
    """The names that the forward reads."""

    weight: nn.Parameter
    variance_epsilon: float


def _norm_forward(self: _RMSNorm, hidden_states: Tensor) -> Tensor:
    x, weight = hidden_states, self.weight
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        return cast("Callable[[nn.Module, Tensor], Tensor]", type(self).forward)(self, x)
    return cast("Tensor", _Norm.apply(x, weight, self.variance_epsilon))


def _gelu_forward(self: nn.Module, input: Tensor) -> Tensor:
    if input.dtype != torch.float32:
        return cast("Callable[[nn.Module, Tensor], Tensor]", type(self).forward)(self, input)
    return nn.functional.gelu(input, approximate="tanh")


class _Norm(torch.autograd.Function):
    """w · x / √(mean x² + ε) over the last dimension, D wide (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:  # type: ignore[override]
        # The same operations in the same order as the norm's own, so that the numbers are the same to the bit.
        scaled = x.pow(2)
        inverse = scaled.mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight_D, inverse)
        return torch.mul(x, inverse, out=scaled).mul_(weight_D)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        x, weight_D, inverse = ctx.saved_tensors
        wants_x, wants_weight, _ = ctx.needs_input_grad
        product = grad * x
        grad_weight = (product * inverse).flatten(0, -2).sum(0) if wants_weight else None
        if not wants_x:
            return None, grad_weight, None
        # d/dx: r·(w·g) − x · r³ · mean(w·g·x)
        along = torch.mv(product.reshape(-1, x.shape[-1]), weight_D).view_as(inverse)
        along.mul_(inverse.pow(3)).div_(-x.shape[-1])
        grad_x = torch.mul(grad, inverse, out=product).mul_(weight_D).addcmul_(x, along)
        return grad_x, grad_weight, None


def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Return queries and keys turned by their places (Su et al. 2021, arXiv:2104.09864), halves of D against halves.

    Args:
        q, k: (B, heads, N, D), or (B, N, heads, D) with unsqueeze_dim 2.
        cos, sin: (B, N, D).
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _rotation(q, cos, sin), _rotation(k, cos, sin)


def _rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return cast("Tensor", _Rotation.apply(x, cos, sin))


class _Rotation(torch.autograd.Function):
    """x·cos + (−x₂, x₁)·sin, of the halves x₁, x₂ of the last dimension."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        turned = x * cos
        # No addcmul_: it rounds once where the rotation's own product and sum round twice.
        turned[..., :half].sub_(x[..., half:] * sin[..., :half])
        turned[..., half:].add_(x[..., :half] * sin[..., half:])
        return turned

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        half = grad.shape[-1] // 2
        back = grad * cos
        back[..., :half].add_(grad[..., half:] * sin[..., half:])
        back[..., half:].sub_(grad[..., :half] * sin[..., :half])
        return back, None, None
