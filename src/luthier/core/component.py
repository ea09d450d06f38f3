"""A component is one answer to one question of a fine-tune, and its own configuration.

A component is a frozen pydantic model: its fields are the hyper-parameters, its methods do the work. A class registers
when its file is imported, under its family ("method", "objective", …) and its `kind`. Luthier's own components and
those of other packages are found in the same way: through the entry-point group `luthier.components`, whose entries
name modules to import.

Component files import torch inside functions only: reading a recipe, `--help` and `luthier check` must not wait for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict

from luthier.core.errors import Problem, RecipeError, did_you_mean

_TABLE: dict[str, dict[str, type[Component]]] = {}


@dataclass(frozen=True)
class StageFacts:
    """What a component may know of the stage around it when it is asked for `problems`.

    `model_config` is the model's config.json as a mapping; empty where it cannot be known before loading (a hub id).
    `unservable` says why a server of LoRA adapters cannot be given what the method trains.
    """

    method: Component
    objective: Component
    model_config: Mapping[str, object] = field(default_factory=dict)
    packing: bool = True
    batch_size: int = 8
    head: str = "tokens"
    data_form: str = "conversation"
    keeps_features: bool = False
    gradient_checkpointing: bool = False
    unservable: str = ""


class Component(BaseModel):
    """Base of all components. A subclass of a family gives `kind: Literal["name"] = "name"` as its first field."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    family: ClassVar[str] = ""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        kind = cls.model_fields.get("kind")
        if kind is not None and cls.family:
            taken = _TABLE.setdefault(cls.family, {}).get(kind.default)
            if taken is not None and taken.__qualname__ != cls.__qualname__:
                raise TypeError(f"{cls.family} kind {kind.default!r} is already taken by {taken.__module__}")
            _TABLE[cls.family][kind.default] = cls

    def located(self, find: Callable[[str], Path]) -> Self:
        """Return the component with absolute paths.

        `find` looks a path up as the paths of a recipe are looked up; of a run it gives the final checkpoint.
        """
        return self

    def problems(self, facts: StageFacts) -> list[Problem]:
        """Return what forbids this component in that stage: the component with the constraint is who says so."""
        return []


@functools.cache
def _load_entry_points() -> None:
    for entry in entry_points(group="luthier.components"):
        import_module(entry.value.partition(":")[0])


def kinds(family: str) -> dict[str, type[Component]]:
    """Return the registered classes of a family by kind, in alphabetical order."""
    _load_entry_points()
    return dict(sorted(_TABLE.get(family, {}).items()))


def component_class(family: str, kind: str) -> type[Component]:
    """Return the class registered for `kind`.

    Raises:
        RecipeError: no such kind; names the nearest one and all choices.
    """
    table = kinds(family)
    if kind not in table:
        raise RecipeError(
            Problem(
                f'There is no {family} "{kind}".{did_you_mean(kind, table)}',
                where=family,
                remedy=f"choose one of: {', '.join(table)}",
            )
        )
    return table[kind]
