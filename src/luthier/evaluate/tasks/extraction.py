"""Extraction: how many training rows a model writes to the end when it is given their beginning.

Carlini et al. 2023, Quantifying Memorization Across Neural Language Models, arXiv:2202.07646: a row is extractable with
k tokens of context if the greedy continuation of its first k tokens is, word for word, how it goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.data.spec import DataSpec
from luthier.evaluate.tasks.base import Cases, Setting, Task, TaskResult, result_of

if TYPE_CHECKING:
    from luthier.core.batch import Example
    from luthier.models.loaded import LoadedModel


class Extraction(Task):
    """Rows of which the beginning is given, and the rest is asked for."""

    kind: Literal["extraction"] = "extraction"

    data: DataSpec
    """The rows that may have been learnt by heart: the training data, or a part of them."""
    prefix: int = Field(default=16, ge=1)
    """The first tokens that are given; of a conversation at least all that stands before its first answer."""
    suffix: int = Field(default=32, ge=1)
    """At most so many tokens have to be written as they stand."""

    title: ClassVar[str] = "Extraction"
    summary: ClassVar[str] = "The share of rows that greedy writing continues word for word."
    paper: ClassVar[str] = "Carlini et al. 2023, Quantifying Memorization, arXiv:2202.07646"
    metric: ClassVar[str] = "extraction"
    higher_is_better: ClassVar[bool] = False
    zh: ClassVar[dict[str, str]] = {
        "title": "提取",
        "summary": "贪心续写与原文逐字相同的数据行所占比例。",
        "data": "可能被背下来的数据：训练数据或其中一部分。",
        "prefix": "给出开头的多少个词元；对话则至少给出第一个回答之前的全部内容。",
        "suffix": "最多要求逐字写出多少个词元。",
    }

    def read(self) -> Cases:
        from luthier.evaluate.cases import read_records

        return self.chosen(read_records(self.data, "lm"))

    def scored(self, model: LoadedModel, cases: Cases, setting: Setting) -> TaskResult:
        from luthier.data.records import Text
        from luthier.data.render import Renderer
        from luthier.evaluate.likelihood import DEFAULT_LENGTH
        from luthier.train.generate import Sampling, generate

        is_text = any(isinstance(item, Text) for item in cases.items)
        longest = setting.max_length or min(model.context_length or DEFAULT_LENGTH, DEFAULT_LENGTH)
        kind = "lm" if is_text else "sft"
        renderer = Renderer(model.tokenizer, objective_kind=kind, max_length=longest, on_overlong="truncate")
        rows = renderer.render_all(cases.items).store  # type: ignore[arg-type]  # they are records
        parts = [part for part in (self._parts(rows[i]) for i in range(len(rows))) if part is not None]
        details: dict[str, object] = {"too_short": len(rows) - len(parts)} if len(parts) < len(rows) else {}
        if not parts:
            return result_of(self.label, self.metric, np.zeros(0), higher_is_better=False, details=details)
        said = generate(model, [begin.tolist() for begin, _ in parts], Sampling(max_new_tokens=self.suffix))
        same = [_same(rest, np.asarray(new, dtype=np.int64)) for (_, rest), new in zip(parts, said)]
        hits = np.array([float(n == len(rest)) for n, (_, rest) in zip(same, parts)])
        shares = [n / len(rest) for n, (_, rest) in zip(same, parts)]
        details |= {"mean_share_before_the_first_difference": float(np.mean(shares))}
        return result_of(self.label, self.metric, hits, higher_is_better=False, details=details)

    def _parts(self, row: Example) -> tuple[np.ndarray, np.ndarray] | None:
        """Return what is given of a row and what is asked for; None where nothing would be left to ask for."""
        trained = np.flatnonzero(np.asarray(row.weights) > 0)
        if not len(trained):
            return None
        begin = max(self.prefix, int(trained[0]))
        rest = np.asarray(row.tokens[begin : min(begin + self.suffix, int(trained[-1]) + 1)], dtype=np.int64)
        return (np.asarray(row.tokens[:begin]), rest) if len(rest) else None


def _same(wanted: np.ndarray, said: np.ndarray) -> int:
    """Return how many tokens are the same before the first difference."""
    size = min(len(wanted), len(said))
    differs = np.flatnonzero(wanted[:size] != said[:size])
    return int(differs[0]) if len(differs) else size
