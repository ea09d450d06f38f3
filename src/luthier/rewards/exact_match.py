"""Exact match: an answer is right or it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from luthier.core.errors import DataError, Problem
from luthier.rewards.base import Place, Reward, Row, Scorer, Turns

_COLUMNS = ("answer", "completion", "response", "output", "solution", "target", "reference")


class ExactMatch(Reward):
    """1 for an answer that equals a column of the row, 0 for any other."""

    kind: Literal["exact_match"] = "exact_match"

    column: str | None = Field(default=None, min_length=1)
    """The column that holds the right answer, as text, a number or a list of right answers. Without it: answer,
    completion, response, output, solution, target or reference, whichever the row has first."""
    ignore_case: bool = False
    """Take upper and lower case for the same."""

    title: ClassVar[str] = "Exact match"
    summary: ClassVar[str] = "1 for an answer that equals a column of the row, 0 for any other."
    zh: ClassVar[dict[str, str]] = {
        "title": "精确匹配",
        "summary": "回答与数据行中的某一列完全相同得 1 分，否则得 0 分。",
        "column": "存放正确答案的列：文本、数字，或多个正确答案的列表。不填则依次取 answer、completion、response、output、solution、target、reference 中第一个存在的列。",
        "ignore_case": "不区分大小写。",
    }

    def open(self, place: Place) -> Scorer:
        """Return the comparison. White space around an answer does not count."""
        return _Match(self.column, self.ignore_case)


@dataclass
class _Match(Scorer):
    column: str | None
    ignore_case: bool

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row], asked: Sequence[Turns] | None = None
    ) -> list[float]:
        return [float(self._plain(a) in map(self._plain, self._right(row))) for a, row in zip(answers, rows)]

    def _plain(self, text: str) -> str:
        return text.strip().casefold() if self.ignore_case else text.strip()

    def _right(self, row: Row) -> list[str]:
        """Return the right answers of a row.

        Raises:
            DataError: the row names none.
        """
        column = self.column or next((c for c in _COLUMNS if row.get(c) is not None), None)
        value = None if column is None else row.get(column)
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(v, str | int | float) for v in values):
            what = f"A row has no right answer to compare with. Its columns: {', '.join(row) or 'none'}."
            remedy = "name the column: reward: {kind: exact_match, column: …}"
            raise DataError(Problem(what, "reward exact_match", remedy))
        return [str(v) for v in values]
