"""What every method is: a choice of the tensors that training moves.

`apply` changes the model in place; all else has a default built on `requires_grad`. `state_dict` is what a checkpoint
holds, what a federated client sends, what a device downloads.

The life of a method: `choose` (may look at the data once) → `prepare` (`apply`, and the new head of a classifier) →
`init_state` → for each step `before_step`, `penalty` with each batch, `after_step` → `save`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self

from luthier.core.component import Component
from luthier.core.errors import ModelError, Problem, RunError
from luthier.models.heads import head_parameters

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from luthier.core.batch import Batch

TENSORS = "trained.safetensors"
CARD = "method.json"


class Probe(Protocol):
    """What a method may look at before training begins."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def model(self) -> PreTrainedModel: ...

    def gradients(self, batches: int) -> Iterator[dict[str, Tensor]]:
        """Yield, for each of some training batches, the gradient of the mean loss for every parameter, by name."""
        ...


class Method(Component):
    """Base of all methods."""

    family: ClassVar[str] = "method"

    title: ClassVar[str]
    summary: ClassVar[str]
    principle: ClassVar[str]
    equation: ClassVar[str]
    paper: ClassVar[str]
    moves: ClassVar[str]
    typical_share: ClassVar[str]
    when: ClassVar[str]
    when_not: ClassVar[str]
    zh: ClassVar[dict[str, str]] = {}
    default_learning_rate: ClassVar[float]
    default_schedule: ClassVar[str] = "cosine"
    example: ClassVar[dict[str, object]] = {}
    """Fields that the card's example recipe shows, for methods that mean nothing without a choice."""
    example_objective: ClassVar[str] = "sft"
    """The objective of the card's example recipe."""
    freezes_most: ClassVar[bool] = True
    """Nearly all weights stay frozen, so they may be kept in 16 bits."""
    frozen_bytes: ClassVar[tuple[float, ...]] = (2, 4)
    """Bytes of a frozen weight, by the number formats that the method offers."""
    in_place: ClassVar[bool] = False
    """Trains tensors of the model where they stand, and puts no module into it."""
    differs_at_start: ClassVar[str] = ""
    """Why the model is not exactly the base before the first step; empty where it is."""
    sums_in_another_order: ClassVar[bool] = False
    """The model computes what the base computes before the first step up to rounding, not bit for bit."""
    unmergeable: ClassVar[str] = ""
    """Why no plain model of the base's architecture computes the same; empty where `merge` makes one."""

    @property
    def kind_name(self) -> str:
        """The word by which a recipe names the method."""
        return str(type(self).model_fields["kind"].default)

    @property
    def base_bits(self) -> Literal[4, 8] | None:
        """Bits of a quantised frozen base; None keeps ordinary weights."""
        return None

    @property
    def base_quantization(self) -> tuple[Literal["nf4", "fp4"], bool]:
        """Type of a 4-bit base's numbers, and whether their scales are quantised too."""
        return "nf4", True

    @property
    def reserved_positions(self) -> int:
        """Places of the model's context that the method itself fills, before every sequence."""
        return 0

    @property
    def keeps_features(self) -> bool:
        """Whether only a classifier's head is trained, so that what the backbone says of a row is computed once."""
        return False

    @property
    def plans_steps(self) -> bool:
        """Whether the method has to know before the first step how many there will be."""
        return False

    @property
    def unservable(self) -> str:
        """Why a server of LoRA adapters, such as vLLM, cannot be given what is trained; empty where it can."""
        return f"{self.title} is no LoRA adapter, and weights are not sent"

    @property
    def changes_architecture(self) -> bool:
        """Whether the model becomes one of another class, with another config and other tensors."""
        return False

    def choose(self, probe: Probe) -> Self:
        """Return the method with everything decided that depends on data or tokenizer; called once, before `apply`.

        What is decided must be in fields, because the run keeps it as plain values and resumes with it.
        """
        return self

    def in_words(self) -> str:
        """Return what `choose` decided, in one line for the screen; empty where it decided nothing."""
        return ""

    def apply(self, model: PreTrainedModel) -> None:
        """Change the model in place so that `requires_grad` marks exactly what is trained."""
        raise NotImplementedError

    def prepare(self, model: PreTrainedModel) -> None:
        """Apply the method; the new head of a classifier is trained with every method."""
        self.apply(model)
        chosen = set(head_parameters(model))
        for name, parameter in model.named_parameters():
            if name in chosen:
                parameter.requires_grad_(True)
                parameter.data = parameter.data.float()

    def count(self, model: PreTrainedModel) -> int:
        """Return how many parameters would be trained, by closed form from the sizes of the model's parts.

        Args:
            model: the plain model; its tensors may be on the meta device. A classifier's head is not counted here.
        """
        raise NotImplementedError

    def param_groups(self, model: PreTrainedModel, weight_decay: float) -> list[dict[str, object]]:
        """Return optimizer groups: matrices decay, vectors (biases, norms) do not."""
        trained = trainable(model)
        matrices = [p for p in trained.values() if p.ndim >= 2]
        vectors = [p for p in trained.values() if p.ndim < 2]
        groups = ((matrices, weight_decay), (vectors, 0.0))
        return [{"params": params, "weight_decay": decay} for params, decay in groups if params]

    def state_dict(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """Return the trained tensors by full name."""
        return {n: p.detach() for n, p in trainable(model).items()}

    def load_state_dict(self, model: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
        """Copy tensors into the model that `apply` has prepared.

        Raises:
            RunError: names or shapes differ from what this method trains.
        """
        import torch

        mine = trainable(model)
        missing, unexpected = sorted(mine.keys() - tensors.keys()), sorted(tensors.keys() - mine.keys())
        misshapen = [n for n in mine.keys() & tensors.keys() if mine[n].shape != tensors[n].shape]
        if missing or unexpected or misshapen:
            detail = "; ".join(
                f"{what}: {', '.join(names[:3])}"
                for what, names in (("missing", missing), ("unexpected", unexpected), ("other shape", misshapen))
                if names
            )
            raise RunError(Problem(f"The saved tensors do not fit the model ({detail}).", where=self.title))
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(tensors[name])

    def save(self, model: PreTrainedModel, folder: Path, base: str) -> None:
        """Write the trained tensors to `folder`, with what is needed to open them again on the base model `base`."""
        from safetensors.torch import save_file

        tensors = {n: t.contiguous().cpu() for n, t in self.state_dict(model).items()}
        save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
        card = {"method": self.model_dump(), "base_model": base}
        (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """Read what `save` wrote into a model that `apply` has prepared."""
        self.load_state_dict(model, read_tensors(folder / TENSORS))

    def why_unmergeable(self, model: PreTrainedModel) -> str:
        """Return why this very model cannot be merged; empty where `merge` makes a plain one."""
        return self.unmergeable

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return a plain model with the same logits; by default the trained tensors already stand in their places.

        Raises:
            RunError: there is no such model.
        """
        reason = self.why_unmergeable(model)
        if reason:
            remedy = "use it with Luthier (luthier chat, luthier eval), or as an adapter where PEFT knows the method"
            raise RunError(Problem(f"This method cannot be merged: {reason}.", self.title, remedy))
        return model

    def init_state(self, model: PreTrainedModel, total_steps: int, steps_per_epoch: int) -> dict[str, Tensor]:
        """Return what changes during training besides the trained tensors; it is checkpointed, and changed in place."""
        return {}

    def before_step(self, model: PreTrainedModel, state: dict[str, Tensor], step: int) -> None:
        """Act before the forward passes of optimizer step `step` (from 0). Tensors frozen here must be freed again."""

    def penalty(self, model: PreTrainedModel, batch: Batch) -> Tensor | None:
        """Return what is added to the mean loss of the batch whose forward pass has just run, or None."""
        return None

    def after_step(self, model: PreTrainedModel, state: dict[str, Tensor], step: int) -> None:
        """Act after optimizer step `step` (from 1) while its gradients still exist."""

    def report(self, model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, object]:
        """Return what the run's report should say of the trained method (final ranks, routing, chosen layers)."""
        return {}


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        RunError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        remedy = "the folder was saved by another method, or a part of it was deleted"
        raise RunError(Problem(f"There is no {file.name}.", where=str(file.parent), remedy=remedy))
    try:
        return load_file(file)
    except SafetensorError as error:
        raise RunError(
            Problem(f"The file is damaged ({error}).", where=str(file), remedy="use another copy")
        ) from error


def trainable(model: nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the trainable parameters by full name."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def sizes(model: nn.Module) -> dict[str, int]:
    """Return the number of elements of every parameter, by name; a shared one counts once, a classifier's head as 0."""
    head = set(head_parameters(model))
    return {n: 0 if n in head else p.numel() for n, p in model.named_parameters()}


def train_only(model: nn.Module, names: list[str]) -> None:
    """Freeze everything but `names`; the trained tensors become float32.

    Raises:
        ModelError: nothing would be trained.
    """
    import torch

    if not names:
        raise ModelError(Problem("The method would train nothing.", where="method", remedy="choose at least one part"))
    chosen = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
        if name in chosen and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
