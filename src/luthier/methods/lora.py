"""LoRA: low-rank updates beside frozen matrices (Hu et al. 2021, arXiv:2106.09685), in PEFT's layers and files.

Its kin are options: rsLoRA (Kalajdzievski 2023, arXiv:2312.03732), DoRA (Liu et al. 2024, arXiv:2402.09353), PiSSA (Meng et
al. 2024, arXiv:2404.02948), LoftQ (Li et al. 2023, arXiv:2310.08659).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt

from luthier.core.component import StageFacts
from luthier.core.errors import ModelError, Problem
from luthier.methods.base import Method, Probe

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from luthier.methods.modules.lora_choice import Choice


class Lora(Method):
    """Train a low-rank update beside each chosen matrix."""

    kind: Literal["lora"] = "lora"

    rank: int = Field(default=8, ge=1)
    """Rank r of the update. 8 to 64 is usual; more learns more and costs in proportion."""
    alpha: float = Field(default=16.0, gt=0)
    """The update is scaled by alpha / rank. Twice the rank is a good start; leave it when you change the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of the update. Helps on very small data; costs speed (the fused product needs none)."""
    targets: str | tuple[str, ...] = "all-linear"
    """Which matrices: a role (attention, mlp, q, k, v, o, gate, up, down, all-linear), a module name, or a pattern."""
    exclude: tuple[str, ...] = ()
    """Matrices to leave out of targets, in the same words, e.g. "model.layers.0.*" or "down"."""
    rslora: bool = False
    """Scale by alpha / √rank instead of alpha / rank, so that high ranks (64 and more) learn as fast as low ones."""
    dora: bool = False
    """Train the length of each output's weight row apart from its direction (DoRA). A little better than LoRA at low rank, about half as fast."""
    init: Literal["default", "gaussian", "pissa", "loftq"] = "default"
    """Where A and B start. default: A random, B zero. gaussian: A from a normal distribution. pissa: the principal singular vectors of the weight, which learns faster at first. loftq: what quantisation lost (only with a quantised base: method qlora)."""
    rank_pattern: dict[str, PositiveInt] = Field(default={})
    """Other ranks for some matrices: target word → rank, e.g. {q: 16, "model.layers.0.*": 4}; where several match, the last one counts."""
    alpha_pattern: dict[str, PositiveFloat] = Field(default={})
    """Other alphas for some matrices, written like rank_pattern."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that are trained in full and stored with the adapter, e.g. "lm_head" or "model.norm"; by name or pattern."""
    new_tokens: tuple[str | int, ...] = ()
    """Tokens of the tokenizer (or their ids) whose embedding rows are trained too, e.g. "<tool_call>"; all other rows keep their bits."""
    target_parameters: tuple[str, ...] = ()
    """Fused tensors of mixture models that hold all experts in one: "experts" for all of them, or a name or pattern ("mlp.experts.down_proj"). Each expert gets an update of its own."""

    title: ClassVar[str] = "LoRA"
    summary: ClassVar[str] = "Train a low-rank update beside each frozen matrix."
    principle: ClassVar[str] = (
        "The change that fine-tuning makes to a weight matrix is nearly of low rank. LoRA leaves W alone and learns the "
        "change as a product of two thin matrices. B starts at zero, so training starts exactly at the base model; the "
        "product can be merged into W afterwards, at no cost in inference."
    )
    equation: ClassVar[str] = "y = W x + (alpha / r) · B A x,  A ∈ ℝ^{r×in},  B ∈ ℝ^{out×r},  B = 0 at the start"
    paper: ClassVar[str] = "Hu et al. 2021, LoRA, arXiv:2106.09685"
    moves: ClassVar[str] = "A and B beside each chosen matrix: r · (in + out) numbers"
    typical_share: ClassVar[str] = "0.1 to 2 %"
    when: ClassVar[str] = (
        "The default: nearly as good as full fine-tuning on most tasks, small files, many variants on one base."
    )
    when_not: ClassVar[str] = (
        "Continued pre-training on much new knowledge or a new language: full fine-tuning learns more."
    )
    zh: ClassVar[dict[str, str]] = {
        "title": "LoRA（低秩适配）",
        "summary": "在冻结的矩阵旁训练低秩更新。",
        "principle": "微调对权重矩阵的改变近似低秩。LoRA 不动 W，用两个细长矩阵的乘积学习这一改变。B 初始为零，因此训练从基座模型精确出发；训练后乘积可并入 W，推理无额外开销。",
        "moves": "每个目标矩阵旁的 A 和 B：r ·（输入 + 输出）个数",
        "when": "默认选择：多数任务上接近全量微调，文件小，一个基座可带多个变体。",
        "when_not": "需要学习大量新知识或新语言的继续预训练：全量微调学得更多。",
        "rank": "更新的秩 r，通常取 8 到 64；越大学得越多，开销按比例增加。",
        "alpha": "更新按 alpha / rank 缩放。取秩的两倍是好的起点；改变秩时不必改它。",
        "dropout": "作用在更新的输入上的 dropout。数据很少时有帮助；会降低速度（融合乘法要求不用 dropout）。",
        "targets": "适配哪些矩阵：角色（attention、mlp、q、k、v、o、gate、up、down、all-linear）、模块名或模式。",
        "exclude": '从 targets 中排除的矩阵，写法相同，例如 "model.layers.0.*" 或 "down"。',
        "rslora": "按 alpha / √rank 而不是 alpha / rank 缩放，使高秩（64 以上）与低秩学得一样快。",
        "dora": "把每个输出的权重行的长度与方向分开训练（DoRA）。低秩时略好于 LoRA，速度约为一半。",
        "init": "A 和 B 的起点。default：A 随机、B 为零；gaussian：A 取正态分布；pissa：权重的主奇异向量，起步更快；loftq：补回量化损失的部分（仅用于量化基座，即方法 qlora）。",
        "rank_pattern": '为部分矩阵另设秩：目标词 → 秩，例如 {q: 16, "model.layers.0.*": 4}；多个匹配时以最后一个为准。',
        "alpha_pattern": "为部分矩阵另设 alpha，写法同 rank_pattern。",
        "modules_to_save": '完整训练并随适配器保存的模块，例如 "lm_head" 或 "model.norm"；可用名字或模式。',
        "new_tokens": '其词嵌入行也一并训练的词元（或其编号），须已在分词器中，例如 "<tool_call>"；其余各行逐位不变。',
        "target_parameters": '混合专家模型中把所有专家合在一个张量里的参数："experts" 表示全部，也可写名字或模式（"mlp.experts.down_proj"）。每个专家有自己的更新。',
    }
    default_learning_rate: ClassVar[float] = 2e-4

    def problems(self, facts: StageFacts) -> list[Problem]:
        from luthier.methods.modules.lora_choice import has_experts

        found = self._contradictions()
        words = {self.targets} if isinstance(self.targets, str) else set(self.targets)
        meets_experts = words & {"all-linear", "mlp", "gate", "up", "down"}
        if has_experts(facts.model_config) and meets_experts and not self.target_parameters:
            found.append(
                Problem(
                    "This is a mixture of experts. Its experts are fused tensors, no linear modules, so targets leaves "
                    "them as they are; only what stands beside them is adapted.",
                    where="method.targets",
                    remedy="to adapt the experts too, set target_parameters: [experts]; to be rid of this, targets: attention",
                    severity="warning",
                )
            )
        return found

    def _contradictions(self) -> list[Problem]:
        """Return the options that exclude each other."""
        rules = (
            (
                self.init == "loftq" and self.base_bits is None,
                "LoftQ makes up for what quantisation loses, and this base is not quantised.",
                "method.init",
                "use method qlora, or init: pissa",
            ),
            (
                self.init == "pissa" and self.base_bits is not None,
                "PiSSA takes the principal part out of the weights, which a quantised base cannot give exactly.",
                "method.init",
                "use init: loftq, or method lora",
            ),
            (
                self.init == "pissa" and self.dora,
                "PiSSA and DoRA both redefine the frozen weight.",
                "method.init",
                "take one of them",
            ),
            (
                self.init == "pissa" and bool(self.target_parameters),
                "PiSSA is not defined for fused experts.",
                "method.init",
                "leave init or target_parameters out",
            ),
            (
                bool(self.target_parameters) and self.dora,
                "DoRA is not defined for fused experts.",
                "method.dora",
                "leave dora or target_parameters out",
            ),
            (
                bool(self.target_parameters) and self.dropout > 0,
                "Dropout cannot be applied to the update of fused experts: it is added to the weight.",
                "method.dropout",
                "set dropout: 0",
            ),
        )
        return [Problem(what, where, remedy) for is_wrong, what, where, remedy in rules if is_wrong]

    @property
    def unservable(self) -> str:
        """Why vLLM cannot be given the adapter: it refuses some parts of one, and reads others as if they were not."""
        lacks = (
            (self.dora, "dora: it has no DoRA"),
            (bool(self.modules_to_save), "modules_to_save: it takes no modules that were trained in full"),
            (bool(self.new_tokens), "new_tokens: it takes no rows of the embedding"),
            (bool(self.rank_pattern or self.alpha_pattern), "rank_pattern, alpha_pattern: it takes one scale for all"),
            (bool(self.target_parameters), "target_parameters: fused experts have another form there"),
            (self.init == "loftq", "init: loftq, which belongs to a base in few bits"),
        )
        return "; ".join(why for holds, why in lacks if holds)

    def choose(self, probe: Probe) -> Self:
        if not any(isinstance(token, str) for token in self.new_tokens):
            return self
        return self.model_copy(update={"new_tokens": _ids(self.new_tokens, probe.tokenizer)})

    def apply(self, model: PreTrainedModel) -> None:
        from luthier.models.quantized import import_bitsandbytes

        import_bitsandbytes()
        from peft.tuners.lora import Linear

        from luthier.core.workspace import Workspace
        from luthier.methods.modules.lora_linear import FusedLoraLinear
        from luthier.methods.modules.peft_files import inject, train_modules

        wrong = self._contradictions()
        if wrong:
            raise ModelError(*wrong)
        if self.base_bits is not None:
            from luthier.models.quantized import require_bitsandbytes

            require_bitsandbytes()
        choice = self._choice(model)
        if self.base_bits == 4 and self.dora:
            _require_whole_blocks(model, choice)
        inject(model, self._peft_config(model, choice))
        workspace = Workspace()
        for module in model.modules():
            if type(module) is Linear:
                # The same layer with another forward: PEFT offers no public way to name a subclass of its own layer.
                module.__class__ = FusedLoraLinear
                module.workspace = workspace  # type: ignore[assignment]  # the class has just changed
        if self.base_bits is not None:
            from luthier.methods.modules.quantized_lora import fuse

            fuse(model)
        if self.init == "pissa":
            from luthier.methods.modules.pissa_linear import start_from_principal

            start_from_principal(model)
        if self.init == "loftq":
            from luthier.methods.modules.loftq import start_from_what_was_lost

            start_from_what_was_lost(model)
        train_modules(model, choice.saved)

    def count(self, model: PreTrainedModel) -> int:
        from luthier.methods.modules.lora_choice import count

        return count(model, self._choice(model), dora=self.dora, token_rows=len(set(self.new_tokens)))

    def _choice(self, model: PreTrainedModel) -> Choice:
        from luthier.methods.modules.lora_choice import choose

        return choose(
            model,
            self.targets,
            self.rank,
            self.alpha,
            exclude=self.exclude,
            target_parameters=self.target_parameters,
            modules_to_save=self.modules_to_save,
            rank_pattern=self.rank_pattern,
            alpha_pattern=self.alpha_pattern,
        )

    def _peft_config(self, model: PreTrainedModel, choice: Choice) -> LoraConfig:
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        from luthier.methods.modules.lora_choice import all_linear, shortest
        from luthier.methods.modules.peft_files import embedding_rows, task_type

        modules = dict(model.named_modules())
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT annotates int and computes with any number
            lora_dropout=self.dropout,
            target_modules=shortest(choice.modules, all_linear(model)),
            target_parameters=choice.parameters or None,
            rank_pattern={n: r for n, r in choice.ranks.items() if r != self.rank},
            alpha_pattern={n: a for n, a in choice.alphas.items() if a != self.alpha},
            use_rslora=self.rslora,
            use_dora=self.dora,
            init_lora_weights="gaussian" if self.init == "gaussian" else True,
            trainable_token_indices=embedding_rows(model, self.new_tokens),
            fan_in_fan_out=any(isinstance(modules[n], Conv1D) for n in choice.modules),
            task_type=task_type(model),
        )

    def state_dict(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """Return A, B and what else is trained under the names that PEFT gives them in its files."""
        from luthier.methods.modules.peft_files import adapter_tensors

        return adapter_tensors(model)

    def load_state_dict(self, model: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
        from luthier.methods.modules.peft_files import own_names

        super().load_state_dict(model, own_names(model, tensors))

    def save(self, model: PreTrainedModel, folder: Path, base: str) -> None:
        """Write adapter_config.json and adapter_model.safetensors, as PEFT reads them."""
        from luthier.methods.modules.peft_files import injected_config, trained_modules, write_adapter
        from luthier.methods.modules.pissa_linear import of_twice_the_rank, with_start

        config, tensors = injected_config(model), self.state_dict(model)
        if self.init == "pissa":
            config, tensors = of_twice_the_rank(config), with_start(model, tensors)
        write_adapter(folder, config, tensors, base, trained_modules(model))

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        from luthier.methods.modules.peft_files import read_adapter
        from luthier.methods.modules.pissa_linear import take_start

        tensors = read_adapter(folder)
        self.load_state_dict(model, take_start(model, tensors) if self.init == "pissa" else tensors)

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:
        """Fold each update into its matrix and take PEFT's layers out again."""
        from luthier.methods.modules.peft_files import fold_in

        return fold_in(model)


def _require_whole_blocks(model: PreTrainedModel, choice: Choice) -> None:
    """Refuse rows whose 4-bit blocks reach into the next row: bitsandbytes, which PEFT's DoRA asks, reads them wrongly.

    Raises:
        ModelError: names the first one.
    """
    from luthier.models.targets import matrix_shape

    for name in choice.modules:
        inputs, _ = matrix_shape(model.get_submodule(name))
        if inputs % 64:
            what = f"{name} has rows of {inputs} weights; DoRA on 4 bits needs a multiple of 64."
            raise ModelError(Problem(what, "method.dora", "set bits: 8, or leave dora or this module out"))


def _ids(tokens: tuple[str | int, ...], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids of tokens, some of which are given by their text.

    Raises:
        ModelError: the tokenizer does not have one.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [t for t in tokens if isinstance(t, str) and t not in vocabulary]
    if missing:
        raise ModelError(
            Problem(
                f"The tokenizer has no token {', '.join(repr(t) for t in missing[:5])}.",
                where="method.new_tokens",
                remedy="add it to the tokenizer of the model's folder first, and a row to the embedding if it has none to spare",
            )
        )
    return tuple(vocabulary[t] if isinstance(t, str) else t for t in tokens)
