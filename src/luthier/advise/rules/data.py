"""Rules about the rows: how many, of what kind, how good."""

from __future__ import annotations

from luthier.advise.rules.base import Rule
from luthier.advise.rules.memory import COMFORTABLE
from luthier.advise.situation import FEW, MANY, SOME, Situation

FEW_LABELS = 200
SOME_LABELS = 2_000
MANY_LABELS = 20_000
LARGE_CORPUS = 1_000_000
"""Tokens from which raw text is more than a low rank holds comfortably."""
REPEATS = 0.1


def _writes(s: Situation) -> bool:
    """Return whether answers are copied: what the number of rows says of choosing between answers is another matter."""
    return s.main is not None and s.main.form == "conversation" and not s.model.is_encoder


def _from_text(s: Situation) -> bool:
    return s.main is not None and s.main.form == "text"


def _compares(s: Situation) -> bool:
    return s.main is not None and s.main.form in ("preference", "rated", "prompt")


RULES = (
    Rule(
        "few rows",
        {
            "whole model": -8,
            "low rank": -2,
            "adalora": -4,
            "layers": -3,
            "parallel": -2,
            "moe": -5,
            "prefix": 9,
            "p_tuning_v2": 7,
            "soft prompts": 7,
            "ia3": 5,
            "bitfit": 3,
        },
        lambda s, _: _writes(s) and s.rows <= FEW,
        ("at most 100 rows of answers", "不超过 100 条问答"),
        (
            "{rows} rows are few-shot: what trains 0.1 % of the model learns from 50 to 500 rows, what trains more overfits.",
            "{rows} 条属于少样本：只训练 0.1 % 的方法从 50–500 条就能学会，训练更多则会过拟合。",
        ),
        "Li & Liang 2021, arXiv:2101.00190",
    ),
    Rule(
        "some rows",
        {"whole model": -6, "low rank": 1, "adalora": -2, "layers": -1, "ia3": 2, "prefix": 2, "bitfit": 1},
        lambda s, _: _writes(s) and FEW < s.rows <= SOME,
        ("100 to 1,000 rows of answers", "100 到 1,000 条问答"),
        (
            "{rows} good rows are enough for form and style (LIMA: 1,000), and too few to move every parameter safely.",
            "{rows} 条好数据足以学会形式和风格（LIMA：1,000 条），但不足以安全地改动全部参数。",
        ),
        "Zhou et al. 2023, arXiv:2305.11206",
    ),
    Rule(
        "thousands of rows",
        {"low rank": 2, "full": -1, "soft prompts": -2, "deep prompts": -1, "tiny": -1},
        lambda s, _: _writes(s) and SOME < s.rows <= MANY,
        ("1,000 to 100,000 rows of answers", "1,000 到 100,000 条问答"),
        (
            "{rows} rows lie within what a low rank holds: LoRA on all layers then learns as full fine-tuning does.",
            "{rows} 条在低秩更新的容量之内：对所有层做 LoRA 的效果与全量微调相同。",
        ),
        "Schulman et al. 2025, LoRA Without Regret, thinkingmachines.ai/blog/lora",
    ),
    Rule(
        "a hundred thousand rows and room",
        {"full": 8, "low rank": -1, "soft prompts": -5, "deep prompts": -4, "tiny": -4, "adapters": -1},
        lambda s, _: _writes(s) and s.rows > MANY and s.fits_sharded("full") and s.use("full") <= COMFORTABLE,
        (
            "over 100,000 good rows of answers, and memory for full fine-tuning",
            "超过 100,000 条好数据，且内存足够全量微调",
        ),
        (
            "{rows} good rows and {full_need} of memory: with some 100,000 pairs full fine-tuning pulls ahead of LoRA.",
            "{rows} 条好数据，内存也够（{full_need}）：约 10 万对以上时全量微调超过 LoRA。",
        ),
        "Biderman et al. 2024, arXiv:2405.09673",
    ),
    Rule(
        "a hundred thousand rows in little memory",
        {"low rank": 2, "soft prompts": -5, "deep prompts": -4, "tiny": -4},
        lambda s, _: _writes(s) and s.rows > MANY and not (s.fits_sharded("full") and s.use("full") <= COMFORTABLE),
        (
            "over 100,000 good rows of answers, and no memory for full fine-tuning",
            "超过 100,000 条好数据，但内存不够全量微调",
        ),
        (
            "{rows} rows would suit full fine-tuning, which needs {full_need}; a high rank (64) comes nearest.",
            "{rows} 条本适合全量微调，但那需要 {full_need}；高秩（64）最接近。",
        ),
        "Biderman et al. 2024, arXiv:2405.09673",
    ),
    Rule(
        "many rows repeat others",
        {"whole model": -2, "layers": -1},
        lambda s, _: s.main is not None and s.main.duplicates > REPEATS,
        ("over 10 % of the rows repeat others", "超过 10 % 的数据是重复的"),
        (
            "{duplicates} of the rows repeat others; what is repeated is learnt by heart 10 times as often. Quality goes "
            "before quantity: luthier doctor --fix.",
            "{duplicates} 的数据是重复的；重复的内容被背下来的概率高 10 倍。质量先于数量：luthier doctor --fix。",
        ),
        "Lee et al. 2021, arXiv:2107.06499",
    ),
    Rule(
        "a corpus to learn",
        {"full": 5, "layers": 2, "soft prompts": -6, "deep prompts": -5, "tiny": -4},
        lambda s, _: _from_text(s) and s.corpus_tokens >= LARGE_CORPUS,
        ("raw text of a million tokens or more", "一百万词元以上的纯文本"),
        (
            "About {tokens} tokens of raw text: continued pre-training changes weights at ranks 10 to 100 times LoRA's.",
            "约 {tokens} 词元的纯文本：继续预训练改变的秩是 LoRA 的 10–100 倍。",
        ),
        "Biderman et al. 2024, arXiv:2405.09673",
    ),
    Rule(
        "a small corpus",
        {"whole model": -2, "low rank": 1, "soft prompts": -6, "deep prompts": -5, "tiny": -3},
        lambda s, _: _from_text(s) and s.corpus_tokens < LARGE_CORPUS,
        ("raw text of less than a million tokens", "不足一百万词元的纯文本"),
        (
            "About {tokens} tokens of raw text: enough to adapt to a domain, and little enough for a low rank to hold.",
            "约 {tokens} 词元的纯文本：足以适应领域，低秩也装得下。",
        ),
        "Gururangan et al. 2020, arXiv:2004.10964",
    ),
    Rule(
        "few labels",
        {
            "whole model": -8,
            "low rank": -2,
            "adalora": -4,
            "parallel": -2,
            "layers": -3,
            "moe": -8,
            "feature_extraction": 9,
            "dense_head": 6,
            "bitfit": 6,
            "ia3": 3,
            "hadamard": 3,
            "p_tuning_v2": 3,
        },
        lambda s, _: s.classifies and s.rows <= FEW_LABELS,
        ("at most 200 labelled rows", "不超过 200 条带标签的数据"),
        (
            "{rows} labelled rows: a head on frozen features cannot forget, and full fine-tuning distorts them (7 % worse "
            "out of distribution).",
            "{rows} 条带标签的数据：冻结特征上的分类头不会遗忘，而全量微调会扭曲特征（分布外差 7 %）。",
        ),
        "Kumar et al. 2022, arXiv:2202.10054",
    ),
    Rule(
        "some labels",
        {"full": -3, "bitfit": 6, "dense_head": 4, "feature_extraction": 3, "hadamard": 3, "low rank": 1, "moe": -4},
        lambda s, _: s.classifies and FEW_LABELS < s.rows <= SOME_LABELS,
        ("200 to 2,000 labelled rows", "200 到 2,000 条带标签的数据"),
        (
            "{rows} labelled rows: with small and middling data BitFit (0.09 % trained) competes with full fine-tuning.",
            "{rows} 条带标签的数据：在中小规模数据上，BitFit（训练 0.09 %）可与全量微调竞争。",
        ),
        "Ben Zaken et al. 2021, arXiv:2106.10199",
    ),
    Rule(
        "thousands of labels",
        {"low rank": 2, "adapters": 2, "full": 1, "heads": -1},
        lambda s, _: s.classifies and SOME_LABELS < s.rows <= MANY_LABELS,
        ("2,000 to 20,000 labelled rows", "2,000 到 20,000 条带标签的数据"),
        (
            "{rows} labelled rows: frozen features are left behind, and adapters come within 0.4 % of full fine-tuning.",
            "{rows} 条带标签的数据：冻结特征已落后，适配器与全量微调相差不到 0.4 %。",
        ),
        "Houlsby et al. 2019, arXiv:1902.00751",
    ),
    Rule(
        "many labels",
        {"full": 4, "low rank": 2, "heads": -4, "tiny": -3, "soft prompts": -4, "deep prompts": -2},
        lambda s, _: s.classifies and s.rows > MANY_LABELS,
        ("over 20,000 labelled rows", "超过 20,000 条带标签的数据"),
        (
            "{rows} labelled rows: enough for every parameter to learn; a tenth of a percent of them then falls behind.",
            "{rows} 条带标签的数据：足够让所有参数学习；此时只训练千分之一就会落后。",
        ),
        "Ben Zaken et al. 2021, arXiv:2106.10199",
    ),
    Rule(
        "labels and texts without",
        {"ulmfit": 14},
        lambda s, _: s.classifies and bool(s.of_form("text")) and not s.model.is_encoder and s.rows <= SOME_LABELS,
        ("few labels, and unlabelled text of the same kind", "标签少，另有同类的无标签文本"),
        (
            "{rows} labels and about {tokens} tokens of text without: first the language of the texts, then the classes "
            "(100 labels did the work of 10,000).",
            "{rows} 个标签，另有约 {tokens} 词元无标签文本：先学文本的语言，再学分类（100 个标签抵 10,000 个）。",
        ),
        "Howard & Ruder 2018, arXiv:1801.06146",
    ),
    Rule(
        "answers are compared",
        {"low rank": 2, "full": -2, "soft prompts": -3, "deep prompts": -2, "tiny": -1},
        lambda s, _: _compares(s),
        ("pairs, ratings or rewards to learn from", "从成对回答、评分或奖励中学习"),
        (
            "Learning from {rows} judgements wants a model near its start, and an adapter leaves the start untouched: "
            "without it the model is its own reference, where full fine-tuning would keep a second one of {weights}.",
            "从 {rows} 条评判中学习要贴近起点，而适配器不动起点：去掉它，模型就是参考模型；全量微调则要另存一份 {weights} 的参考。",
        ),
        "Rafailov et al. 2023, arXiv:2305.18290; luthier plan",
    ),
    Rule(
        "answers are checked",
        {"low rank": 2},
        lambda s, _: s.main is not None and (s.main.form == "prompt" or s.wants("verifiable")),
        ("rewards that a program can check", "奖励可由程序验证"),
        (
            "A reward says about 1 bit for each answer: LoRA of rank 1 learnt as well as full fine-tuning.",
            "每个回答的奖励约只含 1 比特信息：秩为 1 的 LoRA 就与全量微调学得一样好。",
        ),
        "Schulman et al. 2025, LoRA Without Regret, thinkingmachines.ai/blog/lora",
    ),
)
