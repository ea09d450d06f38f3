"""Rules about the model itself: what its architecture allows, and what it is made for."""

from __future__ import annotations

from luthier.advise.rules.base import EVERY, Rule, always
from luthier.advise.situation import Situation
from luthier.models.room import without_prefixes

_LARGE = 1_000_000_000
_VERY_LARGE = 10_000_000_000
_SMALL_ENOUGH = 1_000_000_000


def _is_small(s: Situation, _: str) -> bool:
    return s.model.parameters < _LARGE


RULES = (
    Rule(
        "encoders do not write",
        EVERY,
        lambda s, _: s.model.is_encoder and not s.classifies,
        ("the model is an encoder, and text is to be written", "模型是编码器，却要生成文本"),
        (
            "The model is an encoder ({parameters} parameters, {family}): it gives classes or numbers and writes no text.",
            "该模型是编码器（{parameters} 参数，{family}）：只能给出类别或数值，不会写文本。",
        ),
        "Devlin et al. 2018, arXiv:1810.04805",
        forbids=True,
    ),
    Rule(
        "no biases to train",
        {"bitfit": -10},
        lambda s, _: not s.model.has_biases,
        ("the family has no biases (Llama, Mistral, Qwen3, Gemma)", "模型没有偏置（Llama、Mistral、Qwen3、Gemma）"),
        (
            "The family {family} has 0 biases; BitFit trains nothing else, unless add_biases gives it some.",
            "{family} 系列的偏置数为 0；BitFit 只训练偏置，除非用 add_biases 添加。",
        ),
        "Ben Zaken et al. 2021, arXiv:2106.10199",
        forbids=True,
    ),
    Rule(
        "keys and values cannot be added",
        {"deep prompts": -10},
        lambda s, _: without_prefixes(s.model.config) is not None or (s.model.context or 4096) < 64,
        ("an architecture, or a context, that has no place for a prefix", "架构或上下文容不下前缀"),
        (
            "This architecture ({family}, context {context}) takes no trained keys and values.",
            "该架构（{family}，上下文 {context}）不能加入可训练的键和值。",
        ),
        "Li & Liang 2021, arXiv:2101.00190",
        forbids=True,
    ),
    Rule(
        "a mixture of experts",
        {"moe": 10, "lora": -1, "lora_plus": -1, "adalora": -1},
        lambda s, _: s.model.is_mixture,
        ("the model is a mixture of experts", "模型是混合专家"),
        (
            "{parameters} parameters, of which a token passes {active}: what is learnt belongs into the experts, which "
            "LoRA on linear layers alone does not reach.",
            "共 {parameters} 参数，每个词元只经过 {active}：要学的应放进专家里，只对线性层做 LoRA 触及不到它们。",
        ),
        "Wang et al. 2024, arXiv:2407.01906",
    ),
    Rule(
        "no mixture of experts",
        {"moe": -8},
        lambda s, _: not s.model.is_mixture,
        ("the model is dense", "模型是稠密的"),
        (
            "The model is dense: an upcycled one of 4 experts would hold about {upcycled} and need many tokens to grow apart.",
            "模型是稠密的：改造成 4 个专家要占约 {upcycled} 参数，且需要大量词元才能分化。",
        ),
        "Komatsuzaki et al. 2022, arXiv:2212.05055",
    ),
    Rule(
        "soft prompts want large models",
        {"soft prompts": -4},
        _is_small,
        ("the model has under 1 B parameters", "模型不足 10 亿参数"),
        (
            "At {parameters} parameters soft prompts at the input stay far behind; they catch up near 10 B.",
            "在 {parameters} 参数的规模上，输入端软提示差距很大；约 10 B 才追得上。",
        ),
        "Lester et al. 2021, arXiv:2104.08691",
    ),
    Rule(
        "soft prompts on a very large model",
        {"prompt": 4, "p_tuning": 1},
        lambda s, _: s.model.parameters >= _VERY_LARGE,
        ("the model has 10 B parameters or more", "模型有 100 亿参数以上"),
        (
            "At {parameters} parameters a soft prompt reaches full fine-tuning on SuperGLUE.",
            "在 {parameters} 参数的规模上，软提示在 SuperGLUE 上能追平全量微调。",
        ),
        "Lester et al. 2021, arXiv:2104.08691",
    ),
    Rule(
        "an encoder that classifies",
        {"full": 3, "adapters": 1, "hadamard": 1, "ulmfit": -3},
        lambda s, _: s.model.is_encoder and s.classifies and s.model.parameters < _SMALL_ENOUGH,
        ("an encoder under 1 B parameters classifies", "不足 10 亿参数的编码器做分类"),
        (
            "{parameters} parameters are small enough to train whole, as BERT's own recipe does: {full_need} with its moments.",
            "{parameters} 参数不大，可以像 BERT 原配方那样整体训练：连同优化器共需 {full_need}。",
        ),
        "Devlin et al. 2018, arXiv:1810.04805",
    ),
    Rule(
        "heads give classes only",
        {"heads": -10},
        lambda s, _: not s.classifies,
        ("text is to be written", "要生成文本"),
        (
            "A new head on frozen features gives classes; here 0 rows are labelled, and text is to be written.",
            "在冻结特征上加的新头只能给出类别；这里带标签的数据为 0 行，且要生成文本。",
        ),
        "Devlin et al. 2018, arXiv:1810.04805",
        forbids=True,
    ),
    Rule(
        "ulmfit is for classifiers",
        {"ulmfit": -8},
        lambda s, _: not s.classifies,
        ("text is to be written", "要生成文本"),
        (
            "Its 3 stages end in a classifier, and no labels are given.",
            "它的 3 个阶段以分类器结束，而这里没有标签。",
        ),
        "Howard & Ruder 2018, arXiv:1801.06146",
    ),
    Rule(
        "one method does",
        {"hybrid": -2},
        always,
        ("always, unless layers differ in what they must learn", "一般情况（除非各层要学的差别很大）"),
        (
            "2 methods are twice as much to tune, and PEFT cannot open the result.",
            "2 种方法要调的翻倍，而且 PEFT 打不开结果。",
        ),
        "Mao et al. 2022, arXiv:2110.07577",
    ),
)
