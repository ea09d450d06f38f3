"""What every objective is: a sum over a batch, and the count that the engine divides by.

Never a mean: the engine alone divides, by the count of the whole step over all micro-batches and ranks, so that the
gradient does not depend on how a step is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from luthier.core.component import Component

if TYPE_CHECKING:
    from torch import Tensor, nn

    from luthier.core.batch import Batch, Example
    from luthier.models.causal import Predictions
    from luthier.models.loaded import LoadedModel

Groups = Callable[[Sequence["Example"]], list[list["Example"]]]
"""Cuts the examples of a step into micro-batches."""
DataForm = Literal["text", "conversation", "labelled", "preference", "rated", "prompt"]


class LanguageModel(Protocol):
    """What an objective may ask of a model."""

    def nll_sum(self, batch: Batch) -> Tensor: ...

    def logps(self, batch: Batch, temperature: float = 1.0) -> Tensor: ...

    def predictions(self, batch: Batch, temperature: float = 1.0, with_entropies: bool = False) -> Predictions: ...

    def class_logits(self, batch: Batch) -> Tensor: ...

    def collate(self, examples: list[Example]) -> Batch: ...


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
    equation: ClassVar[str] = ""
    when: ClassVar[str] = ""
    when_not: ClassVar[str] = ""
    example: ClassVar[dict[str, object]] = {}
    """Fields that the card's example recipe shows, for objectives that mean nothing without a choice."""
    example_data: ClassVar[str] = "starter:quickstart"
    """Data that ship with Luthier and fit this objective, for the card's recipe."""

    zh: ClassVar[dict[str, str]] = {}
    data_form: ClassVar[DataForm] = "conversation"
    """What rows are turned into: raw text trained throughout, conversations with supervised spans, texts with a class,
    pairs of a better and a worse answer, answers that were found good or bad, or prompts that the model answers."""

    head: ClassVar[Literal["tokens", "classes", "value"]] = "tokens"
    """What the model's head gives: the next token, a class, or one number for a sequence."""

    learning_rate_factor: ClassVar[float] = 1.0
    """What the method's default learning rate is multiplied by; comparing answers wants smaller steps than copying."""

    is_plain_nll: ClassVar[bool] = False
    """The loss is `model.nll_sum(batch)` itself, so the engine can say beforehand what it will be multiplied by."""

    looks_ahead: ClassVar[bool] = False
    """`prepare_step` has something to do."""

    @property
    def needs_reference(self) -> bool:
        """Whether `extras["reference"]` has to hold Σ w·log p of each sequence under the model that training starts
        from."""
        return False

    @property
    def learns_from(self) -> str | None:
        """The model (a folder, a hub id, a run) that the objective learns from; the stage opens it."""
        return None

    @property
    def own_answers(self) -> tuple[float, int]:
        """The share of each step's rows whose answers the model writes itself, and how long these may be."""
        return 0.0, 0

    @property
    def compares_with_start(self) -> bool:
        """Whether texts that come up in training are compared with the model that training starts from."""
        return False

    def build_state(self, model: LoadedModel) -> nn.Module | None:
        """Return what the objective itself learns or counts: its parameters are trained beside the model's, its buffers
        and both are kept in checkpoints. Called once, before the first step."""
        return None

    def prepare_step(self, model: LanguageModel, examples: Sequence[Example], groups: Groups) -> Sequence[Example]:
        """Return a step's examples with what must be known of the whole step before its first gradient.

        Called under no_grad, with dropout off, before every optimizer step and every measurement.

        Args:
            examples: all of the step's.
            groups: cuts examples into micro-batches.
        """
        return examples

    def count(self, batch: Batch) -> float:
        """Return what the batch adds to the step's divisor; known before the forward pass."""
        return batch.count

    def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
        """Return the loss of a batch as a sum, not a mean."""
        raise NotImplementedError
