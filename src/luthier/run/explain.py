"""From pydantic's errors to problems that name the place, what is written there, and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from luthier.core.component import Component, kinds
from luthier.core.errors import Problem, did_you_mean
from luthier.data.mixture import DataSet
from luthier.run.draft import Draft
from luthier.run.fields import choices, describe, field_at, is_optional, item_annotation
from luthier.run.foreign_names import FOREIGN_NAMES
from luthier.run.foreign_values import FOREIGN_VALUES
from luthier.run.yaml_lines import KeyPath

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_FAMILIES = ("method", "objective", "optimizer", "schedule", "regularizer")
_LIMITS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_EXAMPLES = {
    "model": "model: Qwen/Qwen3-0.6B, or model: starter",
    "method": "method: lora",
    "data": "data: my.jsonl, or data: starter:quickstart",
    "metric": "metric: loss",
    "name": "name: held-out",
    "path": "path: FILE-OR-FOLDER",
}


def explain(error: ValidationError, draft: Draft, root: type[BaseModel]) -> list[Problem]:
    """Return one problem for each key that is wrong, in the order of the file."""
    by_path: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        by_path.setdefault(_written_path(detail, draft.values), []).append(detail)
    meant = {
        _foreign_target(str(path[0])) for path, details in by_path.items() if details[0]["type"] == "extra_forbidden"
    }
    found = []
    for path, details in by_path.items():
        if details[0]["type"] == "missing" and path[0] in meant:
            continue  # it is there under another tool's name, and that problem says so
        what, remedy = _Explainer(draft, root, path, details).explain()
        found.append((draft.line(path), Problem(what, draft.place(path), remedy)))
    return [problem for _, problem in sorted(found, key=lambda pair: pair[0])]


def _foreign_target(name: str) -> str:
    return FOREIGN_NAMES[name].ours.partition(".")[0] if name in FOREIGN_NAMES else ""


def _written_path(detail: ErrorDetails, values: object) -> KeyPath:
    """Return the key of an error: its location without the names of the alternatives that pydantic tried."""
    path: KeyPath = ()
    for index, part in enumerate(detail["loc"]):
        if isinstance(part, int) and isinstance(values, Mapping):
            continue  # one mapping that stands where a list may stand
        is_missing = detail["type"] == "missing" and index == len(detail["loc"]) - 1
        if isinstance(values, Mapping) and (part in values or is_missing):
            values = values.get(part)
        elif isinstance(values, (list, tuple)) and isinstance(part, int) and part < len(values):
            values = values[part]
        elif not (is_missing and isinstance(values, str)):
            continue
        path = (*path, part)
    return path


class _Explainer:
    """What one key's errors mean."""

    def __init__(self, draft: Draft, root: type[BaseModel], path: KeyPath, details: list[ErrorDetails]) -> None:
        self.draft, self.root, self.path = draft, root, path
        self.owner, self.field = field_at(root, draft.values, path)
        self.label = ".".join(map(str, path))
        self.key = str(path[-1])
        # Of a union's alternatives the one that came furthest counts: a number out of range beats "not this word".
        self.detail = next((d for d in details if d["type"] in _LIMITS or d["type"] == "finite_number"), details[0])

    def explain(self) -> tuple[str, str]:
        detail, context = self.detail, self.detail.get("ctx", {})
        match detail["type"]:
            case "missing":
                return f'The key "{self.label}" is missing.', f"write {_EXAMPLES.get(self.key, f'{self.key}: …')}"
            case "extra_forbidden":
                return self._unknown_key(detail["input"])
            case "no_kind":
                return self._no_kind(str(context["family"]), detail["input"])
            case "unknown_kind":
                return self._unknown_kind(str(context["family"]), str(context["kind"]))
            case "finite_number" | "component_not_finite":
                field = context.get("field")
                label, value = (f"{self.label}.{field}", context["input"]) if field else (self.label, detail["input"])
                return f"{label} is {value}; it has to be a finite number.", self._example()
            case limit if limit in _LIMITS:
                name, words = _LIMITS[limit]
                what = f"{self.label} is {show(detail['input'])}; it has to be {words} {context[name]:g}."
                return what, self._example()
            case "string_too_short" | "too_short":
                return f"{self.label} is empty.", self._example()
            case "string_pattern_mismatch":
                what = (
                    f"{self.label} is {show(detail['input'])}; it has to be one word of letters, digits, -, _ and dots."
                )
                return what, self._example()
            case "value_error" | "assertion_error":
                return f"{self.label}: {detail['msg'].partition(', ')[2] or detail['msg']}", ""
        return self._wrong_type(detail)

    def _example(self) -> str:
        field = self.field
        if field is None:
            return ""
        default = "" if field.is_required() or field.default is None else f"{self.key}: {yaml_word(field.default)}"
        if is_optional(field.annotation):
            return f"leave {self.key} out" + (f", or write e.g. {default}" if default else "")
        return f"write e.g. {default}" if default else f"write {describe(field.annotation)}"

    def _wrong_type(self, detail: ErrorDetails) -> tuple[str, str]:
        value, field = detail["input"], self.field
        if field is None:
            return f"{self.label}: {detail['msg']}.", ""
        annotation = item_annotation(field.annotation) if isinstance(self.path[-1], int) else field.annotation
        wanted = describe(annotation) + (f" such as {field.examples[0]}" if field.examples else "")
        hint = FOREIGN_VALUES.get((self.key, str(value).lower()))
        if value is None:
            return f"{self.label} has no value; it has to be {wanted}.", f"write one, or remove {self.key}"
        near = did_you_mean(str(value), choices(annotation))
        what = f"{self.label} is {show(value)}; it has to be {wanted}.{near}"
        if hint:
            return what, hint
        if isinstance(value, str) and "," in value and "number" in wanted:
            return what, "write the decimal point as a point, without separators"
        if near:
            return what, f"write {self.key}: {near.split(chr(34))[1]}"
        is_word = choices(annotation) and "number" not in wanted
        return what, f"write {wanted}" if is_word else self._example()

    def _unknown_key(self, value: object) -> tuple[str, str]:
        what = f'There is no key "{self.label}".'
        foreign = FOREIGN_NAMES.get(self.key)
        own = list(self.owner.model_fields) if self.owner is not None else []
        if foreign is not None and foreign.ours != self.label:
            return what, foreign.remedy(value)
        if self.key in self.root.model_fields and len(self.path) > 1:
            return what, f"{self.key} stands at the top of a recipe, not inside {self.path[0]}"
        near = did_you_mean(self.key, own)
        home = self._home_of(self.key)
        if home and not (near and len(self.path) > 1):
            return what, home
        if near:
            return what + near, f"write {near.split(chr(34))[1]}: {yaml_word(value)}"
        if len(self.path) > 1:
            return what, f"{self._owner_name()} takes: {', '.join(own)}"
        return what, "remove it; `luthier new` writes a recipe with every key explained"

    def _owner_name(self) -> str:
        named = self.owner is not None and issubclass(self.owner, Component)
        return (
            f"{self.path[0]} {self.owner.model_fields['kind'].default}" if named and self.owner else str(self.path[0])
        )

    def _home_of(self, key: str) -> str:
        """Return where a key belongs that is a field of some part of the recipe."""
        if self.path[0] == "data" and key in DataSet.model_fields:
            return f"it is for one of several sets: write `data: [{{path: …, {key}: …}}, …]`"
        for family in _FAMILIES:
            value = self.draft.values.get(family)
            chosen = value.get("kind") if isinstance(value, Mapping) else value
            holders = [kind for kind, cls in kinds(family).items() if key in cls.model_fields]
            if chosen in holders and self.path[0] != family:
                return f"it belongs to {family}: write `{family}: {{kind: {chosen}, {key}: …}}`"
            if holders:
                example = f"{family}: {{kind: {holders[0]}, {key}: …}}"
                example = f"regularizers: [{example.partition(': ')[2]}]" if family == "regularizer" else example
                return f"it belongs to the {family} {' and '.join(holders[:3])}: write `{example}`"
        for part in ("model", "data"):
            _, info = field_at(self.root, {part: {}}, (part, key))
            if info is not None and len(self.path) == 1:
                return f"it belongs to {part}: write `{part}: {{path: …, {key}: …}}`"
        return ""

    def _no_kind(self, family: str, value: Mapping[str, object]) -> tuple[str, str]:
        fits = [kind for kind, cls in kinds(family).items() if set(value) <= set(cls.model_fields)]
        example = (fits or list(kinds(family)))[0]
        return (
            f"{self.label} does not say its kind.",
            f"add kind: {example} (choose one of: {', '.join(kinds(family))})",
        )

    def _unknown_kind(self, family: str, kind: str) -> tuple[str, str]:
        near = did_you_mean(kind, kinds(family))
        hint = FOREIGN_VALUES.get((family, kind.lower()))
        return f'There is no {family} "{kind}".{near}', hint or f"choose one of: {', '.join(kinds(family))}"


def show(value: object) -> str:
    """Return a value as it stands in a recipe, shortened."""
    if isinstance(value, str):
        text = f'"{value}"'
    elif isinstance(value, Mapping):
        text = "a mapping"
    elif isinstance(value, (list, tuple)):
        text = "a list"
    else:
        text = yaml_word(value)
    return text if len(text) <= 60 else f'{text[:56]}…"'


def yaml_word(value: object) -> str:
    """Return a simple value as YAML; anything longer as an ellipsis."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if value in ((), [], {}):
        return "{}" if value == {} else "[]"
    if isinstance(value, (str, int, float)):
        text = str(value)
        return text if len(text) <= 40 else "…"
    return "…"
