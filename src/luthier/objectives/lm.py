"""Language modelling: maximise the likelihood of every token of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.objectives.base import DataForm, LanguageModel, LossSum, Objective

if TYPE_CHECKING:
    from luthier.core.batch import Batch


class Lm(Objective):
    """Train on every token of the text (pre-training, continued pre-training)."""

    kind: Literal["lm"] = "lm"

    title: ClassVar[str] = "Language modelling"
    summary: ClassVar[str] = "Learn to continue text: every token is a target."
    paper: ClassVar[str] = "Radford et al. 2019, Language Models are Unsupervised Multitask Learners"
    when: ClassVar[str] = "The model is to know a field or a language: raw text, before it learns to answer."
    when_not: ClassVar[str] = "The model is to answer: text alone does not teach it when to stop."
    zh: ClassVar[dict[str, str]] = {
        "title": "语言建模",
        "summary": "学习续写文本：每个词元都是目标。",
        "when": "让模型先熟悉某个领域或语言：用原始文本，在学会回答之前。",
        "when_not": "要让模型回答问题：只有文本教不会它何时停下。",
    }
    data_form: ClassVar[DataForm] = "text"
    example_data: ClassVar[str] = "starter:stories"
    is_plain_nll: ClassVar[bool] = True

    def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
        return LossSum(model.nll_sum(batch))
