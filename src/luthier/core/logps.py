"""The one place where hidden states become log-probabilities.

Logits are made in chunks of rows, only at supervised positions, so that a (tokens × vocabulary) matrix never exists.
For a loss the gradient with respect to the logits is (softmax − one-hot)·weight, known as soon as a chunk's logits are:
both matrix products of the backward pass are done on the spot, while the chunk is in cache, and nothing is recomputed
(three products a chunk in all, the minimum; the idea is that of Liger's fused linear cross-entropy, arXiv:2410.10989).

Shape legend: M supervised positions, C rows of a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from luthier.core.matmul import add_outer, product

CHUNK_BYTES = 8 * 2**20
"""Size of one chunk of float32 logits; larger ones run no faster and cost memory."""
CHUNK_ROWS = 64
"""A chunk has at least so many rows: thinner products would wait for the head's weights to arrive from memory."""


@dataclass(frozen=True)
class Head:
    """How a model turns its last hidden state into logits: softcap(scale · (h·Wᵀ + b)).

    Attributes:
        weight_VH: (V, H).
        bias_V: (V,) or None.
        scale: factor on the logits (Cohere multiplies, Granite divides).
        softcap: c in c·tanh(logits/c) (Gemma 2), or None.
        project: the model's own h·Wᵀ + b, (C, H) → (C, V), for heads that are no plain matrix; None otherwise.
        adds_to_grad: the loss adds the weight's gradient to `weight.grad` itself. Autograd would hold a second matrix
            of that size while it waits for the gradient of tied embeddings. Only where no hook watches the weight.
        upstream: what `nll_sum` will be multiplied by before it is differentiated, where that is known. With
            `adds_to_grad` the weight's gradient then goes straight to its place, and no second matrix ever exists.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    project: Callable[[Tensor], Tensor] | None = None
    adds_to_grad: bool = False
    upstream: float | None = None

    def at(self, temperature: float) -> Head:
        """Return the head whose logits are divided by a temperature."""
        if temperature == 1.0:
            return self
        softcap = None if self.softcap is None else self.softcap / temperature
        return replace(self, scale=self.scale / temperature, softcap=softcap)

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """Return float32 logits (C, V); differentiable. For sampling and for heads with a projection of their own."""
        if self.project is not None:
            logits_CV = self.project(hidden_CH)
        else:
            logits_CV = torch.nn.functional.linear(hidden_CH, self.weight_VH.to(hidden_CH.dtype), self.bias_V)
        return _shape_logits(logits_CV.float(), self)[0]


def nll_sum(hidden_MH: Tensor, head: Head, targets_M: Tensor, weights_M: Tensor) -> Tensor:
    """Return Σ wᵢ·(−log p(targetᵢ)), a float32 scalar, differentiable in hidden states and head."""
    if head.project is not None:
        return -(_projected_logps(hidden_MH, head, targets_M) * weights_M).sum()
    return _NllSum.apply(hidden_MH, *_head_tensors(head), targets_M, weights_M, head)


def logps(hidden_MH: Tensor, head: Head, targets_M: Tensor) -> Tensor:
    """Return log p(targetᵢ), (M,) float32, differentiable in hidden states and head."""
    if head.project is not None:
        return _projected_logps(hidden_MH, head, targets_M)
    return _Logps.apply(hidden_MH, *_head_tensors(head), targets_M, head)


def _head_tensors(head: Head) -> tuple[Tensor, Tensor | None]:
    """Weight and bias; detached under no_grad, where an autograd function would still take them for trained."""
    if torch.is_grad_enabled():
        return head.weight_VH, head.bias_V
    return head.weight_VH.detach(), None if head.bias_V is None else head.bias_V.detach()


def _projected_logps(hidden_MH: Tensor, head: Head, targets_M: Tensor) -> Tensor:
    """The general path: autograd through the model's own projection, chunk by chunk, recomputed backward."""

    def chunk_logps(hidden_CH: Tensor, targets_C: Tensor) -> Tensor:
        logits_CV = head.logits(hidden_CH)
        return logits_CV.gather(1, targets_C[:, None]).squeeze(1) - logits_CV.logsumexp(1)

    parts = [
        checkpoint(chunk_logps, hidden_MH[rows], targets_M[rows], use_reentrant=False)
        for rows in _chunks(len(targets_M), head.weight_VH.shape[0])
    ]
    return torch.cat(parts) if parts else hidden_MH.sum(1).float()


def entropies(hidden_MH: Tensor, head: Head) -> Tensor:
    """Return the entropy of the next token in nats, (M,) float32, differentiable in hidden states and head."""

    def chunk_entropies(hidden_CH: Tensor) -> Tensor:
        logps_CV = head.logits(hidden_CH).log_softmax(-1)
        return -(logps_CV.exp() * logps_CV).sum(-1)

    parts = [
        checkpoint(chunk_entropies, hidden_MH[rows], use_reentrant=False)
        for rows in _chunks(len(hidden_MH), head.weight_VH.shape[0])
    ]
    return torch.cat(parts) if parts else hidden_MH.sum(1).float()


def is_likeliest(hidden_MH: Tensor, head: Head, targets_M: Tensor) -> Tensor:
    """Return whether each target is the token that is expected most, (M,) bool; without gradients."""
    parts = [
        head.logits(hidden_MH[rows]).argmax(-1) == targets_M[rows]
        for rows in _chunks(len(targets_M), head.weight_VH.shape[0])
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool, device=hidden_MH.device)


def _chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    size = max(CHUNK_ROWS, CHUNK_BYTES // (4 * vocabulary))
    # Equal chunks: a last chunk of three rows would run its products at a fraction of the speed.
    count = max(1, -(-rows // size))
    size = -(-rows // count)
    for start in range(0, rows, max(size, 1)):
        yield slice(start, min(start + size, rows))


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return hidden.dtype


def _logits_buffer(hidden_MH: Tensor, vocabulary: int, dtype: torch.dtype) -> Tensor:
    """Return the place of one chunk's logits. Allocated anew for each chunk, its pages would be cleared every time."""
    rows = max((r.stop - r.start for r in _chunks(len(hidden_MH), vocabulary)), default=0)
    return hidden_MH.new_empty((rows, vocabulary), dtype=dtype)


def _raw_logits(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, buffer: Tensor) -> Tensor:
    if torch.is_autocast_enabled(hidden_CH.device.type):  # `out=` is not for autocast
        logits_CV = product(hidden_CH, weight_VH)
    else:
        logits_CV = product(hidden_CH, weight_VH, out=buffer[: hidden_CH.shape[0]])
    if bias_V is not None:
        logits_CV += bias_V
    return logits_CV.float()


def _shape_logits(logits_CV: Tensor, head: Head) -> tuple[Tensor, Tensor | None]:
    """Apply scale and soft cap; also return tanh, which the cap's derivative needs."""
    if head.scale != 1.0:
        logits_CV = logits_CV * head.scale
    if head.softcap is None:
        return logits_CV, None
    tanh_CV = torch.tanh(logits_CV / head.softcap)
    return tanh_CV * head.softcap, tanh_CV


def _unshape_gradient(grad_CV: Tensor, tanh_CV: Tensor | None, head: Head) -> Tensor:
    if tanh_CV is not None:
        grad_CV *= 1.0 - tanh_CV * tanh_CV
    if head.scale != 1.0:
        grad_CV *= head.scale
    return grad_CV


def _normalise(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (−log p of the targets (C,), exp(logits − max) (C, V), its row sums (C,)); overwrites the logits."""
    picked_C = logits_CV.gather(1, targets_C[:, None]).squeeze(1)
    top_C1 = logits_CV.amax(1, keepdim=True)
    exp_CV = logits_CV.sub_(top_C1).exp_()
    sum_C = exp_CV.sum(1)
    return sum_C.log() + top_C1.squeeze(1) - picked_C, exp_CV, sum_C


def _weighted_gradient(exp_CV: Tensor, sum_C: Tensor, targets_C: Tensor, weights_C: Tensor) -> Tensor:
    """Return w·∂(−log p)/∂logits = w·(softmax − one-hot), overwriting `exp_CV`."""
    grad_CV = exp_CV.mul_((weights_C / sum_C)[:, None])
    grad_CV[torch.arange(len(targets_C), device=targets_C.device), targets_C] -= weights_C
    return grad_CV


class _NllSum(torch.autograd.Function):
    """Weighted sum of negative log-likelihoods whose gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx, hidden_MH, weight_VH, bias_V, targets_M, weights_M, head: Head):  # type: ignore[override]
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        dtype = _compute_dtype(hidden_MH)
        work_VH = weight_VH.to(dtype)
        total = torch.zeros((), dtype=torch.float64, device=hidden_MH.device)
        is_direct = need_weight and head.adds_to_grad and head.upstream is not None
        ctx.scale = head.upstream if is_direct else 1.0
        grad_hidden = torch.empty_like(hidden_MH) if need_hidden else None
        grad_weight = _grad_of(weight_VH) if is_direct else torch.zeros_like(weight_VH) if need_weight else None
        grad_bias = torch.zeros_like(bias_V) if need_bias else None
        buffer = _logits_buffer(hidden_MH, weight_VH.shape[0], dtype)
        for rows in _chunks(len(targets_M), weight_VH.shape[0]):
            hidden_CH, targets_C, weights_C = hidden_MH[rows].to(dtype), targets_M[rows], weights_M[rows]
            logits_CV, tanh_CV = _shape_logits(_raw_logits(hidden_CH, work_VH, bias_V, buffer), head)
            nll_C, exp_CV, sum_C = _normalise(logits_CV, targets_C)
            total += (nll_C * weights_C).sum(dtype=torch.float64)
            if not (need_hidden or need_weight or need_bias):
                continue
            grad_CV = _weighted_gradient(exp_CV, sum_C, targets_C, weights_C * ctx.scale)
            grad_CV = _unshape_gradient(grad_CV, tanh_CV, head)
            if grad_bias is not None:
                grad_bias += grad_CV.sum(0)
            grad_CV = grad_CV.to(dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = product(grad_CV, work_VH.t()).to(grad_hidden.dtype)
            if grad_weight is not None:
                _accumulate_product(grad_weight, grad_CV, hidden_CH)
        ctx.is_direct = is_direct
        ctx.grads = (grad_hidden, None if is_direct else grad_weight, grad_bias)
        ctx.leaf = weight_VH if head.adds_to_grad and grad_weight is not None else None
        return total.float()

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[override]
        if ctx.grads is None:
            raise RuntimeError("nll_sum can be differentiated only once; use logps where a second pass is needed")
        factor = upstream / ctx.scale
        if ctx.is_direct and factor.device.type == "cpu":  # elsewhere the look would cost a synchronisation
            assert abs(float(factor) - 1.0) < 1e-4, "the weight's gradient was made for another factor"
        grad_hidden, grad_weight, grad_bias = (g if g is None else g.mul_(factor) for g in ctx.grads)
        ctx.grads = None  # freed at once: the head's gradient can be the largest tensor of the step
        if ctx.leaf is not None and grad_weight is not None:
            add_to_grad(ctx.leaf, grad_weight)
            grad_weight = None
        return grad_hidden, grad_weight, grad_bias, None, None, None


class _Logps(torch.autograd.Function):
    """Per-token log-probabilities.

    ∂log pᵢ/∂hᵢ does not depend on what arrives from above but for a factor per row, so it too is made in the forward
    pass; only a trained head makes the backward pass recompute its logits.
    """

    @staticmethod
    def forward(ctx, hidden_MH, weight_VH, bias_V, targets_M, head: Head):  # type: ignore[override]
        dtype = _compute_dtype(hidden_MH)
        work_VH = weight_VH.to(dtype)
        out_M = torch.empty(len(targets_M), dtype=torch.float32, device=hidden_MH.device)
        unit_MH = torch.empty_like(hidden_MH) if ctx.needs_input_grad[0] else None
        buffer = _logits_buffer(hidden_MH, weight_VH.shape[0], dtype)
        for rows in _chunks(len(targets_M), weight_VH.shape[0]):
            targets_C = targets_M[rows]
            logits_CV, tanh_CV = _shape_logits(_raw_logits(hidden_MH[rows].to(dtype), work_VH, bias_V, buffer), head)
            nll_C, exp_CV, sum_C = _normalise(logits_CV, targets_C)
            out_M[rows] = -nll_C
            if unit_MH is not None:
                grad_CV = _weighted_gradient(exp_CV, sum_C, targets_C, -torch.ones_like(sum_C))
                grad_CV = _unshape_gradient(grad_CV, tanh_CV, head)
                unit_MH[rows] = product(grad_CV.to(dtype), work_VH.t()).to(unit_MH.dtype)
        trains_head = any(ctx.needs_input_grad[1:3])
        ctx.save_for_backward(unit_MH, *((hidden_MH, weight_VH, bias_V, targets_M) if trains_head else ()))
        ctx.head, ctx.dtype = head, dtype
        return out_M

    @staticmethod
    def backward(ctx, upstream_M):  # type: ignore[override]
        unit_MH, *saved = ctx.saved_tensors
        grad_hidden = None if unit_MH is None else unit_MH * upstream_M[:, None].to(unit_MH.dtype)
        grad_weight = grad_bias = None
        if saved:
            hidden_MH, weight_VH, bias_V, targets_M = saved
            grad_weight = torch.zeros_like(weight_VH) if ctx.needs_input_grad[1] else None
            grad_bias = torch.zeros_like(bias_V) if ctx.needs_input_grad[2] else None
            work_VH = weight_VH.to(ctx.dtype)
            buffer = _logits_buffer(hidden_MH, weight_VH.shape[0], ctx.dtype)
            for rows in _chunks(len(targets_M), weight_VH.shape[0]):
                hidden_CH = hidden_MH[rows].to(ctx.dtype)
                logits_CV, tanh_CV = _shape_logits(_raw_logits(hidden_CH, work_VH, bias_V, buffer), ctx.head)
                _, exp_CV, sum_C = _normalise(logits_CV, targets_M[rows])
                grad_CV = _weighted_gradient(exp_CV, sum_C, targets_M[rows], -upstream_M[rows].float())
                grad_CV = _unshape_gradient(grad_CV, tanh_CV, ctx.head)
                if grad_bias is not None:
                    grad_bias += grad_CV.sum(0)
                if grad_weight is not None:
                    _accumulate_product(grad_weight, grad_CV.to(ctx.dtype), hidden_CH)
        return grad_hidden, grad_weight, grad_bias, None, None


def add_to_grad(parameter: Tensor, grad: Tensor) -> None:
    """Add to `parameter.grad`, taking `grad` over where there is none yet."""
    if parameter.grad is None:
        parameter.grad = grad
    else:
        parameter.grad.add_(grad)


def _grad_of(parameter: Tensor) -> Tensor:
    """Return `parameter.grad`, made of zeros where there is none yet."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _accumulate_product(grad_VH: Tensor, grad_CV: Tensor, hidden_CH: Tensor) -> None:
    """grad_VH += grad_CVᵀ·hidden_CH, in place where the dtypes allow it."""
    if grad_CV.dtype == grad_VH.dtype:
        add_outer(grad_VH, grad_CV, hidden_CH)
    else:
        grad_VH += grad_CV.t() @ hidden_CH
