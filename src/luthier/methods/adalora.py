"""AdaLoRA: low-rank updates whose ranks are dealt out by importance (Zhang et al. 2023, arXiv:2303.10512)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import ModelError, Problem
from luthier.methods.base import Method

if TYPE_CHECKING:
    from peft import AdaLoraConfig
    from torch import Tensor
    from transformers import PreTrainedModel

    from luthier.core.batch import Batch
    from luthier.methods.modules.lora_choice import Choice


class AdaLora(Method):
    """Train updates in singular-value form and prune the unimportant values as training goes on."""

    kind: Literal["adalora"] = "adalora"

    rank: int = Field(default=8, ge=1)
    """Mean rank per matrix that is left at the end. Important matrices keep more, others less or nothing."""
    initial_rank: int | None = Field(default=None, ge=2)
    """Rank of every matrix at the start. Without it: 1.5 times rank."""
    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by alpha / initial_rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of the update. Helps on very small data; costs speed."""
    targets: str | tuple[str, ...] = "all-linear"
    """Which matrices: a role (attention, mlp, q, k, v, o, gate, up, down, all-linear), a module name, or a pattern. Many, so that there is something to choose among."""
    exclude: tuple[str, ...] = ()
    """Matrices to leave out of targets, in the same words."""
    tinit: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps before the first value is pruned, while importance is being learned."""
    tfinal: float = Field(default=0.3, ge=0, lt=1)
    """Share of all steps at the end in which the ranks stay as they are."""
    deltaT: int = Field(default=10, ge=1)
    """Steps from one pruning to the next. Values pruned too early can come back in between."""
    beta1: float = Field(default=0.85, gt=0, lt=1)
    """Smoothing of the importance. Higher looks further back."""
    beta2: float = Field(default=0.85, gt=0, lt=1)
    """Smoothing of the importance's uncertainty."""
    orthogonal_weight: float = Field(default=0.1, ge=0)
    """Weight of the term that keeps the singular vectors orthogonal; it is part of the training loss that is shown. 0.1 to 0.5."""

    title: ClassVar[str] = "AdaLoRA"
    summary: ClassVar[str] = "LoRA that gives each matrix the rank it needs."
    principle: ClassVar[str] = (
        "Not every matrix needs the same rank. AdaLoRA writes each update as P Λ Q with singular values Λ, starts with a rank "
        "a little too high, and follows how sensitive the loss is to every value and its vectors. The least important values "
        "of the whole model are set to zero, along a cubic schedule, until the budget is met; then the rest is trained on."
    )
    equation: ClassVar[str] = (
        "y = W x + (alpha / r) · P Λ Q x,  budget b(t) = b_T + (b_0 − b_T)(1 − (t − t_i)/(T − t_i − t_f))³,  "
        "loss + γ · mean(‖PᵀP − I‖ + ‖QQᵀ − I‖)"
    )
    paper: ClassVar[str] = "Zhang et al. 2023, AdaLoRA, arXiv:2303.10512"
    moves: ClassVar[str] = "P, Λ and Q beside each chosen matrix: r · (in + out + 1) numbers"
    typical_share: ClassVar[str] = "0.1 to 2 %"
    when: ClassVar[str] = (
        "A small budget of parameters over many matrices, and enough steps (some hundreds) to find out where it pays."
    )
    when_not: ClassVar[str] = "Short runs, or a budget generous anyway: LoRA is simpler, faster and as good."
    zh: ClassVar[dict[str, str]] = {
        "title": "AdaLoRA（自适应秩）",
        "summary": "按需要给每个矩阵分配秩的 LoRA。",
        "principle": "并非每个矩阵都需要同样的秩。AdaLoRA 把更新写成 P Λ Q（Λ 为奇异值），从略高的秩开始，跟踪损失对每个奇异值及其向量的敏感程度，按三次曲线把整个模型中最不重要的奇异值逐步置零，直到满足预算，再继续训练其余部分。",
        "moves": "每个目标矩阵旁的 P、Λ、Q：r ·（输入 + 输出 + 1）个数",
        "when": "参数预算小、目标矩阵多，且步数足够（数百步）以判断预算该用在哪里时。",
        "when_not": "训练步数少，或预算本来就宽裕：LoRA 更简单、更快，效果相当。",
        "rank": "训练结束时每个矩阵的平均秩。重要的矩阵保留更多，其余更少甚至为零。",
        "initial_rank": "开始时每个矩阵的秩。不写则为 rank 的 1.5 倍。",
        "alpha": "更新按 alpha / initial_rank 缩放。",
        "dropout": "作用在更新的输入上的 dropout。数据很少时有帮助；会降低速度。",
        "targets": "适配哪些矩阵：角色（attention、mlp、q、k、v、o、gate、up、down、all-linear）、模块名或模式。宜多选，才有可分配的余地。",
        "exclude": "从 targets 中排除的矩阵，写法相同。",
        "tinit": "开始剪除之前的步数占总步数的比例，其间先积累重要性。",
        "tfinal": "最后秩不再变化的步数占总步数的比例。",
        "deltaT": "两次剪除之间的步数。被过早剪除的值可以在其间恢复。",
        "beta1": "重要性的平滑系数，越大越看重历史。",
        "beta2": "重要性不确定度的平滑系数。",
        "orthogonal_weight": "保持奇异向量正交的惩罚项的权重，计入显示的训练损失；通常取 0.1 到 0.5。",
    }
    default_learning_rate: ClassVar[float] = 5e-4

    @property
    def start_rank(self) -> int:
        """The rank of every matrix before anything is pruned."""
        return self.initial_rank if self.initial_rank is not None else math.ceil(1.5 * self.rank)

    def problems(self, facts: StageFacts) -> list[Problem]:
        return self._contradictions()

    def _contradictions(self) -> list[Problem]:
        found = []
        if self.rank >= self.start_rank:
            what = f"There is nothing to prune from rank {self.start_rank} to a mean rank of {self.rank}."
            found.append(Problem(what, "method.initial_rank", "choose about 1.5 times rank, or leave it out"))
        if self.tinit + self.tfinal >= 1:
            what = f"tinit {self.tinit} and tfinal {self.tfinal} together leave no step for pruning."
            found.append(Problem(what, "method.tfinal", "choose shares whose sum is below 1"))
        return found

    def apply(self, model: PreTrainedModel) -> None:
        from luthier.methods.modules.peft_files import inject
        from luthier.methods.modules.svd_linear import fuse, svd_layers

        wrong = self._contradictions()
        if wrong:
            raise ModelError(*wrong)
        inject(model, self._peft_config(model, self._choice(model)))
        fuse(model)
        for layer in svd_layers(model).values():
            for rank in layer.ranknum.values():
                rank.data = rank.data.float()

    def count(self, model: PreTrainedModel) -> int:
        from luthier.models.targets import matrix_shape

        modules = dict(model.named_modules())
        return sum(self.start_rank * (sum(matrix_shape(modules[n])) + 1) for n in self._choice(model).modules)

    def _choice(self, model: PreTrainedModel) -> Choice:
        from luthier.methods.modules.lora_choice import choose

        return choose(model, self.targets, self.start_rank, self.alpha, exclude=self.exclude)

    def _peft_config(self, model: PreTrainedModel, choice: Choice) -> AdaLoraConfig:
        from luthier.models.quantized import import_bitsandbytes

        import_bitsandbytes()
        from peft import AdaLoraConfig
        from transformers.pytorch_utils import Conv1D

        from luthier.methods.modules.lora_choice import all_linear, shortest
        from luthier.methods.modules.peft_files import task_type

        modules = dict(model.named_modules())
        return AdaLoraConfig(
            target_r=self.rank,
            init_r=self.start_rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT annotates int and computes with any number
            lora_dropout=self.dropout,
            target_modules=shortest(choice.modules, all_linear(model)),
            deltaT=self.deltaT,
            beta1=self.beta1,
            beta2=self.beta2,
            orth_reg_weight=self.orthogonal_weight,
            total_step=1,  # known when training begins: init_state
            fan_in_fan_out=any(isinstance(modules[n], Conv1D) for n in choice.modules),
            task_type=task_type(model),
        )

    @property
    def plans_steps(self) -> bool:
        return True

    def phases(self, total_steps: int) -> tuple[int, int]:
        """Return the steps before pruning begins, and the step with which the ranks become final."""
        return int(self.tinit * total_steps), total_steps - int(self.tfinal * total_steps)

    def budget(self, step: int, total_steps: int, layers: int) -> int:
        """Return how many singular values the whole model may have after a step (from 1): a cubic from all to the target."""
        first, last = self.phases(total_steps)
        start, target = self.start_rank * layers, self.rank * layers
        if step <= first:
            return start
        if step >= last:
            return target
        return int((start - target) * (1 - (step - first) / (last - first)) ** 3 + target)

    def init_state(self, model: PreTrainedModel, total_steps: int, steps_per_epoch: int) -> dict[str, Tensor]:
        from luthier.methods.modules.peft_files import injected_config
        from luthier.methods.modules.svd_linear import importance_state

        first, last = self.phases(total_steps)
        config = injected_config(model)
        config.total_step, config.tinit, config.tfinal = total_steps, first, total_steps - last  # type: ignore[attr-defined]
        return importance_state(model)

    def penalty(self, model: PreTrainedModel, batch: Batch) -> Tensor | None:
        from luthier.methods.modules.svd_linear import orthogonality

        return orthogonality(model) * self.orthogonal_weight if self.orthogonal_weight else None

    def after_step(self, model: PreTrainedModel, state: dict[str, Tensor], step: int) -> None:
        from luthier.methods.modules.peft_files import injected_config
        from luthier.methods.modules.svd_linear import (
            final_ranks,
            keep,
            note_importance,
            prune,
            settle_ranks,
            svd_layers,
        )

        total = injected_config(model).total_step  # type: ignore[attr-defined]
        first, last = self.phases(total)
        if step > last:
            kept = final_ranks(model)
            assert kept is not None, "the ranks became final in an earlier step, or came with the checkpoint"
            keep(model, kept)
            return
        if step < last:  # as in PEFT, the step of the last pruning decides by what was learned before it
            note_importance(model, state, self.beta1, self.beta2)
        if step == last or (step > first and step % self.deltaT == 0):
            kept = prune(model, state, self.budget(step, total, len(svd_layers(model))))
            if step == last:
                settle_ranks(model, kept)

    def report(self, model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, object]:
        """Return the final rank of every layer, and the steps between which values were pruned."""
        from luthier.methods.modules.peft_files import ADAPTER, injected_config
        from luthier.methods.modules.svd_linear import svd_layers

        first, last = self.phases(injected_config(model).total_step)  # type: ignore[attr-defined]
        ranks = {n: int((layer.lora_E[ADAPTER] != 0).sum()) for n, layer in svd_layers(model).items()}
        return {"pruned_after_step": first, "ranks_final_at_step": last, "ranks": ranks}

    def state_dict(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """Return P, Λ and Q (PEFT: lora_B, lora_E, lora_A), pruned values included."""
        from luthier.methods.modules.peft_files import adapter_tensors

        return adapter_tensors(model)

    def load_state_dict(self, model: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
        from luthier.methods.modules.peft_files import own_names

        super().load_state_dict(model, own_names(model, tensors))

    def save(self, model: PreTrainedModel, folder: Path, base: str) -> None:
        """Write the adapter as PEFT reads it: once the ranks are final, without the pruned rows."""
        from safetensors.torch import save_file

        from luthier.methods.modules.peft_files import injected_config, trained_modules, write_adapter
        from luthier.methods.modules.svd_linear import REST, final_ranks, split_pruned

        tensors, kept = self.state_dict(model), final_ranks(model)
        if kept is not None:
            tensors, rest = split_pruned(tensors, kept)
            save_file({n: t.contiguous().cpu() for n, t in rest.items()}, folder / REST)
        write_adapter(folder, injected_config(model), tensors, base, trained_modules(model))

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        import torch

        from luthier.methods.modules.peft_files import CONFIG, read_adapter
        from luthier.methods.modules.svd_linear import join_pruned, read_rest, settle_ranks

        tensors = read_adapter(folder)
        pattern = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("rank_pattern")
        kept = {n.removesuffix(".lora_E"): torch.tensor(mask) for n, mask in (pattern or {}).items()}
        settle_ranks(model, kept or None)
        self.load_state_dict(model, join_pruned(tensors, read_rest(folder), kept))

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:
        """Fold each update into its matrix and take PEFT's layers out again."""
        from luthier.methods.modules.peft_files import fold_in

        return fold_in(model)
