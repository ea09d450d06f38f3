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
    zh: ClassVar[dict[str, str]] = {"title": "监督微调", "summary": "学习像数据中的助手那样回答。"}
    is_plain_nll: ClassVar[bool] = True

    def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
        return LossSum(model.nll_sum(batch))
