"""Dense head ("fine-tuning I"): new dense layers on a frozen model, and only they are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import Problem
from luthier.methods.base import Method, head_parameters, train_only

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class DenseHead(Method):
    """Train new dense layers on top of the frozen model."""

    kind: Literal["dense_head"] = "dense_head"

    hidden: tuple[int, ...] = (256,)
    """Sizes of the new layers between the model and the classes. One of a few hundred is usual; an empty list leaves a
    single linear layer."""
    activation: Literal["relu", "gelu", "tanh"] = "relu"
    """What stands between two layers."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout before each of the layers. More (0.3 to 0.5) for few rows."""
    pooling: Literal["last", "mean", "max", "cls"] | None = None
    """How a sequence becomes one vector: its last token, the mean or the maximum over its tokens, or its first token.
    Without it: as the architecture does it."""

    title: ClassVar[str] = "Dense head"
    summary: ClassVar[str] = "Put new dense layers on the frozen model and train only them."
    principle: ClassVar[str] = (
        "Where a single matrix cannot part the classes, a small network on the frozen model's features can. The backbone "
        "is run once for each row, its dropout off; what is trained is a network of a few layers. Also called "
        "fine-tuning I; fine-tuning II goes on with method full, which trains everything."
    )
    equation: ClassVar[str] = "p(y | x) = softmax(W₂ σ(W₁ f(x) + b₁) + b₂),  f frozen"
    paper: ClassVar[str] = "Peters et al. 2019, To Tune or Not to Tune?, arXiv:1903.05987"
    moves: ClassVar[str] = "the new layers: Σ (in + 1) · out numbers"
    typical_share: ClassVar[str] = "0.01 to 1 %"
    when: ClassVar[str] = "Classes that are no straight cut through the features; some thousand rows; a frozen model."
    when_not: ClassVar[str] = "Few rows (it overfits: feature_extraction), or a plain model to give away (lora, full)."
    zh: ClassVar[dict[str, str]] = {
        "title": "新增全连接层（微调 I）",
        "summary": "在冻结的模型上加新的全连接层，只训练这些层。",
        "principle": "单个矩阵分不开的类别，可以由冻结特征之上的小网络分开。主干网络（关闭 dropout）对每行只运行一次；训练的只是几层的小网络。也称微调 I；微调 II 则接着用 full 训练全部参数。",
        "moves": "新增的层：Σ（输入 + 1）· 输出个数",
        "when": "类别不是特征空间中的一刀切；有数千行数据；模型需要冻结。",
        "when_not": "数据很少（会过拟合，用 feature_extraction），或需要交付普通模型（lora、full）。",
        "hidden": "模型与类别之间各新增层的大小。通常一层、几百维；空列表表示只有一个线性层。",
        "activation": "两层之间的激活函数。",
        "dropout": "每层之前的 dropout。数据少时取 0.3 到 0.5。",
        "pooling": "如何把一个序列变成一个向量：最后一个词元、所有词元的平均或最大值、第一个词元。不填则按模型结构自身的做法。",
    }
    default_learning_rate: ClassVar[float] = 1e-3
    example_objective: ClassVar[str] = "classify"
    unmergeable: ClassVar[str] = "no class of transformers has these layers above its backbone"

    @property
    def keeps_features(self) -> bool:
        return True

    def problems(self, facts: StageFacts) -> list[Problem]:
        from luthier.methods.modules.class_heads import needs_classes

        found = needs_classes(facts, self.kind)
        if any(size < 1 for size in self.hidden):
            found.append(Problem("A layer needs at least one number.", "method.hidden", "write e.g. hidden: [256]"))
        return found

    def apply(self, model: PreTrainedModel) -> None:
        from luthier.methods.modules.class_heads import quiet_backbone, require_classifier, settled_pooling
        from luthier.models.pooling import PooledHead, replace_head

        require_classifier(model, self.kind)
        replace_head(model, PooledHead(settled_pooling(model, self.pooling), self._layers(model)))
        train_only(model, head_parameters(model))
        quiet_backbone(model)

    def count(self, model: PreTrainedModel) -> int:
        from luthier.methods.modules.class_heads import beyond_own_head, on_meta, require_classifier

        require_classifier(model, self.kind)
        with on_meta():
            return beyond_own_head(model, self._layers(model))

    def _layers(self, model: PreTrainedModel) -> list[nn.Module]:
        from luthier.methods.modules.class_heads import classes_of, head_width, settled_pooling
        from luthier.models.pooling import dense_layers

        width = head_width(model, settled_pooling(model, self.pooling))
        return dense_layers(width, self.hidden, classes_of(model), self.activation, self.dropout)
