"""Layers whose update can be folded into one matrix: what writes many tokens with the same weights folds them once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import linear

MOST_BYTES = 2**28
"""Folded matrices are a second copy of the adapted ones; beyond this they are left as they are."""


class Foldable:
    """A layer x ↦ x·Wᵀ + b in some cases."""

    def folded(self) -> tuple[Tensor, Tensor | None] | None:
        """Return a new W and b that do the same without gradient, or None where nothing of the kind is exact."""
        raise NotImplementedError


@contextmanager
def folded(module: nn.Module) -> Iterator[None]:
    """Run the body, without gradients, with the layers of a model folded."""
    layers = [m for m in module.modules() if isinstance(m, Foldable) and "forward" not in vars(m)]
    changed: list[nn.Module] = []
    room = MOST_BYTES
    try:
        for layer in layers:
            found = layer.folded()
            if found is None:
                continue
            room -= found[0].numel() * found[0].element_size()
            if room < 0:
                break
            assert isinstance(layer, nn.Module)
            layer.forward = partial(linear, weight=found[0], bias=found[1])
            changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.forward
