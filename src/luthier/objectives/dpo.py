"""Direct preference optimisation: raise the odds of the better answer over the worse one, relative to a reference.

DPO, Rafailov et al. 2023, arXiv:2305.18290. With h = (log π(y⁺) − log π(y⁻)) − (log π₀(y⁺) − log π₀(y⁻)):

    sigmoid  −(1 − ε)·log σ(βh) − ε·log σ(−βh)              ε > 0: conservative DPO, Mitchell 2023
    hinge    max(0, 1 − βh)                                  SLiC-HF, Zhao et al. 2023, arXiv:2305.10425
    ipo      (h̄ − 1/(2β))², with means over each answer's tokens   Azar et al. 2023, arXiv:2310.12036
    robust   (−(1 − ε)·log σ(βh) + ε·log σ(−βh)) / (1 − 2ε)  Chowdhury et al. 2024, arXiv:2403.00409

Shape legend: S sequences, P pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import Problem
from luthier.objectives.base import DataForm, LanguageModel, LossSum, Objective
from luthier.objectives.pairs import answer_logps, answer_weights, halves, pair_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.batch import Batch


class Dpo(Objective):
    """Learn from pairs of a better and a worse answer, staying near the model one starts from."""

    kind: Literal["dpo"] = "dpo"

    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """sigmoid is DPO itself; ipo does not push margins to infinity, hinge stops at a margin, robust corrects for a share
    of flipped labels (label_smoothing)."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is held near its start: small values let it move further."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """The share of pairs whose order is thought to be wrong: sigmoid becomes conservative DPO, robust needs it."""
    length_normalized: bool = False
    """Compare means over an answer's tokens instead of sums, so that long answers weigh no more. ipo always does."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Add so much of the chosen answers' own loss (mean per token): keeps their likelihood from falling (Pang et al.
    2024, arXiv:2404.19733)."""

    title: ClassVar[str] = "Direct preference optimisation"
    summary: ClassVar[str] = "Learn which of two answers is better, without a reward model."
    paper: ClassVar[str] = "Rafailov et al. 2023, Direct Preference Optimization, arXiv:2305.18290"
    equation: ClassVar[str] = "−log σ(β·[(log π(y⁺) − log π₀(y⁺)) − (log π(y⁻) − log π₀(y⁻))]),  ln 2 at the start"
    when: ClassVar[str] = "You have pairs of answers, and a model that was fine-tuned on instructions already."
    when_not: ClassVar[str] = (
        "The model has never seen the kind of answer that is wanted: sft first. Or only single answers were rated: kto."
    )
    example_data: ClassVar[str] = "starter:preferences"
    zh: ClassVar[dict[str, str]] = {
        "title": "直接偏好优化（DPO）",
        "summary": "从“较好/较差”的成对回答中学习，不需要奖励模型。",
        "when": "有成对的回答，而且模型已经过指令微调。",
        "when_not": "模型从未见过想要的那类回答：先做 sft。只有单个回答的评价：用 kto。",
        "loss": "sigmoid 即 DPO 本身；ipo 不会把间隔推向无穷；hinge 到达间隔即止；robust 校正一部分标反的样本（label_smoothing）。",
        "beta": "把模型拉在起点附近的力度：越小，允许走得越远。",
        "label_smoothing": "认为标反了的样本比例：sigmoid 变为保守 DPO，robust 需要它。",
        "length_normalized": "比较每个词元的平均值而不是总和，使长回答不占便宜。ipo 总是如此。",
        "sft_weight": "再加上这么多被选回答本身的损失（按词元平均），防止其概率下降。",
    }
    data_form: ClassVar[DataForm] = "preference"
    learning_rate_factor: ClassVar[float] = 0.1

    def problems(self, facts: StageFacts) -> list[Problem]:
        if self.label_smoothing and self.loss in ("ipo", "hinge"):
            what = f"label_smoothing has no effect on the loss {self.loss}."
            return [Problem(what, "objective.label_smoothing", "remove it, or use loss: sigmoid or robust")]
        if self.length_normalized and self.loss == "ipo":
            return [Problem("ipo compares means already.", "objective.length_normalized", "remove it")]
        return []

    @property
    def needs_reference(self) -> bool:
        return True

    def count(self, batch: Batch) -> float:
        """Return the number of pairs."""
        return len(batch.lengths) / 2

    def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
        """Return the sum over pairs of the loss, and of what is logged."""
        logps_S = answer_logps(model, batch)
        weights_S = answer_weights(batch)
        ratio_S = logps_S - batch.extras["reference"]
        if self.length_normalized or self.loss == "ipo":
            ratio_S = ratio_S / weights_S
        chosen_P, rejected_P = halves(ratio_S)
        total = self._losses(chosen_P - rejected_P).sum()
        metrics = pair_metrics(self.beta * chosen_P, self.beta * rejected_P)
        if self.sft_weight:
            nll = -halves(logps_S / weights_S)[0].sum()
            total = total + self.sft_weight * nll
            metrics["nll_chosen"] = nll.detach()
        return LossSum(total, metrics)

    def _losses(self, h_P: Tensor) -> Tensor:
        from torch.nn.functional import logsigmoid, relu

        if self.loss == "hinge":
            return relu(1.0 - self.beta * h_P)
        if self.loss == "ipo":
            return (h_P - 1.0 / (2.0 * self.beta)) ** 2
        right_P, wrong_P = -logsigmoid(self.beta * h_P), -logsigmoid(-self.beta * h_P)
        share = self.label_smoothing
        if self.loss == "robust":
            return ((1.0 - share) * right_P - share * wrong_P) / (1.0 - 2.0 * share)
        return (1.0 - share) * right_P + share * wrong_P
