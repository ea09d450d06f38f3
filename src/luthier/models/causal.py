"""A causal language model as objectives see it: a batch goes in, losses and log-probabilities come out.

The backbone gives hidden states; `core.logps` turns those at supervised positions into log-probabilities. Whether the
model may be packed, and whether its head is the plain matrix we take it for, is not assumed but tried on a few tokens
when it is loaded (`probe`); what does not hold falls back to the padded path or to the model's own head, and says so.

Shape legend: B rows, T positions, N = B·T, M supervised positions, S sequences, H hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from luthier.core.batch import Batch, Example, collate
from luthier.core.divergence import Beliefs, Way, divergence_sum
from luthier.core.errors import ModelError, Problem
from luthier.core.logps import Head, entropies, logps, nll_sum
from luthier.models import attention
from luthier.models.leaner import SELECTED, is_unwatched, make_leaner, trim_last_block
from luthier.models.loaded import LoadedModel, try_packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Predictions:
    """What a pass says of each supervised target, (M,) float32 each.

    Attributes:
        logps: log p of the target.
        entropies: of the distribution that it is drawn from, if asked for.
        values: what the critic expects from there on, if there is one.
    """

    logps: Tensor
    entropies: Tensor | None
    values: Tensor | None


@dataclass
class CausalModel(LoadedModel):
    """A model that writes text.

    Attributes:
        plain_head: the head is softcap(scale·(h·Wᵀ+b)); otherwise the model's own projection is used.
        teacher: the model that an objective learns from, where it learns from one.
    """

    plain_head: bool = True
    teacher: CausalModel | None = None
    _shared: tuple[Batch, Tensor | None] | None = None

    @property
    def head(self) -> Head:
        return replace(find_head(self.module, self.plain_head), upstream=self.upstream)

    def hidden(self, batch: Batch) -> Tensor:
        """Return the last hidden states (N, H)."""
        return self._backbone(batch, {})

    def supervised(self, batch: Batch) -> Tensor:
        """Return the last hidden states where a supervised token is predicted, (M, H)."""
        if self._shared is None or self._shared[0] is not batch:
            return self._supervised(batch)
        if self._shared[1] is None:
            self._shared = (batch, self._supervised(batch))
        assert self._shared[1] is not None
        return self._shared[1]

    @contextmanager
    def sharing(self, batch: Batch) -> Iterator[None]:
        """Run the body with one forward pass of the batch for all that is asked of it."""
        if self._shared is not None and self._shared[0] is batch:
            yield
            return
        self._shared = (batch, None)
        try:
            yield
        finally:
            self._shared = None

    def _supervised(self, batch: Batch) -> Tensor:
        if not self.trims:
            return self.hidden(batch).index_select(0, batch.select_M)
        hidden = self._backbone(batch, {SELECTED: batch.select_M})
        # A method that lays tokens of its own among the others gives back all of them.
        return hidden if len(hidden) == len(batch.select_M) else hidden.index_select(0, batch.select_M)

    def _backbone(self, batch: Batch, kwargs: dict[str, object]) -> Tensor:
        mask = batch.attention_mask
        if batch.is_packed:
            mask = attention.unread_mask(batch.tokens.device)
            kwargs |= attention.packed_keywords(batch)
        with self.computing(), self.reusing(batch):
            out = self.module.base_model(
                input_ids=batch.tokens, attention_mask=mask, position_ids=batch.positions, use_cache=False, **kwargs
            )
        hidden = out.last_hidden_state
        return hidden.reshape(-1, hidden.shape[-1])

    def beliefs(self, batch: Batch, head: Head | None = None) -> Beliefs:
        """Return what the model expects at the supervised positions, as numbers that stay when it is trained on.

        Args:
            head: what `frozen_head` gave before, if it was asked already.
        """
        with self.evaluating():
            return Beliefs(self.supervised(batch), head or self.frozen_head())

    def frozen_head(self) -> Head:
        """Return the head as it is now; a trained one is copied."""
        head = self.head
        if not any(p.requires_grad for p in self.module.get_output_embeddings().parameters()):  # type: ignore[union-attr]
            return replace(head, adds_to_grad=False, upstream=None)
        if head.project is not None:
            layer = copy.deepcopy(self.module.get_output_embeddings()).requires_grad_(False)  # type: ignore[union-attr]
            return replace(head, weight_VH=head.weight_VH.detach(), project=layer, adds_to_grad=False)
        weight, bias = (
            t.detach().clone() if t is not None and t.requires_grad else t for t in (head.weight_VH, head.bias_V)
        )
        assert weight is not None
        return replace(head, weight_VH=weight, bias_V=bias, adds_to_grad=False, upstream=None)

    def divergence_sum(self, batch: Batch, other: Beliefs, way: Way, temperature: float = 1.0) -> Tensor:
        """Return Σ w·D between another's beliefs and this model's over the supervised positions, a float32 scalar."""
        mine = Beliefs(self.supervised(batch), replace(self.head, upstream=None))
        with self.computing():
            return divergence_sum(mine.at(temperature), other.at(temperature), batch.weights_M, way)

    def nll_sum(self, batch: Batch) -> Tensor:
        """Return Σ w·(−log p) over the supervised positions, a float32 scalar."""
        hidden_MH = self.supervised(batch)
        with self.computing():
            return nll_sum(hidden_MH, self.head, batch.targets_M, batch.weights_M)

    def logps(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return log p of each supervised target, (M,) float32, with logits divided by the temperature."""
        hidden_MH = self.supervised(batch)
        with self.computing():
            return logps(hidden_MH, self.head.at(temperature), batch.targets_M)

    def predictions(self, batch: Batch, temperature: float = 1.0, with_entropies: bool = False) -> Predictions:
        """Return what one pass says of each supervised target, logits divided by the temperature."""
        hidden_MH = self.supervised(batch)
        head = self.head.at(temperature)
        with self.computing():
            logps_M = logps(hidden_MH, head, batch.targets_M)
            entropies_M = entropies(hidden_MH, head) if with_entropies else None
        values_M = None if self.critic is None else self.critic(hidden_MH.float())
        return Predictions(logps_M, entropies_M, values_M)


def find_head(module: PreTrainedModel, plain: bool = True) -> Head:
    """Return the head of a model, read from its output embeddings and config.

    With `plain` false, or for a layer of a kind of its own (adapted, quantised), the layer itself makes the logits.
    """
    layer = module.get_output_embeddings()
    assert layer is not None, "a causal language model has output embeddings"
    config = module.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    divisor = getattr(config, "logits_scaling", None)
    if divisor:
        scale /= float(divisor)
    softcap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    if not plain or type(layer) is not nn.Linear:
        return Head(layer.weight, scale=scale, softcap=softcap, project=layer)
    adds_to_grad = is_unwatched(layer.weight)
    return Head(layer.weight, layer.bias, scale=scale, softcap=softcap, adds_to_grad=adds_to_grad)


def probe(model: CausalModel) -> None:
    """Try the packed path and the head on a few tokens; set `packs`, `plain_head` and `notes` by what is found.

    The reference is the model's own forward pass, one sequence at a time, unpadded, up to its logits.

    Raises:
        ModelError: the architecture is not built as text models are, or its loss would be wrong.
    """
    try:
        _probe(model)
    except AttributeError as error:  # a model of images, sounds, or of another make
        raise _unsupported(model, f"The model has no forward pass that text alone can take ({error}).") from error


def _unsupported(model: CausalModel, what: str) -> ModelError:
    remedy = f"please report the architecture {type(model.module).__name__}"
    return ModelError(Problem(what, where=model.name, remedy=remedy))


def _probe(model: CausalModel) -> None:
    vocabulary = model.vocabulary_rows
    draw = np.random.default_rng(0)
    lengths = (7, 4, 9)
    examples = [
        Example(draw.integers(0, vocabulary, n).astype(np.int32), np.ones(n, dtype=np.float32)) for n in lengths
    ]
    with model.evaluating():
        own = []
        for example in examples:
            tokens = torch.from_numpy(example.tokens.astype(np.int64))[None].to(model.device)
            with model.computing():
                logits = model.module(input_ids=tokens, use_cache=False).logits[0].float()
            own.append(logits[:-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0])
        reference = torch.cat(own)

        make_leaner(model.module)
        padded = collate(examples, model.device, packed=False, pad_id=model.pad_id)
        if not _close(model, model.logps(padded), reference):
            model.plain_head = False
            if not _close(model, model.logps(padded), reference):
                raise _unsupported(
                    model,
                    "Log-probabilities made from hidden states differ from the model's own logits, so a loss on it "
                    "would be wrong. Its head is of a kind that is not supported.",
                )
            model.notes.append("The head is no plain matrix: its own projection is used (slower, exact).")
        model.packs = try_packing(model, examples, lambda batch: _close(model, model.logps(batch), reference))
        _try_trimming(model, examples, reference)


def _try_trimming(model: CausalModel, examples: list[Example], reference: Tensor) -> None:
    """Let the last block's feed-forward skip what predicts nothing supervised, where that changes nothing else."""
    if not trim_last_block(model.module):
        return
    model.trims = True
    weights = (np.arange(len(e), dtype=np.float32) % 3 != 1 for e in examples)
    some = [Example(e.tokens, w.astype(np.float32)) for e, w in zip(examples, weights)]
    wanted = reference[torch.from_numpy(np.concatenate([e.weights[1:] > 0 for e in some])).to(reference.device)]
    ways = {False, model.packs}
    model.trims = all(_close(model, model.logps(collate(some, model.device, packed=p)), wanted) for p in ways)


def _close(model: CausalModel, ours: Tensor, reference: Tensor) -> bool:
    """Equal up to rounding. In 16 bits rounding alone moves a log-probability by several hundredths."""
    tolerance = 2e-4 if model.module.dtype == torch.float32 else 0.1
    return bool((ours - reference).abs().max() < tolerance)
