"""Compute the features of a frozen backbone once for all rows, and let the model use them from then on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.core.batch import Example
from luthier.core.errors import ModelError, Problem
from luthier.models.classifier import Classifier
from luthier.models.features import CacheWriter, digest, distinct, in_groups, open_cache
from luthier.models.loaded import LoadedModel
from luthier.models.pooling import pooled_head
from luthier.train.microbatch import Cut


def keep_features(model: LoadedModel, parts: Sequence[Sequence[Example]], file: Path, cut: Cut) -> int:
    """Give the model the features of all sequences, from `file` or computed into it; return how many there are.

    Raises:
        ModelError: the architecture's head cannot be fed with features.
    """
    assert isinstance(model, Classifier), "only a classifier has a head on features"
    if not model.splits:
        what = f"The head of {type(model.module).__name__} cannot be computed apart from its backbone."
        raise ModelError(Problem(what, "method.pooling", "choose how to pool: pooling: mean"))
    rows = distinct(parts)
    head = pooled_head(model.module)
    origin = f"{model.fingerprint} {head.pooling if head is not None else 'own'} {model.autocast}"
    model.cache = open_cache(file, origin, list(rows))
    if model.cache is None:
        _compute(model, list(rows.values()), file, cut, origin)
        model.cache = open_cache(file, origin, list(rows))
    return len(rows)


def _compute(model: Classifier, examples: Sequence[Example], file: Path, cut: Cut, origin: str) -> None:
    writer: CacheWriter | None = None
    with model.evaluating():
        for several in in_groups(examples):
            for group in cut.apply(several, padded=not model.packs):
                features_SF = model.features(model.collate(group))
                writer = writer or CacheWriter(file, len(examples), features_SF.shape[1])
                writer.add([digest(example) for example in group], features_SF)
    assert writer is not None, "a stage has at least one row"
    writer.close(origin)
