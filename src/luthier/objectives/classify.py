"""Classification: maximise the likelihood of the right class of a text, or of a pair of texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from luthier.core.component import StageFacts
from luthier.core.errors import Problem
from luthier.data.labelled import several
from luthier.objectives.base import DataForm, LanguageModel, LossSum, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.batch import Batch


class Classify(Objective):
    """Learn to tell classes apart: one label for each text or pair of texts, or several where rows have several."""

    kind: Literal["classify"] = "classify"

    names: dict[str, str] = Field(default_factory=dict)
    """What labels are called, when the data hold numbers: {0: negative, 1: positive}. The names go into the model's
    config."""
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    """How much a row of each class counts in training: balanced makes rare classes count as much as frequent ones; a
    list gives one number for each class, in their order. Where rows have several labels, it is the rows that have a
    class which count so much for it. Measurements always count every row once."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes (Szegedy et al. 2015, arXiv:1512.00567). 0.1 keeps the model
    from being too sure where labels are noisy; measurements are taken without it."""

    title: ClassVar[str] = "Classification"
    summary: ClassVar[str] = "Learn the class of a text, with a new head on the model."
    paper: ClassVar[str] = "Howard & Ruder 2018, Universal Language Model Fine-tuning, arXiv:1801.06146"
    when: ClassVar[str] = "Each text belongs to a class, and rows with their classes are there."
    when_not: ClassVar[str] = "Answers are to be written in words: sft."
    example_data: ClassVar[str] = "starter:feelings"
    zh: ClassVar[dict[str, str]] = {
        "title": "文本分类",
        "summary": "在模型上加一个新的分类头，学习文本（或文本对）的类别。",
        "when": "每段文本属于某个类别，并且有带类别的数据。",
        "when_not": "答案需要写成文字：用 sft。",
        "names": "当数据中的标签是数字时，给它们起的名字：{0: 负面, 1: 正面}。名字会写进模型的 config。",
        "class_weights": "训练时每个类别的样本各算多少：balanced 让稀少的类别与常见的类别同样重要；也可按类别顺序给出一列数。一个样本可有多个标签时，指含有该类别的样本对该类别算多少。评测时每个样本总是只算一次。",
        "label_smoothing": "把目标概率的这一份额均匀分给所有类别。标签有噪声时取 0.1 可避免模型过于自信；评测时不使用。",
    }
    data_form: ClassVar[DataForm] = "labelled"
    head: ClassVar[Literal["tokens", "classes", "value"]] = "classes"

    @field_validator("names", mode="before")
    @classmethod
    def _keys_are_words(cls, value: object) -> object:
        # YAML reads 0 as a number and `yes` as true; both are labels here.
        words = {True: "true", False: "false"}
        if not isinstance(value, dict):
            return value
        return {words[k] if isinstance(k, bool) else str(k): v for k, v in value.items()}

    def problems(self, facts: StageFacts) -> list[Problem]:
        weights = self.class_weights if isinstance(self.class_weights, tuple) else ()
        if any(not math.isfinite(w) or w < 0 for w in weights) or (weights and not any(weights)):
            remedy = "give numbers of at least 0, not all 0, or balanced"
            what = "class_weights holds a number that cannot weigh a class."
            return [Problem(what, "objective.class_weights", remedy)]
        if len(set(self.names.values())) < len(self.names):
            return [Problem("Two labels have the same name.", "objective.names", "give each label a name of its own")]
        return []

    def weights_for(self, balanced: Sequence[float]) -> tuple[float, ...]:
        """Return the weight of each class, or nothing where all count the same.

        Args:
            balanced: the weights that make all classes count the same.
        """
        if self.class_weights == "balanced":
            return tuple(balanced)
        return tuple(self.class_weights or ())

    def count(self, batch: Batch) -> float:
        """Return the number of sequences, whatever their weights."""
        return float(len(batch.lengths))

    def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
        """Return Σ w·(−log p of the right class), and how many classes were right.

        Where rows may have several classes: the mean over classes of −log p of "applies" or "applies not" (the loss of
        transformers' problem_type multi_label_classification), and how many rows are right in every class.
        """
        import torch
        from torch.nn.functional import cross_entropy

        logits_SC = model.class_logits(batch).float()
        if several(0) in batch.extras:
            return self._several(logits_SC, batch)
        label_S = batch.extras["label"].long()
        # Smoothing shapes the gradient; a measurement, taken without gradients, is the plain log-likelihood.
        smoothing = self.label_smoothing if torch.is_grad_enabled() else 0.0
        nll_S = cross_entropy(logits_SC, label_S, reduction="none", label_smoothing=smoothing)
        if "weight" in batch.extras:
            nll_S = nll_S * batch.extras["weight"]
        right = (logits_SC.detach().argmax(-1) == label_S).sum()
        return LossSum(nll_S.sum(), {"accuracy": right})

    def _several(self, logits_SC: Tensor, batch: Batch) -> LossSum:
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        count = logits_SC.shape[1]
        applies_SC = torch.stack([batch.extras[several(c)] for c in range(count)], dim=1)
        smoothing = self.label_smoothing if torch.is_grad_enabled() else 0.0
        target_SC = applies_SC * (1.0 - smoothing) + smoothing / 2
        nll_SC = binary_cross_entropy_with_logits(logits_SC, target_SC, reduction="none")
        if several(0, "weight") in batch.extras:
            nll_SC = nll_SC * torch.stack([batch.extras[several(c, "weight")] for c in range(count)], dim=1)
        right = ((logits_SC.detach() > 0) == (applies_SC > 0)).all(1).sum()
        return LossSum(nll_SC.mean(1).sum(), {"accuracy": right})
