"""Known mistakes: what a recipe runs into, with what was measured about it. One record each, told once, never an error.

Each looks at plain facts of a run (`RunFacts`) and knows nothing of the others. Thresholds lie well inside the mistake, so
that a choice made with care is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from luthier.core.errors import Problem
from luthier.core.language import Language

Words = tuple[str, str]
LOW_RANK = ("lora", "lora_plus", "qlora", "adalora")
_COMPARING = ("dpo", "kto", "simpo", "ppo", "grpo", "rloo")
_COPYING = ("sft", "classify", "dpo", "kto", "orpo", "simpo")
_ON_POLICY = ("grpo", "rloo", "ppo")
_ATTENTION = {
    "attention",
    "q",
    "k",
    "v",
    "o",
    "qkv",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "c_attn",
    "query",
    "value",
}
TINY = 50_000_000
"""Below this many parameters rates ten and more times the usual ones are right."""
FEW_ROWS = 1_000


@dataclass(frozen=True)
class RunFacts:
    """What the records look at.

    Attributes:
        method: its word; fields: its values; given: those that the recipe says.
        keys: keys that the recipe says.
        learning_rate: as it will be, taken back to what it would be for sft (an objective has a factor).
        rows: to be trained on.
        parameters: of the model; None where it is not here.
        has_template: the model brings a chat template or the recipe names one; None where the model is not here.
        is_run: the model is what an earlier run of Luthier made.
        earlier: objectives of the stages that this one starts from.
        has_room: whether the same in 16 or 32 bits would fill less than half of the memory; None where not known.
        form: how the rows are read.
    """

    method: str
    objective: str
    fields: Mapping[str, object] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    learning_rate: float = 2e-4
    rows: int = 0
    epochs: float = 1.0
    batch_size: int = 8
    parameters: int | None = None
    from_scratch: bool = False
    has_template: bool | None = None
    is_run: bool = False
    earlier: tuple[str, ...] = ()
    has_eval: bool = True
    stops_early: bool = False
    packing: bool = True
    has_room: bool | None = None
    form: str = ""

    @property
    def is_tiny(self) -> bool:
        return self.parameters is not None and self.parameters < TINY

    @property
    def is_low_rank(self) -> bool:
        return self.method in LOW_RANK

    def number(self, name: str) -> float:
        """Return a field of the method as a number."""
        value = self.fields.get(name)
        return float(value) if isinstance(value, int | float) else 0.0


@dataclass(frozen=True)
class Myth:
    """A known mistake.

    Attributes:
        key: where in the recipe it stands.
        says: what is known; may use {rows}, {rate}, {epochs}, {rank}, {alpha}, {batch}, {parameters}.
        remedy: what to write instead.
    """

    name: str
    applies: Callable[[RunFacts], bool]
    key: str
    says: Words
    remedy: Words
    source: str


def _targets(facts: RunFacts) -> set[str]:
    value = facts.fields.get("targets")
    if isinstance(value, str):
        return {value}
    return {str(item) for item in value} if isinstance(value, list | tuple) else set()


MYTHS = (
    Myth(
        "full fine-tuning on few rows",
        lambda f: f.method == "full" and f.objective in _COPYING and f.rows < FEW_ROWS and not f.from_scratch,
        "method",
        (
            "Full fine-tuning on {rows} rows overfits and forgets: in low-data settings training 0.1 % of the parameters "
            "did better than training all.",
            "用 {rows} 行做全量微调会过拟合并遗忘：数据少时，只训练 0.1 % 参数的效果更好。",
        ),
        ("use method: lora (or prefix below 100 rows)", "用 method: lora（不足 100 行用 prefix）"),
        "Li & Liang 2021, arXiv:2101.00190; Biderman et al. 2024, arXiv:2405.09673",
    ),
    Myth(
        "the rate of full fine-tuning for LoRA",
        lambda f: f.is_low_rank and "learning_rate" in f.keys and f.learning_rate < 5e-5,
        "learning_rate",
        (
            "A rate of {rate} is one for full fine-tuning: LoRA's best rate is about 10 times as high.",
            "学习率 {rate} 适合全量微调：LoRA 的最佳学习率约为其 10 倍。",
        ),
        ("leave learning_rate out, or write 2e-4", "去掉 learning_rate，或写 2e-4"),
        "Schulman et al. 2025, LoRA Without Regret, thinkingmachines.ai/blog/lora",
    ),
    Myth(
        "the rate of LoRA for full fine-tuning",
        lambda f: (
            f.method == "full"
            and "learning_rate" in f.keys
            and not f.from_scratch
            and f.objective != "lm"
            and f.learning_rate >= (1e-3 if f.is_tiny else 1e-4)
        ),
        "learning_rate",
        (
            "A rate of {rate} is one for LoRA: full fine-tuning at it forgets what the model knew; BERT's authors went up "
            "to 5e-5.",
            "学习率 {rate} 适合 LoRA：用它做全量微调会忘掉模型原有的知识；BERT 的作者最高只用 5e-5。",
        ),
        ("write learning_rate: 2e-5 (a toy model takes 5e-4)", "写 learning_rate: 2e-5（玩具模型可用 5e-4）"),
        "Devlin et al. 2018, arXiv:1810.04805; Sun et al. 2019, arXiv:1905.05583",
    ),
    Myth(
        "a base model without a chat template",
        lambda f: (
            f.objective == "sft" and f.has_template is False and f.form in ("messages", "sharegpt", "alpaca", "dolly")
        ),
        "model",
        (
            "The model has no chat template: rows are written plainly, the end of a turn has no mark, and a chat program "
            "will write 1 other form than was trained.",
            "模型没有对话模板：数据按纯文本拼接，轮次没有结束标记，聊天程序会用另 1 种格式。",
        ),
        ("choose one: model.chat_template: chatml", "指定一个：model.chat_template: chatml"),
        "huggingface.co/docs/transformers/chat_templating; github.com/hiyouga/LLaMA-Factory/issues/8720",
    ),
    Myth(
        "preferences before instructions",
        lambda f: (
            f.objective in _COMPARING
            and f.has_template is False
            and not f.is_run
            and not {"sft", "orpo"} & set(f.earlier)
        ),
        "objective",
        (
            "The model was never tuned on instructions: {objective} only moves between answers that it can give already. "
            "Supervised fine-tuning comes first (step 1 of InstructGPT's 3; DPO's reference is the result of it).",
            "模型没有经过指令微调：{objective} 只能在它已会给出的回答之间调整。先做监督微调（InstructGPT 三步中的第 1 步，DPO 的参考模型就是它）。",
        ),
        ("put a stage objective: sft before it, or use orpo", "在前面加一个 objective: sft 的阶段，或用 orpo"),
        "Ouyang et al. 2022, arXiv:2203.02155; Rafailov et al. 2023, arXiv:2305.18290",
    ),
    Myth(
        "LoRA on attention alone",
        lambda f: f.is_low_rank and bool(_targets(f)) and _targets(f) <= _ATTENTION,
        "method.targets",
        (
            "LoRA on attention alone falls behind, at any rank: matching full fine-tuning took updates in all linear "
            "layers (7 kinds in a Llama block).",
            "只对注意力做 LoRA，秩再高也会落后：要追平全量微调，需要作用于所有线性层（Llama 每层 7 种）。",
        ),
        ("write targets: all-linear", "写 targets: all-linear"),
        "Dettmers et al. 2023, arXiv:2305.14314, section 4; Schulman et al. 2025, thinkingmachines.ai/blog/lora",
    ),
    Myth(
        "no held-out rows",
        lambda f: not f.has_eval and f.objective not in _ON_POLICY and f.rows >= 20,
        "eval_fraction",
        (
            "0 of {rows} rows are held out: a falling training loss cannot tell learning from learning by heart.",
            "{rows} 行中留出 0 行：训练损失下降分不清是学会还是背下来。",
        ),
        ("add eval_fraction: 0.1, or eval_data", "加上 eval_fraction: 0.1 或 eval_data"),
        "Zhang et al. 2016, arXiv:1611.03530",
    ),
    Myth(
        "a high rank on few rows",
        lambda f: f.method in LOW_RANK and f.number("rank") >= 64 and f.rows < FEW_ROWS,
        "method.rank",
        (
            "Rank {rank} on {rows} rows: more room than there is to learn. Ranks of 1 to 8 did as well as 64 even on far "
            "more rows.",
            "秩 {rank} 配 {rows} 行：容量远大于要学的内容。即使数据多得多，秩 1–8 与 64 的效果也相同。",
        ),
        ("write rank: 8", "写 rank: 8"),
        "Hu et al. 2021, arXiv:2106.09685, table 6",
    ),
    Myth(
        "many epochs on few rows",
        lambda f: (
            f.objective in ("sft", "dpo", "kto", "simpo", "orpo")
            and f.epochs > 4
            and f.rows < 5 * FEW_ROWS
            and not f.stops_early
        ),
        "epochs",
        (
            "{epochs} epochs on {rows} rows: up to 4 repetitions are almost as good as new data, later ones are learnt by "
            "heart.",
            "{rows} 行训练 {epochs} 轮：重复 4 遍以内几乎等同新数据，再多就是背诵。",
        ),
        (
            "write epochs: 3, or early_stopping: 2 with eval_fraction",
            "写 epochs: 3，或配合 eval_fraction 用 early_stopping: 2",
        ),
        "Muennighoff et al. 2023, arXiv:2305.16264",
    ),
    Myth(
        "4 bits where memory is ample",
        lambda f: f.method == "qlora" and f.has_room is True,
        "method",
        (
            "The model fits as it is ({parameters} parameters, less than half of the memory): 4 bits save what is not "
            "needed and cost 39 % more time.",
            "模型原样就放得下（{parameters} 参数，不到内存的一半）：4 位省的是用不着的内存，却多花 39 % 的时间。",
        ),
        ("use method: lora", "用 method: lora"),
        "Raschka 2023, Practical Tips for Finetuning LLMs, magazine.sebastianraschka.com",
    ),
    Myth(
        "packing is avoided",
        lambda f: not f.packing and "packing" in f.keys,
        "packing",
        (
            "Packed sequences never see each other here, and the result is the same; padding was up to "
            "50 % of BERT's tokens.",
            "在这里打包的序列互不可见，结果相同；而填充占 BERT 训练词元的多达 50 %。",
        ),
        ("leave packing out", "去掉 packing"),
        "Krell et al. 2021, arXiv:2107.02027",
    ),
    Myth(
        "alpha far from rank",
        lambda f: f.is_low_rank and f.number("alpha") > 8 * max(f.number("rank"), 1.0) and "alpha" in f.given,
        "method.alpha",
        (
            "alpha {alpha} with rank {rank} multiplies the update by {scale}: that is the learning rate once more, and 2 "
            "is usual.",
            "alpha {alpha}、秩 {rank} 使更新乘以 {scale}：这等于再次放大学习率，通常是 2。",
        ),
        ("write alpha: twice the rank, and set learning_rate", "alpha 取秩的两倍，另设 learning_rate"),
        "Hu et al. 2021, arXiv:2106.09685, section 4.1",
    ),
    Myth(
        "the rate of sft for preferences",
        lambda f: (
            f.objective in ("dpo", "simpo", "kto")
            and "learning_rate" in f.keys
            and f.method == "full"
            and not f.is_tiny
            and f.learning_rate >= 1e-4
        ),
        "learning_rate",
        (
            "Preferences want steps about 20 times smaller than sft: Zephyr went from 2e-5 to 5e-7.",
            "偏好学习的步长约为 sft 的二十分之一：Zephyr 从 2e-5 降到 5e-7。",
        ),
        ("leave learning_rate out", "去掉 learning_rate"),
        "Tunstall et al. 2023, arXiv:2310.16944",
    ),
    Myth(
        "a soft prompt on a small model",
        lambda f: f.method == "prompt" and f.parameters is not None and f.parameters < 1_000_000_000,
        "method",
        (
            "A soft prompt at the input stays far behind on a model of {parameters} parameters; it catches up with full "
            "fine-tuning near 10 B.",
            "在 {parameters} 参数的模型上，输入端软提示差距很大；约 10 B 才追平全量微调。",
        ),
        ("use prefix, p_tuning_v2 or lora", "用 prefix、p_tuning_v2 或 lora"),
        "Lester et al. 2021, arXiv:2104.08691; Liu et al. 2021, arXiv:2110.07602",
    ),
    Myth(
        "large batches with LoRA",
        lambda f: f.is_low_rank and f.batch_size >= 256,
        "batch_size",
        (
            "LoRA bears large batches less well than full fine-tuning, at any rank; {batch} sequences a step cost loss.",
            "无论秩多高，LoRA 都比全量微调更不耐大批量；每步 {batch} 条会损失效果。",
        ),
        ("write batch_size: 32", "写 batch_size: 32"),
        "Schulman et al. 2025, LoRA Without Regret, thinkingmachines.ai/blog/lora",
    ),
)


def known_mistakes(facts: RunFacts, language: Language) -> list[Problem]:
    """Return what is known against a recipe, as notes; the place is the key, for whoever knows its line."""
    pick = 0 if language == "en" else 1
    numbers = {
        "objective": facts.objective,
        "rows": f"{facts.rows:,}",
        "rate": f"{facts.learning_rate:g}",
        "epochs": f"{facts.epochs:g}",
        "rank": f"{facts.number('rank'):g}",
        "alpha": f"{facts.number('alpha'):g}",
        "scale": f"{facts.number('alpha') / max(facts.number('rank'), 1.0):g}",
        "batch": str(facts.batch_size),
        "parameters": _count(facts.parameters),
    }
    return [
        Problem(f"{myth.says[pick].format_map(numbers)} [{myth.source}]", myth.key, myth.remedy[pick], "note")
        for myth in MYTHS
        if myth.applies(facts)
    ]


def _count(parameters: int | None) -> str:
    if parameters is None:
        return "?"
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.3g} M"
