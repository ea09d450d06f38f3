"""ROUGE: how much of a reference an answer repeats; Chinese by characters."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.data.spec import DataSpec
from luthier.evaluate.tasks.base import Cases, Setting, Task, TaskResult, result_of

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel


class Rouge(Task):
    """Overlap of generated answers with a reference: ROUGE-L, with ROUGE-1 and ROUGE-2 in the details."""

    kind: Literal["rouge"] = "rouge"

    data: DataSpec
    """Rows of prompts and answers, written as the recipe's own `data`. A column `references` may hold further right
    answers."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """The longest answer. Without it: room enough for the longest reference."""
    stop: str | None = Field(default=None, min_length=1)
    """Cut answers at this text, such as a line break, for models that do not know when to stop."""

    title: ClassVar[str] = "ROUGE"
    summary: ClassVar[str] = "The mean F-measure of the longest common subsequence of answer and reference."
    paper: ClassVar[str] = "Lin 2004, ROUGE, W04-1013"
    metric: ClassVar[str] = "rouge"
    zh: ClassVar[dict[str, str]] = {
        "title": "ROUGE",
        "summary": "回答与参考答案最长公共子序列的平均 F 值；中文按字。",
        "data": "提示与回答的数据，写法同配方的 data。references 列可放更多正确答案。",
        "max_new_tokens": "回答最长多少 token。不写则足够写下最长的参考答案。",
        "stop": "在此文本处截断回答（例如换行），用于不会自己停下的模型。",
    }

    def read(self) -> Cases:
        from luthier.evaluate.texts import require_rouge

        require_rouge()
        from luthier.evaluate.answers import read_exercises

        return self.chosen(read_exercises(self.data))

    def scored(self, model: LoadedModel, cases: Cases, setting: Setting) -> TaskResult:
        from luthier.evaluate.answers import Exercise, answers_of
        from luthier.evaluate.texts import rouge_scores

        exercises = [item for item in cases.items if isinstance(item, Exercise)]
        answers = answers_of(model, exercises, self.max_new_tokens, self.stop)
        found = rouge_scores(answers, [exercise.references for exercise in exercises])
        details = {name: float(values.mean()) for name, values in found.items()}
        return result_of(self.label, self.metric, found["rougeL"], details=details)
