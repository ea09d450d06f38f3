"""Distillation: learn what a larger model expects at every position, and not only the one token that the data have.

Hinton et al. 2015, arXiv:1503.02531. With the teacher p, the student q, and both at a temperature T:

    α·T²·D + (1 − α)·(−log q(y)),   D = KL(p‖q), KL(q‖p) or the Jensen–Shannon divergence

T² keeps the gradient's size as T grows. KL(p‖q) covers all that the teacher holds possible, KL(q‖p) settles on what it
holds likely (Gu et al. 2024, MiniLLM, arXiv:2306.08543). With `on_policy` some answers are the student's own, so that
it learns where it goes itself (generalised knowledge distillation, Agarwal et al. 2024, arXiv:2306.13649); such answers
are compared with the teacher alone and are no data to be copied.

Shape legend: M supervised positions, S sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self, cast

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import Problem
from luthier.objectives.base import LanguageModel, LossSum, Objective

if TYPE_CHECKING:
    from luthier.core.batch import Batch
    from luthier.models.causal import CausalModel

OWN = "own"
"""Name of the number that is 1 for a sequence whose answer the student wrote itself."""


class Distill(Objective):
    """Learn from a teacher's expectations at every word of the answers."""

    kind: Literal["distill"] = "distill"

    teacher: str = Field(min_length=1)
    """The model to learn from: a folder, a hub id, a run, or stage:NAME for an earlier stage of the same recipe. It
    must have the same tokenizer."""
    loss: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """forward_kl covers all that the teacher holds possible, reverse_kl settles on what it holds likely, jsd stands
    between them and is bounded."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides both models' logits; above 1 the unlikely words count for more."""
    alpha: float = Field(default=1.0, gt=0, le=1)
    """How much the teacher counts; the rest is the likelihood of the data's own words. 1 is the teacher alone."""
    on_policy: float = Field(default=0.0, ge=0, le=1)
    """The share of rows whose answers the student writes itself in each step, for the teacher to judge. Slower, because
    answers have to be generated."""
    max_new_tokens: int = Field(default=128, ge=1)
    """How long the student's own answers may be (on_policy only)."""

    title: ClassVar[str] = "Distillation"
    summary: ClassVar[str] = (
        "Learn what a teacher model expects at every word, on the data or on the student's own answers."
    )
    example: ClassVar[dict[str, object]] = {"teacher": "starter"}
    paper: ClassVar[str] = "Hinton et al. 2015, arXiv:1503.02531; Agarwal et al. 2024, arXiv:2306.13649"
    equation: ClassVar[str] = "α·T²·D(p, q) + (1 − α)·(−log q(y))"
    when: ClassVar[str] = "A small model is to do what a large one with the same tokenizer does."
    when_not: ClassVar[str] = "The tokenizers differ: let the teacher write answers, and use sft on them."
    zh: ClassVar[dict[str, str]] = {
        "title": "知识蒸馏",
        "summary": "在每个词元上学习教师模型的预期，可用数据，也可用学生自己的回答。",
        "when": "想让小模型做到同一分词器的大模型所做的事。",
        "when_not": "分词器不同：让教师写出回答，再用 sft。",
        "teacher": "教师模型：文件夹、hub 名称、一次运行，或 stage:名称（同一配方中较早的阶段）。分词器必须相同。",
        "loss": "forward_kl 覆盖教师认为可能的一切；reverse_kl 集中于教师认为最可能的；jsd 介于两者之间且有界。",
        "temperature": "两个模型的 logits 都除以它；大于 1 时，不太可能的词更受重视。",
        "alpha": "教师所占的比重，其余是数据本身的似然。1 表示只看教师。",
        "on_policy": "每一步中由学生自己写回答、再由教师评判的样本份额。需要生成回答，因而较慢。",
        "max_new_tokens": "学生自己的回答最长多少词元（仅 on_policy）。",
    }

    @property
    def learns_from(self) -> str | None:
        return self.teacher

    @property
    def own_answers(self) -> tuple[float, int]:
        return self.on_policy, self.max_new_tokens

    def located(self, find: Callable[[str], Path]) -> Self:
        """Return the objective with the teacher's absolute path; a hub id and `starter` stay as they are."""
        place = find(self.teacher)
        is_path = self.teacher != "starter" and place.exists()
        return self.model_copy(update={"teacher": str(place)}) if is_path else self

    def problems(self, facts: StageFacts) -> list[Problem]:
        if self.on_policy or self.max_new_tokens == type(self).model_fields["max_new_tokens"].default:
            return []  # a recipe that a run has kept names every field
        what = "max_new_tokens has no effect: without on_policy the student writes no answers."
        return [Problem(what, "objective.max_new_tokens", "remove it, or set on_policy: 0.5")]

    def loss_sum(self, model: LanguageModel, batch: Batch) -> LossSum:
        """Return the sum over supervised positions, and its parts for the log."""
        student = cast("CausalModel", model)
        assert student.teacher is not None, "the stage opens the teacher before anything is computed"
        beliefs = student.teacher.beliefs(batch)
        with student.sharing(batch):
            far = student.divergence_sum(batch, beliefs, self.loss, self.temperature)
            metrics = {"divergence": far.detach()}
            total = self.alpha * self.temperature**2 * far
            if self.alpha < 1.0:
                if OWN in batch.extras:
                    weights_M = batch.weights_M * (1.0 - batch.extras[OWN][batch.sequence_M])
                    nll = -(student.logps(batch) * weights_M).sum()
                else:
                    nll = student.nll_sum(batch)
                total = total + (1.0 - self.alpha) * nll
                metrics["nll"] = nll.detach()
        return LossSum(total, metrics)
