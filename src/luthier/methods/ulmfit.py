"""ULMFiT: fine-tune a language model in stages, gently (Howard & Ruder 2018, arXiv:1801.06146).

Discriminative rates (η of a layer group is η of the one above / 2.6), slanted triangular rates (`schedule:
slanted_triangular`), gradual unfreezing and concat pooling of a classifier. The paper's head normalises its batches;
here it normalises each vector (LayerNorm), because statistics over a batch would depend on how a step is cut.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.methods.base import Method, head_parameters, train_only
from luthier.models.heads import is_classifier
from luthier.models.layers import layer_groups

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_PERIOD = "steps_per_group"


class Ulmfit(Method):
    """Train every parameter, upper layers faster than lower ones, and unfreeze a classifier from the top."""

    kind: Literal["ulmfit"] = "ulmfit"

    decay: float = Field(default=2.6, ge=1)
    """The rate of a layer group is that of the group above divided by this. 2.6 is the paper's; 1 gives all the same."""
    groups: int = Field(default=3, ge=1)
    """Into how many layer groups the blocks are put, besides the embeddings and the head. The paper's model had three
    layers; with one group for each of 24 blocks the lowest would not move at all."""
    gradual_unfreezing: bool = True
    """Train a classifier's head alone in the first epoch, then one more group from the top in each further epoch (or
    faster, where the run has fewer epochs than groups). Language models are trained all at once, as in the paper."""
    concat_pooling: bool = True
    """Let a classifier see the last token's state, the maximum and the mean over all tokens. false keeps the model's
    own head, and the result is a plain model that transformers opens."""
    hidden: int = Field(default=50, ge=1)
    """Size of the layer between the pooled states and the classes (with concat_pooling)."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout in the new head (with concat_pooling)."""

    title: ClassVar[str] = "ULMFiT"
    summary: ClassVar[str] = (
        "Fine-tune everything, upper layers faster, unfrozen from the top; for classifiers in three stages."
    )
    principle: ClassVar[str] = (
        "Lower layers hold what all texts share and should move little; upper layers hold what is special to a task. So "
        "each group of layers learns 2.6 times as slowly as the one above it, the rate rises quickly and falls slowly, "
        "and a classifier's layers are set free one group per epoch from the top, lest the new head's first gradients "
        "wash the pretrained weights away. In three stages: a general language model, the language of the target texts "
        "(objective lm), the classifier (objective classify)."
    )
    equation: ClassVar[str] = (
        "η^{l−1} = η^l / 2.6;  h_c = [h_T, maxpool(H), meanpool(H)];  group L−e is freed in epoch e"
    )
    paper: ClassVar[str] = "Howard & Ruder 2018, Universal Language Model Fine-tuning, arXiv:1801.06146"
    moves: ClassVar[str] = "all parameters, at different rates"
    typical_share: ClassVar[str] = "100 %"
    when: ClassVar[str] = (
        "Classification with few labels and many unlabelled texts of the same kind; small models that fit whole."
    )
    when_not: ClassVar[str] = "Large models (each variant is a whole model), instructions and chat (lora, full)."
    zh: ClassVar[dict[str, str]] = {
        "title": "ULMFiT（分阶段语言模型微调）",
        "summary": "训练全部参数，高层学得更快，并从顶层逐步解冻；分类任务分三阶段。",
        "principle": "低层保存所有文本共有的知识，应少动；高层与任务有关。因此每组层的学习率是上一组的 1/2.6，学习率先快升后慢降；分类器从顶层起每轮解冻一组，以免新分类头最初的梯度冲掉预训练权重。三个阶段：通用语言模型、目标文本的语言模型（objective lm）、分类器（objective classify）。",
        "moves": "全部参数，学习率各层不同",
        "when": "标注少而同类无标注文本多的分类任务；能整体训练的小模型。",
        "when_not": "大模型（每个变体都是完整模型）、指令与对话任务（用 lora、full）。",
        "decay": "每组层的学习率等于上一组除以该值。论文取 2.6；取 1 则各组相同。",
        "groups": "除词嵌入和分类头之外，把各层分成几组。论文的模型有三层；若 24 层各成一组，最低层几乎不动。",
        "gradual_unfreezing": "分类时第一轮只训练分类头，之后每轮从顶层多解冻一组（轮数少于组数时会更快）。语言模型阶段按论文一次全部训练。",
        "concat_pooling": "分类头同时看到最后一个词元的状态、所有词元的最大值与平均值。设为 false 则保留模型自身的分类头，结果是 transformers 可直接打开的普通模型。",
        "hidden": "池化状态与类别之间那一层的大小（concat_pooling 时）。",
        "dropout": "新分类头中的 dropout（concat_pooling 时）。",
    }
    default_learning_rate: ClassVar[float] = 1e-3
    default_schedule: ClassVar[str] = "slanted_triangular"
    freezes_most: ClassVar[bool] = False

    def apply(self, model: PreTrainedModel) -> None:
        from luthier.models.pooling import PooledHead, replace_head, unread_parameters

        layers = self._layers(model)
        if layers:
            replace_head(model, PooledHead("concat", layers))
        unread = set(unread_parameters(model))
        train_only(model, [n for n, _ in model.named_parameters() if n not in unread])

    def count(self, model: PreTrainedModel) -> int:
        from luthier.methods.modules.class_heads import beyond_own_head, on_meta

        head = set(head_parameters(model))
        pooler = f"{model.base_model_prefix}.pooler."
        with on_meta():
            layers = self._layers(model)
        body = {n: p.numel() for n, p in model.named_parameters() if n not in head}
        if not layers:
            return sum(body.values())
        return sum(v for n, v in body.items() if not n.startswith(pooler)) + beyond_own_head(model, layers)

    def param_groups(self, model: PreTrainedModel, weight_decay: float) -> list[dict[str, object]]:
        """Return optimizer groups, each layer group with its share of the rate; vectors do not decay."""
        parameters = dict(model.named_parameters())
        groups = self._groups(model)
        found: list[dict[str, object]] = []
        for index, names in enumerate(groups):
            scale = self.decay ** (index + 1 - len(groups))
            params = [parameters[n] for n in names]
            for several, decays in (
                ([p for p in params if p.ndim >= 2], True),
                ([p for p in params if p.ndim < 2], False),
            ):
                if several:
                    decay = weight_decay if decays else 0.0
                    found.append({"params": several, "weight_decay": decay, "lr_scale": scale})
        return found

    def init_state(self, model: PreTrainedModel, total_steps: int, steps_per_epoch: int) -> dict[str, Tensor]:
        import torch

        if not (self.gradual_unfreezing and is_classifier(model)):
            return {}
        period = min(steps_per_epoch, total_steps // len(self._groups(model)))
        return {_PERIOD: torch.tensor(max(1, period))}

    def before_step(self, model: PreTrainedModel, state: dict[str, Tensor], step: int) -> None:
        """Freeze what is not free yet, for this step alone."""
        self._set_frozen(model, state, step, is_frozen=True)

    def after_step(self, model: PreTrainedModel, state: dict[str, Tensor], step: int) -> None:
        """Free again what was frozen for the step."""
        self._set_frozen(model, state, step - 1, is_frozen=False)

    def save(self, model: PreTrainedModel, folder: Path, base: str) -> None:
        """Write a complete Hugging Face folder; with a head that transformers lacks, the tensors and a card."""
        from luthier.models.pooling import pooled_head

        if pooled_head(model) is None:
            model.save_pretrained(folder)
        else:
            super().save(model, folder, base)

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        from luthier.methods.full import read_whole_model
        from luthier.models.pooling import pooled_head

        if pooled_head(model) is None:
            self.load_state_dict(model, read_whole_model(model, folder))
        else:
            super().load(model, folder)

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:
        from luthier.methods.modules.class_heads import refuse_merge

        refuse_merge(model, self.title)
        return model

    def _layers(self, model: PreTrainedModel) -> list[nn.Module]:
        """Return the layers of a classifier's new head; none where the model keeps its own."""
        from torch import nn

        from luthier.methods.modules.class_heads import classes_of, head_width
        from luthier.models.pooling import dense_layers

        if not (self.concat_pooling and is_classifier(model)):
            return []
        width = head_width(model, "concat")
        return [nn.LayerNorm(width), *dense_layers(width, (self.hidden,), classes_of(model), "relu", self.dropout)]

    def _groups(self, model: PreTrainedModel) -> list[list[str]]:
        """Return the trained parameters from the bottom up: embeddings, groups of blocks, head."""
        from luthier.models.pooling import unread_parameters

        found = layer_groups(model)
        head = found.head if not is_classifier(model) else head_parameters(model)
        unread = {*unread_parameters(model), *head}
        count = min(self.groups, len(found.blocks))
        borders = [round(i * len(found.blocks) / count) for i in range(count + 1)]
        blocks = [[n for block in found.blocks[a:b] for n in block] for a, b in itertools.pairwise(borders)]
        blocks[-1] += [n for n in found.final if n not in unread]
        return [group for group in (list(dict.fromkeys(found.embeddings)), *blocks, head) if group]

    def _set_frozen(self, model: PreTrainedModel, state: dict[str, Tensor], step: int, is_frozen: bool) -> None:
        if _PERIOD not in state:
            return
        groups = self._groups(model)
        below = groups[: max(0, len(groups) - 1 - step // int(state[_PERIOD]))]
        parameters = dict(model.named_parameters())
        for name in (n for group in below for n in group):
            parameters[name].requires_grad_(not is_frozen)
