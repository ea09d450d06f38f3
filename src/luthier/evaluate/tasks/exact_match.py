"""Exact match: the share of answers that equal a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.data.spec import DataSpec
from luthier.evaluate.tasks.base import Cases, Setting, Task, TaskResult, result_of

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel


class ExactMatch(Task):
    """Generated answers that equal a reference, surrounding white space aside."""

    kind: Literal["exact_match"] = "exact_match"

    data: DataSpec
    """Rows of prompts and answers, written as the recipe's own `data`. A column `references` may hold further right
    answers."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """The longest answer. Without it: room enough for the longest reference."""
    stop: str | None = Field(default=None, min_length=1)
    """Cut answers at this text, such as a line break, for models that do not know when to stop."""

    title: ClassVar[str] = "Exact match"
    summary: ClassVar[str] = "The share of generated answers that equal a reference."
    paper: ClassVar[str] = ""
    metric: ClassVar[str] = "exact_match"
    zh: ClassVar[dict[str, str]] = {
        "title": "完全匹配",
        "summary": "与参考答案完全相同的回答比例。",
        "data": "提示与回答的数据，写法同配方的 data。references 列可放更多正确答案。",
        "max_new_tokens": "回答最长多少 token。不写则足够写下最长的参考答案。",
        "stop": "在此文本处截断回答（例如换行），用于不会自己停下的模型。",
    }

    def read(self) -> Cases:
        from luthier.evaluate.answers import read_exercises

        return self.chosen(read_exercises(self.data))

    def scored(self, model: LoadedModel, cases: Cases, setting: Setting) -> TaskResult:
        from luthier.evaluate.answers import Exercise, answers_of

        exercises = [item for item in cases.items if isinstance(item, Exercise)]
        answers = answers_of(model, exercises, self.max_new_tokens, self.stop)
        hits = [float(a.strip() in {r.strip() for r in e.references}) for a, e in zip(answers, exercises)]
        return result_of(self.label, self.metric, np.array(hits))
