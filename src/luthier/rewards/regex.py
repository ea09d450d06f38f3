"""A pattern: what an answer has to look like."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from luthier.rewards.base import Place, Reward, Row, Scorer, Turns


class Regex(Reward):
    """One number for an answer that a pattern matches, another for all that it does not."""

    kind: Literal["regex"] = "regex"

    pattern: str = Field(min_length=1)
    """A regular expression in Python's form, such as `<answer>.+</answer>`. A full stop stands for line ends too."""
    full: bool = False
    """The whole answer has to match, white space around it aside; without it the pattern may stand anywhere in it."""
    match: float = 1.0
    """The reward of an answer that matches."""
    no_match: float = 0.0
    """The reward of an answer that does not."""

    title: ClassVar[str] = "Pattern"
    summary: ClassVar[str] = "1 for an answer that a regular expression matches, 0 for any other."
    zh: ClassVar[dict[str, str]] = {
        "title": "正则匹配",
        "summary": "回答匹配正则表达式得 1 分，否则得 0 分。",
        "pattern": "Python 形式的正则表达式，例如 `<answer>.+</answer>`。句点也匹配换行。",
        "full": "要求整个回答匹配（忽略首尾空白）；不填则模式可以出现在回答中的任意位置。",
        "match": "匹配时的奖励。",
        "no_match": "不匹配时的奖励。",
    }

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"this is no regular expression: {error}") from error
        return pattern

    def open(self, place: Place) -> Scorer:
        """Return the pattern, compiled."""
        return _Pattern(re.compile(self.pattern, re.DOTALL), self.full, self.match, self.no_match)


@dataclass
class _Pattern(Scorer):
    pattern: re.Pattern[str]
    full: bool
    hit: float
    miss: float

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row], asked: Sequence[Turns] | None = None
    ) -> list[float]:
        find = self.pattern.fullmatch if self.full else self.pattern.search
        return [self.hit if find(a.strip() if self.full else a) else self.miss for a in answers]
