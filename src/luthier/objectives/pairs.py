"""What objectives over pairs share: log-probabilities of whole answers, and what is logged of a pair.

In a batch of pairs the chosen answer of pair p is sequence 2p, the rejected one 2p + 1.

Shape legend: M supervised positions, S sequences, P pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.batch import Batch
    from luthier.objectives.base import LanguageModel


def answer_logps(model: LanguageModel, batch: Batch, mean: bool = False) -> Tensor:
    """Return Σ w·log p of each sequence's supervised tokens, (S,) float32; with `mean`, divided by Σ w."""
    logps_M = model.logps(batch) * batch.weights_M
    sums_S = logps_M.new_zeros(len(batch.lengths)).index_add(0, batch.sequence_M, logps_M)
    return sums_S / answer_weights(batch) if mean else sums_S


def answer_weights(batch: Batch) -> Tensor:
    """Return Σ w of each sequence's supervised tokens, (S,): its length in trained tokens."""
    weights_S = batch.weights_M.new_zeros(len(batch.lengths))
    return weights_S.index_add(0, batch.sequence_M, batch.weights_M)


def halves(values_S: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values of the chosen and of the rejected answers, (P,) each."""
    return values_S[0::2], values_S[1::2]


def pair_metrics(chosen_P: Tensor, rejected_P: Tensor) -> dict[str, Tensor]:
    """Return the sums over pairs that are logged: pairs in the right order (equal ones count half), and rewards."""
    difference_P = (chosen_P - rejected_P).detach()
    right_P = (difference_P > 0).float() + 0.5 * (difference_P == 0).float()
    return {
        "accuracy": right_P.sum(),
        "margin": difference_P.sum(),
        "reward_chosen": chosen_P.detach().sum(),
        "reward_rejected": rejected_P.detach().sum(),
    }
