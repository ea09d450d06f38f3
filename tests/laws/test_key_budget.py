"""A budget of keys for an ordinary run: before an option is added, it is derived and printed."""

from __future__ import annotations

from pydantic import BaseModel

from luthier.core.component import kinds
from luthier.data.spec import DataSpec
from luthier.run.config import EvalTask, ModelSpec, Recipe

BUDGET = 70


def keys(cls: type[BaseModel]) -> list[str]:
    return [name for name in cls.model_fields if name != "kind"]


def test_an_ordinary_run_has_about_sixty_keys():
    """The recipe's own keys, those of its parts, and those of the components that stand in it by default.

    Thirteen of them are LoRA's, whose variants (DoRA, rsLoRA, PiSSA, ranks by pattern …) are keys and not methods. Four
    are names of optional parts that an ordinary run leaves out: mix, curriculum, forgetting and gate.
    """
    defaults = [kinds("method")["lora"], kinds("objective")["sft"], kinds("optimizer")["adamw"]]
    parts = [ModelSpec, DataSpec, EvalTask, kinds("schedule")["cosine"], *defaults]
    total = len(keys(Recipe)) + sum(len(keys(part)) for part in parts)
    assert total <= BUDGET, f"{total} keys: derive one before adding another"


def test_no_component_asks_for_more_than_seventeen_things():
    """The most is ppo's: its paper's constants, where its answers come from, and when it has run away."""
    many = {
        f"{family} {kind}": len(keys(cls))
        for family in ("method", "objective", "optimizer", "schedule", "reward", "regularizer", "task")
        for kind, cls in kinds(family).items()
        if len(keys(cls)) > 17
    }
    assert many == {}
