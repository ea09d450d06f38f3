"""The Hadamard adapter: scale and shift what attention writes (Chen et al. 2023, CIKM, arXiv:2407.11033).

The published share, 0.033 % of BERT-base, is 4d numbers a block: w, b, and the weight and bias of the normalisation that
follows, which the paper unfreezes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import ModelError, Problem
from luthier.methods.base import Method, sizes, train_only
from luthier.models.layers import hidden_size
from luthier.models.sublayers import Block, block_sublayers, choice_problems, chosen_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Hadamard(Method):
    """Train one factor and one summand for each number that attention writes."""

    kind: Literal["hadamard"] = "hadamard"

    shift: bool = True
    """Also train a summand. Without it the method can be merged into models whose attention has no biases (Llama)."""
    norms: bool = True
    """Also train the normalisation that follows attention in each chosen block, as the paper does and counts."""
    blocks: tuple[int, ...] = ()
    """Only these blocks, counted from 0; negative numbers count from the end. Left out: all blocks."""
    drop_first: int = Field(default=0, ge=0)
    """Leave out the first N blocks; the paper keeps two thirds of the blocks without loss."""

    title: ClassVar[str] = "Hadamard adapter"
    summary: ClassVar[str] = "Train an element-wise scale and shift of what attention writes, and the norm after it."
    principle: ClassVar[str] = (
        "Fine-tuning changes the outputs of attention nearly linearly, one number at a time. So each of them gets a factor "
        "and a summand, which start at one and zero: training starts exactly at the base model. Nothing has fewer "
        "parameters among adapters, and the result can be merged into the matrix before it."
    )
    equation: ClassVar[str] = "h ← w ⊙ h + b,  h = Attention(x),  w = 1 and b = 0 at the start"
    paper: ClassVar[str] = "Chen et al. 2023, Hadamard Adapter, arXiv:2407.11033"
    moves: ClassVar[str] = (
        "w and b in each block, and the norm after attention: 4d numbers (3d where norms have no bias)"
    )
    typical_share: ClassVar[str] = "0.004 to 0.04 %"
    when: ClassVar[str] = "Classification with encoders, very little data, thousands of variants on one base."
    when_not: ClassVar[str] = "Learning much that is new: so few parameters hold little. Use lora."
    zh: ClassVar[dict[str, str]] = {
        "title": "Hadamard 适配器",
        "summary": "对注意力的输出训练逐元素的缩放和平移，并训练其后的归一化。",
        "principle": "微调对注意力输出的改变近似逐元素线性。因此每个元素配一个系数和一个加数，初始为 1 和 0：训练从基座模型精确出发。它是参数最少的适配器，训练后可并入前面的矩阵。",
        "moves": "每层的 w 和 b，以及注意力之后的归一化：4d 个数（归一化无偏置时为 3d）",
        "when": "用编码器做分类、数据极少，或一个基座带成千上万个变体时。",
        "when_not": "需要学习大量新内容时：参数太少，装不下。请用 lora。",
        "shift": "同时训练加数。关闭后，即使注意力没有偏置的模型（如 Llama）也能合并。",
        "norms": "同时训练所选各层注意力之后的归一化，与论文的做法和计数一致。",
        "blocks": "只用于这些层，从 0 数起，负数从末尾数起。不填则为所有层。",
        "drop_first": "跳过前 N 层；论文保留三分之二的层，没有损失。",
    }
    default_learning_rate: ClassVar[float] = 2e-3

    def problems(self, facts: StageFacts) -> list[Problem]:
        return choice_problems(facts.model_config, self.blocks, self.drop_first)

    def apply(self, model: PreTrainedModel) -> None:
        from luthier.methods.modules.hadamard import Hadamard as Update
        from luthier.methods.modules.hadamard import put_behind_attention

        names = []
        for block in self._chosen(model):
            names += put_behind_attention(block, Update(hidden_size(model), self.shift))
            names += self._norm(model, block)
        train_only(model, names)

    def count(self, model: PreTrainedModel) -> int:
        size, chosen = sizes(model), self._chosen(model)
        norms = sum(size[n] for block in chosen for n in self._norm(model, block))
        return len(chosen) * hidden_size(model) * (2 if self.shift else 1) + norms

    def why_unmergeable(self, model: PreTrainedModel) -> str:
        """Return why there is no plain model: attention's last matrix has no bias to take the shift, or is none."""
        for block in self._chosen(model):
            if not block.attention.projection:
                return "attention's last matrix was not found"
            projection = model.get_submodule(block.attention.projection)
            if self.shift and getattr(projection, "bias", None) is None:
                name = block.attention.projection.rpartition(".")[2]
                return f"{name} of this model has no bias to take the shift; train with shift: false to merge"
        return ""

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:
        """Scale the rows and the bias of the matrix before each update, and add the shift to the bias.

        Raises:
            RunError: the matrix has no bias to take the shift.
        """
        from luthier.methods.modules.hadamard import NAME, fold
        from luthier.methods.modules.hadamard import Hadamard as Update

        super().merge(model)
        for block in self._chosen(model):
            update = block.module.get_submodule(NAME)
            assert isinstance(update, Update)
            fold(block, update, model.get_submodule(block.attention.projection))
        return model

    def _chosen(self, model: PreTrainedModel) -> list[Block]:
        blocks = block_sublayers(model)
        return [blocks[i] for i in chosen_blocks(len(blocks), self.blocks, self.drop_first)]

    def _norm(self, model: PreTrainedModel, block: Block) -> list[str]:
        if not self.norms:
            return []
        if not block.norm:
            remedy = "leave it out with norms: false"
            raise ModelError(Problem(f"No normalisation was found in {block.name}.", "method.norms", remedy))
        return [f"{block.norm}.{n}" for n, _ in model.get_submodule(block.norm).named_parameters()]
