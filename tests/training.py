"""A small engine for tests."""

from __future__ import annotations

from luthier.methods.base import Method
from luthier.models.causal import CausalModel
from luthier.objectives.base import Objective
from luthier.objectives.sft import Sft
from luthier.optim.adamw import AdamW
from luthier.optim.schedules import Cosine
from luthier.train.engine import Engine, Settings
from luthier.train.microbatch import Cut


def engine(
    model: CausalModel, method: Method, objective: Objective | None = None, cut: Cut | None = None, **settings: object
) -> Engine:
    """Apply the method and return an engine with a rate high enough for a few steps to show."""
    method.apply(model.module)
    chosen = Settings(**{"total_steps": 10, "learning_rate": 1e-2, "warmup_steps": 2, **settings})  # type: ignore[arg-type]
    return Engine(model, method, objective or Sft(), AdamW(), Cosine(), chosen, cut=cut or Cut())
