"""Multiple choice: the choice that is likeliest counts as the answer, as lm-evaluation-harness scores it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.data.spec import DataSpec
from luthier.evaluate.tasks.base import Cases, Setting, Task, TaskResult, result_of

if TYPE_CHECKING:
    from luthier.evaluate.choices import Choices
    from luthier.evaluate.likelihood import Likelihood, Query
    from luthier.models.loaded import LoadedModel


class MultipleChoice(Task):
    """Questions with choices, of which the model's likeliest is its answer."""

    kind: Literal["multiple_choice"] = "multiple_choice"

    data: DataSpec
    """The questions: {question, choices, answer} with the answer's number from 0, its letter or its text, and a group
    if there is one. Files of MMLU, ARC, HellaSwag, PIQA, TruthfulQA and LLM-Adapters are recognised as they are."""
    normalized: bool = False
    """Let the likelihood per character decide, so that long choices have a fair chance. Both shares are in the
    details."""
    letters: bool | None = None
    """List the choices in the question and ask for their letters. Without it: as the file is known for (MMLU does)."""
    shots: int = Field(default=0, ge=0)
    """Put so many solved questions of the same group before each."""
    chat: bool | None = None
    """Ask in the model's chat template. Without it: only questions that are written as instructions."""

    title: ClassVar[str] = "Multiple choice"
    summary: ClassVar[str] = "The share of questions whose right choice is the likeliest."
    paper: ClassVar[str] = "scored as by lm-evaluation-harness (Biderman et al. 2024, arXiv:2405.14782)"
    metric: ClassVar[str] = "accuracy"
    zh: ClassVar[dict[str, str]] = {
        "title": "多项选择",
        "summary": "正确选项为最可能选项的题目比例。",
        "data": "题目：{question, choices, answer}，answer 为从 0 数起的序号、字母或选项原文，可带分组。MMLU、ARC、HellaSwag、PIQA、TruthfulQA 与 LLM-Adapters 的文件可直接识别。",
        "normalized": "按每个字符的似然决定，使长选项不吃亏。两种比例都在 details 中。",
        "letters": "在题目中列出选项并询问字母。不写则按该文件的惯例（MMLU 如此）。",
        "shots": "每题之前放同组的若干道已解题目。",
        "chat": "用模型的对话模板提问。不写则只用于以指令写成的题目。",
    }

    def read(self) -> Cases:
        from luthier.evaluate.choices import Choices, read_choices, with_shots

        cases = read_choices(self.data, self.letters)
        items = [item for item in cases.items if isinstance(item, Choices)]
        if self.shots:
            items = with_shots(items, self.shots)
        return self.chosen(Cases(tuple(items), cases.files, cases.layout, cases.notes))

    def scored(self, model: LoadedModel, cases: Cases, setting: Setting) -> TaskResult:
        from luthier.evaluate.choices import Choices
        from luthier.evaluate.likelihood import likelihoods

        items = [item for item in cases.items if isinstance(item, Choices)]
        found = likelihoods(model, self._queries(model, items), setting.cut, setting.max_length)
        plain = np.array([_hit(item, row, False) for item, row in zip(items, found)])
        fair = np.array([_hit(item, row, True) for item, row in zip(items, found)])
        chances = np.array([1 / len(item.choices) for item in items])
        groups = [item.group for item in items]
        details: dict[str, object] = {"acc": float(plain.mean()), "acc_norm": float(fair.mean())}
        cut = sum(answer.is_cut for row in found for answer in row)
        details |= {"cut_at_the_beginning": cut} if cut else {}
        values = fair if self.normalized else plain
        return result_of(self.label, self.metric, values, chances=chances, groups=groups, details=details)

    def _queries(self, model: LoadedModel, items: list[Choices]) -> list[Query]:
        from luthier.evaluate.likelihood import Splitter, chat_queries

        plain = [item for item in items if not (self.chat if self.chat is not None else item.is_instruction)]
        contexts = [item.introduction + item.context for item in plain]
        found = dict(zip(plain, Splitter(model.tokenizer).queries(contexts, [item.endings for item in plain])))
        asked = [item for item in items if item not in found]
        questions = [item.introduction + (item.context if self.shots else item.question) for item in asked]
        instructions = all(item.is_instruction for item in asked)
        found |= dict(zip(asked, chat_queries(model.tokenizer, questions, [i.choices for i in asked], instructions)))
        return [found[item] for item in items]


def _hit(item: Choices, row: list[Likelihood], normalized: bool) -> float:
    sizes = [max(len(choice), 1) if normalized else 1 for choice in item.choices]
    scores = [answer.logp / size for answer, size in zip(row, sizes)]
    return float(int(np.argmax(scores)) == item.gold)
