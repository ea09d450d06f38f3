"""A recipe before it is checked: the file's values with the overrides laid over them, and where each was written."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from luthier.core.errors import Problem
from luthier.core.paths import locate
from luthier.run.yaml_lines import Document, KeyPath, parse_value, read_document

# What a single word stands for where a mapping may stand: `method: lora` is `method: {kind: lora}`.
SHORT_FORMS = {
    "model": "path",
    "data": "path",
    "eval_data": "path",
    "method": "kind",
    "objective": "kind",
    "optimizer": "kind",
    "schedule": "kind",
    "curriculum": "by",
    "forgetting": "data",
}
REFERENCE = "stage:"
"""What a path begins with that means the result of an earlier stage of the same recipe."""
_DEFAULT_KINDS = {"objective": "sft", "optimizer": "adamw", "schedule": "cosine"}

# Two ways to say one thing. An override of one puts the file's other out of force: `max_steps=5` tries any recipe.
_EXCLUSIVE = (("epochs", "max_steps"), ("warmup_ratio", "warmup_steps"), ("eval_data", "eval_fraction"))


@dataclass(frozen=True)
class Draft:
    """Values, their places, and wrong overrides. All drafts are equal: where a recipe is written does not change it."""

    values: dict[str, object] = field(compare=False)
    lines: Mapping[KeyPath, int] = field(default_factory=dict, compare=False)
    overrides: Mapping[KeyPath, str] = field(default_factory=dict, compare=False)
    path: Path | None = field(default=None, compare=False)
    base: Path | None = field(default=None, compare=False)
    problems: tuple[Problem, ...] = field(default=(), compare=False)

    @classmethod
    def of_mapping(cls, values: Mapping[str, object], overrides: Sequence[str] = (), base: Path | None = None) -> Draft:
        """Return the draft of a mapping that no file holds."""
        return override(Document(copy.deepcopy(dict(values))), overrides, None, base)

    def place(self, key: KeyPath) -> str:
        """Return where a key, or the nearest mapping around it, is written."""
        key = tuple(int(part) if isinstance(part, str) and part.isdecimal() else part for part in key)
        for length in range(len(key), 0, -1):
            if key[:length] in self.overrides:
                return self.overrides[key[:length]]
            if key[:length] in self.lines:
                return f"{self.path}:{self.lines[key[:length]]}"
        inside = [text for path, text in self.overrides.items() if key and path[: len(key)] == key]
        if inside:
            return inside[0]
        return str(self.path) if self.path else ".".join(map(str, key))

    def locate(self, key: KeyPath, path: str) -> Path:
        """Return the absolute path that the key's value means; see `core.paths` for where it is looked up."""
        if path.startswith(REFERENCE):
            return Path(path)  # it has no place before its stage has run
        here = Path.cwd()
        if self.base is None:
            return locate(path, (here,))
        return locate(path, (here, self.base) if self._is_typed(key) else (self.base, here))

    def _is_typed(self, key: KeyPath) -> bool:
        """Return whether the key's value comes from the command line, not from the file."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.overrides or key[:length] in self.lines:
                return key[:length] in self.overrides
        return False

    def line(self, key: KeyPath) -> int:
        """Return the line of a key or of the mapping around it; 0 where it stands in no file."""
        return next((self.lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.lines), 0)


def read_draft(path: Path, overrides: Sequence[str] = ()) -> Draft:
    """Return the draft of a recipe file.

    Raises:
        RecipeError: the file cannot be read as a mapping.
    """
    return override(read_document(path), overrides, path, path.resolve().parent)


def override(document: Document, overrides: Sequence[str], path: Path | None, base: Path | None) -> Draft:
    """Return the draft of a document with overrides such as `method.rank=8` laid over it."""
    values, lines = document.values, dict(document.lines)
    problems: list[Problem] = []
    written: dict[KeyPath, str] = {}
    for text in overrides:
        problem = _override_one(text, values, lines, written)
        if problem is not None:
            problems.append(Problem(problem[0], text, problem[1]))
    given = {key[0] for key in written}
    for pair in _EXCLUSIVE:
        for mine, other in (pair, pair[::-1]):
            if mine in given and other not in given and values.get(mine) is not None:
                values.pop(other, None)
    return Draft(values, lines, written, path, base, tuple(problems))


def _override_one(
    text: str, values: dict[str, object], lines: dict[KeyPath, int], written: dict[KeyPath, str]
) -> tuple[str, str] | None:
    """Apply one override; return what is wrong with it and the remedy, or None."""
    dotted, equals, shown = text.partition("=")
    if dotted.startswith("-"):
        remedy = f"write {dotted.lstrip('-').replace('-', '_')}={shown or 'VALUE'}"
        return "Recipe keys are set without dashes.", remedy
    if not equals:
        is_recipe = Path(text).suffix in (".yaml", ".yml", ".json")
        if is_recipe:
            return "Only one recipe can be run at a time.", "change single keys with key=value"
        return (
            "This is no override: there is no = in it.",
            f"write {text}=VALUE" if text.isidentifier() else "write key=value",
        )
    key: KeyPath = tuple(int(p) if p.isdecimal() else p for p in dotted.strip().split("."))
    if "" in key:
        return "The key before = is not complete.", "write key=value, or key.field=value"
    if key in written:
        return f"{dotted} is set twice (first by {written[key]}).", "set it once"
    try:
        value = _value(shown)
    except ValueError as error:
        return f"The value cannot be read: {error}.", "put it in quotes, or close its brackets"
    target = _parent_of(key, values)
    if isinstance(target, str):
        return target, f"set {key[0]} as a whole, or look at its fields with `luthier check --json-schema`"
    _assign(target, key[-1], shown == "", value)
    for below in [k for k in lines if k[: len(key)] == key]:
        del lines[below]
    for below in [k for k in written if k[: len(key)] == key]:
        del written[below]
    written[key] = text
    return None


def _assign(target: dict[str, object] | list[object], last: str | int, removes: bool, value: object) -> None:
    if isinstance(target, list):
        assert isinstance(last, int)
        target[last] = value
    elif removes:  # `key=` takes the key out of the recipe, so that its default holds again
        target.pop(str(last), None)
    else:
        target[str(last)] = value


def _value(shown: str) -> object:
    # In YAML `*.mlp` is an alias, `&x` an anchor, `!x` a tag, `@x` and `%x` are reserved: in an override all are words.
    return shown if shown[:1] in ("*", "&", "!", "@", "%", "`") else parse_value(shown)


def _parent_of(key: KeyPath, values: dict[str, object]) -> dict[str, object] | list[object] | str:
    """Return the container that holds the last part of `key`, made where it is missing; or what is wrong."""
    here: object = values
    for depth, part in enumerate(key):
        if isinstance(here, list):
            if not isinstance(part, int) or part >= len(here):
                name = ".".join(map(str, key[:depth]))
                return f"{name} is a list of {len(here)}, counted from 0; there is no item {part} in it."
        elif not isinstance(here, dict):
            return f"{'.'.join(map(str, key[:depth]))} is a single value, without fields."
        if depth == len(key) - 1:
            return here
        here = _child(here, part, key[depth + 1])
    raise AssertionError("an override has a key")


def _child(container: dict[str, object] | list[object], part: str | int, below: str | int) -> object:
    """Return the value of a key as something with parts: a short form unfolded, an empty one where it is missing."""
    if isinstance(container, list):
        assert isinstance(part, int)
        return container[part]
    name = str(part)
    child = container.get(name)
    if child is None and (name in SHORT_FORMS or name not in container):
        empty: dict[str, object] | list[object] = [] if isinstance(below, int) else {}
        child = container[name] = {"kind": _DEFAULT_KINDS[name]} if name in _DEFAULT_KINDS else empty
    elif isinstance(child, str) and name in SHORT_FORMS:
        child = container[name] = {SHORT_FORMS[name]: child}
    return child
