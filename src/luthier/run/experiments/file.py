"""The keys of a file of experiments, checked before any recipe is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal, cast

from luthier.core.errors import Problem, RecipeError, did_you_mean
from luthier.run.numbers import count, duration
from luthier.run.yaml_lines import Document

KEYS = ("base", "recipe", "models", "variants", "grid", "seeds", "budget", "quality", "retained")
Unit = Literal["steps", "tokens", "seconds", "epochs"]
UNITS: tuple[Unit, ...] = ("steps", "tokens", "seconds", "epochs")
_MOST_SEEDS = 1000


@dataclass(frozen=True)
class Budget:
    """What every run may use."""

    unit: Unit
    amount: float

    @property
    def keys(self) -> dict[str, object]:
        """The keys of a recipe that say so."""
        if self.unit == "epochs":
            return {"epochs": self.amount}
        if self.unit == "steps":
            return {"max_steps": int(self.amount)}
        return {"max_steps": f"{self.amount:f}".rstrip("0").rstrip(".") + f" {self.unit}"}

    @property
    def text(self) -> str:
        """The budget in words."""
        if self.unit == "seconds":
            return f"{duration(self.amount)} of training"
        if self.unit == "epochs":
            return f"{self.amount:g} epoch{'s' * (self.amount != 1)}"
        return f"{count(self.amount)} {self.unit if self.amount != 1 else self.unit[:-1]}"


@dataclass(frozen=True)
class ContestFile:
    """A file of experiments, each key of the right form."""

    base: str | None = None
    recipe: Mapping[str, object] = field(default_factory=dict)
    models: tuple[object, ...] = ()
    variants: Mapping[str, str | Mapping[str, object]] = field(default_factory=dict)
    grid: Mapping[str, list[object]] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    budget: Budget | None = None
    quality: str = ""
    retained: str = ""


def read_file(document: Document, path: Path) -> ContestFile:
    """Return what the file says.

    Raises:
        RecipeError: with everything that is wrong with its form.
    """
    values = document.values

    def place(key: str) -> str:
        return f"{path}:{document.lines.get((key,), 1)}"

    problems = [
        Problem(
            f'There is no key "{key}".{did_you_mean(str(key), KEYS)}', place(key), f"choose from: {', '.join(KEYS)}"
        )
        for key in values
        if key not in KEYS
    ]
    if not values.get("base") and not values.get("recipe"):
        problems.append(Problem("There is no recipe to vary.", str(path), "name one: base: quickstart.yaml"))
    if values.get("base") is not None and not isinstance(values["base"], str):
        problems.append(Problem("base is the path of a recipe.", place("base"), "write base: quickstart.yaml"))
    if not isinstance(values.get("recipe") or {}, dict):
        problems.append(Problem("recipe holds keys of a recipe.", place("recipe"), "write recipe: {max_steps: 20}"))
    if not isinstance(values.get("models") or [], list):
        problems.append(Problem("models is a list.", place("models"), "write models: [starter, my-model]"))
    for key in ("quality", "retained"):
        if not isinstance(values.get(key) or "", str):
            problems.append(Problem(f"{key} names a measure.", place(key), f"write {key}: task accuracy"))
    grid = values.get("grid")
    if values.get("variants") is not None or not grid:
        problems += _wrong_variants(values.get("variants"), place("variants"))
    if grid is not None:
        problems += _wrong_grid(grid, place("grid"))
    seeds, wrong_seeds = _seeds(values.get("seeds"), grid, place("seeds"))
    budget, wrong_budget = read_budget(values.get("budget"), place("budget"))
    problems += [*wrong_seeds, *wrong_budget]
    if problems:
        raise RecipeError(*problems)
    given = values.get("variants") or {}
    variants = given if isinstance(given, Mapping) else {str(name): str(name) for name in cast("list", given)}
    lists = {k: v if isinstance(v, list) else [v] for k, v in cast("dict", grid or {}).items() if k != "seed"}
    return ContestFile(
        cast("str | None", values.get("base")),
        cast("dict", values.get("recipe") or {}),
        tuple(cast("list", values.get("models") or [])),
        {str(name): said for name, said in variants.items()},
        {str(key): found for key, found in lists.items()},
        seeds,
        budget,
        str(values.get("quality") or ""),
        str(values.get("retained") or ""),
    )


def _wrong_variants(given: object, place: str) -> list[Problem]:
    example = "write variants: {lora: lora, wide: {method: {kind: lora, rank: 64}}}, or grid: {method.rank: [4, 8]}"
    if not isinstance(given, dict | list) or not given:
        return [Problem("There are no variants.", place, example)]
    if isinstance(given, list):
        bad = [item for item in given if not isinstance(item, str)]
        twice = {item for item in given if given.count(item) > 1} if not bad else set()
        if twice:
            return [Problem(f'The variant "{sorted(twice)[0]}" is there twice.', place, "name it once")]
    else:
        bad = [name for name, said in given.items() if not isinstance(said, str | dict)]
        odd = [name for name in given if PurePath(str(name)).name != str(name)]
        if odd:
            return [Problem(f'"{odd[0]}" cannot name a folder.', place, "leave out slashes")]
    return [Problem(f'The variant "{bad[0]}" is neither a method nor keys.', place, example)] if bad else []


def _wrong_grid(grid: object, place: str) -> list[Problem]:
    example = "write grid: {method: [lora, full], learning_rate: [1e-4, 1e-3]}"
    if not isinstance(grid, dict):
        return [Problem("grid holds keys, each with its values.", place, example)]
    empty = [str(key) for key, values in grid.items() if isinstance(values, list) and not values]
    twice = [str(k) for k, v in grid.items() if isinstance(v, list) and any(v.count(item) > 1 for item in v)]
    problems = [Problem(f"grid: {key} has no values.", place, example) for key in empty]
    return problems + [Problem(f"grid: {key} has a value twice.", place, "name each once") for key in twice]


def _seeds(given: object, grid: object, place: str) -> tuple[tuple[int, ...], list[Problem]]:
    """Return the seeds; a grid over the key seed means the same."""
    in_grid = grid.get("seed") if isinstance(grid, dict) else None
    if given is not None and in_grid is not None:
        return (), [Problem("The seeds are there twice: in seeds, and in the grid.", place, "keep seeds")]
    said = in_grid if given is None else given
    if said is None:
        return (), []
    if isinstance(said, int) and not isinstance(said, bool) and 1 <= said <= _MOST_SEEDS:
        return tuple(range(said)), []
    whole = isinstance(said, list) and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in said)
    if isinstance(said, list) and said and whole and len(set(said)) == len(said):
        return tuple(said), []
    what = "seeds is how many, or a list of different whole numbers."
    return (), [Problem(what, place, "write seeds: 3, or seeds: [0, 1, 2]")]


def read_budget(given: object, place: str) -> tuple[Budget | None, list[Problem]]:
    """Return what `budget: {steps: 200}` says, with what is wrong with it."""
    if given is None:
        return None, []
    remedy = "write budget: {steps: 200}, or tokens, seconds or epochs"
    if not isinstance(given, dict) or len(given) != 1:
        return None, [Problem("budget is one amount, the same for every run.", place, remedy)]
    (unit, amount), *_ = given.items()
    if unit not in UNITS:
        return None, [Problem(f'There is no budget of "{unit}".{did_you_mean(str(unit), UNITS)}', place, remedy)]
    is_number = isinstance(amount, int | float) and not isinstance(amount, bool)
    if not is_number or amount <= 0 or (unit == "steps" and amount != int(amount)):
        kind = "a whole number of steps" if unit == "steps" else f"more than 0 {unit}"
        return None, [Problem(f"budget is {amount!r}; it has to be {kind}.", place, remedy)]
    return Budget(cast("Unit", unit), float(amount)), []
