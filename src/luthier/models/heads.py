"""The head of a classifier: what is new when a pretrained backbone learns to classify; every method trains it.

Heads differ: one matrix (`score`, `classifier`), or several layers (RoBERTa, DistilBERT). They stand beside the
backbone; BERT's pooler stands inside it, and belongs to the head where the pretrained model came without one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_NEW = "is_new_in_head"


def mark_new(model: nn.Module, names: Iterable[str]) -> None:
    """Remember the parameters inside the backbone that the pretrained folder did not have."""
    wanted = set(names)
    for name, parameter in model.named_parameters():
        setattr(parameter, _NEW, name in wanted)


def is_classifier(model: nn.Module) -> bool:
    """Return whether a transformers model gives one row of logits for a whole sequence."""
    return "ForSequenceClassification" in type(model).__name__


def head_parameters(model: nn.Module) -> list[str]:
    """Return the parameters of a classifier's new head; empty for a language model."""
    prefix = getattr(model, "base_model_prefix", "")
    if not is_classifier(model):
        return []
    return [n for n, p in model.named_parameters() if not n.startswith(f"{prefix}.") or getattr(p, _NEW, False)]


def head_modules(model: nn.Module) -> list[str]:
    """Return the children beside the backbone that hold the head's parameters, in order: `score`, `classifier`."""
    prefix = getattr(model, "base_model_prefix", "")
    beside = [n.partition(".")[0] for n in head_parameters(model) if not n.startswith(f"{prefix}.")]
    return list(dict.fromkeys(beside))
