"""Rules about what it is for."""

from __future__ import annotations

from luthier.advise.rules.base import Rule

RULES = (
    Rule(
        "a quick prototype",
        {
            "prompt": 13,
            "p_tuning": 12,
            "prefix": 10,
            "p_tuning_v2": 9,
            "low rank": -2,
            "whole model": -6,
            "adapters": -2,
        },
        lambda s, _: s.wants("prototype") and not s.classifies,
        ("a quick prototype", "快速原型"),
        (
            "A prototype asks whether it can work at all: a soft prompt trains {prompt_trained} parameters, LoRA "
            "{lora_trained}, and leaves the model untouched.",
            "原型只问行不行：软提示训练 {prompt_trained} 个参数（LoRA 是 {lora_trained} 个），模型原样不动。",
        ),
        "Lester et al. 2021, arXiv:2104.08691; luthier plan",
    ),
    Rule(
        "a quick classifier",
        {
            "feature_extraction": 10,
            "dense_head": 7,
            "p_tuning_v2": 4,
            "low rank": -2,
            "whole model": -5,
            "adapters": -2,
        },
        lambda s, _: s.wants("prototype") and s.classifies,
        ("a quick prototype of a classifier", "分类器的快速原型"),
        (
            "Frozen features are computed once, in 1 forward pass of {rows} rows, and a head is trained on them in seconds.",
            "冻结特征只需对 {rows} 行做 1 次前向，分类头几秒就能训练好。",
        ),
        "Peters et al. 2019, arXiv:1903.05987",
    ),
    Rule(
        "production",
        {"low rank": 4, "whole model": -3, "soft prompts": -4, "deep prompts": -3, "adapters": -2, "tiny": -1},
        lambda s, _: s.wants("production"),
        ("production", "生产环境"),
        (
            "In production every version has to be kept and taken back: an adapter of {lora_file} a version against "
            "{full_file}, merged at no cost in speed.",
            "生产环境要保存并能回退每个版本：每版适配器 {lora_file}，整模型则是 {full_file}；合并后不影响速度。",
        ),
        "Hu et al. 2021, arXiv:2106.09685; luthier plan",
    ),
    Rule(
        "style",
        {"low rank": 1, "prefix": 1, "whole model": -2},
        lambda s, _: s.wants("style"),
        ("style or tone", "风格或语气"),
        (
            "A style lies near what the model can do already: 1,000 good rows taught it.",
            "风格离模型已有能力很近：1,000 条好数据就能教会。",
        ),
        "Zhou et al. 2023, arXiv:2305.11206",
    ),
    Rule(
        "knowledge of a domain",
        {"full": 2, "parallel": 1, "low rank": 1, "tiny": -4, "soft prompts": -5, "deep prompts": -4},
        lambda s, _: s.wants("domain") and not s.classifies,
        ("knowledge of a domain", "领域知识"),
        (
            "Knowledge needs room: what trains 0.01 to 0.1 % of the model steers what it knows and holds nothing new.",
            "知识需要容量：只训练 0.01–0.1 % 的方法只能引导已有知识，装不下新知识。",
        ),
        "Biderman et al. 2024, arXiv:2405.09673",
    ),
    Rule(
        "a new task",
        {"low rank": 1, "parallel": 1, "soft prompts": -1},
        lambda s, _: s.wants("task"),
        ("a new task", "新任务"),
        (
            "A new task asks more than a form: LoRA matched full fine-tuning of GPT-3 on 3 of 3 tasks.",
            "新任务要求的不只是形式：LoRA 在 GPT-3 的 3 个任务上全部追平全量微调。",
        ),
        "Hu et al. 2021, arXiv:2106.09685",
    ),
    Rule(
        "several tasks",
        {"full": 1, "low rank": 1, "adapters": 1, "prompt": 1, "tiny": -1},
        lambda s, _: s.wants("tasks"),
        ("several tasks", "多个任务"),
        (
            "Tasks learnt together help each other: 1,836 of them, mixed in proportion, made Flan 9.4 % better.",
            "一起学的任务相互促进：Flan 把 1,836 个任务按比例混合，提高了 9.4 %。",
        ),
        "Chung et al. 2022, arXiv:2210.11416",
    ),
    Rule(
        "several domains or languages",
        {"full": 1, "low rank": 1, "adapters": 2, "soft prompts": -3, "deep prompts": -3, "tiny": -2},
        lambda s, _: s.wants("domains", "languages"),
        ("several domains or languages", "多个领域或语言"),
        (
            "Domains and languages share one model's capacity: rare ones are sampled more often (exponent 0.3), or each "
            "gets an adapter.",
            "多个领域或语言共享一个模型的容量：稀少的要多采样（指数 0.3），或各用一个适配器。",
        ),
        "Conneau et al. 2019, arXiv:1911.02116; Pfeiffer et al. 2020, arXiv:2005.00052",
    ),
    Rule(
        "alignment is asked",
        {"low rank": 1, "full": -1},
        lambda s, _: s.wants("alignment"),
        ("alignment", "对齐"),
        (
            "Alignment is the last and smallest step (β = 0.1 holds the model near its start): an adapter can be taken off.",
            "对齐是最后、最小的一步（β = 0.1 使模型贴近起点）：适配器可随时取下。",
        ),
        "Rafailov et al. 2023, arXiv:2305.18290",
    ),
    Rule(
        "as good as can be had",
        {"full": 3, "lora": 1, "qlora": -2, "tiny": -3, "soft prompts": -4, "deep prompts": -2, "heads": -2},
        lambda s, _: s.wishes.quality == "best",
        ("the best quality is asked", "要求最佳质量"),
        (
            "The best quality is asked for: 4 bits carry 9 % of error in each weight, and what trains under 0.1 % falls behind.",
            "要求最佳质量：4 位使每个权重带约 9 % 的误差，训练不到 0.1 % 的方法会落后。",
        ),
        "Dettmers et al. 2023, arXiv:2305.14314; NF4's error on normally distributed weights, measured",
    ),
    Rule(
        "a first impression will do",
        {"soft prompts": 2, "deep prompts": 1, "heads": 2, "tiny": 1, "full": -2},
        lambda s, _: s.wishes.quality == "any",
        ("any quality will do", "质量要求不高"),
        (
            "A first impression will do: under 0.1 % of the {parameters} parameters need to move.",
            "只要初步效果：{parameters} 参数中只需动不到 0.1 %。",
        ),
        "Lester et al. 2021, arXiv:2104.08691",
    ),
)
