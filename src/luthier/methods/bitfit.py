"""BitFit: train only the biases (Ben Zaken et al. 2021, arXiv:2106.10199)."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.core.component import StageFacts
from luthier.core.errors import ModelError, Problem
from luthier.methods.base import Method, head_parameters, sizes, train_only
from luthier.models.layers import layer_groups
from luthier.models.targets import linear_roles, match_parameters

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_BIAS_KEYS = ("attention_bias", "mlp_bias", "use_bias", "bias")
"""How the configs of model families say that their matrices have biases."""
# Families that have no bias anywhere, as their configs say; others are asked when the model is built.
_BIAS_FREE = {"llama", "mistral", "mixtral", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "olmo2", "cohere"}


class BitFit(Method):
    """Train only the biases."""

    kind: Literal["bitfit"] = "bitfit"

    norms: bool = False
    """Also train the weights of the normalisations. On families without biases this is one thing to train."""
    add_biases: bool = False
    """Give every matrix that has no bias one of zeros, and train it: BitFit on Llama, Mistral or Qwen3."""
    exclude: tuple[str, ...] = ()
    """Leave out parameters whose full names match, e.g. "model.layers.3": as a part of hybrid, what another part
    trains."""

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
        "Very little memory or storage, small data, models that have biases (GPT-2, GPT-NeoX, Qwen2, BERT); others can be "
        "given some with add_biases."
    )
    when_not: ClassVar[str] = "New knowledge, large shifts of domain: a shift of outputs cannot hold much."
    zh: ClassVar[dict[str, str]] = {
        "norms": "同时训练归一化权重。对没有偏置的模型，这是可训练的内容之一。",
        "add_biases": "给没有偏置的每个矩阵添加零初始化的偏置并训练：使 BitFit 可用于 Llama、Mistral、Qwen3。",
        "exclude": '排除全名匹配的参数，例如 "model.layers.3"；作为 hybrid 的一部分时，避开其他部分训练的内容。',
        "title": "BitFit（仅训练偏置）",
        "summary": "只训练偏置向量。",
        "principle": "偏置平移一层的输出而不改变其方向。对分类和轻微的风格变化，仅靠平移就足够，参数量不到千分之一。",
        "moves": "偏置向量（可选：归一化权重）",
        "when": "内存或存储极少、数据少、模型本身有偏置（GPT-2、GPT-NeoX、Qwen2、BERT）；其他模型可用 add_biases 添加。",
        "when_not": "学习新知识、领域变化大时：仅靠平移输出容纳不了多少内容。",
    }
    default_learning_rate: ClassVar[float] = 1e-3
    in_place: ClassVar[bool] = True
    example: ClassVar[dict[str, object]] = {"norms": True}

    def problems(self, facts: StageFacts) -> list[Problem]:
        config = facts.model_config
        has_bias = any(config.get(key) for key in _BIAS_KEYS)
        if config.get("model_type") in _BIAS_FREE and not has_bias and not self.norms and not self.add_biases:
            return [_no_biases(str(config["model_type"]))]
        return []

    def apply(self, model: PreTrainedModel) -> None:
        import torch
        from torch import nn

        for module in self._bare(model).values():
            zeros = torch.zeros(module.out_features, device=module.weight.device)
            module.bias = nn.Parameter(zeros)
        train_only(model, self._names(model))

    def count(self, model: PreTrainedModel) -> int:
        size, added = sizes(model), self._bare(model)
        names = self._names(model, will_add=bool(added))
        return sum(size[n] for n in set(names)) + sum(m.out_features for m in added.values())

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:
        """Leave the tensors where they are; of added biases the config has to say that they are there."""
        merged = super().merge(model)
        if self.add_biases:
            for key in _bias_keys(model):
                setattr(model.config, key, True)
        return merged

    def why_unmergeable(self, model: PreTrainedModel) -> str:
        missing = _without_place(model) if self.add_biases else []
        if not missing:
            return ""
        family = model.config.model_type
        return f"a {family} folder has no place for {missing[0]} and {len(missing) - 1} other biases"

    def _bare(self, model: PreTrainedModel) -> dict[str, nn.Linear]:
        """Return the matrices that get a bias.

        Raises:
            ModelError: biases were asked for, and every matrix has one.
        """
        if not self.add_biases:
            return {}
        modules, head = dict(model.named_modules()), {n.rpartition(".")[0] for n in head_parameters(model)}
        linear = {n: modules[n] for n in linear_roles(model) if n not in head}
        bare = {n: m for n, m in linear.items() if m.bias is None and not self._leaves_out(f"{n}.bias")}
        if not bare:
            what = "add_biases has no effect: every matrix of this model has a bias already."
            raise ModelError(Problem(what, "method.add_biases", "remove it"))
        return bare  # type: ignore[return-value]  # Conv1D always has a bias

    def _leaves_out(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) or name.startswith(f"{pattern}.") for pattern in self.exclude)

    def _names(self, model: PreTrainedModel, will_add: bool = False) -> list[str]:
        match_parameters(model, self.exclude, "method.exclude")  # a pattern that matches nothing is a mistake
        head = set(head_parameters(model))
        names = [n for n, _ in model.named_parameters() if n.endswith("bias") and n not in head]
        if not names and not self.norms and not will_add:
            raise ModelError(_no_biases(str(model.config.model_type)))
        if self.norms:
            names += layer_groups(model).norms
        return [n for n in names if not self._leaves_out(n)]


def _bias_keys(model: PreTrainedModel) -> list[str]:
    return [key for key in _BIAS_KEYS if key in model.config.to_dict()]


def _without_place(model: PreTrainedModel) -> list[str]:
    """Return the biases that a model made from this config, told of all the biases it knows, does not have."""
    import copy

    import torch

    config = copy.deepcopy(model.config)
    for key in _bias_keys(model):
        setattr(config, key, True)
    with torch.device("meta"):
        expressed = {n for n, _ in type(model)(config).named_parameters()}
    names = [n.replace(".base_layer.", ".") for n, _ in model.named_parameters()]  # beside an adapter
    return sorted(n for n in names if n.endswith(".bias") and n not in expressed)


def _no_biases(family: str) -> Problem:
    return Problem(
        f"Models of the family {family} have no biases, so BitFit has nothing to train.",
        where="method",
        remedy="add biases with `method: {kind: bitfit, add_biases: true}`, train the normalisation weights instead with "
        "`method: {kind: bitfit, norms: true}`, or use lora",
    )
