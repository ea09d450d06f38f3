"""What every optimizer is: its numbers, and how it is built over the trained tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from luthier.core.component import Component

if TYPE_CHECKING:
    import torch


class Optimizer(Component):
    """Base of optimizers."""

    family: ClassVar[str] = "optimizer"

    def build(self, groups: list[dict[str, object]], learning_rate: float) -> torch.optim.Optimizer:
        """Return a torch optimizer over parameter groups. Its state has to be tensors and numbers, to be kept.

        Raises:
            RecipeError: it cannot run on this machine.
            MissingExtra: its library is not installed.
        """
        raise NotImplementedError
