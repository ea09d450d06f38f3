"""Numbers for judged answers: how often the better one wins, by how much, and how well that is known.

Shape legend: P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from luthier.core.batch import Example
from luthier.evaluate.measure import Score
from luthier.objectives.pairs import halves
from luthier.train.microbatch import Cut

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel
    from luthier.objectives.base import Objective

BINS = 10


def preference_scores(measured: Mapping[str, float], n: int) -> dict[str, Score]:
    """Return loss, accuracy and margin of n judged rows, from what the objective logs of them."""
    names = {"loss": "loss", "accuracy": "accuracy", "margin": "margin"}
    return {name: Score(metric, measured[name], n) for name, metric in names.items() if name in measured}  # type: ignore[arg-type]


def judged_scores(
    model: LoadedModel, objective: Objective, examples: Sequence[Example], cut: Cut | None = None
) -> dict[str, Score]:
    """Return loss, accuracy and margin of judged answers, and of a reward model how well its certainty is founded."""
    used = cut or Cut()

    def groups(rows: Sequence[Example]) -> list[list[Example]]:
        return used.apply(rows, padded=not model.packs)

    sums, count = {"loss": 0.0}, 0.0
    with model.evaluating():
        for group in groups(list(objective.prepare_step(model, examples, groups))):
            batch = model.collate(group)
            found = objective.loss_sum(model, batch)
            count += objective.count(batch)
            for name, total in {"loss": found.total, **found.metrics}.items():
                sums[name] = sums.get(name, 0.0) + float(total)
    scores = preference_scores({name: total / max(count, 1e-12) for name, total in sums.items()}, len(examples))
    if objective.head == "value":
        error = calibration_error(reward_differences(model, examples, used))
        scores["calibration error"] = Score("calibration_error", error, len(examples))
    return scores


def reward_differences(model: LoadedModel, examples: Sequence[Example], cut: Cut | None = None) -> np.ndarray:
    """Return r(chosen) − r(rejected) of pairs, (P,), as a reward model gives them."""
    parts = []
    with model.evaluating():
        for group in (cut or Cut()).apply(examples, padded=not model.packs):
            chosen, rejected = halves(model.class_logits(model.collate(group))[:, 0])
            parts.append((chosen - rejected).double().cpu())
    return torch.cat(parts).numpy()


def calibration_error(differences_P: np.ndarray) -> float:
    """Return the expected calibration error of P(chosen is better) = σ(difference), over ten equal bins.

    Guo et al. 2017, arXiv:1706.04599. Each pair is read in the order that the model prefers, so that confidence lies
    between 0.5 and 1; 0 means that of pairs said to be 80 % sure, 80 % are right.
    """
    confidence_P = 1.0 / (1.0 + np.exp(-np.abs(differences_P)))
    right_P = (differences_P > 0) + 0.5 * (differences_P == 0)
    bins_P = np.minimum(((confidence_P - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = [
        abs(right_P[bins_P == b].mean() - confidence_P[bins_P == b].mean()) * (bins_P == b).sum()
        for b in range(BINS)
        if (bins_P == b).any()
    ]
    return float(sum(gaps) / len(differences_P))


def reward_texts(model: LoadedModel, examples: Sequence[Example]) -> list[str]:
    """Return for each pair what a reward model gives its better and its worse answer, in words."""
    with model.evaluating():
        found = []
        for example in examples:
            first, second = model.class_logits(model.collate([example]))[:, 0].tolist()
            found.append(f"{first:+.2f} chosen, {second:+.2f} rejected")
    return found
