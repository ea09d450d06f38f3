"""What a run folder says, whatever state the run is in: its status, its curves, its results before and after.

Everything is read from files and everything may be missing: a run that was killed, or is still going, has what it has.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal

import numpy as np

from luthier.core.rundir import RunDir, StageDir
from luthier.evaluate.tasks.base import SHARES
from luthier.run.numbers import change, count, number, percent

State = Literal["finished", "running", "interrupted", "failed"]
Verdict = Literal["better", "worse", "unchanged", ""]

_SHARES = SHARES
_HIGHER_IS_BETTER = SHARES - {"stereotype"} | {"reward"}
# A loss has no interval here; differences below this share of it are not called a change.
_SAME_LOSS = 0.005


@dataclass(frozen=True)
class Curve:
    """One column of metrics.jsonl: the steps (N,) at which it was written, and its values (N,)."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float:
        return float(self.values[-1])


@dataclass(frozen=True)
class Comparison:
    """One measure before and after. Missing values are None; `noise` is half the 95% interval of the difference.

    Attributes:
        interval: of the difference after − before, where the cases of both are known; better than `noise`.
        after_interval: of the value after.
        chance: the value of guessing, where there is one; `near_chance` if the value after cannot be told from it.
        higher: the direction, where the measure says it itself.
    """

    name: str
    metric: str
    before: float | None
    after: float | None
    n: int | None = None
    noise: float | None = None
    interval: tuple[float, float] | None = None
    after_interval: tuple[float, float] | None = None
    chance: float | None = None
    near_chance: bool = False
    higher: bool | None = None

    @property
    def label(self) -> str:
        words = self.name.replace("_", " ").strip()
        return words[:1].upper() + words[1:]

    @property
    def higher_is_better(self) -> bool:
        return self.metric in _HIGHER_IS_BETTER if self.higher is None else self.higher

    @property
    def direction(self) -> str:
        return "higher is better" if self.higher_is_better else "lower is better"

    @property
    def is_share(self) -> bool:
        return self.metric in _SHARES

    @property
    def verdict(self) -> Verdict:
        if self.before is None or self.after is None:
            return ""
        if not (math.isfinite(self.before) and math.isfinite(self.after)):
            return "" if math.isfinite(self.after) else "worse"
        gain = (self.after - self.before) * (1 if self.higher_is_better else -1)
        if self.interval is not None:
            low, high = self.interval
            return "unchanged" if low <= 0 <= high else "better" if gain > 0 else "worse"
        if abs(gain) <= (self.noise if self.noise is not None else _SAME_LOSS * abs(self.before)):
            return "unchanged"
        return "better" if gain > 0 else "worse"

    @property
    def change(self) -> str:
        """The change in words: points for shares, percent for the rest."""
        if self.before is None or self.after is None:
            return ""
        if not self.is_share:
            return change(self.before, self.after)
        points = f"{(self.after - self.before) * 100:+.1f}".replace("-", "−")
        return f"{points} points"

    @property
    def certainty(self) -> str:
        """The interval of the change in words; empty where it is not known."""
        if self.interval is None:
            return ""
        low, high = (100 * v if self.is_share else v for v in self.interval)
        shown = [f"{v:+.1f}" if self.is_share else f"{v:+.3g}" for v in (low, high)]
        return f"95%: {shown[0]} to {shown[1]}".replace("-", "−")

    @property
    def spread(self) -> str:
        """The interval of the value after in words, and whether it is near chance."""
        if self.after_interval is None:
            return ""
        low, high = self.after_interval
        chance = f", near chance ({self.text(self.chance)})" if self.near_chance else ""
        return f"{self.text(low)} to {self.text(high)}{chance}"

    def text(self, value: float | None) -> str:
        if value is None:
            return "–"
        return percent(value) if self.is_share else number(value)


@dataclass(frozen=True)
class StageSummary:
    """One stage: its name, folder, curves by metric, results, and the newest complete checkpoint's step."""

    name: str
    folder: StageDir
    curves: dict[str, Curve]
    comparisons: list[Comparison]
    checkpoint_step: int | None

    @property
    def last_step(self) -> int:
        steps = [int(c.steps[-1]) for c in self.curves.values()]
        return max(steps, default=0)


@dataclass(frozen=True)
class RunSummary:
    """A run as its folder tells it. `unreadable` names the files that exist and cannot be parsed."""

    run: RunDir
    report: dict[str, object]
    resolved: dict[str, object]
    environment: dict[str, object]
    plan: dict[str, object]
    stages: list[StageSummary]
    state: State
    unreadable: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.run.path.resolve().name

    @property
    def recipe(self) -> Mapping[str, object]:
        """The recipe with every default filled in."""
        return mapping(self.resolved.get("recipe")) or self.resolved

    @property
    def model(self) -> str:
        return self._word("model", "path")

    @property
    def model_name(self) -> str:
        """The model without the way to its folder."""
        return PurePath(self.model).name if Path(self.model).is_absolute() else self.model

    @property
    def method(self) -> str:
        return self._word("method", "kind")

    @property
    def objective(self) -> str:
        return self._word("objective", "kind")

    @property
    def last_step(self) -> int:
        return self.stages[-1].last_step if self.stages else 0

    @property
    def total_steps(self) -> int | None:
        """The steps that were to be taken: as written, or derived from the epochs done so far."""
        written, epochs = as_float(self.recipe.get("max_steps")), as_float(self.recipe.get("epochs"))
        if written is not None:
            return int(written)
        curve = self.stages[-1].curves.get("epoch") if self.stages else None
        if epochs is None or curve is None or curve.last <= 0:
            return None
        return max(self.last_step, round(float(curve.steps[-1]) * epochs / curve.last))

    @property
    def trainable_share(self) -> float | None:
        trainable, total = (as_float(self.report.get(k)) for k in ("trainable_parameters", "total_parameters"))
        return trainable / total if trainable is not None and total else None

    @property
    def train_seconds(self) -> float | None:
        """The time spent in steps: as reported, or the sum of those done so far."""
        columns = [s.curves["step_seconds"] for s in self.stages if "step_seconds" in s.curves]
        written = as_float(self.report.get("train_seconds"))
        return written if written is not None or not columns else float(sum(c.values.sum() for c in columns))

    @property
    def kept_step(self) -> int | None:
        """The step whose weights are the result, where that is not the last one."""
        name = str(self.report.get("final_checkpoint") or "").rpartition("step-")[2]
        return int(name) if name.isdigit() and int(name) != self.report.get("steps") else None

    @property
    def comparisons(self) -> list[Comparison]:
        """The results of the last stage that has any; else those of report.json."""
        staged = next((s.comparisons for s in reversed(self.stages) if s.comparisons), [])
        return staged or compare(mapping(self.report.get("eval")))

    @property
    def warnings(self) -> list[str]:
        """What the run warned of, and the files of the folder that cannot be read."""
        said = self.report.get("warnings")
        torn = [f"{name} is torn; what it held is missing here." for name in self.unreadable]
        return [*(str(w)[:1].upper() + str(w)[1:] for w in said), *torn] if isinstance(said, list) else torn

    @property
    def status_text(self) -> str:
        """The state in one line, with what is left to do."""
        total = self.total_steps
        of = f" of {count(total)}" if total and total != self.last_step else ""
        at = f"step {count(self.last_step)}{of}"
        return {
            "finished": f"finished after {count(self.last_step)} step{'s' * (self.last_step != 1)}",
            "running": f"running, {at}",
            "interrupted": f"interrupted at {at}",
            "failed": f"failed at {at}",
        }[self.state]

    @property
    def remedy(self) -> str:
        """How an unfinished run goes on; empty for the others."""
        if self.state not in ("interrupted", "failed"):
            return ""
        step = self.stages[-1].checkpoint_step if self.stages else None
        start = (
            f"from the checkpoint at step {count(step)}" if step is not None else "from the start: no checkpoint yet"
        )
        return f"`luthier resume {self.run.path}` goes on {start}."

    def _word(self, key: str, inner: str) -> str:
        for source in (self.report, self.recipe):
            value = source.get(key)
            value = value.get(inner) if isinstance(value, Mapping) else value
            if isinstance(value, str) and value:
                return value
        return ""


def read_run(run: RunDir) -> RunSummary:
    """Read everything a run folder holds by now."""
    unreadable: list[str] = []
    report = read_mapping(run.report, unreadable)
    stages = [_read_stage(folder, unreadable) for folder in run.stages()]
    return RunSummary(
        run=run,
        report=report,
        resolved=read_mapping(run.resolved, unreadable),
        environment=read_mapping(run.environment, unreadable) or dict(mapping(report.get("environment"))),
        plan=read_mapping(run.plan, unreadable),
        stages=stages,
        state=_state(run, report),
        unreadable=unreadable,
    )


def read_mapping(path: Path, unreadable: list[str]) -> dict[str, object]:
    """Return the JSON mapping in a file: empty where there is none, named in `unreadable` where it is torn."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        value = None
    if not isinstance(value, dict):
        unreadable.append(path.name)
        return {}
    return value


def mapping(value: object) -> Mapping[str, object]:
    """Return `value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def as_float(value: object) -> float | None:
    """Return a number read from JSON as a float; None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def read_curves(stage: StageDir) -> dict[str, Curve]:
    """Return the columns of metrics.jsonl. Where a resumed run wrote a step again, the later row counts."""
    steps: dict[str, list[float]] = {}
    values: dict[str, list[float]] = {}
    last = -math.inf
    for row in stage.read_metrics():
        step = mapping(row).get("step")
        if not isinstance(step, int | float):
            continue
        if step <= last:
            _forget_from(step, steps, values)
        last = step
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float):
                steps.setdefault(key, []).append(step)
                values.setdefault(key, []).append(value)
    return {k: Curve(np.array(steps[k], float), np.array(values[k], float)) for k in steps if steps[k]}


def compare(results: Mapping[str, object]) -> list[Comparison]:
    """Return the measures of eval.json in their order, each with what there is of before and after."""
    before, after = mapping(results.get("before")), mapping(results.get("after"))
    changes = mapping(results.get("change"))
    rows = []
    for name in dict.fromkeys([*before, *after]):
        first, second = mapping(before.get(name)), mapping(after.get(name))
        metric = str(second.get("metric") or first.get("metric") or "loss")
        n = as_float(second.get("n") or first.get("n"))
        size = int(n) if n is not None else None
        old, new = as_float(first.get("value")), as_float(second.get("value"))
        higher = second.get("higher_is_better", first.get("higher_is_better"))
        row = Comparison(
            str(name),
            metric,
            old,
            new,
            size,
            _noise(metric, old, new, size),
            _pair(mapping(changes.get(name)).get("interval")),
            _pair(second.get("interval")),
            as_float(second.get("chance")),
            second.get("near_chance") is True,
            higher if isinstance(higher, bool) else None,
        )
        rows.append(row)
    return rows


def _pair(value: object) -> tuple[float, float] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = as_float(value[0]), as_float(value[1])
    return None if low is None or high is None else (low, high)


def _read_stage(folder: StageDir, unreadable: list[str]) -> StageSummary:
    done = folder.complete_checkpoints()
    return StageSummary(
        name=folder.path.name.partition("-")[2],
        folder=folder,
        curves=read_curves(folder),
        comparisons=compare(read_mapping(folder.eval, unreadable)),
        checkpoint_step=int(done[-1].name.removeprefix("step-")) if done else None,
    )


def _state(run: RunDir, report: Mapping[str, object]) -> State:
    if is_locked_by_another(run.path / ".lock"):
        return "running"
    status = report.get("status")
    return "finished" if status == "finished" else "failed" if status == "failed" else "interrupted"


def is_locked_by_another(lock: Path) -> bool:
    """Tell whether a process other than this one holds a run's lock; it vanishes with the process, however it ends."""
    if not lock.is_file():
        return False
    with lock.open("r", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return stream.read().strip() != str(os.getpid())
    return False


def _forget_from(step: float, steps: dict[str, list[float]], values: dict[str, list[float]]) -> None:
    for key, column in steps.items():
        while column and column[-1] >= step:
            column.pop()
            values[key].pop()


def _noise(metric: str, before: float | None, after: float | None, n: int | None) -> float | None:
    """Return half the 95% interval of a difference of shares, as if the two had been measured on different rows.

    The rows are the same, so the true interval is narrower: what is called better here is better. By Agresti and Caffo
    2000 (one success and one failure added to each), which holds for shares of 0 and 1 and for a handful of rows, too.
    """
    if metric not in _SHARES or before is None or after is None or not n:
        return None
    shares = [(p * n + 1) / (n + 2) for p in (before, after)]
    half = 1.96 * math.sqrt(sum(p * (1 - p) / (n + 2) for p in shares))
    # Their interval is around the difference of the added-to shares, which is n / (n + 2) of the one shown.
    return half * (n + 2) / n
