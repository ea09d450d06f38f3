"""Towards what a model is trained: one file for each objective. Importing this package registers them."""

from luthier.objectives import classify, lm, sft

__all__ = ["classify", "lm", "sft"]
