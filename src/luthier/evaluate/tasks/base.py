"""What every task is: cases that are read and checked before a model is loaded, and a measurement of one on them.

    recipe `evaluate`, `luthier eval --task`  ─ task.read() ─→ Cases ─ task.measure(model, cases) ─→ TaskResult

A result keeps what each case gave, in a fixed order, so that two of them on the same cases are compared case by case
(`paired`). Shape legend: N cases, K sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from luthier.core.component import Component, StageFacts
from luthier.core.errors import DataError, Problem
from luthier.data.spec import DataSpec, located_rows
from luthier.evaluate.intervals import Aggregate, difference_of, interval_of, score_of

if TYPE_CHECKING:
    from luthier.models.loaded import LoadedModel
    from luthier.train.microbatch import Cut

SHARES = frozenset(
    {"accuracy", "exact_match", "f1", "macro_f1", "rouge", "bleu", "chrf", "pass_at_k", "win_rate", "stereotype"}
    | {"refusal", "right_behaviour", "extraction"}
)
"""Metrics that lie between 0 and 1 and are read as percentages."""


@dataclass(frozen=True)
class Setting:
    """Where a task is measured, beyond the model: what a run has decided about texts, and what costs money.

    Attributes:
        cut: limits of one forward pass; None goes by the size of the activations.
        max_length: the longest sequence in tokens; None is what the model can take, at most 2048.
        train_on: which words of a conversation count in a loss.
        hides_reasoning: thinking before an answer is read and not counted.
        labels: label → name of a classifier's classes, in the order of its logits.
        cache: a folder in which answers that were paid for are kept.
        open_model: returns the model of a folder, a hub id or a run.
    """

    cut: Cut | None = None
    max_length: int | None = None
    train_on: Literal["assistant", "all", "last"] = "assistant"
    hides_reasoning: bool = False
    labels: Mapping[str, str] | None = None
    cache: Path | None = None
    open_model: Callable[[str], LoadedModel] | None = None


@dataclass(frozen=True)
class Cases:
    """What a task measures on, read and checked.

    Attributes:
        items: the cases; each kind of task has its own.
        files: what was read.
        layout: how the rows were recognised.
        notes: what the user is told about them, rows left out among it.
    """

    items: Sequence[object]
    files: tuple[Path, ...] = ()
    layout: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, eq=False)
class TaskResult:
    """What a task found.

    Attributes:
        name: what the task is called.
        metric: what `score` is.
        score: of all cases together.
        interval: the bootstrap 95 % interval of the score; the same numbers give the same interval.
        n: cases measured.
        cases: (N, K) float64, what each case adds to the sums that the score is made of; for a mean (value, weight).
        aggregate: which function of the sums the score is.
        higher_is_better: the direction; False for losses, and for the share of stereotypes.
        chance: the score of guessing, where there is one.
        groups: the same of the cases of one paradigm, category or subject.
        details: further numbers: a confusion matrix, accuracy by length-normalised likelihood, perplexity …
    """

    name: str
    metric: str
    score: float
    interval: tuple[float, float]
    n: int
    cases: np.ndarray
    aggregate: Aggregate = "mean"
    higher_is_better: bool = True
    chance: float | None = None
    groups: Mapping[str, TaskResult] = field(default_factory=dict)
    details: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_share(self) -> bool:
        """Whether the score lies between 0 and 1 and reads as a percentage."""
        return self.metric in SHARES

    @property
    def is_near_chance(self) -> bool:
        """Whether the score cannot be told from guessing: chance lies in the interval."""
        return self.chance is not None and self.interval[0] <= self.chance <= self.interval[1]

    @property
    def near_chance_groups(self) -> list[str]:
        """The groups whose score cannot be told from guessing."""
        return [name for name, group in self.groups.items() if group.is_near_chance]

    @property
    def values(self) -> np.ndarray:
        """Each case's own value (N,), for scores that are means."""
        return self.cases[:, 0] / np.maximum(self.cases[:, 1], 1e-12)

    def as_dict(self, with_cases: bool = False) -> dict[str, object]:
        """Return plain values for JSON; `from_dict` makes an equal result of those with cases."""
        found: dict[str, object] = {
            "metric": self.metric,
            "score": self.score,
            "interval": list(self.interval),
            "n": self.n,
            "higher_is_better": self.higher_is_better,
        }
        if self.chance is not None:
            found |= {"chance": self.chance, "near_chance": self.is_near_chance}
        if self.groups:
            found["groups"] = {name: group.as_dict(with_cases) for name, group in self.groups.items()}
        if self.details:
            found["details"] = dict(self.details)
        if with_cases:
            found |= {"aggregate": self.aggregate, "cases": self.cases.tolist()}
        return found

    @classmethod
    def from_dict(cls, name: str, kept: Mapping[str, object]) -> TaskResult:
        """Return the result that `as_dict(with_cases=True)` wrote."""
        groups, details = kept.get("groups") or {}, kept.get("details") or {}
        low, high = kept["interval"]  # type: ignore[misc]
        assert isinstance(groups, Mapping)
        assert isinstance(details, Mapping)
        return cls(
            name,
            str(kept["metric"]),
            float(kept["score"]),  # type: ignore[arg-type]
            (float(low), float(high)),
            int(kept["n"]),  # type: ignore[call-overload]
            np.array(kept["cases"], dtype=np.float64),
            kept["aggregate"],  # type: ignore[arg-type]
            bool(kept["higher_is_better"]),
            kept.get("chance"),  # type: ignore[arg-type]
            {str(key): cls.from_dict(str(key), group) for key, group in groups.items()},
            details,
        )


@dataclass(frozen=True)
class Difference:
    """What changed between two measurements on the same cases.

    Attributes:
        change: score after − score before.
        interval: its 95 % interval, by resampling the cases of both together.
    """

    change: float
    interval: tuple[float, float]
    higher_is_better: bool

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval[0] > 0 or self.interval[1] < 0

    @property
    def verdict(self) -> Literal["better", "worse", "unchanged"]:
        """What to call it; a change that may be chance is called unchanged."""
        if not self.is_certain:
            return "unchanged"
        return "better" if (self.change > 0) == self.higher_is_better else "worse"

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {"change": self.change, "interval": list(self.interval), "verdict": self.verdict}


def paired(before: TaskResult, after: TaskResult) -> Difference:
    """Return the difference of two results on the same cases, with its interval.

    Raises:
        ValueError: they are not on the same number of cases, or of another kind.
    """
    if before.cases.shape != after.cases.shape or before.aggregate != after.aggregate:
        raise ValueError(f"{before.name}: {before.cases.shape} and {after.cases.shape} are not the same cases")
    change, interval = difference_of(before.cases, after.cases, after.aggregate)
    return Difference(change, interval, after.higher_is_better)


def result_of(
    name: str,
    metric: str,
    cases_NK: np.ndarray,
    aggregate: Aggregate = "mean",
    higher_is_better: bool = True,
    chances: np.ndarray | None = None,
    groups: Sequence[str] = (),
    details: Mapping[str, object] | None = None,
) -> TaskResult:
    """Return the score, its interval and those of the groups.

    Args:
        cases_NK: what each case adds to the sums; one column is a plain mean of values.
        chances: (N,) the score of guessing on each case.
        groups: the group of each case, or nothing.
    """
    cases_NK = np.asarray(cases_NK, dtype=np.float64)
    if cases_NK.ndim == 1:
        cases_NK = np.stack([cases_NK, np.ones(len(cases_NK))], 1)
    parts: dict[str, TaskResult] = {}
    if len(set(groups)) > 1:
        names = np.array(groups)
        for group in dict.fromkeys(groups):
            mine = names == group
            own = None if chances is None else chances[mine]
            parts[group] = result_of(group, metric, cases_NK[mine], aggregate, higher_is_better, own)
    return TaskResult(
        name,
        metric,
        score_of(cases_NK, aggregate),
        interval_of(cases_NK, aggregate),
        len(cases_NK),
        cases_NK,
        aggregate,
        higher_is_better,
        None if chances is None else float(np.mean(chances)),
        parts,
        details or {},
    )


class Task(Component):
    """Base of all tasks."""

    family: ClassVar[str] = "task"

    name: str = ""
    """What the measurement is called in the report. Without it: the name of its file."""

    limit: int | None = Field(default=None, ge=1)
    """Measure on at most so many cases, spread evenly over the file."""

    every: int | None = Field(default=None, ge=1)
    """Measure every so many steps of training. Without it: whenever the held-out loss is measured."""

    title: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    zh: ClassVar[dict[str, str]] = {
        "name": "报告里的名字。不写则取其文件名。",
        "limit": "最多测这么多条，均匀取自整个文件。",
        "every": "训练中每隔这么多步测一次。不写则与留出损失同时测。",
    }
    metric: ClassVar[str]
    """What the score is called."""
    higher_is_better: ClassVar[bool] = True
    heads: ClassVar[tuple[str, ...]] = ("tokens",)
    """What a model's head may give (`Objective.head`) for the task to have a meaning."""

    @property
    def rows(self) -> DataSpec | None:
        """Where the cases are, for tasks that read some."""
        part = dict(self).get("data")
        return part if isinstance(part, DataSpec) else None

    @property
    def label(self) -> str:
        """The task's name: as given, else its file's."""
        if self.name or self.rows is None:
            return self.name or self.title
        return PurePath(self.rows.path.removeprefix("starter:")).name.partition(".")[0]

    def is_due(self, step: int, usual: int, updates: int = 1) -> bool:
        """Return whether it is measured after this step of training.

        Args:
            usual: how often the held-out loss is measured.
            updates: optimizer steps that follow on one batch of rows; nothing is measured between them.
        """
        return step % (self.every or usual) < updates

    def located(self, find: Callable[[str], Path]) -> Self:
        """Return the task with absolute paths."""
        return self if self.rows is None else self.model_copy(update={"data": located_rows(self.rows, find)})

    def problems(self, facts: StageFacts) -> list[Problem]:
        """Return why the task has no meaning for what the stage trains."""
        return self.misfits(facts.head)

    def misfits(self, head: str) -> list[Problem]:
        """Return why the task has no meaning for a model whose head gives that."""
        if head in self.heads:
            return []
        gives = {"tokens": "writes text", "classes": "tells classes apart", "value": "gives one number"}
        wants = " or ".join(gives[known] for known in self.heads)
        what = f'The task "{self.label}" needs a model that {wants}; this one {gives.get(head, head)}.'
        return [Problem(what, "", "remove it, or measure another model")]

    def read(self) -> Cases:
        """Read and check the cases, without a model.

        Raises:
            DataError: with everything that is wrong with them.
            MissingExtra: a library that the task needs.
        """
        raise NotImplementedError

    def measure(self, model: LoadedModel, cases: Cases | None = None, setting: Setting | None = None) -> TaskResult:
        """Return what the model scores. The training state of the model is left as it was.

        Args:
            cases: what `read` gave; read now if it is not given.
        """
        found = cases if cases is not None else self.read()
        return self.scored(model, found, setting or Setting())

    def scored(self, model: LoadedModel, cases: Cases, setting: Setting) -> TaskResult:
        """Return what the model scores on cases that were read: what a kind of task has of its own."""
        raise NotImplementedError

    def chosen(self, cases: Cases) -> Cases:
        """Return at most `limit` of the cases, spread evenly over them.

        Raises:
            DataError: there are none.
        """
        if not len(cases):
            place = self.rows.path if self.rows is not None else self.label
            raise DataError(Problem(f'The task "{self.label}" has no cases.', place, "give a file with some"))
        if self.limit is None or self.limit >= len(cases):
            return cases
        kept = np.linspace(0, len(cases) - 1, self.limit).round().astype(int)
        return replace(cases, items=tuple(cases.items[i] for i in kept))
