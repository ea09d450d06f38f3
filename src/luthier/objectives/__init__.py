"""Towards what a model is trained: one file for each objective. Importing this package registers them."""

from luthier.objectives import classify, dpo, kto, lm, orpo, reward, sft, simpo

__all__ = ["classify", "dpo", "kto", "lm", "orpo", "reward", "sft", "simpo"]
