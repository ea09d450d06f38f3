"""A weighted sum of rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from luthier.core.errors import Problem
from luthier.rewards.base import AnyReward, Place, Reward, Row, Scorer, Turns


class Sum(Reward):
    """Several rewards, each times its weight, added up."""

    kind: Literal["sum"] = "sum"

    parts: tuple[AnyReward, ...]
    """The rewards, each written as `reward` itself: a kind, file.py:function, or {kind: regex, pattern: …}."""
    weights: tuple[float, ...] = ()
    """A number for each part. Left out: 1 for each."""

    title: ClassVar[str] = "Weighted sum"
    summary: ClassVar[str] = "Several rewards, each times its weight, added up."
    zh: ClassVar[dict[str, str]] = {
        "title": "加权和",
        "summary": "多个奖励各乘以权重后相加。",
        "parts": "各个奖励，写法与 `reward` 相同：一个种类、file.py:function，或 {kind: regex, pattern: …}。",
        "weights": "每个奖励的权重。不填则均为 1。",
    }

    @model_validator(mode="after")
    def _one_weight_each(self) -> Sum:
        if not self.parts:
            raise ValueError("a sum needs parts, such as parts: [exact_match, rewards.py:score]")
        if self.weights and len(self.weights) != len(self.parts):
            raise ValueError(f"there are {len(self.parts)} parts and {len(self.weights)} weights")
        return self

    def located(self, find: Callable[[str], Path]) -> Self:
        """Return the sum with absolute paths in its parts."""
        return self.model_copy(update={"parts": tuple(part.located(find) for part in self.parts)})

    def lacking(self, find: Callable[[str], Path]) -> list[Problem]:
        """Ask every part."""
        return [problem for part in self.parts for problem in part.lacking(find)]

    def open(self, place: Place) -> Scorer:
        """Open every part; when one cannot be opened, those before it are closed again."""
        scorers: list[Scorer] = []
        try:
            for part in self.parts:
                scorers.append(part.open(place))
        except BaseException:
            for scorer in scorers:
                scorer.close()
            raise
        return _Total(scorers, self.weights or (1.0,) * len(scorers))


@dataclass
class _Total(Scorer):
    scorers: Sequence[Scorer]
    weights: Sequence[float]

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row], asked: Sequence[Turns] | None = None
    ) -> list[float]:
        each = [scorer(prompts, answers, rows, asked) for scorer in self.scorers]
        return [sum(w * v for w, v in zip(self.weights, values)) for values in zip(*each)]

    def close(self) -> None:
        for scorer in self.scorers:
            scorer.close()
