"""Numbers for a model that rates texts: errors in the ratings' own units, and how well ratings agree.

Shape legend: N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from luthier.core.batch import Example
from luthier.evaluate.classes import encoded_texts
from luthier.evaluate.measure import Score
from luthier.train.microbatch import Cut

if TYPE_CHECKING:
    from luthier.data.records import Record
    from luthier.models.loaded import LoadedModel


def predicted_numbers(model: LoadedModel, examples: Sequence[Example], cut: Cut | None = None) -> np.ndarray:
    """Return what the model says of every row, (N,) float64, without touching the training state."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))  # batches of one length hold no padding
    parts = []
    with model.evaluating():
        for group in (cut or Cut()).apply([examples[i] for i in order], padded=not model.packs):
            parts.append(model.class_logits(model.collate(group))[:, 0].double().cpu())
    found_N = np.empty(len(examples), dtype=np.float64)
    found_N[order] = torch.cat(parts).numpy()
    return found_N


def number_scores(model: LoadedModel, examples: Sequence[Example], cut: Cut | None = None) -> dict[str, Score]:
    """Return squared and absolute error, R², and both correlations."""
    said_N = predicted_numbers(model, examples, cut)
    true_N = np.array([float(np.asarray(example.extras["label"])) for example in examples])
    n = len(examples)
    error_N = said_N - true_N
    spread = float(np.square(true_N - true_N.mean()).sum())
    return {
        "MSE": Score("mse", float(np.square(error_N).mean()), n),
        "MAE": Score("mae", float(np.abs(error_N).mean()), n),
        "R²": Score("r2", 1.0 - float(np.square(error_N).sum()) / spread if spread else 0.0, n),
        "Pearson": Score("pearson", pearson(said_N, true_N), n),
        "Spearman": Score("spearman", pearson(ranks(said_N), ranks(true_N)), n),
    }


def pearson(one_N: np.ndarray, other_N: np.ndarray) -> float:
    """Return the linear correlation; 0 where one side never changes."""
    a, b = one_N - one_N.mean(), other_N - other_N.mean()
    size = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return float((a * b).sum()) / size if size > 0 else 0.0


def ranks(values_N: np.ndarray) -> np.ndarray:
    """Return the rank of each number, from 0; equal ones share the mean of their ranks."""
    _, inverse_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[inverse_N]


def rate_texts(model: LoadedModel, records: Sequence[Record]) -> list[str]:
    """Return what the model says of texts, in words, each cut at what the model can take."""
    return [f"{number:.4g}" for number in predicted_numbers(model, encoded_texts(model, records))]
