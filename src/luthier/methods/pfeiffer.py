"""Pfeiffer's adapters: one in series behind each feed-forward (Pfeiffer et al. 2020, arXiv:2005.00247)."""

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


class Pfeiffer(Method):
    """Train a small two-layer network behind the feed-forward of each block."""

    kind: Literal["pfeiffer"] = "pfeiffer"

    bottleneck: int = Field(default=64, ge=1)
    """Width r of the adapter. The paper uses a sixteenth of the model's width; more learns more."""
    activation: Literal["gelu", "relu", "silu"] = "relu"
    """The function between the two matrices. It hardly matters; silu is also called swish."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout inside the adapter. Helps on very small data."""
    blocks: tuple[int, ...] = ()
    """Only these blocks, counted from 0; negative numbers count from the end. Left out: all blocks."""
    drop_first: int = Field(default=0, ge=0)
    """AdapterDrop: no adapters in the first N blocks. A third of the blocks costs little quality and saves time."""

    title: ClassVar[str] = "Adapters (Pfeiffer)"
    summary: ClassVar[str] = "Train one small bottleneck network in series after each feed-forward."
    principle: ClassVar[str] = (
        "A search over places found that one adapter a block, behind the feed-forward, does as well as Houlsby's two: half "
        "the parameters, half the delay. The way up starts at zero, so training starts exactly at the base model."
    )
    equation: ClassVar[str] = "h ← h + W_up f(W_down h + b_down) + b_up,  h = FFN(x),  W_up = 0 at the start"
    paper: ClassVar[str] = "Pfeiffer et al. 2020, AdapterFusion, arXiv:2005.00247"
    moves: ClassVar[str] = "one adapter in each block: 2dr + r + d numbers a block"
    typical_share: ClassVar[str] = "0.3 to 2 %"
    when: ClassVar[str] = "As adapter, at half its cost: the usual choice among adapters in series."
    when_not: ClassVar[str] = (
        "Serving at the lowest latency or with tools that know only plain models and LoRA: use lora."
    )
    zh: ClassVar[dict[str, str]] = {
        "title": "适配器（Pfeiffer）",
        "summary": "只在每层前馈之后串联一个小型瓶颈网络并训练它。",
        "principle": "对插入位置的搜索表明：每层只在前馈之后放一个适配器，效果与 Houlsby 的两个相当，参数和延迟减半。升维矩阵初始为零，因此训练从基座模型精确出发。",
        "moves": "每层一个适配器：每层 2dr + r + d 个数",
        "when": "与 adapter 相同的场合，开销减半：串联适配器中的常用选择。",
        "when_not": "要求最低推理延迟，或部署工具只支持普通模型和 LoRA 时：请用 lora。",
        "bottleneck": "适配器的宽度 r。论文取模型宽度的十六分之一；越大学得越多。",
        "activation": "两个矩阵之间的非线性函数，影响很小；silu 也叫 swish。",
        "dropout": "适配器内部的 dropout，数据很少时有帮助。",
        "blocks": "只在这些层加适配器，从 0 数起，负数从末尾数起。不填则为所有层。",
        "drop_first": "AdapterDrop：前 N 层不加适配器。去掉约三分之一的层，质量损失很小而节省时间。",
    }
    default_learning_rate: ClassVar[float] = 1e-3
    unmergeable: ClassVar[str] = "an adapter has a nonlinearity, which no matrix of the base can hold"

    def problems(self, facts: StageFacts) -> list[Problem]:
        return choice_problems(facts.model_config, self.blocks, self.drop_first)

    def apply(self, model: PreTrainedModel) -> None:
        from luthier.methods.modules.bottleneck import Bottleneck, put

        blocks, names = block_sublayers(model), []
        for index in chosen_blocks(len(blocks), self.blocks, self.drop_first):
            adapter = Bottleneck(hidden_size(model), self.bottleneck, self.activation, self.dropout)
            names += put(blocks[index], "feed_forward", adapter)
        train_only(model, names)

    def count(self, model: PreTrainedModel) -> int:
        from luthier.methods.modules.bottleneck import bottleneck_size

        chosen = chosen_blocks(len(block_sublayers(model)), self.blocks, self.drop_first)
        return len(chosen) * bottleneck_size(hidden_size(model), self.bottleneck)
