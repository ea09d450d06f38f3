"""SimPO: preferences without a reference model, with the mean log-probability of an answer as its reward.

Meng et al. 2024, arXiv:2405.14734: −log σ(β/|y⁺|·log π(y⁺) − β/|y⁻|·log π(y⁻) − γ).

Shape legend: S sequences, P pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.objectives.base import DataForm, LanguageModel, LossSum, Objective
from luthier.objectives.pairs import answer_logps, halves, pair_metrics

if TYPE_CHECKING:
    from luthier.core.batch import Batch


class Simpo(Objective):
    """Learn from pairs of answers by their mean log-probability, without a reference model."""

    kind: Literal["simpo"] = "simpo"

    beta: float = Field(default=2.0, gt=0)
    """How much a difference of mean log-probabilities counts."""
    gamma: float = Field(default=1.0, ge=0)
    """The margin by which the better answer should win, in units of the reward."""

    title: ClassVar[str] = "Simple preference optimisation"
    summary: ClassVar[str] = "Learn which of two answers is better by mean log-probability, without a reference."
    paper: ClassVar[str] = "Meng et al. 2024, SimPO, arXiv:2405.14734"
    equation: ClassVar[str] = "−log σ(β·(log π(y⁺)/|y⁺| − log π(y⁻)/|y⁻|) − γ),  softplus(γ) where both are equal"
    when: ClassVar[str] = (
        "Memory or time for a reference pass is short, or answers of very different length are compared."
    )
    when_not: ClassVar[str] = "The model must stay near its start: nothing holds it there."
    example_data: ClassVar[str] = "starter:preferences"
    zh: ClassVar[dict[str, str]] = {
        "title": "简单偏好优化（SimPO）",
        "summary": "以回答的平均对数概率为奖励学习偏好，不需要参考模型。",
        "when": "没有内存或时间做参考模型的前向计算，或要比较长度悬殊的回答。",
        "when_not": "模型必须留在起点附近：这里没有任何约束。",
        "beta": "平均对数概率之差算多少。",
        "gamma": "较好回答应当胜出的间隔，以奖励为单位。",
    }
    data_form: ClassVar[DataForm] = "preference"
    learning_rate_factor: ClassVar[float] = 0.1

    def count(self, batch: Batch) -> float:
        """Return the number of pairs."""
        return len(batch.lengths) / 2

    def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
        """Return the sum over pairs of the loss, and of what is logged."""
        from torch.nn.functional import logsigmoid

        chosen_P, rejected_P = halves(self.beta * answer_logps(model, batch, mean=True))
        loss_P = -logsigmoid(chosen_P - rejected_P - self.gamma)
        return LossSum(loss_P.sum(), pair_metrics(chosen_P, rejected_P))
