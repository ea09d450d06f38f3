"""What every objective is: a sum over a batch, and the count that the engine divides by.

Never a mean: the engine alone divides, by the count of the whole step over all micro-batches and ranks, so that the
gradient does not depend on how a step is cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from luthier.core.component import Component

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.batch import Batch


class LanguageModel(Protocol):
    """What an objective may ask of a model."""

    def nll_sum(self, batch: Batch) -> Tensor: ...

    def logps(self, batch: Batch) -> Tensor: ...

    def class_logits(self, batch: Batch) -> Tensor: ...


@dataclass(frozen=True)
class LossSum:
    """A scalar to differentiate, and sums for the log (each divided by the step's count like the loss)."""

    total: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Objective(Component):
    """Base of all objectives."""

    family: ClassVar[str] = "objective"

    title: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    zh: ClassVar[dict[str, str]] = {}
    data_form: ClassVar[Literal["text", "conversation", "labelled"]] = "conversation"
    """What rows are turned into: raw text trained throughout, conversations with supervised spans, or texts with a
    class."""

    is_plain_nll: ClassVar[bool] = False
    """The loss is `model.nll_sum(batch)` itself, so the engine can say beforehand what it will be multiplied by."""

    def count(self, batch: Batch) -> float:
        """Return what the batch adds to the step's divisor; known before the forward pass."""
        return batch.count

    def loss(self, model: LanguageModel, batch: Batch) -> LossSum:
        """Return the loss of a batch as a sum, not a mean."""
        raise NotImplementedError
