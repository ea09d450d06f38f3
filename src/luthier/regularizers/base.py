"""What every regularizer is: something that is added to training, whatever the objective.

It acts in one of four places, and leaves the others alone: it adds a penalty on the weights to a step, adds a penalty
on what the model expects of a batch, disturbs the model while a batch passes, or brings rows of other data along. The
loss that is logged stays the objective's own; what is added is logged beside it, under `metric`, before its weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, ClassVar

from luthier.core.component import Component, StageFacts
from luthier.core.errors import Problem
from luthier.data.spec import DataSpec

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.batch import Batch
    from luthier.core.divergence import Beliefs
    from luthier.models.causal import CausalModel
    from luthier.models.loaded import LoadedModel

Tensors = Mapping[str, "Tensor"]


class Regularizer(Component):
    """Base of regularizers."""

    family: ClassVar[str] = "regularizer"

    title: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    equation: ClassVar[str] = ""
    when: ClassVar[str] = ""
    when_not: ClassVar[str] = ""
    zh: ClassVar[dict[str, str]] = {}

    metric: ClassVar[str] = ""
    """The name under which its value stands in metrics.jsonl."""
    compares_weights: ClassVar[bool] = False
    """`weight_penalty` has something to add; it is given the weights that training started from."""
    compares_beliefs: ClassVar[bool] = False
    """`belief_penalty` has something to add; it is given what the model expected when training started."""

    is_noisy: ClassVar[bool] = False
    """What the model computes of a row differs from step to step, so nothing of it may be kept."""

    @property
    def strength(self) -> float:
        """What the penalty is multiplied by before it is added to the mean loss."""
        return 1.0

    @property
    def general_rows(self) -> DataSpec | None:
        """Other data that the regularizer reads."""
        return None

    @property
    def measured_rows(self) -> int:
        """How many of those rows are looked at before training, to find how much each weight matters for them."""
        return 0

    def rows_per_step(self, batch_size: int) -> int:
        """Return how many of a step's sequences come from the other data."""
        return 0

    def weight_penalty(self, trained: Tensors, start: Tensors, importance: Tensors) -> Tensor:
        """Return what is added to a step's mean loss for how far the weights have moved.

        Args:
            trained: the trained tensors by name, without the new head of a classifier.
            start: the same at the start of training.
            importance: what was measured on other data before training, by the same names.
        """
        raise NotImplementedError

    def belief_penalty(self, model: CausalModel, batch: Batch, start: Beliefs) -> Tensor:
        """Return Σ w·penalty over a batch's supervised positions; the engine divides by the step's Σ w."""
        raise NotImplementedError

    def disturbing(self, model: LoadedModel, batch: Batch) -> AbstractContextManager[None]:
        """Run the body, the forward pass of a training batch, with the model disturbed; what is random comes from
        torch's generator, which the engine seeds for each micro-batch."""
        return nullcontext()


def needs_tokens(facts: StageFacts, kind: str) -> list[Problem]:
    """Return the problem of a regularizer that compares next tokens, under an objective whose head predicts none."""
    if facts.head == "tokens":
        return []
    what = (
        f"The regularizer {kind} compares what a model expects to come next, and this objective's head predicts none."
    )
    return [Problem(what, "", "use l2_sp or replay, or an objective that writes text")]
