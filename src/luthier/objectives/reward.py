"""A reward model: one number for each answer, such that the better of two gets the larger one.

Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155: −log σ(r(y⁺) − r(y⁻) − m), where m is the margin that a
row may name (Touvron et al. 2023, arXiv:2307.09288). Only differences are learnt, so rewards may drift as a whole;
c·(r(y⁺) + r(y⁻))² holds their mean at zero (Eisenstein et al. 2023, arXiv:2312.09244).

Shape legend: S sequences, P pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.objectives.base import DataForm, LanguageModel, LossSum, Objective
from luthier.objectives.pairs import halves, pair_metrics

if TYPE_CHECKING:
    from luthier.core.batch import Batch


class Reward(Objective):
    """Learn a number for each answer, the larger the better, from pairs of a better and a worse one."""

    kind: Literal["reward"] = "reward"

    center_rewards_coefficient: float = Field(default=0.0, ge=0)
    """How strongly the mean reward of a pair is held at zero; 0.01 is usual. Differences do not depend on it."""

    title: ClassVar[str] = "Reward model"
    summary: ClassVar[str] = "Learn to score answers from pairs of a better and a worse one."
    paper: ClassVar[str] = "Ouyang et al. 2022, Training language models to follow instructions, arXiv:2203.02155"
    equation: ClassVar[str] = "−log σ(r(y⁺) − r(y⁻) − m)"
    when: ClassVar[str] = (
        "Answers are to be scored: for ppo and grpo, for choosing the best of several, for filtering data."
    )
    when_not: ClassVar[str] = "The policy is all that is wanted: dpo needs no reward model."
    example_data: ClassVar[str] = "starter:preferences"
    zh: ClassVar[dict[str, str]] = {
        "title": "奖励模型",
        "summary": "从“较好/较差”的成对回答中学习给回答打分。",
        "when": "需要给回答打分：用于 ppo 与 grpo、从多个回答中择优、或筛选数据。",
        "when_not": "只想得到策略模型：dpo 不需要奖励模型。",
        "center_rewards_coefficient": "把每对回答的平均奖励拉向零的力度，常用 0.01。分差不受影响。",
    }
    data_form: ClassVar[DataForm] = "preference"
    head: ClassVar[Literal["tokens", "classes", "value"]] = "value"

    def count(self, batch: Batch) -> float:
        """Return the number of pairs."""
        return len(batch.lengths) / 2

    def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
        """Return the sum over pairs of the loss, and of what is logged."""
        from torch.nn.functional import logsigmoid

        chosen_P, rejected_P = halves(model.class_logits(batch).float()[:, 0])
        margin_P = halves(batch.extras["margin"])[0] if "margin" in batch.extras else 0.0
        total = -logsigmoid(chosen_P - rejected_P - margin_P).sum()
        if self.center_rewards_coefficient:
            total = total + self.center_rewards_coefficient * ((chosen_P + rejected_P) ** 2).sum()
        return LossSum(total, pair_metrics(chosen_P, rejected_P))
