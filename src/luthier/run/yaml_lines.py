"""From a recipe file to plain values, and the line on which each of them stands.

Scalars follow YAML 1.2, as in JSON: `1e-4` is a number; `no`, `on` and `2026-11-22` are words. YAML 1.1, PyYAML's
default, makes a string of the first, booleans of the next two and a date of the last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from luthier.core.errors import Problem, RecipeError, did_you_mean

KeyPath = tuple[str | int, ...]

_MAX_BYTES = 1 << 20
_MAX_NODES = 20_000  # aliases can unfold a small file into billions of nodes
_NEW_RECIPE = "write one with `luthier new recipe.yaml`"


@dataclass(frozen=True)
class Document:
    """What a recipe file says. `lines` holds the line of each key (of each item in a list), counted from 1."""

    values: dict[str, object]
    lines: Mapping[KeyPath, int] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes a word that either version of YAML would take for something else."""


# A table of its own: the inherited one is shared with every user of PyYAML in the process.
_Loader.yaml_implicit_resolvers = {}

for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def read_document(path: Path) -> Document:
    """Return the values of a YAML or JSON file with their lines.

    Raises:
        RecipeError: the file cannot be read as a mapping; carries every duplicate key.
    """
    text = _read_text(path)
    if path.suffix.lower() == ".json":
        return _read_json(text, path)
    return _read_yaml(text, path)


def write_yaml(values: Mapping[str, object]) -> str:
    """Return plain values as YAML that reads back equal, here and in any other reader."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse_value(text: str) -> object:
    """Return the value written in an override.

    Raises:
        ValueError: the text is no YAML.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        reason = "a control character in it" if isinstance(error, yaml.reader.ReaderError) else "nested too deeply"
        raise ValueError(getattr(error, "problem", None) or reason) from error
    walk = _Walk("")
    value = None if node is None else walk.value(node, ())
    if walk.problems:
        raise ValueError(walk.problems[0].what)
    return value


def _read_yaml(text: str, path: Path) -> Document:
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(_explain(error, text, path)) from error
    except RecursionError as error:
        raise RecipeError(
            Problem("The recipe is nested too deeply.", str(path), "a recipe has three levels at most")
        ) from error
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")):
        raise RecipeError(Problem("The recipe is empty.", str(path), _NEW_RECIPE))
    walk = _Walk(str(path))
    values = walk.value(node, ())
    if not isinstance(values, dict):
        raise RecipeError(_no_mapping(values, text, path))
    if walk.problems:
        raise RecipeError(*walk.problems)
    return Document(values, walk.lines)


def _read_json(text: str, path: Path) -> Document:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        where, what = f"{path}:{error.lineno}", f"This is no valid JSON at column {error.colno}: {error.msg}."
        raise RecipeError(Problem(what, where, "mend the line, or write the recipe as YAML (.yaml)")) from error
    except RecursionError as error:
        raise RecipeError(
            Problem("The recipe is nested too deeply.", str(path), "a recipe has three levels at most")
        ) from error
    if not isinstance(values, dict):
        raise RecipeError(_no_mapping(values, text, path))
    walk = _Walk(str(path))
    try:
        # JSON is YAML but for tabs, which it allows between tokens and nowhere else.
        walk.value(yaml.compose(text.replace("\t", " "), Loader=_Loader), ())
    except yaml.YAMLError:
        return Document(values)  # a character that only JSON allows: messages lack their line numbers
    if walk.problems:
        raise RecipeError(*walk.problems)
    return Document(values, walk.lines)


class _Walk:
    """Turn composed nodes into values, noting lines and collecting problems."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self._nodes = 0
        self._unfolds = False
        self._open: set[int] = set()

    def value(self, node: yaml.Node, path: KeyPath) -> object:
        self._nodes += 1
        if self._nodes > _MAX_NODES or id(node) in self._open:
            if not self._unfolds:
                self._complain(node, "An alias (*name) unfolds without end.", "write the value out")
                self._unfolds = True
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        self._open.add(id(node))
        try:
            return self._mapping(node, path) if isinstance(node, yaml.MappingNode) else self._sequence(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, object]:
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._complain(key_node, "A key has to be a word.", "quote it, if it is meant as text")
                continue
            key = key_node.value
            here = (*path, key)
            if key in values:
                first = self.lines.get(here)
                what = f'The key "{key}" is given twice (first on line {first}), so one value would be lost.'
                self._complain(key_node, what, "keep one of them")
                continue
            self.lines[here] = key_node.start_mark.line + 1
            values[key] = self.value(value_node, here)
        return values

    def _sequence(self, node: yaml.Node, path: KeyPath) -> list[object]:
        items: list[object] = []
        for index, item in enumerate(node.value):
            self.lines[(*path, index)] = item.start_mark.line + 1
            items.append(self.value(item, (*path, index)))
        return items

    def _scalar(self, node: yaml.ScalarNode) -> object:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        match kind:
            case "null":
                return None
            case "bool":
                return node.value.lower() == "true"
            case "int":
                return int(node.value)
            case "float":
                return float(re.sub(r"\.(inf|nan)$", r"\1", node.value.lower()))
            case "str":
                return node.value
        self._complain(node, f'The tag "{node.tag}" is not used in recipes.', "write the plain value, or quote it")
        return None

    def _complain(self, node: yaml.Node, what: str, remedy: str) -> None:
        where = f"{self.where}:{node.start_mark.line + 1}" if self.where else ""
        self.problems.append(Problem(what, where, remedy))


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise RecipeError(_is_folder(path))
    if path.suffix.lower() in (".jsonl", ".csv", ".tsv", ".parquet", ".safetensors"):
        remedy = f"name it in a recipe with `data: {path.name}`; {_NEW_RECIPE}"
        if path.suffix.lower() == ".safetensors":
            remedy = f"name its folder in a recipe with `model:`; {_NEW_RECIPE}"
        raise RecipeError(
            Problem(f"A recipe is a YAML or JSON file; {path.suffix} holds something else.", str(path), remedy)
        )
    try:
        data = path.read_bytes() if path.stat().st_size <= _MAX_BYTES else None
    except FileNotFoundError as error:
        raise RecipeError(_is_missing(path)) from error
    except OSError as error:
        raise RecipeError(Problem(f"The recipe cannot be read: {error.strerror or error}.", str(path))) from error
    if data is None:
        raise RecipeError(Problem("The file is larger than 1 MiB, so it is no recipe.", str(path), _NEW_RECIPE))
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or (len(data) > 3 and 0 in data[:2] and 0 not in data[:4:2]):
        raise RecipeError(Problem("The file is encoded as UTF-16.", str(path), "save it as UTF-8"))
    if b"\0" in data:
        raise RecipeError(Problem("The file is binary, no text.", str(path), _NEW_RECIPE))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"{path}:{data[: error.start].count(10) + 1}"
        what = f"The file is not encoded as UTF-8 (byte 0x{data[error.start]:02x})."
        raise RecipeError(Problem(what, where, "save it as UTF-8")) from error


def _recipes_in(folder: Path) -> list[str]:
    try:
        files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    except OSError:
        return []
    return sorted(p.name for p in files if p.suffix.lower() in (".yaml", ".yml", ".json"))


def _is_folder(path: Path) -> Problem:
    inside = _recipes_in(path)
    if "recipe.yaml" in inside:
        return Problem("This is a folder, not a recipe.", str(path), f"did you mean {path / 'recipe.yaml'}?")
    remedy = f"recipes there: {', '.join(inside[:8])}" if inside else _NEW_RECIPE
    return Problem("This is a folder, not a recipe.", str(path), remedy)


def _is_missing(path: Path) -> Problem:
    if "=" in path.name and not path.suffix:
        return Problem("The first argument has to be the recipe.", str(path), f"luthier VERB recipe.yaml {path}")
    if not path.parent.is_dir():
        return Problem(f"There is no folder {path.parent}.", str(path), "check the path")
    beside = _recipes_in(path.parent)
    remedy = f"recipes there: {', '.join(beside[:8])}" if beside else _NEW_RECIPE
    return Problem(f"There is no such file.{did_you_mean(path.name, beside)}", str(path), remedy)


def _no_mapping(values: object, text: str, path: Path) -> Problem:
    suspect = _suspect_line(text, path)
    if suspect is not None:
        return suspect
    shape = "a list" if isinstance(values, list) else "a single value"
    return Problem(f"The recipe is {shape}; it has to be a mapping.", str(path), "write lines like `method: lora`")


def _suspect_line(text: str, path: Path) -> Problem | None:
    """Return the first line that lacks the space after its colon, or has an equals sign in the colon's place."""
    for number, line in enumerate(text.splitlines(), start=1):
        no_space = re.match(r"^\s*([A-Za-z_]\w*):([^\s/:].*)$", line)
        if no_space:
            remedy = f"write `{no_space[1]}: {no_space[2]}`"
            return Problem("There is no space after the colon.", f"{path}:{number}", remedy)
        equals = re.match(r"^\s*([A-Za-z_][\w.]*)\s*=\s*(\S.*)$", line)
        if equals:
            return Problem(
                "There is = where YAML wants a colon.", f"{path}:{number}", f"write `{equals[1]}: {equals[2]}`"
            )
    return None


# What PyYAML says, and what the user has done. The first text that occurs in its message counts.
_SYNTAX = (
    ("'\\t'", "The line is indented with a tab.", "use spaces"),
    ("cannot start any token", "The value begins with a character that YAML reserves.", "put the value in quotes"),
    ("alias", "A value begins with *, which YAML reserves.", "put the value in quotes"),
    ("anchor", "A value begins with &, which YAML reserves.", "put the value in quotes"),
    ("quoted scalar", "A quote is opened and never closed.", "close it, or escape the quote inside"),
    ("flow", "A bracket or brace is opened and not closed, or a comma is missing.", "close it on the same line"),
    (
        "mapping values are not allowed",
        "The indentation does not fit, or a value holds a colon.",
        "align it, or quote the value",
    ),
    ("block end", "The indentation does not fit the lines above.", "start keys of one mapping in the same column"),
    ("expected ':'", "This line has no colon.", "write `key: value`"),
    ("single document", "The file holds several documents (---).", "keep one recipe in one file"),
    ("not allowed", "The file holds a control character.", "remove it"),
)


def _explain(error: yaml.YAMLError, text: str, path: Path) -> Problem:
    message = str(error)
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        message = f"{error.context or ''} {error.problem or ''}"
    else:
        mark = None
    line = mark.line + 1 if mark else text.count("\n", 0, getattr(error, "position", 0)) + 1
    if "mapping values" in message or "expected ':'" in message:
        suspect = _suspect_line(text, path)
        if suspect is not None:
            return suspect
    shown = text.splitlines()[line - 1] if line <= len(text.splitlines()) else ""
    if "\t" in shown[: len(shown) - len(shown.lstrip())]:
        message = "'\\t'"
    for sign, what, remedy in _SYNTAX:
        if sign in message:
            return Problem(what, f"{path}:{line}", remedy)
    return Problem(
        f"This is no valid YAML: {message.strip()}.", f"{path}:{line}", "check indentation, colons and quotes"
    )
