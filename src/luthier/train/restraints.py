"""The regularizers of a run at work: what they add to a micro-batch, and what they add to a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from luthier.core.batch import Batch
from luthier.core.divergence import Beliefs
from luthier.core.logps import Head
from luthier.models.causal import CausalModel
from luthier.models.heads import head_parameters
from luthier.models.loaded import LoadedModel
from luthier.regularizers.base import Regularizer


@dataclass(frozen=True)
class Restraint:
    """A regularizer, and what was measured for it before training: how much each weight matters, by name."""

    regularizer: Regularizer
    importance: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class Restraints:
    """All of a run's regularizers.

    Attributes:
        start: the trained tensors at their initial values, by name; empty where no regularizer compares with them.
        head: the head at the start, as soon as it has been asked for.
    """

    parts: Sequence[Restraint]
    start: Mapping[str, Tensor]
    head: Head | None = None

    @property
    def compares_beliefs(self) -> bool:
        return any(part.regularizer.compares_beliefs for part in self.parts)

    @contextmanager
    def disturbing(self, model: LoadedModel, batch: Batch) -> Iterator[None]:
        """Run the body, the training pass of a batch, as the regularizers want it."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.regularizer.disturbing(model, batch))
            if self.compares_beliefs and isinstance(model, CausalModel):
                stack.enter_context(model.sharing(batch))
            yield

    def beliefs(
        self, model: LoadedModel, batch: Batch, reference: Callable[[], AbstractContextManager[None]]
    ) -> Beliefs | None:
        """Return what the model expected of a batch when training started, if that is asked for."""
        if not self.compares_beliefs:
            return None
        assert isinstance(model, CausalModel), "regularizers that compare next tokens refuse other heads"
        with reference():
            self.head = self.head or model.frozen_head()
            return model.beliefs(batch, self.head)

    def of_batch(self, model: LoadedModel, batch: Batch, start: Beliefs | None) -> Iterator[tuple[str, float, Tensor]]:
        """Yield (metric, strength, Σ w·penalty) of each regularizer that looks at what the model expects."""
        for part in self.parts:
            if start is not None and part.regularizer.compares_beliefs:
                assert isinstance(model, CausalModel)
                yield (
                    part.regularizer.metric,
                    part.regularizer.strength,
                    part.regularizer.belief_penalty(model, batch, start),
                )

    def of_weights(self, model: LoadedModel, trained: Mapping[str, Tensor]) -> Iterator[tuple[str, float, Tensor]]:
        """Yield (metric, strength, penalty) of each regularizer that looks at the weights."""
        fresh = set(head_parameters(model.module))
        # What got no gradient stays as it is, and so does its gradient: the engine looks for such tensors.
        held = {n: p for n, p in trained.items() if n in self.start and n not in fresh and p.grad is not None}
        for part in self.parts:
            if part.regularizer.compares_weights and held:
                value = part.regularizer.weight_penalty(held, self.start, part.importance)
                yield part.regularizer.metric, part.regularizer.strength, value


def needs_start(regularizers: Sequence[Regularizer]) -> bool:
    """Return whether the engine has to keep the values that training starts from."""
    return any(r.compares_weights or r.compares_beliefs for r in regularizers)


def restraints(parts: Sequence[Restraint], start: Mapping[str, Tensor] | None) -> Restraints:
    """Return the regularizers with the initial values of what is trained."""
    assert start is not None or not needs_start([p.regularizer for p in parts]), "built without keep_reference"
    return Restraints(parts, start or {})
