"""What every method is: a choice of the tensors that training moves.

`apply` changes the model in place and returns the names of the trainable tensors; all else has a default built on
`requires_grad`. `state_dict` is what a checkpoint holds, what a federated client sends, what a device downloads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from luthier.core.component import Component
from luthier.core.errors import ModelError, Problem, RunError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

TENSORS = "trained.safetensors"
CARD = "method.json"


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
    freezes_most: ClassVar[bool] = True
    """Nearly all weights stay frozen, so they may be kept in 16 bits."""

    def apply(self, model: PreTrainedModel) -> None:
        """Change the model in place so that `requires_grad` marks exactly what is trained."""
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

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return a plain model with the same logits; by default the trained tensors already stand in their places."""
        return model

    def after_step(self, model: PreTrainedModel, step: int) -> None:
        """Act after an optimizer step (budgets, clipping of ranks); most methods have nothing to do."""


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
