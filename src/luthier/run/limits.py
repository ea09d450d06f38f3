"""What a run may not lose, and what it has to reach: the recipe's keys `forgetting` and `gate`.

    forgetting: general.jsonl                                  # warn when the loss there rises by 5 %
    forgetting: {data: [a.jsonl, b.txt], tasks: [blimp], max_drop: 0.1, action: rollback}
    gate: {task: stories, max_drop: 0.1}
    gate: [{task: loss, max: 0.9}, {task: crows, max: 0.6}]

Imports no torch: reading a recipe needs it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from luthier.core.errors import did_you_mean
from luthier.data.spec import DataSpec
from luthier.run.numbers import number, setting
from luthier.run.summary import Comparison, as_float, compare, mapping

_CONFIG = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
Action = Literal["warn", "stop", "rollback"]
HELD_OUT = "held-out loss"
_OTHER_NAMES = {"loss": HELD_OUT, "eval loss": HELD_OUT, "held out loss": HELD_OUT}


class GeneralSet(DataSpec):
    """Rows of something the model could do before, and is to be able to do afterwards."""

    name: str = Field(default="", pattern=r"^[^/\n]*$")
    """What the set is called in metrics and report. Without it: its file's name."""

    @property
    def title(self) -> str:
        """The name, or what the file is called without its endings."""
        stem = PurePath(self.path.removeprefix("starter:")).name.partition(".")[0]
        return self.name or re.sub(r"[^\w-]+", "", stem) or "general"


class Forgetting(BaseModel):
    """What is not to be lost, and what happens when it is."""

    model_config = _CONFIG

    data: tuple[GeneralSet, ...] = ()
    """Rows of what the model is not to forget, written as the recipe's own `data`: one file, or a list. The loss on
    them is measured at the start, every eval_steps and at the end."""

    tasks: tuple[str, ...] = ()
    """Tasks of `evaluate` that are not to become worse, by their names."""

    max_drop: float = Field(default=0.05, ge=0)
    """How much worse a measurement may become than it was at the start. Of a loss, and of all that has no upper end,
    it is a share of the start: 0.05 lets 2.00 rise to 2.10. Of a share such as accuracy it is points: 0.05 lets 80 %
    fall to 75 %."""

    action: Action = "warn"
    """What happens the first time something became worse than that. warn goes on; stop ends training there; rollback
    ends it and gives back the best state that had kept within max_drop."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        if isinstance(value, str | list | tuple):
            value = {"data": value}
        if isinstance(value, Mapping) and isinstance(value.get("data"), str | Mapping):
            value = {**value, "data": [value["data"]]}
        if isinstance(value, Mapping) and isinstance(value.get("tasks"), str):
            value = {**value, "tasks": [value["tasks"]]}
        return value

    def allows(self, row: Comparison) -> bool:
        """Return whether a measurement kept within max_drop; one that is no number did not."""
        drop = worse_by(row)
        return drop is not None and drop <= self.max_drop


class Gate(BaseModel):
    """What a measurement has to come to, for the next stage to begin and for the result to be exported."""

    model_config = _CONFIG

    task: str = Field(min_length=1)
    """The measurement: a task of `evaluate` or a set of `forgetting` by its name, or one of the run's own, such as
    loss (on held-out rows) or "held-out accuracy". Of a task with parts, such as categories: "name/part"."""

    min: float | None = None
    """The least value after training."""

    max: float | None = None
    """The largest value after training."""

    max_increase: float | None = Field(default=None, ge=0)
    """By how much the value may be larger than before training, in its own unit."""

    min_increase: float | None = Field(default=None, ge=0)
    """By how much the value has to be larger than before training, in its own unit."""

    max_drop: float | None = Field(default=None, ge=0)
    """How much worse it may have become, as in `forgetting`: of a loss a share of its value before, of a share such
    as accuracy points."""

    action: Literal["stop", "warn"] = "stop"
    """stop ends the line there with everything saved, and blocks export and merge; warn says it and goes on."""

    @model_validator(mode="before")
    @classmethod
    def _by_metric(cls, value: object) -> object:
        if isinstance(value, Mapping) and "metric" in value and "task" not in value:
            return {"task" if key == "metric" else key: item for key, item in value.items()}
        return value

    @model_validator(mode="after")
    def _has_a_limit(self) -> Gate:
        if not self.limits:
            raise ValueError("a gate needs min or max, max_increase, min_increase or max_drop")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min is {self.min:g}, more than max ({self.max:g})")
        return self

    @property
    def limits(self) -> list[tuple[str, float]]:
        """What is asked for, by key."""
        values = {
            "min": self.min,
            "max": self.max,
            "max_increase": self.max_increase,
            "min_increase": self.min_increase,
            "max_drop": self.max_drop,
        }
        return [(key, value) for key, value in values.items() if value is not None]

    def faults(self, row: Comparison) -> list[str]:
        """Return what a measurement before and after does not fulfil: what was measured, and what was asked for."""
        before, after = row.before, row.after
        if after is None or not math.isfinite(after):
            return [f"{row.name} is no number"]
        said = []
        for key, limit in self.limits:
            asked = f"{setting(100 * limit)}%" if row.is_share else setting(limit)
            if key == "min" and after < limit:
                said.append(f"{row.name} is {row.text(after)}, less than {asked} (min)")
            elif key == "max" and after > limit:
                said.append(f"{row.name} is {row.text(after)}, more than {asked} (max)")
            elif key in ("min", "max"):
                continue
            elif before is None or not math.isfinite(before):
                said.append(f"{row.name} was not measured before training ({key})")
            else:
                fault = _change_fault(row, key, limit, before, after)
                said += [fault] if fault else []
        return said


def _change_fault(row: Comparison, key: str, limit: float, before: float, after: float) -> str:
    went = f"{row.name} went from {row.text(before)} to {row.text(after)}"
    grew = after - before
    if key == "max_increase" and grew > limit:
        return f"{went}, which is {number(grew, 3)} more; it may rise by {setting(limit)} (max_increase)"
    if key == "min_increase" and grew < limit:
        return f"{went}, which is {number(grew, 3)} more; it has to rise by {setting(limit)} (min_increase)"
    drop = worse_by(row)
    if key == "max_drop" and (drop is None or drop > limit):
        return f"{went}, which is worse by {drop_text(row, drop)}, more than {drop_text(row, limit)} (max_drop)"
    return ""


def worse_by(row: Comparison) -> float | None:
    """Return how much worse a measurement became: of a share in points, of the rest relative to its value before.

    Negative where it became better; None where it cannot be said.
    """
    before, after = row.before, row.after
    if before is None or after is None or not (math.isfinite(before) and math.isfinite(after)):
        return None
    loss = before - after if row.higher_is_better else after - before
    if row.is_share or loss == 0:
        return loss
    return loss / abs(before) if before else math.copysign(math.inf, loss)


def drop_text(row: Comparison, drop: float | None) -> str:
    """Return a drop in words: points of a share, percent of the rest."""
    if drop is None:
        return "what is no number"
    shown = setting(float(f"{100 * drop:.3g}"))
    return f"{shown} points" if row.is_share else f"{shown} %"


@dataclass(frozen=True)
class Verdict:
    """What a run's gates came to.

    Attributes:
        faults: what was not fulfilled, of gates that stop and of those that warn.
        passed: whether nothing stands against going on.
    """

    checked: Sequence[dict[str, object]]
    faults: Sequence[str]
    warnings: Sequence[str]

    @property
    def passed(self) -> bool:
        return not self.faults

    def as_dict(self) -> dict[str, object]:
        return {"passed": self.passed, "conditions": list(self.checked)}


def judge_gates(gates: Sequence[Gate], results: Mapping[str, object]) -> Verdict:
    """Return what the gates say of measurements before and after (the content of eval.json)."""
    rows = {row.name: row for row in measured_rows(results)}
    checked, faults, warnings = [], [], []
    for gate in gates:
        row = rows.get(find_name(gate.task, rows) or "")
        told = [f'"{gate.task}" was not measured (there are: {", ".join(rows) or "none"})'] if row is None else []
        told += gate.faults(row) if row is not None else []
        (warnings if gate.action == "warn" else faults).extend(told)
        values = {} if row is None else {"before": row.before, "after": row.after}
        checked.append({**gate.model_dump(exclude_none=True), **values, "passed": not told, "faults": told})
    return Verdict(checked, faults, warnings)


def measured_rows(results: Mapping[str, object]) -> list[Comparison]:
    """Return every measurement before and after, those of a task's parts as "task/part"."""
    rows = compare(results)
    for when in ("before", "after"):
        for name, value in mapping(results.get(when)).items():
            parts = mapping(mapping(value).get("groups"))
            told = {row.name for row in rows}
            for part in (p for p in parts if f"{name}/{p}" not in told):
                both = {w: {f"{name}/{part}": _part(results, w, str(name), part)} for w in ("before", "after")}
                rows += [row for row in compare(both) if row.before is not None or row.after is not None]
    return rows


def _part(results: Mapping[str, object], when: str, name: str, part: str) -> Mapping[str, object]:
    whole = mapping(mapping(results.get(when)).get(name))
    found = mapping(mapping(whole.get("groups")).get(part))
    value = as_float(found.get("value", found.get("score")))
    return {} if value is None else {"metric": whole.get("metric"), **found, "value": value}


def find_name(word: str, names: Iterable[str]) -> str | None:
    """Return the measurement that a word means: by its name, whatever the case, with _ or - for a space."""
    known = {_plain(name): name for name in names}
    wanted = _OTHER_NAMES.get(_plain(word), word)
    return known.get(_plain(word)) or known.get(_plain(wanted))


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.strip().lower())


def unmeasured(gate: Gate, names: Sequence[str], own: Sequence[str]) -> str:
    """Return what to write instead of a task that is not measured, or nothing where it is.

    Args:
        names: of tasks and general sets.
        own: how measurements of the run's held-out rows begin.
    """
    task, _, part = gate.task.partition("/")
    if find_name(gate.task, names) or (part and find_name(task, names)):
        return ""
    wanted = _plain(_OTHER_NAMES.get(_plain(gate.task), gate.task))
    if any(wanted.startswith(_plain(prefix)) for prefix in own):
        return ""
    known = [*(["loss"] if own else []), *names]
    if not known:
        return "add eval_fraction: 0.1 or eval_data for the held-out loss, or a task under evaluate"
    if wanted == _plain(HELD_OUT):
        return "add eval_fraction: 0.1 or eval_data, whose loss it is"
    return f"choose one of: {', '.join(known)}.{did_you_mean(gate.task, known)}"
