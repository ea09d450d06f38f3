"""L2-SP: weights are drawn towards where training started, not towards zero.

Li et al. 2018, arXiv:1802.01483: α/2·‖θ − θ₀‖² over the weights that were there before. A new head has no start worth
going back to; as in the paper it is left out, and weight_decay is for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.regularizers.base import Regularizer, Tensors

if TYPE_CHECKING:
    from torch import Tensor


class L2Sp(Regularizer):
    """Draw the trained weights towards the point that training starts from."""

    kind: Literal["l2_sp"] = "l2_sp"

    weight: float = Field(default=0.1, gt=0)
    """How strongly (α in the paper, which uses 0.001 to 1). The distance is that of the tensors that the method trains:
    for LoRA its two matrices, not their product."""

    title: ClassVar[str] = "L2-SP"
    summary: ClassVar[str] = "Draw the weights towards the point that training starts from."
    paper: ClassVar[str] = "Li et al. 2018, Explicit Inductive Bias for Transfer Learning, arXiv:1802.01483"
    equation: ClassVar[str] = "α/2·‖θ − θ₀‖²"
    when: ClassVar[str] = "The new data are few, and the model is to stay close to what it was."
    when_not: ClassVar[str] = "Rows of the old kind are at hand: replay holds more for less."
    zh: ClassVar[dict[str, str]] = {
        "title": "L2-SP",
        "summary": "把权重拉向训练的起点，而不是零。",
        "when": "新数据很少，模型应当留在原来附近。",
        "when_not": "手头有旧类型的数据：replay 代价更小、效果更好。",
        "weight": "力度（论文中的 α，取值 0.001 到 1）。距离按方法所训练的张量计算：对 LoRA 是它的两个矩阵，而不是它们的乘积。",
    }
    metric: ClassVar[str] = "l2_sp"
    compares_weights: ClassVar[bool] = True

    @property
    def strength(self) -> float:
        return self.weight

    def weight_penalty(self, trained: Tensors, start: Tensors, importance: Tensors) -> Tensor:
        """Return ½·‖θ − θ₀‖²."""
        import torch

        return 0.5 * torch.stack([(tensor - start[name]).square().sum() for name, tensor in trained.items()]).sum()
