"""Regression: learn a number for a text, or for a pair of texts.

The head has one output, in the numbers' own units from the first step to the saved folder. What is measured in other
units is the error: it is divided by the root mean square s of the training rows' numbers, so that prices in thousands
and ratings up to five are learnt with the same learning rates. That is the same as training a head for y/s: its rate,
too, is multiplied by s, because Adam's steps have the size of the rate whatever the gradient's.

Shape legend: S sequences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import Problem
from luthier.objectives.base import DataForm, LanguageModel, LossSum, Objective

if TYPE_CHECKING:
    from luthier.core.batch import Batch


class Regress(Objective):
    """Learn to rate texts, or pairs of texts, by a number."""

    kind: Literal["regress"] = "regress"

    loss: Literal["mse", "mae", "huber"] = "mse"
    """mse punishes large errors most, mae all alike, huber small ones like mse and large ones like mae, so that wrong
    labels do less harm."""
    delta: float = Field(default=1.0, gt=0)
    """Where huber changes from squares to absolute values, in the units of the error (rescale: of the scaled one)."""
    rescale: bool = True
    """Divide errors by the root mean square of the training rows' numbers, so that learning rates fit numbers of any
    size. What the model says, and every measure but the loss, is in the numbers' own units either way."""

    title: ClassVar[str] = "Regression"
    summary: ClassVar[str] = "Learn a number for a text, with a new head of one output on the model."
    paper: ClassVar[str] = (
        "Huber 1964, Robust Estimation of a Location Parameter; Cer et al. 2017, STS, arXiv:1708.00055"
    )
    equation: ClassVar[str] = "((ŷ − y)/s)²,  |ŷ − y|/s, or Huber's mixture of both"
    when: ClassVar[str] = "Texts come with a measured quantity: stars, prices, similarity, reading level."
    when_not: ClassVar[str] = "The numbers are names of classes: classify."
    example_data: ClassVar[str] = "starter:moods"
    zh: ClassVar[dict[str, str]] = {
        "title": "回归",
        "summary": "为一段文本（或一对文本）学习一个数，模型上加一个单输出的新头。",
        "when": "文本带有可度量的数：星级、价格、相似度、阅读难度。",
        "when_not": "数字只是类别的名字：用 classify。",
        "loss": "mse 最重罚大误差；mae 一视同仁；huber 对小误差像 mse、对大误差像 mae，标注错误的危害较小。",
        "delta": "huber 从平方变为绝对值的位置，以误差的单位计（rescale 时为缩放后的误差）。",
        "rescale": "把误差除以训练数据数值的均方根，使学习率适合任何大小的数。无论如何，模型的输出和除损失外的所有指标都是原来的单位。",
    }
    data_form: ClassVar[DataForm] = "labelled"
    head: ClassVar[Literal["tokens", "classes", "value"]] = "value"

    def problems(self, facts: StageFacts) -> list[Problem]:
        if self.loss == "huber" or self.delta == type(self).model_fields["delta"].default:
            return []  # a recipe that a run has kept names every field
        what = f"delta has no effect: it belongs to loss: huber, and this is {self.loss}."
        return [Problem(what, "objective.delta", "remove it, or use loss: huber")]

    @property
    def scales(self) -> bool:
        """Whether errors are measured in units of the training rows' numbers."""
        return self.rescale

    def count(self, batch: Batch) -> float:
        """Return the number of sequences."""
        return float(len(batch.lengths))

    def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
        """Return the sum of the errors, and their squares and sizes in the numbers' own units for the log."""
        from torch.nn.functional import huber_loss

        error_S = model.class_logits(batch).float()[:, 0] - batch.extras["label"]
        scaled_S = error_S / batch.extras["scale"] if "scale" in batch.extras else error_S
        if self.loss == "mse":
            total = scaled_S.square().sum()
        elif self.loss == "mae":
            total = scaled_S.abs().sum()
        else:
            total = huber_loss(scaled_S, scaled_S.new_zeros(scaled_S.shape), reduction="sum", delta=self.delta)
        free_S = error_S.detach()
        return LossSum(total, {"mse": free_S.square().sum(), "mae": free_S.abs().sum()})
