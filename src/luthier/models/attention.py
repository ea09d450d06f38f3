"""Attention over packed sequences: exact, differentiable, without a mask, on any device.

Sequences stand end to end in one row; attention runs segment by segment through PyTorch's fused kernel, so nothing of
size N×N exists and no sequence can see another. Registered with transformers as the attention implementation "luthier";
the borders arrive as the keyword `cu_seq_lens_q`, which model code hands through untouched. Without borders (in
generation and padded batches) it is ordinary masked attention.

Shape legend: B batch, A attention heads, K key/value heads, L length, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

NAME = "luthier"
_UNSAID = -1
"""Stands for a window that the model's code does not hand to its attention."""


def register() -> None:
    """Make the implementation known to transformers (once; registering again changes nothing)."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, segmented_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def unread_mask(device: torch.device) -> Tensor:
    """Return a mask that stops transformers from building one: a 4-D mask is handed through, and nothing reads this."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def segmented_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = _UNSAID,
    softcap: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    segment_lengths: tuple[int, ...] | None = None,
    **unused: object,
) -> tuple[Tensor, None]:
    """Return attention output (B, L, A, D).

    Args:
        query: (B, A, L, D); key and value: (B, K, L, D).
        cu_seq_lens_q: (S+1,) borders of packed sequences, or None.
        segment_lengths: the same as lengths on the host, so that no device synchronisation is needed.

    Raises:
        NotImplementedError: the model's attention has a part that packed sequences cannot keep; the loader then pads.
    """
    if unused.get("s_aux") is not None:
        raise NotImplementedError("attention sinks")
    if cu_seq_lens_q is None:
        # No mask and several queries means plain causal; a single query (generation) sees everything before it.
        causal = attention_mask is None and query.shape[2] > 1
        out = _attend(query, key, value, attention_mask, dropout, scaling, softcap, is_causal=causal)
        return out.transpose(1, 2).contiguous(), None
    if sliding_window == _UNSAID:
        if getattr(getattr(module, "config", None), "sliding_window", None):
            # Some code (Qwen2-MoE, Phi-3.5-MoE) puts its window into the mask alone, and packed attention has no mask.
            raise NotImplementedError("a sliding window that only the mask knows")
        sliding_window = None
    lengths = segment_lengths or tuple(cu_seq_lens_q.diff().tolist())
    parts = []
    for q, k, v in zip(*(t.split(lengths, dim=2) for t in (query, key, value))):
        length = q.shape[2]
        band = None
        if sliding_window is not None and length > sliding_window:
            band = _band(length, sliding_window, q.device)
        parts.append(_attend(q, k, v, band, dropout, scaling, softcap, is_causal=band is None).transpose(1, 2))
    return torch.cat(parts, dim=1), None


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    is_causal: bool,
) -> Tensor:
    if softcap is None:
        grouped = q.shape[1] != k.shape[1]
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling, is_causal=is_causal, enable_gqa=grouped
        )
    return _softcapped(q, k, v, _causal(q, k) if is_causal else mask, dropout, scaling, softcap)


def _softcapped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scaling: float | None, softcap: float
) -> Tensor:
    """Attention with capped scores (Gemma 2); the fused kernel has no place for the cap."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(2, 3) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        mask = mask[..., : k.shape[2]]
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    probs = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.nn.functional.dropout(probs, dropout) @ v


def _causal(q: Tensor, k: Tensor) -> Tensor:
    return torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """Causal mask in which a position sees itself and the `window` − 1 before it, as transformers defines it."""
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril() & ones.triu(1 - window)
