"""BLEU over the whole set, as sacrebleu counts it; Chinese by characters."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.data.spec import DataSpec
from luthier.evaluate.tasks.base import Cases, Setting, Task, TaskResult, result_of

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel


class Bleu(Task):
    """Corpus BLEU of generated answers; Chinese by characters."""

    kind: Literal["bleu"] = "bleu"

    data: DataSpec
    """Rows of prompts and answers, written as the recipe's own `data`. A column `references` may hold further right
    answers."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """The longest answer. Without it: room enough for the longest reference."""
    stop: str | None = Field(default=None, min_length=1)
    """Cut answers at this text, such as a line break, for models that do not know when to stop."""

    title: ClassVar[str] = "BLEU"
    summary: ClassVar[str] = "Corpus BLEU of generated answers, by sacrebleu."
    paper: ClassVar[str] = "Papineni et al. 2002, BLEU, P02-1040; Post 2018, sacreBLEU, arXiv:1804.08771"
    metric: ClassVar[str] = "bleu"
    zh: ClassVar[dict[str, str]] = {
        "title": "BLEU",
        "summary": "生成回答的语料级 BLEU（sacrebleu）；中文按字。",
        "data": "提示与回答的数据，写法同配方的 data。references 列可放更多正确答案。",
        "max_new_tokens": "回答最长多少 token。不写则足够写下最长的参考答案。",
        "stop": "在此文本处截断回答（例如换行），用于不会自己停下的模型。",
    }

    def read(self) -> Cases:
        from luthier.evaluate.texts import require_bleu

        require_bleu()
        from luthier.evaluate.answers import read_exercises

        return self.chosen(read_exercises(self.data))

    def scored(self, model: LoadedModel, cases: Cases, setting: Setting) -> TaskResult:
        from luthier.evaluate.answers import Exercise, answers_of
        from luthier.evaluate.texts import bleu_statistics

        exercises = [item for item in cases.items if isinstance(item, Exercise)]
        answers = answers_of(model, exercises, self.max_new_tokens, self.stop)
        sums = bleu_statistics(answers, [exercise.references for exercise in exercises])
        return result_of(self.label, self.metric, sums, "bleu")
