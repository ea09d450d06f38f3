"""Token F1: how many words answer and reference share, as SQuAD counts them; Chinese by characters."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.data.spec import DataSpec
from luthier.evaluate.tasks.base import Cases, Setting, Task, TaskResult, result_of

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel


class F1(Task):
    """Words that generated answers share with a reference; Chinese by characters."""

    kind: Literal["f1"] = "f1"

    data: DataSpec
    """Rows of prompts and answers, written as the recipe's own `data`. A column `references` may hold further right
    answers."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """The longest answer. Without it: room enough for the longest reference."""
    stop: str | None = Field(default=None, min_length=1)
    """Cut answers at this text, such as a line break, for models that do not know when to stop."""

    title: ClassVar[str] = "Token F1"
    summary: ClassVar[str] = "The mean F1 of the words that an answer shares with its best reference."
    paper: ClassVar[str] = "Rajpurkar et al. 2016, SQuAD, arXiv:1606.05250"
    metric: ClassVar[str] = "f1"
    zh: ClassVar[dict[str, str]] = {
        "title": "词 F1",
        "summary": "回答与最佳参考答案共有词的平均 F1；中文按字。",
        "data": "提示与回答的数据，写法同配方的 data。references 列可放更多正确答案。",
        "max_new_tokens": "回答最长多少 token。不写则足够写下最长的参考答案。",
        "stop": "在此文本处截断回答（例如换行），用于不会自己停下的模型。",
    }

    def read(self) -> Cases:
        from luthier.evaluate.answers import read_exercises

        return self.chosen(read_exercises(self.data))

    def scored(self, model: LoadedModel, cases: Cases, setting: Setting) -> TaskResult:
        from luthier.evaluate.answers import Exercise, answers_of
        from luthier.evaluate.texts import token_f1

        exercises = [item for item in cases.items if isinstance(item, Exercise)]
        answers = answers_of(model, exercises, self.max_new_tokens, self.stop)
        values = [max(token_f1(a, r) for r in e.references) for a, e in zip(answers, exercises)]
        return result_of(self.label, self.metric, np.array(values))
