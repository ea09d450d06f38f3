"""Names of other tools lead to ours."""

from __future__ import annotations

import pytest

from luthier.core.component import kinds
from luthier.data.spec import DataSpec
from luthier.run.config import ModelSpec, Recipe
from luthier.run.foreign_names import FOREIGN_NAMES
from luthier.run.foreign_values import FOREIGN_VALUES

PARTS = {"model": ModelSpec, "data": DataSpec}


def is_ours(key: str) -> bool:
    head, _, rest = key.partition(".")
    if not rest:
        return head in Recipe.model_fields or head == "kind"
    if head in PARTS:
        return rest in PARTS[head].model_fields
    return any(rest in cls.model_fields for cls in kinds(head).values())


def test_at_least_a_hundred_names_are_known():
    assert len(FOREIGN_NAMES) >= 100


@pytest.mark.parametrize("name", FOREIGN_NAMES)
def test_a_foreign_name_leads_to_a_key_that_exists(name: str):
    foreign = FOREIGN_NAMES[name]
    assert foreign.ours == "" or is_ours(foreign.ours)
    assert foreign.how
    assert "{value}" not in foreign.remedy(3)


def test_no_key_of_a_recipe_is_called_foreign():
    assert not set(FOREIGN_NAMES) & set(Recipe.model_fields)


def test_a_foreign_value_belongs_to_a_key_that_exists():
    keys = {key for key, _ in FOREIGN_VALUES}
    assert all(key in Recipe.model_fields or key in DataSpec.model_fields for key in keys)
