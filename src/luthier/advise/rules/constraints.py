"""Rules about bounds: who may see the data, where it runs, how long it may take, how many models are to be served."""

from __future__ import annotations

from luthier.advise.rules.base import EVERY, PLANNER, Rule
from luthier.advise.situation import SOME

SEVERAL = 5
"""Variants from which a whole model for each is no longer thought of."""
HUNDREDS = 500

RULES = (
    Rule(
        "the data stay where they are",
        {"low rank": 3, "tiny": 2, "qlora": 3, "whole model": -5, "layers": -2, "moe": -2},
        lambda s, _: s.wishes.private and not s.wishes.on_device,
        ("privacy", "隐私"),
        (
            "What is learnt in private rows travels as an update: {lora_file} for LoRA in each round, {full_file} for the "
            "whole model.",
            "私有数据上学到的以更新的形式传输：每轮 LoRA {lora_file}，整模型 {full_file}。",
        ),
        "McMahan et al. 2016, arXiv:1602.05629; Ye et al. 2024, arXiv:2402.06954; luthier plan",
    ),
    Rule(
        "on the users' devices",
        {"low rank": 2, "tiny": 3, "whole model": -7, "layers": -2, "moe": -4, "hybrid": -2},
        lambda s, _: s.wishes.on_device,
        ("training on devices", "端侧训练"),
        (
            "A device keeps one base and small updates: {lora_file} for LoRA, {ia3_file} for IA³, against {full_file}; "
            "phones hold models of 0.1 to 3 B.",
            "设备上只存一个基座加小更新：LoRA {lora_file}，IA³ {ia3_file}，而整模型要 {full_file}；手机适合 0.1–3 B 的模型。",
        ),
        "Liu et al. 2024, MobileLLM, arXiv:2402.14905; luthier plan",
    ),
    Rule(
        "many variants to serve",
        {
            "low rank": 3,
            "ia3": 4,
            "hadamard": 1,
            "deep prompts": 1,
            "soft prompts": 1,
            "adapters": -1,
            "whole model": -10,
            "layers": -8,
            "moe": -3,
        },
        lambda s, _: s.wishes.variants >= SEVERAL and not s.classifies,
        ("5 variants or more to serve", "要部署 5 个以上的变体"),
        (
            "{variants} variants are {full_total} as whole models, {lora_total} as LoRA and {ia3_total} as IA³; adapters "
            "are swapped on one base while it serves.",
            "{variants} 个变体：整模型共 {full_total}，LoRA 共 {lora_total}，IA³ 共 {ia3_total}；适配器可在同一基座上热切换。",
        ),
        "Sheng et al. 2023, S-LoRA, arXiv:2311.03285; luthier plan",
    ),
    Rule(
        "many classifiers to serve",
        {"feature_extraction": 5, "dense_head": 3, "low rank": 2, "tiny": 2, "whole model": -8, "layers": -8},
        lambda s, _: s.wishes.variants >= SEVERAL and s.classifies,
        ("5 classifiers or more to serve", "要部署 5 个以上的分类器"),
        (
            "{variants} classifiers on one frozen model share one pass of it and keep a head each; as whole models they "
            "are {full_total}.",
            "{variants} 个分类器共用冻结模型的一次前向，各自只有一个头；若是整模型则共 {full_total}。",
        ),
        "Houlsby et al. 2019, arXiv:1902.00751; luthier plan",
    ),
    Rule(
        "hundreds of small variants",
        {"ia3": 4, "hadamard": 1, "prompt": 1},
        lambda s, _: s.wishes.variants >= HUNDREDS and s.rows <= SOME and not s.classifies,
        ("500 variants or more, each of few rows", "500 个以上、每个数据不多的变体"),
        (
            "{variants} variants with {rows} rows each: IA³ keeps {ia3_file} for one, and one batch may mix them all.",
            "{variants} 个变体、每个 {rows} 条数据：IA³ 每个只存 {ia3_file}，同一批次可混用。",
        ),
        "Liu et al. 2022, arXiv:2205.05638; luthier plan",
    ),
    Rule(
        "it cannot be merged",
        {"adapters": -2, "compacter": -2, "deep prompts": -1, "soft prompts": -1},
        lambda s, _: not s.classifies,
        ("text is written, and speed counts", "要生成文本，速度重要"),
        (
            "It stays beside the model for good: adapters made single answers 20 to 30 % slower, and servers swap LoRA only.",
            "它无法并入模型：适配器使单条回答慢 20–30 %，且推理服务只会热切换 LoRA。",
        ),
        "Hu et al. 2021, arXiv:2106.09685, table 1",
    ),
    Rule(
        "too slow for the deadline",
        dict.fromkeys(EVERY, -5.0),
        lambda s, method: s.wishes.hours is not None and s.needs[method].hours > s.wishes.hours,
        ("it would take longer than the deadline", "超出期限"),
        (
            "All rows would take about {time} of the {deadline} there are; the recipe stops after what fits.",
            "跑完全部数据约需 {time}，而期限是 {deadline}；配方只训练放得下的步数。",
        ),
        PLANNER,
    ),
)
