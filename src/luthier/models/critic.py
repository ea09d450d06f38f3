"""The critic: what a policy expects to be given from a position on, read from its own last hidden state."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Critic(nn.Module):
    """One number for each hidden state, at first 0 for all.

    Attributes:
        kl_coefficient: what a nat of distance from the start costs now, where that is adapted.
    """

    kl_coefficient: Tensor

    def __init__(self, hidden_size: int, kl_coefficient: float) -> None:
        super().__init__()
        self.value = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        self.register_buffer("kl_coefficient", torch.tensor(kl_coefficient, dtype=torch.float64))

    def forward(self, hidden_MH: Tensor) -> Tensor:
        """Return values (M,) float32."""
        with torch.autocast(hidden_MH.device.type, enabled=False):
            return self.value(hidden_MH.float())[:, 0]
