"""What every reward is: a component that opens to a scorer, which gives one number for each answer.

    grpo, ppo, …, `luthier judge`  ─ reward.open(place) ─→  scorer(prompts, answers, rows) → floats ─ scorer.close()

An objective that has a reward as a field writes `reward: AnyReward` and hands `located` on to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import BeforeValidator, SerializeAsAny
from pydantic_core import PydanticCustomError

from luthier.core.component import Component, component_class, kinds
from luthier.core.errors import Problem
from luthier.data.records import Conversation, PromptAnswer, conversation

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel

Row = Mapping[str, object]
Turns = Conversation | PromptAnswer


def open_folder(name: str) -> LoadedModel:
    """Return the model of a folder or a hub id. Runs need `luthier.run.opened.open_target` in its place."""
    from luthier.models.files import inspect_model
    from luthier.models.load import load_model

    return load_model(name, classes=inspect_model(name)[0].classes)


@dataclass(frozen=True)
class Place:
    """What a reward is opened in.

    Attributes:
        folder: where relative paths are looked up first.
        open_model: returns the model of a folder, a hub id or a run.
        cache: a folder in which answers that were paid for are kept; a resumed run does not ask twice.
    """

    folder: Path = Path()
    open_model: Callable[[str], LoadedModel] = open_folder
    cache: Path | None = None


class Scorer:
    """Gives one number for each answer, the larger the better. Every number is finite."""

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row], asked: Sequence[Turns] | None = None
    ) -> list[float]:
        """Return the rewards.

        Args:
            prompts: what was asked, as text (`prompt_text`).
            answers: what was answered, without tokens that end a turn.
            rows: the rows of the data that the prompts stand in, with all their columns.
            asked: the prompts as records, for scorers that read conversations. Without them a prompt is one question.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of files, connections and models."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Reward(Component):
    """Base of rewards."""

    family: ClassVar[str] = "reward"

    title: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    zh: ClassVar[dict[str, str]] = {}

    def open(self, place: Place) -> Scorer:
        """Return what scores answers: files are read and models are loaded here, once.

        Raises:
            UserError: a file, a function or a model is not there or cannot be used.
        """
        raise NotImplementedError

    def located(self, find: Callable[[str], Path]) -> Self:
        """Return the reward with absolute paths."""
        return self

    def lacking(self, find: Callable[[str], Path]) -> list[Problem]:
        """Return what the reward needs and what is not there, without running or loading anything.

        `find` looks a path up as the paths of a recipe are looked up.
        """
        return []


def build_reward(value: object) -> object:
    """Return the reward that a recipe names: a kind, `file.py:function`, or a mapping with `kind` and its fields."""
    if isinstance(value, str):
        value = {"kind": "function", "path": value} if ".py" in value else {"kind": value}
    if not isinstance(value, Mapping):
        return value
    kind = value.get("kind")
    if not isinstance(kind, str):
        raise PydanticCustomError("no_kind", "no kind", {"family": "reward"})
    if kind not in kinds("reward"):
        raise PydanticCustomError("unknown_kind", "unknown kind", {"family": "reward", "kind": kind})
    reward = component_class("reward", kind).model_validate(value)
    for name, number in reward:
        if isinstance(number, float) and not math.isfinite(number):
            raise PydanticCustomError("component_not_finite", "not finite", {"field": name, "input": number})
    return reward


AnyReward = Annotated[SerializeAsAny[Reward], BeforeValidator(build_reward)]
"""The type of a field that holds a reward."""


def prompt_text(asked: Turns) -> str:
    """Return a prompt as plain text: a single question as it is, several turns as a transcript."""
    turns = [m for m in conversation(asked).messages if m.content]
    if turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    if [m.role for m in turns if m.role != "system"] == ["user"]:
        return turns[-1].content
    return "\n\n".join(f"{m.role}: {m.content}" for m in turns)
