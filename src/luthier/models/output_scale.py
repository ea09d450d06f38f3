"""The last layer of a head, and how fast it learns to give numbers of another size than one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from luthier.models.heads import head_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def output_layer(model: PreTrainedModel) -> nn.Linear | None:
    """Return the layer that gives a classifier's logits; None where it is no plain layer."""
    found = None
    children = dict(model.named_children())
    for name in head_modules(model):
        for layer in children[name].modules():
            if isinstance(layer, nn.Linear):
                found = layer
    return found


def scaled_groups(groups: list[dict[str, object]], model: PreTrainedModel, scale: float) -> list[dict[str, object]]:
    """Return optimizer groups in which the last layer learns `scale` times as fast as it would."""
    layer = output_layer(model)
    own = set() if layer is None or scale == 1.0 else {id(p) for p in layer.parameters()}
    found: list[dict[str, object]] = []
    for group in groups:
        params = group["params"]
        assert isinstance(params, list)
        mine = [p for p in params if id(p) in own]
        rest = [p for p in params if id(p) not in own]
        if rest:
            found.append({**group, "params": rest})
        if mine:
            usual = group.get("lr_scale", 1.0)
            assert isinstance(usual, int | float)
            found.append({**group, "params": mine, "lr_scale": usual * scale})
    return found
