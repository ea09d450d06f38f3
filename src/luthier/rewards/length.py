"""The length of answers: longer ones often win by length alone, and this says no to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from luthier.rewards.base import Place, Reward, Row, Scorer, Turns


class Length(Reward):
    """0 for an answer of a wanted length, down to −1 for one that is far from it."""

    kind: Literal["length"] = "length"

    at_most: int = Field(default=1000, ge=1)
    """Answers of up to so many characters lose nothing."""
    at_least: int = Field(default=0, ge=0)
    """Answers of at least so many characters lose nothing."""
    slack: int = Field(default=500, ge=1)
    """So many characters beyond a limit cost the whole −1; fewer cost their share."""

    title: ClassVar[str] = "Length penalty"
    summary: ClassVar[str] = "0 for an answer of a wanted length, down to −1 for one that is far from it."
    paper: ClassVar[str] = "Yu et al. 2025, DAPO, arXiv:2503.14476 (soft overlong punishment)"
    zh: ClassVar[dict[str, str]] = {
        "title": "长度惩罚",
        "summary": "长度合适的回答得 0 分，偏离越多越低，最低 −1 分。",
        "at_most": "不超过这么多字符的回答不扣分。",
        "at_least": "不少于这么多字符的回答不扣分。",
        "slack": "超出限度这么多字符时扣满 1 分，更少则按比例扣。",
    }

    @model_validator(mode="after")
    def _in_order(self) -> Length:
        if self.at_least > self.at_most:
            raise ValueError(f"at_least ({self.at_least}) is more than at_most ({self.at_most})")
        return self

    def open(self, place: Place) -> Scorer:
        """Return the measure."""
        return _Measure(self.at_least, self.at_most, self.slack)


@dataclass
class _Measure(Scorer):
    at_least: int
    at_most: int
    slack: int

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row], asked: Sequence[Turns] | None = None
    ) -> list[float]:
        beyond = (max(len(a) - self.at_most, self.at_least - len(a), 0) for a in answers)
        return [-min(n / self.slack, 1.0) for n in beyond]
