"""What a method may look at before training: the tokenizer, the plain model, gradients of a few batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luthier.core.batch import Example
from luthier.models.loaded import LoadedModel
from luthier.objectives.base import Objective
from luthier.train.engine import add_gradients
from luthier.train.microbatch import Cut

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class StageProbe:
    """The data and the model of a stage before the method is applied. Leaves the model as it was.

    Attributes:
        examples: training sequences, in the order in which training will see them.
        batch_size: sequences that make one batch.
    """

    loaded: LoadedModel
    objective: Objective
    examples: Sequence[Example]
    batch_size: int
    cut: Cut

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.loaded.tokenizer

    @property
    def model(self) -> PreTrainedModel:
        return self.loaded.module

    def gradients(self, batches: int) -> Iterator[dict[str, Tensor]]:
        """Yield the gradient of each batch's mean loss for every parameter, by name. Dropout is off."""
        module = self.loaded.module
        wanted = {n: p.requires_grad for n, p in module.named_parameters()}
        was_training = module.training
        module.eval()
        try:
            module.requires_grad_(True)
            for start in range(0, min(batches * self.batch_size, len(self.examples)), self.batch_size):
                rows = [self.examples[i] for i in range(start, min(start + self.batch_size, len(self.examples)))]
                collated = [self.loaded.collate(g) for g in self.cut.apply(rows, padded=not self.loaded.packs)]
                add_gradients(self.loaded, self.objective, collated)
                yield {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
                module.zero_grad(set_to_none=True)
        finally:
            module.zero_grad(set_to_none=True)
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(wanted[name])
            module.train(was_training)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
