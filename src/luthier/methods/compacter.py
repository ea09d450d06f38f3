"""Compacter: adapters whose matrices are Kronecker sums with shared factors (Karimi Mahabadi et al. 2021, arXiv:2106.04647).

The paper's counts, 0.073 % of T5-base for Compacter and 0.047 % for Compacter++, include the layer norms, which it
trains; hence `norms` is on by default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import ModelError, Problem
from luthier.methods.base import Method, sizes, train_only
from luthier.models.layers import hidden_size
from luthier.models.sublayers import block_sublayers, choice_problems, chosen_blocks, norms_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Compacter(Method):
    """Train adapters whose matrices are sums of Kronecker products with factors shared by all layers."""

    kind: Literal["compacter"] = "compacter"

    bottleneck: int = Field(default=32, ge=1)
    """Width r of the adapter, a multiple of phm_dim. The paper divides the model's width by 32; more costs little."""
    phm_dim: int = Field(default=4, ge=1)
    """Number n of Kronecker terms, and side of the shared factors; divides the model's width. 4 to 12 in the paper."""
    rank: int = Field(default=1, ge=1)
    """Rank of the second factor of each term. 1 is the paper's choice; parameters grow in proportion."""
    feed_forward_only: bool = False
    """Compacter++: adapters behind the feed-forward only, half as many parameters at nearly the same quality."""
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """The function between the two matrices. It hardly matters; silu is also called swish."""
    norms: bool = True
    """Also train the norms of the blocks with adapters and the final norm, as the paper does and counts."""
    blocks: tuple[int, ...] = ()
    """Only these blocks, counted from 0; negative numbers count from the end. Left out: all blocks."""
    drop_first: int = Field(default=0, ge=0)
    """AdapterDrop: no adapters in the first N blocks. A third of the blocks costs little quality and saves time."""

    title: ClassVar[str] = "Compacter"
    summary: ClassVar[str] = "Train adapters whose matrices are Kronecker sums with factors shared across layers."
    principle: ClassVar[str] = (
        "A bottleneck adapter's matrix is written as a sum of n Kronecker products. The first factors, small n × n matrices, "
        "are shared by all adapters and hold what is common; the second ones belong to each layer and have rank one. "
        "Parameters grow with d + r instead of d · r. The last factor of the way up starts at zero, so training starts "
        "exactly at the base model."
    )
    equation: ClassVar[str] = "W = Σᵢ Aᵢ ⊗ (sᵢ tᵢᵀ),  Aᵢ ∈ ℝ^{n×n} shared,  h ← h + W_up f(W_down h + b_down) + b_up"
    paper: ClassVar[str] = (
        "Karimi Mahabadi et al. 2021, Compacter: Efficient Low-Rank Hypercomplex Adapter Layers, arXiv:2106.04647"
    )
    moves: ClassVar[str] = (
        "two adapters in each block: 2k(d + r) + r + d numbers each (k the rank), n³ shared numbers, and the norms"
    )
    typical_share: ClassVar[str] = "0.02 to 0.1 %"
    when: ClassVar[str] = "Very small files or very little data, where an ordinary adapter would overfit."
    when_not: ClassVar[str] = "Learning much that is new: so few parameters hold little. Use adapter or lora."
    zh: ClassVar[dict[str, str]] = {
        "title": "Compacter",
        "summary": "训练以克罗内克积之和构成矩阵的适配器，部分因子由所有层共享。",
        "principle": "把瓶颈适配器的矩阵写成 n 个克罗内克积之和。第一组因子是小的 n × n 矩阵，由所有适配器共享，承载共性；第二组因子属于各层，秩为一。参数随 d + r 增长，而不是 d · r。升维部分的最后一个因子初始为零，因此训练从基座模型精确出发。",
        "moves": "每层两个适配器：每个 2k(d + r) + r + d 个数（k 为秩），另有 n³ 个共享数和归一化参数",
        "when": "要求文件极小，或数据极少、普通适配器会过拟合时。",
        "when_not": "需要学习大量新内容时：参数太少，装不下。请用 adapter 或 lora。",
        "bottleneck": "适配器的宽度 r，须为 phm_dim 的倍数。论文取模型宽度的三十二分之一；加大开销很小。",
        "phm_dim": "克罗内克项数 n，也是共享因子的边长；须整除模型宽度。论文取 4 到 12。",
        "rank": "每项第二个因子的秩。论文取 1；参数按比例增加。",
        "feed_forward_only": "即 Compacter++：只在前馈之后加适配器，参数减半，质量几乎不变。",
        "activation": "两个矩阵之间的非线性函数，影响很小；silu 也叫 swish。",
        "norms": "同时训练带适配器各层的归一化和末端归一化，与论文的做法和计数一致。",
        "blocks": "只在这些层加适配器，从 0 数起，负数从末尾数起。不填则为所有层。",
        "drop_first": "AdapterDrop：前 N 层不加适配器。去掉约三分之一的层，质量损失很小而节省时间。",
    }
    default_learning_rate: ClassVar[float] = 3e-3
    unmergeable: ClassVar[str] = "an adapter has a nonlinearity, which no matrix of the base can hold"

    def problems(self, facts: StageFacts) -> list[Problem]:
        config = facts.model_config
        hidden = config.get("hidden_size") or config.get("n_embd")
        found = self._indivisible(hidden if isinstance(hidden, int) else None)
        return found + choice_problems(config, self.blocks, self.drop_first)

    def _indivisible(self, hidden: int | None) -> list[Problem]:
        found = []
        if self.bottleneck % self.phm_dim:
            above = self.bottleneck + self.phm_dim - self.bottleneck % self.phm_dim
            what = f"The bottleneck {self.bottleneck} is no multiple of phm_dim {self.phm_dim}."
            found.append(Problem(what, "method.bottleneck", f"use {above}"))
        if hidden is not None and hidden % self.phm_dim:
            choices = ", ".join(str(n) for n in range(2, 17) if hidden % n == 0)
            what = f"The model's width {hidden} is no multiple of phm_dim {self.phm_dim}."
            found.append(Problem(what, "method.phm_dim", f"choose one of: {choices}" if choices else "use 1"))
        return found

    def apply(self, model: PreTrainedModel) -> None:
        from luthier.methods.modules.bottleneck import put
        from luthier.methods.modules.compacter import KroneckerBottleneck, SharedRule

        hidden = hidden_size(model)
        found = self._indivisible(hidden)  # again: of a hub model, `problems` could not know the width
        if found:
            raise ModelError(*found)
        blocks, rule = block_sublayers(model), SharedRule(self.phm_dim)
        names = self._norms(model)
        for index in chosen_blocks(len(blocks), self.blocks, self.drop_first):
            for place in self._places():
                adapter = KroneckerBottleneck(rule, hidden, self.bottleneck, self.rank, self.activation)
                names += put(blocks[index], place, adapter)
        train_only(model, names)

    def count(self, model: PreTrainedModel) -> int:
        from luthier.methods.modules.compacter import kronecker_size

        size = sizes(model)
        chosen = chosen_blocks(len(block_sublayers(model)), self.blocks, self.drop_first)
        each = kronecker_size(hidden_size(model), self.bottleneck, self.rank)
        adapters = len(chosen) * len(self._places()) * each
        return adapters + self.phm_dim**3 + sum(size[n] for n in self._norms(model))

    def _places(self) -> tuple[Literal["attention", "feed_forward"], ...]:
        return ("feed_forward",) if self.feed_forward_only else ("attention", "feed_forward")

    def _norms(self, model: PreTrainedModel) -> list[str]:
        if not self.norms:
            return []
        return norms_of(model, chosen_blocks(len(block_sublayers(model)), self.blocks, self.drop_first))
