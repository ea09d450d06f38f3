"""KL to the base: what the model expects next may not go far from what it expected before training.

The divergence is exact, over the whole vocabulary, at each supervised position: KL(π‖π₀), as in RLHF (Ziegler et al.
2019, arXiv:1909.08593), or KL(π₀‖π), as in learning without forgetting (Li & Hoiem 2016, arXiv:1606.09282).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import Problem
from luthier.regularizers.base import Regularizer, needs_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.batch import Batch
    from luthier.core.divergence import Beliefs
    from luthier.models.causal import CausalModel


class Kl(Regularizer):
    """Hold what the model expects next near what it expected before training."""

    kind: Literal["kl"] = "kl"

    weight: float = Field(default=0.1, gt=0)
    """How much a nat of divergence counts beside a nat of loss."""
    direction: Literal["reverse", "forward"] = "reverse"
    """reverse is KL(model‖base), which forbids what the base holds impossible; forward is KL(base‖model), which keeps
    everything possible that was."""

    title: ClassVar[str] = "KL to the base"
    summary: ClassVar[str] = "Hold what the model expects next near what it expected before training."
    paper: ClassVar[str] = "Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences, arXiv:1909.08593"
    equation: ClassVar[str] = "β·KL(π‖π₀) at each supervised position"
    when: ClassVar[str] = "No data of the old kind are there; the rows that are trained on have to do."
    when_not: ClassVar[str] = "Time is short: a second pass, of the model at the start, comes with every batch."
    zh: ClassVar[dict[str, str]] = {
        "title": "与基座模型的 KL",
        "summary": "让模型对下一个词元的预期留在训练前的预期附近。",
        "when": "没有旧类型的数据，只能用训练数据本身来约束。",
        "when_not": "时间紧：每个批次都要多做一次起点模型的前向计算。",
        "weight": "一奈特的散度相对于一奈特损失的比重。",
        "direction": "reverse 为 KL(模型‖基座)，禁止基座认为不可能的内容；forward 为 KL(基座‖模型)，保留原来可能的一切。",
    }
    metric: ClassVar[str] = "kl_to_base"
    compares_beliefs: ClassVar[bool] = True

    @property
    def strength(self) -> float:
        return self.weight

    def problems(self, facts: StageFacts) -> list[Problem]:
        return needs_tokens(facts, "kl")

    def belief_penalty(self, model: CausalModel, batch: Batch, start: Beliefs) -> Tensor:
        """Return Σ w·KL over the supervised positions."""
        return model.divergence_sum(batch, start, "reverse_kl" if self.direction == "reverse" else "forward_kl")
