"""A local judge without an endpoint: how likely a language model finds an answer, or a verdict on it.

Without a rubric, the mean log-probability of the answer's tokens under the model. With one, the model is asked whether
the answer meets it, and the reward is log p("Yes") − log p("No").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from luthier.core.errors import ModelError, Problem
from luthier.core.paths import locate
from luthier.data.records import PromptAnswer
from luthier.rewards.base import Place, Reward, Row, Scorer, Turns
from luthier.rewards.judging.local import answered, asked_of, mean_logps
from luthier.rewards.judging.questions import Verification
from luthier.rewards.judging.rubrics import read_rubric, rubric_problems
from luthier.rewards.model import found, missing_model

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel


class Logprob(Reward):
    """How likely a local language model finds an answer, or a Yes to it."""

    kind: Literal["logprob"] = "logprob"

    path: str = Field(min_length=1)
    """The model that judges: a folder, a run, a hub id, or starter."""
    rubric: str | None = Field(default=None, min_length=1)
    """A text file that says what makes an answer good. The model is then asked whether the answer meets it, and the
    reward is log p(Yes) − log p(No). Without it: the mean log-probability of the answer's own tokens."""
    yes: str | None = Field(default=None, min_length=1)
    """The word for a good answer. Without it: Yes, or 是 when the rubric is Chinese."""
    no: str | None = Field(default=None, min_length=1)
    """The word for a bad answer. Without it: No, or 否 when the rubric is Chinese."""

    title: ClassVar[str] = "Log-probability judge"
    summary: ClassVar[str] = "How likely a local language model finds an answer, or a Yes to it."
    zh: ClassVar[dict[str, str]] = {
        "title": "对数概率评判",
        "summary": "本地语言模型认为该回答（或对它说“是”）的可能性有多大。",
        "path": "担任评判的模型：文件夹、运行、hub 名称或 starter。",
        "rubric": "写明好回答标准的文本文件。此时会询问模型该回答是否符合标准，奖励为 log p(是) − log p(否)。不填则取回答自身各词元的平均对数概率。",
        "yes": "表示好回答的词。不填则为 Yes；标准为中文时为“是”。",
        "no": "表示差回答的词。不填则为 No；标准为中文时为“否”。",
    }

    def located(self, find: Callable[[str], Path]) -> Self:
        """Return the reward with absolute paths; a hub id stays as it is."""
        update: dict[str, str] = {}
        if (folder := find(self.path)).exists():
            update["path"] = str(folder.absolute())
        if self.rubric is not None:
            update["rubric"] = str(find(self.rubric).absolute())
        return self.model_copy(update=update)

    def lacking(self, find: Callable[[str], Path]) -> list[Problem]:
        """Look for the model and the rubric."""
        return [*missing_model(self.path, find), *rubric_problems(self.rubric, find)]

    def open(self, place: Place) -> Scorer:
        """Load the model and read the rubric.

        Raises:
            ModelError: the model writes no text.
            DataError: the rubric cannot be read.
        """
        rubric = None if self.rubric is None else read_rubric(locate(self.rubric, (place.folder, Path.cwd())))
        model = place.open_model(found(self.path, place))
        if "ForSequenceClassification" in type(model.module).__name__:
            what = "The model gives numbers or classes, and no text."
            raise ModelError(Problem(what, self.path, "use reward: {kind: model, path: …}"))
        return _Likelihood(model, rubric, self.yes, self.no)


@dataclass
class _Likelihood(Scorer):
    model: LoadedModel
    rubric: str | None
    yes: str | None
    no: str | None

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row], asked: Sequence[Turns] | None = None
    ) -> list[float]:
        if not answers:
            return []
        if self.rubric is None:
            return mean_logps(self.model, [answered(t, a) for t, a in zip(asked_of(prompts, asked), answers)])
        records = []
        for prompt, answer in zip(prompts, answers):
            question = Verification(self.rubric, prompt, answer)
            yes, no = question.words()
            for word in (self.yes or yes, self.no or no):
                records.append(PromptAnswer(question.text() + "\n", word, "", "", (), False, "verdict"))
        values = mean_logps(self.model, records)
        return [yes - no for yes, no in zip(values[0::2], values[1::2])]
