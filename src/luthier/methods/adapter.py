"""Bottleneck adapters in series, twice in each block (Houlsby et al. 2019, arXiv:1902.00751).

Dropping the lowest blocks' adapters is AdapterDrop (Rücklé et al. 2021, arXiv:2010.11918).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import Problem
from luthier.methods.base import Method, sizes, train_only
from luthier.models.layers import hidden_size
from luthier.models.sublayers import block_sublayers, choice_problems, chosen_blocks, norms_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Adapter(Method):
    """Train a small two-layer network behind attention and behind the feed-forward of each block."""

    kind: Literal["adapter"] = "adapter"

    bottleneck: int = Field(default=64, ge=1)
    """Width r of the adapter. 8 to 256 is usual, 64 a good start; more learns more and costs in proportion."""
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """The function between the two matrices. It hardly matters; silu is also called swish."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout inside the adapter. Helps on very small data."""
    norms: bool = False
    """Also train the norms of the blocks with adapters and the final norm, as the paper did: few parameters, sometimes a little better."""
    blocks: tuple[int, ...] = ()
    """Only these blocks, counted from 0; negative numbers count from the end. Left out: all blocks."""
    drop_first: int = Field(default=0, ge=0)
    """AdapterDrop: no adapters in the first N blocks. A third of the blocks costs little quality and saves time."""

    title: ClassVar[str] = "Adapters (Houlsby)"
    summary: ClassVar[str] = "Train small bottleneck networks in series after attention and after the feed-forward."
    principle: ClassVar[str] = (
        "Each block gets two new small networks: down to r numbers, a nonlinearity, up again, added to what came in. All "
        "else is frozen. The way up starts at zero, so training starts exactly at the base model. Unlike LoRA an adapter "
        "is not linear, so it can compute what no change of a matrix can; and for that reason it stays a part of the model."
    )
    equation: ClassVar[str] = "h ← h + W_up f(W_down h + b_down) + b_up,  W_down ∈ ℝ^{r×d},  W_up = 0 at the start"
    paper: ClassVar[str] = "Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP, arXiv:1902.00751"
    moves: ClassVar[str] = "two adapters in each block: 2 · (2dr + r + d) numbers a block"
    typical_share: ClassVar[str] = "0.5 to 4 %"
    when: ClassVar[str] = (
        "Many tasks on one base, classification with encoders, little data; comparing with the literature."
    )
    when_not: ClassVar[str] = (
        "Serving at the lowest latency or with tools that know only plain models and LoRA: use lora."
    )
    zh: ClassVar[dict[str, str]] = {
        "title": "适配器（Houlsby）",
        "summary": "在注意力之后和前馈之后各串联一个小型瓶颈网络，只训练它们。",
        "principle": "每一层加入两个小网络：降到 r 维，经非线性，再升回原维度，并加到输入上；其余全部冻结。升维矩阵初始为零，因此训练从基座模型精确出发。与 LoRA 不同，适配器是非线性的，能算出任何矩阵改动都算不出的东西；也正因如此，它必须留在模型里，无法合并。",
        "moves": "每层两个适配器：每层 2 ·（2dr + r + d）个数",
        "when": "一个基座服务多个任务、用编码器做分类、数据少，或需要与文献对比时。",
        "when_not": "要求最低推理延迟，或部署工具只支持普通模型和 LoRA 时：请用 lora。",
        "bottleneck": "适配器的宽度 r。通常取 8 到 256，64 是好的起点；越大学得越多，开销按比例增加。",
        "activation": "两个矩阵之间的非线性函数，影响很小；silu 也叫 swish。",
        "dropout": "适配器内部的 dropout，数据很少时有帮助。",
        "norms": "同时训练带适配器各层的归一化和末端归一化（原论文的做法）：参数很少，有时略好。",
        "blocks": "只在这些层加适配器，从 0 数起，负数从末尾数起。不填则为所有层。",
        "drop_first": "AdapterDrop：前 N 层不加适配器。去掉约三分之一的层，质量损失很小而节省时间。",
    }
    default_learning_rate: ClassVar[float] = 1e-3
    unmergeable: ClassVar[str] = "an adapter has a nonlinearity, which no matrix of the base can hold"

    def problems(self, facts: StageFacts) -> list[Problem]:
        return choice_problems(facts.model_config, self.blocks, self.drop_first)

    def apply(self, model: PreTrainedModel) -> None:
        from luthier.methods.modules.bottleneck import Bottleneck, put

        blocks = block_sublayers(model)
        names = self._norms(model)
        for index in chosen_blocks(len(blocks), self.blocks, self.drop_first):
            for place in ("attention", "feed_forward"):
                adapter = Bottleneck(hidden_size(model), self.bottleneck, self.activation, self.dropout)
                names += put(blocks[index], place, adapter)
        train_only(model, names)

    def count(self, model: PreTrainedModel) -> int:
        from luthier.methods.modules.bottleneck import bottleneck_size

        size = sizes(model)
        chosen = chosen_blocks(len(block_sublayers(model)), self.blocks, self.drop_first)
        adapters = 2 * len(chosen) * bottleneck_size(hidden_size(model), self.bottleneck)
        return adapters + sum(size[n] for n in self._norms(model))

    def _norms(self, model: PreTrainedModel) -> list[str]:
        if not self.norms:
            return []
        return norms_of(model, chosen_blocks(len(block_sublayers(model)), self.blocks, self.drop_first))
