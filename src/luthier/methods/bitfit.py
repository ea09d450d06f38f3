"""BitFit: train only the biases (Ben Zaken et al. 2021, arXiv:2106.10199)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.core.component import StageFacts
from luthier.core.errors import ModelError, Problem
from luthier.methods.base import Method, sizes, train_only
from luthier.models.layers import layer_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Families that have no bias anywhere, as their configs say; others are asked when the model is built.
_BIAS_FREE = {"llama", "mistral", "mixtral", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "olmo2", "cohere"}


class BitFit(Method):
    """Train only the biases."""

    kind: Literal["bitfit"] = "bitfit"

    norms: bool = False
    """Also train the weights of the normalisations. On families without biases this is what there is to train."""

    title: ClassVar[str] = "BitFit"
    summary: ClassVar[str] = "Train only the bias vectors."
    principle: ClassVar[str] = (
        "A bias shifts what a layer says without turning it. For classification and light changes of style the shifts "
        "alone go a long way, at less than a thousandth of the parameters."
    )
    equation: ClassVar[str] = "y = W x + b,  only b is trained"
    paper: ClassVar[str] = "Ben Zaken et al. 2021, BitFit, arXiv:2106.10199"
    moves: ClassVar[str] = "bias vectors (and, if asked, normalisation weights)"
    typical_share: ClassVar[str] = "0.03 to 0.1 %"
    when: ClassVar[str] = (
        "Very little memory or storage, small data, models that have biases (GPT-2, GPT-NeoX, Qwen2, BERT)."
    )
    when_not: ClassVar[str] = "Bias-free families (Llama, Mistral, Qwen3), new knowledge, large shifts of domain."
    zh: ClassVar[dict[str, str]] = {
        "title": "BitFit（仅训练偏置）",
        "summary": "只训练偏置向量。",
        "principle": "偏置平移一层的输出而不改变其方向。对分类和轻微的风格变化，仅靠平移就足够，参数量不到千分之一。",
        "moves": "偏置向量（可选：归一化权重）",
        "when": "内存或存储极少、数据少、模型本身有偏置（GPT-2、GPT-NeoX、Qwen2、BERT）。",
        "when_not": "无偏置的模型（Llama、Mistral、Qwen3）、学习新知识、领域变化大时。",
    }
    default_learning_rate: ClassVar[float] = 1e-3
    example: ClassVar[dict[str, object]] = {"norms": True}

    def problems(self, facts: StageFacts) -> list[Problem]:
        config = facts.model_config
        has_bias = any(config.get(key) for key in ("attention_bias", "mlp_bias", "use_bias", "bias"))
        if config.get("model_type") in _BIAS_FREE and not has_bias and not self.norms:
            return [_no_biases(str(config["model_type"]))]
        return []

    def apply(self, model: PreTrainedModel) -> None:
        train_only(model, self._names(model))

    def count(self, model: PreTrainedModel) -> int:
        size = sizes(model)
        return sum(size[n] for n in set(self._names(model)))

    def _names(self, model: PreTrainedModel) -> list[str]:
        names = [n for n, _ in model.named_parameters() if n.endswith("bias")]
        if not names and not self.norms:
            raise ModelError(_no_biases(str(model.config.model_type)))
        if self.norms:
            names += layer_groups(model).norms
        return names


def _no_biases(family: str) -> Problem:
    return Problem(
        f"Models of the family {family} have no biases, so BitFit has nothing to train.",
        where="method",
        remedy="train the normalisation weights instead with `method: {kind: bitfit, norms: true}`, or use lora",
    )
