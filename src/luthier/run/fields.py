"""What a field of a recipe takes, read from its type: for messages, and against `true` where a number belongs."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from luthier.core.component import Component, kinds

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}


def alternatives(annotation: object) -> list[object]:
    """Return the types that an annotation allows, without None and without the wrappings of Annotated."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in alternatives(part)]
    return [] if annotation is type(None) else [annotation]


def is_optional(annotation: object) -> bool:
    """Return whether null may be written."""
    if get_origin(annotation) is Annotated:
        return is_optional(get_args(annotation)[0])
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def choices(annotation: object) -> list[str]:
    """Return the words of all Literals in an annotation, those of a list's items included."""
    words: list[str] = []
    for kind in alternatives(annotation):
        if get_origin(kind) is Literal:
            words += map(str, get_args(kind))
        elif get_origin(kind) in (list, tuple):
            words += choices(get_args(kind)[0])
    return words


def item_annotation(annotation: object) -> object:
    """Return what the items of a list are; the annotation itself where it is no list."""
    lists = [kind for kind in alternatives(annotation) if get_origin(kind) in (list, tuple)]
    return get_args(lists[0])[0] if lists else annotation


def describe(annotation: object) -> str:
    """Return what to write for an annotation: `a whole number or "auto"`."""
    parts = []
    for kind in alternatives(annotation):
        origin = get_origin(kind)
        if origin is Literal:
            words = get_args(kind)
            parts.append(f'"{words[0]}"' if len(words) == 1 else f"one of {', '.join(map(str, words))}")
        elif origin in (list, tuple):
            parts.append(f"a list of {_plural(get_args(kind)[0])}")
        elif isinstance(kind, type) and issubclass(kind, Component):
            parts.append(f"one of {', '.join(kinds(kind.family))}" if kind.family else "a kind")
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            required = [name for name, info in kind.model_fields.items() if info.is_required()]
            parts.append(
                f"text or a mapping with {', '.join(required)}"
                if required == ["path"]
                else f"a mapping with {', '.join(required or kind.model_fields)}"
            )
        else:
            parts.append(_WORDS.get(origin or kind, "a value"))  # type: ignore[arg-type]
    return " or ".join(parts)


def _plural(item: object) -> str:
    if describe(item).startswith("a mapping"):
        return describe(item).replace("a mapping", "mappings", 1)
    if choices(item):
        return f"words out of {', '.join(choices(item))}"
    return {int: "whole numbers", float: "numbers", str: "words"}.get(item, describe(item))  # type: ignore[call-overload]


def model_in(annotation: object, value: object, family: str = "") -> type[BaseModel] | None:
    """Return the class that checks a mapping under this annotation: a part of the recipe, or the component it names."""
    for kind in alternatives(annotation):
        if get_origin(kind) in (list, tuple):
            return model_in(get_args(kind)[0], value, family)
        if isinstance(kind, type) and issubclass(kind, Component):
            named = value.get("kind") if isinstance(value, Mapping) else value
            if not isinstance(named, str):
                continue  # perhaps the mapping is one of another alternative, without kinds
            return kinds(kind.family or family).get(named)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def field_at(
    root: type[BaseModel], values: object, path: tuple[str | int, ...]
) -> tuple[type[BaseModel] | None, FieldInfo | None]:
    """Return the class that owns the key at `path` and the key's field; None for what does not exist."""
    owner: type[BaseModel] | None = root
    info: FieldInfo | None = None
    is_item = False
    for depth, part in enumerate(path):
        if isinstance(part, int):
            is_item = True
            values = values[part] if isinstance(values, (list, tuple)) and part < len(values) else None
        elif owner is not None and (depth == 0 or info is not None):
            if depth and info is not None:
                # Where one or several may stand, an item of the list is what the list holds.
                annotation = item_annotation(info.annotation) if is_item else info.annotation
                owner = model_in(annotation, values, str(path[0]))
                is_item = False
            info = owner.model_fields.get(part) if owner is not None else info
            values = values.get(part) if isinstance(values, Mapping) else None
    return owner, info


def refuse_booleans(cls: type[BaseModel], values: Mapping[str, object]) -> dict[str, object]:
    """Return the values with `true` as the word "true" where a number belongs.

    Pydantic would make a 1 of it: `batch_size: true` would train with batches of one.
    """
    cleaned = dict(values)
    for name, value in values.items():
        info = cls.model_fields.get(name)
        if info is None:
            continue
        if isinstance(value, bool):
            taken = alternatives(info.annotation)
            if bool not in taken and (int in taken or float in taken):
                cleaned[name] = str(value).lower()
        elif isinstance(value, Mapping):
            part = model_in(info.annotation, value)
            if part is not None and not issubclass(part, Component):
                cleaned[name] = refuse_booleans(part, value)
        elif isinstance(value, (list, tuple)):
            parts = [model_in(item_annotation(info.annotation), v) if isinstance(v, Mapping) else None for v in value]
            cleaned[name] = [v if part is None else refuse_booleans(part, v) for part, v in zip(parts, value)]
    return cleaned
