"""Attention over packed sequences: exact, differentiable, without a mask, on any device.

Sequences stand end to end in one row; attention runs segment by segment through PyTorch's fused kernel, so nothing of
size N×N exists and no sequence can see another. Registered with transformers as the attention implementation "luthier";
the borders arrive as the keyword `cu_seq_lens_q`, which model code hands through untouched. Without borders (in
generation and padded batches) it is ordinary masked attention.

A segment may branch (keyword `segment_branches`): a beginning, and endings that see it and themselves, not each other.

Trained keys and values (prefix tuning) arrive as the keyword `kv_prefix`. They stand before every sequence's own as a
cache of P entries would: at places 0 … P−1, not rotated, seen by all, lost to a query whose window has passed them.

Shape legend: B batch, A attention heads, K key/value heads, L length, S keys, P prefix, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

if TYPE_CHECKING:
    from luthier.core.batch import Batch

NAME = "luthier"
_UNSAID = -1
"""Stands for a window that the model's code does not hand to its attention."""


@dataclass(frozen=True)
class Prefix:
    """Keys and values that every sequence sees before its own.

    Attributes:
        states: (2·layers, K, P, D), each layer's keys and then its values.
        positions: (B, L) or (1, L), the place of each query in its own sequence, from 0.
        seen: the layers that have asked for their part.
    """

    states: Tensor
    positions: Tensor
    seen: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return self.states.shape[2]

    def before(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, K, P + S, D) of a layer with its prefix before them.

        Raises:
            NotImplementedError: the module does not know its layer (ALBERT has one for all), or its keys are others.
        """
        layer = vars(module).get("layer_idx")
        if not isinstance(layer, int):
            raise NotImplementedError("attention that does not know its layer")
        if (self.states.shape[1], self.states.shape[3]) != (key.shape[1], key.shape[3]):
            raise NotImplementedError("layers with keys of another shape than the config says")
        self.seen.add(layer)
        own = self.states[2 * layer : 2 * layer + 2].to(key.dtype)[:, None].expand(-1, key.shape[0], -1, -1, -1)
        return torch.cat([own[0], key], dim=2), torch.cat([own[1], value], dim=2)


def register() -> None:
    """Make the implementation known to transformers (once; registering again changes nothing)."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, segmented_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def packed_keywords(batch: Batch) -> dict[str, object]:
    """Return the keywords by which attention learns where the pieces of a packed batch begin, and how they branch."""
    keywords: dict[str, object] = {"cu_seq_lens_q": batch.cumulative_P1, "segment_lengths": batch.pieces}
    if batch.branches:
        keywords["segment_branches"] = batch.branches
    return keywords


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
    segment_branches: tuple[tuple[int, ...], ...] | None = None,
    kv_prefix: Prefix | None = None,
    **unused: object,
) -> tuple[Tensor, None]:
    """Return attention output (B, L, A, D).

    Args:
        query: (B, A, L, D); key and value: (B, K, L, D).
        cu_seq_lens_q: (S+1,) borders of packed sequences, or None.
        segment_lengths: the same as lengths on the host, so that no device synchronisation is needed.
        segment_branches: of each segment the lengths of its endings; none where it is one sequence.
        kv_prefix: keys and values before those of every sequence.

    Raises:
        NotImplementedError: the model's attention has a part that packed sequences cannot keep; the loader then pads.
    """
    if unused.get("s_aux") is not None:
        raise NotImplementedError("attention sinks")
    is_causal = bool(getattr(module, "is_causal", True))  # false in encoders; as transformers asks it
    is_whole = attention_mask is None and query.shape[2] == key.shape[2]
    window = None if cu_seq_lens_q is None and kv_prefix is None else _known_window(module, sliding_window, is_causal)
    if cu_seq_lens_q is None and (kv_prefix is None or not is_whole):
        if kv_prefix is not None:
            attention_mask = _prefixed_mask(attention_mask, kv_prefix, window, query, key)
            key, value = kv_prefix.before(module, key, value)
        # No mask and several queries means plain causal; a single query (generation) sees everything before it.
        causal = is_causal and attention_mask is None and query.shape[2] > 1
        out = _attend(query, key, value, attention_mask, dropout, scaling, softcap, is_causal=causal)
        return out.transpose(1, 2).contiguous(), None
    if cu_seq_lens_q is None:
        lengths = (query.shape[2],)
    else:
        lengths = segment_lengths or tuple(cu_seq_lens_q.diff().tolist())
    parts = []
    segments = zip(*(t.split(lengths, dim=2) for t in (query, key, value)))
    if segment_branches:
        segments, own = _paths(segments, segment_branches)
    else:
        own = [0] * len(lengths)
    for (q, k, v), shared in zip(segments, own):
        if kv_prefix is not None:
            k, v = kv_prefix.before(module, k, v)
        skipped = (0 if kv_prefix is None else len(kv_prefix)) + shared
        if skipped:
            q = pad(q, (0, 0, skipped, 0))  # empty queries keep the diagonal where the fused causal kernel has it
        length = q.shape[2]
        band = None
        if window is not None and length > window:
            band = _band(length, window, q.device)
        causal = is_causal and band is None
        out = _attend(q, k, v, band, dropout, scaling, softcap, is_causal=causal)
        parts.append(out[:, :, skipped:].transpose(1, 2))
    return torch.cat(parts, dim=1), None


def _paths(
    segments: Iterator[tuple[Tensor, Tensor, Tensor]], branches: Sequence[tuple[int, ...]]
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], list[int]]:
    """Return queries, keys and values of each way through a segment, and how many keys stand before its queries.

    The first way is the beginning with the first ending, as they lie; of the others only the endings ask.
    """
    found, shared = [], []
    for (q, k, v), endings in zip(segments, branches):
        if not endings:
            found.append((q, k, v))
            shared.append(0)
            continue
        beginning = q.shape[2] - sum(endings)
        start = beginning
        for length in endings:
            here = slice(start, start + length)
            if start == beginning:
                found.append((q[:, :, : here.stop], k[:, :, : here.stop], v[:, :, : here.stop]))
            else:
                keys, values = (torch.cat([t[:, :, :beginning], t[:, :, here]], dim=2) for t in (k, v))
                found.append((q[:, :, here], keys, values))
            shared.append(0 if start == beginning else beginning)
            start = here.stop
    return found, shared


def _known_window(module: nn.Module, window: int | None, is_causal: bool) -> int | None:
    """Return the layer's window; the mask cannot tell it where there is none."""
    if window is not None and not is_causal and window != _UNSAID:
        raise NotImplementedError("a window that looks both ways")
    if window != _UNSAID:
        return window
    if getattr(getattr(module, "config", None), "sliding_window", None):
        # Some code (Qwen2-MoE, Phi-3.5-MoE) puts its window into the mask alone, and packed attention has no mask.
        raise NotImplementedError("a sliding window that only the mask knows")
    return None


def _prefixed_mask(mask: Tensor | None, prefix: Prefix, window: int | None, query: Tensor, key: Tensor) -> Tensor:
    """Return the mask (B, 1, L, P + S) that also says who sees the prefix.

    Places are counted in each row's own sequence, so that padding on its left does not push the prefix out of a window.
    """
    rows, length, size = query.shape[0], query.shape[2], len(prefix)
    if mask is None:
        assert length == 1, "several queries behind a cache come with a mask"
        mask = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool, device=query.device)
    if mask.dtype != torch.bool:
        raise NotImplementedError("a mask of numbers")
    columns = torch.ones(1, length, size, dtype=torch.bool, device=query.device)
    if window is not None:
        place = torch.arange(size, device=query.device)
        columns = place > (prefix.positions[..., None] + size - window)
    columns = columns[:, None].expand(rows, 1, length, size)
    return torch.cat([columns, mask.expand(rows, 1, length, -1)], dim=-1)


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
