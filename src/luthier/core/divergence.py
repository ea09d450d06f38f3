"""How far two models' distributions of the next token lie apart, chunk by chunk, with the gradient for one of them.

With p the other model and q the one in training, D is KL(p‖q), KL(q‖p) or ½KL(p‖m) + ½KL(q‖m) with m = (p + q)/2. All
three have a closed gradient with respect to q's logits, known as soon as a chunk's logits are:

    forward_kl   q − p
    reverse_kl   q·(r − Σ q·r)      r = log q − log p
    jsd          q·(r − Σ q·r)/2    r = log q − log m

so that, as in `core.logps`, both products of the backward pass are done on the spot and no (tokens × vocabulary) matrix
exists for more than a chunk. Where one vocabulary has rows to spare, the rows that both have are compared.

Shape legend: M supervised positions, C rows of a chunk, H hidden size (each model its own), V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from luthier.core.logps import (
    Head,
    _accumulate_product,
    _chunks,
    _compute_dtype,
    _head_tensors,
    _logits_buffer,
    _raw_logits,
    _shape_logits,
    _unshape_gradient,
    add_to_grad,
)
from luthier.core.matmul import product

Way = Literal["forward_kl", "reverse_kl", "jsd"]
LN2 = math.log(2.0)


@dataclass(frozen=True)
class Beliefs:
    """What a model expects at each supervised position: hidden states (M, H), and the head that reads them."""

    hidden_MH: Tensor
    head: Head

    def at(self, temperature: float) -> Beliefs:
        """Return the beliefs with logits divided by a temperature."""
        return Beliefs(self.hidden_MH, self.head.at(temperature))


def divergence_sum(mine: Beliefs, other: Beliefs, weights_M: Tensor, way: Way) -> Tensor:
    """Return Σ wᵢ·D(otherᵢ, mineᵢ), a float32 scalar, differentiable in `mine` alone."""
    if mine.head.project is not None:
        return _projected(mine, other, weights_M, way)
    weight_VH, bias_V = _head_tensors(mine.head)
    return _DivergenceSum.apply(mine.hidden_MH, weight_VH, bias_V, other, weights_M, mine.head, way)


@torch.no_grad()
def draw_tokens(beliefs: Beliefs, seed: int) -> Tensor:
    """Return one token (M,) drawn at each position from what is expected there; a function of the seed."""
    draws = torch.Generator(beliefs.hidden_MH.device).manual_seed(seed)
    found = [
        torch.multinomial(beliefs.head.logits(beliefs.hidden_MH[rows]).softmax(-1), 1, generator=draws)[:, 0]
        for rows in _chunks(len(beliefs.hidden_MH), beliefs.head.weight_VH.shape[0])
    ]
    return torch.cat(found) if found else beliefs.hidden_MH.new_zeros(0, dtype=torch.long)


def _values(logp_CV: Tensor, logq_CV: Tensor, way: Way) -> tuple[Tensor, Tensor]:
    """Return (D of each row (C,), its gradient with respect to the logits behind q (C, V))."""
    q_CV = logq_CV.exp()
    if way == "forward_kl":
        p_CV = logp_CV.exp()
        return (p_CV * (logp_CV - logq_CV)).sum(1), q_CV - p_CV
    if way == "reverse_kl":
        ratio_CV = logq_CV - logp_CV
        value_C = (q_CV * ratio_CV).sum(1)
        return value_C, q_CV * (ratio_CV - value_C[:, None])
    middle_CV = torch.logaddexp(logp_CV, logq_CV) - LN2
    ratio_CV = logq_CV - middle_CV
    from_q_C = (q_CV * ratio_CV).sum(1)
    from_p_C = (logp_CV.exp() * (logp_CV - middle_CV)).sum(1)
    return 0.5 * (from_p_C + from_q_C), 0.5 * q_CV * (ratio_CV - from_q_C[:, None])


def _shared_rows(mine: Head, other: Head) -> int:
    return min(mine.weight_VH.shape[0], other.weight_VH.shape[0])


def _projected(mine: Beliefs, other: Beliefs, weights_M: Tensor, way: Way) -> Tensor:
    """The general path: autograd through the model's own projection, chunk by chunk, recomputed backward."""
    size = _shared_rows(mine.head, other.head)

    def chunk(hidden_CH: Tensor, rows: slice) -> Tensor:
        with torch.no_grad():
            logp_CV = other.head.logits(other.hidden_MH[rows])[:, :size].log_softmax(-1)
        logq_CV = mine.head.logits(hidden_CH)[:, :size].log_softmax(-1)
        value_C, _ = _values(logp_CV, logq_CV, way)
        return (value_C * weights_M[rows]).sum()

    parts = [
        checkpoint(chunk, mine.hidden_MH[rows], rows, use_reentrant=False)
        for rows in _chunks(len(weights_M), mine.head.weight_VH.shape[0])
    ]
    return torch.stack(parts).sum() if parts else mine.hidden_MH.float().sum()


class _DivergenceSum(torch.autograd.Function):
    """Weighted sum of divergences whose gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx, hidden_MH, weight_VH, bias_V, other: Beliefs, weights_M, head: Head, way: Way):  # type: ignore[override]
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        dtype, size = _compute_dtype(hidden_MH), _shared_rows(head, other.head)
        work_VH, work_V = weight_VH[:size].to(dtype), None if bias_V is None else bias_V[:size]
        total = torch.zeros((), dtype=torch.float64, device=hidden_MH.device)
        grad_hidden = torch.empty_like(hidden_MH) if need_hidden else None
        grad_weight = torch.zeros_like(weight_VH) if need_weight else None
        grad_bias = torch.zeros_like(bias_V) if need_bias and bias_V is not None else None
        buffer = _logits_buffer(hidden_MH, size, dtype)
        for rows in _chunks(len(weights_M), size):
            hidden_CH = hidden_MH[rows].to(dtype)
            logits_CV, tanh_CV = _shape_logits(_raw_logits(hidden_CH, work_VH, work_V, buffer), head)
            logp_CV = other.head.logits(other.hidden_MH[rows])[:, :size].log_softmax(-1)
            value_C, grad_CV = _values(logp_CV, logits_CV.log_softmax(-1), way)
            total += (value_C * weights_M[rows]).sum(dtype=torch.float64)
            if not (need_hidden or need_weight or need_bias):
                continue
            grad_CV = _unshape_gradient(grad_CV * weights_M[rows][:, None], tanh_CV, head)
            if grad_bias is not None:
                grad_bias[:size] += grad_CV.sum(0)
            grad_CV = grad_CV.to(dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = product(grad_CV, work_VH.t()).to(grad_hidden.dtype)
            if grad_weight is not None:
                _accumulate_product(grad_weight[:size], grad_CV, hidden_CH)
        ctx.grads = (grad_hidden, grad_weight, grad_bias)
        ctx.leaf = weight_VH if head.adds_to_grad and grad_weight is not None else None
        return total.float()

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[override]
        if ctx.grads is None:
            raise RuntimeError("divergence_sum can be differentiated only once")
        grad_hidden, grad_weight, grad_bias = (g if g is None else g.mul_(upstream) for g in ctx.grads)
        ctx.grads = None  # freed at once: the head's gradient can be the largest tensor of the step
        if ctx.leaf is not None and grad_weight is not None:
            add_to_grad(ctx.leaf, grad_weight)
            grad_weight = None
        return grad_hidden, grad_weight, grad_bias, None, None, None, None
