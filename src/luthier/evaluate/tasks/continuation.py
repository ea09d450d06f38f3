"""Continuations: whether a given continuation is what the model would write, token by token (LAMBADA's last word)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from luthier.data.spec import DataSpec
from luthier.evaluate.tasks.base import Cases, Setting, Task, TaskResult, result_of

if TYPE_CHECKING:
    from luthier.evaluate.cases import Values
    from luthier.models.loaded import LoadedModel


@dataclass(frozen=True)
class Continued:
    """A context and how it goes on. `source` is `file:line`."""

    context: str
    continuation: str
    source: str


class Continuation(Task):
    """Texts whose end the model should know."""

    kind: Literal["continuation"] = "continuation"

    data: DataSpec
    """Rows of {context, continuation}, or of {text} whose last word is the continuation: LAMBADA's files."""

    title: ClassVar[str] = "Continuation"
    summary: ClassVar[str] = "The share of texts whose continuation is the likeliest one."
    paper: ClassVar[str] = "Paperno et al. 2016, LAMBADA, arXiv:1606.06031"
    metric: ClassVar[str] = "accuracy"
    zh: ClassVar[dict[str, str]] = {
        "title": "续写",
        "summary": "给定续写恰为模型最可能续写的文本比例。",
        "data": "{context, continuation} 的数据，或 {text}，其最后一个词为续写：LAMBADA 的文件。",
    }

    def read(self) -> Cases:
        from luthier.evaluate.cases import Layout, read_cases

        layouts = (
            Layout("LAMBADA", (("text",),), _last_word, '{"text": "… last"}'),
            Layout("own", (("context",), ("continuation",)), _given, '{"context": "…", "continuation": "…"}'),
        )
        return self.chosen(read_cases(self.data, layouts, "continuations"))

    def scored(self, model: LoadedModel, cases: Cases, setting: Setting) -> TaskResult:
        from luthier.evaluate.likelihood import Splitter, likelihoods
        from luthier.evaluate.texts import spaced

        items = [item for item in cases.items if isinstance(item, Continued)]
        endings = [[spaced(item.continuation)] for item in items]
        queries = Splitter(model.tokenizer).queries([item.context for item in items], endings)
        found = [row[0] for row in likelihoods(model, queries, setting.cut, setting.max_length, greedy=True)]
        nats = sum(answer.logp for answer in found)
        details = {
            "loss": -nats / max(sum(answer.tokens for answer in found), 1),
            "perplexity": _perplexity(nats, found),
        }
        return result_of(self.label, self.metric, np.array([float(a.is_likeliest) for a in found]), details=details)


def _perplexity(nats: float, found: list) -> float:
    """Return the perplexity of a whole continuation, as lm-evaluation-harness gives it for LAMBADA."""
    return float(np.exp(min(-nats / max(len(found), 1), 700)))


def _given(values: Values, source: str) -> Continued:
    from luthier.evaluate.cases import text_in

    return Continued(text_in(values, "context").rstrip(), text_in(values, "continuation").strip(), source)


def _last_word(values: Values, source: str) -> Continued:
    from luthier.evaluate.cases import CaseFault, text_in

    context, _, word = text_in(values, "text").rstrip().rpartition(" ")
    if not context:
        raise CaseFault("The text is a single word.", 'write {"context": "…", "continuation": "…"}')
    return Continued(context, word, source)
