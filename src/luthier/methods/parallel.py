"""Parallel adapters: beside each feed-forward, scaled (He et al. 2022, arXiv:2110.04366)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import Problem
from luthier.methods.base import Method, train_only
from luthier.models.layers import hidden_size
from luthier.models.sublayers import block_sublayers, choice_problems, chosen_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Parallel(Method):
    """Train a small two-layer network beside the feed-forward of each block."""

    kind: Literal["parallel"] = "parallel"

    bottleneck: int = Field(default=64, ge=1)
    """Width r of the adapter. The paper goes up to 512, where it is nearly as good as full fine-tuning."""
    scale: float = Field(default=4.0, gt=0)
    """The adapter's output is multiplied by this. 4 is the paper's choice; leave it unless you search over it."""
    activation: Literal["gelu", "relu", "silu"] = "relu"
    """The function between the two matrices. It hardly matters; silu is also called swish."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout inside the adapter. Helps on very small data."""
    blocks: tuple[int, ...] = ()
    """Only these blocks, counted from 0; negative numbers count from the end. Left out: all blocks."""
    drop_first: int = Field(default=0, ge=0)
    """AdapterDrop: no adapters in the first N blocks. A third of the blocks costs little quality and saves time."""

    title: ClassVar[str] = "Parallel adapters"
    summary: ClassVar[str] = "Train one small bottleneck network beside each feed-forward, scaled."
    principle: ClassVar[str] = (
        "The adapter reads what the feed-forward reads and adds to what it writes, so it widens the feed-forward by r new "
        "units instead of correcting its output. Compared in one frame, this beats adapters in series at equal size, and "
        "it can run at the same time as the feed-forward. The way up starts at zero, so training starts exactly at the "
        "base model."
    )
    equation: ClassVar[str] = "h = FFN(x) + s · (W_up f(W_down x + b_down) + b_up),  s = 4,  W_up = 0 at the start"
    paper: ClassVar[str] = (
        "He et al. 2022, Towards a Unified View of Parameter-Efficient Transfer Learning, arXiv:2110.04366"
    )
    moves: ClassVar[str] = "one adapter in each block: 2dr + r + d numbers a block"
    typical_share: ClassVar[str] = "0.3 to 6 %"
    when: ClassVar[str] = "The strongest of the adapters; larger budgets (r of 256 and more) where LoRA levels off."
    when_not: ClassVar[str] = "Serving with tools that know only plain models and LoRA: use lora."
    zh: ClassVar[dict[str, str]] = {
        "title": "并行适配器",
        "summary": "在每层前馈旁并联一个带缩放的小型瓶颈网络并训练它。",
        "principle": "适配器读入与前馈相同的输入，并加到前馈的输出上，相当于给前馈增加 r 个新单元，而不是修正它的输出。在统一框架下比较，同样大小时优于串联适配器，还能与前馈同时计算。升维矩阵初始为零，因此训练从基座模型精确出发。",
        "moves": "每层一个适配器：每层 2dr + r + d 个数",
        "when": "适配器中效果最好的一种；预算较大（r 为 256 及以上）、LoRA 已到瓶颈时。",
        "when_not": "部署工具只支持普通模型和 LoRA 时：请用 lora。",
        "bottleneck": "适配器的宽度 r。论文最大用到 512，此时已接近全量微调。",
        "scale": "适配器输出乘以该系数。4 是论文的取值；若不专门搜索，保持不变。",
        "activation": "两个矩阵之间的非线性函数，影响很小；silu 也叫 swish。",
        "dropout": "适配器内部的 dropout，数据很少时有帮助。",
        "blocks": "只在这些层加适配器，从 0 数起，负数从末尾数起。不填则为所有层。",
        "drop_first": "AdapterDrop：前 N 层不加适配器。去掉约三分之一的层，质量损失很小而节省时间。",
    }
    default_learning_rate: ClassVar[float] = 5e-4
    unmergeable: ClassVar[str] = "an adapter has a nonlinearity, which no matrix of the base can hold"

    def problems(self, facts: StageFacts) -> list[Problem]:
        return choice_problems(facts.model_config, self.blocks, self.drop_first)

    def apply(self, model: PreTrainedModel) -> None:
        from luthier.methods.modules.bottleneck import Bottleneck, put

        blocks, names = block_sublayers(model), []
        for index in chosen_blocks(len(blocks), self.blocks, self.drop_first):
            adapter = Bottleneck(hidden_size(model), self.bottleneck, self.activation, self.dropout, self.scale)
            names += put(blocks[index], "parallel", adapter)
        train_only(model, names)

    def count(self, model: PreTrainedModel) -> int:
        from luthier.methods.modules.bottleneck import bottleneck_size

        chosen = chosen_blocks(len(block_sublayers(model)), self.blocks, self.drop_first)
        return len(chosen) * bottleneck_size(hidden_size(model), self.bottleneck)
