"""Win rate: how often a judge finds the model's answer better than the reference.

A judge behind an endpoint sees both answers in both orders, because it tends to prefer a place (Zheng et al. 2023,
arXiv:2306.05685); where the two verdicts contradict each other, or it calls a tie, the pair counts one half. Any other
reward gives each answer a number, and the higher one wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from luthier.core.errors import DataError
from luthier.data.spec import DataSpec
from luthier.evaluate.tasks.base import Cases, Setting, Task, TaskResult, result_of
from luthier.rewards.base import AnyReward, Place
from luthier.rewards.judge import AskedJudge

if TYPE_CHECKING:
    from luthier.evaluate.answers import Exercise
    from luthier.models.loaded import LoadedModel


class WinRate(Task):
    """Prompts with reference answers, which a judge compares with the model's."""

    kind: Literal["judge"] = "judge"

    data: DataSpec
    """Rows of prompts and answers, written as the recipe's own `data`; the answers are what the model is compared
    with."""
    judge: AnyReward
    """Who judges: any reward, such as {kind: judge, endpoint: …, model: …}, {kind: model, path: runs/reward}, or
    file.py:function."""
    max_new_tokens: int = Field(default=256, ge=1)
    """The longest answer."""
    stop: str | None = Field(default=None, min_length=1)
    """Cut answers at this text, such as a line break."""

    title: ClassVar[str] = "Win rate"
    summary: ClassVar[str] = (
        "The share of prompts whose answer a judge finds better than the reference; ties count half."
    )
    paper: ClassVar[str] = "Zheng et al. 2023, Judging LLM-as-a-Judge, arXiv:2306.05685"
    metric: ClassVar[str] = "win_rate"
    zh: ClassVar[dict[str, str]] = {
        "title": "胜率",
        "summary": "评判认为模型回答优于参考答案的提示比例；平局计一半。",
        "data": "提示与回答的数据，写法同配方的 data；回答是模型的比较对象。",
        "judge": "由谁评判：任何奖励，例如 {kind: judge, endpoint: …, model: …}、{kind: model, path: runs/reward} 或 file.py:function。",
        "max_new_tokens": "回答最长多少 token。",
        "stop": "在此文本处截断回答（例如换行）。",
    }

    def located(self, find: Callable[[str], Path]) -> Self:
        found = super().located(find)
        return found.model_copy(update={"judge": self.judge.located(find)})

    def read(self) -> Cases:
        from luthier.evaluate.answers import read_exercises

        lacking = self.judge.lacking(Path)
        if lacking:
            raise DataError(*lacking)
        return self.chosen(read_exercises(self.data))

    def scored(self, model: LoadedModel, cases: Cases, setting: Setting) -> TaskResult:
        from luthier.evaluate.answers import Exercise, answers_of

        exercises = [item for item in cases.items if isinstance(item, Exercise)]
        answers = answers_of(model, exercises, self.max_new_tokens, self.stop)
        place = Place(Path.cwd(), cache=setting.cache)
        if setting.open_model is not None:
            place = Place(Path.cwd(), setting.open_model, setting.cache)
        if isinstance(self.judge, AskedJudge):
            values, details = _compared(self.judge, place, exercises, answers)
        else:
            values, details = self._scored_apart(place, exercises, answers)
        chances = np.full(len(values), 0.5)
        return result_of(self.label, self.metric, values, chances=chances, details=details)

    def _scored_apart(
        self, place: Place, exercises: Sequence[Exercise], answers: Sequence[str]
    ) -> tuple[np.ndarray, dict[str, object]]:
        from luthier.rewards.base import prompt_text

        asked = [_turns(e) for e in exercises]
        prompts = [prompt_text(turns) for turns in asked]
        rows = [{"prompt": prompt, "answer": e.references[0]} for prompt, e in zip(prompts, exercises)]
        with self.judge.open(place) as scorer:
            ours = np.array(scorer(prompts, answers, rows, asked))
            theirs = np.array(scorer(prompts, [e.references[0] for e in exercises], rows, asked))
        details: dict[str, object] = {"mean_score": float(ours.mean()), "mean_score_reference": float(theirs.mean())}
        return (ours > theirs) + 0.5 * (ours == theirs), details


def _turns(exercise: Exercise):
    from luthier.data.records import Conversation, PromptAnswer, prompt_of

    asked = prompt_of(exercise.record)
    assert isinstance(asked, Conversation | PromptAnswer)
    return asked


def _compared(
    asked: AskedJudge, place: Place, exercises: Sequence[Exercise], answers: Sequence[str]
) -> tuple[np.ndarray, dict[str, object]]:
    """Ask for every pair which answer is better, in both orders."""
    from luthier.rewards.base import prompt_text
    from luthier.rewards.judging.judge import each
    from luthier.rewards.judging.questions import Comparison, Winner, default_rubric

    judge, rubric = asked.opened(place)
    prompts = [prompt_text(_turns(exercise)) for exercise in exercises]
    pairs = [(p, a, e.references[0]) for p, a, e in zip(prompts, answers, exercises)]

    def ask(pair: tuple[str, str, str]) -> tuple[Winner | None, Winner | None]:
        prompt, ours, theirs = pair
        said = rubric or default_rubric(prompt)
        return judge.verdict(Comparison(said, prompt, ours, theirs)), judge.verdict(
            Comparison(said, prompt, theirs, ours)
        )

    values, counts = np.full(len(pairs), 0.5), {"ties_or_contradictions": 0, "undecided": 0}
    try:
        for done in each(pairs, ask, asked.concurrency, judge.chat.stop):
            if done.fault is not None:
                judge.chat.stop()
                raise done.fault
            assert done.result is not None
            straight, swapped = done.result
            if straight is None or swapped is None:
                counts["undecided"] += 1
            elif (straight, swapped) in (("first", "second"), ("second", "first")):
                values[done.index] = float(straight == "first")
            else:
                counts["ties_or_contradictions"] += 1
    finally:
        judge.close()
    return values, dict(counts)
