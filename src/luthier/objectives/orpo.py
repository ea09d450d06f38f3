"""ORPO: learn the better answer, and at the same time its odds over the worse one; no reference, no earlier stage.

Hong et al. 2024, arXiv:2403.07691: −log p̄(y⁺) + λ·(−log σ(log odds(y⁺) − log odds(y⁻))), where log p̄ is the mean
log-probability of an answer's tokens and odds = p̄ / (1 − p̄).

Shape legend: S sequences, P pairs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.objectives.base import DataForm, LanguageModel, LossSum, Objective
from luthier.objectives.pairs import answer_logps, halves, pair_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.batch import Batch


class Orpo(Objective):
    """Learn the better answer and its odds over the worse one, in one stage and without a reference."""

    kind: Literal["orpo"] = "orpo"

    beta: float = Field(default=0.1, gt=0)
    """How much the odds ratio counts beside the likelihood of the better answer (λ in the paper)."""

    title: ClassVar[str] = "Odds ratio preference optimisation"
    summary: ClassVar[str] = "Learn the better answer and its odds over the worse one at once, without a reference."
    paper: ClassVar[str] = "Hong et al. 2024, ORPO, arXiv:2403.07691"
    equation: ClassVar[str] = "−log p̄(y⁺) + λ·(−log σ(log odds(y⁺) − log odds(y⁻)))"
    when: ClassVar[str] = "A base model is to learn the answers and the preference in one stage."
    when_not: ClassVar[str] = "The model answers well already: then dpo moves it less."
    example_data: ClassVar[str] = "starter:preferences"
    zh: ClassVar[dict[str, str]] = {
        "title": "优势比偏好优化（ORPO）",
        "summary": "一步之内既学习较好的回答，又学习它相对较差回答的优势比，不需要参考模型。",
        "when": "想在一个阶段内让基座模型同时学会回答与偏好。",
        "when_not": "模型已经答得不错：这时 dpo 对它的改动更小。",
        "beta": "优势比相对于较好回答的似然所占的比重（论文中的 λ）。",
    }
    data_form: ClassVar[DataForm] = "preference"
    learning_rate_factor: ClassVar[float] = 0.1

    def count(self, batch: Batch) -> float:
        """Return the number of pairs."""
        return len(batch.lengths) / 2

    def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
        """Return the sum over pairs of the loss, and of what is logged."""
        from torch.nn.functional import logsigmoid

        means_S = answer_logps(model, batch, mean=True)
        odds_S = means_S - _log_of_the_rest(means_S)
        chosen_P, rejected_P = halves(odds_S)
        odds_loss_P = -logsigmoid(chosen_P - rejected_P)
        nll_P = -halves(means_S)[0]
        metrics = pair_metrics(*halves(self.beta * means_S))
        metrics |= {"odds_loss": odds_loss_P.detach().sum(), "nll_chosen": nll_P.detach().sum()}
        return LossSum((nll_P + self.beta * odds_loss_P).sum(), metrics)


def _log_of_the_rest(logps_S: Tensor) -> Tensor:
    """Return log(1 − p), exact near p = 0 and near p = 1 (Mächler 2012, Accurately computing log(1 − exp(−|a|)))."""
    import torch

    # An answer that is certain has no finite odds: it counts as one that is certain to seven digits.
    logps_S = logps_S.clamp(max=-1e-7)
    is_likely_S = logps_S > -math.log(2.0)
    # Each branch is given what it can take, because `where` differentiates both.
    likely_S = torch.where(is_likely_S, logps_S, -0.5)
    unlikely_S = torch.where(is_likely_S, -1.0, logps_S)
    return torch.where(is_likely_S, (-torch.expm1(likely_S)).log(), torch.log1p(-unlikely_S.exp()))
