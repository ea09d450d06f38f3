"""LoRA: low-rank updates beside frozen matrices (Hu et al. 2021, arXiv:2106.09685), in PEFT's layers and files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.methods.base import Method
from luthier.models.targets import linear_roles, match_linear, matrix_shape

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor
    from transformers import PreTrainedModel


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
    }
    default_learning_rate: ClassVar[float] = 2e-4

    def apply(self, model: PreTrainedModel) -> None:
        from peft.tuners.lora import Linear

        from luthier.methods.modules.lora_linear import FusedLoraLinear
        from luthier.methods.modules.peft_files import inject

        inject(model, self._peft_config(model))
        for module in model.modules():
            if type(module) is Linear:
                # The same layer with another forward: PEFT offers no public way to name a subclass of its own layer.
                module.__class__ = FusedLoraLinear

    def count(self, model: PreTrainedModel) -> int:
        modules = dict(model.named_modules())
        return sum(self.rank * sum(matrix_shape(modules[n])) for n in match_linear(model, self.targets))

    def _peft_config(self, model: PreTrainedModel) -> LoraConfig:
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        names = match_linear(model, self.targets)
        modules = dict(model.named_modules())
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT annotates int and computes with any number
            lora_dropout=self.dropout,
            target_modules=_shortest(names, list(linear_roles(model))),
            fan_in_fan_out=any(isinstance(modules[n], Conv1D) for n in names),
            task_type="CAUSAL_LM",
        )

    def state_dict(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """Return A and B under the names that PEFT gives them in its files."""
        from luthier.methods.modules.peft_files import adapter_tensors

        return adapter_tensors(model)

    def load_state_dict(self, model: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
        from luthier.methods.modules.peft_files import own_names

        super().load_state_dict(model, own_names(model, tensors))

    def save(self, model: PreTrainedModel, folder: Path, base: str) -> None:
        """Write adapter_config.json and adapter_model.safetensors, as PEFT reads them."""
        from luthier.methods.modules.peft_files import save_adapter

        save_adapter(model, folder, base)

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        from luthier.methods.modules.peft_files import read_adapter

        self.load_state_dict(model, read_adapter(folder))

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:
        """Fold each update into its matrix and take PEFT's layers out again."""
        from luthier.methods.modules.peft_files import fold_in

        return fold_in(model)


def _shortest(names: list[str], everything: list[str]) -> list[str]:
    """Return last names (`q_proj`) where these mean exactly the chosen modules, else the full names."""
    last = {n.rpartition(".")[2] for n in names}
    meant = [n for n in everything if n.rpartition(".")[2] in last]
    return sorted(last) if set(meant) == set(names) else names
