"""Prefix tuning: trained keys and values in every layer (Li & Liang 2021, arXiv:2101.00190), in PEFT's files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import Problem
from luthier.methods.base import Method
from luthier.models.room import cache_problems, room_problems, without_prefixes

if TYPE_CHECKING:
    from peft import PrefixTuningConfig
    from transformers import PreTrainedModel


class Prefix(Method):
    """Train keys and values that every layer sees before the input."""

    kind: Literal["prefix"] = "prefix"

    tokens: int = Field(default=20, ge=1)
    """Length of the prefix in virtual tokens. 5 to 30 for generation; every one takes a place of the model's context."""
    projection: bool = False
    """Write the prefix by a small network, as the paper does. Steadier at high learning rates; far more to train."""
    projection_size: int | None = Field(default=None, ge=1)
    """Inner size of that network. Left out, it is the size of a layer's keys; the paper uses 512 and 800."""

    title: ClassVar[str] = "Prefix tuning"
    summary: ClassVar[str] = "Train keys and values that every layer sees before the input."
    principle: ClassVar[str] = (
        "A prompt acts on later words through the keys and values that it leaves in every layer. Prefix tuning trains "
        "these directly, in all layers at once, which says far more than embeddings at the input can. Optionally a "
        "small network writes them while training."
    )
    equation: ClassVar[str] = "attention(Q, [P_K; K], [P_V; V]) in every layer,  P_K, P_V ∈ ℝ^{tokens × d} are trained"
    paper: ClassVar[str] = "Li & Liang 2021, Prefix-Tuning, arXiv:2101.00190"
    moves: ClassVar[str] = "keys and values of the prefix: 2 · layers · tokens · d numbers"
    typical_share: ClassVar[str] = "0.1 to 1 %"
    when: ClassVar[str] = "Generation in a given form from little data; many tasks on one model that stays untouched."
    when_not: ClassVar[str] = "New knowledge or long training data, where lora learns more; very short contexts."
    zh: ClassVar[dict[str, str]] = {
        "title": "前缀微调（Prefix Tuning）",
        "summary": "训练每一层在输入之前看到的键和值。",
        "principle": "提示通过它在每一层留下的键和值影响后面的词。前缀微调直接训练所有层的键和值，表达力远超输入端的嵌入。训练时可选用一个小网络来写出它们。",
        "moves": "前缀的键和值：2 · 层数 · tokens · d 个数",
        "when": "数据少、输出形式固定的生成任务；在不改动的同一模型上做许多任务。",
        "when_not": "学习新知识或训练数据很多时，lora 学得更多；上下文很短时也不合适。",
        "tokens": "前缀的长度（虚拟词元数）。生成任务常用 5 到 30；每个都占用模型上下文的一个位置。",
        "projection": "像论文那样用一个小网络写出前缀。高学习率下更稳，但要训练的参数多得多。",
        "projection_size": "该网络的内部宽度。不填则等于一层键的宽度；论文用 512 和 800。",
    }
    default_learning_rate: ClassVar[float] = 1e-2
    differs_at_start: ClassVar[str] = "attention sees the prefix, which begins at random, from the first step on"
    unmergeable: ClassVar[str] = "a prefix is keys and values before every input, and no weight can hold it"

    @property
    def reserved_positions(self) -> int:
        return self.tokens

    def problems(self, facts: StageFacts) -> list[Problem]:
        found = room_problems(self.tokens, facts.model_config)
        unseen = without_prefixes(facts.model_config)
        if unseen is not None:
            found.append(unseen)
        found += cache_problems(facts.model_config, facts.gradient_checkpointing)
        if self.projection_size is not None and not self.projection:
            remedy = "set projection: true, or leave it out"
            found.append(Problem("projection_size has no effect without projection.", "method.projection_size", remedy))
        return found

    def apply(self, model: PreTrainedModel) -> None:
        from luthier.models.quantized import import_bitsandbytes

        import_bitsandbytes()
        from peft import PrefixEncoder

        from luthier.methods.modules.prompts import train_virtual_tokens
        from luthier.models.virtual_tokens import add_prefix

        add_prefix(model, PrefixEncoder(self._peft_config(model)), self.tokens)
        train_virtual_tokens(model)

    def count(self, model: PreTrainedModel) -> int:
        from luthier.models.virtual_tokens import prefix_shape

        shape = prefix_shape(model.config)
        everything = 2 * shape.layers * shape.width
        if not self.projection:
            return self.tokens * everything
        inner = self.projection_size or shape.width
        return self.tokens * shape.width + (shape.width + 1) * inner + (inner + 1) * everything

    def _peft_config(self, model: PreTrainedModel) -> PrefixTuningConfig:
        from peft import PrefixTuningConfig

        from luthier.methods.modules.peft_files import task_type
        from luthier.methods.modules.prompts import fill_sizes
        from luthier.models.virtual_tokens import prefix_shape

        width = prefix_shape(model.config).width
        config = PrefixTuningConfig(
            task_type=task_type(model),
            num_virtual_tokens=self.tokens,
            prefix_projection=self.projection,
            encoder_hidden_size=self.projection_size or width,
        )
        fill_sizes(config, model, width)
        return config

    def save(self, model: PreTrainedModel, folder: Path, base: str) -> None:
        """Write PEFT's files, which hold keys and values, and beside them the network where there is one."""
        from luthier.methods.modules.prompts import save_virtual_tokens

        save_virtual_tokens(self, model, folder, base, self._peft_config(model))

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        from luthier.methods.modules.prompts import load_virtual_tokens

        load_virtual_tokens(self, model, folder)
