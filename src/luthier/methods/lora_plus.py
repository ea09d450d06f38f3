"""LoRA+: LoRA whose B learns faster than its A (Hayou et al. 2024, arXiv:2402.12354)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.methods.base import trainable
from luthier.methods.lora import Lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoraPlus(Lora):
    """LoRA with a higher learning rate for B."""

    kind: Literal["lora_plus"] = "lora_plus"  # type: ignore[assignment]  # the same method under another optimizer

    ratio: float = Field(default=16.0, ge=1)
    """B's learning rate as a multiple of A's. 16 is the paper's choice; lower it when the loss is uneven, 1 is plain LoRA."""
    embedding_ratio: float = Field(default=1.0, gt=0)
    """Learning rate of the rows of new_tokens as a multiple of A's."""

    title: ClassVar[str] = "LoRA+"
    summary: ClassVar[str] = "LoRA whose B learns faster than its A."
    principle: ClassVar[str] = (
        "A reads the wide input, B writes the wide output and starts at zero. With one rate for both, B moves too little "
        "in wide models: an analysis for growing width shows that B's rate has to be higher by a constant factor for both "
        "to learn features. Everything else, the saved file included, is LoRA."
    )
    equation: ClassVar[str] = "A ← A − η · AdamW(∇A L),  B ← B − ratio · η · AdamW(∇B L)"
    paper: ClassVar[str] = "Hayou et al. 2024, LoRA+, arXiv:2402.12354"
    when: ClassVar[str] = (
        "As LoRA, when the loss falls slowly at first or the model is wide: up to twice as fast at no cost."
    )
    when_not: ClassVar[str] = "A rate well tuned for LoRA that must be kept: with LoRA+ halve it first."
    zh: ClassVar[dict[str, str]] = {
        **Lora.zh,
        "title": "LoRA+",
        "summary": "B 比 A 学得更快的 LoRA。",
        "principle": "A 读入宽的输入，B 写出宽的输出且从零开始。两者用同一学习率时，宽模型中的 B 移动得太少：对宽度趋于无穷的分析表明，B 的学习率须高一个常数倍，两者才都能学到特征。其余一切（包括保存的文件）与 LoRA 相同。",
        "when": "与 LoRA 相同；起步时损失下降慢或模型较宽时，速度最多可快一倍，且没有额外开销。",
        "when_not": "必须沿用为 LoRA 调好的学习率时：使用 LoRA+ 应先把它减半。",
        "ratio": "B 的学习率是 A 的多少倍。论文取 16；损失起伏时调低，取 1 即普通 LoRA。",
        "embedding_ratio": "new_tokens 各行的学习率是 A 的多少倍。",
    }
    default_learning_rate: ClassVar[float] = 1e-4

    def param_groups(self, model: PreTrainedModel, weight_decay: float) -> list[dict[str, object]]:
        """Return a group each for A, B, embedding rows and vectors, as PEFT's optimizer for LoRA+ divides them."""
        scales = {"a": 1.0, "b": self.ratio, "rows": self.embedding_ratio, "vectors": self.ratio}
        groups: dict[str, list[object]] = {part: [] for part in scales}
        for name, parameter in trainable(model).items():
            is_vector = parameter.ndim < 2
            part = "b" if ".lora_B." in name else "rows" if ".trainable_tokens_delta." in name else "a"
            groups["vectors" if is_vector else part].append(parameter)
        decay = {part: 0.0 if part == "vectors" else weight_decay for part in scales}
        return [
            {"params": params, "weight_decay": decay[part], "lr_scale": scales[part]}
            for part, params in groups.items()
            if params
        ]
