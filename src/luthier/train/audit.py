"""The freeze audit: what was declared trainable is what moved, bit for bit.

Every tensor is hashed before training and after it. A freeze flag that nobody checks is how a "LoRA run" trains every
layer, or none.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Audit:
    """The outcome.

    Attributes:
        frozen: number of tensors declared frozen.
        frozen_changed: those whose bits changed nevertheless (must be empty).
        trained: number of tensors declared trainable.
        trained_unchanged: those that did not move at all (a target that never received a gradient).
    """

    frozen: int
    frozen_changed: tuple[str, ...]
    trained: int
    trained_unchanged: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.frozen_changed and len(self.trained_unchanged) < max(self.trained, 1)

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "passed": self.passed}


def digests(module: nn.Module) -> dict[str, str]:
    """Return a hash of the bits of every parameter, by full name."""
    return {name: _digest(p) for name, p in module.named_parameters()}


def audit(module: nn.Module, before: dict[str, str]) -> Audit:
    """Compare the module's tensors with their hashes from the start of training."""
    after = digests(module)
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    return Audit(
        frozen=len(after) - len(trained),
        frozen_changed=tuple(n for n in after if n not in trained and after[n] != before.get(n)),
        trained=len(trained),
        trained_unchanged=tuple(n for n in after if n in trained and after[n] == before.get(n)),
    )


def _digest(tensor: torch.Tensor) -> str:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu()
    bits = memoryview(flat.numpy())  # type: ignore[arg-type]
    return hashlib.blake2b(bits, digest_size=12).hexdigest()
