"""How well a score is known: bootstrap intervals, alone and for the difference of two on the same cases.

A score is a function of sums over cases (a mean is Σ value / Σ weight; BLEU is a function of summed n-gram counts), so
that a resample is a matrix product: counts of drawn cases times what each case adds to the sums.

Efron and Tibshirani 1993, An Introduction to the Bootstrap; for paired comparison of BLEU Koehn 2004.

Shape legend: N cases, K sums, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

Aggregate = Literal["mean", "macro_f1", "bleu", "chrf", "bias", "bias_ambiguous"]
RESAMPLES = 1000
SEED = 0
_LEVELS = (2.5, 97.5)
_CHUNK = 2**21
"""Drawn cases held at once: a set of ten thousand cases is resampled in a few pieces."""


def mean_of(sums_RK: np.ndarray) -> np.ndarray:
    """Return Σ value / Σ weight of sums (R, 2)."""
    return sums_RK[:, 0] / np.maximum(sums_RK[:, 1], 1e-12)


def macro_f1_of(sums_RK: np.ndarray) -> np.ndarray:
    """Return the mean F1 over the classes that occur, of sums (R, 3C): right, said, meant for each class."""
    right_RC, said_RC, meant_RC = (sums_RK[:, part::3] for part in range(3))
    total_RC = said_RC + meant_RC
    f1_RC = 2 * right_RC / np.maximum(total_RC, 1)
    return f1_RC.sum(1) / np.maximum((total_RC > 0).sum(1), 1)


def bleu_of(sums_RK: np.ndarray) -> np.ndarray:
    """Return corpus BLEU as a share of 1, of sums (R, 10): lengths of answers and references, matches, totals."""
    from luthier.evaluate.texts import bleu_score

    return np.array([bleu_score(row) for row in sums_RK])


def chrf_of(sums_RK: np.ndarray) -> np.ndarray:
    """Return chrF (β = 2) as a share of 1, of sums (R, 18): n-grams of answers, of references, and common ones."""
    said_RN, meant_RN, both_RN = np.split(sums_RK, 3, axis=1)
    counts_RN = (said_RN > 0) & (meant_RN > 0)
    orders_R = np.maximum(counts_RN.sum(1), 1)
    precision_R = np.where(counts_RN, both_RN / np.maximum(said_RN, 1), 0).sum(1) / orders_R
    recall_R = np.where(counts_RN, both_RN / np.maximum(meant_RN, 1), 0).sum(1) / orders_R
    below_R = 4 * precision_R + recall_R
    return np.where(below_R > 0, 5 * precision_R * recall_R / np.maximum(below_R, 1e-12), 0.0)


def bias_of(sums_RK: np.ndarray) -> np.ndarray:
    """Return BBQ's bias score of sums (R, 4): answers with the stereotype, not unknown, right, all; 0 of no answer."""
    told_R = sums_RK[:, 1]
    return np.where(told_R > 0, 2 * sums_RK[:, 0] / np.maximum(told_R, 1e-12) - 1, 0.0)


def bias_ambiguous_of(sums_RK: np.ndarray) -> np.ndarray:
    """Return the same in contexts that do not say who: only wrong answers show a bias there."""
    return (1 - sums_RK[:, 2] / np.maximum(sums_RK[:, 3], 1e-12)) * bias_of(sums_RK)


AGGREGATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": mean_of,
    "macro_f1": macro_f1_of,
    "bleu": bleu_of,
    "chrf": chrf_of,
    "bias": bias_of,
    "bias_ambiguous": bias_ambiguous_of,
}


def score_of(cases_NK: np.ndarray, aggregate: Aggregate) -> float:
    """Return the score of all cases together."""
    return float(AGGREGATES[aggregate](cases_NK.sum(0, keepdims=True))[0])


def interval_of(cases_NK: np.ndarray, aggregate: Aggregate) -> tuple[float, float]:
    """Return the 95 % interval of the score.

    Where every case gave the same share of 0 or 1, no resample differs and the bootstrap knows nothing; Wilson's
    interval stands in for it.
    """
    if len(cases_NK) == 0:
        return (float("nan"), float("nan"))
    if aggregate == "mean" and _is_constant(cases_NK):
        value, n = float(cases_NK[0, 0] / max(cases_NK[0, 1], 1e-12)), len(cases_NK)
        return wilson(value, n) if value in (0.0, 1.0) else (value, value)
    scores_R = np.concatenate([AGGREGATES[aggregate](c @ cases_NK) for c in drawn(len(cases_NK))])
    low, high = np.percentile(scores_R, _LEVELS)
    return float(low), float(high)


def difference_of(
    before_NK: np.ndarray, after_NK: np.ndarray, aggregate: Aggregate
) -> tuple[float, tuple[float, float]]:
    """Return score after − score before with its 95 % interval; both are resampled with the same cases."""
    change = score_of(after_NK, aggregate) - score_of(before_NK, aggregate)
    if np.array_equal(before_NK, after_NK):
        return 0.0, (0.0, 0.0)
    parts = []
    for counts_RN in drawn(len(after_NK)):
        before_R = AGGREGATES[aggregate](counts_RN @ before_NK)
        parts.append(AGGREGATES[aggregate](counts_RN @ after_NK) - before_R)
    low, high = np.percentile(np.concatenate(parts), _LEVELS)
    return change, (float(low), float(high))


def drawn(n: int) -> Iterator[np.ndarray]:
    """Yield how often each of n cases is drawn, (r, n) float64, RESAMPLES rows in all; always the same numbers."""
    random = np.random.default_rng(SEED)
    size = max(1, _CHUNK // max(n, 1))
    for start in range(0, RESAMPLES, size):
        rows = min(size, RESAMPLES - start)
        picked = random.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(picked.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share (1927), which is right for shares of 0 and 1 too."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def _is_constant(cases_NK: np.ndarray) -> bool:
    return bool((cases_NK == cases_NK[0]).all())
