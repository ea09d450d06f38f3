"""AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from luthier.optim.base import Optimizer

if TYPE_CHECKING:
    import torch


class AdamW(Optimizer):
    """AdamW, fused: one pass over the tensors and no temporaries, on CPU and GPU."""

    kind: Literal["adamw"] = "adamw"

    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment (momentum)."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the second moment. 0.95 to 0.99 reacts faster and suits short runs."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment, against division by zero."""

    def build(self, groups: list[dict[str, object]], learning_rate: float) -> torch.optim.Optimizer:
        """Return a torch optimizer over parameter groups."""
        import torch

        return torch.optim.AdamW(groups, lr=learning_rate, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)
