"""Towards what a model is trained: one file for each objective. Importing this package registers them."""

from luthier.objectives import classify, distill, dpo, grpo, kto, lm, orpo, ppo, regress, reward, rloo, sft, simpo

__all__ = [
    "classify",
    "distill",
    "dpo",
    "grpo",
    "kto",
    "lm",
    "orpo",
    "ppo",
    "regress",
    "reward",
    "rloo",
    "sft",
    "simpo",
]
