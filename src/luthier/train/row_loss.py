"""What a model loses on each row by itself: sums of log-loss and how many tokens they are over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from luthier.train.microbatch import Cut

if TYPE_CHECKING:
    from luthier.core.batch import Example
    from luthier.models.loaded import LoadedModel


def row_losses(model: LoadedModel, examples: Sequence[Example], cut: Cut | None = None) -> np.ndarray:
    """Return Σ −log p and the number of supervised tokens of each example, (N, 2) float64; weights count as 0 or 1.

    Examples of like length go together, so that little is padded; the result is in the order given.
    """
    import torch

    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))
    found = np.zeros((len(examples), 2))
    done = 0
    with model.evaluating():
        for group in (cut or Cut()).apply([examples[i] for i in order], padded=not model.packs):
            batch = model.collate(group)
            here = order[done : done + len(group)]
            done += len(group)
            if not len(batch.targets_M):
                continue
            sums_S = torch.zeros(len(group), dtype=torch.float64)
            sums_S.index_add_(0, batch.sequence_M.cpu(), -model.logps(batch).double().cpu())
            counts_S = torch.bincount(batch.sequence_M.cpu(), minlength=len(group))
            found[here, 0], found[here, 1] = sums_S.numpy(), counts_S.numpy()
    return found
