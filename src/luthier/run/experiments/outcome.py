"""What a finished run came to, read from its folder: what it trained, what it cost, what it learnt and what it kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from luthier.core.rundir import RunDir, read_json
from luthier.evaluate.tasks.base import TaskResult
from luthier.run.summary import Comparison, as_float, mapping, read_run


@dataclass(frozen=True)
class Outcome:
    """One run's row.

    Attributes:
        peak_bytes: highest memory of the run's process, libraries included (on a GPU: what torch allocated there).
        train_seconds: time spent in optimizer steps.
        measures: by name, each with its metric and its values before and after training.
    """

    name: str
    run: str
    model: str = ""
    method: dict[str, object] = field(default_factory=dict)
    learning_rate: float | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    peak_bytes: int | None = None
    train_seconds: float | None = None
    steps: int | None = None
    tokens: int | None = None
    data: dict[str, object] = field(default_factory=dict)
    measures: dict[str, Comparison] = field(default_factory=dict)
    environment: dict[str, object] = field(default_factory=dict)
    seed: int | None = None
    train_cpu_seconds: float | None = None

    @property
    def share(self) -> float | None:
        """The trained share of all parameters."""
        trained, whole = self.trainable_parameters, self.total_parameters
        return trained / whole if trained is not None and whole else None


def outcome_of(run: RunDir, name: str) -> Outcome:
    """Return the row of a finished run, read from its folder.

    Raises:
        RunError: a file of the run cannot be read.
    """
    report, summary = read_json(run.report), read_run(run)
    rate = as_float(summary.recipe.get("learning_rate"))
    return Outcome(
        name=name,
        run=str(run.path),
        model=summary.model_name,
        method=dict(mapping(summary.recipe.get("method"))),
        learning_rate=rate if rate is not None else _default_rate(summary.recipe),
        trainable_parameters=_whole(report.get("trainable_parameters")),
        total_parameters=_whole(report.get("total_parameters")),
        peak_bytes=_whole(report.get("peak_bytes")),
        train_seconds=summary.train_seconds,
        steps=_whole(report.get("steps")),
        tokens=_whole(report.get("tokens_total")),
        data=read_json(run.fingerprint) if run.fingerprint.is_file() else {},
        measures={row.name: row for row in summary.comparisons},
        environment=dict(mapping(report.get("environment"))),
        seed=_whole(summary.recipe.get("seed")),
        train_cpu_seconds=as_float(report.get("train_cpu_seconds")),
    )


def cases_of(run: str, name: str) -> TaskResult | None:
    """Return what each case of a task gave after training; None where the run has not kept it."""
    for stage in RunDir(Path(run)).stages()[-1:]:
        path = stage.path / "eval_cases.json"
        if path.is_file():
            kept = mapping(mapping(read_json(path).get("after")).get(name))
            return TaskResult.from_dict(name, dict(kept)) if kept else None
    return None


def _default_rate(recipe: Mapping[str, object]) -> float | None:
    from luthier.core.component import kinds
    from luthier.methods.base import Method

    family = kinds("method").get(str(mapping(recipe.get("method")).get("kind")))
    return family.default_learning_rate if family is not None and issubclass(family, Method) else None


def _whole(value: object) -> int | None:
    number = as_float(value)
    return int(number) if number is not None else None
