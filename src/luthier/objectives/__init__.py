"""Towards what a model is trained: one file for each objective. Importing this package registers them."""

from luthier.objectives import lm, sft

__all__ = ["lm", "sft"]
