"""What every loaded model has in common, whatever it computes: the module, its tokenizer, batches it can take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from luthier.core.batch import Batch, Example, collate
from luthier.models import attention
from luthier.models.virtual_tokens import virtual_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from luthier.models.causal import Predictions
    from luthier.models.frozen_prefix import FrozenPrefix

PACKABLE_LAYERS = {"full_attention", "sliding_attention"}


@dataclass
class LoadedModel:
    """A model, its tokenizer, and what was found out about them.

    Attributes:
        module: the transformers model.
        tokenizer: its tokenizer, chat template included.
        name: what the user called it.
        path: the folder it was loaded from.
        packs: packed batches give the same result as padded ones (tried, not assumed).
        notes: what the user is told about the model (fallbacks, new heads, …).
        autocast: compute dtype for autocast, or None.
        fingerprint: of the base model's weights.
        prefix: frozen blocks whose states are kept, where a run keeps them.
        upstream: what the next loss is multiplied by before it is differentiated, where the engine knows it.
        trims: the last block can leave out positions that predict nothing supervised.
        critic: gives the values (M,) of hidden states (M, H), where an objective trains one.
    """

    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    path: str
    packs: bool = False
    notes: list[str] = field(default_factory=list)
    autocast: torch.dtype | None = None
    fingerprint: str = ""
    prefix: FrozenPrefix | None = None
    upstream: float | None = None
    trims: bool = False
    critic: nn.Module | None = None

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else 0

    @property
    def vocabulary_rows(self) -> int:
        """Rows of the token embedding: the ids that the model can take."""
        return int(self.module.get_input_embeddings().weight.shape[0])  # type: ignore[index]

    @property
    def context_length(self) -> int | None:
        """Longest sequence the model has room for, or None where its config does not say."""
        config = self.module.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        virtual = virtual_tokens(self.module)
        return positions if positions is None or virtual is None else positions - virtual.size

    def collate(self, examples: list[Example]) -> Batch:
        """Make a batch the way this model can take it."""
        return collate(examples, self.device, packed=self.packs, pad_id=self.pad_id)

    def nll_sum(self, batch: Batch) -> Tensor:
        """Return Σ w·(−log p) over the supervised positions, for models that write text."""
        raise NotImplementedError(f"{type(self.module).__name__} predicts no tokens")

    def logps(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return log p of each supervised target, for models that write text."""
        raise NotImplementedError(f"{type(self.module).__name__} predicts no tokens")

    def predictions(self, batch: Batch, temperature: float = 1.0, with_entropies: bool = False) -> Predictions:
        """Return what one pass says of each supervised target, for models that write text."""
        raise NotImplementedError(f"{type(self.module).__name__} predicts no tokens")

    def class_logits(self, batch: Batch) -> Tensor:
        """Return the logits (S, C) of the classes, for models that classify."""
        raise NotImplementedError(f"{type(self.module).__name__} knows no classes")

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Run the body under the model's autocast dtype, if it has one."""
        if self.autocast is None:
            yield
            return
        with torch.autocast(self.device.type, dtype=self.autocast):
            yield

    def reusing(self, batch: Batch) -> AbstractContextManager[None]:
        """Run the body, a pass over the batch, with the states of frozen blocks that are kept already."""
        return nullcontext() if self.prefix is None else self.prefix.serving(batch)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Run the body without gradients and without dropout."""
        was_training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.module.train(was_training)


def try_packing(model: LoadedModel, examples: list[Example], is_right: Callable[[Batch], bool]) -> bool:
    """Return whether packed sequences stay apart, and leave the model with the attention that is right for it.

    Args:
        examples: a few short sequences.
        is_right: whether the model gives for a packed batch of them what it gives for each alone.
    """
    config = model.module.config.get_text_config()
    before = config._attn_implementation
    if set(getattr(config, "layer_types", None) or PACKABLE_LAYERS) <= PACKABLE_LAYERS:
        try:
            attention.register()
            model.module.set_attn_implementation(attention.NAME)
            if is_right(collate(examples, model.device, packed=True)):
                return True
        except (ValueError, TypeError, NotImplementedError, RuntimeError, AttributeError) as error:
            model.notes.append(f"Packing is not possible with this architecture ({type(error).__name__}: {error}).")
        model.module.set_attn_implementation(before or "eager")
    model.notes.append("Sequences are padded instead of packed: this architecture cannot keep packed ones apart.")
    return False
