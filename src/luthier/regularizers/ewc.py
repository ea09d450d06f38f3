"""Elastic weight consolidation: weights that matter for what was known are held, the others may go where they like.

Kirkpatrick et al. 2017, arXiv:1612.00796: λ/2·Σ Fᵢ·(θᵢ − θ₀ᵢ)², with the diagonal of the Fisher information
Fᵢ = E[(∂ log p(y|x)/∂θᵢ)²]. The expectation is over texts x of general data and tokens y that the model itself draws
(not those of the data, which would give the "empirical Fisher"; Kunstner et al. 2019, arXiv:1905.12558). It is measured
once, before training, and is per token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import Problem
from luthier.data.spec import DataSpec, located_rows
from luthier.regularizers.base import Regularizer, Tensors, needs_tokens

if TYPE_CHECKING:
    from torch import Tensor


class Ewc(Regularizer):
    """Hold each weight by how much it matters for general data."""

    kind: Literal["ewc"] = "ewc"

    data: DataSpec
    """Rows of what is not to be forgotten, written like the recipe's own data: conversations or plain text."""
    weight: float = Field(default=100.0, gt=0)
    """How strongly (λ in the paper). The Fisher information of a token is small, so 10 to 10000 is usual."""
    rows: int = Field(default=256, ge=1)
    """Measure how much each weight matters on at most so many rows, the first ones."""

    title: ClassVar[str] = "Elastic weight consolidation"
    summary: ClassVar[str] = "Hold each weight by how much it matters for what was known before."
    paper: ClassVar[str] = "Kirkpatrick et al. 2017, Overcoming catastrophic forgetting, arXiv:1612.00796"
    equation: ClassVar[str] = "λ/2·Σ Fᵢ·(θᵢ − θ₀ᵢ)²,  Fᵢ = E[(∂ log p/∂θᵢ)²]"
    when: ClassVar[str] = "Some rows of the old kind are at hand before training, but are not to be trained on."
    when_not: ClassVar[str] = "They may be trained on: replay is simpler, and holds more."
    zh: ClassVar[dict[str, str]] = {
        "title": "弹性权重巩固（EWC）",
        "summary": "每个权重对旧知识越重要，就被拉得越紧。",
        "when": "训练前手头有一些旧类型的数据，但不打算用来训练。",
        "when_not": "这些数据可以用来训练：replay 更简单。",
        "data": "不想遗忘的内容的数据，写法同配方的 data：对话或纯文本。",
        "weight": "力度（论文中的 λ）。每个词元的 Fisher 信息很小，因此常取 10 到 10000。",
        "rows": "最多用前这么多行来测量每个权重的重要程度。",
    }
    metric: ClassVar[str] = "ewc"
    compares_weights: ClassVar[bool] = True

    @property
    def strength(self) -> float:
        return self.weight

    @property
    def general_rows(self) -> DataSpec | None:
        return self.data

    @property
    def measured_rows(self) -> int:
        return self.rows

    def located(self, find: Callable[[str], Path]) -> Self:
        return self.model_copy(update={"data": located_rows(self.data, find)})

    def problems(self, facts: StageFacts) -> list[Problem]:
        return needs_tokens(facts, "ewc")

    def weight_penalty(self, trained: Tensors, start: Tensors, importance: Tensors) -> Tensor:
        """Return ½·Σ F·(θ − θ₀)²."""
        import torch

        parts = [(importance[name] * (tensor - start[name]).square()).sum() for name, tensor in trained.items()]
        return 0.5 * torch.stack(parts).sum()
