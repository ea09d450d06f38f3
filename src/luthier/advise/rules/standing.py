"""What each method is worth where nothing else is known: one record each, with what its paper measured."""

from __future__ import annotations

from luthier.advise.rules.base import Rule, always

_WHEN = ("always", "总是")


def _standing(kind: str, points: float, en: str, zh: str, source: str) -> Rule:
    return Rule(f"standing of {kind}", {kind: points}, always, _WHEN, (en, zh), source)


RULES = (
    _standing(
        "lora",
        10,
        "The usual choice: on par with full fine-tuning of GPT-3 with 10,000 times fewer trained parameters.",
        "通常的首选：在 GPT-3 上与全量微调相当，可训练参数少一万倍。",
        "Hu et al. 2021, arXiv:2106.09685",
    ),
    _standing(
        "lora_plus",
        9,
        "LoRA with a faster B: up to 2 times as fast and 1 to 2 % better, and one rate ratio more to get right.",
        "B 学得更快的 LoRA：最多快 2 倍、好 1–2 %，但多了一个学习率比值要调。",
        "Hayou et al. 2024, arXiv:2402.12354",
    ),
    _standing(
        "qlora",
        9,
        "LoRA on a base of 4.1 bits per weight: 65 B parameters were tuned on one card of 48 GB.",
        "基座每个权重只占约 4.1 位的 LoRA：65 B 模型在一张 48 GB 卡上完成微调。",
        "Dettmers et al. 2023, arXiv:2305.14314",
    ),
    _standing(
        "adalora",
        7,
        "Ranks dealt out by importance: 1.2 F1 above LoRA on SQuAD 2.0 with under 0.1 % trained, after some hundred steps.",
        "按重要性分配秩：SQuAD 2.0 上训练不到 0.1 % 的参数就比 LoRA 高 1.2 F1，但需要数百步。",
        "Zhang et al. 2023, arXiv:2303.10512",
    ),
    _standing(
        "full",
        7,
        "Every parameter learns, and each takes 16 bytes of weights, gradients and moments.",
        "所有参数都学习，每个参数要占 16 字节（权重、梯度与两个矩）。",
        "Rajbhandari et al. 2019, arXiv:1910.02054",
    ),
    _standing(
        "parallel",
        7,
        "The strongest of the adapters: with a small prefix beside it, it came level with full fine-tuning at 6.7 % trained.",
        "最强的适配器：与前馈层并联，再加一个小前缀，训练 6.7 % 的参数即可追平全量微调。",
        "He et al. 2022, arXiv:2110.04366",
    ),
    _standing(
        "pfeiffer",
        6,
        "One adapter a block in place of Houlsby's 2: half the parameters, about the same quality.",
        "每层 1 个适配器，而不是 Houlsby 的 2 个：参数减半，质量相近。",
        "Pfeiffer et al. 2020, arXiv:2005.00247",
    ),
    _standing(
        "adapter",
        5.5,
        "Within 0.4 % of full fine-tuning on GLUE at 3.6 % trained, and slower to answer.",
        "GLUE 上与全量微调相差不到 0.4 %，训练 3.6 % 的参数，但推理更慢。",
        "Houlsby et al. 2019, arXiv:1902.00751",
    ),
    _standing(
        "layers",
        5,
        "A fourth of the layers, the last ones, reached 90 % of full fine-tuning's quality.",
        "只微调最后四分之一的层，就达到全量微调 90 % 的质量。",
        "Lee, Tang, Lin 2019, arXiv:1911.03090",
    ),
    _standing(
        "ia3",
        5,
        "One factor for each key, value and unit, 0.01 % trained: made for a few dozen examples.",
        "为每个键、值和单元学一个系数，只训练 0.01 %：为几十条样本而设计。",
        "Liu et al. 2022, arXiv:2205.05638",
    ),
    _standing(
        "bitfit",
        5,
        "Biases alone, 0.09 % of BERT: competitive on small and middling data.",
        "只训练偏置，BERT 的 0.09 %：在中小规模数据上有竞争力。",
        "Ben Zaken et al. 2021, arXiv:2106.10199",
    ),
    _standing(
        "prefix",
        5,
        "Trained keys and values, 0.1 %: 2.9 BLEU above full fine-tuning with 50 to 500 rows.",
        "训练键和值，0.1 %：在 50–500 条数据时比全量微调高 2.9 BLEU。",
        "Li & Liang 2021, arXiv:2101.00190",
    ),
    _standing(
        "p_tuning_v2",
        4.5,
        "Deep prompts for understanding: level with full fine-tuning from 330 M to 10 B parameters at 0.1 to 3 %.",
        "用于理解任务的深层提示：330 M 到 10 B 的模型上以 0.1–3 % 的参数追平全量微调。",
        "Liu et al. 2021, arXiv:2110.07602",
    ),
    _standing(
        "hybrid",
        4,
        "Several methods at once: 1 to 4 % above the best of them alone, and more to tune.",
        "多种方法并用：比其中最好的单一方法高 1–4 %，但要调的更多。",
        "Mao et al. 2022, arXiv:2110.07577",
    ),
    _standing(
        "feature_extraction",
        4,
        "Frozen features and a head: 0.3 F1 behind fine-tuning BERT on CoNLL, each row computed once.",
        "冻结特征加分类头：CoNLL 上只比微调 BERT 低 0.3 F1，每行只算一次。",
        "Devlin et al. 2018, arXiv:1810.04805",
    ),
    _standing(
        "dense_head",
        4,
        "New layers on frozen features: 7 % better out of distribution than full fine-tuning, 2 % worse within it.",
        "在冻结特征上加新层：分布外比全量微调好 7 %，分布内差 2 %。",
        "Kumar et al. 2022, arXiv:2202.10054",
    ),
    _standing(
        "compacter",
        4,
        "Adapters as Kronecker products: 0.05 % trained, on par with full fine-tuning on GLUE.",
        "克罗内克积适配器：训练 0.05 %，GLUE 上与全量微调相当。",
        "Mahabadi et al. 2021, arXiv:2106.04647",
    ),
    _standing(
        "p_tuning",
        4,
        "A soft prompt written by a small network: 20 points more facts out of GPT on LAMA.",
        "由小网络写出的软提示：LAMA 上让 GPT 多答对 20 个百分点的事实。",
        "Liu et al. 2021, arXiv:2103.10385",
    ),
    _standing(
        "prompt",
        3.5,
        "Some embeddings before every input: level with full fine-tuning only from about 10 B parameters on.",
        "在输入前加几个可训练的嵌入：模型约 10 B 以上才能追平全量微调。",
        "Lester et al. 2021, arXiv:2104.08691",
    ),
    _standing(
        "moe",
        4,
        "The experts of a mixture, or some of them: up to 90 % less to store than full fine-tuning.",
        "只训练混合专家模型的（部分）专家：存储只有全量微调的约十分之一（节省 90 %）。",
        "Wang et al. 2024, arXiv:2407.01906",
    ),
    _standing(
        "hadamard",
        3,
        "A scale and a shift after attention: 0.033 % trained, on par on GLUE.",
        "注意力之后的逐元素缩放与平移：训练 0.033 %，GLUE 上相当。",
        "Chen et al. 2023, arXiv:2407.11033",
    ),
    _standing(
        "ulmfit",
        3,
        "A classifier in three stages: 100 labels did what training from scratch needed 100 times more for.",
        "三阶段训练分类器：100 个标签达到了从头训练 100 倍数据的效果。",
        "Howard & Ruder 2018, arXiv:1801.06146",
    ),
)
