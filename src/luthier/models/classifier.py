"""A model that classifies as objectives see it: a batch goes in, the logits of the classes come out.

A sequence's logits are its head applied to one vector of features. Decoders take the last token's hidden state and may
be packed; encoders (BERT and its kin) attend both ways and are padded. Whether the parts are put together rightly is
not assumed but tried on a few tokens against the model's own forward pass.

Shape legend: B rows, T positions, N = B·T, S sequences, H hidden size, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from luthier.core.batch import Batch, Example, collate
from luthier.core.errors import ModelError, Problem
from luthier.models import attention
from luthier.models.heads import head_modules
from luthier.models.leaner import make_leaner
from luthier.models.loaded import LoadedModel, try_packing
from luthier.models.pooling import pool, pooled_head

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from luthier.models.features import FeatureCache


@dataclass
class Classifier(LoadedModel):
    """A model with a head for classes.

    Attributes:
        splits: the logits can be made from features alone, so that these may be kept.
        cache: features that were computed before.
    """

    splits: bool = True
    cache: FeatureCache | None = None

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the logits."""
        names = {int(key): str(name) for key, name in (self.module.config.id2label or {}).items()}
        return [names[key] for key in sorted(names)]

    @property
    def is_multi_label(self) -> bool:
        """Whether several classes may apply to a text, or none."""
        return getattr(self.module.config, "problem_type", None) == MULTI_LABEL

    @property
    def is_decoder(self) -> bool:
        """Whether the architecture reads the class off the last token."""
        return "score" in dict(self.module.named_children())

    def collate(self, examples: list[Example]) -> Batch:
        """Make a batch the way this model can take it, with the features that are kept of its sequences."""
        batch = collate(examples, self.device, packed=self.packs, pad_id=self.pad_id)
        features = self.cache.of(examples) if self.cache is not None else None
        if features is None:
            return batch
        return replace(batch, extras={**batch.extras, "features": features.to(self.device)})

    def class_logits(self, batch: Batch) -> Tensor:
        """Return the logits (S, C), float32."""
        if "features" in batch.extras:
            return self.from_features(batch.extras["features"])
        if not self.splits:
            with self.computing(), self.reusing(batch):
                return self.module(**self._inputs(batch)).logits.float()
        return self.from_features(self.features(batch))

    def features(self, batch: Batch) -> Tensor:
        """Return what the head sees of each sequence, (S, F)."""
        head = pooled_head(self.module)
        with self.computing(), self.reusing(batch):
            out = self.module.base_model(**self._inputs(batch))
        hidden_BTH = out.last_hidden_state
        if head is not None and head.pooling != "own":
            return pool(hidden_BTH.reshape(-1, hidden_BTH.shape[-1]), batch, head.pooling)
        if self.is_decoder:
            return pool(hidden_BTH.reshape(-1, hidden_BTH.shape[-1]), batch, "last")
        pooled_SH = getattr(out, "pooler_output", None)
        return hidden_BTH[:, 0] if pooled_SH is None else pooled_SH

    def from_features(self, features_SF: Tensor) -> Tensor:
        """Return the logits (S, C) of features, float32."""
        with self.computing():
            head = pooled_head(self.module)
            if head is not None:
                return head(features_SF).float()
            names = head_modules(self.module)
            children = dict(self.module.named_children())
            if not isinstance(children[names[0]], nn.Linear):  # RoBERTa's head takes the first of many positions itself
                return children[names[0]](features_SF[:, None]).float()
            for name, child in children.items():
                if name in names or isinstance(child, nn.Dropout):
                    features_SF = child(features_SF)
            return features_SF.float()

    def _inputs(self, batch: Batch) -> dict[str, object]:
        inputs: dict[str, object] = {"input_ids": batch.tokens, "attention_mask": batch.attention_mask}
        if batch.is_packed:
            inputs["attention_mask"] = attention.unread_mask(batch.tokens.device)
            inputs |= attention.packed_keywords(batch)
        if self.is_decoder:
            # Encoders number their positions themselves, RoBERTa from an offset.
            inputs |= {"position_ids": batch.positions, "use_cache": False}
        elif "second" in batch.extras:
            inputs["token_type_ids"] = (batch.positions >= batch.extras["second"][:, None]).long()
        return inputs


MULTI_LABEL = "multi_label_classification"


def class_config(
    config: PreTrainedConfig, classes: Sequence[str], pad_id: int, multi_label: bool | None = None
) -> PreTrainedConfig:
    """Return the config with the names of the classes, and the padding by which transformers finds the last token.

    Args:
        multi_label: whether several classes may apply; None leaves it as the config says.
    """
    several = getattr(config, "problem_type", None) == MULTI_LABEL if multi_label is None else multi_label
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: index for index, name in enumerate(classes)}
    config.problem_type = "single_label_classification" if len(classes) > 1 else "regression"
    if several:
        config.problem_type = MULTI_LABEL
    config.get_text_config().pad_token_id = pad_id
    config.pad_token_id = pad_id
    return config


def settle_padding(tokenizer: PreTrainedTokenizerBase, answers: bool = False) -> int:
    """Return the id that fills batches, giving the tokenizer a padding token where it has none.

    transformers takes the last token that is not padding for a sequence's last, so no sequence may end with it.

    Args:
        answers: sequences are answers, which end with the end token.

    Raises:
        ModelError: the tokenizer has no special token to pad with.
    """
    ends = {ids[-1] for ids in (tokenizer("a")["input_ids"], tokenizer("b a")["input_ids"]) if ids}
    if answers and isinstance(tokenizer.eos_token_id, int):
        ends.add(tokenizer.eos_token_id)
    if isinstance(tokenizer.pad_token_id, int) and not (answers and tokenizer.pad_token_id in ends):
        return tokenizer.pad_token_id
    for token in (tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token):
        number = tokenizer.convert_tokens_to_ids(token) if isinstance(token, str) else None
        if isinstance(number, int) and number not in ends:
            tokenizer.pad_token = token
            return number
    what = "The tokenizer has no padding token and none that could stand for it, so a batch cannot be filled."
    raise ModelError(Problem(what, tokenizer.name_or_path, "add a pad_token to it"))


def probe_classifier(model: Classifier) -> None:
    """Try features, head and the packed path on a few tokens; set `splits`, `packs` and `notes` by what is found.

    The reference is the model's own forward pass, one sequence at a time, unpadded.

    Raises:
        ModelError: the padded path gives other logits, so that a loss on it would be wrong.
    """
    draw = np.random.default_rng(0)
    ids = [i for i in range(model.vocabulary_rows) if i != model.module.config.get_text_config().pad_token_id]
    examples = [Example(draw.choice(ids, n).astype(np.int32), np.zeros(n, dtype=np.float32)) for n in (7, 4, 9)]
    with model.evaluating(), model.computing():
        rows = [torch.from_numpy(e.tokens.astype(np.int64))[None].to(model.device) for e in examples]
        own_SC = torch.cat([model.module(input_ids=tokens).logits.float() for tokens in rows])
        states = [model.module.base_model(input_ids=tokens).last_hidden_state[0, -1].float() for tokens in rows]
    with model.evaluating():
        make_leaner(model.module)
        padded = collate(examples, model.device, packed=False, pad_id=model.pad_id)
        model.splits = _splits(model, padded, own_SC)
        if not _close(model, model.class_logits(padded), own_SC):
            what = "The logits of padded sequences differ from those of single ones, so a loss on them would be wrong."
            remedy = "please report the architecture " + type(model.module).__name__
            raise ModelError(Problem(what, model.name, remedy))
        if not model.is_decoder:
            model.notes.append("Sequences are padded instead of packed: an encoder attends to both sides.")
        elif model.splits:
            # Not the logits: a new head is small, and a sequence that sees another would hardly show in them.
            own_SH = torch.stack(states)
            model.packs = try_packing(model, examples, lambda b: _close(model, model.features(b).float(), own_SH))


def _splits(model: Classifier, padded: Batch, own_SC: Tensor) -> bool:
    try:
        return _close(model, model.from_features(model.features(padded)), own_SC)
    except (RuntimeError, TypeError, IndexError, AttributeError):  # a head with a shape of its own
        return False


def _close(model: Classifier, ours: Tensor, reference: Tensor) -> bool:
    """Equal up to rounding, measured by the size of the numbers; sixteen bits round to a few hundredths."""
    tolerance = 2e-4 if model.module.dtype == torch.float32 else 0.1
    return bool((ours - reference).abs().max() <= tolerance * reference.abs().max().clamp_min(1e-3))
