"""What a search may choose from: ranges and choices over any keys of a recipe, and what is usual where nothing is said.

space:
  learning_rate: {low: 1e-4, high: 1e-2, log: true}     # or 1e-4..1e-2
  method.rank: [4, 8, 16]                               # a choice
  batch_size: {low: 4, high: 32, step: 4}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from luthier.core.errors import Problem, did_you_mean
from luthier.run.config import Recipe
from luthier.run.experiments.keys import HOW

Value = float | int | str | bool | None
SEARCHED = (*HOW, "batch_size", "data", "mix", "curriculum", "regularizers", "objective", "epochs")
"""Top keys that a search may change; the others decide what is measured, or on what."""
_RANGE = re.compile(r"^\s*([-+0-9.eE]+)\s*\.\.\s*([-+0-9.eE]+)\s*(log)?\s*$")
_FIELDS = ("low", "high", "log", "step")
_LOG_FROM_RATIO = 100


@dataclass(frozen=True)
class Range:
    """Numbers between two ends, both included; whole ones if both ends are whole."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values with which the key is tried before the search."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def holds(self, value: object) -> bool:
        """Return whether a value lies in the range."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if not self.low <= value <= self.high or (self.whole and value != int(value)):
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-9

    def as_dict(self) -> dict[str, object]:
        """Return plain values, as they are written in a file."""
        low, high = self.ends
        found: dict[str, object] = {"low": low, "high": high, "log": self.log}
        return found if self.step is None else {**found, "step": int(self.step) if self.whole else self.step}


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[object, ...]

    @property
    def ends(self) -> tuple[object, ...]:
        return self.values

    def holds(self, value: object) -> bool:
        """Return whether a value is one of them."""
        return value in self.values

    def as_dict(self) -> list[object]:
        """Return plain values, as they are written in a file."""
        return list(self.values)


Dimension = Range | Choice
Space = Mapping[str, Dimension]


def read_space(given: object, place: str) -> tuple[dict[str, Dimension], list[Problem]]:
    """Return the dimensions of a space with what is wrong in their form."""
    example = "write space: {learning_rate: 1e-4..1e-2, method.rank: [4, 8, 16]}"
    if not isinstance(given, Mapping) or not given:
        return {}, [Problem("space holds keys of a recipe, each with what to choose from.", place, example)]
    space: dict[str, Dimension] = {}
    problems = []
    for key, said in given.items():
        found = _dimension(said)
        where = f"{place}.{key}"
        if isinstance(found, str):
            problems.append(Problem(f"{key}: {found}", where, example))
            continue
        wrong = _key_problem(str(key), where)
        problems += [wrong] if wrong else []
        space[str(key)] = found
    return space, problems


def _key_problem(key: str, place: str) -> Problem | None:
    top = key.partition(".")[0]
    if top not in Recipe.model_fields:
        what = f'There is no key "{key}".{did_you_mean(top, SEARCHED)}'
        return Problem(
            what, place, f"a search may change: {', '.join(k for k in SEARCHED if k in Recipe.model_fields)}"
        )
    if top not in SEARCHED:
        what = f"{key} decides what is measured or on what, so trials could not be held against each other."
        return Problem(what, place, "compare several values of it: luthier compare, with a grid")
    return None


def _dimension(said: object) -> Dimension | str:
    """Return what a value of the space means, or what is wrong with it."""
    if isinstance(said, list):
        if len(said) < 2:
            return "a choice has at least two values."
        return Choice(tuple(said)) if all(said.count(v) == 1 for v in said) else "a choice has a value twice."
    if isinstance(said, str):
        found = _RANGE.match(said)
        if found is None:
            return f'"{said}" is no range.'
        try:
            low, high = (float(found[i]) if re.search(r"[.eE]", found[i]) else int(found[i]) for i in (1, 2))
        except ValueError:
            return f'"{said}" is no range.'
        return _range({"low": low, "high": high, **({"log": True} if found[3] else {})})
    return _range(said) if isinstance(said, Mapping) else "it is neither a range nor a list of choices."


def _range(said: Mapping[str, object]) -> Range | str:
    unknown = [str(key) for key in said if key not in _FIELDS]
    if unknown:
        return f'a range has no "{unknown[0]}".{did_you_mean(unknown[0], _FIELDS)}'
    for key in ("low", "high", "step"):
        value = said.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number and not (key == "step" and value is None):
            return f"a range needs low and high, as numbers ({key} is {value})."
    low, high = float(cast("float", said["low"])), float(cast("float", said["high"]))
    step = None if said.get("step") is None else float(cast("float", said["step"]))
    if low >= high:
        return f"low is {low:g}, which is not below high, {high:g}."
    whole = isinstance(said["low"], int) and isinstance(said["high"], int) and isinstance(said.get("step", 1), int)
    is_log = said.get("log", not whole and low > 0 and high / low >= _LOG_FROM_RATIO and step is None)
    if not isinstance(is_log, bool):
        return "log is true or false."
    if is_log and (low <= 0 or step is not None):
        return "a logarithmic range lies above 0 and has no step."
    if step is not None and step <= 0:
        return "step is above 0."
    return Range(low, high, is_log, step, whole)


def usual_space(recipe: Recipe) -> dict[str, Dimension]:
    """Return what is worth searching for a method when nothing is said: the rate above all, then size and warm-up."""
    rate = recipe.method.default_learning_rate * recipe.objective.learning_rate_factor
    space: dict[str, Dimension] = {"learning_rate": Range(rate / 10, rate * 30, log=True)}
    fields = type(recipe.method).model_fields
    for name, values in (("rank", (4, 8, 16, 32)), ("tokens", (4, 8, 16, 32)), ("bottleneck", (8, 16, 32, 64))):
        if name in fields and fields[name].annotation in (int, int | None):
            space[f"method.{name}"] = Choice(values)
    space["batch_size"] = Choice((8, 16, 32))
    if recipe.schedule.warms_up and recipe.warmup_steps is None:
        space["warmup_ratio"] = Range(0.0, 0.2)
    return space


Kind = Literal["float", "int", "choice"]


def kind_of(dimension: Dimension) -> Kind:
    """Return how a dimension is drawn from."""
    if isinstance(dimension, Choice):
        return "choice"
    return "int" if dimension.whole else "float"
