"""Several data sets in one training run: how much each is drawn from.

The rule is T5's (Raffel et al. 2019, arXiv:1910.10683, section 3.5.2): with e_m examples in set m, an artificial limit
K and a temperature T,

    r_m = min(e_m, K)^(1/T) / Σ_j min(e_j, K)^(1/T)

T = 1 is proportional to the sizes; the larger T, the more equal the shares. A `weight` multiplies the rate of its set.
Where weights are given and no temperature, the weights alone are the shares, as people who write 3 and 1 expect.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from luthier.data.spec import DataSpec

_CONFIG = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class DataSet(DataSpec):
    """One of several data sets. The short form is the path alone."""

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """How much is drawn from this set, against the others: with weights 3 and 1 three of four sequences come from the
    first, whatever the sizes. Beside mix it multiplies the set's rate. A set without one counts 1."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    """What the set is called in metrics and reports. Without it: the name of its file."""


class Mix(BaseModel):
    """How several data sets are mixed."""

    model_config = _CONFIG

    temperature: float = Field(default=1.0, gt=0)
    """1 draws from each set in proportion to its size; more makes the shares more equal: 2 draws by the square root."""

    max_examples: int | None = Field(default=None, ge=1)
    """A set counts as if it had at most so many sequences (T5's limit K), so that a huge one does not crowd out the
    rest."""


def _how_many(value: object) -> str:
    return "several" if isinstance(value, list | tuple) else "one"


def _not_empty(sets: tuple[DataSet, ...]) -> tuple[DataSet, ...]:
    if not sets:  # a length in the schema would also complain of a list whose items are wrong
        raise PydanticCustomError("too_short", "empty")
    return sets


Data = Annotated[
    Annotated[DataSpec, Tag("one")] | Annotated[tuple[DataSet, ...], AfterValidator(_not_empty), Tag("several")],
    Discriminator(_how_many),
]
"""What stands under `data`: one set, or a list of them."""


def names_of(sets: Sequence[DataSpec]) -> list[str]:
    """Return what each set is called: as given, else its file's name; names that come up again get a number."""
    found: list[str] = []
    for spec in sets:
        given = spec.name if isinstance(spec, DataSet) else None
        name, number = given or _short(spec.path), 2
        while name in found and given is None:
            name = f"{_short(spec.path)}-{number}"
            number += 1
        found.append(name)
    return found


def _short(path: str) -> str:
    name = PurePath(path.removeprefix("starter:").removesuffix("/")).name.removesuffix(".gz")
    name = name.rpartition(".")[0] or name
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "set"


def rates(sizes: Sequence[int], weights: Sequence[float | None], mix: Mix | None) -> tuple[float, ...]:
    """Return the share of each set, together 1.

    Args:
        sizes: sequences of each set, none of them 0.
        weights: as the recipe gives them.
        mix: None where the recipe has none.
    """
    given = [1.0 if weight is None else weight for weight in weights]
    if mix is None and any(weight is not None for weight in weights):
        raw = given
    else:
        mix = mix or Mix()
        counted = [size if mix.max_examples is None else min(size, mix.max_examples) for size in sizes]
        # Against the largest, so that a low temperature does not overflow.
        raw = [w * (size / max(counted)) ** (1 / mix.temperature) for w, size in zip(given, counted)]
    return tuple(value / sum(raw) for value in raw)
