"""(IA)³: learned rescaling of keys, values and feed-forward activations (Liu et al. 2022, arXiv:2205.05638).

In PEFT's layers and files (kind IA3).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.methods.base import Method
from luthier.models.targets import linear_roles, match_linear, matrix_shape

if TYPE_CHECKING:
    from peft import IA3Config
    from torch import Tensor
    from transformers import PreTrainedModel

_OF_THE_PAPER = {"k", "v", "qkv", "down"}
_SCALED_AT_INPUT = "down"


class Ia3(Method):
    """Train one factor for each key, value and feed-forward unit."""

    kind: Literal["ia3"] = "ia3"

    targets: str | tuple[str, ...] | None = None
    """Which matrices: roles (k, v, down …), module names, or patterns. Left out: k, v and down, as in the paper, as far as the model has them (a fused q-k-v is scaled as a whole; fused experts are left alone). down is scaled at its input, all others at their output."""

    title: ClassVar[str] = "(IA)³"
    summary: ClassVar[str] = "Train one factor for each key, value and feed-forward unit."
    principle: ClassVar[str] = (
        "Keys, values and the inner activations of the feed-forward are multiplied, number by number, by learned vectors: "
        "what helps the task is amplified, the rest inhibited. All vectors start at one, so training starts exactly at the "
        "base model, and afterwards they can be merged into the matrices beside them."
    )
    equation: ClassVar[str] = "softmax(q (l_k ⊙ k)ᵀ / √d) (l_v ⊙ v),  W_down (l_ff ⊙ f(W_up x)),  l = 1 at the start"
    paper: ClassVar[str] = (
        "Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, "
        "arXiv:2205.05638"
    )
    moves: ClassVar[str] = "l_k, l_v and l_ff in each block: one number for each key, value and feed-forward unit"
    typical_share: ClassVar[str] = "0.01 to 0.05 %"
    when: ClassVar[str] = (
        "A few dozen to a few hundred examples; thousands of variants on one base; files of kilobytes."
    )
    when_not: ClassVar[str] = "Learning much that is new, or data enough for LoRA, which then learns more."
    zh: ClassVar[dict[str, str]] = {
        "title": "(IA)³",
        "summary": "为每个键、值和前馈单元训练一个系数。",
        "principle": "键、值和前馈的内部激活逐元素乘以学得的向量：放大对任务有用的部分，抑制其余部分。所有向量初始为 1，因此训练从基座模型精确出发；训练后可并入相邻矩阵。",
        "moves": "每层的 l_k、l_v 和 l_ff：每个键、值和前馈单元一个数",
        "when": "只有几十到几百条样本；一个基座带成千上万个变体；文件只要几千字节。",
        "when_not": "需要学习大量新内容，或数据足够用 LoRA（此时 LoRA 学得更多）。",
        "targets": "作用于哪些矩阵：角色（k、v、down 等）、模块名或模式。不填则按论文取模型所具有的 k、v 和 down（合并的 q-k-v 整体缩放，合并存放的专家不动）。down 在输入端缩放，其余在输出端缩放。",
    }
    default_learning_rate: ClassVar[float] = 3e-3

    def apply(self, model: PreTrainedModel) -> None:
        from luthier.methods.modules.peft_files import inject

        inject(model, self._peft_config(model))

    def count(self, model: PreTrainedModel) -> int:
        roles, modules = linear_roles(model), dict(model.named_modules())
        shapes = {n: matrix_shape(modules[n]) for n in self._names(model)}
        return sum(inputs if roles[n] == _SCALED_AT_INPUT else outputs for n, (inputs, outputs) in shapes.items())

    def _names(self, model: PreTrainedModel) -> list[str]:
        roles = linear_roles(model)
        if self.targets is None:
            return match_linear(model, [n for n, role in roles.items() if role in _OF_THE_PAPER])
        return match_linear(model, self.targets)

    def _peft_config(self, model: PreTrainedModel) -> IA3Config:
        from luthier.models.quantized import import_bitsandbytes

        import_bitsandbytes()
        from peft import IA3Config
        from transformers.pytorch_utils import Conv1D

        from luthier.methods.modules.peft_files import task_type

        roles, modules, names = linear_roles(model), dict(model.named_modules()), self._names(model)
        at_input = [n for n in names if roles[n] == _SCALED_AT_INPUT]
        return IA3Config(
            target_modules=_shortest(names, list(roles)),
            feedforward_modules=_shortest(at_input, list(roles)),
            fan_in_fan_out=any(isinstance(modules[n], Conv1D) for n in names),
            task_type=task_type(model),
        )

    def state_dict(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """Return the vectors under the names that PEFT gives them in its files."""
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
        """Scale the rows or columns of each matrix and take PEFT's layers out again."""
        from luthier.methods.modules.peft_files import fold_in

        return fold_in(model)


def _shortest(names: list[str], everything: list[str]) -> list[str]:
    """Return the shortest endings (`k_proj`, `mlp.c_proj`) that mean exactly the chosen modules."""
    chosen, found = set(names), set()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts) - 1, -1, -1):
            ending = ".".join(parts[start:])
            if all(n in chosen for n in everything if n == ending or n.endswith(f".{ending}")):
                found.add(ending)
                break
    return sorted(found)
