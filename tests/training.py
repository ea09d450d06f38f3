"""A small engine for tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from luthier.methods.base import Method
from luthier.models.causal import CausalModel
from luthier.objectives.base import Objective
from luthier.objectives.sft import Sft
from luthier.optim.adamw import AdamW
from luthier.optim.schedules import Cosine
from luthier.train.engine import Engine, Settings
from luthier.train.microbatch import Cut
from luthier.train.restraints import Restraint


def engine(
    model: CausalModel,
    method: Method,
    objective: Objective | None = None,
    cut: Cut | None = None,
    eps: float = 1e-8,
    regularizers: Sequence[Restraint] = (),
    **settings: object,
) -> Engine:
    """Apply the method and return an engine with a rate high enough for a few steps to show.

    Args:
        eps: of AdamW. It divides by the root of the squared gradient, so that rounding in a gradient near zero moves a
            weight as far as any other; a large eps keeps such weights comparable between two ways of computing.
    """
    torch.manual_seed(0)
    method.prepare(model.module)
    chosen = Settings(**{"total_steps": 10, "learning_rate": 1e-2, "warmup_steps": 2, **settings})  # type: ignore[arg-type]
    return Engine(
        model,
        method,
        objective or Sft(),
        AdamW(eps=eps),
        Cosine(),
        chosen,
        cut=cut or Cut(),
        regularizers=regularizers,
    )
