"""Feature extraction: the model as a frozen encoder, computed once for each row; only a head of classes is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.core.component import StageFacts
from luthier.core.errors import Problem
from luthier.methods.base import Method, head_parameters, train_only

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class FeatureExtraction(Method):
    """Train a classifier's head on features that are computed once."""

    kind: Literal["feature_extraction"] = "feature_extraction"

    pooling: Literal["last", "mean", "max", "cls"] | None = None
    """How a sequence becomes one vector: its last token, the mean or the maximum over its tokens, or its first token.
    Without it: as the architecture does it, so that the result is a plain model (last for decoders, the pooler or the
    first token for encoders). mean often does better with decoders that are not fine-tuned."""
    cache: bool = True
    """Compute the features once and keep them in the run's folder (4 bytes times the hidden size for each row). false
    runs the model in every epoch: the same result, slower."""

    title: ClassVar[str] = "Feature extraction"
    summary: ClassVar[str] = "Use the frozen model as an encoder, computed once; train only a classifier's head."
    principle: ClassVar[str] = (
        "A pretrained model already turns text into vectors in which classes lie apart. The backbone is run once over all "
        "rows, its dropout off, and the vectors are kept; training then sees vectors alone and takes seconds."
    )
    equation: ClassVar[str] = "f_i = pool(h_θ(x_i)) once,  p(y | x_i) = softmax(W f_i + b),  only W and b are trained"
    paper: ClassVar[str] = "Peters et al. 2019, To Tune or Not to Tune?, arXiv:1903.05987"
    moves: ClassVar[str] = "the classifier's head"
    typical_share: ClassVar[str] = "under 0.01 %"
    when: ClassVar[str] = (
        "A quick and cheap baseline, few rows, many classifiers on one encoder, a model too large to train."
    )
    when_not: ClassVar[str] = (
        "The classes need what the model does not tell apart yet: fine-tune it (lora, ulmfit, full)."
    )
    zh: ClassVar[dict[str, str]] = {
        "title": "特征提取",
        "summary": "把冻结的模型当作编码器，只计算一次；只训练分类头。",
        "principle": "预训练模型已经能把文本变成向量，不同类别在向量空间中彼此分开。主干网络（关闭 dropout）对全部数据只运行一次并保存向量；之后训练只用向量，几秒即可完成。",
        "moves": "分类头",
        "when": "快速廉价的基线、数据少、一个编码器带多个分类器、模型大到无法训练时。",
        "when_not": "类别取决于模型尚不能区分的信息时：请微调模型（lora、ulmfit、full）。",
        "pooling": "如何把一个序列变成一个向量：最后一个词元、所有词元的平均或最大值、第一个词元。不填则按模型结构自身的做法，结果仍是普通模型。未经微调的解码器用 mean 往往更好。",
        "cache": "特征只计算一次并保存在运行目录中（每行占 4 字节 × 隐层维度）。设为 false 则每一轮都重新运行模型：结果相同，但更慢。",
    }
    default_learning_rate: ClassVar[float] = 1e-3
    example_objective: ClassVar[str] = "classify"

    @property
    def keeps_features(self) -> bool:
        return self.cache

    def problems(self, facts: StageFacts) -> list[Problem]:
        from luthier.methods.modules.class_heads import needs_classes

        return needs_classes(facts, self.kind)

    def apply(self, model: PreTrainedModel) -> None:
        from luthier.methods.modules.class_heads import quiet_backbone, require_classifier, settled_pooling
        from luthier.models.pooling import PooledHead, replace_head

        require_classifier(model, self.kind)
        layers = self._layers(model)
        if layers:
            replace_head(model, PooledHead(settled_pooling(model, self.pooling), layers))
        train_only(model, head_parameters(model))
        quiet_backbone(model)

    def count(self, model: PreTrainedModel) -> int:
        from luthier.methods.modules.class_heads import beyond_own_head, on_meta, require_classifier

        require_classifier(model, self.kind)
        with on_meta():
            layers = self._layers(model)
        return beyond_own_head(model, layers) if layers else 0

    def merge(self, model: PreTrainedModel) -> PreTrainedModel:
        from luthier.methods.modules.class_heads import refuse_merge

        refuse_merge(model, self.title)
        return model

    def _layers(self, model: PreTrainedModel) -> list[nn.Module]:
        """Return the layers of a new head, or none where the model's own pools as asked."""
        from torch import nn

        from luthier.methods.modules.class_heads import classes_of, head_width, settled_pooling
        from luthier.models.pooling import own_pooling

        own, pooling = own_pooling(model), settled_pooling(model, self.pooling)
        if pooling == own != "cls":
            return []
        return [nn.Linear(head_width(model, pooling), classes_of(model))]
