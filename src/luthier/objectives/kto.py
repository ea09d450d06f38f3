"""KTO: learn from single answers that were found good or bad.

Ethayarajh et al. 2024, arXiv:2402.01306. With r = log π(y) − log π₀(y) and z = max(0, mean of r over answers that
belong to other prompts):

    good  w⁺·(1 − σ(β(r − z)))        bad  w⁻·(1 − σ(β(z − r)))

z belongs to the whole optimizer step, carries no gradient, and needs a look at the step's answers behind other prompts
before the first gradient. Each row therefore comes with the answer of another row as a second ending.

Shape legend: S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.objectives.base import DataForm, Groups, LanguageModel, LossSum, Objective
from luthier.objectives.pairs import answer_logps

if TYPE_CHECKING:
    from luthier.core.batch import Batch, Example


class Kto(Objective):
    """Learn from answers that are each known to be good or bad."""

    kind: Literal["kto"] = "kto"

    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is held near its start: small values let it move further."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """How much a good answer counts. Where good ones are rare, raise it: weight × number should be of the same size on
    both sides (a ratio of 1 to 4/3)."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """How much a bad answer counts."""

    title: ClassVar[str] = "Kahneman-Tversky optimisation"
    summary: ClassVar[str] = "Learn from answers that were found good or bad, without pairs."
    paper: ClassVar[str] = "Ethayarajh et al. 2024, KTO, arXiv:2402.01306"
    equation: ClassVar[str] = (
        "w·(1 − σ(±β·(log π(y) − log π₀(y) − z))),  z = the mean drift of other answers, 0.5 at the start"
    )
    when: ClassVar[str] = "Answers were rated one by one (thumbs up or down), with more of one kind than of the other."
    when_not: ClassVar[str] = "There are true pairs of answers to the same prompts: dpo learns more from them."
    example_data: ClassVar[str] = "starter:preferences"
    zh: ClassVar[dict[str, str]] = {
        "title": "卡尼曼-特沃斯基优化（KTO）",
        "summary": "从单个被判为好或坏的回答中学习，不需要成对数据。",
        "when": "回答是逐个被评价的（点赞或点踩），好坏数量可以不等。",
        "when_not": "同一提示有成对的回答：dpo 从中学到的更多。",
        "beta": "把模型拉在起点附近的力度：越小，允许走得越远。",
        "desirable_weight": "好回答算多少。好回答稀少时应调高，使两边“权重×数量”相当（比值 1 到 4/3）。",
        "undesirable_weight": "坏回答算多少。",
    }
    data_form: ClassVar[DataForm] = "rated"
    learning_rate_factor: ClassVar[float] = 0.1
    looks_ahead: ClassVar[bool] = True

    @property
    def needs_reference(self) -> bool:
        return True

    def prepare_step(self, model: LanguageModel, examples: Sequence[Example], groups: Groups) -> Sequence[Example]:
        """Return the step's answers behind their own prompts alone, each with z."""
        paired = [example.paths() for example in examples]
        strangers = [paths[1] for paths in paired if len(paths) > 1]
        total = 0.0
        for group in groups(strangers) if strangers else []:
            batch = model.collate(group)
            total += float((answer_logps(model, batch) - batch.extras["reference"]).sum())
        z = max(total / len(strangers), 0.0) if strangers else 0.0
        return [replace(paths[0], extras={**paths[0].extras, "kl": z}) for paths in paired]

    def count(self, batch: Batch) -> float:
        """Return the number of answers."""
        return float(len(batch.lengths))

    def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
        """Return the sum over answers of the loss, and of what is logged."""
        import torch

        ratio_S = answer_logps(model, batch) - batch.extras["reference"]
        good_S, z_S = batch.extras["good"], batch.extras["kl"]
        sign_S = 2.0 * good_S - 1.0
        weight_S = torch.where(good_S > 0, self.desirable_weight, self.undesirable_weight)
        loss_S = weight_S * (1.0 - torch.sigmoid(sign_S * self.beta * (ratio_S - z_S)))
        reward_S = self.beta * ratio_S.detach()
        gap_S = sign_S * (reward_S - self.beta * z_S)
        metrics = {
            "accuracy": (gap_S > 0).float().sum() + 0.5 * (gap_S == 0).float().sum(),
            "margin": gap_S.sum(),
            "kl": z_S.sum(),
        }
        return LossSum(loss_S.sum(), metrics)
