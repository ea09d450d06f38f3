"""Held-out loss: the mean negative log-likelihood of each trained token, of answers or of whole texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from luthier.data.spec import DataSpec
from luthier.evaluate.tasks.base import Cases, Setting, Task, TaskResult, result_of

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel


class Loss(Task):
    """How surprised a model is by answers or texts."""

    kind: Literal["loss"] = "loss"

    data: DataSpec
    """Rows of any form that training takes: of conversations the answers count, of plain texts everything."""

    title: ClassVar[str] = "Held-out loss"
    summary: ClassVar[str] = "The mean negative log-likelihood of answers or texts, in nats per token."
    metric: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False
    zh: ClassVar[dict[str, str]] = {
        "title": "留出损失",
        "summary": "回答或文本的平均负对数似然（每 token，nat）。",
        "data": "训练可用的任何形式的数据：对话只计回答，纯文本全部计入。",
    }

    def read(self) -> Cases:
        from luthier.evaluate.cases import read_records

        return self.chosen(read_records(self.data, "lm"))

    def scored(self, model: LoadedModel, cases: Cases, setting: Setting) -> TaskResult:
        from luthier.data.records import Text
        from luthier.data.render import Renderer
        from luthier.evaluate.likelihood import DEFAULT_LENGTH
        from luthier.evaluate.measure import loss_sums

        is_text = any(isinstance(item, Text) for item in cases.items)
        longest = setting.max_length or min(model.context_length or DEFAULT_LENGTH, DEFAULT_LENGTH)
        renderer = Renderer(
            model.tokenizer,
            objective_kind="lm" if is_text else "sft",
            train_on=setting.train_on,
            max_length=longest,
            on_overlong="truncate",
            hides_reasoning=setting.hides_reasoning and setting.train_on != "all" and not is_text,
        )
        rendered = renderer.render_all(cases.items)  # type: ignore[arg-type]  # they are records
        sums = loss_sums(model, rendered.store, setting.cut)
        loss = float(sums[:, 0].sum() / max(sums[:, 1].sum(), 1e-12))
        details: dict[str, object] = {"tokens": int(sums[:, 1].sum()), "perplexity": float(np.exp(min(loss, 700)))}
        details |= {key: rendered.counts[key] for key in ("dropped", "truncated") if rendered.counts[key]}
        return result_of(self.label, self.metric, sums, higher_is_better=False, details=details)
