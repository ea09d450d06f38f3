"""How many threads a model is worth on a CPU.

A thread more pays when the matrix products are large enough to share; below that the threads spend more time waiting
for each other than they save (8 M parameters on two cores: 1,880 tokens/s with two threads, 2,360 with one, at half the
processor time). The number depends on the model and the machine alone, so a resumed run computes the same bits.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

WEIGHTS_PER_THREAD = 250_000
"""Mean size of a model's matrices for which one more thread pays."""


def worthwhile_threads(model: nn.Module, available: int) -> int:
    """Return how many of the available threads a model's products can use: one for each WEIGHTS_PER_THREAD."""
    return threads_for([p.numel() for p in model.parameters() if p.ndim >= 2], available)


def threads_for(sizes: Sequence[int], available: int) -> int:
    """Return the same for a model whose matrices have these sizes."""
    mean = sum(sizes) / max(len(sizes), 1)
    return max(1, min(available, round(mean / WEIGHTS_PER_THREAD)))


def set_threads(model: nn.Module) -> int:
    """Use as many threads as pay for a model; a number that the user has set in OMP_NUM_THREADS stays."""
    import torch

    if not os.environ.get("OMP_NUM_THREADS"):
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        torch.set_num_threads(worthwhile_threads(model, cores))
    return torch.get_num_threads()
