"""What methods that put a head of their own on a classifier share: when they apply, what they count, what they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from luthier.core.component import StageFacts
from luthier.core.errors import ModelError, Problem, RunError
from luthier.models.heads import head_parameters, is_classifier
from luthier.models.layers import hidden_size
from luthier.models.pooling import Pooling, own_pooling, pooled_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def needs_classes(facts: StageFacts, kind: str) -> list[Problem]:
    """Return the problem of a method that trains a classifier's head under an objective that has none."""
    if facts.objective.model_dump()["kind"] in ("classify", "regress", "reward"):
        return []
    remedy = "use objective: classify with labelled rows, or another method (lora, layers)"
    return [
        Problem(f"The method {kind} trains the head of a classifier, and this objective has none.", "method", remedy)
    ]


def require_classifier(model: PreTrainedModel, kind: str) -> None:
    """Make sure that there is a head to train.

    Raises:
        ModelError: the model is none for classes.
    """
    if not is_classifier(model):
        what = f"The method {kind} trains the head of a classifier, and {type(model).__name__} has none."
        raise ModelError(Problem(what, "method", "use objective: classify"))


def settled_pooling(model: PreTrainedModel, wanted: Pooling | None) -> Pooling:
    """Return how sequences become features: as asked, else as the architecture does it."""
    return own_pooling(model) if wanted is None else wanted


def head_width(model: PreTrainedModel, pooling: Pooling) -> int:
    """Return the number of features that a head sees."""
    return hidden_size(model) * (3 if pooling == "concat" else 1)


def classes_of(model: PreTrainedModel) -> int:
    """Return the number of classes."""
    return len(model.config.id2label or {})


def beyond_own_head(model: PreTrainedModel, layers: Sequence[nn.Module]) -> int:
    """Return how many parameters a head of `layers` has more than the model's own, which is counted elsewhere."""
    own = set(head_parameters(model))
    size = sum(p.numel() for layer in layers for p in layer.parameters())
    return size - sum(p.numel() for n, p in model.named_parameters() if n in own)


def quiet_backbone(model: PreTrainedModel) -> None:
    """Take the dropout out of a frozen backbone: a row's features are the same each time."""
    for module in model.base_model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        rate = vars(module).get("attention_dropout")  # a number in Llama's kin, a module in others
        if isinstance(rate, float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def refuse_merge(model: PreTrainedModel, title: str) -> None:
    """Refuse to make a plain model of one whose head transformers does not have.

    Raises:
        RunError: the head was put there by a method.
    """
    if pooled_head(model) is not None:
        what = "This cannot be merged into a plain model: no class of transformers has this head."
        remedy = "use it with Luthier (luthier eval, luthier chat), or train with the model's own head"
        raise RunError(Problem(what, title, remedy))


def on_meta() -> torch.device:
    """Return the device on which layers have sizes and no numbers."""
    return torch.device("meta")
