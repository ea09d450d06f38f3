"""The JSON schema of recipes, with every registered component: for editors, web forms and the reference page."""

from __future__ import annotations

from luthier.core.component import Component, kinds
from luthier.run.config import Recipe

FAMILIES = ("method", "objective", "optimizer", "schedule", "regularizer")
_LISTS = {"regularizer": "regularizers"}
"""Families that stand in a recipe as a list, with its key."""
_REF = "#/$defs/{}"


def recipe_schema() -> dict[str, object]:
    """Return the schema: each component one of its kinds, as a word or as a mapping with `kind`."""
    schema = Recipe.model_json_schema(ref_template="#/$defs/{model}")
    definitions = schema.setdefault("$defs", {})
    for name in ("ModelSpec", "DataSpec", "DataSet"):
        definitions[name] = {
            "title": name,
            "anyOf": [{"type": "string", "minLength": 1}, definitions[name]],
            "description": definitions[name].get("description", ""),
        }
    for family in FAMILIES:
        known = kinds(family)
        for kind, cls in known.items():
            definitions[f"{family}.{kind}"] = _component(cls, definitions)
        words = {"type": "string", "enum": list(known)}
        definitions[family] = {"oneOf": [words, *({"$ref": _REF.format(f"{family}.{kind}")} for kind in known)]}
        if family in _LISTS:
            schema["properties"][_LISTS[family]]["items"] = {"$ref": _REF.format(family)}
            continue
        field = schema["properties"][family]
        kept = {key: field[key] for key in ("description", "default") if key in field}
        schema["properties"][family] = {"$ref": _REF.format(family), **kept}
    if "Task" in definitions:
        tasks = {f"task.{kind}": _component(cls, definitions) for kind, cls in kinds("task").items()}
        word = {"type": "string", "minLength": 1, "description": "a task's YAML file, KIND:FILE, or lm_eval:NAME"}
        definitions |= {**tasks, "Task": {"oneOf": [word, *({"$ref": _REF.format(name)} for name in tasks)]}}
    if "Method" in definitions:  # the parts of a hybrid are methods themselves
        definitions["Method"] = {"$ref": _REF.format("method")}
    if "Reward" in definitions:  # objectives and sums of rewards hold them
        rewards = {f"reward.{kind}": _component(cls, definitions) for kind, cls in kinds("reward").items()}
        word = {
            "type": "string",
            "minLength": 1,
            "description": f"file.py:function, or one of {', '.join(kinds('reward'))}",
        }
        definitions |= {**rewards, "Reward": {"oneOf": [word, *({"$ref": _REF.format(name)} for name in rewards)]}}
    _drop_unused(schema, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Luthier recipe"}


def _component(cls: type[Component], definitions: dict[str, object]) -> dict[str, object]:
    schema = cls.model_json_schema(ref_template="#/$defs/{model}")
    definitions |= schema.pop("$defs", {})
    schema["required"] = ["kind", *schema.get("required", ())]
    return schema


def _drop_unused(schema: dict[str, object], definitions: dict[str, object]) -> None:
    """Remove the families' base classes, which pydantic lists and nothing refers to any more."""
    while unused := [name for name in definitions if f'"{_REF.format(name)}"' not in _references(schema)]:
        for name in unused:
            del definitions[name]


def _references(value: object) -> set[str]:
    if isinstance(value, dict):
        own = {f'"{value["$ref"]}"'} if "$ref" in value else set()
        return own.union(*(_references(v) for v in value.values()))
    if isinstance(value, list):
        return set().union(*(_references(v) for v in value))
    return set()
