"""From the hidden states of a sequence to one vector, and heads that start from it.

Shape legend: N positions, S sequences, H hidden size, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from luthier.models.heads import head_modules, head_parameters, mark_new

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from luthier.core.batch import Batch

Pooling = Literal["own", "last", "mean", "max", "cls", "concat"]
Activation = Literal["relu", "gelu", "tanh"]


def pool(hidden_NH: Tensor, batch: Batch, pooling: Pooling) -> Tensor:
    """Return one vector for each sequence, (S, H), or (S, 3H) for concat: last, max and mean, as ULMFiT has them."""
    if pooling == "cls":
        return hidden_NH.index_select(0, batch.starts_S)
    last_SH = hidden_NH.index_select(0, batch.ends_S)
    if pooling == "last":
        return last_SH
    parts = _sequences(hidden_NH, batch)
    if pooling == "mean":
        return torch.stack([part.mean(0) for part in parts])
    max_SH = torch.stack([part.amax(0) for part in parts])
    if pooling == "max":
        return max_SH
    return torch.cat([last_SH, max_SH, torch.stack([part.mean(0) for part in parts])], dim=-1)


def _sequences(hidden_NH: Tensor, batch: Batch) -> list[Tensor]:
    """Return the states of each sequence, (L, H); those of a shared beginning stand in several."""
    if not batch.is_packed:
        width = batch.tokens.shape[1]
        return [hidden_NH[i * width : i * width + length] for i, length in enumerate(batch.lengths)]
    found = []
    for piece_LH, endings in zip(hidden_NH.split(batch.pieces), batch.branches or [()] * len(batch.pieces)):
        beginning, *rest = piece_LH.split([len(piece_LH) - sum(endings), *endings])
        found += [torch.cat([beginning, ending]) for ending in rest] or [beginning]
    return found


class PooledHead(nn.Sequential):
    """Layers from a pooled vector to the logits of classes; a classifier pools as its head says."""

    def __init__(self, pooling: Pooling, layers: Sequence[nn.Module]) -> None:
        super().__init__(*layers)
        self.pooling: Pooling = pooling


def dense_layers(
    inputs: int, hidden: Sequence[int], classes: int, activation: Activation, dropout: float
) -> list[nn.Module]:
    """Return dropout, dense, activation for each hidden size, then dropout and the dense layer of the classes."""
    kinds = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Dropout(dropout), nn.Linear(inputs, size), kinds[activation]()]
        inputs = size
    return [*layers, nn.Dropout(dropout), nn.Linear(inputs, classes)]


def own_pooling(model: PreTrainedModel) -> Pooling:
    """Return how the architecture itself pools: `last` for decoders, `own` where a trained pooler or a head of several
    layers stands above the first token, `cls` where that pooler is new."""
    if "score" in head_modules(model):
        return "last"
    prefix = f"{model.base_model_prefix}."
    return "cls" if any(n.startswith(prefix) for n in head_parameters(model)) else "own"


def replace_head(model: PreTrainedModel, head: PooledHead) -> None:
    """Put a head in the place of the model's own; what then has no use any more is taken out of training."""
    first, *others = head_modules(model)
    device = next(model.parameters()).device
    setattr(model, first, head.to(device))
    for name in others:
        setattr(model, name, nn.Identity())
    if head.pooling != "own":
        mark_new(model, ())


def unread_parameters(model: PreTrainedModel) -> list[str]:
    """Return the parameters of BERT's pooler where a head pools by itself: nothing reads them any more."""
    head = pooled_head(model)
    if head is None or head.pooling == "own":
        return []
    return [n for n, _ in model.named_parameters() if n.startswith(f"{model.base_model_prefix}.pooler.")]


def pooled_head(model: PreTrainedModel) -> PooledHead | None:
    """Return the head that was put in place of the model's own, if any."""
    return next((m for m in model.children() if isinstance(m, PooledHead)), None)
