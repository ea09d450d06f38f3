"""A trained reward model (Ouyang et al. 2022, arXiv:2203.02155): one number for a prompt with its answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from luthier.core.errors import ModelError, Problem
from luthier.core.paths import locate
from luthier.rewards.base import Place, Reward, Row, Scorer, Turns
from luthier.rewards.judging.local import answered, asked_of, reward_values

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel


class Model(Reward):
    """What a trained reward model says."""

    kind: Literal["model"] = "model"

    path: str = Field(min_length=1)
    """A run of the objective reward, stage:NAME for an earlier stage of the same recipe, or a model folder or hub id
    that scores with one number (AutoModelForSequenceClassification with one label). It may have another tokenizer than the model in training."""

    title: ClassVar[str] = "Reward model"
    summary: ClassVar[str] = "The number that a trained reward model gives a prompt with its answer."
    paper: ClassVar[str] = "Ouyang et al. 2022, Training language models to follow instructions, arXiv:2203.02155"
    zh: ClassVar[dict[str, str]] = {
        "title": "奖励模型",
        "summary": "由训练好的奖励模型给“提示 + 回答”打出的分数。",
        "path": "目标为 reward 的一次运行、stage:名称（同一配方中较早的阶段），或只输出一个分数的模型文件夹或 hub 名称（单标签的 AutoModelForSequenceClassification）。其分词器可以与训练中的模型不同。",
    }

    def located(self, find: Callable[[str], Path]) -> Self:
        """Return the reward with the folder's absolute path; a hub id stays as it is."""
        place = find(self.path)
        return self.model_copy(update={"path": str(place.absolute())}) if place.exists() else self

    def lacking(self, find: Callable[[str], Path]) -> list[Problem]:
        """Say when the name looks like a path and nothing is there."""
        return missing_model(self.path, find)

    def open(self, place: Place) -> Scorer:
        """Load the model.

        Raises:
            ModelError: it is no reward model.
        """
        model = place.open_model(found(self.path, place))
        labels = getattr(model.module.config, "num_labels", None)
        if "ForSequenceClassification" not in type(model.module).__name__ or labels != 1:
            what = "The model writes text." if "CausalLM" in type(model.module).__name__ else f"It has {labels} labels."
            what += " A reward model gives one number."
            raise ModelError(
                Problem(what, self.path, "train one: objective: reward, or use reward: {kind: logprob, …}")
            )
        return _Read(model)


def found(name: str, place: Place) -> str:
    """Return where a model lies: a folder is looked up as the recipe's own paths are; a hub id stays as it is."""
    folder = locate(name, (place.folder, Path.cwd()))
    return str(folder) if folder.exists() else name


def missing_model(name: str, find: Callable[[str], Path]) -> list[Problem]:
    """Return a problem for a name that can be no hub id and is no folder."""
    if find(name).exists() or name == "starter" or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return []
    return [Problem("There is no such folder.", str(find(name)), "name a run, a model folder or a hub id")]


@dataclass
class _Read(Scorer):
    model: LoadedModel

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row], asked: Sequence[Turns] | None = None
    ) -> list[float]:
        records = [answered(turns, answer) for turns, answer in zip(asked_of(prompts, asked), answers)]
        return reward_values(self.model, records) if records else []
