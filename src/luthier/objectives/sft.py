"""Supervised fine-tuning: maximise the likelihood of the answers, given their prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.objectives.base import LanguageModel, LossSum, Objective

if TYPE_CHECKING:
    from luthier.core.batch import Batch


class Sft(Objective):
    """Train on the assistant's words in instructions and conversations."""

    kind: Literal["sft"] = "sft"

    title: ClassVar[str] = "Supervised fine-tuning"
    summary: ClassVar[str] = "Learn to answer as the assistant does in the data."
    paper: ClassVar[str] = "Wei et al. 2021, Finetuned Language Models Are Zero-Shot Learners, arXiv:2109.01652"
    when: ClassVar[str] = "There are prompts with the answers that are wanted; the first stage of nearly every model."
    when_not: ClassVar[str] = "It is only known which of two answers is better: dpo."
    zh: ClassVar[dict[str, str]] = {
        "title": "监督微调",
        "summary": "学习像数据中的助手那样回答。",
        "when": "有提示和想要的回答；几乎所有模型的第一个阶段。",
        "when_not": "只知道两个回答中哪个更好：用 dpo。",
    }
    is_plain_nll: ClassVar[bool] = True

    def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
        return LossSum(model.nll_sum(batch))
