"""How long a run goes on where that is said in tokens or in seconds of training: `max_steps: 600 seconds`.

It stops at the first step past the amount. Tokens are turned into steps before the first one, because which rows a step
has is known; so everything that plans over the steps of a run (warm-up, decay, AdaLoRA's ranks) plans over the true
number. Seconds are not known beforehand: the number of steps is estimated anew after each of them, which makes the
schedule a function of the share of the time that is gone (Li et al. 2020, arXiv:1905.04753).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from luthier.run.config import Recipe
    from luthier.run.stage_run import StageRun

Unit = Literal["tokens", "seconds"]
PATTERN = r"^[0-9]+(\.[0-9]+)? (tokens|seconds)$"


@dataclass(frozen=True)
class Allowance:
    """An amount of training."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Allowance:
        """Return what a text of the form PATTERN says."""
        amount, unit = text.split(" ")
        return cls(float(amount), cast("Unit", unit))


def steps_for_tokens(amount: float, sizes: Iterable[int]) -> int:
    """Return how many of the steps with these tokens it takes to reach an amount; at least one."""
    total, steps = 0, 0
    for size in sizes:
        total += size
        steps += 1
        if total >= amount:
            break
    return max(steps, 1)


def warmup_of(recipe: Recipe, total: int) -> int:
    """Return the steps over which the learning rate rises."""
    return recipe.warmup_steps if recipe.warmup_steps is not None else round(recipe.warmup_ratio * total)


def estimate_steps(stage: StageRun) -> None:
    """Where seconds are counted, tell the engine anew how many steps there will be, by those done so far."""
    allowed, engine = stage.recipe.allowance, stage.engine
    if allowed is None or allowed.unit != "seconds" or not engine.step:
        return
    elapsed = stage.progress.train_seconds
    ahead = max(engine.step + 1, round(engine.step * allowed.amount / max(elapsed, 1e-9)))
    total = ahead if elapsed < allowed.amount else engine.step
    engine.settings = replace(engine.settings, total_steps=total, warmup_steps=warmup_of(stage.recipe, total))
