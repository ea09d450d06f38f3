"""Replay: a share of every step comes from general data, so that the gradient cannot go where they are lost.

Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal"; of language models, Scialom et al. 2022,
arXiv:2205.12393, who find that one row in a hundred goes a long way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field

from luthier.core.component import StageFacts
from luthier.core.errors import Problem
from luthier.data.spec import DataSpec, located_rows
from luthier.regularizers.base import Regularizer


class Replay(Regularizer):
    """Mix rows of other data into every step."""

    kind: Literal["replay"] = "replay"

    data: DataSpec
    """Rows of what is not to be forgotten, written like the recipe's own data. Objectives over conversations and text
    take both; the others take rows of their own kind."""
    share: float = Field(default=0.1, gt=0, lt=1)
    """This share of every step's sequences comes from there, at least one; batch_size stays what it is."""

    title: ClassVar[str] = "Replay"
    summary: ClassVar[str] = "Mix rows of general data into every step."
    paper: ClassVar[str] = "Scialom et al. 2022, Fine-tuned Language Models are Continual Learners, arXiv:2205.12393"
    when: ClassVar[str] = "Rows of the old kind are at hand and may be trained on: the simplest remedy, and a good one."
    when_not: ClassVar[str] = "There are none: kl and l2_sp need no data."
    zh: ClassVar[dict[str, str]] = {
        "title": "数据回放",
        "summary": "在每一步中混入通用数据。",
        "when": "手头有旧类型的数据且可以用来训练：最简单也有效的办法。",
        "when_not": "没有这样的数据：kl 与 l2_sp 不需要数据。",
        "data": "不想遗忘的内容的数据，写法同配方的 data。对话与文本类目标两者都可用；其他目标需要与自己同类的数据。",
        "share": "每一步的序列中有这个份额来自这些数据，至少一条；batch_size 不变。",
    }

    @property
    def general_rows(self) -> DataSpec | None:
        return self.data

    def located(self, find: Callable[[str], Path]) -> Self:
        return self.model_copy(update={"data": located_rows(self.data, find)})

    def problems(self, facts: StageFacts) -> list[Problem]:
        if facts.data_form == "prompt":
            what = "replay has no effect: this objective learns from the model's own answers, and from no rows."
            return [Problem(what, "", "remove it, or hold the model by its kl")]
        if facts.batch_size > 1:
            return []
        what = "replay takes at least one sequence of every step, and a step has but one (batch_size: 1)."
        return [Problem(what, "", "raise batch_size to 2 or more")]

    def rows_per_step(self, batch_size: int) -> int:
        return min(max(1, round(self.share * batch_size)), batch_size - 1)
