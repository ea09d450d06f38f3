"""Classification: which class a text belongs to, by a classifier's head, by the likelihood of the classes' names, or by
what the model writes. Counted are accuracy, macro-F1 and the confusion matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.data.spec import DataSpec
from luthier.evaluate.tasks.base import Cases, Setting, Task, TaskResult, result_of

if TYPE_CHECKING:
    from luthier.data.records import Labelled
    from luthier.models.loaded import LoadedModel


class Classification(Task):
    """Texts with a class each."""

    kind: Literal["classification"] = "classification"

    data: DataSpec
    """Labelled rows: {text, label}, or pairs of texts with a label."""
    by: Literal["likelihood", "answer"] | None = None
    """How a model that writes text is asked: by the likelihood of each class's name behind the prompt, or by the answer
    that it writes. Without it: likelihood. A classifier's own head needs neither."""
    prompt: str = Field(default="{text}\nLabel:", min_length=1)
    """What a model that writes text is shown; {text} and {pair} stand for the row's texts."""
    names: dict[str, str] = Field(default={})
    """What labels are called, for a model that writes text: {0: negative, 1: positive}. Without it: as the rows do."""
    chat: bool = False
    """Ask in the model's chat template."""
    score: Literal["accuracy", "macro_f1"] = "accuracy"
    """What counts: the share of right classes, or the mean F1 over classes, where rare ones weigh as much as others."""

    title: ClassVar[str] = "Classification"
    summary: ClassVar[str] = "The share of texts whose class is right, with macro-F1 and the confusion matrix."
    metric: ClassVar[str] = "accuracy"
    heads: ClassVar[tuple[str, ...]] = ("tokens", "classes")
    zh: ClassVar[dict[str, str]] = {
        "title": "分类",
        "summary": "类别判断正确的文本比例，附宏平均 F1 与混淆矩阵。",
        "data": "带标签的数据：{text, label}，或带标签的文本对。",
        "by": "怎样询问会写文本的模型：按每个类别名称的似然（likelihood），或按它写出的回答（answer）。不写则按似然。分类器用自己的分类头。",
        "prompt": "给会写文本的模型看的内容；{text} 与 {pair} 代表该行的文本。",
        "names": "标签的名称，用于会写文本的模型：{0: 负面, 1: 正面}。不写则用数据中的写法。",
        "chat": "用模型的对话模板提问。",
        "score": "计什么：类别正确的比例，或各类别 F1 的平均（稀有类别同样重要）。",
    }

    def read(self) -> Cases:
        from luthier.core.errors import DataError, Problem
        from luthier.evaluate.cases import read_records

        cases = read_records(self.data, "classify")
        if "{text}" not in self.prompt:
            raise DataError(Problem("The prompt shows no text.", f"{self.label}: prompt", "write {text} into it"))
        several = next((item for item in self._rows(cases) if item.labels is not None), None)
        if several is not None:
            what = "Rows of which several classes may apply are not for this task."
            raise DataError(Problem(what, several.source, "measure them with {name, data, metric: accuracy}"))
        strange = sorted(self.names.keys() - {item.label for item in self._rows(cases)})
        if strange:
            what = f'names has a name for the label "{strange[0]}", which no row has.'
            raise DataError(Problem(what, f"{self.label}: names", "remove it"))
        return self.chosen(cases)

    def scored(self, model: LoadedModel, cases: Cases, setting: Setting) -> TaskResult:
        from luthier.models.classifier import Classifier

        rows = self._rows(cases)
        if isinstance(model, Classifier):
            names, meant, said = _by_head(model, rows, setting)
        else:
            labels = _sorted(rows)
            names = [self.names.get(label, label) for label in labels]
            meant = np.array([labels.index(row.label) for row in rows])
            writes = self.by == "answer"
            said = self._by_answer(model, rows, names) if writes else self._by_likelihood(model, rows, names, setting)
        return self._result(names, meant, said)

    def _rows(self, cases: Cases) -> list[Labelled]:
        from luthier.data.records import Labelled

        return [item for item in cases.items if isinstance(item, Labelled)]

    def _asked(self, row: Labelled) -> str:
        return self.prompt.replace("{text}", row.text).replace("{pair}", row.pair)

    def _by_likelihood(
        self, model: LoadedModel, rows: Sequence[Labelled], names: Sequence[str], setting: Setting
    ) -> np.ndarray:
        from luthier.evaluate.likelihood import Splitter, chat_queries, likelihoods
        from luthier.evaluate.texts import spaced

        if self.chat:
            queries = chat_queries(model.tokenizer, [self._asked(row) for row in rows], [names] * len(rows))
        else:
            endings = [[spaced(name) for name in names]] * len(rows)
            queries = Splitter(model.tokenizer).queries([self._asked(row) for row in rows], endings)
        found = likelihoods(model, queries, setting.cut, setting.max_length)
        return np.array([int(np.argmax([answer.logp for answer in row])) for row in found])

    def _by_answer(self, model: LoadedModel, rows: Sequence[Labelled], names: Sequence[str]) -> np.ndarray:
        """Return the class whose name an answer begins with, the longest one; −1 where it begins with none."""
        from luthier.data.records import PromptAnswer, Record, Text
        from luthier.evaluate.answers import room_for
        from luthier.evaluate.measure import complete

        asked: list[Record] = [
            PromptAnswer(self._asked(row), "", "", "", (), False, row.source)
            if self.chat
            else Text(self._asked(row), row.source)
            for row in rows
        ]
        answers = [text.strip().casefold() for text in complete(model, asked, room_for(model, names))]
        by_length = sorted(range(len(names)), key=lambda i: -len(names[i]))
        return np.array([next((i for i in by_length if a.startswith(names[i].casefold())), -1) for a in answers])

    def _result(self, names: Sequence[str], meant: np.ndarray, said: np.ndarray) -> TaskResult:
        size, n = len(names), len(meant)
        confusion = np.zeros((size, size), dtype=int)
        np.add.at(confusion, (meant[said >= 0], said[said >= 0]), 1)
        sums = np.zeros((n, 3 * size))
        rows = np.arange(n)
        sums[rows, 3 * meant + 2] = 1
        told = said >= 0
        sums[rows[told], 3 * said[told] + 1] = 1
        sums[rows[told], 3 * said[told]] = said[told] == meant[told]
        right = (said == meant).astype(float)
        f1 = result_of("macro_f1", "macro_f1", sums, "macro_f1")
        details: dict[str, object] = {
            "accuracy": float(right.mean()),
            "macro_f1": f1.score,
            "classes": list(names),
            "confusion": confusion.tolist(),
            "unanswered": int((~told).sum()),
        }
        if self.score == "macro_f1":
            return result_of(self.label, "macro_f1", sums, "macro_f1", details=details)
        usual = max(Counter(meant.tolist()).values()) / n
        return result_of(self.label, self.metric, right, chances=np.full(n, usual), details=details)


def _sorted(rows: Sequence[Labelled]) -> list[str]:
    labels = {row.label for row in rows}
    whole = all(label.removeprefix("-").isdecimal() for label in labels)
    return sorted(labels, key=int) if whole else sorted(labels)


def _by_head(
    model: LoadedModel, rows: Sequence[Labelled], setting: Setting
) -> tuple[list[str], np.ndarray, np.ndarray]:
    from luthier.core.errors import DataError, Problem
    from luthier.data.labelled import LabelledRenderer, fit_classes
    from luthier.evaluate.classes import predict
    from luthier.models.classifier import Classifier

    assert isinstance(model, Classifier)
    if model.is_multi_label:
        what = "The model says of each class whether it applies; this task asks for one class."
        raise DataError(Problem(what, model.name, "measure it with {name, data, metric: accuracy}"))
    classes = fit_classes(setting.labels or {name: name for name in model.classes}, rows)
    rendered = LabelledRenderer(model.tokenizer, classes, (), setting.max_length or model.context_length, "truncate")
    said = predict(model, rendered.render_all(rows).store, setting.cut).classes_N
    return list(classes.names), np.array([classes.labels.index(row.label) for row in rows]), said
